//! How a task is put together: an input, narrow operators, an output.
//!
//! Between two exchanges everything is one type: the input pushes each record through the narrow
//! operators into the output without a virtual call. The whole is boxed once, as a [`Task`], and called
//! once a batch.

use std::{
    any::Any,
    cell::RefCell,
    collections::HashMap,
    fmt,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use transport::{Buffer, Fabric, Ledger, Rank, Waker};

use crate::{
    Error, Record,
    blame::Culprit,
    exchange::batch_bytes,
    graph::{EdgeId, Node},
    operator::blocking::Helpers,
    run::Alignment,
    spill,
    time::{Clock, Watermark},
};

/// Takes records, by their views.
pub trait Push<T: Record> {
    /// Takes one record. What goes wrong is told when the output is next polled.
    fn push(&mut self, view: T::View<'_>);
}

/// Takes records, and says when it would rather not.
pub trait Sink<T: Record>: Push<T> {
    /// Whether the next record should wait. One more is still taken, however much follows from it.
    fn is_full(&self) -> bool;
}

/// The end of a stage.
pub trait Output<T: Record>: Sink<T> {
    /// Takes one record, and says whether the next should wait: one call instead of two where the type is not known.
    fn take(&mut self, view: T::View<'_>) -> bool {
        self.push(view);
        self.is_full()
    }

    /// Moves on what waits; true if something moved.
    ///
    /// # Errors
    ///
    /// What went wrong here or in a push before.
    fn poll(&mut self) -> Result<bool, Error>;

    /// Sends on what there is room for, however little, and then how far event time is; true if there was something to
    /// send. It is called when records have waited long enough, or nothing else is to be done.
    ///
    /// # Errors
    ///
    /// As [`poll`](Self::poll).
    fn flush(&mut self, _watermark: Watermark) -> Result<bool, Error> {
        Ok(false)
    }

    /// Called after the last record until it says true: everything is out.
    ///
    /// # Errors
    ///
    /// As [`poll`](Self::poll).
    fn finish(&mut self) -> Result<bool, Error>;

    /// Makes the output final: called once, when every rank has finished.
    ///
    /// # Errors
    ///
    /// What the output's medium says.
    fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Takes note that the instance of this number of a task that reads the output wants no more.
    fn stopped(&mut self, _reader: u32) {}

    /// Whether nobody wants more.
    fn is_closed(&self) -> bool {
        false
    }

    /// Goes back to where it began, once all is out, for another run of this number; false if it has to be made anew.
    fn again(&mut self, _run: u32) -> bool {
        false
    }

    /// Whether [`commit`](Self::commit) leaves something that must not be there if any rank fails.
    fn is_lasting(&self) -> bool {
        false
    }
}

/// What a task that begins anew may keep entered on the ledger for the next run: all ranks of a process share that account, and
/// should not meet there in each run for a few bytes.
pub(crate) const KEPT_BYTES: u64 = 4 << 10;

/// What became of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Something was done; there may be more.
    Made,
    /// There is nothing to do until a message comes or room is made.
    None,
    /// All is done, for good.
    Done,
}

impl Progress {
    /// Whether something was done, of what is not at its end.
    fn made_if(is_made: bool) -> Self {
        if is_made { Self::Made } else { Self::None }
    }
}

/// The start of a stage: where its records come from. Its *ports* are the edges that it reads, numbered from 0
/// in the order in which its task names them; a source has none, and need not say what it does with what they bring.
pub trait Input {
    /// What it gives.
    type Out: Record;

    /// Takes in a batch that rank `from` sent.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`], or [`Error::Unexpected`] in a source.
    fn receive(&mut self, _port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        let (peer, tag) = (from, batch.tag());
        Err(Error::Unexpected { peer, tag })
    }

    /// Takes note that an instance on rank `from` has sent its last batch.
    fn ended(&mut self, _port: usize, _from: Rank) {}

    /// Pushes some records down, as long as they are wanted. It may be done before its senders are; they are
    /// told then that no more is wanted.
    ///
    /// It does not wait, and returns from time to time: nothing else goes on at this rank meanwhile. Who says
    /// [`Progress::None`] is called again when something has happened at the rank, or at the time that it asks for
    /// by [`Clock::wake_at`].
    ///
    /// # Errors
    ///
    /// What the source says.
    fn poll<D: Sink<Self::Out>>(&mut self, down: &mut D) -> Result<Progress, Error>;

    /// Takes note of how far the instance of number `sender` is that sends on a port, behind the batches that came
    /// before.
    fn advance(&mut self, _port: usize, _sender: u32, _watermark: Watermark) {}

    /// How far event time is in what it will push. A source, and what gives nothing before its inputs have ended, need
    /// not say.
    fn watermark(&mut self) -> Watermark {
        Watermark::UNKNOWN
    }

    /// Ends a source that would go on: it pushes what has come already, and is done. To others it means nothing.
    fn stop(&mut self) {}

    /// Whether it wants what its ports may still bring.
    fn is_reading(&self) -> bool {
        true
    }

    /// Gives up what it holds and goes back to where it began, once no more of it is wanted, so that another run can
    /// have it; false if it has to be made anew.
    fn again(&mut self) -> bool {
        false
    }

    /// Which record was pushed last, as people find it again.
    fn last(&self) -> String {
        "a record that was made here".to_owned()
    }
}

/// Where and in what an instance of a task runs. Cloning gives another handle on the same.
#[derive(Debug, Clone)]
pub struct Place {
    /// The links and the arena of this rank.
    pub fabric: Rc<RefCell<Fabric>>,
    /// This rank.
    pub rank: Rank,
    /// Ranks in the job.
    pub size: u32,
    /// Ranks in each process, which are neighbours in number.
    pub executors: u32,
    /// The account of the process.
    pub ledger: Ledger,
    /// What this rank has done.
    pub counters: Rc<dyn Counters>,
    /// Bytes that one channel may have on its way or unread.
    pub window_bytes: usize,
    /// Bytes that a batch may have for the sake of one large record: the channel's share of the arena, so
    /// that there is room for it however many other channels have one too.
    pub batch_bytes_max: usize,
    /// The number of the run.
    pub run: u32,
    /// The number of this instance, from 0.
    pub instance: u32,
    /// How many instances the task has.
    pub instances: u32,
    pub(crate) wiring: Rc<Wiring>,
    /// Where records are kept that memory has no room for.
    pub spill: Rc<spill::Config>,
    pub(crate) handoff: Handoff,
    /// How far streams are that keep step.
    pub(crate) alignment: Rc<Alignment>,
    /// What time it is.
    pub clock: Rc<Clock>,
    /// Whether records that wait are flushed, and event time flows with them.
    pub(crate) is_live: bool,
    /// Wakes this rank from other threads, if it can sleep and what is live may come from them.
    pub(crate) waker: Option<Arc<Waker>>,
    /// Who does what would keep this rank too long.
    pub helpers: Rc<dyn Helpers>,
}

/// What a task is connected with.
#[derive(Debug, Default)]
pub(crate) struct Wiring {
    /// The operators of the task, as people read them.
    pub(crate) name: String,
    /// How many instances send on each of its inputs.
    pub(crate) senders: Vec<u32>,
    /// Which of its inputs go on until they are stopped.
    pub(crate) endless: Vec<bool>,
    /// Whether it may leave an input unread until another has ended: see [`crate::graph`].
    pub(crate) may_wait: bool,
    /// The edge that it sends on.
    pub(crate) edge: EdgeId,
    /// The instances that read that edge, each as its rank and its number there.
    pub(crate) readers: Vec<(Rank, Slot)>,
    /// Whether all that goes on that edge by key is for the reader of the same number: see [`Graph::is_in_place`].
    ///
    /// [`Graph::is_in_place`]: crate::graph::Graph::is_in_place
    pub(crate) in_place: bool,
    /// Tasks that read that edge: each has an instance at each of these places.
    pub(crate) reading: u32,
    /// The edges that begin at its outputs, if it has several.
    pub(crate) outlets: Vec<(Arc<Node>, Rc<Wiring>)>,
}

/// The number of an instance among those of its task on the same rank.
pub(crate) type Slot = u8;

/// All of them.
pub(crate) const EVERY_SLOT: Slot = Slot::MAX;

impl Place {
    /// The error of an operator that failed here: which it is, with which record, and why.
    #[cold]
    pub fn failure(
        &self,
        operator: impl Into<String>,
        record: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error::Function {
            operator: operator.into(),
            task: self.wiring.name.clone(),
            instance: self.instance,
            record: record.into(),
            source: cause.into(),
        }
    }

    /// An error of this instance, which is named if the ledger had no room.
    #[cold]
    pub(crate) fn named(&self, error: Error) -> Error {
        match error {
            Error::Transport(source @ transport::Error::LedgerLimit { .. }) => Error::NoMemory {
                task: self.wiring.name.clone(),
                instance: self.instance,
                source,
            },
            other => other,
        }
    }

    /// Whether a rank is in this process.
    pub fn is_here(&self, rank: Rank) -> bool {
        rank / self.executors == self.rank / self.executors
    }

    /// The only lane of an exchange by key, if all pairs are on the instance that their keys belong to.
    pub(crate) fn own_lane(&self) -> Option<usize> {
        (self.wiring.in_place).then_some(self.instance as usize)
    }

    /// The most bytes that the process may need at once for batches in the making that find no loan: one for each
    /// channel of each executor.
    pub(crate) fn sending_bytes(&self) -> u64 {
        let half = self.fabric.borrow().arena().capacity() / 2;
        let channels = half / (self.batch_bytes_max as u64).max(1);
        u64::from(self.executors) * channels * batch_bytes(self.window_bytes) as u64
    }
}

/// What tasks of a rank have in common, for as long as one of them holds it. It travels no further, so it can be
/// anything.
#[derive(Clone, Default)]
pub(crate) struct Handoff(Rc<RefCell<HashMap<usize, Weak<dyn Any>>>>);

impl Handoff {
    /// Puts something under this number.
    pub(crate) fn put<T: 'static>(&self, number: usize, shared: &Rc<T>) {
        let weak: Weak<T> = Rc::downgrade(shared);
        self.0.borrow_mut().insert(number, weak);
    }

    /// What has this number on the rank, which is made if nobody holds it.
    pub(crate) fn share<T: 'static>(
        &self,
        number: usize,
        make: impl FnOnce() -> Result<T, Error>,
    ) -> Result<Rc<T>, Error> {
        let held = self.0.borrow().get(&number).and_then(Weak::upgrade);
        if let Some(shared) = held.and_then(|held| held.downcast().ok()) {
            return Ok(shared);
        }
        let shared = Rc::new(make()?);
        let weak: Weak<T> = Rc::downgrade(&shared);
        self.0.borrow_mut().insert(number, weak);
        Ok(shared)
    }
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handoff")
    }
}

