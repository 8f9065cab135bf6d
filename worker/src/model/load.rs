//! From a model's configuration to a [`LoadedModel`], and how much KV the machine has room for.

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use shoal_common::adapter::Geometry;
use shoal_common::config::{Engine, ModelConfig, ModelSource, Script};
use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::{Digest, LayerRange, Name};
use shoal_common::wire::blob::TokenizerBundle;
use shoal_common::wire::codec::{self, CodecError};
use shoal_common::wire::hello::ModelCard;

use super::LoadedModel;
use super::memory::{Memory, NoRoom};
use crate::adapters::PeftLoader;
use crate::backend::Backend;
use crate::cpu::{self, Cpu, CpuError};
use crate::reference::{self, Reference, ReferenceError};
use crate::scripted::{self, Scripted};
use crate::weights::{ModelFile, WeightsError};

/// Arithmetic of the scripted engine, as the fingerprint names it.
const SCRIPTED_CLASS: &str = "scripted";

/// Fewest and most tokens of KV that are assumed without being told: room for one long sequence on the smallest machine,
/// and no more than the largest batch of long sequences uses.
const KV_TOKENS: std::ops::RangeInclusive<u64> = 8 << 10..=4 << 20;

/// Fewest bytes of adapters that are assumed without being told.
const ADAPTER_BYTES: u64 = 64 << 20;

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its files cannot be read or are refused.
    #[error("the model's files cannot be used")]
    Weights(#[from] WeightsError),
    /// The cpu backend cannot take it.
    #[error("the cpu backend cannot load the model")]
    Cpu(#[from] CpuError),
    /// The reference backend cannot take it.
    #[error("the reference backend cannot load the model")]
    Reference(#[from] ReferenceError),
    /// It has another number of layers than its stages were told.
    #[error("its stages host {planned} layers, the model has {has}")]
    OtherLayers {
        /// What the stages host together.
        planned: u32,
        /// What there is.
        has: u32,
    },
    /// Its weights alone are too much.
    #[error("there is no room for it")]
    NoRoom(#[from] NoRoom),
    /// It has no layers to host a part of.
    #[error("the scripted test engine cannot be split")]
    NotSplit,
    /// Its tokenizer cannot be sent to routers.
    #[error("the model's tokenizer cannot be encoded")]
    Tokenizer(#[from] CodecError),
}

/// Which layers of a model are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// All of them.
    All,
    /// Those of one stage of a model that is split.
    Part {
        /// The stage's.
        hosted: LayerRange,
        /// What all stages together have: every layer of the model, or it is refused.
        of: u32,
    },
}

impl Layers {
    /// The range, in a model of `count` layers.
    fn of(self, count: usize) -> Result<LayerRange, LoadError> {
        let has = u32::try_from(count).unwrap_or(u32::MAX);
        match self {
            Self::All => Ok(LayerRange { begin: 0, end: has }),
            Self::Part { hosted, of } if of == has && hosted.begin < hosted.end && hosted.end <= of => Ok(hosted),
            Self::Part { of, .. } => Err(LoadError::OtherLayers { planned: of, has }),
        }
    }
}

/// Loads `layers` of the model that `config` names and starts `threads` compute threads for it; one per core without.
pub fn load(config: &ModelConfig, threads: Option<u32>, layers: Layers) -> Result<LoadedModel, LoadError> {
    match &config.source {
        ModelSource::Files { path, engine } => from_files(&config.name, (path, *engine), threads, layers),
        ModelSource::Scripted(_) if layers != Layers::All => Err(LoadError::NotSplit),
        ModelSource::Scripted(script) => from_script(&config.name, script),
    }
}

fn from_files(
    name: &Name,
    (path, engine): (&Path, Engine),
    threads: Option<u32>,
    layers: Layers,
) -> Result<LoadedModel, LoadError> {
    let file = ModelFile::open(path)?;
    let (threads, hosted) = (compute_threads(threads), layers.of(file.config.layers)?);
    let weight_bytes = cpu::costs(&file, engine, 0).weights(hosted);
    // Before they are packed: the kernel would end that, without a word.
    NoRoom::check(weight_bytes, (0, 0), Memory::now())?;
    let range = hosted.begin as usize..hosted.end as usize;
    let (backend, numerics_class): (Box<dyn Backend>, String) = match engine {
        Engine::Cpu(quant) => {
            let backend = Cpu::load_stage(&file, range, threads, quant)?;
            tracing::info!(instructions = %backend.isa(), weight_bytes = backend.weight_bytes(), "weights packed");
            (Box::new(backend), cpu::numerics_class(&file, quant))
        }
        Engine::Reference => {
            let backend = Reference::load_stage(&file, range, threads.get())?;
            (Box::new(backend), reference::NUMERICS_CLASS.to_owned())
        }
    };
    let facts = Facts {
        weights: file.digest,
        numerics_class,
        layers: file.config.layers,
        hosted,
        vocab: file.config.vocab,
        context: file.config.context,
        geometry: file.config.geometry(),
        weight_bytes,
    };
    tracing::info!(
        model = %name,
        digest = %file.digest.short(),
        parameters = file.parameters(),
        quantisation = file.quantisation,
        layers = %format_args!("{} to {} of {}", hosted.begin, hosted.end, file.config.layers),
        numerics = facts.numerics_class,
        "model loaded"
    );
    assemble(name, &facts, &file.bundle, backend)
}

fn from_script(name: &Name, script: &Script) -> Result<LoadedModel, LoadError> {
    let facts = Facts {
        weights: scripted::digest(script),
        numerics_class: SCRIPTED_CLASS.to_owned(),
        layers: scripted::GEOMETRY.layers as usize,
        hosted: LayerRange { begin: 0, end: scripted::GEOMETRY.layers },
        vocab: scripted::VOCAB,
        context: script.context as usize,
        geometry: scripted::GEOMETRY,
        weight_bytes: 0,
    };
    assemble(name, &facts, &scripted::bundle(), Box::new(Scripted::new(script)))
}

/// What a card says beside names and hashes.
struct Facts {
    weights: Digest,
    numerics_class: String,
    layers: usize,
    hosted: LayerRange,
    vocab: usize,
    context: usize,
    geometry: Geometry,
    weight_bytes: u64,
}

fn assemble(
    name: &Name,
    facts: &Facts,
    bundle: &TokenizerBundle,
    backend: Box<dyn Backend>,
) -> Result<LoadedModel, LoadError> {
    let bundle = codec::encode(bundle)?;
    let tokenizer = Digest::of(&bundle);
    let card = ModelCard {
        name: name.clone(),
        weights: facts.weights,
        tokenizer,
        fingerprint: Fingerprint::new(facts.weights, None, tokenizer, &facts.numerics_class),
        numerics_class: facts.numerics_class.clone(),
        layers: facts.hosted,
        layer_count: facts.layers as u32,
        vocab_size: facts.vocab as u32,
        context: facts.context as u32,
        geometry: facts.geometry,
    };
    let adapters = Arc::new(PeftLoader::new(&card, backend.adapter_precision()));
    Ok(LoadedModel { card, bundle, backend, adapters, weight_bytes: facts.weight_bytes })
}

fn compute_threads(threads: Option<u32>) -> NonZero<usize> {
    let asked = threads.and_then(|threads| NonZero::new(threads as usize));
    asked.unwrap_or_else(|| thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN))
}

/// Tokens of KV that a quarter of the memory holds that this process can take now, within bounds.
pub fn kv_tokens_default(bytes_per_token: u64) -> u64 {
    kv_tokens_in(Memory::now().available / 4, bytes_per_token)
}

/// Tokens of KV that a stage has room for without being told: in half of the available memory. How many are in use is the
/// head's to say, which takes a quarter of its own machine's.
pub fn stage_kv_tokens_default(bytes_per_token: u64) -> u64 {
    kv_tokens_in(Memory::now().available / 2, bytes_per_token)
}

fn kv_tokens_in(memory: u64, bytes_per_token: u64) -> u64 {
    (memory / bytes_per_token.max(1)).clamp(*KV_TOKENS.start(), *KV_TOKENS.end())
}

/// Bytes of adapters in memory: a tenth of what is available, but room for one large adapter on any machine.
pub fn adapter_bytes_default() -> u64 {
    (Memory::now().available / 10).max(ADAPTER_BYTES)
}
