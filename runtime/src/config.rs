//! What a program asks of the runtime, and what its launcher says.

use std::{
    env::{self, VarError},
    fs,
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use dataflow::{
    Stop,
    schedule::{FirstFit, Locality, RoundRobin, Scheduler},
    spill,
};
use transport::{Interface, RdmaConfig, Transport};

use crate::{Error, affinity, memory};

/// The share of the memory that is there which a worker uses, unless told otherwise.
const MEMORY_SHARE: (u64, u64) = (3, 4);
/// The arena of an executor, unless memory is tight.
const ARENA_BYTES_MAX: u64 = 256 << 20;
const ARENA_BYTES_MIN: u64 = 1 << 20;

/// What the longest silence can be set to: less than the first mistakes a lost packet for a lost machine,
/// and beyond the second the kernel has given the connection up.
const SILENCES: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(600);

/// How a job runs. What the launcher says (`UPDRAFT_*` in the environment) goes before what is set here,
/// because it comes from who runs the program and not from who wrote it.
///
/// ```
/// use updraft::{prelude::*, transport::Transport};
///
/// let config = Config { executors: Some(3), transport: Transport::Shm, progress: false, ..Config::default() };
/// assert_eq!(updraft::run(config, |env| Ok(env.ranks()))?, 3);
/// # Ok::<(), updraft::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Config {
    /// Executors in this worker; by default one for each core it may use, or its share of them when
    /// several workers run on the node.
    pub executors: Option<u32>,
    /// The paths that messages may take.
    pub transport: Transport,
    /// Where workers of other machines reach this one: the name of an interface, an address of it, or a
    /// network it is in, as [`Interface::find`] reads it. By default the address from which it reached
    /// its coordinator, or nowhere but this machine when that is on it.
    pub interface: Option<String>,
    /// How long the machine of a worker may be silent before the worker counts as lost. A worker that is
    /// busy or stopped is not silent: see [`transport::Config::silence_max`].
    pub silence_max: Duration,
    /// How RDMA is used where it may be.
    pub rdma: RdmaConfig,
    /// Whether what goes over TCP between workers is encrypted, by TLS 1.3; what goes over RDMA is not. All
    /// workers have to agree.
    pub tls: bool,
    /// The most bytes that the data path of this worker may hold; by default three quarters of the memory
    /// that is there, shared among the workers of the node.
    pub memory_bytes: Option<u64>,
    /// Where and how records are kept that this memory has no room for. `UPDRAFT_SPILL_DIRS` in the environment
    /// names other directories, with colons between them.
    pub spill: spill::Config,
    /// What decides where the instances of tasks run: see [`dataflow::schedule`]. `UPDRAFT_SCHEDULER` in the
    /// environment chooses `round-robin`, `first-fit` or `locality`. All workers have to have the same.
    pub scheduler: Arc<dyn Scheduler>,
    /// What sets this worker apart for schedulers, such as `gpu` or `rack=3`. `UPDRAFT_ATTRIBUTES` in the environment
    /// names others, with commas between them.
    pub attributes: Vec<String>,
    /// The name by which schedulers know this machine, if not that which the system says. `UPDRAFT_HOST` in the
    /// environment names another: where it is the name of a container, say, and data is known by that of the node.
    pub host: Option<String>,
    /// Whether worker 0 says on the standard error stream what each run does and where, before it begins.
    /// `UPDRAFT_EXPLAIN=1` in the environment does the same.
    pub explain: bool,
    /// Whether it is measured how long each task is at work, which costs some tens of nanoseconds for each batch: the summary then has
    /// a line for each task, and [`Env::by_task`](crate::Env::by_task) has them too. `UPDRAFT_METRICS=1` in the environment does the
    /// same. All workers have to agree.
    pub metrics: bool,
    /// Whether each executor stays on its core.
    pub pin: bool,
    /// Whether to show progress and a summary on the standard error stream.
    pub progress: bool,
    /// What the first SIGINT or SIGTERM uses, as Ctrl-C sends it: jobs that are [stopped by](dataflow::Job::stopped_by)
    /// it end gracefully then. The second ends the process, as the first does where nothing is said. It holds for as
    /// long as the process lives.
    pub stop: Option<Stop>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            executors: None,
            transport: Transport::Auto,
            interface: None,
            silence_max: transport::Config::SILENCE_MAX,
            rdma: RdmaConfig::default(),
            tls: false,
            memory_bytes: None,
            spill: spill::Config::default(),
            scheduler: Arc::new(RoundRobin),
            attributes: Vec::new(),
            host: None,
            explain: false,
            metrics: false,
            pin: true,
            progress: true,
            stop: None,
        }
    }
}

