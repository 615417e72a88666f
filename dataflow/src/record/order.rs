//! Records that have an order.

use std::cmp::Ordering;

use super::{Record, Slice};

/// A record that can be sorted by: its values have a total order, and each a number that tells most of it.
///
/// Sorting compares the numbers, which lie side by side, and looks at the values only where those are equal.
/// Integers, `bool` and `char` have their usual order, floats that of [`f64::total_cmp`], text that of its bytes,
/// `None` comes before everything, and tuples and lists go by their first difference.
pub trait Ordered: Record {
    /// Whether values with equal prefixes are equal.
    const PREFIX_IS_ALL: bool = false;

    /// A number that is no greater than those of greater values.
    fn prefix(view: Self::View<'_>) -> u64;

    /// How two values compare.
    fn compare(a: Self::View<'_>, b: Self::View<'_>) -> Ordering;

    /// The number of a list of such values.
    fn prefix_of_list(list: Slice<'_, Self>) -> u64
    where
        Self: Sized,
    {
        list.iter()
            .next()
            .map_or(0, |first| behind_none(Self::prefix(first)))
    }
}

/// The numbers of values that come after `None`, whose number is 0.
#[inline]
fn behind_none(prefix: u64) -> u64 {
    prefix >> 1 | 1 << 63
}

/// The first eight bytes, as a number in their order.
#[inline]
fn prefix_of_bytes(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(first) => u64::from_be_bytes(*first),
        None => {
            let mut first = [0; 8];
            first[..bytes.len()].copy_from_slice(bytes);
            u64::from_be_bytes(first)
        }
    }
}

macro_rules! plain {
    ($($type:ty, $all:literal: |$view:ident| $prefix:expr;)*) => {$(
        impl Ordered for $type {
            const PREFIX_IS_ALL: bool = $all;

            #[inline]
            fn prefix($view: $type) -> u64 {
                $prefix
            }

            #[inline]
            fn compare(a: $type, b: $type) -> Ordering {
                a.cmp(&b)
            }
        }
    )*};
}

plain! {
    u16, true: |view| view.into();
    u32, true: |view| view.into();
    u64, true: |view| view;
    u128, false: |view| (view >> 64) as u64;
    i8, true: |view| i64::prefix(view.into());
    i16, true: |view| i64::prefix(view.into());
    i32, true: |view| i64::prefix(view.into());
    i64, true: |view| view as u64 ^ 1 << 63;
    i128, false: |view| i64::prefix((view >> 64) as i64);
    bool, true: |view| view.into();
    char, true: |view| u32::from(view).into();
    (), true: |_view| 0;
}

impl Ordered for u8 {
    const PREFIX_IS_ALL: bool = true;

    #[inline]
    fn prefix(view: Self) -> u64 {
        view.into()
    }

    #[inline]
    fn compare(a: Self, b: Self) -> Ordering {
        a.cmp(&b)
    }

    #[inline]
    fn prefix_of_list(list: Slice<'_, Self>) -> u64 {
        prefix_of_bytes(&list)
    }
}

macro_rules! float {
    ($($type:ty, $signed:ty;)*) => {$(
        impl Ordered for $type {
            const PREFIX_IS_ALL: bool = true;

            /// The bits as a signed number, of which negative ones count backwards.
            #[inline]
            fn prefix(view: $type) -> u64 {
                let bits = view.to_bits() as $signed;
                let backwards = (bits >> (<$signed>::BITS - 1)) & <$signed>::MAX;
                <$signed>::prefix(bits ^ backwards)
            }

            #[inline]
            fn compare(a: $type, b: $type) -> Ordering {
                a.total_cmp(&b)
            }
        }
    )*};
}

float! {
    f32, i32;
    f64, i64;
}

impl Ordered for String {
    #[inline]
    fn prefix(view: &str) -> u64 {
        prefix_of_bytes(view.as_bytes())
    }

    #[inline]
    fn compare(a: &str, b: &str) -> Ordering {
        a.cmp(b)
    }
}

impl<const N: usize> Ordered for [u8; N] {
    const PREFIX_IS_ALL: bool = N <= 8;

    #[inline]
    fn prefix(view: &[u8; N]) -> u64 {
        prefix_of_bytes(view)
    }

