//! PageRank (Page, Brin, Motwani, Winograd: "The PageRank citation ranking", 1999) on a list of edges, written three times.
//!
//! In the manner of MPI every rank reads or generates a part of the edges and sends each to the rank that owns one of its
//! vertices: an all-to-all. With `--exchange gather` that is the edge's target; then each iteration is an all-gather of what the
//! vertices give. With `--exchange scatter` it is the source; then it is a reduce-scatter of what they get. With `--iterate` the
//! edges are partitioned by a job and stay in the workers, where the same iterations go through them. With `--tset` each iteration is
//! a run of one graph: links and ranks are joined, what vertices get is reduced by key, and the ranks stay in the workers
//! for the next.
//!
//! Vertices without out-edges give to all alike. With `--check` the result is compared with a plain loop: the ranks of
//! vertices differ by rounding alone, relatively by less than 1e-9.

#[path = "../edges/mod.rs"]
mod edges;
mod graph;
#[path = "../history/mod.rs"]
mod history;
mod jobs;
mod kernel;
#[path = "../program/mod.rs"]
mod program;

use std::{process::ExitCode, time::Instant};

use clap::{Parser, ValueEnum};
use edges::{Edge, Graph};
use graph::{By, Part};
use history::{History, Kept};
use kernel::PageRank;
use program::{Executors, check_same};
use updraft::{Error, prelude::*};

/// The largest relative difference to a plain loop that rounding explains.
const DIFFERENCE_MAX: f64 = 1e-9;

/// Ranks the vertices of a graph by PageRank.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    #[command(flatten)]
    graph: Graph,

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

    /// Go through edges that a job has partitioned.
    #[arg(long, conflicts_with = "exchange")]
    iterate: bool,

    /// Run a graph for each iteration.
    #[arg(long, conflicts_with_all = ["exchange", "iterate"])]
    tset: bool,

    /// Vertices to print: those with the highest ranks.
    #[arg(long, default_value_t = 10)]
    top: usize,

    /// Say every so many iterations how much has changed.
    #[arg(long, value_name = "ITERATIONS", default_value_t = 0)]
    every: usize,

    #[command(flatten)]
    kept: Kept,

    /// Compare the result with a plain loop on one thread.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    executors: Executors,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Exchange {
    /// All ranks learn what all vertices give.
    Gather,
    /// Each rank gets what its vertices get.
    Scatter,
}

impl Arguments {
    fn by(&self) -> By {
        match self.exchange {
            Exchange::Gather => By::Target,
            Exchange::Scatter => By::Source,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.executors.run(|env| rank(env, &arguments))
}

/// The ranks of all vertices, on worker 0 at least, and how much each iteration changed.
type Ranked = (Vec<f64>, History);

fn rank(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let (ranks, history) = if arguments.tset {
        jobs::by_graphs(env, arguments)?
    } else if arguments.iterate {
        jobs::iterate(env, arguments)?
    } else {
        let of_all = arguments.clone();
        let ranked = env.bsp(move |world| in_the_manner_of_mpi(world, &of_all))?;
        ranked.into_iter().next().unwrap_or_default()
    };
    if env.worker() != 0 {
        return Ok(());
    }
    eprintln!(
        "{} iterations; {}; the last changed by {:e}",
        history.values.len(),
        history.typical(),
        history.values.last().copied().unwrap_or(f64::NAN)
    );
    if arguments.every > 0 {
        for (number, change) in history.values.iter().enumerate() {
            if (number + 1) % arguments.every == 0 {
                eprintln!("iteration {}: changed by {change:e}", number + 1);
            }
        }
    }
    history.write(&arguments.kept, "change of all ranks together")?;
    print_highest(&ranks, arguments.top);
    if arguments.check {
        check(&ranks, arguments, history.values.len())?;
    }
    Ok(())
}

impl Arguments {
    /// Whether the iterations are at their end, after such changes.
    fn is_done(&self, changes: &[f64]) -> bool {
        changes.len() >= self.iterations
            || changes
                .last()
                .is_some_and(|&change| change <= self.tolerance)
    }
}

fn in_the_manner_of_mpi(world: &Group, arguments: &Arguments) -> Result<Ranked, Error> {
    let started = Instant::now();
    let edges = arguments.graph.part(world.rank(), world.size())?;
    let graph = Part::of(world, edges, arguments.by())?;
    let Part {
        vertices, edges, ..
    } = graph;
    if vertices == 0 {
        return Err(arguments.graph.no_edges());
    }
    if world.rank() == 0 {
        let seconds = started.elapsed().as_secs_f64();
        eprintln!(
            "{vertices} vertices and {edges} edges are where they belong after {seconds:.3} s"
        );
    }
    let out_degrees = &graph.out_degrees[..graph.own.len()];
    let mut ranking = PageRank::new(world, vertices, out_degrees, arguments.damping)?;
    let mut history = History::default();
    while !arguments.is_done(&history.values) {
        let began = Instant::now();
        let change = match arguments.by() {
            By::Target => ranking.pull(world, graph.rows().enumerate())?,
            By::Source => ranking.push(world, graph.rows())?,
        };
        history.add(change, began.elapsed());
    }
    let all = world.gather_v(0, ranking.ranks()).wait()?;
    let ranks = all.map(|all| all.into_elements()).unwrap_or_default();
    Ok((ranks, history))
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
        &arguments.graph.part(0, 1)?,
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
    check_same(difference < DIFFERENCE_MAX && (sum - 1.0).abs() < DIFFERENCE_MAX)
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
