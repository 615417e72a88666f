//! What sorting promises: the same records in a total order over all ranks, however many there are, whatever their
//! keys, and however little memory there is for them.

#[path = "support/disk.rs"]
mod disk;
#[path = "support/skip.rs"]
mod skip;

use std::{cell::RefCell, fmt::Debug, fs, path::Path, rc::Rc};

use dataflow::{
    Counters, Error, Job, Progress, Record, Run, Site, collection, inline, lines_of, record,
    simulate, spill,
};
use disk::SmallDisk;
use proptest::prelude::*;
use transport::{Arena, Event, Fabric, Ledger, Simulation};

/// Adds up what goes to disk.
#[derive(Debug, Default)]
struct Spilled(RefCell<u64>);

impl Counters for Spilled {
    fn read(&self, _records: u64, _bytes: u64) {}

    fn received(&self, _records: u64, _bytes: u64) {}

    fn expect(&self, _bytes: u64) {}

    fn spilled(&self, bytes: u64) {
        *self.0.borrow_mut() += bytes;
    }
}

/// Ranks with little memory that take turns on one thread.
#[derive(Debug, Clone)]
struct Cluster {
    seed: u64,
    size: u32,
    /// Bytes that each rank has besides its arena.
    memory_bytes: u64,
    spill: spill::Config,
}

const ARENA_BYTES: u64 = 1 << 20;

/// What a run gave, and what it wrote to disk.
struct Outcome<R> {
    result: R,
    spilled: u64,
}

impl Cluster {
    fn new(seed: u64, size: u32, memory_bytes: u64) -> Self {
        Self {
            seed,
            size,
            memory_bytes,
            spill: spill::Config::default(),
        }
    }

    fn run<R>(&self, job: &Job<R>) -> Result<Outcome<R>, Error> {
        let network = Simulation::new(self.seed, self.size);
        let limit = ARENA_BYTES + self.memory_bytes;
        let ledgers: Vec<_> = (0..self.size).map(|_| Ledger::new(limit)).collect();
        let spilled = Rc::new(Spilled::default());
        let mut ranks = Vec::new();
        for (rank, ledger) in (0..).zip(&ledgers) {
            let arena = Arena::new(ledger, ARENA_BYTES)?;
            let fabric = Rc::new(RefCell::new(network.fabric(rank, &arena)));
            let site = Site {
                fabric: fabric.clone(),
                executors: 1,
                ledger: ledger.clone(),
                counters: spilled.clone(),
                spill: Rc::new(self.spill.clone()),
                helpers: Rc::new(()),
            };
            ranks.push((Run::new(&job.task_graph(), 0, &site)?, fabric));
        }
        let ended = self.drive(&network, &mut ranks);
        drop(ranks);
        for ledger in &ledgers {
            assert_eq!(ledger.used(), 0, "{self:?} gives everything back");
        }
        ended?;
        Ok(Outcome {
            result: job.take_result(),
            spilled: spilled.0.take(),
        })
    }

    fn drive(
        &self,
        network: &Simulation,
        ranks: &mut [(Run, Rc<RefCell<Fabric>>)],
    ) -> Result<(), Error> {
        let mut done = vec![false; ranks.len()];
        let mut idle = 0;
        while done.iter().any(|done| !done) {
            let index = network.draw(ranks.len() as u64) as usize;
            let (run, fabric) = &mut ranks[index];
            let mut moved = false;
            loop {
                let event = fabric
                    .borrow_mut()
                    .receive()
                    .map_err(transport::Error::from)?;
                match event {
                    Some(Event::Message { from, buffer }) => run.receive(from, buffer)?,
                    Some(Event::Ended { peer, error }) => run.ended(peer, *error)?,
                    Some(Event::Refused { .. } | Event::Completed { .. }) | None => break,
                }
                moved = true;
            }
            if !done[index] {
                let progress = run.poll()?;
                moved |= progress != Progress::None;
                done[index] = progress == Progress::Done;
            }
            idle = if moved || network.advance() {
                0
            } else {
                idle + 1
            };
            assert!(
                idle < 2_000 * ranks.len(),
                "{self:?} makes no progress any more"
            );
        }
        Ok(())
    }
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let memory_bytes = prop_oneof![Just(600u64 << 10), Just(2 << 20), Just(64 << 20)];
    (any::<u64>(), 1u32..=5, memory_bytes)
        .prop_map(|(seed, size, memory_bytes)| Cluster::new(seed, size, memory_bytes))
}

