//! A journal tells what was written, and is read with care.

use super::*;
use crate::testing::{BOOT, Scratch, book_of, network, port};

fn forwards() -> Vec<Forward> {
    vec![
        Forward { protocol: Protocol::Tcp, host: 8080, guest: 80 },
        Forward { protocol: Protocol::Udp, host: 53, guest: 5353 },
    ]
}

fn leased(number: u32, network: &Network) -> Port {
    let holder = Holder { id: LeaseId(9), uid: 1000, vm: VmId(u64::MAX), forwards: forwards() };
    Port { state: State::Leased(holder), ..port(number, network, LeaseId(9), 1000) }
}

fn text_of(scratch: &Scratch) -> String {
    std::fs::read_to_string(scratch.0.join("journal")).unwrap()
}

#[test]
fn what_was_written_is_what_is_read() {
    let scratch = Scratch::new();
    let mut net = network("a", "br-a", "10.1.0.1", 24);
    (net.nat, net.metadata, net.reach) =
        (false, true, vec![IfName::new("br-b").unwrap(), IfName::new("br-c").unwrap()]);
    let networks = [Rc::new(net.clone())];
    let mut book = book_of(&net, &[(LeaseId(1), 1000), (LeaseId(2), 2000)]);
    let (mut journal, text) = Journal::open(scratch.place("journal"), BOOT.to_owned()).unwrap();
    assert_eq!(text, "");
    journal.rewrite(&book, &networks).unwrap();
    let port = leased(7, &net);
    book.insert(port.clone());
    journal.append(&lease_line(&port, port.holder().unwrap()), &book, &networks).unwrap();
    book.remove(1);
    journal.append("end 1", &book, &networks).unwrap();
    let read = replay(&text_of(&scratch), BOOT);
    assert_eq!(read.faults, Vec::<String>::new());
    assert!(read.book.ports().eq(book.ports()));
    assert_eq!((read.book.last_port, read.book.last_lease), (7, 9));
    assert_eq!(read.networks, [Rc::new(net.retire())]);
}

#[test]
fn numbers_outlive_what_had_them() {
    let scratch = Scratch::new();
    let (mut journal, _) = Journal::open(scratch.place("journal"), BOOT.to_owned()).unwrap();
    let mut book = Book::default();
    (book.last_port, book.last_lease) = (41, 17);
    journal.rewrite(&book, &[]).unwrap();
    journal.append("port 42", &book, &[]).unwrap();
    let read = replay(&text_of(&scratch), BOOT);
    assert_eq!((read.book.last_port, read.book.last_lease), (42, 17));
}

#[test]
fn a_journal_of_another_boot_says_nothing() {
    let line = "port 9\n";
    let read = replay(&format!("vmsup-netd 1 another\n{line}"), BOOT);
    assert_eq!((read.book.last_port, read.faults.len()), (0, 0));
    let read = replay(&format!("vmsup-netd 1 {BOOT}\n{line}"), BOOT);
    assert_eq!(read.book.last_port, 9);
    assert_eq!(replay("garbage\n", BOOT).faults.len(), 1);
    assert!(replay("", BOOT).faults.is_empty());
}

#[test]
fn damaged_lines_are_reported_and_the_others_hold() {
    let net = network("a", "br-a", "10.1.0.1", 24);
    let (one, two) = (leased(3, &net), leased(4, &net));
    let good = lease_line(&one, one.holder().unwrap());
    let cut = lease_line(&two, two.holder().unwrap());
    let head = format!("vmsup-netd 1 {BOOT}\n");
    // Cut off anywhere, even where what is left would still be a line.
    for end in 1..cut.len() {
        let read = replay(&format!("{head}{good}\n{}", &cut[..end]), BOOT);
        assert_eq!((read.book.ports().count(), read.faults.len()), (1, 1), "{}", &cut[..end]);
    }
    let read = replay(&format!("{head}{good}\nend 1"), BOOT);
    assert_eq!(read.book.ports().count(), 1, "half of \"end 12\" ends nothing");
    for damage in [
        "",
        "lease",
        "lease 1 2 3",
        "port -1",
        "port x",
        "end",
        "network a b c",
        "\u{1b}[2J",
        &good.replace("tcp", "sctp"),
    ] {
        let read = replay(&format!("{head}{damage}\n{good}\n"), BOOT);
        assert_eq!((read.book.ports().count(), read.faults.len()), (1, 1), "{damage:?}");
        assert!(!read.faults[0].contains('\u{1b}'), "{:?}", read.faults);
    }
}

