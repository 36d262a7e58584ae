//! One client's HTTP connection: limits, keep-alive, and how it ends in a shutdown.

use std::{convert::Infallible, future::Future, pin::Pin, sync::Arc, time::Duration};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    sync::watch,
    time::{Instant, interval_at},
};

use super::{
    Connection,
    forward::handle,
    pulse::{Pulse, TICK, Verdict, Watch},
};
use crate::{drain::Phase, io::Io};

/// Which HTTP a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0 and 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

const MAX_HEADER_BYTES: u32 = 64 * 1024;
const MAX_STREAMS: u32 = 250;
/// Stalled streams must not stop the others: the windows of all streams fit.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
const SEND_BUFFER: usize = 256 * 1024;
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves a connection to its end.
pub async fn serve(connection: Arc<Connection>, io: Io, version: HttpVersion) {
    let idle = connection.http().and_then(|http| http.idle_timeout);
    let heads = version == HttpVersion::Http1;
    let mut life = Life {
        phases: connection.worker.shared.drain.watch(),
        pulse: connection.pulse.clone(),
        watch: Watch::new(idle, heads, Instant::now()),
    };
    let context = connection.clone();
    let service = service_fn(move |req| {
        let answer = handle(&context, req);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = TokioIo::new(io.counted(connection.pulse.received()));
    let result = match version {
        HttpVersion::Http1 => {
            let serving = http1::Builder::new()
                .preserve_header_case(true)
                .serve_connection(io, service)
                .with_upgrades();
            // Answers say `Connection: close` while draining, so that the client is the one
            // who closes; only what is idle at the end is closed from here.
            life.drive(serving, Phase::Closing, |serving| {
                serving.graceful_shutdown();
            })
            .await
        }
        HttpVersion::Http2 => {
            let serving = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(MAX_HEADER_BYTES)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(SEND_BUFFER)
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
    if let Err(error) = result {
        tracing::debug!(%error, "client connection ended");
    }
}

/// How long a connection lives.
struct Life {
    phases: watch::Receiver<Phase>,
    pulse: Arc<Pulse>,
    watch: Watch,
}

impl Life {
    /// Runs a connection. At `phase` of the shutdown, or when it was idle for too long, it
    /// is asked to end after what it is doing; one that drips a head is cut.
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
        let mut ticks = interval_at(Instant::now() + TICK, TICK);
        loop {
            tokio::select! {
                biased;
                result = serving.as_mut() => return result,
                _ = self.phases.wait_for(|now| *now >= phase) => break,
                now = ticks.tick() => match self.watch.look(&self.pulse, now) {
                    Verdict::Fine => {}
                    Verdict::Idle => break,
                    Verdict::SlowHead => return Ok(()),
                },
            }
        }
        shut_down(serving.as_mut());
        serving.await
    }
}
