//! Where records go, and that none is lost or doubled on its way.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use dataflow::{
    Error, Job, Level, Narrow, Pass, Received, Source, TSet, Variable, Windows, collection, inline,
    simulate, spill,
};

use proptest::prelude::*;

use crate::{
    cluster::{Cluster, cluster, instances, sorted},
    support::long::often,
};

fn texts() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-c]{0,3}|[a-z]{0,40}", 0..200)
}

/// Tags each record with the number of the instance that has it: a function is cloned for each.
macro_rules! by_instance {
    ($stream:expr) => {{
        let instances = Numbers::default();
        $stream.map(move |text| (instances.mine(), text.to_owned()))
    }};
}

/// Gives each clone a number of its own, when it is first asked.
#[derive(Default)]
struct Numbers {
    next: Arc<AtomicU64>,
    mine: std::sync::OnceLock<u64>,
}

impl Clone for Numbers {
    fn clone(&self) -> Self {
        Self {
            next: self.next.clone(),
            mine: std::sync::OnceLock::new(),
        }
    }
}

impl Numbers {
    fn mine(&self) -> u64 {
        *self
            .mine
            .get_or_init(|| self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// What each instance got, by its number.
fn shares(pairs: Vec<(u64, String)>) -> BTreeMap<u64, Vec<String>> {
    let mut shares = BTreeMap::<u64, Vec<String>>::new();
    for (instance, text) in pairs {
        shares.entry(instance).or_default().push(text);
    }
    shares
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(48, 10_000)))]

    #[test]
    fn whatever_way_records_take_they_all_arrive_once(
        texts in texts(),
        cluster in cluster(),
        from in instances(),
        to in instances(),
    ) {
        let source = || collection(texts.clone()).parallelism(from);
        let arrive = |stream: TSet<Received<String>, Pass>| {
            cluster.gives(&stream.parallelism(to).collect(), texts.clone());
        };
        arrive(source().exchange_by_hash());
        arrive(source().partition(|text| text.len() as u64 * 7));
        arrive(source().round_robin());
        arrive(source().rebalance());
        arrive(source().direct());
        arrive(source().gather());
    }

    #[test]
    fn a_broadcast_gives_every_instance_everything(
        texts in texts(),
        cluster in cluster(),
        from in instances(),
        to in instances(),
    ) {
        let job = collection(texts.clone()).parallelism(from).broadcast().parallelism(to).collect();
        let all = (0..to).flat_map(|_| texts.clone()).collect();
        cluster.gives(&job, all);
    }

    #[test]
    fn equal_records_meet_and_so_do_those_of_one_partition(
        texts in texts(),
        cluster in cluster(),
        to in instances(),
    ) {
        let job = by_instance!(collection(texts.clone()).exchange_by_hash().parallelism(to)).collect();
        let found = cluster.run(&job).unwrap();
        let places: BTreeSet<_> = found.into_iter().collect();
        let distinct: BTreeSet<_> = texts.iter().collect();
        prop_assert_eq!(places.len(), distinct.len(), "each is at one place");

        let partition = |text: &str| text.len() as u64;
        let job = collection(texts).partition(move |text| partition(text)).parallelism(to);
        let shares = shares(cluster.run(&by_instance!(job).collect()).unwrap());
        let mut seen = BTreeSet::new();
        for share in shares.values() {
            let numbers: BTreeSet<u64> = share.iter().map(|text| partition(text) % u64::from(to)).collect();
            prop_assert_eq!(numbers.len(), 1, "an instance has one partition");
            prop_assert!(seen.insert(numbers.first().copied()), "which nobody else has");
        }
    }

    #[test]
    fn round_robin_gives_each_instance_the_same_number(
        cluster in cluster(),
        from in instances(),
        to in instances(),
        each in 0usize..20,
    ) {
        // As many from each sender as all take in some rounds.
        let texts: Vec<_> = (0..from as usize * to as usize * each).map(|n| n.to_string()).collect();
        let job = collection(texts).parallelism(from).round_robin().parallelism(to);
        let shares = shares(cluster.run(&by_instance!(job).collect()).unwrap());
        for share in shares.values() {
            prop_assert_eq!(share.len(), from as usize * each);
        }
    }

