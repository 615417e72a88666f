//! What a job of several worker processes does with cancelling and pausing, with what is kept, and with operators that a
//! program drives: the same as one process, over shared memory and over TCP.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use collectives::{Group, op::Sum};
use dataflow::{Boxed, Level, Operator, Pass, Sent, TSet, Two, collection, generate, one_line};
use updraft::{Config, Env, Error};

use crate::{
    control::settled,
    support::{Folder, Launch, PATIENCE, command},
};

/// Says which part a worker has, and where the workers leave what the others wait for.
const ROLE: &str = "UPDRAFT_TEST_ROLE";
const FOLDER: &str = "UPDRAFT_TEST_FOLDER";
/// Stands before what a worker has to say.
const SAYS: &str = "SAYS ";
/// Rounds, or calls, after which a worker cancels.
const UNDER_WAY: u64 = 100;

type Pair = (u64, u64);

/// Runs the workers of a job that all play this part.
fn launch(role: &str, way: &[&str], folder: &Folder) -> Launch {
    let mut job = command();
    job.arg("run").args(way).arg("--");
    job.arg(env::current_exe().unwrap());
    job.args([
        "--exact",
        "processes::the_worker",
        "--ignored",
        "--nocapture",
        "-q",
    ]);
    job.env(ROLE, role)
        .env(FOLDER, &folder.0)
        .stdin(Stdio::null());
    Launch::of(job)
}

/// What the workers say, sorted, each with its mark.
fn said(launch: &Launch) -> Vec<&str> {
    let lines = launch.sorted().into_iter();
    lines.filter(|line| line.contains(SAYS)).collect()
}

/// Has a job succeed whose workers all say the same.
#[track_caller]
fn all_say(role: &str, way: &[&str], folder: &Folder, words: &str) {
    let launch = launch(role, way, folder);
    assert_eq!(
        launch.code(),
        Some(0),
        "{role} {way:?}: {} {}",
        launch.out,
        launch.err
    );
    let lines = said(&launch);
    let expected = |(worker, line): (usize, &&str)| *line == format!("[w{worker}] {SAYS}{words}");
    assert!(
        lines.iter().enumerate().all(expected),
        "{role} {way:?}: {lines:?}"
    );
    assert_eq!(
        lines.len().to_string(),
        way[1],
        "{role} {way:?}: {}",
        launch.err
    );
}

const SHM: [&str; 6] = ["-n", "3", "--executors", "1", "--transport", "shm"];
const TCP: [&str; 6] = ["-n", "3", "--executors", "1", "--transport", "tcp"];
const TWOS: [&str; 4] = ["-n", "2", "--executors", "2"];

#[test]
#[ignore = "the workers of the tests here"]
fn the_worker() {
    let (Ok(role), Some(folder)) = (env::var(ROLE), env::var_os(FOLDER)) else {
        return;
    };
    let folder = PathBuf::from(folder);
    let config = Config {
        progress: false,
        ..Config::default()
    };
    let result = updraft::run(config, |env| match role.as_str() {
        "pause" => pause(env, &folder),
        "pause under load" => pause_under_load(env, &folder),
        "persist" => persist(env),
        "checkpoint" => checkpoint(env, &folder),
        "operators" => operators(env),
        "operator that fails" => failing_operator(env),
        "operator that is dropped" => dropped_operator(env),
        role => cancelled(env, role),
    });
    if let Err(error) = result {
        println!("{SAYS}{} {}", error.exit_code(), one_line(&error));
        std::process::exit(error.exit_code().into());
    }
}

/// Numbers without an end, of which it is counted how many there were.
fn endless(calls: &Arc<AtomicU64>) -> TSet<Boxed<u64>, Pass> {
    let calls = calls.clone();
    let count = move |n| {
        calls.fetch_add(1, Ordering::Relaxed);
        n
    };
    let numbers = generate(u64::MAX, |n| n).map(count);
    numbers.exchange_by_hash().boxed()
}

