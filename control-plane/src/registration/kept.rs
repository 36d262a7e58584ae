//! The registrations on disk, for the time after a restart: without them services would be
//! empty until every sidecar has connected again.
//!
//! `registrations.json` is sealed by [`storage::seal`]. One that cannot be used is set aside
//! as `registrations.json.rejected`, and counts as empty.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Registration;
use crate::storage;

/// Its name in the data directory.
const FILE: &str = "registrations.json";
const MAGIC: &str = "weft-registrations";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    namespace: String,
    name: String,
    service_account: String,
    values: Value,
}

/// Reads what was stored; none if there is no file or it cannot be used. Blocks on the disk.
pub(super) fn load(data: &Path) -> Vec<Registration> {
    let path = data.join(FILE);
    let read = match std::fs::read_to_string(&path) {
        Ok(text) => storage::unseal(MAGIC, VERSION, &text).and_then(|body| {
            serde_json::from_str::<Vec<Kept>>(body).map_err(|error| error.to_string())
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => Err(error.to_string()),
    };
    let kept = read.unwrap_or_else(|reason| {
        let aside = path.with_extension("json.rejected");
        let set_aside = std::fs::rename(&path, &aside);
        tracing::warn!(file = %path.display(), reason, aside = %aside.display(), set_aside = set_aside.is_ok(), "cannot use the stored registrations: workloads without a document are missing until their sidecars have connected again");
        Vec::new()
    });
    let parsed = kept.into_iter().filter_map(|kept| {
        let Kept { namespace, name, service_account, values } = kept;
        Registration::parse(&namespace, &name, &service_account, values)
            .inspect_err(|invalid| {
                tracing::warn!(workload = %format!("{namespace}/{name}"), %invalid, "a stored registration is not for this version: it is not kept");
            })
            .ok()
    });
    parsed.collect()
}

/// Stores registrations in place of those before. Blocks on the disk.
///
/// # Errors
/// When the data directory cannot be written.
pub(super) fn store(data: &Path, registrations: &[Arc<Registration>]) -> io::Result<()> {
    let kept: Vec<Kept> = registrations
        .iter()
        .map(|registration| {
            let (namespace, name) = registration.workload().clone();
            Kept {
                namespace,
                name,
                service_account: registration.service_account().to_owned(),
                values: registration.values().clone(),
            }
        })
        .collect();
    let body = serde_json::to_string(&kept)?;
    storage::create_private_directory(data)?;
    let text = storage::seal(MAGIC, VERSION, &body);
    storage::write_atomically(&data.join(FILE), text.as_bytes())
}
