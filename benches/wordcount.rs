//! How fast words are counted, in threads and in processes, beside a program written by hand for two
//! threads and beside timely.
//!
//! Every case is a process of its own, and the cases take turns. `cargo bench --bench wordcount`; with
//! `-- --smoke`, a small text and one round; with `-- --json FILE`, what `updraft bench compare` reads. DuckDB, Polars and
//! Spark take part if a Python has them, which `--peer DIR` may name.

#[path = "../tests/support/build.rs"]
mod build;
mod support;

use std::{io, path::Path};

use support::{
    answer::Answer,
    hand_written,
    measure::{self, Case},
    options::{Options, Rows},
    timely_peer, zipf,
};
use updraft::{Config, dataflow::lines_of};

const MIB: u64 = 1 << 20;
const TEXT_BYTES: u64 = 256 * MIB;
/// The limit of the case that has one.
const MEMORY_BYTES: u64 = 320 * MIB;
const SEED: u64 = 1;
const ROUNDS: usize = 7;

fn main() -> io::Result<()> {
    let options = Options::read()?;
    match options.words()[..] {
        ["hand-written", path] => measure::child(|| hand_written::count(Path::new(path))),
        ["timely", path] => measure::child(|| timely_peer::count(Path::new(path))),
        ["ours", path] => ours(Path::new(path)),
        ["processes", path, transport] => measure::in_processes(transport, &["ours", path]),
        [] if options.smoke => compare(&options, 4 * MIB, 1),
        [] => compare(&options, TEXT_BYTES, ROUNDS),
        ref words => Err(io::Error::other(format!("no such case: {words:?}"))),
    }
}

/// Our word count: what a user would write, reduced once more to three numbers that can be compared.
fn ours(path: &Path) -> io::Result<()> {
    let config = Config {
        progress: false,
        ..Config::default()
    };
    measure::child(|| {
        let answer = updraft::run(config, |env| {
            let counts = lines_of(vec![path.to_owned()])?
                .flat_map(|line, out| {
                    for word in line.split_whitespace() {
                        out.push((word, 1u64));
                    }
                })
                .reduce_by_key(|a, b| a + b)
                .map(|(_, count)| ((), (1u64, count, count)))
                .reduce_by_key(|a, b| (a.0 + b.0, a.1 + b.1, a.2.max(b.2)))
                .collect();
            env.run(&counts)
        });
        let counts = answer.map_err(io::Error::other)?;
        let (distinct, total, top) = counts.first().map_or((0, 0, 0), |((), counts)| *counts);
        Ok(Answer {
            distinct,
            total,
            top,
        })
    })
}

/// The same case with a limit on its data memory.
fn bounded(mut case: Case) -> Case {
    case.command.env("UPDRAFT_MEMORY", MEMORY_BYTES.to_string());
    case
}

fn compare(options: &Options, bytes: u64, rounds: usize) -> io::Result<()> {
    let built = build::build().args(["--bin", "updraft"]).status()?;
    if !built.success() {
        return Err(io::Error::other("the command updraft could not be built"));
    }
    let folder = tempfile::tempdir()?;
    let text = folder.path().join("text");
    zipf::write(&text, bytes, SEED)?;
    let path = text
        .to_str()
        .ok_or_else(|| io::Error::other("the folder's name is not text"))?;
    let case = |name: &str, arguments: &[&str]| Case::of_this_program(name, arguments);
    let mut cases = vec![
        case("hand-written", &["hand-written", path])?,
        case("updraft threads", &["ours", path])?,
        case("updraft processes", &["processes", path, "auto"])?,
        case("updraft tcp", &["processes", path, "tcp"])?,
        bounded(case("updraft limited", &["ours", path])?),
        case("timely", &["timely", path])?,
    ];
    let mut peers = vec!["timely"];
    let mut rows = Rows::default();
    for (name, module, package) in [
        ("DuckDB", "duckdb", "duckdb"),
        ("Polars", "polars", "polars"),
        ("Spark", "pyspark", "pyspark, with a Java"),
    ] {
        if let Some(python) = options.python(module) {
            let system = module.trim_start_matches("py");
            cases.push(Case::of_python(name, &python, &[system, "wordcount", path]));
            peers.push(name);
        } else {
            let why = format!("no {name} (PyPI: {package})");
            println!("{why}");
            rows.absent(["P14", "systems", name], &why);
        }
    }
    let report = measure::measure(cases, rounds)?;
    println!("{}", measure::machine());
    println!("{} MiB of Zipf text, {}", bytes / MIB, report.answer());
    print!("{}", report.table(bytes));
    let peak = report.spread("updraft limited", |run| {
        run.peak_bytes as f64 / MEMORY_BYTES as f64
    });
    println!(
        "updraft limited: peak memory / the {} MiB of its ledger {peak}",
        MEMORY_BYTES / MIB
    );
    for ours in ["updraft threads", "updraft processes", "updraft tcp"] {
        println!("{}", report.ratio_line(ours, "hand-written", 1.15));
        for peer in &peers {
            println!("{}", report.ratio_line(ours, peer, 0.5));
            rows.cases(["P14", "systems", ours], &report, [ours, peer]);
        }
        rows.cases(
            ["P14", "hand-written", ours],
            &report,
            [ours, "hand-written"],
        );
    }
    rows.write(options)
}
