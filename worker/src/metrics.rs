//! What the worker counts, under the names that `/metrics` shows. Called at the edge of a step, never inside policy.

use std::time::Duration;

use metrics::{counter, histogram};
use shoal_common::wire::message::GroupFailure;

use crate::scheduler::{Feed, StepPlan};

/// A step was carried out, well or not.
pub(crate) fn step(plan: &StepPlan, took: Duration) {
    let of = |is_prefill: bool| -> u64 {
        let matching = plan.slices.iter().filter(|slice| (slice.count > 1 || slice.feed == Feed::Prompt) == is_prefill);
        matching.map(|slice| slice.count as u64).sum()
    };
    counter!("shoal_worker_steps_total").increment(1);
    histogram!("shoal_worker_step_seconds").record(took.as_secs_f64());
    counter!("shoal_worker_tokens_total", "phase" => "prefill").increment(of(true));
    counter!("shoal_worker_tokens_total", "phase" => "decode").increment(of(false));
}

/// A group was given up.
pub(crate) fn group_failed(failure: GroupFailure) {
    let reason = match failure {
        GroupFailure::WrongFingerprint => "wrong_fingerprint",
        GroupFailure::Invalid => "invalid",
        GroupFailure::Deadline => "deadline",
        GroupFailure::ShuttingDown => "shutting_down",
        GroupFailure::Engine => "engine",
    };
    counter!("shoal_worker_groups_failed_total", "reason" => reason).increment(1);
}
