//! Drives the [state machine](super::state) over a connection: opens the stream, keeps it,
//! and opens it again when it breaks.
//!
//! A stream that is silent is a good one; a connection that is dead is found by the HTTP/2
//! keepalive of the channel.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming, body::Body, transport::Channel};
use tower::ServiceExt as _;
use weft_api::{
    Kind,
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
};

use super::state::{Event, Farewell, State};

/// What the sidecar wants of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Ask for a resource, now and whenever it changes.
    Subscribe(Kind, Arc<str>),
    /// A resource is not used any more.
    Unsubscribe(Kind, Arc<str>),
    /// The sidecar is shutting down: end the stream so that the control plane knows.
    Leave,
    /// It does not shut down after all: connect again.
    Return,
    /// Another process speaks for the workload from now on: break the stream off, which says
    /// nothing to the control plane.
    Break,
}

/// The xDS client of one sidecar.
#[derive(Debug)]
pub struct Client {
    state: State,
    commands: UnboundedReceiver<Command>,
    backoff: Backoff,
}

/// Why a stream is not to go on.
enum Stop {
    /// [`Command::Leave`].
    Leave,
    /// [`Command::Break`], or all senders of commands are gone.
    Break,
}

impl Client {
    /// A client that is not connected. `node` goes with the first request of every stream;
    /// `seed` spreads the retries of many sidecars.
    #[must_use]
    pub fn new(node: Node, commands: UnboundedReceiver<Command>, seed: u64) -> Self {
        Self {
            state: State::new(node),
            commands,
            backoff: Backoff::new(seed),
        }
    }

    /// Resources that are held from the start, as from a file: kind, name, version.
    #[must_use]
    pub fn holding(mut self, held: impl IntoIterator<Item = (Kind, Arc<str>, String)>) -> Self {
        for (kind, name, version) in held {
            self.state.hold(kind, name, version);
        }
        self
    }

    /// Talks to the control plane until [`Command::Break`], or until all senders of commands
    /// are gone; between [`Command::Leave`] and [`Command::Return`] it only notes what is
    /// wanted. `connect` gives a new connection; `sink` gets every event in order and must
    /// not block.
    ///
    /// Cancel safe: dropping the future breaks the stream, which the control plane does not
    /// take for leaving.
    pub async fn run<E: std::fmt::Display>(
        mut self,
        mut connect: impl AsyncFnMut() -> Result<Channel, E>,
        mut sink: impl FnMut(Event),
    ) {
        while let Some(farewell) = self.stay(&mut connect, &mut sink).await {
            sink(Event::Left(farewell));
            if self.away(farewell, &mut sink).await.is_none() {
                return;
            }
        }
    }

    /// Keeps a stream open until the sidecar leaves; `None` if it is to be broken off.
    async fn stay<E: std::fmt::Display>(
        &mut self,
        connect: &mut impl AsyncFnMut() -> Result<Channel, E>,
        sink: &mut impl FnMut(Event),
    ) -> Option<Farewell> {
        let not_connected = |stop| match stop {
            Stop::Leave => Some(Farewell::NotConnected),
            Stop::Break => None,
        };
        loop {
            let opening = async { open(connect().await.map_err(|e| e.to_string())?).await };
            let opening = timeout(OPEN_TIMEOUT, opening);
            let opened = match self.unless_left(opening).await {
                Ok(Ok(opened)) => opened,
                Ok(Err(_)) => Err("the control plane does not answer".to_owned()),
                Err(stop) => return not_connected(stop),
            };
            let reason = match opened {
                Ok(mut stream) => {
                    sink(Event::Connected);
                    let ended = self.talk(&mut stream, sink).await;
                    let left = match ended {
                        Ok(reason) => Ok(reason),
                        Err(Stop::Break) => Err(None),
                        Err(Stop::Leave) => Err(Some(self.leave(stream, sink).await)),
                    };
                    self.state.closed();
                    match left {
                        Ok(reason) => reason,
                        Err(farewell) => return farewell,
                    }
                }
                Err(reason) => reason,
            };
            sink(Event::Disconnected(reason));
            let pause = self.backoff.next();
            if let Err(stop) = self.unless_left(sleep(pause)).await {
                return not_connected(stop);
            }
        }
    }

