//! An operation that was called and is yet to be carried out.

use std::future::{Future, IntoFuture};

use crate::{Engine, Error, Group};

/// An operation of a group: `.await` it in a future, or [`wait`](Self::wait) for it in a program that does one thing
/// after another. It does nothing before.
#[must_use = "an operation does nothing until it is awaited or waited for"]
#[derive(Debug)]
pub struct Operation<'g, F> {
    engine: &'g Engine,
    future: F,
}

impl<T, F: Future<Output = Result<T, Error>>> Operation<'_, F> {
    /// Carries the operation out; sleeps while there is nothing to do. Others that are under way do not go on
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// Those of the operation, and those of [`Engine::block_on`].
    pub fn wait(self) -> Result<T, Error> {
        self.engine.block_on(self.future)
    }
}

impl<F: Future> IntoFuture for Operation<'_, F> {
    type Output = F::Output;
    type IntoFuture = F;

    fn into_future(self) -> F {
        self.future
    }
}

impl Group {
    #[inline]
    pub(crate) fn operation<F>(&self, future: F) -> Operation<'_, F> {
        self.engine.0.went_on.set(true);
        Operation {
            engine: &self.engine,
            future,
        }
    }
}
