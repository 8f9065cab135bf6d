//! What a model takes of a machine's memory: its packed weights, and the KV of what it is asked. Called by `shoal check`;
//! reads the model's files, and packs nothing.

use indicatif::HumanBytes;
use shoal_common::adapter::Geometry;
use shoal_common::config::{Config, ModelConfig};
use shoal_worker::cpu::Footprint;
use shoal_worker::scripted;
use shoal_worker::weights::{ModelFile, WeightsError};

/// The lines about one model, each without a line break, and the widths that its adapters must have.
pub(super) fn lines(config: &Config, model: &ModelConfig) -> Result<(Vec<String>, Geometry), WeightsError> {
    let Some((path, engine)) = model.files() else { return Ok((Vec::new(), scripted::GEOMETRY)) };
    let file = ModelFile::open(path)?;
    Ok((describe(config, &file, Footprint::of(&file, engine)), file.config.geometry()))
}

fn describe(config: &Config, file: &ModelFile, footprint: Footprint) -> Vec<String> {
    let context = file.config.context as u64;
    let bytes = |tokens: u64| HumanBytes(tokens.saturating_mul(footprint.kv_bytes_per_token));
    let best_of = u64::from(config.limits.candidates);
    vec![
        format!(
            "{} in {} layers, context {context}: weights take {}, KV {} a token",
            file.quantisation,
            file.config.layers,
            HumanBytes(footprint.weight_bytes),
            HumanBytes(footprint.kv_bytes_per_token),
        ),
        format!(
            "a request takes at most {} of KV for a candidate of {context} tokens, {} for {best_of} of them",
            bytes(context),
            bytes(context.saturating_mul(best_of)),
        ),
    ]
}
