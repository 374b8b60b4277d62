//! Tries system calls under filters and says what the kernel does with each; `src/verdicts.rs` says how, and in what format.
//!
//! One thread reads requests. Each walk through samples is a child with two threads: the **tried** one puts on the marker
//! and the filters and makes the calls; the **leader** has no filter, sees how far the other one comes, and so tells the end
//! of a thread from the end of the process. What is killed costs a child; the next one goes on behind it.

use policy_set::bpf::Instruction;
use std::io::{self, BufRead, Write};
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicPtr, AtomicU32, Ordering::SeqCst};
use vmsup_tests::verdicts::{Abi, FILTERS_MAX, INSTRUCTIONS_MAX, MARKER, PASS, SAMPLES_MAX, Sample, Verdict};

fn main() {
    confine();
    let mut lines = io::stdin().lock().lines().map(|line| line.expect("stdin"));
    let mut out = io::BufWriter::new(io::stdout().lock());
    while let Some(request) = Request::read(&mut lines) {
        match request.answer() {
            Ok(verdicts) => {
                for verdict in verdicts {
                    writeln!(out, "{verdict}").expect("stdout");
                }
                writeln!(out, "taken").expect("stdout");
            }
            Err((filter, errno)) => writeln!(out, "refused {filter} {errno}").expect("stdout"),
        }
        out.flush().expect("stdout");
    }
}

/// What the children have from here: no way to more rights, which filters without privileges need, and no core dumps.
fn confine() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }, 0);
    // SAFETY: the limit lives through the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) }, 0);
    // SAFETY: all zeroes is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigsys as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the action lives through the call, and its function only stores to a page and stays.
    assert_eq!(unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) }, 0);
}

struct Request {
    filters: Vec<Vec<libc::sock_filter>>,
    samples: Vec<Sample>,
}

impl Request {
    /// The next one; none at the end. Whatever is not exactly a request is the end of this program.
    fn read(lines: &mut impl Iterator<Item = String>) -> Option<Request> {
        let first = lines.next()?;
        let filters = count(&first, "filters", FILTERS_MAX);
        let filters = (0..filters)
            .map(|_| {
                let length = count(&lines.next().expect("a program"), "program", INSTRUCTIONS_MAX);
                (0..length).map(|_| instruction(&lines.next().expect("an instruction"))).collect()
            })
            .collect();
        let samples = count(&lines.next().expect("samples"), "samples", SAMPLES_MAX);
        let samples = (0..samples)
            .map(|_| Sample::parse(&lines.next().expect("a sample")).unwrap_or_else(|e| panic!("{e}")))
            .collect();
        Some(Request { filters, samples })
    }

    /// What the kernel does with each sample, or which filter it does not take and why.
    fn answer(&self) -> Result<Vec<Verdict>, (usize, i32)> {
        let mut verdicts = Vec::with_capacity(self.samples.len());
        let page = Page::shared(self.samples.len());
        loop {
            page.state.store(State::Starting as u32, SeqCst);
            page.at.store(u32::try_from(verdicts.len()).expect("few"), SeqCst);
            let end = walk(self, &page);
            if page.state.load(SeqCst) == State::Refused as u32 {
                return Err((page.at.load(SeqCst) as usize, page.detail.load(SeqCst)));
            }
            // A filter that does not let the next one be installed is no answer to any sample.
            assert_ne!(page.state.load(SeqCst), State::Starting as u32, "not even installed: {end:?}");
            let at = page.at.load(SeqCst) as usize;
            verdicts.extend(page.results[verdicts.len()..at].iter().map(|r| returned(r.load(SeqCst))));
            match end {
                End::Walked if page.state.load(SeqCst) == State::Trapped as u32 => {
                    verdicts.push(Verdict::Trapped(page.detail.load(SeqCst) as u16));
                }
                End::Walked => return Ok(verdicts),
                End::ThreadGone => verdicts.push(Verdict::ThreadKilled),
                End::Signal(libc::SIGSYS) => verdicts.push(Verdict::Killed),
                End::Signal(signal) => verdicts.push(Verdict::Signal(signal)),
            }
            if verdicts.len() == self.samples.len() {
                return Ok(verdicts);
            }
        }
    }
}

fn count(line: &str, what: &str, most: usize) -> usize {
    let number = line.strip_prefix(what).and_then(|l| l.strip_prefix(' ')).and_then(|n| n.parse().ok());
    number.filter(|n| *n <= most).unwrap_or_else(|| panic!("{line:?}: {what} and a number up to {most}"))
}

