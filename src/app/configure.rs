//! From the control plane's stream to the snapshot in force and open sockets. One task.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use weft_api::{Kind, envoy::config::core::v3::Node};
use weft_handover::Socket;

use super::{
    Job, names,
    saved::{Kept, Saver},
    sockets::{Inherited, divide},
};
use crate::{
    admin::Status,
    config::{Arrival, DnsConfig, Listener, Rejected, Value},
    dns::Names,
    identity::{ControlPlane, unix_seconds},
    listener,
    snapshot::{Linker, Wanted},
    worker::Shared,
    xds::{Client, Command, Event, Raw},
};

const TICK: Duration = Duration::from_secs(1);
const SWEEP: u64 = 5;
const EXPIRE: u64 = 30;
/// Seconds between two log lines about too many destinations.
const COMPLAINTS: u32 = 10;

/// The stop signals of all open sockets, by listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Stops(Arc<Mutex<BTreeMap<Arc<str>, Open>>>);

/// An open listener: where, how to close it, and its sockets, to be passed on.
#[derive(Debug)]
struct Open {
    binding: Binding,
    stop: watch::Sender<bool>,
    sockets: Vec<Socket>,
}

/// What decides a listener's sockets: a change needs new ones.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Binding {
    address: SocketAddr,
    additional: Vec<SocketAddr>,
    arrival: Arrival,
    /// Serves DNS, over UDP too.
    dns: bool,
}

impl Binding {
    /// `None`: the listener has no socket of its own.
    fn of(config: &Listener) -> Option<Self> {
        (config.arrival != Arrival::HandedOver).then(|| Self {
            address: config.address,
            additional: config.additional.clone(),
            arrival: config.arrival,
            dns: config.dns.is_some(),
        })
    }
}

impl Stops {
    /// Stops accepting everywhere. What is in the queues is served still.
    pub(super) fn stop_all(&self) {
        for open in self.0.lock().values_mut() {
            open.stop.send_replace(true);
            // The queue of a socket ends with the last who has it open.
            open.sockets.clear();
        }
    }

    /// All sockets once more, for a successor.
    ///
    /// # Errors
    /// When this process may open no more files.
    pub(super) fn sockets(&self) -> std::io::Result<Vec<Socket>> {
        let open = self.0.lock();
        let sockets = open.values().flat_map(|open| &open.sockets);
        sockets.map(Socket::try_clone).collect()
    }
}

/// What the task owns.
#[derive(Debug)]
pub(super) struct Configuration {
    shared: Arc<Shared>,
    status: Arc<Status>,
    linker: Linker,
    workers: Vec<mpsc::UnboundedSender<Job>>,
    commands: mpsc::UnboundedSender<Command>,
    subscribed: Wanted,
    stops: Stops,
    inherited: Arc<Inherited>,
    /// What the DNS listener is asked for, once there is one.
    names: Arc<ArcSwap<Names>>,
    /// Files on disk, if there is a state directory.
    saver: Option<Saver>,
    /// Set when this process is the one that accepts.
    go: watch::Receiver<bool>,
    /// What the control plane is told that we have.
    held: Vec<(Kind, Arc<str>, String)>,
    /// When too many destinations are worth the next log line, seconds.
    complain_at: u32,
}

/// Asks for everything to be on disk; answered when it is.
pub(super) type Flush = oneshot::Sender<()>;

/// What the task hears from others.
#[derive(Debug)]
pub(super) struct Inputs {
    /// For the stream.
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    /// Names that were asked for.
    pub(super) demands: mpsc::UnboundedReceiver<String>,
    /// See [`Flush`].
    pub(super) flushes: mpsc::Receiver<Flush>,
}

impl Configuration {
    pub(super) fn new(
        shared: &Arc<Shared>,
        status: &Arc<Status>,
        workers: Vec<mpsc::UnboundedSender<Job>>,
        commands: mpsc::UnboundedSender<Command>,
        inherited: Arc<Inherited>,
        saver: Option<Saver>,
        go: watch::Receiver<bool>,
    ) -> Self {
        Self {
            linker: Linker::new(shared.metrics.clone(), workers.len()),
            shared: shared.clone(),
            status: status.clone(),
            workers,
            commands,
            subscribed: Wanted::new(),
            stops: Stops::default(),
            inherited,
            names: Arc::new(ArcSwap::from_pointee(names::names(
                shared,
                &DnsConfig::default(),
            ))),
            saver,
            go,
            held: Vec::new(),
            complain_at: 0,
        }
    }

