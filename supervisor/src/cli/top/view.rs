//! A frame of `vmsup top`: from the model to cells. Every text in it was made harmless before.

use super::super::output::age;
use super::super::rates::{Rates, micros, percent, short, short_bytes};
use super::model::{Column, Model, Row};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, RenderDirection, Sparkline, Table, TableState};
use vmsup::api::types::VmState;

/// Lines of the detail pane.
const DETAIL: u16 = 7;
/// Lines of the events, where there is room.
const EVENTS: u16 = 4;
/// The least that is left of the table.
const TABLE_MIN: u16 = 5;

/// Draws everything, into whatever room there is.
pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let room = frame.area().height;
    let detail = if model.detail && room >= TABLE_MIN + DETAIL + 2 { DETAIL } else { 0 };
    let events = if room >= TABLE_MIN + detail + EVENTS + 2 { EVENTS } else { 0 };
    let [head, table, pane, happened, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(detail),
        Constraint::Length(events),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(title(model), head);
    vms(frame, model, table);
    if detail > 0 {
        one(frame, model, pane);
    }
    if events > 0 {
        tail(frame, model, happened);
    }
    frame.render_widget(footer(model), keys);
}

fn title(model: &Model) -> Line<'static> {
    let all = model.all();
    let running = all.iter().filter(|row| row.state == VmState::Running).count();
    let sum = |of: fn(&Row) -> Option<f64>| all.iter().filter_map(of).fold(0.0, |sum, one| sum + one);
    let vms = match all.len() {
        1 => "1 VM".to_owned(),
        n => format!("{n} VMs"),
    };
    let mut line = Line::from(vec![
        Span::from("vmsup").bold(),
        Span::from(format!("  {vms}, {running} running")),
        Span::from(format!("  CPU {}%", percent(sum(|row| row.rates.cpu)))),
        Span::from(format!("  memory {}", short_bytes(sum(|row| row.memory.map(|bytes| bytes as f64))))),
    ]);
    if let Some(trouble) = &model.trouble {
        line.push_span(Span::from(format!("  {trouble}")).red().bold());
    }
    line
}

/// A column's title and width; the name has what is left.
fn heading(column: Column) -> (&'static str, u16) {
    match column {
        Column::Name => ("NAME", 9),
        Column::State => ("STATE", 8),
        Column::Health => ("HLTH", 4),
        Column::Cpu => ("CPU%", 5),
        Column::Steal => ("STL%", 4),
        Column::Memory => ("MEM", 5),
        Column::Read => ("READ", 5),
        Column::Written => ("WRITE", 5),
        Column::Received => ("RX", 5),
        Column::Sent => ("TX", 5),
        Column::Exits => ("EXITS", 5),
        Column::Restarts => ("RST", 3),
        Column::Uptime => ("UP", 5),
    }
}

fn is_text(column: Column) -> bool {
    matches!(column, Column::Name | Column::State | Column::Health)
}

fn vms(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let head = Column::ALL.map(|column| {
        let text = Text::from(heading(column).0);
        let text = if is_text(column) { text } else { text.right_aligned() };
        let style = if column == model.sort { Style::new().bold().underlined() } else { Style::new().bold() };
        Cell::from(text.style(style))
    });
    let rows: Vec<ratatui::widgets::Row<'_>> = model.rows().into_iter().map(cells).collect();
    let widths = Column::ALL.map(|column| match column {
        Column::Name => Constraint::Min(heading(column).1),
        column => Constraint::Length(heading(column).1),
    });
    if rows.is_empty() {
        let why = if model.all().is_empty() { "no VMs; vmsup start FILE starts one" } else { "no VM of that name" };
        frame.render_widget(Paragraph::new(format!("\n{why}")), area);
        return;
    }
    let table = Table::new(rows, widths)
        .header(ratatui::widgets::Row::new(head))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::default().with_selected(model.chosen());
    frame.render_stateful_widget(table, area, &mut state);
}

fn cells(row: &Row) -> ratatui::widgets::Row<'static> {
    let number = |value: Option<f64>, form: fn(f64) -> String| value.map_or_else(|| "-".to_owned(), form);
    let Rates { cpu, steal, exits, read, written, received, sent, .. } = row.rates;
    let cells = Column::ALL.map(|column| {
        let text = match column {
            Column::Name => row.name.clone(),
            Column::State => state(row.state).to_owned(),
            Column::Health => row.health.to_owned(),
            Column::Cpu => number(cpu, percent),
            Column::Steal => number(steal, percent),
            Column::Memory => number(row.memory.map(|bytes| bytes as f64), short_bytes),
            Column::Read => number(read, short_bytes),
            Column::Written => number(written, short_bytes),
            Column::Received => number(received, short_bytes),
            Column::Sent => number(sent, short_bytes),
            Column::Exits => number(exits, short),
            Column::Restarts => row.restarts.min(999).to_string(),
            Column::Uptime => row.uptime.map_or_else(|| "-".into(), short_age),
        };
        let text = if is_text(column) { Text::from(text) } else { Text::from(text).right_aligned() };
        Cell::from(match column {
            Column::State => text.style(Style::new().fg(colour(row.state))),
            Column::Health if matches!(row.health, "bad" | "hung") => text.red().bold(),
            _ => text,
        })
    });
    ratatui::widgets::Row::new(cells)
}

