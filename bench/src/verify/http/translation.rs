//! Translation (T18). HTTP/2 to HTTP/1: fields with every hostile byte in every place, and
//! messages that contradict themselves; what arrives is one strict request that says exactly
//! what was sent. HTTP/1 to HTTP/2: the kit's tables of framing before an origin of HTTP/2.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::try_join_all;
use weft_kit::cases;
use weft_kit::origin::capture::{Capture, Connection};
use weft_kit::raw2::frame::{DATA, END_HEADERS, END_STREAM, HEADERS};
use weft_kit::raw2::{Block, Frame, Message, POLITE, Peer};

use super::framing::LANES;
use super::lanes::{Door, Lane, PATIENCE, Speaks, Stage, connect, shown};
use super::mirror;
use super::trial::{Cuts, Tally};
use crate::error::{Context as _, Result};
use crate::verify::{Cases, Finding, Setting, seen};

const FULL: Duration = Duration::from_secs(20 * 60);
/// Requests on one connection before a new one is made.
const REQUESTS: u32 = 1_000;

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let (mut captures, mut mirrors) = (Vec::new(), Vec::new());
    for _ in 0..LANES {
        captures.push(Capture::start().await.context("start an origin")?);
        mirrors.push(mirror::Origin::start().await?);
    }
    let one = captures.iter().map(|o| (o.address(), Speaks::Http1));
    let two = mirrors.iter().map(|o| (o.address(), Speaks::Http2));
    let apps: Vec<_> = one.chain(two).collect();
    let mut stage = Stage::start_as(setting, &apps, "", |spec| spec).await?;
    let (one, two) = stage.lanes.split_at(LANES);
    let (one, two) = (one.to_vec(), two.to_vec());
    let bytes: Vec<u8> = match setting.quick {
        true => HOSTILE.to_vec(),
        false => (0..=255).collect(),
    };
    let check = to_http1(&stage, &one, &captures, &bytes);
    cases
        .check_within(
            FULL,
            "http2-to-http1",
            "T18: refused, or one strict request that says what was sent: target, host, fields, cookies, body",
            check,
        )
        .await;
    let cuts = if setting.quick {
        Cuts::Some(1)
    } else {
        Cuts::Some(20)
    };
    type Table = fn(&str) -> Vec<cases::Case>;
    let tables: [(&str, Table); 5] = [
        ("heads", cases::heads),
        ("authorities", cases::authorities),
        ("codings", |host| cases::codings(host, cases::FEW)),
        ("chunks", cases::chunks),
        ("connection", cases::connection),
    ];
    for (name, table) in tables {
        let check = mirror::try_table(&stage, &two, &mirrors, cuts, table);
        let expected = "T18: what is refused does not arrive; what breaks off does not end well; what passes says the same";
        let name = format!("http1-to-http2-{name}");
        cases.check_within(FULL, &name, expected, check).await;
    }
    cases
        .check("alive", "no sidecar has ended or panicked", async {
            stage.alive()?;
            Ok(seen(true, "both run"))
        })
        .await;
    Ok(())
}

/// The bytes that are most often read in two ways.
const HOSTILE: &[u8] =
    b"\0\x01\t\n\x0b\r\x1f \"#%&'(),./:;<=>?@A[\\]^_`a{|}~\x7f\x80\x85\xa0\xc3\xff";

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    name: String,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    body: Option<Vec<u8>>,
    /// It must arrive.
    good: bool,
}

impl Sent {
    fn field(&self, name: &str) -> Option<&[u8]> {
        let mut fields = self.fields.iter();
        fields
            .find(|(n, _)| n == name.as_bytes())
            .map(|(_, value)| &**value)
    }

    fn block(&self) -> Vec<u8> {
        let fields = self.fields.iter();
        fields
            .fold(Block::new(), |block, (name, value)| {
                block.literal(name, value)
            })
            .bytes()
    }

