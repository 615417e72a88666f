//! Every rank learns what every rank has to say.

use transport::{Buffer, Error, Fabric, Rank};

/// An all-gather under way: each rank contributes some bytes, and each gets those of all.
///
/// Every rank sends its bytes to every other one (the flat algorithm: one step, best for few ranks or
/// few bytes).
///
/// ```
/// use collectives::AllGather;
/// use transport::{Arena, Event, Ledger, Simulation};
///
/// let network = Simulation::new(1, 2);
/// let arena = || Arena::new(&Ledger::new(1 << 20), 1 << 20).unwrap();
/// let mut fabrics = [0, 1].map(|rank| network.fabric(rank, &arena()));
/// let mut gathers = [0, 1].map(|_| AllGather::new(5, 2));
/// gathers[0].contribute(b"zero");
/// gathers[1].contribute(b"one");
/// while gathers.iter().any(|gather| gather.result().is_none()) {
///     for (gather, fabric) in gathers.iter_mut().zip(&mut fabrics) {
///         gather.poll(fabric)?;
///         if let Some(Event::Message { from, buffer }) = fabric.receive()? {
///             gather.receive(from, buffer);
///         }
///     }
///     network.advance();
/// }
/// assert_eq!(gathers[0].result().unwrap(), [b"zero".as_slice(), b"one"]);
/// # Ok::<(), transport::Error>(())
/// ```
#[derive(Debug)]
pub struct AllGather {
    tag: u64,
    /// This rank's contribution, once it is known.
    mine: Option<Vec<u8>>,
    /// The next rank to send to.
    next: Rank,
    parts: Vec<Option<Buffer>>,
    missing: usize,
}

impl AllGather {
    /// An all-gather among `size` ranks, whose messages carry `tag`. This rank
    /// [contributes](Self::contribute) when it can; what others contribute before that is kept.
    pub fn new(tag: u64, size: u32) -> Self {
        Self {
            tag,
            mine: None,
            next: 0,
            parts: vec![None; size as usize],
            missing: size as usize,
        }
    }

    /// Sets this rank's contribution, of which a copy is kept. Only the first one counts.
    pub fn contribute(&mut self, mine: &[u8]) {
        self.mine.get_or_insert_with(|| mine.to_vec());
    }

    /// Sends what can be sent now; true when everything is.
    ///
    /// # Errors
    ///
    /// Those of [`Fabric::send`]: a rank is gone.
    pub fn poll(&mut self, fabric: &mut Fabric) -> Result<bool, Error> {
        let Some(mine) = &self.mine else {
            return Ok(false);
        };
        while self.next < fabric.size() {
            if !fabric.send_copy(self.next, self.tag, mine)? {
                return Ok(false);
            }
            self.next += 1;
        }
        Ok(true)
    }

    /// Takes in a message with this operation's tag. A second one of the same rank is ignored.
    pub fn receive(&mut self, from: Rank, part: Buffer) {
        if let Some(place @ None) = self.parts.get_mut(from as usize) {
            *place = Some(part);
            self.missing -= 1;
        }
    }

    /// Whether `rank` has contributed.
    pub fn has(&self, rank: Rank) -> bool {
        self.part(rank).is_some()
    }

    /// What `rank` has contributed, once it has.
    pub fn part(&self, rank: Rank) -> Option<&[u8]> {
        self.parts.get(rank as usize)?.as_deref()
    }

    /// Whether all contributions are there and ours is sent.
    pub fn is_complete(&self) -> bool {
        self.missing == 0 && self.next as usize == self.parts.len()
    }

    /// The contributions in the order of the ranks, once all are there and ours is sent.
    pub fn result(&self) -> Option<Vec<&[u8]>> {
        self.is_complete()
            .then(|| self.parts.iter().flatten().map(Buffer::as_slice).collect())
    }
}
