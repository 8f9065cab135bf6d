//! Between the head of a replica and its other stages. The head dials each stage and opens one stream: it says who it is,
//! then a step at a time what is to be computed, and the stage answers each in order. A step's activations follow its frame
//! raw: for each row, `width` f32, little-endian.
//!
//! A stage keeps nothing of a sequence but the KV in its blocks; which block is whose is the head's alone, so that there is
//! nothing for the two to disagree on. A connection is one epoch: what a stage held of an earlier one is never read again,
//! and whoever still speaks on an earlier one is not heard.

use serde::{Deserialize, Serialize};

use super::bounded;
use crate::ids::{Digest, Generation, Incarnation, LayerRange, Name};

/// Slices of a step at most: one for each sequence that runs.
pub const MAX_SLICES: usize = 4096;
/// Rows of a step at most: `step_tokens` cannot be configured higher.
pub const MAX_ROWS: usize = 65_536;
/// Bytes of a step's activations at most: 512 rows of 16,384 values are 32 MiB.
pub const MAX_ACTIVATIONS: usize = 256 << 20;

/// From the head. The first frame is `Hello`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum HeadFrame {
    /// Who asks, and for what. The connection's only one.
    Hello(Box<StageHello>),
    /// Compute. The rows' activations follow.
    Step(StageStep),
    /// Have an adapter's part ready for the steps to come; answered in its own time. The stage fetches what it lacks from the
    /// head: it opens a stream and begins it with a [`WorkerOpen`](super::message::WorkerOpen).
    Adapter(Generation),
    /// No step to come names this adapter, unless it is asked for again.
    Release(Generation),
}

/// What a head must know to be right about a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageHello {
    /// The head's name, as in its certificate.
    pub head: Name,
    /// This life of the head.
    pub incarnation: Incarnation,
    /// Counts the head's connections: a stage hears the highest only.
    pub epoch: u64,
    /// BLAKE3 of the model's weights and configuration.
    pub weights: Digest,
    /// Its arithmetic in words; with the version of the numerics contract.
    pub numerics_class: String,
    /// See [`NUMERICS_VERSION`](crate::fingerprint::NUMERICS_VERSION).
    pub numerics_version: u32,
    /// The layers that are expected of the stage.
    pub layers: LayerRange,
    /// Blocks of KV that the head will use: ids are below this.
    pub blocks: u32,
}

/// One step of the stage's layers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageStep {
    /// Number of the step in this epoch, from 0, without gaps.
    pub step: u64,
    /// Blocks that are copied before anything is computed, one after the other.
    #[serde(deserialize_with = "bounded::few::<MAX_SLICES, _, _>")]
    pub copies: Vec<(u32, u32)>,
    /// What is computed, together.
    #[serde(deserialize_with = "bounded::few::<MAX_SLICES, _, _>")]
    pub slices: Vec<StageSlice>,
}

impl StageStep {
    /// Rows of activations that follow.
    pub fn rows(&self) -> usize {
        self.slices.iter().map(|slice| slice.count as usize).sum()
    }
}

/// Consecutive positions of one sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageSlice {
    /// Position of the first.
    pub start: u32,
    /// How many, at least 1.
    pub count: u32,
    /// The sequence's block table, as far as the slice reaches.
    pub blocks: Vec<u32>,
    /// What is added to the linear layers.
    pub adapter: Option<Generation>,
}

/// From the stage. The first frame is `Ready` or `Refused`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StageFrame {
    /// Steps may come.
    Ready {
        /// This life of the stage.
        incarnation: Incarnation,
    },
    /// The stage does not serve this head.
    Refused(StageRefusal),
    /// A step is done. The rows' activations follow, as many as came.
    Done {
        /// Which.
        step: u64,
        /// What it took, in microseconds, without the way.
        took_us: u64,
    },
    /// The step could not be computed; nothing follows. What it was to write is undefined.
    Failed {
        /// Which.
        step: u64,
    },
    /// What came of [`HeadFrame::Adapter`].
    Adapter(Generation, StageAdapter),
}

/// Whether a stage can use an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StageAdapter {
    /// Steps may name it.
    Ready,
    /// It does not fit or is broken.
    Refused,
    /// It could not be had in time.
    Unavailable,
}

/// Why a stage does not serve a head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StageRefusal {
    /// The name in the hello is not the certificate's.
    #[error("the certificate is not for this head's name")]
    WrongCertificate,
    /// Other weights, or another arithmetic.
    #[error("the stage has the weights {weights} in {numerics_class}, version {numerics_version}")]
    OtherModel {
        /// What the stage has.
        weights: Digest,
        /// Its arithmetic.
        numerics_class: String,
        /// The version of its numerics contract.
        numerics_version: u32,
    },
    /// Other layers.
    #[error("the stage hosts the layers {} to {}", .0.begin, .0.end)]
    OtherLayers(LayerRange),
    /// Not enough memory for so much KV.
    #[error("the stage has room for {0} blocks of kv")]
    TooManyBlocks(u32),
    /// Another head is served.
    #[error("the stage serves {0}")]
    Taken(Name),
    /// A later connection of the same head is known.
    #[error("the stage knows a later epoch")]
    OldEpoch,
    /// The stage shuts down or is drained.
    #[error("the stage takes nothing new")]
    Draining,
}
