//! What workers have told, as `/metrics` shows it: workers have no HTTP of their own. Called by the fleet's actor.

use shoal_common::ids::Name;
use shoal_common::wire::hello::{StageReport, Status};

/// A worker's load. A worker that left has none.
pub(super) fn tell_load(worker: &Name, status: Option<&Status>) {
    let tell = |name: &'static str, value: fn(&Status) -> f64| {
        metrics::gauge!(name, "worker" => worker.to_string()).set(status.map_or(0.0, value));
    };
    tell("shoal_worker_sequences_running", |status| status.running.into());
    tell("shoal_worker_groups_waiting", |status| status.waiting.into());
    tell("shoal_worker_tokens_queued", |status| status.queued_tokens as f64);
    tell("shoal_worker_kv_tokens_used", |status| status.kv_used as f64);
    tell("shoal_worker_prefix_tokens_looked_up", |status| status.looked_up_tokens as f64);
    tell("shoal_worker_prefix_tokens_cached", |status| status.cached_tokens as f64);
    tell("shoal_worker_sequences_preempted", |status| status.preemptions as f64);
}

/// The stages of the model that `head` serves. When the head has left, none is connected as far as anybody knows.
pub(super) fn tell_stages(head: &Name, stages: &[StageReport]) {
    for stage in stages {
        let tell = |name: &'static str, value: f64| {
            metrics::gauge!(name, "worker" => head.to_string(), "stage" => stage.worker.to_string()).set(value);
        };
        tell("shoal_stage_connected", f64::from(u8::from(stage.incarnation.is_some())));
        tell("shoal_stage_steps", stage.steps as f64);
        tell("shoal_stage_computing_seconds", stage.computing_us as f64 / 1e6);
        tell("shoal_stage_busy_share", f64::from(stage.busy_permille) / 1000.0);
    }
}

/// A head has left, with these stages.
pub(super) fn stages_gone(head: &Name, stages: &[StageReport]) {
    let gone = |stage: &StageReport| StageReport { incarnation: None, busy_permille: 0, ..stage.clone() };
    tell_stages(head, &stages.iter().map(gone).collect::<Vec<_>>());
}
