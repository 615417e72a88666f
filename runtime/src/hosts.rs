//! What the hosts of a job have, and how quickly bytes come from one to another.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    time::Instant,
};

use collectives::Group;
use dataflow::{Found, HostFile, find_files, schedule::Worker};

use crate::{Env, Error};

/// Bytes that two hosts send each other at a time to see how long that takes, and how often they do.
const PIECE_BYTES: usize = 256 << 10;
const EXCHANGES: usize = 4;

/// A file as ranks tell each other: its path, its size, its number, and when it was changed.
type Told = (Vec<u8>, u64, u64, i64);

impl Env {
    /// The files that `pattern` matches on any host of the job, each with the hosts that have it: what is read by
    /// [`lines_at`](dataflow::lines_at) or [`records_at`](dataflow::records_at), where it is. Files are the same if their
    /// names are, and also their sizes, their inodes and when they were changed last: those of a file system that hosts share.
    /// Copies are files of their own, unless the program makes one [`HostFile`] of them. What all hosts have is read anywhere.
    ///
    /// All workers have to call it: each looks at its own host.
    ///
    /// ```
    /// use updraft::{dataflow::lines_at, prelude::*};
    ///
    /// let modules = updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
    ///     let files = env.files_by_host("src/l*.rs")?;
    ///     env.run(&lines_at(files).filter(|line| line.starts_with("mod ")).collect())
    /// })?;
    /// assert!(modules.contains(&"mod env;".to_owned()));
    /// # Ok::<(), updraft::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When no file matches on any host, or one cannot be looked at.
    pub fn files_by_host(&mut self, pattern: &str) -> Result<Vec<HostFile>, Error> {
        let (pattern, executors) = (pattern.to_owned(), self.executors() as usize);
        let looked_for = pattern.clone();
        let told = self.bsp(move |world| {
            let is_first = world.rank().is_multiple_of(executors);
            let here = if is_first {
                find_files(&looked_for)?.into_iter().map(tell).collect()
            } else {
                Vec::new()
            };
            let all: Vec<Vec<Told>> = world.all_gather_values(here).wait()?;
            Ok(if is_first { all } else { Vec::new() })
        })?;
        let by_rank = told.into_iter().next().unwrap_or_default();
        let by_worker = by_rank.into_iter().step_by(executors);
        let files = merged(by_worker, self.schedulable_workers());
        if files.is_empty() {
            return Err(dataflow::Error::NoInput { pattern }.into());
        }
        Ok(files)
    }
}

fn tell(found: Found) -> Told {
    let path = found.path.as_os_str().as_bytes().to_vec();
    (path, found.bytes, found.inode, found.changed_ns)
}

/// The files that workers have told, in the order of their names.
fn merged(by_worker: impl Iterator<Item = Vec<Told>>, workers: &[Worker]) -> Vec<HostFile> {
    let mut hosts_of: BTreeMap<Told, BTreeSet<&str>> = BTreeMap::new();
    for (told, worker) in by_worker.zip(workers) {
        for file in told {
            hosts_of.entry(file).or_default().insert(&worker.host);
        }
    }
    let all: BTreeSet<&str> = workers.iter().map(|worker| &*worker.host).collect();
    let file = |((path, bytes, ..), hosts): (Told, BTreeSet<&str>)| HostFile {
        path: PathBuf::from(OsString::from_vec(path)),
        bytes,
        hosts: match hosts == all {
            true => Vec::new(),
            false => hosts.into_iter().map(str::to_owned).collect(),
        },
    };
    hosts_of.into_iter().map(file).collect()
}

/// The first rank on each host, by the hosts' names.
pub(crate) fn first_ranks(workers: &[Worker]) -> BTreeMap<String, usize> {
    let mut firsts = BTreeMap::new();
    for worker in workers {
        let first = worker.ranks.start as usize;
        firsts.entry(worker.host.clone()).or_insert(first);
    }
    firsts
}

/// Bytes a second between each two of these members, by the one that receives and then by the one that sends, as all
/// members learn.
///
/// Each two send each other some at the same time, two and two in as many rounds as there are, so that no link is used by
/// others meanwhile. That takes a fraction of a millisecond in a round, or what a slow link needs for a mebibyte.
pub(crate) fn bandwidths(world: &Group, firsts: &[usize]) -> Result<Vec<Vec<u64>>, Error> {
    let me = firsts.iter().position(|&rank| rank == world.rank());
    let measured = me.map(|me| bandwidths_to(world, firsts, me)).transpose()?;
    let all = world
        .all_gather_values(measured.unwrap_or_default())
        .wait()?;
    Ok(firsts.iter().map(|&rank| all[rank].clone()).collect())
}

fn bandwidths_to(world: &Group, firsts: &[usize], me: usize) -> Result<Vec<u64>, Error> {
    let piece = vec![0u8; PIECE_BYTES];
    let mut measured = vec![0; firsts.len()];
    for round in 0..firsts.len() {
        let other = (round + firsts.len() - me) % firsts.len();
        if other == me {
            continue;
        }
        let peer = firsts[other];
        // What disturbs a measurement makes it longer.
        let mut least = u128::MAX;
        for _ in 0..EXCHANGES {
            let start = Instant::now();
            world
                .send_receive::<u8, u8>(peer, 0, &piece, Some(peer), Some(0))
                .wait()?;
            least = least.min(start.elapsed().as_nanos());
        }
        let rate = PIECE_BYTES as u128 * 1_000_000_000 / least.max(1);
        measured[other] = u64::try_from(rate).unwrap_or(u64::MAX);
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hosts_share_is_one_file_and_what_bears_its_name_is_another() {
        let worker = |host: &str| Worker {
            host: host.to_owned(),
            ..Worker::default()
        };
        let workers = ["a", "b", "b"].map(worker);
        let file = |path: &str, bytes, changed| (path.as_bytes().to_vec(), bytes, 77, changed);
        let by_worker = vec![
            vec![file("log", 5, 1), file("shared", 7, 3)],
            vec![file("log", 5, 2), file("shared", 7, 3)],
            vec![file("log", 5, 2), file("shared", 7, 3)],
        ];
        let found = merged(by_worker.into_iter(), &workers);
        let found = found.iter().map(|file| {
            let path = file.path.to_str().unwrap();
            (path, file.bytes, file.hosts.join(" "))
        });
        let expected = [("log", 5, "a"), ("log", 5, "b"), ("shared", 7, "")];
        assert_eq!(
            found.collect::<Vec<_>>(),
            expected.map(|(path, bytes, hosts)| (path, bytes, hosts.to_owned()))
        );
    }
}
