//! Windows that begin at the same times for all keys: what they have in common is made once.
//!
//! Time is cut wherever a window begins or ends, so that each window is some whole slices: one, if windows do not overlap, and
//! otherwise one or two to a step. A value is added to the state of its key in its slice, and to no other, however many windows
//! it belongs to; a window that is over is merged of its slices (as in Krishnamurthy, Wu, Franklin: "On-the-fly sharing for
//! streamed aggregation", 2006, whose slices these are). So work goes with the values, and with the keys of the slices of each
//! window.
//!
//! To merge states of slices is to reduce them by key. So that is done as a [reduction](Reduction) does it, in memory and beyond
//! it; where they come from, the tables of the slices or what of them [is on disk](super::slices), is the same to it.

use std::{collections::BTreeMap, vec};

use super::{
    Gave, Tools, Window,
    slices::{Entry, Slices, Spilled},
};
use crate::{
    Error, EventTime, Key, Record,
    operator::{
        reduce::{Accumulate, Next, Reduction},
        states::{Drain, States, copy},
    },
    spill::Reader,
    stage::Place,
};

/// Windows of one size, of which one begins at each multiple of a step.
pub(super) struct Sliced<K: Key, S: Record, B: Accumulate<S>> {
    times: Times,
    slices: Slices<K, S>,
    /// What ends by this time was given. It may be beyond all times, as windows are of the last ones.
    given: i128,
    /// Of windows that were given, by their ends, the keys that late values have changed since, of which there is more on
    /// disk. They are given again when no more can change.
    changed: BTreeMap<i128, States<K, ()>>,
    giving: Option<Giving<K, S>>,
    reduction: Reduction<K, S, B>,
}

/// When windows begin and end, and how far time is.
#[derive(Debug, Clone, Copy)]
struct Times {
    size: EventTime,
    step: EventTime,
    lateness: EventTime,
    /// What ends by this time is over.
    closed: EventTime,
}

/// A window that is given, key by key.
enum Giving<K: Key, S> {
    /// From the table of the only slice that it has, which no other window needs.
    Table(Window, Drain<K, S>),
    /// It is still merged.
    Merging(Merging<K, S>),
    /// It is merged.
    Merged(Window),
}

/// A window that is merged of its slices.
struct Merging<K: Key, S> {
    end: i128,
    /// Slices whose tables are still to be added.
    slices: vec::IntoIter<EventTime>,
    /// What may have more of them on disk, and what of it is read.
    spilled: Vec<Spilled>,
    reader: Option<Reader<Entry<K, S>>>,
    /// The keys that are wanted, if not all are.
    only: Option<States<K, ()>>,
}

/// States read in one turn, between which messages are looked for.
const READ_A_TURN: usize = 4096;

