//! What the streams read: immutable snapshots of the mesh with encoded resources.
//!
//! A [`Snapshot`] builds each resource on first use and keeps its bytes for every client
//! that may share them, so what is mesh-wide is encoded once. [`Snapshots`] holds the
//! current one, wakes the streams when it is replaced, and knows which workloads drain.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use weft_api::envoy::config::listener::v3::{Listener, filter::ConfigType};
use weft_api::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use weft_api::{Kind, any};

use crate::ads::View;
use crate::drain::Drain;
use crate::model::Mesh;
use crate::storage;
use crate::translate::{self, Context, Node, Scope};

/// A workload: its namespace and its name.
pub type Workload = (String, String);

/// One resource as it goes over the wire.
#[derive(Debug)]
pub struct Encoded {
    /// The first 8 bytes of the SHA-256 of the body.
    pub version: u64,
    /// The encoded message, without its `Any`.
    pub body: Bytes,
    /// The route tables that a Listener refers to; empty for other kinds.
    pub routes: Box<[String]>,
}

impl Encoded {
    /// Encodes nothing: takes the bytes of a resource and derives the rest.
    #[must_use]
    pub fn new(kind: Kind, body: Vec<u8>) -> Self {
        let digest = Sha256::digest(&body);
        let mut version = [0; 8];
        version.copy_from_slice(&digest[..8]);
        let routes = match kind {
            Kind::Listener => route_names(&body),
            _ => Vec::new(),
        };
        Self {
            version: u64::from_be_bytes(version),
            body: body.into(),
            routes: routes.into(),
        }
    }

    /// The version as clients see it: 16 hexadecimal digits.
    #[must_use]
    pub fn version_text(&self) -> String {
        format!("{:016x}", self.version)
    }

    /// Reads a version that [`Self::version_text`] wrote; `None` for any other text.
    #[must_use]
    pub fn parse_version(text: &str) -> Option<u64> {
        let well_formed = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        well_formed
            .then(|| u64::from_str_radix(text, 16).ok())
            .flatten()
    }
}

fn route_names(listener: &[u8]) -> Vec<String> {
    let Ok(listener) = Listener::decode(listener) else {
        return Vec::new();
    };
    let chains = listener
        .filter_chains
        .iter()
        .chain(&listener.default_filter_chain);
    let configs = chains
        .flat_map(|chain| &chain.filters)
        .filter_map(|filter| match &filter.config_type {
            Some(ConfigType::TypedConfig(config)) => Some(config),
            _ => None,
        });
    let mut names: Vec<String> = configs
        .filter_map(|config| any::unpack::<HttpConnectionManager>(config).ok())
        .filter_map(|hcm| match hcm.route_specifier {
            Some(RouteSpecifier::Rds(rds)) => Some(rds.route_config_name),
            _ => None,
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// How many resources of a kind are kept for an audience. Names without end exist, such as
/// those of every port of a captured workload: what is beyond it is encoded each time.
const MAX_REMEMBERED: usize = 100_000;

/// Encoded resources by audience (empty, a namespace, or `namespace/workload`) and name.
/// Absent resources are not kept: their names come from clients.
type Memo = RwLock<HashMap<String, HashMap<String, Arc<Encoded>>>>;

/// The mesh at one moment. Immutable but for the memo.
pub struct Snapshot {
    generation: u64,
    published: Instant,
    mesh: Arc<Mesh>,
    roots_pem: Arc<str>,
    draining: Arc<BTreeSet<Workload>>,
    memo: [Arc<Memo>; Kind::ALL.len()],
}

impl Snapshot {
    /// The first snapshot, of generation 1.
    #[must_use]
    pub fn new(mesh: Arc<Mesh>, roots_pem: Arc<str>, draining: BTreeSet<Workload>) -> Self {
        Self {
            generation: 1,
            published: Instant::now(),
            mesh,
            roots_pem,
            draining: Arc::new(draining),
            memo: std::array::from_fn(|_| Arc::default()),
        }
    }

    fn with_mesh(&self, mesh: Arc<Mesh>, draining: BTreeSet<Workload>) -> Self {
        Self {
            generation: self.generation + 1,
            published: Instant::now(),
            mesh,
            roots_pem: self.roots_pem.clone(),
            draining: Arc::new(draining),
            memo: std::array::from_fn(|_| Arc::default()),
        }
    }

    /// Only endpoints depend on what drains: the bytes of all other kinds are kept.
    fn with_draining(&self, draining: BTreeSet<Workload>) -> Self {
        let mut memo = self.memo.clone();
        memo[Kind::Endpoint as usize] = Arc::default();
        Self {
            generation: self.generation + 1,
            published: Instant::now(),
            mesh: self.mesh.clone(),
            roots_pem: self.roots_pem.clone(),
            draining: Arc::new(draining),
            memo,
        }
    }

    /// The number of this snapshot, from 1.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When it replaced the one before it.
    #[must_use]
    pub fn published(&self) -> Instant {
        self.published
    }

    /// What it is a snapshot of.
    #[must_use]
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The workloads whose endpoints are published as draining.
    #[must_use]
    pub fn draining(&self) -> &BTreeSet<Workload> {
        &self.draining
    }

    fn context(&self) -> Context<'_> {
        Context {
            mesh: &self.mesh,
            roots_pem: &self.roots_pem,
            draining: &self.draining,
        }
    }
}

/// One node's look at one snapshot.
pub struct NodeView {
    snapshot: Arc<Snapshot>,
    namespace: String,
    workload: String,
    key: String,
}

impl NodeView {
    /// The view of the workload `namespace/workload`, whether or not it has a document.
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>, namespace: &str, workload: &str) -> Self {
        Self {
            snapshot,
            namespace: namespace.to_owned(),
            workload: workload.to_owned(),
            key: format!("{namespace}/{workload}"),
        }
    }

    /// The snapshot looked at.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Looks at another snapshot.
    pub fn replace(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
    }

    fn node(&self) -> Node<'_> {
        Node {
            namespace: &self.namespace,
            workload: &self.workload,
        }
    }
}

