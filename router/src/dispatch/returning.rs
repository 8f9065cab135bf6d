//! A worker that was only out of reach: it comes back in the same life, and what it had computed for a group is still in its
//! cache. How long a group waits for it before it goes elsewhere, and what it looks for. Pure.

use std::sync::Arc;
use std::time::Duration;

use shoal_common::ids::{Incarnation, Name};

use super::setbacks::Loss;
use crate::fleet::{Replica, Snapshot};

/// A worker notices the broken connection when the router does, and dials at once: who is not back by then is away.
const BACK_WITHIN: Duration = Duration::from_millis(500);

/// Whom a group waits for, once.
#[derive(Clone, Debug)]
pub(super) struct Returning {
    worker: Name,
    incarnation: Incarnation,
    /// How long; zero: it is preferred if it is back already.
    pub(super) patience: Duration,
}

impl Returning {
    /// `replica` was lost with `context` tokens of a group; `others` are there.
    pub(super) fn of(replica: &Replica, loss: Loss, context: u64, others: &[Arc<Replica>]) -> Option<Self> {
        if loss != Loss::OutOfReach {
            return None;
        }
        let of_model = others.iter().filter(|other| other.model.card.name == replica.model.card.name);
        let speed = of_model.filter_map(|other| other.status).map(|status| status.tokens_per_second).max();
        let (worker, incarnation) = (replica.worker.clone(), replica.incarnation);
        Some(Self { worker, incarnation, patience: patience(context, speed.unwrap_or(0)) })
    }

    /// The snapshot as if nobody else were there.
    pub(super) fn alone(&self, snapshot: &Snapshot) -> Snapshot {
        let is_it = |replica: &&Arc<Replica>| replica.is(&self.worker, self.incarnation);
        Snapshot { replicas: snapshot.replicas.iter().filter(is_it).cloned().collect(), ..Snapshot::default() }
    }
}

/// It pays to wait where computing the tokens again elsewhere takes longer than the wait.
fn patience(context: u64, tokens_per_second: u32) -> Duration {
    let takes = context.saturating_mul(1000).checked_div(tokens_per_second.into()).map(Duration::from_millis);
    takes.filter(|takes| *takes > BACK_WITHIN).map_or(Duration::ZERO, |_| BACK_WITHIN)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::fleet::tests::roster_of;

    #[test]
    fn a_long_context_waits_for_its_worker_and_a_short_one_does_not() {
        assert_eq!(patience(2_000, 1_000), BACK_WITHIN);
        assert_eq!(patience(400, 1_000), Duration::ZERO);
        assert_eq!(patience(u64::MAX, 1), BACK_WITHIN);
        assert_eq!(patience(2_000, 0), Duration::ZERO, "nobody there has shown how fast it is");
    }

    #[test]
    fn only_the_same_life_of_a_worker_that_was_out_of_reach_is_waited_for() {
        let before = roster_of(&["a", "b"], Instant::now()).snapshot();
        let lost = |loss| Returning::of(&before.replicas[1], loss, 2_000, &before.replicas);
        for loss in [Loss::Died, Loss::Broken, Loss::Parted, Loss::Misbehaved] {
            assert!(lost(loss).is_none(), "{loss:?}");
        }
        let returning = lost(Loss::OutOfReach).unwrap();
        let alone = returning.alone(&before);
        assert_eq!(alone.replicas.iter().map(|replica| replica.worker.as_str()).collect::<Vec<_>>(), ["b"]);
        // Another life of the same name.
        let restarted = roster_of(&["b"], Instant::now()).snapshot();
        assert!(returning.alone(&restarted).replicas.is_empty());
    }
}
