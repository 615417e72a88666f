//! How records cross an edge of the graph: batches filled in the loans that travel.
//!
//! The sender keeps a batch in the making for each *lane*, that is, for each rank, or for all ranks
//! that are to get the same. A lane has a window: when that is used up, or the arena is, no loan is to
//! be had, and the batch in the making goes on in memory of our own, so that the record that is being
//! pushed gets in. From then on the output is full, and its stage takes no more input until loans have
//! come back. So memory is bounded by the windows and the yield of one record.
//!
//! Half of an arena is divided among the channels of a job, and no channel has more than its share on its
//! way, be it one large record. Otherwise a stage could wait for room that is taken up by records that
//! wait for that stage.

use std::{collections::VecDeque, fmt, rc::Rc};

use transport::{Buffer, Rank, Reservation, Window};

use crate::{
    Encode, Error, Key, Record, Unfit,
    batch::{Batch, Builder, Memory, Shape},
    graph::EdgeId,
    run::tag,
    stage::{Input, Output, Place, Progress, Push, Sink},
};

/// Bytes of a batch, unless windows are smaller.
const BATCH_BYTES: usize = 64 << 10;
const BATCH_BYTES_MIN: usize = 1 << 10;

/// The sending end of an edge.
pub(crate) struct Outbox<T> {
    place: Place,
    edge: EdgeId,
    batch_bytes: usize,
    lanes: Vec<Lane<T>>,
    /// Lanes whose batch in the making is in memory of our own.
    without_loan: usize,
    overdraft: Reservation,
    error: Option<Error>,
    ended: bool,
}

struct Lane<T> {
    to: Rc<[Rank]>,
    window: Rc<Window>,
    builder: Builder<T>,
    shape: Shape,
    /// Finished batches in memory of our own, which go before the one in the making.
    waiting: VecDeque<Memory>,
}

impl<T: Record> Outbox<T> {
    /// An outbox with a lane to each rank.
    pub(crate) fn to_each(place: &Place, edge: EdgeId) -> Result<Self, Error> {
        Self::new(place, edge, (0..place.size).map(|rank| Rc::from([rank])))
    }

    /// An outbox with one lane, to all of `ranks`.
    pub(crate) fn to_all(place: &Place, edge: EdgeId, ranks: Rc<[Rank]>) -> Result<Self, Error> {
        Self::new(place, edge, [ranks])
    }

    fn new(
        place: &Place,
        edge: EdgeId,
        lanes: impl IntoIterator<Item = Rc<[Rank]>>,
    ) -> Result<Self, Error> {
        let batch_bytes = (place.window_bytes / 2).clamp(BATCH_BYTES_MIN, BATCH_BYTES);
        let lane = |to| Lane {
            to,
            window: Window::new(place.window_bytes),
            builder: Builder::new(Memory::own(0), Shape::UNKNOWN),
            shape: Shape::UNKNOWN,
            waiting: VecDeque::new(),
        };
        let lanes: Vec<_> = lanes.into_iter().map(lane).collect();
        Ok(Self {
            edge,
            batch_bytes,
            without_loan: 0,
            lanes,
            overdraft: place.ledger.reserve("records that found no loan", 0)?,
            place: place.clone(),
            error: None,
            ended: false,
        })
    }

    /// The lane that keys of this hash belong to.
    #[inline]
    pub(crate) fn lane_of(&self, hash: u64) -> usize {
        // Bits 16 to 48, because tables use those below and above.
        let bits = (hash >> 16) & 0xffff_ffff;
        ((bits * self.lanes.len() as u64) >> 32) as usize
    }

    /// Writes a record into the batch of a lane.
    #[inline]
    pub(crate) fn push_to<E: Encode<Record = T>>(&mut self, lane: usize, value: &E) {
        if self.lanes[lane].builder.push(value).is_err() {
            self.push_slowly(lane, value);
        }
    }

