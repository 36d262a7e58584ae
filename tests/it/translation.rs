//! Messages that change their version of HTTP on the way: what a client of one version could
//! smuggle into the other, byte by byte, and paths that can be read in several ways.

use weft_kit::origin::capture::Capture;
use weft_kit::raw2::frame::{DATA, END_HEADERS, END_STREAM, HEADERS};
use weft_kit::raw2::{Block, Frame, Peer};
use weft_kit::strict::Message;

use crate::support::PATIENCE;
use crate::support::app;
use crate::support::http1::{Http1, get, send};
use crate::support::mesh::{Mesh, Sidecar, Workload, pair, route, service};

/// What must come of a request.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// Nothing of it goes on: this status, or the stream or the connection ends with an error.
    Refused(u16),
    /// It breaks off: the application may have seen a part, and must see that it is one.
    Broken,
    /// This request line goes on, with these fields, and without those that begin so.
    Passes(
        &'static str,
        &'static [(&'static str, &'static str)],
        &'static [&'static str],
    ),
}
use Expected::{Broken, Passes, Refused};

/// Reset or ended without an answer.
const RESET: u16 = 0;

type Fields = &'static [(&'static str, &'static str)];

const GET: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "echo"),
    (":path", "/x"),
];
const POST: &[(&str, &str)] = &[
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "echo"),
    (":path", "/x"),
];

/// Name, the first fields, more of them, the content, and what must come of it.
type Case = (&'static str, Fields, Fields, Option<&'static str>, Expected);

/// A GET with one field of it changed.
macro_rules! get {
    ($method:literal, $scheme:literal, $authority:literal, $path:literal) => {
        &[
            (":method", $method),
            (":scheme", $scheme),
            (":authority", $authority),
            (":path", $path),
        ]
    };
}

const PLAIN: Expected = Passes("GET /x HTTP/1.1", &[("host", "echo")], &[]);

