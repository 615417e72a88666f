//! PageRank (Page, Brin, Motwani, Winograd: "The PageRank citation ranking", 1999) on a list of edges, in the
//! manner of MPI.
//!
//! Every rank reads or generates a part of the edges and sends each to the rank that owns one of its vertices: an
//! all-to-all. With `--exchange gather` that is the edge's target; then each iteration is an all-gather of what the vertices
//! give. With `--exchange scatter` it is the source; then it is a reduce-scatter of what they get.
//! Vertices without out-edges give to all alike. With `--check` the result is compared with a plain loop: the ranks of
//! vertices differ by rounding alone, relatively by less than 1e-9.

mod graph;
mod kernel;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::{Parser, ValueEnum};
use graph::{By, Edge, Generated, Part, input};
use kernel::PageRank;
use updraft::{Error, prelude::*};

/// The largest relative difference to a plain loop that rounding explains.
const DIFFERENCE_MAX: f64 = 1e-9;

/// Ranks the vertices of a graph by PageRank.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// A file with an edge to a line, as two numbers of vertices; without one, a graph is generated.
    edges: Option<PathBuf>,

    /// Vertices to generate.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "edges")]
    vertices: u32,

    /// Edges to generate.
    #[arg(long, default_value_t = 1_600_000, conflicts_with = "edges")]
    generate: usize,

    /// What the generated graph follows from.
    #[arg(long, default_value_t = 1, conflicts_with = "edges")]
    seed: u64,

    /// The most iterations.
    #[arg(short, long, default_value_t = 50)]
    iterations: usize,

    /// The iterations end when the ranks of all vertices change by no more than this together.
    #[arg(long, default_value_t = 1e-10)]
    tolerance: f64,

    /// The share of a rank that follows edges.
    #[arg(long, default_value_t = 0.85)]
    damping: f64,

    /// How ranks exchange what vertices give to one another.
    #[arg(long, value_enum, default_value_t = Exchange::Gather)]
    exchange: Exchange,

    /// Vertices to print: those with the highest ranks.
    #[arg(long, default_value_t = 10)]
    top: usize,

    /// Say every so many iterations how much has changed.
    #[arg(long, value_name = "ITERATIONS", default_value_t = 0)]
    every: usize,

    /// Compare the result with a plain loop on one thread.
    #[arg(long)]
    check: bool,

    /// Executors in this process (default: one for each core).
    #[arg(long, value_name = "E")]
    executors: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Exchange {
    /// All ranks learn what all vertices give.
    Gather,
    /// Each rank gets what its vertices get.
    Scatter,
}

impl Arguments {
    /// The edges in one of so many parts.
    fn edges(&self, part: usize, parts: usize) -> Result<Vec<Edge>, Error> {
        if let Some(path) = &self.edges {
            return Ok(graph::read(path, part, parts)?);
        }
        let generated = Generated {
            vertices: self.vertices,
            edges: self.generate,
            seed: self.seed,
        };
        let edge = |part: usize| generated.edges * part / parts;
        Ok(generated.edges(edge(part)..edge(part + 1)))
    }

    fn by(&self) -> By {
        match self.exchange {
            Exchange::Gather => By::Target,
            Exchange::Scatter => By::Source,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = Config {
        executors: arguments.executors,
        ..Config::default()
    };
    updraft::exit(updraft::bsp(config, move |world| rank(world, &arguments)).map(drop))
}

fn rank(world: &Group, arguments: &Arguments) -> Result<(), Error> {
    let is_first = world.rank() == 0;
    let started = Instant::now();
    let edges = arguments.edges(world.rank(), world.size())?;
    let graph = Part::of(world, edges, arguments.by())?;
    if graph.vertices == 0 {
        return Err(no_edges(arguments));
    }
    if is_first {
        let seconds = started.elapsed().as_secs_f64();
        let Part {
            vertices, edges, ..
        } = graph;
        eprintln!(
            "{vertices} vertices and {edges} edges are where they belong after {seconds:.3} s"
        );
    }

    let started = Instant::now();
    let mut ranking = PageRank::new(world, &graph, arguments.by(), arguments.damping)?;
    let (mut iterations, mut change) = (0, f64::INFINITY);
    while iterations < arguments.iterations && change > arguments.tolerance {
        change = ranking.step(world)?;
        iterations += 1;
        if is_first && arguments.every > 0 && iterations % arguments.every == 0 {
            eprintln!("iteration {iterations}: changed by {change:e}");
        }
    }
    if is_first {
        let seconds = started.elapsed().as_secs_f64();
        let rate = (graph.edges * iterations) as f64 / seconds / 1e6;
        eprintln!(
            "{iterations} iterations in {seconds:.3} s: {rate:.1} million edges/s; the last changed by {change:e}"
        );
    }

    let all = world.gather_v(0, ranking.ranks()).wait()?;
    let Some(ranks) = all else { return Ok(()) };
    let ranks = ranks.into_elements();
    print_highest(&ranks, arguments.top);
    if arguments.check {
        check(&ranks, arguments, iterations)?;
    }
    Ok(())
}

fn no_edges(arguments: &Arguments) -> Error {
    match &arguments.edges {
        Some(path) => input::cannot_read(path)(input::invalid("there are no edges")).into(),
        None => Error::program("there are no edges"),
    }
}

fn print_highest(ranks: &[f64], count: usize) {
    let mut vertices: Vec<usize> = (0..ranks.len()).collect();
    vertices.sort_by(|&one, &other| ranks[other].total_cmp(&ranks[one]));
    for &vertex in vertices.iter().take(count) {
        println!("{vertex}\t{:.9}", ranks[vertex]);
    }
}

fn check(ranks: &[f64], arguments: &Arguments, iterations: usize) -> Result<(), Error> {
    let expected = reference(
        &arguments.edges(0, 1)?,
        ranks.len(),
        arguments.damping,
        iterations,
    );
    let pairs = ranks.iter().zip(&expected);
    let difference = pairs.map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max);
    let sum: f64 = ranks.iter().sum();
    println!(
        "largest relative difference to a plain loop: {difference:e}; all ranks together: {sum:.12}"
    );
    if difference < DIFFERENCE_MAX && (sum - 1.0).abs() < DIFFERENCE_MAX {
        return Ok(());
    }
    Err(Error::program(
        "the result differs from that of a plain loop",
    ))
}

/// The same by a plain loop over the edges.
fn reference(edges: &[Edge], vertices: usize, damping: f64, iterations: usize) -> Vec<f64> {
    let mut degrees = vec![0u32; vertices];
    for [from, _] in edges {
        degrees[*from as usize] += 1;
    }
    let mut ranks = vec![1.0 / vertices as f64; vertices];
    for _ in 0..iterations {
        let mut new = vec![0.0; vertices];
        for [from, to] in edges {
            new[*to as usize] += ranks[*from as usize] / f64::from(degrees[*from as usize]);
        }
        let dangling: f64 = (0..vertices)
            .filter(|&vertex| degrees[vertex] == 0)
            .map(|vertex| ranks[vertex])
            .sum();
        for new in &mut new {
            *new = (1.0 - damping + damping * dangling) / vertices as f64 + damping * *new;
        }
        ranks = new;
    }
    ranks
}
