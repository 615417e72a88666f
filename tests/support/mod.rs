//! What the tests of whole programs share: the programs, built once, and a watch over their processes.

#![allow(dead_code, reason = "each test uses the part it needs")]

mod build;
pub(crate) mod disk;
pub(crate) mod echo;
pub(crate) mod long;
pub(crate) mod machines;
pub(crate) mod skip;

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The time by which all is over once one worker has failed.
pub(crate) const END_TIME_MAX: Duration = Duration::from_secs(2);

/// Longer than anything here should take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The `updraft` command of this build.
pub(crate) fn command() -> Command {
    Command::new(programs().join("updraft"))
}

/// An example of this build.
pub(crate) fn example(name: &str) -> PathBuf {
    programs().join("examples").join(name)
}

/// The folder of the programs, which are built there first.
fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let built = build::build()
            .args(["--bin", "updraft", "--examples"])
            .status();
        assert!(built.unwrap().success());
        let tests = std::env::current_exe().unwrap();
        tests.ancestors().nth(2).unwrap().to_owned()
    })
}

/// A launch that has ended.
pub(crate) struct Launch {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) status: ExitStatus,
    pub(crate) elapsed: Duration,
}

impl Launch {
    pub(crate) fn of(mut command: Command) -> Self {
        Running::start(&mut command).end()
    }

    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// It said this among its errors.
    #[track_caller]
    pub(crate) fn assert_err(&self, words: &str) {
        assert!(self.err.contains(words), "{words:?} is not in {}", self.err);
    }

    /// It said this in its output.
    #[track_caller]
    pub(crate) fn assert_out(&self, words: &str) {
        assert!(self.out.contains(words), "{words:?} is not in {}", self.out);
    }

    /// The lines of the output, in an order that does not depend on the workers' speed.
    pub(crate) fn sorted(&self) -> Vec<&str> {
        let mut lines: Vec<&str> = self.out.lines().collect();
        lines.sort_unstable();
        lines
    }
}

/// A launch under way. It is killed if a test gives up on it.
pub(crate) struct Running {
    pub(crate) launcher: Child,
    started: Instant,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self {
            launcher: command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
            started: Instant::now(),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let launcher = Pid::from_raw(self.launcher.id().cast_signed());
        kill(launcher, signal).unwrap();
    }

    /// Waits for the end, but not for ever: nothing here may hang.
    pub(crate) fn end(mut self) -> Launch {
        let out = read_aside(self.launcher.stdout.take().unwrap());
        let err = read_aside(self.launcher.stderr.take().unwrap());
        let status = self.wait();
        Launch {
            status,
            elapsed: self.started.elapsed(),
            out: out.join().unwrap(),
            err: err.join().unwrap(),
        }
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.launcher.try_wait().unwrap() {
                return status;
            }
            assert!(self.started.elapsed() < PATIENCE, "the launcher hangs");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
    }
}

fn read_aside(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A folder of one test, where its workers leave what they have to tell. It goes with it.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("updraft-test-{}-{count}", std::process::id());
        let folder = Self(std::env::temp_dir().join(name));
        fs::create_dir(&folder.0).unwrap();
        folder
    }

    /// Waits until there are so many files, and returns what they hold.
    pub(crate) fn wait_for(&self, count: usize) -> Vec<String> {
        let started = Instant::now();
        loop {
            let files = fs::read_dir(&self.0).unwrap();
            let texts: Vec<String> = files
                .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
                .filter(|text| text.ends_with('\n'))
                .collect();
            if texts.len() >= count {
                return texts;
            }
            assert!(started.elapsed() < PATIENCE, "{count} files are due");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The same for files that hold a process number each.
    pub(crate) fn wait_for_processes(&self, count: usize) -> Vec<u32> {
        let texts = self.wait_for(count);
        texts
            .iter()
            .map(|text| text.trim().parse().unwrap())
            .collect()
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether a process runs: neither gone nor only waiting to be reaped.
pub(crate) fn is_alive(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("Z").starts_with('Z'))
}

/// Waits until none of the processes runs any more.
pub(crate) fn all_end(processes: &[u32]) -> bool {
    let started = Instant::now();
    while processes.iter().any(|&process| is_alive(process)) {
        if started.elapsed() > END_TIME_MAX {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}
