//! One connection on its way to becoming a link: who is there, and what is needed to share memory.

use std::{
    cell::{OnceCell, RefCell},
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

use super::{Config, Transport};
use crate::{
    ANSWER_BYTES, Acceptor, Arena, Connector, FINISH_BYTES, HELLO_BYTES, Loan, Loss, Rank, Refusal,
    Unusable,
    arena::{Mapping, Region},
    link::{
        rdma::{Adapter, Connected, ENDPOINT_BYTES, Prepared, RdmaEndpoint},
        shm::{RING_BYTES, RingAt},
        tls::Role,
    },
    secret::Session,
};

/// The acceptor's word on a peer that proved itself.
const WELCOME: u8 = 1;
/// Our own connection to the peer counts, not this one.
const CROSSED: u8 = 2;
/// The connection goes on to RDMA; an endpoint follows, except from the side that has had the other's.
const RDMA: u8 = 3;
/// What an answer to an offer of RDMA has: the word, and an endpoint.
const ANSWER_TO_RDMA_BYTES: usize = 1 + ENDPOINT_BYTES;

const _: () = assert!(ANSWER_TO_RDMA_BYTES <= HELLO_BYTES + FINISH_BYTES);

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
    /// We offered RDMA, and the peer decides.
    RdmaAnswer(Prepared),
    /// The peer offered RDMA; its endpoint comes.
    RdmaOffer,
    /// We answered, and the peer connects its side.
    RdmaReady(Box<Connected>),
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
    /// What TLS is put on the connection with, if it is, once both ends have proved themselves.
    pub(super) tls: Option<(Role, Session)>,
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
    Rdma(Box<Connected>),
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
    /// The RDMA device, opened when a connection could use it, or why that failed.
    pub(super) adapter: OnceCell<Result<Rc<Adapter>, Unusable>>,
    /// Why a connection that RDMA could have carried is not.
    pub(super) why_not_rdma: RefCell<Option<Unusable>>,
}

impl Here {
    /// The RDMA device, opened now if it is not yet.
    pub(super) fn adapter(&self) -> Result<Rc<Adapter>, Unusable> {
        let others = self.config.size.saturating_sub(1);
        self.adapter
            .get_or_init(|| {
                let config = &self.config;
                Adapter::open(
                    &config.rdma,
                    config.silence_max,
                    config.rank,
                    &self.arena,
                    others,
                )
            })
            .clone()
    }

    /// The same, if it has been opened.
    pub(super) fn opened(&self) -> Option<&Adapter> {
        self.adapter.get()?.as_deref().ok()
    }

    /// A queue pair for one more connection, if the configuration lets it have one.
    fn prepare(&self) -> Result<Option<Prepared>, Loss> {
        match self.config.transport {
            Transport::Auto | Transport::Rdma => self.unless(|| self.adapter()?.prepare()),
            Transport::Shm | Transport::Tcp => Ok(None),
        }
    }

    /// What `attempt` makes of RDMA; or nothing, so that TCP has to do, unless only RDMA may be used.
    fn unless<T>(&self, attempt: impl FnOnce() -> Result<T, Unusable>) -> Result<Option<T>, Loss> {
        match attempt() {
            Ok(made) => Ok(Some(made)),
            Err(why) if self.config.transport == Transport::Rdma => {
                Err(Loss::Unreachable(why.to_string()))
            }
            Err(why) => {
                self.why_not_rdma.borrow_mut().get_or_insert(why);
                Ok(None)
            }
        }
    }

