//! The path between two ranks of one node, in one process or in two.
//!
//! Each direction is a ring of descriptors in the sender's arena. A small payload travels in its
//! descriptor; a larger one stays where it was written, and its descriptor says where. What comes
//! out of shared memory is checked on every use: a peer can write there.

use std::{collections::VecDeque, fmt, iter, ops::Deref, ptr::NonNull, rc::Rc, thread};

use super::{
    End, Endpoint, copy_into,
    ring::{Consumer, ENTRY_WORDS, Entry, Note, Producer, Ring},
};
use crate::{
    Arena, Buffer, Error, Loan, Loss, Rank,
    arena::{Block, INLINE_BYTES, Lent, Mapping, prefetch_read},
    bell,
};

/// Descriptors that fit in a ring.
const RING_ENTRIES: usize = 256;
/// Bytes of a ring.
pub(crate) const RING_BYTES: usize = size_of::<RingMemory>();

type RingMemory = Ring<RING_ENTRIES>;

/// What an entry is: the upper byte of its note. The lower one is the length of an inline payload.
const INLINE: Note = 1 << 8;
const BLOCK: Note = 2 << 8;
const CLOSE: Note = 3 << 8;
const PANICKED: Note = 4 << 8;
/// A goodbye that leaves messages unsent.
const ABANDONED: Note = 5 << 8;

/// Blocks of the peer that were dropped here: their numbers, two to a word, and how many in the lower byte.
const RETURNED: Note = 6 << 8;

/// The second entry of a pair, with the rest of an inline payload.
const REST: Note = 7 << 8;

/// What is about exposed memory, in one entry or in two as an inline payload.
const ASIDE: Note = 8 << 8;
/// Such entries that wait for the peer to read. An honest one has far less unread.
const ASIDES_MAX: usize = 1 << 12;

/// Payload words in the first entry of a message, beside its tag.
const FIRST_WORDS: usize = ENTRY_WORDS - 1;
/// Bytes of payload in one entry; more take a second one.
const FIRST_BYTES: usize = 8 * FIRST_WORDS;

/// Entries to keep free behind a message: one for the second of a pair, one for the goodbye.
const ROOM: u64 = 3;
/// Polls without news during which the block that will likely be used next is fetched again and again.
const POLLS_THAT_FETCH: u32 = 256;
/// Lines of a payload that are fetched at once when it arrives.
const LINES_AHEAD: usize = 8;
/// Payloads up to this size are; of larger ones the processor fetches most by itself, and many are not read at once.
const FETCHED_AHEAD_MAX: usize = 4096;

/// Blocks that one entry gives back.
const RETURNED_MAX: usize = 2 * ENTRY_WORDS;

/// A ring in a mapped arena.
pub(crate) struct RingAt {
    start: NonNull<RingMemory>,
    _keep: Keep,
}

