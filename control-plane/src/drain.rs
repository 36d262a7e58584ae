//! The acknowledged drain: when may a workload that shuts down be sure that nobody calls it?
//!
//! A [`Drain`] begins when a workload's endpoints are published as draining, and knows which
//! streams were open then. Each of them answers when its client has answered a response from
//! that snapshot or a later one for every endpoint list that holds the workload, or when it
//! ends. [`Drain::finished`] ends with the last of them, or with the deadline.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::cache::Workload;
use crate::model::Mesh;
use crate::translate;

/// How long a sidecar that shuts down waits for the others at most.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// How many sidecars that did not answer are named in the log.
const MAX_NAMED: usize = 10;

/// One workload that shuts down. Shared; its state is behind a lock that is held shortly.
#[derive(Debug)]
pub struct Drain {
    workload: Workload,
    generation: u64,
    /// As it was when the drain began.
    mesh: Arc<Mesh>,
    state: watch::Sender<State>,
}

#[derive(Debug)]
struct State {
    /// The streams that have not answered yet, by their number.
    waiting: HashMap<u64, Arc<Workload>>,
    overtaken: bool,
}

/// How a drain ended; the values of the label `result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// Every sidecar that called the workload has answered, or is gone.
    Acknowledged,
    /// Some had not at the deadline.
    TimedOut,
    /// The workload has connected again.
    Overtaken,
}

impl Finished {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 3] = [Self::Acknowledged, Self::TimedOut, Self::Overtaken];

    /// The label value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Acknowledged => "acknowledged",
            Self::TimedOut => "timed_out",
            Self::Overtaken => "overtaken",
        }
    }
}

impl Drain {
    /// A drain that was published in the snapshot `generation` of `mesh` while `waiting`
    /// were the open streams.
    #[must_use]
    pub fn new(
        workload: Workload,
        generation: u64,
        mesh: Arc<Mesh>,
        waiting: HashMap<u64, Arc<Workload>>,
    ) -> Self {
        let state = State {
            waiting,
            overtaken: false,
        };
        Self {
            workload,
            generation,
            mesh,
            state: watch::Sender::new(state),
        }
    }

    /// Who shuts down.
    #[must_use]
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// The first snapshot in which its endpoints drain.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the workload is an endpoint of that cluster.
    #[must_use]
    pub fn concerns(&self, cluster: &str) -> bool {
        let (namespace, name) = &self.workload;
        translate::has_endpoint(&self.mesh, cluster, namespace, name)
    }

    /// The stream of that number calls the workload no more.
    pub fn answered(&self, stream: u64) {
        self.state.send_if_modified(|state| {
            state.waiting.remove(&stream).is_some() && state.waiting.is_empty()
        });
    }

    /// The workload is back: there is nothing to wait for.
    pub fn overtaken(&self) {
        self.state.send_if_modified(|state| {
            state.overtaken = true;
            true
        });
    }

    /// Waits until all have answered, for `deadline` at most.
    pub async fn finished(&self, deadline: Duration) -> Finished {
        let mut state = self.state.subscribe();
        let over = state.wait_for(|state| state.overtaken || state.waiting.is_empty());
        match tokio::time::timeout(deadline, over).await {
            Ok(Ok(state)) if state.overtaken => Finished::Overtaken,
            Ok(_) => Finished::Acknowledged,
            Err(_) => Finished::TimedOut,
        }
    }

    /// Who has not answered, as `namespace/workload`: the first ten and how many more.
    #[must_use]
    pub fn silent(&self) -> String {
        let state = self.state.borrow();
        let waiting = state.waiting.values();
        let mut names: Vec<String> = waiting
            .map(|workload| format!("{}/{}", workload.0, workload.1))
            .collect();
        drop(state);
        names.sort_unstable();
        let more = names.len().saturating_sub(MAX_NAMED);
        names.truncate(MAX_NAMED);
        let mut text = names.join(", ");
        if more > 0 {
            text += &format!(" and {more} more");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(waiting: u64) -> Drain {
        let waiting = (0..waiting)
            .map(|n| (n, Arc::new(("blog".to_owned(), format!("web-{n:02}")))))
            .collect();
        let workload = ("blog".to_owned(), "post".to_owned());
        Drain::new(workload, 7, Arc::default(), waiting)
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_the_last_answer_or_the_deadline_or_the_return() {
        assert_eq!(
            drain(0).finished(DRAIN_DEADLINE).await,
            Finished::Acknowledged
        );
        let two = drain(2);
        two.answered(0);
        two.answered(0);
        two.answered(9);
        assert_eq!(two.finished(DRAIN_DEADLINE).await, Finished::TimedOut);
        assert_eq!(two.silent(), "blog/web-01");
        let (finished, ()) = tokio::join!(two.finished(DRAIN_DEADLINE), async { two.answered(1) });
        assert_eq!(finished, Finished::Acknowledged);
        let back = drain(2);
        let (finished, ()) = tokio::join!(back.finished(DRAIN_DEADLINE), async {
            back.overtaken();
        });
        assert_eq!(finished, Finished::Overtaken);
    }

    #[test]
    fn few_of_those_that_are_silent_are_named() {
        let silent = drain(12).silent();
        assert!(silent.starts_with("blog/web-00, blog/web-01, "), "{silent}");
        assert!(silent.ends_with("blog/web-09 and 2 more"), "{silent}");
    }
}
