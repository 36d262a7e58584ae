//! Where a workload is at home: a server on this machine, which gets its documents, or a control
//! plane anywhere, where it registers itself.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpStream;
use weft_certs::spiffe::TrustDomain;
use weft_control::token::Tokens;

use crate::control::{failed, join_token};
use crate::output::{Exit, Failure};
use crate::server::Announcement;
use crate::transparent::Transparent;

/// What a workload needs that registers itself.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// The workload's join token, with --control; it may be gone after the first start.
    #[arg(long, value_name = "FILE", requires_all = ["control", "transparent"])]
    token_file: Option<PathBuf>,
    /// Where the sidecar keeps its identity and its last configuration, with --control.
    /// /var/lib/weft/NAME, or NAME.NAMESPACE, if absent; of this workload alone.
    #[arg(long, value_name = "DIR", requires_all = ["control", "transparent"])]
    state: Option<PathBuf>,
}

/// Where the control plane is.
pub(crate) enum Home {
    /// A `weft server` on this machine.
    Here {
        /// What it has announced.
        server: Announcement,
        /// Where it finds the tokens that are made for it.
        tokens: Tokens,
    },
    /// Anywhere.
    There(There),
}

/// A control plane that knows only what the sidecar says.
#[derive(Debug)]
pub(crate) struct There {
    control: String,
    token: Option<String>,
    state: PathBuf,
    /// Whether the sidecar has never run here.
    is_new: bool,
    addresses: Vec<IpAddr>,
    /// As [`Transparent::excluded`].
    excluded: Option<Vec<u16>>,
}

impl Args {
    /// The server of a data directory.
    ///
    /// # Errors
    ///
    /// None runs there, or its tokens are not for us.
    pub(crate) fn here(&self, data: &Path) -> Result<Home, Failure> {
        let server = Announcement::read(data)?;
        let trust_domain: TrustDomain = server
            .trust_domain
            .parse()
            .map_err(|error| Failure::new(Exit::Problems, format!("trust domain: {error}")))?;
        let root = fingerprint(&server.root_sha256)
            .ok_or_else(|| Failure::new(Exit::Problems, "the announced root is no SHA-256"))?;
        let tokens = Tokens::open(data, trust_domain, root).map_err(|error| failed(&error))?;
        Ok(Home::Here { server, tokens })
    }

    /// A control plane for the workload of a namespace and a name; makes the state directory.
    ///
    /// # Errors
    ///
    /// There is no token where one is needed, or the directory cannot be made.
    pub(crate) fn there(
        &self,
        control: &str,
        (namespace, name): (&str, &str),
        transparent: &Transparent,
    ) -> Result<Home, Failure> {
        let state = match &self.state {
            Some(path) => path.clone(),
            None if namespace == "default" => Path::new(STATES).join(name),
            None => Path::new(STATES).join(format!("{name}.{namespace}")),
        };
        let is_new = make_state(&state, transparent.sidecar())
            .map_err(|error| Failure::io(state.display(), &error))?;
        // The sidecar may be elsewhere than we are when it opens it.
        let state = state
            .canonicalize()
            .map_err(|error| Failure::io(state.display(), &error))?;
        Ok(Home::There(There {
            control: control.to_owned(),
            token: self.token(is_new)?,
            state,
            is_new,
            addresses: transparent.addresses.clone(),
            excluded: transparent.excluded(),
        }))
    }

    /// The token, which only a sidecar that has run before can do without.
    fn token(&self, is_new: bool) -> Result<Option<String>, Failure> {
        let how = "`weft-control token create --namespace NAMESPACE --service-account ACCOUNT` \
                   makes one";
        let Some(path) = &self.token_file else {
            if is_new {
                let message = "a workload's first start with --control needs --token-file";
                return Err(Failure::new(Exit::Usage, message).help(how));
            }
            return Ok(None);
        };
        match fs::read_to_string(path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_new => Ok(None),
            Err(error) => {
                let what = format!("--token-file: {}", path.display());
                Err(Failure::io(what, &error).help(how))
            }
        }
    }
}

/// Where the state of workloads is unless somebody says otherwise.
const STATES: &str = "/var/lib/weft";

/// Makes the directory, if it is not there; whether there is nothing in it.
fn make_state(path: &Path, (uid, gid): (u32, u32)) -> io::Result<bool> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => chown(path, Some(uid), Some(gid))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    Ok(fs::read_dir(path)?.next().is_none())
}

impl Home {
    /// `host:port` of the control plane.
    pub(crate) fn control(&self) -> String {
        match self {
            Self::Here { server, .. } => server.address.to_string(),
            Self::There(there) => there.control.clone(),
        }
    }

