//! The stages of a split model in the document of `GET /v1/cluster`.

use serde::Serialize;
use shoal_common::wire::hello::StageReport;
use utoipa::ToSchema;

/// Whether a head has a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum StageState {
    /// It is connected, or the head itself.
    Connected,
    /// It is not: the worker is `incomplete` until it is.
    Away,
}

/// A stage of a model that is split over workers, as its head told last.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ClusterStage)]
pub(super) struct Stage {
    /// The worker that hosts it.
    worker: String,
    /// Whether the head has it.
    state: StageState,
    /// This life of it; `null` while it is away.
    incarnation: Option<String>,
    /// What the head dials; `null` for the head itself.
    address: Option<String>,
    /// First layer that it hosts, and one past the last.
    layers: [u32; 2],
    /// Why it is away, where that is known.
    reason: Option<String>,
    /// Steps that it has computed since its head started.
    steps: u64,
    /// Seconds that they took there.
    computing_s: f64,
    /// The share of the last second or so in which it computed, 0 to 1; it was idle for the rest.
    busy: f64,
}

impl From<&StageReport> for Stage {
    fn from(report: &StageReport) -> Self {
        Self {
            worker: report.worker.to_string(),
            state: if report.incarnation.is_some() { StageState::Connected } else { StageState::Away },
            incarnation: report.incarnation.map(|incarnation| incarnation.to_string()),
            address: report.address.clone(),
            layers: [report.layers.begin, report.layers.end],
            reason: report.reason.clone(),
            steps: report.steps,
            computing_s: report.computing_us as f64 / 1e6,
            busy: f64::from(report.busy_permille) / 1000.0,
        }
    }
}
