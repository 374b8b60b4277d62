//! The steps of a jail, carried out in the child that becomes the worker. Each stage is a file; each fails hard.

mod limits;
mod mounts;
mod privileges;

use crate::plan::{Perform, Step};
use crate::sys;
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

/// What the steps work on. All of it was opened before: no step opens anything of the host.
pub struct Stages<'a> {
    /// The prepared user namespace.
    pub user_namespace: BorrowedFd<'a>,
    /// Which fd goes to which number; the numbers are those of `policies/process.json`.
    pub fds: &'a [(BorrowedFd<'a>, i32)],
    /// The worker's program.
    pub program: BorrowedFd<'a>,
}

/// The first number that no declared fd has.
fn first_undeclared(fds: &[(BorrowedFd<'_>, i32)]) -> u32 {
    fds.iter().map(|(_, number)| *number as u32 + 1).max().unwrap_or(0)
}

impl Perform for Stages<'_> {
    fn perform(&mut self, step: &Step) -> Result<(), i32> {
        self.step(step).map_err(Errno::raw_os_error)
    }
}

impl Stages<'_> {
    fn step(&mut self, step: &Step) -> Result<(), Errno> {
        use rustix::thread as t;
        match step {
            Step::EnterUserNamespace => {
                t::move_into_link_name_space(self.user_namespace, Some(t::LinkNameSpaceType::User))
            }
            Step::ClearGroups => t::set_thread_groups(&[]),
            Step::SetGid(id) => {
                let gid = t::Gid::from_raw(*id);
                t::set_thread_res_gid(gid, gid, gid)
            }
            Step::SetUid(id) => {
                let uid = t::Uid::from_raw(*id);
                t::set_thread_res_uid(uid, uid, uid)
            }
            Step::NewSession => rustix::process::setsid().map(drop),
            Step::ClearSignalMask => sys::clear_signal_mask(),
            Step::SetHostname => rustix::system::sethostname(b"vmsup"),
            Step::PrivateMounts => mounts::make_private(),
            Step::EmptyRoot => mounts::enter_empty_root(),
            Step::Limit(name, value) => limits::set(name, *value),
            Step::PlaceFds => self.fds.iter().try_for_each(|(from, to)| sys::place_fd(*from, *to)),
            Step::CloseOthersOnExec => sys::close_on_exec_from(first_undeclared(self.fds)),
            Step::LockSecurebits => privileges::lock_securebits(),
            Step::DropBoundingSet => privileges::drop_bounding_set(),
            Step::DropCapabilities => privileges::drop_capabilities(),
            Step::NoNewPrivs => t::set_no_new_privs(true),
            Step::Exec => Err(sys::exec_fd(self.program, c"vmsup-worker")),
        }
    }
}