fn sorted<T: Ord>(mut records: Vec<T>) -> Vec<T> {
    records.sort();
    records
}

/// The records of the job are those of `records` in order, on one thread, in a cluster, and with its memory.
fn sorts<T: Ord + Debug + Record>(job: &Job<Vec<T>>, records: Vec<T>, cluster: &Cluster) {
    let expected = sorted(records);
    assert!(inline(job).unwrap() == expected);
    let simulated = simulate(job, cluster.seed, cluster.size, 1).unwrap();
    assert!(simulated == expected, "{cluster:?}");
    assert_eq!(cluster.run(job).unwrap().result, expected, "{cluster:?}");
}

/// Texts of which many are equal, many begin alike, and some are long.
fn texts() -> impl Strategy<Value = Vec<String>> {
    let text = prop_oneof![
        4 => "[ab]{0,3}",
        4 => "https://[a-c]{1,9}",
        2 => ".{0,12}",
        1 => "[a-z]{200,3000}",
    ];
    prop::collection::vec(text, 0..200)
}

record! {
    #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
    struct Visit {
        page: String,
        seconds: Vec<u32>,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn texts_are_sorted_over_all_ranks(texts in texts(), cluster in cluster()) {
        let job = collection(texts.clone()).sort().collect();
        sorts(&job, texts, &cluster);
    }

    #[test]
    fn numbers_are_sorted_over_all_ranks(
        numbers in prop_oneof![
            prop::collection::vec(any::<i64>(), 0..20_000),
            prop::collection::vec(-3i64..3, 0..20_000),
            (0i64..20_000).prop_map(|len| (0..len).collect()),
            (0i64..20_000).prop_map(|len| (0..len).rev().collect()),
            (0i64..20_000).prop_map(|len| vec![7; len as usize]),
        ],
        cluster in cluster(),
    ) {
        let expected = sorted(numbers.clone());
        let job = collection(numbers.clone()).sort().collect();
        let simulated = simulate(&job, cluster.seed, cluster.size, 1).unwrap();
        prop_assert!(inline(&job).unwrap() == expected && simulated == expected, "{cluster:?}");

        let folder = tempfile::tempdir().unwrap();
        let job = collection(numbers).sort().map(|number| number.to_string()).write_text(folder.path());
        cluster.run(&job).unwrap();
        let found: Vec<i64> = written(folder.path()).0.iter().map(|line| line.parse().unwrap()).collect();
        prop_assert!(found == expected, "{cluster:?}");
    }

    #[test]
    fn pairs_are_sorted_by_key_and_keep_their_values(
        keys in prop::collection::vec((-9i8..9, prop::option::of("[ab]{0,2}")), 0..300),
        cluster in cluster(),
    ) {
        let pairs: Vec<_> = keys.into_iter().zip(0u64..).collect();
        let job = collection(pairs.clone()).sort_by_key().collect();
        let found = cluster.run(&job).unwrap().result;
        prop_assert!(found.is_sorted_by_key(|(key, _)| key));
        prop_assert_eq!(sorted(found), sorted(pairs));
    }

    #[test]
    fn structs_are_sorted_by_what_a_function_finds(
        visits in prop::collection::vec(("[a-c]{0,3}", prop::collection::vec(0u32..9, 0..4)), 0..200),
        cluster in cluster(),
    ) {
        let visits: Vec<_> = visits.into_iter().map(|(page, seconds)| Visit { page, seconds }).collect();
        let most = |visit: &Visit| visit.seconds.iter().copied().max();
        let job = collection(visits.clone())
            .sort_by(|visit| visit.seconds.iter().map(|second| second.to_native()).max())
            .collect();
        let found = cluster.run(&job).unwrap().result;
        prop_assert!(found.is_sorted_by_key(most));
        prop_assert_eq!(sorted(found), sorted(visits));
    }

