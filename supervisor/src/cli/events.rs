//! `vmsup events`: what happened, and what happens.

use super::client::{Api, CallError, Client};
use super::failure::{Failure, notice};
use super::http::segment;
use super::output::{print, time};
use super::sanitize::line;
use std::time::Duration;
use vmsup::api::types::{Event, EventKind};

/// How long after a supervisor went away its successor is looked for again.
const RETRY: Duration = Duration::from_millis(300);

/// What `vmsup events` was asked for.
#[derive(Debug)]
pub struct Options {
    /// Go on with what comes.
    pub follow: bool,
    /// Begin behind this cursor.
    pub after: Option<u64>,
    /// Only those about this VM.
    pub vm: Option<String>,
    /// One JSON object a line.
    pub json: bool,
}

/// `vmsup events`.
pub fn events(client: &Client, options: &Options) -> Result<(), Failure> {
    let mut after = options.after;
    let mut api = client.connect()?;
    loop {
        match stream(api, options, &mut after) {
            Ok(()) if !options.follow => return Ok(()),
            Err(Stopped::Failed(failure)) => return Err(failure),
            Err(Stopped::Asked(error @ CallError::Api(_))) => return Err(error.into()),
            Err(Stopped::Asked(error)) if !options.follow => return Err(error.into()),
            // A supervisor that left in good order, or was killed: the next one goes on where it stopped.
            Ok(()) | Err(Stopped::Asked(_)) => notice("the supervisor went away; waiting for the next one"),
        }
        api = next_supervisor(client)?;
    }
}

/// Waits for a supervisor, and starts none: somebody ended the last one, and will want to say when there is another.
fn next_supervisor(client: &Client) -> Result<Api, Failure> {
    loop {
        match client.try_connect() {
            Ok(api) => return Ok(api),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return client.connect(),
            // There is nothing to wait on: a socket that is not there yet cannot be watched.
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

/// Why a stream was left.
enum Stopped {
    /// The supervisor refused, or is gone.
    Asked(CallError),
    /// We cannot go on.
    Failed(Failure),
}

impl From<CallError> for Stopped {
    fn from(error: CallError) -> Stopped {
        Stopped::Asked(error)
    }
}

/// Prints what one supervisor tells; `after` is the cursor of the last event that was printed.
fn stream(mut api: Api, options: &Options, after: &mut Option<u64>) -> Result<(), Stopped> {
    if options.follow {
        api.be_patient()?;
    }
    let mut target = format!("/v1/events?follow={}", options.follow);
    if let Some(cursor) = after {
        target.push_str(&format!("&after={cursor}"));
    }
    if let Some(vm) = &options.vm {
        target.push_str(&format!("&vm={}", segment(vm)));
    }
    let mut lines = api.lines(&target)?;
    while let Some(event) = lines.next::<Event>()? {
        *after = Some(event.cursor);
        let text = if options.json { json(&event) } else { Ok(human(&event)) };
        text.and_then(print).map_err(Stopped::Failed)?;
    }
    Ok(())
}

fn json(event: &Event) -> Result<String, Failure> {
    let text = serde_json::to_string(event);
    text.map(|text| text + "\n").map_err(|e| Failure::failed(format!("an event cannot be printed as JSON ({e})")))
}

/// `time  kind  vm  cause`, made harmless.
fn human(event: &Event) -> String {
    let vm = event.vm.as_deref().unwrap_or("-");
    let text = format!("{}  {:<18}  {vm:<12}  {}", time(event.at_ms), kind(event.kind), event.cause);
    line(text.trim_end()) + "\n"
}

/// A kind as the API writes it, for people: `supervisor_left` without its underscore.
fn kind(kind: EventKind) -> String {
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(name)) => name.replace('_', " "),
        _ => "unknown".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    fn event(cursor: u64, cause: &str) -> Event {
        let (vm, id) = (Some("web1".into()), Some("00ff".into()));
        Event { cursor, at_ms: 1_790_000_000_123, kind: EventKind::Ended, vm, id, owner: Some(1), cause: cause.into() }
    }

    #[test]
    fn a_line_is_for_people_and_harmless() {
        assert_eq!(
            human(&event(1, "the guest said \x1b[2Jbye")),
            "2026-09-21T14:13:20Z  ended               web1          the guest said \\u{1b}[2Jbye\n"
        );
    }

    /// A supervisor that answers one request with these events and hangs up; says what it was asked.
    fn answer(listener: &UnixListener, events: &[Event], chunked_to_the_end: bool) -> String {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = Vec::new();
        let mut byte = [0];
        while !asked.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            asked.push(byte[0]);
        }
        let mut body = String::new();
        for event in events {
            let line = serde_json::to_string(event).unwrap() + "\n";
            // Cut in the middle: a piece is no line.
            let (a, b) = line.split_at(line.len() / 2);
            body += &format!("{:x}\r\n{a}\r\n{:x}\r\n{b}\r\n", a.len(), b.len());
        }
        if chunked_to_the_end {
            body += "0\r\n\r\n";
        }
        stream.write_all(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}").as_bytes()).unwrap();
        String::from_utf8(asked).unwrap().lines().next().unwrap().to_owned()
    }

    fn streamed(path: &Path, after: &mut Option<u64>) -> bool {
        let options = Options { follow: true, after: None, vm: Some("web1".into()), json: true };
        let api = Client::new(Some(path)).connect().unwrap();
        stream(api, &options, after).is_ok()
    }

    #[test]
    fn who_follows_goes_on_where_the_last_supervisor_stopped() {
        let path = std::env::temp_dir().join(format!("vmsup-events-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            [answer(&listener, &[event(7, "a"), event(8, "b")], false), answer(&listener, &[event(9, "c")], true)]
        });
        let mut after = None;
        // Killed in the middle, then left in good order.
        assert!(!streamed(&path, &mut after));
        assert_eq!(after, Some(8));
        assert!(streamed(&path, &mut after));
        assert_eq!(after, Some(9));
        let asked = server.join().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(asked[0], "GET /v1/events?follow=true&vm=web1 HTTP/1.1");
        assert_eq!(asked[1], "GET /v1/events?follow=true&after=8&vm=web1 HTTP/1.1");
    }
}
