//! `envoy.extensions.transport_sockets.tls.v3`: what listeners, clusters and secrets share.
//!
//! The mesh speaks TLS 1.3 with the sidecar's own identity and the bundle that comes over SDS.
//! Whatever else a context asks for is rejected, never ignored: it would accept a peer, or a
//! way to speak, that its author meant to exclude.

use std::sync::Arc;

use weft_api::{
    any,
    envoy::{
        config::core::v3::{TransportSocket, transport_socket},
        extensions::transport_sockets::{
            raw_buffer::v3::RawBuffer,
            tls::v3::{
                CertificateValidationContext, CommonTlsContext, DownstreamTlsContext,
                SdsSecretConfig, SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
                certificate_validation_context::TrustChainVerification,
                common_tls_context::ValidationContextType, downstream_tls_context,
                subject_alt_name_matcher::SanType, tls_parameters::TlsProtocol,
            },
        },
        r#type::matcher::v3::string_matcher::MatchPattern,
    },
    google::protobuf::Any,
};
use weft_certs::spiffe::SpiffeId;

use super::{
    cluster::UpstreamTls,
    listener::{AppProtocol, DownstreamTls},
    problems::{Problems, each},
};

/// The SDS name of the sidecar's own certificate.
const OWN_CERTIFICATE: &str = "default";

/// Reads the transport socket of a filter chain: `Some(None)` is plaintext.
pub(super) fn read_downstream(
    p: &mut Problems,
    from: Option<&TransportSocket>,
) -> Option<Option<DownstreamTls>> {
    let Some(config) = typed_config(p, from)? else {
        return Some(None);
    };
    p.at("transport_socket", |p| {
        let context: DownstreamTlsContext = p.unpack("", config)?;
        downstream(p, &context).map(Some)
    })
}

/// Reads the transport socket of a cluster: `Some(None)` is plaintext.
pub(super) fn read_upstream(
    p: &mut Problems,
    from: Option<&TransportSocket>,
) -> Option<Option<UpstreamTls>> {
    let Some(config) = typed_config(p, from)? else {
        return Some(None);
    };
    p.at("transport_socket", |p| {
        let context: UpstreamTlsContext = p.unpack("", config)?;
        upstream(p, &context).map(Some)
    })
}

/// The TLS context, or `Some(None)` for plaintext.
fn typed_config<'a>(
    p: &mut Problems,
    from: Option<&'a TransportSocket>,
) -> Option<Option<&'a Any>> {
    let Some(socket) = from else {
        return Some(None);
    };
    match &socket.config_type {
        Some(transport_socket::ConfigType::TypedConfig(config)) => {
            Some((!any::holds::<RawBuffer>(config)).then_some(config))
        }
        None => {
            p.reject("transport_socket", "has no typed_config");
            None
        }
    }
}

fn downstream(p: &mut Problems, from: &DownstreamTlsContext) -> Option<DownstreamTls> {
    p.unsupported(from.require_sni.is_some_and(|b| b.value), "require_sni");
    p.unsupported(
        from.ocsp_staple_policy != downstream_tls_context::OcspStaplePolicy::LenientStapling as i32,
        "ocsp_staple_policy",
    );
    let common = common(p, from.common_tls_context.as_ref())?;
    p.at("common_tls_context", |p| {
        p.unsupported(
            !common.identities.is_empty(),
            "combined_validation_context.default_validation_context.match_typed_subject_alt_names",
        );
    });
    Some(DownstreamTls {
        require_client_certificate: from.require_client_certificate.is_some_and(|b| b.value),
        alpn: common.alpn,
        bundle: common.bundle,
    })
}

