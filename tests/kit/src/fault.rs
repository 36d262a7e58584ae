//! A TCP proxy that spoils what passes, by rules that can change while it runs: delay, jitter,
//! bandwidth, slices, corruption, stalls, and ends of every kind. For delay where the kernel has
//! no netem. The same seed spoils the same bytes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::origin::{Server, anywhere};
use crate::random::Random;

/// Read at once.
const CHUNK: usize = 32 << 10;
/// Chunks that are under way in one direction of one connection.
const UNDER_WAY: usize = 64;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// An end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// FIN to both sides.
    Close,
    /// RST to both sides.
    Reset,
    /// FIN in this direction only; the other one goes on.
    HalfClose,
}

/// What happens to new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// They are passed on.
    Open,
    /// They are accepted, and reset.
    Reset,
    /// They are accepted, and that is all.
    Silent,
}

/// What happens in one direction; nothing by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// How much later everything arrives. The rate stays.
    pub delay: Duration,
    /// Up to so much later still, by chance; the order stays.
    pub jitter: Duration,
    /// Bytes a second, of each connection.
    pub bandwidth: Option<u64>,
    /// The longest write.
    pub slice: Option<usize>,
    /// How often what was read at once is sliced; the rest of it goes whole. All of it by default.
    pub slices: Option<usize>,
    /// The end, after so many bytes of a connection.
    pub cut: Option<(u64, Cut)>,
    /// One bit in so many bytes is turned over, by chance.
    pub corrupt: Option<u64>,
    /// Nothing moves until the rules change.
    pub stalled: bool,
}

/// How much has passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Connections that were accepted.
    pub connections: u64,
    /// Bytes that were written to servers.
    pub to_server: u64,
    /// Bytes that were written to clients.
    pub to_client: u64,
}

impl Rules {
    /// The longest write after so many of what was read at once.
    fn longest(&self, before: usize) -> usize {
        let sliced = self.slices.is_none_or(|most| before < most);
        self.slice.filter(|_| sliced).unwrap_or(CHUNK).max(1)
    }
}

struct Shared {
    upstream: SocketAddr,
    seed: u64,
    to_server: watch::Sender<Rules>,
    to_client: watch::Sender<Rules>,
    door: watch::Sender<Door>,
    /// The newest order to cut all connections, and its number.
    order: watch::Sender<(u64, Cut)>,
    connections: AtomicU64,
    passed: [AtomicU64; 2],
}

/// The proxy.
pub struct Fault {
    server: Server,
    shared: Arc<Shared>,
}

impl Fault {
    /// Listens on a free port of 127.0.0.1 and passes to `upstream`, spoiling nothing yet.
    pub async fn start(upstream: SocketAddr, seed: u64) -> io::Result<Self> {
        Self::on(anywhere().await?, upstream, seed)
    }

