//! What the kernel says of the machine and of this process, in the files under `/sys` and `/proc`.
//!
//! They are read below a folder, so that a recorded machine is read as the real one is. What is missing or
//! makes no sense is `None` or empty: no kernel has all of these files.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::Args;
use serde_json::Value;

use crate::output::say;

/// What `doctor` and `topology` are told.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Where `sys` and `proc` are; nothing is tried elsewhere than at home
    #[arg(long, value_name = "FOLDER", default_value = "/", hide = true)]
    root: PathBuf,
}

impl Arguments {
    /// The machine to look at.
    pub(crate) fn kernel(&self) -> Kernel {
        Kernel::at(&self.root)
    }

    /// Prints what was found there, for people or for programs.
    pub(crate) fn tell(&self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) {
        if self.json {
            say(&format!("{:#}\n", json()));
        } else {
            say(&text());
        }
    }
}

/// The files of one machine.
#[derive(Debug)]
pub(crate) struct Kernel {
    root: PathBuf,
}

impl Kernel {
    /// The machine whose `sys` and `proc` are in `root`, which is `/` for the real one.
    pub(crate) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Whether this is the machine that we run on, and not the record of another.
    pub(crate) fn is_real(&self) -> bool {
        self.root == Path::new("/")
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// A file as it is.
    pub(crate) fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        fs::read(self.path(path)).ok()
    }

    /// What a file says, without the end of its line.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned())
    }

    pub(crate) fn number<T: FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// The numbers of a list such as `0-3,8`.
    pub(crate) fn list(&self, path: &str) -> Vec<usize> {
        self.text(path)
            .map(|text| numbers(&text))
            .unwrap_or_default()
    }

    /// The choice in brackets of a file such as `always [madvise] never`.
    pub(crate) fn chosen(&self, path: &str) -> Option<String> {
        let text = self.text(path)?;
        let (_, rest) = text.split_once('[')?;
        rest.split_once(']').map(|(chosen, _)| chosen.to_owned())
    }

    /// The names in a folder, in order.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(folder))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names
    }

    /// The numbers behind `prefix` of the names in a folder, in order.
    pub(crate) fn numbered(&self, folder: &str, prefix: &str) -> Vec<usize> {
        let mut found: Vec<usize> = self
            .names(folder)
            .iter()
            .filter_map(|name| name.strip_prefix(prefix)?.parse().ok())
            .collect();
        found.sort_unstable();
        found
    }

    /// The pools of reserved huge pages: the bytes of a page, and how many pages there are.
    pub(crate) fn huge_page_pools(&self) -> Vec<(u64, u64)> {
        let folder = "sys/kernel/mm/hugepages";
        let names = self.names(folder).into_iter();
        let pool = |name: String| {
            let kilobytes = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            let kilobytes: u64 = kilobytes.parse().ok()?;
            let pages = self.number(&format!("{folder}/{name}/nr_hugepages"))?;
            Some((kilobytes.checked_mul(1024)?, pages))
        };
        names.filter_map(pool).collect()
    }

    /// The last name of what a symbolic link points to.
    pub(crate) fn link(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        target.file_name()?.to_str().map(str::to_owned)
    }

    /// What a file of `key: value` lines says of `key` first.
    pub(crate) fn value(&self, path: &str, key: &str) -> Option<String> {
        self.text(path)?.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            (found.trim() == key).then(|| value.trim().to_owned())
        })
    }

    /// The bytes of an entry of a file such as `meminfo`, which counts kB.
    pub(crate) fn kilobytes(&self, path: &str, key: &str) -> Option<u64> {
        let value = self.value(path, key)?;
        let number: u64 = value.trim_end_matches(" kB").trim().parse().ok()?;
        number.checked_mul(1024)
    }

    /// The soft limit of this process that `/proc/self/limits` calls `name`.
    pub(crate) fn limit(&self, name: &str) -> Option<Limit> {
        let text = self.text("proc/self/limits")?;
        let soft = text.lines().find_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.split_whitespace().next().map(str::to_owned)
        })?;
        match soft.as_str() {
            "unlimited" => Some(Limit::None),
            number => number.parse().ok().map(Limit::At),
        }
    }
}

/// How much of something a process may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    None,
    At(u64),
}

impl Limit {
    /// Whether it is less than `enough`.
    pub(crate) fn is_below(self, enough: u64) -> bool {
        matches!(self, Self::At(limit) if limit < enough)
    }
}

/// What this process may use, by its control groups and all those above them.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Cgroup {
    pub(crate) memory_bytes_max: Option<u64>,
    /// Used by the group that sets the limit.
    pub(crate) memory_bytes: Option<u64>,
    /// Processor time, in processors.
    pub(crate) processors_max: Option<f64>,
    /// In which processor time is counted, and withheld once it is used up.
    pub(crate) period_us: Option<u64>,
    pub(crate) processes_max: Option<u64>,
    /// The processors and the memory nodes that it may use; empty when nothing is said.
    pub(crate) cores: Vec<usize>,
    pub(crate) nodes: Vec<usize>,
    /// Whether reads or writes of some device are limited.
    pub(crate) io_limited: bool,
}

