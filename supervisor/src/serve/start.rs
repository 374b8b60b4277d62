//! A start, step by step: files, worker, leases, hand-over. Each step owns what it made; dropping it is its undo (fds close,
//! locks go, a worker that nobody holds is killed), so a start that fails anywhere leaves nothing.

use super::Context;
use super::console::{Console, WorkerEnds};
use super::fault::{self, Step};
use super::files::GuestFiles;
use super::jail::{Held, MakeError};
use super::memfd;
use super::nets::{self, Interfaces, Taps};
use super::provide::{self, Source};
use super::refusals::{internal, no_worker, refused, unavailable};
use super::starts::Turn;
use super::worker::{Control, ControlError};
use crate::api::types::{ApiError, ErrorCode};
use crate::guestfile;
use crate::spec::{DiskEngine, Enforce, Limits, VmSpec};
use jail_spec::{CgroupLimits, Rlimits};
use netd_api::VmId;
use rustix::fs::{CWD, Mode, OFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use worker_api::{DiskSpec, Engine, FdRole, StartSpec, Timings, console};

/// How long the steps of a start, and questions to a worker, may take.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// The files are opened. A file system that hangs holds a thread of ours, not the VM's name.
    pub files: Duration,
    /// The jailer makes a worker.
    pub make: Duration,
    /// A worker comes from its spec to its running vCPUs.
    pub start: Duration,
    /// A worker says what its vCPUs and devices did.
    pub stats: Duration,
    /// A worker says how far it is, or stops its vCPUs, or lets them go on.
    pub control: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            files: Duration::from_secs(30),
            make: Duration::from_secs(10),
            start: Duration::from_secs(10),
            stats: Duration::from_secs(2),
            control: Duration::from_secs(5),
        }
    }
}

/// How long a worker that hung up may take to end by itself.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Threads beyond those that are counted: the engines' own helpers.
const SPARE_THREADS: u32 = 8;
/// Address space of a worker's own: its program, its heap, and room for what it reads.
const OWN_SPACE: u64 = 32 << 20;
/// Address space of one thread: its stack with guard pages, a vCPU's shared page.
const THREAD_SPACE: u64 = 1 << 20;
/// RLIMIT_MEMLOCK: no engine of this release locks memory; the kernel's own small uses stay possible.
const MEMLOCK: u64 = 64 << 10;

/// A worker and what it is to be given.
#[derive(Debug)]
pub struct Prepared {
    /// The worker, empty.
    pub held: Held,
    /// What goes to it.
    pub parcel: Parcel,
    /// The supervisor's ends.
    pub console: Arc<Console>,
    /// Its network interfaces, without what goes to the worker.
    pub nets: Interfaces,
    /// When each step was done.
    pub stages: Stages,
}

/// What goes to a worker.
#[derive(Debug)]
pub struct Parcel {
    spec: StartSpec,
    ram: OwnedFd,
    console: WorkerEnds,
    /// Its kernel among them, also that of a built-in guest.
    files: GuestFiles,
    taps: Taps,
    /// The fields that name these files, and the paths, for messages.
    paths: Vec<(String, String)>,
    /// Among the starts that are under way.
    _place: Arc<Turn>,
}

/// Where the time of a start went.
#[derive(Debug, Clone, Copy)]
pub struct Stages {
    begun: Instant,
    files: Instant,
    made: Instant,
    leased: Instant,
}

/// Opens the files, gets a worker, and leases the network interfaces of VM number `id`, which is `owner`'s: all at the same time.
///
/// # Errors
/// What the client is told.
pub async fn prepare(
    context: &Context,
    id: VmId,
    owner: u32,
    spec: &VmSpec,
    source: Source,
) -> Result<Prepared, ApiError> {
    let begun = Instant::now();
    let place = context.starts.turn(owner).await.ok_or_else(|| internal("no places for starts"))?;
    let place = Arc::new(place);
    // First, so that netd works while we do.
    let leasing = nets::lease(context, id, spec, place.clone());
    let leasing = async { leasing.await.map(|nets| (nets, Instant::now())) };
    let making = make(context, spec, source, place);
    // Whichever fails first gives up the other: a worker that is not taken is killed, a lease is released.
    let ((mut nets, leased), (held, console, mut parcel, files, made)) = tokio::try_join!(leasing, making)?;
    fault::passable(Step::StartLeased)?;
    parcel.taps = std::mem::take(&mut nets.taps);
    parcel.spec.nets = std::mem::take(&mut nets.specs);
    // vmjson::check and netd's client have looked at all of it: what is left is a defect, but not one for a worker.
    parcel.spec.check().map_err(|message| ApiError { code: ErrorCode::Invalid, message, field: None })?;
    Ok(Prepared { held, parcel, console, nets, stages: Stages { begun, files, made, leased } })
}

