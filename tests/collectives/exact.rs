//! Sums that are the same bits however they come about.

use collectives::{Algorithm, ExactSum, Group, MergeExact};
use transport::Transport;

use crate::harness::{Program, simulate, threads};

/// Short enough to travel as sums; longer; and of several rounds.
const LENGTHS: [usize; 5] = [0, 1, 7, 8, 40_000];
const SHORT_LENGTHS: [usize; 5] = [0, 1, 7, 8, 100];
/// Terms of the sums that are spread among the members.
const TERMS: usize = 1000;

/// Floats of very different sizes that mostly cancel.
fn term(index: usize) -> f64 {
    let mut random = (index as u64 / 2 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    random ^= random >> 31;
    let scale = 2f64.powi((random % 600) as i32 - 300);
    let value = (random >> 11) as f64 * scale;
    match index % 2 {
        0 => value,
        _ => -value * (1.0 + f64::EPSILON),
    }
}

fn operand(member: usize, len: usize) -> Vec<f64> {
    (0..len).map(|index| term(member * 7919 + index)).collect()
}

async fn all_lengths(group: &Group, lengths: &[usize]) -> Result<(), collectives::Error> {
    let (me, size) = (group.rank(), group.size());
    for &len in lengths {
        let operands: Vec<_> = (0..size).map(|member| operand(member, len)).collect();
        let expected: Vec<u64> = (0..len)
            .map(|index| {
                let terms = operands.iter().rev().map(|operand| operand[index]);
                terms.collect::<ExactSum>().value().to_bits()
            })
            .collect();
        let bits = |data: &[f64]| data.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        for algorithm in Algorithm::ALL.map(Some).into_iter().chain([None]) {
            group.force(algorithm);
            let mut data = operands[me].clone();
            group.all_reduce_exact(&mut data).await?;
            assert_eq!(bits(&data), expected, "{algorithm:?}, {size} members");
            let root = size / 2;
            let mut data = operands[me].clone();
            group.reduce_exact(root, &mut data).await?;
            if me == root {
                assert_eq!(bits(&data), expected, "{algorithm:?}, {size} members");
            }
        }
        group.force(None);
    }
    Ok(())
}

fn long(group: Group) -> Program<()> {
    Box::pin(async move { all_lengths(&group, &LENGTHS).await })
}

fn short(group: Group) -> Program<()> {
    Box::pin(async move { all_lengths(&group, &SHORT_LENGTHS).await })
}

#[test]
fn exact_sums_of_vectors_are_rounded_once_by_every_algorithm() {
    for size in 1..=17 {
        for result in simulate(size.into(), size, short) {
            result.unwrap();
        }
    }
    for result in simulate(1, 3, long) {
        result.unwrap();
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

/// Sums of the same terms, whatever the number of members among whom they are spread.
fn spread(group: Group) -> Program<Vec<[u64; 2]>> {
    Box::pin(async move {
        let (me, size) = (group.rank(), group.size());
        let mine = me * TERMS / size..(me + 1) * TERMS / size;
        let mut bits = Vec::new();
        for algorithm in Algorithm::ALL.map(Some).into_iter().chain([None]) {
            group.force(algorithm);
            let part = mine.clone();
            let dealt = (0..TERMS).filter(|index| index % size == me);
            let mut sums = [
                part.map(term).collect(),
                dealt.map(term).collect::<ExactSum>(),
            ];
            group.all_reduce_sums(&mut sums).await?;
            bits.push(sums.each_ref().map(|sum| sum.value().to_bits()));

            // The same by hand, with an operation over what they travel as.
            let mut words = [mine.clone().map(term).collect::<ExactSum>().to_words()];
            group.reduce(size - 1, &mut words, MergeExact).await?;
            if me == size - 1 {
                assert_eq!(words, [sums[0].to_words()]);
            }
        }
        Ok(bits)
    })
}

#[test]
fn the_same_terms_give_the_same_bits_for_any_number_of_members() {
    let sum: ExactSum = (0..TERMS).rev().map(term).collect();
    let expected = sum.value().to_bits();
    let plain = (0..TERMS).map(term).sum::<f64>();
    assert_ne!(plain.to_bits(), expected, "a plain sum would do");
    for size in 1..=17 {
        for result in simulate(size.into(), size, spread) {
            let bits = result.unwrap();
            assert!(
                bits.iter().all(|bits| *bits == [expected; 2]),
                "{size} members"
            );
        }
    }
    for (transport, size) in [
        (Transport::Shm, 3),
        (Transport::Shm, 4),
        (Transport::Tcp, 2),
    ] {
        for result in threads(transport, size, spread) {
            assert!(result.unwrap().iter().all(|bits| *bits == [expected; 2]));
        }
    }
}
