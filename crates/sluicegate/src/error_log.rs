//! The error log: one line an event, to a file that can be reopened, or to a stream.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::Context as _;
use sluicegate_config::{ErrorLogLevel, LogTarget};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

struct Log {
    out: Mutex<Out>,
    level: AtomicU8,
}

enum Out {
    Off,
    Stdout,
    Stderr,
    File(PathBuf, File),
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Sends events at `level` and above to `target`; a second call changes both.
pub(crate) fn init(
    target: &LogTarget,
    level: ErrorLogLevel,
    under: impl Fn(&std::path::Path) -> PathBuf,
) -> anyhow::Result<()> {
    let out = match target {
        LogTarget::Off => Out::Off,
        LogTarget::Stdout => Out::Stdout,
        LogTarget::Stderr => Out::Stderr,
        LogTarget::File(path) => {
            let path = under(path);
            let file = open(&path)
                .with_context(|| format!("the error log {} cannot be opened", path.display()))?;
            Out::File(path, file)
        }
    };
    let shown = match level {
        ErrorLogLevel::Debug => 4,
        ErrorLogLevel::Info => 3,
        ErrorLogLevel::Notice | ErrorLogLevel::Warn => 2,
        _ => 1,
    };
    match LOG.get() {
        Some(log) => {
            *log.out.lock().unwrap_or_else(PoisonError::into_inner) = out;
            log.level.store(shown, Ordering::Relaxed);
        }
        None => {
            let _ = LOG.set(Log { out: Mutex::new(out), level: AtomicU8::new(shown) });
            let subscriber = tracing_subscriber::registry().with(Lines);
            // Somebody else's subscriber (in a test) keeps its place.
            let _ = tracing::subscriber::set_global_default(subscriber);
        }
    }
    Ok(())
}

fn open(path: &std::path::Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// Opens the file again: it was moved away by log rotation.
pub(crate) fn reopen() {
    let Some(log) = LOG.get() else { return };
    let mut out = log.out.lock().unwrap_or_else(PoisonError::into_inner);
    if let Out::File(path, file) = &mut *out
        && let Ok(fresh) = open(path)
    {
        *file = fresh;
    }
}

/// Writes each event as a line: time, level, message, fields.
struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let shown = LOG.get().map_or(0, |log| log.level.load(Ordering::Relaxed));
        let own = metadata.target().starts_with("sluicegate");
        // Libraries speak up from `warn` on.
        rank(*metadata.level()) <= if own { shown } else { shown.min(2) }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(log) = LOG.get() else { return };
        let mut line = Line::default();
        event.record(&mut line);
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let now = sluicegate_gateway::core::now();
        let time = sluicegate_gateway::observe::time::error_log(now);
        let text = format!("{time} [{level}] {}{}\n", line.message, line.fields);
        let mut out = log.out.lock().unwrap_or_else(PoisonError::into_inner);
        // There is no other place to complain to.
        let _ = match &mut *out {
            Out::Off => Ok(()),
            Out::Stdout => io::stdout().write_all(text.as_bytes()),
            Out::Stderr => io::stderr().write_all(text.as_bytes()),
            Out::File(_, file) => file.write_all(text.as_bytes()),
        };
    }
}

fn rank(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record(field.name(), &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record(field.name(), value);
    }
}

impl Line {
    /// A value is on one line whatever a client put into it.
    fn record(&mut self, name: &str, value: &str) {
        let clean: String = value
            .chars()
            .flat_map(
                |c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] },
            )
            .collect();
        if name == "message" {
            self.message = clean;
            return;
        }
        self.fields.push(' ');
        self.fields.push_str(name);
        self.fields.push('=');
        if clean.is_empty() || clean.contains(' ') {
            self.fields.push_str(&format!("{clean:?}"));
        } else {
            self.fields.push_str(&clean);
        }
    }
}
