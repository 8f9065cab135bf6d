//! Who else must have an adapter before anything runs with it: the stages of a split model. A small trait, so that the store
//! knows nothing of connections.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use shoal_common::ids::Generation;

use super::error::AcquireError;

/// What others hold of an adapter; given back when the last clone is dropped, which neither blocks nor waits.
pub type Hold = Arc<dyn Held>;

/// See [`Hold`].
pub trait Held: fmt::Debug + Send + Sync {
    /// Whether somebody does not hold it any more.
    fn is_lost(&self) -> bool;
}

/// Others that are being asked.
pub type Holding<'a> = Pin<Box<dyn Future<Output = Result<Hold, AcquireError>> + Send + 'a>>;

/// The others.
pub trait Elsewhere: fmt::Debug + Send + Sync {
    /// Has all of them get the adapter ready and hold it, within a time.
    fn hold(&self, generation: Generation, within: Duration) -> Holding<'_>;
}
