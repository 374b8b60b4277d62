//! JSON as a tree in which every value knows where it stands in the text.
//!
//! The tokens are serde_json's ([`RawValue`] borrows from the text, and a borrowed slice's address tells its offset);
//! this file adds positions, refuses a key that stands there twice, and bounds the depth.

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::fmt;

/// The deepest nesting that is followed; a spec needs four levels.
const DEPTH_MAX: usize = 16;

/// A value and the byte offset at which it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub offset: usize,
    pub value: Value,
}

/// What a value is.
#[derive(Debug)]
pub(super) enum Value {
    Object(Vec<Member>),
    Array(Vec<Node>),
    /// Null, a boolean, a number or a string.
    Scalar(serde_json::Value),
}

/// A member of an object.
#[derive(Debug)]
pub(super) struct Member {
    pub key: String,
    pub key_offset: usize,
    pub node: Node,
}

/// Why a text has no tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TreeError {
    /// Byte offset of the fault.
    pub offset: usize,
    pub what: Fault,
}

/// What is wrong with a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Not JSON, in serde_json's words.
    Syntax(String),
    /// Nested deeper than [`DEPTH_MAX`].
    Depth,
    /// A key that stood there before, at this offset.
    Duplicate { key: String, first: usize },
}

/// Parses a whole text.
pub(super) fn parse(text: &str) -> Result<Node, TreeError> {
    let whole: &RawValue = serde_json::from_str(text).map_err(|e| syntax(text, 0, &e))?;
    build(text, whole, 0)
}

/// Line and column of an offset, both from 1; the column counts characters.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    (line, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
}

impl Node {
    /// The offset of the value that a field path such as `disks[0].path` names; where it is not there, that of the
    /// nearest value above it.
    pub fn locate(&self, field: &str) -> usize {
        let mut at = self;
        for step in field.split(['.', '[']).map(|s| s.trim_end_matches(']')) {
            let next = match &at.value {
                Value::Object(members) => members.iter().find(|m| m.key == step).map(|m| &m.node),
                Value::Array(items) => step.parse::<usize>().ok().and_then(|n| items.get(n)),
                Value::Scalar(_) => None,
            };
            match next {
                Some(node) => at = node,
                None => break,
            }
        }
        at.offset
    }
}

fn build(text: &str, raw: &RawValue, depth: usize) -> Result<Node, TreeError> {
    let source = raw.get();
    let offset = offset_in(text, source);
    if depth > DEPTH_MAX {
        return Err(TreeError { offset, what: Fault::Depth });
    }
    let value = match source.as_bytes().first() {
        Some(b'{') => Value::Object(members(text, source, depth)?),
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(source).map_err(|e| syntax(text, offset, &e))?;
            Value::Array(items.into_iter().map(|item| build(text, item, depth + 1)).collect::<Result<_, _>>()?)
        }
        _ => Value::Scalar(serde_json::from_str(source).map_err(|e| syntax(text, offset, &e))?),
    };
    Ok(Node { offset, value })
}

fn members(text: &str, source: &str, depth: usize) -> Result<Vec<Member>, TreeError> {
    let base = offset_in(text, source);
    let raw: RawMembers<'_> = serde_json::from_str(source).map_err(|e| syntax(text, base, &e))?;
    let mut seen: HashMap<String, usize> = HashMap::with_capacity(raw.0.len());
    let mut members = Vec::with_capacity(raw.0.len());
    for (key, value) in raw.0 {
        let key_offset = offset_in(text, key.get());
        let key: String = serde_json::from_str(key.get()).map_err(|e| syntax(text, key_offset, &e))?;
        if let Some(first) = seen.insert(key.clone(), key_offset) {
            return Err(TreeError { offset: key_offset, what: Fault::Duplicate { key, first } });
        }
        members.push(Member { key, key_offset, node: build(text, value, depth + 1)? });
    }
    Ok(members)
}

/// Where a part of a text begins. Both are slices of one allocation, so the difference of their addresses tells.
fn offset_in(text: &str, part: &str) -> usize {
    part.as_ptr().addr().saturating_sub(text.as_ptr().addr()).min(text.len())
}

/// serde_json counts lines and columns from the beginning of what it was given, columns in bytes.
fn syntax(text: &str, base: usize, error: &serde_json::Error) -> TreeError {
    let given = &text[base..];
    let line_start: usize = given.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let offset = (base + line_start + error.column().saturating_sub(1)).min(text.len());
    let words = error.to_string();
    let words = words.split(" at line ").next().unwrap_or_default();
    TreeError { offset, what: Fault::Syntax(words.to_owned()) }
}

/// The members of an object in their order, keys still as they are written.
struct RawMembers<'t>(Vec<(&'t RawValue, &'t RawValue)>);

impl<'de> Deserialize<'de> for RawMembers<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = RawMembers<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    all.push(entry);
                }
                Ok(RawMembers(all))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "{\n  \"name\": \"ü\", \"cpus\": 1,\n  \"disks\": [\n    {\"path\": \"a\"},\n    {\"path\" : \"b\"}\n  ]\n}\n";

    fn at(field: &str) -> (usize, usize) {
        position(TEXT, parse(TEXT).unwrap().locate(field))
    }

    #[test]
    fn every_value_knows_its_line_and_column() {
        assert_eq!(at("name"), (2, 11));
        assert_eq!(at("cpus"), (2, 24));
        assert_eq!(at("disks"), (3, 12));
        assert_eq!(at("disks[0].path"), (4, 14));
        assert_eq!(at("disks[1].path"), (5, 15));
    }

    #[test]
    fn a_field_that_is_not_there_is_looked_for_above() {
        assert_eq!(at("disks[1].serial"), (5, 5));
        assert_eq!(at("disks[7].path"), at("disks"));
        assert_eq!(at("boot.kernel"), (1, 1));
        assert_eq!(at("name.x[3]"), at("name"));
        assert_eq!(at(""), (1, 1));
    }

    #[test]
    fn a_key_that_stands_there_twice_is_refused_however_it_is_written() {
        let text = "{\"a\": 1,\n \"b\": {\"\\u0061\": 1, \"a\": 2}}";
        let error = parse(text).unwrap_err();
        assert_eq!(position(text, error.offset), (2, 21));
        assert!(matches!(error.what, Fault::Duplicate { key, first } if key == "a" && position(text, first) == (2, 8)));
    }

    #[test]
    fn nesting_is_bounded() {
        for (depth, fits) in [(DEPTH_MAX, true), (DEPTH_MAX + 2, false), (100_000, false)] {
            let text = "[".repeat(depth) + &"]".repeat(depth);
            assert_eq!(parse(&text).is_ok(), fits, "{depth}");
        }
        let text = "[".repeat(100_000);
        assert!(matches!(parse(&text).unwrap_err().what, Fault::Syntax(_)));
    }

    #[test]
    fn a_syntax_error_has_its_position() {
        for (text, line, column) in [
            ("{\n  \"a\": 1\n  \"b\": 2\n}", 3, 3),
            ("{\n \"a\": \"\\ud800\"\n}", 2, 14),
            ("", 1, 1),
            ("{\"a\": 01}", 1, 8),
            ("{} {}", 1, 4),
        ] {
            let error = parse(text).unwrap_err();
            let (l, c) = position(text, error.offset);
            assert_eq!(l, line, "{text:?}: {error:?} at {l}:{c}");
            assert!(c.abs_diff(column) <= 1, "{text:?}: {error:?} at {l}:{c}");
            assert!(matches!(error.what, Fault::Syntax(words) if !words.contains("line")), "{text:?}");
        }
    }
}
