//! What jobs promise: the same answer as on one thread, whatever the number of ranks and the order in which
//! messages arrive.

#[path = "support/long.rs"]
mod long;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Debug,
    fs,
    path::Path,
    rc::Rc,
    sync::{Arc, Mutex},
};

use dataflow::{
    Counters, Error, Job, Key, Level, Progress, Run, Site, collection, inline, lines, lines_of,
    record, simulate,
};
use long::often;
use proptest::{prelude::*, sample::Index};
use transport::{Arena, Event, Fabric, Ledger, Simulation};

/// Where a job is simulated.
#[derive(Debug, Clone, Copy)]
struct Cluster {
    seed: u64,
    size: u32,
    executors: u32,
}

impl Cluster {
    fn run<R>(self, job: &Job<R>) -> Result<R, Error> {
        simulate(job, self.seed, self.size, self.executors)
    }
}

fn cluster() -> impl Strategy<Value = Cluster> {
    (any::<u64>(), 1u32..=5, 1u32..=3).prop_map(|(seed, size, executors)| Cluster {
        seed,
        size,
        executors,
    })
}

/// One cluster of each size.
fn clusters() -> impl Iterator<Item = Cluster> {
    (1..=5).map(|size| Cluster {
        seed: 7 * u64::from(size),
        size,
        executors: 1 + size % 3,
    })
}

fn sorted<T: Ord>(mut records: Vec<T>) -> Vec<T> {
    records.sort();
    records
}

/// The cluster gives what one thread gives, in some order.
fn equals_inline<T: Ord + Debug>(job: &Job<Vec<T>>, cluster: Cluster) {
    let expected = sorted(inline(job).unwrap());
    assert_eq!(sorted(cluster.run(job).unwrap()), expected, "{cluster:?}");
}

/// Texts of few words, so that words meet.
fn texts() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("([abé]{1,2} ){0,6}[a-c]{0,12}", 0..80)
}

fn samples() -> impl Strategy<Value = Vec<(i64, Option<String>, Vec<u32>)>> {
    let sample = (
        -9i64..9,
        prop::option::of("[a-z]{0,12}"),
        prop::collection::vec(0u32..9, 0..6),
    );
    prop::collection::vec(sample, 0..80)
}

record! {
    #[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
    struct Visit {
        page: String,
        seconds: Vec<u32>,
        from: Option<String>,
    }
}

