//! Messages from one member to another, for programs that say themselves who sends what to whom: MPI's point-to-point
//! operations.
//!
//! Messages from one member to another are received in the order in which they were sent, as far as they match what is
//! asked for; and of several receivers that ask for the same, the one that asked first is served first (MPI 4.1,
//! section 3.5: messages do not overtake each other). They have nothing to do with the collectives of the group, and
//! can be sent and received while those are under way.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    future::{Future, poll_fn},
    ops::Deref,
    pin::pin,
    rc::Rc,
    task::Poll,
};

use transport::{Buffer, Loan, Rank, Window};

use crate::{Element, Engine, Error, Group, Operation, call::Elements, element, tag};

/// Of so many messages to a member that need no loan, one takes one all the same. So a member that does not receive holds up those
/// that send to it, in the end, and what has arrived there has a bound.
const FREE_OF_LOANS: u32 = 16;
/// Bytes of such loans from one rank to another that can be on their way or unread.
const WINDOW_BYTES: usize = 64 << 10;

/// A message that a member has sent, read in place. Dropping it returns its memory to the sender.
///
/// It dereferences to the elements.
pub struct Message<T> {
    from: usize,
    tag: u32,
    elements: Elements<T>,
}

impl<T: Element> Message<T> {
    /// The member that sent it.
    pub fn from(&self) -> usize {
        self.from
    }

    /// What it was sent under.
    pub fn tag(&self) -> u32 {
        self.tag
    }
}

impl<T: Element> Deref for Message<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.elements
    }
}

impl<T: Element> fmt::Debug for Message<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("from", &self.from)
            .field("tag", &self.tag)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// What is said of a message that has arrived and is yet to be received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// The member that sent it.
    pub from: usize,
    /// What it was sent under.
    pub tag: u32,
    /// Its length in bytes.
    pub bytes: usize,
}

impl Group {
    /// Sends a copy of `data` to member `to`, which may be this one, under a number that says what it is. Over when
    /// `data` is copied, which waits while there is no room; nothing says when it is received.
    ///
    /// ```
    /// # use collectives::Engine;
    /// # use transport::{Arena, Fabric, Ledger};
    /// # let fabric = Fabric::alone(Arena::new(&Ledger::new(1 << 20), 1 << 20)?);
    /// # let engine = Engine::simulated(fabric);
    /// # engine.block_on(async {
    /// # let group = engine.world().await?;
    /// group.send(0, 7, &[1.5, 2.5]).await?;
    /// let message = group.receive::<f64>(None, None).await?;
    /// assert_eq!((message.from(), message.tag(), &message[..]), (0, 7, &[1.5, 2.5][..]));
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a member that does not exist, [`Error::PeerLost`] when it is gone; see [`Error`].
    pub fn send<T: Element>(
        &self,
        to: usize,
        tag: u32,
        data: &[T],
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.operation(async move {
            const { element::check::<T>() };
            self.check_member("send", to)?;
            let tag = tag::message(self.fate.context, Some(size_of::<T>()), tag);
            let bytes: &[u8] = bytemuck::cast_slice(data);
            let rank = self.fate.members[to];
            self.post(rank, || self.try_send(rank, tag, bytes)).await
        })
    }

