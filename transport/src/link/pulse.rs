//! Whether the machine at the other end of a TCP connection still answers.
//!
//! A connection over which packets no longer travel looks like one on which nobody has anything to
//! say, until something is sent: then the other machine owes an answer. So a link that is idle sends
//! a *beat*, a frame without a meaning, and looks whether it is acknowledged.
//!
//! It is the other *machine* that is asked, not the rank: a rank may compute for minutes and not look at
//! its messages once, and its kernel acknowledges them all the while. So a busy rank, or a stopped
//! process, is never taken for a dead one. A process that has ended closes its connections, which
//! reading tells; a process of this node is watched besides.
//!
//! The kernel could decide by itself, and is not let: `TCP_USER_TIMEOUT` also ends connections whose
//! receiver answers that it has no room (`tcp_probe_timer` counts from the first such answer), which is
//! what a busy rank with a full buffer does; keep-alive counts whole seconds, and asks nothing while
//! there is data to send. What is used is `TCP_INFO`: how long ago the last acknowledgement or data
//! came, and whether something of ours is without an answer.
//!
//! A connection that was lost is not made again: [`Fabric`](crate::Fabric) says why.

use std::{io, mem::MaybeUninit, os::fd::AsRawFd, time::Duration};

/// Looks within the longest silence.
const LOOKS: u32 = 8;
/// The looks without an answer after which a connection is given up; the rest is for whoever drives
/// the link to find the time to look.
const LOOKS_MAX: u32 = 6;

/// What the kernel knows of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signs {
    /// How long ago anything came from the other machine.
    pub(crate) heard: Duration,
    /// Whether it has something of ours to acknowledge.
    pub(crate) owed: bool,
    /// Packets that were sent again so far.
    pub(crate) retransmissions: u64,
}

impl Signs {
    /// Those of the TCP connection `stream`.
    pub(crate) fn of(stream: &impl AsRawFd) -> io::Result<Self> {
        let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
        let mut bytes = size_of::<libc::tcp_info>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `bytes` bytes to `info`, which has that many, and the
        // number of them to `bytes`; both outlive the call.
        let got = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        if got != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: all its fields are integers, for which zero is a value; what the kernel has not
        // written is zero.
        let info = unsafe { info.assume_init() };
        let heard = info.tcpi_last_ack_recv.min(info.tcpi_last_data_recv);
        Ok(Self {
            heard: Duration::from_millis(heard.into()),
            owed: info.tcpi_unacked > 0 || info.tcpi_probes > 0,
            retransmissions: info.tcpi_total_retrans.into(),
        })
    }
}

/// Has the kernel ask a receiver without room, and repeat what was not acknowledged, at least twice
/// within the longest silence, and not ever more rarely. What kernels do that cannot, [`Config`](crate::Config::silence_max) says.
pub(crate) fn ask_often(stream: &impl AsRawFd, silence_max: Duration) {
    const TCP_RTO_MAX_MS: libc::c_int = 44;
    let most = silence_max.as_millis() / 2;
    let most = most.clamp(1_000, 120_000) as libc::c_int;
    // SAFETY: the kernel reads the four bytes of `most`, which outlives the call. A kernel that does
    // not know the option says so, and nothing is lost.
    let _ = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw const most).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
}

/// What is to be done about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Fine,
    /// Send something, so that an answer is owed.
    Beat,
    /// Give it up: nothing has come for so long.
    Silent(Duration),
}

/// The watch over one connection.
#[derive(Debug)]
pub(crate) struct Pulse {
    interval: Duration,
    looked: Option<Duration>,
    /// Since when an answer is owed, as far as we have seen.
    owed_since: Option<Duration>,
}

impl Pulse {
    /// A watch that takes a connection for lost within `silence_max`.
    pub(crate) fn new(silence_max: Duration) -> Self {
        Self {
            interval: interval(silence_max),
            looked: None,
            owed_since: None,
        }
    }

