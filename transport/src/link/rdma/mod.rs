//! The path between two ranks with RDMA devices: one reliable connected queue pair.
//!
//! A small message travels inside the request itself, with others if they wait; one of up to 4 KiB from the
//! arena it is in, into a receive slot, and from there into a loan. A larger one is offered: the receiver's device reads it
//! straight from the sender's arena into a loan of the receiver's, and its loan is the sender's until the
//! *receiver* has dropped the message, as on the other links. (Reading costs the sender's processor
//! nothing.)
//!
//! Receive slots are counted out to each peer as credits, so no packet finds none. Requests are posted in
//! chains, and one in sixteen says that it completed. A TCP connection, over which the two ends got to know each other,
//! stays as the watch: it says goodbye, and it breaks when the peer's process ends. Whether its device can be reached is
//! asked after a silence by reading nothing of its memory, which costs its processor nothing.

mod adapter;
mod endpoint;
mod packet;

use std::{
    collections::VecDeque,
    fmt,
    io::{self, Read, Write},
    ptr,
    rc::Rc,
    thread,
    time::Duration,
};

use mio::net::TcpStream;

pub use self::adapter::RdmaConfig;
pub(crate) use self::{
    adapter::{Adapter, Connected, Prepared},
    endpoint::{ENDPOINT_BYTES, Endpoint as RdmaEndpoint},
};
use self::{
    adapter::{CONTROL_SLOTS, DATA_SLOTS, EAGER_BYTES, Inbox, Parts, REQUESTS, STAGED_BYTES},
    packet::{
        Class, Frame, GATHERED_BYTES, Head, Lane, NUMBERS_MAX, NUMBERS_WITH_DATA, Writer,
        read_frame, read_head,
    },
};
use super::{End, Endpoint, copy_into};
use crate::{
    Arena, Buffer, Error, Loan, Loss, Rank,
    arena::{INLINE_BYTES, Purpose, Returns},
    verbs::{
        Qp,
        sys::{self, ibv_send_wr, ibv_sge},
    },
};

/// Parts of packets on their way, for each link.
const STAGES: usize = 64;
const STAGING_BYTES: usize = STAGES * STAGED_BYTES;
/// Requests posted with one ring of the doorbell, at most.
const CHAIN: usize = 16;
/// One request in so many says that it completed.
const SIGNALLED_EVERY: u32 = 16;
/// Bytes of one read; a larger message is read in several.
const READ_BYTES: u64 = 1 << 20;
/// Requests that reads leave to packets.
const KEPT_FOR_PACKETS: usize = 32;
/// Messages taken out of their packets before the program asks for them, so that reads overlap.
const AHEAD: usize = 32;
/// The word on the watch that ends a link in order; the number of packets follows.
const GOODBYE: u8 = 1;
const GOODBYE_BYTES: usize = 1 + 8;

const DATA: usize = Class::Data as usize;
const CONTROL: usize = Class::Control as usize;
const SLOTS: [u32; 2] = [DATA_SLOTS, CONTROL_SLOTS];
/// Free slots of which the peer hears with the next packet, and those for which one is sent without messages.
const TOLD_FROM: [u32; 2] = [DATA_SLOTS / 4, 1];
const TOLD_AT_ONCE: [u32; 2] = [DATA_SLOTS / 2, CONTROL_SLOTS / 2];

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

/// The peer's goodbye.
#[derive(Default)]
struct Goodbye {
    bytes: [u8; GOODBYE_BYTES],
    read: usize,
}

/// One end of a link over RDMA.
pub(crate) struct Rdma {
    peer: Rank,
    arena: Arena,
    /// None once the link has ended: the device then leaves our memory alone.
    qp: Option<Qp>,
    adapter: Rc<Adapter>,
    inbox: Rc<Inbox>,
    remote: RdmaEndpoint,
    watch: TcpStream,
    /// Whether the watch may have something to say.
    watched: bool,
    goodbye: Goodbye,

