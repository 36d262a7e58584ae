//! The tonic side of aggregated discovery: one task per stream drives [`Stream`].
//!
//! A task keeps only the latest snapshot and whether there may be something to say; the
//! response itself is made when the connection has room for it (a channel of one). A client
//! that does not read thus costs one response and holds up nobody; it is cut after
//! [`STALL_DEADLINE`].

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::Stream as Responses;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};
use weft_api::Kind;
use weft_api::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use weft_api::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use weft_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use weft_certs::SpiffeId;

use super::View as _;
use super::state::{Heard, Outcome, Progress, Refusal, Stream};
use crate::cache::{Connected, NodeView, Snapshot, Snapshots};
use crate::clients::{Client, Clients, Open};
use crate::connection::{MAX_STREAMS, Peer, Svid};
use crate::drain::{Drain, Finished};
use crate::metrics::{Metrics, RegistrationResult, seconds};
use crate::model::{Mesh, Owner};
use crate::registration::{
    self, Refusal as NotRegistered, Registered, Registration, Registrations,
};

/// How long a client may leave a response unread.
pub const STALL_DEADLINE: Duration = Duration::from_secs(30);
/// How long a registration may take to be in force.
const REGISTER_DEADLINE: Duration = Duration::from_secs(10);
/// How long a client may take to say who it is.
const FIRST_REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// The longest request, in bytes.
pub const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;

/// Aggregated discovery over one set of snapshots. Cheap to clone.
#[derive(Clone)]
pub struct Ads {
    /// What is served.
    pub snapshots: Snapshots,
    /// Who is connected.
    pub clients: Clients,
    /// Who says itself what it is.
    pub registrations: Registrations,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Turns true when the server is to end.
    pub shutdown: watch::Receiver<bool>,
    /// How long a client may leave a response unread; [`STALL_DEADLINE`] but in tests.
    pub stall_deadline: Duration,
    /// How long a sidecar that shuts down waits for the others;
    /// [`DRAIN_DEADLINE`](crate::drain::DRAIN_DEADLINE) but in tests.
    pub drain_deadline: Duration,
}

type BoxedResponses<T> = Pin<Box<dyn Responses<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = BoxedResponses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = BoxedResponses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented(
            "state-of-the-world xDS is not served; use DeltaAggregatedResources (Envoy: api_type DELTA_GRPC)",
        ))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("the connection is not known"))?;
        let svid = peer.svid.clone().ok_or_else(no_certificate)?;
        let slot = peer.stream_slot().ok_or_else(|| {
            Status::resource_exhausted(format!(
                "a connection may have {MAX_STREAMS} discovery streams; end one first"
            ))
        })?;
        let ending = request
            .extensions()
            .get::<Ending>()
            .cloned()
            .unwrap_or_default();
        let (responses, stream) = mpsc::channel(1);
        let session = Session {
            ads: self.clone(),
            peer,
            svid,
            ending,
            requests: request.into_inner(),
            responses,
            _slot: slot,
        };
        tokio::spawn(session.run());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

fn no_certificate() -> Status {
    Status::unauthenticated(
        "xDS needs a client certificate: get an SVID by CreateCertificate with a join token, then connect with it",
    )
}

/// One stream before its first request.
struct Session {
    ads: Ads,
    peer: Peer,
    svid: Svid,
    ending: Ending,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    _slot: OwnedSemaphorePermit,
}

/// One stream of a client that is known.
struct Conversation {
    session: Session,
    node: String,
    view: NodeView,
    stream: Stream,
    status: Open,
    connected: Connected,
    registered: Option<Registered>,
    /// What workloads that shut down wait for from this client.
    owed: Vec<Owed>,
    /// There may be something to say.
    stirred: bool,
    /// Since when a response could not be handed over.
    blocked_since: Option<Instant>,
}

/// An answer to a workload that shuts down.
struct Owed {
    /// Gone when it waits no more.
    drain: Weak<Drain>,
    /// The clusters of it that this client had when the drain began.
    clusters: Vec<String>,
}

