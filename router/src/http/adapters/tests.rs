//! The contract of the adapters' endpoints, without a socket; the adapters are the tiny model's.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use shoal_common::config::Limits;
use shoal_common::shutdown;
use shoal_common::wire::hello::{AdapterState, AdapterTier};
use tokio::net::TcpListener;

use super::*;
use crate::adapters::allow::Allowed;
use crate::adapters::intake::Payload;
use crate::adapters::{Registry, Settings, WorkerAdapter};
use crate::http::tests::{app, ask, get, post, say};
use crate::http::{router, server};
use crate::testing::{Fleet, Heard, adapter_settings, golden, order};

struct Scene {
    fleet: Arc<Fleet>,
    heard: Arc<Heard>,
    registry: Registry,
    paths: Router,
    _data: tempfile::TempDir,
}

type Answer = (StatusCode, Value);

impl Scene {
    /// A router that has one worker's model, `tiny`, and takes adapters from the golden directories.
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(edit: impl FnOnce(&mut Settings)) -> Self {
        let (data, fleet) = (tempfile::tempdir().unwrap(), Arc::new(Fleet::default()));
        fleet.join("tiny");
        let mut settings = adapter_settings(data.path());
        settings.allowed = Allowed::new([golden("tiny"), golden("bad-adapters")]);
        edit(&mut settings);
        let registry = Registry::open(settings, Arc::<Fleet>::clone(&fleet)).unwrap();
        let heard = Arc::new(Heard::default());
        registry.connect(Arc::<Heard>::clone(&heard));
        let app = App { catalogue: Arc::<Fleet>::clone(&fleet), adapters: registry.clone(), ..app(Limits::default()) };
        Self { fleet, heard, registry, paths: router(Arc::new(app)), _data: data }
    }

    async fn get(&self, path: &str) -> Answer {
        let (status, _, body) = get(&self.paths, path).await;
        (status, body)
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        let (status, _, body) = post(&self.paths, path, body.to_string()).await;
        (status, body)
    }

    async fn delete(&self, path: &str) -> Answer {
        let (status, _, body) = ask(&self.paths, Request::delete(path).body(Body::empty()).unwrap()).await;
        (status, body)
    }

    /// Uploads the files of a golden directory.
    async fn put(&self, path: &str, directory: &str) -> Answer {
        self.put_bytes(path, form(directory)).await
    }

    async fn put_bytes(&self, path: &str, body: Vec<u8>) -> Answer {
        let request = Request::put(path).header("content-type", "multipart/form-data; boundary=X");
        let (status, _, body) = ask(&self.paths, request.body(Body::from(body)).unwrap()).await;
        (status, body)
    }

    async fn complete(&self, fields: Value) -> Answer {
        let mut body = json!({ "prompt": "hello", "max_tokens": 1 });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        self.post("/v1/completions", body).await
    }

    fn register(&self, directory: &str) -> Value {
        json!({ "name": "a", "path": golden(directory) })
    }
}

fn form(directory: &str) -> Vec<u8> {
    let mut form = Vec::new();
    for file in crate::adapters::stamp::FILES {
        let disposition = format!("Content-Disposition: form-data; name=\"{file}\"; filename=\"{file}\"");
        form.extend(format!("--X\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n").into_bytes());
        form.extend(fs::read(golden(directory).join(file)).unwrap());
        form.extend(b"\r\n");
    }
    form.extend(b"--X--\r\n");
    form
}

/// Status, code and place of an error.
fn refused((status, body): Answer) -> (u16, String, Value) {
    let code = body["error"]["code"].as_str().unwrap_or_default().to_owned();
    assert!(!body["error"]["message"].as_str().unwrap_or_default().is_empty(), "{body}");
    (status.as_u16(), code, body["detail"][0]["loc"].clone())
}

fn invalid(loc: Value) -> (u16, String, Value) {
    (422, "invalid_field".to_owned(), loc)
}