    /// Serves a listener.
    pub fn on(listener: TcpListener, upstream: SocketAddr, seed: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            upstream,
            seed,
            to_server: watch::Sender::default(),
            to_client: watch::Sender::default(),
            door: watch::Sender::new(Door::Open),
            order: watch::Sender::new((0, Cut::Close)),
            connections: AtomicU64::new(0),
            passed: Default::default(),
        });
        let of_connections = shared.clone();
        let server = Server::new(listener, move |number, stream| {
            let shared = of_connections.clone();
            shared.connections.fetch_add(1, Ordering::Relaxed);
            async move {
                // Both sides see how it ends; there is nobody else to tell.
                let _ = connection(&shared, number as u64, stream).await;
            }
        })?;
        Ok(Self { server, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Sets the rules of a direction, for connections there are and those to come.
    pub fn set(&self, way: Way, rules: Rules) {
        self.shared.rules(way).send_replace(rules);
    }

    /// Sets what happens to new connections.
    pub fn door(&self, door: Door) {
        self.shared.door.send_replace(door);
    }

    /// Ends all connections there are; of [`Cut::HalfClose`], both directions, when what was
    /// under way has arrived.
    pub fn cut(&self, cut: Cut) {
        self.shared
            .order
            .send_modify(|order| *order = (order.0 + 1, cut));
    }

    /// How much has passed so far.
    pub fn passed(&self) -> Passed {
        let [to_server, to_client] = &self.shared.passed;
        Passed {
            connections: self.shared.connections.load(Ordering::Relaxed),
            to_server: to_server.load(Ordering::Relaxed),
            to_client: to_client.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    fn rules(&self, way: Way) -> &watch::Sender<Rules> {
        match way {
            Way::ToServer => &self.to_server,
            Way::ToClient => &self.to_client,
        }
    }
}

async fn connection(shared: &Shared, number: u64, mut client: TcpStream) -> io::Result<()> {
    let door = *shared.door.borrow();
    match door {
        Door::Open => {}
        Door::Reset => return client.set_zero_linger(),
        Door::Silent => {
            let mut order = shared.order.subscribe();
            // Until a cut: the sender lives as long as we do.
            let _ = order.changed().await;
            return Ok(());
        }
    }
    let Ok(mut server) = TcpStream::connect(shared.upstream).await else {
        return client.set_zero_linger();
    };
    server.set_nodelay(true)?;
    let cut = {
        let (client_reads, client_writes) = client.split();
        let (server_reads, server_writes) = server.split();
        let there = pump(shared, Way::ToServer, number, client_reads, server_writes);
        let back = pump(shared, Way::ToClient, number, server_reads, client_writes);
        let both = async { tokio::try_join!(there, back) };
        match both.await {
            Ok(_) => Cut::Close,
            Err(cut) => cut,
        }
    };
    if cut == Cut::Reset {
        client.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    Ok(())
}

/// Passes one direction to its end; an error: both directions end at once, and so.
async fn pump(
    shared: &Shared,
    way: Way,
    number: u64,
    reader: ReadHalf<'_>,
    mut writer: WriteHalf<'_>,
) -> Result<(), Cut> {
    let (sender, receiver) = mpsc::channel(UNDER_WAY);
    let seed = Random::new(shared.seed ^ number << 1 ^ way as u64).next();
    let rules = shared.rules(way).subscribe();
    let mut order = shared.order.subscribe();
    let reading = read(rules.clone(), Random::new(seed), reader, sender);
    let writing = write(shared, way, rules, receiver, &mut writer);
    let moving = async { tokio::try_join!(reading, writing).map(|_| ()) };
    tokio::select! {
        moved = moving => match moved {
            Ok(()) | Err(Cut::HalfClose) => {}
            Err(cut) => return Err(cut),
        },
        _ = order.changed() => match order.borrow_and_update().1 {
            Cut::HalfClose => {}
            cut => return Err(cut),
        },
    }
    // The other side may be gone: then this direction has ended as well.
    let _ = writer.shutdown().await;
    Ok(())
}

/// Bytes, and when they are to arrive.
type Chunk = (Instant, Vec<u8>);

/// Reads, corrupts, and says when what was read is to arrive.
async fn read(
    rules: watch::Receiver<Rules>,
    mut random: Random,
    mut reader: ReadHalf<'_>,
    chunks: mpsc::Sender<Chunk>,
) -> Result<(), Cut> {
    let mut last = Instant::now();
    loop {
        let mut bytes = Vec::with_capacity(CHUNK);
        // RST is passed on as RST.
        let read = reader.read_buf(&mut bytes).await.map_err(|_| Cut::Reset)?;
        if read == 0 {
            return Ok(());
        }
        let rules = rules.borrow().clone();
        if let Some(every) = rules.corrupt {
            for byte in &mut bytes {
                if random.below(every) == 0 {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
        let jitter = u64::try_from(rules.jitter.as_nanos()).unwrap_or(u64::MAX);
        let late = rules.delay + Duration::from_nanos(random.below(jitter));
        last = last.max(Instant::now() + late);
        if chunks.send((last, bytes)).await.is_err() {
            return Ok(());
        }
    }
}

/// Writes when it is time, in slices, up to a cut.
async fn write(
    shared: &Shared,
    way: Way,
    mut rules: watch::Receiver<Rules>,
    mut chunks: mpsc::Receiver<Chunk>,
    writer: &mut WriteHalf<'_>,
) -> Result<(), Cut> {
    let mut written = 0_u64;
    while let Some((due, bytes)) = chunks.recv().await {
        if due > Instant::now() {
            sleep_until(due).await;
        }
        let mut rest = &bytes[..];
        let mut slices = 0;
        while !rest.is_empty() {
            // The sender lives as long as the connection.
            let now = rules.wait_for(|rules| !rules.stalled).await;
            let now = now.map_err(|_| Cut::Close)?.clone();
            let mut length = rest.len().min(now.longest(slices));
            slices += 1;
            if let Some((after, cut)) = now.cut {
                let left = after.saturating_sub(written);
                if left == 0 {
                    return Err(cut);
                }
                length = length.min(usize::try_from(left).unwrap_or(length));
            }
            let (slice, after) = rest.split_at(length);
            rest = after;
            writer.write_all(slice).await.map_err(|_| Cut::Reset)?;
            written += length as u64;
            shared.passed[way as usize].fetch_add(length as u64, Ordering::Relaxed);
            match now.bandwidth {
                Some(bandwidth) => {
                    let seconds = length as f64 / bandwidth.max(1) as f64;
                    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
                }
                None if rest.is_empty() => {}
                None => tokio::task::yield_now().await,
            }
            if let Some((after, cut)) = now.cut
                && written >= after
            {
                return Err(cut);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PATIENCE;
    use crate::origin::capture::{Capture, Connection};
    use crate::raw1::{Client, End};

    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    async fn around() -> (Capture, Fault) {
        let origin = Capture::start().await.unwrap();
        let fault = Fault::start(origin.address(), 7).await.unwrap();
        (origin, fault)
    }

    #[tokio::test]
    async fn slices_delays_and_rates_keep_bytes() {
        let (origin, fault) = around().await;
        let body = "x".repeat(50_000);
        let post = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 50000\r\n\r\n{body}");
        let slow = Duration::from_millis(30);
        for rules in [
            Rules::default(),
            Rules {
                slice: Some(7),
                ..Rules::default()
            },
            Rules {
                delay: slow,
                jitter: slow,
                ..Rules::default()
            },
            Rules {
                bandwidth: Some(1_000_000),
                slice: Some(1_000),
                ..Rules::default()
            },
        ] {
            fault.set(Way::ToServer, rules.clone());
            fault.set(
                Way::ToClient,
                Rules {
                    delay: rules.delay,
                    ..Rules::default()
                },
            );
            let mut client = Client::connect(fault.address()).await.unwrap();
            let started = Instant::now();
            assert_eq!(client.exchange(&post).await.unwrap().text(), "ok");
            if !rules.delay.is_zero() {
                assert!(started.elapsed() >= slow * 2, "{:?}", started.elapsed());
            }
            if rules.bandwidth.is_some() {
                assert!(
                    started.elapsed() >= Duration::from_millis(50),
                    "{:?}",
                    started.elapsed()
                );
            }
            assert_eq!(
                origin.connections().last().unwrap().bytes,
                post.as_bytes(),
                "{rules:?}"
            );
        }
        let passed = fault.passed();
        assert_eq!(
            (passed.connections, passed.to_server),
            (4, 4 * post.len() as u64)
        );
    }

    #[test]
    fn slices_end() {
        let longest = |slice, slices| {
            let rules = Rules {
                slice,
                slices,
                ..Rules::default()
            };
            [0, 1, 2, 3].map(|before| rules.longest(before))
        };
        assert_eq!(longest(None, Some(2)), [CHUNK; 4]);
        assert_eq!(longest(Some(0), None), [1; 4]);
        assert_eq!(longest(Some(7), None), [7; 4]);
        assert_eq!(longest(Some(7), Some(2)), [7, 7, CHUNK, CHUNK]);
    }

    #[tokio::test]
    async fn cuts_come_where_they_should() {
        let (origin, fault) = around().await;
        for (cut, end) in [(Cut::Close, End::Closed), (Cut::Reset, End::Reset)] {
            fault.set(
                Way::ToClient,
                Rules {
                    cut: Some((10, cut)),
                    ..Rules::default()
                },
            );
            let mut client = Client::connect(fault.address()).await.unwrap();
            client.send(GET).await.unwrap();
            assert_eq!(client.ended().await.unwrap(), end, "{cut:?}");
            assert!(client.received().len() <= 10, "{cut:?}");
        }
        fault.set(Way::ToClient, Rules::default());
        fault.set(
            Way::ToServer,
            Rules {
                cut: Some((5, Cut::HalfClose)),
                ..Rules::default()
            },
        );
        let mut client = Client::connect(fault.address()).await.unwrap();
        client.send(GET).await.unwrap();
        assert_eq!(client.ended().await.unwrap(), End::Closed);
        let seen = |all: &[Connection]| all[2].ended && all[2].bytes == b"GET /";
        origin.until("five bytes", PATIENCE, seen).await.unwrap();
    }

    #[tokio::test]
    async fn a_stall_ends_with_its_rule() {
        let (origin, fault) = around().await;
        let mut client = Client::connect(fault.address()).await.unwrap();
        client.exchange(GET).await.unwrap();
        fault.set(
            Way::ToServer,
            Rules {
                stalled: true,
                ..Rules::default()
            },
        );
        client.send(GET).await.unwrap();
        let brief = Duration::from_millis(20);
        let two = |all: &[Connection]| all[0].bytes.len() == 2 * GET.len();
        origin.until("nothing", brief, two).await.unwrap_err();
        fault.set(Way::ToServer, Rules::default());
        assert_eq!(client.answer().await.unwrap().text(), "ok");
    }

    #[tokio::test]
    async fn orders_and_doors_are_heeded() {
        let (_origin, fault) = around().await;
        for (cut, end) in [
            (Cut::Close, End::Closed),
            (Cut::Reset, End::Reset),
            (Cut::HalfClose, End::Closed),
        ] {
            let mut client = Client::connect(fault.address()).await.unwrap();
            client.exchange(GET).await.unwrap();
            fault.cut(cut);
            assert_eq!(client.ended().await.unwrap(), end, "{cut:?}");
        }
        fault.door(Door::Reset);
        let mut client = Client::connect(fault.address()).await.unwrap();
        assert_eq!(client.ended().await.unwrap(), End::Reset);
        fault.door(Door::Silent);
        let client = Client::connect(fault.address()).await.unwrap();
        let mut client = client.patience(Duration::from_millis(20));
        client.write(GET).await.unwrap();
        assert_eq!(client.ended().await.unwrap(), End::Open);
    }

    #[tokio::test]
    async fn corruption_is_the_same_for_the_same_seed() {
        let mut seen = Vec::new();
        for _ in 0..2 {
            let (origin, fault) = around().await;
            fault.set(
                Way::ToServer,
                Rules {
                    corrupt: Some(20),
                    ..Rules::default()
                },
            );
            let mut client = Client::connect(fault.address()).await.unwrap();
            client.write("x".repeat(1_000)).await.unwrap();
            client.half_close().await.unwrap();
            let ended = |all: &[Connection]| all.first().is_some_and(|one| one.ended);
            let all = origin.until("the end", PATIENCE, ended).await.unwrap();
            seen.push(all[0].bytes.clone());
        }
        let wrong = seen[0].iter().filter(|byte| **byte != b'x').count();
        assert!((10..200).contains(&wrong), "{wrong}");
        assert_eq!(seen[0], seen[1]);
    }
}
