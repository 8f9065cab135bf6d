//! Whose turn it is: first in, first out within a share key, round robin over the keys, so that one user's queue never
//! stands before another user's next group. Used by the policy alone.

use std::collections::{HashMap, VecDeque};

use super::GroupId;

/// Groups of which something still has to start, by share key.
#[derive(Debug, Default)]
pub(super) struct Shares {
    turns: VecDeque<u64>,
    queues: HashMap<u64, VecDeque<GroupId>>,
}

impl Shares {
    pub(super) fn push(&mut self, key: u64, group: GroupId) {
        let queue = self.queues.entry(key).or_default();
        if queue.is_empty() {
            self.turns.push_back(key);
        }
        queue.push_back(group);
    }

    /// The first group that `is_ready`, of the key whose turn it is or else of the next.
    pub(super) fn next(&self, is_ready: impl Fn(GroupId) -> bool) -> Option<GroupId> {
        self.turns.iter().flat_map(|key| &self.queues[key]).copied().find(|group| is_ready(*group))
    }

    /// The key has had its turn.
    pub(super) fn served(&mut self, key: u64) {
        if let Some(at) = self.turns.iter().position(|turn| *turn == key) {
            self.turns.remove(at);
            self.turns.push_back(key);
        }
    }

    /// Nothing of the group has to start any more.
    pub(super) fn remove(&mut self, key: u64, group: GroupId) {
        let Some(queue) = self.queues.get_mut(&key) else { return };
        queue.retain(|queued| *queued != group);
        if queue.is_empty() {
            self.queues.remove(&key);
            self.turns.retain(|turn| *turn != key);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}
