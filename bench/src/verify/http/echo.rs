//! Clients that send bodies which nobody else sends, in pieces of any size, to an application
//! that echoes them, and compare what comes back: the nonce, the length, the SHA-256, the
//! trailer. Bodies are made and digested as they pass; none is held.

use std::future::poll_fn;
use std::sync::LazyLock;

use aws_lc_rs::digest::{Context as Hash, SHA256};
use bytes::{Buf as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::lanes::Dice;
use crate::error::{Context as _, Error, Result};
use crate::load::response;

/// The trailer of bodies that have one: their digest.
const TRAILER: &str = "x-sum";
/// A head or a chunk line of an answer that is longer is an error.
const LONGEST_LINE: usize = 16 << 10;

/// One body to send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    /// Of nobody else; the body follows from it.
    pub(super) nonce: u64,
    pub(super) length: u64,
    /// Chunked, rather than with its length (HTTP/2: without `content-length`).
    pub(super) chunked: bool,
    /// Chunked bodies only.
    pub(super) trailer: bool,
    /// The longest piece: chunk or DATA frame.
    pub(super) piece: usize,
    /// HTTP/1: what is written at one time, as long as there is so much; 0: each piece.
    pub(super) burst: usize,
}

impl Job {
    fn nonce(&self) -> String {
        format!("n{:016x}", self.nonce)
    }

    fn trailer(&self) -> bool {
        self.trailer && self.chunked
    }
}

/// A client with large windows. h2 ends a connection on which some hundred small DATA frames wait to
/// be read, more where the window is larger, and here bodies are cut small.
pub(super) fn roomy() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    builder
}

/// What bodies are cut from. Its length is prime: no power of two of bytes that gets lost or is
/// sent twice looks like what belongs there.
static RANDOM: LazyLock<Bytes> = LazyLock::new(|| {
    let mut dice = Dice::new(57);
    let words = std::iter::repeat_with(|| dice.below(256) as u8);
    words.take(1_048_573).collect()
});

/// The bytes of a body: random ones from a place that the nonce tells, the first of them replaced by
/// the nonce.
struct Pattern {
    nonce: Bytes,
    at: usize,
    left: u64,
    hash: Hash,
}

impl Pattern {
    fn new(job: &Job) -> Self {
        let mut dice = Dice::new(job.nonce.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self {
            nonce: Bytes::copy_from_slice(&job.nonce.to_le_bytes()),
            at: dice.below(RANDOM.len()),
            left: job.length,
            hash: Hash::new(&SHA256),
        }
    }

    /// The next bytes, at most `most`; none at the end.
    fn next(&mut self, most: usize) -> Bytes {
        let most = usize::try_from(self.left).unwrap_or(most).min(most);
        let end = self.at + most.min(RANDOM.len() - self.at);
        let mut bytes = RANDOM.slice(self.at..end);
        self.at = end % RANDOM.len();
        self.left -= bytes.len() as u64;
        if !self.nonce.is_empty() {
            let nonce = self.nonce.split_to(self.nonce.len().min(bytes.len()));
            bytes = [&nonce, &bytes[nonce.len()..]].concat().into();
        }
        self.hash.update(&bytes);
        bytes
    }

    fn digest(self) -> String {
        hex(self.hash)
    }
}

fn hex(hash: Hash) -> String {
    let digest = hash.finish();
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// What came back.
struct Echo {
    status: u16,
    reason: String,
    nonce: String,
    length: u64,
    digest: String,
    trailer: Option<String>,
}

impl Echo {
    fn judge(self, job: &Job, sent: &str) -> Result<()> {
        let wrong = |what: String| Err(Error::new(format!("{what} of {job:?}")));
        if self.status != 200 {
            return wrong(format!("status {} {}", self.status, self.reason));
        }
        if self.nonce != job.nonce() {
            return wrong(format!("the nonce {}", self.nonce));
        }
        if self.length != job.length {
            return wrong(format!("{} bytes", self.length));
        }
        if self.digest != sent {
            return wrong(format!("other bytes ({})", self.digest));
        }
        match (job.trailer(), self.trailer) {
            (true, Some(trailer)) if trailer == sent => Ok(()),
            (false, None) => Ok(()),
            (_, trailer) => wrong(format!("the trailer {trailer:?}")),
        }
    }
}

/// A connection of HTTP/1 that may be used again.
#[derive(Debug)]
pub(super) struct Http1 {
    stream: TcpStream,
    /// Read, not yet used.
    buffer: BytesMut,
}

impl Http1 {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
        }
    }

