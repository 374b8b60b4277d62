//! What `vmsup top` knows and shows: from answers and keys to rows. Pure: no clock, no terminal, no socket.

use super::super::rates::{Rates, between, memory};
use super::super::sanitize::line;
use ratatui::crossterm::event::KeyCode;
use std::collections::{BTreeMap, VecDeque};
use vmsup::api::types::{Event, HealthState, VmState, VmStats, VmSummary};

/// How many seconds of a VM's past are kept for its sparklines.
pub const PAST: usize = 240;
/// How many events are kept.
const EVENTS_MAX: usize = 50;
/// The longest filter.
const FILTER_MAX: usize = 63;

/// What is shown, and how.
#[derive(Debug, Default)]
pub struct Model {
    rows: Vec<Row>,
    last: BTreeMap<String, VmStats>,
    past: BTreeMap<String, VecDeque<Rates>>,
    /// What happened, the last one last.
    pub events: VecDeque<String>,
    cursor: u64,
    /// Why nothing new came.
    pub trouble: Option<String>,
    /// By which column.
    pub sort: Column,
    /// The other way round.
    pub reverse: bool,
    /// Only VMs whose name holds this.
    pub filter: String,
    /// The filter is being typed.
    pub typing: bool,
    /// The detail pane is open.
    pub detail: bool,
    /// Id of the VM that is chosen.
    chosen: Option<String>,
}

/// A VM.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// Its name, made harmless.
    pub name: String,
    /// Where it is in its life.
    pub state: VmState,
    /// How it is, in a word, where that is known.
    pub health: &'static str,
    /// Why it is not well, or its worker tells nothing.
    pub why: Option<String>,
    /// What it does.
    pub rates: Rates,
    /// Its memory, bytes.
    pub memory: Option<u64>,
    /// Its restarts.
    pub restarts: u32,
    /// For how long it runs, seconds.
    pub uptime: Option<u64>,
    /// vCPUs.
    pub cpus: u16,
    /// Memory of its guest, MiB.
    pub memory_mib: u64,
}

/// A column, which is also an order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Column {
    Name,
    State,
    Health,
    #[default]
    Cpu,
    Steal,
    Memory,
    Read,
    Written,
    Received,
    Sent,
    Exits,
    Restarts,
    Uptime,
}

impl Column {
    /// From left to right.
    pub const ALL: [Column; 13] = [
        Column::Name,
        Column::State,
        Column::Health,
        Column::Cpu,
        Column::Steal,
        Column::Memory,
        Column::Read,
        Column::Written,
        Column::Received,
        Column::Sent,
        Column::Exits,
        Column::Restarts,
        Column::Uptime,
    ];

    fn beside(self, step: isize) -> Column {
        let at = Column::ALL.iter().position(|column| *column == self).unwrap_or(0);
        let count = Column::ALL.len() as isize;
        Column::ALL[(at as isize + step).rem_euclid(count) as usize]
    }

    /// Texts go up, numbers go down: the largest first.
    fn order(self, a: &Row, b: &Row) -> std::cmp::Ordering {
        let down = |value: fn(&Row) -> Option<f64>| {
            // What is not known comes last.
            value(b).unwrap_or(-1.0).total_cmp(&value(a).unwrap_or(-1.0))
        };
        match self {
            Column::Name => a.name.cmp(&b.name),
            Column::State => (a.state as u8).cmp(&(b.state as u8)),
            Column::Health => b.health.cmp(a.health),
            Column::Cpu => down(|r| r.rates.cpu),
            Column::Steal => down(|r| r.rates.steal),
            Column::Memory => b.memory.cmp(&a.memory),
            Column::Read => down(|r| r.rates.read),
            Column::Written => down(|r| r.rates.written),
            Column::Received => down(|r| r.rates.received),
            Column::Sent => down(|r| r.rates.sent),
            Column::Exits => down(|r| r.rates.exits),
            Column::Restarts => b.restarts.cmp(&a.restarts),
            Column::Uptime => b.uptime.cmp(&a.uptime),
        }
    }
}

/// What a key asked of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Go on.
    Nothing,
    /// Leave.
    Quit,
}

impl Model {
    /// An answer of the supervisor: all VMs, what they use, and what happened since the last one. `now`: seconds since 1970.
    pub fn take(&mut self, vms: &[VmSummary], stats: Vec<VmStats>, events: &[Event], now: u64) {
        self.trouble = None;
        let stats: BTreeMap<String, VmStats> = stats.into_iter().map(|stats| (stats.id.clone(), stats)).collect();
        let mut past = BTreeMap::new();
        self.rows = vms
            .iter()
            .map(|vm| {
                let current = stats.get(&vm.id);
                let before = self.last.get(&vm.id);
                let rates = before.zip(current).map(|(before, now)| between(before, now)).unwrap_or_default();
                let mut own: VecDeque<Rates> = self.past.remove(&vm.id).unwrap_or_default();
                own.push_back(rates.clone());
                while own.len() > PAST {
                    own.pop_front();
                }
                past.insert(vm.id.clone(), own);
                row(vm, current, rates, now)
            })
            .collect();
        (self.last, self.past) = (stats, past);
        self.happened(events);
        let Model { chosen, rows, .. } = self;
        if chosen.as_ref().is_some_and(|id| !rows.iter().any(|row| row.id == *id)) {
            *chosen = None;
        }
    }

