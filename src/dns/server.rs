//! The listener that the application's DNS queries are redirected to, UDP and TCP.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, Either, select},
    stream::FuturesUnordered,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{
        TcpListener, TcpStream, UdpSocket,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    AnsweredBy, Transport,
    exchange::framed,
    forward::{Answered, Resolver},
    names::{Answer, Asked, Names},
    wire::{self, Incoming, Query, Rcode},
};
use crate::{
    capture::datagram::{self, Impersonator},
    telemetry::Metrics,
};

/// UDP queries of one address that are being answered.
const MAX_QUERIES: usize = 1024;
/// TCP connections of one address; more wait in the backlog.
const MAX_CONNECTIONS: usize = 128;
/// Queries of one connection that are being answered; more are not read.
const MAX_PIPELINED: usize = 16;
/// Longer queries over UDP are cut, so they are malformed.
const MAX_UDP_QUERY: usize = 4096;
/// A connection with a longer query is closed.
const MAX_TCP_QUERY: usize = 16 * 1024;
/// A connection may be silent for this long, and a query or an answer may take as long to
/// come through.
const IDLE: Duration = Duration::from_secs(10);
/// How long the mesh has for an answer.
const LOOKUP: Duration = Duration::from_secs(1);
/// How long the answer of the resolvers waits for that of the mesh.
const PATIENCE: Duration = Duration::from_millis(100);
/// An answer that was given without the mesh's is remembered for at most this, seconds.
const UNSURE_TTL: u32 = 5;
/// The socket fails: how long until it is used again.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Service {
    names: Arc<ArcSwap<Names>>,
    resolver: Arc<Resolver>,
    metrics: Arc<Metrics>,
}

/// Answers the queries that arrive at one address, over UDP and TCP. Never ends.
///
/// When the future is dropped nothing more is received and TCP connections are closed. UDP
/// queries that have arrived are still answered, which takes at most some seconds: their
/// clients would not know that they have to ask again.
pub async fn serve(
    udp: UdpSocket,
    tcp: TcpListener,
    names: Arc<ArcSwap<Names>>,
    resolver: Arc<Resolver>,
    metrics: Arc<Metrics>,
) {
    let service = Arc::new(Service {
        names,
        resolver,
        metrics,
    });
    let datagrams = async {
        match Datagrams::new(udp) {
            Ok(datagrams) => serve_udp(Arc::new(datagrams), service.clone()).await,
            Err(error) => tracing::error!(%error, "DNS over UDP is not answered"),
        }
    };
    tokio::join!(datagrams, serve_tcp(tcp, service.clone()));
}

/// Tasks that come to an end by themselves, also when nobody watches them any more.
struct Finishing(JoinSet<()>);

impl Drop for Finishing {
    fn drop(&mut self) {
        self.0.detach_all();
    }
}

/// Who gets an answer.
#[derive(Clone, Copy, Debug)]
struct Asker {
    client: SocketAddr,
    /// Whom the client asked, if it was somebody else: it expects the answer from there.
    asked: Option<SocketAddr>,
}

/// A UDP socket, and who answers for those whose queries were led to it unchanged.
#[derive(Debug)]
struct Datagrams {
    socket: UdpSocket,
    impersonator: Option<Impersonator>,
}

impl Datagrams {
    fn new(socket: UdpSocket) -> io::Result<Self> {
        let address = socket.local_addr()?;
        // Without that right nothing is led here unchanged.
        let impersonator = datagram::take_all(&socket, address)
            .and_then(|()| Impersonator::new(address))
            .map_err(|error| tracing::debug!(%error, %address, "no DNS by capture's mode route"))
            .ok();
        Ok(Self {
            socket,
            impersonator,
        })
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Asker)> {
        let Some(_) = self.impersonator else {
            let (length, client) = self.socket.recv_from(buffer).await?;
            return Ok((
                length,
                Asker {
                    client,
                    asked: None,
                },
            ));
        };
        let received = self.socket.async_io(Interest::READABLE, || {
            datagram::receive(&self.socket, buffer)
        });
        let (length, client, asked) = received.await?;
        let own = self.socket.local_addr()?;
        let asked = asked.filter(|asked| *asked != own);
        Ok((length, Asker { client, asked }))
    }

