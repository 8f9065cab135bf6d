//! What the names in a request mean: a model, an adapter of it, or an adapter alone, which stands for its base model with it.
//! A name is looked up once and the answer kept, so that a request that began with an adapter ends with it. Called by the
//! handlers; never answers with the base model where an adapter was asked for.

use std::sync::Arc;
use std::time::Duration;

use shoal_common::ids::Name;

use crate::adapters::{Found, Resolved};
use crate::app::App;
use crate::catalogue::ServedModel;
use crate::http::error::{ApiError, FaultKind, FieldFault};

/// When to ask again for an adapter that waits: a worker joins, and a directory is read, within seconds.
pub const ADAPTER_WAIT: Duration = Duration::from_secs(2);

/// What a request runs on.
#[derive(Clone, Debug)]
pub struct Target {
    /// The model.
    pub model: Arc<ServedModel>,
    /// The adapter on it.
    pub adapter: Option<Resolved>,
}

/// What `model` and `peft` of a request mean. A name of both a model and an adapter is the model's.
pub fn target(app: &App, model: &Name, peft: Option<&Name>) -> Result<Target, ApiError> {
    match (app.catalogue.model(model), peft) {
        (Some(model), None) => Ok(Target { model, adapter: None }),
        (Some(model), Some(adapter)) => with_adapter(app, model, adapter),
        (None, _) if app.adapters.owner(model).is_none() => Err(app.unknown_model(model)),
        (None, Some(other)) if other != model => {
            let message = format!("must be absent or '{model}', as `model` names that adapter already");
            Err(ApiError::invalid(FieldFault::field("peft", FaultKind::Value, message)))
        }
        (None, _) => {
            let adapter = ready(app, model, "model")?;
            let model = app.catalogue.model(&adapter.base).ok_or_else(absent)?;
            Ok(Target { model, adapter: Some(adapter) })
        }
    }
}

fn with_adapter(app: &App, model: Arc<ServedModel>, name: &Name) -> Result<Target, ApiError> {
    if let Some(base) = app.adapters.base_of(name).filter(|base| *base != model.card.name) {
        let message = format!("'{name}' is an adapter of the model '{base}'");
        return Err(ApiError::invalid(FieldFault::field("peft", FaultKind::Value, message)));
    }
    let adapter = ready(app, name, "peft")?;
    Ok(Target { model, adapter: Some(adapter) })
}

/// The adapter that `field` names, or why it cannot be had.
fn ready(app: &App, name: &Name, field: &'static str) -> Result<Resolved, ApiError> {
    match app.adapters.find(name) {
        Found::Ready(adapter) => Ok(adapter),
        Found::Unknown => Err(ApiError::AdapterNotFound { adapter: name.clone(), param: field }),
        Found::Pending { reason, .. } => {
            let why = format!("the adapter '{name}' cannot be used yet: {reason}");
            Err(ApiError::AdapterPending { why, retry_after: ADAPTER_WAIT })
        }
        Found::Quarantined { reason, .. } => {
            let message = format!("the adapter '{name}' cannot be used: {reason}");
            Err(ApiError::invalid(FieldFault::field(field, FaultKind::Value, message)))
        }
    }
}

/// The model whose tokenizer `name` has: its own, or its base model's.
pub fn base(app: &App, name: &Name) -> Result<Arc<ServedModel>, ApiError> {
    if let Some(model) = app.catalogue.model(name) {
        return Ok(model);
    }
    match app.adapters.base_of(name) {
        Some(base) => app.catalogue.model(&base).ok_or_else(absent),
        None if app.adapters.owner(name).is_some() => Err(absent()),
        None => Err(app.unknown_model(name)),
    }
}

/// No worker of the base model is there.
fn absent() -> ApiError {
    ApiError::Unavailable { retry_after: ADAPTER_WAIT }
}
