//! Frames on a terminal that only keeps its cells.

use super::model::Column;
use super::*;
use vmsup::api::types::{
    Desired, DiskStats, EventKind, GuestStats, HealthState, LatencyStats, NetStats, ProcessStats, VcpuExits, VcpuTime,
    VmState,
};

fn vm(name: &str, state: VmState) -> VmSummary {
    VmSummary {
        name: name.into(),
        id: format!("{:0>16}", name.len()),
        state,
        pid: Some(1),
        owner: 1000,
        cpus: 2,
        memory_mib: 512,
        nets: Vec::new(),
        started_at: Some(1000),
        end: None,
        desired: Desired::Running,
        generation: 1,
        spec_hash: String::new(),
        source: None,
        restarts: 4,
        health: None,
    }
}

/// What a VM used after `n` seconds of doing `busy` per second.
fn stats(vm: &VmSummary, n: u64, busy: u64) -> VmStats {
    let count = n * busy;
    let latency = LatencyStats { le_us: vec![100, 1000], counts: vec![count, count, 0], sum_us: 0 };
    let disk = DiskStats { read_bytes: 2048 * count, read_latency: latency, ..DiskStats::default() };
    let net = NetStats {
        network: "default".into(),
        interface: "vt1".into(),
        received_packets: 0,
        received_bytes: 100 * count,
        sent_packets: 0,
        sent_bytes: 200 * count,
        dhcp_answers: 0,
        dropped: Default::default(),
    };
    VmStats {
        name: vm.name.clone(),
        id: vm.id.clone(),
        owner: vm.owner,
        state: vm.state,
        at_ms: n * 1000,
        process: Some(ProcessStats {
            user_us: 10_000 * count,
            guest_resident_bytes: 3 << 20,
            vcpus: vec![VcpuTime { run_ns: 0, steal_ns: 1_000_000 * count }; 2],
            ..ProcessStats::default()
        }),
        cgroup: None,
        guest: Some(GuestStats {
            vcpus: vec![VcpuExits { pio: 500 * count, ..VcpuExits::default() }],
            disks: vec![disk],
            nets: vec![net],
        }),
        interfaces: None,
        unanswered: None,
    }
}

fn event(cursor: u64, cause: &str) -> Event {
    let (vm, id, owner) = (Some("web".into()), None, Some(1000));
    Event { cursor, at_ms: 3_723_000, kind: EventKind::Started, vm, id, owner, cause: cause.into() }
}

/// Three VMs, two answers.
fn model() -> Model {
    let (web, idle, dead) = (vm("web", VmState::Running), vm("idle", VmState::Running), vm("crash", VmState::Crashed));
    let mut model = Model::default();
    for n in [1, 2] {
        let told = vec![stats(&web, n, 25), stats(&idle, n, 1)];
        model.take(&[idle.clone(), web.clone(), dead.clone()], told, &[event(1, "its vCPUs run")], 1065);
    }
    model
}

fn lines(model: &Model, size: (u16, u16)) -> Vec<String> {
    plain(model, size).lines().map(str::to_owned).collect()
}

