//! The two ends of exposed memory: its owner's, and that of a rank that attached to it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    rc::Rc,
};

use super::{
    Access, Frame, Name, Reason, RegionHandle, WORD_BYTES, Words, load, load_streaming, store,
};
use crate::{
    Buffer, Error, Loan, Rank,
    arena::Arena,
    link::{Link, rdma::Exposure},
    secret,
    sync::AtomicU64,
};

/// Memory of ours that other ranks read and write by themselves. Dropping it takes the memory back.
///
/// Peers write at any time, so even the owner has no slice of its bytes: it has them as atomic
/// [words](Self::words), and copies. Bytes have the order of this machine within a word.
///
/// After the drop no rank can attach or ask for anything; where it is exposed no more they are told so
/// ([`Error::NotExposed`]). A rank that has mapped it (one of this node), or whose RDMA device may use it, may still
/// touch it, until it drops its [`RemoteRegion`] or its process or link ends: only then does the memory go
/// back to the arena. So whoever exposes need not agree with anyone on when to stop.
pub struct Exposed {
    words: Words,
    handle: RegionHandle,
    table: Rc<RefCell<Table>>,
}

impl Exposed {
    /// What others need to use the memory: to be sent to them.
    pub fn handle(&self) -> RegionHandle {
        self.handle
    }

    /// Bytes exposed: those of the loan, rounded up to whole words of eight.
    pub fn len(&self) -> usize {
        self.words().len() * WORD_BYTES
    }

    /// Whether no bytes are exposed.
    pub fn is_empty(&self) -> bool {
        self.words().is_empty()
    }

    /// The memory in place. Others change it at any time: an acquire load sees what was put before the
    /// atomic operation that it reads from.
    pub fn words(&self) -> &[AtomicU64] {
        self.words.as_slice()
    }

    /// Copies bytes from `offset` on out of the memory, word by word: what others write meanwhile is seen
    /// in parts.
    ///
    /// # Panics
    ///
    /// If there are fewer bytes.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        load(self.words(), offset, bytes);
    }

    /// Copies bytes into the memory from `offset` on, word by word. To publish them, follow it by an atomic
    /// store with release order, or by a message.
    ///
    /// # Panics
    ///
    /// If there is not so much room.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        store(self.words(), offset, bytes);
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        self.table.borrow_mut().close(self.handle.name);
    }
}

impl fmt::Debug for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposed")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}

/// Memory of another rank that we may read and write. Cloning gives another handle on it; dropping the
/// last tells the owner that we do not touch it any more.
///
/// # What is visible when
///
/// All accesses are of words of eight bytes, aligned, and each word is read and written whole; bytes that do
/// not fill a word are merged into it. Larger copies may be seen in parts. (Where RDMA devices put and get, that words are whole
/// is how adapters move data, and nothing that the verbs promise; Soft-RoCE may show a word in parts to whoever
/// looks at it before what was put is published.)
///
/// * Operations of one rank on the memory of one owner are carried out in the order in which they were issued.
/// * An operation is *complete*, carried out at the owner, when it returned [`Issued::Done`](crate::Issued), or
///   its [`Event::Completed`](crate::Event) has come. When [`Fabric::outstanding`](crate::Fabric::outstanding)
///   is zero, all are: that is the fence.
/// * [`put`](crate::Fabric::put) publishes nothing by itself. An atomic operation that follows it does,
///   to whoever reads its word with acquire order (or by an atomic operation), and so does a
///   message that follows it: the owner that receives the message sees what was put. For a third rank, let the
///   operation complete before the message is sent.
/// * An atomic operation, and a message received, has what was published before it seen by a
///   [`get`](crate::Fabric::get) that follows.
/// * Atomic operations are atomic with those of all other ranks, on whatever paths, and with the owner's own. An RDMA
///   device carries them out only if it says that processors see them so (`IBV_ATOMIC_GLOB`); otherwise the owner does,
///   asked by a message, and what is issued while such a question is on its way goes by messages behind it.
#[derive(Clone)]
pub struct RemoteRegion(pub(crate) Rc<Attached>);

/// What all handles on attached memory share.
pub(crate) struct Attached {
    pub(crate) owner: Rank,
    pub(crate) name: Name,
    pub(crate) bytes: u64,
    /// The memory itself, when we have mapped it.
    words: Option<Words>,
    /// How our RDMA device reaches it, when it may, and where it is in the owner's arena.
    access: Option<(Access, u64)>,
    revoked: Cell<bool>,
    /// Our own book, which passes on that we let go.
    table: Rc<RefCell<Table>>,
}

impl RemoteRegion {
    /// The rank whose memory it is.
    pub fn owner(&self) -> Rank {
        self.0.owner
    }

    /// Bytes that can be reached.
    pub fn len(&self) -> u64 {
        self.0.bytes
    }

    /// Whether no bytes can be reached.
    pub fn is_empty(&self) -> bool {
        self.0.bytes == 0
    }

