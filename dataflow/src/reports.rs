//! What the ranks of a run tell one another when they are done with it.

use std::ops::Range;

use transport::{Buffer, Error as Gone, Fabric, Rank};

use crate::{Error, run::tag};

/// What every rank says at the end of each of a row of runs of the same graph. Runs of the row are counted from 1.
///
/// Who is done goes on to the next run when all are done with the one before: so no rank is more than one run ahead of
/// another, and yet none waits for the slowest in every run.
///
/// Every rank tells all others, or [the hub](Self::is_hub), which tells the others when it has heard of all. What becomes of a rank is
/// the concern of the hub alone then.
pub(crate) struct Reports {
    rank: Rank,
    by_hub: bool,
    /// Runs of which the hub has told all.
    told: u32,
    /// Which run of the row this rank is in.
    run: u32,
    /// How many runs each rank is done with, and what it said last.
    of: Vec<(u32, Option<Report>)>,
    /// What this rank says, once it is done, and whom it tells next.
    mine: Vec<u8>,
    next: Rank,
}

impl Reports {
    /// The first run of a row; `by_hub` if the ranks tell the first.
    pub(crate) fn new(rank: Rank, size: u32, by_hub: bool) -> Self {
        Self {
            rank,
            by_hub,
            told: 0,
            run: 1,
            of: vec![(0, None); size as usize],
            mine: Vec::new(),
            next: size,
        }
    }

    /// Goes on to the next run of the row.
    pub(crate) fn again(&mut self) {
        self.run = self.run.wrapping_add(1);
    }

    /// Whether there was a run before this.
    pub(crate) fn is_again(&self) -> bool {
        self.run != 1
    }

    /// Says that this rank is done, and what `report` writes.
    ///
    /// # Errors
    ///
    /// What it says.
    pub(crate) fn tell(
        &mut self,
        report: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.mine.clear();
        report(&mut self.mine)?;
        self.of[self.rank as usize].0 = self.run;
        self.next = 0;
        Ok(())
    }

    /// Whether this is the rank that tells what all say.
    pub(crate) fn is_hub(&self) -> bool {
        self.by_hub && self.rank == HUB
    }

    /// Whether the end of a peer is no concern of this rank: the hub learns of it, and tells, if the peer is needed.
    pub(crate) fn leaves_to_hub(&self, peer: Rank) -> bool {
        self.by_hub && self.rank != HUB && peer != HUB
    }

    /// Tells all whom it can be told now; true when everyone knows.
    ///
    /// # Errors
    ///
    /// A rank is gone.
    pub(crate) fn poll(&mut self, number: u32, fabric: &mut Fabric) -> Result<bool, Error> {
        if self.is_hub() {
            self.next = fabric.size();
            return self.tell_together(number, fabric).map(|()| true);
        }
        if self.by_hub && self.next == 0 {
            if !fabric.send_copy(HUB, tag::of_run(number, tag::TOTALS), &self.mine)? {
                return Ok(false);
            }
            self.next = fabric.size();
        }
        while self.next < fabric.size() {
            let told = self.next == self.rank
                || match fabric.send_copy(self.next, tag::of_run(number, tag::TOTALS), &self.mine) {
                    // Who is done with the run may be gone, and what it said last may still be on its way. If that is not that it
                    // is done, its end, which comes behind it, is an error.
                    Err(Gone::Closed { .. } | Gone::PeerLost { .. }) => true,
                    told => told?,
                };
            if !told {
                return Ok(false);
            }
            self.next += 1;
        }
        Ok(true)
    }

