//! Which workers this router has told to drain. An order is this router's alone: other routers go on sending groups to the
//! worker. It stands for one life of the worker: one whose connection broke is told again when it is back, one that was
//! started again begins afresh. `http::cluster` gives the orders, a worker's link writes them out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shoal_common::ids::{Incarnation, Name};
use shoal_common::wire::hello::RouterControl;
use tokio::sync::watch;

/// Workers that are remembered at most, beside those that are connected: more than any cluster has, so that only those go
/// that come and go under ever new names.
const REMEMBERED: usize = 1024;

/// What a worker shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Take groups.
    Serve,
    /// Finish what runs, take nothing new.
    Drain,
}

/// No such worker is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no worker of this name is connected")]
pub struct NotConnected;

/// The duties of all workers. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Drains(Arc<Mutex<BTreeMap<Name, Entry>>>);

#[derive(Debug)]
struct Entry {
    incarnation: Incarnation,
    duty: watch::Sender<Duty>,
}

impl Entry {
    fn new(incarnation: Incarnation) -> Self {
        Self { incarnation, duty: watch::Sender::new(Duty::Serve) }
    }

    fn is_connected(&self) -> bool {
        self.duty.receiver_count() > 0
    }

    fn duty(&self) -> Duty {
        *self.duty.borrow()
    }
}

impl Drains {
    /// The orders for a worker that was just taken, the one that stands included. The link holds them while it lives.
    pub fn orders(&self, worker: &Name, incarnation: Incarnation) -> DrainOrders {
        let mut entries = self.entries();
        let room = entries.len() < REMEMBERED;
        entries.retain(|_, entry| entry.is_connected() || (room && entry.duty() == Duty::Drain));
        let entry = entries.entry(worker.clone()).or_insert_with(|| Entry::new(incarnation));
        if entry.incarnation != incarnation {
            *entry = Entry::new(incarnation);
        }
        DrainOrders { duty: entry.duty.subscribe(), told: Duty::Serve }
    }

    /// Orders a connected worker.
    pub fn order(&self, worker: &Name, duty: Duty) -> Result<(), NotConnected> {
        let entries = self.entries();
        let entry = entries.get(worker).filter(|entry| entry.is_connected()).ok_or(NotConnected)?;
        entry.duty.send_replace(duty);
        Ok(())
    }

    /// What a worker was ordered last; a worker nobody ordered anything serves.
    pub fn duty(&self, worker: &Name) -> Duty {
        self.entries().get(worker).map_or(Duty::Serve, Entry::duty)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Name, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one worker is still to be told. Nothing queues: of several orders the last one counts.
#[derive(Debug)]
pub struct DrainOrders {
    duty: watch::Receiver<Duty>,
    told: Duty,
}

impl DrainOrders {
    /// The next order; waits for one. Cancel-safe.
    pub async fn next(&mut self) -> RouterControl {
        loop {
            let duty = *self.duty.borrow_and_update();
            if duty != self.told {
                self.told = duty;
                return match duty {
                    Duty::Serve => RouterControl::Undrain,
                    Duty::Drain => RouterControl::Drain,
                };
            }
            if self.duty.changed().await.is_err() {
                // Another life has this worker's place: there is nothing more to say to the old one.
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    const LIFE: Incarnation = Incarnation(1);

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    /// The next order, if there is one now.
    async fn now(orders: &mut DrainOrders) -> Option<RouterControl> {
        let mut next = std::pin::pin!(orders.next());
        poll_fn(|context| match next.as_mut().poll(context) {
            Poll::Ready(order) => Poll::Ready(Some(order)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    #[tokio::test]
    async fn a_worker_is_told_once_and_the_last_order_counts() {
        let drains = Drains::default();
        let mut orders = drains.orders(&name("w"), LIFE);
        assert_eq!(now(&mut orders).await, None, "a worker serves without being told");
        drains.order(&name("w"), Duty::Drain).unwrap();
        drains.order(&name("w"), Duty::Drain).unwrap();
        assert_eq!(now(&mut orders).await, Some(RouterControl::Drain));
        assert_eq!(now(&mut orders).await, None);
        drains.order(&name("w"), Duty::Serve).unwrap();
        assert_eq!(now(&mut orders).await, Some(RouterControl::Undrain));
        drains.order(&name("w"), Duty::Drain).unwrap();
        drains.order(&name("w"), Duty::Serve).unwrap();
        assert_eq!(now(&mut orders).await, None);
    }

    #[tokio::test]
    async fn an_order_stands_while_the_worker_lives_and_not_for_its_next_life() {
        let drains = Drains::default();
        let first = drains.orders(&name("w"), LIFE);
        drains.order(&name("w"), Duty::Drain).unwrap();
        drop(first);
        let mut back = drains.orders(&name("w"), LIFE);
        assert_eq!(now(&mut back).await, Some(RouterControl::Drain), "it came back and serves");
        let mut restarted = drains.orders(&name("w"), Incarnation(2));
        assert_eq!((drains.duty(&name("w")), now(&mut restarted).await), (Duty::Serve, None));
        drains.order(&name("w"), Duty::Drain).unwrap();
        assert_eq!(now(&mut back).await, None, "the old life was told");
    }

    #[test]
    fn who_is_not_connected_cannot_be_ordered() {
        let drains = Drains::default();
        assert_eq!(drains.order(&name("w"), Duty::Drain), Err(NotConnected));
        drop(drains.orders(&name("w"), LIFE));
        assert_eq!(drains.order(&name("w"), Duty::Drain), Err(NotConnected));
    }

    #[test]
    fn names_that_come_and_go_are_forgotten() {
        let drains = Drains::default();
        let connected = drains.orders(&name("stays"), LIFE);
        for number in 0..REMEMBERED * 3 {
            let worker = name(&format!("w{number}"));
            let orders = drains.orders(&worker, LIFE);
            drains.order(&worker, Duty::Drain).unwrap();
            drop(orders);
            assert!(drains.entries().len() <= REMEMBERED + 1);
        }
        drains.order(&name("stays"), Duty::Drain).expect("it is connected");
        drop(connected);
    }
}