    /// What must arrive as these fields; also those that are joined.
    fn ordinary(&self) -> Vec<(String, Vec<u8>)> {
        let mut all: Vec<(String, Vec<u8>)> = Vec::new();
        let mut cookies = Vec::new();
        for (name, value) in &self.fields {
            let name = String::from_utf8_lossy(name).into_owned();
            if name == "cookie" {
                cookies.push(value.clone());
            } else if !name.starts_with(':')
                && !matches!(&*name, "host" | "te" | "content-length" | "expect")
            {
                all.push((name, value.trim_ascii().to_vec()));
            }
        }
        if !cookies.is_empty() {
            let joined = cookies.join(&b"; "[..]);
            all.push(("cookie".to_owned(), joined.trim_ascii().to_vec()));
        }
        all
    }
}

/// A request, with what is to be other than in a plain one.
fn request(name: &str, host: &str, change: &[(&str, &[u8])], more: &[(&[u8], &[u8])]) -> Sent {
    let method: &[u8] = b"GET";
    let plain: [(&str, &[u8]); 4] = [
        (":method", method),
        (":scheme", b"http"),
        (":authority", host.as_bytes()),
        (":path", b"/case"),
    ];
    let mut fields = Vec::new();
    for (field, value) in plain {
        let changed = change.iter().find(|(name, _)| *name == field);
        fields.push((
            field.as_bytes().to_vec(),
            changed.map_or(value, |(_, value)| value).to_vec(),
        ));
    }
    fields.extend(
        more.iter()
            .map(|(name, value)| (name.to_vec(), value.to_vec())),
    );
    Sent {
        name: name.to_owned(),
        fields,
        body: None,
        good: false,
    }
}

/// A byte at the beginning, in the middle and at the end of a text.
fn spoilt(text: &str, byte: u8) -> [(&'static str, Vec<u8>); 3] {
    let middle = text.len() / 2;
    let (before, after) = (&text.as_bytes()[..middle], &text.as_bytes()[middle..]);
    [
        ("first", [&[byte], text.as_bytes()].concat()),
        ("inside", [before, &[byte], after].concat()),
        ("last", [text.as_bytes(), &[byte]].concat()),
    ]
}

/// Every byte in every place.
fn bytes_in_places(host: &str, bytes: &[u8]) -> Vec<Sent> {
    let mut all = Vec::new();
    for byte in bytes.iter().copied() {
        for (pseudo, text) in [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", host),
            (":path", "/case/x"),
        ] {
            // That would be another lane.
            if pseudo == ":authority" && byte.is_ascii_digit() {
                continue;
            }
            for (place, value) in spoilt(text, byte) {
                let name = format!("{byte:#04x} {place} in {pseudo}");
                all.push(request(&name, host, &[(pseudo, &value)], &[]));
            }
        }
        for (place, value) in spoilt("value", byte) {
            let mut sent = request(
                &format!("{byte:#04x} {place} in a value"),
                host,
                &[],
                &[(b"x-a", &value)],
            );
            sent.good = byte.is_ascii_graphic();
            all.push(sent);
            let name = format!("{byte:#04x} {place} in a cookie");
            all.push(request(
                &name,
                host,
                &[],
                &[(b"cookie", b"a=b"), (b"cookie", &value)],
            ));
            let smuggling = [&value[..], b"\r\ntransfer-encoding: chunked"].concat();
            all.push(request(
                &format!("{byte:#04x} {place}, and a line"),
                host,
                &[],
                &[(b"x-a", &smuggling)],
            ));
        }
        for (place, name) in spoilt("x-name", byte) {
            let mut sent = request(
                &format!("{byte:#04x} {place} in a name"),
                host,
                &[],
                &[(&name, b"b")],
            );
            sent.good = byte.is_ascii_lowercase() || byte.is_ascii_digit();
            all.push(sent);
        }
        for (place, value) in spoilt("5", byte) {
            let mut sent = request(
                &format!("{byte:#04x} {place} in a length"),
                host,
                &[(":method", b"POST")],
                &[(b"content-length", &value)],
            );
            sent.body = Some(b"hello".to_vec());
            all.push(sent);
        }
    }
    all
}

/// Name and value.
type Field<'a> = (&'a str, &'a str);
/// Whether it must arrive, its name, what is other than in a plain one, more fields, a body.
type Row<'a> = (
    bool,
    &'a str,
    &'a [Field<'a>],
    &'a [Field<'a>],
    Option<&'a str>,
);

