//! Files as one row of bytes, of which each instance reads a part: an equal one, or where files are on some hosts, one that
//! a single host has.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{Error, schedule::Split};

/// A file that instances read, and the hosts that have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFile {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// The hosts that have it, by the names that workers call theirs: no other can read it. None if all can.
    pub hosts: Vec<String>,
}

impl HostFile {
    /// Files that all hosts can read, with the sizes that they have here.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] when one cannot be looked at.
    pub(super) fn everywhere(paths: Vec<PathBuf>) -> Result<Vec<Self>, Error> {
        let file = |path: PathBuf| {
            let metadata = File::open(&path).and_then(|file| file.metadata());
            Ok(Self {
                bytes: metadata.map_err(failed(&path))?.len(),
                hosts: Vec::new(),
                path,
            })
        };
        paths.into_iter().map(file).collect()
    }
}

/// A file that was found on this host, and what tells it from others of the same name on other hosts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its number in its file system.
    pub inode: u64,
    /// When it was changed last, in nanoseconds since the epoch of the system.
    pub changed_ns: i64,
}

/// The files here that `pattern` matches, in the order of their names.
///
/// # Errors
///
/// [`Error::BadPattern`], or [`Error::Input`] when a file cannot be looked at.
pub fn find_files(pattern: &str) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for path in paths(pattern)? {
        let metadata = path.metadata().map_err(failed(&path))?;
        found.push(Found {
            path,
            bytes: metadata.len(),
            inode: metadata.ino(),
            changed_ns: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
        });
    }
    Ok(found)
}

/// What `pattern` matches, but for folders.
pub(super) fn paths(pattern: &str) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for path in matches(pattern)? {
        let path = path.map_err(|error| Error::Input {
            path: error.path().to_owned(),
            source: std::io::Error::from(error.error().kind()),
        })?;
        if !path.is_dir() {
            files.push(path);
        }
    }
    Ok(files)
}

/// What a pattern matches.
pub(super) fn matches(pattern: &str) -> Result<glob::Paths, Error> {
    glob::glob(pattern).map_err(|error| Error::BadPattern {
        pattern: pattern.to_owned(),
        reason: error.msg,
    })
}

pub(super) fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Input { path, source }
}

/// A stretch of a file.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Files in a row, which are cut at multiples of a unit.
#[derive(Debug)]
pub(super) struct Files {
    files: Arc<[HostFile]>,
    unit: u64,
    /// Where those end that one host reads, in bytes of the row.
    ends: Vec<u64>,
}

impl Files {
    /// Sizes are multiples of `unit`. Where hosts have the files, each is read by one of them, such that all have as much to
    /// read as can be, and the files of a host are next to each other.
    pub(super) fn new(mut files: Vec<HostFile>, unit: u64) -> Self {
        let mut largest_first: Vec<usize> = (0..files.len()).collect();
        largest_first.sort_by_key(|&file| Reverse(files[file].bytes));
        let mut loads = BTreeMap::new();
        let mut readers = vec![None; files.len()];
        for file in largest_first {
            let HostFile { hosts, bytes, .. } = &files[file];
            let load = |host: &&String| (loads.get(*host).copied().unwrap_or(0), (*host).clone());
            let reader = hosts.iter().min_by_key(load).cloned();
            *loads.entry(reader.clone().unwrap_or_default()).or_insert(0) += bytes;
            readers[file] = reader;
        }
        let mut order: Vec<_> = readers.into_iter().zip(files.drain(..)).collect();
        order.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut ends = Vec::new();
        let mut end = 0;
        for of_host in order.chunk_by(|(one, _), (other, _)| one == other) {
            let bytes: u64 = of_host.iter().map(|(_, file)| file.bytes).sum();
            end += bytes;
            if bytes > 0 {
                ends.push(end);
            }
        }
        Self {
            files: order.into_iter().map(|(_, file)| file).collect(),
            unit: unit.max(1),
            ends,
        }
    }