impl Session {
    /// Serves the stream to its end.
    async fn run(mut self) {
        let first = tokio::time::timeout(FIRST_REQUEST_DEADLINE, self.requests.message()).await;
        let first = match first {
            Ok(Ok(Some(request))) => request,
            Ok(Ok(None)) => return,
            Ok(Err(status)) => return self.refuse(status),
            Err(_) => {
                return self.refuse(Status::deadline_exceeded("no request came within 30 s"));
            }
        };
        let mut snapshots = self.ads.snapshots.subscribe();
        let node = first.node.clone().unwrap_or_default();
        let registered = match self.register(&node).await {
            Ok(registered) => registered,
            Err(status) => return self.refuse(status),
        };
        let before = self.ads.snapshots.current();
        let (namespace, workload) = match admit(&node.id, &self.svid.id, before.mesh()) {
            Ok(names) => names,
            Err(status) => {
                if let Some(registered) = registered {
                    registered.leave();
                }
                return self.refuse(status);
            }
        };
        let connected = self.ads.snapshots.connected(namespace, workload);
        // Of after that: what drains from now on waits for this stream.
        let snapshot = snapshots.borrow_and_update().clone();
        if let Err(status) = admit(&node.id, &self.svid.id, snapshot.mesh()) {
            return self.refuse(status);
        }
        let view = NodeView::new(snapshot, namespace, workload);
        let client = self.client(&node);
        tracing::info!(node = ?client.node, identity = %client.identity, agent = ?client.agent, address = %client.address, "a sidecar connected");
        let conversation = Conversation {
            status: self.ads.clients.opened(client, SystemTime::now()),
            node: node.id.clone(),
            view,
            stream: Stream::default(),
            connected,
            registered,
            owed: Vec::new(),
            stirred: false,
            blocked_since: None,
            session: self,
        };
        conversation.run(first, snapshots).await;
    }

    /// Puts a workload in force that says itself what it is. Its namespace and service account
    /// are those of the certificate.
    async fn register(&self, node: &Node) -> Result<Option<Registered>, Status> {
        let Some(values) = registration::asked(node) else {
            return Ok(None);
        };
        let result = self.try_register(node, values).await;
        let counted = match &result {
            Ok(_) => RegistrationResult::Registered,
            Err(status) => match status.code() {
                tonic::Code::InvalidArgument => RegistrationResult::Invalid,
                tonic::Code::ResourceExhausted => RegistrationResult::Limited,
                tonic::Code::Unavailable => RegistrationResult::Late,
                _ => RegistrationResult::Conflict,
            },
        };
        self.ads.metrics.registration(counted);
        result.map(Some)
    }

    async fn try_register(&self, node: &Node, values: Value) -> Result<Registered, Status> {
        let svid = &self.svid.id;
        let snapshot = self.ads.snapshots.current();
        let mesh = snapshot.mesh();
        let (namespace, name) = node_names(&node.id)?;
        let account = svid.service_account().unwrap_or_default();
        if svid.trust_domain() != mesh.trust_domain() || svid.namespace() != Some(namespace) {
            return Err(other_identity(namespace, name, "<any>", mesh, svid));
        }
        let registration = Registration::parse(namespace, name, account, values)
            .map_err(|invalid| Status::invalid_argument(invalid.to_string()))?;
        for address in registration.addresses() {
            let owner = match mesh.owner(*address) {
                None => continue,
                Some(Owner::Workload(owner)) => {
                    let registered = &self.ads.registrations;
                    let same = owner.namespace == namespace && owner.service_account == account;
                    // Those are compared with each other, by who is connected.
                    if same || registered.holds(&owner.namespace, &owner.name, *address) {
                        continue;
                    }
                    Owner::Workload(owner)
                }
                Some(owner) => owner,
            };
            return Err(Status::permission_denied(format!(
                "node.metadata[\"weft.dev\"].addresses: {address} is that of {}; a registration cannot take it over",
                owner.describe()
            )));
        }
        let registered = self.ads.registrations.register(registration);
        let registered = registered.map_err(|refusal| {
            let text = refusal.to_string();
            match refusal {
                NotRegistered::Name { .. } | NotRegistered::Address { .. } => {
                    Status::permission_denied(text)
                }
                NotRegistered::Full(_)
                | NotRegistered::FullForIdentity(_)
                | NotRegistered::TooFast => Status::resource_exhausted(text),
            }
        })?;
        if registered.in_force(REGISTER_DEADLINE).await {
            return Ok(registered);
        }
        Err(Status::unavailable(
            "the registration is not in force yet; its place is kept, connect again",
        ))
    }

