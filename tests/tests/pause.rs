//! A VM that stands still, natively, from the command line: its vCPU is brought out of the guest, and goes on in it.

use vmsup_tests::host::Host;
use vmsup_tests::{eventually, user};

#[test]
fn a_paused_vm_uses_no_processor_and_goes_on_where_it_was() {
    let host = Host::start(&user::with_subuids(), &["--pool", "1"]);
    host.vmsup(&["start", &host.guest("busy", "deaf", "")]).ok();
    host.vmsup(&["pause", "busy"]).ok();
    assert_eq!(host.state("busy"), "paused");
    let pid = host.inspect("busy")["pid"].as_i64().unwrap();
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = used();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(used() <= before + 1, "it runs");
    host.vmsup(&["resume", "busy"]).ok();
    assert_eq!(host.state("busy"), "running");
    host.vmsup(&["kill", "busy"]).ok();
    eventually("its end", || host.state("busy") != "running");
}
