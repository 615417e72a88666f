//! The address at which others reach a rank, and the words in which people choose it.

use std::{
    fmt::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
};

use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};

use crate::Error;

/// An address of this machine, at which a rank listens for others.
///
/// ```
/// use transport::Interface;
///
/// assert_eq!(Interface::find("lo")?, Interface::LOOPBACK);
/// assert_eq!(Interface::find("127.0.0.0/8")?, Interface::LOOPBACK);
/// assert!(Interface::find("8.8.8.8").is_err());
/// # Ok::<(), transport::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Interface {
    address: IpAddr,
    /// The number of the interface, for an IPv6 address that means something on one link only; else 0.
    scope: u32,
}

impl Interface {
    /// The address of this machine that no other machine can reach.
    pub const LOOPBACK: Self = Self {
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        scope: 0,
    };

    /// The interface that `text` chooses: its name (`eth0`), one of its addresses (`10.0.0.7`, `::1`,
    /// `fe80::1%eth0`), or a network it is in (`10.0.0.0/8`), which is the same text on every machine.
    ///
    /// Of several addresses the first counts, IPv4 before IPv6, and those that mean something on one
    /// link only (`fe80::`) last.
    ///
    /// # Errors
    ///
    /// [`Error::NoInterface`] with those there are, or [`Error::Io`] when they cannot be listed.
    pub fn find(text: &str) -> Result<Self, Error> {
        let named: Vec<Named> = all()?.collect();
        let choice = Choice::of(text);
        let found = named
            .iter()
            .filter(|named| choice.is_met_by(named))
            .map(|named| named.interface)
            .min_by_key(|interface| interface.reach());
        match (found, choice) {
            (Some(interface), _) => Ok(interface),
            // Linux listens on all of 127.0.0.0/8, whatever the interface says.
            (None, Choice::Address(address @ IpAddr::V4(v4), None)) if v4.is_loopback() => {
                Ok(address.into())
            }
            (None, _) => Err(Error::NoInterface {
                text: text.to_owned(),
                there: describe(&named),
            }),
        }
    }

    /// The IP address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How far off it can be reached from: the least is the best.
    fn reach(&self) -> u8 {
        match self.address {
            IpAddr::V4(_) => 0,
            IpAddr::V6(v6) if !v6.is_unicast_link_local() => 1,
            IpAddr::V6(_) => 2,
        }
    }

    /// The address to listen at.
    pub(crate) fn at_port(&self, port: u16) -> SocketAddr {
        self.on_our_link(SocketAddr::new(self.address, port))
    }

    /// The address of a peer as it is for us: one that means something on one link only means it on
    /// the link of this interface, whatever number the peer has for it.
    pub(crate) fn on_our_link(&self, peer: SocketAddr) -> SocketAddr {
        match peer {
            SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
                SocketAddrV6::new(*v6.ip(), v6.port(), 0, self.scope).into()
            }
            other => other,
        }
    }
}

impl Default for Interface {
    fn default() -> Self {
        Self::LOOPBACK
    }
}

/// Any address. Whether this machine has it shows when a rank listens there.
impl From<IpAddr> for Interface {
    fn from(address: IpAddr) -> Self {
        Self { address, scope: 0 }
    }
}

/// That of a socket.
impl From<SocketAddr> for Interface {
    fn from(address: SocketAddr) -> Self {
        let scope = match address {
            SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => v6.scope_id(),
            _ => 0,
        };
        Self {
            address: address.ip(),
            scope,
        }
    }
}

impl From<[u8; 4]> for Interface {
    fn from(address: [u8; 4]) -> Self {
        IpAddr::from(address).into()
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scope {
            0 => write!(f, "{}", self.address),
            scope => write!(f, "{}%{scope}", self.address),
        }
    }
}

/// An address with the name of its interface. Several can have the same name.
struct Named {
    name: String,
    interface: Interface,
}