    /// The next drop ends the connection with RST.
    pub(super) fn reset(&self) {
        // It fails only on a connection that is gone already.
        let _ = self.stream.set_zero_linger();
    }

    /// Sends the body and compares what comes back; whether the connection may be used again.
    pub(super) async fn exchange(&mut self, host: &str, job: &Job) -> Result<bool> {
        let (reading, writing) = self.stream.split();
        let mut reader = Reader {
            stream: reading,
            buffer: &mut self.buffer,
        };
        // An answer that comes early must not be lost because writing fails.
        let (sent, echo) = tokio::join!(send(writing, host, job), reader.echo());
        let (echo, closes) = echo?;
        if echo.status != 200 {
            echo.judge(job, "")?;
            return Ok(false);
        }
        echo.judge(job, &sent?)?;
        Ok(!closes)
    }
}

/// Writes the request; the digest of its body.
async fn send(mut stream: WriteHalf<'_>, host: &str, job: &Job) -> Result<String> {
    let mut head = format!(
        "POST /echo HTTP/1.1\r\nhost: {host}\r\nx-nonce: {}\r\n",
        job.nonce()
    );
    head += &match (job.chunked, job.trailer()) {
        (false, _) => format!("content-length: {}\r\n\r\n", job.length),
        (true, false) => "transfer-encoding: chunked\r\n\r\n".to_owned(),
        (true, true) => format!(
            "transfer-encoding: chunked\r\nconnection: te\r\nte: trailers\r\ntrailer: {TRAILER}\r\n\r\n"
        ),
    };
    stream.write_all(head.as_bytes()).await.context("write")?;
    let mut pattern = Pattern::new(job);
    let mut dice = Dice::new(!job.nonce);
    let mut burst = Vec::new();
    loop {
        let piece = pattern.next(1 + dice.below(job.piece.max(1)));
        if piece.is_empty() {
            break;
        }
        if job.chunked {
            let extension = if dice.below(20) == 0 { ";a=\"b\"" } else { "" };
            burst.extend(format!("{:x}{extension}\r\n", piece.len()).as_bytes());
            burst.extend(&piece);
            burst.extend(b"\r\n");
        } else {
            burst.extend(&piece);
        }
        if burst.len() > job.burst {
            stream.write_all(&burst).await.context("write")?;
            burst.clear();
        }
    }
    stream.write_all(&burst).await.context("write")?;
    let digest = pattern.digest();
    if job.chunked {
        let trailer = if job.trailer() {
            format!("{TRAILER}: {digest}\r\n")
        } else {
            String::new()
        };
        let end = format!("0\r\n{trailer}\r\n");
        stream.write_all(end.as_bytes()).await.context("write")?;
    }
    Ok(digest)
}

/// Reads answers.
struct Reader<'a> {
    stream: ReadHalf<'a>,
    buffer: &'a mut BytesMut,
}

