//! The supervisor: `vmsup serve`.
//!
//! Runs as the user (or the system user `vmsup`), with no_new_privs and a seccomp filter on every thread. Speaks to
//! four kinds of peers: clients with this user's uid or whom a configuration names ([`tenants`]), over HTTP on a Unix socket ([`crate::api`]); one jailer, found or
//! started before the filter is in force ([`jailer`], [`jail`]); its workers, which are assumed to be compromised
//! ([`worker`], [`console`]); and the host's netd, where VMs have networks ([`netd`]).
//!
//! VMs outlive their supervisor, however it ends: their workers go on, and so does the jailer that is to say how they end.
//! The next supervisor takes them over ([`adopt`]), by what is in the database ([`state`]), in the runtime directory
//! ([`handle`]) and with the jailer.
//!
//! [`serve`] is what happens at start, in order: lock, state, jailer, socket, filter, adoption, and only then clients.
//! Everything that a filter forbids comes before the filter: making directories, reading them, starting the jailer or
//! connecting to it, opening the log, binding the socket.

use crate::paths;
use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Runtime;

mod actor;
mod adopt;
mod ask;
mod background;
pub mod budget;
pub(crate) mod closing;
mod confine;
pub(crate) mod console;
mod end;
pub(crate) mod events;
mod fault;
mod files;
mod handle;
mod health;
mod hold;
mod host;
mod jail;
mod jailer;
pub mod lifecycle;
mod listening;
mod log;
mod memfd;
pub(crate) mod metrics;
#[cfg(test)]
mod net_tests;
pub(crate) mod netd;
pub(crate) mod nets;
mod notify;
pub(crate) mod ops;
pub(crate) mod provide;
mod readiness;
pub(crate) mod refusals;
pub(crate) mod registry;
mod restart;
mod run;
mod rundir;
pub(crate) mod side;
mod signals;
mod start;
mod starts;
pub(crate) mod state;
mod storage;
pub(crate) mod stream;
pub(crate) mod tasks;
pub(crate) mod tenants;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod tick;
mod update;
pub(crate) mod vm;
mod watch;
mod watcher;
mod worker;

pub(crate) use host::Host;
pub(crate) use jail::Jail;
pub use metrics::cgroup;
pub(crate) use netd::Netd;
pub use tenants::{ConfigError, check as check_config};

/// What `vmsup serve` was told.
#[derive(Debug, Clone, Default)]
pub struct ServeOptions {
    /// The API's socket; default: `api.sock` in the runtime directory.
    pub socket: Option<PathBuf>,
    /// The runtime directory; default: [`paths::runtime_dir`].
    pub runtime_dir: Option<PathBuf>,
    /// The directory of the durable state; default: [`paths::state_dir`].
    pub state_dir: Option<PathBuf>,
    /// How many warm workers the jailer keeps.
    pub pool: u32,
    /// Who may use it, and how much; default: its own user alone ([`tenants`]).
    pub config: Option<PathBuf>,
    /// `vmsup-jailer`; default: beside our own executable.
    pub jailer: Option<PathBuf>,
    /// `vmsup-worker`; default: beside our own executable.
    pub worker: Option<PathBuf>,
    /// A delegated cgroup for the workers' leaves; default: a scope of the user's service manager, where there is one.
    pub cgroup: Option<PathBuf>,
    /// Where a service manager has a jailer for who connects; default: the one of our predecessor, else a child of ours.
    pub jailer_socket: Option<PathBuf>,
    /// netd's socket; default: [`paths::netd_socket`].
    pub netd: Option<PathBuf>,
    /// Where metrics are told over TCP: an address of the loopback.
    pub metrics_listen: Option<SocketAddr>,
    /// Directories whose files say what VMs there are ([`watch`]).
    pub watch: Vec<PathBuf>,
    /// VMs of these directories are removed when their files are gone.
    pub watch_prune: bool,
    /// Leave the terminal, log to a file, and say `ready` on stdout.
    pub background: bool,
}

