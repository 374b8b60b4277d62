//! What must hold for the network interfaces of a spec. Pure, like all of [`super::check`].
//!
//! Whether a network is there, and who may forward what, netd alone knows: it says so when the VM starts.

use super::check::{FieldError, shown};
use crate::spec::{Forward, Net, Protocol};
use netd_api::{FORWARDS_MAX, NETWORK_NAME_MAX, QUEUES_MAX};
use std::collections::HashMap;
use worker_api::NETS_MAX;

/// Checks all interfaces of a VM.
///
/// # Errors
/// The first field that is wrong.
pub(super) fn check(nets: &[Net]) -> Result<(), FieldError> {
    if nets.len() > NETS_MAX {
        let count = nets.len();
        return Err(FieldError::new("nets", format!("{count} interfaces are too many; a VM has at most {NETS_MAX}")));
    }
    // Where each host port and each MAC of a network stands first.
    let (mut ports, mut macs) = (HashMap::new(), HashMap::new());
    for (n, net) in nets.iter().enumerate() {
        let field = |name: &str| format!("nets[{n}].{name}");
        check_network(&net.network).map_err(|message| FieldError::new(field("network"), message))?;
        if let Some(text) = &net.mac_suffix {
            let suffix = mac_suffix(text).map_err(|message| FieldError::new(field("mac_suffix"), message))?;
            if let Some(first) = macs.insert((&net.network, suffix), n) {
                return Err(FieldError::new(
                    field("mac_suffix"),
                    format!("the same as that of nets[{first}], in the same network; give each interface its own"),
                ));
            }
        }
        if net.queues == 0 || net.queues > QUEUES_MAX {
            return Err(FieldError::new(
                field("queues"),
                format!("{} is not possible; give 1 to {QUEUES_MAX} queue pairs", net.queues),
            ));
        }
        if net.forwards.len() > FORWARDS_MAX {
            let count = net.forwards.len();
            return Err(FieldError::new(
                field("forwards"),
                format!("{count} are too many; an interface has at most {FORWARDS_MAX}"),
            ));
        }
        for (f, forward) in net.forwards.iter().enumerate() {
            let field = field(&format!("forwards[{f}]"));
            check_forward(&field, forward)?;
            if let Some(first) = ports.insert((forward.protocol, forward.host), field.clone()) {
                let (protocol, port) = (protocol_name(forward.protocol), forward.host);
                return Err(FieldError::new(
                    format!("{field}.host"),
                    format!("{protocol} port {port} is forwarded by {first} already; use another port"),
                ));
            }
        }
    }
    Ok(())
}

/// Checks the name of a network as netd's configuration has it.
fn check_network(name: &str) -> Result<(), String> {
    const RULE: &str = "`vmsup net ls` shows the networks that you may use";
    if name.is_empty() {
        return Err(format!("empty; {RULE}"));
    }
    if name.len() > NETWORK_NAME_MAX {
        return Err(format!(
            "{} bytes are too long for a network's name, which has at most {NETWORK_NAME_MAX}; {RULE}",
            name.len()
        ));
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
        return Err(format!("{} is no network's name (letters, digits, '-' and '_'); {RULE}", shown(name)));
    }
    Ok(())
}

/// The three bytes of `0a:0b:0c`.
///
/// # Errors
/// What is wrong and what to do.
pub(crate) fn mac_suffix(text: &str) -> Result<[u8; 3], String> {
    let wrong = || format!("{} is no end of a MAC; give its last three bytes, say \"0a:0b:0c\"", shown(text));
    let mut bytes = [0; 3];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
        *byte = u8::from_str_radix(part.ok_or_else(wrong)?, 16).map_err(|_| wrong())?;
    }
    if parts.next().is_some() { Err(wrong()) } else { Ok(bytes) }
}

fn check_forward(field: &str, forward: &Forward) -> Result<(), FieldError> {
    for (name, port) in [("host", forward.host), ("guest", forward.guest)] {
        if port == 0 {
            return Err(FieldError::new(format!("{field}.{name}"), "0 is no port; give 1 to 65535"));
        }
    }
    Ok(())
}

