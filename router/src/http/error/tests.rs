//! What clients read of an error.

use axum::body::to_bytes;
use axum::http::HeaderMap;
use axum::http::header::RETRY_AFTER;
use axum::response::IntoResponse;
use serde_json::Value;

use super::*;

async fn rendered(error: ApiError) -> (StatusCode, HeaderMap, Value) {
    let response = error.into_response();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, headers, serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test]
async fn a_422_lists_every_fault_down_to_the_element() {
    let faults = vec![
        FieldFault::new([Loc::from("prompt"), Loc::from(3)], FaultKind::StringType, "must be a string"),
        FieldFault::field("temperature", FaultKind::TooLarge, "must be between 0 and 2"),
    ];
    let (status, _, body) = rendered(ApiError::Invalid(faults)).await;
    assert_eq!(status, 422);
    assert_eq!(body["detail"][0]["loc"], json!(["body", "prompt", 3]));
    assert_eq!(body["detail"][1]["type"], "less_than_equal");
    assert_eq!(body["error"]["param"], "prompt[3]");
    assert_eq!(body["error"]["message"], "prompt[3]: must be a string (and 1 more, see detail)");
}

#[tokio::test]
async fn other_errors_carry_the_message_for_both_families_of_clients() {
    let (status, _, body) = rendered(ApiError::ModelNotFound {
        model: Name::new("x").unwrap(),
        served: vec![Name::new("a").unwrap(), Name::new("b").unwrap()],
    })
    .await;
    assert_eq!(status, 404);
    assert_eq!(body["object"], "error");
    assert_eq!(body["message"], "the model 'x' is not served here; served: a, b");
    for key in ["message", "type", "param", "code"] {
        assert_eq!(body[key], body["error"][key], "{key} differs between the two shapes");
    }
}

#[tokio::test]
async fn a_503_says_in_whole_seconds_when_to_come_back() {
    for (wait, expected) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (59_500, "60")] {
        let retry_after = Duration::from_millis(wait);
        let (status, headers, _) = rendered(ApiError::Busy { retry_after, reason: BusyReason::Workers }).await;
        assert_eq!(status, 503);
        assert_eq!(headers[RETRY_AFTER], expected, "for {wait} ms");
    }
}

#[test]
fn a_stream_s_error_event_has_the_error_alone() {
    let event: Value = serde_json::from_str(&ApiError::WorkerFailed.event_json()).unwrap();
    assert_eq!(event.as_object().unwrap().len(), 1);
    assert_eq!(event["error"]["code"], "worker_failed");
}