fn visits() -> impl Strategy<Value = Vec<Visit>> {
    let visit = (
        "[a-d]{1,2}|[a-d]{20,30}",
        prop::collection::vec(any::<u32>(), 0..4),
        prop::option::of("[a-z]{0,20}"),
    );
    let visit = visit.prop_map(|(page, seconds, from)| Visit {
        page,
        seconds,
        from,
    });
    prop::collection::vec(visit, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(64, 10_000)))]

    #[test]
    fn narrow_operators_keep_the_order_of_a_collection(samples in samples(), cluster in cluster()) {
        let job = collection(samples)
            .map(|(number, name, list)| (number + 1, name.map(str::to_owned), list.iter().sum::<u32>()))
            .filter(|(number, _, _)| number % 3 != 0)
            .flat_map(|(number, name, sum), out| {
                for index in 0..sum % 4 {
                    out.push((number, name, index));
                }
            })
            .collect();
        prop_assert_eq!(cluster.run(&job).unwrap(), inline(&job).unwrap());
    }

    #[test]
    fn a_reduce_gives_what_one_thread_gives(texts in texts(), cluster in cluster()) {
        let job = collection(texts)
            .flat_map(|line, out| for word in line.split_whitespace() { out.push((word, 1u64)) })
            .reduce_by_key(|a, b| a + b)
            .collect();
        equals_inline(&job, cluster);
    }

    #[test]
    fn a_reduce_after_a_reduce_gives_what_one_thread_gives(texts in texts(), cluster in cluster()) {
        let job = collection(texts)
            .flat_map(|line, out| for word in line.split_whitespace() { out.push((word, 1u64)) })
            .reduce_by_key(|a, b| a + b)
            .flat_map(|(word, count), out| out.push((count, (word.len() as u64, 1u64))))
            .filter(|(count, _)| count % 5 != 4)
            .reduce_by_key(|(bytes, words), (more_bytes, more_words)| {
                (bytes.max(more_bytes), words + more_words)
            })
            .map(|(count, (bytes, words))| format!("{count}: {bytes} {words}"))
            .collect();
        equals_inline(&job, cluster);
    }

    #[test]
    fn an_exchange_between_narrow_operators_loses_and_doubles_nothing(
        samples in samples(),
        cluster in cluster(),
    ) {
        let job = collection(samples)
            .flat_map(|(number, name, list), out| {
                out.push(((number, name.is_some()), (name, list)));
                if number > 5 {
                    out.push(((0i64, false), (None::<String>, list)));
                }
            })
            .exchange_by_key()
            .filter(|((number, _), _)| number != 3)
            .map(|((number, _), (name, list))| {
                (list.iter().collect::<Vec<u32>>(), (number, name.map(str::to_owned)))
            })
            .collect();
        equals_inline(&job, cluster);
    }

    #[test]
    fn exchanges_and_reduces_in_a_row_give_what_one_thread_gives(
        samples in samples(),
        cluster in cluster(),
    ) {
        let job = collection(samples)
            .map(|(number, name, list)| (name.unwrap_or("none").to_owned(), (number, list.len() as u32)))
            .exchange_by_key()
            .map(|(name, (number, len))| ((number, len), name.to_owned()))
            .exchange_by_key()
            .flat_map(|((number, len), name), out| out.push((name, (number, u64::from(len)))))
            .reduce_by_key(|(a, b), (c, d)| (a.min(c), b + d))
            .map(|(name, (number, sum))| (sum, (name.to_owned(), number)))
            .exchange_by_key()
            .collect();
        equals_inline(&job, cluster);
    }

    #[test]
    fn a_reduce_of_strings_combines_every_value_once(texts in texts(), cluster in cluster()) {
        let job = collection(texts)
            .flat_map(|line, out| out.push((line.len() as u8 % 4, line)))
            .reduce_by_key(|mut all: String, line| {
                all.push_str(line);
                all
            })
            .collect();
        let letters = |reduced: Vec<(u8, String)>| {
            let sorted_letters = |(key, text): (u8, String)| (key, sorted(text.chars().collect()));
            sorted(reduced.into_iter().map(sorted_letters).collect())
        };
        let found = letters(cluster.run(&job).unwrap());
        prop_assert_eq!(found, letters(inline(&job).unwrap()));
    }

    #[test]
    fn structs_of_a_program_are_exchanged_and_reduced_like_any_record(
        visits in visits(),
        cluster in cluster(),
    ) {
        let job = collection(visits.clone())
            .flat_map(|visit, out| out.push((visit.page.as_str(), visit)))
            .exchange_by_key()
            .filter(|(_, visit)| visit.seconds.len() < 3)
            .collect();
        equals_inline(&job, cluster);

        let job = collection(visits)
            .map(|visit| (visit.page.len() as u16, visit.seconds.iter().map(|s| s.to_native()).max()))
            .map(|(len, seconds)| (len, Visit { seconds: seconds.into_iter().collect(), ..Visit::default() }))
            .reduce_by_key(|mut a: Visit, b| {
                a.seconds.extend(b.seconds.iter().map(|s| s.to_native()));
                a.seconds.sort();
                a
            })
            .collect();
        equals_inline(&job, cluster);
    }

    #[test]
    fn for_each_sees_each_record_once(numbers in prop::collection::vec(any::<u64>(), 0..200), cluster in cluster()) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let see = seen.clone();
        let job = collection(numbers.clone())
            .map(|number| (number, number))
            .exchange_by_key()
            .for_each(move |(number, _)| see.lock().unwrap().push(number));
        cluster.run(&job).unwrap();
        prop_assert_eq!(sorted(std::mem::take(&mut *seen.lock().unwrap())), sorted(numbers));
    }
}

