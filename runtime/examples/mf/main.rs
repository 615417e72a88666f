//! Matrix factorization by stochastic gradient descent with rotation: the SGD of Harp (Zhang, Peng, Qiu: "Model-centric
//! computation abstractions in machine learning applications", BeyondMR 2016).
//!
//! Every rank has some of the users, with their factors and ratings. The factors of the items are a table in as many partitions
//! as are wanted; they go round the ranks, each of which trains those that are there on its own ratings while
//! others are on their way. A factor is at one rank at a time, so there are no conflicts: the result is that of one thread
//! that takes the same steps in the order of the rotation, to the last bit, which `--check` shows. The order, and with it the
//! result, depends on the number of ranks.

#[path = "../input/mod.rs"]
mod input;
mod kernel;
#[path = "../program/mod.rs"]
mod program;
#[path = "../random/mod.rs"]
mod random;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;
use kernel::{Descent, LANES, Rating};
use program::{Executors, check_same};
use random::Random;
use updraft::{
    Error,
    collectives::{
        harp::{Replace, Table},
        op::{Max, Sum},
    },
    prelude::*,
};

/// Factors of the ratings that are generated.
const HIDDEN: u64 = 4;

/// Finds factors of users and items whose products are the ratings.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// A file with a rating to a line: the numbers of a user and an item, and the rating; without one, ratings are generated.
    ratings: Option<PathBuf>,

    /// Users to generate.
    #[arg(long, default_value_t = 2000, value_parser = input::at_least_one, conflicts_with = "ratings")]
    users: usize,

    /// Items to generate.
    #[arg(long, default_value_t = 1000, value_parser = input::at_least_one, conflicts_with = "ratings")]
    items: usize,

    /// Ratings to generate.
    #[arg(long, default_value_t = 200_000, conflicts_with = "ratings")]
    generate: usize,

    /// Factors of a user or an item.
    #[arg(short, long, default_value_t = 16, value_parser = input::at_least_one)]
    factors: usize,

    /// Rounds, in which every rating is trained on once.
    #[arg(short, long, default_value_t = 20)]
    iterations: usize,

    /// How far a step goes.
    #[arg(long, default_value_t = 0.02)]
    rate: f32,

    /// How strongly factors are drawn to zero.
    #[arg(long, default_value_t = 0.01)]
    regularization: f32,

    /// Partitions of the items for each rank.
    #[arg(long, default_value_t = 4, value_parser = input::at_least_one)]
    partitions: usize,

    /// What the factors at the beginning, and the ratings, follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Say every so many rounds how large the error is.
    #[arg(long, value_name = "ROUNDS", default_value_t = 0)]
    every: usize,

    /// Compare the result with that of the same steps on one thread.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    executors: Executors,
}

/// A user, an item, and the bits of a rating.
type Entry = [u32; 3];

impl Arguments {
    /// The ratings in one of so many parts.
    fn entries(&self, part: usize, parts: usize) -> Result<Vec<Entry>, Error> {
        if let Some(path) = &self.ratings {
            let mut entries = Vec::new();
            input::lines(path, part, parts, |line| {
                let mut fields = line
                    .split([' ', '\t', ','])
                    .filter(|field| !field.is_empty());
                let mut field = || fields.next().unwrap_or_default();
                let entry = (field().parse(), field().parse(), field().parse::<f32>());
                match (entry, fields.next()) {
                    ((Ok(user), Ok(item), Ok(value)), None) if value.is_finite() => {
                        entries.push([user, item, value.to_bits()]);
                        Ok(())
                    }
                    _ => Err("a user, an item and a rating".to_owned()),
                }
            })?;
            return Ok(entries);
        }
        let edge = |part: usize| self.generate * part / parts;
        let hidden = |kind: u64, number: u64| {
            let mut random = Random::at(self.seed ^ kind, number * HIDDEN);
            [(); HIDDEN as usize].map(|()| random.unit())
        };
        let entry = |number: usize| {
            let mut random = Random::at(self.seed, 3 * number as u64);
            let user = random.below(self.users as u64);
            let item = random.below(self.items as u64);
            let factors = hidden(1 << 32, user).into_iter().zip(hidden(1 << 33, item));
            let value: f64 = factors.map(|(w, h)| w * h).sum();
            let noise = 0.1 * (random.unit() - 0.5);
            [user as u32, item as u32, ((value + noise) as f32).to_bits()]
        };
        Ok((edge(part)..edge(part + 1)).map(entry).collect())
    }

    fn descent(&self) -> Descent {
        Descent {
            factors: self.factors.next_multiple_of(LANES),
            rate: self.rate,
            regularization: self.regularization,
        }
    }

    /// The factors at the beginning of those users or items that are `first` and every `step`-th after it.
    fn factors(&self, kind: u64, first: usize, step: usize, end: usize) -> Vec<f32> {
        let most = 1.0 / (self.factors as f64).sqrt();
        let padding = self.factors.next_multiple_of(LANES) - self.factors;
        let of = |number: usize| {
            let mut random = Random::at(self.seed ^ kind, (number * self.factors) as u64);
            let factors = (0..self.factors).map(move |_| (most * random.unit()) as f32);
            factors.chain(std::iter::repeat_n(0.0, padding))
        };
        (first..end).step_by(step).flat_map(of).collect()
    }

    fn user_factors(&self, rank: usize, ranks: usize, users: usize) -> Vec<f32> {
        self.factors(1 << 34, rank, ranks, users)
    }