    fn client(&self, node: &Node) -> Client {
        let version = match &node.user_agent_version_type {
            Some(UserAgentVersionType::UserAgentVersion(version)) => version.as_str(),
            Some(UserAgentVersionType::UserAgentBuildVersion(build)) => {
                return self.client_of(
                    node,
                    &build.version.map_or_else(String::new, |v| {
                        format!("{}.{}.{}", v.major_number, v.minor_number, v.patch)
                    }),
                );
            }
            None => "",
        };
        self.client_of(node, version)
    }

    fn client_of(&self, node: &Node, version: &str) -> Client {
        let version = label(version);
        Client {
            node: node.id.clone(),
            identity: self.svid.id.clone(),
            agent: format!("{}/{version}", label(&node.user_agent_name)),
            version,
            address: self.peer.address,
        }
    }

    fn refuse(&self, status: Status) {
        let identity = &self.svid.id;
        let (code, reason) = (status.code(), status.message());
        if code == tonic::Code::Unavailable {
            tracing::debug!(%identity, address = %self.peer.address, ?reason, "ended a stream");
        } else {
            tracing::warn!(%identity, address = %self.peer.address, ?code, ?reason, "refused a stream");
        }
        // Full only when the client left a response unread: then it is being cut anyway.
        let _ = self.responses.try_send(Err(status));
    }
}

/// A text from a client as a label value: short, of harmless characters, never empty.
fn label(text: &str) -> String {
    let kept = text
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || ".-_+".contains(*c));
    let label: String = kept.take(64).collect();
    if label.is_empty() {
        "unknown".to_owned()
    } else {
        label
    }
}

/// Why a conversation ends.
enum End {
    /// The sidecar ended it: it shuts down.
    Clean,
    /// It broke.
    Broken(String),
    /// We end it, with this status.
    Refused(Status),
    /// The client does not read.
    Stalled,
}

impl Conversation {
    async fn run(
        mut self,
        first: DeltaDiscoveryRequest,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
    ) {
        // Between the registration of this stream and its first look somebody may have begun
        // to leave, and waits for it.
        self.note_drains(self.connected.since());
        let end = match self.on_request(first) {
            Ok(()) => self.converse(&mut snapshots).await,
            Err(end) => end,
        };
        let node = &self.node;
        match end {
            End::Clean => self.leave().await,
            End::Broken(reason) => tracing::info!(?node, ?reason, "a sidecar's stream broke"),
            End::Refused(status) => self.session.refuse(status),
            End::Stalled => {
                tracing::warn!(?node, "a sidecar does not read: cut its connection");
                self.session.ads.metrics.stalled.inc();
                self.session.peer.cut();
            }
        }
    }

