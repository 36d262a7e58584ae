//! Every metric of the control plane, declared once.
//!
//! All labels have closed sets of values but `version`, which is bounded; handles are
//! resolved here, so nothing is looked up by label later. (The vectors of the prometheus
//! crate key children by a hash of the concatenated label values: with more than one free
//! label two series could merge, so none has more than one.)

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use weft_api::Kind;

use crate::clients::Clients;
use crate::drain::Finished;
use crate::registration::Registrations;

/// How a signing request ended; the values of the label `result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CsrResult {
    /// Signed, the caller proved itself by a join token.
    Joined,
    /// Signed, the caller proved itself by its current certificate.
    Renewed,
    /// The caller did not prove who it is.
    Unauthenticated,
    /// The caller may not have what it asked for.
    Denied,
    /// The request itself is wrong.
    Invalid,
    /// The authority failed.
    Failed,
}

impl CsrResult {
    const ALL: [Self; 6] = [
        Self::Joined,
        Self::Renewed,
        Self::Unauthenticated,
        Self::Denied,
        Self::Invalid,
        Self::Failed,
    ];

    /// The label value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Renewed => "renewed",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::Failed => "failed",
        }
    }
}

/// How a sidecar's wish to be registered ended; the values of the label `result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrationResult {
    /// It is in force.
    Registered,
    /// What it says of itself is wrong.
    Invalid,
    /// Its name or an address is another's.
    Conflict,
    /// There are too many, or too many at once.
    Limited,
    /// It was not in force in time.
    Late,
}

impl RegistrationResult {
    const ALL: [Self; 5] = [
        Self::Registered,
        Self::Invalid,
        Self::Conflict,
        Self::Limited,
        Self::Late,
    ];

    /// The label value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Invalid => "invalid",
            Self::Conflict => "conflict",
            Self::Limited => "limited",
            Self::Late => "late",
        }
    }
}

/// The metrics. Shared by reference; all are atomics.
pub struct Metrics {
    registry: Registry,
    /// Change in force here to applied by a sidecar.
    pub propagation: Histogram,
    /// Change in force here to handed to the connection of a sidecar.
    pub push: Histogram,
    /// Bytes of resources sent.
    pub push_bytes: IntCounter,
    /// Endpoints published as draining to the last answer of the sidecars that call them.
    pub drain: Histogram,
    /// Streams cut because the sidecar did not read.
    pub stalled: IntCounter,
    /// Open connections, after their handshake.
    pub connections: IntGauge,
    /// TLS handshakes that failed.
    pub handshakes_failed: IntCounter,
    /// The number of the current snapshot.
    pub generation: IntGauge,
    /// Problems of the configuration.
    pub errors: IntGauge,
    /// Doubtful things in the configuration.
    pub warnings: IntGauge,
    /// Services in force.
    pub services: IntGauge,
    /// Workloads in force.
    pub workloads: IntGauge,
    /// Routes in force.
    pub routes: IntGauge,
    rejections: [IntCounter; Kind::ALL.len()],
    csr: [IntCounter; CsrResult::ALL.len()],
    drains: [IntCounter; Finished::ALL.len()],
    registered: [IntCounter; RegistrationResult::ALL.len()],
}

impl Metrics {
    /// Declares everything; `clients` is asked for the connected sidecars at each scrape,
    /// `registrations` for their number.
    #[must_use]
    pub fn new(clients: Clients, registrations: Registrations) -> Self {
        let registry = Registry::new();
        let rejections = counters(
            &registry,
            Opts::new(
                "weft_control_rejections_total",
                "Configuration that sidecars rejected, by resource kind.",
            ),
            "kind",
            Kind::ALL.map(Kind::name),
        );
        let csr = counters(
            &registry,
            Opts::new(
                "weft_control_csr_total",
                "Certificate signing requests, by how they ended.",
            ),
            "result",
            CsrResult::ALL.map(CsrResult::name),
        );
        let drains = counters(
            &registry,
            Opts::new(
                "weft_control_drains_total",
                "Sidecars that shut down, by whether all that call them have acknowledged it.",
            ),
            "result",
            Finished::ALL.map(Finished::name),
        );
        let registered = counters(
            &registry,
            Opts::new(
                "weft_control_registrations_total",
                "Sidecars that asked to be registered, by how that ended.",
            ),
            "result",
            RegistrationResult::ALL.map(RegistrationResult::name),
        );
        let [errors, warnings] = gauges(
            &registry,
            Opts::new(
                "weft_control_diagnostics",
                "Problems in the current configuration, by level.",
            ),
            "level",
            ["error", "warning"],
        );
        let [services, workloads, routes] = gauges(
            &registry,
            Opts::new(
                "weft_control_config_documents",
                "Documents in force, by kind.",
            ),
            "kind",
            ["service", "workload", "route"],
        );
        let [build] = gauges(
            &registry,
            Opts::new(
                "weft_build_info",
                "Always 1; the label has the version of this process.",
            ),
            "version",
            [env!("CARGO_PKG_VERSION")],
        );
        build.set(1);
        register(&registry, Proxies::new(clients));
        register(&registry, Registered::new(registrations));
        Self {
            propagation: histogram(
                &registry,
                "weft_control_propagation_seconds",
                "Seconds from a change being in force here to its being applied by a sidecar.",
            ),
            push: histogram(
                &registry,
                "weft_control_push_seconds",
                "Seconds from a change being in force here to its being handed to a sidecar's connection.",
            ),
            push_bytes: counter(
                &registry,
                "weft_control_push_bytes_total",
                "Bytes of resources sent to sidecars.",
            ),
            drain: histogram(
                &registry,
                "weft_control_drain_seconds",
                "Seconds from endpoints being published as draining to every sidecar that calls them having acknowledged it.",
            ),
            stalled: counter(
                &registry,
                "weft_control_stalled_total",
                "Connections cut because the sidecar did not read what it was sent.",
            ),
            connections: gauge(
                &registry,
                "weft_control_connections",
                "Open connections to the control plane.",
            ),
            handshakes_failed: counter(
                &registry,
                "weft_control_handshakes_failed_total",
                "TLS handshakes that failed or took too long.",
            ),
            generation: gauge(
                &registry,
                "weft_control_generation",
                "The number of the configuration in force; grows with each change.",
            ),
            errors,
            warnings,
            services,
            workloads,
            routes,
            rejections,
            csr,
            drains,
            registered,
            registry,
        }
    }

