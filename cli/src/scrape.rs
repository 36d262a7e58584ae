//! Prometheus text exposition, as far as a reader of counters and classic histograms needs it:
//! the parser, and quantiles from histogram buckets. Pure; `fetch` gets the text.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// One sample of one series.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    /// The metric, with `_bucket`, `_sum` or `_count` for parts of a histogram.
    pub name: String,
    /// The labels in the order of the text.
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// The value of a label; empty when the series does not have it, as Prometheus defines it.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }
}

/// A line that is no exposition text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParseError {
    line: usize,
    reason: &'static str,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "metrics: line {}: {}", self.line, self.reason)
    }
}

/// Reads all samples of an exposition text. Comments, types, timestamps and exemplars are
/// skipped.
///
/// # Errors
///
/// The first line that is neither a sample, nor a comment, nor blank.
pub(crate) fn parse(text: &str) -> Result<Vec<Sample>, ParseError> {
    let mut samples = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let sample = parse_line(line).map_err(|reason| ParseError {
            line: number + 1,
            reason,
        })?;
        samples.push(sample);
    }
    Ok(samples)
}

fn parse_line(line: &str) -> Result<Sample, &'static str> {
    let end = line
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .ok_or("a value is missing")?;
    let (name, rest) = line.split_at(end);
    if name.is_empty() {
        return Err("a metric name is missing");
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inner) => parse_labels(inner)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_whitespace().next().ok_or("a value is missing")?;
    let value = value.parse().map_err(|_| "the value is no number")?;
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

type Labels = Vec<(String, String)>;

/// Reads labels from behind the opening brace; returns them with the rest of the line.
fn parse_labels(mut rest: &str) -> Result<(Labels, &str), &'static str> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        let (key, after) = rest.split_once('=').ok_or("a label has no `=`")?;
        let quoted = after
            .trim_start()
            .strip_prefix('"')
            .ok_or("a label value is not quoted")?;
        let (value, after) = unquote(quoted)?;
        labels.push((key.trim().to_owned(), value));
        rest = after.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

/// Reads a label value from behind its opening quote; returns it with what follows the closing
/// quote.
fn unquote(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                _ => return Err("a label value has an unknown escape"),
            },
            c => value.push(c),
        }
    }
    Err("a label value does not end")
}

/// Cumulative histogram buckets, by upper bound.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Histogram {
    /// (upper bound, observations at or below it), sorted by bound; `+Inf` is last.
    buckets: Vec<(f64, f64)>,
}

impl Histogram {
    /// Adds the observations of one series' bucket.
    pub(crate) fn add(&mut self, bound: f64, count: f64) {
        match self
            .buckets
            .binary_search_by(|(have, _)| have.total_cmp(&bound))
        {
            Ok(at) => self.buckets[at].1 += count,
            Err(at) => self.buckets.insert(at, (bound, count)),
        }
    }

    /// What was observed after `earlier`, an older reading of the same histogram.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let before = |bound: f64| {
            let found = earlier
                .buckets
                .binary_search_by(|(have, _)| have.total_cmp(&bound));
            found.map_or(0.0, |at| earlier.buckets[at].1)
        };
        let buckets = self
            .buckets
            .iter()
            .map(|&(bound, n)| (bound, (n - before(bound)).max(0.0)));
        Self {
            buckets: buckets.collect(),
        }
    }

    /// The `q`-quantile (0 to 1), linear within its bucket, in the unit of the bounds. None
    /// without observations. What lies beyond the last finite bound counts as that bound.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        let total = self.buckets.last().map_or(0.0, |(_, count)| *count);
        if total <= 0.0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * total;
        let at = self.buckets.iter().position(|(_, count)| *count >= rank)?;
        let (low, below) = at
            .checked_sub(1)
            .map_or((0.0, 0.0), |before| self.buckets[before]);
        let (high, count) = self.buckets[at];
        if high.is_infinite() {
            return Some(low);
        }
        let within = if count > below {
            (rank - below) / (count - below)
        } else {
            1.0
        };
        Some(low + (high - low) * within)
    }
}

/// Asks `http://<address><path>` once and returns the status and the body as text. Answers are
/// limited to 8 MiB and 2 seconds. Dropping the future closes the connection.
///
/// # Errors
///
/// A text that names the address and what went wrong.
pub(crate) async fn fetch(address: SocketAddr, path: &str) -> Result<(StatusCode, String), String> {
    let host = address.to_string();
    get(address, &host, path).await
}

