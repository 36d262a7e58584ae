//! What the labels and annotations of a pod say about its sidecar. Every `weft.dev/` key that
//! is accepted has an effect; every other one is an error.

use weft_proxy::bootstrap;
use weft_proxy::capture::Cidr;

use super::problem::{Problem, Report};
use super::yaml::Node;

/// The prefix of all our labels and annotations.
pub(crate) const PREFIX: &str = "weft.dev/";
/// The annotation that `inject` leaves behind; what it holds is in [`super::pod`].
pub(crate) const INJECTED: &str = "weft.dev/injected";
const INJECT: &str = "weft.dev/inject";

/// Annotations that are followed, without the prefix.
const ANNOTATIONS: &[&str] = &[
    "skip-inbound-ports",
    "skip-outbound-ports",
    "skip-outbound-cidrs",
    "cpu",
    "memory",
    "log",
    "access-log",
    "shutdown-grace",
    "classic-sidecar",
    "proxy-image",
    "capture",
    "mode",
];

/// Annotations that are known and refused, because nothing would follow them.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    (
        "opaque-ports",
        "declare the port in its Service instead: `appProtocol: tcp`",
    ),
    (
        "mtls",
        "set it for the mesh instead: `spec.mtls.mode` of the MeshConfig",
    ),
];
const PROTOCOL: &str = "protocol.";
const PROTOCOL_HELP: &str =
    "declare it in the Service instead: `appProtocol: http`, `grpc`, `kubernetes.io/h2c` or `tcp`";

/// Ports that the sidecar of a pod listens on.
pub(crate) const SIDECAR_PORTS: [u16; 5] = [14000, 14001, 14006, 14020, 14053];
/// The longest list of ports or networks.
const MAX_LIST: usize = 64;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Ports of the application that do not pass the sidecar.
    pub skip_inbound: Vec<u16>,
    /// Ports that the application reaches without the sidecar.
    pub skip_outbound: Vec<u16>,
    /// Networks that the application reaches without the sidecar.
    pub skip_cidrs: Vec<String>,
    /// CPU of the sidecar.
    pub cpu: Amount,
    /// Memory of the sidecar.
    pub memory: Amount,
    /// The filter of its log.
    pub log: Option<String>,
    /// Its access log.
    pub access_log: Option<String>,
    /// How many seconds open streams have at the end.
    pub grace: Option<u64>,
    /// How it is put into the pod.
    pub shape: Shape,
    /// Its image, if not the usual one.
    pub image: Option<String>,
    /// Further settings of the sidecar, by variable.
    pub env: Vec<(String, String)>,
    /// How connections reach it.
    pub capture: Capture,
}

/// A request and perhaps a limit, as quantities of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Amount {
    /// What is reserved.
    pub request: String,
    /// What is allowed.
    pub limit: Option<String>,
}

/// How a sidecar is put into a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// An init container that keeps running; Kubernetes 1.29.
    Native,
    /// A container beside the application's.
    Classic,
}

/// How connections reach the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capture {
    /// Redirected.
    Redirect,
    /// Redirected, and the application sees the address of its caller.
    Tproxy,
    /// Not at all.
    Off,
}

impl Capture {
    /// As `WEFT_PROXY_CAPTURE` has it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::Tproxy => "tproxy",
            Self::Off => "off",
        }
    }
}

/// Whether the label of a pod or namespace asks for a sidecar; without the label it may have
/// one.
pub(crate) fn wanted(metadata: Option<&Node>) -> Result<bool, Problem> {
    let label = metadata.and_then(|metadata| metadata.at(&["labels", INJECT]));
    match label.map(|label| label.as_text()) {
        None | Some(Some("enabled")) => Ok(true),
        Some(Some("disabled")) => Ok(false),
        Some(_) => Err(Problem::new(format!(
            "metadata.labels[{INJECT}] is neither `enabled` nor `disabled`"
        ))),
    }
}