/// Takes note of what a rank has done.
pub trait Counters: std::fmt::Debug {
    /// So many records and bytes came from sources.
    fn read(&self, records: u64, bytes: u64);

    /// So many records came from other tasks, in batches of so many bytes.
    fn received(&self, records: u64, bytes: u64);

    /// So many records went to other tasks, in batches of so many bytes.
    fn sent(&self, _records: u64, _bytes: u64) {}

    /// There was no room to send in.
    fn waited(&self) {}

    /// The time since any fixed moment, if it is to be measured how long tasks are at work. Then all ranks have to want that, and
    /// each learns what the instances of all have done: see [`Run::by_task`](crate::Run::by_task).
    fn now(&self) -> Option<Duration> {
        None
    }

    /// So many bytes are there to be read by sources.
    fn expect(&self, bytes: u64);

    /// So many bytes were written to disk because memory had no room for them.
    fn spilled(&self, _bytes: u64) {}
}

/// One instance of a vertex of the graph.
pub(crate) trait Task {
    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error>;

    fn ended(&mut self, port: usize, from: Rank);

    /// Takes note of how far the instance of number `sender` is that sends on a port.
    fn advance(&mut self, _port: usize, _sender: u32, _watermark: Watermark) {}

    /// Sends on what waits to be more; true if there was something.
    fn flush(&mut self) -> Result<bool, Error> {
        Ok(false)
    }

