//! Records that can be grouped by.

use compact_str::CompactString;
use rapidhash::v3::rapidhash_v3;

use super::{Record, Slice};

/// A record that can be a key: equal keys meet on the same rank, whatever machine hashed them.
pub trait Key: Record {
    /// How a table keeps it.
    type Stored: Send + 'static;

    /// A number that is equal for equal keys, on every machine and in every version.
    fn hash(view: Self::View<'_>) -> u64;

    /// A copy to keep.
    fn store(view: Self::View<'_>) -> Self::Stored;

    /// The view of what was kept.
    fn stored(stored: &Self::Stored) -> Self::View<'_>;

    /// Whether what was kept is the same key.
    fn is(stored: &Self::Stored, view: Self::View<'_>) -> bool;

    /// Whether two keys are the same.
    fn same(one: Self::View<'_>, other: Self::View<'_>) -> bool;

    /// Whether it is a key that joins nothing: `None`, or a tuple with one in it, as in SQL.
    fn is_null(_view: Self::View<'_>) -> bool {
        false
    }

    /// Bytes that it keeps outside of itself.
    fn stored_bytes(_stored: &Self::Stored) -> usize {
        0
    }
}

/// Spreads the bits of a number over a word: the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast
/// splittable pseudorandom number generators", 2014).
#[inline]
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

macro_rules! plain {
    ($($type:ty: |$view:ident| $word:expr;)*) => {$(
        impl Key for $type {
            type Stored = $type;

            #[inline]
            fn hash($view: $type) -> u64 {
                mix($word)
            }

            #[inline]
            fn store(view: $type) -> $type {
                view
            }

            #[inline]
            fn stored(stored: &$type) -> $type {
                *stored
            }

            #[inline]
            fn is(stored: &$type, view: $type) -> bool {
                *stored == view
            }

            #[inline]
            fn same(one: $type, other: $type) -> bool {
                one == other
            }
        }
    )*};
}

plain! {
    u8: |view| view.into();
    u16: |view| view.into();
    u32: |view| view.into();
    u64: |view| view;
    u128: |view| view as u64 ^ mix((view >> 64) as u64);
    i8: |view| view as u64;
    i16: |view| view as u64;
    i32: |view| view as u64;
    i64: |view| view as u64;
    i128: |view| view as u64 ^ mix((view >> 64) as u64);
    bool: |view| view.into();
    char: |view| u32::from(view).into();
    (): |_view| 0;
}

impl Key for String {
    type Stored = CompactString;

    #[inline]
    fn hash(view: &str) -> u64 {
        rapidhash_v3(view.as_bytes())
    }

    fn store(view: &str) -> CompactString {
        CompactString::new(view)
    }

    #[inline]
    fn stored(stored: &CompactString) -> &str {
        stored
    }

    #[inline]
    fn is(stored: &CompactString, view: &str) -> bool {
        stored == view
    }

    #[inline]
    fn same(one: &str, other: &str) -> bool {
        one == other
    }

    fn stored_bytes(stored: &CompactString) -> usize {
        if stored.is_heap_allocated() {
            stored.capacity()
        } else {
            0
        }
    }
}

/// Byte strings.
impl Key for Vec<u8> {
    type Stored = Box<[u8]>;

    fn hash(view: Slice<'_, u8>) -> u64 {
        rapidhash_v3(&view)
    }

    fn store(view: Slice<'_, u8>) -> Box<[u8]> {
        (*view).into()
    }

    fn stored(stored: &Box<[u8]>) -> Slice<'_, u8> {
        Slice::from_bytes(stored)
    }

    fn is(stored: &Box<[u8]>, view: Slice<'_, u8>) -> bool {
        **stored == *view
    }

    fn same(one: Slice<'_, u8>, other: Slice<'_, u8>) -> bool {
        *one == *other
    }

    fn stored_bytes(stored: &Box<[u8]>) -> usize {
        stored.len()
    }
}

/// A key that may be missing. Missing ones are grouped like any other, but [join nothing](Key::is_null).
impl<K: Key> Key for Option<K> {
    type Stored = Option<K::Stored>;

    #[inline]
    fn hash(view: Option<K::View<'_>>) -> u64 {
        view.map_or(0, |view| mix(K::hash(view)))
    }

    fn store(view: Option<K::View<'_>>) -> Self::Stored {
        view.map(K::store)
    }

    fn stored(stored: &Self::Stored) -> Option<K::View<'_>> {
        stored.as_ref().map(K::stored)
    }

    #[inline]
    fn is(stored: &Self::Stored, view: Option<K::View<'_>>) -> bool {
        match (stored, view) {
            (Some(stored), Some(view)) => K::is(stored, view),
            (None, None) => true,
            _ => false,
        }
    }

    #[inline]
    fn same(one: Option<K::View<'_>>, other: Option<K::View<'_>>) -> bool {
        match (one, other) {
            (Some(one), Some(other)) => K::same(one, other),
            (None, None) => true,
            _ => false,
        }
    }

    #[inline]
    fn is_null(view: Option<K::View<'_>>) -> bool {
        view.is_none_or(K::is_null)
    }

    fn stored_bytes(stored: &Self::Stored) -> usize {
        stored.as_ref().map_or(0, K::stored_bytes)
    }
}

impl<const N: usize> Key for [u8; N] {
    type Stored = [u8; N];

    #[inline]
    fn hash(view: &[u8; N]) -> u64 {
        rapidhash_v3(view)
    }

    #[inline]
    fn store(view: &[u8; N]) -> [u8; N] {
        *view
    }

    #[inline]
    fn stored(stored: &[u8; N]) -> &[u8; N] {
        stored
    }

    #[inline]
    fn same(one: &[u8; N], other: &[u8; N]) -> bool {
        one == other
    }

    #[inline]
    fn is(stored: &[u8; N], view: &[u8; N]) -> bool {
        stored == view
    }
}

macro_rules! tuple {
    ($($type:ident $index:tt),*) => {
        impl<$($type: Key),*> Key for ($($type,)*) {
            type Stored = ($($type::Stored,)*);

            #[inline]
            fn hash(view: Self::View<'_>) -> u64 {
                let mut hash = 0;
                $(hash = mix(hash ^ $type::hash(view.$index));)*
                hash
            }

            fn store(view: Self::View<'_>) -> Self::Stored {
                ($($type::store(view.$index),)*)
            }

            fn stored(stored: &Self::Stored) -> Self::View<'_> {
                ($($type::stored(&stored.$index),)*)
            }

            fn is(stored: &Self::Stored, view: Self::View<'_>) -> bool {
                $($type::is(&stored.$index, view.$index))&&*
            }

            #[inline]
            fn same(one: Self::View<'_>, other: Self::View<'_>) -> bool {
                $($type::same(one.$index, other.$index))&&*
            }

            #[inline]
            fn is_null(view: Self::View<'_>) -> bool {
                $($type::is_null(view.$index))||*
            }

            fn stored_bytes(stored: &Self::Stored) -> usize {
                [$($type::stored_bytes(&stored.$index)),*].into_iter().sum()
            }
        }
    };
}

tuple!(A 0);
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_never_change_because_they_say_where_a_key_lives() {
        assert_eq!(u64::hash(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(
            String::hash("updraft"),
            <String as Key>::hash(&String::from("updraft"))
        );
        assert_ne!(<(u32, u32)>::hash((1, 2)), <(u32, u32)>::hash((2, 1)));
    }
}
