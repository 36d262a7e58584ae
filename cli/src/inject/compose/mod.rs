//! An override for docker compose: beside each service a sidecar in the network of its
//! container, and one control plane that knows them all by fixed addresses.

use std::net::Ipv4Addr;

use super::emit::emit;
use super::problem::{Problem, Report};
use super::settings::SIDECAR_PORTS;
use super::yaml::{Node, list, map, number, text, truth};

mod ports;

use ports::{Port, known_protocol, ports_of};

/// The network of the mesh if none is asked for.
pub(super) const DEFAULT_SUBNET: &str = "10.213.77.0/24";
/// The control plane, the network of the mesh, and what else it brings along.
const CONTROL: &str = "weft";
const MESH: &str = "weft-mesh";
const DATA: &str = "weft-data";
const NAMESPACE: &str = "default";
const PROXY_USER: &str = "14020:14020";
/// The address of the control plane in the network, and that of the first service.
const CONTROL_HOST: u32 = 2;
const FIRST_HOST: u32 = 10;

/// An IPv4 network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subnet {
    base: Ipv4Addr,
    bits: u8,
}

impl Subnet {
    /// How many services it has addresses for: the last address is for broadcast.
    fn room(&self) -> usize {
        (1usize << (32 - self.bits)) - FIRST_HOST as usize - 1
    }

    fn host(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + number)
    }
}

/// Reads `--subnet`.
pub(super) fn subnet(value: &str) -> Result<Subnet, String> {
    let wrong = || format!("`{value}` is no IPv4 network, as in {DEFAULT_SUBNET}");
    let (base, bits) = value.split_once('/').ok_or_else(wrong)?;
    let base: Ipv4Addr = base.parse().map_err(|_| wrong())?;
    let bits: u8 = bits.parse().map_err(|_| wrong())?;
    if !(16..=28).contains(&bits) {
        return Err(format!("`{value}`: a network of 16 to 28 bits is needed"));
    }
    if u32::from(base).trailing_zeros() < u32::from(32 - bits) {
        return Err(format!(
            "`{value}` is an address within a network of {bits} bits, not the network"
        ));
    }
    Ok(Subnet { base, bits })
}

/// What runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Images<'a> {
    /// The sidecar.
    pub proxy: &'a str,
    /// The control plane.
    pub control: &'a str,
}

/// A service of the user that gets a sidecar.
struct Service<'a> {
    name: &'a str,
    node: &'a Node,
    ports: Vec<Port>,
    address: Ipv4Addr,
}

/// Makes the override of a compose file; with errors it is empty.
pub(super) fn mesh(
    root: &Node,
    file: &str,
    images: &Images<'_>,
    subnet: &Subnet,
) -> (String, Report) {
    let mut report = Report::default();
    if root.get("include").is_some() {
        report.warn(format!(
            "{file}: include: services of included files get no sidecar; inject those files too, or the output of `docker compose config`"
        ));
    }
    names_are_free(root, &mut report);
    let mut services: Vec<Service<'_>> = Vec::new();
    let mut left_out = false;
    for entry in root.get("services").into_iter().flat_map(Node::entries) {
        let at = format!("services.{}", entry.key);
        if let Some(reason) = cannot_have_one(&entry.key, &entry.value) {
            report.warn(format!("{at}: not injected: {reason}"));
            left_out = true;
            continue;
        }
        check(&entry.key, &entry.value, &mut report);
        let address = subnet.host(FIRST_HOST + u32::try_from(services.len()).unwrap_or(0));
        services.push(Service {
            name: &entry.key,
            node: &entry.value,
            ports: ports_of(&entry.value, &at, &mut report),
            address,
        });
    }
    if services.is_empty() {
        report.error(Problem::new(
            "services: there is none that can have a sidecar",
        ));
    }
    if services.len() > subnet.room() {
        let problem = Problem::new(format!("--subnet has room for {} services", subnet.room()));
        report.error(problem.help("give a larger one, as in 10.213.0.0/16"));
    }
    for service in &services {
        for port in service
            .ports
            .iter()
            .filter(|p| SIDECAR_PORTS.contains(&p.number))
        {
            report.error(
                Problem::new(format!(
                    "services.{}: {} is a port of the sidecar",
                    service.name, port.number
                ))
                .help("let the application listen on another port"),
            );
        }
    }
    if !report.errors.is_empty() {
        for problem in &mut report.errors {
            problem.message.insert_str(0, &format!("{file}: "));
        }
        return (String::new(), report);
    }
    let published = |service: &Service<'_>| service.node.get("ports").is_some();
    let open = left_out || services.iter().any(published);
    if open {
        report.warn(format!(
            "{file}: the mesh is permissive: published ports and services without a sidecar have callers without a certificate"
        ));
    }
    (override_of(&services, images, subnet, open), report)
}

