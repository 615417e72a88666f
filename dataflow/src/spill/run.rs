//! Records in blocks: written behind each other, and read back a block at a time.

use std::{cmp::Ordering, sync::Arc};

use transport::{Ledger, Reservation};

use super::{
    Compression,
    file::{Extent, File},
};
use crate::{
    Encode, Error, Record,
    batch::{Builder, Memory, Page, Shape},
    bytes::Bytes,
    record::Unfit,
};

/// Blocks of a run that are compressed to see whether it pays.
const TRIED_BLOCKS: usize = 4;

/// Bytes of a block in an index.
pub(crate) const INDEX_BYTES: usize = 24;

/// One block of a run.
#[derive(Debug, Clone, Copy)]
struct Block {
    extent: Extent,
    /// Bytes of the page that it expands to: as many as are on disk when it is not compressed.
    page_bytes: u32,
    records: u32,
    /// The number that the writer was told of its first record.
    first: u64,
}

impl Block {
    fn is_compressed(&self) -> bool {
        self.extent.bytes() != self.page_bytes as usize
    }
}

/// Records on disk, in the order in which they were written.
#[derive(Debug)]
pub(crate) struct Run {
    file: Arc<File>,
    blocks: Vec<Block>,
    /// Bytes of the largest page, and of the largest block that is compressed.
    page_bytes: usize,
    compressed_bytes: usize,
    /// What the list of blocks takes.
    reservation: Reservation,
}

/// A place between two records of a run: a block, and a record in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Cut {
    pub(crate) block: usize,
    pub(crate) record: usize,
}

impl Cut {
    /// Before a record of a block that has `len`, or behind the last one.
    #[inline]
    pub(crate) fn behind(block: usize, record: usize, len: usize) -> Self {
        if record < len {
            Self { block, record }
        } else {
            Self {
                block: block + 1,
                record: 0,
            }
        }
    }

    /// The place before which there are as many of the records between two others as `share` makes of their number.
    /// `len` tells how many a block has.
    pub(crate) fn between(
        start: Self,
        end: Self,
        len: impl Fn(usize) -> usize,
        share: impl Fn(usize) -> usize,
    ) -> Self {
        let whole: usize = (start.block..end.block).map(&len).sum();
        let mut record = start.record + share(whole + end.record - start.record);
        for block in start.block..end.block {
            if record < len(block) {
                return Self { block, record };
            }
            record -= len(block);
        }
        Self {
            block: end.block,
            record,
        }
    }
}

impl Run {
    fn new(file: Arc<File>, blocks: Vec<Block>, reservation: Reservation) -> Self {
        let page_bytes = blocks.iter().map(|block| block.page_bytes as usize);
        let compressed = blocks.iter().filter(|block| block.is_compressed());
        let compressed_bytes = compressed.map(|block| block.extent.bytes());
        Self {
            file,
            page_bytes: page_bytes.max().unwrap_or(0),
            compressed_bytes: compressed_bytes.max().unwrap_or(0),
            blocks,
            reservation,
        }
    }

