//! A hostile driver: registers, rings, descriptors and requests at random, half of them almost right. The device has to
//! survive, to stay inside guest RAM, and to answer after a reset. The seed is fixed, so a failure comes again.

use super::VirtioDevice;
use super::block::{Block, disk::Disk};
use super::driver::*;
use super::net::{Net, tap::Tap};
use super::rng::Rng;
use crate::bus::lock;
use crate::memory::GuestMemory;
use std::fs::OpenOptions;
use vmm_sys_util::tempfile::TempFile;

const ROUNDS: u32 = 3000;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// An address: mostly inside RAM, and often where rings, edges or wraps are.
    fn address(&mut self) -> u64 {
        let place =
            self.one_of(&[0, DESCRIPTORS, AVAILABLE, USED, 0x5000, 0x1_0000, RAM - 64, RAM, u64::MAX - 64, 1 << 40]);
        let (offset, wide) = (self.below(128), self.below(2 * RAM));
        if self.below(4) == 0 { wide } else { place.wrapping_add(offset) }
    }

    fn length(&mut self) -> u32 {
        let near = self.below(600) as u32;
        self.one_of(&[0, 1, 15, 16, 17, 512, 513, 4096, u32::MAX, u32::MAX - 15, RAM as u32, near])
    }
}

fn random_register_writes(driver: &Driver, random: &mut Random) {
    for _ in 0..random.below(20) {
        let offset =
            random.one_of(&[0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0xa0, 0xa4, 0x100]);
        let value = match random.below(3) {
            0 => random.next() as u32,
            1 => random.below(32) as u32,
            _ => random.address() as u32,
        };
        // A reset in between is somebody else's test: it would make this one wait.
        if (offset, value) != (0x70, 0) {
            driver.set(offset, value);
        }
        let mut data = vec![0; random.below(9) as usize];
        crate::bus::BusDevice::read(&mut *driver.transport.lock().unwrap(), random.below(0x1000), &mut data);
    }
}

fn random_descriptors(driver: &Driver, random: &mut Random) {
    if random.below(2) == 0 {
        return descriptors_of_one_kind(driver, random);
    }
    for table in [driver.descriptors(), 0x5000] {
        for n in 0..SIZE {
            let flags = if random.below(8) == 0 { random.next() as u16 } else { random.below(8) as u16 & !INDIRECT };
            let flags = if random.below(10) == 0 { flags | INDIRECT } else { flags };
            let (address, length) = match random.below(3) {
                0 => (random.address(), random.length()),
                _ => (0x1_0000 + random.below(0x1000), random.length() % 2048),
            };
            let next = if random.below(3) == 0 { random.next() as u16 } else { (n + 1) % SIZE };
            driver.describe(table, n, address, length, flags, next);
        }
    }
}

/// Short chains inside of RAM, all to be read or all to be written, of any length.
fn descriptors_of_one_kind(driver: &Driver, random: &mut Random) {
    let write = random.one_of(&[0, WRITE]);
    for n in 0..SIZE {
        let flags = write | if random.below(3) == 0 { NEXT } else { 0 };
        let length = random.one_of(&[1, 12, 26, 72, 600, 1530, 2048, 0x1_1000]);
        driver.describe(driver.descriptors(), n, 0x1_0000 + 4 * random.below(0x400), length, flags, (n + 1) % SIZE);
    }
}

/// Headers that mean something more often than not, where random descriptors find them.
type Headers = fn(&Driver, &mut Random);

fn disk_headers(driver: &Driver, random: &mut Random) {
    for at in (0x1_0000..0x1_1000).step_by(16) {
        let kind = random.one_of(&[0u32, 1, 4, 8, 2, u32::MAX]);
        let any = random.next();
        let sector = random.one_of(&[0, 1, 7, 8, u64::MAX, any]);
        driver.put(at, &[kind.to_le_bytes(), [0; 4]].concat());
        driver.put(at + 8, &sector.to_le_bytes());
    }
}

fn packet_headers(driver: &Driver, random: &mut Random) {
    for at in (0x1_0000..0x1_1000).step_by(4) {
        let (flags, segment) = (random.one_of(&[0, 0, 1, 0xff]), random.one_of(&[0, 0, 0, 1, 4, 0x81, 5]));
        driver.put(at, &[flags, segment, random.next() as u8, 0]);
    }
}

fn random_ring(driver: &mut Driver, random: &mut Random) {
    match random.below(4) {
        0 => driver.put(driver.available() + 2, &(random.next() as u16).to_le_bytes()),
        _ => {
            for _ in 0..random.below(u64::from(SIZE) + 1) {
                let head = if random.below(6) == 0 { random.next() as u16 } else { random.below(SIZE.into()) as u16 };
                driver.offer(head);
            }
        }
    }
}

