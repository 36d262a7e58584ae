//! An HTTP/2 client with prior knowledge, and the framing of gRPC.

use std::net::SocketAddr;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::app::{Body, full};
use super::soon;

/// Sends requests on one connection.
pub(crate) type Sender = http2::SendRequest<Body>;

pub(crate) async fn connect(address: SocketAddr) -> Sender {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

/// A body that is written as it goes; it ends when the sender is dropped.
pub(crate) fn channel() -> (mpsc::UnboundedSender<Frame<Bytes>>, Body) {
    let (sender, frames) = mpsc::unbounded_channel();
    let frames = UnboundedReceiverStream::new(frames).map(Ok);
    (sender, StreamBody::new(frames).boxed_unsync())
}

/// What came back, whole.
pub(crate) struct Whole {
    pub(crate) head: Response<()>,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Whole {
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.head.headers().get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }
}

/// Reads an answer to its end.
pub(crate) async fn whole(response: Response<Incoming>) -> Whole {
    let (parts, body) = response.into_parts();
    let collected = soon("the rest of the answer", body.collect())
        .await
        .unwrap();
    Whole {
        head: Response::from_parts(parts, ()),
        trailers: collected.trailers().cloned().unwrap_or_default(),
        body: collected.to_bytes(),
    }
}

pub(crate) async fn get(sender: &mut Sender, uri: &str) -> Whole {
    let request = Request::get(uri).body(full("")).unwrap();
    let response = soon("an answer", sender.send_request(request)).await;
    whole(response.unwrap()).await
}

/// A gRPC call.
pub(crate) fn call(uri: &str, body: Body) -> Request<Body> {
    Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

/// A gRPC message as it is on the wire.
pub(crate) fn message(text: &str) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(u32::try_from(text.len()).unwrap());
    out.put_slice(text.as_bytes());
    out.freeze()
}

/// The messages in some bytes.
pub(crate) fn messages(mut bytes: Bytes) -> Vec<String> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        bytes.advance(1);
        let length = bytes.get_u32() as usize;
        out.push(String::from_utf8(bytes.split_to(length).to_vec()).unwrap());
    }
    out
}
