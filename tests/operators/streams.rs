//! What streams promise: that windows, running results and interval joins give what a plain reference gives, whatever
//! the order of times, and that what has no end can be stopped.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use dataflow::{
    Accumulator, Error, GraphBuilder, Job, Level, Progress, Stop, Window, Windows, channel,
    collection, generate, generate_unbounded, inline, schedule::Task, simulate,
};
use proptest::prelude::*;
use updraft::Config;

use crate::{
    cluster::{Cluster, cluster, holder, instances, sorted},
    support::long::often,
};

/// A key, and a value with the time when it happened.
type Event = (u64, (i64, u64));

/// A key, and what was made of its values in a window.
type Given<T> = (u64, (Window, T));

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = (0u64..4, (-40i64..160, 0u64..100));
    prop_oneof![
        prop::collection::vec(event.clone(), 0..150),
        // In the order of time, but for some that are a little late.
        (prop::collection::vec(event, 0..150), 0i64..12).prop_map(|(mut events, jitter)| {
            events.sort_by_key(|&(_, (time, value))| time + value as i64 % (jitter + 1));
            events
        }),
    ]
}

/// How much earlier an event is than one before it.
fn disorder(events: &[Event]) -> i64 {
    let mut latest = i64::MIN;
    let mut most = 0;
    for &(_, (time, _)) in events {
        latest = latest.max(time);
        most = most.max(latest - time);
    }
    most
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Sliding(i64, i64),
    Session(i64),
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        (1i64..40).prop_map(|size| Shape::Sliding(size, size)),
        (1i64..40, 1i64..40).prop_map(|(size, step)| Shape::Sliding(size, step)),
        (1i64..30).prop_map(Shape::Session),
    ]
}

impl Shape {
    fn windows(self) -> Windows {
        match self {
            Self::Sliding(size, step) if size == step => Windows::tumbling(size),
            Self::Sliding(size, step) => Windows::sliding(size, step),
            Self::Session(gap) => Windows::session(gap),
        }
    }

    /// The values of each key in each window.
    fn reference(self, events: &[Event]) -> BTreeMap<(u64, Window), Vec<u64>> {
        let mut windows = BTreeMap::<_, Vec<u64>>::new();
        match self {
            Self::Sliding(size, step) => {
                for start in (-400..400).filter(|start| start % step == 0) {
                    for &(key, (time, value)) in events {
                        if (start..start + size).contains(&time) {
                            windows
                                .entry((key, (start, start + size)))
                                .or_default()
                                .push(value);
                        }
                    }
                }
            }
            Self::Session(gap) => {
                let mut events = events.to_vec();
                events.sort_by_key(|&(key, (time, _))| (key, time));
                let mut open: Option<(u64, Window, Vec<u64>)> = None;
                for (key, (time, value)) in events {
                    match &mut open {
                        Some((of, (_, end), values)) if *of == key && time < *end => {
                            *end = time + gap;
                            values.push(value);
                        }
                        _ => {
                            let before = open.replace((key, (time, time + gap), vec![value]));
                            windows.extend(
                                before.map(|(key, window, values)| ((key, window), values)),
                            );
                        }
                    }
                }
                windows.extend(open.map(|(key, window, values)| ((key, window), values)));
            }
        }
        windows
    }

