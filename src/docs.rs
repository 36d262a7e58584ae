//! Generates `docs/metrics.md`, `docs/reasons.md` and `docs/limits.md`, and fails when they are
//! out of date.

use std::{fmt::Write as _, fs, path::Path};

use crate::{error::TABLE, limits, telemetry::Metrics, wire::http2};

fn check_or_update(name: &str, fresh: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(path, fresh).unwrap();
        return;
    }
    let have = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        have == fresh,
        "docs/{name} is out of date: UPDATE_GENERATED=1 cargo test --lib docs"
    );
}

#[test]
fn metrics_are_documented() {
    let mut text = String::from(
        "# Metrics of the sidecar\n\n\
         Served at `/metrics` of the public admin port (default 14020). Seconds and bytes;\n\
         label values come from configuration and closed sets, never from a request. A series\n\
         appears when it is first counted. At most 10,000 series; beyond that label values\n\
         become `_other`. `reason` is a slug of [reasons.md](reasons.md), empty on success.\n\
         `process_*` metrics have their usual meaning.\n\n\
         | metric | type | labels | what |\n|---|---|---|---|\n",
    );
    for (name, kind, help, labels) in Metrics::new().describe() {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(
            text,
            "| `{name}` | {kind} | {} | {help} |",
            labels.join(" ")
        );
    }
    check_or_update("metrics.md", &text);
}

#[test]
fn reasons_are_documented() {
    let mut text = String::from(
        "# Reasons\n\n\
         Every answer that the mesh makes itself carries `weft-reason: <slug>`; the same word is\n\
         in the access log and in metrics. The status is for HTTP callers; gRPC callers get the\n\
         gRPC code. The flag is Envoy's response flag for the same thing. Two answers have no\n\
         reason because the HTTP parser makes them before there is a request: 400 for a head that\n\
         is no HTTP and 431 for one that is too large. `idle_timeout` is for TCP, WebSocket and\n\
         tunnels: requests have no idle timeout.\n",
    );
    for row in TABLE.iter().filter(|row| !row.slug.is_empty()) {
        let status = match row.slug {
            "app_error" => "the application's".to_owned(),
            "client_closed" => "none (499 in the log)".to_owned(),
            _ => row.status.to_string(),
        };
        let _ = write!(
            text,
            "\n## {}\n\n{}. HTTP {status}, gRPC {}, flag {}.\n\nFirst thing to do: {}.\n",
            row.slug,
            capitalized(row.sentence),
            row.grpc,
            row.flag,
            row.help.trim_end_matches('.'),
        );
    }
    check_or_update("reasons.md", &text);
}

#[test]
fn limits_are_documented() {
    let text = LIMITS_PAGE
        .replace("{limits}", limit_rows().trim_end())
        .replace("{http2}", http2_rows().trim_end());
    check_or_update("limits.md", &text);
}

const LIMITS_PAGE: &str = "\
# Limits

