//! `vm.json`: what a VM is, as its owner writes it. Also what the API takes, with absolute paths.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The largest file that is read as `vm.json`, bytes; the API's bodies have the same limit.
pub const SPEC_MAX_BYTES: u64 = 256 * 1024;
/// The longest name of a VM, bytes.
pub const NAME_MAX: usize = 63;

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Name of the VM, unique for its owner: letters, digits, `.`, `_` and `-`, beginning with a letter or digit.
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    pub name: String,
    /// How many vCPUs.
    #[schemars(range(min = 1, max = 32))]
    pub cpus: u16,
    /// Guest memory, MiB.
    #[schemars(range(min = 20, max = 1048576))]
    pub memory_mib: u64,
    /// What it boots.
    pub boot: Boot,
    /// Its disks, in the order in which the guest finds them (vda, vdb, …).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub disks: Vec<Disk>,
    /// Its serial console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<Console>,
    /// Limits that the host's kernel holds it to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Its network interfaces, in the order in which the guest finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub nets: Vec<Net>,
    /// Whether it is started again when it has ended by itself (default: no).
    #[serde(default, skip_serializing_if = "is_default")]
    pub restart: Restart,
    /// How long it is waited before it is started again, and when that is given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// How it is seen whether the guest does what it is there for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Whether a VM is started again when it has ended by itself. One that its owner stopped or killed stays stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// When the guest or its worker crashed, or the host went down under it. Not when the guest switched itself off.
    OnFailure,
    /// Whatever its end was. A guest's own reset is one.
    Always,
}

/// Time before a restart: `first_s`, doubled with each restart up to `max_s`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Backoff {
    /// Before the first restart, seconds.
    #[schemars(range(min = 0, max = 3600))]
    pub first_s: u32,
    /// At most, seconds.
    #[schemars(range(min = 1, max = 86400))]
    pub max_s: u32,
    /// A VM that ran this long is taken to be well: the next restart is a first one again. Seconds.
    #[schemars(range(min = 1, max = 86400))]
    pub reset_after_s: u32,
    /// Restarts in a row after which it is given up; none for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub attempts: Option<u32>,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { first_s: 1, max_s: 300, reset_after_s: 600, attempts: None }
    }
}

/// How it is seen whether a guest is well. A worker that answers nothing is always seen and shown; what is done then is
/// `on_failure`'s, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// The guest is up once it has written this to its console.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub console: Option<String>,
    /// The guest is well while this TCP port of its first network interface takes connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub tcp: Option<u16>,
    /// Time that the guest has to come up, seconds.
    #[schemars(range(min = 1, max = 86400))]
    pub start_s: u32,
    /// Between two looks, seconds; at least 30, and at the same moment for all VMs, so that an idle host stays idle.
    #[schemars(range(min = 30, max = 86400))]
    pub interval_s: u32,
    /// How long one look may take, seconds.
    #[schemars(range(min = 1, max = 25))]
    pub timeout_s: u32,
    /// Looks in a row that must fail.
    #[schemars(range(min = 1, max = 100))]
    pub retries: u32,
    /// What is done with a VM that is not well.
    pub on_failure: OnFailure,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            console: None,
            tcp: None,
            start_s: 60,
            interval_s: 30,
            timeout_s: 5,
            retries: 3,
            on_failure: OnFailure::default(),
        }
    }
}

/// What is done with a VM that is not well, or whose worker hangs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// It is shown, no more.
    #[default]
    Report,
    /// It is killed, which counts as a crash: `restart` says what comes then.
    Kill,
}

/// What a VM boots: a kernel, or a guest that is built into vmsup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// Kernel image: a bzImage, an ELF with a PVH note, or an ELF64. Relative to the file it stands in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Kernel command line, at most 2047 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2047))]
    pub cmdline: Option<String>,
    /// A guest that needs no files, instead of a kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builtin: Option<Builtin>,
}

/// The guests that are built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Builtin {
    /// Writes one line to the console and asks for a reset.
    Hello,
    /// Takes an address by DHCP, answers ARP and ping, fetches a page where its command line says `fetch=ADDRESS:PORT/PATH`, and
    /// goes on until its power button is pressed.
    Net,
}

/// A disk: a raw image or a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Raw image file or block device. Relative to the file it stands in.
    pub path: String,
    /// The guest may only read.
    #[serde(default)]
    pub readonly: bool,
    /// Who does the I/O.
    #[serde(default)]
    pub engine: DiskEngine,
    /// Serial number that the guest reads: at most 20 printable ASCII characters. Default: `vmsup-disk0`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    pub serial: Option<String>,
}

/// Who does a disk's I/O.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskEngine {
    /// vmsup chooses.
    #[default]
    Auto,
    /// Threads with preadv and pwritev.
    Threads,
}

/// The serial console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// Whether the guest gets input (default: true). The last 256 KiB of its output are kept either way.
    #[serde(default = "yes")]
    pub input: bool,
}

fn yes() -> bool {
    true
}

/// Limits of the worker's cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// All memory of the VM's worker, guest RAM included, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max_mib: Option<u64>,
    /// Threads of the VM's worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids_max: Option<u32>,
    /// CPU time, per cent of one CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// What happens where no cgroup is there to hold the limits.
    #[serde(default)]
    pub enforce: Enforce,
}

/// What happens where limits cannot be held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Enforce {
    /// The VM is refused.
    #[default]
    Required,
    /// The VM starts without them, and says so.
    BestEffort,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// Name of a network that the host's root declared (`vmsup net ls`).
    #[schemars(regex(pattern = r"^[A-Za-z0-9_-]{1,31}$"))]
    pub network: String,
    /// The last three bytes of the guest's MAC, `0a:0b:0c`; without them the network chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}$"))]
    pub mac_suffix: Option<String>,
    /// Queue pairs (default: 1). More than one rarely pays: one thread of the worker serves all of them, and the device has
    /// one interrupt.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 4))]
    pub queues: u8,
    /// Whether the guest's driver may be handed checksums to complete and segments to cut. Off for guests whose driver
    /// cannot (default: on).
    #[serde(default = "yes")]
    pub offloads: bool,
    /// Ports of the host that lead to the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub forwards: Vec<Forward>,
}

fn one() -> u8 {
    1
}

/// A port of the host that leads to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// Port on the host.
    #[schemars(range(min = 1))]
    pub host: u16,
    /// Port in the guest.
    #[schemars(range(min = 1))]
    pub guest: u16,
    /// What is forwarded.
    #[serde(default)]
    pub protocol: Protocol,
}

/// What a forward carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}
