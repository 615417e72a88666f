//! PageRank on edges that jobs put where they belong.

use std::sync::Arc;

use updraft::{Error, dataflow::generate, prelude::*};

use super::{Arguments, Ranked, history::History, kernel::PageRank};

/// Stands for all vertices, as the one that those without out-edges give to. No vertex has this number.
const EVERYONE: u32 = u32::MAX;

/// The edges, and how many vertices there are.
fn edges(env: &mut Env, arguments: &Arguments) -> Result<(Cached<(u32, u32)>, usize), Error> {
    let edges = arguments.graph.cached(env)?;
    let highest = edges
        .tset()
        .map(|(from, to)| from.max(to))
        .reduce(|one, other| one.max(other));
    match env.run(&highest.first())? {
        Some(highest) => Ok((edges, highest as usize + 1)),
        None => Err(arguments.graph.no_edges()),
    }
}

/// Has the sources of the edges of each vertex partitioned as its rank is, and goes through them in place.
pub(crate) fn iterate(env: &mut Env, arguments: &Arguments) -> Result<Ranked, Error> {
    let (edges, vertices) = edges(env, arguments)?;
    let block = vertices.div_ceil(env.ranks() as usize);
    let degrees = edges
        .tset()
        .map(|(from, _)| (from, 1u32))
        .reduce_by_key(|one, more| one + more);
    let rows = edges
        .tset()
        .partition(move |(_, to)| u64::from(to) / block as u64)
        .map_partition(
            Vec::new(),
            |edges: &mut Vec<(u32, u32)>, (from, to), _| edges.push((to, from)),
            |mut edges: Vec<(u32, u32)>, out| {
                edges.sort_unstable();
                for row in edges.chunk_by(|one, other| one.0 == other.0) {
                    let sources: Vec<u32> = row.iter().map(|(_, from)| *from).collect();
                    out.push((row[0].0, sources));
                }
            },
        );
    let (degrees, rows) = env.run(&degrees.collect().and(rows.cache()))?;
    let mut out_degrees = vec![0; vertices];
    for (vertex, degree) in degrees {
        out_degrees[vertex as usize] = degree;
    }
    let (damping, of_all) = (arguments.damping, arguments.clone());
    let done = move |changes: &[f64]| of_all.is_done(changes);
    let (out_degrees, of_all) = (Arc::new(out_degrees), arguments.clone());
    // What is kept from round to round, and in the end the ranks of all vertices.
    let start: (Option<PageRank>, Vec<f64>) = (None, Vec::new());
    let ended = env.iterate(&rows, start, done, move |(ranking, ranks), round| {
        let own = (round.world.rank() * block).min(vertices);
        let ranking: &mut PageRank = match ranking {
            Some(ranking) => ranking,
            None => {
                let out_degrees = &out_degrees[own..(own + block).min(vertices)];
                let new = PageRank::new(round.world, vertices, out_degrees, damping)?;
                ranking.insert(new)
            }
        };
        let rows = round.records();
        let rows = rows.map(|(vertex, sources)| (vertex as usize - own, sources.archived()));
        let change = ranking.pull(round.world, rows)?;
        // The state of one rank is what a loop gives.
        if round.number + 1 == of_all.iterations || change <= of_all.tolerance {
            let all = round.world.all_gather_v(ranking.ranks()).wait()?;
            *ranks = all.into_elements();
        }
        Ok(change)
    })?;
    let ((_, ranks), history) = History::of(ended);
    Ok((ranks, history))
}

/// Runs one graph for each iteration, which joins links and ranks, and leaves ranks for the next.
pub(crate) fn by_graphs(env: &mut Env, arguments: &Arguments) -> Result<Ranked, Error> {
    let (edges, vertices) = edges(env, arguments)?;
    let (number, damping) = (vertices as f64, arguments.damping);
    // The targets of each vertex, which are none for some, where the vertex belongs: they stay there in every round.
    let links = generate(vertices as u64, |vertex| (vertex as u32, ()))
        .cogroup(edges.tset())
        .flat_map_values(|(_, targets), out| out.push(targets));
    let links = env.run(&links.cache())?;
    let ranks = links.tset().map(move |(vertex, _)| (vertex, 1.0 / number));
    let ranks = Variable::new(env.run(&ranks.cache())?);
    // What each vertex gets, and the rank that it had.
    let sums = links
        .tset()
        .join(ranks.tset().named("ranks"))
        .flat_map(|(vertex, (targets, rank)), out| {
            out.push((vertex, (0.0, rank)));
            if targets.is_empty() {
                out.push((EVERYONE, (rank, 0.0)));
            }
            let share = rank / targets.len() as f64;
            for target in targets.iter() {
                out.push((target, (share, 0.0)));
            }
        })
        .reduce_by_key(|(sum, rank), (more, or_rank)| (sum + more, rank + or_rank))
        .direct();
    let dangling = sums
        .clone()
        .filter(|(vertex, _)| vertex == EVERYONE)
        .map(|(_, (sum, _))| sum)
        .fold(0.0, |sum, more| *sum += more, |sum, more| *sum += more);
    let new = sums
        .filter(|(vertex, _)| vertex != EVERYONE)
        .cross_join(dangling)
        .map(move |((vertex, (sum, before)), dangling)| {
            let base = (1.0 - damping + damping * dangling) / number;
            let rank = base + damping * sum;
            (vertex, (rank, (rank - before).abs()))
        })
        .direct();
    let change = new.clone().map(|(_, (_, change))| change).fold(
        0.0,
        |sum, more| *sum += more,
        |sum, more| *sum += more,
    );
    let new = new.map(|(vertex, (rank, _))| (vertex, rank));
    let iteration = new.cache().and(change.first());
    let mut history = History::default();
    if !arguments.is_done(&history.values) {
        let (became, of_all) = (ranks.clone(), arguments.clone());
        let change = move |(new, change): (_, Option<f64>)| {
            became.set(new);
            change.unwrap_or_default()
        };
        history = History::of_runs(env, &iteration, change, move |all| !of_all.is_done(all))?;
    }
    let mut found = vec![0.0; vertices];
    for (vertex, rank) in env.run(&ranks.tset().collect())? {
        found[vertex as usize] = rank;
    }
    Ok((found, history))
}
