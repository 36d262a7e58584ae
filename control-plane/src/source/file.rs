//! A directory of YAML files as the source of the mesh.
//!
//! A document that becomes bad keeps its last good version in force, and only that
//! document: an edit never takes down what it does not touch. With a data directory that
//! outlives the process. Changes are seen by inotify and, should that miss one, by reading
//! the files every two seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::addresses;
use super::kept::{self, Kept};
use crate::config::{
    Diagnostic, Document, Id, Level, Parsed, count_documents, parse_document, parse_file,
};
use crate::model::{Mesh, VirtualIps};
use crate::registration::Registrations;
use crate::storage::DataLock;

/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 10 << 20;
/// The most documents of a file that is read.
const MAX_DOCUMENTS: usize = 20_000;
/// How long it must be quiet before the files are read: editors write in steps.
const QUIET: Duration = Duration::from_millis(10);
/// How often that quiet may be disturbed before the files are read anyway.
const MAX_DISTURBANCES: usize = 5;
/// How long registrations are gathered before they are put in force.
const GATHER: Duration = Duration::from_millis(20);
/// How often the files are read without being told of a change.
const POLL: Duration = Duration::from_secs(2);

/// What the files say at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// What is in force.
    pub mesh: Mesh,
    /// Every finding, by file and line.
    pub diagnostics: Vec<Diagnostic>,
    /// The number of documents in force.
    pub documents: usize,
    /// The number of the last change of registrations that is in it.
    pub registered: u64,
}

/// A directory of `*.yaml` and `*.yml` files, and those one level below it.
#[derive(Debug)]
pub struct FileSource {
    pub(super) directory: PathBuf,
    /// By name relative to the directory.
    files: BTreeMap<String, File>,
    /// Why the directory, or some below it, could not be read just now.
    troubles: Vec<Diagnostic>,
    /// Where the last good documents are kept.
    data: Option<PathBuf>,
    /// What is stored there.
    stored: Vec<Kept>,
    /// The virtual addresses given away so far.
    ips: VirtualIps,
    /// Those that are stored; `None` if that is no use.
    stored_ips: Option<VirtualIps>,
    /// Workloads that say themselves what they are.
    registrations: Registrations,
    /// The right to write the data directory.
    lock: Option<DataLock>,
}

/// What is known of one file.
#[derive(Debug, Default)]
struct File {
    /// The content that `parsed` is of.
    text: Option<Arc<str>>,
    parsed: Vec<Parsed>,
    /// The last good version of each of its documents.
    good: BTreeMap<Id, Arc<Document>>,
    /// Why the file could not be read just now.
    trouble: Option<Diagnostic>,
}

