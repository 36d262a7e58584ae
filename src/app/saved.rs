//! The configuration in the state directory: what a sidecar needs to serve at once after a
//! restart, with or without a control plane.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prost::Message;
use tokio::time::Instant;
use weft_api::Kind;

use super::handover::blocking;
use crate::{
    config::{self, Rejected, Value},
    identity::IdentityStore,
    state::{Directory, Writer},
    telemetry::Metrics,
    xds::Raw,
};

/// Names of the files.
pub(super) const IDENTITY: &str = "identity";
pub(super) const CONFIG: &str = "config";

/// A file is written this long after the first change that it lacks.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// What a last write may take.
const FLUSH: Duration = Duration::from_secs(2);

/// Keeps the files of the state directory up to date. Owned by the configuration task.
#[derive(Debug)]
pub(super) struct Saver {
    writer: Writer,
    workload: String,
    identity: Arc<IdentityStore>,
    pub(super) ledger: Ledger,
    config_due: Option<Instant>,
    identity_due: Option<Instant>,
}

impl Saver {
    /// Starts the writing thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start(
        directory: Directory,
        workload: &str,
        identity: &Arc<IdentityStore>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, String> {
        let metrics = metrics.clone();
        let mut failing = BTreeMap::new();
        let shown = directory.path("").display().to_string();
        let report = move |file: &str, result: std::io::Result<()>| {
            metrics.state_write(file, result.is_ok());
            let failed = failing.insert(file.to_owned(), result.is_err());
            match result {
                Err(error) if failed != Some(true) => {
                    tracing::error!(%error, file, directory = shown,
                    "the state cannot be written; serving on, but a restart would begin with an older one")
                }
                Ok(()) if failed == Some(true) => {
                    tracing::info!(file, directory = shown, "the state can be written again");
                }
                _ => {}
            }
        };
        let writer = Writer::start(directory, report)
            .map_err(|error| format!("WEFT_PROXY_STATE: no thread can be started: {error}"))?;
        Ok(Self {
            writer,
            workload: workload.to_owned(),
            identity: identity.clone(),
            ledger: Ledger::default(),
            config_due: None,
            identity_due: None,
        })
    }

    /// The configuration has changed.
    pub(super) fn config_changed(&mut self) {
        self.config_due
            .get_or_insert_with(|| Instant::now() + DEBOUNCE);
    }

    /// The certificate or the bundle has changed.
    pub(super) fn identity_changed(&mut self) {
        self.identity_due.get_or_insert_with(Instant::now);
    }

    /// Waits until something is to be written; for ever if nothing is. Cancel safe.
    pub(super) async fn due(&self) {
        match self.config_due.into_iter().chain(self.identity_due).min() {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Hands what is due by `now` to the writing thread.
    pub(super) fn write<'a>(&mut self, now: Instant, demanded: impl Iterator<Item = &'a Arc<str>>) {
        let again = Some(now + DEBOUNCE);
        if self.identity_due.is_some_and(|at| at <= now) {
            let payload = self.identity.save(&self.workload);
            let taken = payload.is_none_or(|payload| self.writer.write(IDENTITY, move || payload));
            self.identity_due = if taken { None } else { again };
        }
        if self.config_due.is_some_and(|at| at <= now) {
            // Without an identity it is not known whose configuration it is.
            let Some(id) = self.identity.id() else {
                self.config_due = again;
                return;
            };
            let domain = id.trust_domain().to_string();
            let time = SystemTime::now();
            let make = self.ledger.payload(&self.workload, &domain, demanded, time);
            self.config_due = if self.writer.write(CONFIG, make) {
                None
            } else {
                again
            };
        }
    }

    /// Everything that has changed is to be written now.
    pub(super) fn hurry(&mut self) {
        let now = Instant::now();
        self.config_due = self.config_due.map(|_| now);
        self.identity_due = self.identity_due.map(|_| now);
    }

    /// Waits until what was handed over is on disk, for at most 2 s.
    pub(super) fn flushed(&self) -> impl Future<Output = ()> + use<> {
        let writer = self.writer.clone();
        blocking(move || writer.flush(FLUSH))
    }
}

/// The payload of the file. Numbers of fields are never used again for something else.
#[derive(Clone, PartialEq, prost::Message)]
struct File {
    /// `namespace/name` of the workload.
    #[prost(string, tag = "1")]
    workload: String,
    #[prost(string, tag = "2")]
    trust_domain: String,
    /// Seconds since 1970.
    #[prost(uint64, tag = "3")]
    saved: u64,
    #[prost(message, repeated, tag = "4")]
    resources: Vec<Resource>,
    /// Virtual hosts that were asked for, also those that do not exist.
    #[prost(string, repeated, tag = "5")]
    demanded: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Resource {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    version: String,
    #[prost(bytes = "bytes", tag = "4")]
    body: bytes::Bytes,
}

/// Every resource that is held, as it came. Costs a pointer a resource until it is written.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    held: BTreeMap<(Kind, Arc<str>), Raw>,
}

impl Ledger {
    pub(super) fn keep(&mut self, kind: Kind, name: &Arc<str>, raw: Raw) {
        self.held.insert((kind, name.clone()), raw);
    }

    pub(super) fn forget(&mut self, kind: Kind, name: &Arc<str>) {
        self.held.remove(&(kind, name.clone()));
    }

