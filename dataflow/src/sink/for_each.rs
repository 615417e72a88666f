//! A function called with each record.

use crate::{
    Error, Record,
    stage::{Output, Push, Sink},
};

/// Calls its function with each record.
pub(crate) struct ForEach<F>(pub(crate) F);

impl<T: Record, F: FnMut(T::View<'_>)> Push<T> for ForEach<F> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        (self.0)(view);
    }
}

impl<T: Record, F: FnMut(T::View<'_>)> Sink<T> for ForEach<F> {
    fn is_full(&self) -> bool {
        false
    }
}

impl<T: Record, F: FnMut(T::View<'_>)> Output<T> for ForEach<F> {
    fn poll(&mut self) -> Result<bool, Error> {
        Ok(false)
    }

    fn finish(&mut self) -> Result<bool, Error> {
        Ok(true)
    }
}
