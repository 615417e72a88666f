//! Stages that were written are read by programs that are started again, if they are what was written.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use dataflow::{Checkpointed, Error, Pass, TSet, collection, generate, inline};
use proptest::{prelude::*, sample::Index};
use updraft::Config;

use crate::{
    cluster::{Cluster, cluster, instances, sorted},
    support::long::often,
};

type Written = TSet<Checkpointed<(u64, String)>, Pass>;

/// The stage that is written, and how often its function was called.
fn stage(folder: &Path, words: &[String], instances: u32) -> (Written, Arc<AtomicU64>) {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let pairs = collection(words.to_vec()).map(move |word| {
        counted.fetch_add(1, Ordering::Relaxed);
        (word.len() as u64, word.to_owned())
    });
    let pairs = pairs.exchange_by_key().parallelism(instances);
    (pairs.checkpoint(folder), calls)
}

/// The files of a checkpoint.
fn files(folder: &Path) -> Vec<PathBuf> {
    let generations = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = generations.flat_map(|generation| fs::read_dir(generation).unwrap());
    sorted(files.map(|entry| entry.unwrap().path()).collect())
}

fn words() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-c]{0,30}", 1..120)
}

fn pairs(words: &[String]) -> Vec<(u64, String)> {
    let pairs = words.iter().map(|word| (word.len() as u64, word.clone()));
    sorted(pairs.collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(often(24, 10_000)))]

    #[test]
    fn a_stage_that_was_written_is_not_computed_again(
        words in words(),
        cluster in cluster(),
        instances in instances(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let given = |instances| {
            let (stage, calls) = stage(folder.path(), &words, instances);
            // Twice in the same program, and then as if it was started again.
            let first = cluster.run(&stage.clone().collect()).unwrap();
            let again = cluster.run(&stage.clone().join(stage.map(|(key, _)| (key, ())).distinct()).collect());
            let again = again.unwrap().into_iter().map(|(key, (word, ()))| (key, word)).collect();
            assert_eq!((sorted(first), sorted(again)), (pairs(&words), pairs(&words)));
            calls.load(Ordering::Relaxed)
        };
        let all = words.len() as u64;
        prop_assert_eq!((given(instances), given(instances)), (all, 0));
        // Another division is another generation, and the one before it is gone when that is used.
        prop_assert_eq!((given(instances + 1), given(instances + 1)), (all, 0));
        prop_assert_eq!(files(folder.path()).len() as u32, instances + 2);
        prop_assert_eq!(given(instances), all);
    }

    #[test]
    fn whatever_is_damaged_is_found_and_computed_again(
        words in words(),
        cluster in cluster(),
        instances in 1u32..4,
        (which, at, bits, how) in (any::<Index>(), any::<Index>(), 1u8.., 0..4),
    ) {
        let folder = tempfile::tempdir().unwrap();
        cluster.run(&stage(folder.path(), &words, instances).0.collect()).unwrap();
        let files = files(folder.path());
        prop_assert_eq!(files.len() as u32, instances + 1);
        let file = which.get(&files);
        let mut bytes = fs::read(file).unwrap();
        let at = at.index(bytes.len());
        match how {
            0 => bytes[at] ^= bits,
            1 => bytes.truncate(at),
            2 => bytes.insert(at, bits),
            _ => bytes.clear(),
        }
        match how {
            3 => fs::remove_file(file).unwrap(),
            _ => fs::write(file, bytes).unwrap(),
        }
        let (stage, calls) = stage(folder.path(), &words, instances);
        let found = cluster.run(&stage.collect()).unwrap();
        prop_assert_eq!(sorted(found), pairs(&words));
        prop_assert_eq!(calls.load(Ordering::Relaxed), words.len() as u64);
    }
}

const CLUSTER: Cluster = Cluster {
    seed: 1,
    size: 2,
    executors: 1,
    arena_bytes: 1 << 20,
    memory_bytes: 1 << 30,
};

