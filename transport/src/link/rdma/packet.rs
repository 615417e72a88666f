//! What travels in one SEND: news for the sender of earlier packets, and messages.
//!
//! ```text
//! 0        class     1 byte: with messages, or without
//! 1        returned  1 byte: how many numbers follow the head
//! 2        zero      2 bytes
//! 4        fetched   4 bytes: fetched messages so far
//! 8        credits   4 bytes for each class: packets so far whose slots are posted again
//! 16       numbers   8 bytes each: fetched messages that were read and dropped
//!          frames    a head of 16 bytes (kind, lane, two zero bytes, length, tag) and, for a message,
//!                    its payload, or, for an offer, 8 bytes: where the payload is in the sender's arena
//! ```
//!
//! Counts are cumulative and wrap. Packets without messages have credits of their own, so that news always gets
//! through: a receiver that has no room learns that its own messages were dropped.

use super::adapter::{DATA_SLOTS, STAGED_BYTES};
use crate::link::End;

pub(super) const HEAD_BYTES: usize = 16;
const NUMBER_BYTES: usize = 8;
pub(super) const FRAME_BYTES: usize = 16;
const OFFER_BYTES: usize = 8;
/// The largest payload that is gathered with others; a larger one is sent from where it is.
pub(super) const GATHERED_BYTES: usize =
    STAGED_BYTES - HEAD_BYTES - NUMBERS_WITH_DATA * NUMBER_BYTES - FRAME_BYTES;
/// Numbers in a packet with messages, and in one without.
pub(super) const NUMBERS_WITH_DATA: usize = 4;
pub(super) const NUMBERS_MAX: usize = (STAGED_BYTES - HEAD_BYTES) / NUMBER_BYTES;

const _: () = assert!(DATA_SLOTS > 2 && NUMBERS_MAX <= u8::MAX as usize);

/// Which credits a packet uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Data,
    Control,
}

/// The start of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) class: Class,
    pub(super) returned: u8,
    pub(super) fetched: u32,
    pub(super) credits: [u32; 2],
}

impl Head {
    fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[0] = match self.class {
            Class::Data => 1,
            Class::Control => 2,
        };
        bytes[1] = self.returned;
        bytes[4..8].copy_from_slice(&self.fetched.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.credits[0].to_le_bytes());
        bytes[12..].copy_from_slice(&self.credits[1].to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; HEAD_BYTES]) -> Result<Self, End> {
        let [
            class,
            returned,
            zero @ ..,
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            h,
            i,
            j,
            k,
            l,
        ] = bytes;
        let class = match class {
            1 => Class::Data,
            2 => Class::Control,
            _ => return Err(End::protocol("not the head of a packet")),
        };
        if zero != [0; 2] {
            return Err(End::protocol("not the head of a packet"));
        }
        Ok(Self {
            class,
            returned,
            fetched: u32::from_le_bytes([a, b, c, d]),
            credits: [
                u32::from_le_bytes([e, f, g, h]),
                u32::from_le_bytes([i, j, k, l]),
            ],
        })
    }
}

/// A frame of a packet that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame<'p> {
    /// A message.
    Message {
        lane: Lane,
        tag: u64,
        payload: &'p [u8],
    },
    /// A message of `len` bytes to be fetched from offset `at` of the sender's arena.
    Offer {
        lane: Lane,
        tag: u64,
        len: u32,
        at: u64,
    },
}

/// For whom a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// The program: it is a message.
    Messages = 0,
    /// The fabric: it is about exposed memory.
    Memory = 1,
}

const MESSAGE: u8 = 1;
const OFFER: u8 = 2;

/// Splits the first `N` bytes off.
fn split<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), End> {
    match bytes.split_first_chunk() {
        Some((&first, rest)) => Ok((first, rest)),
        None => Err(End::protocol("a packet is cut short")),
    }
}

