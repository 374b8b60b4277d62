//! The log: one line each on the standard error stream, which the service manager keeps.

use std::fmt::Arguments;

/// Writes one line. Control characters are spelled out, so that nothing in a message starts a line of its own.
pub fn line(message: Arguments<'_>) {
    let mut line = String::from("vmsup-netd: ");
    for c in message.to_string().chars() {
        if c.is_control() { line.extend(c.escape_debug()) } else { line.push(c) }
    }
    line.push('\n');
    if cfg!(test) {
        // Into the test's own output.
        eprint!("{line}");
    } else {
        // In one write. Where nobody reads it there is nobody to tell.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }
}

/// As `eprintln!`, through [`line`].
#[macro_export]
macro_rules! log {
    ($($what:tt)*) => { $crate::log::line(format_args!($($what)*)) };
}
