//! The path between two ranks of one node, in one process or in two.
//!
//! Each direction is a ring of descriptors in the sender's arena. A small payload travels in its
//! descriptor; a larger one stays where it was written, and its descriptor says where. What comes
//! out of shared memory is checked on every use: a peer can write there.

use std::{collections::VecDeque, fmt, ops::Deref, ptr::NonNull, rc::Rc, thread};

use super::{
    End, Endpoint, copy_into,
    ring::{Consumer, ENTRY_WORDS, Entry, Note, Producer, Ring},
};
use crate::{
    Arena, Buffer, Error, Loan, Loss, Rank,
    arena::{Block, Body, INLINE_BYTES, Inline, Mapping},
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
        let (_, Body::Block { block, .. }) = loan.freeze().into_parts() else {
            return None;
        };
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
        !self.waiting.is_empty() && self.outgoing.has_room(2) != Ok(false)
    }

    /// Whether something waits for the ring to have room.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    #[inline]
    pub(crate) fn flush(&mut self) -> bool {
        if self.waiting.is_empty() {
            return true;
        }
        while let Some(message) = self.waiting.pop_front() {
            if let Err(message) = self.push(message) {
                self.waiting.push_front(message);
                break;
            }
        }
        self.waiting.is_empty()
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
        self.end.get_or_insert(end);
    }

    /// Drops what was not received, and says goodbye; a place in the ring is kept for that.
    pub(crate) fn close(&mut self) {
        if std::mem::replace(&mut self.closing, true) {
            return;
        }
        while let Some((note, entry, _)) = self.incoming.pop() {
            match note & 0xff00 {
                RETURNED => self.take_back(note, &entry),
                _ => drop(self.message(note, &entry)),
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
            self.outgoing.push(note, &[0; 7]);
            self.mapping.ring(bell::MESSAGE);
        }
    }

    /// Gives back dropped blocks in an entry of our ring, once they fill one or are large: so one line
    /// carries many, and it is a line that travels anyway.
    #[inline]
    fn return_dropped(&mut self) {
        if self.mapping.dropped_enough(RETURNED_MAX) {
            self.return_entry();
        }
    }

    #[cold]
    fn return_entry(&mut self) {
        if !self.waiting.is_empty() || self.outgoing.has_room(2) != Ok(true) {
            return;
        }
        let mut entry = Entry::default();
        let returned = self.mapping.take_dropped(RETURNED_MAX, |place, index| {
            entry[place / 2] |= u64::from(index) << (place % 2 * 32);
        });
        self.outgoing.push(RETURNED | returned as Note, &entry);
        self.mapping.ring(bell::ROOM);
    }

    /// Takes back the blocks that an entry names.
    #[cold]
    fn take_back(&self, note: Note, entry: &Entry) {
        let indices = entry
            .iter()
            .flat_map(|&word| [word as u32, (word >> 32) as u32]);
        self.arena
            .take_back_from(self.peer, indices.take(usize::from(note & 0xff)));
    }

    /// Puts a message in the ring, or gives it back when there is no room for it, or for the copy
    /// that the peer can read.
    #[inline(always)]
    fn push(&mut self, message: Buffer) -> Result<(), Buffer> {
        match self.outgoing.has_room(2) {
            Ok(true) => {}
            Ok(false) => return Err(message),
            Err(_) => {
                self.end(End::protocol("it took messages that were never sent"));
                return Ok(());
            }
        }
        let message = match message.body() {
            Body::Block { block, .. } if !self.arena.owns(block) => {
                copy_into(&self.arena, message)?
            }
            _ => message,
        };
        let (tag, body) = message.into_parts();
        match body {
            Body::Inline(inline) => self.push_inline(tag, &inline),
            Body::Block { block, len } => self.push_block(tag, block, len),
        }
        self.mapping.ring(bell::MESSAGE);
        Ok(())
    }

    /// Sends bytes that fit in a descriptor, when nothing is in the way; false when something is.
    #[inline]
    pub(crate) fn send_inline(&mut self, tag: u64, bytes: &[u8]) -> bool {
        let sendable = bytes.len() <= INLINE_BYTES
            && self.end.is_none()
            && self.waiting.is_empty()
            && self.outgoing.has_room(2) == Ok(true);
        if sendable {
            let mut entry = [tag, 0, 0, 0, 0, 0, 0];
            for (word, chunk) in entry[1..].iter_mut().zip(bytes.chunks(8)) {
                let mut padded = [0; 8];
                padded[..chunk.len()].copy_from_slice(chunk);
                *word = u64::from_ne_bytes(padded);
            }
            self.outgoing.push(INLINE | bytes.len() as Note, &entry);
            self.mapping.ring(bell::MESSAGE);
        }
        sendable
    }

    #[inline]
    fn push_inline(&mut self, tag: u64, inline: &Inline) {
        let [a, b, c, d, e, f] = inline.words();
        self.outgoing
            .push(INLINE | inline.len() as Note, &[tag, a, b, c, d, e, f]);
    }

    #[inline(always)]
    fn push_block(&mut self, tag: u64, block: Block, len: usize) {
        self.arena.handed_to(block.index(), self.peer);
        let entry = [
            tag,
            u64::from(block.index()),
            block.offset(),
            len as u64,
            0,
            0,
            0,
        ];
        block.hand_over();
        self.outgoing.push(BLOCK, &entry);
    }

    /// The message that an entry stands for, if it is one that a correct peer sends.
    #[inline(always)]
    fn message(&self, note: Note, entry: &Entry) -> Result<Buffer, End> {
        let [tag, a, b, c, d, e, f] = *entry;
        let body = match note & 0xff00 {
            INLINE => {
                Inline::from_words([a, b, c, d, e, f], usize::from(note & 0xff)).map(Body::Inline)
            }
            BLOCK => u32::try_from(a)
                .ok()
                .and_then(|index| Block::new(self.mapping.clone(), index, b, c))
                .map(|block| Body::Block {
                    block,
                    len: c as usize,
                }),
            CLOSE => return Err(End::Closed),
            PANICKED => return Err(End::Lost(Loss::Panicked)),
            ABANDONED => return Err(End::Lost(Loss::Disconnected)),
            _ => None,
        };
        let body = body.ok_or(End::protocol("a descriptor points outside its arena"))?;
        Ok(Buffer::new(tag, body))
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
        if let Some(end) = &self.end {
            return Err(end.error(self.peer));
        }
        if self.flush() {
            if let Err(message) = self.push(message) {
                self.waiting.push_back(message);
            }
        } else {
            self.waiting.push_back(message);
        }
        Ok(())
    }

    #[inline(always)]
    fn receive(&mut self) -> Result<Option<Buffer>, Error> {
        self.flush();
        self.return_dropped();
        loop {
            let Some((note, entry, handed_back)) = self.incoming.pop() else {
                return match &self.end {
                    Some(end) if !self.incoming.is_ready() => Err(end.error(self.peer)),
                    _ => Ok(None),
                };
            };
            if handed_back {
                self.mapping.ring(bell::ROOM);
            }
            if note & 0xff00 == RETURNED {
                self.take_back(note, &entry);
                continue;
            }
            return match self.message(note, &entry) {
                Ok(message) => Ok(Some(message)),
                Err(end) => {
                    let error = end.error(self.peer);
                    self.end(end);
                    Err(error)
                }
            };
        }
    }
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
    INLINE_BYTES == 6 * 8,
    "a descriptor has six words beside the tag"
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
        liar.push(note, &entry);
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
        refused(INLINE | 49, [0; ENTRY_WORDS]);
        refused(0, [0; ENTRY_WORDS]);
        refused(0xff00, [0; ENTRY_WORDS]);
    }

    #[test]
    fn returns_of_blocks_that_the_peer_was_not_handed_are_ignored() {
        let (mut link, mut liar, _theirs) = link_to_a_liar();
        let held = link.loan(64).unwrap().unwrap();
        let own = link.arena.clone();
        for index in [0, 1, 2, 65_535, u32::MAX] {
            liar.push(RETURNED | 2, &[u64::from(index), 0, 0, 0, 0, 0, 0]);
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
