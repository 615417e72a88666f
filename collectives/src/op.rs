//! How two vectors become one.
//!
//! Every operation has to be associative. One that is not commutative is applied in the order of the ranks,
//! whatever the algorithm. Sums of floats are not quite associative: how they are grouped depends on the
//! algorithm, hence on lengths and on the number of ranks; [`ExactSum`](crate::ExactSum) does not.

use crate::Element;

/// Combines vectors of equal length, element by element.
pub trait Op<T: Element>: Clone {
    /// Its name, which all members of a group have to agree on.
    fn name(&self) -> &'static str;

    /// Whether the operands may change places.
    fn is_commutative(&self) -> bool {
        true
    }

    /// Replaces each element of `left` by what it and that of `right` make, in this order.
    fn combine(&self, left: &mut [T], right: &[T]);

    /// The same, written to the right operand. What it writes has the same bits, so that all members get the same.
    fn combine_into_right(&self, left: &[T], right: &mut [T]) {
        self.combine(right, left);
    }

    /// The same, written elsewhere: all three have the same length.
    fn combine_to(&self, out: &mut [T], left: &[T], right: &[T]) {
        crate::copy(out, left);
        self.combine(out, right);
    }
}

/// A type with the arithmetic of the built-in operations.
pub trait Number: Element {
    /// The sum; of integers, modulo their size.
    fn sum(self, other: Self) -> Self;
    /// The product; of integers, modulo their size.
    fn product(self, other: Self) -> Self;
    /// The lesser; of floats, the one that is a number.
    fn lesser(self, other: Self) -> Self;
    /// The greater; of floats, the one that is a number.
    fn greater(self, other: Self) -> Self;
    /// Whether it comes before `other`.
    fn is_less(self, other: Self) -> bool;
}

/// A type of bits.
pub trait Bits: Element {
    /// Bits that are set in both.
    fn and(self, other: Self) -> Self;
    /// Bits that are set in either.
    fn or(self, other: Self) -> Self;
    /// Bits that are set in one alone.
    fn xor(self, other: Self) -> Self;
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Number for $type {
            #[inline(always)]
            fn sum(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn product(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn lesser(self, other: Self) -> Self {
                self.min(other)
            }
            #[inline(always)]
            fn greater(self, other: Self) -> Self {
                self.max(other)
            }
            #[inline(always)]
            fn is_less(self, other: Self) -> bool {
                self < other
            }
        }

        impl Bits for $type {
            #[inline(always)]
            fn and(self, other: Self) -> Self {
                self & other
            }
            #[inline(always)]
            fn or(self, other: Self) -> Self {
                self | other
            }
            #[inline(always)]
            fn xor(self, other: Self) -> Self {
                self ^ other
            }
        }
    )*};
}

macro_rules! floats {
    ($($type:ty),*) => {$(
        impl Number for $type {
            #[inline(always)]
            fn sum(self, other: Self) -> Self {
                self + other
            }
            #[inline(always)]
            fn product(self, other: Self) -> Self {
                self * other
            }
            #[inline(always)]
            fn lesser(self, other: Self) -> Self {
                self.min(other)
            }
            #[inline(always)]
            fn greater(self, other: Self) -> Self {
                self.max(other)
            }
            #[inline(always)]
            fn is_less(self, other: Self) -> bool {
                self < other
            }
        }
    )*};
}

integers!(u8, u16, u32, u64, usize, i8, i16, i32, i64, isize);
floats!(f32, f64);

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident, $text:literal, $bound:ident, $function:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name;

        impl<T: $bound> Op<T> for $name {
            fn name(&self) -> &'static str {
                $text
            }

            #[inline]
            fn combine(&self, left: &mut [T], right: &[T]) {
                for (left, &right) in left.iter_mut().zip(right) {
                    *left = left.$function(right);
                }
            }

            #[inline]
            fn combine_into_right(&self, left: &[T], right: &mut [T]) {
                for (&left, right) in left.iter().zip(right) {
                    *right = left.$function(*right);
                }
            }

            #[inline]
            fn combine_to(&self, out: &mut [T], left: &[T], right: &[T]) {
                for ((out, &left), &right) in out.iter_mut().zip(left).zip(right) {
                    *out = left.$function(right);
                }
            }
        }
    )*};
}

operations! {
    /// The sum; of integers, modulo their size.
    Sum, "sum", Number, sum;
    /// The product; of integers, modulo their size.
    Product, "product", Number, product;
    /// The least; of floats, numbers are less than what is none.
    Min, "min", Number, lesser;
    /// The greatest; of floats, numbers are greater than what is none.
    Max, "max", Number, greater;
    /// Bits that are set in all operands.
    And, "and", Bits, and;
    /// Bits that are set in any operand.
    Or, "or", Bits, or;
    /// Bits that are set in an odd number of operands.
    Xor, "xor", Bits, xor;
}

/// The least value and where it is: elements are pairs of a value and its place. Of equal values, the one whose place
/// comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinLoc;

