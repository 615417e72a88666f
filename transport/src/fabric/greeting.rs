//! One connection on its way to becoming a link: who is there, and what is needed to share memory.

use std::{
    cell::RefCell,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    rc::Rc,
    time::Duration,
};

use mio::net::{TcpStream, UnixStream};
use nix::{
    cmsg_space,
    sys::{
        eventfd::EventFd,
        socket::{
            ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt,
        },
    },
    unistd::geteuid,
};

use super::Config;
use crate::{
    ANSWER_BYTES, Acceptor, Arena, Connector, FINISH_BYTES, HELLO_BYTES, Loan, Loss, Rank, Refusal,
    arena::{Mapping, Region},
    link::shm::{RING_BYTES, RingAt},
};

/// The acceptor's word on a peer that proved itself.
const WELCOME: u8 = 1;
/// Our own connection to the peer counts, not this one.
const CROSSED: u8 = 2;
/// What travels with the descriptors of an arena: the word, and where the ring is.
const OFFER_BYTES: usize = 1 + 8;

/// The two kinds of sockets.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(bytes),
            Self::Tcp(stream) => stream.read(bytes),
        }
    }

    /// Writes a message so small that a fresh socket always has room for it.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Loss> {
        let written = match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        };
        match written {
            Ok(written) if written == bytes.len() => Ok(()),
            Ok(_) => Err(Loss::Unreachable("its socket takes no bytes".into())),
            Err(error) => Err(Loss::Unreachable(error.to_string())),
        }
    }

    pub(super) fn source(&mut self) -> &mut dyn mio::event::Source {
        match self {
            Self::Unix(stream) => stream,
            Self::Tcp(stream) => stream,
        }
    }

    fn connect_error(&self) -> io::Result<Option<io::Error>> {
        match self {
            Self::Unix(stream) => stream.take_error(),
            Self::Tcp(stream) => stream.take_error(),
        }
    }
}

/// Where a conversation is, on either side. See [`Secret`].
enum Stage {
    /// Accepted; the peer speaks first.
    Hello,
    Finish(Acceptor),
    /// The peer proved itself, and the owner of the links decides.
    Decision,
    /// We offered our arena; the peer offers its own.
    Offer(RingAt),
    /// Connecting; the socket is not there yet.
    Connect(Connector),
    Answer(Connector),
    Verdict,
}

/// A connection that is not a link yet.
pub(super) struct Greeting {
    pub(super) stream: Stream,
    /// The rank at the other end, once it is known: at once when we connect, by proof when it did.
    pub(super) peer: Option<Rank>,
    pub(super) deadline: Duration,
    stage: Stage,
    input: [u8; HELLO_BYTES + FINISH_BYTES],
    read: usize,
}

/// How far a conversation got.
pub(super) enum Progress {
    /// Nothing more to do until the socket says so.
    Waiting,
    /// The peer is this rank; the owner decides whether to welcome it.
    Proved(Rank),
    /// The peer's own connection counts.
    Crossed,
    /// The link can be made.
    Done(Offer),
    /// The peer does not belong to the job.
    Refused(Refusal),
    /// The connection failed.
    Failed(Loss),
}

/// What a finished conversation leaves to make a link of.
pub(super) enum Offer {
    Tcp,
    Shm(Shared),
}

/// Two arenas that each have a ring for the other.
pub(super) struct Shared {
    pub(super) mapping: Rc<Mapping>,
    pub(super) outgoing: RingAt,
    pub(super) incoming: RingAt,
    /// The peer's process.
    pub(super) pid: i32,
}

/// What conversations need of this side.
pub(super) struct Here {
    pub(super) config: Config,
    pub(super) arena: Arena,
    /// Memory set aside for the rings to the peers of this node, however full the arena gets.
    pub(super) rings: RefCell<Vec<Loan>>,
    pub(super) wake: EventFd,
}

impl Greeting {
    pub(super) fn accepted(stream: Stream, deadline: Duration) -> Self {
        Self::new(stream, None, Stage::Hello, deadline)
    }

    pub(super) fn connecting(
        stream: Stream,
        peer: Rank,
        connector: Connector,
        deadline: Duration,
    ) -> Self {
        Self::new(stream, Some(peer), Stage::Connect(connector), deadline)
    }

    fn new(stream: Stream, peer: Option<Rank>, stage: Stage, deadline: Duration) -> Self {
        Self {
            stream,
            peer,
            deadline,
            stage,
            input: [0; HELLO_BYTES + FINISH_BYTES],
            read: 0,
        }
    }

