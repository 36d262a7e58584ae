use std::sync::Arc;

use prost::Message;
use weft_api::{
    Kind,
    envoy::config::{
        cluster::v3 as cluster,
        core::v3::{AggregatedConfigSource, ConfigSource, config_source},
        endpoint::v3::ClusterLoadAssignment,
        route::v3 as route,
    },
};

use super::{IDLE_SECONDS, Linker, MAX_HOSTS, MAX_NAME};
use crate::telemetry::Metrics;

fn name(n: usize) -> Arc<str> {
    format!("outbound/{n}").into()
}

fn full() -> Linker {
    let mut linker = Linker::new(Metrics::new(), 1);
    for n in 0..MAX_HOSTS {
        assert!(linker.demand(&name(n), 1 + n as u32));
    }
    linker
}

#[test]
fn names_that_do_not_exist_make_room() {
    let mut linker = full();
    let now = MAX_HOSTS as u32;
    for absent in [7, 3] {
        assert!(linker.remove(Kind::VirtualHost, &name(absent)));
    }
    linker.link();
    assert!(linker.demand("outbound/new", now));
    assert!(linker.demand("outbound/newer", now));
    let (snapshot, wanted) = linker.link();
    assert!(!snapshot.hosts.contains_key(&name(3)));
    assert!(wanted.contains(&(Kind::VirtualHost, "outbound/new".into())));
    assert!(wanted.contains(&(Kind::VirtualHost, name(0))));
    assert_eq!(wanted.len(), MAX_HOSTS);
}

#[test]
fn names_that_nobody_asks_for_make_room() {
    let mut linker = Linker::new(Metrics::new(), 1);
    for n in 0..MAX_HOSTS {
        assert!(linker.demand(&name(n), 100));
    }
    // Somebody may still wait for each of them.
    assert!(!linker.demand("outbound/new", 99 + IDLE_SECONDS));
    assert!(linker.demand("outbound/new", 100 + IDLE_SECONDS));
    assert!(linker.demand("outbound/newer", 100 + IDLE_SECONDS));
    assert_eq!(linker.demanded.len(), MAX_HOSTS);
}

#[test]
fn a_name_that_the_stream_could_not_carry_is_not_asked_for() {
    let mut linker = Linker::new(Metrics::new(), 1);
    let of = |length: usize| "x".repeat(length);
    assert!(linker.demand(&of(MAX_NAME), 0));
    assert!(!linker.demand(&of(MAX_NAME + 1), 0));
    assert_eq!(linker.demanded.len(), 1);
    // With what the control plane takes: 10,000 names of 2 MiB and 1024 bytes each.
    const { assert!(MAX_HOSTS * 3 <= 8_000 && MAX_HOSTS * MAX_NAME <= 1 << 20) };
}

fn take(linker: &mut Linker, kind: Kind, name: &str, bytes: &[u8]) {
    let value = crate::config::parse(kind, name, bytes).unwrap();
    linker.update(&name.into(), value);
}

/// A virtual host whose requests go to one cluster.
fn host_to(cluster: &str) -> Vec<u8> {
    let forward = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(
            cluster.into(),
        )),
        ..Default::default()
    };
    let route = route::Route {
        r#match: Some(route::RouteMatch {
            path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(route::route::Action::Route(forward)),
        ..Default::default()
    };
    let host = route::VirtualHost {
        name: "outbound/a".into(),
        domains: vec!["a".into()],
        routes: vec![route],
        ..Default::default()
    };
    host.encode_to_vec()
}

fn eds_cluster(name: &str, timeout: i64) -> Vec<u8> {
    let ads = ConfigSource {
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(
            AggregatedConfigSource::default(),
        )),
        ..Default::default()
    };
    let cluster = cluster::Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds as i32,
        )),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig {
            eds_config: Some(ads),
            ..Default::default()
        }),
        connect_timeout: Some(weft_api::google::protobuf::Duration {
            seconds: timeout,
            nanos: 0,
        }),
        ..Default::default()
    };
    cluster.encode_to_vec()
}

#[test]
fn what_waits_to_be_replaced_has_its_clusters_as_they_are() {
    let mut linker = Linker::new(Metrics::new(), 1);
    linker.demand("outbound/a", 1);
    take(
        &mut linker,
        Kind::VirtualHost,
        "outbound/a",
        &host_to("one"),
    );
    take(&mut linker, Kind::Cluster, "one", &eds_cluster("one", 1));
    let none = ClusterLoadAssignment {
        cluster_name: "one".into(),
        ..Default::default()
    };
    take(&mut linker, Kind::Endpoint, "one", &none.encode_to_vec());
    linker.link();
    // A cluster that does not come, as it is rejected.
    take(
        &mut linker,
        Kind::VirtualHost,
        "outbound/a",
        &host_to("two"),
    );
    let (_, wanted) = linker.link();
    for (kind, name) in [
        (Kind::Cluster, "one"),
        (Kind::Endpoint, "one"),
        (Kind::Cluster, "two"),
    ] {
        assert!(wanted.contains(&(kind, name.into())), "{kind} {name}");
    }
    // The old one changes meanwhile: its endpoints are those of the cluster in force.
    take(&mut linker, Kind::Cluster, "one", &eds_cluster("one", 2));
    let (snapshot, _) = linker.link();
    let host = snapshot.hosts["outbound/a"].as_ref().unwrap();
    let used = host.routes[0][0].cluster.as_ref().unwrap();
    assert!(Arc::ptr_eq(used, &snapshot.clusters["one"]));
    // It comes: the old one goes.
    take(&mut linker, Kind::Cluster, "two", &eds_cluster("two", 1));
    linker.remove(Kind::Endpoint, &"two".into());
    let (_, wanted) = linker.link();
    assert!(!wanted.contains(&(Kind::Cluster, "one".into())));
}
