//! Harp's operations on tables, beside plain maps: the same whatever the number of members, the seed and the path.

use std::{
    collections::BTreeMap,
    sync::{Arc, Barrier},
};

use collectives::{
    Error, Group,
    harp::{self, Combiner, Elementwise, Modulo, Payload, Replace, Scheduler, Single, Stay, Table},
    op::Sum,
};
use transport::Transport;

use crate::{
    harness::{Program, periodic, simulate, threads},
    long::often,
};

/// A plain model of a table.
type Model<P> = BTreeMap<u64, P>;

/// Partitions of a member: ids that some share and others do not, of lengths from none to more than a message.
fn numbers(member: usize) -> Model<Vec<f64>> {
    let ids = (0..12).filter(|id| (id + member as u64) % 4 != 1);
    let of = |id: u64| {
        let len = [0, 1, 3, 700, 20_000, 9][id as usize % 6];
        // Sums of these depend on the order in which they are added.
        let number =
            |place: usize| 0.1 * (place + 1) as f64 + 1e10 / (1.0 + member as f64 + id as f64);
        periodic(len, number)
    };
    ids.map(|id| (id, of(id))).collect()
}

#[expect(clippy::ptr_arg, reason = "it combines partitions, which are vectors")]
fn add(left: &mut Vec<f64>, right: &Vec<f64>) {
    assert_eq!(left.len(), right.len());
    left.iter_mut()
        .zip(right)
        .for_each(|(left, right)| *left += right);
}

/// Partitions of a member that are archives.
fn words(member: usize) -> Model<Single<Vec<String>>> {
    let ids = (0..9).filter(|id| !(id + member as u64).is_multiple_of(3));
    let of = |id: u64| {
        let count = if id == 7 { 4000 } else { id };
        Single(
            (0..count)
                .map(|n| format!("word {n} of {member}"))
                .collect(),
        )
    };
    ids.map(|id| (id, of(id))).collect()
}

fn append(left: &mut Single<Vec<String>>, right: &Single<Vec<String>>) {
    left.0.extend(right.0.iter().cloned());
}

fn table<P: Clone, C: Combiner<P>>(
    partitions: &Model<P>,
    combiner: C,
) -> Result<Table<P, C>, Error> {
    let mut table = Table::new(combiner);
    for (&id, partition) in partitions {
        table.add(id, partition.clone())?;
    }
    Ok(table)
}

#[track_caller]
fn assert_holds<P: PartialEq, C>(table: &Table<P, C>, expected: &Model<P>, said: &str) {
    let ids: Vec<u64> = table.ids().collect();
    assert!(
        ids.iter().eq(expected.keys()),
        "{said}: {ids:?} and not {:?}",
        expected.keys()
    );
    assert_eq!(table.len(), expected.len());
    for (id, partition) in table.iter() {
        assert!(*partition == expected[&id], "{said}: partition {id}");
    }
}

/// The partitions of members, one after another, combined.
fn all<P: Clone>(
    tables: impl IntoIterator<Item = Model<P>>,
    combine: &impl Fn(&mut P, &P),
) -> Model<P> {
    let mut all = Model::new();
    for (id, partition) in tables.into_iter().flatten() {
        match all.get_mut(&id) {
            Some(there) => combine(there, &partition),
            None => drop(all.insert(id, partition)),
        }
    }
    all
}

fn only<P: Clone>(model: &Model<P>, wanted: impl Fn(u64) -> bool) -> Model<P> {
    let wanted = model.iter().filter(|(id, _)| wanted(**id));
    wanted
        .map(|(&id, partition)| (id, partition.clone()))
        .collect()
}

/// A partitioner that is none of ours.
fn backwards(id: u64, members: usize) -> usize {
    members - 1 - (id / 2) as usize % members
}

