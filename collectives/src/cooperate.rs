//! Several ranks on one thread, each a future, in turns.
//!
//! Ranks that share a core as processes or threads wait for the system to switch between them. As futures they
//! are switched by a call: while one waits, the next goes on.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use transport::Fabric;

use crate::{
    Engine, Error,
    engine::{POLLS_A_LOOK, SLEEP_MAX},
};

/// What one rank does, as a future.
pub type Part<'p, T> = Pin<Box<dyn Future<Output = T> + 'p>>;

/// Polls what several ranks of this thread do, each with its engine, in turns until all are done, and sleeps while
/// none of them has anything to do. Gives what they gave, in their order.
///
/// A part may await operations of groups, on its own engine; the others go on only while it does. So it must not
/// [wait](crate::Operation::wait) for one, which is an error here. What else it awaits is looked at now and then, at
/// least ten times a second.
///
/// Ranks that are done still answer what others ask of them until all are.
///
/// ```
/// use collectives::{Engine, cooperate, op::Sum};
/// use transport::{Arena, Config, Fabric, Ledger, Secret};
/// use std::{cell::RefCell, rc::Rc, time::Instant};
///
/// let (secret, ledger, start) = (Secret::random()?, Ledger::new(64 << 20), Instant::now());
/// let fabric = |rank| Fabric::new(Config::new(rank, 3, &secret), Arena::new(&ledger, 16 << 20)?);
/// let mut fabrics = (0..3).map(fabric).collect::<Result<Vec<_>, _>>()?;
/// let book: Vec<_> = fabrics.iter().map(|fabric| fabric.address().unwrap()).collect();
/// for fabric in &mut fabrics {
///     fabric.join(&book)?;
/// }
/// let ranks = fabrics.into_iter().map(|fabric| {
///     let engine = Engine::new(Rc::new(RefCell::new(fabric)), true, move || start.elapsed());
///     let part = engine.clone();
///     (engine, Box::pin(async move {
///         let world = part.world().await?;
///         let mut sum = [world.rank()];
///         world.all_reduce(&mut sum, Sum).await?;
///         Ok::<_, collectives::Error>(sum[0])
///     }) as _)
/// });
/// let sums: Vec<Result<usize, collectives::Error>> = cooperate(ranks.collect())?;
/// assert_eq!(sums, [Ok(3), Ok(3), Ok(3)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::Transport`] when the links of one of them fail altogether.
pub fn cooperate<T>(ranks: Vec<(Engine, Part<'_, T>)>) -> Result<Vec<T>, Error> {
    let mut crew = Crew::new(ranks);
    let mut since: Option<Duration> = None;
    while crew.open > 0 {
        for _ in 1..POLLS_A_LOOK {
            crew.poll();
        }
        let now = crew.look_around()?;
        if crew.went_on() {
            since = None;
        } else if now - *since.get_or_insert(now) >= crew.spin_max {
            crew.rest()?;
            since = None;
        }
    }
    Ok(crew.seats.iter_mut().filter_map(Seat::leave).collect())
}

struct Crew<'p, T> {
    seats: Vec<Seat<'p, T>>,
    /// Those that are not done.
    open: usize,
    /// How long they are polled before the thread sleeps.
    spin_max: Duration,
}

struct Seat<'p, T> {
    engine: Engine,
    state: State<'p, T>,
    /// Looks at shared words before giving way, when it has its thread for itself.
    spins: u32,
}

enum State<'p, T> {
    Open(Part<'p, T>),
    Done(Option<T>),
}

impl<'p, T> Crew<'p, T> {
    fn new(ranks: Vec<(Engine, Part<'p, T>)>) -> Self {
        let spin_max = ranks.iter().map(|(engine, _)| engine.0.spin_max).min();
        let seats = ranks.into_iter().map(|(engine, part)| {
            engine.0.cooperates.set(true);
            Seat {
                spins: engine.0.spins.replace(1),
                engine,
                state: State::Open(part),
            }
        });
        let seats: Vec<_> = seats.collect();
        let mut crew = Self {
            open: seats.len(),
            seats,
            spin_max: spin_max.unwrap_or_default(),
        };
        crew.glance(true);
        crew
    }

    fn glance(&mut self, does: bool) {
        for seat in &self.seats {
            seat.engine.0.glances.set(does);
        }
    }

    /// Polls every rank once.
    #[inline]
    fn poll(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for seat in &mut self.seats {
            if let State::Open(part) = &mut seat.state
                && let Poll::Ready(result) = part.as_mut().poll(&mut context)
            {
                seat.state = State::Done(Some(result));
                seat.engine.0.went_on.set(true);
                self.open -= 1;
            }
        }
    }

    /// The same, with a look at the time and at all that can happen beside shared words. Gives the time.
    fn look_around(&mut self) -> Result<Duration, Error> {
        let mut now = Duration::ZERO;
        for (index, seat) in self.seats.iter().enumerate() {
            let time = seat.engine.look_at_clock();
            now = if index == 0 { time } else { now };
            seat.engine.forget_watched();
        }
        self.glance(false);
        self.poll();
        self.glance(true);
        for Seat { engine, .. } in &self.seats {
            // Also of ranks that are done, or await something else: others may ask them something.
            engine.turn()?;
        }
        Ok(now)
    }

    /// Whether anything was done since this was last asked.
    fn went_on(&self) -> bool {
        let seats = self.seats.iter().map(|Seat { engine, .. }| engine);
        seats.fold(false, |any, engine| {
            any | engine.0.went_on.replace(false) | engine.is_busy()
        })
    }

    /// Waits until something has happened that one of them may wait for: all have just looked around in vain.
    fn rest(&mut self) -> Result<(), Error> {
        for seat in &self.seats {
            seat.engine.tick(seat.engine.clock());
        }
        let fabrics = self.seats.iter();
        let fabrics = fabrics.map(|seat| seat.engine.0.fabric.borrow_mut());
        let mut fabrics: Vec<_> = fabrics.collect();
        Fabric::wait_for_any(&mut fabrics, Some(SLEEP_MAX), || {
            self.seats.iter().any(|seat| seat.engine.has_changed())
        })?;
        Ok(())
    }
}

impl<T> Seat<'_, T> {
    fn leave(&mut self) -> Option<T> {
        match &mut self.state {
            State::Done(result) => result.take(),
            State::Open(_) => None,
        }
    }
}

impl<T> Drop for Crew<'_, T> {
    fn drop(&mut self) {
        for Seat { engine, spins, .. } in &self.seats {
            engine.0.cooperates.set(false);
            engine.0.glances.set(false);
            engine.0.spins.set(*spins);
        }
    }
}
