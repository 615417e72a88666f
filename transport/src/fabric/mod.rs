//! Every link of one rank behind one door.

mod contacts;
mod counters;
mod greeting;
mod onesided;
mod peer;
mod sockets;
mod waiting;

use std::{collections::VecDeque, fmt, process, time::Duration};

use self::{contacts::Contact, counters::Traffic, sockets::Sockets, waiting::SPINS_MAX};
pub use self::{
    counters::{Counters, Flow, Why},
    peer::Peer,
    sockets::Waker,
};
use crate::{
    Address, Arena, Buffer, Endpoint, Error, Interface, Loan, Loss, Path, Rank, RdmaConfig,
    Refusal, Secret, Simulation, Unusable,
    link::{End, Link, pulse},
    remote::{Completion, Onesided},
    simulation,
};

/// Polls without news after which a rank counts as idle.
const POLLS_TO_IDLE: u32 = 64;
/// Polls of the links between two looks at the sockets, while nothing arrives: a look is a system call.
const POLLS_A_LOOK: u32 = 16;
/// The same, while nothing but deaths and strangers is expected of the sockets.
const POLLS_A_GLANCE: u32 = 1024;
/// Steps in what a peer asks for beside its messages that are taken in one poll.
const ASIDES_A_POLL: usize = 64;

/// Which paths a fabric may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// Shared memory within a node; otherwise RDMA where both have a device for it, and TCP where not.
    #[default]
    Auto,
    /// Shared memory only; a rank of another node is unreachable.
    Shm,
    /// TCP only, also within a node.
    Tcp,
    /// RDMA only, also within a node. Ranks still find each other over TCP.
    Rdma,
}

/// What a fabric is made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// The rank it belongs to.
    pub rank: Rank,
    /// Ranks in the job.
    pub size: u32,
    /// The paths it may take.
    pub transport: Transport,
    /// The address at which others reach it by TCP.
    pub interface: Interface,
    /// How it uses RDMA.
    pub rdma: RdmaConfig,
    /// What its peers have to know.
    pub secret: Secret,
    /// How long the machine of a peer on TCP or RDMA may be silent before the peer is lost. Ranks that are busy,
    /// and processes that are stopped, are not silent: their machine answers. Less than a second
    /// makes a few lost packets look like a lost machine.
    ///
    /// On TCP there is one case in which kernels before 6.15, which do not know `TCP_RTO_MAX_MS`, take longer: a machine that
    /// vanishes while its rank is busy and has no room for more. Their kernel asks for room ever more rarely, and the loss
    /// shows at its next question, after 2 minutes at the most.
    pub silence_max: Duration,
    /// Whether what goes over TCP is encrypted, by TLS 1.3; what goes over RDMA is not. All ranks have to
    /// agree.
    pub tls: bool,
    /// Whether to spin before sleeping; not worth it with more ranks than cores.
    pub spin: bool,
}

impl Config {
    /// How long a peer's machine may be silent, unless told otherwise.
    pub const SILENCE_MAX: Duration = Duration::from_secs(2);

    /// A fabric as it is when nothing else is asked for: any path, reached by this machine alone, and
    /// spinning before it sleeps.
    pub fn new(rank: Rank, size: u32, secret: &Secret) -> Self {
        Self {
            rank,
            size,
            transport: Transport::Auto,
            interface: Interface::LOOPBACK,
            rdma: RdmaConfig::default(),
            secret: secret.clone(),
            silence_max: Self::SILENCE_MAX,
            tls: false,
            spin: true,
        }
    }
}

