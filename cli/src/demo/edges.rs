//! Who talks to whom: the edges of the mesh as the callers' sidecars measured them. Pure:
//! samples in, edges and problems out.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::scrape::{Histogram, Sample};

/// What was counted on each edge, since the sidecars started or between two readings.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Totals(BTreeMap<Ends, Counts>);

/// The two services of an edge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Ends {
    from: String,
    to: String,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Counts {
    http: Calls,
    tcp: Calls,
    retries: f64,
    latency: Histogram,
}

/// Requests, or connections.
#[derive(Debug, Clone, Default, PartialEq)]
struct Calls {
    all: f64,
    mtls: f64,
    by_backend: BTreeMap<String, f64>,
    failed: BTreeMap<Cause, f64>,
}

/// Why calls fail, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Cause {
    reason: String,
    backend: String,
}

/// One edge of the mesh within a window of time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Edge {
    /// The calling service.
    pub from: String,
    /// The called service.
    pub to: String,
    /// `http` or `tcp`.
    pub protocol: &'static str,
    /// Requests, or connections for `tcp`.
    pub requests: u64,
    /// Requests per second.
    pub rps: f64,
    /// The share of calls that did not fail, 0 to 1; none without calls.
    pub success_rate: Option<f64>,
    /// Median latency; none for `tcp` and without calls.
    pub p50_ms: Option<f64>,
    /// 95th percentile.
    pub p95_ms: Option<f64>,
    /// 99th percentile.
    pub p99_ms: Option<f64>,
    /// Whether every call was encrypted and authenticated on both sides.
    pub mtls: bool,
    /// Tries beyond the first.
    pub retries: u64,
}

/// An edge that fails, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// `<from> -> <to>`.
    pub edge: String,
    /// One sentence with the numbers.
    pub message: String,
    /// The reason of most failures.
    pub reason: String,
    /// The backend of most failures; empty when it is not known.
    pub backend: String,
    /// What to do.
    pub help: String,
}

impl Totals {
    /// Adds what the sidecar of the service `from` exposes. A destination is called by `name`,
    /// which maps the metric's `service` to the service that the caller meant (a canary's
    /// backends are one service).
    pub(crate) fn read(&mut self, from: &str, samples: &[Sample], name: impl Fn(&str) -> String) {
        for sample in samples {
            // A `target` is a service on the client's side only; the match below sees to that.
            let service = match sample.label("service") {
                "" => sample.label("target"),
                service => service,
            };
            if service.is_empty() {
                continue;
            }
            let ends = Ends {
                from: from.to_owned(),
                to: name(service),
            };
            match sample.name.as_str() {
                "weft_client_requests_total" => self.entry(ends).http.request(sample),
                "weft_client_request_duration_seconds_bucket" => {
                    let bound = sample.label("le").parse().unwrap_or(f64::INFINITY);
                    self.entry(ends).latency.add(bound, sample.value);
                }
                "weft_client_retries_total" if sample.label("decision") == "retried" => {
                    self.entry(ends).retries += sample.value;
                }
                "weft_tcp_connections_opened_total" if sample.label("side") == "client" => {
                    self.entry(ends).tcp.called(sample);
                }
                "weft_tcp_connections_closed_total" if sample.label("side") == "client" => {
                    self.entry(ends).tcp.failed(sample);
                }
                _ => {}
            }
        }
    }

    fn entry(&mut self, ends: Ends) -> &mut Counts {
        self.0.entry(ends).or_default()
    }

    /// What was counted after `earlier`, an older reading. Edges without calls in between stay,
    /// with zeros.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let none = Counts::default();
        let edges = self.0.iter().map(|(ends, now)| {
            let before = earlier.0.get(ends).unwrap_or(&none);
            (ends.clone(), now.since(before))
        });
        Self(edges.collect())
    }

    /// The edges, sorted by caller and destination; `window` is the time that was counted.
    pub(crate) fn edges(&self, window: Duration) -> Vec<Edge> {
        self.0
            .iter()
            .map(|(ends, counts)| edge(ends, counts, window))
            .collect()
    }

    /// Each failing edge with its main cause; `help` tells what to do about a cause.
    pub(crate) fn problems(&self, help: impl Fn(&str) -> String) -> Vec<Problem> {
        self.0
            .iter()
            .filter_map(|(ends, counts)| problem(ends, counts.calls(), &help))
            .collect()
    }
}

