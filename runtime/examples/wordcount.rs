//! Counts the words of text files: what is between Unicode white space.
//!
//! Started by itself it uses every core; `updraft run -n 2 -- target/release/examples/wordcount …` gives
//! the same result with two processes.

#[path = "program/mod.rs"]
mod program;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use program::Executors;
use updraft::{
    Error,
    dataflow::{Narrow, Source, lines_of},
    prelude::*,
};

/// Counts the words of text files.
#[derive(Debug, Parser)]
struct Arguments {
    /// Files and folders to read; without one, the sources and docs of this project.
    paths: Vec<PathBuf>,

    /// How many of the most frequent words to print (10, or none with --out).
    #[arg(long, value_name = "N")]
    top: Option<usize>,

    /// Write all counts to part files in this folder, a line `word<TAB>count` for each word.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    executors: Executors,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.executors.run(|env| count(env, &arguments))
}

fn count(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let files = files(&arguments.paths)?;
    if let Some(folder) = &arguments.out {
        let written = words(files.clone())?
            .reduce_by_key(|a, b| a + b)
            .map(|(word, count)| format!("{word}\t{count}"))
            .write_text(folder);
        env.run(&written)?;
    }
    let top = arguments
        .top
        .unwrap_or(if arguments.out.is_some() { 0 } else { 10 });
    if top == 0 {
        return Ok(());
    }
    let most_frequent = words(files)?
        .reduce_by_key(|a, b| a + b)
        .flat_map(|(word, count), out| out.push(((), (1u64, count, [(count, word)].as_slice()))))
        .reduce_by_key(move |a, b| merge(a, b, top))
        .collect();
    let found = env.run(&most_frequent)?;
    if env.worker() == 0 {
        print(
            found
                .into_iter()
                .next()
                .map(|(_, counts)| counts)
                .unwrap_or_default(),
        );
    }
    Ok(())
}

/// Each word of the files with a one.
fn words(
    files: Vec<PathBuf>,
) -> Result<TSet<impl Source<Out = String>, impl Narrow<String, Out = (String, u64)>>, Error> {
    Ok(lines_of(files)?.flat_map(|line, out| {
        for word in line.split_whitespace() {
            out.push((word, 1u64));
        }
    }))
}

/// Distinct words, words, and the most frequent ones, in order.
type Counts = (u64, u64, Vec<(u64, String)>);

/// Puts two parts of the counts together, of which the `top` most frequent words are kept.
fn merge(a: Counts, b: <Counts as Record>::View<'_>, top: usize) -> Counts {
    let (distinct, total, mut most) = a;
    for (count, word) in b.2.iter() {
        let place = most.partition_point(|(other, text)| {
            (*other, word) > (count, text) // More frequent first, then by the alphabet.
        });
        if place < top {
            most.truncate(top - 1);
            most.insert(place, (count, word.to_owned()));
        }
    }
    (distinct + b.0, total + b.1, most)
}

fn print((distinct, total, most_frequent): Counts) {
    for (count, word) in most_frequent {
        println!("{count:>12}  {word}");
    }
    println!("{total:>12}  words, {distinct} of them distinct");
}

/// The files that are meant: all those in folders, but hidden ones.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    if paths.is_empty() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let is_source = |path: &Path| {
            path.extension().is_some_and(|extension| {
                ["rs", "md", "toml"].iter().any(|known| extension == *known)
            })
        };
        collect_files(&project, &is_source, &mut files)?;
    }
    for path in paths {
        collect_files(path, &|_| true, &mut files)?;
    }
    Ok(files)
}

fn collect_files(
    path: &Path,
    wanted: &dyn Fn(&Path) -> bool,
    files: &mut Vec<PathBuf>,
) -> Result<(), Error> {
    let failed = |source: io::Error| updraft::dataflow::Error::Input {
        path: path.to_owned(),
        source,
    };
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        if wanted(path) {
            files.push(path.to_owned());
        }
        return Ok(());
    }
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    entries.sort();
    for entry in entries {
        let name = entry
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !name.starts_with('.') && name != "target" {
            collect_files(&entry, wanted, files)?;
        }
    }
    Ok(())
}
