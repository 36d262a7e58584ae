//! X.509 and SPIFFE for both halves of the mesh: no async runtime, no network.
//!
//! * [`spiffe`]: trust domains and SPIFFE IDs.
//! * [`csr`]: key pairs and signing requests (workload side), and their checks (CA side).
//! * [`ca`]: the certificate authority: a root, an intermediate, leaves.
//! * [`cert`]: a workload's certificate with its key, and when to renew it.
//! * [`bundle`]: the roots to trust, per trust domain.
//! * [`verify`]: the X.509-SVID rules as rustls verifiers.
//! * [`tls`]: rustls configurations: TLS 1.3, no resumption, post-quantum key exchange first.
//! * [`clock`]: the time source of the verifiers.

pub mod bundle;
pub mod ca;
pub mod cert;
pub mod clock;
pub mod csr;
pub mod spiffe;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod verify;
mod x509;

pub use bundle::{BundleError, BundleWarning, TrustBundle};
pub use ca::{Ca, CaError, CertChain};
pub use cert::{CertError, WorkloadCert};
pub use clock::SystemClock;
pub use csr::{Csr, CsrError, KeyPair};
pub use spiffe::{SpiffeError, SpiffeId, TrustDomain};
pub use verify::{PinnedRoot, SvidError, SvidVerifier};
