//! The job of each operator: it makes the records where they are needed, and a digest of what comes out.

use std::cmp::Ordering;

use updraft::dataflow::{Job, Key, Narrow, Record, Source, TSet, generate};

use super::{
    Shape,
    kinds::{Operator, RecordType, SOME},
    rows::{Digest, Keyed, Row, hash_of_group, ordered, unordered},
};

/// The job that has an operator work on records of that kind; `None` if it needs others.
pub(crate) fn job(shape: &Shape) -> Option<Job<Digest>> {
    match shape.record {
        RecordType::U64 => of_records::<u64>(shape),
        RecordType::Pair => of_records::<(u64, u64)>(shape).or_else(|| of_pairs::<u64>(shape)),
        RecordType::Text => {
            of_records::<(String, u64)>(shape).or_else(|| of_pairs::<String>(shape))
        }
    }
}

/// The stream of the left side, or the only one.
macro_rules! left {
    ($row:ty, $shape:expr) => {{
        let keys = $shape.keys;
        generate($shape.records, move |number| <$row>::row(number, keys))
    }};
}

/// The stream of the right side.
macro_rules! right {
    ($row:ty, $shape:expr) => {{
        let keys = $shape.keys;
        let others = $shape.operator.others($shape.records);
        generate(others, move |number| <$row>::right_row(number, keys))
    }};
}

fn of_records<T: Row>(shape: &Shape) -> Option<Job<Digest>> {
    let rows = left!(T, shape);
    let (keys, ranks) = (u128::from(shape.keys), u128::from(shape.ranks));
    Some(match shape.operator {
        Operator::ExchangeByHash => digest(rows.exchange_by_hash()),
        Operator::ExchangeByRange => {
            digest(rows.partition(move |row| (u128::from(T::key(row)) * ranks / keys) as u64))
        }
        Operator::RoundRobin => digest(rows.round_robin()),
        Operator::Rebalance => digest(rows.rebalance()),
        Operator::Direct => digest(rows.direct()),
        Operator::Broadcast => digest(rows.broadcast()),
        Operator::Gather => digest(rows.gather()),
        Operator::Union => {
            let keys = shape.keys;
            let half = shape.records / 2;
            let rest = generate(shape.records - half, move |number| {
                T::row(number + half, keys)
            });
            digest(generate(half, move |number| T::row(number, keys)).union(rest))
        }
        Operator::Distinct => digest(rows.distinct()),
        Operator::Sort => digest_in_order(rows.sort(), T::compare),
        Operator::TopN => {
            let greatest = rows.top_n(SOME, |row| T::own(row));
            digest_in_order(greatest, |one, next| T::compare(next, one))
        }
        // Which ones are taken is not said.
        Operator::Take => digest(rows.take(SOME as u64).map(|_| 0u64)),
        Operator::Count => digest(rows.count()),
        Operator::Aggregate => digest(rows.aggregate(|of| {
            let (least, most) = (of.min(T::key), of.max(T::key));
            (of.count(), of.sum(T::key), least, most)
        })),
        Operator::Reduce => digest(rows.reduce(T::merge)),
        Operator::AllReduce => digest(rows.all_reduce(T::merge)),
        Operator::CrossJoin => digest(rows.cross_join(right!(T, shape))),
        _ => return None,
    })
}

