//! What a fabric needs of the system: listeners, conversations, the deaths of processes, and sleep.

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    fmt, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::SocketAddr as UnixAddress,
    },
    process,
    sync::Arc,
    time::Duration,
};

use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    unix::SourceFd,
};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{
    Config, Transport,
    greeting::{Greeting, Here, Offer, Progress, Stream},
};
use crate::{
    Address, Arena, Connector, Error, Loss, Rank, Refusal, Unusable, address, bell,
    link::{
        Link,
        rdma::Rdma,
        shm::{RING_BYTES, Shm},
        tcp::Tcp,
        tls::Wire,
    },
    secret,
};

const UNIX_LISTENER: Token = Token(0);
const TCP_LISTENER: Token = Token(1);
const WAKE: Token = Token(2);
const RDMA: Token = Token(3);
const RDMA_DEVICE: Token = Token(4);
const FIRST_ID: usize = 5;
/// Conversations with peers that have not proved themselves, at a time. For more, the oldest are given up.
const UNPROVED_MAX: usize = 1024;

/// How long a connection may take, and how much longer for each rank.
const CONNECT_TIME: Duration = Duration::from_secs(5);
const CONNECT_TIME_A_RANK: Duration = Duration::from_millis(50);

/// The number of a connection.
pub(super) type Id = usize;

/// What the sockets have to say to the fabric.
pub(super) enum Step {
    /// The socket of a TCP link can be used again.
    Ready {
        peer: Rank,
        readable: bool,
        writable: bool,
    },
    /// The process of a peer on this node has ended.
    Died { peer: Rank },
    /// Somebody was turned away.
    Refused { reason: Refusal },
    /// A connection failed.
    Failed { id: Id, peer: Rank, loss: Loss },
    /// A peer that connected proved itself.
    Proved { id: Id, peer: Rank },
    /// The peer's own connection counts.
    Crossed { id: Id, peer: Rank },
    /// A link can be made.
    Linked { id: Id, peer: Rank, link: Offered },
}

/// What there is to make a link of.
pub(super) struct Offered(Offer);

/// What a token stands for.
enum Registered {
    Greeting(Box<Greeting>),
    /// The stream of a TCP link, which the link owns.
    Link(Rank),
    /// The stream that watches over an RDMA link, which the link owns.
    Watch(Rank),
    /// The process of a peer.
    Process {
        peer: Rank,
        _pidfd: OwnedFd,
    },
}

pub(super) struct Sockets {
    here: Here,
    poll: Poll,
    events: Events,
    /// What the last look saw; kept for its memory.
    seen: Vec<(Token, bool, bool)>,
    unix: UnixListener,
    tcp: TcpListener,
    address: Address,
    addresses: Vec<Address>,
    registered: HashMap<Id, Registered>,
    /// How many of them are processes or watch over RDMA links: they say one word in their life.
    processes: usize,
    /// Peers of this node that could not be reached over shared memory, and why.
    without_shm: HashMap<Rank, String>,
    /// Whether the RDMA device can wake us.
    hears_rdma: bool,
    next_id: Id,
    now: Duration,
    steps: Vec<Step>,
    /// Whether someone woke us and has not been served.
    woken: bool,
}

