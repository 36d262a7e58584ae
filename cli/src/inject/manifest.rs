//! Kubernetes manifests: which documents of a text make pods, and the text with those
//! documents changed. Everything else is passed through byte for byte.

use std::collections::BTreeMap;

use super::emit;
use super::pod::{self, Around, Options, Outcome};
use super::problem::{Problem, Report};
use super::settings;
use super::yaml::{Document, Node, parse};

/// Objects that make pods: kind, its API groups, and where the pod is.
const WORKLOADS: &[(&str, &[&str], &[&str])] = &[
    ("Pod", &[""], &[]),
    ("Deployment", &["apps"], &["spec", "template"]),
    ("StatefulSet", &["apps"], &["spec", "template"]),
    ("DaemonSet", &["apps"], &["spec", "template"]),
    ("ReplicaSet", &["apps"], &["spec", "template"]),
    ("ReplicationController", &[""], &["spec", "template"]),
    ("Job", &["batch"], &["spec", "template"]),
    (
        "CronJob",
        &["batch"],
        &["spec", "jobTemplate", "spec", "template"],
    ),
];

/// Namespaces whose pods never get a sidecar: a mesh must not need itself to start.
const SYSTEM_NAMESPACES: &[&str] = &[
    "kube-system",
    "kube-public",
    "kube-node-lease",
    "weft-system",
];
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";
/// How deep lists of lists are followed.
const MAX_LISTS: usize = 4;

/// What is to be done with each pod.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Task<'a> {
    /// Put the sidecar in.
    Inject(&'a Options),
    /// Take it out.
    Uninject,
}

/// A document of a text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'a> {
    /// Where it is from, for people.
    pub file: &'a str,
    /// Its text, with the marker before it.
    pub text: &'a str,
    /// How many lines of the file are before it.
    pub lines_before: usize,
}

/// What came of one document.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// The text to print; none if there are errors.
    pub text: String,
    /// What was found, each with the place and the object before it.
    pub report: Report,
    /// Objects that were changed, as `deployment/web`.
    pub changed: Vec<String>,
}

/// What the namespaces of a text say about their pods.
#[derive(Debug, Default)]
pub(crate) struct Namespaces(BTreeMap<String, Namespace>);

#[derive(Debug)]
struct Namespace {
    pod_security: Option<String>,
    wanted: Result<bool, Problem>,
}

/// Splits a text at its document markers. A line that begins with `---` is one, also in a
/// block scalar.
pub(crate) fn pieces<'a>(file: &'a str, text: &'a str) -> Vec<Piece<'a>> {
    let mut out = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    let mut push = |from: usize, to: usize, lines_before: usize| {
        if from < to {
            out.push(Piece {
                file,
                text: &text[from..to],
                lines_before,
            });
        }
    };
    for (line, content) in text.split_inclusive('\n').enumerate() {
        if is_marker(content) {
            push(start, offset, start_line);
            (start, start_line) = (offset, line);
        }
        offset += content.len();
    }
    push(start, text.len(), start_line);
    out
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

impl Namespaces {
    /// Collects the Namespace objects of a text. What cannot be read is left to [`apply`].
    pub(crate) fn collect<'a>(pieces: impl IntoIterator<Item = &'a Piece<'a>>) -> Self {
        let mut namespaces = Self::default();
        for piece in pieces {
            if let Ok(Some(document)) = parse(piece.text) {
                namespaces.add(&document.root, MAX_LISTS);
            }
        }
        namespaces
    }

    fn add(&mut self, object: &Node, lists: usize) {
        if is_list(object) && lists > 0 {
            for item in object.get("items").into_iter().flat_map(Node::items) {
                self.add(item, lists - 1);
            }
        }
        let (Some("Namespace"), Some(name)) = (
            object.text_at(&["kind"]),
            object.text_at(&["metadata", "name"]),
        ) else {
            return;
        };
        let level = object.text_at(&["metadata", "labels", POD_SECURITY]);
        let level = level.filter(|level| matches!(*level, "baseline" | "restricted"));
        self.0.insert(
            name.to_owned(),
            Namespace {
                pod_security: level.map(str::to_owned),
                wanted: settings::wanted(object.get("metadata")),
            },
        );
    }
}

