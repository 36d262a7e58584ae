//! `envoy.extensions.transport_sockets.tls.v3.Secret`.

use std::str;

use rustls_pki_types::{CertificateDer, pem::PemObject};
use weft_api::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};

use super::{
    problems::{Problems, inline},
    tls,
};

/// A validation context's `trusted_ca`: roots in PEM, of the trust domain of the sidecar.
/// At least one section of it is a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundlePem(pub String);

pub(super) fn read(p: &mut Problems, name: &str, from: &Secret) -> Option<TrustBundlePem> {
    p.name("name", &from.name, name);
    let Some(secret::Type::ValidationContext(context)) = &from.r#type else {
        p.reject(
            "type",
            "must be validation_context: keys never travel over xDS",
        );
        return None;
    };
    p.at("validation_context", |p| {
        tls::only_roots(p, context);
        p.unsupported(
            !context.match_typed_subject_alt_names.is_empty(),
            "match_typed_subject_alt_names",
        );
        let Some(roots) = &context.trusted_ca else {
            p.reject("trusted_ca", "is missing");
            return None;
        };
        let Ok(pem) = str::from_utf8(inline(p, "trusted_ca", roots)?) else {
            p.reject("trusted_ca", "is not PEM");
            return None;
        };
        if !CertificateDer::pem_slice_iter(pem.as_bytes()).any(|found| found.is_ok()) {
            p.reject("trusted_ca", "has no certificate in PEM");
        }
        Some(TrustBundlePem(pem.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use weft_api::{
        Kind,
        envoy::{
            config::core::v3::{DataSource, data_source::Specifier},
            extensions::transport_sockets::tls::v3::{
                CertificateValidationContext, SubjectAltNameMatcher,
            },
        },
    };

    use super::*;
    use crate::config::{
        Value,
        testing::{check, good},
    };

    // The bytes of a section are not looked into here.
    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    fn context(specifier: Option<Specifier>) -> CertificateValidationContext {
        CertificateValidationContext {
            trusted_ca: Some(DataSource {
                specifier,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn secret(context: CertificateValidationContext) -> Secret {
        Secret {
            name: "ROOTCA".into(),
            r#type: Some(secret::Type::ValidationContext(context)),
        }
    }

    #[test]
    fn bundles() {
        let expect = Value::Secret(TrustBundlePem(PEM.into()).into());
        for specifier in [
            Specifier::InlineString(PEM.into()),
            Specifier::InlineBytes(PEM.into()),
        ] {
            let message = secret(context(Some(specifier)));
            assert_eq!(good(Kind::Secret, "ROOTCA", &message), expect);
        }
    }

    #[test]
    fn bad_secrets() {
        let check = |message: Secret, expect: &[&str]| {
            check(Kind::Secret, "ROOTCA", &message, expect);
        };
        let trusted = |specifier| secret(context(specifier));
        let inline = |text: &str| Some(Specifier::InlineString(text.into()));
        let mut renamed = trusted(inline(PEM));
        renamed.name = "other".into();
        check(
            renamed,
            &["name: is \"other\", but the resource was sent as \"ROOTCA\""],
        );
        check(
            Secret {
                name: "ROOTCA".into(),
                r#type: None,
            },
            &["type: must be validation_context: keys never travel over xDS"],
        );
        check(
            Secret {
                name: "ROOTCA".into(),
                r#type: Some(secret::Type::TlsCertificate(Default::default())),
            },
            &["type: must be validation_context: keys never travel over xDS"],
        );
        check(
            secret(Default::default()),
            &["validation_context.trusted_ca: is missing"],
        );
        check(
            trusted(Some(Specifier::Filename("/etc/roots.pem".into()))),
            &["validation_context.trusted_ca: must be inline_string or inline_bytes"],
        );
        check(
            trusted(Some(Specifier::InlineBytes(vec![0xff]))),
            &["validation_context.trusted_ca: is not PEM"],
        );
        check(
            trusted(inline("roots")),
            &["validation_context.trusted_ca: has no certificate in PEM"],
        );
        let mut restricted = context(inline(PEM));
        restricted.crl = Some(DataSource::default());
        restricted.allow_expired_certificate = true;
        restricted.match_typed_subject_alt_names = vec![SubjectAltNameMatcher::default()];
        check(
            secret(restricted),
            &[
                "validation_context.crl: is not supported; leave it out",
                "validation_context.allow_expired_certificate: is not supported; leave it out",
                "validation_context.match_typed_subject_alt_names: is not supported; leave it out",
            ],
        );
    }
}
