//! The paths without a socket, then the server with real ones.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use shoal_common::adapter::Geometry;
use shoal_common::block_hash::CacheSalt;
use shoal_common::config::{ApiConfig, Limits};
use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::{Digest, LayerRange, Name, TokenId};
use shoal_common::shutdown::{self, Trigger};
use shoal_common::watch;
use shoal_common::wire::blob::TokenizerBundle;
use shoal_common::wire::hello::ModelCard;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use super::foreign::HostPolicy;
use super::{router, server};
use crate::app::App;
use crate::catalogue::{Catalogue, Readiness, ServedModel};
use crate::dispatch::Dispatcher;
use crate::fleet::FleetView;
use crate::fleet::pick::ByAdapter;
use crate::operations::Operations;
use crate::prompt_log::PromptLog;
use crate::testing::no_adapters;
use crate::text::Tokenizer;
use crate::validate::tests::{body_of, table};

const MODEL: &str = "org/tiny";
const VOCAB: u32 = 512;

struct OneModel {
    model: Arc<ServedModel>,
    readiness: Readiness,
}

impl Catalogue for OneModel {
    fn models(&self) -> Vec<Arc<ServedModel>> {
        vec![Arc::clone(&self.model)]
    }

    fn model(&self, name: &Name) -> Option<Arc<ServedModel>> {
        (self.model.card.name == *name).then(|| Arc::clone(&self.model))
    }

    fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }
}

fn tiny() -> ServedModel {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden/tiny/base/tokenizer.json");
    let bundle = TokenizerBundle {
        tokenizer_json: std::fs::read(path).unwrap(),
        bos: Some(TokenId(1)),
        add_bos: true,
        eos: vec![TokenId(2)],
        document_separator: None,
        fim: None,
        chat_template: None,
    };
    let digest = Digest::of(b"tiny");
    let card = ModelCard {
        name: Name::new(MODEL).unwrap(),
        weights: digest,
        tokenizer: digest,
        fingerprint: Fingerprint::new(digest, None, digest, "test"),
        numerics_class: "test".to_owned(),
        layers: LayerRange { begin: 0, end: 1 },
        layer_count: 1,
        vocab_size: VOCAB,
        context: 128,
        geometry: Geometry { layers: 4, hidden: 64, intermediate: 160, queries: 64, keys: 32 },
    };
    ServedModel { tokenizer: Arc::new(Tokenizer::from_bundle(&bundle, VOCAB).unwrap()), card, created: 7 }
}

pub(super) fn app(limits: Limits) -> App {
    App {
        limits,
        api: ApiConfig::default(),
        hosts: HostPolicy::LocalNames,
        cache_salt: CacheSalt(1),
        catalogue: Arc::new(OneModel { model: Arc::new(tiny()), readiness: Readiness::Ready }),
        metrics: PrometheusBuilder::new().build_recorder().handle(),
        prompt_log: PromptLog::off(),
        adapters: no_adapters(),
        dispatcher: Dispatcher::new(FleetView::new(watch::channel(Arc::default()).1), Arc::new(ByAdapter)),
        requests: Arc::new(Semaphore::new(16)),
        // Its trigger is gone, which would fire it for whoever waits; nothing here runs that long.
        cut: shutdown::channel().1,
        text_threads: Arc::new(Semaphore::new(2)),
        operations: Operations::start(Name::new("test").unwrap(), FleetView::new(watch::channel(Arc::default()).1)),
    }
}

/// Without anybody in it.
pub(crate) fn bare_app() -> App {
    app(Limits::default())
}

fn paths(limits: Limits) -> Router {
    router(Arc::new(app(limits)))
}

