//! virtio-rng (5.4): entropy of the host's kernel for the guest.
//!
//! Runs on the reactor. `getrandom(2)` never blocks once the host has booted.

use super::queue::{self, Chain};
use super::{Handled, ID_ENTROPY, QueueError, VirtioDevice};
use crate::memory::GuestMemory;
use rustix::rand::{GetRandomFlags, getrandom};

/// The most bytes for one request; a driver that wants more asks again.
const REQUEST_MAX: usize = 4096;

/// The device. It keeps nothing.
#[derive(Debug)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        ID_ENTROPY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, _features: u64) {}

    fn handle(&mut self, _queue: usize, chain: &Chain, mem: &GuestMemory) -> Result<Handled, QueueError> {
        if chain.writable().is_empty() {
            return Err(QueueError::Chain("no buffer for entropy"));
        }
        let mut bytes = [0; REQUEST_MAX];
        let wanted = queue::total(chain.writable()).min(REQUEST_MAX as u64) as usize;
        // It fails on a kernel without it only, and then the guest gets nothing rather than zeros.
        let got = getrandom(&mut bytes[..wanted], GetRandomFlags::NONBLOCK).unwrap_or(0);
        Ok(Handled::Done(queue::write(mem, chain.writable(), &bytes[..got]) as u32))
    }

    fn reset(&mut self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::{Buffer, Driver};
    use super::*;

    #[test]
    fn a_request_is_filled_with_different_bytes_each_time() {
        let mut driver = Driver::start(Box::new(Rng));
        let mut seen = Vec::new();
        for _ in 0..3 {
            let (_, written) = driver.request(&[Buffer::writable(0x8000, 32), Buffer::writable(0x9000, 32)]);
            assert_eq!(written, 64);
            let bytes = [driver.bytes(0x8000, 32), driver.bytes(0x9000, 32)].concat();
            assert!(bytes.iter().any(|b| *b != 0));
            assert!(!seen.contains(&bytes));
            seen.push(bytes);
        }
    }

    #[test]
    fn a_large_request_gets_four_kibibytes() {
        let mut driver = Driver::start(Box::new(Rng));
        let (_, written) = driver.request(&[Buffer::writable(0x1_0000, 3000), Buffer::writable(0x2_0000, 0x1_0000)]);
        assert_eq!(written, 4096);
        assert_eq!(driver.bytes(0x2_0000 + 1096, 64), [0; 64], "what was not promised is not touched");
    }

    #[test]
    fn a_request_that_cannot_be_written_stops_the_device_until_a_reset() {
        let mut driver = Driver::start(Box::new(Rng));
        driver.submit(&[Buffer::readable(0x8000, 32)]);
        driver.turn();
        assert!(driver.needs_reset());
        driver.restart();
        assert_eq!(driver.request(&[Buffer::writable(0x8000, 8)]).1, 8);
    }
}