const CASES: &[Case] = &[
    // One authority.
    ("plain", GET, &[], None, PLAIN),
    ("host too", GET, &[("host", "echo")], None, PLAIN),
    (
        "host in another case",
        GET,
        &[("host", "Echo")],
        None,
        PLAIN,
    ),
    (
        "another host",
        GET,
        &[("host", "other")],
        None,
        Refused(400),
    ),
    (
        "two hosts",
        GET,
        &[("host", "echo"), ("host", "echo")],
        None,
        Refused(400),
    ),
    (
        "host with a port",
        GET,
        &[("host", "echo:80")],
        None,
        Refused(400),
    ),
    (
        "host alone",
        &[(":method", "GET"), (":scheme", "http"), (":path", "/x")],
        &[("host", "echo")],
        None,
        PLAIN,
    ),
    (
        "no authority",
        &[(":method", "GET"), (":scheme", "http"), (":path", "/x")],
        &[],
        None,
        Refused(400),
    ),
    (
        "empty authority",
        get!("GET", "http", "", "/x"),
        &[],
        None,
        Refused(RESET),
    ),
    (
        "user in the authority",
        get!("GET", "http", "me@echo", "/x"),
        &[],
        None,
        Refused(400),
    ),
    (
        "comma in the authority",
        get!("GET", "http", "echo,other", "/x"),
        &[],
        None,
        Refused(400),
    ),
    (
        "slash in the authority",
        get!("GET", "http", "echo/other", "/x"),
        &[],
        None,
        Refused(RESET),
    ),
    (
        "space in the authority",
        get!("GET", "http", "echo x", "/x"),
        &[],
        None,
        Refused(RESET),
    ),
    (
        "port 0",
        get!("GET", "http", "echo:0", "/x"),
        &[],
        None,
        Refused(400),
    ),
    (
        "line in the authority",
        get!("GET", "http", "echo\r\nx: y", "/x"),
        &[],
        None,
        Refused(RESET),
    ),
    (
        "two authorities",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "echo"),
            (":authority", "echo"),
            (":path", "/x"),
        ],
        &[],
        None,
        Refused(RESET),
    ),
    // The path.
    (
        "star",
        get!("GET", "http", "echo", "*"),
        &[],
        None,
        Refused(400),
    ),
    (
        "star for OPTIONS",
        get!("OPTIONS", "http", "echo", "*"),
        &[],
        None,
        Passes("OPTIONS * HTTP/1.1", &[("host", "echo")], &[]),
    ),
    (
        "fragment",
        get!("GET", "http", "echo", "/x#/y"),
        &[],
        None,
        PLAIN,
    ),
    (
        "empty path",
        get!("GET", "http", "echo", ""),
        &[],
        None,
        Refused(RESET),
    ),
    (
        "path without a slash",
        get!("GET", "http", "echo", "x"),
        &[],
        None,
        Refused(RESET),
    ),
    (
        "query alone",
        get!("GET", "http", "echo", "?x"),
        &[],
        None,
        Refused(400),
    ),
    (
        "absolute path",
        get!("GET", "http", "echo", "http://other/x"),
        &[],
        None,
        Refused(RESET),
    ),
    (
        "space in the path",
        get!("GET", "http", "echo", "/x HTTP/1.1"),
        &[],
        None,
        Refused(RESET),
    ),
    (
        "line in the path",
        get!("GET", "http", "echo", "/x\r\nx: y"),
        &[],
        None,
        Refused(RESET),
    ),
    (
        "path that is not ASCII",
        get!("GET", "http", "echo", "/\u{e4}"),
        &[],
        None,
        Refused(400),
    ),
    (
        "two slashes",
        get!("GET", "http", "echo", "//x/../y"),
        &[],
        None,
        Passes("GET //x/../y HTTP/1.1", &[("host", "echo")], &[]),
    ),
    (
        "escaped line",
        get!("GET", "http", "echo", "/a%0d%0ab?c=%00"),
        &[],
        None,
        Passes("GET /a%0d%0ab?c=%00 HTTP/1.1", &[("host", "echo")], &[]),
    ),
    (
        "no path",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "echo"),
        ],
        &[],
        None,
        Refused(RESET),
    ),
    // Scheme and method.
    (
        "scheme in capitals",
        get!("GET", "HTTPS", "echo", "/x"),
        &[],
        None,
        PLAIN,
    ),
    (
        "another scheme",
        get!("GET", "ftp", "echo", "/x"),
        &[],
        None,
        Refused(400),
    ),
    (
        "scheme with more",
        get!("GET", "http://other/?", "echo", "/x"),
        &[],
        None,
        Refused(RESET),
    ),
    (
        "no scheme",
        &[(":method", "GET"), (":authority", "echo"), (":path", "/x")],
        &[],
        None,
        Refused(RESET),
    ),
    (
        "small method",
        get!("get", "http", "echo", "/x"),
        &[],
        None,
        Refused(400),
    ),
    (
        "TRACE",
        get!("TRACE", "http", "echo", "/x"),
        &[],
        None,
        Refused(501),
    ),
    (
        "line as a method",
        get!("GET /y HTTP/1.1\r\nx: y", "http", "echo", "/x"),
        &[],
        None,
        Refused(RESET),
    ),
    (
        "empty method",
        get!("", "http", "echo", "/x"),
        &[],
        None,
        Refused(RESET),
    ),
    (
        "CONNECT",
        &[(":method", "CONNECT"), (":authority", "echo:80")],
        &[],
        None,
        Refused(400),
    ),
    (
        "another method",
        get!("PROPFIND", "http", "echo", "/x"),
        &[],
        None,
        Passes("PROPFIND /x HTTP/1.1", &[("host", "echo")], &[]),
    ),
    // The content.
    (
        "length",
        POST,
        &[("content-length", "5")],
        Some("hello"),
        Passes(
            "POST /x HTTP/1.1",
            &[("content-length", "5")],
            &["transfer-encoding"],
        ),
    ),
    (
        "no length",
        POST,
        &[],
        Some("hello"),
        Passes(
            "POST /x HTTP/1.1",
            &[("transfer-encoding", "chunked")],
            &["content-length"],
        ),
    ),
    (
        "no content",
        POST,
        &[],
        None,
        Passes(
            "POST /x HTTP/1.1",
            &[("content-length", "0")],
            &["transfer-encoding"],
        ),
    ),
    (
        "length too small",
        POST,
        &[("content-length", "3")],
        Some("hello"),
        Broken,
    ),
    (
        "length too large",
        POST,
        &[("content-length", "9")],
        Some("hello"),
        Broken,
    ),
    (
        "length without content",
        POST,
        &[("content-length", "5")],
        None,
        Refused(RESET),
    ),
    (
        "two equal lengths",
        POST,
        &[("content-length", "5"), ("content-length", "5")],
        Some("hello"),
        Refused(400),
    ),
    (
        "two lengths",
        POST,
        &[("content-length", "5"), ("content-length", "6")],
        Some("hello"),
        Refused(RESET),
    ),
    (
        "list of lengths",
        POST,
        &[("content-length", "5, 5")],
        Some("hello"),
        Refused(RESET),
    ),
    (
        "signed length",
        POST,
        &[("content-length", "+5")],
        Some("hello"),
        Refused(RESET),
    ),
    (
        "empty length",
        POST,
        &[("content-length", "")],
        None,
        Refused(400),
    ),
    (
        "coding",
        POST,
        &[("transfer-encoding", "chunked")],
        Some("0\r\n\r\n"),
        Refused(RESET),
    ),
    // One connection's fields.
    (
        "te",
        GET,
        &[("te", "trailers")],
        None,
        Passes(
            "GET /x HTTP/1.1",
            &[("te", "trailers"), ("connection", "TE")],
            &[],
        ),
    ),
    (
        "te that is more",
        GET,
        &[("te", "gzip")],
        None,
        Refused(RESET),
    ),
    (
        "connection",
        GET,
        &[("connection", "close")],
        None,
        Refused(RESET),
    ),
    (
        "keep-alive",
        GET,
        &[("keep-alive", "5")],
        None,
        Refused(RESET),
    ),
    (
        "proxy-connection",
        GET,
        &[("proxy-connection", "close")],
        None,
        Refused(RESET),
    ),
    ("upgrade", GET, &[("upgrade", "h2c")], None, Refused(RESET)),
    (
        "http2-settings",
        GET,
        &[("http2-settings", "AAMAAABk")],
        None,
        Refused(400),
    ),
    (
        "another expectation",
        GET,
        &[("expect", "200-ok")],
        None,
        Refused(400),
    ),
    // Names and values.
    (
        "line in a value",
        GET,
        &[("x-a", "1\r\nx-b: 2")],
        None,
        Refused(RESET),
    ),
    (
        "LF in a value",
        GET,
        &[("x-a", "1\nx-b: 2")],
        None,
        Refused(RESET),
    ),
    (
        "CR in a value",
        GET,
        &[("x-a", "1\rx-b: 2")],
        None,
        Refused(RESET),
    ),
    (
        "NUL in a value",
        GET,
        &[("x-a", "1\0")],
        None,
        Refused(RESET),
    ),
    (
        "line in a name",
        GET,
        &[("x-a: 1\r\nx-b", "2")],
        None,
        Refused(RESET),
    ),
    (
        "space in a name",
        GET,
        &[("x a", "1")],
        None,
        Refused(RESET),
    ),
    (
        "colon in a name",
        GET,
        &[("x-a:", "1")],
        None,
        Refused(RESET),
    ),
    (
        "name in capitals",
        GET,
        &[("X-A", "1")],
        None,
        Refused(RESET),
    ),
    ("empty name", GET, &[("", "1")], None, Refused(RESET)),
    (
        "late pseudo field",
        GET,
        &[("x-a", "1"), (":path", "/y")],
        None,
        Refused(RESET),
    ),
    (
        "unknown pseudo field",
        GET,
        &[(":x", "1")],
        None,
        Refused(RESET),
    ),
    ("status", GET, &[(":status", "200")], None, Refused(RESET)),
    (
        "protocol",
        GET,
        &[(":protocol", "websocket")],
        None,
        Refused(RESET),
    ),
    (
        "cookies in crumbs",
        GET,
        &[
            ("cookie", "a=1"),
            ("x-a", "1"),
            ("cookie", "b=2; c=3"),
            ("cookie", "d=4"),
        ],
        None,
        Passes(
            "GET /x HTTP/1.1",
            &[("cookie", "a=1; b=2; c=3; d=4"), ("x-a", "1")],
            &[],
        ),
    ),
    (
        "twin of a length",
        POST,
        &[("content_length", "5")],
        Some("hello"),
        Refused(400),
    ),
    (
        "twin of an address",
        GET,
        &[("x_forwarded_for", "::1")],
        None,
        Refused(400),
    ),
    (
        "underscore",
        GET,
        &[("user_id", "1")],
        None,
        Passes("GET /x HTTP/1.1", &[("user_id", "1")], &[]),
    ),
    (
        "name of the mesh",
        GET,
        &[("weft-reason", "forged"), ("weft-more", "forged")],
        None,
        Passes("GET /x HTTP/1.1", &[("host", "echo")], &["weft-"]),
    ),
];

