//! What must hold for `restart`, `backoff` and `health` of a spec. Pure, like all of [`super::check`].

use super::check::FieldError;
use crate::spec::{Backoff, Health, OnFailure, Restart, VmSpec};

/// The most seconds of anything here: a day.
const DAY: u32 = 86_400;
/// The longest first back-off, seconds.
const FIRST_MAX: u32 = 3600;
/// The least time between two looks, seconds: that of the one timer of all VMs.
const INTERVAL_MIN: u32 = 30;
/// The longest look, seconds: one is over before the next begins.
const TIMEOUT_MAX: u32 = 25;
/// The most looks in a row.
const RETRIES_MAX: u32 = 100;
/// The longest marker, bytes.
const MARKER_MAX: usize = 256;

/// Checks when a VM is started again and how it is looked after.
///
/// # Errors
/// The first field that is wrong.
pub(super) fn check(spec: &VmSpec) -> Result<(), FieldError> {
    if let Some(backoff) = &spec.backoff {
        check_backoff(spec.restart, backoff)?;
    }
    spec.health.as_ref().map_or(Ok(()), |health| check_health(spec, health))
}

fn within(field: &str, value: u32, low: u32, high: u32, unit: &str) -> Result<(), FieldError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(FieldError::new(field, format!("{value} {unit} is not possible; give {low} to {high}")))
}

fn check_backoff(restart: Restart, backoff: &Backoff) -> Result<(), FieldError> {
    let Backoff { first_s, max_s, reset_after_s, attempts } = *backoff;
    within("backoff.first_s", first_s, 0, FIRST_MAX, "seconds")?;
    within("backoff.max_s", max_s, 1, DAY, "seconds")?;
    within("backoff.reset_after_s", reset_after_s, 1, DAY, "seconds")?;
    if max_s < first_s {
        return Err(FieldError::new(
            "backoff.max_s",
            format!("{max_s} is less than first_s, {first_s}; give at least that"),
        ));
    }
    if attempts == Some(0) {
        return Err(FieldError::new("backoff.attempts", "0 restarts are none; give 1 or more, or remove \"restart\""));
    }
    if restart == Restart::No {
        let message = "there is nothing to wait for without a restart; add \"restart\": \"on-failure\", or remove it";
        return Err(FieldError::new("backoff", message));
    }
    Ok(())
}

