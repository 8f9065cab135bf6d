//! Takes a request's body off the wire: JSON by its headers, within `limits.body` and `limits.body_timeout`. What the bytes
//! mean is `validate`'s matter.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::error::{ApiError, MediaFault};
use crate::app::App;

/// For a client to finish sending a body that is too long anyway. Answering at once and closing would reset the
/// connection under its writes, and it would never read the answer.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes of an upload that are still read once it was refused: what a fast network brings in that time.
const LINGER_BYTES: usize = 64 << 20;

/// The bytes of a body that calls itself JSON.
#[derive(Debug)]
pub struct JsonBody(pub Vec<u8>);

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        check_media(&parts.headers)?;
        let (limit, deadline) = (app.limits.body, app.limits.body_timeout);
        let bytes = timeout(deadline, read(body, declared_length(&parts.headers), limit)).await;
        bytes.map_err(|_| ApiError::RequestTimeout { limit: deadline })?.map(Self)
    }
}

/// JSON may say so or say nothing: many small clients do not. A form (what `curl -d` says by default) is refused with a hint.
fn check_media(headers: &HeaderMap) -> Result<(), MediaFault> {
    check_encoding(headers)?;
    let Some(kind) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let essence = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"));
    if is_json { Ok(()) } else { Err(MediaFault::ContentType) }
}

/// What separates the parts of a body that is a form with files.
pub(super) fn boundary(headers: &HeaderMap) -> Result<String, MediaFault> {
    check_encoding(headers)?;
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(kind).map_err(|_| MediaFault::NotForm)?;
    // RFC 2046 has 1 to 70 characters.
    if (1..=70).contains(&boundary.len()) { Ok(boundary) } else { Err(MediaFault::NotForm) }
}

fn check_encoding(headers: &HeaderMap) -> Result<(), MediaFault> {
    if headers.get_all(CONTENT_ENCODING).iter().any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(MediaFault::ContentEncoding);
    }
    Ok(())
}

pub(super) fn declared_length(headers: &HeaderMap) -> usize {
    headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// Copies the chunks together, so that a body in tiny ones takes no more memory than its bytes.
async fn read(mut body: Body, declared: usize, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    if declared > limit {
        return Err(refuse_long(body, limit).await);
    }
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(broken_off()) };
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(refuse_long(body, limit).await);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

async fn refuse_long(mut body: Body, limit: usize) -> ApiError {
    read_on(&mut body, limit).await;
    ApiError::TooLarge { limit: limit as u64 }
}

/// Reads on in an upload that was refused, for as long as any other body.
pub(super) async fn linger(body: &mut Body) {
    read_on(body, LINGER_BYTES).await;
}

/// Reads on for a moment, at most `most` bytes, and keeps nothing.
async fn read_on(body: &mut Body, most: usize) {
    let drain = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, |data| data.len());
            if seen > most {
                break;
            }
        }
    };
    // Late or not, the answer is the same.
    let _ = timeout(LINGER, drain).await;
}

fn broken_off() -> ApiError {
    ApiError::Malformed { param: None, why: "the body broke off".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media(header: axum::http::HeaderName, value: &str) -> Result<(), MediaFault> {
        check_media(&HeaderMap::from_iter([(header, value.parse().unwrap())]))
    }

    #[test]
    fn json_is_taken_under_its_names_and_forms_are_not() {
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"] {
            assert!(media(CONTENT_TYPE, good).is_ok(), "{good} was refused");
        }
        for bad in [
            "application/x-www-form-urlencoded",
            "text/plain",
            "text/json",
            "multipart/form-data; boundary=x",
            "",
            "application/jsonx",
        ] {
            assert_eq!(media(CONTENT_TYPE, bad), Err(MediaFault::ContentType), "{bad} was taken");
        }
        assert!(check_media(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn a_compressed_body_is_never_unpacked() {
        for bad in ["gzip", "br", "zstd", "deflate", "gzip, identity"] {
            assert_eq!(media(CONTENT_ENCODING, bad), Err(MediaFault::ContentEncoding));
        }
        assert!(media(CONTENT_ENCODING, "identity").is_ok());
    }
}
