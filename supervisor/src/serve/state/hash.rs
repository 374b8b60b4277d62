//! The hash of a VM's file: equal for equal files, whatever their formatting and the order of their fields.

use crate::spec::VmSpec;
use std::fmt::Write;

/// SHA-256 of the spec as JSON (fields in the order of their declaration, defaults left out or written in full, always
/// alike), in hexadecimal digits.
pub fn of(spec: &VmSpec) -> String {
    use sha2::Digest;
    // A VmSpec holds strings, numbers, booleans and lists of them: there is nothing that JSON cannot say.
    let json = serde_json::to_vec(spec).unwrap_or_default();
    sha2::Sha256::digest(json).iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> VmSpec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_hash_is_of_what_a_file_says_not_of_how() {
        let a = spec(r#"{"name":"a","cpus":1,"memory_mib":32,"boot":{"builtin":"hello"}}"#);
        let b = spec(r#"{ "boot": {"builtin":"hello"}, "memory_mib": 32, "cpus": 1, "name": "a", "restart": "no" }"#);
        let c = spec(r#"{"name":"a","cpus":2,"memory_mib":32,"boot":{"builtin":"hello"}}"#);
        assert_eq!(of(&a), of(&b));
        assert_ne!(of(&a), of(&c));
        assert_eq!(of(&a).len(), 64);
    }
}
