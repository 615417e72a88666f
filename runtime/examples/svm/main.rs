//! A linear support vector machine by stochastic gradient descent (Shalev-Shwartz, Singer, Srebro: "Pegasos: primal
//! estimated sub-gradient solver for SVM", ICML 2007), on all ranks at the same time (Zinkevich, Weimer, Li, Smola:
//! "Parallelized stochastic gradient descent", NIPS 2010).
//!
//! The examples stay in the workers. In each round every rank goes through its own, and takes a step for each; then
//! the weights of all ranks are averaged: `Env::iterate` with an all-reduce. With `--bsp` it is written by hand in the
//! manner of MPI, to compare with. With `--check` the weights are compared with those of the same steps in a plain loop;
//! they depend on the number of ranks.

#[path = "../history/mod.rs"]
mod history;
#[path = "../labelled/mod.rs"]
mod labelled;
#[path = "../program/mod.rs"]
mod program;

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use history::{History, Kept};
use labelled::{Examples, accuracy, add, difference, dot};
use program::{Executors, check_same};
use updraft::{Error, collectives::op::Sum, prelude::*};

/// The largest difference to a plain loop that rounding explains.
const DIFFERENCE_MAX: f64 = 1e-9;

/// Learns to tell a class from the others by a linear support vector machine.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    #[command(flatten)]
    examples: Examples,

    /// Rounds, in each of which every rank takes a step for each of its examples.
    #[arg(short, long, default_value_t = 20)]
    iterations: usize,

    /// How strongly weights are drawn to zero.
    #[arg(long, default_value_t = 1e-3)]
    regularization: f64,

    /// Run in the manner of MPI.
    #[arg(long)]
    bsp: bool,

    #[command(flatten)]
    kept: Kept,

    /// Compare the result with the same steps on one thread.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    executors: Executors,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.executors.run(|env| learn(env, &arguments))
}

/// Weights on their way to the best.
#[derive(Debug, Clone, Default)]
struct Machine {
    /// One for each feature; in a round, the sum of the losses is behind them.
    weights: Vec<f64>,
    /// Steps that were taken.
    steps: f64,
    regularization: f64,
}

impl Machine {
    /// A step for each example; they become smaller. Leaves the sum of the losses on the way behind the weights.
    fn train<'e, X: Copy + Into<f64> + 'e>(
        &mut self,
        examples: impl Iterator<Item = (f64, &'e [X])>,
    ) {
        let mut losses = 0.0;
        for (class, features) in examples {
            if self.weights.len() <= features.len() {
                self.weights.resize(features.len() + 1, 0.0);
            }
            let weights = &mut self.weights[..features.len()];
            self.steps += 1.0;
            // The first steps are no longer than 1.
            let rate = 1.0 / (self.regularization * self.steps + 1.0);
            let loss = 1.0 - class * dot(weights, features);
            for weight in weights.iter_mut() {
                *weight *= 1.0 - rate * self.regularization;
            }
            if loss > 0.0 {
                add(weights, rate * class, features);
                losses += loss;
            }
        }
        if let Some(last) = self.weights.last_mut() {
            *last = losses;
        }
    }

    /// One round, on all ranks. Gives the mean of the losses on the way.
    fn step<'e, X: Copy + Into<f64> + 'e>(
        &mut self,
        world: &Group,
        examples: impl Iterator<Item = (f64, &'e [X])>,
        number: f64,
    ) -> Result<f64, Error> {
        self.train(examples);
        world.all_reduce(&mut self.weights, Sum).wait()?;
        let losses = self.weights.last().copied().unwrap_or_default();
        for weight in &mut self.weights {
            *weight /= world.size() as f64;
        }
        Ok(losses / number)
    }
}

fn learn(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let all = arguments.examples.part(0, 1)?;
    let Some((_, features)) = all.first() else {
        return Err(Error::program("there are no examples"));
    };
    let start = Machine {
        weights: vec![0.0; features.len() + 1],
        steps: 0.0,
        regularization: arguments.regularization,
    };
    let (found, history) = if arguments.bsp {
        in_the_manner_of_mpi(env, arguments, start.clone(), all.len() as f64)?
    } else {
        let (iterations, number) = (arguments.iterations, all.len() as f64);
        let examples = arguments.examples.cached(env)?;
        let done = move |losses: &[f64]| losses.len() == iterations;
        History::of(
            env.iterate(&examples, start.clone(), done, move |machine, round| {
                let examples = round.records();
                let examples = examples.map(|(class, features)| (class, features.archived()));
                machine.step(round.world, examples, number)
            })?,
        )
    };
    if env.worker() != 0 {
        return Ok(());
    }
    eprintln!("{} rounds; {}", arguments.iterations, history.typical());
    history.write(&arguments.kept, "mean hinge loss")?;
    let weights = &found.weights[..features.len()];
    println!(
        "mean hinge loss {:.6}; {:.2} % of {} examples on the right side",
        history.values.last().copied().unwrap_or(f64::NAN),
        100.0 * accuracy(weights, &all),
        all.len()
    );
    if arguments.check {
        let expected = reference(arguments, start, env.ranks() as usize)?;
        let difference = difference(weights, &expected);
        println!("largest difference to the same steps in a plain loop: {difference:e}");
        check_same(difference <= DIFFERENCE_MAX)?;
    }
    Ok(())
}

/// The same by hand.
fn in_the_manner_of_mpi(
    env: &mut Env,
    arguments: &Arguments,
    start: Machine,
    number: f64,
) -> Result<(Machine, History), Error> {
    let arguments = arguments.clone();
    let found = env.bsp(move |world| {
        let own = arguments.examples.part(world.rank(), world.size())?;
        let features = start.weights.len() - 1;
        let classes: Vec<f64> = own.iter().map(|(class, _)| *class).collect();
        let all: Vec<f64> = own.into_iter().flat_map(|(_, features)| features).collect();
        let (mut machine, mut history) = (start.clone(), History::default());
        for _ in 0..arguments.iterations {
            let began = Instant::now();
            let examples = classes.iter().copied().zip(all.chunks_exact(features));
            let loss = machine.step(world, examples, number)?;
            history.add(loss, began.elapsed());
        }
        Ok((machine, history))
    })?;
    Ok(found.into_iter().next().unwrap_or_default())
}

/// The same steps by a plain loop.
fn reference(arguments: &Arguments, start: Machine, ranks: usize) -> Result<Vec<f64>, Error> {
    let parts = (0..ranks).map(|rank| arguments.examples.part(rank, ranks));
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    let mut machines = vec![start; ranks];
    for _ in 0..arguments.iterations {
        for (machine, part) in machines.iter_mut().zip(&parts) {
            machine.train(part.iter().map(|(class, features)| (*class, &features[..])));
        }
        let mut mean = vec![0.0; machines[0].weights.len()];
        for machine in &machines {
            add(&mut mean, 1.0 / ranks as f64, &machine.weights);
        }
        for machine in &mut machines {
            machine.weights.clone_from(&mean);
        }
    }
    Ok(machines.remove(0).weights)
}
