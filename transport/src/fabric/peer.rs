//! One peer of a fabric by itself.

use std::time::Duration;

use super::{Contact, Event, Fabric};
use crate::{Buffer, Endpoint, Error, Loan, Rank};

/// One peer of a fabric, as an [`Endpoint`].
#[derive(Debug)]
pub struct Peer<'f> {
    pub(super) fabric: &'f mut Fabric,
    pub(super) peer: Rank,
}

impl Endpoint for Peer<'_> {
    fn peer(&self) -> Rank {
        self.peer
    }

    fn loan(&mut self, bytes: usize) -> Result<Option<Loan>, Error> {
        self.fabric.loan(bytes)
    }

    fn send(&mut self, message: Buffer) -> Result<(), Error> {
        self.fabric.send(self.peer, message)
    }

    fn receive(&mut self) -> Result<Option<Buffer>, Error> {
        let peer = self.peer;
        if let Contact::Ended(end) = &self.fabric.peers[peer as usize] {
            return Err(end.error(peer));
        }
        self.fabric.look(Some(Duration::ZERO))?;
        self.fabric.flush_links();
        match self.fabric.poll_peer(peer) {
            Some(Event::Message { buffer, .. }) => Ok(Some(buffer)),
            Some(Event::Ended { error, .. }) => Err(error),
            _ => Ok(None),
        }
    }
}
