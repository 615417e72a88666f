//! How records cross an edge of the graph: batches filled in the loans that travel.
//!
//! The sender keeps a batch in the making for each *lane*, that is, for each instance that reads the edge, or
//! for all of them if they are to get the same. A [`Route`] says which lane a record takes. A lane has a window: when that is used up, or the arena is, no loan is to
//! be had, and the batch in the making goes on in memory of our own, so that the record that is being
//! pushed gets in. From then on the output is full, and its stage takes no more input until loans have
//! come back. So memory is bounded by the windows and the yield of one record.
//!
//! Half of an arena is divided among the channels of a job, and no channel has more than its share on its
//! way, be it one large record. Otherwise a stage could wait for room that is taken up by records that
//! wait for that stage.

mod route;

use std::{collections::VecDeque, fmt, rc::Rc};

use transport::{Buffer, Rank, Reservation, Window};

pub(crate) use self::route::{ByFunction, ByHash, ByKey, Direct, Rebalance, RoundRobin, ToFirst};
use crate::{
    Encode, Error, Record, Unfit,
    batch::{Batch, Builder, Memory, Shape},
    run::tag,
    stage::{EVERY_SLOT, Input, Output, Place, Progress, Push, Sink, Slot},
    time::{EventTime, Watermark},
};

/// Bytes of a batch, unless windows are smaller.
const BATCH_BYTES: usize = 64 << 10;
const BATCH_BYTES_MIN: usize = 1 << 10;

/// Bytes of a batch on a channel that has such a window.
pub(crate) fn batch_bytes(window_bytes: usize) -> usize {
    (window_bytes / 2).clamp(BATCH_BYTES_MIN, BATCH_BYTES)
}

/// The sending end of an edge.
pub(crate) struct Outbox<T> {
    place: Place,
    batch_bytes: usize,
    lanes: Vec<Lane<T>>,
    /// Lanes whose batch in the making is in memory of our own.
    without_loan: usize,
    /// Lanes whose readers want more.
    open: usize,
    overdraft: Reservation,
    error: Option<Error>,
    ended: bool,
}

struct Lane<T> {
    /// Where its readers are.
    to: Rc<[(Rank, Slot)]>,
    /// How many they are, and how many of them want more.
    readers: u32,
    open: u32,
    window: Rc<Window>,
    /// Bytes of its next batch: fewer if batches are sent before they are full, so that more of them find room.
    batch_bytes: usize,
    builder: Builder<T>,
    shape: Shape,
    /// Finished batches in memory of our own, which go before the one in the making.
    waiting: VecDeque<Memory>,
    /// How far its readers were told that event time is.
    told: Watermark,
    /// Whether its readers were told that this was all.
    ended: bool,
}

impl<T: Record> Lane<T> {
    /// Whether everything on it is in loans.
    fn has_loans(&self) -> bool {
        self.waiting.is_empty() && !(self.builder.is_own() && self.builder.capacity() > 0)
    }
}

impl<T: Record> Outbox<T> {
    /// An outbox with a lane to each instance that reads the edge.
    pub(crate) fn to_each(place: &Place) -> Result<Self, Error> {
        let readers = place.wiring.readers.iter();
        Self::new(place, readers.map(|&reader| (Rc::from([reader]), 1)))
    }

    /// An outbox with one lane, to all of them. A batch goes to each rank once.
    pub(crate) fn to_all(place: &Place) -> Result<Self, Error> {
        let readers = &place.wiring.readers;
        let firsts = readers.iter().filter(|(_, slot)| *slot == 0);
        let to = firsts.map(|&(rank, _)| (rank, EVERY_SLOT)).collect();
        Self::new(place, [(to, readers.len() as u32)])
    }

    /// For each instance that reads the edge an outbox of its own, so that one can be full while others are not.
    pub(crate) fn apart(place: &Place) -> Result<Vec<Self>, Error> {
        let readers = place.wiring.readers.iter();
        readers
            .map(|&reader| Self::new(place, [(Rc::from([reader]), 1)]))
            .collect()
    }

