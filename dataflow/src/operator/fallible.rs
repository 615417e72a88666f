//! Functions of the program that can fail. A failure names the operator, the instance and the record, and ends the
//! job.

use std::{error, fmt, marker::PhantomData, panic::Location};

use crate::{
    Encode, Record,
    graph::Job,
    operator::narrow::{Out, Then},
    stage::{Failure, Narrow, Push},
    tset::{Source, TSet},
};

/// What a function of the program may fail with.
type Cause = Box<dyn error::Error + Send + Sync>;

#[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
impl<S, N, T> TSet<S, N>
where
    S: Source,
    T: Record,
    N: Narrow<S::Out, Out = T>,
{
    /// As [`map`](Self::map), by a function that can fail. The first failure ends the job, with
    /// [`Error::Function`](crate::Error::Function).
    ///
    /// ```
    /// use dataflow::{collection, inline, one_line};
    ///
    /// let texts = ["1", "two", "3"].map(String::from);
    /// let numbers = collection(texts.into()).try_map(|text| text.parse::<u64>()).collect();
    /// let error = one_line(&inline(&numbers).unwrap_err());
    /// assert!(error.contains("try_map at "), "{error}");
    /// assert!(error.ends_with("item 1 of the collection: invalid digit found in string"), "{error}");
    /// ```
    #[track_caller]
    pub fn try_map<E, X, F>(self, function: F) -> TSet<S, Then<N, TryMap<F>, T>>
    where
        E: Encode,
        X: Into<Cause>,
        F: FnMut(T::View<'_>) -> Result<E, X> + Clone + Send + Sync + 'static,
    {
        let failed = Failed::new("try_map");
        self.then(TryMap { function, failed }, "try_map")
    }

    /// As [`flat_map`](Self::flat_map), by a function that can fail. The first failure ends the job, with
    /// [`Error::Function`](crate::Error::Function).
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let texts = collection(vec!["1 2".to_owned(), "3".to_owned()]);
    /// let numbers = texts.try_flat_map(|text, out| {
    ///     for number in text.split(' ') {
    ///         out.push(number.parse::<u64>()?);
    ///     }
    ///     Ok::<_, std::num::ParseIntError>(())
    /// });
    /// assert_eq!(inline(&numbers.collect())?, [1, 2, 3]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn try_flat_map<U, X, F>(self, function: F) -> TSet<S, Then<N, TryFlatMap<F, U>, T>>
    where
        U: Record,
        X: Into<Cause>,
        F: FnMut(T::View<'_>, &mut Out<'_, U>) -> Result<(), X> + Clone + Send + Sync + 'static,
    {
        let operator = TryFlatMap {
            function,
            failed: Failed::new("try_flat_map"),
            record: PhantomData,
        };
        self.then(operator, "try_flat_map")
    }

    /// As [`for_each`](Self::for_each), by a function that can fail. The first failure ends the job, with
    /// [`Error::Function`](crate::Error::Function).
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let small = |n: u64| if n < 3 { Ok(()) } else { Err(format!("{n} is too large")) };
    /// assert!(inline(&collection(vec![1u64, 2]).try_for_each(small)).is_ok());
    /// assert!(inline(&collection(vec![1u64, 5]).try_for_each(small)).is_err());
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn try_for_each<X, F>(self, function: F) -> Job<()>
    where
        X: Into<Cause>,
        F: FnMut(T::View<'_>) -> Result<(), X> + Clone + Send + Sync + 'static,
    {
        let failed = Failed::new("try_for_each");
        let done = self.then(TryMap { function, failed }, "try_for_each");
        done.for_each(|()| {})
    }
}

/// Whether a function has failed, and by what.
struct Failed {
    operator: &'static str,
    written_at: &'static Location<'static>,
    cause: Option<Cause>,
}

impl Failed {
    #[track_caller]
    fn new(operator: &'static str) -> Self {
        Self {
            operator,
            written_at: Location::caller(),
            cause: None,
        }
    }

    /// The failure, as a fact about the operator.
    fn take(&mut self) -> Option<Failure> {
        Some(Failure {
            operator: format!("{} at {}", self.operator, self.written_at),
            cause: self.cause.take()?,
        })
    }
}

/// Another instance has not failed.
impl Clone for Failed {
    fn clone(&self) -> Self {
        Self {
            cause: None,
            ..*self
        }
    }
}

/// Turns each record into another, or fails.
#[derive(Clone)]
pub struct TryMap<F> {
    function: F,
    failed: Failed,
}

impl<T, E, X, F> Narrow<T> for TryMap<F>
where
    T: Record,
    E: Encode,
    X: Into<Cause>,
    F: FnMut(T::View<'_>) -> Result<E, X> + Clone + Send + Sync + 'static,
{
    type Out = E::Record;

    #[inline]
    fn push<D: Push<E::Record>>(&mut self, view: T::View<'_>, down: &mut D) {
        if self.failed.cause.is_some() {
            return;
        }
        match (self.function)(view) {
            Ok(value) => value.with_view(|view| down.push(view)),
            Err(cause) => self.failed.cause = Some(cause.into()),
        }
    }

    #[inline]
    fn has_failed(&self) -> bool {
        self.failed.cause.is_some()
    }

    fn failure(&mut self) -> Option<Failure> {
        self.failed.take()
    }
}

impl<F> fmt::Debug for TryMap<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TryMap")
    }
}

/// Turns each record into any number of others, or fails.
pub struct TryFlatMap<F, U> {
    function: F,
    failed: Failed,
    record: PhantomData<fn(U)>,
}

impl<F: Clone, U> Clone for TryFlatMap<F, U> {
    fn clone(&self) -> Self {
        Self {
            function: self.function.clone(),
            failed: self.failed.clone(),
            record: PhantomData,
        }
    }
}

impl<T, U, X, F> Narrow<T> for TryFlatMap<F, U>
where
    T: Record,
    U: Record,
    X: Into<Cause>,
    F: FnMut(T::View<'_>, &mut Out<'_, U>) -> Result<(), X> + Clone + Send + Sync + 'static,
{
    type Out = U;

    #[inline]
    fn push<D: Push<U>>(&mut self, view: T::View<'_>, down: &mut D) {
        if self.failed.cause.is_some() {
            return;
        }
        if let Err(cause) = (self.function)(view, &mut Out::new(down)) {
            self.failed.cause = Some(cause.into());
        }
    }

    #[inline]
    fn has_failed(&self) -> bool {
        self.failed.cause.is_some()
    }

    fn failure(&mut self) -> Option<Failure> {
        self.failed.take()
    }
}

impl<F, U> fmt::Debug for TryFlatMap<F, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TryFlatMap")
    }
}
