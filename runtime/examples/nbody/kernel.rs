//! Attraction among bodies that the ranks share.

use std::array;

use updraft::collectives::{Error, ExactSum, Group};

/// Bodies whose forces are computed beside one another.
const LANES: usize = 4;

/// A body, to begin with.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    pub(crate) position: [f64; 3],
    pub(crate) velocity: [f64; 3],
    pub(crate) mass: f64,
}

/// The bodies of a rank: a block, all of which are equally long. What is over in the last ones has no mass, and hence no
/// influence. No step allocates.
#[derive(Debug)]
pub(crate) struct Share {
    /// Bodies of this rank.
    own: usize,
    block: usize,
    softening_square: f64,
    /// Positions and masses of the own bodies: all x, then all y, all z and all masses.
    bodies: Vec<f64>,
    velocities: [Vec<f64>; 3],
    forces: [Vec<f64>; 3],
    /// The `bodies` of all ranks.
    all: Vec<f64>,
}

impl Share {
    /// This rank's share of so many bodies, of which `body` gives each.
    pub(crate) fn new(
        world: &Group,
        count: usize,
        softening: f64,
        body: impl Fn(usize) -> Body,
    ) -> Result<Self, Error> {
        let block = count.div_ceil(world.size()).next_multiple_of(LANES);
        let first = (world.rank() * block).min(count);
        let own = (first + block).min(count) - first;
        let mut new = Self {
            own,
            block,
            softening_square: softening * softening,
            bodies: vec![0.0; 4 * block],
            velocities: array::from_fn(|_| vec![0.0; block]),
            forces: array::from_fn(|_| vec![0.0; block]),
            all: vec![0.0; 4 * block * world.size()],
        };
        for place in 0..own {
            let body = body(first + place);
            for axis in 0..3 {
                new.bodies[axis * block + place] = body.position[axis];
                new.velocities[axis][place] = body.velocity[axis];
            }
            new.bodies[3 * block + place] = body.mass;
        }
        new.attract(world)?;
        Ok(new)
    }

    /// Learns where all bodies are, and computes the forces on the own ones.
    fn attract(&mut self, world: &Group) -> Result<(), Error> {
        world.all_gather(&self.bodies, &mut self.all).wait()?;
        let block = self.block;
        for first in (0..block).step_by(LANES) {
            let lanes = |axis: usize| -> [f64; LANES] {
                array::from_fn(|lane| self.bodies[axis * block + first + lane])
            };
            let here = [lanes(0), lanes(1), lanes(2)];
            let mut force = [[0.0; LANES]; 3];
            for theirs in self.all.chunks_exact(4 * block) {
                let (x, rest) = theirs.split_at(block);
                let (y, rest) = rest.split_at(block);
                let (z, mass) = rest.split_at(block);
                for (((&x, &y), &z), &mass) in x.iter().zip(y).zip(z).zip(mass) {
                    for lane in 0..LANES {
                        let (dx, dy, dz) =
                            (x - here[0][lane], y - here[1][lane], z - here[2][lane]);
                        let square = dx * dx + dy * dy + dz * dz + self.softening_square;
                        let factor = mass / (square * square.sqrt());
                        force[0][lane] += dx * factor;
                        force[1][lane] += dy * factor;
                        force[2][lane] += dz * factor;
                    }
                }
            }
            for (forces, force) in self.forces.iter_mut().zip(&force) {
                forces[first..first + LANES].copy_from_slice(force);
            }
        }
        Ok(())
    }

    fn kick(&mut self, time: f64) {
        for (velocities, forces) in self.velocities.iter_mut().zip(&self.forces) {
            for (velocity, force) in velocities.iter_mut().zip(forces) {
                *velocity += force * time;
            }
        }
    }

    /// One step, on all ranks.
    pub(crate) fn step(&mut self, world: &Group, time: f64) -> Result<(), Error> {
        self.kick(0.5 * time);
        for (positions, velocities) in self
            .bodies
            .chunks_exact_mut(self.block)
            .zip(&self.velocities)
        {
            for (position, velocity) in positions.iter_mut().zip(velocities) {
                *position += velocity * time;
            }
        }
        self.attract(world)?;
        self.kick(0.5 * time);
        Ok(())
    }

    /// The energy of all bodies: of their motion, and of their attraction. What each has is added up exactly.
    pub(crate) fn energy(&self, world: &Group) -> Result<f64, Error> {
        let block = self.block;
        let mut sum = [ExactSum::new()];
        for place in 0..self.own {
            let mass = self.bodies[3 * block + place];
            let here: [f64; 3] = array::from_fn(|axis| self.bodies[axis * block + place]);
            let squares = self
                .velocities
                .iter()
                .map(|velocities| velocities[place].powi(2));
            let mut energy = 0.5 * mass * squares.sum::<f64>();
            for theirs in self.all.chunks_exact(4 * block) {
                for other in 0..block {
                    let square: f64 = (0..3)
                        .map(|axis| (theirs[axis * block + other] - here[axis]).powi(2))
                        .sum();
                    if square > 0.0 {
                        let distance = (square + self.softening_square).sqrt();
                        // Each pair is met twice.
                        energy -= 0.5 * mass * theirs[3 * block + other] / distance;
                    }
                }
            }
            sum[0].add(energy);
        }
        world.all_reduce_sums(&mut sum).wait()?;
        Ok(sum[0].value())
    }

    /// Position and velocity of each own body.
    pub(crate) fn state(&self) -> Vec<[f64; 6]> {
        let state = |place: usize| {
            array::from_fn(|number| match number {
                0..3 => self.bodies[number * self.block + place],
                _ => self.velocities[number - 3][place],
            })
        };
        (0..self.own).map(state).collect()
    }
}
