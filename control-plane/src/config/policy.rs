//! `MeshConfig`, `TrafficPolicy` and `ReferenceGrant`.

use super::field::{Field, Object};
use super::{Content, Meta, Reference, Role, check, duration, label};
use crate::model::{
    Balancer, MeshConfig, MtlsMode, Policy, ReferenceGrant, RouteKind, UnknownDestinations,
};

/// A `TrafficPolicy` and the services of its namespace that it is for.
#[derive(Debug, PartialEq)]
pub(crate) struct PolicyDocument {
    pub(crate) created: Option<i64>,
    pub(crate) targets: Vec<String>,
    pub(crate) policy: Policy,
}

pub(super) fn decode_mesh(object: &Object<'_>, _: &Meta) -> (Option<Content>, Vec<Reference>) {
    let mut config = MeshConfig::default();
    if let Some(spec) = object.optional("spec").and_then(|f| f.object()) {
        if let Some(field) = spec.optional("trustDomain")
            && let Some(text) = field.text()
        {
            match text.parse() {
                Ok(domain) => config.trust_domain = domain,
                Err(error) => field.error(
                    format!("`{text}` is not a trust domain: {error}"),
                    "use lower-case letters, digits, `.`, `-` and `_`",
                ),
            }
        }
        if let Some(field) = spec.optional("clusterDomain")
            && let Some(text) = field.text()
        {
            if !check::is_object_name(text) {
                field.error(
                    format!("`{text}` is not a domain"),
                    "for example cluster.local",
                );
            }
            text.clone_into(&mut config.cluster_domain);
        }
        if let Some(mtls) = spec.optional("mtls").and_then(|f| f.object()) {
            let modes = [
                ("strict", MtlsMode::Strict),
                ("permissive", MtlsMode::Permissive),
            ];
            if let Some(mode) = mtls.optional("mode").and_then(|f| f.choice(&modes)) {
                config.mtls = mode;
            }
            mtls.finish();
        }
        if let Some(outbound) = spec.optional("outbound").and_then(|f| f.object()) {
            let choices = [
                ("allow", UnknownDestinations::Allow),
                ("deny", UnknownDestinations::Deny),
            ];
            if let Some(unknown) = outbound
                .optional("unknown")
                .and_then(|f| f.choice(&choices))
            {
                config.unknown = unknown;
            }
            outbound.finish();
        }
        spec.finish();
    }
    (Some(Content::MeshConfig(config)), Vec::new())
}

pub(super) fn decode_traffic(
    object: &Object<'_>,
    meta: &Meta,
) -> (Option<Content>, Vec<Reference>) {
    let mut references = Vec::new();
    let Some(spec) = object.required("spec").and_then(|f| f.object()) else {
        return (None, references);
    };
    let mut document = PolicyDocument {
        created: meta.created,
        targets: Vec::new(),
        policy: Policy::default(),
    };
    if let Some(targets) = spec.required("targetRefs") {
        let items = targets.items(16);
        if items.is_empty() {
            targets.error("the policy has no target", "name a Service");
        }
        for item in &items {
            if let Some(name) = decode_target(item) {
                references.push(Reference::new(
                    item,
                    Role::PolicyTarget,
                    &meta.namespace,
                    &name,
                    None,
                ));
                document.targets.push(name);
            }
        }
    }
    if let Some(balancer) = spec.optional("loadBalancer").and_then(|f| f.object()) {
        let policies = [
            ("PeakEwma", Balancer::PeakEwma),
            ("RoundRobin", Balancer::RoundRobin),
            ("LeastRequest", Balancer::LeastRequest),
            ("Random", Balancer::Random),
        ];
        if let Some(policy) = balancer
            .optional("policy")
            .and_then(|f| f.choice(&policies))
        {
            document.policy.balancer = policy;
        }
        balancer.finish();
    }
    if let Some(field) = spec.optional("connectTimeout")
        && let Some(timeout) = duration(&field)
    {
        if timeout.is_zero() || timeout > std::time::Duration::from_secs(300) {
            field.error("the timeout is out of range", "use 1ms to 5m");
        }
        document.policy.connect_timeout = timeout;
    }
    spec.finish();
    (Some(Content::Policy(document)), references)
}

fn decode_target(item: &Field<'_>) -> Option<String> {
    let object = item.object()?;
    service_only(&object, "", "Service");
    let name = object
        .required("name")
        .and_then(|f| label(&f))
        .map(str::to_owned);
    object.unsupported(&["sectionName"]);
    object.finish();
    name
}

/// Checks that `group` and `kind` of a reference, with these defaults, mean a Service.
pub(super) fn service_only(object: &Object<'_>, group: &str, kind: &str) -> bool {
    let found_group = object.optional("group");
    let found_kind = object.optional("kind");
    let group = found_group.as_ref().map_or(Some(group), Field::text);
    let kind = found_kind.as_ref().map_or(Some(kind), Field::text);
    if (group, kind) == (Some(""), Some("Service")) {
        return true;
    }
    let message = format!(
        "{} of the group {:?} is not supported",
        kind.unwrap_or_default(),
        group.unwrap_or_default()
    );
    object.error(
        message,
        "only Services are: `group: \"\"` and `kind: Service`",
    );
    false
}

pub(super) fn decode_grant(object: &Object<'_>, meta: &Meta) -> (Option<Content>, Vec<Reference>) {
    let Some(spec) = object.required("spec").and_then(|f| f.object()) else {
        return (None, Vec::new());
    };
    let mut grant = ReferenceGrant {
        namespace: meta.namespace.clone(),
        from: Vec::new(),
        to: Vec::new(),
    };
    let kinds = [
        ("GRPCRoute", Some(RouteKind::Grpc)),
        ("HTTPRoute", Some(RouteKind::Http)),
        ("TCPRoute", Some(RouteKind::Tcp)),
        ("Gateway", None),
        ("TLSRoute", None),
        ("UDPRoute", None),
    ];
    for item in spec
        .required("from")
        .map(|f| f.items(16))
        .unwrap_or_default()
    {
        let Some(from) = item.object() else { continue };
        from.required("group").and_then(|f| f.text());
        let kind = from.required("kind").and_then(|f| f.choice(&kinds));
        let namespace = from.required("namespace").and_then(|f| label(&f));
        from.finish();
        if let (Some(Some(kind)), Some(namespace)) = (kind, namespace) {
            grant.from.push((kind, namespace.to_owned()));
        }
    }
    for item in spec.required("to").map(|f| f.items(16)).unwrap_or_default() {
        let Some(to) = item.object() else { continue };
        to.required("group").and_then(|f| f.text());
        let kind = to.required("kind").and_then(|f| f.text());
        let name = to.optional("name").and_then(|f| label(&f));
        to.finish();
        if kind == Some("Service") {
            grant.to.push(name.map(str::to_owned));
        }
    }
    spec.finish();
    (Some(Content::Grant(grant)), Vec::new())
}
