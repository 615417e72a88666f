//! The machine that measures, in a few words.

use std::{fs, thread};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

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
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let memory = value(&read("/proc/meminfo"), "MemTotal");
        let kibibytes = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        Self {
            processor: value(&read("/proc/cpuinfo"), "model name"),
            cores: thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: u64::saturating_mul(kibibytes, 1024),
            kernel: read("/proc/sys/kernel/osrelease").trim_end().to_owned(),
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

/// What a text of `key: value` lines says about `key` first.
fn value(text: &str, key: &str) -> String {
    let found = text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim_end() == key).then(|| value.trim().to_owned())
    });
    found.unwrap_or_else(|| "unknown".to_owned())
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
