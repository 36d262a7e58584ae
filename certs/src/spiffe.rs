//! Trust domains and SPIFFE IDs, by the rules of the SPIFFE-ID standard.
//!
//! Parsing is strict: only the normal form is accepted (lower-case scheme and trust domain),
//! because an identity in another form in a certificate must be refused, never repaired.
//! Weft's own shape is `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest SPIFFE ID in bytes.
pub const MAX_ID_BYTES: usize = 2048;
/// Longest trust domain in bytes.
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

const SCHEME: &str = "spiffe://";

/// Why a text is no trust domain or no SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpiffeError {
    /// The text does not begin with `spiffe://`.
    #[error("a SPIFFE ID begins with spiffe://, in lower case")]
    Scheme,
    /// There is no trust domain.
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    /// The trust domain is longer than [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("the trust domain has {0} bytes; at most {MAX_TRUST_DOMAIN_BYTES} are allowed")]
    LongTrustDomain(usize),
    /// The trust domain has a character outside `a-z 0-9 . - _`.
    #[error("the trust domain contains {0:?}; allowed are a-z, 0-9, '.', '-' and '_'")]
    TrustDomainCharacter(char),
    /// The ID is longer than [`MAX_ID_BYTES`].
    #[error("the SPIFFE ID has {0} bytes; at most {MAX_ID_BYTES} are allowed")]
    Long(usize),
    /// A path segment is empty.
    #[error("the path has an empty segment (a double slash, or an empty name)")]
    EmptySegment,
    /// The path ends with a slash.
    #[error("the path ends with a slash")]
    TrailingSlash,
    /// A path segment is `.` or `..`.
    #[error("the path has a segment '.' or '..'")]
    DotSegment,
    /// The path has a character outside `a-z A-Z 0-9 . - _`.
    #[error("the path contains {0:?}; allowed are a-z, A-Z, 0-9, '.', '-' and '_'")]
    PathCharacter(char),
}

