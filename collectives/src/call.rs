//! One operation of a group under way, as its algorithms see it.

use std::{cell::Cell, future::poll_fn, ops::Range, task::Poll, time::Duration};

use transport::{Buffer, Loan};

use crate::{
    Element, Error, Group, copy, element,
    engine::{Patience, ROOM_PATIENCE},
    fate::Signature,
    tag,
};

/// How long a member that is needed may have closed its end, or let go of the group, before this counts: mostly it has
/// learned of something that is on its way to us as well.
const GRACE: Duration = Duration::from_millis(50);
/// How long a member waits before it asks whether the other is in the same call, and the longest until it asks again.
const PATIENCE: Duration = Duration::from_millis(50);
const PATIENCE_MAX: Duration = Duration::from_secs(1);

/// One operation under way. Members are numbered as in the group.
pub(crate) struct Call<'g> {
    pub(crate) group: &'g Group,
    pub(crate) number: u32,
    /// The number, and in the lower half what tells it from another under the same number.
    pub(crate) stamp: u64,
    /// A member that is known to be in another call under the same number. It has been asked in which.
    suspect: Cell<Option<usize>>,
    has_ended: bool,
}

/// How long a member has waited for another.
#[derive(Default)]
pub(crate) struct Waiting {
    room: Patience,
    /// When it asks next.
    next: Option<Duration>,
    asked: u32,
    /// Until when it waits for the reason why the other has gone in order.
    reason_by: Option<Duration>,
}

impl<'g> Call<'g> {
    #[inline(always)]
    pub(crate) fn new(group: &'g Group, number: u32, signature: Signature) -> Self {
        let hash = group.fate.begin(number, signature);
        Self::begun(group, number, hash)
    }

    /// The same for a call of which note has been taken.
    #[inline(always)]
    pub(crate) fn begun(group: &'g Group, number: u32, hash: u32) -> Self {
        Self {
            group,
            number,
            stamp: u64::from(number) << 32 | u64::from(hash),
            suspect: Cell::new(None),
            has_ended: false,
        }
    }

    /// What it is.
    pub(crate) fn signature(&self) -> Signature {
        self.group.fate.signature(self.number)
    }

    /// What its messages carry to be told from those of another.
    fn hash(&self) -> u32 {
        self.stamp as u32
    }

    /// This member.
    #[inline]
    pub(crate) fn me(&self) -> usize {
        self.group.fate.me
    }

    /// Members.
    #[inline]
    pub(crate) fn size(&self) -> usize {
        self.group.fate.members.len()
    }

