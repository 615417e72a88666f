//! Windows that begin at the same times for all keys and do not overlap: a table for each that is open.

use std::collections::BTreeMap;

use super::{
    Tools, Window,
    states::{Drain, States, add, copy},
};
use crate::{Error, EventTime, Key, Record, operator::reduce::Accumulate};

/// Windows of one size, which begin at the multiples of a step that is no smaller.
pub(super) struct Aligned<K: Key, S> {
    size: EventTime,
    step: EventTime,
    lateness: EventTime,
    /// By their ends.
    panes: BTreeMap<EventTime, Pane<K, S>>,
    /// What ends by this time is over.
    closed: EventTime,
    /// Whether it has to be looked for windows that are over.
    is_closing: bool,
    giving: Option<Giving<K, S>>,
}

struct Pane<K: Key, S> {
    start: EventTime,
    states: States<K, S>,
    /// Whether it was given, and is kept for what is late.
    is_given: bool,
}

/// A window that is given, key by key.
struct Giving<K: Key, S> {
    window: Window,
    from: Drain<K, S>,
    /// What stays, for what is late.
    kept: Option<States<K, S>>,
}

impl<K: Key, S: Record> Aligned<K, S> {
    pub(super) fn new(size: EventTime, step: EventTime, lateness: EventTime) -> Self {
        Self {
            size,
            step,
            lateness,
            panes: BTreeMap::new(),
            closed: EventTime::MIN,
            is_closing: false,
            giving: None,
        }
    }

    /// Adds a value to the window that it belongs to, if to any; false if it comes too late for that. A window that was given is given
    /// again.
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
    {
        let hash = K::hash(key);
        let start = time.div_euclid(self.step).saturating_mul(self.step);
        let end = start.saturating_add(self.size);
        if end <= time && end != EventTime::MAX {
            return Ok(true);
        }
        if end.saturating_add(self.lateness) <= self.closed {
            return Ok(false);
        }
        let pane = self.panes.entry(end).or_insert_with(|| Pane {
            start,
            states: States::new(),
            is_given: end <= self.closed,
        });
        let state = match pane.states.find(hash, key) {
            Some(state) => {
                add(&tools.before, state, value, &mut tools.account)?;
                state
            }
            None => {
                let state = tools.before.start(value);
                tools.account.take(state.heap_bytes())?;
                let key = K::store(key);
                pane.states.insert(hash, key, state, &mut tools.account)?
            }
        };
        if pane.is_given {
            give(key, (start, end), copy(state));
        }
        Ok(true)
    }

    /// What ends by this time is over.
    pub(super) fn close(&mut self, until: EventTime) {
        if until > self.closed {
            self.closed = until;
            self.is_closing = true;
        }
    }

    /// Gives one result of a window that is over; false if there is none.
    pub(super) fn give<A, B>(
        &mut self,
        tools: &mut Tools<A, B>,
        mut give: impl FnMut(K::View<'_>, Window, S),
    ) -> Result<bool, Error> {
        while self.giving.is_some() || self.next_over(tools) {
            let Some(giving) = &mut self.giving else {
                continue;
            };
            let Some(entry) = giving.from.next(&mut tools.account) else {
                if let Some(states) = giving.kept.take() {
                    let (start, end) = giving.window;
                    let pane = Pane {
                        start,
                        states,
                        is_given: true,
                    };
                    self.panes.insert(end, pane);
                }
                self.giving = None;
                continue;
            };
            tools
                .account
                .give_back(entry.key_bytes() + entry.state.heap_bytes());
            if let Some(kept) = &mut giving.kept {
                let state = copy(&entry.state);
                tools.account.take(state.heap_bytes())?;
                let key = K::store(K::stored(&entry.key));
                kept.insert(entry.hash, key, state, &mut tools.account)?;
            }
            give(K::stored(&entry.key), giving.window, entry.state);
            return Ok(true);
        }
        Ok(false)
    }

    /// Begins to give, or forgets, the first window that is over; false if there is none.
    fn next_over<A, B>(&mut self, tools: &mut Tools<A, B>) -> bool {
        if !self.is_closing {
            return false;
        }
        let (closed, lateness) = (self.closed, self.lateness);
        let is_gone = |end: EventTime| end.saturating_add(lateness) <= closed;
        let mut over = self.panes.range(..=closed);
        let over = over.find(|&(&end, pane)| !pane.is_given || is_gone(end));
        let Some((&end, _)) = over else {
            self.is_closing = false;
            return false;
        };
        let Some(mut pane) = self.panes.remove(&end) else {
            return false;
        };
        let mut from = pane.states.drain();
        if pane.is_given {
            while let Some(entry) = from.next(&mut tools.account) {
                let bytes = entry.key_bytes() + entry.state.heap_bytes();
                tools.account.give_back(bytes);
            }
        } else {
            self.giving = Some(Giving {
                window: (pane.start, end),
                from,
                kept: (!is_gone(end)).then(States::new),
            });
        }
        true
    }
}