    /// The sidecar shuts down: its response stream ends when nobody calls it any more.
    async fn leave(self) {
        let Self {
            session,
            node,
            status,
            connected,
            registered,
            ..
        } = self;
        tracing::info!(?node, "a sidecar shuts down");
        let leave = || {
            if let Some(registered) = registered {
                registered.leave();
            }
        };
        let Some(drain) = connected.ended() else {
            return leave();
        };
        status.leaving();
        let begun = Instant::now();
        let mut shutdown = session.ads.shutdown.clone();
        let finished = tokio::select! {
            // First: the end of the others' streams is no answer when it is our doing.
            biased;
            () = stopping(&mut shutdown) => {
                return session.refuse(Status::unavailable("the control plane is shutting down"));
            }
            finished = drain.finished(session.ads.drain_deadline) => finished,
        };
        let metrics = &session.ads.metrics;
        metrics.drained(finished);
        leave();
        match finished {
            Finished::Acknowledged => metrics.drain.observe(seconds(begun.elapsed())),
            Finished::TimedOut => {
                let silent = drain.silent();
                tracing::warn!(
                    ?node,
                    silent,
                    "sidecars did not acknowledge in time that this one shuts down"
                );
            }
            Finished::Overtaken => session.refuse(Status::aborted(
                "the workload has connected again: it is not shutting down",
            )),
        }
    }

