//! The subjects of `compare --captured`: the client and each server on a host of its own (a
//! network namespace), no application knows of a proxy. Weft and Envoy are captured by the
//! same rules; `route` is Weft captured in mode route, `explicit` Weft without capture between the
//! same kind of hosts, and `hooks` the same where the kernel calls rules that say nothing.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Options;
use super::subject::{Pair, Skipped, Subject, find_envoy, settle, version};
use crate::error::{Context as _, Result};
use crate::load::Target;
use crate::netns::{self, Family, Host, User};
use crate::pki::{self, Files, SERVER_NAME};
use crate::pods::{self, Cluster, Mode, mesh_config, service, until_answered, workload};
use crate::process::{Process, which};
use crate::weft::write_config;

/// In the order in which they are measured.
pub(crate) const NAMES: [&str; 6] = ["direct", "explicit", "hooks", "weft", "route", "envoy"];

/// The application's ports: HTTP/1.1, HTTP/2, gRPC.
const PORTS: [u16; 3] = [8080, 8081, 8082];
const PROTOCOLS: [&str; 3] = ["http", "kubernetes.io/h2c", "grpc"];

/// What the subjects need until the end: servers and their applications, the control plane.
#[derive(Debug)]
pub(crate) struct Stage {
    _servers: Vec<Server>,
    _cluster: Cluster,
}

/// The host of a server and its applications.
#[derive(Debug)]
struct Server {
    _apps: Vec<Process>,
    _host: Arc<Host>,
}

struct Setup<'a> {
    cluster: &'a Cluster,
    options: &'a Options,
    dir: &'a Path,
}

/// Starts the subjects of these names; those that do not start are skipped with the reason.
pub(crate) async fn start_all(
    names: &[&str],
    options: &Options,
    dir: &Path,
) -> Result<(Stage, Vec<Subject>, Vec<Skipped>)> {
    pki::write(dir)?;
    write_config(dir, "mesh.yaml", &documents())?;
    let cluster = Cluster::start(&options.bin_dir.programs()?, dir).await?;
    let setup = Setup {
        cluster: &cluster,
        options,
        dir,
    };
    let (mut servers, mut subjects, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for subject in NAMES.into_iter().filter(|name| names.contains(name)) {
        let started = match subject {
            "direct" => Box::pin(setup.direct(&mut servers)).await,
            "explicit" => Box::pin(setup.explicit(subject, EXPLICIT, &mut servers)).await,
            "hooks" => Box::pin(setup.explicit(subject, HOOKS, &mut servers)).await,
            "weft" => {
                let mode = Mode::Redirect;
                Box::pin(setup.weft(subject, WEFT, mode, &mut servers)).await
            }
            "route" => {
                let mode = Mode::Route;
                Box::pin(setup.weft(subject, ROUTE, mode, &mut servers)).await
            }
            _ => Box::pin(setup.envoy(&mut servers)).await,
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
    Ok((
        Stage {
            _servers: servers,
            _cluster: cluster,
        },
        subjects,
        skipped,
    ))
}

/// The hosts of a subject: its name, and the numbers of its client and its server.
const EXPLICIT: (u8, u8) = (22, 23);
const WEFT: (u8, u8) = (24, 25);
const HOOKS: (u8, u8) = (28, 29);
const ROUTE: (u8, u8) = (30, 31);
/// The third numbers of the services' addresses.
const WEFT_SERVICES: u8 = 0;
const ROUTE_SERVICES: u8 = 1;

/// What any rules cost that look at packets at all: chains where mode route has its own, empty.
const EMPTY_CHAINS: &str = "table inet hooks { \
    chain output { type filter hook output priority -150; }; \
    chain prerouting { type filter hook prerouting priority -150; }; }";

fn documents() -> String {
    let mut text = mesh_config("allow");
    let explicit = |name: &str, number: u8, ports: &str| {
        format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: bench, labels: {{app: {name}}}}}\n\
             spec:\n  serviceAccount: {name}\n  address: {}\n{ports}",
            netns::address(number, Family::V4)
        )
    };
    let listen = |port: u16| {
        format!(
            "{{port: {port}, listen: {}, app: \"127.0.0.1:{port}\"}}",
            port + 6000
        )
    };
    let ports = format!("  ports: [{}]\n", PORTS.map(listen).join(", "));
    for (name, (client, server)) in [("explicit", EXPLICIT), ("hooks", HOOKS)] {
        text += &explicit(&format!("{name}-client"), client, "");
        text += &explicit(&format!("{name}-server"), server, &ports);
    }
    for (name, (client, server), mode) in [
        ("weft", WEFT, Mode::Redirect),
        ("route", ROUTE, Mode::Route),
    ] {
        let (caller, called) = (format!("{name}-client"), format!("{name}-server"));
        text += &workload(&caller, &caller, client, mode, &[], &[]);
        text += &workload(&called, &called, server, mode, &[], &PORTS);
    }
    for (i, (port, protocol)) in (0_u16..).zip(PORTS.into_iter().zip(PROTOCOLS)) {
        let ports = [("main", 80, port, Some(protocol))];
        for name in ["explicit", "hooks"] {
            text += &service(
                &format!("{name}-{i}"),
                &format!("{name}-server"),
                "",
                &ports,
            );
        }
        for (name, net) in [("weft", WEFT_SERVICES), ("route", ROUTE_SERVICES)] {
            let address = format!("10.96.{net}.{}", 10 + i);
            text += &service(
                &format!("{name}-{i}"),
                &format!("{name}-server"),
                &address,
                &ports,
            );
        }
    }
    text
}

