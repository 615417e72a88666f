//! Records on their way between the program and an operator, on one rank.

use std::{cell::RefCell, collections::VecDeque, fmt};

use transport::Reservation;

use super::overflow::Overflow;
use crate::{
    Encode, Error, Record, Unfit,
    batch::{Builder, Memory, Page, Shape},
    bytes::Bytes,
    stage::Place,
};

/// Bytes of the first page, and of pages when there are many records.
const PAGE_BYTES_MIN: usize = 1 << 10;
const PAGE_BYTES_MAX: usize = 64 << 10;
/// The largest record.
const RECORD_BYTES_MAX: usize = 1 << 30;
/// Full pages that may wait before whoever fills them should.
const WAITING_MAX: usize = 2;

/// Records in the order in which they were pushed, in pages. Its memory is on the ledger of the worker, and it grows as long
/// as there is room there: whoever fills it looks whether it [is full](Self::is_full) before, unless it [goes to
/// disk](Self::enter_with_disk).
pub(super) struct Queue<T>(RefCell<Inner<T>>);

struct Inner<T> {
    full: VecDeque<Page<T>>,
    /// The page in the making.
    builder: Builder<T>,
    shape: Shape,
    page_bytes: usize,
    /// The memory of a page that was read, for the next.
    spare: Option<Bytes>,
    /// None before there is a run.
    reservation: Option<Reservation>,
    /// What is on disk, behind all that is in memory.
    overflow: Option<Overflow<T>>,
    /// Whether nothing more will be pushed, and whether nobody wants more.
    is_ended: bool,
    is_closed: bool,
    /// Whether a task takes from it.
    is_taken: bool,
}

impl<T: Record> Queue<T> {
    pub(super) fn new() -> Self {
        Self(RefCell::new(Inner {
            full: VecDeque::new(),
            builder: Builder::new(Memory::own(0), Shape::UNKNOWN),
            shape: Shape::UNKNOWN,
            page_bytes: PAGE_BYTES_MIN,
            spare: None,
            reservation: None,
            overflow: None,
            is_ended: false,
            is_closed: false,
            is_taken: false,
        }))
    }

    /// Enters what it takes on the ledger from now on.
    pub(super) fn enter(&self, place: &Place, holder: &'static str) -> Result<(), Error> {
        let mut inner = self.0.borrow_mut();
        if inner.reservation.is_none() {
            inner.reservation = Some(place.ledger.reserve(holder, 0)?);
        }
        Ok(())
    }

    /// The same, and has go to disk what is too much for memory.
    pub(super) fn enter_with_disk(&self, place: &Place, holder: &'static str) -> Result<(), Error> {
        self.enter(place, holder)?;
        let mut inner = self.0.borrow_mut();
        inner.overflow = Some(Overflow::new(place, holder));
        Ok(())
    }

    /// Puts a record at the end. Dropped if nobody wants it.
    ///
    /// # Errors
    ///
    /// [`Error::RecordTooLarge`], [`transport::Error::LedgerLimit`], or [`Error::Spill`].
    #[inline]
    pub(super) fn push<E: Encode<Record = T>>(&self, value: &E) -> Result<(), Error> {
        let mut inner = self.0.borrow_mut();
        match inner.builder.push(value) {
            Ok(()) => Ok(()),
            Err(_) => inner.push_slowly(value),
        }
    }

    /// Whether so much waits that whoever fills it should wait as well.
    pub(super) fn is_full(&self) -> bool {
        let inner = self.0.borrow();
        inner.full.len() >= WAITING_MAX && !inner.is_closed
    }

    /// The next page, be it full or not.
    ///
    /// # Errors
    ///
    /// What the disk says, if there is something.
    pub(super) fn pop(&self) -> Result<Option<Page<T>>, Error> {
        let mut inner = self.0.borrow_mut();
        if let Some(page) = inner.full.pop_front() {
            return Ok(Some(page));
        }
        if inner.builder.is_empty() {
            inner.read()?;
        }
        Ok(inner.close_page())
    }