/// Two sidecars and an origin that keeps every byte.
struct Captured {
    _mesh: Mesh,
    _sidecars: [Sidecar; 2],
    origin: Capture,
    outbound: std::net::SocketAddr,
}

impl Captured {
    async fn start() -> Self {
        let origin = Capture::start().await.unwrap();
        let server = Workload::new("echo").serves_at(8080, origin.address());
        let client = Workload::new("client");
        let documents =
            service("echo", "app: echo", Some("http")) + &server.yaml() + &client.yaml();
        let mesh = Mesh::strict(&documents).await;
        let sidecars = [mesh.sidecar(&server).await, mesh.sidecar(&client).await];
        Self {
            _mesh: mesh,
            _sidecars: sidecars,
            origin,
            outbound: client.outbound,
        }
    }

    /// Sends a request of HTTP/2: its status, or [`RESET`].
    async fn send(&self, fields: &[Fields], content: Option<&str>) -> u16 {
        let mut peer = Peer::connect(self.outbound, &[]).await.unwrap();
        let mut block = Block::new();
        for (name, value) in fields.iter().copied().flatten() {
            block = block.literal(name, value);
        }
        let end = if content.is_none() { END_STREAM } else { 0 };
        let mut frames = vec![Frame::new(HEADERS, END_HEADERS | end, 1, block.bytes())];
        if let Some(content) = content {
            frames.push(Frame::new(DATA, END_STREAM, 1, content));
        }
        // The other side may be gone before all is written.
        let _ = peer.send_all(&frames).await;
        match peer.whole(1).await {
            Ok(message) if message.reset.is_none() => message.status(),
            Ok(message) if message.ended => message.status(),
            _ => RESET,
        }
    }

