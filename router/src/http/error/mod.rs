//! Every way in which a request is refused; `document` is how each looks on the wire. Handlers and `validate` make these;
//! nothing in them can hold a prompt: texts are fixed, and what is echoed of the client's is a checked [`Name`] or a [`Loc`]
//! cut to printable ASCII.

mod document;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::json;
use shoal_common::ids::Name;

pub use self::document::{ErrorBody, ErrorDocument, FaultDocument, InvalidDocument};
pub use super::fault::{FaultKind, FieldFault, Loc, dotted, printable};

/// Served names that one message lists at most.
const MAX_LISTED: usize = 32;

/// Which header of a request cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MediaFault {
    /// `Content-Type` is there and is not JSON.
    #[error("the body must be JSON; send it with the header 'content-type: application/json'")]
    ContentType,
    /// A form with files is due, and this is none.
    #[error("the body must be multipart/form-data with the parts adapter_config.json and adapter_model.safetensors")]
    NotForm,
    /// `Content-Encoding` is there: compressed bodies are not taken, a few bytes could unpack to gigabytes.
    #[error("compressed bodies are not taken; send the body without content-encoding")]
    ContentEncoding,
}

/// Where the room ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusyReason {
    /// `limits.requests` are being served.
    #[error("the router serves as many requests as it may")]
    Requests,
    /// No worker has room for the request.
    #[error("all workers of this model are full")]
    Workers,
    /// Too many adapters are on their way in.
    #[error("too many adapters are being uploaded")]
    Uploads,
    /// Too many texts wait to be tokenised.
    #[error("too many texts wait to be tokenised")]
    Tokenizers,
}

/// Whose name a browser-borne request came under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForeignFault {
    /// `Host` is a name of somewhere else: what a web page does that rebinds its own name to this machine.
    #[error("this server listens on loopback only and answers to localhost or an IP address, not to this host name")]
    Host,
    /// `Origin` is a page of somewhere else.
    #[error("this server listens on loopback only and takes no requests from pages of other origins")]
    Origin,
}