    pub(super) fn number(&self) -> usize {
        self.files.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether all hosts can read all files.
    fn are_everywhere(&self) -> bool {
        self.files.iter().all(|file| file.hosts.is_empty())
    }

    /// The parts of files that one of so many instances reads, the last first.
    pub(super) fn parts(&self, instance: u32, instances: u32) -> Vec<Part> {
        let cuts = self.cuts(instances);
        let part = |(file, start, end): (&HostFile, u64, u64)| Part {
            path: file.path.clone(),
            start,
            end,
        };
        let mut parts: Vec<_> = self.stretches(cuts[instance as usize]).map(part).collect();
        parts.reverse();
        parts
    }

    /// What each of so many instances reads, and where that is, if it is not everywhere.
    pub(super) fn splits(&self, instances: u32) -> Vec<Split> {
        if self.are_everywhere() {
            return Vec::new();
        }
        let of_instance = |(instance, cut)| {
            let split = move |(file, start, end): (&HostFile, u64, u64)| Split {
                instance,
                hosts: file.hosts.clone(),
                bytes: end - start,
                is_bound: !file.hosts.is_empty(),
            };
            self.stretches(cut).map(split)
        };
        (0..)
            .zip(self.cuts(instances))
            .flat_map(of_instance)
            .collect()
    }

    /// The stretches of files between two places of the row.
    fn stretches(&self, (start, end): (u64, u64)) -> impl Iterator<Item = (&HostFile, u64, u64)> {
        let mut at = 0;
        self.files.iter().filter_map(move |file| {
            let from = start.clamp(at, at + file.bytes) - at;
            let to = end.clamp(at, at + file.bytes) - at;
            at += file.bytes;
            (from < to).then_some((file, from, to))
        })
    }

    /// From where to where in the row each of so many instances reads. They are distributed among the hosts such that the most that
    /// one has to read is the least (as d'Hondt distributes seats), if there are as many as hosts.
    fn cuts(&self, instances: u32) -> Vec<(u64, u64)> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let hosts: Vec<(u64, u64)> = starts.zip(self.ends.iter().copied()).collect();
        if hosts.len() < 2 || hosts.len() > instances as usize {
            return self.cut_evenly((0, self.bytes()), instances).collect();
        }
        let mut seats = vec![1u32; hosts.len()];
        for _ in hosts.len()..instances as usize {
            // Compares what instances of two hosts have to read without a division; the first of equals gets one more.
            let bytes_of = |host: usize, seats: u32| {
                let (start, end) = hosts[host];
                u128::from(end - start) * u128::from(seats)
            };
            let most = |one: usize, other: usize| {
                let is_more = bytes_of(other, seats[one]) > bytes_of(one, seats[other]);
                if is_more { other } else { one }
            };
            let most = (0..hosts.len()).fold(0, most);
            seats[most] += 1;
        }
        let hosts = hosts.iter().zip(seats);
        hosts
            .flat_map(|(&host, seats)| self.cut_evenly(host, seats))
            .collect()
    }

    /// A stretch of the row in so many equal parts.
    fn cut_evenly(&self, (start, end): (u64, u64), parts: u32) -> impl Iterator<Item = (u64, u64)> {
        let unit = self.unit;
        let units = u128::from((end - start) / unit);
        let cut =
            move |part: u32| start + (units * u128::from(part) / u128::from(parts)) as u64 * unit;
        (0..parts).map(move |part| (cut(part), cut(part + 1)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn files() -> impl Strategy<Value = Vec<HostFile>> {
        let file = (
            0u64..50,
            prop::sample::subsequence(vec!["a", "b", "c"], 0..3),
        );
        prop::collection::vec(file, 0..9).prop_map(|files| {
            let file = |(number, (units, hosts)): (usize, (u64, Vec<&str>))| HostFile {
                path: PathBuf::from(number.to_string()),
                bytes: 3 * units,
                hosts: hosts.into_iter().map(String::from).collect(),
            };
            files.into_iter().enumerate().map(file).collect()
        })
    }

    proptest! {
        #[test]
        fn every_unit_is_read_once_and_where_hosts_have_it_by_one_that_has_it(files in files(), instances in 1u32..9) {
            let row = Files::new(files.clone(), 3);
            let mut read: BTreeMap<PathBuf, Vec<(u64, u64)>> = BTreeMap::new();
            for instance in 0..instances {
                for part in row.parts(instance, instances) {
                    prop_assert!(part.start % 3 == 0 && part.end % 3 == 0);
                    read.entry(part.path).or_default().push((part.start, part.end));
                }
            }
            for HostFile { path, bytes, .. } in &files {
                let mut parts = read.remove(path).unwrap_or_default();
                parts.sort_unstable();
                let mut at = 0;
                for (start, end) in parts {
                    prop_assert_eq!(start, at);
                    at = end;
                }
                prop_assert_eq!(at, *bytes);
            }
            let splits = row.splits(instances);
            let all: u64 = files.iter().map(|file| file.bytes).sum();
            if splits.is_empty() {
                prop_assert!(all == 0 || files.iter().all(|file| file.hosts.is_empty()));
            } else {
                prop_assert_eq!(splits.iter().map(|split| split.bytes).sum::<u64>(), all);
            }
            // With an instance for each host and one more, some host can read all that an instance reads.
            for instance in (0..instances).filter(|_| instances >= 4) {
                let mut of_it = splits.iter().filter(|split| split.instance == instance && split.is_bound);
                let first = of_it.next().map_or(&[][..], |split| &split.hosts);
                let rest: Vec<_> = of_it.collect();
                let has_all = |host: &String| rest.iter().all(|split| split.hosts.contains(host));
                prop_assert!(first.is_empty() || first.iter().any(has_all), "{splits:?}");
            }
        }
    }

    #[test]
    fn instances_are_distributed_by_what_hosts_have_to_read() {
        let file = |path: &str, bytes, hosts: &[&str]| HostFile {
            path: path.into(),
            bytes,
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
        };
        let files = vec![
            file("large", 300, &["b"]),
            file("copied", 90, &["a", "b"]),
            file("small", 10, &["a"]),
        ];
        let splits = Files::new(files, 1).splits(4);
        let read: Vec<_> = splits
            .iter()
            .map(|split| (split.instance, split.bytes, split.hosts.join(" ")))
            .collect();
        let expected = [
            (0, 90, "a b"),
            (0, 10, "a"),
            (1, 100, "b"),
            (2, 100, "b"),
            (3, 100, "b"),
        ];
        assert_eq!(
            read,
            expected.map(|(instance, bytes, hosts)| (instance, bytes, hosts.to_owned()))
        );
    }
}
