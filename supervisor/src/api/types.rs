//! What the API sends, as JSON. The CLI reads the same types.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod quota;
mod stats;

pub use quota::{Allowed, Amounts, QuotaInfo};
pub use stats::{
    CgroupStats, DiskStats, GuestStats, InterfaceStats, LatencyStats, Pressure, ProcessStats, VcpuExits, VcpuTime,
    VmStats,
};

/// A VM as `ls` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmSummary {
    /// Name, from its file.
    pub name: String,
    /// Unique among all VMs that this supervisor ever had.
    pub id: String,
    /// Where it is in its life.
    pub state: VmState,
    /// Pid of its worker, while there is one.
    pub pid: Option<i32>,
    /// Uid of its owner.
    pub owner: u32,
    /// vCPUs.
    pub cpus: u16,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// Its network interfaces, while it has them, in the order of its file.
    pub nets: Vec<VmNet>,
    /// When it was started, seconds since 1970.
    pub started_at: Option<u64>,
    /// How it ended, once it has: its last end, where it was started again.
    pub end: Option<End>,
    /// Whether it is to run.
    pub desired: Desired,
    /// Which version of its file this is, from 1 on.
    pub generation: u64,
    /// Hash of its file, as `vmsup diff` compares it.
    pub spec_hash: String,
    /// Where `vmsup apply` found it; none for one that was started by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// How often it was started again since its owner last started it.
    #[serde(default)]
    pub restarts: u32,
    /// How it is, where its file has a `health`, and where it hangs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthState>,
}

/// Whether a VM is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// Yes.
    Running,
    /// No: its owner stopped it, or it ended and is not started again.
    Stopped,
}

/// How a running VM is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// It has still time to come up.
    Starting,
    /// It does what its file says it should.
    Healthy,
    /// It does not (why).
    Unhealthy(String),
    /// Its worker stands still or answers nothing (why).
    Hung(String),
    /// It cannot be looked at (why), so that nobody knows.
    Unknown(String),
}

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Its worker is being made or given its VM.
    Starting,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still, until it is resumed.
    Paused,
    /// It was asked to end.
    Stopping,
    /// It ended, and is started again when its back-off is over.
    Restarting,
    /// It ended as it should: the guest switched itself off or reset, or its owner stopped it.
    Stopped,
    /// It ended as it should not.
    Crashed,
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct End {
    /// The kind of end.
    pub kind: EndKind,
    /// One sentence for people.
    pub reason: String,
    /// When, seconds since 1970.
    pub at: u64,
}

/// The kind of a VM's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndKind {
    /// The guest switched itself off.
    Shutdown,
    /// The guest asked for a reset.
    Reset,
    /// `kill`, or `stop` past its deadline.
    Killed,
    /// The guest could not go on (a triple fault, say).
    GuestCrashed,
    /// The worker broke its policy, panicked, or was killed by someone else.
    WorkerCrashed,
    /// It was not well, or its worker hung, and its file says that it is killed then.
    Unhealthy,
    /// The host went down under it, or was started anew.
    HostDown,
    /// It never ran.
    StartFailed,
    /// The worker is gone and nobody could tell how (the jailer was gone, too).
    Unknown,
}

impl EndKind {
    /// True for the ends that are no failure.
    pub fn is_clean(self) -> bool {
        matches!(self, EndKind::Shutdown | EndKind::Reset | EndKind::Killed)
    }
}

/// A VM in full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// What `ls` shows.
    #[serde(flatten)]
    pub summary: VmSummary,
    /// What it was started from, with absolute paths.
    pub spec: crate::spec::VmSpec,
    /// Its worker, while there is one.
    pub worker: Option<WorkerInfo>,
    /// The console's bytes so far, and how many of them are no longer kept.
    pub console: ConsoleInfo,
}

/// The process a VM runs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkerInfo {
    /// Its pid.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat.
    pub start_time: u64,
    /// The uid it runs as.
    pub uid: u32,
    /// Its number with the jailer.
    pub slot: u32,
    /// It was taken from the warm pool.
    pub warm: bool,
    /// Where its cgroup limits are held; why not, where they are not.
    pub limits: String,
}

