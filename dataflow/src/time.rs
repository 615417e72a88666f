//! Time: that of events, which records carry, and that of the clock, which whoever drives a run reads.

use std::{cell::Cell, time::Duration};

/// When something happened, in the unit that the program counts in: microseconds since 1970, say, or the rounds of a
/// simulation. It is part of a record, where a function of the program finds it. Nothing here compares it with a clock.
pub type EventTime = i64;

/// How far event time is, in a stream or on one of its channels.
///
/// It travels in order with the batches, and means what follows it: so a task with several senders is as far as the
/// least of them. The end of a channel is a watermark beyond all times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watermark {
    /// No record of an earlier time follows, unless it is late.
    At(EventTime),
    /// Nothing has come for a while, and nobody should wait for it. The next record ends that.
    Idle,
}

impl Watermark {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self::At(EventTime::MIN);
    /// Nothing follows.
    pub const END: Self = Self::At(EventTime::MAX);

    /// How far streams are together: as far as the least that is not idle, and idle if all are.
    pub fn least(streams: impl IntoIterator<Item = Self>) -> Self {
        let times = streams.into_iter().filter_map(|stream| match stream {
            Self::At(time) => Some(time),
            Self::Idle => None,
        });
        times.min().map_or(Self::Idle, Self::At)
    }

    /// Whether it says something new to who was told `before`.
    pub(crate) fn is_news(self, before: Self) -> bool {
        match (self, before) {
            (Self::At(time), Self::At(before)) => time > before,
            (now, before) => now != before,
        }
    }

    /// As it travels: [`EventTime::MIN`], which is not worth telling, stands for an idle channel.
    pub(crate) fn to_time(self) -> EventTime {
        match self {
            Self::At(time) => time,
            Self::Idle => EventTime::MIN,
        }
    }

    pub(crate) fn from_time(time: EventTime) -> Self {
        if time == EventTime::MIN {
            Self::Idle
        } else {
            Self::At(time)
        }
    }
}

/// What time it is on the clock of whoever drives a run, and when something is to be done next.
#[derive(Debug, Default)]
pub struct Clock {
    now: Cell<Duration>,
    due: Cell<Option<Duration>>,
}

impl Clock {
    /// The time since any fixed moment.
    pub fn now(&self) -> Duration {
        self.now.get()
    }

    /// Asks to be driven at this time, or before it.
    pub fn wake_at(&self, time: Duration) {
        let earliest = self.due.get().map_or(time, |due| due.min(time));
        self.due.set(Some(earliest));
    }

    pub(crate) fn set(&self, now: Duration) {
        self.now.set(self.now.get().max(now));
    }

    pub(crate) fn due(&self) -> Option<Duration> {
        self.due.get()
    }

    /// Forgets when it was to be driven, because it is.
    pub(crate) fn begin_turn(&self) {
        self.due.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_streams_hold_nobody_back() {
        use Watermark::{At, Idle};
        assert_eq!(Watermark::least([At(3), Idle, At(2)]), At(2));
        assert_eq!(Watermark::least([Idle, Idle]), Idle);
        assert_eq!(
            Watermark::least([Watermark::UNKNOWN, Watermark::END]),
            Watermark::UNKNOWN
        );
    }

    #[test]
    fn a_watermark_comes_out_as_it_went_in() {
        for mark in [Watermark::Idle, Watermark::At(-5), Watermark::END] {
            assert_eq!(Watermark::from_time(mark.to_time()), mark);
        }
    }
}
