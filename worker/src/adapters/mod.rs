//! Adapters in a worker: low-rank updates of the linear layers that this worker hosts, ready for a step.

use shoal_common::ids::Generation;

/// An adapter in memory: what it changes in the hosted layers. Shared by all groups that run with it; never changes.
#[derive(Debug)]
pub struct Adapter {
    generation: Generation,
}

impl Adapter {
    /// Which one it is.
    pub fn generation(&self) -> Generation {
        self.generation
    }
}
