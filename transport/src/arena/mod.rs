//! Memory that a rank lends to messages, and that every rank of the node can read in place.

pub(crate) mod blocks;
pub(crate) mod count;
mod loan;
mod region;
mod window;

use std::{
    cell::{Cell, RefCell},
    fmt,
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
};

use self::blocks::Blocks;
pub(crate) use self::{
    blocks::Lent,
    loan::{Block, INLINE_BYTES},
    region::{Geometry, Region},
};
pub use self::{
    loan::{Buffer, Loan},
    region::{prefetch_read, prefetch_write},
    window::Window,
};
use crate::{
    Error, Ledger, Rank, Reservation,
    bell::{self, FencedBy},
    sync::Ordering,
};

/// Blocks that are given back together.
const GIVEN_BACK_AT_ONCE: usize = 64;
/// Blocks an arena can have lent at one time.
const BLOCKS_MAX: u32 = 1 << 16;

/// The memory of one executor. Cloning gives another handle for the same executor.
///
/// ```
/// use transport::{Arena, Ledger};
///
/// let arena = Arena::new(&Ledger::new(64 << 20), 32 << 20)?;
/// let mut loan = arena.loan(5)?.expect("the arena is empty");
/// loan.copy_from_slice(b"hello");
/// assert_eq!(loan.freeze().as_slice(), b"hello");
/// # Ok::<(), transport::Error>(())
/// ```
#[derive(Clone)]
pub struct Arena(Rc<Owned>);

struct Owned {
    mapping: Rc<Mapping>,
    book: RefCell<Book>,
    /// The loan that will likely be asked for next.
    prepared: Cell<Option<Loan>>,
    /// Which lines of it have not been fetched.
    unfetched: Cell<Unfetched>,
}

/// Lines that are soon to be written, and are with whoever read them last.
#[derive(Clone, Copy)]
struct Unfetched {
    /// The first of them. It need not be ours any more: to fetch a line changes nothing but when it arrives.
    first: *const u8,
    count: usize,
}

impl Unfetched {
    const NONE: Self = Self {
        first: std::ptr::null(),
        count: 0,
    };

    /// The lines of a loan, as far as they stay in the cache until they are written.
    fn of(loan: &Loan) -> Self {
        Self {
            first: loan.as_ptr(),
            count: loan.bytes().min(FETCHED_MAX).div_ceil(LINE_BYTES),
        }
    }
}

/// What only the owner knows of its blocks.
struct Book {
    blocks: Blocks,
    lent: Vec<Lending>,
    refusals: u64,
    _reservation: Reservation,
}

/// Why a block was lent, and to whom.
#[derive(Default)]
struct Lending {
    purpose: Purpose,
    holder: Holder,
}

/// What is to be done when a block comes back.
#[derive(Default)]
pub(crate) enum Purpose {
    /// Nothing more.
    #[default]
    Plain,
    /// It counted against a window.
    Window(Rc<Window>),
    /// It held a message from another node, whose sender waits to hear that it was read.
    Received(Rc<Returns>, u64),
}

/// The peer that holds a block, as far as that matters when it dies.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Holder {
    #[default]
    Us,
    Peer(Rank),
    Several,
}

/// Blocks of so many bytes together are given back when there are a few, so that the owner lends again what is still
/// in the caches, and not memory that nobody has touched.
const CACHED_BYTES: u64 = 128 << 10;
const FEW: usize = 4;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;
/// Lines of the next loan that are fetched between two looks for a message: few enough that the look does not wait for them.
const LINES_A_LOOK: usize = 16;
/// Bytes of it that are: a quarter of the cache that many processors have for each core.
const FETCHED_MAX: usize = 256 << 10;

/// The numbers of received messages that have been read and dropped.
pub(crate) type Returns = RefCell<Vec<u64>>;

/// A region with the means to wake its owner.
pub(crate) struct Mapping {
    region: Arc<Region>,
    /// The owner's; none when the owner is us.
    wake: Option<OwnedFd>,
    fenced_by: FencedBy,
    dropped: Dropped,
}

/// Blocks to which we gave up a reference that is not yet counted down. It is when they are given back, with
/// others: whoever drops a message may have to hurry on.
struct Dropped {
    indices: [Cell<u32>; GIVEN_BACK_AT_ONCE],
    count: Cell<usize>,
    bytes: Cell<u64>,
}

impl Mapping {
    pub(crate) fn of_peer(region: Arc<Region>, wake: OwnedFd) -> Rc<Self> {
        Rc::new(Self::new(region, Some(wake)))
    }