    /// Puts a configuration from disk into force; before [`Self::run`].
    pub(super) fn restore(&mut self, kept: Kept) {
        let seconds = self.seconds();
        for name in &kept.demanded {
            self.linker.demand(name, seconds);
        }
        let count = kept.resources.len();
        for (name, value, raw) in kept.resources {
            let kind = value.kind();
            self.held.push((kind, name.clone(), raw.version.clone()));
            // So that what nobody wants is unsubscribed from.
            if kind != Kind::Listener {
                self.subscribed.insert((kind, name.clone()));
            }
            self.update(&name, value, raw);
        }
        // The others are asked for by name, if something refers to them.
        let listeners = kept.rejected.iter();
        for rejected in listeners.filter(|rejected| rejected.kind == Kind::Listener) {
            // With no version that there is, so that it is sent, or said to be gone.
            self.held
                .push((rejected.kind, rejected.name.clone(), String::new()));
            self.reject(rejected);
        }
        let metrics = &self.shared.metrics;
        metrics.config_last_applied.set(unix_seconds(kept.saved));
        metrics.config_from_disk.set(1);
        *self.status.from_disk.lock() = Some(kept.saved);
        tracing::info!(
            resources = count,
            "serving with the configuration from disk"
        );
        self.apply();
    }

    pub(super) fn stops(&self) -> Stops {
        self.stops.clone()
    }

    /// Runs until aborted. The stream starts when the first certificate is there.
    pub(super) async fn run(mut self, control: ControlPlane, node: Node, inputs: Inputs) {
        let Inputs {
            commands,
            mut demands,
            mut flushes,
        } = inputs;
        let (sender, mut events) = mpsc::unbounded_channel();
        let mut ready = self.shared.identity.ready();
        let mut identities = self.shared.identity.changes();
        let held = std::mem::take(&mut self.held);
        let streaming = async move {
            if ready.wait_for(|ready| *ready).await.is_err() {
                return;
            }
            let client = Client::new(node, commands, super::seed()).holding(held);
            // The receiver lives as long as this task.
            client
                .run(
                    async || control.connect().await,
                    |event| drop(sender.send(event)),
                )
                .await;
            std::future::pending::<()>().await;
        };
        let mut streaming = std::pin::pin!(streaming);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tick = 0;
        loop {
            let changed = tokio::select! {
                () = &mut streaming => false,
                Some(event) = events.recv() => {
                    let mut changed = self.take(event);
                    while let Ok(event) = events.try_recv() {
                        changed |= self.take(event);
                    }
                    changed
                }
                Some(name) = demands.recv() => {
                    let mut changed = self.demand(&name);
                    while let Ok(name) = demands.try_recv() {
                        changed |= self.demand(&name);
                    }
                    changed
                }
                _ = ticks.tick() => {
                    tick += 1;
                    self.tick(tick)
                }
                // The sender lives as long as this task.
                Ok(()) = identities.changed() => {
                    self.saver.iter_mut().for_each(Saver::identity_changed);
                    false
                }
                () = due(self.saver.as_ref(), &self.go) => {
                    self.save();
                    false
                }
                Some(done) = flushes.recv() => {
                    self.saver.iter_mut().for_each(Saver::hurry);
                    self.save();
                    let flushed = self.saver.as_ref().map(Saver::flushed);
                    tokio::spawn(async move {
                        if let Some(flushed) = flushed {
                            flushed.await;
                        }
                        let _ = done.send(());
                    });
                    false
                }
            };
            if changed {
                self.apply();
            }
        }
    }

    /// Writes what is due, unless the files are another process's.
    fn save(&mut self) {
        if self.status.replaced.load(Ordering::Relaxed) {
            self.saver = None;
        }
        if let Some(saver) = self.saver.as_mut().filter(|_| *self.go.borrow()) {
            let hosts = self.subscribed.iter();
            let hosts = hosts.filter(|(kind, _)| *kind == Kind::VirtualHost);
            saver.write(Instant::now(), hosts.map(|(_, name)| name));
        }
    }