impl Sockets {
    pub(super) fn new(config: Config, arena: Arena) -> Result<Self, Error> {
        let name = format!("updraft-{:032x}", u128::from_ne_bytes(secret::random()?));
        let io = Error::io;
        let unix_address =
            UnixAddress::from_abstract_name(&name).map_err(io("name a Unix socket"))?;
        let mut unix =
            UnixListener::bind_addr(&unix_address).map_err(io("listen on a Unix socket"))?;
        let mut tcp =
            TcpListener::bind(config.interface.at_port(0)).map_err(io("listen on a TCP port"))?;
        let address = Address {
            node: address::node(),
            name,
            tcp: tcp.local_addr().map_err(io("learn the port listened on"))?,
        };
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_value_and_flags(0, flags).map_err(Error::os("make an eventfd"))?;
        let poll = Poll::new().map_err(io("make an event queue"))?;
        let registry = poll.registry();
        let register = "register a socket with the event queue";
        registry
            .register(&mut unix, UNIX_LISTENER, Interest::READABLE)
            .map_err(io(register))?;
        registry
            .register(&mut tcp, TCP_LISTENER, Interest::READABLE)
            .map_err(io(register))?;
        let wake_fd = wake.as_fd().as_raw_fd();
        registry
            .register(&mut SourceFd(&wake_fd), WAKE, Interest::READABLE)
            .map_err(io(register))?;
        let sockets = Self {
            here: Here {
                config,
                arena,
                rings: RefCell::default(),
                wake,
                adapter: OnceCell::new(),
                why_not_rdma: RefCell::default(),
            },
            poll,
            events: Events::with_capacity(256),
            seen: Vec::new(),
            unix,
            tcp,
            address,
            addresses: Vec::new(),
            registered: HashMap::new(),
            processes: 0,
            without_shm: HashMap::new(),
            hears_rdma: false,
            next_id: FIRST_ID,
            now: Duration::ZERO,
            steps: Vec::new(),
            woken: false,
        };
        if sockets.here.config.transport == Transport::Rdma {
            sockets.here.adapter()?;
        }
        Ok(sockets)
    }

    pub(super) fn address(&self) -> Address {
        self.address.clone()
    }

    pub(super) fn waker(&self) -> Result<Waker, Error> {
        let fd = self
            .here
            .wake
            .as_fd()
            .try_clone_to_owned()
            .map_err(Error::io("duplicate an eventfd"))?;
        Ok(Waker(Arc::new(fd)))
    }

