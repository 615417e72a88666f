//! Runs that are cancelled or stand still, functions that take long, sets without types, and numbers for all records.

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use dataflow::{Boxed, Error, Job, Pass, TSet, collection, generate, lines_of, one_line, spill};
use proptest::prelude::*;
use transport::{Arena, Ledger, Simulation};
use updraft::Config;

use crate::{
    cluster::{Cluster, Driven, Spilled, cluster, instances},
    support::long::often,
};

pub(crate) fn executors(executors: u32) -> Config {
    Config {
        executors: Some(executors),
        progress: false,
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(32, 10_000)))]

    #[test]
    fn a_set_that_was_built_in_a_loop_is_what_iterators_give(
        numbers in prop::collection::vec(0u64..1000, 0..200),
        steps in prop::collection::vec((0u8..5, 1u64..6), 0..12),
        cluster in cluster(),
        m in instances(),
    ) {
        let mut set = collection(numbers.clone()).parallelism(m).boxed();
        let mut expected = numbers;
        for (step, by) in steps {
            (set, expected) = match step {
                0 => (set.map(move |n| n + by).boxed(), expected.iter().map(|n| n + by).collect()),
                1 => (set.filter(move |n| n % by != 0).boxed(), expected.into_iter().filter(|n| n % by != 0).collect()),
                2 => (
                    set.flat_map(move |n, out| (0..by % 3).for_each(|more| out.push(n * 3 + more))).boxed(),
                    expected.iter().flat_map(|n| (0..by % 3).map(move |more| n * 3 + more)).collect(),
                ),
                3 => (set.exchange_by_hash().boxed(), expected),
                _ => (
                    set.map_partition((), |(), n, out| out.push(n), |(), _| ()).boxed(),
                    expected,
                ),
            };
        }
        cluster.gives(&set.collect(), expected);
    }

    #[test]
    fn all_records_are_numbered_in_the_order_of_the_instances(
        texts in prop::collection::vec("[a-c]{0,3}|[a-z]{0,40}", 0..300),
        cluster in cluster(),
        (m, n) in (instances(), instances()),
    ) {
        let spread = collection(texts.clone()).parallelism(m).exchange_by_hash().parallelism(n);
        let numbered = spread.with_instance().zip_with_index();
        let mut found = cluster.run(&numbered.collect()).unwrap();
        found.sort();
        let numbers: Vec<_> = found.iter().map(|(number, _)| *number).collect();
        prop_assert_eq!(numbers, (0..texts.len() as u64).collect::<Vec<_>>());
        prop_assert!(found.is_sorted_by_key(|(_, (instance, _))| *instance));
        // In the order that they are in where nothing has changed it.
        let job = collection(texts.clone()).parallelism(m).zip_with_index();
        cluster.gives(&job.collect(), (0..).zip(texts).collect());
    }

    #[test]
    fn helpers_do_what_an_executor_does(
        texts in prop::collection::vec("[a-c]{0,300}", 0..200),
        threads in 1usize..5,
        cluster in cluster(),
    ) {
        let job = collection(texts.clone())
            .flat_map(|text, out| (0..text.len() % 3).for_each(|n| out.push((n as u64, text))))
            .map_blocking(threads, |(n, text)| format!("{n}{text}{text}"))
            .filter(|text| text.len() % 2 == 1)
            .collect();
        let expected = texts.iter().flat_map(|text| (0..text.len() % 3).map(move |n| format!("{n}{text}{text}")));
        let expected: Vec<_> = expected.filter(|text| text.len() % 2 == 1).collect();
        // In their order, also by threads.
        prop_assert_eq!(&cluster.run(&job).unwrap(), &expected);
        if cluster.seed.is_multiple_of(4) {
            prop_assert_eq!(updraft::run(executors(cluster.size), |env| env.run(&job)).unwrap(), expected);
        }
    }
}

