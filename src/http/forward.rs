//! HOT. One request through the proxy, from its head to the head of its answer. The only
//! place where routing, balancing and connections meet.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_TYPE, EXPECT, HOST},
};
use http_body::Body as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::time::{Instant, timeout_at};

use super::{
    Connection, Routes,
    admission::{self, Asked, Peer},
    authority::Authority,
    headers::{location, rewrite_path, strip_hop_by_hop, wants_websocket},
    pulse::ActiveGuard,
    readings,
    reply::{self, grpc_status, is_grpc},
    tracked::{Stream, Tracked},
    translate::{Content, to_http1, to_http2},
    tunnel,
};
use crate::{
    body::{Body, Rules},
    cluster::{Cluster, Pick},
    config::{AppProtocol, Forward, HostRewrite, HttpProtocol, RequestKey, Route, RouteAction},
    error::{Error, Reason},
    fields,
    memory::{Charge, Pressure},
    snapshot::{Backend, LiveHost, MAX_NAME, Snapshot, normalize},
    telemetry::{Side, StreamInfo, Tls},
    upstream::{Lease, Protocol, send, target},
    util::Gate,
    worker::LOOKUP,
};

/// Endpoints that are tried for a request that was never sent.
const MAX_ATTEMPTS: usize = 4;
/// What a request is taken to need in memory, in bytes, without bodies: so much, and for each
/// byte of the head of one that came by HTTP/2, where many wait at one time.
const ROOM: usize = 4 * 1024;
const HEAD: usize = 6;
/// A client that has cancelled fewer requests on a connection is not suspected.
const FEW_RESETS: u32 = 100;
/// A client that waits for 100 sends its body after this time anyway (RFC 9110 10.1.1).
const EXPECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Takes one request to its answer. Dropping the future cancels the request.
pub(super) fn handle(
    connection: &Arc<Connection>,
    req: Request<Incoming>,
) -> impl Future<Output = Result<Response<Tracked>, Unprocessed>> + use<> {
    // Made outside of the future, which is moved several times: what it starts with is kept
    // once.
    let mut exchange = Exchange::new(connection, req);
    async move {
        if !exchange.keep_head() {
            return Err(Unprocessed(h2::Reason::REFUSED_STREAM.into()));
        }
        let (response, upstream) = match exchange.run().await {
            Ok(answer) => {
                exchange.info.reason = exchange.info.peer_reason.unwrap_or(Reason::None);
                answer
            }
            Err(error) => {
                exchange.fail(error);
                let grpc = exchange.info.is_grpc;
                (reply::failure(exchange.info.reason, grpc), None)
            }
        };
        Ok(exchange.finish(response, upstream))
    }
}

