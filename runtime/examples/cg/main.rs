//! The method of conjugate gradients (Hestenes, Stiefel: "Methods of conjugate gradients for solving linear systems", 1952) on
//! the Poisson equation on a square, in the manner of MPI.
//!
//! The ranks share the rows of the sparse matrix and the elements of the vectors. A product needs elements of other
//! ranks, its neighbours; dot products are all-reduces. How their terms are grouped depends on the number of
//! ranks, hence the result does by rounding: with `--check` it differs from that of a plain loop by less than a
//! millionth of the largest element. With `--exact` they are rounded once, and the result is the same to the last bit on any
//! number of ranks.

mod matrix;
#[path = "../program/mod.rs"]
mod program;
#[path = "../random/mod.rs"]
mod random;

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use matrix::Matrix;
use program::{Executors, check_same};
use random::Random;
use updraft::{
    Error,
    collectives::{ExactSum, op::Sum},
    prelude::*,
};

/// The largest difference to a plain loop that rounding explains, of a solution with elements up to 1.
const DIFFERENCE_MAX: f64 = 1e-6;

/// Solves the Poisson equation on a square by conjugate gradients.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// Points along a side of the square; the matrix has a row for each point.
    #[arg(long, default_value_t = 300)]
    side: usize,

    /// The most iterations.
    #[arg(short, long, default_value_t = 2000)]
    iterations: usize,

    /// The residual that ends the iterations, relative to the right-hand side.
    #[arg(long, default_value_t = 1e-10)]
    tolerance: f64,

    /// What the solution follows from, to which the right-hand side is made.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Add the terms of dot products up exactly.
    #[arg(long)]
    exact: bool,

    /// Say every so many iterations how large the residual is.
    #[arg(long, value_name = "ITERATIONS", default_value_t = 0)]
    every: usize,

    /// Compare the result with a plain loop on one thread.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    executors: Executors,
}

impl Arguments {
    /// The entries of a row of the matrix: the five-point stencil.
    fn row(&self, row: usize) -> impl Iterator<Item = (usize, f64)> + use<> {
        let side = self.side;
        let (y, x) = (row / side, row % side);
        let entry = |is_there: bool, column: usize, value| is_there.then_some((column, value));
        let entries = [
            entry(y > 0, row.wrapping_sub(side), -1.0),
            entry(x > 0, row.wrapping_sub(1), -1.0),
            entry(true, row, 4.0),
            entry(x + 1 < side, row + 1, -1.0),
            entry(y + 1 < side, row + side, -1.0),
        ];
        entries.into_iter().flatten()
    }

    /// The element of the solution that belongs to a row.
    fn solution(&self, row: usize) -> f64 {
        Random::at(self.seed, row as u64).unit()
    }

    /// The element of the right-hand side.
    fn right(&self, row: usize) -> f64 {
        self.row(row)
            .map(|(column, value)| value * self.solution(column))
            .sum()
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments
        .executors
        .bsp(move |world| solve(world, &arguments))
}

/// The dot product of vectors that the ranks share.
fn dot(world: &Group, one: &[f64], other: &[f64], is_exact: bool) -> Result<f64, Error> {
    let terms = one.iter().zip(other).map(|(a, b)| a * b);
    if is_exact {
        let mut sum = [ExactSum::new()];
        terms.for_each(|term| sum[0].add(term));
        world.all_reduce_sums(&mut sum).wait()?;
        return Ok(sum[0].value());
    }
    let mut sum = [terms.sum()];
    world.all_reduce(&mut sum, Sum).wait()?;
    Ok(sum[0])
}

/// Adds `factor` times `other` to `vector`.
fn add(vector: &mut [f64], factor: f64, other: &[f64]) {
    for (x, y) in vector.iter_mut().zip(other) {
        *x += factor * y;
    }
}

fn solve(world: &Group, arguments: &Arguments) -> Result<(), Error> {
    let is_first = world.rank() == 0;
    let rows = arguments.side * arguments.side;
    let mut matrix = Matrix::new(world, rows, |row| arguments.row(row))?;
    let own = matrix.own.clone();
    let started = Instant::now();
    let mut solution = vec![0.0; own.len()];
    let mut residual: Vec<f64> = own.clone().map(|row| arguments.right(row)).collect();
    let mut direction = matrix.vector();
    direction[..own.len()].copy_from_slice(&residual);
    let mut product = vec![0.0; own.len()];
    let dot = |one: &[f64], other: &[f64]| dot(world, one, other, arguments.exact);
    let mut square = dot(&residual, &residual)?;
    let enough = square * arguments.tolerance * arguments.tolerance;
    let mut iterations = 0;
    while iterations < arguments.iterations && square > enough {
        matrix.multiply(world, &mut direction, &mut product)?;
        let step = square / dot(&direction[..own.len()], &product)?;
        add(&mut solution, step, &direction);
        add(&mut residual, -step, &product);
        let new_square = dot(&residual, &residual)?;
        for (direction, residual) in direction.iter_mut().zip(&residual) {
            *direction = residual + new_square / square * *direction;
        }
        square = new_square;
        iterations += 1;
        if is_first && arguments.every > 0 && iterations % arguments.every == 0 {
            eprintln!("iteration {iterations}: residual {:e}", square.sqrt());
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let all = world.gather_v(0, &solution).wait()?;
    let Some(solution) = all else { return Ok(()) };
    let solution = solution.into_elements();
    eprintln!(
        "{iterations} iterations in {seconds:.3} s: {:.1} million rows/s",
        (rows * iterations) as f64 / seconds / 1e6
    );
    let known = (0..rows).map(|row| arguments.solution(row));
    let error = largest_difference(&solution, known);
    println!("residual {:e}, error {error:e}", square.sqrt());
    if arguments.check {
        let expected = reference(arguments, iterations);
        let difference = largest_difference(&solution, expected);
        println!("largest difference to a plain loop: {difference:e}");
        check_same(difference <= DIFFERENCE_MAX && error <= DIFFERENCE_MAX)?;
    }
    Ok(())
}

fn largest_difference(found: &[f64], expected: impl IntoIterator<Item = f64>) -> f64 {
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // Not `max`, which passes over what is no number.
    differences.fold(
        0.0,
        |most, difference| if difference <= most { most } else { difference },
    )
}

/// The same iterations by plain loops over the square.
fn reference(arguments: &Arguments, iterations: usize) -> Vec<f64> {
    let side = arguments.side;
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let mut solution = vec![0.0; side * side];
    let mut residual: Vec<f64> = (0..side * side).map(|row| arguments.right(row)).collect();
    let mut direction = residual.clone();
    for _ in 0..iterations {
        let mut product = vec![0.0; side * side];
        for y in 0..side {
            for x in 0..side {
                let at = |y: usize, x: usize| {
                    if y < side && x < side {
                        direction[y * side + x]
                    } else {
                        0.0
                    }
                };
                let around = at(y.wrapping_sub(1), x)
                    + at(y + 1, x)
                    + at(y, x.wrapping_sub(1))
                    + at(y, x + 1);
                product[y * side + x] = 4.0 * at(y, x) - around;
            }
        }
        let square = dot(&residual, &residual);
        let step = square / dot(&direction, &product);
        add(&mut solution, step, &direction);
        add(&mut residual, -step, &product);
        let factor = dot(&residual, &residual) / square;
        for (direction, residual) in direction.iter_mut().zip(&residual) {
            *direction = residual + factor * *direction;
        }
    }
    solution
}