impl View for NodeView {
    fn generation(&self) -> u64 {
        self.snapshot.generation
    }

    fn wildcard(&self, kind: Kind) -> Vec<String> {
        translate::wildcard(&self.snapshot.context(), &self.node(), kind)
    }

    fn resource(&self, kind: Kind, name: &str) -> Option<Arc<Encoded>> {
        let audience = match translate::scope(kind, name) {
            Scope::Mesh => "",
            Scope::Namespace => &self.namespace,
            Scope::Node => &self.key,
        };
        let memo = &self.snapshot.memo[kind as usize];
        let known = memo
            .read()
            .get(audience)
            .and_then(|names| names.get(name))
            .cloned();
        if known.is_some() {
            return known;
        }
        let built = translate::resource(&self.snapshot.context(), &self.node(), kind, name)?;
        let encoded = Arc::new(Encoded::new(kind, built.body));
        let mut memo = memo.write();
        let names = memo.entry(audience.to_owned()).or_default();
        if names.len() < MAX_REMEMBERED {
            names.insert(name.to_owned(), encoded.clone());
        }
        Some(encoded)
    }
}

/// The current snapshot, and who is connected.
///
/// Cheap to clone; all clones are the same. Writers serialize on the lock of `presence`,
/// readers take it only for the drains.
#[derive(Clone)]
pub struct Snapshots {
    current: watch::Sender<Arc<Snapshot>>,
    presence: Arc<Mutex<Presence>>,
}

/// The open streams.
#[derive(Default)]
struct Presence {
    /// Whose stream each is, by its number.
    streams: HashMap<u64, Arc<Workload>>,
    /// The number of the next.
    next: u64,
    /// Those under way, oldest first.
    drains: Vec<Weak<Drain>>,
}

impl Presence {
    /// The drains under way.
    fn drains(&self) -> impl Iterator<Item = Arc<Drain>> {
        self.drains.iter().filter_map(Weak::upgrade)
    }
}