impl Reader<'_> {
    async fn fill(&mut self) -> Result<()> {
        self.buffer.reserve(LONGEST_LINE);
        match self.stream.read_buf(self.buffer).await.context("read")? {
            0 => Err(Error::new("the connection was closed in an answer")),
            _ => Ok(()),
        }
    }

    /// A line without its end.
    async fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.advance(end + 2);
                return Ok(line);
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(Error::new("a line of an answer is too long"));
            }
            self.fill().await?;
        }
    }

    /// Takes so many bytes into the hash.
    async fn take(&mut self, mut length: u64, hash: &mut Hash) -> Result<()> {
        while length > 0 {
            if self.buffer.is_empty() {
                self.fill().await?;
            }
            let here = usize::try_from(length)
                .unwrap_or(usize::MAX)
                .min(self.buffer.len());
            hash.update(&self.buffer[..here]);
            self.buffer.advance(here);
            length -= here as u64;
        }
        Ok(())
    }

    /// A whole answer, and whether the connection ends with it.
    async fn echo(&mut self) -> Result<(Echo, bool)> {
        let (mut echo, closes, length) = loop {
            if let Some(head) = response::parse(self.buffer).map_err(Error::new)? {
                let field = |name| head.header(name).unwrap_or_default().to_owned();
                let echo = Echo {
                    status: head.status,
                    reason: field("weft-reason"),
                    nonce: field("x-nonce"),
                    length: 0,
                    digest: String::new(),
                    trailer: None,
                };
                let found = (echo, head.closes(), head.body);
                let length = head.length;
                self.buffer.advance(length);
                break found;
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(Error::new("the head of an answer is too long"));
            }
            self.fill().await?;
        };
        let mut hash = Hash::new(&SHA256);
        if let Some(length) = length {
            echo.length = length as u64;
            self.take(echo.length, &mut hash).await?;
        } else {
            loop {
                let line = self.line().await?;
                let size = line.split(';').next().unwrap_or_default();
                let size = u64::from_str_radix(size, 16).context(format!("a chunk of {line:?}"))?;
                if size == 0 {
                    break;
                }
                echo.length += size;
                self.take(size, &mut hash).await?;
                if !self.line().await?.is_empty() {
                    return Err(Error::new("a chunk is longer than it says"));
                }
            }
            loop {
                let line = self.line().await?;
                if line.is_empty() {
                    break;
                }
                let trailer = line.split_once(':');
                if let Some((_, value)) = trailer.filter(|(name, _)| *name == TRAILER) {
                    echo.trailer = Some(value.trim().to_owned());
                }
            }
        }
        echo.digest = hex(hash);
        Ok((echo, closes))
    }
}

/// The same as a stream of HTTP/2; it is reset when this is dropped.
pub(super) async fn http2(sender: &mut SendRequest<Bytes>, host: &str, job: &Job) -> Result<()> {
    poll_fn(|cx| sender.poll_ready(cx))
        .await
        .context("connection")?;
    let mut request = Request::post(format!("http://{host}/echo")).header("x-nonce", job.nonce());
    if !job.chunked {
        request = request.header("content-length", job.length);
    }
    if job.trailer() {
        request = request.header("te", "trailers").header("trailer", TRAILER);
    }
    let request = request.body(()).context("request")?;
    let (answer, mut stream) = sender.send_request(request, false).context("send")?;
    let send = async {
        let mut pattern = Pattern::new(job);
        let mut dice = Dice::new(!job.nonce);
        loop {
            let mut piece = pattern.next(1 + dice.below(job.piece.max(1)));
            let last = pattern.left == 0;
            loop {
                stream.reserve_capacity(piece.len().max(1));
                // An empty frame needs no window.
                if !piece.is_empty() && stream.capacity() == 0 {
                    let capacity = poll_fn(|cx| stream.poll_capacity(cx)).await;
                    capacity.context("the stream has ended")?.context("send")?;
                    continue;
                }
                let now = piece.split_to(stream.capacity().min(piece.len()));
                let end = last && piece.is_empty() && !job.trailer();
                stream.send_data(now, end).context("send")?;
                if piece.is_empty() {
                    break;
                }
            }
            if last {
                break;
            }
        }
        let digest = pattern.digest();
        if job.trailer() {
            let value = HeaderValue::from_str(&digest).context("a digest")?;
            let trailers = HeaderMap::from_iter([(http::HeaderName::from_static(TRAILER), value)]);
            stream.send_trailers(trailers).context("send")?;
        }
        Ok::<_, Error>(digest)
    };
    let receive = async {
        let answer = answer.await.context("answer")?;
        let field = |name: &str| {
            let value = answer.headers().get(name);
            value.map_or_else(String::new, |value| {
                String::from_utf8_lossy(value.as_bytes()).into_owned()
            })
        };
        let mut echo = Echo {
            status: answer.status().as_u16(),
            reason: field("weft-reason"),
            nonce: field("x-nonce"),
            length: 0,
            digest: String::new(),
            trailer: None,
        };
        let mut body = answer.into_body();
        let mut hash = Hash::new(&SHA256);
        while let Some(data) = body.data().await {
            let data = data.context("body")?;
            echo.length += data.len() as u64;
            hash.update(&data);
            // It fails only when the stream is over, and then nothing is lost.
            let _ = body.flow_control().release_capacity(data.len());
        }
        let trailers = body.trailers().await.context("trailers")?;
        let trailer = trailers.as_ref().and_then(|all| all.get(TRAILER));
        echo.trailer = trailer.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        echo.digest = hex(hash);
        Ok::<_, Error>(echo)
    };
    let (sent, echo) = tokio::join!(send, receive);
    let echo = echo?;
    if echo.status != 200 {
        return echo.judge(job, "");
    }
    echo.judge(job, &sent?)
}

