//! What to capture: settings, checked once, and the command line that gives them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// The sidecar's full admin interface; never captured.
pub const ADMIN_PORT: u16 = 14_000;
/// The sidecar's public admin interface; never captured.
pub const PUBLIC_ADMIN_PORT: u16 = 14_020;
/// Entries that one list may have.
pub const LONGEST_LIST: usize = 256;

/// How inbound connections reach the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The destination is rewritten; the application sees the sidecar as its caller.
    Redirect,
    /// Nothing is rewritten; the application sees the caller's address.
    Tproxy,
    /// Nothing is rewritten, nor tracked by the kernel, in either direction; the application sees
    /// the sidecar as its caller.
    Route,
}

/// Who puts the rules into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The first of the others that works.
    Auto,
    /// nf_tables through netlink; no program is needed.
    Nft,
    /// The programs `iptables-nft-restore` and `ip6tables-nft-restore`.
    Iptables,
    /// The programs `iptables-legacy-restore` and `ip6tables-legacy-restore`.
    IptablesLegacy,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redirect => "redirect",
            Self::Tproxy => "tproxy",
            Self::Route => "route",
        })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Nft => "nft",
            Self::Iptables => "iptables",
            Self::IptablesLegacy => "iptables-legacy",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "redirect" => Ok(Self::Redirect),
            "tproxy" => Ok(Self::Tproxy),
            "route" => Ok(Self::Route),
            _ => Err(format!("`{text}` is none of redirect, tproxy, route")),
        }
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "nft" => Ok(Self::Nft),
            "iptables" => Ok(Self::Iptables),
            "iptables-legacy" => Ok(Self::IptablesLegacy),
            _ => Err(format!(
                "`{text}` is none of auto, nft, iptables, iptables-legacy"
            )),
        }
    }
}

/// Ports from the first to the last, both included; written `80` or `8000-8100`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// At least 1.
    first: u16,
    /// Not below `first`.
    last: u16,
}

impl PortRange {
    /// One port; none for 0, which is no port.
    #[must_use]
    pub const fn one(port: u16) -> Option<Self> {
        Self::new(port, port)
    }