impl Cgroup {
    pub(crate) fn of(kernel: &Kernel) -> Self {
        let mut found = Self::default();
        for line in kernel.text("proc/self/cgroup").unwrap_or_default().lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if controllers.is_empty() {
                for folder in folders(kernel, "sys/fs/cgroup", path) {
                    found.read_unified(kernel, &folder);
                }
            }
            for controller in controllers.split(',').filter(|name| !name.is_empty()) {
                let mount = format!("sys/fs/cgroup/{controller}");
                for folder in folders(kernel, &mount, path) {
                    found.read_controller(kernel, controller, &folder);
                }
            }
        }
        found
    }

    /// Version 2: all controllers in one folder.
    fn read_unified(&mut self, kernel: &Kernel, folder: &str) {
        let at = |name: &str| format!("{folder}/{name}");
        self.lower_memory(
            kernel.number(&at("memory.max")),
            kernel.number(&at("memory.current")),
        );
        if let Some((quota, period)) = kernel
            .text(&at("cpu.max"))
            .as_deref()
            .and_then(|text| text.split_once(' '))
        {
            self.lower_quota(quota.parse().ok(), period.parse().ok());
        }
        self.lower_processes(kernel.number(&at("pids.max")));
        self.narrow(
            kernel.list(&at("cpuset.cpus.effective")),
            kernel.list(&at("cpuset.mems.effective")),
        );
        self.io_limited |= kernel
            .text(&at("io.max"))
            .is_some_and(|text| !text.is_empty());
    }

    /// Version 1: a folder for each controller.
    fn read_controller(&mut self, kernel: &Kernel, controller: &str, folder: &str) {
        let at = |name: &str| format!("{folder}/{name}");
        match controller {
            "memory" => {
                /// What version 1 says when there is no limit, rounded to pages.
                const UNLIMITED: u64 = i64::MAX as u64 & !0xffff;
                let limit = kernel.number(&at("memory.limit_in_bytes"));
                self.lower_memory(
                    limit.filter(|&bytes| bytes < UNLIMITED),
                    kernel.number(&at("memory.usage_in_bytes")),
                );
            }
            "cpu" => self.lower_quota(
                kernel.number(&at("cpu.cfs_quota_us")),
                kernel.number(&at("cpu.cfs_period_us")),
            ),
            "pids" => self.lower_processes(kernel.number(&at("pids.max"))),
            "cpuset" => self.narrow(
                kernel.list(&at("cpuset.effective_cpus")),
                kernel.list(&at("cpuset.effective_mems")),
            ),
            "blkio" => {
                let limited =
                    |name: &str| kernel.text(&at(name)).is_some_and(|text| !text.is_empty());
                self.io_limited |= limited("blkio.throttle.read_bps_device")
                    || limited("blkio.throttle.write_bps_device");
            }
            _ => {}
        }
    }

    fn lower_memory(&mut self, limit: Option<u64>, used: Option<u64>) {
        if let Some(limit) = limit
            && self.memory_bytes_max.is_none_or(|lowest| limit < lowest)
        {
            self.memory_bytes_max = Some(limit);
            self.memory_bytes = used;
        }
    }

    fn lower_quota(&mut self, quota_us: Option<u64>, period_us: Option<u64>) {
        let (Some(quota), Some(period)) = (quota_us, period_us.filter(|&period| period > 0)) else {
            return; // "max", or -1.
        };
        let processors = quota as f64 / period as f64;
        if self.processors_max.is_none_or(|lowest| processors < lowest) {
            self.processors_max = Some(processors);
            self.period_us = Some(period);
        }
    }

    fn lower_processes(&mut self, limit: Option<u64>) {
        self.processes_max = [self.processes_max, limit].into_iter().flatten().min();
    }

    /// The group itself is read first, and narrower than those above it.
    fn narrow(&mut self, cores: Vec<usize>, nodes: Vec<usize>) {
        if self.cores.is_empty() {
            self.cores = cores;
        }
        if self.nodes.is_empty() {
            self.nodes = nodes;
        }
    }
}

/// The folder of a control group, and those of all groups above it. Where a container sees its own group as the
/// top, the path may name folders that it cannot see: then only the top is left.
fn folders(kernel: &Kernel, mount: &str, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut path = path.trim_end_matches('/');
    while let Some((above, _)) = path.rsplit_once('/') {
        found.push(format!("{mount}{path}"));
        path = above;
    }
    found.push(mount.to_owned());
    found.retain(|folder| !folder.contains("/../") && kernel.exists(folder));
    found
}

/// Reads a list such as `0-3,8`. What is beyond the largest machine that Linux runs on is no list of its parts.
pub(crate) fn numbers(text: &str) -> Vec<usize> {
    const MOST: usize = 8192;
    let mut found = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse(), last.trim().parse::<usize>())
            && last < MOST
        {
            found.extend(first..=last);
        }
    }
    found
}

/// Writes a list as the kernel does.
pub(crate) fn list(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|one, next| *next == one + 1);
    let runs: Vec<String> = runs
        .map(|run| match run {
            [one] => one.to_string(),
            [first, .., last] => format!("{first}-{last}"),
            [] => String::new(),
        })
        .collect();
    runs.join(",")
}

/// Bytes in the unit in which they have few digits.
pub(crate) fn bytes(number: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let Some((shift, unit)) = units.into_iter().find(|(shift, _)| number >> shift > 0) else {
        return format!("{number} B");
    };
    let value = number as f64 / (1_u64 << shift) as f64;
    let rounded = format!("{value:.1}");
    format!("{} {unit}", rounded.trim_end_matches(".0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_writes_them() {
        for text in ["", "0", "0-3", "0-3,8", "1,3,5-6"] {
            assert_eq!(list(&numbers(text)), text);
        }
        assert_eq!(numbers("0,x,3-1,2"), [0, 2]);
        assert_eq!(numbers("0-99999999999,7"), [7]);
    }

    #[test]
    fn bytes_are_told_in_their_unit() {
        let told = [0, 1023, 65_536, 1 << 20, 3 << 29, 5 << 40].map(bytes);
        assert_eq!(
            told,
            ["0 B", "1023 B", "64 KiB", "1 MiB", "1.5 GiB", "5 TiB"]
        );
    }
}
