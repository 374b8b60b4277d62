//! `vmsup policy trace`: what processes of a trace build call, and the policy that this needs.
//!
//! One thread answers the system calls of all processes that it finds, those of the supervisor among them: what asks the
//! supervisor something has a thread of its own.

use crate::cli::client::{Client, vm_target};
use crate::cli::failure::{FAILED, Failure, notice};
use crate::cli::output::{print, print_json, table};
use crate::cli::sanitize::without_errno;
use crate::cli::signals::Signals;
use clap::{Args, ValueHint};
use policy_audit::trace::{Call, Record, Recorder, Traced, record, summarise};
use policy_kernel::notify::Tracer;
use policy_set::arch::Arch;
use policy_set::model::Set;
use serde::Serialize;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};
use vmsup::api::types::VmInfo;

/// How often the end of what is traced is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// Options of `policy trace`.
#[derive(Debug, Args)]
pub struct Options {
    /// Name or id of a VM: its worker, until Ctrl-C or the VM's end.
    #[arg(value_name = "VM", required_unless_present = "command", conflicts_with = "command",
        value_parser = crate::cli::args::vm_name)]
    pub vm: Option<String>,
    /// A program and its arguments: all processes of vmsup, until the program's end.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    /// Add the rules that were used to this file, the record that `audit` knows (recorded/ARCH.json).
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub record: Option<PathBuf>,
    /// Exit with 1 where a call was seen that the policy would have denied.
    #[arg(long)]
    pub fail_on_new: bool,
    #[command(flatten)]
    pub json: crate::cli::args::Json,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    arch: Arch,
    /// How many processes were traced.
    processes: usize,
    filters: &'a [Traced],
}

/// `vmsup policy trace`, against this set.
pub fn trace(client: &Client, set: &Set, arch: Arch, options: &Options) -> Result<(), Failure> {
    if Arch::host() != Some(arch) {
        return Err(Failure::input(format!("what runs here is not of {}, and cannot be traced as that", arch.name())));
    }
    // Before anything is traced: a file that is wrong costs no run.
    let earlier = options.record.as_deref().map(read_record).transpose()?;
    let mut tracing = Tracing::begin(client, set, arch, options)?;
    let ended = tracing.run()?;
    let filters = summarise(set, arch, &tracing.recorder.seen());
    let processes = tracing.tracer.found();
    tracing.say_what_is_left();
    tracing.check_found(options)?;
    if options.json.json {
        print_json(&Report { arch, processes, filters: &filters })?;
    } else {
        print(text(set, arch, &filters))?;
    }
    if let (Some(path), Some(earlier)) = (&options.record, earlier) {
        write_record(path, &record(set, arch, &earlier, &filters))?;
    }
    let denied: Vec<String> =
        filters.iter().flat_map(|t| t.add.iter().map(|rule| format!("{}: {rule}", t.filter))).collect();
    match ended {
        Ended::Command(status) if !status.success() => {
            Err(Failure::failed(format!("the traced command failed ({status})")))
        }
        _ if options.fail_on_new && !denied.is_empty() => Err(Failure::failed(format!(
            "the policy would have denied what was called: {}; add a rule, or do without the call",
            denied.join("; ")
        ))),
        Ended::Signal(status) => Err(Failure::status(status)),
        _ => Ok(()),
    }
}

/// Why tracing ended.
#[derive(Debug)]
enum Ended {
    /// The command did.
    Command(std::process::ExitStatus),
    /// The VM did, or Ctrl-C while it ran, which is how that is asked for.
    Vm,
    /// A signal that does not ask for the result; the exit status that it stands for.
    Signal(u8),
}

/// What is traced.
enum Subject {
    Command(Child),
    /// The worker's pid, once the supervisor has told.
    Vm {
        asked: Receiver<Result<i32, Failure>>,
        pid: Option<i32>,
    },
}

struct Tracing {
    tracer: Tracer,
    recorder: Recorder,
    signals: Signals,
    subject: Subject,
    /// Calls that were seen before the pid of the VM's worker was known are nobody's.
    looked: Option<Instant>,
}

