//! Who waits for a VM or follows its console.

use super::Context;
use super::registry::{Who, is_end};
use super::vm::Vm;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Someone who waits for a VM or follows its console. A retired VM is forgotten when the last of them is gone and one
/// has heard how it ended.
#[derive(Debug)]
pub struct Hold {
    context: Arc<Context>,
    /// The VM.
    pub vm: Arc<Vm>,
}

impl Hold {
    /// Of `vm`.
    pub fn new(context: &Arc<Context>, vm: Arc<Vm>) -> Hold {
        vm.holds.fetch_add(1, Ordering::AcqRel);
        Hold { context: context.clone(), vm }
    }

    /// The caller's VM of this name or id.
    pub fn find(context: &Arc<Context>, who: Who, key: &str) -> Option<Hold> {
        Some(Hold::new(context, context.registry.find(who, key)?))
    }

    /// How it ended goes out with the answer.
    pub fn heard(&self) {
        self.vm.heard.store(true, Ordering::Release);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let last = self.vm.holds.fetch_sub(1, Ordering::AcqRel) == 1;
        let phase = self.vm.phase.borrow();
        let over = phase.intent.remove_when_ended && is_end(phase.state);
        drop(phase);
        if last && over && self.vm.heard.load(Ordering::Acquire) {
            self.context.registry.remove(&self.vm);
        }
    }
}
