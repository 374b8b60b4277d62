//! A worker's program that was built from other policies than the jailer's, or is something else altogether, never runs.

use jail_spec::{Refusal, Reply};
use std::os::unix::fs::FileExt;
use std::path::Path;
use vmsup_tests::host::{Host, children};
use vmsup_tests::jailer::{Jailer, ROOMY};
use vmsup_tests::tampered::{allowing, default_action, read, write};
use vmsup_tests::{Scratch, program, user};

/// Why a worker is refused; nothing runs and nothing is left then.
fn refusal(jailer: &Jailer) -> String {
    jailer.channel.send(&jail_spec::Request::Make { seq: 1, limits: None, rlimits: ROOMY }, &[]).unwrap();
    let why = match jailer.reply().0 {
        Reply::Refused { seq: 1, why: Refusal::Program(why) } => why,
        other => panic!("{other:?}"),
    };
    assert!(children(jailer.facts.pid).is_empty(), "no process");
    assert_eq!(jailer.sockets(), [""; 0], "no socket");
    why
}

/// What a jailer says of these bytes in the worker's place.
fn said_of(bytes: &[u8]) -> String {
    let user = user::with_subuids();
    let folder = Scratch::new(&user);
    refusal(&Jailer::start(&user, &write(&folder, &user, "worker", bytes), 0))
}

#[test]
fn no_vm_starts_with_a_worker_from_other_policies_and_the_sentence_names_the_filter() {
    let user = user::with_subuids();
    let folder = Scratch::new(&user);
    for filter in ["worker-startup", "worker-control", "worker-reactor", "worker-vcpu", "worker-io"] {
        let worker = write(&folder, &user, filter, &allowing("vmsup-worker", filter));
        let host = Host::start(&user, &["--pool", "1", "--worker", worker.to_str().unwrap()]);
        let fds = host.fds();
        let said = host.vmsup(&["start", &host.guest("victim", "deaf", "")]).sentence(1);
        let differs =
            format!("it was built from other policies than this jailer: filter {filter} differs from its instruction");
        assert!(said.contains("vmsup-worker") && said.contains(&differs), "{said}");
        assert!(host.log().contains(&differs), "{}", host.log());
        assert_ne!(host.state("victim"), "running");
        host.remove(&["victim"]);
        host.nothing_left(0, fds);
    }
}

#[test]
fn a_section_that_is_not_there_or_lies_is_refused() {
    let (good, section) = read("vmsup-worker");
    let number = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().unwrap());
    // The entry of the section's own in the table: that which says where it stands.
    let table = number(40) as usize;
    let entry =
        (table..good.len() - 63).step_by(64).find(|at| number(at + 24) == section.start as u64).expect("its entry");
    let changed = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        said_of(&file)
    };
    let name = good.windows(15).position(|w| w == b"\0.vmsup_policy\0").unwrap() + 1;
    assert!(changed(name, b".other_policy").contains("has no policy section"));
    let end = (good.len() as u64).to_le_bytes();
    for (at, value, says) in [
        (entry + 24, end, "outside of the file"),
        (entry + 24, u64::MAX.to_le_bytes(), "outside of the file"),
        (entry + 32, (1u64 << 63).to_le_bytes(), "too long"),
        (entry + 32, 80u64.to_le_bytes(), "bytes instead of"),
        (40, (1u64 << 63).to_le_bytes(), "section table"),
    ] {
        let said = changed(at, &value);
        assert!(said.contains(says), "{at}: {said}");
    }
    let said = changed(58, &40u16.to_le_bytes());
    assert!(said.contains("unknown size"), "{said}");
    // Cut off where the table begins.
    assert!(said_of(&good[..table]).contains("section table"));
}

#[test]
fn what_is_no_program_is_refused_and_a_fifo_holds_nobody_up() {
    for file in [b"".as_slice(), b"#!/bin/sh\nexec sleep 1000\n", &[0x7f; 4096]] {
        assert!(said_of(file).contains("not a program"));
    }
    let user = user::with_subuids();
    let folder = Scratch::new(&user);
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o755.into(), 0).unwrap();
    std::os::unix::fs::chown(&fifo, Some(user.uid), Some(user.gid)).unwrap();
    assert!(refusal(&Jailer::start(&user, &fifo, 0)).contains("not a regular file"));
    assert!(refusal(&Jailer::start(&user, Path::new("/dev/null"), 0)).contains("not a regular file"));
}

#[test]
fn a_program_that_is_replaced_after_the_check_is_not_run() {
    let user = user::with_subuids();
    let folder = Scratch::new(&user);
    let genuine = std::fs::read(program("vmsup-probe")).unwrap();
    let path = write(&folder, &user, "worker", &genuine);
    let jailer = Jailer::start(&user, &path, 0);
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).unwrap());
    let other = write(&folder, &user, "other", &allowing("vmsup-probe", "worker-vcpu"));
    std::fs::rename(other, &path).unwrap();
    let (worker, pidfd) = jailer.make(1);
    if rustix::process::geteuid().is_root() {
        let runs = std::fs::metadata(format!("/proc/{}/exe", worker.pid)).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::ino(&runs), inode, "what was checked is what runs");
    }
    jailer.end(&worker, &pidfd);
}

#[test]
fn a_program_that_is_written_to_after_the_check_is_checked_again() {
    let user = user::with_subuids();
    let folder = Scratch::new(&user);
    let (genuine, section) = read("vmsup-probe");
    let path = write(&folder, &user, "worker", &genuine);
    let jailer = Jailer::start(&user, &path, 0);
    let (worker, pidfd) = jailer.make(1);
    jailer.end(&worker, &pidfd);
    let at = section.start + default_action("worker-io");
    let put = |bytes: &[u8]| {
        // Kept open for writing by nobody when the jailer executes it. The clock of a file's times may be as coarse as a tick.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(bytes, at as u64).unwrap();
        // The time of writing can be set back; that of the change cannot.
        file.set_modified(before).unwrap();
    };
    put(&0x7fff_0000u32.to_ne_bytes());
    assert!(refusal(&jailer).contains("filter worker-io differs"));
    put(&genuine[at..at + 4]);
    let (worker, pidfd) = jailer.make(2);
    jailer.end(&worker, &pidfd);
}
