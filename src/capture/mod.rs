//! Transparent capture: the rules that lead an application's traffic through the sidecar.
//!
//! [`Options`] → [`plan::Plan`] (pure) → kernel, by nf_tables or by the programs of iptables.
//! Everything that is made is in tables, chains and a routing table of our own, and
//! [`remove`] takes all of it away. What is captured is written in docs/capture.md.

mod addresses;
mod check;
mod command;
pub mod datagram;
mod foreign;
mod iptables;
mod netlink;
mod nft;
mod options;
mod plan;
mod policy;
mod route;

use std::{fs, io, net::IpAddr, path::Path};

use rustix::io::Errno;

pub use self::{
    check::Proof,
    command::main,
    options::{Backend, Cidr, Mode, Options, OptionsError, PortRange, Settings},
};
use self::{
    foreign::Found,
    iptables::Programs,
    plan::{Family, Plan},
};

/// What is in force after [`install`].
#[derive(Clone, Debug)]
pub struct Report {
    /// Who installed the rules; never [`Backend::Auto`].
    pub backend: Backend,
    /// Whether IPv6 is captured.
    pub ipv6: bool,
    /// What the operator should know; one line each.
    pub notes: Vec<String>,
    /// What the self test showed.
    pub proof: Proof,
}

/// Why nothing is captured. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The process may not change the network.
    #[error(
        "no permission to change the network of this namespace: give the container the capability \
         NET_ADMIN (securityContext.capabilities.add), or run this as root"
    )]
    NotPermitted,
    /// Another mesh has its rules here.
    #[error("{0}")]
    Foreign(String),
    /// No way of installing the rules works.
    #[error(
        "no way to install the rules: {}; load nf_tables, or install the package iptables",
        .0.join("; ")
    )]
    NoBackend(Vec<String>),
    /// IPv6 works on an interface, but not on `lo`, which captured connections take.
    #[error(
        "IPv6 is on, but off for the loopback interface: set the sysctl \
         net.ipv6.conf.lo.disable_ipv6=0, or leave IPv6 alone with --no-ipv6"
    )]
    NoLoopbackIpv6,
    /// Our routing table has routes of somebody else.
    #[error(
        "routing table 133 has a route to {0} that is not ours: move it to another table, or use \
         --mode redirect"
    )]
    Routes(Cidr),
    /// The kernel refused a part.
    #[error("{0}")]
    Kernel(String),
    /// The rules are there, and do not do what they should; they were removed again.
    #[error(
        "self test: {0}. The rules were removed again. Is the loopback interface up (`ip link set \
         lo up`)? Do other rules come first, or switch conntrack off (`nft list ruleset`, \
         `iptables-save`)? A sandbox without address translation cannot capture"
    )]
    NotCaptured(String),
    /// [`check`] found that nothing is captured.
    #[error("{0}; was `weft-proxy init` run in this network namespace, with the same options?")]
    CheckFailed(String),
}

/// The rules as text: nft syntax, or what the programs of iptables read.
#[must_use]
pub fn print(options: &Options) -> String {
    let plan = Plan::new(options, true);
    let mut text = match options.settings().backend {
        Backend::Auto | Backend::Nft => plan.to_string(),
        Backend::Iptables | Backend::IptablesLegacy => {
            let mut text = format!(
                "# iptables\n{}",
                iptables::restore_text(Some(&plan), "", Family::V4)
            );
            if plan.ipv6 {
                text.push_str("# ip6tables\n");
                text.push_str(&iptables::restore_text(Some(&plan), "", Family::V6));
            }
            text
        }
    };
    for line in route::commands(options, plan.ipv6) {
        text.push_str(&format!("# {line}\n"));
    }
    text
}

