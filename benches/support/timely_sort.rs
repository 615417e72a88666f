//! The same sort on timely dataflow, with two workers in one process and all records in memory.
//!
//! Each worker reads its half, and sends each record to the worker of its key. It knows that the keys are evenly
//! distributed, so it needs no sample.

use super::tera::{KEY, RECORD};
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::rc::Rc;
use timely::Config;
use timely::dataflow::InputHandleVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::vec::Input;
use timely::worker::Worker;

const WORKERS: usize = 2;
/// How many records a worker sends before it lets the dataflow run.
const RECORDS_PER_STEP: usize = 16 << 10;

/// A record in parts that can travel between processes: its key, and the rest.
type Record = ([u8; KEY], [[u8; 30]; 3]);
const _: () = assert!(size_of::<Record>() == RECORD);

/// Sorts the records of a file into a file for each worker.
pub fn sort(from: &Path, folder: &Path) -> io::Result<()> {
    let (from, folder) = (from.to_owned(), folder.to_owned());
    let work = move |worker: &mut Worker| sort_part(worker, &from, &folder);
    let workers = timely::execute(Config::process(WORKERS), work).map_err(io::Error::other)?;
    workers
        .join()
        .into_iter()
        .try_for_each(|done| done.map_err(io::Error::other).flatten())
}

fn sort_part(worker: &mut Worker, from: &Path, folder: &Path) -> io::Result<()> {
    let received = Rc::new(RefCell::new(Vec::<Vec<Record>>::new()));
    let sink = received.clone();
    let mut input: InputHandleVec<(), Record> = worker.dataflow(|scope| {
        let (input, records) = scope.new_input();
        let by_key = Exchange::new(|record: &Record| {
            let [first, second, ..] = record.0;
            let printable = u64::from(first - b' ') * 95 + u64::from(second - b' ');
            printable * WORKERS as u64 / (95 * 95)
        });
        records.sink(by_key, "Collect", move |(records, _frontier)| {
            records.for_each_stamp(|_, batches| {
                sink.borrow_mut().extend(batches.map(std::mem::take));
            });
        });
        input
    });
    let mut file = File::open(from)?;
    let records = file.metadata()?.len() / RECORD as u64;
    let cut = |index: usize| records * index as u64 / worker.peers() as u64;
    let (start, end) = (cut(worker.index()), cut(worker.index() + 1));
    file.seek(SeekFrom::Start(start * RECORD as u64))?;
    let mut reader = BufReader::with_capacity(256 << 10, file);
    for sent in 0..(end - start) as usize {
        let mut record: Record = ([0; KEY], [[0; 30]; 3]);
        reader.read_exact(&mut record.0)?;
        reader.read_exact(record.1.as_flattened_mut())?;
        input.send(record);
        if sent % RECORDS_PER_STEP == 0 {
            worker.step();
        }
    }
    input.close();
    while worker.has_dataflows() {
        worker.step_or_park(None);
    }
    let batches = received.take();
    let mut order = Vec::with_capacity(batches.iter().map(Vec::len).sum());
    for (batch, records) in batches.iter().enumerate() {
        order.extend(records.iter().enumerate().map(|(index, record)| {
            let mut key = [0; 16];
            key[..KEY].copy_from_slice(&record.0);
            (u128::from_be_bytes(key), batch as u32, index as u32)
        }));
    }
    order.sort_unstable();
    let path = folder.join(format!("part-{}", worker.index()));
    let mut writer = BufWriter::with_capacity(256 << 10, File::create(path)?);
    for (_, batch, index) in order {
        let (key, rest) = &batches[batch as usize][index as usize];
        writer.write_all(key)?;
        writer.write_all(rest.as_flattened())?;
    }
    writer.into_inner()?.sync_all()
}