    /// The memory in place, without a copy: when the owner is on this node, and reached over shared memory.
    /// `None` on other paths.
    ///
    /// It stays readable after the owner has taken it back or has died, until this is dropped; whether that
    /// has happened is told by [`is_revoked`](Self::is_revoked) and by
    /// [`Event::Ended`](crate::Event::Ended).
    #[inline]
    pub fn words(&self) -> Option<&[AtomicU64]> {
        self.0.words()
    }

    /// Copies bytes from `offset` on out of the memory in place, word by word: what others write meanwhile is seen in parts.
    /// Whether they could be copied: false where the memory is not in place, or there are fewer bytes.
    #[inline]
    #[must_use = "nothing is read when it is false"]
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> bool {
        let words = self.within(offset, bytes.len());
        words.is_some_and(|words| {
            load(words, offset, bytes);
            true
        })
    }

    /// The same past the caches of this processor, as [`copy_streaming`](crate::copy_streaming) does.
    #[inline]
    #[must_use = "nothing is read when it is false"]
    pub fn read_streaming(&self, offset: usize, bytes: &mut [u8]) -> bool {
        let words = self.within(offset, bytes.len());
        words.is_some_and(|words| {
            load_streaming(words, offset, bytes);
            true
        })
    }

    /// Copies bytes into the memory in place from `offset` on, word by word. To publish them, follow it by an atomic store
    /// with release order, or by a message. Whether they could be copied, as for [`read`](Self::read).
    #[inline]
    #[must_use = "nothing is written when it is false"]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let words = self.within(offset, bytes.len());
        words.is_some_and(|words| {
            store(words, offset, bytes);
            true
        })
    }

    /// The memory in place, if that has so many bytes from `offset` on.
    #[inline]
    fn within(&self, offset: usize, bytes: usize) -> Option<&[AtomicU64]> {
        self.words().filter(|words| reaches(words, offset, bytes))
    }

    /// Whether the memory is put to and got from without the program of its owner: in place, or by RDMA devices. Then it
    /// is not lent again before this is dropped.
    pub fn is_direct(&self) -> bool {
        self.0.is_direct()
    }

    /// Whether the owner is known to have taken the memory back. Then it should be dropped, because
    /// the owner waits for that.
    pub fn is_revoked(&self) -> bool {
        self.0.revoked.get()
    }
}

/// Whether there are so many bytes from `offset` on.
#[inline]
fn reaches(words: &[AtomicU64], offset: usize, bytes: usize) -> bool {
    let all = words.len() * WORD_BYTES;
    offset <= all && bytes <= all - offset
}

impl Attached {
    pub(crate) fn new(
        owner: Rank,
        name: Name,
        bytes: u64,
        words: Option<Words>,
        access: Option<(Access, u64)>,
        table: Rc<RefCell<Table>>,
    ) -> Self {
        Self {
            owner,
            name,
            bytes,
            words,
            access,
            revoked: Cell::new(false),
            table,
        }
    }

    #[inline]
    pub(crate) fn words(&self) -> Option<&[AtomicU64]> {
        self.words.as_ref().map(Words::as_slice)
    }

    pub(crate) fn access(&self) -> Option<(Access, u64)> {
        self.access
    }

    fn is_direct(&self) -> bool {
        self.words.is_some() || self.access.is_some()
    }

    pub(crate) fn revoke(&self) {
        self.revoked.set(true);
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.is_direct() {
            self.table.borrow_mut().let_go(self.owner, self.name);
        }
    }
}

impl fmt::Debug for RemoteRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteRegion")
            .field("owner", &self.0.owner)
            .field("bytes", &self.0.bytes)
            .field("is_mapped", &self.0.words.is_some())
            .finish_non_exhaustive()
    }
}

/// The owner's book of what it exposes, and what it has to tell others about that.
pub(crate) struct Table {
    rank: Rank,
    entries: Vec<Option<Entry>>,
    notices: Vec<(Rank, Frame)>,
}

struct Entry {
    key: u64,
    /// Whether it is still exposed.
    open: bool,
    words: Words,
    offset: u64,
    bytes: u64,
    /// Lets devices of peers use it.
    exposure: Option<Exposure>,
    /// Keeps the memory from being lent again.
    buffer: Option<Buffer>,
    /// The ranks that have it mapped, or whose device may use it, and how often each has attached.
    holders: BTreeMap<Rank, u64>,
}

/// Where exposed memory is in its owner's arena, and how the device of who asked reaches it.
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) access: Option<Access>,
}

