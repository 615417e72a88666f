//! What a job does, tried once.

use std::{
    env,
    fs::File,
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    process,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{getsockopt, sockopt::PeerCredentials},
        statvfs::statvfs,
    },
    unistd::{ftruncate, geteuid},
};
use updraft::{
    dataflow::one_line,
    transport::{self, Arena, Config, Event, Fabric, Ledger, Secret, Transport},
};

use super::Check;
use crate::kernel::bytes;

/// How long two ranks of one process may take to meet.
const MEETING_MAX: Duration = Duration::from_secs(2);
/// Less than this is soon full of spilled state.
const DISK_ENOUGH: u64 = 1 << 30;
/// The arena of a rank that is made to try.
const ARENA_BYTES: u64 = 1 << 20;

/// Everything that can be tried.
pub(super) fn examine() -> Vec<Check> {
    let allow = "allow it in the container's seccomp profile (docker run --security-opt seccomp=unconfined)";
    let lo = "ip link set lo up";
    vec![
        tried("memfd", memory_file(), "there is no shared memory", allow),
        tried(
            "Unix sockets",
            unix_socket(),
            "ranks of one machine do not find each other",
            allow,
        ),
        tried(
            "pidfd",
            process_watch(),
            "deaths are not seen, so there is no shared memory",
            allow,
        ),
        tried(
            "loopback TCP",
            loopback(),
            "workers do not reach their coordinator",
            lo,
        ),
        tried(
            "link by shm",
            meet(Transport::Shm),
            "ranks of one machine use TCP",
            allow,
        ),
        tried(
            "link by TCP",
            meet(Transport::Tcp),
            "there are no jobs on several machines",
            lo,
        ),
        temporary_folder(),
    ]
}

fn tried(name: &'static str, outcome: Result<String, String>, cost: &str, fix: &str) -> Check {
    match outcome {
        Ok(found) => Check::ok(name, found),
        Err(found) => Check::ok(name, found).fail(cost, fix),
    }
}

fn said<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> String {
    move |error| format!("could not {action}: {}", error.into())
}

/// A file without a name that nobody can resize any more.
fn memory_file() -> Result<String, String> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd: OwnedFd = memfd_create("updraft-doctor", flags).map_err(said("make one"))?;
    ftruncate(&fd, 4096).map_err(said("size it"))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(said("seal it"))?;
    if ftruncate(&fd, 0).is_ok() {
        return Err("the seal does not hold".to_owned());
    }
    File::from(fd)
        .write_all(&[0; 4096])
        .map_err(said("write to it"))?;
    Ok("made, sealed and written".to_owned())
}

/// A socket with an abstract name, whose other end the kernel vouches for.
fn unix_socket() -> Result<String, String> {
    let name = format!("updraft-doctor-{}", process::id());
    let address = SocketAddr::from_abstract_name(name).map_err(said("name one"))?;
    let listener = UnixListener::bind_addr(&address).map_err(said("listen"))?;
    let stream = UnixStream::connect_addr(&address).map_err(said("connect"))?;
    let (_accepted, _) = listener.accept().map_err(said("accept"))?;
    let peer = getsockopt(&stream, PeerCredentials).map_err(said("ask who is there"))?;
    if (peer.uid(), peer.pid()) != (geteuid().as_raw(), process::id().cast_signed()) {
        return Err(format!(
            "SO_PEERCRED says process {} of user {}",
            peer.pid(),
            peer.uid()
        ));
    }
    Ok("abstract names, and SO_PEERCRED tells who is there".to_owned())
}

fn process_watch() -> Result<String, String> {
    Fabric::try_watch().map_err(|error| one_line(&error))?;
    Ok("the end of a process can be watched".to_owned())
}

fn loopback() -> Result<String, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(said("listen"))?;
    let address = listener.local_addr().map_err(said("tell the port"))?;
    let mut here = TcpStream::connect_timeout(&address, MEETING_MAX).map_err(said("connect"))?;
    let (mut there, _) = listener.accept().map_err(said("accept"))?;
    here.write_all(b"?").map_err(said("send"))?;
    there
        .set_read_timeout(Some(MEETING_MAX))
        .map_err(said("set a time limit"))?;
    there.read_exact(&mut [0]).map_err(said("receive"))?;
    Ok("127.0.0.1 answers".to_owned())
}

/// Two ranks meet as those of a job do, and one sends a message to the other.
fn meet(transport: Transport) -> Result<String, String> {
    match message_between_ranks(transport) {
        Ok(true) => Ok("a message arrived".to_owned()),
        Ok(false) => Err(format!("no message within {} s", MEETING_MAX.as_secs())),
        Err(error) => Err(one_line(&error)),
    }
}

fn message_between_ranks(transport: Transport) -> Result<bool, transport::Error> {
    let (ledger, secret) = (Ledger::new(2 * ARENA_BYTES), Secret::random()?);
    let rank = |rank| {
        let config = Config {
            transport,
            spin: false,
            ..Config::new(rank, 2, &secret)
        };
        Fabric::new(config, Arena::new(&ledger, ARENA_BYTES)?)
    };
    let (mut here, mut there) = (rank(0)?, rank(1)?);
    let book: Vec<_> = [&here, &there]
        .iter()
        .filter_map(|one| one.address())
        .collect();
    here.join(&book)?;
    there.join(&book)?;
    let Some(mut loan) = here.loan(1000)? else {
        return Ok(false);
    };
    loan.fill(7);
    here.send(1, loan)?;
    let started = Instant::now();
    while started.elapsed() < MEETING_MAX {
        if let Some(Event::Ended { error, .. }) = here.receive()? {
            return Err(*error);
        }
        match there.receive()? {
            Some(Event::Message { .. }) => return Ok(true),
            Some(Event::Ended { error, .. }) => return Err(*error),
            _ => {}
        }
    }
    Ok(false)
}

/// Where state is spilled and results wait to be complete.
fn temporary_folder() -> Check {
    let folder = env::temp_dir();
    let stat = match statvfs(&folder) {
        Ok(stat) => stat,
        Err(error) => {
            let found = format!("{}: {error}", folder.display());
            let cost = "there is no room for temporary files";
            return Check::ok("temporary files", found).fail(cost, "export TMPDIR=/var/tmp");
        }
    };
    let free = stat.blocks_available() * stat.fragment_size();
    let check = Check::ok(
        "temporary files",
        format!("{} free in {}", bytes(free), folder.display()),
    );
    if free < DISK_ENOUGH {
        return check.warn(
            "they may fill it",
            "export TMPDIR=/var/tmp, or another folder with room",
        );
    }
    check
}