/// Messages that contradict themselves, and such as are right.
fn named(host: &str) -> Vec<Sent> {
    let h = host;
    let upper = host.to_ascii_uppercase();
    let with_port = format!("{host}:80");
    let mut all = Vec::new();
    let mut add = |good: bool, sent: Sent, body: Option<&str>| {
        all.push(Sent {
            good,
            body: body.map(|body| body.as_bytes().to_vec()),
            ..sent
        });
    };
    let post: &[Field<'_>] = &[(":method", "POST")];
    let rows: &[Row<'_>] = &[
        (true, "plain", &[], &[], None),
        (true, "the same host", &[], &[("host", h)], None),
        (
            true,
            "the same host in capitals",
            &[],
            &[("host", &*upper)],
            None,
        ),
        (false, "another host", &[], &[("host", "smuggled")], None),
        (
            false,
            "host with a port",
            &[],
            &[("host", &*with_port)],
            None,
        ),
        (false, "host twice", &[], &[("host", h), ("host", h)], None),
        (false, "two authorities", &[], &[(":authority", h)], None),
        (false, "two paths", &[], &[(":path", "/smug")], None),
        (false, "two methods", &[], &[(":method", "POST")], None),
        (
            false,
            "a path after fields",
            &[],
            &[("a", ""), (":path", "/smug")],
            None,
        ),
        (
            false,
            "an unknown pseudo-field",
            &[],
            &[(":smug", "1")],
            None,
        ),
        (false, ":status", &[], &[(":status", "200")], None),
        (false, ":protocol", &[], &[(":protocol", "websocket")], None),
        (false, "star of get", &[(":path", "*")], &[], None),
        (
            true,
            "star of options",
            &[(":method", "OPTIONS"), (":path", "*")],
            &[],
            None,
        ),
        (false, "no path", &[(":path", "")], &[], None),
        (
            false,
            "a path without a slash",
            &[(":path", "smug")],
            &[],
            None,
        ),
        (
            false,
            "an absolute path",
            &[(":path", "http://smuggled/smug")],
            &[],
            None,
        ),
        (
            false,
            "a path with a version",
            &[(":path", "/smug HTTP/1.1\r\nx: y")],
            &[],
            None,
        ),
        (
            false,
            "a method with a line",
            &[(":method", "GET /smug HTTP/1.1\r\nhost: a\r\n\r\nGET")],
            &[],
            None,
        ),
        (
            false,
            "a lower-case method",
            &[(":method", "get")],
            &[],
            None,
        ),
        (false, "TRACE", &[(":method", "TRACE")], &[], None),
        (false, "scheme ftp", &[(":scheme", "ftp")], &[], None),
        (
            true,
            "scheme in capitals",
            &[(":scheme", "HTTP")],
            &[],
            None,
        ),
        (
            false,
            "user information",
            &[(":authority", "good@host")],
            &[],
            None,
        ),
        (false, "a comma", &[(":authority", "a,")], &[], None),
        (
            true,
            "a length",
            post,
            &[("content-length", "5")],
            Some("hello"),
        ),
        (true, "no length", post, &[], Some("hello")),
        (true, "no content", post, &[], None),
        (
            true,
            "a length of 0",
            post,
            &[("content-length", "0")],
            None,
        ),
        (
            false,
            "a length too short",
            post,
            &[("content-length", "4")],
            Some("hello"),
        ),
        (
            false,
            "a length too long",
            post,
            &[("content-length", "6")],
            Some("hello"),
        ),
        (
            false,
            "a length and no content",
            post,
            &[("content-length", "5")],
            None,
        ),
        (
            false,
            "a length twice",
            post,
            &[("content-length", "5"), ("content-length", "5")],
            Some("hello"),
        ),
        (
            false,
            "two lengths",
            post,
            &[("content-length", "5"), ("content-length", "0")],
            Some("hello"),
        ),
        (
            false,
            "a list of lengths",
            post,
            &[("content-length", "5, 5")],
            Some("hello"),
        ),
        (
            false,
            "an empty length",
            post,
            &[("content-length", "")],
            Some("hello"),
        ),
        (
            false,
            "a coding",
            post,
            &[("transfer-encoding", "chunked")],
            Some("0\r\n\r\nGET /smug HTTP/1.1\r\n\r\n"),
        ),
        (
            true,
            "content like chunks",
            post,
            &[],
            Some("0\r\n\r\nGET /smug HTTP/1.1\r\nhost: a\r\n\r\n"),
        ),
        (true, "te: trailers", &[], &[("te", "trailers")], None),
        (false, "te: chunked", &[], &[("te", "chunked")], None),
        (false, "connection", &[], &[("connection", "x-a")], None),
        (false, "keep-alive", &[], &[("keep-alive", "5")], None),
        (
            false,
            "proxy-connection",
            &[],
            &[("proxy-connection", "close")],
            None,
        ),
        (false, "upgrade", &[], &[("upgrade", "h2c")], None),
        (false, "expect", &[], &[("expect", "smug")], None),
        (false, "a name in capitals", &[], &[("X-A", "1")], None),
        (false, "an empty name", &[], &[("", "1")], None),
        (
            false,
            "a name with a line",
            &[],
            &[("x-a: 1\r\ntransfer-encoding", "chunked")],
            None,
        ),
        (
            true,
            "cookies",
            &[],
            &[
                ("cookie", "a=1"),
                ("x-a", "1"),
                ("cookie", "b=2; c=3"),
                ("cookie", "d=4"),
            ],
            None,
        ),
        (
            true,
            "a field twice",
            &[],
            &[("x-a", "1"), ("x-a", "2")],
            None,
        ),
        (
            false,
            "twin of a length",
            post,
            &[("content_length", "0")],
            Some("hello"),
        ),
        (
            false,
            "twin of a coding",
            post,
            &[("transfer_encoding", "chunked")],
            Some("hello"),
        ),
        (
            false,
            "twin of an identity",
            &[],
            &[("x_forwarded_for", "::1")],
            None,
        ),
        (true, "another underscore", &[], &[("user_id", "1")], None),
        (
            true,
            "a path as it came",
            &[(":path", "//a/../b%2f%00?c=//d")],
            &[],
            None,
        ),
    ];
    for (good, name, change, more, body) in rows {
        let change = change.iter().map(|(name, value)| (*name, value.as_bytes()));
        let more = more
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let (change, more): (Vec<_>, Vec<_>) = (change.collect(), more.collect());
        add(*good, request(name, host, &change, &more), *body);
    }
    all
}

async fn to_http1(
    stage: &Stage,
    lanes: &[Lane],
    origins: &[Capture],
    bytes: &[u8],
) -> Result<Finding> {
    let cost = stage.cost()?;
    let tables: Vec<Vec<Sent>> = lanes
        .iter()
        .map(|lane| [named(&lane.host), bytes_in_places(&lane.host, bytes)].concat())
        .collect();
    let count = tables.first().map_or(0, Vec::len);
    let (next, fragments) = (Cell::new(0), Cell::new(0));
    let passed = Cell::new(0);
    let tally = RefCell::new(Tally::of(count));
    let work = lanes
        .iter()
        .zip(origins)
        .zip(&tables)
        .map(|((lane, origin), table)| {
            let (next, tally, fragments, passed) = (&next, &tally, &fragments, &passed);
            async move {
                let mut clients = [
                    Client::new(lane, Door::Outbound),
                    Client::new(lane, Door::Inbound),
                ];
                while next.get() < 2 * count {
                    let number = next.replace(next.get() + 1);
                    let (sent, client) = (&table[number / 2], &mut clients[number % 2]);
                    origin.forget(PATIENCE).await.context(&sent.name)?;
                    let status = client.ask(sent).await?;
                    let arrived = origin.connections();
                    let verdict = judge(sent, status, &arrived);
                    passed.set(passed.get() + usize::from(status == 200));
                    // h2 cuts them off before anybody can see that they were there.
                    let is_fragment = sent.field(":path").is_some_and(|path| path.contains(&b'#'));
                    if is_fragment && status == 200 {
                        fragments.set(fragments.get() + 1);
                        continue;
                    }
                    let wrongly = verdict.as_ref().is_err_and(|(wrongly, _)| *wrongly);
                    let verdict = verdict.map_err(|(_, why)| {
                        let fields = sent
                            .fields
                            .iter()
                            .map(|(name, value)| format!("{}: {}", shown(name), shown(value)));
                        let fields = fields.collect::<Vec<_>>().join(", ");
                        let upstream = arrived
                            .iter()
                            .map(|c| shown(&c.bytes))
                            .collect::<Vec<_>>()
                            .join(", ");
                        format!(
                            "{}: {why}, status {status}\n  sent {fields}\n  upstream {upstream}",
                            client.door.name()
                        )
                    });
                    tally.borrow_mut().add(&sent.name, wrongly, verdict);
                }
                Ok(())
            }
        });
    try_join_all(work).await?;
    let cost = format!(
        "{} passed, {} fragments cut by h2; {}",
        passed.get(),
        fragments.get(),
        cost.text()?
    );
    let finding = tally.borrow().finding(&cost);
    Ok(finding)
}

/// A client of HTTP/2, with a new connection when one has ended.
struct Client<'a> {
    lane: &'a Lane,
    door: Door,
    peer: Option<(Peer, u32)>,
}