/// What keeps a ring's memory where it is.
enum Keep {
    /// Our own block.
    Block(#[allow(dead_code, reason = "held, not read")] Block),
    /// The peer's arena.
    Mapping(#[allow(dead_code, reason = "held, not read")] Rc<Mapping>),
}

impl RingAt {
    /// An empty ring in a loan of our own, and its offset in our arena.
    pub(crate) fn create(mut loan: Loan) -> Option<(Self, u64)> {
        loan.fill(0);
        let start = NonNull::from(&mut loan[..]).cast::<RingMemory>();
        let block = loan.freeze().take_block()?;
        let offset = block.offset();
        start.is_aligned().then_some((
            Self {
                start,
                _keep: Keep::Block(block),
            },
            offset,
        ))
    }

    /// The peer's ring at `offset` of its arena; `None` if there cannot be one.
    pub(crate) fn import(mapping: &Rc<Mapping>, offset: u64) -> Option<Self> {
        let start = mapping
            .region()
            .data(offset, RING_BYTES as u64)?
            .cast::<RingMemory>();
        start.is_aligned().then(|| Self {
            start,
            _keep: Keep::Mapping(mapping.clone()),
        })
    }
}

impl Deref for RingAt {
    type Target = RingMemory;

    fn deref(&self) -> &RingMemory {
        // SAFETY: the address was bounds-checked and is aligned, `_keep` keeps it mapped and, if it
        // is ours, lent; and a ring consists of atomics, valid for any bits.
        unsafe { self.start.as_ref() }
    }
}

/// One end of a link over shared memory.
pub(crate) struct Shm {
    peer: Rank,
    arena: Arena,
    outgoing: Producer<RingAt>,
    incoming: Consumer<RingAt>,
    /// The peer's arena, in which its messages are.
    mapping: Rc<Mapping>,
    /// What found no room in the ring yet. Loans bound it.
    waiting: VecDeque<Buffer>,
    /// How often that happened.
    waits: u64,
    /// The same for what is beside the messages.
    asides_waiting: VecDeque<Buffer>,
    /// What came beside the messages.
    asides: VecDeque<Buffer>,
    /// Where the block is that the peer will likely use next, plus one: a hint of its own.
    expected: u64,
    /// Whether the last message that came was in two entries.
    two_expected: bool,
    /// Polls without news since the last message.
    idle_polls: u32,
    /// Entries that were put in the outgoing ring when the last message came.
    put: u64,
    /// Set once the peer is known to be gone.
    end: Option<End>,
    closing: bool,
}

impl Shm {
    pub(crate) fn new(
        peer: Rank,
        arena: Arena,
        outgoing: RingAt,
        incoming: RingAt,
        mapping: Rc<Mapping>,
    ) -> Self {
        Self {
            peer,
            arena,
            outgoing: Producer::new(outgoing),
            incoming: Consumer::new(incoming),
            mapping,
            waiting: VecDeque::new(),
            asides_waiting: VecDeque::new(),
            asides: VecDeque::new(),
            waits: 0,
            expected: 0,
            two_expected: false,
            idle_polls: 0,
            put: 0,
            end: None,
            closing: false,
        }
    }

    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.incoming.is_ready() || self.end.is_some()
    }

    /// Gives back the peer's blocks that were dropped and not yet given back.
    pub(crate) fn give_back(&self) {
        self.mapping.flush();
    }

    /// Whether something waits here and the ring has room for it.
    pub(crate) fn can_flush(&mut self) -> bool {
        self.is_waiting() && self.outgoing.has_room(ROOM) != Ok(false)
    }

    pub(crate) fn waits(&self) -> u64 {
        self.waits
    }

    /// Whether something waits for the ring to have room.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || !self.asides_waiting.is_empty()
    }

    /// The peer's arena.
    pub(crate) fn mapping(&self) -> &Rc<Mapping> {
        &self.mapping
    }

    /// Sends what is held by value beside the messages, and after those that wait.
    pub(crate) fn send_aside(&mut self, aside: Buffer) {
        if self.end.is_some() {
            return;
        }
        if self.asides_waiting.len() >= ASIDES_MAX {
            return self.end(End::protocol("it does not read what it asked for"));
        }
        self.asides_waiting.push_back(aside);
        self.flush();
    }

    #[inline]
    pub(crate) fn has_aside(&self) -> bool {
        !self.asides.is_empty()
    }

    pub(crate) fn take_aside(&mut self) -> Option<Buffer> {
        self.asides.pop_front()
    }

    #[cold]
    fn flush_asides(&mut self) {
        while self.outgoing.has_room(ROOM) == Ok(true)
            && let Some(aside) = self.asides_waiting.pop_front()
        {
            self.push_bytes(ASIDE, aside.tag(), &aside);
            self.mapping.ring(bell::MESSAGE);
        }
    }

    #[cold]
    fn wait(&mut self, message: Buffer) {
        self.waits += 1;
        self.waiting.push_back(message);
    }

    #[inline]
    pub(crate) fn flush(&mut self) -> bool {
        if !self.is_waiting() {
            return true;
        }
        while let Some(message) = self.waiting.pop_front() {
            if let Err(message) = self.push(message) {
                self.waiting.push_front(message);
                break;
            }
        }
        if self.waiting.is_empty() {
            self.flush_asides();
        }
        !self.is_waiting()
    }

