//! A side of an operator that passes by what is kept of the other. It may go on until it is stopped.

use std::collections::VecDeque;

use transport::{Buffer, Rank};

use crate::{
    Error, Record,
    batch::{Batch, Page},
    exchange::Receiver,
    operator::room::Room,
    stage::{Input, Place},
    time::Watermark,
};

/// A side that passes by, in parts, and is kept until then where it must not be left unread.
pub(crate) struct Passing<T> {
    pub(crate) receiver: Receiver<T>,
    /// Batches that came too early.
    early: VecDeque<Page<T>>,
    room: Room,
    may_wait: bool,
    /// Whether one came that there was no room for.
    is_refused: bool,
    holder: &'static str,
    is_endless: bool,
    /// The batch that passes, and how many of its rows have.
    now: Option<Part<T>>,
}

/// A batch that passes by, and how many of its rows have.
pub(crate) struct Part<T> {
    pub(crate) rows: Held<T>,
    pub(crate) passed: usize,
}

/// A batch, where it is.
pub(crate) enum Held<T> {
    Arrived(Batch<T>),
    Kept(Page<T>),
}

impl<T: Record> Held<T> {
    pub(crate) fn elements(&self) -> &[T::Archived] {
        match self {
            Self::Arrived(batch) => batch.elements(),
            Self::Kept(kept) => kept.elements(),
        }
    }
}

impl<T: Record> Passing<T> {
    pub(crate) fn new(place: &Place, port: usize, holder: &'static str) -> Result<Self, Error> {
        Ok(Self {
            receiver: Receiver::new(place, port),
            early: VecDeque::new(),
            room: Room::new(place, holder)?,
            may_wait: place.wiring.may_wait,
            is_refused: false,
            holder,
            is_endless: place
                .wiring
                .endless
                .get(port)
                .is_some_and(|&endless| endless),
            now: None,
        })
    }

    /// Takes in a batch, which may come before it can pass. If it has to be kept then, but there is no room, it is
    /// refused from then on: it stays where it arrived, and its sender waits.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`], or [`transport::Error::LedgerLimit`] where what was refused would have no end.
    pub(crate) fn receive(
        &mut self,
        port: usize,
        from: Rank,
        batch: Buffer,
        is_early: bool,
    ) -> Result<(), Error> {
        let has_to_be_kept = is_early && !self.may_wait && !self.is_refused;
        let bytes = batch.len() as u64;
        let is_kept = has_to_be_kept && self.room.take(bytes);
        self.receiver.receive(port, from, batch)?;
        if is_kept {
            let arrived = self.receiver.next_batch();
            self.early.extend(arrived.map(|(_, batch)| batch.keep()));
        }
        self.is_refused |= has_to_be_kept && !is_kept;
        if self.is_refused && self.is_endless {
            return Err(self.room.refusal(self.holder, bytes));
        }
        Ok(())
    }

    /// Whether it goes on until it is stopped: then it cannot be set aside until its end.
    pub(crate) fn is_endless(&self) -> bool {
        self.is_endless
    }

    /// Takes note of how far a sender is.
    pub(crate) fn advance(&mut self, port: usize, sender: u32, watermark: Watermark) {
        self.receiver.advance(port, sender, watermark);
    }

    /// How far event time is behind what has passed.
    pub(crate) fn watermark(&mut self) -> Watermark {
        let is_busy = self.now.is_some() || !self.early.is_empty();
        self.receiver.watermark_behind(is_busy)
    }

    /// Whether a batch was refused. It has to be taken soon then, for what is to come first may wait for it.
    pub(crate) fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// Gives up a batch that was kept.
    pub(crate) fn pop(&mut self) -> Option<Page<T>> {
        let kept = self.early.pop_front()?;
        self.room.give_back(kept.capacity() as u64);
        Some(kept)
    }

    /// The batch whose turn it is.
    pub(crate) fn rows(&mut self) -> Option<&mut Part<T>> {
        if self.now.is_none() {
            let rows = match self.early.pop_front() {
                Some(kept) => Held::Kept(kept),
                None => Held::Arrived(self.receiver.next_batch()?.1),
            };
            self.now = Some(Part { rows, passed: 0 });
        }
        self.now.as_mut()
    }

    /// Gives the batch back that has passed.
    pub(crate) fn next(&mut self) {
        if let Some(Part {
            rows: Held::Kept(kept),
            ..
        }) = self.now.take()
        {
            self.room.give_back(kept.capacity() as u64);
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.now.is_none() && self.early.is_empty() && self.receiver.is_done()
    }
}