/// Every operation, on partitions of one kind.
async fn all_operations<P, C>(
    group: &Group,
    of: fn(usize) -> Model<P>,
    combiner: C,
    combine: impl Fn(&mut P, &P),
) -> Result<(), Error>
where
    P: Payload + Clone + PartialEq,
    C: Combiner<P> + Clone,
{
    let (me, size) = (group.rank(), group.size());
    let mine = of(me);
    let everything = all((0..size).map(of), &combine);
    let new = || table(&mine, combiner.clone());
    for root in [0, size - 1, size / 2] {
        let mut table = new()?;
        table.broadcast(group, root).await?;
        let expected = if me == root {
            mine.clone()
        } else {
            all([mine.clone(), of(root)], &combine)
        };
        assert_holds(&table, &expected, "broadcast");

        let mut table = new()?;
        table.reduce(group, root).await?;
        assert_holds(
            &table,
            if me == root { &everything } else { &mine },
            "reduce",
        );
    }

    let mut table = new()?;
    table.all_gather(group).await?;
    assert_holds(&table, &everything, "all_gather");

    let mut table = new()?;
    table.all_reduce(group).await?;
    assert_holds(&table, &everything, "all_reduce");

    let mut table = new()?;
    table.regroup(group, Modulo).await?;
    let expected = only(&everything, |id| id as usize % size == me);
    assert_holds(&table, &expected, "regroup by modulo");

    table.regroup(group, backwards).await?;
    let expected = only(&everything, |id| backwards(id, size) == me);
    assert_holds(&table, &expected, "regroup by a function");

    table.regroup(group, Stay).await?;
    assert_holds(&table, &expected, "regroup that leaves all where it is");

    let mut table = new()?;
    table
        .aggregate(group, backwards, |_, partition| {
            let copy = partition.clone();
            combine(partition, &copy);
        })
        .await?;
    let twice = everything.iter().map(|(&id, partition)| {
        let mut twice = partition.clone();
        combine(&mut twice, partition);
        (id, twice)
    });
    assert_holds(&table, &twice.collect(), "aggregate");

    let mut table = new()?;
    for step in 1..=size {
        table.rotate(group).await?;
        assert_holds(&table, &of((me + size - step) % size), "rotate");
    }
    let to: Vec<usize> = (0..size).rev().collect();
    table.rotate_in_order(group, &to).await?;
    assert_holds(&table, &of(size - 1 - me), "rotate backwards");

    let mut table = new()?;
    let mut seen = Vec::new();
    table
        .rotate_with(group, |step, id, partition| {
            seen.push((step, id));
            let own = mine.get(&0).filter(|_| id == 0);
            if let Some(own) = own {
                combine(partition, own);
            }
        })
        .await?;
    let mut expected = mine.clone();
    if let Some(partition) = expected.get_mut(&0) {
        for step in 0..size {
            if let Some(other) = of((me + step) % size).get(&0) {
                combine(partition, other);
            }
        }
    }
    assert_holds(&table, &expected, "rotate_with");
    let schedule = (0..size).flat_map(|step| {
        let ids = of((me + size - step) % size).into_keys();
        ids.map(move |id| (step, id))
    });
    assert!(
        seen.into_iter().eq(schedule),
        "rotate_with: what is worked on, in which order"
    );
    Ok(())
}

