//! Documents to [`Mesh`]: resolves names, precedence and conflicts, and warns about
//! what is valid by itself but cannot be meant together. Nothing here rejects a document
//! for another one's sake, except a second one of the same name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{
    Backend, Mesh, Owner, Protocol, Route, RouteKind, Service, ServicePort, Target, VirtualIps,
    Workload,
};
use crate::config::{
    At, Content, Diagnostic, Document, Id, Level, PolicyDocument, Reference, Role,
};

impl Mesh {
    /// Builds the mesh of these documents. Of several with one name the first counts.
    /// Services without an address of their own keep the virtual one that they have in `ips`,
    /// or get one there.
    pub(crate) fn build(
        documents: &[Arc<Document>],
        ips: &mut VirtualIps,
    ) -> (Self, Vec<Diagnostic>) {
        let mut findings = Vec::new();
        let documents = unique(documents, &mut findings);
        let mut mesh = Self::default();
        let mut policies: Vec<(&Document, &PolicyDocument)> = Vec::new();
        for document in &documents {
            let Id {
                namespace, name, ..
            } = &document.id;
            match &document.content {
                Content::MeshConfig(config) => mesh.config = config.clone(),
                Content::Service(service) => {
                    mesh.services.insert(namespace, name, service.clone());
                }
                Content::Workload(workload) => {
                    mesh.workloads.insert(namespace, name, workload.clone());
                }
                Content::Route(route) => mesh.routes.push(route.clone()),
                Content::Grant(grant) => mesh.grants.push(grant.clone()),
                Content::Policy(policy) => policies.push((document, policy)),
            }
        }
        mesh.routes
            .sort_by(|a, b| precedence(a).cmp(&precedence(b)));
        mesh.grants.sort();
        select_workloads(&mut mesh);
        attach_routes(&mut mesh);
        apply_policies(&mut mesh, policies, &mut findings);
        fill_protocols(&mut mesh);
        *ips = mesh.allocate(ips);
        mesh.index_addresses();
        let mut winners = Winners::default();
        for document in &documents {
            for reference in &document.references {
                check_reference(&mesh, document, reference, &mut winners, &mut findings);
            }
            match &document.content {
                Content::Workload(workload) => {
                    check_protocols(&mesh, document, workload, &mut findings);
                    check_owned(&mesh, document, workload, &mut findings);
                }
                Content::Service(service) => {
                    check_service(&mesh, document, service, &mut findings);
                    check_cluster_ips(&mesh, document, service, &mut findings);
                    check_external(&mesh, document, service, &mut findings);
                }
                _ => {}
            }
        }
        check_addresses(&documents, &mut findings);
        (mesh, findings)
    }

    /// The service port that a backend means, if it exists and the route may use it.
    pub(crate) fn backend(
        &self,
        route: &Route,
        backend: &Backend,
    ) -> Result<(&Service, &ServicePort), Missing> {
        let service = self
            .service(&backend.namespace, &backend.name)
            .ok_or(Missing::Service)?;
        let port = service.port(backend.port).ok_or(Missing::Port)?;
        if self.may_use(route, backend) {
            Ok((service, port))
        } else {
            Err(Missing::Grant)
        }
    }

    /// A route may send to its own namespace and to that of a service it is attached to;
    /// elsewhere a ReferenceGrant has to allow it.
    fn may_use(&self, route: &Route, backend: &Backend) -> bool {
        backend.namespace == route.namespace
            || route
                .parents
                .iter()
                .any(|p| p.namespace == backend.namespace)
            || self.grants.iter().any(|grant| {
                grant.namespace == backend.namespace
                    && grant
                        .from
                        .iter()
                        .any(|(kind, from)| *kind == route.kind && *from == route.namespace)
                    && grant
                        .to
                        .iter()
                        .any(|name| name.as_ref().is_none_or(|name| *name == backend.name))
            })
    }

    /// The routes that clients in `namespace` get for a service port, in order of
    /// precedence and of one kind. Routes of the client's own namespace replace those of
    /// the service's; a GRPCRoute takes the port from HTTPRoutes, those from TCPRoutes.
    pub(crate) fn routes_for(&self, service: &Service, port: u16, namespace: &str) -> Vec<&Route> {
        let attached = |owner: &str| -> Vec<&Route> {
            service
                .routes
                .iter()
                .map(|index| &self.routes[*index])
                .filter(|route| route.namespace == owner && is_attached(route, service, port))
                .collect()
        };
        let mut routes = attached(namespace);
        if routes.is_empty() && namespace != service.namespace {
            routes = attached(&service.namespace);
        }
        let winner = routes.iter().map(|route| route.kind).min();
        routes.retain(|route| Some(route.kind) == winner);
        routes
    }
}

