//! A worker that comes under a name which is taken by another life: whoever holds the name has a second to show that it
//! lives. A worker that was killed and started again so takes its own place; a second worker of one name does not. Called
//! by links, each of which waits for its own worker only.

use std::time::Duration;

use ractor::{ActorRef, call};
use shoal_common::wire::hello::{Refusal, STATUS_EVERY_MS};

use super::roster::ALIVE_WITHIN;
use super::{FleetMessage, FleetView, Membership, Offer};

/// How long the holder of a name has. What it said last may still have been on its way when the challenge began, and
/// counts as a sign of life for [`ALIVE_WITHIN`].
const CHALLENGE: Duration = ALIVE_WITHIN.saturating_add(Duration::from_millis(STATUS_EVERY_MS));

/// Takes a worker into the fleet, at once or when the holder of its name is gone or has lost the challenge. `None`: the
/// fleet is gone.
pub async fn join(
    fleet: &ActorRef<FleetMessage>,
    mut view: FleetView,
    offer: Offer,
) -> Option<Result<Membership, Refusal>> {
    let joined = ask(fleet, offer.clone()).await?;
    if !matches!(joined, Err(Refusal::DuplicateName)) {
        return Some(joined);
    }
    // However the wait ends, the roster decides anew.
    let _ = tokio::time::timeout(CHALLENGE, left(&mut view, &offer)).await;
    ask(fleet, offer).await
}

async fn ask(fleet: &ActorRef<FleetMessage>, offer: Offer) -> Option<Result<Membership, Refusal>> {
    call!(fleet, FleetMessage::Join, Box::new(offer)).ok()
}

/// Resolves when nobody holds the name of `offer`.
async fn left(view: &mut FleetView, offer: &Offer) {
    let holds = |view: &FleetView| {
        view.now().replicas.iter().any(|replica| replica.worker == offer.hello.worker && !replica.line.is_closed())
    };
    while holds(view) && view.changed().await {}
}
