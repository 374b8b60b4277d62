//! Where the files of a run come from: its owner's paths, the fds that they handed over, or the supervisor's storage.
//!
//! | supervisor | VM                        | files                                                     |
//! |------------|---------------------------|-----------------------------------------------------------|
//! | of a user  | that user's               | the paths of its spec                                     |
//! | shared     | forgotten at its end      | the fds that came with its request, as they are           |
//! | shared     | can be started again      | imported when they came, from the storage from then on    |
//! | shared     | of the supervisor's user  | as of a supervisor of that user, where no fds came        |
//!
//! A shared supervisor opens no path for anybody but its own user, who could open it without its help.

use super::Context;
use super::closing;
use super::files::GuestFiles;
use super::refusals::{internal, unavailable};
use super::side::Received;
use super::side::shares::Task;
use super::state::Intent;
use super::storage::{Busy, import};
use crate::api::types::{ApiError, ErrorCode};
use crate::guestfile;
use crate::spec::VmSpec;

/// Where the files of a run come from.
#[derive(Debug)]
pub enum Source {
    /// The paths of its spec; also of a VM without files.
    Paths,
    /// What was handed over.
    Handed(Received),
    /// The storage.
    Stored {
        /// Whose files.
        number: u64,
        /// They were imported just now, and stay until they are open.
        _busy: Option<Busy>,
    },
}

/// Finds out where the files of a VM come from, and imports what came with the request and is to be kept. `told` hears how
/// much is done of that, per cent.
///
/// # Errors
/// The VM's owner named paths that are not opened for them; what was imported cannot be used.
pub async fn source(
    context: &Context,
    intent: &Intent,
    received: Option<Received>,
    told: impl Fn(u8),
) -> Result<Source, ApiError> {
    let (number, spec) = (intent.number, &intent.spec);
    match received {
        Some(received) if intent.remove_when_ended => Ok(Source::Handed(received)),
        Some(received) => {
            let busy = import(context, (number, intent.owner), spec, received, told).await?;
            Ok(Source::Stored { number, _busy: Some(busy) })
        }
        None if !GuestFiles::any(spec) => Ok(Source::Paths),
        None if context.storage.has(number) => Ok(Source::Stored { number, _busy: None }),
        None if context.opens_paths_of(intent.owner) => Ok(Source::Paths),
        None => Err(no_paths(spec)),
    }
}

/// Whether a VM could be started as `spec` says without anything being handed over.
///
/// # Errors
/// The file that is missing.
pub async fn possible(context: &Context, number: u64, owner: u32, spec: &VmSpec) -> Result<(), ApiError> {
    if !GuestFiles::any(spec) || (context.opens_paths_of(owner) && !context.storage.has(number)) {
        return Ok(());
    }
    let (storage, files) = (context.storage.clone(), guestfile::of(spec));
    let missing = tokio::task::spawn_blocking(move || {
        let images = storage.images(number).ok();
        files.into_iter().find(|file| !images.as_ref().is_some_and(|images| images.has(file)))
    });
    match missing.await {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(no_paths(spec)),
        Err(_) => Err(internal("the thread that looks at files died")),
    }
}

fn no_paths(spec: &VmSpec) -> ApiError {
    let message = "this supervisor serves several users and opens no file by its path for them; use a vmsup of its release, \
                   which opens it and hands it over";
    let field = guestfile::of(spec).first().map(|file| file.field.clone());
    ApiError { code: ErrorCode::Invalid, message: message.into(), field }
}

/// Opens the files of a run.
///
/// # Errors
/// The first that cannot be used.
pub async fn open(context: &Context, spec: &VmSpec, source: Source) -> Result<GuestFiles, ApiError> {
    if !GuestFiles::any(spec) && !matches!(source, Source::Handed(_)) {
        return GuestFiles::open(spec);
    }
    if closing::is_behind() {
        return Err(unavailable(
            "the file systems of VMs' files do not answer (closing them hangs); are they all there? (NFS, FUSE)",
        ));
    }
    // A file system may take its time, and no other VM is to wait for it.
    let spec = spec.clone();
    let died = |_| internal("the thread that opens files died");
    match source {
        Source::Paths => tokio::task::spawn_blocking(move || GuestFiles::open(&spec)).await.map_err(died)?,
        Source::Stored { number, _busy } => {
            let storage = context.storage.clone();
            let open = move || GuestFiles::stored(&spec, &storage.images(number)?);
            tokio::task::spawn_blocking(open).await.map_err(died)?
        }
        Source::Handed(received) => {
            let share = received.share().clone();
            share.run(Task::Look, move || GuestFiles::received(&spec, received)).await?
        }
    }
}
