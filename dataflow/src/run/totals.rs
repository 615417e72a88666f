//! What ranks and the instances of tasks do in a run, counted.

use std::{cell::RefCell, ops::AddAssign, panic::Location, rc::Rc, time::Duration};

use crate::stage::Counters;

/// What a rank did in a run, or an instance of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Records that came from sources.
    pub records: u64,
    /// Bytes that came from sources.
    pub bytes: u64,
    /// Records that came from other tasks.
    pub received: u64,
    /// Bytes of the batches that they came in.
    pub received_bytes: u64,
    /// Records that went to other tasks: one that goes to several at a time counts once.
    pub sent: u64,
    /// Bytes of the batches that they went in.
    pub sent_bytes: u64,
    /// Bytes that were written to disk because memory had no room for them.
    pub spilled: u64,
    /// How often there was no room to send in, because readers were not as quick.
    pub waits: u64,
    /// How long tasks were at work, if that was [measured](Counters::now): it is not by itself.
    pub busy: Duration,
}

impl Totals {
    /// How many numbers they are, and what bytes these take.
    const NUMBERS: usize = 9;
    pub(super) const BYTES: usize = 8 * Self::NUMBERS;

    pub(super) fn put(self, bytes: &mut Vec<u8>) {
        let busy = u64::try_from(self.busy.as_nanos()).unwrap_or(u64::MAX);
        let numbers: [u64; Self::NUMBERS] = [
            self.records,
            self.bytes,
            self.received,
            self.received_bytes,
            self.sent,
            self.sent_bytes,
            self.spilled,
            self.waits,
            busy,
        ];
        bytes.extend(numbers.into_iter().flat_map(u64::to_le_bytes));
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            records: number(bytes, 0)?,
            bytes: number(bytes, 1)?,
            received: number(bytes, 2)?,
            received_bytes: number(bytes, 3)?,
            sent: number(bytes, 4)?,
            sent_bytes: number(bytes, 5)?,
            spilled: number(bytes, 6)?,
            waits: number(bytes, 7)?,
            busy: Duration::from_nanos(number(bytes, 8)?),
        })
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, more: Self) {
        self.records += more.records;
        self.bytes += more.bytes;
        self.received += more.received;
        self.received_bytes += more.received_bytes;
        self.sent += more.sent;
        self.sent_bytes += more.sent_bytes;
        self.spilled += more.spilled;
        self.waits += more.waits;
        self.busy += more.busy;
    }
}

/// The number at a place among those in `bytes`.
fn number(bytes: &[u8], place: usize) -> Option<u64> {
    let bytes = bytes.get(8 * place..8 * place + 8)?.try_into().ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// What the instances of a task did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskTotals {
    /// The task, by its operators, and where in the program those are written that work on single records.
    pub task: String,
    /// What each instance did.
    pub instances: Vec<Totals>,
}

/// The lines of operators, in one place.
pub(super) fn written_at(lines: &[&Location<'_>]) -> String {
    let (Some(first), Some(last)) = (lines.first(), lines.last()) else {
        return String::new();
    };
    if first.file() != last.file() {
        return format!(" ({first}, {last})");
    }
    match (first.line(), last.line()) {
        (one, other) if one == other => format!(" ({}:{one})", first.file()),
        (one, other) => format!(" ({}:{one}-{other})", first.file()),
    }
}

/// What an instance does, counted for it and for whoever else wants to know.
#[derive(Debug)]
pub(super) struct Counting {
    pub(super) totals: RefCell<Totals>,
    listener: Rc<dyn Counters>,
}

impl Counting {
    pub(super) fn new(listener: &Rc<dyn Counters>) -> Self {
        Self {
            totals: RefCell::default(),
            listener: listener.clone(),
        }
    }

    /// It was at work so long.
    pub(super) fn worked(&self, time: Duration) {
        self.totals.borrow_mut().busy += time;
    }
}

impl Counters for Counting {
    fn read(&self, records: u64, bytes: u64) {
        let mut totals = self.totals.borrow_mut();
        totals.records += records;
        totals.bytes += bytes;
        self.listener.read(records, bytes);
    }

    fn received(&self, records: u64, bytes: u64) {
        let mut totals = self.totals.borrow_mut();
        totals.received += records;
        totals.received_bytes += bytes;
        self.listener.received(records, bytes);
    }

    fn sent(&self, records: u64, bytes: u64) {
        let mut totals = self.totals.borrow_mut();
        totals.sent += records;
        totals.sent_bytes += bytes;
        self.listener.sent(records, bytes);
    }

    fn waited(&self) {
        self.totals.borrow_mut().waits += 1;
        self.listener.waited();
    }

    fn expect(&self, bytes: u64) {
        self.listener.expect(bytes);
    }

    fn spilled(&self, bytes: u64) {
        self.totals.borrow_mut().spilled += bytes;
        self.listener.spilled(bytes);
    }
}
