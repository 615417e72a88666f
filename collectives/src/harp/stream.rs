//! How partitions travel: as a stream of messages from one member to others, small partitions together and large ones in pieces.
//!
//! A message begins with a word that says whether it is the last of its stream. Then follow pieces of partitions: the id, the
//! bytes of the partition, the bytes of this piece, a word each, and the piece, up to the next multiple of eight bytes.
//!
//! Where members share no memory, messages arrive in the memory of the receiver. So a member has at most [`AHEAD`] messages
//! on the way to another that the other has not read: each [`EACH`]-th one is acknowledged. What a member may have to hold
//! for a call that it is not in yet is bounded by that, however large tables are.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use transport::{Buffer, Loan};

use super::{Payload, payload, table::malformed};
use crate::{
    Error, Group,
    call::{Call, Waiting},
    copy,
    group::read_u64 as word,
};

/// Bytes of a word.
const WORD: usize = 8;
/// Bytes before a piece.
const HEAD: usize = 3 * WORD;
/// The least memory that a message is given, so that small partitions share one.
pub(super) const SMALL: usize = 4096;
/// Memory of a message that has room for some of a partition.
const LEAST: usize = 256;
/// The first word of a message that is not the last of its stream.
const MORE: u64 = 0;
/// The first word of the last message of a stream.
const LAST: u64 = 1;
/// The only word of a message that acknowledges others.
const ACKNOWLEDGED: u64 = 2;
/// Messages on the way to a member that it has not read.
const AHEAD: u32 = 8;
/// Messages that are acknowledged together.
const EACH: u32 = 4;

/// A call in which a member sends and receives at the same time. Only the two together can be relied on to end: a member that
/// sends waits for room, which others make by receiving.
pub(super) struct Both<'c, 'g> {
    pub(super) call: &'c Call<'g>,
    peers: RefCell<Vec<Peer>>,
    went_on: Cell<bool>,
}

/// How it stands with a member.
#[derive(Default)]
struct Peer {
    /// Messages that were not read yet.
    arrived: VecDeque<Buffer>,
    /// Whether more are due.
    is_due: bool,
    /// Messages read, sent and acknowledged.
    read: u32,
    sent: u32,
    acknowledged: u32,
    /// How long it has been waited for.
    waiting: Waiting,
}

impl Peer {
    fn unacknowledged(&self) -> u32 {
        self.sent - self.acknowledged
    }
}

impl<'c, 'g> Both<'c, 'g> {
    pub(super) fn new(call: &'c Call<'g>) -> Self {
        Self {
            call,
            peers: RefCell::new((0..call.size()).map(|_| Peer::default()).collect()),
            went_on: Cell::new(false),
        }
    }