    #[test]
    fn a_sort_between_other_operators_gives_what_one_thread_gives(
        texts in prop::collection::vec("([abé]{1,2} ){0,6}", 0..80),
        cluster in cluster(),
    ) {
        let job = collection(texts)
            .flat_map(|line, out| for word in line.split_whitespace() { out.push((word, 1u64)) })
            .reduce_by_key(|a, b| a + b)
            .map(|(word, count)| (count, word.to_owned()))
            .sort()
            .filter(|(count, _)| count % 3 != 2)
            .map(|(count, word)| (word.to_owned(), count))
            .sort_by_key()
            .collect();
        prop_assert_eq!(cluster.run(&job).unwrap().result, inline(&job).unwrap());
    }
}

/// Random numbers, the same for the same seed.
fn numbers(seed: u64, len: u64) -> Vec<u64> {
    let mix = |number: u64| {
        let z = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    (0..len)
        .map(|index| mix(seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect()
}

/// The lines of all parts in a folder, in the order of their names, and how many each has.
fn written(folder: &Path) -> (Vec<String>, Vec<usize>) {
    let mut parts: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    parts.sort();
    let texts: Vec<_> = parts
        .iter()
        .map(|part| fs::read_to_string(part).unwrap())
        .collect();
    let lens = texts.iter().map(|text| text.lines().count()).collect();
    (
        texts
            .iter()
            .flat_map(|text| text.lines())
            .map(str::to_owned)
            .collect(),
        lens,
    )
}

/// Sorts lines from files into files, and gives what went to disk between, and the lines of each part.
fn sort_files(cluster: &Cluster, records: &[String]) -> Result<(u64, Vec<usize>), Error> {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("input"), folder.path().join("output"));
    let mut text = records.join("\n");
    text.push('\n');
    fs::write(&input, text).unwrap();
    let job = lines_of(vec![input])?.sort().write_text(&output);
    let spilled = cluster.run(&job)?.spilled;
    let (lines, lens) = written(&output);
    assert!(
        lines == sorted(records.to_vec()),
        "{cluster:?}: the parts in order are the input in order"
    );
    Ok((spilled, lens))
}

/// Lines of 80 bytes, of which some are equal.
fn wide_lines(seed: u64, len: u64) -> Vec<String> {
    let line = |number: &u64| format!("{:x}{:>70}", number % 1_000_000, "|");
    numbers(seed, len).iter().map(line).collect()
}

#[test]
fn what_memory_has_no_room_for_goes_to_disk_in_as_many_passes_as_it_takes() {
    // 8 MB in some hundred KiB a rank.
    let records = wide_lines(3, 100_000);
    for size in [1, 2, 3, 5] {
        for compression in [spill::Compression::Never, spill::Compression::Always] {
            let mut cluster = Cluster::new(7 * u64::from(size), size, 640 << 10);
            cluster.spill.compression = compression;
            let (spilled, lens) = sort_files(&cluster, &records).unwrap();
            let bytes = records.len() as u64 * 75;
            // Compressed it is a fraction of that, but was written as often.
            let least = if compression == spill::Compression::Never {
                2 * bytes
            } else {
                bytes / 8
            };
            assert!(
                spilled >= least,
                "{cluster:?}: {spilled} bytes are less than two passes"
            );
            let fair = records.len() / size as usize;
            assert!(
                lens.iter().all(|len| len.abs_diff(fair) < fair / 2),
                "{cluster:?}: {lens:?}"
            );
        }
    }
}

#[test]
fn with_room_for_all_nothing_goes_to_disk() {
    let cluster = Cluster::new(5, 3, 64 << 20);
    let (spilled, _) = sort_files(&cluster, &wide_lines(3, 20_000)).unwrap();
    assert_eq!(spilled, 0);
}

#[test]
fn parts_are_fair_however_the_input_lies() {
    let random = wide_lines(11, 30_000);
    let ascending = sorted(random.clone());
    let descending: Vec<_> = ascending.iter().rev().cloned().collect();
    let few: Vec<_> = (0..30_000)
        .map(|index| format!("{}", index % 7 / 6))
        .collect();
    let equal = vec!["the same".to_owned(); 30_000];
    for records in [random, ascending, descending, few, equal] {
        for memory_bytes in [640 << 10, 64 << 20] {
            let cluster = Cluster::new(1, 4, memory_bytes);
            let (_, lens) = sort_files(&cluster, &records).unwrap();
            let fair = records.len() / 4;
            // In little memory a sample is small.
            let most = if memory_bytes < 64 << 20 {
                fair / 4
            } else {
                fair / 20
            };
            assert!(
                lens.iter().all(|len| len.abs_diff(fair) < most),
                "{cluster:?}: {lens:?}"
            );
        }
    }
}

#[test]
fn nothing_one_record_and_records_on_one_rank_only_are_sorted() {
    for size in 1..=5 {
        let cluster = Cluster::new(size.into(), size, 640 << 10);
        sorts(
            &collection(Vec::<String>::new()).sort().collect(),
            Vec::new(),
            &cluster,
        );
        sorts(&collection(vec![5u64]).sort().collect(), vec![5], &cluster);
        let few = vec!["b".to_owned(), "a".to_owned()];
        sorts(&collection(few.clone()).sort().collect(), few, &cluster);
        sorts(
            &collection(vec![(); 1_000]).sort().collect(),
            vec![(); 1_000],
            &cluster,
        );
        let job = collection((0..40_000u64).rev().collect())
            .filter(|number| number < 10_000)
            .sort()
            .collect();
        sorts(&job, (0..10_000).collect(), &cluster);
    }
}

#[test]
fn any_number_of_instances_sorts_for_any_number_of_others() {
    let records = numbers(9, 5_000);
    let expected = sorted(records.clone());
    for (before, after, size) in [(1, 4, 2), (5, 1, 2), (7, 3, 3), (2, 9, 4)] {
        for memory_bytes in [900 << 10, 64 << 20] {
            let folder = tempfile::tempdir().unwrap();
            let job = collection(records.clone())
                .parallelism(before)
                .sort()
                .parallelism(after)
                .map(|number| number.to_string())
                .write_text(folder.path());
            let cluster = Cluster::new(u64::from(before), size, memory_bytes);
            cluster.run(&job).unwrap();
            let (lines, lens) = written(folder.path());
            assert_eq!(lens.len(), after as usize);
            let found: Vec<u64> = lines.iter().map(|line| line.parse().unwrap()).collect();
            assert!(found == expected, "{before} {after} {cluster:?}");
        }
    }
}

#[test]
fn the_first_of_a_sorted_stream_are_had_without_the_rest() {
    let records = numbers(4, 50_000);
    let expected = sorted(records.clone())[..7].to_vec();
    let job = collection(records).sort().take(7).collect();
    for size in 1..4 {
        let cluster = Cluster::new(size.into(), size, 2 << 20);
        let found = cluster.run(&job).unwrap().result;
        assert_eq!(found.len(), 7);
        if size == 1 {
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn a_sorted_stream_is_read_twice_by_the_same_number_of_instances_or_refused() {
    let records = numbers(2, 3_000);
    let stream = collection(records.clone()).sort();
    let (even, odd) = (stream.clone(), stream.clone());
    let both = even
        .filter(|number| number % 2 == 0)
        .union(odd.filter(|number| number % 2 == 1))
        .collect();
    let cluster = Cluster::new(5, 3, 4 << 20);
    assert_eq!(sorted(cluster.run(&both).unwrap().result), sorted(records));
    let different = stream
        .clone()
        .parallelism(2)
        .direct()
        .union(stream.direct())
        .collect();
    let Err(error) = cluster.run(&different) else {
        panic!("it is sorted for three instances and for two")
    };
    assert!(matches!(error, Error::SortedTwice { .. }), "{error}");
}

#[test]
fn records_larger_than_pages_and_blocks_are_sorted_among_small_ones() {
    for (seed, memory_bytes) in [(1, 1 << 20), (2, 2 << 20), (3, 64 << 20)] {
        // A record may be as large as its channel's share of the arena: 87 KB for two ranks and three edges.
        let cluster = Cluster::new(seed, 2, memory_bytes);
        let len = |number: u64| {
            if number.is_multiple_of(50) {
                60_000
            } else {
                number % 90
            }
        };
        let records: Vec<_> = numbers(seed, 3_000)
            .into_iter()
            .map(|number| format!("{number:016x}{}", "y".repeat(len(number) as usize)))
            .collect();
        let (spilled, _) = sort_files(&cluster, &records).unwrap();
        assert_eq!(
            spilled > 0,
            memory_bytes < 64 << 20,
            "{cluster:?}: {spilled}"
        );
    }
}

#[test]
fn a_ledger_too_small_to_sort_in_is_named_and_gives_everything_back() {
    let job = collection(vec![1u64]).sort().collect();
    let Err(error) = Cluster::new(1, 2, 16 << 10).run(&job) else {
        panic!("16 KiB are too little")
    };
    assert!(
        matches!(error, Error::NoMemory { instance: 0, .. }),
        "{error}"
    );
}

#[test]
fn runs_go_to_every_directory_and_nothing_is_left_there() {
    let folders = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let mut cluster = Cluster::new(1, 2, 640 << 10);
    cluster.spill.directories = folders
        .iter()
        .map(|folder| folder.path().to_owned())
        .collect();
    let (spilled, _) = sort_files(&cluster, &wide_lines(1, 40_000)).unwrap();
    assert!(spilled > 0);
    for folder in &folders {
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
    let missing = folders[0].path().join("missing");
    cluster.spill.directories = vec![missing.clone(), folders[1].path().to_owned()];
    let error = sort_files(&cluster, &wide_lines(1, 40_000)).unwrap_err();
    let line = dataflow::one_line(&error);
    assert!(
        line.starts_with(&format!(
            "sort cannot make a file in {}: ",
            missing.display()
        )),
        "{line}"
    );
}

#[test]
fn threads_sort_what_their_worker_has_no_memory_for() {
    for (executors, memory_bytes) in [(1, 4 << 20), (3, 12 << 20), (3, 256 << 20)] {
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("input"), folder.path().join("output"));
        let records = wide_lines(executors.into(), 200_000);
        fs::write(&input, records.join("\n")).unwrap();
        let config = updraft::Config {
            executors: Some(executors),
            memory_bytes: Some(memory_bytes),
            pin: false,
            progress: false,
            ..updraft::Config::default()
        };
        let peak = updraft::run(config, |env| {
            let job = lines_of(vec![input.clone()])?.sort().write_text(&output);
            env.run(&job)?;
            Ok(env.ledger().peak())
        });
        assert!(peak.unwrap() <= memory_bytes);
        let (lines, lens) = written(&output);
        assert!(lines == sorted(records), "{executors} executors");
        assert_eq!(lens.len(), executors as usize);
    }
}

#[test]
fn a_full_disk_is_named_with_what_was_written_to_it() {
    let Some(disk) = SmallDisk::new(4 << 20) else {
        return;
    };
    let mut cluster = Cluster::new(3, 2, 640 << 10);
    cluster.spill.directories = vec![disk.path().to_owned()];
    cluster.spill.compression = spill::Compression::Never;
    // What fits goes through.
    let (spilled, _) = sort_files(&cluster, &wide_lines(1, 12_000)).unwrap();
    assert!(spilled > 0);
    let error = sort_files(&cluster, &wide_lines(1, 120_000)).unwrap_err();
    assert_eq!(
        dataflow::one_line(&error),
        format!(
            "sort cannot write a block in {}: No space left on device (os error 28)",
            disk.path().display()
        )
    );
    // And what was written before is gone.
    assert_eq!(disk.used(), "0");
}
