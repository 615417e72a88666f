//! The heat equation on a rectangle (FTCS: explicit in time, central in space), in the manner of MPI.
//!
//! The ranks share the rectangle in blocks. Before each step they exchange the cells along their edges, the halo. What is
//! around the rectangle has a fixed temperature: 1 above, and 0 elsewhere. Every cell goes through the same
//! operations however many ranks there are, so the result is the same to the last bit; `--check` compares it with a
//! plain loop.

mod kernel;
#[path = "../program/mod.rs"]
mod program;
#[path = "../random/mod.rs"]
mod random;

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use kernel::{Block, arrangement, place};
use program::{Executors, check_same};
use random::Random;
use updraft::{Error, prelude::*};

/// Spreads heat over a rectangle.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// Rows of cells.
    #[arg(long, default_value_t = 1000)]
    rows: usize,

    /// Columns of cells.
    #[arg(long, default_value_t = 1000)]
    columns: usize,

    /// Steps.
    #[arg(short, long, default_value_t = 200)]
    iterations: usize,

    /// What a cell takes of each difference to its neighbours in a step.
    #[arg(long, default_value_t = 0.2, value_parser = rate)]
    rate: f64,

    /// What the temperatures at the beginning follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Say every so many steps how much the last one has changed.
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    every: usize,

    /// Compare the result with a plain loop on one thread.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    executors: Executors,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if rate > 0.0 && rate <= 0.25 {
        return Ok(rate);
    }
    Err("steps are stable with more than 0 and up to 0.25 alone".to_owned())
}

impl Arguments {
    /// The temperature at the beginning, of a cell or of what is around; numbers begin with 1.
    fn temperature(&self, row: usize, column: usize) -> f64 {
        if row == 0 {
            return 1.0;
        }
        if row > self.rows || column == 0 || column > self.columns {
            return 0.0;
        }
        let cell = (row - 1) * self.columns + column - 1;
        Random::at(self.seed, cell as u64).unit()
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments
        .executors
        .bsp(move |world| spread(world, &arguments))
}

fn spread(world: &Group, arguments: &Arguments) -> Result<(), Error> {
    let is_first = world.rank() == 0;
    let extent = [arguments.rows, arguments.columns];
    let temperature = |row, column| arguments.temperature(row, column);
    let mut block = Block::new(world, extent, temperature)?;
    let started = Instant::now();
    for step in 1..=arguments.iterations {
        block.step(world, arguments.rate)?;
        if arguments.every > 0 && step % arguments.every == 0 {
            let change = block.change(world)?;
            if is_first {
                eprintln!("step {step}: changed a cell by {change:e}");
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let own: Vec<f64> = block.own().collect();
    let all = world.gather_v(0, &own).wait()?;
    let Some(blocks) = all else { return Ok(()) };

    let cells = (arguments.rows * arguments.columns * arguments.iterations) as f64;
    let grid = arrangement(world.size())?;
    let [down, across] = [0, 1].map(|axis| grid.dimensions()[axis].len);
    eprintln!(
        "{} steps in {seconds:.3} s on {down} x {across} ranks: {:.1} million cells/s",
        arguments.iterations,
        cells / seconds / 1e6
    );
    let mut whole = vec![0.0; arguments.rows * arguments.columns];
    for (rank, block) in blocks.iter().enumerate() {
        let [rows, columns] = place(&grid, rank, extent);
        for (row, cells) in rows.zip(block.chunks_exact(columns.len().max(1))) {
            let start = row * arguments.columns + columns.start;
            whole[start..start + cells.len()].copy_from_slice(cells);
        }
    }
    let (least, most) = (
        whole.iter().copied().fold(f64::INFINITY, f64::min),
        whole.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    );
    let mean = whole.iter().sum::<f64>() / whole.len() as f64;
    println!("temperatures from {least} to {most}, {mean} on average");
    if arguments.check {
        let expected = reference(arguments);
        let differ = whole.iter().zip(&expected).filter(|(a, b)| a != b).count();
        println!("cells that differ from those of a plain loop: {differ}");
        check_same(differ == 0)?;
    }
    Ok(())
}

/// The same by a plain loop over the whole rectangle.
fn reference(arguments: &Arguments) -> Vec<f64> {
    let (rows, columns) = (arguments.rows, arguments.columns);
    let mut old: Vec<Vec<f64>> = (0..rows + 2)
        .map(|row| {
            (0..columns + 2)
                .map(|column| arguments.temperature(row, column))
                .collect()
        })
        .collect();
    for _ in 0..arguments.iterations {
        let mut new = old.clone();
        for row in 1..=rows {
            for column in 1..=columns {
                let here = old[row][column];
                let around = old[row - 1][column]
                    + old[row + 1][column]
                    + old[row][column - 1]
                    + old[row][column + 1];
                new[row][column] = here + arguments.rate * (around - 4.0 * here);
            }
        }
        old = new;
    }
    old[1..=rows]
        .iter()
        .flat_map(|row| row[1..=columns].iter().copied())
        .collect()
}
