//! One-sided operations, as a fabric offers them. See [`remote`](crate::remote) for how they are done.

use std::collections::VecDeque;

use super::{Contact, Fabric};
use crate::{
    Buffer, Endpoint, Error, Exposed, Issued, Loan, Operation, Rank, RegionHandle, RemoteRegion,
    arena::INLINE_BYTES,
    link::End,
    remote::{
        Asked, Frame, PIECE_BYTES, Table, WORD_BYTES, Words, compare_swap, fetch_add, load,
        piece_of, store,
    },
    sync::AtomicU64,
};

impl Fabric {
    /// Exposes memory of this rank, so that others read and write it by themselves: its length is rounded up
    /// to whole words of eight bytes. Its [handle](Exposed::handle) is to be sent to them.
    ///
    /// Over TCP and in a simulation they do so while this fabric is driven. What they put there comes in pieces
    /// of up to 128 KiB, each of which needs a loan as a message does: so not all of an arena should be exposed.
    ///
    /// ```
    /// use std::sync::atomic::Ordering;
    /// use transport::{Arena, Event, Fabric, Issued, Ledger};
    ///
    /// let mut fabric = Fabric::alone(Arena::new(&Ledger::new(1 << 20), 1 << 20)?);
    /// let mut loan = fabric.loan(64)?.expect("nothing is lent yet");
    /// loan.fill(0);
    /// let exposed = fabric.expose(loan)?;
    ///
    /// // Another rank does the same with a handle that was sent to it, and waits for an `Event::Completed`
    /// // wherever an operation is pending. Here the owner attaches to its own memory.
    /// let Issued::Done(region) = fabric.attach(&exposed.handle())? else { panic!("it is ours") };
    /// assert!(matches!(fabric.put(&region, 8, &7u64.to_ne_bytes())?, Issued::Done(())));
    /// assert!(matches!(fabric.fetch_add(&region, 8, 3)?, Issued::Done(7)));
    /// assert_eq!(exposed.words()[1].load(Ordering::Acquire), 10);
    /// # Ok::<(), transport::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ForeignLoan`] for a loan of another arena; [`Error::Random`] when no key can be drawn.
    pub fn expose(&self, loan: Loan) -> Result<Exposed, Error> {
        Table::expose(self.onesided.table(), &self.arena, loan)
    }

    /// Attaches to memory that another rank, or this one, has exposed. The owner is asked, and a
    /// link to it made if there is none; its answer is an [`Outcome::Attached`](crate::Outcome).
    ///
    /// Memory of a rank of this node that is reached over shared memory is mapped, and used in place from then on.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownRank`], or why the owner is gone. That nothing is exposed by the handle (it was made up, or
    /// the owner took the memory back) is an [`Error::NotExposed`]: for memory of our own at once, and
    /// otherwise in the [`Event::Completed`](crate::Event::Completed).
    pub fn attach(&mut self, handle: &RegionHandle) -> Result<Issued<RemoteRegion>, Error> {
        let owner = handle.owner();
        if owner == self.rank {
            return self.attach_to_own(handle).map(Issued::Done);
        }
        let is_unknown = match self.peers.get(owner as usize) {
            Some(Contact::Ended(end)) => return Err(end.error(owner)),
            Some(contact) => matches!(contact, Contact::Unknown),
            None => {
                return Err(Error::UnknownRank {
                    rank: owner,
                    size: self.size(),
                });
            }
        };
        if !self.onesided.has_room(owner) {
            return Ok(Issued::NoRoom);
        }
        let (frame, asked) = (Frame::Attach(handle.name), Asked::Attach(handle.name));
        let operation = self.ask(owner, frame, asked, Vec::new());
        if is_unknown {
            self.connect(owner, VecDeque::new());
        }
        Ok(Issued::Pending(operation))
    }

    fn attach_to_own(&mut self, handle: &RegionHandle) -> Result<RemoteRegion, Error> {
        let (rank, name) = (self.rank, handle.name);
        let missing = Error::NotExposed { peer: rank };
        let place = self.onesided.table().borrow_mut().attach(name, rank, true);
        let (offset, bytes) = place.ok_or(missing)?;
        let words = Words::new(self.arena.mapping(), offset, bytes);
        Ok(self.onesided.region(rank, name, bytes, words))
    }