fn of_pairs<K: Keyed>(shape: &Shape) -> Option<Job<Digest>> {
    let (rows, others) = (left!((K, u64), shape), right!((K, u64), shape));
    Some(match shape.operator {
        Operator::ExchangeByKey => digest(rows.exchange_by_key()),
        Operator::ReduceByKey => digest(rows.reduce_by_key(u64::wrapping_add)),
        Operator::AggregateByKey => {
            digest(rows.aggregate_by_key(|of| (of.count(), of.max(|value| value))))
        }
        Operator::GroupByKey => digest_by(rows.group_by_key(), |(key, values)| {
            hash_of_group::<K>(key, [unordered(values.iter()), (0, 0)])
        }),
        Operator::GroupByKeySorted => {
            digest_by(rows.group_by_key_sorted(|value| value), |(key, values)| {
                hash_of_group::<K>(key, [ordered(values.iter()), (0, 0)])
            })
        }
        Operator::SortByKey => {
            digest_in_order(rows.sort_by_key(), |one, next| K::compare(one.0, next.0))
        }
        Operator::Cogroup => digest_by(rows.cogroup(others), |(key, (left, right))| {
            hash_of_group::<K>(key, [unordered(left.iter()), unordered(right.iter())])
        }),
        Operator::Join => digest(rows.join(others)),
        Operator::LeftJoin => digest(rows.left_join(others)),
        Operator::RightJoin => digest(rows.right_join(others)),
        Operator::FullJoin => digest(rows.full_join(others)),
        Operator::SemiJoin => digest(rows.semi_join(others)),
        Operator::AntiJoin => digest(rows.anti_join(others)),
        Operator::MergeJoin => digest(rows.join(others).by_merging()),
        Operator::MergeLeftJoin => digest(rows.left_join(others).by_merging()),
        Operator::MergeRightJoin => digest(rows.right_join(others).by_merging()),
        Operator::MergeFullJoin => digest(rows.full_join(others).by_merging()),
        Operator::MergeSemiJoin => digest(rows.semi_join(others).by_merging()),
        Operator::MergeAntiJoin => digest(rows.anti_join(others).by_merging()),
        _ => return None,
    })
}

/// Reads every record, and adds its hash up.
fn digest<S, N, T>(records: TSet<S, N>) -> Job<Digest>
where
    S: Source,
    T: Key,
    N: Narrow<S::Out, Out = T>,
{
    digest_by(records, T::hash)
}

/// The same, with what `hash` makes of each.
fn digest_by<S, N, T, F>(records: TSet<S, N>, hash: F) -> Job<Digest>
where
    S: Source,
    T: Record,
    N: Narrow<S::Out, Out = T>,
    F: Fn(T::View<'_>) -> u64 + Clone + Send + Sync + 'static,
{
    let add = move |sums: &mut (u64, u64), record: T::View<'_>| {
        *sums = (sums.0 + 1, sums.1.wrapping_add(hash(record)));
    };
    let merge = |sums: &mut (u64, u64), more: (u64, u64)| {
        *sums = (sums.0 + more.0, sums.1.wrapping_add(more.1));
    };
    records.fold((0, 0), add, merge).collect().then(|sums| {
        let (records, sum) = sums.first().copied().unwrap_or_default();
        Digest {
            records,
            sum,
            in_order: true,
        }
    })
}

/// What is known of records that should be in order.
type Run<T> = (u64, u64, bool, Option<T>, Option<T>);

/// Reads every record, adds its hash up, and looks whether it may come after the one before.
fn digest_in_order<S, N, T, C>(records: TSet<S, N>, compare: C) -> Job<Digest>
where
    S: Source,
    T: Row,
    N: Narrow<S::Out, Out = T>,
    C: Fn(T::View<'_>, T::View<'_>) -> Ordering + Clone + Send + Sync + 'static,
{
    let between = compare.clone();
    let add = move |run: &mut Run<T>, record: T::View<'_>| {
        let (number, sum, in_order, first, last) = run;
        let follows = |last: &T| last.with_view(|last| compare(last, record).is_le());
        *in_order &= last.as_ref().is_none_or(follows);
        *number += 1;
        *sum = sum.wrapping_add(T::hash(record));
        *last = Some(T::own(record));
        if first.is_none() {
            first.clone_from(last);
        }
    };
    // The runs of the instances come in the order of these.
    let merge = move |run: &mut Run<T>, next: <Run<T> as Record>::View<'_>| {
        let (number, sum, in_order, first, last) = next;
        run.0 += number;
        run.1 = run.1.wrapping_add(sum);
        run.2 &= in_order;
        let (Some(first), Some(last)) = (first, last) else {
            return;
        };
        let follows = |before: &T| before.with_view(|before| between(before, first).is_le());
        run.2 &= run.4.as_ref().is_none_or(follows);
        if run.3.is_none() {
            run.3 = Some(T::own(first));
        }
        run.4 = Some(T::own(last));
    };
    let start = (0, 0, true, None, None);
    records.fold(start, add, merge).collect().then(|runs| {
        let run = runs.into_iter().next();
        let (records, sum, in_order, ..) = run.unwrap_or((0, 0, true, None, None));
        Digest {
            records,
            sum,
            in_order,
        }
    })
}
