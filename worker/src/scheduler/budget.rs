//! Slots and KV tokens: who holds how much. [`Room`] is proof of a reservation and cannot be copied, so what was reserved
//! once is given back once. Used by the policy alone.

/// What the worker may hold and compute at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Sequences that hold KV at once; at least 1.
    pub slots: usize,
    /// Tokens of KV over all sequences.
    pub kv_tokens: u64,
    /// Groups admitted at once, running and waiting.
    pub groups: usize,
    /// Tokens computed in one step; at least 1.
    pub step_tokens: usize,
}

/// One slot with this many KV tokens.
#[derive(Debug)]
#[must_use = "dropping a room without giving it back leaks its slot and its KV"]
pub(super) struct Room(u64);

/// Slots and KV in use.
#[derive(Debug)]
pub(super) struct Budget {
    slots: usize,
    kv_tokens: u64,
    used_slots: usize,
    used_kv: u64,
}

impl Budget {
    pub(super) fn new(bounds: &Bounds) -> Self {
        Self { slots: bounds.slots, kv_tokens: bounds.kv_tokens, used_slots: 0, used_kv: 0 }
    }

    /// Whether a sequence of `tokens` could be held if nothing else was.
    pub(super) fn could_ever_hold(&self, tokens: usize) -> bool {
        tokens as u64 <= self.kv_tokens
    }

    /// Reserves a slot and `tokens` of KV.
    pub(super) fn take(&mut self, tokens: usize) -> Option<Room> {
        let tokens = tokens as u64;
        if self.used_slots == self.slots || tokens > self.kv_tokens - self.used_kv {
            return None;
        }
        self.used_slots += 1;
        self.used_kv += tokens;
        Some(Room(tokens))
    }

    /// Keeps the slot, gives back what is reserved beyond `tokens`.
    pub(super) fn shrink(&mut self, room: &mut Room, tokens: usize) {
        let kept = room.0.min(tokens as u64);
        self.used_kv -= room.0 - kept;
        room.0 = kept;
    }

    /// Gives everything back.
    pub(super) fn give(&mut self, room: Room) {
        self.used_slots -= 1;
        self.used_kv -= room.0;
    }

    pub(super) fn used_slots(&self) -> usize {
        self.used_slots
    }

    pub(super) fn used_kv(&self) -> u64 {
        self.used_kv
    }
}
