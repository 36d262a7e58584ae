//! Memory and ports (T44): a sidecar that has 128 MiB, and peers that would make it keep many
//! times that; a host with 100 ports. What does not fit is refused with a reason; nothing is
//! killed, and when the peers are gone all is as before.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use weft_kit::raw2::frame::{END_HEADERS, END_STREAM, INITIAL_WINDOW_SIZE};
use weft_kit::raw2::{Block, Frame, Peer, RUDE};

use super::pair::{PLAIN, Pair, SECOND, Start, mebibytes, metric, milliseconds};
use crate::error::{Context as _, Error, Result};
use crate::load::rate::Sample;
use crate::load::response;
use crate::netns::{self, Network, write_sysctl};
use crate::verify::{Cases, Finding, Setting, seen};

/// What the sidecar has.
const LIMIT: u64 = 128 << 20;
/// Where cgroups of version 1 that limit memory are.
const GROUPS: &str = "/sys/fs/cgroup/memory";
/// Ports of a host that has few.
const PORTS: (u16, u16) = (20_000, 20_099);

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let (window, connections) = if setting.quick {
        (Duration::from_secs(4), 48)
    } else {
        (Duration::from_secs(20), 100)
    };
    let waves: &[(&str, &[Hoard])] = if setting.quick {
        &[("together", &Hoard::ALL)]
    } else {
        &[
            ("bodies-http1", &[Hoard::Bodies]),
            ("bodies-http2", &[Hoard::Streams]),
            ("heads", &[Hoard::Heads]),
            ("unread", &[Hoard::Unread]),
            ("together", &Hoard::ALL),
        ]
    };
    let expected = format!(
        "{connections} connections of each kind against a sidecar with {}: it lives, what is refused is 503 \
         proxy_overloaded, and < 5 s after the end all is answered again",
        mebibytes(LIMIT)
    );
    match Group::create() {
        Err(missing) => {
            for (name, _) in waves {
                cases.skip(name, expected.clone(), missing.to_string());
            }
        }
        Ok(group) => {
            let client = Start::default().under(group.command());
            for (name, kinds) in waves {
                let pair = Pair::start(setting, name, &client, &Start::default()).await?;
                let wave = wave(pair, &group, kinds, connections, window);
                cases.check(name, expected.clone(), wave).await;
            }
        }
    }
    let expected = "300 requests at one time and 100 ports: those above get 503 proxy_overloaded, another destination is \
                    reached, and < 5 s after the end all is answered again";
    match netns::missing() {
        Some(missing) => cases.skip("ports", expected, missing),
        None => cases.check("ports", expected, ports(setting)).await,
    }
    Ok(())
}

/// A cgroup of version 1 with a limit; removed when dropped.
#[derive(Debug)]
struct Group {
    dir: PathBuf,
}

impl Group {
    /// An error says what is missing.
    fn create() -> Result<Self> {
        let parent = Path::new(GROUPS);
        if !parent.join("memory.limit_in_bytes").exists() {
            return Err(Error::new(format!(
                "no {GROUPS}/memory.limit_in_bytes: needs cgroups of version 1"
            )));
        }
        let dir = parent.join(format!("weft-bench-{}", std::process::id()));
        fs::create_dir_all(&dir).context(format!("{} (it needs root)", dir.display()))?;
        let group = Self { dir };
        group.write("memory.limit_in_bytes", &LIMIT.to_string())?;
        Ok(group)
    }

    /// Starts what follows in the group.
    fn command(&self) -> Vec<String> {
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec \"$@\"",
            self.dir.display()
        );
        ["sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.dir.join(file);
        fs::write(&path, text).context(path.display())
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.dir.join(file);
        fs::read_to_string(&path).context(path.display())
    }

    fn bytes(&self, file: &str) -> Result<u64> {
        self.read(file)?.trim().parse().context(file)
    }

