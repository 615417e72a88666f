//! Pi by Monte Carlo: the share of random points of a square that are in the circle in it.
//!
//! Points are drawn a batch at a time, each batch from its own place in one sequence of random numbers: the result is the
//! same on any number of ranks.

#[path = "../input/mod.rs"]
mod input;
#[path = "../program/mod.rs"]
mod program;
#[path = "../random/mod.rs"]
mod random;

use std::{f64::consts::PI, process::ExitCode, time::Instant};

use clap::Parser;
use program::{Executors, check_same};
use random::Random;
use updraft::{Error, dataflow::generate, prelude::*};

/// Points that are drawn together.
const BATCH: u64 = 1 << 16;

/// Estimates pi by random points.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// Random points.
    #[arg(short, long, default_value_t = 100_000_000, value_parser = input::at_least_one)]
    points: usize,

    /// What the points follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Compare the result with a plain loop on one thread.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    executors: Executors,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.executors.run(|env| estimate(env, &arguments))
}

/// How many of the points from one number up to another are in the circle.
fn inside(seed: u64, from: u64, to: u64) -> u64 {
    let mut random = Random::at(seed, 2 * from);
    let is_inside = |_: &u64| {
        let (x, y) = (2.0 * random.unit() - 1.0, 2.0 * random.unit() - 1.0);
        x * x + y * y < 1.0
    };
    (from..to).filter(is_inside).count() as u64
}

fn estimate(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let (points, seed) = (arguments.points as u64, arguments.seed);
    let started = Instant::now();
    let hits = generate(points.div_ceil(BATCH), move |batch| {
        inside(seed, batch * BATCH, points.min((batch + 1) * BATCH))
    })
    .reduce(|one, other| one + other);
    let hits = env.run(&hits.first())?.unwrap_or_default();
    if env.worker() != 0 {
        return Ok(());
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "{points} points in {seconds:.3} s: {:.1} million points/s",
        points as f64 / seconds / 1e6
    );
    let pi = 4.0 * hits as f64 / points as f64;
    // Of a sum of so many independent draws.
    let deviation = 4.0 * (PI / 4.0 * (1.0 - PI / 4.0) / points as f64).sqrt();
    println!(
        "pi is about {pi:.9}, {:.2} standard deviations off",
        (pi - PI).abs() / deviation
    );
    if arguments.check {
        let expected = inside(seed, 0, points);
        println!("{hits} points in the circle, {expected} by a plain loop");
        check_same(hits == expected)?;
        if (pi - PI).abs() > 6.0 * deviation {
            return Err(Error::program("the result differs from pi"));
        }
    }
    Ok(())
}
