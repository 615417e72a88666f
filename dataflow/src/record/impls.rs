//! The records that every program has.

use std::{fmt, ops::Deref};

use rkyv::{
    Archive, Place, Serialize,
    munge::munge,
    option::ArchivedOption,
    string::{ArchivedString, StringResolver},
    tuple::*,
    vec::{ArchivedVec, VecResolver},
};

use super::{Encode, Encoder, Record, Unfit, parts::Sealed};
use crate::batch;

/// Values that are their own view.
macro_rules! plain {
    ($($type:ty: |$archived:ident| $view:expr;)*) => {$(
        impl Record for $type {
            type View<'a> = $type;

            #[inline]
            fn view($archived: &Self::Archived) -> $type {
                $view
            }

            #[inline]
            fn shorten<'short, 'long: 'short>(view: $type) -> $type {
                view
            }

            #[inline]
            fn own(view: $type) -> $type {
                view
            }
        }

        impl Sealed for $type {}

        impl Encode for $type {
            type Record = $type;
            type Resolver = ();

            #[inline]
            fn write(&self, _encoder: &mut Encoder<'_>) -> Result<(), Unfit> {
                Ok(())
            }

            #[inline]
            fn fixed(&self) -> Option<()> {
                Some(())
            }

            #[inline]
            fn place(&self, (): (), out: Place<<$type as Archive>::Archived>) {
                self.resolve((), out);
            }

            #[inline]
            fn with_view<R>(&self, function: impl FnOnce($type) -> R) -> R {
                function(*self)
            }
        }
    )*};
}

plain! {
    u8: |archived| *archived;
    i8: |archived| *archived;
    bool: |archived| *archived;
    (): |_archived| ();
    u16: |archived| archived.to_native();
    u32: |archived| archived.to_native();
    u64: |archived| archived.to_native();
    u128: |archived| archived.to_native();
    i16: |archived| archived.to_native();
    i32: |archived| archived.to_native();
    i64: |archived| archived.to_native();
    i128: |archived| archived.to_native();
    f32: |archived| archived.to_native();
    f64: |archived| archived.to_native();
    char: |archived| archived.to_native();
}

impl Record for String {
    type View<'a> = &'a str;

    #[inline]
    fn view(archived: &ArchivedString) -> &str {
        archived.as_str()
    }

    #[inline]
    fn shorten<'short, 'long: 'short>(view: &'long str) -> &'short str {
        view
    }

    fn own(view: &str) -> Self {
        view.to_owned()
    }

    fn heap_bytes(&self) -> usize {
        self.capacity()
    }
}

/// What is written as a `String`.
macro_rules! text {
    ($($type:ty),*) => {$(
        impl Sealed for $type {}

        impl Encode for $type {
            type Record = String;
            type Resolver = StringResolver;

            #[inline]
            fn write(&self, encoder: &mut Encoder<'_>) -> Result<StringResolver, Unfit> {
                ArchivedString::serialize_from_str(self, encoder)
            }

            #[inline]
            fn place(&self, resolver: StringResolver, out: Place<ArchivedString>) {
                ArchivedString::resolve_from_str(self, resolver, out);
            }

            #[inline]
            fn with_view<R>(&self, function: impl FnOnce(&str) -> R) -> R {
                function(self)
            }
        }
    )*};
}

text!(String, &str, &String);

/// So many bytes, which lie side by side in a batch.
impl<const N: usize> Record for [u8; N] {
    type View<'a> = &'a [u8; N];

    #[inline]
    fn view(archived: &[u8; N]) -> &[u8; N] {
        archived
    }

    #[inline]
    fn shorten<'short, 'long: 'short>(view: &'long [u8; N]) -> &'short [u8; N] {
        view
    }

    #[inline]
    fn own(view: &[u8; N]) -> Self {
        *view
    }
}

/// What is written as an array of bytes.
macro_rules! bytes {
    ($($type:ty),*) => {$(
        impl<const N: usize> Sealed for $type {}

        impl<const N: usize> Encode for $type {
            type Record = [u8; N];
            type Resolver = ();

            #[inline]
            fn write(&self, _encoder: &mut Encoder<'_>) -> Result<(), Unfit> {
                Ok(())
            }

            #[inline]
            fn place(&self, (): (), out: Place<[u8; N]>) {
                let bytes: &[u8; N] = self;
                out.write(*bytes);
            }

            #[inline]
            fn with_view<R>(&self, function: impl FnOnce(&[u8; N]) -> R) -> R {
                function(self)
            }
        }
    )*};
}

bytes!([u8; N], &[u8; N]);

impl<T: Record> Record for Option<T> {
    type View<'a> = Option<T::View<'a>>;

