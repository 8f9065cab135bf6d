//! How much this machine can hold: the configured bounds, and the memory where the configuration leaves it open.

use shoal_common::config::WorkerConfig;
use shoal_common::wire::hello::{Capacity, ModelCard};

use crate::scheduler::Bounds;

/// The part of the free memory that KV may take: the rest is for logits, prompts and the page cache of the weights.
const KV_SHARE: u64 = 2;

/// The engine's bounds. More KV than every slot's longest sequence would never be used.
pub(super) fn bounds(config: &WorkerConfig, card: &ModelCard, kv_bytes_per_token: u64) -> Bounds {
    let useful = u64::from(config.slots) * u64::from(card.context);
    let in_memory = || available_memory().map_or(useful, |bytes| bytes / KV_SHARE / kv_bytes_per_token.max(1));
    Bounds {
        slots: config.slots as usize,
        kv_tokens: config.kv_tokens.unwrap_or_else(in_memory).min(useful),
        groups: config.groups as usize,
        step_tokens: config.step_tokens as usize,
    }
}

/// What routers are told of them.
pub(super) fn announced(bounds: &Bounds) -> Capacity {
    let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Capacity { slots: count(bounds.slots), kv_tokens: bounds.kv_tokens, groups: count(bounds.groups) }
}

/// Bytes that can be had without swapping; `None` where the system does not tell.
fn available_memory() -> Option<u64> {
    parse_available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_from_meminfo() {
        let meminfo = "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\nBuffers: 1 kB\n";
        assert_eq!(parse_available(meminfo), Some(8_192_000_000));
        assert_eq!(parse_available("MemTotal: 1 kB\n"), None);
        assert_eq!(parse_available("MemAvailable: many kB\n"), None);
    }
}
