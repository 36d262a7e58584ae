//! Two ends of a handover, in one process: what is passed on works, and whoever says nothing or
//! nonsense is told so in time.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use weft_handover::{Channel, Kind, MAX_SOCKETS, Pool, Socket, connect, holder, listen};

const PATIENCE: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(50);

fn ends() -> (Channel, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    (Channel::new(a).unwrap(), Channel::new(b).unwrap())
}

fn listening(name: &str) -> Socket {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Socket::new(name, listener.into()).unwrap()
}

#[test]
fn sockets_and_their_queues_are_passed_on() {
    let (mut old, mut new) = ends();
    // More than one group.
    let mut sockets: Vec<Socket> = (0..150).map(|n| listening(&format!("tcp {n}"))).collect();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    sockets.push(Socket::new("dns", udp.into()).unwrap());
    let addresses: Vec<_> = sockets.iter().map(Socket::address).collect();
    // It waits in the queue while the socket changes hands.
    let mut client = TcpStream::connect(addresses[149]).unwrap();
    let giving = thread::spawn(move || {
        old.send(&("generation", 7), PATIENCE).unwrap();
        old.send_sockets(&sockets, PATIENCE).unwrap();
        assert_eq!(old.receive::<String>(PATIENCE).unwrap(), "ready");
        // The first owner closes all of its own.
    });
    assert_eq!(
        new.receive::<(String, u32)>(PATIENCE).unwrap(),
        ("generation".to_owned(), 7)
    );
    let taken = new.receive_sockets(PATIENCE).unwrap();
    let names: Vec<&str> = taken.iter().map(Socket::name).collect();
    assert_eq!((names.len(), names[0], names[150]), (151, "tcp 0", "dns"));
    new.send(&"ready", PATIENCE).unwrap();
    giving.join().unwrap();
    let pool = Pool::new(taken);
    let mut last = pool.take(Kind::Tcp, addresses[149]);
    let listener = last.pop().unwrap().into_tcp().unwrap();
    listener.set_nonblocking(false).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    client.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    accepted.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    assert_eq!(pool.take(Kind::Udp, addresses[150]).len(), 1);
}

#[test]
fn a_listener_is_replaced_without_a_gap_and_a_dead_one_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handover.sock");
    assert!(connect(&path).unwrap().is_none(), "there is no file");
    let first = listen(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(holder(&path).unwrap(), Some(std::process::id()));
    let second = listen(&path).unwrap();
    // The one that asked who it is.
    first.accept().unwrap();
    let mut channel = connect(&path).unwrap().unwrap();
    assert!(first.accept().is_err(), "the second has it");
    let mut other = Channel::new(second.accept().unwrap().0).unwrap();
    channel.send(&1_u8, PATIENCE).unwrap();
    assert_eq!(other.receive::<u8>(PATIENCE).unwrap(), 1);
    drop((first, second));
    assert!(connect(&path).unwrap().is_none(), "nobody listens");
    let long = PathBuf::from("/tmp").join("x".repeat(120));
    let error = listen(&long).unwrap_err().to_string();
    assert!(error.starts_with("/tmp/xxx"), "{error}");
}

#[test]
fn silence_and_nonsense_are_told_apart() {
    let (mut a, _b) = ends();
    let before = Instant::now();
    let error = a.receive::<u8>(SHORT).unwrap_err().to_string();
    assert!(error.contains("said nothing in time"), "{error}");
    assert!(before.elapsed() < PATIENCE);

    let (mut a, b) = ends();
    drop(b);
    let error = a.receive::<u8>(PATIENCE).unwrap_err().to_string();
    assert!(error.contains("has gone"), "{error}");

    for (bytes, expected) in [
        (&b"\x02\0\0\0\x01"[..], "version 2 of the handover"),
        (b"\x01\xff\xff\xff\xff", "4294967295 bytes is announced"),
        (b"\x01\0\0\0\x02{}", "is not understood"),
        (b"\x01\0\0", "has gone"),
    ] {
        let (mut raw, other) = UnixStream::pair().unwrap();
        raw.write_all(bytes).unwrap();
        drop(raw);
        let mut channel = Channel::new(other).unwrap();
        let error = channel.receive::<u8>(PATIENCE).unwrap_err().to_string();
        assert!(error.contains(expected), "{bytes:?}: {error}");
    }
}

#[test]
fn a_peer_that_does_not_read_holds_nobody_up() {
    let (mut a, _b) = ends();
    // More than the kernel buffers.
    let long = "x".repeat(900_000);
    let error = a.send(&long, SHORT).unwrap_err().to_string();
    assert!(error.contains("said nothing in time"), "{error}");
    let (mut a, _b) = ends();
    let error = a.send(&"x".repeat(2_000_000), PATIENCE).unwrap_err();
    assert!(error.to_string().contains("is too long"), "{error}");
}

#[test]
fn announced_sockets_must_come() {
    let (mut a, mut b) = ends();
    a.send(&["one"], PATIENCE).unwrap();
    drop(a);
    let error = b.receive_sockets(PATIENCE).unwrap_err().to_string();
    assert!(error.contains("has gone (taking sockets over)"), "{error}");

    let (mut a, mut b) = ends();
    a.send(&["one"], PATIENCE).unwrap();
    a.send(&"no sockets", PATIENCE).unwrap();
    let error = b.receive_sockets(PATIENCE).unwrap_err().to_string();
    assert!(error.contains("something else than sockets"), "{error}");

    let (mut a, mut b) = ends();
    a.send(&vec!["x"; MAX_SOCKETS + 1], PATIENCE).unwrap();
    let error = b.receive_sockets(PATIENCE).unwrap_err().to_string();
    assert!(error.contains("at most 1024"), "{error}");
}
