//! The path between two ranks with RDMA devices: one reliable connected queue pair.
//!
//! A small message travels inside the request itself, with others if they wait; one of up to 4 KiB from the
//! arena it is in, into a receive slot, and from there into a loan. A larger one is offered: the receiver's device reads it
//! straight from the sender's arena into a loan of the receiver's, and its loan is the sender's until the
//! *receiver* has dropped the message, as on the other links. (Reading costs the sender's processor
//! nothing.) Memory that is exposed is written, read and operated on by the devices in the same way, see `direct`.
//!
//! It could be written as well, once the receiver has said where to. As perftest measures it on Soft-RoCE, neither verb is
//! the faster: READ streams at 1.10 times the rate of WRITE in messages of 8 KiB (41.5 against 36.9 MiB/s), and at 0.93 times in
//! 1 MiB (29.7 against 32.8). Alone, 8 KiB take 159 us to be read and 134 us to be written, to which writing adds that answer: a
//! packet, some 40 us, and the attention of the sender, who may be busy. So they are read. `tests/rdma/bench verbs` asks again,
//! on other devices too.
//!
//! Receive slots are counted out to each peer as credits, so no packet finds none. Requests are posted in
//! chains, and one in sixteen says that it completed. A TCP connection, over which the two ends got to know each other,
//! stays as the watch: it says goodbye, and it breaks when the peer's process ends. Whether its device can be reached is
//! asked after a silence by reading nothing of its memory, which costs its processor nothing.

mod adapter;
mod direct;
pub(crate) mod endpoint;
pub(crate) mod packet;
mod receive;
mod send;
mod watch;

use std::{collections::VecDeque, fmt, rc::Rc, thread, time::Duration};

use mio::net::TcpStream;

pub use self::adapter::RdmaConfig;
pub(crate) use self::{
    adapter::{Adapter, Connected, Exposure, Prepared},
    direct::{Deed, Direct, part_of},
    endpoint::{ENDPOINT_BYTES, Endpoint as RdmaEndpoint},
};
use self::{
    adapter::{CONTROL_SLOTS, DATA_SLOTS, Parts, REQUESTS, STAGED_BYTES},
    direct::Last,
    packet::{Class, Lane},
    watch::Goodbye,
};
use super::{End, Endpoint};
use crate::{Arena, Buffer, Error, Loan, Outcome, Rank, arena::Returns, verbs::sys};

/// Parts of packets on their way, for each link.
const STAGES: usize = 64;
const STAGING_BYTES: usize = STAGES * STAGED_BYTES;
/// Requests posted with one ring of the doorbell, at most.
const CHAIN: usize = 16;

const DATA: usize = Class::Data as usize;
const CONTROL: usize = Class::Control as usize;
const SLOTS: [u32; 2] = [DATA_SLOTS, CONTROL_SLOTS];

/// A request that was posted.
enum Posted {
    /// A packet, with what it is sent from.
    Packet {
        stage: Option<usize>,
        payload: Option<Buffer>,
    },
    /// A part of a message is read; the last one completes it.
    Read { last: bool },
    /// The peer's device was asked whether it is there.
    Probe,
    /// A part of an operation on exposed memory, with what is written; the last one completes it.
    Direct {
        _piece: Option<Buffer>,
        fetches: bool,
        last: Option<(u64, Last)>,
    },
}

/// A message on its way to the program.
enum Arriving {
    Here(Lane, Buffer),
    /// It is read from `from` of the peer's memory on; the first `asked` bytes have been asked for.
    Reading {
        lane: Lane,
        loan: Loan,
        from: u64,
        asked: u64,
    },
}

impl Arriving {
    fn is_reading(&self) -> bool {
        matches!(self, Self::Reading { .. })
    }
}

/// A packet whose messages are not all out yet.
struct Unread {
    slot: u32,
    len: u32,
    at: usize,
}

/// One end of a link over RDMA.
pub(crate) struct Rdma {
    peer: Rank,
    arena: Arena,
    parts: Parts,
    remote: RdmaEndpoint,
    watch: TcpStream,
    /// Whether the watch may have something to say.
    watched: bool,
    goodbye: Goodbye,

    outgoing: VecDeque<(Lane, Buffer)>,
    /// Whether some of them had to stay when they were last looked at, and how often that began.
    waiting: bool,
    waits: u64,
    /// What came about exposed memory.
    asides: VecDeque<Buffer>,
    /// Operations on exposed memory of the peer, of which requests are still to be posted; packets wait for that.
    directs: VecDeque<Direct>,
    /// Requests on their way that bring something of that memory here.
    fetches: usize,
    /// Operations that are done, and what they brought.
    done: VecDeque<(u64, Outcome)>,
    free_stages: Vec<usize>,
    /// Requests on their way, and the number of the first.
    posted: VecDeque<Posted>,
    posted_from: u64,
    /// Requests since the last one that says that it completed.
    unsignalled: u32,
    /// Packets sent so far of each class, and how many of them the peer has room for again.
    sent: [u32; 2],
    credited: [u32; 2],
    packets_sent: u64,
    /// Messages that the peer has to fetch, and that it has fetched.
    offered: u32,
    fetched: u32,
    /// Those that it has not dropped, by number, and the number of the first.
    unreturned: VecDeque<Option<Buffer>>,
    unreturned_from: u64,

