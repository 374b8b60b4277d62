//! The supervisor's own storage: copies of the files of VMs whose owners are other users.
//!
//! ```text
//! <state>/images/<id of the VM>/kernel-<hash>     one file for each path that its spec names
//!                               initrd-<hash>
//!                               disk-<hash>
//!                               …​.part            one that is being copied
//! ```
//!
//! A VM that can be started again must find its files without its owner: so they are imported before its first start
//! ([`import()`]), and opened from here from then on, relative to a directory that is open, never by a path of anybody's. A
//! file is imported once for each path that the spec names. One whose path stays keeps what the guest wrote to it, also where
//! the rest of the spec changes.
//!
//! The directory is this user's alone. It goes with its VM; what a supervisor that was killed left of a VM that never came to
//! be, the next one removes ([`Storage::clean`]).

use super::rundir::own_dir;
use super::state::Intent;
use super::tenants::{Claim, Demand, Tenants};
use crate::api::types::{ApiError, ErrorCode};
use rustix::fs::{CWD, OFlags};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
#[cfg(test)]
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

mod copy;
mod images;
mod import;

pub use images::Images;
pub use import::import;

/// Directory of the images, in the state directory.
pub const IMAGES: &str = "images";
/// How long the end of a VM waits for an import of its files to be given up: a source that hangs keeps its thread.
const GIVE_UP: Duration = Duration::from_secs(5);

/// All images.
#[derive(Debug)]
pub struct Storage {
    /// Its directory, or why there is none.
    dir: Result<OwnedFd, String>,
    vms: Mutex<HashMap<u64, Entry>>,
    /// Something is not busy any more.
    idle: Notify,
}

/// What there is of a VM.
#[derive(Debug, Default)]
struct Entry {
    /// Bytes of its files, holes included.
    stored: u64,
    /// What its owner is charged for them.
    charged: Vec<Claim>,
    /// Those who import files of it, or are about to use what was imported.
    busy: usize,
}

/// Somebody imports files of a VM, or is about to use them: none of them is removed.
#[derive(Debug)]
pub struct Busy {
    storage: Arc<Storage>,
    number: u64,
}

impl Storage {
    /// That of this state directory. A supervisor of one user needs none, and makes none.
    pub fn open(state: &Path, shared: bool) -> Storage {
        let path = state.join(IMAGES);
        if !shared && !path.exists() {
            return Storage::of(Err("this supervisor imports nothing".into()));
        }
        let dir = own_dir(CWD, path.as_os_str().as_bytes(), &path).map(|(dir, _)| dir);
        Storage::of(dir.map_err(|error| format!("{error}; mend that and restart the supervisor")))
    }

    fn of(dir: Result<OwnedFd, String>) -> Storage {
        let mut vms = HashMap::new();
        for number in dir.iter().flat_map(images::numbers) {
            vms.insert(number, Entry { stored: Storage::measure(&dir, number), ..Entry::default() });
        }
        Storage { dir, vms: Mutex::new(vms), idle: Notify::new() }
    }

    /// One of the test's own.
    #[cfg(test)]
    pub fn for_tests(dir: &Path) -> Storage {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).unwrap();
        Storage::of(Ok(own_dir(CWD, dir.as_os_str().as_bytes(), dir).unwrap().0))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn measure(dir: &Result<OwnedFd, String>, number: u64) -> u64 {
        let images = dir.as_ref().ok().and_then(|dir| Images::find(dir, number).ok().flatten());
        images.map_or(0, |images| images.bytes())
    }

    fn dir(&self) -> Result<OwnedFd, ApiError> {
        let unavailable = |message: String| ApiError { code: ErrorCode::Unavailable, message, field: None };
        let dir = self.dir.as_ref().map_err(|why| unavailable(format!("there is no storage for files: {why}")))?;
        dir.try_clone().map_err(|error| unavailable(format!("no file descriptors for the VM's files: {error}")))
    }

    /// The files of this VM are in here, at least some of them.
    pub fn has(&self, number: u64) -> bool {
        self.lock().get(&number).is_some_and(|entry| entry.stored > 0)
    }

    /// The files of a VM. Blocks for the file system's time.
    ///
    /// # Errors
    /// There are none.
    pub fn images(&self, number: u64) -> Result<Images, ApiError> {
        let found = Images::find(&self.dir()?, number).map_err(|error| ApiError {
            code: ErrorCode::Unavailable,
            message: format!("the VM's files in the supervisor's storage cannot be reached: {error}"),
            field: None,
        })?;
        found.ok_or_else(|| ApiError {
            code: ErrorCode::Conflict,
            message: "the supervisor's storage has no files of this VM; start it anew from its file".into(),
            field: None,
        })
    }