/// The greatest value and where it is: elements are pairs of a value and its place. Of equal values, the one whose
/// place comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxLoc;

impl MinLoc {
    /// Whether what two elements make is the right one.
    fn is_of_right<T: Number>(left: &[T; 2], right: &[T; 2]) -> bool {
        right[0].is_less(left[0]) || !left[0].is_less(right[0]) && right[1].is_less(left[1])
    }
}

impl<T: Number> Op<[T; 2]> for MinLoc {
    fn name(&self) -> &'static str {
        "minloc"
    }

    fn combine(&self, left: &mut [[T; 2]], right: &[[T; 2]]) {
        for (left, right) in left.iter_mut().zip(right) {
            if Self::is_of_right(left, right) {
                *left = *right;
            }
        }
    }

    fn combine_into_right(&self, left: &[[T; 2]], right: &mut [[T; 2]]) {
        for (left, right) in left.iter().zip(right) {
            if !Self::is_of_right(left, right) {
                *right = *left;
            }
        }
    }
}

impl MaxLoc {
    /// Whether what two elements make is the right one.
    fn is_of_right<T: Number>(left: &[T; 2], right: &[T; 2]) -> bool {
        left[0].is_less(right[0]) || !right[0].is_less(left[0]) && right[1].is_less(left[1])
    }
}

impl<T: Number> Op<[T; 2]> for MaxLoc {
    fn name(&self) -> &'static str {
        "maxloc"
    }

    fn combine(&self, left: &mut [[T; 2]], right: &[[T; 2]]) {
        for (left, right) in left.iter_mut().zip(right) {
            if Self::is_of_right(left, right) {
                *left = *right;
            }
        }
    }

    fn combine_into_right(&self, left: &[[T; 2]], right: &mut [[T; 2]]) {
        for (left, right) in left.iter().zip(right) {
            if !Self::is_of_right(left, right) {
                *right = *left;
            }
        }
    }
}

/// An operation of the caller's own, see [`by`] and [`ordered_by`].
#[derive(Debug, Clone, Copy)]
pub struct By<F> {
    combine: F,
    is_commutative: bool,
}

/// The commutative operation that `combine` computes for two elements.
///
/// ```
/// use collectives::op::{self, Op};
///
/// let mut left = [3u32, 8];
/// op::by(|a: u32, b: u32| a.max(b)).combine(&mut left, &[5, 5]);
/// assert_eq!(left, [5, 8]);
/// ```
pub fn by<T: Element, F: Fn(T, T) -> T + Clone>(combine: F) -> By<F> {
    By {
        combine,
        is_commutative: true,
    }
}

/// The operation that `combine` computes for two elements, the first of which comes from lower ranks.
pub fn ordered_by<T: Element, F: Fn(T, T) -> T + Clone>(combine: F) -> By<F> {
    By {
        combine,
        is_commutative: false,
    }
}

impl<T: Element, F: Fn(T, T) -> T + Clone> Op<T> for By<F> {
    fn name(&self) -> &'static str {
        if self.is_commutative {
            "a function"
        } else {
            "an ordered function"
        }
    }

    fn is_commutative(&self) -> bool {
        self.is_commutative
    }

    fn combine(&self, left: &mut [T], right: &[T]) {
        for (left, &right) in left.iter_mut().zip(right) {
            *left = (self.combine)(*left, right);
        }
    }

    fn combine_into_right(&self, left: &[T], right: &mut [T]) {
        for (&left, right) in left.iter().zip(right) {
            *right = (self.combine)(left, *right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOATS: [f64; 5] = [0.0, -0.0, 1.0, f64::NAN, -f64::NAN];

    fn bits<T: Element>(value: T) -> Vec<u8> {
        bytemuck::bytes_of(&value).to_vec()
    }

    /// Zeros of both signs, and what is no number: for these, what floats make depends on which comes first.
    fn is_the_same_on_either_side<T: Element>(op: impl Op<T>, values: &[T]) {
        for (&left, &right) in values
            .iter()
            .flat_map(|left| values.iter().map(move |right| (left, right)))
        {
            let (mut to_left, mut to_right) = ([left], [right]);
            op.combine(&mut to_left, &[right]);
            op.combine_into_right(&[left], &mut to_right);
            assert_eq!(bits(to_left), bits(to_right), "{}", op.name());
        }
    }

    #[test]
    fn what_two_operands_make_has_the_same_bits_on_either_side() {
        is_the_same_on_either_side(Sum, &FLOATS);
        is_the_same_on_either_side(Product, &FLOATS);
        is_the_same_on_either_side(Min, &FLOATS);
        is_the_same_on_either_side(Max, &FLOATS);
        is_the_same_on_either_side(by(f64::min), &FLOATS);
        let placed: Vec<[f64; 2]> = FLOATS.into_iter().map(|value| [value, 1.0]).collect();
        is_the_same_on_either_side(MinLoc, &placed);
        is_the_same_on_either_side(MaxLoc, &placed);
    }
}