    unread: VecDeque<Unread>,
    arriving: VecDeque<Arriving>,
    /// Packets that arrived of each class, those whose slots are free again, and what the peer knows of that.
    packets_received: u64,
    consumed: [u32; 2],
    told: [u32; 2],
    /// Messages that we asked for, have fetched, and what the peer knows of that.
    asked: u64,
    have_fetched: u32,
    told_fetched: u32,
    /// Fetched messages that were dropped here, and those of them that the peer has to be told of.
    returns: Rc<Returns>,
    to_return: VecDeque<u64>,
    /// Whether something offered has not been asked for in full.
    reading: bool,
    /// Whether the message that comes next found no loan.
    starved: bool,

    /// Whether a message was received since the last one was sent.
    replies: bool,
    /// When something last completed, and whether something has since.
    heard: Duration,
    quiet: bool,
    end: Option<End>,
    closing: bool,
}

impl Rdma {
    pub(crate) fn new(peer: Rank, connected: Connected, watch: TcpStream) -> Self {
        let Connected { parts, remote } = connected;
        Self {
            peer,
            arena: parts.adapter.arena().clone(),
            parts,
            remote,
            watch,
            watched: true,
            goodbye: Goodbye::default(),
            outgoing: VecDeque::new(),
            asides: VecDeque::new(),
            directs: VecDeque::new(),
            fetches: 0,
            done: VecDeque::new(),
            waiting: false,
            waits: 0,
            free_stages: (0..STAGES).collect(),
            posted: VecDeque::new(),
            posted_from: 0,
            unsignalled: 0,
            sent: [0; 2],
            credited: [0; 2],
            packets_sent: 0,
            offered: 0,
            fetched: 0,
            unreturned: VecDeque::new(),
            unreturned_from: 0,
            unread: VecDeque::new(),
            arriving: VecDeque::new(),
            packets_received: 0,
            consumed: [0; 2],
            told: [0; 2],
            asked: 0,
            have_fetched: 0,
            told_fetched: 0,
            returns: Rc::default(),
            to_return: VecDeque::new(),
            reading: false,
            starved: false,
            replies: false,
            heard: Duration::ZERO,
            quiet: true,
            end: None,
            closing: false,
        }
    }

    /// Takes note that the watch has something to say.
    pub(crate) fn notify(&mut self) {
        self.watched = true;
    }