/// Puts the rules in force, in place of those of an earlier call or version, and proves that
/// they work. Takes at most 2 s when they do not.
///
/// # Errors
/// Then nothing of ours is left, unless the error came before anything was changed.
pub fn install(options: &Options) -> Result<Report, CaptureError> {
    let seen = Seen::look()?;
    if let Some(text) = foreign::explain(&seen.chains) {
        return Err(CaptureError::Foreign(text));
    }
    let mut notes = seen.notes.clone();
    let ipv6 = options.settings().ipv6 && has_ipv6(Path::new(IPV6_SETTINGS))?;
    if options.settings().ipv6 && !ipv6 {
        notes.push("IPv6 is switched off here: only IPv4 is captured".to_owned());
    }
    let installed = install_all(options, ipv6, &seen, &mut notes);
    let result = installed.and_then(|backend| {
        let proof = check::run(options, ipv6).map_err(CaptureError::NotCaptured)?;
        Ok(Report {
            backend,
            ipv6,
            notes,
            proof,
        })
    });
    if result.is_err() {
        // The first error is the one to tell.
        let _ = remove();
    }
    result
}

/// Takes away everything that [`install`] made, by whatever backend and mode; it is no error
/// if nothing is there.
///
/// # Errors
/// When something could not be removed.
pub fn remove() -> Result<(), CaptureError> {
    let seen = Seen::look()?;
    // As long as routing leads anything here, rules take it.
    for family in [Family::V4, Family::V6] {
        route::apply(None, family).map_err(CaptureError::Kernel)?;
    }
    for backend in BACKENDS {
        seen.remove_ours(backend)?;
    }
    route::remove_source_v6().map_err(CaptureError::Kernel)
}

/// Proves that the rules are in force; needs no privilege and changes nothing.
///
/// # Errors
/// When a connection or a query did not arrive.
pub fn check(options: &Options) -> Result<Proof, CaptureError> {
    let ipv6 = options.settings().ipv6 && has_ipv6(Path::new(IPV6_SETTINGS))?;
    check::run(options, ipv6).map_err(CaptureError::CheckFailed)
}

/// Where peers reach this machine: the addresses of the interface that a default route leaves
/// by, those of IPv4 first; temporary ones are left out. None without such a route.
///
/// # Errors
/// When the kernel does not tell.
pub fn own_addresses() -> Result<Vec<IpAddr>, CaptureError> {
    addresses::addresses()
        .map_err(|error| CaptureError::Kernel(format!("addresses: {}", netlink::explain(error))))
}

const BACKENDS: [Backend; 3] = [Backend::Nft, Backend::Iptables, Backend::IptablesLegacy];
const IPV6_SETTINGS: &str = "/proc/sys/net/ipv6/conf";

fn install_all(
    options: &Options,
    ipv6: bool,
    seen: &Seen,
    notes: &mut Vec<String>,
) -> Result<Backend, CaptureError> {
    let is_route = options.settings().mode == Mode::Route;
    // In mode route rules drop what would leave in plaintext, so they come first and go last.
    if !is_route {
        install_routes(options, ipv6)?;
    }
    let plan = Plan::new(options, ipv6);
    let backend = first_that_works(options.settings().backend, |backend| match backend {
        Backend::Iptables | Backend::IptablesLegacy => with_iptables(backend, &plan),
        Backend::Auto | Backend::Nft => nft::install(&plan)
            .map(|()| Vec::new())
            .map_err(|error| error.to_string()),
    });
    let (backend, own, refused) = backend.map_err(CaptureError::NoBackend)?;
    notes.extend(own);
    notes.extend(
        refused
            .into_iter()
            .map(|why| format!("{why}; using {backend}")),
    );
    if is_route {
        install_routes(options, ipv6)?;
    }
    for other in BACKENDS.into_iter().filter(|other| *other != backend) {
        seen.remove_ours(other)?;
    }
    Ok(backend)
}

/// The routes that the mode needs, and not those that another one needed.
fn install_routes(options: &Options, ipv6: bool) -> Result<(), CaptureError> {
    let routes = route::routes()
        .map_err(|error| CaptureError::Kernel(format!("routes: {}", netlink::explain(error))))?;
    let mut in_ours = routes
        .iter()
        .filter(|one| one.table == route::ROUTING_TABLE);
    if options.settings().mode != Mode::Redirect
        && let Some(foreign) = in_ours.find(|one| !one.is_ours)
    {
        return Err(CaptureError::Routes(foreign.to));
    }
    for (family, wanted) in [(Family::V4, true), (Family::V6, ipv6)] {
        let options = wanted.then_some(options);
        route::apply(options, family).map_err(CaptureError::Kernel)?;
    }
    let result = if ipv6 {
        route::add_source_v6()
    } else {
        route::remove_source_v6()
    };
    result.map_err(CaptureError::Kernel)
}

