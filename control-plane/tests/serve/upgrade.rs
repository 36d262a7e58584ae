//! The program as a process: upgrades in place, sockets and messages of a service manager.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use weft_api::Kind;
use weft_api::envoy::config::core::v3::Node;
use weft_api::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use weft_certs::WorkloadCert;
use weft_control::app::CA_DIRECTORY;
use weft_control::token::Tokens;

use crate::registration;
use crate::support::*;

const PROGRAM: &str = env!("CARGO_BIN_EXE_weft-control");

/// A control plane in a process of its own, and the processes that take its place. The last
/// of them ends with this.
struct Process {
    plane: Plane,
    first: Child,
    /// What all of them have logged.
    log: Arc<Mutex<Vec<String>>>,
    /// A link to the program, as an installation has it.
    program: PathBuf,
}

impl Drop for Process {
    /// Whatever became of the test, the last process ends.
    fn drop(&mut self) {
        let lock = self.program.with_file_name("data").join("lock");
        let holder = std::fs::read_to_string(lock).unwrap_or_default();
        let alive = std::thread::panicking() && !holder.trim().is_empty();
        if let Ok(pid) = holder.trim().parse()
            && alive
        {
            signal(pid, "TERM");
        }
    }
}

impl Process {
    async fn start(directory: &Path) -> Self {
        let program = link(directory, PROGRAM);
        let mut command = Command::new(&program);
        command.args(arguments(directory));
        Self::spawn(directory, command).await
    }

