//! Streams of an HTTP/2 connection whose client takes nothing of the answer. hyper waits for
//! the client's window in the task of the stream; so that task is watched, and dropped, which
//! resets the stream, when it has waited for too long. The other streams go on.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use crate::memory::{Charge, Memory};

/// Under pressure, streams that stand still are the first to go: before anybody is refused.
const UNDER_PRESSURE: Duration = Duration::from_secs(1);

/// What a stream costs at the least, on both sides: what h2 keeps of it, and its task.
const STREAM: usize = 4 * 1024;

/// What a stream's body was last asked for, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    asked: u64,
    /// It gave a frame, and nobody has asked for the next one since.
    full: bool,
}

thread_local! {
    /// Of the stream that is polled at this moment.
    static POLLED: Cell<Progress> = const { Cell::new(Progress { asked: 0, full: false }) };
    static STALLED: Cell<bool> = const { Cell::new(false) };
}

/// The body of the stream that is polled was asked for a frame; `gave`: there was one.
pub(super) fn asked(gave: bool) {
    let Progress { asked, .. } = POLLED.get();
    POLLED.set(Progress {
        asked: asked.wrapping_add(1),
        full: gave,
    });
}

/// Whether the stream that is dropped at this moment was stalled by its client.
pub(super) fn is_stalled() -> bool {
    STALLED.get()
}

/// Runs the streams of HTTP/2 connections.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    /// How long a client may take nothing of an answer that is there.
    pub(super) timeout: Duration,
    pub(super) memory: Arc<Memory>,
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(Watched {
            stream: Some(stream),
            progress: Progress::default(),
            since: None,
            sleep: None,
            streams: self.clone(),
            _charge: self.memory.charge(STREAM),
        });
    }
}

pin_project! {
    struct Watched<F> {
        #[pin]
        stream: Option<F>,
        progress: Progress,
        // When the client took something for the last time, while it should take more.
        since: Option<Instant>,
        sleep: Option<Pin<Box<Sleep>>>,
        streams: Streams,
        // Without room the request is refused, and ends soon.
        _charge: Option<Charge>,
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let Some(stream) = this.stream.as_mut().as_pin_mut() else {
            return Poll::Ready(());
        };
        POLLED.set(*this.progress);
        if stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let now = POLLED.get();
        let moved = now != *this.progress;
        *this.progress = now;
        if !now.full {
            *this.since = None;
            return Poll::Pending;
        }
        if moved || this.since.is_none() {
            *this.since = Some(Instant::now());
        }
        let since = this.since.unwrap_or_else(Instant::now);
        let sleep = this
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(UNDER_PRESSURE)));
        while sleep.as_mut().poll(cx).is_ready() {
            let waited = since.elapsed();
            let pressed = this.streams.memory.is_short();
            if waited >= this.streams.timeout || (pressed && waited >= UNDER_PRESSURE) {
                STALLED.set(true);
                this.stream.set(None);
                STALLED.set(false);
                return Poll::Ready(());
            }
            let next = UNDER_PRESSURE.min(this.streams.timeout);
            sleep.as_mut().reset(Instant::now() + next);
        }
        Poll::Pending
    }
}
