//! What commands print: tables, JSON, and sizes for people.

use super::failure::Failure;
use super::sanitize::line;
use std::io::Write;

/// Writes to stdout, all of it.
///
/// # Errors
/// See [`Failure::output`].
pub fn print(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()).map_err(|e| Failure::output(&e))
}

/// Prints a value as indented JSON. Control characters in strings are escaped by JSON itself, those of Unicode that a
/// terminal obeys are not: JSON is for programs.
///
/// # Errors
/// See [`Failure::output`].
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::failed(format!("the answer cannot be printed as JSON ({e})")))?;
    text.push('\n');
    print(text)
}

/// Rows in columns, made harmless. The last column is not padded.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| line(cell)).collect()).collect();
    let width = |n: usize| {
        let cells = rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count());
        cells.chain([head[n].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    let mut add = |cells: Vec<&str>| {
        let mut text = String::new();
        for (n, cell) in cells.iter().enumerate() {
            let pad = widths.get(n).copied().unwrap_or(0).saturating_sub(cell.chars().count());
            text.push_str(cell);
            text.push_str(&" ".repeat(pad + 2));
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    add(head.to_vec());
    for row in &rows {
        add(row.iter().map(String::as_str).collect());
    }
    out
}

/// MiB as people write it.
pub fn mib(value: u64) -> String {
    match value {
        v if v >= 1024 && v.is_multiple_of(1024) => format!("{} GiB", v / 1024),
        v => format!("{v} MiB"),
    }
}

/// How long ago, in the two largest units.
pub fn age(seconds: u64) -> String {
    let parts = [(86400, 'd'), (3600, 'h'), (60, 'm'), (1, 's')];
    let Some(first) = parts.iter().position(|(unit, _)| seconds >= *unit) else { return "0s".into() };
    let (unit, letter) = parts[first];
    let mut text = format!("{}{letter}", seconds / unit);
    if let Some((next, letter)) = parts.get(first + 1)
        && seconds % unit / next != 0
    {
        text.push_str(&format!("{}{letter}", seconds % unit / next));
    }
    text
}

/// Milliseconds since 1970 as a point in time (UTC), to the second: `2026-09-21T14:13:20Z`.
pub fn time(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1000 % 86_400);
    // Days are counted from 0000-03-01, so that a leap day is the last of its year; an era is 400 years (Hinnant's
    // days_from_civil).
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Seconds since 1970 now.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_cells_are_harmless() {
        let rows =
            vec![vec!["a".into(), "1".into(), "x\x1b[2J".into()], vec!["länger".into(), String::new(), "y".into()]];
        assert_eq!(
            table(&["NAME", "PID", "END"], &rows),
            "NAME    PID  END\na       1    x\\u{1b}[2J\nlänger       y\n"
        );
        assert_eq!(table(&["NAME"], &[]), "NAME\n");
    }

    #[test]
    fn a_point_in_time_is_a_date() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_790_000_000, "2026-09-21T14:13:20Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(time(seconds * 1000 + 999), date);
        }
    }

    #[test]
    fn ages_and_sizes_are_short() {
        let all: Vec<String> = [0, 59, 60, 61, 3600, 90061, 86400].into_iter().map(age).collect();
        assert_eq!(all, ["0s", "59s", "1m", "1m1s", "1h", "1d1h", "1d"]);
        assert_eq!((mib(512), mib(1024), mib(1536)), ("512 MiB".into(), "1 GiB".into(), "1536 MiB".into()));
    }
}