/// What a fabric has to say.
#[derive(Debug)]
pub enum Event {
    /// A message arrived.
    Message {
        /// Who sent it.
        from: Rank,
        /// What it says.
        buffer: Buffer,
    },
    /// A peer is gone, and all that it sent has been received. Told once for each peer.
    Ended {
        /// The peer.
        peer: Rank,
        /// [`Error::Closed`] or [`Error::PeerLost`].
        error: Box<Error>,
    },
    /// An operation on the memory of a peer is complete, or failed. Of a peer that is gone, these come after
    /// its [`Ended`](Self::Ended).
    Completed {
        /// The owner of the memory.
        peer: Rank,
        /// Which operation, and what it brought.
        completion: Box<Completion>,
    },
    /// Somebody who is not of this job tried to connect. Nothing came of it.
    Refused {
        /// What was wrong.
        reason: Refusal,
    },
}

const _: () = assert!(
    size_of::<Result<Option<Event>, Box<Error>>>() == 16,
    "what is received fits in two registers"
);

/// Gives one executor a link to every rank of its job.
///
/// A link is made when a message first needs it, by the best path that both ends share. All calls
/// return at once, except [`wait`](Self::wait). A fabric belongs to the thread that made it.
///
/// A link that was lost is not made again, whatever its path, and the peer is lost with it: it is told once, by
/// [`Event::Ended`], and whatever is sent to the peer after that is an error. What was on its way may have been read or not.
/// To send it again could deliver it twice, and not to send it would leave it out, and neither happens here. So those who
/// know what was done decide what goes on without the peer, or with a new one in another fabric. Packets that get lost are no
/// loss of the link: TCP and the devices repeat them, for as long as [`Config::silence_max`] says.
///
/// ```
/// use std::time::Duration;
/// use transport::{Arena, Config, Event, Fabric, Ledger, Secret};
///
/// // Two ranks; here on one thread, mostly each has its own.
/// let (ledger, secret) = (Ledger::new(8 << 20), Secret::random()?);
/// let config = |rank| Config::new(rank, 2, &secret);
/// let mut here = Fabric::new(config(0), Arena::new(&ledger, 1 << 20)?)?;
/// let mut there = Fabric::new(config(1), Arena::new(&ledger, 1 << 20)?)?;
/// let book = [here.address(), there.address()].map(|address| address.unwrap());
/// here.join(&book)?;
/// there.join(&book)?;
///
/// let mut loan = here.loan(1000)?.expect("the arena is empty");
/// loan.fill(7);
/// here.send(1, loan)?;
/// let buffer = loop {
///     here.receive()?;
///     if let Some(Event::Message { buffer, .. }) = there.receive()? {
///         break buffer;
///     }
/// };
/// assert!(buffer.iter().all(|&byte| byte == 7));
/// # Ok::<(), transport::Error>(())
/// ```
pub struct Fabric {
    rank: Rank,
    arena: Arena,
    peers: Vec<Contact>,
    /// What went to each of them and came from it.
    traffic: Vec<Traffic>,
    /// Strangers that were turned away.
    refused: u64,
    /// The peers with an open link.
    open: Vec<Rank>,
    /// Where the next look at the links starts, so that none waits behind a busy one.
    next: usize,
    /// Messages to ourselves.
    own: VecDeque<Buffer>,
    events: VecDeque<Event>,
    onesided: Onesided,
    /// None in a simulation.
    sockets: Option<Sockets>,
    /// Polls since something arrived.
    idle_polls: u32,
    /// Polls until the next look at the sockets, counted down.
    until_look: i32,
    /// How much a poll in vain counts for.
    empty_poll_costs: i32,
    /// How long to spin, by how it went before.
    spins: u32,
    spin: bool,
    /// Whether it promised to fence those who ring before it sleeps.
    fences_all: bool,
    /// Time between two looks whether peers on TCP are there, and the time of the next.
    look_interval: Duration,
    next_look: Duration,
    /// Whether every poll reads from the connections, told of data or not.
    probes: bool,
    /// The network, if it is simulated.
    network: Option<Simulation>,
}