    /// Waits for [`Command::Return`]; `None` if it will not come. Who is told to leave again is
    /// told again how that went.
    async fn away(&mut self, farewell: Farewell, sink: &mut impl FnMut(Event)) -> Option<()> {
        let mut commands = Vec::new();
        loop {
            self.commands.recv_many(&mut commands, BATCH).await;
            let returns = commands.contains(&Command::Return);
            match note(&mut self.state, &mut commands) {
                Ok(()) if returns => return Some(()),
                Ok(()) => {}
                Err(Stop::Leave) => sink(Event::Left(farewell)),
                Err(Stop::Break) => return None,
            }
        }
    }

    /// Ends the stream cleanly, and waits until the control plane has ended it too: nobody
    /// calls any more then. What still comes applies.
    async fn leave(&mut self, stream: Stream, sink: &mut impl FnMut(Event)) -> Farewell {
        let Stream {
            requests,
            leaving,
            mut responses,
        } = stream;
        leaving.store(true, Ordering::Relaxed);
        drop(requests);
        let rest = async {
            loop {
                match responses.message().await {
                    Ok(Some(response)) => {
                        let (events, _) = self.state.on_response(response);
                        events.into_iter().for_each(&mut *sink);
                    }
                    Ok(None) => return Farewell::Acknowledged,
                    Err(status) => {
                        tracing::info!(status = describe(&status), "leaving was not acknowledged");
                        return Farewell::Unanswered;
                    }
                }
            }
        };
        // Whoever does not end the stream in time has at least been told.
        timeout(LEAVE_TIMEOUT, rest)
            .await
            .unwrap_or(Farewell::Unanswered)
    }

    /// Waits for something while subscriptions are noted.
    async fn unless_left<F: Future>(&mut self, wait: F) -> Result<F::Output, Stop> {
        let mut wait = pin!(wait);
        let mut commands = Vec::new();
        loop {
            tokio::select! {
                done = &mut wait => return Ok(done),
                _ = self.commands.recv_many(&mut commands, BATCH) => {
                    note(&mut self.state, &mut commands)?;
                }
            }
        }
    }

    /// Talks until the stream ends, for the reason that is returned.
    async fn talk(
        &mut self,
        stream: &mut Stream,
        sink: &mut impl FnMut(Event),
    ) -> Result<String, Stop> {
        self.state.opened();
        let mut commands = Vec::new();
        loop {
            // A stream that does not take requests any more ends, and says why, as responses.
            for request in self.state.requests() {
                let _ended = stream.requests.send(request);
            }
            tokio::select! {
                response = stream.responses.message() => match response {
                    Ok(Some(response)) => {
                        self.backoff.reset();
                        let (events, answer) = self.state.on_response(response);
                        // Before the answer: it says that they are in force.
                        events.into_iter().for_each(&mut *sink);
                        let _ended = stream.requests.send(answer);
                    }
                    Ok(None) => return Ok("the control plane has ended the stream".to_owned()),
                    Err(status) => return Ok(describe(&status)),
                },
                _ = self.commands.recv_many(&mut commands, BATCH) => {
                    note(&mut self.state, &mut commands)?;
                }
            }
        }
    }
}

/// Applies commands to the state, all of them. No command at all means that all senders are
/// gone.
fn note(state: &mut State, commands: &mut Vec<Command>) -> Result<(), Stop> {
    let mut result = if commands.is_empty() {
        Err(Stop::Break)
    } else {
        Ok(())
    };
    for command in commands.drain(..) {
        match command {
            Command::Subscribe(kind, name) => state.subscribe(kind, name),
            Command::Unsubscribe(kind, name) => state.unsubscribe(kind, &name),
            Command::Break => result = Err(Stop::Break),
            Command::Leave if result.is_ok() => result = Err(Stop::Leave),
            Command::Leave => {}
            // What was taken back before it was done.
            Command::Return if matches!(result, Err(Stop::Leave)) => result = Ok(()),
            Command::Return => {}
        }
    }
    result
}

