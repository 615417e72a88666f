//! The shortest paths from one vertex to all others, by the rounds of Bellman and Ford (Bellman: "On a routing problem",
//! 1958).
//!
//! In each round the vertices that have come nearer offer their neighbours the way through them, and each takes the
//! shortest that it is offered: a join of edges with distances, and one of distances with offers. The edges stay in the
//! workers, and so do the distances, which each round of the one graph leaves for the next, until none changes. How long an edge is follows from its
//! vertices. With `--check` the result is compared with the algorithm of Dijkstra on one thread.

#[path = "../edges/mod.rs"]
mod edges;
#[path = "../history/mod.rs"]
mod history;
#[path = "../program/mod.rs"]
mod program;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use edges::{Graph, random::Random};
use history::{History, Kept};
use program::{Executors, check_same};
use updraft::{Error, prelude::*};

/// Finds the shortest paths from a vertex of a directed graph to all others.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    #[command(flatten)]
    graph: Graph,

    /// The vertex at which all paths begin.
    #[arg(long, default_value_t = 0)]
    from: u32,

    /// The length of the longest edges; the shortest have 1.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    longest: u32,

    /// Vertices to print: the farthest ones.
    #[arg(long, default_value_t = 10)]
    top: usize,

    /// Compare the result with the algorithm of Dijkstra on one thread.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    kept: Kept,

    #[command(flatten)]
    executors: Executors,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.executors.run(|env| find(env, &arguments))
}

/// How long an edge is.
fn length([from, to]: [u32; 2], longest: u32) -> u64 {
    let mut random = Random::new(u64::from(from) << 32 | u64::from(to));
    1 + random.below(longest.into())
}

fn find(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let (from, longest) = (arguments.from, arguments.longest);
    let started = Instant::now();
    let edges = arguments.graph.cached(env)?;
    // To where edges lead, and how far, by the vertex that they leave.
    let edges = edges
        .tset()
        .map(move |(one, other)| (one, (other, length([one, other], longest))))
        .exchange_by_key();
    let edges = env.run(&edges.cache())?;
    // Of each vertex that was reached its distance, and whether that is new.
    let start = env.collection(vec![(from, (0u64, true))]);
    let distances = env.run(&start.exchange_by_key().cache())?;
    let distances = Variable::new(distances);
    let of_all = distances.tset().named("distances");
    let new = of_all.clone().filter(|(_, (_, is_new))| is_new);
    let offers = edges
        .tset()
        .join(new)
        .map(|(_, ((neighbour, length), (distance, _)))| (neighbour, distance + length))
        .reduce_by_key(|one, other| one.min(other));
    let next = offers
        .full_join(of_all)
        .map_values(|(offer, known)| {
            let known = known.map(|(distance, _)| distance);
            match (offer, known) {
                (Some(offer), Some(known)) if known <= offer => (known, false),
                (Some(offer), _) => (offer, true),
                (None, known) => (known.unwrap_or(u64::MAX), false),
            }
        })
        .direct();
    let changed = next.clone().filter(|(_, (_, is_new))| is_new).count();
    let round = next.cache().and(changed.first());
    let became = distances.clone();
    let changed = move |(next, changed): (_, Option<u64>)| {
        became.set(next);
        changed.unwrap_or_default() as f64
    };
    let history = History::of_runs(env, &round, changed, |all| all.last() != Some(&0.0))?;
    let reached = distances
        .tset()
        .map(|(vertex, (distance, _))| (vertex, distance))
        .direct();
    let farthest = reached.clone().top_n(arguments.top, |(vertex, distance)| {
        (distance, u32::MAX - vertex)
    });
    let (number, farthest) = env.run(&reached.clone().count().first().and(farthest.collect()))?;
    let found = arguments.check.then(|| reached.collect());
    let found = found.map(|found| env.run(&found)).transpose()?;
    if env.worker() != 0 {
        return Ok(());
    }
    eprintln!(
        "{} rounds in {:.3} s; {}",
        history.values.len(),
        started.elapsed().as_secs_f64(),
        history.typical()
    );
    history.write(&arguments.kept, "vertices that came nearer")?;
    println!("{} vertices can be reached", number.unwrap_or_default());
    for (vertex, distance) in farthest {
        println!("{distance}\tto {vertex}");
    }
    found.map_or(Ok(()), |found| check(found, arguments))
}

fn check(found: Vec<(u32, u64)>, arguments: &Arguments) -> Result<(), Error> {
    let number = found.len();
    let found: BTreeMap<u32, u64> = found.into_iter().collect();
    let edges = arguments.graph.part(0, 1)?;
    let is_same = found.len() == number && found == reference(&edges, arguments);
    println!("as by a plain loop: {is_same}");
    check_same(is_same)
}

/// The same by the algorithm of Dijkstra.
fn reference(edges: &[[u32; 2]], arguments: &Arguments) -> BTreeMap<u32, u64> {
    let mut neighbours: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for &[from, to] in edges {
        neighbours.entry(from).or_default().push(to);
    }
    let mut distances = BTreeMap::new();
    let mut open = BinaryHeap::from([Reverse((0, arguments.from))]);
    while let Some(Reverse((distance, vertex))) = open.pop() {
        if distances.contains_key(&vertex) {
            continue;
        }
        distances.insert(vertex, distance);
        for &next in neighbours.get(&vertex).into_iter().flatten() {
            let length = length([vertex, next], arguments.longest);
            open.push(Reverse((distance + length, next)));
        }
    }
    distances
}
