//! The requests of a measurement, made before the clock runs: each body with its own prompt, the models in turn, and the
//! members that are added. Called by `mod`.

use hyper::body::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::{Connection, Server};
use super::error::BenchError;
use super::prompts::{Prompt, PromptPlan, Prompts};

/// What every request is to be.
#[derive(Clone, Debug)]
pub(crate) struct RequestPlan {
    /// Names of models or of adapters, in turn; none: the only model that the server lists.
    pub(crate) models: Vec<String>,
    pub(crate) prompt: PromptPlan,
    /// Tokens of every answer: greedy, on past the end of sequence.
    pub(crate) max_tokens: u32,
    /// Members of a body, over what is there: each in turn.
    pub(crate) extra: Vec<Map<String, Value>>,
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
        let mut body = json!({
            "model": self.in_turn(&self.models),
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": true,
            "ignore_eos": true,
            "stream_options": {"include_usage": true},
        });
        let members = body.as_object_mut().expect("it was written as an object");
        members.extend(self.in_turn(&self.plan.extra).cloned().unwrap_or_default());
        Bytes::from(body.to_string())
    }

    /// The one of `all` whose turn it is; `None` of nothing.
    fn in_turn<'b, T>(&self, all: &'b [T]) -> Option<&'b T> {
        let turn = self.next.checked_rem(all.len() as u64)?;
        all.get(turn as usize)
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
        /// Of an adapter: its base model.
        parent: Option<String>,
    }
    let list: List = connection.get_json("/v1/models").await?;
    let models = list.data.into_iter().filter(|model| model.parent.is_none());
    let mut names: Vec<_> = models.map(|model| model.id).collect();
    match names.len() {
        0 => Err(BenchError::NoModel(connection.server().url())),
        1 => Ok(names.remove(0)),
        _ => Err(BenchError::SeveralModels(names)),
    }
}
