//! Records that are set aside, because memory has no room for what they are for.
//!
//! An operator that keeps records by key does so in memory as long as there is room. What comes then goes to a
//! [`Store`] that sorts it, in memory and on disk. When all have come, it is read in order, and so records of one key
//! lie together, whatever their number: nothing has to be divided again and again, and one key that most records have
//! is no worse than others.
//!
//! The order is that of the hashes of the keys, so keys need none of their own. (Two keys of the same hash may be
//! mixed; who reads compares keys.)

use std::cmp::Ordering;

use crate::{
    Error, Key, Ordered, Record,
    batch::{Builder, Memory, Page, Shape},
    operator::{
        room::Room,
        sort::{First, OrderBy, Sizes, Sources, Step, Store},
    },
    record::Unfit,
    stage::Place,
};

/// An order of pairs that follows from their keys alone.
pub(crate) trait KeyOrder<K: Key>: Clone + Send + Sync + 'static {
    /// How two keys compare that have the same prefix.
    fn compare_keys(one: K::View<'_>, other: K::View<'_>) -> Ordering;
}

/// The order of the hashes of keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByHash;

impl<K: Key, V: Record> OrderBy<(K, V)> for ByHash {
    type Key = u64;

    #[inline]
    fn with_key<R>(
        &self,
        (key, _): (K::View<'_>, V::View<'_>),
        function: impl FnOnce(u64) -> R,
    ) -> R {
        function(K::hash(key))
    }
}

impl<K: Key> KeyOrder<K> for ByHash {
    #[inline]
    fn compare_keys(_one: K::View<'_>, _other: K::View<'_>) -> Ordering {
        Ordering::Equal
    }
}

impl<K: Key + Ordered> KeyOrder<K> for First {
    #[inline]
    fn compare_keys(one: K::View<'_>, other: K::View<'_>) -> Ordering {
        if K::PREFIX_IS_ALL {
            Ordering::Equal
        } else {
            K::compare(one, other)
        }
    }
}

/// Records that were set aside. They are read in order when all have come.
pub(crate) struct Aside<T: Record, O: OrderBy<T>> {
    store: Store<T, O>,
    doing: Doing<T, O>,
}

enum Doing<T: Record, O> {
    /// Records come.
    Taking,
    /// All have come. It finds out what to do next.
    Preparing,
    /// Some runs become one.
    Merging(Sources<T, O>),
    Reading(Sources<T, O>),
}

impl<T: Record, O: OrderBy<T>> Aside<T, O> {
    /// Enters on the ledger what it cannot do without, so that it is there when others have no room. It is not used
    /// before that.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`].
    pub(crate) fn new(place: &Place, order: O, holder: &'static str) -> Result<Self, Error> {
        Ok(Self {
            store: Store::new(place, order, Sizes::aside(place), holder)?,
            doing: Doing::Taking,
        })
    }

    /// Takes a record.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`], [`Error::RecordTooLarge`], or [`transport::Error::LedgerLimit`] for a record that is large.
    #[inline]
    pub(crate) fn push(&mut self, view: T::View<'_>) -> Result<(), Error> {
        self.store.push(view)
    }

    /// There are no more.
    ///
    /// # Errors
    ///
    /// As [`push`](Self::push).
    pub(crate) fn end(&mut self) -> Result<(), Error> {
        while self.go_on()? {}
        self.store.end()?;
        self.doing = Doing::Preparing;
        Ok(())
    }

    /// Does a part of what has to be done before records should be taken or can be read; false if there is nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`], [`Error::SpillDamaged`], or [`transport::Error::LedgerLimit`] when there is no room to read
    /// in.
    pub(crate) fn go_on(&mut self) -> Result<bool, Error> {
        if self.store.is_spilling() {
            self.store.spill_on()?;
            return Ok(true);
        }
        match &mut self.doing {
            Doing::Taking | Doing::Reading(_) => return Ok(false),
            Doing::Merging(sources) => {
                if self.store.merge_on(sources)? {
                    self.doing = Doing::Preparing;
                }
            }
            Doing::Preparing => match self.store.prepare(1)? {
                Step::Spill => {}
                Step::Merge(sources) => self.doing = Doing::Merging(sources),
                Step::Read => {
                    if let Some(all) = self.store.parts(&[], 1)?.pop() {
                        self.doing = Doing::Reading(all);
                    }
                }
            },
        }
        Ok(true)
    }

