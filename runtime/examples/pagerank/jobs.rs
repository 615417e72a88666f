//! PageRank on edges that jobs put where they belong.

use std::sync::Arc;

use updraft::{
    Error,
    dataflow::{Accumulator, generate},
    prelude::*,
};

use super::{Arguments, Ranked, history::History, kernel::PageRank};

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
    // The rank of each, and whether it has no targets: then it gives to all alike.
    let ranks = links
        .tset()
        .map_values(move |targets| (1.0 / number, targets.is_empty()));
    let ranks = Variable::new(env.run(&ranks.cache())?);
    let giving = ranks.tset().filter(|(_, (_, to_all))| to_all).count();
    let given = env.run(&giving.first())?.unwrap_or_default() as f64 / number;
    // What each vertex gets in a round whoever its sources are.
    let all_get = move |given: f64| (1.0 - damping + damping * given) / number;
    let base = Variable::new(all_get(given));
    let sum = || Accumulator::by(0.0, |sum: f64, more| sum + more);
    let (given, changed) = (sum(), sum());
    let sums = links
        .tset()
        .join(ranks.tset().named("ranks"))
        .flat_map(|(_, (targets, (rank, _))), out| {
            let share = rank / targets.len() as f64;
            for target in targets.iter() {
                out.push((target, share));
            }
        })
        .reduce_by_key(|sum, more| sum + more);
    let (gives, changes) = (given.clone(), changed.clone());
    let new =
        ranks
            .tset()
            .left_join(sums)
            .map_values_with(&base, move |((rank, to_all), sum), base| {
                let new = base + damping * sum.unwrap_or(0.0);
                changes.add((new - rank).abs());
                if to_all {
                    gives.add(new);
                }
                (new, to_all)
            });
    let iteration = new.cache().with_total(&given).with_total(&changed);
    let mut history = History::default();
    if !arguments.is_done(&history.values) {
        let (became, of_all) = (ranks.clone(), arguments.clone());
        let change = move |((new, given), changed)| {
            became.set(new);
            base.set(all_get(given));
            changed
        };
        history = History::of_runs(env, &iteration, change, move |all| !of_all.is_done(all))?;
    }
    let mut found = vec![0.0; vertices];
    for (vertex, (rank, _)) in env.run(&ranks.tset().collect())? {
        found[vertex as usize] = rank;
    }
    Ok((found, history))
}
