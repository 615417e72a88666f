//! Joins and groups give what nested loops give.

use std::{collections::BTreeMap, fmt::Debug};

use dataflow::{
    Channel, Key, Pass, Record, TSet, Windows, channel, collection, generate, generate_unbounded,
    inline,
};
use proptest::prelude::*;

use crate::{
    cluster::{Cluster, cluster, holder, instances, sorted},
    support::long::often,
};

/// A key that may be missing.
trait Nullable {
    fn is_null(&self) -> bool;
}

impl<T> Nullable for Option<T> {
    fn is_null(&self) -> bool {
        self.is_none()
    }
}

impl Nullable for (Option<u8>, u8) {
    fn is_null(&self) -> bool {
        self.0.is_none()
    }
}

impl Nullable for u64 {
    fn is_null(&self) -> bool {
        false
    }
}

/// What every pair of rows gives that have the same key, and which rows have no partner.
struct Nested<K, L, R> {
    pairs: Vec<(K, L, R)>,
    left_alone: Vec<(K, L)>,
    right_alone: Vec<(K, R)>,
}

fn nested<K, L, R>(left: &[(K, L)], right: &[(K, R)]) -> Nested<K, L, R>
where
    K: Nullable + PartialEq + Clone,
    L: Clone,
    R: Clone,
{
    let joins = |one: &K, other: &K| !one.is_null() && one == other;
    let mut pairs = Vec::new();
    for (key, l) in left {
        for (_, r) in right.iter().filter(|(other, _)| joins(key, other)) {
            pairs.push((key.clone(), l.clone(), r.clone()));
        }
    }
    let left_alone = left
        .iter()
        .filter(|(key, _)| !right.iter().any(|(other, _)| joins(key, other)));
    let right_alone = right
        .iter()
        .filter(|(key, _)| !left.iter().any(|(other, _)| joins(key, other)));
    Nested {
        pairs,
        left_alone: left_alone.cloned().collect(),
        right_alone: right_alone.cloned().collect(),
    }
}

/// The values of two lists by key.
type Groups<K, L, R> = Vec<(K, (Vec<L>, Vec<R>))>;

/// Every join of two lists gives what nested loops give.
fn joins<K, L, R>(left: &[(K, L)], right: &[(K, R)], cluster: Cluster, (m, n): (u32, u32))
where
    K: Key + Nullable + Ord + Clone + Debug + Sync,
    L: Record + Ord + Clone + Debug + Sync,
    R: Record + Ord + Clone + Debug + Sync,
{
    let l = || collection(left.to_vec()).parallelism(m);
    let r = || collection(right.to_vec());
    let Nested {
        pairs,
        left_alone,
        right_alone,
    } = nested(left, right);

    let inner = pairs.iter().cloned().map(|(k, l, r)| (k, (l, r)));
    cluster.gives(&l().join(r()).parallelism(n).collect(), inner.collect());

    let both = pairs.iter().cloned().map(|(k, l, r)| (k, (l, Some(r))));
    let alone = left_alone.iter().cloned().map(|(k, l)| (k, (l, None)));
    cluster.gives(
        &l().left_join(r()).parallelism(n).collect(),
        both.chain(alone).collect(),
    );

    let both = pairs.iter().cloned().map(|(k, l, r)| (k, (Some(l), r)));
    let alone = right_alone.iter().cloned().map(|(k, r)| (k, (None, r)));
    cluster.gives(
        &l().right_join(r()).parallelism(n).collect(),
        both.chain(alone).collect(),
    );

    let both = pairs.into_iter().map(|(k, l, r)| (k, (Some(l), Some(r))));
    let lefts = left_alone
        .iter()
        .cloned()
        .map(|(k, l)| (k, (Some(l), None)));
    let rights = right_alone.into_iter().map(|(k, r)| (k, (None, Some(r))));
    cluster.gives(
        &l().full_join(r()).parallelism(n).collect(),
        both.chain(lefts).chain(rights).collect(),
    );

    let mut with_partner = left.to_vec();
    for row in &left_alone {
        let at = with_partner.iter().position(|other| other == row).unwrap();
        with_partner.remove(at);
    }
    cluster.gives(&l().semi_join(r()).parallelism(n).collect(), with_partner);
    cluster.gives(&l().anti_join(r()).parallelism(n).collect(), left_alone);

    let mut groups = BTreeMap::<K, (Vec<L>, Vec<R>)>::new();
    for (key, l) in left {
        groups.entry(key.clone()).or_default().0.push(l.clone());
    }
    for (key, r) in right {
        groups.entry(key.clone()).or_default().1.push(r.clone());
    }
    let in_order = |groups: Groups<K, L, R>| {
        let groups = groups.into_iter();
        sorted(
            groups
                .map(|(key, (l, r))| (key, (sorted(l), sorted(r))))
                .collect(),
        )
    };
    let job = l().cogroup(r()).parallelism(n).collect();
    let groups = in_order(groups.into_iter().collect());
    assert_eq!(in_order(dataflow::inline(&job).unwrap()), groups);
    assert_eq!(in_order(cluster.run(&job).unwrap()), groups, "{cluster:?}");
}

