//! What there is no room for in memory goes to disk, and comes out as if there had been.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    fs, mem,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
};

use dataflow::{
    Error, Job, Key, Narrow, Ordered, Record, Source, TSet, Window, Windows, collection, generate,
    inline, one_line, spill,
};
use proptest::prelude::*;
use updraft::Config;

use crate::{
    cluster::{Cluster, holder, sorted},
    support::{disk::SmallDisk, long::often},
};

const ARENA_BYTES: u64 = 1 << 20;

/// Some ranks in some processes, each with so many bytes besides its arena.
fn tight(seed: u64, size: u32, executors: u32, memory_bytes: u64) -> Cluster {
    let here = u64::from(executors.min(size));
    Cluster {
        seed,
        size,
        executors,
        arena_bytes: ARENA_BYTES,
        memory_bytes: (ARENA_BYTES + memory_bytes) * here,
    }
}

fn any_tight() -> impl Strategy<Value = Cluster> {
    let memory_bytes = prop_oneof![600u64 << 10..1200 << 10, 1u64 << 20..4 << 20];
    (any::<u64>(), 1u32..=4, 1u32..=3, memory_bytes)
        .prop_map(|(seed, size, executors, memory)| tight(seed, size, executors, memory))
}

/// What a stream gives in little memory, and what went to disk for it. (What `collect` gathers would be on the ledger.)
fn given<S, N, T>(cluster: Cluster, stream: TSet<S, N>) -> (Vec<T>, u64)
where
    S: Source,
    N: Narrow<S::Out, Out = T>,
    T: Record,
{
    let all = Arc::<Mutex<Vec<T>>>::default();
    let records = all.clone();
    let job = stream.for_each(move |view| records.lock().unwrap().push(T::own(view)));
    let ((), spilled) = cluster
        .run_on(&job, &spill::Config::default())
        .unwrap_or_else(|error| panic!("{cluster:?}: {}: {}", job.plan(), one_line(&error)));
    (mem::take(&mut *all.lock().unwrap()), spilled)
}

/// A stream gives in little memory what it gives on one thread with as much as it likes; says what went to disk.
fn same<S, N, T>(cluster: Cluster, stream: TSet<S, N>) -> u64
where
    S: Source,
    N: Narrow<S::Out, Out = T>,
    T: Record + Ord + Debug,
{
    let expected = sorted(inline(&stream.clone().collect()).unwrap());
    agrees(cluster, stream, &expected)
}

fn agrees<S, N, T>(cluster: Cluster, stream: TSet<S, N>, expected: &[T]) -> u64
where
    S: Source,
    N: Narrow<S::Out, Out = T>,
    T: Record + Ord + Debug,
{
    let name = format!("{stream:?}");
    let (found, spilled) = given(cluster, stream);
    assert_eq!(found.len(), expected.len(), "{cluster:?}: {name}");
    assert!(sorted(found) == expected, "{cluster:?}: {name}");
    spilled
}

/// Every join of two lists, by hash and by merging; says what went to disk.
fn joins<K, L, R>(cluster: Cluster, left: &[(K, L)], right: &[(K, R)]) -> u64
where
    K: Key + Ordered + Ord + Clone + Debug + Sync,
    L: Record + Ord + Clone + Debug + Sync,
    R: Record + Ord + Clone + Debug + Sync,
{
    let l = || collection(left.to_vec());
    let r = || collection(right.to_vec());
    let mut spilled = 0;
    macro_rules! both {
        ($($join:ident)*) => {$(
            let expected = sorted(inline(&l().$join(r()).collect()).unwrap());
            spilled += agrees(cluster, l().$join(r()), &expected);
            spilled += agrees(cluster, l().$join(r()).by_merging(), &expected);
        )*};
    }
    both!(join left_join right_join full_join semi_join anti_join);
    spilled
}

/// Values by key, in order.
fn grouped<K: Ord, V: Ord>(groups: Vec<(K, Vec<V>)>) -> Vec<(K, Vec<V>)> {
    let groups = groups.into_iter();
    sorted(groups.map(|(key, values)| (key, sorted(values))).collect())
}

