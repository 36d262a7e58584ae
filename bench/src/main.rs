//! Measures Weft beside its peers and proves what the README promises.
//!
//! `compare` runs the same load through Weft, a naked hyper proxy, Envoy and HAProxy in turn
//! and prints costs and ratios; `verify` runs the programs of the mesh as a user would and
//! checks what they do. Both only look from outside: processes, sockets, /proc.

mod accept;
mod backend;
mod compare;
mod error;
mod floor;
mod load;
mod netns;
mod pki;
mod pods;
mod process;
mod procfs;
mod verify;
mod weft;
mod ws;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Context as _, Result};

#[derive(Debug, Parser)]
#[command(
    name = "weft-bench",
    version,
    about = "Measures Weft beside its peers and proves what the README promises"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the cost of two hops beside other proxies, in interleaved rounds
    Compare(compare::Options),
    /// Check what the mesh promises, with real processes
    Verify(verify::Options),
    #[command(hide = true)]
    Backend(backend::Options),
    #[command(hide = true)]
    Floor(floor::Options),
    #[command(hide = true)]
    Child {
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// One thread for everything: the load is on it, and the kernel ties the life of the
/// children to the thread that started them.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    // Whatever is dropped here takes its children and its directories along.
    let result = tokio::select! {
        result = run(cli.command) => result,
        signal = stop_signal() => signal,
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Compare(options) => Box::pin(compare::run(options)).await,
        Command::Verify(options) => Box::pin(verify::run(options)).await,
        Command::Backend(options) => backend::run(options).await.map(|()| ExitCode::SUCCESS),
        Command::Floor(options) => floor::run(options).await.map(|()| ExitCode::SUCCESS),
        Command::Child { command } => Err(process::become_child(&command)),
    }
}

/// Waits to be told to stop; the exit code is the shell's convention.
async fn stop_signal() -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    tokio::select! {
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    }
}