/// Equal keys, and only they, are counted together, all on one rank.
fn meet<K: Key + Clone + Ord + Debug + Sync>(keys: &[K], picks: &[Index], cluster: Cluster)
where
    for<'a> K::View<'a>: Debug,
{
    let keys: Vec<K> = picks.iter().map(|pick| pick.get(keys).clone()).collect();
    let mut expected = BTreeMap::new();
    for key in &keys {
        *expected.entry(key.clone()).or_default() += 1u64;
    }
    let pairs: Vec<(K, u64)> = keys.into_iter().map(|key| (key, 1)).collect();
    let counts = collection(pairs.clone())
        .reduce_by_key(|a, b| a + b)
        .collect();
    let counts = sorted(cluster.run(&counts).unwrap());
    assert_eq!(counts, expected.clone().into_iter().collect::<Vec<_>>());

    // The function is cloned for each rank, so each rank has its own idea of what it has seen.
    let mut seen = HashSet::new();
    let firsts = collection(pairs)
        .exchange_by_key()
        .filter(move |(key, _)| seen.insert(format!("{key:?}")))
        .collect();
    assert_eq!(cluster.run(&firsts).unwrap().len(), expected.len());
}

macro_rules! equal_keys_meet_on_one_rank {
    ($($kind:ident: $key:ty;)*) => {
        mod equal_keys_meet_on_one_rank {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(often(24, 10_000)))]
                $(
                    #[test]
                    fn $kind(
                        keys in prop::collection::vec(any::<$key>(), 1..12),
                        picks in prop::collection::vec(any::<Index>(), 0..60),
                        cluster in cluster(),
                    ) {
                        meet(&keys, &picks, cluster);
                    }
                )*
            }
        }
    };
}

equal_keys_meet_on_one_rank! {
    of_one_byte: u8;
    of_two_bytes: u16;
    of_four_bytes: u32;
    of_eight_bytes: u64;
    of_sixteen_bytes: u128;
    of_one_signed_byte: i8;
    of_two_signed_bytes: i16;
    of_four_signed_bytes: i32;
    of_eight_signed_bytes: i64;
    of_sixteen_signed_bytes: i128;
    of_truths: bool;
    of_characters: char;
    of_nothing: ();
    of_strings: String;
    of_byte_strings: Vec<u8>;
    of_singles: (String,);
    of_pairs: (u64, String);
    of_triples: (bool, Vec<u8>, char);
    of_quadruples: (u8, (i128, String), (), u32);
}

#[test]
fn the_results_of_nothing_are_nothing() {
    for cluster in clusters() {
        let none = || collection(Vec::<(String, u64)>::new());
        assert_eq!(cluster.run(&none().collect()).unwrap(), []);
        assert_eq!(
            cluster.run(&none().exchange_by_key().collect()).unwrap(),
            []
        );
        let reduced = none().reduce_by_key(|a, b| a + b).collect();
        assert_eq!(cluster.run(&reduced).unwrap(), []);
        cluster
            .run(&none().for_each(|_| panic!("nothing is seen")))
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let written = none()
            .map(|(name, _)| name.to_owned())
            .write_text(folder.path());
        cluster.run(&written).unwrap();
        assert_eq!(names(folder.path()).len() as u32, cluster.size);
    }
}

#[test]
fn more_records_than_all_arenas_hold_pass_through_an_exchange() {
    for cluster in clusters() {
        let job = collection((0u32..400).collect())
            .flat_map(|number, out| {
                for index in 0..500u32 {
                    out.push((number * 500 + index, format!("{number:>100}")));
                }
            })
            .exchange_by_key()
            .flat_map(|(number, text), out| out.push((number % 7, text.len() as u64)))
            .exchange_by_key()
            .reduce_by_key(|a, b| a + b)
            .collect();
        let sum: u64 = cluster
            .run(&job)
            .unwrap()
            .iter()
            .map(|(_, bytes)| bytes)
            .sum();
        assert_eq!(sum, 400 * 500 * 100, "{cluster:?}");
    }
}

/// Half of a simulated rank's arena, of which each channel has its share.
const HALF_AN_ARENA: usize = 2 << 20;

