//! What the kernel does with a system call under filters, asked of a helper program (`src/bin/verdicts.rs`) that tries it
//! in children of its own.
//!
//! No call is ever made. A child first installs a **marker**, a filter that answers everything with one errno ([`MARKER`]),
//! and then, unmodified, the filters that are the question. Of all filters in force the kernel takes the most restrictive
//! answer (seccomp(2): kill the process, kill the thread, SIGSYS, errno, …, allow), so what they kill dies as it would
//! without the marker, and what they allow comes back as the marker's errno. The marker lets one thing through, which the
//! child needs to install the next filter: `seccomp(2)` with [`PASS`] in two arguments that the kernel does not look at.
//! (Two calls are made all the same: [`passed_by_the_kernel`].)
//!
//! Requests and answers are lines of text. A request is
//! `filters N`, then for each `program LENGTH` and that many lines `CODE JT JF K`, then `samples N` and that many lines
//! `native|i386 NR A0 A1 A2 A3 A4 A5`; all numbers decimal but those of samples, which are hexadecimal. The answer is a line
//! for each sample, as [`Verdict`] prints itself, or `refused N ERRNO`: the kernel does not take filter N.

use policy_set::bpf::Instruction;
use std::fmt::{self, Display, Formatter};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What an allowed call comes back with: an errno that no call has.
pub const MARKER: u16 = 3_939;

/// In arguments 3 and 4 of a `seccomp(2)` that the marker lets through. No sample may have it.
pub const PASS: u64 = 0x7665_7264_6963_7473;

/// Most filters of a request.
pub const FILTERS_MAX: usize = 2;
/// Most instructions of a filter, `BPF_MAXINSNS`. More are the kernel's to refuse, so one more may be asked for.
pub const INSTRUCTIONS_MAX: usize = 4_097;
/// Most samples of a request.
pub const SAMPLES_MAX: usize = 100_000;

/// How a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Abi {
    /// As this program's architecture does.
    Native,
    /// `int 0x80`: as a 32-bit program does, on x86_64.
    I386,
}

/// A system call to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sample {
    /// How it is made.
    pub abi: Abi,
    /// Its number, perhaps one that there is no call for.
    pub nr: u32,
    /// Its arguments; of those of `I386` the lower halves.
    pub args: [u64; 6],
}

impl Sample {
    /// A call of this architecture.
    pub fn native(nr: u32, args: [u64; 6]) -> Sample {
        Sample { abi: Abi::Native, nr, args }
    }

    /// From its line.
    ///
    /// # Errors
    /// A line that is none, or one with [`PASS`] in it.
    pub fn parse(line: &str) -> Result<Sample, String> {
        let wrong = || format!("not a sample: {line:?}");
        let mut words = line.split(' ');
        let abi = match words.next() {
            Some("native") => Abi::Native,
            Some("i386") if cfg!(target_arch = "x86_64") => Abi::I386,
            _ => return Err(wrong()),
        };
        let nr = words.next().and_then(|w| u32::from_str_radix(w, 16).ok()).ok_or_else(wrong)?;
        let mut args = [0; 6];
        for arg in &mut args {
            *arg = words.next().and_then(|w| u64::from_str_radix(w, 16).ok()).ok_or_else(wrong)?;
        }
        if words.next().is_some() || args.contains(&PASS) {
            return Err(wrong());
        }
        Ok(Sample { abi, nr, args })
    }
}

impl Display for Sample {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.args;
        let abi = if self.abi == Abi::Native { "native" } else { "i386" };
        write!(f, "{abi} {:x} {a:x} {b:x} {c:x} {d:x} {e:x} {g:x}", self.nr)
    }
}

/// Whether newer kernels make this call whatever the filters say (`seccomp_uprobe_exception` in `kernel/seccomp.c`):
/// x86_64's `uretprobe` and `uprobe`, which the kernel itself puts into programs that it traces. Called from anywhere else,
/// the one ends in SIGILL and the other one in ENXIO, so there is no harm in it.
pub fn passed_by_the_kernel(sample: &Sample) -> bool {
    cfg!(target_arch = "x86_64") && sample.abi == Abi::Native && [335, 336].contains(&sample.nr)
}

/// What the kernel did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It killed the process, with every thread of it.
    Killed,
    /// It killed the thread that made the call, and left the process.
    ThreadKilled,
    /// It sent SIGSYS, which a process can handle, with this as `si_errno`.
    Trapped(u16),
    /// It answered with this errno. 0: nothing was done, and success was reported.
    Errno(u16),
    /// It would have made the call. (Perhaps after asking a tracer or a listener, or with a line in its log: what is weaker
    /// than an errno cannot be told apart here.)
    Allowed,
    /// It sent this other signal: there is no such way into the kernel, or see [`passed_by_the_kernel`].
    Signal(i32),
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Killed => f.write_str("killed"),
            Verdict::ThreadKilled => f.write_str("thread-killed"),
            Verdict::Trapped(errno) => write!(f, "trapped {errno}"),
            Verdict::Errno(errno) => write!(f, "errno {errno}"),
            Verdict::Allowed => f.write_str("allowed"),
            Verdict::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

impl Verdict {
    /// From its line.
    pub fn parse(line: &str) -> Option<Verdict> {
        match line.split_once(' ') {
            None => match line {
                "killed" => Some(Verdict::Killed),
                "thread-killed" => Some(Verdict::ThreadKilled),
                "allowed" => Some(Verdict::Allowed),
                _ => None,
            },
            Some(("trapped", n)) => n.parse().ok().map(Verdict::Trapped),
            Some(("errno", n)) => n.parse().ok().map(Verdict::Errno),
            Some(("signal", n)) => n.parse().ok().map(Verdict::Signal),
            _ => None,
        }
    }