/// What would go on for ever, and is cancelled by worker 1, or by two at once.
fn cancelled(env: &mut Env, role: &str) -> Result<(), Error> {
    let (controller, worker) = (env.controller(), env.worker());
    let rounds = Arc::new(AtomicU64::new(0));
    if worker == 1 || worker == 2 && role == "cancel twice" {
        let seen = rounds.clone();
        thread::spawn(move || {
            while seen.load(Ordering::Relaxed) < UNDER_WAY {
                thread::yield_now();
            }
            controller.cancel(format!("worker {worker} has enough"));
        });
    }
    let count = move || rounds.fetch_add(1, Ordering::Relaxed);
    let result = match role {
        "cancel a graph" => {
            let calls = Arc::new(AtomicU64::new(0));
            let job = endless(&calls).map(move |n| n + count()).count().first();
            env.run(&job).map(drop)
        }
        "cancel what repeats" => {
            let job = generate(100, |n| n).exchange_by_hash().count().first();
            env.repeat(&job, (), move |(), _| {
                count();
                Ok(true)
            })
        }
        "cancel a loop" => {
            let numbers = env.run(&generate(10, |n| n).cache())?;
            let step = move |_: &mut (), _: &updraft::Round<'_, u64>| {
                count();
                Ok(0.0)
            };
            env.iterate(&numbers, (), |_| false, step).map(drop)
        }
        "cancel an operator" => {
            let rounds = env.bsp(move |world| -> Result<(), Error> {
                let shuffle = |numbers: Sent<u64>| numbers.exchange_by_hash();
                let mut shuffle = Operator::new(world, shuffle)?;
                loop {
                    shuffle.send(&count())?;
                    shuffle.finish();
                    while shuffle.poll()?.is_some() {}
                    shuffle.reset()?;
                }
            });
            rounds.map(drop)
        }
        "cancel who waits" => {
            let waits = env.bsp(move |world| -> Result<(), Error> {
                // Nobody sends that. What the program makes of the error makes no difference.
                (0..UNDER_WAY).for_each(|_| {
                    count();
                });
                let message = world.receive::<u8>(None, None).wait();
                message.map(drop).map_err(Error::program)
            });
            waits.map(drop)
        }
        "cancel rounds" | "cancel twice" => {
            let rounds = env.bsp(move |world| -> Result<(), Error> {
                loop {
                    count();
                    world.all_reduce(&mut [1u64], Sum).wait()?;
                }
            });
            rounds.map(drop)
        }
        role => return Err(Error::program(format!("{role} is no part"))),
    };
    // Nothing runs after that.
    let after = env.run(&generate(10, |n| n).count().first());
    assert_eq!(
        one_line(&after.unwrap_err()),
        one_line(result.as_ref().unwrap_err())
    );
    result
}

#[test]
fn every_worker_fails_alike_when_one_cancels_whatever_it_does() {
    let folder = Folder::new();
    for (role, way) in [
        ("cancel a graph", &SHM[..]),
        ("cancel a graph", &TCP),
        ("cancel what repeats", &TCP),
        ("cancel a loop", &SHM),
        ("cancel an operator", &TCP),
        ("cancel an operator", &TWOS),
        ("cancel who waits", &SHM),
        ("cancel rounds", &SHM),
        ("cancel rounds", &TCP),
        ("cancel rounds", &TWOS),
        ("cancel twice", &SHM),
    ] {
        let launch = launch(role, way, &folder);
        assert_eq!(
            launch.code(),
            Some(11),
            "{role} {way:?}: {} {}",
            launch.out,
            launch.err
        );
        let (lines, twice) = (said(&launch), role == "cancel twice");
        let canceller = if twice && lines[0].contains("worker 2 c") {
            2
        } else {
            1
        };
        let words = format!("worker {canceller} has enough");
        for (worker, line) in lines.iter().enumerate() {
            let expected =
                format!("[w{worker}] {SAYS}11 worker {canceller} cancelled the run: {words}");
            assert_eq!(*line, expected, "{role} {way:?}");
        }
        assert_eq!(
            lines.len().to_string(),
            way[1],
            "{role} {way:?}: {}",
            launch.err
        );
        let told = format!("updraft: worker {canceller} cancelled the job: {words}\n");
        assert_eq!(launch.err, told, "{role} {way:?}");
    }
}

