//! The command line: what can be asked, and the help for it.

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Virtual machines for people who don't trust what runs in them, started without root.
///
/// A VM is described by a file, vm.json, and runs in a process of its own that reaches nothing but what the file gives to
/// the VM: no other files, no network but the VM's own, no other VM. The supervisor that starts these processes runs as
/// you; the first command that needs it starts it in the background. VMs go on when it ends, and the next one finds them.
#[derive(Debug, Parser)]
#[command(
    name = "vmsup",
    version,
    subcommand_required = false,
    max_term_width = 100,
    after_long_help = "Examples:
  vmsup doctor                          what this host can do, and how to mend what it cannot
  vmsup run --rm examples/hello.json    start a VM, show its console, forget it at its end
  vmsup start vm.json                   start a VM in the background
  vmsup console web1                    talk to it; Ctrl-a d leaves
  vmsup inspect web1                    see what its process may do
  vmsup stop web1                       press its power button; vmsup start web1 starts it again
  vmsup net ls                          networks that your VMs may be in
  vmsup events -f                       see what happens, as it happens
  vmsup --system ls                     your VMs with the host's supervisor, where it has one for you

Exit status: 0 done, 1 failed, 2 wrong input (a file or an argument)."
)]
pub struct Cli {
    /// Socket of the supervisor, instead of your own supervisor's. None is started for it; `serve` listens there. For other
    /// commands $VMSUP_SOCKET says the same.
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,

