//! Descriptors (T43): sidecars that may open 256 files, and thousands of connections to them.
//! What is there goes on, what cannot be had is refused and counted, and a second after the
//! flood everything is as before.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use weft_kit::raw1::Client;

use super::pair::{PLAIN, Pair, SECOND, Start, files, metric, milliseconds};
use crate::error::{Context as _, Result};
use crate::process::which;
use crate::procfs;
use crate::verify::{Cases, Finding, Setting, seen};

/// What the sidecars may open.
const FILES: u32 = 256;
/// A limit of connections that files end before.
const NO_LIMIT: u64 = 100_000;
const RECOVERY: Duration = Duration::from_secs(1);

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let flood = if setting.quick { 600 } else { 5000 };
    let names = [
        (
            "connection-limit",
            "more connections than half of the files: those above are reset and counted, one that is open goes on, 200 on a new one < 1 s after the flood",
        ),
        (
            "accept",
            "no file left for accept: counted, no busy loop, an open connection goes on, 200 on a new one < 1 s after the flood",
        ),
        (
            "connect",
            "no file left for a connection to the server: 503 proxy_overloaded, counted, 200 < 1 s after the flood",
        ),
        (
            "inbound",
            "a flood of the mTLS port: the client's open connection goes on, 200 < 1 s after the flood",
        ),
    ];
    if which("prlimit").is_none() {
        for (name, expected) in names {
            cases.skip(name, expected, "no prlimit: apt-get install util-linux");
        }
        return Ok(());
    }
    let limited = Start::default().files(FILES);
    let pair = Pair::start(setting, "limited", &limited, &limited).await?;
    let [limit, accept, connect, inbound] = names;
    cases
        .check(limit.0, limit.1, over_the_limit(&pair, flood))
        .await;
    cases
        .check(inbound.0, inbound.1, on_the_server(&pair, flood))
        .await;
    drop(pair);
    let unlimited = Start::with(&[("MAX_CONNECTIONS", NO_LIMIT)]).files(FILES);
    let pair = Pair::start(setting, "unlimited", &unlimited, &Start::default()).await?;
    cases
        .check(accept.0, accept.1, no_file_to_accept(&pair, flood))
        .await;
    cases
        .check(connect.0, connect.1, no_file_to_connect(&pair))
        .await;
    Ok(())
}

/// What became of many connections on which nothing is said.
struct Flood {
    open: Vec<TcpStream>,
    cut: usize,
}

/// Opens connections as fast as they are taken; those that are not taken in a moment wait in the
/// kernel's queue, and are open as far as a client can tell.
async fn flood(address: SocketAddr, count: usize) -> Flood {
    let connect = |_| timeout(Duration::from_millis(100), TcpStream::connect(address));
    let connected: Vec<_> = stream::iter(0..count)
        .map(connect)
        .buffer_unordered(64)
        .collect()
        .await;
    let mut open = Vec::with_capacity(count);
    for connection in connected {
        // Others were refused, or the queue is full.
        let Ok(Ok(mut stream)) = connection else {
            continue;
        };
        let mut byte = [0; 1];
        if timeout(Duration::from_micros(100), stream.read(&mut byte))
            .await
            .is_err()
        {
            open.push(stream);
        }
    }
    let cut = count - open.len();
    Flood { open, cut }
}

fn request(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")
}

/// Ten answers on an open connection.
async fn goes_on(client: &mut Client, host: &str) -> Result<()> {
    for _ in 0..10 {
        let answer = client
            .exchange(request(host))
            .await
            .context("an open connection")?;
        if answer.status() != 200 {
            let status = answer.status();
            return Err(crate::error::Error::new(format!(
                "an open connection got {status}"
            )));
        }
    }
    Ok(())
}

async fn open(pair: &Pair) -> Result<Client> {
    let mut client = Client::connect(pair.outbound).await.context("connect")?;
    goes_on(&mut client, PLAIN).await?;
    Ok(client)
}