    /// The same, when the batch in the making has no room.
    #[cold]
    fn push_slowly<E: Encode<Record = T>>(&mut self, lane: usize, value: &E) {
        let mut bytes = self.batch_bytes;
        let largest = self.place.batch_bytes_max;
        loop {
            if let Err(error) = self.turn_over(lane, bytes) {
                self.error.get_or_insert(error);
                return;
            }
            match self.lanes[lane].builder.push(value) {
                Ok(()) => return,
                Err(Unfit::Full) if bytes < largest => {
                    bytes = (2 * bytes).min(largest);
                    self.lanes[lane].shape = Shape::LARGE;
                }
                Err(_) => {
                    let record = std::any::type_name::<T>();
                    self.error.get_or_insert(Error::RecordTooLarge {
                        record,
                        limit: bytes,
                    });
                    return;
                }
            }
        }
    }

    /// Sends the batch in the making, and starts another with room for `bytes`.
    fn turn_over(&mut self, lane: usize, bytes: usize) -> Result<(), Error> {
        let full = self.finish_batch(lane)?;
        let lane = &mut self.lanes[lane];
        debug_assert!(full || lane.builder.is_empty());
        let loan = if lane.waiting.is_empty() {
            let fabric = self.place.fabric.borrow();
            fabric.arena().loan_within(&lane.window, bytes)?
        } else {
            None
        };
        let memory = match loan {
            Some(loan) => Memory::Loan(loan),
            None => {
                self.overdraft.grow(bytes as u64)?;
                self.without_loan += 1;
                Memory::own(bytes)
            }
        };
        lane.builder = Builder::new(memory, lane.shape);
        Ok(())
    }

    /// Takes the batch in the making, and sends it or has it wait; false if it was empty.
    fn finish_batch(&mut self, lane: usize) -> Result<bool, Error> {
        let lane = &mut self.lanes[lane];
        let nothing = Builder::new(Memory::own(0), lane.shape);
        let builder = std::mem::replace(&mut lane.builder, nothing);
        let own = builder.is_own() && builder.capacity() > 0;
        if own {
            self.without_loan -= 1;
        }
        if builder.is_empty() {
            if own {
                let left = self.overdraft.bytes() - builder.capacity() as u64;
                self.overdraft.shrink_to(left);
            }
            return Ok(false);
        }
        lane.shape = builder.shape();
        let memory = builder.seal();
        if own || !lane.waiting.is_empty() {
            lane.waiting.push_back(memory);
            return Ok(true);
        }
        send(&self.place, self.edge, &lane.to, memory)?;
        Ok(true)
    }

    /// Finds loans for what is in memory of our own; true if something moved.
    fn find_loans(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        for lane in &mut self.lanes {
            while let Some(Memory::Own(bytes)) = lane.waiting.front() {
                let fabric = self.place.fabric.borrow();
                let Some(mut loan) = fabric.arena().loan_within(&lane.window, bytes.len())? else {
                    break;
                };
                drop(fabric);
                loan.copy_from_slice(bytes);
                lane.waiting.pop_front();
                send(&self.place, self.edge, &lane.to, Memory::Loan(loan))?;
                moved = true;
            }
            if lane.waiting.is_empty() && lane.builder.is_own() && lane.builder.capacity() > 0 {
                let fabric = self.place.fabric.borrow();
                let loan = fabric
                    .arena()
                    .loan_within(&lane.window, lane.builder.capacity())?;
                if let Some(loan) = loan {
                    lane.builder.move_to(loan);
                    self.without_loan -= 1;
                    moved = true;
                }
            }
        }
        if self.without_loan == 0 && self.lanes.iter().all(|lane| lane.waiting.is_empty()) {
            self.overdraft.shrink_to(0);
        }
        Ok(moved)
    }

    /// Tells the receivers that this was all.
    fn end(&mut self) -> Result<(), Error> {
        let mut fabric = self.place.fabric.borrow_mut();
        for lane in &self.lanes {
            for &to in &*lane.to {
                fabric.send_copy(to, tag::end(self.place.run, self.edge), &[])?;
            }
        }
        Ok(())
    }
}

/// Sends a finished batch to all of `to`.
fn send(place: &Place, edge: EdgeId, to: &[Rank], memory: Memory) -> Result<(), Error> {
    let Memory::Loan(mut loan) = memory else {
        unreachable!("what is sent is in a loan")
    };
    loan.set_tag(tag::batch(place.run, edge));
    let batch = loan.freeze();
    let mut fabric = place.fabric.borrow_mut();
    let Some((last, others)) = to.split_last() else {
        return Ok(());
    };
    for &rank in others {
        fabric.send(rank, batch.clone())?;
    }
    Ok(fabric.send(*last, batch)?)
}

