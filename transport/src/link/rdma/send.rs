//! The sending half of a link: packets of messages and of news, and the requests they are posted by.

use std::{ptr, slice};

use super::{
    CHAIN, CONTROL, DATA, Posted, Rdma, SLOTS,
    adapter::{CONTROL_SLOTS, DATA_SLOTS, EAGER_BYTES, REQUESTS, STAGED_BYTES},
    packet::{Class, GATHERED_BYTES, Head, Lane, NUMBERS_MAX, NUMBERS_WITH_DATA, Writer},
};
use crate::{
    Buffer, Loan, Loss,
    link::copy_into,
    verbs::{
        Qp, VerbError,
        sys::{self, ibv_send_wr, ibv_sge, ibv_wr, ibv_wr_rdma},
    },
};

/// One request in so many says that it completed.
const SIGNALLED_EVERY: u32 = 16;
/// Free slots of which the peer hears with the next packet, and those for which one is sent without messages.
const TOLD_FROM: [u32; 2] = [DATA_SLOTS / 4, 1];
const TOLD_AT_ONCE: [u32; 2] = [DATA_SLOTS / 2, CONTROL_SLOTS / 2];

impl Rdma {
    /// Sends what can be sent. Without messages to go with, news goes if it is urgent or, when `all`, in any case.
    pub(super) fn push(&mut self, all: bool) {
        self.arena.reclaim();
        if !self.returns.borrow().is_empty() {
            self.to_return.extend(self.returns.borrow_mut().drain(..));
        }
        if self.reading {
            self.read_more();
        }
        self.push_directs();
        while self.parts.qp.is_some()
            && self.directs.is_empty()
            && !self.outgoing.is_empty()
            && self.can_send(Class::Data)
        {
            if self.push_chain() == 0 {
                break; // There is no room to make a message ours.
            }
        }
        let waiting = !self.outgoing.is_empty();
        self.waits += u64::from(waiting && !self.waiting);
        self.waiting = waiting;
        while self.has_news_to_tell(all) && self.can_send(Class::Control) {
            self.push_news();
        }
    }