    /// Judges what the kernel says at `now`. It wants to be called every [`interval`], and may be
    /// called at any time.
    pub(crate) fn look(&mut self, now: Duration, signs: Signs) -> Verdict {
        // Whoever was away does not know since when there was no answer: it may have waited for us.
        let since = self.looked.replace(now).map(|looked| now - looked);
        let answered = since.is_none_or(|since| since > 3 * self.interval || signs.heard < since);
        if !signs.owed {
            self.owed_since = None;
        } else if answered {
            self.owed_since = Some(now);
        } else {
            self.owed_since.get_or_insert(now);
        }
        let patience = LOOKS_MAX * self.interval;
        match self.owed_since {
            Some(owed_since)
                if signs.heard >= patience && now - owed_since >= patience - 2 * self.interval =>
            {
                Verdict::Silent(signs.heard)
            }
            None if signs.heard >= self.interval => {
                self.owed_since = Some(now);
                Verdict::Beat
            }
            _ => Verdict::Fine,
        }
    }
}

/// The time between two looks.
pub(crate) fn interval(silence_max: Duration) -> Duration {
    silence_max / LOOKS
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SILENCE: Duration = Duration::from_secs(2);

    /// A connection as the kernel sees it, under a clock of its own.
    struct Connection {
        pulse: Pulse,
        now: Duration,
        heard_at: Duration,
        owed: bool,
        beats: u32,
    }

    impl Connection {
        fn new() -> Self {
            Self {
                pulse: Pulse::new(SILENCE),
                now: Duration::ZERO,
                heard_at: Duration::ZERO,
                owed: false,
                beats: 0,
            }
        }

        /// Lets a time pass and looks; whether the other machine answers what it gets.
        fn pass(&mut self, time: Duration, answers: bool) -> Verdict {
            self.now += time;
            if self.owed && answers {
                self.owed = false;
                self.heard_at = self.now - time / 2;
            }
            let heard = self.now - self.heard_at;
            let owed = self.owed;
            let signs = Signs {
                heard,
                owed,
                retransmissions: 0,
            };
            let verdict = self.pulse.look(self.now, signs);
            if verdict == Verdict::Beat {
                self.owed = true;
                self.beats += 1;
            }
            verdict
        }

        /// The time until the connection is given up, at most `most`.
        fn silence(&mut self, step: Duration, most: Duration) -> Option<Duration> {
            let start = self.now;
            while self.now - start < most {
                if let Verdict::Silent(_) = self.pass(step, false) {
                    return Some(self.now - start);
                }
            }
            None
        }
    }

    #[test]
    fn an_idle_connection_lives_by_few_beats() {
        let mut connection = Connection::new();
        for _ in 0..1_000 {
            assert!(!matches!(
                connection.pass(100 * MS, true),
                Verdict::Silent(_)
            ));
        }
        let seconds = 100;
        assert!(
            connection.beats <= 4 * seconds,
            "{} beats",
            connection.beats
        );
    }

    #[test]
    fn a_connection_without_answers_is_given_up_in_time_whenever_they_end() {
        for lived in 0..40 {
            for step in [1, 20, 100, 250] {
                let mut connection = Connection::new();
                for _ in 0..lived {
                    connection.pass(50 * MS, true);
                }
                let silence = connection.silence(step * MS, SILENCE);
                assert!(silence.is_some(), "lived {lived}, step {step}");
            }
        }
    }

    #[test]
    fn a_connection_that_answers_late_is_not_given_up() {
        for step in [1, 20, 100, 250] {
            let mut connection = Connection::new();
            connection.pass(300 * MS, true);
            assert_eq!(connection.silence(step * MS, Duration::from_secs(1)), None);
            assert!(!matches!(
                connection.pass(step * MS, true),
                Verdict::Silent(_)
            ));
            assert_eq!(connection.silence(step * MS, Duration::from_secs(1)), None);
        }
    }

    #[test]
    fn whoever_was_away_itself_asks_again_before_it_judges() {
        let mut connection = Connection::new();
        connection.pass(300 * MS, true);
        for away in [3, 60] {
            connection.owed = true;
            assert_eq!(
                connection.pass(Duration::from_secs(away), false),
                Verdict::Fine
            );
            assert_eq!(connection.silence(50 * MS, 900 * MS), None);
            connection.pass(50 * MS, true);
        }
    }

    #[test]
    fn a_receiver_without_room_that_says_so_lives() {
        // Its kernel answers the probes, which come ever more rarely.
        let mut connection = Connection::new();
        for gap in [200, 400, 800, 1600, 3200, 6400, 12_800] {
            for _ in 0..gap / 100 {
                let verdict = connection.pass(100 * MS, true);
                connection.owed = false; // Beats do not get through; only a probe's answer does.
                assert!(!matches!(verdict, Verdict::Silent(_)));
            }
            connection.heard_at = connection.now;
        }
    }
}
