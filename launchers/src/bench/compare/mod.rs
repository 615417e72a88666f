//! `updraft bench compare`: the peers of this machine measured by the same method, and how far the targets
//! are reached.
//!
//! A *trial* is one way to measure; its contenders, ours and the peers, run in turns, so whatever slows the
//! machine for a while slows them all. Batches of messages are compared only where the cores were at the
//! same distance: a machine whose cores move has points for near and for far.

mod peers;
mod targets;
mod verdict;

use std::{
    collections::{BTreeSet, HashMap},
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use clap::Args;
use serde_json::{Value, json};

use self::{
    peers::{Effort, Family, Peer},
    targets::{Against, Ranks, TARGETS, Target, Trial},
    verdict::{Rounds, Trials, Verdict, judge, judge_bench, missing},
};
use super::{
    Results, job,
    limits::{Kind, Pair},
    machine::{Machine, allowed_cores},
    plot::{Curve, Plot},
    rank::{self, Measure},
    report::{Unit, check_writable, machine_json, write_file},
    samples::{Cores, Line, Samples},
    sizes::{Sizes, label},
};
use crate::{Error, error::exit, output::say, worker};

/// The folder of the sources says that it is one by this line of its manifest.
const SOURCES: &str = "name = \"updraft-workspace\"";

/// Of `compare`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Targets to look at, such as P1,P2, or parts of them, such as P10:all_reduce; all if not given
    #[arg(long, value_name = "TARGETS", value_delimiter = ',', value_parser = parse_target)]
    only: Vec<String>,

    /// Write every point as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Draw each kind of measurement, as SVG files in a folder
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,

    /// Exit with 1 unless every point is met
    #[arg(long)]
    strict: bool,

    /// How often each contender is run, in turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Batches measured of each size in a run
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repeats: u32,

    /// A folder with a library in it (bin/mpicc, bin/mpirun, lib) or with Python modules (bin/python3), such as a Python environment; may be repeated
    #[arg(long = "peer", value_name = "DIR")]
    peers: Vec<PathBuf>,

    /// What `cargo bench --bench NAME -- --json FILE` wrote; may be repeated. If not given, the benches are run, in the
    /// folder of the sources: rings for P3 and P5, operators for P11, P13, P16 and P18, rounds for P12, wordcount for P14,
    /// terasort for P15, loops for P17, starting and rounds for P21, growth for P22
    #[arg(long = "crates", value_name = "FILE")]
    benches: Vec<PathBuf>,
}

fn parse_target(text: &str) -> Result<String, String> {
    if TARGETS.iter().any(|target| target.is_called(text)) {
        return Ok(text.to_owned());
    }
    if let Some((name, _)) = text.split_once(':') {
        let parts = TARGETS
            .iter()
            .filter(|target| target.name == name && !target.part.is_empty());
        let mut parts: Vec<&str> = parts.map(|target| target.part).collect();
        parts.dedup();
        return Err(format!("the parts of {name} are {}", parts.join("; ")));
    }
    let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    names.dedup();
    Err(format!("the targets are {}", names.join(", ")))
}

/// Measures, prints a line for each point, and how many are met.
pub(crate) fn run(arguments: &Arguments) -> Result<u8, Error> {
    let machine = Machine::here();
    if let Some(path) = &arguments.json {
        check_writable(path)?;
    }
    if let Some(folder) = &arguments.plot {
        fs::create_dir_all(folder).map_err(|source| Error::Output {
            path: folder.clone(),
            source,
        })?;
    }
    say(&format!("{}\n", machine.line()));
    let folder = tempfile::tempdir().map_err(Error::io("make a folder for the peers"))?;
    let comparison = Comparison::prepare(arguments, &machine, folder.path());
    let (measured, verdicts) = comparison.measure()?;
    let met = verdicts.iter().filter(|verdict| verdict.is_met()).count();
    let all = verdicts.len();
    say(&format!("{met} of {all} met\n"));
    if let Some(path) = &arguments.json {
        let value = comparison.json(&machine, &verdicts);
        write_file(path, &format!("{value:#}\n"))?;
    }
    if let Some(folder) = &arguments.plot {
        comparison.plot(folder, &machine, &measured)?;
    }
    Ok(if arguments.strict && met < all {
        exit::JOB
    } else {
        0
    })
}