    /// Ends the call. If it failed, the group is of no use any more.
    #[inline]
    pub(crate) fn end<T>(mut self, result: Result<T, Error>) -> Result<T, Error> {
        self.has_ended = true;
        match result {
            Ok(value) => {
                self.group.ended(self.number);
                Ok(value)
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Fails the group; what it failed by first counts, unless all is cancelled.
    #[cold]
    fn fail(&self, error: Error) -> Error {
        self.group.fate.fail(&self.group.engine, &error);
        self.group.check().err().unwrap_or(error)
    }

    /// It is dropped before its end.
    #[cold]
    fn give_up(&self) {
        let reason = format!("{} was dropped before its end", self.signature());
        let peer = self.group.fate.rank();
        self.fail(Error::GaveUp { peer, reason });
    }

    /// The tag of the messages of a step.
    pub(crate) fn tag(&self, step: u32) -> u64 {
        tag::collective(self.group.fate.context, self.number, step, self.hash())
    }

    /// Lends `bytes` for the messages of a step, once there is room.
    pub(crate) async fn loan(&self, step: u32, bytes: usize) -> Result<Loan, Error> {
        let mut loan = self.group.engine.loan(bytes, &self.group.fate).await?;
        loan.set_tag(self.tag(step));
        Ok(loan)
    }

    /// A message of a step that holds a copy of `data`.
    pub(crate) async fn message<T: Element>(&self, step: u32, data: &[T]) -> Result<Buffer, Error> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if let Some(buffer) = Buffer::inline(self.tag(step), bytes) {
            return Ok(buffer);
        }
        let mut loan = self.loan(step, bytes.len()).await?;
        copy(&mut loan, bytes);
        Ok(loan.freeze())
    }

    /// Waits until member `to` has read most of what was sent to it.
    #[inline]
    async fn until_read(&self, to: usize) -> Result<(), Error> {
        if !self.is_crowded(to) {
            return Ok(());
        }
        let (engine, fate) = (&self.group.engine, &self.group.fate);
        let mut patience = Patience::default();
        poll_fn(|_| {
            if let Err(error) = engine.turn().and_then(|()| fate.check()) {
                return Poll::Ready(Err(error));
            }
            if !self.is_crowded(to) {
                return Poll::Ready(Ok(()));
            }
            engine.make_room_in_time(&mut patience, ROOM_PATIENCE);
            Poll::Pending
        })
        .await
    }

    /// Whether member `to` has to read some of what was sent to it before there is more: what fills its arena unread keeps
    /// others from sending to it.
    #[inline]
    pub(crate) fn is_crowded(&self, to: usize) -> bool {
        let (nodes, rank) = (&self.group.nodes, self.group.fate.members[to]);
        nodes[to] != nodes[self.me()]
            && self.group.engine.is_crowded(rank)
            // To one that is gone it can be sent: that tells.
            && self.group.engine.loss_of(rank).is_none()
    }

    /// Sends a message that is one of many, once member `to` has read most of those before.
    #[inline]
    pub(crate) async fn give_in_turn(&self, to: usize, message: Buffer) -> Result<(), Error> {
        if message.len() > Buffer::INLINE_BYTES {
            self.until_read(to).await?;
        }
        self.give(to, message)
    }

    /// Sends what a loan or message of this call holds.
    pub(crate) fn give(&self, to: usize, message: impl Into<Buffer>) -> Result<(), Error> {
        let (engine, rank) = (&self.group.engine, self.group.fate.members[to]);
        unless_closed(engine.send(rank, message.into()))
    }

    /// The ranges in which a vector of `len` elements is sent, none larger than what all members find room for. An empty
    /// vector is one.
    pub(crate) fn segments<T: Element>(
        &self,
        len: usize,
    ) -> impl Iterator<Item = Range<usize>> + use<T> {
        crate::segments::<T>(len, self.group.segment())
    }

    /// The ranges of a vector of `len` elements of which each member's part is such a segment.
    pub(crate) fn rounds<T: Element>(
        &self,
        len: usize,
    ) -> impl Iterator<Item = Range<usize>> + use<T> {
        let most = (self.group.segment() / size_of::<T>()).max(1);
        crate::segments::<T>(len, most * size_of::<T>() * self.size())
    }

    /// Sends a copy of `data`, once there is room: in segments, if it is larger than one.
    pub(crate) async fn send<T: Element>(
        &self,
        to: usize,
        step: u32,
        data: &[T],
    ) -> Result<(), Error> {
        if size_of_val(data) <= self.group.segment() {
            return self.send_segment(to, step, data).await;
        }
        for segment in self.segments::<T>(data.len()) {
            self.send_segment(to, step, &data[segment]).await?;
        }
        Ok(())
    }

    async fn send_segment<T: Element>(
        &self,
        to: usize,
        step: u32,
        data: &[T],
    ) -> Result<(), Error> {
        const { element::check::<T>() };
        let rank = self.group.fate.members[to];
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if bytes.len() <= Buffer::INLINE_BYTES {
            let sent = self.group.engine.send_copy(rank, self.tag(step), bytes);
            if matches!(sent, Ok(true) | Err(Error::Closed { .. })) {
                return Ok(());
            }
            sent?;
        } else {
            self.until_read(to).await?;
        }
        let message = self.message(step, data).await?;
        self.give(to, message)
    }

    /// The next message of member `from` in this call, to be passed on or read in place.
    pub(crate) async fn receive(&self, from: usize) -> Result<Buffer, Error> {
        let bytes = match self.receive_bytes(from).await? {
            Received::Lent(buffer) => return Ok(buffer),
            Received::Kept(bytes) => bytes,
        };
        if let Some(buffer) = Buffer::inline(self.tag(0), &bytes) {
            return Ok(buffer);
        }
        let mut loan = self.loan(0, bytes.len()).await?;
        copy(&mut loan, &bytes);
        Ok(loan.freeze())
    }

    /// The next message of member `from` in this call, to be read.
    async fn receive_bytes(&self, from: usize) -> Result<Received, Error> {
        let (engine, fate) = (&self.group.engine, &self.group.fate);
        let rank = fate.members[from];
        let wanted = self.tag(0);
        let mut waiting = Waiting::default();
        // What is not of our call stays there, to be told from it when there is nothing else.
        let ours =
            |tag| tag::is_same_call(tag, wanted) && tag::signature(tag) == tag::signature(wanted);
        poll_fn(|_| {
            if let Some(message) = engine.take_received(rank, ours) {
                return Poll::Ready(Ok(message));
            }
            if let Err(error) = engine.turn() {
                return Poll::Ready(Err(error));
            }
            if let Some(message) = engine.take_received(rank, ours) {
                return Poll::Ready(Ok(message));
            }
            match self.waits_for(from, &mut waiting) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            }
        })
        .await
    }

    /// A message of any member in this call that has been taken in.
    pub(crate) fn take(&self) -> Result<Option<(usize, Buffer)>, Error> {
        let (engine, members) = (&self.group.engine, &self.group.fate.members);
        let wanted = self.tag(0);
        // What is not of our call stays there, to be told from it when there is nothing else.
        let ours =
            |tag| tag::is_same_call(tag, wanted) && tag::signature(tag) == tag::signature(wanted);
        let Some((rank, buffer)) = engine.take_now(ours)? else {
            return Ok(None);
        };
        let member = members.iter().position(|&member| member == rank);
        Ok(member.map(|member| (member, buffer)))
    }

    /// Nothing has come of member `from` yet: an error if nothing will. To be called after what has arrived was taken in.
    #[cold]
    pub(crate) fn waits_for(&self, from: usize, waiting: &mut Waiting) -> Result<(), Error> {
        let (engine, fate) = (&self.group.engine, &self.group.fate);
        fate.check()?;
        let now = engine.now();
        let suspect = self.suspect.get();
        for member in suspect.into_iter().chain([from]) {
            let rank = fate.members[member];
            let error = match engine.loss_of(rank) {
                None if !fate.has_left(member) => continue,
                None => Error::GaveUp {
                    peer: rank,
                    reason: "it has let go of the group".to_owned(),
                },
                Some(error @ Error::Closed { .. }) => error,
                Some(error) => return Err(error),
            };
            if now >= *waiting.reason_by.get_or_insert(now + GRACE) {
                return Err(if suspect == Some(member) {
                    self.mismatch(member, "another operation, before it went")
                } else {
                    error
                });
            }
        }
        // Perhaps what it sends finds no room because of what we hold. But mostly it is late, so that is not thought of at once.
        engine.make_room_in_time(&mut waiting.room, PATIENCE);
        let rank = fate.members[from];
        let wanted = self.tag(0);
        let other = engine.sender_of(|tag| {
            tag::is_same_call(tag, wanted) && tag::signature(tag) != tag::signature(wanted)
        });
        if let Some(rank) = other
            && let Some(member) = fate.members.iter().position(|&member| member == rank)
        {
            self.suspects(member);
        }
        let Some(next) = waiting.next else {
            // Without a link to it we would not learn of its end.
            engine.approach(rank);
            waiting.next = Some(now + PATIENCE);
            return Ok(());
        };
        if now >= next {
            fate.ask(engine, from, (self.number, self.hash()), false);
            waiting.asked = (waiting.asked + 1).min(8);
            waiting.next = Some(now + (PATIENCE * (1 << waiting.asked)).min(PATIENCE_MAX));
        }
        Ok(())
    }

    /// Member `peer` is in another call under the same number: asks it in which. With its answer the group fails.
    #[cold]
    pub(crate) fn suspects(&self, peer: usize) {
        if self.suspect.get().is_none() {
            self.suspect.set(Some(peer));
            let (engine, fate) = (&self.group.engine, &self.group.fate);
            fate.ask(engine, peer, (self.number, self.hash()), true);
        }
    }

    #[cold]
    fn mismatch(&self, peer: usize, theirs: &str) -> Error {
        Error::Mismatch {
            here: self.group.fate.rank(),
            ours: self.signature().to_string(),
            peer: self.group.fate.members[peer],
            theirs: theirs.to_owned(),
        }
    }

    #[cold]
    pub(crate) fn malformed(&self, from: usize, expected: usize, found: usize) -> Error {
        Error::Malformed {
            call: self.signature().to_string(),
            peer: self.group.fate.members[from],
            expected,
            found,
        }
    }

    /// The next messages of member `from`, which have to have `len` elements: read in place if they are one.
    pub(crate) async fn receive_exactly<T: Element>(
        &self,
        from: usize,
        len: usize,
    ) -> Result<Elements<T>, Error> {
        const { element::check::<T>() };
        let message = self.receive_bytes(from).await?;
        if message.len() == len * size_of::<T>() {
            return Ok(Elements::new(message));
        }
        let mut all = vec![bytemuck::Zeroable::zeroed(); len];
        self.put_together(from, message, bytemuck::cast_slice_mut(&mut all))
            .await?;
        Ok(Elements::Copied(all))
    }

    /// Copies the next messages of member `from` to `data`, as long as it.
    pub(crate) async fn receive_into<T: Element>(
        &self,
        from: usize,
        data: &mut [T],
    ) -> Result<(), Error> {
        let message = self.receive_bytes(from).await?;
        self.put_together(from, message, bytemuck::cast_slice_mut(data))
            .await
    }

    /// Copies a message of member `from`, and those after it, to `bytes`, until these are full.
    async fn put_together(
        &self,
        from: usize,
        mut message: Received,
        bytes: &mut [u8],
    ) -> Result<(), Error> {
        let (all, mut rest) = (bytes.len(), bytes);
        loop {
            let found = all - rest.len() + message.len();
            // None is empty but the only one.
            if message.len() > rest.len() || message.is_empty() && !rest.is_empty() {
                return Err(self.malformed(from, all, found));
            }
            let (place, left) = rest.split_at_mut(message.len());
            copy(place, &message);
            rest = left;
            if rest.is_empty() {
                return Ok(());
            }
            drop(message); // Its room may be what the sender of the next waits for.
            message = self.receive_bytes(from).await?;
        }
    }
}

/// Whoever closed its end in order needs nothing more. If it is needed, those who wait for it fail.
fn unless_closed(sent: Result<(), Error>) -> Result<(), Error> {
    match sent {
        Err(Error::Closed { .. }) => Ok(()),
        sent => sent,
    }
}

impl Drop for Call<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.has_ended {
            self.give_up();
        }
    }
}

