//! Which member a partition belongs to.

/// Says which member a partition belongs to: a function of its id and the number of members, or one of the types here. It has
/// to say the same at all members.
pub trait Partitioner {
    /// The member that the partition belongs to; `None` leaves it where it is.
    fn member_of(&self, id: u64, members: usize) -> Option<usize>;
}

impl<F: Fn(u64, usize) -> usize> Partitioner for F {
    fn member_of(&self, id: u64, members: usize) -> Option<usize> {
        Some(self(id, members))
    }
}

/// The remainder of the id by the number of members: Harp's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modulo;

impl Partitioner for Modulo {
    fn member_of(&self, id: u64, members: usize) -> Option<usize> {
        Some((id % members as u64) as usize)
    }
}

/// Leaves every partition where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stay;

impl Partitioner for Stay {
    fn member_of(&self, _id: u64, _members: usize) -> Option<usize> {
        None
    }
}