#[test]
fn records_that_wait_for_their_numbers_go_to_disk() {
    let cluster = Cluster {
        seed: 3,
        size: 2,
        executors: 1,
        arena_bytes: 1 << 20,
        memory_bytes: (1 << 20) + (900 << 10),
    };
    let wide = generate(20_000, |n| n).map(|n| (n, format!("{n:>90}")));
    let job = wide
        .zip_with_index()
        .filter(|(number, (n, text))| number == n && text.trim().parse::<u64>() == Ok(n));
    let (found, spilled) = cluster
        .run_on(&job.count().collect(), &spill::Config::default())
        .unwrap();
    assert_eq!(found, [20_000]);
    assert!(spilled > 0);
}

#[test]
fn a_failure_of_a_helper_names_the_first_record_that_had_one() {
    for (cluster, threads) in (0..often(20, 10_000)).map(|seed| {
        (
            Cluster {
                seed,
                size: 2,
                executors: 1,
                arena_bytes: 1 << 20,
                memory_bytes: 1 << 30,
            },
            1 + seed as usize % 4,
        )
    }) {
        let job = collection((0..100u64).collect())
            .parallelism(1)
            .try_map_blocking(threads, |n| {
                if n >= 70 {
                    Err(format!("{n} is bad"))
                } else {
                    Ok(n)
                }
            })
            .collect();
        let error = cluster.run(&job).unwrap_err();
        let threaded = updraft::run(executors(2), |env| env.run(&job)).unwrap_err();
        for line in [one_line(&error), one_line(&threaded)] {
            assert!(
                line.starts_with("try_map_blocking at tests/operators/control.rs:"),
                "{line}"
            );
            assert!(
                line.ends_with("record 70 of those that came to it: 70 is bad"),
                "{line}"
            );
        }
    }
    let job = generate(10, |n| n).map_blocking(2, |n| if n == 7 { panic!("seven") } else { n });
    let error = updraft::run(executors(2), |env| env.run(&job.collect())).unwrap_err();
    assert!(
        matches!(&error, updraft::Error::Panicked { message, .. } if message == "seven"),
        "{error}"
    );
}

#[test]
fn helpers_work_at_the_same_time_and_keep_nobody() {
    let rows = generate(16, |n| n).map_blocking(16, |_| thread::sleep(Duration::from_millis(200)));
    // While the calls of one instance are under way, the executor does the work of others.
    let done = Arc::new(AtomicU64::new(0));
    let (count, seen) = (done.clone(), done);
    let waits = generate(1, |n| n).map_blocking(1, move |n| {
        let start = Instant::now();
        while seen.load(Ordering::Relaxed) < 100_000 {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "the executor does nothing else"
            );
            thread::sleep(Duration::from_millis(1));
        }
        n
    });
    let works = generate(100_000, |n| n).map(move |n| {
        count.fetch_add(1, Ordering::Relaxed);
        n
    });
    let job = waits.count().first().and(works.count().first());
    updraft::run(executors(1), |env| {
        let start = Instant::now();
        assert_eq!(env.run(&rows.count().first())?, Some(16));
        let took = start.elapsed();
        assert!(
            took < Duration::from_millis(1600),
            "{took:?} for 16 times 200 ms"
        );
        assert_eq!(env.run(&job)?, (Some(1), Some(100_000)));
        Ok(())
    })
    .unwrap();
}

fn endless(calls: &Arc<AtomicU64>) -> TSet<Boxed<u64>, Pass> {
    let calls = calls.clone();
    let count = move |n| {
        calls.fetch_add(1, Ordering::Relaxed);
        n
    };
    generate(u64::MAX, |n| n)
        .map(count)
        .exchange_by_hash()
        .boxed()
}

