//! Every rank learns what every rank has to say.

use std::ops::Range;

use transport::{Buffer, Error, Fabric, Rank};

/// The rank that all tell, where they do.
const HUB: Rank = 0;

/// In what the hub tells: a part that is the same as its own.
const SAME: u32 = u32::MAX;

/// An all-gather under way: each rank contributes some bytes, and each gets those of all.
///
/// Every rank sends its bytes to every other one (the flat algorithm: one step, best for few ranks or
/// few bytes), or all send them to one, [their hub](Self::by_hub).
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
///             assert!(gather.receive(from, buffer));
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
    size: u32,
    /// Which rank this is, if all tell one.
    by_hub: Option<Rank>,
    /// This rank's contribution, once it is known.
    mine: Option<Vec<u8>>,
    /// The next rank to send to.
    next: Rank,
    parts: Vec<Option<Part>>,
    missing: u32,
    /// What the hub sends on, while it does.
    together: Option<Buffer>,
}

/// What a rank has contributed: some of the bytes of a message.
#[derive(Debug, Clone)]
struct Part {
    message: Buffer,
    bytes: Range<usize>,
}

impl Part {
    fn as_slice(&self) -> &[u8] {
        // The range was cut from these bytes.
        &self.message[self.bytes.clone()]
    }
}

impl AllGather {
    /// An all-gather among `size` ranks, whose messages carry `tag`. This rank
    /// [contributes](Self::contribute) when it can; what others contribute before that is kept.
    pub fn new(tag: u64, size: u32) -> Self {
        Self {
            tag,
            size,
            by_hub: None,
            mine: None,
            next: 0,
            parts: vec![None; size as usize],
            missing: size,
            together: None,
        }
    }