#[test]
fn one_record_may_be_larger_than_a_batch_but_not_than_its_share_of_the_arena() {
    let of_bytes = |bytes: usize| {
        let texts = [
            "small".to_owned(),
            "x".repeat(bytes),
            "small too".to_owned(),
        ];
        collection(texts.map(|text| (text.len() as u64, text)).into()).exchange_by_key()
    };
    for cluster in clusters() {
        let share = HALF_AN_ARENA / (2 * cluster.size as usize);
        for bytes in [60 << 10, 64 << 10, share / 2, share / 10 * 9] {
            equals_inline(&of_bytes(bytes).collect(), cluster);
        }
        let error = cluster.run(&of_bytes(share).collect()).unwrap_err();
        assert!(matches!(error, Error::RecordTooLarge { .. }), "{error}");
    }
}

#[test]
fn large_records_among_small_ones_never_wait_for_each_other() {
    for seed in 0..often(60, 10_000) {
        let cluster = Cluster {
            seed,
            size: 1 + seed as u32 % 5,
            executors: 1 + seed as u32 % 3,
        };
        let share = HALF_AN_ARENA / (3 * cluster.size as usize);
        let bytes = move |number: u64| match number % 7 {
            0 => share / 10 * 9,
            3 => share / 3,
            _ => number as usize % 90,
        };
        let job = collection((0..100u64).map(|number| number * (seed + 1)).collect())
            .map(move |number| (number, "x".repeat(bytes(number))))
            .exchange_by_key()
            .flat_map(|(number, text), out| out.push((number / 2, text)))
            .exchange_by_key()
            .filter(|(number, _)| number % 11 != 0)
            .collect();
        equals_inline(&job, cluster);
    }
}

/// The names in a folder, the hidden ones too.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    sorted(names.collect())
}

#[test]
fn parts_appear_when_every_rank_has_finished_and_nothing_else_remains() {
    for cluster in clusters() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("made/on demand");
        let watched = folder.clone();
        let numbers: Vec<u64> = (0..20_000).collect();
        let job = collection(numbers.clone())
            .map(|number| (number, ()))
            .exchange_by_key()
            .map(move |(number, ())| {
                if number % 64 == 0 {
                    let seen = names(&watched);
                    assert!(seen.iter().all(|name| name.starts_with('.')), "{seen:?}");
                }
                number.to_string()
            })
            .write_text(&folder);
        cluster.run(&job).unwrap();
        let parts: Vec<_> = (0..cluster.size)
            .map(|rank| format!("part-{rank:05}"))
            .collect();
        assert_eq!(names(&folder), parts);
        let text: String = parts
            .iter()
            .map(|part| fs::read_to_string(folder.join(part)).unwrap())
            .collect();
        let written = text.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(sorted::<u64>(written), numbers);
    }
}