fn check_health(spec: &VmSpec, health: &Health) -> Result<(), FieldError> {
    let Health { console, tcp, start_s, interval_s, timeout_s, retries, on_failure } = health;
    if let Some(marker) = console {
        if marker.is_empty() || marker.len() > MARKER_MAX {
            let length = marker.len();
            let message = format!("{length} bytes are not possible for a marker; give 1 to {MARKER_MAX}");
            return Err(FieldError::new("health.console", message));
        }
        if marker.contains('\0') {
            return Err(FieldError::new("health.console", "contains a NUL character; remove it"));
        }
    }
    match tcp {
        Some(0) => return Err(FieldError::new("health.tcp", "0 is no port; give 1 to 65535")),
        Some(_) if spec.nets.is_empty() => {
            let message = "the VM has no network interface whose port could be looked at; add \"nets\"";
            return Err(FieldError::new("health.tcp", message));
        }
        _ => {}
    }
    within("health.start_s", *start_s, 1, DAY, "seconds")?;
    within("health.interval_s", *interval_s, INTERVAL_MIN, DAY, "seconds")?;
    within("health.timeout_s", *timeout_s, 1, TIMEOUT_MAX, "seconds")?;
    within("health.retries", *retries, 1, RETRIES_MAX, "looks")?;
    // Without either, only a worker that hangs is seen; that is worth an entry only where something is done about it.
    if console.is_none() && tcp.is_none() && *on_failure == OnFailure::Report {
        let message =
            "says nothing to look at; add \"console\" or \"tcp\", or \"on_failure\": \"kill\" for a worker that hangs";
        return Err(FieldError::new("health", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::check::check;
    use super::*;
    use serde_json::{Value, json};

    fn with(changes: Value) -> Result<(), FieldError> {
        let mut all = json!({ "name": "a", "cpus": 1, "memory_mib": 32, "boot": { "builtin": "hello" } });
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        check(&serde_json::from_value(all).unwrap())
    }

    #[test]
    fn what_is_usual_passes() {
        for good in [
            json!({ "restart": "always" }),
            json!({ "restart": "on-failure", "backoff": {} }),
            json!({ "restart": "on-failure", "backoff": { "first_s": 0, "max_s": 1, "attempts": 1 } }),
            json!({ "health": { "console": "login:" } }),
            json!({ "health": { "tcp": 80 }, "nets": [{ "network": "default" }] }),
            json!({ "health": { "on_failure": "kill" }, "restart": "always" }),
        ] {
            assert_eq!(with(good.clone()), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_field() {
        let backoff = |backoff: Value| json!({ "restart": "always", "backoff": backoff });
        let health = |health: Value| json!({ "health": health, "nets": [{ "network": "default" }] });
        for (changes, field, says) in [
            (json!({ "backoff": {} }), "backoff", "without a restart"),
            (backoff(json!({ "first_s": 3601, "max_s": 9000 })), "backoff.first_s", "0 to 3600"),
            (backoff(json!({ "max_s": 0 })), "backoff.max_s", "1 to 86400"),
            (backoff(json!({ "first_s": 9, "max_s": 8 })), "backoff.max_s", "less than first_s, 9"),
            (backoff(json!({ "reset_after_s": 0 })), "backoff.reset_after_s", "1 to 86400"),
            (backoff(json!({ "attempts": 0 })), "backoff.attempts", "0 restarts"),
            (health(json!({})), "health", "nothing to look at"),
            (health(json!({ "console": "" })), "health.console", "1 to 256"),
            (health(json!({ "console": "x".repeat(257) })), "health.console", "257 bytes"),
            (health(json!({ "console": "a\0" })), "health.console", "NUL"),
            (health(json!({ "tcp": 0 })), "health.tcp", "no port"),
            (json!({ "health": { "tcp": 80 } }), "health.tcp", "add \"nets\""),
            (health(json!({ "tcp": 80, "start_s": 0 })), "health.start_s", "1 to 86400"),
            (health(json!({ "tcp": 80, "interval_s": 29 })), "health.interval_s", "30 to 86400"),
            (health(json!({ "tcp": 80, "timeout_s": 26 })), "health.timeout_s", "1 to 25"),
            (health(json!({ "tcp": 80, "retries": 101 })), "health.retries", "1 to 100"),
        ] {
            let error = with(changes.clone()).unwrap_err();
            assert_eq!(error.field, field, "{changes}: {error}");
            assert!(error.message.contains(says), "{error}");
        }
    }

    /// The bounds stand in the schema, too.
    #[test]
    fn the_schema_says_the_same_bounds() {
        let schema = crate::vmjson::schema::document();
        for (pointer, low, high) in [
            ("Backoff/properties/first_s", 0, FIRST_MAX),
            ("Backoff/properties/max_s", 1, DAY),
            ("Backoff/properties/reset_after_s", 1, DAY),
            ("Health/properties/start_s", 1, DAY),
            ("Health/properties/interval_s", INTERVAL_MIN, DAY),
            ("Health/properties/timeout_s", 1, TIMEOUT_MAX),
            ("Health/properties/retries", 1, RETRIES_MAX),
        ] {
            let field = schema.pointer(&format!("/$defs/{pointer}")).unwrap();
            assert_eq!((&field["minimum"], &field["maximum"]), (&json!(low), &json!(high)), "{pointer}");
        }
        let marker = schema.pointer("/$defs/Health/properties/console").unwrap();
        assert_eq!((&marker["minLength"], &marker["maxLength"]), (&json!(1), &json!(MARKER_MAX)));
    }
}