fn instruction(line: &str) -> libc::sock_filter {
    let words: Vec<&str> = line.split(' ').collect();
    let [code, jt, jf, k] = words[..] else { panic!("{line:?}: four numbers") };
    let number = |word: &str| word.parse::<u32>().unwrap_or_else(|_| panic!("{line:?}: {word}"));
    let small = |word: &str| u8::try_from(number(word)).unwrap_or_else(|_| panic!("{line:?}: {word}"));
    let code = u16::try_from(number(code)).unwrap_or_else(|_| panic!("{line:?}: {code}"));
    let Instruction { code, jt, jf, k } = Instruction { code, jt: small(jt), jf: small(jf), k: number(k) };
    libc::sock_filter { code, jt, jf, k }
}

/// What a call came back with. It was never made: whatever else this is, it is not an answer of the marker or of a filter.
fn returned(value: i64) -> Verdict {
    match u16::try_from(-value) {
        Ok(MARKER) => Verdict::Allowed,
        Ok(errno) if errno <= 4_095 => Verdict::Errno(errno),
        _ => panic!("a call was made, and returned {value}"),
    }
}

enum State {
    /// The tried thread installs its filters; `at` is of samples.
    Starting,
    /// It tries sample `at`; the results before that are there.
    Walking,
    /// It has tried all.
    Walked,
    /// Sample `at` was answered by SIGSYS with `detail` as `si_errno`.
    Trapped,
    /// The kernel did not take filter `at`; `detail` is the errno.
    Refused,
}

/// What the child and this process share: this, and behind it a result for each sample.
#[repr(C, align(64))]
struct Head {
    state: AtomicU32,
    at: AtomicU32,
    detail: AtomicI32,
}

/// Its mapping.
struct Page {
    head: &'static Head,
    results: &'static [AtomicI64],
}

impl std::ops::Deref for Page {
    type Target = Head;
    fn deref(&self) -> &Head {
        self.head
    }
}

impl Page {
    fn shared(samples: usize) -> Page {
        let length = size_of::<Head>() + size_of::<AtomicI64>() * samples;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, which overlays nothing.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        let base: *mut Head = base.cast();
        PAGE.store(base, SeqCst);
        // SAFETY: zeroed, aligned to a page, and there until this is dropped.
        let head = unsafe { &*base };
        // SAFETY: the mapping goes on that far.
        let behind = unsafe { base.add(1) };
        // SAFETY: as many zeroed results as it has room for; aligned as the head is.
        let results = unsafe { std::slice::from_raw_parts(behind.cast(), samples) };
        Page { head, results }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let length = size_of::<Head>() + size_of_val(self.results);
        // SAFETY: the mapping of this, whose references end with it: they are private to this file, which copies none.
        unsafe { libc::munmap(PAGE.load(SeqCst).cast(), length) };
    }
}

/// The page in use (there is one at a time), for the signal handler too.
static PAGE: AtomicPtr<Head> = AtomicPtr::new(std::ptr::null_mut());

/// `SECCOMP_RET_TRAP`. To return from here would be a system call; the leader ends the process instead.
extern "C" fn on_sigsys(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: mapped while there is a child, and only children get this signal.
    let page = unsafe { &*PAGE.load(SeqCst) };
    // SAFETY: the kernel passes a valid one to a handler with SA_SIGINFO.
    page.detail.store(unsafe { (*info).si_errno }, SeqCst);
    page.state.store(State::Trapped as u32, SeqCst);
    stay()
}

/// Until the leader ends the process, without a system call.
fn stay() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

#[derive(Debug)]
enum End {
    /// The leader ended the child: the page says why.
    Walked,
    /// Of the two threads only the leader was left.
    ThreadGone,
    /// This signal ended the child.
    Signal(i32),
}

/// One child, from sample `at` on to the last one or to the one that ends it.
fn walk(request: &Request, page: &Page) -> End {
    const WALKED: i32 = 0;
    const THREAD_GONE: i32 = 1;
    // SAFETY: this process has one thread, so the child may do whatever a process may.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    if pid == 0 {
        let thread_gone = lead(request, page);
        // SAFETY: no preconditions.
        unsafe { libc::_exit(if thread_gone { THREAD_GONE } else { WALKED }) }
    }
    let mut status = 0;
    // SAFETY: status is valid for the call; the pid is our child's.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    match libc::WIFSIGNALED(status) {
        true => End::Signal(libc::WTERMSIG(status)),
        false => match libc::WEXITSTATUS(status) {
            WALKED => End::Walked,
            THREAD_GONE => End::ThreadGone,
            other => panic!("a child left with status {other}"),
        },
    }
}