impl Counts {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            http: self.http.since(&earlier.http),
            tcp: self.tcp.since(&earlier.tcp),
            retries: (self.retries - earlier.retries).max(0.0),
            latency: self.latency.since(&earlier.latency),
        }
    }

    /// An HTTP edge may show its connections as well; its requests are what counts.
    fn calls(&self) -> &Calls {
        if self.is_tcp() { &self.tcp } else { &self.http }
    }

    fn is_tcp(&self) -> bool {
        self.http.by_backend.is_empty() && !self.tcp.by_backend.is_empty()
    }
}

impl Calls {
    fn request(&mut self, sample: &Sample) {
        self.called(sample);
        if !matches!(sample.label("outcome"), "success" | "") {
            self.failed(sample);
        }
    }

    fn called(&mut self, sample: &Sample) {
        self.all += sample.value;
        if sample.label("tls") == "mtls" {
            self.mtls += sample.value;
        }
        *self
            .by_backend
            .entry(short(sample.label("backend")))
            .or_default() += sample.value;
    }

    /// Counts a failure; a sample without a reason is none.
    fn failed(&mut self, sample: &Sample) {
        let reason = sample.label("reason").to_owned();
        if !reason.is_empty() {
            let cause = Cause {
                reason,
                backend: short(sample.label("backend")),
            };
            *self.failed.entry(cause).or_default() += sample.value;
        }
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            all: (self.all - earlier.all).max(0.0),
            mtls: (self.mtls - earlier.mtls).max(0.0),
            by_backend: minus(&self.by_backend, &earlier.by_backend),
            failed: minus(&self.failed, &earlier.failed),
        }
    }
}

fn minus<K: Ord + Clone>(now: &BTreeMap<K, f64>, before: &BTreeMap<K, f64>) -> BTreeMap<K, f64> {
    let left = |key: &K, value: f64| (value - before.get(key).copied().unwrap_or(0.0)).max(0.0);
    now.iter()
        .map(|(key, value)| (key.clone(), left(key, *value)))
        .collect()
}

/// `post-v2.blog:80` and `blog/post-v2` in short: `post-v2`.
pub(crate) fn short(backend: &str) -> String {
    let name = backend.rsplit('/').next().unwrap_or(backend);
    name.split(['.', ':']).next().unwrap_or(name).to_owned()
}

fn edge(ends: &Ends, counts: &Counts, window: Duration) -> Edge {
    let calls = counts.calls();
    let failed: f64 = calls.failed.values().sum();
    let ms = |q| {
        counts
            .latency
            .quantile(q)
            .map(|seconds| round(seconds * 1e3, 100.0))
    };
    Edge {
        from: ends.from.clone(),
        to: ends.to.clone(),
        protocol: if counts.is_tcp() { "tcp" } else { "http" },
        requests: whole(calls.all),
        rps: round(calls.all / window.as_secs_f64().max(0.001), 10.0),
        success_rate: (calls.all > 0.0)
            .then(|| round((1.0 - failed / calls.all).clamp(0.0, 1.0), 10_000.0)),
        p50_ms: ms(0.5),
        p95_ms: ms(0.95),
        p99_ms: ms(0.99),
        mtls: calls.mtls >= calls.all,
        retries: whole(counts.retries),
    }
}

