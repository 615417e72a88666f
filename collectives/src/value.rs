//! Collectives over values of any type that rkyv can archive: strings, vectors, maps, and structs that derive it.
//!
//! A value is archived in memory lent by the group, travels as the [buffers](Group::broadcast_buffer) do, and is checked and
//! read where it arrives.

use std::{fmt, future::Future};

use rkyv::{
    Archive, Deserialize, Serialize,
    api::high::{HighDeserializer, HighSerializer, HighValidator, to_bytes_in},
    bytecheck::CheckBytes,
    rancor::{self, Source},
    ser::{Positional, Writer, allocator::ArenaHandle},
};
use transport::Buffer;

use crate::{Error, Group, Operation, buffer, call::Call, fate::Signature};

/// A type whose values can travel: every one that derives rkyv's three traits, and what is made of such types.
///
/// ```
/// use collectives::rkyv::{Archive, Deserialize, Serialize};
/// # use collectives::Engine;
/// # use transport::{Arena, Fabric, Ledger};
///
/// #[derive(Archive, Serialize, Deserialize, Debug, PartialEq)]
/// #[rkyv(crate = collectives::rkyv)]
/// struct Station {
///     name: String,
///     highs: Vec<f32>,
/// }
///
/// # let fabric = Fabric::alone(Arena::new(&Ledger::new(1 << 20), 1 << 20)?);
/// # let engine = Engine::simulated(fabric);
/// # engine.block_on(async {
/// # let group = engine.world().await?;
/// let mine = Station { name: "Jena".to_owned(), highs: vec![21.5, 19.0] };
/// let all = group.all_gather_values(mine).await?;
/// assert_eq!(all[0].name, "Jena");
/// # Ok(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Value:
    Archive<
        Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
                      + Deserialize<Self, HighDeserializer<rancor::Error>>,
    > + for<'a, 'b> Serialize<HighSerializer<Sink<'b>, ArenaHandle<'a>, rancor::Error>>
    + Sized
{
}

impl<T> Value for T where
    T: Archive<
            Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
                          + Deserialize<T, HighDeserializer<rancor::Error>>,
        > + for<'a, 'b> Serialize<HighSerializer<Sink<'b>, ArenaHandle<'a>, rancor::Error>>
        + Sized
{
}