/// Keys that are all different, a few, or one that most rows have.
fn keys(rows: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u64>> {
    prop_oneof![
        prop::collection::vec(any::<u64>(), rows.clone()),
        prop::collection::vec(0u64..500, rows.clone()),
        prop::collection::vec(0u64..5, 0..200),
        (prop::collection::vec(0u64..1 << 20, rows), any::<u64>()).prop_map(|(mut keys, hot)| {
            let step = 20.max(keys.len() / 150);
            keys.iter_mut().step_by(step).for_each(|key| *key = hot);
            keys
        }),
    ]
}

/// Rows of the keys with texts of many lengths.
fn rows(keys: &[u64], wide: usize) -> Vec<(Option<u64>, String)> {
    let row = |(number, &key): (usize, &u64)| {
        let key = (!key.is_multiple_of(17)).then_some(key);
        (key, format!("{number}{}", "x".repeat(number * 7 % wide)))
    };
    keys.iter().enumerate().map(row).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(16, 10_000)))]

    #[test]
    fn joins_in_little_memory_give_what_they_give_in_much(
        left in keys(0..4_000),
        right in keys(0..4_000),
        wide in prop_oneof![Just(1usize), Just(300)],
        cluster in any_tight(),
    ) {
        // Some keys on the left side are those of the right side.
        let mut left = left;
        for (l, r) in left.iter_mut().step_by(3).zip(&right) {
            *l = *r;
        }
        joins(cluster, &rows(&left, wide), &rows(&right, wide));
    }

    #[test]
    fn groups_in_little_memory_are_those_in_much(
        left in keys(0..12_000),
        right in keys(0..6_000),
        wide in prop_oneof![Just(1usize), Just(300)],
        cluster in any_tight(),
    ) {
        let (left, right) = (rows(&left, wide), rows(&right, wide));
        let groups = collection(left.clone()).group_by_key();
        let expected = grouped(inline(&groups.clone().collect()).unwrap());
        prop_assert!(grouped(given(cluster, groups).0) == expected, "{cluster:?}");

        let groups = collection(left.clone()).group_by_key_sorted(str::to_owned);
        agrees(cluster, groups, &expected);

        let both = collection(left).cogroup(collection(right)).map(|(key, (left, right))| {
            let texts = |texts: dataflow::Slice<'_, String>| sorted(texts.iter().map(str::to_owned).collect());
            (key, (texts(left), texts(right)))
        });
        same(cluster, both);
    }

    #[test]
    fn reductions_in_little_memory_give_what_they_give_in_much(
        keys in keys(0..15_000),
        wide in prop_oneof![Just(1usize), Just(60)],
        cluster in any_tight(),
    ) {
        let rows = rows(&keys, wide);
        let texts = collection(rows.clone()).map(|(_, text)| text.to_owned());
        same(cluster, collection(keys.clone()).distinct());
        same(cluster, texts.distinct());
        let sums = collection(keys).map(|key| (key, key));
        same(cluster, sums.reduce_by_key(u64::wrapping_add));
        let by_text = collection(rows.clone()).map(|(key, text)| (text.to_owned(), key.unwrap_or(0)));
        same(cluster, by_text.aggregate_by_key(|of| (of.count(), of.sum(|n| n as u128), of.max(|n| n))));
        // Values that grow in the table.
        let texts = rows.into_iter().zip(0u64..).map(|((_, text), number)| (mix(number / 8), text));
        let texts = collection(texts.collect()).round_robin().aggregate_by_key(|of| of.fold(
            Vec::<String>::new(),
            |texts, text| texts.push(text.to_owned()),
            |texts, more| texts.extend(more.iter().map(str::to_owned)),
        ));
        same(cluster, texts.map(|(key, texts)| (key, sorted(texts.iter().map(str::to_owned).collect()))));
    }
}

/// A key, with a time and a number.
type Event = (u64, (i64, u64));

