//! How it goes with a group: whether it is of any use, and what its members were last told to do.

use std::{
    any::type_name,
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fmt,
    num::NonZeroUsize,
    ptr,
    rc::Rc,
};

use transport::Rank;

use crate::{
    Algorithm, Engine, Error,
    agree::Agreements,
    group::{CALLS_AHEAD, FIRST_CALL},
    notice::{Check, Notice},
    slots::is_before,
    tag,
};

/// Calls that a rank remembers, to tell whether another called the same.
const REMEMBERED: u32 = 2 * CALLS_AHEAD;
/// Calls whose hashes are kept.
const KNOWN: usize = 8;
/// Stands where there has been no call.
const NO_CALL: Signature = Signature::new("");
/// Calls before it that are named with one, to find the first in which two members differ.
const EARLIER: u32 = 16;

/// What a call is: all members have to agree on every part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signature {
    // Numbers first: they are compared sooner than names.
    /// One more than the member from or to which all goes, as in the group.
    root: Option<NonZeroUsize>,
    /// One more than the elements of each member, where they have to have the same.
    len: Option<NonZeroUsize>,
    /// How it is carried out, where there is a choice.
    algorithm: Option<Algorithm>,
    pub(crate) call: &'static str,
    element: &'static str,
    op: &'static str,
}

impl Signature {
    #[inline(always)]
    pub(crate) const fn new(call: &'static str) -> Self {
        Self {
            call,
            root: None,
            len: None,
            element: "",
            op: "",
            algorithm: None,
        }
    }

    #[inline(always)]
    pub(crate) fn of<T>(call: &'static str, len: Option<usize>) -> Self {
        Self {
            len: len.and_then(one_more),
            element: type_name::<T>(),
            ..Self::new(call)
        }
    }

    #[inline(always)]
    pub(crate) fn with_root(self, root: usize) -> Self {
        Self {
            root: one_more(root),
            ..self
        }
    }

    #[inline(always)]
    pub(crate) fn with_op(self, op: &'static str) -> Self {
        Self { op, ..self }
    }

    /// Carried out by an algorithm, of which there are several.
    #[inline(always)]
    pub(crate) fn by(self, algorithm: Algorithm) -> Self {
        Self {
            algorithm: Some(algorithm),
            ..self
        }
    }

    /// Whether another is the same for sure: names are compared by where they are, and equal ones may be in several places.
    #[inline(always)]
    fn is(&self, other: &Self) -> bool {
        self.root == other.root
            && self.len == other.len
            && self.algorithm == other.algorithm
            && ptr::eq(self.call, other.call)
            && ptr::eq(self.element, other.element)
            && ptr::eq(self.op, other.op)
    }

    /// Where what is known of it is kept: others, and it with another root, are mostly elsewhere.
    #[inline]
    fn place(&self) -> usize {
        self.call.len() ^ number(self.len) ^ number(self.root) << 1
    }

    /// A number that differs for different calls, nearly always.
    #[cold]
    pub(crate) fn hash(&self) -> u32 {
        let names =
            name(self.call) ^ name(self.op).rotate_left(21) ^ name(self.element).rotate_left(42);
        let (root, len) = (number(self.root) as u64, number(self.len) as u64);
        let algorithm = self.algorithm.map_or(0, |algorithm| algorithm as u64 + 1);
        let hash = mixed(names ^ root.rotate_left(40) ^ algorithm.rotate_left(56) ^ len);
        (hash >> 32) as u32 ^ hash as u32
    }
}

#[inline(always)]
fn one_more(number: usize) -> Option<NonZeroUsize> {
    NonZeroUsize::new(number.wrapping_add(1))
}

#[inline(always)]
fn number(number: Option<NonZeroUsize>) -> usize {
    number.map_or(0, NonZeroUsize::get)
}

#[inline]
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    number ^ number >> 29
}

