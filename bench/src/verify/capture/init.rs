//! `weft-proxy init` where it is not welcome: missing rights, rules of others, no IPv6,
//! settings that contradict each other. Whatever happens, rules of others stay.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use crate::error::{Context as _, Result};
use crate::netns::{Host, Network, User, write_sysctl};
use crate::process::{Output, exit_text, which};
use crate::verify::{Cases, Finding, Setting, seen};

const LIMIT: Duration = Duration::from_secs(20);
/// Rules that have nothing to do with the mesh.
const FOREIGN: &str = "table inet firewall { chain input { type filter hook input priority 0; policy accept; tcp dport 23 drop; }; }\n\
                       table ip nat { chain own { type nat hook output priority -90; policy accept; tcp dport 8125 redirect to :8126; }; }";

pub(super) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let network = Network::new()?;
    let mut number = 10;
    let mut host = |label: &str| {
        number += 1;
        let host = network.host(label, number, IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        Ok::<_, crate::error::Error>(Place { host, setting })
    };
    for mode in ["redirect", "tproxy", "route"] {
        let place = host(&format!("twice-{mode}"))?;
        let expected = "exit 0, and the second run leaves the rules as the first did";
        cases
            .check(&format!("twice-{mode}"), expected, place.twice(mode))
            .await;
        let place = host(&format!("kept-{mode}"))?;
        let expected =
            "rules of others are there unchanged after init, and nothing else is after --remove";
        cases
            .check(&format!("foreign-rules-{mode}"), expected, place.kept(mode))
            .await;
    }
    let place = host("rights")?;
    let expected = "exit 1 that names NET_ADMIN; no rules";
    cases
        .check("no-net-admin", expected, place.without_rights())
        .await;
    let place = host("mesh")?;
    let check = place.refused(
        "table ip nat { chain ISTIO_OUTPUT { }; }",
        &[],
        "ISTIO_OUTPUT",
        1,
    );
    cases
        .check(
            "other-mesh",
            "exit 1 that names ISTIO_OUTPUT; the rules are unchanged",
            check,
        )
        .await;
    let place = host("no6")?;
    let expected = "exit 0 that says so; IPv4 is captured";
    cases.check("no-ipv6", expected, place.without_ipv6()).await;
    for (name, args, named) in [
        ("port-twice", &["--inbound-port", "14001"][..], "14001"),
        (
            "port-excluded",
            &["--exclude-inbound-ports", "14006"],
            "14006",
        ),
        ("own-user", &["--exclude-uids", "14020"], "14020"),
        (
            "no-number",
            &["--exclude-outbound-ports", "80,http"],
            "http",
        ),
        (
            "no-network",
            &["--exclude-outbound-cidrs", "10.0.0.0/33"],
            "10.0.0.0/33",
        ),
        ("no-option", &["--inbound-prots", "80"], "--inbound-prots"),
    ] {
        let place = host(name)?;
        let code = if name == "no-option" { 2 } else { 0 };
        let expected = format!("a failure that names {named}; no rules");
        cases
            .check(name, expected, place.refused("", args, named, code))
            .await;
    }
    let place = host("check")?;
    let expected = "`init --check` fails before init, passes after it, fails after --remove";
    cases.check("check", expected, place.check()).await;
    Ok(())
}

/// A host that nobody else uses.
struct Place<'a> {
    host: Host,
    setting: &'a Setting,
}

