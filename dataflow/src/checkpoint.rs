//! Records that are written to files once they were computed, for programs that are started again.
//!
//! It works as [`crate::persist`] does, but the parts are files with names, in a folder:
//!
//! ```text
//! folder/generation-00000001/plan          what it is of, and in how many parts
//!                            part-00000    blocks, their list, and a trailer that tells where that is
//! ```
//!
//! A part gets its name when all of it is on the disk. All parts of a generation were written by one run. It is complete when
//! each part is there and is what was written, of which every rank convinces itself for those that its instances read, by the
//! checksums of all bytes. So nothing has to be agreed on when it is written, however it ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use transport::{Buffer, Ledger, Rank, Reservation};

use crate::{
    Error, Record,
    demand::{Kept, Look},
    exchange::{Direct, Outbox, Routed},
    graph::{Extent, Graph},
    kept::{Computed, Keep},
    operator::narrow::Pass,
    persist::read_on,
    spill::{File, INDEX_BYTES, Reader, Run, Writer},
    stage::{Input, Narrow, Place, Progress, Sink},
    tset::{BETWEEN, Source, TSet},
};

/// Who writes it, for errors and the ledger.
const HOLDER: &str = "checkpoint";
/// Bytes of a block.
const BLOCK_BYTES: usize = 64 << 10;
/// Bytes that are checked in one turn, between which messages are looked for.
const CHECKED_A_TURN: usize = 4 << 20;
/// Generations that are looked at, the newest first.
const GENERATIONS_MAX: usize = 4;
/// What the names of their folders begin with.
const GENERATION: &str = "generation-";

impl<S, N> TSet<S, N>
where
    S: Source,
    N: Narrow<S::Out>,
{
    /// Writes the records to `folder`, each instance to a file of its own, when a job first reads them to their end; and where
    /// they are there, from an earlier run or an earlier start of the program, reads them and does nothing of what comes
    /// before.
    ///
    /// A part that is torn, changed by as much as a bit, or missing is found out: then the newest generation is used that is
    /// complete, and if there is none all is computed again, and written as another generation. Of the stage that is written, the names and the order of
    /// its operators, its sources and the type of the records are known, but not what its functions do: who changes that takes another folder.
    /// If it is another stage that is in the folder, the job fails with [`Error::CheckpointOfOther`]; if it has
    /// another number of instances, it is computed again.
    ///
    /// The folder has to be the same for all workers, on a file system that they share if they are on several machines, and
    /// belongs to one job at a time. When a generation is used, those before it are removed.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let folder = std::env::temp_dir().join(format!("checkpoint-{}", std::process::id()));
    /// let squares = || collection((1..=4u64).collect()).map(|n| n * n).checkpoint(&folder);
    /// assert_eq!(inline(&squares().collect())?, [1, 4, 9, 16]);
    /// // As if the program was started again.
    /// let job = squares().filter(|n| n % 2 == 0).collect();
    /// assert_eq!(inline(&job)?, [4, 16]);
    /// std::fs::remove_dir_all(&folder).unwrap();
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn checkpoint(self, folder: impl AsRef<Path>) -> TSet<Checkpointed<N::Out>, Pass> {
        let (placement, is_by_key) = (self.placement(), self.is_by_key());
        let mut node = self.end("checkpoint", |place: &Place| {
            Ok(Routed::new(Outbox::to_each(place)?, Direct::new(place)))
        });
        let before = Graph::of(&node.inputs).plan();
        let plan = format!("{before} | {}", node.name);
        let store = Arc::new(Store {
            folder: folder.as_ref().to_owned(),
            plan: format!(
                "{} of {}",
                plan.trim_start_matches(" | ").replace('\n', " "),
                std::any::type_name::<N::Out>()
            ),
            state: Mutex::default(),
        });
        node.kept = Some(Arc::new(store.clone()));
        let source = Checkpointed {
            store,
            is_by_key,
            record: std::marker::PhantomData,
        };
        TSet::after(vec![node], source, format!("checkpoint{BETWEEN}read")).placed(placement)
    }
}

