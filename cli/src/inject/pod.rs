//! One pod: the sidecar in, the sidecar out. Putting it in takes out what is there first, so
//! that doing it twice, or with a newer version, is the same as doing it once.

use super::emit::inline;
use super::probes::{self, Plan};
use super::problem::{Problem, Report};
use super::settings::{self, Amount, Capture, INJECTED, SIDECAR_PORTS, Settings, Shape};
use super::yaml::{Node, list, map, number, parse, text, truth};

const INIT: &str = "weft-init";
const PROXY: &str = "weft-proxy";
const STATE: &str = "weft-state";
const JOIN: &str = "weft-join";
/// UID and GID of the sidecar: what capture leaves alone.
const PROXY_ID: u64 = 14020;
const PUBLIC_ADMIN: u64 = 14020;
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// What Kubernetes gives a pod that does not say.
const DEFAULT_TERMINATION_GRACE: u64 = 30;

/// How many labels and ports a workload can register.
const MAX_REGISTERED: usize = 64;

/// What is the same for all pods of one run.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The image of the sidecar.
    pub image: String,
    /// The control plane, `host:port`.
    pub control: String,
    /// The Secret with the join token, and its key.
    pub join: JoinSecret,
}

/// Where join tokens are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JoinSecret {
    /// The Secret; `{serviceAccount}` stands for the pod's.
    pub name: String,
    /// The key in it, likewise.
    pub key: String,
}

/// What stands around a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around<'a> {
    /// The kind of the object that makes the pod.
    pub kind: &'a str,
    /// The level that the namespace enforces on its pods, if it is known and matters.
    pub pod_security: Option<&'a str>,
}

/// What became of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It has a sidecar.
    Injected,
    /// It has none, and should not.
    LeftAlone,
}

/// Puts the sidecar into a pod template. With errors in the report the pod is not to be used.
pub(crate) fn inject(
    pod: &mut Node,
    around: Around<'_>,
    options: &Options,
    report: &mut Report,
) -> Outcome {
    let errors = report.errors.len();
    strip(pod, report);
    settings::foreign(pod.get("metadata"), report);
    match settings::wanted(pod.get("metadata")) {
        Ok(true) => {}
        Ok(false) => return Outcome::LeftAlone,
        Err(problem) => report.error(problem),
    }
    if cannot_have_one(pod, report) {
        return Outcome::LeftAlone;
    }
    let settings = Settings::read(pod.get("metadata"), report);
    check(pod, around, &settings, report);
    if report.errors.len() > errors {
        return Outcome::LeftAlone;
    }
    let spec = pod.map_at("spec");
    let (plan, replaced) = match settings.capture {
        Capture::Off => (Plan::default(), map::<String>([])),
        _ => probes::rewrite(spec, &settings.skip_inbound, report),
    };
    let workload = Workload::of(pod, &settings);
    let mut record = vec![("version", text(env!("CARGO_PKG_VERSION")))];
    let spec = pod.map_at("spec");
    add_volumes(spec, options);
    let sidecar = sidecar(&settings, &plan, &workload, options);
    let init = (settings.capture != Capture::Off).then(|| init(&settings, options));
    match settings.shape {
        Shape::Native => {
            let containers = init_containers(spec);
            containers.insert(0, sidecar);
            containers.splice(0..0, init);
        }
        Shape::Classic => {
            // The application's init containers run without a sidecar: they must not be captured.
            if let Some(init) = init {
                init_containers(spec).push(init);
            }
            let containers = spec.list_at("containers");
            let application = containers.first().and_then(|c| c.text_at(&["name"]));
            let application = application.unwrap_or_default().to_owned();
            containers.insert(0, sidecar);
            let annotations = pod.map_at("metadata").map_at("annotations");
            if annotations.get(DEFAULT_CONTAINER).is_none() {
                annotations.set(DEFAULT_CONTAINER, text(application));
                record.push(("added", list([text(DEFAULT_CONTAINER)])));
            }
        }
    }
    if !replaced.entries().is_empty() {
        record.push(("probes", replaced));
    }
    let annotations = pod.map_at("metadata").map_at("annotations");
    annotations.set(INJECTED, text(inline(&map(record))));
    Outcome::Injected
}

