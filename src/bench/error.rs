//! Why a server could not be measured, and what to do next. Every module of `bench` answers with it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hyper::StatusCode;

use super::sse::TooLong;

/// Why a measurement ended without figures. One failed request ends it: figures without it would flatter the server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("{0:?} is no address of a server; write it as http://127.0.0.1:8080")]
    BadUrl(String),
    #[error("{0} asks for TLS, which the client does not speak; give the http:// address behind what ends TLS")]
    Tls(String),
    #[error("cannot reach {authority}; is a server running there? `shoal dev` starts one, --url names another")]
    Unreachable { authority: String, source: io::Error },
    #[error("{path} was answered {status}: {message}{}", next_step(*status))]
    Refused { path: &'static str, status: StatusCode, message: String },
    #[error("the server lists no model; wait until it has loaded one (`curl {0}/v1/models`)")]
    NoModel(String),
    #[error("the server lists several models; choose with --model NAME or --models A,B: {}", .0.join(", "))]
    SeveralModels(Vec<String>),
    #[error("the connection broke before the answer was whole; the server's log may say why")]
    Broken(#[source] hyper::Error),
    #[error("the answer could not be read; is this an HTTP server with /v1/completions?")]
    NotReadable(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("an event of the stream is no completion chunk: {text}")]
    NotAChunk { text: String, source: serde_json::Error },
    #[error("{path} did not answer with the JSON that is expected of it")]
    NotJson { path: &'static str, source: serde_json::Error },
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error("the server gave up an answer that it had begun: {0}")]
    GaveUp(String),
    #[error("a stream ended without [DONE]: the answer may not be whole; the server's log may say why")]
    NoEnd,
    #[error("an answer was not whole after {} s; --timeout SECONDS allows more", .0.as_secs())]
    TimedOut(Duration),
    #[error(
        "the running streams ended before they were {0} tokens long, so nothing was running when the long prompt came"
    )]
    EndedEarly(usize),
    #[error("cannot write {}", path.display())]
    Report { path: PathBuf, source: io::Error },
}

/// What helps against an answer of this status, as the end of the message.
fn next_step(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => "; --model names another model, --url another server",
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
            "; the prompt options, --max-tokens and --extra shape the request"
        }
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            "; wait until the model has loaded, or lower --concurrency"
        }
        _ => "",
    }
}