/// What a text asks for.
#[derive(Debug, Clone, Copy)]
enum Choice<'t> {
    Name(&'t str),
    /// An address, and after `%` the name or number of its interface.
    Address(IpAddr, Option<&'t str>),
    /// The addresses that begin with so many bits of this one.
    Network(IpAddr, u32),
}

impl<'t> Choice<'t> {
    fn of(text: &'t str) -> Self {
        let (address, scope) = match text.split_once('%') {
            Some((address, scope)) => (address, Some(scope)),
            None => (text, None),
        };
        if let Ok(address) = address.parse() {
            return Self::Address(address, scope);
        }
        let network = text.split_once('/').and_then(|(address, bits)| {
            let address: IpAddr = address.parse().ok()?;
            let bits: u32 = bits.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            (bits <= most).then_some(Self::Network(address, bits))
        });
        network.unwrap_or(Self::Name(text))
    }

    fn is_met_by(&self, named: &Named) -> bool {
        let Interface { address, scope } = named.interface;
        match *self {
            Self::Name(name) => named.name == name,
            Self::Address(wanted, None) => address == wanted,
            Self::Address(wanted, Some(of)) => {
                address == wanted && (named.name == of || of.parse() == Ok(scope))
            }
            Self::Network(network, bits) => share_bits(address, network, bits),
        }
    }
}

/// Whether two addresses of the same kind begin with the same `bits` bits.
fn share_bits(one: IpAddr, other: IpAddr, bits: u32) -> bool {
    let differ = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => return false,
    };
    differ >= bits
}

/// The addresses of this machine, in the system's order.
fn all() -> Result<impl Iterator<Item = Named>, Error> {
    let listed = getifaddrs().map_err(Error::os("list the network interfaces"))?;
    Ok(listed.filter_map(|listed| {
        Some(Named {
            interface: interface(&listed.address?)?,
            name: listed.interface_name,
        })
    }))
}

fn interface(address: &SockaddrStorage) -> Option<Interface> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(IpAddr::V4(v4.ip()).into());
    }
    let v6 = address.as_sockaddr_in6()?;
    let v6 = SocketAddrV6::new(v6.ip(), 0, 0, v6.scope_id());
    Some(SocketAddr::V6(v6).into())
}

fn describe(named: &[Named]) -> String {
    let mut text = String::new();
    for Named { name, interface } in named {
        let separator = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{separator}{name} ({})", interface.address);
    }
    if text.is_empty() { "none".into() } else { text }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn named(name: &str, address: &str, scope: u32) -> Named {
        let address = address.parse().unwrap();
        Named {
            name: name.into(),
            interface: Interface { address, scope },
        }
    }

    #[test]
    fn a_name_an_address_and_a_network_choose_an_interface() {
        let eth = named("eth0", "10.1.2.3", 0);
        let link = named("eth0", "fe80::7", 3);
        for (text, meets_eth, meets_link) in [
            ("eth0", true, true),
            ("eth1", false, false),
            ("10.1.2.3", true, false),
            ("10.1.0.0/16", true, false),
            ("10.2.0.0/16", false, false),
            ("0.0.0.0/0", true, false),
            ("fe80::/10", false, true),
            ("fe80::7", false, true),
            ("fe80::7%eth0", false, true),
            ("fe80::7%3", false, true),
            ("fe80::7%4", false, false),
            ("10.1.2.3/33", false, false),
        ] {
            let choice = Choice::of(text);
            assert_eq!(choice.is_met_by(&eth), meets_eth, "{text}");
            assert_eq!(choice.is_met_by(&link), meets_link, "{text}");
        }
    }

    #[test]
    fn an_interface_that_is_not_here_is_refused_with_those_that_are() {
        for text in ["no-such-0", "0.0.0.0", "203.0.113.9", "203.0.113.0/24", ""] {
            let error = Interface::find(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
            assert!(error.contains("lo (127.0.0.1)"), "{error}");
        }
    }

    #[test]
    fn the_peer_of_a_link_is_reached_over_our_own_end_of_it() {
        let ours = Interface {
            address: "fe80::1".parse().unwrap(),
            scope: 7,
        };
        let peer = ours.on_our_link("[fe80::2%3]:80".parse().unwrap());
        assert_eq!(peer, "[fe80::2%7]:80".parse().unwrap());
        let elsewhere: SocketAddr = "[2001:db8::1]:80".parse().unwrap();
        assert_eq!(ours.on_our_link(elsewhere), elsewhere);
    }
}
