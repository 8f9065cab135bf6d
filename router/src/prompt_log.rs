//! The prompt log: JSON lines of the requests that asked for it with `log_prompt: true`, in `data_dir/prompt_log.jsonl`,
//! mode 0600, rotated by size. `http::completions` records; one thread of its own writes, so a slow disk never holds up a
//! request: what the queue cannot hold is dropped and counted. Any other request's text never reaches this file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use shoal_common::config::PromptLogPolicy;
use shoal_common::ids::Generation;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::http::schema::{FinishReason, Usage};
use crate::request::{ClientText, CompletionRequest, EosRule, LogPrompt, PromptInput};

/// Lines that wait for the disk at most.
const QUEUE_LINES: usize = 1024;

/// Bytes that wait for the disk at most: a handful of the longest bodies.
const QUEUE_BYTES: usize = 32 << 20;

/// Bytes of a file before the next one is begun.
const FILE_BYTES: u64 = 64 << 20;

/// Finished files kept, `prompt_log.jsonl.1` the youngest.
const FILES_KEPT: usize = 4;

const FILE_NAME: &str = "prompt_log.jsonl";

/// The log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("the prompt log {path} cannot be opened")]
pub struct PromptLogError {
    /// Which file or directory.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// What became of a request, beside what it asked for.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// As in `x-request-id`.
    pub request_id: &'a str,
    /// What the adapter's name meant; absent where the base model answered.
    pub adapter: Option<Generation>,
    /// In order of choice index; `None` where the client left first.
    pub finish: &'a [Option<FinishReason>],
    /// Tokens counted.
    pub usage: Usage,
    /// When it ended.
    pub at: SystemTime,
}

/// Hands entries to the writer. Cloned into every request that needs it; a clone is a reference.
#[derive(Clone, Debug, Default)]
pub struct PromptLog(Option<Queue>);

#[derive(Clone, Debug)]
struct Queue {
    orders: mpsc::Sender<Order>,
    bytes: Arc<Semaphore>,
}

/// What the writer is asked to do.
enum Order {
    /// Write a line; its bytes leave the queue's account when the permit drops.
    Append(Vec<u8>, OwnedSemaphorePermit),
    /// Say when everything before this is with the kernel.
    Flush(oneshot::Sender<()>),
}

impl PromptLog {
    /// A log that writes nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// The log in `data_dir`, which is made if it is not there. With [`PromptLogPolicy::Off`] no file is touched.
    pub fn open(data_dir: &Path, policy: PromptLogPolicy) -> Result<Self, PromptLogError> {
        match policy {
            PromptLogPolicy::Off => Ok(Self::off()),
            PromptLogPolicy::Allowed => Self::start(data_dir, FILE_BYTES),
        }
    }

    fn start(data_dir: &Path, file_bytes: u64) -> Result<Self, PromptLogError> {
        let path = data_dir.join(FILE_NAME);
        let fail = |source| PromptLogError { path: path.clone(), source };
        fs::create_dir_all(data_dir).map_err(fail)?;
        let files = Files::open(&path, file_bytes).map_err(fail)?;
        let (sender, receiver) = mpsc::channel(QUEUE_LINES);
        std::thread::Builder::new()
            .name("prompt-log".into())
            .spawn(move || write_all(files, receiver))
            .map_err(fail)?;
        Ok(Self(Some(Queue { orders: sender, bytes: Arc::new(Semaphore::new(QUEUE_BYTES)) })))
    }

    /// Queues the request's line if it asked for that and the log is on. Never waits: without room the line is dropped
    /// and counted in `shoal_prompt_log_dropped_total`.
    pub fn record(&self, request: &CompletionRequest, outcome: &Outcome<'_>) {
        let Some(queue) = &self.0 else { return };
        if request.log_prompt == LogPrompt::No {
            return;
        }
        let mut line = entry(request, outcome).to_string().into_bytes();
        line.push(b'\n');
        if queue.offer(line).is_none() {
            metrics::counter!("shoal_prompt_log_dropped_total").increment(1);
        }
    }

    /// Resolves when all that was recorded before is with the kernel.
    pub async fn flush(&self) {
        let Some(queue) = &self.0 else { return };
        let (done, written) = oneshot::channel();
        if queue.orders.send(Order::Flush(done)).await.is_ok() {
            let _ = written.await;
        }
    }
}

impl Queue {
    fn offer(&self, line: Vec<u8>) -> Option<()> {
        let bytes = u32::try_from(line.len()).ok()?;
        let permit = Arc::clone(&self.bytes).try_acquire_many_owned(bytes).ok()?;
        self.orders.try_send(Order::Append(line, permit)).ok()
    }
}

fn entry(request: &CompletionRequest, outcome: &Outcome<'_>) -> Value {
    let text = |text: &ClientText| text.0.clone();
    json!({
        "time_ms": outcome.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
        "request_id": outcome.request_id,
        "model": request.model,
        "adapter": request.adapter,
        "adapter_generation": outcome.adapter.map(|generation| generation.to_string()),
        "user": request.user.as_ref().map(text),
        "prompts": request.prompts.iter().map(prompt_value).collect::<Vec<_>>(),
        "suffix": request.suffix.as_ref().map(text),
        "parameters": {
            "max_tokens": request.max_tokens,
            "min_tokens": request.min_tokens,
            "n": request.n,
            "best_of": request.best_of,
            "seed": request.seed,
            "logprobs": request.logprobs,
            "stop": request.stop.iter().map(text).collect::<Vec<_>>(),
            "stop_token_ids": request.stop_token_ids,
            "ignore_eos": request.eos == EosRule::Ignored,
            "sampling": request.sampling,
        },
        "finish": outcome.finish,
        "usage": outcome.usage,
    })
}