    /// Use the host's supervisor, which serves several users: the same as --socket /run/vmsup/api.sock.
    #[arg(long, global = true, conflicts_with = "socket")]
    pub system: bool,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a VM in the background: one that a file describes, or one that is there and does not run.
    ///
    /// A VM stays when it has ended, with its id and its history, until it is removed. Started with a file, the VM of that
    /// name becomes what the file says now; started by its name, it is what it was. It goes on when the supervisor ends.
    #[command(
        after_help = "Examples:\n  vmsup start vm.json && vmsup console web1\n  vmsup stop web1 && vmsup start web1"
    )]
    Start {
        /// The file that describes the VM (`vmsup schema` tells what belongs into it), or the VM's name or id where there is no
        /// file of that name.
        #[arg(value_name = "FILE|VM", value_hint = ValueHint::FilePath)]
        what: String,
        #[command(flatten)]
        json: Json,
    },
    /// Start a VM with its console here, and wait for its end.
    ///
    /// What the VM writes to its console goes to stdout, stdin goes to the VM. Ctrl-C presses the VM's power button, and
    /// kills it after 5 seconds or at a second Ctrl-C. On a terminal Ctrl-C goes to the VM like any other key, and keys
    /// after Ctrl-a are for vmsup: `d` leaves the VM running in the background, `x` stops it, `a` sends Ctrl-a, `?` helps.
    /// The end of stdin does not end the VM.
    ///
    /// Exit status: 0 when the VM shut down or reset itself, 1 when it crashed, failed or was killed, 130 after Ctrl-C.
    #[command(
        after_help = "Examples:\n  vmsup run --rm examples/hello.json\n  echo poweroff | vmsup run vm.json > console.log"
    )]
    Run {
        /// Forget the VM at its end (its name, how it ended, its console's last output).
        #[arg(long)]
        rm: bool,
        /// The file that describes the VM.
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// List VMs, the ended ones too.
    #[command(after_help = "Examples:\n  vmsup ls\n  vmsup ls --json | jq -r '.[].name'")]
    Ls {
        #[command(flatten)]
        json: Json,
    },
    /// Show a VM and what its process may do.
    ///
    /// Shows the process itself, read from the kernel: user and group, namespaces, capabilities, seccomp of each thread,
    /// limits, cgroup, files and mounts. What the kernel shows to nobody is listed as asserted at start.
    ///
    /// With --verify all of it is held against the policies that this program was built with, every difference is named, and
    /// the exit status is 1 where there is one. The seccomp filters themselves are shown by the kernel to root only: started
    /// as root (name the supervisor with --socket), the installed instructions are read back and compared, too.
    #[command(
        after_help = "Examples:\n  vmsup inspect web1\n  vmsup inspect web1 --verify\n  sudo vmsup --socket /run/user/1000/vmsup/api.sock inspect --all --verify\n  vmsup inspect --all --prometheus\n\nExit status: 0 as declared, 1 with differences, 2 wrong input."
    )]
    Inspect {
        /// Name or id of the VM.
        #[arg(value_name = "VM", value_parser = vm_name, required_unless_present = "all")]
        vm: Option<String>,
        /// Every VM of the supervisor, and supervisor, jailer and netd themselves; with --verify also your workers that wait
        /// for a VM, and as root every worker of the host.
        #[arg(long, conflicts_with = "vm")]
        all: bool,
        /// Compare with the policies, and exit with 1 on any difference.
        #[arg(long)]
        verify: bool,
        /// Print what --all --verify finds in Prometheus' text format.
        #[arg(long, requires = "all", conflicts_with = "json")]
        prometheus: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Attach to a VM's console.
    ///
    /// Shows the output that is kept, then what comes. On a terminal, Ctrl-a d leaves and Ctrl-a a sends Ctrl-a. With
    /// pipes, stdin goes to the VM and stdout shows its output until the VM ends; the end of stdin does not end the
    /// session, for the answer to what was sent is still to come.
    #[command(
        after_help = "Examples:\n  vmsup console web1\n  echo ls | timeout 5 vmsup console web1\n  echo reboot | vmsup console --detach-on-eof web1"
    )]
    Console {
        #[command(flatten)]
        vm: Vm,
        /// Leave when all of stdin was sent.
        #[arg(long)]
        detach_on_eof: bool,
        /// Show only what comes from now on.
        #[arg(long)]
        no_history: bool,
        /// Send nothing; leaves the VM's input to others.
        #[arg(long)]
        read_only: bool,
    },
    /// Print the end of a VM's console output (the last 256 KiB).
    ///
    /// On a terminal, escape sequences are left out and other control characters are shown, since the VM may not be
    /// trusted. Into a file or a pipe the bytes go as they are.
    Logs {
        #[command(flatten)]
        vm: Vm,
        /// Go on with what comes, until the VM ends.
        #[arg(short, long)]
        follow: bool,
        /// The bytes as they are, also to a terminal.
        #[arg(long)]
        raw: bool,
    },
    /// Press VMs' power buttons, and kill those that have not ended in time.
    ///
    /// A VM that waits for its restart is not started again. The VMs stay, and can be started again.
    #[command(
        after_help = "Examples:\n  vmsup stop web1 web2\n  vmsup stop --all --timeout 60",
        mut_arg("all", |all| all.help("All your VMs that run, and those that wait for their restart"))
    )]
    Stop {
        #[command(flatten)]
        vms: Vms,
        /// Seconds that the VM has.
        #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = seconds)]
        timeout: u32,
        /// The host goes down: VMs whose files have them started again ("restart") are, when the next supervisor begins.
        #[arg(long)]
        for_shutdown: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Make VMs be what files say: create, start, update, and with --prune remove.
    ///
    /// A directory stands for all of its *.json. Every file is read and checked before anything is done: where one is wrong,
    /// nothing is. A VM whose file has changed is updated, without its guest noticing where that is possible, else it is
    /// stopped and started; one that rests is started. A VM belongs to the directory (or file) that it came from: only the
    /// same one changes or removes it.
    ///
    /// Exit status: 0 when every VM is as it is wanted, 1 when some could not be made so, 2 when nothing was done because
    /// something is wrong with what was given.
    #[command(after_help = "Examples:
  vmsup apply vms/                  all *.json in vms/
  vmsup apply --prune vms/          and remove the VMs whose files are gone from it
  vmsup apply --dry-run vms/        only say what would be done")]
    Apply(Apply),
    /// Show what `vmsup apply` would do, and the fields that differ.
    ///
    /// Exit status: 0 when nothing differs, 1 when something does, 2 when that could not be told or apply would be refused
    /// something.
    #[command(after_help = "Example:\n  vmsup diff --prune vms/")]
    Diff(Diff),
    /// Have VMs stand still: their vCPUs stop, their memory stays.
    #[command(
        after_help = "Examples:\n  vmsup pause web1\n  vmsup pause --all",
        mut_arg("all", |all| all.help("All your VMs that run"))
    )]
    Pause {
        #[command(flatten)]
        vms: Vms,
        #[command(flatten)]
        json: Json,
    },
    /// Have paused VMs go on.
    #[command(
        after_help = "Examples:\n  vmsup resume web1\n  vmsup resume --all",
        mut_arg("all", |all| all.help("All your VMs that are paused"))
    )]
    Resume {
        #[command(flatten)]
        vms: Vms,
        #[command(flatten)]
        json: Json,
    },
    /// End VMs at once, as if their power was cut.
    #[command(
        after_help = "Examples:\n  vmsup kill web1\n  vmsup kill --all",
        mut_arg("all", |all| all.help("All your VMs that run, and those that wait for their restart"))
    )]
    Kill {
        #[command(flatten)]
        vms: Vms,
        #[command(flatten)]
        json: Json,
    },
    /// Forget VMs that do not run: their files, their history, their consoles' last output.
    ///
    /// A VM that runs is refused, unless --force kills it first.
    #[command(
        after_help = "Examples:\n  vmsup rm web1\n  vmsup rm --all",
        mut_arg("all", |all| all.help("All your VMs that neither run nor wait for their restart; with --force, every one"))
    )]
    Rm {
        #[command(flatten)]
        vms: Vms,
        /// Kill them first if they run.
        #[arg(long)]
        force: bool,
    },
    /// Wait for a VM's end, the last one where it is started again by itself.
    ///
    /// Exit status: 0 when it shut down, reset itself or was stopped, 1 when it crashed or failed.
    Wait {
        #[command(flatten)]
        vm: Vm,
        #[command(flatten)]
        json: Json,
    },
    /// Show what VMs use: processor, memory, disks, networks.
    ///
    /// Rates are of one second, which this command takes. CPU is that of the VM's whole process, its guest included; 100 is
    /// one CPU. STEAL is the time that its vCPUs waited for a CPU of the host. MEMORY is what the host has given to the VM
    /// until now. EXITS and all that is right of them are counted by the VM's own process, which is not trusted. With --json:
    /// the counters themselves, once.
    #[command(after_help = "Examples:\n  vmsup stats\n  vmsup stats web1 web2\n  vmsup stats --json")]
    Stats {
        /// Names or ids of VMs; all that run, where there is none.
        #[arg(value_name = "VM", value_parser = vm_name)]
        vms: Vec<String>,
        #[command(flatten)]
        json: Json,
    },
    /// Watch what VMs use, live.
    ///
    /// Keys: < and > choose the column to sort by (or n, c, m, e, u: name, CPU, memory, exits, up), r turns the order, / filters
    /// by name, arrows choose a VM, Enter shows its last minutes, q leaves.
    #[command(after_help = "Examples:\n  vmsup top\n  vmsup top --once | head -5")]
    Top {
        /// Print one frame as plain text, after a second.
        #[arg(long)]
        once: bool,
    },
    /// Show what happened: to your VMs, and to the supervisor.
    ///
    /// A line for each event: when (UTC), what, to which VM, why. The last 4096 are kept, also across restarts of the
    /// supervisor. With --follow the command goes on with what comes, and with the next supervisor where this one goes. A
    /// reader that is too slow is told how much it lost (`lost`).
    #[command(after_help = "Examples:
  vmsup events                       what is kept
  vmsup events -f --vm web1          what happens to web1 from now on, and what did
  vmsup events --json | tail -1 | jq .cursor
  vmsup events --after CURSOR        what came behind that")]
    Events {
        /// Go on with what comes.
        #[arg(short, long)]
        follow: bool,
        /// Begin behind this cursor (`cursor` of an event with --json).
        #[arg(long, value_name = "CURSOR")]
        after: Option<u64>,
        /// Only what is about this VM: its name or id.
        #[arg(long, value_name = "VM", value_parser = vm_name)]
        vm: Option<String>,
        #[command(flatten)]
        json: Json,
    },
    /// List operations: those under way, and the last that are over.
    ///
    /// Starting, stopping, changing and removing a VM is an operation each. One that was under way when its supervisor was
    /// killed is `interrupted`.
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:
  vmsup ops               what is being done
  vmsup ops cancel 12     end the start of a VM that takes too long; nothing of it is left
  vmsup ops wait 12       wait for the end of it"
    )]
    Ops {
        #[command(subcommand)]
        what: Option<Ops>,
        #[command(flatten)]
        json: Json,
    },
    /// Networks: which there are, who has which address in them, what they carry.
    ///
    /// A VM joins a network by `"nets": [ { "network": "default" } ]` in its file. Networks are declared by the host's
    /// root, in /etc/vmsup/netd.toml.
    #[command(after_help = "Examples:
  vmsup net ls              networks that your VMs may be in
  vmsup net leases          addresses and forwards of all your VMs
  vmsup net stats web1      packets, bytes and drops of one VM's interfaces")]
    Net {
        #[command(subcommand)]
        what: Net,
    },
    /// Show what you have, and what you may have.
    ///
    /// A supervisor of your own holds you to nothing. One that serves several users gives each what its administrator has
    /// written down. VCPUS, MEMORY and INTERFACES are of VMs that run or wait for their restart; VMS and STORAGE are of all.
    #[command(
        after_help = "Examples:\n  vmsup --system quota\n  vmsup --system quota --all        everybody's, for administrators"
    )]
    Quota {
        /// Everybody's whose VMs you see.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Check this host: what works, what does not, why it matters, and the command that mends it.
    ///
    /// Needs no root, starts no supervisor and changes nothing; what only root may know is `unknown`. What concerns networks
    /// only is no obstacle for VMs without any: where no network helper runs, that is a warning.
    ///
    /// Exit status: 0 when VMs can be started, perhaps with warnings; 1 when something is in the way.
    #[command(after_help = "Examples:
  vmsup doctor
  vmsup doctor --json | jq -r '.[] | select(.state != \"ok\") | .mend'")]
    Doctor {
        #[command(flatten)]
        json: Json,
    },
    /// Run the supervisor here.
    ///
    /// Other commands start it in the background by themselves; run it yourself to see its log, or under a service
    /// manager. When it ends, its VMs go on: the next supervisor finds them (vmsup stop --all ends them).
    #[command(after_help = "Environment:
  VMSUP_LOG            what is logged: error, warn, info (default), debug or trace;
                       debug shows a line for each start of a VM with the time of
                       each stage in microseconds
  VMSUP_NETD_SOCKET    socket of the network helper, where --netd does not say;
                       doctor asks there, too

Example:\n  VMSUP_LOG=debug vmsup serve")]
    Serve(Box<Serve>),
    /// What every process of vmsup may do, and why.
    ///
    /// Policies are compiled into the programs; these commands read them from this program, or from a directory.
    #[command(after_help = "Example:\n  vmsup policy trace -- target/bin/trace/vmsup run --rm examples/hello.json")]
    Policy {
        #[command(subcommand)]
        what: super::policy::args::Policy,
    },
    /// Print the JSON Schema of vm.json.
    #[command(after_help = "Example:\n  vmsup schema > vm.schema.json")]
    Schema,
    /// Print the release of this program, and of the supervisor if one runs.
    Version {
        #[command(flatten)]
        json: Json,
    },
    /// Print a completion script for a shell.
    #[command(
        after_help = "Examples:\n  vmsup completions bash > ~/.local/share/bash-completion/completions/vmsup\n  vmsup completions zsh > \"${fpath[1]}/_vmsup\"\n  vmsup completions fish > ~/.config/fish/completions/vmsup.fish"
    )]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual pages into a directory.
    #[command(after_help = "Example:\n  vmsup man ~/.local/share/man/man1 && man vmsup-run")]
    Man {
        /// The directory; it is made if it is not there.
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

/// What can be done about an operation.
#[derive(Debug, Subcommand)]
pub enum Ops {
    /// Cancel an operation that is under way, and wait until nothing of it is left.
    ///
    /// Exit status: 0 when it was cancelled, 1 when it was over before.
    Cancel {
        /// Its number.
        id: u64,
        #[command(flatten)]
        json: Json,
    },
    /// Wait for an operation's end.
    ///
    /// Exit status: 0 when it was done, 1 when it failed or was cancelled.
    Wait {
        /// Its number.
        id: u64,
        #[command(flatten)]
        json: Json,
    },
}

/// What can be asked about networks.
#[derive(Debug, Subcommand)]
pub enum Net {
    /// List the networks that your VMs may be in.
    ///
    /// SUBNET begins with the host's own address, which is the guests' gateway. With NAT, guests go out with the host's
    /// address. ISOLATED guests do not reach each other; HOST says whether they reach the host's own services. LEASES are
    /// yours: those in use, and how many you may have. FORWARDS are the ports of the host that you may forward.
    #[command(after_help = "Examples:\n  vmsup net ls\n  vmsup net ls --json")]
    Ls {
        #[command(flatten)]
        json: Json,
    },
    /// List your leases: which VM has which address, and the ports of the host that lead to it.
    ///
    /// A lease without a VM is one whose interface is about to go.
    #[command(after_help = "Example:\n  vmsup net leases")]
    Leases {
        #[command(flatten)]
        json: Json,
    },
    /// Show what a VM's interfaces received, sent and dropped.
    ///
    /// RECEIVED is what reached the guest, SENT what it sent into the network; DHCP counts the requests that its own
    /// process answered. DROPPED is by reason; what the host's own rules drop after that (a forged address, say) is
    /// counted by them: sudo nft list table bridge vmsup.
    #[command(after_help = "Example:\n  vmsup net stats web1")]
    Stats {
        #[command(flatten)]
        vm: Vm,
        #[command(flatten)]
        json: Json,
    },
}

/// What files want, and how far that goes.
#[derive(Debug, Args)]
pub struct Wish {
    /// Directories of VMs' files, and files.
    #[arg(required = true, value_name = "DIR|FILE", value_hint = ValueHint::AnyPath)]
    pub paths: Vec<PathBuf>,
    /// Remove the VMs that came from the same directory or file and are no longer in it.
    #[arg(long)]
    pub prune: bool,
    /// Let --prune remove all VMs of a directory in which no file is left. Otherwise that is taken for a mistake: a file
    /// system that is not mounted looks like an empty directory.
    #[arg(long, requires = "prune")]
    pub allow_empty: bool,
    /// Take over VMs of the same names that were started by hand, or came from somewhere else.
    #[arg(long)]
    pub adopt: bool,
}

/// Options of `apply`.
#[derive(Debug, Args)]
pub struct Apply {
    #[command(flatten)]
    pub wish: Wish,
    /// Only say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Seconds between power button and kill, for VMs that have to be stopped.
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: u32,
    #[command(flatten)]
    pub json: Json,
}

/// Options of `diff`.
#[derive(Debug, Args)]
pub struct Diff {
    #[command(flatten)]
    pub wish: Wish,
    #[command(flatten)]
    pub json: Json,
}

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Directory for the socket and the log, instead of $XDG_RUNTIME_DIR/vmsup or /tmp/vmsup-UID.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub runtime_dir: Option<PathBuf>,
    /// Directory for what outlives the supervisor (VMs, events), instead of $STATE_DIRECTORY, `state` in a --runtime-dir that is
    /// given, $XDG_STATE_HOME/vmsup or ~/.local/state/vmsup.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state_dir: Option<PathBuf>,
    /// Serve the users whom this file names (TOML), not only your own: each sees their own VMs, and gets what the file allows.
    /// No file of theirs is opened by its path then. SIGHUP reads it again; a file that is wrong changes nothing.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Only say whom --config lets in, or what is wrong with it, and where.
    #[arg(long, requires = "config")]
    pub check: bool,
    /// How many warm workers wait for VMs. Each starts a VM faster by a millisecond or two and costs about 1 MiB.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = workers)]
    pub pool: u32,
    /// The jailer's program, instead of the one beside this one.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::ExecutablePath)]
    pub jailer: Option<PathBuf>,
    /// The worker's program, instead of the one beside this one.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::ExecutablePath)]
    pub worker: Option<PathBuf>,
    /// Socket of the network helper, instead of $VMSUP_NETD_SOCKET or /run/vmsup-netd/netd.sock. VMs without networks need
    /// none. Believed as you name it: who listens there sees what VMs send.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub netd: Option<PathBuf>,
    /// A delegated cgroup v2 directory to hold the limits of VMs, without processes of its own and above this shell's
    /// cgroup. Default: a scope of the systemd user manager, where there is one.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub cgroup: Option<PathBuf>,
    /// Socket of a service manager (vmsup-jailer.socket) behind which one jailer serves all supervisors to come, with the
    /// listening socket as its standard input and `workers` in the runtime directory as its working directory. Default: the
    /// jailer that has the VMs of the supervisor before, else one that the supervisor starts itself, which takes a supervisor
    /// that is not confined by others.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath,
        conflicts_with_all = ["jailer", "worker", "pool", "cgroup"])]
    pub jailer_socket: Option<PathBuf>,
    /// Tell metrics on http://ADDRESS/metrics, too: 127.0.0.1:PORT or [::1]:PORT. Every user of this host can read the names
    /// and counters of all VMs there.
    #[arg(long, value_name = "ADDRESS", value_parser = loopback)]
    pub metrics_listen: Option<SocketAddr>,
    /// Keep VMs as the *.json of this directory say, from the start on and whenever one changes; may be given several times.
    /// A file that is wrong changes nothing and is said in the log. A VM that rests is left at rest.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub watch: Vec<PathBuf>,
    /// Remove the VMs of a watched directory whose files are gone from it; never all of them.
    #[arg(long, requires = "watch")]
    pub watch_prune: bool,
    /// Go to the background once ready, and log to supervisor.log in the runtime directory.
    #[arg(long)]
    pub background: bool,
}

