//! K-means clustering by Lloyd's iterations ("Least squares quantization in PCM", 1982).
//!
//! In each iteration every rank assigns its points to the nearest centroid and sums them by centroid; the
//! sums of all ranks are added, and every rank computes the same new centroids. It is written twice: as a
//! dataflow, where the sums are reduced by key and collected on every worker, and, with `--bsp`, in the manner of MPI,
//! where that is an all-reduce. With `--check` the result is compared with a plain loop.

#[path = "../input/mod.rs"]
mod input;
mod kernel;
mod points;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    ops::Range,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use clap::Parser;
use input::{cannot_read, invalid};
use kernel::Clustering;
use points::Generated;
use updraft::{
    Error,
    dataflow::{Narrow, Source, collection, lines_of},
    prelude::*,
};

/// Clusters points by k-means.
#[derive(Debug, Parser)]
struct Arguments {
    /// A CSV file, a point to a line; without one, points are generated.
    points: Option<PathBuf>,

    /// Clusters.
    #[arg(short, long, default_value_t = 8, value_parser = input::at_least_one)]
    k: usize,

    /// Iterations.
    #[arg(short, long, default_value_t = 10)]
    iterations: usize,

    /// Points to generate.
    #[arg(long, default_value_t = 100_000, conflicts_with = "points")]
    generate: usize,

    /// Coordinates of a generated point.
    #[arg(long, default_value_t = 8, conflicts_with = "points")]
    dimensions: usize,

    /// What the generated points follow from.
    #[arg(long, default_value_t = 1, conflicts_with = "points")]
    seed: u64,

    /// Run in the manner of MPI, with an all-reduce, and not as a dataflow.
    #[arg(long)]
    bsp: bool,

    /// Compare the result with a plain loop on one thread.
    #[arg(long)]
    check: bool,

    /// Executors in this process (default: one for each core).
    #[arg(long, value_name = "E")]
    executors: Option<u32>,
}

type Point = Vec<f64>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = Config {
        executors: arguments.executors,
        ..Config::default()
    };
    updraft::exit(updraft::run(config, |env| cluster(env, &arguments)))
}

fn cluster(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let started = Instant::now();
    match &arguments.points {
        Some(path) => {
            let start = first_points(path, arguments.k)?;
            let dimensions = start.first().map_or(0, Vec::len);
            check_points(env, path, dimensions)?;
            let found = if arguments.bsp && dimensions > 0 {
                let path = path.clone();
                in_the_manner_of_mpi(env, arguments.iterations, &start, move |world| {
                    let mut mine = Vec::new();
                    input::lines(&path, world.rank(), world.size(), |line| {
                        mine.extend(parse(line));
                        Ok(())
                    })?;
                    Ok(mine)
                })?
            } else {
                iterate(env, arguments.iterations, start.clone(), |centroids| {
                    Ok(sums(lines_of(vec![path.clone()])?.map(parse), centroids))
                })?
            };
            report(env, arguments, started, found, start, || all_points(path))
        }
        None => {
            let generated = arguments.generated();
            let start = points(&generated, 0..generated.k.min(generated.points));
            let found = if arguments.bsp && generated.dimensions > 0 {
                let generated = generated.clone();
                in_the_manner_of_mpi(env, arguments.iterations, &start, move |world| {
                    let edge = |rank: usize| generated.points * rank / world.size();
                    Ok(generated.coordinates(edge(world.rank())..edge(world.rank() + 1)))
                })?
            } else {
                let shared = collection(points(&generated, 0..generated.points));
                iterate(env, arguments.iterations, start.clone(), |centroids| {
                    Ok(sums(shared.clone(), centroids))
                })?
            };
            report(env, arguments, started, found, start, || {
                Ok(points(&generated, 0..generated.points))
            })
        }
    }
}

/// Lloyd's iterations, on all ranks; `own` gives each its part of the points.
fn in_the_manner_of_mpi(
    env: &mut Env,
    iterations: usize,
    start: &[Point],
    own: impl Fn(&Group) -> Result<Vec<f64>, Error> + Send + Sync + 'static,
) -> Result<Vec<Point>, Error> {
    let dimensions = start.first().map_or(1, Vec::len);
    let start: Vec<f64> = start.iter().flatten().copied().collect();
    let found = env.bsp(move |world| {
        let points = own(world)?;
        let mut clustering = Clustering::new(start.clone(), dimensions);
        for _ in 0..iterations {
            clustering.step(world, &points)?;
        }
        Ok(clustering.centroids().to_vec())
    })?;
    let found = found.into_iter().next().unwrap_or_default();
    Ok(found.chunks(dimensions).map(<[f64]>::to_vec).collect())
}

/// Of each centroid, the sum of its points and their number.
type Sums = Vec<(u32, (Point, u64))>;

/// Lloyd's iterations, on all ranks.
fn iterate(
    env: &mut Env,
    iterations: usize,
    mut centroids: Vec<Point>,
    job: impl Fn(Arc<Vec<Point>>) -> Result<Job<Sums>, Error>,
) -> Result<Vec<Point>, Error> {
    for _ in 0..iterations {
        let mut sums = env.run(&job(Arc::new(centroids.clone()))?)?;
        sums.sort_unstable_by_key(|(centroid, _)| *centroid);
        for (centroid, (sum, count)) in sums {
            centroids[centroid as usize] = mean(&sum, count);
        }
    }
    Ok(centroids)
}

