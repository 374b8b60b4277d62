//! What it takes to make a VM what another file says: a pure comparison, field by field.

use crate::spec::VmSpec;

/// What has to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: both files say the same.
    Nothing,
    /// What differs does not concern the running guest; whether its cgroup is told of other limits.
    InPlace {
        /// `limits` differ.
        limits: bool,
    },
    /// The guest has to be stopped and started.
    Restart,
}

/// Compares. A field that is new in [`VmSpec`] does not compile here until somebody has said which kind it is.
pub fn plan(old: &VmSpec, new: &VmSpec) -> Plan {
    let VmSpec { name, cpus, memory_mib, boot, disks, console, limits, nets, restart, backoff, health } = old;
    // The guest sees these, or its worker was made for them.
    let guest = *name == new.name
        && *cpus == new.cpus
        && *memory_mib == new.memory_mib
        && *boot == new.boot
        && *disks == new.disks
        && *console == new.console
        && *nets == new.nets;
    // These are the supervisor's own.
    let ours = *restart == new.restart && *backoff == new.backoff && *health == new.health;
    let limits = *limits == new.limits;
    match (guest, limits, ours) {
        (false, _, _) => Plan::Restart,
        (true, true, true) => Plan::Nothing,
        (true, limits, _) => Plan::InPlace { limits: !limits },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(changes: &[(&str, Value)]) -> VmSpec {
        let mut all = json!({ "name": "a", "cpus": 1, "memory_mib": 32, "boot": { "builtin": "hello" } });
        for (field, value) in changes {
            all[*field] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn each_field_says_what_its_change_takes() {
        let cases = [
            ("name", json!("b"), Plan::Restart),
            ("cpus", json!(2), Plan::Restart),
            ("memory_mib", json!(64), Plan::Restart),
            ("boot", json!({ "builtin": "net" }), Plan::Restart),
            ("disks", json!([{ "path": "/d" }]), Plan::Restart),
            ("console", json!({ "input": false }), Plan::Restart),
            ("nets", json!([{ "network": "n" }]), Plan::Restart),
            ("limits", json!({ "pids_max": 64 }), Plan::InPlace { limits: true }),
            ("restart", json!("always"), Plan::InPlace { limits: false }),
            ("backoff", json!({ "first_s": 9 }), Plan::InPlace { limits: false }),
            ("health", json!({ "console": "up" }), Plan::InPlace { limits: false }),
        ];
        let fields = serde_json::to_value(crate::vmjson::schema::document()).unwrap();
        let fields: Vec<&str> = fields["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields.len(), cases.len(), "{fields:?}");
        for (field, value, expected) in &cases {
            let changed = spec(&[(field, value.clone())]);
            assert_eq!(plan(&spec(&[]), &changed), *expected, "{field}");
            assert_eq!(plan(&changed, &spec(&[])), *expected, "{field}");
            assert_eq!(plan(&changed, &changed), Plan::Nothing, "{field}");
        }
        // What takes most of all that changed is done.
        for (field, value, expected) in &cases {
            let changed = spec(&[(field, value.clone()), ("restart", json!("always"))]);
            assert_eq!(plan(&spec(&[]), &changed), *expected, "{field}");
        }
    }
}
