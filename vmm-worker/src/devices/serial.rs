//! COM1: a 16550 whose output goes to the console ring and whose input comes from a pipe.
//!
//! Output runs on the vCPU thread that prints. Input runs on the reactor, and only as fast as the guest takes it: the
//! FIFO holds 64 bytes, the reactor 64 more, and while those are full the pipe is not watched, so that its writer is the
//! one who waits. (CVE-2020-27174 was an input buffer without a bound.) The pipe is open for writing here as well, so it does
//! not end when a supervisor goes; a pipe that does end is given up.

use super::console::ConsoleRing;
use crate::bus::{BusDevice, lock};
use crate::interrupt::Interrupt;
use crate::reactor::{ReactorError, Subscriber, Watches};
use rustix::fd::OwnedFd;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::sync::{Arc, Mutex};
use vm_superio::Serial;
use vm_superio::serial::{NoEvents, SerialState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes of the receive FIFO of `vm-superio`.
const FIFO: usize = 64;
/// The modem control register and its loopback bit.
const MODEM_CONTROL: u64 = 4;
const LOOPBACK: u8 = 1 << 4;

/// The port.
pub struct Com1 {
    uart: Serial<Interrupt, NoEvents, ConsoleRing>,
    /// What the guest sends comes back to it, and nothing else comes in.
    loopback: bool,
    /// The reactor holds bytes that found no room.
    waiting: bool,
    room: Arc<EventFd>,
}

impl Com1 {
    /// A port that prints to `ring`.
    ///
    /// # Errors
    /// What `eventfd2(2)` says.
    pub fn new(line: Interrupt, ring: ConsoleRing) -> std::io::Result<Self> {
        let room = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        // Born with a full FIFO that is drained at once: its buffer is as large as it will ever be, so that a guest in
        // loopback mode cannot make a vCPU thread allocate.
        let full = SerialState { in_buffer: vec![0; FIFO], ..SerialState::default() };
        let uart = Serial::from_state(&full, line, NoEvents, ring)
            .map_err(|e| std::io::Error::other(format!("the serial port cannot be made: {e:?}")))?;
        let mut port = Self { uart, loopback: false, waiting: false, room };
        for _ in 0..FIFO {
            port.uart.read(0);
        }
        Ok(port)
    }

    /// Puts as many of `bytes` into the FIFO as there is room for; a guest that wants interrupts gets one.
    fn offer(&mut self, bytes: &[u8]) -> usize {
        let taken = if self.loopback { 0 } else { self.uart.enqueue_raw_bytes(bytes).unwrap_or(0) };
        self.waiting = taken < bytes.len();
        taken
    }

    /// Calls the reactor back once the FIFO that was full is empty.
    fn call_back(&mut self) {
        if self.waiting && !self.loopback && self.uart.fifo_capacity() == FIFO {
            self.waiting = false;
            // Fails only where it was called already.
            let _ = self.room.write(1);
        }
    }
}

impl BusDevice for Com1 {
    /// All registers are one byte wide; a wider access is answered as by an empty port.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match data {
            [byte] => *byte = self.uart.read(offset as u8),
            _ => data.fill(0xff),
        }
        self.call_back();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [byte] = data {
            if offset == MODEM_CONTROL {
                self.loopback = byte & LOOPBACK != 0;
            }
            // A ring cannot fail, and a raise cannot either.
            let _ = self.uart.write(offset as u8, *byte);
        }
        self.call_back();
    }
}

const PIPE: u32 = 0;
const ROOM: u32 = 1;

/// Carries bytes from the pipe to the port.
pub struct ConsoleInput {
    port: Arc<Mutex<Com1>>,
    room: Arc<EventFd>,
    pipe: Arc<OwnedFd>,
    /// It has writers. Without them it is forgotten, and not closed: closing is a right that this thread does not have.
    open: bool,
    watched: bool,
    /// Read and not yet taken by the port: `held[first..last]`.
    held: [u8; FIFO],
    first: usize,
    last: usize,
}

impl ConsoleInput {
    /// From `pipe` to `port`. The pipe is made non-blocking: others may hold it too, and take what epoll has just told of.
    ///
    /// # Errors
    /// What F_GETFL or F_SETFL say.
    pub fn new(port: Arc<Mutex<Com1>>, pipe: Arc<OwnedFd>) -> Result<Self, Errno> {
        fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
        let room = lock(&port).room.clone();
        Ok(Self { port, room, pipe, open: true, watched: false, held: [0; FIFO], first: 0, last: 0 })
    }

