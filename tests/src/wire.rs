//! A guest's end of a lease, played by a test: it holds the TAP and writes frames as a worker would, or as a worker that
//! was taken over might.

use crate::frames::{self, Mac};
use netd_api::Lease;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of virtio's header before each frame (virtio 1.2, 5.1.6.1).
pub const HEADER: usize = 12;

/// A TAP and its lease.
#[derive(Debug)]
pub struct Wire {
    /// Its queues.
    pub queues: Vec<OwnedFd>,
    /// What netd said of it.
    pub lease: Lease,
}

impl Wire {
    /// The lease's (MAC, address).
    pub fn own(&self) -> (Mac, Ipv4Addr) {
        (self.lease.mac, self.lease.address)
    }

    /// Hands a frame to the host's kernel, which has done with it what it does when this returns.
    ///
    /// # Errors
    /// What write(2) says.
    pub fn send(&self, frame: &[u8]) -> rustix::io::Result<()> {
        self.send_raw(&[0; HEADER], frame)
    }

    /// As [`Wire::send`] with another header.
    ///
    /// # Errors
    /// What write(2) says.
    pub fn send_raw(&self, header: &[u8], frame: &[u8]) -> rustix::io::Result<()> {
        rustix::io::write(&self.queues[0], &[header, frame].concat()).map(|_| ())
    }

    /// The frames that came, all that there are by now.
    pub fn received(&self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut buffer = vec![0; 70_000];
        for queue in &self.queues {
            while let Ok(length) = rustix::io::read(queue, &mut buffer[..]) {
                if length == 0 {
                    break;
                }
                all.push(buffer[HEADER.min(length)..length].to_vec());
            }
        }
        all
    }

    /// An IPv4 packet of the guest's, by way of `router`.
    pub fn packet(&self, router: Mac, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let (mac, address) = self.own();
        frames::ethernet(router, mac, frames::IPV4, &frames::ipv4(address, to, protocol, payload))
    }

    /// True where the guest's question for its gateway is answered: its frames pass. It asks a few times, as guests do: the
    /// first port of a bridge brings its carrier up, and the host sends nothing on it until it has noticed.
    ///
    /// # Panics
    /// Where the TAP takes no frame.
    pub fn passes(&self) -> bool {
        self.received();
        (0..40).any(|_| {
            self.send(&frames::who_has(self.own(), self.lease.gateway)).unwrap();
            let answered = || self.received().iter().any(|f| frames::kind(f) == frames::ARP && f[20..22] == [0, 2]);
            (0..5).any(|_| {
                answered() || {
                    self.wait();
                    false
                }
            })
        })
    }

    /// The frame that answers `frame`, where a well-behaved guest answers it: ARP for its address, pings, UDP (what came goes
    /// back), TCP (every SYN is accepted, nothing else is said).
    pub fn answer(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let (mac, address) = self.own();
        let sender: Mac = frame.get(6..12)?.try_into().ok()?;
        if frames::kind(frame) == frames::ARP {
            let asked = frame.get(38..42)? == address.octets() && frame.get(20..22)? == [0, 1];
            let from = Ipv4Addr::from(<[u8; 4]>::try_from(frame.get(28..32)?).ok()?);
            let reply = frames::arp(2, (mac, address), (sender, from));
            return asked.then(|| frames::ethernet(sender, mac, frames::ARP, &reply));
        }
        let packet = frames::parse_ipv4(frame)?;
        if packet.to != address {
            return None;
        }
        let body = match packet.protocol {
            frames::ICMP if packet.payload.first() == Some(&8) => frames::icmp_reply(&packet.payload),
            frames::UDP => {
                let (from, to, data) = frames::parse_udp(&packet.payload)?;
                frames::udp(to, from, data)
            }
            frames::TCP if packet.payload.get(13)? & 0x12 == 0x02 => {
                let word = |at: usize| u16::from_be_bytes([packet.payload[at], packet.payload[at + 1]]);
                let sequence = u32::from(word(4)) << 16 | u32::from(word(6));
                frames::tcp((address, packet.from), (word(2), word(0)), 7, sequence.wrapping_add(1), 0x12)
            }
            _ => return None,
        };
        let reply = frames::ipv4(address, packet.from, packet.protocol, &body);
        Some(frames::ethernet(sender, mac, frames::IPV4, &reply))
    }

    /// Answers as a guest would while `work` runs, and returns with its result what came meanwhile.
    pub fn answering<T>(&self, work: impl FnOnce(&Mutex<Vec<Vec<u8>>>) -> T) -> T {
        let (over, seen) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    self.wait();
                    for frame in self.received() {
                        let answer = self.answer(&frame);
                        seen.lock().unwrap().push(frame);
                        if let Some(answer) = answer {
                            let _ = self.send(&answer);
                        }
                    }
                }
            });
            // Also where the work panics: a scope waits for its threads.
            struct Over<'a>(&'a AtomicBool);
            impl Drop for Over<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::Relaxed);
                }
            }
            let _over = Over(&over);
            work(&seen)
        })
    }

    /// Until a frame is there, or a moment has passed.
    fn wait(&self) {
        let mut fds: Vec<PollFd<'_>> =
            self.queues.iter().map(|queue| PollFd::from_borrowed_fd(queue.as_fd(), PollFlags::IN)).collect();
        let moment = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let _ = poll(&mut fds, Some(&moment));
    }
}