impl<'a> Client<'a> {
    const fn new(lane: &'a Lane, door: Door) -> Self {
        Self {
            lane,
            door,
            peer: None,
        }
    }

    /// The status; 0 if the stream or the connection ended without one.
    async fn ask(&mut self, sent: &Sent) -> Result<u16> {
        let (mut peer, stream) = match self.peer.take() {
            Some((peer, stream)) if stream < 2 * REQUESTS => (peer, stream),
            _ => {
                let mut peer =
                    Peer::silent(connect(self.lane.door(self.door)).await?).manners(POLITE);
                peer.begin(&[]).await.context("the preface")?;
                (peer, 1)
            }
        };
        let ends = if sent.body.is_none() { END_STREAM } else { 0 };
        let mut frames = vec![Frame::new(
            HEADERS,
            END_HEADERS | ends,
            stream,
            sent.block(),
        )];
        if let Some(body) = &sent.body {
            frames.push(Frame::new(DATA, END_STREAM, stream, body.clone()));
        }
        let answered = async {
            peer.send_all(&frames).await?;
            peer.whole(stream).await
        };
        match answered.await {
            Ok(message) => {
                self.peer = Some((peer, stream + 2));
                Ok(message.status())
            }
            // The connection ended: after what was refused that is right.
            Err(error) if error.kind() != std::io::ErrorKind::TimedOut => Ok(0),
            Err(error) => Err(error).context(&sent.name),
        }
    }
}

