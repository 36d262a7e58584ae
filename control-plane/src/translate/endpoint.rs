//! `ClusterLoadAssignment`: the workloads behind a service port.

use std::net::SocketAddr;

use weft_api::envoy::config::core::v3 as core;
use weft_api::envoy::config::endpoint::v3 as api;
use weft_api::google::protobuf as pb;
use weft_certs::spiffe::SpiffeId;

use super::{Context, names, proto};
use crate::model::{Mesh, Transport, Workload};

/// The endpoints of a cluster, sorted by workload. A service without any has an empty
/// assignment: that is known, and different from not existing.
pub(super) fn assignment(cx: &Context<'_>, name: &str) -> Option<api::ClusterLoadAssignment> {
    let lb_endpoints: Vec<api::LbEndpoint> = if let Some(pod) = names::find_pod(cx.mesh, name) {
        let transport = pod.transport();
        // Whoever names a workload means it, whatever its share of a service is.
        let weight = 1;
        vec![endpoint(cx, pod.workload, pod.address, transport, weight)]
    } else {
        let (service, port) = names::find_cluster(cx.mesh, name)?;
        if service.external_name.is_some() {
            return None;
        }
        let (transport, members) = cx.mesh.endpoints(service, port);
        members
            .into_iter()
            .filter(|(workload, _)| workload.weight > 0)
            .map(|(workload, port)| {
                let address = SocketAddr::new(workload.address, port);
                endpoint(cx, workload, address, transport, workload.weight)
            })
            .collect()
    };
    let localities = (!lb_endpoints.is_empty()).then(|| api::LocalityLbEndpoints {
        locality: Some(core::Locality::default()),
        lb_endpoints,
        load_balancing_weight: Some(pb::UInt32Value { value: 1 }),
        ..Default::default()
    });
    Some(api::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: localities.into_iter().collect(),
        ..Default::default()
    })
}

/// Whether a workload is one of the endpoints of a cluster.
pub(super) fn contains(mesh: &Mesh, cluster: &str, namespace: &str, workload: &str) -> bool {
    let is_it = |w: &Workload| w.namespace == namespace && w.name == workload;
    if let Some(pod) = names::find_pod(mesh, cluster) {
        return is_it(pod.workload);
    }
    let Some((service, port)) = names::find_cluster(mesh, cluster) else {
        return false;
    };
    let (_, members) = mesh.endpoints(service, port);
    members.iter().any(|(member, _)| is_it(member))
}

/// The identity of a workload. Names are checked when documents are read, so there is
/// one; without it the workload could not be an endpoint.
pub(super) fn identity(mesh: &Mesh, workload: &Workload) -> Option<SpiffeId> {
    SpiffeId::workload(
        mesh.trust_domain(),
        &workload.namespace,
        &workload.service_account,
    )
    .ok()
}

fn endpoint(
    cx: &Context<'_>,
    workload: &Workload,
    address: SocketAddr,
    transport: Transport,
    weight: u32,
) -> api::LbEndpoint {
    // A tuple of borrowed strings cannot be looked up in a set of owned ones.
    let key = (workload.namespace.clone(), workload.name.clone());
    let health = if cx.draining.contains(&key) {
        core::HealthStatus::Draining
    } else {
        core::HealthStatus::Healthy
    };
    let name = proto::string_value(&workload.name);
    let metadata = match transport {
        Transport::Mtls => {
            let identity = identity(cx.mesh, workload).map(|id| id.to_string());
            let identity = proto::string_value(&identity.unwrap_or_default());
            proto::metadata(&[("identity", identity), ("workload", name)])
        }
        // Nobody proves anything there.
        Transport::Plaintext => proto::metadata(&[("workload", name)]),
    };
    api::LbEndpoint {
        health_status: health as i32,
        metadata: Some(metadata),
        load_balancing_weight: Some(pb::UInt32Value { value: weight }),
        host_identifier: Some(api::lb_endpoint::HostIdentifier::Endpoint(api::Endpoint {
            address: Some(proto::address(address.ip(), address.port())),
            ..Default::default()
        })),
    }
}
