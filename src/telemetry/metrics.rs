//! Every metric of the sidecar, declared once. The help text is the documentation:
//! `docs/metrics.md` is generated from here.
//! tidy: long because every metric has its name, help and labels in this one table.

use std::sync::{Arc, OnceLock};

use http::Method;
use parking_lot::RwLock;
use prometheus::{
    Encoder, Gauge, Histogram, IntCounter, IntGauge, Registry, TextEncoder, core::Collector,
};

use super::{
    family::{Family, SeriesBudget},
    stream_info::{Outcome, Side},
};
use crate::error::Reason;

const DURATION_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
const OVERHEAD_BUCKETS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1,
];

const SERVER_REQUEST: &[&str] = &[
    "port",
    "route",
    "client",
    "client_namespace",
    "tls",
    "method",
    "code",
    "grpc_code",
    "outcome",
    "reason",
];
const CLIENT_REQUEST: &[&str] = &[
    "service",
    "service_namespace",
    "route",
    "backend",
    "tls",
    "method",
    "code",
    "grpc_code",
    "outcome",
    "reason",
];
const CLIENT_ROUTE: &[&str] = &["service", "service_namespace", "route", "backend"];

/// How a connection is protected, as metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tls {
    /// Plaintext.
    None,
    /// Mutual TLS.
    Mtls,
}

impl Tls {
    /// The label value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mtls => "mtls",
        }
    }
}

/// All families of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    budget: SeriesBudget,
    server_requests: Family<IntCounter>,
    server_duration: Family<Histogram>,
    server_in_flight: Family<IntGauge>,
    client_requests: Family<IntCounter>,
    client_duration: Family<Histogram>,
    client_in_flight: Family<IntGauge>,
    client_attempts: Family<IntCounter>,
    client_retries: Family<IntCounter>,
    overhead: Family<Histogram>,
    request_bytes: Family<IntCounter>,
    response_bytes: Family<IntCounter>,
    tcp_opened: Family<IntCounter>,
    tcp_closed: Family<IntCounter>,
    tcp_open: Family<IntGauge>,
    tcp_received: Family<IntCounter>,
    tcp_sent: Family<IntCounter>,
    endpoints: Family<IntGauge>,
    tls_handshakes: Family<IntCounter>,
    detections: Family<IntCounter>,
    http_violations: Family<IntCounter>,
    accept_errors: Family<IntCounter>,
    overloaded: Family<IntCounter>,
    shed: Lazy<IntCounter>,
    memory_used: Family<IntGauge>,
    identity_renewals: Family<IntCounter>,
    config_updates: Family<IntCounter>,
    dns_queries: Family<IntCounter>,
    dns_forwards: Family<Histogram>,
    dns_failures: Family<IntCounter>,
    state_writes: Family<IntCounter>,
    handovers: Family<IntCounter>,
    /// Unix time at which the workload certificate expires; 0 before the first.
    pub identity_expiration: Gauge,
    /// What may be charged of memory at one time.
    pub memory_budget: IntGauge,
    /// How near the end of the memory is.
    pub memory_pressure: IntGauge,
    /// 1 while the certificate cannot be got or renewed.
    pub identity_renewal_failing: IntGauge,
    /// 1 while the configuration in force is the one from disk.
    pub config_from_disk: IntGauge,
    /// How many processes have served this workload without a gap, this one included.
    pub generation: IntGauge,
    /// 1 while the stream to the control plane is open.
    pub control_connected: IntGauge,
    /// 0 while a resource is rejected or a listener cannot be opened.
    pub config_in_sync: IntGauge,
    /// Unix time of the last configuration that was applied.
    pub config_last_applied: Gauge,
    /// Panics that were caught; each is a bug.
    pub panics: IntCounter,
    series: IntGauge,
    overflow: IntCounter,
}

