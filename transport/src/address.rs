//! Where a rank can be reached, by each of its paths.

use std::{fmt, fs, net::SocketAddr, str::FromStr};

use crate::Error;

/// Where a rank can be reached. It travels as text: `NODE/NAME/IP:PORT`.
///
/// `NODE` is equal for ranks that can share memory; `NAME` is that of an abstract Unix socket, which
/// no file stands for and which ends with its process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub(crate) node: String,
    pub(crate) name: String,
    pub(crate) tcp: SocketAddr,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.node, self.name, self.tcp)
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (node, rest) = text.split_once('/')?;
            let (name, tcp) = rest.split_once('/')?;
            Some(Self {
                node: node.to_owned(),
                name: name.to_owned(),
                tcp: tcp.parse().ok()?,
            })
        };
        parse().ok_or_else(|| Error::BadAddress {
            text: text.to_owned(),
        })
    }
}

/// What tells this node from others: the boot of its kernel, and the network namespace, because
/// abstract Unix sockets do not reach into another.
pub(crate) fn node() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/thread-self/ns/net").unwrap_or_default();
    let inode: String = namespace
        .to_string_lossy()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    format!("{}-{inode}", boot.trim())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_printed() {
        let address = Address {
            node: node(),
            name: "updraft-1f".into(),
            tcp: "[::1]:80".parse().unwrap(),
        };
        assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
        assert!("n/a".parse::<Address>().is_err());
    }
}
