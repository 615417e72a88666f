//! The path between two nodes that share nothing better: one TCP connection.
//!
//! A frame is a header of 16 bytes and a payload. Payloads are written straight from the arena they
//! are in, many frames to a system call, and read straight into a loan of the receiver's arena; only where a copy takes less
//! time than the kernel does for a list of places, or for a second read, they are copied. As
//! on shared memory, a loan is the sender's until the *receiver* has dropped the message: it says
//! so in a frame that goes back. So a slow receiver costs the sender its loans and nobody memory.
//!
//! Zeros between frames mean nothing. They are there so that the bytes of every large message, which is
//! aligned in the arena at either end, are aligned in the kernel's buffers too, which put what is written behind
//! what was written before, and every write is of whole cache lines. Where this was measured, 64 KiB took 13 us
//! one way over the loopback with them and 36 us without.
//!
//! What was measured and is not done: `MSG_ZEROCOPY`, which has to wait for the peer as a loan does anyway, but where the receiver is on
//! the same machine the kernel copies after all, and between two namespaces it moved 3.4 GB/s where a plain write moved 3.2; and two connections
//! for a pair, since one already keeps a core at either end busy. `cargo bench --bench tcp -- --ways` measures both beside one bare
//! socket; its figures are in `transport/README.md`.
//!
//! Whether the other machine still answers, and why a lost connection is a lost peer, is told in
//! [`pulse`](super::pulse).

use std::{
    collections::VecDeque,
    fmt,
    io::{self, IoSlice, IoSliceMut},
    net::Shutdown,
    rc::Rc,
    thread,
    time::Duration,
};

use super::{
    End, Endpoint,
    pulse::{self, Pulse, Signs, Verdict},
    tls::Wire,
};
use crate::{
    Arena, Buffer, Error, Loan, Loss, Rank,
    arena::{INLINE_BYTES, Purpose, Returns},
};

const HEADER_BYTES: usize = 16;
/// Large payloads start at a multiple of this in the stream.
const ALIGN: usize = 64;
/// Bytes read ahead of what a frame is known to need.
const STAGING_BYTES: usize = 64 << 10;
/// Messages up to this size are copied in less time than a second read takes. While larger ones come, no more
/// is read ahead than their header.
const AHEAD_OF_MIDDLING_BYTES: usize = 16 << 10;
/// Bytes of small frames that are put together.
const SMALL_BYTES: usize = 16 << 10;
/// Reads in one poll, so that a peer that sends without end what is no message does not keep us from the others.
const READS_A_POLL: u32 = 64;
/// Parts of pieces written by one system call.
const PARTS_A_WRITE: usize = 32;
/// Pieces of so many bytes together are copied to one place, and written from there, in less time than the kernel takes to
/// read a list of them.
const GATHERED_BYTES: usize = 12 << 10;
/// Bytes that wait to be written at most before they are.
const UNWRITTEN_BYTES: usize = 64 << 10;

/// What a frame is: the first byte of its header.
const MESSAGE: u8 = 1;
/// The message whose number is in the tag's place was dropped by its receiver.
const RETURNED: u8 = 2;
const CLOSE: u8 = 3;
/// What is about exposed memory, beside the messages.
const ASIDE: u8 = 4;
/// Such frames that wait for the peer to read. An honest one has less unread.
const ASIDES_MAX: usize = 1 << 16;
/// Nothing: the sender wants to see it acknowledged.
const BEAT: u8 = 9;

