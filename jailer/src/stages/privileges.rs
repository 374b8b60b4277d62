//! No capability in any set, and none to be had again.

use caps::CapSet;
use rustix::io::Errno;
use rustix::thread::{CapabilitiesSecureBits as Bits, set_capabilities_secure_bits};

/// Uid 0 means nothing to exec and to setuid, capabilities do not survive either, and nobody can change that back.
pub(super) fn lock_securebits() -> Result<(), Errno> {
    set_capabilities_secure_bits(
        Bits::NO_ROOT
            | Bits::NO_ROOT_LOCKED
            | Bits::NO_SETUID_FIXUP
            | Bits::NO_SETUID_FIXUP_LOCKED
            | Bits::KEEP_CAPS_LOCKED
            | Bits::NO_CAP_AMBIENT_RAISE
            | Bits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )
}

/// Drops every capability that the running kernel knows from the bounding set, also those newer than any list here.
pub(super) fn drop_bounding_set() -> Result<(), Errno> {
    for number in 0..64 {
        match crate::sys::drop_from_bounding_set(number) {
            Ok(()) => {}
            // Past the kernel's last capability; before its first there would be nothing dropped.
            Err(Errno::INVAL) if number > 0 => return Ok(()),
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// Empties the ambient, inheritable, permitted and effective sets. Permitted last but one: effective is a subset of it.
pub(super) fn drop_capabilities() -> Result<(), Errno> {
    for set in [CapSet::Ambient, CapSet::Effective, CapSet::Inheritable, CapSet::Permitted] {
        caps::clear(None, set).map_err(|_| Errno::PERM)?;
    }
    Ok(())
}
