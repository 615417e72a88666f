//! How fast words are counted, in threads and in processes, beside a program written by hand for two
//! threads and beside timely.
//!
//! Every case is a process of its own, and the cases take turns. `cargo bench --bench wordcount`; with
//! `-- --smoke`, a small text and one round.

#[path = "../tests/support/build.rs"]
mod build;
mod support;

use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use support::{
    answer::Answer,
    hand_written,
    measure::{self, Case},
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
    let arguments: Vec<String> = env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["hand-written", path] => measure::child(|| hand_written::count(Path::new(path))),
        ["timely", path] => measure::child(|| timely_peer::count(Path::new(path))),
        ["ours", path] => ours(Path::new(path)),
        ["processes", path, transport] => in_processes(path, transport),
        ["--smoke"] => compare(4 * MIB, 1),
        [] => compare(TEXT_BYTES, ROUNDS),
        _ => Err(io::Error::other(format!("no such case: {arguments:?}"))),
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

/// Our word count as two processes that the launcher starts: the time of the slower one, and the memory
/// of both.
fn in_processes(path: &str, transport: &str) -> io::Result<()> {
    let output = Command::new(launcher()?)
        .args(["run", "-n", "2", "--transport", transport, "--"])
        .arg(env::current_exe()?)
        .args(["ours", path])
        .output()?;
    io::stderr().write_all(&output.stderr)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let values = |key: &str| -> Vec<String> {
        let lines = text
            .lines()
            .filter_map(|line| line.split_once("] ")?.1.strip_prefix(key));
        lines.map(str::to_owned).collect()
    };
    let numbers = |key: &str| {
        values(key)
            .into_iter()
            .filter_map(|text| text.parse::<f64>().ok())
    };
    let answer = values("answer=")
        .pop()
        .ok_or_else(|| io::Error::other("the workers gave no answer"))?;
    let (seconds, peak_bytes) = (
        numbers("seconds=").fold(0.0, f64::max),
        numbers("peak_bytes=").sum::<f64>(),
    );
    measure::print_run(seconds, peak_bytes as u64, answer);
    Ok(())
}

/// The same case with a limit on its data memory.
fn bounded(mut case: Case) -> Case {
    case.command.env("UPDRAFT_MEMORY", MEMORY_BYTES.to_string());
    case
}

/// The command `updraft`, built as this bench is.
fn launcher() -> io::Result<PathBuf> {
    let bench = env::current_exe()?;
    let folder = bench
        .ancestors()
        .nth(2)
        .ok_or_else(|| io::Error::other("a bench is in target/PROFILE/deps"))?;
    Ok(folder.join("updraft"))
}

fn compare(bytes: u64, rounds: usize) -> io::Result<()> {
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
    let cases = vec![
        case("hand-written", &["hand-written", path])?,
        case("updraft threads", &["ours", path])?,
        case("updraft processes", &["processes", path, "auto"])?,
        case("updraft tcp", &["processes", path, "tcp"])?,
        bounded(case("updraft limited", &["ours", path])?),
        case("timely", &["timely", path])?,
    ];
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
        println!("{}", report.ratio_line(ours, "hand-written", 1.5));
        println!("{}", report.ratio_line(ours, "timely", 1.0));
    }
    Ok(())
}
