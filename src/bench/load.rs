//! The closed loop: a number of clients, each of which sends its next request when its last one is answered. Called by
//! `mod` with requests that are made already, so that nothing but the exchange is timed.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use hyper::body::Bytes;
use rustix::time::{ClockId, clock_gettime};

use super::answer::{self, Timeline};
use super::client::{Connection, Server};
use super::error::BenchError;

/// What a run took and what came of it.
#[derive(Debug)]
pub(super) struct Ran {
    /// In the order in which the answers were whole.
    pub(super) answers: Vec<Timeline>,
    /// From the first request to the last answer.
    pub(super) wall: Duration,
    /// Processor time of this process within `wall`.
    pub(super) cpu: Duration,
}

/// Posts all `bodies` over `clients` connections. `done` is called at each answer.
///
/// # Errors
/// The first request that is not answered in full; the others are dropped.
pub(super) async fn closed_loop(
    server: &Server,
    bodies: &[Bytes],
    clients: usize,
    timeout: Duration,
    done: impl Fn(),
) -> Result<Ran, BenchError> {
    let next = Cell::new(0);
    let answers = Cell::new(Vec::with_capacity(bodies.len()));
    let client = async || {
        let mut connection = Connection::new(server);
        while let Some(body) = bodies.get(next.replace(next.get() + 1)) {
            let answer = answer::measure(&mut connection, body.clone(), timeout, |_| {}).await?;
            let mut all = answers.take();
            all.push(answer);
            answers.set(all);
            done();
        }
        Ok::<_, BenchError>(())
    };
    let (began, cpu_before) = (Instant::now(), cpu_time());
    try_join_all((0..clients).map(|_| client())).await?;
    Ok(Ran { wall: began.elapsed(), cpu: cpu_time().saturating_sub(cpu_before), answers: answers.into_inner() })
}

/// Processor time that this process has used.
fn cpu_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let (seconds, nanoseconds) = (u64::try_from(used.tv_sec), u32::try_from(used.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanoseconds.unwrap_or_default())
}
