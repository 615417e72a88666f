//! The records of one rank, sorted: in memory, and on disk.

use std::{cmp::Ordering, ops::Range, sync::Arc};

use transport::Reservation;

use super::{
    OrderBy,
    radix::{self, Entry},
    sample::{Division, Samples, Splitter, Told},
};
use crate::{
    Error, Ordered, Record,
    batch::{Builder, Memory, Page, Shape},
    bytes::{ALIGN, Bytes},
    record::Unfit,
    spill::{Cut, Files, LoserTree, Reader, Run, Writer},
    stage::Place,
};

/// On whose behalf memory is taken, and files are written.
pub(crate) const HOLDER: &str = "sort";

/// What sorting a record takes besides the record: an entry, and room to move it.
const ENTRY_BYTES: u64 = 2 * size_of::<Entry>() as u64;

/// What a chunk may have at most: so much stays in the caches while it is sorted.
const CHUNK_BYTES: u64 = 4 << 20;
const CHUNK_RECORDS: u64 = 128 << 10;
const PAGE_BYTES: Range<u64> = (4 << 10)..(256 << 10);
const BLOCK_BYTES: Range<u64> = (4 << 10)..(64 << 10);
/// There are more sources than a processor notices by itself that they are read from one end to the other.
const FETCHED_AHEAD: usize = 3;
/// Records merged in one turn.
const MERGED_A_TURN: usize = 16 << 10;

/// How much memory there is, and how it is divided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// The most that may be taken.
    pub(crate) share: u64,
    page_bytes: usize,
    /// Pages and records of a chunk. When it has three quarters of either, it is to be sorted.
    chunk_pages: usize,
    chunk_records: usize,
    block_bytes: usize,
    /// What is taken from the start and kept: a chunk and its entries. Once there are no more of these, it has to
    /// do to read a block for each rank.
    least: u64,
    /// What is left on the ledger, if it can be: a batch in the making for each rank, and the lists of blocks.
    left: u64,
}

impl Sizes {
    /// For a sort: an eighth of the memory is taken from the start.
    pub(crate) fn of(place: &Place) -> Self {
        let readers = place.wiring.readers.len().max(place.size as usize) as u64;
        let left = readers * (place.window_bytes as u64 / 2).min(64 << 10);
        Self::with(place, readers, 8, 8 * (readers + 2), left)
    }

    /// For records that are set aside, which is perhaps never done: little is taken from the start. A quarter is left
    /// to what is read of them at a time.
    pub(crate) fn aside(place: &Place) -> Self {
        let sizes = Self::with(place, 1, 32, 128, place.sending_bytes());
        Self {
            left: sizes.left + sizes.share / 4,
            ..sizes
        }
    }

    /// The smallest are such that a block for each of `readers` can be read at a time. A chunk is one of `chunks` parts,
    /// a block one of `blocks`.
    fn with(place: &Place, readers: u64, chunks: u64, blocks: u64, left: u64) -> Self {
        let free = place.ledger.free();
        // A quarter is left to others, and to what they send.
        let share =
            (free / 4 * 3 / u64::from(place.executors)).max(8 * (readers + 2) * BLOCK_BYTES.start);
        let within = |bytes: u64, bounds: Range<u64>| {
            bytes.clamp(bounds.start, bounds.end) & !(ALIGN as u64 - 1)
        };
        let page_bytes = within(share / chunks / 16, PAGE_BYTES);
        let chunk_pages = ((share / chunks).min(CHUNK_BYTES) / page_bytes).max(4);
        let chunk_records = (share / chunks / ENTRY_BYTES).min(CHUNK_RECORDS);
        let block_bytes = within(share / blocks, BLOCK_BYTES);
        let for_blocks = readers.max(2) * block_bytes * 9 / 4;
        Self {
            share,
            page_bytes: page_bytes as usize,
            chunk_pages: chunk_pages as usize,
            chunk_records: chunk_records as usize,
            block_bytes: block_bytes as usize,
            // The page that is in the making when a chunk is full is a quarter more.
            least: ((chunk_pages + 1) * page_bytes + chunk_records * 5 / 4 * ENTRY_BYTES)
                .max(for_blocks),
            left: share / 16 + left,
        }
    }