/// A number that stands for a name.
fn name(text: &str) -> u64 {
    let (words, rest) = text.as_bytes().as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    let hash = words.fold(text.len() as u64, |hash, word| mixed(hash ^ word));
    let rest = rest
        .iter()
        .fold(0, |rest, &byte| rest << 8 | u64::from(byte));
    mixed(hash ^ rest)
}

/// Calls that were begun one after another and are the same. Most calls are as those before them, so that next to nothing
/// has to be done to remember them.
#[derive(Clone, Copy)]
struct Run {
    /// The number of the first.
    first: u32,
    signature: Signature,
    /// What stands for each of them and all before.
    hash: u32,
}

/// The runs of a member.
struct Runs {
    last: Run,
    /// Those before, of more calls than a member can be ahead of another: the last of so many at its number.
    before: Box<[Run]>,
    begun: usize,
    /// Calls that may come again, with what stands for each, at places that follow from what they are.
    known: [(Signature, u32); KNOWN],
}

impl Runs {
    #[inline(never)]
    fn begin(&mut self, number: u32, signature: &Signature) {
        if self.last.signature == *signature {
            // The same words in another place: it goes on, as it does at members for which they are in one.
            self.last.signature = *signature;
            return;
        }
        let known = &mut self.known[signature.place() % KNOWN];
        if !known.0.is(signature) {
            *known = (*signature, signature.hash());
        }
        let hash = mixed(u64::from(self.last.hash) << 32 | u64::from(known.1)) ^ u64::from(number);
        self.before[self.begun % REMEMBERED as usize] = self.last;
        self.begun = self.begun.wrapping_add(1);
        self.last = Run {
            first: number,
            signature: *signature,
            hash: mixed(hash) as u32,
        };
    }

    fn latest_first(&self) -> impl Iterator<Item = Run> {
        let (begun, all) = (self.begun, REMEMBERED as usize);
        let before = (1..=all).map(move |back| self.before[begun.wrapping_sub(back) % all]);
        std::iter::once(self.last).chain(before)
    }
}

/// Stands where there has been none.
const NO_RUN: Run = Run {
    first: FIRST_CALL,
    signature: NO_CALL,
    hash: 0,
};

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.call)?;
        let mut parts = Vec::new();
        match self.len {
            Some(len) => parts.push(format!("{} elements of {}", len.get() - 1, self.element)),
            None if self.element.is_empty() => {}
            None => parts.push(format!("elements of {}", self.element)),
        }
        if let Some(root) = self.root {
            parts.push(format!("root {}", root.get() - 1));
        }
        if !self.op.is_empty() {
            parts.push(self.op.to_owned());
        }
        if let Some(algorithm) = self.algorithm {
            parts.push(format!("by {algorithm}"));
        }
        if parts.is_empty() {
            return Ok(());
        }
        write!(f, "({})", parts.join(", "))
    }
}

/// How it goes with a group.
pub(crate) struct Fate {
    pub(crate) context: u16,
    /// The rank of each member in the job.
    pub(crate) members: Rc<[Rank]>,
    /// This rank's number in the group.
    pub(crate) me: usize,
    /// The group that this one is a part of an operation of: without it, this one is of no use.
    whole: Option<Rc<Fate>>,
    failed: Cell<bool>,
    error: RefCell<Option<Error>>,
    /// The number of the call that was begun last.
    newest: Cell<u32>,
    runs: RefCell<Runs>,
    /// Members that let go of the group, or ended their program.
    left: RefCell<BTreeSet<usize>>,
    /// Whether this member did.
    have_left: Cell<bool>,
    pub(crate) agreements: Agreements,
}

