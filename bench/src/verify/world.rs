//! What most groups need: applications, a control plane, the sidecars of a client and of
//! some servers.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Setting;
use crate::error::{Error, Result};
use crate::load::{Target, rate};
use crate::process::{Process, Spec, free_address};
use crate::weft::{self, Control, Port, Reply, Sidecar, Workload, write_config};

/// A client and replicas of the service `echo`. Each replica has a version (its own name
/// `echo-<version>`), a service of that name that selects it alone, and an application that
/// says its version.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) control: Control,
    pub(crate) client: Sidecar,
    pub(crate) replicas: Vec<Replica>,
    /// Where the client's sidecar takes requests.
    pub(crate) outbound: SocketAddr,
}

/// A server: its application and its sidecar.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) sidecar: Sidecar,
    /// Kept running.
    _app: Process,
}

impl World {
    /// Starts it; `documents` are written besides its own, as `route.yaml`.
    pub(crate) async fn start(
        setting: &Setting,
        versions: &[&str],
        documents: &str,
    ) -> Result<Self> {
        let dir = setting.dir();
        let outbound = free_address()?;
        let mut text = weft::mesh_config() + &service("echo", "app: echo");
        let mut apps = Vec::new();
        for version in versions {
            let (address, app) = start_app(dir, version, None).await?;
            apps.push(app);
            text += &service(
                &format!("echo-{version}"),
                &format!("app: echo, version: {version}"),
            );
            text += &replica(version, address)?;
        }
        text += &client(outbound, Vec::new()).yaml();
        write_config(dir, "mesh.yaml", &text)?;
        if !documents.is_empty() {
            write_config(dir, "route.yaml", documents)?;
        }
        let control = Control::start(&setting.programs, dir).await?;
        let mut replicas = Vec::new();
        for (version, app) in versions.iter().zip(apps) {
            let sidecar = control
                .sidecar("bench", &format!("echo-{version}"), "echo")
                .await?;
            replicas.push(Replica { sidecar, _app: app });
        }
        let mut client = control.sidecar("bench", "client", "client").await?;
        client.process.listens(outbound).await?;
        let world = Self {
            control,
            client,
            replicas,
            outbound,
        };
        world
            .until_answered("echo.bench", |reply| reply.status == 200)
            .await?;
        Ok(world)
    }

    /// A GET through the client's sidecar, on a connection of its own.
    pub(crate) async fn get(&self, host: &str) -> Result<Reply> {
        get(self.outbound, host, "/").await
    }

    /// GETs until the answer is as wanted, for 5 s at most.
    pub(crate) async fn until_answered(
        &self,
        host: &str,
        wanted: impl Fn(&Reply) -> bool,
    ) -> Result<Reply> {
        until_answered(self.outbound, host, wanted).await
    }

    /// 500 requests a second to the service `echo`.
    pub(crate) fn load(&self) -> Result<rate::Running> {
        let target = Target {
            address: self.outbound,
            host: "echo.bench".to_owned(),
            from: None,
        };
        rate::Spec {
            target,
            path: "/".to_owned(),
            per_second: 500,
            connections: 16,
        }
        .start()
    }
}

/// A GET with a `Host`, on a connection of its own.
pub(crate) async fn get(address: SocketAddr, host: &str, path: &str) -> Result<Reply> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    weft::exchange(address, request.as_bytes()).await
}

/// See `World::until_answered`.
pub(crate) async fn until_answered(
    address: SocketAddr,
    host: &str,
    wanted: impl Fn(&Reply) -> bool,
) -> Result<Reply> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let last = match get(address, host, "/").await {
            Ok(reply) if wanted(&reply) => return Ok(reply),
            Ok(reply) => format!("{} {} {}", reply.status, reply.reason, reply.body.trim()),
            Err(error) => error.to_string(),
        };
        if Instant::now() > deadline {
            return Err(Error::new(format!(
                "{host} was not answered as expected in 5 s; the last answer: {last}"
            )));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Starts an application and waits until it listens.
pub(crate) async fn start_app(
    dir: &Path,
    version: &str,
    tcp: Option<SocketAddr>,
) -> Result<(SocketAddr, Process)> {
    let address = free_address()?;
    let mut spec = Spec::own(format!("app-{version}"), "backend")?
        .pair("--listen", address.to_string())
        .pair("--name", version);
    if let Some(tcp) = tcp {
        spec = spec.pair("--tcp", tcp.to_string());
    }
    let mut app = spec.start(dir)?;
    app.listens(address).await?;
    Ok((address, app))
}

/// The Workload `client`.
pub(crate) fn client(
    outbound: SocketAddr,
    upstreams: Vec<(String, SocketAddr)>,
) -> Workload<'static> {
    Workload {
        name: "client",
        account: "client",
        app: "client",
        version: "",
        ports: Vec::new(),
        outbound: Some(outbound),
        upstreams,
    }
}

/// A Service with port 80 for HTTP.
pub(crate) fn service(name: &str, selector: &str) -> String {
    weft::service(name, selector, 8080, Some("http"))
}

fn replica(version: &str, app: SocketAddr) -> Result<String> {
    let name = format!("echo-{version}");
    let workload = Workload {
        name: &name,
        account: "echo",
        app: "echo",
        version,
        ports: vec![Port {
            port: 8080,
            protocol: None,
            listen: free_address()?,
            app,
        }],
        outbound: Some(free_address()?),
        upstreams: Vec::new(),
    };
    Ok(workload.yaml())
}

/// An HTTPRoute of the service `echo` with these backends and weights.
pub(crate) fn route(backends: &[(&str, u32)]) -> String {
    let backends: Vec<String> = backends
        .iter()
        .map(|(name, weight)| format!("{{name: {name}, port: 80, weight: {weight}}}"))
        .collect();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: echo, namespace: bench}}\n\
         spec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  rules:\n  - backendRefs: [{}]\n",
        backends.join(", ")
    )
}

/// How many requests failed, and how the first one did.
pub(crate) fn failures(samples: &[rate::Sample]) -> (usize, String) {
    let mut errors = samples
        .iter()
        .filter_map(|sample| sample.result.as_ref().err());
    let first = errors.next();
    let count = first.iter().len() + errors.count();
    (
        count,
        first
            .map(|error| format!(" (first: {error})"))
            .unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_written_with_weights() {
        let text = route(&[("echo-v1", 90), ("echo-v2", 10)]);
        assert!(text.contains(
            "backendRefs: [{name: echo-v1, port: 80, weight: 90}, {name: echo-v2, port: 80, weight: 10}]\n"
        ));
    }

    #[test]
    fn failures_are_counted_with_the_first() {
        let now = std::time::Instant::now();
        let sample = |result| rate::Sample {
            due: now,
            sent: now,
            done: now,
            result,
        };
        let samples = [
            sample(Ok(None)),
            sample(Err("a".to_owned())),
            sample(Err("b".to_owned())),
        ];
        assert_eq!(failures(&samples), (2, " (first: a)".to_owned()));
        assert_eq!(failures(&samples[..1]), (0, String::new()));
    }
}
