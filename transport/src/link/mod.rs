//! The path to one peer, and the ways to keep its promises.

pub(crate) mod pulse;
pub(crate) mod rdma;
pub(crate) mod ring;
pub(crate) mod shm;
pub(crate) mod tcp;
pub(crate) mod tls;

use crate::{Arena, Buffer, Error, Loan, Loss, Rank, simulation};

/// The path to one peer: reliable, ordered, and never copying more than its medium forces it to.
pub trait Endpoint {
    /// The peer at the other end.
    fn peer(&self) -> Rank;

    /// Lends `bytes` of memory that the peer can read, or `None` until some has come back.
    ///
    /// This is the only place where a fast sender waits for a slow receiver.
    ///
    /// # Errors
    ///
    /// [`Error::MessageTooLarge`] when the memory could never be there.
    fn loan(&mut self, bytes: usize) -> Result<Option<Loan>, Error>;

    /// Hands a message over to the peer. It cannot fail for lack of room: the loan is the room.
    ///
    /// # Errors
    ///
    /// [`Error::PeerLost`] or [`Error::Closed`] once the peer is known to be gone.
    fn send(&mut self, message: Buffer) -> Result<(), Error>;

    /// The next message, if one has arrived. Dropping it returns its memory to the peer.
    ///
    /// # Errors
    ///
    /// [`Error::PeerLost`] or [`Error::Closed`] after the last message that arrived, each time.
    fn receive(&mut self) -> Result<Option<Buffer>, Error>;
}

/// What every [`Endpoint`] can also do.
pub trait EndpointExt: Endpoint {
    /// Sends a copy of `bytes`, or reports `false` when there is no room yet.
    ///
    /// # Errors
    ///
    /// Those of [`Endpoint::loan`] and [`Endpoint::send`].
    fn send_copy(&mut self, bytes: &[u8]) -> Result<bool, Error> {
        if let Some(message) = Buffer::inline(0, bytes) {
            return self.send(message).map(|()| true);
        }
        let Some(mut loan) = self.loan(bytes.len())? else {
            return Ok(false);
        };
        loan.copy_from_slice(bytes);
        self.send(loan.freeze())?;
        Ok(true)
    }
}

impl<E: Endpoint + ?Sized> EndpointExt for E {}

/// What carries the messages of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Path {
    /// Memory that both ranks have mapped.
    Shm,
    /// A TCP connection.
    Tcp,
    /// A pair of RDMA devices.
    Rdma,
    /// The in-memory network of a simulation.
    Simulated,
}

/// How a peer's end came to its end.
#[derive(Debug, Clone)]
pub(crate) enum End {
    Closed,
    Lost(Loss),
}

impl End {
    pub(crate) fn error(&self, peer: Rank) -> Error {
        match self {
            Self::Closed => Error::Closed { peer },
            Self::Lost(cause) => Error::PeerLost {
                peer,
                cause: cause.clone(),
            },
        }
    }

    pub(crate) fn protocol(what: &'static str) -> Self {
        Self::Lost(Loss::Protocol(what))
    }
}

/// A path of any kind.
pub(crate) enum Link {
    Shm(Box<shm::Shm>),
    Tcp(Box<tcp::Tcp>),
    Rdma(Box<rdma::Rdma>),
    Simulated(simulation::Port),
}

impl Link {
    pub(crate) fn path(&self) -> Path {
        match self {
            Self::Shm(_) => Path::Shm,
            Self::Tcp(_) => Path::Tcp,
            Self::Rdma(_) => Path::Rdma,
            Self::Simulated(_) => Path::Simulated,
        }
    }

    /// How often messages found no room on their way.
    pub(crate) fn waits(&self) -> u64 {
        match self {
            Self::Shm(link) => link.waits(),
            Self::Tcp(link) => link.waits(),
            Self::Rdma(link) => link.waits(),
            Self::Simulated(_) => 0,
        }
    }

    /// Packets that were sent again.
    pub(crate) fn retransmissions(&self) -> u64 {
        match self {
            Self::Tcp(link) => link.retransmissions(),
            Self::Shm(_) | Self::Rdma(_) | Self::Simulated(_) => 0,
        }
    }