/// Why a backend cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    Service,
    Port,
    Grant,
}

/// Older first, those without a date last; then by name.
fn precedence(route: &Route) -> impl Ord + '_ {
    let age = (route.created.is_none(), route.created);
    (age, &route.namespace, &route.name, route.kind)
}

fn is_attached(route: &Route, service: &Service, port: u16) -> bool {
    route.parents.iter().any(|parent| {
        parent.namespace == service.namespace
            && parent.name == service.name
            && parent.port.is_none_or(|p| p == port)
    })
}

fn unique(documents: &[Arc<Document>], findings: &mut Vec<Diagnostic>) -> Vec<Arc<Document>> {
    let mut seen: BTreeMap<Id, Arc<Document>> = BTreeMap::new();
    let mut out = Vec::new();
    for document in documents {
        let mut key = document.id.clone();
        if key.kind == "MeshConfig" {
            // There is one for the whole mesh, whatever its name.
            key = Id {
                kind: key.kind,
                namespace: String::new(),
                name: String::new(),
            };
        }
        if let Some(first) = seen.get(&key) {
            let place = format!("{}:{}", first.file, first.at.line);
            let mut finding = warn(
                document,
                document.at,
                "",
                format!("already defined in {place}"),
                "only the first is in force; remove one of them".to_owned(),
            );
            finding.level = Level::Error;
            findings.push(finding);
            continue;
        }
        seen.insert(key, Arc::clone(document));
        out.push(Arc::clone(document));
    }
    out
}

fn select_workloads(mesh: &mut Mesh) {
    let Mesh {
        services,
        workloads,
        ..
    } = mesh;
    for service in services.iter_mut().filter(|s| !s.selector.is_empty()) {
        service.workloads = workloads
            .in_namespace(&service.namespace)
            .filter(|workload| {
                service
                    .selector
                    .iter()
                    .all(|(key, value)| workload.labels.get(key) == Some(value))
            })
            .map(|workload| workload.name.clone())
            .collect();
    }
}

fn attach_routes(mesh: &mut Mesh) {
    for (index, route) in mesh.routes.iter().enumerate() {
        let parents: BTreeSet<(&str, &str)> = route
            .parents
            .iter()
            .map(|parent| (parent.namespace.as_str(), parent.name.as_str()))
            .collect();
        for (namespace, name) in parents {
            if let Some(service) = mesh.services.find_mut(namespace, name)
                && !service.headless
            {
                service.routes.push(index);
            }
        }
    }
}

fn apply_policies(
    mesh: &mut Mesh,
    mut policies: Vec<(&Document, &PolicyDocument)>,
    findings: &mut Vec<Diagnostic>,
) {
    policies.sort_by_key(|(document, policy)| {
        let age = (policy.created.is_none(), policy.created);
        (age, &document.id.namespace, &document.id.name)
    });
    let mut owners: BTreeMap<(&str, &str), &Id> = BTreeMap::new();
    for (document, policy) in policies {
        for (index, target) in policy.targets.iter().enumerate() {
            let key = (document.id.namespace.as_str(), target.as_str());
            if let Some(owner) = owners.get(&key) {
                findings.push(warn(
                    document,
                    document.at,
                    &format!("spec.targetRefs[{index}]"),
                    format!("Service {}/{target} already has {owner}", key.0),
                    "this policy is not in force for it; join the two".to_owned(),
                ));
                continue;
            }
            owners.insert(key, &document.id);
            if let Some(service) = mesh.services.find_mut(key.0, target) {
                service.policy = policy.policy.clone();
            }
        }
    }
}

