//! What a fabric does about a peer that says what it likes about memory.

use std::sync::atomic::Ordering;

use super::*;
use crate::{
    Arena, Event, Ledger, Loss, Outcome, Simulation,
    remote::{Access, Name, Reason},
};

/// Two ranks, of which the second says what it likes.
struct Pair {
    network: Simulation,
    here: Fabric,
    liar: Fabric,
}

impl Pair {
    fn new(bytes: u64) -> Self {
        let network = Simulation::new(3, 2);
        let fabric = |rank| {
            let arena = Arena::new(&Ledger::new(bytes), bytes).unwrap();
            network.fabric(rank, &arena)
        };
        Self {
            here: fabric(0),
            liar: fabric(1),
            network,
        }
    }

    fn lie(&mut self, number: u64, bytes: &[u8]) {
        self.liar.say(0, number, bytes);
    }

    fn say(&mut self, number: u64, frame: Frame) {
        self.lie(number, &frame.encode());
    }

    /// What the honest rank has to say about it.
    fn heard(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.here.receive().unwrap();
            if event.is_none() && !self.network.advance() {
                return events;
            }
            events.extend(event);
        }
    }

    fn assert_disbelieved(&mut self) {
        let heard = self.heard();
        let ended = heard.iter().any(|event| match event {
            Event::Ended { peer: 1, error } => matches!(
                **error,
                Error::PeerLost {
                    cause: Loss::Protocol(_),
                    ..
                }
            ),
            _ => false,
        });
        assert!(ended, "{heard:?}");
    }

    fn expose(&self, bytes: usize) -> Exposed {
        let mut loan = self.here.loan(bytes).unwrap().unwrap();
        loan.fill(9);
        self.here.expose(loan).unwrap()
    }
}

#[test]
fn what_is_no_frame_or_answers_no_question_ends_the_link() {
    let name = Name { index: 0, key: 0 };
    let (offset, bytes) = (0, 0);
    let frames = [
        Frame::Written,
        Frame::Old { value: 1 },
        Frame::Attached {
            offset,
            bytes: 8,
            access: None,
        },
        Frame::Read { bytes: 1 },
        Frame::Refused(Reason::NotExposed),
        Frame::Put {
            name,
            offset,
            bytes,
        },
        Frame::Get {
            name,
            offset,
            bytes,
        },
    ];
    let frames = frames.map(|frame| frame.encode().to_vec());
    let strange = [
        vec![],
        vec![1; 47],
        vec![0; 48],
        vec![0xff; 48],
        vec![1; 49],
    ];
    for bytes in frames.into_iter().chain(strange) {
        let mut pair = Pair::new(1 << 20);
        pair.lie(0, &bytes);
        pair.assert_disbelieved();
    }
}

#[test]
fn pieces_that_were_not_announced_end_the_link_and_are_not_written() {
    for piece in [&[][..], &[1; 11]] {
        let mut pair = Pair::new(1 << 20);
        let exposed = pair.expose(64);
        let name = exposed.handle().name;
        pair.say(
            0,
            Frame::Put {
                name,
                offset: 0,
                bytes: 10,
            },
        );
        pair.lie(0, piece);
        pair.assert_disbelieved();
        assert_eq!(
            exposed.words()[0].load(Ordering::Relaxed),
            0x0909_0909_0909_0909
        );
    }
}

#[test]
fn a_peer_writes_nothing_but_what_is_exposed() {
    let mut pair = Pair::new(1 << 20);
    let exposed = pair.expose(64);
    let Name { index, key } = exposed.handle().name;
    let name = Name { index, key };
    let gone = pair.expose(64).handle().name; // Taken back at once.
    for (name, offset) in [
        (Name { index, key: !key }, 0),
        (Name { index: 7, key }, 0),
        (
            Name {
                index: u32::MAX,
                key,
            },
            0,
        ),
        (gone, 0),
        (name, 57),
        (name, 64),
        (name, u64::MAX - 3),
    ] {
        pair.say(
            0,
            Frame::FetchAdd {
                name,
                offset,
                value: 1,
            },
        );
        pair.say(
            0,
            Frame::CompareSwap {
                name,
                offset,
                expected: 0x0909_0909_0909_0909,
                new: 1,
            },
        );
        pair.say(
            0,
            Frame::Put {
                name,
                offset,
                bytes: 8,
            },
        );
        pair.lie(0, &[1; 5]);
        pair.lie(0, &[1; 3]);
        pair.say(
            0,
            Frame::Get {
                name,
                offset,
                bytes: 8,
            },
        );
    }
    pair.say(
        0,
        Frame::FetchAdd {
            name,
            offset: 4,
            value: 1,
        },
    );
    pair.say(
        0,
        Frame::Put {
            name,
            offset: 0,
            bytes: u64::MAX,
        },
    );
    pair.lie(0, &[1; 8]);
    assert!(
        pair.heard().is_empty(),
        "to ask is not to break the protocol"
    );
    for word in exposed.words() {
        assert_eq!(word.load(Ordering::Relaxed), 0x0909_0909_0909_0909);
    }
}

