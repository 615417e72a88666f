//! What becomes of operations when ranks die in them, and when they do not call the same.
//!
//! The runs here are short. With `UPDRAFT_LONG=1` there are many times as many.

use std::{cell::RefCell, pin::Pin, rc::Rc};

use collectives::{
    Agreement, Algorithm, Error, Group,
    op::{self, Max, Sum},
};
use transport::{Simulation, Transport};

use crate::{
    harness::{Program, simulate, simulate_on, threads},
    long::often,
    operations::{add, all_kinds},
    tables,
};

/// A network on which `deaths` ranks at most die, each within so many messages that it sends.
fn deadly(seed: u64, size: u32, deaths: u64, messages: u64) -> Simulation {
    let network = Simulation::new(seed, size);
    for _ in 0..deaths {
        let victim = network.draw(size.into()) as u32;
        network.kill_after(victim, network.draw(messages));
    }
    network
}

#[test]
fn a_rank_that_dies_in_any_operation_by_any_algorithm_is_told_to_all() {
    let (mut told, mut unharmed) = (0, 0);
    for seed in 0..often(1300, 13_000) {
        let size = 2 + (seed % 5) as u32;
        let algorithm = Algorithm::ALL[(seed / 5) as usize % Algorithm::ALL.len()];
        let network = deadly(seed, size, 1, 150);
        let program = move |group: Group| -> Program<()> {
            Box::pin(async move {
                // One is longer than what fits beside a descriptor, and one than a segment.
                for len in [1, 40, 9000] {
                    all_kinds(&group, len, op::by(add), Some(algorithm)).await?;
                }
                Ok(())
            })
        };
        let results = simulate_on(&network, seed, size, program);
        let dead: Vec<u32> = (0..size).filter(|&rank| network.is_dead(rank)).collect();
        for (rank, result) in results.into_iter().enumerate() {
            match result {
                None => assert!(dead.contains(&(rank as u32))),
                Some(Ok(())) => unharmed += 1,
                Some(Err(Error::PeerLost { peer, .. })) if dead.contains(&peer) => told += 1,
                Some(Err(error)) => panic!("seed {seed}, {algorithm}, rank {rank}: {error}"),
            }
        }
    }
    assert!(told > 1000 && unharmed > 0, "{told} {unharmed}");
}

#[test]
fn a_rank_that_dies_in_any_operation_on_tables_is_told_to_all() {
    let (mut told, mut unharmed) = (0, 0);
    for seed in 0..often(40, 10_000) {
        let size = 2 + (seed % 4) as u32;
        let network = deadly(seed, size, 1, 1500);
        let results = simulate_on(&network, seed, size, tables::everything);
        for (rank, result) in results.into_iter().enumerate() {
            match result {
                None => assert!(network.is_dead(rank as u32)),
                Some(Ok(())) => unharmed += 1,
                Some(Err(Error::PeerLost { peer, .. })) if network.is_dead(peer) => told += 1,
                Some(Err(error)) => panic!("seed {seed}, rank {rank}: {error}"),
            }
        }
    }
    assert!(told > 20 && unharmed > 0, "{told} {unharmed}");
}

#[test]
fn what_is_cancelled_fails_with_the_same_words_on_every_rank_whatever_it_does() {
    for seed in 0..often(200, 4_000) {
        let size = 1 + (seed % 5) as u32;
        let algorithm = Algorithm::ALL[(seed / 5) as usize % Algorithm::ALL.len()];
        let program = move |group: Group| -> Program<()> {
            Box::pin(async move {
                let rounds = async {
                    for round in 0.. {
                        if group.rank() as u64 == seed % u64::from(size) && round == seed % 3 {
                            group.engine().cancel("somebody", "enough");
                        }
                        // Not every group can do something by every algorithm.
                        group.barrier().await?;
                        for len in [1, 40, 9000] {
                            all_kinds(&group, len, op::by(add), Some(algorithm)).await?;
                        }
                    }
                    Ok(())
                };
                let result: Result<(), Error> = rounds.await;
                // Nothing else can be done after that, with this group or another.
                let cancelled =
                    |result: Option<Error>| matches!(result, Some(Error::Cancelled { .. }));
                assert!(cancelled(group.agree(0).await.err()));
                assert!(cancelled(group.shrink().await.err()));
                assert!(cancelled(group.engine().world().await.err()));
                assert!(cancelled(group.send(0, 7, &[1u8]).await.err()));
                result
            })
        };
        for (rank, result) in simulate(seed, size, program).into_iter().enumerate() {
            let error = result.unwrap_err();
            assert_eq!(
                error.to_string(),
                "somebody cancelled the run: enough",
                "seed {seed}, {algorithm}, rank {rank}"
            );
        }
    }
}

/// What each rank made of its agreements, also of ranks that died later.
type Made = Rc<RefCell<Vec<(u32, usize, Agreement)>>>;

