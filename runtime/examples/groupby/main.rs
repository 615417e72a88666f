//! The ten questions of the group-by set of H2O.ai's db-benchmark, on its data set G1: nine columns, of which `id1`,
//! `id2`, `id4` and `id5` have as many values as `--groups` says, `id3` and `id6` so many times fewer than there are
//! rows, `v1` is from 1 to 5, `v2` from 1 to 15, and `v3` from 0 to 100 with six decimals.
//!
//! Each question reads the columns that it needs as they are generated, so its time is that of both. What it gives is
//! summed up column by column, as the benchmark does to see whether systems agree. With `--memory 64M`, what that has
//! no room for is kept on disk.
//!
//! With `--input FILE --by COLUMN --of COLUMN` it describes a column of a CSV file for each value of another, such as how late
//! the flights of each carrier are: `data.sh` fetches those.

mod file;
#[path = "../input/mod.rs"]
mod input;
mod plain;
#[path = "../program/mod.rs"]
mod program;
mod table;

#[path = "../random/mod.rs"]
mod random;

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use program::Room;
use table::Table;
use updraft::{
    Error,
    dataflow::{Narrow, Source, generate},
    prelude::*,
};

/// Answers the ten group-by questions of the db-benchmark on generated data, or describes a column of a file by another.
#[derive(Debug, Parser)]
struct Arguments {
    /// Questions to answer, by number (default: all).
    #[arg(value_name = "QUESTION", value_parser = clap::value_parser!(u8).range(1..=10))]
    questions: Vec<u8>,

    /// Rows of the table.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    rows: u64,

    /// Values of the columns that have few, to which the others are in proportion.
    #[arg(long, value_name = "K", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    groups: u64,

    /// What the values follow from.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    columns: file::Columns,

    /// Compares each answer with that of a plain loop.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    room: Room,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    updraft::exit(updraft::run(arguments.room.config(), |env| {
        let described = arguments.columns.describe(env, arguments.check);
        described.unwrap_or_else(|| answer_all(env, &arguments))
    }))
}

fn answer_all(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let table = Table::new(arguments.rows, arguments.groups, arguments.seed);
    let all: Vec<u8> = (1..=10).collect();
    let questions = match &arguments.questions[..] {
        [] => &all,
        some => some,
    };
    for &question in questions {
        let start = Instant::now();
        let job = job(question, table);
        let answer = env.run(&job)?.first().copied().unwrap_or_default();
        let seconds = start.elapsed().as_secs_f64();
        if env.worker() != 0 {
            continue;
        }
        let (groups, sums) = answer;
        println!(
            "q{question} {}: {groups} groups, sums {:.6} {:.6} {:.6}",
            TEXTS[usize::from(question) - 1],
            sums.0,
            sums.1,
            sums.2
        );
        eprintln!(
            "q{question} took {seconds:.3} s, {:.1} M rows/s",
            arguments.rows as f64 / 1e6 / seconds.max(1e-9)
        );
        if arguments.check {
            let expected = plain::answer(question, table);
            if !agree(answer, expected) {
                let reason = format!("q{question}: a plain loop gives {expected:?}");
                return Err(Error::Config { reason });
            }
        }
    }
    if arguments.check && env.worker() == 0 {
        println!("a plain loop gives the same");
    }
    Ok(())
}

/// What the questions ask.
const TEXTS: [&str; 10] = [
    "sum v1 by id1",
    "sum v1 by id1, id2",
    "sum v1, mean v3 by id3",
    "mean v1, v2, v3 by id4",
    "sum v1, v2, v3 by id6",
    "median v3, sd v3 by id4, id5",
    "max v1 - min v2 by id3",
    "largest two v3 by id6",
    "regression v1 v2 by id2, id4",
    "sum v3, count by id1, id2, id3, id4, id5, id6",
];

/// How many groups there are, and the sums of up to three columns of the result.
type Answer = (u64, (f64, f64, f64));

/// Whether two answers are the same but for the order in which floats were added.
fn agree((groups, sums): Answer, (others, other_sums): Answer) -> bool {
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0);
    groups == others
        && close(sums.0, other_sums.0)
        && close(sums.1, other_sums.1)
        && close(sums.2, other_sums.2)
}