    /// Takes a page back that was read.
    pub(super) fn give_back(&self, page: Page<T>) {
        let mut inner = self.0.borrow_mut();
        let bytes = page.capacity() as u64;
        if inner.spare.is_none() && page.capacity() == inner.page_bytes {
            inner.spare = Some(page.into_memory());
        } else {
            inner.release(bytes);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        let inner = self.0.borrow();
        let on_disk = inner.overflow.as_ref().is_some_and(Overflow::is_used);
        inner.full.is_empty() && inner.builder.is_empty() && !on_disk
    }

    /// Nothing more will be pushed.
    pub(super) fn end(&self) {
        self.0.borrow_mut().is_ended = true;
    }

    pub(super) fn is_ended(&self) -> bool {
        self.0.borrow().is_ended
    }

    /// A task takes from it from now on, or no more; whether one did before.
    pub(super) fn take(&self, is_taken: bool) -> bool {
        std::mem::replace(&mut self.0.borrow_mut().is_taken, is_taken)
    }

    /// Nobody wants more.
    pub(super) fn close(&self) {
        self.clear();
        self.0.borrow_mut().is_closed = true;
    }

    /// Begins anew.
    pub(super) fn open(&self) {
        self.clear();
        let mut inner = self.0.borrow_mut();
        (inner.is_ended, inner.is_closed) = (false, false);
    }

    /// Drops what nobody has taken.
    pub(super) fn clear(&self) {
        if let Some(overflow) = &mut self.0.borrow_mut().overflow {
            overflow.clear();
        }
        while let Ok(Some(page)) = self.pop() {
            self.give_back(page);
        }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Queue")
    }
}

impl<T: Record> Inner<T> {
    /// Pushes a record that the page in the making has no room for.
    #[cold]
    fn push_slowly<E: Encode<Record = T>>(&mut self, value: &E) -> Result<(), Error> {
        if self.is_closed {
            return Ok(());
        }
        let bytes = self.bytes();
        if let Some(overflow) = &mut self.overflow
            && (overflow.is_used() || overflow.is_over(bytes))
        {
            value.with_view(|view| overflow.push(view))?;
            // What comes next has no room in memory before all that is gone.
            let page = self.close_page();
            self.full.extend(page);
            return Ok(());
        }
        self.push_to_next(value)
    }

    /// Pushes a record to another page than the one in the making.
    fn push_to_next<E: Encode<Record = T>>(&mut self, value: &E) -> Result<(), Error> {
        let mut bytes = self.page_bytes;
        loop {
            self.turn_over(bytes)?;
            match self.builder.push(value) {
                Ok(()) => return Ok(()),
                Err(Unfit::Full) if bytes < RECORD_BYTES_MAX => {
                    bytes *= 2;
                    self.shape = Shape::LARGE;
                }
                Err(_) => {
                    let record = std::any::type_name::<T>();
                    let limit = bytes;
                    return Err(Error::RecordTooLarge { record, limit });
                }
            }
        }
    }

    /// Ends the page in the making, without another.
    fn close_page(&mut self) -> Option<Page<T>> {
        if self.builder.is_empty() {
            return None;
        }
        let nothing = Builder::new(Memory::own(0), self.shape);
        let builder = std::mem::replace(&mut self.builder, nothing);
        self.shape = builder.shape();
        Some(builder.into_page())
    }

    /// Fills a page with what is on disk. Nothing is in memory.
    fn read(&mut self) -> Result<(), Error> {
        let Some(mut overflow) = self.overflow.take_if(|overflow| overflow.is_used()) else {
            return Ok(());
        };
        let mut is_first = true;
        let result = overflow.read(|view| {
            if !std::mem::take(&mut is_first) {
                return Ok(self.builder.push(&view).is_ok());
            }
            self.push_to_next(&view)?;
            Ok(true)
        });
        self.overflow = Some(overflow);
        result
    }

    /// Bytes of memory that it has.
    fn bytes(&self) -> u64 {
        self.reservation.as_ref().map_or(0, Reservation::bytes)
    }

    /// Ends the page in the making, and begins one of so many bytes.
    fn turn_over(&mut self, bytes: usize) -> Result<(), Error> {
        let memory = match self.spare.take() {
            Some(spare) if spare.capacity() == bytes => Memory::Own(spare),
            other => {
                self.release(other.map_or(0, |spare| spare.capacity() as u64));
                if let Some(reservation) = &mut self.reservation {
                    reservation.grow(bytes as u64)?;
                }
                Memory::own(bytes)
            }
        };
        let next = Builder::new(memory, self.shape);
        let full = std::mem::replace(&mut self.builder, next);
        if full.is_empty() {
            self.release(full.capacity() as u64);
        } else {
            self.shape = full.shape();
            self.full.push_back(full.into_page());
            self.page_bytes = (2 * self.page_bytes).min(PAGE_BYTES_MAX);
        }
        Ok(())
    }

    /// Strikes so many bytes off the ledger.
    fn release(&mut self, bytes: u64) {
        if let Some(reservation) = &mut self.reservation {
            reservation.shrink_to(reservation.bytes().saturating_sub(bytes));
        }
    }
}