/// Assigns each point to its nearest centroid, and sums them by centroid: the all-reduce.
fn sums<S, N>(points: Stream<S, N>, centroids: Arc<Vec<Point>>) -> Job<Sums>
where
    S: Source,
    N: Narrow<S::Out, Out = Point>,
{
    points
        .flat_map(move |point, out| {
            let nearest = nearest(point.iter(), &centroids);
            out.push((nearest, (point, 1u64)));
        })
        .reduce_by_key(|(mut sum, count), (point, more)| {
            sum.iter_mut()
                .zip(point.iter())
                .for_each(|(sum, x)| *sum += x);
            (sum, count + more)
        })
        .collect()
}

/// The number of the centroid that is nearest to a point; the first one, if several are.
fn nearest(point: impl Iterator<Item = f64> + Clone, centroids: &[Point]) -> u32 {
    let distance = |centroid: &Point| -> f64 {
        point
            .clone()
            .zip(centroid)
            .map(|(x, c)| (x - c) * (x - c))
            .sum()
    };
    let distances = centroids.iter().map(distance).enumerate();
    let nearest = distances.min_by(|(_, a), (_, b)| a.total_cmp(b));
    nearest.map_or(0, |(centroid, _)| centroid as u32)
}

fn mean(sum: &[f64], count: u64) -> Point {
    sum.iter().map(|sum| sum / count as f64).collect()
}

/// The same by a plain loop.
fn reference(points: &[Point], mut centroids: Vec<Point>, iterations: usize) -> Vec<Point> {
    for _ in 0..iterations {
        let mut sums = vec![(Point::new(), 0u64); centroids.len()];
        for point in points {
            let (sum, count) = &mut sums[nearest(point.iter().copied(), &centroids) as usize];
            sum.resize(point.len(), 0.0);
            sum.iter_mut().zip(point).for_each(|(sum, x)| *sum += x);
            *count += 1;
        }
        for (centroid, (sum, count)) in centroids.iter_mut().zip(&sums) {
            if *count > 0 {
                *centroid = mean(sum, *count);
            }
        }
    }
    centroids
}

fn report(
    env: &Env,
    arguments: &Arguments,
    started: Instant,
    found: Vec<Point>,
    start: Vec<Point>,
    points: impl Fn() -> Result<Vec<Point>, Error>,
) -> Result<(), Error> {
    if env.worker() != 0 {
        return Ok(());
    }
    eprintln!(
        "{} iterations in {:.3} s",
        arguments.iterations,
        started.elapsed().as_secs_f64()
    );
    for centroid in &found {
        let texts: Vec<_> = centroid.iter().map(f64::to_string).collect();
        println!("{}", texts.join(","));
    }
    if arguments.check {
        let expected = reference(&points()?, start, arguments.iterations);
        let difference = difference(&found, &expected);
        println!("largest relative difference to a plain loop: {difference:e}");
        if difference > 1e-9 {
            return Err(Error::program(
                "the result differs from that of a plain loop",
            ));
        }
    }
    Ok(())
}

fn difference(found: &[Point], expected: &[Point]) -> f64 {
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    pairs
        .map(|(a, b)| (a - b).abs() / b.abs().max(1.0))
        .fold(0.0, f64::max)
}

impl Arguments {
    fn generated(&self) -> Generated {
        Generated {
            k: self.k,
            points: self.generate,
            dimensions: self.dimensions,
            seed: self.seed,
        }
    }
}

fn points(generated: &Generated, numbers: Range<usize>) -> Vec<Point> {
    let coordinates = generated.coordinates(numbers.clone());
    let dimensions = generated.dimensions;
    (0..numbers.len())
        .map(|number| coordinates[number * dimensions..(number + 1) * dimensions].to_vec())
        .collect()
}

/// The first `k` points of a file, with which the iterations start.
fn first_points(path: &Path, k: usize) -> Result<Vec<Point>, Error> {
    let file = File::open(path).map_err(cannot_read(path))?;
    let lines = BufReader::new(file).lines().take(k);
    lines
        .map(|line| Ok(parse(&line.map_err(cannot_read(path))?)))
        .collect()
}

/// Fails if a line of the file is not a point of so many coordinates.
fn check_points(env: &mut Env, path: &Path, dimensions: usize) -> Result<(), Error> {
    let is_point = move |line: &str| {
        line.split(',')
            .filter(|field| field.trim().parse::<f64>().is_ok_and(f64::is_finite))
            .count()
            == dimensions
            && line.split(',').count() == dimensions
    };
    let bad = env.run(
        &lines_of(vec![path.to_owned()])?
            .filter(move |line| !is_point(line))
            .collect(),
    )?;
    match bad.first() {
        None => Ok(()),
        Some(line) => {
            let problem = format!("{line:?} is not {dimensions} numbers with commas between them");
            Err(cannot_read(path)(invalid(&problem)).into())
        }
    }
}

fn all_points(path: &Path) -> Result<Vec<Point>, Error> {
    Ok(fs::read_to_string(path)
        .map_err(cannot_read(path))?
        .lines()
        .map(parse)
        .collect())
}

/// The numbers of a line that was checked.
fn parse(line: &str) -> Point {
    line.split(',')
        .map(|field| field.trim().parse().unwrap_or(f64::NAN))
        .collect()
}
