//! The demo's mesh: its workloads, their ports, and the configuration documents that describe
//! them. Pure, but for finding free ports.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use rand::Rng;

/// The namespace of everything in the demo.
pub(crate) const NAMESPACE: &str = "blog";
/// The trust domain of the demo's throw-away CA.
pub(crate) const TRUST_DOMAIN: &str = "demo.mesh";
/// The file of the canary's route in the configuration directory.
pub(crate) const ROUTE_FILE: &str = "canary.yaml";
const MESH_FILE: &str = "mesh.yaml";

/// What a workload is, independent of this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Role {
    /// The workload and its service account.
    pub name: &'static str,
    /// The service that it stands for in the table.
    pub service: &'static str,
    /// What its port speaks; none for the traffic bot, which has no port.
    pub protocol: Option<&'static str>,
    /// The service that it reaches by a local port of its own.
    pub upstream: Option<&'static str>,
}

/// Every workload of the demo. The bot is last: it starts when the others are ready.
pub(crate) const ROLES: [Role; 7] = [
    Role {
        name: "web",
        service: "web",
        protocol: Some("http"),
        upstream: None,
    },
    Role {
        name: "account",
        service: "account",
        protocol: Some("http"),
        upstream: None,
    },
    Role {
        name: "post-v1",
        service: "post",
        protocol: Some("http"),
        upstream: None,
    },
    Role {
        name: "post-v2",
        service: "post",
        protocol: Some("http"),
        upstream: None,
    },
    Role {
        name: "storage",
        service: "storage",
        protocol: Some("http"),
        upstream: Some("queue"),
    },
    Role {
        name: "queue",
        service: "queue",
        protocol: Some("tcp"),
        upstream: None,
    },
    Role {
        name: "bot",
        service: "bot",
        protocol: None,
        upstream: None,
    },
];

/// The service that a metric's `service` stands for: the canary's backends are `post`.
pub(crate) fn service_of(metric: &str) -> String {
    let name = super::edges::short(metric);
    let role = ROLES.iter().find(|role| role.name == name);
    role.map_or(name, |role| role.service.to_owned())
}

/// One workload of this run; every port is on 127.0.0.1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    /// What it is.
    pub role: Role,
    /// Where the sidecar takes calls of the application.
    pub outbound: u16,
    /// Where the sidecar takes calls of its peers.
    pub inbound: u16,
    /// Where the application listens.
    pub app: u16,
    /// The sidecar's full admin port.
    pub admin: u16,
    /// The sidecar's public admin port.
    pub public_admin: u16,
    /// Where the sidecar takes connections for the upstream.
    pub upstream: u16,
}

impl Member {
    /// The sidecar's outbound port.
    pub(crate) fn outbound_address(&self) -> SocketAddr {
        loopback(self.outbound)
    }

    /// The sidecar's public admin port.
    pub(crate) fn public_admin_address(&self) -> SocketAddr {
        loopback(self.public_admin)
    }
}

/// An address on the loopback interface.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Gives every workload its ports.
///
/// # Errors
///
/// No free ports.
pub(crate) fn members(rng: &mut impl Rng) -> io::Result<Vec<Member>> {
    let mut ports = free_ports(ROLES.len() * 6, rng)?.into_iter();
    let mut port = || ports.next().expect("as many ports as were asked for");
    let member = |role| Member {
        role,
        outbound: port(),
        inbound: port(),
        app: port(),
        admin: port(),
        public_admin: port(),
        upstream: port(),
    };
    Ok(ROLES.map(member).into())
}

/// Finds ports on 127.0.0.1 that nobody listens on, below the range from which Linux gives
/// source ports to outgoing connections: what is free now is likely still free when the
/// sidecar binds it.
///
/// # Errors
///
/// Too many ports are taken.
pub(crate) fn free_ports(count: usize, rng: &mut impl Rng) -> io::Result<Vec<u16>> {
    let mut held = Vec::with_capacity(count);
    let mut tried = BTreeSet::new();
    while held.len() < count {
        if tried.len() > 4_000 {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "no free ports on 127.0.0.1",
            ));
        }
        let port = rng.random_range(15_000..32_000);
        if tried.insert(port)
            && let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        {
            held.push((port, listener));
        }
    }
    Ok(held.into_iter().map(|(port, _listener)| port).collect())
}

/// How the canary's traffic is split, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Split {
    /// Share of v1.
    pub v1: u32,
    /// Share of v2.
    pub v2: u32,
}

/// The demo as it starts: one tenth of the traffic goes to the failing version.
pub(crate) const BROKEN: Split = Split { v1: 90, v2: 10 };
/// The canary taken back.
pub(crate) const FIXED: Split = Split { v1: 100, v2: 0 };

/// The configuration: file name and text.
pub(crate) fn documents(members: &[Member], split: Split) -> Vec<(&'static str, String)> {
    let mut mesh = format!(
        "# The mesh of weft demo. The sidecars follow every edit at once.\n\
         apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{ name: mesh }}\n\
         spec:\n  trustDomain: {TRUST_DOMAIN}\n  mtls: {{ mode: strict }}\n"
    );
    for role in ROLES {
        let Some(protocol) = role.protocol else {
            continue;
        };
        mesh += &service(
            role.name,
            &format!("app: {}, name: {}", role.service, role.name),
            protocol,
        );
    }
    mesh += &service("post", "app: post", "http");
    for member in members {
        mesh += &workload(member);
    }
    vec![(MESH_FILE, mesh), (ROUTE_FILE, canary(split))]
}