    /// Cancel safe: what is lost by dropping it is lost by the end of the stream too.
    async fn converse(&mut self, snapshots: &mut watch::Receiver<Arc<Snapshot>>) -> End {
        let mut shutdown = self.session.ads.shutdown.clone();
        let responses = self.session.responses.clone();
        let expiry = expiry(self.session.svid.not_after);
        tokio::pin!(expiry);
        loop {
            self.answer_drains();
            if self.stirred {
                self.blocked_since.get_or_insert_with(Instant::now);
            } else {
                self.status.update(&self.stream);
            }
            let stalled = self
                .blocked_since
                .map(|since| since + self.session.ads.stall_deadline);
            tokio::select! {
                () = stopping(&mut shutdown) => {
                    return End::Refused(Status::unavailable("the control plane is shutting down"));
                }
                request = self.session.requests.message() => match request {
                    Ok(Some(request)) => if let Err(end) = self.on_request(request) {
                        return end;
                    },
                    Ok(None) if self.session.ending.is_clean() => return End::Clean,
                    Ok(None) => return End::Broken("cancelled".to_owned()),
                    Err(status) => return End::Broken(status.message().to_owned()),
                },
                permit = responses.reserve(), if self.stirred => match permit {
                    Ok(permit) => {
                        self.blocked_since = None;
                        match self.next_response() {
                            Some(response) => permit.send(Ok(response)),
                            None => self.stirred = false,
                        }
                    }
                    Err(_) => return End::Broken("the connection closed".to_owned()),
                },
                // The response side ends first when the connection breaks while we idle.
                () = responses.closed() => return self.last_words().await,
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return End::Refused(Status::unavailable("the control plane is shutting down"));
                    }
                    let snapshot = snapshots.borrow_and_update().clone();
                    if let Err(status) = admit(&self.node, &self.session.svid.id, snapshot.mesh()) {
                        return End::Refused(status);
                    }
                    let before = self.view.generation();
                    self.view.replace(snapshot);
                    self.stream.on_snapshot();
                    self.stirred = true;
                    self.note_drains(before);
                }
                () = sleep_until(stalled), if stalled.is_some() => return End::Stalled,
                () = &mut expiry => {
                    return End::Refused(Status::unauthenticated(
                        "the certificate of this connection has expired; connect again with a renewed one",
                    ));
                }
            }
        }
    }

    /// The client took no more responses; whether it also ended its requests decides if it
    /// shut down. What it says meanwhile no longer matters.
    async fn last_words(&mut self) -> End {
        let rest = async { while let Ok(Some(_)) = self.session.requests.message().await {} };
        let ended = tokio::time::timeout(Duration::from_secs(1), rest)
            .await
            .is_ok();
        if ended && self.session.ending.is_clean() {
            End::Clean
        } else {
            End::Broken("the client closed the stream".to_owned())
        }
    }

    /// Takes in the drains that began since the snapshot `before`.
    fn note_drains(&mut self, before: u64) {
        for drain in self.connected.drains(before, self.view.generation()) {
            let held = self.stream.held(Kind::Endpoint);
            let clusters = held.filter(|name| drain.concerns(name));
            self.owed.push(Owed {
                clusters: clusters.map(str::to_owned).collect(),
                drain: Arc::downgrade(&drain),
            });
        }
    }

    /// Answers the drains that have nothing to wait for from this client any more.
    fn answer_drains(&mut self) {
        let (stream, number) = (&self.stream, self.connected.number());
        self.owed.retain(|owed| {
            let Some(drain) = owed.drain.upgrade() else {
                return false;
            };
            match stream.progress(Kind::Endpoint, &owed.clusters, drain.generation()) {
                Progress::Pending => return true,
                Progress::Applied => {}
                Progress::Rejected => {
                    let (namespace, workload) = drain.workload();
                    tracing::warn!(node = ?self.node, draining = %format!("{namespace}/{workload}"), "a sidecar rejected the endpoints in which a workload drains, and may go on calling it");
                }
            }
            drain.answered(number);
            false
        });
    }

    fn on_request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), End> {
        let named = request.node.as_ref().map(|node| &node.id);
        if named.is_some_and(|id| !id.is_empty() && *id != self.node) {
            return Err(End::Refused(Status::invalid_argument(format!(
                "this stream is of node `{}`; it cannot become another one",
                self.node
            ))));
        }
        let heard = self
            .stream
            .on_request(request, &self.view)
            .map_err(|refusal| {
                let text = refusal.to_string();
                End::Refused(match refusal {
                    Refusal::NameTooLong(_) => Status::invalid_argument(text),
                    Refusal::TooManyNames | Refusal::TooManyVersions | Refusal::TooManyForeign => {
                        Status::resource_exhausted(text)
                    }
                })
            })?;
        self.stirred = true;
        match heard {
            Heard::Nothing => {}
            Heard::Ack(outcome) => self.applied(&outcome),
            Heard::Nack(outcome, detail) => {
                let kind = outcome.kind;
                tracing::warn!(node = ?self.node, %kind, ?detail, "a sidecar rejected configuration");
                self.session.ads.metrics.rejected(kind);
                self.status.rejected(kind, detail, SystemTime::now());
            }
        }
        Ok(())
    }

    fn applied(&self, outcome: &Outcome) {
        // A change overtaken by a newer one is measured by the newer one.
        let snapshot = self.view.snapshot();
        if outcome.changed && outcome.generation == snapshot.generation() {
            let taken = snapshot.published().elapsed();
            self.session.ads.metrics.propagation.observe(seconds(taken));
        }
    }

    fn next_response(&mut self) -> Option<DeltaDiscoveryResponse> {
        let push = self.stream.next_response(&self.view)?;
        let metrics = &self.session.ads.metrics;
        metrics.push_bytes.inc_by(push.bytes as u64);
        if push.changed {
            metrics
                .push
                .observe(seconds(self.view.snapshot().published().elapsed()));
        }
        if let Some(kind) = push.kind {
            tracing::debug!(node = ?self.node, %kind, generation = self.view.generation(), resources = push.response.resources.len(), removed = push.response.removed_resources.len(), bytes = push.bytes, "push");
        }
        Some(push.response)
    }
}

/// Checks that a client is the workload that it says it is.
///
/// # Errors
/// The status that ends the stream; its text names both identities.
fn admit<'a>(id: &'a str, svid: &SpiffeId, mesh: &Mesh) -> Result<(&'a str, &'a str), Status> {
    let (namespace, name) = node_names(id)?;
    let account = mesh
        .workload(namespace, name)
        .map(|workload| workload.service_account.as_str());
    // Without a document any service account of the namespace will do.
    let admitted = svid.trust_domain() == mesh.trust_domain()
        && svid.namespace() == Some(namespace)
        && account.is_none_or(|account| svid.service_account() == Some(account));
    if admitted {
        return Ok((namespace, name));
    }
    let account = account.unwrap_or("<any>");
    Err(other_identity(namespace, name, account, mesh, svid))
}

