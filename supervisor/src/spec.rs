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
