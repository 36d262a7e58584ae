//! Protocols: what applications speak to each other passes two sidecars unharmed, and the
//! wire between these carries TLS 1.3 and nothing else. A relay stands on that wire: peers
//! are led to it by the document of a second workload, which the services select.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::relay::Relay;
use super::world::{client, start_app, until_answered};
use super::{Cases, Finding, Setting, seen, tls};
use crate::backend::GREETING;
use crate::error::{Context as _, Error, Result};
use crate::load::http2::grpc_frame;
use crate::load::response;
use crate::process::{Process, Spec, free_address, which};
use crate::weft::{self, Control, Port, Workload, exchange, write_config};
use crate::ws;

/// Sent through every protocol; must not be seen on the wire.
const SECRET: &str = "swordfish-5cb1";
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let dir = setting.dir();
    let tcp_app = free_address()?;
    let (app, _app) = start_app(dir, "v1", Some(tcp_app)).await?;
    let kinds = [
        ("echo", 8080, "http", app),
        ("calls", 8082, "grpc", app),
        ("queue", 9000, "tcp", tcp_app),
    ];
    let (mut behind, mut before, mut relays) = (Vec::new(), Vec::new(), Vec::new());
    let (outbound, queue) = (free_address()?, free_address()?);
    let mut text = weft::mesh_config();
    for (name, port, protocol, app) in kinds {
        let (inner, outer) = (free_address()?, free_address()?);
        text += &weft::service(name, "app: echo", port, Some(protocol));
        behind.push(Port {
            port,
            protocol: Some(protocol),
            listen: inner,
            app,
        });
        before.push(Port {
            port,
            protocol: Some(protocol),
            listen: outer,
            app,
        });
        relays.push((outer, Relay::start(outer, inner).await?));
    }
    let server = Workload {
        name: "server",
        account: "echo",
        app: "behind-the-relay",
        version: "",
        ports: behind,
        outbound: Some(free_address()?),
        upstreams: Vec::new(),
    };
    let relayed = Workload {
        name: "relayed",
        app: "echo",
        ports: before,
        outbound: None,
        ..server.clone()
    };
    text += &(server.yaml()
        + &relayed.yaml()
        + &client(outbound, vec![("queue".to_owned(), queue)]).yaml());
    write_config(dir, "mesh.yaml", &text)?;
    let control = Control::start(&setting.programs, dir).await?;
    let capture = Capture::start(dir, relays[0].0).await;
    let _server = control.sidecar("bench", "server", "echo").await?;
    let mut client = control.sidecar("bench", "client", "client").await?;
    client.process.listens(outbound).await?;
    until_answered(outbound, "echo.bench", |reply| reply.status == 200).await?;

    let foreign = if which("curl").is_some() {
        "curl"
    } else {
        "own client; no curl"
    };
    let methods = format!("404 201 200 200 200 204 404 ({foreign})");
    cases.check("rest", methods, rest(dir, outbound)).await;
    cases
        .check("websocket", "a text frame comes back", async {
            websocket(connect(outbound).await?, "echo.bench", SECRET).await
        })
        .await;
    let grpc_expected = "a unary call and 3 messages of a bidirectional stream come back, each before the next is sent";
    cases
        .check("grpc", grpc_expected, grpc(dir, outbound))
        .await;
    cases
        .check(
            "tcp-server-first",
            "the greeting, then an echo, through a local port",
            async { server_first(connect(queue).await?, SECRET).await },
        )
        .await;
    cases
        .check(
            "wire",
            "only TLS 1.3 records between the sidecars, no plaintext",
            async { wire(&relays) },
        )
        .await;
    let expected = "every ServerHello says 0x0304";
    match capture {
        Ok(capture) => {
            cases
                .check("wire-tshark", expected, capture.versions(dir))
                .await
        }
        Err(error) => cases.skip("wire-tshark", expected, error.to_string()),
    }
    Ok(())
}

/// Creates, reads, replaces and deletes an account.
async fn rest(dir: &Path, outbound: SocketAddr) -> Result<Finding> {
    let calls: [(&str, &str); 7] = [
        ("GET", ""),
        ("POST", "{\"owner\":\"ann\"}"),
        ("GET", ""),
        ("PUT", SECRET),
        ("GET", ""),
        ("DELETE", ""),
        ("GET", ""),
    ];
    let curl = which("curl");
    let (mut codes, mut bodies) = (Vec::new(), Vec::new());
    for (method, body) in calls {
        let (code, answer) = match &curl {
            Some(curl) => with_curl(curl, dir, outbound, method, body).await?,
            None => by_hand(outbound, method, body).await?,
        };
        codes.push(code);
        bodies.push(answer);
    }
    let text: Vec<String> = codes.iter().map(u16::to_string).collect();
    let ok = codes == [404, 201, 200, 200, 200, 204, 404]
        && bodies[2] == calls[1].1
        && bodies[4] == SECRET;
    Ok(seen(
        ok,
        format!(
            "{}; read back {:?} and {:?}",
            text.join(" "),
            bodies[2],
            bodies[4]
        ),
    ))
}