/// The start of a frame: kind, three zero bytes, length of the payload, tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    kind: u8,
    len: u32,
    tag: u64,
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.kind;
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..].copy_from_slice(&self.tag.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Result<Self, End> {
        let [kind, zero @ .., a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        let header = Self {
            kind,
            len: u32::from_le_bytes([a, b, c, d]),
            tag: u64::from_le_bytes([e, f, g, h, i, j, k, l]),
        };
        let known = match kind {
            MESSAGE | ASIDE => true,
            RETURNED | CLOSE | BEAT => header.len == 0,
            _ => false,
        };
        if known && zero == [0; 3] {
            Ok(header)
        } else {
            Err(End::protocol("not the header of a frame"))
        }
    }
}

/// What is on its way out: one piece of the stream of bytes.
enum Outgoing {
    /// Small frames, whole, one after the other.
    Small {
        frames: Vec<u8>,
        /// How many of them are beside the messages.
        asides: usize,
    },
    /// A large message, where it lies.
    Large {
        /// Zeros, and the header.
        header: [u8; ALIGN + HEADER_BYTES],
        /// The zeros that are left out.
        skip: usize,
        payload: Buffer,
    },
}

impl Outgoing {
    /// Its bytes, in two parts.
    fn parts(&self) -> [&[u8]; 2] {
        match self {
            Self::Small { frames, .. } => [frames, &[]],
            Self::Large {
                header,
                skip,
                payload,
            } => [&header[*skip..], payload],
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Small { frames, .. } => frames.len(),
            Self::Large {
                header,
                skip,
                payload,
            } => header.len() - skip + payload.len(),
        }
    }
}

/// What is to be written of `outgoing`, in its parts, after so many bytes.
fn rest_of(outgoing: &VecDeque<Outgoing>, written: usize) -> impl Iterator<Item = &[u8]> {
    let mut skip = written;
    let parts = outgoing.iter().flat_map(Outgoing::parts);
    parts.filter_map(move |part| {
        let start = skip.min(part.len());
        skip -= start;
        (start < part.len()).then_some(&part[start..])
    })
}

/// Bytes that were read before it was known where they belong.
struct Staging {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Staging {
    fn new() -> Self {
        Self {
            bytes: vec![0; STAGING_BYTES].into(),
            start: 0,
            end: 0,
        }
    }

    fn available(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn take(&mut self, bytes: usize) -> &[u8] {
        let start = self.start;
        self.start += bytes;
        &self.bytes[start..self.start]
    }

    /// Takes the zeros that are next.
    fn skip_padding(&mut self) {
        let (words, _) = self.available().as_chunks::<8>();
        // Most often there are many, or none.
        self.start += 8 * words.iter().take_while(|&&word| word == [0; 8]).count();
        let zeros = self.available().iter().take_while(|&&byte| byte == 0);
        self.start += zeros.count();
    }

    /// Makes room behind what is there, for at most so many bytes: at least one header and one inline
    /// payload.
    fn make_room(&mut self, most: usize) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.end < HEADER_BYTES + INLINE_BYTES {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let end = self.bytes.len().min(self.end + most);
        &mut self.bytes[self.end..end]
    }
}

/// A large message of which only a part has arrived.
struct Partial {
    loan: Loan,
    filled: usize,
    kind: u8,
}

/// One end of a link over TCP.
pub(crate) struct Tcp {
    peer: Rank,
    arena: Arena,
    wire: Wire,
    outgoing: VecDeque<Outgoing>,
    /// Bytes of the first outgoing piece that were written.
    written: usize,
    /// Bytes of all outgoing pieces.
    unwritten: usize,
    /// Where in a line the stream is behind them.
    position: usize,
    /// The memory of small frames that were written, for the next.
    spare: Vec<u8>,
    /// Where pieces are put together.
    gathered: Vec<u8>,
    /// Large messages that were written and are not yet dropped by the peer, by number.
    unreturned: VecDeque<Option<Buffer>>,
    /// The number of the first of them.
    unreturned_from: u64,
    staging: Staging,
    partial: Option<Partial>,
    /// What came beside the messages.
    asides: VecDeque<Buffer>,
    /// How many of the outgoing frames are beside the messages.
    asides_waiting: usize,
    /// Whether the message that comes next found no loan.
    starved: bool,
    /// Bytes to read ahead of what a frame is known to need: by the last message, as the next may be like it.
    ahead: usize,
    /// Large messages received so far.
    received: u64,
    returns: Rc<Returns>,
    /// Whether the socket may have more for us, and room for us: what epoll said, until a call
    /// would have waited.
    readable: bool,
    writable: bool,
    /// How often the socket took no more.
    waits: u64,
    pulse: Pulse,
    /// Why we ended the connection ourselves, as its end will be told.
    given_up: Option<Loss>,
    /// The end that reading found. It is told once what was read before is received.
    found: Option<End>,
    end: Option<End>,
    closing: bool,
}

impl Tcp {
    /// A link whose peer is taken for lost when its machine does not answer for `silence_max`.
    pub(crate) fn new(peer: Rank, arena: Arena, wire: Wire, silence_max: Duration) -> Self {
        pulse::ask_often(&wire, silence_max);
        Self {
            peer,
            arena,
            wire,
            outgoing: VecDeque::new(),
            written: 0,
            unwritten: 0,
            position: 0,
            spare: Vec::new(),
            gathered: Vec::new(),
            unreturned: VecDeque::new(),
            unreturned_from: 0,
            staging: Staging::new(),
            partial: None,
            asides: VecDeque::new(),
            asides_waiting: 0,
            starved: false,
            ahead: STAGING_BYTES,
            received: 0,
            returns: Rc::default(),
            readable: true,
            writable: true,
            waits: 0,
            pulse: Pulse::new(silence_max),
            given_up: None,
            found: None,
            end: None,
            closing: false,
        }
    }

    pub(crate) fn waits(&self) -> u64 {
        self.waits
    }

    /// Packets that the kernel has sent again. It knows as long as the socket is open, whatever became of the connection.
    pub(crate) fn retransmissions(&self) -> u64 {
        Signs::of(&self.wire).map_or(0, |signs| signs.retransmissions)
    }

    /// Large messages that the peer has not dropped, those that wait to be written among them.
    pub(crate) fn unread(&self) -> impl Iterator<Item = &Buffer> {
        let waiting = self.outgoing.iter().filter_map(|piece| match piece {
            Outgoing::Large { payload, .. } => Some(payload),
            Outgoing::Small { .. } => None,
        });
        self.unreturned.iter().flatten().chain(waiting)
    }

    /// Takes note of what epoll said.
    pub(crate) fn notify(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.end.is_some()
            || self.found.is_some() && !self.starved
            || self.has_frame()
            || self.wants_bytes()
    }

    /// Reads without having been told that there is something. For those who poll few connections this is
    /// quicker than to ask the event queue first.
    pub(crate) fn probe(&mut self) {
        if self.end.is_some() {
            return;
        }
        self.readable = true;
        if !self.has_frame() && self.wants_bytes() {
            self.read();
        }
    }

    /// Whether a large message is complete.
    fn is_message_whole(&self) -> bool {
        self.partial
            .as_ref()
            .is_some_and(|partial| partial.filled == partial.loan.len())
    }

    /// Whether a frame is there that can be dealt with now.
    fn has_frame(&self) -> bool {
        if self.is_message_whole() {
            return true;
        }
        let available = self.staging.available();
        let Some(&header) = available.first_chunk() else {
            return false;
        };
        match Header::from_bytes(header) {
            Ok(Header {
                kind: MESSAGE | ASIDE,
                len,
                ..
            }) if len as usize <= INLINE_BYTES => available.len() >= HEADER_BYTES + len as usize,
            Ok(Header {
                kind: MESSAGE | ASIDE,
                ..
            }) => !self.starved || self.arena.has_returns(),
            _ => true,
        }
    }

    pub(crate) fn end(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.readable = false;
        self.forget_outgoing();
        self.unreturned.clear();
        self.partial = None;
    }

    /// Looks whether the other machine still answers. If not, the link ends once what has arrived is
    /// received.
    pub(crate) fn tick(&mut self, now: Duration) {
        if self.end.is_some() || self.given_up.is_some() {
            return;
        }
        // A socket that says nothing has failed, which reading tells.
        let Ok(signs) = Signs::of(&self.wire) else {
            return;
        };
        match self.pulse.look(now, signs) {
            Verdict::Fine => {}
            Verdict::Beat => {
                if self.flush() {
                    self.push_small(BEAT, 0, &[]);
                    self.flush();
                }
            }
            Verdict::Silent(silence) => self.give_up(Loss::Silent(silence)),
        }
    }

    /// Ends the connection: reading goes on to its end, and tells `loss` there.
    fn give_up(&mut self, loss: Loss) {
        self.given_up = Some(loss);
        // It fails only when the connection has ended already.
        let _ = self.wire.stream().shutdown(Shutdown::Both);
        self.forget_outgoing();
        self.unreturned.clear(); // The memory may be what the last messages wait for.
        self.readable = true;
    }

    pub(crate) fn close(&mut self) {
        if self.end.is_some() || std::mem::replace(&mut self.closing, true) {
            return;
        }
        if !thread::panicking() && self.flush() {
            self.push_small(CLOSE, 0, &[]);
            self.flush();
            self.wire.say_end();
        }
        // Half a close: what the peer has still to read stays readable.
        let _ = self.wire.stream().shutdown(Shutdown::Write);
    }

    /// Writes what the socket takes; true when nothing waits to be written any more.
    pub(crate) fn flush(&mut self) -> bool {
        self.acknowledge();
        if self.readable && self.wire.is_shaking_hands() {
            self.read(); // Nothing can be written before the peer has had its say.
        }
        if self.writable && !self.outgoing.is_empty() {
            self.pad();
        }
        while self.writable && !self.outgoing.is_empty() {
            match self.write_some() {
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    self.waits += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Why the connection broke, and what the peer still said, is told by reading.
                Err(_) => {
                    self.forget_outgoing();
                    self.readable = true;
                }
            }
        }
        if self.writable && self.wire.holds_back() {
            match self.wire.flush() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(_) => self.readable = true,
            }
        }
        self.outgoing.is_empty() && !self.wire.holds_back()
    }

    fn forget_outgoing(&mut self) {
        self.outgoing.clear();
        self.asides_waiting = 0;
        (self.written, self.unwritten, self.position) = (0, 0, 0);
    }

    /// Sends what is beside the messages.
    pub(crate) fn send_aside(&mut self, aside: Buffer) {
        if self.end.is_some() {
            return;
        }
        if self.asides_waiting >= ASIDES_MAX {
            return self.end(End::protocol("it does not read what it asked for"));
        }
        self.asides_waiting += 1;
        self.push(ASIDE, aside);
    }

    pub(crate) fn has_aside(&self) -> bool {
        !self.asides.is_empty()
    }

    pub(crate) fn take_aside(&mut self) -> Option<Buffer> {
        self.asides.pop_front()
    }

    /// Tells the peer which of its messages were dropped.
    fn acknowledge(&mut self) {
        self.arena.reclaim();
        if self.returns.borrow().is_empty() {
            return;
        }
        let returns = self.returns.clone();
        for sequence in returns.borrow_mut().drain(..) {
            self.push_small(RETURNED, sequence, &[]);
        }
    }

    /// Puts a frame behind what waits to be written.
    fn push(&mut self, kind: u8, payload: Buffer) {
        if payload.len() <= INLINE_BYTES {
            self.push_small(kind, payload.tag(), &payload);
        } else {
            self.push_large(kind, payload);
        }
    }

    /// Puts a small frame behind what waits to be written.
    fn push_small(&mut self, kind: u8, tag: u64, payload: &[u8]) {
        let len = payload.len() as u32;
        let header = Header { kind, len, tag }.to_bytes();
        self.push_bytes([&header, payload]);
    }

    fn push_bytes(&mut self, parts: [&[u8]; 2]) {
        self.count(parts[0].len() + parts[1].len());
        let aside = usize::from(parts[0][0] == ASIDE);
        if let Some(Outgoing::Small { frames, asides }) = self.outgoing.back_mut()
            && frames.len() < SMALL_BYTES
        {
            *asides += aside;
            frames.extend_from_slice(parts[0]);
            frames.extend_from_slice(parts[1]);
            return;
        }
        let mut frames = std::mem::take(&mut self.spare);
        frames.extend_from_slice(parts[0]);
        frames.extend_from_slice(parts[1]);
        self.outgoing.push_back(Outgoing::Small {
            frames,
            asides: aside,
        });
    }

    fn count(&mut self, bytes: usize) {
        self.unwritten += bytes;
        self.position = (self.position + bytes) % ALIGN;
    }

    /// Puts zeros behind what waits to be written, up to the end of a line.
    fn pad(&mut self) {
        if self.position > 0 {
            self.push_bytes([&[0; ALIGN][self.position..], &[]]);
        }
    }

    fn push_large(&mut self, kind: u8, payload: Buffer) {
        let (tag, len) = (payload.tag(), payload.len() as u32);
        let mut header = [0; ALIGN + HEADER_BYTES];
        header[ALIGN..].copy_from_slice(&Header { kind, len, tag }.to_bytes());
        let skip = (self.position + HEADER_BYTES) % ALIGN;
        self.count(header.len() - skip + payload.len());
        self.outgoing.push_back(Outgoing::Large {
            header,
            skip,
            payload,
        });
    }

    fn write_some(&mut self) -> io::Result<usize> {
        if self.outgoing.len() == 1
            && let Some(Outgoing::Small { frames, .. }) = self.outgoing.front()
        {
            let rest = IoSlice::new(&frames[self.written..]);
            return self.wire.write_vectored(&[rest]); // Most often it is this.
        }
        let rest = rest_of(&self.outgoing, self.written);
        if self.unwritten <= GATHERED_BYTES {
            self.gathered.clear();
            rest.for_each(|part| self.gathered.extend_from_slice(part));
            return self.wire.write_vectored(&[IoSlice::new(&self.gathered)]);
        }
        let mut slices = [IoSlice::new(&[]); PARTS_A_WRITE];
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(rest) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        self.wire.write_vectored(&slices[..count])
    }

    /// Moves on by `written` bytes; large messages that are out wait for their return.
    fn advance(&mut self, written: usize) {
        self.written += written;
        self.unwritten -= written;
        while let Some(piece) = self.outgoing.front()
            && piece.len() <= self.written
        {
            self.written -= piece.len();
            match self.outgoing.pop_front() {
                Some(Outgoing::Large {
                    header, payload, ..
                }) => {
                    self.asides_waiting -= usize::from(header[ALIGN] == ASIDE);
                    self.unreturned.push_back(Some(payload));
                }
                Some(Outgoing::Small { mut frames, asides }) => {
                    self.asides_waiting -= asides;
                    frames.clear();
                    self.spare = frames;
                }
                None => {}
            }
        }
    }

    /// Lets go of the message that the peer has dropped.
    fn returned(&mut self, sequence: u64) -> Result<(), End> {
        if self.given_up.is_some() {
            return Ok(()); // We have let go of all of them.
        }
        let index = sequence.wrapping_sub(self.unreturned_from) as usize;
        let message = self.unreturned.get_mut(index).and_then(Option::take);
        message.ok_or(End::protocol("it returned a message that it was not sent"))?;
        while let Some(None) = self.unreturned.front() {
            self.unreturned.pop_front();
            self.unreturned_from += 1;
        }
        Ok(())
    }

    /// The next message among the bytes that were read; nothing while they are too few, or while
    /// there is no memory to put it in.
    fn parse(&mut self) -> Result<Option<Buffer>, End> {
        loop {
            if let Some(partial) = self
                .partial
                .take_if(|partial| partial.filled == partial.loan.len())
            {
                return Ok(self.sort(partial.kind, partial.loan.freeze()));
            }
            if self.partial.is_some() {
                return Ok(None);
            }
            self.staging.skip_padding();
            let Some(&header) = self.staging.available().first_chunk::<HEADER_BYTES>() else {
                return Ok(None);
            };
            let header = Header::from_bytes(header)?;
            match header.kind {
                RETURNED => {
                    self.staging.take(HEADER_BYTES);
                    self.returned(header.tag)?;
                }
                CLOSE => return Err(End::Closed),
                BEAT => {
                    self.staging.take(HEADER_BYTES);
                }
                _ if header.len as usize <= INLINE_BYTES => return Ok(self.parse_inline(header)),
                _ => {
                    if !self.start_large(header)? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn parse_inline(&mut self, header: Header) -> Option<Buffer> {
        let bytes = HEADER_BYTES + header.len as usize;
        if self.staging.available().len() < bytes {
            return None;
        }
        self.ahead = STAGING_BYTES;
        let payload = &self.staging.take(bytes)[HEADER_BYTES..];
        let buffer = Buffer::inline(header.tag, payload)?;
        self.sort(header.kind, buffer)
    }

    /// A message, to be received; what is none is put aside.
    #[inline]
    fn sort(&mut self, kind: u8, buffer: Buffer) -> Option<Buffer> {
        if kind == MESSAGE {
            return Some(buffer);
        }
        self.asides.push_back(buffer);
        None
    }

    /// Takes a loan for a large message and moves what has arrived of it there; false while there is
    /// no loan to be had.
    fn start_large(&mut self, header: Header) -> Result<bool, End> {
        let len = header.len as usize;
        let purpose = Purpose::Received(self.returns.clone(), self.received);
        let loan = self.arena.loan_for(len, purpose);
        let loan =
            loan.map_err(|_| End::protocol("it sent a message that does not fit in our arena"))?;
        self.starved = loan.is_none();
        let Some(mut loan) = loan else {
            return Ok(false);
        };
        self.received += 1;
        self.ahead = if len > AHEAD_OF_MIDDLING_BYTES {
            ALIGN
        } else {
            STAGING_BYTES
        };
        loan.set_tag(header.tag);
        self.staging.take(HEADER_BYTES);
        let filled = len.min(self.staging.available().len());
        loan[..filled].copy_from_slice(self.staging.take(filled));
        self.partial = Some(Partial {
            loan,
            filled,
            kind: header.kind,
        });
        Ok(true)
    }

    /// Reads once: the rest of a large message straight to its place, and what follows it.
    fn fill(&mut self) -> Result<(), End> {
        let shaking_hands = self.wire.is_shaking_hands();
        let staging = self.staging.make_room(self.ahead);
        let result = match &mut self.partial {
            Some(Partial { loan, filled, .. }) => {
                let rest = &mut loan[*filled..];
                let rest_bytes = rest.len();
                let mut slices = [IoSliceMut::new(rest), IoSliceMut::new(staging)];
                self.wire.read_vectored(&mut slices).inspect(|read| {
                    *filled += read.min(&rest_bytes);
                    self.staging.end += read.saturating_sub(rest_bytes);
                })
            }
            None => self.wire.read(staging).inspect(|read| {
                self.staging.end += read;
            }),
        };
        if shaking_hands {
            self.writable = true; // What waited for the handshake may go on, and no socket tells so.
        }
        if self.partial.is_none() {
            self.staging.skip_padding();
        }
        match result {
            Ok(0) => Err(End::Lost(
                self.given_up.take().unwrap_or(Loss::Disconnected),
            )),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Err(End::Lost(Loss::Disconnected))
            }
            Err(error) => Err(End::Lost(Loss::Connection(error.to_string()))),
        }
    }

    /// Reads once, and keeps for later what is wrong.
    fn read(&mut self) {
        if let Err(end) = self.fill() {
            self.readable = false;
            self.found.get_or_insert(end);
        }
    }

    /// Whether reading more could help: not while a whole header waits for a loan.
    fn wants_bytes(&self) -> bool {
        self.readable
            && self.found.is_none()
            && (self.partial.is_some()
                || match self.staging.available().first_chunk() {
                    None => true,
                    Some(&header) => Header::from_bytes(header)
                        .is_ok_and(|header| header.len as usize <= INLINE_BYTES),
                })
    }

    fn next(&mut self) -> Result<Option<Buffer>, End> {
        let mut reads = 0;
        loop {
            let message = self.parse()?;
            self.staging.skip_padding();
            if let Some(message) = message {
                return Ok(Some(message));
            }
            if self.has_aside() || reads == READS_A_POLL {
                return Ok(None);
            }
            if !self.wants_bytes() {
                // What is whole has been received. While a message waits for memory, so does the end.
                return match self.found.take_if(|_| !self.starved) {
                    Some(end) => Err(end),
                    None => Ok(None),
                };
            }
            self.read();
            reads += 1;
        }
    }
}

impl Endpoint for Tcp {
    fn peer(&self) -> Rank {
        self.peer
    }

    fn loan(&mut self, bytes: usize) -> Result<Option<Loan>, Error> {
        self.arena.loan(bytes)
    }

    fn send(&mut self, message: Buffer) -> Result<(), Error> {
        if let Some(end) = &self.end {
            return Err(end.error(self.peer));
        }
        if message.len() > u32::MAX as usize {
            return Err(Error::MessageTooLarge {
                bytes: message.len() as u64,
                limit: u32::MAX.into(),
            });
        }
        self.acknowledge(); // The line of the header has room for what was dropped before.
        self.push(MESSAGE, message);
        if self.unwritten >= UNWRITTEN_BYTES {
            self.flush();
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Option<Buffer>, Error> {
        self.flush();
        if let Some(end) = &self.end {
            return Err(end.error(self.peer));
        }
        self.next().map_err(|end| {
            let error = end.error(self.peer);
            self.end(end);
            error
        })
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tcp")
            .field("peer", &self.peer)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Ipv4Addr, TcpListener, TcpStream},
    };

    use proptest::prelude::*;

    use super::*;
    use crate::Ledger;

    /// A link, and the socket at its other end.
    fn link_to_a_socket() -> (Tcp, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let arena = Arena::new(&Ledger::new(1 << 20), 1 << 20).unwrap();
        let wire = Wire::Plain(mio::net::TcpStream::from_std(stream));
        (Tcp::new(1, arena, wire, Duration::from_secs(2)), peer)
    }

    #[test]
    fn what_arrived_before_a_silence_is_received_and_then_the_silence_told() {
        let (mut link, mut peer) = link_to_a_socket();
        let message = link.loan(1000).unwrap().unwrap();
        link.send(message.freeze()).unwrap();
        assert!(link.flush());
        for (kind, tag) in [(RETURNED, 0), (MESSAGE, 7)] {
            let header = Header { kind, len: 0, tag };
            peer.write_all(&header.to_bytes()).unwrap();
        }
        let silence = Duration::from_secs(3);
        link.give_up(Loss::Silent(silence));
        assert_eq!(link.receive().unwrap().unwrap().tag(), 7);
        let lost = link.receive().unwrap_err();
        assert!(
            matches!(lost, Error::PeerLost { peer: 1, cause: Loss::Silent(told) } if told == silence),
            "{lost}"
        );
    }

    #[test]
    fn what_is_written_is_whole_lines_and_large_payloads_start_one() {
        let (mut link, mut peer) = link_to_a_socket();
        peer.set_nonblocking(true).unwrap();
        let mut stream = Vec::new();
        for len in [8, 5000, 0, 104, 200_000, 30, 64] {
            let mut loan = link.loan(len).unwrap().unwrap();
            loan.fill(7);
            link.send(loan.freeze()).unwrap();
            while !link.flush() {
                link.notify(true, true);
                let _ = peer.read_to_end(&mut stream);
            }
            let _ = peer.read_to_end(&mut stream);
            assert!(
                stream.len().is_multiple_of(ALIGN),
                "{len}: {}",
                stream.len()
            );
            if len > INLINE_BYTES {
                let padding = (ALIGN - len % ALIGN) % ALIGN;
                let payload = &stream[stream.len() - padding - len..stream.len() - padding];
                assert!(payload.iter().all(|&byte| byte == 7));
                assert!((stream.len() - padding - len).is_multiple_of(ALIGN));
            }
        }
    }

    #[test]
    fn what_was_dropped_is_told_in_the_line_of_the_next_header() {
        let (mut link, mut peer) = link_to_a_socket();
        let message = Header {
            kind: MESSAGE,
            len: 1000,
            tag: 0,
        };
        peer.write_all(&message.to_bytes()).unwrap();
        peer.write_all(&[7; 1000]).unwrap();
        let received = loop {
            link.probe();
            if let Some(received) = link.receive().unwrap() {
                break received;
            }
        };
        drop(received);
        let answer = link.loan(1000).unwrap().unwrap();
        link.send(answer.freeze()).unwrap();
        assert!(link.flush());
        let mut line = [0; ALIGN];
        peer.read_exact(&mut line).unwrap();
        let returned = Header {
            kind: RETURNED,
            len: 0,
            tag: 0,
        };
        assert_eq!(line[..HEADER_BYTES], returned.to_bytes());
        assert_eq!(line[ALIGN - HEADER_BYTES..], message.to_bytes());
    }

    #[test]
    fn what_is_left_to_write_goes_on_where_the_socket_took_no_more() {
        let (mut link, _peer) = link_to_a_socket();
        for len in [20, 300, 0, 5000] {
            let mut loan = link.loan(len).unwrap().unwrap();
            (0..len).for_each(|place| loan[place] = place as u8);
            link.push(MESSAGE, loan.freeze());
        }
        let all: Vec<u8> = rest_of(&link.outgoing, 0).flatten().copied().collect();
        assert_eq!(all.len(), link.unwritten);
        for written in 0..=all.len() {
            let rest: Vec<u8> = rest_of(&link.outgoing, written)
                .flatten()
                .copied()
                .collect();
            assert_eq!(rest, all[written..]);
        }
    }

    proptest! {
        #[test]
        fn messages_are_received_however_the_stream_is_cut_and_padded(
            messages in prop::collection::vec((0usize..300, 0usize..130, any::<bool>()), 1..40),
            cuts in prop::collection::vec(1usize..5000, 1..20),
        ) {
            let mut stream = Vec::new();
            for (tag, &(len, padding, is_large)) in messages.iter().enumerate() {
                let len = if is_large { 100 * len } else { len };
                let header = Header { kind: MESSAGE, len: len as u32, tag: tag as u64 };
                stream.extend(header.to_bytes());
                stream.extend(std::iter::repeat_n(tag as u8, len));
                stream.extend(std::iter::repeat_n(0, padding));
            }
            let (mut link, mut peer) = link_to_a_socket();
            let mut cuts = cuts.iter().cycle();
            let (mut written, mut received) = (0, 0);
            while received < messages.len() {
                let cut = stream.len().min(written + cuts.next().unwrap());
                peer.write_all(&stream[written..cut]).unwrap();
                written = cut;
                link.probe();
                while let Some(message) = link.receive().unwrap() {
                    let (len, _, is_large) = messages[received];
                    prop_assert_eq!(message.len(), if is_large { 100 * len } else { len });
                    prop_assert_eq!(message.tag(), received as u64);
                    prop_assert!(message.iter().all(|&byte| byte == received as u8));
                    received += 1;
                }
            }
            drop(peer);
            while link.found.is_none() {
                link.probe();
            }
            prop_assert!(link.is_ready());
            prop_assert!(link.receive().is_err(), "the end comes after the last message");
        }

        #[test]
        fn a_header_is_read_as_it_was_written(tag: u64, len: u32) {
            for (kind, len) in [(MESSAGE, len), (RETURNED, 0), (CLOSE, 0), (BEAT, 0), (ASIDE, len)] {
                let header = Header { kind, len, tag };
                prop_assert_eq!(Header::from_bytes(header.to_bytes()).unwrap(), header);
            }
        }

        #[test]
        fn a_header_of_any_other_shape_is_refused(bytes: [u8; HEADER_BYTES]) {
            if let Ok(header) = Header::from_bytes(bytes) {
                prop_assert_eq!(header.to_bytes(), bytes);
            }
        }
    }
}
