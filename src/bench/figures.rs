//! The figures of a run, and of several runs together. Pure: made of what `load` brought, told by `report`.

use serde::Serialize;

use super::answer::Timeline;
use super::load::Ran;
use super::stats::{Pick, Spread};

/// What a run came to. Times are of requests (first text, per token) and of chunks (between them).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Figures {
    /// From the first request to the last answer.
    pub(super) seconds: f64,
    /// Requests answered.
    pub(super) requests: f64,
    /// Generated tokens per second of all clients together.
    pub(super) tokens_per_s: f64,
    pub(super) requests_per_s: f64,
    /// Time to the first text.
    pub(super) ttft_ms: Option<Spread>,
    /// Inter-token latency, measured between chunks.
    pub(super) itl_ms: Option<Spread>,
    /// Time per token after an answer's first.
    pub(super) tpot_ms: Option<Spread>,
    /// Mean of a prompt, as the server counts it; 0 where it does not tell.
    pub(super) prompt_tokens: f64,
    /// Mean of what the server had computed before.
    pub(super) cached_tokens: f64,
    /// Generated tokens.
    pub(super) output_tokens: f64,
    /// Chunks with text.
    pub(super) chunks: f64,
    /// Cores that this client kept busy: it shares the machine with a server on loopback.
    pub(super) client_cores: f64,
}

impl Figures {
    /// The figures of one run.
    pub(super) fn of(ran: &Ran) -> Self {
        let Ran { answers, wall, cpu } = ran;
        let seconds = wall.as_secs_f64();
        let sum = |of: fn(&Timeline) -> u64| answers.iter().map(of).sum::<u64>() as f64;
        let mean = |sum: f64| if answers.is_empty() { 0.0 } else { sum / answers.len() as f64 };
        let output_tokens = sum(Timeline::tokens);
        Self {
            seconds,
            requests: answers.len() as f64,
            tokens_per_s: output_tokens / seconds,
            requests_per_s: answers.len() as f64 / seconds,
            ttft_ms: Spread::of(answers.iter().filter_map(Timeline::first_text)),
            itl_ms: Spread::of(answers.iter().flat_map(Timeline::gaps)),
            tpot_ms: Spread::of(answers.iter().filter_map(Timeline::per_token)),
            prompt_tokens: mean(sum(|answer| answer.usage.map_or(0, |usage| usage.prompt_tokens))),
            cached_tokens: mean(sum(cached)),
            output_tokens,
            chunks: sum(|answer| answer.arrivals.len() as u64),
            client_cores: cpu.as_secs_f64() / seconds,
        }
    }

    /// Each figure by itself over `runs`; `None` of no runs.
    pub(super) fn over(runs: &[Self], pick: Pick) -> Option<Self> {
        let of = |figure: fn(&Self) -> f64| pick.of(runs.iter().map(figure));
        let spread = |figure: fn(&Self) -> Option<Spread>| {
            Spread::over(&runs.iter().filter_map(figure).collect::<Vec<_>>(), pick)
        };
        Some(Self {
            seconds: of(|run| run.seconds)?,
            requests: of(|run| run.requests)?,
            tokens_per_s: of(|run| run.tokens_per_s)?,
            requests_per_s: of(|run| run.requests_per_s)?,
            ttft_ms: spread(|run| run.ttft_ms),
            itl_ms: spread(|run| run.itl_ms),
            tpot_ms: spread(|run| run.tpot_ms),
            prompt_tokens: of(|run| run.prompt_tokens)?,
            cached_tokens: of(|run| run.cached_tokens)?,
            output_tokens: of(|run| run.output_tokens)?,
            chunks: of(|run| run.chunks)?,
            client_cores: of(|run| run.client_cores)?,
        })
    }
}

fn cached(answer: &Timeline) -> u64 {
    answer.usage.and_then(|usage| usage.prompt_tokens_details?.cached_tokens).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::answer::Usage;
    use super::*;

    fn run(wall: u64, answers: usize) -> Ran {
        let sent = Instant::now();
        let at = |ms| sent + Duration::from_millis(ms);
        let usage = Some(Usage { prompt_tokens: 7, completion_tokens: 4, prompt_tokens_details: None });
        let answer = Timeline { sent, arrivals: vec![at(50), at(60), at(80)], ended: at(80), usage };
        let wall = Duration::from_secs(wall);
        Ran { answers: vec![answer; answers], wall, cpu: wall / 10 }
    }

    #[test]
    fn a_run_counts_the_servers_tokens_and_times_the_chunks() {
        let figures = Figures::of(&run(2, 5));
        assert_eq!((figures.output_tokens, figures.chunks), (20.0, 15.0));
        assert_eq!((figures.tokens_per_s, figures.requests_per_s), (10.0, 2.5));
        assert_eq!((figures.prompt_tokens, figures.client_cores), (7.0, 0.1));
        let (ttft, itl, tpot) = (figures.ttft_ms, figures.itl_ms, figures.tpot_ms);
        assert_eq!(
            (ttft.map(|s| s.p99), itl.map(|s| s.p50), tpot.map(|s| s.p50)),
            (Some(50.0), Some(15.0), Some(10.0))
        );
    }

    #[test]
    fn several_runs_are_told_figure_by_figure() {
        let runs = [Figures::of(&run(1, 5)), Figures::of(&run(4, 5)), Figures::of(&run(2, 5))];
        let tokens = |pick| Figures::over(&runs, pick).map(|figures| figures.tokens_per_s);
        assert_eq!(
            (tokens(Pick::Median), tokens(Pick::Least), tokens(Pick::Most)),
            (Some(10.0), Some(5.0), Some(20.0))
        );
        assert_eq!(Figures::over(&[], Pick::Median), None);
    }
}