    /// From the first to the last; none if that is backwards or begins with 0.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || first > last {
            return None;
        }
        Some(Self { first, last })
    }

    /// The first port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether the port is in it.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (number::<u16>(first), number::<u16>(last)) {
            (Some(0), _) | (_, Some(0)) => Err("0 is no port; ports are 1 to 65535".to_owned()),
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            (Some(first), Some(last)) => {
                Err(format!("`{text}` runs backwards; write {last}-{first}"))
            }
            _ => Err(format!(
                "`{text}` is no port; write 1 to 65535, or a range as in 8000-8100"
            )),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Addresses with a common prefix; no bit is set after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// 127.0.0.0/8.
    pub const LOOPBACK_V4: Self = Self {
        address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)),
        prefix: 8,
    };
    /// ::1.
    pub const LOOPBACK_V6: Self = Self {
        address: IpAddr::V6(Ipv6Addr::LOCALHOST),
        prefix: 128,
    };

    /// The prefix as it is, or none if it is too long or bits are set after it.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let cidr = Self { address, prefix };
        (prefix <= width(address) && cidr.base() == address).then_some(cidr)
    }

    /// The first address.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// How many leading bits are common.
    #[must_use]
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether the address is in it; never for the other family.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && mask(address, self.prefix) == self.address
    }

    fn base(self) -> IpAddr {
        mask(self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no network; write one as in 10.0.0.0/8, fd00::/8 or 10.1.2.3");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix = match prefix {
            Some(prefix) => number::<u8>(prefix)
                .filter(|prefix| *prefix <= width(address))
                .ok_or_else(wrong)?,
            None => width(address),
        };
        Self::new(address, prefix).ok_or_else(|| {
            let base = mask(address, prefix);
            format!("`{text}` has bits after its prefix; write {base}/{prefix}")
        })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == width(self.address) {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}

const fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The address with only its first `prefix` bits.
fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

/// Digits only: no sign, no blanks.
fn number<T: FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// What is wished for; the defaults are those of `weft-proxy init`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How inbound connections reach the sidecar.
    pub mode: Mode,
    /// Who installs the rules.
    pub backend: Backend,
    /// The inbound ports to capture; none: all.
    pub inbound_ports: Option<Vec<PortRange>>,
    /// Inbound ports that stay with the application.
    pub exclude_inbound_ports: Vec<PortRange>,
    /// Destination ports that are not captured; 53 excludes DNS too.
    pub exclude_outbound_ports: Vec<PortRange>,
    /// Destinations that are not captured, DNS to them included.
    pub exclude_outbound_cidrs: Vec<Cidr>,
    /// Users whose traffic is not captured.
    pub exclude_uids: Vec<u32>,
    /// The only users whose traffic is captured; empty: all.
    pub only_uids: Vec<u32>,
    /// Whether DNS queries go to the sidecar.
    pub dns: bool,
    /// Whether IPv6 is captured.
    pub ipv6: bool,
    /// The sidecar's user.
    pub proxy_uid: u32,
    /// The sidecar's group.
    pub proxy_gid: u32,
    /// Where the sidecar takes inbound connections.
    pub inbound_port: u16,
    /// Where it takes outbound ones.
    pub outbound_port: u16,
    /// Where it answers DNS.
    pub dns_port: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Redirect,
            backend: Backend::Auto,
            inbound_ports: None,
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            exclude_uids: Vec::new(),
            only_uids: Vec::new(),
            dns: true,
            ipv6: true,
            proxy_uid: 14_020,
            proxy_gid: 14_020,
            inbound_port: 14_006,
            outbound_port: 14_001,
            dns_port: 14_053,
        }
    }
}

/// Settings without contradictions; lists are sorted and nothing is in them twice.
#[derive(Clone, Debug)]
pub struct Options(Settings);

/// What is wrong with the settings; one line each, naming the option and the fix.
#[derive(Debug)]
pub struct OptionsError(Vec<String>);

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for OptionsError {}

impl Options {
    /// Checks settings against each other.
    ///
    /// # Errors
    /// With everything that is wrong.
    pub fn new(mut settings: Settings) -> Result<Self, OptionsError> {
        let mut errors = Vec::new();
        check_ports(&settings, &mut errors);
        check_users(&settings, &mut errors);
        check_lengths(&settings, &mut errors);
        check_route(&settings, &mut errors);
        if !errors.is_empty() {
            return Err(OptionsError(errors));
        }
        if let Some(ports) = &mut settings.inbound_ports {
            merge_ports(ports);
        }
        merge_ports(&mut settings.exclude_inbound_ports);
        merge_ports(&mut settings.exclude_outbound_ports);
        merge_cidrs(&mut settings.exclude_outbound_cidrs);
        for list in [&mut settings.exclude_uids, &mut settings.only_uids] {
            list.sort_unstable();
            list.dedup();
        }
        Ok(Self(settings))
    }

    /// The settings.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.0
    }

    /// The ports of the sidecar, which are never captured on arrival.
    #[must_use]
    pub const fn sidecar_ports(&self) -> [u16; 5] {
        sidecar_ports(&self.0)
    }

    /// Whether a connection to this port leaves uncaptured.
    #[must_use]
    pub fn excludes_outbound_port(&self, port: u16) -> bool {
        let excluded = &self.0.exclude_outbound_ports;
        excluded.iter().any(|range| range.contains(port))
    }

    /// Whether DNS queries are captured: wished for, and port 53 is not excluded.
    #[must_use]
    pub fn captures_dns(&self) -> bool {
        self.0.dns && !self.excludes_outbound_port(53)
    }
}

