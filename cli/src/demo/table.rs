//! The demo's table of edges, as text. Pure.

use super::edges::{Edge, Problem};
use crate::output::Paint;

/// The heads, and whether a column is aligned to the right.
const COLUMNS: [(&str, Align); 9] = [
    ("FROM", Align::Left),
    ("TO", Align::Left),
    ("RPS", Align::Right),
    ("SUCCESS", Align::Right),
    ("P50", Align::Right),
    ("P95", Align::Right),
    ("P99", Align::Right),
    ("mTLS", Align::Left),
    ("RETRIES", Align::Right),
];

#[derive(Debug, Clone, Copy)]
enum Align {
    Left,
    Right,
}

/// The table and a paragraph for each problem, every line ended by a newline.
pub(crate) fn render(
    edges: &[Edge],
    problems: &[Problem],
    look: Option<&str>,
    paint: Paint,
) -> String {
    let rows: Vec<_> = edges.iter().map(cells).collect();
    let mut widths = COLUMNS.map(|(head, _)| width(head));
    for row in &rows {
        for (at, cell) in row.iter().enumerate() {
            widths[at] = widths[at].max(width(cell));
        }
    }
    let heads = COLUMNS.map(|(head, _)| head.to_owned());
    let mut text = format!("{}\n", paint.heading(&line(&heads, &widths)));
    for (edge, row) in edges.iter().zip(&rows) {
        let row = line(row, &widths);
        if edge.success_rate.is_some_and(|rate| rate < 1.0) {
            text += &paint.bad(&format!("{row}  ← failing"));
        } else {
            text += &row;
        }
        text.push('\n');
    }
    for problem in problems {
        text += &format!(
            "\n {}.\n   fix it   {}\n",
            paint.bad(&problem.message),
            problem.help
        );
    }
    if let Some(look) = look
        && !problems.is_empty()
    {
        text += &format!("   {look}\n");
    }
    text
}

fn cells(edge: &Edge) -> [String; 9] {
    [
        edge.from.clone(),
        edge.to.clone(),
        format!("{:.1}", edge.rps),
        edge.success_rate
            .map_or_else(dash, |rate| format!("{:.1} %", floor_percent(rate))),
        edge.p50_ms.map_or_else(dash, latency),
        edge.p95_ms.map_or_else(dash, latency),
        edge.p99_ms.map_or_else(dash, latency),
        if edge.mtls {
            "🔒".to_owned()
        } else {
            "no".to_owned()
        },
        retries(edge),
    ]
}

/// Rounded down: 99.96 % is not 100.0 %.
fn floor_percent(rate: f64) -> f64 {
    (rate * 1000.0 + 1e-6).floor() / 10.0
}

fn latency(ms: f64) -> String {
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

#[allow(clippy::cast_precision_loss)]
fn retries(edge: &Edge) -> String {
    if edge.retries == 0 || edge.requests == 0 {
        return dash();
    }
    format!(
        "+{:.1} %",
        100.0 * edge.retries as f64 / edge.requests as f64
    )
}

fn dash() -> String {
    "–".to_owned()
}

fn line(cells: &[String; 9], widths: &[usize; 9]) -> String {
    let mut text = String::new();
    for ((cell, &wide), (_, align)) in cells.iter().zip(widths).zip(COLUMNS) {
        let pad = " ".repeat(wide - width(cell));
        text += &match align {
            Align::Left => format!(" {cell}{pad} "),
            Align::Right => format!(" {pad}{cell} "),
        };
    }
    text.trim_end().to_owned()
}

/// Columns on a terminal: the lock takes two, everything else here one.
fn width(cell: &str) -> usize {
    cell.chars().map(|c| if c == '🔒' { 2 } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(to: &str, success_rate: Option<f64>) -> Edge {
        Edge {
            from: "web".to_owned(),
            to: to.to_owned(),
            protocol: "http",
            requests: 100,
            rps: 8.6,
            success_rate,
            p50_ms: Some(1.25),
            p95_ms: Some(39.6),
            p99_ms: None,
            mtls: true,
            retries: 0,
        }
    }

    #[test]
    fn table() {
        let mut flaky = edge("account", Some(0.9999));
        flaky.retries = 2;
        flaky.mtls = false;
        let problem = Problem {
            edge: "web -> post".to_owned(),
            message: "post fails".to_owned(),
            reason: "app_error".to_owned(),
            backend: "post-v2".to_owned(),
            help: "weft demo fix".to_owned(),
        };
        let look = Some("look     curl");
        let text = render(
            &[edge("post", Some(1.0)), flaky, edge("x", None)],
            &[problem],
            look,
            Paint::Plain,
        );
        let expect = "\x20FROM  TO       RPS  SUCCESS     P50    P95  P99  mTLS  RETRIES
 web   post     8.6  100.0 %  1.2 ms  40 ms    –  🔒          –
 web   account  8.6   99.9 %  1.2 ms  40 ms    –  no     +2.0 %  ← failing
 web   x        8.6        –  1.2 ms  40 ms    –  🔒          –

 post fails.
   fix it   weft demo fix
   look     curl
";
        assert_eq!(text, expect, "\n{text}");
        assert!(render(&[edge("post", Some(0.5))], &[], look, Paint::Ansi).contains("\x1b[31m"));
        assert!(!text.contains('\x1b'));
    }
}
