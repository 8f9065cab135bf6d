//! The right to run with an adapter. While one is held the adapter stays in memory; the store hears when one is given back.

use std::ops::Deref;
use std::sync::Arc;

use tokio::sync::Notify;

use super::Adapter;
use super::elsewhere::Hold;

/// An adapter in memory that stays there as long as this is held: by a group, from its acceptance to its end. To give it back
/// costs no lock of the store and frees no memory, so that the engine's thread may do it.
#[derive(Clone, Debug)]
pub struct Lease {
    // Before the notice, for fields are dropped in order: who is told finds it given back.
    adapter: Arc<Adapter>,
    _returned: Returned,
    elsewhere: Option<Hold>,
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
        Self { adapter, _returned: Returned(returned), elsewhere: None }
    }

    /// With what others hold of the adapter for as long as this does.
    pub(crate) fn with(self, elsewhere: Hold) -> Self {
        Self { elsewhere: Some(elsewhere), ..self }
    }

    /// Whether another part of a split model has lost it: nothing can be computed with it any more.
    pub fn is_lost(&self) -> bool {
        self.elsewhere.as_ref().is_some_and(|hold| hold.is_lost())
    }

    /// What a test's tables hold beside this.
    #[cfg(test)]
    pub(crate) fn adapter(&self) -> Arc<Adapter> {
        self.adapter.clone()
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
