//! The bare hand-over of memory between two processors: the least that any message over shared memory costs.
//!
//! # Invariant
//!
//! Each side owns one word, which counts its turns, and a payload of its own. A side writes its payload
//! before it moves its word, and not again before the other side's word has caught up; the other reads
//! the payload after it has seen the word move, and before it moves its own. So at every moment a
//! payload belongs to one side. Each side is claimed once, by an atomic exchange.

use std::{
    fmt,
    fs::File,
    hint::black_box,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process,
};

use memmap2::{MmapOptions, MmapRaw};
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::fstat,
    },
    unistd::ftruncate,
};

use crate::{
    Error,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// Where the words of the two sides are, the claims on them, and the first payload.
const WORDS_AT: [usize; 2] = [0, 256];
const CLAIMS_AT: [usize; 2] = [512, 516];
const PAYLOADS_AT: usize = 4096;
/// Payloads up to this size lie in the line of the word.
const BESIDE_THE_WORD: usize = 56;
/// Bytes that are copied at a time: few, because more are copied by an instruction that is slow on some processors.
const PIECE: usize = 1024;
/// Looks at the other side's word after which it is given up: some seconds, as one takes 10 ns or more.
const LOOKS_MAX: u64 = 1 << 28;

const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_SEAL);

/// How a payload is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stores {
    /// Into the writer's cache, from which the reader's fetches it.
    Plain,
    /// Past the caches to the memory: better between far cores, worse between near ones. Where the
    /// processor has no such stores, as [`Plain`](Self::Plain).
    Streaming,
}

/// One side of two that hand memory to each other and do nothing else, each spinning on its own core: the
/// floor under every shared-memory transport, to be measured beside it.
///
/// ```
/// use std::thread;
/// use transport::{Handover, Stores};
///
/// let mut lead = Handover::lead(1024)?;
/// let path = lead.path();
/// let answers = thread::spawn(move || Handover::follow(&path)?.round_trips(3, 1024, Stores::Plain));
/// lead.round_trips(3, 1024, Stores::Plain)?;
/// answers.join().unwrap()?;
/// # Ok::<(), transport::Error>(())
/// ```
pub struct Handover {
    map: MmapRaw,
    fd: OwnedFd,
    /// 0 leads, 1 follows.
    side: usize,
    /// What our word says.
    turn: u64,
    payload_bytes_max: usize,
}

