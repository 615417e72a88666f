//! Joins two tables: lines of text whose columns commas separate. Rows are paired by the first column; where that is
//! empty, it is null, which is like no other.
//!
//! Without files it generates two tables: their keys are drawn from as many as `--keys` says, a tenth of them null on
//! either side. `--skew` has so many in a hundred rows of the left table draw one key. With `--memory 32M`, what that
//! has no room for is kept on disk.

mod input;
#[path = "program/mod.rs"]
mod program;
mod random;

use std::{
    collections::HashMap,
    fmt,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::{Parser, ValueEnum};
use input::{cannot_read, cannot_write, part_files, settle};
use program::Room;
use random::Random;
use updraft::{
    Error,
    dataflow::{Narrow, Source, lines_of},
    prelude::*,
};

/// Joins two tables of comma-separated columns by the first of them.
#[derive(Debug, Parser)]
struct Arguments {
    /// The left and the right table: files, or folders with part files; without them, two are generated.
    #[arg(num_args = 2, value_names = ["LEFT", "RIGHT"])]
    tables: Vec<PathBuf>,

    /// Which rows are given: pairs, and rows of a side without a partner.
    #[arg(long, value_enum, default_value_t = How::Inner)]
    how: How,

    /// By which means partners are found.
    #[arg(long, value_enum, default_value_t = By::Hash)]
    by: By,

    /// Write the rows to part files in this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Rows to generate on the left side; on the right, one for ten of them.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    rows: u64,

    /// Keys that they are drawn from (default: as many as there are rows on the right side).
    #[arg(long, value_name = "N")]
    keys: Option<u64>,

    /// In a hundred rows of the left side, so many have the same key.
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=100))]
    skew: u64,

    /// What the generated rows follow from.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,

    /// Compares the result with that of a plain loop.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    room: Room,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    /// Pairs.
    Inner,
    /// Pairs, and rows of the left side alone.
    Left,
    /// Pairs, and rows of the right side alone.
    Right,
    /// Pairs, and rows of either side alone.
    Full,
    /// Rows of the left side that have a partner.
    Semi,
    /// Rows of the left side that have none.
    Anti,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// The right side is kept by key, as far as there is room.
    Hash,
    /// Both sides are put in order.
    Merging,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    updraft::exit(updraft::run(arguments.room.config(), |env| {
        join(env, &arguments)
    }))
}

/// Joins in a folder that every worker of the job finds, and that is gone at the end.
fn join(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let Arguments { rows, seed, .. } = arguments;
    let folder = std::env::temp_dir().join(format!("updraft-join-{rows}-{seed}"));
    let result = join_in(env, arguments, &folder);
    if env.worker() == 0 && folder.exists() {
        let removed = fs::remove_dir_all(&folder).map_err(cannot_write(&folder));
        return result.and(removed.map_err(Error::from));
    }
    result
}

fn join_in(env: &mut Env, arguments: &Arguments, folder: &Path) -> Result<(), Error> {
    let (left, right) = match &arguments.tables[..] {
        [left, right] => (left.clone(), right.clone()),
        _ => generate(env, arguments, folder)?,
    };
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => folder.join("joined"),
    };
    let (left, right) = (part_files(&left)?, part_files(&right)?);
    let start = Instant::now();
    let job = job(arguments.how, arguments.by, (&left, &right), &out)?;
    env.run(&job)?;
    settle(env)?;
    let seconds = start.elapsed().as_secs_f64();
    if env.worker() != 0 {
        return Ok(());
    }
    let found = Rows::of_files(&part_files(&out)?)?;
    println!("joined in {seconds:.3} s: {found}");
    if arguments.check {
        let expected = plain_loop(arguments.how, &left, &right)?;
        if found != expected {
            let reason = format!("a plain loop gives {expected}");
            return Err(Error::Config { reason });
        }
        println!("a plain loop gives the same");
    }
    Ok(())
}

/// The job that writes the rows of a join as lines.
fn job(
    how: How,
    by: By,
    (left, right): (&[PathBuf], &[PathBuf]),
    out: &Path,
) -> Result<Job<()>, Error> {
    let (left, right) = (rows(left)?, rows(right)?);
    macro_rules! job {
        ($join:ident, $line:expr) => {{
            let joined = left.$join(right);
            match by {
                By::Hash => joined.map($line).write_text(out),
                By::Merging => joined.by_merging().map($line).write_text(out),
            }
        }};
    }
    Ok(match how {
        How::Inner => job!(join, |(key, (left, right))| line(
            key,
            Some(left),
            Some(right)
        )),
        How::Left => job!(left_join, |(key, (left, right))| line(
            key,
            Some(left),
            right
        )),
        How::Right => job!(right_join, |(key, (left, right))| line(
            key,
            left,
            Some(right)
        )),
        How::Full => job!(full_join, |(key, (left, right))| line(key, left, right)),
        How::Semi => job!(semi_join, |(key, left)| line(key, Some(left), None)),
        How::Anti => job!(anti_join, |(key, left)| line(key, Some(left), None)),
    })
}

