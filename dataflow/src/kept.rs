//! Records that are read as they come, and kept meanwhile for those who read them later.

use transport::{Buffer, Rank};

use crate::{
    Error, Record,
    exchange::Receiver,
    stage::{Input, Place, Progress, Push, Sink},
};

/// Keeps the records of a partition as they come.
pub(crate) trait Keep<T: Record>: Sized {
    /// Keeps one.
    fn push(&mut self, view: T::View<'_>);

    /// Whether that cannot go on.
    fn has_failed(&self) -> bool;

    /// Takes why.
    fn failure(&mut self) -> Option<Error>;

    /// All have come.
    ///
    /// # Errors
    ///
    /// What the medium says.
    fn finish(self, place: &Place) -> Result<(), Error>;
}

/// Hands records to who keeps them and to who reads them.
struct Both<'a, K, D> {
    keeper: Option<&'a mut K>,
    down: &'a mut D,
}

impl<T: Record, K: Keep<T>, D: Sink<T>> Push<T> for Both<'_, K, D> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        if let Some(keeper) = &mut self.keeper {
            keeper.push(T::shorten(view));
        }
        self.down.push(view);
    }
}

impl<T: Record, K: Keep<T>, D: Sink<T>> Sink<T> for Both<'_, K, D> {
    #[inline]
    fn is_full(&self) -> bool {
        self.down.is_full()
            || self
                .keeper
                .as_ref()
                .is_some_and(|keeper| keeper.has_failed())
    }
}

/// Records that come from the task that computes them, and who keeps them, if anybody does.
pub(crate) struct Computed<T: Record, K> {
    receiver: Receiver<T>,
    keeper: Option<Box<K>>,
}

impl<T: Record, K: Keep<T>> Computed<T, K> {
    pub(crate) fn new(place: &Place, keeper: Option<Box<K>>) -> Self {
        Self {
            receiver: Receiver::new(place, 0),
            keeper,
        }
    }

    pub(crate) fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.receiver.receive(port, from, batch)
    }

    pub(crate) fn ended(&mut self, port: usize, from: Rank) {
        self.receiver.ended(port, from);
    }

    /// Pushes some on, and has them kept; once all have come, that is final.
    pub(crate) fn poll<D: Sink<T>>(
        &mut self,
        down: &mut D,
        place: &Place,
    ) -> Result<Progress, Error> {
        let progress = self.receiver.poll(&mut Both {
            keeper: self.keeper.as_deref_mut(),
            down,
        })?;
        if let Some(failed) = self.keeper.as_mut().and_then(|keeper| keeper.failure()) {
            return Err(failed);
        }
        if progress == Progress::Done
            && let Some(keeper) = self.keeper.take()
        {
            keeper.finish(place)?;
        }
        Ok(progress)
    }

    pub(crate) fn last(&self) -> String {
        self.receiver.last()
    }
}
