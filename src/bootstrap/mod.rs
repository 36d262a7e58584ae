//! How a sidecar is started: `WEFT_PROXY_*` environment variables, or a JSON file with the
//! same settings in lower case. The only reader of the environment.

mod lists;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use http::uri::PathAndQuery;

use crate::{
    identity::JoinToken,
    limits::{self, Limits},
    telemetry::access_log,
};

/// Every setting but the limits: its variable after `WEFT_PROXY_`, its default, and what it is.
pub const SETTINGS: &[(&str, &str, &str)] = &[
    ("CONTROL", "127.0.0.1:14012", "the control plane, host:port"),
    ("WORKLOAD", "", "this workload, namespace/name (required)"),
    (
        "TOKEN",
        "",
        "the join token for the first certificate (this, TOKEN_FILE or an identity in STATE is required)",
    ),
    ("TOKEN_FILE", "", "a file with the join token"),
    (
        "ADMIN",
        "127.0.0.1:14000",
        "the full admin interface; keep it on loopback",
    ),
    (
        "PUBLIC_ADMIN",
        "0.0.0.0:14020",
        "the read-only admin interface: /live /ready /metrics /version",
    ),
    ("WORKERS", "1", "worker threads, 1 to 64"),
    ("ACCESS_LOG", "errors", "off, errors or all"),
    (
        "GRACE",
        "30",
        "seconds that open streams have after SIGTERM, 0 to 3600",
    ),
    (
        "STATE",
        "",
        "a directory for the last good configuration, the identity and the handover socket",
    ),
    (
        "EXIT_AFTER",
        "connections",
        "what SIGTERM waits for: connections, or application: until it listens no more",
    ),
    (
        "UPGRADE_GRACE",
        "600",
        "seconds that open streams have after an upgrade, 0 to 86400",
    ),
    (
        "PROBES",
        "",
        "plaintext GETs that strict ports let through: 8080/healthz,8081/ready",
    ),
    (
        "TCP_PROBES",
        "",
        "ports that /probe/tcp/<port> may check: 8080,9000",
    ),
    (
        "GRPC_PROBES",
        "",
        "ports and services that /probe/grpc/<port>[/<service>] may check: 50051,50051/shop.Cart",
    ),
    (
        "DNS_UPSTREAMS",
        "",
        "resolvers for what is no name of the mesh, ip[:port]; default: those of /etc/resolv.conf",
    ),
    (
        "REGISTER",
        "false",
        "true: this workload needs no Workload document; the settings below describe it",
    ),
    ("ADDRESSES", "", "its addresses; required with REGISTER"),
    ("LABELS", "", "its labels: app=web,track=stable"),
    (
        "PORTS",
        "",
        "the application's ports, with names or without: http:8080,9090",
    ),
    (
        "CAPTURE",
        "redirect",
        "how its connections reach the sidecar: redirect, tproxy or off",
    ),
    (
        "INBOUND_PORTS",
        "all",
        "which connections from outside pass the sidecar: all, or those to declared ports (PORTS)",
    ),
    (
        "EXCLUDE_INBOUND",
        "",
        "ports whose connections do not pass the sidecar: 9999,9998",
    ),
];

/// Every variable after `WEFT_PROXY_`: the settings, then the limits.
pub fn names() -> impl Iterator<Item = &'static str> {
    let settings = SETTINGS.iter().map(|(name, ..)| *name);
    settings.chain(limits::TABLE.iter().map(|limit| limit.name))
}

/// Settings that say something about a workload that registers itself, and nothing else.
const OF_REGISTRATION: [&str; 6] = [
    "ADDRESSES",
    "LABELS",
    "PORTS",
    "CAPTURE",
    "INBOUND_PORTS",
    "EXCLUDE_INBOUND",
];

/// What a shutdown waits for before connections are asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitAfter {
    /// Nothing else: the application ends when it likes.
    Connections,
    /// The application listens on none of its ports any more.
    Application,
}

/// How connections reach the sidecar of a workload that registers itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// The kernel redirects them.
    Redirect,
    /// The kernel hands them over as they are.
    Tproxy,
    /// The application and its peers dial the sidecar.
    Off,
}

/// Which connections from outside pass the sidecar of a workload that registers itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboundPorts {
    /// Those to all ports, but for what is excluded.
    All,
    /// Those to its ports: it shares its addresses with others.
    Declared,
}