    /// Ends it, if it is a source that would go on.
    fn stop(&mut self) {}

    /// Takes note that an instance that reads an edge wants no more.
    fn stopped(&mut self, _edge: EdgeId, _reader: u32) {}

    /// Whether it wants what its inputs may still bring.
    fn is_reading(&self) -> bool;

    fn poll(&mut self) -> Result<Progress, Error>;

    fn commit(&mut self) -> Result<(), Error>;

    /// Goes back to where it began, when all is done, for another run of this number; false if it has to be made anew.
    fn again(&mut self, _run: u32) -> bool {
        false
    }

    /// Whether [`commit`](Self::commit) leaves something that must not be there if any rank fails.
    fn is_lasting(&self) -> bool {
        false
    }
}

/// A narrow operator: what becomes of a record depends on nothing else.
pub trait Narrow<T: Record>: Clone + Send + Sync + 'static {
    /// What it gives.
    type Out: Record;

    /// Takes one record and pushes what becomes of it.
    fn push<D: Push<Self::Out>>(&mut self, view: T::View<'_>, down: &mut D);

    /// Learns where it is, before the first record.
    fn begin(&mut self, _place: &Place) {}

    /// Pushes what is left to push, after the last record.
    fn end<D: Push<Self::Out>>(&mut self, _down: &mut D) {}

    /// How far event time is behind it, when it is so far before it.
    fn watermark(&mut self, before: Watermark, _clock: &Clock) -> Watermark {
        before
    }

    /// Whether event time begins here.
    fn gives_time(&self) -> bool {
        false
    }

    /// Whether what it gives of a pair are pairs of the same key.
    fn keeps_keys(&self) -> bool {
        false
    }

    /// Whether a function of the program failed. No more records come then.
    #[inline]
    fn has_failed(&self) -> bool {
        false
    }

    /// Takes the failure.
    fn failure(&mut self) -> Option<Failure> {
        None
    }
}

