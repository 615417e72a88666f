//! The records that a program declares itself.

/// Declares a struct that is a [`Record`](crate::Record). Its view is a reference to its archive, whose
/// fields have the names of its own and the archived types of rkyv (`x.to_native()` gives a number).
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
            type View<'a> = &'a $crate::rkyv::Archived<$name>;

            fn view(archived: &$crate::rkyv::Archived<$name>) -> &$crate::rkyv::Archived<$name> {
                archived
            }

            fn shorten<'short, 'long: 'short>(
                view: &'long $crate::rkyv::Archived<$name>,
            ) -> &'short $crate::rkyv::Archived<$name> {
                view
            }

            fn own(view: &$crate::rkyv::Archived<$name>) -> Self {
                $crate::record_parts::own(view)
            }
        }

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
                function: impl ::core::ops::FnOnce(&$crate::rkyv::Archived<$name>) -> R,
            ) -> R {
                $crate::record_parts::with_encoded(self, function)
            }
        }

        impl $crate::Encode for &$crate::rkyv::Archived<$name> {
            type Record = $name;
            type Resolver = ($name, $crate::rkyv::Resolver<$name>);

            fn write(
                &self,
                encoder: &mut $crate::Encoder<'_>,
            ) -> ::core::result::Result<Self::Resolver, $crate::Unfit> {
                let own = <$name as $crate::Record>::own(self);
                let resolver = $crate::rkyv::Serialize::serialize(&own, encoder)?;
                ::core::result::Result::Ok((own, resolver))
            }

            fn place(
                &self,
                (own, resolver): Self::Resolver,
                out: $crate::rkyv::Place<$crate::rkyv::Archived<$name>>,
            ) {
                $crate::rkyv::Archive::resolve(&own, resolver, out);
            }

            fn with_view<R>(
                &self,
                function: impl ::core::ops::FnOnce(&$crate::rkyv::Archived<$name>) -> R,
            ) -> R {
                function(self)
            }
        }
    };
}

/// What [`record!`](crate::record) needs of this crate.
#[doc(hidden)]
pub mod parts {
    use rkyv::{Archive, Deserialize, api::high::HighDeserializer, rancor};

    pub use crate::batch::with_encoded;

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