/// Torments a device, and asks it for something sensible after each round.
fn torment(
    device: Box<dyn VirtioDevice>,
    mem: GuestMemory,
    seed: u64,
    headers: Headers,
    works: impl Fn(&mut Driver),
) -> u32 {
    let mut random = Random(seed);
    let mut driver = Driver::new(device, mem);
    let queues = lock(&driver.transport).kicks().len() as u64;
    let mut failures = 0;
    for round in 0..ROUNDS {
        driver.wanted = if random.below(4) == 0 { F_VERSION_1 } else { u64::MAX };
        driver.restart();
        for _ in 0..=random.below(3) {
            driver.on(random.below(queues) as usize);
            random_descriptors(&driver, &mut random);
            headers(&driver, &mut random);
            random_ring(&mut driver, &mut random);
            driver.notify();
            let turns = driver.settle();
            assert!(turns < 1000, "round {round}: the reactor spins");
            random_register_writes(&driver, &mut random);
        }
        failures += u32::from(driver.needs_reset());
        driver.wanted = u64::MAX;
        driver.restart();
        works(&mut driver);
    }
    failures
}

#[test]
fn a_hostile_driver_of_the_entropy_device_harms_itself_only() {
    let failures = torment(Box::new(Rng), Driver::ram(), 0x5eed, disk_headers, |driver| {
        assert_eq!(driver.request(&[Buffer::writable(0x8000, 16)]).1, 16);
    });
    assert!(failures > ROUNDS / 4, "the garbage is too tame: {failures} failures");
}

#[test]
fn a_hostile_driver_of_a_disk_harms_itself_only() {
    let file = TempFile::new().unwrap();
    file.as_file().set_len(8 * 512).unwrap();
    let open = OpenOptions::new().read(true).write(true).open(file.as_path()).unwrap();
    let mem = Driver::ram();
    let (block, threads) = Block::new(Disk::new(open.into(), false).unwrap(), "hostile", &mem).unwrap();
    threads.into_iter().for_each(|thread| drop(std::thread::spawn(move || thread.run())));
    let failures = torment(Box::new(block), mem, 0xd15c, disk_headers, |driver| {
        driver.put(0x8000, &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let chain = [Buffer::readable(0x8000, 16), Buffer::writable(0x9000, 20), Buffer::writable(0xa000, 1)];
        assert_eq!(driver.request(&chain).1, 21);
        assert_eq!(driver.bytes(0x9000, 7), b"hostile");
    });
    assert!(failures > ROUNDS / 4, "the garbage is too tame: {failures} failures");
    assert_eq!(file.as_file().metadata().unwrap().len(), 8 * 512, "the disk did not grow");
}

/// Its network is as hostile: packets of any length, behind headers of any content.
#[test]
fn a_hostile_driver_of_a_network_interface_harms_itself_only() {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let ((first, network), (second, other)) = (pair(), pair());
    let net = Net::new(&super::net::tests::spec(2, true), vec![Tap::double(first), Tap::double(second)]).unwrap();
    let counters = net.counters();
    let random = std::cell::RefCell::new(Random(0x7a9));
    let failures = torment(Box::new(net), Driver::ram(), 0x9e7, packet_headers, |driver| {
        let (mut packet, mut come) = (vec![0; 0x1_1000], vec![0; 0x1_1000]);
        while recv(&network, &mut come[..], RecvFlags::empty()).is_ok() {}
        while recv(&other, &mut come[..], RecvFlags::empty()).is_ok() {}
        // A packet each way, whatever came before.
        driver.put(0x8000, &[&[0; 12], &[0x55; 60][..]].concat());
        driver.on(1).submit(&[Buffer::readable(0x8000, 72)]);
        assert!(driver.settle() < 1000);
        assert_eq!(recv(&network, &mut come[..], RecvFlags::empty()).unwrap().0, 72);
        driver.on(0).submit(&[Buffer::writable(0xa000, 0x1000)]);
        assert!(driver.settle() < 1000, "the reactor spins");
        let left = driver.take().is_some();
        if !left {
            send(&network, &packet[..72], SendFlags::empty()).unwrap();
            driver.settle();
            assert_eq!(driver.take().map(|(_, written)| written), Some(72));
        }
        // What the next round finds in the TAP.
        let mut random = random.borrow_mut();
        for to in [&network, &other] {
            for _ in 0..random.below(4) {
                packet[..12]
                    .iter_mut()
                    .for_each(|byte| *byte = if random.below(2) == 0 { 0 } else { random.next() as u8 });
                let length = random.one_of(&[12, 13, 72, 1526, 1530, 1531, 65_565, 65_600]);
                let _ = send(to, &packet[..length], SendFlags::empty());
            }
        }
    });
    assert!(failures > ROUNDS / 8, "the garbage is too tame: {failures} failures");
    let counted = counters.snapshot();
    for (what, count) in [
        ("received", counted.received_packets),
        ("sent", counted.sent_packets),
        ("dropped for its length", counted.dropped_length),
        ("dropped for its header", counted.dropped_header),
        ("dropped for want of room", counted.dropped_buffer),
        ("dropped for an offload", counted.dropped_offload),
    ] {
        assert!(count > 50, "{count} packets {what}: the garbage is too tame");
    }
}
