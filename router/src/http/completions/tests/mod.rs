//! Completions on workers that are played by the test, over real QUIC on loopback.

mod adapters;

use std::future::pending;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::Value;
use shoal_common::block_hash::CacheSalt;
use shoal_common::config::{ApiConfig, Limits};
use shoal_common::ids::Name;
use shoal_common::shutdown;
use shoal_common::wire::message::GroupFrame;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use super::*;
use crate::adapters::Registry;
use crate::dispatch::tests::Stage;
use crate::fleet::pick::Unroutable;
use crate::fleet::pick::scripted::Scripted;
use crate::http::foreign::HostPolicy;
use crate::http::router;
use crate::operations::Operations;
use crate::prompt_log::PromptLog;
use crate::testing::no_adapters;

/// The paths of a router whose workers stand on `stage`. Dropping the trigger cuts what runs.
fn paths(stage: &Stage, limits: Limits) -> (Router, shutdown::Trigger) {
    paths_with(stage, limits, no_adapters())
}

fn paths_with(stage: &Stage, limits: Limits, adapters: Registry) -> (Router, shutdown::Trigger) {
    let (trigger, cut) = shutdown::channel();
    let app = App {
        requests: Arc::new(Semaphore::new(limits.requests)),
        limits,
        api: ApiConfig::default(),
        hosts: HostPolicy::LocalNames,
        cache_salt: CacheSalt(1),
        catalogue: Arc::new(stage.dispatcher.view.clone()),
        metrics: PrometheusBuilder::new().build_recorder().handle(),
        prompt_log: PromptLog::off(),
        adapters,
        dispatcher: stage.dispatcher.clone(),
        cut,
        text_threads: Arc::new(Semaphore::new(1)),
        operations: Operations::start(Name::new("test").unwrap(), stage.dispatcher.view.clone()),
    };
    (router(Arc::new(app)), trigger)
}

async fn complete(paths: &Router, fields: &str) -> (StatusCode, String) {
    let body = format!("{{\"model\":\"tiny\",\"prompt\":\"hello\"{fields}}}");
    let request = Request::post("/v1/completions").body(Body::from(body)).unwrap();
    let response = paths.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn the_deadline_holds_while_a_worker_has_not_answered() {
    let mut stage = Stage::new();
    let worker = stage.worker("a").await;
    let limits = Limits { deadline: Some(Duration::from_millis(50)), ..Limits::default() };
    let (paths, _cut) = paths(&stage, limits);
    let silent = async {
        let _group = worker.group().await;
        pending::<()>().await
    };
    let (status, body) = tokio::select! {
        answer = complete(&paths, "") => answer,
        () = silent => unreachable!("it never ends"),
    };
    assert_eq!((status, &json(&body)["code"]), (StatusCode::GATEWAY_TIMEOUT, &"deadline_passed".into()));
}

#[tokio::test]
async fn the_end_of_the_drain_is_told_to_a_request_that_waits_for_a_place() {
    let mut stage = Stage::new();
    let worker = stage.worker("a").await;
    let (paths, cut) = paths(&stage, Limits::default());
    let silent = async {
        let _group = worker.group().await;
        cut.fire();
        pending::<()>().await
    };
    let (status, body) = tokio::select! {
        answer = complete(&paths, "") => answer,
        () = silent => unreachable!("it never ends"),
    };
    assert_eq!((status, &json(&body)["code"]), (StatusCode::SERVICE_UNAVAILABLE, &"shutting_down".into()));
}

#[tokio::test]
async fn a_deadline_that_the_worker_notices_first_ends_choices_as_the_routers_own_does() {
    for fields in ["", ",\"stream\":true"] {
        let mut stage = Stage::new();
        let worker = stage.worker("a").await;
        let (paths, _cut) = paths(&stage, Limits::default());
        let plays = async {
            let mut group = worker.group().await;
            group.send(GroupFrame::Accepted).await;
            group.tokens(0, 0..2).await;
            group.send(GroupFrame::Failed(GroupFailure::Deadline)).await;
            group
        };
        let (_kept, (status, body)) = tokio::join!(plays, complete(&paths, fields));
        assert_eq!(status, StatusCode::OK, "{body}");
        assert!(body.contains("\"finish_reason\":\"cancelled\"") && !body.contains("\"error\""), "{body}");
        assert_eq!(body.ends_with("data: [DONE]\n\n"), !fields.is_empty());
    }
}

#[tokio::test]
async fn two_choices_that_end_in_one_step_share_one_usage() {
    let mut stage = Stage::new();
    let worker = stage.worker("a").await;
    let (paths, _cut) = paths(&stage, Limits::default());
    let plays = async {
        let mut group = worker.group().await;
        group.send(GroupFrame::Accepted).await;
        group.both_end().await;
        group
    };
    let fields = ",\"n\":2,\"stream\":true,\"stream_options\":{\"include_usage\":true}";
    let (_kept, (_, body)) = tokio::join!(plays, complete(&paths, fields));
    let events: Vec<&str> = body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(*done, "[DONE]");
    let usages: Vec<Value> = chunks.iter().map(|chunk| json(chunk)["usage"]["completion_tokens"].clone()).collect();
    assert_eq!(usages, [Value::Null, 2.into()]);
}

#[tokio::test]
async fn a_key_that_may_not_use_what_is_asked_for_is_told_so_and_no_worker_is_blamed() {
    for fields in ["", ",\"stream\":true"] {
        let mut stage = Stage::new();
        let _worker = stage.worker("a").await;
        stage.dispatcher.policy = Scripted::new([Err(Unroutable::Forbidden)]);
        let (paths, _cut) = paths(&stage, Limits::default());
        let (status, body) = complete(&paths, fields).await;
        let body = json(&body);
        assert_eq!((status, &body["code"]), (StatusCode::FORBIDDEN, &"forbidden".into()));
        assert_eq!(body["error"]["type"], "invalid_request_error");
    }
}
