//! What makes the operations of one rank go on: it takes messages in, keeps those that nobody waits for yet, and tells
//! of failures.

use std::{
    cell::{Cell, OnceCell, RefCell},
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
    Attend, Error,
    call::Received,
    cancel::Cancelling,
    fate::{self, Fate},
    group::Group,
    message::Mail,
    notice::Notice,
    scratch::Spare,
    tag::{self, Kind},
};

/// The longest a waiting rank sleeps without looking at the time.
pub(crate) const SLEEP_MAX: Duration = Duration::from_millis(100);
/// Polls of shared words before a waiting operation lets others go on.
const SPINS: u32 = 256;
/// How long an operation is polled before its rank rests, with a core of its own: about as long as a member takes to copy
/// a large vector. To be woken takes as long as to copy a small one.
const SPIN_MAX: Duration = Duration::from_micros(100);
/// Polls between two looks at the time.
pub(crate) const POLLS_A_LOOK: u32 = 32;
/// How long a member that has no room waits before it copies what it holds for others that may have none either.
pub(crate) const ROOM_PATIENCE: Duration = Duration::from_millis(2);
/// How often it has done so before it copies whole buffers too, which members were promised without a copy.
const BUFFER_PATIENCE: u32 = 10;
/// Of an arena, the part that messages of operations of all members may take that nobody has read, or that we have copied.
const UNREAD_PART: u64 = 4;
/// The most bytes of a reason to give up: what is said then needs no room.
const REASON_BYTES_MAX: usize = Buffer::INLINE_BYTES - 5;
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
    pub(crate) fabric: Rc<RefCell<Fabric>>,
    rank: Rank,
    size: u32,
    clock: Option<Box<dyn Fn() -> Duration>>,
    /// Polls of shared words before giving way.
    pub(crate) spins: Cell<u32>,
    /// How long an operation is polled before resting.
    pub(crate) spin_max: Duration,
    /// Whether this rank shares its thread with others: see [`cooperate`](crate::cooperate).
    pub(crate) cooperates: Cell<bool>,
    /// Whether waiting operations look at shared words and at nothing else for now.
    pub(crate) glances: Cell<bool>,
    /// Whether an operation has begun, or something has arrived, since this was last asked.
    pub(crate) went_on: Cell<bool>,
    inbox: RefCell<Inbox>,
    /// The bytes of an arena that messages of one sender may take before anybody wants them: of its own where it is read in
    /// place, otherwise of the receiver's.
    share: Cell<u64>,
    /// Those of our arena.
    capacity: u64,
    /// Messages from one member to another.
    pub(crate) mail: RefCell<Mail>,
    pub(crate) spare: Spare,
    fates: RefCell<HashMap<u16, Weak<Fate>>>,
    /// Groups that this rank has let go of, with what others may still ask about them.
    former: RefCell<HashMap<u16, Option<Rc<Fate>>>>,
    /// How each rank went that is gone.
    gone: RefCell<HashMap<Rank, Error>>,
    /// What is to be sent to ranks for which there was no room.
    unsent: RefCell<VecDeque<(Rank, Vec<u8>, u64)>>,
    completions: RefCell<Vec<Completed>>,
    /// Words that futures wait for, with what was last seen in them.
    watched: RefCell<Vec<Watched>>,
    pub(crate) cancelling: Cancelling,
    /// What goes on beside the operations, and whether it could go on at once.
    pub(crate) attendant: OnceCell<Rc<dyn Attend>>,
    is_busy: Cell<bool>,
    /// Messages that are no operation's of a group.
    foreign: RefCell<VecDeque<(Rank, Buffer)>>,
    /// The next number by which messages of a group can be told apart.
    next_context: Cell<u32>,
    /// Groups of all ranks that were made.
    worlds: Cell<u32>,
    now: Cell<Duration>,
}