impl FileSource {
    /// A source that has read nothing yet.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        // Events of the watch carry absolute paths.
        let directory = std::path::absolute(&directory).unwrap_or(directory);
        Self {
            directory,
            files: BTreeMap::new(),
            troubles: Vec::new(),
            data: None,
            stored: Vec::new(),
            ips: VirtualIps::default(),
            stored_ips: Some(VirtualIps::default()),
            registrations: Registrations::default(),
            lock: None,
        }
    }

    /// Keeps the right to write the data directory for as long as it may be written.
    #[must_use]
    pub(crate) fn locking(mut self, lock: Option<DataLock>) -> Self {
        self.lock = lock;
        self
    }

    /// Adds the workloads that register themselves to those of the files, which come first.
    #[must_use]
    pub fn with_registrations(mut self, registrations: Registrations) -> Self {
        self.registrations = registrations;
        self
    }

    /// Gives services the virtual addresses that they have in a data directory, and stores
    /// nothing there. Blocks on the disk.
    #[must_use]
    pub fn with_addresses_of(mut self, data: &Path) -> Self {
        self.stored_ips = addresses::load(data);
        self.ips = self.stored_ips.clone().unwrap_or_default();
        self
    }

    /// Starts from the last good documents and the virtual addresses that [`Self::watch`]
    /// stored in a data directory, and lets it store them there. Blocks on the disk.
    #[must_use]
    pub fn keeping(mut self, data: impl Into<PathBuf>) -> Self {
        let data = data.into();
        self = self.with_addresses_of(&data);
        self.stored = kept::load(&data);
        self.data = Some(data);
        for kept in &self.stored {
            let name: Arc<str> = Arc::from(kept.file.as_str());
            let parsed = parse_document(&name, &kept.text, kept.lines_before);
            let Some(document) = &parsed.document else {
                tracing::warn!(
                    file = kept.file,
                    line = kept.lines_before,
                    "a document that was good is not for this version: it is not kept"
                );
                continue;
            };
            let file = self.files.entry(kept.file.clone()).or_default();
            file.good.insert(document.id.clone(), Arc::clone(document));
            file.parsed.push(parsed);
        }
        self
    }

    /// Whether nothing is known that could be in force.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.values().all(|file| file.good.is_empty())
    }

    /// Reads all files. Files and directories that cannot be read keep what they said.
    pub fn load(&mut self) -> Load {
        self.read();
        self.assemble()
    }

    /// Calls `on_load` with the state now and after each change, until dropped. A change
    /// of a file is in force some 20 ms after it was written, in a long burst of them 50 ms.
    ///
    /// Cancel safe: dropping the future ends the watch and loses nothing but itself.
    pub async fn watch(mut self, mut on_load: impl FnMut(Load)) {
        let (events, mut changed) = mpsc::channel(1);
        let mut registered = self.registrations.subscribe();
        let mut eyes = Eyes::default();
        let mut first = true;
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut others = first;
            tokio::select! {
                _ = poll.tick() => {}
                _ = changed.recv() => settle(&mut changed).await,
                // Fails never: the source holds the other side.
                _ = registered.changed() => {
                    sleep(GATHER).await;
                    others = true;
                }
            }
            registered.mark_unchanged();
            // The watch is set before the files are read: no change falls in between.
            eyes.watch(&self.directory, &events);
            let done = tokio::task::spawn_blocking(move || {
                let load = (self.read() || others).then(|| self.assemble());
                (self, load)
            })
            .await;
            let Ok((source, load)) = done else {
                tracing::error!("reading the configuration panicked; it is not watched any more");
                return;
            };
            self = source;
            first = false;
            let Some(load) = load else { continue };
            // In force first: the disk may take its time.
            on_load(load);
            let kept = tokio::task::spawn_blocking(move || {
                self.keep();
                self
            });
            let Ok(source) = kept.await else {
                tracing::error!("storing the configuration panicked; it is not watched any more");
                return;
            };
            self = source;
        }
    }

    /// Brings `files` up to date; whether anything is different now.
    fn read(&mut self) -> bool {
        let listed = list(&self.directory);
        let mut troubles = Vec::new();
        if let Err(error) = &listed {
            let name = self.directory.to_string_lossy();
            let help = "check that it exists and is readable";
            troubles.push(directory_error(&name, error, help, !self.is_empty()));
        }
        let (names, unread) = listed.map_or((None, Vec::new()), |l| (Some(l.names), l.unread));
        for (name, error) in &unread {
            let known = self.files_of(name).any(|file| !file.good.is_empty());
            troubles.push(directory_error(name, error, "", known));
        }
        let mut changed = self.troubles != troubles;
        self.troubles = troubles;
        let Some(names) = names else {
            return changed;
        };
        let before = self.files.len();
        self.files.retain(|name, _| {
            names.contains(name) || unread.iter().any(|(directory, _)| is_in(name, directory))
        });
        changed |= self.files.len() != before;
        for name in names {
            let content = read_file(&self.directory, &name);
            let file = self.files.entry(name.clone()).or_default();
            changed |= file.update(&name, content);
        }
        changed
    }

    /// The files of a subdirectory.
    fn files_of(&self, directory: &str) -> impl Iterator<Item = &File> {
        let named = self.files.iter();
        named.filter_map(move |(name, file)| is_in(name, directory).then_some(file))
    }

    /// Stores the last good documents and the virtual addresses if they are others than
    /// those stored.
    pub(super) fn keep(&mut self) {
        let Some(data) = &self.data else { return };
        if self.stored_ips.as_ref() != Some(&self.ips) {
            match addresses::store(data, &self.ips) {
                Ok(()) => self.stored_ips = Some(self.ips.clone()),
                Err(error) => {
                    tracing::warn!(data = %data.display(), %error, "cannot store the virtual addresses of services: after a restart some may have others");
                }
            }
        }
        let good = self.files.values().flat_map(|file| file.good.values());
        let good: Vec<Kept> = good
            .map(|document| Kept {
                file: document.file.to_string(),
                lines_before: document.lines_before,
                text: document.text.to_string(),
            })
            .collect();
        if good == self.stored {
            return;
        }
        match kept::store(data, &good) {
            Ok(()) => self.stored = good,
            Err(error) => {
                tracing::warn!(data = %data.display(), %error, "cannot store the last good documents: a restart forgets them");
            }
        }
    }

    fn assemble(&mut self) -> Load {
        let mut documents = Vec::new();
        let mut diagnostics = self.troubles.clone();
        let mut stale: BTreeSet<(&str, &Id)> = BTreeSet::new();
        for (name, file) in &self.files {
            diagnostics.extend(file.trouble.clone());
            diagnostics.extend(file.findings());
            let current: BTreeSet<&Id> = file
                .parsed
                .iter()
                .filter_map(|parsed| Some(&parsed.document.as_ref()?.id))
                .collect();
            stale.extend(
                file.good
                    .keys()
                    .filter(|id| !current.contains(id))
                    .map(|id| (name.as_str(), id)),
            );
            let mut good: Vec<&Arc<Document>> = file.good.values().collect();
            good.sort_by_key(|document| document.at);
            documents.extend(good.into_iter().map(Arc::clone));
            diagnostics.extend(file.duplicates());
        }
        let count = documents.len();
        let (registered, registrations) = self.registrations.documents();
        diagnostics.extend(add_registered(&mut documents, registrations));
        let (mesh, findings) = Mesh::build(&documents, &mut self.ips);
        // A version that is not in the file any more has nothing to warn about.
        let is_stale = |finding: &Diagnostic| {
            stale.iter().any(|(file, id)| {
                finding.file == *file
                    && finding.kind == id.kind
                    && finding.name == format!("{}/{}", id.namespace, id.name)
            })
        };
        diagnostics.extend(findings.into_iter().filter(|finding| !is_stale(finding)));
        diagnostics.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        Load {
            mesh,
            diagnostics,
            documents: count,
            registered,
        }
    }
}