    /// The hub tells all of the next run of the row that all are done with, if it can.
    fn tell_together(&mut self, number: u32, fabric: &mut Fabric) -> Result<(), Error> {
        let next = self.told.wrapping_add(1);
        let mut runs = self.of.iter().map(|(runs, _)| *runs);
        if !runs.all(|runs| runs.wrapping_sub(next) as i32 >= 0) {
            return Ok(());
        }
        let mut reports = Vec::new();
        for report in self.last() {
            put_part(&mut reports, report);
        }
        let Some(mut loan) = fabric.loan(reports.len())? else {
            return Ok(());
        };
        loan.copy_from_slice(&reports);
        loan.set_tag(tag::of_run(number, tag::TOTALS));
        let together = loan.freeze();
        for rank in (0..fabric.size()).filter(|&rank| rank != self.rank) {
            // Who is done with the row may be gone.
            let _ = fabric.send(rank, together.clone());
        }
        self.told = next;
        Ok(())
    }

    /// Takes in what another says; false if it is not what a rank says.
    pub(crate) fn receive(&mut self, from: Rank, report: Buffer) -> bool {
        if self.by_hub && self.rank != HUB {
            return from == HUB && self.take_together(&report);
        }
        if let Some((runs, last)) = self.of.get_mut(from as usize) {
            *runs = runs.wrapping_add(1);
            *last = Some(Report::whole(report));
        }
        true
    }

    /// Takes in what the hub says of all.
    fn take_together(&mut self, together: &Buffer) -> bool {
        let mut at = 0;
        for (rank, (runs, last)) in self.of.iter_mut().enumerate() {
            let Some(bytes) = part_at(together, at) else {
                return false;
            };
            at = bytes.end;
            if rank != self.rank as usize {
                *runs = runs.wrapping_add(1);
            }
            let message = together.clone();
            *last = Some(Report { message, bytes });
        }
        at == together.len()
    }

    /// Whether a rank is done with this run, as it has said.
    pub(crate) fn has(&self, rank: Rank) -> bool {
        self.of
            .get(rank as usize)
            .is_some_and(|of| self.is_done(of, 0))
    }

    /// Whether all are done with this run and know it of this rank.
    pub(crate) fn is_complete(&self) -> bool {
        self.next as usize == self.of.len()
            && self.of.iter().all(|of| self.is_done(of, 0))
            && (!self.is_hub() || self.told == self.run)
    }

    /// Whether all are done with the run before this, and know it of this one of this rank.
    pub(crate) fn may_go_on(&self) -> bool {
        self.next as usize == self.of.len()
            && self.of.iter().all(|of| self.is_done(of, 1))
            && (!self.is_hub() || self.run.wrapping_sub(self.told) <= 1)
    }

    /// Whether a rank is done with the run that was so many before this.
    fn is_done(&self, (runs, _): &(u32, Option<Report>), before: u32) -> bool {
        self.run.wrapping_sub(*runs) as i32 <= before as i32
    }

    /// What each rank said last, in their order.
    pub(crate) fn last(&self) -> impl Iterator<Item = &[u8]> {
        let mine = (0..).map(|rank: Rank| (rank == self.rank).then_some(&self.mine[..]));
        let all = self.of.iter().zip(mine);
        all.filter_map(|((_, other), mine)| mine.or(other.as_ref().map(Report::as_slice)))
    }
}

/// Appends a part of a report, behind its length.
pub(crate) fn put_part(report: &mut Vec<u8>, part: &[u8]) {
    report.extend((part.len() as u64).to_le_bytes());
    report.extend_from_slice(part);
}

/// Where the part is whose length is at this place.
pub(crate) fn part_at(report: &[u8], at: usize) -> Option<Range<usize>> {
    let (len, rest) = report.get(at..)?.split_first_chunk()?;
    let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
    let start = at + size_of::<u64>();
    (len <= rest.len()).then(|| start..start + len)
}

/// The rank that tells what all say, where all tell one.
const HUB: Rank = 0;

/// What a rank has said: some of the bytes of a message.
#[derive(Clone)]
struct Report {
    message: Buffer,
    bytes: Range<usize>,
}

impl Report {
    fn whole(message: Buffer) -> Self {
        let bytes = 0..message.len();
        Self { message, bytes }
    }

    fn as_slice(&self) -> &[u8] {
        // The range was cut from these bytes.
        &self.message[self.bytes.clone()]
    }
}
