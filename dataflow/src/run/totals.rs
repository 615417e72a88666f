//! What ranks do in a run, counted.

use std::{cell::RefCell, ops::AddAssign, rc::Rc};

use crate::stage::Counters;

/// What a rank did in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Records that came from sources.
    pub records: u64,
    /// Bytes that came from sources.
    pub bytes: u64,
    /// Records that came from other tasks.
    pub received: u64,
    /// Bytes that were written to disk because memory had no room for them.
    pub spilled: u64,
}

impl Totals {
    /// How many numbers they are, and what bytes these take.
    const NUMBERS: usize = 4;
    pub(super) const BYTES: usize = 8 * Self::NUMBERS;

    pub(super) fn to_numbers(self) -> [u64; Self::NUMBERS] {
        [self.records, self.bytes, self.received, self.spilled]
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            records: number(bytes, 0)?,
            bytes: number(bytes, 1)?,
            received: number(bytes, 2)?,
            spilled: number(bytes, 3)?,
        })
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, more: Self) {
        self.records += more.records;
        self.bytes += more.bytes;
        self.received += more.received;
        self.spilled += more.spilled;
    }
}

/// The number at a place among those in `bytes`.
fn number(bytes: &[u8], place: usize) -> Option<u64> {
    let bytes = bytes.get(8 * place..8 * place + 8)?.try_into().ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// Counts what a rank does, and tells whoever else wants to know.
#[derive(Debug)]
pub(super) struct Counting {
    pub(super) totals: RefCell<Totals>,
    pub(super) listener: Rc<dyn Counters>,
}

impl Counters for Counting {
    fn read(&self, records: u64, bytes: u64) {
        let mut totals = self.totals.borrow_mut();
        totals.records += records;
        totals.bytes += bytes;
        self.listener.read(records, bytes);
    }

    fn received(&self, records: u64) {
        self.totals.borrow_mut().received += records;
        self.listener.received(records);
    }

    fn expect(&self, bytes: u64) {
        self.listener.expect(bytes);
    }

    fn spilled(&self, bytes: u64) {
        self.totals.borrow_mut().spilled += bytes;
        self.listener.spilled(bytes);
    }
}
