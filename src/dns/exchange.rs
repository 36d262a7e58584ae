//! One query to one resolver: UDP from a fresh socket, TCP if the answer does not fit or the
//! client came over TCP.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout},
};

use super::{Transport, wire};

/// The smallest buffer for a UDP answer, whatever size the client takes.
const MIN_BUFFER: usize = 4096;
/// Datagrams of the resolver's address that are no answer to our query, before it is given up.
const MAX_STRAY: usize = 32;

/// Why a resolver did not answer a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No answer in time.
    Timeout,
    /// Nothing listens there, or there is no route, or no socket could be had.
    Unreachable,
    /// The answer was none that can be read.
    Malformed,
    /// SERVFAIL, REFUSED or NOTIMP.
    ErrorAnswer,
    /// The answer was truncated and could not be had over TCP.
    Truncated,
    /// There is no resolver to ask.
    NoResolver,
    /// Too many queries wait for the resolvers.
    Overload,
}

impl Failure {
    /// The metric label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Malformed => "malformed",
            Self::ErrorAnswer => "error_answer",
            Self::Truncated => "truncated",
            Self::NoResolver => "no_resolver",
            Self::Overload => "overload",
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Self::Malformed,
            _ => Self::Unreachable,
        }
    }
}

/// A request as it is sent.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The message, with an ID that nobody can guess.
    pub packet: &'a [u8],
    /// How it is sent.
    pub transport: Transport,
    /// The longest answer over UDP that it allows.
    pub udp_limit: usize,
}

/// Asks one resolver. The answer may be truncated only if `transport` is UDP and it could not
/// be had over TCP. Cancel safe.
///
/// # Errors
/// When there is no answer to this request within `time`.
pub async fn ask(
    resolver: SocketAddr,
    request: Request<'_>,
    time: Duration,
) -> Result<Vec<u8>, Failure> {
    if request.transport == Transport::Tcp {
        return over_tcp(resolver, request.packet, time).await;
    }
    let started = Instant::now();
    let answer = timeout(time, over_udp(resolver, request)).await;
    let answer = answer.unwrap_or(Err(Failure::Timeout))?;
    if !wire::is_truncated(&answer) {
        return Ok(answer);
    }
    let left = time.saturating_sub(started.elapsed());
    let whole = over_tcp(resolver, request.packet, left).await;
    whole.or_else(|error| {
        tracing::debug!(%resolver, ?error, "a truncated answer cannot be had over TCP");
        Ok(answer)
    })
}

async fn over_udp(resolver: SocketAddr, request: Request<'_>) -> Result<Vec<u8>, Failure> {
    // The kernel picks a random port, and a connected socket gets datagrams of this resolver
    // only, and its refusals.
    let any: SocketAddr = match resolver {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(request.packet).await?;
    let size = request.udp_limit.clamp(MIN_BUFFER, wire::MAX_MESSAGE);
    let mut buffer = vec![0; size];
    for _ in 0..MAX_STRAY {
        let length = socket.recv(&mut buffer).await?;
        if wire::is_answer(&buffer[..length], request.packet) {
            if length == size {
                // Longer than it may be: the kernel has cut it.
                wire::set_truncated(&mut buffer);
            }
            buffer.truncate(length);
            buffer.shrink_to_fit();
            return Ok(buffer);
        }
    }
    Err(Failure::Malformed)
}

async fn over_tcp(resolver: SocketAddr, packet: &[u8], time: Duration) -> Result<Vec<u8>, Failure> {
    let exchange = async {
        let mut tcp = TcpStream::connect(resolver).await?;
        tcp.write_all(&framed(packet)?).await?;
        let length = tcp.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        tcp.read_exact(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = timeout(time, exchange).await;
    let answer = answer.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
    let answer = answer.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => Failure::Timeout,
        _ => error.into(),
    })?;
    if !wire::is_answer(&answer, packet) {
        return Err(Failure::Malformed);
    }
    Ok(answer)
}

/// A message with its length before it (RFC 1035, 4.2.2), to be written at once (RFC 7766, 8).
///
/// # Errors
/// When it is longer than a message can be.
pub fn framed(packet: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(packet.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut out = Vec::with_capacity(packet.len() + 2);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(packet);
    Ok(out)
}