/// Some events, and how much earlier one may be than one before it.
fn events() -> impl Strategy<Value = (Vec<Event>, i64)> {
    let shuffle = prop_oneof![Just(0i64), Just(40), Just(100_000)];
    (keys(0..10_000), 1i64..4, shuffle).prop_map(|(keys, pace, jitter)| {
        let event = |(number, key): (u64, u64)| {
            let late = (mix(number) % (jitter as u64 + 1)) as i64;
            (key, (number as i64 * pace / 3 - late, number))
        };
        ((0..).zip(keys).map(event).collect(), jitter)
    })
}

/// The size of windows, and their step.
fn windows() -> impl Strategy<Value = (i64, i64)> {
    prop_oneof![
        (1i64..5_000).prop_map(|size| (size, size)),
        (20i64..1_000, 1i64..12).prop_map(|(step, halves)| (step * halves / 2 + 1, step)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(24, 10_000)))]

    #[test]
    fn windows_in_little_memory_give_what_they_give_in_much(
        (events, out_of_order) in events(),
        (size, step) in windows(),
        has_time in any::<bool>(),
        cluster in any_tight(),
    ) {
        let mut expected = BTreeMap::<(u64, Window), (u64, u128, Option<u64>)>::new();
        for &(key, (time, number)) in &events {
            let mut start = time.div_euclid(step) * step;
            while start + size > time {
                let (count, sum, most) = expected.entry((key, (start, start + size))).or_default();
                *count += 1;
                *sum += u128::from(number);
                *most = (*most).max(Some(number));
                start -= step;
            }
        }
        let expected: Vec<_> = expected.into_iter().map(|((key, window), of)| (key, (window, of))).collect();
        let windows = Windows::sliding(size, step);
        if has_time {
            let events = collection(events).watermarks(out_of_order, |(_, (time, _))| time);
            let events = events.window_by_key(windows, |(time, _)| time);
            let of = events.aggregate(|of| (of.count(), of.sum(|(_, n)| u128::from(n)), of.max(|(_, n)| n)));
            agrees(cluster, of, &expected);
        } else {
            let events = collection(events).window_by_key(windows, |(time, _)| time);
            let of = events.one_by_one().aggregate(|of| (of.count(), of.sum(|(_, n)| u128::from(n)), of.max(|(_, n)| n)));
            agrees(cluster, of, &expected);
        }
    }

    #[test]
    fn groups_of_windows_in_little_memory_are_those_in_much(
        (events, out_of_order) in events(),
        (size, step) in windows(),
        wide in prop_oneof![Just(1usize), Just(100)],
        cluster in any_tight(),
    ) {
        let texts = collection(events)
            .watermarks(out_of_order, |(_, (time, _))| time)
            .map(move |(key, (time, number))| {
                (format!("{key:>20}"), (time, "x".repeat(number as usize % wide)))
            });
        let groups = texts.window_by_key(Windows::sliding(size, step), |(time, _)| time).group();
        same(cluster, groups.map(|(key, (window, values))| {
            let values: Vec<_> = values.iter().map(|(time, text)| (time, text.len() as u64)).collect();
            (key.to_owned(), (window, sorted(values)))
        }));
    }
}

#[test]
fn slices_of_a_few_keys_each_go_to_disk_together() {
    // All are kept until the end, in slices that have five keys or so.
    let events = || {
        let event = |n: u64| (mix(n), (-((mix(n) % 100_000) as i64), n));
        generate(7_700, event).watermarks(100_000, |(_, (time, _))| time)
    };
    let texts = events()
        .map(|(key, (time, n))| (format!("{key:>20}"), (time, "x".repeat(n as usize % 100))));
    let groups = texts.window_by_key(Windows::sliding(536, 119), |(time, _)| time);
    let groups = groups.group().map(|(key, (window, values))| {
        let lengths: Vec<u64> = values.iter().map(|(_, text)| text.len() as u64).collect();
        (key.to_owned(), (window, sorted(lengths)))
    });
    assert!(same(tight(1, 1, 1, 840 << 10), groups) > 0);
}