Every buffer, table, queue and timer of the data path has a bound. Those that may be set are
below: `WEFT_PROXY_<NAME>` in the environment of the sidecar, or `<name>` in its
[bootstrap file](sidecar.md#settings). A value outside of its range is refused at the start. In a
pod that `weft inject` changes, and in a compose file, it is the annotation or label
`weft.dev/env.WEFT_PROXY_<NAME>`; `weft run` passes its own `WEFT_PROXY_<NAME>` on. Envoy's name is
that of the nearest thing there, for those who know it.

{limits}

## Memory

`MEMORY` bounds two things. Memory that a client can make the sidecar keep is charged before it is
kept, and refused when the sum would be larger. And what the process really uses is measured, every
250 ms, and every 20 ms when half is used: its memory that no file backs, against `MEMORY`; and the
use of each cgroup around it that has a limit (v1 or v2, `memory.max` or `memory.high`, without files
that the kernel may drop), as long as at least half of it is the sidecar's: what is mostly others' is
not relieved by refusing requests. Without `MEMORY` and with such a cgroup, the cgroup alone is measured.

| the largest share | `weft_memory_pressure` | what happens |
|---|---|---|
| below 85 % | 0 | |
| from 85 % on, until 80 % | 1 | answers of HTTP/1 say `connection: close`; connections get GOAWAY, or end when they are idle, within 10 s; who has taken nothing of what waits for it for 1 s (a stream of HTTP/2) to 15 s is cut, as when the kernel is short of memory for TCP; a connection that makes the sidecar keep more than its part, a 512th of `MEMORY`, waits: what it sends is read and its answers are fetched in one step a second, and new requests on it, over HTTP/2, get RST_STREAM REFUSED_STREAM |
| from 92 % on, until 87 % | 2 | also, new requests get 503 `proxy_overloaded`, but for health checks of the application that are configured; and of the connections that keep more than their part, those that keep most are ended, as many as it takes |

A connection is charged 16 KiB while it is open; where that does not fit, it is reset. What
a connection makes the sidecar keep is told from its requests, 16 KiB each and six times the heads that
wait for an answer, from what it has not taken of answers, and from what was not read of what it sends.
`weft_overloaded_total` counts what was refused, by what it was.

## Clients that take nothing

Who pauses is no attacker: a pager, a backup, a command whose output nobody reads for a while. So
`WRITE_TIMEOUT` is as long as Envoy's stream timeout, where nginx has 60 s. What such a client makes the
sidecar keep is bounded meanwhile: `SEND_BUFFER` and the windows, 160 KiB of an HTTP/1 answer, and
128 KiB beyond what TCP has sent; and it is the first to go when memory is short, here or in the kernel
(`net.ipv4.tcp_mem`, which all on a machine share; `press` in `/proc/net/protocols`). One that has
left 16 frames of HTTP/2 untaken gets no words with refusals any more: `weft-reason` says why.

## Files

At its start the sidecar raises its soft limit of open files to the hard one, and logs both. Of
what it may open, half is for connections of clients (`MAX_CONNECTIONS`), so that there is always
one left to carry a request on. Where the system refuses to accept for want of files or memory,
the sidecar tries again after 10 to 100 ms and counts `weft_accept_errors_total`; where it refuses
to open a connection to a server, for want of files or ports, the request gets 503
`proxy_overloaded` and no endpoint is blamed.

## TLS handshakes

When `MAX_HANDSHAKES` are under way, one that has taken longer than 1 s gives way to those that
wait: a client that does not finish must not keep others out.

## HTTP/2 frames

These numbers are not set. Frames that do no work themselves are paid for from an allowance of
their kind, on each connection: full at the start, refilled by time, and raised by work that
justifies them, up to a bound. A peer that sends more gets GOAWAY with ENHANCE_YOUR_CALM and the
rule as its debug data, the connection is closed, and `weft_http_violations_total` counts it. A head
is a HEADERS frame that the sidecar sends: an answer to a client, a request to a server.

{http2}

A frame larger than 16,384 bytes is a FRAME_SIZE_ERROR. A header block may have 32 KiB more than
`MAX_HEAD_BYTES`, so that a head a little too large gets 431 and not the connection a GOAWAY, and 16
CONTINUATION frames. A peer begins with SETTINGS, and never pushes: PROTOCOL_ERROR.
";

/// The budgets of HTTP/2 frames, a table for each side.
fn http2_rows() -> String {
    let mut text = String::new();
    for (from, budget) in http2::BUDGETS {
        let _ = write!(
            text,
            "| from {from} | at once | a second | earned by work | at most | rule |\n\
             |---|---|---|---|---|---|\n"
        );
        for row in budget.iter().filter(|row| row.is_limited()) {
            let earned: Vec<String> = [
                (row.head, "a head"),
                (row.data_sent, "a DATA frame sent"),
                (row.kib_sent, "a KiB of DATA sent"),
                (row.kib_received, "a KiB of DATA received"),
            ]
            .iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, work)| format!("{n} {work}"))
            .collect();
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | `{}` |",
                row.what,
                row.at_once,
                row.a_second,
                earned.join(", "),
                row.kept,
                row.rule
            );
        }
        text.push('\n');
    }
    text
}

fn limit_rows() -> String {
    let mut rows = String::from(
        "| `WEFT_PROXY_` | default | range | unit | what | over it | Envoy |\n|---|---|---|---|---|---|---|\n",
    );
    for limit in limits::TABLE {
        let zero = limit.zero.map(|zero| format!("; 0: {zero}"));
        let envoy = match limit.envoy {
            "" => String::new(),
            name => format!("`{name}`"),
        };
        let _ = writeln!(
            rows,
            "| `{}` | {} | {} to {}{} | {} | {} | {} | {envoy} |",
            limit.name,
            limit.default,
            limit.min,
            limit.max,
            zero.unwrap_or_default(),
            limit.unit.name(),
            limit.what.trim_end_matches('.'),
            limit.over,
        );
    }
    rows
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}