    fn item_factors(&self, partition: usize, partitions: usize, items: usize) -> Vec<f32> {
        self.factors(1 << 35, partition, partitions, items)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments
        .executors
        .bsp(move |world| factorize(world, &arguments))
}

/// The ratings of the users of a rank, by partition of the items.
fn by_partition(entries: &[Entry], ranks: usize, partitions: usize) -> Vec<Vec<Rating>> {
    let mut ratings = vec![Vec::new(); partitions];
    for &[user, item, bits] in entries {
        ratings[item as usize % partitions].push(Rating {
            user: user / ranks as u32,
            item: item / partitions as u32,
            value: f32::from_bits(bits),
        });
    }
    ratings
}

fn factorize(world: &Group, arguments: &Arguments) -> Result<(), Error> {
    let (me, size) = (world.rank(), world.size());
    let entries = arguments.entries(me, size)?;
    let mut extent = [0u64; 2];
    for entry in &entries {
        extent = [0, 1].map(|axis| extent[axis].max(u64::from(entry[axis]) + 1));
    }
    world.all_reduce(&mut extent, Max).wait()?;
    let [users, items] = extent.map(|extent| extent as usize);

    // Every rating to the rank that has its user.
    let mut parts = vec![Vec::new(); size];
    for entry in entries {
        parts[entry[0] as usize % size].push(entry);
    }
    let slices: Vec<&[Entry]> = parts.iter().map(Vec::as_slice).collect();
    let entries = world.all_to_all_v(&slices).wait()?.into_elements();
    let partitions = arguments.partitions * size;
    let ratings = by_partition(&entries, size, partitions);
    let mut count = [entries.len() as u64];
    world.all_reduce(&mut count, Sum).wait()?;
    if count[0] == 0 {
        return Err(Error::program("there are no ratings"));
    }

    let descent = arguments.descent();
    let mut own = arguments.user_factors(me, size, users);
    let mut table = Table::new(Replace);
    for partition in (me..partitions).step_by(size) {
        table.add(
            partition as u64,
            arguments.item_factors(partition, partitions, items),
        )?;
    }
    let error = |table: &mut Table<Vec<f32>, Replace>, own: &[f32]| -> Result<f64, Error> {
        let mut sum = [0.0];
        table
            .rotate_with(world, |_, partition, factors| {
                sum[0] += descent.square_error(&ratings[partition as usize], own, factors);
            })
            .wait()?;
        world.all_reduce(&mut sum, Sum).wait()?;
        Ok((sum[0] / count[0] as f64).sqrt())
    };
    let at_first = error(&mut table, &own)?;

    let started = Instant::now();
    for round in 1..=arguments.iterations {
        table
            .rotate_with(world, |_, partition, factors| {
                descent.train(&ratings[partition as usize], &mut own, factors);
            })
            .wait()?;
        if arguments.every > 0 && round % arguments.every == 0 {
            let error = error(&mut table, &own)?;
            if me == 0 {
                eprintln!("round {round}: RMSE {error}");
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let at_last = error(&mut table, &own)?;
    if me == 0 {
        let steps = count[0] as f64 * arguments.iterations as f64;
        eprintln!(
            "{} rounds in {seconds:.3} s: {:.1} million ratings/s",
            arguments.iterations,
            steps / seconds / 1e6
        );
        println!("RMSE {at_first} at first, {at_last} at last");
    }
    if !arguments.check {
        return Ok(());
    }
    let all_users = world.gather_v(0, &own).wait()?;
    table.reduce(world, 0).wait()?;
    let Some(all_users) = all_users else {
        return Ok(());
    };
    let expected = reference(arguments, size, [users, items])?;
    let bits = |factors: &[f32]| factors.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let users_differ = all_users.iter().zip(&expected.users);
    let users_differ = users_differ.filter(|(found, expected)| bits(found) != bits(expected));
    let items_differ = expected.items.iter().enumerate();
    let items_differ = items_differ.filter(|(partition, expected)| {
        let found = table.get(*partition as u64);
        found.map(|found| bits(found)) != Some(bits(expected))
    });
    let differ = users_differ.count() + items_differ.count();
    println!("parts that differ from those of the same steps in a plain loop: {differ}");
    check_same(differ == 0)?;
    if arguments.iterations > 0 && at_last >= at_first {
        return Err(Error::program("the error does not fall"));
    }
    Ok(())
}

/// The factors of the users by rank, and of the items by partition.
struct Factors {
    users: Vec<Vec<f32>>,
    items: Vec<Vec<f32>>,
}

/// The same steps by a plain loop, in the order of the rotation.
fn reference(
    arguments: &Arguments,
    ranks: usize,
    [users, items]: [usize; 2],
) -> Result<Factors, Error> {
    let partitions = arguments.partitions * ranks;
    let entries = arguments.entries(0, 1)?;
    let ratings: Vec<_> = (0..ranks)
        .map(|rank| {
            let is_own = |entry: &&Entry| entry[0] as usize % ranks == rank;
            let own: Vec<Entry> = entries.iter().filter(is_own).copied().collect();
            by_partition(&own, ranks, partitions)
        })
        .collect();
    let mut factors = Factors {
        users: (0..ranks)
            .map(|rank| arguments.user_factors(rank, ranks, users))
            .collect(),
        items: (0..partitions)
            .map(|partition| arguments.item_factors(partition, partitions, items))
            .collect(),
    };
    let descent = arguments.descent();
    for _ in 0..arguments.iterations {
        for step in 0..ranks {
            for (rank, ratings) in ratings.iter().enumerate() {
                for partition in ((rank + ranks - step) % ranks..partitions).step_by(ranks) {
                    let own = &mut factors.users[rank];
                    descent.train(&ratings[partition], own, &mut factors.items[partition]);
                }
            }
        }
    }
    Ok(factors)
}
