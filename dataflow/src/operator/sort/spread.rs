//! The task in the middle: sends each rank its part, in order.

use std::rc::Rc;

use transport::{Buffer, Rank, Reservation};

use super::{
    OrderBy, Shared,
    sample::{Sample, bytes_of_all, split},
    store::{HOLDER, Sizes, Sources, Step, Store},
};
use crate::{
    Error, Ordered, Record,
    exchange::{Outbox, open},
    graph::EdgeId,
    stage::{Place, Progress, Task},
};

/// Records sent to one instance in one turn.
const SENT_A_TURN: usize = 4096;

/// Learns from the samples of all ranks what goes where, and sends what [`Collect`](super::Collect) has taken in.
pub(crate) struct Spread<T: Record, O: OrderBy<T>> {
    place: Place,
    /// Until all is sent.
    shared: Option<Rc<Shared<T, O>>>,
    samples: Vec<Sample<O::Key>>,
    samples_reservation: Reservation,
    /// Instances that have not told all of their sample.
    open: u32,
    doing: Doing<T, O>,
    /// One for each instance that reads.
    outboxes: Vec<Outbox<T>>,
}

/// What it does with what was taken in.
enum Doing<T: Record, O> {
    /// It finds out.
    Preparing,
    Spilling,
    Merging(Sources<T, O>),
    /// It sends to each instance its part; none where all is sent.
    Sending(Vec<Option<Sources<T, O>>>),
}

impl<T: Record, O: OrderBy<T>> Spread<T, O> {
    pub(crate) fn new(place: &Place, shared: Rc<Shared<T, O>>) -> Result<Self, Error> {
        let for_samples = bytes_of_all(place, Sizes::of(place).share);
        Ok(Self {
            shared: Some(shared),
            samples: Vec::new(),
            samples_reservation: place.ledger.reserve(HOLDER, for_samples)?,
            open: place.wiring.senders.first().copied().unwrap_or(0),
            doing: Doing::Preparing,
            outboxes: Outbox::apart(place)?,
            place: place.clone(),
        })
    }

    /// Divides what was taken in by the samples of all.
    fn start_sending(&mut self, store: &Store<T, O>) -> Result<(), Error> {
        let samples = std::mem::take(&mut self.samples);
        let parts = self.outboxes.len();
        let splitters = split(samples, parts as u32);
        let parts = store.parts(&splitters, parts)?;
        self.doing = Doing::Sending(parts.into_iter().map(Some).collect());
        drop(splitters);
        self.samples_reservation.shrink_to(0);
        Ok(())
    }

    /// Sends to each instance as much as there is room for.
    fn send(&mut self, store: &Store<T, O>) -> Result<Progress, Error> {
        let Doing::Sending(parts) = &mut self.doing else {
            return Ok(Progress::None);
        };
        let (mut moved, mut done) = (false, true);
        for (part, outbox) in parts.iter_mut().zip(&mut self.outboxes) {
            moved |= outbox.poll()?;
            if outbox.is_closed() {
                *part = None;
            }
            if let Some(sources) = part {
                for _ in 0..SENT_A_TURN {
                    if outbox.is_full() {
                        break;
                    }
                    moved = true;
                    let Some((_, view)) = sources.first(store.held()) else {
                        *part = None;
                        break;
                    };
                    outbox.push_to(0, &view);
                    sources.advance(store.held())?;
                }
            }
            // An instance waits for the rest of its part, however far the others' are.
            done &= part.is_none() && outbox.finish()?;
        }
        Ok(if done {
            Progress::Done
        } else if moved {
            Progress::Made
        } else {
            Progress::None
        })
    }

    /// Takes the next step towards sending, or sends.
    fn go_on(&mut self, shared: &Shared<T, O>) -> Result<Progress, Error> {
        if let Doing::Sending(_) = self.doing {
            return self.send(&shared.store.borrow());
        }
        let mut store = shared.store.borrow_mut();
        match &mut self.doing {
            Doing::Preparing => match store.prepare(self.outboxes.len())? {
                Step::Spill => self.doing = Doing::Spilling,
                Step::Merge(sources) => self.doing = Doing::Merging(sources),
                Step::Read => self.start_sending(&store)?,
            },
            Doing::Spilling => {
                store.spill_on()?;
                if !store.is_spilling() {
                    self.doing = Doing::Preparing;
                }
            }
            Doing::Merging(sources) => {
                if store.merge_on(sources)? {
                    self.doing = Doing::Preparing;
                }
            }
            Doing::Sending(_) => {}
        }
        Ok(Progress::Made)
    }
}

impl<T: Record, O: OrderBy<T>> Task for Spread<T, O> {
    fn receive(&mut self, _port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        let batch = open::<(u64, O::Key)>(&self.place, from, batch)?;
        let sample = |(records, key)| Sample {
            key: O::Key::own(key),
            prefix: O::Key::prefix(key),
            rank: from,
            records,
        };
        self.samples.extend(batch.views(0).map(sample));
        Ok(())
    }

    fn ended(&mut self, _port: usize, _from: Rank) {
        self.open = self.open.saturating_sub(1);
    }

    fn stopped(&mut self, _edge: EdgeId, reader: u32) {
        if let Some(outbox) = self.outboxes.get_mut(reader as usize) {
            outbox.stopped(0);
        }
    }

    fn is_reading(&self) -> bool {
        !self.outboxes.iter().all(Outbox::is_closed)
    }

    fn poll(&mut self) -> Result<Progress, Error> {
        if self.is_reading() && self.open > 0 {
            return Ok(Progress::None);
        }
        let Some(shared) = self.shared.clone().filter(|_| self.is_reading()) else {
            return self.end();
        };
        match self.go_on(&shared)? {
            Progress::Done => self.end(),
            progress => Ok(progress),
        }
    }

    fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

impl<T: Record, O: OrderBy<T>> Spread<T, O> {
    /// All is sent, or nobody wants more: gives up what was taken in, and says that this was all.
    fn end(&mut self) -> Result<Progress, Error> {
        self.shared = None;
        self.doing = Doing::Preparing;
        let mut done = true;
        for outbox in &mut self.outboxes {
            done &= outbox.finish()?;
        }
        Ok(if done { Progress::Done } else { Progress::None })
    }
}
