//! The border of the house: bytes from outside become requests in types that cannot be wrong, or an error that names
//! every fault. Called by the HTTP handlers. Pure: no model, no clock, no I/O; what depends on a model is `plan`'s.
//!
//! Rules that hold for every field: `null` is absent; an integer may be written `5.0`; nothing is converted from strings or
//! booleans; `-0` is refused, since a sign on nothing is a fault of the sender; unknown fields are named, not refused.

mod adapters;
mod fields;
mod json;
mod prompt;
mod tokenize;
pub mod work;

use std::num::NonZeroU32;

use shoal_common::config::Limits;
use shoal_common::ids::TokenId;
use shoal_common::sampling::{Bias, MinP, Penalty, RepetitionPenalty, SamplingParams, Temperature, TopP};

pub use self::adapters::{IfLoaded, LoadRequest, RegisterRequest, load_lora_adapter, register, unload_lora_adapter};
use self::fields::{Broken, Fields, flag, integer_in, name, number, short_list, short_text, text, token_ids, value_of};
use self::json::{Json, Object};
pub use self::tokenize::{BosRule, DetokenizeRequest, TokenizeRequest, detokenize, tokenize};
use crate::http::error::{ApiError, FaultKind, Loc};
use crate::request::{ClientText, CompletionRequest, Delivery, Echo, EosRule, LogPrompt, Loglikelihood, StreamUsage};

/// Tokens generated where a request does not say.
const DEFAULT_MAX_TOKENS: u32 = 512;

/// Entries of `stop_token_ids`: a model has a handful of end tokens.
const MAX_STOP_TOKEN_IDS: usize = 64;

/// The fields of `POST /v1/completions`.
#[rustfmt::skip]
const COMPLETION_FIELDS: &[&str] = &[
    "model", "prompt", "suffix", "max_tokens", "min_tokens", "n", "best_of", "echo", "loglikelihood", "logprobs",
    "temperature", "top_p", "min_p", "top_k", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "logit_bias", "seed", "stop", "stop_token_ids", "ignore_eos", "peft", "stream", "stream_options", "log_prompt", "user",
];

/// Decodes the body of `POST /v1/completions`. 400 if it is not strict JSON, 422 with all faults if it breaks a rule.
pub fn completion(body: &[u8], limits: &Limits) -> Result<CompletionRequest, ApiError> {
    let fields = &mut Fields::parse(body, COMPLETION_FIELDS)?;
    let model = fields.required("model", name);
    let adapter = fields.read("peft", name);
    let (prompts, prompt_form) = prompt::prompts(fields, limits);
    let suffix = fields.read("suffix", text).map(ClientText);
    let echo = if fields.flag("echo", false) { Echo::Prompt } else { Echo::Off };
    let loglikelihood = if fields.flag("loglikelihood", false) { Loglikelihood::Prompt } else { Loglikelihood::Off };
    let (max_tokens, min_tokens) = lengths(fields, echo == Echo::Prompt || loglikelihood == Loglikelihood::Prompt);
    let (n, best_of) = candidates(fields, limits);
    let logprobs = fields.integer("logprobs", 0, limits.logprobs);
    let sampling = sampling(fields, limits);
    let seed = fields.read("seed", seed);
    let stop = stop(fields, limits);
    let stop_token_ids = stop_token_ids(fields);
    let eos = if fields.flag("ignore_eos", false) { EosRule::Ignored } else { EosRule::Ends };
    let delivery = delivery(fields);
    let log_prompt = if fields.flag("log_prompt", false) { LogPrompt::Yes } else { LogPrompt::No };
    let user = fields.read("user", |user| short_text(user, limits.user_bytes)).filter(|user| !user.0.is_empty());
    let (model, ignored) = fields.finish(model)?;
    #[rustfmt::skip]
    let request = CompletionRequest {
        model, adapter, prompts, prompt_form, suffix, max_tokens, min_tokens, n, best_of, echo, loglikelihood, logprobs,
        sampling, seed, stop, stop_token_ids, eos, delivery, log_prompt, user, ignored,
    };
    work::check_untokenised(&request, limits).map_err(ApiError::invalid)?;
    Ok(request)
}

/// `max_tokens` and `min_tokens`. Generating nothing makes sense only where the prompt itself is answered.
fn lengths(fields: &mut Fields, prompt_is_answered: bool) -> (u32, u32) {
    let given = fields.integer("max_tokens", 0, u32::MAX);
    if given == Some(0) && !prompt_is_answered {
        let rule = "must be at least 1 unless echo or loglikelihood is true";
        fields.fault(["max_tokens".into()], (FaultKind::TooSmall, rule.into()));
    }
    let max_tokens = given.unwrap_or(DEFAULT_MAX_TOKENS);
    let min_tokens = fields.integer("min_tokens", 0, u32::MAX).unwrap_or(0);
    if min_tokens > max_tokens {
        let rule = format!("must be at most max_tokens, which is {max_tokens}");
        fields.fault(["min_tokens".into()], (FaultKind::TooLarge, rule));
    }
    (max_tokens, min_tokens)
}

