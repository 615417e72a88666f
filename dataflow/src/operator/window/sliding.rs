//! Windows that overlap: what they have in common is made once.
//!
//! Time is cut wherever a window begins or ends, so that each window is some whole slices: one or two to a step. A value is
//! added to the state of its key in its slice, and to no other, however many windows it belongs to; a window that is over
//! is merged of its slices (as in Krishnamurthy, Wu, Franklin: "On-the-fly sharing for streamed aggregation", 2006, whose
//! slices these are). So work goes with the values, and with the keys of the slices of each window.

use std::collections::BTreeMap;

use super::{
    Tools, Window,
    states::{Account, Drain, States, add, copy},
};
use crate::{Error, EventTime, Key, Record, operator::reduce::Accumulate};

/// Windows of one size, of which one begins at each multiple of a smaller step.
pub(super) struct Sliding<K: Key, S> {
    size: EventTime,
    step: EventTime,
    lateness: EventTime,
    /// By their starts. What ends a slice is the start of the next that there could be.
    slices: BTreeMap<EventTime, States<K, S>>,
    /// What ends by this time is over.
    closed: EventTime,
    /// What ends by this time was given. It may be beyond all times, as windows are of the last ones.
    given: i128,
    /// The window that is given, key by key.
    giving: Option<(Window, Drain<K, S>)>,
}

impl<K: Key, S: Record> Sliding<K, S> {
    pub(super) fn new(size: EventTime, step: EventTime, lateness: EventTime) -> Self {
        Self {
            size,
            step,
            lateness,
            slices: BTreeMap::new(),
            closed: EventTime::MIN,
            given: EventTime::MIN.into(),
            giving: None,
        }
    }

    /// The end of the last window that a time belongs to.
    fn last_end(&self, time: EventTime) -> i128 {
        let start = i128::from(time) - i128::from(time.rem_euclid(self.step));
        start + i128::from(self.size)
    }

    /// Whether event time has come so far. In the end it is beyond all.
    fn has_come(&self, time: i128) -> bool {
        self.closed == EventTime::MAX || time <= self.closed.into()
    }

    fn is_gone(&self, end: i128) -> bool {
        self.has_come(end + i128::from(self.lateness))
    }

    fn window(&self, end: i128) -> Window {
        let clamp = |time: i128| time.clamp(EventTime::MIN.into(), EventTime::MAX.into());
        (clamp(end - i128::from(self.size)) as _, clamp(end) as _)
    }