    /// The list of blocks as bytes, for a file that stays.
    pub(crate) fn index(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.blocks.len() * INDEX_BYTES);
        for block in &self.blocks {
            bytes.extend(block.extent.offset.to_le_bytes());
            bytes.extend(block.extent.bytes.to_le_bytes());
            bytes.extend(block.extent.checksum.to_le_bytes());
            bytes.extend(block.page_bytes.to_le_bytes());
            bytes.extend(block.records.to_le_bytes());
        }
        bytes
    }

    /// The run that was written to the first `body` bytes of a file, by its [index](Self::index): none if its blocks do not fill
    /// them, one behind the other. What is in the blocks is still to be [checked](Self::check).
    pub(crate) fn indexed(
        file: Arc<File>,
        index: &[u8],
        body: u64,
        reservation: Reservation,
    ) -> Option<Self> {
        let (entries, []) = index.as_chunks::<INDEX_BYTES>() else {
            return None;
        };
        let mut blocks = Vec::with_capacity(entries.len());
        let mut end = 0u64;
        for entry in entries {
            let word = |at: usize| {
                let bytes = entry[at..at + 4].try_into().unwrap_or_default();
                u32::from_le_bytes(bytes)
            };
            let offset = u64::from(word(0)) | u64::from(word(4)) << 32;
            let extent = Extent {
                offset,
                bytes: word(8),
                checksum: word(12),
            };
            let block = Block {
                extent,
                page_bytes: word(16),
                records: word(20),
                first: 0,
            };
            let fits = offset == end && extent.bytes <= block.page_bytes;
            if !fits || block.page_bytes > i32::MAX as u32 {
                return None;
            }
            end = offset.checked_add(extent.bytes.into())?;
            blocks.push(block);
        }
        (end == body).then(|| Self::new(file, blocks, reservation))
    }

    /// How many blocks there are.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Reads a block, to see whether it is what was written; says how many bytes it has.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`] or [`Error::SpillDamaged`].
    pub(crate) fn check(&self, block: usize, memory: &mut Vec<u8>) -> Result<usize, Error> {
        let extent = self.blocks[block].extent;
        memory.resize(extent.bytes(), 0);
        self.file.read(&extent, memory)?;
        Ok(extent.bytes())
    }

    /// The file that it is in.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Bytes of memory that the list of so many blocks takes.
    pub(crate) fn list_bytes(blocks: usize) -> u64 {
        (blocks * size_of::<Block>()) as u64
    }

    /// Writes pages that are in memory, and gives that back, but for the list of blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`].
    pub(crate) fn of_pages<T: Record>(
        file: File,
        pages: Vec<Page<T>>,
        compression: Compression,
        mut reservation: Reservation,
    ) -> Result<Self, Error> {
        let mut packer = Packer::new(compression);
        let mut blocks = Vec::with_capacity(pages.len());
        let mut given_back = 0;
        for page in pages {
            // What compressing takes has to fit in the memory of the pages that are gone.
            let room = given_back;
            blocks.push(packer.append(&file, page.bytes(), page.len() as u32, 0, room)?);
            given_back += page.capacity();
        }
        reservation.shrink_to(Self::list_bytes(blocks.len()));
        Ok(Self::new(Arc::new(file), blocks, reservation))
    }

    /// Records of a block.
    pub(crate) fn records(&self, block: usize) -> usize {
        self.blocks[block].records as usize
    }

    /// Before the first record.
    pub(crate) fn start(&self) -> Cut {
        Cut {
            block: 0,
            record: 0,
        }
    }

    /// Behind the last one.
    pub(crate) fn end(&self) -> Cut {
        Cut {
            block: self.blocks.len(),
            record: 0,
        }
    }

    /// Bytes that a reader of it needs.
    pub(crate) fn reader_bytes(&self) -> usize {
        self.page_bytes + self.compressed_bytes
    }

    /// Bytes on disk.
    pub(crate) fn disk_bytes(&self) -> u64 {
        let bytes = self.blocks.iter().map(|block| block.extent.bytes() as u64);
        bytes.sum()
    }

    /// The first place from which on no record comes before a bound, in a run that is sorted: `prefix` is the
    /// number of the bound, and `is_before` tells of a record that has the same number. Only the blocks that it
    /// takes to find the place are read.
    ///
    /// # Errors
    ///
    /// As [`Reader::advance`].
    pub(crate) fn cut<T: Record>(
        self: &Arc<Self>,
        prefix: u64,
        prefix_of: impl Fn(T::View<'_>) -> u64,
        is_before: impl Fn(T::View<'_>) -> bool,
    ) -> Result<Cut, Error> {
        let before = |view: T::View<'_>| match prefix_of(view).cmp(&prefix) {
            Ordering::Less => true,
            Ordering::Equal => is_before(view),
            Ordering::Greater => false,
        };
        let mut reader = Reader::<T>::empty(self);
        // The last block whose first record comes before the bound has the place, or it is the start.
        let (mut low, mut high) = (0, self.blocks.len());
        while low < high {
            let middle = low.midpoint(high);
            let first = self.blocks[middle].first;
            let is_before = match first.cmp(&prefix) {
                Ordering::Less => true,
                Ordering::Greater => false,
                Ordering::Equal => {
                    reader.open(middle)?;
                    before(reader.page.as_ref().map_or_else(
                        || unreachable!("the block has just been read"),
                        |page| page.view(0),
                    ))
                }
            };
            if is_before {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let Some(block) = low.checked_sub(1) else {
            return Ok(self.start());
        };
        reader.open(block)?;
        let Some(page) = &reader.page else {
            return Ok(self.end());
        };
        let (mut low, mut high) = (0, page.len());
        while low < high {
            let middle = low.midpoint(high);
            if before(page.view(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(Cut::behind(block, low, page.len()))
    }
}

/// Whether the blocks of a run are compressed.
#[derive(Debug)]
enum Choice {
    /// That is still to be seen: so many blocks, of so many bytes, came out at so many.
    Open {
        blocks: usize,
        before: usize,
        after: usize,
    },
    Yes,
    No,
}

/// Writes runs, one after the other, through memory that it has from the start.
pub(crate) struct Writer<T> {
    holder: &'static str,
    ledger: Ledger,
    compression: Compression,
    block_bytes: usize,
    builder: Builder<T>,
    shape: Shape,
    packer: Packer,
    /// The run that is being written.
    file: Option<Arc<File>>,
    blocks: Vec<Block>,
    first: u64,
    /// For the memory of a block.
    reservation: Reservation,
    /// For the list of blocks.
    list: Reservation,
}

/// Bytes that a writer of blocks of `block_bytes` takes.
fn writer_bytes(block_bytes: usize, compression: Compression) -> usize {
    match compression {
        Compression::Never => block_bytes,
        _ => block_bytes + lz4_flex::block::get_maximum_output_size(block_bytes),
    }
}

impl<T: Record> Writer<T> {
    /// A writer of blocks of `block_bytes`.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`] when there is no room for a block.
    pub(crate) fn new(
        ledger: &Ledger,
        holder: &'static str,
        block_bytes: usize,
        compression: Compression,
    ) -> Result<Self, Error> {
        let bytes = writer_bytes(block_bytes, compression) as u64;
        Ok(Self {
            reservation: ledger.reserve(holder, bytes)?,
            list: ledger.reserve(holder, 0)?,
            holder,
            ledger: ledger.clone(),
            compression,
            block_bytes,
            builder: Builder::new(Memory::own(0), Shape::UNKNOWN),
            shape: Shape::UNKNOWN,
            packer: Packer::new(compression),
            file: None,
            blocks: Vec::new(),
            first: 0,
        })
    }

    /// Has memory for a block of `bytes` if a record should need it.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`].
    pub(crate) fn make_room(&mut self, bytes: usize) -> Result<(), Error> {
        let needed = writer_bytes(bytes, self.compression) as u64;
        let more = needed.saturating_sub(self.reservation.bytes());
        Ok(self.reservation.grow(more)?)
    }

    /// Starts a run at the end of a file.
    pub(crate) fn start(&mut self, file: Arc<File>) {
        self.file = Some(file);
        self.blocks.clear();
        self.packer.choice = Choice::of(self.compression);
    }

    /// Goes on with a run that was ended.
    pub(crate) fn resume(&mut self, run: Run) {
        self.start(run.file);
        self.blocks = run.blocks;
        self.list = run.reservation;
    }

    /// Writes a record. `number` is kept of the first one of each block, to find it again.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`], [`Error::RecordTooLarge`], or [`transport::Error::LedgerLimit`].
    #[inline]
    pub(crate) fn push<E: Encode<Record = T>>(
        &mut self,
        value: &E,
        number: u64,
    ) -> Result<(), Error> {
        // The first record of a block comes with its number.
        if !self.builder.is_empty() && self.builder.push(value).is_ok() {
            return Ok(());
        }
        self.push_slowly(value, number)
    }

    #[cold]
    fn push_slowly<E: Encode<Record = T>>(&mut self, value: &E, number: u64) -> Result<(), Error> {
        self.write_block()?;
        let mut bytes = self.block_bytes;
        loop {
            if self.builder.capacity() != bytes {
                self.make_room(bytes)?;
                self.builder = Builder::new(Memory::own(bytes), self.shape);
            }
            match self.builder.push(value) {
                Ok(()) => break,
                Err(Unfit::Full) if bytes < i32::MAX as usize / 2 => {
                    bytes *= 2;
                    self.shape = Shape::LARGE;
                }
                Err(_) => {
                    return Err(Error::RecordTooLarge {
                        record: std::any::type_name::<T>(),
                        limit: bytes,
                    });
                }
            }
        }
        self.first = number;
        Ok(())
    }

    /// Writes the block in the making, if there is one, and starts another in its memory.
    fn write_block(&mut self) -> Result<(), Error> {
        if self.builder.is_empty() {
            return Ok(());
        }
        let Some(file) = &self.file else {
            unreachable!("records are pushed after a run was started")
        };
        let nothing = Builder::new(Memory::own(0), self.shape);
        let builder = std::mem::replace(&mut self.builder, nothing);
        self.shape = builder.shape();
        let records = builder.len() as u32;
        let Memory::Own(page) = builder.seal() else {
            unreachable!("blocks are built in memory of our own")
        };
        self.list.grow(size_of::<Block>() as u64)?;
        let block = (self.packer).append(file, &page, records, self.first, usize::MAX)?;
        self.blocks.push(block);
        if page.capacity() == self.block_bytes {
            let mut memory = page;
            memory.resize(self.block_bytes);
            self.builder = Builder::new(Memory::Own(memory), self.shape);
        }
        Ok(())
    }

    /// Ends the run.
    ///
    /// # Errors
    ///
    /// As [`push`](Self::push).
    pub(crate) fn finish(&mut self) -> Result<Arc<Run>, Error> {
        self.write_block()?;
        let Some(file) = self.file.take() else {
            unreachable!("a run that ends was started")
        };
        let list = self.ledger.reserve(self.holder, 0)?;
        let list = std::mem::replace(&mut self.list, list);
        let blocks = std::mem::take(&mut self.blocks);
        Ok(Arc::new(Run::new(file, blocks, list)))
    }
}

/// Writes pages as blocks.
struct Packer {
    choice: Choice,
    compressed: Vec<u8>,
}

impl Packer {
    fn new(compression: Compression) -> Self {
        Self {
            choice: Choice::of(compression),
            compressed: Vec::new(),
        }
    }

    /// Writes a page behind what is in a file, compressed if that pays and takes no more than `room` bytes of memory.
    fn append(
        &mut self,
        file: &File,
        page: &[u8],
        records: u32,
        first: u64,
        room: usize,
    ) -> Result<Block, Error> {
        let size = lz4_flex::block::get_maximum_output_size(page.len());
        let compressed = match &mut self.choice {
            Choice::No => None,
            _ if size > room => None,
            choice => {
                if self.compressed.len() < size {
                    self.compressed.resize(size, 0);
                }
                // It has room for the worst, so this does not fail; if it did, nothing would be lost.
                let bytes = lz4_flex::block::compress_into(page, &mut self.compressed);
                let bytes = bytes.unwrap_or(page.len());
                choice.learn(page.len(), bytes);
                Some(bytes).filter(|&bytes| bytes < page.len())
            }
        };
        let extent = match compressed {
            Some(bytes) => file.append(&self.compressed[..bytes])?,
            None => file.append(page)?,
        };
        Ok(Block {
            extent,
            page_bytes: page.len() as u32,
            records,
            first,
        })
    }
}

impl Choice {
    fn of(compression: Compression) -> Self {
        match compression {
            Compression::Never => Self::No,
            Compression::Always => Self::Yes,
            Compression::WhenSmall => Self::Open {
                blocks: 0,
                before: 0,
                after: 0,
            },
        }
    }

    /// Takes note of what became of a block, and decides when it has seen enough.
    fn learn(&mut self, before: usize, after: usize) {
        let Self::Open {
            blocks,
            before: all_before,
            after: all_after,
        } = self
        else {
            return;
        };
        *blocks += 1;
        *all_before += before;
        *all_after += after;
        if *blocks == TRIED_BLOCKS {
            *self = if *all_after * 8 < *all_before * 3 {
                Self::Yes
            } else {
                Self::No
            };
        }
    }
}

/// Reads a stretch of a run, one block at a time.
pub(crate) struct Reader<T> {
    run: Arc<Run>,
    /// The block that is open, and the record in it that is next.
    at: Cut,
    end: Cut,
    page: Option<Page<T>>,
    /// Records of the open block that are read.
    until: usize,
    compressed: Vec<u8>,
}

impl<T: Record> Reader<T> {
    /// A reader of the records between two places, at the first of them.
    ///
    /// # Errors
    ///
    /// As [`advance`](Self::advance).
    pub(crate) fn new(run: &Arc<Run>, start: Cut, end: Cut) -> Result<Self, Error> {
        let mut reader = Self {
            at: start,
            end,
            ..Self::empty(run)
        };
        if start < end {
            reader.open_next()?;
        }
        Ok(reader)
    }

    /// A reader of nothing.
    fn empty(run: &Arc<Run>) -> Self {
        Self {
            run: run.clone(),
            at: run.end(),
            end: run.end(),
            page: None,
            until: 0,
            compressed: Vec::new(),
        }
    }

    /// The record that it is at; none at the end.
    #[inline]
    pub(crate) fn view(&self) -> Option<T::View<'_>> {
        let page = self.page.as_ref()?;
        Some(page.view(self.at.record))
    }

    /// Goes on to the next record.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`] or [`Error::SpillDamaged`].
    #[inline]
    pub(crate) fn advance(&mut self) -> Result<(), Error> {
        self.at.record += 1;
        if self.at.record < self.until {
            return Ok(());
        }
        self.at = Cut {
            block: self.at.block + 1,
            record: 0,
        };
        self.open_next()
    }

    /// Opens the block that it is at, or lets go of the last one.
    #[cold]
    fn open_next(&mut self) -> Result<(), Error> {
        if self.at >= self.end {
            self.page = None;
            self.compressed = Vec::new();
            return Ok(());
        }
        self.open(self.at.block)?;
        let len = self.page.as_ref().map_or(0, Page::len);
        self.until = if self.at.block == self.end.block {
            self.end.record
        } else {
            len
        };
        Ok(())
    }

    /// Reads a block and opens the page in it.
    fn open(&mut self, block: usize) -> Result<(), Error> {
        let Block {
            extent, page_bytes, ..
        } = self.run.blocks[block];
        let file = &self.run.file;
        let mut memory = match self.page.take() {
            Some(page) => page.into_memory(),
            None => Bytes::with_capacity(self.run.page_bytes),
        };
        memory.resize(page_bytes as usize);
        if extent.bytes() == page_bytes as usize {
            file.read(&extent, &mut memory)?;
        } else {
            self.compressed.resize(extent.bytes(), 0);
            file.read(&extent, &mut self.compressed)?;
            let expanded = lz4_flex::block::decompress_into(&self.compressed, &mut memory);
            if expanded.ok() != Some(memory.len()) {
                return Err(file.damaged(&extent, "it does not expand"));
            }
        }
        let page = Page::checked(memory);
        let page = page.map_err(|_| file.damaged(&extent, "it is not a batch of the records"))?;
        self.page = Some(page);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt::Debug, os::unix::fs::FileExt};

    use proptest::{prelude::*, sample::Index};

    use super::*;

    const COMPRESSIONS: [Compression; 3] = [
        Compression::Never,
        Compression::WhenSmall,
        Compression::Always,
    ];

    fn file() -> Arc<File> {
        Arc::new(File::new(&std::env::temp_dir(), "a test").unwrap())
    }

    fn write<T: Record>(
        ledger: &Ledger,
        file: &Arc<File>,
        records: &[T],
        block_bytes: usize,
        compression: Compression,
        number: impl Fn(&T) -> u64,
    ) -> Arc<Run> {
        let mut writer = Writer::new(ledger, "a test", block_bytes, compression).unwrap();
        writer.start(file.clone());
        for record in records {
            writer.push(record, number(record)).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read<T: Record>(run: &Arc<Run>, start: Cut, end: Cut) -> Result<Vec<T>, Error> {
        let mut reader = Reader::<T>::new(run, start, end)?;
        let mut records = Vec::new();
        while let Some(view) = reader.view() {
            records.push(T::own(view));
            reader.advance()?;
        }
        Ok(records)
    }

    /// Two runs in one file come back, whole and in parts, and the ledger is as before.
    fn come_back<T: Record + Debug + Clone + PartialEq>(records: &[T], block_bytes: usize) {
        let ledger = Ledger::new(1 << 30);
        for compression in COMPRESSIONS {
            let file = file();
            let runs = [records, &records[records.len() / 2..]]
                .map(|records| write(&ledger, &file, records, block_bytes, compression, |_| 0));
            assert_eq!(
                read::<T>(&runs[0], runs[0].start(), runs[0].end()).unwrap(),
                records
            );
            let second = read::<T>(&runs[1], runs[1].start(), runs[1].end()).unwrap();
            assert_eq!(second, &records[records.len() / 2..]);
        }
        assert_eq!(ledger.used(), 0);
    }

    fn texts() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec("[a-z]{0,40}|[a-c]{300,400}", 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn runs_come_back(texts in texts(), numbers in prop::collection::vec(any::<u64>(), 0..200), block in 64usize..2_000) {
            come_back(&texts, block);
            come_back(&numbers, block);
            let pairs: Vec<_> = texts.into_iter().zip(numbers).map(|(text, number)| (number, vec![text])).collect();
            come_back(&pairs, block);
            come_back(&vec![(); pairs.len()], block);
        }

        #[test]
        fn a_cut_is_where_a_search_in_memory_finds_it(
            mut texts in prop::collection::vec("[ab]{0,4}", 0..120),
            bound in "[ab]{0,4}",
            block in 64usize..400,
        ) {
            texts.sort();
            let ledger = Ledger::new(1 << 30);
            // Numbers that tell little, so that records have to be looked at.
            let number = |text: &str| u64::from(text.as_bytes().first().copied().unwrap_or(0));
            let run = write(&ledger, &file(), &texts, block, Compression::Never, |text| number(text));
            let cut = run.cut::<String>(number(&bound), number, |text| text < bound.as_str()).unwrap();
            let at = texts.partition_point(|text| *text < bound);
            prop_assert_eq!(read::<String>(&run, run.start(), cut).unwrap(), &texts[..at]);
            prop_assert_eq!(read::<String>(&run, cut, run.end()).unwrap(), &texts[at..]);
            let third = Cut::between(cut, run.end(), |block| run.records(block), |len| len / 3);
            let left_out = (texts.len() - at) / 3;
            prop_assert_eq!(read::<String>(&run, third, run.end()).unwrap(), &texts[at + left_out..]);
        }

        #[test]
        fn damage_is_found_before_a_record_of_the_block_is_seen(
            texts in prop::collection::vec("[a-c]{10,60}", 20..60),
            at in any::<Index>(),
            bits in 1u8..,
        ) {
            for compression in COMPRESSIONS {
                let (ledger, file) = (Ledger::new(1 << 30), file());
                let run = write(&ledger, &file, &texts, 512, compression, |_| 0);
                let at = at.index(run.disk_bytes() as usize) as u64;
                let mut byte = [0];
                file.inner().read_exact_at(&mut byte, at).unwrap();
                file.inner().write_all_at(&[byte[0] ^ bits], at).unwrap();
                let error = read::<String>(&run, run.start(), run.end()).unwrap_err();
                let Error::SpillDamaged { offset, bytes, .. } = error else { panic!("{error}") };
                prop_assert!((offset..offset + bytes).contains(&at));
            }
        }
    }

    #[test]
    fn blocks_are_compressed_when_the_first_ones_shrink_enough() {
        let ledger = Ledger::new(1 << 30);
        let disk_bytes = |record: &dyn Fn(u64) -> u64, compression| {
            let records: Vec<u64> = (0..20_000).map(record).collect();
            write(&ledger, &file(), &records, 4096, compression, |_| 0).disk_bytes()
        };
        let random =
            |index: u64| index.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ index << 40;
        let plain = disk_bytes(&random, Compression::Never);
        assert!((160_000..170_000).contains(&plain), "{plain}");
        // LZ4 makes nothing of them (but of the first block, which is half empty), so it is given up.
        let tried = disk_bytes(&random, Compression::WhenSmall);
        assert!((plain - 4096..=plain).contains(&tried), "{tried}");
        assert!(disk_bytes(&|_| 7, Compression::WhenSmall) < plain / 10);
        assert_eq!(disk_bytes(&|_| 7, Compression::Never), plain);
    }

    #[test]
    fn a_record_larger_than_a_block_needs_the_ledger_s_consent() {
        let record = "x".repeat(100_000);
        let ledger = Ledger::new(50_000);
        let mut writer = Writer::new(&ledger, "a test", 1024, Compression::Never).unwrap();
        writer.start(file());
        let error = writer.push(&record, 0).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Transport(transport::Error::LedgerLimit {
                    holder: "a test",
                    ..
                })
            ),
            "{error}"
        );
        let ledger = Ledger::new(1 << 20);
        let run = write(
            &ledger,
            &file(),
            std::slice::from_ref(&record),
            1024,
            Compression::Always,
            |_| 0,
        );
        assert_eq!(
            read::<String>(&run, run.start(), run.end()).unwrap(),
            [record]
        );
    }
}