const fn sidecar_ports(settings: &Settings) -> [u16; 5] {
    [
        ADMIN_PORT,
        settings.outbound_port,
        settings.inbound_port,
        PUBLIC_ADMIN_PORT,
        settings.dns_port,
    ]
}

fn check_ports(settings: &Settings, errors: &mut Vec<String>) {
    let named = [
        ("--inbound-port", settings.inbound_port),
        ("--outbound-port", settings.outbound_port),
        ("--dns-port", settings.dns_port),
    ];
    for (at, (option, port)) in named.iter().enumerate() {
        if *port == 0 {
            errors.push(format!("{option}: 0 is no port; choose one above 1023"));
        }
        if [ADMIN_PORT, PUBLIC_ADMIN_PORT].contains(port) {
            errors.push(format!(
                "{option}: {port} is an admin port of the sidecar; choose another one"
            ));
        }
        for (other, _) in named[..at].iter().filter(|(_, used)| used == port) {
            errors.push(format!(
                "{option} and {other} are both {port}; give each a port of its own"
            ));
        }
    }
    let own = sidecar_ports(settings);
    let captured = &own[1..3];
    let of_inbound = settings.inbound_ports.as_deref().unwrap_or_default();
    let lists: [(&str, &[PortRange], &[u16]); 3] = [
        ("--inbound-ports", of_inbound, &own),
        (
            "--exclude-inbound-ports",
            &settings.exclude_inbound_ports,
            &own,
        ),
        // Other workloads have admin ports too, which may well be excluded.
        (
            "--exclude-outbound-ports",
            &settings.exclude_outbound_ports,
            captured,
        ),
    ];
    for (option, ranges, reserved) in lists {
        for range in ranges {
            for port in reserved.iter().filter(|port| range.contains(**port)) {
                errors.push(format!(
                    "{option}: {range} has {port} in it, a port of the sidecar; leave it out"
                ));
            }
        }
    }
    if settings.inbound_ports.as_ref().is_some_and(Vec::is_empty) {
        errors.push("--inbound-ports: the list is empty; write `all` or ports".to_owned());
    }
}

fn check_users(settings: &Settings, errors: &mut Vec<String>) {
    let uid = settings.proxy_uid;
    if settings.exclude_uids.contains(&uid) {
        errors.push(format!(
            "--exclude-uids: {uid} is the sidecar's own user, which is never captured; leave it out"
        ));
    }
    if settings.only_uids.contains(&uid) {
        errors.push(format!(
            "--only-uids: {uid} is the sidecar's own user, whose traffic would come back to it for \
             ever; name the application's user"
        ));
    }
    if !settings.exclude_uids.is_empty() && !settings.only_uids.is_empty() {
        errors.push(
            "--exclude-uids and --only-uids: the second one already excludes all others; use one"
                .to_owned(),
        );
    }
    for (option, id) in [("--proxy-uid", uid), ("--proxy-gid", settings.proxy_gid)] {
        if id == u32::MAX {
            errors.push(format!(
                "{option}: {id} is no ID on Linux; choose a lower one"
            ));
        }
    }
}

/// What routing cannot tell apart.
fn check_route(settings: &Settings, errors: &mut Vec<String>) {
    if settings.mode != Mode::Route {
        return;
    }
    if settings.proxy_uid == 0 {
        errors.push(
            "--proxy-uid: in mode route the sidecar is known by its user, and the kernel's own \
             packets are root's; choose another user"
                .to_owned(),
        );
    }
    if settings.inbound_ports.is_some() {
        errors.push(
            "--inbound-ports: mode route captures all; name those that are not captured with \
             --exclude-inbound-ports, or use another mode"
                .to_owned(),
        );
    }
    for (option, ranges) in [
        ("--exclude-inbound-ports", &settings.exclude_inbound_ports),
        ("--exclude-outbound-ports", &settings.exclude_outbound_ports),
    ] {
        for range in ranges.iter().filter(|range| range.last == u16::MAX) {
            errors.push(format!(
                "{option}: {range} has 65535 in it, which rules of routing cannot name; leave it \
                 out, or use another mode"
            ));
        }
    }
}