    fn reject(&self, rejected: &Rejected) {
        let mut all = self.status.rejected.lock();
        let key = (rejected.kind, rejected.name.clone());
        all.insert(key, rejected.to_string());
    }

    /// A resource is no longer held, or wanted.
    fn forget(&mut self, kind: Kind, name: &Arc<str>) {
        self.status.rejected.lock().remove(&(kind, name.clone()));
        if let Some(saver) = &mut self.saver {
            saver.ledger.forget(kind, name);
            saver.config_changed();
        }
    }

    fn demand(&mut self, name: &str) -> bool {
        let now = self.seconds();
        let fits = self.linker.demand(name, now);
        // An application that asks for very many would fill the log, too.
        if !fits && now >= self.complain_at {
            self.complain_at = now + COMPLAINTS;
            tracing::warn!(name, "too many destinations at one time; not looked up");
        }
        fits
    }

    fn seconds(&self) -> u32 {
        self.shared.started.elapsed().as_secs() as u32
    }

    fn tick(&mut self, tick: u64) -> bool {
        if tick.is_multiple_of(SWEEP) {
            let now = Instant::now();
            for cluster in self.shared.snapshots.load_full().clusters.values() {
                cluster.sweep(now);
            }
        }
        let retry = !self.status.listeners.lock().is_empty();
        if retry {
            self.open_listeners();
        }
        tick.is_multiple_of(EXPIRE) && self.linker.expire(self.seconds())
    }

    /// Takes one event; true if the snapshot must be linked anew.
    fn take(&mut self, event: Event) -> bool {
        let metrics = &self.shared.metrics;
        match event {
            Event::Connected => {
                self.status.connected.store(true, Ordering::Relaxed);
                metrics.control_connected.set(1);
                metrics.config_from_disk.set(0);
                *self.status.from_disk.lock() = None;
                tracing::info!("connected to the control plane");
                false
            }
            Event::Disconnected(why) => {
                if self.status.connected.swap(false, Ordering::Relaxed)
                    || *self.status.disconnected.lock() != why
                {
                    tracing::warn!(%why, "no control plane; serving on with what is known");
                }
                *self.status.disconnected.lock() = why;
                metrics.control_connected.set(0);
                false
            }
            Event::Updated(name, value, raw) => {
                let kind = value.kind();
                let now = unix_seconds(SystemTime::now());
                let applied = self.update(&name, value, raw);
                let result = if applied.is_some() {
                    "applied"
                } else {
                    "rejected"
                };
                let metrics = &self.shared.metrics;
                metrics.config_update(kind.name(), result);
                if applied.is_some() {
                    metrics.config_last_applied.set(now);
                }
                applied.unwrap_or(false)
            }
            Event::Removed(kind, name) => {
                metrics.config_update(kind.name(), "removed");
                self.forget(kind, &name);
                self.linker.remove(kind, &name)
            }
            Event::Absent(kind, name) => {
                self.status.rejected.lock().remove(&(kind, name.clone()));
                self.linker.remove(kind, &name)
            }
            Event::Left(farewell) => {
                self.status.connected.store(false, Ordering::Relaxed);
                metrics.control_connected.set(0);
                self.status.left.send_replace(Some(farewell));
                false
            }
            Event::Rejected(rejected) => {
                let kind = rejected.kind;
                metrics.config_update(kind.name(), "rejected");
                tracing::error!(%rejected, %kind, "configuration rejected; the last good one stays");
                self.reject(&rejected);
                self.publish_sync();
                false
            }
        }
    }

    /// Takes a resource; true if the snapshot must be linked anew, `None` if it is not usable.
    fn update(&mut self, name: &Arc<str>, value: Value, raw: Raw) -> Option<bool> {
        let kind = value.kind();
        for warning in value.warnings() {
            tracing::warn!(%kind, %name, warning, "a field has no effect");
        }
        self.status.rejected.lock().remove(&(kind, name.clone()));
        if let Value::Secret(bundle) = &value
            && let Err(error) = self.shared.identity.set_bundle(&bundle.0)
        {
            tracing::error!(%error, "the trust bundle is not usable; the old one stays");
            return None;
        }
        if let Some(saver) = &mut self.saver {
            saver.ledger.keep(kind, name, raw);
            saver.config_changed();
        }
        Some(self.linker.update(name, value))
    }

