//! Messages from one member to another.

use std::{
    cell::Cell,
    future::{Future, IntoFuture, poll_fn},
    pin::pin,
    task::{Context, Poll, Waker},
};

use collectives::{Envelope, Error, Group};
use transport::Transport;

use crate::{
    harness::{Program, simulate, simulate_while, threads},
    together::{Task, together},
};

/// Lengths with and without loans.
const LENGTHS: [usize; 5] = [0, 1, 13, 14, 5000];

fn payload(from: usize, to: usize, len: usize) -> Vec<u64> {
    (0..len)
        .map(|index| (from << 32 | to << 24 | index) as u64)
        .collect()
}

/// All send to all, themselves among them; what was sent last is received first.
fn all_to_all(group: Group) -> Program<()> {
    Box::pin(async move {
        let (me, size) = (group.rank(), group.size());
        for to in 0..size {
            for (tag, &len) in LENGTHS.iter().enumerate() {
                group.send(to, tag as u32, &payload(me, to, len)).await?;
            }
        }
        for from in (0..size).rev() {
            for (tag, &len) in LENGTHS.iter().enumerate().rev() {
                let message = group.receive::<u64>(Some(from), Some(tag as u32)).await?;
                assert_eq!((message.from(), message.tag()), (from, tag as u32));
                assert_eq!(message[..], payload(from, me, len));
            }
        }
        assert_eq!(group.probe(None, None)?, None);
        group.barrier().await
    })
}

#[test]
fn messages_are_told_apart_by_who_sent_them_and_under_what() {
    for size in 1..=17 {
        for result in simulate(size.into(), size, all_to_all) {
            result.unwrap();
        }
    }
    for transport in [Transport::Shm, Transport::Tcp] {
        for result in threads(transport, 3, all_to_all) {
            result.unwrap();
        }
    }
}

const FROM_EACH: u64 = 50;

/// The first member takes what comes.
fn gather_any(group: Group) -> Program<()> {
    Box::pin(async move {
        let (me, size) = (group.rank(), group.size());
        if me != 0 {
            for number in 0..FROM_EACH {
                // Some are large, and take other ways than small ones.
                let len = if number % 7 == 3 { 3000 } else { 1 };
                group.send(0, me as u32, &vec![number; len]).await?;
            }
            return Ok(());
        }
        let mut next = vec![0; size];
        for _ in 0..FROM_EACH * (size as u64 - 1) {
            let message = group.receive::<u64>(None, None).await?;
            assert_eq!(message.tag(), message.from() as u32);
            assert_eq!(message[0], next[message.from()], "from {}", message.from());
            next[message.from()] += 1;
        }
        assert!(next[1..].iter().all(|&next| next == FROM_EACH));
        Ok(())
    })
}

#[test]
fn messages_of_one_member_do_not_overtake_each_other() {
    for seed in 0..100 {
        for result in simulate(seed, 5, gather_any) {
            result.unwrap();
        }
    }
    for transport in [Transport::Shm, Transport::Tcp] {
        for result in threads(transport, 4, gather_any) {
            result.unwrap();
        }
    }
}

/// More than there is room for, in pieces small and large, all at once; and received in order.
fn crowded(group: Group) -> Program<()> {
    Box::pin(async move {
        let lens = (0..60).map(|number| if number % 2 == 0 { 1 << 17 } else { 1 });
        if group.rank() == 0 {
            let data: Vec<Vec<u64>> = lens
                .enumerate()
                .map(|(n, len)| vec![n as u64; len])
                .collect();
            let sends = data
                .iter()
                .map(|data| -> Task<'_, _> { Box::pin(group.send(1, 3, data).into_future()) });
            return together(sends.collect()).await.into_iter().collect();
        }
        for (number, len) in lens.enumerate() {
            let message = group.receive::<u64>(Some(0), Some(3)).await?;
            assert_eq!((message.len(), message[0]), (len, number as u64));
        }
        Ok(())
    })
}

#[test]
fn a_small_message_does_not_overtake_a_large_one_that_waits_for_room() {
    for result in simulate(3, 2, crowded) {
        result.unwrap();
    }
    for result in threads(Transport::Shm, 2, crowded) {
        result.unwrap();
    }
}

/// Several receivers wait for the same; those that asked last look first when there is something.
fn in_turn(group: Group) -> Program<()> {
    Box::pin(async move {
        if group.rank() == 0 {
            group.barrier().await?;
            for number in 0..6u32 {
                group.send(1, number % 2, &[number]).await?;
            }
            return group.barrier().await;
        }
        let wanted = [Some(0), None, None, Some(1), None, None];
        let mut receives = wanted.map(|tag| -> Task<'_, _> {
            Box::pin(group.receive::<u32>(Some(0), tag).into_future())
        });
        let ask = |receives: &mut [Task<'_, _>]| {
            let mut context = Context::from_waker(Waker::noop());
            let mut pending = receives.iter_mut();
            assert!(pending.all(|receive| receive.as_mut().poll(&mut context).is_pending()));
        };
        ask(&mut receives);
        group.barrier().await?;
        group.barrier().await?;
        receives.reverse();
        let received: Result<Vec<_>, Error> = together(receives.into()).await.into_iter().collect();
        let numbers: Vec<u32> = received?.iter().map(|message| message[0]).collect();
        assert_eq!(numbers, [5, 4, 3, 2, 1, 0]);
        Ok(())
    })
}

