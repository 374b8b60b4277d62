//! System calls and processor instructions without a safe wrapper. Every function here is small, and safe to call.
//!
//! Unsafe: all of it, one operation a block.

use kvm_bindings::kvm_run;
use kvm_ioctls::{Kvm, VcpuFd};
use std::io::{Error, Result};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};

/// Ends the process, all threads at once. Nothing runs after it: no destructor, no exit handler.
pub fn exit_group(status: i32) -> ! {
    // SAFETY: `_exit` is the system call exit_group and nothing else; it touches no memory of ours.
    unsafe { libc::_exit(status) }
}

/// Dies by SIGILL. The end of a panic: pid 1 of a pid namespace would outlive the SIGABRT of `abort(3)`, and the seccomp
/// filter would turn that function's system calls into SIGSYS, which must keep meaning "policy violation".
pub fn undefined_instruction() -> ! {
    // SAFETY: `ud2` raises an exception that the kernel turns into a fatal signal; control never comes back.
    unsafe { std::arch::asm!("ud2", options(noreturn, nomem, nostack)) }
}

/// Stands in for the C library's `abort(3)`, which the library and Rust's runtime call when they cannot go on (out of
/// memory, a corrupt heap, a panic within a panic): see [`undefined_instruction`]. The linker sends all its callers here
/// (build.rs).
#[unsafe(no_mangle)]
extern "C" fn __wrap_abort() -> ! {
    undefined_instruction()
}

/// No core dump and no ptrace by a process of the same uid (PR_SET_DUMPABLE 0). exec resets it, so it is the first call.
///
/// # Errors
/// What `prctl(2)` says.
pub fn set_undumpable() -> Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes one integer and no pointer.
    let result = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// Names the calling thread. The kernel takes 15 bytes of it.