    /// The requests that the application got whole.
    fn messages(&self) -> Vec<Message> {
        let connections = self.origin.connections();
        let read = |bytes: &[u8]| match weft_kit::strict::requests(bytes) {
            Ok(reading) => reading.messages,
            Err(violation) => panic!("{violation:?} in {:?}", String::from_utf8_lossy(bytes)),
        };
        let whole = connections.iter().filter(|one| one.whole);
        whole.flat_map(|one| read(&one.bytes)).collect()
    }
}

fn values(message: &Message, name: &str) -> Vec<String> {
    let named = message
        .fields
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case(name));
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    named.map(|field| text(field.value.as_ref())).collect()
}

#[tokio::test]
async fn what_comes_by_http2_goes_on_as_strict_http1() {
    let mesh = Captured::start().await;
    for (name, first, more, content, expected) in CASES {
        mesh.origin.forget(PATIENCE).await.unwrap();
        let status = mesh.send(&[first, more], *content).await;
        let seen = mesh.messages();
        match expected {
            Refused(wanted) => {
                assert_eq!(status, *wanted, "{name}");
                let connections = mesh.origin.connections();
                let silent = connections.iter().all(|one| one.bytes.is_empty());
                assert!(silent, "{name}: {seen:?}");
            }
            Broken => {
                assert_ne!(status, 200, "{name}");
                assert!(seen.is_empty(), "{name}: {seen:?}");
            }
            Passes(line, has, without) => {
                assert_eq!(status, 200, "{name}");
                assert_eq!(seen.len(), 1, "{name}: {seen:?}");
                let message = &seen[0];
                assert_eq!(message.line, *line, "{name}");
                assert_eq!(values(message, "host"), ["echo"], "{name}");
                for (field, value) in *has {
                    assert_eq!(values(message, field), [*value], "{name}: {field}");
                }
                for begin in *without {
                    let found = message.fields.iter().find(|field| {
                        let name = field.name.to_ascii_lowercase();
                        name.starts_with(begin)
                    });
                    assert!(found.is_none(), "{name}: {found:?}");
                }
                let body = content.unwrap_or_default().as_bytes();
                assert_eq!(message.body, body, "{name}");
            }
        }
    }
}

