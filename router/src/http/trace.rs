//! Around every request: its id, its span, its count. The outermost middleware, so that refusals carry an id too. Records
//! the route's pattern, never the path or the body: both may hold text of the client's.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use shoal_common::ambient;
use tracing::Instrument;

/// The header in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id that is taken from a caller, in bytes.
const MAX_ID: usize = 128;

/// A request's id: the caller's if it is 1 to 128 visible ASCII characters, else made here. In every request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).map(HeaderValue::as_bytes).unwrap_or_default();
        let valid = (1..=MAX_ID).contains(&given.len()) && given.iter().all(u8::is_ascii_graphic);
        match std::str::from_utf8(given) {
            Ok(id) if valid => Self(id.into()),
            _ => Self(format!("req-{:032x}", ambient::draw::<u128>()).into()),
        }
    }
}

/// The middleware.
pub(super) async fn follow(mut request: Request, next: Next) -> Response {
    let started = ambient::now();
    let id = RequestId::of(request.headers());
    let method = known_method(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", |path| path.as_str()).to_owned();
    let span = tracing::info_span!("http", id = id.as_str(), method, route);
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).instrument(span.clone()).await;
    let value = HeaderValue::from_str(id.as_str()).expect("an id is visible ASCII");
    response.headers_mut().insert(REQUEST_ID, value);
    let status = response.status().as_u16();
    span.in_scope(|| tracing::debug!(status, head_ms = ambient::since(started).as_millis() as u64, "answered"));
    let labels = [("route", route), ("method", method.to_owned()), ("status", status.to_string())];
    metrics::counter!("shoal_http_requests_total", &labels).increment(1);
    response
}

/// A method of the client's own making must not become a metric label.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_visible_and_short_id_is_taken_over() {
        let id_for = |value: &[u8]| {
            RequestId::of(&HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_bytes(value).unwrap())]))
        };
        assert_eq!(id_for(b"abc-1").as_str(), "abc-1");
        assert_eq!(id_for(&[b'x'; 128]).as_str().len(), 128);
        for bad in [&b""[..], b"a b", b"\xff\xfe", &[b'x'; 129], b"a\tb"] {
            assert!(id_for(bad).as_str().starts_with("req-"), "{bad:?} was taken");
        }
        assert_ne!(RequestId::of(&HeaderMap::new()), RequestId::of(&HeaderMap::new()));
    }
}