    /// Counts a resource response that a sidecar rejected.
    pub fn rejected(&self, kind: Kind) {
        self.rejections[kind as usize].inc();
    }

    /// Counts a signing request.
    pub fn csr(&self, result: CsrResult) {
        self.csr[result as usize].inc();
    }

    /// Counts a drain that ended.
    pub fn drained(&self, finished: Finished) {
        self.drains[finished as usize].inc();
    }

    /// Counts a wish to be registered.
    pub fn registration(&self, result: RegistrationResult) {
        self.registered[result as usize].inc();
    }

    /// Everything in the Prometheus text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            Ok(()) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => {
                tracing::error!(%error, "cannot render the metrics");
                String::new()
            }
        }
    }
}

/// Counts the connected sidecars when asked.
struct Proxies {
    clients: Clients,
    /// Locked from reset to collection: two scrapes may run at once.
    gauges: Mutex<IntGaugeVec>,
    description: Desc,
}

/// Counts the registrations when asked.
struct Registered {
    registrations: Registrations,
    gauge: IntGauge,
}

impl Registered {
    fn new(registrations: Registrations) -> Self {
        let gauge = IntGauge::new(
            "weft_control_registrations",
            "Workloads that have registered themselves and are kept.",
        );
        Self {
            registrations,
            gauge: gauge.expect(VALID),
        }
    }
}

impl Collector for Registered {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let count = self.registrations.count();
        self.gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.gauge.collect()
    }
}

/// More versions than this are counted as `other`: the names come from clients.
const MAX_VERSIONS: usize = 20;

impl Proxies {
    fn new(clients: Clients) -> Self {
        let opts = Opts::new(
            "weft_control_proxies",
            "Connected sidecars, by their version and whether they have applied the configuration.",
        );
        let gauges = IntGaugeVec::new(opts, &["version", "state"]).expect(VALID);
        Self {
            clients,
            description: gauges.desc()[0].clone(),
            gauges: Mutex::new(gauges),
        }
    }
}

impl Collector for Proxies {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut counts: BTreeMap<(String, &'static str), i64> = BTreeMap::new();
        let mut versions = Vec::new();
        for (version, state) in self.clients.states() {
            let known = versions.contains(&version);
            let version = if known || versions.len() < MAX_VERSIONS {
                if !known {
                    versions.push(version.clone());
                }
                version
            } else {
                "other".to_owned()
            };
            *counts.entry((version, state.name())).or_default() += 1;
        }
        // No state's name ends in another's, so no two pairs concatenate to the same text.
        let gauges = self.gauges.lock();
        gauges.reset();
        for ((version, state), count) in counts {
            gauges
                .with_label_values(&[version.as_str(), state])
                .set(count);
        }
        gauges.collect()
    }
}

const VALID: &str = "the names above are valid and each is declared once";

fn register(registry: &Registry, collector: impl Collector + 'static) {
    registry.register(Box::new(collector)).expect(VALID);
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    let counter = IntCounter::new(name, help).expect(VALID);
    register(registry, counter.clone());
    counter
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    let gauge = IntGauge::new(name, help).expect(VALID);
    register(registry, gauge.clone());
    gauge
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    let buckets = vec![
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ];
    let histogram =
        Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)).expect(VALID);
    register(registry, histogram.clone());
    histogram
}

fn counters<const N: usize>(
    registry: &Registry,
    opts: Opts,
    label: &str,
    values: [&str; N],
) -> [IntCounter; N] {
    let vector = IntCounterVec::new(opts, &[label]).expect(VALID);
    register(registry, vector.clone());
    values.map(|value| vector.with_label_values(&[value]))
}

fn gauges<const N: usize>(
    registry: &Registry,
    opts: Opts,
    label: &str,
    values: [&str; N],
) -> [IntGauge; N] {
    let vector = IntGaugeVec::new(opts, &[label]).expect(VALID);
    register(registry, vector.clone());
    values.map(|value| vector.with_label_values(&[value]))
}

/// Seconds as a metric wants them.
#[must_use]
pub(crate) fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