    /// Bytes that some rows may take that are gone through again and again.
    pub(crate) fn block_of_rows(&self) -> usize {
        self.least as usize
    }

    /// Bytes of a block on disk.
    pub(crate) fn block_bytes(&self) -> usize {
        self.block_bytes
    }
}

/// Sorted runs in memory: the pages of each are one behind the other.
pub(crate) struct Held<T> {
    runs: Vec<Vec<Page<T>>>,
}

/// Records in the order in which they came.
struct Chunk<T> {
    /// The page in the making.
    builder: Builder<T>,
    /// How many records it may have.
    limit: usize,
    shape: Shape,
    pages: Vec<Page<T>>,
    /// Records in `pages`.
    records: usize,
    /// Once it is sorted, all records in order.
    entries: Vec<Entry>,
    scratch: Vec<Entry>,
    /// Memory for pages.
    spare: Vec<Bytes>,
}

impl<T: Record> Chunk<T> {
    fn view(&self, entry: &Entry) -> T::View<'_> {
        self.pages[entry.page as usize].view(entry.record as usize)
    }

    /// Whether it has `quarters` of what it may have.
    fn has(&self, quarters: usize, sizes: &Sizes) -> bool {
        4 * self.pages.len() >= quarters * sizes.chunk_pages
            || 4 * self.records >= quarters * sizes.chunk_records
    }
}

/// All records of a rank.
///
/// They are taken into a chunk that fits in the caches, sorted there, and moved in order to pages that are read
/// from one end to the other from then on: so memory is never gone through at random.
pub(crate) struct Store<T: Record, O: OrderBy<T>> {
    place: Place,
    order: O,
    holder: &'static str,
    sizes: Sizes,
    chunk: Chunk<T>,
    held: Held<T>,
    /// Memory of pages that were held, which is still on the ledger.
    spare: Vec<Bytes>,
    /// For the chunk, and later for reading from disk.
    for_chunk: Reservation,
    /// For what is held.
    for_held: Reservation,
    /// Bytes of the largest page that was made for a large record.
    largest_page: usize,
    writer: Writer<T>,
    /// What is held, on its way to disk.
    spilling: Option<Sources<T, O>>,
    files: Files,
    runs: Vec<Arc<Run>>,
    /// Runs in the files from before the latest ones.
    unmerged: usize,
    samples: Option<Samples<O::Key>>,
}

impl<T: Record, O: OrderBy<T>> Store<T, O> {
    pub(crate) fn new(
        place: &Place,
        order: O,
        sizes: Sizes,
        holder: &'static str,
    ) -> Result<Self, Error> {
        let spill = &place.spill;
        Ok(Self {
            writer: Writer::new(&place.ledger, holder, sizes.block_bytes, spill.compression)?,
            samples: None,
            for_chunk: place.ledger.reserve(holder, sizes.least)?,
            for_held: place.ledger.reserve(holder, 0)?,
            // Ranks start with different disks.
            files: Files::new(spill, holder, place.rank as usize),
            order,
            holder,
            sizes,
            chunk: Chunk {
                builder: Builder::new(Memory::own(0), Shape::UNKNOWN),
                limit: 0,
                shape: Shape::UNKNOWN,
                pages: Vec::new(),
                records: 0,
                entries: Vec::new(),
                scratch: Vec::new(),
                spare: Vec::new(),
            },
            held: Held { runs: Vec::new() },
            spare: Vec::new(),
            largest_page: 0,
            spilling: None,
            runs: Vec::new(),
            unmerged: 0,
            place: place.clone(),
        })
    }

