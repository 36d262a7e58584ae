//! A TCP relay that keeps what it passes on: the wire as somebody in between would see it.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::accept;
use crate::error::Result;

/// Bytes kept of each direction of a connection; later ones are passed on only.
const KEPT: usize = 1 << 20;

/// One connection: what the client sent and what it got.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recording {
    pub(crate) sent: Vec<u8>,
    pub(crate) received: Vec<u8>,
}

type Recordings = Arc<Mutex<Vec<Recording>>>;

/// A running relay; ends when dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    recordings: Recordings,
    task: JoinHandle<()>,
}

impl Relay {
    /// Takes connections at `listen` and passes them on to `to`.
    pub(crate) async fn start(listen: SocketAddr, to: SocketAddr) -> Result<Self> {
        let listener = accept::bind(listen).await?;
        let recordings = Recordings::default();
        let task = tokio::spawn(serve(listener, to, recordings.clone()));
        Ok(Self { recordings, task })
    }

    /// All connections so far.
    pub(crate) fn recordings(&self) -> Vec<Recording> {
        self.recordings.lock().clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, to: SocketAddr, recordings: Recordings) {
    loop {
        let client = accept::next(&listener).await;
        let index = {
            let mut recordings = recordings.lock();
            recordings.push(Recording::default());
            recordings.len() - 1
        };
        // A server that is not there shows to the client as a closed connection.
        let Ok(server) = TcpStream::connect(to).await else {
            continue;
        };
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        let (up, down) = (recordings.clone(), recordings.clone());
        tokio::spawn(copy(client_read, server_write, move |bytes| {
            keep(&mut up.lock()[index].sent, bytes)
        }));
        tokio::spawn(copy(server_read, client_write, move |bytes| {
            keep(&mut down.lock()[index].received, bytes)
        }));
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = KEPT.saturating_sub(kept.len());
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

/// Passes on until the end, which it passes on too.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut keep: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        keep(&buffer[..n]);
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
    // The other direction may go on, or has ended already.
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::free_address;

    #[tokio::test]
    async fn both_directions_are_passed_on_and_kept() {
        let (outer, inner) = (free_address().unwrap(), free_address().unwrap());
        let server = accept::bind(inner).await.unwrap();
        let relay = Relay::start(outer, inner).await.unwrap();
        let mut client = TcpStream::connect(outer).await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut stream = accept::next(&server).await;
        let (mut question, mut answer) = (String::new(), String::new());
        stream.read_to_string(&mut question).await.unwrap();
        stream.write_all(b"answer").await.unwrap();
        drop(stream);
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
        let recordings = relay.recordings();
        assert_eq!(recordings.len(), 1);
        assert_eq!(
            (&recordings[0].sent[..], &recordings[0].received[..]),
            (&b"question"[..], &b"answer"[..])
        );
    }
}
