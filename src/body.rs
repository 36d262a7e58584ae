//! HOT. Bodies on the path: never boxed, never copied.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use prometheus::IntCounter;

use crate::util::Gate;

/// A request or response body.
#[derive(Debug, Default)]
pub enum Body {
    /// No bytes.
    #[default]
    Empty,
    /// One buffer, made here.
    Full(Bytes),
    /// What the other side sends, and where its bytes are counted.
    Incoming(Incoming, Option<IntCounter>),
    /// A request body that is not asked for until the upstream wants it
    /// (`Expect: 100-continue`): polling it makes hyper send `100 Continue` downstream.
    Gated(Incoming, Option<IntCounter>, Gate),
}

impl Body {
    /// The body of a message that hyper read; an empty one costs nothing later.
    #[must_use]
    pub fn incoming(incoming: Incoming, bytes: Option<IntCounter>) -> Self {
        if incoming.is_end_stream() {
            Self::Empty
        } else {
            Self::Incoming(incoming, bytes)
        }
    }
}

impl Body {
    /// Counts the bytes of a body that is read from the other side.
    pub fn count(&mut self, counter: Option<IntCounter>) {
        if let Self::Incoming(_, bytes) = self {
            *bytes = counter;
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Incoming(incoming, bytes) => poll_counted(incoming, bytes.as_ref(), cx),
            Self::Gated(incoming, bytes, gate) => {
                ready!(gate.poll_open(cx));
                poll_counted(incoming, bytes.as_ref(), cx)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Incoming(incoming, _) | Self::Gated(incoming, ..) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Incoming(incoming, _) | Self::Gated(incoming, ..) => incoming.size_hint(),
        }
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, hyper::Error>>>;

fn poll_counted(
    incoming: &mut Incoming,
    bytes: Option<&IntCounter>,
    cx: &mut Context<'_>,
) -> Polled {
    let polled = Pin::new(incoming).poll_frame(cx);
    if let (Poll::Ready(Some(Ok(frame))), Some(bytes)) = (&polled, bytes)
        && let Some(data) = frame.data_ref()
    {
        bytes.inc_by(data.len() as u64);
    }
    polled
}