    #[test]
    fn direct_leaves_records_in_their_order_and_gather_brings_all_to_one(
        texts in texts(),
        cluster in cluster(),
    ) {
        let stay = collection(texts.clone()).direct().direct().collect();
        prop_assert_eq!(&cluster.run(&stay).unwrap(), &texts);
        let job = by_instance!(collection(texts).gather()).collect();
        prop_assert!(shares(cluster.run(&job).unwrap()).len() <= 1);
    }

    #[test]
    fn a_union_is_both_and_a_stream_with_itself_twice_itself(
        one in texts(),
        other in texts(),
        cluster in cluster(),
        to in instances(),
    ) {
        let job = collection(one.clone()).union(collection(other.clone()).exchange_by_hash());
        let both = [one.clone(), other].concat();
        cluster.gives(&job.parallelism(to).collect(), both);

        let stream = collection(one.clone()).exchange_by_hash();
        let job = stream.clone().union(stream.filter(|text| text.len() % 2 == 0));
        let even = one.iter().filter(|text| text.len() % 2 == 0).cloned();
        cluster.gives(&job.collect(), one.iter().cloned().chain(even).collect());
    }
}

#[test]
fn rebalancing_spares_the_instance_that_does_not_read() {
    // Nobody reads while one rank fills the windows of all: records go round then.
    let cluster = Cluster {
        seed: 3,
        size: 4,
        executors: 1,
        arena_bytes: 1 << 20,
        memory_bytes: 1 << 40,
    };
    let texts: Vec<_> = (0..40_000).map(|n| n.to_string()).collect();
    let job = collection(texts).parallelism(1).rebalance();
    let shares = shares(cluster.run(&by_instance!(job).collect()).unwrap());
    assert_eq!(shares.len(), 4);
    for share in shares.values() {
        assert!(share.len() > 1_000, "{}", share.len());
    }
}

/// The number of each key, twice, and what is made of it by key behind that. With `$moved`, nobody knows that some keys are
/// where they belong.
macro_rules! by_key_again {
    ($pairs:expr, $m:expr, $n:expr, $($moved:tt)*) => {{
        let counts = collection($pairs.to_vec())
            .map(|(key, n)| (key, n % 100))
            .reduce_by_key(|a, b| a + b)
            .parallelism($m)
            .filter(|(_, n)| n % 3 > 0);
        let twice = counts.clone().exchange_by_key().parallelism($m);
        let both = counts.join(twice).parallelism($m);
        let both = both.map(|(key, (one, other))| (key, one + other)).direct();
        let values = collection($pairs.to_vec()).exchange_by_key().parallelism($m);
        let values = values.filter(|(_, n)| n % 7 > 0);
        let all = values.reduce_by_key(|a, b| a + b).parallelism($n)$($moved)*;
        let windows = all.window_by_key(Windows::tumbling(50), |n| n as i64);
        let sums = windows.aggregate(|of| of.sum(|n| n)).parallelism($n);
        let sums = sums
            .aggregate_by_key(|of| of.sum(|(_, sum)| sum))
            .parallelism($n);
        let groups = sums
            .filter(|(key, _)| key % 2 == 0)
            .group_by_key()
            .parallelism($n);
        groups
            .left_join(both)
            .map(|(key, (sums, both))| (key, (sums.iter().collect::<Vec<u64>>(), both)))
    }};
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(48, 10_000)))]

    #[test]
    fn what_is_by_key_already_gives_the_same(
        pairs in prop::collection::vec((0u64..40, 0u64..1_000), 0..300),
        cluster in cluster(),
        (m, n) in (instances(), prop_oneof![Just(0u32), instances()]),
    ) {
        let n = if n == 0 { m } else { n };
        // Many edges between many instances take more than the usual arena.
        let cluster = Cluster { arena_bytes: 16 << 20, ..cluster };
        let in_place = by_key_again!(pairs, m, n,).collect();
        let moved = by_key_again!(pairs, m, n, .map(|pair| pair)).collect();
        let found = sorted(cluster.run(&in_place).unwrap());
        prop_assert_eq!(&found, &sorted(cluster.run(&moved).unwrap()));
        prop_assert_eq!(found, sorted(dataflow::inline(&in_place).unwrap()));
    }
}