/// A function of the program failed.
#[derive(Debug)]
pub struct Failure {
    /// The operator that called it.
    pub operator: String,
    /// What it said.
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

/// An input, narrow operators and an output, put together.
pub(crate) struct Stage<I, N, O> {
    /// Given up with all that it holds when no more of it is wanted: batches that nobody reads would keep their
    /// sender waiting.
    input: Option<I>,
    /// Whether it was, and is kept only because it can begin again.
    is_spent: bool,
    narrow: N,
    /// What it was before the first record.
    fresh: N,
    output: O,
    state: State,
    place: Place,
}

impl<I, N, O> Stage<I, N, O>
where
    I: Input,
    N: Narrow<I::Out>,
    O: Output<N::Out>,
{
    pub(crate) fn new(input: I, mut narrow: N, output: O, place: &Place) -> Self {
        let fresh = narrow.clone();
        narrow.begin(place);
        Self {
            input: Some(input),
            is_spent: false,
            fresh,
            narrow,
            output,
            state: State::Running,
            place: place.clone(),
        }
    }

    /// The input, if more of it is wanted.
    fn input(&mut self) -> Option<&mut I> {
        if self.is_spent {
            return None;
        }
        self.input.as_mut()
    }

    fn has_input(&self) -> bool {
        self.input.is_some() && !self.is_spent
    }

    /// Has the input push some records, if they find room, and gives it up after the last.
    fn poll_input(&mut self) -> Result<Progress, Error> {
        let Some(input) = self.input.as_mut().filter(|_| !self.is_spent) else {
            return Ok(Progress::Done);
        };
        if self.output.is_full() {
            return Ok(Progress::None);
        }
        let mut chain = Chain {
            narrow: &mut self.narrow,
            output: &mut self.output,
        };
        let progress = Culprit::Input.calls(|| input.poll(&mut chain))?;
        if self.narrow.has_failed() {
            return Err(self.failure());
        }
        if progress == Progress::Done {
            self.end_input();
        }
        Ok(progress)
    }

    /// Gives the input up.
    fn end_input(&mut self) {
        self.is_spent = self.input.as_mut().is_some_and(Input::again);
        if !self.is_spent {
            self.input = None;
        }
    }
}

/// How far a stage is.
pub(crate) enum State {
    Running,
    Finishing,
    Done,
}

/// The narrow operators in front of the output.
struct Chain<'a, N, O> {
    narrow: &'a mut N,
    output: &'a mut O,
}

