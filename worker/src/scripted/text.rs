//! What the scripted engine answers: logits as a hash of the adapter and the tokens before, and the oracle that says the same
//! without an engine. Called by the backend and by tests; exact f32 values, the same on every machine.

use shoal_common::config::Script;
use shoal_common::ids::{Generation, TokenId};

use super::tokenizer::{EOS, VOCAB};

/// What can be said: printable ASCII and the line feed, so that every answer is readable and valid UTF-8.
const ALPHABET: usize = 96;
/// Candidates of a step, on logits that fall from about 6 to about -5.
const CANDIDATES: usize = 16;
/// Distance from one candidate to the next in the alphabet: has no divisor in common with its size, so all are distinct.
const STRIDE: usize = 37;
/// The best candidate's logit, and the fall from one to the next.
const BEST: f32 = 6.0;
const FALL: f32 = 0.75;
/// Largest amount that the hash adds to a candidate: leaves a margin of more than 0.5 between neighbours.
const JITTER: f32 = 0.25;
/// EOS in a step that may end: above every candidate by more than 1.7.
const ENDING: f32 = 8.0;
/// Every other token: finite, and out of reach at any temperature.
const SILENT: f32 = -60.0;

/// Tells the bytes of an adapter's generation from tokens.
const ADAPTER: u64 = 1 << 32;

/// Hash of a sequence's adapter and of all its tokens so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State(u64);

impl State {
    pub(super) fn begin(script: &Script, adapter: Option<Generation>) -> Self {
        let base = Self(mix(script.salt ^ 0x5348_4f41_4c00_0001));
        let bytes = adapter.iter().flat_map(|generation| generation.0.0);
        bytes.fold(base, |state, byte| state.with(ADAPTER | u64::from(byte)))
    }

    pub(super) fn after(self, token: TokenId) -> Self {
        self.with(u64::from(token.0))
    }

    fn with(self, value: u64) -> Self {
        Self(mix(self.0.rotate_left(17) ^ value))
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014), with its increment.
fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Overwrites a row, `[VOCAB]`, with the logits that follow `state`.
pub(super) fn write_logits(row: &mut [f32], state: State, script: &Script) {
    row.fill(SILENT);
    let hash = mix(state.0);
    let first = (hash % ALPHABET as u64) as usize;
    for rank in 0..CANDIDATES {
        let letter = (first + rank * STRIDE) % ALPHABET;
        let byte = if letter == ALPHABET - 1 { usize::from(b'\n') } else { usize::from(b' ') + letter };
        let jitter = (mix(hash ^ rank as u64) >> 56) as f32 / 256.0 * JITTER;
        row[byte] = BEST - FALL * rank as f32 + jitter;
    }
    let ends = script.eos_every.is_some_and(|every| mix(!hash).is_multiple_of(u64::from(every.get())));
    if ends {
        row[EOS.index()] = ENDING;
    }
}

/// The logits that follow `history`, `[VOCAB]`: what the engine must compute with `adapter`.
pub fn logits(script: &Script, adapter: Option<Generation>, history: &[TokenId]) -> Vec<f32> {
    let state = history.iter().fold(State::begin(script, adapter), |state, &token| state.after(token));
    let mut row = vec![0.0; VOCAB];
    write_logits(&mut row, state, script);
    row
}

/// The `count` tokens that greedy decoding with `adapter` gives after `prompt`, going on past EOS.
pub fn greedy(script: &Script, adapter: Option<Generation>, prompt: &[TokenId], count: usize) -> Vec<TokenId> {
    let mut state = prompt.iter().fold(State::begin(script, adapter), |state, &token| state.after(token));
    let mut row = vec![0.0; VOCAB];
    let mut next = || {
        write_logits(&mut row, state, script);
        let best = (0..).zip(&row).fold(
            (0, f32::NEG_INFINITY),
            |best, (id, &logit)| {
                if logit > best.1 { (id, logit) } else { best }
            },
        );
        state = state.after(TokenId(best.0));
        TokenId(best.0)
    };
    (0..count).map(|_| next()).collect()
}