impl Table {
    pub(crate) fn new(rank: Rank) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            rank,
            entries: Vec::new(),
            notices: Vec::new(),
        }))
    }

    /// Exposes a loan of `arena`, which is ours.
    pub(crate) fn expose(
        table: &Rc<RefCell<Self>>,
        arena: &Arena,
        mut loan: Loan,
    ) -> Result<Exposed, Error> {
        let asked = loan.len();
        loan.set_len(asked.next_multiple_of(WORD_BYTES)); // Blocks are of whole lines.
        loan[asked..].fill(0);
        let bytes = loan.len() as u64;
        let buffer = loan.freeze();
        let block = buffer.block().filter(|block| arena.owns(block));
        let offset = block.ok_or(Error::ForeignLoan)?.offset();
        let words = || Words::new(arena.mapping(), offset, bytes).ok_or(Error::ForeignLoan);
        let key = u64::from_le_bytes(secret::random()?);
        let entry = Entry {
            key,
            open: true,
            words: words()?,
            offset,
            bytes,
            exposure: None,
            buffer: Some(buffer),
            holders: BTreeMap::new(),
        };
        let mut book = table.borrow_mut();
        let name = Name {
            index: book.enter(entry),
            key,
        };
        Ok(Exposed {
            words: words()?,
            handle: RegionHandle {
                owner: book.rank,
                name,
                offset,
                bytes,
            },
            table: table.clone(),
        })
    }

    fn enter(&mut self, entry: Entry) -> u32 {
        let index = match self.entries.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.entries.push(None);
                self.entries.len() - 1
            }
        };
        self.entries[index] = Some(entry);
        index as u32
    }

    fn entry(&mut self, name: Name) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(name.index as usize)?.as_mut()?;
        (entry.key == name.key).then_some(entry)
    }

    /// Exposes it no longer, and tells those who hold it.
    fn close(&mut self, name: Name) {
        if let Some(entry) = self.entry(name) {
            entry.open = false;
            let holders: Vec<Rank> = entry.holders.keys().copied().collect();
            let notices = holders
                .into_iter()
                .map(|holder| (holder, Frame::Revoked(name)));
            self.notices.extend(notices);
            self.release(name);
        }
    }

    /// Gives the memory back if nobody can touch it any more.
    fn release(&mut self, name: Name) {
        if self
            .entry(name)
            .is_some_and(|entry| !entry.open && entry.holders.is_empty())
        {
            self.entries[name.index as usize] = None;
        }
    }

    /// Where the memory is, for `holder`, which is ourselves or at the other end of the link. It holds the memory from then on
    /// where it can map it, or its device may use it.
    pub(crate) fn attach(
        &mut self,
        name: Name,
        holder: Rank,
        link: Option<&Link>,
    ) -> Option<Place> {
        let entry = self.entry(name).filter(|entry| entry.open)?;
        let access = match link {
            Some(Link::Rdma(link)) => {
                if entry.exposure.is_none() {
                    entry.exposure = link.expose(entry.offset, entry.bytes);
                }
                entry.exposure.as_ref().map(Exposure::access)
            }
            _ => None,
        };
        if access.is_some() || matches!(link, None | Some(Link::Shm(_))) {
            *entry.holders.entry(holder).or_default() += 1;
        }
        Some(Place {
            offset: entry.offset,
            bytes: entry.bytes,
            access,
        })
    }

    /// Whether nothing is exposed or held.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.iter().all(Option::is_none)
    }

    /// The exposed words by that name, all `bytes` bytes from `offset` on being among them.
    pub(crate) fn words(
        &mut self,
        name: Name,
        offset: u64,
        bytes: u64,
    ) -> Result<&[AtomicU64], Reason> {
        let entry = self.entry(name).filter(|entry| entry.open);
        let entry = entry.ok_or(Reason::NotExposed)?;
        match offset.checked_add(bytes) {
            Some(end) if end <= entry.bytes => Ok(entry.words.as_slice()),
            _ => Err(Reason::NotExposed),
        }
    }

    /// Takes note that `holder` has let go of memory once. What it never held is its invention.
    pub(crate) fn detach(&mut self, name: Name, holder: Rank) {
        if let Some(entry) = self.entry(name)
            && let Some(times) = entry.holders.get_mut(&holder)
        {
            *times -= 1;
            if *times == 0 {
                entry.holders.remove(&holder);
                self.release(name);
            }
        }
    }

    /// Takes note that the process of `holder`, or its link over RDMA, has ended, so that it touches nothing any more.
    pub(crate) fn forget(&mut self, holder: Rank) {
        for entry in &mut self.entries {
            if let Some(held) = entry {
                held.holders.remove(&holder);
                if !held.open && held.holders.is_empty() {
                    *entry = None;
                }
            }
        }
    }

    /// We have let go of memory of `owner`.
    fn let_go(&mut self, owner: Rank, name: Name) {
        if owner == self.rank {
            self.detach(name, owner);
        } else {
            self.notices.push((owner, Frame::Detach(name)));
        }
    }

    #[inline]
    pub(crate) fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// What there is to tell, and whom.
    pub(crate) fn take_notices(&mut self) -> Vec<(Rank, Frame)> {
        std::mem::take(&mut self.notices)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.exposure = None; // From here on no device touches it.
        if let Some(buffer) = self.buffer.take()
            && !self.holders.is_empty()
        {
            // The fabric is gone, and we shall never hear that these ranks let go: it stays lent.
            buffer.hand_over();
        }
    }
}