/// The bytes of a message.
pub(crate) enum Received {
    /// In place.
    Lent(Buffer),
    /// Copied when it came, because nobody waited for it yet and others needed the room.
    Kept(Vec<u8>),
}

impl From<Buffer> for Received {
    fn from(buffer: Buffer) -> Self {
        Self::Lent(buffer)
    }
}

impl std::ops::Deref for Received {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Lent(buffer) => buffer,
            Self::Kept(bytes) => bytes,
        }
    }
}

/// Elements of messages.
pub(crate) enum Elements<T> {
    /// Read in place.
    InPlace(Received),
    /// Of several messages, or of one that does not lie as the elements have to.
    Copied(Vec<T>),
}

impl<T: Element> Elements<T> {
    /// The elements of a message, whose length has to be a multiple of theirs.
    pub(crate) fn new(message: impl Into<Received>) -> Self {
        let message = message.into();
        match bytemuck::try_cast_slice::<u8, T>(&message) {
            Ok(_) => Self::InPlace(message),
            Err(_) => Self::Copied(bytemuck::pod_collect_to_vec(&message)),
        }
    }
}

impl<T: Element> std::ops::Deref for Elements<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        match self {
            Self::InPlace(message) => bytemuck::cast_slice(message),
            Self::Copied(elements) => elements,
        }
    }
}