/// A network interface of a VM: what netd leased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmNet {
    /// Name of the network.
    pub network: String,
    /// Number of the lease.
    pub lease: u64,
    /// Name of the host's interface.
    pub interface: String,
    /// The guest's MAC, `02:76:6d:00:00:02`.
    pub mac: String,
    /// The guest's IPv4 address.
    pub address: String,
    /// Length of the subnet's prefix, bits.
    pub prefix: u8,
    /// The guest's default route.
    pub gateway: String,
    /// Bytes of the largest packet.
    pub mtu: u16,
    /// Queue pairs.
    pub queues: u8,
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<crate::spec::Forward>,
}

/// A network that the caller may use: an element of `GET /v1/networks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Its name, as `nets` of a VM's file says it.
    pub name: String,
    /// The host's bridge.
    pub bridge: String,
    /// The host's own address on it; the guests' gateway.
    pub gateway: String,
    /// Length of the subnet's prefix, bits.
    pub prefix: u8,
    /// Guests go out with the host's address.
    pub nat: bool,
    /// Guests cannot reach each other.
    pub isolated: bool,
    /// Guests reach the host's own services.
    pub host: bool,
    /// `localhost` on the host leads to forwards, too.
    pub localhost_forwards: bool,
    /// Leases that the caller has in it.
    pub leases: u32,
    /// Leases that the caller may have in it.
    pub limit: u32,
    /// Ranges of host ports, first and last, that the caller may forward.
    pub forward_ports: Vec<(u16, u16)>,
}

/// A lease of the caller's: an element of `GET /v1/leases`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseEntry {
    /// Its number.
    pub id: u64,
    /// Its network.
    pub network: String,
    /// Name of the VM; none where this supervisor knows no VM that has it.
    pub vm: Option<String>,
    /// Name of the host's interface.
    pub interface: String,
    /// The guest's MAC.
    pub mac: String,
    /// The guest's address.
    pub address: String,
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<crate::spec::Forward>,
}

/// What a network interface did so far: an element of `GET /v1/vms/{vm}/net`. Received is what reached the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetStats {
    /// Its network.
    pub network: String,
    /// Name of the host's interface.
    pub interface: String,
    /// Packets that reached the guest.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets of the guest's that went into the network.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// DHCP requests that its worker answered.
    pub dhcp_answers: u64,
    /// Packets that were dropped, by reason; reasons with none are left out.
    pub dropped: std::collections::BTreeMap<String, u64>,
}

/// Counters of a console.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsoleInfo {
    /// Bytes that the guest wrote.
    pub written: u64,
    /// Bytes of these that were overwritten before this answer.
    pub overwritten: u64,
}

/// Body of `POST /v1/vms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// The VM; its paths are absolute.
    pub spec: crate::spec::VmSpec,
    /// Forget the VM as soon as it has ended.
    #[serde(default)]
    pub remove_when_ended: bool,
    /// Who keeps this VM: `vmsup apply` names its directory or file. Only the same source removes it later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The ticket of the files that the spec names, handed over on the side socket ([`VersionInfo::files`]): where the
    /// supervisor is shared, and the spec names any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<String>,
}

/// Body of `PUT /v1/vms/{vm}`: the VM becomes what this file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateRequest {
    /// The VM; its paths are absolute, its name is the same as before.
    pub spec: crate::spec::VmSpec,
    /// As in [`CreateRequest`]; takes over a VM that was started by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Only where the VM has this generation: nobody else changed it meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_generation: Option<u64>,
    /// Seconds between power button and kill, where it has to be stopped and started.
    pub deadline_s: u32,
    /// As in [`CreateRequest`]: what the VM has already is not taken again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<String>,
}

/// Answer to `PUT /v1/vms/{vm}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpdateAnswer {
    /// What was done.
    pub done: UpdateDone,
    /// The VM now.
    pub vm: VmInfo,
}

/// What an update did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpdateDone {
    /// The file is the same.
    Nothing,
    /// What changed did not concern the running guest.
    InPlace,
    /// It was stopped and started.
    Restarted,
    /// It did not run, and will be that the next time.
    Stored,
}

/// Something that happened: an element of the stream of `GET /v1/events`, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its number: larger than that of everything before it, also across restarts of the supervisor. `after=` of a later
    /// request goes on behind it.
    pub cursor: u64,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// What happened.
    pub kind: EventKind,
    /// Name of the VM that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Uid of its owner, who alone (but for administrators) sees this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
    /// Why, or what came of it: one sentence for people.
    pub cause: String,
}

