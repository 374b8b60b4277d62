//! The terminal of an attached console: raw while attached, as it was afterwards, whatever happens in between.

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};
use std::io::{IsTerminal, stdin, stdout};
use std::sync::Mutex;

/// What the terminal was before; where a panic finds it, too (panics abort, so no destructor runs).
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal is raw as long as this lives.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// Makes the terminal raw where input and output are one and this process is in its foreground; else `None`, and
    /// line editing and Ctrl-C stay as they are.
    pub fn enter() -> Option<Raw> {
        if !could_be_raw() {
            return None;
        }
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(before);
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
        let raw_now = Raw(());
        tcsetattr(stdin(), OptionalActions::Flush, &raw).ok()?;
        Some(raw_now)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether [`Raw::enter`] would make the terminal raw.
pub fn could_be_raw() -> bool {
    stdin().is_terminal() && stdout().is_terminal() && in_foreground()
}

/// Whether the terminal is raw now.
pub fn is_raw() -> bool {
    BEFORE.lock().is_ok_and(|before| before.is_some())
}

fn restore() {
    // A panic while the lock is held would wait for itself; the lock is held for no call that panics.
    let before = BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(before) = before {
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &before);
    }
}

/// Whether this process may read its terminal: a background job that does is stopped by SIGTTIN.
fn in_foreground() -> bool {
    tcgetpgrp(stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// Whether stdin can give input: open, not /dev/null, and not the terminal of another job.
pub fn has_input() -> bool {
    const NULL: (u32, u32) = (1, 3);
    match rustix::fs::fstat(stdin()) {
        Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice => {
            let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            device != NULL && (!stdin().is_terminal() || in_foreground())
        }
        Ok(_) => true,
        Err(_) => false,
    }
}