fn prompt_value(prompt: &PromptInput) -> Value {
    match prompt {
        PromptInput::DocumentStart => json!(""),
        PromptInput::Text(text) => json!(text.0),
        PromptInput::Tokens(ids) => json!(ids.0),
    }
}

fn write_all(mut files: Files, mut orders: mpsc::Receiver<Order>) {
    while let Some(order) = orders.blocking_recv() {
        let result = match order {
            Order::Append(line, _permit) => files.append(&line),
            Order::Flush(done) => {
                let result = files.file.flush();
                let _ = done.send(());
                result
            }
        };
        let result = if orders.is_empty() { result.and_then(|()| files.file.flush()) } else { result };
        if let Err(error) = result {
            metrics::counter!("shoal_prompt_log_failed_total").increment(1);
            tracing::warn!(%error, "the prompt log cannot be written");
        }
    }
}

/// The file being written and those before it.
struct Files {
    path: PathBuf,
    file: BufWriter<File>,
    size: u64,
    limit: u64,
}

impl Files {
    fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        // The mode above counts for a new file only.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), size, limit })
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + line.len() as u64 > self.limit {
            self.rotate()?;
        }
        self.size += line.len() as u64;
        self.file.write_all(line)
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        for age in (1..FILES_KEPT).rev() {
            let from = self.aged(age);
            if from.exists() {
                fs::rename(from, self.aged(age + 1))?;
            }
        }
        fs::rename(&self.path, self.aged(1))?;
        *self = Self::open(&self.path, self.limit)?;
        Ok(())
    }

    fn aged(&self, age: usize) -> PathBuf {
        self.path.with_file_name(format!("{FILE_NAME}.{age}"))
    }
}

#[cfg(test)]
mod tests {
    use shoal_common::config::Limits;

    use super::*;
    use crate::validate;

    const CANARY: &str = "canary-7f3a";

    fn request(log_prompt: bool) -> CompletionRequest {
        let body = json!({
            "model": "m", "prompt": [CANARY, "b"], "log_prompt": log_prompt, "user": CANARY, "stop": CANARY,
        });
        validate::completion(body.to_string().as_bytes(), &Limits::default()).unwrap()
    }

    fn outcome() -> Outcome<'static> {
        let finish = &[Some(FinishReason::Stop), None];
        Outcome { request_id: "req-1", adapter: None, finish, usage: Usage::new(3, 4), at: UNIX_EPOCH }
    }

    /// All files of the log, each as text.
    fn written(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_prompt_is_never_on_disk_unless_asked_for_and_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let log = PromptLog::open(dir.path(), PromptLogPolicy::Allowed).unwrap();
        log.record(&request(false), &outcome());
        log.flush().await;
        assert!(written(dir.path()).iter().all(String::is_empty));
        let off = PromptLog::open(&dir.path().join("off"), PromptLogPolicy::Off).unwrap();
        off.record(&request(true), &outcome());
        off.flush().await;
        assert!(!dir.path().join("off").exists());
        log.record(&request(true), &outcome());
        log.flush().await;
        let lines = written(dir.path());
        let entry: Value = serde_json::from_str(lines[0].trim_end()).unwrap();
        assert_eq!(entry["prompts"], json!([CANARY, "b"]));
        assert_eq!((&entry["finish"], &entry["usage"]["total_tokens"]), (&json!(["stop", null]), &json!(7)));
    }

    #[tokio::test]
    async fn the_file_is_the_owners_alone_even_if_it_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let log = PromptLog::open(dir.path(), PromptLogPolicy::Allowed).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(log);
    }

    #[tokio::test]
    async fn old_files_are_kept_up_to_their_number_and_lines_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let log = PromptLog::start(dir.path(), 2000).unwrap();
        for _ in 0..60 {
            log.record(&request(true), &outcome());
            log.flush().await;
        }
        let files = written(dir.path());
        assert_eq!(files.len(), FILES_KEPT + 1);
        for text in files {
            assert!(text.len() <= 2000);
            assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
        }
    }

    #[tokio::test]
    async fn without_room_a_line_is_dropped_and_the_request_goes_on() {
        let (orders, mut waiting) = mpsc::channel(1);
        let log = PromptLog(Some(Queue { orders, bytes: Arc::new(Semaphore::new(QUEUE_BYTES)) }));
        for _ in 0..3 {
            log.record(&request(true), &outcome());
        }
        assert!(waiting.try_recv().is_ok());
        assert!(waiting.try_recv().is_err());
        let narrow = PromptLog(Some(Queue { orders: mpsc::channel(9).0, bytes: Arc::new(Semaphore::new(10)) }));
        narrow.record(&request(true), &outcome());
        assert_eq!(narrow.0.unwrap().bytes.available_permits(), 10);
    }
}