    /// Goes on as far as the socket lets it.
    pub(super) fn advance(&mut self, here: &Here) -> Progress {
        loop {
            match self.step(here) {
                Ok(None) => {}
                Ok(Some(progress)) => return progress,
                Err(Loss::Refused(refusal)) if self.peer.is_none() => {
                    return Progress::Refused(refusal);
                }
                Err(loss) => return Progress::Failed(loss),
            }
        }
    }

    /// One step; `None` to go on at once.
    fn step(&mut self, here: &Here) -> Result<Option<Progress>, Loss> {
        match &self.stage {
            Stage::Hello => {
                let Some(hello) = self.read::<HELLO_BYTES>()? else {
                    return Ok(Some(Progress::Waiting));
                };
                self.check_credentials()?;
                let acceptor = Acceptor::new(&here.config.secret, here.config.rank, &hello)
                    .map_err(|error| Loss::Connection(error.to_string()))??;
                self.stream.write(acceptor.answer())?;
                self.stage = Stage::Finish(acceptor);
            }
            Stage::Finish(acceptor) => {
                let acceptor = acceptor.clone();
                let Some(finish) = self.read::<FINISH_BYTES>()? else {
                    return Ok(Some(Progress::Waiting));
                };
                let peer = acceptor.check(&finish)?;
                if peer >= here.config.size || peer == here.config.rank {
                    return Err(Refusal::Address.into());
                }
                self.peer = Some(peer);
                self.stage = Stage::Decision;
                return Ok(Some(Progress::Proved(peer)));
            }
            Stage::Decision => return Ok(Some(Progress::Waiting)),
            Stage::Offer(_) => {
                let offered = match self.receive_offer()? {
                    None => return Ok(Some(Progress::Waiting)),
                    Some(None) => {
                        return Err(Loss::Protocol("it crossed a connection that it made"));
                    }
                    Some(Some(offered)) => offered,
                };
                let Stage::Offer(outgoing) = std::mem::replace(&mut self.stage, Stage::Decision)
                else {
                    return Ok(Some(Progress::Waiting));
                };
                return Ok(Some(Progress::Done(Offer::Shm(offered.with(outgoing)))));
            }
            Stage::Connect(connector) => {
                if let Some(error) = self.stream.connect_error().ok().flatten() {
                    return Err(Loss::Unreachable(error.to_string()));
                }
                let connector = connector.clone();
                match self.stream.write(connector.hello()) {
                    Ok(()) => self.stage = Stage::Answer(connector),
                    Err(loss) => return Err(loss),
                }
            }
            Stage::Answer(connector) => {
                let connector = connector.clone();
                let Some(answer) = self.read::<ANSWER_BYTES>()? else {
                    return Ok(Some(Progress::Waiting));
                };
                self.check_credentials()?;
                self.stream.write(&connector.finish(&answer)?)?;
                self.stage = Stage::Verdict;
            }
            Stage::Verdict => return self.read_verdict(here),
        }
        Ok(None)
    }

    /// Sends the peer that proved itself away: our own connection to it counts.
    pub(super) fn cross(&mut self) {
        let _ = self.stream.write(&[CROSSED]);
    }

    /// Welcomes the peer that proved itself.
    pub(super) fn welcome(&mut self, here: &Here) -> Progress {
        let welcomed = match &self.stream {
            Stream::Tcp(_) => self
                .stream
                .write(&[WELCOME])
                .map(|()| Progress::Done(Offer::Tcp)),
            Stream::Unix(_) => self.send_offer(here).map(|ring| {
                self.stage = Stage::Offer(ring);
                Progress::Waiting
            }),
        };
        welcomed.unwrap_or_else(Progress::Failed)
    }

    fn read_verdict(&mut self, here: &Here) -> Result<Option<Progress>, Loss> {
        if let Stream::Tcp(_) = &self.stream {
            return Ok(Some(match self.read::<1>()? {
                None => Progress::Waiting,
                Some([WELCOME]) => Progress::Done(Offer::Tcp),
                Some([CROSSED]) => Progress::Crossed,
                Some(_) => return Err(Loss::Protocol("no such answer to a connection")),
            }));
        }
        match self.receive_offer()? {
            None => Ok(Some(Progress::Waiting)),
            Some(None) => Ok(Some(Progress::Crossed)),
            Some(Some(offered)) => {
                let outgoing = self.send_offer(here)?;
                Ok(Some(Progress::Done(Offer::Shm(offered.with(outgoing)))))
            }
        }
    }