/// The init containers; new ones stand before the containers, as they start before them.
fn init_containers(spec: &mut Node) -> &mut Vec<Node> {
    const KEY: &str = "initContainers";
    if spec.get(KEY).is_none() {
        spec.remove_null(KEY);
        spec.list_at(KEY);
        let entries = spec.entries_mut();
        let at = entries.iter().position(|entry| entry.key == "containers");
        if let (Some(at), Some(entry)) = (at, entries.pop()) {
            entries.insert(at, entry);
        }
    }
    spec.list_at(KEY)
}

/// Takes the sidecar out of a pod template; whether there was one.
pub(crate) fn strip(pod: &mut Node, report: &mut Report) -> bool {
    let Some(record) = pod.at(&["metadata", "annotations", INJECTED]) else {
        return false;
    };
    let record = record.as_text().and_then(|text| parse(text).ok().flatten());
    let Some(record) = record.filter(|record| record.root.is_map()) else {
        report.error(
            Problem::new(format!("metadata.annotations[{INJECTED}] is damaged"))
                .help("take the manifest as it was before `weft inject`"),
        );
        return false;
    };
    let record = record.root;
    let spec = pod.map_at("spec");
    for (key, names) in [
        ("initContainers", [INIT, PROXY]),
        ("containers", [INIT, PROXY]),
        ("volumes", [STATE, JOIN]),
    ] {
        if spec.get(key).is_some() {
            let is_ours = |node: &Node| {
                let name = node.text_at(&["name"]);
                name.is_some_and(|name| names.contains(&name))
            };
            spec.list_at(key).retain(|node| !is_ours(node));
            spec.remove_if_empty(key);
        }
    }
    if let Some(replaced) = record.get("probes") {
        probes::restore(spec, replaced);
    }
    let metadata = pod.map_at("metadata");
    let annotations = metadata.map_at("annotations");
    annotations.remove(INJECTED);
    for added in record.get("added").into_iter().flat_map(Node::items) {
        annotations.remove(added.as_text().unwrap_or_default());
    }
    metadata.remove_if_empty("annotations");
    pod.remove_if_empty("metadata");
    true
}

/// Whether a pod cannot have a sidecar by its nature, which is no mistake.
fn cannot_have_one(pod: &Node, report: &mut Report) -> bool {
    let host = pod.at(&["spec", "hostNetwork"]).and_then(Node::as_bool);
    if host == Some(true) {
        report.warn(
            "not injected: hostNetwork pods share the node's network, where nothing is captured",
        );
        return true;
    }
    if pod.text_at(&["spec", "os", "name"]) == Some("windows") {
        report.warn("not injected: the sidecar does not run on Windows");
        return true;
    }
    false
}

/// Finds what makes a sidecar impossible.
fn check(pod: &Node, around: Around<'_>, settings: &Settings, report: &mut Report) {
    let Some(spec) = pod.get("spec") else {
        report.error(Problem::new("spec is missing: a pod needs one"));
        return;
    };
    if spec.get("containers").is_none_or(|c| c.items().is_empty()) {
        report.error(Problem::new("spec.containers is missing: a pod needs one"));
        return;
    }
    for key in ["initContainers", "containers"] {
        let containers = spec.get(key).into_iter().flat_map(Node::items);
        for (at, container) in containers.enumerate() {
            check_container(container, &format!("spec.{key}[{at}]"), report);
        }
    }
    for volume in spec.get("volumes").into_iter().flat_map(Node::items) {
        if let Some(name @ (STATE | JOIN)) = volume.text_at(&["name"]) {
            report.error(
                Problem::new(format!(
                    "the name of volume `{name}` is taken by the sidecar"
                ))
                .help("give it another name"),
            );
        }
    }
    check_identity(spec, "spec", report);
    if spec.at(&["shareProcessNamespace"]).and_then(Node::as_bool) == Some(true) {
        report.error(
            Problem::new("spec.shareProcessNamespace: the application could read the sidecar's private key through /proc")
                .help("remove it, or set the label weft.dev/inject: disabled"),
        );
    }
    let is_job = matches!(around.kind, "Job" | "CronJob");
    if is_job && settings.shape == Shape::Classic {
        report.error(
            Problem::new(format!(
                "a {} with a classic sidecar never completes: the sidecar goes on",
                around.kind
            ))
            .help("remove weft.dev/classic-sidecar (Kubernetes 1.29 and later), or set the label weft.dev/inject: disabled"),
        );
    }
    if let (Some(level), false) = (around.pod_security, settings.capture == Capture::Off) {
        report.error(
            Problem::new(format!(
                "its namespace enforces the pod security level `{level}`, which forbids the NET_ADMIN that capture needs"
            ))
            .help("set pod-security.kubernetes.io/enforce: privileged on the namespace, or weft.dev/capture: \"off\" on the pod"),
        );
    }
    check_registration(pod, settings, report);
    let termination = spec.get("terminationGracePeriodSeconds");
    let termination = termination.and_then(Node::as_number);
    let termination = termination.unwrap_or(DEFAULT_TERMINATION_GRACE);
    if let Some(grace) = settings.grace.filter(|grace| *grace > termination) {
        report.error(
            Problem::new(format!(
                "metadata.annotations[weft.dev/shutdown-grace]: {grace} is more than spec.terminationGracePeriodSeconds, {termination}: the pod would be killed first"
            ))
            .help(format!("set terminationGracePeriodSeconds: {} or more", grace + 5)),
        );
    }
}

