//! What the API sends, as JSON. The CLI reads the same types.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
    /// When it was started, seconds since 1970.
    pub started_at: Option<u64>,
    /// How it ended, once it has.
    pub end: Option<End>,
}

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Its worker is being made or given its VM.
    Starting,
    /// Its vCPUs run.
    Running,
    /// It was asked to end.
    Stopping,
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
}

/// Body of `POST /v1/vms/{vm}/stop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Seconds between the power button and the kill.
    pub deadline_s: u32,
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
