//! How a sidecar is started: `WEFT_PROXY_*` environment variables, or a JSON file with the
//! same settings in lower case. The only reader of the environment.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::Path, str::FromStr, time::Duration};

use crate::{identity::JoinToken, telemetry::access_log};

/// Every setting: its variable after `WEFT_PROXY_`, its default, and what it is.
pub const SETTINGS: &[(&str, &str, &str)] = &[
    ("CONTROL", "127.0.0.1:14012", "the control plane, host:port"),
    ("WORKLOAD", "", "this workload, namespace/name (required)"),
    (
        "TOKEN",
        "",
        "the join token for the first certificate (this or TOKEN_FILE is required)",
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
];

/// The settings, checked.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// `host:port` of the control plane.
    pub control: String,
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's name.
    pub workload: String,
    /// The join token.
    pub token: JoinToken,
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
    /// Log filter: `WEFT_LOG`, else `RUST_LOG`, else `warn,weft_proxy=info`.
    pub log: String,
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
        Self::parse(&settings, log)
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
        let token = p.token();
        let bootstrap = Self {
            control: p.control(),
            namespace,
            workload,
            admin: p.value("ADMIN", "an address such as 127.0.0.1:14000"),
            public_admin: p.value("PUBLIC_ADMIN", "an address such as 0.0.0.0:14020"),
            workers: p.bounded("WORKERS", 1, 64),
            access_log: p.value("ACCESS_LOG", "off, errors or all"),
            grace: Duration::from_secs(p.bounded("GRACE", 0, 3600) as u64),
            log: log.unwrap_or_else(|| "warn,weft_proxy=info".to_owned()),
            token: match token {
                Some(token) => token,
                None => return Err(BootstrapError(p.errors)),
            },
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
            if !SETTINGS.iter().any(|(known, ..)| known == name) && !of_kubernetes(name) {
                let known: Vec<&str> = SETTINGS.iter().map(|(known, ..)| *known).collect();
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

    fn token(&mut self) -> Option<JoinToken> {
        let text = match (self.text("TOKEN"), self.text("TOKEN_FILE")) {
            ("", "") => Err("set WEFT_PROXY_TOKEN or WEFT_PROXY_TOKEN_FILE; \
                `weft-control token create` makes a token"
                .to_owned()),
            ("", file) => std::fs::read_to_string(file)
                .map_err(|error| format!("WEFT_PROXY_TOKEN_FILE: {file}: {error}")),
            (text, _) => Ok(text.to_owned()),
        };
        match text.and_then(|text| text.parse()) {
            Ok(token) => Some(token),
            Err(error) => {
                self.errors.push(error);
                None
            }
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

fn read_file(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text)
        .map_err(|e| format!("{}: {e}; it must be one JSON object", path.display()))?;
    object
        .into_iter()
        .map(|(name, value)| match value {
            serde_json::Value::String(text) => Ok((name.to_uppercase(), text)),
            serde_json::Value::Number(number) => Ok((name.to_uppercase(), number.to_string())),
            _ => Err(format!(
                "{}: {name}: a string or a number is expected",
                path.display()
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Bootstrap;

    fn parse(settings: &[(&str, &str)]) -> Result<Bootstrap, String> {
        let mut map: BTreeMap<String, String> = [
            ("WORKLOAD", "blog/web"),
            ("TOKEN", &format!("{}.a.b", "0".repeat(64))),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        for (name, value) in settings {
            map.insert((*name).to_owned(), (*value).to_owned());
        }
        Bootstrap::parse(&map, None).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_hold() {
        let b = parse(&[]).unwrap();
        assert_eq!((b.namespace.as_str(), b.workload.as_str()), ("blog", "web"));
        assert_eq!(b.admin.to_string(), "127.0.0.1:14000");
        assert_eq!(b.workers, 1);
        assert_eq!(b.grace.as_secs(), 30);
    }

    #[test]
    fn variables_of_kubernetes_are_no_settings() {
        for name in ["SERVICE_HOST", "SERVICE_PORT", "PORT", "PORT_80_TCP_ADDR"] {
            assert!(parse(&[(name, "tcp://10.0.0.1:80")]).is_ok(), "{name}");
        }
    }

    #[test]
    fn each_mistake_is_named() {
        for (name, value, expected) in [
            ("ADMIN", "x", "WEFT_PROXY_ADMIN: `x` is not an address"),
            ("WORKERS", "0", "a number from 1 to 64"),
            ("WORKERS", "65", "a number from 1 to 64"),
            ("GRACE", "-1", "a number from 0 to 3600"),
            ("ACCESS_LOG", "some", "off, errors or all"),
            ("WORKLOAD", "web", "namespace/name"),
            ("CONTROL", "host", "is not host:port"),
            ("TOKEN", "abc", "the join token is not of the form"),
            ("ADMNI", "x", "WEFT_PROXY_ADMNI is no setting"),
        ] {
            let error = parse(&[(name, value)]).unwrap_err();
            assert!(error.contains(expected), "{name}={value}: {error}");
        }
        let both = parse(&[("WORKERS", "x"), ("GRACE", "y")]).unwrap_err();
        assert_eq!(both.lines().count(), 2);
    }
}
