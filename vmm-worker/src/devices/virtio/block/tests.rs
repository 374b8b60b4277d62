//! The disk from the guest's side: through registers, rings and RAM, with its threads running.

use super::super::driver::{Buffer, Driver, F_VERSION_1, SIZE};
use super::disk::Storage;
use super::*;
use crate::memory::Segment;
use std::io;
use std::sync::{Condvar, Mutex};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;

/// Where tests put header, data and status.
const HEADER: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STATUS: u64 = 0x1_8000;

const IN: u32 = v::VIRTIO_BLK_T_IN;
const OUT: u32 = v::VIRTIO_BLK_T_OUT;
const FLUSH: u32 = v::VIRTIO_BLK_T_FLUSH;
const OK: u8 = v::VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = v::VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = v::VIRTIO_BLK_S_UNSUPP as u8;

const SECTORS: u64 = 64;

/// A disk in memory, whose test sees each call, can hold it up, and can make it fail.
#[derive(Default)]
struct Memory {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// Calls that began, in order.
    calls: Vec<&'static str>,
    /// Calls wait until this is false.
    held: bool,
    /// The next call fails like this.
    failure: Option<io::ErrorKind>,
}

impl Memory {
    fn enter(&self, call: &'static str) -> io::Result<std::sync::MutexGuard<'_, State>> {
        let mut state = self.state.lock().unwrap();
        state.calls.push(call);
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |s| s.held).unwrap();
        state.failure.take().map_or(Ok(state), |kind| Err(kind.into()))
    }

    fn hold(&self, held: bool) {
        self.state.lock().unwrap().held = held;
        self.changed.notify_all();
    }

    fn calls(&self) -> Vec<&'static str> {
        self.state.lock().unwrap().calls.clone()
    }

    /// Waits until so many calls have begun.
    fn wait_for_calls(&self, count: usize) {
        drop(self.changed.wait_while(self.state.lock().unwrap(), |s| s.calls.len() < count).unwrap());
    }
}

impl Storage for Arc<Memory> {
    fn read(&self, mem: &GuestMemory, data: &[Segment], offset: u64) -> io::Result<()> {
        let state = self.enter("read")?;
        let end = offset as usize + queue::total(data) as usize;
        let bytes = state.bytes.get(offset as usize..end).ok_or(io::ErrorKind::InvalidInput)?;
        queue::write(mem, data, bytes);
        Ok(())
    }

    fn write(&self, mem: &GuestMemory, data: &[Segment], offset: u64) -> io::Result<()> {
        let mut state = self.enter("write")?;
        let end = offset as usize + queue::total(data) as usize;
        let bytes = state.bytes.get_mut(offset as usize..end).ok_or(io::ErrorKind::InvalidInput)?;
        queue::read(mem, data, bytes);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.enter("flush").map(drop)
    }
}

struct Bench {
    driver: Driver,
    disk: Arc<Memory>,
}

impl Bench {
    fn new(readonly: bool, wanted: u64) -> Self {
        let disk = Arc::new(Memory::default());
        disk.state.lock().unwrap().bytes = (0..SECTORS * SECTOR).map(|n| (n / SECTOR) as u8).collect();
        let mem = Driver::ram();
        let (engine, threads) = Engine::new(Box::new(disk.clone()), mem.clone(), QUEUE_SIZE.into()).unwrap();
        // They end with the process: an I/O thread has no other end.
        threads.into_iter().for_each(|thread| drop(std::thread::spawn(move || thread.run())));
        let block = Block::with_engine(readonly, SECTORS, "serial-7", engine);
        let mut driver = Driver::new(Box::new(block), mem);
        driver.wanted = wanted;
        driver.restart();
        Self { driver, disk }
    }

    fn put_header(&self, at: u64, kind: u32, sector: u64) {
        self.driver.put(at, &kind.to_le_bytes());
        self.driver.put(at + 4, &[0; 4]);
        self.driver.put(at + 8, &sector.to_le_bytes());
    }

    fn chain(&self, kind: u32, sector: u64, length: u32) -> Vec<Buffer> {
        self.put_header(HEADER, kind, sector);
        self.driver.put(STATUS, &[0xee]);
        let data = Buffer { address: DATA, length, write: kind != OUT };
        let all = [Buffer::readable(HEADER, 16), data, Buffer::writable(STATUS, 1)];
        all.into_iter().filter(|b| b.length > 0).collect()
    }

