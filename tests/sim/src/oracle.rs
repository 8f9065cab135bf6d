//! What must be answered: computed from the scripted engine's definition and the contract of the API alone, without an
//! engine, a scheduler, a router or a network. Pure. Every token is one character, which keeps the text simple.

use std::num::NonZeroU32;

use shoal_common::config::Script;
use shoal_common::ids::TokenId;
use shoal_common::sampling::{Bias, Penalty, RepetitionPenalty, SamplingParams, Temperature, TopP};
use shoal_common::wire::message::TokenScore;
use shoal_worker::sampler::{self, Sampler, TokenHistory};
use shoal_worker::scripted::{self, EOS};

use crate::requests::Ask;

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// By index.
    pub choices: Vec<Choice>,
    /// `usage.prompt_tokens`
    pub prompt_tokens: u64,
    /// `usage.completion_tokens`
    pub completion_tokens: u64,
}

/// One choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// Its finish reason.
    pub finish: String,
    /// Its tokens, where logprobs were asked for.
    pub tokens: Vec<Told>,
}

/// A token as logprobs tell it.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Its text.
    pub text: String,
    /// Its logprob; none for the first token of an echoed prompt.
    pub logprob: Option<f32>,
    /// The alternatives, best first.
    pub top: Vec<(String, f32)>,
    /// Where it begins, in characters.
    pub offset: u64,
}

/// The answer to `ask` by a model of `script`.
pub fn answer(ask: &Ask, script: &Script) -> Answer {
    let mut choices = Vec::new();
    let mut completion_tokens = 0;
    for (at, prompt) in ask.prompts.iter().enumerate() {
        let prompt = Prompt::new(ask, script, prompt.text());
        let first = at as u32 * u32::from(ask.best_of);
        let candidates: Vec<Candidate> = match (ask.max_tokens, ask.temperature) {
            (0, _) => Vec::new(),
            (_, 0.0) => vec![prompt.candidate(first); usize::from(ask.best_of)],
            _ => (first..first + u32::from(ask.best_of)).map(|choice| prompt.candidate(choice)).collect(),
        };
        completion_tokens += candidates.iter().map(|candidate| candidate.generated).sum::<u64>();
        choices.extend(prompt.choices(candidates));
    }
    let prompt_tokens = ask.prompts.iter().map(|prompt| prompt.text().len() as u64).sum();
    Answer { choices, prompt_tokens, completion_tokens }
}

/// A prompt that is answered.
struct Prompt<'a> {
    ask: &'a Ask,
    script: &'a Script,
    text: &'a str,
    params: SamplingParams,
    stop_ids: Vec<TokenId>,
}

/// One candidate for a choice.
#[derive(Clone)]
struct Candidate {
    text: String,
    finish: &'static str,
    scores: Vec<TokenScore>,
    generated: u64,
}

impl<'a> Prompt<'a> {
    fn new(ask: &'a Ask, script: &'a Script, text: &'a str) -> Self {
        let mut stop_ids: Vec<_> = ask.stop_ids.iter().copied().map(TokenId).collect();
        stop_ids.extend((!ask.ignore_eos).then_some(EOS));
        stop_ids.sort_unstable();
        Self { ask, script, text, params: params(ask), stop_ids }
    }

    fn candidate(&self, choice: u32) -> Candidate {
        let mut tokens: Vec<TokenId> = self.text.bytes().map(|byte| TokenId(byte.into())).collect();
        let mut history = TokenHistory::new(&tokens);
        let mut sampler = Sampler::new();
        let mut told = Candidate { text: String::new(), finish: "length", scores: Vec::new(), generated: 0 };
        for position in 0..self.ask.max_tokens {
            let row = scripted::logits(self.script, None, &tokens);
            let banned = if position < self.ask.min_tokens { &self.stop_ids[..] } else { &[] };
            let draw = sampler::Draw { params: &self.params, history: &history, banned, choice, position };
            let token = sampler.sample(&row, &draw);
            let score = sampler.score(&row, token, self.ask.logprobs.unwrap_or(0));
            told.generated += 1;
            if self.stop_ids.contains(&token) {
                told.finish = "stop";
                break;
            }
            tokens.push(token);
            history.push(token);
            told.scores.push(score);
            // What the special tokens say is not shown.
            told.text.extend(u8::try_from(token.0).ok().map(char::from));
            if position >= self.ask.min_tokens && told.cut(&self.ask.stop) {
                break;
            }
        }
        told
    }

