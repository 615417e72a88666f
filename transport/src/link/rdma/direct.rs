//! What the two devices do to exposed memory of the peer, without its program: WRITE, READ and atomic requests.
//!
//! # Order
//!
//! One queue pair carries these requests and the packets, and its order is the order of operations. A device carries out
//! a request after all WRITEs, packets and atomics before it; but what changes memory may overtake a READ or an atomic, unless it is
//! told to wait for them (`IBV_SEND_FENCE`): so WRITEs, and packets with questions about memory, are told
//! so while there are any. Operations that find no room for their requests wait here, and packets behind them: so a
//! message never overtakes what was put before it.

use std::collections::VecDeque;

use super::{
    Posted, Rdma,
    adapter::{Exposure, REQUESTS},
    receive::{KEPT_FOR_PACKETS, READ_BYTES},
};
use crate::{
    Buffer, Loan, Outcome,
    remote::WORD_BYTES,
    verbs::{
        Qp,
        sys::{self, ibv_sge, ibv_wr, ibv_wr_atomic, ibv_wr_rdma},
    },
};

/// An operation of ours on exposed memory of the peer.
pub(crate) struct Direct {
    /// Tells it from others when it is done.
    pub(crate) number: u64,
    /// What opens the memory, and where it is in the peer's arena: in the memory that was exposed, which has been checked.
    pub(crate) key: u32,
    pub(crate) at: u64,
    pub(crate) deed: Deed,
}

/// What is done.
pub(crate) enum Deed {
    /// Pieces are written one behind the other, all but the last up to the end of a word. They are in
    /// our arena or, if they go inside the request, by value.
    Put { pieces: VecDeque<Buffer> },
    /// Memory for the whole is filled; so much of it has been asked for.
    Get { whole: Loan, asked: usize },
    /// A word is added to; `old` has room for what it was.
    FetchAdd { value: u64, old: Loan },
    /// A word is replaced if it is `expected`; `old` has room for what it was.
    CompareSwap { expected: u64, new: u64, old: Loan },
}

/// What the last request of an operation brings when it completes.
pub(super) enum Last {
    Put,
    Got(Loan),
    Old(Loan),
}

/// How many of `rest` bytes from `offset` on one request takes: at most `most`, a multiple of whole words. Bytes up to the first
/// whole word go alone, so that packets, whose size is a multiple of words too, never part one.
pub(crate) fn part_of(offset: u64, rest: usize, most: usize) -> usize {
    match offset as usize % WORD_BYTES {
        0 => rest.min(most),
        within => rest.min(WORD_BYTES - within),
    }
}

impl Rdma {
    /// Lets the peer's device use memory of ours, at `offset` of our arena.
    pub(crate) fn expose(&self, offset: u64, bytes: u64) -> Option<Exposure> {
        self.parts.qp.as_ref()?;
        self.parts.adapter.expose(offset, bytes)
    }

    /// Whether the peer has such memory in its arena.
    pub(crate) fn reaches(&self, offset: u64, bytes: u64) -> bool {
        offset
            .checked_add(bytes)
            .is_some_and(|end| end <= self.remote.bytes)
    }

    /// The most bytes of a piece that is put by value.
    pub(crate) fn inline_bytes(&self) -> usize {
        self.parts.qp.as_ref().map_or(0, Qp::inline_bytes)
    }

    /// Whether our device has operations on words.
    pub(crate) fn has_atomics(&self) -> bool {
        self.parts.adapter.has_atomics()
    }

    /// Has words of memory that is exposed from now on operated on by devices, which no processor may do then.
    #[cfg(test)]
    pub(crate) fn serve_atomics(&self) {
        self.parts.adapter.serve_atomics();
    }

    /// Writes nothing, and has the peer told so by a number: what no link does.
    #[cfg(test)]
    pub(crate) fn write_with_immediate(&mut self) {
        let request = self.request(sys::IBV_WR_RDMA_WRITE_WITH_IMM, true);
        self.post(&mut [request], &mut []);
        self.posted.push_back(Posted::Probe);
    }

    /// Begins an operation, at once if there is room. It is [done](Self::take_done) after those before it; if
    /// the link ends first, never.
    pub(crate) fn operate(&mut self, direct: Direct) {
        if self.end.is_none() {
            self.directs.push_back(direct);
            self.push_directs();
        }
    }

    /// An operation that is done, and what it brought.
    pub(crate) fn take_done(&mut self) -> Option<(u64, Outcome)> {
        self.done.pop_front()
    }

    /// Posts what is to be done to the memory of the peer, as far as there is room for requests.
    pub(super) fn push_directs(&mut self) {
        while self.parts.qp.is_some()
            && self.posted.len() + KEPT_FOR_PACKETS < REQUESTS as usize
            && let Some(direct) = self.directs.pop_front()
        {
            if let Some(rest) = self.post_part(direct) {
                self.directs.push_front(rest);
            }
        }
    }