pub(super) async fn ask(paths: &Router, request: Request<Body>) -> (StatusCode, HeaderMap, Value) {
    let response = paths.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, 1 << 20).await.unwrap();
    (parts.status, parts.headers, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

pub(super) async fn get(paths: &Router, path: &str) -> (StatusCode, HeaderMap, Value) {
    ask(paths, Request::get(path).body(Body::empty()).unwrap()).await
}

pub(super) async fn post(paths: &Router, path: &str, body: impl Into<Body>) -> (StatusCode, HeaderMap, Value) {
    ask(paths, Request::post(path).body(body.into()).unwrap()).await
}

#[tokio::test]
async fn models_are_listed_and_found_by_names_with_slashes() {
    let paths = paths(Limits::default());
    let (status, _, list) = get(&paths, "/v1/models").await;
    assert_eq!((status, &list["object"], &list["data"][0]["id"]), (StatusCode::OK, &json!("list"), &json!(MODEL)));
    let (status, _, model) = get(&paths, "/v1/models/org/tiny").await;
    assert_eq!((status, &model["object"], &model["parent"]), (StatusCode::OK, &json!("model"), &Value::Null));
    assert_eq!(get(&paths, "/v1/models/org%2Ftiny").await.0, 200);
    let (status, _, error) = get(&paths, "/v1/models/other").await;
    assert_eq!((status, &error["code"]), (StatusCode::NOT_FOUND, &json!("model_not_found")));
    assert!(error["message"].as_str().unwrap().contains(MODEL));
    assert_eq!(get(&paths, "/v1/models/..%2F..%2Fetc").await.0, 404);
}

#[tokio::test]
async fn text_survives_tokenize_and_detokenize() {
    let paths = paths(Limits::default());
    let (status, _, with) = post(&paths, "/tokenize", r#"{"model":"org/tiny","prompt":"the cat"}"#).await;
    assert_eq!(
        (status, &with["tokens"][0], &with["max_model_len"]),
        (StatusCode::OK, &json!(1), &json!(128)),
        "{with}"
    );
    let bare = r#"{"model":"org/tiny","prompt":"the cat","add_special_tokens":false}"#;
    let (_, _, bare) = post(&paths, "/tokenize", bare).await;
    assert_eq!(bare["count"].as_u64().unwrap() + 1, with["count"].as_u64().unwrap());
    let back = json!({ "model": MODEL, "tokens": bare["tokens"] }).to_string();
    assert_eq!(post(&paths, "/detokenize", back).await.2["prompt"], "the cat");
}

#[tokio::test]
async fn an_id_outside_the_vocabulary_is_named() {
    let body = format!(r#"{{"model":"{MODEL}","tokens":[1,{VOCAB}]}}"#);
    let (status, _, error) = post(&paths(Limits::default()), "/detokenize", body).await;
    assert_eq!((status, &error["detail"][0]["loc"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!(["body", "tokens", 1])));
}

#[tokio::test]
async fn too_many_texts_at_once_are_told_to_wait() {
    let app = App { text_threads: Arc::new(Semaphore::new(0)), ..app(Limits::default()) };
    let (status, headers, error) =
        post(&router(Arc::new(app)), "/tokenize", r#"{"model":"org/tiny","prompt":"a"}"#).await;
    assert_eq!(
        (status, &error["code"], &headers["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("busy"), &"1".parse().unwrap())
    );
}

#[tokio::test]
async fn readiness_says_why_not() {
    let reason = "no model has a worker";
    let catalogue = OneModel { model: Arc::new(tiny()), readiness: Readiness::NotReady { reason } };
    let draining = router(Arc::new(App { catalogue: Arc::new(catalogue), ..app(Limits::default()) }));
    let (status, _, body) = get(&draining, "/readyz").await;
    assert_eq!((status, &body["reason"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(reason)));
    assert_eq!(get(&draining, "/livez").await.0, 200);
    assert_eq!(get(&paths(Limits::default()), "/readyz").await.0, 200);
}

#[tokio::test]
async fn every_bad_request_is_refused_by_the_path_too_and_names_its_field() {
    let paths = paths(Limits::default());
    let mut wrong = Vec::new();
    for row in table("bad_requests.jsonl") {
        let (status, _, error) = post(&paths, "/v1/completions", body_of(&row, MODEL)).await;
        let named = match &row["param"] {
            Value::Null => error["detail"][0]["loc"] == row["loc"],
            param => error["param"] == *param,
        };
        if row["status"] != status.as_u16() || !named || error["error"]["message"] == Value::Null {
            wrong.push(format!(
                "{}: expected {} {} {}, got {status} {error}",
                row["name"], row["status"], row["loc"], row["param"]
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn unknown_paths_and_methods_answer_in_json() {
    let paths = paths(Limits::default());
    let (status, _, error) = get(&paths, "/nothing").await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::NOT_FOUND, &json!("not_found")));
    let (status, headers, error) = get(&paths, "/tokenize").await;
    assert_eq!((status, &error["code"]), (StatusCode::METHOD_NOT_ALLOWED, &json!("method_not_allowed")));
    assert_eq!(headers["allow"], "POST");
}

#[tokio::test]
async fn every_response_has_a_request_id() {
    let paths = paths(Limits::default());
    for path in ["/livez", "/nothing", "/tokenize", "/v1/models/x"] {
        let (_, headers, _) = get(&paths, path).await;
        assert!(headers["x-request-id"].to_str().unwrap().starts_with("req-"), "{path}");
        let request = Request::get(path).header("x-request-id", "mine-1").body(Body::empty()).unwrap();
        assert_eq!(ask(&paths, request).await.1["x-request-id"], "mine-1", "{path}");
        let foreign = Request::get(path).header("host", "evil.example").body(Body::empty()).unwrap();
        assert!(ask(&paths, foreign).await.1.contains_key("x-request-id"), "{path}");
    }
}

#[tokio::test]
async fn on_loopback_a_page_of_elsewhere_is_refused() {
    let with = |name: &'static str, value: &'static str| {
        Request::get("/v1/models").header(name, value).body(Body::empty()).unwrap()
    };
    let local = paths(Limits::default());
    for (name, value, code) in
        [("host", "evil.example:8080", "foreign_host"), ("origin", "https://evil.example", "foreign_origin")]
    {
        let (status, _, error) = ask(&local, with(name, value)).await;
        assert_eq!((status, &error["code"]), (StatusCode::FORBIDDEN, &json!(code)));
        let open = router(Arc::new(App { hosts: HostPolicy::AnyName, ..app(Limits::default()) }));
        assert_eq!(ask(&open, with(name, value)).await.0, 200);
    }
    assert_eq!(ask(&local, with("host", "localhost:8080")).await.0, 200);
    assert_eq!(ask(&local, with("origin", "http://127.0.0.1:3000")).await.0, 200);
}

#[tokio::test]
async fn a_body_that_is_not_plain_json_is_415() {
    let paths = paths(Limits::default());
    for (name, value, hint) in [
        ("content-type", "application/x-www-form-urlencoded", "content-type: application/json"),
        ("content-encoding", "gzip", "content-encoding"),
    ] {
        let request = Request::post("/tokenize").header(name, value).body(Body::from("{}")).unwrap();
        let (status, _, error) = ask(&paths, request).await;
        assert_eq!(status, 415);
        assert!(error["message"].as_str().unwrap().contains(hint), "{error}");
    }
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let paths = paths(Limits { body: 100, ..Limits::default() });
    let body = |len: usize| format!("{:<len$}", r#"{"model":"org/tiny","prompt":"a"}"#);
    assert_eq!(post(&paths, "/tokenize", body(100)).await.0, 200);
    let (status, headers, error) = post(&paths, "/tokenize", body(101)).await;
    assert_eq!(
        (status, &error["code"], &headers["connection"]),
        (StatusCode::PAYLOAD_TOO_LARGE, &json!("body_too_large"), &"close".parse().unwrap())
    );
}

#[tokio::test]
async fn metrics_and_the_contract_are_served() {
    let paths = paths(Limits::default());
    assert_eq!(get(&paths, "/metrics").await.0, 200);
    let (status, _, contract) = get(&paths, "/openapi.json").await;
    assert_eq!(status, 200);
    assert!(contract["paths"]["/v1/completions"]["post"].is_object());
}

/// A server on a socket of its own; it ends with the trigger.
async fn on_socket(limits: Limits) -> (std::net::SocketAddr, Trigger, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (trigger, shutdown) = shutdown::channel();
    let paths = paths(limits.clone());
    let served =
        tokio::spawn(
            async move { server::serve(listener, paths, &limits, Duration::from_millis(200), shutdown).await },
        );
    (address, trigger, served)
}

/// What the server says to `bytes` until it closes the connection.
pub(super) async fn say(address: std::net::SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    until_closed(&mut stream).await
}

async fn until_closed(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is an end too.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn impatient() -> Limits {
    let moment = Duration::from_millis(100);
    Limits { header_timeout: moment, body_timeout: moment, body: 1000, ..Limits::default() }
}

#[tokio::test]
async fn headers_that_never_end_are_cut_off() {
    let (address, _trigger, _) = on_socket(impatient()).await;
    assert_eq!(say(address, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow:").await, "");
}

#[tokio::test]
async fn a_body_that_never_ends_is_408() {
    let (address, _trigger, _) = on_socket(impatient()).await;
    let answer = say(address, b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("request_timeout") && answer.contains("x-request-id"), "{answer}");
}

#[tokio::test]
async fn headers_that_are_too_many_or_too_long_are_431() {
    let (address, _trigger, _) = on_socket(impatient()).await;
    let many = "X-A: b\r\n".repeat(65);
    let long = format!("X-A: {}\r\n", "b".repeat(20_000));
    for headers in [many, long] {
        let answer = say(address, format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
}

#[tokio::test]
async fn a_chunked_body_is_bounded_like_any_other() {
    let (address, _trigger, _) = on_socket(impatient()).await;
    let chunked = |body: &str| {
        let chunks: String = body
            .as_bytes()
            .chunks(6)
            .map(|part| format!("{:x}\r\n{}\r\n", part.len(), String::from_utf8_lossy(part)))
            .collect();
        format!(
            "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
        )
    };
    let good = say(address, chunked(r#"{"model":"org/tiny","prompt":"a"}"#).as_bytes()).await;
    assert!(good.starts_with("HTTP/1.1 200"), "{good}");
    let long = say(address, chunked(&"x".repeat(1500)).as_bytes()).await;
    assert!(long.starts_with("HTTP/1.1 413"), "{long}");
}

#[tokio::test]
async fn a_client_that_sends_too_much_still_reads_its_413() {
    let (address, _trigger, _) = on_socket(Limits { body: 1 << 20, ..Limits::default() }).await;
    let body = vec![b'x'; (1 << 20) + 1];
    let head = format!("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    let answer = say(address, &[head.as_bytes(), &body].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn connections_over_the_bound_wait_for_a_place() {
    let limits = Limits { connections: 1, header_timeout: Duration::from_secs(60), ..Limits::default() };
    let (address, _trigger, _) = on_socket(limits).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    first.read_u8().await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), second.read_u8()).await;
    assert!(early.is_err(), "the second connection was served beside the first");
    drop(first);
    assert!(until_closed(&mut second).await.contains("200 OK"));
}

#[tokio::test]
async fn shutdown_ends_idle_connections_and_the_server() {
    let (address, trigger, served) = on_socket(Limits::default()).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    idle.read_u8().await.unwrap();
    trigger.fire();
    served.await.unwrap();
    until_closed(&mut idle).await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_drain_is_bounded() {
    let (address, trigger, served) = on_socket(Limits::default()).await;
    let mut stuck = TcpStream::connect(address).await.unwrap();
    stuck.write_all(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n").await.unwrap();
    // Without a first answer the server may not have met the connection yet: one more, served to its end.
    say(address, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    trigger.fire();
    served.await.unwrap();
    assert_eq!(until_closed(&mut stuck).await, "");
}