pub fn name_thread(name: &std::ffi::CStr) {
    // SAFETY: PR_SET_NAME reads a NUL-terminated string, which a CStr is, and keeps no pointer to it. It cannot fail.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// One heap for all threads. A heap for each would cost every thread pages and mappings of its own, and would grow by
/// `mprotect(2)`, which no thread may call once it has narrowed.
pub fn one_heap() {
    // SAFETY: no thread was made yet, so nobody is inside the allocator while the parameter changes.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives SIGSEGV and SIGBUS back their default actions. Rust's runtime catches both to tell of a stack overflow; its
/// handler calls `sigaction(2)`, which the filters do not allow, and a crash would look like a policy violation.
pub fn default_fault_signals() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: SIG_DFL installs no code of ours, and no other thread runs yet.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// The fd `number` that this process was born with, where it is open. To be called once for a number.
pub fn inherited_fd(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD takes no pointer and changes nothing.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return None;
    }
    // SAFETY: the fd is open, and nothing else in this program owns it: it came through exec, and the only caller asks
    // for it once, before anything else opens an fd.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// `/dev/kvm`, received over the control socket, as the type that knows its ioctls.
pub fn kvm(fd: OwnedFd) -> Kvm {
    // SAFETY: the fd is open and its ownership moves from the OwnedFd to the Kvm. That it is KVM at all is checked by
    // KVM_GET_API_VERSION before anything else; an ioctl on another device would fail and touch no memory.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// One exit of a vCPU for port I/O.
pub struct PortAccess<'a> {
    /// The port.
    pub port: u16,
    /// Bytes of one access: 1, 2 or 4.
    pub width: usize,
    /// The guest reads (`in`): `data` is to be filled.
    pub input: bool,
    /// All accesses of this exit, one after the other: a string instruction (`rep insb`) makes several.
    pub data: &'a mut [u8],
}

/// The port access that KVM_RUN just returned with: `vcpu.run()` said `IoIn` or `IoOut`. That enum drops the width of an
/// access, without which `outw` and `rep outsb` of two bytes look alike.
pub fn port_access(vcpu: &mut VcpuFd) -> PortAccess<'_> {
    let run = vcpu.get_kvm_run();
    // SAFETY: the caller saw exit reason KVM_EXIT_IO, for which the kernel fills this member of the union; every bit
    // pattern of its integers is valid.
    let io = unsafe { run.__bindgen_anon_1.io };
    // SAFETY: the kernel's contract for KVM_EXIT_IO: `data_offset` lies within the mapping of kvm_run, which VcpuFd maps
    // as long as KVM_GET_VCPU_MMAP_SIZE says.
    let start = unsafe { std::ptr::from_mut(run).cast::<u8>().add(io.data_offset as usize) };
    // SAFETY: the same contract: `count` accesses of `size` bytes fit the mapping from there. The kernel does not touch
    // them until the next KVM_RUN, which the exclusive borrow of the vCPU rules out while the slice lives.
    let data = unsafe { std::slice::from_raw_parts_mut(start, io.count as usize * usize::from(io.size)) };
    PortAccess {
        port: io.port,
        width: usize::from(io.size).max(1),
        input: u32::from(io.direction) == kvm_bindings::KVM_EXIT_IO_IN,
        data,
    }
}

/// Why KVM gave up, after `vcpu.run()` said `InternalError`: KVM_INTERNAL_ERROR_EMULATION is 1.
pub fn internal_error(vcpu: &mut VcpuFd) -> u32 {
    let run = vcpu.get_kvm_run();
    // SAFETY: the caller saw exit reason KVM_EXIT_INTERNAL_ERROR, for which the kernel fills this member of the union.
    unsafe { run.__bindgen_anon_1.internal.suberror }
}

/// The signal of a [`Kick`].
const KICK: libc::c_int = libc::SIGUSR1;

/// Makes the signal of a [`Kick`] end a system call and do nothing else. Before confinement, and before there are threads.
///
/// # Errors
/// What `sigaction(2)` says.
pub fn take_kicks() -> Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all zeros are a `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    // KVM_RUN comes back all the same; only what waits for a lock need not notice.
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` outlives the call, and its handler touches nothing, so it may run at any moment on any thread.
    let result = unsafe { libc::sigaction(KICK, &raw const action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// Brings one vCPU's thread out of KVM_RUN.
///
/// The signal comes from a timer of the kernel's that was bound to the thread when it was made. Setting off a timer of its
/// own is all that another thread needs for it: no thread of this process may send a signal to anyone.
#[derive(Debug)]
pub struct Kick {
    /// In a mapping of `kvm_run` of its own, so that it can be written while the vCPU's thread has the other one.
    immediate_exit: &'static AtomicU8,
    timer: libc::c_int,
}

impl Kick {
    /// For the calling thread, which is the one that runs `vcpu`. Neither mapping nor timer is ever given back.
    ///
    /// # Errors
    /// What `mmap(2)` or `timer_create(2)` say.
    pub fn new(vcpu: &VcpuFd) -> Result<Self> {
        Ok(Kick { immediate_exit: map_immediate_exit(vcpu)?, timer: make_timer()? })
    }

    /// Out of the guest, and not in again: where the signal comes before KVM_RUN is called, the flag ends that call.
    pub fn out(&self) {
        self.immediate_exit.store(1, Ordering::SeqCst);
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 1 };
        let never_again = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let when = libc::itimerspec { it_interval: never_again, it_value: at_once };
        let nowhere = std::ptr::null_mut::<libc::itimerspec>();
        // SAFETY: `when` outlives the call, and the old setting is not asked for. The timer is there: it is never deleted.
        unsafe { libc::syscall(libc::SYS_timer_settime, self.timer, 0, &raw const when, nowhere) };
    }

    /// KVM_RUN may enter the guest again.
    pub fn let_in(&self) {
        self.immediate_exit.store(0, Ordering::SeqCst);
    }
}

/// The flag in `kvm_run` that makes KVM_RUN come back before it enters the guest.
fn map_immediate_exit(vcpu: &VcpuFd) -> Result<&'static AtomicU8> {
    let (length, protection) = (size_of::<kvm_run>(), libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: a new mapping, at an address of the kernel's choice, of the beginning of what KVM_GET_VCPU_MMAP_SIZE counts.
    let run = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, vcpu.as_raw_fd(), 0) };
    if run == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    // SAFETY: the field lies within the mapping.
    let flag = unsafe { run.cast::<u8>().add(offset_of!(kvm_run, immediate_exit)) };
    // SAFETY: the mapping is never removed, and nobody else knows its address. Through the vCPU's own mapping this process
    // never touches the byte; the kernel reads it whole.
    Ok(unsafe { AtomicU8::from_ptr(flag) })
}

/// A timer whose only effect is a [`KICK`] to the calling thread. The kernel binds one to no thread of another process.
fn make_timer() -> Result<libc::c_int> {
    // SAFETY: all zeros are a `sigevent`.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = KICK;
    // SAFETY: no argument, and it cannot fail.
    event.sigev_notify_thread_id = unsafe { libc::gettid() };
    let mut timer: libc::c_int = 0;
    let (clock, event) = (libc::CLOCK_MONOTONIC, &raw const event);
    // SAFETY: `event` and `timer`, which the kernel writes, outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_timer_create, clock, event, &raw mut timer) };
    if result == 0 { Ok(timer) } else { Err(Error::last_os_error()) }
}