fn service(name: &str, selector: &str, protocol: &str) -> String {
    let port = service_port(protocol);
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: {NAMESPACE} }}\n\
         spec:\n  selector: {{ {selector} }}\n  ports:\n  - {{ name: main, port: {port}, \
         targetPort: main, appProtocol: {protocol} }}\n"
    )
}

/// Web services are on the port of the web; the queue has one of its own.
fn service_port(protocol: &str) -> u16 {
    if protocol == "tcp" { 7000 } else { 80 }
}

fn workload(member: &Member) -> String {
    let Role {
        name,
        service,
        protocol,
        upstream,
    } = member.role;
    let mut text = format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: Workload\n\
         metadata:\n  name: {name}\n  namespace: {NAMESPACE}\n  labels: {{ app: {service}, name: {name} }}\n\
         spec:\n  serviceAccount: {name}\n  address: 127.0.0.1\n  outbound: {{ port: {} }}\n",
        member.outbound
    );
    if let Some(protocol) = protocol {
        text += &format!(
            "  ports:\n  - {{ name: main, port: {app}, protocol: {protocol}, listen: {inbound}, \
             app: \"127.0.0.1:{app}\" }}\n",
            app = member.app,
            inbound = member.inbound,
        );
    }
    if let Some(upstream) = upstream {
        let local = member.upstream;
        text += &format!("  upstreams:\n  - {{ service: {upstream}, localPort: {local} }}\n");
    }
    text
}

/// The route that splits the calls of `post` between its two versions.
pub(crate) fn canary(split: Split) -> String {
    let Split { v1, v2 } = split;
    format!(
        "# The canary: change the weights and watch the table.\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{ name: post, namespace: {NAMESPACE} }}\n\
         spec:\n  parentRefs:\n  - {{ group: \"\", kind: Service, name: post, port: 80 }}\n\
         \x20 rules:\n  - name: canary\n    backendRefs:\n\
         \x20   - {{ name: post-v1, port: 80, weight: {v1} }}\n\
         \x20   - {{ name: post-v2, port: 80, weight: {v2} }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    #[test]
    fn ports_are_free_and_differ() {
        let mut rng = SmallRng::seed_from_u64(7);
        let ports = free_ports(50, &mut rng).unwrap();
        let distinct: BTreeSet<_> = ports.iter().collect();
        assert_eq!(distinct.len(), 50);
        let held: Vec<_> = ports
            .iter()
            .map(|port| TcpListener::bind(("127.0.0.1", *port)).unwrap())
            .collect();
        // The same seed tries the same ports first, and they are taken now.
        let others = free_ports(50, &mut SmallRng::seed_from_u64(7)).unwrap();
        assert!(others.iter().all(|port| !ports.contains(port)));
        drop(held);
    }

    #[test]
    fn every_workload_is_described() {
        let members = members(&mut SmallRng::seed_from_u64(1)).unwrap();
        let files = documents(&members, BROKEN);
        let (mesh, route) = (&files[0].1, &files[1].1);
        for member in &members {
            assert!(mesh.contains(&format!("  name: {}\n", member.role.name)));
            assert!(mesh.contains(&format!("outbound: {{ port: {} }}", member.outbound)));
        }
        assert_eq!(mesh.matches("kind: Workload").count(), 7);
        assert_eq!(mesh.matches("kind: Service\n").count(), 7);
        assert!(mesh.contains("{ service: queue, localPort: "));
        assert!(
            route.contains("    - { name: post-v2, port: 80, weight: 10 }\n"),
            "{route}"
        );
        assert!(canary(FIXED).contains("    - { name: post-v2, port: 80, weight: 0 }\n"));
    }

    #[test]
    fn the_control_plane_accepts_the_documents() {
        let members = members(&mut SmallRng::seed_from_u64(1)).unwrap();
        for split in [BROKEN, FIXED] {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in documents(&members, split) {
                std::fs::write(dir.path().join(name), text).unwrap();
            }
            let load = weft_control::source::FileSource::new(dir.path()).load();
            let complaints: Vec<_> = load.diagnostics.iter().map(ToString::to_string).collect();
            assert_eq!(complaints, Vec::<String>::new());
            assert_eq!(load.mesh.trust_domain().to_string(), TRUST_DOMAIN);
            for role in ROLES {
                let workload = load.mesh.workload(NAMESPACE, role.name).unwrap();
                assert_eq!(workload.service_account, role.name);
            }
        }
    }

    #[test]
    fn the_versions_of_the_canary_are_one_service() {
        for (metric, expect) in [
            ("post-v2.blog:80", "post"),
            ("post-v1", "post"),
            ("post", "post"),
            ("web", "web"),
            ("x", "x"),
        ] {
            assert_eq!(service_of(metric), expect);
        }
    }
}