/// What is wrong, in words, and whether something passed that must not.
fn judge(
    sent: &Sent,
    status: u16,
    arrived: &[Connection],
) -> std::result::Result<(), (bool, String)> {
    let wrongly = |why: String| Err((true, why));
    let mut requests = Vec::new();
    for connection in arrived {
        match connection.reading() {
            Ok(reading) => requests.extend(reading.messages),
            Err(violation) => return wrongly(violation.to_string()),
        }
    }
    let request = match &requests[..] {
        [] if status == 200 => return wrongly("answered, and nothing arrived".to_owned()),
        [] if sent.good => return Err((false, "did not arrive".to_owned())),
        [] => return Ok(()),
        [request] => request,
        _ => return wrongly(format!("{} requests arrived", requests.len())),
    };
    let lines = [":method", ":path"].map(|name| sent.field(name).unwrap_or_default());
    let line = [lines[0], b" ", lines[1], b" HTTP/1.1"].concat();
    if request.line.as_bytes() != line {
        return wrongly(format!("the line {:?}", request.line));
    }
    let host = sent.field(":authority").unwrap_or_default();
    if request.values("host") != [host] {
        return wrongly("another Host".to_owned());
    }
    let framings =
        request.values("content-length").len() + request.values("transfer-encoding").len();
    let body = sent.body.as_deref().unwrap_or_default();
    if request.body != body || framings > 1 {
        return wrongly(format!(
            "a body of {} bytes, framed {framings} times",
            request.body.len()
        ));
    }
    let ordinary = sent.ordinary();
    for (name, value) in &ordinary {
        let wanted = ordinary.iter().filter(|(n, _)| n == name).count();
        let values = request.values(name);
        if !values.contains(&&**value) || values.len() != wanted {
            return wrongly(format!("{name} {wanted} times as {} others", values.len()));
        }
    }
    let known: BTreeSet<&str> = ordinary.iter().map(|(name, _)| &**name).collect();
    // What the translation itself says.
    let own = [
        "host",
        "content-length",
        "transfer-encoding",
        "te",
        "connection",
        "trailer",
    ];
    let added = request.fields.iter().map(|f| f.name.to_ascii_lowercase());
    let added: Vec<String> = added
        .filter(|name| !known.contains(&**name) && !own.contains(&&**name))
        .collect();
    if !added.is_empty() {
        return wrongly(format!("{added:?} arrived too"));
    }
    match status {
        200 => Ok(()),
        _ => Err((false, "arrived, and was not answered with 200".to_owned())),
    }
}

