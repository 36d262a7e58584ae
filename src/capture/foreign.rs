//! Whose chains are these? Two meshes cannot capture the same traffic.

use super::plan::TABLE;

/// What the chains of ours in iptables begin with.
pub const PREFIX: &str = "WEFT_";

/// A chain that somebody made, in a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// As in `ip nat` or `inet weft`; for iptables-legacy `iptables-legacy nat`.
    pub table: String,
    /// The chain's name.
    pub chain: String,
}

impl Found {
    /// Whether it is one of ours that iptables made.
    #[must_use]
    pub fn is_ours_in_iptables(&self) -> bool {
        self.chain.starts_with(PREFIX)
    }

    /// Whether it is in our own table.
    #[must_use]
    pub fn is_ours_in_nft(&self) -> bool {
        self.table.strip_prefix("inet ") == Some(TABLE)
    }
}

/// Another mesh: name, what its chains and its tables begin with, how a pod is taken out of it.
struct Mesh {
    name: &'static str,
    chains: &'static str,
    tables: Option<&'static str>,
    fix: &'static str,
}

const MESHES: [Mesh; 4] = [
    Mesh {
        name: "Istio",
        chains: "ISTIO_",
        tables: Some("istio-"),
        fix: "label the pod `sidecar.istio.io/inject: \"false\"` and, for ambient mode, `istio.io/dataplane-mode: none`",
    },
    Mesh {
        name: "Linkerd",
        chains: "PROXY_INIT_",
        tables: None,
        fix: "annotate the pod `linkerd.io/inject: disabled`",
    },
    Mesh {
        name: "Consul",
        chains: "CONSUL_PROXY_",
        tables: None,
        fix: "annotate the pod `consul.hashicorp.com/connect-inject: \"false\"`",
    },
    Mesh {
        name: "Kuma",
        chains: "KUMA_",
        tables: Some("kuma-"),
        fix: "label the pod `kuma.io/sidecar-injection: disabled`",
    },
];

/// Names the mesh whose chains are among these, and how to leave it; none if there is none.
#[must_use]
pub fn explain(found: &[Found]) -> Option<String> {
    for mesh in &MESHES {
        let is_theirs = |found: &&Found| {
            let table = found.table.rsplit(' ').next().unwrap_or_default();
            found.chain.starts_with(mesh.chains)
                || mesh.tables.is_some_and(|prefix| table.starts_with(prefix))
        };
        let mut theirs: Vec<String> = found
            .iter()
            .filter(is_theirs)
            .map(|found| format!("{} {}", found.table, found.chain))
            .collect();
        if theirs.is_empty() {
            continue;
        }
        theirs.sort_unstable();
        theirs.dedup();
        let more = match theirs.len().saturating_sub(4) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        theirs.truncate(4);
        return Some(format!(
            "{} captures this traffic already (chains {}{more}); to leave it, {}, and start the pod anew",
            mesh.name,
            theirs.join(", "),
            mesh.fix
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Found, explain};

    fn found(list: &[(&str, &str)]) -> Vec<Found> {
        let one = |(table, chain): &(&str, &str)| Found {
            table: (*table).to_owned(),
            chain: (*chain).to_owned(),
        };
        list.iter().map(one).collect()
    }

    #[test]
    fn other_meshes_are_named_with_their_chains() {
        for (chains, parts) in [
            (
                &[("ip nat", "OUTPUT"), ("ip nat", "ISTIO_OUTPUT")][..],
                &["Istio", "ip nat ISTIO_OUTPUT", "sidecar.istio.io/inject"][..],
            ),
            (
                &[("inet istio-ambient-nat", "prerouting")],
                &["Istio", "inet istio-ambient-nat prerouting"],
            ),
            (
                &[("iptables-legacy nat", "PROXY_INIT_REDIRECT")],
                &["Linkerd", "iptables-legacy nat", "linkerd.io/inject"],
            ),
            (
                &[("ip nat", "CONSUL_PROXY_INBOUND")],
                &["Consul", "connect-inject"],
            ),
            (
                &[("ip nat", "KUMA_MESH_INBOUND")],
                &["Kuma", "sidecar-injection"],
            ),
            (
                &[
                    ("ip nat", "ISTIO_A"),
                    ("ip nat", "ISTIO_B"),
                    ("ip nat", "ISTIO_C"),
                    ("ip nat", "ISTIO_D"),
                    ("ip nat", "ISTIO_E"),
                    ("ip nat", "ISTIO_E"),
                ],
                &["ISTIO_D and 1 more"],
            ),
        ] {
            let text = explain(&found(chains)).expect("found");
            for part in parts {
                assert!(text.contains(part), "{text}");
            }
        }
    }

    #[test]
    fn rules_of_users_and_of_ours_are_no_mesh() {
        let chains = found(&[
            ("ip nat", "OUTPUT"),
            ("ip nat", "DOCKER_OUTPUT"),
            ("inet weft", "outbound"),
            ("ip nat", "WEFT_OUTBOUND"),
            ("inet history", "NOT_ISTIO_"),
        ]);
        assert_eq!(explain(&chains), None);
        assert!(chains[2].is_ours_in_nft() && !chains[2].is_ours_in_iptables());
        assert!(chains[3].is_ours_in_iptables() && !chains[3].is_ours_in_nft());
    }
}