/// `from` to `to`, both included, so that every order of magnitude is as likely.
pub(super) fn log_uniform(dice: &mut Dice, from: u64, to: u64) -> u64 {
    let (low, high) = ((from + 1) as f64, (to + 2) as f64);
    let share = dice.below(1 << 30) as f64 / f64::from(1 << 30);
    let value = (low.ln() + share * (high.ln() - low.ln())).exp() as u64;
    (value.max(1) - 1).clamp(from, to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend;
    use crate::process::free_address;
    use crate::verify::world::until_answered;

    #[test]
    fn sizes_stay_in_their_range_and_reach_its_ends() {
        let mut dice = Dice::new(1);
        let drawn: Vec<u64> = (0..10_000).map(|_| log_uniform(&mut dice, 0, 9)).collect();
        assert!((0..=9).all(|n| drawn.contains(&n)));
        assert!(drawn.iter().all(|n| *n <= 9));
        assert_eq!(log_uniform(&mut dice, 7, 7), 7);
    }

    #[test]
    fn bodies_depend_on_the_nonce_and_not_on_pieces() {
        let digest = |nonce, piece| {
            let job = Job {
                nonce,
                length: 1001,
                chunked: false,
                trailer: false,
                piece,
                burst: 0,
            };
            let mut pattern = Pattern::new(&job);
            while !pattern.next(piece).is_empty() {}
            pattern.digest()
        };
        assert_ne!(digest(1, 4), digest(2, 4));
        assert_eq!(digest(1, 3), digest(1, 2000));
    }

    #[test]
    fn every_difference_is_found() {
        let job = Job {
            nonce: 7,
            length: 2,
            chunked: true,
            trailer: true,
            piece: 1,
            burst: 0,
        };
        let echo = |change: fn(&mut Echo)| {
            let mut echo = Echo {
                status: 200,
                reason: String::new(),
                nonce: job.nonce(),
                length: 2,
                digest: "d".to_owned(),
                trailer: Some("d".to_owned()),
            };
            change(&mut echo);
            echo.judge(&job, "d")
        };
        echo(|_| {}).unwrap();
        for change in [
            (|echo| echo.status = 503) as fn(&mut Echo),
            |echo| echo.nonce.push('0'),
            |echo| echo.length = 1,
            |echo| echo.digest = "e".to_owned(),
            |echo| echo.trailer = None,
            |echo| echo.trailer = Some("e".to_owned()),
        ] {
            echo(change).unwrap_err();
        }
    }

    #[tokio::test]
    async fn clients_and_application_agree() {
        let at = free_address().unwrap();
        let _app = tokio::spawn(backend::run(backend::Options {
            listen: at,
            tcp: None,
            name: "v1".to_owned(),
        }));
        until_answered(at, "echo", |reply| reply.status == 200)
            .await
            .unwrap();
        let mut connection = Http1::new(TcpStream::connect(at).await.unwrap());
        let stream = TcpStream::connect(at).await.unwrap();
        let (mut sender, driver) = h2::client::handshake(stream).await.unwrap();
        let _driver = tokio::spawn(driver);
        for (nonce, length) in (0..).zip([0, 1, 5, 1000, 300_000]) {
            for (chunked, trailer) in [(false, false), (true, false), (true, true)] {
                let job = Job {
                    nonce,
                    length,
                    chunked,
                    trailer,
                    piece: 1 + length as usize / 3,
                    burst: [0, 1 << 10][trailer as usize],
                };
                assert!(connection.exchange("echo", &job).await.unwrap(), "{job:?}");
                http2(&mut sender, "echo", &job).await.unwrap();
            }
        }
    }
}
