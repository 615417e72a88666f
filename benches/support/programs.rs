//! Programs that have the same work to do whatever the number of ranks: K-means, and the count of the words of texts.

use super::measure;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, io, thread};
use updraft::collectives::op::Sum;
use updraft::dataflow::{Slice, generate, lines_of};
use updraft::{Config, Env, Error};

#[path = "../../runtime/examples/kmeans/kernel.rs"]
mod kernel;
#[path = "../../runtime/examples/kmeans/points.rs"]
mod points;

use kernel::Clustering;
use points::Generated;

/// What is clustered, and how often points are assigned.
const POINTS: Generated = Generated {
    k: 32,
    dimensions: 16,
    seed: 1,
};
const ITERATIONS: usize = 20;

/// What a case does in each of its processes: `kmeans POINTS` or `wordcount FILE...`. Prints how long it took once the job had
/// begun, and of K-means once the points were there; as the answer, how many points were assigned or words were counted.
pub fn work(words: &[&str]) -> io::Result<()> {
    let config = Config {
        progress: false,
        ..Config::default()
    };
    let done = match words {
        ["kmeans", points] => {
            let points = points.parse().map_err(io::Error::other)?;
            updraft::run(config, |env| kmeans(env, points))
        }
        ["wordcount", files @ ..] => {
            let files = files.iter().map(PathBuf::from).collect();
            updraft::run(config, |env| wordcount(env, files))
        }
        _ => return Err(io::Error::other(format!("no such work: {words:?}"))),
    };
    let (time, records) = done.map_err(io::Error::other)?;
    measure::print_run(time.as_secs_f64(), measure::peak_bytes()?, records);
    Ok(())
}

fn kmeans(env: &mut Env, number: u64) -> Result<(Duration, u64), Error> {
    let places = POINTS.places();
    let point = move |number| POINTS.point(&places, number as usize);
    let points = env.run(&generate(number, point).cache())?;
    let start = Clustering::new(POINTS.coordinates(0..POINTS.k), POINTS.dimensions);
    let done = |squares: &[f64]| squares.len() == ITERATIONS;
    let began = Instant::now();
    let ended = env.iterate_then(
        &points,
        start,
        done,
        |clustering, round| {
            let points = round.records().map(Slice::archived);
            Ok(clustering.step(round.world, points)?)
        },
        |_, round| {
            let mut assigned = [(round.number * round.records().count()) as u64];
            round.world.all_reduce(&mut assigned, Sum).wait()?;
            Ok(assigned[0])
        },
    )?;
    Ok((began.elapsed(), ended.state))
}

fn wordcount(env: &mut Env, files: Vec<PathBuf>) -> Result<(Duration, u64), Error> {
    let words = lines_of(files)?.flat_map(|line, out| {
        for word in line.split_whitespace() {
            out.push((word, 1u64));
        }
    });
    let counts = words.reduce_by_key(|a, b| a + b).map(|(_, count)| count);
    let total = counts.reduce(|a, b| a + b).first();
    let began = Instant::now();
    let total = env.run(&total)?;
    Ok((began.elapsed(), total.unwrap_or_default()))
}

/// Does works beside one another, each with one executor on a core of its own, as jobs that know nothing of each other: the time
/// of the slower, the memory of all, and the answers added up.
pub fn alone(works: &[Vec<String>]) -> io::Result<()> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if cores.len() < works.len() {
        let there = format!("{} works on {} cores", works.len(), cores.len());
        return Err(io::Error::other(there));
    }
    let one = |(core, words): (core_affinity::CoreId, &Vec<String>)| {
        // What a thread starts stays on its core.
        core_affinity::set_for_current(core);
        Command::new(env::current_exe()?)
            .arg("work")
            .args(words)
            .env("UPDRAFT_EXECUTORS", "1")
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
    };
    let outputs = thread::scope(|scope| {
        let pairs = cores.into_iter().zip(works);
        let threads: Vec<_> = pairs.map(|pair| scope.spawn(move || one(pair))).collect();
        let joined = threads.into_iter().map(|thread| {
            let panicked = |_| Err(io::Error::other("a thread panicked"));
            thread.join().unwrap_or_else(panicked)
        });
        joined.collect::<io::Result<Vec<_>>>()
    })?;
    if let Some(failed) = outputs.iter().find(|output| !output.status.success()) {
        return Err(io::Error::other(format!("it failed: {}", failed.status)));
    }
    let texts = outputs
        .iter()
        .map(|output| String::from_utf8_lossy(&output.stdout));
    let text: String = texts.collect();
    let answers = text.lines().filter_map(|line| line.strip_prefix("answer="));
    let records: u64 = answers
        .filter_map(|answer| answer.parse::<u64>().ok())
        .sum();
    let answer = format!("answer={records}");
    let lines: Vec<&str> = text.lines().chain([&*answer]).collect();
    measure::print_together(&lines)
}
