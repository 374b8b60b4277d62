//! What must hold for a VM beyond the types of [`crate::spec`]. Pure: no file is looked at, no clock, no host.
//!
//! Runs in the CLI (for an error with the line of the file) and again in the supervisor (which believes no client).

use super::{life, nets};
use crate::spec::{Boot, Builtin, Disk, Limits, NAME_MAX, VmSpec};
use worker_api::{CMDLINE_MAX, CPUS_MAX, DISKS_MAX, MEMORY_MIB_MAX, MEMORY_MIB_MIN, SERIAL_MAX};

/// The longest path that the kernel takes, bytes without the closing NUL (PATH_MAX is 4096 with it).
pub const PATH_MAX: usize = 4095;
/// The most of a wrong value that a message repeats, characters.
const SHOWN_MAX: usize = 40;

/// What is wrong with one field of a spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// The field, as a path from the top: `disks[0].path`.
    pub field: String,
    /// What is wrong and what to do, without the field and without a final full stop.
    pub message: String,
}

impl FieldError {
    /// An error of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        FieldError { field: field.into(), message: message.into() }
    }
}

/// Checks all that can be told from the spec alone. Paths must be absolute by now.
///
/// # Errors
/// The first field that is wrong.
pub fn check(spec: &VmSpec) -> Result<(), FieldError> {
    check_name(&spec.name).map_err(|message| FieldError::new("name", message))?;
    if spec.cpus == 0 || spec.cpus > u16::from(CPUS_MAX) {
        return Err(FieldError::new("cpus", format!("{} is not possible; give 1 to {CPUS_MAX} vCPUs", spec.cpus)));
    }
    let memory = u64::from(MEMORY_MIB_MIN)..=u64::from(MEMORY_MIB_MAX);
    if !memory.contains(&spec.memory_mib) {
        return Err(FieldError::new(
            "memory_mib",
            format!("{} MiB is not possible; give {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX}", spec.memory_mib),
        ));
    }
    check_boot(&spec.boot)?;
    if spec.disks.len() > DISKS_MAX {
        return Err(FieldError::new(
            "disks",
            format!("{} disks are too many; a VM has at most {DISKS_MAX}", spec.disks.len()),
        ));
    }
    for (n, disk) in spec.disks.iter().enumerate() {
        check_disk(n, disk)?;
    }
    if let Some(limits) = &spec.limits {
        check_limits(spec, limits)?;
    }
    nets::check(&spec.nets)?;
    life::check(spec)
}

/// Checks the memory that a VM asks for against the host's.
///
/// # Errors
/// More than `host_mib`.
pub fn check_memory(memory_mib: u64, host_mib: u64) -> Result<(), FieldError> {
    if memory_mib > host_mib {
        return Err(FieldError::new(
            "memory_mib",
            format!("{memory_mib} MiB is more than this host's {host_mib} MiB; give less"),
        ));
    }
    Ok(())
}

/// Checks the name of a VM: it is shown in tables and stands in URLs and logs.
///
/// # Errors
/// What is wrong and what to do.
pub fn check_name(name: &str) -> Result<(), String> {
    const RULE: &str = "use letters, digits, '.', '_' and '-', beginning with a letter or digit";
    if name.is_empty() {
        return Err(format!("empty; {RULE}"));
    }
    if name.len() > NAME_MAX {
        return Err(format!("{} bytes are too long; use at most {NAME_MAX}", name.len()));
    }
    let wrong = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if let Some(c) = name.chars().find(wrong) {
        return Err(format!("{} contains {}; {RULE}", shown(name), character(c)));
    }
    match name.chars().next() {
        Some(c) if !c.is_ascii_alphanumeric() => Err(format!("{} begins with '{c}'; {RULE}", shown(name))),
        _ => Ok(()),
    }
}

