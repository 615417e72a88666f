//! Questions about memory and their answers: what a fabric keeps for each peer, beside the link.
//!
//! # Order
//!
//! What comes from a peer is carried out in its order. One thing can stand in the way: the answer to a `Get` needs
//! memory that is not there. Then all that comes after it, messages too, waits behind it; answers to our own
//! questions do not. The answer goes on in small pieces, which need no memory, as the link takes them; and when
//! too much waits behind it, it is refused. So nothing here waits for ever, and every queue has a bound.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::{Rc, Weak},
};

use super::{
    Access, Attached, Frame, Name, Place, Reason, RemoteRegion, Table, WORD_BYTES, Words,
    compare_swap, fetch_add, load, store,
};
use crate::{
    Arena, Buffer, Error, Event, Loan, Path, Rank,
    arena::INLINE_BYTES,
    link::{
        End, Link,
        rdma::{Deed, Direct, Rdma},
    },
};

/// Operations on the memory of one peer that can be under way at a time.
const OUTSTANDING_MAX: usize = 256;
/// The most bytes that travel in one piece, for which the receiver needs that much memory.
pub(crate) const PIECE_BYTES: usize = 128 << 10;
/// Small pieces sent at a time, for want of memory.
const TRICKLE: usize = 32;
/// What waits behind a `Get` at the most.
const BEHIND_MAX: usize = 1024;

/// An operation under way, as its [`Event::Completed`] names it. No other of the same fabric has its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Operation(pub(crate) u64);

/// How far an operation came when it was issued.
#[derive(Debug)]
#[must_use = "an operation may not have been issued for want of room"]
pub enum Issued<T> {
    /// It is complete: that is so on shared memory, and of nothing.
    Done(T),
    /// An [`Event::Completed`] will tell how it went.
    Pending(Operation),
    /// Nothing was done: there is no memory for it, or too many are under way. Receive, and try again.
    NoRoom,
}

/// How an operation went.
#[derive(Debug)]
pub struct Completion {
    /// Which of our operations.
    pub operation: Operation,
    /// What it brought. [`Error::NotExposed`] and [`Error::PeerFull`]: the owner refused it, and nothing was
    /// done. [`Error::PeerLost`] and [`Error::Closed`]: nobody knows whether it was done.
    pub outcome: Result<Outcome, Error>,
}

/// What an operation brought.
#[derive(Debug)]
pub enum Outcome {
    /// The memory can be used.
    Attached(RemoteRegion),
    /// The bytes are in their place.
    Put,
    /// The bytes that were read.
    Got(Buffer),
    /// The word as it was before.
    Old(u64),
}

/// A question without its answer yet.
struct Question {
    operation: Operation,
    asked: Asked,
}

/// What a question asks for, and what its answer needs.
pub(crate) enum Asked {
    Attach(Name),
    Put,
    /// Memory for the whole, and how much of it is there.
    Get {
        whole: Loan,
        filled: usize,
    },
    Old,
}

/// What a frame has announced, and now follows.
#[derive(Default, Clone, Copy)]
enum Announced {
    #[default]
    Nothing,
    /// So much of a `Put` that was asked of us.
    ToPut { bytes: u64 },
    /// A piece of what we asked for.
    Read { bytes: u64 },
}

/// What is to be carried out for a peer.
enum Work {
    Frame(u64, Frame),
    /// A piece of the bytes of a `Put`.
    Piece(Buffer),
    /// A message that came after the others.
    Message(Buffer),
}

/// A `Put` of which pieces are still to come.
struct Putting {
    number: u64,
    name: Name,
    offset: u64,
    rest: u64,
    refused: Option<Reason>,
}

/// A `Get` that is not yet answered whole.
struct Getting {
    number: u64,
    name: Name,
    offset: u64,
    rest: u64,
}

