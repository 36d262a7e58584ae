//! A plan through the programs of iptables, for kernels and containers without nf_tables.
//!
//! `iptables-restore --noflush` for each family: each table changes at once. What the program
//! is to read is decided from the plan and from what `iptables-save` showed.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
};

use super::{
    foreign::{Found, PREFIX},
    options::Backend,
    plan::{Action, Elements, Family, Hook, Kind, MARK, Match, Plan, Protocol, Rule, Set},
};

/// Without these nothing is captured.
const NEEDED: [(Kind, &str); 2] = [(Kind::Nat, "nat"), (Kind::Mangle, "mangle")];
/// This one saves work; not every kernel and container has it.
const RAW: [(Kind, &str); 1] = [(Kind::Raw, "raw")];

/// The programs of one family.
#[derive(Clone, Debug)]
pub struct Programs {
    family: Family,
    save: String,
    restore: String,
}

impl Programs {
    /// Finds the programs of a backend.
    ///
    /// # Errors
    /// When they are not installed, or not of this kind.
    pub fn find(backend: Backend, family: Family) -> Result<Self, String> {
        let base = match family {
            Family::V6 => "ip6tables",
            Family::V4 | Family::Both => "iptables",
        };
        let (kind, package) = match backend {
            Backend::IptablesLegacy => ("legacy", "legacy"),
            Backend::Auto | Backend::Nft | Backend::Iptables => ("nft", "nf_tables"),
        };
        for name in [format!("{base}-{kind}"), base.to_owned()] {
            let restore = format!("{name}-restore");
            let Ok(output) = Command::new(&restore).arg("--version").output() else {
                continue;
            };
            let version = String::from_utf8_lossy(&output.stdout).into_owned();
            // Versions before 1.8 do not say what they are: they are legacy.
            let is_nft = version.contains("nf_tables");
            if output.status.success() && is_nft == (kind == "nft") {
                return Ok(Self {
                    family,
                    save: format!("{name}-save"),
                    restore,
                });
            }
        }
        Err(format!(
            "the programs {base}-{kind}-restore and {base}-{kind}-save ({package}) are not there; \
             install the package iptables"
        ))
    }

