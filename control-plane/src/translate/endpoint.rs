//! `ClusterLoadAssignment`: the workloads behind a service port.

use weft_api::envoy::config::core::v3 as core;
use weft_api::envoy::config::endpoint::v3 as api;
use weft_api::google::protobuf as pb;
use weft_certs::spiffe::SpiffeId;

use super::{Context, names, proto};
use crate::model::{Mesh, Service, ServicePort, Workload, WorkloadPort};

/// The endpoints of a cluster, sorted by workload. A service without any has an empty
/// assignment: that is known, and different from not existing.
pub(super) fn assignment(cx: &Context<'_>, name: &str) -> Option<api::ClusterLoadAssignment> {
    let (service, port) = names::find_cluster(cx.mesh, name)?;
    let lb_endpoints: Vec<api::LbEndpoint> = endpoints(cx.mesh, service, port)
        .filter(|(workload, _)| workload.weight > 0)
        .map(|(workload, port)| endpoint(cx, workload, port))
        .collect();
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

/// The workloads that a service selects and that have the target port.
pub(super) fn endpoints<'a>(
    mesh: &'a Mesh,
    service: &'a Service,
    port: &'a ServicePort,
) -> impl Iterator<Item = (&'a Workload, &'a WorkloadPort)> {
    service.workloads.iter().filter_map(|name| {
        let workload = mesh.workload(&service.namespace, name)?;
        Some((workload, workload.target(&port.target)?))
    })
}

/// Whether a workload is one of the endpoints of a cluster.
pub(super) fn contains(mesh: &Mesh, cluster: &str, namespace: &str, workload: &str) -> bool {
    let Some((service, port)) = names::find_cluster(mesh, cluster) else {
        return false;
    };
    service.namespace == namespace
        && endpoints(mesh, service, port).any(|(endpoint, _)| endpoint.name == workload)
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

fn endpoint(cx: &Context<'_>, workload: &Workload, port: &WorkloadPort) -> api::LbEndpoint {
    // A tuple of borrowed strings cannot be looked up in a set of owned ones.
    let key = (workload.namespace.clone(), workload.name.clone());
    let health = if cx.draining.contains(&key) {
        core::HealthStatus::Draining
    } else {
        core::HealthStatus::Healthy
    };
    let identity = identity(cx.mesh, workload).map(|id| id.to_string());
    api::LbEndpoint {
        health_status: health as i32,
        metadata: Some(proto::metadata(&[
            (
                "identity",
                proto::string_value(&identity.unwrap_or_default()),
            ),
            ("workload", proto::string_value(&workload.name)),
        ])),
        load_balancing_weight: Some(pb::UInt32Value {
            value: workload.weight,
        }),
        host_identifier: Some(api::lb_endpoint::HostIdentifier::Endpoint(api::Endpoint {
            address: Some(proto::address(workload.address, port.listen)),
            ..Default::default()
        })),
    }
}