/// The kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A VM was taken on.
    Created,
    /// It is being started.
    Starting,
    /// Its vCPUs run.
    Started,
    /// Its vCPUs were stopped.
    Paused,
    /// They go on.
    Resumed,
    /// It was asked to end.
    Stopping,
    /// It has ended.
    Ended,
    /// It will be started again after a while.
    Restarting,
    /// Its file was changed.
    Updated,
    /// It is well.
    Healthy,
    /// It is not.
    Unhealthy,
    /// How it is cannot be looked at.
    Unseen,
    /// Its worker stands still or answers nothing.
    Hung,
    /// Its worker goes on.
    Recovered,
    /// It was found running by a supervisor that came back.
    Adopted,
    /// It runs, and the limits of its file are not in force.
    Unlimited,
    /// It is no longer there.
    Removed,
    /// A supervisor began to serve.
    SupervisorStarted,
    /// A supervisor leaves.
    SupervisorLeft,
    /// The jailer is gone.
    JailerLost,
    /// Something is wrong with the supervisor's own state.
    StateTrouble,
    /// VMs were made what a watched directory says, or some could not be.
    SourceApplied,
    /// Nothing was changed: a watched directory or one of its files cannot be read.
    SourceTrouble,
    /// Events before this one are no longer kept.
    Lost,
}

/// An operation that takes time: an element of `GET /v1/ops`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its number.
    pub id: u64,
    /// What is done.
    pub kind: OperationKind,
    /// Name of the VM.
    pub vm: String,
    /// Uid of who asked.
    pub owner: u32,
    /// Where it is.
    pub state: OperationState,
    /// What is being done now, or was last: `files`, `worker`, `guest`, …
    pub stage: String,
    /// How much of the stage is done, per cent, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// When it began, milliseconds since 1970.
    pub begun_at_ms: u64,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at_ms: Option<u64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// A VM is taken on and started.
    Create,
    /// A VM that is there is started.
    Start,
    /// A VM is stopped.
    Stop,
    /// A VM becomes what another file says.
    Update,
    /// A VM is removed.
    Remove,
    /// A file is taken into the supervisor's own storage.
    Import,
}

/// Where an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Under way.
    Running,
    /// Done.
    Done,
    /// It failed; nothing of it is left.
    Failed,
    /// It was cancelled; nothing of it is left.
    Cancelled,
    /// The supervisor ended while it was under way. What had been begun is found by the next one: a VM that ran by then goes
    /// on, a stop is carried on, the rest is cleaned up.
    Interrupted,
}

/// Body of `POST /v1/vms/{vm}/stop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Seconds between the power button and the kill.
    pub deadline_s: u32,
    /// The host goes down: a VM whose file has it started again stays one that is to run, and the next supervisor starts it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub for_shutdown: bool,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionInfo {
    /// Release.
    pub version: String,
    /// Pid of the supervisor.
    pub pid: i32,
    /// Uid of the supervisor.
    pub uid: u32,
    /// Path of the side socket, on which open files are handed over; none where the supervisor opens them itself, by their
    /// paths, because it is its user's alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<String>,
    /// What its jailer said of this host.
    pub jailer: JailerInfo,
}

/// What the jailer said of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JailerInfo {
    /// Pid of the jailer, while it lives.
    pub pid: Option<i32>,
    /// `subordinate` (a uid for each worker) or `own` (the user's uid for all).
    pub uids: String,
    /// The delegated cgroup, where there is one.
    pub cgroup: Option<String>,
    /// Why there is none.
    pub cgroup_reason: Option<String>,
    /// Size of the warm pool.
    pub pool: u32,
}

/// Body of every answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// What kind of error, for programs.
    pub code: ErrorCode,
    /// One sentence for people: what, where, what to do.
    pub message: String,
    /// The field of the spec that is at fault: `disks[0].path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// The kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request or the spec is wrong (400).
    Invalid,
    /// No such VM (404).
    NotFound,
    /// The VM is not in a state for that, or the name is taken (409).
    Conflict,
    /// The caller may not (403).
    Forbidden,
    /// The host cannot, at least now (503).
    Unavailable,
    /// A defect or a host that misbehaves (500).
    Internal,
}
