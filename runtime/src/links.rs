//! What the links of a worker have carried, in one line.

use std::{collections::BTreeMap, fmt, ops::AddAssign};

use indicatif::{HumanBytes, HumanCount};
use transport::{Fabric, Path, Why};

/// What the links of some ranks of one worker have carried since they were made.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Links {
    /// How many there are of each kind.
    kinds: BTreeMap<String, u32>,
    messages: u64,
    bytes: u64,
    waits: u64,
    retransmissions: u64,
    /// Bytes put into the memory of peers, and got from there.
    put: u64,
    got: u64,
}

impl Links {
    /// Those of one rank. A link between two ranks of the same worker, which has `executors`, is counted
    /// by the lower one.
    pub(crate) fn of(fabric: &Fabric, executors: u32) -> Self {
        let mut links = Self::default();
        let rank = fabric.rank();
        for peer in 0..fabric.size() {
            let Some(counters) = fabric.counters(peer) else {
                continue;
            };
            let Some(path) = counters.path else {
                continue;
            };
            links.waits += counters.waits;
            links.retransmissions += counters.retransmissions;
            links.put += counters.put;
            links.got += counters.got;
            if peer / executors == rank / executors && peer < rank {
                continue;
            }
            *links.kinds.entry(kind(path, &counters.why)).or_default() += 1;
            links.messages += counters.sent.messages + counters.received.messages;
            links.bytes += counters.sent.bytes + counters.received.bytes;
        }
        links
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }
}

/// How a path is called, and what is to be said of it if it is not the fastest.
fn kind(path: Path, why: &Why) -> String {
    let name = match path {
        Path::Shm => "shm",
        Path::Tcp => "tcp",
        Path::Rdma => "rdma",
        _ => "simulated",
    };
    match why {
        Why::SameNode | Why::Simulation => name.to_owned(),
        why => format!("{name} ({why})"),
    }
}

impl AddAssign for Links {
    fn add_assign(&mut self, more: Self) {
        for (kind, number) in more.kinds {
            *self.kinds.entry(kind).or_default() += number;
        }
        self.messages += more.messages;
        self.bytes += more.bytes;
        self.waits += more.waits;
        self.retransmissions += more.retransmissions;
        self.put += more.put;
        self.got += more.got;
    }
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (kind, number)) in self.kinds.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{number} {kind}")?;
        }
        let plural = |number| if number == 1 { "" } else { "s" };
        write!(
            f,
            " · {} message{}, {}",
            HumanCount(self.messages),
            plural(self.messages),
            HumanBytes(self.bytes)
        )?;
        for (bytes, what) in [(self.put, "put"), (self.got, "got")] {
            if bytes > 0 {
                write!(f, " · {what} {}", HumanBytes(bytes))?;
            }
        }
        for (number, what, unit) in [
            (self.waits, "waited for room", "time"),
            (self.retransmissions, "sent again", "packet"),
        ] {
            if number > 0 {
                write!(
                    f,
                    " · {what} {} {unit}{}",
                    HumanCount(number),
                    plural(number)
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_added_and_told_in_one_line() {
        let of = |path, why, number, waits| Links {
            kinds: [(kind(path, &why), number)].into(),
            messages: 1,
            bytes: 512,
            waits,
            ..Links::default()
        };
        let mut links = of(Path::Tcp, Why::OtherNode, 1, 0);
        assert_eq!(
            links.to_string(),
            "1 tcp (on another node) · 1 message, 512 B"
        );
        links += of(Path::Shm, Why::SameNode, 2, 1);
        links += of(Path::Shm, Why::SameNode, 1, 1233);
        assert_eq!(
            links.to_string(),
            "3 shm, 1 tcp (on another node) · 3 messages, 1.50 KiB · waited for room 1,234 times"
        );
        links += Links {
            retransmissions: 1,
            put: 2048,
            got: 64,
            ..Links::default()
        };
        assert_eq!(
            links.to_string(),
            "3 shm, 1 tcp (on another node) · 3 messages, 1.50 KiB · put 2.00 KiB · got 64 B \
             · waited for room 1,234 times · sent again 1 packet"
        );
    }
}
