//! Text of less trusted origin (names, last words, guest output) made harmless for a terminal.
//!
//! What could move the cursor, change the title or the colours, answer as if it were typed, or reorder what stands on
//! the line never reaches the terminal: escape sequences are dropped whole, so that a boot log with colours stays
//! readable; other control characters are shown (`^G`), and so are those of Unicode (C1, bidirectional).

/// A sentence without the numbers of errors (` (os error 13)`) that Rust adds to their names: nobody looks them up.
pub fn without_errno(sentence: &str) -> String {
    const MARK: &str = " (os error ";
    let mut out = String::with_capacity(sentence.len());
    let mut rest = sentence;
    while let Some(at) = rest.find(MARK) {
        let (before, after) = (&rest[..at], &rest[at + MARK.len()..]);
        out.push_str(before);
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        rest = match after[digits..].strip_prefix(')') {
            Some(behind) if digits > 0 => behind,
            _ => {
                out.push_str(MARK);
                after
            }
        };
    }
    out + rest
}

/// Makes a stream of bytes harmless, piece by piece: a sequence or a character may be cut anywhere.
#[derive(Debug, Default)]
pub struct Sanitizer {
    state: State,
    /// Bytes of a UTF-8 character that is not complete yet.
    partial: Vec<u8>,
}

/// Where the stream is, as ECMA-48 divides it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After a carriage return: whether it ends a line is not known yet.
    Return,
    /// After ESC.
    Escape,
    /// ESC and an intermediate byte: one final byte follows.
    Intermediate,
    /// In a control sequence (CSI), up to its final byte.
    Control,
    /// In a string (OSC, DCS, SOS, PM, APC), up to BEL or ST.
    String,
    /// In a string, after ESC.
    StringEscape,
}

impl Sanitizer {
    /// The harmless form of the next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) -> String {
        let mut out = String::with_capacity(bytes.len());
        let mut joined = std::mem::take(&mut self.partial);
        joined.extend_from_slice(bytes);
        let mut rest = joined.as_slice();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    text.chars().for_each(|c| self.push(c, &mut out));
                    break;
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    String::from_utf8_lossy(good).chars().for_each(|c| self.push(c, &mut out));
                    let Some(length) = error.error_len() else {
                        self.partial = bad.to_vec();
                        break;
                    };
                    self.push(char::REPLACEMENT_CHARACTER, &mut out);
                    rest = &bad[length..];
                }
            }
        }
        out
    }

    fn push(&mut self, c: char, out: &mut String) {
        self.state = match (self.state, c) {
            // A string or sequence is given up at a line's end, so that a cut one does not swallow the rest.
            (State::Control | State::Escape | State::Intermediate | State::String | State::StringEscape, '\n') => {
                out.push('\n');
                State::Text
            }
            (State::StringEscape, '\\') | (State::String, '\x07') => State::Text,
            (State::String | State::StringEscape, c) => {
                if c == '\x1b' {
                    State::StringEscape
                } else {
                    State::String
                }
            }
            (State::Escape, '[') => State::Control,
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => State::String,
            (State::Escape | State::Intermediate, ' '..='/') => State::Intermediate,
            (State::Control, ' '..='?') => State::Control,
            (State::Escape | State::Intermediate, '0'..='~') | (State::Control, '@'..='~') => State::Text,
            (State::Return, '\n') => {
                out.push('\n');
                State::Text
            }
            (State::Return, c) => {
                // A bare return would let what follows overwrite what stands there.
                if c != '\r' {
                    out.push('\n');
                }
                plain(c, out)
            }
            (_, c) => plain(c, out),
        };
    }
}

/// A character outside of any sequence; the state after it.
fn plain(c: char, out: &mut String) -> State {
    match c {
        '\x1b' => return State::Escape,
        '\r' => return State::Return,
        '\n' | '\t' => out.push(c),
        c if harmless(c) => out.push(c),
        c if c.is_ascii_control() => {
            out.push('^');
            out.push(char::from((c as u8) ^ 0x40));
        }
        c => out.extend(c.escape_unicode()),
    }
    State::Text
}

/// One line: control characters, line breaks among them, are shown rather than obeyed.
pub fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if harmless(c) { out.push(c) } else { out.extend(c.escape_default()) }
    }
    out
}

/// Neither a control character nor one that reorders or hides its neighbours.
fn harmless(c: char) -> bool {
    let reorders = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}');
    let hides = matches!(c, '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}' | '\u{2028}' | '\u{2029}');
    !c.is_control() && !reorders && !hides
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> String {
        Sanitizer::default().feed(bytes)
    }

    #[test]
    fn escape_sequences_are_dropped_whole() {
        assert_eq!(whole(b"\x1b[0;32m OK \x1b[0m done\x1b(B!\x1b7"), " OK  done!");
        assert_eq!(whole(b"a\x1b]0;title\x07b\x1b]52;c;eA==\x1b\\c\x1bPq#0\x1b\\d"), "abcd");
        assert_eq!(whole(b"\x1b[6n\x1bc\x1b[2J"), "");
    }

    #[test]
    fn a_cut_sequence_ends_with_its_line() {
        assert_eq!(whole(b"a\x1b]0;never ended\nb\x1b[12\nc"), "a\nb\nc");
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(whole(b"a\x07\x00\x7f\tb\n"), "a^G^@^?\tb\n");
        assert_eq!(whole("\u{9b}2J \u{202e}x".as_bytes()), "\\u{9b}2J \\u{202e}x");
        assert_eq!(whole(b"good\r\nevil\rover\r\r\nend"), "good\nevil\nover\nend");
    }

    #[test]
    fn broken_utf_8_is_replaced() {
        assert_eq!(whole(b"a\xff\xc3\xa4\xc3("), "a\u{fffd}ä\u{fffd}(");
    }

    #[test]
    fn the_cut_between_two_pieces_makes_no_difference() {
        let stream = "ü\x1b[1;31mred\x1b[0m\r\n\x1b]0;t\x1b\\\u{9b}€ \x07end\n".as_bytes();
        for cut in 0..stream.len() {
            let mut sanitizer = Sanitizer::default();
            let joined = sanitizer.feed(&stream[..cut]) + &sanitizer.feed(&stream[cut..]);
            assert_eq!(joined, whole(stream), "cut at {cut}");
        }
    }

    #[test]
    fn no_random_stream_gets_a_control_character_through() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut sanitizer = Sanitizer::default();
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..16)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    // Half of them from the range where control characters and introducers are.
                    if state & 0x100 == 0 { state as u8 & 0x1f } else { state as u8 }
                })
                .collect();
            let out = sanitizer.feed(&bytes);
            assert!(!out.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "{bytes:?} gave {out:?}");
        }
    }

    #[test]
    fn the_number_of_an_error_is_left_out_and_nothing_else() {
        assert_eq!(without_errno("a (No such file (os error 2)); b (os error 13)"), "a (No such file); b");
        for same in ["", "a (os error )", "a (os error x)", "a (os error 2", "ü (os error ü"] {
            assert_eq!(without_errno(same), same);
        }
    }

    #[test]
    fn a_line_stays_one_line() {
        assert_eq!(line("a\nb\x1b[2J\u{202e}ü"), "a\\nb\\u{1b}[2J\\u{202e}ü");
    }
}
