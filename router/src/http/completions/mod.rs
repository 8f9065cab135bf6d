//! `POST /v1/completions`: from a validated request to one document or a stream of chunks. Owns the order of steps and the
//! shape of the response; what is computed and merged is [`crate::answer`]'s.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use shoal_common::ambient;
use shoal_common::config::UsageChunk;
use shoal_common::ids::Digest;
use shoal_common::wire::message::GroupFailure;
use tokio::sync::OwnedSemaphorePermit;

use super::body::JsonBody;
use super::error::{ApiError, BusyReason, FaultKind, FieldFault};
use super::report::{Envelope, Reporter};
use super::schema::FinishReason;
use super::sse::{self, EventSink, Patience, SinkError};
use super::trace::RequestId;
use crate::adapters::Resolved;
use crate::answer::{Answer, Progress};
use crate::app::App;
use crate::catalogue::{ServedModel, unix_seconds};
use crate::choice::Delta;
use crate::dispatch::DispatchError;
use crate::merge::ChoiceDelta;
use crate::plan::{self, Plan, Terms, TokenisedPrompt};
use crate::prompt_log::Outcome;
use crate::request::{CompletionRequest, Delivery, StreamUsage};
use crate::resolve::{self, Target};
use crate::text::prompts::{self, PromptError};
use crate::validate;

/// The seed in force.
const SEED: HeaderName = HeaderName::from_static("x-shoal-seed");
/// What a full context left of `max_tokens`.
const MAX_TOKENS: HeaderName = HeaderName::from_static("x-shoal-max-tokens");
/// The adapter that answers, as `name@generation`.
const ADAPTER: HeaderName = HeaderName::from_static("x-shoal-adapter");
/// Fields that mean nothing here.
const IGNORED: HeaderName = HeaderName::from_static("x-shoal-ignored");

/// Seeds that the router draws stay below 2^53, so that a JavaScript client can send them back.
const DRAWN_SEED_BITS: u32 = 53;

/// Answers a completion request.
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(request_id): Extension<RequestId>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let arrived = ambient::now();
    let request = validate::completion(&body, &app.limits)?;
    let permit = Arc::clone(&app.requests).try_acquire_owned().map_err(|_| ApiError::Busy {
        retry_after: app.dispatcher.view.expected_wait(),
        reason: BusyReason::Requests,
    })?;
    let Target { model, adapter } = resolve::target(&app, &request.model, request.adapter.as_ref())?;
    plan::check(&request, &model, model.tokenizer.has_infill())?;
    let (mut request, prompts) = tokenise(&app, &model, request).await?;
    let seed = request.seed.unwrap_or_else(|| ambient::draw::<u64>() >> (u64::BITS - DRAWN_SEED_BITS));
    // The prompt log must say what would give this answer again.
    request.seed = Some(seed);
    let generation = adapter.as_ref().map(|adapter| adapter.generation);
    let (share_key, cache_salt) = (share_key(&request), app.cache_salt);
    let terms = Terms { seed, share_key, cache_salt, adapter: generation };
    let plan = plan::plan(&request, &model, prompts, terms, &app.limits)?;
    let deadline = app.limits.deadline.map(|limit| arrived + limit);
    let answer = start(&app, &model, &plan, deadline).await?;
    let headers = headers(&request, &plan, seed, adapter.as_ref());
    let run = Run {
        envelope: Envelope::new(&request.model, model.card.fingerprint_with(generation), unix_seconds()),
        reporter: Reporter::new(&model.tokenizer, plan.logprobs),
        finishes: vec![None; plan.groups.len() * usize::from(plan.n)],
        app,
        request,
        adapter,
        request_id,
        answer,
        deadline,
        arrived,
        _permit: permit,
    };
    match run.request.delivery {
        Delivery::Whole => Ok((headers, run.whole().await?).into_response()),
        Delivery::Stream { usage } => Ok(run.stream(usage, headers)),
    }
}

