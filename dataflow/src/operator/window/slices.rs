//! What is kept of slices of time by key, in memory and on disk.
//!
//! Values are added to the state of their key in the table of their slice. When there is no room, the largest tables go
//! to disk, all in one run, which is in the order of the slices, and begin anew: so a slice may have several states of a key,
//! which are made one when they are read. A run is looked through by its blocks, so that memory goes with the blocks, and not
//! with the slices that are in them: these may have a few states each.

use std::{
    collections::BTreeMap,
    ops::{RangeBounds, RangeInclusive},
    sync::Arc,
};

use transport::Reservation;

use crate::{
    Error, EventTime, Key, Record,
    operator::{
        reduce::Accumulate,
        sort::Sizes,
        states::{Account, Drain, Merged, States},
    },
    spill::{Files, Reader, Run, Writer},
    stage::Place,
};

/// Slices by their starts.
pub(super) struct Slices<K: Key, S: Record> {
    slices: BTreeMap<EventTime, Slice<K, S>>,
    runs: Vec<Spilled>,
    account: Account,
    place: Place,
    writer: Writer<Entry<K, S>>,
    files: Files,
    /// Bytes that were written since there are other files.
    written: u64,
    for_reading: Reservation,
}

/// What is kept of a slice.
pub(super) struct Slice<K: Key, S> {
    states: States<K, S>,
    /// Bytes of the table, and of what its entries keep outside of it.
    bytes: u64,
    is_on_disk: bool,
}

/// What is on disk: the start of a slice, and a state of a key in it.
pub(super) type Entry<K, S> = (EventTime, (K, S));

/// A run of some slices, the last of which comes first.
#[derive(Clone)]
pub(super) struct Spilled {
    run: Arc<Run>,
    first: EventTime,
    last: EventTime,
}

/// Bytes of a slice besides its table, and of a run besides its blocks.
const SLICE_BYTES: usize = 2 * size_of::<(EventTime, Slice<u64, u64>)>();
const RUN_BYTES: usize = 2 * (size_of::<Spilled>() + size_of::<Run>());

/// Bytes after which other files are begun: those before are gone when what is in them was read.
const FILES_BYTES: u64 = 256 << 20;

impl<K: Key, S: Record> Slices<K, S> {
    /// Enters on the ledger what it cannot do without.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`].
    pub(super) fn new(place: &Place, holder: &'static str) -> Result<Self, Error> {
        let (ledger, spill) = (&place.ledger, &place.spill);
        let block_bytes = Sizes::aside(place).block_bytes();
        Ok(Self {
            slices: BTreeMap::new(),
            runs: Vec::new(),
            // With less, tables would go to disk with hardly a key in them.
            account: Account::with_least(place, holder, 4 * block_bytes)?,
            writer: Writer::new(ledger, holder, block_bytes, spill.compression)?,
            files: Files::new(spill, holder, place.rank as usize),
            written: 0,
            for_reading: ledger.reserve(holder, 2 * block_bytes as u64)?,
            place: place.clone(),
        })
    }

    /// The account that tables are on, for what else is kept of windows.
    pub(super) fn account(&mut self) -> &mut Account {
        &mut self.account
    }

    /// Adds a value to what there is of its key in the slice that begins at `start`.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`], or [`transport::Error::LedgerLimit`] for a value that is large.
    #[inline]
    pub(super) fn merge<V, A>(
        &mut self,
        start: EventTime,
        accumulate: &A,
        pair: (K::View<'_>, V::View<'_>),
    ) -> Result<(), Error>
    where
        V: Record,
        A: Accumulate<V, State = S>,
    {
        let Some(slice) = self.slices.get_mut(&start) else {
            self.begin(start)?;
            return self.merge_in_time::<V, A>(start, accumulate, pair);
        };
        match slice.merge::<V, A>(accumulate, pair, &mut self.account) {
            Merged::Combined | Merged::New => Ok(()),
            Merged::Refused => self.merge_in_time::<V, A>(start, accumulate, pair),
            Merged::TooMuch => self.make_room(),
        }
    }

    /// Adds a value to a slice that is there, if need be once there is room for it.
    #[cold]
    fn merge_in_time<V, A>(
        &mut self,
        start: EventTime,
        accumulate: &A,
        pair: (K::View<'_>, V::View<'_>),
    ) -> Result<(), Error>
    where
        V: Record,
        A: Accumulate<V, State = S>,
    {
        loop {
            let slice = self.slices.entry(start).or_insert_with(Slice::new);
            match slice.merge::<V, A>(accumulate, pair, &mut self.account) {
                Merged::Combined | Merged::New => return Ok(()),
                Merged::TooMuch => return self.make_room(),
                Merged::Refused => {
                    if !self.spill()? {
                        return self.must_insert::<V, A>(start, accumulate, pair);
                    }
                }
            }
        }
    }

    /// Makes room for what is there already.
    #[cold]
    fn make_room(&mut self) -> Result<(), Error> {
        self.spill()?;
        self.account.insist_on_used()
    }

    #[cold]
    fn begin(&mut self, start: EventTime) -> Result<(), Error> {
        if !self.account.take(SLICE_BYTES) {
            self.spill()?;
            self.account.insist(SLICE_BYTES)?;
        }
        self.slices.insert(start, Slice::new());
        Ok(())
    }

    /// Adds the first value of a key, although there is no room that should be taken.
    #[cold]
    fn must_insert<V, A>(
        &mut self,
        start: EventTime,
        accumulate: &A,
        (key, value): (K::View<'_>, V::View<'_>),
    ) -> Result<(), Error>
    where
        V: Record,
        A: Accumulate<V, State = S>,
    {
        let slice = self.slices.entry(start).or_insert_with(Slice::new);
        let before = self.account.used();
        let state = accumulate.start(value);
        self.account.insist(state.heap_bytes())?;
        (slice.states).insert(K::hash(key), key, state, &mut self.account)?;
        slice.bytes += self.account.used() - before;
        Ok(())
    }

