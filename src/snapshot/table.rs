//! HOT. From an authority to its virtual host: exact, then longest suffix, then longest
//! prefix, then `*`, as Envoy does.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use super::LiveHost;
use crate::config::{Domain, RouteTable};

/// A route table with its virtual hosts resolved.
#[derive(Debug)]
pub struct LiveTable {
    /// As configured.
    pub config: Arc<RouteTable>,
    hosts: Vec<Arc<LiveHost>>,
    exact: HashMap<String, Arc<LiveHost>>,
    /// Longest first.
    suffixes: Vec<(String, Arc<LiveHost>)>,
    /// Longest first.
    prefixes: Vec<(String, Arc<LiveHost>)>,
    any: Option<Arc<LiveHost>>,
}

impl LiveTable {
    /// Indexes the hosts, which are in the order of the configuration.
    #[must_use]
    pub fn new(config: Arc<RouteTable>, hosts: &[Arc<LiveHost>]) -> Self {
        let mut table = Self {
            hosts: hosts.to_vec(),
            exact: HashMap::new(),
            suffixes: Vec::new(),
            prefixes: Vec::new(),
            any: None,
            config,
        };
        for host in hosts {
            for domain in &host.config.domains {
                match domain {
                    Domain::Exact(name) => {
                        table.exact.insert(name.clone(), host.clone());
                    }
                    Domain::Suffix(name) => table.suffixes.push((name.clone(), host.clone())),
                    Domain::Prefix(name) => table.prefixes.push((name.clone(), host.clone())),
                    Domain::Any => table.any = Some(host.clone()),
                }
            }
        }
        table
            .suffixes
            .sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        table
            .prefixes
            .sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        table
    }

    /// All hosts, in the order of the configuration.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<LiveHost>> {
        self.hosts.iter()
    }

    /// The host for a normalized authority.
    #[must_use]
    pub fn find(&self, authority: &str) -> Option<&Arc<LiveHost>> {
        if !self.exact.is_empty()
            && let Some(host) = self.exact.get(authority)
        {
            return Some(host);
        }
        // A wildcard stands for at least one character.
        let longer = |name: &str| authority.len() > name.len();
        self.suffixes
            .iter()
            .find(|(name, _)| longer(name) && authority.ends_with(name.as_str()))
            .or_else(|| {
                self.prefixes
                    .iter()
                    .find(|(name, _)| longer(name) && authority.starts_with(name.as_str()))
            })
            .map(|(_, host)| host)
            .or(self.any.as_ref())
    }
}

/// An authority as hosts are looked up: lower case, without the dot of the root.
#[must_use]
pub fn normalize(authority: &str) -> Cow<'_, str> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, Some(port)),
        _ => (authority, None),
    };
    let bare = host.strip_suffix('.').unwrap_or(host);
    let changed = bare.len() != host.len() || authority.bytes().any(|b| b.is_ascii_uppercase());
    match port {
        _ if !changed => Cow::Borrowed(authority),
        Some(port) => Cow::Owned(format!("{}:{port}", bare.to_ascii_lowercase())),
        None => Cow::Owned(bare.to_ascii_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicU32};

    use super::{LiveTable, normalize};
    use crate::{
        config::{Domain, PortProtocol, RouteTable, VirtualHost},
        snapshot::LiveHost,
    };

    #[test]
    fn authorities_are_normalized() {
        for (input, expected) in [
            ("post", "post"),
            ("Post.Blog", "post.blog"),
            ("post.blog.", "post.blog"),
            ("post.blog.:80", "post.blog:80"),
            ("POST:80", "post:80"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(normalize(input), expected, "{input}");
        }
    }

    #[test]
    fn the_most_specific_domain_wins() {
        let domains = [
            ("exact", Domain::Exact("post.blog".into())),
            ("short", Domain::Suffix(".blog".into())),
            ("long", Domain::Suffix(".v2.blog".into())),
            ("prefix", Domain::Prefix("post.".into())),
            ("any", Domain::Any),
        ];
        let hosts: Vec<Arc<LiveHost>> = domains
            .into_iter()
            .map(|(name, domain)| {
                let config = VirtualHost {
                    name: name.into(),
                    domains: vec![domain],
                    routes: vec![],
                    protocol: PortProtocol::Detected,
                    addresses: None,
                    warnings: vec![],
                };
                Arc::new(LiveHost {
                    config: Arc::new(config),
                    routes: vec![],
                    tcp: Vec::new(),
                    unrouted: None,
                    last_used: AtomicU32::new(0),
                })
            })
            .collect();
        let config = RouteTable {
            name: "t".into(),
            virtual_hosts: vec![],
            on_demand: false,
            warnings: vec![],
        };
        let table = LiveTable::new(Arc::new(config), &hosts);
        for (authority, expected) in [
            ("post.blog", "exact"),
            ("web.blog", "short"),
            ("a.v2.blog", "long"),
            ("post.shop", "prefix"),
            ("post.", "any"),
            (".blog", "any"),
            ("other", "any"),
        ] {
            let found = table.find(authority).map(|host| &*host.config.name);
            assert_eq!(found, Some(expected), "{authority}");
        }
    }
}