/// A trial, and what it found out.
type Measured = (&'static Trial, Trials);

/// What is compared.
struct Comparison<'a> {
    arguments: &'a Arguments,
    targets: Vec<&'static Target>,
    peers: Vec<Peer>,
    effort: Effort,
}

impl<'a> Comparison<'a> {
    fn prepare(arguments: &'a Arguments, machine: &Machine, folder: &Path) -> Self {
        let asked = |target: &&Target| {
            arguments.only.is_empty() || arguments.only.iter().any(|name| target.is_called(name))
        };
        let mut targets: Vec<&'static Target> = TARGETS.iter().filter(asked).collect();
        let without = targets.len();
        if !has_rdma() {
            targets.retain(|target| target.trial.transport != "rdma");
        }
        if targets.len() < without {
            say("P9 is left out: there is no RDMA device\n");
        }
        let wanted = |peer: &Peer| targets.iter().any(|target| plays(target, peer));
        let mut peers = Vec::new();
        if targets.iter().any(|target| wants_peers(target)) {
            let mut warn = |what: String| say(&format!("{what}\n"));
            peers = peers::find(folder, &arguments.peers, &mut warn);
            peers.retain(wanted);
            say_who(&peers, &targets);
        }
        let effort = Effort {
            repeats: arguments.repeats,
            warmup: (arguments.repeats / 4).max(1),
            cores: u32::try_from(machine.cores).unwrap_or(u32::MAX),
            sizes: Vec::new(),
        };
        Self {
            arguments,
            targets,
            peers,
            effort,
        }
    }

    /// How much of a trial is measured in one run: only what is asked for.
    fn effort(&self, trial: &Trial) -> Effort {
        let targets = self.targets_of(trial);
        let mut sizes: Vec<usize> = targets
            .flat_map(|target| {
                let other = match target.against {
                    Against::Size(other) => Some(other),
                    _ => None,
                };
                target.sizes.iter().copied().chain(other)
            })
            .collect();
        if sizes.is_empty() {
            sizes = trial.sizes.to_vec();
        }
        sizes.sort_unstable();
        sizes.dedup();
        Effort {
            sizes,
            ..self.effort.clone()
        }
    }

