//! DHCP replies on their way to the guest: made when a request is sent, delivered when the driver has room. Few wait, the
//! rest is dropped: a client asks again.

use super::super::queue::{self, part};
use super::dhcp::{DhcpServer, REPLY_MAX, REQUEST_MAX};
use crate::memory::{GuestMemory, Segment};
use worker_api::NetSpec;

/// Replies that wait, at most.
const WAITING_MAX: usize = 4;

/// A reply: the frame and how much of it there is.
type Reply = ([u8; REPLY_MAX], usize);

/// The server and its replies.
pub struct Answers {
    server: DhcpServer,
    /// A ring: `waiting` of them from `first` on.
    replies: Box<[Reply; WAITING_MAX]>,
    first: usize,
    waiting: usize,
}

impl Answers {
    /// No replies.
    pub fn new(spec: &NetSpec) -> Self {
        let replies = Box::new([([0; REPLY_MAX], 0); WAITING_MAX]);
        Self { server: DhcpServer::new(spec), replies, first: 0, waiting: 0 }
    }

    /// Answers the request in a frame of `length` bytes: `start`, which was read before, and what follows it in `segments`
    /// from `skip` on. False where nothing waits for the guest afterwards that did not before.
    pub fn answer<'a>(
        &mut self,
        start: &[u8],
        mem: &GuestMemory,
        segments: impl IntoIterator<Item = &'a Segment>,
        skip: u64,
        length: u64,
    ) -> bool {
        let mut frame = [0; REQUEST_MAX];
        let Some(frame) = usize::try_from(length).ok().and_then(|length| frame.get_mut(..length)) else { return false };
        if self.waiting == WAITING_MAX {
            return false;
        }
        let (seen, rest) = frame.split_at_mut(start.len());
        seen.copy_from_slice(start);
        if !queue::read(mem, part(segments, skip, u64::MAX), rest) {
            return false;
        }
        let (reply, used) = &mut self.replies[(self.first + self.waiting) % WAITING_MAX];
        let Some(length) = self.server.answer(frame, reply) else { return false };
        *used = length.min(REPLY_MAX);
        self.waiting += 1;
        true
    }

    /// The first reply that waits.
    pub fn first(&self) -> Option<&[u8]> {
        let (frame, length) = &self.replies[self.first];
        (self.waiting > 0).then(|| &frame[..*length])
    }

    /// Forgets the first reply.
    pub fn pop(&mut self) {
        if self.waiting > 0 {
            self.first = (self.first + 1) % WAITING_MAX;
            self.waiting -= 1;
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.waiting = 0;
    }
}
