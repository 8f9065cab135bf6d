//! Orders about adapters on their way to one worker: the fleet and requests put them in, the worker's link writes them out.
//! Bounded by coalescing: an order waits once per adapter, and at most [`WAITING`] adapters have one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use shoal_common::ids::{Generation, Name};
use shoal_common::wire::hello::AdapterOrder;
use tokio::sync::Notify;

/// Adapters with an order waiting, at most: a link writes thousands a second, so more than this means that it is dead, and
/// its end clears them.
pub const WAITING: usize = 4096;

/// Adapters that are pinned over all models, at most. They hold slots of memory on every worker, of which there are dozens.
const PINNED: usize = 4096;

/// Orders that one worker has not been told yet.
#[derive(Debug, Default)]
pub struct Orders {
    waiting: Mutex<BTreeMap<Generation, AdapterOrder>>,
    given: Notify,
}

impl Orders {
    /// Gives an order. It takes the place of an earlier one about the same adapter that is still waiting. One that finds no
    /// room is dropped: a group that needs the adapter makes the worker load it anyway.
    pub fn give(&self, order: AdapterOrder) {
        let generation = generation_of(order);
        let mut waiting = self.waiting();
        match waiting.get(&generation) {
            Some(before) => {
                let order = coalesced(*before, order);
                waiting.insert(generation, order);
            }
            None if waiting.len() < WAITING => {
                waiting.insert(generation, order);
            }
            None => {
                metrics::counter!("shoal_adapter_orders_dropped_total").increment(1);
                return;
            }
        }
        drop(waiting);
        self.given.notify_one();
    }

    /// The next order; waits for one. For one caller at a time: the link. Cancel-safe.
    pub async fn next(&self) -> AdapterOrder {
        loop {
            if let Some(order) = self.take() {
                return order;
            }
            self.given.notified().await;
        }
    }

    /// The next order, if one waits.
    pub fn take(&self) -> Option<AdapterOrder> {
        self.waiting().pop_first().map(|(_, order)| order)
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<Generation, AdapterOrder>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which adapter an order is about.
fn generation_of(order: AdapterOrder) -> Generation {
    match order {
        AdapterOrder::Load(generation)
        | AdapterOrder::Pin(generation)
        | AdapterOrder::Unpin(generation)
        | AdapterOrder::Forget(generation) => generation,
    }
}

/// What is left to be said of two orders about one adapter. The later one counts, but for a `Load`: it is a hint, which a
/// `Pin` says already, and for which no `Unpin` may be lost.
fn coalesced(before: AdapterOrder, after: AdapterOrder) -> AdapterOrder {
    match (before, after) {
        (AdapterOrder::Pin(_) | AdapterOrder::Unpin(_), AdapterOrder::Load(_)) => before,
        _ => after,
    }
}

/// The pins that stand, for workers that join later. At most [`PINNED`].
#[derive(Debug, Default)]
pub(super) struct Pins(BTreeMap<Generation, Option<Name>>);

impl Pins {
    /// Notes an order to the workers of `model`, or to all.
    pub(super) fn note(&mut self, model: Option<&Name>, order: AdapterOrder) {
        match order {
            AdapterOrder::Pin(generation) if self.0.len() < PINNED => {
                self.0.insert(generation, model.cloned());
            }
            AdapterOrder::Pin(generation) => tracing::warn!(%generation, "too many pins: one does not stand"),
            AdapterOrder::Unpin(generation) | AdapterOrder::Forget(generation) => {
                self.0.remove(&generation);
            }
            AdapterOrder::Load(_) => {}
        }
    }

    /// What is pinned on workers of `model`.
    pub(super) fn of(&self, model: &Name) -> impl Iterator<Item = Generation> {
        let of_model = move |of: &Option<Name>| of.as_ref().is_none_or(|name| name == model);
        self.0.iter().filter(move |(_, of)| of_model(of)).map(|(generation, _)| *generation)
    }
}

#[cfg(test)]
mod tests {
    use shoal_common::ids::Digest;

    use super::*;

    fn generation(of: u32) -> Generation {
        Generation(Digest::of(&of.to_le_bytes()))
    }

    fn given(orders: &[AdapterOrder]) -> Vec<AdapterOrder> {
        let queue = Orders::default();
        orders.iter().for_each(|order| queue.give(*order));
        std::iter::from_fn(|| queue.take()).collect()
    }

    #[test]
    fn of_orders_about_one_adapter_the_last_is_told_and_a_hint_never_hides_a_pin() {
        use AdapterOrder::{Forget, Load, Pin, Unpin};
        let one = generation(1);
        assert_eq!(given(&[Load(one), Forget(one)]), [Forget(one)]);
        assert_eq!(given(&[Forget(one), Pin(one)]), [Pin(one)]);
        assert_eq!(given(&[Pin(one), Load(one)]), [Pin(one)]);
        assert_eq!(given(&[Pin(one), Unpin(one), Load(one)]), [Unpin(one)]);
        assert_eq!(given(&[Load(one), Load(generation(2))]).len(), 2);
    }

    #[test]
    fn a_dead_link_holds_a_bounded_number_of_orders() {
        let orders: Vec<_> = (0..WAITING as u32 + 10).map(|of| AdapterOrder::Load(generation(of))).collect();
        assert_eq!(given(&orders).len(), WAITING);
    }

    #[tokio::test]
    async fn an_order_wakes_the_link_that_waits_for_it() {
        let orders = Orders::default();
        let order = AdapterOrder::Load(generation(1));
        let (next, ()) = tokio::join!(orders.next(), async { orders.give(order) });
        assert_eq!(next, order);
    }
}
