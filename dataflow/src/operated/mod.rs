//! Operators as values, which the program drives: for programs of all ranks, beside operations of groups.

mod ends;
mod operators;
mod overflow;
mod queue;

use std::{cell::RefCell, fmt, future::poll_fn, rc::Rc, sync::Arc, task::Poll};

use collectives::{Engine, Group};

use self::{ends::Giving, operators::Driven, queue::Queue};
pub use self::{
    ends::{Inlet, Sent, Taking},
    operators::Operators,
};
use crate::{
    Encode, Error, Record,
    batch::Page,
    graph::Graph,
    stage::{Handoff, Narrow, Place},
    tset::{Source, TSet},
};

/// Under which numbers the ends of an operator are found on a rank.
const LEFT: usize = 0;
const RIGHT: usize = 1;
const RESULTS: usize = 2;

/// An operator that the program drives itself, in the manner of MPI: each rank sends records, says when these are all,
/// and polls the results that come to it. Then it resets the operator for the next round, which costs no more than that:
/// what was made for the first stays.
///
/// It is whatever a closure makes of the stream of what is sent: any exchange (`exchange_by_hash`, `partition`, `round_robin`,
/// `broadcast`, `gather`), any operator, and narrow operators before and behind it. (Clones of what is sent need an exchange before
/// them, such as `direct`.) All ranks of the job have to make the same
/// operators, in the same order. Several can be open at a time, and operations of groups go on beside them; their messages are
/// told apart. Operators go on whenever this rank waits: for any of them, or for an operation of a group.
///
/// ```
/// # use std::rc::Rc;
/// # use collectives::Engine;
/// # use transport::{Arena, Fabric, Ledger};
/// use dataflow::{Operator, Operators, Sent};
///
/// # let fabric = Fabric::alone(Arena::new(&Ledger::new(1 << 30), 16 << 20).unwrap());
/// # let engine = Engine::simulated(fabric);
/// # engine.attend(Rc::new(Operators::alone(&engine)));
/// # let world = engine.block_on(engine.world()).unwrap();
/// let mut sums = Operator::new(&world, |pairs: Sent<(String, u64)>| pairs.reduce_by_key(|a, b| a + b))?;
/// for round in 1..3u64 {
///     sums.send(&("a", round))?;
///     sums.send(&("a", 10u64))?;
///     sums.finish();
///     assert_eq!(sums.poll()?, Some(("a", round + 10)));
///     assert_eq!(sums.poll()?, None);
///     sums.reset()?;
/// }
/// # Ok::<(), dataflow::Error>(())
/// ```
///
/// # Waiting
///
/// | call | waits for |
/// | --- | --- |
/// | [`new`](Self::new), [`finish`](Self::finish), and those that begin with `try_` | nothing |
/// | [`send`](Self::send) | room, while the ranks that it goes to are behind in reading |
/// | [`poll`](Self::poll) | nothing before this rank has finished; then for a result, or the end of the round here |
/// | [`reset`](Self::reset) | the end of the round here, and that no rank is more than one round behind |
///
/// A rank reads what is sent to it whenever it waits in one of these calls or in an operation of a group, and not while it computes.
/// What it sends is on its way when there is a page of it, when the rank waits, or when it has finished.
///
/// # Memory
///
/// What is sent is written once, in pages that the operator takes, and exchanged as in any graph. Results stay in memory
/// until they are polled, on the ledger of the worker; beyond a quarter of it, shared among the executors, they go to disk, in
/// their order. So do operators that need much memory, as in any graph. Each operator has an eighth of the half of the arena that
/// a graph has for what it sends. What is sent to one of two inputs while the other has not ended may have to be
/// kept, on the ledger alone: where that has no room it is [`transport::Error::LedgerLimit`].
///
/// # Errors
///
/// Those of a graph: [`Error::PlansDiffer`] where ranks make different operators; the loss of a rank; what functions say. After an
/// error the operator is of no use, and the other ranks learn of it. So do those that begin a round, or are in one, of an operator that
/// another rank has dropped before it had finished that round.
pub struct Operator<I, T: Record> {
    engine: Engine,
    inlets: I,
    results: Rc<Queue<T>>,
    /// The results that are being polled, and which of them is next.
    page: Option<Page<T>>,
    next: usize,
    driven: Rc<RefCell<Driven>>,
    operators: Rc<Operators>,
}

