//! What a worker may send next on a group's stream: checks every frame against what was asked and what came, and turns it
//! into an event. Pure but for the group's own books.

use shoal_common::wire::codec::CodecError;
use shoal_common::wire::message::{BranchToken, GroupFrame, TokenScore};

use super::attempt::{Trouble, judge};
use super::{GroupEvent, GroupRun};

impl GroupRun {
    /// Checks a frame against what may come now and turns it into an event.
    pub(super) fn take(&mut self, frame: Result<GroupFrame, CodecError>) -> Result<Option<GroupEvent>, Trouble> {
        match frame {
            Ok(GroupFrame::Step(tokens)) => self.take_tokens(tokens),
            Ok(GroupFrame::PromptScores { first, scores }) => self.take_scores(first, scores),
            Ok(GroupFrame::Failed(failure)) => Err(judge(failure)),
            Ok(GroupFrame::Busy { .. } | GroupFrame::Accepted) => Err(Trouble::Replica),
            Err(CodecError::Ended) if self.is_complete() => {
                self.attempt = None;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the worker may end the stream: every branch ended and every score came.
    fn is_complete(&self) -> bool {
        self.ended.iter().all(|ended| *ended) && self.scores_delivered == self.scores_due()
    }

    fn take_scores(&mut self, first: u32, mut scores: Vec<TokenScore>) -> Result<Option<GroupEvent>, Trouble> {
        let known = scores.iter().all(|score| self.is_known(score));
        let due = self.scores_due();
        let attempt = self.attempt.as_mut().ok_or(Trouble::Replica)?;
        let (seen, count) = (attempt.scores_seen, scores.len() as u32);
        if !known || first != seen + 1 || count > due - seen {
            return Err(Trouble::Replica);
        }
        self.setbacks.step();
        attempt.scores_seen += count;
        scores.drain(..self.scores_delivered.saturating_sub(seen).min(count) as usize);
        self.scores_delivered += scores.len() as u32;
        Ok((!scores.is_empty()).then_some(GroupEvent::PromptScores(scores)))
    }

    /// Takes all tokens of a step or, where one of them is wrong, none: what is not handed on must be computed again.
    fn take_tokens(&mut self, mut tokens: Vec<BranchToken>) -> Result<Option<GroupEvent>, Trouble> {
        if self.scores_delivered < self.scores_due() {
            return Err(Trouble::Replica);
        }
        let submitted = &self.attempt.as_ref().ok_or(Trouble::Replica)?.branches;
        for token in &mut tokens {
            token.branch = *submitted.get(token.branch.index()).ok_or(Trouble::Replica)?;
        }
        // Tokens of a branch that was stopped meanwhile were on their way already.
        tokens.retain(|token| !self.ended[token.branch.index()]);
        let each_once =
            tokens.iter().enumerate().all(|(at, token)| tokens[..at].iter().all(|one| one.branch != token.branch));
        if !each_once || !tokens.iter().all(|token| self.comes_next(token)) {
            return Err(Trouble::Replica);
        }
        for token in &tokens {
            self.submit.branches[token.branch.index()].emitted.0.push(token.token);
            self.ended[token.branch.index()] = token.end.is_some();
        }
        self.setbacks.step();
        Ok((!tokens.is_empty()).then_some(GroupEvent::Tokens(tokens)))
    }

    /// Whether the token goes on where its branch stands.
    fn comes_next(&self, token: &BranchToken) -> bool {
        let emitted = self.submit.branches[token.branch.index()].emitted.0.len();
        let in_place = emitted == token.position as usize && token.position < self.submit.end.max_tokens;
        let as_asked = token.score.is_some() == self.submit.score_tokens.is_some()
            && token.score.as_ref().is_none_or(|score| score.token == token.token && self.is_known(score));
        in_place && token.token.0 < self.vocab_size && as_asked
    }

    fn is_known(&self, score: &TokenScore) -> bool {
        score.token.0 < self.vocab_size && score.alternatives.iter().all(|(token, _)| token.0 < self.vocab_size)
    }
}