impl Handover {
    /// The side that begins, with room for payloads of `bytes_max` bytes. The memory has no name and goes
    /// with the last who holds it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system gives no memory.
    pub fn lead(bytes_max: usize) -> Result<Self, Error> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"updraft-handover", flags)
            .map_err(Error::os("create memory to hand over"))?;
        let bytes = (bytes_max.max(1))
            .checked_next_multiple_of(4096)
            .and_then(|payload| payload.checked_mul(2)?.checked_add(PAYLOADS_AT))
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or(i64::MAX);
        ftruncate(&fd, bytes).map_err(Error::os("size memory to hand over"))?;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(SEALS)).map_err(Error::os("seal memory to hand over"))?;
        Self::claim(fd, 0)
    }

    /// The side that answers, in this process or another: `path` is the [`path`](Self::path) of the first.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when there is no such memory, or it has two sides already.
    pub fn follow(path: &Path) -> Result<Self, Error> {
        let action = "open memory to hand over";
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::io(action))?;
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(Error::os(action))?;
        if !SealFlag::from_bits_truncate(seals).contains(SEALS) {
            return Err(failed(action, "it is not sealed"));
        }
        Self::claim(file.into(), 1)
    }

    fn claim(fd: OwnedFd, side: usize) -> Result<Self, Error> {
        let action = "map memory to hand over";
        let bytes = fstat(&fd).map_err(Error::os(action))?.st_size;
        let bytes = usize::try_from(bytes).unwrap_or(0);
        if bytes <= PAYLOADS_AT {
            return Err(failed(action, "it is too short"));
        }
        let map = MmapOptions::new()
            .len(bytes)
            .map_raw(&fd)
            .map_err(Error::io(action))?;
        // As an arena does.
        let _ = map.advise(memmap2::Advice::HugePage);
        let handover = Self {
            payload_bytes_max: (bytes - PAYLOADS_AT) / 2,
            map,
            fd,
            side,
            turn: 0,
        };
        let claim = handover.at(CLAIMS_AT[side]).cast::<AtomicU32>();
        // SAFETY: the mapping is longer than its first page and lives as long as we do; the offset is
        // aligned, and an atomic is valid for any bits.
        let claim = unsafe { &*claim };
        if claim.swap(1, Ordering::Relaxed) != 0 {
            return Err(failed(action, "that side is taken"));
        }
        Ok(handover)
    }

    /// Where another process of this user, or another thread, finds the memory while this side lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            process::id(),
            self.fd.as_raw_fd()
        ))
    }

    /// Hands `bytes` bytes over and takes as many back, `trips` times; the side that follows does it the
    /// other way round, and has to be told the same numbers. Every byte is written on one side and read
    /// on the other. It spins, and returns when the last trip is over.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the other side does not answer for some seconds, or answers with the wrong bytes.
    ///
    /// # Panics
    ///
    /// If there is no room for `bytes` bytes.
    pub fn round_trips(&mut self, trips: u32, bytes: usize, stores: Stores) -> Result<(), Error> {
        assert!(
            bytes <= self.payload_bytes_max,
            "{bytes} bytes do not fit in {}",
            self.payload_bytes_max
        );
        for _ in 0..trips {
            if self.side == 0 {
                self.give(bytes, stores);
                self.take(bytes)?;
            } else {
                self.take(bytes)?;
                self.give(bytes, stores);
            }
        }
        Ok(())
    }

    /// Has the other side, which [serves](Self::serve), write bytes, and waits until it has: they are in its
    /// cache then, to be [copied](Self::copy). For the side that leads.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the other side does not answer for some seconds.
    pub fn ask(&mut self) -> Result<(), Error> {
        self.give(0, Stores::Plain);
        self.take(0)
    }

    /// Writes `bytes` bytes for the other side, once it [asks](Self::ask) for them. For the side that follows.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the other side does not ask for some seconds.
    ///
    /// # Panics
    ///
    /// If there is no room for `bytes` bytes.
    pub fn serve(&mut self, bytes: usize) -> Result<(), Error> {
        assert!(
            bytes <= self.payload_bytes_max,
            "{bytes} bytes do not fit in {}",
            self.payload_bytes_max
        );
        self.take(0)?;
        self.give(bytes, Stores::Plain);
        Ok(())
    }

    /// Copies what was [asked](Self::ask) for.
    ///
    /// # Panics
    ///
    /// If there is no room for as many bytes.
    pub fn copy(&self, into: &mut [u8]) {
        assert!(into.len() <= self.payload_bytes_max, "that is too much");
        let from = self.payload(1 - self.side, into.len());
        for (index, into) in into.chunks_mut(PIECE).enumerate() {
            let from = from.wrapping_add(index * PIECE);
            // SAFETY: the payload has room for all of `into`; the other side writes no more of it until we move our
            // word, and nobody but us has `into`.
            unsafe { into.as_mut_ptr().copy_from_nonoverlapping(from, into.len()) };
        }
    }

    fn give(&mut self, bytes: usize, stores: Stores) {
        self.turn += 1;
        let payload = self.payload(self.side, bytes);
        // SAFETY: `payload` has room for `bytes` bytes, and it is our turn to write them: the other side
        // has moved its word since it read them last.
        unsafe { fill(payload, self.turn as u8, bytes, stores) };
        pass(self.word(self.side), self.turn);
    }

    fn take(&self, bytes: usize) -> Result<(), Error> {
        let action = "take memory from the other side";
        // The leader waits for the answer to its turn, the follower for the turn after its own.
        let turn = self.turn + self.side as u64;
        let other = 1 - self.side;
        if !await_turn(self.word(other), turn, LOOKS_MAX) {
            return Err(failed(action, "it does not answer"));
        }
        // SAFETY: the other side wrote `bytes` bytes there before it moved its word, and writes no more
        // until we move ours.
        let read = unsafe { read(self.payload(other, bytes), bytes) };
        if bytes > 0 && read != turn as u8 {
            return Err(failed(action, "the bytes are wrong"));
        }
        Ok(())
    }

    fn at(&self, offset: usize) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(offset)
    }

    fn word(&self, side: usize) -> &AtomicU64 {
        let word = self.at(WORDS_AT[side]).cast::<AtomicU64>();
        // SAFETY: as in `claim`.
        unsafe { &*word }
    }

    fn payload(&self, side: usize, bytes: usize) -> *mut u8 {
        if bytes <= BESIDE_THE_WORD {
            return self.at(WORDS_AT[side] + size_of::<u64>());
        }
        self.at(PAYLOADS_AT + side * self.payload_bytes_max)
    }
}

impl fmt::Debug for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover")
            .field("side", &self.side)
            .field("turn", &self.turn)
            .finish_non_exhaustive()
    }
}

/// Moves our word, and with it hands over what was written before.
fn pass(word: &AtomicU64, turn: u64) {
    word.store(turn, Ordering::Release); // Pairs with the Acquire in `await_turn`.
}

/// Waits until the other side's word says `turn`, and with that takes what was written before; false if it
/// does not after `looks_max` looks.
fn await_turn(word: &AtomicU64, turn: u64, looks_max: u64) -> bool {
    for _ in 0..looks_max {
        let now = word.load(Ordering::Acquire); // Pairs with the Release in `pass`.
        if now == turn {
            return true;
        }
        std::hint::spin_loop();
    }
    false
}

