//! K-means clustering by Lloyd's iterations ("Least squares quantization in PCM", 1982).
//!
//! In each iteration every rank assigns its points to the nearest centroid and sums them by centroid; the
//! sums are reduced by key and collected on every worker, which is an all-reduce, and every worker
//! computes the same new centroids. With `--check` the result is compared with a plain loop.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::Parser;
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
    #[arg(short, long, default_value_t = 8)]
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
    match &arguments.points {
        Some(path) => {
            let start = first_points(path, arguments.k)?;
            check_points(env, path, start.first().map_or(0, Vec::len))?;
            let found = iterate(env, arguments.iterations, start.clone(), |centroids| {
                Ok(sums(lines_of(vec![path.clone()])?.map(parse), centroids))
            })?;
            report(env, arguments, found, start, || all_points(path))
        }
        None => {
            let points = generate(arguments);
            let start = points[..arguments.k.min(points.len())].to_vec();
            let shared = collection(points.clone());
            let found = iterate(env, arguments.iterations, start.clone(), |centroids| {
                Ok(sums(shared.clone(), centroids))
            })?;
            report(env, arguments, found, start, || Ok(points.clone()))
        }
    }
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
    found: Vec<Point>,
    start: Vec<Point>,
    points: impl Fn() -> Result<Vec<Point>, Error>,
) -> Result<(), Error> {
    if env.worker() != 0 {
        return Ok(());
    }
    for centroid in &found {
        let texts: Vec<_> = centroid.iter().map(f64::to_string).collect();
        println!("{}", texts.join(","));
    }
    if arguments.check {
        let expected = reference(&points()?, start, arguments.iterations);
        let difference = difference(&found, &expected);
        println!("largest relative difference to a plain loop: {difference:e}");
        if difference > 1e-9 {
            let reason = "the result differs from that of a plain loop".to_owned();
            return Err(Error::Config { reason });
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

/// Points around `k` places, on a grid of 1/1024: their sums are exact, so the result does not depend on
/// the order in which they are added.
fn generate(arguments: &Arguments) -> Vec<Point> {
    let mut state = arguments.seed;
    let mut draw = move || {
        // SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut coordinate = move |spread: u64| (draw() % (spread * 1024)) as f64 / 1024.0;
    let places: Vec<Point> = (0..arguments.k)
        .map(|_| {
            (0..arguments.dimensions)
                .map(|_| coordinate(1000))
                .collect()
        })
        .collect();
    (0..arguments.generate)
        .map(|number| {
            let place = &places[number % places.len()];
            place.iter().map(|x| x + coordinate(100)).collect()
        })
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
            Err(cannot_read(path)(io::Error::new(io::ErrorKind::InvalidData, problem)).into())
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

fn cannot_read(path: &Path) -> impl Fn(io::Error) -> updraft::dataflow::Error {
    move |source| updraft::dataflow::Error::Input {
        path: path.to_owned(),
        source,
    }
}

/// The numbers of a line that was checked.
fn parse(line: &str) -> Point {
    line.split(',')
        .map(|field| field.trim().parse().unwrap_or(f64::NAN))
        .collect()
}
