//! The `weft` command: argv in, exit code out. What each verb does is in its own module.

mod control;
mod demo;
mod duration;
mod files;
mod home;
mod inject;
mod internal;
mod output;
mod registered;
mod run;
mod scrape;
mod server;
mod sidecar;
mod supervise;
mod transparent;
mod unit;
mod user;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use serde_json::json;
use tikv_jemallocator::Jemalloc;

use output::{API_VERSION, Color, Exit, Failure, Format, Output};

/// That of `weft-proxy`, which this program is as well.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// A service mesh for every machine: mTLS, routing and measurement for calls between services.
#[derive(Debug, Parser)]
#[command(name = "weft", version, propagate_version = false, after_help = EXIT_CODES)]
struct Cli {
    /// How data on stdout is printed.
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    output: Format,
    /// Print errors only on stderr.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// When to use colours; NO_COLOR turns `auto` off.
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = Color::Auto)]
    color: Color,
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes: 0 fine, 1 problems, 2 usage, 3 cannot reach the control plane, 4 not permitted,
5 timed out. `weft run` exits with the code of its application.";

/// The longer verbs are described where their arguments are.
#[derive(Debug, Subcommand)]
enum Verb {
    Demo(demo::Args),
    Server(server::Args),
    Run(run::Args),
    Inject(inject::InjectArgs),
    Uninject(inject::UninjectArgs),
    /// Print the version.
    Version,
    /// Print a completion script, e.g. `source <(weft completion bash)`.
    Completion {
        /// The shell to complete for.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    if let Some(code) = internal::main() {
        return code;
    }
    let cli = Cli::parse();
    let out = Output::new(cli.output, cli.color, cli.quiet);
    let ended = match &cli.verb {
        Verb::Demo(args) => demo::run(args, &out),
        Verb::Server(args) => server::run(args, &out),
        Verb::Run(args) => match run::run(args, &out) {
            Ok(code) => return ExitCode::from(code),
            Err(failure) => Err(failure),
        },
        Verb::Inject(args) => inject::inject(args, &out),
        Verb::Uninject(args) => inject::uninject(args, &out),
        Verb::Version => version(&out),
        Verb::Completion { shell } => completion(*shell, &out),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn version(out: &Output) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let printed = match out.format {
        Format::Table => out.data(&format!("weft {version}\n")),
        Format::Json | Format::Jsonl => {
            out.json(&json!({ "apiVersion": API_VERSION, "client": { "version": version } }))
        }
    };
    printed_or_closed(printed)
}

fn completion(shell: clap_complete::Shell, out: &Output) -> Result<(), Failure> {
    if out.format != Format::Table {
        let message = "`weft completion` prints a script: -o does not apply";
        return Err(Failure::new(Exit::Usage, message).help("leave -o out"));
    }
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weft", &mut script);
    printed_or_closed(out.data(&String::from_utf8_lossy(&script)))
}

/// A reader that has seen enough (`weft … | head -1`) is no failure.
fn printed_or_closed(printed: io::Result<()>) -> Result<(), Failure> {
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io("stdout", &error))
        }
        _ => Ok(()),
    }
}

/// The runtime of a foreground command.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::io("cannot start the runtime", &error))
}

/// Logs on stderr: `WEFT_LOG`, or `RUST_LOG`, or the given level.
fn log(default: &str, out: &Output) {
    let filter = std::env::var("WEFT_LOG").or_else(|_| std::env::var("RUST_LOG"));
    let filter = filter
        .ok()
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| default.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(io::stderr)
        .with_ansi(out.words_paint == output::Paint::Ansi)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