    #[inline]
    fn compare(a: &[u8; N], b: &[u8; N]) -> Ordering {
        a.cmp(b)
    }
}

impl<T: Ordered> Ordered for Option<T> {
    #[inline]
    fn prefix(view: Self::View<'_>) -> u64 {
        view.map_or(0, |some| behind_none(T::prefix(some)))
    }

    fn compare(a: Self::View<'_>, b: Self::View<'_>) -> Ordering {
        match (a, b) {
            (Some(a), Some(b)) => T::compare(a, b),
            (a, b) => a.is_some().cmp(&b.is_some()),
        }
    }
}

impl<T: Ordered> Ordered for Vec<T> {
    #[inline]
    fn prefix(view: Slice<'_, T>) -> u64 {
        T::prefix_of_list(view)
    }

    fn compare(a: Slice<'_, T>, b: Slice<'_, T>) -> Ordering {
        let both = a.iter().zip(b.iter());
        let difference = both
            .map(|(a, b)| T::compare(a, b))
            .find(|order| order.is_ne());
        difference.unwrap_or_else(|| a.len().cmp(&b.len()))
    }
}

macro_rules! tuple {
    ($all:expr, $first:ident 0 $(, $type:ident $index:tt)*) => {
        impl<$first: Ordered $(, $type: Ordered)*> Ordered for ($first, $($type,)*) {
            const PREFIX_IS_ALL: bool = $all;

            #[inline]
            fn prefix(view: Self::View<'_>) -> u64 {
                $first::prefix(view.0)
            }

            fn compare(a: Self::View<'_>, b: Self::View<'_>) -> Ordering {
                $first::compare(a.0, b.0) $(.then_with(|| $type::compare(a.$index, b.$index)))*
            }
        }
    };
}

tuple!(A::PREFIX_IS_ALL, A 0);
tuple!(false, A 0, B 1);
tuple!(false, A 0, B 1, C 2);
tuple!(false, A 0, B 1, C 2, D 3);
tuple!(false, A 0, B 1, C 2, D 3, E 4);
tuple!(false, A 0, B 1, C 2, D 3, E 4, F 5);

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::prelude::*;

    use super::*;

    /// The prefix never contradicts the order, and the order is the one that the values have in Rust.
    fn agree<T: Ordered + Debug>(a: &T, b: &T, expected: Ordering) {
        a.with_view(|a_view| {
            b.with_view(|b_view| {
                assert_eq!(T::compare(a_view, b_view), expected, "{a:?} {b:?}");
                let prefixes = T::prefix(a_view).cmp(&T::prefix(b_view));
                assert!(
                    prefixes == expected || (prefixes.is_eq() && !T::PREFIX_IS_ALL),
                    "{a:?} {b:?}"
                );
            });
        });
    }

    macro_rules! the_prefix_of_agrees_with_the_order {
        ($($name:ident: $type:ty;)*) => {
            proptest! {
                $(
                    #[test]
                    fn $name(a in any::<$type>(), b in any::<$type>()) {
                        agree(&a, &b, a.cmp(&b));
                        agree(&a, &a, Ordering::Equal);
                    }
                )*

                #[test]
                fn floats(a in any::<f64>(), b in any::<f64>()) {
                    for (a, b) in [(a, b), (a, a), (a, -a), (a, f64::NAN), (a, -f64::NAN), (0.0, -0.0)] {
                        agree(&a, &b, a.total_cmp(&b));
                        agree(&(a as f32), &(b as f32), (a as f32).total_cmp(&(b as f32)));
                    }
                }
            }
        };
    }

    the_prefix_of_agrees_with_the_order! {
        bytes: u8;
        words: u32;
        numbers: u64;
        wide_numbers: u128;
        signed_bytes: i8;
        signed_numbers: i64;
        wide_signed_numbers: i128;
        truths: bool;
        characters: char;
        texts: String;
        byte_strings: Vec<u8>;
        fixed_bytes: [u8; 5];
        more_fixed_bytes: [u8; 9];
        lists: Vec<u16>;
        maybes: Option<i32>;
        lists_of_maybes: Vec<Option<bool>>;
        pairs: (bool, String);
        quintuples: (u8, (), Option<u8>, i8, Vec<bool>);
    }
}
