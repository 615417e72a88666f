//! What a worker and its coordinator say to each other, as bytes.
//!
//! ```text
//! frame: length of the rest (u32), kind (u8), fields
//! text:  length (u32), UTF-8                              numbers are little-endian
//! list:  count (u32), elements
//! ```
//!
//! A frame is read only after the mutual proof, but trusted no more for it: a length says how much
//! to read and never how much to allocate, a count is believed no further than the bytes that came
//! with it, and a byte too many is as wrong as one too few.

use std::io::{self, Read};

use super::{Book, Entry};
use crate::progress::{self, Amount};

/// The most bytes a frame can have after its length.
pub(super) const FRAME_BYTES_MAX: usize = 1 << 20;

/// The most bytes of words for people that one frame carries; the rest is cut off.
pub(super) const TEXT_BYTES_MAX: usize = 16 << 10;

/// What a worker tells the coordinator.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Report {
    /// I am here, and this is how I am reached and what I am like.
    Register(Entry),
    /// So far I have done this much.
    Progress(Amount),
    /// I cannot go on.
    Failed { message: String },
    /// I am done.
    Finished { summary: String },
    /// All are to end what they do.
    Cancel { reason: String },
    /// My messages to other nodes do not go the way they should.
    FellBack { reason: String },
}

/// What the coordinator tells a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// All are here.
    Book(Book),
    /// Stop.
    Abort { reason: String },
    /// A worker wants all to end what they do.
    Cancel { worker: u32, reason: String },
}

/// A message that can be told from its bytes.
pub(super) trait Message: Sized {
    /// The number that says which message this is.
    fn kind(&self) -> u8;

    /// Appends the fields.
    fn put(&self, bytes: &mut Vec<u8>);

    /// Reads the fields of the message that `kind` stands for.
    fn take(kind: u8, fields: &mut Fields<'_>) -> Result<Self, Malformed>;

    /// The whole frame, which must not be larger than the protocol allows.
    fn frame(&self) -> Result<Vec<u8>, Malformed> {
        let mut bytes = vec![0; 4];
        bytes.push(self.kind());
        self.put(&mut bytes);
        let length = frame_length((bytes.len() - 4) as u64)?;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        Ok(bytes)
    }

    /// Waits for the next frame; `None` when the stream ends before another one starts.
    fn read(stream: &mut impl Read) -> Result<Option<Self>, ReadError> {
        match read_frame(stream)? {
            Some(body) => Ok(Some(Self::parse(&body)?)),
            None => Ok(None),
        }
    }

    /// Reads a frame's bytes after the length.
    fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let (&kind, fields) = body.split_first().ok_or(Malformed::Short)?;
        let mut fields = Fields(fields);
        let message = Self::take(kind, &mut fields)?;
        fields.end()?;
        Ok(message)
    }
}

impl Message for Report {
    fn kind(&self) -> u8 {
        match self {
            Self::Register(_) => 1,
            Self::Progress(_) => 2,
            Self::Failed { .. } => 3,
            Self::Finished { .. } => 4,
            Self::Cancel { .. } => 5,
            Self::FellBack { .. } => 6,
        }
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Register(entry) => put_entry(bytes, entry),
            Self::Progress(amount) => put_amount(bytes, amount),
            Self::Failed { message: words }
            | Self::Finished { summary: words }
            | Self::Cancel { reason: words }
            | Self::FellBack { reason: words } => {
                put_words(bytes, words);
            }
        }
    }

    fn take(kind: u8, fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        Ok(match kind {
            1 => Self::Register(fields.entry()?),
            2 => Self::Progress(fields.amount()?),
            3 => Self::Failed {
                message: fields.text()?,
            },
            4 => Self::Finished {
                summary: fields.text()?,
            },
            5 => Self::Cancel {
                reason: fields.text()?,
            },
            6 => Self::FellBack {
                reason: fields.text()?,
            },
            kind => return Err(Malformed::Kind { kind }),
        })
    }
}

impl Message for Order {
    fn kind(&self) -> u8 {
        match self {
            Self::Book(_) => 65,
            Self::Abort { .. } => 66,
            Self::Cancel { .. } => 67,
        }
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Book(book) => put_list(bytes, book, put_entry),
            Self::Abort { reason } => put_words(bytes, reason),
            Self::Cancel { worker, reason } => {
                bytes.extend_from_slice(&worker.to_le_bytes());
                put_words(bytes, reason);
            }
        }
    }

    fn take(kind: u8, fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        Ok(match kind {
            65 => Self::Book(fields.list(Fields::entry)?),
            66 => Self::Abort {
                reason: fields.text()?,
            },
            67 => Self::Cancel {
                worker: fields.u32()?,
                reason: fields.text()?,
            },
            kind => return Err(Malformed::Kind { kind }),
        })
    }
}

