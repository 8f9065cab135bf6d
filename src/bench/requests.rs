//! The requests of a measurement, made before the clock runs: each body with its own prompt, the models in turn. Called by
//! `mod`.

use hyper::body::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::{Connection, Server};
use super::error::BenchError;
use super::prompts::{Prompt, PromptPlan, Prompts};

/// What every request is to be.
#[derive(Clone, Debug)]
pub(crate) struct RequestPlan {
    /// Names in turn; none: the only one that the server lists.
    pub(crate) models: Vec<String>,
    pub(crate) prompt: PromptPlan,
    /// Tokens of every answer: greedy, on past the end of sequence.
    pub(crate) max_tokens: u32,
    /// Members of every body, over what is there.
    pub(crate) extra: Map<String, Value>,
}

/// Makes bodies. No two have the same prompt, so that no server answers from what it computed before.
#[derive(Debug)]
pub(super) struct Requests<'a> {
    prompts: Prompts<'a>,
    models: Vec<String>,
    plan: &'a RequestPlan,
    next: u64,
}

impl<'a> Requests<'a> {
    /// Asks the server what it needs to know for that.
    pub(super) async fn new(server: &'a Server, plan: &'a RequestPlan) -> Result<Self, BenchError> {
        let mut connection = Connection::new(server);
        let models =
            if plan.models.is_empty() { vec![only_model(&mut connection).await?] } else { plan.models.clone() };
        let prompts = Prompts::new(connection, &models[0], plan.prompt).await?;
        Ok(Self { prompts, models, plan, next: 0 })
    }

    /// The models in turn; one at least.
    pub(super) fn models(&self) -> &[String] {
        &self.models
    }

    /// The next `count` bodies.
    pub(super) async fn take(&mut self, count: usize) -> Result<Vec<Bytes>, BenchError> {
        let mut bodies = Vec::with_capacity(count);
        for _ in 0..count {
            let prompt = self.prompts.prompt(self.next).await?;
            bodies.push(self.body(&prompt, self.plan.max_tokens));
            self.next += 1;
        }
        Ok(bodies)
    }

    /// One body with a prompt of `tokens` own tokens that asks for `max_tokens`.
    pub(super) async fn long(&mut self, tokens: usize, max_tokens: u32) -> Result<Bytes, BenchError> {
        let prompt = self.prompts.of_length(tokens, self.next).await?;
        let body = self.body(&prompt, max_tokens);
        self.next += 1;
        Ok(body)
    }

    fn body(&self, prompt: &Prompt, max_tokens: u32) -> Bytes {
        let turn = (self.next % self.models.len() as u64) as usize;
        let mut body = json!({
            "model": self.models[turn],
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": true,
            "ignore_eos": true,
            "stream_options": {"include_usage": true},
        });
        let members = body.as_object_mut().expect("it was written as an object");
        members.extend(self.plan.extra.clone());
        Bytes::from(body.to_string())
    }
}

async fn only_model(connection: &mut Connection<'_>) -> Result<String, BenchError> {
    #[derive(Deserialize)]
    struct List {
        data: Vec<Model>,
    }
    #[derive(Deserialize)]
    struct Model {
        id: String,
    }
    let list: List = connection.get_json("/v1/models").await?;
    let mut names: Vec<_> = list.data.into_iter().map(|model| model.id).collect();
    match names.len() {
        0 => Err(BenchError::NoModel(connection.server().url())),
        1 => Ok(names.remove(0)),
        _ => Err(BenchError::SeveralModels(names)),
    }
}
