//! Names of interfaces.

use crate::ops::IfName;

#[test]
fn a_name_is_never_cut_off() {
    assert!(IfName::new("abcdefghijklmno").is_some());
    for bad in ["abcdefghijklmnop", "", "a/b", "a b", "a:b", ".", "..", "a\0", "ä"] {
        assert!(IfName::new(bad).is_none(), "{bad:?}");
    }
    assert_eq!(IfName::new("br0").unwrap().as_str(), "br0");
    assert_eq!(IfName::new("br0").unwrap().padded(), *b"br0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_port_has_one_name_and_no_other_name_is_a_port() {
    for n in [0, 7, u32::MAX] {
        assert_eq!(IfName::port(n).port_number(), Some(n));
    }
    for other in ["vt", "vt007", "vt4294967296", "vtx", "br0", "xvt1"] {
        assert_eq!(IfName::new(other).unwrap().port_number(), None, "{other}");
    }
}