impl Settings {
    /// Reads the metadata of a pod. What is wrong is reported, and replaced by its default.
    pub(crate) fn read(metadata: Option<&Node>, report: &mut Report) -> Self {
        let mut settings = Self {
            skip_inbound: Vec::new(),
            skip_outbound: Vec::new(),
            skip_cidrs: Vec::new(),
            cpu: Amount::request("10m"),
            memory: Amount::request("32Mi"),
            log: None,
            access_log: None,
            grace: None,
            shape: Shape::Native,
            image: None,
            env: Vec::new(),
            capture: Capture::Redirect,
        };
        let Some(metadata) = metadata else {
            return settings;
        };
        labels(metadata, report);
        let mut mode = None;
        for entry in entries(metadata, "annotations") {
            let Some(key) = entry.key.strip_prefix(PREFIX) else {
                continue;
            };
            if entry.key == INJECTED {
                continue;
            }
            match entry.value.as_text() {
                Some(value) => {
                    if let Err(problem) = settings.apply(key, value.trim(), &mut mode) {
                        report.error(problem.at(format!("metadata.annotations[{}]", entry.key)));
                    }
                }
                None => report.error(
                    Problem::new(format!("metadata.annotations[{}] is no text", entry.key))
                        .help("annotations are text: put it in quotes"),
                ),
            }
        }
        settings.combine(mode, report);
        settings
    }

    fn apply(&mut self, key: &str, value: &str, mode: &mut Option<Capture>) -> Result<(), Problem> {
        match key {
            "skip-inbound-ports" => self.skip_inbound = ports(value)?,
            "skip-outbound-ports" => self.skip_outbound = ports(value)?,
            "skip-outbound-cidrs" => self.skip_cidrs = cidrs(value)?,
            "cpu" => self.cpu = amount(value, "cpu, as in 100m or 100m:1")?,
            "memory" => self.memory = amount(value, "memory, as in 64Mi or 64Mi:256Mi")?,
            "log" if value.is_empty() => {
                return Err(Problem::new("is empty").help("a filter, as in warn,weft_proxy=debug"));
            }
            "log" => self.log = Some(value.to_owned()),
            "access-log" => self.access_log = Some(one_of(value, &["off", "errors", "all"])?),
            "shutdown-grace" => self.grace = Some(seconds(value)?),
            "classic-sidecar" => {
                self.shape = match one_of(value, &["true", "false"])?.as_str() {
                    "true" => Shape::Classic,
                    _ => Shape::Native,
                }
            }
            "proxy-image" => self.image = Some(image(value).map_err(Problem::new)?),
            "capture" if value == "cni" => {
                return Err(
                    Problem::new("`cni` is not supported: there is no CNI plugin yet")
                        .help("use `init` (the default), or `off`"),
                );
            }
            "capture" => {
                if one_of(value, &["init", "off"])? == "off" {
                    self.capture = Capture::Off;
                }
            }
            "mode" => {
                *mode = Some(match one_of(value, &["redirect", "tproxy"])?.as_str() {
                    "tproxy" => Capture::Tproxy,
                    _ => Capture::Redirect,
                })
            }
            _ => return self.apply_other(key, value),
        }
        Ok(())
    }

    fn apply_other(&mut self, key: &str, value: &str) -> Result<(), Problem> {
        if let Some(name) = key.strip_prefix("env.") {
            self.env.push((variable(name)?, value.to_owned()));
            return Ok(());
        }
        if key.starts_with(PROTOCOL) {
            return Err(Problem::new("has no effect yet").help(PROTOCOL_HELP));
        }
        if let Some((_, help)) = WITHOUT_EFFECT.iter().find(|(known, _)| *known == key) {
            return Err(Problem::new("has no effect yet").help(*help));
        }
        if key == "inject" {
            return Err(Problem::new("is a label, not an annotation")
                .help("move it to metadata.labels, where a webhook can select by it"));
        }
        let problem = Problem::new("is no annotation of Weft");
        Err(match closest(key, ANNOTATIONS) {
            Some(known) => problem.help(format!("did you mean `{PREFIX}{known}`?")),
            None => problem.help(format!(
                "there are {} and env.<NAME>",
                ANNOTATIONS.join(", ")
            )),
        })
    }