    /// The first of all candidates, or the best of them; with what stands in front.
    fn choices(&self, mut candidates: Vec<Candidate>) -> Vec<Choice> {
        let n = usize::from(self.ask.n);
        if candidates.is_empty() {
            let nothing = Candidate { text: String::new(), finish: "length", scores: Vec::new(), generated: 0 };
            candidates = vec![nothing; n];
        }
        if self.ask.best_of > self.ask.n {
            // Stable: equals stay in order.
            candidates.sort_by(|a, b| b.mean().total_cmp(&a.mean()));
        }
        candidates.into_iter().take(n).map(|candidate| self.choice(candidate)).collect()
    }

    fn choice(&self, candidate: Candidate) -> Choice {
        let front = if self.ask.echo { self.text } else { "" };
        let mut tokens = self.prompt_tokens();
        if self.ask.logprobs.is_some() || self.ask.loglikelihood {
            let offsets = front.len() as u64..;
            tokens.extend(candidate.scores.iter().zip(offsets).map(|(score, offset)| told(score, offset)));
        }
        Choice { text: format!("{front}{}", candidate.text), finish: candidate.finish.to_owned(), tokens }
    }

    /// The prompt's tokens, where they are reported.
    fn prompt_tokens(&self) -> Vec<Told> {
        let ask = self.ask;
        if !(ask.loglikelihood || ask.echo && ask.logprobs.is_some()) {
            return Vec::new();
        }
        let tokens: Vec<TokenId> = self.text.bytes().map(|byte| TokenId(byte.into())).collect();
        let mut sampler = Sampler::new();
        let scored = |at: usize| {
            let row = scripted::logits(self.script, None, &tokens[..at]);
            told(&sampler.score(&row, tokens[at], ask.logprobs.unwrap_or(0)), if ask.echo { at as u64 } else { 0 })
        };
        let first = ask.echo.then(|| Told { text: label(tokens[0]), logprob: None, top: Vec::new(), offset: 0 });
        first.into_iter().chain((1..tokens.len()).map(scored)).collect()
    }
}

impl Candidate {
    /// Ends the text before a stop string that the last character has completed: the one that begins first.
    fn cut(&mut self, stops: &[String]) -> bool {
        let ends = stops.iter().filter(|stop| self.text.ends_with(stop.as_str()));
        let Some(length) = ends.map(String::len).max() else { return false };
        self.text.truncate(self.text.len() - length);
        self.scores.truncate(self.text.len());
        self.finish = "stop";
        true
    }

    fn mean(&self) -> f64 {
        let sum = self.scores.iter().fold(0.0, |sum, score| sum + f64::from(score.logprob));
        if self.scores.is_empty() { f64::NEG_INFINITY } else { sum / self.scores.len() as f64 }
    }
}

fn told(score: &TokenScore, offset: u64) -> Told {
    let top = score.alternatives.iter().map(|(token, logprob)| (label(*token), *logprob)).collect();
    Told { text: label(score.token), logprob: Some(score.logprob), top, offset }
}

/// A letter, or the one special token that is ever likely.
fn label(token: TokenId) -> String {
    u8::try_from(token.0).map_or_else(|_| "<|eos|>".to_owned(), |byte| char::from(byte).to_string())
}

fn params(ask: &Ask) -> SamplingParams {
    SamplingParams {
        logit_bias: ask
            .logit_bias
            .iter()
            .map(|(id, bias)| (TokenId(*id), Bias::new(*bias).expect("drawn in range")))
            .collect(),
        repetition_penalty: RepetitionPenalty::new(ask.repetition_penalty).expect("drawn in range"),
        frequency_penalty: Penalty::new(ask.frequency_penalty).expect("drawn in range"),
        presence_penalty: Penalty::new(ask.presence_penalty).expect("drawn in range"),
        temperature: Temperature::new(ask.temperature).expect("drawn in range"),
        top_k: NonZeroU32::new(ask.top_k),
        top_p: TopP::new(ask.top_p).expect("drawn in range"),
        seed: ask.seed.unwrap_or_default(),
        ..SamplingParams::default()
    }
}