impl Metrics {
    /// Declares everything.
    ///
    /// # Panics
    /// When two metrics have the same name.
    #[must_use]
    #[allow(clippy::too_many_lines)] // one line a metric: the table is the documentation
    pub fn new() -> Arc<Self> {
        let budget = SeriesBudget::default();
        let counter =
            |name, help, labels| Family::<IntCounter>::new(name, help, labels, &[], budget.clone());
        let gauge =
            |name, help, labels| Family::<IntGauge>::new(name, help, labels, &[], budget.clone());
        let histogram = |name, help, labels, buckets| {
            Family::<Histogram>::new(name, help, labels, buckets, budget.clone())
        };
        let plain = |name: &str, help: &str| IntGauge::new(name, help).expect("a constant name");
        let time = |name: &str, help: &str| Gauge::new(name, help).expect("a constant name");
        let total = |name: &str, help: &str| IntCounter::new(name, help).expect("a constant name");
        let overloaded = counter(
            "weft_overloaded_total",
            "What was refused for want of something: request and memory (a connection) for want of memory, \
             largest connections that were ended then, \
             heads of a HTTP/2 connection with too many that wait, connections over their limit, \
             upstream connections for want of files or ports.",
            &["what"],
        );
        let metrics = Self {
            registry: Registry::new(),
            server_requests: counter(
                "weft_server_requests_total",
                "Requests that arrived for the application of this workload.",
                SERVER_REQUEST,
            ),
            server_duration: histogram(
                "weft_server_request_duration_seconds",
                "From the head of an inbound request to the last byte of its response.",
                &["port", "route", "outcome"],
                DURATION_BUCKETS,
            ),
            server_in_flight: gauge(
                "weft_server_requests_in_flight",
                "Inbound requests whose response has not ended.",
                &["port", "route"],
            ),
            client_requests: counter(
                "weft_client_requests_total",
                "Requests of the application of this workload, after retries: what it experienced.",
                CLIENT_REQUEST,
            ),
            client_duration: histogram(
                "weft_client_request_duration_seconds",
                "From the head of an outbound request to the last byte of its response.",
                &[
                    "service",
                    "service_namespace",
                    "route",
                    "backend",
                    "outcome",
                ],
                DURATION_BUCKETS,
            ),
            client_in_flight: gauge(
                "weft_client_requests_in_flight",
                "Outbound requests whose response has not ended.",
                CLIENT_ROUTE,
            ),
            client_attempts: counter(
                "weft_client_attempts_total",
                "Tries of outbound requests; more than requests when some were tried again.",
                &[
                    "service",
                    "service_namespace",
                    "route",
                    "backend",
                    "outcome",
                    "reason",
                ],
            ),
            client_retries: counter(
                "weft_client_retries_total",
                "Outbound requests that were tried again: retried, and recovered when that helped.",
                &["service", "service_namespace", "route", "decision"],
            ),
            overhead: histogram(
                "weft_proxy_overhead_seconds",
                "Time that the proxy added to a request: its total less the wait for the upstream.",
                &["side"],
                OVERHEAD_BUCKETS,
            ),
            request_bytes: counter(
                "weft_request_bytes_total",
                "Bytes of request bodies. The target is a service (client) or a port (server).",
                &["side", "target"],
            ),
            response_bytes: counter(
                "weft_response_bytes_total",
                "Bytes of response bodies. The target is a service (client) or a port (server).",
                &["side", "target"],
            ),
            tcp_opened: counter(
                "weft_tcp_connections_opened_total",
                "Opaque TCP connections that were accepted.",
                &["side", "target", "tls"],
            ),
            tcp_closed: counter(
                "weft_tcp_connections_closed_total",
                "Opaque TCP connections that have ended; the reason is empty when both sides closed.",
                &["side", "target", "tls", "reason"],
            ),
            tcp_open: gauge(
                "weft_tcp_connections_open",
                "Opaque TCP connections now.",
                &["side", "target", "tls"],
            ),
            tcp_received: counter(
                "weft_tcp_received_bytes_total",
                "Bytes from the client of opaque TCP connections.",
                &["side", "target"],
            ),
            tcp_sent: counter(
                "weft_tcp_sent_bytes_total",
                "Bytes to the client of opaque TCP connections.",
                &["side", "target"],
            ),
            endpoints: gauge(
                "weft_endpoints",
                "Endpoints of a service by state: ready, draining or unhealthy.",
                &["service", "service_namespace", "state"],
            ),
            tls_handshakes: counter(
                "weft_tls_handshakes_total",
                "TLS handshakes; the result is ok or a reason.",
                &["side", "result"],
            ),
            detections: counter(
                "weft_protocol_detections_total",
                "Connections by the protocol that was detected: http1, http2, tls, opaque or timeout.",
                &["port", "protocol"],
            ),
            http_violations: counter(
                "weft_http_violations_total",
                "Messages refused and connections cut, by whether the peer is downstream or upstream and the rule that it broke.",
                &["peer", "rule"],
            ),
            accept_errors: counter(
                "weft_accept_errors_total",
                "Connections that could not be accepted, by error: connection (it was gone), files, system_files, memory or other.",
                &["error"],
            ),
            shed: Lazy::new(&overloaded, &["request"]),
            overloaded,
            memory_used: gauge(
                "weft_memory_used_bytes",
                "Memory in use: charged to the budget, resident (what no file backs), and of the cgroup whose limit is nearest.",
                &["source"],
            ),
            memory_budget: plain(
                "weft_memory_budget_bytes",
                "What may be charged of memory at one time.",
            ),
            memory_pressure: plain(
                "weft_memory_pressure",
                "0 normal; 1 high: clients are asked to go; 2 critical: new requests are refused.",
            ),
            identity_renewals: counter(
                "weft_identity_renewals_total",
                "Certificate signing requests; the result is ok or failed.",
                &["result"],
            ),
            config_updates: counter(
                "weft_config_updates_total",
                "Configuration resources from the control plane: applied, removed or rejected.",
                &["kind", "result"],
            ),
            dns_queries: counter(
                "weft_dns_queries_total",
                "DNS queries of the application, by who knew the answer: mesh, cache, stale, resolver or error.",
                &["answered_by"],
            ),
            dns_forwards: histogram(
                "weft_dns_forward_duration_seconds",
                "From a DNS query to the resolvers to their answer, all tries included.",
                &[],
                DURATION_BUCKETS,
            ),
            dns_failures: counter(
                "weft_dns_resolver_failures_total",
                "Tries of DNS resolvers that failed: timeout, unreachable, malformed, error_answer, truncated; \
                 and queries that were not sent: no_resolver, overload.",
                &["reason"],
            ),
            state_writes: counter(
                "weft_state_writes_total",
                "Files of the state directory that were written; the result is ok or failed.",
                &["file", "result"],
            ),
            handovers: counter(
                "weft_handovers_total",
                "Upgrades without restart that a new process asked for; the result is ok or failed.",
                &["result"],
            ),
            identity_renewal_failing: plain(
                "weft_identity_renewal_failing",
                "1 while the certificate cannot be got or renewed.",
            ),
            config_from_disk: plain(
                "weft_config_from_disk",
                "1 while the configuration in force is the one from the state directory.",
            ),
            generation: plain(
                "weft_generation",
                "How many processes have served this workload without a gap, this one included.",
            ),
            identity_expiration: time(
                "weft_identity_expiration_timestamp_seconds",
                "When the workload certificate expires.",
            ),
            control_connected: plain(
                "weft_control_connected",
                "1 while the stream to the control plane is open.",
            ),
            config_in_sync: plain(
                "weft_config_in_sync",
                "0 while a resource is rejected or a listener cannot be opened.",
            ),
            config_last_applied: time(
                "weft_config_last_applied_timestamp_seconds",
                "When configuration was applied last.",
            ),
            panics: total(
                "weft_runtime_panics_total",
                "Panics that were caught; each is a bug.",
            ),
            series: plain("weft_metrics_series", "Series of this process."),
            overflow: total(
                "weft_metrics_overflow_total",
                "Label values that were folded into _other because there were too many series.",
            ),
            budget,
        };
        metrics.register_all();
        Arc::new(metrics)
    }