    /// Checks that somebody listens there, if the workload cannot start without.
    ///
    /// # Errors
    ///
    /// Nobody does.
    pub(crate) async fn reachable(&self) -> Result<(), Failure> {
        let help = match self {
            Self::Here { .. } => "start it again with `weft server`",
            Self::There(there) if !there.is_new => return Ok(()),
            Self::There(_) => {
                "is --control right, and does it listen on other addresses than 127.0.0.1?"
            }
        };
        let control = self.control();
        let connect = TcpStream::connect(&control);
        let why = match tokio::time::timeout(Duration::from_secs(2), connect).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer within 2 s".to_owned(),
        };
        let message = format!("cannot reach the control plane on {control}: {why}");
        Err(Failure::new(Exit::Unreachable, message).help(help))
    }

    /// The join token of a workload; none if it needs none.
    ///
    /// # Errors
    ///
    /// The names make no identity, or the token cannot be stored.
    pub(crate) fn token(&self, namespace: &str, account: &str) -> Result<Option<String>, Failure> {
        match self {
            Self::Here { tokens, .. } => join_token(tokens, namespace, account).map(Some),
            Self::There(there) => Ok(there.token.clone()),
        }
    }
}

impl There {
    /// What the sidecar has to say of the workload, as its settings after `WEFT_PROXY_`.
    pub(crate) fn settings(&self, name: &str, port: u16) -> Vec<(&'static str, String)> {
        let list = |items: &[String]| items.join(",");
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        let (inbound, excluded) = match &self.excluded {
            None => ("declared", Vec::new()),
            Some(excluded) => ("all", excluded.iter().map(u16::to_string).collect()),
        };
        vec![
            ("STATE", self.state.display().to_string()),
            ("REGISTER", "true".to_owned()),
            ("ADDRESSES", list(&addresses)),
            ("LABELS", format!("app={name}")),
            ("PORTS", format!("main:{port}")),
            ("CAPTURE", "redirect".to_owned()),
            ("INBOUND_PORTS", inbound.to_owned()),
            ("EXCLUDE_INBOUND", list(&excluded)),
        ]
    }
}

/// The bytes of a SHA-256 in hexadecimal.
fn fingerprint(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn fingerprints() {
        assert_eq!(fingerprint(&"0f".repeat(32)), Some([15; 32]));
        for wrong in ["", "0f", &"0g".repeat(32), &"é".repeat(32)] {
            assert_eq!(fingerprint(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_sidecar_understands_what_it_is_told() {
        for (excluded, inbound, ports) in
            [(None, "declared", ""), (Some(vec![22, 23]), "all", "22,23")]
        {
            let there = There {
                control: "mesh:14012".to_owned(),
                token: None,
                state: "/state".into(),
                is_new: true,
                addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
                excluded,
            };
            let settings = there.settings("web", 80);
            let value = |name: &str| &settings.iter().find(|(one, _)| *one == name).unwrap().1;
            assert_eq!(value("ADDRESSES"), "10.0.0.1,fd00::1");
            assert_eq!(value("INBOUND_PORTS"), inbound);
            assert_eq!(value("EXCLUDE_INBOUND"), ports);
            let settings = settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .chain([("WORKLOAD".to_owned(), "default/web".to_owned())])
                .collect();
            let understood = weft_proxy::bootstrap::Bootstrap::parse(&settings, None);
            assert!(understood.is_ok(), "{understood:?}");
        }
    }

    #[test]
    fn a_token_is_needed_once() {
        let dir = tempfile::tempdir().unwrap();
        let args = |file: Option<&str>| Args {
            token_file: file.map(|name| dir.path().join(name)),
            state: None,
        };
        fs::write(dir.path().join("token"), "a.b.c\n").unwrap();
        for (file, is_new, expect) in [
            (Some("token"), true, Some("a.b.c")),
            (Some("token"), false, Some("a.b.c")),
            (Some("gone"), false, None),
            (None, false, None),
        ] {
            let token = args(file).token(is_new).unwrap();
            assert_eq!(token.as_deref(), expect, "{file:?} {is_new}");
        }
        let none = args(None).token(true).unwrap_err();
        assert_eq!(none.exit, Exit::Usage);
        let gone = args(Some("gone")).token(true).unwrap_err().to_string();
        assert!(
            gone.contains("--token-file: ") && gone.contains("makes one"),
            "{gone}"
        );
    }

    #[test]
    fn the_state_is_the_sidecars_alone() {
        let dir = tempfile::tempdir().unwrap();
        let own = fs::metadata(dir.path()).unwrap();
        let path = dir.path().join("a/b");
        let owner = (own.uid(), own.gid());
        assert!(make_state(&path, owner).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        fs::write(path.join("identity"), "").unwrap();
        assert!(!make_state(&path, owner).unwrap());
    }
}
