//! `vmsup serve`: from the command line to the supervisor's own options.

use super::args::Serve;
use super::failure::{ALREADY_SERVED, FAILED, Failure};
use std::path::PathBuf;
use vmsup::serve::{ServeError, ServeOptions, serve as serve_until_told};

/// Runs the supervisor in this process.
pub fn serve(socket: Option<PathBuf>, args: Serve) -> Result<(), Failure> {
    let Serve { runtime_dir, pool, jailer, worker, cgroup, background } = args;
    serve_until_told(ServeOptions { socket, runtime_dir, pool, jailer, worker, cgroup, background }).map_err(|error| {
        Failure {
            status: if matches!(error, ServeError::Served(_)) { ALREADY_SERVED } else { FAILED },
            sentence: Some(error.to_string()),
        }
    })
}