    async fn spawn(directory: &Path, mut command: Command) -> Self {
        let command = command.env("NO_COLOR", "1").stderr(Stdio::piped());
        let mut first = command.spawn().unwrap();
        let lines = BufReader::new(first.stderr.take().unwrap()).lines();
        let log = Arc::<Mutex<Vec<String>>>::default();
        let to = log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                to.lock().push(line);
            }
        });
        until_logged(&log, " serving address=").await;
        let line = log
            .lock()
            .iter()
            .find(|l| l.contains("serving addr"))
            .cloned()
            .unwrap();
        let value = |key: &str| {
            let (_, rest) = line.split_once(key).unwrap();
            rest.split(' ').next().unwrap().parse().unwrap()
        };
        let data = directory.join("data");
        let ca = weft_certs::Ca::open(&data.join(CA_DIRECTORY)).unwrap();
        let fingerprint = ca.root_fingerprint();
        let tokens = Tokens::open(&data, ca.trust_domain().clone(), fingerprint).unwrap();
        let (stop, _) = tokio::sync::oneshot::channel();
        let plane = Plane {
            address: value(" address="),
            admin: value(" admin="),
            fingerprint,
            bundle: Arc::new(ca.bundle()),
            tokens,
            stop,
            task: tokio::spawn(async { Ok(()) }),
        };
        Self {
            plane,
            first,
            log,
            program: directory.join("weft-control"),
        }
    }

    /// Which process answers.
    async fn pid(&self) -> u32 {
        let begun = Instant::now();
        loop {
            let page = self.try_page("/version").await.unwrap_or_default();
            let pid = page.split_once("\"pid\": ").map(|(_, rest)| rest);
            let digits = pid.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect());
            if let Some(pid) = digits.and_then(|text: String| text.parse().ok()) {
                return pid;
            }
            assert!(begun.elapsed() < PATIENCE, "no process answers");
        }
    }

    /// A page, unless the process that has taken the connection ends before it has answered.
    async fn try_page(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.plane.admin).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        soon(stream.read_to_string(&mut text)).await?;
        Ok(text)
    }

    async fn upgrade(&self) -> u32 {
        let before = self.pid().await;
        signal(before, "USR2");
        let begun = Instant::now();
        loop {
            let now = self.pid().await;
            if now != before {
                return now;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "no upgrade: {:#?}",
                self.log.lock()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn until_logged(&self, text: &str) {
        until_logged(&self.log, text).await;
    }

    /// What the next upgrade starts: a script.
    fn install_script(&self, script: &str) {
        let file = self.program.with_file_name("script");
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&file, mode).unwrap();
        link(self.program.parent().unwrap(), file.to_str().unwrap());
    }

    async fn stop(mut self) {
        signal(self.pid().await, "TERM");
        // The first may have ended long ago, in favour of another.
        let gone = async { while TcpStream::connect(self.plane.address).await.is_ok() {} };
        soon(gone).await;
        assert!(self.first.wait().unwrap().success());
    }
}

async fn until_logged(log: &Mutex<Vec<String>>, text: &str) {
    let begun = Instant::now();
    while !log.lock().iter().any(|line| line.contains(text)) {
        assert!(
            begun.elapsed() < PATIENCE,
            "no {text:?} in {:#?}",
            log.lock()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn arguments(directory: &Path) -> Vec<String> {
    let path = |name: &str| directory.join(name).display().to_string();
    let (config, data) = (path("config"), path("data"));
    let words = ["serve", "--config", &config, "--data", &data];
    let ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    words
        .iter()
        .chain(&ports)
        .map(|word| (*word).to_owned())
        .collect()
}

/// Points the link of the installation to a program, in one step.
fn link(directory: &Path, target: &str) -> PathBuf {
    let (link, new) = (directory.join("weft-control"), directory.join("new"));
    std::os::unix::fs::symlink(target, &new).unwrap();
    std::fs::rename(&new, &link).unwrap();
    link
}

fn signal(process: u32, name: &str) {
    let kill = format!("kill -{name} {process}");
    assert!(
        Command::new("sh")
            .args(["-c", &kill])
            .status()
            .unwrap()
            .success()
    );
}

/// What a sidecar does: it keeps its stream, and what it was told, and begins again with that.
struct Sidecar {
    node: Node,
    svid: WorkloadCert,
    /// Kind and name to version.
    has: BTreeMap<(Kind, String), String>,
    /// What of it was taken away.
    lost: Vec<String>,
    endpoints: usize,
    connected: u32,
}

impl Sidecar {
    fn new(node: Node, svid: &WorkloadCert) -> Self {
        Self {
            node,
            svid: svid.clone(),
            has: BTreeMap::new(),
            lost: Vec::new(),
            endpoints: 0,
            connected: 0,
        }
    }

    /// Keeps a stream until `endpoints` are known.
    async fn run(mut self, plane: Arc<Plane>, endpoints: usize, ready: Arc<AtomicU32>) -> Self {
        let mut told = false;
        while self.endpoints < endpoints {
            // Whatever happens to it: the next attempt follows.
            let _ = self.connect(&plane, endpoints, &ready, &mut told).await;
            let pause =
                (self.node.id.len() + self.has.len()) as u64 * u64::from(self.connected) % 50;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self
    }

    async fn connect(
        &mut self,
        plane: &Plane,
        endpoints: usize,
        ready: &AtomicU32,
        told: &mut bool,
    ) -> Result<(), Status> {
        let io = |error: std::io::Error| Status::unavailable(error.to_string());
        let channel = plane.try_channel(&self.svid).await.map_err(io)?;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut first = self.request(Kind::Listener, &[]);
        first.node = Some(self.node.clone());
        let mut ads = Ads::begin(channel, first).await?;
        let others = [
            (Kind::VirtualHost, "outbound/post"),
            (Kind::Cluster, "post.blog:80"),
            (Kind::Endpoint, "post.blog:80"),
            (Kind::Secret, "ROOTCA"),
        ];
        for (kind, name) in others {
            let request = self.request(kind, &[name]);
            ads.requests.send(request).await.unwrap();
        }
        self.connected += 1;
        while self.endpoints < endpoints {
            let Some(response) = ads.responses.message().await? else {
                return Ok(());
            };
            let kind = Kind::from_type_url(&response.type_url).unwrap();
            for name in &response.removed_resources {
                self.lost.push(format!("{kind} {name}"));
            }
            for resource in &response.resources {
                let key = (kind, resource.name.clone());
                self.has.insert(key, resource.version.clone());
            }
            if kind == Kind::Endpoint {
                self.endpoints = health(&response).len();
            }
            ads.ack(&response).await;
            if !*told && self.has.len() >= 4 {
                *told = true;
                ready.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn request(&self, kind: Kind, names: &[&str]) -> DeltaDiscoveryRequest {
        let has = self.has.iter().filter(|((k, _), _)| *k == kind);
        DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            initial_resource_versions: has
                .map(|((_, name), version)| (name.clone(), version.clone()))
                .collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }
}

/// Connects all the time; counts the connections that are refused.
fn knock(addresses: [SocketAddr; 2], stop: Arc<AtomicBool>) -> JoinHandle<(u32, u32)> {
    tokio::spawn(async move {
        let (mut tried, mut refused) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            for address in addresses {
                tried += 1;
                if let Err(error) = TcpStream::connect(address).await {
                    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
                    refused += 1;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (tried, refused)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_upgrades_refuse_no_connection_and_take_nothing_away() {
    let directory = directory();
    let process = Process::start(directory.path()).await;
    let plane = &process.plane;
    let (web, post) = (plane.svid("web").await, plane.svid("post").await);
    // One that drains, and one that has registered itself.
    let mut ads = plane.ads(&post, "blog/post-v1").await;
    ads.told().await;
    drop(ads.requests);
    assert_eq!(soon(ads.responses.message()).await.unwrap(), None);
    let process = Arc::new(process);
    let ready = Arc::new(AtomicU32::new(0));
    let shared = Arc::new(process.plane.again());
    // Two endpoints before and in all upgrades; the third ends the test.
    let mut sidecars = vec![Sidecar::new(
        registration::node("blog/post-9", "10.9.0.2"),
        &post,
    )];
    sidecars.extend((0..20).map(|n| Sidecar::new(Ads::node(&format!("blog/new-{n}")), &web)));
    let count = u32::try_from(sidecars.len()).unwrap();
    let sidecars: Vec<_> = sidecars
        .into_iter()
        .map(|sidecar| tokio::spawn(sidecar.run(shared.clone(), 3, ready.clone())))
        .collect();
    soon(async {
        while ready.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let knocking = knock([shared.address, shared.admin], stop.clone());

    let mut pids = vec![process.pid().await];
    for _ in 0..5 {
        pids.push(process.upgrade().await);
        let page = process.plane.page("/debug/config").await;
        assert!(page.contains("\"blog/post-v1\""), "it drains still: {page}");
        let page = process.plane.page("/debug/registrations").await;
        assert!(page.contains("\"blog/post-9\""), "{page}");
        // It is back before the next.
        let back = "weft_control_registrations_total{result=\"registered\"} 1";
        process.plane.until_page("/metrics", back).await;
    }
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 6, "each was another process");
    std::fs::write(directory.path().join("config/v2.yaml"), POST_V2).unwrap();
    for sidecar in sidecars {
        let sidecar = soon(sidecar).await.unwrap();
        assert_eq!(sidecar.lost, Vec::<String>::new(), "{}", sidecar.node.id);
        assert!(sidecar.connected > 1, "{}", sidecar.connected);
    }
    stop.store(true, Ordering::Relaxed);
    let (tried, refused) = soon(knocking).await.unwrap();
    assert!(tried > 100, "{tried}");
    assert_eq!(refused, 0, "of {tried} connections");
    let process = Arc::into_inner(process).unwrap();
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_that_fails_harms_nothing() {
    let directory = directory();
    let process = Process::start(directory.path()).await;
    let web = process.plane.svid("web").await;
    let pid = process.pid().await;
    let mut ads = process.plane.ads(&web, "blog/web").await;
    ads.expect("listener: outbound").await;

    // It does not come far enough to ask for the place: nobody notices.
    process.install_script("exit 3");
    signal(pid, "USR2");
    process
        .until_logged("no upgrade: serving on as before")
        .await;
    process.until_logged("has ended: exit status: 3").await;
    std::fs::remove_file(&process.program).unwrap();
    process.log.lock().clear();
    signal(pid, "USR2");
    process.until_logged("cannot start").await;
    ads.subscribe(Kind::Secret, &["ROOTCA"]).await;
    ads.expect("secret: ROOTCA").await;

    // It has asked for the place, and cannot fill it: the old one takes it back.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = taken.local_addr().unwrap();
    let words = arguments(directory.path());
    let words = words[..words.len() - 1].join(" ");
    process.install_script(&format!("exec {PROGRAM} {words} {admin}"));
    process.log.lock().clear();
    signal(pid, "USR2");
    process
        .until_logged("the upgrade has failed: serving again")
        .await;
    process.until_logged("another process has the port").await;
    process.until_logged("has ended: exit status: 1").await;
    assert_eq!(ads.next().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(process.pid().await, pid);
    let mut ads = process.plane.ads(&web, "blog/web").await;
    ads.expect("listener: outbound").await;

    // And the next one is as good as ever.
    link(directory.path(), PROGRAM);
    assert_ne!(process.upgrade().await, pid);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_has_one_control_plane() {
    let directory = directory();
    let process = Process::start(directory.path()).await;
    let pid = process.pid().await;
    let second = Command::new(PROGRAM)
        .args(arguments(directory.path()))
        .output();
    let second = second.unwrap();
    let text = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("process {pid} uses it")), "{text}");
    assert!(text.contains("SIGUSR2"), "{text}");
    process.stop().await;
}

/// Starts a program as a service manager does: with a socket as descriptor 3.
const ACTIVATE: &str = r#"
use IO::Socket::INET; use POSIX;
my $name = shift;
$^F = 10; # what is opened now outlives exec
my $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1:0", Listen => 64) or die "listen: $!";
print STDERR "opened ", $s->sockport, "\n";
POSIX::dup2(fileno($s), 3) or die "dup2: $!" unless fileno($s) == 3;
$ENV{LISTEN_PID} = $$; $ENV{LISTEN_FDS} = 1; $ENV{LISTEN_FDNAMES} = $name;
exec @ARGV or die "exec: $!";
"#;

fn activated(directory: &Path, name: &str) -> Command {
    let program = link(directory, PROGRAM);
    let mut command = Command::new("perl");
    command.args(["-e", ACTIVATE, name]).arg(program);
    command.args(arguments(directory));
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_opens_the_sockets_and_is_told() {
    let directory = directory();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut bytes = [0; 256];
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let mut command = activated(directory.path(), "grpc");
    command.env("NOTIFY_SOCKET", &path);
    let process = Process::spawn(directory.path(), command).await;
    let port = process.plane.address.port();
    process.until_logged(&format!("opened {port}")).await;
    assert_eq!(told(), "READY=1\n");
    let web = process.plane.svid("web").await;
    let mut ads = process.plane.ads(&web, "blog/web").await;
    ads.expect("listener: outbound").await;

    let pid = process.upgrade().await;
    assert_eq!(told(), "READY=1\n");
    assert_eq!(told(), format!("MAINPID={pid}\n"));
    let mut ads = process.plane.ads(&web, "blog/web").await;
    ads.expect("listener: outbound").await;
    process.stop().await;
    assert_eq!(told(), "STOPPING=1\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_of_the_service_manager_that_nobody_serves_is_an_error() {
    let directory = directory();
    let output = activated(directory.path(), "web").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("has opened web at 127.0.0.1:"), "{text}");
    assert!(text.contains("FileDescriptorName="), "{text}");
}