    outgoing: VecDeque<(Lane, Buffer)>,
    /// How often some of them had to stay.
    waits: u64,
    /// What came about exposed memory.
    asides: VecDeque<Buffer>,
    staging: Loan,
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
        let Connected {
            parts: Parts { qp, inbox, staging },
            remote,
            adapter,
        } = connected;
        Self {
            peer,
            arena: adapter.arena().clone(),
            qp: Some(qp),
            adapter,
            inbox,
            remote,
            watch,
            watched: true,
            goodbye: Goodbye::default(),
            outgoing: VecDeque::new(),
            asides: VecDeque::new(),
            waits: 0,
            staging,
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

    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        if self.qp.is_some() {
            self.adapter.poll();
        }
        self.inbox.news.get() || self.watched || self.has_message() || self.is_over()
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
        self.outgoing.is_empty() && self.posted.is_empty() && self.offered == self.fetched
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

    /// Lets time pass: after a silence, asks whether the peer's device is there.
    pub(crate) fn tick(&mut self, now: Duration) {
        if !std::mem::replace(&mut self.quiet, true) {
            self.heard = now;
        }
        if self.end.is_none()
            && (self.posted.is_empty() || self.unsignalled > 0)
            && now > self.heard + self.adapter.probe_after()
        {
            self.probe();
        }
    }

    /// Asks the peer's device, by reading nothing of its memory, to say that all before has arrived.
    /// (Writing nothing needs a queue pair that may be written through.)
    fn probe(&mut self) {
        if self.posted.len() >= REQUESTS as usize {
            return;
        }
        let request = self.request(sys::IBV_WR_RDMA_READ, true);
        self.post(&mut [request]);
        self.posted.push_back(Posted::Probe);
    }

    /// A request with the next number.
    fn request(&mut self, opcode: i32, signalled: bool) -> ibv_send_wr {
        self.number_request(opcode, signalled, 0)
    }

    /// A request with the number after `ahead` others that are not counted yet.
    #[inline]
    fn number_request(&mut self, opcode: i32, signalled: bool, ahead: usize) -> ibv_send_wr {
        self.unsignalled += 1;
        let signalled = signalled || self.unsignalled >= SIGNALLED_EVERY;
        if signalled {
            self.unsignalled = 0;
        }
        ibv_send_wr {
            wr_id: self.posted_from + (self.posted.len() + ahead) as u64,
            next: ptr::null_mut(),
            sg_list: ptr::null_mut(),
            num_sge: 0,
            opcode,
            send_flags: if signalled { sys::IBV_SEND_SIGNALED } else { 0 },
            imm_data: 0,
            remote_addr: self.remote.start,
            rkey: self.remote.key,
            _rest_of_wr: [0; 2],
            _qp_type: 0,
            _bind_mw: [0; 6],
        }
    }

    /// Posts requests with one ring of the doorbell.
    #[inline]
    fn post(&mut self, requests: &mut [ibv_send_wr]) {
        for place in 1..requests.len() {
            requests[place - 1].next = &raw mut requests[place];
        }
        let Some(qp) = &self.qp else { return };
        let Some(first) = requests.first_mut() else {
            return;
        };
        // SAFETY: the chain runs through `requests`, and its pieces through memory of the caller: both live
        // until the call returns. What they name is in the arena, which stays registered longer than the queue pair, and
        // is held by `posted`, `free_stages` or `arriving` until the request has completed or the queue pair is gone.
        if let Err(error) = unsafe { qp.post(first) } {
            self.inbox.news.set(true);
            self.inbox
                .failed
                .borrow_mut()
                .get_or_insert(Loss::Connection(format!("RDMA: {error}")));
        }
    }

    /// Sends what can be sent. Without messages to go with, news goes if it is urgent or, when `all`, in any case.
    fn push(&mut self, all: bool) {
        self.arena.reclaim();
        if !self.returns.borrow().is_empty() {
            self.to_return.extend(self.returns.borrow_mut().drain(..));
        }
        if self.reading {
            self.read_more();
        }
        while self.qp.is_some() && !self.outgoing.is_empty() && self.can_send(Class::Data) {
            if self.push_chain() == 0 {
                break; // There is no room to make a message ours.
            }
        }
        self.waits += u64::from(!self.outgoing.is_empty());
        while self.has_news_to_tell(all) && self.can_send(Class::Control) {
            self.push_news();
        }
    }

    pub(crate) fn waits(&self) -> u64 {
        self.waits
    }

    /// Whether a packet of a class may go.
    fn can_send(&self, class: Class) -> bool {
        let left = self.credits(class);
        let may = match class {
            Class::Data => left > 0,
            // The last one goes only with credits for the peer, so one of the two ends always has some.
            Class::Control => left > 1 || (left == 1 && self.owed(Class::Control) > 0),
        };
        may && self.qp.is_some()
            && self.posted.len() < REQUESTS as usize
            && !self.free_stages.is_empty()
    }

    /// Packets of a class that the peer has slots for.
    fn credits(&self, class: Class) -> u32 {
        let class = class as usize;
        SLOTS[class].saturating_sub(self.sent[class].wrapping_sub(self.credited[class]))
    }

    /// Slots that are free again, and the peer does not know.
    fn owed(&self, class: Class) -> u32 {
        self.consumed[class as usize].wrapping_sub(self.told[class as usize])
    }

    fn has_news_to_tell(&self, all: bool) -> bool {
        !self.to_return.is_empty()
            || self.owed(Class::Data) >= TOLD_AT_ONCE[DATA]
            || self.owed(Class::Control) >= TOLD_AT_ONCE[CONTROL]
            || (all && self.have_fetched != self.told_fetched)
    }

    /// The head of a packet that leaves now, and the numbers with it.
    #[inline]
    fn head(&mut self, class: Class, numbers: usize) -> (Head, Vec<u64>) {
        let tell = self.owed(Class::Data) >= TOLD_FROM[DATA]
            || self.owed(Class::Control) >= TOLD_FROM[CONTROL];
        // The slots are posted before the peer hears of them.
        if tell && let Err(error) = self.adapter.repost() {
            self.inbox.news.set(true);
            self.inbox
                .failed
                .borrow_mut()
                .get_or_insert(Loss::Connection(format!("RDMA: {error}")));
        }
        if tell {
            self.told = self.consumed;
        }
        self.told_fetched = self.have_fetched;
        let numbers = self.to_return.len().min(numbers);
        let head = Head {
            class,
            returned: 0,
            fetched: self.have_fetched,
            credits: self.told,
        };
        (head, self.to_return.drain(..numbers).collect())
    }

    /// Takes a free stage; the bytes of it.
    fn stage(staging: &mut Loan, stage: usize) -> &mut [u8] {
        &mut staging[stage * STAGED_BYTES..][..STAGED_BYTES]
    }

    /// The piece of registered memory that starts at `bytes`.
    fn piece(&self, bytes: &[u8]) -> ibv_sge {
        ibv_sge {
            addr: bytes.as_ptr() as u64,
            length: bytes.len() as u32,
            lkey: self.adapter.local_key(),
        }
    }

    fn push_news(&mut self) {
        let Some(stage) = self.free_stages.pop() else {
            return;
        };
        let (head, numbers) = self.head(Class::Control, NUMBERS_MAX);
        let bytes = Self::stage(&mut self.staging, stage);
        let len = Writer::new(bytes, head, numbers.into_iter()).len();
        self.sent[CONTROL] = self.sent[CONTROL].wrapping_add(1);
        let (request, mut pieces, posted) = self.packet(stage, len, None, 0);
        let mut requests = [request];
        requests[0].sg_list = pieces.as_mut_ptr();
        self.post(&mut requests);
        self.keep(posted);
    }

    /// Makes the request of a packet whose gathered part is in a stage.
    #[inline]
    fn packet(
        &mut self,
        stage: usize,
        len: usize,
        payload: Option<Buffer>,
        ahead: usize,
    ) -> (ibv_send_wr, [ibv_sge; 2], Posted) {
        self.packets_sent += 1;
        let gathered = &self.staging[stage * STAGED_BYTES..][..len];
        let pieces = [
            self.piece(gathered),
            payload
                .as_ref()
                .map_or(ibv_sge::default(), |payload| self.piece(payload)),
        ];
        let inline =
            payload.is_none() && self.qp.as_ref().is_some_and(|qp| len <= qp.inline_bytes());
        let mut request = self.number_request(sys::IBV_WR_SEND, false, ahead);
        request.num_sge = 1 + i32::from(payload.is_some());
        if inline {
            request.send_flags |= sys::IBV_SEND_INLINE;
        }
        let posted = Posted::Packet {
            stage: Some(stage),
            payload,
        };
        (request, pieces, posted)
    }

    /// Takes note of a request that was posted; the stage of an inline one is free at once.
    fn keep(&mut self, posted: Posted) {
        let inline_bytes = self.qp.as_ref().map_or(0, Qp::inline_bytes);
        self.posted.push_back(match posted {
            Posted::Packet {
                stage: Some(stage),
                payload: None,
            } if inline_bytes >= STAGED_BYTES => {
                self.free_stages.push(stage);
                Posted::Packet {
                    stage: None,
                    payload: None,
                }
            }
            posted => posted,
        });
    }

    /// Sends up to a chain of packets; how many.
    fn push_chain(&mut self) -> usize {
        let Some((mut first, mut pieces, posted)) = self.next_packet(0) else {
            return 0;
        };
        if self.outgoing.is_empty() {
            first.sg_list = pieces.as_mut_ptr(); // Most often it is alone.
            self.post(std::slice::from_mut(&mut first));
            self.keep(posted);
            return 1;
        }
        let (mut requests, mut pieces, mut posted) = (vec![first], vec![pieces], vec![posted]);
        while requests.len() < CHAIN
            && self.posted.len() + requests.len() < REQUESTS as usize
            && !self.outgoing.is_empty()
            && self.can_send(Class::Data)
            && let Some((request, places, kept)) = self.next_packet(requests.len())
        {
            requests.push(request);
            pieces.push(places);
            posted.push(kept);
        }
        for (request, pieces) in requests.iter_mut().zip(&mut pieces) {
            request.sg_list = pieces.as_mut_ptr();
        }
        self.post(&mut requests);
        let count = posted.len();
        posted.into_iter().for_each(|posted| self.keep(posted));
        count
    }

    /// Gathers messages into a packet; none while the first cannot be sent.
    #[inline]
    fn next_packet(&mut self, ahead: usize) -> Option<(ibv_send_wr, [ibv_sge; 2], Posted)> {
        self.make_ours()?;
        let stage = self.free_stages.pop()?;
        let (head, numbers) = self.head(Class::Data, NUMBERS_WITH_DATA);
        let bytes = Self::stage(&mut self.staging, stage);
        let mut writer = Writer::new(bytes, head, numbers.into_iter());
        let mut payload = None;
        while let Some((lane, message)) = self.outgoing.front() {
            let lane = *lane;
            let (tag, len) = (message.tag(), message.len());
            if len <= GATHERED_BYTES {
                if !writer.has_room_for(len) {
                    break;
                }
                writer.message(lane, tag, message);
                self.outgoing.pop_front();
                continue;
            }
            let Some(block) = message.block() else {
                break; // Those that travel by value are shorter.
            };
            if !self.arena.owns(block) {
                break; // The next packet starts with it.
            }
            if len <= EAGER_BYTES && writer.has_room_for(0) {
                writer.message_head(lane, tag, len);
                payload = self.outgoing.pop_front().map(|(_, message)| message);
                break;
            }
            if len <= EAGER_BYTES || !writer.has_room_for_offer() {
                break;
            }
            writer.offer(lane, tag, len, block.offset());
            self.offered = self.offered.wrapping_add(1);
            let offered = self.outgoing.pop_front();
            self.unreturned
                .push_back(offered.map(|(_, message)| message));
        }
        let len = writer.len();
        self.sent[DATA] = self.sent[DATA].wrapping_add(1);
        Some(self.packet(stage, len, payload, ahead))
    }

    /// Sees to it that the device can read the first message: one that lies in another's arena is copied to ours,
    /// if there is room.
    fn make_ours(&mut self) -> Option<()> {
        if self.outgoing.front()?.1.len() <= GATHERED_BYTES {
            return Some(());
        }
        let (lane, message) = self.outgoing.pop_front()?;
        let is_ours = message.block().is_none_or(|block| self.arena.owns(block));
        if is_ours {
            self.outgoing.push_front((lane, message));
            return Some(());
        }
        let copied = copy_into(&self.arena, message);
        let done = copied.is_ok();
        self.outgoing
            .push_front((lane, copied.unwrap_or_else(|message| message)));
        done.then_some(())
    }

    /// Asks the device to read what is offered, as far as there is room for requests.
    fn read_more(&mut self) {
        if self.qp.is_none() {
            return;
        }
        for place in 0..self.arriving.len() {
            let Arriving::Reading {
                loan, from, asked, ..
            } = &self.arriving[place]
            else {
                continue;
            };
            let (len, from, mut asked) = (loan.len() as u64, *from, *asked);
            let start = loan.as_ptr() as u64;
            while asked < len {
                if self.posted.len() + KEPT_FOR_PACKETS >= REQUESTS as usize {
                    return;
                }
                let bytes = READ_BYTES.min(len - asked);
                let last = asked + bytes == len;
                let mut request = self.request(sys::IBV_WR_RDMA_READ, last);
                let mut piece = ibv_sge {
                    addr: start + asked,
                    length: bytes as u32,
                    lkey: self.adapter.local_key(),
                };
                request.remote_addr = from + asked;
                request.sg_list = &raw mut piece;
                request.num_sge = 1;
                self.post(&mut [request]);
                self.posted.push_back(Posted::Read { last });
                asked += bytes;
                if let Arriving::Reading { asked: noted, .. } = &mut self.arriving[place] {
                    *noted = asked;
                }
            }
        }
        self.reading = false;
    }

    /// Takes in what has completed, what arrived and what the watch says.
    fn take_in(&mut self) {
        if self.qp.is_some() {
            self.adapter.poll();
        }
        if self.inbox.news.replace(false) {
            self.quiet = false;
            let taken = self.take_in_completions();
            if let Err(end) = taken {
                self.finish(end);
            } else if self.inbox.failed.borrow().is_some() {
                self.fail();
            }
        }
        if self.watched {
            self.read_watch();
        }
    }

    fn take_in_completions(&mut self) -> Result<(), End> {
        if let Some(number) = self.inbox.completed.take() {
            while self.posted_from <= number
                && let Some(posted) = self.posted.pop_front()
            {
                self.posted_from += 1;
                self.complete(posted);
            }
        }
        loop {
            let packet = self.inbox.packets.borrow_mut().pop_front();
            let Some((slot, len)) = packet else {
                return Ok(());
            };
            self.packets_received += 1;
            self.take_in_packet(slot, len)?;
        }
    }

    fn complete(&mut self, posted: Posted) {
        match posted {
            Posted::Packet { stage, .. } => self.free_stages.extend(stage),
            Posted::Probe | Posted::Read { last: false } => {}
            Posted::Read { last: true } => {
                // Reads complete in order.
                let first = self.arriving.iter().position(Arriving::is_reading);
                if let Some(place) = first
                    && let Some(Arriving::Reading { lane, loan, .. }) = self.arriving.remove(place)
                {
                    self.arriving
                        .insert(place, Arriving::Here(lane, loan.freeze()));
                    self.have_fetched = self.have_fetched.wrapping_add(1);
                }
            }
        }
    }

    /// Takes in what a packet says, and keeps it if it has messages.
    fn take_in_packet(&mut self, slot: u32, len: u32) -> Result<(), End> {
        let adapter = self.adapter.clone();
        let read = adapter.with_packet(slot, len, |packet| {
            read_head(packet, |number| self.returned(number))
        });
        let (head, at) = match read {
            Ok(read) => read,
            Err(end) => {
                adapter.free(slot);
                return Err(end);
            }
        };
        match head.class {
            Class::Data => self.unread.push_back(Unread { slot, len, at }),
            Class::Control => {
                adapter.free(slot);
                self.consumed[CONTROL] = self.consumed[CONTROL].wrapping_add(1);
            }
        }
        for class in [DATA, CONTROL] {
            let outstanding = self.sent[class].wrapping_sub(head.credits[class]);
            if outstanding > SLOTS[class] {
                return Err(End::protocol("it returned slots that were not used"));
            }
            self.credited[class] = head.credits[class];
        }
        if self.offered.wrapping_sub(head.fetched) > self.offered.wrapping_sub(self.fetched) {
            return Err(End::protocol("it fetched messages that it was not offered"));
        }
        self.fetched = head.fetched;
        Ok(())
    }

    /// Lets go of the message that the peer has dropped.
    fn returned(&mut self, number: u64) -> Result<(), End> {
        let index = number.wrapping_sub(self.unreturned_from) as usize;
        let message = self.unreturned.get_mut(index).and_then(Option::take);
        message.ok_or(End::protocol("it returned a message that it was not sent"))?;
        while let Some(None) = self.unreturned.front() {
            self.unreturned.pop_front();
            self.unreturned_from += 1;
        }
        Ok(())
    }

    /// Takes messages out of the packets, as far ahead as is good.
    fn unpack(&mut self) -> Result<(), End> {
        while self.arriving.len() < AHEAD {
            let Some(&Unread { slot, len, at }) = self.unread.front() else {
                return Ok(());
            };
            let adapter = self.adapter.clone();
            let next = adapter.with_packet(slot, len, |packet| self.unpack_frame(packet, at))?;
            match next {
                Unpacked::Frame { next } if next < len as usize => {
                    if let Some(unread) = self.unread.front_mut() {
                        unread.at = next;
                    }
                }
                Unpacked::Starved => return Ok(()),
                Unpacked::Lost => {
                    self.forget_packets(); // What is behind it would be out of order.
                    return Ok(());
                }
                Unpacked::Frame { .. } | Unpacked::End => {
                    self.unread.pop_front();
                    adapter.free(slot);
                    self.consumed[DATA] = self.consumed[DATA].wrapping_add(1);
                }
            }
        }
        Ok(())
    }

    fn unpack_frame(&mut self, packet: &[u8], at: usize) -> Result<Unpacked, End> {
        let Some((frame, next)) = read_frame(packet, at)? else {
            return Ok(Unpacked::End);
        };
        let arriving = match frame {
            Frame::Message { lane, tag, payload } => match Buffer::inline(tag, payload) {
                Some(message) => Arriving::Here(lane, message),
                None => {
                    let Some(mut loan) = self.room(payload.len(), Purpose::Plain)? else {
                        return Ok(Unpacked::Starved);
                    };
                    loan.copy_from_slice(payload);
                    loan.set_tag(tag);
                    Arriving::Here(lane, loan.freeze())
                }
            },
            Frame::Offer { .. } if self.qp.is_none() => return Ok(Unpacked::Lost),
            Frame::Offer { lane, tag, len, at } => {
                let end = at.checked_add(len.into());
                if len as usize <= INLINE_BYTES || end.is_none_or(|end| end > self.remote.bytes) {
                    return Err(End::protocol("it offered memory that it does not have"));
                }
                let purpose = Purpose::Received(self.returns.clone(), self.asked);
                let Some(mut loan) = self.room(len as usize, purpose)? else {
                    return Ok(Unpacked::Starved);
                };
                self.asked += 1;
                self.reading = true;
                loan.set_tag(tag);
                Arriving::Reading {
                    lane,
                    loan,
                    from: self.remote.start + at,
                    asked: 0,
                }
            }
        };
        self.arriving.push_back(arriving);
        Ok(Unpacked::Frame { next })
    }

    /// A loan for a message that arrives; none while there is no room.
    fn room(&mut self, len: usize, purpose: Purpose) -> Result<Option<Loan>, End> {
        let loan = self.arena.loan_for(len, purpose);
        let loan =
            loan.map_err(|_| End::protocol("it sent a message that does not fit in our arena"))?;
        self.starved = loan.is_none();
        Ok(loan)
    }

    /// Reads what the watch says: a goodbye, or that the peer's process is gone.
    fn read_watch(&mut self) {
        while self.watched && self.end.is_none() {
            let Goodbye { bytes, read } = &mut self.goodbye;
            match self.watch.read(&mut bytes[*read..]) {
                Ok(0) if *read == GOODBYE_BYTES => return self.finish_when_all_is_here(),
                Ok(0) => return self.finish(End::Lost(Loss::Disconnected)),
                Ok(more) => *read += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.watched = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return self.finish(End::Lost(Loss::Disconnected));
                }
                Err(error) => return self.finish(End::Lost(Loss::Connection(error.to_string()))),
            }
        }
    }

