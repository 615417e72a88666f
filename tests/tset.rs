//! What programs that run several jobs promise: what a run leaves in the workers is there for the next, and nothing is
//! done twice.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use dataflow::{Accumulator, Error, Variable, collection, generate, inline, simulate};
use proptest::prelude::*;
use updraft::{Config, collectives::op::Sum};

fn sorted<T: Ord>(mut records: Vec<T>) -> Vec<T> {
    records.sort();
    records
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_cached_is_there_for_later_jobs(
        words in prop::collection::vec("[a-c]{0,40}", 0..200),
        (seed, size, executors) in (any::<u64>(), 1u32..6, 1u32..4),
        instances in prop::option::of(1u32..9),
        parallelism in 1u32..6,
    ) {
        let stream = collection(words.clone()).exchange_by_hash();
        let stream = match instances {
            Some(instances) => stream.parallelism(instances),
            None => stream,
        };
        let cached = simulate(&stream.cache(), seed, size, executors).unwrap();
        prop_assert_eq!(cached.here(), words.len() as u64);
        let lengths = cached.tset().map(|word| word.len() as u64);
        let job = lengths.round_robin().parallelism(parallelism).collect();
        let again = simulate(&job, !seed, size, executors).unwrap();
        let expected = words.iter().map(|word| word.len() as u64).collect();
        prop_assert_eq!(sorted(again), sorted(expected));
        let of_ranks = (0..size).flat_map(|rank| cached.on(rank));
        let kept: Vec<_> = of_ranks.flat_map(|part| part.views().map(str::to_owned).collect::<Vec<_>>()).collect();
        prop_assert_eq!(sorted(kept), sorted(words));
    }

    #[test]
    fn the_end_of_a_partition_is_pushed_wherever_it_stands(
        numbers in prop::collection::vec(0u64..100, 0..200),
        (seed, size) in (any::<u64>(), 1u32..6),
    ) {
        let job = collection(numbers.clone())
            .map_partition(Vec::new(), |kept: &mut Vec<u64>, n, _| kept.push(n), |kept: Vec<u64>, out| kept.iter().for_each(|&n| out.push(n)))
            .map_partition(0, |sum, n, _| *sum += n, |sum, out| out.push(sum))
            .filter(|_| true)
            .collect();
        let sums = simulate(&job, seed, size, 1).unwrap();
        prop_assert_eq!(sums.len(), size as usize);
        prop_assert_eq!(sums.iter().sum::<u64>(), numbers.iter().sum::<u64>());
    }
}

#[test]
fn instances_that_have_no_part_of_a_cache_say_so() {
    let cached = simulate(&generate(10, |n| n).cache(), 1, 3, 1).unwrap();
    let error = simulate(&cached.tset().parallelism(2).collect(), 1, 3, 1).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NotCachedHere {
                instances: 2,
                cached: 3,
                ..
            }
        ),
        "{error}"
    );
    let error = inline(&cached.tset().collect()).unwrap_err();
    assert!(error.to_string().contains("no part here"), "{error}");
}

#[test]
fn jobs_that_run_together_do_what_both_need_once() {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let squares = generate(100, |n| n)
        .map(move |n| {
            counted.fetch_add(1, Ordering::Relaxed);
            n * n
        })
        .direct();
    let both = squares
        .clone()
        .count()
        .first()
        .and(squares.clone().top_n(1, |n| n).first());
    let all = both.and(squares.filter(|n| n % 2 == 0).cache());
    for seed in 0..20 {
        let ((count, greatest), even) = simulate(&all, seed, 4, 2).unwrap();
        assert_eq!(
            (count, greatest, even.here()),
            (Some(100), Some(99 * 99), 50)
        );
    }
    assert_eq!(calls.load(Ordering::Relaxed), 20 * 100);
}

