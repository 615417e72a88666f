//! Where event time begins.

use std::{fmt, time::Duration};

use crate::{
    Record,
    operator::narrow::Then,
    stage::{Narrow, Push},
    time::{Clock, EventTime, Watermark},
    tset::{Source, TSet},
};

#[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
impl<S, N, T> TSet<S, N>
where
    S: Source,
    T: Record,
    N: Narrow<S::Out, Out = T>,
{
    /// Lets event time flow with the records, of which `time` says when they happened. Where windows close and joins forget, records are expected that are up to
    /// `out_of_order` earlier than the latest that the same instance has seen here, in the unit of the program; what is
    /// earlier than that is late. Records change in nothing.
    ///
    /// ```
    /// use dataflow::{Windows, collection, inline};
    ///
    /// // Who did something, and when.
    /// let events = collection(vec![("a".to_owned(), 3i64), ("b".to_owned(), 1), ("a".to_owned(), 12)]);
    /// let counts = events
    ///     .watermarks(5, |(_, time)| time)
    ///     .window_by_key(Windows::tumbling(10), |time| time)
    ///     .aggregate(|of| of.count());
    /// let mut counts = inline(&counts.collect())?;
    /// counts.sort();
    /// let (a, b) = ("a".to_owned(), "b".to_owned());
    /// assert_eq!(counts, [(a.clone(), ((0, 10), 1)), (a, ((10, 20), 1)), (b, ((0, 10), 1))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn watermarks<F>(
        self,
        out_of_order: EventTime,
        time: F,
    ) -> TSet<S, Then<N, Watermarks<F>, T>>
    where
        F: Fn(T::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
    {
        let operator = Watermarks {
            time,
            out_of_order: out_of_order.max(0),
            latest: EventTime::MIN,
            idle_after: None,
            has_news: false,
            quiet_since: None,
        };
        self.then(operator, "watermarks")
    }
}

impl<S, N, T, F> TSet<S, Then<N, Watermarks<F>, T>>
where
    S: Source,
    T: Record,
    N: Narrow<S::Out, Out = T>,
    F: Fn(T::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
{
    /// Has nobody wait for an instance that has seen no record for so long, on the clock: of several sources, those go
    /// on that have something to say. What comes after that may be late.
    pub fn idle_after(mut self, quiet: Duration) -> Self {
        self.last_mut().idle_after = Some(quiet);
        self
    }
}

/// Finds out how far event time is.
#[derive(Clone)]
pub struct Watermarks<F> {
    time: F,
    out_of_order: EventTime,
    latest: EventTime,
    idle_after: Option<Duration>,
    /// Whether records have come since somebody asked.
    has_news: bool,
    quiet_since: Option<Duration>,
}

impl<T, F> Narrow<T> for Watermarks<F>
where
    T: Record,
    F: Fn(T::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
{
    type Out = T;

    #[inline]
    fn push<D: Push<T>>(&mut self, view: T::View<'_>, down: &mut D) {
        self.latest = self.latest.max((self.time)(view));
        self.has_news = true;
        down.push(view);
    }

    fn watermark(&mut self, _before: Watermark, clock: &Clock) -> Watermark {
        let has_news = std::mem::take(&mut self.has_news);
        if let Some(quiet) = self.idle_after {
            if has_news || self.quiet_since.is_none() {
                self.quiet_since = Some(clock.now());
            }
            let idle_at = self.quiet_since.unwrap_or_default() + quiet;
            if clock.now() >= idle_at {
                return Watermark::Idle;
            }
            clock.wake_at(idle_at);
        }
        Watermark::At(self.latest.saturating_sub(self.out_of_order))
    }

    fn gives_time(&self) -> bool {
        true
    }

    fn keeps_keys(&self) -> bool {
        true
    }
}

impl<F> fmt::Debug for Watermarks<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watermarks")
            .field("out_of_order", &self.out_of_order)
            .field("latest", &self.latest)
            .finish_non_exhaustive()
    }
}