    fn register_all(&self) {
        for (_, collector) in self.all() {
            self.registry
                .register(collector)
                .expect("metric names are unique");
        }
        let process = prometheus::process_collector::ProcessCollector::for_self();
        self.registry
            .register(Box::new(process))
            .expect("metric names are unique");
    }

    /// Every metric with its type.
    fn all(&self) -> Vec<(&'static str, Box<dyn Collector>)> {
        fn add<C: Collector + Clone + 'static>(
            kind: &'static str,
            collectors: &[&C],
            all: &mut Vec<(&'static str, Box<dyn Collector>)>,
        ) {
            all.extend(collectors.iter().map(|&collector| {
                let collector: Box<dyn Collector> = Box::new(collector.clone());
                (kind, collector)
            }));
        }
        let info = Family::<IntGauge>::new(
            "weft_build_info",
            "The version that runs; always 1.",
            &["version"],
            &[],
            self.budget.clone(),
        );
        info.child(&[env!("CARGO_PKG_VERSION")]).set(1);
        let mut all = Vec::new();
        add(
            "counter",
            &[
                &self.server_requests,
                &self.client_requests,
                &self.client_attempts,
                &self.client_retries,
                &self.request_bytes,
                &self.response_bytes,
                &self.tcp_opened,
                &self.tcp_closed,
                &self.tcp_received,
                &self.tcp_sent,
                &self.tls_handshakes,
                &self.detections,
                &self.http_violations,
                &self.accept_errors,
                &self.overloaded,
                &self.identity_renewals,
                &self.config_updates,
                &self.dns_queries,
                &self.dns_failures,
                &self.state_writes,
                &self.handovers,
            ],
            &mut all,
        );
        add(
            "histogram",
            &[
                &self.server_duration,
                &self.client_duration,
                &self.overhead,
                &self.dns_forwards,
            ],
            &mut all,
        );
        add(
            "gauge",
            &[
                &self.server_in_flight,
                &self.client_in_flight,
                &self.tcp_open,
                &self.endpoints,
                &self.memory_used,
                &info,
            ],
            &mut all,
        );
        add(
            "gauge",
            &[
                &self.memory_budget,
                &self.memory_pressure,
                &self.control_connected,
                &self.config_in_sync,
                &self.config_from_disk,
                &self.identity_renewal_failing,
                &self.generation,
                &self.series,
            ],
            &mut all,
        );
        add(
            "gauge",
            &[&self.identity_expiration, &self.config_last_applied],
            &mut all,
        );
        add("counter", &[&self.panics, &self.overflow], &mut all);
        all
    }

