//! Multidimensional scaling by SMACOF, scaling by majorizing a complicated function (de Leeuw: "Applications of convex
//! analysis to multidimensional scaling", 1977).
//!
//! Finds places in few dimensions whose distances are as near as can be to those that are given. Each rank keeps
//! some rows of the matrix of distances. In each round it moves the places of its rows by the transform of Guttman, and then all
//! ranks learn all places: `Env::iterate` with an all-reduce in which every place is zero but on one rank, so the sum is
//! exact. The stress, the sum of the squares of what the distances are off, never grows. With `--check` the places are those of
//! a plain loop, to the last bit.

#[path = "../history/mod.rs"]
mod history;
#[path = "../input/mod.rs"]
mod input;
#[path = "../program/mod.rs"]
mod program;
#[path = "../random/mod.rs"]
mod random;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::Parser;
use history::{History, Kept};
use program::{Executors, check_same};
use random::Random;
use updraft::{
    Error,
    collectives::op::Sum,
    dataflow::{generate, lines_of},
    prelude::*,
};

/// Coordinates of the generated points: a curled sheet.
const GENERATED: u64 = 3;

/// Draws points of many dimensions in few, so that their distances remain.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// A CSV file without a header, a point to a line; without one, points are generated.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,

    /// Points to generate.
    #[arg(long, default_value_t = 500, value_parser = input::at_least_one, conflicts_with = "input")]
    generate: usize,

    /// Dimensions to draw in.
    #[arg(long, default_value_t = 2, value_parser = input::at_least_one)]
    dimensions: usize,

    /// The most rounds.
    #[arg(short, long, default_value_t = 100)]
    iterations: usize,

    /// The rounds end when one lowers the stress by no more than this part of it.
    #[arg(long, default_value_t = 1e-6)]
    tolerance: f64,

    /// What the generated points, and the first places, follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    kept: Kept,

    /// Write the places to a CSV file.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Compare the result with a plain loop on one thread.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    executors: Executors,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.executors.run(|env| scale(env, &arguments))
}

/// The points, on every worker, in the order of the file.
fn points(env: &mut Env, arguments: &Arguments) -> Result<Vec<Vec<f64>>, Error> {
    let Some(path) = &arguments.input else {
        let seed = arguments.seed;
        let sheet = generate(arguments.generate as u64, move |number| {
            let mut random = Random::at(seed, GENERATED * number);
            let (angle, width) = (3.0 * random.unit(), random.unit());
            vec![angle.cos(), angle.sin(), width]
        });
        return env.run(&sheet.collect());
    };
    let points = lines_of(vec![path.clone()])?.try_map(|line| {
        let fields = line
            .split(',')
            .map(|field| field.trim().parse::<f64>().ok());
        let point = fields.map(|field| field.filter(|x| x.is_finite()));
        let point: Option<Vec<f64>> = point.collect();
        point.ok_or_else(|| format!("{line:?} is not numbers with commas between them"))
    });
    env.run(&points.collect())
}

fn distance(one: &[f64], other: &[f64]) -> f64 {
    let squares = one.iter().zip(other).map(|(a, b)| (a - b) * (a - b));
    squares.sum::<f64>().sqrt()
}

/// Where a point moves, by the transform of Guttman; gives what its distances are off.
fn transform<X: Copy + Into<f64>>(
    row: usize,
    wanted: &[X],
    places: &[f64],
    dimensions: usize,
    moved: &mut [f64],
) -> f64 {
    let place = &places[row * dimensions..][..dimensions];
    let mut stress = 0.0;
    for (&wanted, other) in wanted.iter().zip(places.chunks_exact(dimensions)) {
        let (wanted, distance): (f64, f64) = (wanted.into(), distance(place, other));
        stress += (wanted - distance) * (wanted - distance);
        // Points that are at the same place, the point itself among them, do not draw on one another.
        let ratio = if distance > 0.0 {
            wanted / distance
        } else {
            0.0
        };
        for ((moved, x), y) in moved.iter_mut().zip(place).zip(other) {
            *moved += ratio * (x - y);
        }
    }
    for x in moved {
        *x /= wanted.len() as f64;
    }
    // Each pair is in two rows.
    stress / 2.0
}

