//! `GET /openapi.json`: the contract for machines. A copy is kept in `docs/openapi.json`; a test says when it is stale.

use axum::Json;
use utoipa::OpenApi;

use super::error::{ErrorDocument, InvalidDocument};
use super::request_doc::CompletionRequestDoc;
use super::schema::Completion;
use super::{adapters, cluster, health, metrics, models, tokenize};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Shoal",
        description = "Completions from a cluster: the same request gives the same bytes.",
        version = "1",
        license(name = "Apache-2.0")
    ),
    paths(
        completion,
        models::list,
        models::one,
        cluster::show,
        cluster::drain,
        cluster::undrain,
        adapters::list,
        adapters::one,
        adapters::register::register,
        adapters::upload::upload,
        adapters::remove,
        adapters::vllm::load,
        adapters::vllm::unload,
        tokenize::tokenize,
        tokenize::detokenize,
        health::live,
        health::ready,
        metrics::render
    )
)]
struct Contract;

/// Completes one or more prompts. With `stream` the answer is `text/event-stream`: one completion per event, then `[DONE]`.
#[utoipa::path(
    post, path = "/v1/completions", tag = "completions", request_body = CompletionRequestDoc,
    responses(
        (status = 200, body = Completion, description = "The whole answer, or a stream of chunks of the same shape", headers(
            ("x-shoal-seed" = u64, description = "The seed that was used, if the request had none"),
            ("x-shoal-max-tokens" = u32, description = "max_tokens after it was cut to the context"),
            ("x-shoal-adapter" = String, description = "The adapter that answers, as name@generation"),
            ("x-shoal-ignored" = String, description = "Unknown fields of the request")
        )),
        (status = 400, body = ErrorDocument, description = "Not strict JSON"),
        (status = 404, body = ErrorDocument, description = "No such model or adapter"),
        (status = 413, body = ErrorDocument, description = "The body is too long"),
        (status = 415, body = ErrorDocument, description = "Not JSON, or compressed"),
        (status = 422, body = InvalidDocument, description = "Fields that break a rule, all of them"),
        (status = 503, body = ErrorDocument, description = "No room or no worker; see Retry-After")
    )
)]
#[expect(dead_code, reason = "carries the documentation of a handler that reads raw bytes and may stream")]
fn completion() {}

/// The contract as a document.
pub fn document() -> utoipa::openapi::OpenApi {
    Contract::openapi()
}

/// The handler.
pub(super) async fn serve() -> Json<utoipa::openapi::OpenApi> {
    Json(document())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_in_docs_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        let current = document().to_pretty_json().unwrap() + "\n";
        #[expect(clippy::disallowed_methods, reason = "asks the person who runs the test, and sets nothing")]
        let update = std::env::var_os("UPDATE_OPENAPI").is_some();
        if update {
            std::fs::write(path, &current).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            kept == current,
            "docs/openapi.json is stale; run: UPDATE_OPENAPI=1 cargo test --release -p shoal-router openapi"
        );
    }
}