#[test]
fn a_run_that_is_cancelled_says_so_on_every_rank() {
    for size in [1, 3] {
        let calls = Arc::new(AtomicU64::new(0));
        let (tell, told) = mpsc::channel();
        let seen = calls.clone();
        let canceller = thread::spawn(move || {
            let controller: updraft::Controller = told.recv().unwrap();
            while seen.load(Ordering::Relaxed) < 10_000 {
                thread::yield_now();
            }
            controller.cancel("enough is enough");
            Instant::now()
        });
        let job = endless(&calls).count().first();
        let error = updraft::run(executors(size), |env| {
            tell.send(env.controller()).unwrap();
            let error = env.run(&job).unwrap_err();
            // Nothing is run after that.
            env.run(&generate(10, |n| n).count().first()).unwrap_err();
            Err::<(), _>(error)
        })
        .unwrap_err();
        let cancelled = canceller.join().unwrap();
        assert!(cancelled.elapsed() < Duration::from_secs(2));
        let updraft::Error::Dataflow(Error::Cancelled { by, reason }) = &error else {
            panic!("{error}")
        };
        assert_eq!(
            (by.as_str(), reason.as_str()),
            ("worker 0", "enough is enough")
        );
        assert_eq!(error.exit_code(), 11);
    }
}

/// What a counter says once it has not moved for a while.
pub(crate) fn settled(counter: &AtomicU64) -> u64 {
    let start = Instant::now();
    let mut last = counter.load(Ordering::Relaxed);
    loop {
        thread::sleep(Duration::from_millis(50));
        let now = counter.load(Ordering::Relaxed);
        if now == last {
            return now;
        }
        last = now;
        assert!(start.elapsed() < Duration::from_secs(10), "it goes on");
    }
}

#[test]
fn a_run_that_stands_still_calls_no_function_and_goes_on_when_it_may() {
    const ALL: u64 = 2_000_000;
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let job = generate(ALL, |n| n)
        .map(move |n| {
            counted.fetch_add(1, Ordering::Relaxed);
            n
        })
        .exchange_by_hash()
        .count()
        .first();
    let count = updraft::run(executors(2), |env| {
        let controller = env.controller();
        controller.pause();
        let seen = calls.clone();
        let paused = controller.clone();
        let resumer = thread::spawn(move || {
            // It does not begin, and stands still again in its midst.
            thread::sleep(Duration::from_millis(100));
            assert_eq!(seen.load(Ordering::Relaxed), 0);
            for _ in 0..5 {
                let before = seen.load(Ordering::Relaxed);
                paused.resume();
                while seen.load(Ordering::Relaxed) < before + 10_000 {
                    thread::yield_now();
                }
                paused.pause();
                let still = settled(&seen);
                assert!(still < ALL, "it has gone on to its end");
            }
            paused.resume();
        });
        let count = env.run(&job)?;
        resumer.join().unwrap();
        assert!(!controller.is_paused());
        Ok(count)
    });
    assert_eq!(count.unwrap(), Some(ALL));
}

/// Three ranks of one process each, over a network.
fn three(seed: u64, job: &Job<Option<u64>>) -> (Simulation, Vec<Driven>) {
    let network = Simulation::new(seed, 3);
    let ranks = (0..3).map(|rank| {
        let ledger = Ledger::new(1 << 30);
        let fabric = network.fabric(rank, &Arena::new(&ledger, 1 << 20).unwrap());
        let counters = Rc::new(Spilled::default());
        Driven::new(fabric, 1, &ledger, counters, &spill::Config::default(), job).unwrap()
    });
    let ranks = ranks.collect();
    (network, ranks)
}

#[test]
fn every_rank_over_a_network_learns_that_a_run_stands_still_or_is_cancelled() {
    for seed in 0..often(20, 10_000) {
        let calls = Arc::new(AtomicU64::new(0));
        let job = endless(&calls).count().first();
        let (network, mut ranks) = three(seed, &job);
        let turns = |ranks: &mut Vec<Driven>, number: usize| {
            for _ in 0..number {
                let rank = network.draw(3) as usize;
                ranks[rank].turn().unwrap();
                network.advance();
            }
        };
        turns(&mut ranks, 300);
        for rank in [0, 2] {
            ranks[rank].run.pause(true);
        }
        turns(&mut ranks, 300);
        let still = calls.load(Ordering::Relaxed);
        ranks[2].run.pause(false);
        turns(&mut ranks, 300);
        assert_eq!(
            calls.load(Ordering::Relaxed),
            still,
            "seed {seed}: one of two still wants so"
        );
        ranks[0].run.pause(false);
        turns(&mut ranks, 300);
        assert!(calls.load(Ordering::Relaxed) > still);

        let error = ranks[1].run.cancel("worker 1", "of seed");
        assert_eq!(error.to_string(), "worker 1 cancelled the run: of seed");
        for rank in [0, 2] {
            let error = (0..1_000).find_map(|_| {
                network.advance();
                ranks[rank].turn().err()
            });
            assert!(
                matches!(&error, Some(Error::Cancelled { by, reason }) if by == "worker 1" && reason == "of seed"),
                "seed {seed}: {error:?}"
            );
        }
    }
}

