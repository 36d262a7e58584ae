//! `weft server`: the control plane in the foreground. What it serves is announced in its data
//! directory, where `weft run` finds it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::control::Control;
use crate::output::{API_VERSION, Exit, Failure, Format, Output};
use crate::printed_or_closed;
use crate::supervise::Signals;

/// Run the control plane in the foreground.
///
/// The configuration is read from a directory of YAML files, which
/// is followed as it changes; certificates come from a CA that is made on first start.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration: a directory of YAML files. DATA/config if absent; made if missing.
    #[arg(long, value_name = "DIR", env = "WEFT_CONFIG")]
    config: Option<PathBuf>,
    /// Where the CA and the join tokens are kept.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA, env = "WEFT_DATA")]
    data: PathBuf,
    /// Where sidecars connect.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:14012")]
    listen: SocketAddr,
    /// Where /metrics, /ready and /debug/config are.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:14014")]
    admin: SocketAddr,
}

/// The data directory of a server that was not told another.
pub(crate) const DEFAULT_DATA: &str = "./weft-data";
const ANNOUNCEMENT: &str = "server.json";

/// What `weft run` needs to know of the server on the same machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Announcement {
    /// Where sidecars connect.
    pub address: SocketAddr,
    /// The configuration directory, absolute.
    pub config: PathBuf,
    /// The trust domain of the CA.
    pub trust_domain: String,
    /// SHA-256 of the root certificate, in hexadecimal.
    pub root_sha256: String,
}

impl Announcement {
    /// Reads what the server of this data directory has announced.
    ///
    /// # Errors
    ///
    /// There is none: no server has been started on this directory, or it has ended.
    pub(crate) fn read(data: &Path) -> Result<Self, Failure> {
        let path = data.join(ANNOUNCEMENT);
        let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let message = format!("no control plane runs on {}", data.display());
                Failure::new(Exit::Unreachable, message).help(format!(
                    "start one in another shell: weft server --data {}; or name the data directory of the \
                     one that runs with --server-data",
                    data.display()
                ))
            }
            _ => Failure::io(path.display(), &error),
        })?;
        serde_json::from_str(&text).map_err(|error| {
            Failure::new(Exit::Problems, format!("{}: {error}", path.display()))
                .help("start the server again with this version of weft")
        })
    }
}

/// The announcement in the data directory; dropping it takes it back.
struct Announced {
    path: PathBuf,
    text: String,
}

impl Announced {
    fn write(data: &Path, announcement: &Announcement) -> Result<Self, Failure> {
        let path = data.join(ANNOUNCEMENT);
        let text = serde_json::to_string_pretty(announcement)
            .map_err(|error| Failure::io(path.display(), &error.into()))?;
        crate::files::replace(&path, &text).map_err(|error| Failure::io(path.display(), &error))?;
        Ok(Self { path, text })
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        // A server that was started meanwhile has announced itself; that one stays.
        if fs::read_to_string(&self.path).is_ok_and(|text| text == self.text) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Serves until SIGINT, SIGTERM or SIGHUP.
///
/// # Errors
///
/// A directory cannot be used, or an address is taken.
pub(crate) fn run(args: &Args, out: &Output) -> Result<(), Failure> {
    crate::log("info", out);
    crate::runtime()?.block_on(serve(args, out))
}

async fn serve(args: &Args, out: &Output) -> Result<(), Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::io("signals", &error))?;
    let config = args
        .config
        .clone()
        .unwrap_or_else(|| args.data.join("config"));
    fs::create_dir_all(&config).map_err(|error| Failure::io(config.display(), &error))?;
    let config = config
        .canonicalize()
        .map_err(|error| Failure::io(config.display(), &error))?;
    let data = Some(args.data.clone());
    let mut control = Control::start(config.clone(), data, args.listen, args.admin).await?;
    let announcement = Announcement {
        address: control.address,
        config,
        trust_domain: control.trust_domain.clone(),
        root_sha256: control
            .fingerprint
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    };
    let announced = Announced::write(&args.data, &announcement)?;
    introduce(args, &control, &announcement, out)?;
    let ended = tokio::select! {
        ended = control.ended() => ended,
        _ = signals.next() => Ok(()),
    };
    drop(announced);
    control.stop().await;
    ended
}

fn introduce(
    args: &Args,
    control: &Control,
    announcement: &Announcement,
    out: &Output,
) -> Result<(), Failure> {
    if out.format != Format::Table {
        let document = json!({
            "apiVersion": API_VERSION,
            "address": control.address.to_string(),
            "admin": control.admin.to_string(),
            "trust_domain": control.trust_domain,
            "config": announcement.config,
            "root_sha256": announcement.root_sha256,
        });
        return printed_or_closed(out.json(&document));
    }
    out.done(
        "control plane",
        format_args!(
            "{:<23} trust domain {}",
            control.address, control.trust_domain
        ),
    );
    out.done("admin", format_args!("http://{}", control.admin));
    out.done("configuration", announcement.config.display());
    let data = args.data.display();
    out.next(&[format!(
        "weft run --server-data {data} --name web --port 8080 -- ./web"
    )]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_found_by_its_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Announcement::read(dir.path()).unwrap_err();
        assert_eq!(missing.exit, Exit::Unreachable);
        assert!(
            missing.to_string().contains("weft server --data"),
            "{missing}"
        );

        let announcement = Announcement {
            address: "127.0.0.1:14012".parse().unwrap(),
            config: "/config".into(),
            trust_domain: "cluster.local".to_owned(),
            root_sha256: "ab".to_owned(),
        };
        let announced = Announced::write(dir.path(), &announcement).unwrap();
        assert_eq!(Announcement::read(dir.path()).unwrap(), announcement);

        let second = Announcement {
            root_sha256: "cd".to_owned(),
            ..announcement
        };
        let second = Announced::write(dir.path(), &second).unwrap();
        drop(announced);
        assert_eq!(Announcement::read(dir.path()).unwrap().root_sha256, "cd");
        drop(second);
        assert!(Announcement::read(dir.path()).is_err());

        fs::write(dir.path().join(ANNOUNCEMENT), "{").unwrap();
        assert_eq!(
            Announcement::read(dir.path()).unwrap_err().exit,
            Exit::Problems
        );
    }
}
