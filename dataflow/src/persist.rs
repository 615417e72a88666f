//! Records that are kept once they were computed, and computed again where they were not, or are no more.
//!
//! A set that persists ends its stage in an exchange that leaves records where they are; its readers begin behind that. An
//! instance that finds its partition reads it there. One that does not reads the exchange, and keeps what comes. If no rank
//! misses a part, the tasks before the exchange are not made at all: see [`crate::demand`]. If some do, the others tell their
//! senders that they want nothing.
//!
//! A partition in memory gives way to what needs memory more, as long as nobody reads it.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use transport::{Buffer, Ledger, Offer, Rank, Reservation, Yielding};

use crate::{
    Error, Record,
    demand::{Kept, Look},
    exchange::{Direct, Outbox, Routed},
    graph::Extent,
    kept::{Computed, Keep},
    operator::narrow::Pass,
    pages::{At, PageWriter, Pages},
    spill::{self, Reader, Run, Writer},
    stage::{Input, Narrow, Place, Progress, Sink},
    tset::{Source, TSet},
};

/// Who keeps it, on the ledger.
const HOLDER: &str = "persist";
/// Bytes of a block on disk.
const BLOCK_BYTES: usize = 64 << 10;
/// Records of a block on disk that are pushed in one turn.
const PUSHED_A_TURN: usize = 1024;

/// Where a set that [persists](TSet::persist) is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// In memory. Partitions that there is no room for are not kept, and those that give way are dropped: they are computed
    /// again when they are read.
    Memory,
    /// In memory, as long as there is room. What gives way, and what there is no room for, is on disk.
    MemoryAndDisk,
    /// On disk.
    Disk,
}

impl<S, N> TSet<S, N>
where
    S: Source,
    N: Narrow<S::Out>,
{
    /// Keeps the records where they are once a job has read them: later jobs read what is kept, and do nothing of what comes
    /// before it. (As Spark's `persist` does; [`cache`](Self::cache) keeps them at once, in memory, and for good.)
    ///
    /// Where memory gets tight, partitions that nobody reads give way, those first that were used least recently: by
    /// [`Level`] to disk, or they are dropped. A partition that was dropped, or has never been read to its end, is computed
    /// again when it is next read, with all that it takes, and kept again; others are not. What computes it has to give
    /// the same each time: functions without chance, and no exchange in which time decides where records go
    /// ([`rebalance`](Self::rebalance)).
    ///
    /// All processes of a job have to persist the same. Files are those of [`spill`]: without names, and gone with the last
    /// clone of the set. The set has as many instances as the one before, and no others before its first exchange.
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
    /// use dataflow::{Level, collection, inline};
    ///
    /// let calls = Arc::new(AtomicU64::new(0));
    /// let counted = calls.clone();
    /// let squares = collection((1..=4u64).collect())
    ///     .map(move |n| { counted.fetch_add(1, Ordering::Relaxed); n * n })
    ///     .persist(Level::MemoryAndDisk);
    /// assert_eq!(inline(&squares.clone().count().first())?, Some(4));
    /// assert_eq!(inline(&squares.clone().filter(|n| n % 2 == 0).collect())?, [4, 16]);
    /// assert_eq!(calls.load(Ordering::Relaxed), 4);
    /// assert_eq!(squares.stored().in_memory, 1);
    /// squares.unpersist();
    /// assert_eq!(inline(&squares.collect())?, [1, 4, 9, 16]);
    /// assert_eq!(calls.load(Ordering::Relaxed), 8);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn persist(self, level: Level) -> TSet<Persisted<N::Out>, Pass> {
        let (placement, is_by_key) = (self.placement(), self.is_by_key());
        let store = Arc::new(Store {
            state: Mutex::new(State {
                level: Some(level),
                instances: 0,
                slots: BTreeMap::new(),
            }),
        });
        let mut node = self.end("persist", |place: &Place| {
            Ok(Routed::new(Outbox::to_each(place)?, Direct::new(place)))
        });
        node.kept = Some(store.clone());
        let persisted = Persisted { store, is_by_key };
        TSet::after(vec![node], persisted, "persisted").placed(placement)
    }
}