    fn happened(&mut self, events: &[Event]) {
        for event in events.iter().filter(|event| event.cursor > self.cursor) {
            let kind = serde_json::to_value(event.kind).ok();
            let kind = kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or("?").replace('_', " ");
            let (clock, vm) = (clock(event.at_ms), event.vm.as_deref().unwrap_or("-"));
            self.events.push_back(line(&format!("{clock} {vm} {kind}: {}", event.cause)));
        }
        self.cursor = events.iter().map(|event| event.cursor).fold(self.cursor, u64::max);
        while self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
    }

    /// Events up to this one are known.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// The VMs that are shown, in order.
    pub fn rows(&self) -> Vec<&Row> {
        let filter = self.filter.to_lowercase();
        let mut rows: Vec<&Row> = self.rows.iter().filter(|row| row.name.to_lowercase().contains(&filter)).collect();
        rows.sort_by(|a, b| {
            let order = self.sort.order(a, b);
            // Equal ones stand still from second to second.
            (if self.reverse { order.reverse() } else { order }).then_with(|| a.name.cmp(&b.name)).then(a.id.cmp(&b.id))
        });
        rows
    }

    /// All VMs, shown or not.
    pub fn all(&self) -> &[Row] {
        &self.rows
    }

    /// Where the chosen one stands among those that are shown: the first, where none is chosen.
    pub fn chosen(&self) -> Option<usize> {
        let rows = self.rows();
        let at = self.chosen.as_ref().and_then(|id| rows.iter().position(|row| row.id == *id));
        at.or(if rows.is_empty() { None } else { Some(0) })
    }

    /// What a VM did lately, the last second last.
    pub fn past(&self, id: &str) -> impl DoubleEndedIterator<Item = &Rates> {
        self.past.get(id).into_iter().flatten()
    }

    /// A key was pressed.
    pub fn key(&mut self, key: KeyCode) -> Asked {
        if self.typing {
            self.typed(key);
            return Asked::Nothing;
        }
        match key {
            KeyCode::Char('q') => return Asked::Quit,
            KeyCode::Esc if self.detail => self.detail = false,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Enter => self.detail = !self.detail,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('r') => self.reverse = !self.reverse,
            KeyCode::Left | KeyCode::Char('<') => self.by(self.sort.beside(-1)),
            KeyCode::Right | KeyCode::Char('>') => self.by(self.sort.beside(1)),
            KeyCode::Char('n') => self.by(Column::Name),
            KeyCode::Char('c') => self.by(Column::Cpu),
            KeyCode::Char('m') => self.by(Column::Memory),
            KeyCode::Char('e') => self.by(Column::Exits),
            KeyCode::Char('u') => self.by(Column::Uptime),
            KeyCode::Up | KeyCode::Char('k') => self.choose(-1),
            KeyCode::Down | KeyCode::Char('j') => self.choose(1),
            KeyCode::PageUp => self.choose(-10),
            KeyCode::PageDown => self.choose(10),
            KeyCode::Home => self.choose(isize::MIN / 2),
            KeyCode::End => self.choose(isize::MAX / 2),
            _ => {}
        }
        Asked::Nothing
    }

    fn typed(&mut self, key: KeyCode) {
        match key {
            KeyCode::Esc => (self.typing, self.filter) = (false, String::new()),
            KeyCode::Enter => self.typing = false,
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) if !c.is_control() && self.filter.len() < FILTER_MAX => self.filter.push(c),
            _ => {}
        }
    }

    fn by(&mut self, column: Column) {
        (self.sort, self.reverse) = (column, false);
    }

    fn choose(&mut self, step: isize) {
        let rows = self.rows();
        let Some(last) = rows.len().checked_sub(1) else { return };
        let at = self.chosen().unwrap_or(0).saturating_add_signed(step).min(last);
        self.chosen = Some(rows[at].id.clone());
    }
}

fn row(vm: &VmSummary, stats: Option<&VmStats>, rates: Rates, now: u64) -> Row {
    let (health, why) = match &vm.health {
        None => ("-", None),
        Some(HealthState::Starting) => ("new", None),
        Some(HealthState::Healthy) => ("ok", None),
        Some(HealthState::Unhealthy(why)) => ("bad", Some(why)),
        Some(HealthState::Hung(why)) => ("hung", Some(why)),
        Some(HealthState::Unknown(why)) => ("?", Some(why)),
    };
    let why = why.or(stats.and_then(|stats| stats.unanswered.as_ref())).map(|why| line(why));
    let runs = !matches!(vm.state, VmState::Stopped | VmState::Crashed | VmState::Restarting);
    Row {
        id: vm.id.clone(),
        name: line(&vm.name),
        state: vm.state,
        health,
        why,
        rates,
        memory: stats.and_then(memory),
        restarts: vm.restarts,
        uptime: vm.started_at.filter(|_| runs).map(|at| now.saturating_sub(at)),
        cpus: vm.cpus,
        memory_mib: vm.memory_mib,
    }
}

/// The time of day, UTC.
fn clock(ms: u64) -> String {
    let s = ms / 1000;
    format!("{:02}:{:02}:{:02}", s / 3600 % 24, s / 60 % 60, s % 60)
}