    /// Links, publishes, adjusts subscriptions and sockets.
    fn apply(&mut self) {
        let (snapshot, wanted) = self.linker.link();
        self.shared.snapshots.publish(snapshot);
        for (kind, name) in wanted.difference(&self.subscribed) {
            let _ = self.commands.send(Command::Subscribe(*kind, name.clone()));
        }
        let unwanted: Vec<_> = self.subscribed.difference(&wanted).cloned().collect();
        for (kind, name) in unwanted {
            self.forget(kind, &name);
            let _ = self.commands.send(Command::Unsubscribe(kind, name));
        }
        if self.subscribed != wanted {
            self.saver.iter_mut().for_each(Saver::config_changed);
        }
        self.subscribed = wanted;
        // In between, `/ready` must not look better than it is.
        let waiting = self.linker.waiting();
        self.status.waiting.lock().extend(waiting.iter().cloned());
        self.open_listeners();
        *self.status.waiting.lock() = waiting;
    }

    fn open_listeners(&self) {
        let snapshot = self.shared.snapshots.load_full();
        let mut open = self.stops.0.lock();
        open.retain(|name, open| {
            let stays = snapshot.listeners.get(name).is_some_and(|listener| {
                Binding::of(&listener.config).as_ref() == Some(&open.binding)
            });
            if !stays {
                open.stop.send_replace(true);
            }
            stays
        });
        let mut failed = BTreeMap::new();
        for (name, listener) in &snapshot.listeners {
            if let Some(dns) = &listener.config.dns {
                self.names.store(Arc::new(names::names(&self.shared, dns)));
            }
            if open.contains_key(name) {
                continue;
            }
            let Some(binding) = Binding::of(&listener.config) else {
                continue;
            };
            let address = binding.address;
            match self.open(name, binding) {
                Ok(opened) => {
                    tracing::info!(listener = %name, %address, "listening");
                    open.insert(name.clone(), opened);
                }
                Err(error) => {
                    if !self.status.listeners.lock().contains_key(name) {
                        tracing::error!(listener = %name, %error, "cannot listen; trying again");
                    }
                    failed.insert(name.clone(), error);
                }
            }
        }
        let bound = open
            .iter()
            .map(|(name, open)| (name.clone(), open.binding.address))
            .collect();
        drop(open);
        *self.status.bound.lock() = bound;
        *self.status.listeners.lock() = failed;
        self.publish_sync();
    }

    /// Opens one listener, or takes its sockets over, and has the workers accept.
    fn open(&self, name: &Arc<str>, binding: Binding) -> Result<Open, String> {
        let workers = self.workers.len();
        let (stop, stopped) = watch::channel(false);
        let bind = |address| {
            if binding.dns {
                let at = (&**name, address);
                return names::serve(
                    &self.shared,
                    &self.inherited,
                    at,
                    &self.names,
                    &stopped,
                    &self.go,
                );
            }
            self.inherited.tcp(name, address, binding.arrival, workers)
        };
        let mut sockets = bind(binding.address)?;
        for &address in &binding.additional {
            match bind(address) {
                Ok(more) => sockets.extend(more),
                Err(_) if listener::is_without_family(address) => {
                    tracing::info!(listener = %name, %address, "IPv6 is switched off; left out");
                }
                Err(error) => return Err(error),
            }
        }
        let accepted: &[Socket] = if binding.dns { &[] } else { &sockets };
        for (worker, socket) in divide(accepted, workers)? {
            let job = Job {
                name: name.clone(),
                socket,
                go: self.go.clone(),
                stop: stopped.clone(),
            };
            // A worker lives as long as the process.
            let _ = self.workers[worker].send(job);
        }
        Ok(Open {
            binding,
            stop,
            sockets,
        })
    }

    fn publish_sync(&self) {
        let in_sync =
            self.status.rejected.lock().is_empty() && self.status.listeners.lock().is_empty();
        self.shared.metrics.config_in_sync.set(i64::from(in_sync));
    }
}

/// Waits until something is to be written. Before `go` the files are another process's.
async fn due(saver: Option<&Saver>, go: &watch::Receiver<bool>) {
    match saver {
        Some(saver) if go.clone().wait_for(|go| *go).await.is_ok() => saver.due().await,
        _ => std::future::pending().await,
    }
}