impl<T: Record, N> TSet<Persisted<T>, N> {
    /// Drops what this process keeps of the set, from memory and disk, and keeps nothing of it from now on: who reads it
    /// has it computed. Readers that have begun read on.
    pub fn unpersist(&self) {
        let mut state = self.source.store.lock();
        state.level = None;
        state.slots.clear();
    }

    /// What this process keeps of the set now.
    pub fn stored(&self) -> Stored {
        let mut stored = Stored::default();
        let slots: Vec<_> = self.source.store.lock().slots.values().cloned().collect();
        for slot in slots {
            match &*slot.lock() {
                Content::Nothing | Content::Coming => stored.missing += 1,
                Content::Memory { pages, .. } => {
                    stored.in_memory += 1;
                    stored.memory_bytes += pages.bytes();
                }
                Content::Disk(run) => {
                    stored.on_disk += 1;
                    stored.disk_bytes += run.disk_bytes();
                }
            }
        }
        stored
    }
}

/// What a process keeps of a set, of the partitions that it has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stored {
    /// Partitions in memory.
    pub in_memory: usize,
    /// Bytes of memory for them.
    pub memory_bytes: u64,
    /// Partitions on disk.
    pub on_disk: usize,
    /// Bytes of disk for them.
    pub disk_bytes: u64,
    /// Partitions that were read and are not kept.
    pub missing: usize,
}

/// The source of a set that [persists](TSet::persist).
pub struct Persisted<T> {
    store: Arc<Store<T>>,
    is_by_key: bool,
}

impl<T> fmt::Debug for Persisted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Persisted")
    }
}

/// The partitions of a set in this process.
struct Store<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    /// None once it is not kept any more.
    level: Option<Level>,
    /// How many instances there are in all.
    instances: u32,
    slots: BTreeMap<u32, Arc<Slot<T>>>,
}

impl<T: Record> Store<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place of a partition. What was kept of another number of partitions is dropped: it is divided in another way.
    fn slot(&self, instance: u32, instances: u32) -> Arc<Slot<T>> {
        let mut state = self.lock();
        if state.instances != instances {
            state.instances = instances;
            state.slots.clear();
        }
        state.slots.entry(instance).or_default().clone()
    }
}

impl<T: Record> Kept for Store<T> {
    fn look(&self, instances: Vec<u32>, of: u32) -> Box<dyn Look> {
        let slots = instances
            .into_iter()
            .map(|instance| self.slot(instance, of));
        Box::new(Found(slots.map(|slot| slot.hold()).collect()))
    }

    fn is_needed(&self, found: &[Vec<u64>]) -> Result<bool, Error> {
        Ok(found.iter().any(|missing| missing[..] != [0]))
    }
}

/// What there is of partitions, which stays as long as this does.
struct Found<T>(Vec<Option<Held<T>>>);

impl<T> Look for Found<T> {
    fn poll(&mut self) -> Result<Option<Vec<u64>>, Error> {
        let missing = self.0.iter().filter(|held| held.is_none()).count();
        Ok(Some(vec![missing as u64]))
    }
}

/// A partition that somebody reads.
#[derive(Debug)]
enum Held<T> {
    Memory(Arc<Pages<T>>),
    Disk(Arc<Run>),
}

/// The place of a partition.
struct Slot<T> {
    content: Mutex<Content<T>>,
    /// When it was read last, by the ledger's clock.
    used: AtomicU64,
    /// Bytes that were written to disk to make room, and that nobody was told of.
    written: AtomicU64,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self {
            content: Mutex::new(Content::Nothing),
            used: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }
}

enum Content<T> {
    Nothing,
    /// An instance is keeping it.
    Coming,
    Memory {
        pages: Arc<Pages<T>>,
        /// What the ledger asks for them.
        _evictable: Arc<dyn Yielding>,
    },
    Disk(Arc<Run>),
}