#[test]
fn what_is_added_on_the_side_is_summed_over_all_ranks_in_each_run() {
    let (odd, all) = (Accumulator::new(), Accumulator::new());
    let (of_odd, of_all) = (odd.clone(), all.clone());
    let job = generate(1000, |n| n)
        .exchange_by_hash()
        .filter(move |n| {
            of_odd.add(n % 2);
            of_all.add(1);
            false
        })
        .count()
        .first();
    for seed in 0..20 {
        let job = job.clone().with_total(&all).with_total(&odd);
        assert_eq!(simulate(&job, seed, 5, 2).unwrap(), ((Some(0), 1000), 500));
    }
    let config = Config {
        executors: Some(2),
        ..Config::default()
    };
    let job = job.with_total(&odd);
    let found = updraft::run(config, |env| {
        env.run(&job)?;
        env.run(&job)
    });
    assert_eq!(found.unwrap(), (Some(0), 500));
}

#[test]
fn a_job_runs_again_with_what_its_variable_has_become() {
    let bound = Variable::new(0u64);
    let config = Config {
        executors: Some(2),
        ..Config::default()
    };
    updraft::run(config, |env| {
        let cached = env.run(&generate(1000, |n| n).cache())?;
        let below = cached.tset().filter_with(&bound, |n, bound| n < *bound);
        let count = below.count().first();
        for round in 0..100 {
            bound.set(round * 10);
            assert_eq!(env.run(&count)?, Some(round * 10));
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_loop_over_what_is_cached_gives_what_a_plain_loop_gives() {
    // Newton's iteration for the least squares of many numbers: their mean, in one step, and then nothing changes.
    let numbers: Vec<u64> = (0..10_000).map(|n| n * n % 1009).collect();
    let mean = numbers.iter().sum::<u64>() as f64 / numbers.len() as f64;
    for executors in 1..=3 {
        let config = Config {
            executors: Some(executors),
            ..Config::default()
        };
        let numbers = numbers.clone();
        let done = |changes: &[f64]| changes.last().is_some_and(|&change| change == 0.0);
        let found = updraft::run(config, |env| {
            let cached = env.run(&env.collection(numbers).cache())?;
            env.iterate(&cached, 0.0, done, |guess, round| {
                let mut sums = [round.records().sum::<u64>(), round.records().count() as u64];
                round.world.all_reduce(&mut sums, Sum).wait()?;
                let before = std::mem::replace(guess, sums[0] as f64 / sums[1] as f64);
                Ok(*guess - before)
            })
        })
        .unwrap();
        assert_eq!((found.state, &found.history[..]), (mean, &[mean, 0.0][..]));
        assert_eq!(found.times.len(), 2);
    }
}

fn executors(executors: u32) -> Config {
    Config {
        executors: Some(executors),
        ..Config::default()
    }
}

/// How many numbers below a bound there are that a bound divides, for each bound that a repeated job goes through.
fn counts(executors_in_all: u32, last: u64) -> Result<Vec<(u64, u64)>, updraft::Error> {
    updraft::run(executors(executors_in_all), |env| {
        let bound = Variable::new(1u64);
        let numbers = env.run(&generate(1000, |n| n).exchange_by_hash().cache())?;
        let job = numbers
            .tset()
            .filter_with(&bound, |n, bound| n % bound == 0)
            .exchange_by_hash()
            .count()
            .first();
        let found = env.repeat(&job, Vec::new(), move |found, count| {
            let tried = *bound.get();
            found.push((tried, count.unwrap_or_default()));
            bound.set(tried + 1);
            match tried {
                13 if last == 13 => panic!("thirteen"),
                14 if last == 14 => Err(updraft::Error::program("fourteen")),
                _ => Ok(tried < last),
            }
        })?;
        // The runs that follow have numbers of their own.
        assert_eq!(env.run(&numbers.tset().count().first())?, Some(1000));
        Ok(found)
    })
}

#[test]
fn a_job_that_repeats_itself_gives_what_a_plain_loop_gives() {
    for executors in 1..=3 {
        let expected: Vec<_> = (1..=200)
            .map(|bound| (bound, 1000u64.div_ceil(bound)))
            .collect();
        assert_eq!(counts(executors, 200).unwrap(), expected);
    }
}

#[test]
fn what_goes_wrong_between_two_runs_ends_the_job() {
    for (last, said) in [(13, "thirteen"), (14, "fourteen")] {
        let error = counts(2, last).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}
