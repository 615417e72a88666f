//! One of many: what is made of all records, of those of each key, and which some of all are.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use dataflow::collection;
use proptest::prelude::*;

use crate::{
    cluster::{Cluster, cluster, instances, sorted},
    support::long::often,
};

fn numbers() -> impl Strategy<Value = Vec<i64>> {
    prop::collection::vec(-20i64..20, 0..300)
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-b]{0,3}|[a-z]{0,40}", 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(48, 10_000)))]

    #[test]
    fn each_record_is_there_once_in_distinct(
        texts in texts(),
        cluster in cluster(),
        (m, n) in (instances(), instances()),
    ) {
        let once: BTreeSet<String> = texts.iter().cloned().collect();
        let job = collection(texts).parallelism(m).distinct().parallelism(n).collect();
        cluster.gives(&job, once.into_iter().collect());
    }

    #[test]
    fn aggregates_of_all_are_what_iterators_make(
        numbers in numbers(),
        cluster in cluster(),
        m in instances(),
    ) {
        let of = || collection(numbers.clone()).parallelism(m);
        let count = numbers.len() as u64;
        cluster.gives(&of().count().collect(), vec![count]);
        let sum: i64 = numbers.iter().sum();
        let mean = (count > 0).then(|| sum * 1_000 / count as i64);
        let expected = (count, sum, numbers.iter().min().copied(), numbers.iter().max().copied(), mean);
        let job = of()
            .aggregate(|of| (of.count(), of.sum(|n| n), of.min(|n| n), of.max(|n| n), of.mean(|n| n as f64)))
            .map(|(count, sum, min, max, mean)| {
                // Whole numbers this small are added without rounding.
                (count, sum, min, max, mean.map(|mean| (mean * count as f64).round() as i64 * 1_000 / count as i64))
            });
        cluster.gives(&job.collect(), vec![expected]);

        let reduced: Vec<i64> = numbers.iter().copied().reduce(i64::max).into_iter().collect();
        cluster.gives(&of().reduce(|a, b| a.max(b)).collect(), reduced);
        let product = |a: i64, b: i64| a.wrapping_mul(b);
        let folded = numbers.iter().fold(1i64, |a, &b| product(a, b));
        let job = of().fold(1i64, move |all, n| *all = product(*all, n), move |all, part| *all = product(*all, part));
        cluster.gives(&job.collect(), vec![folded]);
    }

    #[test]
    fn an_all_reduce_gives_every_instance_the_same(
        numbers in numbers(),
        cluster in cluster(),
        (m, n) in (instances(), instances()),
    ) {
        let sum = numbers.iter().copied().reduce(|a, b| a + b);
        let job = collection(numbers).parallelism(m).all_reduce(|a, b| a + b).parallelism(n).with_instance();
        let expected = (0..n).filter_map(|instance| Some((instance, sum?)));
        cluster.gives(&job.collect(), expected.collect());
    }

    #[test]
    fn aggregates_by_key_are_what_a_map_makes(
        pairs in prop::collection::vec((prop::option::of("[a-c]{0,2}"), -9i64..9), 0..200),
        cluster in cluster(),
        (m, n) in (instances(), instances()),
    ) {
        let mut expected = BTreeMap::<Option<String>, Vec<i64>>::new();
        for (key, value) in &pairs {
            expected.entry(key.clone()).or_default().push(*value);
        }
        let expected = expected.into_iter().map(|(key, values)| {
            let texts = sorted(values.iter().map(i64::to_string).collect());
            (key, (values.len() as u64, values.iter().sum(), values.into_iter().max(), texts))
        });
        let job = collection(pairs)
            .parallelism(m)
            .aggregate_by_key(|of| {
                let texts = of.fold(
                    Vec::<String>::new(),
                    |texts, value| texts.push(value.to_string()),
                    |texts, more| texts.extend(more.iter().map(str::to_owned)),
                );
                (of.count(), of.sum(|value| value), of.max(|value| value), texts)
            })
            .parallelism(n)
            .map(|(key, (count, sum, max, texts))| {
                (key.map(str::to_owned), (count, sum, max, sorted(texts.iter().map(str::to_owned).collect())))
            });
        cluster.gives(&job.collect(), expected.collect());
    }

    #[test]
    fn the_top_are_the_greatest_in_their_order(
        texts in texts(),
        number in 0usize..12,
        cluster in cluster(),
        (m, n) in (instances(), instances()),
    ) {
        let of = || collection(texts.clone()).parallelism(m);
        let mut expected = sorted(texts.clone());
        expected.reverse();
        expected.truncate(number);
        let top = of().top_n(number, str::to_owned).parallelism(n).collect();
        prop_assert_eq!(cluster.run(&top).unwrap(), expected);
        let mut expected = sorted(texts.clone());
        expected.truncate(number);
        let least = of().top_n(number, |text| Reverse(text.to_owned())).collect();
        prop_assert_eq!(cluster.run(&least).unwrap(), expected);
        let mut lengths = sorted(texts.iter().map(|text| Reverse(text.len())).collect());
        lengths.truncate(number);
        let longest = cluster.run(&of().top_n(number, str::len).collect()).unwrap();
        prop_assert_eq!(longest.iter().map(|text| Reverse(text.len())).collect::<Vec<_>>(), lengths);
    }

    #[test]
    fn some_are_as_many_as_there_are_but_no_more_than_wanted(
        texts in texts(),
        number in 0u64..300,
        cluster in cluster(),
        (m, n) in (instances(), instances()),
    ) {
        let job = collection(texts.clone()).parallelism(m).round_robin().take(number).parallelism(n).collect();
        let mut left = texts.clone();
        let some = cluster.run(&job).unwrap();
        prop_assert_eq!(some.len() as u64, number.min(texts.len() as u64));
        for text in some {
            let at = left.iter().position(|other| *other == text);
            left.remove(at.expect("it is one of those there were"));
        }
    }
}

