//! What a router sees of the traffic that passes it: how many packets carry which text, how
//! many carry TLS application data.

use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt,
};

use crate::error::{Context as _, Result};
use crate::netns::Host;

/// `ETH_P_ALL` in network byte order.
const EVERYTHING: u32 = 0x0300;

/// A running sniffer; stops when dropped.
#[derive(Debug)]
pub(crate) struct Sniffer {
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Counts {
    texts: Vec<(Vec<u8>, AtomicU64)>,
    tls: AtomicU64,
}

impl Sniffer {
    /// Watches every interface of the host for these texts.
    pub(crate) fn start(host: &Host, texts: &[&str]) -> Result<Self> {
        let socket = host.within(open)??;
        let counts = Arc::new(Counts {
            texts: texts
                .iter()
                .map(|text| (text.as_bytes().to_vec(), AtomicU64::new(0)))
                .collect(),
            tls: AtomicU64::new(0),
        });
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (counts, stop) = (counts.clone(), stop.clone());
            move || watch(&socket, &counts, &stop)
        });
        Ok(Self {
            counts,
            stop,
            thread: Some(thread),
        })
    }

    /// Packets with the text of that index so far.
    pub(crate) fn seen(&self, text: usize) -> u64 {
        self.counts
            .texts
            .get(text)
            .map_or(0, |(_, count)| count.load(Ordering::Relaxed))
    }

    /// Packets that begin with a record of TLS application data.
    pub(crate) fn tls(&self) -> u64 {
        self.counts.tls.load(Ordering::Relaxed)
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends within its receive timeout; a panic of it has been printed.
            let _ = thread.join();
        }
    }
}

/// Packets from the IP header on.
fn open() -> Result<OwnedFd> {
    let protocol = NonZeroU32::new(EVERYTHING).map(Protocol::from_raw);
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        protocol,
    )
    .context("a packet socket")?;
    let wait = Some(Duration::from_millis(100));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, wait).context("SO_RCVTIMEO")?;
    // Ignoring the limit needs the right that opened the socket.
    sockopt::set_socket_recv_buffer_size_force(&socket, 32 << 20).context("SO_RCVBUFFORCE")?;
    Ok(socket)
}

fn watch(socket: &OwnedFd, counts: &Counts, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        // Errors are the timeout; nothing else is expected of a socket that was opened.
        let Ok((length, _)) = recv(socket, &mut buffer[..], RecvFlags::empty()) else {
            continue;
        };
        let packet = &buffer[..length];
        for (text, count) in &counts.texts {
            if packet.windows(text.len()).any(|window| window == text) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        if tcp_payload(packet).is_some_and(|payload| payload.starts_with(&[23, 3, 3])) {
            counts.tls.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The bytes that a packet of IPv4 or IPv6 (without extension headers) carries for TCP.
fn tcp_payload(packet: &[u8]) -> Option<&[u8]> {
    let version = packet.first()? >> 4;
    let (protocol, header) = match version {
        4 => (*packet.get(9)?, usize::from(packet[0] & 0x0f) * 4),
        6 => (*packet.get(6)?, 40),
        _ => return None,
    };
    if protocol != 6 {
        return None;
    }
    let segment = packet.get(header..)?;
    segment.get(usize::from(*segment.get(12)? >> 4) * 4..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_lie_behind_both_headers() {
        let mut tcp = vec![0; 24];
        tcp[12] = 6 << 4;
        tcp.extend(b"data");
        let mut v4 = vec![0; 20];
        (v4[0], v4[9]) = (0x45, 6);
        v4.extend(&tcp);
        let mut v6 = vec![0; 40];
        (v6[0], v6[6]) = (0x60, 6);
        v6.extend(&tcp);
        for packet in [&v4, &v6] {
            assert_eq!(tcp_payload(packet), Some(&b"data"[..]));
            for end in 0..packet.len() - 4 {
                assert_eq!(tcp_payload(&packet[..end]), None, "cut at {end}");
            }
        }
        v4[9] = 17;
        assert_eq!(tcp_payload(&v4), None, "UDP");
        assert_eq!(tcp_payload(&[]), None);
    }
}
