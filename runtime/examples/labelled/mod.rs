//! Examples to learn two classes from: those of a CSV file, or ones that follow from a seed.

#![allow(dead_code, reason = "each example uses the part it needs")]

use std::path::PathBuf;

use clap::Args;
use updraft::{
    Error,
    dataflow::{generate, lines_of},
    prelude::*,
};

#[path = "../input/mod.rs"]
pub(crate) mod input;
#[path = "../random/mod.rs"]
mod random;

use random::Random;

/// Features that are multiplied beside one another: vectors are padded with zeros to a multiple of this.
const LANES: usize = 8;

/// What is to be told apart.
#[derive(Debug, Clone, Args)]
pub(crate) struct Examples {
    /// A CSV file without a header, whose last column is the class; without one, examples are generated.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,

    /// The class that is told from all others.
    #[arg(long, default_value = "1", requires = "input")]
    class: String,

    /// Examples to generate.
    #[arg(long, default_value_t = 20_000, value_parser = input::at_least_one, conflicts_with = "input")]
    generate: usize,

    /// Features of a generated example.
    #[arg(long, default_value_t = 16, value_parser = input::at_least_one, conflicts_with = "input")]
    features: usize,

    /// What the generated examples follow from.
    #[arg(long, default_value_t = 1, conflicts_with = "input")]
    seed: u64,
}

/// The class, 1 or -1, and the features, of which the first is always 1, and which are padded with zeros.
pub(crate) type Example = (f64, Vec<f64>);

impl Examples {
    /// Has the examples read or generated, and kept where that was, with features from -1 to 1.
    ///
    /// # Errors
    ///
    /// What is wrong with a line or the file, and what keeps the jobs from running.
    pub(crate) fn cached(&self, env: &mut Env) -> Result<Cached<Example>, Error> {
        let Some(path) = &self.input else {
            let examples = self.clone();
            let hidden = examples.hidden();
            let example = move |number| examples.example(number, &hidden);
            return env.run(&generate(self.generate as u64, example).cache());
        };
        let class = self.class.clone();
        let lines = lines_of(vec![path.clone()])?.named("examples");
        let raw = env.run(&lines.try_map(move |line| parse(line, &class)).cache())?;
        let most = raw.tset().fold(
            Vec::new(),
            |most: &mut Vec<f64>, (_, features)| greatest(most, features.iter()),
            |most, other| greatest(most, other.iter()),
        );
        let most = env.run(&most.first())?.unwrap_or_default();
        let scaled = raw.tset().try_map(move |(class, features)| {
            if features.len() != most.len() {
                let problem = "there are examples with more features than this one";
                return Err(format!("{problem}: {}", features.len() - 1));
            }
            Ok((class, scale(features.iter(), &most)))
        });
        env.run(&scaled.cache())
    }

    /// The examples of part `part` of so many, one after another.
    ///
    /// # Errors
    ///
    /// What is wrong with a line or the file.
    pub(crate) fn part(&self, part: usize, parts: usize) -> Result<Vec<Example>, Error> {
        let Some(path) = &self.input else {
            let edge = |part: usize| (self.generate * part / parts) as u64;
            let hidden = self.hidden();
            let example = |number| self.example(number, &hidden);
            return Ok((edge(part)..edge(part + 1)).map(example).collect());
        };
        let mut most = Vec::new();
        input::lines(path, 0, 1, |line| {
            greatest(&mut most, parse(line, &self.class)?.1.into_iter());
            Ok(())
        })?;
        let mut examples = Vec::new();
        input::lines(path, part, parts, |line| {
            let (class, features) = parse(line, &self.class)?;
            examples.push((class, scale(features.into_iter(), &most)));
            Ok(())
        })?;
        Ok(examples)
    }

    /// The line (or plane) that parts the generated classes.
    fn hidden(&self) -> Vec<f64> {
        let mut random = Random::new(!self.seed);
        let hidden = (0..=self.features).map(|_| 2.0 * random.unit() - 1.0);
        hidden.collect()
    }

    /// One example in twenty is of the wrong class.
    fn example(&self, number: u64, hidden: &[f64]) -> Example {
        let mut random = Random::at(self.seed, number * (self.features as u64 + 1));
        let is_wrong = random.below(20) == 0;
        let features = (0..self.features).map(|_| 2.0 * random.unit() - 1.0);
        let features = padded(std::iter::once(1.0).chain(features));
        let side = dot(hidden, &features);
        let class = if (side > 0.0) == is_wrong { -1.0 } else { 1.0 };
        (class, features)
    }
}

fn parse(line: &str, class: &str) -> Result<Example, String> {
    let problem = || format!("{line:?} is not numbers and a class with commas between them");
    let (features, found) = line.rsplit_once(',').ok_or_else(problem)?;
    let features = features.split(',').map(|field| {
        let feature = field.trim().parse().ok();
        feature.filter(|feature: &f64| feature.is_finite())
    });
    let features = std::iter::once(Some(1.0)).chain(features);
    let features = features.collect::<Option<Vec<_>>>().ok_or_else(problem)?;
    let class = if found.trim() == class { 1.0 } else { -1.0 };
    Ok((class, features))
}

/// Learns how great each feature can be.
fn greatest(most: &mut Vec<f64>, features: impl ExactSizeIterator<Item = f64>) {
    most.resize(most.len().max(features.len()), 0.0);
    for (most, feature) in most.iter_mut().zip(features) {
        *most = most.max(feature.abs());
    }
}

fn scale(features: impl Iterator<Item = f64>, most: &[f64]) -> Vec<f64> {
    let scaled = features.zip(most).map(
        |(feature, &most)| {
            if most > 0.0 { feature / most } else { 0.0 }
        },
    );
    padded(scaled)
}

fn padded(features: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut features: Vec<f64> = features.collect();
    features.resize(features.len().next_multiple_of(LANES), 0.0);
    features
}

/// The product of weights and features; a feature is an `f64`, or what stands for one in a batch of records.
#[inline]
pub(crate) fn dot<X: Copy + Into<f64>>(weights: &[f64], features: &[X]) -> f64 {
    let mut sums = [0.0; LANES];
    for (weights, features) in weights.chunks(LANES).zip(features.chunks(LANES)) {
        for ((sum, weight), &feature) in sums.iter_mut().zip(weights).zip(features) {
            *sum += weight * feature.into();
        }
    }
    sums.iter().sum()
}

/// Adds `factor` times the features to a vector.
#[inline]
pub(crate) fn add<X: Copy + Into<f64>>(vector: &mut [f64], factor: f64, features: &[X]) {
    for (x, &feature) in vector.iter_mut().zip(features) {
        *x += factor * feature.into();
    }
}

/// The share of examples that are on the side of their class.
pub(crate) fn accuracy(weights: &[f64], examples: &[Example]) -> f64 {
    let is_right = |(class, features): &&Example| class * dot(weights, features) > 0.0;
    let right = examples.iter().filter(is_right).count();
    right as f64 / examples.len().max(1) as f64
}

/// The largest difference between weights.
pub(crate) fn difference(found: &[f64], expected: &[f64]) -> f64 {
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // Not `max`, which passes over what is no number.
    differences.fold(
        0.0,
        |most, difference| if difference <= most { most } else { difference },
    )
}