/// The source of a set that has a [checkpoint](TSet::checkpoint).
pub struct Checkpointed<T> {
    store: Arc<Store>,
    is_by_key: bool,
    record: std::marker::PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Checkpointed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpointed")
            .field("folder", &self.store.folder)
            .finish_non_exhaustive()
    }
}

/// A checkpoint, as a process knows it.
struct Store {
    folder: PathBuf,
    /// What it is of.
    plan: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Parts that this process knows to be what was written, by generation and number.
    parts: BTreeMap<(u64, u32), Arc<Run>>,
    /// What all ranks have come to: the generation that is read, and the one that is written if there is none.
    read: Option<u64>,
    write: u64,
    /// Parts that are being written, so that of several readers one does.
    written: BTreeSet<u32>,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Checkpoint {
        action,
        path,
        source,
    }
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn generation(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{GENERATION}{number:08}"))
    }

    fn part(&self, generation: u64, part: u32) -> PathBuf {
        self.generation(generation).join(format!("part-{part:05}"))
    }

    /// A number that stands for what it is of.
    fn hash(&self) -> u64 {
        let bytes = self.plan.as_bytes();
        let mut backwards = bytes.to_vec();
        backwards.reverse();
        u64::from(crc32fast::hash(bytes)) << 32 | u64::from(crc32fast::hash(&backwards))
    }

    /// The generations that are there, complete or not, the newest first.
    fn generations(&self) -> Result<Vec<u64>, Error> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("list", &self.folder))?,
        };
        let mut generations = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed("list", &self.folder))?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(GENERATION));
            generations.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        generations.sort_unstable_by(|one, other| other.cmp(one));
        Ok(generations)
    }

    /// What the file `plan` says.
    fn manifest(&self, parts: u32) -> String {
        let text = format!("parts {parts}\nplan {}\n", self.plan);
        format!("{text}checksum {:08x}\n", crc32fast::hash(text.as_bytes()))
    }

    /// Whether a generation is of this stage, in so many parts; not if nothing is known of it.
    fn is_of_this(&self, generation: u64, parts: u32) -> Result<bool, Error> {
        let path = self.generation(generation).join("plan");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            text => text.map_err(failed("read", &path))?,
        };
        if text == self.manifest(parts).as_bytes() {
            return Ok(true);
        }
        let Some(plan) = String::from_utf8(text).ok().and_then(parse_manifest) else {
            return Ok(false);
        };
        if plan == self.plan {
            return Ok(false); // In another number of parts.
        }
        Err(Error::CheckpointOfOther {
            folder: self.folder.clone(),
            theirs: plan,
            ours: self.plan.clone(),
        })
    }

    /// Opens a part, if it has a name and its trailer and list are what was written.
    fn open(&self, generation: u64, part: u32, parts: u32) -> Result<Option<Run>, Error> {
        let path = self.part(generation, part);
        if !path.exists() {
            return Ok(None);
        }
        let file = File::named(&path, HOLDER, false)?;
        let mut trailer = [0; TRAILER_BYTES];
        let Some(end) = file.len().checked_sub(TRAILER_BYTES as u64) else {
            return Ok(None);
        };
        if file.read_at(&mut trailer, end).is_err() {
            return Ok(None);
        }
        let word = |at: usize| {
            let bytes = trailer[at..at + 8].try_into().unwrap_or_default();
            u64::from_le_bytes(bytes)
        };
        let (body, checksum) = (word(BODY_AT), word(CHECKSUM_AT));
        let expected = self.trailer(generation, part, parts, body, checksum);
        let Some(index_bytes) = end.checked_sub(body).filter(|_| trailer == expected) else {
            return Ok(None);
        };
        // The trailer is right, and so is what it says of the size of the list.
        let mut index = vec![0; index_bytes as usize];
        let read = file.read_at(&mut index, body);
        if read.is_err() || u64::from(crc32fast::hash(&index)) != checksum {
            return Ok(None);
        }
        // The list is on no ledger until somebody reads it: it is a thousandth of what it lists.
        let reservation = Ledger::new(index.len() as u64 * 4).reserve(HOLDER, 0)?;
        Ok(Run::indexed(Arc::new(file), &index, body, reservation))
    }

    /// The last bytes of a part: the list of blocks is behind `body` bytes, and has this checksum.
    fn trailer(
        &self,
        generation: u64,
        part: u32,
        parts: u32,
        body: u64,
        checksum: u64,
    ) -> [u8; TRAILER_BYTES] {
        let of = u64::from(part) << 32 | u64::from(parts);
        let words = [MAGIC, self.hash(), generation, of, body, checksum];
        let mut trailer = [0; TRAILER_BYTES];
        for (place, word) in trailer.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let sum = crc32fast::hash(&trailer[..TRAILER_BYTES - 8]);
        trailer[TRAILER_BYTES - 8..].copy_from_slice(&u64::from(sum).to_le_bytes());
        trailer
    }

    /// Removes what is older than the generation that is read. What cannot be removed is in nobody's way.
    fn remove_before(&self, generation: u64) {
        for older in self.generations().unwrap_or_default() {
            if older < generation {
                let _ = fs::remove_dir_all(self.generation(older));
            }
        }
    }
}

