//! The event log of a run: what the product logs and what the simulation adds, each line with its virtual time and its
//! host. Its digest is the run's identity: two runs of one seed have the same.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What an operator would see.
    Facts,
    /// Also what a developer would.
    Debug,
}

/// A run's log, kept in memory.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Takes all that is logged on this thread until the guard is dropped.
    pub fn listen(&self, detail: Detail) -> DefaultGuard {
        let level = match detail {
            Detail::Facts => LevelFilter::INFO,
            Detail::Debug => LevelFilter::DEBUG,
        };
        // Turmoil's span says which host runs.
        let targets = Targets::new().with_target("shoal", level).with_target("turmoil", LevelFilter::INFO);
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_timer(Virtual).with_writer(self.clone());
        tracing::subscriber::set_default(tracing_subscriber::registry().with(targets).with(lines))
    }

    /// The lines so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// What tells this log from another, in hex.
    pub fn digest(&self) -> String {
        let digest = blake3::hash(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
        digest.to_hex()[..16].to_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The time of the host that runs; between the hosts' turns, the simulation's own lines say theirs.
struct Virtual;

impl FormatTime for Virtual {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        match turmoil::sim_elapsed() {
            Some(now) => write!(w, "{}", Seconds(now)),
            None => w.write_str("       -"),
        }
    }
}

/// A time as the log writes it, `12.345678`.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:3}.{:06}", self.0.as_secs(), self.0.subsec_micros())
    }
}
