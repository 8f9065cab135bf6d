//! Bytes that nobody trained: whatever they are, `check` returns, in little memory, and what it takes is whole.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;

use super::{Adapter, TINY};
use crate::adapter::{AdapterError, Bundle, Linear, MAX_RANK, check};
use crate::wire::hello::AdapterState;

/// Checks, and checks what came out.
fn sane(config: &[u8], weights: &[u8]) -> Result<(), AdapterError> {
    match check(&Bundle { config, weights }, &TINY) {
        Ok(checked) => {
            assert!(!checked.updates.is_empty());
            assert!(checked.updates.is_sorted_by_key(|update| (update.layer, update.linear)));
            for update in &checked.updates {
                let [outputs, inputs] = update.linear.shape(&TINY);
                assert!(
                    update.layer < TINY.layers && (1..=MAX_RANK).contains(&update.rank) && update.scale.is_finite()
                );
                assert_eq!(update.a.len(), update.rank as usize * inputs);
                assert_eq!(update.b.len(), update.rank as usize * outputs);
                assert!(update.a.to_f32().iter().chain(&update.b.to_f32()).all(|value| value.is_finite()));
            }
            Ok(())
        }
        Err(error) => {
            let sentence = error.to_string();
            assert!(sentence.len() <= AdapterError::MAX_LEN, "{} bytes: {sentence}", sentence.len());
            assert!(!sentence.contains(char::is_control), "{sentence:?}");
            Err(error)
        }
    }
}

/// Something done to a file.
#[derive(Clone, Debug)]
enum Harm {
    Set(Index, u8),
    Cut(Index),
    Remove(Index, u8),
    Insert(Index, Vec<u8>),
    /// A number of its text becomes another.
    Number(Index, u64),
}

fn harm() -> impl Strategy<Value = Harm> {
    let pieces = vec![
        b"\"".to_vec(),
        b"{".to_vec(),
        b"}".to_vec(),
        b"[".to_vec(),
        b",".to_vec(),
        b"0".to_vec(),
        b"-".to_vec(),
        b"e99".to_vec(),
        b"NaN".to_vec(),
        b"null".to_vec(),
        b"\"lora_B\":1,".to_vec(),
        vec![0xff; 9],
        b".*".to_vec(),
        b"(".to_vec(),
    ];
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Harm::Set(at, byte)),
        any::<Index>().prop_map(Harm::Cut),
        (any::<Index>(), any::<u8>()).prop_map(|(at, count)| Harm::Remove(at, count)),
        (any::<Index>(), proptest::sample::select(pieces)).prop_map(|(at, piece)| Harm::Insert(at, piece)),
        (any::<Index>(), prop_oneof![0..300u64, any::<u64>()]).prop_map(|(at, number)| Harm::Number(at, number)),
    ]
}

/// `bytes` harmed within their first `length` bytes, where all the structure is.
fn harmed(mut bytes: Vec<u8>, length: usize, harm: &Harm) -> Vec<u8> {
    let length = length.min(bytes.len());
    if length == 0 {
        return bytes;
    }
    match harm {
        Harm::Set(at, byte) => bytes[at.index(length)] = *byte,
        Harm::Cut(at) => bytes.truncate(at.index(length)),
        Harm::Remove(at, count) => {
            let at = at.index(length);
            bytes.drain(at..(at + usize::from(*count)).min(length));
        }
        Harm::Insert(at, piece) => {
            let at = at.index(length);
            bytes.splice(at..at, piece.iter().copied());
        }
        Harm::Number(at, number) => {
            let from = at.index(length);
            let digits = |at: &usize| bytes[*at].is_ascii_digit();
            let Some(begin) = (from..length).find(digits) else { return bytes };
            let end = (begin..length).find(|at| !digits(at)).unwrap_or(length);
            bytes.splice(begin..end, number.to_string().into_bytes());
        }
    }
    bytes
}

/// An adapter with something in every field that is read.
fn rich() -> Adapter {
    Adapter::qv()
        .update(2, Linear::Down, 3)
        .with("target_modules", json!(["q_proj", "v_proj", "mlp.down_proj"]))
        .with("layers_to_transform", json!([0, 1, 2]))
        .with("layers_pattern", json!("layers"))
        .with("exclude_modules", json!(r".*\.3\..*"))
        .with("rank_pattern", json!({r".*\.down_proj": 3}))
        .with("alpha_pattern", json!({"v_proj": 5.5}))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_for_weights_do_harm(harms in proptest::collection::vec(harm(), 1..4), fix_length in any::<bool>()) {
        let adapter = rich();
        let weights = adapter.weights();
        let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
        let (length, data) = (weights.len() - header, weights[header..].to_vec());
        let mut weights = harms.iter().fold(weights, |weights, harm| harmed(weights, header, harm));
        // With a length that is right again, more of them reach what lies behind it.
        if fix_length && weights.len() >= 8 + length {
            let header = (weights.len() - length - 8) as u64;
            weights[..8].copy_from_slice(&header.to_le_bytes());
            weights.truncate(8 + header as usize);
            weights.extend(&data);
        }
        let _ = sane(&adapter.config(), &weights);
    }

    #[test]
    fn no_bytes_for_a_configuration_do_harm(harms in proptest::collection::vec(harm(), 1..4)) {
        let adapter = rich();
        let config = harms.iter().fold(adapter.config(), |config, harm| harmed(config, usize::MAX, harm));
        let _ = sane(&config, &adapter.weights());
    }

    #[test]
    fn no_bytes_at_all_do_harm(config in proptest::collection::vec(any::<u8>(), 0..64), weights in proptest::collection::vec(any::<u8>(), 0..64)) {
        prop_assert!(sane(&config, &weights).is_err());
        prop_assert!(sane(&Adapter::qv().config(), &weights).is_err());
    }
}