    /// Makes room: has tables go to disk, of the largest those first that are the furthest from being needed, until half
    /// of the memory is given back; false if there is nothing in any.
    #[cold]
    fn spill(&mut self) -> Result<bool, Error> {
        let filled = self.slices.values().filter(|slice| slice.states.len() > 0);
        let Some(largest) = filled.map(|slice| slice.bytes).max() else {
            return Ok(false);
        };
        if self.written > FILES_BYTES {
            self.files.renew();
            self.written = 0;
        }
        let enough = self.account.used() / 2;
        let (mut first, mut last) = (EventTime::MAX, EventTime::MIN);
        self.writer.start(self.files.next()?);
        for (&start, slice) in self.slices.iter_mut().rev() {
            if slice.states.len() == 0 || 2 * slice.bytes < largest {
                continue;
            }
            (first, last) = (first.min(start), last.max(start));
            slice.is_on_disk = true;
            let mut drain = slice.drain();
            while let Some(entry) = drain.next_given_back(&mut self.account) {
                let key = K::stored(&entry.key);
                entry.state.with_view(|state| {
                    let entry = (start, (K::shorten(key), S::shorten(state)));
                    self.writer.push(&entry, number(start))
                })?;
            }
            if self.account.used() <= enough {
                break;
            }
        }
        let run = self.writer.finish()?;
        self.account.insist(RUN_BYTES)?;
        self.written += run.disk_bytes();
        self.place.counters.spilled(run.disk_bytes());
        self.runs.push(Spilled { run, first, last });
        Ok(true)
    }

    /// The starts of slices.
    pub(super) fn starts(
        &self,
        range: impl RangeBounds<EventTime>,
    ) -> impl Iterator<Item = EventTime> {
        self.slices.range(range).map(|(&start, _)| start)
    }

    /// The start of the first slice.
    pub(super) fn first(&self) -> Option<EventTime> {
        self.slices.first_key_value().map(|(&start, _)| start)
    }

    /// What there is of a key in the table of a slice.
    pub(super) fn find(&mut self, start: EventTime, hash: u64, key: K::View<'_>) -> Option<&S> {
        let slice = self.slices.get_mut(&start)?;
        slice.states.find(hash, key).map(|state| &*state)
    }

    /// The states in the table of a slice, in no order.
    pub(super) fn states(&self, start: EventTime) -> impl Iterator<Item = (K::View<'_>, &S)> {
        let slice = self.slices.get(&start).into_iter();
        let entries = slice.flat_map(|slice| slice.states.iter());
        entries.map(|entry| (K::stored(&entry.key), &entry.state))
    }

    /// Whether some states of a slice are on disk.
    pub(super) fn is_on_disk(&self, start: EventTime) -> bool {
        self.slices
            .get(&start)
            .is_some_and(|slice| slice.is_on_disk)
    }

    /// What may have states on disk of the slices that begin within some time.
    pub(super) fn spilled(&self, within: &RangeInclusive<EventTime>) -> Vec<Spilled> {
        let runs = self.runs.iter();
        runs.filter(|run| run.first <= *within.end() && run.last >= *within.start())
            .cloned()
            .collect()
    }

    /// Takes out what is in the table of a slice. Runs of which no slice is left are forgotten.
    pub(super) fn remove(&mut self, start: EventTime) -> Option<Drain<K, S>> {
        let mut slice = self.slices.remove(&start)?;
        let (before, first) = (self.runs.len(), self.first());
        self.runs
            .retain(|run| first.is_some_and(|first| first <= run.last));
        self.account
            .give_back(SLICE_BYTES + (before - self.runs.len()) * RUN_BYTES);
        Some(slice.drain())
    }

    /// Reads what is on disk of the slices that begin within some time.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`], [`Error::SpillDamaged`], or [`transport::Error::LedgerLimit`] for a block that is large.
    pub(super) fn read(
        &mut self,
        Spilled { run, .. }: &Spilled,
        within: &RangeInclusive<EventTime>,
    ) -> Result<Reader<Entry<K, S>>, Error> {
        self.for_reading.grow_to(run.reader_bytes() as u64)?;
        let cut = |start, is_behind: bool| {
            let number_of = |(start, _): <Entry<K, S> as Record>::View<'_>| number(start);
            run.cut::<Entry<K, S>>(number(start), number_of, |_| is_behind)
        };
        Reader::new(run, cut(*within.end(), false)?, cut(*within.start(), true)?)
    }
}

/// What runs are in the order of: later slices have smaller numbers.
fn number(start: EventTime) -> u64 {
    !(start.cast_unsigned() ^ 1 << 63)
}

impl<K: Key, S: Record> Slice<K, S> {
    fn new() -> Self {
        Self {
            states: States::new(),
            bytes: 0,
            is_on_disk: false,
        }
    }

    #[inline]
    fn merge<V, A>(
        &mut self,
        accumulate: &A,
        pair: (K::View<'_>, V::View<'_>),
        account: &mut Account,
    ) -> Merged
    where
        V: Record,
        A: Accumulate<V, State = S>,
    {
        let before = account.used();
        let merged = self.states.merge::<V, A>(accumulate, pair, account);
        self.bytes = (self.bytes + account.used()).saturating_sub(before);
        merged
    }

    fn drain(&mut self) -> Drain<K, S> {
        self.bytes = 0;
        self.states.drain()
    }
}