    /// A request there and back: the status, and the bytes written into the chain.
    fn request(&mut self, kind: u32, sector: u64, length: u32) -> (u8, u32) {
        let chain = self.chain(kind, sector, length);
        let (_, written) = self.driver.request(&chain);
        (self.driver.bytes(STATUS, 1)[0], written)
    }

    fn works(&mut self) {
        assert_eq!(self.request(IN, 5, 512), (OK, 513));
        assert_eq!(self.driver.bytes(DATA, 512), [5; 512]);
    }
}

fn bench() -> Bench {
    Bench::new(false, u64::MAX)
}

#[test]
fn what_was_written_is_read_back_and_nothing_else_changed() {
    let mut bench = bench();
    let sent: Vec<u8> = (0..2048).map(|n| (n % 253) as u8).collect();
    bench.driver.put(DATA, &sent);
    assert_eq!(bench.request(OUT, 10, 2048), (OK, 1));
    bench.driver.put(DATA, &[0; 2048]);
    assert_eq!(bench.request(IN, 10, 2048), (OK, 2049));
    assert_eq!(bench.driver.bytes(DATA, 2048), sent);
    for (sector, byte) in [(9, 9), (14, 14)] {
        bench.request(IN, sector, 512);
        assert_eq!(bench.driver.bytes(DATA, 512), [byte; 512]);
    }
}

#[test]
fn each_answer_is_one_interrupt_for_a_used_buffer() {
    let mut bench = bench();
    bench.works();
    assert_eq!(bench.driver.interrupts(), 1);
    assert_eq!(bench.driver.get(0x60), 1);
    bench.driver.set(0x64, 1);
    assert_eq!(bench.driver.get(0x60), 0);
    bench.works();
    assert_eq!(bench.driver.interrupts(), 1);
}

#[test]
fn a_flush_reaches_the_disk_after_the_writes_that_were_answered() {
    let mut bench = bench();
    bench.request(OUT, 0, 512);
    bench.request(OUT, 1, 512);
    assert_eq!(bench.request(FLUSH, 0, 0), (OK, 1));
    assert_eq!(bench.disk.calls(), ["write", "write", "flush"]);
}

#[test]
fn a_driver_that_knows_no_flush_gets_every_write_durable() {
    let mut bench = Bench::new(false, F_VERSION_1);
    assert_eq!(bench.request(OUT, 0, 512), (OK, 1));
    assert_eq!(bench.disk.calls(), ["write", "flush"]);
    bench.disk.state.lock().unwrap().failure = Some(io::ErrorKind::StorageFull);
    assert_eq!(bench.request(OUT, 0, 512), (IOERR, 1));
}

#[test]
fn a_read_only_disk_says_so_and_is_never_written() {
    let mut bench = Bench::new(true, u64::MAX);
    assert_ne!(bench.driver.offered() & 1 << v::VIRTIO_BLK_F_RO, 0);
    assert_eq!(bench.request(OUT, 0, 512), (IOERR, 1));
    assert_eq!(bench.disk.calls(), [] as [&str; 0]);
    bench.works();
    assert_eq!(self::bench().driver.offered() & 1 << v::VIRTIO_BLK_F_RO, 0);
}

#[test]
fn what_is_not_on_the_disk_cannot_be_reached() {
    let mut bench = bench();
    for kind in [IN, OUT] {
        for (sector, length) in [
            (SECTORS, 512),
            (SECTORS - 1, 1024),
            (u64::MAX, 512),
            (u64::MAX / 512 + 1, 512),
            (0, 100),
            (0, 0),
            (1 << 55, 512),
        ] {
            let (status, written) = bench.request(kind, sector, length);
            assert_eq!((status, written), (IOERR, 1), "{kind}: {sector}+{length}");
        }
    }
    assert_eq!(bench.disk.calls(), [] as [&str; 0]);
    assert_eq!(bench.request(IN, SECTORS - 1, 512), (OK, 513));
}

