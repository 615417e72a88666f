//! Several operations of one group under way at the same time.

use std::{
    cell::Cell,
    future::{Future, IntoFuture, poll_fn},
    pin::pin,
    task::{Context, Poll, Waker},
};

use collectives::{Error, Group, op::Sum};
use transport::Transport;

use crate::{
    harness::{Program, simulate, threads},
    together::{Task, together},
};

/// Enough for the calls to be counted past where members wait for one another, at each place among those in flight.
const ROUNDS: u64 = 300;

/// Three operations at a time, of lengths that differ from round to round, and a message beside them.
async fn rounds(group: &Group, rounds: u64, lens: &[usize]) -> Result<(), Error> {
    let (me, size) = (group.rank() as u64, group.size() as u64);
    for round in 0..rounds {
        let len = lens[round as usize % lens.len()];
        let root = (round % size) as usize;
        let mut sum: Vec<u64> = (0..len as u64)
            .map(|index| index * (me + 1) + round)
            .collect();
        let mut told = vec![if me == root as u64 { round + 7 } else { 0 }; len + 1];
        let mine = vec![me + round; len];
        let mut all = vec![0; len * size as usize];
        let mut before = vec![me + round];
        let next = ((me + 1) % size) as usize;
        let previous = ((me + size - 1) % size) as usize;
        let tasks: Vec<Task<'_, Result<(), Error>>> = vec![
            Box::pin(group.all_reduce(&mut sum, Sum).into_future()),
            Box::pin(group.broadcast(root, &mut told).into_future()),
            Box::pin(group.all_gather(&mine, &mut all).into_future()),
            Box::pin(group.exscan(&mut before, Sum).into_future()),
            Box::pin(async move {
                let message = group
                    .send_receive::<u64, u64>(next, 1, &[me, round], Some(previous), None)
                    .await?;
                assert_eq!(message[..], [previous as u64, round]);
                Ok(())
            }),
        ];
        together(tasks)
            .await
            .into_iter()
            .collect::<Result<(), Error>>()?;
        let members = size * (size + 1) / 2;
        assert!((0..len as u64).all(|index| sum[index as usize] == index * members + round * size));
        assert!(told.iter().all(|&told| told == round + 7));
        for (from, part) in (0..size).zip(all.chunks(len.max(1))) {
            assert!(part.iter().all(|&part| part == from + round));
        }
        let expected = (0..me).map(|member| member + round).sum::<u64>();
        assert_eq!(before[0], if me == 0 { round } else { expected });
    }
    Ok(())
}

fn short(group: Group) -> Program<()> {
    Box::pin(async move { rounds(&group, ROUNDS, &[1, 0, 3, 20, 600]).await })
}

fn few(group: Group) -> Program<()> {
    Box::pin(async move { rounds(&group, 5, &[1, 20, 600]).await })
}

fn long(group: Group) -> Program<()> {
    Box::pin(async move { rounds(&group, ROUNDS, &[1, 30_000, 3, 2000, 0, 600]).await })
}

#[test]
fn operations_in_flight_do_not_interfere_whatever_the_network_does() {
    for seed in 0..1000 {
        for result in simulate(seed, 2 + (seed % 4) as u32, few) {
            result.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
    }
    for seed in 0..20 {
        for result in simulate(seed, 2 + (seed % 4) as u32, short) {
            result.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
    }
}

#[test]
fn operations_in_flight_do_not_interfere_on_threads() {
    for size in [2, 3, 4] {
        for result in threads(Transport::Shm, size, long) {
            result.unwrap();
        }
    }
    for result in threads(Transport::Tcp, 3, long) {
        result.unwrap();
    }
}

/// More operations than a board has slots, on two groups of the same members.
fn many(group: Group) -> Program<()> {
    Box::pin(async move {
        let copy = group.duplicate().await?;
        let size = group.size() as u64;
        for round in 0..50u64 {
            let mut sums = [[round]; 40];
            let tasks = sums
                .iter_mut()
                .enumerate()
                .map(|(index, sum)| -> Task<'_, _> {
                    let group = if index % 3 == 0 { &copy } else { &group };
                    Box::pin(group.all_reduce(sum, Sum).into_future())
                });
            together(tasks.collect())
                .await
                .into_iter()
                .collect::<Result<(), Error>>()?;
            assert_eq!(sums, [[round * size]; 40]);
        }
        Ok(())
    })
}

#[test]
fn more_operations_than_slots_can_be_in_flight() {
    for seed in 0..20 {
        for result in simulate(seed, 3, many) {
            result.unwrap();
        }
    }
    for result in threads(Transport::Shm, 3, many) {
        result.unwrap();
    }
}

/// One member is as far ahead of the others as it can be.
fn ahead(group: Group) -> Program<()> {
    Box::pin(async move {
        const CALLS: usize = 5000;
        if group.rank() != 0 {
            let begun = Cell::new(0);
            let mut calls = pin!(async {
                for number in 0..CALLS as u32 {
                    group.gather_values(0, number).await?;
                    begun.set(begun.get() + 1);
                }
                Ok::<_, Error>(())
            });
            for _ in 0..100 {
                let polled = poll_fn(|_| {
                    let context = &mut Context::from_waker(Waker::noop());
                    Poll::Ready(calls.as_mut().poll(context))
                });
                assert!(polled.await.is_pending());
            }
            assert!((1..1000).contains(&begun.get()), "{}", begun.get());
            group.send(0, 0, &[1u8]).await?;
            return calls.await;
        }
        for from in 1..group.size() {
            group.receive::<u8>(Some(from), None).await?;
        }
        for number in 0..CALLS as u32 {
            let all = group.gather_values(0, number).await?;
            assert_eq!(all, Some(vec![number; group.size()]));
        }
        Ok(())
    })
}

#[test]
fn what_a_member_sends_ahead_has_a_bound() {
    for result in simulate(1, 3, ahead) {
        result.unwrap();
    }
    for result in threads(Transport::Shm, 3, ahead) {
        result.unwrap();
    }
}