async fn with_curl(
    curl: &Path,
    dir: &Path,
    outbound: SocketAddr,
    method: &str,
    body: &str,
) -> Result<(u16, String)> {
    let mut spec = Spec::new("curl", curl)
        .arg("--silent")
        .arg("--show-error")
        .pair("--noproxy", "*")
        .pair("--max-time", "10")
        .pair("--write-out", "\n%{http_code}")
        .pair("--request", method)
        .pair("--header", "Host: echo.bench");
    if !body.is_empty() {
        spec = spec.pair("--data-raw", body);
    }
    let output = spec
        .arg(format!("http://{outbound}/accounts/7"))
        .run(dir, LIMIT)
        .await?
        .ok("curl")?;
    let (answer, code) = output.rsplit_once('\n').context("curl printed no status")?;
    Ok((code.parse().context("curl's status")?, answer.to_owned()))
}

async fn by_hand(outbound: SocketAddr, method: &str, body: &str) -> Result<(u16, String)> {
    let request = format!(
        "{method} /accounts/7 HTTP/1.1\r\nhost: echo.bench\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let reply = exchange(outbound, request.as_bytes()).await?;
    Ok((reply.status, reply.body))
}

/// A WebSocket handshake and a text frame with `text` on a new connection.
pub(super) async fn websocket(mut stream: TcpStream, host: &str, text: &str) -> Result<Finding> {
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    let request = format!(
        "GET /socket HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n"
    );
    stream
        .write_all(request.as_bytes())
        .await
        .context("write")?;
    let mut buffer = Vec::new();
    let status = loop {
        if read_some(&mut stream, &mut buffer).await? == 0 {
            return Ok(seen(
                false,
                format!("closed after {:?}", String::from_utf8_lossy(&buffer)),
            ));
        }
        if let Some(head) = response::parse(&buffer).map_err(Error::new)? {
            let accepted = head.header("sec-websocket-accept") == Some(&ws::accept(key));
            let (status, length) = (head.status, head.length);
            if status != 101 || !accepted {
                return Ok(seen(
                    false,
                    format!("status {status}, sec-websocket-accept right: {accepted}"),
                ));
            }
            buffer.drain(..length);
            break status;
        }
    };
    let frame = ws::Frame {
        opcode: ws::TEXT,
        payload: text.repeat(20).into_bytes(),
    };
    stream
        .write_all(&ws::encode(&frame, Some([7, 1, 9, 4])))
        .await
        .context("write")?;
    loop {
        if let Some(answer) = ws::decode(&mut buffer).map_err(Error::new)? {
            return Ok(seen(
                answer == frame,
                format!("{status}, {} bytes came back", answer.payload.len()),
            ));
        }
        if read_some(&mut stream, &mut buffer).await? == 0 {
            return Ok(seen(false, "closed after the upgrade"));
        }
    }
}

async fn read_some(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<usize> {
    timeout(LIMIT, stream.read_buf(buffer))
        .await
        .context("nothing came")?
        .context("read")
}

/// Python's client if it is there: a foreign implementation finds more than one's own.
async fn grpc(dir: &Path, outbound: SocketAddr) -> Result<Finding> {
    let Some(python) = python_with_grpc(dir).await else {
        let (unary, stream) = (grpc_call(outbound, 1).await?, grpc_call(outbound, 3).await?);
        return Ok(seen(
            unary && stream,
            "unary and stream came back (own client; no python3 with grpcio)",
        ));
    };
    let script = dir.join("client.py");
    fs::write(&script, PYTHON_CLIENT).context(script.display())?;
    let output = Spec::new("grpcio", python)
        .arg(&script)
        .arg(outbound.to_string())
        .arg("calls.bench")
        .arg(SECRET)
        .run(dir, LIMIT)
        .await?;
    let said = format!(
        "{}{}",
        output.stdout,
        crate::process::tail(&output.stderr, 5)
    );
    Ok(seen(
        output.status.success() && output.stdout.contains("stream ok"),
        format!("{} (grpcio)", said.trim()),
    ))
}

/// A Python that can `import grpc`.
pub(super) async fn python_with_grpc(dir: &Path) -> Option<PathBuf> {
    let python = which("python3")?;
    let import = Spec::new("python3", &python)
        .pair("-c", "import grpc")
        .run(dir, LIMIT)
        .await;
    import
        .is_ok_and(|output| output.status.success())
        .then_some(python)
}

/// Arguments: target, authority (or nothing), text.
pub(super) const PYTHON_CLIENT: &str = r#"
import queue, sys
import grpc

target, authority, secret = sys.argv[1], sys.argv[2], sys.argv[3].encode()
options = [("grpc.enable_http_proxy", 0)]
if authority:
    options.append(("grpc.default_authority", authority))
with grpc.insecure_channel(target, options=options) as channel:
    unary = channel.unary_unary("/bench.Echo/Unary")
    assert unary(secret, timeout=10) == secret
    print("unary ok,", grpc.__version__, end=", ")
    sending = queue.Queue()
    stream = channel.stream_stream("/bench.Echo/Stream")(iter(sending.get, None), timeout=10)
    for i in range(3):
        message = secret + bytes([i])
        sending.put(message)
        assert next(stream) == message
    sending.put(None)
    assert next(stream, None) is None
    assert stream.code() == grpc.StatusCode.OK
    print("stream ok")
"#;

/// A stream of `messages`, each sent when the one before it has come back.
async fn grpc_call(outbound: SocketAddr, messages: usize) -> Result<bool> {
    let call = async {
        let stream = TcpStream::connect(outbound).await.context("connect")?;
        let (sender, connection) = h2::client::handshake(stream).await.context("HTTP/2")?;
        let connection = tokio::spawn(connection);
        let mut sender = sender.ready().await.context("HTTP/2")?;
        let request = Request::post("http://calls.bench/bench.Echo/Stream")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .context("request")?;
        let (response, mut send) = sender.send_request(request, false).context("send")?;
        let message: Bytes = grpc_frame(SECRET.as_bytes());
        send.send_data(message.clone(), messages == 1)
            .context("send")?;
        let mut body = response.await.context("response")?.into_body();
        for i in 1..=messages {
            let mut received = 0;
            while received < message.len() {
                let data = body
                    .data()
                    .await
                    .context("the stream ended early")?
                    .context("body")?;
                received += data.len();
            }
            if i < messages {
                send.send_data(message.clone(), i + 1 == messages)
                    .context("send")?;
            }
        }
        while let Some(data) = body.data().await {
            data.context("body")?;
        }
        let trailers = body.trailers().await.context("trailers")?;
        connection.abort();
        Ok(trailers.is_some_and(|trailers| {
            trailers
                .get("grpc-status")
                .is_some_and(|status| status == "0")
        }))
    };
    timeout(LIMIT, call).await.context("the call did not end")?
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(address).await.context("connect")
}

/// Waits for the greeting of the line protocol, then sends `text` and reads the echo.
pub(super) async fn server_first(stream: TcpStream, text: &str) -> Result<Finding> {
    let talk = async {
        let mut stream = BufReader::new(stream);
        let (mut greeting, mut answer) = (String::new(), String::new());
        stream
            .read_line(&mut greeting)
            .await
            .context("read the greeting")?;
        stream
            .write_all(format!("{text}\r\n").as_bytes())
            .await
            .context("write")?;
        stream
            .read_line(&mut answer)
            .await
            .context("read the echo")?;
        let ok = greeting.starts_with(GREETING) && answer == format!("250 {text}\r\n");
        Ok(seen(
            ok,
            format!("{:?}, {:?}", greeting.trim(), answer.trim()),
        ))
    };
    timeout(LIMIT, talk)
        .await
        .context("the server's greeting did not come")?
}

fn wire(relays: &[(SocketAddr, Relay)]) -> Result<Finding> {
    let (mut connections, mut count) = (0, 0);
    for (_, relay) in relays {
        let mut used = 0;
        for recording in relay.recordings() {
            let secret = SECRET.as_bytes();
            for direction in [&recording.sent, &recording.received] {
                if direction
                    .windows(secret.len())
                    .any(|window| window == secret)
                {
                    return Ok(seen(false, "an application's text is readable on the wire"));
                }
            }
            // A connection that was opened ahead and not used says nothing.
            if !recording.sent.is_empty() {
                used += 1;
                count += tls::check(&recording).map_err(Error::new)?;
            }
        }
        if used == 0 {
            return Ok(seen(false, "one of the three ports saw no connection"));
        }
        connections += used;
    }
    Ok(seen(
        true,
        format!("{count} records in {connections} connections, each TLS 1.3"),
    ))
}

/// A live capture of one port by tshark.
struct Capture {
    process: Process,
    program: PathBuf,
    file: PathBuf,
    port: u16,
}

impl Capture {
    async fn start(dir: &Path, address: SocketAddr) -> Result<Self> {
        let program = which("tshark").context("no tshark: apt-get install tshark")?;
        let (file, port) = (dir.join("wire.pcap"), address.port());
        let mut process = Spec::new("tshark", &program)
            .pair("-i", "lo")
            .pair("-f", format!("tcp port {port}"))
            .pair("-w", &file)
            .start(dir)?;
        let log = dir.join("tshark.log");
        let capturing = || {
            let begun = fs::read_to_string(&log).is_ok_and(|text| text.contains("Capturing on"))
                && file.exists();
            async move { begun }
        };
        process
            .until(
                "captured (it may need root)",
                Duration::from_secs(10),
                capturing,
            )
            .await?;
        Ok(Self {
            process,
            program,
            file,
            port,
        })
    }

    async fn versions(mut self, dir: &Path) -> Result<Finding> {
        // Packets reach the file in batches.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        self.process.signal(Signal::INT)?;
        self.process.wait(LIMIT).await?;
        let output = Spec::new("tshark", &self.program)
            .pair("-r", &self.file)
            .pair("-d", format!("tcp.port=={},tls", self.port))
            .pair("-Y", "tls.handshake.type == 2")
            .pair("-T", "fields")
            .pair("-e", "tls.handshake.extensions.supported_version")
            .run(dir, LIMIT)
            .await?
            .ok("tshark")?;
        let versions: Vec<&str> = output.split_whitespace().collect();
        let ok = !versions.is_empty() && versions.iter().all(|version| *version == "0x0304");
        Ok(seen(
            ok,
            format!("{} ServerHellos: {}", versions.len(), versions.join(" ")),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend;

    /// The clients against the application itself: what the mesh is to leave unharmed.
    #[tokio::test]
    async fn clients_and_application_agree() {
        let (http, tcp) = (free_address().unwrap(), free_address().unwrap());
        let options = backend::Options {
            listen: http,
            tcp: Some(tcp),
            name: "v1".to_owned(),
        };
        let _app = tokio::spawn(backend::run(options));
        until_answered(http, "echo.bench", |reply| {
            reply.status == 200 && reply.version == "v1"
        })
        .await
        .unwrap();
        let mut codes = Vec::new();
        for (method, body) in [
            ("GET", ""),
            ("POST", "one"),
            ("POST", "two"),
            ("GET", ""),
            ("PUT", "three"),
            ("GET", ""),
            ("DELETE", ""),
            ("DELETE", ""),
            ("PATCH", ""),
        ] {
            let (code, answer) = by_hand(http, method, body).await.unwrap();
            codes.push(format!("{code} {}", answer.trim()));
        }
        let expect = [
            "404 no such account",
            "201 one",
            "409 the account exists",
            "200 one",
            "200 three",
            "200 three",
            "204 ",
            "404 no such account",
            "405 ",
        ];
        assert_eq!(codes, expect);
        assert!(
            websocket(connect(http).await.unwrap(), "echo.bench", SECRET)
                .await
                .unwrap()
                .ok
        );
        assert!(
            server_first(connect(tcp).await.unwrap(), SECRET)
                .await
                .unwrap()
                .ok
        );
        assert!(grpc_call(http, 1).await.unwrap());
        assert!(grpc_call(http, 3).await.unwrap());
    }

    #[tokio::test]
    async fn plaintext_on_the_wire_is_found() {
        let (outer, app) = (free_address().unwrap(), free_address().unwrap());
        let options = backend::Options {
            listen: app,
            tcp: None,
            name: "v1".to_owned(),
        };
        let _app = tokio::spawn(backend::run(options));
        let relays = [(outer, Relay::start(outer, app).await.unwrap())];
        assert!(!wire(&relays).unwrap().ok, "nothing was seen yet");
        until_answered(outer, "echo.bench", |reply| reply.status == 200)
            .await
            .unwrap();
        assert!(
            wire(&relays)
                .unwrap_err()
                .to_string()
                .contains("no TLS record")
        );
    }
}
