//! Finds stop strings in a growing text and decides how much of it may be shown. `choice` owns one [`StopMatcher`] per
//! branch and feeds it the deltas of the detokeniser. It holds back the least that is safe: the longest tail that some stop
//! string begins with. Pure; it never sees tokens.
//!
//! One Knuth-Morris-Pratt automaton per stop string: its state *is* the length of that tail, which an automaton over all
//! strings together would hide. With at most 16 strings the cost is 16 small steps per byte of text.

use crate::request::ClientText;

/// Watches one text for stop strings. Memory: the strings and a tail shorter than the longest of them.
pub struct StopMatcher {
    stops: Vec<Automaton>,
    /// Text seen and not yet released: a proper beginning of some stop string.
    held: String,
    ended: bool,
}

impl std::fmt::Debug for StopMatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StopMatcher")
            .field("stops", &self.stops.len())
            .field("held_bytes", &self.held.len())
            .field("ended", &self.ended)
            .finish()
    }
}

/// What a piece of text led to.
#[derive(Clone, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that may be shown now. On a match it ends where the stop string begins.
    pub released: String,
    /// Index of the stop string that was completed; the text is over.
    pub matched: Option<usize>,
}

impl std::fmt::Debug for StopOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StopOutcome")
            .field("released_bytes", &self.released.len())
            .field("matched", &self.matched)
            .finish()
    }
}

impl StopMatcher {
    /// Watches for `stops`; an empty string never matches.
    pub fn new(stops: &[ClientText]) -> Self {
        let stops = stops.iter().map(|stop| Automaton::new(stop.0.as_bytes())).collect();
        Self { stops, held: String::new(), ended: false }
    }

    /// Takes text in which a stop string may be completed. Of all occurrences completed in `delta` the one that begins
    /// first wins; of those that begin together the shortest, which would have won had the text come byte by byte.
    pub fn push(&mut self, delta: &str) -> StopOutcome {
        if self.ended {
            return StopOutcome { released: String::new(), matched: None };
        }
        let seen = self.held.len();
        self.held.push_str(delta);
        let mut best: Option<(usize, usize, usize)> = None;
        for (index, stop) in self.stops.iter_mut().enumerate() {
            if let Some(consumed) = stop.find(delta.as_bytes()) {
                let found = (seen + consumed - stop.pattern.len(), stop.pattern.len(), index);
                best = Some(best.map_or(found, |best| best.min(found)));
            }
        }
        match best {
            Some((start, _, index)) => {
                self.ended = true;
                self.held.truncate(start);
                StopOutcome { released: std::mem::take(&mut self.held), matched: Some(index) }
            }
            None => StopOutcome { released: self.release(), matched: None },
        }
    }

    /// Takes text in which no stop string may be completed (tokens up to `min_tokens`), though one may begin. Returns what
    /// may be shown.
    pub fn pass(&mut self, delta: &str) -> String {
        if self.ended {
            return String::new();
        }
        self.held.push_str(delta);
        for stop in &mut self.stops {
            let mut rest = delta.as_bytes();
            while let Some(consumed) = stop.find(rest) {
                rest = &rest[consumed..];
            }
        }
        self.release()
    }

    /// Ends the text without a match: what was held is not the beginning of a stop string after all.
    pub fn finish(&mut self) -> String {
        self.ended = true;
        std::mem::take(&mut self.held)
    }

    /// Everything but the longest tail that may become a stop string. That tail begins with a stop string's first byte,
    /// which begins a character, so the cut is between characters.
    fn release(&mut self) -> String {
        let hold = self.stops.iter().map(Automaton::partial).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - hold);
        std::mem::replace(&mut self.held, tail)
    }
}

/// Knuth-Morris-Pratt over bytes.
struct Automaton {
    pattern: Vec<u8>,
    /// `border[k]`: length of the longest proper suffix of `pattern[..=k]` that is also its prefix.
    border: Vec<usize>,
    /// How much of the pattern the text seen so far ends with.
    state: usize,
}

impl Automaton {
    fn new(pattern: &[u8]) -> Self {
        let mut border = vec![0; pattern.len()];
        let mut matched = 0;
        for k in 1..pattern.len() {
            while matched > 0 && pattern[k] != pattern[matched] {
                matched = border[matched - 1];
            }
            matched += usize::from(pattern[k] == pattern[matched]);
            border[k] = matched;
        }
        Self { pattern: pattern.to_vec(), border, state: 0 }
    }

    /// Reads `text` up to the first completed occurrence; returns how many bytes that took. The state then stands for the
    /// longest tail that may become *another* occurrence.
    fn find(&mut self, text: &[u8]) -> Option<usize> {
        if self.pattern.is_empty() {
            return None;
        }
        for (index, byte) in text.iter().enumerate() {
            while self.state > 0 && self.pattern[self.state] != *byte {
                self.state = self.border[self.state - 1];
            }
            self.state += usize::from(self.pattern[self.state] == *byte);
            if self.state == self.pattern.len() {
                self.state = self.border[self.state - 1];
                return Some(index + 1);
            }
        }
        None
    }

    /// Length of the longest tail of the text that is a proper beginning of the pattern.
    fn partial(&self) -> usize {
        self.state
    }
}
