//! Every operation by every algorithm, beside a plain reference.

use std::{task::Poll, thread, time::Duration};

use collectives::{
    Algorithm, Error, Group, Operator,
    op::{self, Op, Sum},
};
use transport::Transport;

use crate::harness::{
    PERIOD, Program, lengthened, periodic, simulate, simulate_in, threads, threads_in,
};

/// Elements that are awkward for any number of members up to 17, and larger than a segment.
const LENGTHS: [usize; 7] = [0, 1, 2, 3, 17, 1000, 40_000];
/// The same where many members make it slow.
const SHORT_LENGTHS: [usize; 5] = [0, 1, 3, 17, 100];

/// Not commutative: the composition of the functions x -> a x + b on numbers modulo 2^32.
fn compose(f: [u32; 2], g: [u32; 2]) -> [u32; 2] {
    [
        f[0].wrapping_mul(g[0]),
        f[0].wrapping_mul(g[1]).wrapping_add(f[1]),
    ]
}

fn operand(member: usize, len: usize) -> Vec<[u32; 2]> {
    periodic(len, |index| {
        let (index, member) = (index as u32, member as u32);
        [2 * index + 3 + member, 7 * index + 11 * member]
    })
}

/// What an operation makes of the operands of members, one after another.
fn combined<O: Op<[u32; 2]>>(
    members: impl Iterator<Item = usize>,
    len: usize,
    op: &O,
) -> Vec<[u32; 2]> {
    let mut operands = members.map(|member| operand(member, len.min(PERIOD)));
    let mut all = operands.next().unwrap();
    for right in operands {
        op.combine(&mut all, &right);
    }
    lengthened(&all, len)
}

fn concatenated(size: usize, len: usize) -> Vec<[u32; 2]> {
    (0..size).flat_map(|member| operand(member, len)).collect()
}

/// One operation of every kind with one length, with the algorithm that is forced, if it can be.
pub(crate) async fn all_kinds<O: Op<[u32; 2]>>(
    group: &Group,
    len: usize,
    op: O,
    algorithm: Option<Algorithm>,
) -> Result<(), Error> {
    let (me, size) = (group.rank(), group.size());
    let roots = [0, size - 1, size / 2];
    let mine = operand(me, len);
    let said = format!("{algorithm:?}, member {me} of {size}, {len} elements");
    let use_it = |operation| {
        let can = algorithm
            .is_none_or(|algorithm| group.can(operation, algorithm, len * 8, op.is_commutative()));
        group.force(algorithm);
        can
    };
    if use_it(Operator::Barrier) {
        group.barrier().await?;
    }
    if use_it(Operator::Broadcast) {
        for root in roots {
            let mut data = mine.clone();
            group.broadcast(root, &mut data).await?;
            assert_eq!(data, operand(root, len), "broadcast from {root}: {said}");
        }
    }
    if use_it(Operator::Reduce) {
        for root in roots {
            let mut data = mine.clone();
            group.reduce(root, &mut data, op.clone()).await?;
            if me == root {
                assert_eq!(
                    data,
                    combined(0..size, len, &op),
                    "reduce to {root}: {said}"
                );
            }
        }
    }
    if use_it(Operator::AllReduce) {
        let mut data = mine.clone();
        group.all_reduce(&mut data, op.clone()).await?;
        assert_eq!(data, combined(0..size, len, &op), "all_reduce: {said}");
    }
    if use_it(Operator::ReduceScatter) {
        let data = operand(me, len * size);
        let all = combined(0..size, len * size, &op);
        let mut block = mine.clone();
        group.reduce_scatter(&data, &mut block, op.clone()).await?;
        assert_eq!(
            block,
            all[me * len..(me + 1) * len],
            "reduce_scatter: {said}"
        );
        let lens: Vec<usize> = (0..size).map(|member| (len + member) % (len + 1)).collect();
        let start: usize = lens[..me].iter().sum();
        let total = lens.iter().sum();
        let mut block = vec![[0; 2]; lens[me]];
        group
            .reduce_scatter_v(&data[..total], &lens, &mut block, op.clone())
            .await?;
        assert_eq!(
            block,
            all[start..start + lens[me]],
            "reduce_scatter_v: {said}"
        );
    }
    if use_it(Operator::Scan) {
        let mut data = mine.clone();
        group.scan(&mut data, op.clone()).await?;
        assert_eq!(data, combined(0..me + 1, len, &op), "scan: {said}");
        let mut data = mine.clone();
        group.exscan(&mut data, op.clone()).await?;
        let before = if me == 0 {
            mine.clone()
        } else {
            combined(0..me, len, &op)
        };
        assert_eq!(data, before, "exscan: {said}");
    }
    let mut all = vec![[0; 2]; len * size];
    if use_it(Operator::Gather) {
        for root in roots {
            all.fill([0; 2]);
            group.gather(root, &mine, &mut all).await?;
            if me == root {
                assert_eq!(all, concatenated(size, len), "gather to {root}: {said}");
            }
        }
    }
    if use_it(Operator::Scatter) {
        for root in roots {
            let data = operand(root, len * size);
            let mut block = mine.clone();
            group
                .scatter(root, if me == root { &data } else { &[] }, &mut block)
                .await?;
            assert_eq!(
                block,
                data[me * len..(me + 1) * len],
                "scatter from {root}: {said}"
            );
        }
    }
    if use_it(Operator::AllGather) {
        all.fill([0; 2]);
        group.all_gather(&mine, &mut all).await?;
        assert_eq!(all, concatenated(size, len), "all_gather: {said}");
    }
    if use_it(Operator::AllToAll) {
        let data = operand(me, len * size);
        group.all_to_all(&data, &mut all).await?;
        let expected: Vec<_> = (0..size)
            .flat_map(|from| operand(from, len * size)[me * len..(me + 1) * len].to_vec())
            .collect();
        assert_eq!(all, expected, "all_to_all: {said}");
    }
    Ok(())
}