    /// Takes note of how the peer ended, and takes back what it will never read.
    pub(crate) fn end(&mut self, end: End) {
        match &end {
            End::Lost(Loss::ProcessEnded) => self.arena.reclaim_from_dead(self.peer),
            // Before its goodbye, the peer said exactly how far it read.
            End::Closed | End::Lost(Loss::Panicked | Loss::Disconnected) => self.take_back_unread(),
            // It may be alive and reading.
            End::Lost(_) => {}
        }
        self.waiting.clear();
        self.asides_waiting.clear();
        self.end.get_or_insert(end);
    }

    /// Drops what was not received, and says goodbye; a place in the ring is kept for that.
    pub(crate) fn close(&mut self) {
        if std::mem::replace(&mut self.closing, true) {
            return;
        }
        while let Some((note, entry, _)) = self.incoming.pop() {
            match note & 0xff00 {
                RETURNED => self.take_back(note, entry),
                BLOCK => drop(self.message_in_block(entry)),
                _ => {}
            }
        }
        self.incoming.hand_back();
        if self.end.is_some() {
            return;
        }
        let note = match (thread::panicking(), self.flush()) {
            (true, _) => PANICKED,
            (false, true) => CLOSE,
            (false, false) => ABANDONED,
        };
        if self.outgoing.has_room(1) == Ok(true) {
            self.outgoing.push(note, iter::empty());
            self.mapping.ring(bell::MESSAGE);
        }
    }

    /// Gives back dropped blocks in an entry of our ring, once they fill one or are large: so one line
    /// carries many, and it is a line that travels anyway.
    #[cold]
    fn return_entry(&mut self) {
        if !self.waiting.is_empty() || self.outgoing.has_room(ROOM) != Ok(true) {
            return;
        }
        let mut entry = Entry::default();
        let returned = self.mapping.take_dropped(RETURNED_MAX, |place, index| {
            entry[place / 2] |= u64::from(index) << (place % 2 * 32);
        });
        self.outgoing
            .push(RETURNED | returned as Note, entry.into_iter());
        self.mapping.ring(bell::ROOM);
    }

    /// Takes back the blocks that an entry names.
    #[cold]
    fn take_back(&self, note: Note, entry: Entry) {
        let indices = entry
            .iter()
            .flat_map(|&word| [word as u32, (word >> 32) as u32]);
        self.arena
            .take_back_from(self.peer, indices.take(usize::from(note & 0xff)));
    }

    /// Puts a message in the ring, or gives it back when there is no room for it, or for the copy
    /// that the peer can read.
    fn push(&mut self, message: Buffer) -> Result<(), Buffer> {
        match self.outgoing.has_room(ROOM) {
            Ok(true) => {}
            Ok(false) => return Err(message),
            Err(_) => {
                self.end(End::protocol("it took messages that were never sent"));
                return Ok(());
            }
        }
        match message.block() {
            Some(block) if self.arena.owns(block) => {
                self.push_block(message);
                return Ok(());
            }
            _ if message.bytes() <= INLINE_BYTES => self.push_inline(message.tag(), &message),
            _ => self.push_block(copy_into(&self.arena, message)?),
        }
        self.mapping.ring(bell::MESSAGE);
        Ok(())
    }

    /// Sends bytes that fit beside a descriptor, when nothing is in the way; false when something is.
    #[inline]
    pub(crate) fn send_inline(&mut self, tag: u64, bytes: &[u8]) -> bool {
        let sendable = bytes.len() <= INLINE_BYTES
            && self.end.is_none()
            && self.waiting.is_empty()
            && self.outgoing.has_room(ROOM) == Ok(true);
        if sendable {
            self.push_inline(tag, bytes);
            self.mapping.ring(bell::MESSAGE);
        }
        sendable
    }

    #[inline(always)]
    fn push_inline(&mut self, tag: u64, bytes: &[u8]) {
        self.push_bytes(INLINE, tag, bytes);
    }

