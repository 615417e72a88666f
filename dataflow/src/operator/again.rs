//! Records on disk, in the order in which they came, that are read again and again.

use std::sync::Arc;

use transport::Reservation;

use crate::{
    Error, Record,
    operator::sort::Sizes,
    spill::{File, Reader, Run, Writer},
    stage::Place,
};

/// Records that are written once and read any number of times.
pub(crate) struct Again<T> {
    place: Place,
    holder: &'static str,
    writer: Writer<T>,
    is_writing: bool,
    run: Option<Arc<Run>>,
    reader: Option<Reader<T>>,
    /// For reading a block.
    for_reading: Reservation,
}

impl<T: Record> Again<T> {
    /// Enters on the ledger what it cannot do without.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`].
    pub(crate) fn new(place: &Place, holder: &'static str) -> Result<Self, Error> {
        let block_bytes = Sizes::aside(place).block_bytes();
        let compression = place.spill.compression;
        Ok(Self {
            holder,
            writer: Writer::new(&place.ledger, holder, block_bytes, compression)?,
            is_writing: false,
            run: None,
            reader: None,
            for_reading: place.ledger.reserve(holder, 2 * block_bytes as u64)?,
            place: place.clone(),
        })
    }

    /// Writes a record.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`], [`Error::RecordTooLarge`], or [`transport::Error::LedgerLimit`] for a record that is large.
    pub(crate) fn push(&mut self, view: T::View<'_>) -> Result<(), Error> {
        if !self.is_writing {
            let directories = &self.place.spill.directories;
            let directory = &directories[self.place.rank as usize % directories.len()];
            self.writer
                .start(Arc::new(File::new(directory, self.holder)?));
            self.is_writing = true;
        }
        self.writer.push(&view, 0)
    }

    /// Ends what is written, and goes to the first record. Nothing is there if nothing was written.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`], [`Error::SpillDamaged`], or [`transport::Error::LedgerLimit`].
    pub(crate) fn rewind(&mut self) -> Result<(), Error> {
        self.reader = None;
        if std::mem::take(&mut self.is_writing) {
            let run = self.writer.finish()?;
            self.place.counters.spilled(run.disk_bytes());
            let needed = run.reader_bytes() as u64;
            let more = needed.saturating_sub(self.for_reading.bytes());
            self.for_reading.grow(more)?;
            self.run = Some(run);
        }
        if let Some(run) = &self.run {
            self.reader = Some(Reader::new(run, run.start(), run.end())?);
        }
        Ok(())
    }

    /// Whether records were written.
    pub(crate) fn is_used(&self) -> bool {
        self.is_writing || self.run.is_some()
    }

    /// The record that it is at; none at the end, and before it was rewound.
    #[inline]
    pub(crate) fn view(&self) -> Option<T::View<'_>> {
        self.reader.as_ref()?.view()
    }

    /// Goes on to the next record.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`] or [`Error::SpillDamaged`].
    #[inline]
    pub(crate) fn advance(&mut self) -> Result<(), Error> {
        match &mut self.reader {
            Some(reader) => reader.advance(),
            None => Ok(()),
        }
    }

    /// Forgets all records.
    pub(crate) fn clear(&mut self) {
        (self.run, self.reader) = (None, None);
    }
}
