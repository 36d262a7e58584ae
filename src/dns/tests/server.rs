//! The listener over real sockets, with a mesh and a resolver that do what a test says.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use super::{
    double::{Act, Double, read_frame, sockets, until},
    message::{self, a, client_query, counts, id, name, opt, response, soa},
};
use crate::{
    dns::{
        Answer, Names, Resolver, Source, Transport,
        exchange::framed,
        forward::Limits,
        serve,
        wire::{self, A, AAAA, ANY, AXFR, HTTPS, Rcode},
    },
    telemetry::Metrics,
};

const OUTSIDE: [u8; 4] = [192, 0, 2, 1];
const SRV: u16 = 33;

/// A served mesh.
struct Mesh {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    names: Arc<ArcSwap<Names>>,
    lookups: Arc<AtomicUsize>,
    /// Look-ups of names with `held` in them wait for this.
    held: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// `post*`, `headless*` and `github.com` are names of the mesh, those with `unknown` may be;
/// those with `held` are `post` as soon as they are released.
fn names(lookups: Arc<AtomicUsize>, held: watch::Receiver<bool>) -> Names {
    let lookup = move |host: &str| {
        lookups.fetch_add(1, Ordering::Relaxed);
        let host = host.to_owned();
        let mut held = held.clone();
        async move {
            if host.contains("held") {
                held.wait_for(|held| !held).await.unwrap();
            }
            let first = host.split(['.', '-']).next().unwrap();
            let addresses: &[&str] = match first {
                "post" | "held" | "github" => &["240.240.0.1"],
                "headless" => &["10.0.0.1", "10.0.0.2", "fd00::1"],
                "huge" => {
                    let all = (0..2_000).map(|n| [10, 0, (n / 250) as u8, n as u8].into());
                    return Answer::Addresses {
                        addresses: all.collect(),
                        ttl: 5,
                    };
                }
                "unknown" => return Answer::Unknown,
                _ => return Answer::NotOurs,
            };
            let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
            Answer::Addresses { addresses, ttl: 30 }
        }
        .boxed()
    };
    Names {
        cluster_domain: "cluster.local".into(),
        external: Arc::new(["github.com".into()]),
        lookup: Arc::new(lookup),
    }
}

async fn mesh(resolvers: &[SocketAddr]) -> Mesh {
    let metrics = Metrics::new();
    let limits = Limits {
        per_try: Duration::from_secs(30),
        total: Duration::from_secs(60),
        ..Limits::default()
    };
    let (udp, tcp) = sockets().await;
    let address = udp.local_addr().unwrap();
    let source = Source::Fixed(resolvers.to_vec());
    let resolver = Resolver::with_limits(source, vec![address], metrics.clone(), limits);
    let (held, receiver) = watch::channel(true);
    let lookups = Arc::new(AtomicUsize::new(0));
    let names = Arc::new(ArcSwap::from_pointee(names(lookups.clone(), receiver)));
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(udp, tcp, names.clone(), resolver, metrics.clone()));
    Mesh {
        address,
        metrics,
        names,
        lookups,
        held,
        tasks,
    }
}

impl Mesh {
    fn lookups(&self) -> usize {
        self.lookups.load(Ordering::Relaxed)
    }

    fn answered_by(&self, by: &str) -> bool {
        let series = format!("weft_dns_queries_total{{answered_by=\"{by}\"}} ");
        self.metrics.render().contains(&series)
    }

    async fn client(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket
    }

    async fn udp(&self, request: &[u8]) -> Vec<u8> {
        let client = self.client().await;
        client.send(request).await.unwrap();
        let answer = received(&client).await;
        assert_eq!(id(&answer), id(request));
        answer
    }

