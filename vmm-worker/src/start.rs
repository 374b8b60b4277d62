//! From an empty worker to a VM: what the spec says and the fds that came with it, turned into threads that wait for the
//! word to go.
//!
//! Runs on the main thread, beside the vCPUs' threads that make their vCPUs (`threads.rs`), under the start-up filter.
//! The spec and the fds come from the supervisor, which may be wrong; the contents of the files come from whoever owns
//! the VM. All of it is checked before it is used.

use crate::boot::{self, Sources};
use crate::devices::console::ConsoleEnds;
use crate::devices::{self, DeviceFds, Devices, EndHandler, PowerButton};
use crate::leave;
use crate::memory::{self, GuestMemory};
use crate::pause::Gate;
use crate::stats::{Exits, Meters};
use crate::threads::{Crew, Work};
use crate::vcpu::Board;
use crate::vm::{self, Offer};
use kvm_ioctls::VmFd;
use rustix::fs::{FileType, SealFlags, fcntl_get_seals, fstat};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;
use worker_api::{FdRole, Part, StartFailure, StartSpec, Timings, console};

/// A VM that can begin.
pub struct Machine {
    /// Its threads, prepared.
    pub crew: Crew,
    /// For the control thread.
    pub controls: Controls,
    /// Where the time went so far.
    pub timings: Timings,
    /// Measures the rest.
    pub clock: Clock,
    /// The VM itself: KVM forgets its irqfds when this is closed.
    pub vm: Arc<VmFd>,
}

/// What the control thread has of a VM that runs.
pub struct Controls {
    /// The guest's power button.
    pub power_button: PowerButton,
    /// For a supervisor that comes back.
    pub console: ConsoleEnds,
    /// Where vCPUs wait while the VM is paused.
    pub gate: Arc<Gate>,
    /// What the VM did so far.
    pub meters: Meters,
}

/// The fds of a start, by role.
struct Fds {
    kvm: OwnedFd,
    ram: OwnedFd,
    kernel: OwnedFd,
    initrd: Option<OwnedFd>,
    devices: DeviceFds,
}

/// Makes the VM.
///
/// # Errors
/// The part at fault and a sentence about it.
pub fn prepare(spec: &StartSpec, fds: Vec<OwnedFd>) -> Result<Machine, StartFailure> {
    spec.check().map_err(|detail| StartFailure { part: Part::Spec, detail })?;
    let fds = sort(spec, fds)?;
    let mut clock = Clock::start();
    let mut timings = Timings::default();
    let ram_bytes = u64::from(spec.memory_mib) << 20;

    let kvm = Arc::new(vm::kvm(fds.kvm)?);
    let memory = map_ram(fds.ram, ram_bytes)?;
    timings.memory += clock.lap();

    let end: EndHandler = Arc::new(|end| leave::after_answer(&end));
    let devices = devices::build(spec, fds.devices, memory, end.clone())?;
    timings.devices += clock.lap();

    let Devices { pio, mmio, reactor, irqs, ioevents, virtio, io_threads, power_button, console, disks, nets } =
        devices;
    let gate = Arc::<Gate>::default();
    let exits: Arc<[Exits]> = (0..spec.cpus).map(|_| Exits::default()).collect();
    let board = Board { pio: Arc::new(pio), mmio: Arc::new(mmio), end, gate: gate.clone(), exits: exits.clone() };
    let offer = spec.offer.as_ref().map(Offer::from_wire).transpose()?;
    let work = Work { cpus: spec.cpus, kvm: kvm.clone(), offer, reactor, io: io_threads, board };
    let crew = Crew::make(work).map_err(|e| StartFailure {
        part: Part::Thread,
        detail: format!("a thread cannot be made: {e}; the limit on threads or on memory is too low"),
    })?;
    timings.threads += clock.lap();

    let vm = Arc::new(vm::create(&kvm, memory)?);
    timings.memory += clock.lap();
    vm::create_interrupt_controllers(&vm)?;
    crew.give_vm(vm.clone());
    timings.vcpus += clock.lap();
    vm::wire(&vm, &irqs, &ioevents)?;
    timings.devices += clock.lap();

    let sources =
        Sources { kernel: fds.kernel, initrd: fds.initrd, cmdline: &spec.cmdline, cpus: spec.cpus, virtio: &virtio };
    let entry = boot::load(memory, ram_bytes, sources)?;
    timings.boot += clock.lap();
    crew.prepare(entry)?;
    timings.vcpus += clock.lap();
    let meters = Meters { vcpus: exits, disks, nets };
    let controls = Controls { power_button, console, gate, meters };
    Ok(Machine { crew, controls, timings, clock, vm })
}

