//! Weft as a user runs it: the programs, a control plane over a directory of documents,
//! sidecars configured by their environment.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::{Context as _, Error, Result};
use crate::load::response;
use crate::process::{Process, Spec, free_address};

/// How long a program may take to become ready.
const READY: Duration = Duration::from_secs(20);
/// How long a response may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Where Weft's programs are.
#[derive(Debug, Clone, Args)]
pub(crate) struct BinDir {
    /// Directory of weft-control and weft-proxy [default: that of this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// Weft's programs.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) control: PathBuf,
    pub(crate) proxy: PathBuf,
}

impl BinDir {
    /// The programs; an error says which one is missing and where it was looked for.
    pub(crate) fn programs(&self) -> Result<Programs> {
        let dir = match &self.bin_dir {
            Some(dir) => dir
                .canonicalize()
                .context(format!("--bin-dir {}", dir.display()))?,
            None => {
                let me = std::env::current_exe().context("the path of this program")?;
                me.parent()
                    .context("this program has no directory")?
                    .to_owned()
            }
        };
        let find = |name: &str| {
            let path = dir.join(name);
            if path.is_file() {
                return Ok(path);
            }
            Err(Error::new(format!(
                "{name} is not in {}: build it, or give --bin-dir",
                dir.display()
            )))
        };
        Ok(Programs {
            control: find("weft-control")?,
            proxy: find("weft-proxy")?,
        })
    }
}

/// A control plane and the directory that it serves.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    spec: Spec,
    programs: Programs,
    dir: PathBuf,
}

impl Control {
    /// Starts one over `dir/config`, with its state in `dir/data`, and waits until it is ready.
    /// The documents are to be there already.
    pub(crate) async fn start(programs: &Programs, dir: &Path) -> Result<Self> {
        let (address, admin) = (free_address()?, free_address()?);
        let spec = Spec::new("weft-control", &programs.control)
            .arg("serve")
            .pair("--config", dir.join("config"))
            .pair("--data", dir.join("data"))
            .pair("--listen", address.to_string())
            .pair("--admin", admin.to_string())
            .env("WEFT_LOG", "info");
        let process = spec.start(dir)?;
        let mut control = Self {
            process,
            address,
            admin,
            spec,
            programs: programs.clone(),
            dir: dir.to_owned(),
        };
        control.ready().await?;
        Ok(control)
    }

    /// Starts it again on the same addresses and state, after it has ended.
    pub(crate) async fn start_again(&mut self) -> Result<()> {
        self.process = self.spec.start(&self.dir)?;
        self.ready().await
    }

    async fn ready(&mut self) -> Result<()> {
        let admin = self.admin;
        self.process
            .until("was ready", READY, || is_ready(admin))
            .await
    }

    /// A join token for a service account; it may be used again, so that a sidecar can be
    /// started twice.
    pub(crate) async fn token(&self, namespace: &str, account: &str) -> Result<String> {
        let output = Spec::new("weft-control token create", &self.programs.control)
            .arg("token")
            .arg("create")
            .pair("--data", self.dir.join("data"))
            .pair("--namespace", namespace)
            .pair("--service-account", account)
            .pair("--ttl", "1h")
            .arg("--reusable")
            .run(&self.dir, READY)
            .await?;
        Ok(output.ok("weft-control token create")?.trim().to_owned())
    }

    /// Starts the sidecar of a workload and waits until it is ready.
    pub(crate) async fn sidecar(
        &self,
        namespace: &str,
        workload: &str,
        account: &str,
    ) -> Result<Sidecar> {
        self.sidecar_as(namespace, workload, account, |spec| spec)
            .await
    }

    /// As `sidecar`, with settings of its own, or started by another program.
    pub(crate) async fn sidecar_as(
        &self,
        namespace: &str,
        workload: &str,
        account: &str,
        how: impl FnOnce(Spec) -> Spec,
    ) -> Result<Sidecar> {
        let (spec, public_admin) = self.sidecar_spec(namespace, workload, account).await?;
        let mut sidecar = Sidecar {
            process: how(spec).start(&self.dir)?,
            public_admin,
        };
        sidecar.ready().await?;
        Ok(sidecar)
    }

