//! The byte streams that the proxy serves: plain TCP, TLS, or the inside of an HTTP tunnel,
//! each with the bytes that detection has already read.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

/// What the kernel keeps for a peer beyond what it has sent and waits to hear of, in bytes. On
/// loopback it would be megabytes, and only when a third of them is gone it says that there is
/// room: a peer that reads slowly would look like one that does not read.
const UNSENT: u32 = 128 * 1024;

/// One byte stream.
#[derive(Debug)]
pub struct Io {
    prefix: Bytes,
    stream: Stream,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Tunnel(Box<TokioIo<Upgraded>>),
}

impl From<TcpStream> for Io {
    fn from(stream: TcpStream) -> Self {
        Self {
            prefix: Bytes::new(),
            stream: Stream::Tcp(stream),
        }
    }
}

impl From<TlsStream<TcpStream>> for Io {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        Self {
            prefix: Bytes::new(),
            stream: Stream::Tls(Box::new(stream)),
        }
    }
}

impl From<Upgraded> for Io {
    fn from(upgraded: Upgraded) -> Self {
        Self {
            prefix: Bytes::new(),
            stream: Stream::Tunnel(Box::new(TokioIo::new(upgraded))),
        }
    }
}

/// Sets what every connection needs, ours and those of clients. It fails only on one that is gone.
/// What arrives is left to the kernel: it begins with little and gives more to who reads on.
pub fn prepare(tcp: &TcpStream) {
    // Nagle's algorithm and delayed acknowledgements would add 40 ms to small messages.
    let _ = tcp.set_nodelay(true);
    let _ = SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT);
}

impl Io {
    /// Puts bytes back that were read from the stream; the next read gives them first.
    #[must_use]
    pub fn rewind(mut self, bytes: Bytes) -> Self {
        debug_assert!(self.prefix.is_empty(), "rewound twice");
        self.prefix = bytes;
        self
    }

    /// Whether the peer has neither closed the connection nor said anything that was not read,
    /// as far as this machine knows by now: not what tokio has been told, but what the kernel
    /// has. What waits to be read may be the goodbye of TLS. True for what cannot be looked at.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let tcp = match &self.stream {
            Stream::Tcp(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref().0,
            Stream::Tunnel(_) => return true,
        };
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(
            recv(tcp, &mut [0_u8; 1], flags),
            Err(Errno::AGAIN | Errno::INTR)
        )
    }

    /// Appends what arrives next to `buf`; 0 is the end of the stream. Cancel safe.
    pub async fn read_more(&mut self, buf: &mut Vec<u8>) -> io::Result<usize> {
        let mut chunk = [0_u8; 512];
        let n = self.read(&mut chunk).await?;
        buf.extend_from_slice(&chunk[..n]);
        Ok(n)
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            match &mut self.stream {
                Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
                Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
                Stream::Tunnel(stream) => Pin::new(stream).poll_read(cx, buf),
            }
        } else {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..n]);
            self.prefix.advance(n);
            Poll::Ready(Ok(()))
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tunnel(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tunnel(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
            Stream::Tunnel(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
        time::timeout,
    };

    use super::Io;

    #[tokio::test]
    async fn what_waits_to_be_read_is_noticed_before_it_is_read() {
        for goodbye in [&b"x"[..], b""] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (here, there) = tokio::join!(TcpStream::connect(address), listener.accept());
            let (io, mut there) = (Io::from(here.unwrap()), there.unwrap().0);
            assert!(io.is_quiet());
            there.write_all(goodbye).await.unwrap();
            if goodbye.is_empty() {
                drop(there);
            }
            let noticed = async {
                while io.is_quiet() {
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(10), noticed).await.unwrap();
        }
    }
}
