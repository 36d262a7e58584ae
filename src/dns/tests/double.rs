//! A resolver that does what a test says, on UDP and TCP of one port of the loopback.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::JoinSet,
};

use crate::dns::{Transport, exchange::framed};

/// One step of the treatment of a request.
pub enum Act {
    /// Send this back.
    Send(Vec<u8>),
    /// Send this to the client from another port (UDP).
    SendFromElsewhere(Vec<u8>),
    /// Wait until the test releases it.
    Hold,
}

type Script = dyn Fn(&Seen) -> Vec<Act> + Send + Sync;

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub transport: Transport,
    pub packet: Vec<u8>,
    pub from: SocketAddr,
    /// How many came before it.
    pub number: usize,
}

pub struct Double {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    held: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

struct Shared {
    script: Box<Script>,
    seen: Arc<Mutex<Vec<Seen>>>,
    held: watch::Receiver<bool>,
}

impl Double {
    pub async fn new(script: impl Fn(&Seen) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let (udp, tcp) = sockets().await;
        let address = udp.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (held, receiver) = watch::channel(true);
        let shared = Arc::new(Shared {
            script: Box::new(script),
            seen: seen.clone(),
            held: receiver,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(on_udp(Arc::new(udp), shared.clone()));
        tasks.spawn(on_tcp(tcp, shared));
        Self {
            address,
            seen,
            held,
            _tasks: tasks,
        }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    pub fn count(&self) -> usize {
        self.seen.lock().len()
    }

    pub fn release(&self) {
        self.held.send_replace(false);
    }
}

/// A UDP and a TCP socket with the same port.
pub async fn sockets() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
    panic!("no port is free for both");
}

impl Shared {
    fn acts(&self, transport: Transport, packet: &[u8], from: SocketAddr) -> Vec<Act> {
        let mut all = self.seen.lock();
        let seen = Seen {
            transport,
            packet: packet.to_vec(),
            from,
            number: all.len(),
        };
        all.push(seen.clone());
        drop(all);
        (self.script)(&seen)
    }

    async fn released(&self) {
        let mut held = self.held.clone();
        held.wait_for(|held| !held).await.unwrap();
    }
}

async fn on_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; 65_535];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let acts = shared.acts(Transport::Udp, &buffer[..length], from);
        let (socket, shared) = (socket.clone(), shared.clone());
        tasks.spawn(async move {
            for act in acts {
                match act {
                    // The asker may have gone.
                    Act::Send(packet) => drop(socket.send_to(&packet, from).await),
                    Act::SendFromElsewhere(packet) => {
                        let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                        drop(other.send_to(&packet, from).await);
                    }
                    Act::Hold => shared.released().await,
                }
            }
        });
    }
}

async fn on_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    loop {
        let (mut tcp, from) = listener.accept().await.unwrap();
        let shared = shared.clone();
        tasks.spawn(async move {
            let Some(packet) = read_frame(&mut tcp).await else {
                return;
            };
            for act in shared.acts(Transport::Tcp, &packet, from) {
                match act {
                    Act::Send(packet) => tcp.write_all(&framed(&packet).unwrap()).await.unwrap(),
                    Act::SendFromElsewhere(_) => panic!("for UDP only"),
                    Act::Hold => shared.released().await,
                }
            }
        });
    }
}

/// The next message of a connection, `None` at its end.
pub async fn read_frame(tcp: &mut TcpStream) -> Option<Vec<u8>> {
    let length = tcp.read_u16().await.ok()?;
    let mut packet = vec![0; usize::from(length)];
    tcp.read_exact(&mut packet).await.ok()?;
    Some(packet)
}

/// Waits until a condition holds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
