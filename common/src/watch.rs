//! A value that one side sets and many read, or wait for the change of. What tokio's channel of this name does, but waiters
//! are woken in the order in which they began to wait: requests that wait for a worker get it in turn, and a simulated run
//! can be played again. Of tokio's interface it has what is used here.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::Notify;

/// Sets the value. Dropping the last one tells the receivers that there will be no other.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// Reads the value and waits for changes.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// Of the value that was seen last.
    seen: u64,
}

/// The sender is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody is left who could change the value")]
pub struct Closed;

/// The value, which does not change while this is held: never across an await.
#[derive(Debug)]
pub struct Ref<'a, T>(RwLockReadGuard<'a, Versioned<T>>);

#[derive(Debug)]
struct Shared<T> {
    value: RwLock<Versioned<T>>,
    senders: AtomicUsize,
    changes: Notify,
}

#[derive(Debug)]
struct Versioned<T> {
    value: T,
    version: u64,
}

/// A connected pair that holds `value`, which counts as seen.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    /// A sender that nobody listens to yet.
    pub fn new(value: T) -> Self {
        let value = RwLock::new(Versioned { value, version: 0 });
        Self(Arc::new(Shared { value, senders: AtomicUsize::new(1), changes: Notify::new() }))
    }

    /// Sets the value, wakes who waits for a change, and returns the old value.
    pub fn send_replace(&self, value: T) -> T {
        let old = {
            let mut held = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
            held.version += 1;
            std::mem::replace(&mut held.value, value)
        };
        self.0.changes.notify_waiters();
        old
    }

    /// The value.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.0.read()
    }

    /// A receiver that has seen the value as it is.
    pub fn subscribe(&self) -> Receiver<T> {
        let seen = self.0.read().0.version;
        Receiver { shared: Arc::clone(&self.0), seen }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changes.notify_waiters();
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T> Receiver<T> {
    /// The value. It does not count as seen by that.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.read()
    }

    /// Whether there is a value that this receiver has not seen.
    pub fn has_changed(&self) -> Result<bool, Closed> {
        if self.shared.is_closed() { Err(Closed) } else { Ok(self.shared.read().0.version != self.seen) }
    }

    /// Waits for a value that this receiver has not seen, which then counts as seen. Cancel-safe.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            // From here on no wake-up is missed.
            let change = self.shared.changes.notified();
            let is_closed = self.shared.is_closed();
            let version = self.shared.read().0.version;
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if is_closed {
                return Err(Closed);
            }
            change.await;
        }
    }

    /// Waits for a value that is as wanted, which may be the one that is there. Cancel-safe.
    pub async fn wait_for(&mut self, mut is_wanted: impl FnMut(&T) -> bool) -> Result<(), Closed> {
        loop {
            let change = self.shared.changes.notified();
            let is_closed = self.shared.is_closed();
            {
                let held = self.shared.read();
                self.seen = held.0.version;
                if is_wanted(&held) {
                    return Ok(());
                }
            }
            if is_closed {
                return Err(Closed);
            }
            change.await;
        }
    }
}

impl<T> Shared<T> {
    fn read(&self) -> Ref<'_, T> {
        Ref(self.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_closed(&self) -> bool {
        self.senders.load(Ordering::Acquire) == 0
    }
}

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Mutex;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn waiters_are_woken_in_the_order_in_which_they_began_to_wait() {
        let (sender, receiver) = channel(0);
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiters: Vec<_> = (0..32)
            .map(|waiter| {
                let (mut receiver, order) = (receiver.clone(), Arc::clone(&order));
                tokio::spawn(async move {
                    receiver.changed().await.unwrap();
                    order.lock().unwrap().push(waiter);
                })
            })
            .collect();
        // Fewer than the runtime polls before it looks elsewhere, so that all wait afterwards.
        tokio::task::yield_now().await;
        sender.send_replace(1);
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..32).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_change_is_told_once_to_each_however_late_it_asks() {
        let (sender, mut early) = channel(0);
        sender.send_replace(1);
        let late = sender.subscribe();
        assert_eq!((early.has_changed(), late.has_changed()), (Ok(true), Ok(false)));
        early.changed().await.unwrap();
        assert_eq!((*early.borrow(), early.has_changed()), (1, Ok(false)));
        let mut again = pin!(early.changed());
        assert!(again.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        sender.send_replace(2);
        again.await.unwrap();
    }

    #[tokio::test]
    async fn the_last_value_is_told_before_the_end_is() {
        let (sender, mut receiver) = channel(0);
        let other = sender.clone();
        sender.send_replace(1);
        drop(sender);
        assert_eq!(receiver.has_changed(), Ok(true), "one sender is left");
        drop(other);
        assert_eq!(receiver.changed().await, Ok(()));
        assert_eq!(receiver.changed().await, Err(Closed));
        assert_eq!(receiver.wait_for(|value| *value == 1).await, Ok(()));
        assert_eq!(receiver.wait_for(|value| *value == 2).await, Err(Closed));
    }

    #[tokio::test]
    async fn who_waits_hears_that_nobody_is_left() {
        let (sender, mut receiver) = channel(0);
        let waiting = tokio::spawn(async move { receiver.changed().await });
        tokio::task::yield_now().await;
        drop(sender);
        assert_eq!(waiting.await.unwrap(), Err(Closed));
    }
}