/// Rows with keys of a few, so that keys are there several times on both sides.
fn rows<K: Debug>(
    key: impl Strategy<Value = K>,
    max: usize,
) -> impl Strategy<Value = Vec<(K, String)>> {
    prop::collection::vec((key, "[a-c]{0,2}|[a-z]{0,40}"), 0..max)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(40, 10_000)))]

    #[test]
    fn joins_by_numbers_that_may_be_missing(
        left in rows(prop::option::of(0u8..7), 40),
        right in rows(prop::option::of(0u8..7), 40),
        cluster in cluster(),
        spread in (instances(), instances()),
    ) {
        joins(&left, &right, cluster, spread);
    }

    #[test]
    fn joins_by_texts_that_may_be_missing(
        left in rows(prop::option::of("[ab]{0,2}|[a-c]{20,30}"), 30),
        right in rows(prop::option::of("[ab]{0,2}|[a-c]{20,30}"), 30),
        cluster in cluster(),
        spread in (instances(), instances()),
    ) {
        joins(&left, &right, cluster, spread);
    }

    #[test]
    fn joins_by_pairs_of_which_one_may_be_missing(
        left in rows((prop::option::of(0u8..3), 0u8..3), 30),
        right in rows((prop::option::of(0u8..3), 0u8..3), 30),
        cluster in cluster(),
        spread in (instances(), instances()),
    ) {
        joins(&left, &right, cluster, spread);
    }

    #[test]
    fn joins_whose_rows_have_all_the_same_key(
        left in 0u64..60,
        right in 0u64..60,
        cluster in cluster(),
        spread in (instances(), instances()),
    ) {
        let of = |rows: u64| -> Vec<(u64, u64)> { (0..rows).map(|row| (7, row)).collect() };
        joins(&of(left), &of(right), cluster, spread);
    }

    #[test]
    fn joins_with_nothing_on_a_side(
        some in rows(prop::option::of(0u8..7), 30),
        cluster in cluster(),
        spread in (instances(), instances()),
    ) {
        joins(&some, &Vec::<(Option<u8>, u64)>::new(), cluster, spread);
        joins(&Vec::<(Option<u8>, u64)>::new(), &some, cluster, spread);
    }

    #[test]
    fn a_cross_join_gives_every_pair(
        left in prop::collection::vec("[a-z]{0,20}", 0..40),
        right in prop::collection::vec(any::<u64>(), 0..40),
        cluster in cluster(),
        (m, n) in (instances(), instances()),
    ) {
        let pairs = left.iter().flat_map(|l| right.iter().map(|r| (l.clone(), *r)));
        let job = collection(left.clone()).parallelism(m).cross_join(collection(right.clone()));
        cluster.gives(&job.parallelism(n).collect(), pairs.collect());
    }

    #[test]
    fn groups_have_all_values_of_their_key(
        pairs in rows(prop::option::of(0u8..7), 80),
        cluster in cluster(),
        n in instances(),
    ) {
        let mut groups = BTreeMap::<Option<u8>, Vec<String>>::new();
        for (key, value) in &pairs {
            groups.entry(*key).or_default().push(value.clone());
        }
        let groups: Vec<_> = groups.into_iter().map(|(key, values)| (key, sorted(values))).collect();
        let job = collection(pairs.clone()).group_by_key_sorted(str::to_owned).parallelism(n);
        cluster.gives(&job.collect(), groups.clone());
        let job = collection(pairs).group_by_key().parallelism(n).map(|(key, values)| {
            (key, sorted(values.iter().map(str::to_owned).collect()))
        });
        cluster.gives(&job.collect(), groups);
    }

    #[test]
    fn a_stream_joined_with_itself_is_read_once_and_never_waits_for_itself(
        seed in any::<u64>(),
        rows in 1u64..60_000,
        size in 1u32..5,
    ) {
        // Far more on each branch than its windows hold.
        let cluster = Cluster { seed, size, executors: 1, arena_bytes: 1 << 20, memory_bytes: 1 << 40 };
        let stream = collection((0..rows).collect()).map(|n| (n, n * n)).exchange_by_key();
        let other = stream.clone().filter(|(n, _)| n % 3 == 0).map(|(n, _)| (n / 3, n));
        let job = stream.left_join(other).filter(|(n, (square, _))| n * n == square).aggregate(|of| {
            (of.count(), of.sum(|(_, (_, other))| u64::from(other.is_some())), of.max(|(_, (_, other))| other))
        });
        let thirds = rows.div_ceil(3);
        let most = Some(3 * (thirds - 1));
        prop_assert_eq!(cluster.run(&job.collect()).unwrap(), vec![(rows, thirds, Some(most))]);
    }
}