/// What there is between us and one peer.
#[derive(Default)]
struct Lane {
    questions: VecDeque<Question>,
    /// Operations that devices carry out, in their order.
    directs: VecDeque<Operation>,
    /// Frames that wait for a link to be made.
    unsent: Vec<(u64, Frame)>,
    announced: Announced,
    putting: Option<Putting>,
    getting: Option<Getting>,
    behind: VecDeque<Work>,
}

impl Lane {
    fn is_blocked(&self) -> bool {
        self.getting.is_some() || !self.behind.is_empty()
    }
}

/// All that a fabric keeps for one-sided operations.
pub(crate) struct Onesided {
    table: Rc<RefCell<Table>>,
    lanes: Vec<Option<Box<Lane>>>,
    attached: Vec<Weak<Attached>>,
    /// Lanes in which something waits behind a `Get`.
    blocked: usize,
    next: u64,
}

impl Onesided {
    pub(crate) fn new(rank: Rank, size: usize) -> Self {
        Self {
            table: Table::new(rank),
            lanes: (0..size).map(|_| None).collect(),
            attached: Vec::new(),
            blocked: 0,
            next: 0,
        }
    }

    pub(crate) fn table(&self) -> &Rc<RefCell<Table>> {
        &self.table
    }

    fn lane(&mut self, peer: Rank) -> &mut Lane {
        self.lanes[peer as usize].get_or_insert_default()
    }

    /// Memory of `owner` that we attached to.
    pub(crate) fn region(
        &mut self,
        owner: Rank,
        name: Name,
        bytes: u64,
        words: Option<Words>,
        access: Option<(Access, u64)>,
    ) -> RemoteRegion {
        let table = self.table.clone();
        let attached = Rc::new(Attached::new(owner, name, bytes, words, access, table));
        self.attached.retain(|region| region.strong_count() > 0);
        self.attached.push(Rc::downgrade(&attached));
        RemoteRegion(attached)
    }

    /// Takes note that `owner` has taken its memory back.
    pub(crate) fn revoke(&self, owner: Rank, name: Name) {
        for region in self.attached.iter().filter_map(Weak::upgrade) {
            if (region.owner, region.name) == (owner, name) {
                region.revoke();
            }
        }
    }

    /// Operations under way at `peer`.
    pub(crate) fn outstanding(&self, peer: Rank) -> usize {
        let lane = self.lanes.get(peer as usize).and_then(Option::as_ref);
        lane.map_or(0, |lane| lane.questions.len() + lane.directs.len())
    }

    /// Whether questions to `peer` wait for their answers. What its device did now, it might do before them.
    pub(crate) fn is_asking(&self, peer: Rank) -> bool {
        let lane = self.lanes.get(peer as usize).and_then(Option::as_ref);
        lane.is_some_and(|lane| !lane.questions.is_empty())
    }

    pub(crate) fn has_room(&self, peer: Rank) -> bool {
        self.outstanding(peer) < OUTSTANDING_MAX
    }

    /// Asks `peer`, over its link or once there is one.
    pub(crate) fn ask(
        &mut self,
        peer: Rank,
        link: Option<&mut Link>,
        frame: Frame,
        asked: Asked,
        pieces: Vec<Buffer>,
    ) -> Operation {
        self.next += 1;
        let operation = Operation(self.next);
        let lane = self.lane(peer);
        lane.questions.push_back(Question { operation, asked });
        match link {
            Some(link) => {
                send(link, operation.0, frame);
                pieces.into_iter().for_each(|piece| link.send_aside(piece));
            }
            None => lane.unsent.push((operation.0, frame)),
        }
        operation
    }

    /// Has devices carry out an operation on memory of the peer at the other end of `link`, when nothing is
    /// [asked](Self::is_asking) of it: at `at` of its arena, to which `key` gives access.
    pub(crate) fn operate(
        &mut self,
        peer: Rank,
        link: Option<&mut Rdma>,
        key: u32,
        at: u64,
        deed: Deed,
    ) -> Operation {
        self.next += 1;
        let number = self.next;
        self.lane(peer).directs.push_back(Operation(number));
        if let Some(link) = link {
            link.operate(Direct {
                number,
                key,
                at,
                deed,
            });
        }
        Operation(number)
    }

