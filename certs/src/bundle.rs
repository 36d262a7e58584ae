//! Trust bundles: which roots vouch for which trust domain.
//!
//! The roots of several trust domains are never pooled: a root of one domain must not be
//! able to vouch for an identity in another.

use std::collections::BTreeMap;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::spiffe::TrustDomain;
use crate::x509;

/// Longest PEM text of a bundle in bytes.
pub const MAX_BUNDLE_BYTES: usize = 1024 * 1024;

/// An entry of a PEM bundle that was skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleWarning {
    /// Its number in the text, from 1.
    pub entry: usize,
    /// Why it is no root.
    pub problem: String,
}

impl std::fmt::Display for BundleWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "entry {} was skipped: {}", self.entry, self.problem)
    }
}

/// Why a text is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// Longer than [`MAX_BUNDLE_BYTES`].
    #[error("the trust bundle has {0} bytes; at most {MAX_BUNDLE_BYTES} are allowed")]
    TooLong(usize),
    /// There is not one usable root.
    #[error("the trust bundle of {trust_domain} has no usable root certificate{}", list(.warnings))]
    NoRoot {
        /// The trust domain.
        trust_domain: TrustDomain,
        /// What was skipped.
        warnings: Vec<BundleWarning>,
    },
}

fn list(warnings: &[BundleWarning]) -> String {
    let texts = warnings.iter().map(|warning| format!("; {warning}"));
    texts.collect()
}

/// Root certificates per trust domain, each a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustBundle {
    // Sorted by their bytes, without duplicates, never empty.
    roots: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
}

impl TrustBundle {
    /// Reads the roots of one trust domain from PEM. Order, duplicates, blank lines and text
    /// between the blocks do not matter. An entry that is no CA certificate of this trust
    /// domain is skipped and reported.
    ///
    /// # Errors
    /// When the text is too long or no entry is good.
    pub fn from_pem(
        trust_domain: &TrustDomain,
        pem: &str,
    ) -> Result<(Self, Vec<BundleWarning>), BundleError> {
        if pem.len() > MAX_BUNDLE_BYTES {
            return Err(BundleError::TooLong(pem.len()));
        }
        let mut roots = Vec::new();
        let mut warnings = Vec::new();
        for (index, block) in blocks(pem).enumerate() {
            match root(trust_domain, block) {
                Ok(der) => roots.push(der),
                Err(problem) => warnings.push(BundleWarning {
                    entry: index + 1,
                    problem,
                }),
            }
        }
        if roots.is_empty() {
            return Err(BundleError::NoRoot {
                trust_domain: trust_domain.clone(),
                warnings,
            });
        }
        Ok((Self::of(trust_domain.clone(), roots), warnings))
    }

    /// `roots` must be good roots; at least one.
    pub(crate) fn of(trust_domain: TrustDomain, mut roots: Vec<CertificateDer<'static>>) -> Self {
        sort(&mut roots);
        Self {
            roots: BTreeMap::from([(trust_domain, roots)]),
        }
    }

    /// Adds the roots of `other`; those of the same trust domain become one set.
    pub fn merge(&mut self, other: &Self) {
        for (trust_domain, roots) in &other.roots {
            let mine = self.roots.entry(trust_domain.clone()).or_default();
            mine.extend(roots.iter().cloned());
            sort(mine);
        }
    }

    /// The roots of a trust domain; `None` when it is not trusted.
    #[must_use]
    pub fn roots(&self, trust_domain: &TrustDomain) -> Option<&[CertificateDer<'static>]> {
        self.roots.get(trust_domain).map(Vec::as_slice)
    }

