//! What code takes from its process without being handed it: the time, random numbers, and threads for long work. A
//! simulation replaces them for its own thread, so that the same seed plays the same run again; a server never does.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use rand::distr::{Distribution, StandardUniform};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinError;

thread_local! {
    /// Where this thread's numbers come from while it plays a simulation.
    static PLAYED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// This thread plays a simulation until it is dropped.
#[derive(Debug)]
pub struct Simulated(());

impl Drop for Simulated {
    fn drop(&mut self) {
        PLAYED.set(None);
    }
}

/// From now on this thread draws the numbers that follow from `seed`, and long work is done where it is asked for.
pub fn simulate(seed: u64) -> Simulated {
    PLAYED.set(Some(StdRng::seed_from_u64(seed)));
    Simulated(())
}

/// The time: that of the runtime which this is called in, if it has its own.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// How long ago `began` was, by [`now`].
pub fn since(began: Instant) -> Duration {
    now().saturating_duration_since(began)
}

/// A random value.
pub fn draw<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    PLAYED.with_borrow_mut(|played| match played {
        Some(numbers) => numbers.random(),
        None => system_draw(),
    })
}

#[expect(clippy::disallowed_methods, reason = "this is what everybody else is sent to")]
fn system_draw<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    rand::random()
}

/// Runs work that takes longer than a runtime's thread may be kept, on a thread beside it. Fails only where `work` panics.
pub async fn off_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if PLAYED.with_borrow(Option::is_some) {
        return tokio::spawn(async move { work() }).await;
    }
    tokio::task::spawn_blocking(work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_thread_draws_the_same_numbers_again() {
        let play = |seed| {
            let _simulated = simulate(seed);
            [(); 4].map(|()| draw::<u64>())
        };
        assert_eq!(play(7), play(7));
        assert_ne!(play(7), play(8));
        let of_the_system = [(); 4].map(|()| draw::<u64>());
        assert_ne!(of_the_system, play(7), "a simulation that is over draws no more");
    }

    #[tokio::test]
    async fn long_work_stays_on_a_simulated_thread_and_leaves_any_other() {
        let here = std::thread::current().id();
        let elsewhere = off_runtime(|| std::thread::current().id()).await.unwrap();
        assert_ne!(elsewhere, here);
        let _simulated = simulate(1);
        assert_eq!(off_runtime(|| std::thread::current().id()).await.unwrap(), here);
        let broken: Result<(), _> = off_runtime(|| panic!("on order")).await;
        assert!(broken.is_err(), "a panic is told");
    }
}
