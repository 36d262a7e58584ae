//! `weft-control serve`: the process around a control plane: signals, sockets that were given,
//! the service manager, and the upgrade in place.

use std::io;
use std::time::SystemTime;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use weft_control::app::{App, Bound, Options};
use weft_control::sockets::Sockets;
use weft_control::token_file::{self, TokenFile};
use weft_control::upgrade::{Predecessor, Program, Successor};
use weft_handover::{State, notify};

use crate::Problem;

/// Serves until SIGTERM or SIGINT, or until another process has taken its place.
pub(crate) fn serve(options: &Options, join_tokens: &[TokenFile]) -> Result<(), Problem> {
    // First: it changes the environment, which is to have one thread.
    let given = weft_handover::activation()?;
    let data = options.data.as_deref().ok_or("serve needs --data")?;
    let program = Program::of_this_process(data)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let mut sockets = Sockets::activated(given);
        let mut predecessor = Predecessor::find(data)?;
        if let Some(before) = predecessor.take() {
            let check = options.clone();
            let taken = spawn_blocking(
                move || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
                    let mut before = before;
                    App::check_config(&check)?;
                    Ok((before.take_over()?, before))
                },
            );
            let (given, before) = taken.await?.map_err(|error| error.to_string())?;
            sockets = given;
            predecessor = Some(before);
        }
        loop {
            let bound = App::bind_with(options.clone(), sockets).await?;
            for file in join_tokens {
                file.write(&bound.tokens, SystemTime::now())?;
            }
            let listening = bound.sockets()?;
            announce(&bound);
            if let Some(before) = predecessor.take()
                && let Err(error) = before.serving()
            {
                tracing::warn!(%error, "the process before this one has ended by itself");
            }
            let mut successor = None;
            let renewal = token_file::renew(join_tokens.to_vec(), bound.tokens.clone());
            let until = async {
                tokio::select! {
                    never = renewal => match never {},
                    next = signals.until(options, &program) => successor = next,
                }
            };
            Box::pin(bound.run(until)).await?;
            let Some(next) = successor else {
                return Ok(());
            };
            tokio::select! {
                handed_over = next.hand_over(&listening) => match handed_over {
                    Ok(process) => {
                        tell(&[State::MainPid(process)]);
                        tracing::info!(process, "another process has taken over");
                        return Ok(());
                    }
                    Err(error) => {
                        tracing::error!(%error, "the upgrade has failed: serving again");
                        sockets = listening;
                    }
                },
                () = signals.stop() => return Ok(()),
            }
        }
    })
}

fn announce(bound: &Bound) {
    tracing::info!(
        address = %bound.address,
        admin = %bound.admin_address,
        trust_domain = %bound.trust_domain(),
        "serving"
    );
    tell(&[State::Ready]);
}

/// Tells the service manager, if there is one.
fn tell(states: &[State]) {
    if let Err(error) = notify(states) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    upgrade: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits until the process is to end.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        tell(&[State::Stopping]);
    }

    /// Waits until the process is to end, or another asks for its place, which is returned.
    async fn until(&mut self, options: &Options, program: &Program) -> Option<Successor> {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
                _ = self.upgrade.recv() => {}
            }
            tracing::info!("upgrade: starting the program again");
            tokio::select! {
                next = prepare(options, program) => match next {
                    Ok(next) => return Some(next),
                    Err(error) => tracing::error!(%error, "no upgrade: serving on as before"),
                },
                () = self.stop() => return None,
            }
        }
        tell(&[State::Stopping]);
        None
    }
}

/// A process that is ready to take the place of this one, which could take it back.
async fn prepare(options: &Options, program: &Program) -> Result<Successor, String> {
    let next = program.start().await.map_err(|error| error.to_string())?;
    let options = options.clone();
    let check = spawn_blocking(move || App::check(&options)).await;
    let check = check.map_err(|error| error.to_string())?;
    check.map_err(|error| format!("this process could not start again if it had to: {error}"))?;
    Ok(next)
}
