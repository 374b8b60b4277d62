//! The one timer of all VMs: a beat every 30 s, at the same moment for all, and none while nobody listens.
//!
//! ```text
//!  actor ─ listen() ─▶ Beats ─┐
//!  actor ─ listen() ─▶ Beats ─┼─ task: sleeps, beats, sleeps …; goes when the last listener has gone
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Between two beats.
pub const PERIOD: Duration = Duration::from_secs(30);

/// The timer.
#[derive(Debug)]
pub struct Tick {
    period: Duration,
    beats: watch::Sender<u64>,
    running: Mutex<bool>,
}

/// A listener.
#[derive(Debug)]
pub struct Beats(watch::Receiver<u64>);

impl Tick {
    /// One that beats every `period` while somebody listens.
    pub fn new(period: Duration) -> Arc<Tick> {
        Arc::new(Tick { period, beats: watch::Sender::new(0), running: Mutex::new(false) })
    }

    /// Listens from now on. Needs a runtime.
    pub fn listen(self: &Arc<Tick>) -> Beats {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let beats = Beats(self.beats.subscribe());
        if !std::mem::replace(&mut *running, true) {
            tokio::spawn(self.clone().run());
        }
        beats
    }

    async fn run(self: Arc<Tick>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.period) => self.beat(),
                () = self.beats.closed() => {}
            }
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            *running = self.beats.receiver_count() > 0;
            if !*running {
                return;
            }
        }
    }

    /// One beat.
    pub fn beat(&self) {
        self.beats.send_modify(|beats| *beats = beats.wrapping_add(1));
    }

    /// Whether its task is there.
    #[cfg(test)]
    fn is_running(&self) -> bool {
        *self.running.lock().unwrap()
    }
}

impl Beats {
    /// Waits for the next beat; several that were missed are one. May be dropped and called again.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_timer_is_there_only_while_somebody_listens() {
        let tick = Tick::new(Duration::from_millis(1));
        assert!(!tick.is_running());
        let (mut first, mut second) = (tick.listen(), tick.listen());
        first.next().await;
        second.next().await;
        drop(first);
        second.next().await;
        drop(second);
        while tick.is_running() {
            tokio::task::yield_now().await;
        }
        tick.listen().next().await;
    }

    #[tokio::test]
    async fn one_beat_is_heard_by_all_at_the_same_moment() {
        let tick = Tick::new(Duration::from_secs(3600));
        let mut all: Vec<Beats> = (0..200).map(|_| tick.listen()).collect();
        tick.beat();
        for beats in &mut all {
            beats.next().await;
            assert!(!beats.0.has_changed().unwrap());
        }
    }
}
