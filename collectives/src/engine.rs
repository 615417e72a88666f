//! What makes the operations of one rank go on: it takes messages in, keeps those that nobody waits for yet, and tells
//! of failures.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    fmt,
    future::{Future, poll_fn},
    pin::pin,
    rc::{Rc, Weak},
    sync::atomic::Ordering,
    task::{Context, Poll, Waker},
    time::Duration,
};

use transport::{
    Buffer, Event, Fabric, Issued, Loan, Operation, Outcome, Rank, RegionHandle, RemoteRegion,
};

use crate::{
    Error,
    fate::Fate,
    group::Group,
    message::Mail,
    scratch::Spare,
    tag::{self, Kind},
};

/// The longest a waiting rank sleeps without looking at the time.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// Polls of shared words before a waiting operation lets others go on.
const SPINS: u32 = 256;
/// How long an operation is polled before its rank rests, with a core of its own: about as long as a member takes to copy
/// a large vector. To be woken takes as long as to copy a small one.
const SPIN_MAX: Duration = Duration::from_micros(100);
/// Polls between two looks at the time.
const POLLS_A_LOOK: u32 = 32;
/// The most futures that wait for shared words of which the sleeper takes note.
const WATCHED_MAX: usize = 64;

/// What makes the operations of one rank go on. It owns the rank's side of all its groups; cloning gives another
/// handle on it.
///
/// Operations are futures, and whoever polls one has the engine take messages in for all. [`Engine::block_on`] polls
/// one until it is done and sleeps when nothing happens; in a simulation, or beside other work, poll them yourself.
#[derive(Clone)]
pub struct Engine(pub(crate) Rc<Inner>);

pub(crate) struct Inner {
    fabric: Rc<RefCell<Fabric>>,
    rank: Rank,
    size: u32,
    clock: Option<Box<dyn Fn() -> Duration>>,
    /// Polls of shared words before giving way.
    pub(crate) spins: u32,
    /// How long an operation is polled before resting.
    spin_max: Duration,
    /// Messages of collectives that nobody has asked for yet, of groups that are yet to be made among others.
    inbox: RefCell<Inbox>,
    /// Messages from one member to another.
    pub(crate) mail: RefCell<Mail>,
    pub(crate) spare: Spare,
    fates: RefCell<HashMap<u16, Weak<Fate>>>,
    /// How each rank went that is gone.
    gone: RefCell<HashMap<Rank, Error>>,
    /// What is to be sent to ranks for which there was no room.
    unsent: RefCell<VecDeque<(Rank, Vec<u8>, u64)>>,
    completions: RefCell<Vec<Completed>>,
    /// Words that futures wait for, with what was last seen in them.
    watched: RefCell<Vec<Watched>>,
    /// Messages that are no operation's of a group.
    foreign: RefCell<VecDeque<(Rank, Buffer)>>,
    /// The next number by which messages of a group can be told apart.
    next_context: Cell<u32>,
    /// Groups of all ranks that were made.
    worlds: Cell<u32>,
    now: Cell<Duration>,
}

/// Messages that nobody has asked for yet, in order of arrival.
#[derive(Default)]
struct Inbox {
    messages: VecDeque<(Rank, Buffer)>,
}

/// What became of an operation on a peer's memory.
struct Completed {
    peer: Rank,
    operation: Operation,
    outcome: Result<Outcome, Error>,
}

struct Watched {
    region: Rc<RemoteRegion>,
    word: usize,
    seen: u64,
}

impl Engine {
    /// An engine on `fabric`, whose owner leaves receiving to it. `clock` gives the time since any fixed moment.
    /// `spins` says whether to spin a little while waiting for another core: not with more ranks than cores.
    pub fn new(
        fabric: Rc<RefCell<Fabric>>,
        spins: bool,
        clock: impl Fn() -> Duration + 'static,
    ) -> Self {
        Self::with(fabric, spins, Some(Box::new(clock)))
    }

    /// An engine in a simulation, where no time passes, nothing is measured, and whoever runs it polls the futures.
    pub fn simulated(fabric: Fabric) -> Self {
        Self::with(Rc::new(RefCell::new(fabric)), false, None)
    }