/// The flags that a rank gives in a round: it lacks one.
fn flags(rank: u32, round: usize) -> u64 {
    !(1 << ((rank as usize + round) % 64))
}

#[test]
fn all_that_are_left_agree_whoever_dies_meanwhile() {
    const ROUNDS: usize = 3;
    let mut deaths_seen = 0;
    for seed in 0..often(3000, 30_000) {
        let size = 1 + (seed % 7) as u32;
        let network = deadly(seed, size, seed / 7 % size as u64, 60);
        let made = Made::default();
        let program = {
            let made = made.clone();
            move |group: Group| -> Program<()> {
                let made = made.clone();
                Box::pin(async move {
                    let rank = group.members()[group.rank()];
                    for round in 0..ROUNDS {
                        let agreement = group.agree(flags(rank, round)).await?;
                        made.borrow_mut().push((rank, round, agreement));
                    }
                    Ok(())
                })
            }
        };
        let results = simulate_on(&network, seed, size, program);
        let dead = |rank: u32| network.is_dead(rank);
        for (rank, result) in results.into_iter().enumerate() {
            // The world is not made where a rank dies in that; then there is nothing to agree on.
            match result {
                None => assert!(dead(rank as u32)),
                Some(Ok(())) => {}
                Some(Err(error)) => assert!(error.lost().is_some_and(dead), "seed {seed}: {error}"),
            }
        }
        let made = made.borrow();
        for (rank, round, agreement) in made.iter() {
            let mut others = made.iter().filter(|(_, other, _)| other == round);
            assert!(
                others.all(|(_, _, other)| other == agreement),
                "seed {seed}, round {round}, rank {rank}: {made:?}"
            );
            let there = (0..size).filter(|rank| !agreement.lost.contains(rank));
            let common = there.fold(u64::MAX, |common, rank| common & flags(rank, *round));
            assert_eq!(agreement.flags, common, "seed {seed}, round {round}");
            deaths_seen += agreement.lost.len();
        }
    }
    assert!(deaths_seen > 1000, "{deaths_seen}");
}

/// Sums in rounds, and goes on with those that are left whenever one is lost. Gives the members it ended with.
pub(crate) async fn enduring(mut group: Group, rounds: usize) -> Result<Vec<u32>, Error> {
    let mut round = 0;
    while round < rounds {
        let mut sum = [1u32; 100];
        let result = group.all_reduce(&mut sum, Sum).await;
        if let Err(error) = &result {
            assert!(error.lost().is_some(), "{error}");
        }
        let agreement = group.agree(result.is_ok().into()).await?;
        if agreement.flags & 1 == 1 && agreement.lost.is_empty() {
            assert_eq!(sum, [group.size() as u32; 100]);
            round += 1;
        } else {
            group = group.shrink().await?;
        }
    }
    Ok(group.members().to_vec())
}

#[test]
fn a_group_shrinks_to_those_that_are_left_whoever_dies_meanwhile() {
    let mut shrunk = 0;
    for seed in 0..often(2000, 20_000) {
        let size = 2 + (seed % 6) as u32;
        let network = deadly(seed, size, 1 + seed / 6 % (size - 1) as u64, 120);
        let begun = Rc::new(RefCell::new(Vec::new()));
        let program = {
            let begun = begun.clone();
            move |group: Group| -> Program<Vec<u32>> {
                begun.borrow_mut().push(group.rank());
                Box::pin(enduring(group, 4))
            }
        };
        let results = simulate_on(&network, seed, size, program);
        let mut ends: Vec<Vec<u32>> = Vec::new();
        for (rank, result) in results.into_iter().enumerate() {
            match result {
                None => assert!(network.is_dead(rank as u32)),
                Some(Ok(members)) => {
                    assert!(members.contains(&(rank as u32)), "seed {seed}");
                    ends.push(members);
                }
                // While the world was made there was no group to shrink.
                Some(Err(error)) => {
                    let had_none = !begun.borrow().contains(&rank);
                    let dead = error.lost().is_some_and(|rank| network.is_dead(rank));
                    assert!(had_none && dead, "seed {seed}, rank {rank}: {error}");
                }
            }
        }
        ends.dedup();
        assert!(ends.len() <= 1, "seed {seed}: {ends:?}");
        shrunk += usize::from(ends.iter().any(|end| end.len() < size as usize));
    }
    assert!(shrunk > 200, "{shrunk}");
}

/// An operation that some members call and others do not.
type Calling = for<'g> fn(&'g Group) -> Pin<Box<dyn Future<Output = Result<(), Error>> + 'g>>;

fn barrier(group: &Group) -> Pin<Box<dyn Future<Output = Result<(), Error>> + '_>> {
    Box::pin(group.barrier().into_future())
}

macro_rules! calling {
    ($group:ident, $call:expr) => {{
        fn calling($group: &Group) -> Pin<Box<dyn Future<Output = Result<(), Error>> + '_>> {
            Box::pin(async move {
                $call.await?;
                Ok(())
            })
        }
        calling as Calling
    }};
}