impl Group {
    /// Gives all members the value of member `root`; the others give `None`.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member or has nothing, and for a value that cannot be archived;
    /// [`Error::MalformedValue`] when what arrives is no such value; see [`Error`].
    pub fn broadcast_value<T: Value>(
        &self,
        root: usize,
        value: Option<T>,
    ) -> Operation<'_, impl Future<Output = Result<T, Error>>> {
        self.operation(async move {
            self.check_member("broadcast_value", root)?;
            let value = value.filter(|_| self.rank() == root);
            self.check_root("broadcast_value", root, value.is_some())?;
            let signature = signature::<T>("broadcast_value").with_root(root);
            let call = self.begin(signature).await?;
            let result = broadcast(&call, root, value).await;
            call.end(result)
        })
    }

    /// Gives member `root` the values of all, in the order of the members. `None` for all others.
    ///
    /// # Errors
    ///
    /// As [`broadcast_value`](Self::broadcast_value).
    pub fn gather_values<T: Value>(
        &self,
        root: usize,
        value: T,
    ) -> Operation<'_, impl Future<Output = Result<Option<Vec<T>>, Error>>> {
        self.operation(async move {
            self.check_member("gather_values", root)?;
            let signature = signature::<T>("gather_values").with_root(root);
            let call = self.begin(signature).await?;
            let result = async {
                let mine = encode(&call, &value).await?;
                let all = buffer::gather(&call, root, mine).await?;
                all.map(|all| decode_all(&call, &all, value)).transpose()
            };
            let result = result.await;
            call.end(result)
        })
    }

    /// Gives all members the values of all, in the order of the members.
    ///
    /// # Errors
    ///
    /// As [`broadcast_value`](Self::broadcast_value).
    pub fn all_gather_values<T: Value>(
        &self,
        value: T,
    ) -> Operation<'_, impl Future<Output = Result<Vec<T>, Error>>> {
        self.operation(async move {
            let call = self.begin(signature::<T>("all_gather_values")).await?;
            let result = async {
                let mine = encode(&call, &value).await?;
                let all = buffer::all_gather(&call, mine).await?;
                decode_all(&call, &all, value)
            };
            let result = result.await;
            call.end(result)
        })
    }

    /// Gives each member the one of the values of member `root` that is at its place; the others give `None`.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] also when the root has not one value for each member; as
    /// [`broadcast_value`](Self::broadcast_value).
    pub fn scatter_values<T: Value>(
        &self,
        root: usize,
        values: Option<Vec<T>>,
    ) -> Operation<'_, impl Future<Output = Result<T, Error>>> {
        self.operation(async move {
            self.check_member("scatter_values", root)?;
            let values = values.filter(|_| self.rank() == root).unwrap_or_default();
            if self.rank() == root {
                self.check_one_for_each("scatter_values", values.len())?;
            }
            let signature = signature::<T>("scatter_values").with_root(root);
            let call = self.begin(signature).await?;
            let result = async {
                let parts = encode_all(&call, &values).await?;
                let part = buffer::scatter(&call, root, parts).await?;
                match values.into_iter().nth(call.me()) {
                    Some(own) => Ok(own),
                    None => decode(&call, root, &part),
                }
            };
            let result = result.await;
            call.end(result)
        })
    }

    /// Gives each member the one of each member's values that is at its place, in the order of the members.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] also when there is not one value for each member; as
    /// [`broadcast_value`](Self::broadcast_value).
    pub fn all_to_all_values<T: Value>(
        &self,
        values: Vec<T>,
    ) -> Operation<'_, impl Future<Output = Result<Vec<T>, Error>>> {
        self.operation(async move {
            self.check_one_for_each("all_to_all_values", values.len())?;
            let call = self.begin(signature::<T>("all_to_all_values")).await?;
            let result = async {
                let parts = encode_all(&call, &values).await?;
                let all = buffer::all_to_all(&call, parts).await?;
                let own = values.into_iter().nth(call.me());
                let own = own.ok_or_else(|| self.argument("all_to_all_values", "none is ours"))?;
                decode_all(&call, &all, own)
            };
            let result = result.await;
            call.end(result)
        })
    }

    /// Gives member `root` what `combine` makes of the values of all, two at a time: the left one is always of lower
    /// members. It has to be associative; how values are grouped depends on the number of members alone. `None` for all
    /// others.
    ///
    /// # Errors
    ///
    /// As [`broadcast_value`](Self::broadcast_value).
    pub fn reduce_value<T: Value>(
        &self,
        root: usize,
        value: T,
        combine: impl Fn(T, T) -> T,
    ) -> Operation<'_, impl Future<Output = Result<Option<T>, Error>>> {
        self.operation(async move {
            self.check_member("reduce_value", root)?;
            let signature = signature::<T>("reduce_value").with_root(root);
            let call = self.begin(signature).await?;
            let result = reduce(&call, root, value, combine).await;
            call.end(result)
        })
    }

    /// The same for all members, which get the same value.
    ///
    /// # Errors
    ///
    /// As [`broadcast_value`](Self::broadcast_value).
    pub fn all_reduce_value<T: Value>(
        &self,
        value: T,
        combine: impl Fn(T, T) -> T,
    ) -> Operation<'_, impl Future<Output = Result<T, Error>>> {
        self.operation(async move {
            let call = self.begin(signature::<T>("all_reduce_value")).await?;
            let result = async {
                let value = reduce(&call, 0, value, combine).await?;
                broadcast(&call, 0, value).await
            };
            let result = result.await;
            call.end(result)
        })
    }
}

/// All members have to name the same type.
fn signature<T>(call: &'static str) -> Signature {
    Signature::new(call).with_op(std::any::type_name::<T>())
}

async fn broadcast<T: Value>(call: &Call<'_>, root: usize, value: Option<T>) -> Result<T, Error> {
    let mine = match &value {
        Some(value) => Some(encode(call, value).await?),
        None => None,
    };
    let message = buffer::broadcast(call, root, mine).await?;
    match value {
        Some(value) => Ok(value),
        None => decode(call, root, &message),
    }
}

/// Up a binomial tree to the first member, neighbours first, so that the order is kept; and from there to the root.
async fn reduce<T: Value>(
    call: &Call<'_>,
    root: usize,
    mut value: T,
    combine: impl Fn(T, T) -> T,
) -> Result<Option<T>, Error> {
    let (me, size) = (call.me(), call.size());
    let mut bit = 1;
    while bit < size && me & bit == 0 {
        if me + bit < size {
            let message = call.receive(me + bit).await?;
            value = combine(value, decode(call, me + bit, &message)?);
        }
        bit *= 2;
    }
    let above = if me == 0 { root } else { me - bit };
    if above != me {
        let message = encode(call, &value).await?;
        call.give(above, message)?;
    }
    if me != root {
        return Ok(None);
    }
    if root != 0 {
        let message = call.receive(0).await?;
        value = decode(call, 0, &message)?;
    }
    Ok(Some(value))
}