/// A workload that needs no document: what it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Where peers reach it; at least one.
    pub addresses: Vec<IpAddr>,
    /// What services select.
    pub labels: BTreeMap<String, String>,
    /// Names (may be empty) and numbers of the application's ports.
    pub ports: Vec<(String, u16)>,
    /// How connections arrive.
    pub capture: Capture,
    /// Which ports pass the sidecar.
    pub inbound_ports: InboundPorts,
    /// Ports that do not pass the sidecar.
    pub exclude_inbound: Vec<u16>,
}

/// The settings, checked.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// `host:port` of the control plane.
    pub control: String,
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's name.
    pub workload: String,
    /// The join token, or why there is none: an identity in the state directory can do without.
    pub token: Result<JoinToken, String>,
    /// Full admin interface.
    pub admin: SocketAddr,
    /// Read-only admin interface.
    pub public_admin: SocketAddr,
    /// Worker threads.
    pub workers: usize,
    /// Which streams are logged.
    pub access_log: access_log::Policy,
    /// How long open streams have after SIGTERM.
    pub grace: Duration,
    /// Where configuration and identity are kept.
    pub state: Option<PathBuf>,
    /// What SIGTERM waits for.
    pub exit_after: ExitAfter,
    /// How long open streams have after an upgrade.
    pub upgrade_grace: Duration,
    /// Plaintext GETs that strict ports let through.
    pub probes: Vec<(u16, PathAndQuery)>,
    /// Ports that the read-only interface may check.
    pub tcp_probes: Vec<u16>,
    /// Ports, and services if any, that the read-only interface may ask for their health.
    pub grpc_probes: Vec<(u16, Option<String>)>,
    /// Resolvers; empty: those of the system.
    pub dns_upstreams: Vec<SocketAddr>,
    /// What this workload says of itself, if it has no document.
    pub registration: Option<Registration>,
    /// The bounds of the data path.
    pub limits: Limits,
    /// Log filter: `WEFT_LOG`, else `RUST_LOG`, else `warn,weft_proxy=info`.
    pub log: String,
}

/// What is logged unless somebody says otherwise.
const LOG: &str = "warn,weft_proxy=info";

const ADMIN_WANTED: &str = "an address such as 127.0.0.1:14000";

/// The log filter for what has no other settings: `WEFT_LOG`, else the default.
#[must_use]
pub fn log_filter() -> String {
    std::env::var("WEFT_LOG").unwrap_or_else(|_| LOG.to_owned())
}

/// What is wrong with the settings; one line each.
#[derive(Debug)]
pub struct BootstrapError(Vec<String>);

impl fmt::Display for BootstrapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for BootstrapError {}

impl Bootstrap {
    /// Reads the environment, over the file if there is one.
    ///
    /// # Errors
    /// With every setting that is missing, unknown or not understood.
    pub fn read(file: Option<&Path>) -> Result<Self, BootstrapError> {
        let (settings, log) = read_settings(file)?;
        Self::parse(&settings, log)
    }

    /// Where the sidecar with the settings of this environment has its full admin interface;
    /// the other settings may be absent: who asks a sidecar for something needs no token.
    ///
    /// # Errors
    /// The file cannot be read, or the address is none.
    pub fn read_admin(file: Option<&Path>) -> Result<SocketAddr, BootstrapError> {
        let (settings, _) = read_settings(file)?;
        Self::parse_admin(&settings)
    }

    fn parse_admin(settings: &BTreeMap<String, String>) -> Result<SocketAddr, BootstrapError> {
        let mut p = Parser {
            settings,
            errors: Vec::new(),
        };
        let admin = p.value("ADMIN", ADMIN_WANTED);
        if p.errors.is_empty() {
            Ok(admin)
        } else {
            Err(BootstrapError(p.errors))
        }
    }

    /// Checks settings by their names without the prefix.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(
        settings: &BTreeMap<String, String>,
        log: Option<String>,
    ) -> Result<Self, BootstrapError> {
        let mut p = Parser {
            settings,
            errors: Vec::new(),
        };
        p.reject_unknown();
        let (namespace, workload) = p.workload();
        let state = p.state();
        let token = p.token(state.is_some());
        let bootstrap = Self {
            control: p.control(),
            namespace,
            workload,
            admin: p.value("ADMIN", ADMIN_WANTED),
            public_admin: p.value("PUBLIC_ADMIN", "an address such as 0.0.0.0:14020"),
            workers: p.bounded("WORKERS", 1, 64),
            access_log: p.value("ACCESS_LOG", "off, errors or all"),
            grace: Duration::from_secs(p.bounded("GRACE", 0, 3600) as u64),
            log: log.unwrap_or_else(|| LOG.to_owned()),
            token,
            state,
            exit_after: p.value("EXIT_AFTER", "connections or application"),
            upgrade_grace: Duration::from_secs(p.bounded("UPGRADE_GRACE", 0, 86_400) as u64),
            probes: p.list("PROBES", lists::probe),
            tcp_probes: p.list("TCP_PROBES", lists::port),
            grpc_probes: p.list("GRPC_PROBES", lists::grpc_probe),
            dns_upstreams: p.list("DNS_UPSTREAMS", lists::resolver),
            registration: p.registration(),
            limits: p.limits(),
        };
        if p.errors.is_empty() {
            Ok(bootstrap)
        } else {
            Err(BootstrapError(p.errors))
        }
    }
}

