//! The records that a program declares itself.

use std::{fmt, ops::Deref};

use rkyv::{Archive, Deserialize, Place, Resolver, Serialize, api::high::HighDeserializer, rancor};

use super::{Encode, Encoder, Record, Unfit};

/// Declares a struct that is a [`Record`](crate::Record). Its view, [`Fields`](crate::Fields), has fields
/// with the names of its own and the archived types of rkyv (`x.to_native()` gives a number).
///
/// ```
/// use dataflow::{Record, collection, inline, record};
///
/// record! {
///     /// A reading of an instrument.
///     #[derive(Debug, PartialEq)]
///     pub struct Reading {
///         /// Which instrument.
///         pub name: String,
///         /// What it showed.
///         pub value: f64,
///     }
/// }
///
/// let readings = ["a", "b"].map(|name| Reading { name: name.into(), value: 1.5 });
/// let large = collection(readings.into())
///     .filter(|reading| reading.name.as_str() == "b" && reading.value.to_native() > 1.0)
///     .collect();
/// assert_eq!(inline(&large)?, [Reading { name: "b".into(), value: 1.5 }]);
/// # Ok::<(), dataflow::Error>(())
/// ```
#[macro_export]
macro_rules! record {
    ($(#[$attribute:meta])* $visibility:vis struct $name:ident { $($fields:tt)* }) => {
        #[derive($crate::rkyv::Archive, $crate::rkyv::Serialize, $crate::rkyv::Deserialize)]
        #[rkyv(crate = $crate::rkyv)]
        $(#[$attribute])*
        $visibility struct $name { $($fields)* }

        impl $crate::Record for $name {
            type View<'a> = $crate::Fields<'a, $name>;

            fn view(archived: &$crate::rkyv::Archived<$name>) -> $crate::Fields<'_, $name> {
                $crate::Fields::new(archived)
            }

            fn shorten<'short, 'long: 'short>(
                view: $crate::Fields<'long, $name>,
            ) -> $crate::Fields<'short, $name> {
                view
            }

            fn own(view: $crate::Fields<'_, $name>) -> Self {
                $crate::record_parts::own(view.archived())
            }
        }

        impl $crate::record_parts::Struct for $name {}

        impl $crate::record_parts::Sealed for $name {}

        impl $crate::Encode for $name {
            type Record = $name;
            type Resolver = $crate::rkyv::Resolver<$name>;

            fn write(
                &self,
                encoder: &mut $crate::Encoder<'_>,
            ) -> ::core::result::Result<Self::Resolver, $crate::Unfit> {
                $crate::rkyv::Serialize::serialize(self, encoder)
            }

            fn place(
                &self,
                resolver: Self::Resolver,
                out: $crate::rkyv::Place<$crate::rkyv::Archived<$name>>,
            ) {
                $crate::rkyv::Archive::resolve(self, resolver, out);
            }

            fn with_view<R>(
                &self,
                function: impl ::core::ops::FnOnce($crate::Fields<'_, $name>) -> R,
            ) -> R {
                $crate::record_parts::with_encoded(self, function)
            }
        }
    };
}

/// The view of a struct that [`record!`](crate::record) declared. It dereferences to the archive of the
/// struct.
pub struct Fields<'a, T: Archive>(&'a T::Archived);

impl<'a, T: Archive> Fields<'a, T> {
    #[doc(hidden)]
    pub fn new(archived: &'a T::Archived) -> Self {
        Self(archived)
    }

    /// The archive, for as long as its batch is there.
    pub fn archived(self) -> &'a T::Archived {
        self.0
    }
}

impl<T: Archive> Clone for Fields<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Archive> Copy for Fields<'_, T> {}

impl<T: Archive> Deref for Fields<'_, T> {
    type Target = T::Archived;

    fn deref(&self) -> &T::Archived {
        self.0
    }
}

impl<T: Archive<Archived: fmt::Debug>> fmt::Debug for Fields<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: parts::Struct> parts::Sealed for Fields<'_, T> {}

impl<T: parts::Struct> Encode for Fields<'_, T> {
    type Record = T;
    type Resolver = (T, Resolver<T>);

    fn write(&self, encoder: &mut Encoder<'_>) -> Result<Self::Resolver, Unfit> {
        let own = T::own(*self);
        let resolver = own.serialize(encoder)?;
        Ok((own, resolver))
    }

    fn place(&self, (own, resolver): Self::Resolver, out: Place<T::Archived>) {
        Archive::resolve(&own, resolver, out);
    }

    fn with_view<R>(&self, function: impl FnOnce(Fields<'_, T>) -> R) -> R {
        function(*self)
    }
}

/// What [`record!`](crate::record) needs of this crate.
#[doc(hidden)]
pub mod parts {
    use super::*;

    pub use crate::batch::with_encoded;

    /// Says that what is written is a valid archive.
    pub trait Sealed {}

    /// A struct that `record!` declared.
    pub trait Struct:
        Sized + for<'a> Record<View<'a> = Fields<'a, Self>> + for<'a> Serialize<Encoder<'a>>
    {
    }

    /// A value of its own, with the contents of an archive.
    ///
    /// # Panics
    ///
    /// If the type's own `Deserialize` fails; what `record!` derives does not.
    pub fn own<T>(archived: &T::Archived) -> T
    where
        T: Archive<Archived: Deserialize<T, HighDeserializer<rancor::Error>>>,
    {
        rkyv::deserialize(archived).expect("a derived archive can always be read")
    }
}
