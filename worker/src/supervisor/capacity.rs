//! How much this machine can hold: the configured bounds, and the memory where the configuration leaves it open. Called
//! once, at the start.

use std::sync::Arc;

use shoal_common::config::WorkerConfig;
use shoal_common::wire::hello::{Capacity, ModelCard};

use crate::adapters::{AdapterStore, Limits, Loader, StoreSettings};
use crate::backend::BLOCK_TOKENS;
use crate::model::memory::{Memory, NoRoom};
use crate::model::{adapter_bytes_default, kv_tokens_default, stage_kv_tokens_default};
use crate::scheduler::Bounds;

/// Work that is admitted, as a multiple of what the KV holds: several of the largest groups there can be. Whoever would wait
/// for more is better served by another worker, or told to come back.
const QUEUED_KV: u64 = 64;

/// The engine's bounds. More KV than every slot's longest sequence would never be used by those that run; the prefix cache
/// lives on what they leave.
pub(super) fn bounds(config: &WorkerConfig, card: &ModelCard, kv_bytes_per_token: u64) -> Bounds {
    let in_blocks = |tokens: u64| tokens / BLOCK_TOKENS as u64;
    let longest = u64::from(card.context).next_multiple_of(BLOCK_TOKENS as u64);
    let useful = in_blocks(u64::from(config.slots) * longest);
    let kv_tokens = config.kv_tokens.unwrap_or_else(|| kv_tokens_default(kv_bytes_per_token));
    let blocks = in_blocks(kv_tokens).min(useful).max(1);
    Bounds {
        slots: config.slots as usize,
        blocks: usize::try_from(blocks).unwrap_or(usize::MAX),
        groups: config.groups as usize,
        queued_tokens: QUEUED_KV * blocks * BLOCK_TOKENS as u64,
        step_tokens: config.step_tokens as usize,
    }
}

/// Blocks of KV that a stage has room for, beside its weights. Its head says how many are used, and is refused where that is
/// more: so a stage that was promised more memory than it has is not killed in the middle of a step.
pub(super) fn stage_blocks(config: &WorkerConfig, weight_bytes: u64, kv_bytes_per_token: u64) -> u32 {
    let wanted = config.kv_tokens.unwrap_or_else(|| stage_kv_tokens_default(kv_bytes_per_token));
    let tokens = wanted.min(held_tokens(Memory::now(), weight_bytes, kv_bytes_per_token));
    if tokens < wanted {
        tracing::warn!(kv_tokens = wanted, room = tokens, "this process can never have memory for so much kv");
    }
    u32::try_from(tokens / BLOCK_TOKENS as u64).unwrap_or(u32::MAX).max(1)
}

/// Tokens of KV that can be held at all, beside weights.
fn held_tokens(memory: Memory, weight_bytes: u64, kv_bytes_per_token: u64) -> u64 {
    memory.most.saturating_sub(weight_bytes) / kv_bytes_per_token.max(1)
}

/// Whether weights and KV can be held: weights are there by now, KV is taken as it is used. What this machine can never hold
/// would end the worker in the middle of its answers, again and again.
pub(super) fn check(blocks: usize, weight_bytes: u64, kv_bytes_per_token: u64) -> Result<(), NoRoom> {
    let (memory, tokens) = (Memory::now(), blocks as u64 * BLOCK_TOKENS as u64);
    NoRoom::check(weight_bytes, (tokens, kv_bytes_per_token), memory)?;
    let (kv_bytes, available) = (tokens.saturating_mul(kv_bytes_per_token), memory.available);
    if kv_bytes > available {
        tracing::warn!(kv_bytes, available, "the kv may take more memory than is available now; lower kv_tokens");
    }
    Ok(())
}

/// The model as this machine can serve it: a sequence longer than all of the KV is never asked for.
pub(super) fn held(card: ModelCard, bounds: &Bounds) -> ModelCard {
    let context = u32::try_from(bounds.kv_tokens()).map_or(card.context, |tokens| card.context.min(tokens));
    if context < card.context {
        let (model, of) = (&card.name, card.context);
        tracing::warn!(%model, context, of, "the kv does not hold the whole context: longer requests are refused");
    }
    ModelCard { context, ..card }
}

/// The bounds of the adapters.
pub(super) fn adapters(config: &WorkerConfig) -> Limits {
    Limits {
        slots: config.adapter_slots as usize,
        bytes: config.adapter_bytes.unwrap_or_else(adapter_bytes_default),
        disk_bytes: config.adapter_disk_bytes,
    }
}

/// The worker's one store of adapters.
pub(super) async fn adapter_store(config: &WorkerConfig, loader: Arc<dyn Loader>) -> AdapterStore {
    let directory = config.data_dir.join("adapters");
    AdapterStore::open(StoreSettings { limits: adapters(config), directory }, loader).await
}

/// What routers are told of them.
pub(super) fn announced(bounds: &Bounds, adapters: &Limits) -> Capacity {
    let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Capacity {
        slots: count(bounds.slots),
        kv_tokens: bounds.kv_tokens(),
        groups: count(bounds.groups),
        adapter_slots: count(adapters.slots),
        adapter_bytes: adapters.bytes,
    }
}

#[cfg(test)]
mod tests {
    use shoal_common::adapter::Geometry;
    use shoal_common::fingerprint::Fingerprint;
    use shoal_common::ids::{Digest, LayerRange, Name};

    use super::*;

    #[test]
    fn a_stage_offers_no_kv_that_it_could_not_hold_beside_its_weights() {
        let memory = Memory { available: 0, most: 1000 };
        assert_eq!(
            [held_tokens(memory, 200, 8), held_tokens(memory, 999, 8), held_tokens(memory, 2000, 8)],
            [100, 0, 0]
        );
    }

    #[test]
    fn a_context_that_the_kv_cannot_hold_is_not_announced() {
        let digest = Digest::of(b"model");
        let whole = ModelCard {
            name: Name::new("model").unwrap(),
            weights: digest,
            tokenizer: digest,
            fingerprint: Fingerprint::new(digest, None, digest, "test"),
            numerics_class: "test".to_owned(),
            layers: LayerRange { begin: 0, end: 1 },
            layer_count: 1,
            vocab_size: 8,
            context: 131_072,
            geometry: Geometry { layers: 1, hidden: 32, intermediate: 32, queries: 32, keys: 32 },
        };
        for (blocks, announced) in [(256, 4096), (1 << 36, 131_072)] {
            let bounds = Bounds { slots: 1, blocks, groups: 1, queued_tokens: 1, step_tokens: 1 };
            assert_eq!(held(whole.clone(), &bounds).context, announced);
        }
    }
}