/// Both directions of a stream.
struct Stream {
    /// Unbounded, so that a control plane that waits for us to read does not wait for ever:
    /// there is one answer for each response, and one request for each batch of commands.
    requests: UnboundedSender<DeltaDiscoveryRequest>,
    /// Set before `requests` is dropped to leave.
    leaving: Arc<AtomicBool>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

async fn open(channel: Channel) -> Result<Stream, String> {
    let (requests, outgoing) = unbounded_channel();
    let leaving = Arc::new(AtomicBool::new(false));
    let left = leaving.clone();
    let channel = channel.map_request(move |request: http::Request<Body>| {
        request.map(|body| {
            Body::new(EndsOnlyToLeave {
                body,
                leaving: left.clone(),
            })
        })
    });
    let mut client = AggregatedDiscoveryServiceClient::new(channel)
        .max_decoding_message_size(MAX_RESPONSE)
        .max_encoding_message_size(MAX_RESPONSE);
    let opened = client
        .delta_aggregated_resources(UnboundedReceiverStream::new(outgoing))
        .await;
    let responses = opened.map_err(|status| describe(&status))?.into_inner();
    Ok(Stream {
        requests,
        leaving,
        responses,
    })
}

/// A request body whose end is clean only when the sidecar leaves. Any other end, as of a
/// client that is dropped, resets the stream: the control plane must not take it for leaving.
struct EndsOnlyToLeave {
    body: Body,
    leaving: Arc<AtomicBool>,
}

impl http_body::Body for EndsOnlyToLeave {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() && !self.leaving.load(Ordering::Relaxed) {
            return Poll::Ready(Some(Err(Status::cancelled("the stream was given up"))));
        }
        Poll::Ready(frame)
    }
}

fn describe(status: &Status) -> String {
    format!("{}: {}", status.code(), status.message())
}

/// How long to wait before the next attempt: exponential with full jitter.
#[derive(Debug)]
struct Backoff {
    failures: u32,
    random: u64,
}

impl Backoff {
    fn new(seed: u64) -> Self {
        Self {
            failures: 0,
            random: seed,
        }
    }

    /// The stream has worked: what comes next is its first failure.
    fn reset(&mut self) {
        self.failures = 0;
    }

    fn next(&mut self) -> Duration {
        let longest = FIRST_PAUSE
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.random() % (micros + 1))
    }

    /// SplitMix64: enough to spread, and the same for the same seed.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.random;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Up to this long after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Up to this long after many.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Connection, handshake and the head of the response.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the control plane may take to tell everybody that this sidecar leaves.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Commands that go into one request at most.
