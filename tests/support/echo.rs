//! Another process of this machine, whose rank 1 sends back every message.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use transport::{Fabric, Secret};

/// The process. It is killed when this is dropped, and reaped only then.
pub(crate) struct Echo(Child);

impl Echo {
    /// Starts the test that is called `the_echo` in a process of its own.
    pub(crate) fn start() -> Self {
        let arguments = ["--exact", "the_echo", "--ignored", "--nocapture", "-q"];
        let child = Command::new(env::current_exe().unwrap())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    /// Tells rank 0, which is here, and rank 1, which is there, of each other.
    pub(crate) fn meet(&mut self, here: &mut Fabric, secret: &Secret) {
        let ours = here.address().unwrap();
        let mut input = self.0.stdin.take().unwrap();
        input.write_all(secret.as_bytes()).unwrap();
        writeln!(input, "{ours}").unwrap();
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let theirs = lines
            .map_while(Result::ok)
            .find_map(|line| line.split_once("ADDRESS=").map(|(_, text)| text.to_owned()));
        let theirs = theirs.unwrap().parse().unwrap();
        here.join(&[ours, theirs]).unwrap();
    }

    /// The other side of [`Echo::meet`]: rank 1, made of the job's secret.
    pub(crate) fn met(fabric: impl FnOnce(&Secret) -> Fabric) -> Fabric {
        let mut input = std::io::stdin().lock();
        let mut secret = [0; Secret::BYTES];
        input.read_exact(&mut secret).unwrap();
        let mut peer = String::new();
        input.read_line(&mut peer).unwrap();
        let mut there = fabric(&Secret::from(secret));
        let ours = there.address().unwrap();
        println!("ADDRESS={ours}");
        there.join(&[peer.trim().parse().unwrap(), ours]).unwrap();
        there
    }

    pub(crate) fn process(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process().cast_signed()), signal).unwrap();
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
