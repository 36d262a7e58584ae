//! The mirror image of T18: the kit's tables of HTTP/1, before an application of HTTP/2. What
//! arrives there has no framing that could be wrong, but it may be too much, not the same, or
//! end well though it broke off.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use weft_kit::cases::{Case, Then};
use weft_kit::raw1::{Attempt, End, attempt};
use weft_kit::raw2::frame::{END_HEADERS, END_STREAM, HEADERS};
use weft_kit::raw2::{Block, Frame, Message, POLITE, Peer};
use weft_kit::strict;

use super::lanes::{Dice, Door, Lane, PATIENCE, Stage, connect, shown};
use super::translation::is_whole;
use super::trial::{BRIEF, Cuts, Tally};
use crate::error::{Context as _, Result};
use crate::verify::Finding;

/// An application of HTTP/2 that answers every whole request with 200 and keeps what it got.
#[derive(Debug)]
pub(super) struct Origin {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Message>>>,
    task: AbortHandle,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Origin {
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("listen")?;
        let address = listener.local_addr().context("listen")?;
        let log = Arc::<Mutex<Vec<Message>>>::default();
        let shared = log.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let log = shared.clone();
                // How it ends is in the log.
                connections.spawn(async move {
                    let _ = serve(stream, &log).await;
                });
            }
        });
        Ok(Self {
            address,
            log,
            task: task.abort_handle(),
        })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    fn forget(&self) {
        self.log.lock().clear();
    }

    fn arrived(&self) -> Vec<Message> {
        self.log.lock().clone()
    }
}

/// One request at a time: who asks does not ask for more.
async fn serve(stream: TcpStream, log: &Mutex<Vec<Message>>) -> std::io::Result<()> {
    let mut peer = Peer::accept(stream, &[]).await?;
    peer = peer
        .manners(POLITE)
        .patience(std::time::Duration::from_secs(3_600));
    let mut newest = 0;
    loop {
        newest = peer.request(newest).await?;
        let message = peer.whole(newest).await?;
        let whole = is_whole(&message);
        log.lock().push(message);
        if whole {
            let block = Block::answer(200).bytes();
            let head = Frame::new(HEADERS, END_HEADERS | END_STREAM, newest, block);
            peer.send(&head).await?;
        }
    }
}

/// As `trial::try_table`, for these lanes.
pub(super) async fn try_table(
    stage: &Stage,
    lanes: &[Lane],
    origins: &[Origin],
    cuts: Cuts,
    table: impl Fn(&str) -> Vec<Case>,
) -> Result<Finding> {
    let cost = stage.cost()?;
    let mut dice = Dice::new(2_018);
    let tables: Vec<Vec<Case>> = lanes.iter().map(|lane| table(&lane.host)).collect();
    let mut jobs = Vec::new();
    for (number, case) in tables.first().into_iter().flatten().enumerate() {
        for slicing in cuts.slicings(case.bytes.len(), &mut dice) {
            jobs.extend(Door::BOTH.map(|door| (number, slicing, door)));
        }
    }
    let tally = RefCell::new(Tally::of(tables.first().map_or(0, Vec::len)));
    let next = Cell::new(0);
    let work = lanes.iter().zip(origins).zip(&tables).map(|((lane, origin), table)| {
        let (jobs, next, tally) = (&jobs, &next, &tally);
        async move {
            while let Some((number, slicing, door)) = jobs.get(next.get()).copied() {
                next.set(next.get() + 1);
                let case = &table[number];
                origin.forget();
                let stream = connect(lane.door(door)).await?;
                let tried = attempt(stream, &case.plan(slicing, BRIEF)).await;
                // What was on its way is there when this has come through.
                let mut other = weft_kit::raw1::Client::new(connect(lane.door(door)).await?).patience(PATIENCE);
                let request = format!("GET /flush HTTP/1.1\r\nhost: {}\r\n\r\n", lane.host);
                other.exchange(request).await.context("a good request")?;
                let mut arrived = origin.arrived();
                arrived.retain(|message| message.header(":path") != "/flush");
                let verdict = judge(case, &tried, &arrived);
                let wrongly = verdict.as_ref().is_err_and(|(wrongly, _)| *wrongly);
                let verdict = verdict.map_err(|(_, why)| {
                    let (sent, got) = (shown(&case.bytes), shown(&tried.received));
                    let door = door.name();
                    format!("{door}, {slicing:?}: {why}\n  sent {sent}\n  got {got}\n  upstream {arrived:?}")
                });
                tally.borrow_mut().add(&case.name, wrongly, verdict);
            }
            Ok(())
        }
    });
    try_join_all(work).await?;
    let finding = tally.borrow().finding(&cost.text()?);
    Ok(finding)
}

/// What is wrong, in words, and whether something passed that must not.
fn judge(
    case: &Case,
    tried: &Attempt,
    arrived: &[Message],
) -> std::result::Result<(), (bool, String)> {
    let whole: Vec<&Message> = arrived.iter().filter(|message| is_whole(message)).collect();
    let wanted = case.requests();
    if whole.len() > wanted.len() {
        return Err((true, format!("{} whole requests", whole.len())));
    }
    for message in arrived {
        if message.header(":path").contains("smug") {
            return Err((true, "a request that nobody made".to_owned()));
        }
    }
    if whole.len() < wanted.len() {
        return Err((
            false,
            format!("{} of {} requests", whole.len(), wanted.len()),
        ));
    }
    for request in &wanted {
        let found = whole.iter().any(|message| same(request, message));
        if !found {
            return Err((true, format!("{} did not arrive as it is", request.line)));
        }
    }
    if arrived.len() > whole.len() && !matches!(case.expected.then, Then::Broken(_)) {
        return Err((true, "a part of a request".to_owned()));
    }
    if tried.end == End::Open {
        return Err((false, "the connection was left open".to_owned()));
    }
    Ok(())
}

fn same(request: &strict::Message, message: &Message) -> bool {
    let host = message.header(":authority");
    let is_host = request
        .header("host")
        .is_none_or(|wanted| host.eq_ignore_ascii_case(wanted));
    let hop_by_hop = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "transfer-encoding",
        "http2-settings",
        "host",
        "x-hop",
    ];
    message.header(":method") == request.method()
        && message.header(":path") == request.target()
        && is_host
        && message.body == request.body
        && hop_by_hop
            .iter()
            .all(|name| message.header(name).is_empty())
        && request.fields.iter().all(|field| {
            let name = field.name.to_ascii_lowercase();
            let ends = hop_by_hop.contains(&&*name)
                || matches!(&*name, "te" | "trailer" | "content-length" | "expect");
            let value = (name.into_bytes(), field.value.clone());
            ends || message.head().contains(&value)
        })
}
