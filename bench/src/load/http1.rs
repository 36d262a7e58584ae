//! Closed loop over HTTP/1.1 keep-alive connections: one request in flight on each. The
//! client is raw, so that little of the machine goes to it.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::Instant;

use super::{Measured, Shared, Target, response, settle, window};
use crate::error::{Context as _, Error, Result};

/// Runs `connections` loops and measures a window of them.
pub(crate) async fn run(
    target: &Target,
    connections: usize,
    pids: &[u32],
    warm_up: Duration,
    length: Duration,
) -> Result<Measured> {
    let shared = Rc::new(Shared::new());
    let request: Rc<[u8]> = request(&target.host, "/").into_bytes().into();
    LocalSet::new()
        .run_until(async {
            let mut tasks = JoinSet::new();
            for _ in 0..connections {
                let stream = target.connect().await?;
                tasks.spawn_local(drive(stream, request.clone(), shared.clone()));
            }
            let measured = window(&shared, pids, warm_up, length).await;
            settle(tasks, measured).await
        })
        .await
}

/// A GET without a body.
pub(crate) fn request(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: weft-bench\r\naccept: */*\r\n\r\n")
}

async fn drive(mut stream: TcpStream, request: Rc<[u8]>, shared: Rc<Shared>) {
    let mut buffer = Vec::with_capacity(4096);
    while !shared.stopped() {
        let started = Instant::now();
        let result = exchange(&mut stream, &request, &mut buffer).await;
        let broken = result.is_err();
        if !(broken && shared.stopped()) {
            shared.count(started, result);
        }
        if broken {
            return;
        }
    }
}

/// One request and its whole response, which must be 200 and leave the connection open.
async fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> Result<()> {
    stream.write_all(request).await.context("write")?;
    buffer.clear();
    loop {
        // A timer for each read would be a cost of ours in every figure; connections that
        // hang are found by the window's end, when nothing of theirs has been counted.
        let n = stream.read_buf(buffer).await.context("read")?;
        if n == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof)).context("read");
        }
        let Some(head) = response::parse(buffer).map_err(Error::new)? else {
            continue;
        };
        let body = head.body.context("the response has no content-length")?;
        if buffer.len() < head.length + body {
            continue;
        }
        if head.status != 200 {
            let reason = head.header("weft-reason").unwrap_or_default();
            return Err(Error::new(format!("status {} {reason}", head.status)));
        }
        return if head.closes() {
            Err(Error::new("the connection was closed"))
        } else {
            Ok(())
        };
    }
}
