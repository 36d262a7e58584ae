//! One client's HTTP connection: limits, keep-alive, and how it ends in a shutdown.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    sync::watch,
    time::{Instant, interval_at},
};

use super::{
    Connection,
    forward::handle,
    pulse::{Verdict, Watch},
    stall::Streams,
};
use crate::{
    drain::Phase,
    io::Io,
    wire::{Frames, Guarded, Requests, Role},
};

/// Which HTTP a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0 and 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Requests that were cancelled before anybody has looked at them.
const MAX_UNSEEN_RESETS: usize = 500;
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves a connection to its end.
pub async fn serve(connection: Arc<Connection>, io: Io, version: HttpVersion) {
    let shared = connection.worker.shared.clone();
    let limits = &shared.limits;
    let idle = connection.http().and_then(|http| http.idle_timeout);
    let multiplexed = version == HttpVersion::Http2;
    let mut life = Life {
        phases: shared.drain.watch(),
        connection: connection.clone(),
        watch: Watch::new(idle, limits, multiplexed, Instant::now()),
    };
    let context = connection.clone();
    let service = move |req| handle(&context, req);
    let signals = connection.pulse.signals.clone();
    let account = connection.pulse.account.clone();
    let result = match version {
        HttpVersion::Http1 => {
            let requests = Requests::new(limits.as_ref().into());
            let guarded = Guarded::requests(io, requests, signals);
            let io = TokioIo::new(guarded.on(account));
            let mut builder = http1::Builder::new();
            if let Some(fields) = limits.hyper_fields() {
                builder.max_headers(fields);
            }
            let serving = builder
                .preserve_header_case(true)
                .auto_date_header(false)
                .max_buf_size(limits.http1_buffer())
                .serve_connection(io, service_fn(service))
                .with_upgrades();
            // Answers say `Connection: close` while draining, so that the client is the one
            // who closes; only what is idle at the end is closed from here.
            life.drive(serving, Phase::Closing, |serving| {
                serving.graceful_shutdown();
            })
            .await
        }
        HttpVersion::Http2 => {
            let frames = Frames::new(Role::Server, limits.as_ref().into());
            let guarded = Guarded::frames(io, frames, signals);
            let io = TokioIo::new(guarded.on(account));
            // Boxed: what answers a request needs much more room than the answer, and the
            // answer may wait for its client for long.
            let service = service_fn(move |req| Box::pin(service(req)));
            let streams = Streams {
                timeout: limits.write_timeout,
                memory: shared.memory.clone(),
            };
            let serving = http2::Builder::new(streams)
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .max_concurrent_streams(limits.http2_streams)
                // Bounded by the budgets of frames, which know of time and of work done.
                .max_local_error_reset_streams(None)
                .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
                .max_header_list_size(limits.max_head_bytes as u32)
                .initial_stream_window_size(limits.stream_window)
                .initial_connection_window_size(limits.http2_connection_window)
                .max_send_buf_size(limits.send_buffer)
                .keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .serve_connection(io, service);
            // GOAWAY in two steps loses nothing, so it goes out at once.
            life.drive(serving, Phase::Draining, |serving| {
                serving.graceful_shutdown();
            })
            .await
        }
    };
    if let Some(rule) = connection.pulse.signals.cut() {
        cut(&connection, rule);
    } else if let Err(error) = result {
        tracing::debug!(%error, "client connection ended");
    }
}

/// How long a connection lives.
struct Life {
    phases: watch::Receiver<Phase>,
    connection: Arc<Connection>,
    watch: Watch,
}

impl Life {
    /// Runs a connection. At `phase` of the shutdown, or when it was idle for too long, it
    /// is asked to end after what it is doing; one that holds something up is cut.
    async fn drive<C>(
        &mut self,
        serving: C,
        phase: Phase,
        shut_down: impl Fn(Pin<&mut C>),
    ) -> hyper::Result<()>
    where
        C: Future<Output = hyper::Result<()>>,
    {
        let mut serving = std::pin::pin!(serving);
        let tick = self.watch.tick();
        let mut ticks = interval_at(Instant::now() + tick, tick);
        loop {
            tokio::select! {
                biased;
                result = serving.as_mut() => return result,
                _ = self.phases.wait_for(|now| *now >= phase) => break,
                now = ticks.tick() => match look(&mut self.watch, &self.connection, now) {
                    // Not all at once: each at its own tick.
                    Verdict::Fine if self.connection.is_short_of_memory() => break,
                    Verdict::Fine => {}
                    Verdict::Idle => break,
                    Verdict::Cut(rule) => {
                        cut(&self.connection, rule);
                        return Ok(());
                    }
                },
            }
        }
        shut_down(serving.as_mut());
        // What is still going on is watched to its end.
        loop {
            tokio::select! {
                biased;
                result = serving.as_mut() => return result,
                now = ticks.tick() => {
                    if let Verdict::Cut(rule) = look(&mut self.watch, &self.connection, now) {
                        cut(&self.connection, rule);
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn look(watch: &mut Watch, connection: &Connection, now: Instant) -> Verdict {
    let memory = &connection.worker.shared.memory;
    watch.look(&connection.pulse, now, memory.is_short())
}

/// A connection is cut for what its client does, and counted.
fn cut(connection: &Connection, rule: &'static str) {
    let metrics = &connection.worker.shared.metrics;
    metrics.http_violation("downstream", rule);
    tracing::debug!(rule, "client connection cut");
}
