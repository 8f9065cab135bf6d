//! vLLM's two endpoints for adapters, with its words where a client may look for them.

use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;
use utoipa::ToSchema;

use super::refusal::Places;
use super::register::from_path;
use super::remove_by_request;
use crate::app::App;
use crate::http::body::JsonBody;
use crate::http::error::{ApiError, ErrorDocument, InvalidDocument};
use crate::validate::{self, IfLoaded, LoadRequest};

/// `POST /v1/load_lora_adapter` as documented.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = LoadLoraAdapterRequest)]
#[expect(dead_code, reason = "describes the request in /openapi.json; `validate` decodes it")]
pub(in crate::http) struct LoadRequestDoc {
    /// The adapter's name.
    lora_name: String,
    /// A PEFT directory of the server, as for `POST /v1/adapters`.
    lora_path: String,
    /// The base model; needed where several are served and the adapter does not say.
    base_model_name: Option<String>,
    /// Replace an adapter that has the name.
    #[schema(default = false)]
    load_inplace: Option<bool>,
}

/// `POST /v1/unload_lora_adapter` as documented.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = UnloadLoraAdapterRequest)]
#[expect(dead_code, reason = "describes the request in /openapi.json; `validate` decodes it")]
pub(in crate::http) struct UnloadRequestDoc {
    /// The adapter's name.
    lora_name: String,
}

/// `POST /v1/adapters` as vLLM calls it.
#[utoipa::path(
    post, path = "/v1/load_lora_adapter", tag = "adapters", request_body = LoadRequestDoc,
    responses(
        (status = 200, body = String, content_type = "text/plain"),
        (status = 400, body = ErrorDocument, description = "The name is taken, and load_inplace is not set"),
        (status = 409, body = ErrorDocument),
        (status = 422, body = InvalidDocument),
        (status = 503, body = ErrorDocument)
    )
)]
pub(in crate::http) async fn load(State(app): State<Arc<App>>, JsonBody(body): JsonBody) -> Result<String, ApiError> {
    let LoadRequest { name, path, model, if_loaded } = validate::load_lora_adapter(&body)?;
    if if_loaded == IfLoaded::Refuse && app.adapters.owner(&name).is_some() {
        return Err(ApiError::AdapterLoaded { adapter: name });
    }
    from_path(&app, (name.clone(), model), path, &Places::OF_VLLM).await?;
    Ok(format!("Success: LoRA adapter '{name}' added successfully."))
}

/// `DELETE /v1/adapters/{id}` as vLLM calls it.
#[utoipa::path(
    post, path = "/v1/unload_lora_adapter", tag = "adapters", request_body = UnloadRequestDoc,
    responses(
        (status = 200, body = String, content_type = "text/plain"),
        (status = 404, body = ErrorDocument),
        (status = 409, body = ErrorDocument)
    )
)]
pub(in crate::http) async fn unload(State(app): State<Arc<App>>, JsonBody(body): JsonBody) -> Result<String, ApiError> {
    let name = validate::unload_lora_adapter(&body)?;
    remove_by_request(&app, &name, &Places::OF_VLLM).await?;
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
}