/// Adds the documents of registered workloads. Where there is one in a file, it counts.
fn add_registered(
    documents: &mut Vec<Arc<Document>>,
    registered: Vec<Arc<Document>>,
) -> Vec<Diagnostic> {
    if registered.is_empty() {
        return Vec::new();
    }
    let written: BTreeMap<&Id, &Arc<Document>> = documents
        .iter()
        .map(|document| (&document.id, document))
        .collect();
    let (twice, new): (Vec<_>, Vec<_>) = registered
        .into_iter()
        .partition(|document| written.contains_key(&document.id));
    let findings = twice.iter().map(|registered| {
        let document = written[&registered.id];
        Diagnostic {
            level: Level::Warning,
            file: document.file.to_string(),
            line: document.at.line,
            column: document.at.column,
            kind: document.id.kind.to_owned(),
            name: format!("{}/{}", document.id.namespace, document.id.name),
            field: String::new(),
            message: "its sidecar registers itself, too".to_owned(),
            help: "this document is in force; remove it, or unset WEFT_PROXY_REGISTER".to_owned(),
            in_force: None,
        }
    });
    let findings = findings.collect();
    documents.extend(new);
    findings
}

impl File {
    /// Takes the content of the file; whether anything is different now.
    fn update(&mut self, name: &str, content: io::Result<String>) -> bool {
        let (text, trouble) = match content {
            // Also what a program that is about to write the file leaves for a moment.
            Ok(text) if text.is_empty() && !self.good.is_empty() => {
                let message = "the file has become empty".to_owned();
                let help = "delete the file if its documents shall go".to_owned();
                let mut finding = file_error(name, message, help);
                finding.level = Level::Warning;
                (None, Some(finding))
            }
            Ok(text) => (Some(text), None),
            Err(error) => {
                let message = format!("cannot read the file: {error}");
                (None, Some(file_error(name, message, String::new())))
            }
        };
        let trouble = trouble.map(|finding| Diagnostic {
            in_force: (!self.good.is_empty()).then_some("what was read before"),
            ..finding
        });
        let changed = self.trouble != trouble;
        self.trouble = trouble;
        let Some(text) = text.filter(|text| self.text.as_deref() != Some(text)) else {
            return changed;
        };
        self.parsed = parse_file(&Arc::from(name), &text);
        self.text = Some(Arc::from(text));
        // What cannot be read at all could be any of the documents that are missing now.
        let unreadable = self.parsed.iter().any(|parsed| parsed.id.is_none());
        let present: BTreeSet<&Id> = self.parsed.iter().filter_map(|p| p.id.as_ref()).collect();
        self.good.retain(|id, _| unreadable || present.contains(id));
        let mut seen = BTreeSet::new();
        for document in self.parsed.iter().filter_map(|p| p.document.as_ref()) {
            if seen.insert(&document.id) {
                self.good.insert(document.id.clone(), Arc::clone(document));
            }
        }
        true
    }