    /// The Prometheus text exposition. Takes milliseconds with many series: not for workers.
    #[must_use]
    pub fn render(&self) -> String {
        self.series
            .set(i64::try_from(self.budget.used()).unwrap_or(i64::MAX));
        let seen = self.overflow.get();
        self.overflow
            .inc_by((self.budget.overflows() as u64).saturating_sub(seen));
        let mut out = Vec::new();
        let families = self.registry.gather();
        if let Err(error) = TextEncoder::new().encode(&families, &mut out) {
            tracing::error!(%error, "metrics cannot be encoded");
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    /// Drops the endpoint counts of a service that nothing refers to any more.
    pub fn forget_endpoints(&self, service: &str, namespace: &str) {
        self.endpoints
            .retain(|labels| *labels[0] != *service || *labels[1] != *namespace);
    }

    /// Name, type, help and labels of every metric, for the documentation.
    #[cfg(test)]
    pub fn describe(&self) -> Vec<(String, &'static str, String, Vec<String>)> {
        let mut out = Vec::new();
        for (kind, collector) in self.all() {
            for desc in collector.desc() {
                let labels = desc.variable_labels.clone();
                out.push((desc.fq_name.clone(), kind, desc.help.clone(), labels));
            }
        }
        out.sort();
        out
    }

    /// Handles for inbound requests of one client on one port and route.
    #[must_use]
    pub fn server_route(
        &self,
        port: &str,
        route: &str,
        (client, client_namespace): (&str, &str),
        tls: Tls,
    ) -> Arc<RouteMetrics> {
        let labels = [port, route, client, client_namespace, tls.name()];
        let side = Side::Server.name();
        let duration =
            |outcome: Outcome| Lazy::new(&self.server_duration, &[port, route, outcome.name()]);
        Arc::new(RouteMetrics {
            requests: CodeTable::new(&self.server_requests, &labels),
            success: duration(Outcome::Success),
            failure: duration(Outcome::Failure),
            in_flight: Lazy::new(&self.server_in_flight, &[port, route]),
            overhead: Lazy::new(&self.overhead, &[side]),
            request_bytes: Lazy::new(&self.request_bytes, &[side, port]),
            response_bytes: Lazy::new(&self.response_bytes, &[side, port]),
            attempts: None,
        })
    }

    /// Handles for outbound requests to one backend of one route.
    #[must_use]
    pub fn client_route(
        &self,
        (service, namespace): (&str, &str),
        route: &str,
        backend: &str,
        tls: Tls,
    ) -> Arc<RouteMetrics> {
        let target = format!("{service}.{namespace}");
        let edge = [service, namespace, route, backend];
        let side = Side::Client.name();
        let duration = |outcome: Outcome| {
            let labels = [service, namespace, route, backend, outcome.name()];
            Lazy::new(&self.client_duration, &labels)
        };
        let retries =
            |decision| Lazy::new(&self.client_retries, &[service, namespace, route, decision]);
        let delivered = [
            service,
            namespace,
            route,
            backend,
            Outcome::Success.name(),
            "",
        ];
        Arc::new(RouteMetrics {
            requests: CodeTable::new(
                &self.client_requests,
                &[service, namespace, route, backend, tls.name()],
            ),
            success: duration(Outcome::Success),
            failure: duration(Outcome::Failure),
            in_flight: Lazy::new(&self.client_in_flight, &edge),
            overhead: Lazy::new(&self.overhead, &[side]),
            request_bytes: Lazy::new(&self.request_bytes, &[side, &target]),
            response_bytes: Lazy::new(&self.response_bytes, &[side, &target]),
            attempts: Some(Attempts {
                family: self.client_attempts.clone(),
                labels: edge.map(Box::from),
                delivered: Lazy::new(&self.client_attempts, &delivered),
                retried: retries("retried"),
                recovered: retries("recovered"),
            }),
        })
    }

    /// Handles for opaque TCP connections to one target.
    #[must_use]
    pub fn connections(&self, side: Side, target: &str, tls: Tls) -> ConnectionMetrics {
        let labels = [side.name(), target, tls.name()];
        ConnectionMetrics {
            opened: self.tcp_opened.child(&labels),
            open: self.tcp_open.child(&labels),
            received: self.tcp_received.child(&[side.name(), target]),
            sent: self.tcp_sent.child(&[side.name(), target]),
            closed: self.tcp_closed.clone(),
            labels: labels.map(Box::from),
        }
    }

    /// Publishes the endpoint counts of a service.
    pub fn set_endpoints(&self, service: &str, namespace: &str, counts: [(&str, usize); 3]) {
        for (state, count) in counts {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.endpoints
                .child(&[service, namespace, state])
                .set(count);
        }
    }

    /// Counts a TLS handshake.
    pub fn tls_handshake(&self, side: Side, result: Result<(), Reason>) {
        let result = result.map_or_else(Reason::slug, |()| "ok");
        self.tls_handshakes.child(&[side.name(), result]).inc();
    }

    /// Counts a detected protocol.
    pub fn detection(&self, port: &str, protocol: &'static str) {
        self.detections.child(&[port, protocol]).inc();
    }

    /// Counts a message that was refused, or a connection that was cut, for what its peer,
    /// `downstream` or `upstream`, has done.
    pub fn http_violation(&self, peer: &'static str, rule: &'static str) {
        self.http_violations.child(&[peer, rule]).inc();
    }

    /// Counts a connection that could not be accepted.
    pub fn accept_error(&self, error: &'static str) {
        self.accept_errors.child(&[error]).inc();
    }

    /// Counts what was refused because there is too little of something.
    pub fn overloaded(&self, what: &'static str) {
        self.overloaded.child(&[what]).inc();
    }

    /// Counts connections that were ended because they kept most when memory was short.
    pub fn ended(&self, connections: u64) {
        self.overloaded.child(&["largest"]).inc_by(connections);
    }

    /// Counts a request that was refused for want of memory.
    pub fn shed(&self) {
        self.shed.get().inc();
    }

    /// Publishes how much memory is in use; what is not known has no series.
    pub fn memory_used(&self, source: &'static str, bytes: Option<u64>) {
        if let Some(bytes) = bytes {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.memory_used.child(&[source]).set(bytes);
        }
    }

    /// Counts a signing request.
    pub fn identity_renewal(&self, ok: bool) {
        self.identity_renewals
            .child(&[if ok { "ok" } else { "failed" }])
            .inc();
    }

    /// Counts a file of the state directory.
    pub fn state_write(&self, file: &str, ok: bool) {
        let result = if ok { "ok" } else { "failed" };
        self.state_writes.child(&[file, result]).inc();
    }

    /// Counts an attempt to take over from this process.
    pub fn handover(&self, ok: bool) {
        self.handovers
            .child(&[if ok { "ok" } else { "failed" }])
            .inc();
    }

    /// Counts a configuration resource.
    pub fn config_update(&self, kind: &str, result: &str) {
        self.config_updates.child(&[kind, result]).inc();
    }

    /// Counts a DNS query of the application.
    pub fn dns_query(&self, answered_by: &'static str) {
        self.dns_queries.child(&[answered_by]).inc();
    }

    /// Counts a DNS query to the resolvers, with the time that they took.
    pub fn dns_forwarded(&self, seconds: f64) {
        self.dns_forwards.child(&[]).observe(seconds);
    }

    /// Counts a failure of a DNS resolver.
    pub fn dns_resolver_failure(&self, reason: &'static str) {
        self.dns_failures.child(&[reason]).inc();
    }
}

/// Resolved handles of one (client, route) or (route, backend).
#[derive(Debug)]
pub struct RouteMetrics {
    requests: CodeTable,
    success: Lazy<Histogram>,
    failure: Lazy<Histogram>,
    in_flight: Lazy<IntGauge>,
    overhead: Lazy<Histogram>,
    request_bytes: Lazy<IntCounter>,
    response_bytes: Lazy<IntCounter>,
    attempts: Option<Attempts>,
}

#[derive(Debug)]
struct Attempts {
    family: Family<IntCounter>,
    labels: [Box<str>; 4],
    delivered: Lazy<IntCounter>,
    retried: Lazy<IntCounter>,
    recovered: Lazy<IntCounter>,
}

/// A child that is made when it is first used: what never happens has no series.
#[derive(Debug)]
struct Lazy<M> {
    family: Family<M>,
    labels: Vec<Box<str>>,
    child: OnceLock<M>,
}

impl<M: super::family::Child> Lazy<M> {
    fn new(family: &Family<M>, labels: &[&str]) -> Self {
        let labels = labels.iter().map(|&label| label.into()).collect();
        Self {
            family: family.clone(),
            labels,
            child: OnceLock::new(),
        }
    }

    fn get(&self) -> &M {
        self.child.get_or_init(|| {
            let labels: Vec<&str> = self.labels.iter().map(|label| &**label).collect();
            self.family.child(&labels)
        })
    }
}

/// What a finished request is counted under.
#[derive(Clone, Copy, Debug)]
pub struct Finished<'a> {
    /// The method; unusual ones are counted as `_other`.
    pub method: &'a Method,
    /// The status that the client got; 0 if none.
    pub code: u16,
    /// The gRPC status, of gRPC calls.
    pub grpc_code: Option<u8>,
    /// Success, failure or denied.
    pub outcome: Outcome,
    /// Why, if the mesh decided.
    pub reason: Reason,
    /// Head in to last byte out, seconds.
    pub seconds: f64,
    /// The part of it that the proxy added, seconds.
    pub overhead: f64,
}

impl RouteMetrics {
    /// A request has begun.
    pub fn begin(&self) {
        self.in_flight.get().inc();
    }

