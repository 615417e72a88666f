//! How a job ended: which worker failed first, how, and what its user should know.

use std::{
    fmt,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{error::exit, output::Tail};

/// A worker that lost another often ends before the other's end is noticed. Within this time the
/// loss is taken for the consequence, and not for the cause.
const CONSEQUENCE_TIME_MAX: Duration = Duration::from_millis(300);

/// How a worker's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By the signal of this number.
    Killed(i32),
}

impl End {
    pub(crate) fn is_success(self) -> bool {
        self == Self::Exited(0)
    }
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, Some(signal)) => Self::Killed(signal),
            (None, None) => unreachable!("a process that has ended exited or was killed"),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Killed(number) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "was killed by {signal}"),
                Err(_) => write!(f, "was killed by signal {number}"),
            },
        }
    }
}

/// What is known of a worker when all have ended.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// When it first showed that it had failed, if it did.
    pub(crate) failed: Option<Instant>,
    /// Why, in its own words.
    pub(crate) message: Option<String>,
    /// How its process ended.
    pub(crate) end: End,
    /// Whether the launcher had killed it.
    pub(crate) stopped: bool,
    /// Whether it was done before any worker failed.
    pub(crate) done: bool,
}

impl Outcome {
    /// What the launcher exits with because of this worker.
    fn exit_code(&self) -> u8 {
        match self.end {
            End::Exited(0) => exit::JOB,
            End::Killed(_) if self.hung() => exit::JOB,
            End::Exited(code) => u8::try_from(code).unwrap_or(exit::JOB),
            End::Killed(signal) => u8::try_from(signal)
                .ok()
                .and_then(|signal| exit::SIGNAL.checked_add(signal))
                .unwrap_or(u8::MAX),
        }
    }

    fn lost_a_peer(&self) -> bool {
        self.end == End::Exited(i32::from(exit::LOST_A_PEER))
    }

    /// Whether it said that it had failed, and then did not end by itself.
    fn hung(&self) -> bool {
        self.stopped && self.message.is_some()
    }

    fn was_killed(&self) -> bool {
        matches!(self.end, End::Killed(_))
    }
}

/// The failure of a job.
#[derive(Debug)]
pub(crate) struct Failure<'a> {
    outcomes: &'a [Outcome],
    /// The worker that failed first.
    worker: usize,
}

impl<'a> Failure<'a> {
    /// The failure of the worker to blame, if one failed.
    ///
    /// That is the first that failed by itself. If it only failed for the loss of another, it is
    /// the one that was lost, if one was killed or failed otherwise at the same time.
    pub(crate) fn of(outcomes: &'a [Outcome]) -> Option<Self> {
        let mut failed: Vec<(Instant, usize)> = outcomes
            .iter()
            .enumerate()
            .filter_map(|(worker, outcome)| Some((outcome.failed?, worker)))
            .collect();
        failed.sort();
        let &(start, first) = failed.first()?;
        let mut causes = failed
            .iter()
            .filter(|(time, _)| *time - start <= CONSEQUENCE_TIME_MAX)
            .map(|&(_, worker)| worker)
            .filter(|&worker| !outcomes[worker].stopped && !outcomes[worker].lost_a_peer());
        let worker = if outcomes[first].lost_a_peer() {
            causes
                .clone()
                .find(|&worker| outcomes[worker].was_killed())
                .or_else(|| causes.next())
                .unwrap_or(first)
        } else {
            first
        };
        Some(Self { outcomes, worker })
    }

    /// What the launcher exits with.
    pub(crate) fn exit_code(&self) -> u8 {
        self.outcome().exit_code()
    }

    /// Whether it ended because somebody cancelled what it did.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.outcome().end == End::Exited(i32::from(exit::CANCELLED))
    }

    /// What the user is told when nobody asked the job to stop.
    pub(crate) fn report(&self, tails: &[Tail]) -> Vec<u8> {
        let outcome = self.outcome();
        let mut text = format!(
            "updraft: worker {} of {} failed first: {}\n",
            self.worker,
            self.outcomes.len(),
            self.how()
        )
        .into_bytes();
        if let Some(message) = &outcome.message {
            text.extend_from_slice(format!("updraft: it said: {message}\n").as_bytes());
        }
        if let Some(tail) = tails.get(self.worker) {
            append_tail(&mut text, tail);
        }
        text.extend_from_slice(others(self.stopped_others()).as_bytes());
        text
    }

    /// What the user is told who asked the job to stop, by this signal.
    pub(crate) fn report_after(&self, signal: Signal) -> Vec<u8> {
        let (worker, how) = (self.worker, self.how());
        format!("updraft: stopped by {signal}; worker {worker} was first: {how}\n").into_bytes()
    }

    fn outcome(&self) -> &Outcome {
        &self.outcomes[self.worker]
    }

    fn how(&self) -> String {
        let outcome = self.outcome();
        if outcome.hung() {
            "it reported a failure and did not end".to_owned()
        } else if outcome.end.is_success() {
            "it gave up".to_owned()
        } else if outcome.end == End::Killed(Signal::SIGKILL as i32) && !outcome.stopped {
            format!("it {}, as when memory runs out", outcome.end)
        } else {
            format!("it {}", outcome.end)
        }
    }

    fn stopped_others(&self) -> usize {
        let done = self.outcomes.iter().filter(|outcome| outcome.done).count();
        (self.outcomes.len() - done).saturating_sub(1)
    }
}