/// For the mirror image: whether a message of HTTP/2 has come to its end.
pub(super) fn is_whole(message: &Message) -> bool {
    message.ended && message.reset.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(bytes: &str) -> Vec<Connection> {
        vec![Connection {
            bytes: bytes.as_bytes().to_vec(),
            ..Connection::default()
        }]
    }

    #[test]
    fn what_says_something_else_is_found() {
        let sent = request(
            "a",
            "h",
            &[],
            &[(b"x-a", b"1"), (b"cookie", b"a=1"), (b"cookie", b"b=2")],
        );
        let good = "GET /case HTTP/1.1\r\nhost: h\r\nx-a: 1\r\ncookie: a=1; b=2\r\n\r\n";
        assert_eq!(judge(&sent, 200, &arrived(good)), Ok(()));
        assert_eq!(judge(&sent, 400, &[]), Ok(()));
        assert!(judge(&sent, 400, &arrived(good)).is_err());
        assert!(judge(&sent, 200, &[]).is_err());
        for (what, other) in [
            ("/case", "/smug"),
            ("host: h", "host: i"),
            ("host: h\r\n", "host: h\r\nx-b: 1\r\n"),
            ("x-a: 1", "x-a: 2"),
            ("x-a: 1\r\n", "x-a: 1\r\nx-a: 1\r\n"),
            ("a=1; b=2", "a=1;b=2"),
            ("x-a: 1", "x-a: 1\r\ncontent-length: 0\r\ncontent-length: 0"),
            ("\r\n\r\n", "\n\r\n"),
        ] {
            let bad = good.replacen(what, other, 1);
            let (wrongly, _) = judge(&sent, 200, &arrived(&bad)).unwrap_err();
            assert!(wrongly, "{bad:?}");
        }
        let must = Sent { good: true, ..sent };
        assert!(judge(&must, 400, &[]).is_err());
    }

    #[test]
    fn there_are_enough_of_them() {
        assert!(named("h").len() >= 56);
        let bytes: Vec<u8> = (0..=255).collect();
        let all = bytes_in_places("h", &bytes);
        assert_eq!(all.len(), 256 * 27 - 30);
        let names: BTreeSet<_> = all.iter().map(|sent| &sent.name).collect();
        assert_eq!(names.len(), all.len());
    }
}
