//! `vmsup serve`: from the command line to the supervisor's own options.

use super::args::Serve;
use super::failure::{ALREADY_SERVED, BAD_INPUT, FAILED, Failure};
use super::output::print;
use std::io::ErrorKind;
use std::path::PathBuf;
use vmsup::serve::{ServeError, ServeOptions, check_config, serve as serve_until_told};
use vmsup::vmjson::check::escaped_path;

/// Runs the supervisor in this process.
pub fn serve(socket: Option<PathBuf>, args: Serve) -> Result<(), Failure> {
    let Serve {
        runtime_dir,
        state_dir,
        config,
        check,
        pool,
        jailer,
        worker,
        cgroup,
        jailer_socket,
        netd,
        metrics_listen,
        watch,
        watch_prune,
        background,
    } = args;
    if let Some(file) = config.as_deref().filter(|_| check) {
        let said = check_config(file).map_err(|error| Failure::input(error.to_string()))?;
        return print(format!("{}: nothing wrong: {said}\n", escaped_path(file)));
    }
    let options = ServeOptions {
        socket,
        runtime_dir,
        state_dir,
        config,
        pool,
        jailer,
        worker,
        cgroup,
        jailer_socket,
        netd,
        metrics_listen,
        watch,
        watch_prune,
        background,
    };
    serve_until_told(options).map_err(|error| Failure {
        status: match &error {
            ServeError::Served(_) => ALREADY_SERVED,
            ServeError::Config(_) => BAD_INPUT,
            _ => FAILED,
        },
        sentence: Some(sentence(&error)),
    })
}

/// What is wrong, and what to do where the kernel's word alone does not tell.
fn sentence(error: &ServeError) -> String {
    let ServeError::Path { path, source, .. } = error else { return error.to_string() };
    let above = path.parent().unwrap_or(path);
    match source.kind() {
        ErrorKind::NotFound => {
            format!(
                "{}: no such directory; make it, or set XDG_RUNTIME_DIR to a directory of your own",
                above.display()
            )
        }
        ErrorKind::PermissionDenied => {
            format!("{error}; check who owns {}, or set XDG_RUNTIME_DIR to a directory of your own", above.display())
        }
        _ => error.to_string(),
    }
}
