//! The product of two matrices, by blocks.
//!
//! Blocks of the left matrix in column *k* meet those of the right one in row *k*: a join. The products of pairs
//! are added by the place that they have in the result: a reduction by key, which begins where they arise. Elements are
//! small integers, so that sums are exact: with `--check` the result is that of a plain loop.

#[path = "../input/mod.rs"]
mod input;
#[path = "../program/mod.rs"]
mod program;
#[path = "../random/mod.rs"]
mod random;

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use program::{Executors, check_same};
use random::Random;
use updraft::{Error, dataflow::generate, prelude::*};

/// Elements are from minus this to this.
const GREATEST: u64 = 8;

/// Multiplies two square matrices.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// Rows and columns of the matrices.
    #[arg(short = 'n', long, default_value_t = 1024, value_parser = input::at_least_one)]
    side: usize,

    /// Rows and columns of a block.
    #[arg(long, default_value_t = 128, value_parser = input::at_least_one)]
    block: usize,

    /// What the matrices follow from.
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
    arguments.executors.run(|env| multiply(env, &arguments))
}

/// Which of the two matrices, as the number of the first of its random numbers.
const LEFT: u64 = 0;
const RIGHT: u64 = 1 << 62;

impl Arguments {
    fn element(&self, matrix: u64, row: usize, column: usize) -> f64 {
        if row >= self.side || column >= self.side {
            return 0.0;
        }
        let number = matrix + (row * self.side + column) as u64;
        let element = Random::at(self.seed, number).below(2 * GREATEST + 1);
        element as f64 - GREATEST as f64
    }

    /// A block, row by row; what is outside of the matrix is zero.
    fn elements(&self, matrix: u64, row: usize, column: usize) -> Vec<f64> {
        let (top, left) = (row * self.block, column * self.block);
        (top..top + self.block)
            .flat_map(|row| (left..left + self.block).map(move |column| (row, column)))
            .map(|(row, column)| self.element(matrix, row, column))
            .collect()
    }
}

/// Adds the product of two blocks to one that is given.
fn add_product(sum: &mut [f64], left: &[f64], right: &[f64], side: usize) {
    for (sum, left) in sum.chunks_exact_mut(side).zip(left.chunks_exact(side)) {
        for (&factor, right) in left.iter().zip(right.chunks_exact(side)) {
            for (sum, element) in sum.iter_mut().zip(right) {
                *sum += factor * element;
            }
        }
    }
}

fn multiply(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let block = arguments.block;
    let blocks = arguments.side.div_ceil(block);
    let every = (blocks * blocks) as u64;
    let place = move |number: u64| (number as usize / blocks, number as usize % blocks);
    let matrices = arguments.clone();
    let left = generate(every, move |number| {
        let (row, column) = place(number);
        let elements = matrices.elements(LEFT, row, column);
        (column as u64, (row as u64, elements))
    })
    .exchange_by_key();
    let matrices = arguments.clone();
    let right = generate(every, move |number| {
        let (row, column) = place(number);
        let elements = matrices.elements(RIGHT, row, column);
        (row as u64, (column as u64, elements))
    })
    .exchange_by_key();
    let (left, right) = env.run(&left.cache().and(right.cache()))?;

    let started = Instant::now();
    let product = left
        .tset()
        .join(right.tset())
        .map(move |(_, ((row, left), (column, right)))| {
            let (left, right): (Vec<f64>, Vec<f64>) =
                (left.iter().collect(), right.iter().collect());
            let mut product = vec![0.0; block * block];
            add_product(&mut product, &left, &right, block);
            ((row, column), product)
        })
        .reduce_by_key(|mut sum, more| {
            sum.iter_mut()
                .zip(more.iter())
                .for_each(|(sum, x)| *sum += x);
            sum
        });
    let product = env.run(&product.cache())?;
    let seconds = started.elapsed().as_secs_f64();
    let trace = product
        .tset()
        .filter(|((row, column), _)| row == column)
        .map(move |(_, block_of)| block_of.iter().step_by(block + 1).sum::<f64>())
        .reduce(|one, other| one + other);
    let trace = env.run(&trace.first())?.unwrap_or_default();
    let found = arguments.check.then(|| product.tset().collect());
    let found = found.map(|found| env.run(&found)).transpose()?;
    if env.worker() != 0 {
        return Ok(());
    }
    eprintln!(
        "{blocks} by {blocks} blocks in {seconds:.3} s: {:.2} Gflop/s",
        2.0 * (arguments.side as f64).powi(3) / seconds / 1e9
    );
    println!("the trace of the product is {trace}");
    found.map_or(Ok(()), |found| check(&found, arguments))
}

fn check(found: &[((u64, u64), Vec<f64>)], arguments: &Arguments) -> Result<(), Error> {
    let (side, block) = (arguments.side, arguments.block);
    let matrix = |which: u64| -> Vec<f64> {
        let places = (0..side * side).map(|number| (number / side, number % side));
        places
            .map(|(row, column)| arguments.element(which, row, column))
            .collect()
    };
    let mut expected = vec![0.0; side * side];
    add_product(&mut expected, &matrix(LEFT), &matrix(RIGHT), side);
    let (mut same, mut differ) = (0, 0);
    for ((row, column), elements) in found {
        for (number, element) in elements.iter().enumerate() {
            let row = *row as usize * block + number / block;
            let column = *column as usize * block + number % block;
            if row < side && column < side {
                let is_same = *element == expected[row * side + column];
                same += usize::from(is_same);
                differ += usize::from(!is_same);
            }
        }
    }
    println!("elements that are those of a plain loop: {same}, others: {differ}");
    check_same(same == side * side && differ == 0)
}