    pub(super) fn group(&self) -> &'g Group {
        self.call.group
    }

    /// Takes note that one side has done what the other may wait for.
    pub(super) fn note(&self) {
        self.went_on.set(true);
    }

    /// Says whether messages of a member are due: it has to be asked for them if none come.
    pub(super) fn set_due(&self, member: usize, is_due: bool) {
        self.peers.borrow_mut()[member].is_due = is_due;
    }

    /// Carries out both, which wait for nothing but by the methods here. What there is to receive comes first.
    pub(super) async fn run(
        &self,
        receive: impl Future<Output = Result<(), Error>>,
        send: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Error> {
        let (mut receive, mut send) = (pin!(receive), pin!(send));
        let (mut has_received, mut has_sent) = (false, false);
        poll_fn(|context| {
            loop {
                self.went_on.set(false);
                self.take_in()?;
                if !has_received && let Poll::Ready(received) = receive.as_mut().poll(context) {
                    received?;
                    has_received = true;
                }
                if !has_sent && let Poll::Ready(sent) = send.as_mut().poll(context) {
                    sent?;
                    has_sent = true;
                }
                // Acknowledgements are waited for as well: a later call could take them for its own.
                let peers = self.peers.borrow();
                let is_done = has_received && has_sent;
                if is_done && peers.iter().all(|peer| peer.unacknowledged() < EACH) {
                    return Poll::Ready(Ok(()));
                }
                drop(peers);
                if !self.went_on.get() {
                    self.check_peers()?;
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Takes in what members have sent.
    pub(super) fn take_in(&self) -> Result<(), Error> {
        self.group().engine.turn()?;
        while let Some((from, message)) = self.call.take()? {
            self.note();
            let peer = &mut self.peers.borrow_mut()[from];
            peer.waiting = Waiting::default();
            if word(&message) != ACKNOWLEDGED {
                peer.arrived.push_back(message);
            } else if peer.unacknowledged() >= EACH {
                peer.acknowledged += EACH;
            }
        }
        Ok(())
    }

    /// An error if a member does not send what is due and never will.
    fn check_peers(&self) -> Result<(), Error> {
        self.group().check()?;
        for (member, peer) in self.peers.borrow_mut().iter_mut().enumerate() {
            if peer.is_due || peer.unacknowledged() >= EACH {
                self.call.waits_for(member, &mut peer.waiting)?;
            }
        }
        Ok(())
    }

    /// The next message of member `from`, if it is there.
    fn read(&self, from: usize) -> Result<Option<Buffer>, Error> {
        let peer = &mut self.peers.borrow_mut()[from];
        let Some(message) = peer.arrived.pop_front() else {
            return Ok(None);
        };
        peer.read += 1;
        if peer.read.is_multiple_of(EACH)
            && let Some(word) = Buffer::inline(self.call.tag(0), &ACKNOWLEDGED.to_le_bytes())
        {
            self.call.give(from, word)?;
        }
        self.note();
        Ok(Some(message))
    }

    /// The next message of member `from`.
    pub(super) async fn receive(&self, from: usize) -> Result<Buffer, Error> {
        poll_fn(|_| match self.read(from) {
            Ok(Some(message)) => Poll::Ready(Ok(message)),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        })
        .await
    }

    /// The next message of any member, and who sent it.
    pub(super) async fn receive_any(&self) -> Result<(usize, Buffer), Error> {
        poll_fn(|_| {
            for from in 0..self.call.size() {
                match self.read(from) {
                    Ok(Some(message)) => return Poll::Ready(Ok((from, message))),
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            Poll::Pending
        })
        .await
    }

    async fn loan(&self, step: u32, bytes: usize) -> Result<Loan, Error> {
        let engine = &self.group().engine;
        let mut loan = poll_fn(|_| match engine.fabric().borrow().loan(bytes) {
            Ok(Some(loan)) => Poll::Ready(Ok(loan)),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(Error::from(error))),
        })
        .await?;
        self.note();
        loan.set_tag(self.call.tag(step));
        Ok(loan)
    }

    /// Sends a message, once the member has read enough of those before.
    async fn give(&self, to: usize, message: Buffer) -> Result<(), Error> {
        poll_fn(|_| {
            let peer = &mut self.peers.borrow_mut()[to];
            if peer.unacknowledged() >= AHEAD || self.call.is_crowded(to) {
                return Poll::Pending;
            }
            peer.sent += 1;
            Poll::Ready(())
        })
        .await;
        self.note();
        self.call.give(to, message)
    }

    /// Sends a copy of a message.
    async fn pass_on(&self, message: &Buffer, to: usize) -> Result<(), Error> {
        let copy = match Buffer::inline(self.call.tag(0), message) {
            Some(small) => small,
            None => {
                let mut loan = self.loan(0, message.len()).await?;
                copy(&mut loan, message);
                loan.freeze()
            }
        };
        self.give(to, copy).await
    }
}

/// A stream to some members, all of which get the same.
pub(super) struct Outgoing<'b, 'c, 'g> {
    both: &'b Both<'c, 'g>,
    to: Vec<usize>,
    loan: Option<Loan>,
    filled: usize,
    messages: u32,
}

impl<'b, 'c, 'g> Outgoing<'b, 'c, 'g> {
    pub(super) fn new(both: &'b Both<'c, 'g>, to: Vec<usize>) -> Self {
        Self {
            both,
            to,
            loan: None,
            filled: 0,
            messages: 0,
        }
    }

    /// Bytes that wait for more to be sent with.
    pub(super) fn waiting(&self) -> usize {
        self.filled
    }

    /// Sends a partition, or has it wait for others.
    pub(super) async fn put<P: Payload>(&mut self, id: u64, partition: &P) -> Result<(), Error> {
        if self.to.is_empty() {
            return Ok(());
        }
        let bytes = partition.encode().map_err(|reason| Error::Argument {
            call: "encode",
            reason: format!("partition {id}: {reason}"),
        })?;
        let mut rest = &bytes[..];
        loop {
            if self.loan.is_none() {
                let most = self.both.group().segment().max(LEAST);
                let wanted = WORD + HEAD + rest.len().next_multiple_of(WORD);
                let wanted = wanted.clamp(SMALL.min(most), most);
                self.loan = Some(self.both.loan(self.messages, wanted).await?);
                self.filled = WORD;
            }
            let Some(loan) = &mut self.loan else { continue };
            let room = loan.len() - self.filled;
            // A partition is only cut where a message is full.
            if room >= HEAD + rest.len().min(WORD) {
                let here = rest.len().min((room - HEAD) / WORD * WORD);
                let (piece, later) = rest.split_at(here);
                let mut at = self.filled;
                for word in [id, bytes.len() as u64, here as u64] {
                    loan[at..at + WORD].copy_from_slice(&word.to_le_bytes());
                    at += WORD;
                }
                copy(&mut loan[at..at + here], piece);
                self.filled = at + here.next_multiple_of(WORD);
                rest = later;
                if rest.is_empty() {
                    return Ok(());
                }
            }
            self.flush().await?;
        }
    }

    /// Sends what waits.
    pub(super) async fn flush(&mut self) -> Result<(), Error> {
        self.send(MORE).await
    }

    async fn send(&mut self, first: u64) -> Result<(), Error> {
        let Some(mut loan) = self.loan.take() else {
            return Ok(());
        };
        loan[..WORD].copy_from_slice(&first.to_le_bytes());
        loan.set_len(self.filled);
        self.filled = 0;
        self.give(loan.freeze()).await
    }

    async fn give(&mut self, message: Buffer) -> Result<(), Error> {
        self.messages += 1;
        for &to in &self.to {
            self.both.give(to, message.clone()).await?;
        }
        Ok(())
    }

    /// Ends the stream; another one may follow.
    pub(super) async fn end(&mut self) -> Result<(), Error> {
        if self.loan.is_some() {
            return self.send(LAST).await;
        }
        let tag = self.both.call.tag(self.messages);
        match Buffer::inline(tag, &LAST.to_le_bytes()) {
            Some(message) => self.give(message).await,
            None => Ok(()),
        }
    }
}

/// A partition that has arrived.
pub(super) enum Arrival<'m, P> {
    /// In a message, where it can be read.
    Bytes(&'m [u8]),
    /// In pieces, which have been put together.
    Made(P),
}

impl<P: Payload> Arrival<'_, P> {
    /// The partition itself.
    pub(super) fn made(self, group: &Group, from: usize) -> Result<P, Error> {
        match self {
            Self::Made(partition) => Ok(partition),
            Self::Bytes(bytes) => {
                payload::decode(bytes, None).map_err(|reason| malformed(group, from, reason))
            }
        }
    }
}

/// What is to be done with the partitions of a stream.
type Take<'t, P> = dyn FnMut(u64, Arrival<'_, P>) -> Result<(), Error> + 't;

/// A stream from a member.
pub(super) struct Incoming<P: Payload> {
    from: usize,
    /// Of a partition in pieces: its id, what has arrived, and the bytes that are still missing.
    begun: Option<(u64, P::Arriving, u64)>,
}

impl<P: Payload> Incoming<P> {
    pub(super) fn new(from: usize) -> Self {
        Self { from, begun: None }
    }

    /// Receives a message, and gives `take` the partitions that are complete with it; `spare` gives memory for one that
    /// comes in pieces. Says whether more messages follow.
    pub(super) async fn next(
        &mut self,
        both: &Both<'_, '_>,
        spare: impl FnMut() -> Option<P>,
        take: impl FnMut(u64, Arrival<'_, P>) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let message = both.receive(self.from).await?;
        self.read(both, &message, spare, take)
    }

    /// Receives the whole stream, and passes its messages on to member `next`, if there is one.
    pub(super) async fn all(
        &mut self,
        both: &Both<'_, '_>,
        next: Option<usize>,
        mut take: impl FnMut(u64, Arrival<'_, P>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        loop {
            let message = both.receive(self.from).await?;
            if let Some(next) = next {
                both.pass_on(&message, next).await?;
            }
            if !self.read(both, &message, || None, &mut take)? {
                return Ok(());
            }
        }
    }

    /// The same as [`next`](Self::next) with a message that was received.
    pub(super) fn read(
        &mut self,
        both: &Both<'_, '_>,
        message: &Buffer,
        mut spare: impl FnMut() -> Option<P>,
        mut take: impl FnMut(u64, Arrival<'_, P>) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        self.pieces(message, &mut spare, &mut take)
            .map_err(|fault| fault.told_of(both.group(), self.from))
    }

    fn pieces(
        &mut self,
        message: &[u8],
        spare: &mut dyn FnMut() -> Option<P>,
        take: &mut Take<'_, P>,
    ) -> Result<bool, Fault> {
        let (first, mut rest) = split(message, WORD)?;
        while !rest.is_empty() {
            let (head, after) = split(rest, HEAD)?;
            let [id, bytes, here] = [0, WORD, 2 * WORD].map(|at| word(&head[at..]));
            let (piece, _) = split(after, usize::try_from(here).unwrap_or(usize::MAX))?;
            rest = after
                .get(piece.len().next_multiple_of(WORD)..)
                .unwrap_or_default();
            self.piece(id, bytes, piece, spare, take)?;
        }
        let is_last = word(first) == LAST;
        if is_last && self.begun.is_some() {
            return Err(Fault::Bytes("a partition ends before its time".to_owned()));
        }
        Ok(!is_last)
    }

    fn piece(
        &mut self,
        id: u64,
        bytes: u64,
        piece: &[u8],
        spare: &mut dyn FnMut() -> Option<P>,
        take: &mut Take<'_, P>,
    ) -> Result<(), Fault> {
        let here = piece.len() as u64;
        let (begun, mut arriving, missing) = match self.begun.take() {
            Some(begun) => begun,
            None if here == bytes => return Ok(take(id, Arrival::Bytes(piece))?),
            None => {
                let whole = usize::try_from(bytes).map_err(|error| error.to_string())?;
                (id, P::begin(whole, spare())?, bytes)
            }
        };
        if begun != id || here > missing {
            return Err(Fault::Bytes("pieces of partitions are mixed up".to_owned()));
        }
        P::append(&mut arriving, piece);
        if here == missing {
            return Ok(take(id, Arrival::Made(P::finish(arriving)?))?);
        }
        self.begun = Some((id, arriving, missing - here));
        Ok(())
    }
}

fn split(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8]), Fault> {
    let parts = bytes.split_at_checked(at);
    parts.ok_or_else(|| Fault::Bytes("a message ends before its time".to_owned()))
}

/// What is wrong with a message, or with what was to be done with it.
enum Fault {
    Bytes(String),
    Other(Error),
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Bytes(reason)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Fault {
    fn told_of(self, group: &Group, from: usize) -> Error {
        match self {
            Self::Bytes(reason) => malformed(group, from, reason),
            Self::Other(error) => error,
        }
    }
}