fn other(status: u16, code: &str) -> (u16, String, Value) {
    (status, code.to_owned(), Value::Null)
}

#[tokio::test]
async fn an_upload_is_listed_described_and_removed() {
    let scene = Scene::new();
    assert_eq!(scene.get("/v1/adapters").await, (StatusCode::OK, json!({ "object": "list", "data": [] })));
    let (status, put) = scene.put("/v1/adapters/org/a?model=tiny", "tiny/tiny-qv").await;
    assert_eq!(status, 200, "{put}");
    let (status, one) = scene.get("/v1/adapters/org/a").await;
    assert_eq!((status, &one), (StatusCode::OK, &put));
    assert_eq!(scene.get("/v1/adapters").await.1["data"], json!([put]));
    let generation = one["generation"].as_str().unwrap();
    assert_eq!(generation.len(), 64);
    let expected = json!({
        "id": "org/a", "object": "adapter", "model": "tiny", "state": "ready", "reason": null, "source": "api",
        "pinned": false, "generation": generation, "previous": null, "rank": 4, "bytes": 12 + 1080 + 16352,
        "created": one["created"], "system_fingerprint": one["system_fingerprint"], "workers": [],
    });
    assert_eq!(one, expected);
    let (status, removed) = scene.delete("/v1/adapters/org/a").await;
    assert_eq!((status, removed), (StatusCode::OK, json!({ "id": "org/a", "object": "adapter", "deleted": true })));
    assert_eq!(refused(scene.get("/v1/adapters/org/a").await), other(404, "adapter_not_found"));
    assert_eq!(refused(scene.delete("/v1/adapters/org/a").await), other(404, "adapter_not_found"));
}

#[tokio::test]
async fn a_path_that_the_operator_listed_is_registered_and_no_other_is() {
    let scene = Scene::new();
    let (status, made) = scene.post("/v1/adapters", scene.register("tiny/tiny-qv")).await;
    assert_eq!((status, &made["source"], &made["rank"]), (StatusCode::OK, &json!("api"), &json!(4)), "{made}");
    let at = |path: Value| json!({ "name": "b", "path": path });
    for outside in
        [json!(golden("adapters/upper")), json!("/etc"), json!(golden("tiny/../adapters/upper")), json!("tiny-qv")]
    {
        let (status, error) = scene.post("/v1/adapters", at(outside.clone())).await;
        let sentence = error["detail"][0]["msg"].as_str().unwrap_or_default().to_owned();
        assert_eq!(refused((status, error)), invalid(json!(["body", "path"])), "{outside}");
        assert!(sentence.contains("router.adapter_paths"), "{outside}: {sentence}");
    }
    let none = Scene::with(|settings| settings.allowed = Allowed::default());
    let (status, error) = none.post("/v1/adapters", none.register("tiny/tiny-qv")).await;
    assert_eq!(status, 422);
    assert!(error["error"]["message"].as_str().unwrap().contains("PUT /v1/adapters"), "{error}");
}

#[tokio::test]
async fn what_a_registration_lacks_is_named() {
    let scene = Scene::new();
    let asked = [
        (json!({}), json!(["body", "name"])),
        (json!({ "name": "a" }), json!(["body", "path"])),
        (json!({ "name": "../a", "path": "/x" }), json!(["body", "name"])),
        (json!({ "name": "a", "path": "" }), json!(["body", "path"])),
        (json!({ "name": "a", "path": 7 }), json!(["body", "path"])),
        (json!({ "name": "a", "path": golden("tiny/tiny-qv"), "model": "x y" }), json!(["body", "model"])),
        (json!({ "name": "a", "path": golden("tiny/tiny-qv"), "model": "other" }), json!(["body", "model"])),
        (json!({ "name": "tiny", "path": golden("tiny/tiny-qv") }), json!(["body", "name"])),
        (json!({ "name": "a", "path": golden("tiny/none") }), json!(["body", "path"])),
        (json!({ "name": "a", "path": golden("bad-adapters/missing-weights") }), json!(["body", "path"])),
        (json!({ "name": "a", "path": golden("bad-adapters/wrong-base-hidden960") }), json!(["body", "path"])),
    ];
    for (body, loc) in asked {
        assert_eq!(refused(scene.post("/v1/adapters", body.clone()).await), invalid(loc), "{body}");
    }
    assert!(scene.registry.list().is_empty());
}

