//! Memory that an algorithm needs for a moment, kept for the next one: operations that are run often allocate nothing.

use std::{
    cell::RefCell,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use crate::{Element, call::Call, element};

/// Pieces of memory that are kept: as many as the operations of a rank mostly use at a time.
const KEPT_MAX: usize = 8;

/// Memory that nobody uses.
#[derive(Default)]
pub(crate) struct Spare(RefCell<Vec<Vec<u64>>>);

impl Spare {
    /// The least piece that is large enough, or else any, or else an empty one.
    fn take(&self, words: usize) -> Vec<u64> {
        let mut kept = self.0.borrow_mut();
        let enough = kept
            .iter()
            .enumerate()
            .filter(|(_, piece)| piece.len() >= words);
        let best = enough.min_by_key(|(_, piece)| piece.len());
        match best.map(|(index, _)| index) {
            Some(index) => kept.swap_remove(index),
            None => kept.pop().unwrap_or_default(),
        }
    }

    fn keep(&self, piece: Vec<u64>) {
        let mut kept = self.0.borrow_mut();
        if kept.len() < KEPT_MAX {
            kept.push(piece);
        }
    }
}

/// A vector for a moment.
pub(crate) struct Scratch<'e, T> {
    words: Vec<u64>,
    bytes: usize,
    spare: &'e Spare,
    elements: PhantomData<T>,
}

impl Call<'_> {
    /// A vector of `len` elements, whatever they are at first.
    pub(crate) fn scratch<T: Element>(&self, len: usize) -> Scratch<'_, T> {
        const { element::check::<T>() };
        let spare = &self.group.engine.0.spare;
        let bytes = len * size_of::<T>();
        let needed = bytes.div_ceil(size_of::<u64>());
        let mut words = spare.take(needed);
        if words.len() < needed {
            words.resize(needed, 0);
        }
        Scratch {
            words,
            bytes,
            spare,
            elements: PhantomData,
        }
    }

    /// A copy of `data`.
    pub(crate) fn scratch_copy<T: Element>(&self, data: &[T]) -> Scratch<'_, T> {
        let mut copy = self.scratch(data.len());
        crate::copy(&mut copy, data);
        copy
    }
}

impl<T: Element> Deref for Scratch<'_, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        let bytes: &[u8] = bytemuck::cast_slice(&self.words);
        bytemuck::cast_slice(&bytes[..self.bytes])
    }
}

impl<T: Element> DerefMut for Scratch<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.words);
        bytemuck::cast_slice_mut(&mut bytes[..self.bytes])
    }
}

impl<T> Drop for Scratch<'_, T> {
    fn drop(&mut self) {
        self.spare.keep(std::mem::take(&mut self.words));
    }
}