/// Finds names of ours that are taken.
fn names_are_free(root: &Node, report: &mut Report) {
    let named = |kind: &str, name: &str| root.at(&[kind, name]).is_some();
    let mut taken = Vec::new();
    for (kind, name) in [
        ("services", CONTROL),
        ("networks", CONTROL),
        ("configs", MESH),
        ("volumes", DATA),
    ] {
        if named(kind, name) {
            taken.push(format!("{kind}.{name}"));
        }
    }
    for service in root.get("services").into_iter().flat_map(Node::entries) {
        for (kind, name) in [
            ("services", sidecar_name(&service.key)),
            ("services", init_name(&service.key)),
            ("volumes", state_volume(&service.key)),
            ("volumes", join_volume(&service.key)),
        ] {
            if named(kind, &name) {
                taken.push(format!("{kind}.{name}"));
            }
        }
    }
    for name in taken {
        report.error(
            Problem::new(format!(
                "{name}: the override of `weft inject` needs the name"
            ))
            .help("give it another name, or inject the file without the override"),
        );
    }
}

/// Why a service gets no sidecar, which is no mistake.
fn cannot_have_one(name: &str, service: &Node) -> Option<String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.len() > 63 || !name.chars().all(good) || name.starts_with('-') || name.ends_with('-') {
        return Some(
            "the name is no DNS label (lower-case letters, digits and `-`), as which the mesh needs it"
                .to_owned(),
        );
    }
    let mode = service.get("network_mode")?;
    Some(format!(
        "network_mode: {} has no network of its own in the mesh",
        mode.as_text().unwrap_or("?")
    ))
}

fn check(name: &str, service: &Node, report: &mut Report) {
    let at = format!("services.{name}");
    for path in [&["scale"][..], &["deploy", "replicas"]] {
        let number = service.at(path).and_then(Node::as_number);
        if number.is_some_and(|number| number > 1) {
            report.error(
                Problem::new(format!(
                    "{at}.{}: more than one container cannot share an address",
                    path.join(".")
                ))
                .help("declare the replicas as services of their own"),
            );
        }
    }
    let user = service.get("user");
    let user = user.map(|user| {
        user.as_text().map_or_else(
            || user.as_number().map(|n| n.to_string()),
            |t| Some(t.to_owned()),
        )
    });
    if let Some(user) = user.flatten()
        && user.split(':').any(|id| id == "14020")
    {
        report.error(
            Problem::new(format!(
                "{at}.user: 14020 is the sidecar's, whose connections are not captured"
            ))
            .help("choose another number"),
        );
    }
    let other_name = service.text_at(&["container_name"]).filter(|n| *n != name);
    let networks = service.get("networks").into_iter().flat_map(Node::entries);
    let aliased = networks.filter(|network| network.value.get("aliases").is_some());
    if other_name.is_some() || aliased.count() > 0 {
        report.warn(format!(
            "{at}: container_name and aliases are no names of the mesh: call the service `{name}`"
        ));
    }
}

fn sidecar_name(service: &str) -> String {
    format!("{service}-weft")
}

fn init_name(service: &str) -> String {
    format!("{service}-weft-init")
}

fn state_volume(service: &str) -> String {
    format!("weft-state-{service}")
}

fn join_volume(service: &str) -> String {
    format!("weft-join-{service}")
}