#[test]
fn a_part_of_another_generation_is_not_taken_for_one_of_this() {
    let folder = tempfile::tempdir().unwrap();
    let words = |word: &str| vec![word.to_owned(); 50];
    CLUSTER
        .run(&stage(folder.path(), &words("a"), 2).0.collect())
        .unwrap();
    let part = folder.path().join("generation-00000001/part-00001");
    let old = fs::read(&part).unwrap();
    fs::remove_file(&part).unwrap();
    CLUSTER
        .run(&stage(folder.path(), &words("b"), 2).0.collect())
        .unwrap();
    let part = folder.path().join("generation-00000002/part-00001");
    assert!(part.exists());
    fs::write(part, old).unwrap();
    let found = CLUSTER
        .run(&stage(folder.path(), &words("c"), 2).0.collect())
        .unwrap();
    assert_eq!(sorted(found), pairs(&words("c")));
}

#[test]
fn another_stage_in_the_folder_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let numbers = || generate(10, |n| n);
    inline(&numbers().checkpoint(folder.path()).collect()).unwrap();
    let error = inline(
        &numbers()
            .filter(|_| true)
            .checkpoint(folder.path())
            .collect(),
    )
    .unwrap_err();
    let Error::CheckpointOfOther { theirs, ours, .. } = &error else {
        panic!("{error}")
    };
    assert!(
        ours.contains("filter") && !theirs.contains("filter"),
        "{error}"
    );
    // Neither is the other touched.
    inline(&numbers().checkpoint(folder.path()).collect()).unwrap();
}

#[test]
fn what_is_not_read_to_its_end_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let words: Vec<_> = (0..20_000).map(|n| format!("{n:>200}")).collect();
    let (stage, _) = stage(folder.path(), &words, 2);
    assert_eq!(
        CLUSTER.run(&stage.clone().take(3).collect()).unwrap().len(),
        3
    );
    assert!(files(folder.path()).len() < 3);
    assert_eq!(CLUSTER.run(&stage.count().collect()).unwrap(), [20_000]);
}

/// What tells the child process of the next test where it works.
const FOLDER: &str = "UPDRAFT_TEST_CHECKPOINT";
const NUMBERS: u64 = 40_000;

/// Sums up squares that take their time, in two stages that are written.
fn child(folder: &Path) {
    let config = Config {
        executors: Some(2),
        progress: false,
        pin: false,
        ..Config::default()
    };
    let sum = updraft::run(config, |env| {
        let slowly = |n: u64| {
            if n.is_multiple_of(400) {
                thread::sleep(Duration::from_millis(2));
            }
        };
        let squares = generate(NUMBERS, |n| n).map(move |n| {
            slowly(n);
            (n % 7, n * n)
        });
        let squares = squares.exchange_by_key().checkpoint(folder.join("squares"));
        let halves = squares.map(move |(key, square)| {
            slowly(square / 400);
            (key, square / 2)
        });
        let halves = halves
            .reduce_by_key(|a, b| a + b)
            .checkpoint(folder.join("sums"));
        env.run(&halves.map(|(_, sum)| sum).reduce(|a, b| a + b).first())
    });
    println!("answer: {:?}", sum.unwrap());
}

#[test]
fn a_program_that_is_killed_at_any_time_and_started_again_gives_the_same() {
    if let Ok(folder) = std::env::var(FOLDER) {
        return child(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let expected: u64 = (0..NUMBERS).map(|n| n * n / 2).sum();
    let mut kills = 0;
    for turn in 0.. {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("checkpoints::a_program_that_is_killed_at_any_time_and_started_again_gives_the_same")
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // A little longer each time, so that it is killed in every stage, and ends at last.
        let deadline = Instant::now() + Duration::from_millis(20 + 45 * turn);
        while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if child.try_wait().unwrap().is_none() {
            kills += 1;
        }
        child.kill().unwrap(); // SIGKILL
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some(answer) = text.lines().find_map(|line| line.split("answer: ").nth(1)) {
            assert_eq!(answer, format!("Some({expected})"));
            break;
        }
        assert!(turn < 60, "it never ends");
    }
    assert!(kills > 0);
    let squares = folder.path().join("squares");
    assert!(squares.exists());
}