/// What is sent to an operator with one input.
#[derive(Debug)]
pub struct One<T>(Rc<Queue<T>>);

/// What is sent to an operator with two.
#[derive(Debug)]
pub struct Two<L, R>(Rc<Queue<L>>, Rc<Queue<R>>);

/// The inputs of an operator.
pub trait Inputs {
    /// Says that no more will be sent.
    fn end(&self);

    /// Whether that was said.
    fn are_ended(&self) -> bool;

    /// Begins anew.
    fn open(&self);
}

impl<T: Record> Inputs for One<T> {
    fn end(&self) {
        self.0.end();
    }

    fn are_ended(&self) -> bool {
        self.0.is_ended()
    }

    fn open(&self) {
        self.0.open();
    }
}

impl<L: Record, R: Record> Inputs for Two<L, R> {
    fn end(&self) {
        self.0.end();
        self.1.end();
    }

    fn are_ended(&self) -> bool {
        self.0.is_ended() && self.1.is_ended()
    }

    fn open(&self) {
        self.0.open();
        self.1.open();
    }
}

impl<T: Record, U: Record> Operator<One<T>, U> {
    /// What `operator` makes of the stream of the records that are sent.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllRanks`] where `world` is a part of the job, or what its tasks say when they are made.
    pub fn new<S, N>(
        world: &Group,
        operator: impl FnOnce(Sent<T>) -> TSet<S, N>,
    ) -> Result<Self, Error>
    where
        S: Source,
        N: Narrow<S::Out, Out = U>,
    {
        let queue = Rc::new(Queue::new());
        let handoff = Handoff::default();
        handoff.put(LEFT, &queue);
        Self::begin(world, operator(Inlet::new(LEFT)), One(queue), handoff)
    }

    /// Sends a record, or anything that is encoded as one. It waits while there is no room for it: see [`Operator`]. What
    /// nobody wants any more, such as behind [`take`](TSet::take), is dropped.
    ///
    /// # Errors
    ///
    /// See [`Operator`], and [`Error::SentTooLate`] after the end of what is sent.
    #[inline]
    pub fn send<E: Encode<Record = T>>(&mut self, record: &E) -> Result<(), Error> {
        let queue = self.inlets.0.clone();
        self.send_to(&queue, record, false)
    }

    /// The same without waiting: false while there is no room.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn try_send<E: Encode<Record = T>>(&mut self, record: &E) -> Result<bool, Error> {
        let queue = self.inlets.0.clone();
        self.try_send_to(&queue, record)
    }
}

impl<L: Record, R: Record, U: Record> Operator<Two<L, R>, U> {
    /// What `operator` makes of two streams of records that are sent: a join, a union.
    ///
    /// ```
    /// # use std::rc::Rc;
    /// # use collectives::Engine;
    /// # use transport::{Arena, Fabric, Ledger};
    /// use dataflow::{Operator, Operators, Sent};
    ///
    /// # let fabric = Fabric::alone(Arena::new(&Ledger::new(1 << 30), 16 << 20).unwrap());
    /// # let engine = Engine::simulated(fabric);
    /// # engine.attend(Rc::new(Operators::alone(&engine)));
    /// # let world = engine.block_on(engine.world()).unwrap();
    /// let mut orders = Operator::of_two(&world, |people: Sent<(u64, String)>, orders: Sent<(u64, u64)>| {
    ///     people.join(orders)
    /// })?;
    /// orders.send_left(&(7u64, "Ann"))?;
    /// orders.finish_left();
    /// orders.send_right(&(7u64, 100u64))?;
    /// orders.finish();
    /// assert_eq!(orders.poll()?, Some((7, ("Ann", 100))));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`new`](Operator::new).
    pub fn of_two<S, N>(
        world: &Group,
        operator: impl FnOnce(Sent<L>, Sent<R>) -> TSet<S, N>,
    ) -> Result<Self, Error>
    where
        S: Source,
        N: Narrow<S::Out, Out = U>,
    {
        let (left, right) = (Rc::new(Queue::new()), Rc::new(Queue::new()));
        let handoff = Handoff::default();
        handoff.put(LEFT, &left);
        handoff.put(RIGHT, &right);
        let fragment = operator(Inlet::new(LEFT), Inlet::new(RIGHT));
        Self::begin(world, fragment, Two(left, right), handoff)
    }