    fn combine(&mut self, mode: Option<Capture>, report: &mut Report) {
        if self.capture != Capture::Off {
            self.capture = mode.unwrap_or(Capture::Redirect);
            return;
        }
        let unused = [
            ("mode", mode.is_some()),
            ("skip-inbound-ports", !self.skip_inbound.is_empty()),
            ("skip-outbound-ports", !self.skip_outbound.is_empty()),
            ("skip-outbound-cidrs", !self.skip_cidrs.is_empty()),
        ];
        for (key, is_there) in unused {
            if is_there {
                report.error(
                    Problem::new(format!(
                        "metadata.annotations[{PREFIX}{key}] has no effect with `{PREFIX}capture: off`"
                    ))
                    .help("leave one of the two out"),
                );
            }
        }
    }
}

impl Amount {
    fn request(text: &str) -> Self {
        Self {
            request: text.to_owned(),
            limit: None,
        }
    }
}

/// Reports keys of ours that stand where nobody looks: on the object around the pod.
pub(crate) fn misplaced(metadata: Option<&Node>, path: &str, report: &mut Report) {
    let Some(metadata) = metadata else { return };
    for kind in ["labels", "annotations"] {
        for entry in entries(metadata, kind) {
            if entry.key.starts_with(PREFIX) {
                report.error(
                    Problem::new(format!("metadata.{kind}[{}] has no effect here", entry.key))
                        .help(format!("move it to {path}.metadata.{kind}")),
                );
            }
        }
    }
}

/// Warns of what others would follow, which is not followed.
pub(crate) fn foreign(metadata: Option<&Node>, report: &mut Report) {
    const OTHERS: &[(&str, &str)] = &[
        ("linkerd.io", "Linkerd"),
        ("istio.io", "Istio"),
        ("kuma.io", "Kuma"),
        ("consul.hashicorp.com", "Consul"),
    ];
    let Some(metadata) = metadata else { return };
    for entry in entries(metadata, "annotations").chain(entries(metadata, "labels")) {
        let Some((domain, _)) = entry.key.split_once('/') else {
            continue;
        };
        let owner = OTHERS
            .iter()
            .find(|(name, _)| domain == *name || domain.ends_with(&format!(".{name}")));
        if let Some((_, owner)) = owner {
            report.warn(format!("`{}` is of {owner} and is not followed", entry.key));
        }
    }
}

fn labels(metadata: &Node, report: &mut Report) {
    for entry in entries(metadata, "labels") {
        let Some(key) = entry.key.strip_prefix(PREFIX) else {
            continue;
        };
        if entry.key == INJECT {
            continue;
        }
        let problem = Problem::new(format!(
            "metadata.labels[{}] is no label of Weft",
            entry.key
        ));
        let is_annotation = ANNOTATIONS.contains(&key) || key.starts_with("env.");
        report.error(if is_annotation {
            problem.help("it is an annotation: move it to metadata.annotations")
        } else {
            problem.help(format!("the only one is `{INJECT}: enabled` or `disabled`"))
        });
    }
}

fn entries<'a>(
    metadata: &'a Node,
    kind: &str,
) -> impl Iterator<Item = &'a super::yaml::Entry> + use<'a> {
    metadata.get(kind).into_iter().flat_map(Node::entries)
}

fn ports(value: &str) -> Result<Vec<u16>, Problem> {
    let mut ports = Vec::new();
    for item in items(value)? {
        let port = item.parse().ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| {
            Problem::new(format!("`{item}` is no port")).help("numbers with commas, as in 25,3306")
        })?;
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    match ports.iter().find(|port| SIDECAR_PORTS.contains(port)) {
        Some(port) => Err(Problem::new(format!("{port} is a port of the sidecar"))
            .help("leave it out: the sidecar's own ports are never captured")),
        None => Ok(ports),
    }
}