impl Setup<'_> {
    /// A host of which no document speaks.
    fn host(&self, name: &str, number: u8) -> Result<Arc<Host>> {
        let nameserver = netns::address(pods::OUTSIDE, Family::V4);
        self.cluster
            .network
            .host(name, number, nameserver)
            .map(Arc::new)
    }

    /// Starts the applications of a server; returns their processes' ids.
    async fn apps(
        &self,
        host: &Arc<Host>,
        name: &str,
        servers: &mut Vec<Server>,
    ) -> Result<Vec<u32>> {
        let mut apps = Vec::new();
        for port in PORTS {
            apps.push(pods::backend(host, name, port, None, self.dir).await?);
        }
        let pids = apps.iter().map(|app| app.pid).collect();
        servers.push(Server {
            _apps: apps,
            _host: host.clone(),
        });
        Ok(pids)
    }

    async fn direct(&self, servers: &mut Vec<Server>) -> Result<Subject> {
        let (client, server) = (
            self.host("direct-client", 20)?,
            self.host("direct-server", 21)?,
        );
        let others = self.apps(&server, "direct-server", servers).await?;
        let targets = PORTS.map(|port| target(&client, server.at(Family::V4, port), "echo.bench"));
        Ok(subject(
            "direct",
            targets,
            others,
            None,
            env!("CARGO_PKG_VERSION").to_owned(),
        ))
    }

    /// Uncaptured; with empty chains in the way if that is what it is called.
    async fn explicit(
        &self,
        name: &'static str,
        (client, server): (u8, u8),
        servers: &mut Vec<Server>,
    ) -> Result<Subject> {
        let pod = async |side: &str, number: u8| {
            let name = format!("{name}-{side}");
            let mode = Mode::Redirect;
            self.cluster.pod_uncaptured(&name, number, mode).await
        };
        let (client, server) = (pod("client", client).await?, pod("server", server).await?);
        if name == "hooks" {
            let nft = which("nft").context("no nft")?;
            for host in [&client.host, &server.host] {
                let spec = host.spec("nft", &nft, User::Root).arg(EMPTY_CHAINS);
                spec.run(self.dir, pods::READY).await?.ok("nft")?;
            }
        }
        let others = self.apps(&server.host, &server.name, servers).await?;
        let proxies = Pair {
            server: server.start_ready().await?,
            client: client.start_ready().await?,
        };
        let outbound = SocketAddr::from(([127, 0, 0, 1], 14001));
        let targets =
            [0, 1, 2].map(|i| target(&client.host, outbound, &format!("{name}-{i}.bench")));
        let version = version(&client.proxy, "--version", self.dir).await;
        Ok(subject(name, targets, others, Some(proxies), version))
    }

    async fn weft(
        &self,
        name: &'static str,
        (client, server): (u8, u8),
        mode: Mode,
        servers: &mut Vec<Server>,
    ) -> Result<Subject> {
        let pod = async |side: &str, number: u8| {
            let name = format!("{name}-{side}");
            self.cluster.pod(&name, number, mode, &[]).await
        };
        let (client, server) = (pod("client", client).await?, pod("server", server).await?);
        let others = self.apps(&server.host, &server.name, servers).await?;
        let proxies = Pair {
            server: server.start_ready().await?,
            client: client.start_ready().await?,
        };
        let net = match mode {
            Mode::Route => ROUTE_SERVICES,
            Mode::Redirect | Mode::Tproxy => WEFT_SERVICES,
        };
        let addresses = [10, 11, 12].map(|last| SocketAddr::from(([10, 96, net, last], 80)));
        until_answered(&client.host, addresses[0], |reply| reply.status == 200).await?;
        let targets = addresses.map(|address| target(&client.host, address, &address.to_string()));
        let version = version(&client.proxy, "--version", self.dir).await;
        Ok(subject(name, targets, others, Some(proxies), version))
    }

    async fn envoy(&self, servers: &mut Vec<Server>) -> Result<Subject> {
        let program = match &self.options.envoy {
            Some(path) => path.clone(),
            None => find_envoy(self.dir).await?,
        };
        let (client, server) = (
            self.host("envoy-client", 26)?,
            self.host("envoy-server", 27)?,
        );
        let others = self.apps(&server, "envoy-server", servers).await?;
        let start = async |host: &Host, side: &str, port: u16, config: Value| -> Result<Process> {
            self.cluster.capture(host, Mode::Redirect, &[]).await?;
            let path = self.dir.join(format!("envoy-captured-{side}.json"));
            fs::write(&path, config.to_string()).context(path.display())?;
            // Root with the sidecar's group: its program may be where nobody else may read.
            let mut process = host
                .spec(
                    format!("envoy-captured-{side}"),
                    &program,
                    User::TransparentProxy,
                )
                .pair("-c", &path)
                .pair("--concurrency", "1")
                .pair("--log-level", "warning")
                .arg("--disable-hot-restart")
                .start(self.dir)?;
            pods::listens(host, &mut process, port).await?;
            Ok(process)
        };
        let config = server_config(&Files::of(self.dir, "server"));
        let server_proxy = start(&server, "server", 14006, config).await?;
        let peers = PORTS.map(|port| server.at(Family::V4, port));
        let config = client_config(peers, &Files::of(self.dir, "client"));
        let client_proxy = start(&client, "client", 14001, config).await?;
        let targets = [80, 81, 82].map(|port| {
            target(
                &client,
                SocketAddr::from(([10, 96, 0, 20], port)),
                "echo.bench",
            )
        });
        until_answered(&client, targets[0].address, |reply| reply.status == 200).await?;
        let version = version(&program, "--version", self.dir).await;
        let proxies = Pair {
            client: client_proxy,
            server: server_proxy,
        };
        Ok(subject("envoy", targets, others, Some(proxies), version))
    }
}

