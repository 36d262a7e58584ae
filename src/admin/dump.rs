//! The state of the sidecar as JSON. No secret is in it.

use std::{sync::atomic::Ordering, time::SystemTime};

use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::Status;
use crate::{
    cluster::Cluster,
    snapshot::{LiveFilter, LiveHost},
    worker::Shared,
};

pub(super) fn version(status: &Status) -> Value {
    json!({
        "name": "weft-proxy",
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "generation": status.generation,
    })
}

pub(super) fn server_info(shared: &Shared, status: &Status) -> Value {
    json!({
        "name": "weft-proxy",
        "version": env!("CARGO_PKG_VERSION"),
        "workload": status.workload,
        "pid": std::process::id(),
        "generation": status.generation,
        "started": stamp(status.started),
        "uptime_seconds": status.started.elapsed().unwrap_or_default().as_secs(),
        "phase": format!("{:?}", shared.drain.phase()).to_lowercase(),
        "connections": shared.drain.connections(),
        "connections_by_listener": shared.drain.summary(),
        "control_connected": status.connected.load(Ordering::Relaxed),
        "configuration_from_disk": status.from_disk.lock().map(stamp),
    })
}

fn stamp(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(&Rfc3339)
        .unwrap_or_default()
}

pub(super) fn config(shared: &Shared, status: &Status) -> Value {
    let snapshot = shared.snapshots.load_full();
    let mut listeners: Vec<_> = snapshot.listeners.values().collect();
    listeners.sort_by_key(|listener| listener.config.name.clone());
    let listeners: Vec<Value> = listeners
        .iter()
        .map(|listener| {
            let chains: Vec<Value> = listener
                .config
                .chains
                .iter()
                .zip(&listener.chains)
                .map(|(config, live)| {
                    let serves = match live {
                        LiveFilter::Http(table) => json!({ "http": table.config.name }),
                        LiveFilter::Rds(name) => json!({ "http": name }),
                        LiveFilter::Tcp(backends) => json!({ "tcp": backends
                            .iter()
                            .map(|b| b.cluster.as_ref().map(|c| c.config.name.clone()))
                            .collect::<Vec<_>>() }),
                    };
                    json!({ "match": format!("{:?}", config.matches), "mtls": config.tls.is_some(), "serves": serves })
                })
                .collect();
            json!({
                "name": listener.config.name,
                "address": listener.config.address,
                "direction": format!("{:?}", listener.config.direction).to_lowercase(),
                "chains": chains,
            })
        })
        .collect();
    let mut hosts: Vec<_> = snapshot.hosts.iter().collect();
    hosts.sort_by_key(|(name, _)| (*name).clone());
    let hosts: Vec<Value> = hosts
        .into_iter()
        .map(|(name, host)| match host {
            Some(host) => {
                json!({ "name": name, "virtual_host": host.config.name, "routes": routes(host) })
            }
            None => json!({ "name": name, "absent": true }),
        })
        .collect();
    json!({
        "control": {
            "connected": status.connected.load(Ordering::Relaxed),
            "disconnected": *status.disconnected.lock(),
        },
        "rejected": rejected(status),
        "listeners": listeners,
        "virtual_hosts": hosts,
        "clusters": clusters(shared),
    })
}

fn rejected(status: &Status) -> Value {
    let all = status.rejected.lock();
    let entries = all
        .iter()
        .map(|((kind, name), why)| (format!("{kind}/{name}"), json!(why)));
    Value::Object(entries.collect())
}

fn routes(host: &LiveHost) -> Vec<Value> {
    host.config
        .routes
        .iter()
        .zip(&host.routes)
        .map(|(route, backends)| {
            let backends: Vec<Value> = backends
                .iter()
                .map(|backend| json!({ "name": backend.name, "exists": backend.cluster.is_some() }))
                .collect();
            json!({
                "name": route.name,
                "match": format!("{:?}", route.matches),
                "action": format!("{:?}", route.action),
                "backends": backends,
            })
        })
        .collect()
}

pub(super) fn clusters(shared: &Shared) -> Value {
    let snapshot = shared.snapshots.load_full();
    let mut clusters: Vec<_> = snapshot.clusters.values().collect();
    clusters.sort_by_key(|cluster| cluster.config.name.clone());
    clusters
        .into_iter()
        .map(|cluster| one_cluster(cluster))
        .collect()
}

fn one_cluster(cluster: &Cluster) -> Value {
    let endpoints: Vec<Value> = cluster
        .endpoints()
        .all
        .iter()
        .map(|(endpoint, health, weight)| {
            json!({
                "address": endpoint.dest.address,
                "workload": endpoint.workload,
                "identities": endpoint.dest.tls.as_ref().map(|tls| {
                    tls.identities.iter().map(ToString::to_string).collect::<Vec<_>>()
                }),
                "health": format!("{health:?}").to_lowercase(),
                "weight": weight,
                "active": endpoint.active(),
                "latency_us": endpoint.latency().as_micros() as u64,
            })
        })
        .collect();
    json!({
        "name": cluster.config.name,
        "balancing": format!("{:?}", cluster.config.balancing),
        "protocol": format!("{:?}", cluster.config.protocol),
        "mtls": cluster.config.tls.is_some(),
        "warnings": cluster.config.warnings,
        "endpoints": endpoints,
    })
}

pub(super) fn listeners(status: &Status) -> Value {
    json!({ "bound": *status.bound.lock(), "failed": *status.listeners.lock() })
}

pub(super) fn certs(shared: &Shared) -> Value {
    shared
        .identity
        .certificate()
        .map_or(Value::Null, |certificate| {
            json!({
                "id": certificate.id.as_str(),
                "not_before": stamp(certificate.not_before),
                "not_after": stamp(certificate.not_after),
            })
        })
}
