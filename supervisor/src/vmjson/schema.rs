//! The JSON Schema of `vm.json`, draft 2020-12: what `vmsup schema` prints.

use crate::spec::VmSpec;
use serde_json::{Value, json};

/// Names the schema; nothing is fetched from there.
pub const ID: &str = "urn:vmsup:schema:vm:1";

/// The schema as a document.
pub fn document() -> Value {
    let mut schema =
        schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<VmSpec>();
    schema.insert("$id".into(), ID.into());
    schema.insert("title".into(), "A virtual machine of vmsup (vm.json)".into());
    let mut document = schema.to_value();
    // What a struct of options cannot say: a VM boots a kernel, or a built-in guest that takes no files.
    if let Some(boot) = document.pointer_mut("/$defs/Boot").and_then(Value::as_object_mut) {
        boot.insert(
            "oneOf".into(),
            json!([
                { "title": "a kernel", "required": ["kernel"],
                  "properties": { "kernel": { "type": "string" }, "builtin": { "type": "null" } } },
                { "title": "the built-in guest hello", "required": ["builtin"],
                  "properties": { "builtin": { "const": "hello" }, "kernel": { "type": "null" },
                                  "initrd": { "type": "null" }, "cmdline": { "type": "null" } } },
                { "title": "the built-in guest net", "required": ["builtin"],
                  "properties": { "builtin": { "const": "net" }, "kernel": { "type": "null" },
                                  "initrd": { "type": "null" } } },
            ]),
        );
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_names_itself_and_says_what_boots() {
        let schema = document();
        assert_eq!(schema["$id"], ID);
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(schema["$defs"]["Boot"]["oneOf"].as_array().unwrap().len(), 3);
        assert_eq!(schema["additionalProperties"], false);
    }

    #[test]
    fn every_field_says_what_it_is() {
        fn walk(value: &Value, path: &str, missing: &mut Vec<String>) {
            for (name, field) in value["properties"].as_object().into_iter().flatten() {
                if field["description"].as_str().is_none_or(str::is_empty) {
                    missing.push(format!("{path}.{name}"));
                }
            }
        }
        let schema = document();
        let mut missing = Vec::new();
        walk(&schema, "VmSpec", &mut missing);
        for (name, definition) in schema["$defs"].as_object().unwrap() {
            walk(definition, name, &mut missing);
        }
        assert_eq!(missing, Vec::<String>::new());
    }
}
