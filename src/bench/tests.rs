//! The promises of `shoal bench`, against stand-in servers on loopback.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode, header};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{Stream, StreamExt, stream};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;

use super::client::{Connection, Server};
use super::*;

const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}"#;

fn token(text: &str) -> String {
    json!({"choices": [{"index": 0, "text": text, "finish_reason": null}]}).to_string()
}

/// Four tokens, as every server streams them.
fn four_tokens() -> Vec<String> {
    ["a", "b", "", "c"].map(token).into_iter().chain([USAGE.to_owned(), "[DONE]".to_owned()]).collect()
}

fn frame(event: &str) -> Result<String, Infallible> {
    Ok(format!("data: {event}\n\n"))
}

fn streamed(events: impl Stream<Item = Result<String, Infallible>> + Send + 'static) -> Response<Body> {
    Response::builder()
        .header(header::CONTENT_TYPE, "text/event-stream")
        .body(Body::from_stream(events))
        .expect("a response")
}

fn events(events: Vec<String>) -> Response<Body> {
    streamed(stream::iter(events).map(|event| frame(&event)))
}

fn error(status: StatusCode, message: &str) -> Response<Body> {
    let body = json!({"error": {"message": message}}).to_string();
    Response::builder().status(status).body(Body::from(body)).expect("a response")
}

/// Serves `routes` and gives the URL.
async fn serve(routes: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    url
}

/// A server that answers completions with what `answer` makes of their bodies and has nothing else.
async fn completions<F>(answer: impl Fn(Value) -> F + Clone + Send + Sync + 'static) -> String
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    serve(Router::new().route("/v1/completions", post(move |Json(body): Json<Value>| answer(body)))).await
}

fn order(url: String) -> Order {
    let prompt = PromptPlan { material: Material::Words, tokens: 16, shared: 0, seed: 1 };
    Order {
        url,
        requests: RequestPlan { models: vec!["m".to_owned()], prompt, max_tokens: 4, extra: Vec::new() },
        mode: Mode::ClosedLoop { requests: Some(6) },
        concurrency: vec![2],
        runs: 2,
        warm: Some(1),
        timeout: Duration::from_secs(60),
    }
}

async fn failure(url: String) -> String {
    format!("{:#}", anyhow::Error::from(run(&order(url)).await.expect_err("the server fails")))
}

async fn one_answer(url: &str) -> Result<answer::Timeline, BenchError> {
    let server = Server::parse(url)?;
    answer::measure(&mut Connection::new(&server), Bytes::from("{}"), Duration::from_secs(60), |_| {}).await
}

#[tokio::test]
async fn tokens_and_requests_are_counted_right() {
    let url = completions(async |_| events(four_tokens())).await;
    let report = run(&order(url)).await.expect("the server answers");
    let figures: Value = serde_json::from_str(&report.json()).expect("JSON");
    let row = &figures["rows"][0];
    assert_eq!((row["concurrency"].as_u64(), row["runs"].as_array().map(Vec::len)), (Some(2), Some(2)));
    let run = &row["runs"][1];
    assert_eq!((run["output_tokens"].as_f64(), run["chunks"].as_f64()), (Some(24.0), Some(24.0)));
    assert_eq!(run["prompt_tokens"].as_f64(), Some(9.0));
    assert_eq!(run["requests"].as_f64(), Some(6.0));
}

#[tokio::test]
async fn the_first_token_is_the_first_text_not_the_first_chunk() {
    let text_sent = Arc::new(Mutex::new(None));
    let note = Arc::clone(&text_sent);
    let url = completions(move |_| {
        let note = Arc::clone(&note);
        async move {
            let late = stream::once(async move {
                tokio::time::sleep(Duration::from_millis(30)).await;
                *note.lock().expect("not poisoned") = Some(Instant::now());
                frame(&token("a"))
            });
            streamed(stream::iter([frame(&token(""))]).chain(late).chain(stream::iter([frame("[DONE]")])))
        }
    })
    .await;
    let answer = one_answer(&url).await.expect("a whole answer");
    let text_sent = text_sent.lock().expect("not poisoned").expect("the server sent it");
    assert_eq!(answer.arrivals.len(), 1);
    assert!(answer.arrivals[0] >= text_sent);
}

#[tokio::test]
async fn a_chunk_that_comes_in_single_bytes_is_read_right() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.expect("a client");
        client.set_nodelay(true).expect("an option of TCP");
        let mut request = [0; 4096];
        let _ = client.read(&mut request).await.expect("a request");
        let body: String = four_tokens().iter().map(|event| format!("data: {event}\r\n\r\n")).collect();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        for byte in (head + &body).bytes() {
            client.write_all(&[byte]).await.expect("the client reads");
            tokio::task::yield_now().await;
        }
    });
    let answer = one_answer(&url).await.expect("a whole answer");
    assert_eq!((answer.arrivals.len(), answer.tokens()), (4, 4));
}