    fn with(
        fabric: Rc<RefCell<Fabric>>,
        spins: bool,
        clock: Option<Box<dyn Fn() -> Duration>>,
    ) -> Self {
        let (rank, size) = {
            let fabric = fabric.borrow();
            (fabric.rank(), fabric.size())
        };
        Self(Rc::new(Inner {
            fabric,
            rank,
            size,
            clock,
            spins: if spins { SPINS } else { 1 },
            spin_max: if spins { SPIN_MAX } else { Duration::ZERO },
            inbox: RefCell::default(),
            mail: RefCell::default(),
            spare: Spare::default(),
            fates: RefCell::default(),
            gone: RefCell::default(),
            unsent: RefCell::default(),
            completions: RefCell::default(),
            watched: RefCell::default(),
            foreign: RefCell::default(),
            next_context: Cell::new(0),
            worlds: Cell::new(0),
            now: Cell::new(Duration::ZERO),
        }))
    }

    /// The group of all ranks of the job. All have to make it; it is there when all have. It can be made again, and
    /// has nothing to do with those before it.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn world(&self) -> Result<Group, Error> {
        Group::world(self).await
    }

    /// The rank it belongs to.
    pub fn rank(&self) -> Rank {
        self.0.rank
    }

    /// Ranks in the job.
    pub fn size(&self) -> u32 {
        self.0.size
    }

    /// The links, for work beside the operations. Do not receive from them: see [`offer`](Self::offer).
    pub fn fabric(&self) -> &Rc<RefCell<Fabric>> {
        &self.0.fabric
    }

    /// Takes in a message that was received by another; gives it back if it is not an operation's of a group.
    pub fn offer(&self, from: Rank, message: Buffer) -> Option<Buffer> {
        if !tag::is_ours(message.tag()) {
            return Some(message);
        }
        self.deliver(from, message);
        None
    }

    /// A message that the engine received and that is not for it.
    pub fn take_foreign(&self) -> Option<(Rank, Buffer)> {
        self.0.foreign.borrow_mut().pop_front()
    }

    /// Takes in what has happened.
    ///
    /// # Errors
    ///
    /// [`Error::Transport`] when the links fail altogether.
    pub fn turn(&self) -> Result<(), Error> {
        if !self.0.unsent.borrow().is_empty() {
            self.send_the_unsent();
        }
        loop {
            let event = self.0.fabric.borrow_mut().receive();
            let event = event.map_err(|error| Error::from(*error))?;
            let Some(event) = event else { return Ok(()) };
            match event {
                Event::Message { from, buffer } if tag::is_ours(buffer.tag()) => {
                    self.deliver(from, buffer);
                }
                Event::Message { from, buffer } => {
                    self.0.foreign.borrow_mut().push_back((from, buffer));
                }
                Event::Ended { peer, error } => self.note_loss(peer, Error::from(*error)),
                Event::Completed { peer, completion } => {
                    self.0.completions.borrow_mut().push(Completed {
                        peer,
                        operation: completion.operation,
                        outcome: completion.outcome.map_err(Error::from),
                    });
                }
                Event::Refused { .. } => {}
            }
        }
    }

    /// Polls `future` until it is done, and sleeps while there is nothing to do.
    ///
    /// # Errors
    ///
    /// Those of the future, or [`Error::Transport`] when the links fail altogether.
    pub fn block_on<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        let mut polls = 0u32;
        let mut since = Duration::ZERO;
        loop {
            if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
                return result;
            }
            if polls.is_multiple_of(POLLS_A_LOOK) {
                let now = self.clock();
                since = if polls == 0 { now } else { since };
                if now - since >= self.0.spin_max {
                    self.rest()?;
                    polls = u32::MAX;
                }
            }
            polls = polls.wrapping_add(1);
            self.0.watched.borrow_mut().clear();
        }
    }

    /// Waits until something has happened that a pending future may wait for.
    fn rest(&self) -> Result<(), Error> {
        self.tick();
        let mut fabric = self.0.fabric.borrow_mut();
        let watched = self.0.watched.borrow();
        let has_changed = |watched: &Watched| {
            let words = watched.region.words().unwrap_or_default();
            (words.get(watched.word))
                .is_some_and(|word| word.load(Ordering::Acquire) != watched.seen)
        };
        fabric.wait_until(Some(SLEEP_MAX), || watched.iter().any(has_changed))?;
        Ok(())
    }

    /// Lets time do its work.
    pub(crate) fn tick(&self) {
        let now = self.clock();
        self.0.now.set(now);
        self.0.fabric.borrow_mut().tick(now);
    }

    pub(crate) fn has_clock(&self) -> bool {
        self.0.clock.is_some()
    }

    /// The time now.
    pub(crate) fn clock(&self) -> Duration {
        self.0
            .clock
            .as_ref()
            .map_or(Duration::ZERO, |clock| clock())
    }

    /// The time when it was last looked at.
    pub(crate) fn now(&self) -> Duration {
        self.0.now.get()
    }

    /// Wakes this rank when the word is no longer as it was `seen`.
    pub(crate) fn watch(&self, region: &Rc<RemoteRegion>, word: usize, seen: u64) {
        let mut watched = self.0.watched.borrow_mut();
        if watched.len() < WATCHED_MAX {
            watched.push(Watched {
                region: region.clone(),
                word,
                seen,
            });
        }
    }

    fn deliver(&self, from: Rank, message: Buffer) {
        let parts = tag::parts(message.tag());
        if parts.kind == Kind::Notice && parts.context == tag::ALL_GROUPS {
            let reason = String::from_utf8_lossy(&message).into_owned();
            return self.note_loss(from, Error::GaveUp { peer: from, reason });
        }
        if parts.kind == Kind::Notice {
            let fate = self
                .0
                .fates
                .borrow()
                .get(&parts.context)
                .and_then(Weak::upgrade);
            if let Some(fate) = fate {
                return fate.notice(self, from, &message);
            }
        }
        if parts.kind == Kind::Message {
            return self.0.mail.borrow_mut().put(parts.context, from, message);
        }
        self.0
            .inbox
            .borrow_mut()
            .messages
            .push_back((from, message));
    }

    /// Enters a group, and gives it what was said of it before it was made.
    pub(crate) fn enter(&self, context: u16, fate: &Rc<Fate>) {
        self.0
            .fates
            .borrow_mut()
            .insert(context, Rc::downgrade(fate));
        let early = {
            let mut inbox = self.0.inbox.borrow_mut();
            let is_early = |message: &Buffer| {
                let parts = tag::parts(message.tag());
                parts.kind == Kind::Notice && parts.context == context
            };
            let (early, others) = std::mem::take(&mut inbox.messages)
                .into_iter()
                .partition::<VecDeque<_>, _>(|(_, message)| is_early(message));
            inbox.messages = others;
            early
        };
        for (from, message) in early {
            fate.notice(self, from, &message);
        }
        for (&peer, error) in &*self.0.gone.borrow() {
            fate.lost(self, peer, error);
        }
    }

    /// Forgets a group, and what was sent to it.
    pub(crate) fn leave(&self, context: u16) {
        self.0.fates.borrow_mut().remove(&context);
        let mut left = VecDeque::new();
        {
            let mut inbox = self.0.inbox.borrow_mut();
            let (ours, others) = std::mem::take(&mut inbox.messages)
                .into_iter()
                .partition::<VecDeque<_>, _>(|(_, message)| {
                    tag::parts(message.tag()).context == context
                });
            inbox.messages = others;
            left.extend(ours);
        }
        let unreceived = self.0.mail.borrow_mut().forget(context);
        drop((left, unreceived)); // Their loans go back while nothing is borrowed.
    }

    /// Takes note that a rank is gone, as the engine does itself when it receives.
    pub fn note_loss(&self, peer: Rank, error: Error) {
        self.0
            .gone
            .borrow_mut()
            .entry(peer)
            .or_insert_with(|| error.clone());
        let fates: Vec<_> = self
            .0
            .fates
            .borrow()
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        for fate in fates {
            fate.lost(self, peer, &error);
        }
    }

    /// Tells all ranks of the job that this one takes part in nothing any more, because of an error of its own: their
    /// operations in groups with this rank fail, those under way and those to come.
    pub fn give_up(&self, reason: &str) {
        // Short enough to need no room.
        let reason = reason.as_bytes();
        let reason = &reason[..reason.len().min(Buffer::INLINE_BYTES)];
        for rank in (0..self.size()).filter(|&rank| rank != self.rank()) {
            self.post(rank, tag::notice(tag::ALL_GROUPS), reason);
        }
    }

    /// How a rank went, if it is gone.
    pub(crate) fn loss_of(&self, peer: Rank) -> Option<Error> {
        self.0.gone.borrow().get(&peer).cloned()
    }

    /// Takes the oldest message of `from` for which `wanted` holds of its tag.
    pub(crate) fn take(
        &self,
        from: Option<Rank>,
        wanted: impl Fn(u64) -> bool,
    ) -> Option<(Rank, Buffer)> {
        let mut inbox = self.0.inbox.borrow_mut();
        let index = inbox.messages.iter().position(|(sender, message)| {
            from.is_none_or(|from| from == *sender) && wanted(message.tag())
        })?;
        inbox.messages.remove(index)
    }

    /// Whether a message is there for which `wanted` holds of its sender and its tag.
    pub(crate) fn find(&self, wanted: impl Fn(Rank, u64) -> bool) -> Option<(Rank, Buffer)> {
        let inbox = self.0.inbox.borrow();
        let found = inbox
            .messages
            .iter()
            .find(|(from, message)| wanted(*from, message.tag()));
        found.cloned()
    }

    /// Lends `bytes`, once there is room.
    pub(crate) async fn loan(&self, bytes: usize, fate: &Fate) -> Result<Loan, Error> {
        if let Some(loan) = self.0.fabric.borrow().loan(bytes)? {
            return Ok(loan);
        }
        poll_fn(|_| {
            if let Err(error) = self.turn().and_then(|()| fate.check()) {
                return Poll::Ready(Err(error));
            }
            match self.0.fabric.borrow().loan(bytes) {
                Ok(Some(loan)) => Poll::Ready(Ok(loan)),
                Ok(None) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error.into())),
            }
        })
        .await
    }

    pub(crate) fn send(&self, to: Rank, message: Buffer) -> Result<(), Error> {
        Ok(self.0.fabric.borrow_mut().send(to, message)?)
    }

    /// Sends a copy of `bytes` if that needs no room or there is some.
    pub(crate) fn send_copy(&self, to: Rank, tag: u64, bytes: &[u8]) -> Result<bool, Error> {
        Ok(self.0.fabric.borrow_mut().send_copy(to, tag, bytes)?)
    }

    /// Sends a copy of `bytes` when there is room, and fails for nothing: who is gone needs not be told.
    pub(crate) fn post(&self, to: Rank, tag: u64, bytes: &[u8]) {
        let unsent = &self.0.unsent;
        let waits = !unsent.borrow().is_empty();
        if waits || matches!(self.send_copy(to, tag, bytes), Ok(false)) {
            unsent.borrow_mut().push_back((to, bytes.to_vec(), tag));
        }
    }

    fn send_the_unsent(&self) {
        loop {
            let Some((to, bytes, tag)) = self.0.unsent.borrow_mut().pop_front() else {
                return;
            };
            if matches!(self.send_copy(to, tag, &bytes), Ok(false)) {
                self.0.unsent.borrow_mut().push_front((to, bytes, tag));
                return;
            }
        }
    }

    /// Attaches to the memory of a member.
    pub(crate) async fn attach(
        &self,
        handle: RegionHandle,
        fate: &Fate,
    ) -> Result<RemoteRegion, Error> {
        let owner = handle.owner();
        let mut asked: Option<Operation> = None;
        poll_fn(|_| {
            if let Err(error) = self.turn().and_then(|()| fate.check()) {
                return Poll::Ready(Err(error));
            }
            let Some(operation) = asked else {
                let issued = self.0.fabric.borrow_mut().attach(&handle);
                return match issued {
                    Ok(Issued::Done(region)) => Poll::Ready(Ok(region)),
                    Ok(Issued::Pending(operation)) => {
                        asked = Some(operation);
                        Poll::Pending
                    }
                    Ok(Issued::NoRoom) => Poll::Pending,
                    Err(error) => Poll::Ready(Err(error.into())),
                };
            };
            let mut completions = self.0.completions.borrow_mut();
            let ours = |done: &Completed| done.peer == owner && done.operation == operation;
            match completions.iter().position(ours) {
                None => Poll::Pending,
                Some(index) => Poll::Ready(match completions.swap_remove(index).outcome {
                    Ok(Outcome::Attached(region)) => Ok(region),
                    Ok(_) => Err(Error::Transport("an answer to another question".to_owned())),
                    Err(error) => Err(error),
                }),
            }
        })
        .await
    }

    /// The next number of a group that no rank has used which told us of its own.
    pub(crate) fn next_context(&self) -> u32 {
        self.0.next_context.get()
    }

    /// The number of the next group of all ranks.
    pub(crate) fn next_world(&self) -> u32 {
        self.0.worlds.replace(self.0.worlds.get() + 1)
    }

    pub(crate) fn set_next_context(&self, next: u32) {
        self.0.next_context.set(next.max(self.next_context()));
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("rank", &self.0.rank)
            .field("size", &self.0.size)
            .finish_non_exhaustive()
    }
}
