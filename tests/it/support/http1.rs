//! An HTTP/1 client that shows everything that is on the wire.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

/// A connection.
pub(crate) struct Http1 {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer, with names as they were written.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Reply {
    /// The value of a field, in whatever case it was written.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// `weft-reason`, or nothing.
    pub(crate) fn reason(&self) -> &str {
        self.header("weft-reason").unwrap_or_default()
    }

    /// Status and reason together, as tests compare them.
    pub(crate) fn outcome(&self) -> (u16, &str) {
        (self.status, self.reason())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Http1 {
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| format!("connect: {error}"))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), String> {
        let written = self.stream.write_all(bytes.as_ref()).await;
        written.map_err(|error| format!("write: {error}"))
    }

    /// Writes a request and reads its answer.
    pub(crate) async fn exchange(&mut self, request: impl AsRef<[u8]>) -> Result<Reply, String> {
        self.write(request).await?;
        self.reply().await
    }

    /// An answer with its body.
    pub(crate) async fn reply(&mut self) -> Result<Reply, String> {
        let reply = self.head().await?;
        self.body_of(reply).await
    }

    /// The head of an answer, also of an informational one.
    pub(crate) async fn head(&mut self) -> Result<Reply, String> {
        let head = self.until_empty_line().await?;
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default();
        let status = status
            .strip_prefix("HTTP/1.1 ")
            .or_else(|| status.strip_prefix("HTTP/1.0 "))
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(|| format!("no status line: {status:?}"))?;
        Ok(Reply {
            status,
            fields: lines.filter_map(field).collect(),
            ..Reply::default()
        })
    }

    async fn body_of(&mut self, mut reply: Reply) -> Result<Reply, String> {
        if matches!(reply.status, 100..=199 | 204 | 304) {
            return Ok(reply);
        }
        let chunked = reply
            .header("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        if chunked {
            self.chunks(&mut reply).await?;
        } else if let Some(length) = reply.header("content-length") {
            let length = length.parse().map_err(|_| format!("length {length:?}"))?;
            reply.body = self.take(length).await?;
        } else {
            while self.fill().await? {}
            reply.body = std::mem::take(&mut self.buffer);
        }
        Ok(reply)
    }

    async fn chunks(&mut self, reply: &mut Reply) -> Result<(), String> {
        loop {
            let line = self.line().await?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16)
                .map_err(|_| format!("chunk size {line:?}"))?;
            if size == 0 {
                break;
            }
            let chunk = self.take(size).await?;
            reply.body.extend(chunk);
            self.line().await?;
        }
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(());
            }
            reply.trailers.extend(field(&line));
        }
    }

    /// Whether the server closes without sending more.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && self.fill().await == Ok(false)
    }

    async fn until_empty_line(&mut self) -> Result<String, String> {
        loop {
            let end = self.buffer.windows(4).position(|w| w == b"\r\n\r\n");
            if let Some(end) = end {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return Ok(String::from_utf8_lossy(&head[..end]).into_owned());
            }
            self.need_more().await?;
        }
    }

    async fn line(&mut self) -> Result<String, String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.need_more().await?;
        }
    }

    /// Exactly so many bytes.
    pub(crate) async fn take(&mut self, length: usize) -> Result<Vec<u8>, String> {
        while self.buffer.len() < length {
            self.need_more().await?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    async fn need_more(&mut self) -> Result<(), String> {
        if self.fill().await? {
            return Ok(());
        }
        let seen = String::from_utf8_lossy(&self.buffer[..self.buffer.len().min(200)]);
        Err(format!("closed after {seen:?}"))
    }

    /// Reads some bytes; `false` at the end.
    async fn fill(&mut self) -> Result<bool, String> {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await;
        let read = read.map_err(|_| "no byte in time".to_owned())?;
        Ok(read.map_err(|error| format!("read: {error}"))? > 0)
    }
}

fn field(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    Some((name.to_owned(), value.trim().to_owned()))
}

/// A request on a connection of its own.
pub(crate) async fn send(address: SocketAddr, request: &str) -> Reply {
    try_send(address, request).await.unwrap()
}

/// As [`send`], with the failure.
pub(crate) async fn try_send(address: SocketAddr, request: &str) -> Result<Reply, String> {
    Http1::connect(address).await?.exchange(request).await
}

/// A GET on a connection of its own, with more fields (`"a: b\r\n"`).
pub(crate) async fn get_with(address: SocketAddr, host: &str, path: &str, more: &str) -> Reply {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}\r\n");
    send(address, &request).await
}

/// A GET on a connection of its own.
pub(crate) async fn get(address: SocketAddr, host: &str, path: &str) -> Reply {
    get_with(address, host, path, "").await
}

/// Requests on one keep-alive connection after the other, which heed `connection: close`,
/// until `stop`: how many, and what was not answered with 200.
pub(crate) async fn kept_alive(
    address: SocketAddr,
    request: &str,
    stop: Arc<AtomicBool>,
) -> (usize, Vec<String>) {
    let (mut sent, mut failures, mut client) = (0, Vec::new(), None);
    while !stop.load(Ordering::Relaxed) {
        sent += 1;
        let mut connection = match client.take() {
            Some(connection) => connection,
            None => Http1::connect(address).await.unwrap(),
        };
        match connection.exchange(request).await {
            Ok(reply) if reply.status == 200 => {
                if reply.header("connection") != Some("close") {
                    client = Some(connection);
                }
            }
            Ok(reply) => failures.push(format!("{:?}", reply.outcome())),
            Err(error) => failures.push(error),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (sent, failures)
}
