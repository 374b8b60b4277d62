//! The installed filters, read back from the kernel as root, held against the compiled ones instruction by instruction.

use super::proc::Process;
use super::verify::Verified;
use policies::Filter;
use policy_kernel::readback::{self, Error};
use policy_set::arch::Arch;
use policy_set::bpf::{Instruction, calls, line};
use policy_set::model::Set;

/// What a thread of a worker is under beside the start-up filter, by its name.
fn of_thread(name: &str) -> Option<&'static Filter> {
    Some(match name.trim_end_matches(|c: char| c.is_ascii_digit()) {
        "vmsup-worker" => &policies::WORKER_CONTROL,
        "reactor" => &policies::WORKER_REACTOR,
        "vcpu" => &policies::WORKER_VCPU,
        "io" => &policies::WORKER_IO,
        _ => return None,
    })
}

/// Reads back what a worker's threads are under; a warm one has the first filter only, and one thread.
pub fn worker(verified: &mut Verified, process: &Process, warm: bool) {
    process_with(verified, process, |name| match (warm, name) {
        (true, "vmsup-warm") => Some(vec![&policies::WORKER_STARTUP]),
        (true, _) => None,
        (false, name) => Some(vec![&policies::WORKER_STARTUP, of_thread(name)?]),
    });
}

/// Reads back what the threads of a process are under; each should be under these filters, the oldest first.
pub fn process_with(
    verified: &mut Verified,
    process: &Process,
    expected: impl Fn(&str) -> Option<Vec<&'static Filter>>,
) {
    verified.filters_read_back = true;
    for thread in process.threads.iter().filter(|t| !t.kernel) {
        let who = format!("thread {} ({})", thread.tid, thread.name);
        match readback::thread(thread.tid) {
            Ok(found) => match expected(&thread.name) {
                Some(expected) => {
                    verified.differences.extend(difference(&expected, &found).map(|how| format!("{who}: {how}")))
                }
                None => verified.differences.push(format!("{who}: no policy declares a thread of that name")),
            },
            // Threads may end while their process goes on.
            Err(Error::Gone(_)) => {}
            Err(error @ (Error::NotPermitted | Error::NotBuilt)) => {
                verified.filters_read_back = false;
                let how =
                    if error == Error::NotPermitted { "; as root, vmsup inspect --verify reads them back" } else { "" };
                verified.not_seen.push(format!("the installed filters: {error}{how}"));
                return;
            }
            Err(error) => verified.differences.push(format!("{who}: its filters cannot be read back: {error}")),
        }
    }
}

/// The first difference between what should be installed and what is; both the oldest first.
fn difference(expected: &[&Filter], found: &[Vec<Instruction>]) -> Option<String> {
    if expected.len() != found.len() {
        return Some(format!("{} filters are installed, declared are {}", found.len(), expected.len()));
    }
    expected.iter().zip(found).find_map(|(filter, found)| {
        let declared: Vec<Instruction> =
            filter.program.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect();
        let at = declared.iter().zip(found).position(|(a, b)| a != b);
        match at {
            Some(at) => Some(format!(
                "the installed filter {} differs at instruction {at}: {}, declared is {}{}",
                filter.name,
                line(at, &found[at]),
                line(at, &declared[at]),
                rules(filter.name, &declared, at).map_or_else(String::new, |rules| format!(" ({rules})"))
            )),
            None if declared.len() != found.len() => Some(format!(
                "the installed filter {} has {} instructions, declared are {}",
                filter.name,
                found.len(),
                declared.len()
            )),
            None => None,
        }
    })
}

/// The rules that an instruction of a declared filter is of: those of the one system call that it is about, if it is.
fn rules(filter: &str, declared: &[Instruction], at: usize) -> Option<String> {
    let arch = Arch::host()?;
    let call = arch.syscall(*calls(declared).get(at)?.as_ref()?)?;
    let set = Set::from_texts("compiled in", policies::FILES.iter().map(|(f, t)| ((*f).to_owned(), (*t).to_owned())));
    let set = set.ok()?;
    let rules = set.filter(arch, filter)?.rules.iter().filter(|rule| rule.syscall == call);
    let places: Vec<String> = rules.map(|rule| format!("{} line {}", rule.file, rule.line)).collect();
    match &places[..] {
        [] => None,
        [one] => Some(format!("the rule of {call}: {one}")),
        all => Some(format!("one of the rules of {call}: {}", all.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(filter: &Filter) -> Vec<Instruction> {
        filter.program.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect()
    }

    #[test]
    fn the_first_difference_is_named() {
        let expected = [&policies::WORKER_STARTUP, &policies::WORKER_VCPU];
        let good: Vec<_> = expected.iter().map(|f| installed(f)).collect();
        assert_eq!(difference(&expected, &good), None);
        let mut loose = good.clone();
        // The default at the end, which is of no rule.
        let kill = loose[1].iter().rposition(|i| i.code == 6 && i.k == 0x8000_0000).unwrap();
        loose[1][kill].k = 0x7fff_0000;
        assert_eq!(
            difference(&expected, &loose).unwrap(),
            format!(
                "the installed filter worker-vcpu differs at instruction {kill}: return allow, declared is return kill the process"
            )
        );
        let mut longer = good.clone();
        longer[0].push(good[0][0]);
        assert!(difference(&expected, &longer).unwrap().contains("worker-startup has"));
        assert!(difference(&expected, &good[..1]).unwrap().starts_with("1 filters are installed"));
        let swapped = [good[1].clone(), good[0].clone()];
        assert!(difference(&expected, &swapped).unwrap().contains("worker-startup"));
    }

    #[test]
    fn every_instruction_about_one_call_leads_to_its_rules() {
        let set =
            Set::from_texts("compiled in", policies::FILES.iter().map(|(f, t)| ((*f).into(), (*t).into()))).unwrap();
        let arch = Arch::host().unwrap();
        for filter in policies::ALL {
            let program = installed(filter);
            let mut named: Vec<&str> = calls(&program).into_iter().flatten().filter_map(|n| arch.syscall(n)).collect();
            named.sort_unstable();
            named.dedup();
            let mut declared = set.filter(arch, filter.name).unwrap().syscalls();
            declared.sort_unstable();
            declared.dedup();
            assert_eq!(named, declared, "{}", filter.name);
        }
        // A comparison of an argument of the only rule of a call, and of one of several.
        let program = installed(&policies::WORKER_VCPU);
        let told: Vec<String> = (0..program.len()).filter_map(|at| rules("worker-vcpu", &program, at)).collect();
        assert!(told.iter().any(|t| t.starts_with("the rule of ") && t.contains(".json line ")), "{told:?}");
        assert!(told.iter().any(|t| t.starts_with("one of the rules of ioctl: ")), "{told:?}");
    }

    #[test]
    fn every_thread_of_a_worker_has_its_filter() {
        for (name, filter) in [("vmsup-worker", "control"), ("reactor", "reactor"), ("vcpu12", "vcpu"), ("io0", "io")] {
            assert_eq!(of_thread(name).unwrap().name, format!("worker-{filter}"));
        }
        assert!(of_thread("shell").is_none());
    }
}
