//! Who plays in a simulation: names, hellos and the model of the workers, the adapters of the ranks, what routing knows of the
//! groups.

use std::sync::{Arc, OnceLock};

use shoal_common::adapter::Geometry;
use shoal_common::block_hash::{BLOCK_TOKENS, BlockHash, CacheSalt};
use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::{Digest, Generation, Incarnation, LayerRange, Name, TokenId};
use shoal_common::wire::blob::TokenizerBundle;
use shoal_common::wire::hello::{Capacity, Hello, ModelCard};

use super::demand::{Arrival, SHARED_PROMPT};
use super::scenario::{ADAPTER_BYTES, KV_TOKENS, SEQUENCES, Scenario};
use crate::catalogue::ServedModel;
use crate::fleet::Line;
use crate::fleet::traffic::{Profile, Reuse};
use crate::text::Tokenizer;

/// A connection that never breaks by itself.
#[derive(Debug)]
pub(super) struct Open;

impl Line for Open {
    fn close(&self) {}

    fn is_closed(&self) -> bool {
        false
    }

    fn connection(&self) -> Option<&quinn::Connection> {
        None
    }
}

/// The adapter of a rank.
pub(super) fn generation(adapter: usize) -> Generation {
    Generation(Digest::of(&(adapter as u64).to_le_bytes()))
}

pub(super) fn name_of(worker: usize) -> Name {
    Name::new(format!("worker-{worker}")).expect("it is a name")
}

pub(super) fn hello(worker: usize, scenario: &Scenario, life: u64) -> Hello {
    Hello {
        worker: name_of(worker),
        incarnation: Incarnation(life),
        build: String::new(),
        capacity: Capacity {
            slots: SEQUENCES,
            kv_tokens: KV_TOKENS,
            groups: u32::MAX,
            adapter_slots: scenario.slots,
            adapter_bytes: u64::from(scenario.slots) * ADAPTER_BYTES,
        },
        model: model().card.clone(),
        locality: None,
    }
}

/// What routing knows of each group. Prompts of an adapter begin alike and end each in its own way.
pub(super) fn profiles(arrivals: &[Arrival]) -> Vec<Profile> {
    let model = model();
    let profile = |(group, arrival): (usize, &Arrival)| {
        let adapter = Some(generation(arrival.adapter));
        let fingerprint = model.card.fingerprint_with(adapter);
        let begin = BlockHash::begin(CacheSalt(0), &fingerprint);
        let shared = SHARED_PROMPT as usize / BLOCK_TOKENS;
        let next = |before: &mut BlockHash, block: usize| {
            let token = if block < shared { 0 } else { group as u32 + 1 };
            *before = before.then(&[TokenId(token); BLOCK_TOKENS]);
            Some(*before)
        };
        let blocks = (0..arrival.prompt as usize / BLOCK_TOKENS).scan(begin, next).collect();
        Profile { model: model.card.name.clone(), fingerprint, adapter, sequences: 1, blocks, reuse: Reuse::Cached }
    };
    arrivals.iter().enumerate().map(profile).collect()
}

/// The model of all workers: only its card is looked at.
pub(super) fn model() -> Arc<ServedModel> {
    static MODEL: OnceLock<Arc<ServedModel>> = OnceLock::new();
    Arc::clone(MODEL.get_or_init(|| {
        let digest = Digest::of(b"simulated");
        let card = ModelCard {
            name: Name::new("simulated").expect("it is a name"),
            weights: digest,
            tokenizer: digest,
            fingerprint: Fingerprint::new(digest, None, digest, "simulated"),
            numerics_class: "simulated".to_owned(),
            layers: LayerRange { begin: 0, end: 1 },
            layer_count: 1,
            vocab_size: 512,
            context: 4096,
            geometry: Geometry { layers: 1, hidden: 64, intermediate: 160, queries: 64, keys: 32 },
        };
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden/tiny/base/tokenizer.json");
        let bundle = TokenizerBundle {
            tokenizer_json: std::fs::read(path).expect("the fixture is in the repository"),
            bos: None,
            add_bos: false,
            eos: vec![TokenId(2)],
            document_separator: None,
            fim: None,
            chat_template: None,
        };
        let tokenizer = Tokenizer::from_bundle(&bundle, card.vocab_size).expect("the fixture is a tokenizer");
        Arc::new(ServedModel { card, tokenizer: Arc::new(tokenizer), created: 0 })
    }))
}