/// Opens the files and gets a worker. Says when each was done.
async fn make(
    context: &Context,
    spec: &VmSpec,
    source: Source,
    place: Arc<Turn>,
) -> Result<(Held, Arc<Console>, Parcel, Instant, Instant), ApiError> {
    let limits = spec.limits.as_ref().map(cgroup_limits);
    // Without files there is nothing to wait for: the jailer works while we make the memfds.
    let early = if GuestFiles::any(spec) { None } else { Some(context.jail.make(limits, rlimits(spec, 0)).await) };
    let files = match tokio::time::timeout(context.deadlines.files, provide::open(context, spec, source)).await {
        Ok(files) => files?,
        Err(_) => return Err(unavailable("the VM's files could not be opened in time; is their file system there?")),
    };
    fault::passable(Step::StartFiles)?;
    let pending = match early {
        Some(pending) => pending,
        None => context.jail.make(limits, rlimits(spec, files.largest_writable)).await,
    };
    let (console, parcel) = parcel(context, spec, files, place)?;
    let files = Instant::now();
    let held = match tokio::time::timeout(context.deadlines.make, pending).await {
        Ok(Ok(Ok(held))) => held,
        Ok(Ok(Err(error))) => return Err(no_worker(error)),
        Ok(Err(_)) => return Err(no_worker(MakeError::Gone)),
        Err(_) => return Err(unavailable("the jailer made no worker in time; the host is overloaded, try again")),
    };
    fault::passable(Step::StartWorker)?;
    Ok((held, console, parcel, files, Instant::now()))
}

/// Makes the memfds and the console, and puts all together but the network interfaces.
fn parcel(
    context: &Context,
    spec: &VmSpec,
    mut files: GuestFiles,
    place: Arc<Turn>,
) -> Result<(Arc<Console>, Parcel), ApiError> {
    let failed = |error: std::io::Error| unavailable(format!("no memory or file descriptors for the VM: {error}"));
    let ram = memfd::sealed("vmsup-ram", spec.memory_mib << 20).map_err(|e| failed(e.into()))?;
    let (console, ends) = Console::new(spec.console.as_ref().is_none_or(|c| c.input)).map_err(failed)?;
    if files.kernel.is_none() {
        let builtin = spec.boot.builtin.ok_or_else(|| internal("a VM without a kernel"))?;
        files.kernel = Some(own_copy(context.host.guests.get(builtin)).map_err(failed)?);
    }
    let paths = guestfile::of(spec).into_iter().map(|file| (file.field, file.path)).collect();
    let spec = worker_spec(spec, files.initrd.is_some());
    let parcel = Parcel { spec, ram, console: ends, files, taps: Taps::default(), paths, _place: place };
    Ok((console, parcel))
}