async fn over_the_limit(pair: &Pair, count: usize) -> Result<Finding> {
    let mut good = open(pair).await?;
    let flood = flood(pair.outbound, count).await;
    goes_on(&mut good, PLAIN).await?;
    let most = files(pair.client.process.pid)?;
    let (open, cut) = (flood.open.len(), flood.cut);
    drop(flood);
    let took = pair.recovered(Duration::from_secs(10)).await?;
    let counted = metric(
        &pair.client,
        "weft_overloaded_total",
        &["what=\"connections\""],
    )
    .await?;
    let ok = took < RECOVERY && counted >= 1.0 && cut > 0 && open <= FILES as usize / 2;
    Ok(seen(
        ok,
        format!(
            "{count} connections: {open} open, {cut} reset, {counted} counted; {most} files; 200 after {}",
            milliseconds(took)
        ),
    ))
}

async fn on_the_server(pair: &Pair, count: usize) -> Result<Finding> {
    let mut good = open(pair).await?;
    let flood = flood(pair.inbound, count).await;
    goes_on(&mut good, PLAIN).await?;
    let (open, cut) = (flood.open.len(), flood.cut);
    drop(flood);
    let took = pair.recovered(Duration::from_secs(10)).await?;
    let counted = metric(
        &pair.server,
        "weft_overloaded_total",
        &["what=\"connections\""],
    )
    .await?;
    Ok(seen(
        took < RECOVERY && counted >= 1.0 && cut > 0,
        format!(
            "{count} connections: {open} open, {cut} reset, {counted} counted; 200 after {}",
            milliseconds(took)
        ),
    ))
}

async fn no_file_to_accept(pair: &Pair, count: usize) -> Result<Finding> {
    let pid = pair.client.process.pid;
    let mut good = open(pair).await?;
    let flood = flood(pair.outbound, count).await;
    let most = files(pid)?;
    let before = procfs::cpu(pid)?;
    let window = Duration::from_secs(1);
    tokio::time::sleep(window).await;
    let busy = (procfs::cpu(pid)?.saturating_sub(before)).as_secs_f64() / window.as_secs_f64();
    goes_on(&mut good, PLAIN).await?;
    drop(flood);
    let took = pair.recovered(Duration::from_secs(10)).await?;
    let errors = metric(
        &pair.client,
        "weft_accept_errors_total",
        &["error=\"files\""],
    )
    .await?;
    // One waits 10 to 100 ms after such an error: a hundred in a second at the very most.
    let ok = took < RECOVERY && errors >= 1.0 && most >= FILES as usize - 8 && busy < 0.2;
    Ok(seen(
        ok,
        format!(
            "{count} connections, {most} of {FILES} files, {errors} errors of accept counted, {:.1} % of a core; 200 after {}",
            busy * 100.0,
            milliseconds(took)
        ),
    ))
}

async fn no_file_to_connect(pair: &Pair) -> Result<Finding> {
    let mut good = open(pair).await?;
    // The destination is known, but no connection to it is open: it has a pool of its own.
    let flood = flood(pair.outbound, FILES as usize + 100).await;
    let answer = good
        .exchange(request(SECOND))
        .await
        .context("a request while there is no file")?;
    let reason = answer.header("weft-reason").unwrap_or_default().to_owned();
    let status = answer.status();
    drop(flood);
    let took = pair.recovered(Duration::from_secs(10)).await?;
    let second = pair.get(SECOND, "/").await?;
    let counted = metric(&pair.client, "weft_overloaded_total", &["what=\"upstream"]).await?;
    let ok = status == 503
        && reason == "proxy_overloaded"
        && took < RECOVERY
        && second.status == 200
        && counted >= 1.0;
    Ok(seen(
        ok,
        format!(
            "{status} {reason}, {counted} counted; then {} after {}",
            second.status,
            milliseconds(took)
        ),
    ))
}