impl Fate {
    pub(crate) fn new(
        context: u16,
        members: Rc<[Rank]>,
        me: usize,
        whole: Option<Rc<Self>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            whole,
            context,
            members,
            me,
            failed: Cell::new(false),
            error: RefCell::default(),
            newest: Cell::new(FIRST_CALL.wrapping_sub(1)),
            runs: RefCell::new(Runs {
                last: NO_RUN,
                before: vec![NO_RUN; REMEMBERED as usize].into(),
                begun: 0,
                known: [(NO_CALL, 0); KNOWN],
            }),
            left: RefCell::default(),
            have_left: Cell::new(false),
            agreements: Agreements::default(),
        })
    }

    pub(crate) fn rank(&self) -> Rank {
        self.members[self.me]
    }

    fn member(&self, rank: Rank) -> Option<usize> {
        self.members.iter().position(|&member| member == rank)
    }

    /// Why the group is of no use any more, if it is not.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.failed.get() {
            return Err(self.why());
        }
        match &self.whole {
            Some(whole) => whole.check(),
            None => Ok(()),
        }
    }

    #[cold]
    fn why(&self) -> Error {
        let error = self.error.borrow().clone();
        error.unwrap_or_else(|| Error::Transport("the group failed".to_owned()))
    }

    /// Takes note of what a call is; they come in the order of their numbers. Gives what its messages carry to be told from
    /// those of another: it stands for all calls so far, so that a call which met no message of one that differs is found out
    /// in the next that does.
    #[inline(always)]
    pub(crate) fn begin(&self, number: u32, signature: Signature) -> u32 {
        self.newest.set(number);
        let mut runs = self.runs.borrow_mut();
        if !runs.last.signature.is(&signature) {
            runs.begin(number, &signature);
        }
        runs.last.hash
    }

    /// The run that a call is in, if it has begun and is remembered.
    fn run_of(&self, number: u32) -> Option<Run> {
        let is_in = |run: &Run| !is_before(number, run.first);
        if self.newest.get().wrapping_sub(number) >= REMEMBERED || self.have_left.get() {
            return None;
        }
        let run = self.runs.borrow().latest_first().find(is_in)?;
        (!run.signature.is(&NO_CALL)).then_some(run)
    }

    /// What a call is, as far as it is remembered.
    #[cold]
    pub(crate) fn signature(&self, number: u32) -> Signature {
        let run = self.run_of(number);
        run.map_or(Signature::new("an operation"), |run| run.signature)
    }

    /// Whether what comes of a call may be copied: it has begun here, and its messages are elements to be read, not buffers
    /// to be passed on. `number` is what a tag tells of it.
    pub(crate) fn may_copy(&self, number: u32) -> bool {
        let newest = self.newest.get();
        let run = self.run_of(newest.wrapping_sub(newest.wrapping_sub(number) % tag::CALLS));
        run.is_some_and(|run| !run.signature.element.is_empty())
    }

    /// This member lets go of the group.
    pub(crate) fn leave(&self, engine: &Engine) {
        self.have_left.set(true);
        if self.agreements.has_open() {
            // Who has asked us for our part in one is not answered any more.
            self.tell_all(engine, &Notice::Left);
        }
    }

    /// Whether this member let go of the group.
    pub(crate) fn have_left(&self) -> bool {
        self.have_left.get()
    }

    /// Whether a member let go of the group, or ended its program: what it sent before has arrived.
    pub(crate) fn has_left(&self, member: usize) -> bool {
        self.left.borrow().contains(&member)
    }

    /// The group is of no use any more, for a reason that the other members have to be told.
    #[cold]
    pub(crate) fn fail(&self, engine: &Engine, error: &Error) {
        if self.failed.replace(true) {
            return;
        }
        *self.error.borrow_mut() = Some(error.clone());
        let notice = match error.clone() {
            // Who gave up has told all, and so has who learned that all is cancelled.
            Error::GaveUp { peer, .. } if peer != self.rank() => return,
            Error::Cancelled { .. } => return,
            Error::GaveUp { reason, .. } => Notice::GaveUp { reason },
            Error::PeerLost { peer, cause } => Notice::Lost { peer, cause },
            Error::Closed { peer } => Notice::Closed { peer },
            Error::Mismatch {
                peer, ours, theirs, ..
            } => Notice::Mismatch { peer, ours, theirs },
            other => Notice::GaveUp {
                reason: other.to_string(),
            },
        };
        self.tell_all(engine, &notice);
    }

    pub(crate) fn tell_all(&self, engine: &Engine, notice: &Notice) {
        for member in (0..self.members.len()).filter(|&member| member != self.me) {
            self.tell(engine, member, notice);
        }
    }

    pub(crate) fn tell(&self, engine: &Engine, member: usize, notice: &Notice) {
        let rank = self.members[member];
        if engine.loss_of(rank).is_none() {
            engine.post(rank, tag::notice(self.context), &notice.encode());
        }
    }

    /// A rank is gone. Who closed its end in order fails only those who still need it.
    pub(crate) fn lost(&self, engine: &Engine, peer: Rank, error: &Error) {
        let Some(member) = self.member(peer) else {
            return;
        };
        match error {
            Error::Closed { .. } => drop(self.left.borrow_mut().insert(member)),
            error => self.fail(engine, error),
        }
        self.advance_all(engine);
    }

    /// Asks member `peer` whether it is in the same call as we are, or, if it is `certain` that it is not, in which.
    #[cold]
    pub(crate) fn ask(
        &self,
        engine: &Engine,
        peer: usize,
        (number, hash): (u32, u32),
        is_certain: bool,
    ) {
        let before = (1..=EARLIER).map_while(|back| self.run_of(number.wrapping_sub(back)));
        let check = Check {
            number,
            hash,
            agreements: self.agreements.begun(),
            is_certain,
            call: self.signature(number).to_string(),
            earlier: (before.map(|run| (run.hash, run.signature.to_string()))).collect(),
        };
        self.tell(engine, peer, &Notice::Check(check));
    }

    /// Takes in what member `from` says about the group.
    #[cold]
    pub(crate) fn notice(&self, engine: &Engine, from: Rank, notice: &[u8]) {
        let (Some(notice), Some(member)) = (Notice::decode(notice), self.member(from)) else {
            return;
        };
        let error = match notice {
            Notice::Agreement { number, message } => {
                return self.agreement(engine, member, number, message);
            }
            Notice::Left => {
                self.left.borrow_mut().insert(member);
                return self.advance_all(engine);
            }
            Notice::Check(_) if self.have_left.get() => {
                return self.tell(engine, member, &Notice::Left);
            }
            Notice::Check(check) => return self.compare(engine, from, check),
            Notice::Lost { peer, .. } if peer == self.rank() => Error::GaveUp {
                peer: from,
                reason: "it holds this rank for lost".to_owned(),
            },
            Notice::Lost { peer, cause } => Error::PeerLost {
                peer,
                cause: format!("{cause} (told by rank {from})"),
            },
            Notice::Closed { peer } => Error::Closed { peer },
            Notice::Mismatch { peer, ours, theirs } if peer == self.rank() => Error::Mismatch {
                here: peer,
                ours: theirs,
                peer: from,
                theirs: ours,
            },
            Notice::Mismatch { peer, ours, theirs } => Error::Mismatch {
                here: from,
                ours,
                peer,
                theirs,
            },
            Notice::GaveUp { reason } => Error::GaveUp { peer: from, reason },
            Notice::Cancelled { by, reason } => Error::Cancelled { by, reason },
        };
        if !self.failed.replace(true) {
            *self.error.borrow_mut() = Some(error);
        }
    }

    /// Member `from` waits for us in a call: says so if ours of that number is another.
    fn compare(&self, engine: &Engine, from: Rank, check: Check) {
        let is_past = is_before(check.number, self.newest.get());
        let (ours, theirs) = match self.run_of(check.number) {
            Some(run) if run.hash == check.hash && !check.is_certain => return,
            Some(run) => {
                // The first in which they differ, as far as it is known.
                let mut differing = (run.signature.to_string(), check.call);
                for (back, (hash, theirs)) in (1..).zip(check.earlier) {
                    match self.run_of(check.number.wrapping_sub(back)) {
                        Some(run) if run.hash != hash => {
                            differing = (run.signature.to_string(), theirs);
                        }
                        _ => break,
                    }
                }
                differing
            }
            None if is_past && !check.is_certain => return,
            None if is_past => (
                "an operation that it no longer knows".to_owned(),
                check.call,
            ),
            // We have not begun that call, but an agreement that the other has not.
            None if self.agreements.begun() > check.agreements => ("agree".to_owned(), check.call),
            None => return,
        };
        self.fail(
            engine,
            &Error::Mismatch {
                here: self.rank(),
                ours,
                peer: from,
                theirs,
            },
        );
    }
}

