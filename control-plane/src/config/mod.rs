//! The configuration as written: YAML documents of the kinds that Weft knows, each
//! checked on its own with every problem located. What they mean together is `model`.

pub(crate) mod check;
mod diagnostic;
mod field;
mod policy;
mod route;
mod service;
#[cfg(test)]
mod tests;
mod workload;
mod yaml;

use std::fmt;
use std::sync::Arc;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use diagnostic::{Diagnostic, Level};
pub use yaml::At;

use crate::model::{MeshConfig, ReferenceGrant, Route, Service, Workload};
pub(crate) use field::closest;
use field::{Field, Object, Problems, clip};
pub(crate) use policy::PolicyDocument;

/// What a document is called: unique in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id {
    pub(crate) kind: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// A document that is right by itself.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) file: Arc<str>,
    pub(crate) at: At,
    pub(crate) id: Id,
    /// As it was written, and how many lines of the file were before it.
    pub(crate) text: Arc<str>,
    pub(crate) lines_before: u32,
    pub(crate) content: Content,
    /// Names of other objects in it, to warn about those that do not exist.
    pub(crate) references: Vec<Reference>,
}

/// The document's kind and what it says.
#[derive(Debug)]
pub(crate) enum Content {
    MeshConfig(MeshConfig),
    Service(Service),
    Workload(Workload),
    Route(Route),
    Grant(ReferenceGrant),
    Policy(PolicyDocument),
}

/// The use of a service in a document.
#[derive(Debug)]
pub(crate) struct Reference {
    pub(crate) at: At,
    pub(crate) field: String,
    pub(crate) role: Role,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) port: Option<u16>,
}

/// What a document uses a service for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Parent,
    Backend,
    Upstream,
    PolicyTarget,
}

impl Reference {
    fn new(field: &Field<'_>, role: Role, namespace: &str, name: &str, port: Option<u16>) -> Self {
        Self {
            at: field.at(),
            field: field.path().to_owned(),
            role,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            port,
        }
    }
}

/// One document of a file and what was found in it.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// `None` if not even the name could be read.
    pub(crate) id: Option<Id>,
    /// `None` if it has errors.
    pub(crate) document: Option<Arc<Document>>,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// A reader of one kind: the content and the references of `spec` and its siblings.
