//! `shoal bench`: measures any server with OpenAI's `/v1/completions` over HTTP, as clients see it. Called by `main`; needs no
//! cluster and touches no configuration. It shares two cores with the server more often than not, so it runs on one thread,
//! makes its requests before the clock runs and keeps nothing of an answer but times.
//!
//! 1. `requests` and `prompts`: what is sent.
//! 2. `client`, `sse` and `answer`: one streamed answer and when its pieces came.
//! 3. `load` and `arrive`: many at once.
//! 4. `stats` and `figures`: what the times come to.
//! 5. `report`: how that is told.

mod answer;
mod arrive;
mod client;
mod error;
mod figures;
mod load;
mod prompts;
mod report;
mod requests;
mod sse;
mod stats;
#[cfg(test)]
mod tests;

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use arrive::Arrival;
use client::Server;
pub(crate) use error::BenchError;
use figures::Figures;
pub(crate) use prompts::{Material, PromptPlan};
pub(crate) use report::Report;
use report::Row;
pub(crate) use requests::RequestPlan;
use requests::Requests;

/// Requests that each client sends in a run, where it is not said: two, so that a run has answers that end while others go on.
const REQUESTS_PER_CLIENT: usize = 2;

/// Requests of a run at least: percentiles of fewer say nothing.
const MIN_REQUESTS: usize = 4;

/// Clients that warm a server up at most.
const MAX_WARM: usize = 4;

/// Tokens asked of the long prompt: it is there for its prefill.
const LONG_MAX_TOKENS: u32 = 4;

/// Draws of the progress bar per second: the processor belongs to the server.
const DRAWS_PER_SECOND: u8 = 4;

/// What to measure, and how.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) url: String,
    pub(crate) requests: RequestPlan,
    pub(crate) mode: Mode,
    /// Clients at once; a row of the report each.
    pub(crate) concurrency: Vec<usize>,
    /// Runs of a row, one at least.
    pub(crate) runs: usize,
    /// Requests before a row that are not told; absent: as many as there are clients, [`MAX_WARM`] at most.
    pub(crate) warm: Option<usize>,
    /// For one answer.
    pub(crate) timeout: Duration,
}

/// What happens in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A closed loop of so many requests; absent: in proportion to the clients.
    ClosedLoop { requests: Option<usize> },
    /// A long prompt of so many tokens comes while the others stream.
    ArriveLong { tokens: usize },
}

/// Measures as ordered. Progress goes to stderr, where that is a terminal.
///
/// # Errors
/// The first request that is not answered in full.
pub(crate) async fn run(order: &Order) -> Result<Report, BenchError> {
    let server = Server::parse(&order.url)?;
    let mut requests = Requests::new(&server, &order.requests).await?;
    let mut report = Report::new(server.url(), requests.models(), &order.requests);
    for &clients in &order.concurrency {
        let bench = Bench { server: &server, order, clients, bar: progress_bar() };
        bench.warm_up(&mut requests).await?;
        match order.mode {
            Mode::ClosedLoop { requests: count } => {
                let count = count.unwrap_or_else(|| (clients * REQUESTS_PER_CLIENT).max(MIN_REQUESTS));
                let runs = bench.closed_loops(&mut requests, count).await?;
                report.rows.extend(Row::new(clients, runs, Figures::over));
            }
            Mode::ArriveLong { tokens } => {
                let runs = bench.arrivals(&mut requests, tokens).await?;
                report.arrivals.extend(Row::new(clients, runs, Arrival::over));
            }
        }
        bench.bar.finish_and_clear();
    }
    Ok(report)
}

/// One row of the report in the making.
struct Bench<'a> {
    server: &'a Server,
    order: &'a Order,
    clients: usize,
    bar: ProgressBar,
}

impl Bench<'_> {
    async fn warm_up(&self, requests: &mut Requests<'_>) -> Result<(), BenchError> {
        let count = self.order.warm.unwrap_or_else(|| self.clients.min(MAX_WARM));
        self.show("warming up".to_owned(), count);
        let bodies = requests.take(count).await?;
        load::closed_loop(self.server, &bodies, self.clients, self.order.timeout, || self.bar.inc(1)).await?;
        Ok(())
    }

    async fn closed_loops(&self, requests: &mut Requests<'_>, count: usize) -> Result<Vec<Figures>, BenchError> {
        let mut runs = Vec::with_capacity(self.order.runs);
        for number in 1..=self.order.runs {
            self.show(format!("run {number} of {}", self.order.runs), count);
            let bodies = requests.take(count).await?;
            let done = || self.bar.inc(1);
            let ran = load::closed_loop(self.server, &bodies, self.clients, self.order.timeout, done).await?;
            runs.push(Figures::of(&ran));
        }
        Ok(runs)
    }

    async fn arrivals(&self, requests: &mut Requests<'_>, tokens: usize) -> Result<Vec<Arrival>, BenchError> {
        // A quarter of an answer shows how the streams run by themselves; the rest is for the arrival.
        let after = (self.order.requests.max_tokens as usize / 4).max(2);
        let mut runs = Vec::with_capacity(self.order.runs);
        self.show("arrivals".to_owned(), self.order.runs);
        for _ in 0..self.order.runs {
            let streams = requests.take(self.clients).await?;
            let long = requests.long(tokens, LONG_MAX_TOKENS).await?;
            runs.push(arrive::arrive(self.server, &streams, long, after, self.order.timeout).await?);
            self.bar.inc(1);
        }
        Ok(runs)
    }

    fn show(&self, what: String, length: usize) {
        self.bar.set_length(length as u64);
        self.bar.set_position(0);
        self.bar.set_message(format!("concurrency {}, {what}", self.clients));
    }
}

fn progress_bar() -> ProgressBar {
    let template = "{msg} [{wide_bar}] {pos}/{len} {elapsed}";
    let style = ProgressStyle::with_template(template).expect("the template is well formed");
    let target = ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND);
    ProgressBar::with_draw_target(Some(0), target).with_style(style)
}