#[tokio::test]
async fn as_many_requests_run_at_once_as_there_are_clients() {
    let together = Arc::new(Barrier::new(3));
    let url = completions(move |_| {
        let together = Arc::clone(&together);
        async move {
            // With fewer clients nobody would ever be answered.
            together.wait().await;
            events(four_tokens())
        }
    })
    .await;
    let order = Order { concurrency: vec![3], warm: Some(0), ..order(url) };
    assert_eq!(run(&order).await.expect("all are answered").rows.len(), 1);
}

#[tokio::test]
async fn every_request_has_its_own_prompt_and_the_models_take_turns() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&seen);
    let url = completions(move |body| {
        note.lock().expect("not poisoned").push(body);
        async { events(four_tokens()) }
    })
    .await;
    let mut order = Order { concurrency: vec![1, 2], ..order(url) };
    order.requests.models = vec!["a".to_owned(), "b".to_owned()];
    order.requests.prompt.shared = 8;
    let extra = |user: &str| Map::from_iter([("temperature".to_owned(), json!(0.5)), ("user".to_owned(), json!(user))]);
    order.requests.extra = ["me", "you"].map(extra).to_vec();
    run(&order).await.expect("all are answered");

    let seen = seen.lock().expect("not poisoned");
    assert_eq!(seen.len(), 2 * (1 + 2 * 6));
    let prompts: HashSet<_> = seen.iter().map(|body| body["prompt"].as_str().expect("text")).collect();
    assert_eq!(prompts.len(), seen.len());
    let first = |prompt: &str| prompt.split(' ').take(8).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(prompts.iter().map(|prompt| first(prompt)).collect::<HashSet<_>>().len(), 1);
    assert_eq!(seen.iter().filter(|body| body["model"] == "a").count(), seen.len() / 2);
    let body = &seen[0];
    assert_eq!((&body["stream"], &body["ignore_eos"], &body["max_tokens"]), (&json!(true), &json!(true), &json!(4)));
    assert_eq!((&body["temperature"], &body["user"]), (&json!(0.5), &json!("me")));
    assert_eq!(body["stream_options"]["include_usage"], true);
    assert!(seen.iter().all(|body| (body["model"] == "a") == (body["user"] == "me")), "each has its turn");
}

#[tokio::test]
async fn prompts_are_cut_by_the_servers_tokenizer_where_it_has_one() {
    let prompts = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&prompts);
    // A tokenizer of characters.
    let tokenize = async |Json(body): Json<Value>| {
        let text = body["prompt"].as_str().expect("text").to_owned();
        Json(json!({"tokens": text.chars().map(u32::from).collect::<Vec<_>>()}))
    };
    let detokenize = async |Json(body): Json<Value>| {
        let ids = body["tokens"].as_array().expect("ids").clone();
        let character = |id: Value| char::from_u32(u32::try_from(id.as_u64()?).ok()?);
        Json(json!({"content": ids.into_iter().filter_map(character).collect::<String>()}))
    };
    let complete = async move |Json(body): Json<Value>| {
        note.lock().expect("not poisoned").push(body["prompt"].as_str().expect("text").to_owned());
        events(four_tokens())
    };
    let routes = Router::new()
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route(
            "/v1/models",
            get(async || {
                Json(json!({"data": [{"id": "only", "parent": null}, {"id": "its adapter", "parent": "only"}]}))
            }),
        )
        .route("/v1/completions", post(complete));
    let mut order = order(serve(routes).await);
    order.requests.models.clear();
    let report = run(&order).await.expect("all are answered");
    assert!(report.to_string().starts_with("only at http://127.0.0.1:"), "{report}");
    assert!(prompts.lock().expect("not poisoned").iter().all(|prompt| prompt.chars().count() == 16));
}

