//! How many prefill tokens may go with the decodes of a step. A step lasts until its last token is computed, so every
//! prefill token makes all running streams wait; this limits a step with prefills to `STRETCH` times what its decodes
//! take alone, or more where more prompts wait than streams. Pure: fed by the engine with what each step took, asked by the policy.
//!
//! Two things are measured, both smoothed:
//!
//! - the time of a step of decodes only, for each number of rows. While prefills never pause it cannot be seen, so that now
//!   and then a step goes without them (`PROBE_EVERY`).
//! - the time that a prefill token adds, for each octave of the position it stands at: far into a long prompt it looks at so
//!   much that this costs more than its weights. It depends on how many there are, too: few are nearly free while the
//!   weights' way through the memory is what takes the time, many cost what their arithmetic costs. So it is measured where
//!   it is used: slow steps are believed soon and fast ones slowly, so that chunks grow in small steps, and small chunks say
//!   nothing of larger ones. Until it is known, a prefill without decodes stands in, and then an earlier octave.

use std::ops::Range;

/// Longest step with prefills, as a multiple of one without. Under 2 by what a step may last longer
/// than the one before.
const STRETCH: f64 = 1.5;
/// By how much it grows, at most, where more prompts wait for their first token than streams for their next: each of them has
/// somebody in front of a screen, too, and a step of few decodes is short.
const MOST_PROMPTS_TO_A_DECODE: f64 = 4.0;
/// Longest step where sequences in the middle of their answers are computed again, as those of a lost worker are: their clients
/// wait for the next token, too, and have waited longest.
const STRETCH_FOR_RESUMED: f64 = 8.0;
/// A chunk of less than this part of those that were measured does not make the others cheaper.
const COMPARABLE: f64 = 0.75;
/// And one of less than this part, as the last of a prompt may be, says nothing of them, unless all are so small for long.
const TELLING_PART: f64 = 0.25;
const FORGET: f64 = 1.0 / 64.0;
/// Prefill tokens that go with any decodes, so that prompts go on whatever was measured.
const FLOOR: usize = 2;
/// A step takes its time for the weights however few its tokens are: fewer than these, alone, say nothing of one.
const TELLING: usize = 16;
/// Positions of the first octave, and how many octaves there are: the last has no end.
const OCTAVE: usize = 256;
const OCTAVES: usize = 16;
/// Steps after which a decode's time is to be measured again: sequences have grown by as many tokens since, each of which
/// every step reads.
const STALE: u64 = 64;
/// Steps between two that go without prefills to measure.
const PROBE_EVERY: u64 = 32;
/// Weight of a new time in the average: some ten steps count.
const SMOOTH: f64 = 1.0 / 8.0;
/// Weight of a new time where the last one is stale.
const RENEW: f64 = 1.0 / 2.0;
/// Weight of a step that lasted longer than this many times what it should have taken: more than noise, the machine is another.
const ALARM: f64 = 1.0 / 2.0;
const ALARMING: f64 = 1.5;
/// A single step counts at most this many times what it should have taken: a process that was stopped for a second has told
/// nothing.
const OUTLIER: f64 = 4.0;
/// A prefill token adds at least this part of its step's decodes: a noisy measurement of nothing must not allow anything.
const LEAST: f64 = 1.0 / 4096.0;

/// A smoothed measurement.
#[derive(Clone, Copy, Debug)]
struct Measured {
    value: f64,
    /// The step it is from.
    step: u64,
}

/// Seconds that a prefill token adds to a step.
#[derive(Clone, Copy, Debug)]
struct Marginal {
    seconds: f64,
    /// How many tokens a step had when it was measured.
    tokens: f64,
}

/// What prefills may add to a step, and what is left of it while the step is filled.
#[derive(Clone, Copy, Debug)]
pub struct Spare {
    /// Less than none where more was added than it had room for.
    seconds: f64,
    /// Tokens that may be added whatever they take.
    floor: usize,
}

impl Spare {
    /// No stream waits for the step.
    pub const UNLIMITED: Self = Self { seconds: f64::INFINITY, floor: 0 };
    const NOTHING: Self = Self { seconds: 0.0, floor: 0 };

    /// Whether nothing can be added any more.
    pub fn is_used_up(&self) -> bool {
        self.seconds <= 0.0 && self.floor == 0
    }

    /// Takes half of its time out and returns that.
    pub fn split(&mut self) -> Self {
        self.seconds /= 2.0;
        Self { seconds: self.seconds, floor: 0 }
    }

