//! How two partitions become one.

use crate::{Element, op::Op};

/// Makes one of two partitions that meet under one id: a function of both, or one of the types here.
pub trait Combiner<P> {
    /// Replaces `left` by what it and `right` make, in this order.
    ///
    /// # Errors
    ///
    /// Why they cannot be combined.
    fn combine(&self, left: &mut P, right: P) -> Result<(), String>;

    /// The same with a right partition that still lies in a message, as [`Payload::encode`](super::Payload::encode)
    /// wrote it: `None` if that has to be read first. Spares a copy where there is something to gain.
    fn combine_bytes(&self, left: &mut P, right: &[u8]) -> Option<Result<(), String>> {
        let _ = (left, right);
        None
    }
}

impl<P, F: Fn(&mut P, P)> Combiner<P> for F {
    fn combine(&self, left: &mut P, right: P) -> Result<(), String> {
        self(left, right);
        Ok(())
    }
}

/// Combines vectors of equal length element by element, such as by [`Sum`](crate::op::Sum).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elementwise<O>(pub O);

impl<T: Element, O: Op<T>> Combiner<Vec<T>> for Elementwise<O> {
    fn combine(&self, left: &mut Vec<T>, right: Vec<T>) -> Result<(), String> {
        check_lengths(left.len(), right.len())?;
        self.0.combine(left, &right);
        Ok(())
    }

    fn combine_bytes(&self, left: &mut Vec<T>, right: &[u8]) -> Option<Result<(), String>> {
        let right: &[T] = bytemuck::try_cast_slice(right).ok()?;
        Some(check_lengths(left.len(), right.len()).map(|()| self.0.combine(left, right)))
    }
}

fn check_lengths(left: usize, right: usize) -> Result<(), String> {
    if left == right {
        return Ok(());
    }
    Err(format!("{left} elements cannot be combined with {right}"))
}

/// Has the partition that comes later take the place of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replace;

impl<P> Combiner<P> for Replace {
    fn combine(&self, left: &mut P, right: P) -> Result<(), String> {
        *left = right;
        Ok(())
    }
}

/// A combiner that somebody else owns.
pub(super) struct Borrowed<'c, C>(pub(super) &'c C);

impl<P, C: Combiner<P>> Combiner<P> for Borrowed<'_, C> {
    fn combine(&self, left: &mut P, right: P) -> Result<(), String> {
        self.0.combine(left, right)
    }

    fn combine_bytes(&self, left: &mut P, right: &[u8]) -> Option<Result<(), String>> {
        self.0.combine_bytes(left, right)
    }
}