impl Snapshots {
    /// Starts with a mesh, and with the workloads that drain.
    #[must_use]
    pub fn new(mesh: Mesh, roots_pem: &str, draining: BTreeSet<Workload>) -> Self {
        let first = Snapshot::new(Arc::new(mesh), roots_pem.into(), draining);
        Self {
            current: watch::Sender::new(Arc::new(first)),
            presence: Arc::default(),
        }
    }

    /// The current snapshot.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.borrow().clone()
    }

    /// Follows the snapshots; only the latest matters.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.current.subscribe()
    }

    /// Replaces the mesh. Returns whether that is a change; an equal mesh wakes nobody.
    pub fn publish(&self, mesh: Mesh) -> bool {
        let _serialized = self.presence.lock();
        let current = self.current();
        if *current.mesh == mesh {
            return false;
        }
        // What has no document any more has no endpoint that could drain.
        let mut draining = (*current.draining).clone();
        draining.retain(|(namespace, name)| mesh.workload(namespace, name).is_some());
        let next = current.with_mesh(Arc::new(mesh), draining);
        self.current.send_replace(Arc::new(next));
        true
    }

    /// Notes that a workload opened a stream: it no longer drains. The guard notes the end.
    ///
    /// Every drain that begins later waits for this stream: it must look at a snapshot that
    /// is taken after this call.
    #[must_use]
    pub fn connected(&self, namespace: &str, workload: &str) -> Connected {
        let workload = Arc::new((namespace.to_owned(), workload.to_owned()));
        let mut presence = self.presence.lock();
        let number = presence.next;
        presence.next += 1;
        presence.streams.insert(number, workload.clone());
        for drain in presence.drains().filter(|d| d.workload() == &*workload) {
            drain.overtaken();
        }
        self.edit_draining(|draining| draining.remove(&*workload));
        let since = self.current().generation;
        drop(presence);
        Connected {
            snapshots: self.clone(),
            workload,
            number,
            since,
            open: true,
        }
    }

    /// Notes the end of a stream. Returns what to wait for if the workload is shutting down:
    /// the end was clean, there is no newer stream of it, and others may know the workload.
    /// An older one is of a process that was relieved, or lost without a word.
    fn disconnected(&self, number: u64, workload: &Workload, clean: bool) -> Option<Arc<Drain>> {
        let mut presence = self.presence.lock();
        presence.streams.remove(&number);
        presence.drains.retain(|drain| drain.strong_count() > 0);
        for drain in presence.drains() {
            drain.answered(number);
        }
        if !clean {
            return None;
        }
        let own = |of: &Arc<Workload>| **of == *workload;
        let newer = |(other, of): (&u64, &Arc<Workload>)| *other > number && own(of);
        let (namespace, name) = workload;
        let known = self.current().mesh.workload(namespace, name).is_some();
        if !known || presence.streams.iter().any(newer) {
            return None;
        }
        self.edit_draining(|draining| draining.insert(workload.clone()));
        let current = self.current();
        let mut others = presence.streams.clone();
        others.retain(|_, of| !own(of));
        let drain = Arc::new(Drain::new(
            workload.clone(),
            current.generation,
            current.mesh.clone(),
            others,
        ));
        presence.drains.push(Arc::downgrade(&drain));
        Some(drain)
    }

    /// The caller holds the lock of `presence`, so that no edit is lost.
    fn edit_draining(&self, edit: impl FnOnce(&mut BTreeSet<Workload>) -> bool) {
        let mut draining = (*self.current().draining).clone();
        if !edit(&mut draining) {
            return;
        }
        let next = self.current().with_draining(draining);
        self.current.send_replace(Arc::new(next));
    }
}

/// A workload's open stream. Dropped without [`Self::ended`], the stream broke.
pub struct Connected {
    snapshots: Snapshots,
    workload: Arc<Workload>,
    number: u64,
    since: u64,
    open: bool,
}

impl Connected {
    /// The snapshot at that moment: every drain after it waits for this stream.
    #[must_use]
    pub fn since(&self) -> u64 {
        self.since
    }

    /// The number of the stream.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The drains under way that began after the snapshot `after` and not after `until`.
    #[must_use]
    pub fn drains(&self, after: u64, until: u64) -> Vec<Arc<Drain>> {
        let presence = self.snapshots.presence.lock();
        let drains = presence.drains();
        drains
            .filter(|drain| (after + 1..=until).contains(&drain.generation()))
            .collect()
    }

