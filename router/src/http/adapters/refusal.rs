//! Why an adapter is not registered or removed, as an answer: each reason at the part of the request that it is about.

use shoal_common::ids::Name;

use crate::adapters::base::NoBase;
use crate::adapters::{BookError, RegisterError};
use crate::http::error::{ApiError, FaultKind, FieldFault, Loc};
use crate::resolve::ADAPTER_WAIT;

/// Where a request says the name, the base model and the files.
pub(super) struct Places {
    pub(super) name: &'static [&'static str],
    pub(super) model: &'static [&'static str],
    pub(super) files: &'static [&'static str],
}

impl Places {
    /// `PUT` and `DELETE /v1/adapters/{id}?model=`
    pub(super) const OF_UPLOAD: Self = Self { name: &["path", "id"], model: &["query", "model"], files: &["body"] };
    /// `POST /v1/adapters`
    pub(super) const OF_REGISTER: Self =
        Self { name: &["body", "name"], model: &["body", "model"], files: &["body", "path"] };
    /// vLLM's endpoints.
    pub(super) const OF_VLLM: Self =
        Self { name: &["body", "lora_name"], model: &["body", "base_model_name"], files: &["body", "lora_path"] };
}

/// `error` about the adapter `name`, in a request that says things at `places`.
pub(super) fn refusal(error: RegisterError, name: &Name, places: &Places) -> ApiError {
    let message = error.to_string();
    match error {
        RegisterError::Book(BookError::Unknown) => {
            ApiError::AdapterNotFound { adapter: name.clone(), param: places.name.last().copied().unwrap_or("id") }
        }
        RegisterError::Book(BookError::Owned { .. }) => ApiError::AdapterOwned { why: message },
        RegisterError::Book(BookError::Full { .. }) => fault(places.name, FaultKind::TooLong, message),
        RegisterError::NameOfModel => fault(places.name, FaultKind::Value, message),
        RegisterError::Book(BookError::Retiring)
        | RegisterError::Waiting { .. }
        | RegisterError::NoBase(NoBase::NoModels) => {
            ApiError::AdapterPending { why: message, retry_after: ADAPTER_WAIT }
        }
        RegisterError::NoBase(NoBase::Unsaid { .. }) => fault(places.model, FaultKind::Missing, message),
        RegisterError::UnknownBase { .. } => fault(places.model, FaultKind::Value, message),
        RegisterError::Unusable(_) => fault(places.files, FaultKind::Value, message),
        RegisterError::Storage(error) => {
            tracing::error!(%error, adapter = %name, "an adapter could not be stored");
            ApiError::Internal
        }
        RegisterError::Crashed => {
            tracing::error!(adapter = %name, "the check of an adapter failed");
            ApiError::Internal
        }
    }
}

/// One fault as a 422.
pub(super) fn fault(place: &[&'static str], kind: FaultKind, message: impl Into<String>) -> ApiError {
    let loc = place.iter().map(|step| Loc::from(*step)).collect();
    ApiError::invalid(FieldFault { loc, msg: message.into().into(), kind })
}