/// Messages that nobody has asked for yet, in order of arrival.
///
/// They lie in the arena of their sender, or over TCP in ours. If all of them stayed there, two members could wait for room
/// that each holds for the other. So of each sender no more than a share of an arena is left in place: what is beyond it
/// is copied, the oldest first, if it belongs to an operation that has begun here, whose operand is at least as
/// large. What belongs to later ones stays, and its sender waits; only when this member has long waited in vain is
/// that copied as well, at most as much as an arena holds.
struct Inbox {
    messages: VecDeque<(Rank, Buffer)>,
    /// Bytes of operations that lie in arenas, by sender.
    held: Vec<u64>,
    /// Messages that were copied, with their tags. They came before those of the same sender and operation that were not.
    kept: VecDeque<(Rank, u64, Vec<u8>)>,
    kept_bytes: u64,
}

impl Inbox {
    fn new(size: u32) -> Self {
        Self {
            messages: VecDeque::new(),
            held: vec![0; size as usize],
            kept: VecDeque::new(),
            kept_bytes: 0,
        }
    }

    /// Bytes of a message that are lent, if it is of an operation.
    fn lent(message: &Buffer) -> u64 {
        let is_lent = message.len() > Buffer::INLINE_BYTES
            && tag::parts(message.tag()).kind == Kind::Collective;
        if is_lent { message.len() as u64 } else { 0 }
    }

    fn push(&mut self, from: Rank, message: Buffer) -> u64 {
        let held = &mut self.held[from as usize];
        *held += Self::lent(&message);
        self.messages.push_back((from, message));
        *held
    }

    fn remove(&mut self, index: usize) -> Option<(Rank, Buffer)> {
        let (from, message) = self.messages.remove(index)?;
        self.held[from as usize] -= Self::lent(&message);
        Some((from, message))
    }

    /// Takes out the messages for which `wanted` holds.
    fn extract(&mut self, wanted: impl Fn(&Buffer) -> bool) -> VecDeque<(Rank, Buffer)> {
        let (out, others) = std::mem::take(&mut self.messages)
            .into_iter()
            .partition::<VecDeque<_>, _>(|(_, message)| wanted(message));
        self.messages = others;
        for (from, message) in &out {
            self.held[*from as usize] -= Self::lent(message);
        }
        out
    }

    /// Copies the oldest message of a sender for which `may` holds of the tag, whether it is lent or not: otherwise it would
    /// no longer be before those of its operation that are. It is given back, to be dropped.
    fn keep(&mut self, from: Rank, may: impl Fn(u64) -> bool) -> Option<Buffer> {
        let index = self.messages.iter().position(|(sender, message)| {
            let is_operations = tag::parts(message.tag()).kind == Kind::Collective;
            *sender == from && is_operations && may(message.tag())
        })?;
        let (_, message) = self.remove(index)?;
        self.kept_bytes += message.len() as u64;
        (self.kept).push_back((from, message.tag(), message.to_vec()));
        Some(message)
    }
}

