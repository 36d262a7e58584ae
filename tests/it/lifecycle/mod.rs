//! A sidecar across its ends: started again without a control plane, relieved by another
//! process, drained as its application likes.

mod drain;
mod pod;
pub(crate) mod process;
mod restart;
mod upgrade;

use std::path::Path;

use crate::support::mesh::{Mesh, Settings, Workload, settings};

/// Settings with a state directory.
fn keeping(mesh: &Mesh, workload: &Workload, state: &Path) -> Settings {
    let mut settings = settings(workload, &mesh.token(workload), mesh.control);
    settings.insert("STATE".to_owned(), state.display().to_string());
    settings
}

/// The same without a token.
fn without_token(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    settings.remove("TOKEN");
    settings
}
