//! How long one round of a loop takes with two executors of one process, or of two, beside timely with two workers.
//!
//! Loops in which both ranks need something of each other in every round: a step on records that stay where they are, followed
//! by an all-reduce of one number ([`Env::iterate`](updraft::Env::iterate)); a graph that runs again, with an exchange and a
//! result that both see ([`Env::repeat`](updraft::Env::repeat)); an exchange that the program drives, one record to the other
//! rank ([`Operator`](updraft::dataflow::Operator)); and timely's
//! loop, in which one record goes to the other worker in each round.
//!
//! Every case is a process of its own, and the cases take turns. `cargo bench --bench rounds`; with `-- --smoke`, few
//! rounds, once; with `-- --json FILE`, what `updraft bench compare` reads. How long a process takes from its start to its end that does but one round is a second question.

#[path = "../tests/support/build.rs"]
mod build;
mod support;

use std::{io, time::Instant};

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
/// The same over TCP, which takes longer.
const TCP_ROUNDS: u64 = 20_000;
const TIMELY_TCP_ROUNDS: u64 = 10_000;
const SMOKE: u64 = 1000;
const REPEATS: usize = 7;

/// The most time a round may take, against timely's.
const AT_MOST: f64 = 0.3;
const TCP_AT_MOST: f64 = 0.5;
/// The longest that a program may take which does but one round, in seconds.
const START_MAX: f64 = 0.05;

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
type Told = (&'static str, &'static [&'static str], u64, &'static str);

const CASES: [Told; 9] = [
    ("iterate", &["iterate"], ROUNDS, "timely"),
    ("graph", &["graph"], RUNS, "timely"),
    ("operator", &["operator"], RUNS, "timely"),
    (
        "iterate over shm",
        &["processes", "shm", "iterate"],
        ROUNDS,
        "timely over tcp",
    ),
    (
        "graph over shm",
        &["processes", "shm", "graph"],
        RUNS,
        "timely over tcp",
    ),
    (
        "iterate over tcp",
        &["processes", "tcp", "iterate"],
        TCP_ROUNDS,
        "timely over tcp",
    ),
    (
        "graph over tcp",
        &["processes", "tcp", "graph"],
        TCP_ROUNDS,
        "timely over tcp",
    ),
    ("timely", &["timely"], ROUNDS, ""),
    (
        "timely over tcp",
        &["timely-processes", "rounds"],
        TIMELY_TCP_ROUNDS,
        "",
    ),
];

fn compare(options: &Options, fewer: u64, repeats: usize) -> io::Result<()> {
    let built = build::build().args(["--bin", "updraft"]).status()?;
    if !built.success() {
        return Err(io::Error::other("the command updraft could not be built"));
    }
    let mut rows = Rows::default();
    let case = |(name, words, rounds, _): &Told| {
        let number = (rounds / fewer).to_string();
        let words: Vec<&str> = words.iter().copied().chain([&*number]).collect();
        Case::of_this_program(name, &words)
    };
    let cases = CASES.iter().map(case).collect::<io::Result<_>>()?;
    let report = measure::measure(cases, repeats)?;
    println!("{}", measure::machine());
    let number = |name: &str| {
        let told = CASES.iter().find(|told| told.0 == name);
        told.map_or(1, |told| told.2 / fewer) as f64
    };
    for (name, ..) in CASES {
        let each = report.spread(name, |run| 1e6 * run.seconds / number(name));
        println!("{name:<18}{each} us a round");
    }
    for (name, _, _, rival) in CASES.iter().filter(|told| !told.3.is_empty()) {
        let pairs = report.pairs(name, rival, |run| run.seconds).into_iter();
        let pairs = pairs.map(|(ours, theirs)| (ours / number(name), theirs / number(rival)));
        let pairs: Vec<(f64, f64)> = pairs.collect();
        let ratio = Spread::of(pairs.iter().map(|(ours, theirs)| ours / theirs));
        let (part, most) = if name.ends_with("tcp") {
            ("over tcp", TCP_AT_MOST)
        } else {
            ("", AT_MOST)
        };
        let verdict = if ratio.median <= most {
            "met"
        } else {
            "missed"
        };
        println!("ratio {name}/{rival} {ratio} target <= {most:.2} {verdict}");
        rows.pairs(["P12", part, name, rival], &pairs);
    }
    let cases = ["iterate", "graph", "timely"];
    let once = |name: &str| Case::of_this_program(name, &[name, "1"]);
    let report = measure::measure(
        cases.into_iter().map(once).collect::<io::Result<_>>()?,
        repeats,
    )?;
    for case in cases {
        let whole = report.spread(case, |run| run.process_seconds);
        let verdict = match case {
            "timely" => "",
            _ if whole.median <= START_MAX => "target <= 50 met",
            _ => "target <= 50 missed",
        };
        println!(
            "{case:<8} {} ms from the start of the process to its end {verdict}",
            whole.times(1e3)
        );
    }
    rows.write(options)
}