/// Tries backends in their order; the one that worked with its result, and what the ones before
/// it said.
fn first_that_works<T>(
    wanted: Backend,
    mut attempt: impl FnMut(Backend) -> Result<T, String>,
) -> Result<(Backend, T, Vec<String>), Vec<String>> {
    let only = [wanted];
    let order = if wanted == Backend::Auto {
        &BACKENDS[..]
    } else {
        &only
    };
    let mut refused = Vec::new();
    for backend in order {
        match attempt(*backend) {
            Ok(done) => return Ok((*backend, done, refused)),
            Err(why) => refused.push(why),
        }
    }
    Err(refused)
}

/// Installs by these programs; what the operator should know then.
fn with_iptables(backend: Backend, plan: &Plan) -> Result<Vec<String>, String> {
    let v4 = Programs::find(backend, Family::V4)?;
    let v6 = match Programs::find(backend, Family::V6) {
        Ok(v6) => Some(v6),
        Err(why) if plan.ipv6 => return Err(why),
        Err(_) => None,
    };
    let why_v4 = v4.apply(Some(plan))?;
    let result = match v6 {
        Some(v6) if plan.ipv6 => v6.apply(Some(plan)),
        // Rules of an earlier call, if the program can look at all.
        Some(v6) if v6.saved().is_ok() => v6.apply(None),
        _ => Ok(None),
    };
    if result.is_err() {
        // The first error is the one to tell.
        let _ = v4.apply(None);
    }
    let why_v6 = result?;
    let note = |why| format!("calls of the sidecar to its application stay in conntrack: {why}");
    Ok(why_v4.into_iter().chain(why_v6).map(note).collect())
}

/// What is in the kernel before we touch it.
struct Seen {
    chains: Vec<Found>,
    notes: Vec<String>,
}

const LEGACY: &str = "iptables-legacy";

impl Seen {
    fn look() -> Result<Self, CaptureError> {
        let mut chains = Vec::new();
        match nft::chains() {
            Ok(found) => chains.extend(found.into_iter().map(|one| Found {
                table: format!("{} {}", one.family, one.table),
                chain: one.chain,
            })),
            Err(Errno::PERM | Errno::ACCESS) => return Err(CaptureError::NotPermitted),
            // No nf_tables in this kernel: nobody has rules there.
            Err(_) => {}
        }
        let mut notes = Vec::new();
        for (family, names) in [
            (Family::V4, "/proc/net/ip_tables_names"),
            (Family::V6, "/proc/net/ip6_tables_names"),
        ] {
            let tables = fs::read_to_string(names).unwrap_or_default();
            if tables.trim().is_empty() {
                continue;
            }
            let saved = Programs::find(Backend::IptablesLegacy, family)
                .and_then(|programs| programs.saved());
            match saved {
                Ok(saved) => chains.extend(iptables::chains(&saved, LEGACY)),
                Err(why) => notes.push(format!(
                    "there are legacy tables ({}) that could not be looked into: {why}",
                    tables.split_whitespace().collect::<Vec<_>>().join(", ")
                )),
            }
        }
        Ok(Self { chains, notes })
    }

