//! An origin that keeps every byte of every connection, as [`strict`](crate::strict) will want
//! to judge it. It answers each request that is complete and strictly right, and closes a
//! connection at the first byte that is not.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{Log, Server, anywhere};
use crate::strict::{self, Message, Reader, Reading, Violation};

/// What is kept of one connection; it is closed when there is more.
const MOST: usize = 64 << 20;
/// Connections that are kept; the oldest is forgotten for a new one.
const MOST_CONNECTIONS: usize = 10_000;

/// What a connection has brought so far.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    /// Every byte, from the first one or the first after [`Capture::forget`].
    pub bytes: Vec<u8>,
    /// Whether there is no request in them that is not complete.
    pub whole: bool,
    /// Whether it has ended.
    pub ended: bool,
    /// Its place in the order of arrival, from 0.
    pub number: usize,
}

impl Connection {
    /// Read as requests.
    pub fn reading(&self) -> Result<Reading, Violation> {
        strict::requests(&self.bytes)
    }

    /// Whether these bytes are anywhere in it.
    pub fn contains(&self, bytes: impl AsRef<[u8]>) -> bool {
        let bytes = bytes.as_ref();
        self.bytes.windows(bytes.len().max(1)).any(|w| w == bytes)
    }
}

type Answer = Arc<dyn Fn(&Message) -> Vec<u8> + Send + Sync>;

/// Changes what is known of a connection, if it was not forgotten meanwhile.
fn change(log: &Log<Connection>, number: usize, change: impl FnOnce(&mut Connection)) {
    log.change(|connections| {
        if let Some(connection) = connections.iter_mut().find(|c| c.number == number) {
            change(connection);
        }
    });
}

/// The origin.
pub struct Capture {
    server: Server,
    log: Arc<Log<Connection>>,
}

impl Capture {
    /// Listens on a free port of 127.0.0.1 and answers every request with `200` and `ok`.
    pub async fn start() -> io::Result<Self> {
        Self::answering(ok).await
    }

    /// As [`start`](Self::start), with answers of one's own, which may be any bytes.
    pub async fn answering(
        answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Self::on(anywhere().await?, answer)
    }

