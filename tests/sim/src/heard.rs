//! What a client has heard of its answer, from one document or from events, and whether that keeps the contract's form.
//! Pure; `load` feeds it, `verdict` compares it with the oracle.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::oracle::{Choice, Told};

/// An answer as far as it has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heard {
    /// By index. A finish reason that has not come is empty.
    pub choices: BTreeMap<u64, Choice>,
    /// Prompt and completion tokens.
    pub usage: Option<(u64, u64)>,
    /// The seed in force, as the head of the answer says it.
    pub seed: Option<u64>,
    /// The code of the error event.
    pub error: Option<String>,
    /// Whether the answer was said to be over: a whole document, or `[DONE]`.
    pub is_over: bool,
}

/// How an answer breaks the contract's form.
pub type BadForm = &'static str;

impl Heard {
    /// A whole answer.
    pub fn document(text: &[u8]) -> Result<Self, BadForm> {
        let mut heard = Self { is_over: true, ..Self::default() };
        heard.take(&serde_json::from_slice(text).map_err(|_| "the document is no json")?)?;
        Ok(heard)
    }

    /// The data of an event.
    pub fn event(&mut self, data: &str) -> Result<(), BadForm> {
        if self.is_over {
            return Err("an event after [DONE]");
        }
        if data == "[DONE]" {
            self.is_over = true;
            return Ok(());
        }
        let event: Value = serde_json::from_str(data).map_err(|_| "an event is no json")?;
        if let Some(code) = event["error"]["code"].as_str() {
            return match self.error.replace(code.to_owned()) {
                None => Ok(()),
                Some(_) => Err("two errors"),
            };
        }
        self.take(&event)
    }

    fn take(&mut self, document: &Value) -> Result<(), BadForm> {
        if self.error.is_some() {
            return Err("a chunk after the error");
        }
        for choice in document["choices"].as_array().ok_or("no choices")? {
            self.take_choice(choice)?;
        }
        if let Some(usage) = document["usage"].as_object() {
            let count = |field: &str| usage.get(field).and_then(Value::as_u64).ok_or("a count is missing");
            if self.usage.replace((count("prompt_tokens")?, count("completion_tokens")?)).is_some() {
                return Err("usage came twice");
            }
        }
        Ok(())
    }

    fn take_choice(&mut self, document: &Value) -> Result<(), BadForm> {
        let index = document["index"].as_u64().ok_or("a choice without an index")?;
        let choice = self.choices.entry(index).or_default();
        if !choice.finish.is_empty() {
            return Err("more of a choice that had finished");
        }
        choice.text.push_str(document["text"].as_str().ok_or("a choice without text")?);
        choice.finish.push_str(document["finish_reason"].as_str().unwrap_or_default());
        if let Some(logprobs) = document["logprobs"].as_object() {
            let list = |name: &str| logprobs.get(name).and_then(Value::as_array).ok_or("a list of logprobs is missing");
            let lists = (list("content")?, list("tokens")?, list("text_offset")?);
            for ((content, text), offset) in lists.0.iter().zip(lists.1).zip(lists.2) {
                choice.tokens.push(told(content, text, offset).ok_or("a token that cannot be read")?);
            }
        }
        Ok(())
    }
}

fn told(content: &Value, text: &Value, offset: &Value) -> Option<Told> {
    let (text, offset) = (text.as_str()?.to_owned(), offset.as_u64()?);
    if content.is_null() {
        return Some(Told { text, logprob: None, top: Vec::new(), offset });
    }
    let logprob = |of: &Value| of["logprob"].as_f64().map(|logprob| logprob as f32);
    let one = |top: &Value| Some((top["token"].as_str()?.to_owned(), logprob(top)?));
    let top = content["top_logprobs"].as_array()?.iter().map(one).collect::<Option<_>>()?;
    (content["token"].as_str()? == text).then_some(Told { text, logprob: logprob(content), top, offset })
}

/// Cuts a body into the data of its events; comments are passed over.
#[derive(Debug, Default)]
pub struct Events(Vec<u8>);

impl Events {
    /// Takes more of the body and returns the events that are whole.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, BadForm> {
        self.0.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.0.windows(2).position(|window| window == b"\n\n") {
            let event: Vec<u8> = self.0.drain(..end + 2).collect();
            let event = String::from_utf8(event).map_err(|_| "an event is no utf-8")?;
            match event.trim_end().strip_prefix("data: ") {
                Some(data) => events.push(data.to_owned()),
                None if event.starts_with(':') => {}
                None => return Err("an event without data"),
            }
        }
        Ok(events)
    }

    /// Whether a part of an event is left.
    pub fn is_cut(&self) -> bool {
        !self.0.is_empty()
    }
}