/// How a frame breaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A frame is larger than any may be.
    #[error("a frame of {bytes} bytes is larger than the {FRAME_BYTES_MAX} allowed")]
    Long {
        /// Bytes after the length.
        bytes: u64,
    },
    /// A frame ends before its fields do.
    #[error("a frame ends before its fields do")]
    Short,
    /// A frame goes on after its fields.
    #[error("a frame has {bytes} bytes too many")]
    Excess {
        /// Bytes after the last field.
        bytes: usize,
    },
    /// A frame of a kind that nobody knows.
    #[error("there is no message of kind {kind}")]
    Kind {
        /// The number found.
        kind: u8,
    },
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
    /// A message of a kind that was due once, or not at all.
    #[error("a message came out of turn")]
    Turn,
}

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The stream failed, or ended inside of a frame.
    #[error(transparent)]
    Stream(#[from] io::Error),
    /// A frame came, and breaks the protocol.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// What is left of a frame's fields.
#[derive(Debug)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let length = self.u32()?;
        let bytes = self.bytes(length as usize)?;
        let text = str::from_utf8(bytes).map_err(|_| Malformed::Text)?;
        Ok(text.to_owned())
    }

    /// A list whose memory grows as its elements are found, whatever its count says.
    fn list<T>(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = self.u32()?;
        let mut elements = Vec::new();
        for _ in 0..count {
            elements.push(element(self)?);
        }
        Ok(elements)
    }

    fn entry(&mut self) -> Result<Entry, Malformed> {
        Ok(Entry {
            addresses: self.list(Fields::text)?,
            host: self.text()?,
            cores: self.u32()?,
            memory_bytes: self.u64()?,
            attributes: self.list(Fields::text)?,
        })
    }

    fn amount(&mut self) -> Result<Amount, Malformed> {
        Ok(Amount {
            records: self.u64()?,
            bytes: self.u64()?,
            bytes_total: self.u64()?,
            rounds: self.u64()?,
            measure: progress::from_bits(self.u64()?),
        })
    }

    fn end(self) -> Result<(), Malformed> {
        match self.0.len() {
            0 => Ok(()),
            bytes => Err(Malformed::Excess { bytes }),
        }
    }
}

/// Reads a frame's bytes after the length. Memory grows with what arrives.
fn read_frame(stream: &mut impl Read) -> Result<Option<Vec<u8>>, ReadError> {
    let Some(length) = read_length(stream)? else {
        return Ok(None);
    };
    let length = frame_length(u64::from(length))?;
    let mut body = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut body)?;
    if body.len() < length as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(body))
}

