//! All records in one `Vec`.

use std::sync::{Arc, Mutex, PoisonError};

use transport::{Buffer, Rank, Reservation};

use crate::{
    Error, Record,
    exchange::open,
    stage::{KEPT_BYTES, Place, Progress, Task},
};

/// Gathers the records of every rank, and keeps them apart until all have come.
pub(crate) struct Collect<T> {
    place: Place,
    by_rank: Vec<Vec<T>>,
    open: u32,
    result: Arc<Mutex<Vec<T>>>,
    /// Bytes that have come.
    bytes: u64,
    /// Made with the first batch, so that a ledger that is full says so then.
    reservation: Option<Reservation>,
}

impl<T: Record> Collect<T> {
    pub(crate) fn new(place: &Place, result: Arc<Mutex<Vec<T>>>) -> Self {
        let by_rank = (0..place.size).map(|_| Vec::new()).collect();
        Self {
            place: place.clone(),
            by_rank,
            open: place.wiring.senders.iter().sum(),
            result,
            bytes: 0,
            reservation: None,
        }
    }
}

impl<T: Record> Task for Collect<T> {
    fn receive(&mut self, _port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.bytes += batch.len() as u64;
        match &mut self.reservation {
            Some(reservation) => reservation.grow_to(self.bytes)?,
            none => *none = Some(self.place.ledger.reserve("collect", self.bytes)?),
        }
        let batch = open::<T>(&self.place, from, batch)?;
        if let Some(records) = self.by_rank.get_mut(from as usize) {
            records.extend(batch.views(0).map(T::own));
        }
        Ok(())
    }

    fn ended(&mut self, _port: usize, _from: Rank) {
        self.open = self.open.saturating_sub(1);
    }

    fn is_reading(&self) -> bool {
        true
    }

    fn poll(&mut self) -> Result<Progress, Error> {
        Ok(if self.open == 0 {
            Progress::Done
        } else {
            Progress::None
        })
    }

    fn commit(&mut self) -> Result<(), Error> {
        let parts = self.by_rank.iter_mut().flat_map(std::mem::take);
        let records = parts.collect();
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = records;
        Ok(())
    }

    fn again(&mut self, _run: u32) -> bool {
        self.by_rank.iter_mut().for_each(Vec::clear);
        self.open = self.place.wiring.senders.iter().sum();
        self.bytes = 0;
        if let Some(reservation) = &mut self.reservation {
            reservation.shrink_to(KEPT_BYTES);
        }
        true
    }
}