    /// Keeps the files of a VM as they are, for as long as the result lives.
    pub fn busy(self: &Arc<Self>, number: u64) -> Busy {
        self.lock().entry(number).or_default().busy += 1;
        Busy { storage: self.clone(), number }
    }

    /// The owner of a VM is charged for what was imported, until it is removed.
    fn charge(&self, number: u64, claim: Claim) {
        self.lock().entry(number).or_default().charged.push(claim);
    }

    /// Waits until nobody is busy with a VM's files, but not for ever.
    async fn until_idle(&self, number: u64) {
        let idle = async {
            loop {
                let notified = self.idle.notified();
                if self.lock().get(&number).is_none_or(|entry| entry.busy == 0) {
                    return;
                }
                notified.await;
            }
        };
        if tokio::time::timeout(GIVE_UP, idle).await.is_err() {
            tracing::warn!(number, "an import of files cannot be given up; what it leaves goes when it ends");
        }
    }

    /// Removes the files of a VM that is no longer there.
    pub async fn remove(self: &Arc<Self>, number: u64) {
        if self.dir.is_err() || !self.lock().contains_key(&number) {
            return;
        }
        self.until_idle(number).await;
        self.blocking(move |dir| Images::remove(dir, number, |_| true)).await;
        self.measured(number).await;
    }

    /// Removes the files of a VM that its spec does not name any more, unless somebody is busy with them.
    pub async fn tidy(self: &Arc<Self>, tenants: &Tenants, intent: &Intent) {
        let (number, named) = (intent.number, images::names(&intent.spec));
        if self.lock().get(&number).is_none_or(|entry| entry.busy > 0) {
            return;
        }
        self.blocking(move |dir| Images::remove(dir, number, |name| !named.iter().any(|named| named == name))).await;
        self.measured(number).await;
        if let Some(entry) = self.lock().get_mut(&number) {
            entry.charged = vec![tenants.charge(intent.owner, Demand::disk(entry.stored))];
        }
    }

    /// Charges the owners of these VMs for what an earlier supervisor imported for them.
    pub fn charge_all(&self, tenants: &Tenants, vms: &[Arc<Intent>]) {
        let mut entries = self.lock();
        for intent in vms {
            if let Some(entry) = entries.get_mut(&intent.number) {
                entry.charged = vec![tenants.charge(intent.owner, Demand::disk(entry.stored))];
            }
        }
    }

    /// Removes what belongs to no VM: imports that a supervisor did not live to finish. `vms` are those that there are, all of
    /// them where this is `complete`: a database that was lost is no reason to remove the disks of the VMs that were in it.
    pub async fn clean(self: &Arc<Self>, tenants: &Tenants, vms: Vec<Arc<Intent>>, complete: bool) {
        let there: Vec<u64> = self.lock().keys().copied().collect();
        for number in there {
            match vms.iter().find(|intent| intent.number == number) {
                Some(intent) => self.tidy(tenants, intent).await,
                None if !complete => {
                    let id = super::state::id(number);
                    tracing::warn!(id, "files of a VM that is not known any more are kept in the storage");
                }
                None => {
                    tracing::info!(id = super::state::id(number), "removing the files of a VM that is not there");
                    self.remove(number).await;
                }
            }
        }
    }

    async fn blocking(&self, work: impl FnOnce(&OwnedFd) -> std::io::Result<()> + Send + 'static) {
        let Ok(dir) = self.dir() else { return };
        match tokio::task::spawn_blocking(move || work(&dir)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "files of a VM could not be removed from the storage"),
            Err(error) => tracing::error!(%error, "removing files of a VM"),
        }
    }

    /// Looks how many bytes there are.
    async fn measured(self: &Arc<Self>, number: u64) {
        let storage = self.clone();
        let bytes = tokio::task::spawn_blocking(move || Storage::measure(&storage.dir, number)).await.unwrap_or(0);
        self.stored(number, bytes);
    }

    fn stored(&self, number: u64, bytes: u64) {
        let mut vms = self.lock();
        let entry = vms.entry(number).or_default();
        entry.stored = bytes;
        if (entry.stored, entry.busy) == (0, 0) {
            vms.remove(&number);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut vms = self.storage.lock();
        if let Some(entry) = vms.get_mut(&self.number) {
            entry.busy -= 1;
        }
        drop(vms);
        self.storage.idle.notify_waiters();
    }
}

/// How a directory of the storage is opened.
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests;
