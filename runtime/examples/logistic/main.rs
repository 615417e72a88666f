//! Logistic regression by gradient descent.
//!
//! The examples stay in the workers. In each round every rank adds up the gradient of its own, the gradients of all
//! ranks are added, and every rank takes the same step: `Env::iterate` with an all-reduce. With `--check` the weights are
//! compared with those of a plain loop.

#[path = "../history/mod.rs"]
mod history;
#[path = "../labelled/mod.rs"]
mod labelled;
#[path = "../program/mod.rs"]
mod program;

use std::process::ExitCode;

use clap::Parser;
use history::{History, Kept};
use labelled::{Examples, accuracy, add, difference, dot};
use program::{Executors, check_same};
use updraft::{Error, collectives::op::Sum, prelude::*};

/// The largest difference to a plain loop that rounding explains.
const DIFFERENCE_MAX: f64 = 1e-9;

/// Learns to tell a class from the others by logistic regression.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    #[command(flatten)]
    examples: Examples,

    /// The most rounds.
    #[arg(short, long, default_value_t = 200)]
    iterations: usize,

    /// The rounds end when one lowers the mean loss by no more than this.
    #[arg(long, default_value_t = 1e-7)]
    tolerance: f64,

    /// How far a step goes.
    #[arg(long, default_value_t = 4.0)]
    rate: f64,

    #[command(flatten)]
    kept: Kept,

    /// Compare the result with a plain loop on one thread.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    executors: Executors,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.executors.run(|env| learn(env, &arguments))
}

/// The loss of an example, and what its features add to the gradient, by how far it is on the side of its class.
#[inline]
fn loss(margin: f64) -> (f64, f64) {
    // Neither exponential overflows.
    let small = (-margin.abs()).exp();
    let loss = small.ln_1p() + (-margin).max(0.0);
    let slope = if margin > 0.0 {
        small / (1.0 + small)
    } else {
        1.0 / (1.0 + small)
    };
    (loss, -slope)
}

fn learn(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let examples = arguments.examples.cached(env)?;
    let features = examples.tset().fold(
        (0u64, 0u64),
        |(number, most), (_, features)| (*number, *most) = (*number + 1, features.len() as u64),
        |(number, most), (more, other)| (*number, *most) = (*number + more, other.max(*most)),
    );
    let (number, features) = env.run(&features.first())?.unwrap_or_default();
    if number == 0 {
        return Err(Error::program("there are no examples"));
    }
    let (iterations, tolerance, rate) = (arguments.iterations, arguments.tolerance, arguments.rate);
    let done = move |losses: &[f64]| {
        losses.len() == iterations
            || matches!(losses, [.., before, last] if before - last <= tolerance)
    };
    let zeros = vec![0.0; features as usize];
    let ended = env.iterate(&examples, zeros, done, move |weights, round| {
        // The gradient, and the loss behind it.
        let mut sums = vec![0.0; weights.len() + 1];
        for (class, features) in round.records() {
            let (loss, slope) = loss(class * dot(weights, features.archived()));
            add(&mut sums, slope * class, features.archived());
            sums[weights.len()] += loss;
        }
        round.world.all_reduce(&mut sums, Sum).wait()?;
        add(weights, -rate / number as f64, &sums);
        Ok(sums[weights.len()] / number as f64)
    })?;
    if env.worker() != 0 {
        return Ok(());
    }
    let (weights, history) = History::of(ended);
    let rounds = history.values.len();
    eprintln!("{rounds} rounds; {}", history.typical());
    history.write(&arguments.kept, "mean loss")?;
    let all = arguments.examples.part(0, 1)?;
    println!(
        "mean loss {:.6} after {rounds} rounds; {:.2} % of {number} examples on the right side",
        history.values.last().copied().unwrap_or(f64::NAN),
        100.0 * accuracy(&weights, &all)
    );
    if !arguments.check {
        return Ok(());
    }
    let mut expected = vec![0.0; features as usize];
    for _ in 0..rounds {
        let mut gradient = vec![0.0; expected.len()];
        for (class, features) in &all {
            let (_, slope) = loss(class * dot(&expected, features));
            add(&mut gradient, slope * class, features);
        }
        add(&mut expected, -rate / number as f64, &gradient);
    }
    let difference = difference(&weights, &expected);
    println!("largest difference to a plain loop: {difference:e}");
    check_same(difference <= DIFFERENCE_MAX)
}