/// A request that was not looked at: RST_STREAM with REFUSED_STREAM, so that the client may
/// send it elsewhere, whatever it is.
#[derive(Debug, thiserror::Error)]
#[error("refused")]
pub(super) struct Unprocessed(#[source] h2::Error);

type Answer = (Response<Body>, Option<(Pick, usize, Lease)>);

/// One request and what is known of it.
struct Exchange {
    connection: Arc<Connection>,
    info: Box<StreamInfo>,
    active: ActiveGuard,
    /// Until it is sent.
    request: Option<Request<Body>>,
    /// What its body is held to.
    rules: Option<Arc<Rules>>,
    /// The client's version.
    version: Version,
    deadline: Option<Instant>,
    /// What it takes of the process's memory.
    room: Option<Charge>,
}

impl Exchange {
    fn new(connection: &Arc<Connection>, req: Request<Incoming>) -> Self {
        let authority = match req.uri().authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => req.headers().get(HOST).cloned(),
        };
        let info = StreamInfo {
            side: connection.side(),
            started: Instant::now(),
            method: req.method().clone(),
            uri: req.uri().clone(),
            authority,
            tls: connection.tls,
            peer: connection.peer.clone(),
            route: None,
            backend: None,
            upstream: None,
            metrics: None,
            code: 0,
            grpc_code: None,
            is_grpc: is_grpc(req.headers()),
            // What holds if the client goes away before the answer.
            reason: Reason::ClientClosed,
            peer_reason: None,
            detail: None,
            attempts: 0,
            waiting: None,
            upstream_seconds: 0.0,
            overhead_seconds: 0.0,
            bytes_out: 0,
            handed_over: false,
            log: connection.worker.shared.log.clone(),
        };
        let (parts, body) = req.into_parts();
        let (body, rules) = Body::request(body, &connection.worker.shared.limits);
        Self {
            connection: connection.clone(),
            info: Box::new(info),
            active: connection.pulse.request(),
            version: parts.version,
            request: Some(Request::from_parts(parts, body)),
            rules,
            deadline: None,
            room: None,
        }
    }

    /// The request breaks a rule; that is counted.
    fn violated(&self, rule: &'static str, error: Error) -> Error {
        let metrics = &self.connection.worker.shared.metrics;
        metrics.http_violation("downstream", rule);
        error
    }

    /// The request as it came; only before it is prepared.
    fn request(&mut self) -> Result<&mut Request<Body>, Error> {
        let missing = || Error::new(Reason::Internal, "the request was sent already");
        self.request.as_mut().ok_or_else(missing)
    }

    async fn run(&mut self) -> Result<Answer, Error> {
        if let Some(refusal) = self.connection.pulse.signals.refusal(self.active.number) {
            let error = Error::new(refusal.reason, refusal.rule);
            return Err(self.violated(refusal.rule, error));
        }
        self.take_room()?;
        let authority = self.admit()?;
        if self.connection.probes_only {
            self.admit_probe()?;
        }
        if self.connection.pulse.signals.resets() >= FEW_RESETS {
            // What was cancelled together with its request is never begun.
            tokio::task::yield_now().await;
        }
        let host = self.host(&authority).await?;
        let req = self.request()?;
        let key = RequestKey {
            method: req.method(),
            uri: req.uri(),
            path: req.uri().path(),
            authority: &authority,
            headers: req.headers(),
        };
        let found =
            readings::route(&host.config, &key).map_err(|v| self.violated(v.rule, v.error))?;
        let Some(index) = found else {
            self.count_unrouted(&host, "");
            let words = format!("no route of {} matches", host.config.name);
            return Err(Error::new(Reason::NoRoute, words));
        };
        let route = &host.config.routes[index];
        self.info.route = Some(route.name.clone());
        match &route.action {
            RouteAction::Redirect(redirect) => {
                self.count_unrouted(&host, &route.name);
                let path = &route.matches.path;
                let to = location(redirect, &self.info.uri, &authority, path);
                let mut response = reply::redirect(redirect.status, to);
                route.response_headers.apply(response.headers_mut());
                Ok((response, None))
            }
            RouteAction::Direct(direct) => {
                self.count_unrouted(&host, &route.name);
                let mut response = reply::direct(direct);
                route.response_headers.apply(response.headers_mut());
                Ok((response, None))
            }
            RouteAction::Forward(forward) => {
                let chosen = forward.clusters.choose(self.connection.worker.rng.next());
                let backend = &host.routes[index][chosen];
                self.count_backend(backend, &route.name);
                let Some(cluster) = &backend.cluster else {
                    let words = format!("{} does not exist or is not permitted", backend.name);
                    return Err(Error::new(Reason::BackendMissing, words));
                };
                if forward.terminate_connect && self.info.method == Method::CONNECT {
                    let connecting = self.connect(&authority, cluster.clone());
                    return Box::pin(connecting).await;
                }
                let weighted = &forward.clusters.clusters[chosen];
                let (protocol, downstream) = self.prepare(route, forward, &authority, cluster)?;
                weighted
                    .request_headers
                    .apply(self.request()?.headers_mut());
                self.deadline = forward.timeout.map(|timeout| self.info.started + timeout);
                let (pick, response, lease) = self.attempts(protocol, forward, cluster).await?;
                let (mut response, upstream) = self.answered(response, pick, lease, downstream)?;
                weighted.response_headers.apply(response.headers_mut());
                route.response_headers.apply(response.headers_mut());
                Ok((response, upstream))
            }
        }
    }

    /// Keeps the head of an HTTP/2 request among those of its connection; false if that has too
    /// many that wait.
    fn keep_head(&mut self) -> bool {
        let Some(req) = self.request.as_ref() else {
            return true;
        };
        if self.version < Version::HTTP_2 {
            return true;
        }
        let shared = &self.connection.worker.shared;
        let bytes = fields::list_size(req.headers());
        let kept = self
            .active
            .keep_head(bytes, shared.limits.http2_header_bytes);
        if !kept {
            shared.metrics.overloaded("heads");
            self.info.reason = Reason::ProxyOverloaded;
            self.info.detail = Some("the connection has too many heads that wait".to_owned());
        }
        kept
    }

    /// Room for what a request keeps in memory. Without it new work is refused; probes of the
    /// application's health pass: that it is started again would help nobody.
    fn take_room(&mut self) -> Result<(), Error> {
        let shared = &self.connection.worker.shared;
        let pressed = shared.memory.pressure() >= Pressure::Critical;
        self.room = shared.memory.charge(ROOM + HEAD * self.active.head());
        if self.connection.probes_only || (self.room.is_some() && !pressed) {
            return Ok(());
        }
        shared.metrics.shed();
        Err(Error::new(Reason::ProxyOverloaded, "memory"))
    }

    /// Judges the request, before anything is decided by it.
    fn admit(&mut self) -> Result<Authority, Error> {
        let connection = self.connection.clone();
        let limits = &connection.worker.shared.limits;
        let admitted = admission::admit(self.request()?, limits);
        let authority = admitted.map_err(|v| self.violated(v.rule, v.error))?;
        self.info.authority = Some(authority.value().clone());
        Ok(authority)
    }

    /// Refuses everything but a probe that was configured for this port. A body or an upgrade
    /// would carry to the application what nobody has permitted.
    fn admit_probe(&mut self) -> Result<(), Error> {
        let req = self.request()?;
        let bare = req.body().is_end_stream() && !wants_websocket(req.headers());
        let port = self.connection.listener.config.port;
        let target = self.info.uri.path_and_query();
        let mut probes = self.connection.worker.shared.probes.iter();
        let known = bare
            && matches!(self.info.method, Method::GET | Method::HEAD)
            && probes.any(|(of, probe)| Some(*of) == port && Some(probe) == target);
        if known {
            return Ok(());
        }
        let words = "plaintext may only ask for the probes of this port";
        Err(Error::new(Reason::IdentityRequired, words))
    }

    /// The virtual host of an authority; looks it up if the table says so.
    async fn host(&self, authority: &str) -> Result<Arc<LiveHost>, Error> {
        let connection = &self.connection;
        let authority = connection.only_authority.as_deref().unwrap_or(authority);
        let lookup = {
            let snapshot = connection.worker.shared.snapshots.load();
            if let Some(host) = connection.found_last(&snapshot, authority) {
                host.touch(connection.worker.seconds());
                return Ok(host);
            }
            match self.find_host(&snapshot, &normalize(authority)) {
                (Some(Ok(host)), _) => {
                    connection.found(&snapshot, authority, &host);
                    return Ok(host);
                }
                (Some(Err(error)), _) => return Err(error),
                (None, lookup) => lookup,
            }
        };
        let Some(lookup) = lookup else {
            let words = "the route table has not arrived";
            return Err(Error::new(Reason::NotReady, words));
        };
        Box::pin(self.look_up(&normalize(authority), lookup)).await
    }

    /// Asks the control plane for an authority and waits for what it says.
    async fn look_up(&self, authority: &str, lookup: String) -> Result<Arc<LiveHost>, Error> {
        let shared = &self.connection.worker.shared;
        let find = || self.find_host(&shared.snapshots.load(), authority).0;
        shared.ask(lookup, LOOKUP, find).await.unwrap_or_else(|| {
            let words = format!("the control plane did not answer for `{authority}` in 5 s");
            Err(Error::new(Reason::NotReady, words))
        })
    }

    /// What the snapshot says of an authority: found, known not to exist, or the name to
    /// look it up by.
    fn find_host(
        &self,
        snapshot: &Snapshot,
        authority: &str,
    ) -> (Option<Result<Arc<LiveHost>, Error>>, Option<String>) {
        let worker = &self.connection.worker;
        let Routes::Table(table) = self.connection.routes(snapshot) else {
            return (None, None);
        };
        let unknown = || {
            Err(Error::new(
                Reason::NoRoute,
                format!("`{authority}` is no service of the mesh"),
            ))
        };
        if let Some(host) = table.find(authority) {
            return (Some(Ok(host.clone())), None);
        }
        if !table.config.on_demand {
            return (Some(unknown()), None);
        }
        let name = format!("{}/{authority}", table.config.name);
        if name.len() > MAX_NAME {
            return (Some(unknown()), None);
        }
        match snapshot.hosts.get(name.as_str()) {
            Some(Some(host)) => {
                host.touch(worker.seconds());
                (Some(Ok(host.clone())), None)
            }
            Some(None) => (Some(unknown()), None),
            None => (None, Some(name)),
        }
    }

    fn count_unrouted(&mut self, host: &LiveHost, route: &str) {
        match self.connection.side() {
            Side::Client => {
                if let Some(metrics) = &host.unrouted {
                    self.info.count_under(metrics.clone());
                }
            }
            Side::Server => {
                let metrics = self.connection.server_metrics(&Arc::from(route));
                self.info.count_under(metrics);
            }
        }
    }

    /// Counts what found no virtual host: one series, whatever the authority was.
    fn count_unknown(&mut self) {
        if self.info.metrics.is_some() || self.info.handed_over {
            return;
        }
        let metrics = match self.connection.side() {
            Side::Client => self.connection.worker.shared.metrics.client_route(
                ("unknown", ""),
                "",
                "",
                Tls::None,
            ),
            Side::Server => self.connection.server_metrics(&Arc::from("")),
        };
        self.info.count_under(metrics);
    }

    fn count_backend(&mut self, backend: &Backend, route: &Arc<str>) {
        self.info.backend = Some(backend.name.clone());
        if let (Side::Client, Some(cluster)) = (self.info.side, &backend.cluster) {
            self.info.tls = cluster.tls();
        }
        match &backend.metrics {
            Some(metrics) => self.info.count_under(metrics.clone()),
            None => self.info.count_under(self.connection.server_metrics(route)),
        }
    }

    /// Makes the request what goes upstream, and says what is spoken there.
    fn prepare(
        &mut self,
        route: &Route,
        forward: &Forward,
        authority: &Authority,
        cluster: &Cluster,
    ) -> Result<(Protocol, Option<OnUpgrade>), Error> {
        let websockets = self.connection.http().is_some_and(|http| http.websocket);
        let version = self.version;
        let bytes = self
            .info
            .metrics
            .as_ref()
            .map(|metrics| metrics.request_bytes().clone());
        let req = self.request()?;
        let websocket = websockets && version == Version::HTTP_11 && wants_websocket(req.headers());
        let protocol = match cluster.config.protocol {
            _ if websocket => Protocol::Http1,
            Some(HttpProtocol::Http1) => Protocol::Http1,
            Some(HttpProtocol::Http2) => Protocol::Http2,
            Some(HttpProtocol::Downstream) | None if version == Version::HTTP_2 => Protocol::Http2,
            Some(HttpProtocol::Downstream) | None => Protocol::Http1,
        };
        let downstream = websocket.then(|| hyper::upgrade::on(&mut *req));
        let (mut parts, mut body) = std::mem::take(req).into_parts();
        body.count(bytes);
        strip_hop_by_hop(&mut parts.headers, websocket);
        if let Some(rewrite) = &forward.path_rewrite {
            let path = rewrite_path(&parts.uri, &route.matches.path, rewrite)?;
            let mut uri = parts.uri.into_parts();
            uri.path_and_query = Some(path);
            parts.uri = http::Uri::from_parts(uri).map_err(|error| {
                Error::new(
                    Reason::ClientProtocolError,
                    format!("the rewritten target: {error}"),
                )
            })?;
        }
        route.request_headers.apply(&mut parts.headers);
        let rewritten = forward
            .host_rewrite
            .as_ref()
            .map(|HostRewrite::Literal(host)| host);
        let host = match rewritten {
            Some(host) => host.clone(),
            None => authority.value().clone(),
        };
        let authority = host.to_str().unwrap_or(authority);
        parts.uri = target(parts.uri, protocol, Some(authority))?;
        match protocol {
            Protocol::Http1 => {
                let content = if body.is_end_stream() {
                    Content::None
                } else {
                    Content::Follows
                };
                to_http1(&mut parts, &host, content);
            }
            Protocol::Http2 => to_http2(&mut parts),
        }
        let expects = protocol == Protocol::Http1 && parts.headers.contains_key(EXPECT);
        let mut request = Request::from_parts(parts, Body::Empty);
        *request.body_mut() = if expects {
            wait_for_continue(&mut request, body)
        } else {
            body
        };
        self.request = Some(request);
        Ok((protocol, downstream))
    }

    /// Sends a request, to another endpoint as long as it was never sent.
    async fn attempts(
        &mut self,
        protocol: Protocol,
        forward: &Forward,
        cluster: &Arc<Cluster>,
    ) -> Result<(Pick, Response<Incoming>, Lease), Error> {
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut last = None;
        loop {
            let Some(pick) = self.pick(cluster, &tried).await? else {
                return Err(last.unwrap_or_else(|| no_endpoints(cluster)));
            };
            self.info.upstream = Some(pick.endpoint.dest.address);
            self.info.attempts += 1;
            if last.is_some()
                && let Some(metrics) = &self.info.metrics
            {
                metrics.retried();
            }
            match self.attempt(&pick, protocol, forward).await {
                Ok((response, lease)) => {
                    if last.is_some()
                        && let Some(metrics) = &self.info.metrics
                    {
                        metrics.recovered();
                    }
                    return Ok((pick, response, lease));
                }
                Err(mut error) => {
                    if let Some(violation) = self.rules.as_ref().and_then(|rules| rules.broken()) {
                        error = self.violated(violation.rule, violation.error.clone());
                        self.request = None;
                    }
                    if error.reason.blames_endpoint() {
                        pick.failed();
                    }
                    if let Some(metrics) = &self.info.metrics {
                        metrics.attempt(error.reason);
                    }
                    tried.push(pick.endpoint.dest.address);
                    if self.request.is_none() || tried.len() == MAX_ATTEMPTS {
                        return Err(error);
                    }
                    last = Some(error);
                }
            }
        }
    }

    async fn pick(
        &self,
        cluster: &Arc<Cluster>,
        tried: &[SocketAddr],
    ) -> Result<Option<Pick>, Error> {
        let worker = &self.connection.worker;
        if cluster.is_dynamic() {
            if let Some(pick) = self.connection.meant_for(cluster) {
                return Ok(tried.is_empty().then_some(pick));
            }
            let original = self.connection.original.as_ref();
            return Box::pin(worker.pick(cluster, tried, original)).await;
        }
        Ok(cluster.pick(tried, &worker.rng))
    }

    async fn attempt(
        &mut self,
        pick: &Pick,
        protocol: Protocol,
        forward: &Forward,
    ) -> Result<(Response<Incoming>, Lease), Error> {
        let pool = pick.endpoint.pool(self.connection.worker.id);
        let per_try = forward
            .per_try_timeout
            .map(|timeout| Instant::now() + timeout);
        let (due, reason) = match (self.deadline, per_try) {
            (Some(whole), Some(one)) if one < whole => (Some(one), Reason::AttemptTimeout),
            (None, Some(one)) => (Some(one), Reason::AttemptTimeout),
            (whole, _) => (whole, Reason::RequestTimeout),
        };
        self.info.wait_begins();
        let connector = &self.connection.worker.connector;
        let dest = &pick.endpoint.dest;
        let result = {
            // Pinned once: two branches that each owned it would double the future.
            let mut sending = pin!(send(connector, dest, pool, protocol, &mut self.request));
            match due {
                None => sending.await,
                Some(due) => timeout_at(due, sending.as_mut()).await.unwrap_or_else(|_| {
                    let words = format!("{}: no answer in time", dest.address);
                    Err(Error::new(reason, words))
                }),
            }
        };
        let waited = self.info.wait_ends();
        if result.is_ok() {
            pick.answered(waited.unwrap_or_default());
        } else if due.is_some_and(|due| due <= Instant::now()) {
            // The time is up, wherever the request is.
            self.request = None;
        }
        result
    }

    /// Turns the upstream's answer into ours.
    fn answered(
        &mut self,
        response: Response<Incoming>,
        pick: Pick,
        lease: Lease,
        downstream: Option<OnUpgrade>,
    ) -> Result<Answer, Error> {
        if let Some(metrics) = &self.info.metrics {
            metrics.attempt(Reason::None);
        }
        let mut response = response;
        let asked = match downstream {
            Some(_) => Asked::Switch,
            None => Asked::Answer,
        };
        let peer = match pick.endpoint.dest.tls {
            Some(_) => Peer::Sidecar,
            None => Peer::Application,
        };
        let shared = &self.connection.worker.shared;
        self.info.peer_reason = admission::answer(&mut response, asked, peer, &shared.limits)
            .map_err(|violation| {
                shared.metrics.http_violation("upstream", violation.rule);
                violation.error
            })?;
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if let (true, Some(downstream)) = (switched, downstream) {
            let upstream = hyper::upgrade::on(&mut response);
            let (parts, _) = response.into_parts();
            let info = self.hand_over(StatusCode::SWITCHING_PROTOCOLS);
            let held = (pick, lease, self.connection.handed_over());
            tunnel::splice(downstream, upstream, info, held);
            return Ok((Response::from_parts(parts, Body::Empty), None));
        }
        let (mut parts, incoming) = response.into_parts();
        // Ours towards the client, whatever the server spoke.
        parts.version = Version::HTTP_11;
        let response = Response::from_parts(parts, Body::answer(incoming));
        Ok((response, Some((pick, self.connection.worker.id, lease))))
    }

    /// Ends a CONNECT here: a TCP connection to the service, or HTTP inside the tunnel.
    async fn connect(&mut self, authority: &str, cluster: Arc<Cluster>) -> Result<Answer, Error> {
        let allowed = self.connection.http().is_some_and(|http| http.connect);
        if !allowed || self.version >= Version::HTTP_2 || self.connection.only_authority.is_some() {
            return Err(Error::new(
                Reason::ClientProtocolError,
                "CONNECT is not served here",
            ));
        }
        let downstream = hyper::upgrade::on(self.request()?);
        let held = self.connection.handed_over();
        if !cluster.is_tcp_only() {
            tunnel::connect_http(downstream, &self.connection, authority.into(), held);
            return Ok((Response::new(Body::Empty), None));
        }
        let Some(pick) = self.pick(&cluster, &[]).await? else {
            return Err(no_endpoints(&cluster));
        };
        let worker = self.connection.worker.clone();
        self.info.upstream = Some(pick.endpoint.dest.address);
        let upstream = worker
            .connector
            .connect(&pick.endpoint.dest, AppProtocol::Tcp)
            .await?;
        let target = format!("{}.{}", cluster.config.service, cluster.config.namespace);
        let metrics = worker
            .shared
            .metrics
            .connections(Side::Client, &target, cluster.tls());
        let info = self.hand_over(StatusCode::OK);
        tunnel::connect_tcp(downstream, upstream, info, (pick, held), metrics);
        Ok((Response::new(Body::Empty), None))
    }

    /// Moves the record to whoever carries the stream on; a blank one stays behind.
    fn hand_over(&mut self, status: StatusCode) -> Box<StreamInfo> {
        let mut info = Box::new(self.info.split());
        info.code = status.as_u16();
        info.reason = Reason::None;
        info
    }

    fn fail(&mut self, error: Error) {
        tracing::debug!(%error, "request failed");
        self.info.reason = error.reason;
        self.info.detail = Some(error.detail);
        if self.info.is_grpc {
            self.info.grpc_code = Some(error.reason.row().grpc);
        }
    }

    /// Hands the record to the body: from here on the stream ends with it.
    fn finish(
        mut self,
        mut response: Response<Body>,
        upstream: Option<(Pick, usize, Lease)>,
    ) -> Response<Tracked> {
        let draining = self.connection.is_fading();
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let asked = self.info.handed_over || self.info.method == Method::CONNECT;
        let tunnel = asked && response.status().is_success();
        let signals = &self.connection.pulse.signals;
        let unclear = !signals.answered(self.active.number, switched || tunnel);
        // Whoever sends what is refused is not heard any further.
        let refused = upstream.is_none() && self.info.reason.is_of_the_client();
        // `Connection` of a switch says `upgrade`, and there is no next request to send away.
        if self.version < Version::HTTP_2 && (draining || unclear || refused) && !switched {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        self.active.drop_head();
        self.info.code = response.status().as_u16();
        if refused && self.info.reason == Reason::ClientClosed && !self.info.is_grpc {
            // It may have closed one direction only, and 499 is for the log.
            *response.status_mut() = StatusCode::BAD_REQUEST;
        }
        self.count_unknown();
        self.info.head_sent();
        let grpc_answer = self.info.is_grpc && response.headers().contains_key(CONTENT_TYPE);
        if grpc_answer && self.info.grpc_code.is_none() {
            self.info.grpc_code = grpc_status(response.headers());
        }
        // Of the server's answer only: ours, which may say that the time is up, is whole.
        let streams = upstream.is_some() && !response.body().is_end_stream();
        let deadline = self
            .deadline
            .filter(|_| streams)
            .map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        let answering = self
            .rules
            .as_ref()
            .filter(|_| upstream.is_some())
            .map(Rules::answering);
        let stream = Stream {
            info: self.info,
            upstream,
            answering,
            deadline,
            limits: self.connection.worker.shared.limits.clone(),
            room: self.room,
            held: 0,
            multiplexed: self.version == Version::HTTP_2,
            active: self.active,
        };
        response.map(|body| Tracked::new(body, stream))
    }
}

/// Holds the body back until the server asks for it.
fn wait_for_continue(request: &mut Request<Body>, body: Body) -> Body {
    let (gate, opener) = Gate::new(EXPECT_TIMEOUT);
    hyper::ext::on_informational(request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            opener.open();
        }
    });
    body.gated(gate)
}

fn no_endpoints(cluster: &Cluster) -> Error {
    let words = format!(
        "{} has no endpoint that takes requests",
        cluster.config.name
    );
    Error::new(Reason::NoEndpoints, words)
}
