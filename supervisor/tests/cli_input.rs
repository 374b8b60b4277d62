//! What is wrong in a file or on the command line: one sentence that names the place, exit status 2, nothing started.

mod support;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use support::{HELLO, Place};

/// `vmsup COMMAND vm.json` on a text; what it says after `vm.json`.
#[track_caller]
fn refused(text: impl AsRef<[u8]>) -> String {
    let place = Place::new();
    place.file("vm.json", text);
    refused_in(&place)
}

#[track_caller]
fn refused_in(place: &Place) -> String {
    let mut sentences = ["start", "run"].map(|command| {
        let done = place.run(&[command, "vm.json"]);
        let sentence = done.is_one_sentence(2);
        sentence.strip_prefix("vm.json:").unwrap_or_else(|| panic!("{sentence}")).to_owned()
    });
    assert_eq!(place.leftovers(), Vec::<std::path::PathBuf>::new());
    assert_eq!(sentences[0], sentences[1]);
    std::mem::take(&mut sentences[0])
}

/// The good file with one piece of it replaced.
fn with(old: &str, new: &str) -> String {
    assert!(HELLO.contains(old));
    HELLO.replace(old, new)
}

#[test]
fn an_unknown_field_is_named_with_its_line_and_the_nearest_known_one() {
    assert_eq!(refused(with("\"cpus\"", "\"cpu\"")), "3:3: cpu: unknown field; did you mean \"cpus\"?");
}

#[test]
fn a_wrong_type_says_what_belongs_there() {
    let said = refused(with("\"cpus\": 1", "\"cpus\": \"one\""));
    assert_eq!(said, "3:11: cpus: the text \"one\" is not possible; give a whole number from 1 to 32");
}

#[test]
fn zero_and_too_many_cpus_are_refused() {
    assert_eq!(refused(with("\"cpus\": 1", "\"cpus\": 0")), "3:11: cpus: 0 is not possible; give 1 to 32 vCPUs");
    assert_eq!(refused(with("\"cpus\": 1", "\"cpus\": 300")), "3:11: cpus: 300 is not possible; give 1 to 32 vCPUs");
}

#[test]
fn too_little_and_too_much_memory_are_refused() {
    assert!(refused(with("32", "0")).starts_with("4:17: memory_mib: 0 MiB is not possible; give "));
    let said = refused(with("32", "1048576"));
    assert!(said.starts_with("4:17: memory_mib: 1048576 MiB is more than this host's "), "{said}");
}

#[test]
fn a_name_that_is_no_name_is_refused() {
    let name = |name: &str| refused(with("\"hello\",", &format!("\"{name}\",")));
    assert!(name("a/b").starts_with("2:11: name: \"a/b\" contains '/'; use letters"));
    assert!(name("../x").starts_with("2:11: name: \"../x\" contains '/'"));
    assert!(name("..").starts_with("2:11: name: \"..\" begins with '.'"));
    assert!(name("-x").starts_with("2:11: name: \"-x\" begins with '-'"));
    assert!(name("").starts_with("2:11: name: empty"));
    assert!(name("a\\u0000b").starts_with("2:11: name: \"a\\0b\" contains a NUL character"));
    assert!(name("a\\u001b[2Jb").starts_with("2:11: name: \"a\\u{1b}[2Jb\" contains a control character"));
    assert_eq!(name(&"x".repeat(300)), "2:11: name: 300 bytes are too long; use at most 63");
}

#[test]
fn a_nul_in_the_text_itself_is_refused() {
    let said = refused(with("\"hello\",", "\"he\0llo\","));
    assert!(said.starts_with("2:1") && said.contains("control character"), "{said}");
}

