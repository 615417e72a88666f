//! The ways a record can take.

use super::{Outbox, Route};
use crate::{Key, Record, stage::Place};

/// To the instance that the key of a pair belongs to.
pub(crate) struct ByKey {
    /// That instance, if it is known of all pairs.
    own: Option<usize>,
}

impl ByKey {
    pub(crate) fn new(place: &Place) -> Self {
        Self {
            own: place.own_lane(),
        }
    }
}

impl<K: Key, V: Record> Route<(K, V)> for ByKey {
    #[inline]
    fn lane(&mut self, (key, _): (K::View<'_>, V::View<'_>), outbox: &Outbox<(K, V)>) -> usize {
        self.own.unwrap_or_else(|| outbox.lane_of(K::hash(key)))
    }
}

/// To the instance that the record as a key belongs to.
pub(crate) struct ByHash;

impl<T: Key> Route<T> for ByHash {
    #[inline]
    fn lane(&mut self, view: T::View<'_>, outbox: &Outbox<T>) -> usize {
        outbox.lane_of(T::hash(view))
    }
}

/// To the instance whose number a function gives, modulo how many there are.
pub(crate) struct ByFunction<F>(pub(crate) F);

impl<T: Record, F: FnMut(T::View<'_>) -> u64> Route<T> for ByFunction<F> {
    /// What the function remembers, nobody knows.
    fn again(&mut self) -> bool {
        size_of::<F>() == 0
    }

    #[inline]
    fn lane(&mut self, view: T::View<'_>, outbox: &Outbox<T>) -> usize {
        ((self.0)(view) % outbox.lanes.len() as u64) as usize
    }
}

/// To one instance after the other.
pub(crate) struct RoundRobin {
    lane: usize,
    first: usize,
}

impl RoundRobin {
    /// Begins with the instance of the same number, so that not all begin with the same.
    pub(crate) fn new(place: &Place) -> Self {
        let first = place.instance as usize;
        Self { lane: first, first }
    }
}

impl<T: Record> Route<T> for RoundRobin {
    #[inline]
    fn lane(&mut self, _view: T::View<'_>, outbox: &Outbox<T>) -> usize {
        self.lane += 1;
        if self.lane >= outbox.lanes.len() {
            self.lane = 0;
        }
        self.lane
    }

    fn again(&mut self) -> bool {
        self.lane = self.first;
        true
    }
}

/// To the instance that has read most of what it was sent: a batch at a time, because that is what is read.
pub(crate) struct Rebalance {
    lane: usize,
    /// Records that go to the same lane before another choice.
    left: u32,
}

/// Records between two choices. Few enough that the batches of a short job go to all.
const RECORDS_A_CHOICE: u32 = 256;

impl Rebalance {
    pub(crate) fn new(place: &Place) -> Self {
        Self {
            lane: place.instance as usize,
            left: 0,
        }
    }
}

impl<T: Record> Route<T> for Rebalance {
    #[inline]
    fn lane(&mut self, _view: T::View<'_>, outbox: &Outbox<T>) -> usize {
        if self.left == 0 {
            self.left = RECORDS_A_CHOICE;
            let lanes = outbox.lanes.len();
            // From the next on, so that lanes that are equally far take turns.
            let others = (1..=lanes).map(|step| (self.lane + step) % lanes);
            let unread = |&lane: &usize| outbox.lanes[lane].window.lent();
            self.lane = others.min_by_key(unread).unwrap_or(0);
        }
        self.left -= 1;
        self.lane
    }
}

/// To the instance of the same number, or in the same part of all if they are fewer or more.
pub(crate) struct Direct {
    instance: usize,
    instances: usize,
}

impl Direct {
    pub(crate) fn new(place: &Place) -> Self {
        Self {
            instance: place.instance as usize,
            instances: place.instances as usize,
        }
    }
}

impl Direct {
    fn lane_among(&self, lanes: usize) -> usize {
        self.instance * lanes / self.instances
    }
}

impl<T: Record> Route<T> for Direct {
    #[inline]
    fn lane(&mut self, _view: T::View<'_>, outbox: &Outbox<T>) -> usize {
        self.lane_among(outbox.lanes.len())
    }

    fn is_closed(&self, outbox: &Outbox<T>) -> bool {
        let lane = outbox.lanes.get(self.lane_among(outbox.lanes.len()));
        lane.is_none_or(|lane| lane.open == 0)
    }
}

/// To the first instance, or down the one lane there is.
pub(crate) struct ToFirst;

impl<T: Record> Route<T> for ToFirst {
    #[inline]
    fn lane(&mut self, _view: T::View<'_>, _outbox: &Outbox<T>) -> usize {
        0
    }
}
