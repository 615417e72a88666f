//! Operations that are planned once and run often.

use collectives::{
    Algorithm, Error, Group, Operator,
    op::{self, Op, Sum},
};
use transport::Transport;

use crate::harness::{Program, periodic, simulate, threads};

/// Elements that fit on a board, that do not, and that take several segments.
const LENGTHS: [usize; 4] = [0, 3, 700, 20_000];
const SHORT_LENGTHS: [usize; 2] = [3, 40];

fn operand(member: usize, run: usize, len: usize) -> Vec<u64> {
    periodic(len, |index| {
        (member << 33 | run << 40 | (index * 3 + member)) as u64
    })
}

/// Not commutative: the composition of functions x -> a x + b on numbers modulo 2^32, each in the halves of a word.
fn compose(left: u64, right: u64) -> u64 {
    let [f, g] = [left, right].map(|word| ((word >> 32) as u32 | 1, word as u32));
    let a = f.0.wrapping_mul(g.0);
    let b = f.0.wrapping_mul(g.1).wrapping_add(f.1);
    u64::from(a) << 32 | u64::from(b)
}

/// Each kind of plan, run several times, beside the operation that it stands for.
async fn all_kinds<O: Op<u64>>(group: &Group, len: usize, op: O) -> Result<(), Error> {
    let (me, size) = (group.rank(), group.size());
    let root = size / 2;
    let broadcast = group.plan_broadcast(root, len).await?;
    let reduce = group.plan_reduce(root, len, op.clone()).await?;
    let all_reduce = group.plan_all_reduce(len, op.clone()).await?;
    let scan = group.plan_scan(len, op.clone()).await?;
    let exscan = group.plan_exscan(len, op.clone()).await?;
    let reduce_scatter = group.plan_reduce_scatter(len, op.clone()).await?;
    let gather = group.plan_gather(root, len).await?;
    let scatter = group.plan_scatter(root, len).await?;
    let all_gather = group.plan_all_gather(len).await?;
    let all_to_all = group.plan_all_to_all(len).await?;
    for run in 0..2 {
        let mine = operand(me, run, len);
        let many = operand(me, run, len * size);
        let mut none = Vec::new();

        let (mut one, mut other) = (mine.clone(), mine.clone());
        broadcast.run(&mut one).await?;
        group.broadcast(root, &mut other).await?;
        assert_eq!(one, other, "broadcast");

        let (mut one, mut other) = (mine.clone(), mine.clone());
        reduce.run(&mut one).await?;
        group.reduce(root, &mut other, op.clone()).await?;
        assert!(me != root || one == other, "reduce");

        let (mut one, mut other) = (mine.clone(), mine.clone());
        all_reduce.run(&mut one).await?;
        group.all_reduce(&mut other, op.clone()).await?;
        assert_eq!(one, other, "all_reduce");

        let (mut one, mut other) = (mine.clone(), mine.clone());
        scan.run(&mut one).await?;
        group.scan(&mut other, op.clone()).await?;
        assert_eq!(one, other, "scan");

        let (mut one, mut other) = (mine.clone(), mine.clone());
        exscan.run(&mut one).await?;
        group.exscan(&mut other, op.clone()).await?;
        assert_eq!(one, other, "exscan");

        let (mut one, mut other) = (mine.clone(), mine.clone());
        reduce_scatter.run_into(&many, &mut one).await?;
        group.reduce_scatter(&many, &mut other, op.clone()).await?;
        assert_eq!(one, other, "reduce_scatter");

        let (mut one, mut other) = (many.clone(), many.clone());
        gather
            .run_into(&mine, if me == root { &mut one } else { &mut none })
            .await?;
        group
            .gather(root, &mine, if me == root { &mut other } else { &mut none })
            .await?;
        assert_eq!(one, other, "gather");

        let (mut one, mut other) = (mine.clone(), mine.clone());
        let all = if me == root { &many[..] } else { &[] };
        scatter.run_into(all, &mut one).await?;
        group.scatter(root, all, &mut other).await?;
        assert_eq!(one, other, "scatter");

        let (mut one, mut other) = (many.clone(), many.clone());
        all_gather.run_into(&mine, &mut one).await?;
        group.all_gather(&mine, &mut other).await?;
        assert_eq!(one, other, "all_gather");

        let (mut one, mut other) = (many.clone(), many.clone());
        all_to_all.run_into(&many, &mut one).await?;
        group.all_to_all(&many, &mut other).await?;
        assert_eq!(one, other, "all_to_all");
    }
    Ok(())
}

async fn all_algorithms(group: &Group, lengths: &[usize]) -> Result<(), Error> {
    for algorithm in Algorithm::ALL.map(Some).into_iter().chain([None]) {
        group.force(algorithm);
        for &len in lengths {
            all_kinds(group, len, Sum).await?;
            all_kinds(group, len, op::ordered_by(compose)).await?;
        }
    }
    group.force(None);
    Ok(())
}

fn long(group: Group) -> Program<()> {
    Box::pin(async move { all_algorithms(&group, &LENGTHS).await })
}

fn short(group: Group) -> Program<()> {
    Box::pin(async move { all_algorithms(&group, &SHORT_LENGTHS).await })
}

#[test]
fn a_plan_does_what_the_operation_does_by_every_algorithm() {
    // Powers of two, what is beside them, and primes: the operations themselves are tested with every number.
    for size in [1, 2, 3, 4, 5, 8, 11, 17] {
        for result in simulate(size.into(), size, short) {
            result.unwrap();
        }
    }
    for size in [1, 2, 4] {
        for result in threads(Transport::Shm, size, long) {
            result.unwrap();
        }
    }
    for result in threads(Transport::Tcp, 3, long) {
        result.unwrap();
    }
}

fn keeps_its_algorithm(group: Group) -> Program<()> {
    Box::pin(async move {
        group.force(Some(Algorithm::RecursiveDoubling));
        let plan = group.plan_all_reduce::<u64, _>(5, Sum).await?;
        group.force(None);
        assert_eq!(plan.algorithm(), Algorithm::RecursiveDoubling);
        assert!(group.can(Operator::AllReduce, plan.algorithm(), 40, true));
        let mut data = [1; 5];
        plan.run(&mut data).await?;
        assert_eq!(data, [group.size() as u64; 5]);
        let error = plan.run(&mut [1; 4]).await.unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
        assert!(error.to_string().contains("5 that were planned"), "{error}");
        group.barrier().await
    })
}

#[test]
fn a_plan_keeps_its_algorithm_and_its_lengths() {
    for result in simulate(1, 3, keeps_its_algorithm) {
        result.unwrap();
    }
}

fn differ(group: Group) -> Program<()> {
    Box::pin(async move {
        let len = 5 + group.rank();
        group.plan_all_reduce::<u64, _>(len, Sum).await.map(|_| ())
    })
}

#[test]
fn plans_that_differ_are_an_error_that_names_both() {
    for seed in 0..20 {
        for result in simulate(seed, 2, differ) {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Mismatch { .. }), "{error}");
            assert!(error.to_string().contains("planned all_reduce"), "{error}");
        }
    }
}