/// Vectors of different lengths.
async fn varied(group: &Group) -> Result<(), Error> {
    let (me, size) = (group.rank(), group.size());
    let of = |member: usize| operand(member, [0, 3, 20_000, 1][member % 4]);
    let all = group.all_gather_v(&of(me)).await?;
    assert!(
        all.iter()
            .enumerate()
            .all(|(member, part)| part == of(member))
    );
    for root in [0, size - 1] {
        let all = group.gather_v(root, &of(me)).await?;
        assert_eq!(all.is_some(), me == root);
        assert!(
            all.iter()
                .flat_map(|all| all.iter().enumerate())
                .all(|(member, part)| part == of(member))
        );
        let parts: Vec<_> = (0..size).map(of).collect();
        let parts: Vec<_> = parts.iter().map(Vec::as_slice).collect();
        let mine = group
            .scatter_v(root, (me == root).then_some(&parts[..]))
            .await?;
        assert_eq!(mine, of(me));
    }
    let parts: Vec<_> = (0..size).map(|to| of(me + to)).collect();
    let parts: Vec<_> = parts.iter().map(Vec::as_slice).collect();
    let all = group.all_to_all_v(&parts).await?;
    assert!((0..size).all(|from| all[from] == of(me + from)));
    Ok(())
}

async fn all_algorithms(group: &Group, lengths: &[usize]) -> Result<(), Error> {
    for algorithm in Algorithm::ALL.map(Some).into_iter().chain([None]) {
        for &len in lengths {
            all_kinds(group, len, op::ordered_by(compose), algorithm).await?;
            all_kinds(group, len, op::by(add), algorithm).await?;
        }
    }
    group.force(None);
    varied(group).await
}

pub(crate) fn add(a: [u32; 2], b: [u32; 2]) -> [u32; 2] {
    [a[0].wrapping_add(b[0]), a[1].wrapping_add(b[1])]
}

fn short(group: Group) -> Program<()> {
    Box::pin(async move { all_algorithms(&group, &SHORT_LENGTHS).await })
}

fn long(group: Group) -> Program<()> {
    Box::pin(async move { all_algorithms(&group, &LENGTHS).await })
}