/// A workload's port without a protocol has that of the services that target it, if
/// they agree.
fn fill_protocols(mesh: &mut Mesh) {
    let mut found: BTreeMap<(String, String, u16), BTreeSet<u8>> = BTreeMap::new();
    for service in mesh.services.iter() {
        for name in &service.workloads {
            let Some(workload) = mesh.workloads.find(&service.namespace, name) else {
                continue;
            };
            for service_port in &service.ports {
                if let Some(port) = workload.target(&service_port.target) {
                    let key = (service.namespace.clone(), name.clone(), port.port);
                    let protocols = found.entry(key).or_default();
                    protocols.insert(protocol_number(service_port.protocol));
                }
            }
        }
    }
    for workload in mesh.workloads.iter_mut() {
        for port in &mut workload.ports {
            let key = (workload.namespace.clone(), workload.name.clone(), port.port);
            if port.protocol == Protocol::Undeclared
                && let Some(protocols) = found.get(&key)
                && protocols.len() == 1
            {
                port.protocol = protocols
                    .first()
                    .and_then(|number| PROTOCOLS.get(usize::from(*number)).copied())
                    .unwrap_or(Protocol::Undeclared);
            }
        }
    }
}

const PROTOCOLS: [Protocol; 5] = [
    Protocol::Http,
    Protocol::Http2,
    Protocol::Grpc,
    Protocol::Tcp,
    Protocol::Undeclared,
];

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Http => 0,
        Protocol::Http2 => 1,
        Protocol::Grpc => 2,
        Protocol::Tcp => 3,
        Protocol::Undeclared => 4,
    }
}

fn warn(document: &Document, at: At, field: &str, message: String, help: String) -> Diagnostic {
    Diagnostic {
        level: Level::Warning,
        file: document.file.to_string(),
        line: at.line,
        column: at.column,
        kind: document.id.kind.to_owned(),
        name: format!("{}/{}", document.id.namespace, document.id.name),
        field: field.to_owned(),
        message,
        help,
        in_force: None,
    }
}

/// After so many findings a missing service is no longer looked for under similar names.
const MAX_SUGGESTED: usize = 100;

/// The first route of each service port for each namespace: service, port, namespace of the
/// client. Asking for it once is what keeps many routes of one service from taking for ever.
type Winners = BTreeMap<(String, String, u16, String), Option<(RouteKind, String)>>;

fn winner<'a>(
    winners: &'a mut Winners,
    mesh: &Mesh,
    service: &Service,
    port: u16,
    namespace: &str,
) -> Option<&'a (RouteKind, String)> {
    let key = (
        service.namespace.clone(),
        service.name.clone(),
        port,
        namespace.to_owned(),
    );
    let found = winners.entry(key).or_insert_with(|| {
        let routes = mesh.routes_for(service, port, namespace);
        let first = routes.first()?;
        Some((first.kind, format!("{}/{}", first.namespace, first.name)))
    });
    found.as_ref()
}

fn check_reference(
    mesh: &Mesh,
    document: &Document,
    reference: &Reference,
    winners: &mut Winners,
    findings: &mut Vec<Diagnostic>,
) {
    let Reference {
        role,
        namespace,
        name,
        port,
        ..
    } = reference;
    let effect = match role {
        Role::Parent => "the route is not attached to it",
        Role::Backend => "requests for it are answered 500 backend_missing",
        Role::Upstream => "there is no listener for it",
        Role::PolicyTarget => "the policy has no effect on it",
    };
    let suggest = findings.len() < MAX_SUGGESTED;
    let mut report = |message: String, help: String| {
        findings.push(warn(
            document,
            reference.at,
            &reference.field,
            message,
            help,
        ));
    };
    let Some(service) = mesh.service(namespace, name) else {
        let names: Vec<&str> = mesh
            .services
            .in_namespace(namespace)
            .map(|service| service.name.as_str())
            .collect();
        let similar = suggest.then(|| crate::config::closest(name, &names));
        let help = match similar.flatten() {
            Some(other) => format!("{effect}; did you mean `{other}`?"),
            None => format!("{effect} until it exists"),
        };
        report(format!("Service {namespace}/{name} does not exist"), help);
        return;
    };
    if let Some(port) = port
        && service.port(*port).is_none()
    {
        let ports: Vec<String> = service.ports.iter().map(|p| p.port.to_string()).collect();
        report(
            format!("Service {namespace}/{name} has no port {port}"),
            format!("{effect}; its ports are {}", ports.join(", ")),
        );
        return;
    }
    match (role, &document.content) {
        (Role::Parent, Content::Route(route)) => {
            if service.headless {
                report(
                    format!("Service {namespace}/{name} is headless"),
                    "routes attach to services with a cluster IP only".to_owned(),
                );
            } else {
                check_parent(mesh, route, service, *port, winners, &mut report);
            }
        }
        (Role::Backend, Content::Route(route)) => {
            let denied = route
                .rules
                .iter()
                .flat_map(|rule| &rule.backends)
                .any(|backend| {
                    (&backend.namespace, &backend.name, Some(backend.port))
                        == (namespace, name, *port)
                        && mesh.backend(route, backend) == Err(Missing::Grant)
                });
            if denied {
                report(
                    format!("no ReferenceGrant allows the use of Service {namespace}/{name}"),
                    format!("{effect}; add a ReferenceGrant to the namespace {namespace}"),
                );
            }
        }
        (Role::Upstream, _) if port.is_none() && service.ports.len() != 1 => report(
            format!(
                "Service {namespace}/{name} has {} ports",
                service.ports.len()
            ),
            format!("{effect}; say which with `port`"),
        ),
        _ => {}
    }
}