impl<T: Record> Outbox<T> {
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.without_loan > 0 || self.error.is_some()
    }

    pub(crate) fn poll(&mut self) -> Result<bool, Error> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if self.without_loan == 0 {
            return Ok(false);
        }
        self.find_loans()
    }

    pub(crate) fn finish(&mut self) -> Result<bool, Error> {
        self.poll()?;
        for lane in 0..self.lanes.len() {
            self.finish_batch(lane)?;
        }
        self.find_loans()?;
        if !self.lanes.iter().all(|lane| lane.waiting.is_empty()) {
            return Ok(false);
        }
        if !std::mem::replace(&mut self.ended, true) {
            self.end()?;
        }
        Ok(true)
    }
}

impl<T> fmt::Debug for Outbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox")
            .field("edge", &self.edge)
            .finish_non_exhaustive()
    }
}

/// Sends each pair to the rank that its key belongs to.
pub(crate) struct ByKey<K, V>(pub(crate) Outbox<(K, V)>);

impl<K: Key, V: Record> Push<(K, V)> for ByKey<K, V> {
    #[inline]
    fn push(&mut self, (key, value): (K::View<'_>, V::View<'_>)) {
        let lane = self.0.lane_of(K::hash(key));
        self.0.push_to(lane, &(K::shorten(key), V::shorten(value)));
    }
}

impl<K: Key, V: Record> Sink<(K, V)> for ByKey<K, V> {
    #[inline]
    fn is_full(&self) -> bool {
        self.0.is_full()
    }
}

impl<K: Key, V: Record> Output<(K, V)> for ByKey<K, V> {
    fn poll(&mut self) -> Result<bool, Error> {
        self.0.poll()
    }

    fn finish(&mut self) -> Result<bool, Error> {
        self.0.finish()
    }
}

/// Sends every record down the one lane there is.
pub(crate) struct ToAll<T>(pub(crate) Outbox<T>);

impl<T: Record> Push<T> for ToAll<T> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        self.0.push_to(0, &view);
    }
}

impl<T: Record> Sink<T> for ToAll<T> {
    #[inline]
    fn is_full(&self) -> bool {
        self.0.is_full()
    }
}

impl<T: Record> Output<T> for ToAll<T> {
    fn poll(&mut self) -> Result<bool, Error> {
        self.0.poll()
    }

    fn finish(&mut self) -> Result<bool, Error> {
        self.0.finish()
    }
}

/// The receiving end of an edge.
#[derive(Debug)]
pub struct Receiver<T> {
    place: Place,
    arrived: VecDeque<Batch<T>>,
    /// Records of the first batch that were pushed already.
    pushed: usize,
    /// Senders that have not ended.
    open: u32,
}

impl<T: Record> Receiver<T> {
    pub(crate) fn new(place: &Place) -> Self {
        Self {
            place: place.clone(),
            arrived: VecDeque::new(),
            pushed: 0,
            open: place.size,
        }
    }
}

/// Opens a batch: what another process made is checked.
pub(crate) fn open<T: Record>(place: &Place, from: Rank, batch: Buffer) -> Result<Batch<T>, Error> {
    if place.is_here(from) {
        Ok(Batch::trusted(batch))
    } else {
        Batch::checked(from, batch)
    }
}

impl<T: Record> Input for Receiver<T> {
    type Out = T;

    fn receive(&mut self, from: Rank, batch: Buffer) -> Result<(), Error> {
        let batch = open(&self.place, from, batch)?;
        self.place.counters.received(batch.len() as u64);
        self.arrived.push_back(batch);
        Ok(())
    }

    fn ended(&mut self, _from: Rank) {
        self.open = self.open.saturating_sub(1);
    }

    fn poll<D: Sink<T>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        let Some(batch) = self.arrived.front() else {
            return Ok(if self.open == 0 {
                Progress::Done
            } else {
                Progress::None
            });
        };
        for view in batch.views(self.pushed) {
            if down.is_full() {
                return Ok(Progress::Made);
            }
            down.push(view);
            self.pushed += 1;
        }
        self.arrived.pop_front();
        self.pushed = 0;
        Ok(Progress::Made)
    }
}
