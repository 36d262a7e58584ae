//! A control plane with its documents, and sidecars, each with threads of its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use weft_control::app::{App as ControlPlane, Options};
use weft_control::config::Level;
use weft_control::token::{self, Tokens};
use weft_proxy::app::App as Proxy;
use weft_proxy::bootstrap::Bootstrap;

use super::app::Server;
use super::{free_port, http1, loopback, soon, until};

/// The namespace of everything, unless a test says otherwise.
pub(crate) const NAMESPACE: &str = "test";

/// The documents of a workload: what the tests vary.
#[derive(Clone)]
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) account: String,
    labels: Vec<(String, String)>,
    ports: Vec<(u16, u16, SocketAddr)>,
    pub(crate) outbound: SocketAddr,
    upstreams: Vec<(String, u16)>,
    workers: usize,
}

impl Workload {
    /// A workload with the label `app: <name>` and a service account of that name.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: NAMESPACE.to_owned(),
            account: name.to_owned(),
            labels: vec![("app".to_owned(), name.to_owned())],
            ports: Vec::new(),
            outbound: loopback(free_port()),
            upstreams: Vec::new(),
            workers: 1,
        }
    }

    /// A replica of an application: its label and its service account are `app`.
    pub(crate) fn replica(app: &str, version: &str) -> Self {
        let mut workload = Self::new(&format!("{app}-{version}"));
        app.clone_into(&mut workload.account);
        workload.labels = vec![
            ("app".to_owned(), app.to_owned()),
            ("version".to_owned(), version.to_owned()),
        ];
        workload
    }

    pub(crate) fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    pub(crate) fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    /// How many threads its sidecar has for requests; 1 unless said.
    pub(crate) fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// An application behind port 8080.
    pub(crate) fn serves(self, app: &Server) -> Self {
        self.serves_at(8080, app.address)
    }

    pub(crate) fn serves_at(mut self, port: u16, app: SocketAddr) -> Self {
        self.ports.push((port, free_port(), app));
        self
    }

    /// The address of a service for an application that knows no proxy.
    pub(crate) fn upstream(mut self, service: &str) -> Self {
        self.upstreams.push((service.to_owned(), free_port()));
        self
    }

    /// Where the first upstream is.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local_of(0)
    }

    /// Where an upstream is.
    pub(crate) fn local_of(&self, index: usize) -> SocketAddr {
        loopback(self.upstreams[index].1)
    }

    /// Where peers connect for the first port.
    pub(crate) fn inbound(&self) -> SocketAddr {
        loopback(self.ports[0].1)
    }

    /// Lets peers connect for the first port where they do for another workload.
    pub(crate) fn listen_as(mut self, other: &Self) -> Self {
        self.ports[0].1 = other.ports[0].1;
        self
    }

    pub(crate) fn yaml(&self) -> String {
        let Self {
            name,
            namespace,
            account,
            ..
        } = self;
        let list = |items: Vec<String>| items.join(", ");
        let labels = self.labels.iter().map(|(k, v)| format!("{k}: {v}"));
        let ports = self
            .ports
            .iter()
            .map(|(port, listen, app)| format!("{{port: {port}, listen: {listen}, app: '{app}'}}"));
        let upstreams = self
            .upstreams
            .iter()
            .map(|(service, port)| format!("{{service: {service}, localPort: {port}}}"));
        format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: Workload\n\
             metadata: {{name: {name}, namespace: {namespace}, labels: {{{}}}}}\n\
             spec:\n  serviceAccount: {account}\n  address: 127.0.0.1\n  ports: [{}]\n  \
             outbound: {{port: {}}}\n  upstreams: [{}]\n",
            list(labels.collect()),
            list(ports.collect()),
            self.outbound.port(),
            list(upstreams.collect()),
        )
    }
}

/// A Service: its port 80 is port 8080 of the workloads with these labels (`app: echo`).
/// Without a protocol it is detected.
pub(crate) fn service(name: &str, selector: &str, protocol: Option<&str>) -> String {
    service_in(NAMESPACE, name, selector, protocol)
}

pub(crate) fn service_in(
    namespace: &str,
    name: &str,
    selector: &str,
    protocol: Option<&str>,
) -> String {
    let protocol = protocol.map_or(String::new(), |name| format!(", appProtocol: {name}"));
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  selector: {{{selector}}}\n  \
         ports: [{{name: main, port: 80, targetPort: 8080{protocol}}}]\n"
    )
}

/// A route of a service; `rules` is a YAML list.
pub(crate) fn route(kind: &str, service: &str, rules: &str) -> String {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    format!(
        "---\napiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\n\
         metadata: {{name: {service}, namespace: {NAMESPACE}}}\n\
         spec:\n  parentRefs: [{{group: '', kind: Service, name: {service}}}]\n  rules:\n{rules}\n"
    )
}

