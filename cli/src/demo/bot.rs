//! The traffic bot: a steady 25 requests per second to `web`, in a fixed mix. Open loop: a slow
//! answer does not delay the next request.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;

use super::apps::{Peer, SEEDED};

/// Requests per second.
pub(crate) const RATE: usize = 25;

/// What the bot does at one tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Reads an account.
    Account,
    /// Reads a post.
    Post,
    /// Stores an attachment.
    Attachment,
    /// Creates, changes, reads and deletes an account of its own: four requests in sequence.
    Lifecycle,
    /// Nothing: makes up for the other requests of a life cycle.
    Pause,
}

/// One second of traffic: 12 requests for accounts, 9 for posts, 4 for attachments.
const SECOND: [Step; RATE] = {
    use Step::{Account, Attachment, Lifecycle, Pause, Post};
    [
        Account, Post, Lifecycle, Attachment, Post, Pause, Account, Post, Account, Pause, Post,
        Attachment, Account, Post, Pause, Account, Attachment, Post, Account, Post, Account, Post,
        Attachment, Account, Post,
    ]
};

/// One request: method, path, body.
type Shot = (Method, String, &'static str);

/// The requests of one tick, to be sent in sequence.
fn shots(tick: u64, rng: &mut impl Rng) -> Vec<Shot> {
    let second = tick / RATE as u64;
    let slot = usize::try_from(tick % RATE as u64).unwrap_or_default();
    let existing = rng.random_range(1..=SEEDED);
    match SECOND[slot] {
        Step::Account => vec![(Method::GET, format!("/accounts/{existing}"), "")],
        Step::Post => vec![(Method::GET, format!("/posts/{existing}"), "")],
        Step::Attachment => {
            let name = format!("/attachments/picture-{}", existing % 32);
            vec![(Method::PUT, name, "not really a picture")]
        }
        Step::Lifecycle => {
            let path = format!("/accounts/visitor-{second}");
            let visitor = r#"{"name":"Visitor"}"#;
            vec![
                (Method::POST, path.clone(), visitor),
                (
                    Method::PUT,
                    path.clone(),
                    r#"{"name":"Visitor","mood":"happy"}"#,
                ),
                (Method::GET, path.clone(), ""),
                (Method::DELETE, path, ""),
            ]
        }
        Step::Pause => Vec::new(),
    }
}

/// Sends traffic until the process ends. Failures are what the mesh's metrics are for: they are
/// not retried. At most 64 visits are in flight; more than that are skipped.
///
/// # Errors
///
/// None at present.
pub(crate) async fn run(outbound: SocketAddr) -> io::Result<()> {
    let web = Arc::new(Peer::new("web.blog", outbound));
    let visits = Arc::new(Semaphore::new(MAX_VISITS));
    let mut rng = SmallRng::from_os_rng();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE as u32);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for tick in 0.. {
        ticks.tick().await;
        let shots = shots(tick, &mut rng);
        let Ok(permit) = Arc::clone(&visits).try_acquire_owned() else {
            continue;
        };
        let web = Arc::clone(&web);
        tokio::spawn(async move {
            for (method, path, body) in shots {
                let body = Bytes::from_static(body.as_bytes());
                let _ = web.call(method, &path, HeaderMap::new(), body).await;
            }
            drop(permit);
        });
    }
    Ok(())
}

const MAX_VISITS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_the_mix_and_the_rate() {
        let mut rng = SmallRng::seed_from_u64(3);
        let second: Vec<_> = (0..RATE as u64)
            .flat_map(|tick| shots(tick, &mut rng))
            .collect();
        let count = |prefix: &str| {
            second
                .iter()
                .filter(|(_, path, _)| path.starts_with(prefix))
                .count()
        };
        assert_eq!(second.len(), RATE);
        assert_eq!(
            (
                count("/accounts/"),
                count("/posts/"),
                count("/attachments/")
            ),
            (12, 9, 4)
        );
        let writes = second
            .iter()
            .filter(|(method, ..)| *method == Method::DELETE)
            .count();
        assert_eq!(writes, 1);
    }

    #[test]
    fn life_cycles_do_not_share_accounts() {
        let mut rng = SmallRng::seed_from_u64(3);
        let at = SECOND
            .iter()
            .position(|step| *step == Step::Lifecycle)
            .unwrap() as u64;
        let first = shots(at, &mut rng);
        let second = shots(at + RATE as u64, &mut rng);
        assert_ne!(first[0].1, second[0].1);
        assert!(first.iter().all(|(_, path, _)| *path == first[0].1));
    }
}
