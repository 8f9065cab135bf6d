//! What is told of a router's answer, and what is asked of a stand-in for one.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use serde_json::{Value, json};

use super::*;

fn worker(name: &str, state: &str, incarnation: &str) -> Value {
    json!({
        "name": name, "state": state, "incarnation": incarnation, "build": "0.1.0", "address": "10.0.0.2:4000",
        "model": {"name": "smol", "layers": [0, 30]}, "capacity": {"kv_tokens": 640}, "progress_ms": 12, "later": true,
        "load": {"running": 3, "waiting": 0, "kv_used": 96, "tokens_per_second": 512},
    })
}

fn document(workers: &[Value]) -> Value {
    let incident = |cause: &str, why: &str| {
        json!({
            "event": "refused", "worker": null, "address": "10.0.0.9:1", "cause": cause, "why": why, "advice": "do\tit",
            "times": 2, "seconds_ago": 61,
        })
    };
    json!({
        "name": "reef", "workers": workers, "incidents": [incident("version", "two\nlines\u{1b}[2J"), incident("shutdown", "in order")],
        "router": {"incarnation": "00ff", "build": "0.1.0", "protocol": "shoal/4", "uptime_s": 7265},
    })
}

fn cluster(workers: &[Value]) -> Cluster {
    serde_json::from_value(document(workers)).expect("a document")
}

#[test]
fn a_table_has_a_line_for_each_worker_and_each_trouble() {
    let table = table::table(&cluster(&[worker("alpha", "ready", "1"), worker("b", "drained", "2")]));
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines[0], "cluster reef: router 0.1.0 (shoal/4), up 2 h 1 min");
    assert_eq!(
        lines[1],
        "WORKER  STATE    MODEL  LAYERS  RUNNING  WAITING  KV      TOKENS/S  ADDRESS        LAST STEP"
    );
    assert_eq!(
        lines[2],
        "alpha   ready    smol   0-29    3        0        96/640  512       10.0.0.2:4000  12 ms ago"
    );
    assert_eq!(lines[4], "refused 1 min 1 s ago, 2 times: somebody from 10.0.0.9:1: two lines [2J");
    assert_eq!((lines[5], lines.len()), ("    -> do it", 6), "a worker that ended in order is no trouble");
}

#[test]
fn the_stages_of_a_split_model_are_shown_with_what_they_do_and_why_they_are_away() {
    let mut head = worker("alpha", "incomplete", "1");
    let stage = |worker: &str, state: &str, reason: Value| {
        json!({
            "worker": worker, "state": state, "incarnation": "7", "address": "gpu2:8444", "layers": [12, 30], "reason": reason,
            "steps": 3, "computing_s": 0.5, "busy": 0.254,
        })
    };
    head["stages"] = json!([stage("alpha", "connected", Value::Null), stage("beta", "away", json!("no\nanswer"))]);
    let cluster = cluster(&[head]);
    let table = table::table(&cluster);
    assert!(table.contains("STAGE OF  WORKER  STATE      LAYERS  BUSY  ADDRESS\n"), "{table}");
    assert!(table.contains("alpha     beta    away       12-29   25 %  gpu2:8444\n"), "{table}");
    assert!(table.contains("\nbeta is away: no answer\n") && !table.contains("alpha is away"), "{table}");
    let lines = table::lines(&cluster);
    assert!(lines.contains("stage\tbeta\taway\t7\tsmol\t12-29\talpha\t25 %\tgpu2:8444\tno answer\n"), "{lines}");
}

#[test]
fn no_text_off_the_network_makes_a_line_or_a_field_of_its_own() {
    let mut silent = worker("a", "ready", "1");
    silent["load"] = Value::Null;
    silent["build"] = json!("");
    let lines = table::lines(&cluster(&[silent]));
    let fields: Vec<Vec<&str>> = lines.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(fields[1], ["worker", "a", "ready", "1", "smol", "0-29", "-", "-", "-/640", "-", "10.0.0.2:4000", "-"]);
    assert_eq!(fields[2][..7], ["incident", "refused", "-", "10.0.0.9:1", "version", "2", "61"]);
    assert_eq!((fields[2][7], fields[2][8], fields.len()), ("two lines [2J", "do it", 4));
}