fn cells(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn the_table_shows_what_each_vm_does_on_a_small_terminal() {
    let lines = lines(&model(), (80, 24));
    assert_eq!(lines.len(), 24);
    assert_eq!(lines[0], "vmsup  3 VMs, 2 running  CPU 26.0%  memory 6.0M");
    let head = ["NAME", "STATE", "HLTH", "CPU%", "STL%", "MEM", "READ", "WRITE", "RX", "TX", "EXITS", "RST", "UP"];
    assert_eq!(cells(&lines[1]), head);
    let web = ["web", "running", "-", "25.0", "5.0", "3.0M", "50.0K", "0", "2.4K", "4.9K", "12.5K", "4", "1m5s"];
    assert_eq!(cells(&lines[2]), web, "the busiest first");
    assert_eq!(cells(&lines[3])[..4], ["idle", "running", "-", "1.0"]);
    assert_eq!(cells(&lines[4]), ["crash", "crashed", "-", "-", "-", "-", "-", "-", "-", "-", "-", "4", "-"]);
    assert!(lines.iter().all(|line| line.chars().count() <= 80));
    assert!(lines.iter().any(|line| line == "01:02:03 web started: its vCPUs run"), "{lines:?}");
    assert!(lines[23].starts_with("q quit  <> sort"), "{lines:?}");
}

#[test]
fn numbers_stand_under_the_ends_of_their_titles() {
    let lines = lines(&model(), (80, 24));
    let end = |line: &str, word: &str| line.find(word).map(|at| at + word.len());
    assert_eq!(end(&lines[1], "CPU%"), end(&lines[2], "25.0"));
    assert_eq!(end(&lines[1], "EXITS"), end(&lines[2], "12.5K"));
    assert_eq!(end(&lines[1], "UP"), Some(80));
}

#[test]
fn every_column_sorts_both_ways_and_rows_that_are_equal_stand_still() {
    let mut model = model();
    let names = |model: &Model| model.rows().iter().map(|row| row.name.clone()).collect::<Vec<_>>();
    for _ in Column::ALL {
        let forward = names(&model);
        model.key(KeyCode::Char('r'));
        let backward = names(&model);
        model.key(KeyCode::Char('r'));
        assert_eq!(names(&model), forward);
        assert_eq!(forward.len(), backward.len());
        if model.sort == Column::Restarts {
            assert_eq!(forward, backward, "all are equal");
            assert_eq!(forward, ["crash", "idle", "web"]);
        }
        model.key(KeyCode::Right);
    }
    assert_eq!(model.sort, Column::Cpu, "once around");
    model.key(KeyCode::Char('n'));
    assert_eq!(names(&model), ["crash", "idle", "web"]);
    model.key(KeyCode::Char('r'));
    assert_eq!(names(&model), ["web", "idle", "crash"]);
}

#[test]
fn a_filter_is_typed_kept_and_cleared() {
    let mut model = model();
    for key in ['/', 'W', 'E', 'q'] {
        assert_eq!(model.key(KeyCode::Char(key)), Asked::Nothing);
    }
    assert!(lines(&model, (80, 24))[23].starts_with("name: WEq_"));
    assert!(lines(&model, (80, 24))[2].contains("no VM of that name"));
    model.key(KeyCode::Backspace);
    model.key(KeyCode::Enter);
    assert_eq!(model.rows().iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["web"]);
    assert!(lines(&model, (80, 24))[23].starts_with("[WE]  q quit"));
    model.key(KeyCode::Esc);
    assert_eq!(model.rows().len(), 3);
    assert_eq!(model.key(KeyCode::Char('q')), Asked::Quit);
}

#[test]
fn the_chosen_vm_stays_chosen_while_the_order_changes_and_its_past_is_drawn() {
    let mut model = model();
    model.key(KeyCode::Down);
    model.key(KeyCode::Enter);
    let shown = lines(&model, (80, 24));
    let at = shown.iter().position(|line| line.starts_with("idle 000")).unwrap_or_else(|| panic!("{shown:?}"));
    assert!(shown[at].ends_with("2 vCPUs  memory 3.0M of 512 MiB"), "{shown:?}");
    let words = |n: usize| cells(&shown[at + n]);
    assert_eq!(words(1)[..3], ["CPU", "%", "1.0"]);
    assert_eq!(words(3)[..3], ["disk", "p50", "100us"]);
    assert_eq!(words(4)[..3], ["disk", "p99", "982us"]);
    assert!(shown[at + 1].ends_with('█'), "{shown:?}");
    model.key(KeyCode::Char('n'));
    assert_eq!(model.chosen(), Some(1));
    model.key(KeyCode::Char('c'));
    model.key(KeyCode::End);
    assert_eq!(model.chosen(), Some(2));
    model.key(KeyCode::PageUp);
    assert_eq!(model.chosen(), Some(0));
    // One that is gone is chosen no more.
    model.take(&[vm("idle", VmState::Running)], Vec::new(), &[], 1066);
    assert_eq!(model.chosen(), Some(0));
    model.take(&[], Vec::new(), &[], 1067);
    assert_eq!(model.chosen(), None);
    assert!(lines(&model, (80, 24)).iter().any(|line| line.contains("no VMs")));
}

#[test]
fn no_string_of_another_reaches_the_terminal_as_it_is() {
    let mut evil = vm("a\x1b]0;t\x07\u{202e}b", VmState::Running);
    evil.health = Some(HealthState::Unhealthy("\x1b[2Jgone".into()));
    let mut model = Model::default();
    let mut counted = stats(&evil, 1, 1);
    counted.unanswered = Some("\u{9b}31m".into());
    model.take(&[evil], vec![counted], &[event(1, "\x1b[31mred\nline")], 1065);
    model.key(KeyCode::Enter);
    let text = plain(&model, (120, 30));
    assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
    assert!(text.contains("a\\u{1b}]0;t") && text.contains("gone") && text.contains("bad"), "{text}");
}

#[test]
fn any_size_of_a_terminal_can_be_drawn_on() {
    let mut model = model();
    for detail in [false, true] {
        model.detail = detail;
        for (width, height) in [(1, 1), (10, 2), (20, 5), (79, 12), (80, 14), (300, 100)] {
            assert_eq!(lines(&model, (width, height)).len(), usize::from(height));
        }
    }
    assert!(lines(&model, (80, 12)).iter().any(|line| line.starts_with("web")), "the table is kept");
}

#[test]
fn more_vms_than_lines_scroll_with_the_chosen_one() {
    let vms: Vec<VmSummary> =
        (0..200).map(|n| VmSummary { id: format!("{n:016}"), ..vm(&format!("vm{n:03}"), VmState::Running) }).collect();
    let mut model = Model::default();
    model.take(&vms, Vec::new(), &[], 1065);
    model.key(KeyCode::Char('n'));
    assert!(lines(&model, (80, 24))[2].starts_with("vm000"));
    model.key(KeyCode::End);
    let shown = lines(&model, (80, 24));
    assert!(shown.iter().any(|line| line.starts_with("vm199")) && !shown.iter().any(|line| line.starts_with("vm000")));
}

#[test]
fn an_event_is_shown_once_and_the_oldest_go() {
    let mut model = Model::default();
    let many: Vec<Event> = (1..100).map(|n| event(n, &n.to_string())).collect();
    model.take(&[], Vec::new(), &many, 0);
    model.take(&[], Vec::new(), &many[90..], 0);
    assert_eq!((model.events.len(), model.cursor()), (50, 99));
    assert!(model.events.back().unwrap().ends_with("99"));
}

#[test]
fn trouble_is_shown_until_the_next_answer() {
    let mut model = model();
    model.trouble = Some("the supervisor cannot be reached".into());
    assert!(lines(&model, (120, 24))[0].ends_with("the supervisor cannot be reached"));
    model.take(&[], Vec::new(), &[], 0);
    assert!(!lines(&model, (120, 24))[0].contains("reached"));
}
