//! One operation of a group under way, as its algorithms see it.

use std::{future::poll_fn, task::Poll, time::Duration};

use transport::{Buffer, Loan};

use crate::{Element, Error, Group, copy, element, fate::Signature, tag};

/// How long a member waits before it asks whether the other is in the same call.
const PATIENCE: Duration = Duration::from_millis(50);

/// One operation under way. Members are numbered as in the group.
pub(crate) struct Call<'g> {
    pub(crate) group: &'g Group,
    pub(crate) number: u32,
    pub(crate) signature: Signature,
    pub(crate) hash: u32,
    has_ended: bool,
}

impl<'g> Call<'g> {
    #[inline]
    pub(crate) fn new(group: &'g Group, number: u32, signature: Signature) -> Self {
        group.fate.begin(number, signature);
        Self {
            group,
            number,
            signature,
            hash: signature.hash(),
            has_ended: false,
        }
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

    /// Fails the group; what it failed by first counts.
    #[cold]
    fn fail(&self, error: Error) -> Error {
        self.group.fate.fail(&self.group.engine, &error);
        self.group.fate.check().err().unwrap_or(error)
    }

    /// The tag of the messages of a step.
    pub(crate) fn tag(&self, step: u32) -> u64 {
        tag::collective(self.group.fate.context, self.number, step, self.hash)
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

    /// Sends what a loan or message of this call holds.
    pub(crate) fn give(&self, to: usize, message: impl Into<Buffer>) -> Result<(), Error> {
        self.group
            .engine
            .send(self.group.fate.members[to], message.into())
    }

    /// Sends a copy of `data`, once there is room.
    pub(crate) async fn send<T: Element>(
        &self,
        to: usize,
        step: u32,
        data: &[T],
    ) -> Result<(), Error> {
        const { element::check::<T>() };
        let rank = self.group.fate.members[to];
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if bytes.len() <= Buffer::INLINE_BYTES
            && self.group.engine.send_copy(rank, self.tag(step), bytes)?
        {
            return Ok(());
        }
        let message = self.message(step, data).await?;
        self.give(to, message)
    }

    /// The next message of member `from` in this call.
    pub(crate) async fn receive(&self, from: usize) -> Result<Buffer, Error> {
        let (engine, fate) = (&self.group.engine, &self.group.fate);
        let rank = fate.members[from];
        let wanted = self.tag(0);
        let mut since = None;
        let ours = |tag| tag::is_same_call(tag, wanted);
        let buffer = poll_fn(|_| {
            if let Some((_, buffer)) = engine.take(Some(rank), ours) {
                return Poll::Ready(Ok(buffer));
            }
            if let Err(error) = engine.turn() {
                return Poll::Ready(Err(error));
            }
            if let Some((_, buffer)) = engine.take(Some(rank), ours) {
                return Poll::Ready(Ok(buffer));
            }
            match self.waits_for(from, &mut since) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            }
        })
        .await?;
        if tag::signature(buffer.tag()) != self.hash & tag::SIGNATURE_MASK {
            return Err(self.mismatch(from, String::new()));
        }
        Ok(buffer)
    }

    /// A message of any member in this call that has been taken in.
    pub(crate) fn take(&self) -> Result<Option<(usize, Buffer)>, Error> {
        let (engine, members) = (&self.group.engine, &self.group.fate.members);
        let wanted = self.tag(0);
        let ours = |tag| tag::is_same_call(tag, wanted);
        let Some((rank, buffer)) = engine.take(None, ours) else {
            return Ok(None);
        };
        let Some(member) = members.iter().position(|&member| member == rank) else {
            return Ok(None);
        };
        if tag::signature(buffer.tag()) != self.hash & tag::SIGNATURE_MASK {
            return Err(self.mismatch(member, String::new()));
        }
        Ok(Some((member, buffer)))
    }

    /// Nothing has come of member `from` yet: an error if nothing will.
    #[cold]
    pub(crate) fn waits_for(&self, from: usize, since: &mut Option<Duration>) -> Result<(), Error> {
        let (engine, fate) = (&self.group.engine, &self.group.fate);
        fate.check()?;
        if let Some(error) = engine.loss_of(fate.members[from]) {
            return Err(error);
        }
        let wanted = self.tag(0);
        let other = engine.find(|_, tag| {
            tag::is_same_call(tag, wanted) && tag::signature(tag) != self.hash & tag::SIGNATURE_MASK
        });
        if let Some((rank, _)) = other
            && let Some(member) = fate.members.iter().position(|&member| member == rank)
        {
            return Err(self.mismatch(member, String::new()));
        }
        let now = engine.now();
        if now.saturating_sub(*since.get_or_insert(now)) > PATIENCE {
            // Not again before an hour has passed: it has been asked.
            *since = Some(now + Duration::from_secs(3600));
            fate.ask(engine, from, self.number, self.signature);
        }
        Ok(())
    }

    #[cold]
    pub(crate) fn mismatch(&self, peer: usize, theirs: String) -> Error {
        Error::Mismatch {
            here: self.group.fate.rank(),
            ours: self.signature.to_string(),
            peer: self.group.fate.members[peer],
            theirs: if theirs.is_empty() {
                "another operation".to_owned()
            } else {
                theirs
            },
        }
    }

    #[cold]
    pub(crate) fn malformed(&self, from: usize, expected: usize, found: usize) -> Error {
        Error::Malformed {
            call: self.signature.to_string(),
            peer: self.group.fate.members[from],
            expected,
            found,
        }
    }

    /// The next message of member `from`, which has to have `len` elements.
    pub(crate) async fn receive_exactly<T: Element>(
        &self,
        from: usize,
        len: usize,
    ) -> Result<Elements<T>, Error> {
        const { element::check::<T>() };
        let buffer = self.receive(from).await?;
        if buffer.len() != len * size_of::<T>() {
            return Err(self.malformed(from, len * size_of::<T>(), buffer.len()));
        }
        Ok(Elements::new(buffer))
    }

    /// Copies the next message of member `from` to `data`, as long as it.
    pub(crate) async fn receive_into<T: Element>(
        &self,
        from: usize,
        data: &mut [T],
    ) -> Result<(), Error> {
        let buffer = self.receive(from).await?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(data);
        if buffer.len() != bytes.len() {
            return Err(self.malformed(from, bytes.len(), buffer.len()));
        }
        copy(bytes, &buffer);
        Ok(())
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let reason = format!("{} was dropped before its end", self.signature);
            let peer = self.group.fate.rank();
            self.fail(Error::GaveUp { peer, reason });
        }
    }
}

/// Elements in a message, read in place.
pub(crate) struct Elements<T> {
    buffer: Buffer,
    /// The same, where the message does not lie as the elements have to.
    copy: Option<Vec<T>>,
}

impl<T: Element> Elements<T> {
    /// The elements of a message, whose length has to be a multiple of theirs.
    pub(crate) fn new(buffer: Buffer) -> Self {
        let aligned = bytemuck::try_cast_slice::<u8, T>(&buffer).is_ok();
        let copy = (!aligned).then(|| bytemuck::pod_collect_to_vec(buffer.as_slice()));
        Self { buffer, copy }
    }
}

impl<T: Element> std::ops::Deref for Elements<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        match &self.copy {
            Some(copy) => copy,
            None => bytemuck::cast_slice(&self.buffer),
        }
    }
}
