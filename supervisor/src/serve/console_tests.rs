//! The console's ring, as a worker writes it and as readers see it.

use super::*;
use crate::serve::testing::print;
use rustix::event::{PollFd, PollFlags, Timespec};

fn told(ends: &WorkerEnds) -> bool {
    let mut fds = [PollFd::new(&ends.notify, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

async fn read(reader: &mut Reader, bytes: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < bytes {
        let mut buffer = [0; 1000];
        let chunk = reader.take(&mut buffer);
        assert_eq!(chunk.lost, 0);
        if chunk.bytes == 0 {
            reader.news().await;
        }
        all.extend_from_slice(&buffer[..chunk.bytes]);
    }
    all
}

/// Lets the pump run until the worker is asked to signal the next byte.
async fn settled(console: &Console) {
    loop {
        let mut seen = [0; 8];
        rustix::io::pread(&console.ring, &mut seen, SEEN).unwrap();
        if u64::from_le_bytes(seen) == console.written() && *console.news.borrow() == console.written() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_reader_gets_the_past_and_the_present() {
    let (console, ends) = Console::new(true).unwrap();
    print(&ends.ring, &ends.notify, b"past ");
    let mut reader = console.reader(true);
    let mut late = console.reader(false);
    assert_eq!(read(&mut reader, 5).await, b"past ");
    for word in ["present ", "and ", "future"] {
        print(&ends.ring, &ends.notify, word.as_bytes());
        assert_eq!(read(&mut reader, word.len()).await, word.as_bytes());
    }
    assert_eq!(read(&mut late, 18).await, b"present and future");
}

#[tokio::test]
async fn nobody_is_woken_while_nobody_reads() {
    let (console, ends) = Console::new(true).unwrap();
    assert!(print(&ends.ring, &ends.notify, b"a"), "the reader had caught up with nothing");
    for _ in 0..100 {
        assert!(!print(&ends.ring, &ends.notify, b"b"));
    }
    assert_eq!(console.news.receiver_count(), 0);
    assert!(!*console.pumping.lock().unwrap());
}

#[tokio::test]
async fn the_pump_stops_with_its_last_reader_and_starts_with_the_next() {
    let (console, ends) = Console::new(true).unwrap();
    let reader = console.reader(true);
    settled(&console).await;
    drop(reader);
    while *console.pumping.lock().unwrap() {
        tokio::task::yield_now().await;
    }
    print(&ends.ring, &ends.notify, b"one");
    let mut reader = console.reader(true);
    assert_eq!(read(&mut reader, 3).await, b"one");
    settled(&console).await;
    print(&ends.ring, &ends.notify, b"two");
    assert_eq!(read(&mut reader, 3).await, b"two");
}

#[tokio::test]
async fn a_flood_costs_a_lagging_reader_the_oldest_bytes_and_it_knows_how_many() {
    let (console, ends) = Console::new(true).unwrap();
    let mut reader = console.reader(true);
    let flood: Vec<u8> = (0..CAPACITY + 1000).map(|n| (n % 251) as u8).collect();
    print(&ends.ring, &ends.notify, &flood);
    let mut buffer = vec![0; flood.len()];
    let chunk = reader.take(&mut buffer);
    assert_eq!(chunk, Chunk { lost: 1000, bytes: CAPACITY as usize });
    assert_eq!(buffer[..chunk.bytes], flood[1000..]);
    assert_eq!(reader.take(&mut buffer), Chunk { lost: 0, bytes: 0 });
    let (kept, overwritten) = console.kept();
    assert_eq!((kept.as_slice(), overwritten), (&flood[1000..], 1000));
}

#[tokio::test]
async fn two_readers_never_hold_each_other_up() {
    let (console, ends) = Console::new(true).unwrap();
    let mut fast = console.reader(true);
    let mut slow = console.reader(true);
    let mut expected = Vec::new();
    for n in 0..50u8 {
        print(&ends.ring, &ends.notify, &[n; 7]);
        assert_eq!(read(&mut fast, 7).await, [n; 7]);
        expected.extend([n; 7]);
    }
    assert_eq!(read(&mut slow, 350).await, expected);
}

#[tokio::test]
async fn a_worker_that_lies_about_its_counters_breaks_nothing() {
    let (console, ends) = Console::new(true).unwrap();
    let mut reader = console.reader(true);
    let mut buffer = [0; 100];
    let say = |written: u64| rustix::io::pwrite(&ends.ring, &written.to_le_bytes(), WRITTEN).unwrap();
    for written in [u64::MAX, 0, u64::MAX - 1, CAPACITY, 1, u64::MAX] {
        say(written);
        for _ in 0..3 {
            let chunk = reader.take(&mut buffer);
            assert!(chunk.bytes <= buffer.len());
        }
        let (kept, _) = console.kept();
        assert!(kept.len() as u64 <= CAPACITY);
    }
}

#[tokio::test]
async fn a_worker_that_signals_without_news_wakes_no_reader() {
    let (console, ends) = Console::new(true).unwrap();
    let mut reader = console.reader(true);
    settled(&console).await;
    rustix::io::write(&ends.notify, &1u64.to_ne_bytes()).unwrap();
    while told(&ends) {
        tokio::task::yield_now().await;
    }
    tokio::select! {
        biased;
        () = reader.news() => panic!("woken for nothing"),
        () = settled(&console) => {}
    }
}

#[tokio::test]
async fn input_has_one_writer_and_waits_for_the_guest() {
    let (console, ends) = Console::new(true).unwrap();
    let input = console.take_input().unwrap();
    assert!(console.take_input().is_none());
    let big = vec![b'x'; 200_000];
    let mut got = 0;
    let drain = async {
        let mut buffer = vec![0; 5000];
        while got < big.len() {
            match rustix::io::read(&ends.input, &mut buffer) {
                Ok(n) => got += n,
                Err(rustix::io::Errno::AGAIN) => tokio::task::yield_now().await,
                Err(e) => panic!("{e}"),
            }
        }
    };
    let (written, ()) = tokio::join!(input.write(&big), drain);
    written.unwrap();
    drop(input);
    assert!(console.take_input().is_some());
    let (silent, _ends) = Console::new(false).unwrap();
    assert!(silent.take_input().is_none());
}

#[tokio::test]
async fn input_to_a_dead_worker_is_an_error_and_no_signal() {
    let (console, ends) = Console::new(true).unwrap();
    let input = console.take_input().unwrap();
    drop(ends);
    assert!(input.write(b"x").await.is_err());
}

/// What a worker hands back: copies of what it got.
fn handed_back(ends: &WorkerEnds) -> [OwnedFd; 3] {
    [&ends.ring, &ends.notify, &ends.input].map(|fd| fd.try_clone().unwrap())
}

#[tokio::test]
async fn a_console_that_is_taken_over_has_its_past_and_goes_on() {
    let (first, ends) = Console::new(true).unwrap();
    print(&ends.ring, &ends.notify, b"past ");
    first.take_input().unwrap().write(b"typed before").await.unwrap();
    drop(first);
    let console = Console::adopted(handed_back(&ends), true).unwrap();
    let mut reader = console.reader(true);
    assert_eq!(read(&mut reader, 5).await, b"past ");
    settled(&console).await;
    assert!(print(&ends.ring, &ends.notify, b"present"), "somebody reads, and is to be told");
    assert_eq!(read(&mut reader, 7).await, b"present");
    console.take_input().unwrap().write(b", and after").await.unwrap();
    let mut typed = [0; 64];
    let bytes = rustix::io::read(&ends.input, &mut typed).unwrap();
    assert_eq!(&typed[..bytes], b"typed before, and after");
}

#[tokio::test]
async fn the_guests_input_never_hangs_up_and_a_worker_that_is_gone_is_noticed() {
    let (console, ends) = Console::new(true).unwrap();
    drop(console);
    assert_eq!(rustix::io::read(&ends.input, &mut [0; 1]), Err(rustix::io::Errno::AGAIN), "nobody else has it open");
    let console = Console::adopted(handed_back(&ends), true).unwrap();
    drop(ends);
    let error = console.take_input().unwrap().write(b"x").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn ends_that_a_console_cannot_have_are_not_taken() {
    let (_console, ends) = Console::new(true).unwrap();
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let blocking = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let read_only = || {
        let path = format!("/proc/self/fd/{}", ends.ring.as_raw_fd());
        OwnedFd::from(std::fs::File::open(path).unwrap())
    };
    let short = || memfd::sealed("short", RING_BYTES - 4096).unwrap();
    let lies: [(usize, OwnedFd); 7] = [
        (0, null()),
        (0, short()),
        (0, read_only()),
        (1, null()),
        (1, blocking()),
        (1, ends.ring.try_clone().unwrap()),
        (2, null()),
    ];
    for (n, (place, lie)) in lies.into_iter().enumerate() {
        let mut fds = handed_back(&ends);
        fds[place] = lie;
        assert!(Console::adopted(fds, true).is_err(), "{n}");
    }
    Console::adopted(handed_back(&ends), true).unwrap();
}
