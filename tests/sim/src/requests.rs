//! What clients ask: requests of every kind, drawn at random, and how each client behaves. Pure.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Map, Value, json};
use shoal_worker::scripted::FAIL_TRIGGER;

use crate::oracle;
use crate::scenario::Shape;

/// Longest sequence of the simulated model in tokens.
pub const CONTEXT: u32 = 512;
/// Under which name it is served.
pub const MODEL: &str = "scripted";
/// Requests begin within this time.
const ARRIVALS: Duration = Duration::from_secs(8);

/// One prompt. Letters of ASCII only, so that a token is a character.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// As text.
    Text(String),
    /// As token ids.
    Ids(String),
}

impl Prompt {
    /// What it says.
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Ids(text) => text,
        }
    }
}

/// What a request asks for; the fields are the API's.
#[derive(Clone, Debug)]
pub struct Ask {
    /// All of one form.
    pub prompts: Vec<Prompt>,
    /// `max_tokens`
    pub max_tokens: u32,
    /// `min_tokens`
    pub min_tokens: u32,
    /// `n`
    pub n: u16,
    /// `best_of`
    pub best_of: u16,
    /// `echo`
    pub echo: bool,
    /// `loglikelihood`
    pub loglikelihood: bool,
    /// `logprobs`
    pub logprobs: Option<u8>,
    /// `temperature`
    pub temperature: f64,
    /// `top_p`
    pub top_p: f64,
    /// `top_k`
    pub top_k: u32,
    /// `frequency_penalty`
    pub frequency_penalty: f64,
    /// `presence_penalty`
    pub presence_penalty: f64,
    /// `repetition_penalty`
    pub repetition_penalty: f64,
    /// `logit_bias`
    pub logit_bias: Vec<(u32, f64)>,
    /// `seed`; absent: the router draws one and says which.
    pub seed: Option<u64>,
    /// `stop`
    pub stop: Vec<String>,
    /// `stop_token_ids`
    pub stop_ids: Vec<u32>,
    /// `ignore_eos`
    pub ignore_eos: bool,
    /// `user`
    pub user: Option<String>,
}

/// How the answer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// One document.
    Whole,
    /// Events, usage on the last.
    Stream,
}

/// How a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Whatever comes, at once.
    Steady,
    /// With this pause after each piece.
    Slow(Duration),
    /// Not at all for this time, once the first piece has come.
    Stalls(Duration),
    /// It hangs up this long after it has asked.
    Leaves(Duration),
}

/// Whether the request itself makes workers fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does not.
    Harmless,
    /// Each worker that computes it fails the step.
    Poisonous,
}

/// A request with its client.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its number.
    pub id: usize,
    /// When, since the load began.
    pub at: Duration,
    /// Which router.
    pub router: usize,
    /// What.
    pub ask: Ask,
    /// How it comes.
    pub delivery: Delivery,
    /// How it is read.
    pub reader: Reader,
    /// What it does to workers.
    pub health: Health,
}

impl Request {
    /// As JSON.
    pub fn body(&self) -> Value {
        let mut body = self.ask.body();
        if self.delivery == Delivery::Stream {
            body.insert("stream".to_owned(), json!(true));
            body.insert("stream_options".to_owned(), json!({ "include_usage": true }));
        }
        Value::Object(body)
    }
}

impl Ask {
    fn body(&self) -> Map<String, Value> {
        let ids = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
        let prompt = match &self.prompts[..] {
            [Prompt::Text(text)] => json!(text),
            [Prompt::Ids(text)] => json!(ids(text)),
            all @ [Prompt::Text(_), ..] => all.iter().map(|prompt| json!(prompt.text())).collect(),
            all => all.iter().map(|prompt| json!(ids(prompt.text()))).collect(),
        };
        let bias: Map<String, Value> = self.logit_bias.iter().map(|(id, bias)| (id.to_string(), json!(bias))).collect();
        let Value::Object(body) = json!({
            "model": MODEL, "prompt": prompt, "max_tokens": self.max_tokens, "min_tokens": self.min_tokens,
            "n": self.n, "best_of": self.best_of, "echo": self.echo, "loglikelihood": self.loglikelihood,
            "logprobs": self.logprobs, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k,
            "frequency_penalty": self.frequency_penalty, "presence_penalty": self.presence_penalty, "repetition_penalty": self.repetition_penalty,
            "logit_bias": bias, "seed": self.seed, "stop": self.stop, "stop_token_ids": self.stop_ids,
            "ignore_eos": self.ignore_eos, "user": self.user,
        }) else {
            unreachable!("it is written as an object")
        };
        body
    }

    /// Groups that it becomes.
    pub fn groups(&self) -> usize {
        self.prompts.len()
    }
}

/// The requests of a run, by time.
pub fn draw(shape: &Shape, numbers: &mut StdRng) -> Vec<Request> {
    let count = numbers.random_range(3..=16);
    let mut times: Vec<Duration> = (0..count).map(|_| ARRIVALS.mul_f64(numbers.random())).collect();
    times.sort();
    times.into_iter().enumerate().map(|(id, at)| request(id, at, shape, numbers)).collect()
}

