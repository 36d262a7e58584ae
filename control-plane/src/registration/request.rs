//! What a sidecar says of itself, and its checks: those of a Workload document, by the code
//! that reads documents. Errors name the fields as the sidecar wrote them.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use weft_api::envoy::config::core::v3::Node;
use weft_api::google::protobuf as pb;

use crate::cache::Workload;
use crate::config::{At, Content, Document, Level, parse_document};

/// The key in `Node.metadata`.
const METADATA_KEY: &str = "weft.dev";
/// How many labels a workload may register.
const MAX_LABELS: usize = 64;
/// The longest key of a label in Kubernetes: a DNS name, a slash, 63 characters.
const MAX_LABEL_KEY: usize = 317;
const MAX_LABEL_VALUE: usize = 63;
/// A workload has one address, and additional ones.
const MAX_ADDRESSES: usize = 9;
/// How deep the values of a registration may nest.
const MAX_DEPTH: usize = 4;
/// How many errors are told.
const MAX_ERRORS: usize = 5;
/// Where findings about a registered workload are said to be.
const SOURCE: &str = "registered";

/// What one sidecar says of itself: a Workload.
#[derive(Debug)]
pub struct Registration {
    workload: Workload,
    service_account: String,
    addresses: Vec<IpAddr>,
    /// As the sidecar wrote it; what is stored, and what decides whether two are the same.
    values: Value,
    document: Arc<Document>,
}

/// What is wrong with a registration; the text names the fields.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid(Vec<String>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0[..self.0.len().min(MAX_ERRORS)].join("; "))?;
        match self.0.len().saturating_sub(MAX_ERRORS) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// What a node says of itself, if it asks to be registered.
#[must_use]
pub fn asked(node: &Node) -> Option<Value> {
    let value = node.metadata.as_ref()?.fields.get(METADATA_KEY)?;
    let value = json_of(value, 0);
    (value.get("register") == Some(&Value::Bool(true))).then_some(value)
}

impl Registration {
    /// Reads what a workload says of itself.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(
        namespace: &str,
        name: &str,
        service_account: &str,
        values: Value,
    ) -> Result<Self, Invalid> {
        let text = document(namespace, name, service_account, &values)?.to_string();
        let file: Arc<str> = Arc::from(SOURCE);
        let parsed = parse_document(&file, &text, 0);
        let errors = parsed
            .diagnostics
            .iter()
            .filter(|finding| finding.level == Level::Error);
        let errors: Vec<String> = errors
            .map(|finding| {
                let help = match finding.help.as_str() {
                    "" => String::new(),
                    help => format!(" ({help})"),
                };
                error(
                    &field(&finding.field),
                    &format!("{}{help}", finding.message),
                )
            })
            .collect();
        let document = parsed.document.as_deref().filter(|_| errors.is_empty());
        let Some(Document {
            id,
            content: Content::Workload(workload),
            ..
        }) = document
        else {
            return Err(Invalid(errors));
        };
        let document = Document {
            file,
            at: At::default(),
            id: id.clone(),
            text: Arc::from(text),
            lines_before: 0,
            content: Content::Workload(workload.clone()),
            references: Vec::new(),
        };
        Ok(Self {
            workload: (namespace.to_owned(), name.to_owned()),
            service_account: service_account.to_owned(),
            addresses: workload.addresses().collect(),
            values,
            document: Arc::new(document),
        })
    }

    /// Its namespace and name.
    #[must_use]
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// The service account of its certificate.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// Where its peers reach it.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// As the sidecar wrote it.
    pub(super) fn values(&self) -> &Value {
        &self.values
    }

    pub(super) fn document(&self) -> &Arc<Document> {
        &self.document
    }

    /// Whether two are of one identity.
    pub(super) fn same_identity(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }

    /// Namespace and service account.
    pub(super) fn identity(&self) -> (&str, &str) {
        (&self.workload.0, &self.service_account)
    }

    /// Whether two say the same.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.same_identity(other) && self.values == other.values
    }
}