fn check_lengths(settings: &Settings, errors: &mut Vec<String>) {
    let inbound = settings.inbound_ports.as_ref().map_or(0, Vec::len);
    for (option, length) in [
        ("--inbound-ports", inbound),
        (
            "--exclude-inbound-ports",
            settings.exclude_inbound_ports.len(),
        ),
        (
            "--exclude-outbound-ports",
            settings.exclude_outbound_ports.len(),
        ),
        (
            "--exclude-outbound-cidrs",
            settings.exclude_outbound_cidrs.len(),
        ),
        ("--exclude-uids", settings.exclude_uids.len()),
        ("--only-uids", settings.only_uids.len()),
    ] {
        if length > LONGEST_LIST {
            errors.push(format!(
                "{option}: {length} entries; at most {LONGEST_LIST}, use ranges or shorter prefixes"
            ));
        }
    }
}

/// Sorts; what overlaps or touches becomes one range.
fn merge_ports(ranges: &mut Vec<PortRange>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let touches = u32::from(next.first) <= u32::from(kept.last) + 1;
        if touches {
            kept.last = kept.last.max(next.last);
        }
        touches
    });
}

/// Sorts; what lies in another network goes (two networks never overlap in part).
fn merge_cidrs(cidrs: &mut Vec<Cidr>) {
    cidrs.sort_unstable();
    cidrs.dedup_by(|next, kept| kept.contains(next.address));
}

/// What `weft-proxy init` is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Install the rules and prove that they work.
    Install,
    /// Write the rules to standard output; touch nothing.
    Print,
    /// Prove that the rules work; change nothing.
    Check,
    /// Remove the rules.
    Remove,
}

/// Reads the arguments after `init`.
///
/// # Errors
/// With everything that is wrong.
pub fn parse(args: &[String]) -> Result<(Verb, Options), OptionsError> {
    let mut reader = Reader {
        args: args.iter(),
        errors: Vec::new(),
        seen: Vec::new(),
    };
    let mut settings = Settings::default();
    let mut verb = None;
    while let Some(arg) = reader.args.next() {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (arg.as_str(), None),
        };
        match (name, inline) {
            ("--no-dns", None) => settings.dns = false,
            ("--no-ipv6", None) => settings.ipv6 = false,
            ("--print" | "--check" | "--remove", None) => {
                let named = match name {
                    "--print" => Verb::Print,
                    "--check" => Verb::Check,
                    _ => Verb::Remove,
                };
                if verb.replace(named).is_some_and(|earlier| earlier != named) {
                    let error = "--print, --check and --remove: use one of them";
                    reader.errors.push(error.to_owned());
                }
            }
            _ => reader.value(name, inline, &mut settings),
        }
    }
    let mut errors = reader.errors;
    match Options::new(settings) {
        Ok(options) if errors.is_empty() => Ok((verb.unwrap_or(Verb::Install), options)),
        Ok(_) => Err(OptionsError(errors)),
        Err(more) => {
            errors.extend(more.0);
            Err(OptionsError(errors))
        }
    }
}

struct Reader<'a> {
    args: std::slice::Iter<'a, String>,
    errors: Vec<String>,
    seen: Vec<&'a str>,
}