/// Reads the head of a packet and hands each number to `returned`; where the frames start.
pub(super) fn read_head(
    packet: &[u8],
    mut returned: impl FnMut(u64) -> Result<(), End>,
) -> Result<(Head, usize), End> {
    let (head, mut rest) = split::<HEAD_BYTES>(packet)?;
    let head = Head::from_bytes(head)?;
    for _ in 0..head.returned {
        let (number, behind) = split(rest)?;
        returned(u64::from_le_bytes(number))?;
        rest = behind;
    }
    if head.class == Class::Control && !rest.is_empty() {
        return Err(End::protocol("a packet without messages has some"));
    }
    Ok((head, packet.len() - rest.len()))
}

/// Reads the frame at `at`, and says where the next one starts; `None` at the end of the packet.
pub(super) fn read_frame(packet: &[u8], at: usize) -> Result<Option<(Frame<'_>, usize)>, End> {
    let rest = packet.get(at..).unwrap_or_default();
    if rest.is_empty() {
        return Ok(None);
    }
    let (head, rest) = split::<FRAME_BYTES>(rest)?;
    let [kind, lane, zero @ .., a, b, c, d, e, f, g, h, i, j, k, l] = head;
    let (len, tag) = (
        u32::from_le_bytes([a, b, c, d]),
        u64::from_le_bytes([e, f, g, h, i, j, k, l]),
    );
    let lane = match (lane, zero) {
        (0, [0, 0]) => Lane::Messages,
        (1, [0, 0]) => Lane::Memory,
        _ => return Err(End::protocol("not the head of a frame")),
    };
    match kind {
        MESSAGE => match rest.get(..len as usize) {
            Some(payload) => {
                let next = at + FRAME_BYTES + payload.len();
                Ok(Some((Frame::Message { lane, tag, payload }, next)))
            }
            None => Err(End::protocol("a packet is cut short")),
        },
        OFFER => {
            let (at_peer, _) = split(rest)?;
            let offer = Frame::Offer {
                lane,
                tag,
                len,
                at: u64::from_le_bytes(at_peer),
            };
            Ok(Some((offer, at + FRAME_BYTES + OFFER_BYTES)))
        }
        _ => Err(End::protocol("not the head of a frame")),
    }
}

/// Writes the gathered part of a packet.
pub(super) struct Writer<'s> {
    bytes: &'s mut [u8],
    len: usize,
}

impl<'s> Writer<'s> {
    /// A packet that starts with the head, whose count is set here, and `numbers`: at most [`NUMBERS_MAX`].
    pub(super) fn new(bytes: &'s mut [u8], head: Head, numbers: &[u64]) -> Self {
        let mut writer = Self { bytes, len: 0 };
        let returned = numbers.len() as u8;
        writer.write(&Head { returned, ..head }.to_bytes());
        for number in numbers {
            writer.write(&number.to_le_bytes());
        }
        writer
    }

    fn write(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether a frame with so many bytes behind its head still fits.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.len + FRAME_BYTES + bytes <= self.bytes.len()
    }

    /// Whether an offer still fits.
    pub(super) fn has_room_for_offer(&self) -> bool {
        self.has_room_for(OFFER_BYTES)
    }