#[test]
fn what_is_by_key_already_stays_where_it_is() {
    let cluster = Cluster {
        seed: 1,
        size: 4,
        executors: 1,
        arena_bytes: 4 << 20,
        memory_bytes: 1 << 40,
    };
    let sums = |instances| {
        collection((0..40_000u64).collect())
            .map(|n| (n % 10_000, n))
            .reduce_by_key(|a, b| a + b)
            .parallelism(instances)
            .filter(|(_, sum)| sum % 2 == 0)
    };
    let batches = |job: &Job<Vec<u64>>| {
        let (found, _, crossed) = cluster.run_watched(job, &spill::Config::default()).unwrap();
        assert_eq!(found, [10_000]);
        [0, 1].map(|edge| crossed.get(&edge).copied().unwrap_or(0))
    };
    let again = |before, after| {
        let sums = sums(before).reduce_by_key(|a, b| a + b);
        sums.parallelism(after).count().collect()
    };
    let alike = again(4, 4);
    assert!(alike.explain().contains("by reduce_by_key, in place\n"));
    let [first, second] = batches(&alike);
    assert!(first > 0 && second == 0, "{first} {second}");
    // With other numbers of instances, keys belong elsewhere.
    let unlike = again(4, 3);
    assert!(!unlike.explain().contains("in place"));
    let [first, second] = batches(&unlike);
    assert!(first > 0 && second > 0, "{first} {second}");
    // So they may if the keys are others.
    let other = sums(4)
        .map(|(key, sum)| (key ^ 1, sum))
        .reduce_by_key(|a, b| a + b)
        .parallelism(4)
        .count()
        .collect();
    assert!(!other.explain().contains("in place"));
    assert!(batches(&other)[1] > 0);
}

/// Sums by key on four instances, as they are after something keeps them by key.
fn pairs_by_key() -> TSet<impl Source<Out = (u64, u64)>, impl Narrow<(u64, u64), Out = (u64, u64)>>
{
    collection((0..4_000u64).collect())
        .map(|n| (n % 1_000, n))
        .reduce_by_key(|a, b| a + b)
        .map_values(|sum| sum / 2)
        .flat_map_values(|half, out| out.push(half * 2))
}

#[test]
fn what_is_kept_by_key_is_joined_where_it_is() {
    let expected: Vec<_> = (0..1_000u64).map(|n| (n, 4 * n + 6_000)).collect();
    let folder = tempfile::tempdir().unwrap();
    let cached = simulate(&pairs_by_key().cache(), 1, 4, 1).unwrap();
    let variable = Variable::new(cached.clone());
    macro_rules! is_joined {
        ($in_place:literal, $pairs:expr) => {{
            let pairs = $pairs;
            let joined = pairs.clone().join(cached.tset());
            let job = joined
                .map_values(|(one, other)| (one / 2) + (other / 2))
                .collect();
            let plan = job.explain();
            let in_place = plan.matches("by join, in place\n").count();
            assert_eq!(in_place, $in_place, "{plan}");
            assert_eq!(sorted(simulate(&job, 1, 4, 1).unwrap()), expected, "{plan}");
        }};
    }
    is_joined!(2, cached.tset());
    is_joined!(2, variable.tset());
    is_joined!(2, pairs_by_key());
    is_joined!(2, pairs_by_key().direct());
    is_joined!(2, pairs_by_key().persist(Level::Memory));
    is_joined!(2, pairs_by_key().checkpoint(folder.path()));
    is_joined!(2, pairs_by_key().exchange_by_key().filter(|_| true));
    // Other instances, or what may have become of the key.
    is_joined!(1, pairs_by_key().parallelism(3).direct());
    is_joined!(1, pairs_by_key().direct().parallelism(3));
    is_joined!(1, pairs_by_key().map(|pair| pair).direct());
    is_joined!(1, pairs_by_key().rebalance());
}

#[test]
fn a_variable_that_was_by_key_stays_so_or_ends_the_run() {
    let by_key = inline(&pairs_by_key().cache()).unwrap();
    let others = inline(&pairs_by_key().map(|pair| pair).cache()).unwrap();
    let variable = Variable::new(others.clone());
    let moved = variable.tset().group_by_key().count().first();
    variable.set(by_key);
    assert_eq!(inline(&moved).unwrap(), Some(1_000));
    let in_place = variable.tset().group_by_key().count().first();
    assert_eq!(inline(&in_place).unwrap(), Some(1_000));
    variable.set(others);
    let error = inline(&in_place).unwrap_err();
    assert!(matches!(error, Error::NotCachedByKey { .. }), "{error}");
    assert!(error.to_string().contains("variable"), "{error}");
}