    /// Adds a value to its slice; false if it comes too late for all its windows. What it changes of windows that were given is
    /// given again.
    pub(super) fn add<V, A, B>(
        &mut self,
        tools: &mut Tools<A, B>,
        (key, value): (K::View<'_>, V::View<'_>),
        time: EventTime,
        mut give: impl FnMut(K::View<'_>, Window, S),
    ) -> Result<bool, Error>
    where
        V: Record,
        A: Accumulate<V, State = S>,
        B: Accumulate<S, State = S>,
    {
        let mut end = self.last_end(time);
        if self.is_gone(end) {
            return Ok(false);
        }
        let hash = K::hash(key);
        let slice = slice_of(time, self.size, self.step);
        let states = self.slices.entry(slice).or_insert_with(States::new);
        match states.find(hash, key) {
            Some(state) => add(&tools.before, state, value, &mut tools.account)?,
            None => {
                let state = tools.before.start(value);
                tools.account.take(state.heap_bytes())?;
                states.insert(hash, K::store(key), state, &mut tools.account)?;
            }
        }
        // The earlier ones may have been given.
        while end > i128::from(time) && !self.is_gone(end) {
            if self.has_come(end) {
                let window = self.window(end);
                let slices = self.slices.range_mut(window.0..=slice_before(window.1));
                let states = slices.filter_map(|(_, states)| states.find(hash, key));
                if let Some(state) = merged(&tools.after, states.map(|state| &*state)) {
                    give(key, window, state);
                }
            }
            end -= i128::from(self.step);
        }
        Ok(true)
    }

    /// What ends by this time is over.
    pub(super) fn close(&mut self, until: EventTime) {
        self.closed = self.closed.max(until);
    }

    /// Gives one result of a window that is over; false if there is none.
    pub(super) fn give<A, B>(
        &mut self,
        tools: &mut Tools<A, B>,
        mut give: impl FnMut(K::View<'_>, Window, S),
    ) -> Result<bool, Error>
    where
        B: Accumulate<S, State = S>,
    {
        loop {
            if let Some((window, from)) = &mut self.giving {
                if let Some(entry) = from.next(&mut tools.account) {
                    let bytes = entry.key_bytes() + entry.state.heap_bytes();
                    tools.account.give_back(bytes);
                    give(K::stored(&entry.key), *window, entry.state);
                    return Ok(true);
                }
                self.giving = None;
                self.forget(&mut tools.account);
            }
            let Some(end) = self.next_over() else {
                self.given = self.given.max(self.closed.into());
                self.forget(&mut tools.account);
                return Ok(false);
            };
            let window = self.window(end);
            let drain = self.merge(window, tools)?;
            (self.given, self.giving) = (end, Some((window, drain)));
        }
    }

    /// The end of the next window that is over, has values and was not given.
    fn next_over(&self) -> Option<i128> {
        let (size, step) = (i128::from(self.size), i128::from(self.step));
        let (first, _) = self.window(self.given);
        let slices = self
            .slices
            .range(first..)
            .map(|(&slice, _)| i128::from(slice));
        let mut ends = slices.filter_map(|slice| {
            // Of the first window that has the slice and was not given, if there is one.
            let after = self.given.max(slice) - size;
            let start = (after.div_euclid(step) + 1) * step;
            (start <= slice).then_some(start + size)
        });
        ends.next().filter(|&end| self.has_come(end))
    }

    /// What there is of each key in a window.
    fn merge<A, B>(&self, window: Window, tools: &mut Tools<A, B>) -> Result<Drain<K, S>, Error>
    where
        B: Accumulate<S, State = S>,
    {
        let mut merged = States::new();
        let slices = self.slices.range(window.0..=slice_before(window.1));
        for entry in slices.flat_map(|(_, states)| states.iter()) {
            let key = K::stored(&entry.key);
            match merged.find(entry.hash, key) {
                Some(state) => {
                    let account = &mut tools.account;
                    (entry.state).with_view(|view| add(&tools.after, state, view, account))?;
                }
                None => {
                    let state = copy(&entry.state);
                    tools.account.take(state.heap_bytes())?;
                    let key = K::store(key);
                    merged.insert(entry.hash, key, state, &mut tools.account)?;
                }
            }
        }
        Ok(merged.drain())
    }

    /// Drops slices of which all windows were given, and nothing late is taken any more.
    fn forget(&mut self, account: &mut Account) {
        while let Some((&slice, _)) = self.slices.first_key_value() {
            let end = self.last_end(slice);
            if end > self.given || !self.is_gone(end) {
                return;
            }
            if let Some((_, mut states)) = self.slices.pop_first() {
                let mut from = states.drain();
                while let Some(entry) = from.next(account) {
                    account.give_back(entry.key_bytes() + entry.state.heap_bytes());
                }
            }
        }
    }
}

/// The start of the slice that a time is in: time is cut wherever a window begins, or ends. If windows leave gaps, these are slices
/// too.
pub(super) fn slice_of(time: EventTime, size: EventTime, step: EventTime) -> EventTime {
    let since = time.rem_euclid(step);
    let cut = if size < step { size } else { size % step };
    let in_slice = if since < cut { since } else { since - cut };
    time.saturating_sub(in_slice)
}

/// The last time that belongs to a window of this end.
fn slice_before(end: EventTime) -> EventTime {
    if end == EventTime::MAX { end } else { end - 1 }
}

/// One state of several.
fn merged<'s, S: Record, B: Accumulate<S, State = S>>(
    after: &B,
    mut states: impl Iterator<Item = &'s S>,
) -> Option<S> {
    let mut merged = copy(states.next()?);
    states.for_each(|state| state.with_view(|view| after.add(&mut merged, view)));
    Some(merged)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn windows_are_made_of_whole_slices(
            (size, step) in (1i64..60, 1i64..60),
            time in -200i64..200,
        ) {
            let slice = slice_of(time, size, step);
            prop_assert!(slice <= time);
            // All times of a slice belong to the same windows.
            let starts = |time: i64| -> Vec<i64> {
                let starts = (-300..300).filter(|start| start % step == 0);
                starts.filter(|&start| (start..start + size).contains(&time)).collect()
            };
            prop_assert_eq!(starts(slice), starts(time));
            if slice < time {
                prop_assert_eq!(slice_of(slice, size, step), slice);
                prop_assert_eq!(slice_of(time - 1, size, step), slice);
            }
            if step < size {
                let windows = Sliding::<u64, u64>::new(size, step, 0);
                let last = starts(time).into_iter().max().unwrap();
                prop_assert_eq!(windows.last_end(time), i128::from(last + size));
            }
        }
    }
}
