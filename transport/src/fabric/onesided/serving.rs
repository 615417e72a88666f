//! What a fabric does for those who use the memory that it exposes, and what it tells them.

use crate::{
    Buffer, Endpoint, Rank,
    fabric::{Contact, Fabric},
    link::End,
    remote::Frame,
};

impl Fabric {
    /// Deals with what `peer` sent beside its messages.
    #[cold]
    pub(in crate::fabric) fn serve(&mut self, peer: Rank) {
        let Contact::Open(link) = &mut self.peers[peer as usize] else {
            return;
        };
        let events = &mut self.events;
        if let Err(end) = self.onesided.take_asides(peer, link, &self.arena, events) {
            self.broke_the_protocol(peer, end);
        }
    }

    fn broke_the_protocol(&mut self, peer: Rank, end: End) {
        let error = end.error(peer);
        if let Contact::Open(link) = &mut self.peers[peer as usize] {
            link.end(end);
        }
        self.ended(peer, error);
    }

    /// Receives from `peer` while the answer to a `Get` waits for memory: what comes is put behind it.
    #[cold]
    pub(in crate::fabric) fn poll_behind(&mut self, peer: Rank) -> Option<Buffer> {
        let Contact::Open(link) = &mut self.peers[peer as usize] else {
            return None;
        };
        link.flush();
        if !self.onesided.has_room_behind(peer) {
            self.onesided.refuse(peer, link);
        } else if link.is_ready() {
            match link.receive() {
                Ok(Some(message)) => self.onesided.put_behind(peer, message),
                Ok(None) => {
                    let events = &mut self.events;
                    if let Err(end) = self.onesided.take_asides(peer, link, &self.arena, events) {
                        self.broke_the_protocol(peer, end);
                        return None;
                    }
                }
                Err(_) => self.onesided.give_up(peer), // It says so again once its messages are received.
            }
        }
        self.onesided.go_on(peer, link, &self.arena)
    }

    /// Whether an answer that waits for memory can go on without it.
    #[cold]
    pub(in crate::fabric) fn can_any_go_on(&mut self) -> bool {
        self.open
            .iter()
            .any(|&peer| match &mut self.peers[peer as usize] {
                Contact::Open(link) => self.onesided.is_blocked(peer) && link.flush(),
                _ => false,
            })
    }

    /// Tells others that memory of ours is not exposed any more, and that we do not touch theirs.
    #[inline]
    pub(in crate::fabric) fn tell_about_memory(&mut self) {
        if self.onesided.table().borrow().has_notices() {
            self.send_notices();
        }
    }

    /// Sends bytes beside the messages to a peer with an open link: what one says that keeps to no rules.
    #[cfg(any(fuzzing, all(test, not(loom))))]
    pub(crate) fn say(&mut self, peer: Rank, number: u64, bytes: &[u8]) {
        if let Some(Contact::Open(link)) = self.peers.get_mut(peer as usize)
            && let Some(aside) = Buffer::inline(number, bytes)
        {
            link.send_aside(aside);
        }
    }

    #[cold]
    fn send_notices(&mut self) {
        let notices = self.onesided.table().borrow_mut().take_notices();
        for (peer, frame) in notices {
            match (self.peers.get_mut(peer as usize), frame) {
                (_, Frame::Revoked(name)) if peer == self.rank => self.onesided.revoke(peer, name),
                (Some(Contact::Open(link)), frame) => {
                    if let Some(frame) = Buffer::inline(0, &frame.encode()) {
                        link.send_aside(frame);
                    }
                }
                _ => {} // It is gone, and so is what it would do with the news.
            }
        }
    }
}
