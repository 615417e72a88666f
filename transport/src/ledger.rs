//! One account of a worker's data memory, with a limit.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::Error;

/// The account on which every allocation of a worker's data path is entered: arenas, the state of
/// operators, read buffers. Cloning it gives another handle on the same account.
///
/// A reservation that would pass the limit is an error that names the asker, not an allocation
/// that the kernel later kills the process for.
///
/// ```
/// use transport::Ledger;
///
/// let ledger = Ledger::new(1 << 20);
/// let table = ledger.reserve("hash table", 1 << 19)?;
/// assert!(ledger.reserve("sort buffer", 1 << 20).is_err());
/// drop(table);
/// assert_eq!(ledger.used(), 0);
/// # Ok::<(), transport::Error>(())
/// ```
#[derive(Clone)]
pub struct Ledger(Arc<Account>);

struct Account {
    limit: u64,
    used: AtomicU64,
    peak: AtomicU64,
}

impl Ledger {
    /// An account that holds at most `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Account {
            limit,
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
        }))
    }

    /// Enters `bytes` for `holder` until the reservation is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::LedgerLimit`] when the limit would be passed; nothing is entered then.
    pub fn reserve(&self, holder: &'static str, bytes: u64) -> Result<Reservation, Error> {
        let mut reservation = Reservation {
            ledger: self.clone(),
            holder,
            bytes: 0,
        };
        reservation.grow(bytes)?;
        Ok(reservation)
    }

    /// Bytes entered now.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The most bytes that were ever entered at one time.
    pub fn peak(&self) -> u64 {
        self.0.peak.load(Ordering::Relaxed)
    }

    /// The most bytes that may be entered.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    fn enter(&self, holder: &'static str, bytes: u64) -> Result<(), Error> {
        let mut used = self.used();
        loop {
            let limit = self.0.limit;
            let Some(after) = used.checked_add(bytes).filter(|&after| after <= limit) else {
                return Err(Error::LedgerLimit {
                    holder,
                    bytes,
                    used,
                    limit,
                });
            };
            // The account orders nothing but itself, hence Relaxed.
            match self.0.used.compare_exchange_weak(
                used,
                after,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    self.0.peak.fetch_max(after, Ordering::Relaxed);
                    return Ok(());
                }
                Err(now) => used = now,
            }
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("used", &self.used())
            .field("limit", &self.0.limit)
            .finish()
    }
}

/// Bytes entered on a [`Ledger`]; dropping it strikes them out.
#[derive(Debug)]
pub struct Reservation {
    ledger: Ledger,
    holder: &'static str,
    bytes: u64,
}

impl Reservation {
    /// Enters `more` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::LedgerLimit`] when the limit would be passed; the reservation stays as it was.
    pub fn grow(&mut self, more: u64) -> Result<(), Error> {
        self.ledger.enter(self.holder, more)?;
        self.bytes += more;
        Ok(())
    }

    /// Strikes out all but `bytes`, if it holds more.
    pub fn shrink_to(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes);
        self.bytes -= less;
        self.ledger.0.used.fetch_sub(less, Ordering::Relaxed);
    }

    /// Bytes entered.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_past_the_limit_names_who_asked_and_changes_nothing() {
        let ledger = Ledger::new(100);
        let mut held = ledger.reserve("first", 60).unwrap();
        let refused = ledger.reserve("second", 41).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "second needs 41 bytes, but 60 of the ledger's 100 are in use"
        );
        assert_eq!(ledger.used(), 60);
        held.grow(40).unwrap();
        assert!(held.grow(u64::MAX).is_err());
        held.shrink_to(10);
        assert_eq!((ledger.used(), ledger.peak()), (10, 100));
    }
}