#[test]
fn what_is_late_changes_windows_that_are_on_disk() {
    // Of each key several values, of which most come when their windows were given.
    let events: Vec<Event> = (0..40_000u64)
        .map(|n| {
            (
                mix(n % 9_000),
                ((n / 4) as i64 - (mix(n) % 8_000) as i64, n),
            )
        })
        .collect();
    for (seed, (size, step)) in [(5_000, 5_000), (9_000, 4_000), (700, 1_000)]
        .into_iter()
        .enumerate()
    {
        let mut expected = BTreeMap::<(u64, Window), u64>::new();
        for &(key, (time, _)) in &events {
            let mut start = time.div_euclid(step) * step;
            while start + size > time {
                *expected.entry((key, (start, start + size))).or_default() += 1;
                start -= step;
            }
        }
        // Nothing is too late, but results are given before all has come.
        let counts = collection(events.clone())
            .parallelism(1)
            .watermarks(0, |(_, (time, _))| time)
            .window_by_key(
                Windows::sliding(size, step).lateness(10_000),
                |(time, _)| time,
            )
            .aggregate(|of| of.count());
        let cluster = tight(seed as u64, 2, 2, 700 << 10);
        let (results, spilled) = given(cluster, counts);
        assert!(spilled > 0, "{cluster:?}");
        assert!(
            results.len() > expected.len(),
            "{cluster:?}: nothing was given again"
        );
        let mut last = BTreeMap::new();
        for (key, (window, count)) in results {
            let last = last.entry((key, window)).or_insert(0);
            *last = count.max(*last);
        }
        let differ = expected
            .iter()
            .find(|&(of, count)| last.get(of) != Some(count));
        assert_eq!(differ, None, "{cluster:?}");
        assert_eq!(last.len(), expected.len(), "{cluster:?}");
    }
}

#[test]
fn windows_far_from_closing_go_to_disk() {
    // Event time comes to no end before all has come, so all windows of all keys are open.
    let pairs = || collection((0..60_000u64).collect()).map(|n| (mix(n % 20_000), n));
    let cluster = tight(1, 2, 2, 700 << 10);
    for windows in [Windows::tumbling(5_000), Windows::sliding(9_000, 4_000)] {
        let counts = pairs()
            .window_by_key(windows, |n| n as i64)
            .aggregate(|of| (of.count(), of.sum(|n| n)));
        assert!(same(cluster, counts) > 0);
        let texts = pairs()
            .map(|(key, n)| (format!("{key:>40}"), n))
            .window_by_key(windows, |n| n as i64)
            .one_by_one()
            .fold(
                String::new(),
                |text, n| *text = text.as_str().max(&format!("{n:>30}")).to_owned(),
                |text, other| *text = text.as_str().max(other).to_owned(),
            );
        assert!(same(cluster, texts) > 0);
    }
}

/// The finaliser by which keys are hashed: with it, keys of one hash can be had.
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The key of this number among those that have a hash.
fn key_of_hash(hash: u64, number: u64) -> u128 {
    u128::from(number) << 64 | u128::from(hash ^ mix(number))
}

#[test]
fn keys_of_one_hash_are_kept_apart() {
    let key = |number: u64| key_of_hash(number % 12, number % 84 / 12);
    assert_eq!(u128::hash(key(3)), u128::hash(key(15)));
    let text = |number: u64| format!("{number:>200}");
    let rows = |len: u64, step: u64| -> Vec<(u128, String)> {
        (0..len).map(|n| (key(n * step), text(n))).collect()
    };
    // One side has some of the keys of the other, and some of its own.
    let left: Vec<_> = rows(1_500, 1)
        .into_iter()
        .filter(|(key, _)| key >> 64 != 2)
        .collect();
    let right: Vec<_> = rows(2_000, 3)
        .into_iter()
        .filter(|(key, _)| key >> 64 < 5)
        .collect();
    let cluster = tight(1, 2, 1, 600 << 10);
    assert!(joins(cluster, &left, &right) > 0);

    let cluster = tight(2, 2, 1, 900 << 10);

    let mut expected = BTreeMap::<u128, Vec<String>>::new();
    for (key, text) in rows(8_000, 1) {
        expected.entry(key).or_default().push(text);
    }
    let expected = grouped(expected.into_iter().collect());
    let (groups, spilled) = given(cluster, collection(rows(8_000, 1)).group_by_key());
    assert!(spilled > 0 && grouped(groups) == expected);
}

