//! What an interface did, for people. Written on the reactor, read on the control thread.

use crate::stats::Count;
use worker_api::NetCounters;

/// The numbers of one interface; what each means says [`NetCounters`].
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Counters {
    pub received_packets: Count,
    pub received_bytes: Count,
    pub sent_packets: Count,
    pub sent_bytes: Count,
    pub dhcp_answers: Count,
    pub dropped_length: Count,
    pub dropped_header: Count,
    pub dropped_tap: Count,
    pub dropped_dhcp: Count,
    pub dropped_buffer: Count,
    pub dropped_offload: Count,
}

impl Counters {
    /// All of them, each as it is when it is read.
    pub fn snapshot(&self) -> NetCounters {
        NetCounters {
            received_packets: self.received_packets.now(),
            received_bytes: self.received_bytes.now(),
            sent_packets: self.sent_packets.now(),
            sent_bytes: self.sent_bytes.now(),
            dhcp_answers: self.dhcp_answers.now(),
            dropped_length: self.dropped_length.now(),
            dropped_header: self.dropped_header.now(),
            dropped_tap: self.dropped_tap.now(),
            dropped_dhcp: self.dropped_dhcp.now(),
            dropped_buffer: self.dropped_buffer.now(),
            dropped_offload: self.dropped_offload.now(),
        }
    }
}