#[tokio::test]
async fn what_an_upload_lacks_is_named() {
    let scene = Scene::new();
    let put = async |path: &str, directory: &str| refused(scene.put(path, directory).await);
    assert_eq!(put("/v1/adapters/a", "bad-adapters/nan-weights").await, invalid(json!(["body"])));
    assert_eq!(put("/v1/adapters/a%20b", "tiny/tiny-qv").await, invalid(json!(["path", "id"])));
    assert_eq!(put("/v1/adapters/tiny", "tiny/tiny-qv").await, invalid(json!(["path", "id"])));
    assert_eq!(put("/v1/adapters/a?model=x%20y", "tiny/tiny-qv").await, invalid(json!(["query", "model"])));
    assert_eq!(put("/v1/adapters/a?model=other", "tiny/tiny-qv").await, invalid(json!(["query", "model"])));
    assert_eq!(put("/v1/adapters/a?model=a&model=b", "tiny/tiny-qv").await, invalid(json!(["query", "model"])));
    let cut = form("tiny/tiny-qv")[..5000].to_vec();
    assert_eq!(refused(scene.put_bytes("/v1/adapters/a", cut).await), other(400, "malformed_body"));
    for kind in
        ["application/json", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=X"]
    {
        let request = Request::put("/v1/adapters/a").header("content-type", kind);
        let (status, _, body) = ask(&scene.paths, request.body(Body::from(form("tiny/tiny-qv"))).unwrap()).await;
        assert_eq!(refused((status, body)), other(415, "unsupported_media_type"), "{kind}");
    }
    assert!(scene.registry.list().is_empty());
}

#[tokio::test]
async fn an_upload_has_a_limit_of_its_own() {
    let exact = 1080 + 16352;
    let scene = Scene::with(|settings| settings.adapter_bytes = exact);
    assert_eq!(scene.put("/v1/adapters/a", "tiny/tiny-qv").await.0, 200);
    let scene = Scene::with(|settings| settings.adapter_bytes = exact - 1);
    let (status, error) = scene.put("/v1/adapters/a", "tiny/tiny-qv").await;
    assert_eq!(error["error"]["message"], format!("the body is longer than {} bytes", exact - 1));
    assert_eq!(refused((status, error)), other(413, "body_too_large"));
    assert!(scene.registry.list().is_empty());
}

#[tokio::test]
async fn an_upload_that_is_too_large_reads_its_answer_whether_it_says_its_length_or_not() {
    let scene = Scene::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_trigger, shutdown) = shutdown::channel();
    let paths = scene.paths.clone();
    tokio::spawn(async move {
        server::serve(listener, paths, &Limits::default(), Duration::from_millis(200), shutdown).await;
    });
    let part = b"--X\r\nContent-Disposition: form-data; name=\"adapter_model.safetensors\"\r\n\r\n";
    let body = [&part[..], &vec![b'x'; 6 << 20]].concat();
    let head = "PUT /v1/adapters/a HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=X\r\n";
    let declared = [format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
    let size = format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len());
    let chunked = [size.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    for request in [declared, chunked] {
        let answer = say(address, &request).await;
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("4194304 bytes"), "{answer}");
    }
    let waiting = format!("{head}Content-Length: {}\r\nExpect: 100-continue\r\n\r\n", body.len());
    let answer = say(address, waiting.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "it was told to send: {answer}");
    assert!(scene.registry.spool().is_ok());
}