/// The child's leader: starts the tried thread and waits for how it goes. True where that thread is gone.
fn lead(request: &Request, page: &Page) -> bool {
    let tid = AtomicI32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: no preconditions.
            tid.store(unsafe { libc::gettid() }, SeqCst);
            tried(request, page);
        });
        for turn in 0_u32.. {
            let state = page.state.load(SeqCst);
            if state != State::Starting as u32 && state != State::Walking as u32 {
                // The scope would wait for the other thread.
                // SAFETY: no preconditions.
                unsafe { libc::_exit(0) }
            }
            let tid = tid.load(SeqCst);
            // SAFETY: signal 0 only asks whether there is such a thread of ours.
            if tid != 0 && unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, 0) } != 0 {
                // SAFETY: no preconditions.
                unsafe { libc::_exit(1) }
            }
            if turn < 64 {
                std::thread::yield_now();
            } else {
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
        }
    });
    unreachable!("the loop leaves the process")
}

/// The tried thread. It never returns: that would be a system call.
fn tried(request: &Request, page: &Page) -> ! {
    let marker = marker();
    for (number, program) in [&marker].into_iter().chain(&request.filters).enumerate() {
        if let Err(errno) = install(program) {
            assert!(number > 0, "the marker: errno {errno}");
            page.detail.store(errno, SeqCst);
            page.at.store(number as u32 - 1, SeqCst);
            page.state.store(State::Refused as u32, SeqCst);
            stay()
        }
    }
    let first = page.at.load(SeqCst) as usize;
    page.state.store(State::Walking as u32, SeqCst);
    for (at, sample) in request.samples.iter().enumerate().skip(first) {
        page.at.store(at as u32, SeqCst);
        let value = match sample.abi {
            Abi::Native => native(sample),
            Abi::I386 => i386(sample),
        };
        page.results[at].store(value, SeqCst);
    }
    page.at.store(request.samples.len() as u32, SeqCst);
    page.state.store(State::Walked as u32, SeqCst);
    stay()
}

/// Puts a filter on the calling thread; the errno where the kernel does not take it.
fn install(program: &[libc::sock_filter]) -> Result<(), i32> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, 0_u64);
    // SAFETY: the program lives through the call, which only reads it, and its length is its own.
    match unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program, PASS, PASS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
    }
}

/// Everything is answered [`MARKER`], but a `seccomp(2)` of this architecture with [`PASS`] in arguments 3 and 4.
fn marker() -> Vec<libc::sock_filter> {
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let load = |k| libc::sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k };
    let arch = policy_set::arch::Arch::host().expect("an architecture of policies").audit();
    let args = std::mem::offset_of!(libc::seccomp_data, args) as u32;
    let (low, high) = (PASS as u32, (PASS >> 32) as u32);
    let wanted = [
        (std::mem::offset_of!(libc::seccomp_data, nr) as u32, libc::SYS_seccomp as u32),
        (std::mem::offset_of!(libc::seccomp_data, arch) as u32, arch),
        (args + 3 * 8, low),
        (args + 3 * 8 + 4, high),
        (args + 4 * 8, low),
        (args + 4 * 8 + 4, high),
    ];
    let mut program = Vec::new();
    for (number, (offset, value)) in wanted.iter().enumerate() {
        // To the last instruction, over what is left of these pairs and the first return.
        let jf = (2 * (wanted.len() - number - 1) + 1) as u8;
        program.push(load(*offset));
        let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        program.push(libc::sock_filter { code, jt: 0, jf, k: *value });
    }
    program.push(libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW });
    program.push(libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | u32::from(MARKER) });
    program
}

fn native(sample: &Sample) -> i64 {
    let [a, b, c, d, e, f] = sample.args;
    let nr = i64::from(sample.nr.cast_signed());
    // SAFETY: the marker is in force, so no call is made, whatever the number and the arguments.
    match unsafe { libc::syscall(nr, a, b, c, d, e, f) } {
        -1 => -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        value => value,
    }
}

#[cfg(target_arch = "x86_64")]
fn i386(sample: &Sample) -> i64 {
    let args = sample.args.map(|arg| arg as u32);
    let mut value = sample.nr;
    // SAFETY: the marker is in force for this entry, too, so no call is made. What the code changes is restored or named:
    // rbx and rbp by itself, and some kernels do not keep r8 to r11 here.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "push rbp",
            "mov ebx, [r12]",
            "mov ecx, [r12 + 4]",
            "mov edx, [r12 + 8]",
            "mov esi, [r12 + 12]",
            "mov edi, [r12 + 16]",
            "mov ebp, [r12 + 20]",
            "int 0x80",
            "pop rbp",
            "pop rbx",
            in("r12") args.as_ptr(),
            inout("eax") value,
            out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    i64::from(value.cast_signed())
}

#[cfg(not(target_arch = "x86_64"))]
fn i386(sample: &Sample) -> i64 {
    unreachable!("{sample}: a request like this is not read")
}