/// Reads a frame's length, or `None` when the stream ends instead.
fn read_length(stream: &mut impl Read) -> io::Result<Option<u32>> {
    let mut length = [0; 4];
    let mut filled = 0;
    while filled < length.len() {
        match stream.read(&mut length[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(u32::from_le_bytes(length)))
}

/// The length of a frame, once it is known to be one.
fn frame_length(bytes: u64) -> Result<u32, Malformed> {
    match u32::try_from(bytes) {
        Ok(length) if length as usize <= FRAME_BYTES_MAX => Ok(length),
        _ => Err(Malformed::Long { bytes }),
    }
}

fn put_list<T>(bytes: &mut Vec<u8>, elements: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    put_count(bytes, elements.len());
    for element in elements {
        put(bytes, element);
    }
}

fn put_entry(bytes: &mut Vec<u8>, entry: &Entry) {
    put_list(bytes, &entry.addresses, |bytes, text| {
        put_text(bytes, text);
    });
    put_text(bytes, &entry.host);
    bytes.extend_from_slice(&entry.cores.to_le_bytes());
    bytes.extend_from_slice(&entry.memory_bytes.to_le_bytes());
    put_list(bytes, &entry.attributes, |bytes, text| {
        put_text(bytes, text);
    });
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_count(bytes, text.len());
    bytes.extend_from_slice(text.as_bytes());
}

fn put_amount(bytes: &mut Vec<u8>, amount: &Amount) {
    let Amount {
        records,
        bytes: read,
        bytes_total,
        rounds,
        measure,
    } = *amount;
    let measure = progress::to_bits(measure);
    for number in [records, read, bytes_total, rounds, measure] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
}

/// Puts as much of `words` as a frame has room for.
fn put_words(bytes: &mut Vec<u8>, words: &str) {
    let mut end = words.len().min(TEXT_BYTES_MAX);
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    put_text(bytes, &words[..end]);
}

/// A count too large for its field makes a frame that is too large anyway, so it may saturate.
fn put_count(bytes: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&count.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn entry() -> impl Strategy<Value = Entry> {
        let texts = || vec(".{0,12}", 0..3);
        (texts(), ".{0,12}", any::<u32>(), any::<u64>(), texts()).prop_map(
            |(addresses, host, cores, memory_bytes, attributes)| Entry {
                addresses,
                host,
                cores,
                memory_bytes,
                attributes,
            },
        )
    }

    fn comes_back<M: Message + PartialEq + Debug>(message: &M) {
        let frame = message.frame().unwrap();
        let mut stream = &frame[..];
        assert_eq!(M::read(&mut stream).unwrap().as_ref(), Some(message));
        assert!(M::read(&mut stream).unwrap().is_none(), "and nothing else");
        for cut in 4..frame.len() {
            assert!(M::parse(&frame[4..cut]).is_err(), "cut at {cut}");
        }
        let excess = [&frame[4..], &[0]].concat();
        assert_eq!(M::parse(&excess), Err(Malformed::Excess { bytes: 1 }));
    }

    #[test]
    fn a_stream_that_ends_within_a_frame_is_an_error() {
        let frame = Order::Abort {
            reason: "enough".to_owned(),
        }
        .frame()
        .unwrap();
        for cut in 1..frame.len() {
            let outcome = Order::read(&mut &frame[..cut]);
            assert!(matches!(outcome, Err(ReadError::Stream(_))), "cut at {cut}");
        }
    }

    #[test]
    fn a_count_is_not_believed() {
        let claims_many = [&[1][..], &u32::MAX.to_le_bytes()].concat();
        assert_eq!(Report::parse(&claims_many), Err(Malformed::Short));
        let claims_long = [&[3][..], &u32::MAX.to_le_bytes(), b"short"].concat();
        assert_eq!(Report::parse(&claims_long), Err(Malformed::Short));
    }

    #[test]
    fn a_frame_over_the_limit_is_neither_read_nor_written() {
        let mut claims_long = &u32::MAX.to_le_bytes()[..];
        assert!(matches!(
            Report::read(&mut claims_long),
            Err(ReadError::Malformed(Malformed::Long { .. }))
        ));
        let entry = Entry::at(["a".repeat(FRAME_BYTES_MAX)]);
        assert!(Report::Register(entry).frame().is_err());
    }

    #[test]
    fn words_that_are_too_many_are_cut_between_characters() {
        let message = "é".repeat(TEXT_BYTES_MAX);
        let frame = Report::Failed { message }.frame().unwrap();
        let Ok(Report::Failed { message }) = Report::parse(&frame[4..]) else {
            panic!("a failure comes back");
        };
        assert_eq!(message.len(), TEXT_BYTES_MAX);
    }

    #[test]
    fn a_frame_of_the_other_direction_is_of_no_kind() {
        let reason = String::new();
        let order = Order::Abort { reason }.frame().unwrap();
        assert_eq!(
            Report::parse(&order[4..]),
            Err(Malformed::Kind { kind: 66 })
        );
    }

    proptest! {
        #[test]
        fn every_report_comes_back(
            entry in entry(),
            numbers: (u64, u64, u64, u64),
            measure: Option<f64>,
            words in ".{0,40}",
        ) {
            let (records, bytes, bytes_total, rounds) = numbers;
            let amount = Amount { records, bytes, bytes_total, rounds, measure };
            comes_back(&Report::Register(entry));
            comes_back(&Report::Progress(amount));
            comes_back(&Report::Failed { message: words.clone() });
            comes_back(&Report::Finished { summary: words.clone() });
            comes_back(&Report::Cancel { reason: words.clone() });
            comes_back(&Report::FellBack { reason: words });
        }

        #[test]
        fn every_order_comes_back(
            book in vec(entry(), 0..4),
            worker: u32,
            reason in ".{0,40}",
        ) {
            comes_back(&Order::Book(book));
            comes_back(&Order::Abort { reason: reason.clone() });
            comes_back(&Order::Cancel { worker, reason });
        }

        #[test]
        fn no_bytes_make_a_reader_panic(kind in 0u8..70, bytes in vec(any::<u8>(), 0..200)) {
            let _ = Report::read(&mut &bytes[..]);
            let _ = Order::read(&mut &bytes[..]);
            let of_some_kind = [&[kind], &bytes[..]].concat();
            let _ = Report::parse(&of_some_kind);
            let _ = Order::parse(&of_some_kind);
        }
    }
}
