//! Partitions by their ids.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
};

use super::{Combiner, Payload, stream::Arrival};
use crate::{Error, Group};

/// The partitions that a member has, by their ids, and how two under one id become one.
#[derive(Clone)]
pub struct Table<P, C> {
    partitions: BTreeMap<u64, P>,
    combiner: C,
}

impl<P, C: Combiner<P>> Table<P, C> {
    /// A table without partitions.
    pub fn new(combiner: C) -> Self {
        Self {
            partitions: BTreeMap::new(),
            combiner,
        }
    }

    /// Adds a partition: combines it with the one that has this id already, if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when the two cannot be combined.
    pub fn add(&mut self, id: u64, partition: P) -> Result<(), Error> {
        match self.partitions.entry(id) {
            Entry::Vacant(vacant) => {
                vacant.insert(partition);
                Ok(())
            }
            Entry::Occupied(mut there) => self
                .combiner
                .combine(there.get_mut(), partition)
                .map_err(|reason| cannot_combine(id, &reason)),
        }
    }

    /// Adds a partition that has arrived.
    pub(super) fn take_in(
        &mut self,
        group: &Group,
        from: usize,
        id: u64,
        arrival: Arrival<'_, P>,
    ) -> Result<(), Error>
    where
        P: Payload,
    {
        if let Arrival::Bytes(bytes) = arrival
            && let Some(there) = self.partitions.get_mut(&id)
            && let Some(combined) = self.combiner.combine_bytes(there, bytes)
        {
            return combined.map_err(|reason| cannot_combine(id, &reason));
        }
        self.add(id, arrival.made(group, from)?)
    }
}

pub(super) fn cannot_combine(id: u64, reason: &str) -> Error {
    Error::Argument {
        call: "combine",
        reason: format!("partition {id}: {reason}"),
    }
}

pub(super) fn malformed(group: &Group, from: usize, reason: String) -> Error {
    Error::MalformedValue {
        peer: group.members()[from],
        reason,
    }
}

impl<P, C> Table<P, C> {
    /// Partitions.
    pub fn len(&self) -> usize {
        self.partitions.len()
    }

    /// Whether there are no partitions.
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// The partition with this id.
    pub fn get(&self, id: u64) -> Option<&P> {
        self.partitions.get(&id)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut P> {
        self.partitions.get_mut(&id)
    }

    /// Takes the partition with this id out.
    pub fn remove(&mut self, id: u64) -> Option<P> {
        self.partitions.remove(&id)
    }

    /// Takes all partitions out.
    pub fn clear(&mut self) {
        self.partitions.clear();
    }

    /// The ids, in ascending order.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = u64> {
        self.partitions.keys().copied()
    }

    /// The partitions, in the order of their ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u64, &P)> {
        self.partitions
            .iter()
            .map(|(&id, partition)| (id, partition))
    }

    /// The same, to change them.
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = (u64, &mut P)> {
        self.partitions
            .iter_mut()
            .map(|(&id, partition)| (id, partition))
    }

    /// What makes one of two partitions.
    pub fn combiner(&self) -> &C {
        &self.combiner
    }

    /// Takes all partitions out, in the order of their ids.
    pub fn drain(&mut self) -> impl ExactSizeIterator<Item = (u64, P)> + use<P, C> {
        std::mem::take(&mut self.partitions).into_iter()
    }
}

impl<P: fmt::Debug, C> fmt::Debug for Table<P, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.partitions).finish()
    }
}