    #[inline(always)]
    fn push_bytes(&mut self, kind: Note, tag: u64, bytes: &[u8]) {
        let note = kind | bytes.len() as Note;
        match bytes.split_at_checked(FIRST_BYTES) {
            None | Some((_, [])) => self
                .outgoing
                .push(note, iter::once(tag).chain(words_of(bytes))),
            Some((first, rest)) => self.outgoing.push_pair(
                (note, iter::once(tag).chain(words_of(first))),
                (REST, words_of(rest)),
            ),
        }
    }

    #[inline(always)]
    fn push_block(&mut self, message: Buffer) {
        let (tag, len) = (message.tag(), message.bytes() as u64);
        let Some(block) = message.block() else {
            return;
        };
        let (index, next) = (block.index(), block.next());
        if message.is_shared() {
            self.arena.share(block);
        }
        let entry = [tag, u64::from(index), block.offset(), len, next];
        self.outgoing.push(BLOCK, entry.into_iter());
        self.mapping.ring(bell::MESSAGE);
        self.follow_up(message, index, next);
    }

    /// What can wait until a message is on its way.
    #[inline(never)]
    fn follow_up(&mut self, message: Buffer, index: u32, next: u64) {
        let bytes = message.bytes();
        self.arena.sent(index, message, self.peer);
        self.arena.prepare(bytes);
        if next != 0 {
            self.arena.region().prefetch_write(next - 1);
        }
    }

    /// The next message, if there is one. None also at the end, and after an entry that no correct peer sends,
    /// which is the end: [`is_over`](Self::is_over) tells.
    #[inline(always)]
    pub(crate) fn poll(&mut self) -> Option<Buffer> {
        if self.is_waiting() {
            self.flush();
        }
        loop {
            let Some((note, entry, handed_back)) = self.incoming.pop() else {
                self.fetch_expected();
                self.arena.fetch_prepared();
                // Now, when there is time for it, and not while an answer is waited for.
                if self.mapping.dropped_enough(RETURNED_MAX) {
                    self.return_entry();
                }
                return None;
            };
            if handed_back {
                self.mapping.ring(bell::ROOM);
            }
            self.idle_polls = 0;
            self.fetch_for_answer();
            let message = match note & 0xff00 {
                INLINE if usize::from(note & 0xff) <= FIRST_BYTES => {
                    self.two_expected = false;
                    let payload = entry[1..].iter();
                    Buffer::from_words(entry[0], payload, usize::from(note & 0xff))
                }
                INLINE => self.message_of_two(note, entry),
                BLOCK => self.message_in_block(entry),
                RETURNED => {
                    self.take_back(note, entry);
                    continue;
                }
                ASIDE if self.put_aside(note, entry) => return None,
                _ => None,
            };
            if message.is_none() {
                self.end_with(note);
            }
            return message;
        }
    }