fn upstream(p: &mut Problems, from: &UpstreamTlsContext) -> Option<UpstreamTls> {
    p.unsupported(from.auto_host_sni, "auto_host_sni");
    p.unsupported(from.auto_sni_san_validation, "auto_sni_san_validation");
    if rustls_pki_types::DnsName::try_from(from.sni.as_str()).is_err() {
        p.reject("sni", format_args!("{:?} must be a DNS name", from.sni));
    }
    let common = common(p, from.common_tls_context.as_ref())?;
    Some(UpstreamTls {
        sni: from.sni.as_str().into(),
        identities: common.identities,
        alpn: common.alpn,
        bundle: common.bundle,
    })
}

/// What both directions need.
struct Common {
    alpn: Vec<AppProtocol>,
    bundle: Arc<str>,
    identities: Vec<SpiffeId>,
}

#[allow(deprecated)] // A deprecated provider still says which certificates to use.
fn common(p: &mut Problems, from: Option<&CommonTlsContext>) -> Option<Common> {
    let Some(from) = from else {
        p.reject("common_tls_context", "is missing");
        return None;
    };
    p.at("common_tls_context", |p| {
        p.unsupported(!from.tls_certificates.is_empty(), "tls_certificates");
        p.unsupported(
            from.tls_certificate_provider_instance.is_some()
                || from.tls_certificate_certificate_provider.is_some()
                || from.tls_certificate_certificate_provider_instance.is_some(),
            "tls_certificate_provider_instance",
        );
        p.unsupported(
            from.custom_tls_certificate_selector.is_some(),
            "custom_tls_certificate_selector",
        );
        p.unsupported(from.custom_handshaker.is_some(), "custom_handshaker");
        p.unsupported(from.key_log.is_some(), "key_log");
        if let Some(params) = &from.tls_params {
            p.at("tls_params", |p| tls_params(p, params));
        }
        own_certificate(p, &from.tls_certificate_sds_secret_configs);
        let alpn = each(p, "alpn_protocols", &from.alpn_protocols, |p, name| {
            read_protocol(p, name)
        });
        let validation = validation(p, from.validation_context_type.as_ref());
        let (bundle, identities) = validation?;
        Some(Common {
            alpn,
            bundle,
            identities,
        })
    })
}

/// An application protocol, or a problem.
pub(super) fn read_protocol(p: &mut Problems, name: &str) -> Option<AppProtocol> {
    let protocol = AppProtocol::from_alpn(name.as_bytes());
    if protocol.is_none() {
        p.reject(
            "",
            format_args!("{name:?} is not known; use http/1.1, h2, h2c or weft-tcp"),
        );
    }
    protocol
}

fn tls_params(p: &mut Problems, from: &TlsParameters) {
    if !(TlsProtocol::TlsAuto as i32..=TlsProtocol::TlSv13 as i32)
        .contains(&from.tls_minimum_protocol_version)
    {
        p.reject("tls_minimum_protocol_version", "must be TLSv1_3 or less");
    }
    let maximum = from.tls_maximum_protocol_version;
    if maximum != TlsProtocol::TlSv13 as i32 && maximum != TlsProtocol::TlsAuto as i32 {
        p.reject(
            "tls_maximum_protocol_version",
            "must be TLSv1_3: the mesh speaks nothing older",
        );
    }
    // cipher_suites are those of TLS 1.2 and before, in Envoy too.
    p.unsupported(!from.ecdh_curves.is_empty(), "ecdh_curves");
    p.unsupported(
        !from.signature_algorithms.is_empty(),
        "signature_algorithms",
    );
    p.unsupported(!from.compliance_policies.is_empty(), "compliance_policies");
}

fn own_certificate(p: &mut Problems, from: &[SdsSecretConfig]) {
    let field = "tls_certificate_sds_secret_configs";
    match from {
        [config] if config.name == OWN_CERTIFICATE => {
            p.ads(
                &format!("{field}[0].sds_config"),
                config.sds_config.as_ref(),
            );
        }
        _ => p.reject(
            field,
            format_args!("must be one secret named {OWN_CERTIFICATE:?}"),
        ),
    }
}