/// One that asked first and does not look does not hold up the next, when there is enough.
fn not_looking(group: Group) -> Program<()> {
    Box::pin(async move {
        if group.rank() == 0 {
            group.barrier().await?;
            group.send(1, 0, &[1u32]).await?;
            group.send(1, 0, &[2u32]).await?;
            return group.barrier().await;
        }
        let mut first = pin!(group.receive::<u32>(None, None).into_future());
        let mut context = Context::from_waker(Waker::noop());
        assert!(first.as_mut().poll(&mut context).is_pending());
        group.barrier().await?;
        assert_eq!(group.receive::<u32>(None, None).await?[..], [2]);
        assert_eq!(group.probe(None, None)?, None, "the other is promised");
        assert_eq!(first.await?[..], [1]);
        group.barrier().await
    })
}

#[test]
fn who_asked_first_is_served_first() {
    for seed in 0..200 {
        for result in simulate(seed, 2, in_turn) {
            result.unwrap();
        }
        for result in simulate(seed, 2, not_looking) {
            result.unwrap();
        }
    }
}

fn wrong_size(group: Group) -> Program<()> {
    Box::pin(async move {
        if group.rank() == 0 {
            group.send(1, 5, &[1u32, 2, 3]).await?;
            group.send(1, 6, &[[1u8; 3]]).await?;
        } else {
            let error = group.receive::<u64>(None, Some(5)).await.unwrap_err();
            let said = error.to_string();
            assert!(
                matches!(
                    error,
                    Error::Mismatch {
                        here: 1,
                        peer: 0,
                        ..
                    }
                ),
                "{said}"
            );
            assert!(said.contains("elements of 8 bytes"), "{said}");
            assert!(said.contains("elements of 4 bytes"), "{said}");
            // It is still there.
            assert_eq!(group.receive::<u32>(None, Some(5)).await?[..], [1, 2, 3]);
            let error = group.receive::<u8>(Some(0), Some(6)).await.unwrap_err();
            assert!(matches!(error, Error::Mismatch { .. }), "{error}");
            assert_eq!(group.receive::<[u8; 3]>(None, None).await?[..], [[1; 3]]);
        }
        // And the group is as good as before.
        group.barrier().await
    })
}

#[test]
fn elements_of_another_size_are_an_error_that_names_both() {
    for result in simulate(1, 2, wrong_size) {
        result.unwrap();
    }
}

fn loans(group: Group) -> Program<()> {
    Box::pin(async move {
        if group.rank() == 0 {
            for bytes in [0, 24, 1 << 20] {
                let mut loan = group.loan(bytes).await?;
                loan.fill(1);
                group.send_loan(1, 1, loan).await?;
            }
            let mut loan = group.loan(7).await?;
            loan.fill(1);
            group.send_loan(1, 2, loan).await?;
        } else {
            assert!(group.receive::<f64>(Some(0), None).await?.is_empty());
            let some = group.receive::<[u16; 4]>(Some(0), None).await?;
            assert_eq!(some[..], [[0x0101; 4]; 3]);
            let many = group.receive::<u64>(Some(0), None).await?;
            assert_eq!(many.len(), 1 << 17);
            assert!(many.iter().all(|&word| word == 0x0101_0101_0101_0101));
            let error = group.receive::<u16>(Some(0), Some(2)).await.unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::Malformed {
                        peer: 0,
                        expected: 2,
                        found: 7,
                        ..
                    }
                ),
                "{error}"
            );
            assert_eq!(group.receive::<u8>(Some(0), Some(2)).await?[..], [1; 7]);
        }
        Ok(())
    })
}

#[test]
fn a_loan_is_received_as_what_the_receiver_asks_for() {
    for result in simulate(1, 2, loans) {
        result.unwrap();
    }
    for transport in [Transport::Shm, Transport::Tcp] {
        for result in threads(transport, 2, loans) {
            result.unwrap();
        }
    }
}

/// Everybody sends to the next and hears from the one before, with more than fits at once.
fn circle(group: Group) -> Program<()> {
    Box::pin(async move {
        let (me, size) = (group.rank(), group.size());
        let (next, before) = ((me + 1) % size, (me + size - 1) % size);
        let mut token = vec![me as u64; 1 << 16];
        for _ in 0..size {
            let message = group
                .send_receive::<u64, u64>(next, 1, &token, Some(before), Some(1))
                .await?;
            token = message.to_vec();
        }
        assert!(token.iter().all(|&word| word == me as u64));
        Ok(())
    })
}