    /// What is seen of filters that return these `SECCOMP_RET_*` values, in the order in which they were installed
    /// (`seccomp_run_filters`, `__seccomp_filter` in the kernel's `kernel/seccomp.c`).
    pub fn seen_of(returned: &[u32]) -> Verdict {
        const ERRNO: u32 = 0x0005_0000;
        let rank = |value: u32| (value & 0xffff_0000).cast_signed();
        // The last one installed is asked first, and another one only counts where it is stricter.
        let marker = ERRNO | u32::from(MARKER);
        let strictest = returned
            .iter()
            .rev()
            .chain([&marker])
            .copied()
            .reduce(|so_far, next| if rank(next) < rank(so_far) { next } else { so_far })
            .unwrap_or(marker);
        let data = strictest as u16;
        match strictest & 0xffff_0000 {
            // MAX_ERRNO of include/linux/err.h.
            ERRNO if data == MARKER => Verdict::Allowed,
            ERRNO => Verdict::Errno(data.min(4_095)),
            0x0003_0000 => Verdict::Trapped(data),
            0 => Verdict::ThreadKilled,
            // KILL_PROCESS, and whatever the kernel does not know.
            _ => Verdict::Killed,
        }
    }
}

/// The kernel does not take a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Which of the request's filters, from 0.
    pub filter: usize,
    /// Why.
    pub errno: i32,
}

/// The helper program, running.
#[derive(Debug)]
pub struct Kernel {
    child: Child,
    to: BufWriter<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Kernel {
    /// Starts the helper at `program`.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start(program: impl AsRef<Path>) -> Kernel {
        let program = program.as_ref();
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Kernel { child, to: BufWriter::new(to), from: BufReader::new(from) }
    }

    /// What the kernel does with each sample under these filters, installed in this order.
    ///
    /// # Errors
    /// [`Refused`] where it does not take one of them.
    ///
    /// # Panics
    /// Where the helper is gone, or does not know what it was asked.
    pub fn ask(&mut self, filters: &[&[Instruction]], samples: &[Sample]) -> Result<Vec<Verdict>, Refused> {
        writeln!(self.to, "filters {}", filters.len()).unwrap();
        for filter in filters {
            writeln!(self.to, "program {}", filter.len()).unwrap();
            for i in *filter {
                writeln!(self.to, "{} {} {} {}", i.code, i.jt, i.jf, i.k).unwrap();
            }
        }
        writeln!(self.to, "samples {}", samples.len()).unwrap();
        for sample in samples {
            writeln!(self.to, "{sample}").unwrap();
        }
        self.to.flush().unwrap();
        let mut verdicts = Vec::with_capacity(samples.len());
        // Also where there are no samples: an empty line then says that the filters were taken.
        loop {
            let mut line = String::new();
            assert!(self.from.read_line(&mut line).unwrap() > 0, "the helper program is gone");
            let line = line.trim_end();
            if let Some((filter, errno)) = line.strip_prefix("refused ").and_then(|l| l.split_once(' ')) {
                return Err(Refused { filter: filter.parse().unwrap(), errno: errno.parse().unwrap() });
            }
            if line == "taken" {
                assert_eq!(verdicts.len(), samples.len());
                return Ok(verdicts);
            }
            verdicts.push(Verdict::parse(line).unwrap_or_else(|| panic!("the helper program says {line:?}")));
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_what_they_were_made_of() {
        let sample = Sample { abi: Abi::Native, nr: u32::MAX, args: [0, 1, u64::MAX, 1 << 32, 7, 0xae80] };
        assert_eq!(Sample::parse(&sample.to_string()), Ok(sample));
        for wrong in
            ["", "native", "native 1 0 0 0 0 0", "native 1 0 0 0 0 0 0 0", "mips 1 0 0 0 0 0 0", "native x 0 0 0 0 0 0"]
        {
            assert!(Sample::parse(wrong).is_err(), "{wrong:?}");
        }
        let pass = Sample::native(317, [1, 0, 0, PASS, PASS, 0]);
        assert!(Sample::parse(&pass.to_string()).is_err(), "the way past the marker");
        for verdict in [
            Verdict::Killed,
            Verdict::ThreadKilled,
            Verdict::Trapped(3),
            Verdict::Errno(38),
            Verdict::Allowed,
            Verdict::Signal(11),
        ] {
            assert_eq!(Verdict::parse(&verdict.to_string()), Some(verdict));
        }
    }

    #[test]
    fn the_strictest_filter_is_what_is_seen() {
        let (allow, kill, thread, trap) = (0x7fff_0000, 0x8000_0000, 0, 0x0003_0007);
        let errno = |n: u32| 0x0005_0000 | n;
        for (returned, seen) in [
            (&[allow][..], Verdict::Allowed),
            (&[kill], Verdict::Killed),
            (&[thread], Verdict::ThreadKilled),
            (&[allow, kill], Verdict::Killed),
            (&[kill, allow], Verdict::Killed),
            (&[trap, allow], Verdict::Trapped(7)),
            (&[errno(1), errno(2)], Verdict::Errno(2)),
            (&[errno(0xffff)], Verdict::Errno(4_095)),
            (&[trap, thread], Verdict::ThreadKilled),
            (&[0x7fc0_0000], Verdict::Allowed),
            (&[0x0001_0000], Verdict::Killed),
        ] {
            assert_eq!(Verdict::seen_of(returned), seen, "{returned:x?}");
        }
    }
}