/// Archives a value where it will be read.
async fn encode<T: Value>(call: &Call<'_>, value: &T) -> Result<Buffer, Error> {
    let unfit = |error: rancor::Error| Error::Argument {
        call: call.signature().call,
        reason: format!("a value that cannot be archived: {error}"),
    };
    let bytes = archive(value, None).map_err(unfit)?;
    if bytes <= Buffer::INLINE_BYTES {
        let mut place = [0; Buffer::INLINE_BYTES];
        archive(value, Some(&mut place[..bytes])).map_err(unfit)?;
        if let Some(message) = Buffer::inline(call.tag(0), &place[..bytes]) {
            return Ok(message);
        }
    }
    let mut loan = call.loan(0, bytes).await?;
    archive(value, Some(&mut loan)).map_err(unfit)?;
    Ok(loan.freeze())
}

async fn encode_all<T: Value>(call: &Call<'_>, values: &[T]) -> Result<Vec<Buffer>, Error> {
    let mut parts = Vec::with_capacity(values.len());
    for value in values {
        parts.push(encode(call, value).await?);
    }
    Ok(parts)
}

/// Checks the bytes that a member sent, and makes them a value.
fn decode<T: Value>(call: &Call<'_>, from: usize, message: &Buffer) -> Result<T, Error> {
    rkyv::from_bytes::<T, rancor::Error>(message).map_err(|error| Error::MalformedValue {
        peer: call.group.members()[from],
        reason: error.to_string(),
    })
}

/// The values of all members, ours as it is.
fn decode_all<T: Value>(call: &Call<'_>, messages: &[Buffer], own: T) -> Result<Vec<T>, Error> {
    let mut own = Some(own);
    let values = messages.iter().enumerate().map(|(from, message)| {
        let own = own.take_if(|_| from == call.me());
        own.map_or_else(|| decode(call, from, message), Ok)
    });
    values.collect()
}

/// Writes the archive of a value, or only counts its bytes.
pub(crate) fn archive<T: Value>(
    value: &T,
    into: Option<&mut [u8]>,
) -> Result<usize, rancor::Error> {
    let sink = to_bytes_in::<_, rancor::Error>(value, Sink { into, written: 0 })?;
    Ok(sink.written)
}

/// Where an archive is written, or only counted.
#[doc(hidden)]
#[derive(Debug)]
pub struct Sink<'b> {
    into: Option<&'b mut [u8]>,
    written: usize,
}

impl Positional for Sink<'_> {
    fn pos(&self) -> usize {
        self.written
    }
}

impl Writer<rancor::Error> for Sink<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), rancor::Error> {
        let end = self.written + bytes.len();
        if let Some(into) = &mut self.into {
            let place = into.get_mut(self.written..end);
            let place = place.ok_or_else(|| rancor::Error::new(Grown))?;
            crate::copy(place, bytes);
        }
        self.written = end;
        Ok(())
    }
}

/// A value whose archive was longer when it was written than when it was counted.
#[derive(Debug)]
struct Grown;

impl fmt::Display for Grown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its archive differs from one time to the next")
    }
}

impl std::error::Error for Grown {}

#[cfg(test)]
mod tests {
    use transport::{Arena, Fabric, Ledger};

    use super::*;
    use crate::Engine;

    #[test]
    fn bytes_that_are_no_archive_of_the_type_are_an_error() {
        let arena = Arena::new(&Ledger::new(1 << 20), 1 << 20).unwrap();
        let engine = Engine::simulated(Fabric::alone(arena));
        let group = engine.block_on(engine.world()).unwrap();
        let call = engine.block_on(group.begin(signature::<String>("test")));
        let call = call.unwrap();
        let texts = vec![
            "a string".to_owned(),
            "another that is not held inline".to_owned(),
        ];
        let message = engine.block_on(encode(&call, &texts)).unwrap();
        assert_eq!(decode::<Vec<String>>(&call, 0, &message), Ok(texts));
        for garbage in [&[][..], &[7; 3], &[0xff; 64]] {
            let message = Buffer::inline(0, garbage).unwrap();
            let error = decode::<Vec<String>>(&call, 0, &message).unwrap_err();
            assert!(
                matches!(error, Error::MalformedValue { peer: 0, .. }),
                "{error}"
            );
        }
        call.end(Ok(())).unwrap();
    }

    #[test]
    fn a_value_that_grows_between_counting_and_writing_is_refused() {
        let mut place = [0; 8];
        let error = archive(&[1u64, 2].to_vec(), Some(&mut place)).unwrap_err();
        assert!(error.to_string().contains("differs"), "{error}");
    }
}
