//! Envoy's configuration for one side of a pair. Tuned as its own benchmarking FAQ asks: one
//! worker per core given (here one), circuit breakers out of the way, no request ids, no
//! per-request router statistics, no access log, TLS pinned to 1.3 on both ends.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::subject::Hop;
use crate::pki::{Files, SERVER_NAME};

/// The whole bootstrap of the side that takes plaintext.
pub(crate) fn client(hops: &[Hop], files: &Files) -> String {
    let tls = |alpn: &str| {
        format!(
            "    transport_socket:\n      name: tls\n      typed_config:\n        \
             \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext\n        \
             sni: {SERVER_NAME}\n        common_tls_context:\n{}",
            tls_context(files, alpn, 10)
        )
    };
    bootstrap(hops, |_| String::new(), |hop| tls(hop.alpn()))
}

/// The whole bootstrap of the side that takes TLS.
pub(crate) fn server(hops: &[Hop], files: &Files) -> String {
    let tls = |alpn: &str| {
        format!(
            "      transport_socket:\n        name: tls\n        typed_config:\n          \
             \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n          \
             require_client_certificate: true\n          common_tls_context:\n{}",
            tls_context(files, alpn, 12)
        )
    };
    bootstrap(hops, |hop| tls(hop.alpn()), |_| String::new())
}

fn bootstrap(
    hops: &[Hop],
    downstream: impl Fn(&Hop) -> String,
    upstream: impl Fn(&Hop) -> String,
) -> String {
    let mut text = "static_resources:\n  listeners:\n".to_owned();
    for (i, hop) in hops.iter().enumerate() {
        text += &listener(&format!("hop{i}"), hop.listen);
        text += &downstream(hop);
    }
    text += "  clusters:\n";
    for (i, hop) in hops.iter().enumerate() {
        text += &cluster(&format!("hop{i}"), hop);
        text += &upstream(hop);
    }
    text
}

fn listener(name: &str, address: SocketAddr) -> String {
    let port = address.port();
    format!(
        "  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          codec_type: AUTO
          generate_request_id: false
          http2_protocol_options: {{max_concurrent_streams: 1000}}
          route_config:
            virtual_hosts:
            - name: all
              domains: [\"*\"]
              routes: [{{match: {{prefix: \"/\"}}, route: {{cluster: {name}, timeout: 0s}}}}]
          http_filters:
          - name: router
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              dynamic_stats: false
"
    )
}

fn cluster(name: &str, hop: &Hop) -> String {
    let port = hop.upstream.port();
    let protocol = if hop.http2 {
        "http2_protocol_options: {}"
    } else {
        "http_protocol_options: {}"
    };
    format!(
        "  - name: {name}
    type: STATIC
    connect_timeout: 5s
    circuit_breakers:
      thresholds:
      - {{max_connections: 1000000, max_pending_requests: 1000000, max_requests: 1000000, max_retries: 1000000}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{{protocol}}}
    load_assignment:
      cluster_name: {name}
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}
"
    )
}

fn tls_context(files: &Files, alpn: &str, indent: usize) -> String {
    let lines = [
        "tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}".to_owned(),
        format!("alpn_protocols: [\"{alpn}\"]"),
        "tls_certificates:".to_owned(),
        format!("- certificate_chain: {{filename: \"{}\"}}", files.chain.display()),
        format!("  private_key: {{filename: \"{}\"}}", files.key.display()),
        "validation_context:".to_owned(),
        format!("  trusted_ca: {{filename: \"{}\"}}", files.root.display()),
    ];
    lines.iter().fold(String::new(), |mut text, line| {
        writeln!(text, "{:indent$}{line}", "").expect("a String takes everything");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn each_side_has_tls_where_it_belongs() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let hops = [
            Hop {
                listen: at(1),
                upstream: at(2),
                http2: false,
            },
            Hop {
                listen: at(3),
                upstream: at(4),
                http2: true,
            },
        ];
        let files = Files::of(Path::new("/x"), "client");
        let client = client(&hops, &files);
        assert_eq!(client.matches("UpstreamTlsContext").count(), 2);
        assert_eq!(client.matches("DownstreamTlsContext").count(), 0);
        assert!(
            client.contains("          alpn_protocols: [\"h2\"]\n")
                && client.contains("[\"http/1.1\"]")
        );
        let server = server(&hops, &files);
        assert_eq!(
            server.matches("require_client_certificate: true").count(),
            2
        );
        assert_eq!(server.matches("UpstreamTlsContext").count(), 0);
        assert!(server.contains("filename: \"/x/client.key\""));
    }
}