    /// The peer said goodbye: the link ends once all its packets and what it offered are here.
    fn finish_when_all_is_here(&mut self) {
        let [word, count @ ..] = self.goodbye.bytes;
        if word != GOODBYE {
            return self.finish(End::protocol("no such word on the watch"));
        }
        self.adapter.poll();
        self.inbox.news.set(false);
        if let Err(end) = self.take_in_completions() {
            return self.finish(end);
        }
        let all_is_here = self.packets_received == u64::from_le_bytes(count)
            && !self.arriving.iter().any(Arriving::is_reading);
        if all_is_here {
            self.finish(End::Closed);
        } else if self.inbox.failed.borrow().is_some() {
            self.inbox.news.set(true); // It is dealt with next.
        }
    }

    /// The queue pair has failed. If the peer said why on the watch, that is the reason.
    fn fail(&mut self) {
        self.read_watch();
        let loss = self.inbox.failed.borrow_mut().take();
        if let Some(loss) = loss {
            self.finish(End::Lost(loss));
        }
    }

    /// Ends the link; what has arrived is still received.
    fn finish(&mut self, end: End) {
        if self.end.is_some() {
            return;
        }
        if let Some(qp) = self.qp.take() {
            self.adapter.retire(qp);
        }
        // From here on the device leaves our memory alone.
        self.watched = false;
        self.inbox.news.set(false);
        let late = self.take_in_completions();
        self.end = Some(match late {
            Ok(()) => end,
            Err(end) => end,
        });
        self.outgoing.clear();
        self.posted.clear();
        self.unreturned.clear();
        self.returns.borrow_mut().clear();
        if let Some(reading) = self.arriving.iter().position(Arriving::is_reading) {
            self.arriving.truncate(reading);
            self.forget_packets(); // Nothing after it can be received in order.
        }
    }

