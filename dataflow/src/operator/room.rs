//! How much memory an operator may take for what it keeps.

use transport::{Ledger, Reservation};

use crate::{Error, stage::Place};

/// Memory of an operator that can go on with less: it is granted only as long as others have room too.
///
/// An operator that is refused more keeps the rest of its records on disk. So it must not take the last of the
/// ledger: whoever makes room by sending something on needs memory for that.
pub(crate) struct Room {
    ledger: Ledger,
    reservation: Reservation,
    /// The most that is granted.
    most: u64,
    /// What has to be left on the ledger for sending.
    left: u64,
}

impl Room {
    /// Nothing yet, and three quarters of what the ledger has for each executor at most.
    pub(crate) fn new(place: &Place, holder: &'static str) -> Result<Self, Error> {
        let ledger = place.ledger.clone();
        let free = ledger.free();
        Ok(Self {
            reservation: ledger.reserve(holder, 0)?,
            ledger,
            most: free / 4 * 3 / u64::from(place.executors),
            left: place.sending_bytes(),
        })
    }

    /// Takes so many bytes, if there is room for them.
    pub(crate) fn take(&mut self, bytes: u64) -> bool {
        let free = self.ledger.free();
        self.bytes() + bytes <= self.most
            && free >= bytes + self.left
            && self.reservation.grow(bytes).is_ok()
    }

    /// What is said of so many bytes that were refused for `holder`, if there is no other place for them.
    pub(crate) fn refusal(&self, holder: &'static str, bytes: u64) -> Error {
        let (used, limit) = (self.ledger.used(), self.ledger.limit());
        Error::Transport(transport::Error::LedgerLimit {
            holder,
            bytes,
            used,
            limit,
        })
    }

    /// Takes so many bytes that it cannot go on without.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`].
    pub(crate) fn insist(&mut self, bytes: u64) -> Result<(), Error> {
        Ok(self.reservation.grow(bytes)?)
    }

    /// Gives back all but so many.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        self.reservation.shrink_to(bytes);
    }

    /// Gives back so many.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        let left = self.reservation.bytes().saturating_sub(bytes);
        self.reservation.shrink_to(left);
    }

    /// What was granted, for as long as it is needed.
    pub(crate) fn into_reservation(self) -> Reservation {
        self.reservation
    }

    /// Bytes that it has.
    pub(crate) fn bytes(&self) -> u64 {
        self.reservation.bytes()
    }
}
