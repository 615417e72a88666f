//! How long one round of a loop takes with two executors of one process, or of two, beside timely with two workers.
//!
//! Loops in which both ranks need something of each other in every round: a step on records that stay where they are, followed
//! by an all-reduce of one number ([`Env::iterate`](updraft::Env::iterate)); a graph that runs again, with an exchange and a
//! result that both see ([`Env::repeat`](updraft::Env::repeat)); an exchange that the program drives, one record to the other
//! rank ([`Operator`](updraft::dataflow::Operator)); and timely's
//! loop, in which one record goes to the other worker in each round.
//!
//! How long it takes to run a graph again is asked in three ways: planned once ([`Env::repeat`](updraft::Env::repeat)), given to
//! [`Env::run`](updraft::Env::run) each time, and built anew by timely in workers that run; on Spark in a session that runs, if
//! a Python has it, which `--peer DIR` may name. Beside it is a bare barrier.
//!
//! Every case is a process of its own, and the cases take turns. `cargo bench --bench rounds`; with `-- --smoke`, few
//! rounds, once; with `-- --json FILE`, what `updraft bench compare` reads. How long a process takes from its start to its end that does but one round is a second question; of Spark
//! it is the time to the first result.

#[path = "../tests/support/build.rs"]
mod build;
mod support;

use std::{io, path::Path, time::Instant};

use support::{
    measure::{self, Case, Spread},
    options::{Options, Rows},
    timely_operators::{self as timely, Place},
};
use updraft::{
    Config, Env, Error,
    collectives::op::Sum,
    dataflow::{Operator, Sent, Variable, generate},
};

/// Rounds of a loop in which nothing is started, and in which a graph is.
const ROUNDS: u64 = 1_000_000;
const RUNS: u64 = 100_000;
/// Graphs that are planned each time, and those of timely, which keeps them all.
const PLANNED_RUNS: u64 = 20_000;
const TIMELY_RUNS: u64 = 2_000;
/// Jobs of Spark, and as many to warm it up.
const SPARK_RUNS: u64 = 10;
/// The same over TCP, which takes longer.
const TCP_ROUNDS: u64 = 20_000;
const TIMELY_TCP_ROUNDS: u64 = 10_000;
const SMOKE: u64 = 1000;
const REPEATS: usize = 7;

/// The most time a round may take, against timely's.
const AT_MOST: f64 = 0.3;
const TCP_AT_MOST: f64 = 0.5;
/// The longest that a program may take which does but one round, in seconds, and against the same on others.
const START_MAX: f64 = 0.05;
const START_AT_MOST: f64 = 1.0;

fn main() -> io::Result<()> {
    let options = Options::read()?;
    match options.words()[..] {
        ["processes", transport, case, rounds] => measure::in_processes(transport, &[case, rounds]),
        ["timely-processes", "rounds", rounds] => {
            let lines = Place::of_processes(&[rounds])?;
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            measure::print_together(&lines)
        }
        ["timely-process", index, addresses, rounds] => {
            let rounds = rounds.parse().map_err(io::Error::other)?;
            timely_rounds(Place::of_words(index, addresses)?, rounds)
        }
        [case, rounds] => run(case, rounds.parse().map_err(io::Error::other)?),
        [] if options.smoke => compare(&options, SMOKE, 1),
        [] => compare(&options, 1, REPEATS),
        ref words => Err(io::Error::other(format!("no such case: {words:?}"))),
    }
}

fn timely_rounds(place: Place, rounds: u64) -> io::Result<()> {
    let seconds = timely::rounds(place, rounds)?.as_secs_f64();
    measure::print_run(seconds, measure::peak_bytes()?, "rounds");
    Ok(())
}

/// Runs a case, and prints how long all its rounds took, without what comes before the first.
fn run(case: &str, rounds: u64) -> io::Result<()> {
    let seconds = match case {
        "timely" => return timely_rounds(Place::Threads, rounds),
        "timely-again" => timely::again(Place::Threads, rounds)?.as_secs_f64(),
        _ => {
            let config = Config {
                executors: Some(2),
                progress: false,
                ..Config::default()
            };
            updraft::run(config, |env| ours(env, case, rounds)).map_err(io::Error::other)?
        }
    };
    measure::print_run(seconds, measure::peak_bytes()?, "rounds");
    Ok(())
}

