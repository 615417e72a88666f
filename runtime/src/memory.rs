//! How much memory there is for the workers of this machine.

use std::{fs, path::Path};

use crate::Error;

/// The memory that processes here can have, in bytes: what is available (1 GiB where the system does not tell),
/// or the limit of the control group if that is less.
pub(crate) fn there() -> u64 {
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text
            .lines()
            .find(|line| line.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    let available = available.map_or(1 << 30, |kibibytes| kibibytes << 10);
    let limit = group_limit(Path::new("/")).map_or(u64::MAX, |(bytes, _)| bytes);
    available.min(limit)
}

/// Refuses more memory than the control group may have. The kernel does not refuse it: it kills a process when the
/// pages are first used, in the midst of the job.
pub(crate) fn check(bytes: u64, workers: u32) -> Result<(), Error> {
    match group_limit(Path::new("/")) {
        Some((limit, file)) if bytes.saturating_mul(workers.into()) > limit => {
            let reason = format!(
                "{workers} workers with {bytes} bytes of memory each do not fit in the {limit} of their control \
                 group ({file})"
            );
            Err(Error::Config { reason })
        }
        _ => Ok(()),
    }
}

/// The lowest memory limit of our control group and all those above it, and the file that says so. `root` holds
/// `proc` and `sys`.
fn group_limit(root: &Path) -> Option<(u64, String)> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = groups.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        let (mount, name) = if controllers.is_empty() {
            ("sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|one| one == "memory") {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            return None;
        };
        // In a container the path may be that of the host: then only the top is there.
        let folders = Path::new(path.trim_start_matches('/')).ancestors();
        let limits = folders.filter_map(|folder| {
            let file = Path::new(mount).join(folder).join(name);
            let bytes = fs::read_to_string(root.join(&file))
                .ok()?
                .trim()
                .parse()
                .ok()?;
            Some((bytes, format!("/{}", file.display())))
        });
        limits.min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found where files say what they say.
    fn found(files: &[(&str, &str)]) -> Option<(u64, String)> {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        group_limit(root.path())
    }

    #[test]
    fn the_lowest_limit_on_the_way_up_counts() {
        let groups = ("proc/self/cgroup", "0::/a/b\n");
        let at = |group: &'static str, text| (group, text);
        assert_eq!(found(&[groups]), None);
        let own = at("sys/fs/cgroup/a/b/memory.max", "max\n");
        let above = at("sys/fs/cgroup/a/memory.max", "4096\n");
        let file = "/sys/fs/cgroup/a/memory.max".to_owned();
        assert_eq!(found(&[groups, own, above]), Some((4096, file)));
        let groups = ("proc/self/cgroup", "3:cpu:/x\n2:memory:/host/path\n");
        let top = at("sys/fs/cgroup/memory/memory.limit_in_bytes", "8192\n");
        let file = "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned();
        assert_eq!(found(&[groups, top]), Some((8192, file)));
    }
}