fn cidrs(value: &str) -> Result<Vec<String>, Problem> {
    let networks = items(value)?.into_iter().map(|item| {
        let network: Cidr = item.parse().map_err(Problem::new)?;
        Ok(network.to_string())
    });
    networks.collect()
}

fn items(value: &str) -> Result<Vec<&str>, Problem> {
    let items: Vec<&str> = value.split(',').map(str::trim).collect();
    if items.len() > MAX_LIST {
        return Err(Problem::new(format!("has more than {MAX_LIST} elements")));
    }
    Ok(items)
}

fn one_of(value: &str, words: &[&str]) -> Result<String, Problem> {
    if words.contains(&value) {
        return Ok(value.to_owned());
    }
    let problem = Problem::new(format!("`{value}` is not {}", words.join(" or ")));
    Err(match closest(value, words) {
        Some(word) => problem.help(format!("did you mean `{word}`?")),
        None => problem,
    })
}

fn seconds(value: &str) -> Result<u64, Problem> {
    let number = value.strip_suffix('s').unwrap_or(value);
    let seconds = number.parse().ok().filter(|seconds| *seconds <= 3600);
    seconds.ok_or_else(|| {
        Problem::new(format!("`{value}` is no number of seconds from 0 to 3600"))
            .help("write it like 30 or 30s")
    })
}

/// Checks the name of an image as far as a typing mistake goes.
pub(crate) fn image(value: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    if value.is_empty() || !value.chars().all(good) || value.starts_with([':', '/', '@']) {
        return Err(format!(
            "`{value}` is no image: write it like registry.example/weft-proxy:0.1.0"
        ));
    }
    Ok(value.to_owned())
}

fn amount(value: &str, what: &str) -> Result<Amount, Problem> {
    let wrong = |text: &str| Problem::new(format!("`{text}` is no amount of {what}"));
    let (request, limit) = match value.split_once(':') {
        Some((request, limit)) => (request, Some(limit)),
        None => (value, None),
    };
    let least = quantity(request).ok_or_else(|| wrong(request))?;
    if let Some(limit) = limit {
        let most = quantity(limit).ok_or_else(|| wrong(limit))?;
        if most < least {
            return Err(Problem::new(format!(
                "the limit {limit} is below the request {request}"
            )));
        }
    }
    Ok(Amount {
        request: request.to_owned(),
        limit: limit.map(str::to_owned),
    })
}

/// The value of a quantity of Kubernetes; `None` if it is none, or not positive.
fn quantity(text: &str) -> Option<f64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let factor = match unit {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    (number > 0.0).then_some(number * factor)
}

/// Variables that `inject` sets, or relies on.
const OWN: &[&str] = &[
    "WORKLOAD",
    "CONTROL",
    "TOKEN",
    "TOKEN_FILE",
    "STATE",
    "REGISTER",
    "ADDRESSES",
    "LABELS",
    "PORTS",
    "CAPTURE",
    "INBOUND_PORTS",
    "EXCLUDE_INBOUND",
    "PROBES",
    "TCP_PROBES",
    "GRPC_PROBES",
    "EXIT_AFTER",
    "GRACE",
    "ACCESS_LOG",
    "ADMIN",
    "PUBLIC_ADMIN",
];

/// Checks the variable of an `env.<NAME>` annotation.
fn variable(name: &str) -> Result<String, Problem> {
    let known: Vec<&str> = bootstrap::names()
        .filter(|setting| !OWN.contains(setting))
        .collect();
    let list = || {
        let names: Vec<String> = known.iter().map(|n| format!("WEFT_PROXY_{n}")).collect();
        names.join(", ")
    };
    let Some(setting) = name.strip_prefix("WEFT_PROXY_") else {
        return Err(Problem::new("is no setting of the sidecar").help(format!("use {}", list())));
    };
    if known.contains(&setting) {
        return Ok(name.to_owned());
    }
    if OWN.contains(&setting) {
        return Err(Problem::new("is decided by `weft inject`").help(format!("use {}", list())));
    }
    Err(match closest(setting, &known) {
        Some(word) => Problem::new("is no setting of the sidecar")
            .help(format!("did you mean `{PREFIX}env.WEFT_PROXY_{word}`?")),
        None => Problem::new("is no setting of the sidecar").help(format!("use {}", list())),
    })
}

