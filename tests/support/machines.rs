//! Two machines, as far as the network is concerned: namespaces joined by a cable that can be cut.

use std::{
    fs::File,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sched::{CloneFlags, setns};

use super::skip::skipped;

/// The interface at either end of the cable.
pub(crate) const CABLE: &str = "veth0";

/// Two network namespaces with a pair of `veth` between them. They go with it.
pub(crate) struct Machines {
    names: [String; 2],
}

impl Machines {
    /// Makes them; `None`, and the reason said, where that is not permitted.
    pub(crate) fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let names = [0, 1].map(|end| format!("updraft-{}-{count}-{end}", std::process::id()));
        let machines = Self { names };
        match machines.build() {
            Ok(()) => Some(machines),
            Err(reason) => {
                skipped(format_args!("no network namespaces here: {reason}"));
                None
            }
        }
    }

    fn build(&self) -> Result<(), String> {
        let [one, other] = &self.names;
        for name in &self.names {
            ip(&["netns", "add", name])?;
        }
        ip(&[
            "link", "add", CABLE, "netns", one, "type", "veth", "peer", "name", CABLE, "netns",
            other,
        ])?;
        for end in 0..2 {
            let name = &self.names[end];
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            for address in [self.v4(end) + "/24", self.v6(end) + "/64"] {
                let add = ["-n", name, "addr", "add", &address, "dev", CABLE];
                let nodad = address.contains(':').then_some("nodad");
                ip(&add.into_iter().chain(nodad).collect::<Vec<_>>())?;
            }
            // The addresses of a link are usable at once, and not after a second.
            ip(&["-n", name, "link", "set", CABLE, "addrgenmode", "none"])?;
            ip(&["-n", name, "link", "set", CABLE, "up"])?;
            let link_local = format!("fe80::{}/64", end + 1);
            ip(&[
                "-n",
                name,
                "addr",
                "add",
                &link_local,
                "dev",
                CABLE,
                "nodad",
            ])?;
        }
        Ok(())
    }

    /// The addresses of a machine.
    pub(crate) fn v4(&self, end: usize) -> String {
        format!("10.77.0.{}", end + 1)
    }

    pub(crate) fn v6(&self, end: usize) -> String {
        format!("fd77::{}", end + 1)
    }

    /// Moves the thread that calls this to a machine, for good.
    pub(crate) fn enter(&self, end: usize) {
        let namespace = File::open(format!("/run/netns/{}", self.names[end])).unwrap();
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// A command to be run on a machine.
    pub(crate) fn command(&self, end: usize, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.names[end]])
            .arg(program);
        command
    }

    /// From now on, whatever one machine sends gets lost on the way, and neither is told: the frames
    /// are for a card that is not there.
    pub(crate) fn cut(&self) {
        for end in 0..2 {
            for peer in [self.v4(1 - end), self.v6(1 - end)] {
                self.neighbour(end, &["replace", &peer], &["lladdr", "02:00:00:00:77:77"]);
            }
        }
    }

    /// Packets arrive again.
    pub(crate) fn mend(&self) {
        for end in 0..2 {
            for peer in [self.v4(1 - end), self.v6(1 - end)] {
                self.neighbour(end, &["del", &peer], &[]);
            }
        }
    }

    fn neighbour(&self, end: usize, change: &[&str], to: &[&str]) {
        let head = ["-n", &self.names[end], "neigh"];
        let permanent: &[&str] = if to.is_empty() {
            &[]
        } else {
            &["nud", "permanent"]
        };
        ip(&[&head[..], change, to, &["dev", CABLE], permanent].concat()).unwrap();
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for name in &self.names {
            // What was not made cannot be unmade.
            let _ = ip(&["netns", "del", name]);
        }
    }
}

/// Runs `ip`, and says why it failed if it did.
fn ip(arguments: &[&str]) -> Result<(), String> {
    let run = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    match run {
        Ok(run) if run.status.success() => Ok(()),
        Ok(run) => Err(format!(
            "ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&run.stderr).trim()
        )),
        Err(error) => Err(format!("ip: {error}")),
    }
}
