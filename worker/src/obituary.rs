//! What routers are told of a worker's life that has ended without a farewell, by the witness that it has left behind. Called by
//! the composition root, in a process of its own.

use std::time::Duration;

use futures_util::future;
use quinn::Endpoint;
use shoal_common::config::Timers;
use shoal_common::ids::Incarnation;
use shoal_common::pki::Identity;
use shoal_common::quic::{self, QuicError};
use shoal_common::wire::codec;
use shoal_common::wire::hello::WorkerControl;

use crate::session::{SessionEnd, connect};

/// For a router that was told to close the connection.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// Tells all `routers` that the worker of `identity` has died in this life of it. A router that cannot be reached has lost the
/// worker by itself, and is not tried again.
///
/// # Errors
/// There is no endpoint to dial from.
pub async fn tell_of_death(
    identity: &Identity,
    timers: &Timers,
    routers: &[String],
    incarnation: Incarnation,
) -> Result<(), QuicError> {
    let endpoint = quic::worker_endpoint(identity, timers)?;
    let telling = future::join_all(routers.iter().map(|router| tell(router, &endpoint, timers, incarnation))).await;
    for (router, told) in routers.iter().zip(telling) {
        if let Err(error) = told {
            tracing::debug!(%router, %error, "a router was not told of a worker's death");
        }
    }
    Ok(())
}

async fn tell(router: &str, endpoint: &Endpoint, timers: &Timers, incarnation: Incarnation) -> Result<(), SessionEnd> {
    let connection = connect(router, endpoint, timers).await?;
    let (mut writer, _reader) = connection.open_bi().await.map_err(|error| SessionEnd::Lost(error.into()))?;
    codec::write_frame(&mut writer, &WorkerControl::Died(incarnation)).await?;
    // Closed by the router, which has heard it then.
    let _ = tokio::time::timeout(HEARD_WITHIN, connection.closed()).await;
    Ok(())
}