impl<T: Record> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, Content<T>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The partition, if it is there. It is as long as somebody has it.
    fn hold(&self) -> Option<Held<T>> {
        match &*self.lock() {
            Content::Nothing | Content::Coming => None,
            Content::Memory { pages, .. } => Some(Held::Memory(pages.clone())),
            Content::Disk(run) => Some(Held::Disk(run.clone())),
        }
    }

    fn put(&self, content: Content<T>) {
        *self.lock() = content;
    }
}

/// A partition in memory that can give way.
struct Evictable<T> {
    slot: Weak<Slot<T>>,
    /// Where to; dropped if it cannot go there.
    spill: Option<(PathBuf, spill::Compression)>,
}

impl<T: Record> Yielding for Evictable<T> {
    fn offer(&self) -> Option<Offer> {
        let slot = self.slot.upgrade()?;
        let content = slot.content.try_lock().ok()?;
        let Content::Memory { pages, .. } = &*content else {
            return None;
        };
        let list = self
            .spill
            .as_ref()
            .map(|_| Run::list_bytes(pages.iter().count()));
        (Arc::strong_count(pages) == 1).then(|| Offer {
            bytes: pages.bytes().saturating_sub(list.unwrap_or(0)),
            used: slot.used.load(Ordering::Relaxed),
        })
    }

    fn give_way(&self) -> bool {
        let Some(slot) = self.slot.upgrade() else {
            return false;
        };
        let Ok(mut content) = slot.content.try_lock() else {
            return false;
        };
        // Nobody else can get hold of the pages while we have the lock.
        match &*content {
            Content::Memory { pages, .. } if Arc::strong_count(pages) == 1 => {}
            _ => return false,
        }
        let taken = std::mem::replace(&mut *content, Content::Nothing);
        let Content::Memory { pages, .. } = taken else {
            return false;
        };
        // If the disk takes nothing, the partition is computed again.
        if let Some((directory, compression)) = &self.spill
            && let Ok(pages) = Arc::try_unwrap(pages)
            && let Ok(run) = to_disk(directory, pages, *compression)
        {
            slot.written.fetch_add(run.disk_bytes(), Ordering::Relaxed);
            *content = Content::Disk(Arc::new(run));
        }
        true
    }
}

/// Writes pages to disk, and gives their memory back.
fn to_disk<T: Record>(
    directory: &std::path::Path,
    pages: Pages<T>,
    compression: spill::Compression,
) -> Result<Run, Error> {
    let file = spill::File::new(directory, HOLDER)?;
    let (pages, reservation) = pages.into_parts();
    Run::of_pages(file, pages, compression, reservation)
}

impl<T: Record> Source for Persisted<T> {
    type Input = Recall<T>;
    type Out = T;

    fn extent(&self) -> Extent {
        Extent::AtEnd
    }

    fn is_by_key(&self) -> bool {
        self.is_by_key
    }

    fn build(&self, place: &Place) -> Result<Recall<T>, Error> {
        let made_by = place.wiring.senders.first().copied().unwrap_or(0);
        if made_by != 0 && made_by != place.instances {
            return Err(Error::NotCachedHere {
                instance: place.instance,
                instances: place.instances,
                cached: made_by,
            });
        }
        let slot = self.store.slot(place.instance, place.instances);
        slot.used.store(place.ledger.now(), Ordering::Relaxed);
        place
            .counters
            .spilled(slot.written.swap(0, Ordering::Relaxed));
        let way = match slot.hold() {
            Some(Held::Memory(pages)) => Way::Memory(pages, At::default()),
            Some(Held::Disk(run)) => Way::Disk {
                _reservation: place.ledger.reserve(HOLDER, run.reader_bytes() as u64)?,
                reader: Reader::new(&run, run.start(), run.end()).inspect_err(|_| {
                    slot.put(Content::Nothing);
                })?,
                read: 0,
            },
            None if made_by == 0 => {
                return Err(Error::NotCachedHere {
                    instance: place.instance,
                    instances: place.instances,
                    cached: 0,
                });
            }
            None => Way::Computed(Computed::new(
                place,
                Keeper::new(&self.store, &slot, place)?,
            )),
        };
        Ok(Recall {
            way,
            slot,
            place: place.clone(),
        })
    }
}