fn request(id: usize, at: Duration, shape: &Shape, numbers: &mut StdRng) -> Request {
    let health = if numbers.random_bool(0.03) { Health::Poisonous } else { Health::Harmless };
    let mut ask = ask(numbers);
    if health == Health::Poisonous {
        ask.prompts = vec![Prompt::Text(format!("please {FAIL_TRIGGER} now"))];
    }
    if numbers.random_bool(0.25) {
        ask.stop = stops(&ask, shape, numbers);
    }
    let reader = match numbers.random_range(0..10) {
        0 => Reader::Leaves(Duration::from_millis(numbers.random_range(1..3_000))),
        1 => Reader::Slow(Duration::from_millis(numbers.random_range(2..40))),
        2 if numbers.random_bool(0.3) => Reader::Stalls(shape.slow_reader * 3),
        _ => Reader::Steady,
    };
    Request {
        id,
        at,
        router: numbers.random_range(0..shape.routers),
        ask,
        delivery: if numbers.random_bool(0.7) { Delivery::Stream } else { Delivery::Whole },
        reader,
        health,
    }
}

fn ask(numbers: &mut StdRng) -> Ask {
    let greedy = numbers.random_bool(0.4);
    let n = *[1, 1, 1, 2, 3].choose(numbers).expect("there are some");
    let ranked = numbers.random_bool(0.15);
    let max_tokens = if numbers.random_bool(0.05) { 0 } else { numbers.random_range(1..=100) };
    let echo = numbers.random_bool(0.2);
    let rarely = |numbers: &mut StdRng, value: f64| if numbers.random_bool(0.2) { value } else { 0.0 };
    let mut ask = Ask {
        prompts: prompts(numbers),
        max_tokens,
        min_tokens: if numbers.random_bool(0.2) { numbers.random_range(0..=max_tokens) } else { 0 },
        n,
        best_of: if ranked { n + 2 } else { n },
        echo,
        loglikelihood: numbers.random_bool(0.15) || (max_tokens == 0 && !echo),
        logprobs: numbers.random_bool(0.3).then(|| numbers.random_range(0..=20)),
        temperature: if greedy { 0.0 } else { numbers.random_range(0.2..2.0) },
        top_p: if numbers.random_bool(0.3) { 0.8 } else { 1.0 },
        top_k: if numbers.random_bool(0.2) { 5 } else { 0 },
        frequency_penalty: rarely(numbers, 0.7),
        presence_penalty: rarely(numbers, 0.6),
        repetition_penalty: 1.0 + rarely(numbers, 0.2),
        logit_bias: Vec::new(),
        seed: numbers.random_bool(0.8).then(|| numbers.random::<u64>() >> 11),
        stop: Vec::new(),
        stop_ids: Vec::new(),
        ignore_eos: false,
        user: numbers.random_bool(0.5).then(|| format!("user-{}", numbers.random_range(0..3))),
    };
    if numbers.random_bool(0.1) {
        ask.logit_bias = vec![(u32::from(b'e'), 3.0), (u32::from(b'z'), -100.0)];
    }
    if numbers.random_bool(0.1) {
        ask.stop_ids = vec![u32::from(numbers.random_range(b' '..b'~'))];
    }
    // A token without text has no place among logprobs that could be told apart here.
    ask.ignore_eos = ask.logprobs.is_none() && !ask.loglikelihood && !ranked && numbers.random_bool(0.3);
    ask
}

fn prompts(numbers: &mut StdRng) -> Vec<Prompt> {
    let as_ids = numbers.random_bool(0.2);
    // Some begin alike, so that prefixes are found in the cache.
    let shared = "It was the best of times, it was the worst of times, and the shoal swam on. ";
    let count = *[1, 1, 1, 1, 2, 3].choose(numbers).expect("there are some");
    let mut one = || {
        let length = numbers.random_range(1..=120);
        let mut text = if numbers.random_bool(0.4) { shared.to_owned() } else { String::new() };
        text.extend((0..length).map(|_| char::from(numbers.random_range(b' '..=b'~'))));
        if as_ids { Prompt::Ids(text) } else { Prompt::Text(text) }
    };
    (0..count).map(|_| one()).collect()
}

/// Stop strings, one of which comes up in the answer, and one that begins like it and does not.
fn stops(ask: &Ask, shape: &Shape, numbers: &mut StdRng) -> Vec<String> {
    let Some(answer) = oracle::answer(ask, &shape.script).choices.into_iter().next() else { return Vec::new() };
    let completion: Vec<char> =
        answer.text.chars().skip(if ask.echo { ask.prompts[0].text().len() } else { 0 }).collect();
    if completion.len() < 8 {
        return vec!["never".to_owned()];
    }
    let length = numbers.random_range(1..=5);
    let start = numbers.random_range(0..completion.len() - length);
    let hit: String = completion[start..start + length].iter().collect();
    let near: String = hit.chars().chain(['\u{7}']).collect();
    vec![near, hit]
}
