//! `weft-proxy`: the sidecar.

use std::{path::Path, process::ExitCode};

use tikv_jemallocator::Jemalloc;
use weft_proxy::{app, bootstrap::SETTINGS, capture, limits};

/// It gives back what it does not use; how full the memory is could not be told otherwise.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("run") => with_bootstrap(&args.collect::<Vec<_>>(), app::main),
        Some("init") => capture::main(&args.collect::<Vec<_>>()),
        Some("drain") => with_bootstrap(&args.collect::<Vec<_>>(), app::drain),
        // Not for people: a process that has handed over becomes this.
        Some("supervise") => app::supervise(std::env::args_os().skip(2)),
        Some("version" | "--version" | "-V") => {
            println!("weft-proxy {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some("help" | "--help" | "-h") => told(),
        _ => usage(),
    }
}

/// A command whose one option is the file with the settings.
fn with_bootstrap(args: &[String], command: fn(Option<&Path>) -> ExitCode) -> ExitCode {
    match args {
        [] => command(None),
        [option, file] if option == "--bootstrap" => command(Some(Path::new(file))),
        [option] if option == "--help" || option == "-h" => told(),
        _ => usage(),
    }
}

fn told() -> ExitCode {
    print!("{}", help());
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprint!("{}", help());
    ExitCode::from(2)
}

fn help() -> String {
    let mut text = String::from(
        "The Weft sidecar.\n\n\
         usage: weft-proxy run [--bootstrap FILE]\n       weft-proxy init --help\n       weft-proxy drain [--bootstrap FILE]\n       weft-proxy version\n\n\
         FILE is one JSON object with the settings in lower case; the environment wins.\n\
         drain: ask the sidecar with the settings of this environment (only ADMIN counts) to drain, and return.\n\n",
    );
    for (name, default, what) in SETTINGS {
        let default = if default.is_empty() {
            String::new()
        } else {
            format!(" [{default}]")
        };
        text.push_str(&format!("  WEFT_PROXY_{name:<15} {what}{default}\n"));
    }
    text.push_str("  WEFT_LOG                   log filter, as in warn,weft_proxy=debug\n\n");
    text.push_str("Limits:\n");
    for limit in limits::TABLE {
        let (name, unit) = (limit.name, limit.unit.name());
        let (min, max, default) = (limit.min, limit.max, limit.default);
        text.push_str(&format!(
            "  WEFT_PROXY_{name:<25} {unit}, {min} to {max} [{default}]\n"
        ));
    }
    text
}
