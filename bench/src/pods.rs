//! Weft as containers meet it: every workload is a host of its own whose application knows
//! nothing of the mesh. `weft-proxy init` captures its traffic, the sidecar runs beside it.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::error::{Context as _, Error, Result};
use crate::netns::{self, Family, Host, Network, PROXY, User};
use crate::process::{Process, Spec, exit_text};
use crate::weft::{self, Programs, Reply, exchange_on};

/// How long a program may take to become ready.
pub(crate) const READY: Duration = Duration::from_secs(20);
/// Numbers of the hosts that are no pods.
pub(crate) const CONTROL: u8 = 250;
pub(crate) const OUTSIDE: u8 = 9;
/// Ports of the control plane and of the sidecar's open admin interface.
const CONTROL_PORT: u16 = 14012;
const CONTROL_ADMIN_PORT: u16 = 14013;
pub(crate) const PUBLIC_ADMIN: u16 = 14020;

/// How the traffic of a pod is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Redirect,
    Tproxy,
    Route,
}

impl Mode {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::Tproxy => "tproxy",
            Self::Route => "route",
        }
    }

    /// What the Workload document says.
    const fn documented(self) -> &'static str {
        match self {
            Self::Redirect | Self::Route => "redirect",
            Self::Tproxy => "tproxy",
        }
    }

    const fn user(self) -> User {
        match self {
            Self::Redirect => User::Proxy,
            Self::Tproxy => User::TransparentProxy,
            Self::Route => User::RawProxy,
        }
    }
}

/// The network, a control plane, and a host outside of the mesh.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) control: Process,
    pub(crate) control_host: Host,
    /// Its port 53 is the nameserver of all pods.
    pub(crate) outside: Host,
    pub(crate) network: Network,
    control_spec: Spec,
    programs: Programs,
    dir: PathBuf,
}

impl Cluster {
    /// Starts the control plane over `dir/config`; the documents are to be there already.
    pub(crate) async fn start(programs: &Programs, dir: &Path) -> Result<Self> {
        // Sidecars run as a user of their own, and may replace themselves by their program.
        allow_all(dir)?;
        let bin = dir.join("bin");
        fs::create_dir_all(&bin).context(bin.display())?;
        allow_all(&bin)?;
        let proxy = bin.join("weft-proxy");
        fs::copy(&programs.proxy, &proxy).context(proxy.display())?;
        let programs = Programs {
            control: programs.control.clone(),
            proxy,
        };
        let network = Network::new()?;
        let nameserver = netns::address(OUTSIDE, Family::V4);
        let outside = network.host("outside", OUTSIDE, nameserver)?;
        let control_host = network.host("control", CONTROL, nameserver)?;
        let control_spec = control_host
            .spec("weft-control", &programs.control, User::Root)
            .arg("serve")
            .pair("--config", dir.join("config"))
            .pair("--data", dir.join("data"))
            .pair(
                "--listen",
                control_host.at(Family::V4, CONTROL_PORT).to_string(),
            )
            .pair(
                "--admin",
                control_host.at(Family::V4, CONTROL_ADMIN_PORT).to_string(),
            )
            .env("WEFT_LOG", "info");
        let control = control_spec.start(dir)?;
        let mut cluster = Self {
            control,
            control_host,
            outside,
            network,
            control_spec,
            programs,
            dir: dir.to_owned(),
        };
        cluster.control_ready().await?;
        Ok(cluster)
    }

    /// Starts the control plane again, after it has ended.
    pub(crate) async fn start_control(&mut self) -> Result<()> {
        self.control = self.control_spec.start(&self.dir)?;
        self.control_ready().await
    }

    async fn control_ready(&mut self) -> Result<()> {
        let (host, address) = (
            &self.control_host,
            self.control_host.at(Family::V4, CONTROL_ADMIN_PORT),
        );
        self.control
            .until("was ready", READY, || is_ready(host, address))
            .await
    }

