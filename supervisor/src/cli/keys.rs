//! The keys of an attached console: what is typed, parted into what the guest gets and what is meant for vmsup.
//!
//! `Ctrl-a` introduces a command, as in screen and in QEMU: `d` leaves the console, `x` stops the VM (`run` only), `a`
//! or another `Ctrl-a` sends one `Ctrl-a`, `?` helps. Any other key after it is sent with it.

/// The key that introduces a command: Ctrl-a.
const PREFIX: u8 = 0x01;

/// What a key asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Leave the console; the VM goes on.
    Detach,
    /// Stop the VM.
    Stop,
    /// Show the keys.
    Help,
}

/// Reads what is typed, byte by byte.
#[derive(Debug)]
pub struct Keys {
    prefixed: bool,
    /// Whether there is a `Stop`.
    stops: bool,
}

impl Keys {
    /// `stops`: this console may stop its VM.
    pub fn new(stops: bool) -> Self {
        Keys { prefixed: false, stops }
    }

    /// The bytes for the guest and what was asked for, of `typed`.
    pub fn feed(&mut self, typed: &[u8]) -> (Vec<u8>, Vec<Action>) {
        let (mut forward, mut actions) = (Vec::with_capacity(typed.len()), Vec::new());
        for &byte in typed {
            if !std::mem::take(&mut self.prefixed) {
                match byte {
                    PREFIX => self.prefixed = true,
                    byte => forward.push(byte),
                }
                continue;
            }
            match byte {
                b'd' | b'D' | 0x04 => actions.push(Action::Detach),
                b'x' | b'X' | 0x18 if self.stops => actions.push(Action::Stop),
                b'?' | b'h' => actions.push(Action::Help),
                b'a' | PREFIX => forward.push(PREFIX),
                byte => forward.extend([PREFIX, byte]),
            }
        }
        (forward, actions)
    }

    /// The keys in one sentence.
    pub fn help(&self) -> &'static str {
        if self.stops {
            "Ctrl-a d leaves the console, Ctrl-a x stops the VM (twice: kills it), Ctrl-a a sends Ctrl-a"
        } else {
            "Ctrl-a d leaves the console, Ctrl-a a sends Ctrl-a"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_reaches_the_guest() {
        assert_eq!(Keys::new(true).feed(b"ls\r\x03\x1b[A"), (b"ls\r\x03\x1b[A".to_vec(), vec![]));
    }

    #[test]
    fn the_prefix_introduces_a_command_even_across_reads() {
        let mut keys = Keys::new(true);
        assert_eq!(keys.feed(b"a\x01"), (b"a".to_vec(), vec![]));
        assert_eq!(keys.feed(b"d"), (vec![], vec![Action::Detach]));
        assert_eq!(keys.feed(b"d\x01x\x01?"), (b"d".to_vec(), vec![Action::Stop, Action::Help]));
    }

    #[test]
    fn the_prefix_itself_and_unknown_commands_can_be_sent() {
        let mut keys = Keys::new(false);
        assert_eq!(keys.feed(b"\x01a\x01\x01"), (b"\x01\x01".to_vec(), vec![]));
        assert_eq!(keys.feed(b"\x01x\x01k"), (b"\x01x\x01k".to_vec(), vec![]));
        assert!(!keys.help().contains("stops"));
    }
}