/// Waits until another worker has left a file.
fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(
            start.elapsed() < PATIENCE,
            "{} does not come",
            path.display()
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// Worker 1 has all stand still, before the run and in its midst; worker 0 sees that it does.
fn pause(env: &mut Env, folder: &Path) -> Result<(), Error> {
    const ALL: u64 = 3_000_000;
    let calls = Arc::new(AtomicU64::new(0));
    let (controller, worker, seen) = (env.controller(), env.worker(), calls.clone());
    let file = move |folder: &Path, name: &str, step: u64| folder.join(format!("{name} {step}"));
    let folder = folder.to_owned();
    if worker == 1 {
        controller.pause();
    }
    let watcher = thread::spawn(move || {
        for step in 0..3 {
            let (paused, still) = (file(&folder, "paused", step), file(&folder, "still", step));
            if worker == 1 {
                let until = seen.load(Ordering::Relaxed) + UNDER_WAY;
                while step > 0 && seen.load(Ordering::Relaxed) < until {
                    thread::yield_now();
                }
                controller.pause();
                fs::write(paused, "").unwrap();
                wait_for(&still);
                controller.resume();
            } else if worker == 0 {
                wait_for(&paused);
                let calls = settled(&seen);
                assert!(calls < ALL, "it has gone on to its end");
                assert!(!controller.is_paused(), "another worker wants that");
                fs::write(still, "").unwrap();
            }
        }
    });
    let count = generate(ALL, |n| n).map(move |n| {
        calls.fetch_add(1, Ordering::Relaxed);
        n
    });
    let count = env.run(&count.exchange_by_hash().count().first())?;
    watcher.join().unwrap();
    println!("{SAYS}{count:?} of {ALL}");
    Ok(())
}

#[test]
fn all_workers_stand_still_when_one_wants_so() {
    for way in [&SHM[..], &TCP, &TWOS] {
        let folder = Folder::new();
        all_say("pause", way, &folder, "Some(3000000) of 3000000");
    }
}

/// All have more to do than they can, and seconds of work wait in every channel: worker 1 has all stand still, which worker 0
/// sees at once, and then ends the run.
fn pause_under_load(env: &mut Env, folder: &Path) -> Result<(), Error> {
    let calls = Arc::new(AtomicU64::new(0));
    let (controller, worker, seen) = (env.controller(), env.worker(), calls.clone());
    let files = ["paused", "still"].map(|name| folder.join(name));
    let watcher = thread::spawn(move || {
        let [paused, still] = files;
        let go_on = |more: u64| {
            let until = seen.load(Ordering::Relaxed) + more;
            while seen.load(Ordering::Relaxed) < until {
                thread::sleep(Duration::from_millis(1));
            }
        };
        if worker == 1 {
            go_on(50_000);
            controller.pause();
            fs::write(paused, "").unwrap();
            wait_for(&still);
            controller.resume();
            go_on(UNDER_WAY);
            controller.cancel("worker 1 has enough");
        } else if worker == 0 {
            wait_for(&paused);
            thread::sleep(Duration::from_secs(1));
            let calls = seen.load(Ordering::Relaxed);
            thread::sleep(Duration::from_millis(300));
            assert_eq!(
                seen.load(Ordering::Relaxed),
                calls,
                "it has heard nothing yet"
            );
            fs::write(still, "").unwrap();
        }
        Instant::now()
    });
    let slow = generate(u64::MAX, |n| n).exchange_by_hash().map(move |n| {
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(5) {}
        calls.fetch_add(1, Ordering::Relaxed);
        n
    });
    let result = env.run(&slow.count().first());
    let told = watcher.join().unwrap();
    assert!(
        worker != 1 || told.elapsed() < Duration::from_secs(1),
        "{told:?}"
    );
    result.map(drop)
}

#[test]
fn a_pause_and_an_end_are_heard_while_every_channel_is_full() {
    for way in [&SHM[..], &TCP] {
        let folder = Folder::new();
        let launch = launch("pause under load", way, &folder);
        assert_eq!(
            launch.code(),
            Some(11),
            "{way:?}: {} {}",
            launch.out,
            launch.err
        );
        let ended = "11 worker 1 cancelled the run: worker 1 has enough";
        let expected: Vec<_> = (0..3)
            .map(|worker| format!("[w{worker}] {SAYS}{ended}"))
            .collect();
        assert_eq!(said(&launch), expected, "{way:?}: {}", launch.err);
    }
}

/// Reads twice what is kept in between, of which it is counted what is computed.
fn persist(env: &mut Env) -> Result<(), Error> {
    for level in [Level::Memory, Level::MemoryAndDisk, Level::Disk] {
        let calls = Arc::new(AtomicU64::new(0));
        let counted = calls.clone();
        let kept = generate(20_000, |n| n)
            .exchange_by_hash()
            .map(move |n| {
                counted.fetch_add(1, Ordering::Relaxed);
                (n % 100, n)
            })
            .persist(level);
        let sums = kept
            .clone()
            .reduce_by_key(|a, b| a + b)
            .map(|(_, sum)| sum)
            .sort();
        let expected: Vec<u64> = (0..100)
            .map(|key| (0..200).map(|n| key + 100 * n).sum())
            .collect();
        assert_eq!(env.run(&sums.clone().collect())?, expected);
        let computed = calls.load(Ordering::Relaxed);
        assert!(
            computed > 0 && computed < 20_000,
            "each worker computes its part"
        );
        assert_eq!(env.run(&kept.clone().count().first())?, Some(20_000));
        assert_eq!(
            calls.load(Ordering::Relaxed),
            computed,
            "it is read, not computed"
        );
        assert_eq!(kept.stored().missing, 0);
        // What one worker has forgotten is computed again there. The others say that they want nothing, sooner or later.
        if env.worker() == 1 {
            kept.unpersist();
        }
        assert_eq!(env.run(&sums.collect())?, expected);
        let again = calls.load(Ordering::Relaxed) - computed;
        assert!(again <= computed, "{level:?}");
        assert!(env.worker() != 1 || again == computed, "{level:?}");
    }
    println!("{SAYS}kept");
    Ok(())
}

#[test]
fn each_worker_keeps_its_part_of_what_persists() {
    let folder = Folder::new();
    for way in [&SHM[..], &TCP, &TWOS] {
        all_say("persist", way, &folder, "kept");
    }
}

/// A stage that is kept in files, and whether this worker had to compute some of it.
fn checkpoint(env: &mut Env, folder: &Path) -> Result<(), Error> {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let squares = collection((0..10_000u64).collect())
        .exchange_by_hash()
        .map(move |n| {
            counted.fetch_add(1, Ordering::Relaxed);
            n * n
        })
        .checkpoint(folder.join("squares"));
    let sum = env.run(&squares.reduce(|a, b| a + b).first())?;
    assert_eq!(sum, Some((0..10_000).map(|n| n * n).sum()));
    let is_computed = calls.load(Ordering::Relaxed) > 0;
    println!("{SAYS}{}", if is_computed { "computed" } else { "read" });
    Ok(())
}

#[test]
fn a_job_of_several_workers_begins_where_another_has_left_off() {
    let folder = Folder::new();
    all_say("checkpoint", &SHM, &folder, "computed");
    all_say("checkpoint", &TCP, &folder, "read");
    all_say("checkpoint", &SHM, &folder, "read");
    // Another number of ranks shares it out in another way.
    all_say("checkpoint", &TWOS, &folder, "computed");
}

/// The sums of what the ranks found by key, and of how often.
fn in_all(world: &Group, found: &[(u64, u64)]) -> Result<[u64; 14], Error> {
    let mut all = [0; 14];
    for &(key, value) in found {
        all[key as usize] += value;
        all[7 + key as usize] += 1;
    }
    world.all_reduce(&mut all, Sum).wait()?;
    Ok(all)
}

/// Operators that are open together, round after round, beside operations of the group.
fn operators(env: &mut Env) -> Result<(), Error> {
    const ROUNDS: u64 = 40;
    env.bsp(|world| {
        let (me, size) = (world.rank() as u64, world.size() as u64);
        let sums = |pairs: Sent<(u64, u64)>| pairs.reduce_by_key(|a, b| a + b);
        let mut sums = Operator::new(world, sums)?;
        let join = |left: Sent<(u64, u64)>, right: Sent<(u64, u64)>| {
            left.join(right)
                .map(|(key, (left, right))| (key, left * right))
        };
        let mut join: Operator<Two<Pair, Pair>, _> = Operator::of_two(world, join)?;
        let mut first = Operator::new(world, |numbers: Sent<u64>| numbers.take(3))?;
        for round in 0..ROUNDS {
            for n in 0..70 {
                sums.send(&(n % 7, n + round + me))?;
                first.send(&n)?;
            }
            join.send_right(&(me, 10 + round))?;
            join.send_left(&((me + 1) % size, 100 + me))?;
            sums.finish();
            join.finish();
            first.finish();
            let mut found = Vec::new();
            while let Some(pair) = sums.poll()? {
                found.push(pair);
            }
            let all = in_all(world, &found)?;
            for key in 0..7 {
                let of_rank = |rank| {
                    (0..10)
                        .map(move |n| 7 * n + key + round + rank)
                        .sum::<u64>()
                };
                assert_eq!(all[key as usize], (0..size).map(of_rank).sum::<u64>());
                assert_eq!(all[7 + key as usize], 1, "each key is on one rank");
            }
            let mut found = Vec::new();
            while let Some(pair) = join.poll()? {
                found.push(pair);
            }
            let all = in_all(world, &found)?;
            for key in 0..size {
                let left = 100 + (key + size - 1) % size;
                assert_eq!(all[key as usize], left * (10 + round));
            }
            let mut taken = [0u64];
            while first.poll()?.is_some() {
                taken[0] += 1;
            }
            world.all_reduce(&mut taken, Sum).wait()?;
            assert_eq!(taken, [3]);
            sums.reset()?;
            join.reset()?;
            first.reset()?;
        }
        world.barrier().wait()?;
        Ok(())
    })?;
    println!("{SAYS}{ROUNDS} rounds");
    Ok(())
}

#[test]
fn operators_driven_by_hand_agree_between_processes() {
    let folder = Folder::new();
    for way in [&SHM[..], &TCP, &TWOS] {
        all_say("operators", way, &folder, "40 rounds");
    }
}

/// A function of an operator fails on rank 1.
fn failing_operator(env: &mut Env) -> Result<(), Error> {
    let rounds = env.bsp(|world| {
        let me = world.rank() as u64;
        let checked = |numbers: Sent<u64>| {
            let check = |n| {
                if n == 1_003 {
                    Err(format!("{n} is bad"))
                } else {
                    Ok(n)
                }
            };
            numbers.try_map(check).exchange_by_hash()
        };
        let mut checked = Operator::new(world, checked)?;
        for round in 0..10 {
            checked.send(&(1_000 * me + round))?;
            checked.finish();
            while checked.poll()?.is_some() {}
            checked.reset()?;
        }
        Ok(())
    });
    rounds.map(drop)
}

#[test]
fn the_worker_whose_function_fails_in_an_operator_is_blamed() {
    let folder = Folder::new();
    for way in [&SHM[..], &TCP] {
        let launch = launch("operator that fails", way, &folder);
        assert_eq!(
            launch.code(),
            Some(1),
            "{way:?}: {} {}",
            launch.out,
            launch.err
        );
        launch.assert_err("worker 1 of 3 failed first");
        launch.assert_err("try_map");
        launch.assert_err("1003 is bad");
    }
}

/// Rank 1 takes part in fewer rounds than the others, and nobody in more than it.
fn dropped_operator(env: &mut Env) -> Result<(), Error> {
    env.bsp(|world| {
        let mut sums = Operator::new(world, |n: Sent<u64>| n.all_reduce(|a, b| a + b))?;
        let mut rounds = 0;
        let error = loop {
            sums.send(&1u64)?;
            if rounds == 2 && world.rank() == 1 {
                break None;
            }
            sums.finish();
            let reset = match sums.poll().map(|_| ()) {
                Ok(()) => sums.reset(),
                Err(error) => Err(error),
            };
            match reset {
                Ok(()) => rounds += 1,
                Err(error) => break Some(error),
            }
        };
        drop(sums);
        if let Some(error) = error {
            let text = one_line(&error);
            assert!(
                text.contains("rank 1 gave up: it has closed an operator"),
                "{text}"
            );
            assert_eq!(Error::from(error).exit_code(), 6);
        }
        assert_eq!(rounds, 2);
        // Operations of the group, and operators made later, are not concerned.
        let mut count = Operator::new(world, |n: Sent<u64>| n.all_reduce(|a, b| a + b))?;
        count.send(&1u64)?;
        count.finish();
        assert_eq!(count.poll()?, Some(world.size() as u64));
        world.barrier().wait()?;
        Ok(())
    })?;
    println!("{SAYS}all went on");
    Ok(())
}

#[test]
fn who_drops_an_operator_ends_that_one_alone() {
    let folder = Folder::new();
    for way in [&SHM[..], &TCP, &TWOS] {
        all_say("operator that is dropped", way, &folder, "all went on");
    }
}
