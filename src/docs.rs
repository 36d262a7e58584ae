//! Generates `docs/metrics.md` and `docs/reasons.md`, and fails when they are out of date.

use std::{fmt::Write as _, fs, path::Path};

use crate::{error::TABLE, telemetry::Metrics};

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

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}