    /// Posts the next request of an operation; what is left of that.
    fn post_part(&mut self, direct: Direct) -> Option<Direct> {
        let Direct {
            number, at, deed, ..
        } = direct;
        let rdma = ibv_wr_rdma {
            remote_addr: self.remote.start + at,
            rkey: direct.key,
        };
        let atomic = |compare_add, swap| ibv_wr {
            atomic: ibv_wr_atomic {
                remote_addr: rdma.remote_addr,
                compare_add,
                swap,
                rkey: rdma.rkey,
            },
        };
        match deed {
            Deed::Put { mut pieces } => {
                let piece = pieces.pop_front()?;
                let len = piece.len();
                let last = pieces.is_empty().then_some((number, Last::Put));
                self.write(ibv_wr { rdma }, piece, last);
                (!pieces.is_empty()).then_some(Direct {
                    at: at + len as u64,
                    deed: Deed::Put { pieces },
                    ..direct
                })
            }
            Deed::Get { whole, asked } => {
                let bytes = part_of(at, whole.len() - asked, READ_BYTES as usize);
                let start = whole.as_ptr() as u64 + asked as u64;
                let (wr, into) = (ibv_wr { rdma }, [start, bytes as u64]);
                let asked = asked + bytes;
                if asked == whole.len() {
                    self.fetch(
                        sys::IBV_WR_RDMA_READ,
                        wr,
                        into,
                        Some((number, Last::Got(whole))),
                    );
                    return None;
                }
                self.fetch(sys::IBV_WR_RDMA_READ, wr, into, None);
                Some(Direct {
                    at: at + bytes as u64,
                    deed: Deed::Get { whole, asked },
                    ..direct
                })
            }
            Deed::FetchAdd { value, old } => {
                let into = [old.as_ptr() as u64, WORD_BYTES as u64];
                let last = Some((number, Last::Old(old)));
                let opcode = sys::IBV_WR_ATOMIC_FETCH_AND_ADD;
                self.fetch(opcode, atomic(value, 0), into, last);
                None
            }
            Deed::CompareSwap { expected, new, old } => {
                let into = [old.as_ptr() as u64, WORD_BYTES as u64];
                let last = Some((number, Last::Old(old)));
                let opcode = sys::IBV_WR_ATOMIC_CMP_AND_SWP;
                self.fetch(opcode, atomic(expected, new), into, last);
                None
            }
        }
    }

    /// Posts a request that writes `piece`.
    fn write(&mut self, wr: ibv_wr, piece: Buffer, last: Option<(u64, Last)>) {
        let mut request = self.request(sys::IBV_WR_RDMA_WRITE, last.is_some());
        request.wr = wr;
        request.num_sge = 1;
        if piece.block().is_none() {
            request.send_flags |= sys::IBV_SEND_INLINE;
        }
        if self.fetches > 0 {
            request.send_flags |= sys::IBV_SEND_FENCE;
        }
        let from = self.piece(&piece);
        self.post(&mut [request], &mut [[from, ibv_sge::default()]]);
        self.posted.push_back(Posted::Direct {
            _piece: Some(piece),
            fetches: false,
            last,
        });
    }

    /// Posts a request that brings memory of the peer here: to so many bytes from a place on in a loan that `last` or
    /// [`directs`](Self::directs) holds until it completes.
    fn fetch(&mut self, opcode: i32, wr: ibv_wr, into: [u64; 2], last: Option<(u64, Last)>) {
        let mut request = self.request(opcode, last.is_some());
        request.wr = wr;
        request.num_sge = 1;
        let [addr, bytes] = into;
        let into = ibv_sge {
            addr,
            length: bytes as u32,
            lkey: self.parts.adapter.local_key(),
        };
        self.post(&mut [request], &mut [[into, ibv_sge::default()]]);
        self.fetches += 1;
        self.posted.push_back(Posted::Direct {
            _piece: None,
            fetches: true,
            last,
        });
    }

    /// Takes note that a request has completed, which is the `last` of its operation or not.
    pub(super) fn direct_completed(&mut self, fetches: bool, last: Option<(u64, Last)>) {
        self.fetches -= usize::from(fetches);
        if let Some((number, last)) = last {
            let outcome = match last {
                Last::Put => Outcome::Put,
                Last::Got(whole) => Outcome::Got(whole.freeze()),
                Last::Old(old) => {
                    let mut word = [0; WORD_BYTES];
                    word.copy_from_slice(&old[..WORD_BYTES]);
                    Outcome::Old(u64::from_ne_bytes(word))
                }
            };
            self.done.push_back((number, outcome));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_follow_each_other_and_no_word_is_in_two_of_them(
            offset in 0u64..100,
            bytes in 0usize..5_000,
            words in 1usize..200,
        ) {
            let end = offset + bytes as u64;
            let mut at = offset;
            while at < end {
                let part = part_of(at, (end - at) as usize, words * WORD_BYTES);
                prop_assert!((1..=words * WORD_BYTES).contains(&part));
                let (first, behind) = (at, at + part as u64);
                // Whatever multiple of a word a packet takes, it ends with a word, or the part does.
                prop_assert!(first.is_multiple_of(8) || part < WORD_BYTES);
                at = behind;
                prop_assert!(at == end || at.is_multiple_of(8));
            }
        }
    }
}