/// Namespace and name of a workload in its `node.id`.
fn node_names(id: &str) -> Result<(&str, &str), Status> {
    let valid = |part: &str| {
        let bytes = part.bytes();
        !part.is_empty()
            && part.len() <= 253
            && bytes
                .into_iter()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
    };
    let parts = id
        .split_once('/')
        .filter(|(namespace, name)| valid(namespace) && valid(name));
    let Some((namespace, name)) = parts else {
        return Err(Status::invalid_argument(format!(
            "node.id is {:?}; it must be `<namespace>/<workload>`, as in blog/post-v2",
            id.chars().take(300).collect::<String>()
        )));
    };
    Ok((namespace, name))
}

fn other_identity(
    namespace: &str,
    name: &str,
    account: &str,
    mesh: &Mesh,
    svid: &SpiffeId,
) -> Status {
    let domain = mesh.trust_domain();
    Status::permission_denied(format!(
        "workload {namespace}/{name} must be spiffe://{domain}/ns/{namespace}/sa/{account}, but the certificate of this connection is of {svid}"
    ))
}

/// Ends when the server is to end, or is gone.
async fn stopping(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|down| *down).await;
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Ends when the wall clock has passed `not_after`.
async fn expiry(not_after: SystemTime) {
    // Looked at again from time to time: wall clocks are set.
    const LOOK: Duration = Duration::from_secs(600);
    while let Ok(left) = not_after.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(LOOK) + Duration::from_millis(1)).await;
    }
}

/// Whether the client ended its request stream or broke it off. tonic shows a reset stream
/// as a clean end, and only a clean end means that a sidecar shuts down.
#[derive(Clone, Default)]
pub(crate) struct Ending(Arc<AtomicBool>);

impl Ending {
    fn is_clean(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes the end of a request's body known to its handler, as an [`Ending`] among the
/// extensions. For a tower layer below tonic.
pub(crate) fn watch_ending(request: http::Request<Body>) -> http::Request<Body> {
    let ending = Ending::default();
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(ending.clone());
    let clean = body.is_end_stream();
    ending.0.store(clean, Ordering::Relaxed);
    http::Request::from_parts(parts, Body::new(Watched { body, ending }))
}

struct Watched {
    body: Body,
    ending: Ending,
}

impl HttpBody for Watched {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(None) = frame {
            self.ending.0.store(true, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full, StreamBody};

    use super::*;

    async fn ending_of(body: Body) -> bool {
        let request = watch_ending(http::Request::new(body));
        let (parts, mut body) = request.into_parts();
        while let Some(Ok(_)) = body.frame().await {}
        parts.extensions.get::<Ending>().unwrap().is_clean()
    }

    #[tokio::test]
    async fn only_an_ended_body_is_a_clean_end() {
        let data = || Ok::<_, Status>(Frame::data(bytes::Bytes::from_static(b"x")));
        assert!(ending_of(Body::new(Full::from("x"))).await);
        assert!(ending_of(Body::empty()).await);
        for status in [Status::cancelled("reset"), Status::unknown("broken")] {
            let frames = tokio_stream::iter([data(), Err(status)]);
            assert!(!ending_of(Body::new(StreamBody::new(frames))).await);
        }
    }

    #[tokio::test]
    async fn a_stream_ends_with_the_certificate() {
        expiry(SystemTime::now() - Duration::from_secs(1)).await;
        let later = expiry(SystemTime::now() + Duration::from_secs(3600));
        let waited = tokio::time::timeout(Duration::from_millis(20), later).await;
        assert!(waited.is_err());
    }

    #[test]
    fn labels_are_harmless() {
        assert_eq!(label("1.2.3-rc.1+x"), "1.2.3-rc.1+x");
        assert_eq!(label("a\"} 1\nevil{b=\"c"), "a1evilbc");
        assert_eq!(label(""), "unknown");
        assert_eq!(label(&"x".repeat(100)).len(), 64);
    }
}
