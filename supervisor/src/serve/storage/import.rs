//! An import: what was handed over for a VM is copied into the storage, as an operation of its own.
//!
//! Dropped before its end, or cancelled, nothing of it is left, but for the moment that its thread takes to see that.

use super::copy::{CopyError, Progress};
use super::{Busy, Images, Storage, images};
use crate::api::types::{ApiError, ErrorCode, OperationKind};
use crate::guestfile::{self, GuestFile, Opened, Purpose};
use crate::serve::Context;
use crate::serve::refusals::{internal, unavailable};
use crate::serve::side::shares::Task;
use crate::serve::side::{Back, Received};
use crate::serve::tenants::Demand;
use crate::spec::VmSpec;
use ipc::peer::Peer;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How often it is told how far an import is.
const TELL: Duration = Duration::from_millis(250);

/// Imports those files of `spec` that VM `number` of `owner` has not. `told` hears how much is done, per cent. They stay as
/// long as the result lives, and as long as the VM's spec names them after that.
///
/// # Errors
/// The first file that cannot be used; there is no room; it was cancelled.
pub async fn import(
    context: &Context,
    (number, owner): (u64, u32),
    spec: &VmSpec,
    received: Received,
    told: impl Fn(u8),
) -> Result<Busy, ApiError> {
    let mut op = context.operations.begin(OperationKind::Import, &spec.name, owner, "files");
    let id = op.id();
    let tell = |percent| {
        context.operations.progress(id, "copy", Some(percent));
        told(percent);
    };
    let result = tokio::select! {
        biased;
        result = imported(context, (number, owner), spec, received, tell) => result,
        () = op.cancelled() => {
            let message = format!("the import of the files of {} was cancelled", spec.name);
            return Err(ApiError { code: ErrorCode::Conflict, message, field: None });
        }
    };
    match &result {
        Ok(_) => op.end(Ok(())),
        Err(error) => op.end(Err(error.clone())),
    }
    result
}

async fn imported(
    context: &Context,
    (number, owner): (u64, u32),
    spec: &VmSpec,
    received: Received,
    told: impl Fn(u8),
) -> Result<Busy, ApiError> {
    let storage = &context.storage;
    let (busy, dir) = (storage.busy(number), storage.dir()?);
    let share = received.share().clone();
    let (wanted, there) = (spec.clone(), dir.try_clone().map_err(|error| unavailable(error.to_string()))?);
    let looking = share.run(Task::Look, move || {
        let images = Images::find(&there, number).map_err(|error| unavailable(cannot(&error)))?;
        Plan::of(&wanted, received, images.as_ref())
    });
    let plan = timeout(context.deadlines.files, looking).await;
    let plan = plan
        .map_err(|_| unavailable("the VM's files could not be looked at in time; are their file systems there?"))???;
    let total = plan.files.iter().fold(0, |sum: u64, (_, opened)| sum.saturating_add(opened.size));
    if plan.files.is_empty() {
        return Ok(busy);
    }
    told(0);
    // Both last as long as the thread does, whoever waits for it.
    let limit = context.tenants.limit(plan.peer());
    let (claim, copying) = (context.tenants.claim(owner, Demand::disk(total), None, &limit)?, storage.busy(number));
    let progress = Arc::new(Progress::default());
    let _wanted = Wanted(progress.clone());
    let (theirs, ours) = (progress.clone(), storage.clone());
    let work = share.run(Task::Copy, move || {
        let done = plan.carry_out(&dir, number, &theirs);
        ours.stored(number, Storage::measure(&ours.dir, number));
        drop((plan, copying));
        done.map(|()| claim)
    });
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => {
                storage.charge(number, done??);
                return Ok(busy);
            }
            () = sleep(TELL) => {
                let done = u128::from(progress.done.load(Ordering::Relaxed));
                told(u8::try_from(done * 100 / u128::from(total.max(1))).unwrap_or(100).min(100));
            }
        }
    }
}

fn cannot(error: &std::io::Error) -> String {
    format!("the supervisor's storage cannot be used: {error}")
}

/// The import is wanted as long as this lives.
struct Wanted(Arc<Progress>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }
}

/// What is to be copied. Its sources are closed where they may hang.
#[derive(Debug)]
struct Plan {
    files: Vec<(GuestFile, Opened)>,
    peer: Peer,
    back: Option<Back>,
}

impl Plan {
    /// Looks at what was handed over, and which of it is not there yet.
    fn of(spec: &VmSpec, mut received: Received, there: Option<&Images>) -> Result<Plan, ApiError> {
        received.matches(spec)?;
        let mut files: Vec<(GuestFile, Opened)> = Vec::new();
        for file in guestfile::of(spec) {
            let fd = received.take(&file)?;
            let again = files.iter().any(|(other, _)| images::name(other) == images::name(&file));
            if !again && !there.is_some_and(|images| images.has(&file)) {
                let opened = file.accept(fd, Purpose::Copy)?;
                files.push((file, opened));
            }
        }
        Ok(Plan { files, peer: received.peer().clone(), back: Some(received.back()) })
    }

    /// Who handed it over.
    fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Copies all of it, or nothing.
    fn carry_out(&self, dir: &std::os::fd::OwnedFd, number: u64, progress: &Progress) -> Result<(), ApiError> {
        let images = Images::make(dir, number).map_err(|error| unavailable(cannot(&error)))?;
        for (n, (file, source)) in self.files.iter().enumerate() {
            let Err(error) = images.import(file, source, progress) else { continue };
            self.files[..n].iter().for_each(|(file, _)| images.forget(file));
            // Its directory, where it has no other files.
            let _ = Images::remove(dir, number, |_| false);
            let code = match error {
                CopyError::Write(_) => ErrorCode::Unavailable,
                CopyError::Cancelled | CopyError::Changed => ErrorCode::Conflict,
                CopyError::Read(_) => ErrorCode::Invalid,
            };
            return Err(ApiError { code, ..file.refuse(&error.to_string()) });
        }
        // The last bytes were copied and nobody wants them any more.
        if progress.cancelled.load(Ordering::Relaxed) {
            self.files.iter().for_each(|(file, _)| images.forget(file));
            let _ = Images::remove(dir, number, |_| false);
            return Err(internal("an import that nobody wants any more"));
        }
        Ok(())
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        if let Some(back) = self.back.take() {
            back.close(self.files.drain(..).map(|(_, opened)| opened.fd));
        }
    }
}