    /// Has it take samples of the records, for all ranks to divide theirs by.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`].
    pub(crate) fn with_samples(mut self) -> Result<Self, Error> {
        let samples = Samples::new(&self.place, self.sizes.share, self.holder)?;
        self.samples = Some(samples);
        Ok(self)
    }

    /// Takes a record.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`], [`Error::RecordTooLarge`], or [`transport::Error::LedgerLimit`] for a record that is large.
    #[inline]
    pub(crate) fn push(&mut self, view: T::View<'_>) -> Result<(), Error> {
        let chunk = &mut self.chunk;
        if chunk.builder.len() < chunk.limit && chunk.builder.push(&view).is_ok() {
            return Ok(());
        }
        self.push_slowly(view)
    }

    #[cold]
    fn push_slowly(&mut self, view: T::View<'_>) -> Result<(), Error> {
        let mut bytes = self.sizes.page_bytes;
        // What cannot travel needs not be sorted.
        let largest = self.place.batch_bytes_max.max(bytes);
        loop {
            self.seal_page();
            if self.chunk.has(4, &self.sizes) {
                self.spill_all()?;
            }
            if self.chunk.has(3, &self.sizes) && !self.is_spilling() {
                self.finish_chunk()?;
            }
            let memory = self.chunk_page(bytes)?;
            let chunk = &mut self.chunk;
            chunk.limit = self.sizes.chunk_records.div_ceil(4);
            chunk.builder = Builder::new(Memory::Own(memory), chunk.shape);
            match chunk.builder.push(&view) {
                Ok(()) => return Ok(()),
                Err(Unfit::Full) if bytes < largest => {
                    bytes = (2 * bytes).min(largest);
                    chunk.shape = Shape::LARGE;
                }
                Err(_) => {
                    return Err(Error::RecordTooLarge {
                        record: std::any::type_name::<T>(),
                        limit: bytes,
                    });
                }
            }
        }
    }

    /// Ends the page in the making.
    fn seal_page(&mut self) {
        let chunk = &mut self.chunk;
        let nothing = Builder::new(Memory::own(0), chunk.shape);
        let builder = std::mem::replace(&mut chunk.builder, nothing);
        chunk.limit = 0;
        if builder.is_empty() {
            self.take_back(builder.into_memory());
            return;
        }
        chunk.shape = builder.shape();
        chunk.records += builder.len();
        chunk.pages.push(builder.into_page());
    }

    /// Memory for a page of the chunk. That of the usual size is there from the start.
    fn chunk_page(&mut self, bytes: usize) -> Result<Bytes, Error> {
        if bytes == self.sizes.page_bytes {
            let spare = self.chunk.spare.pop();
            return Ok(spare.unwrap_or_else(|| Bytes::zeroed(bytes)));
        }
        self.largest_page = self.largest_page.max(bytes);
        if self.has_room(bytes as u64) && self.for_chunk.grow(bytes as u64).is_ok() {
            self.writer.make_room(bytes)?;
            return Ok(Bytes::zeroed(bytes));
        }
        // A large record has room once nothing else is held, or never.
        self.start_spilling()?;
        self.spill_all()?;
        self.chunk_to_disk()?;
        self.let_go();
        self.for_chunk.grow(bytes as u64)?;
        self.writer.make_room(bytes)?;
        Ok(Bytes::zeroed(bytes))
    }

    /// Takes back the memory of a page of the chunk.
    fn take_back(&mut self, memory: Bytes) {
        let bytes = memory.capacity();
        if bytes == self.sizes.page_bytes {
            self.chunk.spare.push(memory);
        } else {
            let left = self.for_chunk.bytes().saturating_sub(bytes as u64);
            self.for_chunk.shrink_to(left);
        }
    }