#[tokio::test]
async fn what_comes_by_http1_goes_on_as_http2() {
    let app = app::echo("echo").await;
    let pair = pair(Some("kubernetes.io/h2c"), &app).await;
    // The request, what the application sees, and what it must not.
    for (request, has, without) in [
        (
            "GET /x?y HTTP/1.1\r\nHost: echo\r\nX-MiXed: Value\r\n\r\n",
            &[
                ("x-version", "HTTP/2.0"),
                ("x-authority", "echo"),
                ("x-path", "/x?y"),
                ("seen-x-mixed", "Value"),
            ][..],
            &["seen-host"][..],
        ),
        (
            "GET / HTTP/1.1\r\nhost: echo\r\nconnection: keep-alive, X-Hop\r\nx-hop: 1\r\n\
             keep-alive: 5\r\nproxy-connection: keep-alive\r\n\r\n",
            &[],
            &[
                "seen-connection",
                "seen-x-hop",
                "seen-keep-alive",
                "seen-proxy-connection",
            ],
        ),
        (
            "POST / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: chunked\r\n\r\n\
             5\r\nhello\r\n0\r\n\r\n",
            &[],
            &["seen-transfer-encoding", "seen-content-length"],
        ),
        (
            "POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: 5\r\n\r\nhello",
            &[("seen-content-length", "5")],
            &["seen-transfer-encoding"],
        ),
        (
            "GET / HTTP/1.1\r\nhost: echo\r\nconnection: TE\r\nte: trailers, gzip\r\n\r\n",
            &[("seen-te", "trailers")],
            &["seen-connection"],
        ),
        (
            "GET / HTTP/1.1\r\nhost: echo\r\nconnection: TE\r\nte: gzip\r\n\r\n",
            &[],
            &["seen-te"],
        ),
        (
            "GET / HTTP/1.1\r\nhost: echo\r\nconnection: upgrade, http2-settings\r\n\
             upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n",
            &[],
            &["seen-upgrade", "seen-http2-settings", "seen-connection"],
        ),
        (
            "GET http://echo/a%2fb HTTP/1.1\r\nhost: echo\r\n\r\n",
            &[("x-authority", "echo"), ("x-path", "/a%2fb")],
            &["seen-host"],
        ),
        (
            "GET http://Echo/ HTTP/1.1\r\nhost: eCHO\r\n\r\n",
            &[("x-authority", "Echo")],
            &["seen-host"],
        ),
        (
            "OPTIONS * HTTP/1.1\r\nhost: echo\r\n\r\n",
            &[("x-method", "OPTIONS"), ("x-path", "*")],
            &[],
        ),
        (
            "GET / HTTP/1.1\r\nhost: echo\r\nweft-reason: forged\r\ncookie: a=1; b=2\r\n\r\n",
            &[("seen-cookie", "a=1; b=2")],
            &["seen-weft-reason"],
        ),
        (
            "GET / HTTP/1.0\r\nhost: echo\r\nexpect: 100-continue\r\n\r\n",
            &[("x-version", "HTTP/2.0")],
            &["seen-expect", "transfer-encoding"],
        ),
    ] {
        let reply = send(pair.outbound, request).await;
        assert_eq!(reply.outcome(), (200, ""), "{request}");
        for (name, value) in has {
            assert_eq!(reply.header(name), Some(*value), "{request}: {name}");
        }
        for name in without {
            assert_eq!(reply.header(name), None, "{request}: {name}");
        }
        let body = if request.starts_with("POST") {
            "hello"
        } else {
            ""
        };
        assert_eq!(reply.text(), body, "{request}");
    }
    // An answer without a body is one, and the connection goes on.
    let mut client = Http1::connect(pair.outbound).await.unwrap();
    let head = "HEAD / HTTP/1.1\r\nhost: echo\r\n\r\n";
    for request in [head, head, "GET /status/204 HTTP/1.1\r\nhost: echo\r\n\r\n"] {
        client.write(request).await.unwrap();
        let reply = client.head().await.unwrap();
        assert_eq!(reply.header("transfer-encoding"), None);
        assert!(matches!(reply.status, 200 | 204));
    }
}

