//! Which cores this process may use, and staying on one of them.

use std::thread;

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// The cores this process may use, as many as its quota of processor time is worth.
pub(crate) fn allowed_cores() -> usize {
    // It respects the affinity mask and the quotas of cgroups.
    thread::available_parallelism().map_or(1, usize::from)
}

/// Keeps this thread on the allowed core that executor `index` of this node is due. Where the system
/// does not let us, the thread goes where the scheduler puts it.
pub(crate) fn pin(index: usize) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(&core) = cores.get(index % cores.len().max(1)) {
        core_affinity::set_for_current(core);
    }
}

/// Where a thread may run.
pub(crate) struct Allowed(Option<CpuSet>);

impl Allowed {
    /// Where the calling thread may.
    pub(crate) fn here() -> Self {
        Self(sched_getaffinity(Pid::from_raw(0)).ok())
    }

    /// Has the calling thread run there. Where the system does not let us, it stays where it is.
    pub(crate) fn allow(&self) {
        if let Some(cores) = &self.0 {
            let _ = sched_setaffinity(Pid::from_raw(0), cores);
        }
    }
}