#[test]
fn rows_that_all_have_one_key_are_joined_however_little_fits_at_a_time() {
    // 1.5 MB on the right, of which some hundred KiB fit.
    let pairs = |len: u64| collection((0..len).collect()).map(|n| (7u64, format!("{n:>100}")));
    for (left, right) in [(40, 12_000), (12_000, 40), (0, 12_000), (12_000, 0)] {
        let cluster = tight(left, 2, 2, 800 << 10);
        let (few, many) = (pairs(left), pairs(right));
        macro_rules! counts {
            ($($join:ident $rows:expr;)*) => {$(
                let job = few.clone().$join(many.clone()).count().collect();
                let (count, spilled) = cluster.run_on(&job, &spill::Config::default()).unwrap();
                assert_eq!(count, [$rows], "{left} {right} {}", stringify!($join));
                assert!(right < 1_000 || spilled > 0);
                let job = few.clone().$join(many.clone()).by_merging().count().collect();
                assert_eq!(cluster.run(&job).unwrap(), [$rows], "{left} {right} {}", stringify!($join));
            )*};
        }
        let alone = |side: u64, other: u64| if other == 0 { side } else { 0 };
        counts! {
            join left * right;
            left_join left * right + alone(left, right);
            right_join left * right + alone(right, left);
            full_join left * right + alone(left, right) + alone(right, left);
            semi_join left - alone(left, right);
            anti_join alone(left, right);
        }
    }
    // What has to be one record has to fit.
    let error = tight(1, 1, 1, 800 << 10)
        .run(&pairs(12_000).group_by_key().map(|_| 1u64).count().collect())
        .unwrap_err();
    assert_eq!(holder(&error), "group_by_key", "{error}");
    let line = one_line(&error);
    let named = "instance 0 of task \"after group_by_key > map > count\" needs more memory than its worker may use (--memory";
    assert!(line.starts_with(named), "{line}");
    assert!(line.contains("): group_by_key needs "), "{line}");
}

#[test]
fn values_that_outgrow_what_can_travel_are_an_error() {
    let job = collection((0..60_000u64).collect())
        .map(|n| (n % 2, format!("{n:>100}")))
        .aggregate_by_key(|of| {
            of.fold(
                Vec::<String>::new(),
                |texts, text| texts.push(text.to_owned()),
                |texts, more| texts.extend(more.iter().map(str::to_owned)),
            )
        })
        .count();
    let error = tight(1, 2, 2, 1 << 20).run(&job.collect()).unwrap_err();
    assert!(matches!(error, Error::RecordTooLarge { .. }), "{error}");
}

#[test]
fn with_room_for_all_nothing_goes_to_disk() {
    let pairs = || collection((0..12_000u64).collect()).map(|n| (n, n));
    let cluster = tight(1, 2, 1, 64 << 20);
    let spilled = |job: Job<Vec<u64>>| cluster.run_on(&job, &spill::Config::default()).unwrap().1;
    assert_eq!(spilled(pairs().join(pairs()).count().collect()), 0);
    assert_eq!(
        spilled(pairs().full_join(pairs()).by_merging().count().collect()),
        0
    );
    assert_eq!(
        spilled(pairs().cogroup(pairs()).map(|_| 1u64).count().collect()),
        0
    );
    assert_eq!(
        spilled(pairs().group_by_key().map(|_| 1u64).count().collect()),
        0
    );
    assert_eq!(spilled(pairs().distinct().count().collect()), 0);
    let windows = pairs().window_by_key(Windows::sliding(200, 100), |n| n as i64);
    assert_eq!(
        spilled(windows.aggregate(|of| of.count()).count().collect()),
        0
    );
}

#[test]
fn a_ledger_too_small_to_begin_is_named() {
    let pairs = || collection(vec![(1u64, 2u64)]);
    let fails = |job: Job<Vec<u64>>, name: &str| {
        let error = tight(1, 1, 1, 48 << 10).run(&job).unwrap_err();
        assert_eq!(holder(&error), name, "{error}");
    };
    fails(pairs().join(pairs()).count().collect(), "join");
    fails(
        pairs().anti_join(pairs()).by_merging().count().collect(),
        "anti_join",
    );
    fails(
        pairs().cogroup(pairs()).map(|_| 1u64).count().collect(),
        "cogroup",
    );
}

