//! What is wrong with a resource, collected while it is read, and the readers that every
//! kind of resource needs.
//!
//! A reader returns `None`, or a stand-in, only after it has reported a problem: the resource
//! is then rejected whatever else it holds, and reading goes on to find every other problem.

use std::{
    fmt::{Display, Write as _},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use prost::{Message, Name};
use weft_api::{
    any,
    envoy::config::core::v3::{
        Address, ConfigSource, DataSource, Metadata, SocketAddress, address, config_source,
        data_source, socket_address,
    },
    google::protobuf::{Any, Struct, value::Kind as ValueKind},
};

/// Problems and warnings of one resource, each with the path of its field.
#[derive(Debug, Default)]
pub(super) struct Problems {
    path: String,
    rejected: Vec<String>,
    warnings: Vec<String>,
}

impl Problems {
    /// Reads something inside `field`: paths reported meanwhile start with it.
    pub(super) fn at<R>(&mut self, field: impl Display, read: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.path.len();
        if outer > 0 {
            self.path.push('.');
        }
        let written = write!(self.path, "{field}");
        debug_assert!(written.is_ok(), "writing to a string does not fail");
        let value = read(self);
        self.path.truncate(outer);
        value
    }

    /// Reports a problem that makes the resource unusable. An empty `field` is the place itself.
    pub(super) fn reject(&mut self, field: &str, reason: impl Display) {
        let line = self.line(field, reason);
        self.rejected.push(line);
    }

    /// Rejects a field that was set and that Weft cannot honour, where ignoring it would
    /// change who may talk to whom or where requests go.
    pub(super) fn unsupported(&mut self, set: bool, field: &str) {
        if set {
            self.reject(field, "is not supported; leave it out");
        }
    }

    /// Notes a field that was set and changes nothing.
    pub(super) fn ignored(&mut self, set: bool, field: &str) {
        if set {
            self.warn(field, "has no effect");
        }
    }

    /// Notes something that does not stop the resource.
    pub(super) fn warn(&mut self, field: &str, note: impl Display) {
        let line = self.line(field, note);
        self.warnings.push(line);
    }

    /// The notes so far, which are the value's from now on.
    pub(super) fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// The problems, or `None` when there are none.
    pub(super) fn into_rejected(self) -> Option<Vec<String>> {
        (!self.rejected.is_empty()).then_some(self.rejected)
    }

    fn line(&self, field: &str, text: impl Display) -> String {
        match (self.path.as_str(), field) {
            ("", "") => format!("resource: {text}"),
            ("", field) => format!("{field}: {text}"),
            (path, "") => format!("{path}: {text}"),
            (path, field) => format!("{path}.{field}: {text}"),
        }
    }

    /// The name inside the resource, which must be the one it was sent under.
    pub(super) fn name(&mut self, field: &str, found: &str, expected: &str) -> Arc<str> {
        if found != expected {
            self.reject(
                field,
                format_args!("is {found:?}, but the resource was sent as {expected:?}"),
            );
        }
        expected.into()
    }

    /// A string that must not be empty.
    pub(super) fn not_empty(&mut self, field: &str, text: &str) -> Option<Arc<str>> {
        if text.is_empty() {
            self.reject(field, "must not be empty");
            return None;
        }
        Some(text.into())
    }

    /// A duration of 0 or more, by the two fields of its message.
    pub(super) fn duration(&mut self, field: &str, parts: Option<(i64, i32)>) -> Option<Duration> {
        let (seconds, nanos) = parts?;
        match (u64::try_from(seconds), u32::try_from(nanos)) {
            (Ok(seconds), Ok(nanos)) if seconds <= MAX_SECONDS && nanos < 1_000_000_000 => {
                Some(Duration::new(seconds, nanos))
            }
            _ => {
                self.reject(field, "must be 0 s or more, and no more than 10,000 years");
                None
            }
        }
    }

    /// A timeout: 0 s turns it off (`None`), and `default` is for an absent field.
    pub(super) fn timeout(
        &mut self,
        field: &str,
        parts: Option<(i64, i32)>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        if parts.is_none() {
            return default;
        }
        self.duration(field, parts).filter(|d| !d.is_zero())
    }

    /// Unpacks an `Any`, which must hold an `M`.
    pub(super) fn unpack<M: Message + Name + Default>(
        &mut self,
        field: &str,
        packed: &Any,
    ) -> Option<M> {
        any::unpack(packed)
            .map_err(|error| self.reject(field, error))
            .ok()
    }

    /// A numeric TCP address.
    pub(super) fn address(&mut self, field: &str, from: Option<&Address>) -> Option<SocketAddr> {
        self.address_of(field, from, socket_address::Protocol::Tcp)
    }

    /// The same for UDP.
    pub(super) fn udp_address(
        &mut self,
        field: &str,
        from: Option<&Address>,
    ) -> Option<SocketAddr> {
        self.address_of(field, from, socket_address::Protocol::Udp)
    }

    fn address_of(
        &mut self,
        field: &str,
        from: Option<&Address>,
        protocol: socket_address::Protocol,
    ) -> Option<SocketAddr> {
        match from.and_then(|a| a.address.as_ref()) {
            Some(address::Address::SocketAddress(address)) => self.at(field, |p| {
                p.at("socket_address", |p| p.socket(address, protocol))
            }),
            Some(_) => {
                self.reject(field, "only socket_address is supported");
                None
            }
            None => {
                self.reject(field, "is missing; set socket_address");
                None
            }
        }
    }

    fn socket(
        &mut self,
        from: &SocketAddress,
        protocol: socket_address::Protocol,
    ) -> Option<SocketAddr> {
        if from.protocol != protocol as i32 {
            let words = format_args!("only {} is supported here", protocol.as_str_name());
            self.reject("protocol", words);
        }
        self.unsupported(
            !from.network_namespace_filepath.is_empty(),
            "network_namespace_filepath",
        );
        let ip = from.address.parse::<IpAddr>();
        if ip.is_err() {
            self.reject(
                "address",
                format_args!(
                    "{:?} is no IP address; names are not resolved",
                    from.address
                ),
            );
        }
        let port = match from.port_specifier {
            Some(socket_address::PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
            _ => None,
        };
        if port.is_none() {
            self.reject("port_value", "must be a number from 0 to 65535");
        }
        Some(SocketAddr::new(ip.ok()?, port?))
    }

    /// Refuses a source of configuration other than the stream that everything comes from.
    pub(super) fn ads(&mut self, field: &str, from: Option<&ConfigSource>) {
        use config_source::ConfigSourceSpecifier::{Ads, Self_};
        match from.map(|source| &source.config_source_specifier) {
            None | Some(Some(Ads(_) | Self_(_))) => {}
            Some(_) => self.reject(field, "must be ads"),
        }
    }

    /// A string of the metadata `weft.dev`.
    pub(super) fn metadata_string<'a>(
        &mut self,
        from: Option<&'a Metadata>,
        key: &str,
    ) -> Option<&'a str> {
        let value = weft_metadata(from)?.fields.get(key)?;
        if let Some(ValueKind::StringValue(text)) = &value.kind {
            return Some(text);
        }
        self.reject(&format!("metadata[{METADATA}].{key}"), "must be a string");
        None
    }

    /// A list of strings of the metadata `weft.dev`; empty if absent.
    pub(super) fn metadata_strings(&mut self, from: Option<&Metadata>, key: &str) -> Vec<Arc<str>> {
        let Some(value) = weft_metadata(from).and_then(|weft| weft.fields.get(key)) else {
            return Vec::new();
        };
        let text = |value: &weft_api::google::protobuf::Value| match &value.kind {
            Some(ValueKind::StringValue(text)) => Some(text.as_str().into()),
            _ => None,
        };
        let read = match &value.kind {
            Some(ValueKind::ListValue(list)) => list.values.iter().map(text).collect(),
            _ => None,
        };
        read.unwrap_or_else(|| {
            let field = format!("metadata[{METADATA}].{key}");
            self.reject(&field, "must be a list of strings");
            Vec::new()
        })
    }

    /// A port number of the metadata `weft.dev`.
    pub(super) fn metadata_port(&mut self, from: Option<&Metadata>, key: &str) -> Option<u16> {
        self.metadata_number(from, key, 1, 65535)
            .and_then(|number| u16::try_from(number).ok())
    }

    /// A number of seconds, at most a day, of the metadata `weft.dev`.
    pub(super) fn metadata_seconds(&mut self, from: Option<&Metadata>, key: &str) -> Option<u32> {
        self.metadata_number(from, key, 0, 86_400)
    }

    fn metadata_number(
        &mut self,
        from: Option<&Metadata>,
        key: &str,
        min: u32,
        max: u32,
    ) -> Option<u32> {
        let value = weft_metadata(from)?.fields.get(key)?;
        if let Some(ValueKind::NumberValue(number)) = value.kind
            && number.fract() == 0.0
            && (f64::from(min)..=f64::from(max)).contains(&number)
        {
            return Some(number as u32);
        }
        self.reject(
            &format!("metadata[{METADATA}].{key}"),
            format_args!("must be a number from {min} to {max}"),
        );
        None
    }
}