    /// The findings of its documents, with what is in force instead.
    fn findings(&self) -> Vec<Diagnostic> {
        let mut out = Vec::new();
        let present: BTreeSet<&Id> = self.parsed.iter().filter_map(|p| p.id.as_ref()).collect();
        let any_missing = self.good.keys().any(|id| !present.contains(id));
        for parsed in &self.parsed {
            let kept = match &parsed.id {
                Some(id) => parsed.document.is_none() && self.good.contains_key(id),
                None => any_missing,
            };
            out.extend(parsed.diagnostics.iter().map(|finding| Diagnostic {
                in_force: (kept && finding.level == Level::Error).then_some("last good version"),
                ..finding.clone()
            }));
        }
        out
    }

    /// Second documents of one name in this file; those across files are found later.
    fn duplicates(&self) -> Vec<Diagnostic> {
        let mut first: BTreeMap<&Id, &Document> = BTreeMap::new();
        let mut out = Vec::new();
        for document in self.parsed.iter().filter_map(|p| p.document.as_ref()) {
            let Some(original) = first.get(&document.id) else {
                first.insert(&document.id, document);
                continue;
            };
            out.push(Diagnostic {
                level: Level::Error,
                file: document.file.to_string(),
                line: document.at.line,
                column: document.at.column,
                kind: document.id.kind.to_owned(),
                name: format!("{}/{}", document.id.namespace, document.id.name),
                field: String::new(),
                message: format!("already defined in {}:{}", original.file, original.at.line),
                help: "only the first is in force; remove one of them".to_owned(),
                in_force: None,
            });
        }
        out
    }
}

/// Waits for the end of a burst of changes.
async fn settle(changed: &mut mpsc::Receiver<()>) {
    for _ in 0..MAX_DISTURBANCES {
        sleep(QUIET).await;
        if changed.try_recv().is_err() {
            return;
        }
    }
}

fn file_error(file: &str, message: String, help: String) -> Diagnostic {
    Diagnostic {
        level: Level::Error,
        file: file.to_owned(),
        line: 0,
        column: 0,
        kind: String::new(),
        name: String::new(),
        field: String::new(),
        message,
        help,
        in_force: None,
    }
}

fn directory_error(name: &str, error: &io::Error, help: &str, known: bool) -> Diagnostic {
    let message = format!("cannot read the directory: {error}");
    Diagnostic {
        in_force: known.then_some("what was read before"),
        ..file_error(name, message, help.to_owned())
    }
}

fn is_in(name: &str, directory: &str) -> bool {
    Path::new(name).parent() == Some(Path::new(directory))
}

/// What there is in a directory.
struct Listing {
    /// The names of the YAML files, relative to the directory.
    names: BTreeSet<String>,
    /// Subdirectories that cannot be read.
    unread: Vec<(String, io::Error)>,
}

/// Lists the YAML files of a directory and its subdirectories. Hidden names are left out:
/// Kubernetes keeps the real files of a volume under `..data`.
fn list(directory: &Path) -> io::Result<Listing> {
    let mut listing = Listing {
        names: BTreeSet::new(),
        unread: Vec::new(),
    };
    let root = directory.canonicalize()?;
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if is_hidden(&path) {
            continue;
        }
        if !path.is_dir() {
            listing.names.extend(yaml_name(&path, directory));
            continue;
        }
        match list_below(directory, &root, &path) {
            Ok(names) => listing.names.extend(names),
            // Gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                listing.unread.push((name.into_owned(), error));
            }
        }
    }
    Ok(listing)
}