    /// Serves a listener.
    pub fn on(
        listener: TcpListener,
        answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let log = Arc::new(Log::default());
        let answer: Answer = Arc::new(answer);
        let shared = log.clone();
        let server = Server::new(listener, move |number, stream| {
            let (log, answer) = (shared.clone(), answer.clone());
            log.change(|connections| {
                if connections.len() >= MOST_CONNECTIONS {
                    connections.remove(0);
                }
                connections.push(Connection {
                    number,
                    whole: true,
                    ..Connection::default()
                });
            });
            async move {
                // How it ends is in the log.
                let _ = serve(stream, number, &log, &answer).await;
                change(&log, number, |connection| connection.ended = true);
            }
        })?;
        Ok(Self { server, log })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What has arrived so far, connection by connection, in the order of their arrival.
    pub fn connections(&self) -> Vec<Connection> {
        self.log.seen()
    }

    /// Forgets what has arrived, once no connection is in the middle of a request; connections
    /// that live on begin anew. An error if one stays in the middle: whoever sent half a request
    /// must end that connection.
    pub async fn forget(&self, patience: Duration) -> io::Result<()> {
        let is_between = |all: &[Connection]| all.iter().all(|one| one.whole || one.ended);
        self.until("the end of a request", patience, is_between)
            .await?;
        self.log.change(|connections| {
            connections.retain(|connection| !connection.ended);
            for connection in connections {
                connection.bytes.clear();
            }
        });
        Ok(())
    }

    /// Waits until `is_wanted` says so of what has arrived; then returns it.
    pub async fn until(
        &self,
        what: &str,
        patience: Duration,
        is_wanted: impl Fn(&[Connection]) -> bool,
    ) -> io::Result<Vec<Connection>> {
        self.log.until(what, patience, is_wanted).await
    }
}

/// `200` with `ok`, and without a body for HEAD.
pub fn ok(request: &Message) -> Vec<u8> {
    let body = match request.method() {
        "HEAD" => "",
        _ => "ok",
    };
    format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{body}").into_bytes()
}

async fn serve(
    mut stream: TcpStream,
    number: usize,
    log: &Log<Connection>,
    answer: &Answer,
) -> io::Result<()> {
    let mut reader = Reader::requests();
    let mut buffer = vec![0; 64 << 10];
    let (mut kept, mut told_to_continue) = (0, None);
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        let bytes = &buffer[..read];
        kept += read;
        let pushed = reader.push(bytes);
        change(log, number, |connection| {
            connection.bytes.extend(bytes);
            connection.whole = reader.is_at_border();
        });
        while let Some(request) = reader.take() {
            stream.write_all(&answer(&request)).await?;
        }
        if pushed.is_err() || kept > MOST {
            return stream.shutdown().await;
        }
        if let Some(request) = reader.current()
            && request.header("expect").is_some()
            && told_to_continue != Some(request.at)
        {
            told_to_continue = Some(request.at);
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PATIENCE;
    use crate::raw1::{Client, End, Slicing};

    #[tokio::test]
    async fn every_byte_is_kept() {
        let origin = Capture::start().await.unwrap();
        let mut client = Client::connect(origin.address()).await.unwrap();
        let request =
            "POST /x HTTP/1.1\r\nHost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n";
        client.send(request).await.unwrap();
        assert_eq!(client.next().await.unwrap().status(), 100);
        client
            .write_sliced("abc", Slicing::Pieces(1))
            .await
            .unwrap();
        assert_eq!(client.answer().await.unwrap().text(), "ok");
        let head = "HEAD /y HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(client.exchange(head).await.unwrap().text(), "");
        let connections = origin.connections();
        assert_eq!(
            connections[0].bytes,
            format!("{request}abc{head}").as_bytes()
        );
        assert_eq!(connections[0].reading().unwrap().messages.len(), 2);
        assert!(connections[0].contains("HEAD /y") && !connections[0].contains("HEAD /z"));
        drop(client);
        let ended = |connections: &[Connection]| connections[0].ended;
        origin.until("the end", PATIENCE, ended).await.unwrap();
        origin.forget(PATIENCE).await.unwrap();
        assert!(origin.connections().is_empty());
    }

    #[tokio::test]
    async fn what_is_wrong_is_kept_and_not_answered() {
        let origin = Capture::start().await.unwrap();
        let mut client = Client::connect(origin.address()).await.unwrap();
        client
            .write("GET / HTTP/1.1\nhost: a\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(client.ended().await.unwrap(), End::Closed);
        assert!(client.received().is_empty());
        let seen = origin.connections();
        assert!(seen[0].reading().is_err() && seen[0].contains("HTTP/1.1\nhost"));
    }

    #[tokio::test]
    async fn forgetting_waits_for_the_end_of_a_request() {
        let origin = Capture::start().await.unwrap();
        let mut client = Client::connect(origin.address()).await.unwrap();
        let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        client.exchange(request).await.unwrap();
        origin.forget(PATIENCE).await.unwrap();
        client.exchange(request).await.unwrap();
        assert_eq!(origin.connections()[0].bytes, request.as_bytes());
        client.write("GET /half").await.unwrap();
        let half = |all: &[Connection]| all[0].contains("/half");
        origin
            .until("half a request", PATIENCE, half)
            .await
            .unwrap();
        let brief = Duration::from_millis(20);
        origin.forget(brief).await.unwrap_err();
        client.send(" HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        origin.forget(PATIENCE).await.unwrap();
        assert!(origin.connections()[0].bytes.is_empty());
    }

    #[tokio::test]
    async fn waiting_has_an_end() {
        let origin = Capture::start().await.unwrap();
        let brief = Duration::from_millis(20);
        let error = origin.until("nobody", brief, |all| !all.is_empty()).await;
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