/// What a worker runs with, when everything is decided.
#[derive(Debug, Clone)]
pub(crate) struct Decided {
    pub(crate) executors: u32,
    pub(crate) transport: Transport,
    /// The interface that was chosen, if one was.
    pub(crate) interface: Option<Interface>,
    pub(crate) silence_max: Duration,
    pub(crate) rdma: RdmaConfig,
    pub(crate) tls: bool,
    pub(crate) memory_bytes: u64,
    pub(crate) spill: spill::Config,
    pub(crate) scheduler: Arc<dyn Scheduler>,
    pub(crate) attributes: Vec<String>,
    pub(crate) host: String,
    pub(crate) explain: bool,
    pub(crate) metrics: bool,
    pub(crate) cores: u32,
    pub(crate) arena_bytes: u64,
    pub(crate) pin: bool,
    /// Whether there is a core for each executor of the node, so that waiting by spinning harms nobody.
    pub(crate) spin: bool,
    pub(crate) progress: bool,
}

impl Config {
    /// Decides what is left open, for one of `workers` on this node.
    pub(crate) fn decide(&self, workers: u32) -> Result<Decided, Error> {
        let cores = affinity::allowed_cores() as u32;
        let executors = match number("UPDRAFT_EXECUTORS")? {
            Some(executors) => executors,
            None => self.executors.unwrap_or((cores / workers).max(1)),
        };
        if executors == 0 {
            return Err(Error::Config {
                reason: "a worker needs at least one executor".into(),
            });
        }
        let Some(ranks) = workers.checked_mul(executors) else {
            let reason = format!("{workers} workers with {executors} executors each are too many");
            return Err(Error::Config { reason });
        };
        let transport = match variable("UPDRAFT_TRANSPORT")?.as_deref() {
            None => self.transport,
            Some("auto") => Transport::Auto,
            Some("shm") => Transport::Shm,
            Some("tcp") => Transport::Tcp,
            Some("rdma") => Transport::Rdma,
            Some(other) => {
                let reason =
                    format!("UPDRAFT_TRANSPORT is {other:?}, and not auto, shm, tcp or rdma");
                return Err(Error::Config { reason });
            }
        };
        let interface = match variable("UPDRAFT_INTERFACE")? {
            Some(text) => Some(find("UPDRAFT_INTERFACE", &text)?),
            None => match &self.interface {
                Some(text) => Some(find("the interface", text)?),
                None => None,
            },
        };
        let silence_max = match number("UPDRAFT_SILENCE_MS")? {
            Some(milliseconds) => Duration::from_millis(milliseconds),
            None => self.silence_max,
        };
        let tls = switch("UPDRAFT_TLS")?.unwrap_or(self.tls);
        if !SILENCES.contains(&silence_max) {
            let (least, most) = (SILENCES.start(), SILENCES.end());
            let reason = format!(
                "a silence of {silence_max:?} cannot be told from a loss: at least {least:?}, at most {most:?}"
            );
            return Err(Error::Config { reason });
        }
        let rdma = RdmaConfig {
            devices: match variable("UPDRAFT_RDMA_DEVICES")? {
                Some(names) => names.split(',').map(str::to_owned).collect(),
                None => self.rdma.devices.clone(),
            },
            port: number("UPDRAFT_RDMA_PORT")?.or(self.rdma.port),
            gid: number("UPDRAFT_RDMA_GID")?.or(self.rdma.gid),
            read_only: switch("UPDRAFT_RDMA_READ_ONLY")?.unwrap_or(self.rdma.read_only),
        };
        let mut spill = self.spill.clone();
        if let Some(directories) = env::var_os("UPDRAFT_SPILL_DIRS") {
            let named = env::split_paths(&directories);
            spill.directories = named.filter(|path| !path.as_os_str().is_empty()).collect();
        }
        if spill.directories.is_empty() {
            let reason = "there is no directory for what memory has no room for".to_owned();
            return Err(Error::Config { reason });
        }
        let scheduler = match variable("UPDRAFT_SCHEDULER")? {
            Some(name) => scheduler(&name)?,
            None => self.scheduler.clone(),
        };
        let attributes = match variable("UPDRAFT_ATTRIBUTES")? {
            Some(names) => {
                let names = names.split(',').filter(|name| !name.is_empty());
                names.map(str::to_owned).collect()
            }
            None => self.attributes.clone(),
        };
        let host = variable("UPDRAFT_HOST")?.or_else(|| self.host.clone());
        let explain = switch("UPDRAFT_EXPLAIN")?.unwrap_or(self.explain);
        let metrics = switch("UPDRAFT_METRICS")?.unwrap_or(self.metrics);
        let memory_bytes = number("UPDRAFT_MEMORY")?.or(self.memory_bytes);
        if let Some(bytes) = memory_bytes {
            memory::check(bytes, workers)?;
        }
        let memory_bytes = memory_bytes.unwrap_or_else(|| default_memory(workers));
        let arena_bytes = (memory_bytes / 4 / u64::from(executors)).min(ARENA_BYTES_MAX) & !4095;
        if arena_bytes < ARENA_BYTES_MIN {
            let needed = u64::from(executors) * 4 * ARENA_BYTES_MIN;
            let reason = format!(
                "{executors} executors need at least {needed} bytes of memory, not {memory_bytes}"
            );
            return Err(Error::Config { reason });
        }
        Ok(Decided {
            executors,
            transport,
            interface,
            silence_max,
            rdma,
            tls,
            memory_bytes,
            spill,
            scheduler,
            attributes,
            host: host.unwrap_or_else(host_name),
            explain,
            metrics,
            cores,
            arena_bytes,
            pin: self.pin,
            spin: ranks <= cores,
            progress: self.progress,
        })
    }
}

