//! Operations between a global table, whose partitions are each at one member, and local ones.

use std::collections::BTreeMap;

use super::{
    Combiner, Partitioner, Payload, Table,
    exchange::{self, Parcel},
    operations::{copied, member_of},
};
use crate::{Error, Group, Operation, fate::Signature};

impl<P: Payload, C: Combiner<P>> Table<P, C> {
    /// Adds the partitions of this local table to the global one: each where its id is, or, if that is nowhere yet, where
    /// `partitioner` says. The local tables stay as they are.
    ///
    /// As in Harp, the members tell one another first which ids they have of the global table.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when `partitioner` names a member that is none, and for partitions that cannot be combined; see
    /// [`Error`].
    pub fn push<'g, D: Combiner<P>>(
        &'g self,
        group: &'g Group,
        global: &'g mut Table<P, D>,
        partitioner: impl Partitioner + 'g,
    ) -> Operation<'g, impl Future<Output = Result<(), Error>>> {
        group.operation(async move {
            let places = places(group, global).await?;
            let mut own = Vec::new();
            let mut give: Vec<Parcel<'_, P>> = vec![Vec::new(); group.size()];
            for (id, partition) in self.iter() {
                let place = places.get(&id).map(|members| members[0]);
                let to = match place {
                    None => member_of(group, "table push", &partitioner, id)?,
                    place => place,
                };
                match to {
                    Some(to) if to != group.rank() => give[to].push((id, partition)),
                    _ => own.push((id, copied(id, partition)?)),
                }
            }
            exchange::exchange(group, Signature::new("table push"), &give, own, global).await
        })
    }

    /// Adds to this local table what the global one has under the ids that it has itself. An id that is nowhere
    /// in the global table stays as it is.
    ///
    /// As everywhere, what comes is combined with what is there: a local table that is to hold what the global one has, and
    /// nothing else, has the combiner [`Replace`](super::Replace).
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for partitions that cannot be combined; see [`Error`].
    pub fn pull<'g, D: Combiner<P>>(
        &'g mut self,
        group: &'g Group,
        global: &'g Table<P, D>,
    ) -> Operation<'g, impl Future<Output = Result<(), Error>>> {
        group.operation(async move {
            let places = places(group, global).await?;
            let mut wanted: Vec<Vec<u64>> = vec![Vec::new(); group.size()];
            for id in self.ids() {
                if let Some(members) = places.get(&id) {
                    wanted[members[0]].push(id);
                }
            }
            let slices: Vec<&[u64]> = wanted.iter().map(Vec::as_slice).collect();
            let asked = group.all_to_all_v(&slices).await?;
            let mut own = Vec::new();
            let mut give: Vec<Parcel<'_, P>> = vec![Vec::new(); group.size()];
            for (member, ids) in asked.iter().enumerate() {
                for &id in ids {
                    let Some(partition) = global.get(id) else {
                        continue;
                    };
                    if member == group.rank() {
                        own.push((id, copied(id, partition)?));
                    } else {
                        give[member].push((id, partition));
                    }
                }
            }
            exchange::exchange(group, Signature::new("table pull"), &give, own, self).await
        })
    }

    /// Moves each partition to all members whose table `with` has its id, so that what belongs together is together. One whose id
    /// is in none goes where `otherwise` says; [`Stay`](super::Stay) leaves it where it is.
    ///
    /// This is how Harp sends messages to the vertices of a graph.
    ///
    /// # Errors
    ///
    /// As [`push`](Self::push).
    pub fn join<'g, Q, D>(
        &'g mut self,
        group: &'g Group,
        with: &'g Table<Q, D>,
        otherwise: impl Partitioner + 'g,
    ) -> Operation<'g, impl Future<Output = Result<(), Error>>> {
        group.operation(async move {
            let me = group.rank();
            let places = places(group, with).await?;
            let partitions: Vec<(u64, P)> = self.drain().collect();
            let mut own = Vec::new();
            let mut give: Vec<Parcel<'_, P>> = vec![Vec::new(); group.size()];
            for (id, partition) in &partitions {
                let elsewhere;
                let members = match places.get(id) {
                    Some(members) => &members[..],
                    None => {
                        let to = member_of(group, "table join", &otherwise, *id)?;
                        elsewhere = [to.unwrap_or(me)];
                        &elsewhere
                    }
                };
                for &to in members {
                    if to == me {
                        own.push((*id, copied(*id, partition)?));
                    } else {
                        give[to].push((*id, partition));
                    }
                }
            }
            exchange::exchange(group, Signature::new("table join"), &give, own, self).await
        })
    }
}

/// The members that have each id in their table, in ascending order.
async fn places<P, C>(
    group: &Group,
    table: &Table<P, C>,
) -> Result<BTreeMap<u64, Vec<usize>>, Error> {
    let ids: Vec<u64> = table.ids().collect();
    let all = group.all_gather_v(&ids).await?;
    let mut places: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (member, ids) in all.iter().enumerate() {
        for &id in ids {
            places.entry(id).or_default().push(member);
        }
    }
    Ok(places)
}
