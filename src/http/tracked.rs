//! HOT. The response body on its way to the client: it owns the stream's record, the chosen
//! endpoint and the connection until the last byte, or until the client goes away.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Method;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

use super::{
    pulse::ActiveGuard,
    reply::{grpc_status, grpc_trailers},
    stall,
};
use crate::{
    body::{Answering, Body, Interrupted},
    cluster::Pick,
    error::{Error, Reason},
    fields::{self, Sender},
    limits::Limits,
    memory::Charge,
    telemetry::StreamInfo,
    upstream::{Lease, reason_of},
};

/// What an answer needs in memory, in bytes, without its body.
const ANSWER: usize = 4 * 1024;

/// A response body with everything that ends when it ends.
#[derive(Debug)]
pub struct Tracked {
    body: Body,
    stream: Option<Stream>,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) info: Box<StreamInfo>,
    /// The endpoint, the worker whose pool the connection is from, and the connection.
    pub(super) upstream: Option<(Pick, usize, Lease)>,
    /// The request whose body this answers; the rest of it may wait for this answer.
    pub(super) answering: Option<Answering>,
    /// When the request's time is up.
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
    /// What trailers are held to.
    pub(super) limits: Arc<Limits>,
    /// What the stream takes of the process's memory.
    pub(super) room: Option<Charge>,
    /// HTTP/1: bytes of the last frame, which may wait for the client until it asks for the next.
    pub(super) held: usize,
    /// HTTP/2: frames wait for their client however many there are, also when all were given.
    pub(super) multiplexed: bool,
    /// The client's connection has a request in flight.
    pub(super) active: ActiveGuard,
}

impl Stream {
    /// Charges a frame that may have to wait. Without room it waits all the same, and nothing
    /// new is begun.
    fn hold(&mut self, data: Bytes) -> Bytes {
        self.info.bytes_out += data.len() as u64;
        let Some(room) = &mut self.room else {
            return data;
        };
        if self.multiplexed {
            let charge = room.another(data.len());
            return self.active.unsent(data, charge);
        }
        room.shrink(self.held);
        self.held = if room.grow(data.len()) { data.len() } else { 0 };
        data
    }
}

/// Why a body broke off. The words end in hyper's log only.
#[derive(Debug)]
pub struct Broken(Reason);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.slug())
    }
}

impl std::error::Error for Broken {}

impl Tracked {
    /// A body whose end is the end of the stream.
    pub(super) fn new(body: Body, mut stream: Stream) -> Self {
        if let Some(room) = &mut stream.room {
            // The head of the request is gone.
            room.shrink_to(ANSWER);
        }
        // A client that takes nothing gets no words with what its mistakes are answered: they
        // would wait for it, and the head says why.
        let refused = stream.multiplexed && stream.info.reason != Reason::None;
        let wordless = refused && stream.upstream.is_none() && stream.active.is_behind();
        Self {
            body: if wordless { Body::Empty } else { body },
            stream: Some(stream),
        }
    }

    /// The stream has ended as it should: the connection goes back to its pool.
    fn complete(&mut self) {
        let Some(stream) = self.stream.take() else {
            return;
        };
        // A server that answers before it has read all may take the rest for the next request.
        let whole = stream.answering.as_ref().is_none_or(Answering::to_all);
        if let (true, Some((pick, worker, Lease::Http1(send)))) = (whole, stream.upstream) {
            pick.endpoint.pool(worker).give_back(send);
        }
    }

    /// The stream broke off.
    fn broken(
        &mut self,
        reason: Reason,
        detail: String,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Some(mut stream) = self.stream.take() else {
            return Poll::Ready(None);
        };
        stream.info.reason = reason;
        stream.info.detail = Some(detail);
        let is_grpc = stream.info.is_grpc;
        if is_grpc {
            stream.info.grpc_code = Some(reason.row().grpc);
        }
        drop(stream);
        self.body = Body::Empty;
        // A clean end would look like the whole answer: gRPC gets a status, others a break.
        if is_grpc {
            Poll::Ready(Some(Ok(Frame::trailers(grpc_trailers(reason)))))
        } else {
            Poll::Ready(Some(Err(Broken(reason))))
        }
    }
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let Some(stream) = &mut this.stream else {
            return Poll::Ready(None);
        };
        if let Some(deadline) = &mut stream.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return this.broken(
                Reason::RequestTimeout,
                "while the response streamed".to_owned(),
            );
        }
        if stream.multiplexed && stream.active.poll_room(cx).is_pending() {
            return Poll::Pending;
        }
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        stall::asked(matches!(polled, Poll::Ready(Some(Ok(_)))));
        match ready!(polled) {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut()
                    && let Err(violation) =
                        fields::trailers(trailers, Sender::Server, &stream.limits)
                {
                    return this.broken(violation.error.reason, violation.error.detail);
                }
                if let Some(trailers) = frame.trailers_ref()
                    && let Some(status) = grpc_status(trailers)
                {
                    stream.info.grpc_code = Some(status);
                }
                let frame = frame.map_data(|data| stream.hold(data));
                // Nothing follows trailers, and nobody asks.
                if frame.is_trailers() || this.body.is_end_stream() {
                    this.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let error = match error {
                    Interrupted::Peer(error) => reason_of(&error),
                    Interrupted::Refused => Error::new(Reason::Internal, "held to no rule"),
                };
                this.broken(
                    error.reason,
                    format!("while the response streamed: {}", error.detail),
                )
            }
            None => {
                this.complete();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.complete();
        } else if let Some(stream) = &mut self.stream
            // Nobody reads the body of an answer to HEAD; it is whole without.
            && stream.info.method != Method::HEAD
        {
            if stall::is_stalled() {
                stream.info.reason = Reason::IdleTimeout;
                let words = "the client took nothing of the answer for too long";
                stream.info.detail = Some(words.to_owned());
            } else {
                stream.info.reason = Reason::ClientClosed;
            }
        }
    }
}