    /// Reads once, and only when nothing is held.
    fn read(&mut self) {
        if self.first < self.last {
            return;
        }
        match rustix::io::read(&self.pipe, &mut self.held) {
            Ok(0) => self.open = false,
            Ok(count) => (self.first, self.last) = (0, count),
            Err(error) => self.open = matches!(error, Errno::INTR | Errno::AGAIN),
        }
    }

    /// Hands over what is held, and watches the pipe while there is room for more.
    fn hand_over(&mut self, watches: &mut dyn Watches) {
        self.first += lock(&self.port).offer(&self.held[self.first..self.last]);
        let wanted = self.open && self.first == self.last;
        let changed = match (self.watched, wanted) {
            (false, true) => watches.watch(&self.pipe, PIPE),
            (true, false) => watches.unwatch(&self.pipe),
            _ => return,
        };
        // The kernel is out of memory: the guest loses its input, not its life.
        self.open &= changed.is_ok();
        self.watched = wanted && self.open;
    }
}

impl Subscriber for ConsoleInput {
    fn register(&mut self, watches: &mut dyn Watches) -> Result<(), ReactorError> {
        watches.watch(&*self.room, ROOM)?;
        watches.watch(&self.pipe, PIPE)?;
        self.watched = true;
        Ok(())
    }

    fn process(&mut self, token: u32, watches: &mut dyn Watches) {
        match token {
            PIPE => self.read(),
            _ => drop(self.room.read()),
        }
        self.hand_over(watches);
    }
}

#[cfg(test)]
mod tests {
    use super::super::console::reader::Reader;
    use super::*;
    use crate::reactor::mock::MockReactor;
    use std::io::{PipeWriter, Write};
    use std::os::fd::AsRawFd;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;

    struct Bench {
        port: Arc<Mutex<Com1>>,
        line: Interrupt,
        console: Reader,
        input: ConsoleInput,
        writer: Option<PipeWriter>,
        reactor: MockReactor,
    }

    impl Bench {
        fn new() -> Self {
            let (pipe, writer) = std::io::pipe().unwrap();
            Self::on(pipe.into(), writer)
        }

        fn on(pipe: OwnedFd, writer: PipeWriter) -> Self {
            let (console, ring, notify) = Reader::new();
            let line = Interrupt::new().unwrap();
            let ring = ConsoleRing::new(Arc::new(ring.into()), Arc::new(notify)).unwrap();
            let port = Com1::new(line.clone(), ring).unwrap();
            let port = Arc::new(Mutex::new(port));
            let mut input = ConsoleInput::new(port.clone(), Arc::new(pipe)).unwrap();
            let mut reactor = MockReactor::new();
            input.register(&mut reactor).unwrap();
            Self { port, line, console, input, writer: Some(writer), reactor }
        }

        fn send(&mut self, bytes: &[u8]) {
            self.writer.as_mut().unwrap().write_all(bytes).unwrap();
        }

        /// Turns until nothing is ready, and says how many turns that took.
        fn settle(&mut self) -> usize {
            (0..10_000).find(|_| self.reactor.turn(&mut self.input).is_empty()).expect("the reactor spins")
        }

        fn register(&self, offset: u64) -> u8 {
            let mut byte = [0];
            self.port.lock().unwrap().read(offset, &mut byte);
            byte[0]
        }

        fn set(&self, offset: u64, value: u8) {
            self.port.lock().unwrap().write(offset, &[value]);
        }

        /// What the guest reads until the line status says that there is no more.
        fn drain(&self) -> Vec<u8> {
            std::iter::from_fn(|| (self.register(LINE_STATUS) & 1 != 0).then(|| self.register(DATA))).collect()
        }
    }

    #[test]
    fn what_the_guest_prints_reaches_the_ring() {
        let bench = Bench::new();
        for byte in b"boot" {
            bench.set(DATA, *byte);
        }
        assert_eq!(bench.console.written(), 4);
        assert_eq!(bench.console.bytes(0, 4), b"boot");
        assert_eq!(bench.register(LINE_STATUS), 0x60, "ready for more, nothing received");
    }

