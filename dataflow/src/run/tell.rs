//! What ranks tell one another of a run, beside what is in its edges.

use std::cell::RefCell;

use transport::Fabric;

use super::{Instance, tag};
use crate::{
    Error,
    graph::{EdgeId, Graph, Schedule},
    one_line,
};

/// Tells those who still send to an instance that it wants no more.
pub(super) fn tell_senders(
    reader: &Instance,
    graph: &Graph,
    schedule: &Schedule,
    run: u32,
    fabric: &RefCell<Fabric>,
) -> Result<(), Error> {
    let mut fabric = fabric.borrow_mut();
    let size = fabric.size();
    for (&edge, &open) in graph.vertices[reader.vertex]
        .inputs
        .iter()
        .zip(&reader.open)
    {
        if open == 0 {
            continue;
        }
        let senders = schedule.instances(&graph.vertices[edge].node.placement);
        let stop = tag::new(run, reader.slot, tag::STOP, edge as EdgeId);
        for rank in (0..size).filter(|&rank| senders.number_on(rank) > 0) {
            fabric.send_copy(rank, stop, &[])?;
        }
    }
    Ok(())
}

/// Tells the other ranks that this one failed in run `number`, as far as they can still be told.
pub fn tell_failure(fabric: &mut Fabric, number: u32, error: &Error) {
    tell_end(fabric, number, &one_line(error));
}

/// Tells the other ranks why this one takes no part in a run any more, as far as they can still be told.
pub(crate) fn tell_end(fabric: &mut Fabric, number: u32, reason: &str) {
    for rank in (0..fabric.size())
        .filter(|&rank| rank != fabric.rank())
        .collect::<Vec<_>>()
    {
        // Who is gone needs not be told, and without room the end of our process tells it.
        let _ = fabric.send_copy(rank, tag::of_run(number, tag::FAILED), reason.as_bytes());
    }
}
