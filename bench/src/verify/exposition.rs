//! The Prometheus text format, read strictly: what a scraper would stumble over, and the
//! naming rules that matter. For machines without promtool. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// All that is wrong with a page of metrics; `line: what`.
pub(crate) fn problems(text: &str) -> Vec<String> {
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helps = BTreeSet::new();
    let mut series = BTreeSet::new();
    let mut problems = Vec::new();
    if !text.is_empty() && !text.ends_with('\n') {
        problems.push("the last line does not end".to_owned());
    }
    for (i, line) in text.lines().enumerate() {
        let mut problem = |what: String| problems.push(format!("{}: {what}", i + 1));
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let name = rest.split(' ').next().unwrap_or_default();
            if !helps.insert(name) {
                problem(format!("second HELP of {name}"));
            }
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            if !matches!(
                kind,
                "counter" | "gauge" | "histogram" | "summary" | "untyped"
            ) {
                problem(format!("{name} has the unknown type `{kind}`"));
            }
            if types.insert(name, kind).is_some() {
                problem(format!("second TYPE of {name}"));
            }
            if kind == "counter" && !name.ends_with("_total") {
                problem(format!("the counter {name} does not end in _total"));
            }
        } else if !line.is_empty() && !line.starts_with('#') {
            match sample(line) {
                Err(what) => problem(what),
                Ok((name, labels)) => {
                    if family(name, &types).is_none() {
                        problem(format!("{name} has no TYPE before it"));
                    }
                    if !series.insert(format!("{name}{{{labels}}}")) {
                        problem(format!("{name}{{{labels}}} is there twice"));
                    }
                }
            }
        }
    }
    for name in types.keys().filter(|name| !helps.contains(**name)) {
        problems.push(format!("{name} has no HELP"));
    }
    problems
}

/// The family that a sample belongs to.
fn family<'a>(name: &'a str, types: &BTreeMap<&str, &str>) -> Option<&'a str> {
    if types.contains_key(name) {
        return Some(name);
    }
    ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
        let base = name.strip_suffix(suffix)?;
        matches!(types.get(base), Some(&("histogram" | "summary"))).then_some(base)
    })
}

/// Name and labels of `name{label="value",..} value [timestamp]`.
fn sample(line: &str) -> Result<(&str, &str), String> {
    let end = line.find(['{', ' ']).ok_or("a line without a value")?;
    let (name, rest) = line.split_at(end);
    if !is_name(name, true) {
        return Err(format!("`{name}` is no name of a metric"));
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        None => ("", rest),
        Some(inner) => {
            let close =
                labels_end(inner).ok_or_else(|| format!("the labels of {name} are malformed"))?;
            (&inner[..close], &inner[close + 1..])
        }
    };
    let mut fields = rest.split_ascii_whitespace();
    let value = fields
        .next()
        .ok_or_else(|| format!("{name} has no value"))?;
    if !matches!(value, "+Inf" | "-Inf" | "NaN") && value.parse::<f64>().is_err() {
        return Err(format!("{name} has the value `{value}`"));
    }
    if fields
        .next()
        .is_some_and(|timestamp| timestamp.parse::<i64>().is_err())
        || fields.next().is_some()
    {
        return Err(format!("something follows the value of {name}"));
    }
    Ok((name, labels))
}

/// Where the closing brace is, if all before it is `name="value"` separated by commas.
fn labels_end(text: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        if text[at..].starts_with('}') {
            return Some(at);
        }
        let equals = at + text[at..].find('=')?;
        if !is_name(&text[at..equals], false) || !text[equals + 1..].starts_with('"') {
            return None;
        }
        at = equals + 2;
        let mut escaped = false;
        let quote = text[at..].char_indices().find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        })?;
        at += quote.0 + 1;
        if text[at..].starts_with(',') {
            at += 1;
        } else if !text[at..].starts_with('}') {
            return None;
        }
    }
}

fn is_name(name: &str, colons: bool) -> bool {
    let start = |c: char| c.is_ascii_alphabetic() || c == '_' || (colons && c == ':');
    name.starts_with(start) && name.chars().all(|c| start(c) || c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_pages_have_no_problems() {
        let text = "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"1\",y=\"q\\\"}{\"} 1\na_total 2 1700000\n\
                    # HELP h_seconds Time.\n# TYPE h_seconds histogram\nh_seconds_bucket{le=\"+Inf\"} 1\n\
                    h_seconds_sum 0.5\nh_seconds_count 1\n";
        assert_eq!(problems(text), Vec::<String>::new());
        assert_eq!(problems(""), Vec::<String>::new());
    }

    #[test]
    fn each_problem_is_named() {
        for (text, expect) in [
            ("a 1\n", "1: a has no TYPE before it"),
            (
                "# HELP a x\n# TYPE a gauge\na one\n",
                "3: a has the value `one`",
            ),
            (
                "# HELP a x\n# TYPE a gauge\na 1\na 2\n",
                "4: a{} is there twice",
            ),
            (
                "# HELP a x\n# TYPE a gauge\na{b=c} 2\n",
                "3: the labels of a are malformed",
            ),
            (
                "# HELP a x\n# TYPE a gauge\n1a 2\n",
                "3: `1a` is no name of a metric",
            ),
            (
                "# HELP a x\n# TYPE a gauge\na 1 2 3\n",
                "3: something follows the value of a",
            ),
            (
                "# HELP a x\n# TYPE a counter\n",
                "2: the counter a does not end in _total",
            ),
            (
                "# HELP a x\n# TYPE a sum\n",
                "2: a has the unknown type `sum`",
            ),
            ("# TYPE a gauge\n", "a has no HELP"),
            (
                "# HELP a x\n# HELP a x\n# TYPE a gauge\n",
                "2: second HELP of a",
            ),
            (
                "# HELP a x\n# TYPE a gauge\n# TYPE a gauge\n",
                "3: second TYPE of a",
            ),
            (
                "# HELP a x\n# TYPE a gauge\na 1",
                "the last line does not end",
            ),
        ] {
            assert_eq!(problems(text), [expect], "{text:?}");
        }
    }
}
