//! Operations over whole buffers.

use collectives::{Error, Group};
use transport::{Buffer, Loan, Transport};

use crate::harness::{ARENA, Program, simulate, threads};

/// Bytes with and without a place of their own.
const LENGTHS: [usize; 5] = [0, 1, 104, 105, 100_000];

fn byte(from: usize, to: usize) -> u8 {
    (7 * from + 3 * to + 1) as u8
}

async fn lend(group: &Group, to: usize, bytes: usize) -> Result<Loan, Error> {
    let mut loan = group.loan(bytes).await?;
    loan.fill(byte(group.rank(), to));
    Ok(loan)
}

fn check(buffer: &Buffer, from: usize, to: usize, bytes: usize) {
    assert_eq!(buffer.len(), bytes, "from {from} to {to}");
    assert!(
        buffer.iter().all(|&found| found == byte(from, to)),
        "from {from} to {to}"
    );
}

fn all_kinds(group: Group) -> Program<()> {
    Box::pin(async move {
        let (me, size) = (group.rank(), group.size());
        for bytes in LENGTHS {
            let of = |member: usize| {
                if member.is_multiple_of(2) {
                    bytes
                } else {
                    bytes / 2
                }
            };
            for root in [0, size - 1, size / 2] {
                let loan = match me == root {
                    true => Some(lend(&group, 0, bytes).await?),
                    false => None,
                };
                check(&group.broadcast_buffer(root, loan).await?, root, 0, bytes);

                let all = group
                    .gather_buffers(root, lend(&group, 0, of(me)).await?)
                    .await?;
                assert_eq!(all.is_some(), me == root);
                for (from, buffer) in all.iter().flatten().enumerate() {
                    check(buffer, from, 0, of(from));
                }

                let mut loans = Vec::new();
                for to in (0..size).filter(|_| me == root) {
                    loans.push(lend(&group, to, of(to)).await?);
                }
                let loans = (me == root).then_some(loans);
                check(&group.scatter_buffers(root, loans).await?, root, me, of(me));
            }
            let all = group
                .all_gather_buffers(lend(&group, 0, of(me)).await?)
                .await?;
            assert_eq!(all.len(), size);
            for (from, buffer) in all.iter().enumerate() {
                check(buffer, from, 0, of(from));
            }
            let mut loans = Vec::new();
            for to in 0..size {
                loans.push(lend(&group, to, of(me + to)).await?);
            }
            let all = group.all_to_all_buffers(loans).await?;
            assert_eq!(all.len(), size);
            for (from, buffer) in all.iter().enumerate() {
                check(buffer, from, me, of(from + me));
            }
        }
        Ok(())
    })
}

#[test]
fn buffers_arrive_where_they_belong_for_every_number_of_members() {
    for size in 1..=17 {
        for result in simulate(size.into(), size, all_kinds) {
            result.unwrap();
        }
    }
    for size in [1, 2, 3, 5] {
        for result in threads(Transport::Shm, size, all_kinds) {
            result.unwrap();
        }
    }
    for result in threads(Transport::Tcp, 3, all_kinds) {
        result.unwrap();
    }
}

/// The root has most of its memory in one buffer, and the others have none left.
fn without_room(group: Group) -> Program<()> {
    Box::pin(async move {
        let bytes = ARENA as usize * 5 / 8;
        let (me, root) = (group.rank(), 1);
        let mut kept = Vec::new();
        if me != root {
            // All but a little.
            for part in [ARENA as usize * 5 / 8, ARENA as usize / 4] {
                kept.push(group.loan(part).await?);
            }
        }
        for _ in 0..3 {
            let loan = match me == root {
                true => Some(lend(&group, 0, bytes).await?),
                false => None,
            };
            let buffer = group.broadcast_buffer(root, loan).await?;
            check(&buffer, root, 0, bytes);
        }
        Ok(())
    })
}

#[test]
fn what_members_that_share_memory_give_each_other_is_not_copied() {
    for result in threads(Transport::Shm, 3, without_room) {
        result.unwrap();
    }
}

fn nothing_to_give(group: Group) -> Program<()> {
    Box::pin(async move {
        let error = group
            .broadcast_buffer(group.rank(), None)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
        let error = group.scatter_buffers(group.rank(), None).await.unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
        let error = group.all_to_all_buffers(Vec::new()).await.unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
        let loan = group.loan(1).await?;
        let error = group.gather_buffers(group.size(), loan).await.unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
        // None of that was a call of the group.
        group.barrier().await
    })
}

#[test]
fn arguments_that_make_no_sense_are_errors() {
    for result in simulate(1, 2, nothing_to_give) {
        result.unwrap();
    }
}