#[test]
fn a_run_that_fails_leaves_no_file_behind() {
    for cluster in clusters() {
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("input"), folder.path().join("output"));
        fs::write(&input, [&b"fine\n".repeat(50_000)[..], b"\xff\n"].concat()).unwrap();
        let job = lines_of(vec![input]).unwrap().write_text(&output);
        let error = cluster.run(&job).unwrap_err();
        assert!(
            matches!(
                error,
                Error::NotText {
                    offset: 250_000,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(names(&output), [""; 0]);
    }
}

#[test]
fn the_output_of_an_earlier_run_is_never_touched() {
    for cluster in clusters() {
        let folder = tempfile::tempdir().unwrap();
        let write = |line: &str| collection(vec![line.to_owned()]).write_text(folder.path());
        cluster.run(&write("first")).unwrap();
        let before = names(folder.path());
        let error = cluster.run(&write("second")).unwrap_err();
        let Error::OutputExists { path } = error else {
            panic!("{error}")
        };
        assert_eq!(path.parent(), Some(folder.path()));
        assert_eq!(names(folder.path()), before);
        let texts = before
            .iter()
            .map(|name| fs::read_to_string(folder.path().join(name)).unwrap());
        assert_eq!(texts.collect::<String>(), "first\n");
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let folder = file.path().join("folder");
    let error = inline(&collection(vec![String::new()]).write_text(&folder)).unwrap_err();
    let line = dataflow::one_line(&error);
    assert!(
        line.starts_with(&format!("cannot write {}: ", folder.display())),
        "{line}"
    );
}

#[test]
fn words_are_counted_as_a_hash_map_counts_them() {
    let pattern = concat!(env!("CARGO_MANIFEST_DIR"), "/[dt]*/src/**/*.rs");
    let mut expected = HashMap::<String, u64>::new();
    inline(&lines(pattern).unwrap().collect())
        .unwrap()
        .iter()
        .for_each(|line| {
            for word in line.split(|letter: char| !letter.is_alphanumeric()) {
                *expected.entry(word.to_owned()).or_default() += 1;
            }
        });
    assert!(expected.len() > 1_000);
    let job = lines(pattern)
        .unwrap()
        .flat_map(|line, out| {
            for word in line.split(|letter: char| !letter.is_alphanumeric()) {
                out.push((word, 1u64));
            }
        })
        .reduce_by_key(|a, b| a + b)
        .collect();
    for cluster in clusters() {
        let counted = cluster.run(&job).unwrap();
        assert_eq!(counted.len(), expected.len(), "each word is given once");
        assert_eq!(counted.into_iter().collect::<HashMap<_, _>>(), expected);
    }
}

/// Wants to know nothing.
#[derive(Debug)]
struct Nobody;

impl Counters for Nobody {
    fn read(&self, _records: u64, _bytes: u64) {}

    fn received(&self, _records: u64, _bytes: u64) {}

    fn expect(&self, _bytes: u64) {}
}

/// One rank of a job, driven by the test.
struct Driven {
    fabric: Rc<RefCell<Fabric>>,
    run: Run,
}

impl Driven {
    fn new<R>(fabric: Fabric, ledger: &Ledger, job: &Job<R>) -> Self {
        let fabric = Rc::new(RefCell::new(fabric));
        let site = Site {
            fabric: fabric.clone(),
            executors: 1,
            ledger: ledger.clone(),
            counters: Rc::new(Nobody),
            spill: Rc::default(),
            helpers: Rc::new(()),
        };
        let run = Run::new(&job.task_graph(), 0, &site).unwrap();
        Self { fabric, run }
    }

    fn turn(&mut self) -> Result<Progress, Error> {
        loop {
            let event = self.fabric.borrow_mut().receive();
            let event = event.map_err(transport::Error::from)?;
            match event {
                Some(Event::Message { from, buffer }) => self.run.receive(from, buffer)?,
                Some(Event::Ended { peer, error }) => self.run.ended(peer, *error)?,
                Some(Event::Refused { .. } | Event::Completed { .. }) | None => {
                    return self.run.poll();
                }
            }
        }
    }
}

/// Counts `keys` keys twice each within the limit of a ledger.
fn count_within(ledger: &Ledger, keys: u64) -> Result<Vec<(u64, u64)>, Error> {
    let job = collection((0..2 * keys / 100).collect())
        .flat_map(move |hundred, out| {
            for index in 0..100 {
                out.push(((hundred * 100 + index) % keys, 1u64));
            }
        })
        .reduce_by_key(|a, b| a + b)
        .filter(|(_, count)| count != 2)
        .collect();
    let fabric = Fabric::alone(Arena::new(ledger, 4 << 20)?);
    let mut rank = Driven::new(fabric, ledger, &job);
    while rank.turn()? != Progress::Done {}
    drop(rank);
    Ok(job.take_result())
}

#[test]
fn a_reduce_past_the_ledger_goes_on_on_disk() {
    let ledger = Ledger::new(8 << 20);
    assert_eq!(
        count_within(&ledger, 1_000_000).unwrap(),
        [],
        "each key counts two"
    );
    assert!(ledger.peak() <= 8 << 20);
    assert_eq!(ledger.used(), 0);
}

#[test]
fn values_that_outgrow_their_share_of_the_ledger_are_sent_on_before_the_end() {
    let ledger = Ledger::new(48 << 20);
    assert_eq!(
        count_within(&ledger, 400_000).unwrap(),
        [],
        "each key counts two"
    );
    assert_eq!(ledger.used(), 0);
}

#[test]
fn when_a_rank_dies_the_others_fail_and_leave_no_file_behind() {
    for seed in 0..often(20, 10_000) {
        let folder = tempfile::tempdir().unwrap();
        let job = collection((0u64..3_000).collect())
            .map(|number| (number, ()))
            .exchange_by_key()
            .map(|(number, ())| number.to_string())
            .write_text(folder.path());
        let network = Simulation::new(seed, 3);
        let ledger = Ledger::new(1 << 30);
        let mut ranks: Vec<_> = (0..3)
            .map(|rank| {
                let arena = Arena::new(&ledger, 1 << 20).unwrap();
                Driven::new(network.fabric(rank, &arena), &ledger, &job)
            })
            .collect();
        for _ in 0..network.draw(8) {
            let rank = network.draw(3) as usize;
            assert_ne!(ranks[rank].turn().unwrap(), Progress::Done);
            network.advance();
        }
        network.kill(2);
        ranks.pop();
        for rank in &mut ranks {
            let error = loop {
                match rank.turn() {
                    Ok(Progress::Done) => panic!("seed {seed}: nobody can finish"),
                    Ok(_) => network.advance(),
                    Err(error) => break error,
                };
            };
            let Error::Transport(transport::Error::PeerLost { peer, .. }) = error else {
                panic!("seed {seed}: {error}")
            };
            assert_eq!(peer, 2);
        }
        drop(ranks);
        assert_eq!(names(folder.path()), [""; 0], "seed {seed}");
    }
}

/// Enough for them to tell one of them, and not each other, what concerns all.
const MANY: u32 = 20;

#[test]
fn when_one_of_many_ranks_dies_all_others_fail_and_say_which() {
    let dies = MANY - 1;
    for seed in 0..often(20, 10_000) {
        let job = collection((0u64..3_000).collect())
            .map(|number| (number, ()))
            .exchange_by_key()
            .count()
            .collect();
        let network = Simulation::new(seed, MANY);
        let ledger = Ledger::new(1 << 30);
        let mut ranks: Vec<_> = (0..MANY)
            .map(|rank| {
                let arena = Arena::new(&ledger, 4 << 20).unwrap();
                Driven::new(network.fabric(rank, &arena), &ledger, &job)
            })
            .collect();
        for _ in 0..network.draw(40) {
            let rank = network.draw(MANY.into()) as usize;
            assert_ne!(ranks[rank].turn().unwrap(), Progress::Done);
            network.advance();
        }
        network.kill(dies);
        ranks.pop();
        let mut errors = vec![None; ranks.len()];
        for _ in 0..10_000 {
            for (rank, error) in ranks.iter_mut().zip(&mut errors) {
                if error.is_none() {
                    *error = match rank.turn() {
                        Ok(Progress::Done) => panic!("seed {seed}: nobody can finish"),
                        Ok(_) => None,
                        Err(failed) => Some(failed.to_string()),
                    };
                }
            }
            network.advance();
        }
        for (rank, error) in errors.into_iter().enumerate() {
            let error = error.unwrap_or_else(|| panic!("seed {seed}: rank {rank} waits"));
            assert!(error.contains(&format!("rank {dies}")), "{error}");
        }
    }
}

#[test]
fn many_ranks_give_what_one_thread_gives() {
    for seed in 0..often(5, 1_000) {
        let words = (0..500u64).map(|n| format!("{}", n * n % 97));
        let words = collection(words.collect()).persist(Level::Memory);
        let counts = words.map(|word| (word.to_owned(), 1u64));
        let job = counts.reduce_by_key(|a, b| a + b).collect();
        let expected = sorted(inline(&job).unwrap());
        for _computed_or_kept in 0..2 {
            let found = simulate(&job, seed, MANY, 2).unwrap();
            assert_eq!(sorted(found), expected, "seed {seed}");
        }
    }
}
