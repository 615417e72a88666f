//! Operations on the tables of all members.

use super::{
    Combiner, Modulo, Partitioner, Payload, Table,
    combine::Borrowed,
    exchange::{self, Parcel},
    payload,
};
use crate::{Error, Group, Operation, fate::Signature};

impl<P: Payload, C: Combiner<P>> Table<P, C> {
    /// Adds the partitions of member `root` to the tables of all others.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member, and for partitions that cannot be combined; see [`Error`].
    pub fn broadcast<'g>(
        &'g mut self,
        group: &'g Group,
        root: usize,
    ) -> Operation<'g, impl Future<Output = Result<(), Error>>> {
        group.operation(async move {
            group.check_member("table broadcast", root)?;
            exchange::spread_from(group, Signature::new("table broadcast"), root, self).await
        })
    }

    /// Leaves in the table of member `root` the partitions of all, combined by id. The others keep theirs.
    ///
    /// Each member combines the partitions of some ids, before the root gets them: it never has more to receive than
    /// the result.
    ///
    /// # Errors
    ///
    /// As [`broadcast`](Self::broadcast).
    pub fn reduce<'g>(
        &'g mut self,
        group: &'g Group,
        root: usize,
    ) -> Operation<'g, impl Future<Output = Result<(), Error>>> {
        group.operation(async move {
            group.check_member("table reduce", root)?;
            let (me, size) = (group.rank(), group.size());
            if size == 1 {
                return Ok(());
            }
            let mut own = Vec::new();
            let mut give: Vec<Parcel<'_, P>> = vec![Vec::new(); size];
            for (id, partition) in self.iter() {
                match Modulo.member_of(id, size) {
                    Some(to) if to != me => give[to].push((id, partition)),
                    _ => own.push((id, copied(id, partition)?)),
                }
            }
            let mut part = Table::new(Borrowed(self.combiner()));
            let signature = Signature::new("table reduce").with_root(root);
            exchange::exchange(group, signature, &give, own, &mut part).await?;

            let mut result = Table::new(Borrowed(self.combiner()));
            let mut give: Vec<Parcel<'_, P>> = vec![Vec::new(); size];
            let mut own = Vec::new();
            if me == root {
                own.extend(part.drain());
            } else {
                give[root].extend(part.iter());
            }
            exchange::exchange(group, signature, &give, own, &mut result).await?;
            drop(give);
            if me == root {
                let result: Vec<_> = result.drain().collect();
                drop(part);
                self.clear();
                for (id, partition) in result {
                    self.add(id, partition)?;
                }
            }
            Ok(())
        })
    }

    /// Leaves in all tables the partitions of all, combined by id.
    ///
    /// # Errors
    ///
    /// As [`broadcast`](Self::broadcast).
    pub fn all_gather<'g>(
        &'g mut self,
        group: &'g Group,
    ) -> Operation<'g, impl Future<Output = Result<(), Error>>> {
        group.operation(async move {
            let partitions = self.drain().collect();
            exchange::spread(group, Signature::new("table all_gather"), partitions, self).await
        })
    }

    /// The same, for members that have the same ids: each combines the partitions of some, which then go to all.
    ///
    /// # Errors
    ///
    /// As [`broadcast`](Self::broadcast).
    pub fn all_reduce<'g>(
        &'g mut self,
        group: &'g Group,
    ) -> Operation<'g, impl Future<Output = Result<(), Error>>> {
        group.operation(async move {
            self.regroup_by(group, "table all_reduce", &Modulo).await?;
            self.all_gather(group).await
        })
    }

    /// Moves every partition to the member that `partitioner` gives it, and combines those that meet there: a shuffle.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when `partitioner` names a member that is none; as [`broadcast`](Self::broadcast).
    pub fn regroup<'g>(
        &'g mut self,
        group: &'g Group,
        partitioner: impl Partitioner + 'g,
    ) -> Operation<'g, impl Future<Output = Result<(), Error>>> {
        group.operation(async move { self.regroup_by(group, "table regroup", &partitioner).await })
    }

    pub(super) async fn regroup_by(
        &mut self,
        group: &Group,
        call: &'static str,
        partitioner: &impl Partitioner,
    ) -> Result<(), Error> {
        let (me, size) = (group.rank(), group.size());
        let mut parcels: Vec<Vec<(u64, P)>> = (0..size).map(|_| Vec::new()).collect();
        for (id, partition) in self.drain() {
            let to = member_of(group, call, partitioner, id)?.unwrap_or(me);
            parcels[to].push((id, partition));
        }
        let own = std::mem::take(&mut parcels[me]);
        let give: Vec<Parcel<'_, P>> = parcels
            .iter()
            .map(|parcel| {
                parcel
                    .iter()
                    .map(|(id, partition)| (*id, partition))
                    .collect()
            })
            .collect();
        exchange::exchange(group, Signature::new(call), &give, own, self).await
    }

    /// [Regroups](Self::regroup), applies `function` to each partition where it is now, and leaves the results in all tables.
    ///
    /// # Errors
    ///
    /// As [`regroup`](Self::regroup).
    pub fn aggregate<'g>(
        &'g mut self,
        group: &'g Group,
        partitioner: impl Partitioner + 'g,
        mut function: impl FnMut(u64, &mut P) + 'g,
    ) -> Operation<'g, impl Future<Output = Result<(), Error>>> {
        group.operation(async move {
            self.regroup_by(group, "table aggregate", &partitioner)
                .await?;
            for (id, partition) in self.iter_mut() {
                function(id, partition);
            }
            self.all_gather(group).await
        })
    }

    /// Gives the whole table to the next member, and takes that of the one before. After as many rotations as there are members
    /// every table has been everywhere, and is where it began.
    ///
    /// # Errors
    ///
    /// As [`broadcast`](Self::broadcast).
    pub fn rotate<'g>(
        &'g mut self,
        group: &'g Group,
    ) -> Operation<'g, impl Future<Output = Result<(), Error>>> {
        group.operation(async move {
            let (me, size) = (group.rank(), group.size());
            if size == 1 {
                return Ok(());
            }
            let ways = [(me + 1) % size, (me + size - 1) % size];
            exchange::shift(group, Signature::new("table rotate"), ways, self).await
        })
    }

    /// The same in another order: the table of member *m* goes to member `to[m]`. All members give the same order, in which each
    /// of them is once.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when `to` is no such order; as [`broadcast`](Self::broadcast).
    pub fn rotate_in_order<'g>(
        &'g mut self,
        group: &'g Group,
        to: &'g [usize],
    ) -> Operation<'g, impl Future<Output = Result<(), Error>>> {
        group.operation(async move {
            let (me, size) = (group.rank(), group.size());
            let mut from = vec![None; size];
            for (member, &to) in to.iter().enumerate() {
                if let Some(from) = from.get_mut(to) {
                    *from = Some(member);
                }
            }
            if to.len() != size || from.contains(&None) {
                let reason = format!("{to:?} is no order of {size} members");
                return Err(group.argument("table rotate_in_order", reason));
            }
            let from = from[me].unwrap_or(me);
            exchange::shift(
                group,
                Signature::new("table rotate_in_order"),
                [to[me], from],
                self,
            )
            .await
        })
    }
}

/// The member that a partition belongs to, as far as its partitioner says.
pub(super) fn member_of(
    group: &Group,
    call: &'static str,
    partitioner: &impl Partitioner,
    id: u64,
) -> Result<Option<usize>, Error> {
    let member = partitioner.member_of(id, group.size());
    if let Some(member) = member {
        group.check_member(call, member)?;
    }
    Ok(member)
}

/// A copy of a partition that is to stay where it is as well.
pub(super) fn copied<P: Payload>(id: u64, partition: &P) -> Result<P, Error> {
    payload::copy(partition).map_err(|reason| Error::Argument {
        call: "copy",
        reason: format!("partition {id}: {reason}"),
    })
}