fn target(from: &Arc<Host>, address: SocketAddr, host: &str) -> Target {
    Target {
        address,
        host: host.to_owned(),
        from: Some(from.clone()),
    }
}

fn subject(
    name: &'static str,
    [http1, http2, grpc]: [Target; 3],
    others: Vec<u32>,
    proxies: Option<Pair<Process>>,
    version: String,
) -> Subject {
    Subject {
        name,
        http1,
        http2,
        grpc,
        version,
        idle: None,
        proxies,
        others,
        control: None,
    }
}

/// Envoy where captured connections of the application arrive: one service, one endpoint
/// for each port.
fn client_config(peers: [SocketAddr; 3], files: &Files) -> Value {
    let service_ports = [80, 81, 82];
    let chains: Vec<Value> = (0..3).map(|i| chain(i, service_ports[i], None)).collect();
    let clusters: Vec<Value> = (0..3)
        .map(|i| {
            let (ip, port) = (peers[i].ip().to_string(), peers[i].port());
            let mut cluster = cluster(i);
            cluster["type"] = "STATIC".into();
            cluster["load_assignment"] = json!({"cluster_name": format!("hop{i}"), "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": ip, "port_value": port}}}}
            ]}]});
            let mut tls = tls_context(alpn(i), files);
            tls["@type"] = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext".into();
            tls["sni"] = SERVER_NAME.into();
            cluster["transport_socket"] = json!({"name": "tls", "typed_config": tls});
            cluster
        })
        .collect();
    bootstrap("127.0.0.1", 14001, &chains, &clusters)
}