    /// Whether `receive` has something to say.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        if self.parts.qp.is_some() {
            self.parts.adapter.poll();
        }
        self.parts.inbox.news.get() || self.watched || self.has_message() || self.is_over()
    }

    /// Whether there is a message that can be handed over now.
    fn has_message(&self) -> bool {
        match self.arriving.front() {
            Some(Arriving::Here(..)) => true,
            Some(Arriving::Reading { .. }) => false,
            None => !self.unread.is_empty() && (!self.starved || self.arena.has_returns()),
        }
    }

    /// Whether the end can be told.
    fn is_over(&self) -> bool {
        self.end.is_some() && (self.unread.is_empty() || !self.starved || self.arena.has_returns())
    }

    /// Moves what waits here towards the peer; true when everything has arrived there.
    pub(crate) fn flush(&mut self) -> bool {
        if self.end.is_some() {
            return true;
        }
        self.take_in();
        self.push(true);
        if self.unsignalled > 0 {
            self.probe();
        }
        self.outgoing.is_empty()
            && self.directs.is_empty()
            && self.posted.is_empty()
            && self.offered == self.fetched
    }

    /// Nothing arrives: tells the peer what could wait, and has loans come back that wait for a later request to
    /// complete.
    pub(crate) fn idle(&mut self) {
        if self.end.is_none() {
            self.push(true);
            if self.unsignalled > 0 && self.arena.is_wanted() {
                self.probe();
            }
        }
    }

    /// Lets time pass: after a silence, asks whether the peer's device is there. That also tells our own device that there
    /// are requests. One that waits for those before it (`IBV_SEND_FENCE`) may have been forgotten: Soft-RoCE looks
    /// whether they are done, and notes only then that one waits (`rxe_requester` of Linux 6.2).
    pub(crate) fn tick(&mut self, now: Duration) {
        if !std::mem::replace(&mut self.quiet, true) {
            self.heard = now;
        }
        if self.end.is_none()
            && !matches!(self.posted.back(), Some(Posted::Probe))
            && now > self.heard + self.parts.adapter.probe_after()
        {
            self.probe();
        }
    }

    /// Asks the peer's device, by reading nothing of its memory, to say that all before has arrived.
    fn probe(&mut self) {
        if self.posted.len() >= REQUESTS as usize {
            return;
        }
        let request = self.request(sys::IBV_WR_RDMA_READ, true);
        self.post(&mut [request], &mut []);
        self.posted.push_back(Posted::Probe);
    }

    /// How often messages had to stay.
    pub(crate) fn waits(&self) -> u64 {
        self.waits
    }

    /// Takes in what has completed, what arrived and what the watch says.
    fn take_in(&mut self) {
        if self.parts.qp.is_some() {
            self.parts.adapter.poll();
        }
        if self.parts.inbox.news.replace(false) {
            self.quiet = false;
            let taken = self.take_in_completions();
            if let Err(end) = taken {
                self.finish(end);
            } else if self.parts.inbox.failed.borrow().is_some() {
                self.fail();
            }
        }
        if self.watched {
            self.read_watch();
        }
    }

    /// The queue pair has failed. If the peer said why on the watch, that is the reason.
    fn fail(&mut self) {
        self.read_watch();
        let loss = self.parts.inbox.failed.borrow_mut().take();
        if let Some(loss) = loss {
            self.finish(End::Lost(loss));
        }
    }

    /// Ends the link; what has arrived is still received.
    fn finish(&mut self, end: End) {
        if self.end.is_some() {
            return;
        }
        self.parts.retire();
        // From here on the device leaves our memory alone.
        self.watched = false;
        self.parts.inbox.news.set(false);
        let late = self.take_in_completions();
        self.end = Some(match late {
            Ok(()) => end,
            Err(end) => end,
        });
        self.outgoing.clear();
        self.directs.clear();
        self.posted.clear();
        self.unreturned.clear();
        self.returns.borrow_mut().clear();
        if let Some(reading) = self.arriving.iter().position(Arriving::is_reading) {
            self.arriving.truncate(reading);
            self.forget_packets(); // Nothing after it can be received in order.
        }
    }

    /// Gives back the slots of what is not read any more.
    fn forget_packets(&mut self) {
        for Unread { slot, .. } in self.unread.drain(..) {
            self.parts.adapter.free(slot);
        }
        self.parts.forget_packets();
    }

    /// Takes note that the peer is gone.
    pub(crate) fn end(&mut self, end: End) {
        self.finish(end);
    }

    /// Says goodbye, if everything has arrived at the peer.
    pub(crate) fn close(&mut self) {
        if std::mem::replace(&mut self.closing, true) || self.end.is_some() {
            return;
        }
        let all_arrived = self.flush();
        if !thread::panicking() && all_arrived && self.end.is_none() {
            self.say_goodbye();
        }
        self.close_watch();
        self.finish(End::Closed);
    }

    /// Sends what is about exposed memory.
    pub(crate) fn send_aside(&mut self, aside: Buffer) {
        if self.end.is_none() {
            self.outgoing.push_back((Lane::Memory, aside));
            if self.outgoing.len() >= CHAIN {
                self.push(false);
            }
        }
    }

    pub(crate) fn has_aside(&self) -> bool {
        !self.asides.is_empty() || !self.done.is_empty()
    }

    pub(crate) fn take_aside(&mut self) -> Option<Buffer> {
        self.asides.pop_front()
    }
}

impl Endpoint for Rdma {
    fn peer(&self) -> Rank {
        self.peer
    }

    fn loan(&mut self, bytes: usize) -> Result<Option<Loan>, Error> {
        self.arena.loan(bytes)
    }

    fn send(&mut self, message: Buffer) -> Result<(), Error> {
        if let Some(end) = &self.end {
            return Err(end.error(self.peer));
        }
        if message.len() > u32::MAX as usize {
            return Err(Error::MessageTooLarge {
                bytes: message.len() as u64,
                limit: u32::MAX.into(),
            });
        }
        self.outgoing.push_back((Lane::Messages, message));
        // A reply goes at once; others go together, with the next look.
        if std::mem::take(&mut self.replies) || self.outgoing.len() >= CHAIN {
            self.push(false);
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Option<Buffer>, Error> {
        self.take_in();
        let received = self.next();
        if self.end.is_none() {
            self.push(false);
        }
        match (received, &self.end) {
            (Ok(None), Some(end))
                if !self.has_aside() && (!self.starved || self.unread.is_empty()) =>
            {
                Err(end.error(self.peer))
            }
            (Ok(message), _) => Ok(message),
            (Err(end), _) => {
                let error = end.error(self.peer);
                self.finish(end);
                self.forget_packets();
                Err(error)
            }
        }
    }
}

impl Drop for Rdma {
    fn drop(&mut self) {
        self.close();
        self.forget_packets();
    }
}

impl fmt::Debug for Rdma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rdma")
            .field("peer", &self.peer)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}