    /// Messages that fill the arena of the peer, or will, until it drops them: none where it reads ours in place.
    pub(crate) fn unread(&self) -> Box<dyn Iterator<Item = &Buffer> + '_> {
        match self {
            Self::Tcp(link) => Box::new(link.unread()),
            Self::Rdma(link) => Box::new(link.unread()),
            Self::Shm(_) | Self::Simulated(_) => Box::new(std::iter::empty()),
        }
    }

    /// Looks for messages where only the event queue would tell of them.
    pub(crate) fn probe(&mut self) {
        if let Self::Tcp(link) = self {
            link.probe();
        }
    }

    /// Whether [`flush`](Self::flush) would move something.
    pub(crate) fn can_flush(&mut self) -> bool {
        match self {
            Self::Shm(link) => link.can_flush(),
            Self::Tcp(_) | Self::Rdma(_) | Self::Simulated(_) => false, // The socket tells.
        }
    }

    /// Whether something waits for the peer to make room.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self, Self::Shm(link) if link.is_waiting())
    }

    /// Whether `receive` has something to say.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        match self {
            Self::Shm(link) => link.is_ready(),
            Self::Tcp(link) => link.is_ready(),
            Self::Rdma(link) => link.is_ready(),
            Self::Simulated(link) => link.is_ready(),
        }
    }

    /// Moves what waits here towards the peer; true when nothing waits any more.
    #[inline]
    pub(crate) fn flush(&mut self) -> bool {
        match self {
            Self::Shm(link) => link.flush(),
            Self::Tcp(link) => link.flush(),
            Self::Rdma(link) => link.flush(),
            Self::Simulated(_) => true,
        }
    }

    /// Called while nothing arrives: gives back what was kept to be given back together.
    pub(crate) fn idle(&mut self) {
        match self {
            Self::Shm(link) => link.give_back(),
            Self::Rdma(link) => link.idle(),
            Self::Tcp(_) | Self::Simulated(_) => {}
        }
    }

    /// Tells the link that its peer is gone; what has arrived is still received.
    pub(crate) fn end(&mut self, end: End) {
        match self {
            Self::Shm(link) => link.end(end),
            Self::Tcp(link) => link.end(end),
            Self::Rdma(link) => link.end(end),
            Self::Simulated(_) => {}
        }
    }

    /// Says goodbye: an orderly one, unless the thread is panicking.
    pub(crate) fn close(&mut self) {
        match self {
            Self::Shm(link) => link.close(),
            Self::Tcp(link) => link.close(),
            Self::Rdma(link) => link.close(),
            Self::Simulated(link) => link.close(),
        }
    }

    /// Sends what is about exposed memory, and no message: its receiver [takes it](Self::take_aside) between the
    /// messages that were sent before and after it. Of a peer that is gone, receiving tells.
    pub(crate) fn send_aside(&mut self, aside: Buffer) {
        match self {
            Self::Shm(link) => link.send_aside(aside),
            Self::Tcp(link) => link.send_aside(aside),
            Self::Rdma(link) => link.send_aside(aside),
            Self::Simulated(link) => link.send_aside(aside),
        }
    }

    /// Whether `receive` said that there is no message because something else came.
    #[inline]
    pub(crate) fn has_aside(&self) -> bool {
        match self {
            Self::Shm(link) => link.has_aside(),
            Self::Tcp(link) => link.has_aside(),
            Self::Rdma(link) => link.has_aside(),
            Self::Simulated(link) => link.has_aside(),
        }
    }

    /// What came instead of a message.
    pub(crate) fn take_aside(&mut self) -> Option<Buffer> {
        match self {
            Self::Shm(link) => link.take_aside(),
            Self::Tcp(link) => link.take_aside(),
            Self::Rdma(link) => link.take_aside(),
            Self::Simulated(link) => link.take_aside(),
        }
    }

    fn endpoint(&mut self) -> &mut dyn Endpoint {
        match self {
            Self::Shm(link) => &mut **link,
            Self::Tcp(link) => &mut **link,
            Self::Rdma(link) => &mut **link,
            Self::Simulated(link) => link,
        }
    }
}

impl Endpoint for Link {
    fn peer(&self) -> Rank {
        match self {
            Self::Shm(link) => link.peer(),
            Self::Tcp(link) => link.peer(),
            Self::Rdma(link) => link.peer(),
            Self::Simulated(link) => link.peer(),
        }
    }

    fn loan(&mut self, bytes: usize) -> Result<Option<Loan>, Error> {
        self.endpoint().loan(bytes)
    }

    #[inline(always)]
    fn send(&mut self, message: Buffer) -> Result<(), Error> {
        match self {
            Self::Shm(link) => link.send(message),
            other => other.endpoint().send(message),
        }
    }

    #[inline]
    fn receive(&mut self) -> Result<Option<Buffer>, Error> {
        match self {
            Self::Shm(link) => link.receive(),
            other => other.endpoint().receive(),
        }
    }
}

/// A copy of `message` in `arena`, or the message itself while there is no room for the copy.
pub(crate) fn copy_into(arena: &Arena, message: Buffer) -> Result<Buffer, Buffer> {
    let Ok(Some(mut loan)) = arena.loan(message.len()) else {
        return Err(message);
    };
    loan.copy_from_slice(&message);
    loan.set_tag(message.tag());
    Ok(loan.freeze())
}
