//! Every bound of the data path that may be set, in one table: the fields of [`Limits`], their
//! settings `WEFT_PROXY_<NAME>`, and `docs/limits.md`, which is generated from here.

use std::time::Duration;

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Things.
    Count,
}

impl Unit {
    /// As in the documentation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
            Self::Count => "number",
        }
    }
}

/// One row of the table.
#[derive(Debug)]
pub struct Limit {
    /// The setting, without `WEFT_PROXY_`.
    pub name: &'static str,
    /// What holds unless somebody says otherwise.
    pub default: u64,
    /// The smallest value; [`Self::zero`] may allow 0 below it.
    pub min: u64,
    /// The largest value.
    pub max: u64,
    /// What it counts.
    pub unit: Unit,
    /// What it bounds.
    pub what: &'static str,
    /// What happens over it.
    pub over: &'static str,
    /// What 0 means, where it does not mean nothing at all.
    pub zero: Option<&'static str>,
    /// Envoy's name for the same; empty if it has none.
    pub envoy: &'static str,
    set: fn(&mut Limits, u64),
}

impl Limit {
    /// Reads a value.
    ///
    /// # Errors
    /// With what is expected instead: `a number from 16 to 1000`.
    pub fn read(&self, text: &str) -> Result<u64, String> {
        match text.parse() {
            Ok(0) if self.zero.is_some() => Ok(0),
            Ok(n) if (self.min..=self.max).contains(&n) => Ok(n),
            _ => {
                let (min, max) = (self.min, self.max);
                let zero = self.zero.map(|zero| format!(", or 0: {zero}"));
                let zero = zero.unwrap_or_default();
                Err(format!("a number from {min} to {max}{zero}"))
            }
        }
    }

    /// Puts a value that was read by [`Self::read`] in force.
    pub fn apply(&self, limits: &mut Limits, value: u64) {
        (self.set)(limits, value);
    }
}

/// How a field takes a number that is in the range of its row.
trait Field {
    fn of(value: u64) -> Self;
}

impl Field for u64 {
    fn of(value: u64) -> Self {
        value
    }
}

impl Field for usize {
    fn of(value: u64) -> Self {
        Self::try_from(value).unwrap_or(Self::MAX)
    }
}

impl Field for u32 {
    fn of(value: u64) -> Self {
        Self::try_from(value).unwrap_or(Self::MAX)
    }
}

impl Field for Duration {
    fn of(value: u64) -> Self {
        Self::from_secs(value)
    }
}

/// Makes struct, defaults and table from one list, so that no field is without its row.
macro_rules! limits {
    (@zero) => { None };
    (@zero $zero:literal) => { Some($zero) };
    ($($field:ident: $type:ty = $name:literal, $default:expr, $min:literal..=$max:expr, $unit:ident,
        $what:literal, over: $over:literal $(, zero: $zero:literal)? $(, envoy: $envoy:literal)?;)*) => {
        /// The limits in force. Immutable while the process runs.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Limits {
            $(#[doc = $what] pub $field: $type,)*
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($field: <$type as Field>::of($default),)* }
            }
        }

        /// Every limit.
        pub const TABLE: &[Limit] = &[
            $(Limit {
                name: $name,
                default: $default,
                min: $min,
                max: $max,
                unit: Unit::$unit,
                what: $what,
                over: $over,
zero: limits!(@zero $($zero)?),
                envoy: concat!("" $(, $envoy)?),
                set: |limits, value| limits.$field = <$type as Field>::of(value),
            },)*
        ];
    };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// No window of HTTP/2 is larger (RFC 9113, 6.9.1).
const LARGEST_WINDOW: u64 = (1 << 31) - 1;