/// In at most eight characters.
fn state(state: VmState) -> &'static str {
    match state {
        VmState::Restarting => "restart",
        state => super::super::vms::state(state),
    }
}

fn colour(state: VmState) -> Color {
    match state {
        VmState::Running => Color::Green,
        VmState::Starting | VmState::Stopping | VmState::Restarting | VmState::Paused => Color::Yellow,
        VmState::Crashed => Color::Red,
        VmState::Stopped => Color::Reset,
    }
}

/// The largest unit alone where both do not fit.
fn short_age(seconds: u64) -> String {
    let text = age(seconds);
    if text.len() <= 5 {
        return text;
    }
    let end = text.find(|c: char| c.is_ascii_alphabetic()).map_or(text.len(), |at| at + 1);
    text[..end].to_owned()
}

/// A line of sparks: its name, its number, how that is written.
type Series = (&'static str, fn(&Rates) -> Option<f64>, fn(f64) -> String);

/// The chosen VM.
fn one(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let rows = model.rows();
    let Some(row) = model.chosen().and_then(|at| rows.get(at)) else { return };
    let [head, lines @ ..] =
        Layout::vertical([Constraint::Length(1); DETAIL as usize]).areas::<{ DETAIL as usize }>(area);
    let memory = row.memory.map_or_else(|| "-".to_owned(), |bytes| short_bytes(bytes as f64));
    let mut title = Line::from(vec![
        Span::from(format!("{} ", row.name)).bold(),
        Span::from(format!("{}  {} vCPUs  memory {memory} of {} MiB", row.id, row.cpus, row.memory_mib)),
    ]);
    if let Some(why) = &row.why {
        title.push_span(Span::from(format!("  {why}")).red());
    }
    frame.render_widget(title, head);
    let series: [Series; 6] = [
        ("CPU %", |r| r.cpu, percent),
        ("steal %", |r| r.steal, percent),
        ("disk p50", |r| r.disk_p50_us, micros),
        ("disk p99", |r| r.disk_p99_us, micros),
        ("received", |r| r.received, short_bytes),
        ("sent", |r| r.sent, short_bytes),
    ];
    for (area, (name, of, form)) in lines.into_iter().zip(series) {
        let [label, value, bars] =
            Layout::horizontal([Constraint::Length(9), Constraint::Length(7), Constraint::Min(1)]).areas(area);
        let last = model.past(&row.id).next_back().and_then(of);
        frame.render_widget(Line::from(name).dim(), label);
        frame.render_widget(Line::from(last.map_or_else(|| "-".into(), form)), value);
        // Thousandths: a spark has eight heights, and what is less than one is seen as well.
        let points: Vec<Option<u64>> =
            model.past(&row.id).rev().take(bars.width.into()).map(|r| of(r).map(|v| (v * 1000.0) as u64)).collect();
        frame.render_widget(Sparkline::default().data(points).direction(RenderDirection::RightToLeft).cyan(), bars);
    }
}

fn tail(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let room = usize::from(area.height.saturating_sub(1));
    let mut lines = vec![Line::from("events (UTC)").bold()];
    lines.extend(
        model.events.iter().skip(model.events.len().saturating_sub(room)).map(|event| Line::from(event.as_str())),
    );
    frame.render_widget(Paragraph::new(lines), area);
}

fn footer(model: &Model) -> Line<'static> {
    if model.typing {
        return Line::from(format!("name: {}_   Enter keeps it, Esc clears it", model.filter));
    }
    let mut line = Line::default();
    if !model.filter.is_empty() {
        line.push_span(Span::from(format!("[{}]  ", model.filter)).yellow());
    }
    for (key, what) in
        [("q", "quit"), ("<>", "sort"), ("r", "reverse"), ("/", "filter"), ("Enter", "detail"), ("n c m e u", "column")]
    {
        line.push_span(Span::from(key).bold());
        line.push_span(Span::from(format!(" {what}  ")).dim());
    }
    line
}