/// What a trailer begins with: the name and number of the format.
const MAGIC: u64 = u64::from_le_bytes(*b"updraft\x01");
const TRAILER_BYTES: usize = 56;
const BODY_AT: usize = 32;
const CHECKSUM_AT: usize = 40;

/// The plan that the file of that name tells, if it is whole.
fn parse_manifest(text: String) -> Option<String> {
    let (told, checksum) = text.split_at(text.rfind("checksum ")?);
    let sum = format!("checksum {:08x}\n", crc32fast::hash(told.as_bytes()));
    if checksum != sum {
        return None;
    }
    let (_parts, plan) = told.strip_prefix("parts ")?.split_once("\nplan ")?;
    plan.strip_suffix('\n').map(str::to_owned)
}

impl Kept for Arc<Store> {
    fn look(&self, instances: Vec<u32>, of: u32) -> Box<dyn Look> {
        Box::new(Looking {
            store: self.clone(),
            instances,
            of,
            generations: None,
            newest: 0,
            valid: Vec::new(),
            checking: None,
            memory: Vec::new(),
        })
    }

    fn is_needed(&self, found: &[Vec<u64>]) -> Result<bool, Error> {
        let newest = found.iter().filter_map(|words| words.first()).max();
        let valid = |generation: &&u64| {
            let is_there = |words: &Vec<u64>| words.iter().skip(1).any(|word| word == *generation);
            found.iter().all(is_there)
        };
        let first = found
            .first()
            .map_or(&[][..], |words| words.get(1..).unwrap_or_default());
        let mut state = self.lock();
        state.read = first.iter().filter(valid).max().copied();
        state.write = newest.map_or(1, |newest| newest.saturating_add(1));
        let kept = state.read;
        state
            .parts
            .retain(|(generation, _), _| Some(*generation) == kept);
        Ok(state.read.is_none())
    }
}

/// A rank's look for complete generations.
struct Looking {
    store: Arc<Store>,
    instances: Vec<u32>,
    of: u32,
    /// Generations that are still to be looked at, the next one last.
    generations: Option<Vec<u64>>,
    newest: u64,
    /// Those of which all parts that are read here are what was written.
    valid: Vec<u64>,
    checking: Option<Checking>,
    memory: Vec<u8>,
}

/// Parts of a generation that are being read to see whether they are right.
struct Checking {
    generation: u64,
    /// Instances whose parts are still to be opened.
    left: Vec<u32>,
    open: Option<(u32, Run, usize)>,
}

impl Look for Looking {
    fn poll(&mut self) -> Result<Option<Vec<u64>>, Error> {
        let generations = match &mut self.generations {
            Some(generations) => generations,
            None => {
                let mut generations = self.store.generations()?;
                self.newest = generations.first().copied().unwrap_or(0);
                generations.truncate(GENERATIONS_MAX);
                generations.reverse();
                self.generations.insert(generations)
            }
        };
        if let Some(checking) = &mut self.checking {
            match checking.go_on(&self.store, self.of, &mut self.memory)? {
                None => return Ok(None),
                Some(true) => self.valid.push(checking.generation),
                Some(false) => {}
            }
            self.checking = None;
            return Ok(None);
        }
        while let Some(generation) = generations.pop() {
            if self.store.is_of_this(generation, self.of)? {
                self.checking = Some(Checking {
                    generation,
                    left: self.instances.clone(),
                    open: None,
                });
                return Ok(None);
            }
        }
        self.memory = Vec::new();
        let valid = self.valid.iter().copied();
        Ok(Some([self.newest].into_iter().chain(valid).collect()))
    }
}