    /// Whether a packet of a class may go.
    fn can_send(&self, class: Class) -> bool {
        let left = self.credits(class);
        let may = match class {
            Class::Data => left > 0,
            // The last one goes only with credits for the peer, so one of the two ends always has some.
            Class::Control => left > 1 || (left == 1 && self.owed(Class::Control) > 0),
        };
        may && self.parts.qp.is_some()
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

    fn push_news(&mut self) {
        let Some(stage) = self.free_stages.pop() else {
            return;
        };
        let (head, numbers) = self.head(Class::Control, NUMBERS_MAX);
        let bytes = Self::stage(&mut self.parts.staging, stage);
        let len = Writer::new(bytes, head, &numbers).len();
        self.sent[CONTROL] = self.sent[CONTROL].wrapping_add(1);
        let (request, pieces, posted) = self.packet(stage, len, None, 0);
        self.post(&mut [request], &mut [pieces]);
        self.keep(posted);
    }

    /// Sends up to a chain of packets; how many.
    fn push_chain(&mut self) -> usize {
        let Some((mut first, mut pieces, posted)) = self.next_packet(0) else {
            return 0;
        };
        if self.outgoing.is_empty() {
            // Most often it is alone.
            self.post(slice::from_mut(&mut first), slice::from_mut(&mut pieces));
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
        self.post(&mut requests, &mut pieces);
        let count = posted.len();
        posted.into_iter().for_each(|posted| self.keep(posted));
        count
    }

    /// Messages that the peer fetches, or will, and has not dropped.
    pub(crate) fn unread(&self) -> impl Iterator<Item = &Buffer> {
        let waiting = self.outgoing.iter().map(|(_, message)| message);
        let large = waiting.filter(|message| message.len() > EAGER_BYTES);
        self.unreturned.iter().flatten().chain(large)
    }

    /// Gathers messages into a packet; none while the first cannot be sent.
    #[inline]
    fn next_packet(&mut self, ahead: usize) -> Option<(ibv_send_wr, [ibv_sge; 2], Posted)> {
        self.make_ours()?;
        let stage = self.free_stages.pop()?;
        let (head, numbers) = self.head(Class::Data, NUMBERS_WITH_DATA);
        let bytes = Self::stage(&mut self.parts.staging, stage);
        let mut writer = Writer::new(bytes, head, &numbers);
        let mut payload = None;
        let mut about_memory = false;
        while let Some((lane, message)) = self.outgoing.front() {
            let lane = *lane;
            let (tag, len) = (message.tag(), message.len());
            if len <= GATHERED_BYTES {
                if !writer.has_room_for(len) {
                    break;
                }
                about_memory |= lane == Lane::Memory;
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
        let (mut request, pieces, posted) = self.packet(stage, len, payload, ahead);
        if about_memory && self.fetches > 0 {
            request.send_flags |= sys::IBV_SEND_FENCE;
        }
        Some((request, pieces, posted))
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

    /// The head of a packet that leaves now, and the numbers with it.
    #[inline]
    fn head(&mut self, class: Class, numbers: usize) -> (Head, Vec<u64>) {
        let tell = self.owed(Class::Data) >= TOLD_FROM[DATA]
            || self.owed(Class::Control) >= TOLD_FROM[CONTROL];
        if tell {
            self.fail_unless(self.parts.adapter.repost()); // Before the peer hears of the slots.
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

    /// The bytes of a stage.
    fn stage(staging: &mut Loan, stage: usize) -> &mut [u8] {
        &mut staging[stage * STAGED_BYTES..][..STAGED_BYTES]
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
        let gathered = &self.parts.staging[stage * STAGED_BYTES..][..len];
        let pieces = [
            self.piece(gathered),
            payload
                .as_ref()
                .map_or(ibv_sge::default(), |payload| self.piece(payload)),
        ];
        let inline = payload.is_none()
            && self
                .parts
                .qp
                .as_ref()
                .is_some_and(|qp| len <= qp.inline_bytes());
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

    /// The piece of registered memory that starts at `bytes`.
    pub(super) fn piece(&self, bytes: &[u8]) -> ibv_sge {
        ibv_sge {
            addr: bytes.as_ptr() as u64,
            length: bytes.len() as u32,
            lkey: self.parts.adapter.local_key(),
        }
    }

    /// Takes note of a packet that was posted; where all that is gathered goes inline, its stage is free at once.
    fn keep(&mut self, posted: Posted) {
        let inline_bytes = self.parts.qp.as_ref().map_or(0, Qp::inline_bytes);
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

    /// A request with the next number.
    pub(super) fn request(&mut self, opcode: i32, signalled: bool) -> ibv_send_wr {
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
            wr: ibv_wr {
                rdma: ibv_wr_rdma {
                    remote_addr: self.remote.start,
                    rkey: self.remote.key,
                },
            },
            _qp_type: 0,
            _bind_mw: [0; 6],
        }
    }

    /// Posts requests, each with its pieces, with one ring of the doorbell. Their owner is noted in `posted` next.
    #[inline]
    pub(super) fn post(&mut self, requests: &mut [ibv_send_wr], pieces: &mut [[ibv_sge; 2]]) {
        for (request, pieces) in requests.iter_mut().zip(pieces) {
            request.sg_list = pieces.as_mut_ptr();
        }
        for place in 1..requests.len() {
            requests[place - 1].next = &raw mut requests[place];
        }
        let Some(qp) = &self.parts.qp else { return };
        let Some(first) = requests.first_mut() else {
            return;
        };
        // SAFETY: the chain runs through `requests` and `pieces`, which live until the call returns. What the
        // pieces name is in the arena, which stays registered longer than the queue pair. It is a stage that is not in
        // `free_stages`, a payload that `posted` holds, or a loan of `arriving`, `directs` or `posted`, until the request
        // has completed or the queue pair is gone; a stage that is free earlier, and a piece that is put by value, was sent
        // inline.
        let posted = unsafe { qp.post(first) };
        self.fail_unless(posted);
    }

    /// Notes a verb that failed: the link ends when it next looks.
    fn fail_unless(&self, done: Result<(), VerbError>) {
        if let Err(error) = done {
            self.parts
                .inbox
                .fail(|| Loss::Connection(format!("RDMA: {error}")));
        }
    }
}
