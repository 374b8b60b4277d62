//! The installed filters, read back from the kernel as root, held against the compiled ones instruction by instruction.

use super::proc::Process;
use super::verify::Verified;
use policies::Filter;
use policy_kernel::readback::{self, Error};
use policy_set::bpf::Instruction;

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

/// Reads back what a worker's threads are under.
pub fn worker(verified: &mut Verified, process: &Process) {
    process_with(verified, process, |name| Some([&policies::WORKER_STARTUP, of_thread(name)?].to_vec()));
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
                "the installed filter {} differs at instruction {at}: {}, declared is {}",
                filter.name,
                shown(&found[at]),
                shown(&declared[at])
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

/// An instruction in a few words.
fn shown(i: &Instruction) -> String {
    match (i.code, i.k) {
        (0x06, 0x8000_0000) => "return kill the process".into(),
        (0x06, 0x7fff_0000) => "return allow".into(),
        (0x06, k) => format!("return {k:#x}"),
        (code, k) => format!("code {code:#x} jt {} jf {} k {k:#x}", i.jt, i.jf),
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
        let kill = loose[1].iter().position(|i| i.code == 6 && i.k == 0x8000_0000).unwrap();
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
    fn every_thread_of_a_worker_has_its_filter() {
        for (name, filter) in [("vmsup-worker", "control"), ("reactor", "reactor"), ("vcpu12", "vcpu"), ("io0", "io")] {
            assert_eq!(of_thread(name).unwrap().name, format!("worker-{filter}"));
        }
        assert!(of_thread("shell").is_none());
    }
}