impl Checking {
    /// Checks some more; whether all parts are right, once that is known.
    fn go_on(
        &mut self,
        store: &Store,
        parts: u32,
        memory: &mut Vec<u8>,
    ) -> Result<Option<bool>, Error> {
        let mut checked = 0;
        while checked < CHECKED_A_TURN {
            if let Some((part, run, block)) = &mut self.open {
                if *block < run.blocks() {
                    match run.check(*block, memory) {
                        Ok(bytes) => checked += bytes,
                        Err(Error::SpillDamaged { .. }) => return Ok(Some(false)),
                        Err(error) => return Err(error),
                    }
                    *block += 1;
                    continue;
                }
                let part = *part;
                if let Some((_, run, _)) = self.open.take() {
                    let key = (self.generation, part);
                    store.lock().parts.insert(key, Arc::new(run));
                }
            }
            let Some(part) = self.left.pop() else {
                return Ok(Some(true));
            };
            if store.lock().parts.contains_key(&(self.generation, part)) {
                continue;
            }
            match store.open(self.generation, part, parts)? {
                Some(run) => self.open = Some((part, run, 0)),
                None => return Ok(Some(false)),
            }
        }
        Ok(None)
    }
}

impl<T: Record> Source for Checkpointed<T> {
    type Input = Restored<T>;
    type Out = T;

    fn extent(&self) -> Extent {
        Extent::AtEnd
    }

    fn is_by_key(&self) -> bool {
        self.is_by_key
    }

    fn build(&self, place: &Place) -> Result<Restored<T>, Error> {
        let made_by = place.wiring.senders.first().copied().unwrap_or(0);
        let elsewhere = |cached| Error::NotCachedHere {
            instance: place.instance,
            instances: place.instances,
            cached,
        };
        if made_by != 0 && made_by != place.instances {
            return Err(elsewhere(made_by));
        }
        let (read, write) = {
            let state = self.store.lock();
            (state.read, state.write)
        };
        let way = match read {
            Some(generation) => {
                if place.instance == 0 {
                    self.store.remove_before(generation);
                }
                let key = (generation, place.instance);
                let run = self.store.lock().parts.get(&key).cloned();
                let run = run.ok_or_else(|| elsewhere(0))?;
                let list = run.blocks() as u64 * 2 * INDEX_BYTES as u64;
                let needed = run.reader_bytes() as u64 + list;
                Way::Read {
                    _reservation: place.ledger.reserve(HOLDER, needed)?,
                    reader: Reader::new(&run, run.start(), run.end())?,
                    key: (generation, place.instance),
                    read: 0,
                }
            }
            None => Way::Computed(Computed::new(
                place,
                Part::new(&self.store, write, place)?.map(Box::new),
            )),
        };
        Ok(Restored {
            way,
            store: self.store.clone(),
            place: place.clone(),
        })
    }
}

/// Reads the part of an instance, or has it computed and writes it.
pub struct Restored<T: Record> {
    way: Way<T>,
    store: Arc<Store>,
    place: Place,
}

enum Way<T: Record> {
    Read {
        reader: Reader<T>,
        key: (u64, u32),
        read: u64,
        _reservation: Reservation,
    },
    Computed(Computed<T, Part<T>>),
}