    fn new(region: Arc<Region>, wake: Option<OwnedFd>) -> Self {
        Self {
            fenced_by: region.bell().fenced_by(),
            region,
            wake,
            dropped: Dropped {
                indices: [const { Cell::new(0) }; GIVEN_BACK_AT_ONCE],
                count: Cell::new(0),
                bytes: Cell::new(0),
            },
        }
    }

    /// Gives up a reference to a block; true when it is time to [`settle`](Self::settle): blocks are given back
    /// with others, because every time costs the transfer of contended lines, but at once if the owner
    /// waits. (A link gives them back earlier.)
    #[inline]
    fn give_up(&self, index: u32, bytes: usize) -> bool {
        let Dropped {
            indices,
            count,
            bytes: sum,
        } = &self.dropped;
        // There is room: whoever is told to settle does.
        let place = count.get() % GIVEN_BACK_AT_ONCE;
        indices[place].set(index);
        count.set(place + 1);
        sum.set(sum.get() + bytes as u64);
        place + 1 == GIVEN_BACK_AT_ONCE
            || sum.get() >= self.region.geometry().data_bytes / 4
            || self.region.wanted().load(Ordering::Relaxed) != 0
    }

    /// Gives back what has come together, unless it is our own and will be taken back without.
    fn settle(&self) {
        if self.wake.is_some() || self.dropped.count.get() == GIVEN_BACK_AT_ONCE {
            self.flush();
        }
    }

    /// Whether so many blocks, or a good part of the arena, were dropped and not yet given back.
    #[inline]
    pub(crate) fn dropped_enough(&self, blocks: usize) -> bool {
        let count = self.dropped.count.get();
        let bytes = self.dropped.bytes.get();
        count >= blocks
            || bytes >= self.region.geometry().data_bytes / 8
            || count >= FEW && bytes >= CACHED_BYTES
    }

    /// Takes up to `most` of them, to give them back in another way: hands each that nobody else holds to `give`,
    /// with its place.
    pub(crate) fn take_dropped(&self, most: usize, mut give: impl FnMut(usize, u32)) -> usize {
        let Dropped {
            indices,
            count,
            bytes,
        } = &self.dropped;
        let rest = count.get().saturating_sub(most);
        let mut given = 0;
        for index in &indices[rest..count.get()] {
            if self.region.counts()[index.get() as usize].release() {
                give(given, index.get());
                given += 1;
            }
        }
        count.set(rest);
        if rest == 0 {
            bytes.set(0);
        }
        given
    }

    /// Has the owner know of every block that was given back.
    pub(crate) fn flush(&self) {
        if self.dropped.count.get() > 0 {
            let mut indices = [0; GIVEN_BACK_AT_ONCE];
            let given =
                self.take_dropped(GIVEN_BACK_AT_ONCE, |place, index| indices[place] = index);
            self.region
                .returned()
                .push(self.region.counts(), &indices[..given]);
            self.ring(bell::ROOM);
        }
    }

