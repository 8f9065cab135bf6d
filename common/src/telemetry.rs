//! Logging of a process: lines on stderr, as text for people or JSON for machines. Called once by the composition root. No
//! value that came from outside can forge a line or drive a terminal: text escapes every control character, JSON those its
//! grammar names.

use std::error::Error;
use std::fmt::{self, Write};
use std::io::IsTerminal;

use tracing::Subscriber;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::{FormatFields, MakeWriter};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged where nothing else is asked for.
pub const DEFAULT_FILTER: &str = "info";

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in the form `info` or `warn,shoal_router=debug`.
    #[error("`{filter}` is not a log filter")]
    BadFilter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// It was called before.
    #[error("logging is set up already")]
    AlreadySet(#[source] tracing::subscriber::SetGlobalDefaultError),
}

/// Whether colours are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colour {
    Ansi,
    Plain,
}

/// Sends the process's events to stderr. `filter` is a comma-separated list of `LEVEL` and `TARGET=LEVEL`; absent or empty:
/// [`DEFAULT_FILTER`].
pub fn init(format: LogFormat, filter: Option<&str>) -> Result<(), TelemetryError> {
    let colour = if std::io::stderr().is_terminal() { Colour::Ansi } else { Colour::Plain };
    // Not `try_init`: that would also take in the records of the `log` crate, and the tokenizers library writes the text it
    // is given there, letter by letter.
    let subscriber = subscriber(format, parse(filter)?, colour, std::io::stderr);
    tracing::subscriber::set_global_default(subscriber).map_err(TelemetryError::AlreadySet)
}

/// From now on a panic is logged with its place and without its words: a library's may quote the text that it was given,
/// and that can be a client's prompt.
pub fn log_panics_without_words() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        tracing::error!(place, thread = thread.name().unwrap_or("unnamed"), "a thread panicked");
    }));
}

/// An error with everything that caused it, on one line: `cannot bind udp 127.0.0.1:1: permission denied`.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

fn parse(filter: Option<&str>) -> Result<EnvFilter, TelemetryError> {
    let filter = filter.map(str::trim).filter(|text| !text.is_empty()).unwrap_or(DEFAULT_FILTER);
    EnvFilter::builder().parse(filter).map_err(|source| TelemetryError::BadFilter { filter: filter.to_owned(), source })
}

fn subscriber<W>(format: LogFormat, filter: EnvFilter, colour: Colour, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Text => Box::new(lines.with_ansi(colour == Colour::Ansi).fmt_fields(escaped_fields()).finish()),
        LogFormat::Json => Box::new(lines.json().flatten_event(true).finish()),
    }
}

/// `message key=value ...`, every value free of control characters. The library's own formatter lets a line feed through.
fn escaped_fields() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    debug_fn(|writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug| match field.name() {
        "message" => write!(Escaped(writer), "{value:?}"),
        // The `log` crate's metadata, shown already as target and level.
        bookkeeping if bookkeeping.starts_with("log.") => Ok(()),
        name => {
            write!(writer, "{}=", name.strip_prefix("r#").unwrap_or(name))?;
            write!(Escaped(writer), "{value:?}")
        }
    })
    .delimited(" ")
}