impl Tracing {
    fn begin(client: &Client, set: &Set, arch: Arch, options: &Options) -> Result<Tracing, Failure> {
        let signals = Signals::block().map_err(|e| Failure::failed(format!("signals cannot be received ({e})")))?;
        let tracer = Tracer::new().map_err(|e| Failure::failed(without_errno(&e.to_string())))?;
        let subject = match (&options.vm, options.command.split_first()) {
            (Some(vm), _) => Subject::Vm { asked: ask(client, vm), pid: None },
            (None, Some((program, args))) => {
                let child = Command::new(program).args(args).spawn();
                let failed = |e: std::io::Error| {
                    let program = Path::new(program).display();
                    Failure::input(without_errno(&format!("{program} cannot be run ({e})")))
                };
                Subject::Command(child.map_err(failed)?)
            }
            (None, None) => return Err(Failure::input("name a VM, or a command behind --")),
        };
        Ok(Tracing { tracer, recorder: Recorder::new(set, arch), signals, subject, looked: None })
    }

    fn run(&mut self) -> Result<Ended, Failure> {
        loop {
            let (recorder, subject) = (&mut self.recorder, &self.subject);
            let wanted = |pid| match subject {
                Subject::Command(_) => true,
                Subject::Vm { pid: of, .. } => *of == Some(pid),
            };
            let served = self.tracer.turn(self.signals.as_fd(), |call| {
                if wanted(call.pid) {
                    recorder.note(call.filters, &call.data);
                }
            });
            served.map_err(|e| Failure::failed(without_errno(&e.to_string())))?;
            if let Some(status) = self.signals.next_status() {
                match self.subject {
                    // The command had the same signal, from the same terminal, and its end is ours.
                    Subject::Command(_) if status == 130 => {}
                    Subject::Vm { .. } if status == 130 => return Ok(Ended::Vm),
                    _ => return Ok(Ended::Signal(status)),
                }
            }
            if self.looked.is_none_or(|at| at.elapsed() >= LOOK) {
                self.looked = Some(Instant::now());
                if let Some(ended) = self.look()? {
                    return Ok(ended);
                }
            }
        }
    }

    /// Whether what is traced has ended.
    fn look(&mut self) -> Result<Option<Ended>, Failure> {
        match &mut self.subject {
            Subject::Command(child) => {
                let status = child.try_wait().map_err(|e| Failure::failed(format!("the command is lost ({e})")))?;
                Ok(status.map(Ended::Command))
            }
            Subject::Vm { pid: Some(pid), .. } => {
                if self.tracer.foreign().any(|foreign| foreign == *pid) {
                    return Err(no_trace_build(&[*pid]));
                }
                if self.tracer.refused().any(|refused| refused == *pid) {
                    return Err(refused(&[*pid]));
                }
                Ok((!Path::new(&format!("/proc/{pid}")).exists()).then_some(Ended::Vm))
            }
            Subject::Vm { asked, pid } => {
                match asked.try_recv() {
                    Ok(answer) => *pid = Some(answer?),
                    Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => return Err(Failure::failed("the supervisor cannot be asked")),
                }
                Ok(None)
            }
        }
    }

    /// What was traced waits for the next tracer.
    fn say_what_is_left(&self) {
        let left: Vec<String> = self
            .tracer
            .traced()
            .filter(|pid| Path::new(&format!("/proc/{pid}")).exists())
            .map(|p| p.to_string())
            .collect();
        if !left.is_empty() {
            notice(&format!("these processes wait at their next system call for the next tracer: {}", left.join(" ")));
        }
    }

    /// A trace of nothing is none.
    fn check_found(&self, options: &Options) -> Result<(), Failure> {
        let all = |pids: &mut dyn Iterator<Item = i32>| pids.collect::<Vec<i32>>();
        let silent = all(&mut self.tracer.silent());
        if self.tracer.found() > 0 || options.vm.is_some() {
            return Ok(());
        }
        match all(&mut self.tracer.refused()) {
            pids if !pids.is_empty() => Err(refused(&pids)),
            _ if !silent.is_empty() => Err(no_trace_build(&silent)),
            _ => Err(Failure::input("no process of vmsup was seen: the command started none")),
        }
    }
}

fn pids(pids: &[i32]) -> String {
    pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
}

fn no_trace_build(of: &[i32]) -> Failure {
    Failure::input(format!(
        "processes {} are of no trace build and tell nobody what they call: build one with `make trace-build`, and run the \
         programs in target/bin/trace",
        pids(of)
    ))
}

fn refused(of: &[i32]) -> Failure {
    Failure::input(format!(
        "processes {} may not be traced by this user: they are another user's, or root's to trace",
        pids(of)
    ))
}

