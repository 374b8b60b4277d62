//! Files that are handed over, rightly and wrongly, by this very user.

use super::*;
use crate::serve::testing::Bench;
use crate::side::{HandedOver, hand_over};
use rustix::io::IoSlice;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;

/// A supervisor with a side socket.
async fn bench() -> Bench {
    let bench = Bench::new();
    let bound = bind(bench.dir.path()).unwrap();
    tokio::spawn(accept(bound.listener, bench.context.clone()));
    bench
}

fn own() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Hands a copy of a file over as its kernel.
async fn hand(bench: &Bench, file: &File) -> HandedOver {
    let files = vec![("boot.kernel".to_owned(), file.try_clone().unwrap().into())];
    let socket = bench.dir.path().join(FILES_SOCKET);
    tokio::task::spawn_blocking(move || hand_over(&socket, &files)).await.unwrap().unwrap()
}

fn file(bench: &Bench) -> File {
    std::fs::write(bench.dir.path().join("file"), "kernel").unwrap();
    File::open(bench.dir.path().join("file")).unwrap()
}

async fn until(what: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(std::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_ticket_is_good_once_and_for_who_got_it() {
    let bench = bench().await;
    let handed = hand(&bench, &file(&bench)).await;
    assert_eq!(handed.ticket.len(), crate::side::TICKET_DIGITS);
    let side = &bench.context.side;
    let error = side.redeem(&handed.ticket, own() + 1).unwrap_err();
    assert_eq!(error, side.redeem("0", own()).unwrap_err(), "who asks for somebody else's learns nothing");
    let received = side.redeem(&handed.ticket, own()).unwrap();
    assert_eq!(received.peer().uid, own());
    assert_eq!(side.redeem(&handed.ticket, own()).unwrap_err(), error);
    // What was taken is there also when its connection is not.
    drop(handed);
    drop(received);
}

#[tokio::test]
async fn two_tickets_are_never_alike() {
    let bench = bench().await;
    let file = file(&bench);
    let (one, two) = (hand(&bench, &file).await, hand(&bench, &file).await);
    assert_ne!(one.ticket, two.ticket);
}

#[tokio::test]
async fn a_ticket_goes_with_its_connection_and_the_files_are_closed() {
    let bench = bench().await;
    let file = file(&bench);
    let handed = hand(&bench, &file).await;
    let share = bench.context.side.share(own());
    let free = share.free_fds();
    drop(handed);
    until(|| share.free_fds() == free + 1).await;
    assert!(bench.context.side.tickets.is_empty());
}

#[tokio::test]
async fn a_ticket_is_good_for_a_minute() {
    let bench = bench().await;
    let handed = hand(&bench, &file(&bench)).await;
    tokio::time::pause();
    tokio::time::advance(KEPT - Duration::from_secs(1)).await;
    assert!(!bench.context.side.tickets.is_empty());
    tokio::time::advance(Duration::from_secs(2)).await;
    tokio::time::resume();
    until(|| bench.context.side.tickets.is_empty()).await;
    assert!(bench.context.side.redeem(&handed.ticket, own()).is_err());
}

/// A connection that has said its header.
fn greeted(bench: &Bench) -> Channel<Offer, Answer> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    net::connect(&socket, &SocketAddrUnix::new(bench.dir.path().join(FILES_SOCKET)).unwrap()).unwrap();
    let channel = Channel::new(socket);
    channel.greet(NAME, VERSION, 0).unwrap();
    channel
}

/// What comes after the supervisor's header; `None` where it hangs up.
async fn answer(channel: Channel<Offer, Answer>) -> Option<Answer> {
    tokio::task::spawn_blocking(move || {
        channel.meet(NAME, VERSION, 0).unwrap();
        channel.receive().ok().map(|(answer, _)| answer)
    })
    .await
    .unwrap()
}

fn raw(to: &Channel<Offer, Answer>, bytes: &[u8], with: &[BorrowedFd<'_>]) {
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(with.is_empty() || control.push(SendAncillaryMessage::ScmRights(with)));
    sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
}

#[tokio::test]
async fn what_is_no_offer_of_files_is_refused_and_all_its_fds_are_closed() {
    let bench = bench().await;
    let frame = |fields: &[&str]| {
        let fields = fields.iter().map(|field| (*field).to_owned()).collect();
        ipc::codec::encode(&Offer::Files { fields }, 4096).unwrap()
    };
    let cases: Vec<(Vec<u8>, usize)> = vec![
        (frame(&[]), 0),
        (frame(&[]), 253),
        (frame(&["boot.kernel"]), 0),
        (frame(&["boot.kernel"]), 2),
        (frame(&["boot.kernel"]), 253),
        (frame(&["boot.kernel", "boot.kernel"]), 2),
        (frame(&["boot.cmdline"]), 1),
        (frame(&["disks[8].path"]), 1),
        (frame(&["disks[+1].path"]), 1),
        (frame(&["disks[00].path"]), 1),
        (frame(&["boot.kernel"; 11]), 11),
        (frame(&["boot.kernel"; 100]), 32),
        (vec![0; 257], 1),
        (vec![255; 200], 32),
    ];
    for (bytes, count) in cases {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let channel = greeted(&bench);
        raw(&channel, &bytes, &vec![writer.as_fd(); count]);
        drop(writer);
        assert!(!matches!(answer(channel).await, Some(Answer::Ticket(_))), "{bytes:?}, {count} fds");
        // The end of the pipe: nobody has the other end any more.
        let end = tokio::task::spawn_blocking(move || reader.read(&mut [0; 1]).unwrap());
        assert_eq!(timeout(Duration::from_secs(20), end).await.expect("an fd is still open").unwrap(), 0);
    }
    // And what is one goes on being taken.
    let handed = hand(&bench, &file(&bench)).await;
    assert!(bench.context.side.redeem(&handed.ticket, own()).is_ok());
    let share = bench.context.side.share(own());
    until(|| share.free_fds() == 64).await;
}

#[tokio::test]
async fn who_says_nothing_is_hung_up_on() {
    let bench = bench().await;
    let silent = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    net::connect(&silent, &SocketAddrUnix::new(bench.dir.path().join(FILES_SOCKET)).unwrap()).unwrap();
    let greeted = greeted(&bench);
    // Both have been taken on.
    let share = bench.context.side.share(own());
    let free = share.free_connections();
    until(|| share.free_connections() == free.min(30)).await;
    tokio::time::pause();
    for _ in 0..3 {
        tokio::time::advance(TALK + Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
    }
    tokio::time::resume();
    until(|| share.free_connections() == 32).await;
    let silent = Channel::<Offer, Answer>::new(silent);
    let words = |channel: Channel<Offer, Answer>| answer(channel);
    assert!(matches!(words(silent).await, Some(Answer::Refused(_)) | None));
    assert!(matches!(words(greeted).await, Some(Answer::Refused(_)) | None));
}

#[tokio::test]
async fn a_client_has_only_so_many_connections() {
    let bench = bench().await;
    let connect = || {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        net::connect(&socket, &SocketAddrUnix::new(bench.dir.path().join(FILES_SOCKET)).unwrap()).unwrap();
        Channel::<Offer, Answer>::new(socket)
    };
    let share = bench.context.side.share(own());
    let mut all = Vec::new();
    for taken in 1..=32 {
        all.push(connect());
        until(|| share.free_connections() == 32 - taken).await;
    }
    let more = connect();
    let dropped = tokio::task::spawn_blocking(move || more.receive().unwrap_err()).await.unwrap();
    assert!(matches!(dropped, ipc::Error::Closed | ipc::Error::Io(_)), "{dropped:?}");
    all.pop();
    until(|| share.free_connections() == 1).await;
    hand(&bench, &file(&bench)).await;
}

#[tokio::test]
async fn a_dead_predecessors_socket_is_replaced_and_nothing_else() {
    let bench = Bench::new();
    drop(bind(bench.dir.path()).unwrap());
    drop(bind(bench.dir.path()).unwrap());
    let path = bench.dir.path().join(FILES_SOCKET);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "mine").unwrap();
    assert!(bind(bench.dir.path()).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}