    /// Whether more memory is within our share, and leaves the ledger what sending needs.
    fn has_room(&self, bytes: u64) -> bool {
        let ledger = &self.place.ledger;
        let left = ledger.free();
        let large = self.largest_page as u64 * (2 + u64::from(self.place.size));
        self.for_chunk.bytes() + self.for_held.bytes() + bytes <= self.sizes.share
            && left >= bytes + self.sizes.left + large
    }

    /// Memory for a page to hold; none when there is no room.
    fn held_page(&mut self, bytes: usize) -> Option<Bytes> {
        if bytes == self.sizes.page_bytes
            && let Some(spare) = self.spare.pop()
        {
            return Some(spare);
        }
        let grown = self.has_room(bytes as u64) && self.for_held.grow(bytes as u64).is_ok();
        grown.then(|| Bytes::zeroed(bytes))
    }

    /// Lets go of the memory that nothing is in.
    fn let_go(&mut self) {
        let bytes: usize = self.spare.drain(..).map(|spare| spare.capacity()).sum();
        let left = self.for_held.bytes().saturating_sub(bytes as u64);
        self.for_held.shrink_to(left);
    }

    /// Sorts the chunk and holds it; or, when there is no room, starts to move to disk what is held, and if there
    /// is nothing, moves the chunk there.
    fn finish_chunk(&mut self) -> Result<(), Error> {
        self.sort_chunk();
        if self.hold_chunk() {
            self.empty_chunk();
            return Ok(());
        }
        if self.held.runs.is_empty() {
            return self.chunk_to_disk();
        }
        self.start_spilling()
    }

    /// Finds the order of the chunk, unless that is known.
    fn sort_chunk(&mut self) {
        let Self { order, chunk, .. } = self;
        if chunk.entries.len() == chunk.records {
            return;
        }
        let mut entries = std::mem::take(&mut chunk.entries);
        entries.clear();
        entries.reserve_exact(chunk.records);
        for (page, records) in (0..).zip(&chunk.pages) {
            entries.extend((0..records.len()).map(|record| Entry {
                prefix: order.prefix(records.view(record)),
                page,
                record: record as u32,
            }));
        }
        let mut scratch = std::mem::take(&mut chunk.scratch);
        scratch.resize(entries.len(), Entry::default());
        radix::sort(&mut entries, &mut scratch, &|a, b| {
            if O::Key::PREFIX_IS_ALL {
                return Ordering::Equal;
            }
            order.compare(chunk.view(a), chunk.view(b))
        });
        (chunk.entries, chunk.scratch) = (entries, scratch);
    }

    /// Copies the chunk in order to pages that are held; false, with nothing changed, when there is no room.
    fn hold_chunk(&mut self) -> bool {
        let bytes = self.chunk.pages.iter().map(Page::capacity).sum::<usize>();
        let spare = self.spare.len() * self.sizes.page_bytes;
        if !self.has_room(bytes.saturating_sub(spare) as u64) {
            return false;
        }
        let mut pages = Vec::new();
        let mut builder = Builder::new(Memory::own(0), self.chunk.shape);
        for index in 0..self.chunk.entries.len() {
            let mut bytes = self.sizes.page_bytes;
            while builder
                .push(&self.chunk.view(&self.chunk.entries[index]))
                .is_err()
            {
                let mut shape = self.chunk.shape;
                if builder.is_empty() {
                    if builder.capacity() > 0 {
                        (bytes, shape) = (2 * builder.capacity(), Shape::LARGE);
                        self.give_back(builder.into_memory());
                    }
                } else {
                    shape = builder.shape();
                    pages.push(builder.into_page());
                }
                let Some(memory) = self.held_page(bytes) else {
                    for page in pages {
                        self.give_back(page.into_memory());
                    }
                    return false;
                };
                builder = Builder::new(Memory::Own(memory), shape);
            }
        }
        if !builder.is_empty() {
            pages.push(builder.into_page());
        }
        if !pages.is_empty() {
            self.held.runs.push(pages);
        }
        true
    }

