//! The tables of bad and of odd but good requests, and properties over raw JSON text.

use proptest::prelude::*;
use serde_json::Value;
use shoal_common::config::Limits;
use shoal_common::ids::TokenId;

use super::{completion, detokenize, tokenize};
use crate::http::error::ApiError;
use crate::request::{CompletionRequest, Delivery, PromptForm, PromptInput, StreamUsage};

/// The lines of a table in `tests/fixtures`.
pub(crate) fn table(name: &str) -> Vec<Value> {
    let path = format!("{}/../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// The body of a row, for the model `model`.
pub(crate) fn body_of(row: &Value, model: &str) -> Vec<u8> {
    if let Some(hex) = row["body_hex"].as_str() {
        return replace(&unhex(hex), b"$MODEL", model.as_bytes());
    }
    let Value::Object(repeat) = &row["repeat"] else {
        return row["body"].as_str().unwrap().replace("$MODEL", model).into_bytes();
    };
    let part = |key: &str| repeat[key].as_str().unwrap().replace("$MODEL", model);
    let unit = part("unit");
    let mut body = part("prefix");
    for index in 0..repeat["count"].as_u64().unwrap() {
        body.push_str(&unit.replace("$I", &index.to_string()));
    }
    (body + &part("suffix")).into_bytes()
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    match bytes.windows(from.len()).position(|window| window == from) {
        Some(at) => [&bytes[..at], to, &bytes[at + from.len()..]].concat(),
        None => bytes.to_vec(),
    }
}

fn decode(body: &[u8]) -> Result<CompletionRequest, ApiError> {
    completion(body, &Limits::default())
}

fn good(fields: &str) -> CompletionRequest {
    decode(format!(r#"{{"model":"m",{fields}}}"#).as_bytes()).unwrap()
}

fn locs(error: &ApiError) -> Vec<Value> {
    match error {
        ApiError::Invalid(faults) => faults.iter().map(|fault| serde_json::to_value(&fault.loc).unwrap()).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn every_bad_request_gets_its_status_and_names_its_field() {
    let rows: Vec<_> = table("bad_requests.jsonl").into_iter().filter(|row| row["needs_model"] != true).collect();
    assert!(rows.len() >= 150, "the table has {} rows", rows.len());
    let mut wrong = Vec::new();
    for row in rows {
        let expected = (row["status"].as_u64().unwrap(), row["loc"].clone(), row["param"].as_str().map(str::to_owned));
        let found = match decode(&body_of(&row, "m")) {
            Ok(_) => (200, Value::Null, None),
            Err(error @ ApiError::Invalid(_)) => (422, locs(&error)[0].clone(), None),
            Err(error) => (error.status().as_u16().into(), Value::Null, error.body().param),
        };
        let named = expected.2.is_none() || expected.2 == found.2;
        if (expected.0, &expected.1, named) != (found.0, &found.1, true) {
            wrong.push(format!("{}: expected {expected:?}, got {found:?}", row["name"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn one_answer_lists_all_faults() {
    let rows = table("bad_requests.jsonl");
    let row = rows.iter().find(|row| row.get("also").is_some()).unwrap();
    let found = locs(&decode(&body_of(row, "m")).unwrap_err());
    for loc in row["also"].as_array().unwrap() {
        assert!(found.contains(loc), "{loc} is not among {found:?}");
    }
}

#[test]
fn every_odd_but_good_request_is_taken() {
    for row in table("odd_requests.jsonl") {
        let result = decode(&body_of(&row, "m"));
        assert!(result.is_ok(), "{}: {result:?}", row["name"]);
    }
}

#[test]
fn null_is_the_same_as_absent() {
    let row = table("odd_requests.jsonl").into_iter().find(|row| row["name"] == "every field null").unwrap();
    assert_eq!(decode(&body_of(&row, "m")).unwrap(), decode(br#"{"model":"m"}"#).unwrap());
}

#[test]
fn a_prompt_keeps_its_form_and_order() {
    let form = |prompt: &str| good(&format!(r#""prompt":{prompt}"#)).prompt_form;
    assert_eq!(form("\"\""), PromptForm::Single);
    assert_eq!(form(r#"["a"]"#), PromptForm::Texts);
    assert_eq!(form("[1]"), PromptForm::Ids);
    assert_eq!(form("[[1]]"), PromptForm::IdLists);
    let ids = |prompt: &str| match good(&format!(r#""prompt":{prompt}"#)).prompts.remove(0) {
        PromptInput::Tokens(ids) => ids.0,
        other => panic!("{other:?}"),
    };
    assert_eq!(ids("[3,1.0,2,1e1,4294967295]"), [3, 1, 2, 10, u32::MAX].map(TokenId));
    assert_eq!(good("\"n\":1").prompts, [PromptInput::DocumentStart]);
    assert_eq!(good(r#""prompt":["a",""]"#).prompts[1], PromptInput::DocumentStart);
}

#[test]
fn seeds_are_64_bits_and_negative_ones_their_twos_complement() {
    assert_eq!(good("\"seed\":-1").seed, Some(u64::MAX));
    assert_eq!(good("\"seed\":-9223372036854775808").seed, Some(1 << 63));
    assert_eq!(good("\"seed\":18446744073709551615").seed, Some(u64::MAX));
    assert_eq!(good("\"seed\":0").seed, Some(0));
    assert_eq!(good("\"n\":1").seed, None);
}

#[test]
fn biases_come_out_by_id_and_null_is_none() {
    let request = good(r#""logit_bias":{"20":-100,"3":5,"10":null}"#);
    let ids: Vec<_> = request.sampling.logit_bias.iter().map(|(id, bias)| (id.0, bias.get())).collect();
    assert_eq!(ids, [(3, 5.0), (20, -100.0)]);
}

#[test]
fn best_of_follows_n_and_top_k_has_two_ways_to_be_off() {
    assert_eq!((good("\"n\":3").n, good("\"n\":3").best_of), (3, 3));
    assert_eq!(good("\"n\":3,\"best_of\":5").best_of, 5);
    assert!(good("\"top_k\":0").sampling.top_k.is_none() && good("\"top_k\":-1").sampling.top_k.is_none());
    assert_eq!(good("\"top_k\":7").sampling.top_k.unwrap().get(), 7);
}

#[test]
fn usage_in_a_stream_is_asked_for_or_omitted() {
    let delivery = |fields: &str| good(fields).delivery;
    assert_eq!(delivery("\"stream\":false"), Delivery::Whole);
    assert_eq!(delivery("\"stream\":true"), Delivery::Stream { usage: StreamUsage::Omitted });
    let asked = r#""stream":true,"stream_options":{"include_usage":true}"#;
    assert_eq!(delivery(asked), Delivery::Stream { usage: StreamUsage::Included });
}

#[test]
fn unknown_fields_are_named_and_bounded() {
    assert_eq!(good(r#""zzz":1,"stream_options":{"y":2}"#).ignored, ["zzz", "stream_options.y"]);
    let many: String = (0..100).map(|i| format!(",\"k{i}\":0")).collect();
    assert_eq!(good(&many[1..]).ignored.len(), 16);
}

#[test]
fn limits_are_the_operators() {
    let limits = Limits { prompts: 1, candidates: 2, logprobs: 0, stop: 1, work: 100, ..Limits::default() };
    for fields in [r#""prompt":["a","b"]"#, "\"n\":3", "\"logprobs\":1", r#""stop":["a","b"]"#, "\"max_tokens\":100"] {
        let body = format!(r#"{{"model":"m","max_tokens":5,{fields}}}"#).replace("\"max_tokens\":5,\"max", "\"max");
        assert_eq!(completion(body.as_bytes(), &limits).unwrap_err().status(), 422, "{body}");
    }
}

#[test]
fn a_body_of_the_largest_size_is_judged_by_its_outer_length() {
    let body = format!(r#"{{"model":"m","prompt":[1{}]}}"#, ",1".repeat(2_000_000));
    assert_eq!(decode(body.as_bytes()).unwrap_err().body().param.as_deref(), Some("max_tokens"));
}

#[test]
fn tokenize_bodies_are_typed_too() {
    assert!(tokenize(br#"{"model":"m","prompt":""}"#).is_ok());
    assert_eq!(locs(&tokenize(br#"{"add_special_tokens":1}"#).unwrap_err()).len(), 3);
    let limits = Limits { work: 3, ..Limits::default() };
    assert!(detokenize(br#"{"model":"m","tokens":[1,2,3]}"#, &limits).is_ok());
    assert!(detokenize(br#"{"model":"m","tokens":[1,2,3,4]}"#, &limits).is_err());
    assert_eq!(locs(&detokenize(br#"{"model":"m","tokens":[1,-2]}"#, &limits).unwrap_err())[0][2], 1);
}

/// JSON text of all kinds, valid or not.
fn raw_json() -> impl Strategy<Value = String> {
    let special = prop::sample::select(vec![
        "null",
        "true",
        "-0",
        "-0.0",
        "1e400",
        "-1e400",
        "5e-324",
        "NaN",
        "Infinity",
        "1e19",
        "9007199254740993",
        "\"\"",
        "[]",
        "{}",
        "[[]]",
        "{\"0\":0}",
        "18446744073709551616",
        "-9223372036854775809",
        "1.7976931348623157e308",
        "\"\\ud800\"",
    ]);
    prop_oneof![
        special.prop_map(str::to_owned),
        any::<f64>().prop_map(|x| format!("{x:?}")),
        any::<i64>().prop_map(|x| x.to_string())
    ]
}

proptest! {
    #[test]
    fn no_value_of_any_field_panics_or_is_a_server_error(
        field in prop::sample::select(super::COMPLETION_FIELDS.to_vec()),
        value in raw_json(),
    ) {
        let body = format!(r#"{{"prompt2":"x","{field}":{value}}}"#);
        if let Err(error) = decode(body.as_bytes()) {
            prop_assert!(matches!(error.status().as_u16(), 400 | 422), "{}", error);
        }
    }

    #[test]
    fn what_is_taken_is_in_range(value in any::<f64>()) {
        let body = format!(r#"{{"model":"m","temperature":{value:?}}}"#);
        if let Ok(request) = decode(body.as_bytes()) {
            prop_assert!((0.0..=2.0).contains(&request.sampling.temperature.get()));
        }
    }

    #[test]
    fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode(&body).is_err());
    }
}
