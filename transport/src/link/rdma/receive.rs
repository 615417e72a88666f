//! The receiving half of a link: what completed, what packets say, and the messages that come out of them.

use super::{
    Arriving, CONTROL, DATA, Posted, Rdma, SLOTS, Unread,
    adapter::REQUESTS,
    packet::{Class, Frame, Lane, read_frame, read_head},
};
use crate::{
    Buffer, Loan,
    arena::{INLINE_BYTES, Purpose},
    link::End,
    verbs::sys::{self, ibv_sge},
};

/// Bytes of one read; a larger message is read in several.
pub(super) const READ_BYTES: u64 = 1 << 20;
/// Requests that reads leave to packets.
pub(super) const KEPT_FOR_PACKETS: usize = 32;
/// Messages taken out of their packets before the program asks for them, so that reads overlap.
const AHEAD: usize = 32;

impl Rdma {
    pub(super) fn take_in_completions(&mut self) -> Result<(), End> {
        if let Some(number) = self.parts.inbox.completed.take() {
            while self.posted_from <= number
                && let Some(posted) = self.posted.pop_front()
            {
                self.posted_from += 1;
                self.complete(posted);
            }
        }
        loop {
            let packet = self.parts.inbox.packets.borrow_mut().pop_front();
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
            Posted::Direct { fetches, last, .. } => self.direct_completed(fetches, last),
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
        let adapter = self.parts.adapter.clone();
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
        let index = usize::try_from(number.wrapping_sub(self.unreturned_from));
        let message = index
            .ok()
            .and_then(|index| self.unreturned.get_mut(index)?.take());
        message.ok_or(End::protocol("it returned a message that it was not sent"))?;
        while let Some(None) = self.unreturned.front() {
            self.unreturned.pop_front();
            self.unreturned_from += 1;
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> Result<Option<Buffer>, End> {
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

    /// Takes messages out of the packets, as far ahead as is good.
    fn unpack(&mut self) -> Result<(), End> {
        while self.arriving.len() < AHEAD {
            let Some(&Unread { slot, len, at }) = self.unread.front() else {
                return Ok(());
            };
            let adapter = self.parts.adapter.clone();
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
            Frame::Offer { .. } if self.parts.qp.is_none() => return Ok(Unpacked::Lost),
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

    /// Asks the device to read what is offered, as far as there is room for requests.
    pub(super) fn read_more(&mut self) {
        if self.parts.qp.is_none() {
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
                let piece = ibv_sge {
                    addr: start + asked,
                    length: bytes as u32,
                    lkey: self.parts.adapter.local_key(),
                };
                request.wr.rdma.remote_addr = from + asked;
                request.num_sge = 1;
                self.post(&mut [request], &mut [[piece, ibv_sge::default()]]);
                self.posted.push_back(Posted::Read { last });
                asked += bytes;
                if let Arriving::Reading { asked: noted, .. } = &mut self.arriving[place] {
                    *noted = asked;
                }
            }
        }
        self.reading = false;
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
