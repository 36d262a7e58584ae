//! Closed loop over one HTTP/2 connection: a number of streams in flight. Plain GETs, or
//! gRPC unary calls with a message of 100 bytes, framed by hand.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::Instant;

use super::{Measured, Shared, Target, settle, window};
use crate::error::{Context as _, Error, Result};

/// What is called on each stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Get,
    /// A unary call that is answered with the same message.
    Grpc,
}

/// Runs `streams` loops over one connection and measures a window of them.
pub(crate) async fn run(
    target: &Target,
    call: Call,
    streams: usize,
    pids: &[u32],
    warm_up: Duration,
    length: Duration,
) -> Result<Measured> {
    let shared = Rc::new(Shared::new());
    LocalSet::new()
        .run_until(async {
            let stream = target.connect().await?;
            let (sender, connection) = h2::client::handshake(stream)
                .await
                .context("HTTP/2 handshake")?;
            let connection = tokio::task::spawn_local(connection);
            let mut tasks = JoinSet::new();
            for _ in 0..streams {
                tasks.spawn_local(drive(
                    sender.clone(),
                    call,
                    target.host.clone(),
                    shared.clone(),
                ));
            }
            let measured = window(&shared, pids, warm_up, length).await;
            let measured = settle(tasks, measured).await;
            connection.abort();
            measured
        })
        .await
}

async fn drive(mut sender: SendRequest<Bytes>, call: Call, host: String, shared: Rc<Shared>) {
    let message = grpc_frame(&[b'x'; 100]);
    while !shared.stopped() {
        let started = Instant::now();
        let result = exchange(&mut sender, call, &host, &message).await;
        let broken = result.is_err();
        if !(broken && shared.stopped()) {
            shared.count(started, result);
        }
        if broken {
            return;
        }
    }
}

/// A length-prefixed gRPC message, not compressed.
pub(crate) fn grpc_frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("messages here are short");
    let mut frame = Vec::with_capacity(5 + message.len());
    frame.push(0);
    frame.extend(length.to_be_bytes());
    frame.extend(message);
    frame.into()
}

async fn exchange(
    sender: &mut SendRequest<Bytes>,
    call: Call,
    host: &str,
    message: &Bytes,
) -> Result<()> {
    poll_fn(|cx| sender.poll_ready(cx))
        .await
        .context("connection")?;
    let request = Request::builder().header("user-agent", "weft-bench");
    let request = match call {
        Call::Get => request.method(Method::GET).uri(format!("http://{host}/")),
        Call::Grpc => request
            .method(Method::POST)
            .uri(format!("http://{host}/bench.Echo/Unary"))
            .header("content-type", "application/grpc")
            .header("te", "trailers"),
    };
    let request = request.body(()).context("request")?;
    let (response, mut send) = sender
        .send_request(request, call == Call::Get)
        .context("send")?;
    if call == Call::Grpc {
        send.send_data(message.clone(), true).context("send")?;
    }
    let response = response.await.context("response")?;
    if response.status() != 200 {
        return Err(Error::new(format!("status {}", response.status())));
    }
    let mut status = response.headers().get("grpc-status").cloned();
    let mut body = response.into_body();
    let mut received = 0;
    while let Some(data) = body.data().await {
        let data = data.context("body")?;
        received += data.len();
        // It fails only when the stream is over, and then nothing is lost.
        let _ = body.flow_control().release_capacity(data.len());
    }
    if call == Call::Get {
        return Ok(());
    }
    if let Some(trailers) = body.trailers().await.context("trailers")? {
        status = trailers.get("grpc-status").cloned();
    }
    match status {
        Some(status) if status == "0" && received == message.len() => Ok(()),
        Some(status) => Err(Error::new(format!(
            "grpc-status {status:?} after {received} bytes"
        ))),
        None => Err(Error::new("no grpc-status")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_frames_carry_their_length() {
        assert_eq!(&grpc_frame(b"ab")[..], b"\0\0\0\0\x02ab");
        assert_eq!(grpc_frame(&[0; 300])[..5], [0, 0, 0, 1, 44]);
    }
}