/// Asks the supervisor for the pid of a VM's worker. The supervisor may be traced itself.
fn ask(client: &Client, vm: &str) -> Receiver<Result<i32, Failure>> {
    let (tell, asked) = channel();
    let (client, vm) = (client.clone(), vm.to_owned());
    std::thread::spawn(move || {
        let info = client.connect().and_then(|mut api| Ok(api.call::<VmInfo>("GET", &vm_target(&vm, ""))?));
        let pid = info.and_then(|info| {
            info.worker.map(|worker| worker.pid).ok_or_else(|| Failure::failed(format!("{vm} does not run")))
        });
        // Whoever asked may have ended.
        let _ = tell.send(pid);
    });
    asked
}

fn read_record(path: &Path) -> Result<Record, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map_err(|e| Failure::input(format!("{}: this is no record of a trace ({e})", path.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Record::new()),
        Err(e) => Err(Failure::input(without_errno(&format!("{} cannot be read ({e})", path.display())))),
    }
}

fn write_record(path: &Path, record: &Record) -> Result<(), Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure {
        status: FAILED,
        sentence: Some(without_errno(&format!("{} cannot be written ({e})", path.display()))),
    };
    let mut text = serde_json::to_string_pretty(record).map_err(|e| failed(&e))?;
    text.push('\n');
    std::fs::write(path, text).map_err(|e| failed(&e))
}

/// For people: what was called under each filter, then what would change.
fn text(set: &Set, arch: Arch, traced: &[Traced]) -> String {
    let mut out = String::new();
    for one in traced {
        let total: u64 = one.calls.iter().map(|c| c.count).sum();
        out +=
            &format!("{}: {total} calls{}\n", one.filter, if one.known { "" } else { "; the set has no such filter" });
        let meaning = |call: &Call| meaning(set, arch, &one.filter, call);
        let rows: Vec<Vec<String>> = one
            .calls
            .iter()
            .map(|call| {
                let verdict = if call.allowed { call.rules.join(", ") } else { "denied".to_owned() };
                vec![format!("  {}", call.syscall), args(call), call.count.to_string(), verdict, meaning(call)]
            })
            .collect();
        out += &table(&["  CALL", "ARGUMENTS", "COUNT", "RULE", "MEANING"], &rows);
        out += &proposal(one);
        out.push('\n');
    }
    out
}

fn args(call: &Call) -> String {
    call.args.iter().map(|(index, value)| format!("{index} = {value:#x}")).collect::<Vec<_>>().join(", ")
}

/// What the conditions of the rule say of their values.
fn meaning(set: &Set, arch: Arch, filter: &str, call: &Call) -> String {
    let filter = set.filters.iter().find(|f| f.arch == arch && f.name == filter);
    let rules = filter.into_iter().flat_map(|f| &f.rules).filter(|r| call.rules.contains(&r.key()));
    let comments = rules.flat_map(|r| r.conditions.iter().filter_map(|c| c.comment.clone()));
    comments.collect::<Vec<_>>().join(", ")
}

/// The smallest policy that allows what was seen, as a difference to the one there is.
fn proposal(traced: &Traced) -> String {
    let mut out = String::new();
    let explained = |why: &Option<String>| why.as_ref().map_or(String::new(), |why| format!("   (unexercised: {why})"));
    for unused in &traced.drop {
        out += &format!("  - {}{}\n", unused.rule, explained(&unused.unexercised));
    }
    for tighter in &traced.tighten {
        out += &format!("  - {}\n", tighter.rule);
        for rule in &tighter.to {
            out += &format!("  + {rule}\n");
        }
    }
    for rule in &traced.add {
        out += &format!("  + {rule}   (denied today)\n");
    }
    if out.is_empty() { out } else { format!("  what was seen needs this instead:\n{out}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy_audit::trace::{Tighter, Unused};

    #[test]
    fn a_proposal_is_a_difference_that_says_why() {
        let traced = Traced {
            filter: "netd".into(),
            known: true,
            drop: vec![Unused { rule: "read()".into(), unexercised: Some("only at night".into()) }],
            tighten: vec![Tighter { rule: "socket()".into(), to: vec!["socket(0 == 0x1)".into()] }],
            add: vec!["ioctl(1 == 0x5401)".into()],
            ..Traced::default()
        };
        assert_eq!(
            proposal(&traced),
            "  what was seen needs this instead:\n  - read()   (unexercised: only at night)\n  - socket()\n  + socket(0 == 0x1)\n  \
             + ioctl(1 == 0x5401)   (denied today)\n"
        );
        assert_eq!(proposal(&Traced::default()), "");
    }
}
