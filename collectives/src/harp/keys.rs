//! Keys and their values, spread over the members by key.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    hash::{DefaultHasher, Hash, Hasher},
};

use super::{
    Single, Table,
    exchange::{self, Parcel},
};
use crate::{Error, Group, Operation, Value, fate::Signature};

/// Moves every pair to the member that its key belongs to, by its hash, and gives the keys of this member with the values that
/// all members had for each, combined in the order of the members and, of one member, in the order of its pairs.
/// Values of one key are combined before they travel.
///
/// In Harp this is an operation on key-value tables, whose partitions are hash buckets of keys.
///
/// ```
/// use collectives::{Engine, harp};
/// use transport::{Arena, Fabric, Ledger};
///
/// let fabric = Fabric::alone(Arena::new(&Ledger::new(1 << 20), 1 << 20)?);
/// let engine = Engine::simulated(fabric);
/// let counts = engine.block_on(async {
///     let world = engine.world().await?;
///     let words = ["to", "be", "or", "not", "to", "be"];
///     let pairs = words.map(|word| (word.to_owned(), 1u64));
///     harp::group_by_key(&world, pairs, |count, more| *count += more).await
/// })?;
/// assert_eq!(counts["be"], 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// See [`Error`].
pub fn group_by_key<'g, K, V>(
    group: &'g Group,
    pairs: impl IntoIterator<Item = (K, V)> + 'g,
    combine: impl Fn(&mut V, V) + 'g,
) -> Operation<'g, impl Future<Output = Result<BTreeMap<K, V>, Error>>>
where
    K: Hash + Ord + 'g,
    V: 'g,
    Vec<(K, V)>: Value,
{
    group.operation(async move {
        let mut values: BTreeMap<K, V> = BTreeMap::new();
        add(&mut values, pairs, &combine);
        let (me, size) = (group.rank(), group.size());
        let mut buckets: Vec<Single<Vec<(K, V)>>> = (0..size).map(|_| Single(Vec::new())).collect();
        for (key, value) in values {
            // Without a key of its own, so that all members get the same.
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            let member = (hasher.finish() % size as u64) as usize;
            buckets[member].0.push((key, value));
        }
        let own = std::mem::replace(&mut buckets[me], Single(Vec::new()));
        let give: Vec<Parcel<'_, _>> = buckets
            .iter()
            .map(|bucket| match bucket.0.is_empty() {
                true => Vec::new(),
                false => vec![(0, bucket)],
            })
            .collect();
        // One after another, to be grouped at the end.
        let mut all = Table::new(
            |left: &mut Single<Vec<(K, V)>>, right: Single<Vec<(K, V)>>| {
                left.0.extend(right.0);
            },
        );
        let signature = Signature::new("group_by_key");
        exchange::exchange(group, signature, &give, vec![(0, own)], &mut all).await?;
        let mut grouped = BTreeMap::new();
        for (_, Single(pairs)) in all.drain() {
            add(&mut grouped, pairs, &combine);
        }
        Ok(grouped)
    })
}

fn add<K: Ord, V>(
    values: &mut BTreeMap<K, V>,
    pairs: impl IntoIterator<Item = (K, V)>,
    combine: &impl Fn(&mut V, V),
) {
    for (key, value) in pairs {
        match values.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(value);
            }
            Entry::Occupied(mut there) => combine(there.get_mut(), value),
        }
    }
}
