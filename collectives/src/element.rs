//! What vectors are made of.

/// A value of fixed size without holes, pointers or invalid bit patterns, so that it can be read in place from
/// what a peer wrote: integers, floats, arrays of them, and structs that derive [`bytemuck::Pod`].
///
/// Its alignment is at most eight bytes, and it has a size: anything else does not compile.
pub trait Element: bytemuck::Pod {}

impl<T: bytemuck::Pod> Element for T {}

/// Refuses, while compiling, a type that messages cannot be read as.
pub(crate) const fn check<T: Element>() {
    assert!(
        align_of::<T>() <= 8 && size_of::<T>() > 0,
        "elements have a size, and an alignment of at most eight bytes"
    );
}