    /// A request has ended.
    pub fn finish(&self, done: &Finished<'_>) {
        self.in_flight.get().dec();
        self.requests.counter(done).inc();
        match done.outcome {
            Outcome::Success => self.success.get().observe(done.seconds),
            Outcome::Failure | Outcome::Denied => self.failure.get().observe(done.seconds),
        }
        self.overhead.get().observe(done.overhead);
    }

    /// One try has ended; the reason is [`Reason::None`] when an answer came.
    pub fn attempt(&self, reason: Reason) {
        let Some(attempts) = &self.attempts else {
            return;
        };
        if reason == Reason::None {
            attempts.delivered.get().inc();
            return;
        }
        let [service, namespace, route, backend] = &attempts.labels;
        let outcome = Outcome::Failure.name();
        let labels = [
            &**service,
            namespace,
            route,
            backend,
            outcome,
            reason.slug(),
        ];
        attempts.family.child(&labels).inc();
    }

    /// A request is tried again.
    pub fn retried(&self) {
        if let Some(attempts) = &self.attempts {
            attempts.retried.get().inc();
        }
    }

    /// A request that was tried again got its answer.
    pub fn recovered(&self) {
        if let Some(attempts) = &self.attempts {
            attempts.recovered.get().inc();
        }
    }

    /// The counter of request body bytes.
    #[must_use]
    pub fn request_bytes(&self) -> &IntCounter {
        self.request_bytes.get()
    }