    fn forget_packets(&mut self) {
        for Unread { slot, .. } in self.unread.drain(..) {
            self.adapter.free(slot);
        }
        for (slot, _) in self.inbox.packets.borrow_mut().drain(..) {
            self.adapter.free(slot);
        }
    }

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
            let mut goodbye = [GOODBYE; GOODBYE_BYTES];
            goodbye[1..].copy_from_slice(&self.packets_sent.to_le_bytes());
            // A watch that takes no bytes has a peer that is gone.
            let _ = self.watch.write(&goodbye);
        }
        let _ = self.watch.shutdown(std::net::Shutdown::Write);
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
        !self.asides.is_empty()
    }

    pub(crate) fn take_aside(&mut self) -> Option<Buffer> {
        self.asides.pop_front()
    }

    fn next(&mut self) -> Result<Option<Buffer>, End> {
        self.unpack()?;
        if self.reading {
            self.read_more();
        }
        match self.arriving.pop_front() {
            Some(Arriving::Here(Lane::Messages, message)) => {
                self.replies = true;
                Ok(Some(message))
            }
            Some(Arriving::Here(Lane::Memory, aside)) => {
                self.asides.push_back(aside);
                Ok(None)
            }
            Some(reading) => {
                self.arriving.push_front(reading);
                Ok(None)
            }
            None => Ok(None),
        }
    }
}

/// What became of a frame.
enum Unpacked {
    /// It is out; the next one starts there.
    Frame { next: usize },
    /// There is no room for it yet.
    Starved,
    /// It can no longer be fetched.
    Lost,
    /// The packet has no more.
    End,
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
                if self.asides.is_empty() && (!self.starved || self.unread.is_empty()) =>
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