/// A refused or failed request.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// 400: not JSON, or JSON with a duplicate key, a depth over 32 or a number outside f64.
    #[error("{}{why}", .param.as_ref().map(|param| format!("{param}: ")).unwrap_or_default())]
    Malformed {
        /// The field in which parsing failed, if it had got to one.
        param: Option<String>,
        /// What is wrong: fixed words and a position, never the text itself.
        why: Cow<'static, str>,
    },
    /// 400: an adapter of that name is there, and vLLM's endpoint was not told to replace it. In vLLM's words.
    #[error(
        "The lora adapter '{adapter}' has already been loaded. If you want to load the adapter in place, set \
         'load_inplace' to True."
    )]
    AdapterLoaded {
        /// Its name.
        adapter: Name,
    },
    /// 403: a page or a name of somewhere else.
    #[error(transparent)]
    Foreign(#[from] ForeignFault),
    /// 403: an order that did not come from the router's own machine.
    #[error("orders to the cluster are taken from the router's own machine only, and not through a proxy")]
    OperatorsOnly,
    /// 403: the request's key is not for what it asks for.
    #[error("the key of the request may not use this model")]
    Forbidden,
    /// 404: no such model, nor an adapter of that name.
    #[error("the model '{model}' is not served here; served: {}", listed(.served))]
    ModelNotFound {
        /// What the client asked for.
        model: Name,
        /// What there is.
        served: Vec<Name>,
    },
    /// 404: no such adapter.
    #[error("the adapter '{adapter}' does not exist")]
    AdapterNotFound {
        /// What the client asked for.
        adapter: Name,
        /// Where it did.
        param: &'static str,
    },
    /// 404: no such worker is connected.
    #[error("no worker '{worker}' is connected to this router; connected: {}", listed(.connected))]
    WorkerNotFound {
        /// Who was asked for.
        worker: Name,
        /// Who there is.
        connected: Vec<Name>,
    },
    /// 404: no such path.
    #[error("there is nothing at this path; the paths are in /openapi.json")]
    NotFound,
    /// 405: the path exists, the method does not. The response carries `Allow`.
    #[error("this path does not take this method")]
    MethodNotAllowed,
    /// 408: the body did not arrive in time.
    #[error("the body did not arrive within {} seconds", .limit.as_secs())]
    RequestTimeout {
        /// `limits.body_timeout`
        limit: Duration,
    },
    /// 409: an adapter that a request cannot change.
    #[error("{why}")]
    AdapterOwned {
        /// Whose it is.
        why: String,
    },
    /// 413: the body is too long.
    #[error("the body is longer than {limit} bytes")]
    TooLarge {
        /// `limits.body`, or `limits.adapter_bytes`
        limit: u64,
    },
    /// 415: another media type, or a compressed body.
    #[error(transparent)]
    UnsupportedMediaType(#[from] MediaFault),
    /// 422: JSON that breaks rules of the contract, all of them at once. At least one.
    #[error("{}", summary(.0))]
    Invalid(Vec<FieldFault>),
    /// 500: a fault of the router. The cause is logged where it happens.
    #[error("the server failed")]
    Internal,
    /// 502: a worker failed and no other could go on.
    #[error("the worker failed and no other could take over")]
    WorkerFailed,
    /// 503: no room now.
    #[error("{reason}; try again in {} s", retry_seconds(*.retry_after))]
    Busy {
        /// Expected wait.
        retry_after: Duration,
        /// Where the room ran out.
        reason: BusyReason,
    },
    /// 503: an adapter that cannot be judged, or had, yet.
    #[error("{why}")]
    AdapterPending {
        /// What it waits for.
        why: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// 503: no worker has room for the adapter, or could load it in time.
    #[error("the adapter could not be loaded by any worker; try again in {} s", retry_seconds(*.retry_after))]
    AdapterUnavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// 503: the model is known but no worker serves it now.
    #[error("no worker serves this model at the moment")]
    Unavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// 503: the process is ending.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// 504: the request's deadline passed before the first token.
    #[error("the deadline of the request passed")]
    DeadlinePassed,
}

impl ApiError {
    /// The single fault `fault` as a 422.
    pub fn invalid(fault: FieldFault) -> Self {
        Self::Invalid(vec![fault])
    }

    /// An adapter that workers found they cannot use, with what one of them said: a 422.
    pub fn adapter_refused(reason: Option<&str>) -> Self {
        let said = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let message = format!("no worker can use the adapter{said}");
        Self::invalid(FieldFault::field("peft", FaultKind::Value, message))
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.class().0
    }

    /// The object under `error`.
    pub fn body(&self) -> ErrorBody {
        let (_, kind, code) = self.class();
        ErrorBody { message: self.to_string(), kind, param: self.param(), code }
    }

    /// The data of a stream's error event: `{"error":{…}}`.
    pub fn event_json(&self) -> String {
        json!({ "error": self.body() }).to_string()
    }

    fn class(&self) -> (StatusCode, &'static str, &'static str) {
        const REQUEST: &str = "invalid_request_error";
        const NOT_FOUND: &str = "not_found_error";
        const OVERLOADED: &str = "overloaded_error";
        const SERVER: &str = "server_error";
        match self {
            Self::Malformed { .. } => (StatusCode::BAD_REQUEST, REQUEST, "malformed_body"),
            Self::AdapterLoaded { .. } => (StatusCode::BAD_REQUEST, REQUEST, "adapter_loaded"),
            Self::Foreign(ForeignFault::Host) => (StatusCode::FORBIDDEN, REQUEST, "foreign_host"),
            Self::Foreign(ForeignFault::Origin) => (StatusCode::FORBIDDEN, REQUEST, "foreign_origin"),
            Self::OperatorsOnly => (StatusCode::FORBIDDEN, REQUEST, "operators_only"),
            Self::Forbidden => (StatusCode::FORBIDDEN, REQUEST, "forbidden"),
            Self::ModelNotFound { .. } => (StatusCode::NOT_FOUND, NOT_FOUND, "model_not_found"),
            Self::WorkerNotFound { .. } => (StatusCode::NOT_FOUND, NOT_FOUND, "worker_not_found"),
            Self::AdapterNotFound { .. } => (StatusCode::NOT_FOUND, NOT_FOUND, "adapter_not_found"),
            Self::AdapterOwned { .. } => (StatusCode::CONFLICT, REQUEST, "adapter_owned"),
            Self::NotFound => (StatusCode::NOT_FOUND, NOT_FOUND, "not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, REQUEST, "method_not_allowed"),
            Self::RequestTimeout { .. } => (StatusCode::REQUEST_TIMEOUT, REQUEST, "request_timeout"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, "body_too_large"),
            Self::UnsupportedMediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, REQUEST, "unsupported_media_type"),
            Self::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, REQUEST, "invalid_field"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal_error"),
            Self::WorkerFailed => (StatusCode::BAD_GATEWAY, SERVER, "worker_failed"),
            Self::Busy { .. } => (StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, "busy"),
            Self::AdapterPending { .. } => (StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, "adapter_pending"),
            Self::AdapterUnavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, "adapter_unavailable"),
            Self::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, "no_worker"),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, "shutting_down"),
            Self::DeadlinePassed => (StatusCode::GATEWAY_TIMEOUT, SERVER, "deadline_passed"),
        }
    }

    fn param(&self) -> Option<String> {
        match self {
            Self::Malformed { param, .. } => param.clone(),
            Self::ModelNotFound { .. } => Some("model".to_owned()),
            Self::AdapterNotFound { param, .. } => Some((*param).to_owned()),
            Self::AdapterLoaded { .. } => Some("lora_name".to_owned()),
            Self::Invalid(faults) => faults.first().and_then(FieldFault::param),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. }
            | Self::AdapterPending { retry_after, .. }
            | Self::AdapterUnavailable { retry_after }
            | Self::Unavailable { retry_after } => Some(*retry_after),
            // Another router, or the next life of this one, is a matter of seconds.
            Self::ShuttingDown => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

/// `Retry-After` counts whole seconds; 0 would ask for a busy loop.
fn retry_seconds(wait: Duration) -> u64 {
    wait.as_millis().div_ceil(1000).clamp(1, u128::from(u32::MAX)) as u64
}

fn listed(served: &[Name]) -> String {
    let mut names = served.iter().take(MAX_LISTED).map(Name::as_str).collect::<Vec<_>>().join(", ");
    if served.is_empty() {
        names.push_str("nothing at the moment");
    } else if served.len() > MAX_LISTED {
        names.push_str(&format!(" and {} more", served.len() - MAX_LISTED));
    }
    names
}

fn summary(faults: &[FieldFault]) -> String {
    let first = faults.first().map(FieldFault::to_string).unwrap_or_default();
    match faults.len() {
        0 | 1 => first,
        more => format!("{first} (and {} more, see detail)", more - 1),
    }
}
