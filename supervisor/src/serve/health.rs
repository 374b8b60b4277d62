//! How a running VM is: a pure function of what was seen of it. [`super::watcher`] looks, this judges.
//!
//! Two things are judged, and each has words of its own. Whether the *guest* is well is what its file's `health` says: it
//! wrote a line to its console, its TCP port takes connections. Whether the *worker* hangs is looked at for every VM: it was
//! stopped by a signal, or left two looks in a row without an answer.

use crate::api::types::{EventKind, HealthState};
use crate::spec::{Health, OnFailure};
use crate::vmjson::check::escaped;
use std::time::Duration;

/// Looks in a row that a worker may leave without an answer.
const SILENCE: u32 = 2;

/// Something that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// The guest wrote its marker to the console.
    Marker,
    /// Its port took a connection, or why not.
    Port(Result<(), String>),
    /// Its port cannot be looked at from here, and why: that says nothing of the guest.
    Unseen(String),
    /// Time went by.
    Beat,
    /// The worker answered.
    Answered,
    /// The worker did not answer.
    Silent,
    /// A signal has stopped the worker, or it goes on.
    Stopped(bool),
}

/// What others are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Healthy, Unhealthy, Unseen, Hung or Recovered.
    pub kind: EventKind,
    /// Why.
    pub cause: String,
}

/// What is known of one run of a VM.
#[derive(Debug, Clone)]
pub struct Monitor {
    health: Option<Health>,
    guest: Guest,
    /// The marker was seen, or none is waited for.
    marked: bool,
    /// Why its port cannot be looked at.
    unseen: Option<String>,
    /// Looks at the port that failed in a row.
    failed: u32,
    /// Looks that the worker left without an answer, in a row.
    silent: u32,
    /// A signal has stopped the worker.
    stopped: bool,
    /// Why the worker is taken to hang.
    hung: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Guest {
    Starting,
    Well,
    Unwell(String),
}

impl Monitor {
    /// Of a guest that begins to run; `marked` where it is known to have come up before.
    pub fn new(health: Option<&Health>, marked: bool) -> Monitor {
        let waits = health.is_some_and(|health| health.console.is_some());
        let well = waits && marked && health.is_some_and(|health| health.tcp.is_none());
        let guest = if well { Guest::Well } else { Guest::Starting };
        let marked = marked || !waits;
        let (unseen, hung) = (None, None);
        Monitor { health: health.cloned(), guest, marked, unseen, failed: 0, silent: 0, stopped: false, hung }
    }

    /// The same run, looked at as another file says.
    pub fn changed(&self, health: Option<&Health>) -> Monitor {
        let looks = |health: Option<&Health>| health.map(|h| (h.console.clone(), h.tcp));
        let same = looks(health) == looks(self.health.as_ref());
        let marker = |health: Option<&Health>| health.and_then(|h| h.console.clone());
        let known = self.marked && marker(health) == marker(self.health.as_ref());
        let new = Monitor::new(health, known);
        let guest = if same { self.guest.clone() } else { new.guest.clone() };
        Monitor { guest, silent: self.silent, stopped: self.stopped, hung: self.hung.clone(), ..new }
    }

    /// What the guest is to write, while that is waited for.
    pub fn marker(&self) -> Option<&str> {
        self.health.as_ref().filter(|_| !self.marked)?.console.as_deref()
    }

    /// The port that is looked at.
    pub fn port(&self) -> Option<(u16, Duration)> {
        let health = self.health.as_ref()?;
        Some((health.tcp?, Duration::from_secs(health.timeout_s.into())))
    }

    /// Time between two looks at the port.
    pub fn interval(&self) -> Duration {
        Duration::from_secs(self.health.as_ref().map_or(30, |health| health.interval_s).into())
    }

    /// What the API shows; nothing where nothing is looked at and the worker does not hang.
    pub fn shown(&self) -> Option<HealthState> {
        if let Some(why) = &self.hung {
            return Some(HealthState::Hung(why.clone()));
        }
        self.health.as_ref().filter(|h| h.console.is_some() || h.tcp.is_some())?;
        Some(match (&self.unseen, &self.guest) {
            (_, Guest::Unwell(why)) => HealthState::Unhealthy(why.clone()),
            (Some(why), _) => HealthState::Unknown(format!("cannot look: {why}")),
            (None, Guest::Starting) => HealthState::Starting,
            (None, Guest::Well) => HealthState::Healthy,
        })
    }

    /// Why it is to be killed, where its file says so.
    pub fn to_be_killed(&self) -> Option<&str> {
        self.health.as_ref().filter(|health| health.on_failure == OnFailure::Kill)?;
        match (&self.hung, &self.guest) {
            (Some(why), _) | (None, Guest::Unwell(why)) => Some(why),
            (None, Guest::Starting | Guest::Well) => None,
        }
    }

