//! Directed graphs, as lists of edges: those of a file, or ones that follow from a seed.

#![allow(dead_code, reason = "each example uses the part it needs")]

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use clap::Args;
use updraft::{
    Error,
    dataflow::{self, generate, lines_of},
    prelude::*,
};

#[path = "../input/mod.rs"]
pub(crate) mod input;
#[path = "../random/mod.rs"]
pub(crate) mod random;

use random::Random;

/// Which graph a program is about.
#[derive(Debug, Clone, Args)]
pub(crate) struct Graph {
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
}

impl Graph {
    /// The edges in part `part` of so many.
    ///
    /// # Errors
    ///
    /// What is wrong with a line or the file.
    pub(crate) fn part(&self, part: usize, parts: usize) -> Result<Vec<Edge>, Error> {
        if let Some(path) = &self.edges {
            return Ok(read(path, part, parts)?);
        }
        let edge = |part: usize| self.generate * part / parts;
        Ok(self.generated().edges(edge(part)..edge(part + 1)))
    }

    /// Has the edges read or generated, and kept where that was: pairs of vertices.
    ///
    /// # Errors
    ///
    /// What is wrong with a line or the file, and what keeps the job from running.
    pub(crate) fn cached(&self, env: &mut Env) -> Result<Cached<(u32, u32)>, Error> {
        let Some(path) = &self.edges else {
            let generated = self.generated();
            let edges = generate(generated.edges as u64, move |number| {
                let [from, to] = generated.edge(number);
                (from, to)
            });
            return env.run(&edges.named("edges").cache());
        };
        let edges = lines_of(vec![path.clone()])?.try_flat_map(|line, out| {
            let edge = parse(line).map_err(|problem| format!("{line:?} is not {problem}"))?;
            if let Some([from, to]) = edge {
                out.push((from, to));
            }
            Ok::<_, String>(())
        });
        env.run(&edges.named("edges").cache())
    }

    /// The error that says that there is nothing to do.
    pub(crate) fn no_edges(&self) -> Error {
        match &self.edges {
            Some(path) => input::cannot_read(path)(input::invalid("there are no edges")).into(),
            None => Error::program("there are no edges"),
        }
    }

    fn generated(&self) -> Generated {
        Generated {
            vertices: self.vertices,
            edges: self.generate,
            seed: self.seed,
        }
    }
}

/// An edge, from its first vertex to its second.
pub(crate) type Edge = [u32; 2];

/// A graph that follows from a seed; every rank can generate any of its edges.
///
/// Degrees follow a power law: a vertex is drawn in proportion to *i*^-1/2 as a source and to *i*^-2/3 as a target, and where
/// the vertices with many edges are is mixed up, so that no rank has all of them.
#[derive(Debug, Clone)]
struct Generated {
    vertices: u32,
    edges: usize,
    seed: u64,
}

/// Primes that are no vertex count's divisor up to 2^32: multiplying by them is a permutation of the vertices.
const MIX: [u64; 2] = [4_294_967_311, 4_294_967_357];

impl Generated {
    /// Some of the edges.
    fn edges(&self, edges: Range<usize>) -> Vec<Edge> {
        edges.map(|number| self.edge(number as u64)).collect()
    }

    fn edge(&self, number: u64) -> Edge {
        let mut random = Random::at(self.seed, 2 * number);
        let vertices = u64::from(self.vertices);
        let vertex = |place: f64, mix: u64| {
            let place = (place * vertices as f64) as u64;
            (place * (mix % vertices) % vertices) as u32
        };
        let (u, v) = (random.unit(), random.unit());
        [vertex(u * u, MIX[0]), vertex(v * v * v, MIX[1])]
    }
}

/// The edges in part `part` of `parts` parts of a file: a line for each, with the numbers of its two vertices. Empty lines and
/// those that begin with `#` say nothing.
///
/// # Errors
///
/// What is wrong with a line or the file.
fn read(path: &Path, part: usize, parts: usize) -> Result<Vec<Edge>, dataflow::Error> {
    let mut edges = Vec::new();
    input::lines(path, part, parts, |line| {
        edges.extend(parse(line)?);
        Ok(())
    })?;
    Ok(edges)
}

/// The edge of a line, if it says one.
fn parse(line: &str) -> Result<Option<Edge>, String> {
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let mut numbers = line.split_ascii_whitespace().map(str::parse);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(from)), Some(Ok(to)), None) if from < u32::MAX && to < u32::MAX => {
            Ok(Some([from, to]))
        }
        _ => Err("the numbers of two vertices".to_owned()),
    }
}
