//! Arbitrary bytes as an adapter: the check must neither panic nor allocate out of proportion, a refusal must be a sentence, and
//! what is taken must be finite and fit the model.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_common::adapter::{AdapterError, Bundle, Geometry, MAX_RANK, check};

/// Small, so that whole adapters for it are found.
const GEOMETRY: Geometry = Geometry { layers: 2, hidden: 2, intermediate: 3, queries: 2, keys: 1 };
/// A configuration that takes whatever weights there are.
const ANY: &[u8] = br#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": "all-linear"}"#;

fuzz_target!(|input: &[u8]| {
    if let Ok(bundle) = Bundle::parse(input) {
        judge(&bundle);
    }
    judge(&Bundle { config: ANY, weights: input });
    judge(&Bundle { config: input, weights: b"" });
});

fn judge(bundle: &Bundle<'_>) {
    match check(bundle, &GEOMETRY) {
        Ok(checked) => {
            assert!(!checked.updates.is_empty());
            for update in &checked.updates {
                let [outputs, inputs] = update.linear.shape(&GEOMETRY);
                let rank = update.rank as usize;
                assert!(update.layer < GEOMETRY.layers && (1..=MAX_RANK).contains(&update.rank));
                assert!(update.scale.is_finite());
                assert_eq!((update.a.len(), update.b.len()), (rank * inputs, outputs * rank));
                assert!(update.a.to_f32().iter().chain(&update.b.to_f32()).all(|value| value.is_finite()));
            }
        }
        Err(error) => assert!(error.to_string().len() <= AdapterError::MAX_LEN),
    }
}