    /// Whether nothing more will be received.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.end.is_some() && !self.incoming.is_ready()
    }

    /// Takes note of an entry that is no message.
    #[cold]
    fn end_with(&mut self, note: Note) {
        self.end(match note & 0xff00 {
            CLOSE => End::Closed,
            PANICKED => End::Lost(Loss::Panicked),
            ABANDONED => End::Lost(Loss::Disconnected),
            _ => End::protocol("a descriptor points outside its arena"),
        });
    }

    /// Keeps what is no message until it is taken; false if it is not what a correct peer sends.
    #[cold]
    fn put_aside(&mut self, note: Note, entry: Entry) -> bool {
        let bytes = usize::from(note & 0xff);
        let aside = match bytes <= FIRST_BYTES {
            true => Buffer::from_words(entry[0], entry[1..].iter(), bytes),
            false => self.message_of_two(note, entry),
        };
        let is_one = aside.is_some();
        self.asides.extend(aside);
        is_one
    }

    #[inline(always)]
    fn message_in_block(&mut self, entry: Entry) -> Option<Buffer> {
        let [tag, index, offset, len, next, ..] = entry;
        self.expected = next;
        let lent = Lent {
            index: u32::try_from(index).ok()?,
            offset,
            bytes: len,
            next: 0,
        };
        let message = Buffer::in_block(tag, &self.mapping, lent, len as usize, true)?;
        if (65..=FETCHED_AHEAD_MAX).contains(&message.bytes()) {
            fetch_lines(message.as_ptr(), message.bytes());
        }
        self.fetch_next();
        if self.mapping.dropped_enough(3 * RETURNED_MAX) {
            self.return_entry();
        }
        Some(message)
    }

    /// In a stream, has the first lines of the message behind this one fetched while this one is read.
    #[inline(always)]
    fn fetch_next(&self) {
        if let Some((BLOCK, [offset, len])) = self.incoming.peek([2, 3])
            && let Some(start) = self.mapping.region().data(offset, len)
        {
            fetch_lines(start.as_ptr(), len as usize);
        }
    }

    /// The message of which the first entry was taken, and the second is there too.
    fn message_of_two(&mut self, note: Note, first: Entry) -> Option<Buffer> {
        let second = self.incoming.pop_second(REST)?;
        self.two_expected = true;
        let payload = first[1..].iter().chain(&second);
        Buffer::from_words(first[0], payload, usize::from(note & 0xff))
    }

    /// Nothing has arrived. What likely arrives next is fetched together with the entry that will say so:
    /// two lines that are asked for at once arrive as soon as one, and one after the other take twice as long.
    #[inline(always)]
    fn fetch_expected(&mut self) {
        if self.idle_polls < POLLS_THAT_FETCH {
            self.idle_polls += 1;
            if self.expected != 0 {
                self.mapping.region().prefetch_read(self.expected - 1);
            }
            if self.two_expected {
                self.incoming.fetch_second();
            }
        }
    }

    /// A message has come. If the last one was answered, this one likely is too: then the line that the answer
    /// will be put in, which is with the peer that waits for it, is fetched meanwhile.
    #[inline(always)]
    fn fetch_for_answer(&mut self) {
        let put = self.outgoing.put();
        if put != self.put {
            self.put = put;
            self.outgoing.fetch();
            if self.two_expected {
                self.outgoing.fetch_second();
            }
        }
    }

    /// Takes back what a peer that is gone left in the ring.
    fn take_back_unread(&mut self) {
        let own = self.outgoing.unread();
        for (note, [_, index, ..]) in own {
            if note & 0xff00 == BLOCK {
                self.arena.take_back_handed_over(index as u32);
            }
        }
    }
}

impl Endpoint for Shm {
    fn peer(&self) -> Rank {
        self.peer
    }

    fn loan(&mut self, bytes: usize) -> Result<Option<Loan>, Error> {
        self.arena.loan(bytes)
    }

    #[inline(always)]
    fn send(&mut self, message: Buffer) -> Result<(), Error> {
        if self.end.is_none()
            && self.waiting.is_empty()
            && self.outgoing.has_room(ROOM) == Ok(true)
            && message.block().is_some_and(|block| self.arena.owns(block))
        {
            self.push_block(message);
            return Ok(());
        }
        self.send_otherwise(message)
    }

    fn receive(&mut self) -> Result<Option<Buffer>, Error> {
        match (self.poll(), &self.end) {
            (None, Some(end)) if !self.incoming.is_ready() => Err(end.error(self.peer)),
            (message, _) => Ok(message),
        }
    }
}

impl Shm {
    /// Sends what is not in our arena, or when something is in the way.
    #[inline(never)]
    fn send_otherwise(&mut self, message: Buffer) -> Result<(), Error> {
        if let Some(end) = &self.end {
            return Err(end.error(self.peer));
        }
        if !self.waiting.is_empty() && !self.flush() {
            self.wait(message);
        } else if let Err(message) = self.push(message) {
            self.wait(message);
        }
        Ok(())
    }
}

/// Asks for the first lines of a payload at once: the processor itself would begin to after two misses.
#[inline(always)]
fn fetch_lines(start: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(64).min(LINES_AHEAD) {
        prefetch_read(start.wrapping_add(64 * line));
    }
}

