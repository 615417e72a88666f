//! What programs that run several jobs promise: what a run leaves in the workers is there for the next, and nothing is
//! done twice.

use std::{
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use dataflow::{
    Accumulator, Cached, Error, Job, Level, Pass, Persisted, TSet, Variable, collection, generate,
    inline, simulate,
};
use proptest::prelude::*;
use updraft::{Config, Env, Round, collectives::op::Sum};

fn sorted<T: Ord>(mut records: Vec<T>) -> Vec<T> {
    records.sort();
    records
}

dataflow::record! {
    /// What was seen of some texts.
    #[derive(Debug, Clone, PartialEq)]
    struct Seen {
        longest: String,
        lengths: Vec<u64>,
    }
}

/// The longer of two texts, or that which comes first in the alphabet, and how many texts have which length.
fn merged(a: Seen, b: Seen) -> Seen {
    let order = |text: &String| (std::cmp::Reverse(text.len()), text.clone());
    let longest = [a.longest, b.longest]
        .into_iter()
        .min_by_key(order)
        .unwrap();
    let mut lengths = vec![0; a.lengths.len().max(b.lengths.len())];
    for (length, count) in a
        .lengths
        .iter()
        .enumerate()
        .chain(b.lengths.iter().enumerate())
    {
        lengths[length] += count;
    }
    Seen { longest, lengths }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn what_is_gathered_on_the_side_is_what_a_loop_gathers(
        texts in prop::collection::vec("[a-d]{0,9}", 0..60),
        seed in 0u64..1000,
        // Above 16 ranks, what ranks say goes by the first of them.
        size in prop_oneof![1u32..6, Just(18)],
    ) {
        let none = Seen { longest: String::new(), lengths: Vec::new() };
        let seen_of = |text: &str| {
            let mut lengths = vec![0; text.len() + 1];
            lengths[text.len()] = 1;
            Seen { longest: text.to_owned(), lengths }
        };
        let seen = Accumulator::by(none.clone(), merged);
        let (least, most) = (Accumulator::by(f64::INFINITY, f64::min), Accumulator::by(i64::MIN, i64::max));
        let sum = Accumulator::by(0.0, |a, b| a + b);
        let adds = (seen.clone(), least.clone(), most.clone(), sum.clone());
        let job = collection(texts.clone()).exchange_by_hash().for_each(move |text| {
            adds.0.add(seen_of(text));
            adds.1.add(text.len() as f64 / 2.0);
            adds.2.add(-(text.len() as i64));
            adds.3.add(text.len() as f64 / 4.0);
        });
        let job = job.with_total(&seen).with_total(&least).with_total(&most).with_total(&sum);
        let lengths = || texts.iter().map(String::len);
        let expected = (
            texts.iter().map(|text| seen_of(text)).reduce(merged).unwrap_or(none),
            lengths().map(|len| len as f64 / 2.0).fold(f64::INFINITY, f64::min),
            lengths().map(|len| -(len as i64)).max().unwrap_or(i64::MIN),
            lengths().map(|len| len as f64 / 4.0).sum::<f64>(),
        );
        let flat = |(((((), seen), least), most), sum)| (seen, least, most, sum);
        prop_assert_eq!(&flat(simulate(&job, seed, size, 1).unwrap()), &expected);
        // In the next run anew.
        prop_assert_eq!(&flat(simulate(&job, seed, size, 1).unwrap()), &expected);
        if seed.is_multiple_of(4) {
            let config = Config { executors: Some(2), progress: false, ..Config::default() };
            let found = updraft::run(config, |env| env.run(&job)).unwrap();
            prop_assert_eq!(flat(found), expected);
        }
    }
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_a_run_leaves_in_a_variable_is_what_the_next_one_reads(
        start in prop::collection::vec(1u64..1000, 0..100),
        (seed, size, executors) in (any::<u64>(), 1u32..6, 1u32..4),
        instances in prop::option::of(1u32..9),
    ) {
        let numbers = collection(start.clone()).exchange_by_hash();
        let numbers = match instances {
            Some(instances) => numbers.parallelism(instances),
            None => numbers,
        };
        let numbers = Variable::new(simulate(&numbers.cache(), seed, size, executors).unwrap());
        let (job, mut expected) = (halving(&numbers, instances), start);
        for round in 0..12 {
            let (next, sum) = simulate(&job, seed ^ round, size, executors).unwrap();
            halve(&mut expected);
            prop_assert_eq!(sum.unwrap_or_default(), expected.iter().sum::<u64>());
            prop_assert_eq!(next.here(), expected.len() as u64);
            numbers.set(next);
        }
        let found = simulate(&numbers.tset().collect(), seed, size, executors).unwrap();
        prop_assert_eq!(sorted(found), sorted(expected));
    }
}

/// What a round of `halving` makes of numbers.
fn halve(numbers: &mut Vec<u64>) {
    *numbers = (numbers.iter())
        .flat_map(|&n| {
            if n % 2 == 0 {
                vec![n / 2, 1]
            } else {
                vec![n - 1]
            }
        })
        .collect();
}

/// A round in which numbers are halved, which are more by that, and put elsewhere. It gives all, and their sum.
fn halving(
    numbers: &Variable<Cached<u64>>,
    instances: Option<u32>,
) -> Job<(Cached<u64>, Option<u64>)> {
    let next = (numbers.tset().named("numbers")).flat_map(|n, out| match n % 2 {
        0 => [n / 2, 1].into_iter().for_each(|n| out.push(n)),
        _ => out.push(n - 1),
    });
    let next = next.round_robin();
    let sum = next.clone().reduce(|a, b| a + b).first();
    let next = match instances {
        Some(instances) => next.parallelism(instances),
        None => next,
    };
    next.cache().and(sum)
}

#[test]
fn a_repeated_graph_reads_in_each_round_what_the_one_before_has_left() {
    for executors_in_all in 1..=3 {
        let mut expected: Vec<u64> = (0..300).map(|n| n * 37 % 1000).collect();
        let start = expected.clone();
        let (found, sums) = updraft::run(executors(executors_in_all), |env| {
            let numbers = env.run(&env.collection(start).exchange_by_hash().cache())?;
            let numbers = Variable::new(numbers);
            let (job, became) = (halving(&numbers, None), numbers.clone());
            let sums = env.repeat(&job, Vec::new(), move |sums, (next, sum)| {
                became.set(next);
                sums.push(sum.unwrap_or_default());
                Ok(sums.len() < 14)
            })?;
            Ok((env.run(&numbers.tset().collect())?, sums))
        })
        .unwrap();
        let mut halved = || {
            halve(&mut expected);
            expected.iter().sum::<u64>()
        };
        let expected_sums: Vec<_> = (0..14).map(|_| halved()).collect();
        assert_eq!(sums, expected_sums, "{executors_in_all} executors");
        assert!(
            sorted(found) == sorted(expected),
            "{executors_in_all} executors"
        );
    }
}

#[test]
fn a_variable_that_is_set_to_other_partitions_ends_the_run() {
    let numbers = Variable::new(inline(&generate(10, |n| n).cache()).unwrap());
    let job = numbers.tset().collect();
    numbers.set(inline(&generate(10, |n| n).parallelism(3).cache()).unwrap());
    let error = inline(&job).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NotCachedHere {
                instances: 1,
                cached: 3,
                ..
            }
        ),
        "{error}"
    );
    let error = updraft::run(executors(2), |env| {
        let numbers = env.run(&generate(10, |n| n).cache())?;
        let others = env.run(&generate(10, |n| n).parallelism(3).cache())?;
        let numbers = Variable::new(numbers);
        let job = numbers.tset().count().first();
        env.repeat(&job, 0, move |runs, count| {
            assert_eq!((*runs, count), (0, Some(10)));
            *runs += 1;
            numbers.set(others.clone());
            Ok(true)
        })
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("what 3 instances cached"), "{error}");
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
fn what_each_task_did_is_told_by_its_name_and_line_and_adds_up() {
    let config = Config {
        executors: Some(2),
        metrics: true,
        progress: false,
        ..Config::default()
    };
    let line = line!() + 3;
    let job = generate(1000, |n| n)
        .parallelism(3)
        .map(|n| n * 2)
        .named("doubled")
        .exchange_by_hash()
        .map(|n| {
            let start = std::time::Instant::now();
            while start.elapsed() < std::time::Duration::from_micros(50) {}
            n
        })
        .count()
        .first();
    let (tasks, totals) = updraft::run(config, |env| {
        // Runs of a graph are taken together.
        for _ in 0..2 {
            assert_eq!(env.run(&job)?, Some(1000));
        }
        Ok((env.by_task().to_vec(), env.totals().to_vec()))
    })
    .unwrap();
    let names: Vec<_> = tasks.iter().map(|of| &*of.task).collect();
    assert_eq!(
        names[0],
        format!("generate 1000 > doubled > exchange_by_hash (tests/tset.rs:{line})")
    );
    assert_eq!(
        names[1],
        format!(
            "after exchange_by_hash > map > count (tests/tset.rs:{})",
            line + 3
        )
    );
    let sum = |task: usize| {
        let mut sum = dataflow::Totals::default();
        tasks[task].instances.iter().for_each(|one| sum += *one);
        sum
    };
    let (first, second) = (sum(0), sum(1));
    assert_eq!((tasks[0].instances.len(), tasks[1].instances.len()), (3, 2));
    assert_eq!(
        (first.records, first.sent, second.received),
        (2000, 2000, 2000)
    );
    assert_eq!(first.sent_bytes, second.received_bytes);
    assert!(first.sent_bytes >= 8 * 2000);
    // It is at work for 100 ms in both runs, whoever else is.
    assert!(
        second.busy.as_millis() >= 100 && first.busy < second.busy,
        "{first:?} {second:?}"
    );
    let mut all = dataflow::Totals::default();
    totals.iter().for_each(|rank| all += *rank);
    let mut of_tasks = dataflow::Totals::default();
    (0..tasks.len()).for_each(|task| of_tasks += sum(task));
    assert_eq!(all, of_tasks);
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

/// Messages from rank 0 to rank 1, and back, so far.
fn messages(env: &mut Env) -> Result<[u64; 2], updraft::Error> {
    let found = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let told = found.clone();
    env.on_executors(move |fabric| {
        if let (0, Some(counters)) = (fabric.rank(), fabric.counters(1)) {
            told[0].store(counters.sent.messages, Ordering::Relaxed);
            told[1].store(counters.received.messages, Ordering::Relaxed);
        }
        Ok(())
    })?;
    Ok([0, 1].map(|direction| found[direction].load(Ordering::Relaxed)))
}

#[test]
fn a_round_of_a_repeated_graph_takes_no_more_messages_than_it_has_edges_and_a_report() {
    let config = Config {
        executors: Some(2),
        ..Config::default()
    };
    let [few, many] = updraft::run(config, |env| {
        let cached = env.run(&generate(2, |n| n).cache())?;
        let add = Variable::new(0u64);
        let exchanged = cached.tset().exchange_by_hash();
        let sum = exchanged
            .map_with(&add, |n, add| n + add)
            .reduce(|a, b| a + b);
        let job = sum.first();
        let mut rounds = |number: u64| {
            let before = messages(env)?;
            let add = add.clone();
            add.set(0);
            let ended = env.repeat(&job, 0, move |round, sum| {
                assert_eq!(sum, Some(1 + 2 * *round));
                *round += 1;
                add.set(*round);
                Ok(*round < number)
            })?;
            assert_eq!(ended, number);
            let after = messages(env)?;
            Ok::<_, updraft::Error>([after[0] - before[0], after[1] - before[1]])
        };
        Ok([rounds(10)?, rounds(110)?])
    })
    .unwrap();
    let a_round = [0, 1].map(|direction| (many[direction] - few[direction]) / 100);
    // Both ways the exchange, with its end, and the report; rank 1 also sends its part of the sum.
    assert_eq!(a_round, [2, 3]);
}

#[test]
fn what_a_round_leaves_for_the_next_takes_no_message_more() {
    let config = Config {
        executors: Some(2),
        ..Config::default()
    };
    let [few, many] = updraft::run(config, |env| {
        let pairs = env.run(&generate(100, |n| (n, 0u64)).exchange_by_key().cache())?;
        let pairs = Variable::new(pairs);
        let next = pairs
            .tset()
            .map(|(n, runs)| (n, runs + 1))
            .exchange_by_key();
        let sum = next.clone().map(|(_, runs)| runs).reduce(|a, b| a + b);
        let job = next.cache().and(sum.first());
        let mut rounds = |number: u64| {
            let before = messages(env)?;
            let became = pairs.clone();
            let ended = env.repeat(&job, 0, move |round, (next, _)| {
                became.set(next);
                *round += 1;
                Ok(*round < number)
            })?;
            assert_eq!(ended, number);
            let after = messages(env)?;
            Ok::<_, updraft::Error>([after[0] - before[0], after[1] - before[1]])
        };
        let counted = [rounds(10)?, rounds(110)?];
        let runs = env.run(&pairs.tset().map(|(_, runs)| runs).distinct().collect())?;
        assert_eq!(runs, [120]);
        Ok(counted)
    })
    .unwrap();
    let a_round = [0, 1].map(|direction| (many[direction] - few[direction]) / 100);
    // As without the variable: both ways the exchange, with its end, and the report; rank 1 also sends its part of the sum.
    assert_eq!(a_round, [2, 3]);
}

#[test]
fn a_repeated_graph_gives_each_round_its_result_on_many_ranks_too() {
    for executors in [1, 3, 20] {
        let config = Config {
            executors: Some(executors),
            ..Config::default()
        };
        let rounds = updraft::run(config, |env| {
            let cached = env.run(&generate(100, |n| n).cache())?;
            let add = Variable::new(0u64);
            let exchanged = cached.tset().exchange_by_hash();
            let sum = exchanged
                .map_with(&add, |n, add| n + add)
                .reduce(|a, b| a + b);
            env.repeat(&sum.first(), 0, move |round, sum| {
                assert_eq!(sum, Some(4950 + 100 * *round));
                *round += 1;
                add.set(*round);
                Ok(*round < 50)
            })
        });
        assert_eq!(rounds.unwrap(), 50);
    }
}

#[test]
fn who_watches_a_repeated_graph_sees_its_runs_and_what_is_told_of_them() {
    let config = Config {
        executors: Some(2),
        progress: false,
        ..Config::default()
    };
    let told = updraft::run(config, |env| {
        let (rounds, count) = (env.rounds(), generate(10, |n| n).count().first());
        let runs = env.repeat(&count, 0, move |runs, _| {
            let before = (*runs > 0).then_some(*runs as f64);
            *runs += 1;
            assert_eq!(rounds.told(), (*runs, before));
            rounds.tell(*runs, *runs as f64);
            Ok(*runs < 5)
        })?;
        let after = env.rounds().told();
        env.run(&count)?;
        Ok((runs, after, env.rounds().told()))
    });
    assert_eq!(told.unwrap(), (5, (5, Some(5.0)), (0, None)));
}

/// Each rank counts its part of the records in each round and has a state of its own; the last step puts them together.
#[test]
fn a_loop_that_ends_in_a_last_step_gives_what_a_plain_loop_gives() {
    let numbers: Vec<u64> = (0..1_000).map(|n| n * n % 1009).collect();
    // How many numbers are below 1, 2, 4 and so on, by a plain loop.
    let counts = (0..8).map(|power| numbers.iter().filter(|&&n| n < 1 << power).count() as u64);
    let expected: Vec<u64> = counts.collect();
    for executors in 1..=5 {
        let config = Config {
            executors: Some(executors),
            progress: false,
            ..Config::default()
        };
        let numbers = numbers.clone();
        let found = updraft::run(config, |env| {
            let cached = env.run(&env.collection(numbers).cache())?;
            let count = |counts: &mut Vec<u64>, round: &Round<'_, u64>| {
                let below = round.records().filter(|&n| n < 1 << round.number).count() as u64;
                counts.push(below);
                Ok(below as f64)
            };
            let eight = |rounds: &[f64]| rounds.len() == 8;
            env.iterate_then(&cached, Vec::new(), eight, count, |mut counts, round| {
                assert_eq!((round.number, counts.len()), (8, 8));
                // How many ranks are called.
                counts.push(1);
                round.world.all_reduce(&mut counts[..], Sum).wait()?;
                Ok((counts, round.records().sum::<u64>()))
            })
        })
        .unwrap();
        let (counts, sum_here) = found.state;
        assert_eq!(
            (&counts[..8], counts[8]),
            (&expected[..], u64::from(executors))
        );
        assert_eq!((found.history.len(), found.times.len()), (8, 8));
        // The measure is that of rank 0, and so is the state that is given.
        assert!(found.history[7] <= expected[7] as f64);
        assert_eq!(executors == 1, found.history[7] == expected[7] as f64);
        assert!(sum_here > 0);
    }
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

fn level() -> impl Strategy<Value = Level> {
    prop::sample::select(vec![Level::Memory, Level::MemoryAndDisk, Level::Disk])
}

/// Counts the records that go through a function, on all ranks.
fn counted(calls: &Arc<AtomicU64>) -> impl FnMut(&str) -> String + Clone + use<> {
    let calls = calls.clone();
    move |word| {
        calls.fetch_add(1, Ordering::Relaxed);
        word.to_owned()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_persists_is_computed_once_and_read_as_if_it_were_computed_again(
        words in prop::collection::vec("[a-c]{0,40}", 1..200),
        (seed, size, executors) in (any::<u64>(), 1u32..6, 1u32..4),
        instances in prop::option::of(1u32..9),
        level in level(),
    ) {
        let all = words.len() as u64;
        let calls = Arc::new(AtomicU64::new(0));
        let stream = collection(words.clone()).map(counted(&calls)).exchange_by_hash();
        let stream = match instances {
            Some(instances) => stream.parallelism(instances),
            None => stream,
        };
        let kept = stream.persist(level);
        // An output that wants no more of them ends nothing but itself, and keeps nothing.
        simulate(&kept.clone().take(1).collect(), seed, size, executors).unwrap();
        calls.store(0, Ordering::Relaxed);
        let count = simulate(&kept.clone().count().first(), seed, size, executors).unwrap();
        prop_assert_eq!((count, calls.load(Ordering::Relaxed) <= all), (Some(all), true));
        let calls_before = calls.load(Ordering::Relaxed);
        let stored = kept.stored();
        prop_assert_eq!(stored.missing, 0);
        prop_assert_eq!((stored.on_disk > 0, stored.in_memory > 0), (level == Level::Disk, level != Level::Disk));
        // Twice in one job, with a set that persists in between and is not needed the second time.
        let lengths = kept.clone().map(|word| (word.to_owned(), word.len() as u64)).persist(level);
        let joined = lengths.clone().join(kept.clone().distinct().map(|word| (word.to_owned(), ())));
        let expected: Vec<_> = words.iter().map(|word| (word.clone(), (word.len() as u64, ()))).collect();
        for turn in 0..3 {
            let found = simulate(&joined.clone().collect(), seed + turn, size, executors).unwrap();
            prop_assert_eq!(sorted(found), sorted(expected.clone()));
            if turn == 1 {
                lengths.unpersist();
            }
        }
        prop_assert_eq!(calls.load(Ordering::Relaxed), calls_before);
        // Another division is computed again, and so is what persists no more.
        let again = simulate(&kept.clone().collect(), seed, size + 1, executors).unwrap();
        prop_assert_eq!(sorted(again), sorted(words.clone()));
        kept.unpersist();
        let again = simulate(&kept.clone().collect(), seed, size, executors).unwrap();
        prop_assert_eq!(sorted(again), sorted(words));
        prop_assert_eq!(kept.stored().in_memory + kept.stored().on_disk, 0);
    }
}

#[test]
fn a_set_that_persists_has_the_instances_it_was_computed_by() {
    let kept = generate(10, |n| n).parallelism(3).persist(Level::Memory);
    let error = simulate(&kept.clone().parallelism(2).collect(), 1, 3, 1).unwrap_err();
    assert!(
        matches!(error, Error::NotCachedHere { cached: 3, .. }),
        "{error}"
    );
    assert_eq!(
        simulate(&kept.collect(), 1, 3, 1).unwrap(),
        (0..10).collect::<Vec<_>>()
    );
}

/// Rows of 264 bytes, and how often they were made.
const ROWS: u64 = 24_000;

fn wide(calls: &Arc<AtomicU64>, level: Level) -> TSet<Persisted<(u64, [u8; 256])>, Pass> {
    let calls = calls.clone();
    let row = move |n| {
        calls.fetch_add(1, Ordering::Relaxed);
        (n, [n as u8; 256])
    };
    generate(ROWS, |n| n).map(row).persist(level)
}

#[test]
fn what_persists_gives_way_to_what_needs_the_memory() {
    // Two sets of 6.3 MB, in memory for one of them.
    for level in [Level::Memory, Level::MemoryAndDisk] {
        let config = Config {
            executors: Some(2),
            memory_bytes: Some(12 << 20),
            progress: false,
            ..Config::default()
        };
        let calls: [Arc<AtomicU64>; 2] = Default::default();
        let sets = [&calls[0], &calls[1]].map(|calls| wide(calls, level));
        updraft::run(config, |env| {
            for turn in 0..6 {
                let set = &sets[turn % 2];
                let sums = set
                    .clone()
                    .aggregate(|of| (of.count(), of.sum(|(n, row)| n + u64::from(row[255]))));
                let sum = (0..ROWS).map(|n| n + n % 256).sum();
                assert_eq!(
                    env.run(&sums.first())?,
                    Some((ROWS, sum)),
                    "{level:?} {turn}"
                );
                let stored = [sets[0].stored(), sets[1].stored()];
                let kept: u64 = stored.iter().map(|stored| stored.memory_bytes).sum();
                assert!(env.ledger().used() <= 12 << 20 && kept <= 10 << 20);
                assert!(
                    stored
                        .iter()
                        .all(|stored| stored.on_disk == 0 || level == Level::MemoryAndDisk)
                );
                assert!(turn == 0 || stored.iter().any(|stored| stored.in_memory < 2));
            }
            // An operator that needs memory gets it.
            let ledger = env.ledger();
            let needed = ledger.free();
            assert!(needed > ledger.limit() - ledger.used());
            drop(ledger.reserve("a test", needed)?);
            assert_eq!(sets[0].stored().in_memory + sets[1].stored().in_memory, 0);
            let sorted = sets[0]
                .clone()
                .sort_by(|(n, _)| u64::MAX - n)
                .map(|(n, _)| n);
            assert!(env.run(&sorted.collect())?.into_iter().eq((0..ROWS).rev()));
            Ok(())
        })
        .unwrap();
        for calls in calls {
            let calls = calls.load(Ordering::Relaxed);
            match level {
                // All of a set was dropped once at least.
                Level::Memory => assert!(calls > ROWS, "{calls}"),
                _ => assert_eq!(calls, ROWS),
            }
        }
    }
}

#[test]
fn a_disk_that_is_full_costs_what_persists_no_more_than_another_computation() {
    let calls = Arc::new(AtomicU64::new(0));
    let kept = generate(1_000, |n| n)
        .map({
            let calls = calls.clone();
            move |n| {
                calls.fetch_add(1, Ordering::Relaxed);
                n
            }
        })
        .persist(Level::MemoryAndDisk);
    let config = Config {
        executors: Some(1),
        progress: false,
        spill: dataflow::spill::Config {
            directories: vec!["/no/such/folder".into()],
            ..Default::default()
        },
        ..Config::default()
    };
    updraft::run(config, |env| {
        assert_eq!(env.run(&kept.clone().count().first())?, Some(1_000));
        drop(env.ledger().reserve("a test", env.ledger().free())?);
        assert_eq!(kept.stored().missing, 1);
        assert_eq!(env.run(&kept.clone().count().first())?, Some(1_000));
        assert_eq!(calls.load(Ordering::Relaxed), 2_000);
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_partition_that_is_damaged_on_disk_is_an_error_once_and_computed_again_then() {
    let folder = tempfile::tempdir().unwrap();
    let kept = generate(5_000, |n| n).persist(Level::Disk);
    let config = Config {
        progress: false,
        spill: dataflow::spill::Config {
            directories: vec![folder.path().to_owned()],
            ..Default::default()
        },
        ..executors(1)
    };
    let count = || updraft::run(config.clone(), |env| env.run(&kept.clone().count().first()));
    assert_eq!(count().unwrap(), Some(5_000));
    // The file has no name, but it is open.
    let ours = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let ours = ours
        .map(|entry| entry.path())
        .find(|open| std::fs::read_link(open).is_ok_and(|file| file.starts_with(folder.path())));
    let file = std::fs::File::options()
        .write(true)
        .open(ours.unwrap())
        .unwrap();
    file.write_all_at(b"!", 1_000).unwrap();
    let error = count().unwrap_err();
    assert!(
        matches!(
            &error,
            updraft::Error::Dataflow(Error::SpillDamaged {
                holder: "persist",
                ..
            })
        ),
        "{error}"
    );
    assert_eq!(count().unwrap(), Some(5_000));
    assert_eq!(kept.stored().on_disk, 1);
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
fn what_persists_is_computed_in_the_first_run_of_a_job_that_repeats_itself() {
    for level in [Level::Memory, Level::MemoryAndDisk, Level::Disk] {
        for executors_in_all in 1..=3 {
            let calls = Arc::new(AtomicU64::new(0));
            let (counted, bound) = (calls.clone(), Variable::new(1u64));
            let kept = generate(1000, |n| n)
                .map(move |n| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    n
                })
                .persist(level);
            let job = kept
                .clone()
                .filter_with(&bound, |n, bound| n % bound == 0)
                .exchange_by_hash()
                .count()
                .first();
            let found = updraft::run(executors(executors_in_all), |env| {
                env.repeat(&job, Vec::new(), move |found, count| {
                    let tried = *bound.get();
                    found.push(count);
                    if tried == 5 {
                        kept.unpersist();
                    }
                    bound.set(tried + 1);
                    Ok(tried < 20)
                })
            });
            let expected: Vec<_> = (1..=20)
                .map(|bound| Some(1000u64.div_ceil(bound)))
                .collect();
            assert_eq!(found.unwrap(), expected, "{level:?}");
            // Once for the runs in which it was kept, and in each of the 15 after that.
            assert_eq!(calls.load(Ordering::Relaxed), 16 * 1000, "{level:?}");
        }
    }
}

#[test]
fn what_goes_wrong_between_two_runs_ends_the_job() {
    for (last, said) in [(13, "thirteen"), (14, "fourteen")] {
        let error = counts(2, last).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn every_run_of_a_repeated_graph_gives_what_it_would_by_itself() {
    for executors_in_all in 1..=3 {
        let shift = Variable::new(0u64);
        let seen = Accumulator::new();
        let count = seen.clone();
        let pairs = generate(500, |n| (n % 23, n))
            .map_with(&shift, |(key, n), shift| (key, n ^ shift))
            .exchange_by_key();
        let sums = pairs.clone().reduce_by_key(|a, b| a.wrapping_add(b));
        let joined = sums.clone().join(pairs.clone());
        let job = (joined.map(|(key, (sum, n))| (key, sum, n)))
            .sort_by(|row| row)
            .map(move |row| {
                count.add(1);
                row
            })
            .collect()
            .and(pairs.clone().map(|(_, n)| n).distinct().count().collect())
            .and(
                pairs
                    .map(|(_, n)| n)
                    .round_robin()
                    .top_n(3, |n| n)
                    .collect(),
            )
            .and(sums.union(generate(3, |n| (n, n))).collect().then(sorted))
            .with_total(&seen);
        let by_itself = |value: u64| {
            shift.set(value);
            inline(&job).unwrap()
        };
        let expected: Vec<_> = (0..8).map(by_itself).collect();
        shift.set(0);
        let found = updraft::run(executors(executors_in_all), move |env| {
            env.repeat(&job, Vec::new(), move |found, result| {
                found.push(result);
                shift.set(found.len() as u64);
                Ok(found.len() < 8)
            })
        });
        assert!(found.unwrap() == expected, "{executors_in_all} executors");
    }
}