#[test]
fn a_request_of_an_unknown_kind_is_unsupported() {
    let mut bench = bench();
    for kind in [2, 3, 11, 13, 1 << 31, u32::MAX] {
        assert_eq!(bench.request(kind, 0, 512), (UNSUPP, 1), "{kind}");
    }
    bench.works();
}

#[test]
fn the_serial_number_is_twenty_bytes() {
    let mut bench = bench();
    assert_eq!(bench.request(v::VIRTIO_BLK_T_GET_ID, 0, 20), (OK, 21));
    assert_eq!(bench.driver.bytes(DATA, 20), b"serial-7\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(bench.request(v::VIRTIO_BLK_T_GET_ID, 0, 19), (IOERR, 1));
}

#[test]
fn the_configuration_tells_size_and_segments_and_zeros_behind() {
    let bench = bench();
    let mut config = [0xff; 64];
    bench.driver.transport.lock().unwrap().device.read_config(0, &mut config);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[12..16], 126u32.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[24..], [0; 40]);
    assert_eq!(bench.driver.get(0x100), SECTORS as u32);
    let mut far = [0xff; 8];
    bench.driver.transport.lock().unwrap().device.read_config(u64::MAX - 3, &mut far);
    assert_eq!(far, [0; 8]);
}

#[test]
fn a_full_host_disk_is_an_error_to_the_guest_and_nothing_worse() {
    let mut bench = bench();
    for kind in [OUT, IN, FLUSH] {
        bench.disk.state.lock().unwrap().failure = Some(io::ErrorKind::StorageFull);
        let length = if kind == FLUSH { 0 } else { 512 };
        assert_eq!(bench.request(kind, 0, length), (IOERR, 1));
    }
    assert!(!bench.driver.needs_reset());
    bench.works();
}

#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    let mut bench = bench();
    bench.put_header(HEADER, IN, 7);
    let chain = [
        Buffer::readable(HEADER, 3),
        Buffer::readable(HEADER + 3, 13),
        Buffer::writable(DATA, 1),
        Buffer::writable(DATA + 0x1000, 700),
        // The rest of two sectors, and the status.
        Buffer::writable(DATA + 0x2000, 1024 - 701 + 1),
    ];
    assert_eq!(bench.driver.request(&chain).1, 1025);
    assert_eq!(bench.driver.bytes(DATA, 1), [7]);
    assert_eq!(bench.driver.bytes(DATA + 0x1000 + 510, 2), [7, 8]);
    assert_eq!(bench.driver.bytes(DATA + 0x2000 + 1024 - 701 - 1, 2), [8, OK]);

    let sent = [Buffer::readable(HEADER, 15), Buffer::readable(HEADER + 15, 1 + 512), Buffer::writable(STATUS, 1)];
    bench.put_header(HEADER, OUT, 20);
    bench.driver.put(HEADER + 16, &[0xab; 512]);
    bench.driver.request(&sent);
    bench.request(IN, 20, 512);
    assert_eq!(bench.driver.bytes(DATA, 512), [0xab; 512]);
}

#[test]
fn a_request_without_header_or_status_stops_the_device_until_a_reset() {
    let mut bench = bench();
    for chain in [
        vec![Buffer::readable(HEADER, 15), Buffer::writable(STATUS, 1)],
        vec![Buffer::readable(HEADER, 16)],
        vec![Buffer::writable(STATUS, 1)],
    ] {
        bench.driver.submit(&chain);
        bench.driver.settle();
        assert!(bench.driver.needs_reset(), "{chain:?}");
        assert_eq!(bench.driver.get(0x60) & 2, 2, "the driver is told");
        bench.driver.restart();
        bench.works();
    }
}

