//! What partitions can be made of.

use std::borrow::Cow;

use rkyv::{rancor, util::AlignedVec};

use crate::{Element, Value, copy as copy_elements, value};

/// What a partition holds: it can be written as bytes, and made of bytes that arrive in pieces.
pub trait Payload: Sized {
    /// One of which a part has arrived.
    type Arriving;

    /// The bytes that stand for it.
    ///
    /// # Errors
    ///
    /// Why it cannot be written.
    fn encode(&self) -> Result<Cow<'_, [u8]>, String>;

    /// Begins with one of so many bytes, in the memory of one that is needed no more, if that does.
    ///
    /// # Errors
    ///
    /// Why there cannot be one of this size.
    fn begin(bytes: usize, spare: Option<Self>) -> Result<Self::Arriving, String>;

    /// Takes in what follows on the bytes that have arrived.
    fn append(arriving: &mut Self::Arriving, bytes: &[u8]);

    /// Makes it, when all bytes have arrived.
    ///
    /// # Errors
    ///
    /// Why they make none.
    fn finish(arriving: Self::Arriving) -> Result<Self, String>;
}

/// The payload whose bytes are all there.
pub(super) fn decode<P: Payload>(bytes: &[u8], spare: Option<P>) -> Result<P, String> {
    let mut arriving = P::begin(bytes.len(), spare)?;
    P::append(&mut arriving, bytes);
    P::finish(arriving)
}

/// A copy, made by way of its bytes.
pub(super) fn copy<P: Payload>(payload: &P) -> Result<P, String> {
    decode(&payload.encode()?, None)
}

/// The most memory that is set apart on the word of a peer, before anything has arrived.
const RESERVED_MAX: usize = 1 << 26;

impl<T: Element> Payload for Vec<T> {
    /// The elements, the last of which may be incomplete, and the bytes that have arrived.
    type Arriving = (Self, usize);

    fn encode(&self) -> Result<Cow<'_, [u8]>, String> {
        const { crate::element::check::<T>() };
        Ok(Cow::Borrowed(bytemuck::cast_slice(self)))
    }

    fn begin(bytes: usize, spare: Option<Self>) -> Result<(Self, usize), String> {
        if !bytes.is_multiple_of(size_of::<T>()) {
            let size = size_of::<T>();
            return Err(format!("{bytes} bytes are not elements of {size}"));
        }
        let mut elements = spare.unwrap_or_default();
        elements.clear();
        elements.reserve_exact(bytes.min(RESERVED_MAX) / size_of::<T>());
        Ok((elements, 0))
    }

    fn append((elements, filled): &mut (Self, usize), bytes: &[u8]) {
        let end = *filled + bytes.len();
        elements.resize(end.div_ceil(size_of::<T>()), T::zeroed());
        let room: &mut [u8] = bytemuck::cast_slice_mut(elements);
        copy_elements(&mut room[*filled..end], bytes);
        *filled = end;
    }

    fn finish((elements, _): (Self, usize)) -> Result<Self, String> {
        Ok(elements)
    }
}

/// A partition that is one value, of any type that `rkyv` can archive. Archives are validated before anything is made of them.
///
/// ```
/// use std::collections::BTreeMap;
/// use collectives::harp::{Single, Table};
///
/// let join = |Single(left): &mut Single<BTreeMap<String, u64>>, Single(right)| {
///     for (word, count) in right {
///         *left.entry(word).or_default() += count;
///     }
/// };
/// let mut table = Table::new(join);
/// table.add(0, Single(BTreeMap::from([("rank".to_owned(), 2)])))?;
/// table.add(0, Single(BTreeMap::from([("rank".to_owned(), 3)])))?;
/// assert_eq!(table.get(0).unwrap().0["rank"], 5);
/// # Ok::<(), collectives::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Single<T>(pub T);

impl<T: Value> Payload for Single<T> {
    /// A copy of our own, where no peer can write any more, and aligned as archives have to be.
    type Arriving = AlignedVec;

    fn encode(&self) -> Result<Cow<'_, [u8]>, String> {
        let written = value::archive(&self.0, None).and_then(|bytes| {
            let mut room = vec![0; bytes];
            value::archive(&self.0, Some(&mut room))?;
            Ok(room)
        });
        written.map(Cow::Owned).map_err(|error| error.to_string())
    }

    fn begin(bytes: usize, _spare: Option<Self>) -> Result<AlignedVec, String> {
        Ok(AlignedVec::with_capacity(bytes.min(RESERVED_MAX)))
    }

    fn append(arriving: &mut AlignedVec, bytes: &[u8]) {
        arriving.extend_from_slice(bytes);
    }

    fn finish(arriving: AlignedVec) -> Result<Self, String> {
        let value = rkyv::from_bytes::<T, rancor::Error>(&arriving);
        value.map(Self).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_arrive_in_pieces_of_any_length() {
        let elements: Vec<[u32; 3]> = (0..100).map(|n| [n, n * n, 7]).collect();
        let bytes = elements.encode().unwrap();
        for piece in [1, 5, 8, 13, 1200] {
            let spare = vec![[9; 3]; 7];
            let mut arriving = <Vec<[u32; 3]>>::begin(bytes.len(), Some(spare)).unwrap();
            for bytes in bytes.chunks(piece) {
                <Vec<[u32; 3]> as Payload>::append(&mut arriving, bytes);
            }
            assert_eq!(<Vec<[u32; 3]>>::finish(arriving).unwrap(), elements);
        }
        assert!(decode::<Vec<[u32; 3]>>(&bytes[1..], None).is_err());
    }

    #[test]
    fn archives_that_are_none_are_refused() {
        let value = Single(vec![
            "one".to_owned(),
            "a much longer one than before".to_owned(),
        ]);
        assert_eq!(copy(&value).unwrap(), value);
        let mut bytes = value.encode().unwrap().into_owned();
        bytes.truncate(bytes.len() - 1);
        assert!(decode::<Single<Vec<String>>>(&bytes, None).is_err());
        let last = bytes.len() - 3;
        bytes[last] ^= 0xff;
        assert!(decode::<Single<Vec<String>>>(&bytes, None).is_err());
    }
}
