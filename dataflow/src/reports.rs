//! What the ranks of a run tell one another when they are done with it.

use transport::{Buffer, Error as Gone, Fabric, Rank};

use crate::{Error, run::tag};

/// What every rank says at the end of each of a row of runs of the same graph. Runs of the row are counted from 1.
///
/// Who is done goes on to the next run when all are done with the one before: so no rank is more than one run ahead of
/// another, and yet none waits for the slowest in every run.
pub(crate) struct Reports {
    rank: Rank,
    /// Which run of the row this rank is in.
    run: u32,
    /// How many runs each rank is done with, and what it said last.
    of: Vec<(u32, Option<Buffer>)>,
    /// What this rank says, once it is done, and whom it tells next.
    mine: Vec<u8>,
    next: Rank,
}

impl Reports {
    /// The first run of a row.
    pub(crate) fn new(rank: Rank, size: u32) -> Self {
        Self {
            rank,
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

    /// Says that this rank is done.
    pub(crate) fn tell(&mut self, bytes: impl IntoIterator<Item = u64>) {
        self.mine.clear();
        for number in bytes {
            self.mine.extend(number.to_le_bytes());
        }
        self.of[self.rank as usize].0 = self.run;
        self.next = 0;
    }

    /// Tells all whom it can be told now; true when everyone knows.
    ///
    /// # Errors
    ///
    /// A rank is gone.
    pub(crate) fn poll(&mut self, number: u32, fabric: &mut Fabric) -> Result<bool, Error> {
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

    /// Takes in what another says.
    pub(crate) fn receive(&mut self, from: Rank, report: Buffer) {
        if let Some((runs, last)) = self.of.get_mut(from as usize) {
            *runs = runs.wrapping_add(1);
            *last = Some(report);
        }
    }

    /// Whether a rank is done with this run, as it has said.
    pub(crate) fn has(&self, rank: Rank) -> bool {
        self.of
            .get(rank as usize)
            .is_some_and(|of| self.is_done(of, 0))
    }

    /// Whether all are done with this run and know it of this rank.
    pub(crate) fn is_complete(&self) -> bool {
        self.next as usize == self.of.len() && self.of.iter().all(|of| self.is_done(of, 0))
    }

    /// Whether all are done with the run before this, and know it of this one of this rank.
    pub(crate) fn may_go_on(&self) -> bool {
        self.next as usize == self.of.len() && self.of.iter().all(|of| self.is_done(of, 1))
    }

    /// Whether a rank is done with the run that was so many before this.
    fn is_done(&self, (runs, _): &(u32, Option<Buffer>), before: u32) -> bool {
        self.run.wrapping_sub(*runs) as i32 <= before as i32
    }

    /// What each rank said last, in their order.
    pub(crate) fn last(&self) -> impl Iterator<Item = &[u8]> {
        let mine = (0..).map(|rank: Rank| (rank == self.rank).then_some(&self.mine[..]));
        let all = self.of.iter().zip(mine);
        all.filter_map(|((_, other), mine)| mine.or(other.as_deref()))
    }
}