    async fn ask(&self, host: &str, kind: u16) -> Vec<u8> {
        self.udp(&client_query(7, host, kind, None)).await
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

async fn received(client: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_535];
    let length = timeout(Duration::from_secs(20), client.recv(&mut buffer)).await;
    buffer.truncate(length.expect("an answer in time").unwrap());
    buffer
}

async fn answer_of(tcp: &mut TcpStream) -> Option<Vec<u8>> {
    let frame = timeout(Duration::from_secs(20), read_frame(tcp)).await;
    frame.expect("an answer in time")
}

async fn send_framed(tcp: &mut TcpStream, packet: &[u8]) {
    tcp.write_all(&framed(packet).unwrap()).await.unwrap();
}

/// Knows every name but those with `nx` in them, which do not exist.
async fn internet() -> Double {
    Double::new(|seen| {
        let packet = match wire::read(seen.packet.clone()) {
            wire::Incoming::Question(query) => {
                let host = query.host().unwrap_or("strange.org".into());
                if host.contains("nx") {
                    response(&seen.packet, Rcode::NO_NAME, &[], &[soa("org", 900, 900)])
                } else {
                    response(&seen.packet, Rcode::OK, &[a(&host, OUTSIDE, 60)], &[])
                }
            }
            _ => {
                let mut packet = seen.packet.clone();
                packet[2] |= 0x80;
                packet
            }
        };
        vec![Act::Send(packet)]
    })
    .await
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn names_of_the_mesh_are_answered() {
    let outside = internet().await;
    let mesh = mesh(&[outside.address]).await;
    let (vip, both) = (&["240.240.0.1"][..], &["10.0.0.1", "10.0.0.2"][..]);
    for (host, kind, expected) in [
        ("post.blog.svc", A, vip),
        ("post.blog.svc.cluster.local", A, vip),
        ("Post.Blog.Svc.Cluster.Local", A, vip),
        ("post.mesh.localhost", A, vip),
        ("github.com", A, vip),
        ("headless.blog.svc", A, both),
        ("headless.blog.svc", AAAA, &["fd00::1"]),
        ("post-0.headless.blog.svc.cluster.local", A, vip),
        // The name exists: no record is not NXDOMAIN.
        ("post.blog.svc", AAAA, &[]),
        ("post.blog.svc", HTTPS, &[]),
        ("post.blog.svc", ANY, &[]),
    ] {
        for edns in [None, Some(1232)] {
            let request = client_query(9, host, kind, edns);
            let answer = mesh.udp(&request).await;
            assert!(wire::is_answer(&answer, &request), "{host}");
            assert_eq!(
                answer[12..12 + host.len() + 6],
                request[12..12 + host.len() + 6],
                "{host}"
            );
            assert_eq!(Rcode::of(&answer), Rcode::OK, "{host} {kind}");
            let mut found = wire::addresses(&answer, kind);
            found.sort();
            assert_eq!(found, ips(expected), "{host} {kind}");
            let opt = u16::from(edns.is_some());
            assert_eq!(
                counts(&answer),
                [1, expected.len() as u16, 0, opt],
                "{host}"
            );
        }
    }
    assert_eq!(outside.count(), 0, "nothing is asked outside");
    assert!(mesh.answered_by("mesh") && !mesh.answered_by("error"));
}

#[tokio::test]
async fn what_is_not_ours_is_forwarded() {
    let outside = internet().await;
    let mesh = mesh(&[outside.address]).await;
    for (host, kind) in [
        ("www.github.com", A),
        ("gitlab.com", A),
        ("web.blog.svc.cluster.local", A),
        ("post.blog.svc.cluster.local.blog.svc.cluster.local", A),
        ("post.blog.svc", SRV),
        ("a b.org", A),
    ] {
        let answer = mesh.ask(host, kind).await;
        assert_eq!(
            wire::addresses(&answer, A),
            [IpAddr::from(OUTSIDE)],
            "{host}"
        );
    }
    assert_eq!(mesh.lookups(), 2, "gitlab.com and web");
    let answer = mesh.ask("nx.blog.svc.cluster.local", A).await;
    assert_eq!(Rcode::of(&answer), Rcode::NO_NAME);
    assert_eq!(message::ttls(&answer), [900], "as the resolver says");
    mesh.ask("www.github.com", A).await;
    assert!(mesh.answered_by("resolver") && mesh.answered_by("cache"));
}

#[tokio::test]
async fn mesh_and_resolvers_are_asked_at_the_same_time() {
    let outside = internet().await;
    let mesh = mesh(&[outside.address]).await;
    // The mesh wins although the name exists outside.
    let answer = mesh.ask("post.dev", A).await;
    assert_eq!(wire::addresses(&answer, A), ips(&["240.240.0.1"]));
    let answer = mesh.ask("gitlab.com", A).await;
    assert_eq!(
        (wire::addresses(&answer, A), message::ttls(&answer)),
        (vec![OUTSIDE.into()], vec![60])
    );
    // Without the mesh's word the answer is not remembered for long.
    for host in ["unknown.com", "unknown.blog.svc"] {
        let answer = mesh.ask(host, A).await;
        assert_eq!(
            (wire::addresses(&answer, A), message::ttls(&answer)),
            (vec![OUTSIDE.into()], vec![5]),
            "{host}"
        );
    }
    // A slow mesh does not hold up the internet.
    let answer = mesh.ask("held.com", A).await;
    assert_eq!(
        (wire::addresses(&answer, A), message::ttls(&answer)),
        (vec![OUTSIDE.into()], vec![5])
    );
    // A name that does not exist outside waits for it.
    let asked = {
        let before = mesh.lookups();
        let asked = mesh.ask("held.nx", A);
        let release = async {
            until("the mesh is asked", || mesh.lookups() > before).await;
            until("so is the resolver", || {
                outside
                    .seen()
                    .iter()
                    .any(|s| s.packet[12..20] == *b"\x04held\x02nx")
            })
            .await;
            mesh.held.send_replace(false);
        };
        tokio::join!(asked, release).0
    };
    assert_eq!(wire::addresses(&asked, A), ips(&["240.240.0.1"]));
}

#[tokio::test]
async fn the_mesh_answers_before_the_resolvers_do() {
    let outside = Double::new(|_| vec![Act::Hold]).await;
    let mesh = mesh(&[outside.address]).await;
    let started = Instant::now();
    let answer = mesh.ask("post", A).await;
    assert_eq!(wire::addresses(&answer, A), ips(&["240.240.0.1"]));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_mesh_that_is_silent_is_not_waited_for_for_long() {
    let outside = internet().await;
    let mesh = mesh(&[outside.address]).await;
    for host in ["held.nx", "held.blog.svc"] {
        let started = Instant::now();
        let answer = mesh.ask(host, A).await;
        assert!(started.elapsed() < Duration::from_secs(10), "{host}");
        assert!(message::ttls(&answer).iter().all(|ttl| *ttl == 5), "{host}");
    }
}

#[tokio::test]
async fn names_can_change() {
    let outside = internet().await;
    let mesh = mesh(&[outside.address]).await;
    let answer = mesh.ask("post.blog.svc.other.domain", A).await;
    assert_eq!(wire::addresses(&answer, A), [IpAddr::from(OUTSIDE)]);
    let changed = Names {
        cluster_domain: "other.domain".into(),
        ..Names::clone(&mesh.names.load())
    };
    mesh.names.store(Arc::new(changed));
    let answer = mesh.ask("post.blog.svc.other.domain", A).await;
    assert_eq!(wire::addresses(&answer, A), ips(&["240.240.0.1"]));
}

#[tokio::test]
async fn what_is_no_query_is_refused_dropped_or_passed_on() {
    let outside = internet().await;
    let mesh = mesh(&[outside.address]).await;
    let good = client_query(7, "post.blog.svc", A, None);
    let client = mesh.client().await;
    // Responses and noise get no answer, which would be the first to arrive here.
    let mut a_response = good.clone();
    a_response[2] |= 0x80;
    for noise in [&[][..], &[1], &[1, 2, 3], &a_response] {
        client.send(noise).await.unwrap();
    }
    let mut last = good.clone();
    last[1] = 9;
    client.send(&last).await.unwrap();
    assert_eq!(id(&received(&client).await), 9);

    for cut in [5, 12, 20] {
        let answer = mesh.udp(&good[..cut]).await;
        assert_eq!(
            (answer.len(), Rcode::of(&answer)),
            (12, Rcode::FORMAT),
            "{cut}"
        );
    }
    assert!(mesh.answered_by("error"));
    assert_eq!(outside.count(), 0);

    let mut two = good.clone();
    two[5] = 2;
    two.extend([&name("post")[..], &[0, 1, 0, 1]].concat());
    let mut notify = good.clone();
    notify[2] = 0x20;
    notify.extend(opt(4096));
    notify[11] = 1;
    for (n, request) in [two, notify].into_iter().enumerate() {
        let answer = mesh.udp(&request).await;
        let mut expected = request.clone();
        expected[2] |= 0x80;
        assert_eq!(answer, expected);
        assert_eq!(outside.seen()[n].packet[2..], request[2..]);
    }
}

#[tokio::test]
async fn long_answers_are_cut_for_udp_and_whole_over_tcp() {
    let outside = Double::new(|seen| {
        let many: Vec<_> = (0..100)
            .map(|n| a("many.example.org", [10, 0, 0, n], 60))
            .collect();
        let whole = response(&seen.packet, Rcode::OK, &many, &[]);
        vec![Act::Send(match seen.transport {
            Transport::Udp => message::truncated(response(&seen.packet, Rcode::OK, &[], &[])),
            Transport::Tcp => whole,
        })]
    })
    .await;
    let mesh = mesh(&[outside.address]).await;
    for (host, all) in [("many.example.org", 100), ("huge.blog.svc", 2_000)] {
        for (edns, limit) in [(None, 512), (Some(100), 512), (Some(1232), 1232)] {
            let request = client_query(7, host, A, edns);
            let answer = mesh.udp(&request).await;
            assert!(
                answer.len() <= limit && wire::is_truncated(&answer),
                "{host} {limit}"
            );
            let kept = wire::addresses(&answer, A).len();
            assert!(kept > 8 && kept < all, "{host} {limit}: {kept}");

            let mut tcp = mesh.tcp().await;
            send_framed(&mut tcp, &request).await;
            let answer = answer_of(&mut tcp).await.unwrap();
            assert!(!wire::is_truncated(&answer));
            assert_eq!(wire::addresses(&answer, A).len(), all, "{host}");
        }
    }
    let over_tcp = outside
        .seen()
        .iter()
        .filter(|s| s.transport == Transport::Tcp)
        .count();
    assert_eq!(over_tcp, 2, "with and without EDNS; then the cache knows");
}

#[tokio::test]
async fn queries_of_a_connection_are_answered_as_they_can_be() {
    let outside = Double::new(|seen| {
        let answer = Act::Send(response(&seen.packet, Rcode::OK, &[], &[]));
        vec![Act::Hold, answer]
    })
    .await;
    let mesh = mesh(&[outside.address]).await;
    let mut tcp = mesh.tcp().await;
    let slow = client_query(1, "slow.example.org", A, None);
    let fast = client_query(2, "post.blog.svc", A, None);
    // In one piece, and then in bytes.
    let both = [framed(&slow).unwrap(), framed(&fast).unwrap()].concat();
    tcp.write_all(&both).await.unwrap();
    assert_eq!(answer_of(&mut tcp).await.map(|a| id(&a)), Some(2));
    for byte in framed(&client_query(3, "post.blog.svc", A, None)).unwrap() {
        tcp.write_all(&[byte]).await.unwrap();
        tcp.flush().await.unwrap();
    }
    assert_eq!(answer_of(&mut tcp).await.map(|a| id(&a)), Some(3));
    // A closed half does not lose the answer.
    tcp.shutdown().await.unwrap();
    outside.release();
    assert_eq!(answer_of(&mut tcp).await.map(|a| id(&a)), Some(1));
    assert_eq!(answer_of(&mut tcp).await, None);
}

#[tokio::test]
async fn many_queries_on_one_connection_are_all_answered() {
    let outside = internet().await;
    let mesh = mesh(&[outside.address]).await;
    let (mut read, mut write) = mesh.tcp().await.into_split();
    let writing = tokio::spawn(async move {
        for n in 0..500 {
            let query = client_query(n, &format!("{n}.example.org"), A, None);
            write.write_all(&framed(&query).unwrap()).await.unwrap();
        }
        write
    });
    let mut ids = Vec::new();
    for _ in 0..500 {
        let length = timeout(Duration::from_secs(20), read.read_u16())
            .await
            .unwrap()
            .unwrap();
        let mut answer = vec![0; usize::from(length)];
        read.read_exact(&mut answer).await.unwrap();
        assert_eq!(wire::addresses(&answer, A), [IpAddr::from(OUTSIDE)]);
        ids.push(id(&answer));
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..500).collect::<Vec<u16>>());
    drop(writing.await.unwrap());
}

#[tokio::test]
async fn bad_connections_are_closed() {
    let mesh = mesh(&[]).await;
    let mut tcp = mesh.tcp().await;
    tcp.write_all(&[0xff, 0xff, 1, 2, 3]).await.unwrap();
    assert_eq!(answer_of(&mut tcp).await, None, "too long");
    let mut tcp = mesh.tcp().await;
    tcp.write_all(&[0, 50, 1, 2, 3]).await.unwrap();
    tcp.shutdown().await.unwrap();
    assert_eq!(answer_of(&mut tcp).await, None, "cut");
    let mut tcp = mesh.tcp().await;
    send_framed(&mut tcp, &[0, 7, 1, 0]).await;
    let answer = answer_of(&mut tcp).await.unwrap();
    assert_eq!((id(&answer), Rcode::of(&answer)), (7, Rcode::FORMAT));
    send_framed(&mut tcp, &client_query(8, "example.org", AXFR, None)).await;
    let answer = answer_of(&mut tcp).await.unwrap();
    assert_eq!((id(&answer), Rcode::of(&answer)), (8, Rcode::NOT_SUPPORTED));
}

#[tokio::test]
async fn silent_connections_are_closed() {
    let mesh = mesh(&[]).await;
    let started = Instant::now();
    let (mut silent, mut half) = (mesh.tcp().await, mesh.tcp().await);
    half.write_all(&[0, 50, 1]).await.unwrap();
    for tcp in [&mut silent, &mut half] {
        assert_eq!(answer_of(tcp).await, None);
    }
    assert!(started.elapsed() >= Duration::from_secs(9));
}

#[tokio::test]
async fn connections_are_bounded() {
    let mesh = mesh(&[]).await;
    let mut open = Vec::new();
    let query = client_query(7, "post.blog.svc", A, None);
    for _ in 0..128 {
        let mut tcp = mesh.tcp().await;
        send_framed(&mut tcp, &query).await;
        answer_of(&mut tcp).await.unwrap();
        open.push(tcp);
    }
    // In the backlog.
    let mut next = mesh.tcp().await;
    send_framed(&mut next, &query).await;
    let early = timeout(Duration::from_millis(200), read_frame(&mut next)).await;
    assert!(early.is_err(), "one too many is served");
    open.pop();
    assert!(answer_of(&mut next).await.is_some());
}

#[tokio::test]
async fn queries_in_flight_are_bounded() {
    let outside = Double::new(|seen| {
        let answer = Act::Send(response(&seen.packet, Rcode::OK, &[], &[]));
        vec![Act::Hold, answer]
    })
    .await;
    let mesh = mesh(&[outside.address]).await;
    let client = mesh.client().await;
    // All wait for the same answer. One after the other: the socket's buffer is not the matter.
    for n in 0..1024 {
        client
            .send(&client_query(n, "slow", A, None))
            .await
            .unwrap();
        until("the query arrives", || mesh.lookups() > usize::from(n)).await;
    }
    let answer = mesh.ask("post.blog.svc", A).await;
    assert_eq!(Rcode::of(&answer), Rcode::FAILED, "at once");
    assert_eq!(outside.count(), 1);
    outside.release();
    // Some of the answers may not fit into the client's buffer.
    for _ in 0..100 {
        assert_eq!(Rcode::of(&received(&client).await), Rcode::OK);
    }
    let limit = Instant::now() + Duration::from_secs(20);
    while Rcode::of(&mesh.ask("post.blog.svc", A).await) != Rcode::OK {
        assert!(Instant::now() < limit, "there is room again");
    }
}

#[tokio::test]
async fn queries_that_have_arrived_outlive_the_listener() {
    let outside = Double::new(|seen| {
        let answer = Act::Send(response(&seen.packet, Rcode::OK, &[], &[]));
        vec![Act::Hold, answer]
    })
    .await;
    let mut mesh = mesh(&[outside.address]).await;
    let client = mesh.client().await;
    let mut tcp = mesh.tcp().await;
    for (n, host) in [(1, "slow.example.org"), (2, "other.example.org")] {
        let query = client_query(n, host, A, None);
        client.send(&query).await.unwrap();
    }
    send_framed(&mut tcp, &client_query(3, "third.example.org", A, None)).await;
    until("they arrive", || outside.count() == 3).await;
    mesh.tasks.shutdown().await;
    assert_eq!(
        answer_of(&mut tcp).await,
        None,
        "a client over TCP sees the end"
    );
    outside.release();
    let mut ids = [id(&received(&client).await), id(&received(&client).await)];
    ids.sort_unstable();
    assert_eq!(ids, [1, 2]);
}

#[tokio::test]
async fn without_resolvers_the_mesh_is_still_answered() {
    let mesh = mesh(&[]).await;
    let answer = mesh.ask("post.blog.svc", A).await;
    assert_eq!(wire::addresses(&answer, A), ips(&["240.240.0.1"]));
    let answer = mesh.ask("www.example.org", A).await;
    assert_eq!(Rcode::of(&answer), Rcode::FAILED);
}
