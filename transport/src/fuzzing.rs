//! What fuzzers may do: play a peer that says whatever it likes.

use std::{
    io::Write,
    net::TcpStream,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use nix::sys::eventfd::EventFd;

use crate::{
    ANSWER_BYTES, Acceptor, Arena, Buffer, Config, Connector, Endpoint, Event, FINISH_BYTES,
    Fabric, HELLO_BYTES, Ledger, Outcome, RegionHandle, RemoteRegion, Secret, Simulation,
    arena::{Mapping, Region},
    link::{
        rdma::{
            endpoint::{self, ENDPOINT_BYTES},
            packet,
        },
        ring::{ENTRY_WORDS, Note, Producer},
        shm::{RING_BYTES, RingAt, Shm},
        tcp::Tcp,
        tls::Wire,
    },
    remote::FRAME_BYTES,
};

const ARENA_BYTES: u64 = 1 << 20;
/// Bytes of input that make an entry: its note and its words.
const ENTRY_BYTES: usize = 2 + 8 * ENTRY_WORDS;
/// Bytes of input that make a step of what is said about memory: what it is, its number, and a frame.
const STEP_BYTES: usize = 2 + FRAME_BYTES;
/// Bytes of memory that are exposed, and of what lies before and behind it.
const EXPOSED_BYTES: usize = 4 << 10;

/// Takes `bytes` for what a stranger says, who proves nothing; and for what it does to a conversation that it carries, of which the
/// proof fails unless every message arrives as it was sent. None when the system gives no random bytes.
pub fn handshake(bytes: &[u8]) -> Option<()> {
    let secret = Secret::from([7; Secret::BYTES]);
    let mut noise = bytes.iter().copied();

    // A stranger's messages.
    if let (Some(hello), Some(finish)) = (bytes.first_chunk::<HELLO_BYTES>(), bytes.last_chunk())
        && let Ok(acceptor) = Acceptor::new(&secret, 1, hello).ok()?
    {
        assert!(acceptor.check(finish).is_err());
    }
    let connector = Connector::new(&secret, 0, 1).ok()?;
    if let Some(answer) = bytes.first_chunk::<ANSWER_BYTES>() {
        assert!(connector.finish(answer).is_err());
    }

    // A stranger between the two.
    let hello = carry(connector.hello(), &mut noise);
    let Ok(acceptor) = Acceptor::new(&secret, 1, &hello).ok()? else {
        assert_ne!(&hello, connector.hello());
        return Some(());
    };
    let answer = carry(acceptor.answer(), &mut noise);
    let Ok(finish) = connector.finish(&answer) else {
        assert!(&hello != connector.hello() || &answer != acceptor.answer());
        return Some(());
    };
    assert_eq!((&hello, &answer), (connector.hello(), acceptor.answer()));
    let carried: [u8; FINISH_BYTES] = carry(&finish, &mut noise);
    assert_eq!(acceptor.check(&carried).is_ok(), carried == finish);
    Some(())
}

/// Damages a message as `noise` says: each byte is added to one of the message's.
fn carry<const N: usize>(message: &[u8; N], noise: &mut impl Iterator<Item = u8>) -> [u8; N] {
    message.map(|byte| byte.wrapping_add(noise.next().unwrap_or(0)))
}

/// Takes `bytes` for a packet that a peer sends by RDMA. It is none, or means what it says and nothing else.
pub fn packets(bytes: &[u8]) {
    if let Some(rewritten) = packet::rewritten(bytes) {
        assert_eq!(rewritten, bytes);
    }
}

/// Takes `bytes` for the ends of links that peers say they have. Each is refused, or is that and nothing else.
pub fn endpoints(bytes: &[u8]) {
    for said in bytes.as_chunks::<ENDPOINT_BYTES>().0 {
        if let Some(endpoint) = endpoint::Endpoint::from_bytes(said) {
            assert_eq!(&endpoint.to_bytes(), said);
        }
    }
}

/// Takes `bytes` for what a peer sends over TCP once it has proved itself. They are messages or the end of the link.
/// None when the system has no sockets left.
pub fn frames(bytes: &[u8]) -> Option<()> {
    // To the link they are a stream of bytes like a connection, and they are made sooner.
    let (mut peer, stream) = UnixStream::pair().ok()?;
    let stream = TcpStream::from(OwnedFd::from(stream));
    stream.set_nonblocking(true).ok()?;
    // What does not fit in the buffers of the sockets is left out: nobody reads while this is written.
    peer.set_nonblocking(true).ok()?;
    let _ = peer.write(bytes);
    drop(peer);
    let arena = Arena::new(&Ledger::new(ARENA_BYTES), ARENA_BYTES).ok()?;
    let stream = mio::net::TcpStream::from_std(stream);
    let mut link = Tcp::new(1, arena, Wire::Plain(stream), Config::SILENCE_MAX);
    let mut kept = Vec::new();
    // Every turn takes a frame, or reads, or ends the link; a loan that is not there comes back with `kept`.
    for _ in 0..2 * bytes.len() + 16 {
        link.notify(true, true);
        link.flush();
        match link.receive() {
            Ok(Some(message)) => keep(&mut kept, message),
            Ok(None) => kept.clear(),
            Err(_) => return Some(()),
        }
        // Behind one that is not taken nothing is received.
        while let Some(aside) = link.take_aside() {
            keep(&mut kept, aside);
        }
    }
    panic!("the link does not end, though its peer has gone");
}

/// Takes `bytes` for the entries that a peer puts in the ring of shared memory. They are messages of bytes in its
/// arena, or the end of the link.
pub fn descriptors(bytes: &[u8]) -> Option<()> {
    let arena = || Arena::new(&Ledger::new(ARENA_BYTES), ARENA_BYTES).ok();
    let (ours, theirs) = (arena()?, arena()?);
    let region = Region::import(theirs.region().fd().try_clone_to_owned().ok()?).ok()?;
    let mapping = Mapping::of_peer(region, OwnedFd::from(EventFd::new().ok()?));
    let (outgoing, _) = RingAt::create(ours.loan(RING_BYTES).ok()??)?;
    let (lying, offset) = RingAt::create(theirs.loan(RING_BYTES).ok()??)?;
    let incoming = RingAt::import(&mapping, offset)?;
    let mut link = Shm::new(1, ours, outgoing, incoming, mapping);
    let mut liar = Producer::new(lying);
    let mut kept = Vec::new();
    for entry in bytes.chunks_exact(ENTRY_BYTES) {
        let note = Note::from_le_bytes([entry[0], entry[1]]);
        let words = entry[2..].chunks_exact(8).map(|word| {
            let word = word.try_into().unwrap_or_default();
            u64::from_le_bytes(word)
        });
        if liar.has_room(1) == Ok(true) {
            liar.push(note, words);
        }
        match link.receive() {
            Ok(Some(message)) => keep(&mut kept, message),
            Ok(None) => {}
            Err(_) => break,
        }
        // An answer now and then, in memory that the liar has a say in.
        if let Ok(Some(mut loan)) = link.loan(usize::from(entry[0]) * 32) {
            loan.fill(7);
            let _ = link.send(loan.freeze());
        }
    }
    Some(())
}

/// Takes `bytes` for what a peer says about memory: questions, answers, and pieces of data, between messages. It
/// writes nothing but what is exposed, and is answered, or is the end of the link. None when there is no memory left.
///
/// The honest side asks, too, so that there is something to answer.
pub fn questions(bytes: &[u8]) -> Option<()> {
    let arena = || Arena::new(&Ledger::new(ARENA_BYTES), ARENA_BYTES).ok();
    let (network, own) = (Simulation::new(3, 2), arena()?);
    let mut here = network.fabric(0, &own);
    let mut liar = network.fabric(1, &arena()?);
    let [before, exposed, behind] = [(); 3].map(|()| {
        let mut loan = here.loan(EXPOSED_BYTES).ok()??;
        loan.fill(9);
        Some(loan)
    });
    let (before, behind) = (before?.freeze(), behind?.freeze());
    let exposed = here.expose(exposed?).ok()?;
    let name = &exposed.handle().to_bytes()[4..16];
    let mut invented = [0; RegionHandle::BYTES];
    invented[0] = 1; // Of the liar.
    let _ = here.attach(&RegionHandle::from_bytes(&invented));
    let mut attached = None;
    for step in bytes.chunks_exact(STEP_BYTES) {
        let (what, number) = (step[0], u64::from(step[1]));
        let mut frame = [0; FRAME_BYTES];
        frame.copy_from_slice(&step[2..]);
        if what & 1 != 0 {
            frame[4..16].copy_from_slice(name); // It cannot be guessed.
        }
        let few = usize::from(what >> 3).min(FRAME_BYTES);
        match what >> 1 & 3 {
            0 => liar.say(0, number, &frame),
            1 => liar.say(0, number, &frame[..few]),
            2 => drop(liar.send_copy(0, number, &frame[..few])),
            _ => ask(&mut here, attached.as_ref(), few, &frame),
        }
        while network.advance() {
            while let Ok(Some(event)) = here.receive() {
                match event {
                    Event::Completed { completion, .. } => {
                        if let Ok(Outcome::Attached(region)) = completion.outcome {
                            attached = Some(region);
                        }
                    }
                    Event::Ended { .. } => {
                        assert_eq!(here.outstanding(1), 0, "nothing is left under way");
                    }
                    _ => {}
                }
            }
            let _ = liar.receive();
        }
    }
    for untouched in [before, behind] {
        assert!(untouched.iter().all(|&byte| byte == 9), "it is not exposed");
    }
    Some(())
}

/// Has an honest rank use memory that it has attached to.
fn ask(here: &mut Fabric, region: Option<&RemoteRegion>, offset: usize, bytes: &[u8]) {
    let Some(region) = region else {
        return;
    };
    let word = 8 * offset as u64;
    let _ = match bytes[0] % 4 {
        0 => here.put(region, word, bytes).map(drop),
        1 => here.get(region, word, usize::from(bytes[1])).map(drop),
        2 => here.fetch_add(region, word, 1).map(drop),
        _ => here.compare_swap(region, word, 0, 1).map(drop),
    };
}

/// Reads a message, and drops the oldest when there are many.
fn keep(kept: &mut Vec<Buffer>, message: Buffer) {
    let sum = message
        .iter()
        .fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    std::hint::black_box(sum);
    kept.push(message);
    if kept.len() > 8 {
        kept.remove(0);
    }
}

#[cfg(test)]
#[path = "../../tests/support/seeds.rs"]
pub(crate) mod seeds;

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::prelude::*;

    use super::{
        seeds::{SEEDS, assert_seed},
        *,
    };

    #[test]
    fn the_seeds_of_conversations_are_one_that_is_carried_faithfully_and_some_that_are_not() {
        let mut noise = [0; HELLO_BYTES + ANSWER_BYTES + FINISH_BYTES];
        assert_seed("handshake", "faithful", &noise);
        for (name, at) in [
            ("hello", 0),
            ("answer", HELLO_BYTES),
            ("finish", HELLO_BYTES + ANSWER_BYTES),
        ] {
            noise[at] = 1;
            assert_seed("handshake", name, &noise);
            noise[at] = 0;
        }
        // Of one who knows another secret, which shows in nothing but the proof.
        let secret = Secret::from([8; Secret::BYTES]);
        let mut hello = *Connector::new(&secret, 0, 1).unwrap().hello();
        hello[16..].fill(0); // A challenge as good as any.
        assert_seed("handshake", "stranger", &hello);
        let ours = Secret::from([7; Secret::BYTES]);
        assert!(Acceptor::new(&ours, 1, &hello).unwrap().is_ok());
    }

    /// The seeds from which the fuzzers start.
    fn seeds(of: &str) -> Vec<Vec<u8>> {
        let files = fs::read_dir(Path::new(SEEDS).join(of)).unwrap();
        files
            .map(|file| fs::read(file.unwrap().path()).unwrap())
            .collect()
    }

    #[test]
    fn the_seeds_do_no_harm() {
        for bytes in seeds("frames") {
            frames(&bytes).unwrap();
        }
        for bytes in seeds("descriptors") {
            descriptors(&bytes).unwrap();
        }
        for bytes in seeds("questions") {
            questions(&bytes).unwrap();
        }
        for bytes in seeds("handshake") {
            handshake(&bytes).unwrap();
        }
        for bytes in seeds("packets") {
            packets(&bytes);
        }
        for bytes in seeds("endpoints") {
            endpoints(&bytes);
        }
    }

    proptest! {
        #[test]
        fn seeds_that_are_damaged_do_no_harm(
            at in any::<prop::sample::Index>(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            repeated in 1_usize..40,
        ) {
            let damaged = |of| {
                let mut bytes = at.get(&seeds(of)).repeat(repeated);
                for (place, byte) in &damage {
                    let place = place.index(bytes.len());
                    bytes[place] = *byte;
                }
                bytes
            };
            frames(&damaged("frames")).unwrap();
            descriptors(&damaged("descriptors")).unwrap();
            questions(&damaged("questions")).unwrap();
            handshake(&damaged("handshake")).unwrap();
            packets(&damaged("packets"));
            endpoints(&damaged("endpoints"));
        }
    }
}
