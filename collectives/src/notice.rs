//! What members of a group tell each other beside their operations.

use transport::Rank;

use crate::agree::{Ballot, Decision, Message};

/// Something said about a group. All of it can be said of a group that is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A member was lost.
    Lost { peer: Rank, cause: String },
    /// A member that was needed had closed its end.
    Closed { peer: Rank },
    /// The sender called something else than another member.
    Mismatch {
        peer: Rank,
        ours: String,
        theirs: String,
    },
    /// The sender gave up.
    GaveUp { reason: String },
    /// Somebody ended what the job does.
    Cancelled { by: String, reason: String },
    /// The sender waits in a call, and asks whether the receiver is in the same.
    Check(Check),
    /// The sender let go of the group.
    Left,
    /// A step of an agreement.
    Agreement { number: u32, message: Message },
}

/// A question about a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    /// Which call.
    pub(crate) number: u32,
    /// The signature of the sender's.
    pub(crate) hash: u32,
    /// Agreements that the sender has begun.
    pub(crate) agreements: u32,
    /// Whether the sender knows that the receiver's is another, and only asks which.
    pub(crate) is_certain: bool,
    /// The sender's, in words.
    pub(crate) call: String,
    /// The calls before that one, the latest first.
    pub(crate) earlier: Vec<(u32, String)>,
}

const LOST: u8 = 1;
const CLOSED: u8 = 2;
const MISMATCH: u8 = 3;
const GAVE_UP: u8 = 4;
const CHECK: u8 = 5;
const LEFT: u8 = 6;
const QUERY: u8 = 7;
const VOTE: u8 = 8;
const PREPARE: u8 = 9;
const READY: u8 = 10;
const DECIDED: u8 = 11;
const EXCLUDED: u8 = 12;
const OUT: u8 = 13;
const CANCELLED: u8 = 14;