fn weft_metadata(from: Option<&Metadata>) -> Option<&Struct> {
    from?.filter_metadata.get(METADATA)
}

/// Data that came with the resource. Files and variables of the sidecar are none of the
/// control plane's business.
pub(super) fn inline<'a>(p: &mut Problems, field: &str, from: &'a DataSource) -> Option<&'a [u8]> {
    match &from.specifier {
        Some(data_source::Specifier::InlineString(text)) => Some(text.as_bytes()),
        Some(data_source::Specifier::InlineBytes(bytes)) => Some(bytes),
        _ => {
            p.reject(field, "must be inline_string or inline_bytes");
            None
        }
    }
}

/// Reads all elements of a list, so that every bad one is reported.
pub(super) fn each<F, T>(
    p: &mut Problems,
    field: &str,
    from: &[F],
    mut read: impl FnMut(&mut Problems, &F) -> Option<T>,
) -> Vec<T> {
    let elements = from.iter().enumerate();
    elements
        .filter_map(|(index, element)| p.at(format_args!("{field}[{index}]"), |p| read(p, element)))
        .collect()
}

/// The two fields of a duration, whichever generated type it has.
macro_rules! parts {
    ($duration:expr) => {
        $duration.as_ref().map(|d| (d.seconds, d.nanos))
    };
}
pub(super) use parts;