/// Reads the partition of an instance, or has it computed and keeps it.
pub struct Recall<T: Record> {
    way: Way<T>,
    slot: Arc<Slot<T>>,
    place: Place,
}

enum Way<T: Record> {
    Memory(Arc<Pages<T>>, At),
    Disk {
        reader: Reader<T>,
        read: u64,
        _reservation: Reservation,
    },
    Computed(Computed<T, Keeper<T>>),
}

impl<T: Record> Input for Recall<T> {
    type Out = T;

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        match &mut self.way {
            Way::Computed(computed) => computed.receive(port, from, batch),
            _ => Ok(()), // It was sent before its sender could know.
        }
    }

    fn ended(&mut self, port: usize, from: Rank) {
        if let Way::Computed(computed) = &mut self.way {
            computed.ended(port, from);
        }
    }

    fn is_reading(&self) -> bool {
        matches!(self.way, Way::Computed(_))
    }

    fn poll<D: Sink<T>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        match &mut self.way {
            Way::Memory(pages, at) => {
                let Some(pushed) = pages.push_on(at, down) else {
                    return Ok(Progress::Done);
                };
                self.place.counters.read(pushed, 0);
                Ok(Progress::Made)
            }
            Way::Disk { reader, read, .. } => {
                let before = *read;
                let progress = read_on(reader, read, down).inspect_err(|_| {
                    // The next to read it has it computed.
                    self.slot.put(Content::Nothing);
                });
                self.place.counters.read(*read - before, 0);
                progress
            }
            Way::Computed(computed) => computed.poll(down, &self.place),
        }
    }

    fn last(&self) -> String {
        match &self.way {
            Way::Memory(pages, at) => pages.name(at, "what persists"),
            Way::Disk { read, .. } => {
                format!(
                    "record {} of its partition of what persists",
                    read.wrapping_sub(1)
                )
            }
            Way::Computed(computed) => computed.last(),
        }
    }
}

/// Pushes some more of what is on disk.
pub(crate) fn read_on<T: Record, D: Sink<T>>(
    reader: &mut Reader<T>,
    read: &mut u64,
    down: &mut D,
) -> Result<Progress, Error> {
    for _ in 0..PUSHED_A_TURN {
        if down.is_full() {
            break;
        }
        let Some(view) = reader.view() else {
            return Ok(Progress::Done);
        };
        down.push(view);
        *read += 1;
        reader.advance()?;
    }
    Ok(Progress::Made)
}

impl<T: Record> fmt::Debug for Recall<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recall")
            .field("is_reading", &self.is_reading())
            .finish_non_exhaustive()
    }
}

/// Keeps the records of a partition as they come. Dropped before all have come, it keeps nothing.
struct Keeper<T: Record> {
    level: Level,
    slot: Arc<Slot<T>>,
    medium: Option<Medium<T>>,
    directory: PathBuf,
    compression: spill::Compression,
    ledger: Ledger,
    error: Option<Error>,
}

enum Medium<T> {
    Memory(PageWriter<T>),
    Disk(Box<Writer<T>>),
}