impl Place<'_> {
    fn dir(&self) -> &Path {
        self.setting.dir()
    }

    async fn init(&self, args: &[&str]) -> Result<Output> {
        let spec = self
            .host
            .spec("init", &self.setting.programs.proxy, User::Root)
            .arg("init");
        args.iter()
            .fold(spec, |spec, arg| spec.arg(arg))
            .run(self.dir(), LIMIT)
            .await
    }

    async fn nft(&self, args: &[&str]) -> Result<String> {
        let spec = self
            .host
            .spec("nft", which("nft").context("no nft")?, User::Root);
        let output = args
            .iter()
            .fold(spec, |spec, arg| spec.arg(arg))
            .run(self.dir(), LIMIT)
            .await?;
        output.ok("nft")
    }

    async fn rules(&self) -> Result<String> {
        self.nft(&["list", "ruleset"]).await
    }

    async fn twice(&self, mode: &str) -> Result<Finding> {
        let first = self.init(&["--mode", mode]).await?;
        let rules = self.rules().await?;
        let second = self.init(&["--mode", mode]).await?;
        let again = self.rules().await?;
        let ok = first.status.success()
            && second.status.success()
            && rules == again
            && rules.contains("14006");
        Ok(seen(
            ok,
            format!(
                "{}, {}, {} lines of rules, the same: {}{}",
                exit_text(first.status),
                exit_text(second.status),
                rules.lines().count(),
                rules == again,
                said(&[&first, &second])
            ),
        ))
    }

    async fn kept(&self, mode: &str) -> Result<Finding> {
        self.nft(&[FOREIGN]).await?;
        let before = self.rules().await?;
        let first = self.init(&["--mode", mode]).await?;
        let with = self.rules().await?;
        let removed = self.init(&["--mode", mode, "--remove"]).await?;
        let after = self.rules().await?;
        let kept = before.lines().all(|line| with.contains(line)) && with.len() > before.len();
        let ok = first.status.success() && removed.status.success() && kept && before == after;
        Ok(seen(
            ok,
            format!(
                "{}, {}; kept: {kept}; as before after --remove: {}{}",
                exit_text(first.status),
                exit_text(removed.status),
                before == after,
                said(&[&first, &removed])
            ),
        ))
    }

    async fn without_rights(&self) -> Result<Finding> {
        let spec = self
            .host
            .spec("init", which("setpriv").context("no setpriv")?, User::Root);
        let spec = spec
            .pair("--bounding-set", "-net_admin")
            .pair("--inh-caps", "-net_admin");
        let output = spec
            .arg("--")
            .arg(&self.setting.programs.proxy)
            .arg("init")
            .run(self.dir(), LIMIT)
            .await?;
        let rules = self.rules().await?;
        let ok = output.status.code() == Some(1)
            && output.stderr.contains("NET_ADMIN")
            && rules.is_empty();
        Ok(seen(
            ok,
            format!(
                "{}: {}{rules}",
                exit_text(output.status),
                output.stderr.trim()
            ),
        ))
    }

    /// With these rules in place and these arguments it fails, names `named`, and changes
    /// nothing. `code` is the exit code, 0 for any failure.
    async fn refused(&self, rules: &str, args: &[&str], named: &str, code: i32) -> Result<Finding> {
        if !rules.is_empty() {
            self.nft(&[rules]).await?;
        }
        let before = self.rules().await?;
        let output = self.init(args).await?;
        let unchanged = before == self.rules().await?;
        let failed = match (output.status.code(), code) {
            (Some(seen), 0) => seen == 1 || seen == 2,
            (seen, code) => seen == Some(code),
        };
        let ok = failed && unchanged && output.stderr.contains(named);
        let line = crate::process::tail(output.stderr.trim(), 3);
        Ok(seen(
            ok,
            format!(
                "{}, rules unchanged: {unchanged}: {line}",
                exit_text(output.status)
            ),
        ))
    }

    async fn without_ipv6(&self) -> Result<Finding> {
        self.host
            .within(|| write_sysctl("ipv6/conf/all/disable_ipv6", "1"))??;
        let output = self.init(&[]).await?;
        let rules = self.rules().await?;
        let named = format!("{}{}", output.stdout, output.stderr).contains("IPv6");
        let ok = output.status.success() && named && rules.contains("14001");
        Ok(seen(
            ok,
            format!(
                "{}; says IPv6: {named}{}",
                exit_text(output.status),
                said(&[&output])
            ),
        ))
    }

    async fn check(&self) -> Result<Finding> {
        let before = self.init(&["--check"]).await?;
        let init = self.init(&[]).await?;
        let with = self.init(&["--check"]).await?;
        let removed = self.init(&["--remove"]).await?;
        let after = self.init(&["--check"]).await?;
        let all = [&before, &init, &with, &removed, &after];
        let codes: Vec<_> = all.iter().map(|output| output.status.code()).collect();
        let ok =
            codes == [Some(1), Some(0), Some(0), Some(0), Some(1)] && !before.stderr.is_empty();
        Ok(seen(
            ok,
            format!(
                "{codes:?}: {}",
                crate::process::tail(before.stderr.trim(), 1)
            ),
        ))
    }
}

/// What failed runs said.
fn said(outputs: &[&Output]) -> String {
    let failed = outputs.iter().filter(|output| !output.status.success());
    failed
        .map(|output| format!("\n{}", output.stderr.trim()))
        .collect()
}