    /// An outbox with lanes to the places given, each with the number of instances there.
    fn new(
        place: &Place,
        lanes: impl IntoIterator<Item = (Rc<[(Rank, Slot)]>, u32)>,
    ) -> Result<Self, Error> {
        let batch_bytes = batch_bytes(place.window_bytes);
        let lane = |(to, readers)| Lane {
            to,
            readers: readers * place.wiring.reading,
            open: readers * place.wiring.reading,
            window: Window::new(place.window_bytes),
            batch_bytes,
            builder: Builder::new(Memory::own(0), Shape::UNKNOWN),
            shape: Shape::UNKNOWN,
            waiting: VecDeque::new(),
            told: Watermark::UNKNOWN,
            ended: false,
        };
        let lanes: Vec<_> = lanes.into_iter().map(lane).collect();
        Ok(Self {
            batch_bytes,
            without_loan: 0,
            open: lanes.len(),
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
        if self.lanes[lane].open == 0 {
            return; // Nobody wants it.
        }
        if !self.lanes[lane].builder.is_empty() {
            let more = 2 * self.lanes[lane].batch_bytes;
            self.lanes[lane].batch_bytes = more.min(self.batch_bytes);
        }
        let mut bytes = self.lanes[lane].batch_bytes;
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
                self.place.counters.waited();
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
        let records = builder.len() as u64;
        let memory = builder.seal();
        self.place.counters.sent(records, memory.len() as u64);
        if own || !lane.waiting.is_empty() {
            lane.waiting.push_back(memory);
            return Ok(true);
        }
        send(&self.place, &lane.to, memory, tag::BATCH)?;
        Ok(true)
    }

    /// Sends the batch in the making with the word that it is the last, if it can go now. A small one needs no loan then: there
    /// is one to a lane and run. So its memory is kept for another run.
    fn end_with_batch(&mut self, lane: usize) -> Result<(), Error> {
        let lane = &mut self.lanes[lane];
        if self.place.is_live || lane.builder.is_empty() || !lane.has_loans() {
            return Ok(());
        }
        lane.ended = true;
        lane.shape = lane.builder.shape();
        let records = lane.builder.len() as u64;
        if let Some(batch) = lane.builder.small(Buffer::INLINE_BYTES) {
            self.place.counters.sent(records, batch.len() as u64);
            let mut fabric = self.place.fabric.borrow_mut();
            for &(rank, slot) in &*lane.to {
                let last = tag::new(self.place.run, slot, tag::LAST, self.place.wiring.edge);
                fabric.send_copy(rank, last, batch)?;
            }
            lane.builder.clear(lane.shape);
            return Ok(());
        }
        let nothing = Builder::new(Memory::own(0), lane.shape);
        let batch = std::mem::replace(&mut lane.builder, nothing).seal();
        self.place.counters.sent(records, batch.len() as u64);
        send(&self.place, &lane.to, batch, tag::LAST)
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
                send(&self.place, &lane.to, Memory::Loan(loan), tag::BATCH)?;
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
        self.settle();
        Ok(moved)
    }

    /// Strikes out memory of our own when there is none any more.
    fn settle(&mut self) {
        if self.without_loan == 0 && self.lanes.iter().all(|lane| lane.waiting.is_empty()) {
            self.overdraft.shrink_to(0);
        }
    }

    /// Sends what is in loans, however little it is, and behind it how far event time is; true if there was something
    /// to send. Where records still wait for a loan, event time waits with them: it may always be told later.
    pub(crate) fn flush(&mut self, watermark: Watermark) -> Result<bool, Error> {
        let mut sent = false;
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].open == 0 || !self.lanes[lane].has_loans() {
                continue;
            }
            if self.lanes[lane].builder.is_light() {
                let less = self.lanes[lane].batch_bytes / 2;
                self.lanes[lane].batch_bytes = less.max(BATCH_BYTES_MIN);
            }
            sent |= self.finish_batch(lane)?;
            sent |= self.tell_time(lane, watermark)?;
        }
        Ok(sent)
    }