struct Parser<'a> {
    settings: &'a BTreeMap<String, String>,
    errors: Vec<String>,
}

impl<'a> Parser<'a> {
    fn text(&self, name: &str) -> &'a str {
        let default = SETTINGS
            .iter()
            .find(|(known, ..)| *known == name)
            .map_or("", |s| s.1);
        self.settings.get(name).map_or(default, String::as_str)
    }

    fn reject_unknown(&mut self) {
        // Kubernetes sets these for a Service that is called weft-proxy.
        let of_kubernetes = |name: &str| {
            name.starts_with("SERVICE_") || name == "PORT" || name.starts_with("PORT_")
        };
        for name in self.settings.keys() {
            if !names().any(|known| known == name) && !of_kubernetes(name) {
                let known: Vec<&str> = names().collect();
                self.errors.push(format!(
                    "WEFT_PROXY_{name} is no setting; there are {}",
                    known.join(", ")
                ));
            }
        }
    }

    fn value<T: FromStr + Fallback>(&mut self, name: &str, wanted: &str) -> T {
        let text = self.text(name);
        text.parse().unwrap_or_else(|_| {
            self.errors
                .push(format!("WEFT_PROXY_{name}: `{text}` is not {wanted}"));
            T::fallback()
        })
    }

    fn bounded(&mut self, name: &str, min: usize, max: usize) -> usize {
        let text = self.text(name);
        match text.parse() {
            Ok(n) if (min..=max).contains(&n) => n,
            _ => {
                self.errors.push(format!(
                    "WEFT_PROXY_{name}: `{text}` is not a number from {min} to {max}"
                ));
                min
            }
        }
    }

    fn limits(&mut self) -> Limits {
        let before = self.errors.len();
        let mut limits = Limits::default();
        for limit in limits::TABLE {
            let Some(text) = self.settings.get(limit.name) else {
                continue;
            };
            match limit.read(text) {
                Ok(value) => limit.apply(&mut limits, value),
                Err(wanted) => self.errors.push(format!(
                    "WEFT_PROXY_{}: `{text}` is not {wanted}",
                    limit.name
                )),
            }
        }
        if self.errors.len() == before {
            self.errors.extend(limits.check().err());
        }
        limits
    }

    fn control(&mut self) -> String {
        let text = self.text("CONTROL").to_owned();
        let port = text
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) {
            self.errors
                .push(format!("WEFT_PROXY_CONTROL: `{text}` is not host:port"));
        }
        text
    }

    fn workload(&mut self) -> (String, String) {
        let text = self.text("WORKLOAD");
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                (namespace.to_owned(), name.to_owned())
            }
            _ => {
                self.errors.push(format!(
                    "WEFT_PROXY_WORKLOAD: `{text}` is not namespace/name of a Workload"
                ));
                (String::new(), String::new())
            }
        }
    }

    fn state(&mut self) -> Option<PathBuf> {
        let path = Path::new(self.text("STATE"));
        if path.is_relative() && !path.as_os_str().is_empty() {
            self.errors.push(format!(
                "WEFT_PROXY_STATE: `{}` is not an absolute path",
                path.display()
            ));
        }
        (!path.as_os_str().is_empty()).then(|| path.to_owned())
    }

    /// The token. Where there is a state directory, that there is none may be no mistake; one
    /// that is malformed is.
    fn token(&mut self, has_state: bool) -> Result<JoinToken, String> {
        let text = match (self.text("TOKEN"), self.text("TOKEN_FILE")) {
            ("", "") => Err("set WEFT_PROXY_TOKEN or WEFT_PROXY_TOKEN_FILE; \
                `weft-control token create` makes a token"
                .to_owned()),
            ("", file) => std::fs::read_to_string(file)
                .map_err(|error| format!("WEFT_PROXY_TOKEN_FILE: {file}: {error}")),
            (text, _) => Ok(text.to_owned()),
        };
        let there = text.is_ok();
        let token = text.and_then(|text| text.parse());
        if let Err(error) = &token
            && (there || !has_state)
        {
            self.errors.push(error.clone());
        }
        token
    }

    /// The items of a list that is divided by commas; each mistake is an error.
    fn list<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let text = self.text(name);
        let items = text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty());
        let mut parsed = Vec::new();
        for item in items {
            match parse(item) {
                Ok(_) if parsed.len() == MAX_ITEMS => {
                    self.errors.push(format!(
                        "WEFT_PROXY_{name}: has more than {MAX_ITEMS} items"
                    ));
                    break;
                }
                Ok(item) => parsed.push(item),
                Err(wanted) => self
                    .errors
                    .push(format!("WEFT_PROXY_{name}: `{item}` is not {wanted}")),
            }
        }
        parsed
    }

    fn registration(&mut self) -> Option<Registration> {
        let registers = match self.text("REGISTER") {
            "true" => true,
            "false" => false,
            other => {
                self.errors.push(format!(
                    "WEFT_PROXY_REGISTER: `{other}` is not true or false"
                ));
                return None;
            }
        };
        if !registers {
            for name in OF_REGISTRATION {
                if self.settings.get(name).is_some_and(|text| !text.is_empty()) {
                    self.errors.push(format!(
                        "WEFT_PROXY_{name} has no effect without WEFT_PROXY_REGISTER=true; \
                         the Workload document says it"
                    ));
                }
            }
            return None;
        }
        let before = self.errors.len();
        let registration = Registration {
            addresses: self.list("ADDRESSES", lists::address),
            labels: self.list("LABELS", lists::label).into_iter().collect(),
            ports: self.list("PORTS", lists::named_port),
            capture: self.value("CAPTURE", "redirect, tproxy or off"),
            inbound_ports: self.value("INBOUND_PORTS", "all or declared"),
            exclude_inbound: self.list("EXCLUDE_INBOUND", lists::port),
        };
        if registration.addresses.is_empty() && self.errors.len() == before {
            self.errors.push(
                "WEFT_PROXY_ADDRESSES: a workload that registers itself needs the addresses \
                 where its peers reach it, such as 10.0.0.7"
                    .to_owned(),
            );
        }
        Some(registration)
    }
}

