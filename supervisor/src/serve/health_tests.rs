//! What is seen of a VM, and what is made of it.

use super::*;

fn health(json: &str) -> Health {
    serde_json::from_str(json).unwrap()
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn refused() -> Sight {
    Sight::Port(Err("port 80 of 10.0.0.2: refused".into()))
}

fn kind(news: Option<News>) -> Option<EventKind> {
    news.map(|news| news.kind)
}

#[test]
fn a_guest_is_up_once_it_has_written_its_marker() {
    let mut monitor = Monitor::new(Some(&health(r#"{"console":"login:"}"#)), false);
    assert_eq!((monitor.marker(), monitor.shown()), (Some("login:"), Some(HealthState::Starting)));
    assert_eq!(monitor.see(Sight::Beat, at(59)), None);
    assert_eq!(kind(monitor.see(Sight::Marker, at(59))), Some(EventKind::Healthy));
    assert_eq!((monitor.marker(), monitor.shown()), (None, Some(HealthState::Healthy)));
    assert_eq!(monitor.see(Sight::Beat, at(600)), None);
}

#[test]
fn a_guest_that_does_not_come_up_in_its_time_is_unhealthy_and_may_still_come() {
    let mut monitor =
        Monitor::new(Some(&health(r#"{"console":"up\u001b[2J","start_s":90,"on_failure":"kill"}"#)), false);
    assert_eq!(monitor.see(Sight::Beat, at(89)), None);
    assert_eq!(monitor.to_be_killed(), None);
    let news = monitor.see(Sight::Beat, at(90)).unwrap();
    assert_eq!(news.kind, EventKind::Unhealthy);
    assert!(news.cause.contains("in 90 s") && !news.cause.contains('\x1b'), "{news:?}");
    assert_eq!(monitor.to_be_killed(), Some(news.cause.as_str()));
    assert_eq!(monitor.see(Sight::Beat, at(120)), None, "said once");
    assert_eq!(kind(monitor.see(Sight::Marker, at(130))), Some(EventKind::Healthy));
    assert_eq!(monitor.to_be_killed(), None);
}

#[test]
fn looks_that_fail_count_only_in_a_row_and_after_the_time_to_come_up() {
    let mut monitor = Monitor::new(Some(&health(r#"{"tcp":80,"start_s":60,"retries":3}"#)), false);
    for _ in 0..9 {
        assert_eq!(monitor.see(refused(), at(59)), None);
    }
    assert_eq!(kind(monitor.see(Sight::Port(Ok(())), at(59))), Some(EventKind::Healthy));
    for _ in 0..5 {
        assert_eq!(monitor.see(refused(), at(70)), None);
        assert_eq!(monitor.see(refused(), at(70)), None);
        assert_eq!(monitor.see(Sight::Port(Ok(())), at(70)), None);
    }
    // Once it was up, its time to come up is over.
    let seen: Vec<_> = (0..5).map(|_| kind(monitor.see(refused(), at(59)))).collect();
    assert_eq!(seen, [None, None, Some(EventKind::Unhealthy), None, None]);
    assert_eq!(monitor.to_be_killed(), None, "it is to be shown, no more");
    assert_eq!(kind(monitor.see(Sight::Port(Ok(())), at(99))), Some(EventKind::Healthy));
}

#[test]
fn a_guest_with_both_is_up_when_both_are_there() {
    let mut monitor = Monitor::new(Some(&health(r#"{"tcp":80,"console":"x"}"#)), false);
    assert_eq!(monitor.see(Sight::Port(Ok(())), at(1)), None);
    assert_eq!(monitor.see(Sight::Marker, at(2)), None);
    assert_eq!(kind(monitor.see(Sight::Port(Ok(())), at(3))), Some(EventKind::Healthy));
}

#[test]
fn a_stopped_worker_hangs_at_once_and_a_silent_one_at_the_second_look() {
    for file in [None, Some(health(r#"{"on_failure":"kill"}"#))] {
        let mut monitor = Monitor::new(file.as_ref(), false);
        assert_eq!(monitor.shown(), None);
        assert_eq!(kind(monitor.see(Sight::Stopped(true), at(1))), Some(EventKind::Hung));
        assert!(matches!(monitor.shown(), Some(HealthState::Hung(_))));
        assert_eq!(monitor.to_be_killed().is_some(), file.is_some());
        // An answer from before it was stopped, and silence, which is no news.
        assert_eq!(monitor.see(Sight::Answered, at(1)), None);
        assert_eq!(monitor.see(Sight::Silent, at(1)), None);
        assert_eq!(monitor.see(Sight::Silent, at(1)), None);
        assert_eq!(kind(monitor.see(Sight::Stopped(false), at(1))), Some(EventKind::Recovered));
        assert_eq!((monitor.shown(), monitor.to_be_killed()), (None, None));
        assert_eq!(monitor.see(Sight::Silent, at(1)), None);
        assert_eq!(monitor.see(Sight::Answered, at(1)), None);
        assert_eq!(monitor.see(Sight::Silent, at(1)), None);
        assert_eq!(kind(monitor.see(Sight::Silent, at(1))), Some(EventKind::Hung));
        assert_eq!(monitor.see(Sight::Silent, at(1)), None);
        assert_eq!(kind(monitor.see(Sight::Answered, at(1))), Some(EventKind::Recovered));
    }
}

#[test]
fn another_file_keeps_what_is_known_of_the_same_run() {
    let file = health(r#"{"console":"up","tcp":80}"#);
    let mut monitor = Monitor::new(Some(&file), false);
    monitor.see(Sight::Marker, at(1));
    monitor.see(Sight::Stopped(true), at(1));
    let same = monitor.changed(Some(&Health { retries: 9, ..file.clone() }));
    assert_eq!(same.marker(), None);
    assert!(matches!(same.shown(), Some(HealthState::Hung(_))));
    assert_eq!(monitor.changed(Some(&Health { console: Some("other".into()), ..file })).marker(), Some("other"));
    assert_eq!(monitor.changed(None).port(), None);
}

/// Every way to cut texts over a small alphabet: the marker is found exactly where it is there, in whatever pieces it comes.
#[test]
fn a_marker_is_found_across_all_borders() {
    for wanted in ["a", "ab", "aab", "abab", "aaaa"] {
        for bits in 0..1u32 << 9 {
            let text: Vec<u8> = (0..9).map(|n| if bits >> n & 1 == 0 { b'a' } else { b'b' }).collect();
            let there = text.windows(wanted.len()).any(|window| window == wanted.as_bytes());
            for cut in 0..=text.len() {
                for next in cut..=text.len() {
                    let mut matcher = Matcher::new(wanted);
                    let pieces = [&text[..cut], &text[cut..next], &text[next..]];
                    let found = pieces.iter().any(|piece| matcher.feed(false, piece));
                    assert_eq!(found, there, "{wanted} in {text:?} cut at {cut} and {next}");
                    assert!(matcher.tail.len() < wanted.len());
                }
            }
        }
    }
}

#[test]
fn bytes_that_were_lost_join_nothing() {
    let mut matcher = Matcher::new("login");
    assert!(!matcher.feed(false, b"log"));
    assert!(!matcher.feed(true, b"in"));
    assert!(matcher.feed(false, b" login"));
}

#[test]
fn what_cannot_be_looked_at_is_not_unwell() {
    let strict = r#"{"tcp":80,"start_s":60,"retries":1,"on_failure":"kill"}"#;
    let unseen = || Sight::Unseen("port 80 of 10.0.0.2: no network".into());
    for well in [false, true] {
        let mut monitor = Monitor::new(Some(&health(strict)), false);
        if well {
            monitor.see(Sight::Port(Ok(())), at(1));
        }
        let news = monitor.see(unseen(), at(600)).unwrap();
        assert_eq!(news.kind, EventKind::Unseen);
        assert!(news.cause.starts_with("cannot look: port 80"), "{news:?}");
        for _ in 0..9 {
            assert_eq!(monitor.see(unseen(), at(700)), None, "said once");
            assert_eq!(monitor.to_be_killed(), None);
        }
        assert_eq!(monitor.shown(), Some(HealthState::Unknown(news.cause)));
        // And what is seen again counts again.
        assert_eq!(kind(monitor.see(Sight::Port(Ok(())), at(800))), Some(EventKind::Healthy));
        assert_eq!(monitor.shown(), Some(HealthState::Healthy));
        monitor.see(unseen(), at(900));
        assert_eq!(kind(monitor.see(refused(), at(1000))), Some(EventKind::Unhealthy));
        assert!(monitor.to_be_killed().is_some());
    }
}
