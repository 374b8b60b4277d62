//! Names of VMs' owners. `/etc/passwd` is read rather than asked of NSS: a static binary cannot load NSS modules.

use ipc::peer::Accounts;

/// The users of this host.
#[derive(Debug)]
pub struct Owners(Accounts);

impl Owners {
    /// As the file has them now.
    pub fn read() -> Owners {
        Owners(Accounts::of(std::fs::read_to_string("/etc/passwd").unwrap_or_default(), "", ""))
    }

    /// The name of a uid, or its number.
    pub fn name(&self, uid: u32) -> String {
        self.0.name(uid).map_or_else(|| uid.to_string(), str::to_owned)
    }
}