fn list_below(directory: &Path, root: &Path, path: &Path) -> io::Result<Vec<String>> {
    if !path.canonicalize()?.starts_with(root) {
        return Err(leaves());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        if !is_hidden(&path) && !path.is_dir() {
            names.extend(yaml_name(&path, directory));
        }
    }
    Ok(names)
}

fn leaves() -> io::Error {
    io::Error::other("it is a link that leaves the configuration directory; put it itself there")
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn yaml_name(path: &Path, directory: &Path) -> Option<String> {
    let extension = path.extension().and_then(OsStr::to_str)?;
    let relative = path.strip_prefix(directory).ok()?.to_str()?;
    matches!(extension, "yaml" | "yml").then(|| relative.to_owned())
}

/// Reads a file below a directory. What a name may be made to stand for is refused: files
/// elsewhere, whose text would end up in findings, and what has no end.
fn read_file(directory: &Path, name: &str) -> io::Result<String> {
    let path = directory.join(name).canonicalize()?;
    if !path.starts_with(directory.canonicalize()?) {
        return Err(leaves());
    }
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(size.min(MAX_FILE_BYTES)).unwrap_or(0));
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "it has more than {MAX_FILE_BYTES} bytes; split the file"
        )));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| io::Error::other(format!("it is not UTF-8 text: {error}")))?;
    let documents = count_documents(&text);
    if documents > MAX_DOCUMENTS {
        return Err(io::Error::other(format!(
            "{documents} documents are more than {MAX_DOCUMENTS}; split the file"
        )));
    }
    Ok(text)
}

/// The inotify watches of a directory, its subdirectories and its parents: the directory
/// itself may be replaced, or be a link that is.
#[derive(Default)]
struct Eyes {
    watcher: Option<RecommendedWatcher>,
    /// Directories with their inodes: a replaced one needs a new watch.
    watched: BTreeSet<(PathBuf, u64)>,
}

impl Eyes {
    fn watch(&mut self, directory: &Path, events: &mpsc::Sender<()>) {
        use std::os::unix::fs::MetadataExt;
        let mut wanted: Vec<PathBuf> = vec![directory.to_owned()];
        let here = Some(Path::new("."));
        let parent = directory
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .or(here);
        wanted.extend(parent.map(Path::to_owned));
        let mut names: Vec<OsString> = directory
            .file_name()
            .map(OsStr::to_owned)
            .into_iter()
            .collect();
        if let Ok(real) = directory.canonicalize() {
            names.extend(real.file_name().map(OsStr::to_owned));
            wanted.extend(real.parent().map(Path::to_owned));
        }
        if let Ok(entries) = std::fs::read_dir(directory) {
            let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
            wanted.extend(paths.filter(|path| path.is_dir() && !is_hidden(path)));
        }
        let wanted: BTreeSet<(PathBuf, u64)> = wanted
            .into_iter()
            .filter_map(|path| {
                let inode = std::fs::metadata(&path).ok()?.ino();
                Some((path, inode))
            })
            .collect();
        if wanted == self.watched && self.watcher.is_some() {
            return;
        }
        let directory = directory.to_owned();
        self.watcher = watcher(events.clone(), move |path| {
            let is_directory = |name: &OsString| path.file_name() == Some(name);
            path.starts_with(&directory) || names.iter().any(is_directory)
        });
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for (path, _) in &wanted {
            if let Err(error) = watcher.watch(path, RecursiveMode::NonRecursive) {
                tracing::warn!(%error, path = %path.display(), "cannot watch; polling instead");
            }
        }
        self.watched = wanted;
    }
}

/// A watcher that tells of changes of files that matter: the parents are busy places.
fn watcher(
    events: mpsc::Sender<()>,
    matters: impl Fn(&Path) -> bool + Send + 'static,
) -> Option<RecommendedWatcher> {
    let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error may be a lost event.
        let changed = event.map_or(true, |event| {
            // Reading the files is an event too, of no interest.
            let read = event.kind.is_access() && !is_close_write(&event);
            let lost = event.need_rescan();
            lost || (!read && event.paths.iter().any(|path| matters(path)))
        });
        if changed {
            // Full means that a reload is due anyway.
            let _ = events.try_send(());
        }
    });
    made.inspect_err(|error| tracing::warn!(%error, "cannot watch files; polling instead"))
        .ok()
}

fn is_close_write(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode};
    event.kind == notify::EventKind::Access(AccessKind::Close(AccessMode::Write))
}
