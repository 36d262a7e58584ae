//! The control plane inside this process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use weft_control::app::{App, Options};
use weft_control::token::{Request, Tokens};

use crate::output::{Exit, Failure};

/// A running control plane. Dropping it leaves it running until the runtime ends.
pub(crate) struct Control {
    /// Where sidecars connect.
    pub address: SocketAddr,
    /// Where `/metrics` and `/debug/*` are.
    pub admin: SocketAddr,
    /// SHA-256 of the root certificate.
    pub fingerprint: [u8; 32],
    /// The trust domain of the CA.
    pub trust_domain: String,
    tokens: Tokens,
    task: JoinHandle<Result<(), String>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Control {
    /// Starts a control plane on a configuration directory. `data` keeps its CA and its tokens;
    /// none keeps them in memory.
    ///
    /// # Errors
    ///
    /// An address is taken, or the data directory cannot be used.
    pub(crate) async fn start(
        config: PathBuf,
        data: Option<PathBuf>,
        listen: SocketAddr,
        admin: SocketAddr,
    ) -> Result<Self, Failure> {
        let options = Options {
            data,
            listen,
            admin,
            ..Options::new(config)
        };
        let bound = App::bind(options).await.map_err(|error| failed(&error))?;
        let (stop, stopped) = oneshot::channel();
        let (address, admin) = (bound.address, bound.admin_address);
        let (fingerprint, tokens) = (bound.fingerprint, bound.tokens.clone());
        let trust_domain = bound.trust_domain().to_string();
        let shutdown = async {
            // Also when the other side is gone: nobody is left to stop it otherwise.
            let _ = stopped.await;
        };
        let task =
            tokio::spawn(
                async move { bound.run(shutdown).await.map_err(|error| error.to_string()) },
            );
        Ok(Self {
            address,
            admin,
            fingerprint,
            trust_domain,
            tokens,
            task,
            stop: Some(stop),
        })
    }

    /// Makes a join token for one workload, good for ten minutes.
    ///
    /// # Errors
    ///
    /// The names make no identity, or the token cannot be stored.
    pub(crate) fn token(&self, namespace: &str, service_account: &str) -> Result<String, Failure> {
        join_token(&self.tokens, namespace, service_account)
    }

    /// Waits for the control plane to end, which it does not do by itself unless it fails.
    /// Cancel safe.
    pub(crate) async fn ended(&mut self) -> Result<(), Failure> {
        let ended = match (&mut self.task).await {
            Ok(ended) => ended,
            Err(error) => Err(error.to_string()),
        };
        ended.map_err(|error| Failure::new(Exit::Problems, format!("control plane: {error}")))
    }

    /// Ends it and waits for that, up to 5 seconds.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        let _ = tokio::time::timeout(Duration::from_secs(5), &mut self.task).await;
        self.task.abort();
    }
}

/// Makes a join token for one workload, good for ten minutes.
///
/// # Errors
///
/// The names make no identity, or the token cannot be stored.
pub(crate) fn join_token(
    tokens: &Tokens,
    namespace: &str,
    service_account: &str,
) -> Result<String, Failure> {
    let ttl = Duration::from_secs(600);
    let request = Request {
        namespace,
        service_account,
        ttl,
        reusable: false,
    };
    tokens
        .create(&request, SystemTime::now())
        .map_err(|error| failed(&error))
}

/// A failure of the control plane with the exit code of its cause.
pub(crate) fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    let mut message = error.to_string();
    let mut exit = Exit::Problems;
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied) {
            exit = Exit::NotPermitted;
        }
        if !message.contains(&error.to_string()) {
            message = format!("{message}: {error}");
        }
        cause = error.source();
    }
    Failure::new(exit, message)
}