#[test]
fn a_drain_is_over_when_nothing_runs_or_the_worker_is_another_one() {
    let alpha = Name::new("alpha").expect("a name");
    let mut life = None;
    let mut see = |workers: &[Value]| progress(&cluster(workers), &alpha, &mut life);
    assert_eq!(see(&[worker("alpha", "draining", "1")]), Progress::Running);
    assert_eq!(see(&[worker("alpha", "drained", "1")]), Progress::Drained);
    assert_eq!(see(&[worker("alpha", "draining", "2")]), Progress::Left, "it was started again");
    assert_eq!(see(&[worker("alpha", "gone", "1")]), Progress::Left);
    assert_eq!(see(&[worker("beta", "ready", "1")]), Progress::Left);
    assert_eq!(see(&[worker("alpha", "ready", "1")]), Progress::Serving);
}

/// Gives `answers` in turn, one to a connection; returns what was asked.
fn stand_in(answers: Vec<(u16, Value)>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/v1/", listener.local_addr().expect("its address"));
    let asked = std::thread::spawn(move || {
        let serve = |(status, body): (u16, Value)| {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("a request") == 1 {
                head.push(byte[0]);
            }
            let body = body.to_string();
            let length = body.len();
            write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
                .expect("an answer");
            String::from_utf8_lossy(&head).lines().next().expect("a line").to_owned()
        };
        answers.into_iter().map(serve).collect()
    });
    (url, asked)
}

#[test]
fn a_worker_s_name_with_a_slash_is_one_part_of_the_path() {
    let (url, asked) = stand_in(vec![(200, json!({"worker": null})), (200, json!({"worker": null}))]);
    let name = Name::new("org/a").expect("a name");
    order(&url, &name, Order::Drain).expect("it is ordered");
    order(&url, &name, Order::Undrain).expect("it is ordered");
    let asked = asked.join().expect("the stand-in");
    assert_eq!(asked[0], "POST /v1/cluster/workers/org%2Fa/drain HTTP/1.1");
    assert_eq!(asked[1], "POST /v1/cluster/workers/org%2Fa/undrain HTTP/1.1");
}

#[test]
fn a_drain_is_waited_for_until_the_router_says_so() {
    let answers = ["draining", "draining", "drained"].map(|state| (200, document(&[worker("alpha", state, "1")])));
    let (url, asked) = stand_in(answers.to_vec());
    let alpha = Name::new("alpha").expect("a name");
    assert_eq!(wait_drained(&url, &alpha, Duration::from_secs(600)).expect("it drains"), "alpha is drained");
    assert_eq!(asked.join().expect("the stand-in").len(), 3);
    let (url, _asked) = stand_in(vec![(200, document(&[worker("alpha", "draining", "1")]))]);
    let late = wait_drained(&url, &alpha, Duration::ZERO).expect_err("it still runs");
    assert!(matches!(late, OperateError::StillRunning { .. }), "{late:?}");
}

#[test]
fn an_answer_that_is_none_is_a_sentence() {
    let refused = json!({"error": {"message": "no worker 'x' is connected to this router; connected: alpha"}});
    let (url, _asked) = stand_in(vec![(404, refused), (200, json!({"object": "list"})), (502, Value::Null)]);
    let error = order(&url, &Name::new("x").expect("a name"), Order::Drain).expect_err("there is no x").to_string();
    assert!(error.ends_with("404 Not Found: no worker 'x' is connected to this router; connected: alpha"), "{error}");
    assert!(matches!(status(&url, Form::Table), Err(OperateError::NotARouter { .. })));
    assert!(matches!(status(&url, Form::Table), Err(OperateError::Refused { .. })));
    assert!(matches!(status("http://127.0.0.1:1", Form::Table), Err(OperateError::Unreachable { .. })));
    for bad in ["127.0.0.1:8080", "ftp://x", "http://", ""] {
        assert!(matches!(status(bad, Form::Table), Err(OperateError::BadUrl(_))), "{bad}");
    }
}