    /// What is left of it when what was taken from `other` since it was `before` is taken from it, too.
    pub fn less_what_was_taken(self, before: Self, other: Self) -> Self {
        let (seconds, floor) = (before.seconds - other.seconds, before.floor - other.floor);
        Self { seconds: (self.seconds - seconds).max(0.0), floor: self.floor.saturating_sub(floor) }
    }

    /// The larger of the two.
    pub fn at_least(self, other: Self) -> Self {
        Self { seconds: self.seconds.max(other.seconds), floor: self.floor.max(other.floor) }
    }

    /// Puts back what [`Spare::split`] took.
    pub fn join(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.floor += other.floor;
    }
}

/// What is known of the machine.
#[derive(Debug)]
pub struct Pace {
    /// Seconds of a step of decodes only; the index is their number.
    decodes: Vec<Option<Measured>>,
    /// With decodes beside them, by the octave of the position.
    beside: [Option<Marginal>; OCTAVES],
    /// Seconds a token in steps of prefills only, likewise.
    alone: [Option<f64>; OCTAVES],
    steps: u64,
    /// The last step that measured decodes only.
    last_probe: Option<u64>,
}

impl Pace {
    /// Nothing is known yet of a machine that runs at most `slots` sequences.
    pub fn new(slots: usize) -> Self {
        Self {
            decodes: vec![None; slots + 1],
            beside: [None; OCTAVES],
            alone: [None; OCTAVES],
            steps: 0,
            last_probe: None,
        }
    }

    /// A step of `decodes` decodes took `seconds`, and computed the positions `prefills` beside them: one range for each
    /// prompt.
    pub fn observe(&mut self, decodes: usize, prefills: impl Iterator<Item = Range<usize>> + Clone, seconds: f64) {
        self.steps += 1;
        // A clock may stand still for a moment.
        let seconds = seconds.max(1e-9);
        match (decodes, prefills.clone().map(|chunk| chunk.len()).sum()) {
            (0, 0) => {}
            (_, 0) => self.observe_decodes(decodes, seconds),
            // The last few tokens of a prompt say nothing of a chunk's.
            (0, ..TELLING) | (_, ..FLOOR) => {}
            (0, tokens) => self.observe_alone(prefills, seconds / tokens as f64),
            (_, tokens) => self.observe_both(decodes, prefills, tokens as f64, seconds),
        }
    }

    fn observe_alone(&mut self, prefills: impl Iterator<Item = Range<usize>>, token: f64) {
        for chunk in prefills {
            let slot = &mut self.alone[octave(chunk.start)];
            *slot = Some(slot.map_or(token, |before| smooth(before, token, SMOOTH)));
        }
    }

    fn observe_decodes(&mut self, decodes: usize, seconds: f64) {
        self.last_probe = Some(self.steps);
        let Some(slot) = self.decodes.get_mut(decodes) else { return };
        let value = match *slot {
            Some(before) => {
                let weight = if self.steps - before.step < STALE { SMOOTH } else { RENEW };
                smooth(before.value, seconds, weight)
            }
            None => seconds,
        };
        *slot = Some(Measured { value, step: self.steps });
    }

    /// What was added counts for each chunk in proportion to what it was expected to add.
    fn observe_both(
        &mut self,
        decodes: usize,
        prefills: impl Iterator<Item = Range<usize>> + Clone,
        tokens: f64,
        seconds: f64,
    ) {
        let Some(alone) = self.decodes_take(decodes) else { return };
        let added = seconds.min(alone * STRETCH * OUTLIER) - alone;
        let mean = (added / tokens).max(alone * LEAST);
        let cost = |start| self.token_takes(start).unwrap_or(mean);
        let expected: f64 = prefills.clone().map(|chunk| chunk.len() as f64 * cost(chunk.start)).sum();
        let weight = if seconds > (alone + expected) * ALARMING { ALARM } else { SMOOTH };
        for chunk in prefills {
            let token = (added / expected * self.token_takes(chunk.start).unwrap_or(mean)).max(alone * LEAST);
            let slot = &mut self.beside[octave(chunk.start)];
            *slot =
                Some(slot.map_or(Marginal { seconds: token, tokens }, |before| before.learn(token, tokens, weight)));
        }
    }

