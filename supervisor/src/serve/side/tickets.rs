//! Files that were handed over and not used yet, by their tickets.

use super::shares::{Back, Places, Share};
use crate::api::types::{ApiError, ErrorCode};
use crate::guestfile::{self, GuestFile};
use crate::side::{FILES_MAX, TICKET_DIGITS};
use crate::spec::VmSpec;
use ipc::peer::Peer;
use rustix::rand::{GetRandomFlags, getrandom};
use std::collections::HashMap;
use std::fmt::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Open files of a user's, by the fields of the spec that name them. Closed on a thread of that user.
#[derive(Debug)]
pub struct Received {
    files: Vec<(String, OwnedFd)>,
    back: Option<Back>,
    peer: Peer,
    share: Arc<Share>,
}

impl Received {
    /// What came in one frame, which has `places`.
    ///
    /// # Errors
    /// What is wrong with the frame, for its sender.
    pub fn new(
        fields: Vec<String>,
        fds: Vec<OwnedFd>,
        peer: Peer,
        share: Arc<Share>,
        mut places: Places,
    ) -> Result<Received, &'static str> {
        let count = fds.len();
        if count == 0 || count > FILES_MAX || count != fields.len() {
            return Err("a VM has a kernel, an initrd and disks, one file each, and at least one of them");
        }
        let twice = |n: usize| fields[..n].contains(&fields[n]);
        if (0..count).any(|n| !is_field(&fields[n]) || twice(n)) {
            return Err("the fields of files are boot.kernel, boot.initrd and disks[N].path, each once");
        }
        places.keep(count);
        let back = Some(Back::new(share.clone(), places));
        Ok(Received { files: fields.into_iter().zip(fds).collect(), back, peer, share })
    }

    /// Who handed them over.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Their share: where what is done with them is done.
    pub fn share(&self) -> &Arc<Share> {
        &self.share
    }

    /// Checks that they are the files of `spec`, no more and no less.
    ///
    /// # Errors
    /// The file that is missing or too much.
    pub fn matches(&self, spec: &VmSpec) -> Result<(), ApiError> {
        let wanted = guestfile::of(spec);
        if let Some(missing) = wanted.iter().find(|file| !self.files.iter().any(|(field, _)| *field == file.field)) {
            return Err(missing.refuse("was not handed over with the others"));
        }
        match self.files.iter().find(|(field, _)| !wanted.iter().any(|file| file.field == *field)) {
            Some((field, _)) => Err(ApiError {
                code: ErrorCode::Invalid,
                message: "a file was handed over that this VM has not".into(),
                field: Some(field.clone()),
            }),
            None => Ok(()),
        }
    }

    /// The fd of this file.
    ///
    /// # Errors
    /// It did not come.
    pub fn take(&mut self, file: &GuestFile) -> Result<OwnedFd, ApiError> {
        let at = self.files.iter().position(|(field, _)| *field == file.field);
        let at = at.ok_or_else(|| file.refuse("was not handed over with the others"))?;
        Ok(self.files.swap_remove(at).1)
    }

    /// Who closes them: for those that were taken.
    pub fn back(mut self) -> Back {
        // There is one until this is dropped.
        self.back.take().expect("files without places")
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(back) = self.back.take() {
            back.close(self.files.drain(..).map(|(_, fd)| fd));
        }
    }
}

fn is_field(field: &str) -> bool {
    let disk = |n: &str| n.len() == 1 && n.parse::<usize>().is_ok_and(|n| n < worker_api::DISKS_MAX);
    matches!(field, "boot.kernel" | "boot.initrd")
        || field.strip_prefix("disks[").and_then(|rest| rest.strip_suffix("].path")).is_some_and(disk)
}

/// All of them.
#[derive(Debug, Default)]
pub struct Tickets(Mutex<HashMap<String, Entry>>);

#[derive(Debug)]
struct Entry {
    received: Received,
    /// Dropped when they are used.
    _used: oneshot::Sender<()>,
}

/// A ticket that was given out; the files go back when this is dropped, unless they were used.
#[derive(Debug)]
pub struct Issued<'a> {
    tickets: &'a Tickets,
    /// What the client gets.
    pub ticket: String,
    /// Over when the files are used.
    pub used: oneshot::Receiver<()>,
}

impl Tickets {
    /// A ticket for files, for who handed them over.
    ///
    /// # Errors
    /// The kernel has no random numbers.
    pub fn issue(&self, received: Received) -> std::io::Result<Issued<'_>> {
        let mut random = [0u8; TICKET_DIGITS / 2];
        // So few bytes come whole, or not at all.
        getrandom(&mut random, GetRandomFlags::empty())?;
        let ticket = random.iter().fold(String::with_capacity(TICKET_DIGITS), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        let (_used, used) = oneshot::channel();
        self.lock().insert(ticket.clone(), Entry { received, _used });
        Ok(Issued { tickets: self, ticket, used })
    }

    /// The files of a ticket, for whom it was given to, once.
    ///
    /// # Errors
    /// There is none such. Nobody learns of somebody else's.
    pub fn redeem(&self, ticket: &str, uid: u32) -> Result<Received, ApiError> {
        let mut tickets = self.lock();
        let theirs = tickets.get(ticket).is_some_and(|entry| entry.received.peer.uid == uid);
        let entry = if theirs { tickets.remove(ticket) } else { None };
        entry.map(|entry| entry.received).ok_or_else(|| ApiError {
            code: ErrorCode::Invalid,
            message: "no files were handed over under this ticket, or they were used, or not in time; try again".into(),
            field: Some("files".into()),
        })
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Issued<'_> {
    fn drop(&mut self) {
        let entry = self.tickets.lock().remove(&self.ticket);
        drop(entry);
    }
}