    /// A pod with the traffic captured and no sidecar yet. `init` are further arguments of
    /// `weft-proxy init`.
    pub(crate) async fn pod(
        &self,
        name: &str,
        number: u8,
        mode: Mode,
        init: &[&str],
    ) -> Result<Pod> {
        let pod = self.pod_uncaptured(name, number, mode).await?;
        self.capture(&pod.host, mode, init).await?;
        Ok(pod)
    }

    /// Runs `weft-proxy init` on a host.
    pub(crate) async fn capture(&self, host: &Host, mode: Mode, init: &[&str]) -> Result<()> {
        let spec = host
            .spec("init", &self.programs.proxy, User::Root)
            .arg("init")
            .pair("--mode", mode.name());
        let spec = init.iter().fold(spec, |spec, arg| spec.arg(arg));
        spec.run(&self.dir, READY).await?.ok("weft-proxy init")?;
        Ok(())
    }

    /// A pod whose traffic nobody captures, without a sidecar yet.
    pub(crate) async fn pod_uncaptured(&self, name: &str, number: u8, mode: Mode) -> Result<Pod> {
        let host = self
            .network
            .host(name, number, netns::address(OUTSIDE, Family::V4))?;
        let state = self.dir.join(format!("{name}-state"));
        fs::create_dir_all(&state).context(state.display())?;
        let owner = mode.user().uid();
        std::os::unix::fs::chown(&state, Some(owner), Some(PROXY)).context(state.display())?;
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).context(state.display())?;
        let control = self.control_host.at(Family::V4, CONTROL_PORT);
        let sidecar = host
            .spec(format!("sidecar-{name}"), &self.programs.proxy, mode.user())
            .arg("run")
            .env("WEFT_PROXY_CONTROL", control.to_string())
            .env("WEFT_PROXY_WORKLOAD", format!("bench/{name}"))
            .env("WEFT_PROXY_TOKEN", self.token(name).await?)
            .env("WEFT_PROXY_STATE", state.to_string_lossy())
            .env("WEFT_LOG", "info");
        Ok(Pod {
            name: name.to_owned(),
            sidecar,
            proxy: self.programs.proxy.clone(),
            state,
            host: Arc::new(host),
            dir: self.dir.clone(),
        })
    }

    /// Waits until packets of both families reach a host: a new link may take a second.
    pub(crate) async fn reach(&self, host: &Host) {
        for family in Family::BOTH {
            // Refused is reached as well; who is not is found by the cases.
            let _ = self.outside.connect(host.at(family, 9)).await;
        }
    }

    /// A token for the service account that is named like the workload.
    async fn token(&self, account: &str) -> Result<String> {
        let output = Spec::new("weft-control token create", &self.programs.control)
            .arg("token")
            .arg("create")
            .pair("--data", self.dir.join("data"))
            .pair("--namespace", "bench")
            .pair("--service-account", account)
            .pair("--ttl", "1h")
            .arg("--reusable")
            .run(&self.dir, READY)
            .await?;
        Ok(output.ok("weft-control token create")?.trim().to_owned())
    }

    /// Replaces a file of the configuration. Returns the instant of the rename.
    pub(crate) fn write(&self, file: &str, text: &str) -> Result<Instant> {
        weft::write_config(&self.dir, file, text)
    }
}

/// A workload on a host of its own.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) host: Arc<Host>,
    /// Of the running sidecar: `WEFT_PROXY_STATE`.
    pub(crate) state: PathBuf,
    pub(crate) proxy: PathBuf,
    sidecar: Spec,
    dir: PathBuf,
}

impl Pod {
    /// Starts a sidecar; if one is running over the same state, this one takes over from it.
    pub(crate) fn start(&self) -> Result<Process> {
        self.sidecar.start(&self.dir)
    }

    /// Starts a sidecar and waits until it is ready.
    pub(crate) async fn start_ready(&self) -> Result<Process> {
        let mut process = self.start()?;
        self.ready(&mut process).await?;
        Ok(process)
    }