    /// What the kernel has killed in it.
    fn killed(&self) -> Result<u64> {
        killed(&self.read("memory.oom_control")?).context("memory.oom_control: no oom_kill")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that was killed may not be gone yet; there is nobody to tell what stays.
        for pid in self.read("cgroup.procs").unwrap_or_default().lines() {
            let _ = fs::write(Path::new(GROUPS).join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.dir);
    }
}

fn killed(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// What a peer makes the sidecar keep.
#[derive(Debug, Clone, Copy)]
enum Hoard {
    /// Bodies that the application does not read, over HTTP/1.
    Bodies,
    /// The same as streams of HTTP/2, each to the end of its window.
    Streams,
    /// Heads of requests that are not answered, of 90 fields each.
    Heads,
    /// Long answers, with every window open and nobody who reads.
    Unread,
}

impl Hoard {
    const ALL: [Self; 4] = [Self::Bodies, Self::Streams, Self::Heads, Self::Unread];
    /// Streams of one connection.
    const STREAMS: u32 = 200;

    /// On one connection, until the other side ends it.
    async fn hold(self, stream: TcpStream) -> std::io::Result<()> {
        match self {
            Self::Bodies => Self::bodies(stream).await,
            Self::Streams => Self::streams(stream).await,
            Self::Heads => Self::heads(stream).await,
            Self::Unread => Self::unread(stream).await,
        }
    }

    async fn bodies(mut stream: TcpStream) -> std::io::Result<()> {
        let head =
            format!("POST /stall HTTP/1.1\r\nhost: {PLAIN}\r\ncontent-length: 1000000000\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let (mut reading, mut writing) = stream.split();
        let piece = vec![0; 64 << 10];
        let write = async {
            loop {
                writing.write_all(&piece).await?;
            }
        };
        let mut answer = [0; 1024];
        tokio::select! {
            result = write => result,
            // An early answer ends it as well.
            read = reading.read(&mut answer) => read.map(|_| ()),
        }
    }

    fn block(method: &str, path: &str) -> Block {
        Block::request(method, PLAIN, path)
    }

    async fn streams(stream: TcpStream) -> std::io::Result<()> {
        let mut peer = Peer::silent(stream).patience(Duration::from_secs(60));
        peer.begin(&[]).await?;
        let mut frames = Vec::new();
        for i in 0..Self::STREAMS {
            let id = 2 * i + 1;
            let block = Self::block("POST", "/stall").bytes();
            frames.push(Frame::headers(id, END_HEADERS, block));
        }
        peer.send_all(&frames).await?;
        // 64 KiB without asking, the rest as the windows open.
        let mut left = vec![65_535_usize; Self::STREAMS as usize];
        let mut connection = 65_535_usize;
        let mut next = 0;
        loop {
            let Some(offset) = (0..left.len()).find(|i| left[(next + i) % left.len()] > 0) else {
                peer.next().await?;
                continue;
            };
            let at = (next + offset) % left.len();
            let length = left[at].min(connection).min(16_384);
            if length == 0 {
                let frame = peer.next().await?;
                if frame.kind == weft_kit::raw2::frame::WINDOW_UPDATE {
                    let more = frame.number(0) as usize;
                    match frame.stream {
                        0 => connection += more,
                        id => left[(id as usize / 2) % Self::STREAMS as usize] += more,
                    }
                }
                continue;
            }
            left[at] -= length;
            connection -= length;
            next = at + 1;
            peer.send(&Frame::data(2 * at as u32 + 1, 0, vec![0; length]))
                .await?;
        }
    }

    async fn heads(stream: TcpStream) -> std::io::Result<()> {
        let mut peer = Peer::silent(stream).patience(Duration::from_secs(60));
        peer.begin(&[]).await?;
        for i in 0..Self::STREAMS {
            // One field enters the table of HPACK; 85 bytes make 85 of it.
            let block = Self::block("GET", "/stall").incremental("cookie", "x".repeat(512));
            let block = block.raw([0x80 | 62; 85]);
            peer.send(&Frame::headers(
                2 * i + 1,
                END_HEADERS | END_STREAM,
                block.bytes(),
            ))
            .await?;
        }
        peer.goodbye().await;
        Ok(())
    }

    async fn unread(stream: TcpStream) -> std::io::Result<()> {
        let mut peer = Peer::silent(stream).manners(RUDE);
        peer.begin(&[(INITIAL_WINDOW_SIZE, 16 << 20)]).await?;
        peer.send(&Frame::window(0, 1 << 30)).await?;
        for i in 0..Self::STREAMS {
            peer.get(2 * i + 1, PLAIN, "/size/1048576").await?;
        }
        // Nobody reads; whoever is told to go finds out by writing.
        loop {
            sleep(Duration::from_millis(200)).await;
            peer.send(&Frame::window(0, 1)).await?;
        }
    }
}

/// Peers that come again whenever they are cut.
fn besiege(pair: &Pair, kinds: &[Hoard], connections: usize) -> JoinSet<()> {
    let mut peers = JoinSet::new();
    for kind in kinds {
        for _ in 0..connections {
            let (kind, at) = (*kind, pair.outbound);
            peers.spawn(async move {
                loop {
                    if let Ok(stream) = TcpStream::connect(at).await {
                        // To be cut is what it is for.
                        let _ = kind.hold(stream).await;
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            });
        }
    }
    peers
}

async fn wave(
    mut pair: Pair,
    group: &Group,
    kinds: &[Hoard],
    connections: usize,
    window: Duration,
) -> Result<Finding> {
    let before = (group.killed()?, group.bytes("memory.usage_in_bytes")?);
    group.write("memory.max_usage_in_bytes", "0")?;
    let load = pair.load(100)?;
    let peers = besiege(&pair, kinds, connections);
    sleep(window).await;
    let samples = load.finish().await?;
    drop(peers);
    let ended = pair.client.process.ended().is_some();
    let killed = group.killed()? - before.0;
    let peak = group.bytes("memory.max_usage_in_bytes")?;
    if ended || killed > 0 {
        let tail = pair.client.process.tail();
        return Ok(seen(
            false,
            format!("the sidecar ended ({killed} killed by the kernel):\n{tail}"),
        ));
    }
    let took = calm(&pair).await?;
    let after = group.bytes("memory.usage_in_bytes")?;
    let refused = metric(&pair.client, "weft_overloaded_total", &[]).await?;
    let tally = Tally::of(&samples);
    Ok(seen(
        tally.other == 0 && took < Duration::from_secs(5),
        format!(
            "{} at rest, {} at the peak, {} after it, 0 killed; good: {}; {refused} refused in all; all answered again after {}",
            mebibytes(before.1),
            mebibytes(peak),
            mebibytes(after),
            tally.line(),
            milliseconds(took)
        ),
    ))
}

/// How long it takes until 50 requests in a row, each on a connection of its own, get a 200.
async fn calm(pair: &Pair) -> Result<Duration> {
    let start = Instant::now();
    let limit = Duration::from_secs(15);
    let mut row = 0;
    let mut since = Duration::ZERO;
    while row < 50 {
        let last = match pair.get(PLAIN, "/").await {
            Ok(reply) if reply.status == 200 => {
                row += 1;
                continue;
            }
            Ok(reply) => reply.line(),
            Err(error) => error.to_string(),
        };
        row = 0;
        since = start.elapsed();
        if since > limit {
            return Err(Error::new(format!(
                "not calm {limit:?} after the end: {last}"
            )));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(since)
}

/// What became of good requests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    answered: usize,
    /// 503 `proxy_overloaded`, or a connection that there was no room for.
    refused: usize,
    other: usize,
    first_other: String,
}

impl Tally {
    fn of(samples: &[Sample]) -> Self {
        let mut tally = Self::default();
        for sample in samples {
            match &sample.result {
                Ok(_) => tally.answered += 1,
                Err(error) if is_refusal(error) => tally.refused += 1,
                Err(error) => {
                    if tally.other == 0 {
                        tally.first_other = format!(" (first: {error})");
                    }
                    tally.other += 1;
                }
            }
        }
        tally
    }

    fn line(&self) -> String {
        format!(
            "{} answered, {} refused, {} other{}",
            self.answered, self.refused, self.other, self.first_other
        )
    }
}

/// In the words of `load::rate`. A connection that does not fit is reset before it is served.
fn is_refusal(error: &str) -> bool {
    error.contains("weft-reason proxy_overloaded") || error.contains("reset by peer")
}

/// A host with few ports: the whole mesh lives there, and so does this thread meanwhile.
async fn ports(setting: &Setting) -> Result<Finding> {
    let network = Network::new()?;
    let _there = network.router.enter()?;
    let pair = Pair::start(setting, "ports", &Start::default(), &Start::default()).await?;
    // The other service is reached before: its connection stays.
    let second = pair.get(SECOND, "/").await?;
    if second.status != 200 {
        return Err(Error::new(format!("before: {}", second.line())));
    }
    let (first, last) = PORTS;
    write_sysctl("ipv4/ip_local_port_range", &format!("{first} {last}"))?;
    let (mut held, mut refused, mut other) = (Vec::new(), 0, String::new());
    for i in 0..300_u16 {
        // The client's own ports are others: those that are bound to are nobody else's.
        let mut stream = connect_from(&pair, last + 1 + i).await?;
        let request = format!("GET /stall HTTP/1.1\r\nhost: {PLAIN}\r\n\r\n");
        let request = stream.write_all(request.as_bytes());
        request.await.context("write")?;
        match answer(&mut stream).await? {
            None => held.push(stream),
            Some(answer) if answer == "503 proxy_overloaded" => refused += 1,
            Some(answer) => other = answer,
        }
    }
    // On a busy machine some answers come later.
    let mut stalled = Vec::new();
    for mut stream in held {
        match answer(&mut stream).await? {
            None => stalled.push(stream),
            Some(answer) if answer == "503 proxy_overloaded" => refused += 1,
            Some(answer) => other = answer,
        }
    }
    let held = stalled;
    let meanwhile = pair.get(SECOND, "/").await?.status;
    let counted = metric(
        &pair.client,
        "weft_overloaded_total",
        &["what=\"upstream\""],
    )
    .await?;
    let used = held.len();
    drop(held);
    let took = pair.recovered(Duration::from_secs(10)).await?;
    // The connection from before may have another port.
    let most = usize::from(last - first + 2);
    let ok = refused > 0
        && other.is_empty()
        && (most / 2..=most).contains(&used)
        && meanwhile == 200
        && counted >= f64::from(refused)
        && took < Duration::from_secs(5);
    Ok(seen(
        ok,
        format!(
            "{used} requests have a port, {refused} got 503 proxy_overloaded ({counted} counted){}; another destination \
             meanwhile: {meanwhile}; 200 after {}",
            if other.is_empty() {
                other
            } else {
                format!(", also {other}")
            },
            milliseconds(took)
        ),
    ))
}

async fn connect_from(pair: &Pair, port: u16) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4().context("a socket")?;
    let address = ([127, 0, 0, 1], port).into();
    socket.bind(address).context(address)?;
    timeout(Duration::from_secs(2), socket.connect(pair.outbound))
        .await
        .context("connect: no answer in 2 s")?
        .context("connect")
}

/// What the sidecar answers within 50 ms, if it does.
async fn answer(stream: &mut TcpStream) -> Result<Option<String>> {
    let mut buffer = Vec::new();
    loop {
        let reading = timeout(Duration::from_millis(50), stream.read_buf(&mut buffer));
        let Ok(read) = reading.await else {
            return Ok(None);
        };
        if read.context("read")? == 0 {
            return Ok(Some("closed".to_owned()));
        }
        if let Some(head) = response::parse(&buffer).map_err(Error::new)? {
            let reason = head.header("weft-reason").unwrap_or("-");
            return Ok(Some(format!("{} {reason}", head.status)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_read() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(killed(text), Some(3));
        assert_eq!(killed("under_oom 0\n"), None);
    }

    #[test]
    fn what_is_no_refusal_is_told_apart() {
        let now = std::time::Instant::now();
        let sample = |result: std::result::Result<Option<String>, &str>| Sample {
            due: now,
            sent: now,
            done: now,
            result: result.map_err(str::to_owned),
        };
        let tally = Tally::of(&[
            sample(Ok(None)),
            sample(Err("status 503, weft-reason proxy_overloaded")),
            sample(Err("status 503, weft-reason not_ready")),
            sample(Err("read: timed out")),
        ]);
        assert_eq!(
            tally.line(),
            "1 answered, 1 refused, 2 other (first: status 503, weft-reason not_ready)"
        );
    }
}
