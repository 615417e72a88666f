//! Sets whose type does not tell how they are made.

use std::{fmt, sync::Arc};

use transport::{Buffer, Rank};

use crate::{
    Error, Record,
    graph::Extent,
    operator::narrow::Pass,
    schedule::Split,
    stage::{Fused, Input, Narrow, Place, Progress, Push, Sink},
    time::Watermark,
    tset::{Source, TSet},
};

impl<S, N> TSet<S, N>
where
    S: Source,
    N: Narrow<S::Out>,
{
    /// The same records by a type that tells nothing but theirs: so that sets can be kept together, be returned by functions
    /// that choose between several, and be built in loops, in which a type would grow with each turn.
    ///
    /// It costs a virtual call for each record where one chain of operators meets the next, and nothing else: it is no exchange.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let mut numbers = collection(vec![1u64, 2, 3]).boxed();
    /// for power in 1..=3 {
    ///     numbers = match power % 2 {
    ///         0 => numbers.filter(|n| n % 3 != 0).boxed(),
    ///         _ => numbers.map(move |n| n * 10 + power).boxed(),
    ///     };
    /// }
    /// assert_eq!(inline(&numbers.collect())?, [113, 313]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn boxed(self) -> TSet<Boxed<N::Out>, Pass> {
        self.fused("", |source, narrow| Boxed::of(Chain { source, narrow }))
    }
}

/// A source of any kind, and the operators behind it.
pub struct Boxed<T>(Arc<dyn AnySource<T>>);

impl<T: Record> Boxed<T> {
    pub(crate) fn of(source: impl AnySource<T> + 'static) -> Self {
        Self(Arc::new(source))
    }
}

impl<T> fmt::Debug for Boxed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Boxed")
    }
}

pub(crate) trait AnySource<T: Record>: Send + Sync {
    fn build(&self, place: &Place) -> Result<Box<dyn AnyInput<T>>, Error>;

    fn extent(&self) -> Extent;

    fn gives_time(&self) -> bool;

    fn aligns(&self) -> bool;

    fn splits(&self, instances: u32) -> Vec<Split>;
}

struct Chain<S, N> {
    source: Arc<S>,
    narrow: N,
}

impl<S: Source, N: Narrow<S::Out>> AnySource<N::Out> for Chain<S, N> {
    fn build(&self, place: &Place) -> Result<Box<dyn AnyInput<N::Out>>, Error> {
        let input = self.source.build(place)?;
        let fused = Fused::new(input, self.narrow.clone(), place);
        Ok(Box::new(Erased(fused)))
    }

    fn extent(&self) -> Extent {
        self.source.extent()
    }

    fn gives_time(&self) -> bool {
        self.source.gives_time() || self.narrow.gives_time()
    }

    fn aligns(&self) -> bool {
        self.source.aligns()
    }

    fn splits(&self, instances: u32) -> Vec<Split> {
        Source::splits(&*self.source, instances)
    }
}

impl<T: Record> Source for Boxed<T> {
    type Input = BoxedInput<T>;
    type Out = T;

    fn build(&self, place: &Place) -> Result<BoxedInput<T>, Error> {
        Ok(BoxedInput(self.0.build(place)?))
    }

    fn extent(&self) -> Extent {
        self.0.extent()
    }

    fn gives_time(&self) -> bool {
        self.0.gives_time()
    }

    fn aligns(&self) -> bool {
        self.0.aligns()
    }

    fn splits(&self, instances: u32) -> Vec<Split> {
        self.0.splits(instances)
    }
}

/// An input of any kind.
pub struct BoxedInput<T>(Box<dyn AnyInput<T>>);

impl<T> fmt::Debug for BoxedInput<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoxedInput")
    }
}

/// An [`Input`] that pushes into whatever there is.
pub(crate) trait AnyInput<T: Record> {
    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error>;

    fn ended(&mut self, port: usize, from: Rank);

    fn poll(&mut self, down: &mut dyn Sink<T>) -> Result<Progress, Error>;

    fn advance(&mut self, port: usize, sender: u32, watermark: Watermark);

    fn watermark(&mut self) -> Watermark;

    fn stop(&mut self);

    fn is_reading(&self) -> bool;

    fn last(&self) -> String;
}

/// An input whose type is to be forgotten.
pub(crate) struct Erased<I>(pub(crate) I);

impl<I: Input> AnyInput<I::Out> for Erased<I> {
    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.0.receive(port, from, batch)
    }

    fn ended(&mut self, port: usize, from: Rank) {
        self.0.ended(port, from);
    }

    fn poll(&mut self, down: &mut dyn Sink<I::Out>) -> Result<Progress, Error> {
        self.0.poll(&mut Any(down))
    }

    fn advance(&mut self, port: usize, sender: u32, watermark: Watermark) {
        self.0.advance(port, sender, watermark);
    }

    fn watermark(&mut self) -> Watermark {
        self.0.watermark()
    }

    fn stop(&mut self) {
        self.0.stop();
    }

    fn is_reading(&self) -> bool {
        self.0.is_reading()
    }

    fn last(&self) -> String {
        self.0.last()
    }
}

/// A sink of any kind.
struct Any<'a, T>(&'a mut dyn Sink<T>);

impl<T: Record> Push<T> for Any<'_, T> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        self.0.push(view);
    }
}

impl<T: Record> Sink<T> for Any<'_, T> {
    #[inline]
    fn is_full(&self) -> bool {
        self.0.is_full()
    }
}

impl<T: Record> Input for BoxedInput<T> {
    type Out = T;

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.0.receive(port, from, batch)
    }

    fn ended(&mut self, port: usize, from: Rank) {
        self.0.ended(port, from);
    }

    fn poll<D: Sink<T>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        self.0.poll(down)
    }

    fn advance(&mut self, port: usize, sender: u32, watermark: Watermark) {
        self.0.advance(port, sender, watermark);
    }

    fn watermark(&mut self) -> Watermark {
        self.0.watermark()
    }

    fn stop(&mut self) {
        self.0.stop();
    }

    fn is_reading(&self) -> bool {
        self.0.is_reading()
    }

    fn last(&self) -> String {
        self.0.last()
    }
}