#[test]
fn answers_to_other_questions_or_longer_than_asked_end_the_link() {
    let handle = RegionHandle::from_bytes(&{
        let mut bytes = [0; RegionHandle::BYTES];
        bytes[0] = 1;
        bytes
    });
    for lies in [
        vec![Frame::Read { bytes: 11 }],
        vec![Frame::Read { bytes: u64::MAX }],
        vec![Frame::Written],
        vec![Frame::Old { value: 3 }],
    ] {
        let mut pair = Pair::new(1 << 20);
        assert!(matches!(
            pair.here.attach(&handle),
            Ok(Issued::Pending(Operation(1)))
        ));
        pair.say(
            1,
            Frame::Attached {
                offset: 0,
                bytes: 64,
                access: None,
            },
        );
        let [Event::Completed { completion, .. }] = &pair.heard()[..] else {
            panic!("it is attached");
        };
        let Ok(Outcome::Attached(region)) = &completion.outcome else {
            panic!("it is attached");
        };
        assert!(matches!(
            pair.here.get(region, 0, 10),
            Ok(Issued::Pending(Operation(2)))
        ));
        for lie in lies {
            pair.say(2, lie);
        }
        pair.assert_disbelieved();
        assert_eq!(pair.here.outstanding(1), 0);
    }
}

#[test]
fn a_get_behind_which_too_much_waits_is_refused_and_nothing_else_is_lost() {
    const BYTES: usize = 8 << 20;
    const MESSAGES: u64 = 1_200;
    let mut pair = Pair::new(9 << 20);
    let exposed = pair.expose(BYTES);
    let lent: Vec<_> = [1 << 16, 1 << 12, 1]
        .into_iter()
        .flat_map(|bytes| std::iter::from_fn(|| pair.here.loan(bytes).unwrap()).collect::<Vec<_>>())
        .collect();
    // The other is honest here, and asks.
    let asker = &mut pair.liar;
    let mut attached = None;
    assert!(matches!(
        asker.attach(&exposed.handle()),
        Ok(Issued::Pending(_))
    ));
    while attached.is_none() {
        assert!(pair.here.receive().unwrap().is_none());
        pair.network.advance();
        if let Some(Event::Completed { completion, .. }) = asker.receive().unwrap()
            && let Ok(Outcome::Attached(region)) = completion.outcome
        {
            attached = Some(region);
        }
    }
    let region = attached.unwrap();
    assert!(matches!(
        asker.get(&region, 0, BYTES),
        Ok(Issued::Pending(_))
    ));
    assert!(matches!(
        asker.fetch_add(&region, 0, 1),
        Ok(Issued::Pending(_))
    ));
    for number in 0..MESSAGES {
        assert!(asker.send_copy(0, number, b"behind").unwrap());
    }
    let (mut received, mut outcomes) = (0, Vec::new());
    while received < MESSAGES || outcomes.len() < 2 {
        if let Some(Event::Message { buffer, .. }) = pair.here.receive().unwrap() {
            assert_eq!(buffer.tag(), received);
            received += 1;
        }
        pair.network.advance();
        if let Some(Event::Completed { completion, .. }) = asker.receive().unwrap() {
            outcomes.push(completion.outcome);
        }
    }
    let full = Error::PeerFull {
        peer: 0,
        bytes: BYTES as u64,
    };
    let told = outcomes[0].as_ref().unwrap_err();
    assert_eq!(told.to_string(), full.to_string());
    assert!(matches!(
        outcomes[1],
        Ok(Outcome::Old(0x0909_0909_0909_0909))
    ));
    drop(lent);
}

#[test]
fn a_peer_that_is_not_reached_by_devices_cannot_claim_it() {
    let handle = RegionHandle::from_bytes(&{
        let mut bytes = [0; RegionHandle::BYTES];
        bytes[0] = 1;
        bytes
    });
    let mut pair = Pair::new(1 << 20);
    assert!(matches!(pair.here.attach(&handle), Ok(Issued::Pending(_))));
    let access = Some(Access {
        key: 7,
        atomics: true,
    });
    pair.say(
        1,
        Frame::Attached {
            offset: 0,
            bytes: 64,
            access,
        },
    );
    pair.assert_disbelieved();
}
