//! What the worker counts, under the names that `/metrics` shows. Called at the edge of a step, never inside policy.

use std::time::Duration;

use metrics::{counter, histogram};
use shoal_common::wire::message::GroupFailure;

use crate::adapters::{AcquireError, FetchError, Origin};
use crate::scheduler::{Phase, StepPlan, Totals};

/// A step was carried out, well or not.
pub(crate) fn step(plan: &StepPlan, took: Duration) {
    counter!("shoal_worker_steps_total").increment(1);
    histogram!("shoal_worker_step_seconds").record(took.as_secs_f64());
    counter!("shoal_worker_tokens_total", "phase" => "prefill").increment(plan.tokens_of(Phase::Prefill) as u64);
    counter!("shoal_worker_tokens_total", "phase" => "decode").increment(plan.tokens_of(Phase::Decode) as u64);
}

/// What the scheduler's totals have grown by in a step.
pub(crate) fn scheduler(before: Totals, now: Totals) {
    if before != now {
        counter!("shoal_worker_prefix_lookup_tokens_total").increment(now.looked_up_tokens - before.looked_up_tokens);
        counter!("shoal_worker_prefix_hit_tokens_total").increment(now.cached_tokens - before.cached_tokens);
        counter!("shoal_worker_preemptions_total").increment(now.preemptions - before.preemptions);
    }
}

/// A group was given up.
pub(crate) fn group_failed(failure: GroupFailure) {
    let reason = match failure {
        GroupFailure::WrongFingerprint => "wrong_fingerprint",
        GroupFailure::Invalid => "invalid",
        GroupFailure::Deadline => "deadline",
        GroupFailure::ShuttingDown => "shutting_down",
        GroupFailure::Engine => "engine",
        GroupFailure::AdapterRefused => "adapter_refused",
        GroupFailure::AdapterUnavailable => "adapter_unavailable",
        GroupFailure::Incomplete => "incomplete",
    };
    counter!("shoal_worker_groups_failed_total", "reason" => reason).increment(1);
}

/// Where a group's adapter was when the group came.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AdapterFrom {
    Memory,
    Disk,
    Router,
    /// On its way already, for somebody else.
    Flight,
}

/// A group has asked for its adapter.
pub(crate) fn adapter_acquired(from: AdapterFrom) {
    let from = match from {
        AdapterFrom::Memory => "memory",
        AdapterFrom::Disk => "disk",
        AdapterFrom::Router => "router",
        AdapterFrom::Flight => "flight",
    };
    counter!("shoal_worker_adapter_acquires_total", "from" => from).increment(1);
}

/// An adapter was fetched from somebody, or was not.
pub(crate) fn adapter_fetched(origin: &Origin, fetched: &Result<(), FetchError>) {
    let from = match origin {
        Origin::Router => "router",
        Origin::Head => "head",
        Origin::Peer(_) => "peer",
    };
    let Err(error) = fetched else {
        counter!("shoal_worker_adapter_fetches_total", "from" => from).increment(1);
        return;
    };
    let reason = match error {
        FetchError::NotFound => "not_found",
        FetchError::Busy => "busy",
        FetchError::Unresolved(_) | FetchError::Undialled(_) => "unreachable",
        FetchError::Lost(_) | FetchError::Stream(_) | FetchError::Content(_) => "broken",
        FetchError::Silent | FetchError::Slow => "slow",
        FetchError::Corrupt => "corrupt",
        FetchError::Room(_) => "no_room",
        FetchError::DiskFull(_) | FetchError::Disk(_) => "disk",
        FetchError::Panicked(_) => "aborted",
    };
    counter!("shoal_worker_adapter_fetch_failures_total", "from" => from, "reason" => reason).increment(1);
}

/// How another worker was answered that asked for an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lent {
    Sent,
    NotFound,
    Busy,
    /// The other end left, or was too slow.
    Broken,
}

/// Another worker has asked for an adapter.
pub(crate) fn adapter_lent(lent: Lent) {
    let outcome = match lent {
        Lent::Sent => "sent",
        Lent::NotFound => "not_found",
        Lent::Busy => "busy",
        Lent::Broken => "broken",
    };
    counter!("shoal_worker_adapters_lent_total", "outcome" => outcome).increment(1);
}

/// A load has ended; how long it took, without waiting for room.
pub(crate) fn adapter_landed(landing: &Result<Duration, AcquireError>) {
    let outcome = match landing {
        Ok(took) => {
            histogram!("shoal_worker_adapter_load_seconds").record(took.as_secs_f64());
            "loaded"
        }
        Err(AcquireError::Quarantined(_)) => "quarantined",
        Err(AcquireError::Unavailable(_)) => "unavailable",
    };
    counter!("shoal_worker_adapter_loads_total", "outcome" => outcome).increment(1);
}

/// What adapters give way in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tier {
    Memory,
    Disk,
}

/// Adapters had to make room for others.
pub(crate) fn adapters_evicted(tier: Tier, count: usize) {
    let tier = match tier {
        Tier::Memory => "memory",
        Tier::Disk => "disk",
    };
    counter!("shoal_worker_adapter_evictions_total", "tier" => tier).increment(count as u64);
}