impl<'a> Reader<'a> {
    fn value(&mut self, name: &'a str, inline: Option<&'a str>, settings: &mut Settings) {
        const KNOWN: [&str; 13] = [
            "--mode",
            "--backend",
            "--inbound-ports",
            "--exclude-inbound-ports",
            "--exclude-outbound-ports",
            "--exclude-outbound-cidrs",
            "--exclude-uids",
            "--only-uids",
            "--proxy-uid",
            "--proxy-gid",
            "--inbound-port",
            "--outbound-port",
            "--dns-port",
        ];
        if !KNOWN.contains(&name) {
            self.errors.push(format!(
                "{name}: no such option; see `weft-proxy init --help`"
            ));
            return;
        }
        if self.seen.contains(&name) {
            let error = format!("{name}: given twice; write one list, separated by commas");
            self.errors.push(error);
        }
        self.seen.push(name);
        let next = match inline {
            Some(value) => Some(value),
            None => self.args.next().map(String::as_str),
        };
        let Some(value) = next else {
            self.errors.push(format!("{name}: the value is missing"));
            return;
        };
        match name {
            "--mode" => self.one(name, value, &mut settings.mode),
            "--backend" => self.one(name, value, &mut settings.backend),
            "--inbound-ports" if value == "all" => settings.inbound_ports = None,
            "--inbound-ports" => {
                let mut ports = Vec::new();
                self.list(name, value, &mut ports);
                // A list that was not understood is no empty list.
                settings.inbound_ports = (!ports.is_empty()).then_some(ports);
            }
            "--exclude-inbound-ports" => {
                self.list(name, value, &mut settings.exclude_inbound_ports);
            }
            "--exclude-outbound-ports" => {
                self.list(name, value, &mut settings.exclude_outbound_ports);
            }
            "--exclude-outbound-cidrs" => {
                self.list(name, value, &mut settings.exclude_outbound_cidrs);
            }
            "--exclude-uids" => self.ids(name, value, &mut settings.exclude_uids),
            "--only-uids" => self.ids(name, value, &mut settings.only_uids),
            "--proxy-uid" => self.number(name, value, &mut settings.proxy_uid),
            "--proxy-gid" => self.number(name, value, &mut settings.proxy_gid),
            "--inbound-port" => self.number(name, value, &mut settings.inbound_port),
            "--outbound-port" => self.number(name, value, &mut settings.outbound_port),
            _ => self.number(name, value, &mut settings.dns_port),
        }
    }

    fn one<T: FromStr<Err = String>>(&mut self, name: &str, value: &str, to: &mut T) {
        match value.parse() {
            Ok(parsed) => *to = parsed,
            Err(error) => self.errors.push(format!("{name}: {error}")),
        }
    }

    fn list<T: FromStr<Err = String>>(&mut self, name: &str, value: &str, to: &mut Vec<T>) {
        for item in value.split(',').map(str::trim) {
            match item.parse() {
                Ok(parsed) => to.push(parsed),
                Err(error) => self.errors.push(format!("{name}: {error}")),
            }
        }
    }

    fn ids(&mut self, name: &str, value: &str, to: &mut Vec<u32>) {
        for item in value.split(',').map(str::trim) {
            let mut id = 0;
            self.number(name, item, &mut id);
            to.push(id);
        }
    }