/// Why there is no supervisor. Each is a sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another one serves this directory or socket.
    #[error("a supervisor serves {} already; use it, or stop it first", .0.display())]
    Served(PathBuf),
    /// The runtime directory is not ours alone.
    #[error("{} {why}; remove it, or set XDG_RUNTIME_DIR to a directory of your own", .path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Something else is where the socket should be.
    #[error("{} is there and is no socket; remove it, or give another --socket", .0.display())]
    NotASocket(PathBuf),
    /// A system call on a path failed.
    #[error("{what} {}: {source}", .path.display())]
    Path {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// A program of this release is not there.
    #[error("{} is not there; install all programs of vmsup side by side, or name it (--jailer, --worker)", .0.display())]
    NoProgram(PathBuf),
    /// The jailer could not be started.
    #[error("the jailer could not be started: {0}")]
    Start(#[source] std::io::Error),
    /// There is a socket for jailers, and none behind it that can be used.
    #[error("the jailer behind {}: {why}", .path.display())]
    JailerSocket {
        /// The socket.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The jailer said nothing in time.
    #[error("the jailer did not become ready in 10 s; its messages are in the supervisor's log")]
    Silent,
    /// The jailer hung up or is of another release.
    #[error("the jailer did not become ready: {0}; its messages are in the supervisor's log")]
    Handshake(#[source] ipc::Error),
    /// Metrics cannot be told there.
    #[error("metrics cannot be told on {address}: {source}; name another port (--metrics-listen)")]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// The configuration is wrong.
    #[error("{0}")]
    Config(#[from] tenants::ConfigError),
    /// /dev/kvm cannot be used.
    #[error("{0}")]
    Kvm(String),
    /// More VMs run than this process may have fds for.
    #[error(
        "{found} VMs run, and with {nofile} open files there is room for {places}; raise the limit (ulimit -Hn, LimitNOFILE=) \
         and start again: they go on meanwhile"
    )]
    TooMany {
        /// How many run.
        found: usize,
        /// How many there is room for.
        places: usize,
        /// The limit.
        nofile: u64,
    },
    /// The durable state cannot be used.
    #[error("{0}")]
    State(#[from] state::StateError),
    /// The process could not be confined.
    #[error("the supervisor could not confine itself: {0}")]
    Confine(String),
    /// `VMSUP_FAULT` says nothing that can be done.
    #[cfg(feature = "faults")]
    #[error("{0}")]
    Fault(String),
    /// A resource of the process itself could not be had.
    #[error("{0}: {1}")]
    System(&'static str, #[source] std::io::Error),
}

impl ServeError {
    fn path(what: &'static str, path: &Path, error: rustix::io::Errno) -> ServeError {
        ServeError::Path { what, path: path.to_owned(), source: error.into() }
    }
}

/// All that the parts of a running supervisor share.
#[derive(Debug)]
pub struct Context {
    /// Fds and facts of this host.
    pub(crate) host: Host,
    /// The way to the jailer.
    pub(crate) jail: Arc<Jail>,
    /// The way to netd.
    pub(crate) netd: Arc<Netd>,
    /// What the VMs are, on disk.
    pub(crate) store: state::Store,
    /// What they run as, beside it.
    pub(crate) handles: handle::Handles,
    /// What happened.
    pub(crate) events: Arc<events::Events>,
    /// What is being done.
    pub(crate) operations: Arc<ops::Operations>,
    /// Who may, and what each may have.
    pub(crate) tenants: tenants::Tenants,
    /// The VMs.
    pub(crate) registry: registry::Registry<vm::Vm>,
    /// What was counted.
    pub(crate) metrics: metrics::Metrics,
    /// How long the steps of a start may take.
    pub(crate) deadlines: start::Deadlines,
    /// The one timer of all VMs.
    pub(crate) tick: Arc<tick::Tick>,
    /// Places for looks at guests' ports.
    pub(crate) looks: Arc<tokio::sync::Semaphore>,
    /// Places for starts under way.
    pub(crate) starts: starts::Starts,
    /// The files of VMs that other users made.
    pub(crate) storage: Arc<storage::Storage>,
    /// The files that they handed over.
    pub(crate) side: side::Side,
}

impl Context {
    /// Whether others than the supervisor's own user may use it: then no path that a client names is opened.
    pub(crate) fn shared(&self) -> bool {
        self.tenants.is_shared()
    }

    /// Whether paths are opened for VMs of this user: all that there are where the supervisor is its user's alone; else those of
    /// the user that it runs as, who could open them without its help.
    pub(crate) fn opens_paths_of(&self, owner: u32) -> bool {
        !self.shared() || owner == self.host.uid
    }
}

/// Runs a supervisor until it is told to leave, or until its jailer is gone. Its VMs go on.
///
/// # Errors
/// What keeps it from serving.
pub fn serve(options: ServeOptions) -> Result<(), ServeError> {
    if options.background && background::needs_a_child() {
        return background::in_a_child();
    }
    #[cfg(feature = "faults")]
    fault::arm()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let dir = rundir::chosen(options.runtime_dir.clone());
    let socket = options.socket.clone().unwrap_or_else(|| dir.join(paths::API_SOCKET));
    let clients = if options.config.is_some() { rundir::Clients::Anybody } else { rundir::Clients::Own };
    let rundir = rundir::RunDir::take(&dir, &socket, clients)?;
    let starter = if options.background { Some(background::leave_terminal(&dir.join(paths::LOG_FILE))?) } else { None };
    log::begin(starter.as_ref().map(|starter| starter.log()).transpose()?);
    let result = prepare(&options, &rundir, &socket, starter.as_ref()).and_then(|(runtime, ready)| {
        let result = confined(&runtime, ready, &socket, starter);
        // Whatever a thread still waits for (a hung file system) ends with the process.
        runtime.shutdown_background();
        result
    });
    if let Err(error) = &result {
        tracing::error!("{error}");
    }
    result
}

/// What is there before the filter is.
struct Ready {
    tenants: tenants::Tenants,
    jailer: jailer::Jailer,
    host: Host,
    /// netd's socket.
    netd: PathBuf,
    budget: budget::Budget,
    store: state::Store,
    storage: storage::Storage,
    side: Option<side::Bound>,
    loaded: state::Loaded,
    handles: handle::Handles,
    verdicts: adopt::Verdicts,
    listening: listening::Listening,
    notify: notify::Notify,
    metrics: Option<TcpListener>,
    watched: Vec<watch::Watched>,
    signals: OwnedFd,
    /// Somebody looks at our stderr, who is told in a sentence what becomes of the VMs.
    terminal: bool,
}

/// Everything that the filter forbids.
fn prepare(
    options: &ServeOptions,
    rundir: &rundir::RunDir,
    socket: &Path,
    starter: Option<&background::Starter>,
) -> Result<(Runtime, Ready), ServeError> {
    let own = rustix::process::geteuid().as_raw();
    let tenants = match &options.config {
        Some(file) => tenants::Tenants::shared(own, tenants::Source::of(file, own)?)?,
        None => tenants::Tenants::of_one(own),
    };
    let programs = paths::program_dir().map_err(|e| ServeError::System("finding our own executable", e))?;
    let host = Host::open(rundir)?;
    let side = if tenants.is_shared() { Some(side::bind(&rundir.path)?) } else { None };
    let state_dir = options.state_dir.clone().unwrap_or_else(|| paths::state_dir(options.runtime_dir.as_deref()));
    let (store, mut loaded) = state::Store::open(&state_dir)?;
    store.keep_open();
    let storage = storage::Storage::open(&state_dir, side.is_some());
    let handles = rundir.handles.try_clone().map_err(|e| ServeError::System("copying an fd", e))?;
    let handles = handle::Handles::new(handles);
    let mut jailer = match &options.jailer_socket {
        Some(socket) => jailer::connect(socket, rundir)?,
        None => {
            let wanted = jailer::JailerOptions {
                jailer: options.jailer.clone().unwrap_or_else(|| programs.join("vmsup-jailer")),
                worker: options.worker.clone().unwrap_or_else(|| programs.join("vmsup-worker")),
                pool: options.pool,
                cgroup: options.cgroup.clone(),
                dir: rundir.workers_path(),
                log: starter.map(|s| s.log()).transpose()?,
            };
            jailer::find_or_start(&wanted, rundir)?
        }
    };
    // The list of what lives comes before the handles: a handle is written for a worker that the jailer has.
    let left = handles.read_all().map_err(|e| ServeError::System("reading the handles", e))?;
    let rows = std::mem::take(&mut loaded.vms);
    let verdicts = adopt::look(&host, rundir.new, rows, left, &mut jailer.listing);
    // After the jailer was started: it and its workers inherit neither the raised limit nor the blocked signals.
    let budget = budget::Budget::of(confine::raise_nofile(), side.is_some());
    let signals = signals::block()?;
    // Making the runtime takes system calls that running it does not. It has no thread yet but this one, which
    // confine() makes sure of.
    let runtime = run::runtime()?;
    let listening = listening::Listening::take(rundir, socket)?;
    let notify = notify::Notify::of_environment();
    let metrics = options.metrics_listen.map(metrics_listener).transpose()?;
    let watched = options.watch.iter().map(|dir| watch::Watched::new(dir, options.watch_prune));
    let watched = watched.collect::<Result<_, _>>()?;
    let netd = options.netd.clone().unwrap_or_else(paths::netd_socket);
    let netd = std::path::absolute(netd).map_err(|e| ServeError::System("naming netd's socket", e))?;
    let terminal = starter.is_none() && std::io::stderr().is_terminal();
    let ready = Ready {
        tenants,
        storage,
        side,
        jailer,
        host,
        netd,
        budget,
        store,
        loaded,
        handles,
        verdicts,
        listening,
        notify,
        metrics,
        watched,
        signals,
        terminal,
    };
    Ok((runtime, ready))
}

/// The socket of `--metrics-listen`.
fn metrics_listener(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let failed = |source| ServeError::Metrics { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Confines the process and serves.
fn confined(
    runtime: &Runtime,
    ready: Ready,
    socket: &Path,
    starter: Option<background::Starter>,
) -> Result<(), ServeError> {
    if let Some(starter) = &starter {
        starter.detach()?;
    }
    fault::here(fault::Step::AdoptLooked);
    if let Err(error) = confine::confine() {
        ready.listening.place.withdraw();
        if let Some(starter) = starter {
            starter.failed(&error);
        }
        return Err(error);
    }
    tracing::info!(socket = %socket.display(), jailer = ready.jailer.facts.pid, "serving");
    runtime.block_on(run::run(ready, || starter.map_or((), background::Starter::ready)))
}
