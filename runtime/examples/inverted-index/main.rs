//! An inverted index: for each word, the documents that have it, and where.
//!
//! The documents are shared out to the ranks, each of which reads its own. The places of every word meet on one rank, in
//! order. With `--check` the index is compared with that of a plain loop.

#[path = "../program/mod.rs"]
mod program;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use program::{Executors, check_same};
use updraft::{
    Error,
    dataflow::{self, Slice},
    prelude::*,
};

/// Builds an index of the words of text files.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// Files to read.
    #[arg(required = true)]
    files: Vec<PathBuf>,

    /// Write the index to part files in this folder: a line for each word, with its documents and the numbers of the words
    /// before it in each.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Words to look up.
    #[arg(long, value_name = "WORD")]
    find: Vec<String>,

    /// Compare the index with that of a plain loop on one thread.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    executors: Executors,
}

/// Where a word is: the number of a document, and how many words are before it.
type Place = (u32, u32);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.executors.run(|env| index(env, &arguments))
}

/// The words of a text, in lower case.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}

fn read(path: &Path) -> Result<String, dataflow::Error> {
    fs::read_to_string(path).map_err(|source: io::Error| dataflow::Error::Input {
        path: path.to_owned(),
        source,
    })
}

fn index(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    // The numbers of the documents, which travel; every worker knows their names.
    let numbers = (0..arguments.files.len() as u32).collect();
    let files = arguments.files.clone();
    let started = Instant::now();
    let index = env
        .collection(numbers)
        .try_flat_map(move |document, out| {
            for (position, word) in (0u32..).zip(words(&read(&files[document as usize])?)) {
                out.push((word, (document, position)));
            }
            Ok::<_, dataflow::Error>(())
        })
        .named("words of documents")
        .group_by_key_sorted(|place| place);
    let index = env.run(&index.cache())?;
    let seconds = started.elapsed().as_secs_f64();
    if let Some(folder) = &arguments.out {
        let names = arguments.files.clone();
        let lines = index
            .tset()
            .map(move |(word, places)| line(word, places.iter(), &names));
        env.run(&lines.write_text(folder))?;
    }
    let counts = index.tset().aggregate(|of| {
        let places = of.sum(|(_, places): (&str, Slice<'_, Place>)| places.len() as u64);
        (of.count(), places)
    });
    let wanted = arguments.find.clone();
    let found = index
        .tset()
        .filter(move |(word, _)| wanted.iter().any(|wanted| wanted == word));
    let (counts, mut found) = env.run(&counts.first().and(found.collect()))?;
    let all = arguments.check.then(|| index.tset().collect());
    let all = all.map(|all| env.run(&all)).transpose()?;
    if env.worker() != 0 {
        return Ok(());
    }
    let (distinct, places) = counts.unwrap_or_default();
    eprintln!("indexed in {seconds:.3} s");
    println!(
        "{places} words, {distinct} of them distinct, in {} documents",
        arguments.files.len()
    );
    found.sort_unstable();
    for (word, places) in &found {
        println!("{}", line(word, places.iter().copied(), &arguments.files));
    }
    all.map_or(Ok(()), |all| check(all, arguments))
}

/// A word, and for each document that has it its name and the positions.
fn line<P>(word: &str, places: P, names: &[PathBuf]) -> String
where
    P: IntoIterator<Item = Place>,
{
    let mut text = word.to_owned();
    let mut before = None;
    for (document, position) in places {
        if before == Some(document) {
            text += &format!(",{position}");
        } else {
            let name = names[document as usize].display();
            text += &format!("\t{name}:{position}");
        }
        before = Some(document);
    }
    text
}

fn check(found: Vec<(String, Vec<Place>)>, arguments: &Arguments) -> Result<(), Error> {
    let mut expected: BTreeMap<String, Vec<Place>> = BTreeMap::new();
    for (document, path) in (0u32..).zip(&arguments.files) {
        for (position, word) in (0u32..).zip(words(&read(path)?)) {
            expected.entry(word).or_default().push((document, position));
        }
    }
    let number = found.len();
    let found: BTreeMap<_, _> = found.into_iter().collect();
    let is_same = found.len() == number && found == expected;
    println!("as by a plain loop: {is_same}");
    check_same(is_same)
}
