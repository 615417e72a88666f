//! The streams that carry the protocol: Unix sockets inside a machine, TCP between machines.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{self, setsockopt, sockopt},
};

use super::Error;

/// How long one end waits for the other's next step of the proof, all steps together.
pub(super) const PROOF_TIME_MAX: Duration = Duration::from_secs(5);

/// How long a write waits for a peer that does not read.
const WRITE_TIME_MAX: Duration = Duration::from_secs(1);

/// How long a TCP connection is attempted for.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// Seconds until a silent TCP peer is asked whether it is there, and between questions.
const KEEPALIVE_SECONDS: u32 = 5;

/// Questions a TCP peer may leave unanswered.
const KEEPALIVE_QUESTIONS: u32 = 3;

/// How long what was sent to a TCP peer may stay unacknowledged, in milliseconds.
const UNACKNOWLEDGED_MS_MAX: u32 = 20_000;

/// One connection, which several threads may use: one that reads and any that write.
#[derive(Debug)]
pub(super) struct Link {
    stream: Stream,
    /// Held while a frame is written, so that frames do not mix.
    writing: Mutex<Turn>,
}

impl Link {
    /// Wraps a connection whose ends have proved themselves.
    pub(super) fn new(stream: Stream) -> io::Result<Self> {
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(Some(WRITE_TIME_MAX))?;
        Ok(Self {
            stream,
            writing: Mutex::new(Turn::Open),
        })
    }

    /// The reading end.
    pub(super) fn reader(&self) -> &Stream {
        &self.stream
    }

    /// Writes a whole frame, waiting up to a second for room. What fails cuts the link, for half a
    /// frame may be out. Nothing is written after the [last](Self::send_last) frame.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.write(frame, Turn::Open)
    }

    /// Writes a small frame without waiting; `false` when the peer has left too much unread.
    pub(super) fn send_now(&self, frame: &[u8]) -> io::Result<bool> {
        if !self.has_room()? {
            return Ok(false);
        }
        self.send(frame).map(|()| true)
    }

    /// Writes a small last frame without waiting; a peer that has left too much unread is cut off.
    pub(super) fn send_last(&self, frame: &[u8]) {
        let has_room = self.has_room().unwrap_or(false);
        if !has_room || self.write(frame, Turn::Over).is_err() {
            self.cut();
        }
    }

    fn write(&self, frame: &[u8], next: Turn) -> io::Result<()> {
        let mut turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if *turn == Turn::Over {
            return Ok(());
        }
        *turn = next;
        let sent = (&self.stream).write_all(frame);
        if sent.is_err() {
            self.cut();
        }
        sent
    }

    /// Ends the connection once the peer has read all and ended its side, or a second has passed.
    /// To end it at once could take back what the peer has not read yet.
    pub(super) fn linger(&self) {
        let deadline = Instant::now() + WRITE_TIME_MAX;
        let mut unheard = [0; 1024];
        // What fails here has ended already.
        let _ = self.stream.shutdown(Shutdown::Write);
        while let Ok(left) = time_until(deadline)
            && self.stream.set_read_timeout(Some(left)).is_ok()
            && matches!((&self.stream).read(&mut unheard), Ok(1..))
        {}
        self.cut();
    }

    /// Ends the connection: the reader at either end sees the end of the stream.
    pub(super) fn cut(&self) {
        // It fails only when the connection has ended already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Whether the system has room for much more than a small frame.
    fn has_room(&self) -> io::Result<bool> {
        let mut waiting = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
        Ok(poll(&mut waiting, PollTimeout::ZERO)? > 0)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Whether there is more to be said on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Open,
    Over,
}

/// Where a coordinator listens: `unix:NAME` (in the abstract namespace) or `tcp:HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Unix(String),
    Tcp(String),
}

