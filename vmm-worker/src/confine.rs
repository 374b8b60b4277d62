//! Confinement, in order, each step hard-fail: landlock and the start-up filter for the whole process, then a filter of
//! its own for each thread. Filters stack, so no thread gets back what an earlier one took.

use crate::leave::{End, Words, leave};
use policies::Filter;

/// First confinement: nothing can be opened, connected or executed after it. Before the control socket listens, so that
/// nobody ever talks to a worker that is not confined.
pub fn at_start() {
    let result =
        policies::apply::landlock_deny_all().and_then(|()| policies::apply::seccomp(&policies::WORKER_STARTUP));
    if let Err(error) = result {
        leave(&End::Failed(Words::new(format_args!("the worker cannot confine itself: {error}"))));
    }
}

/// Second confinement, of the calling thread, for good. After all threads were made.
pub fn narrow(filter: &'static Filter) {
    if let Err(error) = policies::apply::seccomp(filter) {
        leave(&End::Failed(Words::new(format_args!("a thread cannot narrow itself to its filter: {error}"))));
    }
}