    fn view(archived: &ArchivedOption<T::Archived>) -> Option<T::View<'_>> {
        archived.as_ref().map(T::view)
    }

    #[inline]
    fn shorten<'short, 'long: 'short>(view: Option<T::View<'long>>) -> Option<T::View<'short>> {
        view.map(T::shorten)
    }

    fn own(view: Option<T::View<'_>>) -> Self {
        view.map(T::own)
    }

    fn heap_bytes(&self) -> usize {
        self.as_ref().map_or(0, T::heap_bytes)
    }
}

impl<E: Encode> Sealed for Option<E> {}

impl<E: Encode> Encode for Option<E> {
    type Record = Option<E::Record>;
    type Resolver = Option<E::Resolver>;

    fn write(&self, encoder: &mut Encoder<'_>) -> Result<Self::Resolver, Unfit> {
        self.as_ref().map(|value| value.write(encoder)).transpose()
    }

    fn place(
        &self,
        resolver: Self::Resolver,
        out: Place<ArchivedOption<<E::Record as Archive>::Archived>>,
    ) {
        self.as_ref().map(Encoded).resolve(resolver, out);
    }

    fn with_view<R>(&self, function: impl FnOnce(<Self::Record as Record>::View<'_>) -> R) -> R {
        match self {
            Some(value) => value.with_view(|view| function(Some(view))),
            None => function(None),
        }
    }
}

/// A value as rkyv sees it, to be put where rkyv knows how to put values.
struct Encoded<'e, E>(&'e E);

impl<E: Encode> Archive for Encoded<'_, E> {
    type Archived = <E::Record as Archive>::Archived;
    type Resolver = E::Resolver;

    #[inline]
    fn resolve(&self, resolver: E::Resolver, out: Place<Self::Archived>) {
        self.0.place(resolver, out);
    }
}

impl<'a, E: Encode> Serialize<Encoder<'a>> for Encoded<'_, E> {
    #[inline]
    fn serialize(&self, encoder: &mut Encoder<'a>) -> Result<E::Resolver, Unfit> {
        self.0.write(encoder)
    }
}

/// The view of a `Vec<T>`. It dereferences to the archived values, which for bytes are the bytes, and
/// [`iter`](Self::iter) gives their views.
pub struct Slice<'a, T: Record>(&'a [T::Archived]);

impl<'a, T: Record> Slice<'a, T> {
    /// The views of the values.
    pub fn iter(self) -> impl ExactSizeIterator<Item = T::View<'a>> + Clone {
        self.0.iter().map(T::view)
    }

    /// The archived values, for as long as their batch is there.
    pub fn archived(self) -> &'a [T::Archived] {
        self.0
    }
}

impl<'a> Slice<'a, u8> {
    /// Bytes, which are archived as they are.
    pub(super) fn from_bytes(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<T: Record> Clone for Slice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Record> Copy for Slice<'_, T> {}

impl<T: Record> Deref for Slice<'_, T> {
    type Target = [T::Archived];

    fn deref(&self) -> &[T::Archived] {
        self.0
    }
}

impl<T: Record> fmt::Debug for Slice<'_, T>
where
    for<'a> T::View<'a>: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T: Record> Record for Vec<T> {
    type View<'a> = Slice<'a, T>;

    #[inline]
    fn view(archived: &ArchivedVec<T::Archived>) -> Slice<'_, T> {
        Slice(archived.as_slice())
    }

    #[inline]
    fn shorten<'short, 'long: 'short>(view: Slice<'long, T>) -> Slice<'short, T> {
        Slice(view.0)
    }

    fn own(view: Slice<'_, T>) -> Self {
        view.iter().map(T::own).collect()
    }

    fn heap_bytes(&self) -> usize {
        let inner = if std::mem::needs_drop::<T>() {
            self.iter().map(T::heap_bytes).sum()
        } else {
            0
        };
        self.capacity() * size_of::<T>() + inner
    }
}

/// Writes a sequence of values as a `Vec`.
fn write_all<E: Encode>(
    values: impl ExactSizeIterator<Item = E> + Clone,
    encoder: &mut Encoder<'_>,
) -> Result<VecResolver, Unfit> {
    let values: Vec<E> = values.collect();
    write_slice(&values, encoder)
}

fn write_slice<E: Encode>(values: &[E], encoder: &mut Encoder<'_>) -> Result<VecResolver, Unfit> {
    let values = values.iter().map(Encoded);
    ArchivedVec::<<E::Record as Archive>::Archived>::serialize_from_iter::<Encoded<'_, E>, _, _>(
        values, encoder,
    )
}

