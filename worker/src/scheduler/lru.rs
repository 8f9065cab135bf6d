//! An order of use over the blocks of a pool: a doubly linked list in an array, so that a block is put in, taken out or
//! found to be the oldest in constant time and nothing is allocated after the start. Used by `blocks` alone.

use crate::backend::BlockId;

/// Neighbours in the list, as indices into it.
#[derive(Clone, Copy, Debug)]
struct Link {
    older: usize,
    newer: usize,
}

/// Some of the blocks of a pool, least recently used first.
#[derive(Debug)]
pub(super) struct Lru {
    /// One for each block, then the list's two ends in one: its `newer` is the oldest block, its `older` the newest. A
    /// block that is not in the list is its own neighbour.
    links: Vec<Link>,
    len: usize,
}

impl Lru {
    /// An empty list over a pool of `blocks` blocks.
    pub(super) fn new(blocks: usize) -> Self {
        Self { links: (0..=blocks).map(|own| Link { older: own, newer: own }).collect(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Puts in a block that is not there, as the one used last.
    pub(super) fn push(&mut self, block: BlockId) {
        let (own, ends) = (block.index(), self.links.len() - 1);
        let older = self.links[ends].older;
        self.links[own] = Link { older, newer: ends };
        self.links[older].newer = own;
        self.links[ends].older = own;
        self.len += 1;
    }

    /// Takes out a block that is there.
    pub(super) fn remove(&mut self, block: BlockId) {
        let own = block.index();
        let Link { older, newer } = std::mem::replace(&mut self.links[own], Link { older: own, newer: own });
        self.links[older].newer = newer;
        self.links[newer].older = older;
        self.len -= 1;
    }

    /// Takes out the least recently used block.
    pub(super) fn pop(&mut self) -> Option<BlockId> {
        let ends = self.links.len() - 1;
        let oldest = self.links[ends].newer;
        (oldest != ends).then(|| {
            let block = BlockId(oldest as u32);
            self.remove(block);
            block
        })
    }
}