    async fn sidecar_spec(
        &self,
        namespace: &str,
        workload: &str,
        account: &str,
    ) -> Result<(Spec, SocketAddr)> {
        let token = self.token(namespace, account).await?;
        let (admin, public_admin) = (free_address()?, free_address()?);
        let spec = Spec::new(format!("weft-proxy-{workload}"), &self.programs.proxy)
            .arg("run")
            .env("WEFT_PROXY_CONTROL", self.address.to_string())
            .env("WEFT_PROXY_WORKLOAD", format!("{namespace}/{workload}"))
            .env("WEFT_PROXY_TOKEN", token)
            .env("WEFT_PROXY_ADMIN", admin.to_string())
            .env("WEFT_PROXY_PUBLIC_ADMIN", public_admin.to_string())
            .env("WEFT_LOG", "info");
        Ok((spec, public_admin))
    }

    /// Writes a file of the configuration as editors and deployment tools do: next to it,
    /// then renamed over it. Returns the instant of the rename.
    pub(crate) fn write(&self, file: &str, text: &str) -> Result<Instant> {
        write_config(&self.dir, file, text)
    }

    /// The directory of the documents.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config")
    }
}

/// A running sidecar.
#[derive(Debug)]
pub(crate) struct Sidecar {
    pub(crate) process: Process,
    pub(crate) public_admin: SocketAddr,
}

impl Sidecar {
    pub(crate) async fn ready(&mut self) -> Result<()> {
        let admin = self.public_admin;
        self.process
            .until("was ready", READY, || is_ready(admin))
            .await
    }
}

/// See `Control::write`; makes `dir/config` if need be.
pub(crate) fn write_config(dir: &Path, file: &str, text: &str) -> Result<Instant> {
    let config = dir.join("config");
    fs::create_dir_all(&config).context(config.display())?;
    let temporary = dir.join(format!("{file}.new"));
    fs::write(&temporary, text).context(temporary.display())?;
    let path = config.join(file);
    fs::rename(&temporary, &path).context(path.display())?;
    Ok(Instant::now())
}

async fn is_ready(admin: SocketAddr) -> bool {
    matches!(get(admin, "localhost", "/ready").await, Ok((200, _)))
}

/// A GET on a connection of its own: the status and the body.
pub(crate) async fn get(address: SocketAddr, host: &str, path: &str) -> Result<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    let reply = exchange(address, request.as_bytes()).await?;
    Ok((reply.status, reply.body))
}

/// One response, whole.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// `weft-reason`, or empty.
    pub(crate) reason: String,
    /// `x-version` of the application, or empty.
    pub(crate) version: String,
    pub(crate) body: String,
}

impl Reply {
    /// Status, reason and body in one line.
    pub(crate) fn line(&self) -> String {
        format!("{} {} {}", self.status, self.reason, shown(&self.body))
    }
}

/// A body in a few words: itself, or how long it is.
pub(crate) fn shown(body: &str) -> String {
    match body.trim() {
        short if short.len() < 100 => short.replace('\n', " | "),
        long if long.contains(' ') => long.replace('\n', " | ").chars().take(300).collect(),
        long => format!("{} bytes", long.len()),
    }
}

/// Sends a request on a connection of its own and reads until the response is complete.
pub(crate) async fn exchange(address: SocketAddr, request: &[u8]) -> Result<Reply> {
    let stream = timeout(ANSWER, TcpStream::connect(address))
        .await
        .context(format!("{address} did not accept a connection"))?
        .context(format!("connect to {address}"))?;
    exchange_on(stream, request).await
}

/// Sends a request on a new connection and reads until the response is complete.
pub(crate) async fn exchange_on(stream: TcpStream, request: &[u8]) -> Result<Reply> {
    let peer = stream.peer_addr().context("the connection")?;
    timeout(ANSWER, exchange_unbounded(stream, peer, request))
        .await
        .context(format!("{peer} did not answer in {ANSWER:?}"))?
}

async fn exchange_unbounded(
    mut stream: TcpStream,
    address: SocketAddr,
    request: &[u8],
) -> Result<Reply> {
    stream.write_all(request).await.context("write")?;
    let mut buffer = Vec::new();
    loop {
        let n = stream.read_buf(&mut buffer).await.context("read")?;
        let Some(head) = response::parse(&buffer).map_err(Error::new)? else {
            if n == 0 {
                return Err(Error::new(format!(
                    "{address} closed the connection without a response"
                )));
            }
            continue;
        };
        let body = &buffer[head.length..];
        // Without a length the body ends with the connection, or is chunked; the end of the
        // connection, which was asked for, ends both.
        if head.body.is_some_and(|length| body.len() >= length) || n == 0 {
            return Ok(Reply {
                status: head.status,
                reason: head.header("weft-reason").unwrap_or_default().to_owned(),
                version: head.header("x-version").unwrap_or_default().to_owned(),
                body: String::from_utf8_lossy(body).into_owned(),
            });
        }
    }
}

