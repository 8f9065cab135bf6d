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

/// Memory that is assumed to be available where the system does not say, in bytes.
const UNKNOWN_MEMORY: u64 = 4 << 30;

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
    /// Its tokenizer cannot be sent to routers.
    #[error("the model's tokenizer cannot be encoded")]
    Tokenizer(#[from] CodecError),
}

/// Loads the model that `config` names and starts `threads` compute threads for it; one per core without.
pub fn load(config: &ModelConfig, threads: Option<u32>) -> Result<LoadedModel, LoadError> {
    match &config.source {
        ModelSource::Files { path, engine } => from_files(&config.name, path, *engine, threads),
        ModelSource::Scripted(script) => from_script(&config.name, script),
    }
}

fn from_files(name: &Name, path: &Path, engine: Engine, threads: Option<u32>) -> Result<LoadedModel, LoadError> {
    let file = ModelFile::open(path)?;
    let threads = compute_threads(threads);
    let (backend, numerics_class): (Box<dyn Backend>, String) = match engine {
        Engine::Cpu(quant) => {
            let backend = Cpu::load(&file, threads, quant)?;
            tracing::info!(instructions = %backend.isa(), weight_bytes = backend.weight_bytes(), "weights packed");
            (Box::new(backend), cpu::numerics_class(&file, quant))
        }
        Engine::Reference => (Box::new(Reference::load(&file, threads.get())?), reference::NUMERICS_CLASS.to_owned()),
    };
    let facts = Facts {
        weights: file.digest,
        numerics_class,
        layers: file.config.layers,
        vocab: file.config.vocab,
        context: file.config.context,
        geometry: file.config.geometry(),
    };
    tracing::info!(
        model = %name,
        digest = %file.digest.short(),
        parameters = file.parameters(),
        quantisation = file.quantisation,
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
        vocab: scripted::VOCAB,
        context: script.context as usize,
        geometry: scripted::GEOMETRY,
    };
    assemble(name, &facts, &scripted::bundle(), Box::new(Scripted::new(script)))
}

/// What a card says beside names and hashes.
struct Facts {
    weights: Digest,
    numerics_class: String,
    layers: usize,
    vocab: usize,
    context: usize,
    geometry: Geometry,
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
        layers: LayerRange { begin: 0, end: facts.layers as u32 },
        layer_count: facts.layers as u32,
        vocab_size: facts.vocab as u32,
        context: facts.context as u32,
        geometry: facts.geometry,
    };
    let adapters = Arc::new(PeftLoader::new(&card));
    Ok(LoadedModel { card, bundle, backend, adapters })
}

fn compute_threads(threads: Option<u32>) -> NonZero<usize> {
    let asked = threads.and_then(|threads| NonZero::new(threads as usize));
    asked.unwrap_or_else(|| thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN))
}

/// Tokens of KV that a quarter of the available memory holds, within bounds.
pub fn kv_tokens_default(bytes_per_token: u64) -> u64 {
    (available_memory() / 4 / bytes_per_token.max(1)).clamp(*KV_TOKENS.start(), *KV_TOKENS.end())
}

/// Bytes of adapters in memory: a tenth of what is available, but room for one large adapter on any machine.
pub fn adapter_bytes_default() -> u64 {
    (available_memory() / 10).max(ADAPTER_BYTES)
}

fn available_memory() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    available_bytes(&meminfo).unwrap_or(UNKNOWN_MEMORY)
}

/// `MemAvailable` of the text of `/proc/meminfo`, in bytes.
pub(super) fn available_bytes(meminfo: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