impl<T: Record> Keeper<T> {
    /// Who keeps a partition; none if it is not to be kept, or another reader does so already.
    fn new(
        store: &Store<T>,
        slot: &Arc<Slot<T>>,
        place: &Place,
    ) -> Result<Option<Box<Self>>, Error> {
        let Some(level) = store.lock().level else {
            return Ok(None);
        };
        let mut content = slot.lock();
        if !matches!(*content, Content::Nothing) {
            return Ok(None);
        }
        let directories = &place.spill.directories;
        let mut keeper = Self {
            level,
            slot: slot.clone(),
            medium: None,
            directory: directories[place.rank as usize % directories.len()].clone(),
            compression: place.spill.compression,
            ledger: place.ledger.clone(),
            error: None,
        };
        *content = Content::Coming;
        drop(content);
        keeper.medium = Some(match level {
            Level::Disk => Medium::Disk(Box::new(keeper.writer(None)?)),
            _ => Medium::Memory(PageWriter::new(place, HOLDER, true)?),
        });
        Ok(Some(Box::new(keeper)))
    }

    /// Writes to disk what follows on what is there.
    fn writer(&self, behind: Option<Run>) -> Result<Writer<T>, Error> {
        let mut writer = Writer::new(&self.ledger, HOLDER, BLOCK_BYTES, self.compression)?;
        match behind {
            Some(run) => writer.resume(run),
            None => writer.start(Arc::new(spill::File::new(&self.directory, HOLDER)?)),
        }
        Ok(writer)
    }

    /// There is no room for a record where others are.
    #[cold]
    fn push_elsewhere(&mut self, view: T::View<'_>, error: Option<Error>) {
        let medium = self.medium.take();
        if let Some(error) = error {
            self.fail(error);
            return;
        }
        // Without room for it at all, the partition is not kept.
        let (Some(Medium::Memory(pages)), Level::MemoryAndDisk) = (medium, self.level) else {
            return;
        };
        let moved = to_disk(&self.directory, pages.finish(), self.compression);
        let written = moved.and_then(|run| {
            let mut writer = self.writer(Some(run))?;
            writer.push(&view, 0)?;
            Ok(writer)
        });
        match written {
            Ok(writer) => self.medium = Some(Medium::Disk(Box::new(writer))),
            Err(error) => self.fail(error),
        }
    }

    /// Keeps nothing of the partition. That there is no room for it is no reason for readers to fail.
    fn fail(&mut self, error: Error) {
        let is_full = matches!(
            error,
            Error::Transport(transport::Error::LedgerLimit { .. })
        );
        if !is_full {
            self.error.get_or_insert(error);
        }
    }

    /// Has the ledger ask for the partition when others need its memory.
    fn evictable(&self) -> Arc<dyn Yielding> {
        let to_disk = self.level == Level::MemoryAndDisk;
        let evictable: Arc<dyn Yielding> = Arc::new(Evictable {
            slot: Arc::downgrade(&self.slot),
            spill: to_disk.then(|| (self.directory.clone(), self.compression)),
        });
        self.ledger.register(&evictable);
        evictable
    }
}

impl<T: Record> Keep<T> for Keeper<T> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        let pushed = match &mut self.medium {
            Some(Medium::Memory(writer)) => writer.push(T::shorten(view)),
            Some(Medium::Disk(writer)) => writer.push(&T::shorten(view), 0).map(|()| true),
            None => return,
        };
        if !matches!(pushed, Ok(true)) {
            self.push_elsewhere(view, pushed.err());
        }
    }

    fn has_failed(&self) -> bool {
        self.error.is_some()
    }

    fn failure(&mut self) -> Option<Error> {
        self.error.take()
    }

    fn finish(mut self, place: &Place) -> Result<(), Error> {
        let content = match self.medium.take() {
            None => return Ok(()),
            Some(Medium::Memory(writer)) => Content::Memory {
                pages: Arc::new(writer.finish()),
                _evictable: self.evictable(),
            },
            Some(Medium::Disk(mut writer)) => {
                let run = writer.finish()?;
                place.counters.spilled(run.disk_bytes());
                Content::Disk(run)
            }
        };
        self.slot.put(content);
        Ok(())
    }
}

impl<T: Record> Drop for Keeper<T> {
    fn drop(&mut self) {
        let mut content = self.slot.lock();
        if matches!(*content, Content::Coming) {
            *content = Content::Nothing;
        }
    }
}