/// A control plane and the directory of its documents.
pub(crate) struct Mesh {
    directory: TempDir,
    pub(crate) control: SocketAddr,
    tokens: Tokens,
    plane: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Mesh {
    /// A mesh that takes mTLS only.
    pub(crate) async fn strict(documents: &str) -> Self {
        Self::start("strict", documents).await
    }

    /// A mesh that takes plaintext too.
    pub(crate) async fn permissive(documents: &str) -> Self {
        Self::start("permissive", documents).await
    }

    async fn start(mode: &str, documents: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config");
        std::fs::create_dir(&config).unwrap();
        let mesh = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: mesh}}\n\
             spec: {{trustDomain: test.mesh, mtls: {{mode: {mode}}}}}\n{documents}"
        );
        std::fs::write(config.join("mesh.yaml"), mesh).unwrap();
        let (control, tokens, plane) = serve(directory.path(), loopback(0)).await;
        Self {
            directory,
            control,
            tokens,
            plane: Some(plane),
        }
    }

    /// The directory of the documents.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("config")
    }

    /// The directory of the certificate authority.
    pub(crate) fn authority(&self) -> PathBuf {
        let data = self.directory.path().join("data");
        data.join(weft_control::app::CA_DIRECTORY)
    }

    /// Writes a file of documents, all at once.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let temporary = self.directory.path().join(file);
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, self.config().join(file)).unwrap();
    }

    /// Ends the control plane; its port is free then.
    pub(crate) async fn stop_control(&mut self) {
        let (stop, task) = self.plane.take().expect("the control plane runs");
        drop(stop);
        soon("the end of the control plane", task).await.unwrap();
    }

    /// Starts it again where it was.
    pub(crate) async fn start_control(&mut self) {
        let (_, tokens, plane) = serve(self.directory.path(), self.control).await;
        self.tokens = tokens;
        self.plane = Some(plane);
    }

    pub(crate) fn token(&self, workload: &Workload) -> String {
        let request = token::Request {
            namespace: &workload.namespace,
            service_account: &workload.account,
            ttl: Duration::from_secs(600),
            reusable: false,
        };
        self.tokens.create(&request, SystemTime::now()).unwrap()
    }

    /// Starts the sidecar of a workload and waits until it is ready.
    pub(crate) async fn sidecar(&self, workload: &Workload) -> Sidecar {
        let sidecar = self.launch(workload).await;
        sidecar.ready().await;
        sidecar
    }

    /// Starts the sidecar of a workload.
    pub(crate) async fn launch(&self, workload: &Workload) -> Sidecar {
        Sidecar::launch(workload, &self.token(workload), self.control).await
    }
}

type Plane = (SocketAddr, Tokens, (oneshot::Sender<()>, JoinHandle<()>));

async fn serve(directory: &Path, listen: SocketAddr) -> Plane {
    let options = Options {
        data: Some(directory.join("data")),
        listen,
        admin: loopback(0),
        ..Options::new(directory.join("config"))
    };
    let bound = ControlPlane::bind(options).await.unwrap();
    let errors: Vec<String> = bound
        .diagnostics()
        .iter()
        .filter(|diagnostic| diagnostic.level == Level::Error)
        .map(ToString::to_string)
        .collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    let (address, tokens) = (bound.address, bound.tokens.clone());
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        tokio::select! {
            result = bound.run(std::future::pending()) => result.unwrap(),
            _ = stopped => {}
        }
    });
    (address, tokens, (stop, task))
}

/// A sidecar; dropping it is a crash.
pub(crate) struct Sidecar {
    /// Metrics and readiness.
    pub(crate) public: SocketAddr,
    /// All pages.
    pub(crate) admin: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<()>,
    crash: Option<oneshot::Sender<()>>,
}

/// How a sidecar of a test is set up, by setting.
pub(crate) type Settings = BTreeMap<String, String>;