#[test]
fn a_circle_sends_and_receives_at_once() {
    for size in 1..=5 {
        for result in simulate(size.into(), size, circle) {
            result.unwrap();
        }
    }
    for result in threads(Transport::Shm, 3, circle) {
        result.unwrap();
    }
}

fn probes(group: Group) -> Program<()> {
    Box::pin(async move {
        if group.rank() == 0 {
            assert_eq!(group.probe(None, None)?, None);
            group.send(1, 4, &[1.5f32, 2.5]).await?;
            return group.barrier().await;
        }
        let found = poll_fn(|_| match group.probe(None, None).transpose() {
            Some(found) => Poll::Ready(found),
            None => Poll::Pending,
        });
        let found = found.await?;
        let envelope = Envelope {
            from: 0,
            tag: 4,
            bytes: 8,
        };
        assert_eq!(found, envelope);
        assert_eq!(group.probe(Some(0), Some(4))?, Some(envelope));
        assert_eq!(group.probe(Some(0), Some(5))?, None);
        assert_eq!(group.probe(Some(1), None)?, None);
        assert_eq!(group.receive::<f32>(None, None).await?[..], [1.5, 2.5]);
        assert_eq!(group.probe(None, None)?, None);
        group.barrier().await
    })
}

#[test]
fn a_probe_sees_what_would_be_received_and_leaves_it() {
    for seed in 0..20 {
        for result in simulate(seed, 2, probes) {
            result.unwrap();
        }
    }
}

/// The others end, one after a last message.
fn deserted(group: Group) -> Program<()> {
    Box::pin(async move {
        match group.rank() {
            0 => {
                let error = group.receive::<u8>(Some(1), None).await.unwrap_err();
                assert_eq!(error.lost(), Some(1), "{error}");
                // What was sent before counts.
                assert_eq!(group.receive::<u8>(None, None).await?.from(), 2);
                let error = group.receive::<u8>(None, None).await.unwrap_err();
                assert!(matches!(error.lost(), Some(1 | 2)), "{error}");
                assert_eq!(group.probe(Some(2), None).unwrap_err().lost(), Some(2));
                let error = group.send(1, 0, &[1u8]).await.unwrap_err();
                assert_eq!(error.lost(), Some(1), "{error}");
            }
            1 => {}
            _ => group.send(0, 0, &[1u8]).await?,
        }
        Ok(())
    })
}

#[test]
fn to_wait_for_who_has_left_is_an_error() {
    for seed in 0..100 {
        for result in simulate(seed, 3, deserted) {
            result.unwrap();
        }
    }
}

fn waits(group: Group) -> Program<()> {
    Box::pin(async move {
        let from = [Some(2), None, Some(0)][group.rank()];
        group.receive::<u8>(from, None).await.map(|_| ())
    })
}

#[test]
fn to_wait_for_who_is_killed_is_an_error() {
    for seed in 0..100 {
        let mut is_dead = false;
        let results = simulate_while(seed, 3, waits, |network, round| {
            if round > 400 && !is_dead {
                network.kill(2);
                is_dead = true;
            }
        });
        for result in &results[..2] {
            let error = result.as_ref().unwrap_err();
            assert_eq!(error.lost(), Some(2), "seed {seed}: {error}");
        }
    }
}

/// One member sends to one that does not receive, as long as it can.
fn flood(group: Group) -> Program<usize> {
    Box::pin(async move {
        match group.rank() {
            0 => {
                let sent = Cell::new(0);
                let mut flooding = pin!(async {
                    for number in 0..100_000u32 {
                        group.send(1, 0, &[number]).await?;
                        sent.set(sent.get() + 1);
                    }
                    Ok::<_, Error>(())
                });
                for _ in 0..100 {
                    let polled = poll_fn(|_| {
                        let context = &mut Context::from_waker(Waker::noop());
                        Poll::Ready(flooding.as_mut().poll(context))
                    });
                    assert!(polled.await.is_pending());
                }
                // Sixteen for each block of the window, at most, and there is still a way to others.
                assert!((1000..=20_000).contains(&sent.get()), "{}", sent.get());
                group.send(2, 0, &[1u32]).await?;
                flooding.await?;
                Ok(sent.get())
            }
            1 => {
                group.receive::<u8>(Some(2), None).await?;
                let waiting = std::iter::from_fn(|| group.probe(Some(0), None).transpose());
                waiting.take(1).try_for_each(|found| found.map(|_| ()))?;
                for number in 0..100_000u32 {
                    assert_eq!(group.receive::<u32>(Some(0), None).await?[..], [number]);
                }
                Ok(0)
            }
            _ => {
                group.receive::<u32>(Some(0), None).await?;
                group.send(1, 0, &[1u8]).await?;
                Ok(0)
            }
        }
    })
}

#[test]
fn who_does_not_receive_holds_up_who_sends_to_it() {
    let results = simulate(1, 3, flood);
    assert_eq!(
        results.into_iter().map(Result::unwrap).sum::<usize>(),
        100_000
    );
    for result in threads(Transport::Shm, 3, flood) {
        result.unwrap();
    }
}