async fn tokenise(
    app: &App,
    model: &Arc<ServedModel>,
    request: CompletionRequest,
) -> Result<(CompletionRequest, Vec<TokenisedPrompt>), ApiError> {
    let tokenizer = Arc::clone(&model.tokenizer);
    let job = move || prompts::tokenise(&tokenizer, &request).map(|prompts| (request, prompts));
    app.on_text_thread(job).await?.map_err(|error| match error {
        PromptError::NoDocumentStart => {
            ApiError::invalid(FieldFault::field("prompt", FaultKind::TooShort, error.to_string()))
        }
        PromptError::Tokenizer(error) => {
            tracing::error!(%error, "a prompt could not be tokenised");
            ApiError::Internal
        }
    })
}

/// Waits for a place for every group, no longer than the request and the router have.
async fn start(app: &App, model: &ServedModel, plan: &Plan, deadline: Option<Instant>) -> Result<Answer, ApiError> {
    let mut cut = app.cut.clone();
    tokio::select! {
        biased;
        answer = Answer::start(plan, model, &app.dispatcher, deadline) => Ok(answer?),
        () = passed(deadline) => Err(ApiError::DeadlinePassed),
        () = cut.fired() => Err(ApiError::ShuttingDown),
    }
}

/// The fair-share key of a request's user: a hash, so that workers do not learn names.
fn share_key(request: &CompletionRequest) -> u64 {
    let hash = request.user.as_ref().map(|user| Digest::of(user.0.as_bytes()).0);
    hash.and_then(|hash| hash.first_chunk().copied()).map_or(0, u64::from_le_bytes)
}

fn headers(request: &CompletionRequest, plan: &Plan, seed: u64, adapter: Option<&Resolved>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(SEED, seed.into());
    if let Some(adapter) = adapter.map(Resolved::to_string) {
        headers.insert(ADAPTER, HeaderValue::from_str(&adapter).expect("a name and hex digits are visible ASCII"));
    }
    if let Some(clamped) = plan.clamped {
        headers.insert(MAX_TOKENS, clamped.into());
    }
    if !request.ignored.is_empty()
        && let Ok(names) = HeaderValue::from_str(&request.ignored.join(", "))
    {
        headers.insert(IGNORED, names);
    }
    headers
}

/// A request whose groups run.
struct Run {
    app: Arc<App>,
    request: CompletionRequest,
    /// Held to the end: a replay may need its bytes.
    adapter: Option<Resolved>,
    request_id: RequestId,
    envelope: Envelope,
    reporter: Reporter,
    answer: Answer,
    /// By choice index, for the prompt log.
    finishes: Vec<Option<FinishReason>>,
    deadline: Option<Instant>,
    arrived: Instant,
    _permit: OwnedSemaphorePermit,
}

/// How a run came to its end.
enum Ending {
    /// All choices ended by themselves, or were cut by a deadline or the drain.
    Complete,
    /// Workers failed.
    Failed(DispatchError),
}

impl Run {
    /// The next deltas, and how it ended if these are the last. Cancel-safe.
    async fn next(&mut self) -> (Vec<ChoiceDelta>, Option<Ending>) {
        let mut cut = self.app.cut.clone();
        let progress = tokio::select! {
            biased;
            () = passed(self.deadline) => return (self.answer.cancel(), Some(Ending::Complete)),
            () = cut.fired() => return (self.answer.cancel(), Some(Ending::Complete)),
            progress = self.answer.next() => progress,
        };
        match progress {
            Progress::Deltas(deltas) => {
                let ending = self.answer.is_done().then_some(Ending::Complete);
                (deltas, ending)
            }
            Progress::Done => (Vec::new(), Some(Ending::Complete)),
            // The worker's clock was a little faster than ours.
            Progress::Failed(DispatchError::Failed(GroupFailure::Deadline)) => {
                (self.answer.cancel(), Some(Ending::Complete))
            }
            Progress::Failed(error) => (self.answer.cancel(), Some(Ending::Failed(error))),
        }
    }

    /// The answer as one document.
    async fn whole(mut self) -> Result<Response, ApiError> {
        let mut choices = vec![Delta::default(); self.finishes.len()];
        loop {
            let (deltas, ending) = self.next().await;
            for ChoiceDelta { index, delta } in deltas {
                choices[index as usize].append(delta);
            }
            match ending {
                None => {}
                Some(Ending::Failed(error)) => return Err(error.into()),
                Some(Ending::Complete) => break,
            }
        }
        self.finishes = choices.iter().map(|choice| choice.finish).collect();
        let choices = choices.into_iter().enumerate();
        let choices = choices.map(|(index, delta)| self.reporter.whole(index as u32, delta)).collect();
        Ok(Json(self.envelope.document(choices, Some(self.answer.usage()))).into_response())
    }