    #[test]
    fn a_guest_without_interrupts_finds_its_input_in_the_fifo() {
        let mut bench = Bench::new();
        bench.send(b"ls\n");
        bench.settle();
        assert!(bench.line.eventfd().read().is_err());
        assert_eq!(bench.drain(), b"ls\n");
    }

    #[test]
    fn a_guest_with_interrupts_gets_one_for_its_input() {
        let mut bench = Bench::new();
        bench.set(INTERRUPT_ENABLE, 1);
        bench.send(b"ls\n");
        bench.settle();
        assert_eq!(bench.line.eventfd().read().unwrap(), 1);
        assert_eq!(bench.drain(), b"ls\n");
    }

    /// CVE-2020-27174.
    #[test]
    fn serial_input_that_the_guest_does_not_read_is_bounded() {
        let mut bench = Bench::new();
        let sent: Vec<u8> = (0..2000).map(|n| (n % 253) as u8).collect();
        bench.send(&sent);
        let turns = bench.settle();
        assert!(turns <= 4, "{turns} turns: the reactor spins on input that nobody takes");
        let waiting = rustix::io::ioctl_fionread(&bench.input.pipe).unwrap();
        assert_eq!(waiting, 2000 - 2 * FIFO as u64, "64 bytes in the FIFO, 64 held, the rest stays in the pipe");
        let mut received = Vec::new();
        while received.len() < sent.len() {
            let bytes = bench.drain();
            assert!(!bytes.is_empty(), "stuck after {}", received.len());
            received.extend(bytes);
            bench.settle();
        }
        assert_eq!(received, sent);
    }

    #[test]
    fn a_guest_in_loopback_mode_gets_its_input_afterwards() {
        let mut bench = Bench::new();
        bench.set(MODEM_CONTROL, LOOPBACK);
        bench.send(b"x");
        bench.settle();
        for _ in 0..3 * FIFO {
            bench.set(DATA, b'o');
        }
        assert_eq!(bench.drain(), [b'o'; FIFO]);
        bench.set(MODEM_CONTROL, 0);
        bench.settle();
        assert_eq!(bench.drain(), b"x");
        assert_eq!(bench.console.written(), 0);
    }

    #[test]
    fn a_pipe_whose_writer_is_gone_is_given_up_and_printing_goes_on() {
        let mut bench = Bench::new();
        bench.send(b"last");
        bench.writer = None;
        assert!(bench.settle() <= 3);
        assert!(!bench.input.watched);
        assert_eq!(bench.drain(), b"last");
        bench.set(DATA, b'!');
        assert_eq!(bench.console.bytes(0, 1), b"!");
    }

    /// As the supervisor makes it: the worker's end can be written as well.
    #[test]
    fn a_pipe_without_another_writer_than_the_port_itself_never_ends() {
        let (pipe, writer) = std::io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
        let both = std::fs::File::options().read(true).write(true).open(path).unwrap();
        drop(pipe);
        let mut bench = Bench::on(both.into(), writer);
        bench.send(b"one");
        bench.writer = None;
        assert!(bench.settle() <= 3);
        assert_eq!(bench.drain(), b"one");
        // Another supervisor, through the port's own end.
        rustix::io::write(&bench.input.pipe, b"two").unwrap();
        assert!(bench.settle() <= 2);
        assert_eq!(bench.drain(), b"two");
        assert!(bench.input.open && bench.input.watched);
    }

    #[test]
    fn input_that_somebody_else_took_first_is_not_waited_for() {
        let mut bench = Bench::new();
        // As if epoll had told of bytes that are gone by now.
        bench.input.process(PIPE, &mut bench.reactor);
        assert!(bench.input.open && bench.input.watched);
        bench.send(b"x");
        bench.settle();
        assert_eq!(bench.drain(), b"x");
    }

    #[test]
    fn a_wide_access_to_a_narrow_port_changes_nothing() {
        let bench = Bench::new();
        bench.port.lock().unwrap().write(DATA, b"ab");
        assert_eq!(bench.console.written(), 0);
        let mut wide = [0; 4];
        bench.port.lock().unwrap().read(DATA, &mut wide);
        assert_eq!(wide, [0xff; 4]);
    }
}
