//! Counts the triangles of a graph.
//!
//! Every edge is turned to point from the vertex with fewer edges to that with more, so that no vertex has many edges
//! that leave it (Suri, Vassilvitskii: "Counting triangles and the curse of the last reducer", 2011). Two edges that leave
//! the same vertex are two sides of a triangle if there is an edge that is the third: a join. With `--check` the number is
//! compared with that of a plain loop.

#[path = "../edges/mod.rs"]
mod edges;
#[path = "../program/mod.rs"]
mod program;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use edges::Graph;
use program::{Executors, check_same};
use updraft::{Error, prelude::*};

/// Counts the triangles of a graph, whose edges are taken to go both ways.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    #[command(flatten)]
    graph: Graph,

    /// Compare the result with a plain loop on one thread.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    executors: Executors,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.executors.run(|env| count(env, &arguments))
}

fn count(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let started = Instant::now();
    let edges = arguments.graph.cached(env)?;
    // Each edge once, with the lesser vertex first.
    let edges = edges
        .tset()
        .filter(|(one, other)| one != other)
        .map(|(one, other)| (one.min(other), one.max(other)))
        .distinct()
        .direct();
    let degrees = edges
        .clone()
        .flat_map(|(one, other), out| {
            out.push((one, 1u32));
            out.push((other, 1u32));
        })
        .reduce_by_key(|one, more| one + more)
        .direct();
    let sides = edges
        .clone()
        .join(degrees.clone())
        .map(|(one, (other, degree))| (other, (one, degree)))
        .join(degrees)
        .map(|(other, ((one, degree), of_other))| {
            if (degree, one) < (of_other, other) {
                (one, other)
            } else {
                (other, one)
            }
        });
    let two_sides = sides.group_by_key().flat_map(|(_, ends), out| {
        for (number, one) in ends.iter().enumerate() {
            for other in ends.iter().skip(number + 1) {
                out.push(((one.min(other), one.max(other)), ()));
            }
        }
    });
    let triangles = two_sides.semi_join(edges.clone().map(|edge| (edge, ())));
    let counts = edges.count().first().and(triangles.count().first());
    let (edges, triangles) = env.run(&counts)?;
    if env.worker() != 0 {
        return Ok(());
    }
    let (edges, triangles) = (edges.unwrap_or_default(), triangles.unwrap_or_default());
    eprintln!("{edges} edges in {:.3} s", started.elapsed().as_secs_f64());
    println!("{triangles} triangles");
    if arguments.check {
        let expected = reference(&arguments.graph.part(0, 1)?);
        println!("by a plain loop: {expected}");
        check_same(triangles == expected)?;
    }
    Ok(())
}

/// The same by a plain loop: for each edge, the common neighbours of its vertices that are greater than both.
fn reference(edges: &[[u32; 2]]) -> u64 {
    let mut greater: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for &[one, other] in edges.iter().filter(|[one, other]| one != other) {
        let neighbours = greater.entry(one.min(other)).or_default();
        neighbours.insert(one.max(other));
    }
    let none = BTreeSet::new();
    let of = |vertex: &u32| greater.get(vertex).unwrap_or(&none);
    let common = |ends: &BTreeSet<u32>| -> u64 {
        let common = ends
            .iter()
            .map(|end| ends.intersection(of(end)).count() as u64);
        common.sum()
    };
    greater.values().map(common).sum()
}