    /// Copies `bytes` to `offset` of the memory of a peer. What is visible when, and to whom, is told at
    /// [`RemoteRegion`].
    ///
    /// On shared memory it is done at once. On other paths the bytes are copied, so they need not be kept; the
    /// event is an [`Outcome::Put`](crate::Outcome).
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRegion`]; [`Error::NotExposed`] once the owner is known to have taken the memory
    /// back; [`Error::MessageTooLarge`] when the copy could never be had; or why the owner is gone.
    #[inline]
    pub fn put(
        &mut self,
        region: &RemoteRegion,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Issued<()>, Error> {
        self.check(region, offset, bytes.len() as u64)?;
        if let Some(words) = region.words() {
            store(words, offset as usize, bytes);
            return Ok(Issued::Done(()));
        }
        self.ask_to_put(region, offset, bytes)
    }

    /// Copies `bytes` bytes from `offset` on of the memory of a peer. On shared memory it is done at once, and
    /// [`RemoteRegion::words`] reads them without a copy; the event is an [`Outcome::Got`](crate::Outcome).
    ///
    /// An owner that has no memory to answer with does so in small pieces, or, when much else waits behind
    /// the answer, not at all: that is an [`Error::PeerFull`] in the event.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    #[inline]
    pub fn get(
        &mut self,
        region: &RemoteRegion,
        offset: u64,
        bytes: usize,
    ) -> Result<Issued<Buffer>, Error> {
        self.check(region, offset, bytes as u64)?;
        if bytes <= INLINE_BYTES
            && let Some(words) = region.words()
        {
            let mut copy = [0; INLINE_BYTES];
            load(words, offset as usize, &mut copy[..bytes]);
            let buffer = Buffer::inline(0, &copy[..bytes]);
            return Ok(buffer.map_or(Issued::NoRoom, Issued::Done));
        }
        self.get_many(region, offset, bytes)
    }

    fn get_many(
        &mut self,
        region: &RemoteRegion,
        offset: u64,
        bytes: usize,
    ) -> Result<Issued<Buffer>, Error> {
        if bytes == 0
            && let Some(nothing) = Buffer::inline(0, b"")
        {
            return Ok(Issued::Done(nothing));
        }
        if !self.onesided.has_room(region.owner()) {
            return Ok(Issued::NoRoom);
        }
        let Some(mut whole) = self.loan(bytes)? else {
            return Ok(Issued::NoRoom);
        };
        if let Some(words) = region.words() {
            load(words, offset as usize, &mut whole);
            return Ok(Issued::Done(whole.freeze()));
        }
        let frame = Frame::Get {
            name: region.0.name,
            offset,
            bytes: bytes as u64,
        };
        let asked = Asked::Get { whole, filled: 0 };
        let operation = self.ask(region.owner(), frame, asked, Vec::new());
        Ok(Issued::Pending(operation))
    }

    /// Adds `value` to the word at `offset` of the memory of a peer, wrapping around, and brings what it was:
    /// at once on shared memory, and otherwise as [`Outcome::Old`](crate::Outcome).
    ///
    /// A word has the order of bytes of this machine, and `offset` is a multiple of 8.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], and those of [`put`](Self::put).
    #[inline]
    pub fn fetch_add(
        &mut self,
        region: &RemoteRegion,
        offset: u64,
        value: u64,
    ) -> Result<Issued<u64>, Error> {
        self.check_word(region, offset)?;
        if let Some(word) = word(region, offset) {
            return Ok(Issued::Done(fetch_add(word, value)));
        }
        let frame = Frame::FetchAdd {
            name: region.0.name,
            offset,
            value,
        };
        self.ask_for_word(region, frame)
    }

    /// Replaces the word at `offset` of the memory of a peer by `new` if it is `expected`, and brings what it was:
    /// it has been replaced if that is `expected`. Otherwise as [`fetch_add`](Self::fetch_add).
    ///
    /// # Errors
    ///
    /// As [`fetch_add`](Self::fetch_add).
    #[inline]
    pub fn compare_swap(
        &mut self,
        region: &RemoteRegion,
        offset: u64,
        expected: u64,
        new: u64,
    ) -> Result<Issued<u64>, Error> {
        self.check_word(region, offset)?;
        if let Some(word) = word(region, offset) {
            return Ok(Issued::Done(compare_swap(word, expected, new)));
        }
        let frame = Frame::CompareSwap {
            name: region.0.name,
            offset,
            expected,
            new,
        };
        self.ask_for_word(region, frame)
    }

    /// Operations on the memory of `peer` whose completion has not been told. Zero is the fence: all that
    /// was issued has been carried out there.
    pub fn outstanding(&self, peer: Rank) -> usize {
        self.onesided.outstanding(peer)
    }

    #[inline]
    fn check(&self, region: &RemoteRegion, offset: u64, bytes: u64) -> Result<(), Error> {
        let within = offset
            .checked_add(bytes)
            .is_some_and(|end| end <= region.len());
        let contact = self.peers.get(region.owner() as usize);
        let alive = matches!(contact, Some(contact) if !matches!(contact, Contact::Ended(_)));
        if within && alive && !region.is_revoked() {
            Ok(())
        } else {
            Err(self.objection(region, offset, bytes))
        }
    }

    /// What is wrong with an operation.
    #[cold]
    fn objection(&self, region: &RemoteRegion, offset: u64, bytes: u64) -> Error {
        let peer = region.owner();
        match self.peers.get(peer as usize) {
            None => Error::UnknownRank {
                rank: peer,
                size: self.size(),
            },
            Some(Contact::Ended(end)) => end.error(peer),
            Some(_) if region.is_revoked() => Error::NotExposed { peer },
            Some(_) => Error::OutOfRegion {
                peer,
                offset,
                bytes,
                limit: region.len(),
            },
        }
    }

    #[inline]
    fn check_word(&self, region: &RemoteRegion, offset: u64) -> Result<(), Error> {
        if !offset.is_multiple_of(WORD_BYTES as u64) {
            return Err(Error::Misaligned { offset });
        }
        self.check(region, offset, WORD_BYTES as u64)
    }

    fn ask_to_put(
        &mut self,
        region: &RemoteRegion,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Issued<()>, Error> {
        if bytes.is_empty() {
            return Ok(Issued::Done(()));
        }
        if bytes.len() as u64 > self.arena.capacity() {
            return Err(Error::MessageTooLarge {
                bytes: bytes.len() as u64,
                limit: self.arena.capacity(),
            });
        }
        let owner = region.owner();
        if !self.onesided.has_room(owner) {
            return Ok(Issued::NoRoom);
        }
        let mut pieces = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = offset + (bytes.len() - rest.len()) as u64;
            let (piece, others) = rest.split_at(piece_of(at, rest.len() as u64, PIECE_BYTES));
            rest = others;
            pieces.push(match Buffer::inline(0, piece) {
                Some(piece) => piece,
                None => {
                    let Some(mut loan) = self.loan(piece.len())? else {
                        return Ok(Issued::NoRoom);
                    };
                    loan.copy_from_slice(piece);
                    loan.freeze()
                }
            });
        }
        let frame = Frame::Put {
            name: region.0.name,
            offset,
            bytes: bytes.len() as u64,
        };
        Ok(Issued::Pending(self.ask(owner, frame, Asked::Put, pieces)))
    }

    fn ask_for_word(&mut self, region: &RemoteRegion, frame: Frame) -> Result<Issued<u64>, Error> {
        let owner = region.owner();
        if !self.onesided.has_room(owner) {
            return Ok(Issued::NoRoom);
        }
        let operation = self.ask(owner, frame, Asked::Old, Vec::new());
        Ok(Issued::Pending(operation))
    }

    fn ask(&mut self, peer: Rank, frame: Frame, asked: Asked, pieces: Vec<Buffer>) -> Operation {
        let link = match &mut self.peers[peer as usize] {
            Contact::Open(link) => Some(link),
            _ => None,
        };
        self.onesided.ask(peer, link, frame, asked, pieces)
    }

    /// Deals with what `peer` sent beside its messages.
    #[cold]
    pub(super) fn serve(&mut self, peer: Rank) {
        let Contact::Open(link) = &mut self.peers[peer as usize] else {
            return;
        };
        while let Some(aside) = link.take_aside() {
            let events = &mut self.events;
            let taken = self.onesided.take(peer, link, &self.arena, aside, events);
            if let Err(end) = taken {
                return self.broke_the_protocol(peer, end);
            }
        }
    }

    fn broke_the_protocol(&mut self, peer: Rank, end: End) {
        let error = end.error(peer);
        if let Contact::Open(link) = &mut self.peers[peer as usize] {
            link.end(end);
        }
        self.ended(peer, error);
    }

    /// Receives from `peer` while the answer to a `Get` waits for memory: what comes is put behind it.
    #[cold]
    pub(super) fn poll_behind(&mut self, peer: Rank) -> Option<Buffer> {
        let Contact::Open(link) = &mut self.peers[peer as usize] else {
            return None;
        };
        link.flush();
        if !self.onesided.has_room_behind(peer) {
            self.onesided.refuse(peer, link);
        } else if link.is_ready() {
            match link.receive() {
                Ok(Some(message)) => self.onesided.put_behind(peer, message),
                Ok(None) => {
                    while let Some(aside) = link.take_aside() {
                        let events = &mut self.events;
                        let taken = self.onesided.take(peer, link, &self.arena, aside, events);
                        if let Err(end) = taken {
                            self.broke_the_protocol(peer, end);
                            return None;
                        }
                    }
                }
                Err(_) => self.onesided.give_up(peer), // It says so again once its messages are received.
            }
        }
        self.onesided.go_on(peer, link, &self.arena)
    }

    /// Whether an answer that waits for memory can go on without it.
    #[cold]
    pub(super) fn can_any_go_on(&mut self) -> bool {
        self.open
            .iter()
            .any(|&peer| match &mut self.peers[peer as usize] {
                Contact::Open(link) => self.onesided.is_blocked(peer) && link.flush(),
                _ => false,
            })
    }

    /// Tells others that memory of ours is not exposed any more, and that we do not touch theirs.
    #[inline]
    pub(super) fn tell_about_memory(&mut self) {
        if self.onesided.table().borrow().has_notices() {
            self.send_notices();
        }
    }

    #[cold]
    fn send_notices(&mut self) {
        let notices = self.onesided.table().borrow_mut().take_notices();
        for (peer, frame) in notices {
            match (self.peers.get_mut(peer as usize), frame) {
                (_, Frame::Revoked(name)) if peer == self.rank => self.onesided.revoke(peer, name),
                (Some(Contact::Open(link)), frame) => {
                    if let Some(frame) = Buffer::inline(0, &frame.encode()) {
                        link.send_aside(frame);
                    }
                }
                _ => {} // It is gone, and so is what it would do with the news.
            }
        }
    }
}

/// The word at an offset that has been checked, if we have mapped it.
#[inline]
fn word(region: &RemoteRegion, offset: u64) -> Option<&AtomicU64> {
    Some(&region.words()?[offset as usize / WORD_BYTES])
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::{
        Arena, Event, Ledger, Loss, Outcome, Simulation,
        remote::{Name, Reason},
    };

    /// Two ranks, of which the second says what it likes.
    struct Pair {
        network: Simulation,
        here: Fabric,
        liar: Fabric,
    }

    impl Pair {
        fn new(bytes: u64) -> Self {
            let network = Simulation::new(3, 2);
            let fabric = |rank| {
                let arena = Arena::new(&Ledger::new(bytes), bytes).unwrap();
                network.fabric(rank, &arena)
            };
            Self {
                here: fabric(0),
                liar: fabric(1),
                network,
            }
        }

        fn lie(&mut self, number: u64, bytes: &[u8]) {
            let Contact::Open(link) = &mut self.liar.peers[0] else {
                panic!("it is open");
            };
            link.send_aside(Buffer::inline(number, bytes).unwrap());
        }

        fn say(&mut self, number: u64, frame: Frame) {
            self.lie(number, &frame.encode());
        }

        /// What the honest rank has to say about it.
        fn heard(&mut self) -> Vec<Event> {
            let mut events = Vec::new();
            loop {
                let event = self.here.receive().unwrap();
                if event.is_none() && !self.network.advance() {
                    return events;
                }
                events.extend(event);
            }
        }

        fn assert_disbelieved(&mut self) {
            let heard = self.heard();
            let ended = heard.iter().any(|event| match event {
                Event::Ended { peer: 1, error } => matches!(
                    **error,
                    Error::PeerLost {
                        cause: Loss::Protocol(_),
                        ..
                    }
                ),
                _ => false,
            });
            assert!(ended, "{heard:?}");
        }

        fn expose(&self, bytes: usize) -> Exposed {
            let mut loan = self.here.loan(bytes).unwrap().unwrap();
            loan.fill(9);
            self.here.expose(loan).unwrap()
        }
    }

    #[test]
    fn what_is_no_frame_or_answers_no_question_ends_the_link() {
        let name = Name { index: 0, key: 0 };
        let (offset, bytes) = (0, 0);
        let frames = [
            Frame::Written,
            Frame::Old { value: 1 },
            Frame::Attached { offset, bytes: 8 },
            Frame::Read { bytes: 1 },
            Frame::Refused(Reason::NotExposed),
            Frame::Put {
                name,
                offset,
                bytes,
            },
            Frame::Get {
                name,
                offset,
                bytes,
            },
        ];
        let frames = frames.map(|frame| frame.encode().to_vec());
        let strange = [
            vec![],
            vec![1; 47],
            vec![0; 48],
            vec![0xff; 48],
            vec![1; 49],
        ];
        for bytes in frames.into_iter().chain(strange) {
            let mut pair = Pair::new(1 << 20);
            pair.lie(0, &bytes);
            pair.assert_disbelieved();
        }
    }

    #[test]
    fn pieces_that_were_not_announced_end_the_link_and_are_not_written() {
        for piece in [&[][..], &[1; 11]] {
            let mut pair = Pair::new(1 << 20);
            let exposed = pair.expose(64);
            let name = exposed.handle().name;
            pair.say(
                0,
                Frame::Put {
                    name,
                    offset: 0,
                    bytes: 10,
                },
            );
            pair.lie(0, piece);
            pair.assert_disbelieved();
            assert_eq!(
                exposed.words()[0].load(Ordering::Relaxed),
                0x0909_0909_0909_0909
            );
        }
    }

    #[test]
    fn a_peer_writes_nothing_but_what_is_exposed() {
        let mut pair = Pair::new(1 << 20);
        let exposed = pair.expose(64);
        let Name { index, key } = exposed.handle().name;
        let name = Name { index, key };
        let gone = pair.expose(64).handle().name; // Taken back at once.
        for (name, offset) in [
            (Name { index, key: !key }, 0),
            (Name { index: 7, key }, 0),
            (
                Name {
                    index: u32::MAX,
                    key,
                },
                0,
            ),
            (gone, 0),
            (name, 57),
            (name, 64),
            (name, u64::MAX - 3),
        ] {
            pair.say(
                0,
                Frame::FetchAdd {
                    name,
                    offset,
                    value: 1,
                },
            );
            pair.say(
                0,
                Frame::CompareSwap {
                    name,
                    offset,
                    expected: 0x0909_0909_0909_0909,
                    new: 1,
                },
            );
            pair.say(
                0,
                Frame::Put {
                    name,
                    offset,
                    bytes: 8,
                },
            );
            pair.lie(0, &[1; 5]);
            pair.lie(0, &[1; 3]);
            pair.say(
                0,
                Frame::Get {
                    name,
                    offset,
                    bytes: 8,
                },
            );
        }
        pair.say(
            0,
            Frame::FetchAdd {
                name,
                offset: 4,
                value: 1,
            },
        );
        pair.say(
            0,
            Frame::Put {
                name,
                offset: 0,
                bytes: u64::MAX,
            },
        );
        pair.lie(0, &[1; 8]);
        assert!(
            pair.heard().is_empty(),
            "to ask is not to break the protocol"
        );
        for word in exposed.words() {
            assert_eq!(word.load(Ordering::Relaxed), 0x0909_0909_0909_0909);
        }
    }

    #[test]
    fn answers_to_other_questions_or_longer_than_asked_end_the_link() {
        let handle = RegionHandle::from_bytes(&{
            let mut bytes = [0; RegionHandle::BYTES];
            bytes[0] = 1;
            bytes
        });
        for lies in [
            vec![Frame::Read { bytes: 11 }],
            vec![Frame::Read { bytes: u64::MAX }],
            vec![Frame::Written],
            vec![Frame::Old { value: 3 }],
        ] {
            let mut pair = Pair::new(1 << 20);
            assert!(matches!(
                pair.here.attach(&handle),
                Ok(Issued::Pending(Operation(1)))
            ));
            pair.say(
                1,
                Frame::Attached {
                    offset: 0,
                    bytes: 64,
                },
            );
            let [Event::Completed { completion, .. }] = &pair.heard()[..] else {
                panic!("it is attached");
            };
            let Ok(Outcome::Attached(region)) = &completion.outcome else {
                panic!("it is attached");
            };
            assert!(matches!(
                pair.here.get(region, 0, 10),
                Ok(Issued::Pending(Operation(2)))
            ));
            for lie in lies {
                pair.say(2, lie);
            }
            pair.assert_disbelieved();
            assert_eq!(pair.here.outstanding(1), 0);
        }
    }

    #[test]
    fn a_get_behind_which_too_much_waits_is_refused_and_nothing_else_is_lost() {
        const BYTES: usize = 8 << 20;
        const MESSAGES: u64 = 1_200;
        let mut pair = Pair::new(9 << 20);
        let exposed = pair.expose(BYTES);
        let lent: Vec<_> = [1 << 16, 1 << 12, 1]
            .into_iter()
            .flat_map(|bytes| {
                std::iter::from_fn(|| pair.here.loan(bytes).unwrap()).collect::<Vec<_>>()
            })
            .collect();
        // The other is honest here, and asks.
        let asker = &mut pair.liar;
        let mut attached = None;
        assert!(matches!(
            asker.attach(&exposed.handle()),
            Ok(Issued::Pending(_))
        ));
        while attached.is_none() {
            assert!(pair.here.receive().unwrap().is_none());
            pair.network.advance();
            if let Some(Event::Completed { completion, .. }) = asker.receive().unwrap()
                && let Ok(Outcome::Attached(region)) = completion.outcome
            {
                attached = Some(region);
            }
        }
        let region = attached.unwrap();
        assert!(matches!(
            asker.get(&region, 0, BYTES),
            Ok(Issued::Pending(_))
        ));
        assert!(matches!(
            asker.fetch_add(&region, 0, 1),
            Ok(Issued::Pending(_))
        ));
        for number in 0..MESSAGES {
            assert!(asker.send_copy(0, number, b"behind").unwrap());
        }
        let (mut received, mut outcomes) = (0, Vec::new());
        while received < MESSAGES || outcomes.len() < 2 {
            if let Some(Event::Message { buffer, .. }) = pair.here.receive().unwrap() {
                assert_eq!(buffer.tag(), received);
                received += 1;
            }
            pair.network.advance();
            if let Some(Event::Completed { completion, .. }) = asker.receive().unwrap() {
                outcomes.push(completion.outcome);
            }
        }
        let full = Error::PeerFull {
            peer: 0,
            bytes: BYTES as u64,
        };
        let told = outcomes[0].as_ref().unwrap_err();
        assert_eq!(told.to_string(), full.to_string());
        assert!(matches!(
            outcomes[1],
            Ok(Outcome::Old(0x0909_0909_0909_0909))
        ));
        drop(lent);
    }
}