const BATCH: usize = 1024;
/// The largest message, in bytes. A control plane sends everything it has in one response.
const MAX_RESPONSE: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::atomic::AtomicU32};

    use prost::Message;
    use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
    use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
    use tonic::{
        Request, Response,
        transport::{Endpoint, Server},
    };
    use weft_api::{
        envoy::{
            config::{endpoint::v3::ClusterLoadAssignment, route::v3::RouteConfiguration},
            service::discovery::v3::{
                DiscoveryRequest, DiscoveryResponse, Resource,
                aggregated_discovery_service_server::{
                    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
                },
            },
        },
        google::protobuf::Any,
    };

    use super::*;

    /// A control plane whose streams are played by the test.
    struct Double {
        streams: UnboundedSender<Played>,
    }

    /// The server's side of one stream.
    struct Played {
        requests: Streaming<DeltaDiscoveryRequest>,
        responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    }

    #[tonic::async_trait]
    impl AggregatedDiscoveryService for Double {
        type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
        type DeltaAggregatedResourcesStream =
            ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

        async fn stream_aggregated_resources(
            &self,
            _: Request<Streaming<DiscoveryRequest>>,
        ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
            Err(Status::unimplemented("the sidecar speaks delta"))
        }

        async fn delta_aggregated_resources(
            &self,
            request: Request<Streaming<DeltaDiscoveryRequest>>,
        ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
            let (responses, outgoing) = mpsc::channel(8);
            let played = Played {
                requests: request.into_inner(),
                responses,
            };
            self.streams
                .send(played)
                .map_err(|_| Status::unavailable("over"))?;
            Ok(Response::new(ReceiverStream::new(outgoing)))
        }
    }

    impl Played {
        async fn request(&mut self) -> DeltaDiscoveryRequest {
            let request = soon(self.requests.message()).await;
            request.expect("stream").expect("a request, not the end")
        }

        /// The request for a kind; others before it are passed over.
        async fn request_for(&mut self, kind: Kind) -> DeltaDiscoveryRequest {
            loop {
                let request = self.request().await;
                if request.type_url == kind.type_url() {
                    return request;
                }
            }
        }

        async fn respond(&self, nonce: &str, resources: Vec<Resource>, removed: &[&str]) {
            let response = DeltaDiscoveryResponse {
                type_url: Kind::Endpoint.type_url().into(),
                nonce: nonce.into(),
                resources,
                removed_resources: removed.iter().map(ToString::to_string).collect(),
                ..Default::default()
            };
            self.responses.send(Ok(response)).await.expect("client");
        }
    }

    async fn soon<F: Future>(wait: F) -> F::Output {
        timeout(Duration::from_secs(10), wait)
            .await
            .expect("it happens soon")
    }

    /// A client and the control plane that it talks to.
    struct Pair {
        streams: UnboundedReceiver<Played>,
        commands: UnboundedSender<Command>,
        events: UnboundedReceiver<Event>,
        client: JoinHandle<()>,
        dialed: Arc<AtomicU32>,
    }

    impl Pair {
        /// The first `refusals` attempts to connect fail.
        async fn start(refusals: u32) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
            let address = listener.local_addr().expect("address");
            let (streams, played) = unbounded_channel();
            let service = AggregatedDiscoveryServiceServer::new(Double { streams });
            let server = Server::builder().add_service(service);
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
            let (commands, receiver) = unbounded_channel();
            let (tell, events) = unbounded_channel();
            let dialed = Arc::new(AtomicU32::new(0));
            let node = Node {
                id: "blog/post".into(),
                ..Default::default()
            };
            let client = Client::new(node, receiver, 7);
            let count = dialed.clone();
            let client = tokio::spawn(client.run(
                async move || dial(address, &count, refusals).await,
                move |event| drop(tell.send(event)),
            ));
            Self {
                streams: played,
                commands,
                events,
                client,
                dialed,
            }
        }

        async fn stream(&mut self) -> Played {
            soon(self.streams.recv()).await.expect("a stream")
        }

        async fn event(&mut self) -> Event {
            soon(self.events.recv()).await.expect("an event")
        }

        fn subscribe(&self, name: &str) {
            self.command(Command::Subscribe(Kind::Endpoint, name.into()));
        }

        fn command(&self, command: Command) {
            self.commands.send(command).expect("client");
        }
    }

    async fn dial(
        address: SocketAddr,
        dialed: &AtomicU32,
        refusals: u32,
    ) -> Result<Channel, String> {
        if dialed.fetch_add(1, Ordering::Relaxed) < refusals {
            return Err("connection refused".into());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("URI");
        endpoint.connect().await.map_err(|e| e.to_string())
    }

    fn endpoints(name: &str, version: &str) -> Resource {
        let message = ClusterLoadAssignment {
            cluster_name: name.into(),
            ..Default::default()
        };
        Resource {
            name: name.into(),
            version: version.into(),
            resource: Some(Any {
                type_url: Kind::Endpoint.type_url().into(),
                value: message.encode_to_vec(),
            }),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn resources_arrive_and_are_accepted() {
        let mut pair = Pair::start(0).await;
        pair.subscribe("a");
        let mut stream = pair.stream().await;
        assert_eq!(pair.event().await, Event::Connected);
        let first = stream.request().await;
        assert_eq!(first.node.expect("node").id, "blog/post");
        stream.respond("1", vec![endpoints("a", "v1")], &[]).await;
        let Event::Updated(name, value, _) = pair.event().await else {
            panic!("no update");
        };
        assert_eq!((&*name, value.kind()), ("a", Kind::Endpoint));
        let ack = loop {
            let request = stream.request_for(Kind::Endpoint).await;
            if !request.response_nonce.is_empty() {
                break request;
            }
        };
        assert_eq!((&*ack.response_nonce, ack.error_detail), ("1", None));
        pair.subscribe("b");
        let request = stream.request_for(Kind::Endpoint).await;
        assert_eq!(request.resource_names_subscribe, ["b"]);
        assert_eq!((&*request.response_nonce, request.node), ("", None));
        stream.respond("2", Vec::new(), &["b", "a"]).await;
        assert_eq!(
            pair.event().await,
            Event::Absent(Kind::Endpoint, "b".into())
        );
        assert_eq!(
            pair.event().await,
            Event::Removed(Kind::Endpoint, "a".into())
        );
    }

    #[tokio::test]
    async fn a_bad_resource_is_refused_by_name() {
        let mut pair = Pair::start(0).await;
        pair.subscribe("a");
        pair.subscribe("b");
        let mut stream = pair.stream().await;
        while stream.request().await.type_url != Kind::Endpoint.type_url() {}
        let mut wrong = endpoints("a", "v1");
        wrong.resource = endpoints("other", "v1").resource;
        stream
            .respond("9", vec![wrong, endpoints("b", "v1")], &[])
            .await;
        let nack = loop {
            let request = stream.request_for(Kind::Endpoint).await;
            if !request.response_nonce.is_empty() {
                break request;
            }
        };
        assert_eq!(nack.response_nonce, "9");
        assert_eq!(
            nack.error_detail.expect("NACK").message,
            "a: cluster_name: is \"other\", but the resource was sent as \"a\""
        );
        assert_eq!(pair.event().await, Event::Connected);
        assert!(matches!(pair.event().await, Event::Rejected(r) if &*r.name == "a"));
        assert!(matches!(pair.event().await, Event::Updated(name, ..) if &*name == "b"));
    }

    #[tokio::test]
    async fn a_broken_stream_is_opened_again_with_what_is_held() {
        let mut pair = Pair::start(0).await;
        pair.subscribe("a");
        pair.subscribe("b");
        let mut stream = pair.stream().await;
        stream.request_for(Kind::Endpoint).await;
        stream.respond("1", vec![endpoints("a", "v1")], &[]).await;
        assert_eq!(pair.event().await, Event::Connected);
        assert!(matches!(pair.event().await, Event::Updated(..)));
        let status = Status::unavailable("restarting");
        stream.responses.send(Err(status)).await.expect("client");
        let Event::Disconnected(reason) = pair.event().await else {
            panic!("still connected");
        };
        assert!(reason.contains("restarting"), "{reason}");
        pair.subscribe("c");
        let mut stream = pair.stream().await;
        assert_eq!(pair.event().await, Event::Connected);
        let request = stream.request().await;
        assert!(request.node.is_some(), "the node goes with every stream");
        assert_eq!(request.type_url, Kind::Endpoint.type_url());
        assert_eq!(request.resource_names_subscribe, ["a", "b", "c"]);
        let held = [("a".to_owned(), "v1".to_owned())];
        assert_eq!(request.initial_resource_versions, held.into());
        let request = stream.request().await;
        assert_eq!(request.type_url, Kind::Listener.type_url());
        assert_eq!(request.resource_names_subscribe, ["*"]);
        drop(stream);
        assert_eq!(
            pair.event().await,
            Event::Disconnected("the control plane has ended the stream".into())
        );
    }

    #[tokio::test]
    async fn a_control_plane_that_is_away_is_tried_again() {
        let mut pair = Pair::start(2).await;
        let refused = || Event::Disconnected("connection refused".into());
        assert_eq!(pair.event().await, refused());
        assert_eq!(pair.event().await, refused());
        assert_eq!(pair.event().await, Event::Connected);
        assert_eq!(pair.dialed.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn leaving_is_acknowledged_by_the_end_of_the_stream() {
        let mut pair = Pair::start(0).await;
        pair.subscribe("a");
        let mut stream = pair.stream().await;
        assert_eq!(pair.event().await, Event::Connected);
        stream.request_for(Kind::Endpoint).await;
        pair.command(Command::Leave);
        // Until everybody knows, what changes is heard of.
        loop {
            match soon(stream.requests.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => panic!("an end, not a reset: {error}"),
            }
        }
        stream.respond("2", Vec::new(), &["a"]).await;
        let absent = Event::Absent(Kind::Endpoint, "a".into());
        assert_eq!(pair.event().await, absent);
        drop(stream);
        assert_eq!(pair.event().await, Event::Left(Farewell::Acknowledged));
        assert_eq!(pair.dialed.load(Ordering::Relaxed), 1);

        // Who is told twice is answered twice.
        pair.command(Command::Leave);
        let left = Event::Left(Farewell::Acknowledged);
        assert_eq!(pair.event().await, left);

        // It comes back, with what is wanted by then.
        pair.subscribe("b");
        pair.command(Command::Return);
        let mut stream = pair.stream().await;
        let request = stream.request_for(Kind::Endpoint).await;
        assert_eq!(request.resource_names_subscribe, ["a", "b"]);
        assert_eq!(pair.event().await, Event::Connected);
    }

    #[tokio::test]
    async fn leaving_that_is_refused_or_cut_is_not_acknowledged() {
        let mut pair = Pair::start(0).await;
        let stream = pair.stream().await;
        assert_eq!(pair.event().await, Event::Connected);
        pair.command(Command::Leave);
        let cut = Err(Status::unavailable("going down"));
        stream.responses.send(cut).await.expect("client");
        assert_eq!(pair.event().await, Event::Left(Farewell::Unanswered));
    }

    #[tokio::test]
    async fn leaving_works_without_a_stream() {
        let mut pair = Pair::start(u32::MAX).await;
        assert!(matches!(pair.event().await, Event::Disconnected(_)));
        pair.command(Command::Leave);
        loop {
            match pair.event().await {
                Event::Disconnected(_) => {}
                event => break assert_eq!(event, Event::Left(Farewell::NotConnected)),
            }
        }
    }

    #[tokio::test]
    async fn who_is_replaced_breaks_the_stream() {
        let mut pair = Pair::start(0).await;
        let mut stream = pair.stream().await;
        stream.request().await;
        pair.command(Command::Break);
        let end = soon(stream.requests.message()).await;
        assert!(end.is_err(), "a reset, not an end: {end:?}");
        soon(pair.client).await.expect("client");
    }

    #[tokio::test]
    async fn a_client_without_commands_to_come_leaves() {
        let mut pair = Pair::start(0).await;
        let stream = pair.stream().await;
        drop(pair.commands);
        drop(stream);
        soon(pair.client).await.expect("client");
    }

    #[tokio::test]
    async fn a_dropped_client_breaks_the_stream() {
        let mut pair = Pair::start(0).await;
        let mut stream = pair.stream().await;
        stream.request().await;
        pair.client.abort();
        let end = soon(stream.requests.message()).await;
        assert!(end.is_err(), "a reset, not an end: {end:?}");
    }

    #[tokio::test]
    async fn a_large_response_is_read() {
        let mut pair = Pair::start(0).await;
        pair.command(Command::Subscribe(Kind::Route, "r".into()));
        let stream = pair.stream().await;
        assert_eq!(pair.event().await, Event::Connected);
        let table = RouteConfiguration {
            name: "r".into(),
            internal_only_headers: vec!["x".repeat(5 << 20)],
            ..Default::default()
        };
        let mut resource = endpoints("r", "v1");
        resource.resource = Some(weft_api::any::pack(&table));
        let response = DeltaDiscoveryResponse {
            type_url: Kind::Route.type_url().into(),
            nonce: "1".into(),
            resources: vec![resource],
            ..Default::default()
        };
        stream.responses.send(Ok(response)).await.expect("client");
        assert!(matches!(pair.event().await, Event::Updated(name, ..) if &*name == "r"));
    }

    #[test]
    fn pauses_grow_to_a_limit_and_start_again() {
        let mut backoff = Backoff::new(1);
        let mut longest = Duration::ZERO;
        for failure in 0..200_u32 {
            let limit = Duration::from_millis(200 << failure.min(16)).min(LONGEST_PAUSE);
            let pause = backoff.next();
            assert!(pause <= limit, "{failure}: {pause:?}");
            longest = longest.max(pause);
        }
        assert!(longest > LONGEST_PAUSE * 9 / 10, "{longest:?}");
        backoff.reset();
        assert!(backoff.next() <= FIRST_PAUSE);
        assert_ne!(Backoff::new(1).next(), Backoff::new(2).next());
    }
}