    /// Sends a record to the first input. An operator may leave one input unread until the other has ended; so as long as the
    /// other has not, what there is no room for is kept here, on the ledger, instead of waiting.
    ///
    /// # Errors
    ///
    /// As [`send`](Operator::send).
    #[inline]
    pub fn send_left<E: Encode<Record = L>>(&mut self, record: &E) -> Result<(), Error> {
        let queue = self.inlets.0.clone();
        let keeps = !self.inlets.1.is_ended();
        self.send_to(&queue, record, keeps)
    }

    /// The same to the second.
    ///
    /// # Errors
    ///
    /// As [`send`](Operator::send).
    #[inline]
    pub fn send_right<E: Encode<Record = R>>(&mut self, record: &E) -> Result<(), Error> {
        let queue = self.inlets.1.clone();
        let keeps = !self.inlets.0.is_ended();
        self.send_to(&queue, record, keeps)
    }

    /// Says that no more will be sent to the first input.
    pub fn finish_left(&mut self) {
        self.inlets.0.end();
    }

    /// Says that no more will be sent to the second input.
    pub fn finish_right(&mut self) {
        self.inlets.1.end();
    }
}

impl<I: Inputs, U: Record> Operator<I, U> {
    /// Puts an end to the stream and starts it.
    fn begin<S, N>(
        world: &Group,
        fragment: TSet<S, N>,
        inlets: I,
        handoff: Handoff,
    ) -> Result<Self, Error>
    where
        S: Source,
        N: Narrow<S::Out, Out = U>,
    {
        let engine = world.engine().clone();
        let operators = engine.attendant::<Operators>();
        let operators = operators.filter(|_| world.size() == engine.size() as usize);
        let operators = operators.ok_or(Error::NotAllRanks {
            members: world.size() as u32,
            ranks: engine.size(),
        })?;
        let results = Rc::new(Queue::new());
        handoff.put(RESULTS, &results);
        let end = fragment.end("results", |place: &Place| Giving::new(RESULTS, place));
        let graph = Graph::of(&[Arc::new(end)]);
        let driven = operators.open(Arc::new(graph), handoff)?;
        Ok(Self {
            engine,
            inlets,
            results,
            page: None,
            next: 0,
            driven,
            operators,
        })
    }

    /// Says that this rank will send no more in this round, and sends off what it can.
    pub fn finish(&mut self) {
        self.end();
        // Links that fail altogether do so again in the next call, which says so.
        let _ = self.engine.turn();
    }

    fn end(&mut self) {
        self.inlets.end();
        self.driven.borrow_mut().begin();
    }

