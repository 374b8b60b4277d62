//! What supervisor and worker say to each other: types only, and the layout of the console ring that both see.
//!
//! The worker listens, confined and empty; the supervisor connects and sends one [`Request::Start`] with the fds of
//! [`StartSpec::fd_roles`]. To the worker the spec is checked by [`StartSpec::check`] again: it may come from a
//! supervisor that is wrong. To the supervisor all that comes back is an allegation.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use serde::{Deserialize, Serialize};

pub mod console;
mod net;
mod stats;
pub use net::{DNS_MAX, HOSTNAME_MAX, MTU, NET_QUEUES_MAX, NetCounters, NetSpec};
pub use stats::{DiskCounters, LATENCY_BUCKET_US, LATENCY_BUCKETS, Latency, Stats, VcpuCounters};

/// Name of the protocol in the opening handshake.
pub const NAME: &str = "vmsup-worker";
/// Version of the protocol in the opening handshake.
pub const VERSION: u16 = 2;
/// The most vCPUs of one VM.
pub const CPUS_MAX: u8 = 32;
/// The most disks of one VM.
pub const DISKS_MAX: usize = 8;
/// The most network interfaces of one VM.
pub const NETS_MAX: usize = 4;
/// The longest kernel command line, bytes without the closing NUL (x86 COMMAND_LINE_SIZE is 2048 with it).
pub const CMDLINE_MAX: usize = 2047;
/// The longest serial number of a disk, bytes (virtio 1.2, 5.2.6.1: VIRTIO_BLK_ID_BYTES).
pub const SERIAL_MAX: usize = 20;
/// The most CPUID entries of an [`Offer`] (KVM_MAX_CPUID_ENTRIES).
pub const CPUID_MAX: usize = 256;
/// The most guest memory, MiB (1 TiB).
pub const MEMORY_MIB_MAX: u32 = 1024 * 1024;
/// The least guest memory, MiB: a PVH guest is linked at 16 MiB.
pub const MEMORY_MIB_MIN: u32 = 20;

/// A VM as the worker sees it. The files are the fds that travel with it, in the order of [`StartSpec::fd_roles`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartSpec {
    /// How many vCPUs, 1 to [`CPUS_MAX`].
    pub cpus: u8,
    /// Guest RAM, MiB; the memfd has exactly this size.
    pub memory_mib: u32,
    /// An initrd comes along.
    pub initrd: bool,
    /// Kernel command line, without NUL.
    pub cmdline: String,
    /// The disks, in the order in which the guest finds them.
    pub disks: Vec<DiskSpec>,
    /// The network interfaces, in the order in which the guest finds them.
    pub nets: Vec<NetSpec>,
    /// What an empty worker said before that KVM offers on this host; without it this worker asks for itself.
    pub offer: Option<Offer>,
}

/// What KVM offers to every vCPU of this host. Asking is slow where the host is virtual itself, so the supervisor asks one
/// worker, while it is empty and nothing of a guest's has reached it, and tells the others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// KVM_GET_SUPPORTED_CPUID: function, index, flags, eax, ebx, ecx, edx; at most [`CPUID_MAX`].
    pub cpuid: Vec<[u32; 7]>,
    /// The in-kernel local APIC's timer has a TSC deadline mode.
    pub tsc_deadline: bool,
}

impl Offer {
    /// Checks what the types do not hold. Both sides do: to the supervisor the answer of a worker is an allegation, which
    /// would otherwise go into every start from then on.
    ///
    /// # Errors
    /// One sentence without a final full stop, naming the field.
    pub fn check(&self) -> Result<(), String> {
        if self.cpuid.len() > CPUID_MAX {
            return Err(format!("offer: {} CPUID entries, where {CPUID_MAX} are possible", self.cpuid.len()));
        }
        Ok(())
    }
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The guest may not write; the fd is open for reading only as well.
    pub readonly: bool,
    /// What the guest reads as the disk's serial number, at most [`SERIAL_MAX`] bytes of printable ASCII.
    pub serial: String,
    /// Who does the I/O.
    pub engine: Engine,
}

