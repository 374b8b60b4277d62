//! What runs on a vCPU thread never allocates: the filter of those threads has no way to get memory, so an allocation
//! that has to grow the heap would kill the VM, at a time of the guest's choosing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vm_memory::GuestAddress;
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

fn devices() -> Devices {
    let disk = DiskSpec { readonly: false, serial: "s".into(), engine: Engine::Threads };
    let spec = StartSpec {
        cpus: 1,
        memory_mib: 32,
        initrd: false,
        cmdline: String::new(),
        disks: vec![disk],
        nets: Vec::new(),
        offer: None,
    };
    let notify = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let fds = DeviceFds {
        console_ring: memfd(console::RING_BYTES),
        console_notify: notify,
        console_input: std::io::pipe().unwrap().0.into(),
        disks: vec![memfd(1 << 20)],
        taps: Vec::new(),
    };
    let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    devices::build(&spec, fds, &mem, Arc::new(|_| ())).unwrap()
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
    let devices = devices();
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
    let devices = devices();
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
