//! The log: a file in the background, the journal under systemd, else stderr. `VMSUP_LOG` chooses what (default: `info`).
//!
//! What happens to a VM stands in a span of that VM (`vm{id=… name=…}`): one word finds all of it. Where stderr is the
//! journal, a line carries its priority in front, as sd-daemon(3) has it: that takes no socket, so nothing that the filter
//! would have to allow, and `journalctl -p warning` works.

use rustix::fs::fstat;
use std::ffi::OsStr;
use std::fmt::Result;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, format};
use tracing_subscriber::registry::LookupSpan;

/// Begins the log: in `file`, or on stderr. A subscriber that is there already (a test's) stays.
pub fn begin(file: Option<OwnedFd>) {
    let filter = EnvFilter::try_from_env("VMSUP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(false);
    let _ = match file {
        Some(file) => builder.with_writer(Mutex::new(std::fs::File::from(file))).try_init(),
        None if is_journal() => builder.event_format(Prioritised::default()).with_writer(std::io::stderr).try_init(),
        None => builder.with_writer(std::io::stderr).try_init(),
    };
}

/// stderr is connected to the journal: `JOURNAL_STREAM` alone says only that it was, for some process above this one.
fn is_journal() -> bool {
    let named = std::env::var_os("JOURNAL_STREAM");
    fstat(std::io::stderr()).is_ok_and(|stat| is_stream(named.as_deref(), stat.st_dev, stat.st_ino))
}

/// `device:inode`, as systemd.exec(5) has it.
fn is_stream(named: Option<&OsStr>, device: u64, inode: u64) -> bool {
    let Some((d, i)) = named.and_then(OsStr::to_str).and_then(|named| named.split_once(':')) else { return false };
    d.parse() == Ok(device) && i.parse() == Ok(inode)
}

/// Lines with their priority in front; the journal has clock and priority of its own.
struct Prioritised(Format<Full, ()>);

impl Default for Prioritised {
    fn default() -> Self {
        Prioritised(format().without_time().with_level(false).with_target(false).with_ansi(false))
    }
}

impl<S, N> FormatEvent<S, N> for Prioritised
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> Result {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        let priority = priority(*event.metadata().level());
        // Each line for itself: what a less trusted process said may hold a line that begins with another priority.
        text.lines().try_for_each(|line| writeln!(writer, "<{priority}>{line}"))
    }
}

/// As syslog(3) counts: the smaller, the worse.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_for_the_journal_has_its_own_priority_and_its_vm() {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::TRACE)
            .event_format(Prioritised::default())
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let _vm = tracing::info_span!("vm", id = "1a", name = "web").entered();
            tracing::info!(pid = 7, "running");
            tracing::warn!("said\n<0>forged");
            tracing::error!("bad");
            tracing::debug!("small");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "<6>vm{id=\"1a\" name=\"web\"}: running pid=7");
        assert!(lines.iter().all(|line| !line.starts_with("<0>")), "{lines:?}");
        assert!(lines[1].starts_with("<4>vm{id=\"1a\""), "{lines:?}");
        let last: Vec<&str> = lines[lines.len() - 2..].iter().map(|line| &line[..3]).collect();
        assert_eq!(last, ["<3>", "<7>"]);
    }

    #[test]
    fn only_a_stderr_that_is_the_journals_stream_is_the_journal() {
        let is = |named: &str| is_stream(Some(OsStr::new(named)), 8, 1234);
        assert!(is("8:1234"));
        for other in ["", "8", "8:", "9:1234", "8:1235", "8:1234:1", "8:12345"] {
            assert!(!is(other), "{other:?}");
        }
        assert!(!is_stream(None, 8, 1234));
    }
}