    /// The sidecar ended the stream: if it has no newer one, it is shutting down. Returns what it
    /// waits for then; the drain is over when the value is dropped.
    #[must_use]
    pub fn ended(mut self) -> Option<Arc<Drain>> {
        self.open = false;
        self.snapshots
            .disconnected(self.number, &self.workload, true)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        if self.open {
            self.snapshots
                .disconnected(self.number, &self.workload, false);
        }
    }
}

/// Reads which workloads drain; nothing stored means none.
#[must_use]
pub fn load_draining(data: &Path) -> BTreeSet<Workload> {
    let file = data.join(DRAINING_FILE);
    let Ok(bytes) = std::fs::read(&file) else {
        return BTreeSet::new();
    };
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::warn!(file = %file.display(), %error, "cannot read which workloads drain: all count as up");
        BTreeSet::new()
    })
}

/// Stores which workloads drain, for the time after a restart. Blocks on the disk.
pub fn store_draining(data: &Path, draining: &BTreeSet<Workload>) {
    let file = data.join(DRAINING_FILE);
    let written = serde_json::to_vec(draining)
        .map_err(std::io::Error::from)
        .and_then(|bytes| storage::write_atomically(&file, &bytes));
    if let Err(error) = written {
        tracing::warn!(file = %file.display(), %error, "cannot store which workloads drain: a restart forgets it");
    }
}