    fn head(&mut self, kind: u8, lane: Lane, len: usize, tag: u64) {
        let mut head = [0; FRAME_BYTES];
        head[0] = kind;
        head[1] = lane as u8;
        head[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        head[8..].copy_from_slice(&tag.to_le_bytes());
        self.write(&head);
    }

    /// A message; there has to be room.
    pub(super) fn message(&mut self, lane: Lane, tag: u64, payload: &[u8]) {
        self.head(MESSAGE, lane, payload.len(), tag);
        self.write(payload);
    }

    /// The head of a message whose payload follows from elsewhere, as the end of the packet.
    pub(super) fn message_head(&mut self, lane: Lane, tag: u64, len: usize) {
        self.head(MESSAGE, lane, len, tag);
    }

    /// An offer of `len` bytes at `at` of our arena; there has to be room.
    pub(super) fn offer(&mut self, lane: Lane, tag: u64, len: usize, at: u64) {
        self.head(OFFER, lane, len, tag);
        self.write(&at.to_le_bytes());
    }
}

/// What is read of a packet, written again; none if it is not a packet.
#[cfg(any(fuzzing, all(test, not(loom))))]
pub(crate) fn rewritten(packet: &[u8]) -> Option<Vec<u8>> {
    let mut numbers = Vec::new();
    let note = |number| {
        numbers.push(number);
        Ok(())
    };
    let (head, mut place) = read_head(packet, note).ok()?;
    let mut bytes = vec![0; packet.len()];
    let mut writer = Writer::new(&mut bytes, head, &numbers);
    while let Some((frame, next)) = read_frame(packet, place).ok()? {
        match frame {
            Frame::Message { lane, tag, payload } => writer.message(lane, tag, payload),
            Frame::Offer { lane, tag, len, at } => writer.offer(lane, tag, len as usize, at),
        }
        place = next;
    }
    let len = writer.len();
    bytes.truncate(len);
    Some(bytes)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::seeds::assert_seed;

    const HEAD: Head = Head {
        class: Class::Data,
        returned: 0,
        fetched: 3,
        credits: [4, u32::MAX],
    };

    #[test]
    fn a_packet_is_read_as_it_was_written() {
        let mut bytes = [0; STAGED_BYTES];
        let mut writer = Writer::new(&mut bytes, HEAD, &[7, 9]);
        writer.message(Lane::Messages, 1, b"hello");
        writer.offer(Lane::Memory, 2, 100_000, 4096);
        writer.message(Lane::Memory, 3, b"");
        let len = writer.len();
        let packet = &bytes[..len];

        let mut numbers = Vec::new();
        let (head, mut at) = read_head(packet, |number| {
            numbers.push(number);
            Ok(())
        })
        .unwrap();
        assert_eq!(
            head,
            Head {
                returned: 2,
                ..HEAD
            }
        );
        assert_eq!(numbers, [7, 9]);
        let mut frames = Vec::new();
        while let Some((frame, next)) = read_frame(packet, at).unwrap() {
            frames.push(frame);
            at = next;
        }
        let (payload, empty): (&[u8], &[u8]) = (b"hello", b"");
        assert_eq!(
            frames,
            [
                Frame::Message {
                    lane: Lane::Messages,
                    tag: 1,
                    payload
                },
                Frame::Offer {
                    lane: Lane::Memory,
                    tag: 2,
                    len: 100_000,
                    at: 4096
                },
                Frame::Message {
                    lane: Lane::Memory,
                    tag: 3,
                    payload: empty
                },
            ]
        );
    }

    #[test]
    fn the_seeds_of_the_fuzzer_are_packets() {
        let mut bytes = [0; STAGED_BYTES];
        let mut writer = Writer::new(&mut bytes, HEAD, &[7]);
        writer.message(Lane::Messages, 1, b"hello");
        writer.message(Lane::Memory, 3, b"");
        writer.offer(Lane::Memory, 2, 100_000, 4096);
        let len = writer.len();
        assert_seed("packets", "messages", &bytes[..len]);
        let head = Head {
            class: Class::Control,
            ..HEAD
        };
        let len = Writer::new(&mut bytes, head, &[7, 9, u64::MAX]).len();
        assert_seed("packets", "news", &bytes[..len]);
    }

    proptest! {
        /// Whatever a peer sends is an error or frames inside the packet, and reading it ends.
        #[test]
        fn any_bytes_are_read_or_refused(
            class in 0u8..4,
            returned in 0u8..3,
            body in proptest::collection::vec(prop_oneof![Just(0u8), 1u8..4, any::<u8>()], 0..200),
        ) {
            let mut packet = vec![class, returned, 0, 0];
            packet.extend(body);
            if let Some(rewritten) = rewritten(&packet) {
                prop_assert_eq!(rewritten, packet);
            }
        }
    }
}