type Decode = fn(&Object<'_>, &Meta) -> (Option<Content>, Vec<Reference>);

/// The kinds with their API versions.
const KINDS: &[(&str, &[&str], Decode)] = &[
    ("Service", &["v1"], service::decode),
    (
        "HTTPRoute",
        &[
            "gateway.networking.k8s.io/v1",
            "gateway.networking.k8s.io/v1beta1",
        ],
        route::decode_http,
    ),
    (
        "GRPCRoute",
        &["gateway.networking.k8s.io/v1"],
        route::decode_grpc,
    ),
    (
        "TCPRoute",
        &[
            "gateway.networking.k8s.io/v1alpha2",
            "gateway.networking.k8s.io/v1",
        ],
        route::decode_tcp,
    ),
    (
        "ReferenceGrant",
        &[
            "gateway.networking.k8s.io/v1beta1",
            "gateway.networking.k8s.io/v1",
        ],
        policy::decode_grant,
    ),
    ("MeshConfig", &["weft.dev/v1alpha1"], policy::decode_mesh),
    ("Workload", &["weft.dev/v1alpha1"], workload::decode),
    (
        "TrafficPolicy",
        &["weft.dev/v1alpha1"],
        policy::decode_traffic,
    ),
];

/// The metadata of a document.
#[derive(Debug, Default)]
pub(crate) struct Meta {
    namespace: String,
    name: String,
    labels: std::collections::BTreeMap<String, String>,
    created: Option<i64>,
}

/// How many documents a file has.
pub(crate) fn count_documents(text: &str) -> usize {
    yaml::documents(text).len()
}

/// Reads all documents of a file.
pub(crate) fn parse_file(file: &Arc<str>, text: &str) -> Vec<Parsed> {
    yaml::documents(text)
        .into_iter()
        .map(|(lines_before, text)| parse_document(file, text, lines_before))
        .collect()
}

/// Reads one document that starts after `lines_before` lines of its file.
pub(crate) fn parse_document(file: &Arc<str>, text: &str, lines_before: u32) -> Parsed {
    let mut error = match yaml::parse(text, lines_before) {
        Ok(node) => return decode(file, text, lines_before, &node),
        Err(error) => error,
    };
    clip(&mut error.message);
    Parsed {
        id: None,
        document: None,
        diagnostics: vec![Diagnostic {
            level: Level::Error,
            file: file.to_string(),
            line: error.at.line,
            column: error.at.column,
            kind: String::new(),
            name: String::new(),
            field: String::new(),
            message: error.message,
            help: String::new(),
            in_force: None,
        }],
    }
}

fn decode(file: &Arc<str>, text: &str, lines_before: u32, node: &yaml::Node) -> Parsed {
    let problems = Problems::default();
    let root = Field::root(node, &problems);
    let (id, found) = decode_root(&root);
    let mut problems = problems.into_inner();
    let (kind, name) = id.as_ref().map_or_else(Default::default, |id: &Id| {
        (id.kind.to_owned(), format!("{}/{}", id.namespace, id.name))
    });
    let good = problems.iter().all(|problem| problem.level != Level::Error);
    if !good {
        // What only looks odd may be a consequence of what is wrong.
        problems.retain(|problem| problem.level == Level::Error);
    }
    let document = match (&id, found) {
        (Some(id), Some((content, references))) if good => Some(Arc::new(Document {
            file: Arc::clone(file),
            at: node.at,
            id: id.clone(),
            text: Arc::from(text),
            lines_before,
            content,
            references,
        })),
        _ => None,
    };
    let diagnostics = problems
        .into_iter()
        .map(|problem| Diagnostic {
            level: problem.level,
            file: file.to_string(),
            line: problem.at.line,
            column: problem.at.column,
            kind: kind.clone(),
            name: name.clone(),
            field: problem.field,
            message: problem.message,
            help: problem.help,
            in_force: None,
        })
        .collect();
    Parsed {
        id,
        document,
        diagnostics,
    }
}

fn decode_root(root: &Field<'_>) -> (Option<Id>, Option<(Content, Vec<Reference>)>) {
    let Some(object) = root.object() else {
        return (None, None);
    };
    let version = object
        .required("apiVersion")
        .and_then(|f| Some((f.text()?, f)));
    let kind = object.required("kind").and_then(|f| Some((f.text()?, f)));
    let (Some((version, version_field)), Some((kind, kind_field))) = (version, kind) else {
        return (None, None);
    };
    let Some((kind, versions, decode)) = KINDS.iter().find(|(name, _, _)| *name == kind) else {
        let names: Vec<&str> = KINDS.iter().map(|(name, _, _)| *name).collect();
        let known = format!("the kinds are {}", names.join(", "));
        let help = match closest(kind, &names) {
            Some(name) => format!("did you mean `{name}`? {known}"),
            None => known,
        };
        kind_field.error(format!("`{kind}` is not a known kind"), help);
        return (None, None);
    };
    if !versions.contains(&version) {
        version_field.error(
            format!("`{version}` is not a known version of {kind}"),
            format!("use `{}`", versions[0]),
        );
    }
    let Some(meta) = metadata(&object) else {
        return (None, None);
    };
    object.harmless(&["status"]);
    let (content, references) = decode(&object, &meta);
    object.finish();
    let id = Id {
        kind,
        namespace: meta.namespace,
        name: meta.name,
    };
    (Some(id), content.map(|content| (content, references)))
}

fn metadata(object: &Object<'_>) -> Option<Meta> {
    let meta = object.required("metadata")?.object()?;
    let mut out = Meta {
        namespace: "default".to_owned(),
        ..Meta::default()
    };
    let name = meta.required("name").and_then(|f| Some((f.text()?, f)));
    if let Some(namespace) = meta.optional("namespace") {
        label(&namespace)
            .unwrap_or_default()
            .clone_into(&mut out.namespace);
    }
    if let Some(labels) = meta.optional("labels") {
        out.labels = labels.labels();
    }
    if let Some(created) = meta.optional("creationTimestamp")
        && let Some(text) = created.text()
    {
        match OffsetDateTime::parse(text, &Rfc3339) {
            Ok(time) => out.created = Some(time.unix_timestamp()),
            Err(_) => created.error(
                format!("`{text}` is not a time"),
                "write it as 2026-01-31T12:00:00Z",
            ),
        }
    }
    meta.harmless(&[
        "annotations",
        "uid",
        "resourceVersion",
        "generation",
        "managedFields",
        "ownerReferences",
        "finalizers",
    ]);
    meta.finish();
    let (name, field) = name?;
    if !check::is_object_name(name) {
        field.error(
            format!("`{name}` is not a valid name"),
            "use lower-case letters, digits, `-` and `.`",
        );
    }
    name.clone_into(&mut out.name);
    Some(out)
}

/// A name of one DNS label: a namespace, a service, a port.
fn label<'a>(field: &Field<'a>) -> Option<&'a str> {
    let text = field.text()?;
    if check::is_label(text) {
        return Some(text);
    }
    field.error(
        format!("`{text}` is not a valid name"),
        "use at most 63 lower-case letters, digits and `-`, no `-` at the ends",
    );
    None
}

/// A Gateway API duration.
fn duration(field: &Field<'_>) -> Option<std::time::Duration> {
    let text = field.text()?;
    let duration = check::duration(text);
    if duration.is_none() {
        field.error(
            format!("`{text}` is not a duration"),
            "write whole numbers with h, m, s or ms, for example 500ms or 1m30s",
        );
    }
    duration
}
