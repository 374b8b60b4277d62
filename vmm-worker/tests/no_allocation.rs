//! What runs on a vCPU thread never allocates: the filter of those threads has no way to get memory, so an allocation
//! that has to grow the heap would kill the VM, at a time of the guest's choosing. Nor does the reactor for a packet, for
//! the sake of speed.

mod tap;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};
use vmm_worker::devices::{self, DeviceFds, Devices, layout};
use vmm_worker::memory::GuestMemory;
use worker_api::{DiskSpec, Engine, StartSpec, console};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is handed to the system's allocator as it came; the count is a thread-local without a destructor
// and without an initialiser that could allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's contract is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(body: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    body();
    ALLOCATIONS.get() - before
}

fn memfd(bytes: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, bytes).unwrap();
    fd
}

/// A disk, an interface on `tap` where there is one, and the entropy device.
fn devices(tap: Option<OwnedFd>, mem: &GuestMemory) -> Devices {
    let disk = DiskSpec { readonly: false, serial: "s".into(), engine: Engine::Threads };
    let spec = StartSpec {
        cpus: 1,
        memory_mib: 32,
        initrd: false,
        cmdline: String::new(),
        disks: vec![disk],
        nets: tap.iter().map(|_| tap::lease()).collect(),
        offer: None,
    };
    let notify = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let fds = DeviceFds {
        console_ring: memfd(console::RING_BYTES),
        console_notify: notify,
        console_input: std::io::pipe().unwrap().0.into(),
        disks: vec![memfd(1 << 20)],
        taps: tap.into_iter().map(|tap| vec![tap]).collect(),
    };
    devices::build(&spec, fds, mem, Arc::new(|_| ())).unwrap()
}

fn ram() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

/// `/dev/net/tun` before it is a TAP: registers do not know the difference.
fn tun(test: &str) -> Option<OwnedFd> {
    tap::open_tun()
        .map_err(|error| println!("SKIPPED {test}, of network interfaces: /dev/net/tun: {error}"))
        .ok()
        .map(OwnedFd::from)
}

/// From reset to a running queue and a notification, as a driver does it.
fn start(devices: &Devices, base: u64) {
    let set = |register: u64, value: u32| devices.mmio.write(base + register, &value.to_le_bytes());
    for (register, value) in [
        (0x70, 0),
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 0xb),
        (0x38, 16),
        (0x80, 0x1000),
        (0x90, 0x2000),
        (0xa0, 0x3000),
        (0x44, 1),
        (0x70, 0xf),
        (0x50, 0),
    ] {
        set(register, value);
    }
    let mut status = [0; 4];
    devices.mmio.read(base + 0x70, &mut status);
    assert_eq!(u32::from_le_bytes(status), 0xf, "the device runs");
}

#[test]
fn an_allocation_would_be_counted() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(7)))), 1);
}

#[test]
fn no_register_of_a_virtio_device_allocates() {
    let devices = devices(tun("no_register_of_a_virtio_device_allocates"), &ram());
    for slot in &devices.virtio {
        let count = allocations(|| {
            for _ in 0..3 {
                start(&devices, slot.base);
                for register in (0..0x140).step_by(4) {
                    devices.mmio.read(slot.base + register, &mut [0; 4]);
                    devices.mmio.write(slot.base + register, &[0xff; 4]);
                }
                // A queue that is refused.
                for (register, value) in
                    [(0x70, 0), (0x70, 1), (0x70, 3), (0x20, 1), (0x70, 0xb), (0xa0, 3), (0x44, 1u32)]
                {
                    devices.mmio.write(slot.base + register, &value.to_le_bytes());
                }
            }
        });
        assert_eq!(count, 0, "window {:#x}", slot.base);
    }
}

#[test]
fn no_port_allocates() {
    let devices = devices(None, &ram());
    let count = allocations(|| {
        for value in 0..=255 {
            for port in (layout::COM1_PORT..layout::COM1_PORT + layout::COM1_SIZE)
                .chain(layout::I8042_PORT..layout::I8042_PORT + layout::I8042_SIZE)
                .chain(layout::POWER_PORT..layout::POWER_PORT + layout::POWER_SIZE)
            {
                devices.pio.write(port, &[value]);
                devices.pio.read(port, &mut [0]);
            }
        }
        // Loopback: what is sent fills the receive FIFO.
        devices.pio.write(layout::COM1_PORT + 3, &[0]);
        devices.pio.write(layout::COM1_PORT + 4, &[0x10]);
        for _ in 0..1000 {
            devices.pio.write(layout::COM1_PORT, b"x");
        }
    });
    assert_eq!(count, 0);
}