/// The word that was probably meant.
pub(crate) fn closest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let near = candidates
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), *candidate));
    let (distance, candidate) = near.min()?;
    (distance <= 1 + word.chars().count() / 4).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::super::yaml::parse;
    use super::*;

    fn read(metadata: &str) -> (Settings, Vec<String>) {
        let document = parse(metadata).unwrap().unwrap();
        let mut report = Report::default();
        let settings = Settings::read(Some(&document.root), &mut report);
        (settings, report.lines())
    }

    fn annotation(line: &str) -> (Settings, Vec<String>) {
        read(&format!("annotations: {{{PREFIX}{line}}}"))
    }

    #[test]
    fn annotations_are_followed() {
        let (settings, report) = read(
            "labels: {app: web, weft.dev/inject: enabled}
annotations:
  weft.dev/skip-inbound-ports: '9999, 9998'
  weft.dev/skip-outbound-ports: '25'
  weft.dev/skip-outbound-cidrs: 10.0.0.0/8,fd00::/8
  weft.dev/cpu: '100m:1'
  weft.dev/memory: 64Mi
  weft.dev/log: debug
  weft.dev/access-log: all
  weft.dev/shutdown-grace: 20s
  weft.dev/classic-sidecar: 'true'
  weft.dev/proxy-image: r.example:5000/weft-proxy@sha256:00
  weft.dev/env.WEFT_PROXY_WORKERS: '2'
  weft.dev/capture: init
  weft.dev/mode: tproxy
  weft.dev/injected: whatever
  other/key: 1
",
        );
        assert_eq!(report, Vec::<String>::new());
        let amount = |request: &str, limit: Option<&str>| Amount {
            request: request.to_owned(),
            limit: limit.map(str::to_owned),
        };
        let expect = Settings {
            skip_inbound: vec![9999, 9998],
            skip_outbound: vec![25],
            skip_cidrs: vec!["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()],
            cpu: amount("100m", Some("1")),
            memory: amount("64Mi", None),
            log: Some("debug".to_owned()),
            access_log: Some("all".to_owned()),
            grace: Some(20),
            shape: Shape::Classic,
            image: Some("r.example:5000/weft-proxy@sha256:00".to_owned()),
            env: vec![("WEFT_PROXY_WORKERS".to_owned(), "2".to_owned())],
            capture: Capture::Tproxy,
        };
        assert_eq!(settings, expect);
    }

    #[test]
    fn each_mistake_is_named_with_its_fix() {
        for (line, expect) in [
            (
                "skip-inbound-port: '1'",
                "no annotation of Weft | did you mean `weft.dev/skip-inbound-ports`?",
            ),
            (
                "quantum: '1'",
                "no annotation of Weft | there are skip-inbound-ports",
            ),
            (
                "skip-inbound-ports: 8080",
                "is no text | annotations are text",
            ),
            (
                "skip-inbound-ports: '80,x'",
                "`x` is no port | numbers with commas",
            ),
            ("skip-outbound-ports: '0'", "`0` is no port"),
            (
                "skip-outbound-ports: '14020'",
                "14020 is a port of the sidecar",
            ),
            (
                "skip-outbound-cidrs: '10.0.0.0/8,x'",
                "`x` is no network; write one as in",
            ),
            (
                "skip-outbound-cidrs: 10.0.0.0/33",
                "`10.0.0.0/33` is no network",
            ),
            (
                "skip-outbound-cidrs: 10.0.0.1/8",
                "has bits after its prefix",
            ),
            (
                "opaque-ports: '3306'",
                "has no effect yet | declare the port in its Service",
            ),
            (
                "protocol.3306: tcp",
                "has no effect yet | declare it in the Service",
            ),
            ("mtls: strict", "has no effect yet | set it for the mesh"),
            (
                "cpu: lots",
                "`lots` is no amount of cpu, as in 100m or 100m:1",
            ),
            ("cpu: '2:1'", "the limit 1 is below the request 2"),
            ("memory: 0Mi", "`0Mi` is no amount of memory"),
            ("log: ''", "is empty | a filter"),
            (
                "access-log: al",
                "`al` is not off or errors or all | did you mean `all`?",
            ),
            (
                "shutdown-grace: 1h",
                "`1h` is no number of seconds from 0 to 3600",
            ),
            ("classic-sidecar: 'yes'", "`yes` is not true or false"),
            ("proxy-image: 'a b'", "`a b` is no image"),
            ("capture: cni", "there is no CNI plugin yet | use `init`"),
            ("mode: tproxi", "did you mean `tproxy`?"),
            ("inject: enabled", "is a label, not an annotation | move it"),
            (
                "env.FOO: x",
                "is no setting of the sidecar | use WEFT_PROXY_",
            ),
            (
                "env.WEFT_PROXY_WORKER: '2'",
                "did you mean `weft.dev/env.WEFT_PROXY_WORKERS`?",
            ),
            (
                "env.WEFT_PROXY_WORKLOAD: a/b",
                "is decided by `weft inject`",
            ),
        ] {
            let (_, report) = annotation(line);
            assert_eq!(report.len(), 1, "{line}: {report:?}");
            assert!(report[0].contains(expect), "{line}: {}", report[0]);
        }
    }

    #[test]
    fn labels_are_checked() {
        for (labels, expect) in [
            ("weft.dev/injct: enabled", "the only one is"),
            ("weft.dev/cpu: 10m", "it is an annotation"),
        ] {
            let (_, report) = read(&format!("labels: {{{labels}}}"));
            assert!(report[0].contains(expect), "{report:?}");
        }
        let label = |value: &str| {
            let text = format!("labels: {{weft.dev/inject: {value}}}");
            wanted(Some(&parse(&text).unwrap().unwrap().root))
        };
        assert_eq!(label("enabled").ok(), Some(true));
        assert_eq!(label("disabled").ok(), Some(false));
        assert!(label("true").is_err() && label("\"true\"").is_err());
        assert_eq!(wanted(None).ok(), Some(true));
    }

    #[test]
    fn capture_off_takes_no_other_word_on_capture() {
        let off = "annotations: {weft.dev/capture: 'off'";
        let (settings, report) = read(&format!("{off}}}"));
        assert_eq!((settings.capture, report.len()), (Capture::Off, 0));
        for other in [
            "mode: tproxy",
            "skip-inbound-ports: '1'",
            "skip-outbound-ports: '1'",
            "skip-outbound-cidrs: 10.0.0.0/8",
        ] {
            let (_, report) = read(&format!("{off}, weft.dev/{other}}}"));
            assert!(report[0].contains("has no effect with"), "{report:?}");
        }
    }

    #[test]
    fn others_are_reported_and_misplaced_keys_too() {
        let metadata = "labels: {sidecar.istio.io/inject: 'true', app: x}
annotations: {linkerd.io/inject: enabled, notistio.io/x: y, weft.dev/cpu: 10m}";
        let metadata = parse(metadata).unwrap().unwrap().root;
        let mut report = Report::default();
        foreign(Some(&metadata), &mut report);
        assert_eq!(
            report.lines(),
            [
                "warning: `linkerd.io/inject` is of Linkerd and is not followed",
                "warning: `sidecar.istio.io/inject` is of Istio and is not followed",
            ]
        );
        let mut report = Report::default();
        misplaced(Some(&metadata), "spec.template", &mut report);
        assert_eq!(
            report.lines(),
            [
                "error: metadata.annotations[weft.dev/cpu] has no effect here | move it to spec.template.metadata.annotations"
            ]
        );
    }

    #[test]
    fn what_inject_sets_are_settings_of_the_sidecar() {
        for name in OWN {
            let known = bootstrap::names().any(|setting| setting == *name);
            assert!(known, "WEFT_PROXY_{name} is no setting of the sidecar");
        }
    }
}