/// Which VM.
#[derive(Debug, Args)]
pub struct Vm {
    /// Name or id of the VM.
    #[arg(value_name = "VM", value_parser = vm_name)]
    pub vm: String,
}

/// Which VMs.
#[derive(Debug, Args)]
pub struct Vms {
    /// Names or ids of the VMs.
    #[arg(value_name = "VM", value_parser = vm_name, required_unless_present = "all")]
    pub vms: Vec<String>,
    /// All VMs that it concerns.
    #[arg(long, conflicts_with = "vms")]
    pub all: bool,
}

/// How to print.
#[derive(Debug, Args)]
pub struct Json {
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<u32, String> {
    number(text, 86400, "seconds")
}

fn workers(text: &str) -> Result<u32, String> {
    number(text, 64, "workers")
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse().map_err(|_| "give an address and a port, as in 127.0.0.1:9464".to_owned())?;
    vmsup::api::loopback::check(address)
}

/// clap's own parser speaks of digits and strings.
fn number(text: &str, max: u32, of: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|n| *n <= max);
    number.ok_or_else(|| format!("give a number of {of} from 0 to {max}"))
}

/// Ids satisfy the rule for names, too.
pub fn vm_name(text: &str) -> Result<String, String> {
    vmsup::vmjson::check::check_name(text)?;
    Ok(text.to_owned())
}