/// Envoy where captured connections of peers arrive: TLS, then to where they were meant to go.
fn server_config(files: &Files) -> Value {
    let chains: Vec<Value> = (0..3)
        .map(|i| {
            let mut tls = tls_context(alpn(i), files);
            tls["@type"] = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext".into();
            tls["require_client_certificate"] = true.into();
            chain(i, PORTS[i], Some(tls))
        })
        .collect();
    let clusters: Vec<Value> = (0..3)
        .map(|i| {
            let mut cluster = cluster(i);
            cluster["type"] = "ORIGINAL_DST".into();
            cluster["lb_policy"] = "CLUSTER_PROVIDED".into();
            // By this source the rules know it from a call of the pod to itself.
            cluster["upstream_bind_config"] =
                json!({"source_address": {"address": "127.0.0.6", "port_value": 0}});
            cluster
        })
        .collect();
    bootstrap("0.0.0.0", 14006, &chains, &clusters)
}

/// The protocol of the hop in ALPN; the first speaks HTTP/1.1.
const fn alpn(hop: usize) -> &'static str {
    if hop == 0 { "http/1.1" } else { "h2" }
}

fn bootstrap(address: &str, port: u16, chains: &[Value], clusters: &[Value]) -> Value {
    json!({"static_resources": {
        "listeners": [{
            "name": "captured",
            "address": {"socket_address": {"address": address, "port_value": port}},
            "listener_filters": [{"name": "original_dst", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
            }}],
            "filter_chains": chains,
        }],
        "clusters": clusters,
    }})
}

/// Tuned as in `envoy.rs`.
fn chain(hop: usize, port: u16, tls: Option<Value>) -> Value {
    let name = format!("hop{hop}");
    let mut chain = json!({
        "filter_chain_match": {"destination_port": port},
        "filters": [{"name": "http", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "codec_type": "AUTO",
            "generate_request_id": false,
            "http2_protocol_options": {"max_concurrent_streams": 1000},
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}
            ]}]},
            "http_filters": [{"name": "router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                "dynamic_stats": false
            }}],
        }}],
    });
    if let Some(tls) = tls {
        chain["transport_socket"] = json!({"name": "tls", "typed_config": tls});
    }
    chain
}

fn cluster(hop: usize) -> Value {
    let protocol = if hop == 0 {
        "http_protocol_options"
    } else {
        "http2_protocol_options"
    };
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({
        "name": format!("hop{hop}"),
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{
            "max_connections": 1_000_000, "max_pending_requests": 1_000_000,
            "max_requests": 1_000_000, "max_retries": 1_000_000
        }]},
        "typed_extension_protocol_options": {(options): {
            "@type": format!("type.googleapis.com/{options}"),
            "explicit_http_config": {(protocol): {}}
        }},
    })
}

fn tls_context(alpn: &str, files: &Files) -> Value {
    json!({"common_tls_context": {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": [alpn],
        "tls_certificates": [{
            "certificate_chain": {"filename": files.chain}, "private_key": {"filename": files.key}
        }],
        "validation_context": {"trusted_ca": {"filename": files.root}},
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_sides_are_captured_and_speak_tls() {
        let files = Files::of(Path::new("/x"), "client");
        let client = client_config(
            PORTS.map(|port| SocketAddr::from(([10, 9, 27, 2], port))),
            &files,
        );
        let server = server_config(&files);
        for (config, port) in [(&client, 14001), (&server, 14006)] {
            let listener = &config["static_resources"]["listeners"][0];
            assert_eq!(listener["address"]["socket_address"]["port_value"], port);
            assert_eq!(listener["listener_filters"][0]["name"], "original_dst");
        }
        assert_eq!(client.to_string().matches("UpstreamTlsContext").count(), 3);
        assert_eq!(
            server.to_string().matches("DownstreamTlsContext").count(),
            3
        );
        let clusters = &server["static_resources"]["clusters"];
        assert_eq!(clusters[2]["type"], "ORIGINAL_DST");
        assert!(
            clusters[1]
                .to_string()
                .contains("\"http2_protocol_options\"")
        );
    }

    #[test]
    fn every_kind_of_weft_has_its_documents() {
        let text = documents();
        // A client and a server each: captured and explicit, in mode route and between hooks.
        assert_eq!(text.matches("kind: Workload").count(), 8);
        assert_eq!(text.matches("kind: Service").count(), 4 * PORTS.len());
        assert!(text.contains("{port: 8082, listen: 14082, app: \"127.0.0.1:8082\"}"));
    }
}
