//! One candidate's way from tokens to text: detokenise, look for stop strings, and keep tokens and text in step, so that
//! what is released is never taken back. Pure; `merge` owns one [`Candidate`] per branch.

use std::collections::VecDeque;
use std::sync::Arc;

use shoal_common::ids::TokenId;
use shoal_common::wire::message::{BranchEnd, BranchToken, TokenScore};

use crate::http::schema::FinishReason;
use crate::request::ClientText;
use crate::text::{Detokenizer, StopMatcher, Tokenizer};

/// A token of an answer with where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedToken {
    /// The token.
    pub token: TokenId,
    /// Its raw logprob and alternatives; absent for the first token of an echoed prompt.
    pub score: Option<TokenScore>,
    /// Where it begins in the returned text of its choice, in Unicode scalars.
    pub offset: u64,
}

/// What one step adds to a choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Whole characters.
    pub text: String,
    /// The tokens whose text is out.
    pub tokens: Vec<PlacedToken>,
    /// Set once, on the last delta.
    pub finish: Option<FinishReason>,
}

impl Delta {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty() && self.finish.is_none()
    }

    /// Appends what came later.
    pub fn append(&mut self, later: Self) {
        self.text.push_str(&later.text);
        self.tokens.extend(later.tokens);
        self.finish = later.finish.or(self.finish);
    }
}

/// What all candidates of a group share.
#[derive(Clone, Debug)]
pub struct CandidateRules {
    /// The model's text.
    pub tokenizer: Arc<Tokenizer>,
    /// Stop strings, non-empty.
    pub stop: Vec<ClientText>,
    /// Tokens in which no stop string is looked for.
    pub min_tokens: u32,
    /// Length of the text that stands before the completion, in Unicode scalars.
    pub text_before: u64,
}

/// One branch as text.
#[derive(Debug)]
pub struct Candidate {
    detokenizer: Detokenizer,
    stop: StopMatcher,
    min_tokens: u32,
    /// Tokens whose text is held back, oldest first.
    held: VecDeque<PlacedToken>,
    /// Where the next token begins.
    written: u64,
    /// Up to where text was released.
    released: u64,
    generated: u32,
    kept: u32,
    logprob_sum: f64,
    finish: Option<FinishReason>,
}

impl Candidate {
    /// A candidate without tokens.
    pub fn new(rules: &CandidateRules, detokenizer: Detokenizer) -> Self {
        Self {
            detokenizer,
            stop: StopMatcher::new(&rules.stop),
            min_tokens: rules.min_tokens,
            held: VecDeque::new(),
            written: rules.text_before,
            released: rules.text_before,
            generated: 0,
            kept: 0,
            logprob_sum: 0.0,
            finish: None,
        }
    }

    /// Tokens generated, those without text and those that were cut included.
    pub fn generated(&self) -> u32 {
        self.generated
    }

    /// Why it ended, once it has.
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Mean raw logprob of the kept tokens: what `best_of` ranks by. Nothing kept, or not a number, ranks last.
    pub fn mean_logprob(&self) -> f64 {
        let mean = self.logprob_sum / f64::from(self.kept);
        if mean.is_nan() { f64::NEG_INFINITY } else { mean }
    }

    /// Takes the next token. A finished candidate takes nothing.
    pub fn push(&mut self, token: BranchToken) -> Delta {
        if self.finish.is_some() {
            return Delta::default();
        }
        self.generated += 1;
        let mut delta = Delta::default();
        if token.end == Some(BranchEnd::StopToken) {
            self.end(FinishReason::Stop, &mut delta);
            return delta;
        }
        let offset = self.written;
        let text = self.detokenizer.push(token.token);
        self.held.push_back(PlacedToken { token: token.token, score: token.score, offset });
        self.write(&text, &mut delta);
        if self.finish.is_none() && token.end == Some(BranchEnd::Length) {
            self.end(FinishReason::Length, &mut delta);
        }
        delta
    }

    /// Ends the candidate where it stands, so that all that was told of it is the beginning of what would have been told.
    /// What is held back stays back: the next token might have made a stop string of it, or a character.
    pub fn cancel(&mut self) -> Delta {
        if self.finish.is_some() {
            return Delta::default();
        }
        self.held.clear();
        self.finish = Some(FinishReason::Cancelled);
        Delta { finish: self.finish, ..Delta::default() }
    }

    /// Runs new text past the stop strings and releases what may be shown.
    fn write(&mut self, text: &str, delta: &mut Delta) {
        self.written += scalars(text);
        if self.generated <= self.min_tokens {
            let released = self.stop.pass(text);
            self.release(released, delta);
            return;
        }
        let outcome = self.stop.push(text);
        let matched = outcome.matched.is_some();
        self.release(outcome.released, delta);
        if matched {
            self.held.clear();
            self.finish = Some(FinishReason::Stop);
            delta.finish = self.finish;
        }
    }

    /// Releases what is held for want of a next token.
    fn end(&mut self, reason: FinishReason, delta: &mut Delta) {
        let tail = self.detokenizer.finish();
        self.write(&tail, delta);
        if self.finish.is_none() {
            let held = self.stop.finish();
            self.release(held, delta);
            self.finish = Some(reason);
            delta.finish = self.finish;
        }
    }

    /// Appends released text, and the tokens that begin in it. Tokens without text go with what stands before them, but
    /// only when nothing is held: a stop string that is completed later cuts them too.
    fn release(&mut self, text: String, delta: &mut Delta) {
        self.released += scalars(&text);
        delta.text.push_str(&text);
        let nothing_held = self.released == self.written;
        let out = |token: &&PlacedToken| nothing_held || token.offset < self.released;
        let count = self.held.iter().take_while(out).count();
        for token in self.held.drain(..count) {
            self.kept += 1;
            self.logprob_sum += token.score.as_ref().map_or(0.0, |score| f64::from(score.logprob));
            delta.tokens.push(token);
        }
    }
}

/// Unicode scalars in `text`.
pub fn scalars(text: &str) -> u64 {
    text.chars().count() as u64
}

#[cfg(test)]
mod tests;