/// Another open file of the same memfd, for reading: workers that share one would move each other's file offset.
fn own_copy(memfd: &OwnedFd) -> std::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    Ok(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A worker that did not become the VM.
#[derive(Debug)]
pub struct NotTaken {
    /// What the client is told.
    pub error: ApiError,
    /// It only went away: how it ended says more than the error.
    pub hung_up: bool,
}

/// Connects to the worker and makes it the VM.
///
/// # Errors
/// What the client is told.
pub async fn hand_over(
    context: &Context,
    mut parcel: Parcel,
    held: jail_spec::Worker,
) -> Result<(Control, Timings), NotTaken> {
    let start = async {
        let control = Control::new(&context.host.workers, &held);
        control.connect().await?;
        fault::waits(Step::StartConnected).await.map_err(std::io::Error::from)?;
        let fds = parcel.fds(&context.host.kvm);
        let offer = context.host.offer.get_or_try_init(|| control.offer(context.host.kvm.as_fd())).await?;
        let spec = StartSpec { offer: Some(offer.clone()), ..parcel.spec.clone() };
        let timings = control.start(spec, &fds).await?;
        fault::waits(Step::StartGiven).await.map_err(std::io::Error::from)?;
        Ok::<_, ControlError>((control, timings))
    };
    match tokio::time::timeout(context.deadlines.start, start).await {
        Ok(Ok(started)) => {
            parcel.taps.given();
            Ok(started)
        }
        Ok(Err(error)) => {
            let hung_up = error.is_hang_up();
            if hung_up {
                // It is on its way out. How it ends and what it said last tell more than a closed socket, and who
                // waits for this step hears of its end meanwhile; a kill now would only hide it.
                tokio::time::sleep(LAST_WORDS).await;
            }
            Err(NotTaken { hung_up, error: refused(error, &parcel.paths, parcel.spec.nets.len()) })
        }
        Err(_) => {
            let error = internal("the worker did not start the VM in time and was killed");
            Err(NotTaken { hung_up: false, error })
        }
    }
}

impl Parcel {
    /// The fds in the order of [`StartSpec::fd_roles`].
    fn fds<'a>(&'a self, kvm: &'a OwnedFd) -> Vec<BorrowedFd<'a>> {
        let fd = |role| match role {
            FdRole::Kvm => Some(kvm),
            FdRole::Ram => Some(&self.ram),
            FdRole::ConsoleRing => Some(&self.console.ring),
            FdRole::ConsoleNotify => Some(&self.console.notify),
            FdRole::ConsoleInput => Some(&self.console.input),
            FdRole::Kernel => self.files.kernel.as_ref(),
            FdRole::Initrd => self.files.initrd.as_ref(),
            FdRole::Disk(n) => self.files.disks.get(usize::from(n)),
            FdRole::Tap { net, queue } => self.taps.get(net, queue),
        };
        self.spec.fd_roles().into_iter().filter_map(fd).map(AsFd::as_fd).collect()
    }
}

impl Stages {
    /// One line for the log.
    pub fn log(&self, id: &str, name: &str, warm: bool, worker: &Timings) {
        let us = |from: Instant, to: Instant| to.duration_since(from).as_micros();
        let now = Instant::now();
        tracing::debug!(
            id,
            name,
            warm,
            total_us = us(self.begun, now),
            files_us = us(self.begun, self.files),
            make_us = us(self.files, self.made),
            lease_us = us(self.begun, self.leased),
            start_us = us(self.made.max(self.leased), now),
            memory_us = worker.memory,
            vcpus_us = worker.vcpus,
            devices_us = worker.devices,
            boot_us = worker.boot,
            threads_us = worker.threads,
            "started"
        );
    }
}

/// The VM as the worker sees it, without its network interfaces.
fn worker_spec(spec: &VmSpec, initrd: bool) -> StartSpec {
    let disk = |(n, disk): (usize, &crate::spec::Disk)| DiskSpec {
        readonly: disk.readonly,
        serial: disk.serial.clone().unwrap_or_else(|| format!("vmsup-disk{n}")),
        engine: match disk.engine {
            DiskEngine::Auto | DiskEngine::Threads => Engine::Threads,
        },
    };
    StartSpec {
        cpus: u8::try_from(spec.cpus).unwrap_or(0),
        memory_mib: u32::try_from(spec.memory_mib).unwrap_or(0),
        initrd,
        cmdline: spec.boot.cmdline.clone().unwrap_or_default(),
        disks: spec.disks.iter().enumerate().map(disk).collect(),
        nets: Vec::new(),
        offer: None,
    }
}

/// What the worker of this VM may use at most.
fn rlimits(spec: &VmSpec, largest_writable: u64) -> Rlimits {
    // Control thread, reactor, vCPUs, and two threads for each disk.
    let threads = 2 + u32::from(spec.cpus) + 2 * spec.disks.len() as u32;
    Rlimits {
        fsize: largest_writable,
        address_space: (spec.memory_mib << 20) + console::RING_BYTES + OWN_SPACE + u64::from(threads) * THREAD_SPACE,
        nproc: threads + SPARE_THREADS,
        memlock: MEMLOCK,
    }
}

/// Limits as the jailer takes them.
pub fn cgroup_limits(limits: &Limits) -> CgroupLimits {
    CgroupLimits {
        memory_max: limits.memory_max_mib.map(|mib| mib << 20),
        pids_max: limits.pids_max,
        cpu_percent: limits.cpu_percent,
        best_effort: limits.enforce == Enforce::BestEffort,
    }
}