#[test]
fn a_join_within_a_diamond_sets_its_sides_aside() {
    // The right side comes from the stream that the left side comes from, which must not be left unread.
    for seed in 0..6 {
        let cluster = tight(seed, 1 + seed as u32 % 3, 1, 900 << 10);
        let stream = collection((0..60_000u64).collect())
            .map(|n| (n, n * n))
            .exchange_by_key();
        let other = stream
            .clone()
            .filter(|(n, _)| n % 3 == 0)
            .map(|(n, _)| (n / 3, n));
        let job = stream
            .left_join(other)
            .filter(|(n, (square, _))| n * n == square)
            .aggregate(|of| {
                (
                    of.count(),
                    of.sum(|(_, (_, other))| u64::from(other.is_some())),
                )
            })
            .collect();
        let (found, spilled) = cluster.run_on(&job, &spill::Config::default()).unwrap();
        assert_eq!(found, [(60_000, 20_000)], "seed {seed}");
        assert!(spilled > 0, "seed {seed}");
    }
}

#[test]
fn a_cross_join_pairs_blocks_with_what_is_on_disk() {
    let numbers = |len: u64| collection((0..len).collect());
    let texts = |len: u64| numbers(len).map(|n| format!("{n:>90}"));
    for (left, right) in [
        (3, 20_000),
        (2_000, 300),
        (20_000, 3),
        (0, 20_000),
        (20_000, 0),
    ] {
        let cluster = tight(left, 2, 1, 900 << 10);
        let job = texts(left).cross_join(texts(right)).aggregate(|of| {
            let number = |text: &str| text.trim().parse::<u64>().unwrap_or(u64::MAX);
            (
                of.count(),
                of.sum(move |(l, r)| u128::from(number(l)) << 64 | u128::from(number(r))),
            )
        });
        let (found, spilled) = cluster
            .run_on(&job.collect(), &spill::Config::default())
            .unwrap();
        let sum = |len: u64| u128::from(len) * u128::from(len.saturating_sub(1)) / 2;
        let sums = ((sum(left) * u128::from(right)) << 64) | (sum(right) * u128::from(left));
        assert_eq!(found, [(left * right, sums)], "{left} {right}");
        let is_read = left > 0 && right == 20_000;
        assert!(spilled > 0 || !is_read, "{left} {right}: {spilled}");
    }
    // The left side, which comes first, must not be left unread.
    let stream = texts(20_000).exchange_by_hash();
    let few = stream.clone().filter(|text| text.ends_with("0000"));
    let job = stream.cross_join(few).count().collect();
    let (found, spilled) = tight(5, 2, 1, 900 << 10)
        .run_on(&job, &spill::Config::default())
        .unwrap();
    assert_eq!(found, [20_000], "with the one number that ends so");
    assert!(spilled > 0);
}

#[test]
fn a_full_disk_is_named_with_the_operator_that_writes_there() {
    let Some(disk) = SmallDisk::new(1 << 20) else {
        return;
    };
    let config = spill::Config {
        directories: vec![disk.path().to_owned()],
        compression: spill::Compression::Never,
    };
    let cluster = tight(3, 2, 1, 700 << 10);
    let pairs = || collection((0..200_000u64).collect()).map(|n| (n, n));
    let fails = |job: Job<Vec<u64>>, name: &str| {
        let error = cluster.run_on(&job, &config).unwrap_err();
        assert_eq!(
            one_line(&error),
            format!(
                "{name} cannot write a block in {}: No space left on device (os error 28)",
                disk.path().display()
            )
        );
        assert_eq!(disk.used(), "0", "what was written is gone");
    };
    fails(
        pairs().reduce_by_key(|a, b| a + b).count().collect(),
        "reduce_by_key",
    );
    fails(
        pairs().map(|(n, _)| n).distinct().count().collect(),
        "distinct",
    );
    fails(
        pairs()
            .window_by_key(Windows::tumbling(50_000), |n| n as i64)
            .aggregate(|of| of.count())
            .count()
            .collect(),
        "aggregate by window and key",
    );
    fails(
        pairs().group_by_key().map(|_| 1u64).count().collect(),
        "group_by_key",
    );
    fails(
        pairs().cogroup(pairs()).map(|_| 1u64).count().collect(),
        "cogroup",
    );
    fails(pairs().join(pairs()).count().collect(), "join");
    fails(
        pairs().left_join(pairs()).by_merging().count().collect(),
        "left_join",
    );
}

