//! The right to run with an adapter. While one is held the adapter stays in memory; the store hears when one is given back.

use std::ops::Deref;
use std::sync::Arc;

use tokio::sync::Notify;

use super::Adapter;

/// An adapter in memory that stays there as long as this is held: by a group, from its acceptance to its end. To give it back
/// costs no lock of the store and frees no memory, so that the engine's thread may do it.
#[derive(Clone, Debug)]
pub struct Lease {
    // Before the notice, for fields are dropped in order: who is told finds it given back.
    adapter: Arc<Adapter>,
    _returned: Returned,
}

#[derive(Clone, Debug)]
struct Returned(Arc<Notify>);

impl Drop for Returned {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

impl Lease {
    /// `returned` is told when it is given back.
    pub(crate) fn new(adapter: Arc<Adapter>, returned: Arc<Notify>) -> Self {
        Self { adapter, _returned: Returned(returned) }
    }

    /// A lease that no store knows of.
    #[cfg(test)]
    pub(crate) fn of(adapter: Adapter) -> Self {
        Self::new(Arc::new(adapter), Arc::default())
    }
}

impl Deref for Lease {
    type Target = Adapter;

    fn deref(&self) -> &Adapter {
        &self.adapter
    }
}