    /// Gives back the memory of a page that was held.
    fn give_back(&mut self, memory: Bytes) {
        if memory.capacity() == self.sizes.page_bytes {
            self.spare.push(memory);
        } else {
            let left = self.for_held.bytes() - memory.capacity() as u64;
            self.for_held.shrink_to(left);
        }
    }

    /// Makes the chunk, which is sorted, a run on disk.
    fn chunk_to_disk(&mut self) -> Result<(), Error> {
        self.sort_chunk();
        if self.chunk.records == 0 {
            return Ok(());
        }
        let file = self.files.next()?;
        self.writer.start(file);
        for entry in &self.chunk.entries {
            self.writer.push(&self.chunk.view(entry), entry.prefix)?;
        }
        self.finish_run()?;
        self.empty_chunk();
        Ok(())
    }

    /// Takes a sample of the chunk, which is sorted and kept elsewhere, and makes room for the next.
    fn empty_chunk(&mut self) {
        let Self {
            order,
            chunk,
            samples,
            ..
        } = self;
        if let Some(samples) = samples {
            samples.add(chunk.entries.len(), |samples, index| {
                let view = chunk.view(&chunk.entries[index]);
                order.with_key(view, |key| samples.push(key));
            });
        }
        chunk.entries.clear();
        chunk.records = 0;
        for page in std::mem::take(&mut self.chunk.pages) {
            self.take_back(page.into_memory());
        }
    }

    /// Whether what is held is on its way to disk.
    pub(crate) fn is_spilling(&self) -> bool {
        self.spilling.is_some()
    }

    /// Starts to make what is held one run on disk.
    fn start_spilling(&mut self) -> Result<(), Error> {
        if self.is_spilling() || self.held.runs.is_empty() {
            return Ok(());
        }
        let file = self.files.next()?;
        self.writer.start(file);
        let whole = |(run, pages): (usize, &Vec<Page<T>>)| Source::Held {
            run,
            at: Cut::default(),
            end: Cut {
                block: pages.len(),
                record: 0,
            },
        };
        let sources = self.held.runs.iter().enumerate().map(whole).collect();
        self.spilling = Some(Sources::new(self.order.clone(), sources, &self.held));
        Ok(())
    }

    /// Writes some more of what is held.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`], or [`transport::Error::LedgerLimit`] for the list of blocks.
    pub(crate) fn spill_on(&mut self) -> Result<(), Error> {
        let Some(mut sources) = self.spilling.take() else {
            return Ok(());
        };
        if !self.merge_on(&mut sources)? {
            self.spilling = Some(sources);
            return Ok(());
        }
        for page in std::mem::take(&mut self.held.runs).into_iter().flatten() {
            self.give_back(page.into_memory());
        }
        Ok(())
    }

    /// Writes all of what is held, if it is on its way.
    fn spill_all(&mut self) -> Result<(), Error> {
        while self.is_spilling() {
            self.spill_on()?;
        }
        Ok(())
    }

    fn finish_run(&mut self) -> Result<(), Error> {
        let run = self.writer.finish()?;
        self.place.counters.spilled(run.disk_bytes());
        self.runs.push(run);
        Ok(())
    }

    /// There are no more records: all are in sorted runs.
    ///
    /// # Errors
    ///
    /// As [`spill_on`](Self::spill_on).
    pub(crate) fn end(&mut self) -> Result<(), Error> {
        self.seal_page();
        self.sort_chunk();
        if self.hold_chunk() {
            self.empty_chunk();
        } else {
            self.chunk_to_disk()?;
        }
        self.chunk.spare = Vec::new();
        self.chunk.entries = Vec::new();
        self.chunk.scratch = Vec::new();
        Ok(())
    }

