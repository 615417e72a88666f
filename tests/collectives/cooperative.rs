//! Ranks that share threads as futures: they get what others get, and nothing that one of them does stops the rest.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use collectives::{Algorithm, Error as GroupError, Group, op};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use transport::Transport;
use updraft::{Config, Error};

use crate::operations::{add, all_kinds};

/// Longer than it takes until all have learned of anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the ranks of `executors` threads, `each` of them on one, make of `program`.
fn cooperatively<R: Send + 'static>(
    transport: Transport,
    executors: u32,
    each: u32,
    program: impl AsyncFn(&Group) -> Result<R, Error> + Send + Sync + 'static,
) -> Result<Vec<R>, Error> {
    let config = config(transport, executors);
    updraft::run(config, |env| env.bsp_cooperative(each, program))
}

fn config(transport: Transport, executors: u32) -> Config {
    Config {
        executors: Some(executors),
        transport,
        memory_bytes: Some(1 << 30),
        progress: false,
        ..Config::default()
    }
}

/// Two and four ranks on each thread, and more threads than cores.
const CREWS: [(Transport, u32, u32); 5] = [
    (Transport::Shm, 2, 2),
    (Transport::Shm, 2, 4),
    (Transport::Shm, 1, 5),
    (Transport::Shm, 3, 2),
    (Transport::Tcp, 2, 2),
];

#[test]
fn every_operation_gives_what_a_plain_loop_gives() {
    for (transport, executors, each) in CREWS {
        let ranks = cooperatively(transport, executors, each, async |world: &Group| {
            for algorithm in Algorithm::ALL.map(Some).into_iter().chain([None]) {
                for len in [0, 17, 9000] {
                    all_kinds(world, len, op::by(add), algorithm).await?;
                }
            }
            Ok(world.rank() as u32)
        });
        assert_eq!(
            ranks.unwrap(),
            (0..executors * each).collect::<Vec<_>>(),
            "{each} on each of {executors} over {transport:?}"
        );
    }
}

#[test]
fn messages_and_values_go_between_all() {
    for (transport, executors, each) in CREWS {
        let all = cooperatively(transport, executors, each, async |world: &Group| {
            let (me, size) = (world.rank(), world.size());
            for round in 0..300 {
                let len = [1, 40, 20_000][round % 3];
                let to = (me + 1 + round % (size - 1)) % size;
                let from = (me + size - 1 - round % (size - 1)) % size;
                let sent = vec![me * 1000 + round; len];
                let (tag, got) = (round as u32, Some(from));
                let got = world.send_receive::<_, usize>(to, tag, &sent, got, Some(tag));
                assert_eq!(got.await?[..], vec![from * 1000 + round; len]);
            }
            Ok(world.all_gather_values(format!("rank {me}")).await?)
        });
        let names: Vec<String> = (0..executors * each)
            .map(|rank| format!("rank {rank}"))
            .collect();
        assert!(all.unwrap().iter().all(|all| *all == names));
    }
}

/// How each rank's program ended that `program` is the one of, and what the job said. None may wait for ever.
fn ends(
    transport: Transport,
    program: impl AsyncFn(&Group) -> Result<(), Error> + Send + Sync + 'static,
) -> (Vec<(usize, String)>, Error) {
    let started = Instant::now();
    let ends: Arc<Mutex<Vec<(usize, String)>>> = Arc::default();
    let seen = ends.clone();
    let result = cooperatively(transport, 2, 3, async move |world: &Group| {
        let result = program(world).await;
        let said = result.as_ref().err().map(ToString::to_string);
        seen.lock()
            .unwrap()
            .push((world.rank(), said.unwrap_or_default()));
        result
    });
    assert!(started.elapsed() < PATIENCE);
    let mut ends = ends.lock().unwrap().clone();
    ends.sort();
    (ends, result.unwrap_err())
}

/// The ranks of whose end it is said that rank 2 gave up.
fn ranks_told(ends: &[(usize, String)], reason: &str) -> Vec<usize> {
    let said = format!("rank 2 gave up: {reason}");
    let told = ends.iter().filter(|(_, end)| *end == said);
    told.map(|(rank, _)| *rank).collect()
}

#[test]
fn a_rank_that_fails_is_told_to_those_on_its_thread_and_to_the_others() {
    for transport in [Transport::Shm, Transport::Tcp] {
        let (ends, error) = ends(transport, async |world: &Group| {
            for round in 0.. {
                if (world.rank(), round) == (2, 50) {
                    return Err(Error::program("enough"));
                }
                world.all_reduce(&mut [1u64; 100], op::Sum).await?;
            }
            Ok(())
        });
        assert_eq!(error.to_string(), "enough");
        assert_eq!(ranks_told(&ends, "enough"), [0, 1, 3, 4, 5], "{ends:?}");
    }
}