limits! {
    max_head_bytes: usize = "MAX_HEAD_BYTES", 64 * KIB, 4_096..=MIB, Bytes,
        "The head of a request or an answer; of HTTP/2 the list of its fields as RFC 9113, 6.5.2 counts it.",
        over: "431 `headers_too_large`; an answer: 502 `peer_protocol_error`",
        envoy: "max_request_headers_kb";
    max_target_bytes: usize = "MAX_TARGET_BYTES", 32 * KIB, 256..=65_534, Bytes,
        "The target of a request, which is a part of its head.",
        over: "414 `target_too_long`";
    max_fields: usize = "MAX_FIELDS", 100, 16..=10_000, Count,
        "The fields of a message: each cookie crumb and each trailer counts.",
        over: "431 `headers_too_large`; an answer: 502 `peer_protocol_error`",
        envoy: "max_headers_count";
    max_trailer_bytes: usize = "MAX_TRAILER_BYTES", 16 * KIB, 256..=MIB, Bytes,
        "The trailers of a message.",
        over: "the message ends as broken";
    max_body_bytes: u64 = "MAX_BODY_BYTES", 0, 1..=(u64::MAX >> 1), Bytes,
        "The body of a request.",
        over: "413 `body_too_large`, or the request ends as broken if its head was sent on",
        zero: "no limit",
        envoy: "max_request_bytes";
    max_informational: u32 = "MAX_INFORMATIONAL", 8, 1..=100, Count,
        "The answers 100 to 199 of an HTTP/1 server before the one that counts; those of HTTP/2 have a budget of frames.",
        over: "502 `peer_protocol_error`";
    max_chunk_extension_bytes: usize = "MAX_CHUNK_EXTENSION_BYTES", 256, 0..=4_096, Bytes,
        "The extensions of one chunk; those of a whole body may have 16 KiB.",
        over: "400 `client_protocol_error`; an answer ends as broken";
    head_timeout: Duration = "HEAD_TIMEOUT", 10, 1..=3_600, Seconds,
        "From the first byte of a request's head to its last.",
        over: "the connection ends",
        envoy: "request_headers_timeout";
    first_byte_timeout: Duration = "FIRST_BYTE_TIMEOUT", 10, 1..=3_600, Seconds,
        "From the start of a connection to a port with mTLS to its first byte.",
        over: "the connection ends",
        envoy: "listener_filters_timeout";
    handshake_timeout: Duration = "HANDSHAKE_TIMEOUT", 10, 1..=3_600, Seconds,
        "A TLS handshake, the wait for its turn included.",
        over: "the connection ends",
        envoy: "transport_socket_connect_timeout";
    write_timeout: Duration = "WRITE_TIMEOUT", 300, 1..=86_400, Seconds,
        "How long a client may take nothing of what waits for it; 1 to 15 s when memory is short.",
        over: "the connection ends",
        envoy: "stream_flush_timeout";
    body_timeout: Duration = "BODY_TIMEOUT", 300, 1..=86_400, Seconds,
        "How long nothing may arrive of the body of a request while its answer is not on the way.",
        over: "408 `body_timeout`, or the request ends as broken if its answer has come",
        envoy: "stream_idle_timeout";
    http2_streams: u32 = "HTTP2_STREAMS", 250, 1..=10_000, Count,
        "Requests at one time on one HTTP/2 connection of a client.",
        over: "RST_STREAM REFUSED_STREAM",
        envoy: "max_concurrent_streams";
    http2_upstream_streams: usize = "HTTP2_UPSTREAM_STREAMS", 100, 1..=10_000, Count,
        "Requests at one time on one HTTP/2 connection to a server that allows more.",
        over: "another connection is opened",
        envoy: "max_concurrent_streams";
    stream_window: u32 = "STREAM_WINDOW", 64 * KIB, 65_535..=(16 * MIB), Bytes,
        "What one HTTP/2 stream may send before it is read.",
        over: "the sender waits",
        envoy: "initial_stream_window_size";
    http2_connection_window: u32 = "HTTP2_CONNECTION_WINDOW", 16 * MIB, 262_140..=LARGEST_WINDOW, Bytes,
        "What all streams of one HTTP/2 connection may send before it is read; at least four times STREAM_WINDOW, and beyond that at most a 128th of MEMORY.",
        over: "the sender waits",
        envoy: "initial_connection_window_size";
    send_buffer: usize = "SEND_BUFFER", 64 * KIB, 16_384..=(16 * MIB), Bytes,
        "What is kept of one HTTP/2 stream for a peer that does not take it yet.",
        over: "the other side is not read until there is room",
        envoy: "per_connection_buffer_limit_bytes";
    http2_header_bytes: usize = "HTTP2_HEADER_BYTES", 256 * KIB, 65_536..=(64 * MIB), Bytes,
        "The heads of all requests of one HTTP/2 connection that wait for their answer.",
        over: "RST_STREAM REFUSED_STREAM";
    max_connections: usize = "MAX_CONNECTIONS", 0, 16..=10_000_000, Count,
        "Connections of clients at one time.",
        over: "a new one is reset at once",
        zero: "half of the files that the process may open",
        envoy: "envoy.resource_monitors.global_downstream_max_connections";
    max_handshakes: usize = "MAX_HANDSHAKES", 512, 1..=65_536, Count,
        "TLS handshakes with clients at one time.",
        over: "a new one waits, within HANDSHAKE_TIMEOUT";
    memory: u64 = "MEMORY", 0, 16_777_216..=(1024 * GIB), Bytes,
        "The memory of the process; see below.",
        over: "503 `proxy_overloaded`",
        zero: "60 % of the limit of the cgroup, 256 MiB without one",
        envoy: "envoy.resource_monitors.fixed_heap";
}