#[test]
fn every_algorithm_gives_what_a_plain_loop_gives_for_every_number_of_members() {
    for size in 1..=17 {
        for result in simulate(size.into(), size, short) {
            result.unwrap();
        }
    }
}

#[test]
fn every_algorithm_gives_what_a_plain_loop_gives_for_long_vectors() {
    for size in [2, 3, 5, 8] {
        for result in simulate(size.into(), size, long) {
            result.unwrap();
        }
    }
}

#[test]
fn threads_that_share_memory_get_the_same() {
    for size in [1, 2, 3, 4, 7] {
        for result in threads(Transport::Shm, size, long) {
            result.unwrap();
        }
    }
}

#[test]
fn threads_over_tcp_get_the_same() {
    for size in [2, 3, 5] {
        for result in threads(Transport::Tcp, size, long) {
            result.unwrap();
        }
    }
}

/// One more than travels in a packet, and some that are fetched, where an emulated device makes all slow.
fn over_devices(group: Group) -> Program<()> {
    Box::pin(async move { all_algorithms(&group, &[0, 3, 700, 5_000]).await })
}

#[test]
#[ignore = "needs RDMA: tests/rdma/run"]
fn threads_over_rdma_get_the_same() {
    for size in [2, 3] {
        for result in threads(Transport::Rdma, size, over_devices) {
            result.unwrap();
        }
    }
}

/// Hardly more than the boards of a group of eight, and a few segments.
const SMALL_ARENA: u64 = 1 << 20;

fn large(group: Group) -> Program<()> {
    Box::pin(async move { all_algorithms(&group, &[1000, 40_000]).await })
}

#[test]
fn vectors_larger_than_the_arenas_get_through_and_nobody_waits_for_room_for_ever() {
    for (size, seed) in [(2, 1), (8, 2), (5, 3)] {
        for result in simulate_in(SMALL_ARENA, seed, size, large) {
            result.unwrap();
        }
    }
}

#[test]
fn vectors_larger_than_the_arenas_get_through_on_every_link() {
    for (transport, size) in [
        (Transport::Shm, 2),
        (Transport::Shm, 5),
        (Transport::Tcp, 2),
        (Transport::Tcp, 5),
    ] {
        for result in threads_in(SMALL_ARENA, transport, size, large) {
            result.unwrap();
        }
    }
}

/// In rounds, with so much that it is stored past the caches (of up to 32 MiB), to places that do not begin with a line.
fn more_than_caches_hold(group: Group) -> Program<()> {
    const LEN: usize = 900_001;
    Box::pin(async move {
        let (me, size) = (group.rank(), group.size());
        group.force(Some(Algorithm::Rounds));
        let mine = operand(me, LEN);
        let many = operand(me, LEN * size);
        let part_of = |member| operand(member, LEN * size)[me * LEN..][..LEN].to_vec();
        let mut all = vec![[0; 2]; LEN * size + 1];
        let root = size - 1;

        group.gather(root, &mine, &mut all[1..]).await?;
        assert!(me != root || all[1..] == concatenated(size, LEN), "gather");
        all.fill([0; 2]);
        group.all_gather(&mine, &mut all[1..]).await?;
        assert!(all[1..] == concatenated(size, LEN), "all_gather");
        group.all_to_all(&many, &mut all[1..]).await?;
        let expected: Vec<_> = (0..size).flat_map(part_of).collect();
        assert!(all[1..] == expected, "all_to_all");
        let mut block = vec![[0; 2]; LEN];
        group.scatter(root, &many, &mut block).await?;
        assert!(block == part_of(root), "scatter");
        all[1..].copy_from_slice(&many);
        group.broadcast(root, &mut all[1..]).await?;
        assert!(all[1..] == operand(root, LEN * size), "broadcast");
        Ok(())
    })
}

#[test]
fn what_no_cache_holds_arrives_whole() {
    for result in threads(Transport::Shm, 2, more_than_caches_hold) {
        result.unwrap();
    }
}