    /// Sends what a [loan](Self::loan) holds, without a copy on shared memory. It may be received as elements of any
    /// type that its length is a multiple of.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn send_loan(
        &self,
        to: usize,
        tag: u32,
        mut loan: Loan,
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        loan.set_tag(tag::message(self.fate.context, None, tag));
        let mut message = Some(loan.freeze());
        self.operation(async move {
            self.check_member("send_loan", to)?;
            let rank = self.fate.members[to];
            self.post(rank, || {
                (message.take()).map_or(Ok(()), |message| self.engine.send(rank, message))?;
                Ok(true)
            })
            .await
        })
    }

    /// The oldest message of member `from`, or of any, that was sent under `tag`, or under any. Waits until there is one.
    ///
    /// # Errors
    ///
    /// [`Error::PeerLost`] when none has come and the member is gone, or all other members are if any would do;
    /// [`Error::Mismatch`] when the message has elements of another size: it stays, to be received as what it is, and
    /// the group is as good as before. [`Error::Argument`] for a member that does not exist; see [`Error`].
    pub fn receive<T: Element>(
        &self,
        from: Option<usize>,
        tag: Option<u32>,
    ) -> Operation<'_, impl Future<Output = Result<Message<T>, Error>>> {
        self.operation(async move {
            const { element::check::<T>() };
            let wanted = self.wanted("receive", from, tag)?;
            let mut place: Option<Place<'_>> = None;
            poll_fn(|_| {
                let number = place.as_ref().map_or(u64::MAX, |place| place.number);
                if let Some(message) = self.take_message(wanted, number)? {
                    return Poll::Ready(Ok(message));
                }
                let place = place
                    .get_or_insert_with(|| Place::new(&self.engine, Waiting::Receiver(wanted)));
                self.engine.turn()?;
                if let Some(message) = self.take_message(wanted, place.number)? {
                    return Poll::Ready(Ok(message));
                }
                self.can_come(from)?;
                Poll::Pending
            })
            .await
        })
    }

    /// Sends and receives at the same time, so that members can do so in a circle: as [`send`](Self::send) of `data` to
    /// member `to` under `send_tag` and [`receive`](Self::receive) together.
    ///
    /// # Errors
    ///
    /// Those of either.
    pub fn send_receive<T: Element, U: Element>(
        &self,
        to: usize,
        send_tag: u32,
        data: &[T],
        from: Option<usize>,
        tag: Option<u32>,
    ) -> Operation<'_, impl Future<Output = Result<Message<U>, Error>>> {
        let send = self.send(to, send_tag, data).into_future();
        let receive = self.receive(from, tag).into_future();
        self.operation(async move {
            let (mut send, mut receive) = (pin!(send), pin!(receive));
            let (mut is_sent, mut received) = (false, None);
            poll_fn(|context| {
                if !is_sent && let Poll::Ready(sent) = send.as_mut().poll(context) {
                    sent?;
                    is_sent = true;
                }
                if received.is_none()
                    && let Poll::Ready(message) = receive.as_mut().poll(context)
                {
                    received = Some(message?);
                }
                match received.take_if(|_| is_sent) {
                    Some(message) => Poll::Ready(Ok(message)),
                    None => Poll::Pending,
                }
            })
            .await
        })
    }

    /// The envelope of the message that [`receive`](Self::receive) would give now, if there is one. It does not wait, and
    /// leaves the message where it is.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive), but for [`Error::Mismatch`].
    pub fn probe(&self, from: Option<usize>, tag: Option<u32>) -> Result<Option<Envelope>, Error> {
        let wanted = self.wanted("probe", from, tag)?;
        self.engine.turn()?;
        let found = self.find_message(wanted, u64::MAX);
        if found.is_none() {
            // Who looks again and again has time pass, too.
            self.engine.tick(self.engine.clock());
            self.can_come(from)?;
        }
        Ok(found.map(|(envelope, _)| envelope))
    }

    fn wanted(
        &self,
        call: &'static str,
        from: Option<usize>,
        tag: Option<u32>,
    ) -> Result<Wanted, Error> {
        if let Some(member) = from {
            self.check_member(call, member)?;
        }
        Ok(Wanted {
            context: self.fate.context,
            from: from.map(|member| self.fate.members[member]),
            tag,
        })
    }

    /// Does what `attempt` does, once it says that it is done, and nobody sends to `rank` who began earlier.
    async fn post(
        &self,
        rank: Rank,
        mut attempt: impl FnMut() -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let (engine, context) = (&self.engine, self.fate.context);
        let mut place: Option<Place<'_>> = None;
        poll_fn(|_| {
            for is_first in [true, false] {
                self.check()?;
                let number = place.as_ref().map_or(u64::MAX, |place| place.number);
                let is_next = !engine.0.mail.borrow().is_sending_to(context, rank, number);
                if is_next && attempt()? {
                    return Poll::Ready(Ok(()));
                }
                place.get_or_insert_with(|| Place::new(engine, Waiting::Sender(context, rank)));
                if is_first {
                    engine.turn()?;
                }
            }
            match engine.loss_of(rank) {
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Sends a copy of `bytes`, if there is room for it.
    fn try_send(&self, to: Rank, tag: u64, bytes: &[u8]) -> Result<bool, Error> {
        let engine = &self.engine;
        let is_small = bytes.len() <= Buffer::INLINE_BYTES;
        if is_small && engine.0.mail.borrow_mut().flow(to).needs_no_loan() {
            return engine.send_copy(to, tag, bytes);
        }
        let loan = if is_small {
            let window = engine.0.mail.borrow_mut().flow(to).window();
            let arena = engine.fabric().borrow().arena().clone();
            arena.loan_within(&window, bytes.len())?
        } else {
            engine.fabric().borrow().loan(bytes.len())?
        };
        let Some(mut loan) = loan else {
            return Ok(false);
        };
        crate::copy(&mut loan, bytes);
        loan.set_tag(tag);
        engine.send(to, loan.freeze())?;
        if is_small {
            engine.0.mail.borrow_mut().flow(to).without_loan = 0;
        }
        Ok(true)
    }

    /// The number here of a rank of the job, if it is a member.
    fn member(&self, rank: Rank) -> Option<usize> {
        let members = self.members();
        if members.get(rank as usize) == Some(&rank) {
            return Some(rank as usize);
        }
        members.iter().position(|&member| member == rank)
    }

    /// The message that a receiver with this number gets, and its place among all of the group.
    fn find_message(&self, wanted: Wanted, number: u64) -> Option<(Envelope, usize)> {
        let mail = self.engine.0.mail.borrow();
        let mut before: Vec<Wanted> = mail.receivers_before(wanted.context, number).collect();
        let (_, arrived) = (mail.arrived.iter()).find(|(context, _)| *context == wanted.context)?;
        for (index, (rank, message)) in arrived.iter().enumerate() {
            // It is for the first that asked for it, which may not have looked yet.
            if let Some(first) = before
                .iter()
                .position(|other| other.matches(*rank, message))
            {
                before.remove(first);
                continue;
            }
            let from = self.member(*rank);
            if let Some(from) = from.filter(|_| wanted.matches(*rank, message)) {
                let envelope = Envelope {
                    from,
                    tag: tag::of_message(message.tag()),
                    bytes: message.len(),
                };
                return Some((envelope, index));
            }
        }
        None
    }

    fn take_message<T: Element>(
        &self,
        wanted: Wanted,
        number: u64,
    ) -> Result<Option<Message<T>>, Error> {
        let Some((envelope, index)) = self.find_message(wanted, number) else {
            return Ok(None);
        };
        let Envelope { from, tag, bytes } = envelope;
        let mut mail = self.engine.0.mail.borrow_mut();
        let Some(arrived) = mail.arrived_in(wanted.context) else {
            return Ok(None);
        };
        let of = |element_bytes: usize| format!("(tag {tag}, elements of {element_bytes} bytes)");
        let size = size_of::<T>();
        match arrived.get(index).map(|(_, message)| message.tag()) {
            Some(sent) if !tag::has_elements_of(sent, size) => {
                let theirs = tag::element_bytes(sent);
                return Err(Error::Mismatch {
                    here: self.fate.rank(),
                    ours: format!("receive{}", of(size)),
                    peer: self.fate.members[from],
                    theirs: format!("send{}", of(theirs)),
                });
            }
            _ if !bytes.is_multiple_of(size) => {
                return Err(Error::Malformed {
                    call: format!("receive{}", of(size)),
                    peer: self.fate.members[from],
                    expected: size,
                    found: bytes,
                });
            }
            _ => {}
        }
        let message = arrived.remove(index).map(|(_, buffer)| Message {
            from,
            tag,
            elements: Elements::new(buffer),
        });
        Ok(message)
    }

    /// An error if a message of member `from`, or of any, that is not there yet will never come.
    fn can_come(&self, from: Option<usize>) -> Result<(), Error> {
        self.check()?;
        let members = self.members();
        if let Some(from) = from {
            // Without a link to it we would not learn of its end.
            self.engine.approach(members[from]);
            return self.engine.loss_of(members[from]).map_or(Ok(()), Err);
        }
        let others = (0..members.len()).filter(|&member| member != self.rank());
        let mut why = None;
        for other in others {
            match self.engine.loss_of(members[other]) {
                Some(error) => why = Some(error),
                None => return Ok(()),
            }
        }
        why.map_or(Ok(()), Err)
    }
}

/// What a receiver asks for.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    context: u16,
    from: Option<Rank>,
    tag: Option<u32>,
}

impl Wanted {
    fn matches(&self, from: Rank, message: &Buffer) -> bool {
        self.from.is_none_or(|wanted| wanted == from)
            && (self.tag).is_none_or(|wanted| wanted == tag::of_message(message.tag()))
    }
}

/// The messages of a rank that are yet to be received, and who waits to receive or to send.
#[derive(Default)]
pub(crate) struct Mail {
    /// Messages in order of arrival, by the context of their group. There are few groups.
    arrived: Vec<(u16, VecDeque<(Rank, Buffer)>)>,
    /// Contexts of groups that are gone: what comes for them late is dropped.
    gone: HashSet<u16>,
    /// In the order in which they began.
    waiting: Vec<(u64, Waiting)>,
    /// The number of the next that waits.
    next: u64,
    /// The small messages to each rank.
    flows: Vec<Flow>,
}

/// Small messages to one rank.
#[derive(Default)]
struct Flow {
    /// How many had no loan since the last that had one.
    without_loan: u32,
    window: Option<Rc<Window>>,
}

impl Flow {
    /// Whether the next small message needs no loan; then it is counted as sent.
    fn needs_no_loan(&mut self) -> bool {
        let is_free = self.without_loan + 1 < FREE_OF_LOANS;
        self.without_loan += u32::from(is_free);
        is_free
    }

    fn window(&mut self) -> Rc<Window> {
        let window = (self.window).get_or_insert_with(|| Window::new(WINDOW_BYTES));
        window.clone()
    }
}

#[derive(Debug, Clone, Copy)]
enum Waiting {
    Receiver(Wanted),
    /// In the group of this context, to this rank.
    Sender(u16, Rank),
}

impl Mail {
    pub(crate) fn put(&mut self, context: u16, from: Rank, message: Buffer) {
        if let Some(arrived) = self.arrived_in(context) {
            arrived.push_back((from, message));
        } else if !self.gone.contains(&context) {
            self.arrived.push((context, [(from, message)].into()));
        }
    }

    /// Takes out what a group that is gone has not received.
    pub(crate) fn forget(&mut self, context: u16) -> impl Sized + use<> {
        self.gone.insert(context);
        let index = self.arrived.iter().position(|(other, _)| *other == context);
        index.map(|index| self.arrived.swap_remove(index))
    }

    fn arrived_in(&mut self, context: u16) -> Option<&mut VecDeque<(Rank, Buffer)>> {
        let mut groups = self.arrived.iter_mut();
        let group = groups.find(|(other, _)| *other == context)?;
        Some(&mut group.1)
    }

    /// What those of a group wait for that began before the receiver with this number.
    fn receivers_before(&self, context: u16, number: u64) -> impl Iterator<Item = Wanted> {
        let before = (self.waiting.iter()).take_while(move |(other, _)| *other < number);
        before.filter_map(move |(_, waiting)| match waiting {
            Waiting::Receiver(wanted) if wanted.context == context => Some(*wanted),
            _ => None,
        })
    }

    /// Whether a sender to `rank` waits that began before the one with this number.
    fn is_sending_to(&self, context: u16, rank: Rank, number: u64) -> bool {
        let mut before = (self.waiting.iter()).take_while(|(other, _)| *other < number);
        before.any(|(_, waiting)| {
            matches!(waiting, Waiting::Sender(other, to) if (*other, *to) == (context, rank))
        })
    }

    fn flow(&mut self, to: Rank) -> &mut Flow {
        let to = to as usize;
        if to >= self.flows.len() {
            self.flows.resize_with(to + 1, Flow::default);
        }
        &mut self.flows[to]
    }
}

/// A place among those that wait, left when it is dropped.
struct Place<'e> {
    engine: &'e Engine,
    number: u64,
}

impl<'e> Place<'e> {
    fn new(engine: &'e Engine, waiting: Waiting) -> Self {
        let mut mail = engine.0.mail.borrow_mut();
        let number = mail.next;
        mail.next += 1;
        mail.waiting.push((number, waiting));
        Self { engine, number }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut mail = self.engine.0.mail.borrow_mut();
        mail.waiting.retain(|(number, _)| *number != self.number);
    }
}