/// The Workload document of a registration, as JSON, which is YAML.
fn document(
    namespace: &str,
    name: &str,
    service_account: &str,
    values: &Value,
) -> Result<Value, Invalid> {
    let mut errors = Vec::new();
    let mut spec = json!({ "serviceAccount": service_account });
    let mut labels = Value::Object(Map::new());
    for (key, value) in values.as_object().into_iter().flatten() {
        match key.as_str() {
            "register" => {}
            "addresses" => match value.as_array().map(Vec::as_slice) {
                Some([first, rest @ ..]) if rest.len() < MAX_ADDRESSES => {
                    spec["address"] = first.clone();
                    if !rest.is_empty() {
                        spec["additionalAddresses"] = rest.into();
                    }
                }
                _ => errors.push(error(
                    "addresses",
                    &format!("a workload has a list of 1 to {MAX_ADDRESSES} addresses"),
                )),
            },
            "labels" => match check_labels(value) {
                Ok(()) => labels = value.clone(),
                Err(message) => errors.push(error("labels", &message)),
            },
            "ports" => {
                let mut ports = value.clone();
                let objects = ports.as_array_mut().into_iter().flatten();
                for port in objects.filter_map(Value::as_object_mut) {
                    // How the sidecar says that it has none.
                    if port.get("name").is_some_and(|name| name == "") {
                        port.remove("name");
                    }
                }
                spec["ports"] = ports;
            }
            // `off` is how the sidecar's setting says it.
            "capture" if [json!(""), json!("off"), Value::Null].contains(value) => {}
            "capture" => spec["capture"]["mode"] = value.clone(),
            "inboundPorts" => spec["capture"]["inboundPorts"] = value.clone(),
            "excludeInboundPorts" if value.as_array().is_some_and(Vec::is_empty) => {}
            "excludeInboundPorts" => spec["capture"]["excludeInboundPorts"] = value.clone(),
            _ => errors.push(error(
                &key.chars().take(64).collect::<String>(),
                "this control plane knows no such field; upgrade it before its sidecars",
            )),
        }
    }
    if values.get("addresses").is_none() {
        errors.push(error("addresses", "is missing"));
    }
    let capture = spec.get("capture").filter(|c| c.get("mode").is_none());
    for field in ["inboundPorts", "excludeInboundPorts"] {
        if capture.is_some_and(|c| c.get(field).is_some()) {
            errors.push(error(
                field,
                "needs `capture`: without it no port passes the sidecar by itself",
            ));
        }
    }
    if !errors.is_empty() {
        return Err(Invalid(errors));
    }
    Ok(json!({
        "apiVersion": "weft.dev/v1alpha1",
        "kind": "Workload",
        "metadata": { "namespace": namespace, "name": name, "labels": labels },
        "spec": spec,
    }))
}

fn check_labels(value: &Value) -> Result<(), String> {
    let labels = value.as_object().ok_or("expected a mapping of strings")?;
    if labels.len() > MAX_LABELS {
        return Err(format!(
            "{} labels; a workload may register {MAX_LABELS}",
            labels.len()
        ));
    }
    for (key, value) in labels {
        let shown: String = key.chars().take(64).collect();
        if key.is_empty() || key.len() > MAX_LABEL_KEY {
            return Err(format!(
                "the key `{shown}` has not 1 to {MAX_LABEL_KEY} bytes"
            ));
        }
        if value.as_str().is_some_and(|v| v.len() > MAX_LABEL_VALUE) {
            return Err(format!(
                "the value of `{shown}` has more than {MAX_LABEL_VALUE} bytes"
            ));
        }
    }
    Ok(())
}

fn error(field: &str, message: &str) -> String {
    if field == "node.id" {
        return format!("{field}: {message}");
    }
    format!("node.metadata[\"{METADATA_KEY}\"].{field}: {message}")
}

/// What the sidecar calls a field of the document.
fn field(document: &str) -> String {
    let path = document.strip_prefix("spec.").unwrap_or(document);
    if let Some(rest) = path.strip_prefix("additionalAddresses") {
        let (index, rest) = rest
            .strip_prefix('[')
            .and_then(|rest| rest.split_once(']'))
            .unwrap_or(("", rest));
        return match index.parse::<usize>() {
            Ok(index) => format!("addresses[{}]{rest}", index + 1),
            Err(_) => "addresses".to_owned(),
        };
    }
    for (from, to) in [
        ("metadata.labels", "labels"),
        ("metadata.name", "node.id"),
        ("capture.excludeInboundPorts", "excludeInboundPorts"),
        ("capture.inboundPorts", "inboundPorts"),
        ("capture.mode", "capture"),
        ("address", "addresses[0]"),
    ] {
        if let Some(rest) = path.strip_prefix(from) {
            return format!("{to}{rest}");
        }
    }
    path.to_owned()
}

/// A value of protobuf as JSON. Numbers that are whole stay whole; a field that is null is none.
fn json_of(value: &pb::Value, depth: usize) -> Value {
    use pb::value::Kind;
    match &value.kind {
        _ if depth > MAX_DEPTH => Value::Null,
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(*value),
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "checked to be whole and small"
        )]
        Some(Kind::NumberValue(number)) => {
            if number.fract() == 0.0 && number.abs() < 1e15 {
                json!(*number as i64)
            } else {
                json!(number)
            }
        }
        Some(Kind::ListValue(list)) => list
            .values
            .iter()
            .map(|value| json_of(value, depth + 1))
            .collect(),
        Some(Kind::StructValue(object)) => {
            let fields = object.fields.iter();
            let fields = fields.map(|(key, value)| (key.clone(), json_of(value, depth + 1)));
            Value::Object(fields.filter(|(_, value)| !value.is_null()).collect())
        }
    }
}