    /// Forgets all records, once they were read, and what they took of memory and disks.
    pub(crate) fn clear(&mut self) {
        self.held.runs.clear();
        self.spare.clear();
        self.for_held.shrink_to(0);
        self.runs.clear();
        self.files.renew();
        self.unmerged = 0;
        self.for_chunk.shrink_to(self.sizes.least);
        self.largest_page = 0;
    }

    /// The sample of all records, which is taken once.
    pub(crate) fn take_samples(&mut self) -> Option<Told<O::Key>> {
        self.samples.take().map(Samples::into_told)
    }
}

/// What comes before the records of a store can be read in order.
pub(crate) enum Step<T: Record, O> {
    /// What is held goes to disk, to make room for reading the rest.
    Spill,
    /// Some runs become one, because there are too many to be read at once.
    Merge(Sources<T, O>),
    /// Nothing more.
    Read,
}

impl<T: Record, O: OrderBy<T>> Store<T, O> {
    /// Finds out what to do next so that each of `parts` of the records can be read at the same time, and starts
    /// it. It is done by [`spill_on`](Self::spill_on) or [`merge_on`](Self::merge_on).
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`] when there is no room to read a block of each run.
    pub(crate) fn prepare(&mut self, parts: usize) -> Result<Step<T, O>, Error> {
        self.let_go();
        let reader_bytes = |run: &Arc<Run>| (run.reader_bytes() * parts) as u64;
        let all = self.runs.iter().map(reader_bytes).sum::<u64>();
        if !self.held.runs.is_empty() {
            if self.make_room(all) {
                return Ok(Step::Read);
            }
            self.start_spilling()?;
            return Ok(Step::Spill);
        }
        let largest = self.runs.iter().map(|run| run.reader_bytes()).max();
        let largest = largest.unwrap_or(0).max(1) as u64;
        let mut budget = self.sizes.share;
        loop {
            let at_once = (budget / (largest * parts as u64)).max(1) as usize;
            let merged = match self.runs.len().saturating_sub(at_once) {
                0 => 0,
                more => ((budget / largest) as usize).clamp(2, more + 1),
            };
            let needed = match merged {
                0 => all,
                merged => merged as u64 * largest,
            };
            if !self.make_room(needed) {
                if budget > self.sizes.least {
                    budget /= 2;
                    continue;
                }
                // With less it does not work.
                let more = needed.saturating_sub(self.for_chunk.bytes());
                self.for_chunk.grow(more)?;
            }
            return match merged {
                0 => Ok(Step::Read),
                merged => Ok(Step::Merge(self.start_merging(merged)?)),
            };
        }
    }

    /// Has so much memory to read with, instead of the chunk; false when there is no room.
    fn make_room(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.for_chunk.bytes());
        more == 0 || (self.has_room(more) && self.for_chunk.grow(more).is_ok())
    }

    /// Starts to make one of the smallest `merged` runs.
    fn start_merging(&mut self, merged: usize) -> Result<Sources<T, O>, Error> {
        if self.unmerged < merged {
            self.files.renew();
            self.unmerged = self.runs.len();
        }
        self.unmerged -= merged;
        self.runs
            .sort_by_key(|run| std::cmp::Reverse(run.disk_bytes()));
        let runs = self.runs.split_off(self.runs.len() - merged);
        let readers = runs.iter().map(|run| {
            let reader = Reader::new(run, run.start(), run.end())?;
            Ok(Source::Run(reader))
        });
        let sources = readers.collect::<Result<_, Error>>()?;
        let file = self.files.next()?;
        self.writer.start(file);
        Ok(Sources::new(self.order.clone(), sources, &self.held))
    }

    /// Writes some more of what is merged; true when it is one run.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`], [`Error::SpillDamaged`], or [`transport::Error::LedgerLimit`].
    pub(crate) fn merge_on(&mut self, sources: &mut Sources<T, O>) -> Result<bool, Error> {
        for _ in 0..MERGED_A_TURN {
            let Some((prefix, view)) = sources.first(&self.held) else {
                self.finish_run()?;
                return Ok(true);
            };
            self.writer.push(&view, prefix)?;
            sources.advance(&self.held)?;
        }
        Ok(false)
    }

    /// Readers of what is between splitters, of which there is one less than `parts`, or none.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`] or [`Error::SpillDamaged`].
    pub(crate) fn parts(
        &self,
        splitters: &[Splitter<O::Key>],
        parts: usize,
    ) -> Result<Vec<Sources<T, O>>, Error> {
        let starts = |runs: usize| vec![vec![Cut::default()]; runs];
        let (mut held, mut runs) = (starts(self.held.runs.len()), starts(self.runs.len()));
        for splitter in splitters {
            for (pages, cuts) in self.held.runs.iter().zip(&mut held) {
                cuts.push(self.cut_held(pages, splitter));
            }
            for (run, cuts) in self.runs.iter().zip(&mut runs) {
                cuts.push(self.cut_run(run, splitter)?);
            }
        }
        for (pages, cuts) in self.held.runs.iter().zip(&mut held) {
            let end = Cut {
                block: pages.len(),
                record: 0,
            };
            cuts.resize(parts, end);
            cuts.push(end);
        }
        for (run, cuts) in self.runs.iter().zip(&mut runs) {
            cuts.resize(parts, run.end());
            cuts.push(run.end());
        }
        let part = |part: usize| {
            let mut sources = Vec::new();
            for (run, cuts) in held.iter().enumerate() {
                let (at, end) = (cuts[part], cuts[part + 1]);
                if at < end {
                    sources.push(Source::Held { run, at, end });
                }
            }
            for (run, cuts) in self.runs.iter().zip(&runs) {
                if cuts[part] < cuts[part + 1] {
                    sources.push(Source::Run(Reader::new(run, cuts[part], cuts[part + 1])?));
                }
            }
            Ok(Sources::new(self.order.clone(), sources, &self.held))
        };
        (0..parts).map(part).collect()
    }

    /// Where a run in memory is divided by a splitter.
    fn cut_held(&self, pages: &[Page<T>], splitter: &Splitter<O::Key>) -> Cut {
        let compare = |view: T::View<'_>| {
            let prefixes = self.order.prefix(view).cmp(&splitter.prefix);
            prefixes.then_with(|| splitter.compare(&self.order, view))
        };
        let cut = |is_before: fn(Ordering) -> bool| {
            let first = |page: &Page<T>| is_before(compare(page.view(0)));
            let Some(block) = pages.partition_point(first).checked_sub(1) else {
                return Cut::default();
            };
            let (mut low, mut high) = (0, pages[block].len());
            while low < high {
                let middle = low.midpoint(high);
                if is_before(compare(pages[block].view(middle))) {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            Cut::behind(block, low, pages[block].len())
        };
        match splitter.division(self.place.rank) {
            Division::Behind => cut(Ordering::is_lt),
            Division::Before => cut(Ordering::is_le),
            Division::At => Cut::between(
                cut(Ordering::is_lt),
                cut(Ordering::is_le),
                |page| pages[page].len(),
                |records| splitter.share_of(records),
            ),
        }
    }

    /// The same in a run.
    fn cut_run(&self, run: &Arc<Run>, splitter: &Splitter<O::Key>) -> Result<Cut, Error> {
        let cut = |is_before: fn(Ordering) -> bool| {
            run.cut::<T>(
                splitter.prefix,
                |view| self.order.prefix(view),
                |view| is_before(splitter.compare(&self.order, view)),
            )
        };
        match splitter.division(self.place.rank) {
            Division::Behind => cut(Ordering::is_lt),
            Division::Before => cut(Ordering::is_le),
            Division::At => {
                let (lower, upper) = (cut(Ordering::is_lt)?, cut(Ordering::is_le)?);
                Ok(Cut::between(
                    lower,
                    upper,
                    |block| run.records(block),
                    |records| splitter.share_of(records),
                ))
            }
        }
    }

    /// What is in memory.
    pub(crate) fn held(&self) -> &Held<T> {
        &self.held
    }
}