    /// The answer as server-sent events.
    fn stream(self, usage: StreamUsage, headers: HeaderMap) -> Response {
        let limits = &self.app.limits;
        let patience = Patience { slow_reader: limits.slow_reader, keep_alive: limits.sse_keep_alive };
        let body = sse::body(patience, move |sink| self.produce(sink, usage));
        let fixed = [
            (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        ];
        (fixed, headers, body).into_response()
    }

    async fn produce(mut self, mut sink: EventSink, usage: StreamUsage) -> Result<(), SinkError> {
        loop {
            let (deltas, ending) = sink.wait(self.next()).await?;
            self.send(&mut sink, deltas, usage, ending.is_some()).await?;
            match ending {
                None => {}
                Some(Ending::Complete) => return sink.event("[DONE]").await,
                Some(Ending::Failed(error)) => {
                    sink.event(&ApiError::from(error).event_json()).await?;
                    return sink.event("[DONE]").await;
                }
            }
        }
    }

    /// One event per delta; usage goes where the contract's setting says.
    async fn send(
        &mut self,
        sink: &mut EventSink,
        deltas: Vec<ChoiceDelta>,
        usage: StreamUsage,
        last: bool,
    ) -> Result<(), SinkError> {
        let due = (last && usage == StreamUsage::Included).then(|| self.answer.usage());
        let on_content = due.filter(|_| self.app.api.usage_chunk == UsageChunk::Octo);
        let count = deltas.len();
        for (position, ChoiceDelta { index, delta }) in deltas.into_iter().enumerate() {
            self.finishes[index as usize] = delta.finish.or(self.finishes[index as usize]);
            let usage = on_content.filter(|_| position + 1 == count);
            let chunk = self.envelope.chunk_json(vec![self.reporter.chunk(index, delta)], usage);
            sink.event(&chunk).await?;
        }
        if let Some(usage) = due.filter(|_| on_content.is_none() || count == 0) {
            let chunk = self.envelope.chunk_json(Vec::new(), Some(usage));
            sink.event(&chunk).await?;
        }
        Ok(())
    }
}

/// However a run ends, also when its client leaves, it is counted and, if it asked for that, noted in the prompt log.
impl Drop for Run {
    fn drop(&mut self) {
        let usage = self.answer.usage();
        metrics::counter!("shoal_prompt_tokens_total").increment(usage.prompt_tokens);
        metrics::counter!("shoal_completion_tokens_total").increment(usage.completion_tokens);
        metrics::histogram!("shoal_request_seconds").record(ambient::since(self.arrived).as_secs_f64());
        let adapter = self.adapter.as_ref().map(|adapter| adapter.generation);
        let outcome = Outcome {
            request_id: self.request_id.as_str(),
            adapter,
            finish: &self.finishes,
            usage,
            at: SystemTime::now(),
        };
        self.app.prompt_log.record(&self.request, &outcome);
    }
}

/// Resolves when `deadline` has passed; never without one.
async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

impl From<DispatchError> for ApiError {
    fn from(error: DispatchError) -> Self {
        match error {
            DispatchError::Busy { retry_after } => Self::Busy { retry_after, reason: BusyReason::Workers },
            DispatchError::Unavailable { retry_after } => Self::Unavailable { retry_after },
            DispatchError::AdapterUnavailable { retry_after } => Self::AdapterUnavailable { retry_after },
            DispatchError::Failed(GroupFailure::Deadline) => Self::DeadlinePassed,
            DispatchError::Failed(GroupFailure::AdapterRefused) => Self::adapter_refused(None),
            DispatchError::AdapterRefused { reason } => Self::adapter_refused(reason.as_deref()),
            DispatchError::Failed(GroupFailure::AdapterUnavailable) => {
                Self::AdapterUnavailable { retry_after: resolve::ADAPTER_WAIT }
            }
            DispatchError::Forbidden => Self::Forbidden,
            DispatchError::Lost | DispatchError::Failed(_) => Self::WorkerFailed,
        }
    }
}

#[cfg(test)]
mod tests;
