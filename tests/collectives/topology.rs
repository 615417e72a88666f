//! Operations among neighbours, on grids and in graphs.

use collectives::{Cartesian, Dimension, Error, Graph, Group, Neighbours};
use transport::Transport;

use crate::harness::{Program, periodic, simulate, threads};

/// Elements that take no loan, one segment and several.
const LENGTHS: [usize; 4] = [0, 1, 17, 20_000];

/// What a member sends from a place of its targets.
fn block(from: usize, place: usize, len: usize) -> Vec<u32> {
    periodic(len, |index| {
        (from << 20 | place << 16) as u32 ^ index as u32
    })
}

/// What every operation among neighbours gives, where `sent_to(place)` says who sends to us at a place of our sources, and
/// from which of its own.
async fn all_kinds(
    group: &Group,
    neighbours: &Neighbours,
    sent_to: impl Fn(usize) -> Option<(usize, usize)>,
) -> Result<(), Error> {
    let me = group.rank();
    let (sources, targets) = (neighbours.sources().len(), neighbours.targets().len());
    for len in LENGTHS {
        let untouched = vec![u32::MAX; len];
        let mut all = untouched.repeat(sources);
        group
            .neighbour_all_gather(neighbours, &block(me, 9, len), &mut all)
            .await?;
        for place in 0..sources {
            let expected =
                sent_to(place).map_or(untouched.clone(), |(from, _)| block(from, 9, len));
            assert_eq!(
                all[place * len..][..len],
                expected,
                "member {me}, place {place}"
            );
        }

        let data: Vec<u32> = (0..targets)
            .flat_map(|place| block(me, place, len))
            .collect();
        let mut into = untouched.repeat(sources);
        group
            .neighbour_all_to_all(neighbours, &data, &mut into)
            .await?;
        for place in 0..sources {
            let expected =
                sent_to(place).map_or(untouched.clone(), |(from, place)| block(from, place, len));
            assert_eq!(
                into[place * len..][..len],
                expected,
                "member {me}, place {place}"
            );
        }

        // Longer for some places than for others.
        let of = |from: usize, place: usize| block(from, place, len * ((from + place) % 3));
        let parts: Vec<_> = (0..targets).map(|place| of(me, place)).collect();
        let parts: Vec<_> = parts.iter().map(Vec::as_slice).collect();
        let all = group.neighbour_all_to_all_v(neighbours, &parts).await?;
        assert_eq!(all.len(), sources);
        for (place, part) in all.iter().enumerate() {
            let expected = sent_to(place).map_or(vec![], |(from, place)| of(from, place));
            assert_eq!(part, expected, "member {me}, place {place}");
        }

        let mut loans = Vec::new();
        for place in 0..targets {
            // From one place in five there is none.
            let bytes: Vec<u8> = of(me, place).iter().map(|&word| word as u8).collect();
            loans.push(if (me + place) % 5 == 4 {
                None
            } else {
                let mut loan = group.loan(bytes.len()).await?;
                loan.copy_from_slice(&bytes);
                Some(loan)
            });
        }
        let all = group.neighbour_exchange(neighbours, loans).await?;
        assert_eq!(all.len(), sources);
        for (place, buffer) in all.iter().enumerate() {
            let expected = sent_to(place).map(|(from, place)| {
                let words = if (from + place) % 5 == 4 {
                    vec![]
                } else {
                    of(from, place)
                };
                words.iter().map(|&word| word as u8).collect::<Vec<u8>>()
            });
            assert_eq!(
                buffer.as_deref(),
                expected.as_deref(),
                "member {me}, place {place}"
            );
        }
    }
    Ok(())
}

fn on_grids(group: Group) -> Program<()> {
    Box::pin(async move {
        let (me, size) = (group.rank(), group.size());
        for dimensions in 1..=3 {
            for periodic in [[true; 3], [false; 3], [true, false, true]] {
                let grid = Cartesian::balanced(size, &periodic[..dimensions])?;
                let neighbours = group.cartesian(&grid).await?;
                let sent_to = |place: usize| {
                    // Whoever is above us sends us what it sends down, and the other way round.
                    let by = if place.is_multiple_of(2) { -1 } else { 1 };
                    let from = grid.shift(me, place / 2, by).1?;
                    Some((from, place ^ 1))
                };
                assert_eq!(neighbours.sources().len(), 2 * dimensions);
                all_kinds(&group, &neighbours, sent_to).await?;
            }
        }
        // Dimensions along which a member is its own neighbour.
        let dimensions = [1, size, 1].map(|len| Dimension {
            len,
            is_periodic: true,
        });
        let grid = Cartesian::new(&dimensions);
        let neighbours = group.cartesian(&grid).await?;
        let sent_to = |place: usize| {
            let by = if place.is_multiple_of(2) { -1 } else { 1 };
            Some((grid.shift(me, place / 2, by).1?, place ^ 1))
        };
        all_kinds(&group, &neighbours, sent_to).await
    })
}