    /// Takes in what was seen when the guest had run for `age`; says what others are to be told.
    pub fn see(&mut self, sight: Sight, age: Duration) -> Option<News> {
        match sight {
            Sight::Stopped(true) => {
                self.stopped = true;
                self.hangs("its worker was stopped by a signal (SIGSTOP)".into())
            }
            Sight::Stopped(false) => {
                (self.stopped, self.silent) = (false, 0);
                self.goes_on()
            }
            Sight::Silent => {
                self.silent = self.silent.saturating_add(1);
                if self.silent < SILENCE { None } else { self.hangs("its worker does not answer".into()) }
            }
            Sight::Answered => {
                self.silent = 0;
                // A worker that stands still cannot have answered by now; this came from before.
                if self.stopped { None } else { self.goes_on() }
            }
            Sight::Marker => {
                self.marked = true;
                if self.port().is_none() { self.well() } else { None }
            }
            Sight::Unseen(why) => {
                let cause = format!("cannot look: {why}");
                let news = News { kind: EventKind::Unseen, cause };
                self.unseen.replace(why).is_none().then_some(news)
            }
            Sight::Port(Ok(())) => {
                self.failed = 0;
                let seen_again = self.unseen.take().filter(|_| self.guest == Guest::Well);
                if seen_again.is_some() {
                    return Some(News { kind: EventKind::Healthy, cause: "it can be looked at again".into() });
                }
                if self.marked { self.well() } else { None }
            }
            Sight::Port(Err(why)) => {
                self.unseen = None;
                let Health { start_s, retries, .. } = *self.health.as_ref()?;
                // It has still time to come up.
                if self.guest == Guest::Starting && age < Duration::from_secs(start_s.into()) {
                    return None;
                }
                self.failed = self.failed.saturating_add(1);
                if self.failed < retries { None } else { self.unwell(why) }
            }
            Sight::Beat => {
                let start_s = self.health.as_ref()?.start_s;
                let marker = escaped(self.marker()?);
                let late = self.guest == Guest::Starting && age >= Duration::from_secs(start_s.into());
                if late {
                    self.unwell(format!("it did not write \"{marker}\" to its console in {start_s} s"))
                } else {
                    None
                }
            }
        }
    }

    fn well(&mut self) -> Option<News> {
        let cause = match std::mem::replace(&mut self.guest, Guest::Well) {
            Guest::Well => return None,
            Guest::Starting => "it came up",
            Guest::Unwell(_) => "it is well again",
        };
        Some(News { kind: EventKind::Healthy, cause: cause.into() })
    }

    fn unwell(&mut self, why: String) -> Option<News> {
        match std::mem::replace(&mut self.guest, Guest::Unwell(why.clone())) {
            Guest::Unwell(_) => None,
            Guest::Starting | Guest::Well => Some(News { kind: EventKind::Unhealthy, cause: why }),
        }
    }

    fn hangs(&mut self, why: String) -> Option<News> {
        if self.hung.is_some() {
            return None;
        }
        self.hung = Some(why.clone());
        Some(News { kind: EventKind::Hung, cause: why })
    }

    fn goes_on(&mut self) -> Option<News> {
        self.hung.take().map(|_| News { kind: EventKind::Recovered, cause: "its worker goes on".into() })
    }
}

/// Looks for a few bytes in a stream that comes in pieces. Holds at most as much of it as it looks for.
#[derive(Debug, Clone)]
pub struct Matcher {
    wanted: Vec<u8>,
    /// The end of what came, shorter than what is wanted.
    tail: Vec<u8>,
}

impl Matcher {
    /// Looks for `wanted`, which is not empty.
    pub fn new(wanted: &str) -> Matcher {
        Matcher { wanted: wanted.as_bytes().to_vec(), tail: Vec::new() }
    }

    /// Takes the next piece; true where what is wanted ends in it. `gap` says that bytes before it were lost.
    pub fn feed(&mut self, gap: bool, piece: &[u8]) -> bool {
        if gap {
            self.tail.clear();
        }
        let (n, keep) = (self.wanted.len(), self.wanted.len().saturating_sub(1));
        // What spans the border, and what does not.
        let border: Vec<u8> = self.tail.iter().chain(piece.iter().take(keep)).copied().collect();
        let found = |bytes: &[u8]| bytes.windows(n).any(|window| window == self.wanted);
        if found(&border) || found(piece) {
            return true;
        }
        self.tail.extend_from_slice(&piece[piece.len().saturating_sub(keep)..]);
        let more = self.tail.len().saturating_sub(keep);
        self.tail.drain(..more);
        false
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
