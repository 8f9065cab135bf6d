//! The measurement, told: a table for people, JSON for machines. Called by `main` with what `run` made.

use std::fmt::{self, Write};
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::arrive::Arrival;
use super::error::BenchError;
use super::figures::Figures;
use super::prompts::PromptPlan;
use super::requests::RequestPlan;
use super::stats::{Pick, Spread};

/// How much an arriving long prompt may lift the p99 between tokens over their median.
const ALLOWED_LIFT: f64 = 2.0;

/// Cores of the client from which on it is part of what it measures.
const NOTABLE_CORES: f64 = 0.2;

/// All that was measured in one call.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    server: String,
    models: Vec<String>,
    /// Tokens of a prompt of its own, and shared ones before them, as asked for.
    prompt_tokens: usize,
    shared_prefix: usize,
    max_tokens: u32,
    seed: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) rows: Vec<Row<Figures>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) arrivals: Vec<Row<Arrival>>,
}

/// The runs at one concurrency.
#[derive(Debug, Serialize)]
pub(super) struct Row<F> {
    concurrency: usize,
    median: F,
    min: F,
    max: F,
    runs: Vec<F>,
}

impl<F> Row<F> {
    /// `None` of no runs.
    pub(super) fn new(concurrency: usize, runs: Vec<F>, over: impl Fn(&[F], Pick) -> Option<F>) -> Option<Self> {
        let of = |pick| over(&runs, pick);
        Some(Self { concurrency, median: of(Pick::Median)?, min: of(Pick::Least)?, max: of(Pick::Most)?, runs })
    }
}

impl Report {
    pub(super) fn new(server: String, models: &[String], plan: &RequestPlan) -> Self {
        let PromptPlan { tokens, shared, seed, .. } = plan.prompt;
        Self {
            server,
            models: models.to_owned(),
            prompt_tokens: tokens,
            shared_prefix: shared,
            max_tokens: plan.max_tokens,
            seed,
            rows: Vec::new(),
            arrivals: Vec::new(),
        }
    }

    /// All figures of all runs.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers, texts and lists are JSON")
    }

    /// Writes [`Report::json`] to the file `path`.
    ///
    /// # Errors
    /// [`BenchError::Report`].
    pub(crate) fn save(&self, path: &Path) -> Result<(), BenchError> {
        let written = fs::write(path, self.json() + "\n");
        written.map_err(|source| BenchError::Report { path: path.to_owned(), source })
    }

    /// What somebody should know who reads the table.
    fn notes(&self) -> Vec<String> {
        let mut notes: Vec<_> = self.rows.iter().flat_map(|row| self.notes_on(row)).collect();
        for row in self.arrivals.iter().filter(|row| row.max.ended_during > 0.0) {
            notes.push(format!(
                "concurrency {}: up to {} streams ended before the long prompt had its first token; --max-tokens lengthens \
                 them",
                row.concurrency, row.max.ended_during
            ));
        }
        notes
    }

    fn notes_on(&self, row: &Row<Figures>) -> Vec<String> {
        let (at, figures) = (row.concurrency, &row.median);
        let asked = figures.requests * f64::from(self.max_tokens);
        let mut notes = Vec::new();
        if figures.output_tokens < asked {
            notes.push(format!(
                "concurrency {at}: answers were shorter than asked for ({:.0} of {asked:.0} tokens)",
                figures.output_tokens
            ));
        }
        if figures.chunks < figures.output_tokens * 0.9 {
            notes.push(format!(
                "concurrency {at}: {:.1} tokens came in a chunk: read TPOT, since ITL is the time between chunks",
                figures.output_tokens / figures.chunks
            ));
        }
        if figures.cached_tokens >= 1.0 {
            notes.push(format!(
                "concurrency {at}: the server had computed {:.0} of {:.0} prompt tokens before; another --seed makes new \
                 prompts",
                figures.cached_tokens, figures.prompt_tokens
            ));
        }
        if figures.client_cores > NOTABLE_CORES {
            notes.push(format!("concurrency {at}: this client kept {:.2} cores busy", figures.client_cores));
        }
        notes
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = if self.shared_prefix > 0 { format!("{} shared and ", self.shared_prefix) } else { String::new() };
        writeln!(
            f,
            "{} at {}: prompts of {shared}{} tokens, answers of {}",
            self.models.join(", "),
            self.server,
            self.prompt_tokens,
            self.max_tokens
        )?;
        if !self.rows.is_empty() {
            f.write_str(&load_table(&self.rows))?;
        }
        if !self.arrivals.is_empty() {
            f.write_str(&arrival_table(&self.arrivals))?;
        }
        for note in self.notes() {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

fn load_table(rows: &[Row<Figures>]) -> String {
    let header = [
        "concurrency",
        "tokens/s",
        "min-max",
        "requests/s",
        "TTFT ms p50/p90/p99",
        "ITL ms p50/p90/p99",
        "TPOT ms p50",
        "prompt",
        "client CPU",
    ];
    let cells = |row: &Row<Figures>| {
        let figures = &row.median;
        [
            row.concurrency.to_string(),
            format!("{:.1}", figures.tokens_per_s),
            format!("{:.1}-{:.1}", row.min.tokens_per_s, row.max.tokens_per_s),
            format!("{:.2}", figures.requests_per_s),
            three(figures.ttft_ms),
            three(figures.itl_ms),
            figures.tpot_ms.map_or_else(|| "-".to_owned(), |spread| short(spread.p50)),
            format!("{:.0}", figures.prompt_tokens),
            format!("{:.0} %", figures.client_cores * 100.0),
        ]
    };
    table(header, rows.iter().map(cells))
}

fn arrival_table(rows: &[Row<Arrival>]) -> String {
    let header = [
        "concurrency",
        "long prompt",
        "its TTFT ms",
        "ITL ms before p50/p99/max",
        "during p50/p99/max",
        "p99 during / p50 before",
        "at most 2",
    ];
    let cells = |row: &Row<Arrival>| {
        let arrival = &row.median;
        let verdict = |lift| if lift <= ALLOWED_LIFT { "held" } else { "broken" };
        [
            row.concurrency.to_string(),
            format!("{:.0}", arrival.long_prompt_tokens),
            short(arrival.long_ttft_ms),
            ends(arrival.before_ms),
            ends(arrival.during_ms),
            arrival.lift.map_or_else(|| "-".to_owned(), |lift| format!("{lift:.2}")),
            arrival.lift.map_or("-", verdict).to_owned(),
        ]
    };
    table(header, rows.iter().map(cells))
}

fn three(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "-".to_owned(), |s| format!("{} / {} / {}", short(s.p50), short(s.p90), short(s.p99)))
}

fn ends(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "-".to_owned(), |s| format!("{} / {} / {}", short(s.p50), short(s.p99), short(s.max)))
}

