//! Graphs of any shape: they give what their definition says, and come to their end however little memory there is.

use dataflow::{Pass, Received, TSet, collection};
use proptest::{prelude::*, sample::Index};

use crate::{
    cluster::{Cluster, cluster},
    support::long::often,
};

/// What every operator here takes and gives.
type Numbers = TSet<Received<u64>, Pass>;

/// A step that adds a stream to those there are.
#[derive(Debug, Clone)]
enum Step {
    Hash(Index),
    RoundRobin(Index),
    Gather(Index),
    Halve(Index),
    Parallel(Index, u32),
    Union(Index, Index),
    Reduce(Index),
}

fn step() -> impl Strategy<Value = Step> {
    let any_one = any::<Index>;
    prop_oneof![
        any_one().prop_map(Step::Hash),
        any_one().prop_map(Step::RoundRobin),
        any_one().prop_map(Step::Gather),
        any_one().prop_map(Step::Halve),
        (any_one(), 1u32..7).prop_map(|(of, instances)| Step::Parallel(of, instances)),
        (any_one(), any_one()).prop_map(|(one, other)| Step::Union(one, other)),
        any_one().prop_map(Step::Reduce),
    ]
}

impl Step {
    /// The stream of a step, and what it should give.
    fn take(&self, streams: &[(Numbers, Vec<u64>)]) -> (Numbers, Vec<u64>) {
        let of = |index: &Index| index.get(streams).clone();
        match self {
            Self::Hash(index) => {
                let (stream, records) = of(index);
                let next = |n: u64| n.wrapping_mul(7) % 1_000;
                (
                    stream.map(next).exchange_by_hash(),
                    records.into_iter().map(next).collect(),
                )
            }
            Self::RoundRobin(index) => {
                let (stream, records) = of(index);
                (stream.round_robin(), records)
            }
            Self::Gather(index) => {
                let (stream, records) = of(index);
                (stream.gather().direct(), records)
            }
            Self::Halve(index) => {
                let (stream, mut records) = of(index);
                records.retain(|n| n % 2 == 0);
                (stream.filter(|n| n % 2 == 0).rebalance(), records)
            }
            Self::Parallel(index, instances) => {
                let (stream, records) = of(index);
                (stream.parallelism(*instances).direct(), records)
            }
            Self::Union(one, other) => {
                let ((one, mut records), (other, more)) = (of(one), of(other));
                records.extend(more);
                (one.union(other).direct(), records)
            }
            Self::Reduce(index) => {
                let (stream, records) = of(index);
                let mut counts = std::collections::BTreeMap::<u64, u64>::new();
                for n in records {
                    *counts.entry(n % 50).or_default() += 1;
                }
                let stream = stream.map(|n| (n % 50, 1u64)).reduce_by_key(|a, b| a + b);
                let stream = stream.map(|(key, count)| key + 50 * count).direct();
                let records = counts.into_iter().map(|(key, count)| key + 50 * count);
                (stream, records.collect())
            }
        }
    }
}

/// Streams may double at each step.
const RECORDS_MAX: usize = 40_000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(64, 10_000)))]

    #[test]
    fn any_graph_gives_what_its_definition_says(
        steps in prop::collection::vec(step(), 1..9),
        records in 0u64..4_000,
        cluster in cluster(),
    ) {
        let records: Vec<u64> = (0..records).collect();
        let mut streams = vec![(collection(records.clone()).direct(), records)];
        for step in &steps {
            let (stream, records) = step.take(&streams);
            if records.len() <= RECORDS_MAX {
                streams.push((stream, records));
            }
        }
        let (stream, records) = streams.pop().unwrap();
        cluster.gives(&stream.collect(), records);
    }
}

#[test]
fn branches_of_a_stream_share_the_work_before_them() {
    let stream = collection(vec![1u64, 2, 3]).map(|n| n + 1).direct();
    let job = stream.clone().union(stream).collect();
    assert_eq!(
        job.plan(),
        "collection of 3 > map > direct -> 0 | 0 -> after direct > union -> 1 | \
         0 -> after direct > union -> 2 | 1 2 -> after union > collect -> 3 | \
         3 -> collected (one a process)"
    );
}

#[test]
fn an_arena_too_small_for_its_channels_is_told_and_not_waited_for() {
    let cluster = Cluster {
        seed: 1,
        size: 4,
        executors: 1,
        arena_bytes: 64 << 10,
        memory_bytes: 1 << 30,
    };
    let mut stream = collection(vec![1u64]).direct();
    for _ in 0..9 {
        stream = stream.direct();
    }
    let error = cluster.run(&stream.collect()).unwrap_err();
    let dataflow::Error::ArenaTooSmall { channels, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(channels, 11 * 4);
}