/// Answers what member `from` says about a group that this rank has let go of.
#[cold]
pub(crate) fn left_behind(engine: &Engine, from: Rank, context: u16, notice: &[u8]) {
    if let Some(Notice::Check(_) | Notice::Agreement { .. }) = Notice::decode(notice) {
        engine.post(from, tag::notice(context), &Notice::Left.encode());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_calls_goes_on_wherever_their_names_are() {
        let fate = || Fate::new(0, Rc::new([0, 1]), 0, None);
        let (one, other) = (fate(), fate());
        let call = |name: &'static str| Signature::of::<u32>(name, Some(3));
        // Nobody can know where the compiler puts two of the same.
        let elsewhere: &'static str = Box::leak("scan".to_owned().into_boxed_str());
        let begin = |fate: &Fate, names: [&'static str; 5]| {
            let numbers = (0..).map(|index| FIRST_CALL.wrapping_add(index));
            let calls = numbers.zip(names);
            (calls.map(|(number, name)| fate.begin(number, call(name)))).collect::<Vec<_>>()
        };
        let hashes = begin(&one, ["reduce", "scan", "scan", "scan", "reduce"]);
        assert_eq!(
            hashes,
            begin(&other, ["reduce", "scan", elsewhere, "scan", "reduce"])
        );
        let differing = begin(&fate(), ["reduce", "scan", "scan", "reduce", "reduce"]);
        assert_eq!(hashes[..3], differing[..3]);
        assert!(hashes[3] != differing[3] && hashes[4] != differing[4]);
        let names = |number: u32| one.signature(FIRST_CALL.wrapping_add(number)).call;
        assert_eq!(
            [0, 1, 3, 4].map(names),
            ["reduce", "scan", "scan", "reduce"]
        );
    }

    #[test]
    fn calls_that_differ_in_anything_have_different_hashes() {
        let call = |call: &'static str| {
            Signature::of::<u32>(call, Some(3))
                .with_op("sum")
                .with_root(1)
        };
        let calls = [
            call("reduce"),
            call("scan"),
            call("reduce").with_op("min_loc"),
            call("reduce").with_op("max_loc"),
            call("reduce").with_root(2),
            Signature::of::<u32>("reduce", Some(4))
                .with_op("sum")
                .with_root(1),
            Signature::of::<u32>("reduce", None)
                .with_op("sum")
                .with_root(1),
            Signature::of::<f32>("reduce", Some(3))
                .with_op("sum")
                .with_root(1),
            call("reduce").by(Algorithm::Flat),
            call("reduce").by(Algorithm::Tree),
            Signature::new("barrier"),
            Signature::new("broadcast"),
        ];
        let hashes: BTreeSet<u32> = calls
            .iter()
            .map(|call| call.hash() & tag::SIGNATURE_MASK)
            .collect();
        assert_eq!(hashes.len(), calls.len());
        assert_eq!(
            calls[0].to_string(),
            "reduce(3 elements of u32, root 1, sum)"
        );
        assert_eq!(
            calls[8].to_string(),
            "reduce(3 elements of u32, root 1, sum, by flat)"
        );
    }
}