const DRAINING_FILE: &str = "draining.json";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::FileSource;

    fn mesh(documents: &str) -> Mesh {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("mesh.yaml"), documents).unwrap();
        let load = FileSource::new(directory.path()).load();
        assert_eq!(load.diagnostics, []);
        load.mesh
    }

    fn blog() -> Mesh {
        mesh(
            "
apiVersion: v1
kind: Service
metadata: {name: post, namespace: blog}
spec: {selector: {app: post}, ports: [{port: 80}]}
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: post, namespace: blog, labels: {app: post}}
spec: {address: 127.0.0.1, ports: [{port: 80}]}
",
        )
    }

    const NAME: &str = "post.blog:80";

    fn view(snapshots: &Snapshots, namespace: &str) -> NodeView {
        NodeView::new(snapshots.current(), namespace, "any")
    }

    fn same(left: &NodeView, right: &NodeView, kind: Kind, name: &str) -> bool {
        let found = [left, right].map(|view| view.resource(kind, name).unwrap());
        Arc::ptr_eq(&found[0], &found[1])
    }

    #[test]
    fn what_may_be_shared_is_encoded_once() {
        let snapshots = Snapshots::new(blog(), "", BTreeSet::new());
        let (blog, shop) = (view(&snapshots, "blog"), view(&snapshots, "shop"));
        assert!(same(&blog, &shop, Kind::Cluster, NAME));
        assert!(same(
            &blog,
            &view(&snapshots, "blog"),
            Kind::VirtualHost,
            "outbound/post.blog"
        ));
        assert!(!same(&blog, &shop, Kind::VirtualHost, "outbound/post.blog"));
        assert!(blog.resource(Kind::VirtualHost, "outbound/post").is_some());
        assert!(shop.resource(Kind::VirtualHost, "outbound/post").is_none());
    }

    #[test]
    fn an_equal_mesh_wakes_nobody() {
        let snapshots = Snapshots::new(blog(), "", BTreeSet::new());
        let follower = snapshots.subscribe();
        assert!(!snapshots.publish(blog()));
        assert!(!follower.has_changed().unwrap());
        assert!(snapshots.publish(Mesh::default()));
        assert!(follower.has_changed().unwrap());
        assert_eq!(snapshots.current().generation(), 2);
    }

    #[test]
    fn draining_changes_only_endpoints() {
        let snapshots = Snapshots::new(blog(), "", BTreeSet::new());
        let before = view(&snapshots, "blog");
        let (cluster, endpoints) = (Kind::Cluster, Kind::Endpoint);
        assert!(same(&before, &before, cluster, NAME) && same(&before, &before, endpoints, NAME));
        drop(snapshots.connected("blog", "post").ended());
        let after = view(&snapshots, "blog");
        assert_eq!(after.generation(), before.generation() + 1);
        assert!(same(&before, &after, cluster, NAME));
        let versions = [&before, &after].map(|v| v.resource(endpoints, NAME).unwrap().version);
        assert_ne!(versions[0], versions[1]);
    }

    #[test]
    fn a_process_that_has_taken_over_drains_although_the_old_stream_is_there_still() {
        let snapshots = Snapshots::new(blog(), "", BTreeSet::new());
        let draining = || !snapshots.current().draining().is_empty();
        let old = snapshots.connected("blog", "post");
        let new = snapshots.connected("blog", "post");
        let drain = new.ended().unwrap();
        assert!(draining());
        assert_eq!(
            drain.silent(),
            "",
            "it does not wait for its own old stream"
        );
        drop(old);
        assert!(draining(), "a stream that breaks changes nothing");
    }

    #[test]
    fn a_drain_that_begins_before_the_first_look_is_not_missed() {
        let snapshots = Snapshots::new(blog(), "", BTreeSet::new());
        let leaving = snapshots.connected("blog", "post");
        let caller = snapshots.connected("blog", "web");
        let drain = leaving.ended().unwrap();
        let looked_at = snapshots.current().generation();
        let noted = caller.drains(caller.since(), looked_at);
        assert_eq!(noted.len(), 1);
        noted[0].answered(caller.number());
        assert_eq!(drain.silent(), "");
    }

    #[test]
    fn only_the_last_clean_end_of_a_known_workload_drains() {
        let snapshots = Snapshots::new(blog(), "", BTreeSet::new());
        let drains = || snapshots.current().draining().len();
        let (first, second) = (
            snapshots.connected("blog", "post"),
            snapshots.connected("blog", "post"),
        );
        assert!(first.ended().is_none());
        assert_eq!(drains(), 0);
        assert!(second.ended().is_some());
        assert_eq!(drains(), 1);
        let again = snapshots.connected("blog", "post");
        assert_eq!(drains(), 0);
        drop(again);
        assert_eq!(drains(), 0, "a stream that breaks changes nothing");
        assert!(snapshots.connected("blog", "unknown").ended().is_none());
        assert_eq!(drains(), 0);
        drop(snapshots.connected("blog", "post").ended());
        snapshots.publish(Mesh::default());
        assert_eq!(drains(), 0, "what is gone does not drain");
    }

    #[test]
    fn what_drains_is_stored() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(load_draining(directory.path()), BTreeSet::new());
        let draining = BTreeSet::from([("blog".to_owned(), "post".to_owned())]);
        store_draining(directory.path(), &draining);
        assert_eq!(load_draining(directory.path()), draining);
        std::fs::write(directory.path().join(DRAINING_FILE), "{").unwrap();
        assert_eq!(load_draining(directory.path()), BTreeSet::new());
    }

    #[test]
    fn versions_are_content_hashes() {
        let encoded = Encoded::new(Kind::Cluster, b"abc".to_vec());
        // SHA-256 of "abc" begins so.
        assert_eq!(encoded.version_text(), "ba7816bf8f01cfea");
        assert_eq!(
            Encoded::parse_version("ba7816bf8f01cfea"),
            Some(encoded.version)
        );
        for text in [
            "",
            "1",
            "+a7816bf8f01cfea",
            "ba7816bf8f01cfeaa",
            "xa7816bf8f01cfea",
        ] {
            assert_eq!(Encoded::parse_version(text), None, "{text}");
        }
    }

    #[test]
    fn a_listener_tells_its_routes() {
        let with_sidecar = mesh(
            "
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: blog}
spec: {address: 127.0.0.1, outbound: {port: 14001}}
",
        );
        let snapshots = Snapshots::new(with_sidecar, "", BTreeSet::new());
        let view = NodeView::new(snapshots.current(), "blog", "web");
        let listener = view.resource(Kind::Listener, "outbound").unwrap();
        assert_eq!(*listener.routes, ["outbound".to_owned()]);
    }
}
