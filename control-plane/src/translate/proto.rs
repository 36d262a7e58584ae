//! Small pieces of Envoy's messages.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use prost::{Message, Name};
use weft_api::any::pack;
use weft_api::envoy::config::core::v3 as core;
use weft_api::envoy::extensions::transport_sockets::tls::v3 as tls;
use weft_api::envoy::r#type::matcher::v3 as matcher;
use weft_api::google::protobuf as pb;

use super::{Context, names};
use tls::common_tls_context::ValidationContextType;

/// The metadata key of what Envoy has no field for.
const METADATA_KEY: &str = "weft.dev";

pub(super) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..Default::default()
    }
}

pub(super) fn address(ip: IpAddr, port: u16) -> core::Address {
    named_address(&ip.to_string(), port)
}

/// The same for datagrams.
pub(super) fn udp_address(ip: IpAddr, port: u16) -> core::Address {
    let mut address = address(ip, port);
    if let Some(core::address::Address::SocketAddress(socket)) = &mut address.address {
        socket.protocol = core::socket_address::Protocol::Udp as i32;
    }
    address
}

/// A host whose addresses the client finds out.
pub(super) fn named_address(host: &str, port: u16) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: host.to_owned(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}

/// The span in protobuf; Gateway API durations fit.
pub(super) fn duration(duration: Duration) -> pb::Duration {
    pb::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

pub(super) fn string_value(text: &str) -> pb::Value {
    pb::Value {
        kind: Some(pb::value::Kind::StringValue(text.to_owned())),
    }
}

pub(super) fn number_value(number: u16) -> pb::Value {
    pb::Value {
        kind: Some(pb::value::Kind::NumberValue(number.into())),
    }
}

pub(super) fn list_value<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> pb::Value {
    let values = texts.into_iter().map(|text| string_value(text.as_ref()));
    pb::Value {
        kind: Some(pb::value::Kind::ListValue(pb::ListValue {
            values: values.collect(),
        })),
    }
}

pub(super) fn metadata<const N: usize>(fields: &[(&str, pb::Value); N]) -> core::Metadata {
    let fields = in_order(fields);
    core::Metadata {
        filter_metadata: HashMap::from([(METADATA_KEY.to_owned(), pb::Struct { fields })]),
        ..Default::default()
    }
}

/// A map that encodes its few entries in the order of the keys. The generated types have
/// hash maps, whose order is that of their random seeds, and the bytes of a resource are
/// its version; so this draws seeds until the order is right (three entries: six draws).
fn in_order<const N: usize>(entries: &[(&str, pb::Value); N]) -> HashMap<String, pb::Value> {
    const { assert!(N <= 3, "the expected number of draws is N!") };
    loop {
        let owned = |(key, value): &(&str, pb::Value)| ((*key).to_owned(), value.clone());
        let map: HashMap<String, pb::Value> = entries.iter().map(owned).collect();
        if map.keys().is_sorted() {
            return map;
        }
    }
}

pub(super) fn extension<M: Message + Name>(name: &str, config: &M) -> core::TypedExtensionConfig {
    core::TypedExtensionConfig {
        name: name.to_owned(),
        typed_config: Some(pack(config)),
    }
}

pub(super) fn regex(pattern: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher {
        regex: pattern.to_owned(),
        ..Default::default()
    }
}

pub(super) fn exact(text: &str) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(
            text.to_owned(),
        )),
        ..Default::default()
    }
}

pub(super) fn matches_regex(pattern: &str) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::SafeRegex(regex(
            pattern,
        ))),
        ..Default::default()
    }
}

/// TLS 1.3 with the workload's certificate.
pub(super) fn common_tls(
    alpn: &[&str],
    validation: ValidationContextType,
) -> tls::CommonTlsContext {
    tls::CommonTlsContext {
        tls_params: Some(tls::TlsParameters {
            tls_minimum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv13 as i32,
            tls_maximum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv13 as i32,
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![secret_reference(names::OWN_CERTIFICATE)],
        alpn_protocols: alpn.iter().map(ToString::to_string).collect(),
        validation_context_type: Some(validation),
        ..Default::default()
    }
}

pub(super) fn secret_reference(name: &str) -> tls::SdsSecretConfig {
    tls::SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ads()),
    }
}

pub(super) fn transport_socket<M: Message + Name>(context: &M) -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(
            context,
        ))),
    }
}

/// The trust bundle as a secret, under its one name.
pub(super) fn trust_bundle(cx: &Context<'_>, name: &str) -> Option<tls::Secret> {
    if name != names::TRUST_BUNDLE {
        return None;
    }
    let roots = core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(
            cx.roots_pem.to_owned(),
        )),
        ..Default::default()
    };
    Some(tls::Secret {
        name: name.to_owned(),
        r#type: Some(tls::secret::Type::ValidationContext(
            tls::CertificateValidationContext {
                trusted_ca: Some(roots),
                ..Default::default()
            },
        )),
    })
}