/// Until when to wait before room is made, and how often it has been.
#[derive(Default)]
pub(crate) struct Patience {
    until: Option<Duration>,
    times: u32,
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
        let (rank, size, capacity) = {
            let fabric = fabric.borrow();
            (fabric.rank(), fabric.size(), fabric.arena().capacity())
        };
        Self(Rc::new(Inner {
            fabric,
            rank,
            size,
            clock,
            spins: Cell::new(if spins { SPINS } else { 1 }),
            spin_max: if spins { SPIN_MAX } else { Duration::ZERO },
            cooperates: Cell::new(false),
            glances: Cell::new(false),
            went_on: Cell::new(false),
            inbox: RefCell::new(Inbox::new(size)),
            share: Cell::new(capacity / UNREAD_PART / u64::from(size)),
            capacity,
            mail: RefCell::default(),
            spare: Spare::default(),
            fates: RefCell::default(),
            former: RefCell::default(),
            gone: RefCell::default(),
            unsent: RefCell::default(),
            completions: RefCell::default(),
            watched: RefCell::default(),
            cancelling: Cancelling::default(),
            attendant: OnceCell::new(),
            is_busy: Cell::new(false),
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
        if tag::is_ours(message.tag()) {
            self.deliver(from, message);
            return None;
        }
        match self.0.attendant.get() {
            Some(attendant) => attendant.receive(from, message),
            None => Some(message),
        }
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
            self.flush();
        }
        loop {
            let event = self.0.fabric.borrow_mut().receive();
            let event = event.map_err(|error| Error::from(*error))?;
            let Some(event) = event else { break };
            self.0.went_on.set(true);
            match event {
                Event::Message { from, buffer } => {
                    if let Some(message) = self.offer(from, buffer) {
                        self.0.foreign.borrow_mut().push_back((from, message));
                    }
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
        self.check()?;
        if let Some(attendant) = self.0.attendant.get() {
            self.0.is_busy.set(attendant.turn());
        }
        Ok(())
    }

    /// Polls `future` until it is done, and sleeps while there is nothing to do.
    ///
    /// # Errors
    ///
    /// Those of the future, or [`Error::Transport`] when the links fail altogether. [`Error::Argument`] where other ranks
    /// share the thread, which would wait for ever: there, await the future.
    pub fn block_on<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        if self.0.cooperates.get() {
            return Err(Error::Argument {
                call: "wait",
                reason: "other ranks share this thread, and go on only while this one awaits"
                    .to_owned(),
            });
        }
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        let mut polls = 0u32;
        let mut since = Duration::ZERO;
        loop {
            if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
                return result;
            }
            if polls.is_multiple_of(POLLS_A_LOOK) {
                let now = self.look_at_clock();
                since = if polls == 0 { now } else { since };
                if now - since >= self.0.spin_max && !self.0.is_busy.get() {
                    self.rest()?;
                    polls = u32::MAX;
                }
            }
            polls = polls.wrapping_add(1);
            self.forget_watched();
        }
    }

    /// Lets `now`, a time since any fixed moment, do its work: members that have waited long ask those they wait for
    /// whether they are in the same operation. [`block_on`](Self::block_on) does it; who polls the futures in another
    /// way should do so several times a second.
    pub fn tick(&self, now: Duration) {
        self.0.now.set(now.max(self.now()));
        self.0.fabric.borrow_mut().tick(self.now());
    }

    /// Waits until something has happened that a pending future may wait for.
    fn rest(&self) -> Result<(), Error> {
        self.tick(self.clock());
        let mut fabric = self.0.fabric.borrow_mut();
        fabric.wait_until(Some(SLEEP_MAX), || self.has_changed())?;
        Ok(())
    }

    /// Whether a word that a future waits for is not as it was.
    pub(crate) fn has_changed(&self) -> bool {
        self.0.watched.borrow().iter().any(|watched| {
            let words = watched.region.words().unwrap_or_default();
            (words.get(watched.word))
                .is_some_and(|word| word.load(Ordering::Acquire) != watched.seen)
        })
    }

    /// Forgets the words that futures waited for.
    pub(crate) fn forget_watched(&self) {
        self.0.watched.borrow_mut().clear();
    }

    /// Whether what goes on beside the operations can go on at once.
    pub(crate) fn is_busy(&self) -> bool {
        self.0.is_busy.get()
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

    /// Has the operations know the time.
    pub(crate) fn look_at_clock(&self) -> Duration {
        let now = self.clock();
        self.0.now.set(now.max(self.now()));
        now
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
            return match Notice::decode(&message) {
                Some(Notice::GaveUp { reason }) => {
                    self.note_loss(from, Error::GaveUp { peer: from, reason });
                }
                Some(Notice::Cancelled { by, reason }) => self.note_cancelled(by, reason),
                _ => {}
            };
        }
        if parts.kind == Kind::Notice {
            if let Some(fate) = self.fate(parts.context) {
                return fate.notice(self, from, &message);
            }
            if self.0.former.borrow().contains_key(&parts.context) {
                return fate::left_behind(self, from, parts.context, &message);
            }
        }
        if parts.kind == Kind::Message {
            return self.0.mail.borrow_mut().put(parts.context, from, message);
        }
        let held = self.0.inbox.borrow_mut().push(from, message);
        if held > self.0.share.get() {
            self.make_room_of(from);
        }
    }

    /// Copies what a sender has sent ahead and is of operations that have begun here.
    #[cold]
    fn make_room_of(&self, from: Rank) {
        let has_begun = |tag: u64| {
            let fate = self.fate(tag::parts(tag).context);
            fate.is_some_and(|fate| fate.may_copy(tag::call(tag)))
        };
        loop {
            let mut inbox = self.0.inbox.borrow_mut();
            if inbox.held[from as usize] <= self.0.share.get() {
                return;
            }
            let copied = inbox.keep(from, has_begun);
            drop(inbox);
            if copied.is_none() {
                return;
            }
        }
    }

    /// Copies what others have sent ahead and `may` be copied, by its tag, so that they have room again.
    #[cold]
    fn make_room(&self, may: fn(u64) -> bool) {
        for from in 0..self.size() {
            loop {
                let mut inbox = self.0.inbox.borrow_mut();
                if inbox.kept_bytes >= self.0.capacity {
                    return;
                }
                let copied = inbox.keep(from, may);
                drop(inbox);
                if copied.is_none() {
                    break;
                }
            }
        }
    }

    /// Members of a group have arenas of `capacity` bytes at least.
    pub(crate) fn shares_room(&self, capacity: u64) {
        let share = capacity / UNREAD_PART / u64::from(self.size());
        self.0.share.set(self.0.share.get().min(share));
    }

    /// Whether so much of what was sent to a rank fills its arena, unread, that what comes next has to wait.
    pub(crate) fn is_crowded(&self, to: Rank) -> bool {
        self.0.fabric.borrow().unread(to, tag::is_passing) > self.0.share.get()
    }

    /// [Makes room](Self::make_room), if something has been waited for `after`, and each time it has been that long again.
    #[cold]
    pub(crate) fn make_room_in_time(&self, patience: &mut Patience, after: Duration) {
        let now = self.now();
        if now >= *patience.until.get_or_insert(now + after) {
            let all = patience.times >= BUFFER_PATIENCE;
            self.make_room(if all { |_| true } else { tag::is_passing });
            patience.until = None;
            patience.times += 1;
        }
    }

    /// A group that this rank is in, or was in and has something to say about.
    fn fate(&self, context: u16) -> Option<Rc<Fate>> {
        let fate = self.0.fates.borrow().get(&context).and_then(Weak::upgrade);
        fate.or_else(|| self.0.former.borrow().get(&context)?.clone())
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
            inbox.extract(is_early)
        };
        for (from, message) in early {
            fate.notice(self, from, &message);
        }
        for (&peer, error) in &*self.0.gone.borrow() {
            fate.lost(self, peer, error);
        }
    }

    /// Forgets a group, and what was sent to it.
    pub(crate) fn leave(&self, fate: &Rc<Fate>) {
        let context = fate.context;
        fate.leave(self);
        self.0.fates.borrow_mut().remove(&context);
        let memory = (!fate.agreements.is_empty()).then(|| fate.clone());
        self.0.former.borrow_mut().insert(context, memory);
        let left = {
            let is_its = |tag| tag::parts(tag).context == context;
            let mut inbox = self.0.inbox.borrow_mut();
            inbox.kept.retain(|(_, tag, _)| !is_its(*tag));
            inbox.kept_bytes = inbox
                .kept
                .iter()
                .map(|(.., bytes)| bytes.len() as u64)
                .sum();
            inbox.extract(|message| is_its(message.tag()))
        };
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
        if let Some(attendant) = self.0.attendant.get() {
            attendant.lost(peer, &error);
        }
        let mut fates: Vec<_> = self
            .0
            .fates
            .borrow()
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        fates.extend(self.0.former.borrow().values().flatten().cloned());
        for fate in fates {
            fate.lost(self, peer, &error);
        }
    }

    /// Tells all ranks of the job that this one takes part in nothing any more, because of an error of its own: their
    /// operations in groups with this rank fail, those under way and those to come.
    pub fn give_up(&self, reason: &str) {
        // Short enough to need no room.
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let reason = reason[..end].to_owned();
        let notice = Notice::GaveUp { reason }.encode();
        for rank in (0..self.size()).filter(|&rank| rank != self.rank()) {
            self.post(rank, tag::notice(tag::ALL_GROUPS), &notice);
        }
    }

    /// The ranks that are gone, with how they went.
    pub(crate) fn losses(&self) -> Vec<(Rank, Error)> {
        let gone = self.0.gone.borrow();
        gone.iter()
            .map(|(&peer, error)| (peer, error.clone()))
            .collect()
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
        inbox.remove(index)
    }

    /// The same for a message of an operation, which may have been copied.
    #[inline]
    pub(crate) fn take_received(
        &self,
        from: Rank,
        wanted: impl Fn(u64) -> bool,
    ) -> Option<Received> {
        {
            let mut inbox = self.0.inbox.borrow_mut();
            if !inbox.kept.is_empty() {
                let is_it =
                    |(sender, tag, _): &(Rank, u64, Vec<u8>)| *sender == from && wanted(*tag);
                let index = inbox.kept.iter().position(is_it);
                if let Some((.., bytes)) = index.and_then(|index| inbox.kept.remove(index)) {
                    inbox.kept_bytes -= bytes.len() as u64;
                    return Some(Received::Kept(bytes));
                }
            }
        }
        let (_, message) = self.take(Some(from), wanted)?;
        Some(Received::Lent(message))
    }

    /// The same for a message of any member, to be passed on: if it was copied it has to be lent again, and stays while there
    /// is no room.
    pub(crate) fn take_now(
        &self,
        wanted: impl Fn(u64) -> bool,
    ) -> Result<Option<(Rank, Buffer)>, Error> {
        {
            let mut inbox = self.0.inbox.borrow_mut();
            if let Some(index) = inbox.kept.iter().position(|(_, tag, _)| wanted(*tag)) {
                let (from, tag, bytes) = &inbox.kept[index];
                let from = *from;
                let buffer = match Buffer::inline(*tag, bytes) {
                    Some(buffer) => buffer,
                    None => {
                        let Some(mut loan) = self.0.fabric.borrow().loan(bytes.len())? else {
                            return Ok(None);
                        };
                        crate::copy(&mut loan, bytes);
                        loan.set_tag(*tag);
                        loan.freeze()
                    }
                };
                inbox.kept_bytes -= buffer.len() as u64;
                inbox.kept.remove(index);
                return Ok(Some((from, buffer)));
            }
        }
        Ok(self.take(None, wanted))
    }

    /// Who has sent a message that is there and for which `wanted` holds of its tag.
    pub(crate) fn sender_of(&self, wanted: impl Fn(u64) -> bool) -> Option<Rank> {
        let inbox = self.0.inbox.borrow();
        let kept = inbox.kept.iter().map(|(from, tag, _)| (*from, *tag));
        let messages = inbox.messages.iter();
        let mut all = kept.chain(messages.map(|(from, message)| (*from, message.tag())));
        all.find(|(_, tag)| wanted(*tag)).map(|(from, _)| from)
    }

    /// Lends `bytes`, once there is room.
    pub(crate) async fn loan(&self, bytes: usize, fate: &Fate) -> Result<Loan, Error> {
        if let Some(loan) = self.0.fabric.borrow().loan(bytes)? {
            return Ok(loan);
        }
        let mut patience = Patience::default();
        poll_fn(|_| {
            if let Err(error) = self.turn().and_then(|()| fate.check()) {
                return Poll::Ready(Err(error));
            }
            let lent = self.0.fabric.borrow().loan(bytes);
            match lent {
                Ok(Some(loan)) => Poll::Ready(Ok(loan)),
                Ok(None) => {
                    self.make_room_in_time(&mut patience, ROOM_PATIENCE);
                    Poll::Pending
                }
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

    /// Has there be a link to a rank, so that its end is told.
    pub(crate) fn approach(&self, peer: Rank) {
        self.0.fabric.borrow_mut().approach(peer);
    }

    /// Sends what is to be told to other ranks and has had no room; true when nothing waits any more. For those who do
    /// not [turn](Self::turn) the engine any more.
    pub fn flush(&self) -> bool {
        loop {
            let Some((to, bytes, tag)) = self.0.unsent.borrow_mut().pop_front() else {
                return true;
            };
            if matches!(self.send_copy(to, tag, &bytes), Ok(false)) {
                self.0.unsent.borrow_mut().push_front((to, bytes, tag));
                return false;
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
