//! The members of a group that are left agree, whatever becomes of others meanwhile.
//!
//! # How
//!
//! The lowest member that is not lost coordinates. It collects the ballots of all that are not lost, makes a decision of
//! them, has all of these note it, and tells it when all have. Who notes a decision has not decided; who is told it has,
//! and keeps it. When the coordinator is lost the next one asks all: who has decided tells it again, and whoever has noted
//! a decision says so with its ballot, and then that one is taken. A coordinator decides only what all members that
//! are not lost have noted, so whoever comes after it finds it with each of them: all decide alike, those included
//! that are lost right after they have decided (uniform agreement).
//!
//! This is the rotating coordinator of Chandra and Toueg ("Unreliable failure detectors for reliable distributed systems",
//! 1996) with a detector that is right: it needs no majority, as three-phase commit (Skeen: "Nonblocking commit protocols",
//! 1981). It takes two round trips and four messages for each member; the tree of Herault and others ("Practical scalable
//! consensus for pseudo-synchronous distributed systems", SC'15) would spread those over the members. The
//! operations are those of ULFM (Bland and others: "Post-failure recovery of MPI communication capability", 2013).
//!
//! The detector is right where a process ends. Where a network falls apart two members may hold each other for lost that
//! others can reach. What one holds for lost all do, and a member that is held for lost learns that it is, and is out.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    rc::Rc,
    task::Poll,
};

use transport::Rank;

use crate::{Engine, Error, Group, Operation, fate::Fate, group::CONTEXTS, notice::Notice};

/// Decisions that are kept for those who may have missed them.
const KEPT: u32 = 64;

/// In the flags of a round of [`Group::shrink`]: the group was made, and may be tried again.
const MADE: u64 = 1;
const AGAIN: u64 = 2;

/// What the members of a group that are left agreed on; see [`Group::agree`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Agreement {
    /// The flags that all members gave which are not in `lost`.
    pub flags: u64,
    /// The members that did not take part, by their rank in the job: lost, or at the end of their program.
    pub lost: Vec<Rank>,
}

/// What a member wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ballot {
    /// Whether it makes a smaller group.
    pub(crate) shrinks: bool,
    /// Of these the common ones count.
    pub(crate) flags: u64,
    /// Of these the largest counts.
    pub(crate) number: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) ballot: Ballot,
    /// The members that were held for lost.
    pub(crate) lost: Vec<bool>,
    /// Two members that wanted different things.
    pub(crate) clash: Option<(u32, u32)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// From a coordinator: what is known?
    Query { lost: Vec<bool> },
    /// To a coordinator.
    Vote {
        ballot: Ballot,
        lost: Vec<bool>,
        /// The decision that was noted last, and whose it is.
        prepared: Option<(u32, Decision)>,
    },
    /// From a coordinator: note this.
    Prepare(Decision),
    /// To a coordinator: it is noted.
    Ready,
    /// It is decided.
    Decided(Decision),
    /// The receiver is held for lost.
    Excluded,
    /// The sender takes no part any more.
    Out,
}

/// The agreements of one member.
#[derive(Default)]
pub(crate) struct Agreements {
    begun: Cell<u32>,
    instances: RefCell<BTreeMap<u32, Instance>>,
    /// Members that a decision held for lost. They are out for good, even if they can be reached.
    out: RefCell<BTreeSet<usize>>,
}

/// One agreement, as a member sees it. Members of the group that are named in it have their numbers in the group.
struct Instance {
    mine: Option<Ballot>,
    lost: Vec<bool>,
    /// For whom we voted last.
    coordinator: Option<usize>,
    prepared: Option<(u32, Decision)>,
    decided: Option<Decision>,
    /// Who holds us for lost, or we ourselves if we gave up.
    excluded_by: Option<usize>,
    /// What a coordinator knows of the others.
    votes: Vec<Option<Ballot>>,
    ready: Vec<bool>,
    has_proposed: bool,
}

/// Messages to be sent, by member.
type Outbox = Vec<(usize, Message)>;

impl Instance {
    fn new(size: usize) -> Self {
        Self {
            mine: None,
            lost: vec![false; size],
            coordinator: None,
            prepared: None,
            decided: None,
            excluded_by: None,
            votes: vec![None; size],
            ready: vec![false; size],
            has_proposed: false,
        }
    }

