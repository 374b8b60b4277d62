//! From the tree to the types of [`crate::spec`], with errors that keep their parts: which field, what was found, what
//! was expected, which names are known.
//!
//! serde's derived code reports through [`de::Error`]; implementing that trait here keeps the parts apart that
//! serde_json would melt into one string.

use super::tree::{Member, Node, Value};
use serde::de::{self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, Unexpected, Visitor};
use std::fmt;

/// Why a tree is no value of a type.
#[derive(Debug)]
pub(super) struct TypeError {
    /// Where in the text; filled in by the innermost value or key that saw the error.
    pub offset: Option<usize>,
    /// From the innermost step outwards.
    steps: Vec<Step>,
    pub problem: Problem,
}

/// What is wrong.
#[derive(Debug)]
pub(super) enum Problem {
    UnknownField { name: String, known: &'static [&'static str] },
    UnknownChoice { found: String, known: &'static [&'static str] },
    MissingField(&'static str),
    WrongType { found: String, expected: String },
    Other(String),
}

#[derive(Debug)]
enum Step {
    Field(String),
    Item(usize),
}

impl TypeError {
    fn new(problem: Problem) -> Self {
        TypeError { offset: None, steps: Vec::new(), problem }
    }

    fn at(mut self, offset: usize) -> Self {
        self.offset.get_or_insert(offset);
        self
    }

    fn below(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// The field at fault, from the top: `disks[0].path`.
    pub fn field(&self) -> String {
        let mut path = String::new();
        for step in self.steps.iter().rev() {
            match step {
                Step::Field(name) => join(&mut path, name),
                Step::Item(n) => path.push_str(&format!("[{n}]")),
            }
        }
        if let Problem::MissingField(name) = self.problem {
            join(&mut path, name);
        }
        path
    }
}

fn join(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.field(), self.problem)
    }
}

impl std::error::Error for TypeError {}

impl de::Error for TypeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        TypeError::new(Problem::Other(message.to_string()))
    }
    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        TypeError::new(Problem::WrongType { found: describe(&found), expected: wanted(&expected.to_string()) })
    }
    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }
    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        TypeError::new(Problem::UnknownChoice { found: found.to_owned(), known })
    }
    fn unknown_field(name: &str, known: &'static [&'static str]) -> Self {
        TypeError::new(Problem::UnknownField { name: name.to_owned(), known })
    }
    fn missing_field(name: &'static str) -> Self {
        TypeError::new(Problem::MissingField(name))
    }
}

/// What was found, in words.
fn describe(found: &Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("{value}"),
        Unexpected::Unsigned(value) => format!("{value}"),
        Unexpected::Signed(value) => format!("{value}"),
        Unexpected::Float(value) => format!("{value}"),
        Unexpected::Str(text) => format!("the text {}", super::check::shown(text)),
        Unexpected::Unit | Unexpected::Option => "null".into(),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map => "an object".into(),
        other => format!("{other}"),
    }
}

/// What was expected: serde names Rust's types, people know JSON's.
fn wanted(expected: &str) -> String {
    match expected {
        "u8" => "a whole number from 0 to 255".into(),
        "u16" => "a whole number from 0 to 65535".into(),
        "u32" => "a whole number from 0 to 4294967295".into(),
        "u64" => "a whole number, 0 or more".into(),
        "a boolean" => "true or false".into(),
        "a string" => "text in quotes".into(),
        "a sequence" => "a list in [ ]".into(),
        other if other.starts_with("struct ") => "an object in { }".into(),
        other => other.into(),
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = TypeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match &self.value {
            Value::Object(members) => visitor.visit_map(Members { rest: members.iter(), value: None }),
            Value::Array(items) => visitor.visit_seq(Items { rest: items.iter().enumerate() }),
            Value::Scalar(scalar) => scalar_any(scalar, visitor),
        }
        .map_err(|e| e.at(self.offset))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match &self.value {
            Value::Scalar(serde_json::Value::Null) => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    /// Only from an object: derived code would also take a list of its fields in their order.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        match &self.value {
            Value::Array(_) => {
                let error: TypeError = de::Error::invalid_type(Unexpected::Seq, &visitor);
                Err(error.at(self.offset))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        match &self.value {
            Value::Scalar(serde_json::Value::String(text)) => visitor.visit_enum(text.as_str().into_deserializer()),
            other => {
                let found = match other {
                    Value::Object(_) => describe(&Unexpected::Map),
                    Value::Array(_) => describe(&Unexpected::Seq),
                    Value::Scalar(scalar) => scalar.to_string(),
                };
                Err(TypeError::new(Problem::WrongType { found, expected: format!("one of {}", choices(variants)) }))
            }
        }
        .map_err(|e| e.at(self.offset))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

/// Names in quotes: `"a", "b"`.
pub(super) fn choices(names: &[&str]) -> String {
    names.iter().map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", ")
}

fn scalar_any<'de, V: Visitor<'de>>(scalar: &'de serde_json::Value, visitor: V) -> Result<V::Value, TypeError> {
    match scalar {
        serde_json::Value::Null => visitor.visit_unit(),
        serde_json::Value::Bool(value) => visitor.visit_bool(*value),
        serde_json::Value::String(text) => visitor.visit_borrowed_str(text),
        serde_json::Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => visitor.visit_u64(value),
            (None, Some(value)) => visitor.visit_i64(value),
            (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
        },
        // The tree keeps lists and objects as nodes of its own.
        serde_json::Value::Array(_) => Err(de::Error::invalid_type(Unexpected::Seq, &visitor)),
        serde_json::Value::Object(_) => Err(de::Error::invalid_type(Unexpected::Map, &visitor)),
    }
}

struct Members<'de> {
    rest: std::slice::Iter<'de, Member>,
    value: Option<&'de Member>,
}

impl<'de> de::MapAccess<'de> for Members<'de> {
    type Error = TypeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, TypeError> {
        let Some(member) = self.rest.next() else { return Ok(None) };
        self.value = Some(member);
        let key: de::value::StrDeserializer<'de, TypeError> = member.key.as_str().into_deserializer();
        seed.deserialize(key)
            .map(Some)
            .map_err(|e| e.at(member.key_offset).below(Step::Field(super::check::escaped(&member.key))))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, TypeError> {
        let Some(member) = self.value.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(&member.node).map_err(|e| e.at(member.node.offset).below(Step::Field(member.key.clone())))
    }
}

struct Items<'de> {
    rest: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
}

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = TypeError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, TypeError> {
        let Some((n, node)) = self.rest.next() else { return Ok(None) };
        seed.deserialize(node).map(Some).map_err(|e| e.at(node.offset).below(Step::Item(n)))
    }
}