/// What the control plane would refuse.
fn check_registration(pod: &Node, settings: &Settings, report: &mut Report) {
    let labels = pod.at(&["metadata", "labels"]);
    let labels = labels.map_or(0, |labels| labels.entries().len());
    let ports = declared_ports(pod, settings).len();
    for (what, number) in [
        ("metadata.labels", labels),
        ("spec.containers: ports", ports),
    ] {
        if number > MAX_REGISTERED {
            report.error(Problem::new(format!(
                "{what}: {number} are more than the {MAX_REGISTERED} that a workload can register"
            )));
        }
    }
    if settings.capture == Capture::Off && ports > 1 {
        report.error(
            Problem::new(format!(
                "metadata.annotations[weft.dev/capture]: without capture a pod can have one port, not {ports}"
            ))
            .help("declare only the port that the mesh serves, or leave capture on"),
        );
    }
}

fn check_container(container: &Node, path: &str, report: &mut Report) {
    const OTHERS: &[(&str, &str)] = &[
        ("istio-proxy", "Istio"),
        ("linkerd-proxy", "Linkerd"),
        ("kuma-sidecar", "Kuma"),
        ("consul-dataplane", "Consul"),
    ];
    match container.text_at(&["name"]) {
        None => report.error(Problem::new(format!("{path}.name is missing"))),
        Some(name @ (INIT | PROXY)) => report.error(
            Problem::new(format!("{path}: the name `{name}` is taken by the sidecar"))
                .help("give the container another name, or remove it if it was made by hand"),
        ),
        Some(name) => {
            if let Some((_, owner)) = OTHERS.iter().find(|(known, _)| *known == name) {
                report.error(
                    Problem::new(format!("{path}: `{name}` is the sidecar of {owner}"))
                        .help(format!("remove {owner} from the pod first: two sidecars cannot capture the same connections")),
                );
            }
        }
    }
    for port in container.get("ports").into_iter().flat_map(Node::items) {
        let number = port.get("containerPort").and_then(Node::as_number);
        let number = number.and_then(|number| u16::try_from(number).ok());
        if let Some(number) = number.filter(|number| SIDECAR_PORTS.contains(number)) {
            report.error(
                Problem::new(format!("{path}.ports: {number} is a port of the sidecar"))
                    .help("let the application listen on another port"),
            );
        }
    }
    check_identity(container, path, report);
}

fn check_identity(node: &Node, path: &str, report: &mut Report) {
    for key in ["runAsUser", "runAsGroup"] {
        let id = node.at(&["securityContext", key]).and_then(Node::as_number);
        if id == Some(PROXY_ID) {
            report.error(
                Problem::new(format!(
                    "{path}.securityContext.{key}: {PROXY_ID} is the sidecar's, whose connections are not captured"
                ))
                .help("choose another number"),
            );
        }
    }
}

/// What the sidecar tells the control plane of the pod.
struct Workload {
    labels: String,
    ports: String,
}

impl Workload {
    fn of(pod: &Node, settings: &Settings) -> Self {
        let labels = pod.at(&["metadata", "labels"]);
        let labels = labels.into_iter().flat_map(Node::entries);
        let labels: Vec<String> = labels
            .filter(|entry| !entry.key.starts_with(settings::PREFIX))
            .filter_map(|entry| Some(format!("{}={}", entry.key, entry.value.as_text()?)))
            .collect();
        Self {
            labels: labels.join(","),
            ports: declared_ports(pod, settings).join(","),
        }
    }
}

