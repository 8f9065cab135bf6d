//! Whose turn it is: deficit round robin over the share keys (Shreedhar and Varghese, 1995), counted in tokens computed,
//! prefill and decode alike; first in, first out within a key. A key has a credit that what it computes is taken from. Who
//! has credit left goes before who has not, in rotation; when all have used theirs up, a new round gives each [`QUANTUM`]
//! more. So one user's queue never stands before another user's next group, and a user with few long
//! prompts gets no more than one with many short ones. Used by the policy alone.
//!
//! Bound: keys of groups that are here, and ids of groups that wait. A key that comes back begins anew.

use std::collections::{BTreeMap, BTreeSet};

use super::GroupId;

/// Tokens a key may compute in a round: about one long step, so that a turn is not much shorter than what is charged for it.
const QUANTUM: i64 = 256;
/// Tokens that are held against a key at most: who computed alone for an hour does not wait for an hour afterwards.
const WORST: i64 = -64 * QUANTUM;

#[derive(Debug)]
struct Account {
    /// Groups admitted.
    groups: usize,
    /// Groups of which something waits to start.
    waiting: BTreeSet<GroupId>,
    /// Tokens it may still compute in this round.
    credit: i64,
    /// The turn it had last.
    last_turn: u64,
    /// Whether it has computed since the last settlement.
    is_charged: bool,
}

/// The lesser goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Rounds until it has credit.
    rounds: i64,
    last_turn: u64,
}

impl Account {
    fn rank(&self) -> Rank {
        // The rounds in which credit + rounds * QUANTUM becomes positive.
        let rounds = if self.credit > 0 { 0 } else { -self.credit / QUANTUM + 1 };
        Rank { rounds, last_turn: self.last_turn }
    }
}

/// The accounts of all keys that have groups.
#[derive(Debug, Default)]
pub(super) struct Shares {
    accounts: BTreeMap<u64, Account>,
    turns: u64,
}

impl Shares {
    /// A group of the key is admitted and waits. A new key has a full credit and the next turn.
    pub(super) fn admit(&mut self, key: u64, group: GroupId) {
        let new = Account { groups: 0, waiting: BTreeSet::new(), credit: QUANTUM, last_turn: 0, is_charged: false };
        let account = self.accounts.entry(key).or_insert(new);
        account.groups += 1;
        account.waiting.insert(group);
    }

    /// The group is gone.
    pub(super) fn finish(&mut self, key: u64, group: GroupId) {
        let Some(account) = self.accounts.get_mut(&key) else { return };
        account.waiting.remove(&group);
        account.groups -= 1;
        if account.groups == 0 {
            self.accounts.remove(&key);
        }
    }

    /// Something of the group has to start again; it stands where its arrival put it.
    pub(super) fn wait(&mut self, key: u64, group: GroupId) {
        if let Some(account) = self.accounts.get_mut(&key) {
            account.waiting.insert(group);
        }
    }

    /// All of the group has started.
    pub(super) fn leave(&mut self, key: u64, group: GroupId) {
        if let Some(account) = self.accounts.get_mut(&key) {
            account.waiting.remove(&group);
        }
    }

    /// Groups of which something waits to start.
    pub(super) fn waiting(&self) -> usize {
        self.accounts.values().map(|account| account.waiting.len()).sum()
    }

    /// Whether nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        self.accounts.values().all(|account| account.waiting.is_empty())
    }

    /// The first group that `is_ready`, of the key whose turn it is among those that have one.
    pub(super) fn next(&self, is_ready: impl Fn(GroupId) -> bool) -> Option<GroupId> {
        let first = |account: &Account| account.waiting.iter().copied().find(|group| is_ready(*group));
        let ready = self.accounts.values().filter_map(|account| Some((account.rank(), first(account)?)));
        ready.min_by_key(|(rank, _)| *rank).map(|(_, group)| group)
    }

    /// Where the key stands among the others.
    pub(super) fn rank(&self, key: u64) -> Rank {
        let none = Rank { rounds: i64::MAX, last_turn: u64::MAX };
        self.accounts.get(&key).map_or(none, Account::rank)
    }

    /// The key has had its turn.
    pub(super) fn served(&mut self, key: u64) {
        self.turns += 1;
        if let Some(account) = self.accounts.get_mut(&key) {
            account.last_turn = self.turns;
        }
    }

    /// `tokens` of the key are computed.
    pub(super) fn charge(&mut self, key: u64, tokens: usize) {
        if let Some(account) = self.accounts.get_mut(&key) {
            let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
            account.credit = account.credit.saturating_sub(tokens).max(WORST);
            account.is_charged = true;
        }
    }

    /// The step is over: when nobody who computed in it or wants to has credit left, new rounds begin until somebody has. A
    /// group that waits wants to compute if it `is_open`: who does not read holds up no round.
    pub(super) fn settle(&mut self, is_open: impl Fn(GroupId) -> bool) {
        let wants = |account: &&Account| account.is_charged || account.waiting.iter().any(|group| is_open(*group));
        let rounds = self.accounts.values().filter(wants).map(|account| account.rank().rounds).min().unwrap_or(0);
        for account in self.accounts.values_mut() {
            account.credit = (account.credit + rounds * QUANTUM).min(QUANTUM);
            account.is_charged = false;
        }
    }
}