    /// Tells the readers of a lane how far event time is, if they do not know; true if they did not.
    fn tell_time(&mut self, lane: usize, watermark: Watermark) -> Result<bool, Error> {
        let lane = &mut self.lanes[lane];
        let is_news = watermark.is_news(lane.told);
        if is_news {
            lane.told = watermark;
            let place = &self.place;
            let mut fabric = place.fabric.borrow_mut();
            let message = tag::time_of(place.instance, watermark);
            for &(rank, slot) in &*lane.to {
                let tag = tag::new(place.run, slot, tag::WATERMARK, place.wiring.edge);
                fabric.send_copy(rank, tag, &message)?;
            }
        }
        Ok(is_news)
    }

    /// Tells the receivers that this was all.
    fn end(&mut self) -> Result<(), Error> {
        let told = if self.place.is_live {
            self.lanes.len()
        } else {
            0
        };
        for lane in 0..told {
            self.tell_time(lane, Watermark::END)?;
        }
        let mut fabric = self.place.fabric.borrow_mut();
        for lane in self.lanes.iter_mut().filter(|lane| !lane.ended) {
            lane.ended = true;
            for &(rank, slot) in &*lane.to {
                let end = tag::new(self.place.run, slot, tag::END, self.place.wiring.edge);
                fabric.send_copy(rank, end, &[])?;
            }
        }
        Ok(())
    }
}

/// Sends a finished batch, of this kind, to all of `to`.
fn send(place: &Place, to: &[(Rank, Slot)], memory: Memory, kind: u8) -> Result<(), Error> {
    let Memory::Loan(mut loan) = memory else {
        unreachable!("what is sent is in a loan")
    };
    let Some((&(last, slot), others)) = to.split_last() else {
        return Ok(());
    };
    loan.set_tag(tag::new(place.run, slot, kind, place.wiring.edge));
    let batch = loan.freeze();
    let mut fabric = place.fabric.borrow_mut();
    for &(rank, _) in others {
        fabric.send(rank, batch.clone())?;
    }
    Ok(fabric.send(last, batch)?)
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

    /// Has the next poll say what went wrong.
    #[cold]
    pub(crate) fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    /// Takes note that an instance that reads the edge wants no more. When nobody on a lane does, the lane is
    /// closed: what is on it or pushed to it is dropped.
    pub(crate) fn stopped(&mut self, reader: u32) {
        let index = if self.lanes.len() == 1 { 0 } else { reader };
        let Some(lane) = self.lanes.get_mut(index as usize) else {
            return;
        };
        lane.open = lane.open.saturating_sub(1);
        if lane.open > 0 {
            return;
        }
        if lane.builder.is_own() && lane.builder.capacity() > 0 {
            self.without_loan -= 1;
        }
        lane.builder = Builder::new(Memory::own(0), lane.shape);
        lane.waiting.clear();
        self.settle();
        self.open = self.lanes.iter().filter(|lane| lane.open > 0).count();
    }

    /// Whether nobody wants more.
    pub(crate) fn is_closed(&self) -> bool {
        self.open == 0
    }

    /// Begins anew in another run, once all is out. Windows stay, with what nobody has read yet.
    pub(crate) fn again(&mut self, run: u32) -> bool {
        for lane in &mut self.lanes {
            lane.open = lane.readers;
            lane.ended = false;
        }
        self.open = self.lanes.len();
        self.place.run = run;
        self.ended = false;
        true
    }

    pub(crate) fn finish(&mut self) -> Result<bool, Error> {
        self.poll()?;
        for lane in 0..self.lanes.len() {
            self.end_with_batch(lane)?;
            if !self.lanes[lane].ended {
                self.finish_batch(lane)?;
            }
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
            .field("edge", &self.place.wiring.edge)
            .finish_non_exhaustive()
    }
}

/// Says which lane of an edge a record takes.
pub(crate) trait Route<T: Record> {
    /// The number of the lane, which is less than that of all.
    fn lane(&mut self, view: T::View<'_>, outbox: &Outbox<T>) -> usize;

    /// Whether nobody wants what takes a lane.
    fn is_closed(&self, outbox: &Outbox<T>) -> bool {
        outbox.is_closed()
    }

    /// Whether it is as it was in the beginning.
    fn again(&mut self) -> bool {
        true
    }
}

/// Sends each record down the lane that its route says.
pub(crate) struct Routed<T, R> {
    outbox: Outbox<T>,
    route: R,
}

impl<T: Record, R: Route<T>> Routed<T, R> {
    pub(crate) fn new(outbox: Outbox<T>, route: R) -> Self {
        Self { outbox, route }
    }
}

impl<T: Record, R: Route<T>> Push<T> for Routed<T, R> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        let lane = self.route.lane(view, &self.outbox);
        self.outbox.push_to(lane, &view);
    }
}