/// All but the last member are ahead of it with what they send to the first, and what the last one sends has to get past that.
fn gathers(group: Group) -> Program<()> {
    Box::pin(async move {
        let (me, size) = (group.rank(), group.size());
        if me == size - 1 {
            // Until the others have sent all that they can.
            thread::sleep(Duration::from_millis(50));
        }
        let mine = operand(me, 30_000);
        let mut all = vec![[0; 2]; 30_000 * size];
        for _ in 0..100 {
            group.gather(0, &mine, &mut all).await?;
        }
        assert!(me != 0 || all == concatenated(size, 30_000));
        Ok(())
    })
}

#[test]
fn members_that_are_ahead_do_not_fill_the_memory_that_others_need() {
    for transport in [Transport::Shm, Transport::Tcp] {
        for result in threads_in(SMALL_ARENA, transport, 4, gathers) {
            result.unwrap();
        }
    }
}

/// Runs ahead of the others, which are in operations of another group, with operations that are under way together.
fn ahead(group: Group) -> Program<()> {
    Box::pin(async move {
        let other = group.duplicate().await?;
        let (me, size) = (group.rank(), group.size());
        let mut data = operand(me, 100_000);
        let mut sum = operand(me, 100_000);
        if me == 0 {
            // Both at a time.
            let mut first = Box::pin(other.broadcast(0, &mut data).into_future());
            let mut second = Box::pin(group.all_reduce(&mut sum, op::by(add)).into_future());
            let (mut first_is_over, mut second_is_over) = (false, false);
            std::future::poll_fn(|context| {
                for (future, is_over) in [
                    (
                        first.as_mut() as std::pin::Pin<&mut dyn Future<Output = _>>,
                        &mut first_is_over,
                    ),
                    (second.as_mut(), &mut second_is_over),
                ] {
                    if !*is_over && let Poll::Ready(result) = future.poll(context) {
                        result?;
                        *is_over = true;
                    }
                }
                match first_is_over && second_is_over {
                    true => Poll::Ready(Ok::<(), Error>(())),
                    false => Poll::Pending,
                }
            })
            .await?;
        } else {
            // One after another, the other way round.
            group.all_reduce(&mut sum, op::by(add)).await?;
            other.broadcast(0, &mut data).await?;
        }
        assert_eq!(data, operand(0, 100_000));
        assert_eq!(sum, combined(0..size, 100_000, &op::by(add)));
        Ok(())
    })
}

#[test]
fn operations_that_only_some_run_at_the_same_time_do_not_wait_for_each_others_room() {
    for seed in 0..20 {
        for result in simulate_in(SMALL_ARENA, seed, 2 + (seed % 3) as u32, ahead) {
            result.unwrap();
        }
    }
}

/// Sums of ranks, by a group of some members.
async fn sum(group: &Group) -> Result<u64, Error> {
    let mut sum = [u64::from(group.members()[group.rank()])];
    group.all_reduce(&mut sum, Sum).await?;
    Ok(sum[0])
}

fn groups(world: Group) -> Program<()> {
    Box::pin(async move {
        let (me, size) = (world.rank(), world.size());
        let parity = world
            .split(Some(me as u64 % 2), -(me as i64))
            .await?
            .unwrap();
        let members: Vec<u32> = (0..size as u32)
            .rev()
            .filter(|rank| rank % 2 == me as u32 % 2)
            .collect();
        assert_eq!(parity.members(), members);
        let copy = parity.duplicate().await?;
        assert_eq!(
            sum(&copy).await?,
            members.iter().map(|&rank| u64::from(rank)).sum::<u64>()
        );
        let some = world.subgroup(&[size - 1, 0]).await?;
        assert_eq!(some.is_some(), me == 0 || me == size - 1);
        if let Some(some) = some {
            assert_eq!(some.members(), [size as u32 - 1, 0]);
            assert_eq!(sum(&some).await?, size as u64 - 1);
        }
        assert!(world.split(None, 0).await?.is_none());
        drop(parity);
        assert_eq!(sum(&world).await?, (size * (size - 1) / 2) as u64);
        Ok(())
    })
}

#[test]
fn groups_are_made_of_groups() {
    for size in 2..=9 {
        for result in simulate(size.into(), size, groups) {
            result.unwrap();
        }
    }
    for result in threads(Transport::Shm, 4, groups) {
        result.unwrap();
    }
}