/// Where Weft keeps what Envoy has no field for.
const METADATA: &str = "weft.dev";
/// The range of `google.protobuf.Duration`: ten thousand years.
const MAX_SECONDS: u64 = 315_576_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_carry_the_path() {
        let mut p = Problems::default();
        p.reject("", "is bad");
        p.reject("name", "is bad");
        p.at(format_args!("routes[{}]", 2), |p| {
            p.at("match", |p| p.reject("prefix", "is bad"));
            p.reject("", "is bad");
        });
        assert_eq!(
            p.into_rejected().unwrap_or_default(),
            [
                "resource: is bad",
                "name: is bad",
                "routes[2].match.prefix: is bad",
                "routes[2]: is bad",
            ]
        );
    }

    #[test]
    fn durations_have_a_range() {
        let check = |parts, expect: Option<Duration>| {
            let mut p = Problems::default();
            assert_eq!(p.duration("timeout", Some(parts)), expect, "{parts:?}");
            assert_eq!(p.into_rejected().is_some(), expect.is_none(), "{parts:?}");
        };
        check((0, 0), Some(Duration::ZERO));
        check((1, 500_000_000), Some(Duration::from_millis(1500)));
        check((315_576_000_000, 0), Some(Duration::from_secs(MAX_SECONDS)));
        check((315_576_000_001, 0), None);
        check((-1, 0), None);
        check((0, -1), None);
        check((0, 1_000_000_000), None);
    }

    #[test]
    fn zero_turns_a_timeout_off() {
        let default = Some(Duration::from_secs(15));
        let mut p = Problems::default();
        assert_eq!(p.timeout("timeout", None, default), default);
        assert_eq!(p.timeout("timeout", Some((0, 0)), default), None);
        assert_eq!(
            p.timeout("timeout", Some((2, 0)), default),
            Some(Duration::from_secs(2))
        );
    }
}
