//! What becomes of a worker: made, handed over, heard, reaped. Part of the jailer's one loop (`serve`).

use crate::identity;
use crate::make::{self, parse_failed};
use crate::orphans;
use crate::places::{Order, Phase, Place};
use crate::reap::{kill_and_reap, limit_resources, reap, start_time};
use crate::report::{News, Report};
use crate::serve::{Jailer, token};
use jail_spec::{Refusal, Reply, SLOTS_MAX, Slot, UidSource, Worker};
use rustix::event::epoll;
use rustix::fd::{AsFd, BorrowedFd};

impl Jailer {
    /// Gives the order to a warm worker, to one that boots, or to a new one.
    pub(crate) fn place_order(&mut self, order: Order) -> Result<(), Refusal> {
        if let (Some(limits), Err(reason)) = (&order.limits, &self.cgroup)
            && !limits.best_effort
        {
            return Err(Refusal::NoCgroup(reason.clone()));
        }
        match self.places.candidate() {
            Some((slot, Phase::Warm)) => self.hand_over(slot, order, true),
            Some((slot, _)) => {
                if let Some(place) = self.places.get(slot) {
                    place.phase = Phase::Booting(Some(order));
                }
                Ok(())
            }
            None => self.make(Some(order)),
        }
    }

    /// Makes a worker, for an order or for the pool.
    pub(crate) fn make(&mut self, order: Option<Order>) -> Result<(), Refusal> {
        let count = match self.uids {
            UidSource::Subordinate { count, .. } => count.min(SLOTS_MAX),
            UidSource::Own => SLOTS_MAX,
        };
        let slot = self.places.free(count).ok_or(Refusal::Full { slots: count })?;
        let failed = |step: &str, errno: i32| Refusal::Step { step: step.to_owned(), errno };
        let (uid, _) = identity::outer_ids(self.uids, slot).ok_or(Refusal::Full { slots: count })?;
        let leaf = match &self.cgroup {
            Ok(cgroup) => Some(cgroup.leaf(slot).map_err(Refusal::Invalid)?),
            Err(_) => None,
        };
        let clear_groups = matches!(self.uids, UidSource::Subordinate { .. });
        let user_namespace = self
            .prepared
            .get(self.uids, slot)
            .map_err(|e| Refusal::Invalid(e.to_string().chars().take(300).collect()))?;
        let made = self.workshop.make(slot, user_namespace, clear_groups, leaf.as_ref().map(|l| l.as_fd()));
        let made = made.map_err(|error| match error {
            make::Error::Program(why) => Refusal::Program(why.to_string()),
            make::Error::Step(step) => failed(&step.step, step.errno),
            make::Error::System(what, error) => failed(what, error.raw_os_error().unwrap_or(0)),
        })?;
        let place = Place {
            worker: Worker { slot, pid: made.pid, start_time: start_time(made.pid), uid },
            pidfd: made.pidfd,
            report: None,
            leaf,
            phase: Phase::Booting(order),
            orphan: false,
            stopped: false,
            last_words: String::new(),
        };
        let watch = |fd: BorrowedFd<'_>, end| {
            epoll::add(&self.events, fd, epoll::EventData::new_u64(token(slot, end)), epoll::EventFlags::IN)
        };
        let watched = watch(made.report.as_fd(), false).and_then(|()| watch(place.pidfd.as_fd(), true));
        let place = Place { report: Some(Report::new(made.report)), ..place };
        if let Err(errno) = watched {
            self.forget_fds(&place);
            kill_and_reap(&place);
            let _ = orphans::remove_names(slot);
            return Err(failed("epoll_ctl", errno.raw_os_error()));
        }
        self.places.insert(place);
        Ok(())
    }

    /// Limits first, then the worker is the supervisor's.
    fn hand_over(&mut self, slot: Slot, order: Order, warm: bool) -> Result<(), Refusal> {
        let Some(place) = self.places.get(slot) else { return Err(Refusal::Invalid("no such slot".into())) };
        let limited = (|| {
            if let (Some(limits), Some(leaf)) = (&order.limits, &place.leaf) {
                leaf.limit(limits).map_err(Refusal::Invalid)?;
            }
            limit_resources(place.worker.pid, &order)
        })();
        if let Err(why) = limited {
            self.discard(slot);
            return Err(why);
        }
        place.phase = Phase::Taken;
        orphans::record(&place.worker);
        let reply = Reply::Made { seq: order.seq, worker: place.worker, warm };
        if !self.line.say(&reply, &[place.pidfd.as_fd()]) {
            // Nobody has it: the supervisor is gone, which the loop sees next.
            self.discard(slot);
        }
        Ok(())
    }

    /// Something stands in a report pipe.
    pub(crate) fn reported(&mut self, slot: Slot) {
        let Some(place) = self.places.get(slot) else { return };
        let Some(report) = &mut place.report else { return };
        match report.read() {
            News::Nothing => {}
            News::Over => {
                // Level-triggered: what will not be read any more must leave the poll set.
                let _ = epoll::delete(&self.events, report.pipe());
            }
            News::Ready => match place.phase {
                Phase::Booting(None) => place.phase = Phase::Warm,
                Phase::Booting(Some(order)) => {
                    if let Err(why) = self.hand_over(slot, order, false) {
                        self.line.say(&Reply::Refused { seq: order.seq, why }, &[]);
                    }
                }
                Phase::Warm | Phase::Taken | Phase::Ended(_) => {}
            },
        }
    }

    /// A worker has ended: reap it, remove what was its, tell who waits.
    pub(crate) fn ended(&mut self, slot: Slot) {
        let Some(place) = self.places.get(slot) else { return };
        let Some(how) = reap(place) else { return };
        let _ = epoll::delete(&self.events, &place.pidfd);
        if let Some(mut report) = place.report.take() {
            let _ = epoll::delete(&self.events, report.pipe());
            place.last_words = report.last_words();
        }
        place.leaf = None;
        let _ = orphans::remove_names(slot);
        match place.phase {
            Phase::Taken => {
                place.phase = Phase::Ended(how);
                if let Some(told) = place.known() {
                    self.line.say(&told, &[]);
                }
            }
            Phase::Booting(Some(order)) => {
                let last_words = std::mem::take(&mut place.last_words);
                self.places.remove(slot);
                let why = match parse_failed(&last_words) {
                    Some(failed) => Refusal::Step { step: failed.step, errno: failed.errno },
                    None => Refusal::Died(how, last_words),
                };
                self.line.say(&Reply::Refused { seq: order.seq, why }, &[]);
            }
            Phase::Booting(None) | Phase::Warm => {
                complain!("an empty worker ended: {how:?} {}", place.last_words);
                self.places.remove(slot);
                self.refill = false;
            }
            Phase::Ended(_) => {}
        }
    }
}