/// Writes `bytes` bytes of value `byte`.
///
/// # Safety
///
/// `to` is valid for writes of so many bytes, which nobody else touches.
unsafe fn fill(to: *mut u8, byte: u8, bytes: usize, stores: Stores) {
    #[cfg(target_arch = "x86_64")]
    if stores == Stores::Streaming && bytes >= 16 && to.addr().is_multiple_of(16) {
        let vectors = bytes / 16;
        // SAFETY: the caller lets us write `bytes` bytes, and so the vectors that fit in them.
        unsafe { fill_past_the_caches(to, byte, vectors) };
        let rest = to.wrapping_add(16 * vectors);
        // SAFETY: the same for what is left of them.
        unsafe { rest.write_bytes(byte, bytes % 16) };
        return;
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = stores;
    // SAFETY: the caller lets us write these bytes.
    unsafe { to.write_bytes(byte, bytes) };
}

/// Writes `vectors` times 16 bytes with streaming stores.
///
/// # Safety
///
/// `to` is aligned to 16 and valid for writes of so many bytes, which nobody else touches.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse2")] // Every x86-64 processor has it.
unsafe fn fill_past_the_caches(to: *mut u8, byte: u8, vectors: usize) {
    use std::arch::x86_64::{__m128i, _mm_set1_epi8, _mm_sfence, _mm_stream_si128};
    let value = _mm_set1_epi8(byte.cast_signed());
    for vector in 0..vectors {
        let at = to.cast::<__m128i>().wrapping_add(vector);
        // SAFETY: `at` is aligned and within what the caller lets us write.
        unsafe { _mm_stream_si128(at, value) };
    }
    // Streaming stores are ordered by nothing less.
    _mm_sfence();
}

/// Reads `bytes` bytes, and returns all of them or-ed together.
///
/// # Safety
///
/// `from` is valid for reads of so many bytes, which nobody writes meanwhile.
unsafe fn read(from: *const u8, bytes: usize) -> u8 {
    // SAFETY: the caller lets us read these bytes.
    let bytes = unsafe { std::slice::from_raw_parts(from, bytes) };
    black_box(bytes.iter().fold(0, |all, byte| all | byte))
}

fn failed(action: &'static str, why: &'static str) -> Error {
    Error::Io {
        action,
        source: io::Error::other(why),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_one_side_asks_for_it_can_copy() {
        let mut lead = Handover::lead(5000).unwrap();
        let path = lead.path();
        const SIZES: [usize; 5] = [8, 56, 57, 1025, 4999];
        let serves = thread::spawn(move || {
            let mut follow = Handover::follow(&path)?;
            SIZES.into_iter().try_for_each(|bytes| follow.serve(bytes))
        });
        for (index, bytes) in SIZES.into_iter().enumerate() {
            let mut copy = vec![0; bytes];
            lead.ask().unwrap();
            lead.copy(&mut copy);
            assert_eq!(copy, vec![index as u8 + 1; bytes]);
        }
        serves.join().unwrap().unwrap();
    }

    #[test]
    fn every_size_comes_back_whole_by_either_kind_of_store() {
        let mut lead = Handover::lead(5000).unwrap();
        let path = lead.path();
        const SIZES: [usize; 6] = [0, 8, 56, 57, 4096, 4999];
        let play = |handover: &mut Handover| {
            for stores in [Stores::Plain, Stores::Streaming] {
                for bytes in SIZES {
                    handover.round_trips(300, bytes, stores).unwrap();
                }
            }
        };
        let follower = thread::spawn(move || play(&mut Handover::follow(&path).unwrap()));
        play(&mut lead);
        follower.join().unwrap();
    }

    #[test]
    fn a_side_is_had_by_one_only() {
        let lead = Handover::lead(64).unwrap();
        let _follow = Handover::follow(&lead.path()).unwrap();
        let error = Handover::follow(&lead.path()).unwrap_err();
        assert_eq!(error.to_string(), "could not map memory to hand over");
    }

    #[test]
    fn what_is_no_memory_to_hand_over_is_refused() {
        for path in ["/proc/self/exe", "/dev/null", "/nowhere"] {
            assert!(Handover::follow(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn one_who_is_not_answered_gives_up() {
        assert!(!await_turn(&AtomicU64::new(0), 1, 1000));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{cell::UnsafeCell, sync::Arc, thread};

    use super::*;

    struct Shared {
        words: [AtomicU64; 2],
        payload: UnsafeCell<u8>,
    }

    // SAFETY: the payload is touched by the side whose turn it is, which loom checks.
    unsafe impl Sync for Shared {}

    impl Shared {
        fn add_one(&self) {
            self.payload.with_mut(|payload| {
                // SAFETY: loom fails the model if another thread touches it now.
                unsafe { *payload += 1 };
            });
        }
    }

    #[test]
    fn a_payload_belongs_to_the_side_whose_turn_it_is() {
        loom::model(|| {
            let shared = Arc::new(Shared {
                words: [AtomicU64::new(0), AtomicU64::new(0)],
                payload: UnsafeCell::new(0),
            });
            let follower = {
                let shared = shared.clone();
                thread::spawn(move || {
                    if await_turn(&shared.words[0], 1, 2) {
                        shared.add_one();
                        pass(&shared.words[1], 1);
                    }
                })
            };
            shared.add_one();
            pass(&shared.words[0], 1);
            if await_turn(&shared.words[1], 1, 2) {
                shared.add_one();
            }
            follower.join().unwrap();
        });
    }
}