/// As [`fetch`], with a `Host` of the caller's choice: the way through a sidecar's outbound
/// port.
///
/// # Errors
///
/// A text that names the address and what went wrong.
pub(crate) async fn get(
    address: SocketAddr,
    host: &str,
    path: &str,
) -> Result<(StatusCode, String), String> {
    let asked = tokio::time::timeout(DEADLINE, ask(address, host, path)).await;
    let told = |reason: &str| format!("http://{address}{path}: {reason}");
    match asked {
        Ok(answer) => answer.map_err(|error| told(&error.to_string())),
        Err(_) => Err(told(&format!("no answer within {} s", DEADLINE.as_secs()))),
    }
}

async fn ask(
    address: SocketAddr,
    host: &str,
    path: &str,
) -> Result<(StatusCode, String), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY_BYTES)
            .collect()
            .await?
            .to_bytes();
        Ok((status, String::from_utf8(body.to_vec())?))
    };
    // The connection only moves while it is polled; it ends with the answer.
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}

const DEADLINE: Duration = Duration::from_secs(2);
const MAX_BODY_BYTES: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read() {
        let text = "# HELP x y\n# TYPE x counter\n\nx 1\n\
            y{a=\"b\",c=\"d,}\\\"\\\\\\n\",} 2.5e3 1700000000\n\
            z_bucket{le=\"+Inf\"} +Inf # {trace_id=\"1\"} 3\nempty{} NaN\n";
        let samples = parse(text).unwrap();
        assert_eq!(samples.len(), 4);
        assert_eq!((samples[0].name.as_str(), samples[0].value), ("x", 1.0));
        assert_eq!(samples[1].label("a"), "b");
        assert_eq!(samples[1].label("c"), "d,}\"\\\n");
        assert_eq!(samples[1].label("absent"), "");
        assert!((samples[1].value - 2500.0).abs() < f64::EPSILON);
        assert!(samples[2].value.is_infinite());
        assert!(samples[3].value.is_nan());
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, expect) in [
            ("x 1\ny", "metrics: line 2: a value is missing"),
            ("x", "metrics: line 1: a value is missing"),
            ("{a=\"b\"} 1", "metrics: line 1: a metric name is missing"),
            ("x{a=\"b\"}", "metrics: line 1: a value is missing"),
            ("x one", "metrics: line 1: the value is no number"),
            ("x{a} 1", "metrics: line 1: a label has no `=`"),
            ("x{a=b} 1", "metrics: line 1: a label value is not quoted"),
            ("x{a=\"b} 1", "metrics: line 1: a label value does not end"),
            (
                "x{a=\"\\q\"} 1",
                "metrics: line 1: a label value has an unknown escape",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), expect, "{text}");
        }
    }

    fn histogram(buckets: &[(f64, f64)]) -> Histogram {
        let mut histogram = Histogram::default();
        for (bound, count) in buckets {
            histogram.add(*bound, *count);
        }
        histogram
    }

    #[test]
    fn quantiles_are_linear_within_a_bucket() {
        let inf = f64::INFINITY;
        for (buckets, q, expect) in [
            (vec![], 0.5, None),
            (vec![(1.0, 0.0), (inf, 0.0)], 0.5, None),
            (vec![(1.0, 10.0), (inf, 10.0)], 0.5, Some(0.5)),
            (vec![(1.0, 0.0), (2.0, 10.0), (inf, 10.0)], 0.5, Some(1.5)),
            (vec![(1.0, 5.0), (2.0, 10.0), (inf, 10.0)], 0.9, Some(1.8)),
            (vec![(1.0, 5.0), (2.0, 5.0), (inf, 10.0)], 0.99, Some(2.0)),
            (vec![(inf, 10.0)], 0.99, Some(0.0)),
            (vec![(1.0, 10.0), (inf, 10.0)], 1.0, Some(1.0)),
        ] {
            let found = histogram(&buckets).quantile(q);
            let same = match (found, expect) {
                (Some(found), Some(expect)) => (found - expect).abs() < 1e-9,
                (found, expect) => found == expect,
            };
            assert!(same, "{buckets:?} {q}: {found:?}, expected {expect:?}");
        }
    }

    #[test]
    fn histograms_add_up_and_subtract() {
        let inf = f64::INFINITY;
        let early = histogram(&[(1.0, 2.0), (inf, 3.0)]);
        let mut late = histogram(&[(inf, 4.0), (1.0, 2.0)]);
        late.add(inf, 5.0);
        late.add(1.0, 1.0);
        assert_eq!(late.since(&early), histogram(&[(1.0, 1.0), (inf, 6.0)]));
        assert_eq!(early.since(&Histogram::default()), early);
        // A restarted process counts from zero: never less than nothing.
        assert_eq!(early.since(&late), histogram(&[(1.0, 0.0), (inf, 0.0)]));
    }
}
