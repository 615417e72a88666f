//! Who is let in: peers with another secret, strangers on the port, and those who listen in.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use transport::{Error, Event, Loss, Secret};

use crate::{
    end::pattern,
    harness::{Way, fabric, poll_until},
};

#[test]
fn a_peer_with_another_secret_is_refused_by_both_sides() {
    for way in Way::EVERYWHERE {
        let secrets = [Secret::random().unwrap(), Secret::random().unwrap()];
        let mut fabrics = [0, 1].map(|rank| fabric(rank, 1 << 20, way, &secrets[rank as usize]));
        let book = fabrics.each_ref().map(|fabric| fabric.address().unwrap());
        for fabric in &mut fabrics {
            fabric.join(&book).unwrap();
        }
        // Each proves itself to the other first once, and gets no proof back.
        for (sender, peer) in [(0, 1), (1, 0)] {
            fabrics[sender].send_copy(peer, 0, b"let me in").unwrap();
            poll_until(&mut fabrics, |rank, event| match event {
                Event::Ended { error, .. } => {
                    let cause = match &**error {
                        Error::PeerLost { cause, .. } => cause,
                        error => panic!("{way:?}: {error}"),
                    };
                    assert!(matches!(cause, Loss::Refused(_)), "{way:?}: {cause}");
                    rank == sender
                }
                Event::Message { .. } => panic!("{way:?}: a stranger was heard"),
                _ => false,
            });
        }
    }
}

#[test]
fn strangers_on_the_port_do_not_disturb_those_who_belong() {
    let secret = Secret::random().unwrap();
    let mut fabrics = [0, 1].map(|rank| fabric(rank, 1 << 20, Way::Tcp, &secret));
    let book = fabrics.each_ref().map(|fabric| fabric.address().unwrap());
    for fabric in &mut fabrics {
        fabric.join(&book).unwrap();
    }
    let port = book[1].to_string().rsplit_once('/').unwrap().1.to_owned();
    let strangers = thread::spawn(move || {
        let half_open: Vec<_> = (0..200)
            .map(|_| TcpStream::connect(&port).unwrap())
            .collect();
        for mut stranger in &half_open[..100] {
            stranger.write_all(&pattern(3, 64)).unwrap();
        }
        half_open
    });
    fabrics[0].send_copy(1, 0, b"hello").unwrap();
    // Which of the two is seen last depends on the scheduler.
    let (mut refused, mut heard) = (0, false);
    poll_until(&mut fabrics, |_, event| {
        refused += usize::from(matches!(event, Event::Refused { .. }));
        heard |=
            matches!(event, Event::Message { from: 0, buffer } if buffer.as_slice() == b"hello");
        heard && refused == 100
    });
    drop(strangers.join().unwrap());
}

#[test]
fn nobody_at_the_address_is_a_lost_peer() {
    for way in Way::EVERYWHERE {
        let secret = Secret::random().unwrap();
        let mut here = fabric(0, 1 << 20, way, &secret);
        let gone = fabric(1, 1 << 20, way, &secret).address().unwrap();
        here.join(&[here.address().unwrap(), gone]).unwrap();
        here.send_copy(1, 0, b"anyone?").unwrap();
        let start = Instant::now();
        loop {
            match here.receive().unwrap() {
                Some(Event::Ended { peer: 1, error }) => {
                    assert!(matches!(
                        *error,
                        Error::PeerLost {
                            cause: Loss::Unreachable(_),
                            ..
                        }
                    ));
                    break;
                }
                other => assert!(other.is_none(), "{other:?}"),
            }
            assert!(start.elapsed() < Duration::from_secs(10));
        }
    }
}

#[test]
fn a_peer_that_differs_in_tls_is_refused_with_that_reason_by_both_sides() {
    for connects_with in [Way::Tcp, Way::Tls] {
        let secret = Secret::random().unwrap();
        let accepts_with = if connects_with == Way::Tcp {
            Way::Tls
        } else {
            Way::Tcp
        };
        let mut fabrics = [(0, connects_with), (1, accepts_with)]
            .map(|(rank, way)| fabric(rank, 1 << 20, way, &secret));
        let book = fabrics.each_ref().map(|fabric| fabric.address().unwrap());
        for fabric in &mut fabrics {
            fabric.join(&book).unwrap();
        }
        fabrics[0].send_copy(1, 0, b"hello").unwrap();
        let mut told = [false; 2];
        poll_until(&mut fabrics, |rank, event| {
            let reason = match event {
                Event::Ended { error, .. } => error.to_string(),
                Event::Refused { reason } => reason.to_string(),
                other => panic!("{other:?}"),
            };
            let uses_tls = [connects_with, accepts_with][rank] == Way::Tls;
            let expected = if uses_tls {
                "it does not use TLS, as we do"
            } else {
                "it uses TLS, and we do not"
            };
            assert!(reason.ends_with(expected), "{reason}");
            told[rank] = true;
            told == [true; 2]
        });
    }
}

/// A listener between two ranks, who passes on what they say and reads along.
#[test]
fn who_listens_in_on_tls_learns_nothing_and_who_changes_a_byte_ends_it() {
    const WORDS: &[u8] = b"nobody else is to know this";
    for (way, change) in [(Way::Tcp, false), (Way::Tls, false), (Way::Tls, true)] {
        let secret = Secret::random().unwrap();
        let mut fabrics = [0, 1].map(|rank| fabric(rank, 1 << 20, way, &secret));
        let mut book = fabrics.each_ref().map(|fabric| fabric.address().unwrap());
        let between = TcpListener::bind("127.0.0.1:0").unwrap();
        let text = book[1].to_string();
        let (path, port) = text.rsplit_once('/').unwrap();
        let target = port.to_owned();
        book[1] = format!("{path}/{}", between.local_addr().unwrap())
            .parse()
            .unwrap();
        let listener = thread::spawn(move || {
            let (from, _) = between.accept().unwrap();
            let to = TcpStream::connect(target).unwrap();
            let back = {
                let (from, to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
                thread::spawn(move || pass_on(from, to, false))
            };
            let heard = pass_on(from, to, change);
            back.join().unwrap();
            heard
        });
        for fabric in &mut fabrics {
            fabric.join(&book).unwrap();
        }
        for _ in 0..10 {
            fabrics[0].send_copy(1, 0, WORDS).unwrap();
        }
        let mut messages = 0;
        poll_until(&mut fabrics, |rank, event| match event {
            Event::Message { buffer, .. } => {
                assert_eq!(buffer.as_slice(), WORDS);
                messages += 1;
                messages == 10
            }
            Event::Ended { error, .. } => {
                assert!(change, "{error}");
                assert_eq!(messages, 0, "the first was changed");
                rank == 1
            }
            other => panic!("{other:?}"),
        });
        drop(fabrics);
        let heard = listener.join().unwrap();
        let learned = heard.windows(WORDS.len()).any(|window| window == WORDS);
        assert_eq!(learned, way == Way::Tcp, "over {way:?}");
    }
}

/// Passes bytes on until they end, the last byte of each large piece changed if so asked; what they were.
fn pass_on(mut from: TcpStream, mut to: TcpStream, change: bool) -> Vec<u8> {
    let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = from.read(&mut piece) {
        // The proofs pass as they are, and so does the first word of TLS, whose change is noticed sooner.
        if change && heard.len() > 600 {
            piece[read - 1] ^= 1;
        }
        heard.extend_from_slice(&piece[..read]);
        if to.write_all(&piece[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    heard
}