/// Does the task with one document.
pub(crate) fn apply(piece: &Piece<'_>, task: Task<'_>, namespaces: &Namespaces) -> Done {
    let mut done = Done::default();
    let head = head(piece.text);
    let lines_before = piece.lines_before + piece.text[..head].lines().count();
    let document = match parse(&piece.text[head..]) {
        Ok(document) => document,
        Err(error) => {
            let place = format!("{}:{}", piece.file, lines_before + error.line);
            done.report.error(
                Problem::new(format!("no YAML: {}", error.message))
                    .at(place)
                    .help("templates have to be rendered first, as by `helm template`"),
            );
            return done;
        }
    };
    let Some(mut document) = document.filter(|document| !document.root.is_null()) else {
        done.text = piece.text.to_owned();
        return done;
    };
    let mut walk = Walk {
        place: Place {
            file: piece.file,
            lines_before,
        },
        task,
        namespaces,
        report: &mut done.report,
        changed: &mut done.changed,
    };
    walk.object(&mut document.root, MAX_LISTS);
    if done.report.errors.is_empty() {
        done.text = match done.changed.is_empty() {
            true => piece.text.to_owned(),
            false => rewritten(&piece.text[..head], &piece.text[head..], &document),
        };
    }
    done
}

/// The length of what comes before the content: the marker, comments and empty lines.
fn head(text: &str) -> usize {
    let is_head = |line: &&str| {
        let line = line.trim_end().trim_start_matches('\u{feff}');
        let rest = line.strip_prefix("---").unwrap_or(line).trim_start();
        rest.is_empty() || rest.starts_with('#')
    };
    let lines = text.split_inclusive('\n');
    lines.take_while(is_head).map(str::len).sum()
}

fn rewritten(head: &str, old: &str, document: &Document) -> String {
    // `--- {a: b}`: the marker is on the line of the content.
    let marker = if is_marker(old.split_inclusive('\n').next().unwrap_or_default()) {
        "---\n"
    } else {
        ""
    };
    format!("{head}{marker}{}", emit::document(document))
}

#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a str,
    lines_before: usize,
}

struct Walk<'a> {
    place: Place<'a>,
    task: Task<'a>,
    namespaces: &'a Namespaces,
    report: &'a mut Report,
    changed: &'a mut Vec<String>,
}