#[tokio::test]
async fn without_a_worker_of_the_base_model_an_upload_is_told_to_come_back() {
    let scene = Scene::new();
    scene.fleet.leave();
    let request = Request::put("/v1/adapters/a").header("content-type", "multipart/form-data; boundary=X");
    let (status, headers, body) = ask(&scene.paths, request.body(Body::from(form("tiny/tiny-qv"))).unwrap()).await;
    assert_eq!(headers["retry-after"], "2");
    assert_eq!(refused((status, body)), other(503, "adapter_pending"));
    let configured = Scene::with(|settings| settings.models = BTreeSet::from([Name::new("big").unwrap()]));
    let answer = configured.put("/v1/adapters/a?model=big", "tiny/tiny-qv").await;
    assert_eq!(refused(answer), other(503, "adapter_pending"), "its worker has not joined");
}

#[tokio::test]
async fn no_more_uploads_are_taken_at_once_than_there_are_places() {
    let scene = Scene::new();
    let taken: Vec<_> = (0..crate::adapters::spool::UPLOADS).map(|_| scene.registry.spool().unwrap()).collect();
    assert_eq!(refused(scene.put("/v1/adapters/a", "tiny/tiny-qv").await), other(503, "busy"));
    drop(taken);
    assert_eq!(scene.put("/v1/adapters/a", "tiny/tiny-qv").await.0, 200);
}

#[tokio::test]
async fn adapters_of_the_file_and_the_directory_are_not_changed_by_requests() {
    let scene = Scene::new();
    for (name, source) in [("c", Source::Config), ("d", Source::Directory)] {
        let payload = Payload::Directory(golden("tiny/tiny-qv"));
        scene.registry.register(order(name, source), payload).await.unwrap();
        let path = format!("/v1/adapters/{name}");
        assert_eq!(refused(scene.put(&path, "tiny/tiny-all").await), other(409, "adapter_owned"));
        assert_eq!(refused(scene.delete(&path).await), other(409, "adapter_owned"));
        assert_eq!(scene.get(&path).await.1["source"], source.as_str());
    }
}

#[tokio::test]
async fn there_are_no_more_adapters_than_the_limit() {
    let scene = Scene::with(|settings| settings.adapters = 1);
    assert_eq!(scene.put("/v1/adapters/a", "tiny/tiny-qv").await.0, 200);
    assert_eq!(refused(scene.put("/v1/adapters/b", "tiny/tiny-qv").await), invalid(json!(["path", "id"])));
    assert_eq!(scene.put("/v1/adapters/a", "tiny/tiny-all").await.0, 200, "a replacement is no further one");
}

