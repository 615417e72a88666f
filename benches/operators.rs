//! How fast records are exchanged, reduced by key, joined and grouped by two executors of one process, or of two, beside
//! timely with two workers; the same on operators that a program drives, and on tasks that are written by hand; and tables of
//! CSV files beside DuckDB and Polars.
//!
//! Every case is a process of its own, and the cases take turns. `cargo bench --bench operators`; with `-- --smoke`,
//! few records and one round. With `-- exchange`, `-- reduce` and so on, that question alone; with `-- --json FILE`, what
//! `updraft bench compare` reads; with `--peer DIR`, the Python environment in which DuckDB or Polars is.

#[path = "../tests/support/build.rs"]
mod build;
mod support;

use std::{io, ops::Range, path::Path};

use hashbrown::HashMap;
use support::{
    measure::{self, Case, Report, Spread},
    options::{Options, Rows},
    tables,
    timely_operators::{self as timely, Place, Sums},
};
use updraft::{
    Config, Env,
    collectives::op::Sum,
    dataflow::{
        Encode, GraphBuilder, Job, Key, One, Operator, Progress, Record, Sent, generate, lines_of,
    },
};

/// What is asked: how many records, and how much faster than another program ours should be.
struct Question {
    name: &'static str,
    records: u64,
    /// What it is compared with, and the words by which these programs are told.
    against: &'static [(&'static str, &'static str)],
    /// The words by which ours is told.
    ours: &'static str,
    target: &'static str,
    /// The least speed, against theirs.
    at_least: f64,
}

/// What a TSet is compared with: the faster of these.
const BARE: &[(&str, &str)] = &[("operator", "operator"), ("tasks", "tasks")];
const TIMELY: &[(&str, &str)] = &[("timely", "timely")];
const SYSTEMS: &[(&str, &str)] = &[
    ("DuckDB", "duckdb"),
    ("Polars", "polars"),
    ("Spark", "pyspark"),
];

impl Question {
    /// Those that ours is judged by: all, or the fastest of those that are ways to write the same.
    fn judged<'r>(&self, report: &Report, rivals: &'r [String]) -> &'r [String] {
        if self.against != BARE {
            return rivals;
        }
        let seconds = |rival: &String| report.spread(rival, |run| run.seconds).median;
        let fastest = (0..rivals.len())
            .min_by(|&one, &other| seconds(&rivals[one]).total_cmp(&seconds(&rivals[other])));
        fastest.map_or(rivals, |fastest| &rivals[fastest..=fastest])
    }
}

const QUESTIONS: [Question; 8] = [
    Question {
        name: "exchange",
        records: 100_000_000,
        against: TIMELY,
        ours: "ours",
        target: "P11",
        at_least: 1.5,
    },
    Question {
        name: "exchange-processes",
        records: 50_000_000,
        against: &[("timely", "timely-processes")],
        ours: "processes",
        target: "P11",
        at_least: 3.0,
    },
    Question {
        name: "reduce",
        records: 20_000_000,
        against: TIMELY,
        ours: "ours",
        target: "P13",
        at_least: 2.0,
    },
    Question {
        name: "join",
        records: 10_000_000,
        against: TIMELY,
        ours: "ours",
        target: "P16",
        at_least: 1.0,
    },
    Question {
        name: "csv-join",
        records: 10_000_000,
        against: SYSTEMS,
        ours: "ours",
        target: "P16",
        at_least: 2.0,
    },
    Question {
        name: "csv-group",
        records: 10_000_000,
        against: SYSTEMS,
        ours: "ours",
        target: "P16",
        at_least: 2.0,
    },
    // Ours is at least as fast as what one would write without it.
    Question {
        name: "tset-exchange",
        records: 50_000_000,
        against: BARE,
        ours: "ours",
        target: "P18",
        at_least: 1.0 / 1.05,
    },
    Question {
        name: "tset-reduce",
        records: 10_000_000,
        against: BARE,
        ours: "ours",
        target: "P18",
        at_least: 1.0 / 1.05,
    },
];
/// Records in a question, to one of those when it is asked for a moment.
const SMOKE: u64 = 1000;
const ROUNDS: usize = 7;

/// Keys in a reduce, one for so many records.
const RECORDS_A_KEY: u64 = 20;
/// Rows on the left side of a join, to one on the right.
const LEFT_ROWS: u64 = 10;