    /// The peer wants TCP, or has nothing else.
    fn accept_tcp(&self) -> Result<Offer, Loss> {
        if matches!(self.config.transport, Transport::Rdma | Transport::Auto) {
            self.unless::<()>(|| {
                self.adapter()?; // Else we are the reason.
                Err(Unusable::Peer("it does not use it".into()))
            })?;
        }
        Ok(Offer::Tcp)
    }
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
            tls: None,
        }
    }

    /// Whether TLS comes next: between machines only, for within one nothing travels.
    fn uses_tls(&self, here: &Here) -> bool {
        here.config.tls && matches!(self.stream, Stream::Tcp(_))
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
                let tls = self.uses_tls(here);
                let acceptor =
                    Acceptor::with_tls(&here.config.secret, here.config.rank, &hello, tls)
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
                if self.uses_tls(here) {
                    self.tls = Some((Role::Acceptor, acceptor.session()));
                }
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
                let connector = connector.clone().with_tls(self.uses_tls(here));
                self.stream.write(connector.hello())?;
                self.stage = Stage::Answer(connector);
            }
            Stage::Answer(connector) => {
                let connector = connector.clone();
                let Some(answer) = self.read::<ANSWER_BYTES>()? else {
                    return Ok(Some(Progress::Waiting));
                };
                self.check_credentials()?;
                let finish = connector.finish(&answer);
                if let Err(Refusal::Tls | Refusal::NoTls) = finish {
                    self.stream.write(&connector.proof(&answer))?; // It shall know, too.
                }
                self.stream.write(&finish?)?;
                if self.uses_tls(here) {
                    self.tls = Some((Role::Connector, connector.session(&answer)));
                }
                self.stage = Stage::Verdict;
            }
            Stage::Verdict => return self.read_verdict(here),
            Stage::RdmaOffer => return self.answer_rdma(here),
            Stage::RdmaAnswer(_) => return self.finish_rdma(here),
            Stage::RdmaReady(_) => return self.read_rdma_ready(here),
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
            Stream::Tcp(_) => self.welcome_by_tcp(here),
            Stream::Unix(_) => self.send_offer(here).map(|ring| {
                self.stage = Stage::Offer(ring);
                Progress::Waiting
            }),
        };
        welcomed.unwrap_or_else(Progress::Failed)
    }

    /// Welcomes a peer of another node, and offers it RDMA if there is a device.
    fn welcome_by_tcp(&mut self, here: &Here) -> Result<Progress, Loss> {
        let Some(prepared) = here.prepare()? else {
            self.stream.write(self.tcp_welcome())?;
            return Ok(Progress::Done(Offer::Tcp));
        };
        let mut offer = [RDMA; ANSWER_TO_RDMA_BYTES];
        offer[1..].copy_from_slice(&prepared.local().to_bytes());
        self.stream.write(&offer)?;
        self.stage = Stage::RdmaAnswer(prepared);
        Ok(Progress::Waiting)
    }

    /// The peer offers RDMA: takes the offer up, or asks for TCP.
    fn answer_rdma(&mut self, here: &Here) -> Result<Option<Progress>, Loss> {
        let Some(endpoint) = self.read::<ENDPOINT_BYTES>()? else {
            return Ok(Some(Progress::Waiting));
        };
        let remote = parse_endpoint(&endpoint)?;
        let mut answer = [0; ANSWER_TO_RDMA_BYTES];
        let connected = match here.prepare()? {
            None => None,
            Some(prepared) => {
                answer[1..].copy_from_slice(&prepared.local().to_bytes());
                here.unless(|| prepared.connect(remote))?
            }
        };
        answer[0] = if connected.is_some() { RDMA } else { WELCOME };
        self.stream.write(&answer)?;
        let Some(connected) = connected else {
            return Ok(Some(Progress::Done(Offer::Tcp)));
        };
        self.stage = Stage::RdmaReady(Box::new(connected));
        Ok(None)
    }

    /// The peer answers our offer of RDMA. It sends nothing by RDMA before we are connected too.
    fn finish_rdma(&mut self, here: &Here) -> Result<Option<Progress>, Loss> {
        let Some(answer) = self.read::<ANSWER_TO_RDMA_BYTES>()? else {
            return Ok(Some(Progress::Waiting));
        };
        let Stage::RdmaAnswer(prepared) = std::mem::replace(&mut self.stage, Stage::Decision)
        else {
            return Ok(Some(Progress::Waiting));
        };
        let [word, endpoint @ ..] = answer;
        if word != RDMA {
            return here.accept_tcp().map(|tcp| Some(Progress::Done(tcp)));
        }
        let remote = parse_endpoint(&endpoint)?;
        let connected = here.unless(|| prepared.connect(remote))?;
        let word = if connected.is_some() { RDMA } else { WELCOME };
        self.stream.write(&[word])?;
        let offer = connected.map_or(Offer::Tcp, |connected| Offer::Rdma(Box::new(connected)));
        Ok(Some(Progress::Done(offer)))
    }

    /// The peer has connected its side, or could not.
    fn read_rdma_ready(&mut self, here: &Here) -> Result<Option<Progress>, Loss> {
        let Some([word]) = self.read::<1>()? else {
            return Ok(Some(Progress::Waiting));
        };
        let Stage::RdmaReady(connected) = std::mem::replace(&mut self.stage, Stage::Decision)
        else {
            return Ok(Some(Progress::Waiting));
        };
        let offer = match word {
            RDMA => Offer::Rdma(connected),
            _ => here.accept_tcp()?,
        };
        Ok(Some(Progress::Done(offer)))
    }

    /// The word, and behind it zeros, as may be between the frames of a link: with the answer before,
    /// they make up whole lines, so that what follows is aligned in the kernel's buffers. Only where the link
    /// itself comes next: neither TLS nor an exchange for RDMA has room for them.
    fn tcp_welcome(&self) -> &'static [u8] {
        const PADDED: [u8; 16] = [WELCOME, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        const _: () = assert!((ANSWER_BYTES + PADDED.len()).is_multiple_of(64));
        if self.tls.is_some() {
            &PADDED[..1]
        } else {
            &PADDED
        }
    }

    fn read_verdict(&mut self, here: &Here) -> Result<Option<Progress>, Loss> {
        if let Stream::Tcp(_) = &self.stream {
            return Ok(Some(match self.read::<1>()? {
                None => Progress::Waiting,
                Some([WELCOME]) => Progress::Done(here.accept_tcp()?),
                Some([RDMA]) => {
                    self.stage = Stage::RdmaOffer;
                    return Ok(None);
                }
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

/// The endpoint that a peer sent.
fn parse_endpoint(bytes: &[u8; ENDPOINT_BYTES]) -> Result<RdmaEndpoint, Loss> {
    RdmaEndpoint::from_bytes(bytes).ok_or(Loss::Protocol("not an endpoint of RDMA"))
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
