//! Word count as one would write it for two cores and nothing else.
//!
//! Each thread counts half of the text in tables of its own, one for every thread, by the hash of
//! the word. Then each thread merges the tables that are meant for it.

use super::answer::Answer;
use super::counts::Counts;
use super::split::Part;
use hashbrown::DefaultHashBuilder;
use std::hash::BuildHasher;
use std::path::Path;
use std::{array, io, mem, thread};

/// How many threads there are, and how many tables each of them fills.
const THREADS: usize = 2;

/// Counts the words of the file at `path`.
pub fn count(path: &Path) -> io::Result<Answer> {
    let hasher = DefaultHashBuilder::default();
    let parts: [usize; THREADS] = array::from_fn(|index| index);
    let counted = in_parallel(parts, |index| {
        count_part(&Part::open(path, index, THREADS)?, &hasher)
    });
    let mut counted = counted.into_iter().collect::<io::Result<Vec<_>>>()?;
    let to_merge = parts.map(|index| {
        counted
            .iter_mut()
            .map(|tables| mem::take(&mut tables[index]))
            .collect()
    });
    Ok(in_parallel(to_merge, merge)
        .into_iter()
        .fold(Answer::default(), Answer::and))
}

/// What `work` makes of each input, in a thread for each.
fn in_parallel<I: Send, O: Send>(
    inputs: [I; THREADS],
    work: impl Fn(I) -> O + Sync,
) -> [O; THREADS] {
    thread::scope(|scope| {
        inputs
            .map(|input| scope.spawn(|| work(input)))
            .map(|thread| thread.join().expect("no thread panics"))
    })
}

/// Counts the words of `part`, each in the table of the thread that will merge it.
fn count_part(part: &Part, hasher: &DefaultHashBuilder) -> io::Result<[Counts; THREADS]> {
    let mut tables: [Counts; THREADS] = Default::default();
    part.for_each_word(|word| {
        let hash = hasher.hash_one(word);
        // The table itself goes by the lowest and the highest bits.
        tables[(hash >> 32) as usize % THREADS].add(hash, word, 1);
    })?;
    Ok(tables)
}

/// The answer of tables that have words in common.
fn merge(tables: Vec<Counts>) -> Answer {
    let mut tables = tables.into_iter();
    let mut merged = tables.next().unwrap_or_default();
    for table in tables {
        table
            .iter()
            .for_each(|(hash, word, count)| merged.add(hash, word, count));
    }
    merged.answer()
}
