//! One adapter in memory, by layer and by the place where it is added. Made by `load`; backends look their updates up in it.

use std::fmt;

use shoal_common::adapter::Linear;
use shoal_common::ids::Generation;
use shoal_kernels::LowRank;

/// An adapter in memory: what it changes in the hosted layers. Shared by all groups that run with it; never changes.
pub struct Adapter {
    pub(super) generation: Generation,
    pub(super) rank: u32,
    /// For each hosted layer, by [`Site`]. Empty where it changes no hosted layer.
    pub(super) layers: Vec<[Option<LowRank>; Site::ALL.len()]>,
}

/// Linear layers that share their inputs, and to whose outputs an adapter adds together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// Queries, keys and values.
    Qkv,
    /// Attention's output.
    Out,
    /// Gate of the feed-forward network, and what it is multiplied with.
    GateUp,
    /// Back to the residual stream.
    Down,
}

impl Site {
    /// All of a layer, in the order of computation.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::Out, Self::GateUp, Self::Down];

    /// The linear layers there, in the order in which their outputs lie side by side: each begins at a whole
    /// [`shoal_kernels::BLOCK`].
    pub fn linears(self) -> &'static [Linear] {
        match self {
            Self::Qkv => &[Linear::Q, Linear::K, Linear::V],
            Self::Out => &[Linear::O],
            Self::GateUp => &[Linear::Gate, Linear::Up],
            Self::Down => &[Linear::Down],
        }
    }
}

impl Adapter {
    /// Which one it is.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Largest rank of an update, in any layer.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// What it takes of memory.
    pub fn bytes(&self) -> u64 {
        let updates: usize = self.layers.iter().flatten().flatten().map(LowRank::bytes).sum();
        (updates + size_of_val(&self.layers[..])) as u64
    }

    /// What it adds in the hosted layer `layer`, the first of which is 0. Rows of queries and keys are in the order of
    /// Hugging Face: a head's first half is rotated with its second.
    pub fn update(&self, layer: usize, site: Site) -> Option<&LowRank> {
        self.layers.get(layer)?[site as usize].as_ref()
    }

    /// One that changes nothing.
    #[cfg(test)]
    pub(crate) fn empty(generation: Generation) -> Self {
        Self { generation, rank: 0, layers: Vec::new() }
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, rank, layers } = self;
        write!(f, "Adapter({generation}, rank {rank}, {} layers)", layers.len())
    }
}