/// Calls that do not go together, each with what names it.
fn mismatches() -> Vec<[(Calling, &'static str); 2]> {
    let three = calling!(group, group.all_reduce(&mut [1u32; 3], Sum));
    let three_name = "all_reduce(3 elements of u32, sum";
    let from_first = calling!(group, group.broadcast(0, &mut [1u32; 3]));
    let from_last = calling!(group, group.broadcast(group.size() - 1, &mut [1u32; 3]));
    vec![
        [(barrier, "barrier"), (three, three_name)],
        [
            (three, three_name),
            (
                calling!(group, group.all_reduce(&mut [1u32; 4], Sum)),
                "all_reduce(4 elements of u32, sum",
            ),
        ],
        [
            (three, three_name),
            (
                calling!(group, group.all_reduce(&mut [1f32; 3], Sum)),
                "all_reduce(3 elements of f32, sum",
            ),
        ],
        [
            (three, three_name),
            (
                calling!(group, group.all_reduce(&mut [1u32; 3], Max)),
                "all_reduce(3 elements of u32, max",
            ),
        ],
        // Each waits for the other, or none for any.
        [(from_first, "root 0"), (from_last, "root ")],
        [
            (
                calling!(group, group.gather(0, &[1u8], &mut vec![0; group.size()])),
                "gather(1 elements of u8, root 0",
            ),
            (
                calling!(group, group.scatter(0, &vec![0; group.size()], &mut [1u8])),
                "scatter(1 elements of u8, root 0",
            ),
        ],
        [
            (
                calling!(
                    group,
                    group.all_to_all(&vec![1u8; group.size()], &mut vec![1u8; group.size()])
                ),
                "all_to_all(",
            ),
            (
                calling!(group, group.scan(&mut [1u8; 200], Sum)),
                "scan(200 elements of u8, sum",
            ),
        ],
        // The same operation by algorithms of which one uses boards, where there are some, and one messages.
        [
            (
                calling!(group, {
                    group.force(Some(Algorithm::RecursiveDoubling));
                    async { group.all_reduce(&mut [1u32; 3], Sum).await }
                }),
                "sum, by recursive-doubling",
            ),
            (
                calling!(group, {
                    group.force(Some(Algorithm::Flat));
                    async { group.all_reduce(&mut [1u32; 3], Sum).await }
                }),
                "sum, by flat",
            ),
        ],
        [
            (
                calling!(group, {
                    group.force(Some(Algorithm::Dissemination));
                    group.barrier()
                }),
                "barrier(by dissemination)",
            ),
            (
                calling!(group, group.all_gather_v(&[1u8; 5])),
                "all_gather_v(elements of u8)",
            ),
        ],
        [
            (barrier, "barrier"),
            (calling!(group, group.agree(1)), "agree"),
        ],
    ]
}

/// The rank that `odd` calls something else than the others; then all meet.
async fn mismatched(group: &Group, case: usize, odd: usize) -> Result<(), Error> {
    let [(usual, _), (other, _)] = mismatches()[case];
    let call = if group.rank() == odd { other } else { usual };
    call(group).await?;
    group.force(None);
    group.barrier().await
}

#[track_caller]
fn assert_mismatch(case: usize, odd: u32, results: Vec<Result<(), Error>>) {
    let [(_, usual), (_, other)] = mismatches()[case];
    for (rank, result) in results.into_iter().enumerate() {
        let said = format!("case {case}, rank {rank} of those with {odd}: {result:?}");
        let Err(Error::Mismatch {
            here,
            ours,
            peer,
            theirs,
        }) = result
        else {
            panic!("{said}");
        };
        assert!(here != peer && (here == odd || peer == odd), "{said}");
        let (of_odd, of_usual) = if here == odd {
            (ours, theirs)
        } else {
            (theirs, ours)
        };
        assert!(of_odd.contains(other) && of_usual.contains(usual), "{said}");
    }
}

#[test]
fn calls_that_differ_are_an_error_that_names_both_on_every_member() {
    for case in 0..mismatches().len() {
        for seed in 0..often(20, 1000) {
            let size = 2 + (seed % 4) as u32;
            let odd = seed as usize / 4 % size as usize;
            let program = move |group: Group| -> Program<()> {
                Box::pin(async move { mismatched(&group, case, odd).await })
            };
            assert_mismatch(case, odd as u32, simulate(seed, size, program));
        }
    }
}

#[test]
fn calls_that_differ_are_an_error_on_every_link() {
    for transport in [Transport::Shm, Transport::Tcp] {
        for case in 0..mismatches().len() {
            let odd = case % 3;
            let program = move |group: Group| -> Program<()> {
                Box::pin(async move { mismatched(&group, case, odd).await })
            };
            assert_mismatch(case, odd as u32, threads(transport, 3, program));
        }
    }
}