    /// Waits until the admin interface of the pod says that it is ready.
    pub(crate) async fn ready(&self, process: &mut Process) -> Result<()> {
        let address = self.host.at(Family::V4, PUBLIC_ADMIN);
        process
            .until("was ready", READY, || is_ready(&self.host, address))
            .await
    }

    /// Starts a second sidecar over the state of `old`, waits for its readiness and then for
    /// the end of the old one.
    pub(crate) async fn upgrade(&self, old: &mut Process, limit: Duration) -> Result<Process> {
        let mut new = self.start()?;
        self.ready(&mut new).await?;
        let status = old
            .wait(limit)
            .await
            .map_err(|error| Error::new(format!("the old sidecar: {error}\n{}", new.tail())))?;
        if !status.success() {
            return Err(Error::new(format!(
                "the old sidecar of {} ended with {}:\n{}",
                self.name,
                exit_text(status),
                old.tail()
            )));
        }
        Ok(new)
    }

    /// Asks a page of the sidecar's open admin interface, from inside of the pod.
    pub(crate) async fn admin(&self, path: &str) -> Result<Reply> {
        get(
            &self.host,
            self.host.at(Family::V4, PUBLIC_ADMIN),
            "localhost",
            path,
        )
        .await
    }

    /// An application of the pod, without rights.
    pub(crate) fn app(&self, name: impl Into<String>, program: impl Into<PathBuf>) -> Spec {
        self.host.spec(name, program, User::Nobody)
    }

    /// The application `backend` on these ports; waits until it listens.
    pub(crate) async fn backend(&self, http: u16, tcp: Option<u16>) -> Result<Process> {
        backend(&self.host, &self.name, http, tcp, &self.dir).await
    }
}

/// The application `backend` on any address of the host; waits until it listens.
pub(crate) async fn backend(
    host: &Host,
    name: &str,
    http: u16,
    tcp: Option<u16>,
    dir: &Path,
) -> Result<Process> {
    let me = std::env::current_exe().context("the path of this program")?;
    let any = |port: u16| SocketAddr::new(IpAddr::from([0_u16; 8]), port).to_string();
    // As root: this program may be where nobody else may read.
    let mut spec = host
        .spec(format!("app-{name}-{http}"), me, User::Root)
        .arg("backend")
        .pair("--listen", any(http))
        .pair("--name", name);
    if let Some(tcp) = tcp {
        spec = spec.pair("--tcp", any(tcp));
    }
    let mut process = spec.start(dir)?;
    listens(host, &mut process, http).await?;
    Ok(process)
}

/// Waits until something accepts on that port of the host's loopback.
pub(crate) async fn listens(host: &Host, process: &mut Process, port: u16) -> Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    process
        .until("listened", READY, || async move {
            host.connect(address).await.is_ok()
        })
        .await
}

async fn is_ready(host: &Host, address: SocketAddr) -> bool {
    matches!(get(host, address, "localhost", "/ready").await, Ok(reply) if reply.status == 200)
}

/// A GET from a host, on a connection of its own.
pub(crate) async fn get(
    host: &Host,
    address: SocketAddr,
    authority: &str,
    path: &str,
) -> Result<Reply> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n");
    exchange_on(host.connect(address).await?, request.as_bytes()).await
}

/// GETs until the answer is as wanted, for 10 s at most.
pub(crate) async fn until_answered(
    host: &Host,
    address: SocketAddr,
    wanted: impl Fn(&Reply) -> bool,
) -> Result<Reply> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let last = match get(host, address, &address.to_string(), "/").await {
            Ok(reply) if wanted(&reply) => return Ok(reply),
            Ok(reply) => reply.line(),
            Err(error) => error.to_string(),
        };
        if Instant::now() > deadline {
            return Err(Error::new(format!(
                "{address} was not answered as expected in 10 s; the last answer: {last}"
            )));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ends a process with SIGKILL, unless it has ended, and returns between which two instants it died.
pub(crate) async fn kill(process: &mut Process) -> Result<(Instant, Instant)> {
    let from = Instant::now();
    if process.ended().is_none() {
        process.signal(Signal::KILL)?;
        process.wait(READY).await?;
    }
    Ok((from, Instant::now()))
}

fn allow_all(dir: &Path) -> Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).context(dir.display())
}