    /// The trust domains, sorted.
    pub fn trust_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.roots.keys()
    }

    /// The roots of one trust domain in PEM, in a fixed order; empty when it is not trusted.
    #[must_use]
    pub fn to_pem(&self, trust_domain: &TrustDomain) -> String {
        let roots = self.roots(trust_domain).unwrap_or_default();
        roots
            .iter()
            .map(|der| x509::pem("CERTIFICATE", der))
            .collect()
    }

    /// SHA-256 of each root's DER, by trust domain and root in the fixed order.
    #[must_use]
    pub fn fingerprints(&self) -> Vec<[u8; 32]> {
        let roots = self.roots.values().flatten();
        roots.map(|der| x509::sha256(der)).collect()
    }

    /// When the first of the roots expires; `None` for an empty bundle.
    #[must_use]
    pub fn not_after(&self) -> Option<SystemTime> {
        let roots = self.roots.values().flatten();
        let ends = roots.filter_map(|der| Some(x509::validity(&x509::parse(der).ok()?).1));
        ends.min()
    }
}

fn sort(roots: &mut Vec<CertificateDer<'static>>) {
    roots.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
    roots.dedup();
}

/// The PEM blocks of a text. A block without an end reaches to the next one.
fn blocks(pem: &str) -> impl Iterator<Item = &str> {
    const BEGIN: &str = "-----BEGIN ";
    let starts: Vec<usize> = pem.match_indices(BEGIN).map(|(at, _)| at).collect();
    let ends: Vec<usize> = starts.iter().skip(1).copied().chain([pem.len()]).collect();
    starts
        .into_iter()
        .zip(ends)
        .map(move |(start, end)| &pem[start..end])
}

fn root(trust_domain: &TrustDomain, block: &str) -> Result<CertificateDer<'static>, String> {
    if !block.starts_with("-----BEGIN CERTIFICATE-----") {
        return Err("it is not a CERTIFICATE".into());
    }
    let der = CertificateDer::from_pem_slice(block.as_bytes()).map_err(|e| e.to_string())?;
    check_root(trust_domain, &der)?;
    Ok(der)
}

/// Whether a certificate may be a root of a trust domain.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_root(
    trust_domain: &TrustDomain,
    der: &CertificateDer<'_>,
) -> Result<(), String> {
    let text = |malformed: x509::Malformed| malformed.0.to_owned();
    let certificate = x509::parse(der).map_err(text)?;
    if !x509::basic_constraints(&certificate)
        .map_err(text)?
        .is_some_and(|constraints| constraints.ca)
    {
        return Err("it is not a CA certificate (cA is not set)".into());
    }
    if let Some((usage, _)) = x509::key_usage(&certificate).map_err(text)?
        && !usage.key_cert_sign()
    {
        return Err("its key usage lacks keyCertSign".into());
    }
    let own = trust_domain.id();
    for uri in x509::uri_names(&certificate).map_err(text)? {
        if uri != own.as_str() {
            return Err(format!("it names {uri:?}, not the trust domain {own}"));
        }
    }
    RootCertStore::empty()
        .add(der.clone())
        .map_err(|e| format!("it is no trust anchor: {e}"))
}

#[cfg(test)]
mod tests {
    use rcgen::{IsCa, KeyUsagePurpose, SanType};

    use super::*;
    use crate::testing::TestPki;

    fn pem(der: &CertificateDer<'_>) -> String {
        x509::pem("CERTIFICATE", der)
    }

    fn read(pki: &TestPki, text: &str) -> (TrustBundle, Vec<BundleWarning>) {
        TrustBundle::from_pem(pki.trust_domain(), text).unwrap()
    }

    #[test]
    fn a_bundle_is_a_set() {
        let pki = TestPki::new("td");
        let (a, b) = (
            pem(&pki.mutated_root(|_| {})),
            pem(&pki.mutated_root(|_| {})),
        );
        let expected = read(&pki, &format!("{a}{b}")).0;
        assert_eq!(expected.roots(pki.trust_domain()).unwrap().len(), 2);
        for text in [
            format!("{b}{a}"),
            format!("{a}{b}{a}{a}"),
            format!("\n\n{b}\n \n{a}\n\n"),
            format!("# our roots\nsubject=x\n{a}{b}"),
            format!("{a}{b}").replace('\n', "\r\n"),
        ] {
            let (bundle, warnings) = read(&pki, &text);
            assert_eq!(bundle, expected);
            assert_eq!(warnings, []);
        }
        assert_ne!(read(&pki, &a).0, expected);
        // What we write reads back.
        let text = expected.to_pem(pki.trust_domain());
        assert_eq!(read(&pki, &text).0, expected);
    }