/// What is written as a `Vec` and has all its values side by side.
macro_rules! sequence {
    ($($type:ty),*) => {$(
        impl<E: Encode> Sealed for $type {}

        impl<E: Encode> Encode for $type {
            type Record = Vec<E::Record>;
            type Resolver = VecResolver;

            fn write(&self, encoder: &mut Encoder<'_>) -> Result<VecResolver, Unfit> {
                write_slice(self, encoder)
            }

            fn place(&self, resolver: VecResolver, out: Place<ArchivedVec<<E::Record as Archive>::Archived>>) {
                ArchivedVec::resolve_from_len(self.len(), resolver, out);
            }

            fn with_view<R>(&self, function: impl FnOnce(Slice<'_, E::Record>) -> R) -> R {
                batch::with_encoded(self, function)
            }
        }
    )*};
}

sequence!(Vec<E>, &[E], &Vec<E>);

impl<T: Record> Sealed for Slice<'_, T> {}

impl<T: Record> Encode for Slice<'_, T> {
    type Record = Vec<T>;
    type Resolver = VecResolver;

    fn write(&self, encoder: &mut Encoder<'_>) -> Result<VecResolver, Unfit> {
        write_all(self.iter(), encoder)
    }

    fn place(&self, resolver: VecResolver, out: Place<ArchivedVec<T::Archived>>) {
        ArchivedVec::resolve_from_len(self.len(), resolver, out);
    }

    fn with_view<R>(&self, function: impl FnOnce(Slice<'_, T>) -> R) -> R {
        function(*self)
    }
}

/// Nests the continuations that give each field its view.
macro_rules! with_views {
    ($function:ident [$($view:ident: $record:ident)*]) => {
        $function(($(<$record::Record as Record>::shorten($view),)*))
    };
    ($function:ident [$($views:tt)*] $field:ident: $record:ident $($rest:tt)*) => {
        $field.with_view(|$field| with_views!($function [$($views)* $field: $record] $($rest)*))
    };
}

macro_rules! tuple {
    ($archived:ident: $($type:ident $field:ident $out:ident $index:tt),*) => {
        impl<$($type: Record),*> Record for ($($type,)*) {
            type View<'a> = ($($type::View<'a>,)*);

            #[inline]
            fn view(archived: &Self::Archived) -> Self::View<'_> {
                let $archived($($field),*) = archived;
                ($($type::view($field),)*)
            }

            #[inline]
            fn shorten<'short, 'long: 'short>(view: Self::View<'long>) -> Self::View<'short> {
                let ($($field,)*) = view;
                ($($type::shorten($field),)*)
            }

            fn own(($($field,)*): Self::View<'_>) -> Self {
                ($($type::own($field),)*)
            }

            fn heap_bytes(&self) -> usize {
                let ($($field,)*) = self;
                [$($field.heap_bytes()),*].into_iter().sum()
            }
        }

        impl<$($type: Encode),*> Sealed for ($($type,)*) {}

        impl<$($type: Encode),*> Encode for ($($type,)*) {
            type Record = ($($type::Record,)*);
            type Resolver = ($($type::Resolver,)*);

            #[inline]
            fn write(&self, encoder: &mut Encoder<'_>) -> Result<Self::Resolver, Unfit> {
                let ($($field,)*) = self;
                Ok(($($field.write(encoder)?,)*))
            }

            #[inline]
            fn fixed(&self) -> Option<Self::Resolver> {
                let ($($field,)*) = self;
                Some(($($field.fixed()?,)*))
            }

            #[inline]
            fn place(
                &self,
                resolver: Self::Resolver,
                out: Place<$archived<$(<$type::Record as Archive>::Archived),*>>,
            ) {
                let ($($field,)*) = self;
                munge!(let $archived($($out),*) = out);
                $($field.place(resolver.$index, $out);)*
            }

            #[inline]
            fn with_view<R>(&self, function: impl FnOnce(<Self::Record as Record>::View<'_>) -> R) -> R {
                let ($($field,)*) = self;
                with_views!(function [] $($field: $type)*)
            }
        }
    };
}

tuple!(ArchivedTuple1: A a a_out 0);
tuple!(ArchivedTuple2: A a a_out 0, B b b_out 1);
tuple!(ArchivedTuple3: A a a_out 0, B b b_out 1, C c c_out 2);
tuple!(ArchivedTuple4: A a a_out 0, B b b_out 1, C c c_out 2, D d d_out 3);
tuple!(ArchivedTuple5: A a a_out 0, B b b_out 1, C c c_out 2, D d d_out 3, E e e_out 4);
tuple!(ArchivedTuple6: A a a_out 0, B b b_out 1, C c c_out 2, D d d_out 3, E e e_out 4, F f f_out 5);
tuple!(ArchivedTuple7: A a a_out 0, B b b_out 1, C c c_out 2, D d d_out 3, E e e_out 4, F f f_out 5, G g g_out 6);
tuple!(ArchivedTuple8: A a a_out 0, B b b_out 1, C c c_out 2, D d d_out 3, E e e_out 4, F f f_out 5, G g g_out 6, H h h_out 7);