/// Rings of 16 descriptors: where those of queue `n` are.
fn rings(queue: u64) -> [u64; 3] {
    [0x1000, 0x2000, 0x3000].map(|at| at + queue * 0x1_0000)
}

/// Sets up both queues of the interface at `base`, with a chain of one buffer in each place, of `length` bytes from
/// `buffer(queue, n)` on.
fn start_interface(devices: &Devices, base: u64, mem: &GuestMemory) {
    let set = |register: u64, value: u32| devices.mmio.write(base + register, &value.to_le_bytes());
    for (register, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 0xb)] {
        set(register, value);
    }
    for queue in 0..2 {
        let [descriptors, available, used] = rings(queue);
        for n in 0..16 {
            let at = GuestAddress(descriptors + 16 * n);
            mem.write_obj(buffer(queue, n), at).unwrap();
            let (length, flags) = if queue == 0 { (2048u64, 2u64) } else { (12 + 60, 0) };
            mem.write_obj(length | flags << 32, GuestAddress(at.0 + 8)).unwrap();
            mem.write_obj(n as u16, GuestAddress(available + 4 + 2 * n)).unwrap();
        }
        for (register, value) in [
            (0x30, queue as u32),
            (0x38, 16),
            (0x80, descriptors as u32),
            (0x90, available as u32),
            (0xa0, used as u32),
            (0x44, 1),
        ] {
            set(register, value);
        }
    }
    set(0x70, 0xf);
}

fn buffer(queue: u64, n: u64) -> u64 {
    0x8_0000 + queue * 0x1_0000 + n * 2048
}

/// Makes all chains up to number `index` available, and turns the reactor until the device has used so many.
fn exchange(devices: &mut Devices, base: u64, mem: &GuestMemory, queue: u64, index: u16, until: u16) {
    let [_, available, used] = rings(queue);
    mem.write_obj(index, GuestAddress(available + 2)).unwrap();
    devices.mmio.write(base + 0x50, &(queue as u32).to_le_bytes());
    while mem.read_obj::<u16>(GuestAddress(used + 2)).unwrap() != until {
        devices.reactor.turn().unwrap();
    }
}

#[test]
fn no_packet_allocates() {
    tap::in_own_network("no_packet_allocates", || {
        let (tap, mem) = (tap::tap(true), ram());
        tap::ip("addr add 10.77.0.1/24 dev t0");
        std::fs::write("/proc/sys/net/ipv6/conf/t0/disable_ipv6", "1").unwrap();
        tap::ip("link set t0 up");
        tap::ip("neigh add 10.77.0.5 lladdr 02:76:6d:00:00:05 dev t0 nud permanent");
        let mut devices = devices(Some(tap.into()), &mem);
        let base = devices.virtio[1].base;
        start_interface(&devices, base, &mem);
        // To nobody that the host would answer.
        let frame: [u8; 60] = std::array::from_fn(|n| if n < 6 { 0xff } else { n as u8 });
        (0..16).for_each(|n| mem.write_slice(&frame, GuestAddress(buffer(1, n) + 12)).unwrap());
        let socket = std::net::UdpSocket::bind("10.77.0.1:0").unwrap();
        // The first packet: watching the TAP takes memory.
        socket.send_to(b"hello", "10.77.0.5:7").unwrap();
        exchange(&mut devices, base, &mem, 0, 16, 1);
        exchange(&mut devices, base, &mem, 1, 1, 1);
        for packet in 2..=10 {
            socket.send_to(b"hello", "10.77.0.5:7").unwrap();
            let count = allocations(|| {
                exchange(&mut devices, base, &mem, 0, 16, packet);
                exchange(&mut devices, base, &mem, 1, packet, packet);
            });
            assert_eq!(count, 0, "packet {packet}");
        }
        let counted = devices.nets[0].snapshot();
        assert_eq!((counted.received_packets, counted.sent_packets), (10, 10), "{counted:?}");
        // The host left the checksum to its card, and this driver takes none that is not complete.
        let mut packet = [0; 12 + 14 + 20 + 8 + 5];
        mem.read_slice(&mut packet, GuestAddress(buffer(0, 9))).unwrap();
        let (ip, udp) = (&packet[26..46], &packet[46..]);
        let pseudo = [&ip[12..20], &[0, 17, 0, 13], udp, &[0]].concat();
        let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((&udp[8..], (sum >> 16) + (sum & 0xffff)), (&b"hello"[..], 0xffff), "{packet:?}");
    });
}