impl<T: Record, N: Narrow<T>, O: Sink<N::Out>> Push<T> for Chain<'_, N, O> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        self.narrow.push(view, &mut End(self.output));
    }
}

impl<T: Record, N: Narrow<T>, O: Sink<N::Out>> Sink<T> for Chain<'_, N, O> {
    #[inline]
    fn is_full(&self) -> bool {
        self.output.is_full() || self.narrow.has_failed()
    }
}

/// What is behind the narrow operators.
struct End<'a, O>(&'a mut O);

impl<T: Record, O: Push<T>> Push<T> for End<'_, O> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        Culprit::Output.calls(|| self.0.push(view));
    }
}

impl<I, N, O> Stage<I, N, O>
where
    I: Input,
    N: Narrow<I::Out>,
{
    fn failure(&mut self) -> Error {
        let input = self.input.as_ref().filter(|_| !self.is_spent);
        failure(&mut self.narrow, input, &self.place)
    }
}

/// The failure of a function, with where and with what that was.
#[cold]
fn failure<I: Input, N: Narrow<I::Out>>(narrow: &mut N, input: Option<&I>, place: &Place) -> Error {
    let Failure { operator, cause } = narrow.failure().unwrap_or_else(|| Failure {
        operator: "an operator".to_owned(),
        cause: "it does not say why".into(),
    });
    let record = input.map_or_else(|| END_OF_RECORDS.to_owned(), I::last);
    place.failure(operator, record, cause)
}

/// Where a function is that was called after the last record.
const END_OF_RECORDS: &str = "the end of its records";

/// An input and narrow operators as one input.
pub(crate) struct Fused<I, N> {
    /// Gone after its last record.
    input: Option<I>,
    narrow: N,
    place: Place,
}

impl<I: Input, N: Narrow<I::Out>> Fused<I, N> {
    pub(crate) fn new(input: I, mut narrow: N, place: &Place) -> Self {
        narrow.begin(place);
        Self {
            input: Some(input),
            narrow,
            place: place.clone(),
        }
    }
}