fn check_boot(boot: &Boot) -> Result<(), FieldError> {
    match (&boot.kernel, &boot.builtin) {
        (Some(_), Some(_)) => {
            return Err(FieldError::new("boot", "has both \"kernel\" and \"builtin\"; keep one of them"));
        }
        (None, None) if boot.initrd.is_some() => {
            return Err(FieldError::new("boot.initrd", "an initrd without a kernel; add \"kernel\""));
        }
        (None, None) => {
            return Err(FieldError::new("boot", "has nothing to boot; add \"kernel\", or \"builtin\": \"hello\""));
        }
        (None, Some(_)) if boot.initrd.is_some() => {
            return Err(FieldError::new("boot.initrd", "a built-in guest takes no initrd; remove it"));
        }
        (None, Some(Builtin::Hello)) if boot.cmdline.is_some() => {
            return Err(FieldError::new("boot.cmdline", "the guest \"hello\" takes no command line; remove it"));
        }
        _ => {}
    }
    if let Some(kernel) = &boot.kernel {
        check_path("boot.kernel", kernel)?;
    }
    if let Some(initrd) = &boot.initrd {
        check_path("boot.initrd", initrd)?;
    }
    let cmdline = boot.cmdline.as_deref().unwrap_or_default();
    if cmdline.contains('\0') {
        return Err(FieldError::new("boot.cmdline", "contains a NUL character; remove it"));
    }
    if cmdline.len() > CMDLINE_MAX {
        return Err(FieldError::new(
            "boot.cmdline",
            format!("{} bytes are too long; a kernel takes at most {CMDLINE_MAX}", cmdline.len()),
        ));
    }
    Ok(())
}

fn check_disk(n: usize, disk: &Disk) -> Result<(), FieldError> {
    check_path(&format!("disks[{n}].path"), &disk.path)?;
    let Some(serial) = &disk.serial else { return Ok(()) };
    if serial.is_empty() || serial.len() > SERIAL_MAX || !serial.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(FieldError::new(
            format!("disks[{n}].serial"),
            format!(
                "{} is no serial number; use 1 to {SERIAL_MAX} printable ASCII characters, no spaces",
                shown(serial)
            ),
        ));
    }
    Ok(())
}

fn check_path(field: &str, path: &str) -> Result<(), FieldError> {
    let wrong = |message: String| Err(FieldError::new(field, message));
    if path.is_empty() {
        return wrong("empty; give the path of a file".into());
    }
    if path.contains('\0') {
        return wrong(format!("{} contains a NUL character; remove it", shown(path)));
    }
    if path.len() > PATH_MAX {
        return wrong(format!("{} bytes are too long for a path; at most {PATH_MAX} are possible", path.len()));
    }
    if !path.starts_with('/') {
        return wrong(format!("{} is a relative path; give an absolute one", shown(path)));
    }
    Ok(())
}

/// Bounds that keep the arithmetic of the cgroup files in range and the worker able to start at all.
fn check_limits(spec: &VmSpec, limits: &Limits) -> Result<(), FieldError> {
    let within = |field: &str, value: Option<u64>, low: u64, high: u64, unit: &str| match value {
        Some(v) if !(low..=high).contains(&v) => Err(FieldError::new(
            format!("limits.{field}"),
            format!("{v} {unit} is not possible for this VM; give {low} to {high}"),
        )),
        _ => Ok(()),
    };
    // Control thread, reactor, the vCPUs, and at least one thread for each disk's I/O.
    let threads = 2 + u64::from(spec.cpus) + spec.disks.len() as u64;
    within("memory_max_mib", limits.memory_max_mib, 1, 2 * u64::from(MEMORY_MIB_MAX), "MiB")?;
    if let Some(max) = limits.memory_max_mib.filter(|max| *max < spec.memory_mib) {
        let memory = spec.memory_mib;
        return Err(FieldError::new(
            "limits.memory_max_mib",
            format!(
                "{max} MiB is less than memory_mib, {memory}: the VM would be killed when it uses its memory; give at least {memory}, or lower memory_mib"
            ),
        ));
    }
    within("pids_max", limits.pids_max.map(u64::from), threads, 4096, "threads")?;
    within("cpu_percent", limits.cpu_percent.map(u64::from), 1, 100 * u64::from(CPUS_MAX), "per cent")
}

