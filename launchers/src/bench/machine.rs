//! The machine that measures, in a few words.

use std::{path::Path, thread};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use crate::kernel::Kernel;

/// What a report says about the machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
}

impl Machine {
    /// This machine. Asked from a thread that is not pinned, it tells all cores.
    pub(crate) fn here() -> Self {
        let kernel = Kernel::at(Path::new("/"));
        let known = |found: Option<String>| found.unwrap_or_else(|| "unknown".to_owned());
        Self {
            processor: known(kernel.value("proc/cpuinfo", "model name")),
            cores: thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kernel.kilobytes("proc/meminfo", "MemTotal").unwrap_or(0),
            kernel: known(kernel.text("proc/sys/kernel/osrelease")),
        }
    }

    /// In one line.
    pub(crate) fn line(&self) -> String {
        let Self {
            processor,
            cores,
            memory_bytes,
            kernel,
        } = self;
        let gibibytes = *memory_bytes as f64 / f64::from(1 << 30);
        format!("{processor}, {cores} cores, {gibibytes:.1} GiB, Linux {kernel}")
    }
}

/// The cores this process may use.
pub(crate) fn allowed_cores() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return Vec::new();
    };
    (0..CpuSet::count())
        .filter(|&core| set.is_set(core).unwrap_or(false))
        .collect()
}

/// Keeps this thread on one core. Where the system does not let us, it stays where it may be.
pub(crate) fn pin(core: usize) {
    let mut set = CpuSet::new();
    if set.set(core).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}