    #[inline]
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// Wakes the owner if it sleeps until `reason`, which the caller has just brought about.
    pub(crate) fn ring(&self, reason: bell::Reasons) {
        if let Some(wake) = &self.wake
            && self.region.bell().must_ring(reason, self.fenced_by)
        {
            bell::wake(wake);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Arena {
    /// Makes an arena of `bytes` bytes, entered on `ledger`. Memory is taken as it is first used,
    /// by the thread that uses it.
    ///
    /// # Errors
    ///
    /// [`Error::LedgerLimit`], or [`Error::Io`] when the system refuses the memory.
    pub fn new(ledger: &Ledger, bytes: u64) -> Result<Self, Error> {
        let reservation = ledger.reserve("the arena of an executor", bytes)?;
        let region = Region::create(Geometry {
            blocks: BLOCKS_MAX,
            data_bytes: bytes,
        })?;
        let book = Book {
            blocks: Blocks::new(bytes, BLOCKS_MAX as usize),
            lent: Vec::new(),
            refusals: 0,
            _reservation: reservation,
        };
        let mapping = Rc::new(Mapping::new(region, None));
        Ok(Self(Rc::new(Owned {
            mapping,
            book: RefCell::new(book),
            prepared: Cell::new(None),
            unfetched: Cell::new(Unfetched::NONE),
        })))
    }

    /// Lends `bytes` bytes, aligned to at least 64, with arbitrary contents; `None` while there is no
    /// room, which comes back as receivers drop their buffers.
    ///
    /// # Errors
    ///
    /// [`Error::MessageTooLarge`] when the whole arena would not do.
    #[inline(always)]
    pub fn loan(&self, bytes: usize) -> Result<Option<Loan>, Error> {
        match self.0.prepared.take() {
            Some(loan) if loan.bytes() == bytes => Ok(Some(loan)),
            prepared => self.loan_otherwise(prepared, bytes),
        }
    }

    /// Lends what is prepared, if it will do, and otherwise afresh.
    #[inline(never)]
    fn loan_otherwise(&self, prepared: Option<Loan>, bytes: usize) -> Result<Option<Loan>, Error> {
        if let Some(mut loan) = prepared
            && Blocks::fits(bytes as u64, loan.capacity() as u64)
        {
            loan.set_len(bytes);
            return Ok(Some(loan));
        }
        self.reclaim();
        match self.lend(bytes) {
            Some(loan) => Ok(Some(loan)),
            None => self.refuse(bytes),
        }
    }

    /// Has a loan ready of the size of the one that was just sent: whoever sends again soon need not wait for what
    /// is done here.
    #[inline]
    pub(crate) fn prepare(&self, bytes: usize) {
        let prepared = self.0.prepared.take().or_else(|| {
            self.reclaim();
            let loan = self.lend(bytes)?;
            let unfetched = Unfetched::of(&loan);
            self.0.unfetched.set(unfetched);
            if unfetched.count <= LINES_A_LOOK {
                // At once, for those who send again and do not wait. (A part of the lines would make that slower.)
                self.fetch_prepared();
            }
            Some(loan)
        });
        self.0.prepared.set(prepared);
    }

    /// There is nothing to do: has the processor fetch some lines of the loan that is ready, so that it need not wait for
    /// them when they are written. They are with the peer that read what was in them before.
    #[inline(always)]
    pub(crate) fn fetch_prepared(&self) {
        let Unfetched { first, count } = self.0.unfetched.get();
        if count > 0 {
            let now = count.min(LINES_A_LOOK);
            for line in 0..now {
                prefetch_write(first.wrapping_add(line * LINE_BYTES));
            }
            self.0.unfetched.set(Unfetched {
                first: first.wrapping_add(now * LINE_BYTES),
                count: count - now,
            });
        }
    }

    /// The same, counted against `window`: `None` also while the window is used up.
    ///
    /// # Errors
    ///
    /// As [`loan`](Self::loan).
    pub fn loan_within(&self, window: &Rc<Window>, bytes: usize) -> Result<Option<Loan>, Error> {
        if !window.admits(bytes) {
            self.reclaim();
            if !window.admits(bytes) {
                self.want(true);
                return Ok(None);
            }
        }
        self.loan_for(bytes, Purpose::Window(window.clone()))
    }

    /// The most bytes that one loan can have.
    pub fn capacity(&self) -> u64 {
        self.0.mapping.region.geometry().data_bytes
    }

    /// The same, with something to be done when the block comes back.
    pub(crate) fn loan_for(&self, bytes: usize, purpose: Purpose) -> Result<Option<Loan>, Error> {
        let loan = self.loan(bytes)?;
        if let Some(block) = loan.as_ref().and_then(Loan::block) {
            if let Purpose::Window(window) = &purpose {
                window.lend(block.capacity() as u64);
            }
            self.0.book.borrow_mut().lent[block.index() as usize].purpose = purpose;
        }
        Ok(loan)
    }

    #[inline(always)]
    fn lend(&self, bytes: usize) -> Option<Loan> {
        let mut book = self.0.book.borrow_mut();
        let lent = book.blocks.lend(bytes as u64)?;
        if lent.index as usize >= book.lent.len() {
            book.grow(lent.index, self.region());
        }
        Buffer::in_block(0, &self.0.mapping, lent, bytes, false).map(Loan::new)
    }

    /// Says why nothing was lent: there is no room yet, or never.
    #[cold]
    fn refuse(&self, bytes: usize) -> Result<Option<Loan>, Error> {
        if bytes as u64 > self.capacity() {
            return Err(Error::MessageTooLarge {
                bytes: bytes as u64,
                limit: self.capacity(),
            });
        }
        self.0.book.borrow_mut().refusals += 1;
        self.want(true);
        Ok(None)
    }

    /// How often nothing was lent because there was no room.
    pub fn refusals(&self) -> u64 {
        self.0.book.borrow().refusals
    }

    /// Tells the peers whether we wait for blocks to come back. A hint, so any order will do.
    fn want(&self, wanted: bool) {
        if self.is_wanted() != wanted {
            self.region()
                .wanted()
                .store(u32::from(wanted), Ordering::Relaxed);
        }
    }

    /// Whether somebody here waits for room.
    pub(crate) fn is_wanted(&self) -> bool {
        self.region().wanted().load(Ordering::Relaxed) != 0
    }

    /// Whether [`reclaim`](Self::reclaim) would take something back.
    pub(crate) fn has_returns(&self) -> bool {
        !self.region().returned().is_empty() || self.0.mapping.dropped.count.get() > 0
    }

    /// Takes back the blocks that their last readers have returned.
    #[inline]
    pub(crate) fn reclaim(&self) {
        if self.has_returns() {
            self.take_returns();
        }
    }

    #[inline(never)]
    fn take_returns(&self) {
        let mapping = &self.0.mapping;
        let region = self.region();
        let mut book = self.0.book.borrow_mut();
        mapping.take_dropped(GIVEN_BACK_AT_ONCE, |_, index| book.take_back(index, region));
        // The links are in memory that peers write: however they loop, we stop.
        for index in region
            .returned()
            .take(region.counts())
            .take(BLOCKS_MAX as usize)
        {
            book.take_back(index, region);
        }
        self.want(false);
    }

    pub(crate) fn region(&self) -> &Region {
        &self.0.mapping.region
    }

    pub(crate) fn mapping(&self) -> &Rc<Mapping> {
        &self.0.mapping
    }

    /// Takes back blocks that `peer` says it has dropped. What it was not handed is its invention.
    pub(crate) fn take_back_from(&self, peer: Rank, indices: impl Iterator<Item = u32>) {
        let mut book = self.0.book.borrow_mut();
        for index in indices {
            let holder = book.lent.get(index as usize).map(|lending| lending.holder);
            if matches!(holder, Some(Holder::Several)) || holder == Some(Holder::Peer(peer)) {
                book.take_back(index, self.region());
            }
        }
        self.want(false);
    }

    /// Whether a block is one of ours, which peers of this node can read.
    pub(crate) fn owns(&self, block: &Block) -> bool {
        Rc::ptr_eq(block.mapping(), &self.0.mapping) || block.region().is(self.region())
    }

    /// Makes a reference to a block of ours for a peer, who is about to be sent a message that we keep.
    #[cold]
    pub(crate) fn share(&self, block: &Block) {
        self.region().counts()[block.index() as usize].retain();
    }

    /// Lets go of a message in our block `index` that `peer` has been sent: with it went our reference to the
    /// block, or one that was made for the peer.
    #[inline(always)]
    pub(crate) fn sent(&self, index: u32, message: Buffer, peer: Rank) {
        let whole = message.hand_over();
        let mut book = self.0.book.borrow_mut();
        let holder = &mut book.lent[index as usize].holder;
        *holder = match *holder {
            Holder::Us if whole => Holder::Peer(peer),
            _ => Holder::Several,
        };
    }

    /// Gives up, for a peer that is gone, the reference to our block `index` that it was handed.
    pub(crate) fn take_back_handed_over(&self, index: u32) {
        let region = self.region();
        if let Some(count) = region.counts().get(index as usize)
            && count.release()
        {
            region.returned().push(region.counts(), &[index]);
        }
    }

    /// Takes back the blocks that only `peer` held. Its process has ended, so nobody reads them.
    ///
    /// A block that others hold too stays lent: how many references died with the peer cannot be
    /// told from its count.
    pub(crate) fn reclaim_from_dead(&self, peer: Rank) {
        self.reclaim();
        let mut book = self.0.book.borrow_mut();
        for index in 0..book.lent.len() {
            if book.lent[index].holder == Holder::Peer(peer) {
                book.take_back(index as u32, self.region());
            }
        }
    }
}

impl Book {
    /// Makes room to note what block `index`, which is lent for the first time, is lent for.
    #[cold]
    fn grow(&mut self, index: u32, region: &Region) {
        self.lent.resize_with(index as usize + 1, Lending::default);
        region.counts()[index as usize].reset();
    }

    /// Takes back a block. A number that is not lent is a peer's invention, and ignored.
    #[inline]
    fn take_back(&mut self, index: u32, region: &Region) {
        if !self.blocks.take_back(index) {
            return;
        }
        // Whatever a peer that died, or broke the rules, left there.
        region.counts()[index as usize].reset();
        let lending = &mut self.lent[index as usize];
        lending.holder = Holder::Us;
        if !matches!(lending.purpose, Purpose::Plain) {
            self.tell(index);
        }
    }

    /// Does what is to be done when the block comes back.
    #[inline(never)]
    fn tell(&mut self, index: u32) {
        match std::mem::take(&mut self.lent[index as usize].purpose) {
            Purpose::Plain => {}
            Purpose::Window(window) => window.take_back(self.blocks.bytes(index)),
            Purpose::Received(returns, sequence) => returns.borrow_mut().push(sequence),
        }
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("bytes", &self.capacity())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn arena(bytes: u64) -> Arena {
        Arena::new(&Ledger::new(1 << 30), bytes).unwrap()
    }

    #[test]
    fn loans_are_aligned_and_come_back_when_dropped() {
        let arena = arena(1 << 20);
        for bytes in [0, 1, 64, 1000, 70_000, 1 << 20] {
            let mut loan = arena
                .loan(bytes)
                .unwrap()
                .expect("all earlier loans came back");
            assert_eq!(loan.as_ptr() as usize % 64, 0);
            assert_eq!(loan.len(), bytes);
            loan.fill(1);
        }
    }

    #[test]
    fn a_full_arena_lends_nothing_until_a_buffer_is_dropped() {
        let arena = arena(1 << 16);
        let held = arena.loan(1 << 16).unwrap().unwrap().freeze();
        let shared = held.clone();
        assert!(arena.loan(1).unwrap().is_none());
        drop(held);
        assert!(arena.loan(1).unwrap().is_none(), "one reader is left");
        drop(shared);
        assert!(arena.loan(1).unwrap().is_some());
    }

    #[test]
    fn what_can_never_fit_is_an_error_and_not_a_wait() {
        let error = arena(1 << 16).loan(1 << 17).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a message of 131072 bytes cannot fit in an arena of 65536 bytes"
        );
    }

    #[test]
    fn a_window_bounds_what_is_lent_within_it() {
        let arena = arena(1 << 20);
        let window = Window::new(10_000);
        let first = arena.loan_within(&window, 6_000).unwrap().unwrap();
        assert!(arena.loan_within(&window, 6_000).unwrap().is_none());
        assert!(
            arena.loan(6_000).unwrap().is_some(),
            "others are not concerned"
        );
        drop(first);
        assert!(
            arena.loan_within(&window, 20_000).unwrap().is_some(),
            "one loan may be larger"
        );
    }

    #[test]
    fn an_arena_is_entered_on_the_ledger() {
        let ledger = Ledger::new(1 << 20);
        let arena = Arena::new(&ledger, 1 << 20).unwrap();
        assert!(matches!(
            Arena::new(&ledger, 1),
            Err(Error::LedgerLimit { .. })
        ));
        drop(arena);
        assert_eq!(ledger.used(), 0);
    }

    #[test]
    fn what_a_dead_peer_held_alone_comes_back_and_what_we_hold_too_does_not() {
        let arena = arena(1 << 15);
        let ours = arena.loan(1 << 14).unwrap().unwrap().freeze();
        let send = |message: Buffer| {
            let index = message.block().unwrap().index();
            arena.sent(index, message, 1);
        };
        arena.share(ours.block().unwrap());
        send(ours.clone());
        send(arena.loan(1 << 14).unwrap().unwrap().freeze());
        arena.reclaim_from_dead(1);
        let back = arena
            .loan(1 << 14)
            .unwrap()
            .expect("it held this one alone");
        assert!(arena.loan(1 << 14).unwrap().is_none(), "we still read ours");
        drop((ours, back));
    }

    #[test]
    fn the_lines_of_the_loan_that_is_ready_are_fetched_a_few_at_a_time_and_once() {
        let arena = arena(4 << 20);
        let unfetched = || arena.0.unfetched.get().count;
        for (bytes, lines) in [(0, 0), (1024, 0), (1025, 17), (1 << 20, FETCHED_MAX / 64)] {
            arena.prepare(bytes);
            assert_eq!(unfetched(), lines, "a few are fetched at once");
            let first = arena.0.unfetched.get().first;
            for left in (0..lines).rev().step_by(LINES_A_LOOK) {
                arena.fetch_prepared();
                assert_eq!(unfetched(), left.saturating_sub(LINES_A_LOOK - 1));
            }
            arena.fetch_prepared();
            assert_eq!(unfetched(), 0);
            let loan = arena.loan(bytes).unwrap().unwrap();
            let is_next = lines == 0 || loan.as_ptr() == first;
            assert!(is_next, "it is the loan that is had next");
        }
    }

    #[test]
    fn invented_returns_are_ignored() {
        let arena = arena(1 << 16);
        let loan = arena.loan(64).unwrap().unwrap();
        let region = arena.region();
        region.returned().push(region.counts(), &[999]);
        region.returned().push(region.counts(), &[999]); // A loop.
        arena.reclaim();
        assert_ne!(arena.loan(64).unwrap().unwrap().as_ptr(), loan.as_ptr());
    }
}