/// Several sorted stretches, read as one.
pub(crate) struct Sources<T: Record, O> {
    order: O,
    sources: Vec<Source<T>>,
    /// The prefix that each is at.
    prefixes: Vec<u64>,
    tree: LoserTree,
}

enum Source<T> {
    /// A stretch of a run in memory.
    Held { run: usize, at: Cut, end: Cut },
    /// Records on disk.
    Run(Reader<T>),
}

impl<T: Record> Source<T> {
    #[inline]
    fn view<'a>(&'a self, held: &'a Held<T>) -> Option<T::View<'a>> {
        match self {
            Self::Held { run, at, end } => {
                (at < end).then(|| held.runs[*run][at.block].view(at.record))
            }
            Self::Run(reader) => reader.view(),
        }
    }

    #[inline]
    fn advance(&mut self, held: &Held<T>) -> Result<(), Error> {
        match self {
            Self::Held { run, at, .. } => {
                let page = &held.runs[*run][at.block];
                page.prefetch(at.record + FETCHED_AHEAD);
                *at = Cut::behind(at.block, at.record + 1, page.len());
                Ok(())
            }
            Self::Run(reader) => reader.advance(),
        }
    }
}

/// The prefix of the record that a source is at; at its end, the greatest there is.
#[inline]
fn prefix<T: Record, O: OrderBy<T>>(order: &O, source: &Source<T>, held: &Held<T>) -> u64 {
    source
        .view(held)
        .map_or(u64::MAX, |view| order.prefix(view))
}