impl Fabric {
    /// A fabric that others can connect to at its [`address`](Self::address).
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system refuses a socket; [`Error::Rdma`] when nothing but RDMA may be used and it
    /// cannot be.
    pub fn new(config: Config, arena: Arena) -> Result<Self, Error> {
        let spin = config.spin;
        // A rank that shares its core sleeps often, and others have little to send meanwhile.
        let fences_all = spin && arena.region().bell().promise();
        let look_interval = pulse::interval(config.silence_max);
        let (rank, size) = (config.rank, config.size);
        let sockets = Sockets::new(config, arena.clone())?;
        let peers = (0..size).map(|_| Contact::Unknown).collect();
        let mut fabric = Self::with(rank, arena, peers, Some(sockets), spin);
        fabric.look_interval = look_interval;
        fabric.fences_all = fences_all;
        Ok(fabric)
    }

    /// Tries what tells a rank that the process of a peer has ended. Without it ranks of one machine share no
    /// memory.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system refuses it.
    pub fn try_watch() -> Result<(), Error> {
        let ourselves = process::id().cast_signed();
        let opened = sockets::open_pidfd(ourselves);
        opened.map(drop).map_err(Error::io("watch a process"))
    }

    /// A fabric of one rank, whose messages go to itself.
    pub fn alone(arena: Arena) -> Self {
        Self::with(0, arena, vec![Contact::Unknown], None, false)
    }

    pub(crate) fn simulated(
        rank: Rank,
        size: u32,
        arena: Arena,
        network: Simulation,
        port: impl Fn(Rank) -> simulation::Port,
    ) -> Self {
        let peers = (0..size)
            .map(|peer| Contact::Open(Link::Simulated(port(peer))))
            .collect();
        let mut fabric = Self::with(rank, arena, peers, None, false);
        fabric.open = (0..size).filter(|&peer| peer != rank).collect();
        fabric.network = Some(network);
        fabric
    }

    fn with(
        rank: Rank,
        arena: Arena,
        peers: Vec<Contact>,
        sockets: Option<Sockets>,
        spin: bool,
    ) -> Self {
        Self {
            rank,
            arena,
            onesided: Onesided::new(rank, peers.len()),
            traffic: vec![Traffic::default(); peers.len()],
            refused: 0,
            peers,
            open: Vec::new(),
            next: 0,
            own: VecDeque::new(),
            events: VecDeque::new(),
            sockets,
            idle_polls: 0,
            until_look: 1,
            empty_poll_costs: 1,
            spins: SPINS_MAX / 8,
            spin,
            fences_all: false,
            look_interval: pulse::interval(Config::SILENCE_MAX),
            next_look: Duration::ZERO,
            probes: false,
            network: None,
        }
    }

    /// The rank this fabric belongs to.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// Ranks in the job.
    pub fn size(&self) -> u32 {
        self.peers.len() as u32
    }

    /// The arena that lends this rank's messages.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Where others reach this rank; none if there are no others, or only simulated ones.
    pub fn address(&self) -> Option<Address> {
        self.sockets.as_ref().map(Sockets::address)
    }

    /// Something that wakes this rank out of [`wait`](Self::wait), from any thread.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system refuses another descriptor.
    pub fn waker(&self) -> Result<Option<Waker>, Error> {
        self.sockets.as_ref().map(Sockets::waker).transpose()
    }

    /// Learns where the others are: the addresses of all ranks, in order.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownRank`] when there are not as many as ranks.
    pub fn join(&mut self, addresses: &[Address]) -> Result<(), Error> {
        if addresses.len() != self.peers.len() {
            return Err(Error::UnknownRank {
                rank: addresses.len() as Rank,
                size: self.size(),
            });
        }
        if let Some(sockets) = &mut self.sockets {
            sockets.join(addresses);
        }
        Ok(())
    }

    /// The path to `peer`, once there is one.
    pub fn path(&self, peer: Rank) -> Option<Path> {
        match self.peers.get(peer as usize)? {
            Contact::Open(link) => Some(link.path()),
            _ => None,
        }
    }