impl Address {
    /// Connects, within [`CONNECT_TIME_MAX`] for each address that a host's name stands for.
    pub(super) fn connect(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(name) => {
                let address = SocketAddr::from_abstract_name(name)?;
                UnixStream::connect_addr(&address).map(Stream::Unix)
            }
            Self::Tcp(address) => connect_tcp(address),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once(':') {
            Some(("unix", name)) if !name.is_empty() => Ok(Self::Unix(name.to_owned())),
            Some(("tcp", place)) if host_and_port(place).is_some() => {
                Ok(Self::Tcp(place.to_owned()))
            }
            _ => Err(Error::BadAddress {
                text: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(name) => write!(f, "unix:{name}"),
            Self::Tcp(place) => write!(f, "tcp:{place}"),
        }
    }
}

/// What accepts connections.
#[derive(Debug)]
pub(super) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens under an abstract name, which no file stands for and which ends with the process.
    pub(super) fn bind_unix(name: &str) -> io::Result<Self> {
        let address = SocketAddr::from_abstract_name(name)?;
        UnixListener::bind_addr(&address).map(Self::Unix)
    }

    /// Waits for the next connection.
    pub(super) fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(listener) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                Stream::tcp(stream)
            }
        }
    }

    /// Makes [`accept`](Self::accept) fail, in every thread that waits in it or will.
    pub(super) fn shutdown(&self) {
        // It fails only when it was shut down before.
        let _ = socket::shutdown(self.as_fd().as_raw_fd(), socket::Shutdown::Both);
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// A connection, over whichever socket.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Takes a TCP connection, and has the system ask now and then whether the peer is there.
    fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &KEEPALIVE_SECONDS)?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &KEEPALIVE_SECONDS)?;
        setsockopt(&stream, sockopt::TcpKeepCount, &KEEPALIVE_QUESTIONS)?;
        setsockopt(&stream, sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MS_MAX)?;
        Ok(Self::Tcp(stream))
    }

    /// Fills `bytes` before the deadline, however slowly the peer sends.
    pub(super) fn read_exact_by(&mut self, bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            self.set_read_timeout(Some(time_until(deadline)?))?;
            match self.read(&mut bytes[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes `bytes`, which are few, before the deadline.
    pub(super) fn write_all_by(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        self.set_write_timeout(Some(time_until(deadline)?))?;
        self.write_all(bytes)
    }

    /// The address of this end, if it is on a network.
    pub(super) fn local_address(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp(stream) => stream.local_addr().ok(),
        }
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(timeout),
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
        }
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_write_timeout(timeout),
            Self::Tcp(stream) => stream.set_write_timeout(timeout),
        }
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.shutdown(how),
            Self::Tcp(stream) => stream.shutdown(how),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).read(bytes),
            Stream::Tcp(stream) => (&*stream).read(bytes),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&*self).read(bytes)
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).write(bytes),
            Stream::Tcp(stream) => (&*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn connect_tcp(place: &str) -> io::Result<Stream> {
    use std::net::ToSocketAddrs;

    let mut outcome = Err(io::Error::other("the host has no address"));
    for address in host_and_port(place)
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_socket_addrs()?
    {
        outcome = TcpStream::connect_timeout(&address, CONNECT_TIME_MAX);
        if outcome.is_ok() {
            break;
        }
    }
    Stream::tcp(outcome?)
}

/// The host, without the brackets of an IPv6 address, and the port. (The system resolves `fe80::1%eth0`,
/// but not with brackets around it.)
fn host_and_port(place: &str) -> Option<(&str, u16)> {
    let (host, port) = place.rsplit_once(':')?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    Some((host, port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

fn time_until(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_prints_as_it_is_read() {
        for text in ["unix:updraft-00ff", "tcp:localhost:4000", "tcp:[::1]:80"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_an_address_is_refused_by_name() {
        for text in [
            "",
            "unix:",
            "tcp:",
            "tcp:localhost",
            "tcp::80",
            "tcp:a:99999",
            "ftp:a:1",
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")));
        }
    }
}