fn scale(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let points = Arc::new(points(env, arguments)?);
    let (number, dimensions) = (points.len(), arguments.dimensions);
    let all = points.clone();
    let rows = generate(number as u64, move |row| {
        let point = &all[row as usize];
        let distances: Vec<f64> = all.iter().map(|other| distance(point, other)).collect();
        (row, distances)
    });
    let rows = env.run(&rows.cache())?;
    let (iterations, tolerance) = (arguments.iterations, arguments.tolerance);
    let done = move |stress: &[f64]| {
        stress.len() == iterations
            || matches!(stress, [.., before, last] if before - last <= tolerance * before)
    };
    let ended = env.iterate(
        &rows,
        first_places(arguments, number),
        done,
        move |places, round| {
            // The places, and the stress behind them.
            let mut next = vec![0.0; number * dimensions + 1];
            for (row, wanted) in round.records() {
                let row = row as usize;
                let moved = &mut next[row * dimensions..][..dimensions];
                let stress = transform(row, wanted.archived(), places, dimensions, moved);
                next[number * dimensions] += stress;
            }
            round.world.all_reduce(&mut next, Sum).wait()?;
            let stress = next.pop().unwrap_or_default();
            *places = next;
            Ok(stress)
        },
    )?;
    if env.worker() != 0 {
        return Ok(());
    }
    let (places, history) = History::of(ended);
    let rounds = history.values.len();
    eprintln!("{rounds} rounds; {}", history.typical());
    history.write(&arguments.kept, "stress")?;
    if let Some(path) = &arguments.out {
        history::write(path, &table(&places, dimensions))?;
    }
    let squares = points
        .iter()
        .flat_map(|one| points.iter().map(|other| distance(one, other).powi(2)));
    let stress = history.values.last().copied().unwrap_or(f64::NAN);
    println!(
        "{number} points in {dimensions} dimensions: stress {stress:.6} after {rounds} rounds, {:.4} of what is drawn",
        (stress / (squares.sum::<f64>() / 2.0)).sqrt()
    );
    if arguments.check {
        check(&points, &places, &history, arguments)?;
    }
    Ok(())
}

fn first_places(arguments: &Arguments, number: usize) -> Vec<f64> {
    let mut random = Random::new(!arguments.seed);
    (0..number * arguments.dimensions)
        .map(|_| 2.0 * random.unit() - 1.0)
        .collect()
}

fn table(places: &[f64], dimensions: usize) -> String {
    let lines = places.chunks_exact(dimensions).map(|place| {
        let texts: Vec<_> = place.iter().map(f64::to_string).collect();
        texts.join(",") + "\n"
    });
    lines.collect()
}

fn check(
    points: &[Vec<f64>],
    found: &[f64],
    history: &History,
    arguments: &Arguments,
) -> Result<(), Error> {
    let dimensions = arguments.dimensions;
    let mut places = first_places(arguments, points.len());
    for _ in &history.values {
        let mut next = vec![0.0; places.len()];
        for (row, point) in points.iter().enumerate() {
            let wanted: Vec<f64> = points.iter().map(|other| distance(point, other)).collect();
            let moved = &mut next[row * dimensions..][..dimensions];
            transform(row, &wanted, &places, dimensions, moved);
        }
        places = next;
    }
    let differ = found
        .iter()
        .zip(&places)
        .filter(|(a, b)| a.to_bits() != b.to_bits());
    let differ = differ.count();
    let grows = history
        .values
        .windows(2)
        .filter(|pair| pair[1] > pair[0] * (1.0 + 1e-12));
    let grows = grows.count();
    println!(
        "coordinates that differ from those of a plain loop: {differ}; rounds in which the stress grew: {grows}"
    );
    check_same(differ == 0)?;
    match grows {
        0 => Ok(()),
        _ => Err(Error::program("the stress grew")),
    }
}