    /// What makes the file's payload; cheap here, to be run elsewhere.
    pub(super) fn payload<'a>(
        &self,
        workload: &str,
        trust_domain: &str,
        demanded: impl Iterator<Item = &'a Arc<str>>,
        now: SystemTime,
    ) -> impl FnOnce() -> Vec<u8> + Send + 'static {
        let file = File {
            workload: workload.to_owned(),
            trust_domain: trust_domain.to_owned(),
            saved: now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            resources: Vec::new(),
            demanded: demanded.map(ToString::to_string).collect(),
        };
        let held: Vec<((Kind, Arc<str>), Raw)> = self
            .held
            .iter()
            .map(|(key, raw)| (key.clone(), raw.clone()))
            .collect();
        move || {
            let resources = held.into_iter().map(|((kind, name), raw)| Resource {
                type_url: kind.type_url().to_owned(),
                name: name.to_string(),
                version: raw.version,
                body: raw.bytes,
            });
            let file = File {
                resources: resources.collect(),
                ..file
            };
            file.encode_to_vec()
        }
    }
}

/// A configuration from a file, parsed.
#[derive(Debug)]
pub(super) struct Kept {
    /// When it was written.
    pub(super) saved: SystemTime,
    /// What can be used.
    pub(super) resources: Vec<(Arc<str>, Value, Raw)>,
    /// What cannot, as of another version of this program. It is asked for again.
    pub(super) rejected: Vec<Rejected>,
    pub(super) demanded: Vec<String>,
}

impl Kept {
    /// Reads the configuration of `workload` in a trust domain.
    ///
    /// # Errors
    /// When it is another's, or no configuration.
    pub(super) fn read(payload: &[u8], workload: &str, trust_domain: &str) -> Result<Self, String> {
        let file = File::decode(payload).map_err(|e| format!("is no configuration: {e}"))?;
        if (file.workload.as_str(), file.trust_domain.as_str()) != (workload, trust_domain) {
            return Err(format!(
                "is the configuration of workload {} in trust domain {} and this is {workload} in {trust_domain}; \
                 each workload needs a directory of its own",
                file.workload, file.trust_domain
            ));
        }
        let (mut resources, mut rejections) = (Vec::new(), Vec::new());
        for resource in file.resources {
            let name: Arc<str> = resource.name.into();
            // A kind that this version does not know.
            let Some(kind) = Kind::from_type_url(&resource.type_url) else {
                continue;
            };
            match config::parse(kind, &name, &resource.body) {
                Ok(value) => {
                    let raw = Raw {
                        version: resource.version,
                        bytes: resource.body,
                    };
                    resources.push((name, value, raw));
                }
                Err(rejected) => {
                    tracing::warn!(%rejected, %kind, "a resource from disk is not understood; the control plane is asked");
                    rejections.push(rejected);
                }
            }
        }
        Ok(Self {
            saved: UNIX_EPOCH + Duration::from_secs(file.saved),
            resources,
            rejected: rejections,
            demanded: file.demanded,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use prost::Message;
    use weft_api::{Kind, envoy::config::endpoint::v3::ClusterLoadAssignment};

    use super::{Kept, Ledger};
    use crate::xds::Raw;

    fn raw(name: &str, version: &str) -> Raw {
        let message = ClusterLoadAssignment {
            cluster_name: name.into(),
            ..Default::default()
        };
        Raw {
            version: version.into(),
            bytes: message.encode_to_vec().into(),
        }
    }

    #[test]
    fn what_is_held_comes_back_and_nothing_else() {
        let mut ledger = Ledger::default();
        for name in ["a", "b"] {
            ledger.keep(Kind::Endpoint, &name.into(), raw(name, "1"));
        }
        ledger.keep(Kind::Endpoint, &"a".into(), raw("a", "2"));
        ledger.forget(Kind::Endpoint, &"b".into());
        let unusable = Raw {
            version: "3".into(),
            bytes: b"\xff"[..].into(),
        };
        ledger.keep(Kind::Cluster, &"c".into(), unusable);
        let demanded = ["outbound/x".into()];
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let payload = ledger.payload("blog/web", "td", demanded.iter(), now)();
        let kept = Kept::read(&payload, "blog/web", "td").unwrap();
        assert_eq!(
            (kept.saved, kept.demanded),
            (now, vec!["outbound/x".to_owned()])
        );
        let [(name, value, found)] = kept.resources.as_slice() else {
            panic!("{:?}", kept.resources);
        };
        assert_eq!((&**name, value.kind()), ("a", Kind::Endpoint));
        assert_eq!(*found, raw("a", "2"));
        let [rejected] = kept.rejected.as_slice() else {
            panic!("{:?}", kept.rejected);
        };
        assert_eq!((rejected.kind, &*rejected.name), (Kind::Cluster, "c"));
        for (workload, domain) in [("blog/post", "td"), ("blog/web", "other")] {
            let error = Kept::read(&payload, workload, domain).unwrap_err();
            assert!(
                error.contains("of workload blog/web in trust domain td"),
                "{error}"
            );
        }
        let error = Kept::read(b"\xff", "blog/web", "td").unwrap_err();
        assert!(error.contains("is no configuration"), "{error}");
    }
}