impl Limits {
    /// What no range of a single limit says.
    ///
    /// # Errors
    /// With the setting that does not go with another, and the fix.
    pub fn check(&self) -> Result<(), String> {
        let least = u64::from(self.stream_window) * 4;
        if u64::from(self.http2_connection_window) < least {
            return Err(format!(
                "WEFT_PROXY_HTTP2_CONNECTION_WINDOW: {} is less than four times \
                 WEFT_PROXY_STREAM_WINDOW, {least}: one slow reader would stop all others",
                self.http2_connection_window
            ));
        }
        Ok(())
    }

    /// The bytes that hyper may hold of an HTTP/1 connection: a head and what was read with it.
    #[must_use]
    pub fn http1_buffer(&self) -> usize {
        const MIN: usize = 64 * 1024;
        const MARGIN: usize = 16 * 1024;
        self.max_head_bytes.max(MIN) + MARGIN
    }

    /// The fields of a message as hyper is to be told; `None` up to its own default, for which it
    /// makes room faster. What is between the two is refused before hyper sees it.
    #[must_use]
    pub const fn hyper_fields(&self) -> Option<usize> {
        const DEFAULT: usize = 100;
        if self.max_fields > DEFAULT {
            Some(self.max_fields)
        } else {
            None
        }
    }

    /// The same for a process with this much memory: what one connection of HTTP/2 may make it
    /// keep is a 128th of that, as long as one slow reader does not stop all others.
    #[must_use]
    pub fn within(mut self, memory: usize) -> Self {
        let share = u32::try_from(memory / 128).unwrap_or(u32::MAX);
        let least = self.stream_window.saturating_mul(4);
        self.http2_connection_window = self.http2_connection_window.min(share.max(least));
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Limits, TABLE};

    fn row(name: &str) -> &'static super::Limit {
        TABLE.iter().find(|row| row.name == name).unwrap()
    }

    #[test]
    fn one_connection_keeps_a_part_of_the_memory_only() {
        let window = |memory| Limits::default().within(memory).http2_connection_window;
        assert_eq!(window(usize::MAX), 16 << 20);
        assert_eq!(window(256 << 20), 2 << 20);
        assert_eq!(window(16 << 20), 4 * 65_536);
    }

    #[test]
    fn defaults_are_in_their_ranges_and_go_together() {
        let mut limits = Limits::default();
        for row in TABLE {
            let read = row.read(&row.default.to_string());
            assert_eq!(read, Ok(row.default), "{}", row.name);
            row.apply(&mut limits, row.default);
        }
        assert_eq!(limits, Limits::default());
        assert_eq!(limits.check(), Ok(()));
    }

    #[test]
    fn both_ends_of_every_range_are_taken_and_nothing_beyond() {
        for row in TABLE {
            for inside in [row.min, row.max] {
                assert_eq!(row.read(&inside.to_string()), Ok(inside), "{}", row.name);
                let mut limits = Limits::default();
                row.apply(&mut limits, inside);
                let changed = limits != Limits::default();
                assert_eq!(changed, inside != row.default, "{}", row.name);
            }
            let above = row.max.checked_add(1).unwrap().to_string();
            let below = match row.min {
                0 => "-1".to_owned(),
                min if row.zero.is_some() && min == 1 => "-1".to_owned(),
                min => (min - 1).to_string(),
            };
            for outside in [above.as_str(), &below, "", "x", "1.5", "10s"] {
                let wanted = row.read(outside).unwrap_err();
                let range = format!("a number from {} to {}", row.min, row.max);
                assert!(wanted.starts_with(&range), "{}: {wanted}", row.name);
            }
        }
    }

    #[test]
    fn names_are_those_of_the_fields() {
        let fields = format!("{:?}", Limits::default());
        for row in TABLE {
            let field = format!("{}: ", row.name.to_lowercase());
            assert!(fields.contains(&field), "{}", row.name);
        }
    }

    #[test]
    fn values_arrive() {
        let mut limits = Limits::default();
        row("HEAD_TIMEOUT").apply(&mut limits, 3);
        row("MAX_BODY_BYTES").apply(&mut limits, 1 << 40);
        row("STREAM_WINDOW").apply(&mut limits, 1 << 20);
        assert_eq!(limits.head_timeout, Duration::from_secs(3));
        assert_eq!(limits.max_body_bytes, 1 << 40);
        row("HTTP2_CONNECTION_WINDOW").apply(&mut limits, 4 << 20);
        assert_eq!(limits.check(), Ok(()));
        row("STREAM_WINDOW").apply(&mut limits, (1 << 20) + 1);
        let wrong = limits.check().unwrap_err();
        assert!(
            wrong.contains("HTTP2_CONNECTION_WINDOW: 4194304 is less"),
            "{wrong}"
        );
        assert_eq!(
            row("MEMORY").read("1"),
            Err("a number from 16777216 to 1099511627776, or 0: \
                 60 % of the limit of the cgroup, 256 MiB without one"
                .to_owned())
        );
    }
}
