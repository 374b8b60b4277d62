//! The files that say who is who on this host, read in a directory that was opened at the start ([`ipc::peer::Accounts`]).

use crate::places::Place;
use ipc::peer::Accounts;
use std::io;

/// Reads them in the directory `etc`. Not every host has subordinate uids.
///
/// # Errors
/// One of them cannot be read.
pub fn read(etc: &Place) -> io::Result<Accounts> {
    let subuid = match etc.read("subuid") {
        Ok((text, _)) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    Ok(Accounts::of(etc.read("passwd")?.0, etc.read("group")?.0, subuid))
}