#[test]
fn joins_of_two_streams_in_opposite_orders_do_not_wait_for_each_other() {
    for seed in 0..often(12, 10_000) {
        let cluster = Cluster {
            seed,
            size: 1 + seed as u32 % 4,
            executors: 1,
            arena_bytes: 1 << 20,
            memory_bytes: 1 << 40,
        };
        let of = |factor: u64| {
            collection((0..50_000u64).collect())
                .map(move |n| (n * factor, n))
                .exchange_by_key()
        };
        let (a, b) = (of(2), of(3));
        let first = a.clone().join(b.clone()).map(|(key, (x, y))| (key, x + y));
        let second = b.join(a).map(|(key, (y, x))| (key, x + y));
        let job = first
            .join(second)
            .filter(|(_, (one, other))| one == other)
            .count();
        let common = (0..100_000u64).step_by(2).filter(|n| n % 3 == 0).count() as u64;
        assert_eq!(
            cluster.run(&job.collect()).unwrap(),
            [common],
            "seed {seed}"
        );
    }
}

#[test]
fn one_row_with_very_many_partners_does_not_fill_the_memory() {
    let cluster = Cluster {
        seed: 5,
        size: 3,
        executors: 1,
        arena_bytes: 1 << 20,
        memory_bytes: 16 << 20,
    };
    let many = collection((0..100_000u64).collect()).map(|n| (7u64, n));
    let few = collection(vec![(7u64, 1u64), (7, 2), (8, 3)]);
    let pairs = few
        .clone()
        .join(many.clone())
        .map(|(_, (few, many))| few * many)
        .exchange_by_hash();
    let sum: u64 = (0..100_000u64).map(|n| 3 * n).sum();
    let job = pairs.aggregate(|of| (of.count(), of.sum(|n| n)));
    assert_eq!(cluster.run(&job.collect()).unwrap(), [(200_000, sum)]);
    let job = many
        .map(|(_, n)| n)
        .cross_join(few.map(|(_, n)| n))
        .exchange_by_hash()
        .count();
    assert_eq!(cluster.run(&job.collect()).unwrap(), [300_000]);
}