/// What tells the child process of the next test what to do.
const QUESTION: &str = "UPDRAFT_TEST_SPILLING";
const MEMORY_BYTES: u64 = 16 << 20;
/// Rows of 256 bytes that are 8 times that.
const WIDE_ROWS: u64 = 8 * MEMORY_BYTES / 256;

/// Runs a job of 8 times its memory, and prints the most memory that the process had.
fn child(question: &str) {
    let config = Config {
        executors: Some(2),
        memory_bytes: Some(MEMORY_BYTES),
        progress: false,
        pin: false,
        ..Config::default()
    };
    let wide = |n: u64| (mix(n % (WIDE_ROWS / 4 * 3)), format!("{n:>232}"));
    let narrow = |n: u64| (mix(n * 2), n);
    let count = updraft::run(config, |env| {
        let rows = || generate(WIDE_ROWS, wide);
        let job = match question {
            "join" => rows().join(rows()).count().collect(),
            "merge" => rows()
                .full_join(generate(WIDE_ROWS / 2, narrow))
                .by_merging()
                .count()
                .collect(),
            "reduce" => rows()
                .map(|(key, text)| (key, text.to_owned()))
                .reduce_by_key(|a, _| a)
                .count()
                .collect(),
            "windows" => rows()
                .map(|(key, text)| (key, text.trim().parse::<i64>().unwrap_or(0)))
                .window_by_key(Windows::tumbling(WIDE_ROWS as i64 / 3), |n| n)
                .fold(
                    String::new(),
                    |text, n| *text = format!("{n:>232}"),
                    |text, other| *text = other.to_owned(),
                )
                .count()
                .collect(),
            _ => rows()
                .group_by_key()
                .map(|(_, texts)| texts.len() as u64)
                .count()
                .collect(),
        };
        env.run(&job)
    });
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    println!(
        "answer: {:?} {}",
        count.unwrap(),
        peak.split_whitespace().nth(1).unwrap()
    );
}

#[test]
fn eight_times_the_ledger_takes_no_more_than_the_ledger_and_64_mib() {
    if let Ok(question) = std::env::var(QUESTION) {
        return child(&question);
    }
    let keys = WIDE_ROWS / 4 * 3;
    let twice = WIDE_ROWS - keys;
    let evens = (0..WIDE_ROWS / 2).filter(|n| 2 * n < keys).count() as u64;
    let expected = [
        ("join", 4 * twice + (keys - twice)),
        // Rows with a partner, those of the left side without, and those of the right.
        ("merge", WIDE_ROWS + WIDE_ROWS / 2 - evens),
        ("reduce", keys),
        // Keys come twice, but never within a third of all rows.
        ("windows", WIDE_ROWS),
        ("group", keys),
    ];
    for (question, rows) in expected {
        let this: PathBuf = std::env::current_exe().unwrap();
        let output = Command::new(this)
            .args(["--exact", "--nocapture"])
            .arg("spilling::eight_times_the_ledger_takes_no_more_than_the_ledger_and_64_mib")
            .env(QUESTION, question)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let answer = text.lines().find_map(|line| line.split("answer: ").nth(1));
        let answer = answer.unwrap_or_else(|| panic!("{question}: {output:?}"));
        let (found, peak) = answer.rsplit_once(' ').unwrap();
        assert_eq!(found, format!("[{rows}]"), "{question}");
        let peak: u64 = peak.parse().unwrap();
        assert!(
            peak << 10 <= MEMORY_BYTES + (64 << 20),
            "{question}: {peak} KiB"
        );
    }
}
