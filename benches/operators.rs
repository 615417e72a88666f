//! How fast records are exchanged, reduced by key and joined by two executors of one process, beside timely with two
//! workers.
//!
//! Every case is a process of its own, and the cases take turns. `cargo bench --bench operators`; with `-- --smoke`,
//! few records and one round. With `-- exchange`, `-- reduce` or `-- join`, that question alone.

mod support;

use std::{env, io};

use support::{
    measure::{self, Case, Spread},
    timely_operators::{self as timely, Sums},
};
use updraft::{
    Config, Env,
    dataflow::{Job, Key, generate},
};

/// What is asked: how many records, and how much faster than timely it should be.
struct Question {
    name: &'static str,
    records: u64,
    /// The least speed, against timely's.
    at_least: f64,
}

const QUESTIONS: [Question; 3] = [
    Question {
        name: "exchange",
        records: 100_000_000,
        at_least: 1.5,
    },
    Question {
        name: "reduce",
        records: 20_000_000,
        at_least: 2.0,
    },
    Question {
        name: "join",
        records: 10_000_000,
        at_least: 1.0,
    },
];
/// Records in a question, to one of those when it is asked for a moment.
const SMOKE: u64 = 100;
const ROUNDS: usize = 7;

/// Keys in a reduce, one for so many records.
const RECORDS_A_KEY: u64 = 20;
/// Rows on the left side of a join, to one on the right.
const LEFT_ROWS: u64 = 10;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["ours", name, records] => ours(name, parse(records)?),
        ["timely", name, records] => theirs(name, parse(records)?),
        ["--smoke"] => QUESTIONS
            .iter()
            .try_for_each(|question| compare(question, question.records / SMOKE, 1)),
        [] => QUESTIONS
            .iter()
            .try_for_each(|question| compare(question, question.records, ROUNDS)),
        [name] => {
            let question = QUESTIONS.iter().find(|question| question.name == name);
            let question = question.ok_or_else(|| unknown(name))?;
            compare(question, question.records, ROUNDS)
        }
        _ => Err(io::Error::other(format!("no such case: {arguments:?}"))),
    }
}

fn parse(records: &str) -> io::Result<u64> {
    records.parse().map_err(io::Error::other)
}

fn unknown(name: &str) -> io::Error {
    io::Error::other(format!("no such question: {name}"))
}

/// A key of as many as there are, and a value.
fn pair_of_few(n: u64) -> (u64, u64) {
    // What keys there are follows from the largest number in a share; a constant keeps both programs alike.
    (u64::hash(n) % KEYS, n)
}

const KEYS: u64 = 20_000_000 / RECORDS_A_KEY;

/// A row of the left side: nine of ten keys are on the right side too.
fn left_row(n: u64) -> (u64, u64) {
    (u64::hash(n) % (KEYS * 10 / 9), n)
}

fn right_row(n: u64) -> (u64, u64) {
    (n, n ^ 0x55)
}

fn ours(name: &str, records: u64) -> io::Result<()> {
    let config = Config {
        executors: Some(2),
        progress: false,
        ..Config::default()
    };
    measure::child(|| {
        let sums = updraft::run(config, |env| run(env, name, records));
        sums.map(answer).map_err(io::Error::other)
    })
}

fn run(env: &mut Env, name: &str, records: u64) -> Result<Sums, updraft::Error> {
    let job: Job<Vec<Sums>> = match name {
        "exchange" => generate(records, |n| n)
            .exchange_by_hash()
            .aggregate(|of| (of.count(), of.sum(|n| n)))
            .collect(),
        "reduce" => generate(records, pair_of_few)
            .reduce_by_key(u64::wrapping_add)
            .fold(
                (0, 0),
                |sums: &mut Sums, (_, value)| add(sums, (1, value)),
                add,
            )
            .collect(),
        "join" => generate(records, left_row)
            .join(generate(records / LEFT_ROWS, right_row))
            .fold(
                (0, 0),
                |sums: &mut Sums, (_, (left, right))| add(sums, (1, left.wrapping_mul(right))),
                add,
            )
            .collect(),
        _ => {
            let reason = format!("no such question: {name}");
            return Err(updraft::Error::Config { reason });
        }
    };
    Ok(env.run(&job)?.first().copied().unwrap_or_default())
}

fn add(sums: &mut Sums, more: Sums) {
    sums.0 += more.0;
    sums.1 = sums.1.wrapping_add(more.1);
}

fn theirs(name: &str, records: u64) -> io::Result<()> {
    measure::child(|| {
        let sums = match name {
            "exchange" => timely::exchange(records),
            "reduce" => timely::reduce(records, pair_of_few),
            "join" => timely::join(records, left_row, records / LEFT_ROWS, right_row),
            _ => Err(unknown(name)),
        };
        sums.map(answer)
    })
}

fn answer((number, sum): Sums) -> String {
    format!("number={number} sum={sum}")
}

fn compare(question: &Question, records: u64, rounds: usize) -> io::Result<()> {
    let (name, number) = (question.name, records.to_string());
    let case = |program: &str| Case::of_this_program(program, &[program, name, &number]);
    let report = measure::measure(vec![case("ours")?, case("timely")?], rounds)?;
    println!("{}", measure::machine());
    println!("{name} of {records} records, {}", report.answer());
    let speed = |program: &str| report.spread(program, |run| records as f64 / 1e6 / run.seconds);
    println!("ours    {} M records/s", speed("ours"));
    println!("timely  {} M records/s", speed("timely"));
    let ratio: Spread = report.ratio("timely", "ours", |run| run.seconds);
    let verdict = if ratio.median >= question.at_least {
        "met"
    } else {
        "missed"
    };
    println!(
        "speed ours/timely {ratio} target >= {:.2} {verdict}\n",
        question.at_least
    );
    Ok(())
}
