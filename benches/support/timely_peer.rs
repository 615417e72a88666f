//! Word count on timely dataflow, with two workers in one process.
//!
//! Each worker counts its half of the text first, so that a word travels once from each of them.

use super::answer::Answer;
use super::counts::Counts;
use super::split::Part;
use hashbrown::DefaultHashBuilder;
use std::cell::RefCell;
use std::hash::BuildHasher;
use std::io;
use std::path::Path;
use std::rc::Rc;
use timely::Config;
use timely::dataflow::InputHandleVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::vec::Input;
use timely::worker::Worker;

/// How many workers there are.
const WORKERS: usize = 2;
/// How many records a worker sends before it lets the dataflow run.
const RECORDS_PER_STEP: usize = 16 << 10;

/// What travels: a word with its hash and its count.
type Record = (u64, Box<[u8]>, u64);

/// Counts the words of the file at `path`.
pub fn count(path: &Path) -> io::Result<Answer> {
    let (path, hasher) = (path.to_owned(), DefaultHashBuilder::default());
    let work = move |worker: &mut Worker| count_part(worker, &path, &hasher);
    let workers = timely::execute(Config::process(WORKERS), work).map_err(io::Error::other)?;
    workers
        .join()
        .into_iter()
        .map(|answer| answer.map_err(io::Error::other).flatten())
        .try_fold(Answer::default(), |sum, answer| Ok(sum.and(answer?)))
}

/// Counts the words of this worker's part of the text, and then merges the words it is sent.
fn count_part(worker: &mut Worker, path: &Path, hasher: &DefaultHashBuilder) -> io::Result<Answer> {
    let (mut input, merged) = merge(worker);
    let mut counts = Counts::default();
    let part = Part::open(path, worker.index(), worker.peers())?;
    part.for_each_word(|word| counts.add(hasher.hash_one(word), word, 1))?;
    for (sent, (hash, word, count)) in counts.iter().enumerate() {
        input.send((hash, word.into(), count));
        if sent % RECORDS_PER_STEP == 0 {
            worker.step();
        }
    }
    input.close();
    while worker.has_dataflows() {
        worker.step_or_park(None);
    }
    Ok(merged.borrow().answer())
}

/// The dataflow: its input, and the counts of the words whose hash chooses this worker.
fn merge(worker: &mut Worker) -> (InputHandleVec<(), Record>, Rc<RefCell<Counts>>) {
    let merged = Rc::new(RefCell::new(Counts::default()));
    let sink = merged.clone();
    let input = worker.dataflow(|scope| {
        let (input, records) = scope.new_input();
        // The table goes by the lowest bits of the hash, so the exchange goes by others.
        let by_hash = Exchange::new(|(hash, ..): &Record| hash >> 32);
        records.sink(by_hash, "Merge", move |(records, _frontier)| {
            let mut merged = sink.borrow_mut();
            records.for_each_stamp(|_, batches| {
                for (hash, word, count) in batches.flat_map(|batch| batch.drain(..)) {
                    merged.add(hash, &word, count);
                }
            });
        });
        input
    });
    (input, merged)
}