/// The interface that `text` names, which `setting` holds.
fn find(setting: &str, text: &str) -> Result<Interface, Error> {
    Interface::find(text).map_err(|error| Error::Config {
        reason: format!("{setting}: {error}"),
    })
}

/// The scheduler of this name.
fn scheduler(name: &str) -> Result<Arc<dyn Scheduler>, Error> {
    match name {
        "round-robin" => Ok(Arc::new(RoundRobin)),
        "first-fit" => Ok(Arc::new(FirstFit::default())),
        "locality" => Ok(Arc::new(Locality::default())),
        other => Err(Error::Config {
            reason: format!(
                "UPDRAFT_SCHEDULER is {other:?}, and not round-robin, first-fit or locality"
            ),
        }),
    }
}

/// What the system calls this machine.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname");
    name.map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}

/// Whether the environment says 1 or 0, if it says something.
fn switch(name: &str) -> Result<Option<bool>, Error> {
    match variable(name)?.as_deref() {
        None => Ok(None),
        Some("1") => Ok(Some(true)),
        Some("0") => Ok(Some(false)),
        Some(other) => Err(Error::Config {
            reason: format!("{name} is {other:?}, and not 1 or 0"),
        }),
    }
}

/// What the environment says, if it says something.
fn variable(name: &str) -> Result<Option<String>, Error> {
    match env::var(name) {
        Ok(text) => Ok(Some(text)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(text)) => Err(Error::Config {
            reason: format!("{name} is {text:?}, which is not UTF-8"),
        }),
    }
}

/// A number in the environment.
fn number<N: std::str::FromStr>(name: &str) -> Result<Option<N>, Error> {
    let Some(text) = variable(name)? else {
        return Ok(None);
    };
    match text.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(Error::Config {
            reason: format!("{name} is {text:?}, which is not a number"),
        }),
    }
}

fn default_memory(workers: u32) -> u64 {
    let (share, of) = MEMORY_SHARE;
    memory::there() / u64::from(workers) / of * share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_too_small_for_the_executors_is_refused_with_what_they_need() {
        let config = Config {
            executors: Some(2),
            memory_bytes: Some(1 << 20),
            ..Config::default()
        };
        let refused = config.decide(1).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "2 executors need at least 8388608 bytes of memory, not 1048576"
        );
    }

    #[test]
    fn an_interface_that_is_not_here_is_refused_by_name() {
        let config = |interface: &str| Config {
            interface: Some(interface.into()),
            ..Config::default()
        };
        let decided = config("lo").decide(1).unwrap();
        assert_eq!(decided.interface, Some(Interface::LOOPBACK));
        let refused = config("no-such-0").decide(1).unwrap_err();
        assert_eq!(refused.exit_code(), 7);
        assert!(refused.to_string().contains("\"no-such-0\""), "{refused}");
    }

    #[test]
    fn without_a_directory_for_what_memory_has_no_room_for_nothing_starts() {
        let config = Config {
            spill: spill::Config {
                directories: Vec::new(),
                ..spill::Config::default()
            },
            ..Config::default()
        };
        let refused = config.decide(1).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "there is no directory for what memory has no room for"
        );
    }

    #[test]
    fn a_silence_too_short_to_mean_anything_is_refused() {
        let config = Config {
            silence_max: Duration::from_millis(10),
            ..Config::default()
        };
        let refused = config.decide(1).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "a silence of 10ms cannot be told from a loss: at least 500ms, at most 600s"
        );
    }

    #[test]
    fn the_cores_of_a_node_are_shared_among_its_workers() {
        let cores = affinity::allowed_cores() as u32;
        assert_eq!(Config::default().decide(1).unwrap().executors, cores);
        assert_eq!(Config::default().decide(2 * cores).unwrap().executors, 1);
        assert!(!Config::default().decide(2 * cores).unwrap().spin);
    }
}