    /// Sends what waited for the link to `peer`.
    pub(crate) fn opened(&mut self, peer: Rank, link: &mut Link) {
        if let Some(lane) = &mut self.lanes[peer as usize] {
            for (number, frame) in lane.unsent.drain(..) {
                send(link, number, frame);
            }
        }
    }

    /// Ends what is under way with a peer that is gone.
    pub(crate) fn ended(&mut self, peer: Rank, end: &End, events: &mut VecDeque<Event>) {
        let Some(lane) = self.lanes[peer as usize].take() else {
            return;
        };
        self.blocked -= usize::from(lane.is_blocked());
        let asked = lane.questions.iter().map(|question| question.operation);
        let mut under_way: Vec<_> = asked.chain(lane.directs).collect();
        under_way.sort_unstable();
        let unknown = |operation| completed(peer, operation, Err(end.error(peer)));
        events.extend(under_way.into_iter().map(unknown));
    }

    /// Whether something waits behind a `Get` in any lane.
    #[inline]
    pub(crate) fn is_any_blocked(&self) -> bool {
        self.blocked > 0
    }

    /// Whether something of `peer` waits behind a `Get`, or that itself for memory.
    #[inline]
    pub(crate) fn is_blocked(&self, peer: Rank) -> bool {
        self.blocked > 0
            && self.lanes[peer as usize]
                .as_ref()
                .is_some_and(|lane| lane.is_blocked())
    }

