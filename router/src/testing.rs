//! What the tests of this crate share: a model without a worker, and a router without a file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use shoal_common::adapter::Geometry;
use shoal_common::block_hash::CacheSalt;
use shoal_common::config::{Exposure, Limits, Pinning, PromptLogPolicy, RouterConfig};
use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::BranchIndex;
use shoal_common::ids::{Digest, Generation, LayerRange, Name, TokenId};
use shoal_common::sampling::SamplingParams;
use shoal_common::watch;
use shoal_common::wire::blob::TokenizerBundle;
use shoal_common::wire::hello::{AdapterOrder, ModelCard};
use shoal_common::wire::message::{BranchEnd, BranchToken, PromptIds, TokenScore};

use crate::RouterSettings;
use crate::adapters::{Order, Origin, Registry, Settings, Source, WorkerAdapter, Workers};
use crate::catalogue::{Catalogue, Readiness, ServedModel};
use crate::fleet::{FleetView, Snapshot};
use crate::plan::Terms;
use crate::request::{
    ClientText, CompletionRequest, Delivery, Echo, EosRule, LogPrompt, Loglikelihood, PromptForm, PromptInput,
};
use crate::text::{SpecialTokens, Tokenizer};

/// Vocabulary size of the tiny model.
pub(crate) const VOCAB: u32 = 512;

/// The tiny model's widths.
pub(crate) const GEOMETRY: Geometry = Geometry { layers: 4, hidden: 64, intermediate: 160, queries: 64, keys: 32 };

/// A directory of the golden fixtures.
pub(crate) fn golden(path: &str) -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    repository.join("tests/fixtures/golden").join(path)
}

/// The tiny model's EOS.
pub(crate) const EOS: TokenId = TokenId(2);

/// What a worker with the tiny model of the fixtures answers who asks for its tokenizer.
pub(crate) fn bundle() -> TokenizerBundle {
    let path = golden("tiny/base/tokenizer.json");
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
        adapters: None,
        adapter_paths: Vec::new(),
        zone: None,
    };
    let cluster = Name::new("test").unwrap();
    let limits = Limits::default();
    let (models, adapters, api, timers) = Default::default();
    RouterSettings { cluster, router, models, adapters, limits, api, timers }
}

/// Terms of a request that are all the same to a test.
pub(crate) const TERMS: Terms = Terms { seed: 7, share_key: 0, cache_salt: CacheSalt(0), adapter: None };

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
        geometry: GEOMETRY,
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

/// Models that come and go as the test says, without workers.
#[derive(Debug)]
pub(crate) struct Fleet(watch::Sender<Arc<Snapshot>>);

impl Default for Fleet {
    fn default() -> Self {
        Self(watch::channel(Arc::default()).0)
    }
}

impl Fleet {
    /// A worker of the tiny model under this name.
    pub(crate) fn join(&self, name: &str) {
        self.join_with(name, |_| {});
    }

    /// As `join`, with another card.
    pub(crate) fn join_with(&self, name: &str, edit: impl FnOnce(&mut ModelCard)) {
        let (model, name) = (model(), Name::new(name).unwrap());
        let mut card = ModelCard { name: name.clone(), ..model.card.clone() };
        edit(&mut card);
        let model = Arc::new(ServedModel { card, tokenizer: Arc::clone(&model.tokenizer), created: 1 });
        let mut next = Snapshot::clone(&self.0.borrow());
        next.models.insert(name, model);
        self.0.send_replace(Arc::new(next));
    }

    /// Nothing was ever seen.
    pub(crate) fn leave(&self) {
        self.0.send_replace(Arc::default());
    }

    pub(crate) fn view(&self) -> FleetView {
        FleetView::new(self.0.subscribe())
    }
}

impl Catalogue for Fleet {
    fn models(&self) -> Vec<Arc<ServedModel>> {
        self.view().models()
    }

    fn model(&self, name: &Name) -> Option<Arc<ServedModel>> {
        self.view().model(name)
    }

    fn readiness(&self) -> Readiness {
        self.view().readiness()
    }
}

/// Hears what workers are ordered, and tells of them what the test says.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    orders: Mutex<Vec<(Name, AdapterOrder)>>,
    pub(crate) residents: Mutex<Vec<WorkerAdapter>>,
}

impl Heard {
    pub(crate) fn orders(&self) -> Vec<(Name, AdapterOrder)> {
        self.orders.lock().unwrap().clone()
    }
}

impl Workers for Heard {
    fn order(&self, base: &Name, order: AdapterOrder) {
        self.orders.lock().unwrap().push((base.clone(), order));
    }

    fn residency(&self, generation: Generation) -> Vec<WorkerAdapter> {
        let residents = self.residents.lock().unwrap();
        residents.iter().filter(|resident| resident.state.generation == generation).cloned().collect()
    }
}

/// What a registry in `data_dir` is opened with.
pub(crate) fn adapter_settings(data_dir: &Path) -> Settings {
    let (models, allowed) = Default::default();
    Settings { data_dir: data_dir.to_owned(), adapters: 10, adapter_bytes: 4 << 20, models, allowed }
}

/// A registry for tests in which nothing is registered: its directory is gone at once.
pub(crate) fn no_adapters() -> Registry {
    let directory = tempfile::tempdir().unwrap();
    Registry::open(adapter_settings(directory.path()), Arc::new(Fleet::default())).unwrap()
}

/// Points `name` at something, whatever its base.
pub(crate) fn order(name: &str, source: Source) -> Order {
    let origin = Origin { source, pinning: Pinning::Evictable, stamp: None };
    Order { name: Name::new(name).unwrap(), origin, base: None }
}