    /// The next `N` bytes of the conversation, once they are all there.
    fn read<const N: usize>(&mut self) -> Result<Option<[u8; N]>, Loss> {
        while self.read < N {
            match self.stream.read(&mut self.input[self.read..N]) {
                Ok(0) => return Err(Loss::Disconnected),
                Ok(read) => self.read += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Loss::Unreachable(error.to_string())),
            }
        }
        self.read = 0;
        let mut message = [0; N];
        message.copy_from_slice(&self.input[..N]);
        Ok(Some(message))
    }

    /// A peer on a Unix socket has to be a process of our own user.
    fn check_credentials(&self) -> Result<(), Loss> {
        let Stream::Unix(stream) = &self.stream else {
            return Ok(());
        };
        match getsockopt(stream, sockopt::PeerCredentials) {
            Ok(peer) if peer.uid() == geteuid().as_raw() => Ok(()),
            _ => Err(Refusal::User.into()),
        }
    }

    /// Offers our arena, and a ring in it, which it returns.
    fn send_offer(&mut self, here: &Here) -> Result<RingAt, Loss> {
        let Stream::Unix(stream) = &self.stream else {
            return Err(Loss::Protocol("memory is offered on Unix sockets"));
        };
        let memory = here
            .rings
            .borrow_mut()
            .pop()
            .or_else(|| here.arena.loan(RING_BYTES).ok().flatten());
        let (ring, offset) = memory
            .and_then(RingAt::create)
            .ok_or_else(|| Loss::Unreachable("our arena has no room for a ring".into()))?;
        let mut offer = [WELCOME; OFFER_BYTES];
        offer[1..].copy_from_slice(&offset.to_le_bytes());
        let descriptors = [here.arena.region().fd().as_raw_fd(), here.wake.as_raw_fd()];
        sendmsg::<()>(
            stream.as_raw_fd(),
            &[IoSlice::new(&offer)],
            &[ControlMessage::ScmRights(&descriptors)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(|error| Loss::Unreachable(error.to_string()))?;
        Ok(ring)
    }

    /// The peer's arena and the ring in it, once they are there; an inner `None` when its own
    /// connection counts.
    fn receive_offer(&mut self) -> Result<Option<Option<Offered>>, Loss> {
        let Stream::Unix(stream) = &self.stream else {
            return Err(Loss::Protocol("memory is offered on Unix sockets"));
        };
        let mut offer = [0; OFFER_BYTES];
        let mut space = cmsg_space!([RawFd; 2]);
        let received = receive_descriptors(stream.as_raw_fd(), &mut offer, &mut space);
        let (bytes, descriptors) = match received {
            Err(nix::Error::EAGAIN) => return Ok(None),
            Err(error) => return Err(Loss::Unreachable(error.to_string())),
            Ok((0, _)) => return Err(Loss::Disconnected),
            Ok(received) => received,
        };
        if offer[0] == CROSSED {
            return Ok(Some(None));
        }
        let [arena, wake] = <[OwnedFd; 2]>::try_from(descriptors)
            .map_err(|_| Loss::Protocol("an offer of memory needs two descriptors"))?;
        if bytes != OFFER_BYTES || offer[0] != WELCOME {
            return Err(Loss::Protocol("no such answer to a connection"));
        }
        let region = Region::import(arena).map_err(|error| Loss::Unreachable(error.to_string()))?;
        let mapping = Mapping::of_peer(region, wake);
        let [_, offset @ ..] = offer;
        let incoming = RingAt::import(&mapping, u64::from_le_bytes(offset))
            .ok_or(Loss::Protocol("its ring is not in its arena"))?;
        let pid = getsockopt(stream, sockopt::PeerCredentials)
            .map_err(|error| Loss::Unreachable(error.to_string()))?
            .pid();
        Ok(Some(Some(Offered {
            mapping,
            incoming,
            pid,
        })))
    }
}

/// What a peer offered.
struct Offered {
    mapping: Rc<Mapping>,
    incoming: RingAt,
    pid: i32,
}

impl Offered {
    fn with(self, outgoing: RingAt) -> Shared {
        let Self {
            mapping,
            incoming,
            pid,
        } = self;
        Shared {
            mapping,
            outgoing,
            incoming,
            pid,
        }
    }
}

/// Receives bytes and the descriptors that came with them, which are ours from then on.
fn receive_descriptors(
    socket: RawFd,
    bytes: &mut [u8],
    space: &mut [u8],
) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut slices = [IoSliceMut::new(bytes)];
    let message = recvmsg::<()>(socket, &mut slices, Some(space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            for raw in raw {
                // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
    }
    Ok((message.bytes, descriptors))
}
