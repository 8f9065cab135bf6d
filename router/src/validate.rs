use crate::{http::error::ApiError, request::CompletionRequest};
pub fn completion(_b: &[u8], _l: &shoal_common::config::Limits) -> Result<CompletionRequest, ApiError> { Err(ApiError::Internal) }
