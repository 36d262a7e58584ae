//! What no compiler checks: the order of the sidecar's modules, the size of files, and
//! documentation that says what the code does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use weft_proxy::error::TABLE;

/// The modules of the sidecar: each may use only those before it.
const ORDER: [&str; 28] = [
    "error",
    "util",
    "limits",
    "memory",
    "fields",
    "capture",
    "state",
    "body",
    "drain",
    "io",
    "wire",
    "config",
    "telemetry",
    "dns",
    "identity",
    "upstream",
    "cluster",
    "snapshot",
    "worker",
    "detect",
    "tcp",
    "http",
    "listener",
    "xds",
    "bootstrap",
    "admin",
    "app",
    "fuzz",
];
const LONGEST_FILE: usize = 800;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
    out.sort();
    out
}

fn is_test(path: &Path) -> bool {
    path.components()
        .any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs")))
}

/// The source without its tests and without its line comments.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let end = text.find("\n#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..end]
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The modules that `crate::` paths and groups of some code name.
fn used(code: &str) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for (at, path) in code.match_indices("crate::") {
        // `weft_crate::` and the like are other paths.
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + path.len()..];
        match rest.strip_prefix('{') {
            Some(group) => out.extend(first_names(group)),
            None => out.extend(name(rest)),
        }
    }
    out
}

/// The first names of the items of a group, up to its end.
fn first_names(group: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut depth = 1;
    let mut starts = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => starts = true,
            c if c.is_whitespace() => {}
            _ if starts => {
                out.extend(name(&group[at..]));
                starts = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    out
}

fn name(text: &str) -> Option<String> {
    let name: String = text
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    (!name.is_empty()).then_some(name)
}

#[test]
fn paths_are_found() {
    let code = "use crate::{\n    a::{b, c},\n    d,\n    e::F,\n};\nlet x = crate::g::h();\n\
                use weft_crate::no; use super::crate_name;";
    let found: Vec<String> = used(code).into_iter().collect();
    assert_eq!(found, ["a", "d", "e", "g"]);
}

#[test]
fn modules_use_only_those_before_them() {
    let src = root().join("src");
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for path in files(&src) {
        let relative = path.strip_prefix(&src).unwrap();
        let module = relative.components().next().unwrap().as_os_str();
        let module = module.to_str().unwrap().trim_end_matches(".rs");
        // `docs` writes documentation, in tests only.
        if is_test(&path) || matches!(module, "lib" | "main" | "docs") {
            continue;
        }
        let shown = relative.display();
        let Some(place) = ORDER.iter().position(|known| *known == module) else {
            wrong.push(format!(
                "{shown}: the module {module} has no place in the order"
            ));
            continue;
        };
        seen.insert(module.to_owned());
        let code = code(&path);
        for other in used(&code) {
            if other != module && !ORDER[..place].contains(&other.as_str()) {
                wrong.push(format!("{shown}: {module} may not use {other}"));
            }
        }
        let is_top = relative.components().count() == 1;
        if is_top && code.contains("super::") {
            wrong.push(format!("{shown}: write `crate::` for another module"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen.len(), ORDER.len(), "modules that exist: {seen:?}");
}

#[test]
fn files_are_short() {
    let mut wrong = Vec::new();
    for member in [
        "",
        "api",
        "certs",
        "handover",
        "control-plane",
        "cli",
        "bench",
    ] {
        for path in files(&root().join(member).join("src")) {
            let text = std::fs::read_to_string(&path).unwrap();
            let excused = text
                .lines()
                .take(5)
                .any(|line| line.contains("tidy: long because") || line.contains("@generated"));
            let lines = code(&path).lines().count();
            if !excused && !is_test(&path) && lines > LONGEST_FILE {
                wrong.push(format!(
                    "{}: {lines} lines without its tests",
                    path.display()
                ));
            }
        }
    }
    let help = "split it, or say `tidy: long because` in its first lines";
    assert!(wrong.is_empty(), "{}\n{help}", wrong.join("\n"));
}

#[test]
fn every_reason_is_documented() {
    let text = std::fs::read_to_string(root().join("docs/reasons.md")).unwrap();
    for row in TABLE.iter().filter(|row| !row.slug.is_empty()) {
        let heading = format!("\n## {}\n", row.slug);
        assert!(text.contains(&heading), "{} is missing", row.slug);
        // The first letter is a capital there.
        let sentence = &row.sentence[1..];
        assert!(text.contains(sentence), "{}: {sentence}", row.slug);
    }
}

/// The names of the metrics in some code.
fn metric_names(code: &str) -> BTreeSet<&str> {
    code.split('"')
        .filter(|text| {
            text.starts_with("weft_")
                && text
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
        .collect()
}

#[test]
fn every_metric_is_documented() {
    let text = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let code = code(&root().join("src/telemetry/metrics.rs"));
    let names = metric_names(&code);
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(text.contains(name), "{name} is missing");
    }
}
