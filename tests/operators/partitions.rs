//! What instances do with their own records, and results of instances put together: against plain loops.

use std::collections::{BTreeMap, BTreeSet};

use dataflow::{Pass, TSet, collection, inline};
use proptest::prelude::*;

use crate::{
    cluster::{Cluster, cluster, instances, sorted},
    support::long::often,
};

/// Where the share begins that an instance has of a collection.
fn cut(len: usize, instance: u32, instances: u32) -> usize {
    len * instance as usize / instances as usize
}

/// The numbers that were drawn of the first so many.
fn drawn((probability, seed): (f64, u64), len: u64, m: u32, cluster: Cluster) -> Vec<u64> {
    let numbers = collection((0..len).collect()).parallelism(m);
    let job = numbers.sample(probability, seed).collect();
    let sample = sorted(cluster.run(&job).unwrap());
    assert_eq!(
        sorted(inline(&job).unwrap()),
        sample,
        "it is the same in each run"
    );
    sample
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(32, 10_000)))]

    #[test]
    fn each_record_gets_the_key_that_a_function_gives_it(
        texts in prop::collection::vec("[a-c]{0,3}|[a-z]{0,40}", 0..200),
        cluster in cluster(),
        (m, n) in (instances(), instances()),
    ) {
        let key = |text: &str| (text.len() as u64, text.starts_with('a'));
        let keyed = collection(texts.clone()).parallelism(m).key_by(key);
        let pairs = texts.iter().map(|text| (key(text), text.clone()));
        cluster.gives(&keyed.clone().exchange_by_key().parallelism(n).collect(), pairs.clone().collect());

        let mut groups = BTreeMap::<_, Vec<String>>::new();
        for (key, text) in pairs {
            groups.entry(key).or_default().push(text);
        }
        let groups = groups.into_iter().map(|(key, texts)| (key, sorted(texts))).collect();
        let grouped = keyed.group_by_key().parallelism(n).map(|(key, texts)| {
            (key, sorted(texts.iter().map(str::to_owned).collect::<Vec<_>>()))
        });
        cluster.gives(&grouped.collect(), groups);
    }

    #[test]
    fn each_instance_counts_in_steps_of_its_own(
        texts in prop::collection::vec("[a-z]{0,10}", 0..200),
        cluster in cluster(),
        (m, n) in (instances(), instances()),
    ) {
        let len = texts.len();
        let mut expected = Vec::new();
        for instance in 0..m {
            let share = &texts[cut(len, instance, m)..cut(len, instance + 1, m)];
            for (number, text) in share.iter().enumerate() {
                expected.push((u64::from(instance) + number as u64 * u64::from(m), text.clone()));
            }
        }
        let shares = collection(texts.clone()).parallelism(m);
        cluster.gives(&shares.clone().zip_with_unique_id().collect(), expected);

        // Wherever the records come from, no two have the same number.
        let numbered = cluster.run(&shares.exchange_by_hash().parallelism(n).zip_with_unique_id().collect()).unwrap();
        let numbers: BTreeSet<u64> = numbered.iter().map(|(number, _)| *number).collect();
        prop_assert_eq!(numbers.len(), len);
        prop_assert_eq!(sorted(numbered.into_iter().map(|(_, text)| text).collect()), sorted(texts));
    }

    #[test]
    fn records_are_spread_evenly_over_other_instances(
        texts in prop::collection::vec("[a-z]{0,10}", 0..300),
        cluster in cluster(),
        (m, n) in (instances(), instances()),
    ) {
        let spread = collection(texts.clone()).parallelism(m).repartition(n);
        cluster.gives(&spread.clone().collect(), texts.clone());
        let counts = spread.map_partition(0u64, |count, _, _| *count += 1, |count, out| out.push(count));
        let counts = cluster.run(&counts.collect()).unwrap();
        prop_assert_eq!(counts.len(), n as usize);
        prop_assert_eq!(counts.iter().sum::<u64>(), texts.len() as u64);
        // Each sender goes round, so that it gives one instance one more than another at most.
        let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
        prop_assert!(most - least <= u64::from(m), "{:?}", counts);
    }

    #[test]
    fn a_sample_has_as_many_as_it_should_and_draws_anew_in_each_instance(
        probability in 0.05f64..0.95,
        seed in any::<u64>(),
        cluster in cluster(),
        m in instances(),
    ) {
        const LEN: u64 = 3_000;
        let sample = drawn((probability, seed), LEN, m, cluster);
        // Six standard deviations: one of five hundred million.
        let off = |count: usize, of: f64, probability: f64| {
            let deviation = (of * probability * (1.0 - probability)).sqrt();
            (count as f64 - of * probability).abs() > 6.0 * deviation.max(1.0)
        };
        prop_assert!(!off(sample.len(), LEN as f64, probability), "{} of {LEN} by {probability}", sample.len());
        let once: BTreeSet<u64> = sample.iter().copied().collect();
        prop_assert_eq!(once.len(), sample.len());

        // Of what two seeds draw, or two instances of the same places in their shares, as much is the same as chance has it.
        let other: BTreeSet<u64> = drawn((probability, !seed), LEN, m, cluster).into_iter().collect();
        let both = probability * probability;
        prop_assert!(!off(once.intersection(&other).count(), LEN as f64, both));
        let halves = drawn((probability, seed), LEN, 2, cluster);
        let halves: BTreeSet<u64> = halves.into_iter().collect();
        let same = (0..LEN / 2).filter(|n| halves.contains(n) && halves.contains(&(n + LEN / 2)));
        prop_assert!(!off(same.count(), LEN as f64 / 2.0, both));

        let ends = [0.0, 1.0].map(|probability| drawn((probability, seed), 100, m, cluster).len());
        prop_assert_eq!(ends, [0, 100]);
    }

    #[test]
    fn histograms_of_all_instances_are_one(
        numbers in prop::collection::vec(prop_oneof![9 => -10.0f64..10.0, 1 => Just(f64::NAN), 1 => Just(5.0)], 0..300),
        bounds in prop::collection::btree_set(-10i32..=10, 0..6),
        cluster in cluster(),
        (m, n) in (instances(), instances()),
    ) {
        let bounds: Vec<f64> = bounds.into_iter().map(f64::from).collect();
        let count = |numbers: &mut dyn Iterator<Item = f64>| {
            let mut counts = vec![0; bounds.len() + 1];
            for number in numbers.filter(|number| !number.is_nan()) {
                counts[bounds.iter().filter(|&&bound| bound <= number).count()] += 1;
            }
            counts
        };
        let shares: TSet<_, Pass> = collection(numbers.clone()).parallelism(m);
        let of_all = shares.clone().aggregate(|of| of.histogram(&bounds, |x| x)).collect();
        cluster.gives(&of_all, vec![count(&mut numbers.iter().copied())]);

        let sign = |x: f64| x.is_sign_negative();
        let by_sign = shares.key_by(sign).aggregate_by_key(|of| of.histogram(&bounds, |x| x));
        let of_sign = |negative| {
            let mut numbers = numbers.iter().copied().filter(|&x| sign(x) == negative).peekable();
            numbers.peek().is_some().then(|| (negative, count(&mut numbers)))
        };
        let expected = [false, true].into_iter().filter_map(of_sign).collect();
        cluster.gives(&by_sign.parallelism(n).collect(), expected);
    }
}
