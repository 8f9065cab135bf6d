//! Completions with an adapter: what the worker is asked, what the client reads, and what becomes of the adapter's old content.

use std::time::Instant;

use axum::http::HeaderMap;
use serde_json::json;
use shoal_common::ids::Generation;

use super::*;
use crate::adapters::Source;
use crate::adapters::intake::Payload;
use crate::dispatch::tests::{Played, PlayedGroup};
use crate::testing::{adapter_settings, golden, model, order};

/// A router with one worker, and the adapter `a`.
struct Scene {
    worker: Played,
    registry: Registry,
    paths: Router,
    generation: Generation,
    _kept: (Stage, shutdown::Trigger, tempfile::TempDir),
}

impl Scene {
    async fn new() -> Self {
        let mut stage = Stage::new();
        let worker = stage.worker("w").await;
        let data = tempfile::tempdir().unwrap();
        let catalogue = Arc::new(stage.dispatcher.view.clone());
        let registry = Registry::open(adapter_settings(data.path()), catalogue).unwrap();
        let generation = put(&registry, "tiny/tiny-qv").await;
        let (paths, cut) = paths_with(&stage, Limits::default(), registry.clone());
        Self { worker, registry, paths, generation, _kept: (stage, cut, data) }
    }

    async fn ask(&self, fields: Value) -> (StatusCode, HeaderMap, String) {
        let mut body = json!({ "prompt": "hello", "max_tokens": 6, "seed": 1 });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let request = Request::post("/v1/completions").body(Body::from(body.to_string())).unwrap();
        let response = self.paths.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = to_bytes(body, 1 << 20).await.unwrap();
        (head.status, head.headers, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn answer(&self) -> PlayedGroup {
        let mut group = self.worker.group().await;
        group.send(GroupFrame::Accepted).await;
        group.tokens(0, 0..6).await;
        group
    }
}

async fn put(registry: &Registry, directory: &str) -> Generation {
    let listing = registry.register(order("a", Source::Api), Payload::Directory(golden(directory))).await;
    listing.unwrap().version.unwrap().generation
}

#[tokio::test]
async fn an_adapters_answer_comes_under_its_own_fingerprint_and_says_which_it_was() {
    let scene = Scene::new().await;
    let fingerprint = model().card.fingerprint_with(Some(scene.generation));
    let header = format!("a@{}", &scene.generation.to_string()[..12]);
    let asked =
        [json!({ "model": "a" }), json!({ "model": "tiny", "peft": "a" }), json!({ "model": "a", "peft": "a" })];
    for mut fields in asked {
        for stream in [false, true] {
            fields["stream"] = stream.into();
            let (group, (status, headers, body)) = tokio::join!(scene.answer(), scene.ask(fields.clone()));
            assert_eq!(status, 200, "{body}");
            assert_eq!((group.submit.adapter, group.submit.fingerprint), (Some(scene.generation), fingerprint));
            assert_eq!(headers["x-shoal-adapter"], header);
            let first = body.strip_prefix("data: ").and_then(|events| events.split("\n\n").next()).unwrap_or(&body);
            let first = json(first);
            assert_eq!(
                (&first["model"], first["system_fingerprint"].as_str()),
                (&fields["model"], Some(&*fingerprint.to_string()))
            );
        }
    }
    let (group, (_, headers, _)) = tokio::join!(scene.answer(), scene.ask(json!({ "model": "tiny" })));
    assert_eq!((group.submit.adapter, group.submit.fingerprint), (None, model().card.fingerprint));
    assert!(!headers.contains_key("x-shoal-adapter"));
}

#[tokio::test]
async fn a_running_request_keeps_what_its_adapters_name_meant() {
    let scene = Scene::new().await;
    let long = Duration::from_secs(3600);
    let plays = async {
        let mut group = scene.worker.group().await;
        group.send(GroupFrame::Accepted).await;
        group.tokens(0, 0..3).await;
        let next = put(&scene.registry, "tiny/tiny-all").await;
        scene.registry.sweep(Instant::now()).await;
        scene.registry.sweep(Instant::now() + long).await;
        assert!(scene.registry.blob(scene.generation.0).is_some(), "a replay could not be served");
        group.tokens(0, 3..6).await;
        next
    };
    let (next, (status, headers, _)) = tokio::join!(plays, scene.ask(json!({ "model": "a" })));
    assert_eq!(status, 200);
    assert!(headers["x-shoal-adapter"].to_str().unwrap().ends_with(&scene.generation.to_string()[..12]));
    scene.registry.sweep(Instant::now()).await;
    scene.registry.sweep(Instant::now() + long).await;
    assert!(scene.registry.blob(scene.generation.0).is_none(), "nobody needs it any more");
    let (group, _) = tokio::join!(scene.answer(), scene.ask(json!({ "model": "a" })));
    assert_eq!(group.submit.adapter, Some(next));
}

#[tokio::test]
async fn what_a_worker_says_of_an_adapter_is_the_answer_and_the_base_model_is_not_asked() {
    for (failure, status, code) in [
        (GroupFailure::AdapterRefused, 422, "invalid_field"),
        (GroupFailure::AdapterUnavailable, 503, "adapter_unavailable"),
    ] {
        let scene = Scene::new().await;
        let plays = async {
            let mut group = scene.worker.group().await;
            group.send(GroupFrame::Failed(failure)).await;
            group
        };
        let (_kept, (got, headers, body)) = tokio::join!(plays, scene.ask(json!({ "model": "tiny", "peft": "a" })));
        assert_eq!((got.as_u16(), json(&body)["error"]["code"].as_str()), (status, Some(code)), "{body}");
        assert_eq!(headers.contains_key("retry-after"), status == 503);
        assert_eq!(json(&body)["detail"][0]["loc"] == json!(["body", "peft"]), status == 422);
    }
}