    fn sums(self, events: &[Event]) -> Vec<Given<(u64, u64)>> {
        let windows = self.reference(events).into_iter();
        let sums = windows.map(|((key, window), values)| {
            (key, (window, (values.len() as u64, values.iter().sum())))
        });
        sums.collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(96, 10_000)))]

    #[test]
    fn windows_give_what_their_definition_says(
        events in events(),
        shape in shape(),
        lateness in 0i64..10,
        cluster in cluster(),
        (m, n, o) in (instances(), instances(), instances()),
        has_time in any::<bool>(),
    ) {
        let expected = shape.sums(&events);
        let windows = shape.windows().lateness(lateness);
        let (out_of_order, late) = (disorder(&events), Accumulator::new());
        let events = collection(events).parallelism(m);
        if has_time {
            // Time passes through an exchange, narrow operators and a union.
            let events = events.watermarks(out_of_order, |(_, (time, _))| time).round_robin().parallelism(n);
            let (even, odd) = (events.clone().filter(|(key, _)| key % 2 == 0), events.filter(|(key, _)| key % 2 == 1));
            let sums = even
                .union(odd)
                .window_by_key(windows, |(time, _)| time)
                .aggregate(|of| (of.count(), of.sum(|(_, value)| value)))
                .count_late(&late)
                .parallelism(o);
            cluster.gives(&sums.clone().collect(), expected);
            let job = sums.collect().with_total(&late);
            prop_assert_eq!(simulate(&job, cluster.seed, 3, 2).unwrap().1, 0);
        } else {
            let sums = events
                .window_by_key(windows, |(time, _)| time)
                .one_by_one()
                .aggregate(|of| (of.count(), of.sum(|(_, value)| value)))
                .parallelism(o);
            cluster.gives(&sums.collect(), expected);
        }
    }

    #[test]
    fn values_that_are_combined_before_they_travel_give_the_same(
        events in events(),
        shape in shape(),
        (lateness, out_of_order) in (prop_oneof![Just(0i64), 0i64..10], 0i64..5),
        cluster in cluster(),
        (m, n) in (instances(), instances()),
        rate in 1e4f64..1e6,
    ) {
        let late = Accumulator::new();
        let sums = |out_of_order| {
            // They come a few at a time, so that event time goes on in between.
            let list = events.clone();
            generate(list.len() as u64, move |n| list[n as usize])
                .per_second(rate)
                .parallelism(m)
                .watermarks(out_of_order, |(_, (time, _))| time)
                .window_by_key(shape.windows().lateness(lateness), |(time, _)| time)
                .aggregate(|of| (of.count(), of.sum(|(_, value)| value)))
                .count_late(&late)
                .parallelism(n)
        };
        let job = sums(disorder(&events)).collect().with_total(&late);
        let (found, dropped) = cluster.run(&job).unwrap();
        prop_assert_eq!(sorted(found), sorted(shape.sums(&events)));
        prop_assert_eq!(dropped, 0);
        // Nothing is lost without a count, also if much is late.
        if let (Shape::Sliding(size, step), 0) = (shape, lateness) && size == step {
            let (found, dropped) = cluster.run(&sums(out_of_order).collect().with_total(&late)).unwrap();
            let counted: u64 = found.iter().map(|(_, (_, (count, _)))| count).sum();
            prop_assert_eq!(counted + dropped, events.len() as u64);
        }
    }

    #[test]
    fn what_is_late_is_left_out_and_all_else_is_counted(
        events in events(),
        shape in shape(),
        (out_of_order, lateness) in (0i64..5, prop_oneof![Just(0i64), 0i64..40]),
        cluster in cluster(),
        m in 1u32..4,
    ) {
        let results = collection(events.clone())
            .parallelism(m)
            .watermarks(out_of_order, |(_, (time, _))| time)
            .window_by_key(shape.windows().lateness(lateness), |(time, _)| time)
            .group()
            .with_late();
        for given in [inline(&results.clone().collect()).unwrap(), cluster.run(&results.collect()).unwrap()] {
            let mut left = events.clone();
            let mut windows = BTreeMap::new();
            for record in given {
                match record {
                    (Some((key, (window, values))), None) => {
                        let values: Vec<u64> = values.into_iter().map(|(_, value)| value).collect();
                        let before = windows.insert((key, window), sorted(values));
                        prop_assert!(lateness > 0 || before.is_none(), "given twice");
                    }
                    (None, Some(late)) => {
                        let place = left.iter().position(|event| *event == late);
                        prop_assert!(place.is_some(), "{:?} was no event", late);
                        left.swap_remove(place.unwrap());
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            let expected: BTreeMap<_, _> = shape.reference(&left).into_iter().map(|(at, values)| (at, sorted(values))).collect();
            if let (Shape::Session(_), true) = (shape, lateness > 0) {
                // Sessions that were given and grew later were given before as well, with other bounds.
                for (at, values) in expected {
                    prop_assert_eq!(windows.get(&at), Some(&values), "{:?}", at);
                }
            } else {
                prop_assert_eq!(windows, expected);
            }
        }
    }

    #[test]
    fn windows_of_so_many_are_given_when_they_are_full(
        keys in prop::collection::vec(0u64..4, 0..200),
        (size, step) in (1u64..9, 1u64..9),
        cluster in cluster(),
        m in instances(),
    ) {
        let mut numbers = BTreeMap::<u64, u64>::new();
        for &key in &keys {
            *numbers.entry(key).or_default() += 1;
        }
        let mut expected = Vec::new();
        for (key, number) in numbers {
            for start in (0..number).step_by(step as usize) {
                let end = (start + size).min(number);
                expected.push((key, ((start as i64, end as i64), end - start)));
            }
        }
        let counts = collection(keys)
            .parallelism(m)
            .map(|key| (key, 0i64))
            .window_by_key(Windows::sliding_count(size, step), |time| time)
            .aggregate(|of| of.count());
        cluster.gives(&counts.collect(), expected);
    }

    #[test]
    fn running_results_come_with_each_value(
        pairs in prop::collection::vec((0u64..5, 1u64..9), 0..200),
        cluster in cluster(),
        m in instances(),
    ) {
        let stream = collection(pairs.clone()).parallelism(m);
        let sums = stream.clone().running_reduce_by_key(|a, b| a + b).collect();
        let counts = stream.running_aggregate_by_key(|of| of.count()).collect();
        let (sums, counts) = (cluster.run(&sums).unwrap(), cluster.run(&counts).unwrap());
        let mut totals = BTreeMap::<u64, (u64, u64)>::new();
        for (key, value) in pairs {
            let total = totals.entry(key).or_default();
            *total = (total.0 + 1, total.1 + value);
        }
        for (&key, &(count, total)) in &totals {
            let of_key: Vec<u64> = sums.iter().filter(|(of, _)| *of == key).map(|(_, sum)| *sum).collect();
            prop_assert!(of_key.is_sorted());
            prop_assert_eq!((of_key.len() as u64, of_key.last()), (count, Some(&total)));
            let of_key: Vec<u64> = counts.iter().filter(|(of, _)| *of == key).map(|(_, count)| *count).collect();
            prop_assert_eq!(of_key, (1..=count).collect::<Vec<_>>());
        }
        prop_assert_eq!(sums.iter().map(|(key, _)| *key).collect::<BTreeSet<_>>(), totals.into_keys().collect());
    }

    #[test]
    fn interval_joins_pair_what_is_near_in_time(
        (left, right) in (events(), events()),
        (lower, length) in (-20i64..20, 0i64..30),
        cluster in cluster(),
        (m, n) in (instances(), instances()),
        has_time in any::<bool>(),
    ) {
        let within = lower..=lower + length;
        let mut expected = Vec::new();
        for (key, own) in &left {
            for (other_key, other) in &right {
                if key == other_key && within.contains(&(other.0 - own.0)) {
                    expected.push((*key, (*own, *other)));
                }
            }
        }
        let (one, two) = (disorder(&left), disorder(&right));
        let (left, right) = (collection(left).parallelism(m), collection(right).parallelism(n));
        if has_time {
            let left = left.watermarks(one, |(_, (time, _))| time);
            let right = right.watermarks(two, |(_, (time, _))| time);
            let pairs = left.interval_join(right, within, |(time, _)| time, |(time, _)| time);
            cluster.gives(&pairs.collect(), expected);
        } else {
            let pairs = left.interval_join(right, within, |(time, _)| time, |(time, _)| time);
            cluster.gives(&pairs.collect(), expected);
        }
    }

    #[test]
    fn windows_of_what_goes_on_close_while_it_does(
        cluster in cluster(),
        (m, n) in (instances(), instances()),
        size in 1i64..50,
        rate in 10.0f64..1e4,
    ) {
        let counts = generate_unbounded(|n| (n % 3, n as i64))
            .per_second(rate)
            .parallelism(m)
            .watermarks(0, |(_, time)| time)
            .window_by_key(Windows::tumbling(size), |time| time)
            .aggregate(|of| of.count())
            .parallelism(n)
            .take(10)
            .collect();
        let counts = cluster.run(&counts).unwrap();
        prop_assert_eq!(counts.len(), 10);
        for (key, ((start, end), count)) in counts {
            prop_assert_eq!(end - start, size);
            prop_assert_eq!(count, (start..end).filter(|n| n % 3 == key as i64).count() as u64);
        }
    }
}

/// A job that ends only if event time of a stream goes on without a channel that is silent.
fn silent_beside_busy(idle_after: Option<Duration>) -> (impl Sized, Job<Vec<Given<u64>>>) {
    let (silent, never) = channel::<(u64, i64)>(1);
    let never = never.watermarks(0, |(_, time)| time);
    let never = match idle_after {
        Some(quiet) => never.idle_after(quiet),
        None => never,
    };
    let busy = generate(1_000, |n| (n % 2, n as i64)).watermarks(0, |(_, time)| time);
    let counts = never
        .union(busy)
        .window_by_key(Windows::tumbling(10), |time| time)
        .aggregate(|of| of.count())
        .take(20)
        .collect();
    (silent, counts)
}

#[test]
fn nobody_waits_for_a_source_that_is_idle() {
    let (_silent, counts) = silent_beside_busy(Some(Duration::from_millis(3)));
    assert!(
        inline(&counts)
            .unwrap()
            .iter()
            .all(|&(_, (_, count))| count == 5)
    );
    for seed in 0..10 {
        let (_silent, counts) = silent_beside_busy(Some(Duration::from_millis(3)));
        let counts = simulate(&counts, seed, 3, 2).unwrap();
        assert!(
            counts.iter().all(|&(_, (_, count))| count == 5),
            "seed {seed}: {counts:?}"
        );
    }
}

fn refusal<R>(job: &Job<R>) -> (String, String) {
    match inline(job) {
        Err(Error::Unbounded { task, input }) => (task, input),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("{} has no end", job.plan()),
    }
}

#[test]
fn who_needs_the_end_of_what_has_none_is_refused_by_name() {
    let numbers = || generate_unbounded(|n| (n % 10, n)).filter(|_| true);
    let (task, input) = refusal(
        &numbers()
            .reduce_by_key(|a, b| a + b)
            .map(|pair| pair)
            .collect(),
    );
    assert_eq!(input, "generate > filter > reduce_by_key");
    assert_eq!(task, "after reduce_by_key > map > collect");
    refusal(&numbers().map(|(_, n)| n).sort().collect());
    refusal(&numbers().count().collect());
    refusal(&numbers().group_by_key().collect());
    refusal(&numbers().top_n(3, |(_, n)| n).collect());
    let table = || generate(9, |n| (n, n));
    let (task, input) = refusal(&numbers().direct().full_join(table()).collect());
    assert_eq!(task, "after full_join > collect");
    assert_eq!(input, "after direct > full_join");
    refusal(&numbers().right_join(table()).collect());
    refusal(&numbers().join(table()).by_merging().collect());
    refusal(&numbers().cogroup(table()).collect());
    refusal(&numbers().join(numbers()).collect());
    for joined in [
        table().join(numbers()).collect(),
        table()
            .left_join(numbers())
            .map(|(key, (left, right))| (key, (left, right.unwrap_or(0))))
            .collect(),
    ] {
        let (_, input) = refusal(&joined);
        assert!(input.starts_with("generate > filter > "), "{input}");
    }
    refusal(&table().semi_join(numbers()).collect());
    refusal(&table().cross_join(numbers()).collect());
    let few = inline(&numbers().map(|(_, n)| n).take(5).sort().collect()).unwrap();
    assert_eq!(few, [0, 1, 2, 3, 4]);

    let mut graph = GraphBuilder::new();
    let mut ticks = graph.task(Task::new("ticks", 1), |_| 0u64);
    let out = ticks.output::<u64>("out");
    ticks.produce(move |next, outputs| {
        outputs.push(out, *next);
        *next += 1;
        Progress::Made
    });
    ticks.unbounded();
    let ticks = ticks.done();
    let sum = ticks.output(out).direct().reduce(|a, b| a + b).collect();
    assert!(matches!(graph.job_with(sum), Err(Error::Unbounded { .. })));
}

#[test]
fn a_function_that_fails_ends_what_would_go_on() {
    let job = generate_unbounded(|n| n)
        .try_map(|n| if n < 5_000 { Ok(n) } else { Err("enough") })
        .exchange_by_hash()
        .for_each(|_| ());
    for seed in 0..often(5, 10_000) {
        let error = simulate(&job, seed, 3, 1).unwrap_err();
        assert!(
            matches!(error, Error::Function { .. } | Error::Remote { .. }),
            "{error}"
        );
    }
}

#[test]
fn what_is_late_together_counts_as_so_many() {
    // Half of them come long after the end of their window, some of one key at a time.
    let late = Accumulator::new();
    let counts = generate(2_000, |n| {
        (n % 3, if n < 1_000 { 10_000 + n as i64 } else { 7 })
    })
    .per_second(1e4)
    .parallelism(1)
    .watermarks(0, |(_, time)| time)
    .window_by_key(Windows::tumbling(10), |time| time)
    .aggregate(|of| of.count())
    .count_late(&late);
    let (found, late) = simulate(&counts.collect().with_total(&late), 1, 3, 2).unwrap();
    let counted: u64 = found.iter().map(|(_, (_, count))| count).sum();
    assert_eq!((counted, late), (1_000, 1_000));
}

#[test]
fn sessions_for_which_there_is_no_memory_say_so() {
    let cluster = Cluster {
        seed: 1,
        size: 2,
        executors: 2,
        arena_bytes: 1 << 20,
        memory_bytes: 16 << 20,
    };
    for windows in [Windows::session(1 << 40), Windows::count(1 << 40)] {
        let numbers = || generate_unbounded(|n| (n, n as i64)).window_by_key(windows, |time| time);
        // Who combines goes on with less memory, and leaves it to the windows to say so.
        let together = numbers().aggregate(|of| of.count()).collect();
        let one_by_one = numbers().one_by_one().aggregate(|of| of.count()).collect();
        for job in [together, one_by_one] {
            let error = cluster.run(&job).unwrap_err();
            assert_eq!(
                holder(&error),
                "aggregate by window and key",
                "{windows:?}: {error}"
            );
        }
    }
}

/// Numbers in threads, until they are stopped: all that were made are counted.
#[test]
fn a_stop_ends_the_sources_and_nothing_is_lost() {
    for paced in [false, true] {
        let (stop, made) = (Stop::new(), Arc::new(AtomicU64::new(0)));
        let (enough, making) = (stop.clone(), made.clone());
        let numbers = generate_unbounded(move |n| {
            making.fetch_add(1, Ordering::Relaxed);
            (n % 7, n as i64)
        });
        let numbers = if paced {
            numbers.per_second(20_000.0)
        } else {
            numbers
        };
        let seen = Arc::new(AtomicU64::new(0));
        let job = numbers
            .watermarks(0, |(_, time)| time)
            .window_by_key(Windows::tumbling(100), |time| time)
            .aggregate(|of| of.count())
            .map(move |(_, (_, count))| {
                if seen.fetch_add(1, Ordering::Relaxed) == 200 {
                    enough.stop();
                }
                count
            })
            .collect()
            .stopped_by(&stop);
        let config = Config {
            executors: Some(2),
            progress: false,
            ..Config::default()
        };
        let counts = updraft::run(config, |env| env.run(&job)).unwrap();
        assert!(counts.len() > 200);
        assert_eq!(counts.iter().sum::<u64>(), made.load(Ordering::Relaxed));
    }
}

#[test]
fn a_stop_on_one_rank_ends_the_sources_of_all() {
    for seed in 0..often(20, 10_000) {
        let stop = Stop::new();
        let enough = stop.clone();
        let job = generate_unbounded(|n| n)
            .per_second(1e6)
            .round_robin()
            .map(move |n| {
                if n == 3_000 {
                    enough.stop();
                }
                n
            });
        let mut numbers = simulate(&job.collect().stopped_by(&stop), seed, 4, 2).unwrap();
        numbers.sort();
        assert!(numbers.len() > 3_000 / 4, "seed {seed}");
        numbers.dedup();
        assert!(numbers.contains(&3_000));
    }
}

/// A record that comes alone does not wait for others, and goes through two exchanges.
#[test]
fn a_record_that_comes_alone_arrives_soon() {
    let (sender, stream) = channel::<u64>(4);
    let (done, arrived) = mpsc::channel();
    let job = stream
        .exchange_by_hash()
        .map(|n| n + 1)
        .exchange_by_hash()
        .for_each(move |n| done.send(n).unwrap());
    let program = thread::spawn(move || {
        let config = Config {
            executors: Some(2),
            progress: false,
            ..Config::default()
        };
        updraft::run(config, |env| env.run(&job))
    });
    let mut longest = Duration::ZERO;
    for n in 0..50 {
        let sent = Instant::now();
        sender.send(n).unwrap();
        let limit = Duration::from_secs(10);
        assert_eq!(arrived.recv_timeout(limit), Ok(n + 1));
        longest = longest.max(sent.elapsed());
        thread::sleep(Duration::from_millis(1));
    }
    // An executor that nobody wakes sleeps for half a second.
    assert!(longest < Duration::from_millis(400), "{longest:?}");
    drop(sender);
    program.join().unwrap().unwrap();
}

#[test]
fn what_has_no_end_says_so_and_time_passes_behind_a_forgotten_type_and_helpers() {
    let numbers = || generate_unbounded(|n| n).boxed().map_blocking(2, |n| n);
    let (task, _) = refusal(&numbers().count().collect());
    assert!(task.contains("count"), "{task}");
    let (_, input) = refusal(&numbers().persist(Level::Memory).collect());
    assert!(input.ends_with("persist"), "{input}");

    // Windows give something before the end only if they learn how far time is: otherwise the memory is soon full.
    let windows = generate_unbounded(|n| n as i64)
        .watermarks(0, |n| n)
        .boxed()
        .map_blocking(2, |n| (n % 2, n))
        .window_by_key(Windows::tumbling(10), |n| n)
        .aggregate(|of| of.count())
        .filter(|(_, (_, count))| count > 0)
        .take(20)
        .count()
        .first();
    let config = Config {
        executors: Some(2),
        memory_bytes: Some(64 << 20),
        progress: false,
        ..Config::default()
    };
    let found = updraft::run(config, |env| env.run(&windows));
    assert_eq!(found.unwrap(), Some(20));
}

/// How far a fast stream is ahead of a slow one at most, as long as both go on.
fn most_ahead(seed: u64, (size, m): (u32, u32), within: Option<i64>) -> i64 {
    const LAST: i64 = 3_000;
    let (at, most) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let stop = Stop::new();
    let (slow_at, enough) = (at.clone(), stop.clone());
    let slow = generate_unbounded(|n| n as i64)
        .per_second(20_000.0)
        .parallelism(m)
        .map(move |time| {
            slow_at.fetch_max(time, Ordering::Relaxed);
            if time >= LAST {
                enough.stop();
            }
            time
        })
        .watermarks(0, |time| time);
    let (ahead, ended) = (most.clone(), stop.clone());
    let fast = generate_unbounded(|n| n as i64)
        .parallelism(m)
        .map(move |time| {
            if !ended.is_stopped() {
                ahead.fetch_max(time - at.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            time
        })
        .watermarks(0, |time| time);
    let both = match within {
        Some(within) => slow
            .align_within(within)
            .union(fast.align_within(within))
            .boxed(),
        None => slow.union(fast).boxed(),
    };
    let job = both.exchange_by_hash().for_each(|_| ()).stopped_by(&stop);
    simulate(&job, seed, size, 2).unwrap();
    most.load(Ordering::Relaxed)
}

#[test]
fn a_fast_source_waits_for_slow_ones_of_all_ranks() {
    for seed in 0..6 {
        let (size, m) = (1 + (seed % 3) as u32, 1 + (seed % 4) as u32);
        let most = most_ahead(seed, (size, m), Some(200));
        // It looks after 64 records of an instance, which are 64 times m apart.
        assert!(most <= 200 + 65 * i64::from(m), "seed {seed}: {most} ahead");
    }
    assert!(
        most_ahead(0, (2, 2), None) > 10_000,
        "there is nothing to wait for"
    );
}

#[test]
fn nobody_waits_for_a_stream_that_is_idle_or_held_by_others() {
    let numbers = || generate_unbounded(|n| (n % 100, (n as i64, format!("{n:>500}"))));
    let time = |(_, (time, _)): (u64, (i64, &str))| time;
    let (_silent, never) = channel::<(u64, (i64, String))>(1);
    let never = never
        .watermarks(0, time)
        .idle_after(Duration::from_millis(3))
        .align_within(10);
    let busy = numbers().watermarks(0, time).align_within(10);
    let job = never.union(busy).take(5_000).collect();
    assert_eq!(inline(&job).unwrap().len(), 5_000);
    // The stream is not read before the table is there, which would wait for it.
    let table = generate(50_000, |n| (n % 100, (n as i64, String::new())));
    let table = table.watermarks(0, time).align_within(10);
    let stream = numbers().watermarks(0, time).align_within(10);
    let job = stream.semi_join(table).take(10).collect();
    assert_eq!(inline(&job).unwrap().len(), 10);
    for seed in 0..3 {
        assert_eq!(simulate(&job, seed, 3, 2).unwrap().len(), 10);
    }
}