    fn merge_lost(&mut self, lost: &[bool]) {
        for (known, &told) in self.lost.iter_mut().zip(lost) {
            *known |= told;
        }
    }

    /// All members that are not lost, without `me`.
    fn others(&self, me: usize) -> impl Iterator<Item = usize> {
        (0..self.lost.len()).filter(move |&member| member != me && !self.lost[member])
    }

    fn tell_others(&self, me: usize, message: &Message, out: &mut Outbox) {
        out.extend(self.others(me).map(|member| (member, message.clone())));
    }

    /// Takes in what member `from` says.
    fn take(&mut self, from: usize, message: Message, out: &mut Outbox) {
        if let Some(decision) = &self.decided {
            match message {
                Message::Vote { .. } | Message::Query { .. } => {
                    out.push((from, Message::Decided(decision.clone())));
                }
                Message::Prepare(_) => out.push((from, Message::Ready)),
                _ => {}
            }
            return;
        }
        match message {
            Message::Decided(decision) => {
                // Who has voted for us waits for our word.
                let voters = (self.votes.iter().enumerate())
                    .filter(|&(member, vote)| member != from && vote.is_some());
                out.extend(voters.map(|(member, _)| (member, Message::Decided(decision.clone()))));
                self.decided = Some(decision);
            }
            Message::Excluded => self.excluded_by = Some(from),
            Message::Out => self.lost[from] = true,
            _ if self.lost[from] => out.push((from, Message::Excluded)),
            Message::Query { lost } => self.merge_lost(&lost),
            Message::Vote {
                ballot,
                lost,
                prepared,
            } => {
                self.merge_lost(&lost);
                self.votes[from] = Some(ballot);
                self.note(prepared);
            }
            Message::Prepare(decision) => {
                self.merge_lost(&decision.lost);
                self.note(Some((from as u32, decision)));
                out.push((from, Message::Ready));
            }
            Message::Ready => self.ready[from] = true,
        }
    }

    /// Notes a decision, of which that of the latest coordinator counts.
    fn note(&mut self, prepared: Option<(u32, Decision)>) {
        if let Some((by, decision)) = prepared
            && self.prepared.as_ref().is_none_or(|(known, _)| *known <= by)
        {
            self.prepared = Some((by, decision));
        }
    }

    /// Does what is to be done next, where `is_gone` tells who is lost.
    fn advance(&mut self, me: usize, is_gone: impl Fn(usize) -> bool, out: &mut Outbox) {
        for (member, lost) in self.lost.iter_mut().enumerate() {
            *lost |= member != me && is_gone(member);
        }
        if self.decided.is_some() || self.excluded_by.is_some() {
            return;
        }
        let (Some(mine), Some(coordinator)) = (&self.mine, self.lost.iter().position(|lost| !lost))
        else {
            return;
        };
        if self.coordinator != Some(coordinator) {
            self.coordinator = Some(coordinator);
            let lost = self.lost.clone();
            if coordinator == me {
                self.votes[me] = Some(mine.clone());
                self.tell_others(me, &Message::Query { lost }, out);
            } else {
                let vote = Message::Vote {
                    ballot: mine.clone(),
                    lost,
                    prepared: self.prepared.clone(),
                };
                out.push((coordinator, vote));
            }
        }
        if coordinator == me {
            self.coordinate(me, out);
        }
    }

    fn coordinate(&mut self, me: usize, out: &mut Outbox) {
        if !self.has_proposed {
            if self.others(me).any(|member| self.votes[member].is_none()) {
                return;
            }
            let decision = match &self.prepared {
                Some((_, decision)) => decision.clone(),
                None => self.decide(),
            };
            self.has_proposed = true;
            self.ready = vec![false; self.lost.len()];
            self.prepared = Some((me as u32, decision.clone()));
            self.tell_others(me, &Message::Prepare(decision), out);
        }
        if self.others(me).all(|member| self.ready[member])
            && let Some((_, decision)) = &self.prepared
        {
            self.tell_others(me, &Message::Decided(decision.clone()), out);
            self.decided = Some(decision.clone());
        }
    }

