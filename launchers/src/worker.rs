//! What happens between the launcher and the job's program, in the worker's process.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::{CommandExt, parent_id},
    },
    path::PathBuf,
    process::{self, Child, Command, Stdio},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        prctl,
        signal::Signal,
    },
};
use updraft::coordinator::Coordinator;

use crate::{Error, command::WorkerArguments, local::Options, signals};

/// The file this process runs, even if another has taken its name since.
pub(crate) const OURSELVES: &str = "/proc/self/exe";

/// Turns this process into the job's program, unless the launcher has died meanwhile. It only
/// returns why it could not.
pub fn become_job(arguments: &WorkerArguments) -> Error {
    if let Err(error) = die_with(arguments.launcher) {
        return error;
    }
    let [name, rest @ ..] = &arguments.job[..] else {
        unreachable!("the command line requires a job");
    };
    let source = Command::new(&arguments.program)
        .arg0(name)
        .args(rest)
        .exec();
    Error::NotRunnable {
        program: PathBuf::from(&arguments.program),
        found: source.to_string(),
    }
}

/// Has the system kill this process when its parent dies, which must be `launcher`.
fn die_with(launcher: u32) -> Result<(), Error> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(Error::io("tie a worker to its launcher"))?;
    if parent_id() != launcher {
        return Err(Error::Io {
            action: "find the launcher of this worker",
            source: io::Error::other("it has died"),
        });
    }
    signals::unblock()
}

/// All that the workers of one job have in common when they are started.
#[derive(Debug)]
pub(crate) struct Recipe {
    program: PathBuf,
    job: Vec<OsString>,
    variables: Vec<(&'static str, String)>,
    /// What sets each worker apart, with commas between.
    attributes: Vec<String>,
    secret: SecretFile,
}

impl Recipe {
    /// Puts the secret where only the workers find it.
    pub(crate) fn new(
        program: PathBuf,
        options: &Options,
        coordinator: &Coordinator,
    ) -> Result<Self, Error> {
        let secret = SecretFile::new(coordinator.secret().as_bytes())?;
        let mut variables = options.variables();
        variables.push(("UPDRAFT_COORDINATOR", coordinator.address()));
        variables.push(("UPDRAFT_SECRET_FD", secret.0.as_raw_fd().to_string()));
        Ok(Self {
            program,
            job: options.job.clone(),
            variables,
            attributes: (0..options.workers)
                .map(|worker| options.attributes_of(worker))
                .collect(),
            secret,
        })
    }

    /// Starts a worker in a process group of its own. The thread that calls this must live as long
    /// as the worker: the system takes its end for the launcher's.
    pub(crate) fn start(&self, worker: u32, input: Stdio) -> Result<Child, Error> {
        let mut command = Command::new(OURSELVES);
        command
            .arg0("updraft")
            .arg("__worker")
            .arg(format!("--launcher={}", process::id()))
            .arg("--program")
            .arg(&self.program)
            .arg("--")
            .args(&self.job)
            .env_remove("UPDRAFT_SECRET_FILE")
            .env("UPDRAFT_WORKER", worker.to_string())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let attributes = self.attributes.get(worker as usize);
        if let Some(attributes) = attributes.filter(|attributes| !attributes.is_empty()) {
            command.env("UPDRAFT_ATTRIBUTES", attributes);
        }
        self.secret
            .inherited_by(|| command.spawn())
            .map_err(|source| Error::Start { worker, source })
    }
}

/// The job's secret, in a file without a name that nobody can change.
#[derive(Debug)]
struct SecretFile(OwnedFd);

impl SecretFile {
    fn new(secret: &[u8]) -> Result<Self, Error> {
        let failed = "put the job's secret into memory";
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut file =
            File::from(memfd_create("updraft-secret", flags).map_err(Error::io(failed))?);
        file.write_all(secret).map_err(Error::io(failed))?;
        let seals = SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(Error::io(failed))?;
        Ok(Self(file.into()))
    }

    /// Runs `spawn`, whose child inherits the descriptor.
    fn inherited_by<T>(&self, spawn: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        fcntl(&self.0, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let spawned = spawn();
        fcntl(&self.0, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        spawned
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_secret_in_memory_can_be_read_again_and_again_and_never_changed() {
        let secret = SecretFile::new(&[3; 32]).unwrap();
        let path = format!("/proc/self/fd/{}", secret.0.as_raw_fd());
        for _ in 0..2 {
            assert_eq!(fs::read(&path).unwrap(), [3; 32]);
        }
        let mut file = File::from(secret.0);
        assert!(file.write_all(&[4]).is_err());
    }

    #[test]
    fn only_a_child_started_meanwhile_inherits_the_secret() {
        let secret = SecretFile::new(&[3; 32]).unwrap();
        let flags = || fcntl(&secret.0, FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags(), FdFlag::FD_CLOEXEC.bits());
        assert_eq!(secret.inherited_by(|| Ok(flags())).unwrap(), 0);
        assert_eq!(flags(), FdFlag::FD_CLOEXEC.bits());
    }
}
