//! The command's other faces: as a sidecar and as one of the demo's applications. They are
//! started by this command itself, are no part of its interface and so are unknown to its
//! parser. They end when their stdin does: then the process that started them is gone.

use std::io::{self, Read};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Parser;
use rustix::process::Signal;

use crate::demo::apps;
use crate::supervise::signal_pid;

/// The first argument that makes this process a sidecar, configured by its environment.
pub(crate) const PROXY: &str = "internal-proxy";
/// The first argument that makes this process an application of the demo.
pub(crate) const APP: &str = "internal-app";

/// A sidecar drains when its parent is gone; then it ends in any case.
const PROXY_END: Duration = Duration::from_secs(30);

#[derive(Debug, Parser)]
struct AppCli {
    #[command(flatten)]
    options: apps::Options,
}

/// Runs as what the first argument says; none when this is the `weft` command proper.
pub(crate) fn main() -> Option<ExitCode> {
    let first = std::env::args_os().nth(1)?;
    if first == PROXY {
        watch_parent(PROXY_END);
        return Some(weft_proxy::app::main(None));
    }
    if first == APP {
        watch_parent(Duration::ZERO);
        let options = AppCli::parse_from(std::env::args_os().skip(1)).options;
        return Some(app(&options));
    }
    None
}

fn app(options: &apps::Options) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime.and_then(|runtime| runtime.block_on(apps::run(options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} on {}: {error}", options.name, options.listen);
            ExitCode::FAILURE
        }
    }
}

/// Ends this process once stdin has ended: by SIGTERM, and for good when that has not worked
/// within `grace`.
fn watch_parent(grace: Duration) {
    thread::spawn(move || {
        let mut rest = [0; 64];
        let mut stdin = io::stdin().lock();
        while matches!(stdin.read(&mut rest), Ok(1..)) {}
        signal_pid(Some(std::process::id()), Signal::TERM);
        let deadline = std::time::Instant::now() + grace;
        while let Some(left) = deadline.checked_duration_since(std::time::Instant::now()) {
            thread::park_timeout(left);
        }
        std::process::exit(1);
    });
}