/// `name:port` or `port` of each TCP port that passes the sidecar.
fn declared_ports(pod: &Node, settings: &Settings) -> Vec<String> {
    let mut seen = settings.skip_inbound.clone();
    let mut ports = Vec::new();
    for path in [["spec", "containers"], ["spec", "initContainers"]] {
        let containers = pod.at(&path).into_iter().flat_map(Node::items);
        for port in containers
            .filter_map(|c| c.get("ports"))
            .flat_map(Node::items)
        {
            let number = port.get("containerPort").and_then(Node::as_number);
            let number = number.and_then(|number| u16::try_from(number).ok());
            let is_tcp = port.text_at(&["protocol"]).is_none_or(|p| p == "TCP");
            match number {
                Some(number) if is_tcp && !seen.contains(&number) => {
                    seen.push(number);
                    ports.push(match port.text_at(&["name"]) {
                        Some(name) => format!("{name}:{number}"),
                        None => number.to_string(),
                    });
                }
                _ => {}
            }
        }
    }
    ports
}

fn add_volumes(spec: &mut Node, options: &Options) {
    let account = spec
        .text_at(&["serviceAccountName"])
        .or_else(|| spec.text_at(&["serviceAccount"]));
    let account = account.unwrap_or("default").to_owned();
    let fill = |template: &str| template.replace("{serviceAccount}", &account);
    let state = map([("medium", text("Memory")), ("sizeLimit", text("64Mi"))]);
    let item = map([
        ("key", text(fill(&options.join.key))),
        ("path", text("token")),
    ]);
    let secret = map([
        ("secretName", text(fill(&options.join.name))),
        ("items", list([item])),
    ]);
    let volumes = spec.list_at("volumes");
    volumes.push(map([("name", text(STATE)), ("emptyDir", state)]));
    volumes.push(map([("name", text(JOIN)), ("secret", secret)]));
}

fn image<'a>(settings: &'a Settings, options: &'a Options) -> &'a str {
    settings.image.as_ref().unwrap_or(&options.image)
}

/// The init container that sets up the capture.
fn init(settings: &Settings, options: &Options) -> Node {
    let joined = |ports: &[u16]| {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        ports.join(",")
    };
    let mut args = vec![format!("--mode={}", settings.capture.word())];
    for (option, value) in [
        ("exclude-inbound-ports", joined(&settings.skip_inbound)),
        ("exclude-outbound-ports", joined(&settings.skip_outbound)),
        ("exclude-outbound-cidrs", settings.skip_cidrs.join(",")),
    ] {
        if !value.is_empty() {
            args.push(format!("--{option}={value}"));
        }
    }
    let command = ["/weft-proxy", "init"].map(str::to_owned);
    map([
        ("name", text(INIT)),
        ("image", text(image(settings, options))),
        ("command", list(command.into_iter().chain(args).map(text))),
        ("resources", resources(settings)),
        ("terminationMessagePolicy", text("FallbackToLogsOnError")),
        ("securityContext", security(0, 0, Some("NET_ADMIN"))),
    ])
}

fn sidecar(settings: &Settings, plan: &Plan, workload: &Workload, options: &Options) -> Node {
    let is_native = settings.shape == Shape::Native;
    let mut container = map([
        ("name", text(PROXY)),
        ("image", text(image(settings, options))),
    ]);
    if is_native {
        container.set("restartPolicy", text("Always"));
    }
    container.set("command", list(["/weft-proxy", "run"].map(text)));
    container.set("env", list(environment(settings, plan, workload, options)));
    let port = map([
        ("name", text("weft-admin")),
        ("containerPort", number(PUBLIC_ADMIN)),
    ]);
    container.set("ports", list([port]));
    let seconds = |path: &str, period: u64, failures: u64| {
        let get = map([("path", text(path)), ("port", number(PUBLIC_ADMIN))]);
        map([
            ("httpGet", get),
            ("periodSeconds", number(period)),
            ("failureThreshold", number(failures)),
        ])
    };
    if is_native {
        // It is told to end after the application has; callers have to hear of it at once.
        let drain = map([("command", list(["/weft-proxy", "drain"].map(text)))]);
        let hook = map([("exec", drain)]);
        container.set("lifecycle", map([("preStop", hook)]));
    }
    container.set("startupProbe", seconds("/ready", 1, 120));
    container.set("readinessProbe", seconds("/ready", 5, 3));
    container.set("livenessProbe", seconds("/live", 10, 3));
    container.set("resources", resources(settings));
    container.set("terminationMessagePolicy", text("FallbackToLogsOnError"));
    container.set(
        "securityContext",
        match settings.capture {
            // The socket option behind it needs a capability, which only root gets here.
            Capture::Tproxy => security(0, PROXY_ID, Some("NET_RAW")),
            Capture::Redirect | Capture::Off => security(PROXY_ID, PROXY_ID, None),
        },
    );
    let mount = |name: &str, path: &str| map([("name", text(name)), ("mountPath", text(path))]);
    let mut join = mount(JOIN, "/run/weft/join");
    join.set("readOnly", truth(true));
    container.set("volumeMounts", list([mount(STATE, "/var/lib/weft"), join]));
    container
}