#[tokio::test]
async fn a_refusal_is_told_in_the_servers_words_with_what_to_do() {
    for (status, step) in [
        (StatusCode::NOT_FOUND, "--model names another"),
        (StatusCode::UNPROCESSABLE_ENTITY, "--extra"),
        (StatusCode::SERVICE_UNAVAILABLE, "lower --concurrency"),
    ] {
        let told = failure(completions(move |_| async move { error(status, "not today") }).await).await;
        assert!(told.contains(&format!("answered {status}: not today")) && told.contains(step), "{told}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_with_what_to_do() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    drop(listener);
    let told = failure(url.clone()).await;
    assert!(told.contains(&url["http://".len()..]) && told.contains("shoal dev") && told.contains("--url"), "{told}");
}

#[tokio::test]
async fn an_answer_that_is_not_whole_is_never_measured() {
    let cut = completions(async |_| events(vec![token("a"), token("b")])).await;
    assert!(matches!(one_answer(&cut).await, Err(BenchError::NoEnd)));

    let failed = vec![token("a"), json!({"error": {"message": "worker lost"}}).to_string(), "[DONE]".to_owned()];
    let failed = completions(move |_| std::future::ready(events(failed.clone()))).await;
    assert!(matches!(one_answer(&failed).await, Err(BenchError::GaveUp(words)) if words == "worker lost"));

    let broken = completions(async |_| {
        let pieces = stream::iter([Ok(format!("data: {}\n\n", token("a"))), Err(std::io::Error::other("gone"))]);
        Response::new(Body::from_stream(pieces))
    })
    .await;
    assert!(matches!(one_answer(&broken).await, Err(BenchError::Broken(_))));
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_given_up() {
    let url = completions(async |_| std::future::pending().await).await;
    let order = Order { timeout: Duration::from_millis(20), ..order(url) };
    assert!(matches!(run(&order).await, Err(BenchError::TimedOut(_))));
}

#[tokio::test]
async fn a_server_without_or_with_several_models_needs_a_name() {
    for (names, told) in [(vec![], "lists no model"), (vec!["x", "y"], "--model NAME or --models A,B: x, y")] {
        let data: Vec<_> = names.into_iter().map(|name| json!({"id": name})).collect();
        let list = async move || Json(json!({"data": data}));
        let mut order = order(serve(Router::new().route("/v1/models", get(list))).await);
        order.requests.models.clear();
        let error = run(&order).await.expect_err("no model is chosen").to_string();
        assert!(error.contains(told), "{error}");
    }
}

#[tokio::test]
async fn a_connection_that_the_server_closes_is_dialled_again() {
    let url = completions(async |_| {
        let mut answer = events(four_tokens());
        answer.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        answer
    })
    .await;
    let order = Order { concurrency: vec![1], ..order(url) };
    assert_eq!(run(&order).await.expect("all are answered").rows.len(), 1);
}

/// Reads one request of a client of this module: its head and body come at once.
async fn read_request(client: &mut TcpStream) -> usize {
    client.read(&mut [0; 4096]).await.expect("the client is there")
}

#[tokio::test]
async fn a_kept_connection_that_the_server_closes_at_a_request_is_no_failure_and_a_new_one_is() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let server = Server::parse(&format!("http://{}", listener.local_addr().expect("it is bound"))).expect("an address");
    let serving = tokio::spawn(async move {
        let body = four_tokens().iter().map(|event| format!("data: {event}\n\n")).collect::<String>();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        for _ in 0..2 {
            let (mut client, _) = listener.accept().await.expect("a client");
            read_request(&mut client).await;
            client.write_all(answer.as_bytes()).await.expect("the client reads");
            // The next one is read and not answered.
            read_request(&mut client).await;
        }
        let (mut client, _) = listener.accept().await.expect("a client");
        read_request(&mut client).await;
    });
    let mut connection = Connection::new(&server);
    let mut ask = async || answer::measure(&mut connection, Bytes::from("{}"), Duration::from_secs(60), |_| {}).await;
    assert_eq!(ask().await.expect("the first connection").tokens(), 4);
    assert_eq!(ask().await.expect("the second connection").tokens(), 4);
    assert!(matches!(ask().await, Err(BenchError::Broken(_))));
    serving.await.expect("the server saw three connections");
}

#[tokio::test]
async fn a_long_prompt_that_arrives_is_told_apart_from_what_was_before() {
    let url = completions(async |body: Value| {
        let long = body["prompt"].as_array().expect("ids").len() == 500;
        let pause = Duration::from_millis(if long { 40 } else { 5 });
        let tokens = body["max_tokens"].as_u64().expect("a number") as usize;
        let texts = stream::iter(0..tokens).then(move |_| async move {
            tokio::time::sleep(pause).await;
            frame(&token("a"))
        });
        streamed(texts.chain(stream::iter([frame("[DONE]")])))
    })
    .await;
    let mut order = Order { mode: Mode::ArriveLong { tokens: 500 }, ..order(url) };
    order.requests.prompt.material = Material::Ids { vocab: 1000 };
    order.requests.max_tokens = 40;
    let report = run(&order).await.expect("all are answered");
    let arrival = serde_json::to_value(&report.arrivals[0]).expect("JSON")["median"].clone();
    for figure in ["before_ms", "during_ms", "lift", "long_ttft_ms"] {
        assert!(!arrival[figure].is_null(), "{figure}: {arrival}");
    }
    assert!(report.to_string().contains("p99 during / p50 before"), "{report}");
}

#[tokio::test]
async fn a_long_prompt_is_not_measured_against_streams_that_are_over() {
    let url = completions(async |_| events(four_tokens())).await;
    let mut order = Order { mode: Mode::ArriveLong { tokens: 500 }, ..order(url) };
    order.requests.max_tokens = 400;
    assert!(matches!(run(&order).await, Err(BenchError::EndedEarly(100))));
}