    /// Begins anew, once all records were read.
    pub(crate) fn clear(&mut self) {
        self.doing = Doing::Taking;
        self.store.clear();
    }

    /// The first record that was not read yet, with its prefix; none at the end.
    #[inline]
    pub(crate) fn first(&self) -> Option<(u64, T::View<'_>)> {
        match &self.doing {
            Doing::Reading(sources) => sources.first(self.store.held()),
            _ => None,
        }
    }

    /// Goes on to the next.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`] or [`Error::SpillDamaged`].
    #[inline]
    pub(crate) fn advance(&mut self) -> Result<(), Error> {
        match &mut self.doing {
            Doing::Reading(sources) => sources.advance(self.store.held()),
            _ => Ok(()),
        }
    }
}

/// Bytes of the first page of a block, and the most of one.
const PAGE_BYTES: usize = 4 << 10;
const PAGE_BYTES_MAX: usize = 256 << 10;

/// Some records in memory, to be gone through more than once.
pub(crate) struct Block<T> {
    pages: Vec<Page<T>>,
    builder: Builder<T>,
    shape: Shape,
    /// Bytes of all pages, with the one in the making.
    bytes: usize,
    len: usize,
    /// What it may have in any case.
    least: usize,
    room: Room,
}

impl<T: Record> Block<T> {
    /// Enters on the ledger what it may have in any case.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`].
    pub(crate) fn new(place: &Place, holder: &'static str) -> Result<Self, Error> {
        let mut room = Room::new(place, holder)?;
        let least = Sizes::aside(place).block_of_rows();
        room.insist(least as u64)?;
        Ok(Self {
            pages: Vec::new(),
            builder: Builder::new(Memory::own(0), Shape::UNKNOWN),
            shape: Shape::UNKNOWN,
            bytes: 0,
            len: 0,
            least,
            room,
        })
    }

    /// Takes a record; false when there is no room for it.
    ///
    /// # Errors
    ///
    /// [`Error::RecordTooLarge`], or [`transport::Error::LedgerLimit`] for the first record.
    #[inline]
    pub(crate) fn push(&mut self, view: T::View<'_>) -> Result<bool, Error> {
        if self.builder.push(&view).is_err() && !self.push_slowly(view)? {
            return Ok(false);
        }
        self.len += 1;
        Ok(true)
    }

    /// Takes a record that has to go in.
    ///
    /// # Errors
    ///
    /// [`Error::RecordTooLarge`], or [`transport::Error::LedgerLimit`].
    #[inline]
    pub(crate) fn must_push(&mut self, view: T::View<'_>) -> Result<(), Error> {
        while !self.push(view)? {
            // It leaves nothing to others that it does not need.
            self.room.insist(PAGE_BYTES as u64)?;
        }
        Ok(())
    }

    #[cold]
    fn push_slowly(&mut self, view: T::View<'_>) -> Result<bool, Error> {
        if self.builder.is_empty() {
            self.bytes -= self.builder.capacity(); // It is too small.
        }
        self.seal();
        let mut bytes = self.bytes.clamp(PAGE_BYTES, PAGE_BYTES_MAX);
        loop {
            let needed = self.bytes + bytes;
            let missing = (needed as u64).saturating_sub(self.room.bytes());
            if missing > 0 && !self.room.take(missing) {
                if self.len > 0 {
                    return Ok(false);
                }
                self.room.insist(missing)?;
            }
            self.builder = Builder::new(Memory::own(bytes), self.shape);
            match self.builder.push(&view) {
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
        self.bytes += bytes;
        Ok(true)
    }

    /// Ends the page in the making, so that all records can be seen.
    pub(crate) fn seal(&mut self) {
        if self.builder.is_empty() {
            return;
        }
        let nothing = Builder::new(Memory::own(0), self.shape);
        let builder = std::mem::replace(&mut self.builder, nothing);
        self.shape = builder.shape();
        self.pages.push(builder.into_page());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Pages of it, once it is sealed.
    pub(crate) fn pages(&self) -> &[Page<T>] {
        &self.pages
    }

    /// Forgets all records, and keeps some memory for others.
    pub(crate) fn clear(&mut self) {
        self.seal();
        if let Some(page) = self.pages.drain(..).next() {
            self.builder = Builder::new(Memory::Own(page.into_memory()), self.shape);
        }
        self.bytes = self.builder.capacity();
        self.len = 0;
        let kept = self.bytes.max(self.least);
        self.room.shrink_to(kept as u64);
    }
}
