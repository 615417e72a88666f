//! The tags of the messages of a run: which run, for which instance on the rank, what kind, which edge.

use crate::{graph::EdgeId, stage::Slot, time::Watermark};

pub(crate) const BATCH: u8 = 1;
pub(crate) const END: u8 = 2;
pub(crate) const PLAN: u8 = 3;
pub(crate) const TOTALS: u8 = 4;
pub(crate) const FAILED: u8 = 5;
/// A reader of an edge wants no more; the slot is the reader's.
pub(crate) const STOP: u8 = 6;
/// How far event time is on a channel. It travels in order with the batches, as a marker of a checkpoint would.
pub(crate) const WATERMARK: u8 = 7;
/// Sources that would go on are to end, on all ranks.
pub(crate) const ENOUGH: u8 = 8;
/// Somebody ends the run: who, and why.
pub(crate) const CANCEL: u8 = 9;
/// The run stands still, as far as the sender is concerned, and goes on.
pub(crate) const PAUSE: u8 = 10;
pub(crate) const RESUME: u8 = 11;
/// How far the sender is in event time, for streams that keep step.
pub(crate) const ALIGN: u8 = 12;
/// A batch, behind which its sender has ended.
pub(crate) const LAST: u8 = 13;
/// What counts also if it is of the run before of the same graph.
pub(crate) const EVER: [u8; 5] = [TOTALS, FAILED, CANCEL, PAUSE, RESUME];

pub(crate) fn new(run: u32, slot: Slot, kind: u8, edge: EdgeId) -> u64 {
    u64::from(run) << 32 | u64::from(slot) << 24 | u64::from(kind) << 16 | u64::from(edge)
}

/// The tag of what concerns the whole run.
pub(crate) fn of_run(run: u32, kind: u8) -> u64 {
    new(run, 0, kind, 0)
}

/// A message about event time: the instance that sends it, and how far it is.
pub(crate) fn time_of(instance: u32, watermark: Watermark) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&instance.to_le_bytes());
    bytes[4..].copy_from_slice(&watermark.to_time().to_le_bytes());
    bytes
}

/// What such a message says, if it is one.
pub(crate) fn parse_time(message: &[u8]) -> Option<(u32, Watermark)> {
    let (instance, time) = message.split_at_checked(4)?;
    let instance = u32::from_le_bytes(instance.try_into().ok()?);
    let time = i64::from_le_bytes(time.try_into().ok()?);
    Some((instance, Watermark::from_time(time)))
}

/// The slot, the kind and the edge of a tag.
pub(crate) fn parts(tag: u64) -> (Slot, u8, EdgeId) {
    ((tag >> 24) as Slot, (tag >> 16) as u8, tag as EdgeId)
}