#[test]
fn a_worker_can_give_any_refusal_as_its_reason() {
    const { assert!(AdapterError::MAX_LEN <= AdapterState::MAX_REASON) };
    let mut adapter = Adapter::qv().with("base_model_name_or_path", json!("b".repeat(500)));
    adapter.tensors[0].name = format!("base_model.model.model.{}.lora_A.weight", "m".repeat(400));
    let error = sane(&adapter.config(), &adapter.weights()).unwrap_err();
    assert!(matches!(error, AdapterError::NoSuchModule { .. }), "{error}");
}

#[test]
fn the_adapter_that_is_harmed_is_a_good_one() {
    assert_eq!(sane(&rich().config(), &rich().weights()), Ok(()));
}

/// `header` before `data`, as a file.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

#[test]
fn a_header_cannot_describe_what_is_not_there() {
    let tensor = |shape: &str, begin: u64, end: u64| {
        format!("{{\"dtype\":\"U8\",\"shape\":{shape},\"data_offsets\":[{begin},{end}]}}")
    };
    // Eight tensors whose ends add up to nearly 2^64: with the header's length it is more.
    let most = (1u64 << 61) - 1;
    let wrapping: Vec<_> =
        (0..8).map(|at| format!("\"{at}\":{}", tensor(&format!("[{most}]"), at * most, (at + 1) * most))).collect();
    let cases = [
        format!("{{{}}}", wrapping.join(",")),
        format!("{{\"a\":{}}}", tensor("[4294967296,4294967296]", 0, 0)),
        format!("{{\"a\":{}}}", tensor("[2305843009213693952]", 0, 0)),
        format!("{{\"a\":{}}}", tensor("[4]", 4, 0)),
        format!("{{\"a\":{}}}", tensor("[4]", 0, 8)),
        format!("{{\"a\":{}}}", tensor("[8]", 0, 8)),
        format!("{{\"a\":{},\"b\":{}}}", tensor("[4]", 0, 4), tensor("[4]", 0, 4)),
        format!("{{\"a\":{},\"b\":{}}}", tensor("[2]", 0, 2), tensor("[1]", 3, 4)),
        format!("{{\"a\":{}}}", tensor("[3]", 0, 3)),
        format!("{{\"a\":{}}}", tensor("[18446744073709551616]", 0, 4)),
        format!("{{\"a\":{}}}", tensor("[-4]", 0, 4)),
        format!("{{\"a\":{}}}", tensor("4", 0, 4)),
        "{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}".to_owned(),
        "{\"a\":{\"dtype\":\"F4\",\"shape\":[1],\"data_offsets\":[0,1]}}".to_owned(),
        format!("{{\"a\":{},\"a\":{}}}", tensor("[4]", 0, 4), tensor("[2,2]", 0, 4)),
        "{\"a\":1}".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        String::new(),
    ];
    let mut sentences = String::new();
    for header in cases {
        let error = sane(&Adapter::qv().config(), &file(&header, &[0; 4])).unwrap_err();
        assert!(matches!(error, AdapterError::NotSafetensors { .. }), "{header}: {error}");
        sentences.push_str(&format!("{error}\n"));
    }
    insta::assert_snapshot!(sentences);
}

#[test]
fn what_is_held_grows_with_the_files_and_not_with_what_they_claim() {
    let (config, weights) = (Adapter::qv().config(), Adapter::qv().weights());
    let held = |config: &[u8], weights: &[u8]| {
        allocation_counter::measure(|| {
            let _ = sane(config, weights);
        })
        .bytes_max
    };
    let huge = [&(1u64 << 60).to_le_bytes()[..], b"{}"].concat();
    assert!(held(&config, &huge) < 64 << 10, "{}", held(&config, &huge));

    let megabyte = 1_000_000;
    let repeated = |piece: &str| piece.repeat(megabyte / piece.len());
    let entry = "\"shape\":[],\"data_offsets\":[0,0]";
    let tensors: String = (0..megabyte / 64).map(|at| format!("\"{at}\":{{\"dtype\":\"U8\",{entry}}},")).collect();
    let headers = [
        format!("{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{}0],\"data_offsets\":[0,0]}}}}", repeated("0,")),
        format!("{{\"a\":[{}0]}}", repeated("[],")),
        format!("{{{}\"a\":{{\"dtype\":\"U8\",{entry}}}}}", repeated("\"\":0,")),
        format!("{{{tensors}\"a\":{{\"dtype\":\"U8\",{entry}}}}}"),
    ];
    for header in headers {
        let held = held(&config, &file(&header, &[]));
        assert!(held < 16 * megabyte as u64, "{held} for {}", &header[..40]);
    }
    let configs = [
        format!("{{\"target_modules\":[{}0]}}", repeated("0,")),
        format!("{{\"rank_pattern\":{{{}\"\":0}}}}", repeated("\"\":0,")),
        format!("{{\"x\":{{{}\"\":0}}}}", repeated("\"\":0,")),
        format!("{{{}\"\":0}}", repeated("\"\":0,")),
        format!("{{\"x\":[{}0]}}", repeated("[{}],")),
    ];
    for config in configs {
        let held = held(config.as_bytes(), &weights);
        assert!(held < 4 * megabyte as u64, "{held} for {}", &config[..40]);
    }
}
