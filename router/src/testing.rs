//! What the tests of this crate share: a model without a worker, and a router without a file.

use std::net::SocketAddr;
use std::sync::Arc;

use shoal_common::adapter::Geometry;
use shoal_common::block_hash::CacheSalt;
use shoal_common::config::{ApiConfig, Exposure, Limits, PromptLogPolicy, RouterConfig, Timers};
use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::BranchIndex;
use shoal_common::ids::{Digest, LayerRange, Name, TokenId};
use shoal_common::sampling::SamplingParams;
use shoal_common::wire::blob::TokenizerBundle;
use shoal_common::wire::hello::ModelCard;
use shoal_common::wire::message::{BranchEnd, BranchToken, PromptIds, TokenScore};

use crate::RouterSettings;
use crate::catalogue::ServedModel;
use crate::plan::Terms;
use crate::request::{
    ClientText, CompletionRequest, Delivery, Echo, EosRule, LogPrompt, Loglikelihood, PromptForm, PromptInput,
};
use crate::text::{SpecialTokens, Tokenizer};

/// Vocabulary size of the tiny model.
pub(crate) const VOCAB: u32 = 512;

/// The tiny model's EOS.
pub(crate) const EOS: TokenId = TokenId(2);

/// What a worker with the tiny model of the fixtures answers who asks for its tokenizer.
pub(crate) fn bundle() -> TokenizerBundle {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden/tiny/base/tokenizer.json");
    TokenizerBundle {
        tokenizer_json: std::fs::read(path).unwrap(),
        bos: Some(TokenId(1)),
        add_bos: false,
        eos: vec![EOS],
        document_separator: None,
        fim: None,
        chat_template: None,
    }
}

/// The tokenizer of the tiny model of the fixtures.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_bundle(&bundle(), VOCAB).unwrap())
}

/// A router on free ports of loopback, of the cluster `test`.
pub(crate) fn settings() -> RouterSettings {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let router = RouterConfig {
        listen: loopback,
        quic: loopback,
        exposure: Exposure::LoopbackOnly,
        data_dir: std::env::temp_dir(),
        prompt_log: PromptLogPolicy::Off,
    };
    let cluster = Name::new("test").unwrap();
    let limits = Limits::default();
    RouterSettings { cluster, router, limits, api: ApiConfig::default(), timers: Timers::default() }
}

/// Terms of a request that are all the same to a test.
pub(crate) const TERMS: Terms = Terms { seed: 7, share_key: 0, cache_salt: CacheSalt(0) };

/// A served model with a context of 64 tokens.
pub(crate) fn model() -> Arc<ServedModel> {
    let digest = Digest::of(b"tiny");
    let card = ModelCard {
        name: Name::new("tiny").unwrap(),
        weights: digest,
        tokenizer: digest,
        fingerprint: Fingerprint::new(digest, None, digest, "test"),
        numerics_class: "test".to_owned(),
        layers: LayerRange { begin: 0, end: 4 },
        layer_count: 4,
        vocab_size: VOCAB,
        context: 64,
        geometry: Geometry { layers: 4, hidden: 64, intermediate: 160, queries: 64, keys: 32 },
    };
    Arc::new(ServedModel { card, tokenizer: tokenizer(), created: 1 })
}

/// A request with every default of the contract.
pub(crate) fn request(prompt: &str) -> CompletionRequest {
    CompletionRequest {
        model: Name::new("tiny").unwrap(),
        adapter: None,
        prompts: vec![PromptInput::Text(ClientText(prompt.to_owned()))],
        prompt_form: PromptForm::Single,
        suffix: None,
        max_tokens: 16,
        min_tokens: 0,
        n: 1,
        best_of: 1,
        echo: Echo::Off,
        loglikelihood: Loglikelihood::Off,
        logprobs: None,
        sampling: SamplingParams::default(),
        seed: Some(7),
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        eos: EosRule::Ends,
        delivery: Delivery::Whole,
        log_prompt: LogPrompt::No,
        user: None,
        ignored: Vec::new(),
    }
}

/// The ids of `text`.
pub(crate) fn ids(text: &str) -> Vec<TokenId> {
    tokenizer().encode(text, SpecialTokens::AsText).unwrap()
}

/// A raw score without alternatives.
pub(crate) fn score(token: TokenId, logprob: f32) -> TokenScore {
    TokenScore { token, logprob, alternatives: Vec::new() }
}

/// The tokens of `text` as a worker would send them for `branch`, the last one with `end`.
pub(crate) fn branch_tokens(branch: u16, text: &str, logprob: f32, end: Option<BranchEnd>) -> Vec<BranchToken> {
    let ids = ids(text);
    let last = ids.len() - 1;
    let token = |(position, id): (usize, &TokenId)| BranchToken {
        branch: BranchIndex(branch),
        position: position as u32,
        token: *id,
        score: Some(score(*id, logprob)),
        end: end.filter(|_| position == last),
    };
    ids.iter().enumerate().map(token).collect()
}

/// A prompt of plain ids.
pub(crate) fn id_prompt(count: u32) -> PromptInput {
    PromptInput::Tokens(PromptIds((10..10 + count).map(TokenId).collect()))
}
