//! What each operator has to give, by a plain loop on one thread.

use std::collections::{BTreeMap, BTreeSet};

use updraft::dataflow::Key;

use super::{
    Shape,
    kinds::{Operator, RecordType, SOME},
    rows::{Digest, Keyed, Row, hash_of_group, ordered, unordered},
};

/// What comes out; `None` if the operator needs other records.
pub(crate) fn digest(shape: &Shape) -> Option<Digest> {
    match shape.record {
        RecordType::U64 => of_records::<u64>(shape),
        RecordType::Pair => of_records::<(u64, u64)>(shape).or_else(|| of_pairs::<u64>(shape)),
        RecordType::Text => {
            of_records::<(String, u64)>(shape).or_else(|| of_pairs::<String>(shape))
        }
    }
}

fn hash<T: Key>(record: &T) -> u64 {
    record.with_view(T::hash)
}

fn of_records<T: Row>(shape: &Shape) -> Option<Digest> {
    let (records, keys) = (shape.records, shape.keys);
    let rows = || (0..records).map(|number| T::row(number, keys));
    let all = || Digest::of(rows().map(|row| row.hash_of()));
    let merged = || {
        let merged = rows().fold(T::default(), |sum, row| row.with_view(|row| sum.merge(row)));
        Digest::of((records > 0).then(|| merged.hash_of()))
    };
    Some(match shape.operator {
        Operator::ExchangeByHash
        | Operator::ExchangeByRange
        | Operator::RoundRobin
        | Operator::Rebalance
        | Operator::Direct
        | Operator::Gather
        | Operator::Union
        | Operator::Sort => all(),
        Operator::Broadcast => all().times(shape.ranks.into()),
        Operator::Distinct => {
            let once: BTreeSet<T> = rows().collect();
            Digest::of(once.iter().map(T::hash_of))
        }
        Operator::TopN => {
            let mut rows: Vec<T> = rows().collect();
            rows.sort_by(|one, other| other.cmp(one));
            Digest::of(rows.iter().take(SOME).map(T::hash_of))
        }
        Operator::Take => Digest::of([hash(&0u64)]).times(records.min(SOME as u64)),
        Operator::Count => Digest::of([hash(&records)]),
        Operator::Aggregate => {
            let keys = || rows().map(|row| row.with_view(T::key));
            let sum = keys().fold(0, u64::wrapping_add);
            Digest::of([hash(&(records, sum, keys().min(), keys().max()))])
        }
        Operator::Reduce => merged(),
        Operator::AllReduce => merged().times(shape.ranks.into()),
        Operator::CrossJoin => {
            let others = shape.operator.others(records);
            let others: Vec<T> = (0..others).map(|n| T::right_row(n, keys)).collect();
            let with_each = |row: T| {
                let others = others.iter().cloned();
                others.map(move |other| hash(&(row.clone(), other)))
            };
            Digest::of(rows().flat_map(with_each))
        }
        _ => return None,
    })
}

/// The values of a key on both sides.
type Sides = [Vec<u64>; 2];

fn of_pairs<K: Keyed>(shape: &Shape) -> Option<Digest> {
    let rows = (0..shape.records).map(|number| <(K, u64)>::row(number, shape.keys));
    let others = shape.operator.others(shape.records);
    let others = (0..others).map(|number| <(K, u64)>::right_row(number, shape.keys));
    if matches!(
        shape.operator,
        Operator::ExchangeByKey | Operator::SortByKey
    ) {
        return Some(Digest::of(rows.map(|row| row.hash_of())));
    }
    let mut by_key: BTreeMap<K, Sides> = BTreeMap::new();
    for (key, value) in rows {
        by_key.entry(key).or_default()[0].push(value);
    }
    for (key, value) in others {
        by_key.entry(key).or_default()[1].push(value);
    }
    let all = by_key.iter_mut();
    Some(Digest::of(
        all.flat_map(|(key, sides)| hashes(shape.operator, key, sides)),
    ))
}

/// The hashes of what comes out for one key.
fn hashes<K: Keyed>(operator: Operator, key: &K, sides: &mut Sides) -> Vec<u64> {
    let [left, right] = sides;
    let both = |left: &[Option<u64>], right: &[Option<u64>]| -> Vec<(Option<u64>, Option<u64>)> {
        let with_each = |left: &Option<u64>| right.iter().map(|right| (*left, *right)).collect();
        left.iter()
            .flat_map(|left| -> Vec<_> { with_each(left) })
            .collect()
    };
    let some = |values: &[u64]| -> Vec<Option<u64>> { values.iter().copied().map(Some).collect() };
    // A side without values has none to stand for them, if the other side's values are wanted all the same.
    let or_none = |values: &[u64]| match values {
        [] => vec![None],
        values => some(values),
    };
    let group = |sides| key.with_view(|key| hash_of_group::<K>(key, sides));
    let value = |value: Option<u64>| value.unwrap_or_default();
    match operator {
        Operator::ReduceByKey => {
            let sum = left.iter().copied().fold(0, u64::wrapping_add);
            vec![hash(&(key.clone(), sum))]
        }
        Operator::AggregateByKey => {
            let most = left.iter().copied().max();
            vec![hash(&(key.clone(), (left.len() as u64, most)))]
        }
        Operator::GroupByKey => vec![group([unordered(left.iter().copied()), (0, 0)])],
        Operator::GroupByKeySorted => {
            left.sort_unstable();
            vec![group([ordered(left.iter().copied()), (0, 0)])]
        }
        Operator::Cogroup => vec![group([
            unordered(left.iter().copied()),
            unordered(right.iter().copied()),
        ])],
        Operator::Join | Operator::MergeJoin => both(&some(left), &some(right))
            .into_iter()
            .map(|(left, right)| hash(&(key.clone(), (value(left), value(right)))))
            .collect(),
        Operator::LeftJoin | Operator::MergeLeftJoin => both(&some(left), &or_none(right))
            .into_iter()
            .map(|(left, right)| hash(&(key.clone(), (value(left), right))))
            .collect(),
        Operator::RightJoin | Operator::MergeRightJoin => both(&or_none(left), &some(right))
            .into_iter()
            .map(|(left, right)| hash(&(key.clone(), (left, value(right)))))
            .collect(),
        Operator::FullJoin | Operator::MergeFullJoin => both(&or_none(left), &or_none(right))
            .into_iter()
            .map(|both| hash(&(key.clone(), both)))
            .collect(),
        Operator::SemiJoin | Operator::MergeSemiJoin if right.is_empty() => Vec::new(),
        Operator::AntiJoin | Operator::MergeAntiJoin if !right.is_empty() => Vec::new(),
        _ => left
            .iter()
            .map(|&left| hash(&(key.clone(), left)))
            .collect(),
    }
}