fn environment(
    settings: &Settings,
    plan: &Plan,
    workload: &Workload,
    options: &Options,
) -> Vec<Node> {
    let field = |name: &str, path: &str| {
        let from = map([("fieldRef", map([("fieldPath", text(path))]))]);
        map([("name", text(name)), ("valueFrom", from)])
    };
    let set = |name: &str, value: &str| map([("name", text(name)), ("value", text(value))]);
    let skipped: Vec<String> = settings.skip_inbound.iter().map(u16::to_string).collect();
    let mut env = vec![
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_NAME", "metadata.name"),
        set("WEFT_PROXY_WORKLOAD", "$(POD_NAMESPACE)/$(POD_NAME)"),
        set("WEFT_PROXY_CONTROL", &options.control),
        set("WEFT_PROXY_TOKEN_FILE", "/run/weft/join/token"),
        set("WEFT_PROXY_STATE", "/var/lib/weft/state"),
        set("WEFT_PROXY_REGISTER", "true"),
        // Without capture the sidecar listens on one address only.
        match settings.capture {
            Capture::Off => field("WEFT_PROXY_ADDRESSES", "status.podIP"),
            _ => field("WEFT_PROXY_ADDRESSES", "status.podIPs"),
        },
        set("WEFT_PROXY_CAPTURE", settings.capture.word()),
    ];
    let grace = settings.grace.map(|grace| grace.to_string());
    let exit = match settings.shape {
        // It is told to stop together with the application, which may still call others.
        Shape::Classic => "application",
        Shape::Native => "",
    };
    for (name, value) in [
        ("WEFT_PROXY_LABELS", workload.labels.as_str()),
        ("WEFT_PROXY_PORTS", &workload.ports),
        ("WEFT_PROXY_EXCLUDE_INBOUND", &skipped.join(",")),
        ("WEFT_PROXY_PROBES", &plan.http.join(",")),
        ("WEFT_PROXY_TCP_PROBES", &plan.tcp.join(",")),
        ("WEFT_PROXY_GRPC_PROBES", &plan.grpc.join(",")),
        ("WEFT_PROXY_EXIT_AFTER", exit),
        ("WEFT_PROXY_GRACE", grace.as_deref().unwrap_or_default()),
        (
            "WEFT_PROXY_ACCESS_LOG",
            settings.access_log.as_deref().unwrap_or_default(),
        ),
        ("WEFT_LOG", settings.log.as_deref().unwrap_or_default()),
    ] {
        if !value.is_empty() {
            env.push(set(name, value));
        }
    }
    env.extend(settings.env.iter().map(|(name, value)| set(name, value)));
    env
}

fn resources(settings: &Settings) -> Node {
    let both = |of: fn(&Amount) -> Option<&String>| {
        let amounts = [("cpu", &settings.cpu), ("memory", &settings.memory)];
        map(amounts
            .into_iter()
            .filter_map(|(name, amount)| Some((name, text(of(amount)?)))))
    };
    let mut resources = map([("requests", both(|amount| Some(&amount.request)))]);
    let limits = both(|amount| amount.limit.as_ref());
    if !limits.entries().is_empty() {
        resources.set("limits", limits);
    }
    resources
}

/// The least privileges: one capability or none.
fn security(user: u64, group: u64, capability: Option<&str>) -> Node {
    let mut capabilities = map([("drop", list([text("ALL")]))]);
    if let Some(capability) = capability {
        capabilities.set("add", list([text(capability)]));
    }
    map([
        ("runAsUser", number(user)),
        ("runAsGroup", number(group)),
        ("runAsNonRoot", truth(user != 0)),
        ("allowPrivilegeEscalation", truth(false)),
        ("readOnlyRootFilesystem", truth(true)),
        ("capabilities", capabilities),
        ("seccompProfile", map([("type", text("RuntimeDefault"))])),
    ])
}
