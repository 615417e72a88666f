//! The connected components of a graph, by labels that spread along its edges.
//!
//! Each vertex begins with its own number as its label. In each round those whose label has changed offer it to their
//! neighbours, and each vertex takes the least that it is offered: a join of edges with labels, and one of labels with
//! offers. The edges stay in the workers, and so do the labels, which each round of the one graph leaves for the next;
//! when no label changes, vertices with the same label are a component. With `--check` the result is compared with a plain loop.

#[path = "../edges/mod.rs"]
mod edges;
#[path = "../history/mod.rs"]
mod history;
#[path = "../program/mod.rs"]
mod program;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use edges::Graph;
use history::{History, Kept};
use program::{Executors, check_same};
use updraft::{Error, prelude::*};

/// Finds the connected components of a graph, whose edges are taken to go both ways.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    #[command(flatten)]
    graph: Graph,

    /// Components to print: the largest ones.
    #[arg(long, default_value_t = 10)]
    top: usize,

    /// Compare the result with a plain loop on one thread.
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

fn find(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let started = Instant::now();
    let edges = arguments.graph.cached(env)?;
    let edges = edges.tset().flat_map(|(one, other), out| {
        out.push((one, other));
        out.push((other, one));
    });
    // By their first vertex, as labels are by theirs: they stay there in every round.
    let edges = env.run(&edges.distinct().exchange_by_key().cache())?;
    // Of each vertex its label, and whether that is new.
    let labels = edges
        .tset()
        .map(|(vertex, _)| (vertex, (vertex, true)))
        .reduce_by_key(|label, _same| label);
    let labels = Variable::new(env.run(&labels.cache())?);
    let of_all = labels.tset().named("labels");
    let new = of_all.clone().filter(|(_, (_, is_new))| is_new);
    let offers = edges
        .tset()
        .join(new)
        .map(|(_, (neighbour, (label, _)))| (neighbour, label))
        .reduce_by_key(|one, other| one.min(other));
    let next = of_all
        .left_join(offers)
        .map_values(|((label, _), offer)| match offer {
            Some(offer) if offer < label => (offer, true),
            _ => (label, false),
        })
        .direct();
    let changed = next.clone().filter(|(_, (_, is_new))| is_new).count();
    let round = next.cache().and(changed.first());
    let became = labels.clone();
    let changed = move |(next, changed): (_, Option<u64>)| {
        became.set(next);
        changed.unwrap_or_default() as f64
    };
    let history = History::of_runs(env, &round, changed, |all| all.last() != Some(&0.0))?;
    let sizes = labels
        .tset()
        .map(|(_, (label, _))| (label, 1u64))
        .reduce_by_key(|one, other| one + other)
        .direct();
    let largest = sizes
        .clone()
        .top_n(arguments.top, |(label, size)| (size, u32::MAX - label));
    let (components, largest) = env.run(&sizes.count().first().and(largest.collect()))?;
    let found = arguments.check.then(|| labels.tset().collect());
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
    history.write(&arguments.kept, "vertices whose label changed")?;
    println!("{} components", components.unwrap_or_default());
    for (label, size) in largest {
        println!("{size}\tvertices with {label}");
    }
    found.map_or(Ok(()), |found| check(&found, arguments))
}

fn check(found: &[(u32, (u32, bool))], arguments: &Arguments) -> Result<(), Error> {
    let expected = reference(&arguments.graph.part(0, 1)?);
    let differ = found
        .iter()
        .filter(|(vertex, (label, _))| expected.get(vertex) != Some(label));
    let differ = differ.count() + expected.len().abs_diff(found.len());
    println!("vertices whose label differs from that of a plain loop: {differ}");
    check_same(differ == 0)
}

/// The least vertex that each is connected with, by a depth-first search from each.
fn reference(edges: &[[u32; 2]]) -> BTreeMap<u32, u32> {
    let mut neighbours: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for &[one, other] in edges {
        neighbours.entry(one).or_default().push(other);
        neighbours.entry(other).or_default().push(one);
    }
    let mut labels = BTreeMap::new();
    for &start in neighbours.keys() {
        let mut open = vec![start];
        while let Some(vertex) = open.pop() {
            if let Entry::Vacant(label) = labels.entry(vertex) {
                label.insert(start);
                open.extend(&neighbours[&vertex]);
            }
        }
    }
    labels
}