    /// What is in force, as `iptables-save` writes it.
    ///
    /// # Errors
    /// What the program wrote.
    pub fn saved(&self) -> Result<String, String> {
        let output = Command::new(&self.save)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("{}: {error}", self.save))?;
        if !output.status.success() {
            return Err(format!("{}: {}", self.save, said(&output.stderr)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Puts the plan in force in place of an earlier one; without a plan, removes what is ours.
    /// What is returned is why conntrack could not be told to leave alone what needs none, if so;
    /// everything else is in force then.
    ///
    /// # Errors
    /// What the program wrote.
    pub fn apply(&self, plan: Option<&Plan>) -> Result<Option<String>, String> {
        let saved = self.saved()?;
        self.restore(&tables_text(&NEEDED, plan, &saved, self.family))?;
        let Err(why) = self.restore(&tables_text(&RAW, plan, &saved, self.family)) else {
            return Ok(None);
        };
        self.restore(&tables_text(&RAW, None, &saved, self.family))?;
        Ok(Some(why))
    }

    fn restore(&self, text: &str) -> Result<(), String> {
        if text.is_empty() {
            return Ok(());
        }
        let mut child = Command::new(&self.restore)
            .args(["--noflush", "--wait", "5"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", self.restore))?;
        // A program that ends early says why on standard error.
        let written = child
            .stdin
            .take()
            .map(|mut stdin| stdin.write_all(text.as_bytes()));
        let output = child
            .wait_with_output()
            .map_err(|error| format!("{}: {error}", self.restore))?;
        if !output.status.success() {
            return Err(format!("{}: {}", self.restore, said(&output.stderr)));
        }
        match written {
            Some(Err(error)) => Err(format!("{}: {error}", self.restore)),
            _ => Ok(()),
        }
    }
}

/// The first lines of what a program wrote, on one line.
fn said(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    match lines.get(..lines.len().min(3)) {
        Some(first) if !first.is_empty() => first.join("; "),
        _ => "failed and did not say why".to_owned(),
    }
}

/// The chains that `iptables-save` shows.
#[must_use]
pub fn chains(saved: &str, program: &str) -> Vec<Found> {
    let mut table = "";
    let mut found = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':') {
            found.push(Found {
                table: format!("{program} {table}"),
                chain: chain.split(' ').next().unwrap_or_default().to_owned(),
            });
        }
    }
    found
}

/// What `iptables-restore --noflush` is to read; empty if there is nothing to do.
#[must_use]
pub fn restore_text(plan: Option<&Plan>, saved: &str, family: Family) -> String {
    let needed = tables_text(&NEEDED, plan, saved, family);
    needed + &tables_text(&RAW, plan, saved, family)
}

fn tables_text(
    tables: &[(Kind, &str)],
    plan: Option<&Plan>,
    saved: &str,
    family: Family,
) -> String {
    let mut text = String::new();
    for &(kind, table) in tables {
        let existing = Existing::read(saved, table);
        let mut chains = existing.chains.clone();
        let ours: Vec<_> = plan
            .iter()
            .flat_map(|plan| &plan.chains)
            .filter(|chain| chain.kind == kind)
            .collect();
        chains.extend(ours.iter().map(|chain| name(chain.name)));
        if chains.is_empty() {
            continue;
        }
        let _ = writeln!(text, "*{table}");
        // A chain that is declared is there, and empty.
        for chain in &chains {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for jump in &existing.jumps {
            let _ = writeln!(text, "-D {jump}");
        }
        for chain in &ours {
            for rule in chain.rules.iter().filter(|rule| concerns(rule, family)) {
                for line in lines(rule, family) {
                    let _ = writeln!(text, "-A {}{line}", name(chain.name));
                }
            }
        }
        for chain in &ours {
            // First, as ours decides before the translations of others.
            if let Some(hook) = chain.hook {
                let hook = match hook {
                    Hook::Prerouting => "PREROUTING",
                    Hook::Output => "OUTPUT",
                };
                let _ = writeln!(text, "-I {hook} 1 -j {}", name(chain.name));
            }
        }
        for chain in &existing.chains {
            if !ours.iter().any(|kept| name(kept.name) == *chain) {
                let _ = writeln!(text, "-X {chain}");
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// What is ours in a table.
struct Existing {
    chains: BTreeSet<String>,
    /// Rules of other chains that lead to ours: chain and rule.
    jumps: Vec<String>,
}

impl Existing {
    fn read(saved: &str, table: &str) -> Self {
        let mut found = Self {
            chains: BTreeSet::new(),
            jumps: Vec::new(),
        };
        let mut here = false;
        for line in saved.lines() {
            if let Some(name) = line.strip_prefix('*') {
                here = name == table;
            } else if !here {
            } else if let Some(chain) = line.strip_prefix(':') {
                let chain = chain.split(' ').next().unwrap_or_default();
                if chain.starts_with(PREFIX) {
                    found.chains.insert(chain.to_owned());
                }
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let target = rule.split(" -j ").nth(1);
                if target.is_some_and(|target| target.starts_with(PREFIX)) {
                    found.jumps.push(rule.to_owned());
                }
            }
        }
        found
    }
}

fn name(chain: &str) -> String {
    format!("{PREFIX}{}", chain.to_uppercase())
}

fn concerns(rule: &Rule, family: Family) -> bool {
    rule.family() == Family::Both || rule.family() == family
}

/// The rule, once for each element of its set.
fn lines(rule: &Rule, family: Family) -> Vec<String> {
    let mut lines = vec![String::new()];
    for one in &rule.matches {
        let forms = forms(one);
        lines = lines
            .iter()
            .flat_map(|line| forms.iter().map(move |form| format!("{line} {form}")))
            .collect();
    }
    let action = action(rule.action, family);
    lines
        .iter()
        .map(|line| format!("{line} {action}"))
        .collect()
}

/// A match; a set becomes one for each of its elements.
fn forms(one: &Match) -> Vec<String> {
    let form = match one {
        // The other family's rules are another file.
        Match::Ipv6 => String::new(),
        Match::Tcp => "-p tcp".to_owned(),
        Match::NotTcp => "! -p tcp".to_owned(),
        Match::ToPort(Protocol::Tcp, port) => format!("-p tcp --dport {port}"),
        Match::ToPort(Protocol::Udp, port) => format!("-p udp --dport {port}"),
        Match::FromPort(port) => format!("-p tcp --sport {port}"),
        Match::To(cidr) => format!("-d {cidr}"),
        Match::ToAddress(address) => format!("-d {address}"),
        Match::FromAddress(address) => format!("-s {address}"),
        Match::In(set) => return elements(set, "--dport"),
        Match::FromIn(set) => return elements(set, "--sport"),
        Match::OutLoopback => "-o lo".to_owned(),
        Match::NotOutLoopback => "! -o lo".to_owned(),
        Match::InLoopback => "-i lo".to_owned(),
        Match::NotToLocal => "-m addrtype ! --dst-type LOCAL".to_owned(),
        Match::ToLocal => "-m addrtype --dst-type LOCAL".to_owned(),
        Match::NotFromLocal => "-m addrtype ! --src-type LOCAL".to_owned(),
        Match::User(id) => format!("-m owner --uid-owner {id}"),
        Match::Group(id) => format!("-m owner --gid-owner {id}"),
        Match::Reply => "-m conntrack --ctdir REPLY".to_owned(),
        Match::New => "-m conntrack --ctstate NEW".to_owned(),
        Match::NotInvalid => "-m conntrack ! --ctstate INVALID".to_owned(),
        Match::Marked => format!("-m connmark --mark {MARK:#x}"),
        Match::PacketMarked(mark) => format!("-m mark --mark {mark:#x}"),
        Match::NotOpening => "-p tcp ! --tcp-flags FIN,SYN,RST,ACK SYN".to_owned(),
        Match::Reset => "-p tcp --tcp-flags RST RST".to_owned(),
    };
    vec![form]
}

/// A match for each element; `port` says which port is meant.
fn elements(set: &Set, port: &str) -> Vec<String> {
    match &set.elements {
        Elements::Ports(ports) => ports
            .iter()
            .map(|range| format!("-p tcp {port} {}:{}", range.first(), range.last()))
            .collect(),
        Elements::Users(users) => users
            .iter()
            .map(|user| format!("-m owner --uid-owner {user}"))
            .collect(),
        Elements::V4(cidrs) | Elements::V6(cidrs) => {
            cidrs.iter().map(|cidr| format!("-d {cidr}")).collect()
        }
    }
}

fn action(action: Action, family: Family) -> String {
    match action {
        Action::Leave => "-j RETURN".to_owned(),
        Action::Drop => "-j DROP".to_owned(),
        Action::Goto(chain) => format!("-g {}", name(chain)),
        Action::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
        Action::Tproxy(port) => {
            let any = if family == Family::V6 {
                "::"
            } else {
                "0.0.0.0"
            };
            format!("-j TPROXY --on-port {port} --on-ip {any} --tproxy-mark 0x0/0x0")
        }
        Action::MarkConnection => format!("-j CONNMARK --set-xmark {MARK:#x}/0xffffffff"),
        Action::MarkPacket(mark) => format!("-j MARK --set-xmark {mark:#x}/0xffffffff"),
        Action::Untrack => "-j CT --notrack".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{chains, restore_text};
    use crate::capture::{
        options::parse,
        plan::{Family, Plan},
    };

    fn plan(line: &str) -> Plan {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Plan::new(&parse(&args).unwrap().1, true)
    }

    #[test]
    fn a_rule_becomes_one_line_for_each_element_and_only_those_of_its_family() {
        let plan = plan(
            "--exclude-outbound-cidrs 10.0.0.0/8,fd00::/8 --only-uids 3,4 --mode tproxy \
             --exclude-inbound-ports 22,30-40",
        );
        for (family, there, not_there) in [
            (
                Family::V4,
                &[
                    "-A WEFT_OUTBOUND -m owner --uid-owner 3 -g WEFT_OUTBOUND_DESTINATION\n",
                    "-A WEFT_OUTBOUND -m owner --uid-owner 4 -g WEFT_OUTBOUND_DESTINATION\n",
                    "-A WEFT_OUTBOUND_DESTINATION -d 10.0.0.0/8 -j RETURN\n",
                    "-A WEFT_INBOUND -p tcp --dport 30:40 -j RETURN\n",
                    "-j TPROXY --on-port 14006 --on-ip 0.0.0.0 ",
                    "-I PREROUTING 1 -j WEFT_INBOUND\n",
                ][..],
                "fd00",
            ),
            (
                Family::V6,
                &[
                    "-A WEFT_OUTBOUND_DESTINATION -d fd00::/8 -j RETURN\n",
                    "-A WEFT_OUTBOUND_SIDECAR -s ::6 -j RETURN\n",
                    "--on-ip :: ",
                ],
                "127.0.0",
            ),
        ] {
            let text = restore_text(Some(&plan), "", family);
            for part in there {
                assert!(text.contains(part), "{part} in\n{text}");
            }
            assert!(!text.contains(not_there), "{not_there} in\n{text}");
            assert_eq!(text.matches("COMMIT\n").count(), 2, "{text}");
            assert!(!text.contains("*raw"), "{text}");
        }
    }

    const SAVED: &str = "*mangle\n:OUTPUT ACCEPT [0:0]\n:WEFT_OLD - [0:0]\n\
         -A OUTPUT -j WEFT_OLD\n-A OUTPUT -j USERS\nCOMMIT\n\
         *nat\n:OUTPUT ACCEPT [1:60]\n:USERS - [0:0]\n:WEFT_OUTBOUND - [0:0]\n\
         -A OUTPUT -j WEFT_OUTBOUND\n-A OUTPUT -j USERS\n-A WEFT_OUTBOUND -j RETURN\nCOMMIT\n";

    #[test]
    fn what_is_ours_is_replaced_or_removed_and_nothing_else() {
        let text = restore_text(None, SAVED, Family::V4);
        assert_eq!(
            text,
            "*nat\n:WEFT_OUTBOUND - [0:0]\n-D OUTPUT -j WEFT_OUTBOUND\n-X WEFT_OUTBOUND\nCOMMIT\n\
             *mangle\n:WEFT_OLD - [0:0]\n-D OUTPUT -j WEFT_OLD\n-X WEFT_OLD\nCOMMIT\n"
        );
        let text = restore_text(Some(&plan("")), SAVED, Family::V4);
        assert!(text.contains("-D OUTPUT -j WEFT_OUTBOUND\n"), "{text}");
        assert!(!text.contains("-X WEFT_OUTBOUND\n"), "{text}");
        assert!(text.contains("-X WEFT_OLD\n"), "{text}");
        assert!(!text.contains("USERS"), "{text}");
        assert_eq!(restore_text(None, "", Family::V4), "");
    }

    #[test]
    fn chains_are_found_with_their_tables() {
        let found: Vec<String> = chains(SAVED, "iptables-legacy")
            .into_iter()
            .map(|found| format!("{} {}", found.table, found.chain))
            .collect();
        assert_eq!(found[1], "iptables-legacy mangle WEFT_OLD");
        assert_eq!(found[3], "iptables-legacy nat USERS");
        assert_eq!(found.len(), 5);
    }
}
