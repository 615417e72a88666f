//! A bound on what one stream of messages may have lent at a time.

use std::{cell::Cell, rc::Rc};

/// How many bytes one stream of messages may have on their way or unread: its share of an arena.
///
/// Streams that share an arena without windows can starve each other, and a stream that waits for
/// another to be read while it fills the arena that the other needs is a deadlock. A loan larger
/// than the window is admitted when nothing else is lent within it.
#[derive(Debug)]
pub struct Window {
    limit: usize,
    lent: Cell<u64>,
}

impl Window {
    /// A window of `limit` bytes.
    pub fn new(limit: usize) -> Rc<Self> {
        Rc::new(Self {
            limit,
            lent: Cell::new(0),
        })
    }

    /// Bytes lent within the window and not yet returned.
    pub fn lent(&self) -> u64 {
        self.lent.get()
    }

    pub(super) fn admits(&self, bytes: usize) -> bool {
        self.lent() == 0 || self.lent() + bytes as u64 <= self.limit as u64
    }

    pub(super) fn lend(&self, bytes: u64) {
        self.lent.set(self.lent() + bytes);
    }

    pub(super) fn take_back(&self, bytes: u64) {
        self.lent.set(self.lent() - bytes);
    }
}