/// As people write it.
pub(crate) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(json: &str) -> Vec<Net> {
        serde_json::from_str(json).unwrap()
    }

    #[track_caller]
    fn refused(json: &str, field: &str, says: &str) {
        let error = check(&nets(json)).unwrap_err();
        assert_eq!(error.field, field, "{error}");
        assert!(error.message.contains(says), "{error}");
        assert!(!error.to_string().contains(|c: char| c.is_control()), "{error:?}");
    }

    #[test]
    fn interfaces_within_the_bounds_pass() {
        assert_eq!(check(&[]), Ok(()));
        let long = "x".repeat(NETWORK_NAME_MAX);
        let all = format!(
            r#"[{{"network": "{long}", "queues": 4, "mac_suffix": "0A:0b:ff",
                  "forwards": [{{"host": 80, "guest": 80}}, {{"host": 80, "guest": 80, "protocol": "udp"}}]}},
                {{"network": "a-b_1", "mac_suffix": "0a:0b:ff"}}, {{"network": "a"}}, {{"network": "a"}}]"#
        );
        assert_eq!(check(&nets(&all)), Ok(()));
    }

    #[test]
    fn a_network_has_a_name_that_netd_could_have() {
        for (name, says) in [
            ("", "empty"),
            ("a/b", "\"a/b\" is no network's name"),
            ("a b", "no network's name"),
            ("a\\u001b[2J", "no network's name"),
            ("a.b", "no network's name"),
            ("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "32 bytes are too long"),
        ] {
            refused(&format!(r#"[{{"network": "{name}"}}]"#), "nets[0].network", says);
        }
    }

    #[test]
    fn a_mac_suffix_is_three_bytes() {
        assert_eq!(mac_suffix("0a:0B:ff"), Ok([0x0a, 0x0b, 0xff]));
        for wrong in ["", "0a:0b", "0a:0b:0c:0d", "0a:0b:0g", "a:b:c", "0a-0b-0c", "+a:0b:0c", "0a:0b:0c:", "ää:ää:ää"]
        {
            let json = format!(r#"[{{"network": "a", "mac_suffix": "{wrong}"}}]"#);
            refused(&json, "nets[0].mac_suffix", "last three bytes");
        }
    }

    #[test]
    fn what_one_vm_may_have_is_bounded() {
        let five = format!("[{}]", [r#"{"network": "a"}"#; 5].join(","));
        refused(&five, "nets", "5 interfaces");
        for queues in [0, 5] {
            refused(&format!(r#"[{{"network": "a", "queues": {queues}}}]"#), "nets[0].queues", "1 to 4");
        }
        let forwards: Vec<_> = (1..=17).map(|n| format!(r#"{{"host": {n}, "guest": 1}}"#)).collect();
        let many = format!(r#"[{{"network": "a", "forwards": [{}]}}]"#, forwards.join(","));
        refused(&many, "nets[0].forwards", "17 are too many");
    }

    #[test]
    fn a_port_is_not_0_and_leads_to_one_place() {
        let with = |one: &str, two: &str| {
            format!(r#"[{{"network": "a", "forwards": [{one}]}}, {{"network": "a", "forwards": [{two}]}}]"#)
        };
        let good = r#"{"host": 80, "guest": 80}"#;
        refused(&with(r#"{"host": 0, "guest": 1}"#, good), "nets[0].forwards[0].host", "no port");
        refused(&with(good, r#"{"host": 1, "guest": 0}"#), "nets[1].forwards[0].guest", "no port");
        let again = r#"{"host": 80, "guest": 81}"#;
        refused(&with(good, again), "nets[1].forwards[0].host", "TCP port 80 is forwarded by nets[0].forwards[0]");
        refused(&with("", &format!("{good}, {again}")), "nets[1].forwards[1].host", "use another port");
    }

    #[test]
    fn two_interfaces_of_one_network_have_different_macs() {
        let same = r#"[{"network": "a", "mac_suffix": "00:00:0a"}, {"network": "a", "mac_suffix": "00:00:0A"}]"#;
        refused(same, "nets[1].mac_suffix", "the same as that of nets[0]");
    }
}