#[test]
fn random_bytes_are_survived() {
    let mut random = crate::testing::Random(7);
    for _ in 0..2000 {
        let noise: String = (0..random.below(200)).map(|_| char::from(random.next() as u8 & 0x7f)).collect();
        let read = replay(&format!("vmsup-netd 1 {BOOT}\n{noise}"), BOOT);
        assert!(read.book.leases().count() == 0 && read.networks.is_empty());
    }
}

#[test]
fn it_is_written_anew_before_it_grows_without_need() {
    let scratch = Scratch::new();
    let (mut journal, _) = Journal::open(scratch.place("journal"), BOOT.to_owned()).unwrap();
    let mut book = Book::default();
    book.last_lease = 100_000;
    for n in 0..5000 {
        journal.append(&format!("end {n}"), &book, &[]).unwrap();
        assert!(text_of(&scratch).lines().count() <= SLACK + 4);
    }
    assert_eq!(replay(&text_of(&scratch), BOOT).book.last_lease, 100_000);
}

#[test]
fn after_a_write_that_failed_everything_is_written() {
    let scratch = Scratch::new();
    let (mut journal, _) = Journal::open(scratch.place("journal"), BOOT.to_owned()).unwrap();
    let mut book = Book::default();
    journal.rewrite(&book, &[]).unwrap();
    // A directory has the name of the next journal: it cannot be made.
    std::fs::create_dir(scratch.0.join("journal.new")).unwrap();
    book.last_port = 5;
    assert!(journal.rewrite(&book, &[]).is_err());
    assert!(journal.append("port 5", &book, &[]).is_err(), "nothing is appended to what may be half a line");
    assert_eq!(replay(&text_of(&scratch), BOOT).book.last_port, 0);
    std::fs::remove_dir(scratch.0.join("journal.new")).unwrap();
    journal.append("port 5", &book, &[]).unwrap();
    assert_eq!(replay(&text_of(&scratch), BOOT).book.last_port, 5);
}

#[test]
fn bytes_that_are_no_text_cost_leases_and_not_the_start() {
    let scratch = Scratch::new();
    let noise: Vec<u8> = (0..10_000u32).map(|n| (n * 7919 % 251) as u8).collect();
    std::fs::write(scratch.0.join("journal"), noise).unwrap();
    let (mut journal, text) = Journal::open(scratch.place("journal"), BOOT.to_owned()).unwrap();
    assert_eq!(replay(&text, BOOT).faults.len(), 1);
    journal.rewrite(&Book::default(), &[]).unwrap();
    assert!(replay(&text_of(&scratch), BOOT).faults.is_empty());
}

#[test]
fn a_journal_that_is_long_and_cannot_be_made_shorter_is_appended_to() {
    let scratch = Scratch::new();
    let (mut journal, _) = Journal::open(scratch.place("journal"), BOOT.to_owned()).unwrap();
    let mut book = Book::default();
    journal.rewrite(&book, &[]).unwrap();
    std::fs::create_dir(scratch.0.join("journal.new")).unwrap();
    for n in 1..=2 * SLACK as u32 {
        book.last_port = n;
        journal.append(&format!("port {n}"), &book, &[]).unwrap();
    }
    assert_eq!(replay(&text_of(&scratch), BOOT).book.last_port, 2 * SLACK as u32);
}