#[allow(deprecated)] // A deprecated provider still says whom to trust.
fn validation(
    p: &mut Problems,
    from: Option<&ValidationContextType>,
) -> Option<(Arc<str>, Vec<SpiffeId>)> {
    match from {
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            bundle(p, "validation_context_sds_secret_config", config).map(|b| (b, Vec::new()))
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            p.at("combined_validation_context", |p| {
                p.unsupported(
                    combined.validation_context_certificate_provider.is_some()
                        || combined
                            .validation_context_certificate_provider_instance
                            .is_some(),
                    "validation_context_certificate_provider",
                );
                let identities = combined.default_validation_context.as_ref();
                let identities = identities.map_or_else(Vec::new, |context| {
                    p.at("default_validation_context", |p| {
                        p.unsupported(context.trusted_ca.is_some(), "trusted_ca");
                        only_roots(p, context);
                        each(
                            p,
                            "match_typed_subject_alt_names",
                            &context.match_typed_subject_alt_names,
                            identity,
                        )
                    })
                });
                let Some(config) = &combined.validation_context_sds_secret_config else {
                    p.reject("validation_context_sds_secret_config", "is missing");
                    return None;
                };
                let bundle = bundle(p, "validation_context_sds_secret_config", config)?;
                Some((bundle, identities))
            })
        }
        _ => {
            p.reject(
                "",
                "must have validation_context_sds_secret_config or combined_validation_context",
            );
            None
        }
    }
}

fn bundle(p: &mut Problems, field: &str, from: &SdsSecretConfig) -> Option<Arc<str>> {
    p.at(field, |p| {
        p.ads("sds_config", from.sds_config.as_ref());
        p.not_empty("name", &from.name)
    })
}

fn identity(p: &mut Problems, from: &SubjectAltNameMatcher) -> Option<SpiffeId> {
    if from.san_type != SanType::Uri as i32 {
        p.reject("san_type", "must be URI");
    }
    let matcher = from.matcher.as_ref();
    let pattern = matcher.and_then(|m| m.match_pattern.as_ref());
    match (pattern, matcher.is_some_and(|m| m.ignore_case)) {
        (Some(MatchPattern::Exact(text)), false) => text
            .parse()
            .map_err(|error| p.reject("matcher.exact", format_args!("{text:?}: {error}")))
            .ok(),
        _ => {
            p.reject("matcher", "must be exact, without ignore_case");
            None
        }
    }
}

/// Rejects everything in a validation context but `trusted_ca` and
/// `match_typed_subject_alt_names`, which the callers treat.
#[allow(deprecated)] // The deprecated matcher restricts peers as well.
pub(super) fn only_roots(p: &mut Problems, from: &CertificateValidationContext) {
    let set = [
        (
            from.ca_certificate_provider_instance.is_some(),
            "ca_certificate_provider_instance",
        ),
        (from.system_root_certs.is_some(), "system_root_certs"),
        (from.watched_directory.is_some(), "watched_directory"),
        (
            !from.verify_certificate_spki.is_empty(),
            "verify_certificate_spki",
        ),
        (
            !from.verify_certificate_hash.is_empty(),
            "verify_certificate_hash",
        ),
        (
            !from.match_subject_alt_names.is_empty(),
            "match_subject_alt_names",
        ),
        (
            from.require_signed_certificate_timestamp
                .is_some_and(|b| b.value),
            "require_signed_certificate_timestamp",
        ),
        (from.crl.is_some(), "crl"),
        (from.allow_expired_certificate, "allow_expired_certificate"),
        (
            from.trust_chain_verification != TrustChainVerification::VerifyTrustChain as i32,
            "trust_chain_verification",
        ),
        (
            from.custom_validator_config.is_some(),
            "custom_validator_config",
        ),
        (from.only_verify_leaf_cert_crl, "only_verify_leaf_cert_crl"),
        (from.max_verify_depth.is_some(), "max_verify_depth"),
    ];
    for (set, field) in set {
        p.unsupported(set, field);
    }
}