/// The job that answers a question.
fn job(question: u8, table: Table) -> Job<Vec<Answer>> {
    let rows = table.rows;
    match question {
        1 => summed(
            generate(rows, move |n| (table.id1(n), table.v1(n)))
                .aggregate_by_key(|of| of.sum(|v1| v1))
                .map(|(_, v1)| (v1 as f64, 0.0, 0.0)),
        ),
        2 => summed(
            generate(rows, move |n| ((table.id1(n), table.id2(n)), table.v1(n)))
                .aggregate_by_key(|of| of.sum(|v1| v1))
                .map(|(_, v1)| (v1 as f64, 0.0, 0.0)),
        ),
        3 => summed(
            generate(rows, move |n| (table.id3(n), (table.v1(n), table.v3(n))))
                .aggregate_by_key(|of| (of.sum(|(v1, _)| v1), of.mean(|(_, v3)| v3)))
                .map(|(_, (v1, v3))| (v1 as f64, v3.unwrap_or(0.0), 0.0)),
        ),
        4 => summed(
            generate(rows, move |n| (table.id4(n), table.values(n)))
                .aggregate_by_key(|of| {
                    (
                        of.mean(|(v1, _, _)| v1 as f64),
                        of.mean(|(_, v2, _)| v2 as f64),
                        of.mean(|(_, _, v3)| v3),
                    )
                })
                .map(|(_, (v1, v2, v3))| (v1.unwrap_or(0.0), v2.unwrap_or(0.0), v3.unwrap_or(0.0))),
        ),
        5 => summed(
            generate(rows, move |n| (table.id6(n), table.values(n)))
                .aggregate_by_key(|of| {
                    (
                        of.sum(|(v1, _, _)| v1),
                        of.sum(|(_, v2, _)| v2),
                        of.sum(|(_, _, v3)| v3),
                    )
                })
                .map(|(_, (v1, v2, v3))| (v1 as f64, v2 as f64, v3)),
        ),
        6 => summed(
            generate(rows, move |n| ((table.id4(n), table.id5(n)), table.v3(n)))
                .group_by_key()
                .map(|(_, values)| {
                    let mut values: Vec<f64> = values.iter().collect();
                    (median(&mut values), deviation(&values), 0.0)
                }),
        ),
        7 => summed(
            generate(rows, move |n| (table.id3(n), (table.v1(n), table.v2(n))))
                .aggregate_by_key(|of| (of.max(|(v1, _)| v1), of.min(|(_, v2)| v2)))
                .map(|(_, (v1, v2))| {
                    let range = v1.unwrap_or(0) as f64 - v2.unwrap_or(0) as f64;
                    (range, 0.0, 0.0)
                }),
        ),
        8 => summed(
            generate(rows, move |n| (table.id6(n), table.v3(n)))
                .aggregate_by_key(|of| {
                    of.fold(LEAST_TWO, add_to_two, |two, (first, second)| {
                        add_to_two(two, first);
                        add_to_two(two, second);
                    })
                })
                .map(|(_, (first, second))| {
                    let both = first + if second.is_finite() { second } else { 0.0 };
                    (both, 0.0, 0.0)
                }),
        ),
        9 => summed(
            generate(rows, move |n| {
                let (v1, v2) = (table.v1(n) as f64, table.v2(n) as f64);
                ((table.id2(n), table.id4(n)), (v1, v2))
            })
            .aggregate_by_key(|of| {
                (
                    of.count(),
                    of.sum(|(x, _)| x),
                    of.sum(|(_, y)| y),
                    of.sum(|(x, _)| x * x),
                    of.sum(|(_, y)| y * y),
                    of.sum(|(x, y)| x * y),
                )
            })
            .map(|(_, moments)| (r_squared(moments), 0.0, 0.0)),
        ),
        _ => summed(
            generate(rows, move |n| (table.all_ids(n), table.v3(n)))
                .aggregate_by_key(|of| (of.sum(|v3| v3), of.count()))
                .map(|(_, (v3, count))| (v3, count as f64, 0.0)),
        ),
    }
}

/// Counts the rows of a result and sums up its columns.
fn summed<S, N>(result: TSet<S, N>) -> Job<Vec<Answer>>
where
    S: Source,
    N: Narrow<S::Out, Out = (f64, f64, f64)>,
{
    result
        .aggregate(|of| {
            (
                of.count(),
                of.sum(|(a, _, _)| a),
                of.sum(|(_, b, _)| b),
                of.sum(|(_, _, c)| c),
            )
        })
        .map(|(groups, a, b, c)| (groups, (a, b, c)))
        .collect()
}

/// No two values.
const LEAST_TWO: (f64, f64) = (f64::NEG_INFINITY, f64::NEG_INFINITY);

/// Keeps the two largest values.
fn add_to_two((first, second): &mut (f64, f64), value: f64) {
    if value > *first {
        *second = std::mem::replace(first, value);
    } else if value > *second {
        *second = value;
    }
}

/// The median of values, which end up in another order.
fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    let (below, &mut upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    let lower = below.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.len() % 2 == 1 {
        upper
    } else {
        lower.midpoint(upper)
    }
}

/// The standard deviation of a sample; of one value, none.
fn deviation(values: &[f64]) -> f64 {
    let number = values.len() as f64;
    if number < 2.0 {
        return 0.0;
    }
    // Sorted, so that it does not depend on the order in which they came.
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let mean = values.iter().sum::<f64>() / number;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (number - 1.0)).sqrt()
}

/// The square of the correlation of two columns, by their number, sums, sums of squares and sum of products; 0 where
/// one of them does not vary.
fn r_squared((number, x, y, xx, yy, xy): (u64, f64, f64, f64, f64, f64)) -> f64 {
    let number = number as f64;
    let covariance = number * xy - x * y;
    let variances = (number * xx - x * x) * (number * yy - y * y);
    if variances > 0.0 {
        covariance * covariance / variances
    } else {
        0.0
    }
}