    /// The event queue, which can be read from when there is something to say.
    pub(super) fn queue(&self) -> BorrowedFd<'_> {
        self.poll.registry().as_fd()
    }

    /// Whether someone woke us, in whatever look that was seen.
    pub(super) fn was_woken(&self) -> bool {
        self.woken
    }

    /// Whoever woke us is served.
    pub(super) fn forget_waking(&mut self) {
        self.woken = false;
    }

    pub(super) fn join(&mut self, addresses: &[Address]) {
        self.addresses = addresses.to_vec();
        let others = self.here.config.size.saturating_sub(1) as usize;
        let neighbours = (0..self.here.config.size)
            .filter(|&rank| rank != self.here.config.rank && self.is_neighbour(rank))
            .count();
        if matches!(self.here.config.transport, Transport::Auto | Transport::Shm) {
            let rings =
                (0..neighbours).map_while(|_| self.here.arena.loan(RING_BYTES).ok().flatten());
            self.here.rings.borrow_mut().extend(rings);
        }
        let by_rdma = match self.here.config.transport {
            Transport::Auto => others - neighbours,
            Transport::Rdma => others,
            Transport::Shm | Transport::Tcp => 0,
        };
        if by_rdma > 0 {
            match self.here.adapter() {
                Ok(adapter) => adapter.reserve(by_rdma as u32),
                Err(why) => {
                    self.here.why_not_rdma.borrow_mut().get_or_insert(why);
                }
            }
        }
    }

    /// Whether there are neither TCP links nor conversations.
    pub(super) fn is_quiet(&self) -> bool {
        self.registered.len() == self.processes
    }

    /// Whether there is more than one path to choose from.
    pub(super) fn may_choose(&self) -> bool {
        self.here.config.transport == Transport::Auto
    }

    /// Whether a rank is on this node.
    pub(super) fn is_neighbour(&self, rank: Rank) -> bool {
        let address = self.addresses.get(rank as usize);
        address.is_some_and(|address| address.node == self.address.node)
    }

    /// Lets time pass: conversations that take too long end.
    pub(super) fn tick(&mut self, now: Duration) {
        self.now = now;
        self.registered.retain(|_, registered| match registered {
            Registered::Greeting(greeting) => greeting.deadline >= now,
            _ => true,
        });
    }

    /// Starts a conversation with rank `to`.
    pub(super) fn connect(&mut self, to: Rank) -> Result<Id, Loss> {
        let address = self.addresses.get(to as usize).cloned();
        let address =
            address.ok_or_else(|| Loss::Unreachable("its address is not known".into()))?;
        let same_node = address.node == self.address.node;
        match self.here.config.transport {
            Transport::Tcp | Transport::Rdma => self.connect_tcp(to, &address),
            Transport::Shm if same_node => self.connect_unix(to, &address),
            Transport::Shm => Err(Loss::Unreachable(
                "it is on another node, and only shared memory may be used".into(),
            )),
            Transport::Auto if same_node => self.connect_unix(to, &address).or_else(|loss| {
                self.without_shm.insert(to, loss.to_string());
                self.connect_tcp(to, &address)
            }),
            Transport::Auto => self.connect_tcp(to, &address),
        }
    }

    fn connect_unix(&mut self, to: Rank, address: &Address) -> Result<Id, Loss> {
        let stream = UnixAddress::from_abstract_name(&address.name)
            .and_then(|address| UnixStream::connect_addr(&address))
            .map_err(unreachable)?;
        self.greet(Stream::Unix(stream), to)
    }

    fn connect_tcp(&mut self, to: Rank, address: &Address) -> Result<Id, Loss> {
        let address = self.here.config.interface.on_our_link(address.tcp);
        let stream = TcpStream::connect(address).map_err(unreachable)?;
        self.greet(Stream::Tcp(stream), to)
    }

    fn greet(&mut self, stream: Stream, to: Rank) -> Result<Id, Loss> {
        let connector = Connector::new(&self.here.config.secret, self.here.config.rank, to)
            .map_err(|error| Loss::Unreachable(error.to_string()))?;
        let deadline = self.connect_deadline();
        self.register(Greeting::connecting(stream, to, connector, deadline))
            .map_err(unreachable)
    }

    /// Until when a connection that begins now has to be made. When all ranks start at once, on one machine maybe, each has to
    /// answer all the others before it has answered one.
    pub(super) fn connect_deadline(&self) -> Duration {
        self.now + CONNECT_TIME + CONNECT_TIME_A_RANK * self.here.config.size
    }

    fn register(&mut self, mut greeting: Greeting) -> io::Result<Id> {
        let id = self.next_id;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(greeting.stream.source(), Token(id), interest)?;
        self.next_id += 1;
        self.registered
            .insert(id, Registered::Greeting(Box::new(greeting)));
        Ok(id)
    }

    pub(super) fn forget(&mut self, id: Id) {
        self.registered.remove(&id);
    }

    /// Sends away a peer that proved itself, because our own connection to it counts.
    pub(super) fn refuse_crossed(&mut self, id: Id) {
        if let Some(Registered::Greeting(mut greeting)) = self.registered.remove(&id) {
            greeting.cross();
        }
    }

    /// Welcomes a peer that proved itself.
    pub(super) fn welcome(&mut self, id: Id, peer: Rank) -> Option<Step> {
        let Some(Registered::Greeting(greeting)) = self.registered.get_mut(&id) else {
            return None;
        };
        let progress = greeting.welcome(&self.here);
        self.step(id, Some(peer), progress)
    }

    /// Waits up to `timeout` and says what happened.
    pub(super) fn look(&mut self, timeout: Option<Duration>) -> Result<Vec<Step>, Error> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(Error::io("wait for the sockets")(error));
            }
            _ => {}
        }
        let mut seen = std::mem::take(&mut self.seen);
        for event in &self.events {
            let (readable, writable) = (
                event.is_readable() || event.is_read_closed() || event.is_error(),
                event.is_writable() || event.is_write_closed(),
            );
            seen.push((event.token(), readable, writable));
        }
        for (token, readable, writable) in seen.drain(..) {
            match token {
                UNIX_LISTENER | TCP_LISTENER => self.accept(token),
                WAKE => {
                    let _ = self.here.wake.read();
                    self.woken = true;
                }
                RDMA | RDMA_DEVICE => {
                    if let Some(adapter) = self.here.opened() {
                        adapter.take_events();
                    }
                }
                Token(id) => self.notice(id, readable, writable),
            }
        }
        self.seen = seen;
        Ok(std::mem::take(&mut self.steps))
    }

    fn accept(&mut self, listener: Token) {
        loop {
            let accepted = match listener {
                UNIX_LISTENER => self.unix.accept().map(|(stream, _)| Stream::Unix(stream)),
                _ => self.tcp.accept().map(|(stream, _)| Stream::Tcp(stream)),
            };
            match accepted {
                Ok(stream) => {
                    if self.registered.len() >= UNPROVED_MAX + 2 * self.here.config.size as usize {
                        self.forget_oldest_stranger();
                    }
                    // What cannot be registered is dropped, and its peer told by that.
                    let _ = self.register(Greeting::accepted(stream, self.connect_deadline()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // No descriptors left, for instance: a stranger's are taken.
                Err(_) if self.forget_oldest_stranger() => {}
                Err(_) => return,
            }
        }
    }

    /// Hangs up on whoever connected first of those who have not proved themselves: a peer proves itself at once, so
    /// a crowd that says nothing keeps nobody out. False when there is none.
    fn forget_oldest_stranger(&mut self) -> bool {
        let strangers = self.registered.iter().filter_map(|(&id, registered)| {
            let is_stranger =
                matches!(registered, Registered::Greeting(greeting) if greeting.peer.is_none());
            is_stranger.then_some(id)
        });
        let oldest = strangers.min();
        oldest.is_some_and(|id| self.registered.remove(&id).is_some())
    }

    fn notice(&mut self, id: Id, readable: bool, writable: bool) {
        match self.registered.get_mut(&id) {
            Some(Registered::Greeting(greeting)) => {
                let progress = greeting.advance(&self.here);
                let peer = greeting.peer;
                let step = self.step(id, peer, progress);
                self.steps.extend(step);
            }
            Some(&mut (Registered::Link(peer) | Registered::Watch(peer))) => {
                self.steps.push(Step::Ready {
                    peer,
                    readable,
                    writable,
                });
            }
            Some(&mut Registered::Process { peer, .. }) => {
                self.registered.remove(&id);
                self.processes -= 1;
                self.steps.push(Step::Died { peer });
            }
            None => {}
        }
    }

    /// What the progress of conversation `id` means for the fabric.
    fn step(&mut self, id: Id, peer: Option<Rank>, progress: Progress) -> Option<Step> {
        match (progress, peer) {
            (Progress::Waiting, _) => None,
            (Progress::Proved(peer), _) => Some(Step::Proved { id, peer }),
            (Progress::Done(offer), Some(peer)) => Some(Step::Linked {
                id,
                peer,
                link: Offered(offer),
            }),
            (Progress::Crossed, Some(peer)) => {
                self.registered.remove(&id);
                Some(Step::Crossed { id, peer })
            }
            (Progress::Failed(loss), Some(peer)) => {
                self.registered.remove(&id);
                Some(Step::Failed { id, peer, loss })
            }
            (Progress::Refused(reason), _) => {
                self.registered.remove(&id);
                Some(Step::Refused { reason })
            }
            (Progress::Done(_) | Progress::Crossed | Progress::Failed(_), None) => {
                self.registered.remove(&id);
                None
            }
        }
    }

    /// Makes the link of a finished conversation.
    pub(super) fn link(&mut self, id: Id, peer: Rank, offered: Offered) -> Result<Link, Loss> {
        let Some(Registered::Greeting(greeting)) = self.registered.remove(&id) else {
            return Err(Loss::Disconnected);
        };
        match (offered.0, greeting.stream) {
            (Offer::Tcp, Stream::Tcp(stream)) => {
                stream.set_nodelay(true).map_err(unreachable)?;
                let wire = match &greeting.tls {
                    None => Wire::Plain(stream),
                    Some((role, session)) => Wire::tls(stream, *role, session)
                        .map_err(|error| Loss::Connection(error.to_string()))?,
                };
                self.registered.insert(id, Registered::Link(peer));
                Ok(Link::Tcp(Box::new(Tcp::new(
                    peer,
                    self.here.arena.clone(),
                    wire,
                    self.here.config.silence_max,
                ))))
            }
            (Offer::Shm(shared), _) => {
                if shared.pid != process::id() as i32 {
                    self.watch(peer, shared.pid)?;
                }
                let link = Shm::new(
                    peer,
                    self.here.arena.clone(),
                    shared.outgoing,
                    shared.incoming,
                    shared.mapping,
                );
                Ok(Link::Shm(Box::new(link)))
            }
            (Offer::Rdma(connected), Stream::Tcp(stream)) => {
                self.hear_rdma().map_err(unreachable)?;
                self.registered.insert(id, Registered::Watch(peer));
                self.processes += 1;
                Ok(Link::Rdma(Box::new(Rdma::new(peer, *connected, stream))))
            }
            (Offer::Tcp | Offer::Rdma(_), Stream::Unix(_)) => {
                Err(Loss::Protocol("a Unix socket carries no messages"))
            }
        }
    }

    /// Has the completions of RDMA links, and what their device says, wake us.
    fn hear_rdma(&mut self) -> io::Result<()> {
        if let Some(adapter) = self.here.opened()
            && !self.hears_rdma
        {
            for (fd, token) in adapter.descriptors().into_iter().zip([RDMA, RDMA_DEVICE]) {
                self.poll
                    .registry()
                    .register(&mut SourceFd(&fd), token, Interest::READABLE)?;
            }
            self.hears_rdma = true;
        }
        Ok(())
    }

    /// Has the next completion of an RDMA link wake us. Look for completions once more after this.
    pub(super) fn arm_rdma(&self) {
        if self.hears_rdma
            && let Some(adapter) = self.here.opened()
        {
            adapter.arm();
        }
    }

    /// Why a peer of this node is not reached over shared memory.
    pub(super) fn why_not_shm(&self, peer: Rank) -> String {
        let reason = self.without_shm.get(&peer).cloned();
        reason.unwrap_or_else(|| "the peer came over TCP".to_owned())
    }

    pub(super) fn why_not_rdma(&self) -> Option<Unusable> {
        self.here.why_not_rdma.borrow().clone()
    }

    /// Has the end of a process told, as [`Step::Died`].
    fn watch(&mut self, peer: Rank, pid: i32) -> Result<(), Loss> {
        let pidfd = open_pidfd(pid).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => Loss::ProcessEnded,
            _ => Loss::Unreachable(format!("its process cannot be watched: {error}")),
        })?;
        let id = self.next_id;
        self.next_id += 1;
        self.poll
            .registry()
            .register(
                &mut SourceFd(&pidfd.as_raw_fd()),
                Token(id),
                Interest::READABLE,
            )
            .map_err(unreachable)?;
        self.processes += 1;
        self.registered.insert(
            id,
            Registered::Process {
                peer,
                _pidfd: pidfd,
            },
        );
        Ok(())
    }
}

fn unreachable(error: io::Error) -> Loss {
    Loss::Unreachable(error.to_string())
}

/// A descriptor that becomes readable when process `pid` ends, also as a zombie.
pub(super) fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Wakes a rank out of [`Fabric::wait`](super::Fabric::wait), from any thread. A wake-up that comes
/// while the rank is awake ends its next wait.
#[derive(Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Wakes the rank.
    pub fn wake(&self) {
        bell::wake(&*self.0);
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker(..)")
    }
}