    /// The counter of response body bytes.
    #[must_use]
    pub fn response_bytes(&self) -> &IntCounter {
        self.response_bytes.get()
    }
}

/// The request counters of one handle, by what is only known at the end. A handful of
/// combinations occur, so a scan beats a map.
#[derive(Debug)]
struct CodeTable {
    family: Family<IntCounter>,
    labels: [Box<str>; 5],
    known: RwLock<Vec<(u64, IntCounter)>>,
}

impl CodeTable {
    fn new(family: &Family<IntCounter>, labels: &[&str; 5]) -> Self {
        Self {
            family: family.clone(),
            labels: labels.map(Box::from),
            known: RwLock::default(),
        }
    }

    fn counter(&self, done: &Finished<'_>) -> IntCounter {
        let method = method_label(done.method);
        let key = u64::from(done.code)
            | u64::from(done.grpc_code.map_or(0xff, |code| code.min(0xfe))) << 16
            | (done.outcome as u64) << 24
            | (done.reason as u64) << 32
            | (method.0 as u64) << 40;
        let known = self
            .known
            .read()
            .iter()
            .find(|(k, _)| *k == key)
            .map(|(_, c)| c.clone());
        known.unwrap_or_else(|| self.add(key, method.1, done))
    }

    #[cold]
    fn add(&self, key: u64, method: &str, done: &Finished<'_>) -> IntCounter {
        let code = done.code.to_string();
        let grpc_code = done
            .grpc_code
            .map(|code| code.to_string())
            .unwrap_or_default();
        let [a, b, c, d, e] = &self.labels;
        let counter = self.family.child(&[
            a,
            b,
            c,
            d,
            e,
            method,
            &code,
            &grpc_code,
            done.outcome.name(),
            done.reason.slug(),
        ]);
        self.known.write().push((key, counter.clone()));
        counter
    }
}

fn method_label(method: &Method) -> (usize, &'static str) {
    const KNOWN: [(&Method, &str); 9] = [
        (&Method::GET, "GET"),
        (&Method::POST, "POST"),
        (&Method::PUT, "PUT"),
        (&Method::DELETE, "DELETE"),
        (&Method::HEAD, "HEAD"),
        (&Method::OPTIONS, "OPTIONS"),
        (&Method::PATCH, "PATCH"),
        (&Method::CONNECT, "CONNECT"),
        (&Method::TRACE, "TRACE"),
    ];
    KNOWN
        .iter()
        .position(|(known, _)| *known == method)
        .map_or((KNOWN.len(), super::family::OTHER), |index| {
            (index, KNOWN[index].1)
        })
}

/// Resolved handles for opaque TCP connections.
#[derive(Clone, Debug)]
pub struct ConnectionMetrics {
    opened: IntCounter,
    open: IntGauge,
    received: IntCounter,
    sent: IntCounter,
    closed: Family<IntCounter>,
    labels: [Box<str>; 3],
}

impl ConnectionMetrics {
    /// A connection was accepted.
    pub fn opened(&self) {
        self.opened.inc();
        self.open.inc();
    }