/// `n` and `best_of`; without `best_of` there are as many candidates as choices.
fn candidates(fields: &mut Fields, limits: &Limits) -> (u16, u16) {
    let n = fields.integer("n", 1, limits.candidates).unwrap_or(1);
    let best_of = fields.integer("best_of", 1, limits.candidates).unwrap_or(n);
    if best_of < n {
        fields.fault(["best_of".into()], (FaultKind::TooSmall, format!("must be at least n, which is {n}")));
    }
    (n, best_of)
}

fn sampling(fields: &mut Fields, limits: &Limits) -> SamplingParams {
    SamplingParams {
        logit_bias: logit_bias(fields, limits),
        repetition_penalty: fields.number("repetition_penalty", RepetitionPenalty::new),
        frequency_penalty: fields.number("frequency_penalty", Penalty::new),
        presence_penalty: fields.number("presence_penalty", Penalty::new),
        temperature: fields.number("temperature", Temperature::new),
        min_p: fields.number("min_p", MinP::new),
        top_k: fields.read("top_k", top_k).flatten(),
        top_p: fields.number("top_p", TopP::new),
        seed: 0,
    }
}

/// -1 and 0 are off.
fn top_k(value: Json) -> Result<Option<NonZeroU32>, Broken> {
    let k = integer_in(value, -1, i64::from(u32::MAX))?;
    Ok(u32::try_from(k).ok().and_then(NonZeroU32::new))
}

/// u64, or i64 as its two's complement.
fn seed(value: Json) -> Result<u64, Broken> {
    let seed = integer_in(value, i128::from(i64::MIN), i128::from(u64::MAX))?;
    // In range: the low 64 bits are the two's complement.
    Ok(seed as u64)
}

fn logit_bias(fields: &mut Fields, limits: &Limits) -> Vec<(TokenId, Bias)> {
    const FIELD: &str = "logit_bias";
    let Some(Object { members, .. }) = fields.read(FIELD, |value| bias_map(value, limits.logit_bias)) else {
        return Vec::new();
    };
    let mut biases = Vec::with_capacity(members.len());
    for (key, value) in members {
        let here = || -> [Loc; 2] { [FIELD.into(), Loc::echoed(&key)] };
        let id = fields.noted(here(), bias_key(&key));
        let bias = if value == Json::Null { None } else { fields.noted(here(), number(value, Bias::new)) };
        biases.extend(id.zip(bias));
    }
    biases.sort_unstable_by_key(|(id, _)| *id);
    biases
}

fn bias_map(value: Json, limit: usize) -> Result<Object, Broken> {
    match value {
        Json::Object(map) if map.len <= limit => Ok(map),
        Json::Object(_) => Err((FaultKind::TooLong, format!("must hold at most {limit} entries"))),
        _ => Err((FaultKind::DictType, "must be an object of token ids and numbers".into())),
    }
}

/// One spelling per id, so that an object's unique keys are unique ids.
fn bias_key(key: &str) -> Result<TokenId, Broken> {
    let id = key.parse::<u32>().ok().filter(|id| id.to_string() == key);
    id.map(TokenId).ok_or_else(|| (FaultKind::Pattern, "keys must be token ids, without signs or leading zeros".into()))
}

fn stop(fields: &mut Fields, limits: &Limits) -> Vec<ClientText> {
    const FIELD: &str = "stop";
    match fields.take(FIELD) {
        None => Vec::new(),
        Some(Json::List(list)) => {
            let list = fields.noted([FIELD.into()], short_list(Json::List(list), limits.stop)).unwrap_or_default();
            let read = |(place, element)| {
                fields.noted([FIELD.into(), Loc::from(place)], stop_string(value_of(element), limits))
            };
            list.into_elements().filter_map(read).collect()
        }
        Some(value) => fields.noted([FIELD.into()], stop_string(value, limits)).into_iter().collect(),
    }
}

fn stop_string(value: Json, limits: &Limits) -> Result<ClientText, Broken> {
    let stop = short_text(value, limits.stop_bytes)?;
    if stop.0.is_empty() {
        return Err((FaultKind::StringTooShort, "must not be empty: it would end every answer at once".into()));
    }
    Ok(stop)
}

fn stop_token_ids(fields: &mut Fields) -> Vec<TokenId> {
    const FIELD: &str = "stop_token_ids";
    let list = fields.read(FIELD, |value| short_list(value, MAX_STOP_TOKEN_IDS)).unwrap_or_default();
    token_ids(fields, list, |place| vec![FIELD.into(), place.into()])
}

/// `stream_options` is read without `stream` too: clients send it with every request.
fn delivery(fields: &mut Fields) -> Delivery {
    const FIELD: &str = "stream_options";
    let mut usage = StreamUsage::Omitted;
    for (key, value) in fields.read(FIELD, options).map(|options| options.members).unwrap_or_default() {
        match key.as_str() {
            "include_usage" if value == Json::Null => {}
            "include_usage" => {
                if fields.noted([FIELD.into(), "include_usage".into()], flag(value)) == Some(true) {
                    usage = StreamUsage::Included;
                }
            }
            unknown => fields.ignore(FIELD, unknown),
        }
    }
    if fields.flag("stream", false) { Delivery::Stream { usage } } else { Delivery::Whole }
}

fn options(value: Json) -> Result<Object, Broken> {
    match value {
        Json::Object(options) => Ok(options),
        _ => Err((FaultKind::DictType, "must be an object".into())),
    }
}

#[cfg(test)]
pub(crate) mod tests;