/// Operations between local tables and a global one.
async fn local_and_global(group: &Group) -> Result<(), Error> {
    let (me, size) = (group.rank(), group.size());
    let everything = all((0..size).map(numbers), &add);
    let local = table(&numbers(me), Elementwise(Sum))?;
    let mut global = Table::new(Elementwise(Sum));
    local.push(group, &mut global, backwards).await?;
    let own = only(&everything, |id| backwards(id, size) == me);
    assert_holds(&global, &own, "push");
    assert_holds(&local, &numbers(me), "push leaves the local table");

    // Now the ids are where nobody but the members themselves would look for them.
    global.rotate(group).await?;
    local.push(group, &mut global, Modulo).await?;
    let before = (me + size - 1) % size;
    let mut own = only(&everything, |id| backwards(id, size) == before);
    own = all(
        [
            vec![own.clone()],
            (0..size)
                .map(|member| only(&numbers(member), |id| own.contains_key(&id)))
                .collect(),
        ]
        .concat(),
        &add,
    );
    assert_holds(&global, &own, "push to where the ids are");

    let twice = all(
        [everything.clone()]
            .into_iter()
            .chain((0..size).map(numbers)),
        &add,
    );
    let mut local = Table::new(Replace);
    for id in [me as u64, 3, 1000] {
        local.add(id, vec![-1.0])?;
    }
    local.pull(group, &global).await?;
    let mut expected: Model<Vec<f64>> = [me as u64, 3, 1000].map(|id| (id, vec![-1.0])).into();
    for (id, partition) in &mut expected {
        if let Some(theirs) = twice.get(id) {
            partition.clone_from(theirs);
        }
    }
    assert_holds(&local, &expected, "pull");

    let mut messages = table(&numbers(me), Elementwise(Sum))?;
    let mut vertices = Table::new(Replace);
    for id in [me as u64, 4, 100] {
        vertices.add(id, vec![id])?;
    }
    messages.join(group, &vertices, Stay).await?;
    let is_anywhere = |id: u64| id < size as u64 || id == 4 || id == 100;
    let here = only(&everything, |id| id == me as u64 || id == 4);
    let stayed = only(&numbers(me), |id| !is_anywhere(id));
    assert_holds(&messages, &all([here, stayed], &add), "join");
    Ok(())
}

async fn keys(group: &Group) -> Result<(), Error> {
    let (me, size) = (group.rank(), group.size());
    let of =
        |member: usize| (0..500).map(move |n| (format!("key {}", n * (member + 1) % 83), n as u64));
    let grouped = harp::group_by_key(group, of(me), |sum, more| *sum += more).await?;
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for (key, value) in (0..size).flat_map(of) {
        *expected.entry(key).or_default() += value;
    }
    assert!(grouped.iter().all(|(key, sum)| expected[key] == *sum));
    let mut count = [grouped.len()];
    group.all_reduce(&mut count, Sum).await?;
    assert_eq!(count[0], expected.len(), "each key is at one member");
    Ok(())
}

pub(crate) fn everything(group: Group) -> Program<()> {
    Box::pin(async move {
        all_operations(&group, numbers, Elementwise(Sum), add).await?;
        let join =
            |left: &mut Single<Vec<String>>, right: Single<Vec<String>>| append(left, &right);
        all_operations(&group, words, join, append).await?;
        local_and_global(&group).await?;
        keys(&group).await
    })
}

#[test]
fn tables_are_what_plain_maps_are_for_every_number_of_members_and_any_seed() {
    for size in 1..=9 {
        // Other sizes have other seeds.
        for seed in 0..often(1, 20) {
            let seed = seed * 9 + u64::from(size);
            for result in simulate(seed, size, everything) {
                result.unwrap();
            }
        }
    }
}

#[test]
fn tables_of_threads_that_share_memory_are_the_same() {
    for size in [1, 2, 3, 5] {
        for result in threads(Transport::Shm, size, everything) {
            result.unwrap();
        }
    }
}

#[test]
fn tables_of_threads_over_tcp_are_the_same() {
    for size in [2, 3, 5] {
        for result in threads(Transport::Tcp, size, everything) {
            result.unwrap();
        }
    }
}

/// Tables far larger than the memory that the links have, of all members at the same time.
fn large(group: Group) -> Program<()> {
    Box::pin(async move {
        let (me, size) = (group.rank(), group.size());
        let partition = |member: usize, id: u64| vec![member as f64 + id as f64; 1 << 19];
        let mut table = Table::new(Elementwise(Sum));
        for id in 0..8 {
            table.add(id, partition(me, id))?;
        }
        table.all_reduce(&group).await?;
        for (id, sum) in table.iter() {
            let expected: f64 = (0..size).map(|member| partition(member, id)[0]).sum();
            assert!(sum.iter().all(|x| *x == expected), "all_reduce");
        }
        let mut table = Table::new(Replace);
        for id in 0..8 {
            table.add(8 * me as u64 + id, partition(me, id))?;
        }
        table
            .rotate_with(&group, |_, _, partition| {
                partition.iter_mut().for_each(|x| *x += 1.0);
            })
            .await?;
        for (id, partition) in table.iter() {
            let expected = (me as u64 + id - 8 * me as u64 + size as u64) as f64;
            assert!(partition.iter().all(|x| *x == expected), "rotate_with");
        }
        table.rotate(&group).await
    })
}

