//! Which names the mesh is asked for, and how its answer and that of the resolvers become
//! one.

use std::{net::IpAddr, sync::Arc};

use futures_util::future::BoxFuture;

use super::wire;

/// Asks the control plane for a name of the mesh: lower case, without trailing dot.
pub type Lookup = Arc<dyn Fn(&str) -> BoxFuture<'static, Answer> + Send + Sync>;

/// What the mesh says about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is a name of the mesh.
    Addresses {
        /// All of its addresses, IPv4 and IPv6; there may be none.
        addresses: Arc<[IpAddr]>,
        /// How long they may be remembered, seconds.
        ttl: u32,
    },
    /// It is not: the resolvers know.
    NotOurs,
    /// The control plane did not answer in time.
    Unknown,
}

/// Which names may be the mesh's.
#[derive(Clone)]
pub struct Names {
    /// `cluster.local`: lower case, without dots at its ends.
    pub cluster_domain: Arc<str>,
    /// Names outside that are services (ExternalName), lower case.
    pub external: Arc<[Arc<str>]>,
    /// Asks the control plane. An answer that takes longer than a second comes too late.
    pub lookup: Lookup,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names")
            .field("cluster_domain", &self.cluster_domain)
            .field("external", &self.external)
            .finish_non_exhaustive()
    }
}

/// Whether the mesh is asked for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// No: it cannot be a name of the mesh.
    Never,
    /// Yes, and the resolvers only if it is not.
    First,
    /// Yes, and the resolvers at the same time: it may well be a name of the internet.
    Alongside,
}

impl Names {
    /// Whether a question for a record type of a name (lower case) goes to the mesh.
    ///
    /// `<service>.<namespace>.svc[.<cluster domain>]` and, of a headless service,
    /// `<workload>.<service>.<namespace>.svc[.<cluster domain>]`; what ends in
    /// `.mesh.localhost`; external services; and all names of one or two labels. What a search
    /// list makes of longer names is not asked for.
    #[must_use]
    pub fn asked(&self, host: &str, kind: u16) -> Asked {
        let kinds = [wire::A, wire::AAAA, wire::SVCB, wire::HTTPS, wire::ANY];
        if !kinds.contains(&kind) {
            return Asked::Never;
        }
        if self.external.iter().any(|external| **external == *host) {
            return Asked::First;
        }
        let labels = |name: &str| name.split('.').count();
        let in_cluster = host
            .strip_suffix(&*self.cluster_domain)
            .and_then(|rest| rest.strip_suffix('.'));
        if let Some(rest) = in_cluster {
            let service = rest.strip_suffix(".svc");
            return match service.map(labels) {
                Some(2 | 3) => Asked::First,
                _ => Asked::Never,
            };
        }
        if let Some(service) = host.strip_suffix(".mesh.localhost") {
            return match labels(service) {
                1 | 2 => Asked::First,
                _ => Asked::Never,
            };
        }
        if let Some(service) = host.strip_suffix(".svc")
            && matches!(labels(service), 2 | 3)
        {
            return Asked::First;
        }
        match labels(host) {
            // RFC 6761, 6.3: always the machine itself.
            _ if host == "localhost" || host.ends_with(".localhost") => Asked::Never,
            1 | 2 => Asked::Alongside,
            _ => Asked::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;

    use super::{Answer, Asked, Names};
    use crate::dns::wire;

    #[test]
    fn the_mesh_is_asked_for_what_may_be_its_name() {
        let names = Names {
            cluster_domain: "cluster.local".into(),
            external: Arc::new(["api.pay.example.org".into(), "github.com".into()]),
            lookup: Arc::new(|_| async { Answer::NotOurs }.boxed()),
        };
        for (host, expected) in [
            ("post", Asked::Alongside),
            ("post.blog", Asked::Alongside),
            ("gitlab.com", Asked::Alongside),
            ("post.svc", Asked::Alongside),
            ("cluster.local", Asked::Alongside),
            ("github.com", Asked::First),
            ("api.pay.example.org", Asked::First),
            ("post.blog.svc", Asked::First),
            ("post-0.post.blog.svc", Asked::First),
            ("post.blog.svc.cluster.local", Asked::First),
            ("post-0.post.blog.svc.cluster.local", Asked::First),
            ("post.mesh.localhost", Asked::First),
            ("post.blog.mesh.localhost", Asked::First),
            ("www.github.com", Asked::Never),
            ("pay.example.org", Asked::Never),
            ("localhost", Asked::Never),
            ("web.localhost", Asked::Never),
            ("mesh.localhost", Asked::Never),
            ("a.b.c.mesh.localhost", Asked::Never),
            ("a.b.c.d.svc", Asked::Never),
            // What search lists make of names.
            (
                "post.blog.svc.cluster.local.blog.svc.cluster.local",
                Asked::Never,
            ),
            ("post.blog.svc.blog.svc.cluster.local", Asked::Never),
            ("www.github.com.blog.svc.cluster.local", Asked::Never),
            ("github.com.blog.svc.cluster.local", Asked::First),
            ("post.svc.cluster.local", Asked::Never),
            ("post.blog.cluster.local", Asked::Never),
            ("svc.cluster.local", Asked::Never),
            ("post.blog.svc.othercluster.local", Asked::Never),
        ] {
            assert_eq!(names.asked(host, wire::A), expected, "{host}");
            assert_eq!(names.asked(host, wire::HTTPS), expected, "{host}");
            // SRV, TXT, PTR
            for kind in [33, 16, 12] {
                assert_eq!(names.asked(host, kind), Asked::Never, "{host} {kind}");
            }
        }
    }
}
