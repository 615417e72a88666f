//! Results that nobody has polled and memory has no room for: on disk, in their order.

use crate::{Error, Record, operator::again::Again, stage::Place};

/// Records on disk that are written at one end and read at the other: what is written now, and what was written before that, which is read.
pub(super) struct Overflow<T> {
    place: Place,
    holder: &'static str,
    /// Bytes in memory from which on records go to disk.
    limit: u64,
    writing: Option<Again<T>>,
    reading: Option<Again<T>>,
}

impl<T: Record> Overflow<T> {
    /// For what has no room in a quarter of the ledger's, shared among the executors.
    pub(super) fn new(place: &Place, holder: &'static str) -> Self {
        Self {
            limit: place.ledger.free() / (4 * u64::from(place.executors)),
            place: place.clone(),
            holder,
            writing: None,
            reading: None,
        }
    }

    /// Whether so many bytes in memory are too many.
    pub(super) fn is_over(&self, bytes: u64) -> bool {
        bytes >= self.limit
    }

    /// Whether there is something on disk, behind which all comes that comes later.
    pub(super) fn is_used(&self) -> bool {
        self.writing.is_some() || self.reading.is_some()
    }

    /// Writes a record.
    pub(super) fn push(&mut self, view: T::View<'_>) -> Result<(), Error> {
        let writing = match &mut self.writing {
            Some(writing) => writing,
            none => none.insert(Again::new(&self.place, self.holder)?),
        };
        writing.push(view)
    }

    /// Hands the next records to `take`, as long as that says that it has taken them.
    pub(super) fn read(
        &mut self,
        mut take: impl FnMut(T::View<'_>) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        loop {
            if let Some(reading) = &mut self.reading {
                while let Some(view) = reading.view() {
                    if !take(view)? {
                        return Ok(());
                    }
                    reading.advance()?;
                }
                self.reading = None;
            }
            let Some(mut written) = self.writing.take() else {
                return Ok(());
            };
            written.rewind()?;
            self.reading = Some(written);
        }
    }

    /// Forgets what is on disk.
    pub(super) fn clear(&mut self) {
        (self.writing, self.reading) = (None, None);
    }
}