/// How many items a list may have.
const MAX_ITEMS: usize = 64;

impl FromStr for ExitAfter {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "connections" => Ok(Self::Connections),
            "application" => Ok(Self::Application),
            _ => Err(()),
        }
    }
}

impl FromStr for Capture {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "redirect" => Ok(Self::Redirect),
            "tproxy" => Ok(Self::Tproxy),
            "off" => Ok(Self::Off),
            _ => Err(()),
        }
    }
}

impl FromStr for InboundPorts {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "all" => Ok(Self::All),
            "declared" => Ok(Self::Declared),
            _ => Err(()),
        }
    }
}

/// A stand-in after an error, so that all errors are found in one go.
trait Fallback {
    fn fallback() -> Self;
}

impl Fallback for SocketAddr {
    fn fallback() -> Self {
        ([127, 0, 0, 1], 0).into()
    }
}

impl Fallback for access_log::Policy {
    fn fallback() -> Self {
        Self::default()
    }
}

impl Fallback for ExitAfter {
    fn fallback() -> Self {
        Self::Connections
    }
}

impl Fallback for InboundPorts {
    fn fallback() -> Self {
        Self::All
    }
}

impl Fallback for Capture {
    fn fallback() -> Self {
        Self::Off
    }
}

/// The settings by their names without the prefix, and the log filter.
fn read_settings(
    file: Option<&Path>,
) -> Result<(BTreeMap<String, String>, Option<String>), BootstrapError> {
    let mut settings = match file {
        Some(path) => read_file(path).map_err(|error| BootstrapError(vec![error]))?,
        None => BTreeMap::new(),
    };
    let mut log = None;
    for (name, value) in std::env::vars() {
        if let Some(setting) = name.strip_prefix("WEFT_PROXY_") {
            settings.insert(setting.to_owned(), value);
        } else if name == "WEFT_LOG" || (name == "RUST_LOG" && log.is_none()) {
            log = Some(value);
        }
    }
    Ok((settings, log))
}

fn read_file(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text)
        .map_err(|e| format!("{}: {e}; it must be one JSON object", path.display()))?;
    object
        .into_iter()
        .map(|(name, value)| match value {
            serde_json::Value::String(text) => Ok((name.to_uppercase(), text)),
            serde_json::Value::Number(number) => Ok((name.to_uppercase(), number.to_string())),
            serde_json::Value::Bool(yes) => Ok((name.to_uppercase(), yes.to_string())),
            _ => Err(format!(
                "{}: {name}: a string, a number, true or false is expected",
                path.display()
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests;
