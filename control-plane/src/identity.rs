//! Certificate signing for workloads: `CreateCertificate` of `IstioCertificateService`.
//!
//! The caller proves who it is by a join token or by the certificate of its connection. It
//! gets a certificate for exactly that identity and for the public key of its request;
//! everything else in the request is ignored or refused.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use weft_api::identity::istio_certificate_service_server::IstioCertificateService;
use weft_api::identity::{IstioCertificateRequest, IstioCertificateResponse};
use weft_certs::ca::DEFAULT_LEAF_TTL;
use weft_certs::{Ca, Csr, SpiffeId};

use crate::connection::{Peer, Svid};
use crate::metrics::{CsrResult, Metrics};
use crate::token::{Grant, TokenError, Tokens};

/// The signing service. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    /// Signs.
    pub ca: Arc<Ca>,
    /// Knows who may join.
    pub tokens: Tokens,
    /// The control plane's own identity, which no caller can have.
    pub own: SpiffeId,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// How the caller proved who it is.
#[derive(Debug, Clone)]
enum Proof {
    Token(Grant),
    Certificate(SpiffeId),
}

impl Proof {
    fn identity(&self) -> &SpiffeId {
        match self {
            Self::Token(grant) => &grant.identity,
            Self::Certificate(id) => id,
        }
    }

    fn result(&self) -> CsrResult {
        match self {
            Self::Token(_) => CsrResult::Joined,
            Self::Certificate(_) => CsrResult::Renewed,
        }
    }
}

/// A request that is not signed: for the metric, and for the caller.
type Refused = (CsrResult, Status);

#[tonic::async_trait]
impl IstioCertificateService for Identity {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let token = bearer(request.metadata());
        let body = request.into_inner();
        let service = self.clone();
        let address = peer.as_ref().map(|peer| peer.address);
        // Token files and signatures: neither is for a worker of the event loop.
        let signed = tokio::task::spawn_blocking(move || {
            service.decide(peer.as_ref(), token, &body, SystemTime::now())
        })
        .await
        .unwrap_or_else(|_| Err((CsrResult::Failed, Status::internal("signing failed"))));
        match signed {
            Ok((result, chain)) => {
                self.metrics.csr(result);
                Ok(Response::new(IstioCertificateResponse {
                    cert_chain: chain,
                }))
            }
            Err((result, status)) => {
                self.metrics.csr(result);
                tracing::warn!(?address, result = result.name(), reason = ?status.message(), "refused to sign a certificate");
                Err(status)
            }
        }
    }
}

impl Identity {
    /// Checks in an order that uses up a token only for a request that will be signed.
    fn decide(
        &self,
        peer: Option<&Peer>,
        token: Result<Option<String>, Status>,
        body: &IstioCertificateRequest,
        now: SystemTime,
    ) -> Result<(CsrResult, Vec<String>), Refused> {
        let token = token.map_err(|status| (CsrResult::Unauthenticated, status))?;
        let proof = match token {
            Some(token) => Proof::Token(
                self.tokens
                    .check(&token, now)
                    .map_err(|e| refused_token(&e))?,
            ),
            None => by_certificate(peer.and_then(|peer| peer.svid.as_ref()), now)
                .map_err(|s| (CsrResult::Unauthenticated, s))?,
        };
        let id = proof.identity().clone();
        let invalid = |text: String| (CsrResult::Invalid, Status::invalid_argument(text));
        let csr = Csr::from_pem(&body.csr).map_err(|e| invalid(format!("csr of {id}: {e}")))?;
        let requested = csr.requested_id();
        let requested = requested.map_err(|e| invalid(format!("csr of {id}: {e}")))?;
        self.may_have(&id, requested.as_ref())?;
        let ttl = ttl(body.validity_duration).map_err(invalid)?;
        if let Proof::Token(grant) = &proof {
            let key = csr.public_key_fingerprint();
            self.tokens
                .bind(grant, key)
                .map_err(|e| refused_token(&e))?;
        }
        let chain = self.ca.sign(&csr, &id, ttl, now).map_err(|error| {
            tracing::error!(identity = %id, %error, "cannot sign");
            (
                CsrResult::Failed,
                Status::internal("the certificate authority cannot sign; see its log"),
            )
        })?;
        let result = proof.result();
        let not_after = crate::stamp(chain.not_after);
        tracing::info!(identity = %id, address = ?peer.map(|p| p.address), result = result.name(), not_after, "signed a certificate");
        Ok((result, chain.pem()))
    }

