//! What one end of an RDMA link has to know of the other, as it travels over the bootstrap.

use std::fmt;

/// Bytes of an endpoint as it travels.
pub(crate) const ENDPOINT_BYTES: usize = 52;

/// The format of packets on the wire, which both ends have to share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    InfiniBand,
    RoceV1,
    RoceV2,
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InfiniBand => "InfiniBand",
            Self::RoceV1 => "RoCE v1",
            Self::RoceV2 => "RoCE v2",
        })
    }
}

/// One end of a link: its queue pair, its place in the network and its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(super) wire: Wire,
    /// The largest packet, as the verbs code it: from 1 for 256 bytes to 5 for 4096.
    pub(super) mtu: u8,
    /// Reads of its memory that it serves at a time.
    pub(super) reads: u8,
    /// The number of its queue pair, and that of the first packet it sends: 24 bits each.
    pub(super) queue_pair: u32,
    pub(super) first_packet: u32,
    /// Its address on InfiniBand.
    pub(super) lid: u16,
    /// Its address elsewhere.
    pub(super) gid: [u64; 2],
    /// Opens its arena to reads.
    pub(super) key: u32,
    /// Where its arena starts, as its device knows it, and its bytes.
    pub(super) start: u64,
    pub(super) bytes: u64,
}

impl Endpoint {
    pub(crate) fn to_bytes(self) -> [u8; ENDPOINT_BYTES] {
        let mut bytes = [0; ENDPOINT_BYTES];
        bytes[0] = match self.wire {
            Wire::InfiniBand => 1,
            Wire::RoceV1 => 2,
            Wire::RoceV2 => 3,
        };
        bytes[1] = self.mtu;
        bytes[2] = self.reads;
        bytes[4..8].copy_from_slice(&self.queue_pair.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.first_packet.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.key.to_le_bytes());
        bytes[16..18].copy_from_slice(&self.lid.to_le_bytes());
        // Its words are in the order of the network already.
        bytes[20..28].copy_from_slice(&self.gid[0].to_ne_bytes());
        bytes[28..36].copy_from_slice(&self.gid[1].to_ne_bytes());
        bytes[36..44].copy_from_slice(&self.start.to_le_bytes());
        bytes[44..].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    /// None when the bytes are not those of an endpoint.
    pub(crate) fn from_bytes(bytes: &[u8; ENDPOINT_BYTES]) -> Option<Self> {
        let wire = match bytes[0] {
            1 => Wire::InfiniBand,
            2 => Wire::RoceV1,
            3 => Wire::RoceV2,
            _ => return None,
        };
        let endpoint = Self {
            wire,
            mtu: bytes[1],
            reads: bytes[2],
            queue_pair: u32::from_le_bytes(part(bytes, 4)),
            first_packet: u32::from_le_bytes(part(bytes, 8)),
            key: u32::from_le_bytes(part(bytes, 12)),
            lid: u16::from_le_bytes(part(bytes, 16)),
            gid: [
                u64::from_ne_bytes(part(bytes, 20)),
                u64::from_ne_bytes(part(bytes, 28)),
            ],
            start: u64::from_le_bytes(part(bytes, 36)),
            bytes: u64::from_le_bytes(part(bytes, 44)),
        };
        let sound = (1..=5).contains(&endpoint.mtu)
            && endpoint.queue_pair < 1 << 24
            && endpoint.first_packet < 1 << 24
            && endpoint.start.checked_add(endpoint.bytes).is_some()
            && endpoint.to_bytes() == *bytes;
        sound.then_some(endpoint)
    }
}

/// The `N` bytes from `at` on.
fn part<const N: usize>(bytes: &[u8; ENDPOINT_BYTES], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::seeds::assert_seed;

    const END: Endpoint = Endpoint {
        wire: Wire::RoceV2,
        mtu: 5,
        reads: 16,
        queue_pair: 17,
        first_packet: 0x12_3456,
        lid: 0,
        gid: [0, 7],
        key: 0x1234,
        start: 1 << 40,
        bytes: 1 << 30,
    };

    #[test]
    fn an_endpoint_is_read_as_it_was_written() {
        assert_eq!(Endpoint::from_bytes(&END.to_bytes()), Some(END));
    }

    #[test]
    fn the_seeds_of_the_fuzzer_are_endpoints() {
        for (name, wire) in [
            ("infiniband", Wire::InfiniBand),
            ("roce-1", Wire::RoceV1),
            ("roce-2", Wire::RoceV2),
        ] {
            assert_seed("endpoints", name, &Endpoint { wire, ..END }.to_bytes());
        }
    }

    #[test]
    fn memory_past_the_end_of_the_address_space_is_refused() {
        let endless = Endpoint {
            start: u64::MAX,
            ..END
        };
        assert_eq!(Endpoint::from_bytes(&endless.to_bytes()), None);
    }

    proptest! {
        #[test]
        fn bytes_of_any_other_shape_are_refused(
            bytes in proptest::collection::vec(any::<u8>(), ENDPOINT_BYTES),
        ) {
            let bytes: [u8; ENDPOINT_BYTES] = bytes.try_into().unwrap();
            if let Some(endpoint) = Endpoint::from_bytes(&bytes) {
                prop_assert_eq!(endpoint.to_bytes(), bytes);
            }
        }
    }
}