/// Bytes as the words of an entry.
#[inline(always)]
fn words_of(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (words, rest) = bytes.as_chunks::<8>();
    let last = rest
        .iter()
        .rfold(0, |word, &byte| word << 8 | u64::from(byte));
    let last = (!rest.is_empty()).then_some(last);
    words
        .iter()
        .map(|&word| u64::from_le_bytes(word))
        .chain(last)
}

impl Drop for Shm {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Shm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shm")
            .field("peer", &self.peer)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

const _: () = assert!(
    INLINE_BYTES == 8 * (FIRST_WORDS + ENTRY_WORDS),
    "what is held by value fits in two entries"
);

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::sys::eventfd::EventFd;

    use super::*;
    use crate::{Ledger, arena::Region};

    /// Our end of a link, and the producer and the arena of a peer that may put in what it likes.
    fn link_to_a_liar() -> (Shm, Producer<RingAt>, Arena) {
        let [ours, theirs] = [0, 1].map(|_| Arena::new(&Ledger::new(1 << 20), 1 << 20).unwrap());
        let map = |arena: &Arena| {
            let region = Region::import(arena.region().fd().try_clone_to_owned().unwrap()).unwrap();
            Mapping::of_peer(region, OwnedFd::from(EventFd::new().unwrap()))
        };
        let ring =
            |arena: &Arena| RingAt::create(arena.loan(RING_BYTES).unwrap().unwrap()).unwrap();
        let ((outgoing, _), (lying, offset)) = (ring(&ours), ring(&theirs));
        let mapping = map(&theirs);
        let incoming = RingAt::import(&mapping, offset).unwrap();
        (
            Shm::new(1, ours, outgoing, incoming, mapping),
            Producer::new(lying),
            theirs,
        )
    }

    fn refused(note: Note, entry: Entry) {
        let (mut link, mut liar, _theirs) = link_to_a_liar();
        liar.push(note, entry.into_iter());
        let received = link.receive();
        assert!(
            matches!(
                received,
                Err(Error::PeerLost {
                    peer: 1,
                    cause: Loss::Protocol(_)
                })
            ),
            "{note:#x} {entry:?}: {received:?}"
        );
        let sent = link.send(Buffer::inline(0, b"late").unwrap());
        assert!(sent.is_err(), "nothing after a lie is believed");
    }

    #[test]
    fn descriptors_that_point_outside_the_arena_end_the_link() {
        refused(BLOCK, [0, 0, 1 << 20, 1, 0, 0, 0]);
        refused(BLOCK, [0, 0, u64::MAX, 2, 0, 0, 0]);
        refused(BLOCK, [0, 0, 64, 1 << 20, 0, 0, 0]);
        refused(BLOCK, [0, 1 << 16, 0, 64, 0, 0, 0]);
        refused(BLOCK, [0, u64::MAX, 0, 64, 0, 0, 0]);
    }

    #[test]
    fn entries_of_no_known_kind_or_length_end_the_link() {
        refused(INLINE | 105, [0; ENTRY_WORDS]);
        refused(INLINE | 49, [0; ENTRY_WORDS]); // Without a second entry.
        refused(0, [0; ENTRY_WORDS]);
        refused(0xff00, [0; ENTRY_WORDS]);
    }

    #[test]
    fn returns_of_blocks_that_the_peer_was_not_handed_are_ignored() {
        let (mut link, mut liar, _theirs) = link_to_a_liar();
        let held = link.loan(64).unwrap().unwrap();
        let own = link.arena.clone();
        for index in [0, 1, 2, 65_535, u32::MAX] {
            liar.push(RETURNED | 2, iter::once(u64::from(index)).chain([0; 6]));
        }
        assert!(link.receive().unwrap().is_none());
        assert_ne!(
            own.loan(64).unwrap().unwrap().as_ptr(),
            held.as_ptr(),
            "it is still lent"
        );
    }

    #[test]
    fn a_ring_is_imported_only_from_where_one_fits() {
        let (link, _liar, _theirs) = link_to_a_liar();
        for offset in [1, 64, (1 << 20) - 64, u64::MAX] {
            assert!(RingAt::import(&link.mapping, offset).is_none(), "{offset}");
        }
    }
}
