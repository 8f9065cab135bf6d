//! What the worker counts, under the names that `/metrics` shows. Called at the edge of a step, never inside policy.

use std::time::Duration;

use metrics::{counter, histogram};
use shoal_common::wire::message::GroupFailure;

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
    };
    counter!("shoal_worker_groups_failed_total", "reason" => reason).increment(1);
}