    /// What may be added to a step of `decodes` decodes while `prompts` prompts wait for their first token; nothing when the
    /// decodes are to be measured alone.
    pub fn spare(&self, decodes: usize, prompts: usize) -> Spare {
        let to_a_decode = prompts as f64 / decodes.max(1) as f64;
        self.stretched(decodes, 1.0 + (STRETCH - 1.0) * to_a_decode.clamp(1.0, MOST_PROMPTS_TO_A_DECODE))
    }

    /// The same for prompts of sequences that are in the middle of their answers.
    pub fn spare_for_resumed(&self, decodes: usize) -> Spare {
        self.stretched(decodes, STRETCH_FOR_RESUMED)
    }

    fn stretched(&self, decodes: usize, stretch: f64) -> Spare {
        if decodes == 0 {
            return Spare::UNLIMITED;
        }
        if self.wants_probe(decodes) {
            return Spare::NOTHING;
        }
        let seconds = self.decodes_take(decodes).map_or(0.0, |alone| alone * (stretch - 1.0));
        Spare { seconds, floor: FLOOR }
    }

    /// Tokens from position `start` on that `spare` has room for.
    pub fn fits(&self, spare: &Spare, start: usize) -> usize {
        let tokens = match self.token_takes(start) {
            // Infinity becomes the greatest there is.
            Some(token) => (spare.seconds / token) as usize,
            None if spare.seconds == f64::INFINITY => usize::MAX,
            None => 0,
        };
        tokens.max(spare.floor)
    }

    /// `chunk` was added.
    pub fn charge(&self, spare: &mut Spare, chunk: Range<usize>) {
        let takes = self.token_takes(chunk.start).unwrap_or(0.0) * chunk.len() as f64;
        spare.seconds -= takes;
        spare.floor = spare.floor.saturating_sub(chunk.len());
    }

    /// Seconds that a token at `start` adds: measured; or that of an earlier octave, twice for each octave between, for what
    /// it looks at cannot have grown more than that; or that of a later one.
    fn token_takes(&self, start: usize) -> Option<f64> {
        let own = octave(start);
        let known = |at: usize| self.beside[at].map(|marginal| marginal.seconds).or(self.alone[at]);
        let earlier = || (0..own).rev().find_map(|at| Some(known(at)? * (1_u64 << (own - at)) as f64));
        known(own).or_else(earlier).or_else(|| (own + 1..OCTAVES).find_map(known))
    }

    fn wants_probe(&self, decodes: usize) -> bool {
        let is_fresh = |measured: &Measured| self.steps - measured.step < STALE;
        let is_known = self.decodes.get(decodes).is_some_and(|slot| slot.as_ref().is_some_and(is_fresh));
        !is_known && self.last_probe.is_none_or(|last| self.steps - last >= PROBE_EVERY)
    }

    /// Seconds of a step of so many decodes: measured, or else at least what fewer have taken, and the part of what more
    /// have taken (a row of many costs no more than a row of few).
    fn decodes_take(&self, decodes: usize) -> Option<f64> {
        let measured = |rows: usize| self.decodes.get(rows).copied().flatten().map(|measured| measured.value);
        if let Some(own) = measured(decodes) {
            return Some(own);
        }
        let fewer = (1..decodes).rev().find_map(measured);
        let more =
            (decodes + 1..self.decodes.len()).find_map(|rows| Some(measured(rows)? * decodes as f64 / rows as f64));
        fewer.into_iter().chain(more).reduce(f64::max)
    }
}

impl Marginal {
    /// With a step of `tokens` tokens that took `seconds` each.
    fn learn(self, seconds: f64, tokens: f64, weight: f64) -> Self {
        let towards = |before: f64, now: f64, weight: f64| before + (now - before) * weight;
        if tokens < self.tokens * TELLING_PART {
            return Self { tokens: towards(self.tokens, tokens, FORGET), ..self };
        }
        let says_nothing = seconds < self.seconds && tokens < self.tokens * COMPARABLE;
        let seconds = if says_nothing { self.seconds } else { towards(self.seconds, seconds, weight) };
        Self { seconds, tokens: towards(self.tokens, tokens, weight) }
    }
}

/// The octave of a position: the first [`OCTAVE`] positions, as many after them, then twice as many each time.
fn octave(position: usize) -> usize {
    ((usize::BITS - (position / OCTAVE).leading_zeros()) as usize).min(OCTAVES - 1)
}

/// A new value among earlier ones.
fn smooth(before: f64, now: f64, weight: f64) -> f64 {
    before + (now.clamp(before / OUTLIER, before * OUTLIER) - before) * weight
}
