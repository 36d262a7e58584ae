//! A control plane and its clients for the tests.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hyper_util::rt::TokioIo;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use weft_api::envoy::config::core::v3::{HealthStatus, Node};
use weft_api::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_api::google::rpc;
use weft_api::identity::IstioCertificateRequest;
use weft_api::identity::istio_certificate_service_client::IstioCertificateServiceClient;
use weft_api::{Kind, any};
use weft_certs::verify::peer_id;
use weft_certs::{KeyPair, PinnedRoot, SvidVerifier, SystemClock, TrustBundle, WorkloadCert, tls};
use weft_control::app::{App, AppError, Bound, Options};
use weft_control::token::{self, Tokens};

pub(crate) const MESH: &str = "
apiVersion: weft.dev/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
spec: {trustDomain: demo.mesh}
---
apiVersion: v1
kind: Service
metadata: {name: post, namespace: blog}
spec:
  selector: {app: post}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: post-v1, namespace: blog, labels: {app: post}}
spec:
  serviceAccount: post
  address: 127.0.0.1
  ports: [{port: 8080, listen: 14106}]
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: blog, labels: {app: web}}
spec:
  serviceAccount: web
  address: 127.0.0.1
  outbound: {port: 14201}
";

pub(crate) const POST_V2: &str = "
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: post-v2, namespace: blog, labels: {app: post}}
spec:
  serviceAccount: post
  address: 127.0.0.1
  ports: [{port: 8080, listen: 14107}]
";

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("nothing happened for 10 s")
}

/// A running control plane.
pub(crate) struct Plane {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) fingerprint: [u8; 32],
    pub(crate) bundle: Arc<TrustBundle>,
    pub(crate) tokens: Tokens,
    pub(crate) stop: oneshot::Sender<()>,
    pub(crate) task: JoinHandle<Result<(), AppError>>,
}

impl Plane {
    pub(crate) async fn start(directory: &Path) -> Self {
        Self::start_with(directory, |_| {}).await
    }

    /// Config and data are below `directory`; `adjust` changes the options.
    pub(crate) async fn start_with(directory: &Path, adjust: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options {
            data: Some(directory.join("data")),
            listen: any_port(),
            admin: any_port(),
            ..Options::new(directory.join("config"))
        };
        adjust(&mut options);
        let bound = App::bind(options).await.unwrap();
        assert_eq!(bound.diagnostics(), []);
        Self::run(bound)
    }

