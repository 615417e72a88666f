//! What goes on beside the operations of groups, on the same links.

use std::{any::Any, rc::Rc};

use transport::{Buffer, Rank};

use crate::{Engine, Error};

/// Something that goes on beside the operations of groups: it has messages of its own on the same links, and gets its turn
/// whenever this rank waits for an operation.
pub trait Attend: Any {
    /// Takes in a message that is not of an operation of a group; gives it back if it is none of its own.
    fn receive(&self, from: Rank, message: Buffer) -> Option<Buffer>;

    /// Takes note that a rank is gone, or takes part in nothing any more.
    fn lost(&self, peer: Rank, error: &Error);

    /// Does some of what there is to do; true if there is more that can be done at once.
    fn turn(&self) -> bool;
}

impl Engine {
    /// Has `attendant` go on beside the operations. An engine has one, the first.
    pub fn attend(&self, attendant: Rc<dyn Attend>) {
        for (peer, error) in self.losses() {
            attendant.lost(peer, &error);
        }
        let _ = self.0.attendant.set(attendant); // The first stays.
    }

    /// What goes on beside the operations, if it is an `A`.
    pub fn attendant<A: Attend>(&self) -> Option<Rc<A>> {
        let attendant: Rc<dyn Any> = self.0.attendant.get()?.clone();
        attendant.downcast().ok()
    }
}