    /// Takes in all that came from `peer` beside its messages, and what devices have done.
    pub(crate) fn take_asides(
        &mut self,
        peer: Rank,
        link: &mut Link,
        arena: &Arena,
        events: &mut VecDeque<Event>,
    ) -> Result<(), End> {
        if let Link::Rdma(link) = link {
            while let Some((number, outcome)) = link.take_done() {
                let operation = self.lane(peer).directs.pop_front();
                debug_assert_eq!(operation, Some(Operation(number)), "in their order");
                events.push_back(completed(peer, Operation(number), Ok(outcome)));
            }
        }
        while let Some(aside) = link.take_aside() {
            self.take(peer, link, arena, aside, events)?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        peer: Rank,
        link: &mut Link,
        arena: &Arena,
        aside: Buffer,
        events: &mut VecDeque<Event>,
    ) -> Result<(), End> {
        let bytes = aside.len() as u64;
        match std::mem::take(&mut self.lane(peer).announced) {
            Announced::Nothing => {}
            Announced::ToPut { bytes: rest } => {
                if bytes == 0 || bytes > rest {
                    return Err(End::protocol("it put other bytes than it announced"));
                }
                if bytes < rest {
                    self.lane(peer).announced = Announced::ToPut {
                        bytes: rest - bytes,
                    };
                }
                self.work(peer, link, arena, Work::Piece(aside));
                return Ok(());
            }
            Announced::Read { bytes: announced } => {
                if bytes != announced {
                    return Err(End::protocol("it answered other bytes than it announced"));
                }
                return self.fill(peer, aside, events);
            }
        }
        let frame = Frame::decode(&aside).ok_or(End::protocol("not a frame about memory"))?;
        let number = aside.tag();
        match frame {
            Frame::Put { bytes, .. } | Frame::Get { bytes, .. } if bytes == 0 => {
                return Err(End::protocol("it asked for nothing"));
            }
            Frame::Put { bytes, .. } => self.lane(peer).announced = Announced::ToPut { bytes },
            Frame::Read { bytes } => {
                self.check_read(peer, number, bytes)?;
                self.lane(peer).announced = Announced::Read { bytes };
                return Ok(());
            }
            Frame::Attached { .. } | Frame::Written | Frame::Old { .. } | Frame::Refused(_) => {
                return self.answered(peer, link, number, frame, events);
            }
            Frame::Detach(name) => {
                self.table.borrow_mut().detach(name, peer);
                return Ok(());
            }
            Frame::Revoked(name) => {
                self.revoke(peer, name);
                return Ok(());
            }
            Frame::Attach(_)
            | Frame::Get { .. }
            | Frame::FetchAdd { .. }
            | Frame::CompareSwap { .. } => {}
        }
        if link.path() == Path::Shm && !matches!(frame, Frame::Attach(_)) {
            return Err(End::protocol("it asked for what it can do itself"));
        }
        self.work(peer, link, arena, Work::Frame(number, frame));
        Ok(())
    }

    /// A `Read` has to answer the oldest question, with as much as is missing at the most.
    fn check_read(&mut self, peer: Rank, number: u64, bytes: u64) -> Result<(), End> {
        match self.lane(peer).questions.front() {
            Some(Question {
                operation,
                asked: Asked::Get { whole, filled },
            }) if operation.0 == number && (1..=(whole.len() - filled) as u64).contains(&bytes) => {
                Ok(())
            }
            _ => Err(End::protocol("it answered what nobody asked")),
        }
    }

    /// Takes in a piece of what we asked for. When it is the whole, it is handed on as it is.
    fn fill(&mut self, peer: Rank, piece: Buffer, events: &mut VecDeque<Event>) -> Result<(), End> {
        let lane = self.lane(peer);
        let Some(Question {
            operation,
            asked: Asked::Get { mut whole, filled },
        }) = lane.questions.pop_front()
        else {
            return Err(End::protocol("it answered what nobody asked"));
        };
        let buffer = if piece.len() == whole.len() {
            piece
        } else {
            let end = filled + piece.len();
            whole[filled..end].copy_from_slice(&piece);
            if end < whole.len() {
                lane.questions.push_front(Question {
                    operation,
                    asked: Asked::Get { whole, filled: end },
                });
                return Ok(());
            }
            whole.freeze()
        };
        events.push_back(completed(peer, operation, Ok(Outcome::Got(buffer))));
        Ok(())
    }

    /// Takes in the answer to the oldest question.
    fn answered(
        &mut self,
        peer: Rank,
        link: &Link,
        number: u64,
        frame: Frame,
        events: &mut VecDeque<Event>,
    ) -> Result<(), End> {
        let strange = || End::protocol("it answered what nobody asked");
        let question = self.lane(peer).questions.pop_front().ok_or_else(strange)?;
        if question.operation.0 != number {
            return Err(strange());
        }
        let outcome = match (frame, question.asked) {
            (Frame::Refused(reason), asked) => Err(refusal(peer, reason, &asked)),
            (
                Frame::Attached {
                    offset,
                    bytes,
                    access,
                },
                Asked::Attach(name),
            ) => {
                let outside = || End::protocol("it exposed what is not in its arena");
                let words = match link {
                    Link::Shm(link) => {
                        Some(Words::new(link.mapping(), offset, bytes).ok_or_else(outside)?)
                    }
                    Link::Rdma(link) if access.is_some() && !link.reaches(offset, bytes) => {
                        return Err(outside());
                    }
                    _ => None,
                };
                if access.is_some() && !matches!(link, Link::Rdma(_)) {
                    return Err(End::protocol(
                        "it exposed memory to a device that is not there",
                    ));
                }
                let access = access.map(|access| (access, offset));
                let region = self.region(peer, name, bytes, words, access);
                Ok(Outcome::Attached(region))
            }
            (Frame::Written, Asked::Put) => Ok(Outcome::Put),
            (Frame::Old { value }, Asked::Old) => Ok(Outcome::Old(value)),
            _ => return Err(strange()),
        };
        events.push_back(completed(peer, question.operation, outcome));
        Ok(())
    }

    /// Has something done for `peer`, after what waits already.
    fn work(&mut self, peer: Rank, link: &mut Link, arena: &Arena, work: Work) {
        let lane = self.lane(peer);
        lane.behind.push_back(work);
        if lane.behind.len() == 1 && lane.getting.is_none() {
            self.blocked += 1;
            self.go_on(peer, link, arena);
        }
    }

    /// Puts a message of `peer` behind what waits.
    pub(crate) fn put_behind(&mut self, peer: Rank, message: Buffer) {
        self.lane(peer).behind.push_back(Work::Message(message));
    }

    /// Whether more may wait behind the `Get` of `peer`.
    pub(crate) fn has_room_behind(&mut self, peer: Rank) -> bool {
        self.lane(peer).behind.len() < BEHIND_MAX
    }

    /// Refuses the `Get` of `peer`, because too much waits behind it.
    pub(crate) fn refuse(&mut self, peer: Rank, link: &mut Link) {
        if let Some(getting) = self.lane(peer).getting.take() {
            send(link, getting.number, Frame::Refused(Reason::NoRoom));
        }
    }

    /// Forgets what a peer that is gone asked for; its messages are still to be received.
    pub(crate) fn give_up(&mut self, peer: Rank) {
        let lane = self.lane(peer);
        lane.getting = None;
        lane.behind.retain(|work| matches!(work, Work::Message(_)));
    }

    /// Goes on with what waits, up to the next message, which is then to be received. The lane is counted as
    /// blocked; this counts it out when nothing is left.
    pub(crate) fn go_on(&mut self, peer: Rank, link: &mut Link, arena: &Arena) -> Option<Buffer> {
        let lane = self.lanes[peer as usize].as_deref_mut()?;
        let mut table = self.table.borrow_mut();
        let mut message = None;
        while message.is_none() {
            if let Some(getting) = &mut lane.getting {
                if !answer_get(getting, &mut table, link, arena) {
                    return None;
                }
                lane.getting = None;
            }
            match lane.behind.pop_front() {
                None => break,
                Some(Work::Message(buffer)) => message = Some(buffer),
                Some(Work::Piece(piece)) => put_piece(&mut lane.putting, &piece, &mut table, link),
                Some(Work::Frame(number, frame)) => {
                    carry_out(lane, peer, number, frame, &mut table, link);
                }
            }
        }
        self.blocked -= usize::from(!lane.is_blocked());
        message
    }
}

fn completed(peer: Rank, operation: Operation, outcome: Result<Outcome, Error>) -> Event {
    Event::Completed {
        peer,
        completion: Box::new(Completion { operation, outcome }),
    }
}

/// How many of `rest` bytes from `offset` on the next piece takes: at most `most`, and only whole words.
pub(crate) fn piece_of(offset: u64, rest: u64, most: usize) -> usize {
    if rest <= most as u64 {
        return rest as usize;
    }
    most - (offset as usize + most) % WORD_BYTES
}

fn send(link: &mut Link, number: u64, frame: Frame) {
    if let Some(frame) = Buffer::inline(number, &frame.encode()) {
        link.send_aside(frame);
    }
}

/// Why `peer` refused what it was asked for.
fn refusal(peer: Rank, reason: Reason, asked: &Asked) -> Error {
    match (reason, asked) {
        (Reason::NoRoom, Asked::Get { whole, .. }) => Error::PeerFull {
            peer,
            bytes: whole.len() as u64,
        },
        _ => Error::NotExposed { peer },
    }
}

/// Carries out what a peer asks for, or, if it takes several steps, begins it.
fn carry_out(
    lane: &mut Lane,
    peer: Rank,
    number: u64,
    frame: Frame,
    table: &mut Table,
    link: &mut Link,
) {
    let answer = match frame {
        Frame::Attach(name) => match table.attach(name, peer, Some(link)) {
            Some(Place {
                offset,
                bytes,
                access,
            }) => Frame::Attached {
                offset,
                bytes,
                access,
            },
            None => Frame::Refused(Reason::NotExposed),
        },
        Frame::Put {
            name,
            offset,
            bytes,
        } => {
            lane.putting = Some(Putting {
                number,
                name,
                offset,
                rest: bytes,
                refused: table.words(name, offset, bytes).err(),
            });
            return;
        }
        Frame::Get {
            name,
            offset,
            bytes,
        } => {
            lane.getting = Some(Getting {
                number,
                name,
                offset,
                rest: bytes,
            });
            return;
        }
        Frame::FetchAdd {
            name,
            offset,
            value,
        } => operate(table, name, offset, |word| fetch_add(word, value)),
        Frame::CompareSwap {
            name,
            offset,
            expected,
            new,
        } => operate(table, name, offset, |word| {
            compare_swap(word, expected, new)
        }),
        _ => return, // The others are answers and notices, and are not work.
    };
    send(link, number, answer);
}

fn operate(
    table: &mut Table,
    name: Name,
    offset: u64,
    operation: impl FnOnce(&crate::sync::AtomicU64) -> u64,
) -> Frame {
    match table.words(name, offset, WORD_BYTES as u64) {
        Ok(words) if offset.is_multiple_of(WORD_BYTES as u64) => Frame::Old {
            value: operation(&words[offset as usize / WORD_BYTES]),
        },
        Ok(_) => Frame::Refused(Reason::NotExposed),
        Err(reason) => Frame::Refused(reason),
    }
}

/// Puts a piece in its place, and answers after the last one.
fn put_piece(putting: &mut Option<Putting>, piece: &Buffer, table: &mut Table, link: &mut Link) {
    let Some(put) = putting else {
        return;
    };
    let bytes = piece.len() as u64;
    if put.refused.is_none() {
        match table.words(put.name, put.offset, bytes) {
            Ok(words) => store(words, put.offset as usize, piece),
            Err(reason) => put.refused = Some(reason),
        }
    }
    // It wraps only for what was refused, because it is not in the region, and is not written.
    put.offset = put.offset.wrapping_add(bytes);
    put.rest = put.rest.saturating_sub(bytes);
    if put.rest == 0 {
        let answer = put.refused.map_or(Frame::Written, Frame::Refused);
        send(link, put.number, answer);
        *putting = None;
    }
}

/// Answers with as many pieces as there is memory for, or, when there is none, with a few small ones if the
/// link has sent all others; true when it is over.
fn answer_get(get: &mut Getting, table: &mut Table, link: &mut Link, arena: &Arena) -> bool {
    let mut trickle = None;
    while get.rest > 0 {
        let words = match table.words(get.name, get.offset, get.rest) {
            Ok(words) => words,
            Err(reason) => {
                send(link, get.number, Frame::Refused(reason));
                return true;
            }
        };
        let mut bytes = piece_of(get.offset, get.rest, PIECE_BYTES);
        let loan = if bytes > INLINE_BYTES && trickle.is_none() {
            arena.loan(bytes).ok().flatten()
        } else {
            None
        };
        let piece = match loan {
            Some(mut loan) => {
                load(words, get.offset as usize, &mut loan);
                loan.freeze()
            }
            None => {
                if bytes > INLINE_BYTES {
                    let left = trickle.get_or_insert(if link.flush() { TRICKLE } else { 0 });
                    if *left == 0 {
                        return false;
                    }
                    *left -= 1;
                    bytes = piece_of(get.offset, get.rest, INLINE_BYTES);
                }
                let mut piece = [0; INLINE_BYTES];
                load(words, get.offset as usize, &mut piece[..bytes]);
                let Some(piece) = Buffer::inline(0, &piece[..bytes]) else {
                    return true;
                };
                piece
            }
        };
        let header = Frame::Read {
            bytes: bytes as u64,
        };
        send(link, get.number, header);
        link.send_aside(piece);
        get.offset += bytes as u64;
        get.rest -= bytes as u64;
    }
    true
}