#[tokio::test]
async fn no_client_of_http1_gets_more_into_http2() {
    let app = app::echo("echo").await;
    let pair = pair(Some("kubernetes.io/h2c"), &app).await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\nhost: echo\r\nhost: echo\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: me@echo\r\n\r\n", 400),
        ("GET http://other/ HTTP/1.1\r\nhost: echo\r\n\r\n", 400),
        ("GET http://echo:80/ HTTP/1.1\r\nhost: echo\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nhost: echo\r\n\r\n", 400),
        ("GET echo HTTP/1.1\r\nhost: echo\r\n\r\n", 400),
        ("get / HTTP/1.1\r\nhost: echo\r\n\r\n", 400),
        ("TRACE / HTTP/1.1\r\nhost: echo\r\n\r\n", 501),
        (
            "GET / HTTP/1.1\r\nhost: echo\r\nconnection: authorization\r\nauthorization: x\r\n\r\n",
            400,
        ),
        (
            "GET / HTTP/1.1\r\nhost: echo\r\nconnection: close, host\r\n\r\n",
            400,
        ),
        (
            "GET / HTTP/1.1\r\nhost: echo\r\nconnection: x-forwarded-for\r\n\r\n",
            400,
        ),
        (
            "GET / HTTP/1.1\r\nhost: echo\r\ntransfer_encoding: chunked\r\n\r\n",
            400,
        ),
        (
            "GET / HTTP/1.1\r\nhost: echo\r\nexpect: miracles\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nhost: echo\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             content-length: 0\r\n\r\n",
            400,
        ),
        (
            "GET / HTTP/1.1\r\nhost: echo\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             content-length: 5\r\n\r\nhello",
            400,
        ),
    ] {
        let reply = send(pair.outbound, request).await;
        let reason = match status {
            501 => "not_implemented",
            _ => "client_protocol_error",
        };
        assert_eq!(reply.outcome(), (status, reason), "{request}");
    }
    assert_eq!(app.accepted(), 0, "nothing of it reached the application");
}

#[tokio::test]
async fn a_path_is_routed_the_same_in_all_its_readings() {
    let open = app::echo("open").await;
    let closed = app::echo("closed").await;
    let workload = Workload::new("open").serves(&open);
    let guarded = Workload::new("closed").serves(&closed);
    let client = Workload::new("client");
    let rules = "  - matches: [{path: {type: PathPrefix, value: /private}}]\n    \
                 backendRefs: [{name: closed, port: 80}]\n  \
                 - backendRefs: [{name: open, port: 80}]";
    let documents = service("open", "app: open", Some("http"))
        + &service("closed", "app: closed", Some("http"))
        + &route("HTTPRoute", "open", rules)
        + &workload.yaml()
        + &guarded.yaml()
        + &client.yaml();
    let mesh = Mesh::strict(&documents).await;
    let _sidecars = [
        mesh.sidecar(&workload).await,
        mesh.sidecar(&guarded).await,
        mesh.sidecar(&client).await,
    ];
    for (path, app) in [
        ("/", "open"),
        ("/private/a%20b%2Fc", "closed"),
        ("/public/a%20b%2Fc;v=1//d", "open"),
        ("/private/x/../y", "closed"),
        ("/.well-known/x", "open"),
    ] {
        let reply = get(client.outbound, "open", path).await;
        assert_eq!(reply.outcome(), (200, ""), "{path}");
        assert_eq!(reply.header("x-app"), Some(app), "{path}");
        assert_eq!(reply.header("x-path"), Some(path), "as it came");
    }
    for path in [
        "/%70rivate",
        "//private",
        "/./private/x",
        "/x/../private",
        "/x/..;/private",
        "/x/..%2fprivate",
        "/x/..%5cprivate",
        "/x/%252e%252e/private",
        "/private%00.png",
        "/private;x/y",
        "/private/../x",
        "/x/%c0%ae%c0%ae/private",
    ] {
        let reply = get(client.outbound, "open", path).await;
        assert_eq!(reply.outcome(), (400, "client_protocol_error"), "{path}");
    }
    // Routes that do not look at the path refuse none.
    for path in ["/%70rivate", "/x/..;/%2e%2e//private%00%5c"] {
        let reply = get(client.outbound, "closed", path).await;
        assert_eq!(reply.outcome(), (200, ""), "{path}");
        assert_eq!(reply.header("x-path"), Some(path), "as it came");
    }
}
