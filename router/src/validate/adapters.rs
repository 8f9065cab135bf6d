//! Decodes the bodies of `POST /v1/adapters` and of vLLM's two endpoints.

use shoal_common::ids::Name;

use super::fields::{Broken, Fields, name, short_text};
use super::json::Json;
use crate::http::error::{ApiError, FaultKind};

/// Longest path in bytes: what a kernel takes.
const MAX_PATH: usize = 4096;

/// `POST /v1/adapters`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterRequest {
    /// The adapter's name.
    pub name: Name,
    /// A directory of the server; not yet checked against what may be named.
    pub path: String,
    /// Its base model.
    pub model: Option<Name>,
}

/// What becomes of an adapter that has the name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfLoaded {
    /// The request is refused.
    Refuse,
    /// It is replaced.
    Replace,
}

/// `POST /v1/load_lora_adapter`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadRequest {
    /// The adapter's name.
    pub name: Name,
    /// A directory of the server; not yet checked against what may be named.
    pub path: String,
    /// `base_model_name`: absent, it follows from the adapter.
    pub model: Option<Name>,
    /// `load_inplace`
    pub if_loaded: IfLoaded,
}

/// Decodes `POST /v1/adapters`. 400 if it is not strict JSON, 422 with all faults if it breaks a rule.
pub fn register(body: &[u8]) -> Result<RegisterRequest, ApiError> {
    let mut fields = Fields::parse(body, &["name", "path", "model"])?;
    let named = fields.required("name", name);
    let path = fields.required("path", path);
    let model = fields.read("model", name);
    let ((name, path), _) = fields.finish(named.zip(path))?;
    Ok(RegisterRequest { name, path, model })
}

/// Decodes `POST /v1/load_lora_adapter`, as [`register`] does.
pub fn load_lora_adapter(body: &[u8]) -> Result<LoadRequest, ApiError> {
    let mut fields = Fields::parse(body, &["lora_name", "lora_path", "base_model_name", "load_inplace"])?;
    let named = fields.required("lora_name", name);
    let path = fields.required("lora_path", path);
    let model = fields.read("base_model_name", name);
    let if_loaded = if fields.flag("load_inplace", false) { IfLoaded::Replace } else { IfLoaded::Refuse };
    let ((name, path), _) = fields.finish(named.zip(path))?;
    Ok(LoadRequest { name, path, model, if_loaded })
}

/// Decodes `POST /v1/unload_lora_adapter`, as [`register`] does.
pub fn unload_lora_adapter(body: &[u8]) -> Result<Name, ApiError> {
    let mut fields = Fields::parse(body, &["lora_name"])?;
    let named = fields.required("lora_name", name);
    Ok(fields.finish(named)?.0)
}

fn path(value: Json) -> Result<String, Broken> {
    let path = short_text(value, MAX_PATH)?.0;
    if path.is_empty() {
        return Err((FaultKind::StringTooShort, "must not be empty".into()));
    }
    Ok(path)
}
