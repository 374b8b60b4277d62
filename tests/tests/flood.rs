//! Clients that are many, slow, endless or silent: a VM can be stopped meanwhile, and what they cost is given back.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vmsup_tests::host::Host;
use vmsup_tests::{eventually, user};

/// Pages of memory that are the supervisor's own may not grow by more, KiB.
const GROWTH: u64 = 48 << 10;

fn host() -> Host {
    let host = Host::start(&user::with_subuids(), &["--pool", "1"]);
    host.vmsup(&["start", &host.guest("bystander", "deaf", "")]).ok();
    host
}

fn connect(host: &Host) -> UnixStream {
    UnixStream::connect(host.folder().join("api.sock")).unwrap()
}

/// KiB of memory that are the supervisor's alone.
fn memory(host: &Host) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The main job, from beginning to end.
fn vms_come_and_go(host: &Host) {
    host.vmsup(&["start", &host.guest("new", "deaf", "")]).ok();
    host.vmsup(&["kill", "new"]).ok();
    host.vmsup(&["rm", "new"]).ok();
    assert_eq!(host.state("bystander"), "running");
}

/// Afterwards all is as it was.
fn nothing_is_kept(mut host: Host, fds: usize, before: u64) {
    eventually("the flood's fds to be closed", || host.fds() <= fds);
    let now = memory(&host);
    assert!(now < before + GROWTH, "{now} KiB, where it was {before} KiB");
    host.vmsup(&["kill", "bystander"]).ok();
    host.vmsup(&["rm", "bystander"]).ok();
    host.leave();
}

#[test]
fn two_hundred_silent_half_and_slow_requests_keep_no_vm_from_being_stopped() {
    let host = host();
    vms_come_and_go(&host);
    let (fds, before) = (host.fds(), memory(&host));
    let whole = b"GET /v1/vms HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut flood: Vec<UnixStream> = (0..200).map(|_| connect(&host)).collect();
    for (n, stream) in flood.iter_mut().enumerate() {
        match n % 4 {
            0 => {}
            1 => stream.write_all(&whole[..n % whole.len()]).unwrap(),
            2 => {
                stream.write_all(b"POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{\"spec\"").unwrap()
            }
            // Many answers, of which none is ever read.
            _ => {
                stream.set_nonblocking(true).unwrap();
                for _ in 0..1000 {
                    if stream.write_all(whole).is_err() {
                        break;
                    }
                }
            }
        }
    }
    vms_come_and_go(&host);
    drop(flood);
    nothing_is_kept(host, fds, before);
}

#[test]
fn a_body_of_a_gib_is_refused_and_not_kept() {
    let host = host();
    vms_come_and_go(&host);
    let (fds, before) = (host.fds(), memory(&host));
    let block = vec![b' '; 1 << 20];
    std::thread::scope(|scope| {
        for chunked in [false, true, false, true] {
            let (host, block) = (&host, &block);
            scope.spawn(move || {
                let mut stream = connect(host);
                stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                let length = if chunked { "transfer-encoding: chunked" } else { "content-length: 1073741824" };
                write!(stream, "POST /v1/vms HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n").unwrap();
                for _ in 0..1024 {
                    let chunk = format!("{:x}\r\n", block.len());
                    let parts: [&[u8]; 3] =
                        if chunked { [chunk.as_bytes(), block, b"\r\n"] } else { [b"", block, b""] };
                    // It hangs up on who goes on.
                    if parts.iter().any(|part| stream.write_all(part).is_err()) {
                        break;
                    }
                }
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer);
                let answer = String::from_utf8_lossy(&answer);
                assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
            });
        }
        vms_come_and_go(&host);
    });
    nothing_is_kept(host, fds, before);
}

#[test]
fn readers_of_events_that_never_read_hold_up_nobody() {
    let host = host();
    vms_come_and_go(&host);
    let (fds, before) = (host.fds(), memory(&host));
    let mut lazy: Vec<UnixStream> = (0..8).map(|_| connect(&host)).collect();
    for stream in &mut lazy {
        stream.write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    }
    // More than the buffers of a socket hold.
    let file = host.guest("a", "deaf", "");
    host.vmsup(&["start", &file]).ok();
    let spec = |generation: usize| {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut spec: serde_json::Value = serde_json::from_str(&text).unwrap();
        spec["restart"] = if generation.is_multiple_of(2) { "no".into() } else { "on-failure".into() };
        spec
    };
    let mut stream = connect(&host);
    for generation in 1..=3000 {
        let body = serde_json::json!({ "spec": spec(generation), "deadline_s": 1 }).to_string();
        let request = format!("PUT /v1/vms/a HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).unwrap();
        answered(&mut stream);
    }
    vms_come_and_go(&host);
    host.vmsup(&["kill", "a"]).ok();
    host.vmsup(&["rm", "a"]).ok();
    drop((lazy, stream));
    nothing_is_kept(host, fds, before);
}

/// Reads one answer.
fn answered(stream: &mut UnixStream) {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    let head = String::from_utf8(text).unwrap();
    assert!(head.starts_with("HTTP/1.1 2"), "{head}");
    let length = head.to_ascii_lowercase();
    let length = length.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    stream.read_exact(&mut vec![0; length]).unwrap();
}