fn ours(env: &mut Env, case: &str, rounds: u64) -> Result<f64, Error> {
    let cached = env.run(&generate(2, |n| n).cache())?;
    let (expected, started) = (2 * rounds, Instant::now());
    let found = match case {
        "iterate" => {
            let done = move |history: &[f64]| history.len() as u64 == rounds;
            let ended = env.iterate(&cached, 0, done, |total, round| {
                let mut sum = [round.records().count() as u64];
                round.world.all_reduce(&mut sum, Sum).wait()?;
                *total += sum[0];
                Ok(0.0)
            })?;
            ended.state
        }
        "graph" => {
            let add = Variable::new(0);
            let job = cached
                .tset()
                .exchange_by_hash()
                .map_with(&add, |_, add| *add)
                .count()
                .first();
            let (total, _) = env.repeat(&job, (0, 0), move |(total, runs), count| {
                (*total, *runs) = (*total + count.unwrap_or_default(), *runs + 1);
                add.set(*runs);
                Ok(*runs < rounds)
            })?;
            total
        }
        "run" => {
            let job = cached.tset().exchange_by_hash().count().first();
            let mut total = 0;
            for _ in 0..rounds {
                total += env.run(&job)?.unwrap_or_default();
            }
            total
        }
        "barrier" => {
            let ended = env.bsp(move |world| {
                for _ in 0..rounds {
                    world.barrier().wait()?;
                }
                Ok(2 * rounds)
            })?;
            ended.into_iter().min().unwrap_or_default()
        }
        "operator" => {
            let ended = env.bsp(move |world| {
                let (me, size) = (world.rank() as u64, world.size() as u64);
                let mut pass = Operator::new(world, |n: Sent<u64>| n.partition(|n| n))?;
                let mut total = 0;
                for _ in 0..rounds {
                    pass.send(&((me + 1) % size))?;
                    pass.finish();
                    while let Some(came) = pass.poll()? {
                        total += 2 * u64::from(came == me);
                    }
                    pass.reset()?;
                }
                Ok(total)
            })?;
            ended.into_iter().min().unwrap_or_default()
        }
        _ => {
            let reason = format!("no such case: {case}");
            return Err(Error::Config { reason });
        }
    };
    assert_eq!(found, expected);
    Ok(started.elapsed().as_secs_f64())
}

/// A case: what it is called, the words that tell it, its rounds, and what it is compared with.
type Told = (
    &'static str,
    &'static [&'static str],
    u64,
    &'static [&'static str],
);

const CASES: [Told; 13] = [
    ("iterate", &["iterate"], ROUNDS, &["timely"]),
    (
        "graph",
        &["graph"],
        RUNS,
        &["timely", "timely again", SPARK_AGAIN],
    ),
    ("operator", &["operator"], RUNS, &["timely"]),
    (
        "iterate over shm",
        &["processes", "shm", "iterate"],
        ROUNDS,
        &["timely over tcp"],
    ),
    (
        "graph over shm",
        &["processes", "shm", "graph"],
        RUNS,
        &["timely over tcp"],
    ),
    (
        "iterate over tcp",
        &["processes", "tcp", "iterate"],
        TCP_ROUNDS,
        &["timely over tcp"],
    ),
    (
        "graph over tcp",
        &["processes", "tcp", "graph"],
        TCP_ROUNDS,
        &["timely over tcp"],
    ),
    (
        "run",
        &["run"],
        PLANNED_RUNS,
        &["timely again", SPARK_AGAIN],
    ),
    (
        "run over shm",
        &["processes", "shm", "run"],
        PLANNED_RUNS,
        &[],
    ),
    ("barrier", &["barrier"], ROUNDS, &[]),
    ("timely", &["timely"], ROUNDS, &[]),
    ("timely again", &["timely-again"], TIMELY_RUNS, &[]),
    (
        "timely over tcp",
        &["timely-processes", "rounds"],
        TIMELY_TCP_ROUNDS,
        &[],
    ),
];
const SPARK_AGAIN: &str = "Spark again";

fn compare(options: &Options, fewer: u64, repeats: usize) -> io::Result<()> {
    let built = build::build().args(["--bin", "updraft"]).status()?;
    if !built.success() {
        return Err(io::Error::other("the command updraft could not be built"));
    }
    let mut rows = Rows::default();
    let spark = options.python("pyspark");
    println!("{}", measure::machine());
    if spark.is_none() {
        let why = "no Spark (PyPI: pyspark)";
        println!("{why}");
        rows.absent(["P12", "again", "Spark"], why);
        rows.absent(["P21", "peers", "Spark"], why);
    }
    rounds(spark.as_deref(), fewer, repeats, &mut rows)?;
    starts(spark.as_deref(), repeats, &mut rows)?;
    rows.write(options)
}