impl Walk<'_> {
    /// Changes one object; one that needs no change keeps its style.
    fn object(&mut self, object: &mut Node, lists: usize) {
        let line = self.place.lines_before + first_line(object);
        let at = format!("{}:{line}", self.place.file);
        let (Some(version), Some(kind)) =
            (object.text_at(&["apiVersion"]), object.text_at(&["kind"]))
        else {
            if is_compose(object) {
                return self.report.error(beside_manifests(self.task).at(at));
            }
            let missing = ["apiVersion", "kind"];
            let missing = missing
                .into_iter()
                .find(|key| object.text_at(&[key]).is_none());
            let problem = Problem::new(format!(
                "no Kubernetes object: `{}` is missing",
                missing.unwrap_or_default()
            ));
            return self.report.error(problem.at(at));
        };
        if is_list(object) {
            if lists == 0 {
                let problem = Problem::new(format!("more than {MAX_LISTS} lists in each other"));
                return self.report.error(problem.at(at));
            }
            let before = self.changed.len();
            let mut copy = object.clone();
            for item in copy.list_at("items") {
                self.object(item, lists - 1);
            }
            if self.changed.len() > before {
                *object = copy;
            }
            return;
        }
        let group = version.rsplit_once('/').map_or("", |(group, _)| group);
        let known = WORKLOADS
            .iter()
            .find(|(known, groups, _)| *known == kind && groups.contains(&group));
        if let Some((kind, _, path)) = known {
            self.workload(object, kind, path, &at);
        }
    }

    fn workload(&mut self, object: &mut Node, kind: &str, path: &[&str], at: &str) {
        let namespace = object.text_at(&["metadata", "namespace"]);
        let namespace = namespace.map(str::to_owned);
        let name = object
            .text_at(&["metadata", "name"])
            .or_else(|| object.text_at(&["metadata", "generateName"]))
            .unwrap_or("?");
        let title = match &namespace {
            Some(namespace) => format!("{kind} {namespace}/{name}"),
            None => format!("{kind} {name}"),
        };
        let short = format!("{}/{name}", kind.to_ascii_lowercase());
        let mut report = Report::default();
        let mut copy = object.clone();
        if path.is_empty() || object.at(path).is_some_and(Node::is_map) {
            let pod = path.iter().fold(&mut copy, |node, key| node.map_at(key));
            let mut of_pod = Report::default();
            let changed = self.pod(pod, kind, namespace.as_deref(), &mut of_pod);
            report = of_pod.under(path);
            if changed {
                self.changed.push(short);
                *object = copy;
            }
            if !path.is_empty() && matches!(self.task, Task::Inject(_)) {
                settings::misplaced(object.get("metadata"), &path.join("."), &mut report);
            }
        } else {
            report.error(Problem::new(format!(
                "{} is missing: there is no pod",
                path.join(".")
            )));
        }
        let prefix = format!("{at}: {title}");
        let errors = report.errors.into_iter();
        self.report.errors.extend(errors.map(|p| p.at(&prefix)));
        let warnings = report.warnings.into_iter();
        self.report.warnings.extend(warnings.map(|p| p.at(&prefix)));
    }

    /// Whether the pod was changed.
    fn pod(
        &mut self,
        pod: &mut Node,
        kind: &str,
        namespace: Option<&str>,
        report: &mut Report,
    ) -> bool {
        let Task::Inject(options) = self.task else {
            return pod::strip(pod, report);
        };
        let around = namespace.and_then(|name| self.namespaces.0.get(name));
        if namespace.is_some_and(|name| SYSTEM_NAMESPACES.contains(&name)) {
            report.warn("not injected: the pods of this namespace have to start without the mesh");
            return pod::strip(pod, report);
        }
        match around.map(|namespace| &namespace.wanted) {
            None | Some(Ok(true)) => {}
            Some(Ok(false)) => return pod::strip(pod, report),
            Some(Err(problem)) => report.error(problem.clone().at("its Namespace")),
        }
        let around = Around {
            kind,
            pod_security: around.and_then(|namespace| namespace.pod_security.as_deref()),
        };
        let had_one = pod
            .at(&["metadata", "annotations", settings::INJECTED])
            .is_some();
        pod::inject(pod, around, options, report) == Outcome::Injected || had_one
    }
}

fn is_list(object: &Node) -> bool {
    let kind = object.text_at(&["kind"]);
    kind.is_some_and(|kind| kind.ends_with("List")) && object.get("items").is_some()
}

fn first_line(object: &Node) -> usize {
    let first = object.entries().first().map(|entry| entry.value.line);
    first.unwrap_or(object.line).max(1)
}

/// Why a file of docker compose is no manifest for this task.
fn beside_manifests(task: Task<'_>) -> Problem {
    let problem = Problem::new("a file of docker compose, not a manifest");
    match task {
        Task::Inject(_) => problem.help("inject it alone: its output is an override"),
        Task::Uninject => problem.help("it has not been changed: leave the override out"),
    }
}

/// Whether a text is a file of docker compose rather than manifests.
pub(crate) fn is_compose(root: &Node) -> bool {
    root.get("services").is_some_and(Node::is_map)
        && root.get("kind").is_none()
        && root.get("apiVersion").is_none()
}