impl Notice {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::new());
        match self {
            Self::Lost { peer, cause } => out.byte(LOST).number(*peer).text(cause),
            Self::Closed { peer } => out.byte(CLOSED).number(*peer),
            Self::Mismatch { peer, ours, theirs } => {
                out.byte(MISMATCH).number(*peer).text(ours).text(theirs)
            }
            Self::GaveUp { reason } => out.byte(GAVE_UP).text(reason),
            Self::Cancelled { by, reason } => out.byte(CANCELLED).text(by).text(reason),
            Self::Check(check) => {
                (out.byte(CHECK).number(check.number).number(check.hash))
                    .number(check.agreements)
                    .byte(check.is_certain.into())
                    .text(&check.call);
                out.number(check.earlier.len() as u32);
                for (hash, call) in &check.earlier {
                    out.number(*hash).text(call);
                }
                &mut out
            }
            Self::Left => out.byte(LEFT),
            Self::Agreement { number, message } => match message {
                Message::Query { lost } => out.byte(QUERY).number(*number).members(lost),
                Message::Vote {
                    ballot,
                    lost,
                    prepared,
                } => {
                    let (by, decision) = match prepared {
                        Some((by, decision)) => (*by, Some(decision)),
                        None => (u32::MAX, None),
                    };
                    out.byte(VOTE).number(*number).ballot(ballot).members(lost);
                    out.number(by);
                    match decision {
                        Some(decision) => out.decision(decision),
                        None => &mut out,
                    }
                }
                Message::Prepare(decision) => out.byte(PREPARE).number(*number).decision(decision),
                Message::Ready => out.byte(READY).number(*number),
                Message::Decided(decision) => out.byte(DECIDED).number(*number).decision(decision),
                Message::Excluded => out.byte(EXCLUDED).number(*number),
                Message::Out => out.byte(OUT).number(*number),
            },
        };
        out.0
    }

    /// What was encoded, or nothing if it is no notice.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut read = Reader(bytes);
        let kind = read.byte()?;
        if matches!(kind, GAVE_UP | LEFT | CANCELLED) {
            return Some(match kind {
                LEFT => Self::Left,
                CANCELLED => Self::Cancelled {
                    by: read.text()?,
                    reason: read.text()?,
                },
                _ => Self::GaveUp {
                    reason: read.text()?,
                },
            });
        }
        let number = read.number()?;
        let message = match kind {
            LOST => {
                return Some(Self::Lost {
                    peer: number,
                    cause: read.text()?,
                });
            }
            CLOSED => return Some(Self::Closed { peer: number }),
            MISMATCH => {
                return Some(Self::Mismatch {
                    peer: number,
                    ours: read.text()?,
                    theirs: read.text()?,
                });
            }
            CHECK => {
                return Some(Self::Check(Check {
                    number,
                    hash: read.number()?,
                    agreements: read.number()?,
                    is_certain: read.byte()? != 0,
                    call: read.text()?,
                    earlier: (0..read.number()?)
                        .map(|_| Some((read.number()?, read.text()?)))
                        .collect::<Option<_>>()?,
                }));
            }
            QUERY => Message::Query {
                lost: read.members()?,
            },
            VOTE => {
                let (ballot, lost, by) = (read.ballot()?, read.members()?, read.number()?);
                let prepared = match by {
                    u32::MAX => None,
                    by => Some((by, read.decision()?)),
                };
                Message::Vote {
                    ballot,
                    lost,
                    prepared,
                }
            }
            PREPARE => Message::Prepare(read.decision()?),
            READY => Message::Ready,
            DECIDED => Message::Decided(read.decision()?),
            EXCLUDED => Message::Excluded,
            OUT => Message::Out,
            _ => return None,
        };
        Some(Self::Agreement { number, message })
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn byte(&mut self, byte: u8) -> &mut Self {
        self.0.push(byte);
        self
    }

    fn number(&mut self, number: u32) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn long(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.number(text.len() as u32);
        self.0.extend(text.bytes());
        self
    }

    fn members(&mut self, members: &[bool]) -> &mut Self {
        self.number(members.len() as u32);
        for eight in members.chunks(8) {
            let bits = eight
                .iter()
                .rev()
                .fold(0, |bits, &is| bits << 1 | u8::from(is));
            self.0.push(bits);
        }
        self
    }

    fn ballot(&mut self, ballot: &Ballot) -> &mut Self {
        self.byte(ballot.shrinks.into())
            .long(ballot.flags)
            .number(ballot.number)
    }

    fn decision(&mut self, decision: &Decision) -> &mut Self {
        self.ballot(&decision.ballot).members(&decision.lost);
        let (one, other) = decision.clash.unwrap_or((u32::MAX, u32::MAX));
        self.number(one).number(other)
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn number(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*bytes))
    }

    fn long(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*bytes))
    }

    fn bytes(&mut self, len: usize) -> Option<&[u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<String> {
        let len = self.number()? as usize;
        Some(String::from_utf8_lossy(self.bytes(len)?).into_owned())
    }

    fn members(&mut self) -> Option<Vec<bool>> {
        let len = self.number()? as usize;
        let bits = self.bytes(len.div_ceil(8))?;
        Some(
            (0..len)
                .map(|at| bits[at / 8] >> (at % 8) & 1 == 1)
                .collect(),
        )
    }

    fn ballot(&mut self) -> Option<Ballot> {
        Some(Ballot {
            shrinks: self.byte()? != 0,
            flags: self.long()?,
            number: self.number()?,
        })
    }

    fn decision(&mut self) -> Option<Decision> {
        let (ballot, lost) = (self.ballot()?, self.members()?);
        let (one, other) = (self.number()?, self.number()?);
        Some(Decision {
            ballot,
            lost,
            clash: (one != u32::MAX).then_some((one, other)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is_heard_and_nothing_is_made_of_less() {
        let decision = Decision {
            ballot: Ballot {
                shrinks: true,
                flags: 0x1234_5678_9abc_def0,
                number: 77,
            },
            lost: (0..19).map(|member| member % 3 == 1).collect(),
            clash: Some((3, 5)),
        };
        let agreement = |message| Notice::Agreement { number: 9, message };
        let notices = [
            Notice::Lost {
                peer: 3,
                cause: "it died".to_owned(),
            },
            Notice::Closed { peer: 4 },
            Notice::Mismatch {
                peer: 5,
                ours: "barrier".to_owned(),
                theirs: "scan(3 elements of u8)".to_owned(),
            },
            Notice::GaveUp {
                reason: "no reason".to_owned(),
            },
            Notice::Cancelled {
                by: "worker 3".to_owned(),
                reason: "it takes too long".to_owned(),
            },
            Notice::Check(Check {
                number: 1,
                hash: 2,
                agreements: 3,
                is_certain: true,
                call: "barrier".to_owned(),
                earlier: vec![(7, "scan".to_owned()), (8, String::new())],
            }),
            Notice::Left,
            agreement(Message::Query {
                lost: vec![true, false, true],
            }),
            agreement(Message::Vote {
                ballot: decision.ballot.clone(),
                lost: vec![false; 8],
                prepared: Some((2, decision.clone())),
            }),
            agreement(Message::Vote {
                ballot: decision.ballot.clone(),
                lost: vec![true; 9],
                prepared: None,
            }),
            agreement(Message::Prepare(decision.clone())),
            agreement(Message::Ready),
            agreement(Message::Decided(decision)),
            agreement(Message::Excluded),
            agreement(Message::Out),
        ];
        for notice in notices {
            let bytes = notice.encode();
            assert_eq!(Notice::decode(&bytes), Some(notice));
            for len in 0..bytes.len() {
                assert_eq!(Notice::decode(&bytes[..len]), None);
            }
        }
        assert_eq!(Notice::decode(&[200, 0, 0, 0, 0]), None);
    }
}