/// Who does a disk's I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Engine {
    /// A small pool of threads with `preadv` and `pwritev`.
    Threads,
}

/// What an fd of [`Request::Start`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FdRole {
    /// `/dev/kvm`, read and write.
    Kvm,
    /// Guest RAM: a memfd sealed against resizing.
    Ram,
    /// The console's ring: a memfd of [`console::RING_BYTES`], sealed against resizing.
    ConsoleRing,
    /// Eventfd that the worker writes when the ring has news and its reader had caught up.
    ConsoleNotify,
    /// A pipe, open for reading and writing: what the guest gets on its serial port. The worker only reads; since it holds the
    /// other end as well, the pipe never hangs up, and a supervisor that comes back gets it again ([`Request::Console`]).
    ConsoleInput,
    /// The kernel image, read only.
    Kernel,
    /// The initrd, read only.
    Initrd,
    /// Disk number n, a regular file or a block device.
    Disk(u8),
    /// A queue of a network interface's TAP.
    Tap {
        /// Number of the interface.
        net: u8,
        /// Number of the queue.
        queue: u8,
    },
}

impl StartSpec {
    /// The fds that travel with this spec, in order.
    pub fn fd_roles(&self) -> Vec<FdRole> {
        use FdRole::*;
        let mut roles = vec![Kvm, Ram, ConsoleRing, ConsoleNotify, ConsoleInput, Kernel];
        if self.initrd {
            roles.push(Initrd);
        }
        roles.extend((0..self.disks.len().min(DISKS_MAX)).map(|n| Disk(n as u8)));
        for (net, spec) in (0..).zip(self.nets.iter().take(NETS_MAX)) {
            roles.extend((0..spec.queues.min(NET_QUEUES_MAX)).map(|queue| Tap { net, queue }));
        }
        roles
    }

    /// Checks what the types do not hold.
    ///
    /// # Errors
    /// One sentence without a final full stop, naming the field.
    pub fn check(&self) -> Result<(), String> {
        if self.cpus == 0 || self.cpus > CPUS_MAX {
            return Err(format!("cpus: {} vCPUs, where 1 to {CPUS_MAX} are possible", self.cpus));
        }
        if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&self.memory_mib) {
            return Err(format!(
                "memory_mib: {} MiB, where {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX} are possible",
                self.memory_mib
            ));
        }
        if self.cmdline.len() > CMDLINE_MAX || self.cmdline.contains('\0') {
            return Err(format!("boot.cmdline: more than {CMDLINE_MAX} bytes, or a NUL"));
        }
        if self.disks.len() > DISKS_MAX {
            return Err(format!("disks: {} disks, where {DISKS_MAX} are possible", self.disks.len()));
        }
        if self.nets.len() > NETS_MAX {
            return Err(format!("nets: {} interfaces, where {NETS_MAX} are possible", self.nets.len()));
        }
        for (n, net) in self.nets.iter().enumerate() {
            net.check().map_err(|why| format!("nets[{n}].{why}"))?;
        }
        self.offer.as_ref().map_or(Ok(()), Offer::check)?;
        for (n, disk) in self.disks.iter().enumerate() {
            if disk.serial.len() > SERIAL_MAX || !disk.serial.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(format!("disks[{n}].serial: more than {SERIAL_MAX} bytes, or not printable ASCII"));
            }
        }
        Ok(())
    }
}

/// From the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// What does KVM offer? Carries `/dev/kvm`. Before `Start`; answered by `Offer`.
    Offer,
    /// Be this VM. Once, as the first request; answered by `Started` or `Failed`, after which the worker leaves.
    Start(StartSpec),
    /// Press the guest's power button. Answered by `Done`.
    PowerButton,
    /// How far is it? Answered by `Status`, at any time.
    Status,
    /// Stop all vCPUs. Answered by `Done` once none of them runs; done already is done.
    Pause,
    /// Let the vCPUs go on. Answered by `Done`; done already is done.
    Resume,
    /// The console's ends, for a supervisor that comes back. Answered by `Console`.
    Console,
    /// What did vCPUs and devices do? Answered by `Stats`.
    Stats,
}