    /// What the ballots of all that are not lost make.
    fn decide(&self) -> Decision {
        let ballots = (self.votes.iter().enumerate())
            .filter(|&(member, _)| !self.lost[member])
            .filter_map(|(member, vote)| Some((member as u32, vote.as_ref()?)));
        let mut all = Ballot {
            shrinks: false,
            flags: u64::MAX,
            number: 0,
        };
        let (mut first, mut clash) = (None, None);
        for (member, ballot) in ballots {
            // Of two that want different things, the ballot says what the first wants.
            let one = *first.get_or_insert(member);
            if one == member {
                all.shrinks = ballot.shrinks;
            } else if ballot.shrinks != all.shrinks {
                clash.get_or_insert((one, member));
            }
            all.flags &= ballot.flags;
            all.number = all.number.max(ballot.number);
        }
        Decision {
            ballot: all,
            lost: self.lost.clone(),
            clash,
        }
    }
}

impl Agreements {
    /// Agreements that this member has begun.
    pub(crate) fn begun(&self) -> u32 {
        self.begun.get()
    }

    /// Whether others have begun something that is not decided.
    pub(crate) fn has_open(&self) -> bool {
        let instances = self.instances.borrow();
        instances.values().any(|one| one.decided.is_none())
    }

    /// Whether there is something that others may ask for.
    pub(crate) fn is_empty(&self) -> bool {
        self.instances.borrow().is_empty()
    }
}

impl Fate {
    /// Takes in a step of an agreement.
    pub(crate) fn agreement(&self, engine: &Engine, from: usize, number: u32, message: Message) {
        let fits = |lost: &Vec<bool>| lost.len() == self.members.len();
        let is_whole = match &message {
            Message::Query { lost } => fits(lost),
            Message::Vote { lost, prepared, .. } => {
                fits(lost) && prepared.iter().all(|(_, decision)| fits(&decision.lost))
            }
            Message::Prepare(decision) | Message::Decided(decision) => fits(&decision.lost),
            Message::Ready | Message::Excluded | Message::Out => true,
        };
        let first = self.agreements.begun().saturating_sub(KEPT);
        // Who asks for one that is not kept any more cannot be in it: others have begun many since.
        if !is_whole || !(first..=self.agreements.begun().saturating_add(KEPT)).contains(&number) {
            return;
        }
        if self.have_left() && number >= self.agreements.begun() {
            return self.tell(engine, from, &Notice::Left);
        }
        let mut out = Vec::new();
        self.with_instance(number, |instance| instance.take(from, message, &mut out));
        self.deliver(engine, number, out);
        self.advance(engine, number);
    }

    fn with_instance<R>(&self, number: u32, use_it: impl FnOnce(&mut Instance) -> R) -> R {
        let mut instances = self.agreements.instances.borrow_mut();
        let new = || Instance::new(self.members.len());
        use_it(instances.entry(number).or_insert_with(new))
    }

    fn deliver(&self, engine: &Engine, number: u32, out: Outbox) {
        for (member, message) in out.into_iter().filter(|&(member, _)| member != self.me) {
            self.tell(engine, member, &Notice::Agreement { number, message });
        }
    }

    fn advance(&self, engine: &Engine, number: u32) {
        let mut out = Vec::new();
        let is_gone = |member: usize| {
            self.has_left(member)
                || self.agreements.out.borrow().contains(&member)
                || engine.loss_of(self.members[member]).is_some()
        };
        self.with_instance(number, |instance| {
            instance.advance(self.me, is_gone, &mut out);
        });
        self.with_instance(number, |instance| {
            let decided = instance.decided.iter();
            let lost = decided.flat_map(|decision| decision.lost.iter().enumerate());
            let lost = lost.filter(|(_, lost)| **lost).map(|(member, _)| member);
            self.agreements.out.borrow_mut().extend(lost);
        });
        self.deliver(engine, number, out);
    }

    /// A member is gone: what we have begun goes on without it.
    pub(crate) fn advance_all(&self, engine: &Engine) {
        let numbers: Vec<u32> = {
            let instances = self.agreements.instances.borrow();
            let open = instances.iter().filter(|(_, one)| one.decided.is_none());
            open.map(|(&number, _)| number).collect()
        };
        for number in numbers {
            self.advance(engine, number);
        }
    }