/// The settings that a sidecar of a test has, unless it says otherwise.
pub(crate) fn settings(workload: &Workload, token: &str, control: SocketAddr) -> Settings {
    let settings = [
        (
            "WORKLOAD",
            format!("{}/{}", workload.namespace, workload.name),
        ),
        ("TOKEN", token.to_owned()),
        ("CONTROL", control.to_string()),
        ("ADMIN", "127.0.0.1:0".to_owned()),
        ("PUBLIC_ADMIN", "127.0.0.1:0".to_owned()),
        ("ACCESS_LOG", "off".to_owned()),
        ("WORKERS", workload.workers.to_string()),
        ("GRACE", "20".to_owned()),
    ];
    settings
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

impl Sidecar {
    /// Starts it with a token at a control plane.
    pub(crate) async fn launch(workload: &Workload, token: &str, control: SocketAddr) -> Self {
        let settings = settings(workload, token, control);
        Self::start(&settings).await.unwrap()
    }

    /// Starts it; an error if it does not come to serving.
    pub(crate) async fn start(settings: &Settings) -> Result<Self, String> {
        let bootstrap = Bootstrap::parse(settings, None).map_err(|error| error.to_string())?;
        let (started, starting) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let (crash, crashed) = oneshot::channel::<()>();
        let (ending, ended) = oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let proxy = match Proxy::bind(bootstrap).await {
                    Ok(proxy) => proxy,
                    Err(error) => return started.send(Err(error)).unwrap(),
                };
                let addresses = (proxy.public_admin_address(), proxy.admin_address());
                started.send(Ok(addresses)).unwrap();
                let stopping = async {
                    if stopped.await.is_err() {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    () = proxy.run(stopping) => {}
                    _ = crashed => {}
                }
            });
            drop(runtime);
            // Nobody waits for the end of most sidecars.
            let _ = ending.send(());
        });
        let starting = soon("the start of a sidecar", starting).await;
        let (public, admin) = starting.unwrap()?;
        Ok(Self {
            public,
            admin,
            stop: Some(stop),
            ended,
            crash: Some(crash),
        })
    }

    /// Asks it to drain and exit.
    pub(crate) fn shut_down(&mut self) {
        self.stop.take().expect("asked once").send(()).unwrap();
    }

    /// Ends it without a word, as dropping it does.
    pub(crate) fn crash(&mut self) {
        self.crash.take();
    }

    /// Waits until it has exited.
    pub(crate) async fn ended(&mut self) {
        soon("the end of a sidecar", &mut self.ended).await.unwrap();
    }

    /// What `/ready` says: status and text.
    pub(crate) async fn readiness(&self) -> (u16, String) {
        let reply = http1::get(self.public, "admin", "/ready").await;
        (reply.status, reply.text())
    }

    pub(crate) async fn ready(&self) {
        until("/ready", async || match self.readiness().await {
            (200, _) => Ok(()),
            (_, text) => Err(text),
        })
        .await;
    }

    /// Waits until `/ready` says why it is not.
    pub(crate) async fn not_ready(&self, why: &str) -> String {
        until(&format!("/ready with {why:?}"), async || {
            match self.readiness().await {
                (503, text) if text.contains(why) => Ok(text),
                (status, text) => Err(format!("{status}: {text}")),
            }
        })
        .await
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        let reply = http1::get(self.public, "admin", "/metrics").await;
        assert_eq!(reply.status, 200);
        Metrics(reply.text())
    }

    /// Waits until the sum of some series is as wanted.
    pub(crate) async fn until_metric(&self, series: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        until(series, async || {
            let metrics = self.metrics().await;
            let sum = metrics.sum(series);
            if wanted(sum) {
                Ok(sum)
            } else {
                let name = series.split('{').next().unwrap_or_default();
                Err(format!("it is {sum} of\n{}", metrics.lines(name)))
            }
        })
        .await
    }
}

/// A page of metrics.
pub(crate) struct Metrics(pub(crate) String);

impl Metrics {
    /// The sum of the series with these labels: `name{a="b",c="d"}`, in any order.
    pub(crate) fn sum(&self, series: &str) -> f64 {
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels: Vec<&str> = labels
            .trim_end_matches('}')
            .split(',')
            .filter(|label| !label.is_empty())
            .collect();
        self.0
            .lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with(['{', ' ']))
            .filter_map(|rest| rest.rsplit_once(' '))
            .filter(|(found, _)| labels.iter().all(|label| has_label(found, label)))
            .map(|(_, value)| value.parse::<f64>().unwrap())
            .sum()
    }

    /// The lines of a family, for messages.
    pub(crate) fn lines(&self, name: &str) -> String {
        let lines = self.0.lines().filter(|line| line.starts_with(name));
        lines.fold(String::new(), |mut out, line| {
            writeln!(out, "  {line}").unwrap();
            out
        })
    }
}

/// Whether `{x="y",a="b"}` has the label `a="b"`.
fn has_label(found: &str, label: &str) -> bool {
    ['{', ','].iter().any(|before| {
        let start = format!("{before}{label}");
        found.match_indices(&start).any(|(at, _)| {
            let after = found[at + start.len()..].chars().next();
            matches!(after, Some(',' | '}'))
        })
    })
}

/// A client and one server of the service `echo`.
pub(crate) struct Pair {
    pub(crate) mesh: Mesh,
    pub(crate) client: Sidecar,
    pub(crate) server: Sidecar,
    /// The HTTP proxy of the client's application.
    pub(crate) outbound: SocketAddr,
    /// The service on a port of the client.
    pub(crate) local: SocketAddr,
    /// Where the server's sidecar takes what is for its application.
    pub(crate) inbound: SocketAddr,
}

/// Starts a pair around an application that speaks `protocol`, in a strict mesh.
pub(crate) async fn pair(protocol: Option<&str>, app: &Server) -> Pair {
    let server = Workload::new("echo").serves(app);
    let client = Workload::new("client").upstream("echo");
    let documents = service("echo", "app: echo", protocol) + &server.yaml() + &client.yaml();
    let mesh = Mesh::strict(&documents).await;
    Pair {
        server: mesh.sidecar(&server).await,
        client: mesh.sidecar(&client).await,
        mesh,
        outbound: client.outbound,
        local: client.local(),
        inbound: server.inbound(),
    }
}
