//! How many prefill tokens may go with the decodes of a step. A step lasts until its last token is computed, so every
//! prefill token makes all running streams wait; this limits a step with prefills to `STRETCH` times what its decodes
//! take alone. Pure: fed by the engine with what each step took, asked by the policy.
//!
//! Two things are measured, both smoothed:
//!
//! - the time of a step of decodes only, for each number of rows. While prefills never pause it cannot be seen, so that now
//!   and then a step goes without them (`PROBE_EVERY`).
//! - the time that a prefill token adds. It depends on how many there are: few are nearly free while the weights' way
//!   through the memory is what takes the time, many cost what their arithmetic costs. So it is measured where it is used:
//!   slow steps are believed soon and fast ones slowly, so that chunks grow in small steps, and small chunks say nothing of
//!   larger ones. Until it is known, a prefill without decodes stands in, which can only be dearer.

/// Longest step with prefills, as a multiple of one without. Under 2 by what a step may last longer than the one before.
const STRETCH: f64 = 1.85;
/// A chunk of less than this part of those that were measured does not make the others cheaper.
const COMPARABLE: f64 = 0.75;
/// Prefill tokens that go with any decodes, so that prompts go on whatever was measured. Few: far into a long prompt a token
/// looks at so much that it costs as much as a small model's decode.
const FLOOR: usize = 8;
/// A step takes its time for the weights however few its tokens are: fewer than these, alone, say nothing of one.
const TELLING: usize = 16;
/// Steps after which a decode's time is to be measured again: sequences have grown by as many tokens since.
const STALE: u64 = 256;
/// Steps between two that go without prefills to measure.
const PROBE_EVERY: u64 = 32;
/// Weight of a new time in the average: some ten steps count.
const SMOOTH: f64 = 1.0 / 8.0;
/// Weight of a step that lasted longer than this many times its decodes: more than noise, the machine or the prompt's depth
/// is another.
const ALARM: f64 = 1.0 / 2.0;
const ALARMING: f64 = 2.2;
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

/// What is known of the machine.
#[derive(Debug)]
pub struct Pace {
    /// Seconds of a step of decodes only; the index is their number.
    decodes: Vec<Option<Measured>>,
    /// With decodes beside them.
    beside: Option<Marginal>,
    /// Seconds a token in steps of prefills only.
    alone: Option<f64>,
    steps: u64,
    /// The last step that measured decodes only.
    last_probe: Option<u64>,
}

impl Pace {
    /// Nothing is known yet of a machine that runs at most `slots` sequences.
    pub fn new(slots: usize) -> Self {
        Self { decodes: vec![None; slots + 1], beside: None, alone: None, steps: 0, last_probe: None }
    }

    /// A step of `decodes` decodes and `prefill` prefill tokens took `seconds`.
    pub fn observe(&mut self, decodes: usize, prefill: usize, seconds: f64) {
        self.steps += 1;
        // A clock may stand still for a moment.
        let seconds = seconds.max(1e-9);
        match (decodes, prefill) {
            (0, 0) => {}
            (_, 0) => self.observe_decodes(decodes, seconds),
            // The last few tokens of a prompt say nothing of a chunk's.
            (0, ..TELLING) | (_, ..FLOOR) => {}
            (0, _) => {
                let token = seconds / prefill as f64;
                self.alone = Some(self.alone.map_or(token, |before| smooth(before, token)));
            }
            _ => self.observe_both(decodes, prefill, seconds),
        }
    }

    fn observe_decodes(&mut self, decodes: usize, seconds: f64) {
        self.last_probe = Some(self.steps);
        let Some(slot) = self.decodes.get_mut(decodes) else { return };
        let value = match *slot {
            Some(before) if self.steps - before.step <= STALE => smooth(before.value, seconds),
            _ => seconds,
        };
        *slot = Some(Measured { value, step: self.steps });
    }

    fn observe_both(&mut self, decodes: usize, prefill: usize, seconds: f64) {
        let Some(alone) = self.decodes_take(decodes) else { return };
        let tokens = prefill as f64;
        let added = seconds.min(alone * STRETCH * OUTLIER) - alone;
        let token = (added / tokens).max(alone * LEAST);
        let before = match (self.beside, self.alone) {
            (Some(before), _) => before,
            (None, Some(seconds)) => Marginal { seconds, tokens },
            (None, None) => Marginal { seconds: token, tokens },
        };
        let weight = if seconds > alone * ALARMING { ALARM } else { SMOOTH };
        let towards = |before: f64, now: f64| before + (now - before) * weight;
        let says_nothing = token < before.seconds && tokens < before.tokens * COMPARABLE;
        let seconds = if says_nothing { before.seconds } else { towards(before.seconds, token) };
        self.beside = Some(Marginal { seconds, tokens: towards(before.tokens, tokens) });
    }

    /// Prefill tokens that may go with `decodes` decodes in the next step; 0 when they are to be measured alone.
    pub fn prefill_tokens(&self, decodes: usize) -> usize {
        if decodes == 0 {
            return usize::MAX;
        }
        if self.wants_probe(decodes) {
            return 0;
        }
        let Some(alone) = self.decodes_take(decodes) else { return FLOOR };
        let spare = alone * (STRETCH - 1.0);
        let tokens = match (self.beside, self.alone) {
            (Some(beside), _) => spare / beside.seconds,
            (None, Some(token)) => spare / token,
            (None, None) => 0.0,
        };
        (tokens as usize).max(FLOOR)
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

/// A new value among earlier ones.
fn smooth(before: f64, now: f64) -> f64 {
    before + (now.clamp(before / OUTLIER, before * OUTLIER) - before) * SMOOTH
}