/// A trust domain such as `mesh.example`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name, without scheme.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself, which has no path. Signing certificates
    /// carry it; no workload may.
    #[must_use]
    pub fn id(&self) -> SpiffeId {
        SpiffeId {
            uri: format!("{SCHEME}{}", self.0).into(),
            trust_domain: self.clone(),
        }
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        if text.is_empty() {
            return Err(SpiffeError::EmptyTrustDomain);
        }
        if text.len() > MAX_TRUST_DOMAIN_BYTES {
            return Err(SpiffeError::LongTrustDomain(text.len()));
        }
        let allowed = |c: char| c.is_ascii_lowercase() || is_digit_or_mark(c);
        match text.chars().find(|&c| !allowed(c)) {
            Some(c) => Err(SpiffeError::TrustDomainCharacter(c)),
            None => Ok(Self(text.into())),
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SPIFFE ID such as `spiffe://mesh.example/ns/blog/sa/posts`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    ///
    /// # Errors
    /// When a name is empty, is `.` or `..`, has a character that a path segment may not
    /// have (a slash too), or the ID gets too long.
    pub fn workload(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeError> {
        check_segment(namespace)?;
        check_segment(service_account)?;
        let uri = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}");
        if uri.len() > MAX_ID_BYTES {
            return Err(SpiffeError::Long(uri.len()));
        }
        Ok(Self {
            uri: uri.into(),
            trust_domain: trust_domain.clone(),
        })
    }

    /// The whole URI.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading slash; empty for a trust domain's own ID.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.uri[SCHEME.len() + self.trust_domain.0.len()..]
    }

    /// `X` of a path `/ns/X/sa/Y`; `None` for any other path.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.names().map(|(namespace, _)| namespace)
    }

    /// `Y` of a path `/ns/X/sa/Y`; `None` for any other path.
    #[must_use]
    pub fn service_account(&self) -> Option<&str> {
        self.names().map(|(_, service_account)| service_account)
    }

    fn names(&self) -> Option<(&str, &str)> {
        let (namespace, rest) = self.path().strip_prefix("/ns/")?.split_once('/')?;
        let service_account = rest.strip_prefix("sa/")?;
        (!service_account.contains('/')).then_some((namespace, service_account))
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > MAX_ID_BYTES {
            return Err(SpiffeError::Long(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeError::Scheme)?;
        let (trust_domain, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let trust_domain = trust_domain.parse()?;
        if let Some(segments) = path.strip_prefix('/') {
            if segments.is_empty() || segments.ends_with('/') {
                return Err(SpiffeError::TrailingSlash);
            }
            segments.split('/').try_for_each(check_segment)?;
        }
        Ok(Self {
            uri: text.into(),
            trust_domain,
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

fn check_segment(segment: &str) -> Result<(), SpiffeError> {
    match segment {
        "" => return Err(SpiffeError::EmptySegment),
        "." | ".." => return Err(SpiffeError::DotSegment),
        _ => {}
    }
    let allowed = |c: char| c.is_ascii_alphabetic() || is_digit_or_mark(c);
    match segment.chars().find(|&c| !allowed(c)) {
        Some(c) => Err(SpiffeError::PathCharacter(c)),
        None => Ok(()),
    }
}

fn is_digit_or_mark(c: char) -> bool {
    c.is_ascii_digit() || matches!(c, '.' | '-' | '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_valid() {
        let long_domain = "a".repeat(MAX_TRUST_DOMAIN_BYTES);
        let long_id = format!("spiffe://td/{}", "x".repeat(MAX_ID_BYTES - 12));
        let bare = format!("spiffe://{long_domain}");
        for (text, path) in [
            (
                "spiffe://mesh.example/ns/blog/sa/posts",
                "/ns/blog/sa/posts",
            ),
            ("spiffe://td", ""),
            ("spiffe://a-b_c.9/X.y-Z_0", "/X.y-Z_0"),
            ("spiffe://td/...", "/..."),
            ("spiffe://td/.hidden", "/.hidden"),
            (bare.as_str(), ""),
            (long_id.as_str(), &long_id[11..]),
        ] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!(id.as_str(), text);
            assert_eq!(id.to_string(), text);
            assert_eq!(id.path(), path, "{text}");
        }
    }

    #[test]
    fn ids_that_are_refused() {
        use SpiffeError as E;
        let long_domain = format!("spiffe://{}/x", "a".repeat(MAX_TRUST_DOMAIN_BYTES + 1));
        let long_id = format!("spiffe://td/{}", "x".repeat(MAX_ID_BYTES - 11));
        for (text, error) in [
            ("", E::Scheme),
            ("td/x", E::Scheme),
            ("http://td/x", E::Scheme),
            ("SPIFFE://td/x", E::Scheme),
            ("spiffe:/td/x", E::Scheme),
            (" spiffe://td/x", E::Scheme),
            ("spiffe://", E::EmptyTrustDomain),
            ("spiffe:///x", E::EmptyTrustDomain),
            ("spiffe://TD/x", E::TrustDomainCharacter('T')),
            ("spiffe://td:443/x", E::TrustDomainCharacter(':')),
            ("spiffe://user@td/x", E::TrustDomainCharacter('@')),
            ("spiffe://t%64/x", E::TrustDomainCharacter('%')),
            ("spiffe://td?q", E::TrustDomainCharacter('?')),
            ("spiffe://td#f", E::TrustDomainCharacter('#')),
            ("spiffe://tä/x", E::TrustDomainCharacter('ä')),
            ("spiffe://[::1]/x", E::TrustDomainCharacter('[')),
            ("spiffe://td/", E::TrailingSlash),
            ("spiffe://td/x/", E::TrailingSlash),
            ("spiffe://td//x", E::EmptySegment),
            ("spiffe://td/./x", E::DotSegment),
            ("spiffe://td/a/../x", E::DotSegment),
            ("spiffe://td/..", E::DotSegment),
            ("spiffe://td/a%2fb", E::PathCharacter('%')),
            ("spiffe://td/x?q=1", E::PathCharacter('?')),
            ("spiffe://td/x#f", E::PathCharacter('#')),
            ("spiffe://td/x\0y", E::PathCharacter('\0')),
            ("spiffe://td/x y", E::PathCharacter(' ')),
            ("spiffe://td/x\\y", E::PathCharacter('\\')),
            ("spiffe://td/é", E::PathCharacter('é')),
            ("spiffe://td/x\n", E::PathCharacter('\n')),
            (long_domain.as_str(), E::LongTrustDomain(256)),
            (long_id.as_str(), E::Long(2049)),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn workload_ids_and_their_names() {
        let td: TrustDomain = "mesh.example".parse().unwrap();
        let id = SpiffeId::workload(&td, "blog", "posts").unwrap();
        assert_eq!(id.as_str(), "spiffe://mesh.example/ns/blog/sa/posts");
        assert_eq!(id, id.as_str().parse().unwrap());
        assert_eq!(id.namespace(), Some("blog"));
        assert_eq!(id.service_account(), Some("posts"));
        assert_eq!(id.trust_domain(), &td);

        for (namespace, account, error) in [
            ("", "a", SpiffeError::EmptySegment),
            ("n", "", SpiffeError::EmptySegment),
            ("n/sa/x", "a", SpiffeError::PathCharacter('/')),
            ("..", "a", SpiffeError::DotSegment),
            ("n", "a/b", SpiffeError::PathCharacter('/')),
            ("n", &"a".repeat(2048), SpiffeError::Long(2078)),
        ] {
            assert_eq!(SpiffeId::workload(&td, namespace, account), Err(error));
        }
        for text in [
            "spiffe://td",
            "spiffe://td/ns/a",
            "spiffe://td/ns/a/sb/c",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/x/ns/a/sa/b",
        ] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!(
                (id.namespace(), id.service_account()),
                (None, None),
                "{text}"
            );
        }
    }

    #[test]
    fn the_id_of_a_trust_domain_has_no_path() {
        let td: TrustDomain = "mesh.example".parse().unwrap();
        assert_eq!(td.id(), "spiffe://mesh.example".parse().unwrap());
        assert_eq!(td.id().path(), "");
    }
}