    fn targets_of(&self, trial: &Trial) -> impl Iterator<Item = &&'static Target> {
        self.targets
            .iter()
            .filter(move |target| target.trial == trial)
    }

    /// Measures what each target needs that was not measured yet, each contender in its turn, and says at once how far the
    /// target is reached.
    fn measure(&self) -> Result<(Vec<Measured>, Vec<Verdict>), Error> {
        let mut measured: Vec<Measured> = Vec::new();
        let mut reports = HashMap::new();
        let mut verdicts = Vec::new();
        for target in &self.targets {
            let of_it = if let Against::Bench(bench) = target.against {
                let report = reports.entry(bench).or_insert_with(|| {
                    let report = self.report_of(bench);
                    say_missing(&self.targets, &report, bench);
                    report
                });
                judge_bench(target, report)
            } else {
                let found = measured.iter().position(|of| of.0 == target.trial);
                let at = found.unwrap_or(measured.len());
                if found.is_none() {
                    measured.push((target.trial, self.try_out(target.trial)?));
                }
                let (_, trials) = &measured[at];
                let rivals = self.rivals(target, trials);
                judge(target, trials, &rivals, &absent(target))
            };
            for verdict in of_it {
                say(&format!("{}\n", verdict.line()));
                verdicts.push(verdict);
            }
        }
        Ok((measured, verdicts))
    }

    fn try_out(&self, trial: &'static Trial) -> Result<Trials, Error> {
        let mut contenders: Vec<Contender> = Vec::new();
        for target in self.targets_of(trial) {
            if let Against::Bare(kind) = target.against {
                contenders.push(Contender::Bare(kind));
            }
        }
        let peers = self.peers.iter();
        let peers = peers.filter(|peer| self.targets_of(trial).any(|target| plays(target, peer)));
        contenders.extend(peers.map(Contender::Peer));
        let effort = self.effort(trial);
        let crowded = trial.ranks != Ranks::Two;
        let named = |name: String| Rounds {
            name,
            crowded,
            of: Vec::new(),
        };
        let peers = contenders.iter().map(|contender| named(contender.name()));
        let mut trials = Trials {
            peers: peers.collect(),
            ours: named("Updraft".to_owned()),
            failed: None,
        };
        let mut gone = vec![false; contenders.len()];
        for round in 1..=self.arguments.rounds {
            progress(&format!(
                "{}: round {round} of {}",
                trial.name, self.arguments.rounds
            ));
            match self.run_ours(trial, &effort)? {
                Ok(samples) => trials.ours.of.push(samples),
                Err(why) => {
                    trials.failed = Some(why);
                    break;
                }
            }
            for (index, contender) in contenders.iter().enumerate() {
                if gone[index] {
                    continue;
                }
                match run_other(contender, trial, &effort) {
                    Ok(samples) => trials.peers[index].of.push(samples),
                    Err(why) => {
                        say(&format!(
                            "{} is left out of {}: {why}\n",
                            contender.name(),
                            trial.name
                        ));
                        gone[index] = true;
                    }
                }
            }
        }
        progress("");
        Ok(trials)
    }

    /// Ours is a job like any other, started by a launcher of its own. What it said, if it failed.
    fn run_ours(&self, trial: &Trial, effort: &Effort) -> Result<Result<Samples, String>, Error> {
        let results = Results::new()?;
        let ranks_do = rank::Arguments {
            measure: trial.measure,
            sizes: Sizes(effort.sizes.clone()),
            repeats: effort.repeats,
            warmup: effort.warmup,
            touch: trial.touch,
            one_by_one: false,
            floor: trial.floor
                && self
                    .targets_of(trial)
                    .any(|target| matches!(target.against, Against::Floor | Against::Mpi)),
            algorithm: None,
            cooperative: trial.ranks.cooperative(),
            results: results.path(),
        };
        let mut command = Command::new(worker::OURSELVES);
        command
            .args(["run", "-n", &effort.workers(trial).to_string()])
            .args(["--executors", "1", "--transport", trial.transport, "--"])
            .args(job(&ranks_do));
        let mut samples = Samples::default();
        match peers::output(command) {
            Ok(_) => {
                let read = samples.read_file(&results.path());
                read.map_err(Error::io("read the results"))?;
                Ok(Ok(samples))
            }
            Err(why) => Ok(Err(why)),
        }
    }

    /// What a bench says: from files, or from running it where the sources are.
    fn report_of(&self, bench: &'static str) -> Result<Value, String> {
        let advice = || format!("cargo bench --bench {bench} -- --json FILE, then --crates FILE");
        let given = &self.arguments.benches;
        if !given.is_empty() {
            return read_rows(given);
        }
        let sources = sources().ok_or_else(advice)?;
        progress(&format!("cargo bench --bench {bench}"));
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let path = folder.path().join("rows.json");
        let of_it = self
            .targets
            .iter()
            .filter(|target| target.against == Against::Bench(bench));
        let asked: BTreeSet<&str> = of_it.map(|target| target.name).collect();
        let asked: Vec<&str> = asked.into_iter().collect();
        let mut cargo = Command::new("cargo");
        cargo
            .args(["bench", "-q", "--bench", bench, "--", "--json"])
            .arg(&path)
            .args(["--only", &asked.join(",")])
            .args(
                self.arguments
                    .peers
                    .iter()
                    .flat_map(|folder| [Path::new("--peer"), folder]),
            )
            .current_dir(sources)
            .stdout(io::stderr());
        let status = cargo
            .status()
            .map_err(|error| format!("cargo: {error}; {}", advice()))?;
        if !status.success() {
            return Err(format!("cargo bench --bench {bench} failed: {status}"));
        }
        read_rows(&[path])
    }

    /// Which contenders of its trial a target is compared with.
    fn rivals(&self, target: &Target, trial: &Trials) -> Vec<usize> {
        let is_rival = |rounds: &Rounds| {
            let peer = self.peers.iter().find(|peer| peer.name == rounds.name);
            match (target.against, peer) {
                _ if rounds.of.is_empty() => false,
                (Against::Bare(kind), None) => rounds.name == kind.name(),
                (_, Some(peer)) => plays(target, peer),
                _ => false,
            }
        };
        let peers = trial.peers.iter().enumerate();
        peers
            .filter(|(_, rounds)| is_rival(rounds))
            .map(|(index, _)| index)
            .collect()
    }

    fn json(&self, machine: &Machine, verdicts: &[Verdict]) -> Value {
        json!({
            "bench": "compare",
            "machine": machine_json(machine),
            "rounds": self.arguments.rounds,
            "repeats": self.arguments.repeats,
            "peers": self.peers.iter().map(|peer| peer.name.clone()).collect::<Vec<_>>(),
            "points": verdicts.iter().map(Verdict::json).collect::<Vec<_>>(),
            "met": verdicts.iter().filter(|verdict| verdict.is_met()).count(),
            "of": verdicts.len(),
        })
    }

    /// A chart of each trial that has more than one size.
    fn plot(&self, folder: &Path, machine: &Machine, measured: &[Measured]) -> Result<(), Error> {
        for (trial, measured) in measured {
            if trial.measure == Measure::Idle {
                continue;
            }
            let unit = match trial.measure {
                Measure::Stream if trial.sizes.iter().all(|&bytes| bytes <= 1 << 10) => Unit::Rate,
                Measure::Stream => Unit::Bandwidth,
                _ if trial.measure.operator().is_some() => Unit::Operation,
                _ => Unit::OneWay,
            };
            let mut curves = Vec::new();
            let all = [&measured.ours].into_iter().chain(&measured.peers);
            for (colour, rounds) in all.enumerate() {
                for cores in [Cores::Near, Cores::Far, Cores::Unknown] {
                    let points = trial.sizes.iter().filter_map(|&bytes| {
                        let ns = rounds.middle(bytes, cores)?;
                        Some((bytes as f64, unit.figure(bytes, ns)))
                    });
                    let points: Vec<(f64, f64)> = points.collect();
                    if !points.is_empty() {
                        curves.push(Curve {
                            name: match cores {
                                Cores::Unknown => rounds.name.clone(),
                                _ => format!("{}, {}", rounds.name, cores.name()),
                            },
                            points,
                            dashed: cores == Cores::Far,
                            colour,
                        });
                    }
                }
            }
            let plot = Plot {
                title: format!(
                    "{}, {} ranks over {}",
                    trial.name,
                    self.effort.ranks(trial),
                    trial.transport
                ),
                subtitle: machine.line(),
                across: "message size",
                label,
                up: unit.name(),
                curves,
            };
            write_file(&folder.join(format!("{}.svg", trial.name)), &plot.svg())?;
        }
        Ok(())
    }
}