/// Counts the records that a stream has, from whatever instance.
fn counted(counter: &Arc<AtomicU64>) -> impl FnMut(u64) -> u64 + Clone + use<> {
    let counter = counter.clone();
    move |n| {
        counter.fetch_add(1, Ordering::Relaxed);
        n
    }
}

#[test]
fn when_enough_have_come_the_sources_are_told_to_stop() {
    const ALL: u64 = 3_000_000;
    for size in 1..5 {
        let cluster = Cluster {
            seed: u64::from(size),
            size,
            executors: 1,
            arena_bytes: 1 << 20,
            memory_bytes: 1 << 30,
        };
        let read = Arc::new(AtomicU64::new(0));
        let numbers: Vec<u64> = (0..ALL).collect();
        let job = collection(numbers.clone())
            .map(counted(&read))
            .exchange_by_hash()
            .map(|n| n)
            .round_robin()
            .take(10);
        assert_eq!(cluster.run(&job.collect()).unwrap().len(), 10);
        let read_for_ten = read.swap(0, Ordering::Relaxed);
        // What the windows of two exchanges hold, and some more until the word has come round.
        assert!(
            read_for_ten < ALL / 2,
            "{size}: {read_for_ten} were read for ten"
        );

        // The other reader of the stream gets all.
        let stream = collection(numbers).map(counted(&read)).direct();
        let job = stream.clone().take(10).map(|_| 1u64).union(stream.count());
        let given = sorted(cluster.run(&job.collect()).unwrap());
        assert_eq!(given, sorted([vec![1; 10], vec![ALL]].concat()));
        assert_eq!(read.load(Ordering::Relaxed), ALL);
    }
}

#[test]
fn lines_are_read_no_further_than_they_are_wanted() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // Behind the first lines there is something that is no text, which reading on would find.
    let text = [&b"fine\n".repeat(1_000_000)[..], b"\xff\n"].concat();
    std::fs::write(file.path(), text).unwrap();
    let lines = || dataflow::lines_of(vec![file.path().to_owned()]).unwrap();
    let cluster = Cluster {
        seed: 2,
        size: 1,
        executors: 1,
        arena_bytes: 1 << 20,
        memory_bytes: 1 << 30,
    };
    assert_eq!(
        cluster.run(&lines().take(3).collect()).unwrap(),
        ["fine"; 3]
    );
    cluster.run(&lines().count().collect()).unwrap_err();
}

#[test]
fn sums_of_floats_have_the_same_bits_every_time() {
    let numbers: Vec<f64> = (1..5_000).map(|n| 1.0 / f64::from(n)).collect();
    let job = collection(numbers)
        .reduce(|a, b| a + b)
        .map(f64::to_bits)
        .collect();
    let at = |seed| Cluster {
        seed,
        size: 4,
        executors: 2,
        arena_bytes: 1 << 20,
        memory_bytes: 1 << 30,
    };
    let first = at(0).run(&job).unwrap();
    for seed in 1..20 {
        assert_eq!(at(seed).run(&job).unwrap(), first, "seed {seed}");
    }
}