/// Each member sends to some of those after it, to one of them twice, and some to themselves.
fn graph(size: usize) -> Vec<Vec<usize>> {
    (0..size)
        .map(|member| {
            let mut targets: Vec<_> = (1..=member % 4)
                .map(|by| (member + by * by) % size)
                .collect();
            targets.extend((member % 3 == 1).then_some(member));
            targets.extend(targets.first().copied());
            targets
        })
        .collect()
}

fn in_graphs(group: Group) -> Program<()> {
    Box::pin(async move {
        let (me, size) = (group.rank(), group.size());
        let targets = graph(size);
        // Edges that lead here, member by member, in the order of each member's places.
        let edges: Vec<(usize, usize)> = (0..size)
            .flat_map(|from| (0..targets[from].len()).map(move |place| (from, place)))
            .filter(|&(from, place)| targets[from][place] == me)
            .collect();
        let neighbours = group.graph(&Graph::new(targets.clone())).await?;
        assert_eq!(neighbours.sources().len(), edges.len());
        all_kinds(&group, &neighbours, |place| Some(edges[place])).await?;

        // The same, as each member says itself, with those it hears from in another order.
        let sources: Vec<usize> = edges.iter().rev().map(|&(from, _)| from).collect();
        let neighbours = group.adjacent(&sources, &targets[me]).await?;
        let mut taken = vec![0; size];
        let edges: Vec<_> = (sources.iter())
            .map(|&source| {
                let from_it = edges.iter().filter(|&&(from, _)| from == source);
                taken[source] += 1;
                *from_it.clone().nth(taken[source] - 1).unwrap()
            })
            .collect();
        all_kinds(&group, &neighbours, |place| Some(edges[place])).await
    })
}

#[test]
fn neighbours_on_a_grid_hear_from_each_other() {
    for size in 1..=17 {
        for result in simulate(size.into(), size, on_grids) {
            result.unwrap();
        }
    }
    for size in [1, 2, 4, 6] {
        for result in threads(Transport::Shm, size, on_grids) {
            result.unwrap();
        }
    }
    for result in threads(Transport::Tcp, 4, on_grids) {
        result.unwrap();
    }
}

#[test]
fn neighbours_in_a_graph_hear_from_each_other() {
    for size in 1..=17 {
        for result in simulate(size.into(), size, in_graphs) {
            result.unwrap();
        }
    }
    for transport in [Transport::Shm, Transport::Tcp] {
        for result in threads(transport, 5, in_graphs) {
            result.unwrap();
        }
    }
}

fn unheard(group: Group) -> Program<()> {
    Box::pin(async move {
        let (me, size) = (group.rank(), group.size());
        let targets = if me == 1 { vec![2] } else { vec![] };
        let error = group.adjacent(&[], &targets).await.unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("member 1 does not send to member 2 as often"),
            "{said}"
        );
        let grid = Cartesian::balanced(size + 1, &[true])?;
        let error = group.cartesian(&grid).await.unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
        let error = group.adjacent(&[size], &[]).await.unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");

        // Neighbours of one group are none of another.
        let grid = Cartesian::balanced(size, &[true])?;
        let neighbours = group.cartesian(&grid).await?;
        if let Some(two) = group.subgroup(&[0, 1]).await? {
            let parts = [&[1u8][..]; 2];
            let error = two
                .neighbour_all_to_all_v(&neighbours, &parts)
                .await
                .unwrap_err();
            assert!(matches!(error, Error::Argument { .. }), "{error}");
        }
        group.barrier().await
    })
}

#[test]
fn neighbours_that_do_not_agree_are_an_error_at_all() {
    for result in simulate(1, 4, unheard) {
        result.unwrap();
    }
}
