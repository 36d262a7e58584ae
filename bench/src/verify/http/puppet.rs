//! An origin that does with each request what it is told, and keeps what it hears, also what
//! comes after a request that asked for something other than HTTP.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use weft_kit::strict::{Message, Reader};

use crate::error::{Context as _, Result};

/// What is kept of one connection.
const MOST: usize = 1 << 20;

/// What to do with a request.
#[derive(Debug, Clone)]
pub(super) enum Act {
    /// Write this and go on reading requests.
    Answer(Vec<u8>),
    /// Write this and close.
    Last(Vec<u8>),
    /// Write this; what comes then is no HTTP and is sent back.
    Switch(Vec<u8>),
    /// Write this, if anything, and only listen.
    Stay(Vec<u8>),
}

/// What one connection has brought.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard {
    /// The requests that were complete.
    pub(super) requests: Vec<Message>,
    /// What came after one that was answered by other than an answer.
    pub(super) after: Vec<u8>,
    /// Bytes that are no strict request.
    pub(super) violation: Option<String>,
    pub(super) ended: bool,
}

impl Heard {
    pub(super) fn targets(&self) -> Vec<&str> {
        self.requests.iter().map(Message::target).collect()
    }
}

type Log = Arc<Mutex<BTreeMap<usize, Heard>>>;
type Play = Arc<dyn Fn(&Message) -> Act + Send + Sync>;

#[derive(Debug)]
pub(super) struct Puppet {
    address: SocketAddr,
    log: Log,
    task: AbortHandle,
}

impl Drop for Puppet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Puppet {
    /// Listens on a free port of 127.0.0.1.
    pub(super) async fn start(
        play: impl Fn(&Message) -> Act + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = listener.context("listen")?;
        let address = listener.local_addr().context("listen")?;
        let (log, play): (Log, Play) = (Log::default(), Arc::new(play));
        let shared = log.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                while connections.try_join_next().is_some() {}
                // Late answers are not wrong ones.
                let _ = stream.set_nodelay(true);
                let (log, play) = (shared.clone(), play.clone());
                connections.spawn(async move {
                    // How it ends is in the log.
                    let _ = serve(stream, number, &log, &play).await;
                    log.lock().entry(number).or_default().ended = true;
                });
            }
        });
        Ok(Self {
            address,
            log,
            task: task.abort_handle(),
        })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was heard, by connection in the order of arrival.
    pub(super) fn heard(&self) -> Vec<Heard> {
        self.log.lock().values().cloned().collect()
    }

    /// The connection on which a request to this target came, if there is one.
    pub(super) fn heard_of(&self, target: &str) -> Option<Heard> {
        let log = self.log.lock();
        let mut all = log.values();
        all.find(|heard| heard.targets().contains(&target)).cloned()
    }

    /// Forgets connections that have ended.
    pub(super) fn forget(&self) {
        self.log.lock().retain(|_, heard| !heard.ended);
    }
}

async fn serve(
    mut stream: TcpStream,
    number: usize,
    log: &Log,
    play: &Play,
) -> std::io::Result<()> {
    let mut reader = Reader::requests();
    let mut buffer = vec![0; 16 << 10];
    log.lock().insert(number, Heard::default());
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        // Byte by byte: what comes after a request belongs to it only if it is no request.
        for at in 0..read {
            if let Err(violation) = reader.push(&buffer[at..=at]) {
                let mut log = log.lock();
                let heard = log.entry(number).or_default();
                heard.violation = Some(violation.to_string());
                return Ok(());
            }
            let Some(request) = reader.take() else {
                continue;
            };
            let act = play(&request);
            log.lock().entry(number).or_default().requests.push(request);
            match act {
                Act::Answer(bytes) => stream.write_all(&bytes).await?,
                Act::Last(bytes) => {
                    stream.write_all(&bytes).await?;
                    return stream.shutdown().await;
                }
                Act::Switch(bytes) => {
                    stream.write_all(&bytes).await?;
                    return opaque(&mut stream, number, log, &buffer[at + 1..read], Echo::Yes)
                        .await;
                }
                Act::Stay(bytes) => {
                    stream.write_all(&bytes).await?;
                    return opaque(&mut stream, number, log, &buffer[at + 1..read], Echo::No).await;
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Echo {
    Yes,
    No,
}

async fn opaque(
    stream: &mut TcpStream,
    number: usize,
    log: &Log,
    first: &[u8],
    echo: Echo,
) -> std::io::Result<()> {
    let mut bytes = first.to_vec();
    loop {
        let heard = |log: &Log| {
            let mut log = log.lock();
            let after = &mut log.entry(number).or_default().after;
            let room = MOST - after.len().min(MOST);
            after.extend(&bytes[..bytes.len().min(room)]);
        };
        heard(log);
        if echo == Echo::Yes {
            stream.write_all(&bytes).await?;
        }
        bytes.clear();
        if stream.read_buf(&mut bytes).await? == 0 {
            return stream.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_kit::raw1::Client;

    use super::*;

    #[tokio::test]
    async fn it_answers_switches_stays_and_leaves() {
        let puppet = Puppet::start(|request| match request.target() {
            "/switch" => Act::Switch(b"HTTP/1.1 101 \r\n\r\n".to_vec()),
            "/stay" => Act::Stay(Vec::new()),
            "/last" => Act::Last(b"HTTP/1.1 204 \r\n\r\n".to_vec()),
            _ => Act::Answer(b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n".to_vec()),
        })
        .await
        .unwrap();
        let request = |target| format!("GET {target} HTTP/1.1\r\nhost: a\r\nupgrade: x\r\n\r\n");
        let mut client = Client::connect(puppet.address()).await.unwrap();
        let answer = client.exchange(request("/")).await.unwrap();
        assert_eq!(answer.status(), 200);
        client.send(request("/switch") + "early").await.unwrap();
        assert_eq!(client.answer().await.unwrap().status(), 101);
        assert_eq!(client.opaque().await.unwrap(), b"early");
        let heard = puppet.heard_of("/switch").unwrap();
        assert_eq!(heard.targets(), ["/", "/switch"]);
        assert_eq!(heard.after, b"early");
        let mut client = Client::connect(puppet.address()).await.unwrap();
        let answer = client.exchange(request("/last")).await.unwrap();
        assert_eq!(answer.status(), 204);
        client.ended().await.unwrap();
        let mut client = Client::connect(puppet.address()).await.unwrap();
        client.write("GET / HTTP/1.1\nhost: a\r\n").await.unwrap();
        client.ended().await.unwrap();
        let broken = |heard: &Heard| heard.violation.is_some();
        assert!(puppet.heard().iter().any(broken));
        puppet.forget();
        assert!(puppet.heard().len() < 3);
    }
}
