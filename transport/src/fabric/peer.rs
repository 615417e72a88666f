//! One peer of a fabric by itself.

use super::Fabric;
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

    #[inline]
    fn receive(&mut self) -> Result<Option<Buffer>, Error> {
        let fabric = &mut *self.fabric;
        if fabric.until_look > 0
            && let Some(buffer) = fabric.poll_peer(self.peer)
        {
            fabric.polled_well();
            return Ok(Some(buffer));
        }
        if !fabric.polled_in_vain() && fabric.is_open(self.peer) {
            return Ok(None);
        }
        fabric.receive_rarer_from(self.peer).map_err(Error::from)
    }
}
