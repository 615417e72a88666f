//! Records in pages of memory that is on the ledger: written once, and read often.

use std::fmt;

use transport::Reservation;

use crate::{
    Error, Record,
    batch::{Builder, Memory, Page, Shape},
    operator::room::Room,
    stage::{Place, Sink},
};

/// Bytes of the first page; each has twice as many as the one before, up to the most.
const PAGE_BYTES_MIN: usize = 4 << 10;
const PAGE_BYTES_MAX: usize = 256 << 10;
/// The most for one large record.
const RECORD_BYTES_MAX: usize = 1 << 30;
/// Records pushed in one turn, between which messages are looked for.
const PUSHED_A_TURN: usize = 1024;

/// Records in memory. They stay there as long as this does.
pub(crate) struct Pages<T> {
    pages: Vec<Page<T>>,
    reservation: Reservation,
}

/// The place of a record.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct At {
    page: usize,
    record: usize,
}

impl<T: Record> Pages<T> {
    /// How many records there are.
    pub(crate) fn len(&self) -> u64 {
        self.iter().map(|page| page.len() as u64).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Page<T>> {
        self.pages.iter()
    }

    /// Bytes that they take on the ledger.
    pub(crate) fn bytes(&self) -> u64 {
        self.reservation.bytes()
    }

    /// Gives them up, with what was entered for them.
    pub(crate) fn into_parts(self) -> (Vec<Page<T>>, Reservation) {
        (self.pages, self.reservation)
    }

    /// Whether there are no more behind a place.
    pub(crate) fn is_end(&self, at: &At) -> bool {
        at.page == self.pages.len()
    }

    /// Pushes some more, as long as they are wanted, and says how many; none when there are no more.
    pub(crate) fn push_on<D: Sink<T>>(&self, at: &mut At, down: &mut D) -> Option<u64> {
        let page = self.pages.get(at.page)?;
        let start = at.record;
        let end = page.len().min(start + PUSHED_A_TURN);
        while at.record < end && !down.is_full() {
            down.push(page.view(at.record));
            at.record += 1;
        }
        let pushed = at.record - start;
        if at.record == page.len() {
            (at.page, at.record) = (at.page + 1, 0);
        }
        Some(pushed as u64)
    }

    /// The record before a place, as people find it again.
    pub(crate) fn name(&self, at: &At, of: &str) -> String {
        let before = self.pages[..at.page].iter();
        let number = before.map(Page::len).sum::<usize>() + at.record;
        format!("record {} of its partition of {of}", number.wrapping_sub(1))
    }
}

impl<T> fmt::Debug for Pages<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages")
            .field("number", &self.pages.len())
            .finish_non_exhaustive()
    }
}

/// Writes pages.
pub(crate) struct PageWriter<T> {
    pages: Vec<Page<T>>,
    builder: Builder<T>,
    shape: Shape,
    page_bytes: usize,
    room: Room,
    /// Whether it does without room that others need.
    yields: bool,
}

impl<T: Record> PageWriter<T> {
    /// Writes pages for `holder`, in all the memory there is, or if it `yields`, in what others can do without.
    ///
    /// # Errors
    ///
    /// None but by a ledger that is overdrawn already.
    pub(crate) fn new(place: &Place, holder: &'static str, yields: bool) -> Result<Self, Error> {
        Ok(Self {
            pages: Vec::new(),
            builder: Builder::new(Memory::own(0), Shape::UNKNOWN),
            shape: Shape::UNKNOWN,
            page_bytes: PAGE_BYTES_MIN,
            room: Room::new(place, holder)?,
            yields,
        })
    }

    /// Writes a record; false if there is no room for it, and what was written before is as it was.
    ///
    /// # Errors
    ///
    /// [`Error::RecordTooLarge`], or [`transport::Error::LedgerLimit`] when it does not yield.
    #[inline]
    pub(crate) fn push(&mut self, view: T::View<'_>) -> Result<bool, Error> {
        match self.builder.push(&view) {
            Ok(()) => Ok(true),
            Err(_) => self.push_slowly(view),
        }
    }

    /// Writes a record that the page in the making has no room for.
    #[cold]
    fn push_slowly(&mut self, view: T::View<'_>) -> Result<bool, Error> {
        let mut bytes = self.page_bytes;
        self.page_bytes = (2 * bytes).min(PAGE_BYTES_MAX);
        loop {
            if !self.turn_over(bytes)? {
                return Ok(false);
            }
            if self.builder.push(&view).is_ok() {
                return Ok(true);
            }
            if bytes >= RECORD_BYTES_MAX {
                return Err(Error::RecordTooLarge {
                    record: std::any::type_name::<T>(),
                    limit: bytes,
                });
            }
            bytes *= 2;
            self.shape = Shape::LARGE;
        }
    }

    /// Ends the page in the making, and begins another, if there is room.
    fn turn_over(&mut self, bytes: usize) -> Result<bool, Error> {
        if !self.yields {
            self.room.insist(bytes as u64)?;
        } else if !self.room.take(bytes as u64) {
            return Ok(false);
        }
        let next = Builder::new(Memory::own(bytes), self.shape);
        let full = std::mem::replace(&mut self.builder, next);
        self.keep_page(full);
        Ok(true)
    }

    fn keep_page(&mut self, builder: Builder<T>) {
        if !builder.is_empty() {
            self.shape = builder.shape();
            self.pages.push(builder.into_page());
        } else {
            self.room.give_back(builder.capacity() as u64);
        }
    }

    /// What was written.
    pub(crate) fn finish(mut self) -> Pages<T> {
        let nothing = Builder::new(Memory::own(0), self.shape);
        let last = std::mem::replace(&mut self.builder, nothing);
        self.keep_page(last);
        Pages {
            pages: self.pages,
            reservation: self.room.into_reservation(),
        }
    }
}
