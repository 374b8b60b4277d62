//! From the guest to the network: one packet at a time, straight from guest RAM into the TAP.
//!
//! virtio's header and the first bytes of a frame are copied, judged, and sent as they were judged, whatever the guest
//! writes to that place meanwhile. What cannot be sent is dropped and counted: no guest holds up the reactor, and a bad
//! packet stops no device.

use super::super::QueueError;
use super::super::queue::{self, Chain, part};
use super::answers::Answers;
use super::counters::Counters;
use super::dhcp::DhcpServer;
use super::header::{self, Agreed, Header};
use super::receive::{FRAME_OVERHEAD, SEGMENT_MAX};
use crate::memory::{self, GuestMemory};
use std::os::fd::BorrowedFd;

/// Bytes of an Ethernet header, and so of the shortest frame.
const ETHERNET: u64 = 14;
/// Bytes of a frame that are looked at.
const LOOK: usize = 64;
const HEADER: usize = header::LENGTH;

/// Who sends, and where to.
pub struct Sender<'a> {
    /// What the driver agreed to.
    pub agreed: Agreed,
    /// Bytes of the network's largest packet.
    pub mtu: u16,
    /// To the network.
    pub tap: BorrowedFd<'a>,
    /// What happens is counted here.
    pub counters: &'a Counters,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It went out, or was dropped.
    Away,
    /// It was answered here: a reply waits for the guest.
    Answered,
}

impl Sender<'_> {
    /// Sends the packet in `chain`.
    ///
    /// # Errors
    /// There is none in it.
    pub fn send(&self, chain: &Chain, answers: &mut Answers, mem: &GuestMemory) -> Result<Sent, QueueError> {
        let segments = chain.readable();
        if segments.is_empty() {
            return Err(QueueError::Chain("no packet to send"));
        }
        let total = queue::total(segments);
        let Some(length) = total.checked_sub(HEADER as u64).filter(|length| *length >= ETHERNET) else {
            self.counters.dropped_length.one();
            return Ok(Sent::Away);
        };
        let mut head = [0; HEADER + LOOK];
        let head = &mut head[..total.min((HEADER + LOOK) as u64) as usize];
        if !queue::read(mem, segments, head) {
            return Err(QueueError::Chain("a packet outside of RAM"));
        }
        if !self.judge(head, length) {
            return Ok(Sent::Away);
        }
        if DhcpServer::is_for_server(&head[HEADER..]) {
            let skip = head.len() as u64;
            if answers.answer(&head[HEADER..], mem, segments, skip, length) {
                self.counters.dhcp_answers.one();
                return Ok(Sent::Answered);
            }
            self.counters.dropped_dhcp.one();
            return Ok(Sent::Away);
        }
        let rest = part(segments, head.len() as u64, u64::MAX);
        match memory::send(mem, self.tap, head, rest) {
            Ok(_) => {
                self.counters.sent_packets.one();
                self.counters.sent_bytes.add(length);
            }
            // The header says something of the packet that is not so.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.counters.dropped_header.one(),
            // Its interface is down or gone, or the kernel has no room: Ethernet promises nothing.
            Err(_) => self.counters.dropped_tap.one(),
        }
        Ok(Sent::Away)
    }

    /// Checks header and length, and leaves in `head` the header that the TAP is to get. False where the packet is dropped.
    fn judge(&self, head: &mut [u8], length: u64) -> bool {
        let Some((place, frame)) = head.split_first_chunk_mut::<HEADER>() else { return false };
        let mut header = Header(*place);
        if !header.outgoing(self.agreed, frame, length) {
            self.counters.dropped_header.one();
            return false;
        }
        let packet = if header.is_segment() { SEGMENT_MAX } else { self.mtu.into() };
        if length > packet + FRAME_OVERHEAD {
            self.counters.dropped_length.one();
            return false;
        }
        *place = header.0;
        true
    }
}
