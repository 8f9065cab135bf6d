//! A long prompt that comes while others stream: how much later their tokens get. Called by `mod` for `--arrive-long`.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures_util::future::{try_join, try_join_all};
use hyper::body::Bytes;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::answer::{self, Timeline};
use super::client::{Connection, Server};
use super::error::BenchError;
use super::stats::{Pick, Spread};

/// What came of one arrival. Times between the chunks of the streams that ran, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Arrival {
    /// While all streams ran and the long prompt was not there.
    pub(super) before_ms: Option<Spread>,
    /// From its coming to its first text.
    pub(super) during_ms: Option<Spread>,
    /// p99 during, over the median before.
    pub(super) lift: Option<f64>,
    /// Time to the long prompt's first text.
    pub(super) long_ttft_ms: f64,
    /// Of the long prompt, as the server counts it; 0 where it does not tell.
    pub(super) long_prompt_tokens: f64,
    /// Streams that ended before the long prompt had its first text: too few tokens were asked of them.
    pub(super) ended_during: f64,
}

impl Arrival {
    /// Each figure by itself over `runs`; `None` of no runs.
    pub(super) fn over(runs: &[Self], pick: Pick) -> Option<Self> {
        let of = |figure: fn(&Self) -> f64| pick.of(runs.iter().map(figure));
        let spread = |figure: fn(&Self) -> Option<Spread>| {
            Spread::over(&runs.iter().filter_map(figure).collect::<Vec<_>>(), pick)
        };
        Some(Self {
            before_ms: spread(|run| run.before_ms),
            during_ms: spread(|run| run.during_ms),
            lift: pick.of(runs.iter().filter_map(|run| run.lift)),
            long_ttft_ms: of(|run| run.long_ttft_ms)?,
            long_prompt_tokens: of(|run| run.long_prompt_tokens)?,
            ended_during: of(|run| run.ended_during)?,
        })
    }

    fn of(streams: &[Timeline], long: &Timeline) -> Self {
        let first_text = long.arrivals.first().copied().unwrap_or(long.ended);
        let window = Window { all_running: all_running(streams), came: long.sent, first_text };
        let gaps = |phase| Spread::of(streams.iter().flat_map(|stream| window.gaps(phase, &stream.arrivals)));
        let (before_ms, during_ms) = (gaps(Phase::Before), gaps(Phase::During));
        let ended = streams.iter().filter(|stream| stream.ended < first_text).count();
        Self {
            before_ms,
            during_ms,
            lift: during_ms
                .zip(before_ms.filter(|before| before.p50 > 0.0))
                .map(|(during, before)| during.p99 / before.p50),
            long_ttft_ms: first_text.duration_since(long.sent).as_secs_f64() * 1e3,
            long_prompt_tokens: long.usage.map_or(0, |usage| usage.prompt_tokens) as f64,
            ended_during: ended as f64,
        }
    }
}

/// Runs `streams` at once and posts `long` when each of them has `after` chunks.
///
/// # Errors
/// [`BenchError::EndedEarly`] where a stream ends before that; whatever keeps an answer from being whole.
pub(super) async fn arrive(
    server: &Server,
    streams: &[Bytes],
    long: Bytes,
    after: usize,
    timeout: Duration,
) -> Result<Arrival, BenchError> {
    let under_way = Semaphore::new(0);
    let stream = async |body: &Bytes| {
        let told = Cell::new(false);
        let arrived = |chunks| {
            if chunks >= after && !told.replace(true) {
                under_way.add_permits(1);
            }
        };
        let answer = answer::measure(&mut Connection::new(server), body.clone(), timeout, arrived).await?;
        if told.get() { Ok(answer) } else { Err(BenchError::EndedEarly(after)) }
    };
    let newcomer = async {
        let count = u32::try_from(streams.len()).expect("the command line allows far fewer streams");
        let _permits = under_way.acquire_many(count).await.expect("the semaphore is never closed");
        answer::measure(&mut Connection::new(server), long, timeout, |_| {}).await
    };
    let (streams, long) = try_join(try_join_all(streams.iter().map(stream)), newcomer).await?;
    Ok(Arrival::of(&streams, &long))
}

/// When the last of `streams` had its first text; before, their own prompts disturbed each other.
fn all_running(streams: &[Timeline]) -> Option<Instant> {
    streams.iter().filter_map(|stream| stream.arrivals.first().copied()).max()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Before,
    During,
}

/// The moments that divide the streams' gaps.
#[derive(Clone, Copy, Debug)]
struct Window {
    all_running: Option<Instant>,
    came: Instant,
    first_text: Instant,
}

impl Window {
    /// The gaps between `arrivals` that belong to `phase`.
    fn gaps(self, phase: Phase, arrivals: &[Instant]) -> impl Iterator<Item = Duration> {
        let pairs = arrivals.windows(2).map(|pair| (pair[0], pair[1]));
        let of_phase = pairs.filter(move |&(start, end)| self.phase(start, end) == Some(phase));
        of_phase.map(|(start, end)| end.duration_since(start))
    }

    /// A gap that overlaps the long prompt's computation at all is lengthened by it.
    fn phase(self, start: Instant, end: Instant) -> Option<Phase> {
        if end <= self.came {
            return self.all_running.filter(|&running| start >= running).map(|_| Phase::Before);
        }
        (start < self.first_text).then_some(Phase::During)
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer::Usage;
    use super::*;

    fn timeline(origin: Instant, sent: u64, arrivals: &[u64]) -> Timeline {
        let at = |&ms: &u64| origin + Duration::from_millis(ms);
        let arrivals: Vec<_> = arrivals.iter().map(at).collect();
        let usage = Some(Usage { prompt_tokens: 99, ..Usage::default() });
        Timeline { sent: at(&sent), ended: *arrivals.last().expect("some arrived"), arrivals, usage }
    }

    #[test]
    fn gaps_are_told_apart_by_what_they_overlap() {
        let origin = Instant::now();
        // The second stream begins at 20: the first one's gap of 15 ms before that is nobody's.
        let streams = [timeline(origin, 0, &[5, 20, 30, 40, 90, 100, 400]), timeline(origin, 0, &[20, 31, 41, 95])];
        let arrival = Arrival::of(&streams, &timeline(origin, 50, &[97, 98]));
        let (before, during) = (arrival.before_ms.expect("some"), arrival.during_ms.expect("some"));
        assert_eq!((before.p50, before.max), (10.0, 11.0));
        // 40 to 90, 90 to 100 and 41 to 95; not 100 to 400, which began after the first text.
        assert_eq!((during.p50, during.max), (50.0, 54.0));
        assert_eq!((arrival.long_ttft_ms, arrival.long_prompt_tokens, arrival.ended_during), (47.0, 99.0, 1.0));
        assert_eq!(arrival.lift.map(|lift| (lift * 100.0).round()), Some(539.0));
    }

    #[test]
    fn streams_that_were_over_leave_nothing_to_compare() {
        let origin = Instant::now();
        let arrival = Arrival::of(&[timeline(origin, 0, &[5, 10, 15])], &timeline(origin, 50, &[97]));
        assert_eq!((arrival.during_ms, arrival.lift, arrival.ended_during), (None, None, 1.0));
    }
}