impl<T: Record, R: Route<T>> Sink<T> for Routed<T, R> {
    #[inline]
    fn is_full(&self) -> bool {
        self.outbox.is_full()
    }
}

impl<T: Record, R: Route<T>> Output<T> for Routed<T, R> {
    fn poll(&mut self) -> Result<bool, Error> {
        self.outbox.poll()
    }

    fn flush(&mut self, watermark: Watermark) -> Result<bool, Error> {
        self.outbox.flush(watermark)
    }

    fn finish(&mut self) -> Result<bool, Error> {
        self.outbox.finish()
    }

    fn stopped(&mut self, reader: u32) {
        self.outbox.stopped(reader);
    }

    fn is_closed(&self) -> bool {
        self.route.is_closed(&self.outbox)
    }

    fn again(&mut self, run: u32) -> bool {
        self.route.again() && self.outbox.again(run)
    }
}

/// The receiving end of an edge.
#[derive(Debug)]
pub struct Receiver<T> {
    place: Place,
    /// Batches, and who sent them.
    arrived: VecDeque<(Rank, Batch<T>)>,
    /// Records of the first batch that were pushed already.
    pushed: usize,
    /// Who sent the record that was pushed last, and which of a batch of how many it was.
    last: Option<(Rank, usize, usize)>,
    /// Senders, and those that have not ended.
    senders: u32,
    open: u32,
    /// How far event time is.
    times: Times,
}

/// How far event time is on the channels of a port.
#[derive(Debug, Default)]
struct Times {
    /// Batches that have come, and that were taken.
    came: u64,
    taken: u64,
    /// What senders have said, and how many batches had come before it.
    said: VecDeque<(u64, u32, Watermark)>,
    /// How far each sender is, by its number, in what was taken. Nobody is there before one has said something.
    channels: Vec<Watermark>,
    /// How far all are.
    least: EventTime,
    is_idle: bool,
}

impl Times {
    fn new(senders: u32) -> Self {
        Self {
            channels: vec![Watermark::UNKNOWN; senders as usize],
            least: EventTime::MIN,
            ..Self::default()
        }
    }

    /// Takes note of what a sender says. Of what it says without a batch in between, the last counts: so not more is
    /// kept than of batches.
    fn say(&mut self, sender: u32, watermark: Watermark) {
        let came = self.came;
        let since = self.said.iter_mut().rev();
        let since = since.take_while(|(after, ..)| *after == came);
        for (_, other, said) in since {
            if *other == sender {
                *said = watermark;
                return;
            }
        }
        self.said.push_back((came, sender, watermark));
    }

    /// How far event time is in what follows.
    fn watermark(&mut self) -> Watermark {
        let mut is_news = false;
        while let Some(&(after, sender, watermark)) = self.said.front() {
            if after > self.taken {
                break;
            }
            self.said.pop_front();
            if let Some(channel) = self.channels.get_mut(sender as usize) {
                *channel = watermark;
                is_news = true;
            }
        }
        if is_news {
            let least = Watermark::least(self.channels.iter().copied());
            self.is_idle = least == Watermark::Idle;
            if let Watermark::At(time) = least {
                // A channel that was idle may be behind the others; they do not go back.
                self.least = self.least.max(time);
            }
        }
        self.known()
    }

    fn known(&self) -> Watermark {
        if self.is_idle {
            Watermark::Idle
        } else {
            Watermark::At(self.least)
        }
    }
}

impl<T: Record> Receiver<T> {
    /// The receiving end of the edge that is input `port` of the task.
    pub(crate) fn new(place: &Place, port: usize) -> Self {
        let senders = place.wiring.senders.get(port).copied().unwrap_or(0);
        Self {
            place: place.clone(),
            arrived: VecDeque::new(),
            pushed: 0,
            last: None,
            senders,
            open: senders,
            times: Times::new(if place.is_live { senders } else { 0 }),
        }
    }