#[test]
fn what_pauses_or_ends_a_run_is_heard_before_the_records_that_came_before_it() {
    for seed in 0..often(20, 10_000) {
        let calls = Arc::new(AtomicU64::new(0));
        let counted = calls.clone();
        let late = generate(u64::MAX, |n| n).exchange_by_hash().map(move |n| {
            counted.fetch_add(1, Ordering::Relaxed);
            n
        });
        let job = late.count().first();
        let (network, mut ranks) = three(seed, &job);
        // The first takes nothing in until the others have filled all room on their way to it.
        let fill = |ranks: &mut Vec<Driven>| {
            let (mut last, mut same) = (u64::MAX, 0);
            while same < 300 {
                network.advance();
                for rank in [1, 2] {
                    ranks[rank].turn().unwrap();
                }
                let now = calls.load(Ordering::Relaxed);
                same = if now == last { same + 1 } else { 0 };
                last = now;
            }
            last
        };
        let before = fill(&mut ranks);
        ranks[1].run.pause(true);
        fill(&mut ranks);
        ranks[0].turn().unwrap();
        let waiting: u64 = ranks[0].crossed.values().sum();
        assert!(
            waiting > 1,
            "seed {seed}: only {waiting} batches came before"
        );
        assert_eq!(calls.load(Ordering::Relaxed), before, "seed {seed}");

        ranks[1].run.pause(false);
        fill(&mut ranks);
        ranks[2].run.cancel("worker 2", "of seed");
        for _ in 0..300 {
            network.advance();
        }
        let before = calls.load(Ordering::Relaxed);
        let error = ranks[0].turn().unwrap_err();
        assert!(
            matches!(error, Error::Cancelled { .. }),
            "seed {seed}: {error}"
        );
        assert_eq!(calls.load(Ordering::Relaxed), before, "seed {seed}");
    }
}

#[test]
fn a_loop_and_a_run_that_stands_still_can_be_cancelled() {
    let error = updraft::run(executors(2), |env| {
        let controller = env.controller();
        controller.pause();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            controller.cancel("no more");
        });
        env.run(&generate(10, |n| n).count().first())
    })
    .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("worker 0 cancelled the run: no more"),
        "{error}"
    );
    let error = updraft::run(executors(2), |env| {
        let numbers = env.run(&generate(10, |n| n).cache())?;
        let controller = env.controller();
        env.iterate(
            &numbers,
            0u64,
            |_| false,
            move |_, round| {
                if round.number == 100 {
                    controller.cancel("no more");
                }
                Ok(0.0)
            },
        )
    })
    .unwrap_err();
    assert!(error.to_string().contains("no more"), "{error}");
}

#[test]
fn a_failure_names_the_line_wherever_its_part_begins() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut text: String = (0..5_000).map(|n| format!("{n}\n")).collect();
    text.push_str("bad\n7\n");
    std::fs::write(file.path(), text).unwrap();
    for size in 1..5 {
        let cluster = Cluster {
            seed: 1,
            size,
            executors: 1,
            arena_bytes: 1 << 20,
            memory_bytes: 1 << 30,
        };
        let lines = lines_of(vec![file.path().to_owned()]).unwrap();
        let job = lines.try_for_each(|line| line.parse::<u64>().map(drop));
        let error = cluster.run(&job).unwrap_err();
        let named = format!("line 5001 of {}", file.path().display());
        assert!(one_line(&error).contains(&named), "{error}");
    }
}
