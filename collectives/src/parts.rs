//! Vectors of different lengths, one from each member.

use std::ops::{Index, Range};

use crate::Element;

/// A vector from each member of a group, one after another in one allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts<T> {
    elements: Vec<T>,
    ends: Vec<usize>,
}

impl<T: Element> Parts<T> {
    pub(crate) fn with_lens(lens: impl Iterator<Item = usize>) -> Self {
        let ends: Vec<usize> = lens
            .scan(0, |end, len| {
                *end += len;
                Some(*end)
            })
            .collect();
        let len = ends.last().copied().unwrap_or(0);
        Self {
            elements: vec![bytemuck::Zeroable::zeroed(); len],
            ends,
        }
    }

    fn range(&self, member: usize) -> Range<usize> {
        let start = member.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[member]
    }

    pub(crate) fn part_mut(&mut self, member: usize) -> &mut [T] {
        let range = self.range(member);
        &mut self.elements[range]
    }

    /// Members.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All elements, in the order of the members.
    pub fn elements(&self) -> &[T] {
        &self.elements
    }

    /// The same, to keep.
    pub fn into_elements(self) -> Vec<T> {
        self.elements
    }

    /// The vector of each member.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[T]> {
        (0..self.len()).map(|member| &self[member])
    }
}

/// The vector of a member.
///
/// # Panics
///
/// If there is no such member.
impl<T: Element> Index<usize> for Parts<T> {
    type Output = [T];

    fn index(&self, member: usize) -> &[T] {
        &self.elements[self.range(member)]
    }
}