    fn outcome(&self, number: u32) -> Option<Result<Decision, Error>> {
        self.with_instance(number, |instance| {
            let error = |by: usize| Error::GaveUp {
                peer: self.members[by],
                reason: format!("it holds rank {} for lost", self.rank()),
            };
            if let Some(by) = instance.excluded_by {
                return Some(Err(error(by)));
            }
            let decision = instance.decided.as_ref()?;
            if decision.lost[self.me] {
                let by = decision.lost.iter().position(|lost| !lost);
                return Some(Err(error(by.unwrap_or(self.me))));
            }
            Some(Ok(decision.clone()))
        })
    }

    /// This member takes no part in an agreement any more.
    fn withdraw(&self, engine: &Engine, number: u32) {
        self.with_instance(number, |instance| {
            instance.excluded_by.get_or_insert(self.me);
        });
        let message = Message::Out;
        self.tell_all(engine, &Notice::Agreement { number, message });
    }
}

/// The part of a member in an agreement. Others do not wait for who drops it before its end.
struct Part<'g> {
    group: &'g Group,
    number: u32,
    is_over: bool,
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.group.fate.withdraw(&self.group.engine, self.number);
        }
    }
}

impl Group {
    /// Agrees on the `flags` that all members have in common, also when members are lost, before it or meanwhile, and when
    /// the group is of no use any more (as `MPIX_Comm_agree` of ULFM). All members that are left have to call it, as often,
    /// and get the same, those included that are lost right after.
    ///
    /// Members that are lost, have ended their program, or let go of the group are not waited for.
    ///
    /// ```
    /// # use collectives::{Engine, op::Sum};
    /// # use transport::{Arena, Fabric, Ledger};
    /// # let fabric = Fabric::alone(Arena::new(&Ledger::new(1 << 20), 1 << 20)?);
    /// # let engine = Engine::simulated(fabric);
    /// # engine.block_on(async {
    /// # let mut group = engine.world().await?;
    /// let mut sum = [1u64];
    /// let result = group.all_reduce(&mut sum, Sum).await;
    /// // Some members may have the sum, and others know that one was lost: what counts is what all know.
    /// let agreement = group.agree(result.is_ok().into()).await?;
    /// if agreement.flags & 1 == 0 || !agreement.lost.is_empty() {
    ///     group = group.shrink().await?;
    /// }
    /// # assert_eq!((agreement.flags & 1, group.size()), (1, 1));
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// The operation is that of ULFM (Bland, Bouteiller, Herault, Bosilca, Dongarra: "Post-failure recovery of MPI communication
    /// capability: design and rationale", 2013). The members agree by the rotating coordinator of Chandra and Toueg
    /// ("Unreliable failure detectors for reliable distributed systems", 1996) with a detector that is right, which takes two
    /// round trips, and two more for each coordinator that is lost meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::GaveUp`] if other members hold this one for lost; [`Error::Mismatch`] if some called
    /// [`shrink`](Self::shrink) instead.
    pub fn agree(
        &self,
        flags: u64,
    ) -> Operation<'_, impl Future<Output = Result<Agreement, Error>>> {
        self.operation(async move {
            let ballot = Ballot {
                shrinks: false,
                flags,
                number: 0,
            };
            let decision = self.decide(ballot).await?;
            let lost = self.members().iter().zip(&decision.lost);
            Ok(Agreement {
                flags: decision.ballot.flags,
                lost: lost
                    .filter(|(_, lost)| **lost)
                    .map(|(rank, _)| *rank)
                    .collect(),
            })
        })
    }

    /// Makes a group of the members that are left, in their order (as `MPIX_Comm_shrink` of ULFM). All of them have to call
    /// it, and get groups of the same members. This group is of no use any more, if it has been until now: whoever is
    /// in an operation of it gets [`Error::GaveUp`].
    ///
    /// A member that is lost while the group is made is in none; one that is lost later makes the new group
    /// of no use, as any other. The operation is that of ULFM; see [`agree`](Self::agree), on which it rests.
    ///
    /// # Errors
    ///
    /// [`Error::GaveUp`] if other members hold this one for lost; [`Error::Mismatch`] if some called
    /// [`agree`](Self::agree) instead; [`Error::TooManyGroups`]; what else kept a member from making the group.
    pub fn shrink(&self) -> Operation<'_, impl Future<Output = Result<Self, Error>>> {
        self.operation(async move {
            self.engine.check()?;
            // Who waits for us in an operation does so in vain.
            let error = Error::GaveUp {
                peer: self.fate.rank(),
                reason: "it makes a group of the members that are left".to_owned(),
            };
            self.fate.fail(&self.engine, &error);
            loop {
                let number = self.engine.next_context();
                let wish = |flags| Ballot {
                    shrinks: true,
                    flags,
                    number,
                };
                let decision = self.decide(wish(u64::MAX)).await?;
                let made = self.made_of(&decision).await;
                let flags = match &made {
                    Ok(_) => MADE | AGAIN,
                    Err(Error::PeerLost { .. } | Error::Closed { .. } | Error::GaveUp { .. }) => {
                        AGAIN
                    }
                    Err(_) => 0,
                };
                let verdict = self.decide(wish(flags)).await?;
                let all_are_left = decision.lost == verdict.lost;
                match made {
                    Ok(group) if verdict.ballot.flags & MADE != 0 && all_are_left => {
                        return Ok(group);
                    }
                    // Each time again, someone was lost meanwhile: so it has an end.
                    _ if verdict.ballot.flags & AGAIN != 0 && !all_are_left => {}
                    Err(error) => return Err(error),
                    Ok(_) => {
                        return Err(Error::GaveUp {
                            peer: self.fate.rank(),
                            reason: "another member could not make the group".to_owned(),
                        });
                    }
                }
            }
        })
    }

    /// The group of those that are left by a decision.
    async fn made_of(&self, decision: &Decision) -> Result<Self, Error> {
        let context = decision.ballot.number;
        self.engine.set_next_context(context.saturating_add(1));
        if context >= CONTEXTS {
            return Err(Error::TooManyGroups { limit: CONTEXTS });
        }
        let left = (0..self.size()).filter(|&member| !decision.lost[member]);
        let me = left.clone().position(|member| member == self.rank());
        let members: Rc<[Rank]> = left.map(|member| self.fate.members[member]).collect();
        let fate = Fate::new(context as u16, members, me.unwrap_or_default(), None);
        Self::settled(&self.engine, fate, self.model.clone()).await
    }

    /// Agrees on what the ballots of all members that are left make.
    async fn decide(&self, ballot: Ballot) -> Result<Decision, Error> {
        let (engine, fate) = (&self.engine, &self.fate);
        let number = fate.agreements.begun.get();
        fate.agreements.begun.set(number + 1);
        let mut part = Part {
            group: self,
            number,
            is_over: false,
        };
        fate.with_instance(number, |instance| instance.mine = Some(ballot));
        fate.advance(engine, number);
        let outcome = poll_fn(|_| {
            if let Err(error) = engine.turn() {
                return Poll::Ready(Err(error));
            }
            match fate.outcome(number) {
                Some(outcome) => Poll::Ready(outcome),
                None => Poll::Pending,
            }
        })
        .await;
        part.is_over = outcome.is_ok();
        drop(part);
        let old = |kept: &u32| *kept + KEPT > number;
        fate.agreements
            .instances
            .borrow_mut()
            .retain(|kept, _| old(kept));
        let decision = outcome?;
        match decision.clash {
            None => Ok(decision),
            Some((one, other)) => Err(self.clash(&decision, one as usize, other as usize)),
        }
    }

    /// Two members wanted different things, the first what the ballot says.
    fn clash(&self, decision: &Decision, one: usize, other: usize) -> Error {
        let (here, peer) = if other == self.rank() {
            (other, one)
        } else {
            (one, other)
        };
        let name = |member| {
            let shrinks = decision.ballot.shrinks == (member == one);
            if shrinks { "shrink" } else { "agree" }.to_owned()
        };
        Error::Mismatch {
            here: self.fate.members[here],
            ours: name(here),
            peer: self.fate.members[peer],
            theirs: name(peer),
        }
    }
}