#[tokio::test]
async fn vllms_endpoints_answer_in_its_words() {
    let scene = Scene::new();
    let text = async |path: &str, body: Value| {
        let request = Request::post(path).body(Body::from(body.to_string())).unwrap();
        let response = tower::ServiceExt::oneshot(scene.paths.clone(), request).await.unwrap();
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status.as_u16(), String::from_utf8(bytes.to_vec()).unwrap())
    };
    let load = json!({ "lora_name": "a", "lora_path": golden("tiny/tiny-qv") });
    let added = "Success: LoRA adapter 'a' added successfully.".to_owned();
    assert_eq!(text("/v1/load_lora_adapter", load.clone()).await, (200, added.clone()));
    let (status, error) = text("/v1/load_lora_adapter", load).await;
    let message = "The lora adapter 'a' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.";
    assert_eq!((status, json_of(&error)["error"]["message"].as_str()), (400, Some(message)));
    let again = json!({ "lora_name": "a", "lora_path": golden("tiny/tiny-all"), "load_inplace": true });
    assert_eq!(text("/v1/load_lora_adapter", again).await, (200, added));
    let unload = json!({ "lora_name": "a" });
    let removed = "Success: LoRA adapter 'a' removed successfully.".to_owned();
    assert_eq!(text("/v1/unload_lora_adapter", unload.clone()).await, (200, removed));
    let (status, error) = text("/v1/unload_lora_adapter", unload).await;
    assert_eq!((status, json_of(&error)["error"]["param"].as_str()), (404, Some("lora_name")));
    let outside = json!({ "lora_name": "a", "lora_path": "/etc" });
    assert_eq!(refused(scene.post("/v1/load_lora_adapter", outside).await), invalid(json!(["body", "lora_path"])));
    assert_eq!(refused(scene.post("/v1/load_lora_adapter", json!({})).await), invalid(json!(["body", "lora_name"])));
    assert_eq!(refused(scene.post("/v1/unload_lora_adapter", json!({})).await), invalid(json!(["body", "lora_name"])));
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn a_page_of_elsewhere_changes_no_adapter() {
    let scene = Scene::new();
    scene.put("/v1/adapters/a", "tiny/tiny-qv").await;
    let asked = [
        ("POST", "/v1/adapters"),
        ("PUT", "/v1/adapters/a"),
        ("DELETE", "/v1/adapters/a"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
    ];
    for (method, path) in asked {
        for (header, value, code) in
            [("origin", "https://evil.example", "foreign_origin"), ("host", "evil.example", "foreign_host")]
        {
            let request = Request::builder().method(method).uri(path).header(header, value);
            let request = request
                .header("content-type", "multipart/form-data; boundary=X")
                .body(Body::from(form("tiny/tiny-all")));
            let (status, _, body) = ask(&scene.paths, request.unwrap()).await;
            assert_eq!(refused((status, body)), other(403, code), "{method} {path}");
        }
    }
    assert_eq!(scene.get("/v1/adapters/a").await.1["rank"], 4);
}

#[tokio::test]
async fn where_an_adapter_is_on_workers_is_told() {
    let scene = Scene::new();
    scene.put("/v1/adapters/a", "tiny/tiny-qv").await;
    let (_, one) = scene.put("/v1/adapters/a", "tiny/tiny-all").await;
    let generation = |at: &str| {
        let listing = scene.registry.listing(&Name::new("a").unwrap()).unwrap();
        if at == "now" { listing.version.unwrap().generation } else { listing.previous.unwrap() }
    };
    let state = |at: &str, tier| AdapterState {
        generation: generation(at),
        tier,
        bytes: 500,
        rank: 4,
        load_ms: Some(7),
        idle_ms: None,
        pinned: true,
        reason: None,
    };
    let on = |worker: &str, state| WorkerAdapter { worker: Name::new(worker).unwrap(), state };
    *scene.heard.residents.lock().unwrap() =
        vec![on("alpha", state("now", AdapterTier::Memory)), on("beta", state("before", AdapterTier::Disk))];
    let (_, told) = scene.get("/v1/adapters/a").await;
    let row = |worker: &str, generation: &Value, tier: &str| {
        json!({ "worker": worker, "generation": generation, "tier": tier, "bytes": 500, "rank": 4, "load_ms": 7,
            "idle_ms": null, "pinned": true, "reason": null })
    };
    let rows = [row("alpha", &one["generation"], "memory"), row("beta", &one["previous"], "disk")];
    assert_eq!(told["workers"], json!(rows));
}

#[tokio::test]
async fn an_adapter_is_a_model_with_a_parent() {
    let scene = Scene::new();
    let (_, adapter) = scene.put("/v1/adapters/org/a", "tiny/tiny-qv").await;
    let (status, model) = scene.get("/v1/models/org/a").await;
    assert_eq!(status, 200, "{model}");
    assert_eq!((&model["parent"], &model["root"]), (&json!("tiny"), &json!("tiny")));
    assert_eq!(model["system_fingerprint"], adapter["system_fingerprint"]);
    let (_, base) = scene.get("/v1/models/tiny").await;
    assert_ne!(model["system_fingerprint"], base["system_fingerprint"]);
    assert_eq!(model["max_model_len"], base["max_model_len"]);
    assert_eq!(scene.get("/v1/models").await.1["data"], json!([base, model]));
    // What cannot be asked for is no model.
    scene.registry.announce(&order("unread", Source::Directory)).unwrap();
    assert_eq!(scene.get("/v1/models").await.1["data"].as_array().unwrap().len(), 2);
    assert_eq!(refused(scene.get("/v1/models/unread").await), other(404, "model_not_found"));
}

#[tokio::test]
async fn an_adapters_text_is_its_base_models() {
    let scene = Scene::new();
    scene.put("/v1/adapters/a", "tiny/tiny-qv").await;
    let tokens = async |model: &str| scene.post("/tokenize", json!({ "model": model, "prompt": "the cat" })).await;
    let (status, of_adapter) = tokens("a").await;
    assert_eq!((status, &of_adapter), (StatusCode::OK, &tokens("tiny").await.1));
    let body = json!({ "model": "a", "tokens": of_adapter["tokens"] });
    assert_eq!(scene.post("/detokenize", body).await.0, 200);
    assert_eq!(refused(tokens("none").await), other(404, "model_not_found"));
    scene.fleet.leave();
    assert_eq!(refused(tokens("a").await), other(503, "no_worker"));
}

#[tokio::test]
async fn a_completion_never_falls_back_to_the_base_model() {
    let scene = Scene::new();
    scene.put("/v1/adapters/a", "tiny/tiny-qv").await;
    scene.fleet.join("second");
    let payload = Payload::Directory(golden("tiny/tiny-all"));
    let of_second = Order { base: Some(Name::new("second").unwrap()), ..order("b", Source::Api) };
    scene.registry.register(of_second, payload).await.unwrap();
    scene.registry.announce(&order("pending", Source::Directory)).unwrap();
    let broken = Order { base: Some(Name::new("tiny").unwrap()), ..order("broken", Source::Directory) };
    let error = scene.registry.register(broken.clone(), Payload::Directory(golden("bad-adapters/nan-weights"))).await;
    scene.registry.note(&broken, &error.unwrap_err());

    let asked = [
        (json!({ "model": "tiny", "peft": "none" }), other(404, "adapter_not_found")),
        (json!({ "model": "a", "peft": "none" }), invalid(json!(["body", "peft"]))),
        (json!({ "model": "none", "peft": "a" }), other(404, "model_not_found")),
        (json!({ "model": "tiny", "peft": "b" }), invalid(json!(["body", "peft"]))),
        (json!({ "model": "b", "peft": "a" }), invalid(json!(["body", "peft"]))),
        (json!({ "model": "tiny", "peft": "tiny" }), other(404, "adapter_not_found")),
        (json!({ "model": "tiny", "peft": "pending" }), other(503, "adapter_pending")),
        (json!({ "model": "pending" }), other(503, "adapter_pending")),
        (json!({ "model": "tiny", "peft": "broken" }), invalid(json!(["body", "peft"]))),
        (json!({ "model": "broken" }), invalid(json!(["body", "model"]))),
    ];
    for (fields, expected) in asked {
        assert_eq!(refused(scene.complete(fields.clone()).await), expected, "{fields}");
    }
    // These get as far as to look for a worker, of which there is none.
    for fields in
        [json!({ "model": "a" }), json!({ "model": "a", "peft": "a" }), json!({ "model": "tiny", "peft": "a" })]
    {
        assert_eq!(refused(scene.complete(fields.clone()).await), other(503, "no_worker"), "{fields}");
    }
    let (_, unknown) = scene.complete(json!({ "model": "tiny", "peft": "none" })).await;
    assert_eq!(unknown["param"], "peft");
    let (_, quarantined) = scene.complete(json!({ "model": "tiny", "peft": "broken" })).await;
    assert!(quarantined["error"]["message"].as_str().unwrap().contains("for another base model"), "{quarantined}");
}