/// Where the control plane writes the token of a service.
fn token_directory(service: &str) -> String {
    format!("/run/weft/join/{service}")
}

fn override_of(
    services: &[Service<'_>],
    images: &Images<'_>,
    subnet: &Subnet,
    open: bool,
) -> String {
    let mut all = map([(CONTROL, control(services, images, subnet))]);
    let mut volumes = map([(DATA, map::<String>([]))]);
    for service in services {
        all.set(service.name, attached(service));
        all.set(&init_name(service.name), init(service, images));
        all.set(
            &sidecar_name(service.name),
            sidecar(service, images, subnet),
        );
        volumes.set(&state_volume(service.name), map::<String>([]));
        // In memory, and the sidecar's own from the start.
        let options = map([
            ("type", text("tmpfs")),
            ("device", text("tmpfs")),
            ("o", text("size=1m,uid=14020,gid=14020,mode=0700")),
        ]);
        let join = map([("driver", text("local")), ("driver_opts", options)]);
        volumes.set(&join_volume(service.name), join);
    }
    let network = format!("{}/{}", subnet.base, subnet.bits);
    let ipam = map([("config", list([map([("subnet", text(network))])]))]);
    let network = map([("internal", truth(true)), ("ipam", ipam)]);
    let documents = documents(services, open);
    let root = map([
        ("services", all),
        ("networks", map([(CONTROL, network)])),
        ("volumes", volumes),
        (
            "configs",
            map([(MESH, map([("content", text(documents))]))]),
        ),
    ]);
    format!(
        "# Written by `weft inject`. Use it beside your file:\n#   docker compose -f compose.yaml -f THIS_FILE up\n{}",
        emit(&root)
    )
}

fn control(services: &[Service<'_>], images: &Images<'_>, subnet: &Subnet) -> Node {
    let mut command = [
        "serve",
        "--config=/etc/weft",
        "--data=/var/lib/weft",
        "--listen=0.0.0.0:14012",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut volumes = vec![mount(DATA, "/var/lib/weft")];
    for Service { name, .. } in services {
        let directory = token_directory(name);
        command.push(format!("--join-token={NAMESPACE}/{name}={directory}/token"));
        volumes.push(mount(&join_volume(name), &directory));
    }
    let address = map([("ipv4_address", text(subnet.host(CONTROL_HOST).to_string()))]);
    let config = map([
        ("source", text(MESH)),
        ("target", text("/etc/weft/mesh.yaml")),
    ]);
    let mut node = map([
        ("image", text(images.control)),
        ("command", list(command.into_iter().map(text))),
        ("user", text(PROXY_USER)),
        ("networks", map([(CONTROL, address)])),
        ("configs", list([config])),
        ("volumes", list(volumes)),
        ("restart", text("unless-stopped")),
    ]);
    confine(&mut node);
    // Compose copies an inline config into the container, which a read-only root refuses.
    node.remove("read_only");
    node
}

/// What the user's service gets: an address in the mesh. A service that names no networks
/// stays in the default one.
fn attached(service: &Service<'_>) -> Node {
    let address = map([("ipv4_address", text(service.address.to_string()))]);
    let mut networks = map::<String>([]);
    if service.node.get("networks").is_none() {
        networks.set("default", map::<String>([]));
    }
    networks.set(CONTROL, address);
    map([("networks", networks)])
}

fn init(service: &Service<'_>, images: &Images<'_>) -> Node {
    let started = map([
        ("condition", text("service_started")),
        ("restart", truth(true)),
    ]);
    let mut node = map([
        ("image", text(images.proxy)),
        ("command", list([text("init")])),
        ("network_mode", text(format!("service:{}", service.name))),
        ("user", text("0:0")),
        ("depends_on", map([(service.name, started)])),
    ]);
    confine(&mut node);
    node.set("cap_add", list([text("NET_ADMIN")]));
    profiles(&mut node, service);
    node
}

fn sidecar(service: &Service<'_>, images: &Images<'_>, subnet: &Subnet) -> Node {
    let condition = |condition: &str| map([("condition", text(condition))]);
    let mut started = condition("service_started");
    started.set("restart", truth(true));
    let init = init_name(service.name);
    let depends = map([
        (service.name, started),
        (&init, condition("service_completed_successfully")),
        (CONTROL, condition("service_started")),
    ]);
    let environment = map([
        (
            "WEFT_PROXY_WORKLOAD",
            text(format!("{NAMESPACE}/{}", service.name)),
        ),
        (
            "WEFT_PROXY_CONTROL",
            text(format!("{}:14012", subnet.host(CONTROL_HOST))),
        ),
        ("WEFT_PROXY_TOKEN_FILE", text("/run/weft/join/token")),
        ("WEFT_PROXY_STATE", text("/var/lib/weft/state")),
    ]);
    let mut join = mount(&join_volume(service.name), "/run/weft/join");
    join.set("read_only", truth(true));
    let state = mount(&state_volume(service.name), "/var/lib/weft");
    let mut node = map([
        ("image", text(images.proxy)),
        ("command", list([text("run")])),
        ("network_mode", text(format!("service:{}", service.name))),
        ("user", text(PROXY_USER)),
        ("environment", environment),
        ("volumes", list([state, join])),
        ("depends_on", depends),
        // The token may be there a moment after the first start.
        ("restart", text("on-failure")),
        ("stop_grace_period", text("40s")),
    ]);
    confine(&mut node);
    profiles(&mut node, service);
    node
}

fn mount(volume: &str, target: &str) -> Node {
    map([
        ("type", text("volume")),
        ("source", text(volume)),
        ("target", text(target)),
    ])
}

fn confine(node: &mut Node) {
    node.set("cap_drop", list([text("ALL")]));
    node.set("read_only", truth(true));
    node.set("security_opt", list([text("no-new-privileges:true")]));
}

fn profiles(node: &mut Node, service: &Service<'_>) {
    if let Some(profiles) = service.node.get("profiles") {
        let mut profiles = profiles.clone();
        profiles.above.clear();
        profiles.right = None;
        node.set("profiles", profiles);
    }
}

/// The documents of the mesh.
fn documents(services: &[Service<'_>], open: bool) -> String {
    let object = |version: &str, kind: &str, name: &str, spec: Node| {
        let mut metadata = map([("name", text(name)), ("namespace", text(NAMESPACE))]);
        if kind == "Workload" {
            metadata.set("labels", map([("app", text(name))]));
        }
        map([
            ("apiVersion", text(version)),
            ("kind", text(kind)),
            ("metadata", metadata),
            ("spec", spec),
        ])
    };
    let mode = if open { "permissive" } else { "strict" };
    let spec = map([("mtls", map([("mode", text(mode))]))]);
    let mut objects = vec![map([
        ("apiVersion", text("weft.dev/v1alpha1")),
        ("kind", text("MeshConfig")),
        ("metadata", map([("name", text("mesh"))])),
        ("spec", spec),
    ])];
    for service in services {
        let port = |port: &Port| {
            map([
                ("name", text(format!("p{}", port.number))),
                ("port", number(port.number)),
            ])
        };
        let mut spec = map([
            ("serviceAccount", text(service.name)),
            ("address", text(service.address.to_string())),
            ("capture", map::<String>([])),
        ]);
        if !service.ports.is_empty() {
            spec.set("ports", list(service.ports.iter().map(port)));
        }
        objects.push(object("weft.dev/v1alpha1", "Workload", service.name, spec));
        if service.ports.is_empty() {
            continue;
        }
        let ports = service.ports.iter().map(|one| {
            let mut node = port(one);
            if let Some(protocol) = known_protocol(service.node, one.number) {
                node.set("appProtocol", text(protocol));
            }
            node
        });
        let spec = map([
            ("selector", map([("app", text(service.name))])),
            ("ports", list(ports)),
        ]);
        objects.push(object("v1", "Service", service.name, spec));
    }
    let texts: Vec<String> = objects.iter().map(emit).collect();
    texts.join("---\n")
}

#[cfg(test)]
mod tests {
    use super::super::yaml::parse;
    use super::*;

    const IMAGES: Images<'_> = Images {
        proxy: "weft-proxy:1",
        control: "weft-control:1",
    };

    fn meshed(source: &str) -> (String, Vec<String>) {
        let root = parse(source).unwrap().unwrap().root;
        let subnet = subnet(DEFAULT_SUBNET).unwrap();
        let (text, report) = mesh(&root, "c.yaml", &IMAGES, &subnet);
        (text, report.lines())
    }

    #[test]
    fn what_cannot_have_a_sidecar_is_left_out_with_the_reason() {
        for (service, expect) in [
            (
                "a: {network_mode: host}",
                "network_mode: host has no network",
            ),
            ("a_b: {}", "no DNS label"),
        ] {
            let source = format!("services:\n  {service}\n  web: {{expose: [80]}}\n");
            let (text, report) = meshed(&source);
            assert!(report[0].contains(expect), "{report:?}");
            assert!(report[1].contains("permissive"), "{report:?}");
            assert!(
                text.contains("web-weft:") && text.contains("mode: permissive"),
                "{text}"
            );
        }
    }

    #[test]
    fn mistakes_are_named_and_nothing_is_printed() {
        for (source, expect) in [
            ("services: {weft: {}}", "services.weft: the override"),
            (
                "services: {a: {}, a-weft: {}}",
                "services.a-weft: the override",
            ),
            (
                "services: {a: {scale: 2}}",
                "services.a.scale: more than one",
            ),
            (
                "services: {a: {deploy: {replicas: 3}}}",
                "services.a.deploy.replicas",
            ),
            ("services: {a: {user: '14020'}}", "services.a.user: 14020"),
            ("services: {a: {user: 14020}}", "services.a.user: 14020"),
            (
                "services: {a: {expose: [14001]}}",
                "14001 is a port of the sidecar",
            ),
            ("services: {a: {network_mode: none}}", "there is none"),
        ] {
            let (text, report) = meshed(source);
            let error = report
                .iter()
                .find(|line| line.starts_with("error: c.yaml: "));
            assert!(
                error.is_some_and(|line| line.contains(expect)),
                "{source}: {report:?}"
            );
            assert_eq!(text, "", "{source}");
        }
    }

    #[test]
    fn a_mesh_without_callers_from_outside_is_strict() {
        let (text, report) = meshed("services: {a: {expose: [80]}, db: {image: postgres:16}}");
        assert_eq!(report, Vec::<String>::new());
        assert!(
            text.contains("mode: strict") && text.contains("appProtocol: tcp"),
            "{text}"
        );
    }

    #[test]
    fn the_control_plane_accepts_the_documents() {
        let source = "services:\n  web: {ports: ['8080:80', '9000-9001:9000-9001'], profiles: [x]}\n  db: {image: 'mysql:8'}\n  job: {build: .}\n";
        let (text, _) = meshed(source);
        let root = parse(&text).unwrap().unwrap().root;
        let documents = root.text_at(&["configs", MESH, "content"]).unwrap();
        let config = tempfile::tempdir().unwrap();
        std::fs::write(config.path().join("mesh.yaml"), documents).unwrap();
        let load = weft_control::source::FileSource::new(config.path()).load();
        let complaints: Vec<_> = load.diagnostics.iter().map(ToString::to_string).collect();
        assert_eq!(complaints, Vec::<String>::new(), "{documents}");
        assert_eq!(load.mesh.services().count(), 2);
        assert_eq!(load.mesh.workloads().count(), 3);
    }

    #[test]
    fn networks() {
        let good = subnet("10.0.0.16/28").unwrap();
        assert_eq!(
            (good.room(), good.host(10).to_string()),
            (5, "10.0.0.26".to_owned())
        );
        for wrong in [
            "",
            "10.0.0.0",
            "10.0.0.1/24",
            "10.0.0.0/8",
            "10.0.0.0/30",
            "fd00::/64",
        ] {
            assert!(subnet(wrong).is_err(), "{wrong}");
        }
    }
}
