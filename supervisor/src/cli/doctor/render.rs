//! The report as people read it: a line for each check, what is wrong with its reason and what mends it.

use super::Report;
use super::ids::Group;
use super::line::{Line, State};
use crate::cli::sanitize::line as harmless;
use std::io::IsTerminal;

/// How it is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Page {
    /// States are coloured.
    pub colours: bool,
    /// Sentences are wrapped at this width.
    pub width: Option<usize>,
}

impl Page {
    /// That of standard output.
    pub fn of_stdout() -> Page {
        let stdout = std::io::stdout();
        if !stdout.is_terminal() {
            return Page::default();
        }
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let width = rustix::termios::tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col));
        // no-color.org
        Page { colours: !dumb && !set("NO_COLOR"), width: width.filter(|width| *width > 0) }
    }
}

/// Left of the sentences: the state, the id, two blanks after each.
const STATE: usize = 7;
/// Narrower than this a column of sentences is no longer readable, and the terminal may wrap as it does.
const COLUMN_MIN: usize = 30;

/// The whole report.
pub fn render(report: &Report, page: Page) -> String {
    let names = report.lines.iter().map(|line| line.id.name().len()).max().unwrap_or(0);
    let indent = STATE + 2 + names + 2;
    let width = page.width.filter(|width| width.checked_sub(indent).is_some_and(|column| column >= COLUMN_MIN));
    let column = width.map(|width| width - indent);
    let mut out = String::new();
    for line in &report.lines {
        let (word, colour) = appearance(line.state);
        let word = if page.colours { format!("\x1b[{colour}m{word:STATE$}\x1b[m") } else { format!("{word:STATE$}") };
        let found = prose(&rows(&harmless(&line.found), column), indent);
        out.push_str(&format!("{word}  {:names$}  {found}\n", line.id));
        if !line.why.is_empty() {
            let why = rows(&format!("why: {}", harmless(&line.why)), column);
            out.push_str(&format!("{:indent$}{}\n", "", prose(&why, indent)));
        }
        if !line.mend.is_empty() {
            let mend = rows(&format!("mend: {}", harmless(&line.mend)), column);
            out.push_str(&format!("{:indent$}{}\n", "", command(&mend, indent, width)));
        }
    }
    out.push_str(&summary(&report.lines));
    out
}

fn appearance(state: State) -> (&'static str, &'static str) {
    match state {
        State::Ok => ("ok", "32"),
        State::Warning => ("warning", "33"),
        State::Failure => ("FAILURE", "1;31"),
        State::Unknown => ("unknown", "36"),
    }
}

/// A sentence in rows of at most `column` characters, where words allow that.
fn rows(text: &str, column: Option<usize>) -> Vec<String> {
    let mut rows: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let fits = |row: &String| column.is_none_or(|column| row.chars().count() + 1 + word.chars().count() <= column);
        match rows.last_mut().filter(|row| fits(row)) {
            Some(row) => {
                row.push(' ');
                row.push_str(word);
            }
            None => rows.push(word.to_owned()),
        }
    }
    rows
}

fn prose(rows: &[String], indent: usize) -> String {
    rows.join(&format!("\n{:indent$}", ""))
}

/// For copying: one line, with blanks up to where the terminal goes on in its next row by itself.
fn command(rows: &[String], indent: usize, width: Option<usize>) -> String {
    let mut out = String::new();
    for (number, row) in rows.iter().enumerate() {
        out.push_str(row);
        if let Some(width) = width.filter(|_| number + 1 < rows.len()) {
            let left = width - (indent + row.chars().count()) % width;
            out.push_str(&" ".repeat(left % width + indent));
        }
    }
    out
}

fn summary(lines: &[Line]) -> String {
    let count = |state| lines.iter().filter(|line| line.state == state).count();
    let all_of_networks = lines.iter().all(|l| l.state != State::Failure || l.id.group() == Group::Network);
    let told = |first: String| {
        let parts = [(State::Warning, "warning(s)"), (State::Unknown, "unknown")];
        let parts = parts.into_iter().map(|(state, what)| (count(state), what)).filter(|(number, _)| *number > 0);
        let parts: Vec<String> = parts.map(|(number, what)| format!("{number} {what}")).collect();
        if parts.is_empty() { format!("\n{first}.\n") } else { format!("\n{first}; {}.\n", parts.join(", ")) }
    };
    told(match count(State::Failure) {
        0 => "VMs can be started here".into(),
        failures if all_of_networks => {
            format!("VMs without networks can be started here, others cannot: {failures} failure(s)")
        }
        failures => format!("VMs cannot be started here: {failures} failure(s)"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::ids::Id;
    use super::*;

    fn lines() -> Vec<Line> {
        vec![Line::ok(Id::Kvm, "good\x1b[2J"), Line::failure(Id::Swap, "bad", "it matters", "mend it")]
    }

    #[test]
    fn the_report_shows_the_reason_and_the_command_of_what_is_wrong_only() {
        assert_eq!(
            render(&Report { lines: lines() }, Page::default()),
            "ok       kvm   good\\u{1b}[2J\nFAILURE  swap  bad\n               why: it matters\n               mend: mend it\n\n\
             VMs cannot be started here: 1 failure(s).\n"
        );
    }

    #[test]
    fn the_last_line_tells_whether_vms_can_be_started() {
        let last = |lines: Vec<Line>| summary(&lines).trim().to_owned();
        let warning = Line::warning(Id::Ksm, "a", "b", "c");
        let unknown = Line::unknown(Id::Netd, "a", "b", "c");
        let network = Line::failure(Id::Netd, "a", "b", "c");
        assert_eq!(last(vec![Line::ok(Id::Kvm, "a")]), "VMs can be started here.");
        assert_eq!(last(vec![warning, unknown]), "VMs can be started here; 1 warning(s), 1 unknown.");
        assert_eq!(
            last(vec![network.clone()]),
            "VMs without networks can be started here, others cannot: 1 failure(s)."
        );
        assert_eq!(last([lines(), vec![network]].concat()), "VMs cannot be started here: 2 failure(s).");
    }

    #[test]
    fn on_a_terminal_states_are_coloured_and_sentences_wrapped_but_commands_stay_one_line() {
        let words = "one two three four five six seven eight nine ten eleven twelve";
        let report = Report { lines: vec![Line::warning(Id::Ksm, words, words, words)] };
        let text = render(&report, Page { colours: true, width: Some(14 + 40) });
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows[0], "\x1b[33mwarning\x1b[m  ksm  one two three four five six seven eight");
        assert_eq!(rows[1], "              nine ten eleven twelve");
        assert_eq!(rows[2], "              why: one two three four five six seven");
        // One line: the terminal itself goes on below at the 54th character.
        let first = format!("{:54}", "              mend: one two three four five six seven");
        assert_eq!(rows[4], format!("{first}{:14}eight nine ten eleven twelve", ""));
        assert_eq!(rows.len(), 7);
        // Nothing is gained by wrapping into a column of a few characters.
        assert_eq!(render(&report, Page { colours: false, width: Some(20) }).lines().count(), 5);
    }
}