fn round(value: f64, per_unit: f64) -> f64 {
    (value * per_unit).round() / per_unit
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> u64 {
    value.max(0.0).round() as u64
}

fn problem(ends: &Ends, calls: &Calls, help: &impl Fn(&str) -> String) -> Option<Problem> {
    let failed: f64 = calls.failed.values().sum();
    let (cause, most) = calls.failed.iter().max_by(|a, b| a.1.total_cmp(b.1))?;
    if failed <= 0.0 || calls.all <= 0.0 {
        return None;
    }
    let percent = |part: f64| format!("{:.1} %", 100.0 * part / calls.all);
    let mut message = format!(
        "{} fails {} of calls: reason {}",
        ends.to,
        percent(failed),
        cause.reason
    );
    if !cause.backend.is_empty() && cause.backend != ends.to {
        let how_many = if *most >= failed { "all" } else { "most" };
        let share = calls.by_backend.get(&cause.backend).copied().unwrap_or(0.0);
        message += &format!(
            ", {how_many} from {} ({} of traffic)",
            cause.backend,
            percent(share)
        );
    }
    Some(Problem {
        edge: format!("{} -> {}", ends.from, ends.to),
        message,
        reason: cause.reason.clone(),
        backend: cause.backend.clone(),
        help: help(&cause.reason),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scrape::parse;

    const EARLY: &str = "\
weft_client_requests_total{service=\"post\",backend=\"post-v1.blog:80\",outcome=\"success\",reason=\"\",tls=\"mtls\"} 10
weft_client_request_duration_seconds_bucket{service=\"post\",outcome=\"success\",le=\"0.01\"} 10
weft_client_request_duration_seconds_bucket{service=\"post\",outcome=\"success\",le=\"+Inf\"} 10
";
    const LATE: &str = "\
weft_client_requests_total{service=\"post\",backend=\"post-v1.blog:80\",outcome=\"success\",reason=\"\",tls=\"mtls\"} 100
weft_client_requests_total{service=\"post-v2\",backend=\"post-v2.blog:80\",outcome=\"success\",reason=\"\",tls=\"mtls\"} 2
weft_client_requests_total{service=\"post\",backend=\"post-v2.blog:80\",outcome=\"failure\",reason=\"app_error\",tls=\"mtls\"} 8
weft_client_request_duration_seconds_bucket{service=\"post\",outcome=\"success\",le=\"0.01\"} 100
weft_client_request_duration_seconds_bucket{service=\"post\",outcome=\"success\",le=\"+Inf\"} 100
weft_client_request_duration_seconds_bucket{service=\"post-v2\",outcome=\"failure\",le=\"0.01\"} 10
weft_client_request_duration_seconds_bucket{service=\"post-v2\",outcome=\"failure\",le=\"+Inf\"} 10
weft_client_retries_total{service=\"post\",decision=\"retried\"} 3
weft_client_retries_total{service=\"post\",decision=\"not_retryable\"} 5
weft_tcp_connections_opened_total{side=\"client\",target=\"queue.blog\",tls=\"mtls\"} 4
weft_tcp_connections_opened_total{side=\"server\",target=\"7000\",tls=\"none\"} 4
weft_tcp_connections_closed_total{side=\"client\",target=\"queue.blog\",reason=\"\"} 3
weft_tcp_connections_closed_total{side=\"client\",target=\"queue.blog\",reason=\"connect_refused\"} 1
weft_build_info{version=\"1\"} 1
";

    fn totals(text: &str) -> Totals {
        let mut totals = Totals::default();
        totals.read("web", &parse(text).unwrap(), |service| {
            match short(service).as_str() {
                "post-v2" => "post".to_owned(),
                service => service.to_owned(),
            }
        });
        totals
    }

    #[test]
    fn edges_are_what_happened_in_the_window() {
        let window = totals(LATE).since(&totals(EARLY));
        let edges = window.edges(Duration::from_secs(10));
        assert_eq!(edges.len(), 2);
        let post = &edges[0];
        assert_eq!(
            (post.from.as_str(), post.to.as_str(), post.protocol),
            ("web", "post", "http")
        );
        assert_eq!((post.requests, post.retries, post.mtls), (100, 3, true));
        assert_eq!((post.rps, post.success_rate), (10.0, Some(0.92)));
        assert_eq!((post.p50_ms, post.p99_ms), (Some(5.0), Some(9.9)));
        let queue = &edges[1];
        assert_eq!(
            (queue.to.as_str(), queue.protocol, queue.requests),
            ("queue", "tcp", 4)
        );
        assert_eq!(
            (queue.success_rate, queue.p50_ms, queue.mtls),
            (Some(0.75), None, true)
        );
    }

    #[test]
    fn a_failing_edge_names_the_cause() {
        let window = totals(LATE).since(&totals(EARLY));
        let problems = window.problems(|reason| format!("see {reason}"));
        assert_eq!(problems.len(), 2);
        assert_eq!(
            problems[0].message,
            "post fails 8.0 % of calls: reason app_error, all from post-v2 (10.0 % of traffic)"
        );
        assert_eq!(
            (problems[0].edge.as_str(), problems[0].help.as_str()),
            ("web -> post", "see app_error")
        );
        assert_eq!(
            problems[1].message,
            "queue fails 25.0 % of calls: reason connect_refused"
        );
    }

    #[test]
    fn an_idle_edge_has_no_rate_and_no_problem() {
        let window = totals(LATE).since(&totals(LATE));
        let edges = window.edges(Duration::from_secs(1));
        assert_eq!(
            (edges[0].requests, edges[0].success_rate, edges[0].p95_ms),
            (0, None, None)
        );
        assert!(window.problems(|_| String::new()).is_empty());
    }

    #[test]
    fn plaintext_shows() {
        let mut text = LATE.to_owned();
        text += "weft_client_requests_total{service=\"post\",backend=\"x\",outcome=\"success\",tls=\"none\"} 1\n";
        assert!(!totals(&text).edges(Duration::from_secs(1))[0].mtls);
    }

    #[test]
    fn backends_in_short() {
        for (long, expect) in [
            ("post-v2.blog:80", "post-v2"),
            ("blog/post-v2", "post-v2"),
            ("post", "post"),
            ("", ""),
        ] {
            assert_eq!(short(long), expect);
        }
    }
}
