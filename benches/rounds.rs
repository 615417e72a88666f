//! How long one round of a loop takes with two executors of one process, beside timely with two workers.
//!
//! Loops in which both ranks need something of each other in every round: a step on records that stay where they are, followed
//! by an all-reduce of one number ([`Env::iterate`](updraft::Env::iterate)); a graph that runs again, with an exchange and a
//! result that both see ([`Env::repeat`](updraft::Env::repeat)); an exchange that the program drives, one record to the other
//! rank ([`Operator`](updraft::dataflow::Operator)); and timely's
//! loop, in which one record goes to the other worker in each round.
//!
//! Every case is a process of its own, and the cases take turns. `cargo bench --bench rounds`; with `-- --smoke`, few
//! rounds, once. How long a process takes from its start to its end that does but one round is a second question.

mod support;

use std::{env, io, time::Instant};

use support::{
    measure::{self, Case},
    timely_operators as timely,
};
use updraft::{
    Config, Env, Error,
    collectives::op::Sum,
    dataflow::{Operator, Sent, Variable, generate},
};

/// Rounds of a loop in which nothing is started, and in which a graph is.
const ROUNDS: u64 = 1_000_000;
const RUNS: u64 = 100_000;
const SMOKE: u64 = 100;
const REPEATS: usize = 7;

/// The most time a round may take, against timely's.
const AT_MOST: f64 = 0.3;
/// The longest that a program may take which does but one round, in seconds.
const START_MAX: f64 = 0.05;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [case, rounds] => run(case, rounds.parse().map_err(io::Error::other)?),
        ["--smoke"] => compare(SMOKE, 1),
        [] => compare(1, REPEATS),
        _ => Err(io::Error::other(format!("no such case: {arguments:?}"))),
    }
}

/// Runs a case, and prints how long all its rounds took, without what comes before the first.
fn run(case: &str, rounds: u64) -> io::Result<()> {
    let seconds = match case {
        "timely" => timely::rounds(rounds)?.as_secs_f64(),
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

fn compare(fewer: u64, repeats: usize) -> io::Result<()> {
    let number = |case: &str| match case {
        "graph" | "operator" => RUNS / fewer,
        _ => ROUNDS / fewer,
    };
    let case = |name: &str| Case::of_this_program(name, &[name, &number(name).to_string()]);
    let cases = ["iterate", "graph", "operator", "timely"];
    let report = measure::measure(
        cases.into_iter().map(case).collect::<io::Result<_>>()?,
        repeats,
    )?;
    println!("{}", measure::machine());
    for case in cases {
        let each = report.spread(case, |run| 1e6 * run.seconds / number(case) as f64);
        println!("{case:<8} {each} us a round");
    }
    for case in ["iterate", "graph", "operator"] {
        let share = number("timely") as f64 / number(case) as f64;
        let ratio = report.ratio(case, "timely", |run| run.seconds);
        let ratio = ratio.times(share);
        let verdict = if ratio.median <= AT_MOST {
            "met"
        } else {
            "missed"
        };
        println!("ratio {case}/timely {ratio} target <= {AT_MOST:.2} {verdict}");
    }
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
    Ok(())
}