    /// The next result on this rank, in the order in which they come.
    ///
    /// Before this rank has [finished](Self::finish), it gives what is there, and nothing when there is none yet. After that it
    /// waits for a result, and gives nothing when the round is over on this rank.
    ///
    /// # Errors
    ///
    /// See [`Operator`].
    pub fn poll(&mut self) -> Result<Option<U::View<'_>>, Error> {
        if self.is_at_result() || self.fetch(true)? {
            self.next += 1;
        }
        Ok(self.result())
    }

    /// The same without waiting, whether or not this rank has finished.
    ///
    /// # Errors
    ///
    /// As [`poll`](Self::poll).
    pub fn try_poll(&mut self) -> Result<Poll<Option<U::View<'_>>>, Error> {
        if self.is_at_result() || self.fetch(false)? {
            self.next += 1;
        } else if !self.driven.borrow().is_done() {
            return Ok(Poll::Pending);
        }
        Ok(Poll::Ready(self.result()))
    }

    /// Whether there is a result behind those that were polled.
    #[inline]
    fn is_at_result(&self) -> bool {
        self.page
            .as_ref()
            .is_some_and(|page| self.next < page.len())
    }

    /// The result before the next.
    #[inline]
    fn result(&self) -> Option<U::View<'_>> {
        Some(self.page.as_ref()?.view(self.next.checked_sub(1)?))
    }

    /// Goes on to the next page of results, if there is one.
    #[cold]
    fn fetch(&mut self, waits: bool) -> Result<bool, Error> {
        self.next = 0;
        if let Some(page) = self.page.take() {
            self.results.give_back(page);
        }
        if self.results.is_empty() && !self.driven.borrow().is_done() {
            if self.inlets.are_ended() {
                self.driven.borrow_mut().begin();
            }
            self.turn()?;
            let (results, driven) = (self.results.clone(), self.driven.clone());
            if waits && self.inlets.are_ended() {
                self.wait(move || !results.is_empty() || driven.borrow().is_done())?;
            }
        }
        self.page = self.results.pop()?;
        Ok(self.page.is_some())
    }

    /// Begins the next round, when this one is over on this rank: what it has not sent will not be, and results that nobody has
    /// polled are dropped. No rank is more than one round ahead of another.
    ///
    /// # Errors
    ///
    /// See [`Operator`].
    pub fn reset(&mut self) -> Result<(), Error> {
        self.end();
        let (results, driven) = (self.results.clone(), self.driven.clone());
        self.wait(move || {
            results.clear();
            driven.borrow().may_go_on()
        })?;
        self.go_on()
    }

    /// The same without waiting: false if it cannot begin yet.
    ///
    /// # Errors
    ///
    /// As [`reset`](Self::reset).
    pub fn try_reset(&mut self) -> Result<bool, Error> {
        self.end();
        self.turn()?;
        self.results.clear();
        if !self.driven.borrow().may_go_on() {
            return Ok(false);
        }
        self.go_on()?;
        Ok(true)
    }

    fn go_on(&mut self) -> Result<(), Error> {
        (self.page, self.next) = (None, 0);
        self.results.open();
        self.inlets.open();
        self.driven.borrow_mut().again()
    }

    #[inline]
    fn send_to<T: Record, E: Encode<Record = T>>(
        &mut self,
        queue: &Rc<Queue<T>>,
        record: &E,
        keeps: bool,
    ) -> Result<(), Error> {
        if queue.is_ended() {
            return Err(Error::SentTooLate);
        }
        if queue.is_full() {
            self.turn()?;
            if queue.is_full() && !keeps {
                let queue = queue.clone();
                self.wait(move || !queue.is_full())?;
            }
        }
        queue.push(record)
    }

    fn try_send_to<T: Record, E: Encode<Record = T>>(
        &mut self,
        queue: &Rc<Queue<T>>,
        record: &E,
    ) -> Result<bool, Error> {
        if queue.is_ended() {
            return Err(Error::SentTooLate);
        }
        if queue.is_full() {
            self.driven.borrow_mut().begin();
            self.turn()?;
        }
        if queue.is_full() {
            return Ok(false);
        }
        queue.push(record)?;
        Ok(true)
    }

    /// Takes in what has come, and has all operators go on.
    fn turn(&self) -> Result<(), Error> {
        self.engine.turn()?;
        self.driven.borrow_mut().check()
    }

    /// Has all operators go on until `ready`.
    fn wait(&self, ready: impl Fn() -> bool) -> Result<(), Error> {
        self.driven.borrow_mut().begin();
        let mut failed = None;
        self.engine.block_on(poll_fn(|_| {
            self.engine.turn()?;
            failed = self.driven.borrow_mut().check().err();
            match failed.is_some() || ready() {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        }))?;
        failed.map_or(Ok(()), Err)
    }
}

impl<I, T: Record> Drop for Operator<I, T> {
    fn drop(&mut self) {
        self.operators.close(&self.driven);
    }
}

impl<I, T: Record> fmt::Debug for Operator<I, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Operator")
            .field(&self.driven.borrow())
            .finish()
    }
}