/// Whether a route has an effect on the ports of its parent.
fn check_parent(
    mesh: &Mesh,
    route: &Route,
    service: &Service,
    port: Option<u16>,
    winners: &mut Winners,
    report: &mut impl FnMut(String, String),
) {
    let ports = service
        .ports
        .iter()
        .filter(|p| port.is_none_or(|n| n == p.port));
    let mut effective = false;
    let mut reason = None;
    for service_port in ports {
        let is_tcp = route.kind == RouteKind::Tcp;
        let protocol = service_port.protocol;
        match winner(winners, mesh, service, service_port.port, &route.namespace) {
            _ if protocol != Protocol::Undeclared && is_tcp != (protocol == Protocol::Tcp) => {
                reason = Some(format!(
                    "port {} of Service {}/{} is {}",
                    service_port.port,
                    service.namespace,
                    service.name,
                    protocol.name()
                ));
            }
            Some((kind, name)) if *kind != route.kind => {
                reason = Some(format!(
                    "{} {name} takes port {} of Service {}/{}",
                    kind.name(),
                    service_port.port,
                    service.namespace,
                    service.name
                ));
            }
            _ => effective = true,
        }
    }
    if let Some(reason) = reason
        && !effective
    {
        report(
            reason,
            format!("this {} has no effect there", route.kind.name()),
        );
    }
}

/// What a workload says about its ports and what its services say must agree.
fn check_protocols(
    mesh: &Mesh,
    document: &Document,
    workload: &Workload,
    findings: &mut Vec<Diagnostic>,
) {
    let services = mesh
        .services
        .in_namespace(&workload.namespace)
        .filter(|service| service.workloads.binary_search(&workload.name).is_ok());
    for service in services {
        for service_port in &service.ports {
            let Some(index) = workload
                .ports
                .iter()
                .position(|port| match &service_port.target {
                    Target::Number(number) => port.port == *number,
                    Target::Name(name) => port.name.as_ref() == Some(name),
                })
            else {
                continue;
            };
            let (ours, theirs) = (workload.ports[index].protocol, service_port.protocol);
            if ours != Protocol::Undeclared && ours != theirs {
                findings.push(warn(
                    document,
                    document.at,
                    &format!("spec.ports[{index}].protocol"),
                    format!(
                        "{}, but port {} of Service {}/{} is {}",
                        ours.name(),
                        service_port.port,
                        service.namespace,
                        service.name,
                        theirs.name()
                    ),
                    "say the same in both; `appProtocol` in the Service is enough".to_owned(),
                ));
            }
        }
    }
}

/// A workload that a service selects should have the ports that the service targets.
fn check_service(
    mesh: &Mesh,
    document: &Document,
    service: &Service,
    findings: &mut Vec<Diagnostic>,
) {
    let Some(service) = mesh.service(&service.namespace, &service.name) else {
        return;
    };
    for (index, port) in service.ports.iter().enumerate() {
        let (transport, _) = mesh.endpoints(service, port);
        let (mut missing, mut excluded) = (Vec::new(), Vec::new());
        for name in &service.workloads {
            let workload = mesh.workload(&service.namespace, name);
            match workload.and_then(|w| w.reach(&port.target)) {
                None => missing.push(name.as_str()),
                Some(reach) if reach.transport != transport => excluded.push(name.as_str()),
                Some(_) => {}
            }
        }
        let mut report = |message: String, help: &str| {
            let field = format!("spec.ports[{index}].targetPort");
            let help = help.to_owned();
            findings.push(warn(document, document.at, &field, message, help));
        };
        if !missing.is_empty() {
            report(
                format!("not a port of Workload {}", missing.join(", ")),
                "it gets no requests for this port; add the port to the Workload",
            );
        }
        if !excluded.is_empty() {
            report(
                format!(
                    "left out by `excludeInboundPorts` of Workload {}, but not by all others",
                    excluded.join(", ")
                ),
                "it gets no requests for this port: leave the port out everywhere or nowhere",
            );
        }
    }
}