impl ipc::Message for Request {
    const MAX_BYTES: usize = 16 * 1024;
    fn fd_count(&self) -> usize {
        match self {
            Request::Start(spec) => spec.fd_roles().len(),
            Request::Offer => 1,
            Request::PowerButton
            | Request::Status
            | Request::Pause
            | Request::Resume
            | Request::Console
            | Request::Stats => 0,
        }
    }
}

/// From the worker: one for each request, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// What KVM offers on this host.
    Offer(Offer),
    /// The vCPUs run, every thread is under its own filter.
    Started(Timings),
    /// There will be no VM; the worker leaves.
    Failed(StartFailure),
    /// The request was carried out.
    Done,
    /// How far the worker is.
    Status(Status),
    /// Carries ring, notify eventfd and input pipe, in this order.
    Console,
    /// What vCPUs and devices did so far.
    Stats(Box<Stats>),
}

impl ipc::Message for Reply {
    const MAX_BYTES: usize = 32 * 1024;
    const MAX_FDS: usize = 3;
    fn fd_count(&self) -> usize {
        if matches!(self, Reply::Console) { 3 } else { 0 }
    }
}

/// How far a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It was given no VM yet.
    Empty,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs were stopped by [`Request::Pause`].
    Paused,
}

/// Where a start's time went, µs each, as the worker's main thread saw it (the vCPUs are made beside the rest).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// RAM mapped, VM made, memslots set.
    pub memory: u32,
    /// irqchip, vCPUs.
    pub vcpus: u32,
    /// Devices and their eventfds.
    pub devices: u32,
    /// Kernel, initrd and tables in guest RAM.
    pub boot: u32,
    /// Threads made and narrowed to their filters.
    pub threads: u32,
}

/// Why a worker could not become the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// What was at fault.
    pub part: Part,
    /// One sentence without a final full stop.
    pub detail: String,
}

/// The part of a VM that an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// The spec itself.
    Spec,
    /// The host's KVM.
    Kvm,
    /// Guest RAM.
    Memory,
    /// The kernel image.
    Kernel,
    /// The initrd.
    Initrd,
    /// The kernel command line.
    Cmdline,
    /// Disk number n.
    Disk(u8),
    /// Network interface number n.
    Net(u8),
    /// The console.
    Console,
    /// A thread or its filter.
    Thread,
}

/// A worker's exit statuses. An allegation like all that a worker says: it concerns its own VM only.
pub mod exit {
    /// The guest switched itself off.
    pub const SHUTDOWN: i32 = 0;
    /// The guest asked for a reset.
    pub const RESET: i32 = 10;
    /// The guest cannot go on (triple fault, an exit that KVM could not handle); the last words say why.
    pub const CRASH: i32 = 20;
    /// It could not become the VM; `Failed` or the last words say why.
    pub const FAILED: i32 = 30;
    /// It was empty, and the jailer that it waited for is gone.
    pub const ORPHANED: i32 = 40;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_bounded_by_itself_and_in_a_spec() {
        let offer = |entries| Offer { cpuid: vec![[u32::MAX; 7]; entries], tsc_deadline: true };
        let spec = |offer| StartSpec {
            cpus: 1,
            memory_mib: 32,
            initrd: false,
            cmdline: String::new(),
            disks: Vec::new(),
            nets: Vec::new(),
            offer: Some(offer),
        };
        assert_eq!(offer(CPUID_MAX).check(), Ok(()));
        assert_eq!(spec(offer(CPUID_MAX)).check(), Ok(()));
        assert!(offer(CPUID_MAX + 1).check().is_err());
        assert!(spec(offer(CPUID_MAX + 1)).check().is_err());
    }
}
