//! Where most HTTP groups play: origins of this process behind one sidecar, and two doors to
//! each of them: the sidecar of a client, and the server's own port, which takes plaintext.

use std::net::SocketAddr;
use std::time::Duration;

use super::cost::Cost;
use crate::error::{Context as _, Error, Result};
use crate::process::{Spec, free_address};
use crate::verify::{Setting, world};
use crate::weft::{self, Control, Port, Sidecar, Workload, write_config};

/// How long anything may take that should be immediate.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The mesh, with a lane for each origin.
#[derive(Debug)]
pub(super) struct Stage {
    _control: Control,
    pub(super) client: Sidecar,
    pub(super) server: Sidecar,
    pub(super) lanes: Vec<Lane>,
    /// Where the client's sidecar takes requests.
    pub(super) outbound: SocketAddr,
}

/// An origin, and the ways to it.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    /// What a request must have as Host.
    pub(super) host: String,
    outbound: SocketAddr,
    inbound: SocketAddr,
}

/// Where a hostile client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// It is the application of the client's sidecar: two sidecars are between it and the origin.
    Outbound,
    /// It calls the server's sidecar in plaintext.
    Inbound,
}

impl Door {
    pub(super) const BOTH: [Self; 2] = [Self::Outbound, Self::Inbound];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

impl Lane {
    /// Through something that has one door only.
    pub(super) const fn at(host: String, address: SocketAddr) -> Self {
        Self {
            host,
            outbound: address,
            inbound: address,
        }
    }

    pub(super) const fn door(&self, door: Door) -> SocketAddr {
        match door {
            Door::Outbound => self.outbound,
            Door::Inbound => self.inbound,
        }
    }
}

/// What an application is said to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    Http2,
}

impl Speaks {
    const fn protocol(self) -> &'static str {
        match self {
            Self::Http1 => "http",
            Self::Http2 => "http2",
        }
    }
}

/// Whether sidecars take plaintext from whoever reaches their ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mtls {
    Permissive,
    Strict,
}

impl Mtls {
    fn mesh(self) -> String {
        let mode = match self {
            Self::Permissive => "permissive",
            Self::Strict => "strict",
        };
        format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: mesh}}\n\
             spec: {{trustDomain: bench.test, mtls: {{mode: {mode}}}}}\n"
        )
    }
}

impl Stage {
    /// A lane for each of these applications, which listen already and speak HTTP/1.
    pub(super) async fn start(setting: &Setting, apps: &[SocketAddr]) -> Result<Self> {
        let apps: Vec<_> = apps.iter().map(|app| (*app, Speaks::Http1)).collect();
        Self::start_as(setting, &apps, "", |spec| spec).await
    }

    /// As `start`, with further documents and settings of the sidecars.
    pub(super) async fn start_as(
        setting: &Setting,
        apps: &[(SocketAddr, Speaks)],
        documents: &str,
        how: impl Fn(Spec) -> Spec,
    ) -> Result<Self> {
        Self::start_with(setting, Mtls::Permissive, apps, documents, how).await
    }

    /// As `start_as`, in a mesh that takes plaintext or does not.
    pub(super) async fn start_with(
        setting: &Setting,
        mtls: Mtls,
        apps: &[(SocketAddr, Speaks)],
        documents: &str,
        how: impl Fn(Spec) -> Spec,
    ) -> Result<Self> {
        let dir = setting.dir();
        let outbound = free_address()?;
        let mut text = mtls.mesh();
        let (mut lanes, mut ports) = (Vec::new(), Vec::new());
        for (number, (app, speaks)) in (0_u16..).zip(apps) {
            let (name, port) = (format!("lane-{number}"), 8080 + number);
            let protocol = Some(speaks.protocol());
            text += &weft::service(&name, "app: server", port, protocol);
            let listen = free_address()?;
            ports.push(Port {
                port,
                protocol,
                listen,
                app: *app,
            });
            lanes.push(Lane {
                host: format!("{name}.bench"),
                outbound,
                inbound: listen,
            });
        }
        let server = Workload {
            name: "server",
            account: "server",
            app: "server",
            version: "",
            ports,
            outbound: Some(free_address()?),
            upstreams: Vec::new(),
        };
        text += &(server.yaml() + &world::client(outbound, Vec::new()).yaml());
        write_config(dir, "mesh.yaml", &text)?;
        if !documents.is_empty() {
            write_config(dir, "more.yaml", documents)?;
        }
        let control = Control::start(&setting.programs, dir).await?;
        let server = control.sidecar_as("bench", "server", "server", &how);
        let server = server.await?;
        let client = control.sidecar_as("bench", "client", "client", &how);
        let mut client = client.await?;
        client.process.listens(outbound).await?;
        let mut stage = Self {
            _control: control,
            client,
            server,
            lanes,
            outbound,
        };
        for lane in &stage.lanes {
            stage.server.process.listens(lane.inbound).await?;
        }
        Ok(stage)
    }

    /// What both sidecars cost from now on.
    pub(super) fn cost(&self) -> Result<Cost> {
        Cost::start(&[self.client.process.pid, self.server.process.pid])
    }

    /// An error if a sidecar has ended or panicked.
    pub(super) fn alive(&mut self) -> Result<()> {
        for sidecar in [&mut self.client, &mut self.server] {
            let process = &mut sidecar.process;
            if process.ended().is_some() {
                let what = format!("{} has ended:\n{}", process.name, process.tail());
                return Err(Error::new(what));
            }
            if process.output().contains("panicked at") {
                let what = format!("{} has panicked:\n{}", process.name, process.tail());
                return Err(Error::new(what));
            }
        }
        Ok(())
    }
}

/// Numbers that are the same in every run.
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// From 0 to below `n`, which is not 0 (xorshift64*, Vigna 2016).
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or_default() % n.max(1)
    }
}

/// Bytes in one line, escaped, at most so many of them.
pub(super) fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 300;
    let text = bytes[..bytes.len().min(MOST)].escape_ascii();
    match bytes.len().saturating_sub(MOST) {
        0 => format!("\"{text}\""),
        more => format!("\"{text}\" and {more} bytes more"),
    }
}

/// A connection to a door.
pub(super) async fn connect(address: SocketAddr) -> Result<tokio::net::TcpStream> {
    let stream = tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(address));
    let stream = stream.await.context("connect")?.context("connect")?;
    stream.set_nodelay(true).context("connect")?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dice_are_fair_enough_and_the_same_each_time() {
        let throw = || {
            let mut dice = Dice::new(7);
            (0..6_000).map(|_| dice.below(6)).collect::<Vec<_>>()
        };
        assert_eq!(throw(), throw());
        for side in 0..6 {
            let count = throw().into_iter().filter(|n| *n == side).count();
            assert!((800..1200).contains(&count), "{side}: {count}");
        }
    }

    #[test]
    fn long_bytes_are_cut() {
        assert_eq!(shown(b"a\r\n"), "\"a\\r\\n\"");
        assert!(shown(&[b'a'; 301]).ends_with("a\" and 1 bytes more"));
    }
}