    /// The same, as seen by `rank`, where all send their bytes to rank 0, which sends them on together: a rank needs a connection to
    /// that one alone. To make one between every two takes longer than all else where there are many.
    ///
    /// Only rank 0 learns of a rank that ends without a word, and has to tell the others.
    pub fn by_hub(tag: u64, rank: Rank, size: u32) -> Self {
        Self {
            by_hub: Some(rank),
            ..Self::new(tag, size)
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
        let Some(rank) = self.by_hub else {
            while self.next < self.size {
                if !fabric.send_copy(self.next, self.tag, mine)? {
                    return Ok(false);
                }
                self.next += 1;
            }
            return Ok(true);
        };
        if self.next == 0 {
            if !fabric.send_copy(HUB, self.tag, mine)? {
                return Ok(false);
            }
            self.next = 1;
        }
        match rank {
            HUB => self.send_on(fabric),
            _ => Ok(true),
        }
    }

    /// The hub tells all others, once it has heard of all.
    fn send_on(&mut self, fabric: &mut Fabric) -> Result<bool, Error> {
        if self.missing > 0 {
            // Who says nothing because it has ended is heard of only by a connection.
            (0..self.size).for_each(|rank| fabric.approach(rank));
            return Ok(false);
        }
        if self.next < self.size && self.together.is_none() {
            let bytes = self.together();
            let Some(mut loan) = fabric.loan(bytes.len())? else {
                return Ok(false);
            };
            loan.copy_from_slice(&bytes);
            loan.set_tag(self.tag);
            self.together = Some(loan.freeze());
        }
        if let Some(together) = self.together.take() {
            for rank in self.next..self.size {
                fabric.send(rank, together.clone())?;
            }
            self.next = self.size;
        }
        Ok(true)
    }

    /// All contributions: the length of each, and then its bytes.
    fn together(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for rank in 0..self.size {
            let part = self.part(rank).unwrap_or_default();
            if rank != HUB && Some(part) == self.part(HUB) {
                bytes.extend(SAME.to_le_bytes());
                continue;
            }
            bytes.extend((part.len() as u32).to_le_bytes());
            bytes.extend(part);
        }
        bytes
    }

    /// Takes in a message with this operation's tag. A second one of the same rank is ignored. False if it is not what a rank
    /// sends.
    pub fn receive(&mut self, from: Rank, message: Buffer) -> bool {
        if self.hears_hub() {
            return from == HUB && self.take_together(&message).is_some();
        }
        if let Some(place @ None) = self.parts.get_mut(from as usize) {
            let bytes = 0..message.len();
            *place = Some(Part { message, bytes });
            self.missing -= 1;
        }
        true
    }

    /// Takes in what the hub tells of all.
    fn take_together(&mut self, message: &Buffer) -> Option<()> {
        let mut parts: Vec<Option<Part>> = Vec::new();
        let mut at = 0;
        for _ in 0..self.size {
            let len = message.get(at..at + 4)?.try_into().ok()?;
            let len = u32::from_le_bytes(len);
            at += 4;
            if len == SAME {
                let first = parts.first()?.clone();
                parts.push(first);
                continue;
            }
            let bytes = at..at.checked_add(len as usize)?;
            at = bytes.end;
            message.get(bytes.clone())?;
            let message = message.clone();
            parts.push(Some(Part { message, bytes }));
        }
        (at == message.len()).then(|| (self.parts, self.missing) = (parts, 0))
    }

    /// Whether this rank is told by another of all.
    fn hears_hub(&self) -> bool {
        self.by_hub.is_some_and(|rank| rank != HUB)
    }

    /// Whether `rank` has contributed.
    pub fn has(&self, rank: Rank) -> bool {
        self.part(rank).is_some()
    }

    /// What `rank` has contributed, once it has.
    pub fn part(&self, rank: Rank) -> Option<&[u8]> {
        let part = self.parts.get(rank as usize)?;
        part.as_ref().map(Part::as_slice)
    }

    /// Whether all contributions are there and ours is sent.
    pub fn is_complete(&self) -> bool {
        let sent = match self.hears_hub() {
            true => 1,
            false => self.size,
        };
        self.missing == 0 && self.next == sent
    }

    /// The contributions in the order of the ranks, once all are there and ours is sent.
    pub fn result(&self) -> Option<Vec<&[u8]>> {
        self.is_complete()
            .then(|| self.parts.iter().flatten().map(Part::as_slice).collect())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use transport::{Arena, Event, Ledger, Simulation};

    use super::*;

    /// Has ranks tell one another until all know, and gives what they know and how many messages rank 1 has sent.
    fn gather(seed: u64, words: &[Vec<u8>], is_by_hub: bool) -> (Vec<Vec<Vec<u8>>>, u64) {
        let size = words.len() as u32;
        let network = Simulation::new(seed, size);
        let arena = || Arena::new(&Ledger::new(1 << 20), 1 << 20).unwrap();
        let mut fabrics: Vec<_> = (0..size)
            .map(|rank| network.fabric(rank, &arena()))
            .collect();
        let mut gathers: Vec<_> = (0..size)
            .map(|rank| match is_by_hub {
                true => AllGather::by_hub(5, rank, size),
                false => AllGather::new(5, size),
            })
            .collect();
        for (gather, word) in gathers.iter_mut().zip(words) {
            gather.contribute(word);
        }
        while gathers.iter().any(|gather| !gather.is_complete()) {
            for (gather, fabric) in gathers.iter_mut().zip(&mut fabrics) {
                gather.poll(fabric).unwrap();
                while let Some(Event::Message { from, buffer }) = fabric.receive().unwrap() {
                    assert!(gather.receive(from, buffer));
                }
            }
            network.advance();
        }
        let known = |gather: &AllGather| {
            let known = gather.result().unwrap().into_iter();
            known.map(<[u8]>::to_vec).collect()
        };
        let others = (0..size).filter(|&rank| rank != 1);
        let sent = others.filter_map(|rank| Some(fabrics[1].counters(rank)?.sent.messages));
        (gathers.iter().map(known).collect(), sent.sum())
    }

    #[test]
    fn ranks_learn_of_all_though_each_tells_but_one() {
        for seed in 0..20 {
            let words: Vec<Vec<u8>> = (0..40)
                .map(|rank: u8| vec![rank % 3; usize::from(rank % 3)])
                .collect();
            let (known, sent) = gather(seed, &words, true);
            assert!(known.iter().all(|known| *known == words), "seed {seed}");
            assert_eq!(sent, 1);
        }
    }

    #[test]
    fn ranks_tell_each_other() {
        let words: Vec<Vec<u8>> = (0..5).map(|rank: u8| vec![rank; 3]).collect();
        let (known, sent) = gather(1, &words, false);
        assert!(known.iter().all(|known| *known == words));
        assert_eq!(sent, 4);
    }

    #[test]
    fn what_no_hub_sends_is_not_believed() {
        let message = |bytes: &[u8]| Buffer::inline(5, bytes).unwrap();
        let of_many = || AllGather::by_hub(5, 3, 20);
        assert!(!of_many().receive(1, message(&[0; 80])), "not from the hub");
        for bytes in [&[][..], &[1, 0, 0, 0], &[255; 80], &[255, 255, 255, 127, 0]] {
            assert!(!of_many().receive(0, message(bytes)), "{bytes:?}");
        }
        assert!(of_many().receive(0, message(&[0; 80])));
        assert!(!of_many().receive(0, message(&[0; 81])), "more than all");
    }
}
