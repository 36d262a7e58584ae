//! HAProxy's configuration for one side of a pair: one thread, TLS 1.3 with certificates on
//! both ends, connections to servers shared freely, no log.

use std::fmt::Write as _;

use super::subject::Hop;
use crate::pki::Files;

/// The whole configuration of the side that takes plaintext.
pub(crate) fn client(hops: &[Hop], files: &Files) -> String {
    let server = |hop: &Hop| {
        format!(
            "ssl crt {} ca-file {} verify required alpn {} ssl-min-ver TLSv1.3",
            files.both.display(),
            files.root.display(),
            hop.alpn()
        )
    };
    configuration(hops, |hop| plain(hop).to_owned(), server)
}

/// The whole configuration of the side that takes TLS.
pub(crate) fn server(hops: &[Hop], files: &Files) -> String {
    let bind = |hop: &Hop| {
        format!(
            "ssl crt {} ca-file {} verify required alpn {} ssl-min-ver TLSv1.3",
            files.both.display(),
            files.root.display(),
            hop.alpn()
        )
    };
    configuration(hops, bind, |hop| plain(hop).to_owned())
}

fn plain(hop: &Hop) -> &'static str {
    if hop.http2 { "proto h2" } else { "" }
}

fn configuration(
    hops: &[Hop],
    bind: impl Fn(&Hop) -> String,
    server: impl Fn(&Hop) -> String,
) -> String {
    let mut text =
        "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode http\n  timeout connect 5s\n  \
                    timeout client 60s\n  timeout server 60s\n  http-reuse always\n"
            .to_owned();
    for (i, hop) in hops.iter().enumerate() {
        write!(
            text,
            "frontend hop{i}\n  bind {} {}\n  default_backend hop{i}\nbackend hop{i}\n  server s {} {}\n",
            hop.listen,
            bind(hop),
            hop.upstream,
            server(hop)
        )
        .expect("a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::Path;

    use super::*;

    #[test]
    fn each_side_has_tls_where_it_belongs() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let hops = [Hop {
            listen: at(1),
            upstream: at(2),
            http2: true,
        }];
        let client = client(&hops, &Files::of(Path::new("/x"), "client"));
        assert!(client.contains("  bind 127.0.0.1:1 proto h2\n"), "{client}");
        assert!(
            client.contains("  server s 127.0.0.1:2 ssl crt /x/client.both.pem"),
            "{client}"
        );
        let server = server(&hops, &Files::of(Path::new("/x"), "server"));
        assert!(
            server.contains("  bind 127.0.0.1:1 ssl crt /x/server.both.pem"),
            "{server}"
        );
        assert!(
            server.contains("  server s 127.0.0.1:2 proto h2\n"),
            "{server}"
        );
    }
}