    /// What the link to `peer` has done; none for a rank that is not one of the job's.
    pub fn counters(&self, peer: Rank) -> Option<Counters> {
        let (contact, traffic) = (
            self.peers.get(peer as usize)?,
            self.traffic.get(peer as usize)?,
        );
        let mut traffic = *traffic;
        if let Contact::Open(link) = contact {
            traffic.look_at(link);
        }
        Some(Counters {
            path: traffic.path,
            why: self.why(peer, traffic.path),
            sent: traffic.sent,
            received: traffic.received,
            waits: traffic.waits,
            retransmissions: traffic.retransmissions,
            put: traffic.put,
            got: traffic.got,
        })
    }

    /// How many strangers were turned away.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    fn why(&self, peer: Rank, path: Option<Path>) -> Why {
        let Some(sockets) = &self.sockets else {
            return path.map_or(Why::NoLink, |_| Why::Simulation);
        };
        match path {
            None => Why::NoLink,
            Some(_) if !sockets.may_choose() => Why::Chosen,
            Some(Path::Tcp) if sockets.is_neighbour(peer) => {
                Why::NoSharedMemory(sockets.why_not_shm(peer))
            }
            Some(Path::Tcp) => sockets
                .why_not_rdma()
                .map_or(Why::OtherNode, |reason| Why::NoRdma(reason.to_string())),
            Some(_) if sockets.is_neighbour(peer) => Why::SameNode,
            Some(_) => Why::OtherNode,
        }
    }

    /// Why RDMA, which may be used, is not, if that has shown: links that it would have carried go over TCP. Of a device that is
    /// missing here it is known after [`join`](Self::join); of one that a peer lacks, when there is a link to that peer.
    pub fn why_not_rdma(&self) -> Option<Unusable> {
        self.sockets.as_ref().and_then(Sockets::why_not_rdma)
    }

    /// Lends `bytes` for a message; `None` while there is no room. See [`Arena::loan`].
    ///
    /// Room comes back as peers read; over TCP they say so in the stream, so whoever waits for room
    /// has to go on receiving.
    ///
    /// # Errors
    ///
    /// [`Error::MessageTooLarge`].
    #[inline]
    pub fn loan(&self, bytes: usize) -> Result<Option<Loan>, Error> {
        self.arena.loan(bytes)
    }

    /// Hands a message over to rank `to`, which may be this one. It waits here, holding its loan,
    /// while its link is being made or is full.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownRank`], or why the peer is gone.
    #[inline]
    pub fn send(&mut self, to: Rank, message: impl Into<Buffer>) -> Result<(), Error> {
        let message = message.into();
        if to == self.rank {
            self.own.push_back(message);
            return Ok(());
        }
        let bytes = message.bytes();
        match self.peers.get_mut(to as usize) {
            Some(Contact::Open(Link::Shm(link))) => link.send(message)?,
            _ => self.send_otherwise(to, message)?,
        }
        self.traffic[to as usize].sent.add(bytes);
        Ok(())
    }

    /// The same where there is no shared memory, or no link yet.
    #[inline(never)]
    fn send_otherwise(&mut self, to: Rank, message: Buffer) -> Result<(), Error> {
        let size = self.size();
        match self.peers.get_mut(to as usize) {
            Some(Contact::Open(link)) => link.send(message),
            Some(Contact::Connecting { waiting, .. }) => {
                waiting.push_back(message);
                Ok(())
            }
            Some(Contact::Unknown) => {
                self.connect(to, VecDeque::from([message]));
                Ok(())
            }
            Some(Contact::Ended(end)) => Err(end.error(to)),
            None => Err(Error::UnknownRank { rank: to, size }),
        }
    }

    /// Bytes of the messages to `peer`, with tags for which `wanted` holds, that are in the arena of the peer, or on their way
    /// there, until it has dropped them. None where it reads them in ours.
    ///
    /// Where a message arrives for which the receiver's arena has no room, the link stands still, whatever comes behind that
    /// message. Who sends more than a receiver has asked for can so keep others from sending to it, and has to bound that.
    pub fn unread(&self, peer: Rank, wanted: impl Fn(u64) -> bool) -> u64 {
        let bytes = |message: &Buffer| match wanted(message.tag()) {
            true => message.len() as u64,
            false => 0,
        };
        match self.peers.get(peer as usize) {
            Some(Contact::Open(link)) => link.unread().map(bytes).sum(),
            Some(Contact::Connecting { waiting, .. }) => {
                let large = |message: &&Buffer| message.len() > Buffer::INLINE_BYTES;
                waiting.iter().filter(large).map(bytes).sum()
            }
            _ => 0,
        }
    }

    /// Has a link be made to `peer` though there is no message for it yet: whoever only waits for a peer learns of its end
    /// in no other way.
    pub fn approach(&mut self, peer: Rank) {
        if peer != self.rank && matches!(self.peers.get(peer as usize), Some(Contact::Unknown)) {
            self.connect(peer, VecDeque::new());
        }
    }

    /// Sends a copy of `bytes` under `tag`; false while there is no room for it.
    ///
    /// # Errors
    ///
    /// Those of [`loan`](Self::loan) and [`send`](Self::send).
    #[inline]
    pub fn send_copy(&mut self, to: Rank, tag: u64, bytes: &[u8]) -> Result<bool, Error> {
        if let Some(Contact::Open(Link::Shm(link))) = self.peers.get_mut(to as usize)
            && link.send_inline(tag, bytes)
        {
            self.traffic[to as usize].sent.add(bytes.len());
            return Ok(true);
        }
        let message = match Buffer::inline(tag, bytes) {
            Some(message) => message,
            None => {
                let Some(mut loan) = self.loan(bytes.len())? else {
                    return Ok(false);
                };
                loan.copy_from_slice(bytes);
                loan.set_tag(tag);
                loan.freeze()
            }
        };
        self.send(to, message).map(|()| true)
    }

    /// What has happened, one event at a time; `None` when there is nothing new.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system's event queue fails. The loss of a peer is an [`Event`].
    // Errors are in boxes, here and in the event, so that the result is two words and stays in registers: to store
    // and load a larger one takes as long as the rest.
    #[inline(always)]
    pub fn receive(&mut self) -> Result<Option<Event>, Box<Error>> {
        if self.until_look > 0
            && let Some((from, buffer)) = self.poll()
        {
            self.polled_well();
            return Ok(Some(Event::Message { from, buffer }));
        }
        if !self.polled_in_vain() && self.events.is_empty() {
            return Ok(None);
        }
        self.receive_rarer()
    }

    #[inline(always)]
    fn polled_well(&mut self) {
        self.idle_polls = 0;
        self.until_look -= 1;
    }

    /// Counts a poll that found nothing; true when it is time for what is done rarely.
    #[inline(always)]
    fn polled_in_vain(&mut self) -> bool {
        self.idle_polls = self.idle_polls.wrapping_add(1);
        self.until_look -= self.empty_poll_costs;
        self.until_look <= 0 || self.idle_polls == POLLS_TO_IDLE
    }

    /// Nothing has arrived, or much without a look at anything else: does what is done now and then.
    fn do_what_is_rare(&mut self) -> Result<(), Error> {
        if self.idle_polls >= POLLS_TO_IDLE {
            self.tell_about_memory();
            self.idle();
        }
        if self.until_look <= 0 {
            self.look(Some(Duration::ZERO))?;
        }
        Ok(())
    }

    #[cold]
    fn receive_rarer(&mut self) -> Result<Option<Event>, Box<Error>> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        self.do_what_is_rare()?;
        let message = self.poll();
        Ok(match message {
            Some((from, buffer)) => Some(Event::Message { from, buffer }),
            None => self.events.pop_front(),
        })
    }

    /// Whether there is a link to `peer`.
    #[inline]
    fn is_open(&self, peer: Rank) -> bool {
        matches!(self.peers.get(peer as usize), Some(Contact::Open(_)))
    }

    /// What there is to do and to say when [`Peer`] finds nothing.
    #[cold]
    fn receive_rarer_from(&mut self, peer: Rank) -> Result<Option<Buffer>, Box<Error>> {
        self.do_what_is_rare()?;
        self.flush_links();
        let message = self.poll_peer(peer);
        match self.peers.get(peer as usize) {
            Some(Contact::Ended(end)) if message.is_none() => Err(end.error(peer).into()),
            None => Err(Error::UnknownRank {
                rank: peer,
                size: self.size(),
            }
            .into()),
            _ => Ok(message),
        }
    }

    /// Looks at the sockets now, and not only after many calls of [`receive`](Self::receive): for those who
    /// come by rarely.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system's event queue fails.
    pub fn refresh(&mut self) -> Result<(), Error> {
        self.look(Some(Duration::ZERO))
    }

    /// The link to one peer as an [`Endpoint`](crate::Endpoint), for those who talk to one only.
    ///
    /// ```
    /// use transport::{Arena, Endpoint, EndpointExt, Ledger, Simulation};
    ///
    /// let network = Simulation::new(7, 2);
    /// let [mut here, mut there] = [0, 1].map(|rank| {
    ///     network.fabric(rank, &Arena::new(&Ledger::new(1 << 20), 1 << 20).unwrap())
    /// });
    /// assert!(here.endpoint(1).send_copy(b"hello")?);
    /// while network.advance() {}
    /// let message = there.endpoint(0).receive()?.expect("it has arrived");
    /// assert_eq!((message.as_slice(), there.endpoint(0).peer()), (&b"hello"[..], 0));
    /// # Ok::<(), transport::Error>(())
    /// ```
    pub fn endpoint(&mut self, peer: Rank) -> Peer<'_> {
        Peer { fabric: self, peer }
    }

    /// Moves what waits here towards its receivers; true when nothing waits any more, so that the
    /// fabric can be dropped without losing a message.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system's event queue fails.
    pub fn flush(&mut self) -> Result<bool, Error> {
        self.look(Some(Duration::ZERO))?;
        self.tell_about_memory();
        self.idle();
        let connected = !self
            .peers
            .iter()
            .any(|peer| matches!(peer, Contact::Connecting { .. }));
        Ok(self.flush_links() && connected)
    }

    /// Lets `now`, a time since any fixed moment, do its work: connections that take too long fail, and
    /// so do peers on TCP whose machine has been [silent](Config::silence_max) for too long. It costs
    /// little to call this often; it should be called at least eight times within that silence.
    pub fn tick(&mut self, now: Duration) {
        let Some(sockets) = &mut self.sockets else {
            return;
        };
        sockets.tick(now);
        if now >= self.next_look {
            self.next_look = now + self.look_interval;
            for &peer in &self.open {
                match &mut self.peers[peer as usize] {
                    Contact::Open(Link::Tcp(link)) => link.tick(now),
                    Contact::Open(Link::Rdma(link)) => link.tick(now),
                    _ => {}
                }
            }
        }
        for peer in 0..self.size() {
            if let Contact::Connecting {
                deadline, attempt, ..
            } = &self.peers[peer as usize]
                && *deadline < now
            {
                let attempt = *attempt;
                self.abandon(attempt);
                self.end(
                    peer,
                    End::Lost(Loss::Unreachable("nobody answered in time".into())),
                );
            }
        }
    }

    /// Looks at the links, and at nothing that takes a system call when they are all shared memory. The end
    /// of a link becomes an event.
    #[inline(always)]
    fn poll(&mut self) -> Option<(Rank, Buffer)> {
        if !self.own.is_empty() {
            return self.own.pop_front().map(|buffer| (self.rank, buffer));
        }
        // Most often there is one link, and then there is nothing to take turns for.
        if let [peer] = *self.open {
            return self.poll_peer(peer).map(|buffer| (peer, buffer));
        }
        self.poll_in_turn()
    }

    #[inline]
    fn poll_in_turn(&mut self) -> Option<(Rank, Buffer)> {
        if self.network.is_some() {
            return self.poll_simulated();
        }
        for _ in 0..self.open.len() {
            self.next = if self.next + 1 < self.open.len() {
                self.next + 1
            } else {
                0
            };
            let peer = self.open[self.next];
            if let Some(buffer) = self.poll_peer(peer) {
                return Some((peer, buffer));
            }
        }
        None
    }

    /// The same on a simulated network, which knows where there is something: it may have thousands of ranks.
    #[cold]
    fn poll_simulated(&mut self) -> Option<(Rank, Buffer)> {
        let ready = self.network.as_ref()?.ready(self.rank);
        ready.into_iter().find_map(|peer| match self.is_open(peer) {
            true => self.poll_peer(peer).map(|buffer| (peer, buffer)),
            false => None,
        })
    }

    #[inline(always)]
    fn poll_peer(&mut self, peer: Rank) -> Option<Buffer> {
        if let Some(Contact::Open(Link::Shm(link))) = self.peers.get_mut(peer as usize) {
            let message = link.poll();
            if let Some(message) = message {
                self.traffic[peer as usize].received.add(message.bytes());
                return Some(message);
            }
            if !(link.is_over() || link.has_aside()) {
                return None;
            }
        }
        self.poll_other(peer)
    }

    /// The same for a link that is not shared memory, that is over, or that has more than messages.
    #[inline(never)]
    fn poll_other(&mut self, peer: Rank) -> Option<Buffer> {
        for _ in 0..ASIDES_A_POLL {
            let Some(Contact::Open(link)) = self.peers.get_mut(peer as usize) else {
                return None;
            };
            if link.has_aside() {
                self.serve(peer);
                continue;
            }
            if self.onesided.is_blocked(peer) {
                let message = self.poll_behind(peer);
                return self.count(peer, message);
            }
            if !matches!(link, Link::Rdma(_)) {
                link.flush();
                if self.probes {
                    link.probe();
                }
                if !link.is_ready() {
                    return None;
                }
            }
            match link.receive() {
                Ok(None) if link.has_aside() => {}
                Ok(message) => return self.count(peer, message),
                Err(error) => {
                    self.ended(peer, error);
                    return None;
                }
            }
        }
        None
    }

    fn count(&mut self, peer: Rank, message: Option<Buffer>) -> Option<Buffer> {
        if let Some(message) = &message {
            self.traffic[peer as usize].received.add(message.bytes());
        }
        message
    }

    #[inline]
    fn flush_links(&mut self) -> bool {
        let mut flushed = true;
        for &peer in &self.open {
            if let Contact::Open(link) = &mut self.peers[peer as usize] {
                flushed &= link.flush();
            }
        }
        flushed
    }

    /// Waits for the sockets, up to `timeout`, and deals with what they say.
    fn look(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.until_look = POLLS_A_GLANCE as i32;
        let Some(sockets) = &mut self.sockets else {
            return Ok(());
        };
        for step in sockets.look(timeout)? {
            self.take(step);
        }
        self.empty_poll_costs = (POLLS_A_GLANCE / self.polls_a_look()) as i32;
        Ok(())
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        self.tell_about_memory();
        for (peer, contact) in self.peers.iter_mut().enumerate() {
            if let Contact::Open(link) = contact {
                link.close();
                if let Link::Rdma(_) = link {
                    // Its device reaches nothing here any more.
                    self.onesided.table().borrow_mut().forget(peer as Rank);
                }
            }
        }
    }
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric")
            .field("rank", &self.rank)
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}