    #[test]
    fn bad_entries_are_skipped_and_reported() {
        let pki = TestPki::new("td");
        let good = pem(&pki.mutated_root(|_| {}));
        let leaf = pem(&pki.issue("a", "b").chain[0]);
        let no_ca = pem(&pki.mutated_root(|p| p.is_ca = IsCa::ExplicitNoCa));
        let no_sign = pem(&pki.mutated_root(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]));
        let foreign = pem(&pki.mutated_root(|p| {
            p.subject_alt_names = vec![SanType::URI("spiffe://other".try_into().unwrap())];
        }));
        let key = good.replace("CERTIFICATE", "PRIVATE KEY");
        let cut = "-----BEGIN CERTIFICATE-----\nMIIB\n".to_owned();
        let junk = pem(&CertificateDer::from(vec![1, 2, 3]));
        for (bad, word) in [
            (leaf, "not a CA"),
            (no_ca, "not a CA"),
            (no_sign, "keyCertSign"),
            (foreign, "spiffe://other"),
            (key, "not a CERTIFICATE"),
            (cut, "end"),
            (junk, "DER"),
            (
                "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n".into(),
                "ase64",
            ),
        ] {
            for (text, entry) in [(format!("{bad}{good}"), 1), (format!("{good}{bad}"), 2)] {
                let (bundle, warnings) = read(&pki, &text);
                assert_eq!(bundle, read(&pki, &good).0);
                assert_eq!(warnings.len(), 1, "{warnings:?}");
                assert_eq!(warnings[0].entry, entry, "{bad}");
                assert!(warnings[0].to_string().contains(word), "{}", warnings[0]);
            }
            let error = TrustBundle::from_pem(pki.trust_domain(), &bad).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn without_a_root_there_is_no_bundle() {
        let pki = TestPki::new("td");
        for text in ["", "\n\n", "hello"] {
            let error = TrustBundle::from_pem(pki.trust_domain(), text).unwrap_err();
            assert!(
                matches!(error, BundleError::NoRoot { ref warnings, .. } if warnings.is_empty())
            );
        }
        let text = " ".repeat(MAX_BUNDLE_BYTES + 1);
        let error = TrustBundle::from_pem(pki.trust_domain(), &text).unwrap_err();
        assert_eq!(error, BundleError::TooLong(MAX_BUNDLE_BYTES + 1));
    }

    #[test]
    fn domains_are_kept_apart() {
        let (a, b) = (TestPki::new("a"), TestPki::new("b"));
        let mut both = a.ca.bundle();
        both.merge(&b.ca.bundle());
        both.merge(&b.ca.bundle());
        assert_eq!(
            both.roots(a.trust_domain()),
            a.ca.bundle().roots(a.trust_domain())
        );
        assert_eq!(
            both.roots(b.trust_domain()),
            b.ca.bundle().roots(b.trust_domain())
        );
        assert_eq!(both.roots(&"c".parse().unwrap()), None);
        assert_eq!(both.to_pem(a.trust_domain()).matches("BEGIN").count(), 1);
        assert_eq!(
            both.fingerprints(),
            [a.ca.root_fingerprint(), b.ca.root_fingerprint()]
        );
        assert_eq!(
            both.not_after(),
            Some(a.ca.root_not_after().min(b.ca.root_not_after()))
        );
        assert_eq!(TrustBundle::default().not_after(), None);
    }
}
