//! Who is connected, and how far each sidecar is: for the admin page and the metrics.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde_json::{Value, json};
use weft_api::Kind;
use weft_certs::SpiffeId;

use crate::ads::state::{Stream, Summary};
use crate::stamp;

/// The open streams. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub struct Clients {
    open: Arc<Mutex<BTreeMap<u64, Status>>>,
    next: Arc<AtomicU64>,
}

/// What is known of a client when its stream opens.
#[derive(Debug, Clone)]
pub struct Client {
    /// `namespace/workload`.
    pub node: String,
    /// What it proved to be.
    pub identity: SpiffeId,
    /// Its user agent and version.
    pub agent: String,
    /// The version alone; the label of the metric.
    pub version: String,
    /// Where it connected from.
    pub address: SocketAddr,
}

/// How far a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It applied everything there is.
    Synced,
    /// Something is on its way to it.
    Stale,
    /// It rejected something, and serves the configuration before.
    Rejected,
    /// It shuts down, and waits until nobody calls it.
    Leaving,
}

impl State {
    /// The label value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Synced => "synced",
            Self::Stale => "stale",
            Self::Rejected => "rejected",
            Self::Leaving => "leaving",
        }
    }
}

struct Status {
    client: Client,
    since: SystemTime,
    settled: bool,
    leaving: bool,
    kinds: Vec<(Kind, Summary)>,
    last_nack: Option<(SystemTime, Kind, String)>,
}

impl Clients {
    /// Notes a stream until the guard is dropped.
    #[must_use]
    pub fn opened(&self, client: Client, now: SystemTime) -> Open {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let status = Status {
            client,
            since: now,
            settled: false,
            leaving: false,
            kinds: Vec::new(),
            last_nack: None,
        };
        self.open.lock().insert(number, status);
        Open {
            clients: self.clone(),
            number,
        }
    }

    /// The version and state of each open stream.
    #[must_use]
    pub fn states(&self) -> Vec<(String, State)> {
        let open = self.open.lock();
        open.values()
            .map(|status| (status.client.version.clone(), status.state()))
            .collect()
    }

    /// How many streams are open.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open.lock().len()
    }

    /// The page `/debug/clients`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let open = self.open.lock();
        json!({ "clients": open.values().map(Status::to_json).collect::<Vec<_>>() })
    }
}

impl Status {
    fn state(&self) -> State {
        if self.leaving {
            State::Leaving
        } else if self
            .kinds
            .iter()
            .any(|(_, summary)| summary.rejected.is_some())
        {
            State::Rejected
        } else if self.settled {
            State::Synced
        } else {
            State::Stale
        }
    }

    fn to_json(&self) -> Value {
        let kinds = self.kinds.iter().map(|(kind, summary)| {
            let value = json!({
                "wildcard": summary.wildcard,
                "names": summary.names,
                "resources": summary.resources,
                "acked_generation": summary.acked_generation,
                "waiting_for_ack": summary.waiting,
                "rejected": summary.rejected,
            });
            (kind.name().to_owned(), value)
        });
        let last_nack = self.last_nack.as_ref().map(
            |(at, kind, detail)| json!({ "at": stamp(*at), "kind": kind.name(), "detail": detail }),
        );
        json!({
            "node": self.client.node,
            "identity": self.client.identity.as_str(),
            "agent": self.client.agent,
            "address": self.client.address.to_string(),
            "connected_since": stamp(self.since),
            "state": self.state().name(),
            "kinds": kinds.collect::<serde_json::Map<_, _>>(),
            "last_nack": last_nack,
        })
    }
}

/// An open stream.
pub struct Open {
    clients: Clients,
    number: u64,
}

impl Open {
    /// Notes how far the stream is.
    pub fn update(&self, stream: &Stream) {
        if let Some(status) = self.clients.open.lock().get_mut(&self.number) {
            status.settled = stream.is_settled();
            status.kinds = stream.summaries().collect();
        }
    }

    /// Notes that the client shuts down.
    pub fn leaving(&self) {
        if let Some(status) = self.clients.open.lock().get_mut(&self.number) {
            status.leaving = true;
        }
    }

    /// Notes a rejection.
    pub fn rejected(&self, kind: Kind, detail: String, now: SystemTime) {
        if let Some(status) = self.clients.open.lock().get_mut(&self.number) {
            status.last_nack = Some((now, kind, detail));
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.clients.open.lock().remove(&self.number);
    }
}
