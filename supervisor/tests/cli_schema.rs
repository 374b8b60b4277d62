//! `vmsup schema` and `examples/`: what the schema refuses the parser refuses, and the examples are good.

use std::path::{Path, PathBuf};
use vmsup::vmjson::{parse, schema};

/// Whether `text` fits the schema.
fn fits(text: &str) -> bool {
    let mut schemas = boon::Schemas::new();
    let mut compiler = boon::Compiler::new();
    compiler.add_resource(schema::ID, schema::document()).unwrap();
    let index = compiler.compile(schema::ID, &mut schemas).unwrap();
    schemas.validate(&serde_json::from_str(text).unwrap(), index).is_ok()
}

fn examples() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let files = [folder.clone(), folder.join("fleet")].into_iter().flat_map(|f| std::fs::read_dir(f).unwrap());
    let files = files.map(|e| e.unwrap().path());
    files
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .map(|p| (p.clone(), std::fs::read_to_string(p).unwrap()))
        .collect()
}

fn with(members: &str) -> String {
    format!("{{\"name\": \"a\", \"cpus\": 1, \"memory_mib\": 32, {members}}}")
}

#[test]
fn every_example_fits_the_schema_and_parses() {
    let examples = examples();
    assert!(examples.len() >= 3, "{examples:?}");
    for (path, text) in examples {
        assert!(fits(&text), "{}", path.display());
        let spec = parse("example", &text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if spec.boot.builtin.is_some() {
            vmsup::vmjson::check::check(&spec).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
    }
}

#[test]
fn what_a_file_may_say_fits_the_schema_and_parses() {
    for members in [
        "\"boot\": {\"builtin\": \"hello\"}",
        "\"boot\": {\"kernel\": \"k\"}",
        "\"boot\": {\"builtin\": \"net\", \"cmdline\": \"fetch=10.77.0.1:80/\"}, \"nets\": [{\"network\": \"n\"}]",
        "\"boot\": {\"kernel\": \"k\", \"initrd\": \"i\", \"cmdline\": \"c\"}, \"console\": {\"input\": false}",
        "\"boot\": {\"kernel\": \"k\"}, \"disks\": [{\"path\": \"d\", \"readonly\": true, \"engine\": \"threads\"}]",
        "\"boot\": {\"kernel\": \"k\"}, \"limits\": {\"memory_max_mib\": 64, \"enforce\": \"best-effort\"}",
        "\"boot\": {\"kernel\": \"k\"}, \"nets\": [{\"network\": \"n\", \"forwards\": [{\"host\": 1, \"guest\": 2}]}]",
    ] {
        let text = with(members);
        assert!(fits(&text), "{text}");
        assert!(parse("f", &text).is_ok(), "{text}");
    }
}

/// Both refuse; neither is only as strict as the other happens to be.
#[test]
fn what_is_wrong_fails_in_schema_and_parser() {
    let hello = "\"boot\": {\"builtin\": \"hello\"}";
    let refused = |text: &str| match parse("f", text) {
        Err(_) => true,
        Ok(mut spec) => {
            // The parser takes relative paths, the check does not; that is not what is tested here.
            spec.boot.kernel = spec.boot.kernel.map(|k| format!("/{k}"));
            spec.disks.iter_mut().for_each(|d| d.path.insert(0, '/'));
            vmsup::vmjson::check::check(&spec).is_err()
        }
    };
    let long = "x".repeat(300);
    for text in [
        "[]".to_owned(),
        "{}".into(),
        with("\"boot\": {}"),
        with("\"boot\": {\"kernel\": \"k\", \"builtin\": \"hello\"}"),
        with("\"boot\": {\"initrd\": \"i\"}"),
        with("\"boot\": {\"builtin\": \"hello\", \"initrd\": \"i\"}"),
        with("\"boot\": {\"builtin\": \"hello\", \"cmdline\": \"c\"}"),
        with("\"boot\": {\"builtin\": \"goodbye\"}"),
        with("\"boot\": {\"builtin\": \"net\", \"initrd\": \"i\"}"),
        with(&format!("{hello}, \"nets\": [{{}}]")),
        with(&format!("{hello}, \"nets\": [{{\"network\": \"a/b\"}}]")),
        with(&format!("{hello}, \"nets\": [{{\"network\": \"n\", \"queues\": 5}}]")),
        with(&format!("{hello}, \"nets\": [{{\"network\": \"n\", \"mac_suffix\": \"0a:0b\"}}]")),
        with(&format!("{hello}, \"nets\": [{{\"network\": \"n\", \"forwards\": [{{\"host\": 0, \"guest\": 1}}]}}]")),
        with(&format!("{hello}, \"nets\": [{}]", ["{\"network\": \"n\"}"; 5].join(","))),
        with("\"boot\": {\"kernel\": 7}"),
        with(&format!("{hello}, \"memory\": 5")),
        with(&format!("{hello}, \"disks\": {{}}")),
        with(&format!("{hello}, \"disks\": [{{}}]")),
        with(&format!("{hello}, \"disks\": [{{\"path\": \"d\", \"engine\": \"magic\"}}]")),
        with(&format!("{hello}, \"disks\": [{{\"path\": \"d\", \"serial\": \"{long}\"}}]")),
        with(&format!("{hello}, \"limits\": {{\"enforce\": \"maybe\"}}")),
        with(&format!("{hello}, \"console\": {{\"output\": true}}")),
        with(hello).replace("\"cpus\": 1", "\"cpus\": 0"),
        with(hello).replace("\"cpus\": 1", "\"cpus\": 300"),
        with(hello).replace("\"cpus\": 1", "\"cpus\": \"1\""),
        with(hello).replace("\"cpus\": 1", "\"cpus\": 1.5"),
        with(hello).replace("\"memory_mib\": 32", "\"memory_mib\": 0"),
        with(hello).replace("\"memory_mib\": 32", "\"memory_mib\": 99999999"),
        with(hello).replace("\"name\": \"a\"", "\"name\": \"a/b\""),
        with(hello).replace("\"name\": \"a\"", "\"name\": \"\""),
        with(hello).replace("\"name\": \"a\"", &format!("\"name\": \"{long}\"")),
    ] {
        assert!(!fits(&text), "the schema takes {text}");
        assert!(refused(&text), "the parser takes {text}");
    }
}