impl<K, S, B> Sliced<K, S, B>
where
    K: Key,
    S: Record,
    B: Accumulate<S, State = S>,
{
    /// Enters on the ledger what it cannot do without.
    pub(super) fn new(
        place: &Place,
        holder: &'static str,
        (size, step, lateness): (EventTime, EventTime, EventTime),
        after: B,
    ) -> Result<Self, Error> {
        Ok(Self {
            times: Times {
                size,
                step,
                lateness,
                closed: EventTime::MIN,
            },
            slices: Slices::new(place, holder)?,
            given: EventTime::MIN.into(),
            changed: BTreeMap::new(),
            giving: None,
            reduction: Reduction::new(place, after, holder)?,
        })
    }

    /// Adds a value to its slice; false if it comes too late for all its windows. What it changes of windows that were given is
    /// given again: at once if all is in memory, or otherwise when the window changes no more.
    #[inline]
    pub(super) fn add<V, A>(
        &mut self,
        tools: &Tools<A, B>,
        (key, value): (K::View<'_>, V::View<'_>),
        time: EventTime,
        give: impl FnMut(K::View<'_>, Window, S),
    ) -> Result<bool, Error>
    where
        V: Record,
        A: Accumulate<V, State = S>,
    {
        let times = self.times;
        let end = times.last_end(time);
        if end <= time.into() {
            return Ok(true);
        }
        if times.is_gone(end) {
            return Ok(false);
        }
        let slice = slice_of(time, times.size, times.step);
        self.slices
            .merge::<V, A>(slice, &tools.before, (key, value))?;
        if time < times.closed {
            self.give_again(tools, key, time, give)?;
        }
        Ok(true)
    }

    /// Gives the windows of a key again that were given and to which a time belongs.
    #[cold]
    fn give_again<A>(
        &mut self,
        tools: &Tools<A, B>,
        key: K::View<'_>,
        time: EventTime,
        mut give: impl FnMut(K::View<'_>, Window, S),
    ) -> Result<(), Error> {
        let (times, hash) = (self.times, K::hash(key));
        let mut end = times.last_end(time);
        while end > time.into() && !times.is_gone(end) {
            if times.has_come(end) {
                let window = times.window(end);
                let slices: Vec<_> = self.slices.starts(in_window(window)).collect();
                if slices.iter().any(|&slice| self.slices.is_on_disk(slice)) {
                    self.note_change(end, hash, key)?;
                } else {
                    let mut merged: Option<S> = None;
                    for slice in slices {
                        let Some(state) = self.slices.find(slice, hash, key) else {
                            continue;
                        };
                        match &mut merged {
                            Some(merged) => {
                                state.with_view(|state| tools.after.add(merged, state));
                            }
                            none => *none = Some(copy(state)),
                        }
                    }
                    if let Some(state) = merged {
                        give(key, window, state);
                    }
                }
            }
            end -= i128::from(times.step);
        }
        Ok(())
    }

    fn note_change(&mut self, end: i128, hash: u64, key: K::View<'_>) -> Result<(), Error> {
        let keys = self.changed.entry(end).or_insert_with(States::new);
        if keys.find(hash, key).is_none() {
            keys.insert(hash, key, (), self.slices.account())?;
        }
        Ok(())
    }

    /// What ends by this time is over.
    pub(super) fn close(&mut self, until: EventTime) {
        self.times.closed = self.times.closed.max(until);
    }

    /// Gives one result of a window that is over.
    pub(super) fn give(
        &mut self,
        mut give: impl FnMut(K::View<'_>, Window, S),
    ) -> Result<Gave, Error> {
        loop {
            if self.giving.is_none() && !self.begin_next() {
                self.given = self.given.max(self.times.closed.into());
                self.forget();
                return Ok(Gave::Nothing);
            }
            let (window, key, state) = match &mut self.giving {
                None => continue,
                Some(Giving::Merging(_)) => {
                    self.merge_on()?;
                    return Ok(Gave::Later);
                }
                Some(Giving::Table(window, from)) => {
                    let Some(entry) = from.next_given_back(self.slices.account()) else {
                        self.giving = None;
                        continue;
                    };
                    (*window, entry.key, entry.state)
                }
                Some(Giving::Merged(window)) => match self.reduction.next()? {
                    Next::Entry(key, state) => (*window, key, state),
                    Next::Later => return Ok(Gave::Later),
                    Next::Nothing => {
                        self.reduction.begin();
                        self.giving = None;
                        self.forget();
                        continue;
                    }
                },
            };
            give(K::stored(&key), window, state);
            return Ok(Gave::Result);
        }
    }

    /// Begins to give the next window that is over; false if there is none.
    fn begin_next(&mut self) -> bool {
        // First what was given before, as long as all slices of it are there.
        if let Some(first) = self.changed.first_entry()
            && self.times.is_gone(*first.key())
        {
            let (end, keys) = first.remove_entry();
            self.giving = Some(self.merging(end, Some(keys)));
            return true;
        }
        let Some(end) = self.next_over() else {
            return false;
        };
        self.given = end;
        let window = self.times.window(end);
        let first_two = {
            let mut slices = self.slices.starts(in_window(window));
            (slices.next(), slices.next())
        };
        self.giving = match first_two {
            (Some(slice), None) if self.is_done(slice) && !self.slices.is_on_disk(slice) => {
                let removed = self.slices.remove(slice);
                removed.map(|drain| Giving::Table(window, drain))
            }
            _ => Some(self.merging(end, None)),
        };
        true
    }

    fn merging(&self, end: i128, only: Option<States<K, ()>>) -> Giving<K, S> {
        let within = in_window(self.times.window(end));
        let slices: Vec<_> = self.slices.starts(within.clone()).collect();
        Giving::Merging(Merging {
            end,
            slices: slices.into_iter(),
            spilled: self.slices.spilled(&within),
            reader: None,
            only,
        })
    }

    /// The end of the next window that is over, has values and was not given.
    fn next_over(&self) -> Option<i128> {
        let (size, step) = (i128::from(self.times.size), i128::from(self.times.step));
        let (first, _) = self.times.window(self.given);
        let mut ends = self.slices.starts(first..).filter_map(|slice| {
            let slice = i128::from(slice);
            // Of the first window that has the slice and was not given, if there is one.
            let after = self.given.max(slice) - size;
            let start = (after.div_euclid(step) + 1) * step;
            (start <= slice).then_some(start + size)
        });
        ends.next().filter(|&end| self.times.has_come(end))
    }

    /// Whether all windows of a slice were given, or are now, and nothing late is taken any more.
    fn is_done(&self, slice: EventTime) -> bool {
        let end = self.times.last_end(slice);
        end <= self.given && self.times.is_gone(end)
    }

    /// Adds some more of its slices to the window that is merged.
    fn merge_on(&mut self) -> Result<(), Error> {
        if self.reduction.go_on()? {
            return Ok(());
        }
        let Some(Giving::Merging(merging)) = &mut self.giving else {
            return Ok(());
        };
        if let Some(reader) = &mut merging.reader {
            for _ in 0..READ_A_TURN {
                let Some((_, (key, state))) = reader.view() else {
                    merging.reader = None;
                    break;
                };
                add_wanted(&mut self.reduction, &mut merging.only, key, state)?;
                reader.advance()?;
            }
            return Ok(());
        }
        if let Some(spilled) = merging.spilled.pop() {
            let within = in_window(self.times.window(merging.end));
            merging.reader = Some(self.slices.read(&spilled, &within)?);
            return Ok(());
        }
        let Some(slice) = merging.slices.next() else {
            let window = self.times.window(merging.end);
            if let Some(mut only) = merging.only.take() {
                only.drain().forget(self.slices.account());
            }
            self.giving = Some(Giving::Merged(window));
            return self.reduction.end();
        };
        let last = self.times.last_end(slice);
        let is_done = last <= self.given && last <= merging.end && self.times.is_gone(last);
        let (reduction, only) = (&mut self.reduction, &mut merging.only);
        if is_done && let Some(mut drain) = self.slices.remove(slice) {
            while let Some(entry) = drain.next_given_back(self.slices.account()) {
                let key = K::stored(&entry.key);
                (entry.state).with_view(|state| {
                    add_wanted(reduction, only, K::shorten(key), S::shorten(state))
                })?;
            }
            return Ok(());
        }
        for (key, state) in self.slices.states(slice) {
            state.with_view(|state| {
                add_wanted(reduction, only, K::shorten(key), S::shorten(state))
            })?;
        }
        Ok(())
    }

    /// Drops slices that are done, and that no window has which is still to be given again.
    fn forget(&mut self) {
        let changed = self.changed.first_key_value().map(|(&end, _)| end);
        while let Some(slice) = self.slices.first()
            && self.is_done(slice)
            && changed.is_none_or(|end| end > self.times.last_end(slice))
        {
            if let Some(mut drain) = self.slices.remove(slice) {
                drain.forget(self.slices.account());
            }
        }
    }
}

/// Adds a state to a window, if its key is wanted there.
#[inline]
fn add_wanted<K, S, B>(
    reduction: &mut Reduction<K, S, B>,
    only: &mut Option<States<K, ()>>,
    key: K::View<'_>,
    state: S::View<'_>,
) -> Result<(), Error>
where
    K: Key,
    S: Record,
    B: Accumulate<S, State = S>,
{
    if let Some(only) = only
        && only.find(K::hash(key), key).is_none()
    {
        return Ok(());
    }
    reduction.take(key, state)
}

impl Times {
    /// The end of the last window that a time belongs to. It is not behind the time if the time belongs to none.
    #[inline]
    fn last_end(&self, time: EventTime) -> i128 {
        let start = i128::from(time) - i128::from(time.rem_euclid(self.step));
        start + i128::from(self.size)
    }

    /// Whether event time has come so far. In the end it is beyond all.
    #[inline]
    fn has_come(&self, time: i128) -> bool {
        self.closed == EventTime::MAX || time <= self.closed.into()
    }

    #[inline]
    fn is_gone(&self, end: i128) -> bool {
        self.has_come(end + i128::from(self.lateness))
    }

    fn window(&self, end: i128) -> Window {
        let clamp = |time: i128| time.clamp(EventTime::MIN.into(), EventTime::MAX.into());
        (clamp(end - i128::from(self.size)) as _, clamp(end) as _)
    }
}

/// The times that belong to a window.
fn in_window((start, end): Window) -> std::ops::RangeInclusive<EventTime> {
    start..=if end == EventTime::MAX { end } else { end - 1 }
}

/// The start of the slice that a time is in: time is cut wherever a window begins, or ends. If windows leave gaps, these are slices
/// too.
pub(super) fn slice_of(time: EventTime, size: EventTime, step: EventTime) -> EventTime {
    let since = time.rem_euclid(step);
    let cut = if size < step { size } else { size % step };
    let in_slice = if since < cut { since } else { since - cut };
    time.saturating_sub(in_slice)
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
            let times = Times { size, step, lateness: 0, closed: EventTime::MIN };
            match starts(time).into_iter().max() {
                Some(last) => prop_assert_eq!(times.last_end(time), i128::from(last + size)),
                None => prop_assert!(times.last_end(time) <= time.into()),
            }
        }
    }
}