fn append_tail(text: &mut Vec<u8>, tail: &Tail) {
    if tail.lines().len() == 0 {
        text.extend_from_slice(b"updraft: it printed nothing\n");
        return;
    }
    text.extend_from_slice(b"updraft: its last lines:\n");
    for line in tail.lines() {
        text.extend_from_slice(b"  | ");
        text.extend_from_slice(line);
        text.push(b'\n');
    }
}

fn others(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => "updraft: 1 other worker was stopped because of it\n".to_owned(),
        count => format!("updraft: {count} other workers were stopped because of it\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Workers that failed so many milliseconds after the first, and how each ended.
    fn outcomes(ends: &[(u64, End)]) -> Vec<Outcome> {
        let start = Instant::now();
        let outcome = |&(ms, end): &(u64, End)| Outcome {
            failed: (!end.is_success()).then(|| start + Duration::from_millis(ms)),
            message: None,
            end,
            stopped: false,
            done: false,
        };
        ends.iter().map(outcome).collect()
    }

    /// The worker to blame, and the exit code.
    fn verdict(ends: &[(u64, End)]) -> Option<(usize, u8)> {
        let outcomes = outcomes(ends);
        Failure::of(&outcomes).map(|failure| (failure.worker, failure.exit_code()))
    }

    #[test]
    fn a_job_whose_workers_all_succeed_has_not_failed() {
        assert_eq!(verdict(&[(0, End::Exited(0)), (5, End::Exited(0))]), None);
    }

    #[test]
    fn the_first_to_fail_is_to_blame() {
        let ends = [
            (9, End::Killed(6)),
            (0, End::Exited(3)),
            (5, End::Exited(4)),
        ];
        assert_eq!(verdict(&ends), Some((1, 3)));
        assert_eq!(verdict(&[(0, End::Killed(9))]), Some((0, 137)));
    }

    #[test]
    fn who_lost_a_peer_is_not_to_blame_for_the_peer() {
        let ends = [
            (0, End::Exited(6)),
            (4, End::Exited(1)),
            (5, End::Killed(9)),
        ];
        assert_eq!(verdict(&ends), Some((2, 137)));
        assert_eq!(verdict(&ends[..2]), Some((1, 1)));
        assert_eq!(verdict(&ends[..1]), Some((0, 6)));
    }

    #[test]
    fn what_fails_much_later_is_a_consequence() {
        let ends = [(0, End::Exited(6)), (900, End::Killed(15))];
        assert_eq!(verdict(&ends), Some((0, 6)));
    }

    #[test]
    fn whom_the_launcher_killed_is_not_to_blame() {
        let mut outcomes = outcomes(&[(0, End::Exited(6)), (100, End::Killed(15))]);
        outcomes[1].stopped = true;
        assert_eq!(Failure::of(&outcomes).unwrap().worker, 0);
    }

    #[test]
    fn a_worker_that_said_it_failed_never_counts_as_a_success() {
        let mut outcomes = outcomes(&[(0, End::Exited(0))]);
        outcomes[0].failed = Some(Instant::now());
        outcomes[0].message = Some("no more disk".to_owned());
        let failure = Failure::of(&outcomes).unwrap();
        assert_eq!(failure.exit_code(), 1);
        let report = String::from_utf8(failure.report(&[])).unwrap();
        assert!(report.contains("it said: no more disk"), "{report}");
    }

    #[test]
    fn signals_are_named_where_they_have_a_name() {
        assert_eq!(End::Killed(11).to_string(), "was killed by SIGSEGV");
        assert_eq!(End::Killed(40).to_string(), "was killed by signal 40");
    }
}