/// The fds by their roles. Their number was checked by the channel.
fn sort(spec: &StartSpec, fds: Vec<OwnedFd>) -> Result<Fds, StartFailure> {
    let missing = || StartFailure { part: Part::Spec, detail: "file descriptors are missing".into() };
    let mut disks = Vec::with_capacity(spec.disks.len());
    let mut taps: Vec<Vec<OwnedFd>> = spec.nets.iter().map(|_| Vec::new()).collect();
    let [mut kvm, mut ram, mut ring, mut notify, mut input, mut kernel, mut initrd] = [const { None }; 7];
    for (role, fd) in spec.fd_roles().into_iter().zip(fds) {
        match role {
            FdRole::Kvm => kvm = Some(fd),
            FdRole::Ram => ram = Some(fd),
            FdRole::ConsoleRing => ring = Some(fd),
            FdRole::ConsoleNotify => notify = Some(fd),
            FdRole::ConsoleInput => input = Some(fd),
            FdRole::Kernel => kernel = Some(fd),
            FdRole::Initrd => initrd = Some(fd),
            FdRole::Disk(_) => disks.push(fd),
            FdRole::Tap { net, .. } => taps.get_mut(usize::from(net)).ok_or_else(missing)?.push(fd),
        }
    }
    if disks.len() != spec.disks.len() || initrd.is_some() != spec.initrd {
        return Err(missing());
    }
    let console_ring = ring.ok_or_else(missing)?;
    check_ring(&console_ring)?;
    let devices = DeviceFds {
        console_ring,
        console_notify: notify.ok_or_else(missing)?,
        console_input: input.ok_or_else(missing)?,
        disks,
        taps,
    };
    Ok(Fds {
        kvm: kvm.ok_or_else(missing)?,
        ram: ram.ok_or_else(missing)?,
        kernel: kernel.ok_or_else(missing)?,
        initrd,
        devices,
    })
}

/// The ring is mapped: one that shrinks would kill the worker by SIGBUS.
fn check_ring(ring: &OwnedFd) -> Result<(), StartFailure> {
    let good = fstat(ring).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && u64::try_from(stat.st_size) == Ok(console::RING_BYTES)
    }) && fcntl_get_seals(ring).is_ok_and(|seals| seals.contains(SealFlags::SHRINK | SealFlags::GROW));
    if good {
        return Ok(());
    }
    let detail = format!("the console's ring is not a sealed memfd of {} bytes", console::RING_BYTES);
    Err(StartFailure { part: Part::Console, detail })
}

/// Guest RAM lives as long as the process.
fn map_ram(fd: OwnedFd, bytes: u64) -> Result<&'static GuestMemory, StartFailure> {
    let mapped = memory::check_memfd(&fd, bytes).and_then(|()| memory::map(fd, bytes));
    Ok(Box::leak(Box::new(mapped.map_err(vm::VmError::from)?)))
}

/// Measures the stages of a start.
pub struct Clock {
    since: Instant,
}

impl Clock {
    fn start() -> Self {
        Clock { since: Instant::now() }
    }

    /// µs since the last lap, as [`Timings`] counts them.
    pub fn lap(&mut self) -> u32 {
        let now = Instant::now();
        let lap = u32::try_from((now - self.since).as_micros()).unwrap_or(u32::MAX);
        self.since = now;
        lap
    }
}