/// What a round takes in each case, and against others.
fn rounds(spark: Option<&Path>, fewer: u64, repeats: usize, rows: &mut Rows) -> io::Result<()> {
    let number = |name: &str| {
        let told = CASES.iter().find(|told| told.0 == name);
        told.map_or(SPARK_RUNS, |told| (told.2 / fewer).max(1))
    };
    let case = |(name, words, ..): &Told| {
        let number = number(name).to_string();
        let words: Vec<&str> = words.iter().copied().chain([&*number]).collect();
        Case::of_this_program(name, &words)
    };
    let mut cases = CASES.iter().map(case).collect::<io::Result<Vec<_>>>()?;
    if let Some(python) = spark {
        let words = ["spark", "again", &SPARK_RUNS.to_string()];
        cases.push(Case::of_python(SPARK_AGAIN, python, &words));
    }
    let names: Vec<String> = cases.iter().map(|case| case.name.clone()).collect();
    let report = measure::measure(cases, repeats)?;
    for name in &names {
        let each = report.spread(name, |run| 1e6 * run.seconds / number(name) as f64);
        println!("{name:<18}{each} us a round");
    }
    let pairs = |name: &str, rival: &str| -> Vec<(f64, f64)> {
        let each = |seconds: f64, name: &str| seconds / number(name) as f64;
        let pairs = report.pairs(name, rival, |run| run.seconds).into_iter();
        let pairs = pairs.map(|(ours, theirs)| (each(ours, name), each(theirs, rival)));
        pairs.collect()
    };
    for (name, _, _, rivals) in CASES {
        let there = |rival: &&&str| names.iter().any(|name| name == **rival);
        for rival in rivals.iter().filter(there) {
            let pairs = pairs(name, rival);
            let (part, most) = match *rival {
                "timely again" | SPARK_AGAIN => ("again", AT_MOST),
                _ if name.ends_with("tcp") => ("over tcp", TCP_AT_MOST),
                _ => ("", AT_MOST),
            };
            say(name, rival, &pairs, Some(most));
            rows.pairs(["P12", part, name, rival], &pairs);
        }
    }
    for name in ["graph", "run"] {
        say(name, "barrier", &pairs(name, "barrier"), None);
    }
    Ok(())
}

/// How long a program takes that does but one round.
fn starts(spark: Option<&Path>, repeats: usize, rows: &mut Rows) -> io::Result<()> {
    const OURS: [&str; 2] = ["iterate", "graph"];
    let once = |name: &str| Case::of_this_program(name, &[name, "1"]);
    let names = OURS.into_iter().chain(["timely"]);
    let mut cases = names.map(once).collect::<io::Result<Vec<_>>>()?;
    if let Some(python) = spark {
        cases.push(Case::of_python("Spark", python, &["spark", "start"]));
    }
    let names: Vec<String> = cases.iter().map(|case| case.name.clone()).collect();
    let report = measure::measure(cases, repeats)?;
    for name in &names {
        let (seconds, until) = match &**name {
            "Spark" => (report.spread(name, |run| run.seconds), "first result"),
            _ => (report.spread(name, |run| run.process_seconds), "end"),
        };
        let verdict = match OURS.contains(&&**name) {
            false => "",
            true if seconds.median <= START_MAX => "target <= 50 met",
            true => "target <= 50 missed",
        };
        println!(
            "{name:<8} {} ms from the start of the process to its {until} {verdict}",
            seconds.times(1e3)
        );
    }
    for name in OURS {
        for rival in names.iter().filter(|name| !OURS.contains(&&***name)) {
            let ours = report.pairs(name, rival, |run| run.process_seconds);
            let theirs = report.pairs(name, rival, |run| match &**rival {
                "Spark" => run.seconds,
                _ => run.process_seconds,
            });
            let pairs = ours.into_iter().zip(theirs);
            let pairs: Vec<_> = pairs.map(|(ours, theirs)| (ours.0, theirs.1)).collect();
            say(
                &format!("start of {name}"),
                rival,
                &pairs,
                Some(START_AT_MOST),
            );
            rows.pairs(["P21", "peers", name, rival], &pairs);
        }
    }
    Ok(())
}

/// Prints how the times of two cases compare, and whether that is what it should be at most.
fn say(name: &str, rival: &str, pairs: &[(f64, f64)], most: Option<f64>) {
    let ratio = Spread::of(pairs.iter().map(|(ours, theirs)| ours / theirs));
    let verdict = most.map(|most| format!(" target <= {most:.2} {}", ratio.verdict(most)));
    println!(
        "ratio {name}/{rival} {ratio}{}",
        verdict.unwrap_or_default()
    );
}