    /// Takes the next batch as a whole, for who does not push its records one by one.
    pub(crate) fn next_batch(&mut self) -> Option<(Rank, Batch<T>)> {
        let next = self.arrived.pop_front();
        self.times.taken += u64::from(next.is_some());
        next
    }

    /// How far event time is behind what was taken; while somebody `is_busy` with the batch taken last, what it was before.
    pub(crate) fn watermark_behind(&mut self, is_busy: bool) -> Watermark {
        if is_busy {
            self.times.known()
        } else {
            self.times.watermark()
        }
    }

    /// Whether nothing is left and nothing is to come.
    pub(crate) fn is_done(&self) -> bool {
        self.open == 0 && self.arrived.is_empty()
    }
}

/// Opens a batch: what another process made is checked.
pub(crate) fn open<T: Record>(place: &Place, from: Rank, batch: Buffer) -> Result<Batch<T>, Error> {
    let batch = match place.is_here(from) {
        true => Batch::trusted(batch),
        false => Batch::checked(from, batch)?,
    };
    let (records, bytes) = (batch.len() as u64, batch.bytes() as u64);
    place.counters.received(records, bytes);
    Ok(batch)
}

impl<T: Record> Input for Receiver<T> {
    type Out = T;

    fn receive(&mut self, _port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        let batch = open(&self.place, from, batch)?;
        self.arrived.push_back((from, batch));
        self.times.came += 1;
        Ok(())
    }

    fn advance(&mut self, _port: usize, sender: u32, watermark: Watermark) {
        self.times.say(sender, watermark);
    }

    fn watermark(&mut self) -> Watermark {
        self.times.watermark()
    }

    fn ended(&mut self, _port: usize, _from: Rank) {
        self.open = self.open.saturating_sub(1);
    }

    fn poll<D: Sink<T>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        let Some((from, batch)) = self.arrived.front() else {
            return Ok(if self.open == 0 {
                Progress::Done
            } else {
                Progress::None
            });
        };
        let (from, len) = (*from, batch.len());
        for view in batch.views(self.pushed) {
            if down.is_full() {
                break;
            }
            down.push(view);
            self.pushed += 1;
        }
        self.last = Some((from, self.pushed, len));
        if self.pushed == len {
            self.next_batch();
            self.pushed = 0;
            if self.is_done() {
                return Ok(Progress::Done);
            }
        }
        Ok(Progress::Made)
    }

    fn again(&mut self) -> bool {
        self.arrived.clear();
        (self.pushed, self.last, self.open) = (0, None, self.senders);
        true
    }

    fn last(&self) -> String {
        match self.last {
            Some((from, number, len)) => {
                format!("record {number} in a batch of {len} from rank {from}")
            }
            None => "no record".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Watermark::{At, Idle};

    #[test]
    fn time_passes_in_order_with_the_batches() {
        let mut times = Times::new(2);
        times.say(0, At(5));
        times.came += 1;
        times.say(1, At(3));
        assert_eq!(
            times.watermark(),
            Watermark::UNKNOWN,
            "what sender 1 says is behind a batch"
        );
        times.taken += 1;
        assert_eq!(times.watermark(), At(3));
        times.say(1, At(9));
        assert_eq!(times.watermark(), At(5));
    }

    #[test]
    fn an_idle_channel_that_goes_on_sets_nobody_back() {
        let mut times = Times::new(2);
        times.say(0, At(5));
        assert_eq!(times.watermark(), Watermark::UNKNOWN);
        times.say(1, Idle);
        assert_eq!(times.watermark(), At(5));
        times.say(0, Idle);
        assert_eq!(times.watermark(), Idle);
        times.say(1, At(2));
        assert_eq!(times.watermark(), At(5));
        times.say(1, Watermark::END);
        assert_eq!(times.watermark(), Watermark::END, "the other is idle still");
    }

    #[test]
    fn no_more_is_kept_of_what_senders_say_than_of_batches() {
        let mut times = Times::new(3);
        times.came += 1;
        for time in 0..1_000 {
            (0..3).for_each(|sender| times.say(sender, At(time)));
        }
        assert_eq!(times.said.len(), 3);
        times.taken += 1;
        assert_eq!(times.watermark(), At(999));
    }
}
