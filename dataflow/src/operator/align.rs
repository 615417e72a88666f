//! Sources that keep step: none is far ahead in event time of the slowest.
//!
//! How far each such stream is on a rank is told to the ranks that have others, a few hundred times a second; who is ahead
//! of the least by more than its bound reads nothing more until that changes.

use std::{fmt, rc::Rc, sync::Arc, time::Duration};

use transport::{Buffer, Rank};

use crate::{
    Error, Record,
    graph::Extent,
    operator::{
        narrow::{Pass, Then},
        watermarks::Watermarks,
    },
    run::{Alignment, Step},
    schedule::Split,
    stage::{Fused, Input, Narrow, Place, Progress, Push, Sink},
    time::{EventTime, Watermark},
    tset::{BETWEEN, Source, TSet},
};

/// Records after which it is looked how far they have come.
const RECORDS_A_LOOK: usize = 64;
/// Looks in one turn, between which messages are looked for.
const LOOKS_A_TURN: usize = 16;
/// A stream that could not go on for so long, because its readers are behind, is not waited for.
const HELD_MAX: Duration = Duration::from_millis(100);

#[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
impl<S, N, T, F> TSet<S, Then<N, Watermarks<F>, T>>
where
    S: Source,
    T: Record,
    N: Narrow<S::Out, Out = T>,
    F: Fn(T::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
{
    /// Has this stream wait while its event time is further than `ahead` beyond that of the slowest stream of the job of which the
    /// same was said: sources of different speed then keep step, and what is kept until event time has come (windows, values that
    /// wait for a partner) is no more than what happens within that time. Each instance keeps step for itself.
    ///
    /// Nobody waits for a stream that has ended, is [idle](TSet::idle_after), or cannot go on because its readers are behind; but for
    /// one that has given nothing yet. An instance may be ahead by 64 records more, as it does not look at each.
    ///
    /// ```
    /// use dataflow::{generate, generate_unbounded, inline};
    ///
    /// let slow = generate(100, |n| n as i64).watermarks(0, |time| time).align_within(10);
    /// let fast = generate_unbounded(|n| n as i64).watermarks(0, |time| time).align_within(10);
    /// let both = slow.union(fast).take(150);
    /// assert_eq!(inline(&both.collect())?.len(), 150);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn align_within(
        self,
        ahead: EventTime,
    ) -> TSet<InStep<S, Then<N, Watermarks<F>, T>>, Pass> {
        let suffix = format!("{BETWEEN}align_within");
        self.fused(&suffix, |source, narrow| InStep {
            source,
            narrow,
            ahead: ahead.max(0),
        })
    }
}

/// A stream that keeps step with others.
pub struct InStep<S, N> {
    source: Arc<S>,
    narrow: N,
    ahead: EventTime,
}

impl<S: Source, N: Narrow<S::Out>> Source for InStep<S, N> {
    type Input = Stepping<S::Input, N>;
    type Out = N::Out;

    fn build(&self, place: &Place) -> Result<Self::Input, Error> {
        let input = self.source.build(place)?;
        Ok(Stepping {
            input: Fused::new(input, self.narrow.clone(), place),
            ahead: self.ahead,
            step: place.alignment.enter(),
            alignment: place.alignment.clone(),
            polled: Duration::ZERO,
            place: place.clone(),
        })
    }

    fn extent(&self) -> Extent {
        self.source.extent()
    }

    fn gives_time(&self) -> bool {
        true
    }

    fn aligns(&self) -> bool {
        true
    }

    fn splits(&self, instances: u32) -> Vec<Split> {
        Source::splits(&*self.source, instances)
    }
}

impl<S, N> fmt::Debug for InStep<S, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InStep")
            .field("ahead", &self.ahead)
            .finish_non_exhaustive()
    }
}

/// One instance of a stream that keeps step.
pub struct Stepping<I, N> {
    input: Fused<I, N>,
    ahead: EventTime,
    step: Step,
    alignment: Rc<Alignment>,
    /// When it could last go on.
    polled: Duration,
    place: Place,
}

impl<I: Input, N: Narrow<I::Out>> Stepping<I, N> {
    /// Whether it is too far ahead of others; takes note of how far it is.
    fn is_ahead(&mut self) -> bool {
        let watermark = self.input.watermark();
        self.step.is_at(watermark);
        let Watermark::At(time) = watermark else {
            return false;
        };
        time > self.alignment.least().saturating_add(self.ahead)
    }
}

impl<I: Input, N: Narrow<I::Out>> Input for Stepping<I, N> {
    type Out = N::Out;

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.input.receive(port, from, batch)
    }

    fn ended(&mut self, port: usize, from: Rank) {
        self.input.ended(port, from);
    }

    fn advance(&mut self, port: usize, sender: u32, watermark: Watermark) {
        self.input.advance(port, sender, watermark);
    }

    fn watermark(&mut self) -> Watermark {
        let watermark = self.input.watermark();
        let clock = &self.place.clock;
        let is_held = clock.now() > self.polled + HELD_MAX;
        if !is_held && clock.now() > self.polled {
            clock.wake_at(self.polled + HELD_MAX + Duration::from_nanos(1));
        }
        self.step.is_at(match is_held {
            true => Watermark::Idle,
            false => watermark,
        });
        watermark
    }

    fn poll<D: Sink<N::Out>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        self.polled = self.place.clock.now();
        let mut progress = Progress::None;
        for _ in 0..LOOKS_A_TURN {
            if self.is_ahead() {
                // Others of this rank may turn out to be held meanwhile.
                self.place.clock.wake_at(self.polled + HELD_MAX);
                break;
            }
            let mut few = Few {
                down,
                left: RECORDS_A_LOOK,
            };
            match self.input.poll(&mut few)? {
                Progress::Made => progress = Progress::Made,
                Progress::Done => return Ok(Progress::Done),
                Progress::None => break,
            }
            if down.is_full() {
                break;
            }
        }
        Ok(progress)
    }

    fn stop(&mut self) {
        self.input.stop();
    }

    fn is_reading(&self) -> bool {
        self.input.is_reading()
    }

    fn last(&self) -> String {
        self.input.last()
    }
}

impl<I, N> fmt::Debug for Stepping<I, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stepping")
            .field("ahead", &self.ahead)
            .finish_non_exhaustive()
    }
}

/// Takes a few records.
struct Few<'a, D> {
    down: &'a mut D,
    left: usize,
}

impl<T: Record, D: Sink<T>> Push<T> for Few<'_, D> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        self.left = self.left.saturating_sub(1);
        self.down.push(view);
    }
}

impl<T: Record, D: Sink<T>> Sink<T> for Few<'_, D> {
    #[inline]
    fn is_full(&self) -> bool {
        self.left == 0 || self.down.is_full()
    }
}
