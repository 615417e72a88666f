//! Windows that each key has for itself: they last as long as its records follow closely upon each other.

use std::collections::BTreeMap;

use super::{Gave, Tools, Window};
use crate::{
    Error, EventTime, Key, Record,
    operator::{
        reduce::Accumulate,
        states::{States, copy, must_add},
    },
};

/// The sessions of all keys.
///
/// Each session has a timer: the earliest time at which something may have to be done about it. A session that has
/// grown since is looked at, and has its timer set anew. So records cost no timers, only sessions do.
pub(super) struct Sessions<K: Key, S> {
    gap: EventTime,
    lateness: EventTime,
    /// Those of each key, the earliest first.
    states: States<K, Vec<Session<S>>>,
    timers: BTreeMap<EventTime, Vec<(u64, K::Stored)>>,
    /// What ends by this time is over.
    closed: EventTime,
}

struct Session<S> {
    start: EventTime,
    /// When the next record would begin another.
    end: EventTime,
    state: S,
    timer: EventTime,
    /// Whether it was given as it is.
    is_given: bool,
}

impl<K: Key, S: Record> Sessions<K, S> {
    pub(super) fn new(gap: EventTime, lateness: EventTime) -> Self {
        Self {
            gap,
            lateness,
            states: States::new(),
            timers: BTreeMap::new(),
            closed: EventTime::MIN,
        }
    }

    /// Adds a value to the session that it belongs to, which may make one of several; false if it comes too late. What
    /// it changes of a session that was given is given again.
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
        let (hash, end) = (K::hash(key), time.saturating_add(self.gap));
        let sessions = match self.states.find(hash, key) {
            Some(sessions) => sessions,
            None if end.saturating_add(self.lateness) <= self.closed => return Ok(false),
            None => {
                let none = Vec::new();
                self.states.insert(hash, key, none, &mut tools.account)?
            }
        };
        let touches = |session: &Session<S>| session.start < end && time < session.end;
        let Some(first) = sessions.iter().position(touches) else {
            if end.saturating_add(self.lateness) <= self.closed {
                return Ok(false);
            }
            let state = tools.before.start(value);
            tools
                .account
                .insist(size_of::<Session<S>>() + state.heap_bytes())?;
            let place = sessions.partition_point(|session| session.start < time);
            let session = Session {
                start: time,
                end,
                state,
                timer: end,
                is_given: false,
            };
            sessions.insert(place, session);
            set_timer::<K, _, _>(&mut self.timers, end, hash, key, tools)?;
            // If it has ended already, its timer rings at once.
            return Ok(true);
        };
        let touched = sessions[first..].iter().take_while(|s| touches(s)).count();
        let others: Vec<_> = sessions.drain(first + 1..first + touched).collect();
        let session = &mut sessions[first];
        must_add(&tools.before, &mut session.state, value, &mut tools.account)?;
        session.start = session.start.min(time);
        session.end = session.end.max(end);
        for other in others {
            let bytes = size_of::<Session<S>>() + other.state.heap_bytes();
            tools.account.give_back(bytes);
            let (state, account) = (&mut session.state, &mut tools.account);
            other
                .state
                .with_view(|view| must_add(&tools.after, state, view, account))?;
            session.end = session.end.max(other.end);
            session.is_given |= other.is_given;
        }
        if session.end > self.closed {
            // It goes on, also if it had ended before.
            session.is_given = false;
            if session.timer > session.end {
                session.timer = session.end;
                set_timer::<K, _, _>(&mut self.timers, session.timer, hash, key, tools)?;
            }
        } else if session.is_given {
            give(key, (session.start, session.end), copy(&session.state));
        }
        Ok(true)
    }

    /// What ends by this time is over.
    pub(super) fn close(&mut self, until: EventTime) {
        self.closed = self.closed.max(until);
    }

    /// Gives one session that is over.
    pub(super) fn give<A, B>(
        &mut self,
        tools: &mut Tools<A, B>,
        mut give: impl FnMut(K::View<'_>, Window, S),
    ) -> Result<Gave, Error> {
        while let Some(mut first) = self.timers.first_entry()
            && *first.key() <= self.closed
        {
            let time = *first.key();
            let Some((hash, key)) = first.get().last() else {
                first.remove();
                continue;
            };
            let (hash, key) = (*hash, K::store(K::stored(key)));
            let key = K::stored(&key);
            let sessions = self.states.find(hash, key);
            let rings = |session: &Session<S>| session.timer == time;
            let Some((sessions, place)) = sessions.and_then(|sessions| {
                let place = sessions.iter().position(rings)?;
                Some((sessions, place))
            }) else {
                if let Some((_, key)) = first.get_mut().pop() {
                    tools.account.give_back(timer_bytes::<K>(&key));
                }
                continue;
            };
            let session = &mut sessions[place];
            let gone_at = session.end.saturating_add(self.lateness);
            if session.end > self.closed {
                session.timer = session.end;
                let at = session.timer;
                set_timer::<K, _, _>(&mut self.timers, at, hash, key, tools)?;
                continue;
            }
            let window = (session.start, session.end);
            let was_given = std::mem::replace(&mut session.is_given, true);
            if gone_at > self.closed {
                session.timer = gone_at;
                let state = (!was_given).then(|| copy(&session.state));
                set_timer::<K, _, _>(&mut self.timers, gone_at, hash, key, tools)?;
                if let Some(state) = state {
                    give(key, window, state);
                    return Ok(Gave::Result);
                }
                continue;
            }
            let session = sessions.remove(place);
            let bytes = size_of::<Session<S>>() + session.state.heap_bytes();
            tools.account.give_back(bytes);
            if sessions.is_empty() {
                self.states.remove(hash, key, &mut tools.account);
            }
            if !was_given {
                give(key, window, session.state);
                return Ok(Gave::Result);
            }
        }
        Ok(Gave::Nothing)
    }
}

fn timer_bytes<K: Key>(key: &K::Stored) -> usize {
    size_of::<(u64, K::Stored)>() + K::stored_bytes(key)
}

/// Has a key looked at when event time has come so far.
fn set_timer<K: Key, A, B>(
    timers: &mut BTreeMap<EventTime, Vec<(u64, K::Stored)>>,
    time: EventTime,
    hash: u64,
    key: K::View<'_>,
    tools: &mut Tools<A, B>,
) -> Result<(), Error> {
    let key = K::store(key);
    tools.account.insist(timer_bytes::<K>(&key))?;
    timers.entry(time).or_default().push((hash, key));
    Ok(())
}
