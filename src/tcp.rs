//! Opaque TCP: bytes both ways, each direction closed on its own. A connection without
//! traffic holds no buffer.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use prometheus::IntCounter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use crate::{error::Reason, telemetry::ConnectionMetrics};

/// A connection without a byte in this time is closed.
pub const IDLE: Option<Duration> = Some(Duration::from_secs(3600));

const FIRST_BUFFER: usize = 8 * 1024;
const FULL_BUFFER: usize = 64 * 1024;

/// How a copy ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Bytes from client to server.
    pub to_server: u64,
    /// Bytes from server to client.
    pub to_client: u64,
    /// Why it broke off; `None` when both sides closed.
    pub reason: Option<Reason>,
}

/// Copies both ways until both sides have closed, one fails, or nothing moves for `idle`.
/// Half-closed connections go on in the other direction.
pub async fn copy<A, B>(
    client: &mut A,
    server: &mut B,
    idle: Option<Duration>,
    metrics: Option<&ConnectionMetrics>,
) -> End
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Half::new(metrics.map(ConnectionMetrics::received));
    let mut down = Half::new(metrics.map(ConnectionMetrics::sent));
    let mut timer = idle.map(IdleTimer::new);
    let reason = poll_fn(|cx| {
        let before = (up.total, down.total);
        let to_server = up.poll(cx, client, server);
        let to_client = down.poll(cx, server, client);
        let moved = before != (up.total, down.total);
        match (to_server, to_client) {
            (Poll::Ready(Err(Failed::Read)), _) | (_, Poll::Ready(Err(Failed::Write))) => {
                Poll::Ready(Some(Reason::ClientClosed))
            }
            (Poll::Ready(Err(Failed::Write)), _) | (_, Poll::Ready(Err(Failed::Read))) => {
                Poll::Ready(Some(Reason::PeerReset))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(None),
            _ => match &mut timer {
                Some(timer) => match timer.poll_expired(cx, moved) {
                    true => Poll::Ready(Some(Reason::IdleTimeout)),
                    false => Poll::Pending,
                },
                None => Poll::Pending,
            },
        }
    })
    .await;
    End {
        to_server: up.total,
        to_client: down.total,
        reason,
    }
}

/// A timer that is only re-armed when it fires: activity costs one clock reading.
struct IdleTimer {
    idle: Duration,
    last: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl IdleTimer {
    fn new(idle: Duration) -> Self {
        let last = Instant::now();
        Self {
            idle,
            last,
            sleep: Box::pin(tokio::time::sleep_until(last + idle)),
        }
    }

    fn poll_expired(&mut self, cx: &mut Context<'_>, moved: bool) -> bool {
        if moved {
            self.last = Instant::now();
        }
        while self.sleep.as_mut().poll(cx).is_ready() {
            let due = self.last + self.idle;
            if due <= Instant::now() {
                return true;
            }
            self.sleep.as_mut().reset(due);
        }
        false
    }
}

enum Failed {
    Read,
    Write,
}

/// One direction.
struct Half<'a> {
    buffer: Vec<u8>,
    start: usize,
    size: usize,
    state: State,
    total: u64,
    counter: Option<&'a IntCounter>,
}

#[derive(PartialEq, Eq)]
enum State {
    Copying,
    Closing,
    Closed,
}

impl<'a> Half<'a> {
    fn new(counter: Option<&'a IntCounter>) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            size: FIRST_BUFFER,
            state: State::Copying,
            total: 0,
            counter,
        }
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match self.state {
                State::Closed => return Poll::Ready(Ok(())),
                State::Closing => {
                    // The peer may be gone already; what it has is what was written.
                    let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                    self.state = State::Closed;
                }
                State::Copying if self.start < self.buffer.len() => {
                    let rest = &self.buffer[self.start..];
                    let n = ready!(Pin::new(&mut *to).poll_write(cx, rest))
                        .map_err(|_| Failed::Write)?;
                    if n == 0 {
                        return Poll::Ready(Err(Failed::Write));
                    }
                    self.start += n;
                    self.total += n as u64;
                    if let Some(counter) = self.counter {
                        counter.inc_by(n as u64);
                    }
                }
                State::Copying => ready!(self.poll_fill(cx, from, to))?,
            }
        }
    }

    /// Reads into the empty buffer; gives it away while there is nothing to read.
    fn poll_fill<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        self.start = 0;
        self.buffer.clear();
        self.buffer.resize(self.size, 0);
        let mut read = ReadBuf::new(&mut self.buffer);
        let polled = Pin::new(from).poll_read(cx, &mut read);
        let n = read.filled().len();
        match polled {
            Poll::Pending => {
                self.buffer = Vec::new();
                if Pin::new(to)
                    .poll_flush(cx)
                    .map_err(|_| Failed::Write)?
                    .is_pending()
                {
                    return Poll::Pending;
                }
                Poll::Pending
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(Failed::Read)),
            Poll::Ready(Ok(())) => {
                self.buffer.truncate(n);
                if n == 0 {
                    self.buffer = Vec::new();
                    self.state = State::Closing;
                } else if n == self.size {
                    self.size = FULL_BUFFER;
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::{End, copy};
    use crate::error::Reason;

    #[tokio::test]
    async fn each_direction_closes_on_its_own() {
        let (mut client, mut client_side) = duplex(64);
        let (mut server, mut server_side) = duplex(64);
        let proxy =
            tokio::spawn(async move { copy(&mut client_side, &mut server_side, None, None).await });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        let answer = vec![7_u8; 200_000];
        let expected = answer.clone();
        let writer = tokio::spawn(async move {
            server.write_all(&answer).await.unwrap();
            server.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert!(got == expected);
        writer.await.unwrap();
        let end = proxy.await.unwrap();
        assert_eq!(
            end,
            End {
                to_server: 8,
                to_client: 200_000,
                reason: None
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it() {
        let (_client, mut client_side) = duplex(64);
        let (_server, mut server_side) = duplex(64);
        let idle = Some(Duration::from_secs(60));
        let end = copy(&mut client_side, &mut server_side, idle, None).await;
        assert_eq!(end.reason, Some(Reason::IdleTimeout));
    }
}