/// CVE-2026-45782: a completion after a reset.
#[test]
fn a_reset_waits_for_what_a_thread_is_busy_with_and_drops_the_rest() {
    let mut bench = bench();
    bench.disk.hold(true);
    for n in 0..5 {
        bench.put_header(HEADER + 16 * n, IN, n);
        bench.driver.submit(&[
            Buffer::readable(HEADER + 16 * n, 16),
            Buffer::writable(DATA + 512 * n, 512),
            Buffer::writable(STATUS + n, 1),
        ]);
    }
    bench.driver.settle();
    bench.disk.wait_for_calls(2);
    bench.driver.set(VIRTIO_MMIO_STATUS, 0);
    assert_ne!(bench.driver.status(), 0, "two requests are inside the disk");
    bench.driver.set(VIRTIO_MMIO_STATUS, 1);
    assert_eq!(bench.driver.status(), 0xf, "in reset nothing is written");
    bench.driver.put(STATUS, &[0xee; 5]);
    bench.disk.hold(false);
    bench.driver.wait_turn();
    assert_eq!(bench.driver.used(), 0);
    bench.driver.reset();
    bench.driver.restart();
    bench.driver.settle();
    assert_eq!(bench.driver.bytes(STATUS, 5), [0xee; 5], "nothing of before is answered");
    assert_eq!(bench.driver.used(), 0);
    assert_eq!(bench.disk.calls().len(), 2, "what had not begun never does");
    bench.works();
}

#[test]
fn nothing_of_a_failed_device_is_begun_or_answered_later() {
    let mut bench = bench();
    bench.disk.hold(true);
    let chain = bench.chain(IN, 1, 512);
    let head = bench.driver.chain(&chain);
    (0..5).for_each(|_| bench.driver.offer(head));
    bench.driver.notify();
    bench.driver.settle();
    bench.disk.wait_for_calls(2);
    bench.driver.submit(&[Buffer::writable(0x3_0000, 1)]);
    bench.driver.settle();
    assert!(bench.driver.needs_reset());
    bench.disk.hold(false);
    bench.driver.wait_turn();
    assert_eq!((bench.driver.used(), bench.driver.bytes(STATUS, 1)), (0, vec![0xee]));
    bench.driver.restart();
    bench.works();
    assert_eq!(bench.disk.calls().len(), 3, "two that were under way, and the one of now");
}

#[test]
fn a_stalled_disk_blocks_neither_registers_nor_the_reactor() {
    let mut bench = bench();
    bench.disk.hold(true);
    let chain = bench.chain(IN, 5, 512);
    bench.driver.submit(&chain);
    bench.driver.settle();
    bench.disk.wait_for_calls(1);
    assert_eq!(bench.driver.get(0), 0x7472_6976);
    assert_eq!(bench.driver.status(), 0xf);
    assert_eq!(bench.request(v::VIRTIO_BLK_T_GET_ID, 0, 20), (OK, 21), "another request is answered");
    bench.disk.hold(false);
    assert_eq!(bench.driver.wait().1, 513);
}

#[test]
fn a_driver_that_offers_a_chain_again_and_again_has_bounded_requests_in_flight() {
    let mut bench = bench();
    bench.disk.hold(true);
    let chain = bench.chain(IN, 5, 512);
    let head = bench.driver.chain(&chain);
    let total = 3 * QUEUE_SIZE;
    for _ in 0..total / SIZE {
        (0..SIZE).for_each(|_| bench.driver.offer(head));
        bench.driver.notify();
        bench.driver.settle();
    }
    bench.disk.wait_for_calls(2);
    assert_eq!(bench.disk.calls().len(), 2, "two threads, two calls");
    bench.disk.hold(false);
    // Whatever the device had taken is answered; the rest was refused with the whole device, or answered as well.
    while bench.driver.used() < QUEUE_SIZE && !bench.driver.needs_reset() {
        bench.driver.wait();
    }
    bench.driver.restart();
    bench.works();
}

#[test]
fn many_requests_in_flight_are_each_answered_once() {
    let mut bench = bench();
    for round in 0..50u64 {
        for n in 0..5 {
            bench.put_header(HEADER + 16 * n, IN, (round + n) % SECTORS);
            let header = Buffer::readable(HEADER + 16 * n, 16);
            bench.driver.submit(&[header, Buffer::writable(DATA + 512 * n, 512), Buffer::writable(STATUS + n, 1)]);
        }
        let mut heads: Vec<u16> = (0..5).map(|_| bench.driver.wait().0).collect();
        heads.sort_unstable();
        heads.dedup();
        assert_eq!(heads.len(), 5);
        for n in 0..5 {
            assert_eq!(bench.driver.bytes(DATA + 512 * n, 512), [((round + n) % SECTORS) as u8; 512]);
        }
    }
    assert_eq!(bench.driver.used(), 250);
}