fn main() -> io::Result<()> {
    let options = Options::read()?;
    match options.words()[..] {
        ["ours", name, records] => ours(name, &[], parse(records)?),
        ["ours", name, records, left, right] => ours(name, &[left, right], parse(records)?),
        ["processes", name, records] => measure::in_processes("shm", &["ours", name, records]),
        ["tasks", name, records] => tasks(name, parse(records)?),
        ["operator", name, records] => operator(name, parse(records)?),
        ["timely", name, records] => theirs(Place::Threads, name, parse(records)?),
        ["timely-processes", name, records] => timely_processes(name, records),
        ["timely-process", index, addresses, name, records] => {
            theirs(Place::of_words(index, addresses)?, name, parse(records)?)
        }
        [] => compare_all(&options, |question| options.wants(question.target)),
        [name] if QUESTIONS.iter().any(|question| question.name == name) => {
            compare_all(&options, |question| question.name == name)
        }
        ref words => Err(io::Error::other(format!("no such case: {words:?}"))),
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

/// What a question is about, without where that runs.
fn work_of(name: &str) -> &str {
    let name = name.trim_start_matches("tset-");
    name.trim_end_matches("-processes")
}

fn config() -> Config {
    Config {
        executors: Some(2),
        progress: false,
        ..Config::default()
    }
}

fn ours(name: &str, files: &[&str], records: u64) -> io::Result<()> {
    measure::child(|| {
        let answer = updraft::run(config(), |env| match files {
            [left, right] => on_tables(env, name, Path::new(left), Path::new(right)),
            _ => run(env, name, records).map(answer),
        });
        answer.map_err(io::Error::other)
    })
}

fn run(env: &mut Env, name: &str, records: u64) -> Result<Sums, updraft::Error> {
    let job: Job<Vec<Sums>> = match work_of(name) {
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
        _ => return Err(no_such(name)),
    };
    Ok(env.run(&job)?.first().copied().unwrap_or_default())
}

fn no_such(name: &str) -> updraft::Error {
    let reason = format!("no such question: {name}");
    updraft::Error::Config { reason }
}

fn add(sums: &mut Sums, more: Sums) {
    sums.0 += more.0;
    sums.1 = sums.1.wrapping_add(more.1);
}

/// Joins or groups the tables of two files.
fn on_tables(
    env: &mut Env,
    name: &str,
    left: &Path,
    right: &Path,
) -> Result<String, updraft::Error> {
    let left = lines_of(vec![left.to_owned()])?.map(|line| {
        let [id, group, value] = fields(line);
        (id, (group, value))
    });
    let sums = |one: Sums, (sum, rows): Sums| (one.0 + sum, one.1 + rows);
    let total = |all: &mut (u64, u64, u64), (_, (sum, rows)): (u64, Sums)| {
        *all = (all.0 + 1, all.1 + sum, all.2 + rows);
    };
    let merge = |all: &mut (u64, u64, u64), more: (u64, u64, u64)| {
        *all = (all.0 + more.0, all.1 + more.1, all.2 + more.2);
    };
    let job = match name {
        "csv-group" => left
            .map(|(_, (group, value))| (group, (value, 1u64)))
            .reduce_by_key(sums)
            .fold((0, 0, 0), total, merge)
            .first(),
        "csv-join" => {
            let right = lines_of(vec![right.to_owned()])?.map(|line| {
                let [id, value, _] = fields(line);
                (id, value)
            });
            left.join(right)
                .map(|(_, ((group, left), right))| (group, (left * right, 1u64)))
                .reduce_by_key(sums)
                .fold((0, 0, 0), total, merge)
                .first()
        }
        _ => return Err(no_such(name)),
    };
    let (groups, sum, rows) = env.run(&job)?.unwrap_or_default();
    Ok(format!("groups={groups} sum={sum} rows={rows}"))
}

/// The numbers in the first fields of a line, which has nothing else.
fn fields(line: &str) -> [u64; 3] {
    let (mut fields, mut field) = ([0u64; 3], 0);
    for byte in line.bytes() {
        match (byte, fields.get_mut(field)) {
            (b',', _) => field += 1,
            (digit, Some(number)) => {
                *number = number.wrapping_mul(10).wrapping_add(u64::from(digit & 0xf));
            }
            (_, None) => break,
        }
    }
    fields
}

/// The same on tasks of the program's own, one that makes the records and one that takes them.
fn tasks(name: &str, records: u64) -> io::Result<()> {
    measure::child(|| {
        let sums = updraft::run(config(), |env| {
            let job = match work_of(name) {
                "exchange" => exchange_by_tasks(records)?,
                "reduce" => reduce_by_tasks(records)?,
                _ => return Err(no_such(name)),
            };
            Ok(env.run(&job)?.first().copied().unwrap_or_default())
        });
        sums.map(answer).map_err(io::Error::other)
    })
}

/// The same on an operator that every rank drives itself, without a graph.
fn operator(name: &str, records: u64) -> io::Result<()> {
    measure::child(|| {
        let name = name.to_owned();
        let sums = updraft::bsp(config(), move |world| {
            let share = part(world.rank() as u64, world.size() as u64, records);
            let sums = match work_of(&name) {
                "exchange" => {
                    let pass = |numbers: Sent<u64>| numbers.exchange_by_hash();
                    let mut pass = Operator::new(world, pass)?;
                    drive(&mut pass, share, |sums, n| add(sums, (1, n)))?
                }
                "reduce" => {
                    let reduce = |pairs: Sent<(u64, u64)>| pairs.reduce_by_key(u64::wrapping_add);
                    let mut reduce = Operator::new(world, reduce)?;
                    let pairs = share.map(pair_of_few);
                    drive(&mut reduce, pairs, |sums, (_, value)| add(sums, (1, value)))?
                }
                _ => return Err(no_such(&name)),
            };
            let mut all = <[u64; 2]>::from(sums);
            world.all_reduce(&mut all, Sum).wait()?;
            Ok(Sums::from(all))
        });
        let first = sums.map(|sums| sums.first().copied().unwrap_or_default());
        first.map(answer).map_err(io::Error::other)
    })
}

/// Records that are sent before results are looked for.
const SENT_A_TURN: usize = 4096;

/// Sends records to an operator, and adds up its results.
fn drive<T, U>(
    operator: &mut Operator<One<T>, U>,
    records: impl Iterator<Item = T>,
    mut take: impl FnMut(&mut Sums, U::View<'_>),
) -> Result<Sums, updraft::Error>
where
    T: Record + Encode<Record = T>,
    U: Record,
{
    let mut sums = Sums::default();
    for (index, record) in records.enumerate() {
        operator.send(&record)?;
        if index % SENT_A_TURN == 0 {
            while let Some(result) = operator.poll()? {
                take(&mut sums, result);
            }
        }
    }
    operator.finish();
    while let Some(result) = operator.poll()? {
        take(&mut sums, result);
    }
    Ok(sums)
}

/// The numbers of an instance.
fn share(place: &updraft::dataflow::Place, records: u64) -> Range<u64> {
    part(place.instance.into(), place.instances.into(), records)
}

fn part(instance: u64, instances: u64, records: u64) -> Range<u64> {
    records * instance / instances..records * (instance + 1) / instances
}

fn exchange_by_tasks(records: u64) -> Result<Job<Vec<Sums>>, updraft::Error> {
    let mut graph = GraphBuilder::new();
    let mut make = graph.task_on_each_rank("make", move |place| share(place, records));
    let numbers = make.output::<u64>("numbers");
    make.produce(move |left, out| {
        while !out.is_full() {
            match left.next() {
                Some(n) => out.push(numbers, n),
                None => return Progress::Done,
            }
        }
        Progress::Made
    });
    let make = make.done();
    let mut sum = graph.task_on_each_rank("sum", |_| (0, 0));
    let sums = sum.output::<Sums>("sums");
    let all = make.output(numbers).exchange_by_hash();
    sum.input("numbers", all, |sums, n, _| add(sums, (1, n)));
    sum.at_end(move |found, out| {
        out.push(sums, *found);
        true
    });
    let sum = sum.done();
    let total = sum.output(sums).gather().fold((0, 0), add, add);
    Ok(graph.job_with(total.collect())?)
}

fn reduce_by_tasks(records: u64) -> Result<Job<Vec<Sums>>, updraft::Error> {
    let mut graph = GraphBuilder::new();
    let start = move |place: &updraft::dataflow::Place| share(place, records).map(pair_of_few);
    let mut make = graph.task_on_each_rank("make", start);
    let pairs = make.output::<(u64, u64)>("pairs");
    make.produce(move |left, out| {
        while !out.is_full() {
            match left.next() {
                Some(pair) => out.push(pairs, pair),
                None => return Progress::Done,
            }
        }
        Progress::Made
    });
    let make = make.done();
    let mut sum = graph.task_on_each_rank("sum", |_| HashMap::<u64, u64>::new());
    let sums = sum.output::<Sums>("sums");
    let all = make.output(pairs).exchange_by_key();
    sum.input("pairs", all, |table, (key, value), _| {
        let sum = table.entry(key).or_default();
        *sum = sum.wrapping_add(value);
    });
    sum.at_end(move |table, out| {
        let sum = table
            .values()
            .fold(0, |sum: u64, value| sum.wrapping_add(*value));
        out.push(sums, (table.len() as u64, sum));
        true
    });
    let sum = sum.done();
    let total = sum.output(sums).gather().fold((0, 0), add, add);
    Ok(graph.job_with(total.collect())?)
}

fn theirs(place: Place, name: &str, records: u64) -> io::Result<()> {
    let (sums, time) = match work_of(name) {
        "exchange" => timely::exchange(place, records),
        "reduce" => timely::reduce(place, records, pair_of_few),
        "join" => timely::join(place, records, left_row, records / LEFT_ROWS, right_row),
        _ => Err(unknown(name)),
    }?;
    measure::print_run(time.as_secs_f64(), measure::peak_bytes()?, answer(sums));
    Ok(())
}

/// Timely in two processes: each tells its part of the answer.
fn timely_processes(name: &str, records: &str) -> io::Result<()> {
    let mut lines = Place::of_processes(&[name, records])?;
    let parts = lines.iter().filter_map(|line| {
        let (number, sum) = line.strip_prefix("answer=number=")?.split_once(" sum=")?;
        Some((number.parse().ok()?, sum.parse().ok()?))
    });
    let sums = parts.fold((0, 0), |mut sums, part| {
        add(&mut sums, part);
        sums
    });
    lines.push(format!("answer={}", answer(sums)));
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    measure::print_together(&lines)
}

fn answer((number, sum): Sums) -> String {
    format!("number={number} sum={sum}")
}

fn compare_all(options: &Options, asked: impl Fn(&Question) -> bool) -> io::Result<()> {
    let built = build::build().args(["--bin", "updraft"]).status()?;
    if !built.success() {
        return Err(io::Error::other("the command updraft could not be built"));
    }
    println!("{}\n", measure::machine());
    let (fewer, rounds) = if options.smoke {
        (SMOKE, 1)
    } else {
        (1, ROUNDS)
    };
    let mut rows = Rows::default();
    for question in QUESTIONS.iter().filter(|question| asked(question)) {
        compare(
            options,
            question,
            question.records / fewer,
            rounds,
            &mut rows,
        )?;
    }
    rows.write(options)
}

fn compare(
    options: &Options,
    question: &Question,
    records: u64,
    rounds: usize,
    rows: &mut Rows,
) -> io::Result<()> {
    let (name, number) = (question.name, records.to_string());
    let folder = tempfile::tempdir()?;
    let files =
        ["left.csv", "right.csv"].map(|name| folder.path().join(name).display().to_string());
    let mut words = vec![question.ours, name, &number];
    if let Some(work) = name.strip_prefix("csv-") {
        tables::write(Path::new(&files[0]), Path::new(&files[1]), records)?;
        words.extend(files.iter().map(String::as_str));
        println!("{work} of two tables as CSV, of {records} rows and a tenth of that");
    }
    let mut cases = vec![Case::of_this_program("ours", &words)?];
    for (rival, words) in question.against {
        let Some(work) = name.strip_prefix("csv-") else {
            cases.push(Case::of_this_program(rival, &[words, name, &number])?);
            continue;
        };
        match options.python(words) {
            Some(python) => {
                let system = words.trim_start_matches("py");
                let arguments = [system, work, &files[0], &files[1]];
                cases.push(Case::of_python(rival, &python, &arguments));
            }
            None => {
                let why = format!("no {rival} (PyPI: {words})");
                println!("{why}");
                rows.absent([question.target, name, rival], &why);
            }
        }
    }
    let rivals: Vec<String> = cases.iter().skip(1).map(|case| case.name.clone()).collect();
    let report = measure::measure(cases, rounds)?;
    println!("{name} of {records} records, {}", report.answer());
    for program in ["ours"]
        .into_iter()
        .chain(rivals.iter().map(String::as_str))
    {
        let speed = report.spread(program, |run| records as f64 / 1e6 / run.seconds);
        println!("{program:<9}{speed} M records/s");
    }
    for rival in &rivals {
        let ratio: Spread = report.ratio(rival, "ours", |run| run.seconds);
        let verdict = if ratio.median >= question.at_least {
            "met"
        } else {
            "missed"
        };
        println!(
            "speed ours/{rival} {ratio} target >= {:.2} {verdict}",
            question.at_least
        );
    }
    for rival in question.judged(&report, &rivals) {
        rows.cases([question.target, name, name], &report, ["ours", rival]);
    }
    println!();
    Ok(())
}
