//! Windows of so many records of a key.

use std::collections::VecDeque;

use super::{Gave, Tools, Window};
use crate::{
    Error, Key, Record,
    operator::{
        reduce::Accumulate,
        states::{Drain, States, must_add},
    },
};

/// The windows of all keys, in which the time of a record is its number among those of its key.
pub(super) struct Counts<K: Key, S> {
    size: u64,
    step: u64,
    states: States<K, Counted<S>>,
    /// What is left in the end.
    rest: Option<Drain<K, Counted<S>>>,
    /// The key whose windows are given.
    giving: Option<(K::Stored, Counted<S>)>,
}

/// The records of a key.
struct Counted<S> {
    number: u64,
    /// The windows that are not full, with the numbers of their first records.
    open: VecDeque<(u64, S)>,
}

impl<K: Key, S: Record> Counts<K, S> {
    pub(super) fn new(size: u64, step: u64) -> Self {
        Self {
            size,
            step,
            states: States::new(),
            rest: None,
            giving: None,
        }
    }

    /// Adds a value to all windows that it belongs to, and gives the one that is full then.
    pub(super) fn add<V, A, B>(
        &mut self,
        tools: &mut Tools<A, B>,
        (key, value): (K::View<'_>, V::View<'_>),
        mut give: impl FnMut(K::View<'_>, Window, S),
    ) -> Result<bool, Error>
    where
        V: Record,
        A: Accumulate<V, State = S>,
    {
        let hash = K::hash(key);
        let counted = match self.states.find(hash, key) {
            Some(counted) => counted,
            None => {
                let none = Counted {
                    number: 0,
                    open: VecDeque::new(),
                };
                self.states.insert(hash, key, none, &mut tools.account)?
            }
        };
        for (_, state) in &mut counted.open {
            must_add(&tools.before, state, value, &mut tools.account)?;
        }
        if counted.number % self.step == 0 {
            let state = tools.before.start(value);
            tools
                .account
                .insist(size_of::<(u64, S)>() + state.heap_bytes())?;
            counted.open.push_back((counted.number, state));
        }
        counted.number += 1;
        let (number, size) = (counted.number, self.size);
        let is_full = |(start, _): &(u64, S)| *start + size == number;
        if counted.open.front().is_some_and(is_full)
            && let Some((start, state)) = counted.open.pop_front()
        {
            tools
                .account
                .give_back(size_of::<(u64, S)>() + state.heap_bytes());
            give(key, (start as i64, number as i64), state);
        }
        Ok(true)
    }

    /// No more come: windows that are not full end.
    pub(super) fn end(&mut self) {
        self.rest = Some(self.states.drain());
    }

    /// Gives one of the windows that are left in the end.
    pub(super) fn give<A, B>(
        &mut self,
        tools: &mut Tools<A, B>,
        mut give: impl FnMut(K::View<'_>, Window, S),
    ) -> Result<Gave, Error> {
        loop {
            if let Some((key, counted)) = &mut self.giving {
                if let Some((start, state)) = counted.open.pop_front() {
                    tools
                        .account
                        .give_back(size_of::<(u64, S)>() + state.heap_bytes());
                    let window = (start as i64, counted.number as i64);
                    give(K::stored(key), window, state);
                    return Ok(Gave::Result);
                }
                tools.account.give_back(K::stored_bytes(key));
                self.giving = None;
            }
            let Some(rest) = &mut self.rest else {
                return Ok(Gave::Nothing);
            };
            match rest.next(&mut tools.account) {
                Some(entry) => self.giving = Some((entry.key, entry.state)),
                None => self.rest = None,
            }
        }
    }
}
