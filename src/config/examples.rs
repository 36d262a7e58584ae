//! The contract with the control plane, from both ends: whatever it makes of the examples
//! is read without an error and without a warning.

use std::{collections::BTreeSet, path::Path};

use weft_api::Kind;
use weft_control::{
    source::FileSource,
    translate::{Context, Node, render, resource, wildcard},
};

use super::{ClusterType, Filter, RouteAction, RouteSource, Value, parse};

/// Reads a resource and everything that it refers to; how many there were.
fn follow(cx: &Context<'_>, node: &Node<'_>, kind: Kind, name: &str) -> usize {
    let Some(built) = resource(cx, node, kind, name) else {
        let absent_by_design = name.starts_with("missing|");
        assert!(
            absent_by_design,
            "{kind} {name} is referred to and does not exist"
        );
        return 0;
    };
    let value = parse(kind, name, &built.body).unwrap_or_else(|rejected| panic!("{rejected}"));
    assert_eq!(value.warnings(), [""; 0], "{kind} {name}");
    let mut references = BTreeSet::new();
    match &value {
        Value::Listener(listener) => {
            for chain in &listener.chains {
                match &chain.filter {
                    Filter::Tcp(tcp) => clusters(&tcp.clusters, &mut references),
                    Filter::Http(http) => match &http.routes {
                        RouteSource::Rds(table) => {
                            references.insert((Kind::Route, table.to_string()));
                        }
                        RouteSource::Inline(table) => {
                            table
                                .virtual_hosts
                                .iter()
                                .for_each(|host| of_host(host, &mut references));
                        }
                    },
                }
            }
        }
        Value::VirtualHost(host) => of_host(host, &mut references),
        Value::Cluster(cluster) => {
            if let ClusterType::Eds(eds) = &cluster.kind {
                references.insert((Kind::Endpoint, eds.to_string()));
            }
        }
        Value::Route(_) | Value::Endpoints(_) | Value::Secret(_) => {}
    }
    1 + references
        .iter()
        .map(|(kind, name)| follow(cx, node, *kind, name))
        .sum::<usize>()
}

fn of_host(host: &super::VirtualHost, references: &mut BTreeSet<(Kind, String)>) {
    for route in &host.routes {
        if let RouteAction::Forward(forward) = &route.action {
            clusters(&forward.clusters, references);
        }
    }
}

fn clusters(weighted: &super::WeightedClusters, references: &mut BTreeSet<(Kind, String)>) {
    let names = weighted
        .clusters
        .iter()
        .map(|cluster| cluster.name.to_string());
    references.extend(names.map(|name| (Kind::Cluster, name)));
}

#[test]
fn the_sidecar_reads_what_the_control_plane_writes() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(&path, dir.path().join("mesh.yaml")).unwrap();
        let loaded = FileSource::new(dir.path()).load();
        let cx = Context {
            mesh: &loaded.mesh,
            roots_pem: "",
            draining: &BTreeSet::new(),
        };
        for workload in loaded.mesh.workloads() {
            let node = Node {
                namespace: &workload.namespace,
                workload: &workload.name,
            };
            for name in wildcard(&cx, &node, Kind::Listener) {
                seen += follow(&cx, &node, Kind::Listener, &name);
            }
            let rendered = render(&cx, &node);
            for host in rendered["virtual_hosts"].as_array().unwrap() {
                let name = host["name"].as_str().unwrap();
                seen += follow(&cx, &node, Kind::VirtualHost, name);
            }
        }
    }
    assert!(seen > 100, "{seen}");
}