/// Passes text on with control characters, C1 included, written as `\n` or `\u{1b}`.
struct Escaped<'a, 'w>(&'a mut Writer<'w>);

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive(char::is_control) {
            match piece.chars().next_back() {
                Some(last) if last.is_control() => {
                    self.0.write_str(&piece[..piece.len() - last.len_utf8()])?;
                    write!(self.0, "{}", last.escape_default())?;
                }
                _ => self.0.write_str(piece)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    const HOSTILE: &str = "a\x1b[31mred\r\nINFO forged: line\u{9b}2J";

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no writer panics").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'w> MakeWriter<'w> for Sink {
        type Writer = Self;
        fn make_writer(&'w self) -> Self {
            self.clone()
        }
    }

    fn logged(format: LogFormat, filter: Option<&str>, colour: Colour, emit: impl FnOnce()) -> String {
        let sink = Sink::default();
        let filter = parse(filter).expect("the test's filter is well formed");
        tracing::subscriber::with_default(subscriber(format, filter, colour, sink.clone()), emit);
        String::from_utf8(sink.0.lock().expect("no writer panics").clone()).expect("lines are UTF-8")
    }

    fn hostile_event() {
        let error = io::Error::other(HOSTILE);
        let span = tracing::info_span!("request", user = %HOSTILE).entered();
        tracing::info!(user = HOSTILE, shown = %HOSTILE, debug = ?HOSTILE, error = %Chain(&error), "{HOSTILE}");
        drop(span);
    }

    #[test]
    fn ansi_and_newline_in_a_field_are_escaped_in_text() {
        let lines = logged(LogFormat::Text, None, Colour::Plain, hostile_event);
        assert_eq!(lines.lines().count(), 1, "{lines:?}");
        let controls: Vec<char> = lines.trim_end_matches('\n').chars().filter(|c| c.is_control()).collect();
        assert!(controls.is_empty(), "{controls:?}");
        assert_eq!(lines.matches(r"\u{1b}[31mred\r\n").count(), 6, "{lines}");
    }

    #[test]
    fn ansi_and_newline_in_a_field_are_escaped_in_json() {
        let lines = logged(LogFormat::Json, None, Colour::Plain, hostile_event);
        assert_eq!(lines.lines().count(), 1, "{lines:?}");
        assert!(!lines.trim_end_matches('\n').bytes().any(|byte| byte < 0x20), "{lines:?}");
        assert!(lines.contains(r"\u001b[31mred\r\nINFO"), "{lines}");
        assert!(lines.starts_with('{') && lines.ends_with("}\n"), "{lines}");
    }

    #[test]
    fn colours_are_the_formatters_own_and_only_where_asked_for() {
        let event = || tracing::info!(user = %HOSTILE, "hello");
        let (plain, coloured) =
            (logged(LogFormat::Text, None, Colour::Plain, event), logged(LogFormat::Text, None, Colour::Ansi, event));
        assert!(!plain.contains('\x1b'));
        assert!(coloured.contains('\x1b') && !coloured.contains("\x1b[31mred"), "{coloured:?}");
    }

    #[test]
    fn the_filter_is_info_unless_another_is_given() {
        let event = || {
            tracing::info!("shown");
            tracing::debug!("hidden");
        };
        for filter in [None, Some(""), Some("info")] {
            let lines = logged(LogFormat::Text, filter, Colour::Plain, event);
            assert!(lines.contains("shown") && !lines.contains("hidden"), "{filter:?}: {lines}");
        }
        assert!(logged(LogFormat::Text, Some("debug"), Colour::Plain, event).contains("hidden"));
        assert!(matches!(parse(Some("info,=x=")), Err(TelemetryError::BadFilter { .. })));
    }

    #[test]
    fn a_panic_tells_its_place_and_none_of_its_words() {
        let default = std::panic::take_hook();
        log_panics_without_words();
        let prompt = "the secret prompt";
        let lines = logged(LogFormat::Text, None, Colour::Plain, || {
            let _ = std::panic::catch_unwind(|| panic!("byte index 3 is not a boundary in `{prompt}`"));
        });
        std::panic::set_hook(default);
        assert!(lines.contains("telemetry.rs:") && !lines.contains("secret"), "{lines}");
    }

    #[test]
    fn a_chain_tells_the_cause_too() {
        let error = TelemetryError::BadFilter {
            filter: "x=y".into(),
            source: EnvFilter::builder().parse("x=y=z").expect_err("this is no filter"),
        };
        let text = Chain(&error).to_string();
        assert!(text.starts_with("`x=y` is not a log filter: "), "{text}");
    }
}
