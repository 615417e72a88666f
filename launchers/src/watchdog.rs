//! What clears up after a launcher that was killed.
//!
//! The system kills a worker whose launcher died, but not what that worker had started. So a
//! launcher keeps a small process of its own beside it, which knows the workers' process groups
//! and sees its input end when the launcher's process does.

use std::{
    io::{self, BufRead, Write},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{Error, worker};

/// A launcher's handle of its watchdog. The watchdog is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Watchdog {
    process: Child,
}

impl Watchdog {
    /// Starts a watchdog, which nothing but the end of this process wakes.
    pub(crate) fn start() -> Result<Self, Error> {
        use std::os::unix::process::CommandExt;

        Command::new(worker::OURSELVES)
            .arg0("updraft")
            .arg("__watchdog")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map(|process| Self { process })
            .map_err(Error::io("start the watchdog"))
    }

    /// Has it kill the process group of this leader, should this process end.
    pub(crate) fn guard(&mut self, leader: Pid) {
        if let Some(input) = &mut self.process.stdin {
            // Without a watchdog the job still runs, and the system still kills the workers.
            let _ = writeln!(input, "{leader}");
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // It is killed before its input ends: the groups it knows may have other owners by then.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads the groups to guard, and kills them when there is nothing more to read.
///
/// # Errors
///
/// [`Error::Io`] when the input is no list of groups.
pub fn watch() -> Result<(), Error> {
    let groups = read_groups(io::stdin().lock()).map_err(Error::io("read what to guard"))?;
    for group in groups {
        // A group that is gone needs no killing.
        let _ = killpg(group, Signal::SIGKILL);
    }
    Ok(())
}

fn read_groups(input: impl BufRead) -> io::Result<Vec<Pid>> {
    input
        .lines()
        .map(|line| line?.parse().map_err(io::Error::other))
        .map(|leader| leader.map(Pid::from_raw))
        .filter(|leader| !matches!(leader, Ok(leader) if leader.as_raw() <= 1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_to_the_end_and_never_everyone_is_among_them() {
        let groups = read_groups(&b"12\n1\n0\n-1\n34\n"[..]).unwrap();
        assert_eq!(groups, [Pid::from_raw(12), Pid::from_raw(34)]);
        assert!(read_groups(&b"12\nall\n"[..]).is_err());
    }
}
