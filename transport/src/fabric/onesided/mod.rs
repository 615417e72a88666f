//! One-sided operations, as a fabric offers them. See [`remote`](crate::remote) for how they are done.

#[cfg(all(test, not(loom)))]
mod devices;
mod serving;
#[cfg(all(test, not(loom)))]
mod tests;

use std::collections::VecDeque;

use super::{Contact, Fabric};
use crate::{
    Buffer, Error, Exposed, Issued, Loan, Operation, Rank, RegionHandle, RemoteRegion,
    arena::INLINE_BYTES,
    link::{
        Link,
        rdma::{Deed, part_of},
    },
    remote::{
        Asked, Frame, PIECE_BYTES, Place, Table, WORD_BYTES, Words, compare_swap, fetch_add, load,
        piece_of, store,
    },
    sync::AtomicU64,
};

impl Fabric {
    /// Exposes memory of this rank, so that others read and write it by themselves: its length is rounded up
    /// to whole words of eight bytes. Its [handle](Exposed::handle) is to be sent to them.
    ///
    /// On this node they do so in place, and over RDMA the devices do (see [`RemoteRegion::is_direct`]), for which this rank's
    /// registers the memory when the first attaches: those bytes are counted once more against the limit of locked memory, and
    /// where that does not allow it, or [`RdmaConfig::read_only`](crate::RdmaConfig) forbids it, messages do it. Over TCP and
    /// in a simulation it happens by messages, while this fabric is driven. What is put comes in pieces
    /// of up to 128 KiB then, each of which needs a loan as a message does: so not all of an arena should be exposed.
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
    /// Memory of a rank of this node that is reached over shared memory is mapped, and used in place from then on; memory of
    /// one that is reached over RDMA is used by the devices.
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
        let place = self.onesided.table().borrow_mut().attach(name, rank, None);
        let Place { offset, bytes, .. } = place.ok_or(missing)?;
        let words = Words::new(self.arena.mapping(), offset, bytes);
        Ok(self.onesided.region(rank, name, bytes, words, None))
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
        let issued = match region.words() {
            Some(words) => {
                store(words, offset as usize, bytes);
                Issued::Done(())
            }
            None => self.ask_to_put(region, offset, bytes)?,
        };
        if !matches!(issued, Issued::NoRoom) {
            self.traffic[region.owner() as usize].put += bytes.len() as u64;
        }
        Ok(issued)
    }

    /// Copies `bytes` bytes from `offset` on of the memory of a peer. On shared memory it is done at once, and
    /// [`RemoteRegion::words`] reads them without a copy; the event is an [`Outcome::Got`](crate::Outcome).
    ///
    /// Where messages do it, an owner that has no memory to answer with does so in small pieces, or, when much else waits behind
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
        let issued = match region.words() {
            Some(words) if bytes <= INLINE_BYTES => {
                let mut copy = [0; INLINE_BYTES];
                load(words, offset as usize, &mut copy[..bytes]);
                let buffer = Buffer::inline(0, &copy[..bytes]);
                buffer.map_or(Issued::NoRoom, Issued::Done)
            }
            _ => self.get_many(region, offset, bytes)?,
        };
        if !matches!(issued, Issued::NoRoom) {
            self.traffic[region.owner() as usize].got += bytes as u64;
        }
        Ok(issued)
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
        if let Some(device) = self.device(region, offset) {
            let deed = Deed::Get { whole, asked: 0 };
            return Ok(Issued::Pending(self.operate(region.owner(), device, deed)));
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
        if let Some(device) = self.device_for_words(region, offset) {
            return self.operate_on_word(region, device, |old| Deed::FetchAdd { value, old });
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
        if let Some(device) = self.device_for_words(region, offset) {
            return self.operate_on_word(region, device, |old| Deed::CompareSwap {
                expected,
                new,
                old,
            });
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
        let device = self.device(region, offset);
        let by_value_max = device
            .as_ref()
            .map_or(INLINE_BYTES, |device| device.inline_bytes);
        let mut pieces = VecDeque::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = offset + (bytes.len() - rest.len()) as u64;
            let (piece, others) = rest.split_at(match device {
                Some(_) => part_of(at, rest.len(), PIECE_BYTES),
                None => piece_of(at, rest.len() as u64, PIECE_BYTES),
            });
            rest = others;
            let by_value = (piece.len() <= by_value_max).then(|| Buffer::inline(0, piece));
            pieces.push_back(match by_value.flatten() {
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
        if let Some(device) = device {
            let deed = Deed::Put { pieces };
            return Ok(Issued::Pending(self.operate(owner, device, deed)));
        }
        let frame = Frame::Put {
            name: region.0.name,
            offset,
            bytes: bytes.len() as u64,
        };
        let pieces = pieces.into();
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

    /// How devices reach `offset` of the memory, if they may and can keep the order now.
    fn device(&self, region: &RemoteRegion, offset: u64) -> Option<Device> {
        let (access, start) = region.0.access()?;
        let owner = region.owner();
        match self.peers.get(owner as usize) {
            Some(Contact::Open(Link::Rdma(link))) if !self.onesided.is_asking(owner) => {
                Some(Device {
                    key: access.key,
                    at: start + offset,
                    inline_bytes: link.inline_bytes(),
                    operates_on_words: access.atomics && link.has_atomics(),
                })
            }
            _ => None,
        }
    }

    /// The same for operations on words.
    fn device_for_words(&self, region: &RemoteRegion, offset: u64) -> Option<Device> {
        let device = self.device(region, offset)?;
        device.operates_on_words.then_some(device)
    }

    fn operate_on_word(
        &mut self,
        region: &RemoteRegion,
        device: Device,
        deed: impl FnOnce(Loan) -> Deed,
    ) -> Result<Issued<u64>, Error> {
        let owner = region.owner();
        if !self.onesided.has_room(owner) {
            return Ok(Issued::NoRoom);
        }
        let Some(old) = self.loan(WORD_BYTES)? else {
            return Ok(Issued::NoRoom);
        };
        Ok(Issued::Pending(self.operate(owner, device, deed(old))))
    }

    fn operate(&mut self, owner: Rank, device: Device, deed: Deed) -> Operation {
        let Device { key, at, .. } = device;
        let link = match &mut self.peers[owner as usize] {
            Contact::Open(Link::Rdma(link)) => Some(&mut **link),
            _ => None,
        };
        self.onesided.operate(owner, link, key, at, deed)
    }

    fn ask(&mut self, peer: Rank, frame: Frame, asked: Asked, pieces: Vec<Buffer>) -> Operation {
        let link = match &mut self.peers[peer as usize] {
            Contact::Open(link) => Some(link),
            _ => None,
        };
        self.onesided.ask(peer, link, frame, asked, pieces)
    }
}

/// How devices reach exposed memory of a peer.
struct Device {
    key: u32,
    /// Where in its arena.
    at: u64,
    /// The most bytes that go inside a request.
    inline_bytes: usize,
    operates_on_words: bool,
}

/// The word at an offset that has been checked, if we have mapped it.
#[inline]
fn word(region: &RemoteRegion, offset: u64) -> Option<&AtomicU64> {
    Some(&region.words()?[offset as usize / WORD_BYTES])
}