/// A port of a Service: name, number, the workload's port, the protocol if declared.
pub(crate) type ServicePort<'a> = (&'a str, u16, u16, Option<&'a str>);

/// A Service of the workload of that name.
pub(crate) fn service(name: &str, workload: &str, ips: &str, ports: &[ServicePort<'_>]) -> String {
    let ips = match ips.split(' ').next() {
        None | Some("") => String::new(),
        Some("None") => "  clusterIP: None\n".to_owned(),
        Some(first) => {
            let all: Vec<String> = ips.split(' ').map(|ip| format!("\"{ip}\"")).collect();
            format!(
                "  clusterIP: \"{first}\"\n  clusterIPs: [{}]\n",
                all.join(", ")
            )
        }
    };
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: bench}}\nspec:\n  \
         selector: {{app: {workload}}}\n{ips}  ports:\n"
    );
    for (name, port, target, protocol) in ports {
        let protocol = protocol
            .map(|protocol| format!(", appProtocol: {protocol}"))
            .unwrap_or_default();
        text += &format!("  - {{name: {name}, port: {port}, targetPort: {target}{protocol}}}\n");
    }
    text
}

/// The Workload of a captured pod; its ports need not be named, callers' services do that.
pub(crate) fn workload(
    name: &str,
    app: &str,
    number: u8,
    mode: Mode,
    exclude: &[u16],
    ports: &[u16],
) -> String {
    let mut capture = format!("mode: {}", mode.documented());
    if !exclude.is_empty() {
        capture += &format!(", excludeInboundPorts: {exclude:?}");
    }
    let mut text = format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: {name}\n  namespace: bench\n  \
         labels: {{app: {app}}}\nspec:\n  serviceAccount: {name}\n  address: {}\n  \
         additionalAddresses: [\"{}\"]\n  capture: {{{capture}}}\n",
        netns::address(number, Family::V4),
        netns::address(number, Family::V6)
    );
    if !ports.is_empty() {
        let ports: Vec<String> = ports
            .iter()
            .map(|port| format!("{{port: {port}}}"))
            .collect();
        text += &format!("  ports: [{}]\n", ports.join(", "));
    }
    text
}

/// The mesh itself; `unknown` is `allow` or `deny`.
pub(crate) fn mesh_config(unknown: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: mesh}}\n\
         spec: {{trustDomain: bench.test, outbound: {{unknown: {unknown}}}}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_addresses_or_none() {
        let ports = [("http", 80, 8080, Some("http")), ("any", 81, 8081, None)];
        let text = service("echo", "shop", "10.96.0.1 fd00:96::1", &ports);
        let expect = "---\napiVersion: v1\nkind: Service\nmetadata: {name: echo, namespace: bench}\nspec:\n  \
                      selector: {app: shop}\n  clusterIP: \"10.96.0.1\"\n  \
                      clusterIPs: [\"10.96.0.1\", \"fd00:96::1\"]\n  ports:\n  \
                      - {name: http, port: 80, targetPort: 8080, appProtocol: http}\n  \
                      - {name: any, port: 81, targetPort: 8081}\n";
        assert_eq!(text, expect);
        assert!(service("echo", "shop", "None", &[]).contains("  clusterIP: None\n"));
        assert!(!service("echo", "shop", "", &[]).contains("clusterIP"));
    }

    #[test]
    fn workloads_are_captured() {
        let text = workload("shop-1", "shop", 3, Mode::Tproxy, &[9999], &[8080]);
        let expect = "---\napiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: shop-1\n  \
                      namespace: bench\n  labels: {app: shop}\nspec:\n  serviceAccount: shop-1\n  \
                      address: 10.9.3.2\n  additionalAddresses: [\"fd00:9:3::2\"]\n  \
                      capture: {mode: tproxy, excludeInboundPorts: [9999]}\n  ports: [{port: 8080}]\n";
        assert_eq!(text, expect);
    }
}