/// Who is measured beside us.
enum Contender<'a> {
    Bare(Kind),
    Peer(&'a Peer),
}

impl Contender<'_> {
    fn name(&self) -> String {
        match self {
            Self::Bare(kind) => kind.name().to_owned(),
            Self::Peer(peer) => peer.name.clone(),
        }
    }
}

/// One run of a contender.
fn run_other(
    contender: &Contender,
    trial: &'static Trial,
    effort: &Effort,
) -> Result<Samples, String> {
    let mut samples = Samples::default();
    let (said, around) = match contender {
        Contender::Bare(kind) => (run_bare(*kind, effort)?, [0.0; 2]),
        Contender::Peer(peer) if peer.family.is_mpi() => (peer.run(trial, effort)?, [0.0; 2]),
        Contender::Peer(peer) => {
            let before = hop()?;
            let said = peer.run(trial, effort)?;
            (said, [before, hop()?])
        }
    };
    samples.read(&said, around);
    Ok(samples)
}

/// Whether a target is compared with that peer.
fn plays(target: &Target, peer: &Peer) -> bool {
    let rival = match target.against {
        Against::Mpi => peer.family.is_mpi(),
        Against::MpiAndUcx => peer.family.is_mpi() || peer.family == Family::Ucx,
        Against::Perftest(_) => peer.family == Family::Perftest,
        _ => false,
    };
    rival && peer.plays(target.trial)
}

fn wants_peers(target: &Target) -> bool {
    matches!(
        target.against,
        Against::Mpi | Against::MpiAndUcx | Against::Perftest(_)
    )
}

