//! How it goes with a group: whether it is of any use, and what its members were last told to do.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
};

use transport::Rank;

use crate::{Engine, Error, tag};

/// Calls that a rank remembers, to tell whether another called the same.
const REMEMBERED: usize = 64;

/// What a call is: all members have to agree on every part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) call: &'static str,
    /// The member from or to which all goes, as in the group.
    pub(crate) root: Option<usize>,
    /// Elements of each member, where they have to have the same.
    pub(crate) len: Option<usize>,
    pub(crate) element_bytes: usize,
    pub(crate) op: &'static str,
}

impl Signature {
    #[inline(always)]
    pub(crate) const fn new(call: &'static str) -> Self {
        Self {
            call,
            root: None,
            len: None,
            element_bytes: 1,
            op: "",
        }
    }

    #[inline(always)]
    pub(crate) fn of<T>(call: &'static str, len: Option<usize>) -> Self {
        Self {
            len,
            element_bytes: size_of::<T>(),
            ..Self::new(call)
        }
    }

    #[inline(always)]
    pub(crate) fn with_root(self, root: usize) -> Self {
        Self {
            root: Some(root),
            ..self
        }
    }

    #[inline(always)]
    pub(crate) fn with_op(self, op: &'static str) -> Self {
        Self { op, ..self }
    }

    /// A number that differs for different calls, nearly always.
    // Names are known when it is compiled, so most of it is done then.
    #[inline(always)]
    pub(crate) fn hash(&self) -> u32 {
        let name = |text: &str| {
            let bytes = text.as_bytes();
            let ends = match bytes {
                [] => 0,
                [first, .., last] => u64::from(*first) << 8 | u64::from(*last),
                [only] => u64::from(*only),
            };
            ends << 8 | bytes.len() as u64
        };
        let names = name(self.call) << 32 ^ name(self.op) ^ (self.element_bytes as u64) << 48;
        let root = self.root.map_or(0, |root| root as u64 + 1);
        let len = self.len.map_or(0, |len| len as u64 + 1);
        let hash = (names ^ root.rotate_left(40) ^ len).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 32) as u32 ^ hash as u32
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.call)?;
        let mut parts = Vec::new();
        if let Some(len) = self.len {
            parts.push(format!("{len} elements of {} bytes", self.element_bytes));
        }
        if let Some(root) = self.root {
            parts.push(format!("root {root}"));
        }
        if !self.op.is_empty() {
            parts.push(self.op.to_owned());
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
    calls: RefCell<[Option<(u32, Signature)>; REMEMBERED]>,
}

/// The kinds of notices.
const LOST: u8 = 1;
const MISMATCH: u8 = 2;
const GAVE_UP: u8 = 3;
/// A member waits for another in a call, and asks whether it is in the same.
const CHECK: u8 = 4;

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
            calls: RefCell::new([None; REMEMBERED]),
        })
    }

    pub(crate) fn rank(&self) -> Rank {
        self.members[self.me]
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

    #[inline]
    pub(crate) fn begin(&self, number: u32, signature: Signature) {
        self.calls.borrow_mut()[number as usize % REMEMBERED] = Some((number, signature));
    }

    fn call(&self, number: u32) -> Option<Signature> {
        let (known, signature) = self.calls.borrow()[number as usize % REMEMBERED]?;
        (known == number).then_some(signature)
    }

    /// The group is of no use any more, for a reason that the other members have to be told.
    #[cold]
    pub(crate) fn fail(&self, engine: &Engine, error: &Error) {
        if self.failed.replace(true) {
            return;
        }
        *self.error.borrow_mut() = Some(error.clone());
        let notice = match error {
            // Who gave up has told all.
            Error::GaveUp { peer, .. } if *peer != self.rank() => return,
            Error::PeerLost { peer, cause } => encode(LOST, *peer, cause, ""),
            Error::Mismatch {
                peer, ours, theirs, ..
            } => encode(MISMATCH, *peer, ours, theirs),
            other => encode(GAVE_UP, self.rank(), &other.to_string(), ""),
        };
        self.tell_all(engine, &notice);
    }

    fn tell_all(&self, engine: &Engine, notice: &[u8]) {
        for &member in self.members.iter().filter(|&&member| member != self.rank()) {
            if engine.loss_of(member).is_none() {
                engine.post(member, tag::notice(self.context), notice);
            }
        }
    }

    /// A rank is gone. Who closed its end in order fails only those who still need it.
    pub(crate) fn lost(&self, engine: &Engine, peer: Rank, error: &Error) {
        let closed =
            matches!(error, Error::PeerLost { cause, .. } if cause.contains("closed its end"));
        if self.members.contains(&peer) && !closed {
            self.fail(engine, error);
        }
    }

    /// Asks member `peer` whether it is in the same call as we are.
    #[cold]
    pub(crate) fn ask(&self, engine: &Engine, peer: usize, number: u32, signature: Signature) {
        let mut notice = encode(CHECK, signature.hash(), &signature.to_string(), "");
        notice.extend(number.to_le_bytes());
        engine.post(self.members[peer], tag::notice(self.context), &notice);
    }

    /// Takes in what member `from` says about the group.
    #[cold]
    pub(crate) fn notice(&self, engine: &Engine, from: Rank, notice: &[u8]) {
        let Some((&kind, rest)) = notice.split_first() else {
            return;
        };
        let Some((number, text)) = rest.split_first_chunk::<4>() else {
            return;
        };
        let number = u32::from_le_bytes(*number);
        if kind == CHECK {
            return self.compare(engine, from, number, text);
        }
        let text = String::from_utf8_lossy(text);
        let (first, second) = text.split_once('\0').unwrap_or((&text, ""));
        let error = match kind {
            LOST if number == self.rank() => Error::GaveUp {
                peer: from,
                reason: "it holds this rank for lost".to_owned(),
            },
            LOST => Error::PeerLost {
                peer: number,
                cause: format!("{first} (told by rank {from})"),
            },
            MISMATCH if number == self.rank() => Error::Mismatch {
                here: self.rank(),
                ours: second.to_owned(),
                peer: from,
                theirs: first.to_owned(),
            },
            MISMATCH => Error::Mismatch {
                here: from,
                ours: first.to_owned(),
                peer: number,
                theirs: second.to_owned(),
            },
            _ => Error::GaveUp {
                peer: from,
                reason: first.to_owned(),
            },
        };
        if !self.failed.replace(true) {
            *self.error.borrow_mut() = Some(error);
        }
    }

    /// Member `from` waits for us in a call: says so if ours of that number is another.
    fn compare(&self, engine: &Engine, from: Rank, hash: u32, text: &[u8]) {
        let Some((text, number)) = text.split_last_chunk::<4>() else {
            return;
        };
        let theirs = String::from_utf8_lossy(text.strip_suffix(b"\0").unwrap_or(text));
        if let Some(ours) = self.call(u32::from_le_bytes(*number))
            && ours.hash() != hash
        {
            self.fail(
                engine,
                &Error::Mismatch {
                    here: self.rank(),
                    ours: ours.to_string(),
                    peer: from,
                    theirs: theirs.into_owned(),
                },
            );
        }
    }
}

fn encode(kind: u8, number: u32, first: &str, second: &str) -> Vec<u8> {
    let mut notice = vec![kind];
    notice.extend(number.to_le_bytes());
    notice.extend(first.bytes());
    notice.push(0);
    notice.extend(second.bytes());
    notice
}