/// Rows that come one by one. Nobody knows that there will be no more before that is so.
fn stream<T: Record + Clone + Debug>(rows: &[T]) -> TSet<Channel<T>, Pass> {
    let (sender, stream) = channel(rows.len());
    for row in rows {
        sender.send(row.clone()).unwrap();
    }
    stream
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(40, 10_000)))]

    #[test]
    fn a_stream_is_joined_with_a_table_as_another_table_is(
        left in rows(prop::option::of(0u8..7), 60),
        right in rows(prop::option::of(0u8..7), 40),
        cluster in cluster(),
        (m, n) in (instances(), instances()),
    ) {
        let Nested { pairs, left_alone, .. } = nested(&left, &right);
        let table = || collection(right.clone()).parallelism(m);
        let lefts = || stream(&left).exchange_by_hash().parallelism(m);

        let inner = pairs.iter().cloned().map(|(k, l, r)| (k, (l, r))).collect();
        let found = cluster.run(&lefts().join(table()).parallelism(n).collect()).unwrap();
        prop_assert_eq!(sorted(found), sorted(inner));

        let both = pairs.iter().cloned().map(|(k, l, r)| (k, (l, Some(r))));
        let alone = left_alone.iter().cloned().map(|(k, l)| (k, (l, None)));
        let found = cluster.run(&stream(&left).left_join(table()).parallelism(n).collect()).unwrap();
        prop_assert_eq!(sorted(found), sorted(both.chain(alone).collect()));

        let found = cluster.run(&lefts().anti_join(table()).collect()).unwrap();
        prop_assert_eq!(sorted(found), sorted(left_alone.clone()));
        let mut with_partner = sorted(left.clone());
        for row in &left_alone {
            with_partner.remove(with_partner.binary_search(row).unwrap());
        }
        let found = cluster.run(&lefts().semi_join(table()).collect()).unwrap();
        prop_assert_eq!(sorted(found), with_partner);

        let every = left.iter().flat_map(|l| right.iter().map(move |r| (l.clone(), r.clone())));
        let found = cluster.run(&stream(&left).cross_join(table()).parallelism(n).collect()).unwrap();
        prop_assert_eq!(sorted(found), sorted(every.collect()));
    }
}

#[test]
fn a_stream_that_goes_on_gives_what_it_is_joined_with_and_time_passes() {
    let names = || generate(10, |n| (n, format!("sensor {n}")));
    let readings = || generate_unbounded(|n| (n % 12, n as i64)).watermarks(0, |(_, time)| time);
    let joined = readings().left_join(names()).take(500).collect();
    let found = inline(&joined).unwrap();
    assert_eq!(found.len(), 500);
    for (sensor, (_, name)) in found {
        assert_eq!(name, (sensor < 10).then(|| format!("sensor {sensor}")));
    }
    // Windows behind the join end when event time says so, which came with the stream.
    let counts = readings()
        .join(names())
        .map(|(sensor, (time, name))| (name.to_owned(), (time, sensor)))
        .window_by_key(Windows::tumbling(120), |(time, _)| time)
        .aggregate(|of| of.count())
        .take(40)
        .collect();
    for seed in 0..often(5, 10_000) {
        let counts = dataflow::simulate(&counts, seed, 3, 2).unwrap();
        assert!(
            counts.iter().all(|(_, (_, count))| *count == 10),
            "{counts:?}"
        );
    }
    // What the table is made of may come from the same stream, which has to be kept until then.
    let events = generate_unbounded(|n| (n % 5, n)).exchange_by_hash();
    let first = events.clone().take(20).distinct();
    let found = inline(&events.semi_join(first).take(10).collect()).unwrap();
    assert_eq!(found.len(), 10);
}

#[test]
fn a_table_that_memory_has_no_room_for_ends_the_stream_by_name() {
    let cluster = Cluster {
        seed: 5,
        size: 2,
        executors: 2,
        arena_bytes: 1 << 20,
        memory_bytes: 4 << 20,
    };
    let wide = || generate(100_000, |n| (n, format!("{n:>100}")));
    let stream = || generate_unbounded(|n| (n % 1000, n));
    let refused = [
        ("join", cluster.run(&stream().join(wide()).for_each(|_| ()))),
        (
            "anti_join",
            cluster.run(&stream().anti_join(wide()).for_each(|_| ())),
        ),
        (
            "cross_join",
            cluster.run(&stream().cross_join(wide()).for_each(|_| ())),
        ),
    ];
    for (name, result) in refused {
        let error = result.unwrap_err();
        assert_eq!(holder(&error), name, "{error}");
    }
}