    pub(crate) fn run(bound: Bound) -> Self {
        let (bundle, _) = TrustBundle::from_pem(bound.trust_domain(), &bound.root_pem).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        Self {
            address: bound.address,
            admin: bound.admin_address,
            fingerprint: bound.fingerprint,
            bundle: Arc::new(bundle),
            tokens: bound.tokens.clone(),
            stop,
            task: tokio::spawn(bound.run(async { drop(stopped.await) })),
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        soon(self.task).await.unwrap().unwrap();
    }

    pub(crate) fn token(&self, service_account: &str) -> String {
        let request = token::Request {
            namespace: "blog",
            service_account,
            ttl: Duration::from_secs(600),
            reusable: false,
        };
        self.tokens.create(&request, SystemTime::now()).unwrap()
    }

    /// Joins as a service account of the namespace `blog`.
    pub(crate) async fn svid(&self, service_account: &str) -> WorkloadCert {
        let key = KeyPair::generate().unwrap();
        let token = self.token(service_account);
        let chain = self
            .join(&token, &key.csr_pem(None).unwrap(), 0)
            .await
            .unwrap();
        WorkloadCert::from_chain(&chain, &key).unwrap()
    }

    /// First contact: only the fingerprint in the token is known.
    pub(crate) async fn join(
        &self,
        token: &str,
        csr: &str,
        ttl: i64,
    ) -> Result<Vec<String>, Status> {
        let pinned = PinnedRoot::new(self.fingerprint, Arc::new(SystemClock));
        let channel = channel(self.address, Arc::new(pinned), None).await;
        sign(channel, Some(token), csr, ttl).await
    }

    /// A connection with a certificate, or without.
    pub(crate) async fn channel(&self, svid: Option<&WorkloadCert>) -> Channel {
        self.channel_to(self.address, svid).await
    }

    /// Another handle on the same control plane.
    pub(crate) fn again(&self) -> Self {
        Self {
            address: self.address,
            admin: self.admin,
            fingerprint: self.fingerprint,
            bundle: self.bundle.clone(),
            tokens: self.tokens.clone(),
            stop: oneshot::channel().0,
            task: tokio::spawn(async { Ok(()) }),
        }
    }

    /// A connection, if the control plane does not end meanwhile.
    pub(crate) async fn try_channel(
        &self,
        svid: &WorkloadCert,
    ) -> io::Result<Result<Channel, tonic::transport::Error>> {
        let verifier = SvidVerifier::new(self.bundle.clone(), Arc::new(SystemClock));
        let tls = tls_stream(self.address, Arc::new(verifier), Some(svid)).await?;
        Ok(over(tls).await)
    }

    pub(crate) async fn channel_to(
        &self,
        address: SocketAddr,
        svid: Option<&WorkloadCert>,
    ) -> Channel {
        let verifier = SvidVerifier::new(self.bundle.clone(), Arc::new(SystemClock));
        channel(address, Arc::new(verifier), svid).await
    }

    /// An address that leads here until the task is aborted: then the network breaks.
    pub(crate) async fn relay(&self) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = self.address;
        let relay = tokio::spawn(async move {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(target).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
        (address, relay)
    }

    pub(crate) async fn ads(&self, svid: &WorkloadCert, node: &str) -> Ads {
        Ads::open(self.channel(Some(svid)).await, node)
            .await
            .unwrap()
    }

    /// An admin page: status line and body.
    pub(crate) async fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    pub(crate) async fn until_page(&self, path: &str, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let page = self.page(path).await;
            if page.contains(text) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{path} does not say {text}: {page}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(crate) fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("config")).unwrap();
    std::fs::write(directory.path().join("config/mesh.yaml"), MESH).unwrap();
    directory
}

pub(crate) async fn tls_stream(
    address: SocketAddr,
    verifier: Arc<dyn ServerCertVerifier>,
    svid: Option<&WorkloadCert>,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let certificate = svid.map(|svid| svid.resolver().unwrap() as Arc<_>);
    let config = tls::client_config(verifier, certificate, &[b"h2"]);
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("weft-control").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

pub(crate) async fn channel(
    address: SocketAddr,
    verifier: Arc<dyn ServerCertVerifier>,
    svid: Option<&WorkloadCert>,
) -> Channel {
    let tls = tls_stream(address, verifier, svid).await.unwrap();
    let own = peer_id(tls.get_ref().1.peer_certificates().unwrap()).unwrap();
    assert_eq!(
        own.as_str(),
        "spiffe://demo.mesh/ns/weft-system/sa/weft-control"
    );
    over(tls).await.unwrap()
}

async fn over(
    tls: tokio_rustls::client::TlsStream<TcpStream>,
) -> Result<Channel, tonic::transport::Error> {
    // One connection: a client that reconnects behind the test's back would hide a failure.
    let mut tls = Some(TokioIo::new(tls));
    let connector = tower::service_fn(move |_| {
        let tls = tls.take().ok_or(io::ErrorKind::NotConnected);
        async move { Ok::<_, io::Error>(tls?) }
    });
    Endpoint::from_static("http://weft-control")
        .initial_stream_window_size(Some(65_535))
        .connect_with_connector(connector)
        .await
}

pub(crate) async fn sign(
    channel: Channel,
    token: Option<&str>,
    csr: &str,
    ttl: i64,
) -> Result<Vec<String>, Status> {
    let mut request = Request::new(IstioCertificateRequest {
        csr: csr.to_owned(),
        validity_duration: ttl,
        metadata: None,
    });
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    let answer =
        soon(IstioCertificateServiceClient::new(channel).create_certificate(request)).await;
    answer.map(|answer| answer.into_inner().cert_chain)
}

/// A client's stream. Dropping `requests` ends it cleanly.
pub(crate) struct Ads {
    pub(crate) requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub(crate) responses: Streaming<DeltaDiscoveryResponse>,
}

impl Ads {
    /// Opens the stream, asking for the listeners.
    pub(crate) async fn open(channel: Channel, node: &str) -> Result<Self, Status> {
        Self::open_as(channel, Self::node(node)).await
    }

    pub(crate) fn node(id: &str) -> Node {
        Node {
            id: id.to_owned(),
            user_agent_name: "weft-proxy".to_owned(),
            ..Node::default()
        }
    }

    /// Opens the stream of a node that says more of itself.
    pub(crate) async fn open_as(channel: Channel, node: Node) -> Result<Self, Status> {
        let first = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: Kind::Listener.type_url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        Self::begin(channel, first).await
    }

    /// Opens the stream with that request.
    pub(crate) async fn begin(
        channel: Channel,
        first: DeltaDiscoveryRequest,
    ) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(16);
        requests.send(first).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(16 * 1024 * 1024);
        let stream = ReceiverStream::new(stream);
        let responses = soon(client.delta_aggregated_resources(stream))
            .await?
            .into_inner();
        Ok(Self {
            requests,
            responses,
        })
    }

    pub(crate) async fn subscribe(&self, kind: Kind, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// The next response, not acknowledged.
    pub(crate) async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let response = soon(self.responses.message()).await?;
        response.ok_or_else(|| Status::cancelled("the stream ended"))
    }

    /// The next response as `kind: names -removed`, acknowledged.
    pub(crate) async fn told(&mut self) -> (String, DeltaDiscoveryResponse) {
        let response = self.next().await.unwrap();
        let kind = Kind::from_type_url(&response.type_url).unwrap();
        let mut line = format!("{kind}:");
        for resource in &response.resources {
            line += &format!(" {}", resource.name);
        }
        for name in &response.removed_resources {
            line += &format!(" -{name}");
        }
        self.ack(&response).await;
        (line, response)
    }

    pub(crate) async fn ack(&self, response: &DeltaDiscoveryResponse) {
        self.answer(response, None).await;
    }

    /// Acknowledges a response, or rejects it for a reason.
    pub(crate) async fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|message| rpc::Status {
                code: 3,
                message: message.to_owned(),
                details: Vec::new(),
            }),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(answer).await.unwrap();
    }

    #[track_caller]
    pub(crate) fn expect<'a>(
        &'a mut self,
        expected: &'a str,
    ) -> impl Future<Output = DeltaDiscoveryResponse> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let (line, response) = self.told().await;
            assert_eq!(line, expected, "at {caller}");
            response
        }
    }
}

/// Which endpoints of a response are up.
pub(crate) fn health(response: &DeltaDiscoveryResponse) -> Vec<HealthStatus> {
    let resource = response.resources[0].resource.as_ref().unwrap();
    let assignment: ClusterLoadAssignment = any::unpack(resource).unwrap();
    let endpoints = assignment
        .endpoints
        .iter()
        .flat_map(|locality| &locality.lb_endpoints);
    endpoints.map(|endpoint| endpoint.health_status()).collect()
}
