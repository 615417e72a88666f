//! Operations over values that rkyv archives.

use std::collections::BTreeMap;

use collectives::{
    Error, Group,
    rkyv::{Archive, Deserialize, Serialize},
};
use transport::Transport;

use crate::harness::{Program, simulate, threads};

#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(crate = collectives::rkyv)]
enum Shape {
    Point,
    Named {
        name: String,
        points: Vec<(f64, f64)>,
    },
    Many(BTreeMap<u32, String>),
}

/// A value of any size for a pair of members.
fn shape(from: usize, to: usize) -> Shape {
    match (from + to) % 4 {
        0 => Shape::Point,
        1 => Shape::Named {
            name: format!("{from} to {to}"),
            points: (0..from * 10).map(|at| (at as f64, to as f64)).collect(),
        },
        2 => Shape::Many(
            (0..40)
                .map(|key| (key, format!("{key}:{from}:{to}")))
                .collect(),
        ),
        _ => Shape::Named {
            name: "long".repeat(5000),
            points: Vec::new(),
        },
    }
}

fn all_kinds(group: Group) -> Program<()> {
    Box::pin(async move {
        let (me, size) = (group.rank(), group.size());
        for root in [0, size - 1, size / 2] {
            let value = (me == root).then(|| shape(root, 1));
            assert_eq!(group.broadcast_value(root, value).await?, shape(root, 1));

            let all = group.gather_values(root, shape(me, 2)).await?;
            let expected = (0..size).map(|from| shape(from, 2)).collect();
            assert_eq!(all, (me == root).then_some(expected));

            let values = (0..size).map(|to| shape(root, to)).collect();
            let mine = group
                .scatter_values(root, (me == root).then_some(values))
                .await?;
            assert_eq!(mine, shape(root, me));

            // Not commutative, and it shows how values were combined.
            let words = group
                .reduce_value(root, format!("{me}"), |a, b| a + "-" + &b)
                .await?;
            let expected: Vec<_> = (0..size).map(|member| member.to_string()).collect();
            assert_eq!(words, (me == root).then(|| expected.join("-")));
            let words = group
                .all_reduce_value(format!("{me}"), |a, b| a + "-" + &b)
                .await?;
            assert_eq!(words, expected.join("-"));
        }
        let all = group.all_gather_values(shape(me, 3)).await?;
        assert!(
            all.iter()
                .enumerate()
                .all(|(from, value)| *value == shape(from, 3))
        );
        assert_eq!(all.len(), size);
        let values = (0..size).map(|to| shape(me, to)).collect();
        let all = group.all_to_all_values(values).await?;
        assert!(
            all.iter()
                .enumerate()
                .all(|(from, value)| *value == shape(from, me))
        );
        assert_eq!(all.len(), size);
        Ok(())
    })
}

#[test]
fn values_arrive_as_they_were_for_every_number_of_members() {
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

/// Floats whose sum depends on how they are grouped.
fn sum(group: Group) -> Program<u64> {
    Box::pin(async move {
        let mine = 0.1 + group.rank() as f64 * 1e15;
        let sum = group.all_reduce_value(mine, |a, b| a + b).await?;
        Ok(sum.to_bits())
    })
}

#[test]
fn values_are_combined_the_same_way_whatever_the_network_does() {
    for size in [3, 8, 13] {
        let mut sums: Vec<u64> = (0..50)
            .flat_map(|seed| simulate(seed, size, sum))
            .map(Result::unwrap)
            .collect();
        sums.dedup();
        assert_eq!(sums.len(), 1);
    }
}

fn of_different_types(group: Group) -> Program<()> {
    Box::pin(async move {
        if group.rank() == 0 {
            group.all_gather_values(7u32).await.map(|_| ())
        } else {
            group
                .all_gather_values("seven".to_owned())
                .await
                .map(|_| ())
        }
    })
}

#[test]
fn values_of_different_types_are_an_error_that_names_both() {
    for seed in 0..20 {
        for result in simulate(seed, 2, of_different_types) {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        }
    }
}