    /// Removes what this backend installed, if it was seen.
    fn remove_ours(&self, backend: Backend) -> Result<(), CaptureError> {
        let is_legacy = |found: &&Found| found.table.starts_with(LEGACY);
        let is_there = match backend {
            Backend::Auto => false,
            Backend::Nft => self.chains.iter().any(Found::is_ours_in_nft),
            Backend::Iptables => {
                let mut chains = self.chains.iter().filter(|found| !is_legacy(found));
                chains.any(Found::is_ours_in_iptables)
            }
            Backend::IptablesLegacy => {
                let mut chains = self.chains.iter().filter(is_legacy);
                chains.any(Found::is_ours_in_iptables)
            }
        };
        if !is_there {
            return Ok(());
        }
        if backend == Backend::Nft {
            return nft::remove().map_err(|error| match error.errno {
                Errno::PERM => CaptureError::NotPermitted,
                _ => CaptureError::Kernel(error.to_string()),
            });
        }
        for family in [Family::V4, Family::V6] {
            let removed = Programs::find(backend, family).and_then(|programs| programs.apply(None));
            removed.map(drop).map_err(|why| {
                CaptureError::Kernel(format!("rules of {backend} could not be removed: {why}"))
            })?;
        }
        Ok(())
    }
}

/// Whether there is IPv6 here: some interface has it, and so does `lo`.
fn has_ipv6(settings: &Path) -> Result<bool, CaptureError> {
    let entries = match fs::read_dir(settings) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => {
            let path = settings.display();
            return Err(CaptureError::Kernel(format!("{path}: {error}")));
        }
    };
    let is_on = |name: &Path| {
        let value = fs::read_to_string(settings.join(name).join("disable_ipv6"));
        value.is_ok_and(|value| value.trim() == "0")
    };
    let on_others = entries
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| !["all", "default", "lo"].iter().any(|other| name == *other))
        .any(|name| is_on(Path::new(&name)));
    match (is_on(Path::new("lo")), on_others) {
        (true, _) => Ok(true),
        (false, false) => Ok(false),
        (false, true) => Err(CaptureError::NoLoopbackIpv6),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        Backend, CaptureError, command::HELP, first_that_works, has_ipv6, options::parse, print,
    };

    #[test]
    fn ipv6_is_on_where_an_interface_has_it() {
        let there = tempfile::tempdir().unwrap();
        let set = |name: &str, value: &str| {
            fs::create_dir_all(there.path().join(name)).unwrap();
            fs::write(there.path().join(name).join("disable_ipv6"), value).unwrap();
        };
        assert!(!has_ipv6(&there.path().join("none")).unwrap());
        set("all", "0\n");
        set("default", "0\n");
        set("lo", "1\n");
        set("eth0", "1\n");
        assert!(!has_ipv6(there.path()).unwrap());
        set("eth0", "0\n");
        let error = has_ipv6(there.path()).unwrap_err();
        assert!(matches!(error, CaptureError::NoLoopbackIpv6), "{error}");
        set("lo", "0\n");
        assert!(has_ipv6(there.path()).unwrap());
    }

    #[test]
    fn backends_are_tried_in_their_order() {
        use Backend::{Auto, Iptables, IptablesLegacy, Nft};
        for (wanted, working, expected) in [
            (Auto, &[Nft, Iptables][..], Ok((Nft, 0))),
            (Auto, &[Iptables, IptablesLegacy], Ok((Iptables, 1))),
            (Auto, &[IptablesLegacy], Ok((IptablesLegacy, 2))),
            (Auto, &[], Err(3)),
            (Nft, &[Iptables], Err(1)),
            (Iptables, &[Nft, Iptables], Ok((Iptables, 0))),
        ] {
            let attempt = |backend: Backend| {
                if working.contains(&backend) {
                    Ok(())
                } else {
                    Err(format!("no {backend}"))
                }
            };
            let found = first_that_works(wanted, attempt)
                .map(|(backend, (), refused)| (backend, refused.len()))
                .map_err(|refused| refused.len());
            assert_eq!(found, expected, "{wanted} {working:?}");
        }
    }

    #[test]
    fn documentation_shows_these_rules_and_options() {
        let text = include_str!("../../docs/capture.md");
        let (_, options) = parse(&[]).unwrap();
        let help = "paste `weft-proxy init --print` into docs/capture.md";
        assert!(text.contains(&print(&options)), "{help}");
        let words = HELP.split([' ', '\n', '[', ']']);
        for option in words.filter(|word| word.starts_with("--")) {
            assert!(text.contains(&format!("`{option}")), "{option}");
        }
    }
}