    fn may_have(&self, id: &SpiffeId, requested: Option<&SpiffeId>) -> Result<(), Refused> {
        let denied = |text| Err((CsrResult::Denied, Status::permission_denied(text)));
        if *id == self.own {
            return denied(format!(
                "{id} is the control plane's own identity: no workload can have it"
            ));
        }
        match requested {
            Some(requested) if requested != id => denied(format!(
                "the signing request is for {requested}, but the caller proved to be {id}"
            )),
            _ => Ok(()),
        }
    }
}

fn by_certificate(svid: Option<&Svid>, now: SystemTime) -> Result<Proof, Status> {
    let Some(svid) = svid else {
        return Err(Status::unauthenticated(
            "no proof of identity: send a join token (authorization: Bearer <token>), or connect with the current certificate",
        ));
    };
    if now >= svid.not_after {
        return Err(Status::unauthenticated(format!(
            "the certificate of this connection ({}) has expired; join again with a token",
            svid.id
        )));
    }
    Ok(Proof::Certificate(svid.id.clone()))
}

fn refused_token(error: &TokenError) -> Refused {
    let text = error.to_string();
    match error {
        TokenError::Malformed
        | TokenError::OtherRoot
        | TokenError::Unknown
        | TokenError::Expired => (CsrResult::Unauthenticated, Status::unauthenticated(text)),
        TokenError::Used | TokenError::Identity(_) => {
            (CsrResult::Denied, Status::permission_denied(text))
        }
        TokenError::Store { .. } => {
            tracing::error!(error = %text, "join tokens cannot be used");
            (
                CsrResult::Failed,
                Status::internal("the token store cannot be used; see the control plane's log"),
            )
        }
    }
}

/// The token of an `authorization: Bearer` header, if there is such a header.
fn bearer(metadata: &MetadataMap) -> Result<Option<String>, Status> {
    let Some(value) = metadata.get("authorization") else {
        return Ok(None);
    };
    let malformed =
        || Status::unauthenticated("the authorization header must be `Bearer <join token>`");
    let text = value.to_str().map_err(|_| malformed())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(malformed)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(malformed());
    }
    Ok(Some(token.trim().to_owned()))
}

/// The lifetime wanted, in seconds; the authority clamps it.
fn ttl(seconds: i64) -> Result<Duration, String> {
    match u64::try_from(seconds) {
        Ok(0) => Ok(DEFAULT_LEAF_TTL),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => Err(format!(
            "validity_duration is {seconds} s; it must not be negative"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use tonic::Code;
    use tonic::metadata::MetadataMap;

    use super::{Svid, bearer, by_certificate, ttl};

    #[test]
    fn an_expired_certificate_proves_nothing() {
        let now = SystemTime::now();
        let svid = Svid {
            id: "spiffe://demo.mesh/ns/blog/sa/web".parse().unwrap(),
            not_after: now,
        };
        let status = by_certificate(Some(&svid), now).unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains("ns/blog/sa/web"), "{status}");
        let before = now - Duration::from_secs(1);
        assert_eq!(
            by_certificate(Some(&svid), before).unwrap().identity(),
            &svid.id
        );
    }

    #[test]
    fn authorization_headers() {
        let cases = [
            (None, Ok(None)),
            (Some("Bearer a.b.c"), Ok(Some("a.b.c"))),
            (Some("bearer  a.b.c "), Ok(Some("a.b.c"))),
            (Some("Basic a"), Err(())),
            (Some("a.b.c"), Err(())),
            (Some(""), Err(())),
        ];
        for (header, expected) in cases {
            let mut metadata = MetadataMap::new();
            if let Some(header) = header {
                metadata.insert("authorization", header.parse().unwrap());
            }
            let found = bearer(&metadata).map_err(|_| ());
            assert_eq!(
                found.as_ref().map(Option::as_deref),
                expected.as_ref().map(|e| *e),
                "{header:?}"
            );
        }
    }

    #[test]
    fn lifetimes() {
        assert_eq!(ttl(0), Ok(super::DEFAULT_LEAF_TTL));
        assert_eq!(ttl(60), Ok(Duration::from_secs(60)));
        assert!(ttl(-1).unwrap_err().contains("-1 s"));
    }
}