/// A row: the key, if there is one, and the other columns.
type Row = (Option<String>, String);

/// The rows of some files.
fn rows(
    files: &[PathBuf],
) -> Result<TSet<impl Source<Out = String>, impl Narrow<String, Out = Row>>, Error> {
    Ok(lines_of(files.to_vec())?.flat_map(|line, out| out.push(columns(line))))
}

/// The key of a line, and the rest.
fn columns(line: &str) -> (Option<&str>, &str) {
    let (key, rest) = line.split_once(',').unwrap_or((line, ""));
    ((!key.is_empty()).then_some(key), rest)
}

/// What is written of a row of the result. A side that is not there has no columns.
fn line(key: Option<&str>, left: Option<&str>, right: Option<&str>) -> String {
    let mut line = key.unwrap_or_default().to_owned();
    for columns in [left, right].into_iter().flatten() {
        line.push(',');
        line.push_str(columns);
    }
    line
}

/// Rows made from one number of the source.
const AT_ONCE: u64 = 1024;

/// Writes two tables to part files in folders of a folder.
fn generate(
    env: &mut Env,
    arguments: &Arguments,
    folder: &Path,
) -> Result<(PathBuf, PathBuf), Error> {
    let (left, right) = (folder.join("left"), folder.join("right"));
    let (seed, number) = (arguments.seed, arguments.rows);
    let keys = arguments.keys.unwrap_or(number / 10).max(1);
    let tables = [
        (&left, "l", number, arguments.skew),
        (&right, "r", number / 10, 0),
    ];
    for (table, name, number, skew) in tables {
        let job = env
            .collection((0..number.div_ceil(AT_ONCE)).collect())
            .flat_map(move |block, out| {
                for row in block * AT_ONCE..number.min((block + 1) * AT_ONCE) {
                    let mut random = Random::at(seed ^ number, 4 * row);
                    let key = match random.below(100) {
                        percent if percent < skew => 0,
                        _ => random.below(keys),
                    };
                    let key = if random.below(10) == 0 {
                        String::new()
                    } else {
                        format!("k{key:08}")
                    };
                    out.push(format!("{key},{name}{row:09},{:.6}", random.unit()));
                }
            })
            .write_text(table);
        env.run(&job)?;
    }
    settle(env)?;
    Ok((left, right))
}

/// How many rows there are, and a sum over them that does not depend on their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Rows {
    number: u64,
    checksum: u64,
}

impl Rows {
    fn add(&mut self, line: &str) {
        self.number += 1;
        self.checksum += u64::from(crc32fast::hash(line.as_bytes()));
    }

    fn of_files(files: &[PathBuf]) -> Result<Self, Error> {
        let mut rows = Self::default();
        for path in files {
            each_line(path, |line| rows.add(line))?;
        }
        Ok(rows)
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, checksum {:x}", self.number, self.checksum)
    }
}

fn each_line(path: &Path, mut take: impl FnMut(&str)) -> Result<(), Error> {
    let file = File::open(path).map_err(cannot_read(path))?;
    for line in BufReader::with_capacity(1 << 18, file).lines() {
        take(&line.map_err(cannot_read(path))?);
    }
    Ok(())
}

/// The result of the same join, made by a loop over one side and a map of the other.
fn plain_loop(how: How, left: &[PathBuf], right: &[PathBuf]) -> Result<Rows, Error> {
    let mut partners = HashMap::<String, (Vec<String>, bool)>::new();
    let mut rows = Rows::default();
    let right_alone = matches!(how, How::Right | How::Full);
    for path in right {
        each_line(path, |text| match columns(text) {
            (Some(key), rest) => {
                let (rows, _) = partners.entry(key.to_owned()).or_default();
                rows.push(rest.to_owned());
            }
            (None, rest) if right_alone => rows.add(&line(None, None, Some(rest))),
            _ => {}
        })?;
    }
    for path in left {
        each_line(path, |text| {
            let (key, rest) = columns(text);
            match key.and_then(|key| partners.get_mut(key)) {
                Some((others, is_found)) => {
                    *is_found = true;
                    match how {
                        How::Semi => rows.add(&line(key, Some(rest), None)),
                        How::Anti => {}
                        _ => {
                            for other in others {
                                rows.add(&line(key, Some(rest), Some(other)));
                            }
                        }
                    }
                }
                None if matches!(how, How::Left | How::Full | How::Anti) => {
                    rows.add(&line(key, Some(rest), None));
                }
                None => {}
            }
        })?;
    }
    if right_alone {
        let alone = partners.iter().filter(|(_, (_, is_found))| !is_found);
        for (key, (others, _)) in alone {
            for other in others {
                rows.add(&line(Some(key), None, Some(other)));
            }
        }
    }
    Ok(rows)
}