/// Milliseconds with as many digits as mean something.
fn short(ms: f64) -> String {
    match ms {
        ..10.0 => format!("{ms:.2}"),
        10.0..100.0 => format!("{ms:.1}"),
        _ => format!("{ms:.0}"),
    }
}

/// Columns of equal width, in Markdown's form: it reads well in a terminal, and pastes.
fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = std::iter::once(header.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().expect("the header is there")
    });
    let mut text = String::new();
    let line = |row: &[String; N], text: &mut String| {
        for (cell, width) in row.iter().zip(widths) {
            write!(text, "| {cell:>width$} ").expect("a String takes all that is written to it");
        }
        text.push_str("|\n");
    };
    line(&rows[0], &mut text);
    line(&widths.map(|width| format!("{}:", "-".repeat(width - 1))), &mut text);
    rows[1..].iter().for_each(|row| line(row, &mut text));
    text
}

#[cfg(test)]
mod tests {
    use super::super::prompts::Material;
    use super::*;

    fn report(cached_tokens: f64, output_tokens: f64) -> Report {
        let prompt = PromptPlan { material: Material::Words, tokens: 128, shared: 0, seed: 1 };
        let plan = RequestPlan { models: Vec::new(), prompt, max_tokens: 64, extra: Vec::new() };
        let spread = |p50| Some(Spread { p50, p90: p50 * 2.0, p99: p50 * 10.0, max: p50 * 20.0 });
        let run = |tokens_per_s| Figures {
            seconds: 4.0,
            requests: 8.0,
            tokens_per_s,
            requests_per_s: 2.0,
            ttft_ms: spread(101.0),
            itl_ms: spread(6.6),
            tpot_ms: None,
            prompt_tokens: 128.0,
            cached_tokens,
            output_tokens,
            chunks: 512.0,
            client_cores: 0.014,
        };
        let mut report = Report::new("http://127.0.0.1:8080".to_owned(), &["m".to_owned()], &plan);
        report.rows.extend(Row::new(8, vec![run(128.0), run(120.0), run(130.0)], Figures::over));
        report
    }

    #[test]
    fn the_table_shows_the_median_and_how_far_the_runs_are_apart() {
        let told = report(0.0, 512.0).to_string();
        let expected = "\
m at http://127.0.0.1:8080: prompts of 128 tokens, answers of 64
| concurrency | tokens/s |     min-max | requests/s | TTFT ms p50/p90/p99 | ITL ms p50/p90/p99 | TPOT ms p50 | prompt | client CPU |
| ----------: | -------: | ----------: | ---------: | ------------------: | -----------------: | ----------: | -----: | ---------: |
|           8 |    128.0 | 120.0-130.0 |       2.00 |    101 / 202 / 1010 | 6.60 / 13.2 / 66.0 |           - |    128 |        1 % |
";
        assert_eq!(told, expected);
    }

    #[test]
    fn what_a_reader_must_know_is_said_under_the_table() {
        let told = report(100.0, 500.0).to_string();
        assert!(
            told.contains("note: concurrency 8: answers were shorter than asked for (500 of 512 tokens)"),
            "{told}"
        );
        assert!(told.contains("computed 100 of 128 prompt tokens before"), "{told}");
        let told = report(0.0, 1024.0).to_string();
        assert!(told.contains("2.0 tokens came in a chunk"), "{told}");
    }

    #[test]
    fn json_has_every_run() {
        let value: serde_json::Value = serde_json::from_str(&report(0.0, 512.0).json()).expect("JSON");
        assert_eq!(value["rows"][0]["runs"].as_array().map(Vec::len), Some(3));
        assert_eq!(value["rows"][0]["median"]["ttft_ms"]["p99"].as_f64(), Some(1010.0));
        assert!(value["rows"][0]["median"]["tpot_ms"].is_null() && value.get("arrivals").is_none());
    }
}