#[test]
fn a_file_that_is_none_for_a_vm_is_refused() {
    let boot = |path: &str| with("\"builtin\": \"hello\"", &format!("\"kernel\": \"{path}\""));
    let disk = |path: &str| with("\"hello\" }", &format!("\"hello\" }},\n  \"disks\": [ {{ \"path\": \"{path}\" }} ]"));
    let place = Place::new();
    std::fs::create_dir(place.path().join("folder")).unwrap();
    mknodat(CWD, place.path().join("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    place.file("empty", "");
    let here = place.path().display().to_string();
    for (path, shown, says) in [
        ("missing", format!("{here}/missing"), "no such file; check the path"),
        ("folder", format!("{here}/folder"), "a directory; give"),
        ("fifo", format!("{here}/fifo"), "a FIFO; give"),
        ("empty", format!("{here}/empty"), "empty; check the path"),
        ("/proc/self/mem", "/proc/self/mem".into(), "a file that the kernel makes up; give"),
        ("/dev/null", "/dev/null".into(), "a character device; give"),
        ("", String::new(), "empty; give the path"),
    ] {
        for (text, place_and_field) in [(boot(path), "5:23: boot.kernel: "), (disk(path), "6:24: disks[0].path: ")] {
            place.file("vm.json", text);
            let said = refused_in(&place);
            assert!(said.starts_with(&format!("{place_and_field}{shown}")) && said.contains(says), "{said}");
        }
    }
}

#[test]
fn relative_paths_are_relative_to_the_file_not_to_the_caller() {
    let place = Place::new();
    std::fs::create_dir(place.path().join("vms")).unwrap();
    place.file("kernel", "x");
    place.file("vms/vm.json", with("\"builtin\": \"hello\"", "\"kernel\": \"kernel\""));
    let done = place.run(&["start", "vms/vm.json"]);
    let missing = place.path().join("vms/kernel");
    assert!(done.is_one_sentence(2).contains(&format!("{}: no such file", missing.display())), "{done:?}");
}

#[test]
fn one_file_for_two_disks_is_refused_where_either_writes() {
    let place = Place::new();
    let here = place.path().display().to_string();
    place.file("disk", vec![0; 4096]);
    std::os::unix::fs::symlink("disk", place.path().join("link")).unwrap();
    std::fs::hard_link(place.path().join("disk"), place.path().join("hard")).unwrap();
    for (first, second) in [("", ""), (", \"readonly\": true", ""), ("", ", \"readonly\": true")] {
        for other in ["disk", "link", "hard"] {
            let disks = format!("[ {{ \"path\": \"disk\"{first} }},\n    {{ \"path\": \"{other}\"{second} }} ]");
            place.file("vm.json", with("\"hello\" }", &format!("\"hello\" }},\n  \"disks\": {disks}")));
            let said = refused_in(&place);
            let says = format!("7:15: disks[1].path: {here}/{other}: the same file as disks[0]; give");
            assert!(said.starts_with(&says), "{said}");
        }
    }
}

#[test]
fn a_limit_below_the_vms_memory_is_refused() {
    let limits =
        |mib: u32| with("\"hello\" }", &format!("\"hello\" }},\n  \"limits\": {{ \"memory_max_mib\": {mib} }}"));
    let said = refused(limits(31));
    assert!(said.starts_with("6:33: limits.memory_max_mib: 31 MiB is less than memory_mib, 32"), "{said}");
}

#[test]
fn a_boot_with_nothing_or_too_much_to_boot_is_refused() {
    assert!(refused(with("\"builtin\": \"hello\"", "")).starts_with("5:11: boot: has nothing to boot"));
    let both = with("\"hello\" }", "\"hello\", \"kernel\": \"/k\" }");
    assert!(refused(both).starts_with("5:11: boot: has both"));
}

#[test]
fn a_forward_that_stands_there_twice_names_its_line_and_the_first() {
    let forward = "{ \"host\": 8080, \"guest\": 80 }";
    let nets = format!("[ {{ \"network\": \"a\",\n  \"forwards\": [ {forward}, {forward} ] }} ]");
    assert_eq!(
        refused(with("\"hello\" }", &format!("\"hello\" }},\n  \"nets\": {nets}"))),
        "7:58: nets[0].forwards[1].host: TCP port 8080 is forwarded by nets[0].forwards[0] already; use another port"
    );
}

#[test]
fn a_file_of_a_gibibyte_is_refused_at_once() {
    let place = Place::new();
    std::fs::File::create(place.path().join("vm.json")).unwrap().set_len(1 << 30).unwrap();
    let said = refused_in(&place);
    assert_eq!(said, " 1073741824 bytes are too large for the file of a VM; the limit is 256 KiB");
}

#[test]
fn a_million_nested_arrays_are_refused() {
    let said = refused(with("32", &"[".repeat(100_000)));
    assert!(said.contains("not valid JSON"), "{said}");
    let closed = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(refused(with("32", &closed)).contains("nested too deeply"));
    assert!(refused("[".repeat(1_000_000)).contains("too large"));
}

#[test]
fn what_is_no_regular_file_is_refused_without_blocking() {
    let place = Place::new();
    let file = place.path().join("vm.json");
    mknodat(CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    assert_eq!(refused_in(&place), " a FIFO; give a regular file");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(refused_in(&place), " no such file; check the path");
    std::fs::create_dir(&file).unwrap();
    assert_eq!(refused_in(&place), " a directory; give a regular file");
    // The reads of this one fail, those of others go on for ever.
    for file in ["/proc/self/mem", "/proc/self/status"] {
        let done = place.run(&["start", file]);
        assert_eq!(done.is_one_sentence(2), format!("{file}: a file that the kernel makes up; give a regular file"));
    }
}

#[test]
fn bytes_that_are_no_utf_8_are_refused() {
    assert_eq!(refused(b"{\n\"name\": \"\xff\"}"), " line 2 is not UTF-8; save it as UTF-8");
}

#[test]
fn what_is_no_json_says_where() {
    assert!(refused("{\n  // a comment\n}").starts_with("2:3: not valid JSON"));
    assert!(refused("").ends_with("an empty file; `vmsup schema` tells what belongs into it"));
}

#[test]
fn a_file_name_cannot_write_to_the_terminal() {
    let place = Place::new();
    let done = place.run(&["start", "a\x1b[2J\n.json"]);
    assert_eq!(done.is_one_sentence(2), "a\\u{1b}[2J\\n.json: no such file; check the path");
}

#[test]
fn wrong_arguments_have_status_2_and_start_nothing() {
    let place = Place::new();
    for args in [
        &["frobnicate"] as &[&str],
        &["ls", "--jsn"],
        &["stop"],
        &["stop", "a/b"],
        &["stop", "vm", "--timeout", "soon"],
        &["inspect", "../x"],
        &["completions", "tcl"],
    ] {
        let done = place.run(args);
        assert_eq!((done.status, done.stdout.as_str()), (2, ""), "{args:?}: {done:?}");
        assert!(done.stderr.starts_with("error: "), "{args:?}: {done:?}");
        assert!(
            !args.contains(&"soon") || done.stderr.contains(": give a number of seconds from 0 to 86400"),
            "{done:?}"
        );
    }
    assert_eq!(place.leftovers(), Vec::<std::path::PathBuf>::new());
}