/// An address of a captured workload is its own alone.
fn check_owned(
    mesh: &Mesh,
    document: &Document,
    workload: &Workload,
    findings: &mut Vec<Diagnostic>,
) {
    if workload.capture.is_none() {
        return;
    }
    for (index, address) in workload.addresses().enumerate() {
        let own = Owner::Workload(workload).describe();
        let Some(owner) = mesh.owner(address).map(Owner::describe) else {
            continue;
        };
        if owner == own {
            continue;
        }
        let field = match index {
            0 => "spec.address".to_owned(),
            _ => format!("spec.additionalAddresses[{}]", index - 1),
        };
        findings.push(warn(
            document,
            document.at,
            &field,
            format!("{address} is also that of {owner}"),
            "captured connections to it are meant for that one; change one of them".to_owned(),
        ));
    }
}

/// An address of a service is its own alone, and each service has one.
fn check_cluster_ips(
    mesh: &Mesh,
    document: &Document,
    service: &Service,
    findings: &mut Vec<Diagnostic>,
) {
    let own = Owner::Service(service).describe();
    for address in &service.addresses {
        let Some(owner) = mesh.owner(*address).map(Owner::describe) else {
            continue;
        };
        if owner != own {
            findings.push(warn(
                document,
                document.at,
                "spec.clusterIP",
                format!("{address} is also that of {owner}"),
                "captured connections to it are meant for that one; change one of them".to_owned(),
            ));
        }
    }
    let in_force = mesh.service(&service.namespace, &service.name);
    if in_force.is_some_and(|s| !s.headless && s.addresses.is_empty()) {
        findings.push(warn(
            document,
            document.at,
            "spec.clusterIP",
            "no virtual address is left for this service".to_owned(),
            "captured applications cannot call it; give it a `clusterIP`".to_owned(),
        ));
    }
}

/// A name outside of the mesh leads to one service, and not back into the mesh.
fn check_external(
    mesh: &Mesh,
    document: &Document,
    service: &Service,
    findings: &mut Vec<Diagnostic>,
) {
    let Some(host) = &service.external_name else {
        return;
    };
    let mut report = |message: String, help: &str| {
        let field = "spec.externalName";
        findings.push(warn(document, document.at, field, message, help.to_owned()));
    };
    let inside = format!(".svc.{}", mesh.config.cluster_domain);
    if host.ends_with(&inside) || host.ends_with(".svc") || host.ends_with(".localhost") {
        report(
            format!("`{host}` is a name of the mesh"),
            "an ExternalName service is reached without mTLS and routes: call that service by its own name",
        );
    }
    let first = mesh.external(&service.namespace, host);
    if let Some(first) = first.filter(|first| first.name != service.name) {
        report(
            format!(
                "`{host}` is also that of Service {}/{}",
                first.namespace, first.name
            ),
            "the name leads to that one, with its ports only; put all ports into one service",
        );
    }
}

/// Two sidecars cannot listen at one address.
fn check_addresses(documents: &[Arc<Document>], findings: &mut Vec<Diagnostic>) {
    let mut owners: BTreeMap<(IpAddr, u16), &Id> = BTreeMap::new();
    for document in documents {
        let Content::Workload(workload) = &document.content else {
            continue;
        };
        if workload.capture.is_some() {
            continue;
        }
        for (index, port) in workload.ports.iter().enumerate() {
            let key = (workload.address, port.listen);
            let Some(owner) = owners.insert(key, &document.id) else {
                continue;
            };
            findings.push(warn(
                document,
                document.at,
                &format!("spec.ports[{index}].listen"),
                format!(
                    "{} is also that of {owner}",
                    std::net::SocketAddr::from(key)
                ),
                "only one sidecar can listen there; change `listen` or `address`".to_owned(),
            ));
        }
    }
}
