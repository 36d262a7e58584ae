//! The documents of a running workload in the configuration directory of a server.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use weft_control::source::FileSource;

use crate::demo::is_alive;
use crate::files;
use crate::output::{Exit, Failure};

/// The first line of a document file that `weft run` has written, up to the process.
const MARK: &str = "# Written by `weft run`, which removes it when it ends: process ";

/// What is to be written.
#[derive(Debug)]
pub(crate) struct Documents {
    /// Namespace and name of the workload and its service.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The Service; left out if the directory has one of the name already.
    pub service: String,
    /// The Workload.
    pub workload: String,
}

impl Documents {
    /// One file for each workload.
    pub(crate) fn file(&self) -> String {
        match self.namespace.as_str() {
            "default" => format!("{}.yaml", self.name),
            namespace => format!("{}.{namespace}.yaml", self.name),
        }
    }

    /// As a file that belongs to a process, which removes it.
    pub(crate) fn file_of(&self, owner: u32, with_service: WithService) -> String {
        match with_service {
            WithService::Yes => format!("{MARK}{owner}\n{}", self.text()),
            WithService::No => format!("{MARK}{owner}\n{}", self.workload),
        }
    }

    /// Both documents.
    pub(crate) fn text(&self) -> String {
        format!("{}---\n{}", self.service, self.workload)
    }
}

/// Whether a Service is part of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WithService {
    /// Nobody else has written one.
    Yes,
    /// There is one already.
    No,
}

/// The documents of a running workload; dropping them removes them.
#[derive(Debug)]
pub(crate) struct Registered {
    path: PathBuf,
    /// Ports of the Service that was there already; none if it is among the documents.
    service_ports: Option<Vec<u16>>,
}

impl Registered {
    /// Writes them.
    ///
    /// # Errors
    ///
    /// The workload runs already, or the directory cannot be written.
    pub(crate) fn write(documents: &Documents, config: &Path) -> Result<Self, Failure> {
        let path = config.join(documents.file());
        match fs::read_to_string(&path) {
            Ok(text) => {
                may_replace(&text, is_alive).map_err(|reason| {
                    Failure::new(Exit::Problems, format!("{}: {reason}", path.display()))
                        .help("choose another --name or --namespace")
                })?;
                // What is in it says nothing about what others have written.
                fs::remove_file(&path).map_err(|error| Failure::io(path.display(), &error))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::io(path.display(), &error)),
        }
        let load = FileSource::new(config).load();
        let service = load.mesh.service(&documents.namespace, &documents.name);
        let service_ports =
            service.map(|service| service.ports.iter().map(|port| port.port).collect());
        let with_service = match service {
            Some(_) => WithService::No,
            None => WithService::Yes,
        };
        let text = documents.file_of(std::process::id(), with_service);
        files::replace(&path, &text).map_err(|error| Failure::io(path.display(), &error))?;
        Ok(Self {
            path,
            service_ports,
        })
    }

    /// The port that callers of the service by address use, if one Service port stands out:
    /// the only one, or, of a Service that is among the documents, the `written` one.
    pub(crate) fn service_port(&self, written: u16) -> Option<u16> {
        match self.service_ports.as_deref() {
            None => Some(written),
            Some([only]) => Some(*only),
            Some(_) => None,
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // If it cannot be removed, the next run with the name replaces it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a file may be replaced: only what a process that has ended has left behind.
fn may_replace(text: &str, is_alive: impl Fn(u32) -> bool) -> Result<(), String> {
    let owner = text
        .strip_prefix(MARK)
        .and_then(|rest| rest.lines().next()?.parse().ok());
    match owner {
        None => Err("the file has not been written by `weft run`".to_owned()),
        Some(pid) if is_alive(pid) => Err(format!("the workload runs already, as process {pid}")),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents() -> Documents {
        Documents {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            service: "apiVersion: v1\nkind: Service\nmetadata: { name: web, namespace: shop }\n\
                      spec: { selector: { app: web }, ports: [{ port: 80 }] }\n"
                .to_owned(),
            workload: "apiVersion: weft.dev/v1alpha1\nkind: Workload\n\
                       metadata: { name: web, namespace: shop, labels: { app: web } }\n\
                       spec: { address: 127.0.0.1, ports: [{ port: 80 }] }\n"
                .to_owned(),
        }
    }

    #[test]
    fn only_leftovers_are_replaced() {
        let config = tempfile::tempdir().unwrap();
        let documents = documents();
        let first = Registered::write(&documents, config.path()).unwrap();
        let second = Registered::write(&documents, config.path()).unwrap_err();
        let expect = format!(
            "the workload runs already, as process {}",
            std::process::id()
        );
        assert!(second.message.ends_with(&expect), "{second}");
        drop(first);
        assert_eq!(fs::read_dir(config.path()).unwrap().count(), 0);

        let left_behind = documents.file_of(4, WithService::Yes);
        assert_eq!(may_replace(&left_behind, |pid| pid != 4), Ok(()));
        assert!(
            may_replace("apiVersion: v1", |_| false)
                .unwrap_err()
                .contains("not been written")
        );
    }

    #[test]
    fn a_service_that_is_there_stays_the_only_one() {
        let config = tempfile::tempdir().unwrap();
        let documents = documents();
        let path = config.path().join(documents.file());
        // Of a process that does not exist: pids end below.
        let left_behind = documents.file_of(u32::MAX, WithService::Yes);
        fs::write(&path, left_behind).unwrap();
        let registered = Registered::write(&documents, config.path()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("kind: Service"), "{text}");
        assert_eq!(registered.service_port(8080), Some(8080));
        drop(registered);

        fs::write(config.path().join("services.yaml"), &documents.service).unwrap();
        let registered = Registered::write(&documents, config.path()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("kind: Service"), "{text}");
        let load = FileSource::new(config.path()).load();
        assert!(load.diagnostics.is_empty(), "{:?}", load.diagnostics);
        assert_eq!(registered.service_port(8080), Some(80));
    }
}