    /// It has ended.
    pub fn closed(&self, reason: Reason) {
        self.open.dec();
        let [side, target, tls] = &self.labels;
        self.closed.child(&[side, target, tls, reason.slug()]).inc();
    }

    /// Bytes from the client.
    #[must_use]
    pub fn received(&self) -> &IntCounter {
        &self.received
    }

    /// Bytes to the client.
    #[must_use]
    pub fn sent(&self) -> &IntCounter {
        &self.sent
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::{Finished, Metrics, Tls};
    use crate::{error::Reason, telemetry::Outcome};

    #[test]
    fn a_finished_request_shows_in_the_exposition() {
        let metrics = Metrics::new();
        let route = metrics.client_route(("post", "blog"), "blog/post#0", "post-v2", Tls::Mtls);
        for reason in [Reason::None, Reason::None, Reason::ConnectRefused] {
            route.begin();
            let failed = reason != Reason::None;
            route.finish(&Finished {
                method: &Method::GET,
                code: if failed { 502 } else { 200 },
                grpc_code: None,
                outcome: if failed {
                    Outcome::Failure
                } else {
                    Outcome::Success
                },
                reason,
                seconds: 0.002,
                overhead: 0.000_2,
            });
        }
        let text = metrics.render();
        let wanted = "weft_client_requests_total{service=\"post\",service_namespace=\"blog\",\
            route=\"blog/post#0\",backend=\"post-v2\",tls=\"mtls\",method=\"GET\",code=\"200\",\
            grpc_code=\"\",outcome=\"success\",reason=\"\"} 2";
        assert!(text.contains(wanted), "{text}");
        assert!(text.contains(
            "code=\"502\",grpc_code=\"\",outcome=\"failure\",reason=\"connect_refused\"} 1"
        ));
        assert!(text.contains("weft_client_requests_in_flight{service=\"post\",service_namespace=\"blog\",route=\"blog/post#0\",backend=\"post-v2\"} 0"));
        assert!(text.contains("weft_build_info"));
        assert!(text.contains("process_resident_memory_bytes"));
    }
}