/// A wrong value in quotes, as [`escaped`] gives it.
pub fn shown(value: &str) -> String {
    format!("\"{}\"", escaped(value))
}

/// A wrong value with its control characters escaped and its length bounded.
pub fn escaped(value: &str) -> String {
    let mut text: String = value.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if value.chars().nth(SHOWN_MAX).is_some() {
        text.push('…');
    }
    text
}

/// A path for a message: whole where it is short, its end where it is long, no control characters.
pub fn escaped_path(path: impl AsRef<std::path::Path>) -> String {
    let text: String = path.as_ref().to_string_lossy().chars().flat_map(char::escape_debug).collect();
    match text.char_indices().rev().nth(150) {
        Some((at, _)) => format!("…{}", &text[at..]),
        None => text,
    }
}

/// A character, named where it cannot be seen.
fn character(c: char) -> String {
    match c {
        '\0' => "a NUL character".into(),
        ' ' => "a space".into(),
        c if c.is_control() => "a control character".into(),
        c => format!("'{c}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> VmSpec {
        serde_json::from_str(r#"{"name":"a","cpus":1,"memory_mib":32,"boot":{"builtin":"hello"}}"#).unwrap()
    }

    fn with(change: impl FnOnce(&mut VmSpec)) -> Result<(), FieldError> {
        let mut spec = hello();
        change(&mut spec);
        check(&spec)
    }

    #[track_caller]
    fn refused(field: &str, says: &str, change: impl FnOnce(&mut VmSpec)) {
        let error = with(change).unwrap_err();
        assert_eq!(error.field, field, "{error}");
        assert!(error.message.contains(says), "{error}");
        assert!(!error.to_string().contains(|c: char| c.is_control()), "{error:?}");
        assert!(error.to_string().chars().count() < 200, "{error}");
    }

    fn disk(path: &str, serial: Option<&str>) -> Disk {
        let mut disk: Disk = serde_json::from_str(r#"{"path":""}"#).unwrap();
        disk.path = path.into();
        disk.serial = serial.map(Into::into);
        disk
    }

    #[test]
    fn a_good_spec_passes() {
        assert_eq!(with(|_| ()), Ok(()));
        assert_eq!(with(|s| s.name = "a".repeat(NAME_MAX)), Ok(()));
        assert_eq!(with(|s| s.name = "0web-1.x_y".into()), Ok(()));
        assert_eq!(with(|s| s.cpus = 32), Ok(()));
        assert_eq!(with(|s| s.disks = vec![disk("/a", Some("serial-1"))]), Ok(()));
    }

    #[test]
    fn a_name_that_could_be_a_path_or_an_option_is_refused() {
        for (name, says) in [
            ("a/b", "'/'"),
            ("..", "begins with '.'"),
            (".", "begins with '.'"),
            ("-rf", "begins with '-'"),
            ("", "empty"),
            ("a\0b", "NUL"),
            ("a\x1b[2Jb", "control character"),
            ("ä", "'ä'"),
            ("a b", "space"),
        ] {
            refused("name", says, |s| s.name = name.into());
        }
        refused("name", "300 bytes", |s| s.name = "a".repeat(300));
        refused("name", "64 bytes", |s| s.name = "a".repeat(64));
    }

    #[test]
    fn cpus_and_memory_have_bounds() {
        refused("cpus", "1 to 32", |s| s.cpus = 0);
        refused("cpus", "300", |s| s.cpus = 300);
        refused("memory_mib", "0 MiB", |s| s.memory_mib = 0);
        refused("memory_mib", "1048576", |s| s.memory_mib = u64::MAX);
        assert!(check_memory(2048, 1024).unwrap_err().message.contains("1024 MiB"));
        assert_eq!(check_memory(1024, 1024), Ok(()));
    }

    #[test]
    fn a_boot_has_one_thing_to_boot() {
        let kernel = || Some("/k".to_owned());
        refused("boot", "both", |s| s.boot.kernel = kernel());
        refused("boot", "nothing to boot", |s| s.boot.builtin = None);
        refused("boot.initrd", "without a kernel", |s| {
            s.boot.builtin = None;
            s.boot.initrd = kernel();
        });
        refused("boot.initrd", "no initrd", |s| s.boot.initrd = kernel());
        refused("boot.cmdline", "no command line", |s| s.boot.cmdline = Some("quiet".into()));
        let net = |cmdline: &str| Boot {
            kernel: None,
            initrd: None,
            cmdline: Some(cmdline.into()),
            builtin: Some(Builtin::Net),
        };
        assert_eq!(with(|s| s.boot = net("fetch=10.77.0.1:80/")), Ok(()));
        refused("boot.cmdline", "NUL", |s| s.boot = net("a\0b"));
        let kernel_with = |cmdline: String| {
            move |s: &mut VmSpec| {
                s.boot = Boot { kernel: Some("/k".into()), initrd: None, cmdline: Some(cmdline), builtin: None }
            }
        };
        assert_eq!(with(kernel_with("x".repeat(CMDLINE_MAX))), Ok(()));
        refused("boot.cmdline", "2048 bytes", kernel_with("x".repeat(CMDLINE_MAX + 1)));
        refused("boot.cmdline", "NUL", kernel_with("a\0b".into()));
    }

    #[test]
    fn a_path_is_absolute_and_fits_the_kernel() {
        refused("disks[1].path", "relative", |s| s.disks = vec![disk("/a", None), disk("a", None)]);
        refused("disks[0].path", "empty", |s| s.disks = vec![disk("", None)]);
        refused("disks[0].path", "NUL", |s| s.disks = vec![disk("/a\0", None)]);
        refused("disks[0].path", "5001 bytes", |s| s.disks = vec![disk(&format!("/{}", "a".repeat(5000)), None)]);
        refused("boot.kernel", "relative", |s| {
            s.boot = Boot { kernel: Some("k".into()), initrd: None, cmdline: None, builtin: None }
        });
    }

    #[test]
    fn disks_are_bounded_and_their_serials_fit_the_device() {
        refused("disks", "9 disks", |s| s.disks = vec![disk("/a", None); 9]);
        for serial in ["", "a b", "a\0", "123456789012345678901", "ü"] {
            refused("disks[0].serial", "serial number", |s| s.disks = vec![disk("/a", Some(serial))]);
        }
    }

    #[test]
    fn limits_leave_the_worker_able_to_start() {
        let limits = |json: &str| serde_json::from_str::<Limits>(json).ok();
        assert_eq!(with(|s| s.limits = limits(r#"{"memory_max_mib":640,"pids_max":64,"cpu_percent":150}"#)), Ok(()));
        refused("limits.pids_max", "3 to 4096", |s| s.limits = limits(r#"{"pids_max":2}"#));
        assert_eq!(with(|s| s.limits = limits(r#"{"memory_max_mib":32}"#)), Ok(()));
        refused("limits.memory_max_mib", "less than memory_mib, 32", |s| {
            s.limits = limits(r#"{"memory_max_mib":31}"#);
        });
        refused("limits.cpu_percent", "0 per cent", |s| s.limits = limits(r#"{"cpu_percent":0}"#));
        refused("limits.memory_max_mib", "MiB", |s| s.limits = limits(r#"{"memory_max_mib":18446744073709551615}"#));
    }

    #[test]
    fn interfaces_are_checked_with_the_rest() {
        let nets = |json: &str| serde_json::from_str::<Vec<crate::spec::Net>>(json).unwrap();
        assert_eq!(with(|s| s.nets = nets(r#"[{"network":"default"}]"#)), Ok(()));
        refused("nets[0].network", "empty", |s| s.nets = nets(r#"[{"network":""}]"#));
    }
}