/// What brings the peers of a target that has none.
fn absent(target: &Target) -> String {
    let known = peers::KNOWN
        .iter()
        .filter(|(family, ..)| match target.against {
            Against::Perftest(_) => *family == Family::Perftest,
            Against::MpiAndUcx => *family != Family::Perftest,
            _ => family.is_mpi(),
        });
    let texts: Vec<String> = known
        .map(|(_, name, packages)| format!("{name}: {packages}"))
        .collect();
    texts.join("; ")
}

/// Says which peers there are, and what would bring those that are not.
fn say_who(peers: &[Peer], targets: &[&Target]) {
    let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    let names = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    };
    say(&format!("peers: {names}\n"));
    let perftest = targets
        .iter()
        .any(|target| matches!(target.against, Against::Perftest(_)));
    for (family, name, packages) in peers::KNOWN {
        let there = peers.iter().any(|peer| peer.family == family);
        let wanted = match family {
            Family::Perftest => perftest,
            Family::Ucx => targets
                .iter()
                .any(|target| target.against == Against::MpiAndUcx),
            _ => targets.iter().any(|target| wants_peers(target)),
        };
        if wanted && !there {
            say(&format!("no {name} ({packages})\n"));
        }
    }
}

fn has_rdma() -> bool {
    fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some())
}

/// Says what goes on, to whoever waits at a terminal.
fn progress(what: &str) {
    use io::IsTerminal;
    if io::stderr().is_terminal() {
        // Each line takes the place of the one before.
        let _ = write!(io::stderr(), "\r\x1b[K{what}");
    }
}

/// Bare sockets between two threads, with the distance taken beside each batch.
fn run_bare(kind: Kind, effort: &Effort) -> Result<String, String> {
    let effort = effort.clone();
    on_cores(move |cores| {
        let largest = effort.sizes.iter().copied().max().unwrap_or(1);
        let mut pair = Pair::new(cores, largest)?;
        let mut lines = String::new();
        for &bytes in &effort.sizes {
            for batch in 0..effort.warmup + effort.repeats {
                let before = pair.hop()?;
                let ns = pair.time(kind, bytes)?;
                let hops = [before, pair.hop()?];
                if batch >= effort.warmup {
                    let floor_ns = 0.0;
                    lines += &Line::Batch {
                        bytes,
                        hops,
                        floor_ns,
                        ns,
                    }
                    .to_string();
                }
            }
        }
        Ok(lines)
    })
}

/// The bare hand-over of a cache line now, one way, in nanoseconds.
fn hop() -> Result<f64, String> {
    on_cores(|cores| {
        let mut pair = Pair::new(cores, 1)?;
        pair.hop()?;
        pair.hop()
    })
}

/// Runs something that pins its thread on a thread of its own.
fn on_cores<T: Send + 'static>(
    work: impl FnOnce(&[usize]) -> Result<T, Error> + Send + 'static,
) -> Result<T, String> {
    let cores = allowed_cores();
    let done = thread::spawn(move || work(&cores).map_err(|error| error.to_string()));
    done.join()
        .unwrap_or_else(|_| Err("it panicked".to_owned()))
}

/// Says which peers a bench did without, though it had others, and what would bring them.
fn say_missing(targets: &[&Target], report: &Result<Value, String>, bench: &'static str) {
    let of_it = targets
        .iter()
        .filter(|target| target.against == Against::Bench(bench));
    let Ok(report) = report else { return };
    let lines: BTreeSet<String> = of_it.filter_map(|target| missing(report, target)).collect();
    for line in lines {
        say(&format!("{line}\n"));
    }
}

/// The rows of all files together.
fn read_rows(paths: &[PathBuf]) -> Result<Value, String> {
    let mut rows = Vec::new();
    for path in paths {
        let text = fs::read_to_string(path);
        let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
        let report: Value =
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        rows.extend(report["rows"].as_array().cloned().unwrap_or_default());
    }
    Ok(json!({ "rows": rows }))
}

/// The folder of our sources, if the command is used there.
fn sources() -> Option<PathBuf> {
    let here = env::current_dir().ok()?;
    let is_ours = |folder: &&Path| {
        let manifest = fs::read_to_string(folder.join("Cargo.toml"));
        manifest.is_ok_and(|manifest| manifest.contains(SOURCES))
    };
    here.ancestors().find(is_ours).map(Path::to_owned)
}
