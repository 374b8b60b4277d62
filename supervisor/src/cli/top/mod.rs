//! `vmsup top`: a live table of VMs.
//!
//! One thread asks the supervisor once a second and waits as long as a worker that hangs makes it wait; this one draws, and
//! hears keys at once. The terminal is given back as it was: at the end, at a signal, and in a panic.

mod model;
mod view;

use super::client::{Api, CallError, Client};
use super::failure::Failure;
use super::output::{now, print};
use super::signals::Signals;
use model::{Asked, Model};
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
use std::io::IsTerminal;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;
use vmsup::api::types::{Event, VmStats, VmSummary};

/// How long one answer is shown.
const REFRESH: Duration = Duration::from_secs(1);
/// How long a signal or an answer may wait to be noticed.
const GLANCE: Duration = Duration::from_millis(100);
/// Width and height of a frame where there is no terminal.
const PAGE: (u16, u16) = (80, 24);
/// Exit status after Ctrl-C, as shells count: 128 and SIGINT.
const INTERRUPTED: u8 = 130;

/// What the supervisor told: all VMs, what they use, what happened.
type Told = (Vec<VmSummary>, Vec<VmStats>, Vec<Event>);
/// The same, or why it told nothing.
type Answer = Result<Told, String>;

/// `vmsup top`.
pub fn top(client: &Client, once: bool) -> Result<(), Failure> {
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if !(once || terminal) {
        return Err(Failure::input("top needs a terminal; `vmsup top --once` prints one frame"));
    }
    if !once && size().is_none() {
        return Err(Failure::failed("the terminal does not say how large it is; tell it (stty rows 24 cols 80)"));
    }
    let mut api = client.connect()?;
    if once {
        return print(frame(client, &mut api)?);
    }
    let signals = super::vms::signals()?;
    let (answers, told) = mpsc::sync_channel(1);
    let (_stop, stopped) = mpsc::channel();
    let client = client.clone();
    std::thread::spawn(move || keep_asking(&client, api, &answers, &stopped));
    // Also makes a panic give the terminal back before it is told.
    let mut terminal =
        ratatui::try_init().map_err(|e| Failure::failed(format!("the terminal cannot be used ({e})")))?;
    let result = show(&mut terminal, &told, &signals);
    ratatui::restore();
    result
}

/// Width and height of the terminal; a serial one may not know.
fn size() -> Option<(u16, u16)> {
    ratatui::crossterm::terminal::size().ok().filter(|(width, height)| *width > 0 && *height > 0)
}

/// One frame as plain text, of two answers a second apart.
fn frame(client: &Client, api: &mut Api) -> Result<String, Failure> {
    let mut model = Model::default();
    for turn in 0..2 {
        if turn > 0 {
            std::thread::sleep(REFRESH);
        }
        let (vms, stats, events) = ask(client, api, model.cursor())?;
        model.take(&vms, stats, &events, now());
    }
    Ok(plain(&model, size().unwrap_or(PAGE)))
}

/// A frame as text, without colours and without the blanks at the ends of its lines.
fn plain(model: &Model, (width, height): (u16, u16)) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width.max(1), height.max(1)));
    let Ok(_) = terminal.draw(|frame| view::draw(frame, model));
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for line in buffer.content().chunks(usize::from(buffer.area.width).max(1)) {
        let line: String = line.iter().map(|cell| cell.symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Asks once a second until nobody listens.
fn keep_asking(client: &Client, api: Api, answers: &SyncSender<Answer>, stopped: &Receiver<()>) {
    let (mut api, mut cursor) = (Some(api), 0);
    loop {
        let answer = match &mut api {
            Some(api) => ask(client, api, cursor),
            None => Err(CallError::Transport(String::new())),
        };
        let answer = answer.or_else(|_| {
            // Once more on a connection of its own: this one may have been closed because it was quiet.
            let mut again =
                client.try_connect().map_err(|error| format!("the supervisor cannot be reached ({error})"))?;
            let answer =
                ask(client, &mut again, cursor).map_err(|error| Failure::from(error).sentence.unwrap_or_default());
            api = Some(again);
            answer
        });
        if let Ok((_, _, events)) = &answer {
            cursor = events.iter().map(|event| event.cursor).fold(cursor, u64::max);
        } else {
            api = None;
        }
        if answers.send(answer).is_err() || stopped.recv_timeout(REFRESH) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

fn ask(client: &Client, api: &mut Api, after: u64) -> Result<Told, CallError> {
    let vms = api.call("GET", "/v1/vms")?;
    let stats = api.call("GET", "/v1/stats")?;
    // A stream takes its connection along.
    let events = client.try_connect().map_err(|error| CallError::Transport(error.to_string()))?;
    let mut lines = events.lines(&format!("/v1/events?after={after}"))?;
    let mut events = Vec::new();
    while let Some(event) = lines.next()? {
        events.push(event);
    }
    Ok((vms, stats, events))
}

/// Draws and hears until the user leaves.
fn show(terminal: &mut DefaultTerminal, told: &Receiver<Answer>, signals: &Signals) -> Result<(), Failure> {
    let broken = |error: std::io::Error| Failure::failed(format!("the terminal cannot be used ({error})"));
    let mut model = Model::default();
    terminal.draw(|frame| view::draw(frame, &model)).map_err(broken)?;
    loop {
        let mut news = false;
        while let Ok(answer) = told.try_recv() {
            news = true;
            match answer {
                Ok((vms, stats, events)) => model.take(&vms, stats, &events, now()),
                Err(why) => model.trouble = Some(super::sanitize::line(&why)),
            }
        }
        if let Some(status) = signals.next_status() {
            return Err(Failure::status(status));
        }
        if event::poll(GLANCE).map_err(broken)? {
            match event::read().map_err(broken)? {
                // In a raw terminal it is a key like any other.
                Input::Key(key) if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') => {
                    return Err(Failure::status(INTERRUPTED));
                }
                Input::Key(key) if key.kind != KeyEventKind::Release => {
                    if model.key(key.code) == Asked::Quit {
                        return Ok(());
                    }
                    news = true;
                }
                Input::Resize(..) => news = true,
                _ => {}
            }
        }
        if news {
            terminal.draw(|frame| view::draw(frame, &model)).map_err(broken)?;
        }
    }
}

#[cfg(test)]
mod tests;