impl<T: Record> Input for Restored<T> {
    type Out = T;

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        match &mut self.way {
            Way::Computed(computed) => computed.receive(port, from, batch),
            Way::Read { .. } => Ok(()), // It was sent before its sender could know.
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
            Way::Read {
                reader, key, read, ..
            } => {
                let before = *read;
                let progress = read_on(reader, read, down).inspect_err(|_| {
                    // The next to read it checks it anew.
                    self.store.lock().parts.remove(key);
                });
                self.place.counters.read(*read - before, 0);
                progress
            }
            Way::Computed(computed) => computed.poll(down, &self.place),
        }
    }

    fn last(&self) -> String {
        match &self.way {
            Way::Read { key, read, .. } => {
                let path = self.store.part(key.0, key.1);
                format!("record {} of {}", read.wrapping_sub(1), path.display())
            }
            Way::Computed(computed) => computed.last(),
        }
    }
}

impl<T: Record> fmt::Debug for Restored<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restored")
            .field("is_reading", &self.is_reading())
            .finish_non_exhaustive()
    }
}

/// A part that is being written. Dropped before it is finished, it leaves no file.
struct Part<T: Record> {
    store: Arc<Store>,
    writer: Writer<T>,
    generation: u64,
    part: u32,
    parts: u32,
    /// Where it is until it is finished.
    hidden: PathBuf,
    error: Option<Error>,
}

impl<T: Record> Part<T> {
    /// Begins to write; none if another reader does so.
    fn new(store: &Arc<Store>, generation: u64, place: &Place) -> Result<Option<Self>, Error> {
        let folder = store.generation(generation);
        fs::create_dir_all(&folder).map_err(failed("write", &folder))?;
        let name = format!(".part-{:05}.{}", place.instance, process::id());
        let hidden = folder.join(name);
        if !store.lock().written.insert(place.instance) {
            return Ok(None);
        }
        let begin = || {
            let compression = place.spill.compression;
            let mut writer = Writer::new(&place.ledger, HOLDER, BLOCK_BYTES, compression)?;
            writer.start(Arc::new(File::named(&hidden, HOLDER, true)?));
            Ok(writer)
        };
        let writer = begin().inspect_err(|_: &Error| {
            store.lock().written.remove(&place.instance);
        })?;
        Ok(Some(Self {
            store: store.clone(),
            writer,
            generation,
            part: place.instance,
            parts: place.instances,
            hidden,
            error: None,
        }))
    }
}

/// Writes a small file whole, or not at all.
fn write_named(hidden: &Path, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut file = fs::File::create(hidden)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(hidden, path)
    };
    write().map_err(failed("write", path))
}

/// Has the names in a folder on the disk.
fn sync_folder(folder: &Path) -> Result<(), Error> {
    let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(failed("write", folder))
}

impl<T: Record> Keep<T> for Part<T> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        if let Err(error) = self.writer.push(&view, 0) {
            self.error.get_or_insert(error);
        }
    }

    fn has_failed(&self) -> bool {
        self.error.is_some()
    }

    fn failure(&mut self) -> Option<Error> {
        self.error.take()
    }

    /// Has them on the disk, and gives the part its name.
    fn finish(mut self, _place: &Place) -> Result<(), Error> {
        let run = self.writer.finish()?;
        let (body, index) = (run.file().len(), run.index());
        let checksum = u64::from(crc32fast::hash(&index));
        let (store, generation) = (&self.store, self.generation);
        let trailer = store.trailer(generation, self.part, self.parts, body, checksum);
        run.file().append(&[&index[..], &trailer].concat())?;
        run.file().sync()?;
        let folder = store.generation(generation);
        if self.part == 0 {
            let hidden = folder.join(format!(".plan.{}", process::id()));
            let manifest = store.manifest(self.parts);
            write_named(&hidden, &folder.join("plan"), manifest.as_bytes())?;
        }
        let path = store.part(generation, self.part);
        fs::rename(&self.hidden, &path).map_err(failed("write", &path))?;
        sync_folder(&folder)?;
        sync_folder(&store.folder)?;
        // As one that was found: what stays when the run is over is not on its ledger.
        drop(run);
        if let Some(run) = store.open(generation, self.part, self.parts)? {
            let key = (generation, self.part);
            store.lock().parts.insert(key, Arc::new(run));
        }
        Ok(())
    }
}

impl<T: Record> Drop for Part<T> {
    fn drop(&mut self) {
        // It is there no more if it has got its name.
        let _ = fs::remove_file(&self.hidden);
        self.store.lock().written.remove(&self.part);
    }
}
