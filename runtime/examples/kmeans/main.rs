//! K-means clustering by Lloyd's iterations ("Least squares quantization in PCM", 1982).
//!
//! In each iteration every rank assigns its points to the nearest centroid and sums them by centroid; the
//! sums of all ranks are added, and every rank computes the same new centroids. The points stay in the workers: they are
//! read or generated once, and `Env::iterate` goes through them in place. With `--dataflow` each iteration is a run of one
//! graph, with the centroids as its variable, in which the points are folded into the sums; `Env::repeat` goes on from one to
//! the next. With `--bsp` it is written by hand in the manner of MPI, to compare with. With `--check` the result is compared with a plain loop.

#[path = "../history/mod.rs"]
mod history;
#[path = "../input/mod.rs"]
mod input;
mod kernel;
mod points;
#[path = "../program/mod.rs"]
mod program;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    ops::Range,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use history::{History, Kept};
use input::{cannot_read, invalid};
use kernel::{Clustering, add};
use points::Generated;
use program::{Executors, check_same};
use updraft::{
    Error,
    dataflow::{generate, lines_of},
    prelude::*,
};

/// Clusters points by k-means.
#[derive(Debug, Clone, Parser)]
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

    /// Run a graph for each iteration.
    #[arg(long, conflicts_with = "bsp")]
    dataflow: bool,

    /// Run in the manner of MPI.
    #[arg(long)]
    bsp: bool,

    #[command(flatten)]
    kept: Kept,

    /// Compare the result with a plain loop on one thread.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    executors: Executors,
}

type Point = Vec<f64>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.executors.run(|env| cluster(env, &arguments))
}

fn cluster(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let start = match &arguments.points {
        Some(path) => {
            let start = first_points(path, arguments.k)?;
            check_points(env, path, start.first().map_or(0, Vec::len))?;
            start
        }
        None => arguments.points(0..arguments.k.min(arguments.generate)),
    };
    let began = Instant::now();
    let (found, history) = if start.iter().all(Vec::is_empty) {
        (start.clone(), History::default())
    } else if arguments.dataflow {
        by_graphs(env, arguments, &start)?
    } else if arguments.bsp {
        in_the_manner_of_mpi(env, arguments, &start)?
    } else {
        iterate(env, arguments, &start)?
    };
    if env.worker() == 0 {
        report(arguments, began.elapsed(), &found, &history)?;
        if arguments.check {
            check(arguments, &found, start)?;
        }
    }
    Ok(())
}

/// Has the points read or generated, and kept where that was.
fn cached(env: &mut Env, arguments: &Arguments) -> Result<Cached<Point>, Error> {
    match &arguments.points {
        Some(path) => env.run(&lines_of(vec![path.clone()])?.map(parse).cache()),
        None => {
            let generated = arguments.generated();
            let places = generated.places();
            let point = move |number| generated.point(&places, number as usize);
            env.run(&generate(arguments.generate as u64, point).cache())
        }
    }
}

/// Lloyd's iterations, inside the workers.
fn iterate(
    env: &mut Env,
    arguments: &Arguments,
    start: &[Point],
) -> Result<(Vec<Point>, History), Error> {
    let points = cached(env, arguments)?;
    let iterations = arguments.iterations;
    let ended = env.iterate(
        &points,
        clustering(start),
        move |squares| squares.len() == iterations,
        |clustering, round| {
            let points = round.records().map(Slice::archived);
            Ok(clustering.step(round.world, points)?)
        },
    )?;
    let (clustering, history) = History::of(ended);
    Ok((clustering.points(), history))
}

/// The same by hand.
fn in_the_manner_of_mpi(
    env: &mut Env,
    arguments: &Arguments,
    start: &[Point],
) -> Result<(Vec<Point>, History), Error> {
    let start = clustering(start);
    let dimensions = start.dimensions();
    let arguments = arguments.clone();
    let found = env.bsp(move |world| {
        let mine = arguments.coordinates(world.rank(), world.size())?;
        let (mut clustering, mut history) = (start.clone(), History::default());
        for _ in 0..arguments.iterations {
            let began = Instant::now();
            let squares = clustering.step(world, mine.chunks_exact(dimensions))?;
            history.add(squares, began.elapsed());
        }
        Ok((clustering.points(), history))
    })?;
    Ok(found.into_iter().next().unwrap_or_default())
}

fn clustering(start: &[Point]) -> Clustering {
    let dimensions = start.first().map_or(1, Vec::len);
    Clustering::new(start.iter().flatten().copied().collect(), dimensions)
}

/// Lloyd's iterations, each a run of the same graph.
fn by_graphs(
    env: &mut Env,
    arguments: &Arguments,
    start: &[Point],
) -> Result<(Vec<Point>, History), Error> {
    let start = clustering(start);
    let centroids = Variable::new(start.clone());
    // Assigns each point to its nearest centroid, and sums them by centroid.
    let sums = cached(env, arguments)?
        .tset()
        .flat_map_with(&centroids, |point, centroids, out| {
            let (nearest, square) = centroids.nearest(point.archived());
            out.push((nearest as u64, (square, point)));
        })
        .fold(
            start.zeros(),
            |sums, (nearest, (square, point))| {
                add(sums, (nearest as usize, square), point.archived());
            },
            |sums, part| {
                let pairs = sums.iter_mut().zip(part.iter());
                pairs.for_each(|(sum, more)| *sum += more);
            },
        )
        .first();
    let (iterations, mut history) = (arguments.iterations, History::default());
    if iterations > 0 {
        let (mut clustering, moved) = (start, centroids.clone());
        let squares = move |sums: Option<Vec<f64>>| {
            let squares = clustering.move_by(&sums.unwrap_or_default());
            moved.set(clustering.clone());
            squares
        };
        history = History::of_runs(env, &sums, squares, move |all| all.len() < iterations)?;
    }
    Ok((centroids.get().points(), history))
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
    arguments: &Arguments,
    took: Duration,
    found: &[Point],
    history: &History,
) -> Result<(), Error> {
    eprintln!(
        "{} iterations in {:.3} s; {}",
        arguments.iterations,
        took.as_secs_f64(),
        history.typical()
    );
    for centroid in found {
        let texts: Vec<_> = centroid.iter().map(f64::to_string).collect();
        println!("{}", texts.join(","));
    }
    history.write(&arguments.kept, "sum of the squares of all distances")
}

fn check(arguments: &Arguments, found: &[Point], start: Vec<Point>) -> Result<(), Error> {
    let points = match &arguments.points {
        Some(path) => all_points(path)?,
        None => arguments.points(0..arguments.generate),
    };
    let difference = difference(found, &reference(&points, start, arguments.iterations));
    println!("largest relative difference to a plain loop: {difference:e}");
    check_same(difference <= 1e-9)
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
            dimensions: self.dimensions,
            seed: self.seed,
        }
    }

    /// Some of the generated points.
    fn points(&self, numbers: Range<usize>) -> Vec<Point> {
        let generated = self.generated();
        let places = generated.places();
        let point = |number| generated.point(&places, number);
        numbers.map(point).collect()
    }

    /// The coordinates of the points in part `part` of so many, one after another.
    fn coordinates(&self, part: usize, parts: usize) -> Result<Vec<f64>, Error> {
        let Some(path) = &self.points else {
            let edge = |part: usize| self.generate * part / parts;
            return Ok(self.generated().coordinates(edge(part)..edge(part + 1)));
        };
        let mut coordinates = Vec::new();
        input::lines(path, part, parts, |line| {
            coordinates.extend(parse(line));
            Ok(())
        })?;
        Ok(coordinates)
    }
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