impl<T: Record, O: OrderBy<T>> Sources<T, O> {
    fn new(order: O, sources: Vec<Source<T>>, held: &Held<T>) -> Self {
        let prefixes: Vec<_> = sources
            .iter()
            .map(|source| prefix(&order, source, held))
            .collect();
        let tree = LoserTree::new(sources.len(), |a, b| {
            is_before(&order, &sources, &prefixes, held, a, b)
        });
        Self {
            order,
            sources,
            prefixes,
            tree,
        }
    }

    /// The first record of all, with its prefix; none at the end.
    #[inline]
    pub(crate) fn first<'a>(&'a self, held: &'a Held<T>) -> Option<(u64, T::View<'a>)> {
        let winner = self.tree.winner();
        let view = self.sources.get(winner)?.view(held)?;
        Some((self.prefixes[winner], view))
    }

    /// Goes on to the next.
    #[inline]
    pub(crate) fn advance(&mut self, held: &Held<T>) -> Result<(), Error> {
        let Self {
            order,
            sources,
            prefixes,
            tree,
        } = self;
        let winner = tree.winner();
        let Some(source) = sources.get_mut(winner) else {
            return Ok(());
        };
        source.advance(held)?;
        prefixes[winner] = prefix(order, source, held);
        tree.replay(|a, b| is_before(order, sources, prefixes, held, a, b));
        Ok(())
    }
}

/// Whether one source comes before another. Among equals the one with the lower number does, and one that is at its
/// end comes last.
#[inline]
fn is_before<T: Record, O: OrderBy<T>>(
    order: &O,
    sources: &[Source<T>],
    prefixes: &[u64],
    held: &Held<T>,
    a: usize,
    b: usize,
) -> bool {
    if prefixes[a] != prefixes[b] {
        return prefixes[a] < prefixes[b];
    }
    match (sources[a].view(held), sources[b].view(held)) {
        (Some(_), Some(_)) if O::Key::PREFIX_IS_ALL => a < b,
        (Some(first), Some(second)) => order.compare(first, second).then(a.cmp(&b)).is_lt(),
        (first, second) => first.is_some() && second.is_none(),
    }
}