impl<I: Input, N: Narrow<I::Out>> Input for Fused<I, N> {
    type Out = N::Out;

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        match &mut self.input {
            Some(input) => input.receive(port, from, batch),
            None => Ok(()),
        }
    }

    fn ended(&mut self, port: usize, from: Rank) {
        if let Some(input) = &mut self.input {
            input.ended(port, from);
        }
    }

    fn poll<D: Sink<N::Out>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        let Some(input) = &mut self.input else {
            return Ok(Progress::Done);
        };
        let mut progress = input.poll(&mut Chain {
            narrow: &mut self.narrow,
            output: down,
        })?;
        if progress == Progress::Done && !self.narrow.has_failed() {
            self.input = None;
            self.narrow.end(down);
            progress = Progress::Made;
        }
        if self.narrow.has_failed() {
            return Err(failure(&mut self.narrow, self.input.as_ref(), &self.place));
        }
        Ok(progress)
    }

    fn advance(&mut self, port: usize, sender: u32, watermark: Watermark) {
        if let Some(input) = &mut self.input {
            input.advance(port, sender, watermark);
        }
    }

    fn watermark(&mut self) -> Watermark {
        let before = self.input.as_mut().map_or(Watermark::END, Input::watermark);
        self.narrow.watermark(before, &self.place.clock)
    }

    fn stop(&mut self) {
        if let Some(input) = &mut self.input {
            input.stop();
        }
    }

    fn is_reading(&self) -> bool {
        self.input.as_ref().is_some_and(Input::is_reading)
    }

    fn last(&self) -> String {
        (self.input.as_ref()).map_or_else(|| END_OF_RECORDS.to_owned(), I::last)
    }
}

impl<I, N, O> Task for Stage<I, N, O>
where
    I: Input,
    N: Narrow<I::Out>,
    O: Output<N::Out>,
{
    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        match self.input() {
            Some(input) => input.receive(port, from, batch),
            None => Ok(()), // It was sent before its sender could know.
        }
    }

    fn ended(&mut self, port: usize, from: Rank) {
        if let Some(input) = self.input() {
            input.ended(port, from);
        }
    }

    fn advance(&mut self, port: usize, sender: u32, watermark: Watermark) {
        if let Some(input) = self.input() {
            input.advance(port, sender, watermark);
        }
    }

    fn flush(&mut self) -> Result<bool, Error> {
        let Some(input) = self.input() else {
            return Ok(false); // All of it is about to be sent anyway.
        };
        let before = input.watermark();
        let watermark = self.narrow.watermark(before, &self.place.clock);
        self.output.flush(watermark)
    }

    fn stop(&mut self) {
        if let Some(input) = self.input() {
            input.stop();
        }
    }

    fn stopped(&mut self, _edge: EdgeId, reader: u32) {
        self.output.stopped(reader);
    }

    fn is_reading(&self) -> bool {
        !self.is_spent && self.input.as_ref().is_some_and(Input::is_reading)
    }

    fn poll(&mut self) -> Result<Progress, Error> {
        let mut moved = Culprit::Output.calls(|| self.output.poll())?;
        if self.has_input() && self.output.is_closed() {
            self.end_input();
        }
        // What follows the last record is done at once: a turn more would take longer than that.
        if let State::Running = self.state {
            if self.has_input() {
                let progress = self.poll_input()?;
                moved |= progress != Progress::None;
            }
            if self.has_input() {
                return Ok(Progress::made_if(moved));
            }
            self.narrow.end(&mut End(&mut self.output));
            if self.narrow.has_failed() {
                return Err(self.failure());
            }
            self.state = State::Finishing;
            moved = true;
        }
        if let State::Finishing = self.state
            && Culprit::Output.calls(|| self.output.finish())?
        {
            self.state = State::Done;
        }
        Ok(match self.state {
            State::Done => Progress::Done,
            _ => Progress::made_if(moved),
        })
    }

    fn commit(&mut self) -> Result<(), Error> {
        Culprit::Output.calls(|| self.output.commit())
    }

    fn again(&mut self, run: u32) -> bool {
        if !self.is_spent || !self.output.again(run) {
            return false;
        }
        self.is_spent = false;
        self.narrow.clone_from(&self.fresh);
        self.narrow.begin(&self.place);
        self.state = State::Running;
        true
    }

    fn is_lasting(&self) -> bool {
        self.output.is_lasting()
    }
}
