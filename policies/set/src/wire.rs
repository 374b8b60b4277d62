//! The parts of a file that our own sets and foreign ones have in common: rules, conditions, actions, and where they stand.

use crate::arch::Arch;
use crate::model::{Action, Condition, Op, Rule, Width};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Most bytes of a file.
pub const FILE_MAX: usize = 1 << 20;
/// Most rules of a file.
pub const RULES_MAX: usize = 4096;

/// A file that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}: {what}", line.map(|l| format!(":{l}")).unwrap_or_default())]
pub struct Error {
    /// The file, relative to the set.
    pub file: String,
    /// Line, from 1, where it is known.
    pub line: Option<u32>,
    /// What is wrong, and what to do.
    pub what: String,
}

/// A text with its name, which knows the lines of its parts.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub file: &'a str,
    pub text: &'a str,
}

impl<'a> Source<'a> {
    pub fn error(&self, line: Option<u32>, what: impl Into<String>) -> Error {
        Error { file: self.file.to_owned(), line, what: what.into() }
    }

    /// Line of a part of the text.
    pub fn line(&self, part: &str) -> u32 {
        let offset = (part.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        let lines = self.text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count();
        u32::try_from(lines + 1).unwrap_or(u32::MAX)
    }

    /// Reads a part of the text.
    pub fn parse<T: Deserialize<'a>>(&self, part: &'a str) -> Result<T, Error> {
        if self.text.len() > FILE_MAX {
            return Err(self.error(None, format!("{} bytes, {FILE_MAX} at most", self.text.len())));
        }
        within(*self, part)
    }

    /// The one object of the file, whose key is its name.
    pub fn only(&self, stem: &str) -> Result<&'a RawValue, Error> {
        let Once(mut all): Once<&'a RawValue> = self.parse(self.text)?;
        match (all.remove(stem), all.is_empty()) {
            (Some(body), true) => Ok(body),
            _ => Err(self.error(None, format!("one object, named as the file: `{stem}`"))),
        }
    }
}

/// An object whose keys are data. A key that stands there twice is refused: a reader would believe the first, a map keeps
/// the last.
pub(crate) struct Once<T>(pub BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Once<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Keys<T> {
            type Value = Once<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: serde::de::MapAccess<'de>>(self, mut map: M) -> Result<Once<T>, M::Error> {
                let mut all = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if all.contains_key(&key) {
                        return Err(serde::de::Error::custom(format!("`{key}` stands there twice: keep one")));
                    }
                    all.insert(key, map.next_value()?);
                }
                Ok(Once(all))
            }
        }
        deserializer.deserialize_map(Keys(std::marker::PhantomData))
    }
}

/// [`Once`], for a field.
pub(crate) fn once<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    Once::deserialize(deserializer).map(|Once(all)| all)
}

/// An action, as seccompiler's JSON spells it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WireAction {
    Allow,
    Errno(u16),
    KillThread,
    KillProcess,
    Log,
    Trace(u16),
    Trap,
}

impl From<WireAction> for Action {
    fn from(action: WireAction) -> Action {
        match action {
            WireAction::Allow => Action::Allow,
            WireAction::Errno(n) => Action::Errno(n),
            WireAction::KillThread => Action::KillThread,
            WireAction::KillProcess => Action::KillProcess,
            WireAction::Log => Action::Log,
            WireAction::Trace(n) => Action::Trace(n),
            WireAction::Trap => Action::Trap,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireRule<'a> {
    syscall: String,
    comment: Option<String>,
    #[serde(borrow, default)]
    args: Option<Vec<&'a RawValue>>,
    unexercised: Option<String>,
    #[serde(default, deserialize_with = "once")]
    accept: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireCondition {
    index: u8,
    #[serde(rename = "type")]
    width: WireWidth,
    op: WireOp,
    val: u64,
    comment: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireWidth {
    Dword,
    Qword,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    MaskedEq(u64),
}

/// Reads a list of rules. Where `arch` is given, each has to name one of its system calls.
pub(crate) fn rules(source: Source<'_>, raw: &[&RawValue], arch: Option<Arch>) -> Result<Vec<Rule>, Error> {
    if raw.len() > RULES_MAX {
        return Err(source.error(None, format!("{} rules, {RULES_MAX} at most", raw.len())));
    }
    raw.iter().map(|one| rule(source, one, arch)).collect()
}

fn rule(source: Source<'_>, raw: &RawValue, arch: Option<Arch>) -> Result<Rule, Error> {
    let line = source.line(raw.get());
    let wire: WireRule<'_> = within(source, raw.get())?;
    if let Some(arch) = arch {
        known(&wire.syscall, arch).map_err(|what| source.error(Some(line), what))?;
    }
    if wire.args.as_ref().is_some_and(Vec::is_empty) {
        let what = format!("{}: `args` is empty: leave it out, or say what has to hold", wire.syscall);
        return Err(source.error(Some(line), what));
    }
    let conditions = wire.args.unwrap_or_default().iter().map(|c| condition(source, c)).collect::<Result<_, _>>()?;
    Ok(Rule {
        syscall: wire.syscall,
        conditions,
        comment: wire.comment,
        unexercised: wire.unexercised,
        accepted: wire.accept,
        file: source.file.to_owned(),
        line,
    })
}

/// Says which architecture lacks a system call.
pub(crate) fn known(syscall: &str, arch: Arch) -> Result<(), String> {
    match arch.number(syscall) {
        Some(_) => Ok(()),
        None => Err(format!("{} has no system call `{syscall}`", arch.name())),
    }
}

fn condition(source: Source<'_>, raw: &RawValue) -> Result<Condition, Error> {
    let wire: WireCondition = within(source, raw.get())?;
    let width = match wire.width {
        WireWidth::Dword => Width::Dword,
        WireWidth::Qword => Width::Qword,
    };
    let op = match wire.op {
        WireOp::Eq => Op::Eq,
        WireOp::Ne => Op::Ne,
        WireOp::Lt => Op::Lt,
        WireOp::Le => Op::Le,
        WireOp::Gt => Op::Gt,
        WireOp::Ge => Op::Ge,
        WireOp::MaskedEq(mask) => Op::MaskedEq(mask),
    };
    // Finding a line walks the file: only for who is told of it.
    let wrong = |what: String| Err(source.error(Some(source.line(raw.get())), what));
    if wire.index > 5 {
        return wrong(format!("argument {}: a system call has six, from 0 to 5", wire.index));
    }
    let mask = if let Op::MaskedEq(mask) = op { mask } else { 0 };
    if width == Width::Dword && (wire.val | mask) > u64::from(u32::MAX) {
        return wrong(format!(
            "{:#x} has more than 32 bits: the type is qword, or the value is wrong",
            wire.val | mask
        ));
    }
    Ok(Condition { index: wire.index, width, op, value: wire.val, comment: wire.comment })
}

/// Reads a part of the source's text; what serde says of it gets the line in the file.
fn within<'p, T: Deserialize<'p>>(source: Source<'_>, part: &'p str) -> Result<T, Error> {
    serde_json::from_str(part).map_err(|e| {
        let line = source.line(part) + u32::try_from(e.line().saturating_sub(1)).unwrap_or(0);
        source.error(Some(line), e.to_string().split(" at line ").next().unwrap_or_default())
    })
}
