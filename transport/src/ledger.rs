//! One account of a worker's data memory, with a limit.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
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
    /// What was last told by [`Ledger::now`].
    clock: AtomicU64,
    yielding: Mutex<Vec<Weak<dyn Yielding>>>,
}

/// What holds memory that it can do without, and gives it back when the ledger has no room for what is asked for.
///
/// It is asked in whatever thread needs the memory, maybe in the midst of its own work: it must not wait for a lock.
pub trait Yielding: Send + Sync {
    /// What it could give back now.
    fn offer(&self) -> Option<Offer>;

    /// Gives it back; false if it cannot, after all.
    fn give_way(&self) -> bool;
}

/// Memory that can be had back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// How much.
    pub bytes: u64,
    /// When it was used last, by the clock of the [ledger](Ledger::now). What was used least recently is asked first.
    pub used: u64,
}

impl Ledger {
    /// An account that holds at most `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Account {
            limit,
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            clock: AtomicU64::new(0),
            yielding: Mutex::default(),
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

    /// Bytes that may still be entered: what is left, and what others would give back for it.
    pub fn free(&self) -> u64 {
        let left = self.limit().saturating_sub(self.used());
        let offers = self.yielding().into_iter().filter_map(|one| one.offer());
        left + offers.map(|offer| offer.bytes).sum::<u64>()
    }

    /// Has `yielding` be asked when there is no room, for as long as it is there.
    ///
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use transport::{Ledger, Offer, Reservation, Yielding};
    ///
    /// struct Spare(Mutex<Option<Reservation>>);
    ///
    /// impl Yielding for Spare {
    ///     fn offer(&self) -> Option<Offer> {
    ///         let spare = self.0.try_lock().ok()?;
    ///         Some(Offer { bytes: spare.as_ref()?.bytes(), used: 0 })
    ///     }
    ///
    ///     fn give_way(&self) -> bool {
    ///         self.0.try_lock().is_ok_and(|mut spare| spare.take().is_some())
    ///     }
    /// }
    ///
    /// let ledger = Ledger::new(100);
    /// let spare = Arc::new(Spare(Mutex::new(Some(ledger.reserve("spare", 60)?))));
    /// let listed: Arc<dyn Yielding> = spare.clone();
    /// ledger.register(&listed);
    /// assert_eq!(ledger.free(), 100);
    /// let needed = ledger.reserve("table", 50)?;
    /// assert!(spare.0.lock().unwrap().is_none());
    /// # Ok::<(), transport::Error>(())
    /// ```
    pub fn register(&self, yielding: &Arc<dyn Yielding>) {
        let mut all = self.lock_yielding();
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(yielding));
    }

    /// The next time of a clock that tells nothing but which of two things was later.
    pub fn now(&self) -> u64 {
        self.0.clock.fetch_add(1, Ordering::Relaxed)
    }

    fn lock_yielding(&self) -> std::sync::MutexGuard<'_, Vec<Weak<dyn Yielding>>> {
        self.0
            .yielding
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn yielding(&self) -> Vec<Arc<dyn Yielding>> {
        self.lock_yielding()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Has memory given back for `bytes` that there is no room for; false if that would not be enough.
    #[cold]
    fn make_room(&self, bytes: u64) -> bool {
        if bytes > self.free() {
            return false;
        }
        let yielding = self.yielding();
        let offers = yielding.iter();
        let mut offers: Vec<_> = offers
            .filter_map(|one| Some((one.offer()?.used, one)))
            .collect();
        offers.sort_by_key(|(used, _)| *used);
        let left = || self.limit().saturating_sub(self.used());
        offers.iter().any(|(_, oldest)| oldest.give_way()) || left() >= bytes
    }

    fn enter(&self, holder: &'static str, bytes: u64) -> Result<(), Error> {
        while let Err(refused) = self.try_enter(holder, bytes) {
            if !self.make_room(bytes) {
                return Err(refused);
            }
        }
        Ok(())
    }

    fn try_enter(&self, holder: &'static str, bytes: u64) -> Result<(), Error> {
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
                    // Mostly it stays, and then its line stays with all who look.
                    if after > self.0.peak.load(Ordering::Relaxed) {
                        self.0.peak.fetch_max(after, Ordering::Relaxed);
                    }
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

    /// Enters as many more as it takes to hold `bytes`, if it holds fewer.
    ///
    /// # Errors
    ///
    /// As [`grow`](Self::grow).
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), Error> {
        match bytes.checked_sub(self.bytes) {
            None | Some(0) => Ok(()),
            Some(more) => self.grow(more),
        }
    }

    /// Strikes out all but `bytes`, if it holds more.
    pub fn shrink_to(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes);
        if less > 0 {
            self.bytes -= less;
            self.ledger.0.used.fetch_sub(less, Ordering::Relaxed);
        }
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
