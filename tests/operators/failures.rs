//! Functions of the program that fail: the error says where and with what, and the job ends.

use dataflow::{Error, Job, collection, generate, lines_of, one_line};
use proptest::prelude::*;
use updraft::Config;

use crate::{
    cluster::{Cluster, cluster, instances},
    support::long::often,
};

/// What a job fails with.
fn failure<R: Default + std::fmt::Debug>(cluster: Cluster, job: &Job<R>) -> Facts {
    match cluster.run(job).unwrap_err() {
        Error::Function {
            operator,
            task,
            instance,
            record,
            source,
        } => Facts {
            operator,
            task,
            instance,
            record,
            cause: source.to_string(),
        },
        error => panic!("{error}"),
    }
}

#[derive(Debug)]
struct Facts {
    operator: String,
    task: String,
    instance: u32,
    record: String,
    cause: String,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(32, 10_000)))]

    #[test]
    fn a_failure_names_operator_instance_and_record(
        len in 1u64..5_000,
        bad in any::<prop::sample::Index>(),
        cluster in cluster(),
        m in instances(),
    ) {
        let bad = bad.index(len as usize) as u64;
        let job = collection((0..len).collect())
            .parallelism(m)
            .filter(|_| true)
            .try_map(move |n| if n == bad { Err(format!("{n} is bad")) } else { Ok(n) })
            .exchange_by_hash()
            .collect();
        let facts = failure(cluster, &job);
        prop_assert_eq!(facts.record, format!("item {bad} of the collection"));
        prop_assert_eq!(facts.cause, format!("{bad} is bad"));
        prop_assert!(facts.operator.starts_with("try_map at tests/operators/failures.rs:"), "{}", facts.operator);
        prop_assert_eq!(&facts.task, &format!("collection of {len} > filter > try_map > exchange_by_hash"));
        let cut = |instance: u32| len * u64::from(instance) / u64::from(m);
        prop_assert!((cut(facts.instance)..cut(facts.instance + 1)).contains(&bad));
    }

    #[test]
    fn a_failure_behind_an_exchange_names_who_sent_the_record(
        len in 1u64..3_000,
        cluster in cluster(),
    ) {
        let job = collection((0..len).collect())
            .gather()
            .try_flat_map(|n, out| {
                out.push(n);
                if n == 0 { Err("none at all") } else { Ok(()) }
            })
            .collect();
        let facts = failure(cluster, &job);
        // The first record of the first rank that had any.
        prop_assert!(facts.record.starts_with("record 1 in a batch of "), "{}", facts.record);
        let from = (0..cluster.size).position(|rank| len * u64::from(rank + 1) / u64::from(cluster.size) > 0);
        prop_assert!(facts.record.ends_with(&format!("from rank {}", from.unwrap())), "{}", facts.record);
        prop_assert_eq!(facts.instance, 0);
    }
}

#[test]
fn a_failure_names_the_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "1\n22\nthree\n4\n").unwrap();
    let job = lines_of(vec![file.path().to_owned()])
        .unwrap()
        .try_for_each(|line| line.parse::<u64>().map(drop));
    for size in 1..5 {
        let cluster = Cluster {
            seed: 1,
            size,
            executors: 1,
            arena_bytes: 1 << 20,
            memory_bytes: 1 << 30,
        };
        let facts = failure(cluster, &job);
        assert_eq!(facts.record, format!("line 3 of {}", file.path().display()));
        assert_eq!(facts.cause, "invalid digit found in string");
    }
}

#[test]
fn no_function_is_called_again_after_it_has_failed() {
    let mut calls = 0;
    let job = collection((0..100u64).collect())
        .flat_map(|n, out| {
            for _ in 0..3 {
                out.push(n);
            }
        })
        .try_map(move |n| {
            calls += 1;
            assert!(calls <= 31, "it was called after its failure");
            if n == 10 { Err("ten") } else { Ok(n) }
        })
        .collect();
    let error = dataflow::inline(&job).unwrap_err();
    assert!(
        one_line(&error).ends_with("item 10 of the collection: ten"),
        "{error}"
    );
}

/// What a job of so many executors says that panics.
fn panic_of<R>(executors: u32, job: &Job<R>) -> String {
    let config = Config {
        executors: Some(executors),
        progress: false,
        ..Config::default()
    };
    let error = updraft::run(config, |env| env.run(job).map(drop)).unwrap_err();
    assert!(matches!(error, updraft::Error::Panicked { .. }), "{error}");
    error.to_string()
}

fn is_not_seven(n: u64) -> bool {
    assert_ne!(n, 7, "seven");
    true
}

/// Item 7 of 10 is in the share of the second of two instances.
#[test]
fn a_panic_is_told_with_the_operator_its_line_and_its_instance() {
    let ten = || collection((0..10u64).collect());
    let line = line!() + 3;
    let in_the_middle = ten()
        .map(|n| n)
        .filter(is_not_seven)
        .named("not seven")
        .map_partition((), |(), n, out| out.push(n), |(), _| ())
        .exchange_by_hash()
        .collect();
    let error = panic_of(2, &in_the_middle);
    let expected = format!(
        "rank 1 panicked in not seven at tests/operators/failures.rs:{line}:10 in instance 1 of task \
         \"collection of 10 > map > not seven > map_partition > exchange_by_hash\": assertion `left != right` failed: seven"
    );
    assert!(error.starts_with(&expected), "{error}");

    let at_the_end = ten().map(|n| n).for_each(|n| {
        is_not_seven(n);
    });
    let error = panic_of(2, &at_the_end);
    let expected =
        "rank 1 panicked in for_each in instance 1 of task \"collection of 10 > map > for_each\": ";
    assert!(error.starts_with(expected), "{error}");

    let at_the_start = generate(10, is_not_seven)
        .boxed()
        .filter(|_| true)
        .collect();
    let error = panic_of(2, &at_the_start);
    let expected =
        "rank 1 panicked in generate 10 in instance 1 of task \"generate 10 > filter > collect\": ";
    assert!(error.starts_with(expected), "{error}");

    // A type that is forgotten is no place to lose a name in.
    let line = line!() + 1;
    let boxed = ten().filter(is_not_seven).boxed().map(|n| n).collect();
    let error = panic_of(2, &boxed);
    let expected = format!(
        "rank 1 panicked in filter at tests/operators/failures.rs:{line}:23 in instance 1 "
    );
    assert!(error.starts_with(&expected), "{error}");

    // Where the sum is over seven depends on where keys are; who adds up last does so on one instance.
    let sum = |sum: u64, n| if is_not_seven(sum) { sum + n } else { 0 };
    let reduced = ten()
        .map(|_| (1u64, 1u64))
        .gather()
        .exchange_by_key()
        .reduce_by_key(sum);
    let error = panic_of(2, &reduced.collect());
    assert!(
        error.contains(" panicked in reduce_by_key in instance ")
            || error.contains(" panicked in after reduce_by_key in instance "),
        "{error}"
    );
}

#[test]
fn a_failure_ends_the_job_in_all_threads() {
    let job = collection((0..1_000_000u64).collect())
        .exchange_by_hash()
        .try_map(|n| if n == 777_777 { Err("no luck") } else { Ok(n) })
        .exchange_by_hash()
        .count()
        .collect();
    let config = Config {
        executors: Some(4),
        progress: false,
        ..Config::default()
    };
    let error = updraft::run(config, |env| env.run(&job)).unwrap_err();
    let line = one_line(&error);
    assert!(
        line.starts_with("try_map at ") && line.ends_with(": no luck"),
        "{line}"
    );
}
