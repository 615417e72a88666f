//! Records that a function makes of numbers.

use std::{fmt, time::Duration};

use crate::{
    Encode, Error,
    graph::Extent,
    operator::narrow::Pass,
    stage::{Input, Place, Progress, Sink},
    tset::{Source, TSet},
};

/// Records made in one turn, between which messages are looked for.
const MADE_A_TURN: u64 = 4096;

/// What `function` makes of each number from 0 up to `number`, of which each instance takes its share.
///
/// ```
/// use dataflow::{generate, inline};
///
/// let squares = generate(4, |n| n * n).collect();
/// assert_eq!(inline(&squares)?, [0, 1, 4, 9]);
/// # Ok::<(), dataflow::Error>(())
/// ```
pub fn generate<E, F>(number: u64, function: F) -> TSet<Generate<F>, Pass>
where
    E: Encode,
    F: FnMut(u64) -> E + Clone + Send + Sync + 'static,
{
    let name = format!("generate {number}");
    let source = Generate {
        number: Some(number),
        per_second: None,
        function,
    };
    TSet::from_source(source, name)
}

/// What `function` makes of each number from 0 up, without end: until the job is
/// [stopped](crate::Job::stopped_by) or nobody wants more. Of `n` instances, that of place `i` makes `i`, `n + i`, `2n + i` and so on.
///
/// ```
/// use dataflow::{generate_unbounded, inline};
///
/// let squares = inline(&generate_unbounded(|n| n * n).take(3).collect())?;
/// assert_eq!(squares, [0, 1, 4]);
/// # Ok::<(), dataflow::Error>(())
/// ```
pub fn generate_unbounded<E, F>(function: F) -> TSet<Generate<F>, Pass>
where
    E: Encode,
    F: FnMut(u64) -> E + Clone + Send + Sync + 'static,
{
    let source = Generate {
        number: None,
        per_second: None,
        function,
    };
    TSet::from_source(source, "generate".to_owned())
}

impl<E, F> TSet<Generate<F>, Pass>
where
    E: Encode,
    F: FnMut(u64) -> E + Clone + Send + Sync + 'static,
{
    /// Has all instances together make so many records a second at most, evenly over time.
    ///
    /// ```
    /// use dataflow::{generate_unbounded, inline};
    ///
    /// let ticks = generate_unbounded(|n| n).per_second(100.0).take(3).collect();
    /// assert_eq!(inline(&ticks)?, [0, 1, 2]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn per_second(self, records: f64) -> Self {
        let suffix = format!(" at {records}/s");
        let limit = |source: &Generate<F>| Generate {
            per_second: Some(records),
            ..source.clone()
        };
        self.with_source(limit, &suffix)
    }
}

/// The source of [`generate`] and [`generate_unbounded`].
#[derive(Clone)]
pub struct Generate<F> {
    /// How many, if there is an end.
    number: Option<u64>,
    per_second: Option<f64>,
    function: F,
}

impl<E, F> Source for Generate<F>
where
    E: Encode,
    F: FnMut(u64) -> E + Clone + Send + Sync + 'static,
{
    type Input = Generator<F>;
    type Out = E::Record;

    fn build(&self, place: &Place) -> Result<Generator<F>, Error> {
        let instances = u128::from(place.instances);
        let cut = |number: u64, instance: u32| {
            (u128::from(number) * u128::from(instance) / instances) as u64
        };
        let (next, end, step) = match self.number {
            Some(number) => {
                let end = cut(number, place.instance + 1);
                (cut(number, place.instance), end, 1)
            }
            None => (place.instance.into(), u64::MAX, place.instances.into()),
        };
        let instances = f64::from(place.instances);
        let pace = self.per_second.map(|records| Pace {
            per_second: (records / instances).max(f64::MIN_POSITIVE),
            since: None,
            made: f64::from(place.instance) / instances,
        });
        Ok(Generator {
            next,
            end,
            step,
            pace,
            function: self.function.clone(),
            place: place.clone(),
        })
    }

    fn extent(&self) -> Extent {
        match self.number {
            Some(_) => Extent::AsInputs,
            None => Extent::Unbounded,
        }
    }
}

impl<F> fmt::Debug for Generate<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generate")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// Makes one instance's share.
pub struct Generator<F> {
    next: u64,
    end: u64,
    step: u64,
    pace: Option<Pace>,
    function: F,
    place: Place,
}

/// How fast an instance may be.
struct Pace {
    per_second: f64,
    /// When it began.
    since: Option<Duration>,
    /// Records so far, and the part of one by which instances begin one after the other.
    made: f64,
}

/// The longest that an instance waits without a look at the time.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl Pace {
    /// How many may be made at this time.
    fn allowed(&mut self, now: Duration) -> u64 {
        let since = *self.since.get_or_insert(now);
        let behind = (now - since).as_secs_f64() * self.per_second - self.made;
        if behind < 0.0 { 0 } else { behind as u64 + 1 }
    }

    /// When the next one may be made.
    fn due(&self, now: Duration) -> Duration {
        let since = self.since.unwrap_or(now);
        let after = Duration::try_from_secs_f64(self.made / self.per_second);
        let due = since + after.unwrap_or(Duration::MAX / 2);
        due.clamp(now + Duration::from_nanos(1), now + LOOK_INTERVAL)
    }
}

impl<E, F> Input for Generator<F>
where
    E: Encode,
    F: FnMut(u64) -> E + Clone + Send + Sync + 'static,
{
    type Out = E::Record;

    fn poll<D: Sink<E::Record>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if self.next >= self.end {
            return Ok(Progress::Done);
        }
        let mut most = MADE_A_TURN;
        if let Some(pace) = &mut self.pace {
            let now = self.place.clock.now();
            most = pace.allowed(now).min(most);
            if most == 0 {
                self.place.clock.wake_at(pace.due(now));
                return Ok(Progress::None);
            }
        }
        let most = (self.end - self.next).div_ceil(self.step).min(most);
        let (mut next, mut made) = (self.next, 0);
        while made < most && !down.is_full() {
            (self.function)(next).with_view(|view| down.push(view));
            next = next.saturating_add(self.step);
            made += 1;
        }
        self.next = next;
        if let Some(pace) = &mut self.pace {
            pace.made += made as f64;
        }
        self.place.counters.read(made, 0);
        Ok(if self.next >= self.end {
            Progress::Done
        } else {
            Progress::Made
        })
    }

    fn stop(&mut self) {
        self.end = self.next;
    }

    fn last(&self) -> String {
        format!("what was made of {}", self.next.wrapping_sub(self.step))
    }
}

impl<F> fmt::Debug for Generator<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generator")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