#[test]
fn a_rank_that_panics_takes_none_of_its_thread_with_it() {
    let (ends, error) = ends(Transport::Shm, async |world: &Group| {
        for round in 0.. {
            assert!((world.rank(), round) != (2, 50), "what a rank should be");
            world.barrier().await?;
        }
        Ok(())
    });
    assert_eq!(
        error.to_string(),
        "rank 2 panicked: what a rank should be",
        "{ends:?}"
    );
    let told = ranks_told(&ends, "it panicked");
    assert_eq!(told, [0, 1, 3, 4, 5], "{ends:?}");
}

#[test]
fn calls_that_differ_are_an_error_that_names_both() {
    let (ends, error) = ends(Transport::Shm, async |world: &Group| {
        world.barrier().await?;
        if world.rank() == 4 {
            world.all_reduce(&mut [1u64], op::Sum).await?;
        } else {
            world.barrier().await?;
        }
        Ok(())
    });
    assert!(
        matches!(
            error,
            Error::Collectives(GroupError::Mismatch { here, peer, .. }) if here == 4 || peer == 4
        ),
        "{error}"
    );
    let differ = ends.iter().filter(|(_, end)| end.contains("but rank"));
    assert_eq!(differ.count(), 6, "{ends:?}");
}

#[test]
fn to_wait_where_others_share_the_thread_is_an_error_and_no_deadlock() {
    let (ends, error) = ends(Transport::Shm, async |world: &Group| {
        world.barrier().await?;
        Ok(world.barrier().wait()?)
    });
    assert!(
        error.to_string().contains("other ranks share this thread"),
        "{error}"
    );
    assert!(ends.iter().all(|(_, end)| !end.is_empty()), "{ends:?}");
}

#[test]
fn a_thread_whose_ranks_all_wait_sleeps_and_is_woken() {
    const LATE: Duration = Duration::from_millis(300);
    let used = |who| {
        let usage = getrusage(who).unwrap();
        let used = usage.user_time() + usage.system_time();
        Duration::from_micros(used.num_microseconds() as u64)
    };
    for transport in [Transport::Shm, Transport::Tcp] {
        let all = cooperatively(transport, 2, 3, async move |world: &Group| {
            // The least that was used in a wait for an operation and for messages: who does not sleep uses all of it each time.
            let mut least: [Option<Duration>; 2] = [None; 2];
            for round in 0..4 {
                world.barrier().await?;
                let (start, before) = (Instant::now(), used(UsageWho::RUSAGE_THREAD));
                // All of one thread are late together, because a sleep stops those beside it.
                if world.rank() == 0 {
                    thread::sleep(LATE);
                }
                match round % 2 {
                    0 => world.barrier().await?,
                    _ if world.rank() == 0 => {
                        for to in 1..world.size() {
                            world.send(to, 7, &[1u8]).await?;
                        }
                    }
                    _ => drop(world.receive::<u8>(Some(0), Some(7)).await?),
                }
                let used = used(UsageWho::RUSAGE_THREAD) - before;
                if start.elapsed() >= LATE / 2 {
                    let least = &mut least[round % 2];
                    *least = Some(least.map_or(used, |least| least.min(used)));
                }
            }
            Ok(least)
        });
        // Those of the second thread wait all the time.
        for least in &all.unwrap()[3..] {
            let mut waits = least.iter().flatten().peekable();
            assert!(waits.peek().is_some(), "none waited over {transport:?}");
            let slept = waits.all(|used| *used < LATE / 3);
            assert!(slept, "{least:?} over {transport:?}");
        }
    }
}

#[test]
fn whoever_cancels_ends_all_that_wait_on_a_thread() {
    let waiting = Arc::new(AtomicU32::new(0));
    let result = updraft::run(config(Transport::Shm, 2), |env| {
        let (controller, seen) = (env.controller(), waiting.clone());
        thread::spawn(move || {
            while seen.load(Ordering::Relaxed) < 6 {
                thread::yield_now();
            }
            controller.cancel("they wait for ever");
        });
        env.bsp_cooperative(3, async move |world: &Group| {
            world.barrier().await?;
            waiting.fetch_add(1, Ordering::Relaxed);
            world.receive::<u8>(None, None).await?; // Nobody sends that.
            Ok(())
        })
    });
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 11, "{error}");
    assert!(error.to_string().contains("they wait for ever"), "{error}");
}
