//! Bodies that attract one another, all pairs of them, in the manner of MPI.
//!
//! Each rank moves a block of the bodies by leapfrog steps (kick, drift, kick); before it computes forces, all ranks learn
//! where all bodies are: an all-gather. The forces on a body are added up in the order of the other bodies,
//! however many ranks there are, so the result is the same to the last bit; `--check` compares it with a plain loop.

mod kernel;
#[path = "../program/mod.rs"]
mod program;
#[path = "../random/mod.rs"]
mod random;

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use kernel::{Body, Share};
use program::{Executors, check_same};
use random::Random;
use updraft::{Error, prelude::*};

/// Moves bodies that attract one another.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// Bodies.
    #[arg(short = 'n', long, default_value_t = 2000)]
    bodies: usize,

    /// Steps.
    #[arg(short, long, default_value_t = 20)]
    iterations: usize,

    /// The time of a step.
    #[arg(long, default_value_t = 1e-3)]
    step: f64,

    /// The distance below which attraction grows no more.
    #[arg(long, default_value_t = 1e-2)]
    softening: f64,

    /// What the bodies follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Say every so many steps how much energy there is.
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    every: usize,

    /// Compare the result with a plain loop on one thread.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    executors: Executors,
}

impl Arguments {
    /// A body at the beginning: at rest somewhere in a cube. All together have a mass of 1.
    fn body(&self, number: usize) -> Body {
        let mut random = Random::at(self.seed, 4 * number as u64);
        Body {
            position: [(); 3].map(|()| random.unit()),
            velocity: [0.0; 3],
            mass: (0.5 + random.unit()) / self.bodies as f64,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments
        .executors
        .bsp(move |world| attract(world, &arguments))
}

fn attract(world: &Group, arguments: &Arguments) -> Result<(), Error> {
    let is_first = world.rank() == 0;
    let (bodies, softening) = (arguments.bodies, arguments.softening);
    let mut share = Share::new(world, bodies, softening, |number| arguments.body(number))?;
    let at_first = share.energy(world)?;
    let started = Instant::now();
    for step in 1..=arguments.iterations {
        share.step(world, arguments.step)?;
        if arguments.every > 0 && step % arguments.every == 0 {
            let energy = share.energy(world)?;
            if is_first {
                eprintln!("step {step}: energy {energy}");
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let at_last = share.energy(world)?;
    let all = world.gather_v(0, &share.state()).wait()?;
    let Some(found) = all else { return Ok(()) };

    let pairs = (bodies * bodies * arguments.iterations) as f64;
    eprintln!(
        "{} steps in {seconds:.3} s: {:.1} million pairs/s",
        arguments.iterations,
        pairs / seconds / 1e6
    );
    println!("energy {at_first} at first, {at_last} at last");
    if arguments.check {
        let expected = reference(arguments);
        let differ = found
            .elements()
            .iter()
            .zip(&expected)
            .filter(|(found, body)| found[..3] != body.position || found[3..] != body.velocity);
        let differ = differ.count() + expected.len().abs_diff(found.elements().len());
        println!("bodies that differ from those of a plain loop: {differ}");
        check_same(differ == 0)?;
    }
    Ok(())
}

/// The same by a plain loop over all pairs.
fn reference(arguments: &Arguments) -> Vec<Body> {
    let mut bodies: Vec<Body> = (0..arguments.bodies)
        .map(|number| arguments.body(number))
        .collect();
    let forces = |bodies: &[Body]| -> Vec<[f64; 3]> {
        let force = |here: &Body| {
            let mut force = [0.0; 3];
            for other in bodies {
                let [x, y, z] = [0, 1, 2].map(|axis| other.position[axis] - here.position[axis]);
                let square = x * x + y * y + z * z + arguments.softening * arguments.softening;
                let factor = other.mass / (square * square.sqrt());
                force[0] += x * factor;
                force[1] += y * factor;
                force[2] += z * factor;
            }
            force
        };
        bodies.iter().map(force).collect()
    };
    let mut pulls = forces(&bodies);
    for _ in 0..arguments.iterations {
        for (body, pull) in bodies.iter_mut().zip(&pulls) {
            for (axis, pull) in pull.iter().enumerate() {
                body.velocity[axis] += pull * (0.5 * arguments.step);
                body.position[axis] += body.velocity[axis] * arguments.step;
            }
        }
        pulls = forces(&bodies);
        for (body, pull) in bodies.iter_mut().zip(&pulls) {
            for (axis, pull) in pull.iter().enumerate() {
                body.velocity[axis] += pull * (0.5 * arguments.step);
            }
        }
    }
    bodies
}