#[test]
fn tables_larger_than_the_memory_of_the_links_get_through() {
    for transport in [Transport::Shm, Transport::Tcp] {
        for result in threads(transport, 3, large) {
            result.unwrap();
        }
    }
}

fn different_lengths(group: Group) -> Program<()> {
    Box::pin(async move {
        let mut table = Table::new(Elementwise(Sum));
        table.add(5, vec![1.0; 1 + group.rank()])?;
        table.all_reduce(&group).await
    })
}

fn other_types(group: Group) -> Program<()> {
    Box::pin(async move {
        if group.rank() == 0 {
            let mut table = Table::new(Elementwise(Sum));
            table.add(5, vec![7u8; 13])?;
            return table.all_gather(&group).await;
        }
        let mut table = Table::new(|_: &mut Single<String>, _: Single<String>| {});
        table.all_gather(&group).await
    })
}

#[test]
fn partitions_that_do_not_fit_are_errors_for_all() {
    for size in [2, 3] {
        let results = simulate(1, size, different_lengths);
        assert!(results.iter().all(Result::is_err), "{results:?}");
        let says = |error: &Error| {
            error
                .to_string()
                .contains("partition 5: 1 elements cannot be combined with 2")
        };
        assert!(results.iter().flatten_err().any(says), "{results:?}");
        let results = simulate(1, size, other_types);
        let is_malformed = |error: &Error| matches!(error, Error::MalformedValue { peer: 0, .. });
        assert!(
            results[1..].iter().flatten_err().any(is_malformed),
            "{results:?}"
        );
    }
}

/// The errors of results.
trait FlattenErr<'r> {
    fn flatten_err(self) -> impl Iterator<Item = &'r Error>;
}

impl<'r, I: Iterator<Item = &'r Result<(), Error>>> FlattenErr<'r> for I {
    fn flatten_err(self) -> impl Iterator<Item = &'r Error> {
        self.filter_map(|result| result.as_ref().err())
    }
}

#[test]
fn ranks_without_work_take_over_partitions_of_one_that_has_much() {
    const RANKS: u32 = 3;
    let scheduler = Arc::new(Scheduler::new());
    let all_at_work = Arc::new(Barrier::new(RANKS as usize));
    let counts = threads(Transport::Shm, RANKS, move |world| {
        let (scheduler, all_at_work) = (scheduler.clone(), all_at_work.clone());
        Box::pin(async move {
            let seat = scheduler.sit_down(&world).await?;
            let mut table = Table::new(Elementwise(Sum));
            if world.rank() == 1 {
                for id in 0..50 {
                    table.add(id, vec![id as f64; 100])?;
                }
            }
            let mut total = 0;
            for round in 0..3 {
                let mut is_first = round == 0;
                total += seat
                    .for_each(&mut table, |id, partition| {
                        // No rank gets through the first of its partitions before all others have one.
                        if std::mem::take(&mut is_first) {
                            all_at_work.wait();
                        }
                        partition.iter_mut().for_each(|x| *x += id as f64);
                    })
                    .await?;
            }
            assert_eq!(table.len(), if world.rank() == 1 { 50 } else { 0 });
            assert!(
                table
                    .iter()
                    .all(|(id, partition)| *partition == vec![4.0 * id as f64; 100])
            );
            Ok(total)
        })
    });
    let counts: Vec<usize> = counts.into_iter().map(Result::unwrap).collect();
    assert_eq!(counts.iter().sum::<usize>(), 150);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}
