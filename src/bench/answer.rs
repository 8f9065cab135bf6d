//! One streamed completion: sends it, notes when each piece of text came, and tells an answer that is not whole. Called by
//! `load` and `arrive`.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::client::{Connection, message_in};
use super::error::BenchError;
use super::sse::EventReader;

/// Characters of an unreadable event that are told.
const MAX_TOLD: usize = 200;

/// What is told of a request that was answered in full.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    /// Before the connection was dialled, where it had to be.
    pub(super) sent: Instant,
    /// When each chunk was read, from the first that holds text on. A chunk is a token, unless the server sends several in
    /// one.
    pub(super) arrivals: Vec<Instant>,
    /// When the answer was whole.
    pub(super) ended: Instant,
    /// Absent where the server does not tell it.
    pub(super) usage: Option<Usage>,
}

/// What the server counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct PromptDetails {
    /// Tokens that the server had computed before.
    pub(super) cached_tokens: Option<u64>,
}

impl Timeline {
    /// Tokens of the answer: the server's count, else one per chunk.
    pub(super) fn tokens(&self) -> u64 {
        self.usage.map_or(self.arrivals.len() as u64, |usage| usage.completion_tokens)
    }

    /// Time to the first text; none of an answer without text.
    pub(super) fn first_text(&self) -> Option<Duration> {
        Some(self.arrivals.first()?.duration_since(self.sent))
    }

    /// Times between neighbouring chunks.
    pub(super) fn gaps(&self) -> impl Iterator<Item = Duration> {
        self.arrivals.windows(2).map(|pair| pair[1].duration_since(pair[0]))
    }

    /// Time per token after the first, however the server packs tokens into chunks.
    pub(super) fn per_token(&self) -> Option<Duration> {
        let later = u32::try_from(self.tokens()).ok()?.checked_sub(1).filter(|&later| later > 0)?;
        Some(self.ended.duration_since(*self.arrivals.first()?) / later)
    }
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    finish_reason: Option<String>,
}

/// Posts `body`, which must ask for a stream, and reads the answer to its end. `arrived` is told the number of chunks so
/// far at each.
///
/// # Errors
/// Whatever keeps the answer from being whole, [`BenchError::TimedOut`] after `timeout`.
pub(super) async fn measure(
    connection: &mut Connection<'_>,
    body: Bytes,
    timeout: Duration,
    arrived: impl FnMut(usize),
) -> Result<Timeline, BenchError> {
    let read = read(connection, body, arrived);
    tokio::time::timeout(timeout, read).await.map_err(|_| BenchError::TimedOut(timeout))?
}

async fn read(
    connection: &mut Connection<'_>,
    body: Bytes,
    mut arrived: impl FnMut(usize),
) -> Result<Timeline, BenchError> {
    let sent = Instant::now();
    let mut answer = connection.post("/v1/completions", body).await?.into_body();
    let (mut events, mut reading) = (EventReader::default(), Reading::default());
    while let Some(frame) = answer.frame().await {
        let frame = frame.map_err(BenchError::Broken)?;
        let now = Instant::now();
        let Some(bytes) = frame.data_ref() else { continue };
        events.feed(bytes, |data| reading.take(data, now))?;
        arrived(reading.arrivals.len());
    }
    if reading.end == End::Open {
        return Err(BenchError::NoEnd);
    }
    Ok(Timeline { sent, arrivals: reading.arrivals, ended: Instant::now(), usage: reading.usage })
}

/// What the events said so far.
#[derive(Debug, Default)]
struct Reading {
    arrivals: Vec<Instant>,
    usage: Option<Usage>,
    end: End,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    Done,
}

impl Reading {
    fn take(&mut self, data: &[u8], now: Instant) -> Result<(), BenchError> {
        if data == b"[DONE]" {
            self.end = End::Done;
            return Ok(());
        }
        let text = || String::from_utf8_lossy(data).chars().take(MAX_TOLD).collect();
        let chunk: Chunk =
            serde_json::from_slice(data).map_err(|source| BenchError::NotAChunk { text: text(), source })?;
        if chunk.error.is_some() {
            return Err(BenchError::GaveUp(message_in(data)));
        }
        self.usage = chunk.usage.or(self.usage);
        if let Some(choice) = chunk.choices.first()
            && self.is_token(choice)
        {
            self.arrivals.push(now);
        }
        Ok(())
    }

    /// A chunk without text is a token too when the answer goes on: one that is half a character, or is not shown. Ahead of
    /// the first text it is not counted, so that nobody has an early first token by sending nothing.
    fn is_token(&self, choice: &Choice) -> bool {
        match choice.text.as_deref() {
            None => false,
            Some("") => !self.arrivals.is_empty() && choice.finish_reason.is_none(),
            Some(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(events: &[&str]) -> Result<Reading, BenchError> {
        let mut reading = Reading::default();
        for event in events {
            reading.take(event.as_bytes(), Instant::now())?;
        }
        Ok(reading)
    }

    #[test]
    fn chunks_without_text_are_tokens_only_between_the_first_and_the_last() {
        let empty = r#"{"choices":[{"text":"","finish_reason":null}]}"#;
        let text = r#"{"choices":[{"text":"a","finish_reason":null}]}"#;
        let last = r#"{"choices":[{"text":"","finish_reason":"length"}],"usage":null}"#;
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3}}"#;
        let reading = read_all(&[empty, text, empty, text, last, usage, "[DONE]"]).expect("a whole answer");
        assert_eq!((reading.arrivals.len(), reading.end), (3, End::Done));
        assert_eq!(reading.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens)), Some((5, 3)));
    }

    #[test]
    fn an_error_within_the_stream_is_told_in_the_servers_words() {
        let error = read_all(&[r#"{"error":{"message":"worker lost"}}"#]).expect_err("an error event");
        assert!(matches!(&error, BenchError::GaveUp(words) if words == "worker lost"), "{error:?}");
        assert!(matches!(read_all(&["<html>"]), Err(BenchError::NotAChunk { .. })));
    }

    #[test]
    fn time_per_token_does_not_depend_on_how_tokens_are_packed() {
        let sent = Instant::now();
        let at = |ms| sent + Duration::from_millis(ms);
        let usage = |completion_tokens| Some(Usage { completion_tokens, ..Usage::default() });
        let apart = Timeline { sent, arrivals: vec![at(10), at(20), at(30)], ended: at(30), usage: None };
        let packed = Timeline { sent, arrivals: vec![at(10), at(30)], ended: at(30), usage: usage(3) };
        assert_eq!((apart.tokens(), packed.tokens()), (3, 3));
        assert_eq!((apart.per_token(), packed.per_token()), (Some(at(10) - sent), Some(at(10) - sent)));
        assert_eq!(packed.gaps().collect::<Vec<_>>(), [Duration::from_millis(20)]);
        let single = Timeline { sent, arrivals: vec![at(10)], ended: at(30), usage: usage(1) };
        assert_eq!((single.per_token(), single.first_text()), (None, Some(at(10) - sent)));
    }
}