    async fn send(&self, answer: &[u8], to: Asker) {
        let client = to.client;
        let sent = match (&self.impersonator, to.asked) {
            (Some(impersonator), Some(asked)) => impersonator.send(answer, asked, client),
            _ => self.socket.send_to(answer, client).await.map(drop),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, %client, "a DNS answer cannot be sent");
        }
    }
}

async fn serve_udp(socket: Arc<Datagrams>, service: Arc<Service>) {
    let mut queries = Finishing(JoinSet::new());
    let mut buffer = vec![0; MAX_UDP_QUERY];
    loop {
        let (packet, client) = match socket.receive(&mut buffer).await {
            Ok((length, client)) => (buffer[..length].to_vec(), client),
            Err(error) => {
                tracing::debug!(%error, "a DNS query cannot be received");
                sleep(PAUSE).await;
                continue;
            }
        };
        while queries.0.try_join_next().is_some() {}
        if queries.0.len() >= MAX_QUERIES {
            // At once: the client may have another resolver, and its time is short.
            if let Some(answer) = service.too_busy(packet) {
                socket.send(&answer, client).await;
            }
            continue;
        }
        let (socket, service) = (socket.clone(), service.clone());
        queries.0.spawn(async move {
            if let Some(answer) = service.answer(packet, Transport::Udp).await {
                socket.send(&answer, client).await;
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, service: Arc<Service>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
        };
        match accepted {
            Ok((tcp, client)) => {
                let service = service.clone();
                connections.spawn(async move {
                    if let Err(error) = connection(tcp, &service).await {
                        tracing::debug!(%error, %client, "a DNS connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a DNS connection cannot be accepted");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Answers the queries of a connection, each as soon as it can be (RFC 7766, 6.2.1.1). What
/// was asked before the client closed its half is still answered.
async fn connection(tcp: TcpStream, service: &Service) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let (mut read, mut write) = tcp.into_split();
    let mut input = Frames::default();
    let mut pending = FuturesUnordered::new();
    let mut open = true;
    while open || !pending.is_empty() {
        tokio::select! {
            Some(answer) = pending.next() => {
                if let Some(answer) = answer {
                    timeout(IDLE, write_frame(&mut write, answer)).await??;
                }
            }
            frame = timeout(IDLE, input.next(&mut read)), if open && pending.len() < MAX_PIPELINED => {
                match frame {
                    Ok(frame) => match frame? {
                        Some(packet) => pending.push(service.answer(packet, Transport::Tcp)),
                        None => open = false,
                    },
                    // Silent while it waits for an answer: that is no idleness.
                    Err(_) => open = !pending.is_empty(),
                }
            }
        }
    }
    Ok(())
}

async fn write_frame(write: &mut OwnedWriteHalf, answer: Vec<u8>) -> io::Result<()> {
    write.write_all(&framed(&answer)?).await
}

/// Messages with their length before them.
#[derive(Debug, Default)]
struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// The next message; `None` at the end. Cancel safe: what was read stays here.
    async fn next(&mut self, read: &mut OwnedReadHalf) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some((length, rest)) = self.bytes.split_first_chunk() {
                let length = usize::from(u16::from_be_bytes(*length));
                if length > MAX_TCP_QUERY {
                    return Err(io::Error::other(format!("a query of {length} bytes")));
                }
                if rest.len() >= length {
                    let packet = rest[..length].to_vec();
                    self.bytes.drain(..2 + length);
                    return Ok(Some(packet));
                }
            }
            let mut room = (&mut *read).take(MAX_TCP_QUERY as u64);
            if room.read_buf(&mut self.bytes).await? == 0 {
                return match self.bytes.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }
}

impl Service {
    /// The answer to what a client has sent, if it gets one, in a form that it can take.
    async fn answer(&self, packet: Vec<u8>, transport: Transport) -> Option<Vec<u8>> {
        let (answered, limit) = match wire::read(packet) {
            Incoming::Noise => return None,
            Incoming::Malformed(packet) => (own(wire::refusal(&packet, Rcode::FORMAT)), 0),
            Incoming::Other(packet) => {
                let limit = wire::udp_limit(&packet);
                let relayed = self.resolver.relay(&packet, transport, limit).await;
                let failed = || own(wire::refusal(&packet, Rcode::FAILED));
                (relayed.unwrap_or_else(failed), limit)
            }
            Incoming::Question(query) => {
                (self.question(&query, transport).await, query.udp_limit())
            }
        };
        self.metrics.dns_query(answered.by.name());
        Some(match transport {
            Transport::Udp => wire::fit(answered.packet, limit),
            Transport::Tcp => answered.packet,
        })
    }

    /// The answer to a query for which there is no room.
    fn too_busy(&self, packet: Vec<u8>) -> Option<Vec<u8>> {
        let answer = match wire::read(packet) {
            Incoming::Noise => return None,
            Incoming::Malformed(packet) => wire::refusal(&packet, Rcode::FORMAT),
            Incoming::Other(packet) => wire::refusal(&packet, Rcode::FAILED),
            Incoming::Question(query) => query.reply(Rcode::FAILED),
        };
        self.metrics.dns_query(AnsweredBy::Error.name());
        Some(answer)
    }

    async fn question(&self, query: &Query, transport: Transport) -> Answered {
        let kind = query.kind();
        if transport == Transport::Tcp && matches!(kind, wire::AXFR | wire::IXFR) {
            // The answer is many messages; no application's resolver gives a zone away.
            return own(query.reply(Rcode::NOT_SUPPORTED));
        }
        let forward = self.resolver.resolve(query, transport);
        let Some(host) = query.host() else {
            return forward.await;
        };
        let names = self.names.load_full();
        let asked = names.asked(&host, kind);
        if asked == Asked::Never {
            return forward.await;
        }
        let lookup = (names.lookup)(&host);
        drop(names);
        let mesh = async move { timeout(LOOKUP, lookup).await.unwrap_or(Answer::Unknown) };
        match asked {
            Asked::Never | Asked::First => match mesh.await {
                Answer::Addresses { addresses, ttl } => of_mesh(query, &addresses, ttl),
                Answer::NotOurs => forward.await,
                Answer::Unknown => unsure(forward.await),
            },
            Asked::Alongside => alongside(query, mesh.boxed(), forward.boxed()).await,
        }
    }
}

/// Mesh and resolvers were asked at the same time; the mesh's answer counts.
async fn alongside(
    query: &Query,
    mesh: BoxFuture<'_, Answer>,
    forward: BoxFuture<'_, Answered>,
) -> Answered {
    match select(mesh, forward).await {
        Either::Left((Answer::Addresses { addresses, ttl }, _)) => of_mesh(query, &addresses, ttl),
        Either::Left((Answer::NotOurs, forward)) => forward.await,
        Either::Left((Answer::Unknown, forward)) => unsure(forward.await),
        Either::Right((answered, mesh)) => {
            // A name that the resolvers do not know loses nothing by waiting for the mesh.
            let patience = match Rcode::of(&answered.packet) {
                Rcode::OK => PATIENCE,
                _ => LOOKUP,
            };
            match timeout(patience, mesh).await {
                Ok(Answer::Addresses { addresses, ttl }) => of_mesh(query, &addresses, ttl),
                Ok(Answer::NotOurs) => answered,
                Ok(Answer::Unknown) | Err(_) => unsure(answered),
            }
        }
    }
}

fn of_mesh(query: &Query, addresses: &[std::net::IpAddr], ttl: u32) -> Answered {
    Answered {
        packet: query.answer(addresses, ttl),
        by: AnsweredBy::Mesh,
    }
}

/// The mesh may know the name but did not say so: nobody should remember this for long.
fn unsure(mut answered: Answered) -> Answered {
    wire::cap_ttls(&mut answered.packet, UNSURE_TTL);
    answered
}

fn own(packet: Vec<u8>) -> Answered {
    Answered {
        packet,
        by: AnsweredBy::Error,
    }
}