/// A Service document with one port, 80; the selector is `label: value, ..`.
pub(crate) fn service(name: &str, selector: &str, target: u16, protocol: Option<&str>) -> String {
    let protocol = protocol
        .map(|protocol| format!(", appProtocol: {protocol}"))
        .unwrap_or_default();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: bench}}\nspec:\n  \
         selector: {{{selector}}}\n  ports: [{{name: main, port: 80, targetPort: {target}{protocol}}}]\n"
    )
}

/// The mesh itself.
pub(crate) fn mesh_config() -> String {
    "---\napiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec: {trustDomain: bench.test}\n"
        .to_owned()
}

/// A Workload document on 127.0.0.1.
#[derive(Debug, Clone)]
pub(crate) struct Workload<'a> {
    pub(crate) name: &'a str,
    pub(crate) account: &'a str,
    /// The label `app`, and `version` if it is not empty.
    pub(crate) app: &'a str,
    pub(crate) version: &'a str,
    pub(crate) ports: Vec<Port>,
    pub(crate) outbound: Option<SocketAddr>,
    /// Services reached through a port of their own: name and local port.
    pub(crate) upstreams: Vec<(String, SocketAddr)>,
}

/// A port of a workload: its number, its protocol, where peers reach it, and where the
/// application is.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub(crate) port: u16,
    pub(crate) protocol: Option<&'static str>,
    pub(crate) listen: SocketAddr,
    pub(crate) app: SocketAddr,
}

impl Workload<'_> {
    pub(crate) fn yaml(&self) -> String {
        let mut labels = format!("app: {}", self.app);
        if !self.version.is_empty() {
            labels += &format!(", version: {}", self.version);
        }
        let mut text = format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: {}\n  namespace: bench\n  \
             labels: {{{labels}}}\nspec:\n  serviceAccount: {}\n  address: 127.0.0.1\n",
            self.name, self.account
        );
        if let Some(outbound) = self.outbound {
            text += &format!("  outbound: {{port: {}}}\n", outbound.port());
        }
        if !self.ports.is_empty() {
            text += "  ports:\n";
        }
        for Port {
            port,
            protocol,
            listen,
            app,
        } in &self.ports
        {
            let protocol = protocol
                .map(|protocol| format!(", protocol: {protocol}"))
                .unwrap_or_default();
            text += &format!(
                "  - {{port: {port}{protocol}, listen: {}, app: \"{app}\"}}\n",
                listen.port()
            );
        }
        if !self.upstreams.is_empty() {
            text += "  upstreams:\n";
        }
        for (service, local) in &self.upstreams {
            text += &format!("  - {{service: {service}, localPort: {}}}\n", local.port());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_written_in_full() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let workload = Workload {
            name: "echo-v1",
            account: "echo",
            app: "echo",
            version: "v1",
            ports: vec![Port {
                port: 8080,
                protocol: Some("http"),
                listen: at(1),
                app: at(2),
            }],
            outbound: Some(at(3)),
            upstreams: vec![("queue".to_owned(), at(4))],
        };
        let expect = "---\napiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: echo-v1\n  \
                      namespace: bench\n  labels: {app: echo, version: v1}\nspec:\n  serviceAccount: echo\n  \
                      address: 127.0.0.1\n  outbound: {port: 3}\n  ports:\n  \
                      - {port: 8080, protocol: http, listen: 1, app: \"127.0.0.1:2\"}\n  upstreams:\n  \
                      - {service: queue, localPort: 4}\n";
        assert_eq!(workload.yaml(), expect);
    }

    #[test]
    fn services_declare_a_protocol_or_none() {
        assert!(
            service("echo", "app: echo", 8080, Some("http"))
                .contains("targetPort: 8080, appProtocol: http}")
        );
        assert!(service("echo", "app: echo", 8080, None).contains("targetPort: 8080}"));
    }

    #[test]
    fn a_written_file_is_whole_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        write_config(dir.path(), "a.yaml", "one").unwrap();
        write_config(dir.path(), "a.yaml", "two").unwrap();
        let files: Vec<_> = fs::read_dir(dir.path().join("config"))
            .unwrap()
            .flatten()
            .collect();
        assert_eq!(files.len(), 1);
        assert_eq!(fs::read_to_string(files[0].path()).unwrap(), "two");
    }
}
