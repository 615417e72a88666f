//! Directed graphs, by the rank that owns an end of an edge.

use std::ops::Range;

use updraft::collectives::{
    Error, Group,
    op::{Max, Sum},
};

use super::edges::Edge;

/// Whose vertices the edges are with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Source = 0,
    Target = 1,
}

/// A rank's part of a graph: a block of the vertices, and their edges. All blocks are equally long; those of the last
/// ranks may reach beyond the last vertex.
#[derive(Debug)]
pub(crate) struct Part {
    /// Vertices in the graph.
    pub(crate) vertices: usize,
    /// Edges in the graph.
    pub(crate) edges: usize,
    /// The vertices of this rank's block.
    pub(crate) own: Range<usize>,
    /// Out-edges of each own vertex.
    pub(crate) out_degrees: Vec<u32>,
    /// Where the edges of each own vertex begin in `others`, and where the last ones end.
    starts: Vec<usize>,
    /// The other ends of the edges, by own vertex, and in ascending order.
    others: Vec<u32>,
}

impl Part {
    /// Has every edge sent to the rank that owns one of its ends; each gives the edges it happens to have.
    pub(crate) fn of(world: &Group, edges: Vec<Edge>, by: By) -> Result<Self, Error> {
        let size = world.size();
        let highest = edges.iter().flatten().max();
        let mut vertices = [highest.map_or(0, |&vertex| u64::from(vertex) + 1)];
        world.all_reduce(&mut vertices, Max).wait()?;
        let vertices = vertices[0] as usize;
        let mut all_edges = [edges.len() as u64];
        world.all_reduce(&mut all_edges, Sum).wait()?;
        let block = vertices.div_ceil(size).max(1);

        let mut degrees = vec![0u32; block * size];
        for edge in &edges {
            degrees[edge[0] as usize] += 1;
        }
        let mut out_degrees = vec![0; block];
        world
            .reduce_scatter(&degrees, &mut out_degrees, Sum)
            .wait()?;
        drop(degrees);

        let end = by as usize;
        let mut parts = vec![Vec::new(); size];
        for edge in edges {
            parts[edge[end] as usize / block].push(edge);
        }
        let slices: Vec<&[Edge]> = parts.iter().map(Vec::as_slice).collect();
        let mut edges = world.all_to_all_v(&slices).wait()?.into_elements();
        drop(parts);
        // In an order that does not depend on who had them.
        edges.sort_unstable_by_key(|edge| [edge[end], edge[1 - end]]);

        let first = world.rank() * block;
        let mut starts = vec![0; block + 1];
        for edge in &edges {
            starts[edge[end] as usize - first + 1] += 1;
        }
        for vertex in 0..block {
            starts[vertex + 1] += starts[vertex];
        }
        Ok(Self {
            vertices,
            edges: all_edges[0] as usize,
            own: first.min(vertices)..(first + block).min(vertices),
            out_degrees,
            starts,
            others: edges.iter().map(|edge| edge[1 - end]).collect(),
        })
    }

    /// The other ends of the edges of each own vertex.
    #[inline]
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[u32]> {
        let rows = self.starts.windows(2).take(self.own.len());
        rows.map(|ends| &self.others[ends[0]..ends[1]])
    }
}