    fn number<T: FromStr>(&mut self, name: &str, value: &str, to: &mut T) {
        match number(value) {
            Some(parsed) => *to = parsed,
            None => self
                .errors
                .push(format!("{name}: `{value}` is no number that fits")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cidr, Options, PortRange, Settings, Verb, parse};

    fn args(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_command_line_becomes_options() {
        let (verb, options) = parse(&args(
            "--mode tproxy --backend=iptables --inbound-ports 80,8000-8100,8050-8200 \
             --exclude-outbound-ports 22,53 --exclude-outbound-cidrs 10.1.0.0/16,fd00::/8,10.0.0.0/8 \
             --only-uids 7,7,3 --no-ipv6 --dns-port 1053 --print",
        ))
        .unwrap();
        assert_eq!(verb, Verb::Print);
        let settings = options.settings();
        let shown = |ranges: &[PortRange]| -> Vec<String> {
            ranges.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            shown(settings.inbound_ports.as_ref().unwrap()),
            ["80", "8000-8200"]
        );
        let cidrs: Vec<String> = settings
            .exclude_outbound_cidrs
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(cidrs, ["10.0.0.0/8", "fd00::/8"]);
        assert_eq!(settings.only_uids, [3, 7]);
        assert!(!settings.ipv6);
        assert_eq!(settings.dns_port, 1053);
        assert!(!options.captures_dns(), "port 53 is excluded");
        let (verb, options) = parse(&args("--inbound-ports all")).unwrap();
        assert_eq!(verb, Verb::Install);
        assert!(options.settings().inbound_ports.is_none());
        assert!(options.captures_dns());
    }

    #[test]
    fn every_mistake_names_the_option_and_the_fix() {
        for (line, parts) in [
            ("--mod redirect", &["--mod", "no such option"][..]),
            ("--print=yes", &["--print", "no such option"]),
            ("stray", &["stray", "no such option"]),
            ("--mode", &["--mode", "missing"]),
            ("--mode x", &["--mode", "redirect", "tproxy", "route"]),
            ("--mode route --proxy-uid 0", &["--proxy-uid", "another"]),
            ("--mode route --inbound-ports 80", &["--exclude-inbound"]),
            (
                "--mode route --exclude-inbound-ports 15000-65535",
                &["--exclude-inbound-ports", "65535"],
            ),
            ("--backend x", &["--backend", "iptables-legacy"]),
            ("--print --check", &["--print", "one of them"]),
            ("--only-uids 1 --only-uids 2", &["--only-uids", "twice"]),
            ("--inbound-ports 80,,81", &["--inbound-ports", "``"]),
            ("--inbound-ports=", &["--inbound-ports", "no port"]),
            ("--inbound-ports 0", &["0 is no port"]),
            ("--inbound-ports +80", &["`+80` is no port"]),
            ("--exclude-inbound-ports 65536", &["65536", "1 to 65535"]),
            ("--exclude-inbound-ports 9-7", &["backwards", "7-9"]),
            ("--exclude-inbound-ports 14006", &["14006", "leave it out"]),
            ("--exclude-inbound-ports 1-65535", &["14000", "14053"]),
            ("--inbound-ports 14020", &["--inbound-ports", "14020"]),
            ("--exclude-outbound-ports 14001", &["14001", "sidecar"]),
            ("--exclude-outbound-cidrs 10.1.0.0/8", &["10.0.0.0/8"]),
            ("--exclude-outbound-cidrs 10.0.0.0/33", &["no network"]),
            ("--exclude-outbound-cidrs fd00::/129", &["no network"]),
            ("--exclude-outbound-cidrs web", &["`web` is no network"]),
            ("--exclude-uids root", &["--exclude-uids", "`root`"]),
            ("--exclude-uids 14020", &["own user", "leave it out"]),
            ("--only-uids 14020", &["--only-uids", "application"]),
            ("--only-uids 1 --exclude-uids 2", &["use one"]),
            ("--proxy-uid -1", &["--proxy-uid", "`-1`"]),
            ("--proxy-uid 4294967295", &["--proxy-uid", "no ID"]),
            ("--inbound-port 14001", &["--outbound-port", "both 14001"]),
            ("--dns-port 14020", &["--dns-port", "admin"]),
            ("--dns-port 0", &["--dns-port", "0 is no port"]),
        ] {
            let error = parse(&args(line)).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{line}: {error}");
            }
        }
        let all = parse(&args("--mode x --dns-port y")).unwrap_err();
        assert_eq!(all.to_string().lines().count(), 2, "all at once: {all}");
    }

    #[test]
    fn lists_are_bounded() {
        let settings = Settings {
            exclude_uids: (0..257).collect(),
            ..Settings::default()
        };
        let error = Options::new(settings).unwrap_err().to_string();
        assert!(error.contains("257") && error.contains("256"), "{error}");
    }

    #[test]
    fn prefixes_contain() {
        for (cidr, address, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "fd00::1", true),
            ("fd00::/8", "fe00::", false),
            ("10.1.2.3", "10.1.2.3", true),
        ] {
            let cidr: Cidr = cidr.parse().unwrap();
            let found = cidr.contains(address.parse().unwrap());
            assert_eq!(found, inside, "{cidr} {address}");
        }
    }
}
