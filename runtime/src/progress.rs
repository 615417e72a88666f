//! How far a job is, drawn where its user looks.

use std::{
    io::{self, IsTerminal, Write},
    iter::Sum,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

/// Time between two lines where no bar can be drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows how far a job is on the standard error stream: a bar on a terminal, and a plain line
/// every five seconds anywhere else. Nothing is shown before the first [`update`](Self::update).
///
/// Whoever prints while a bar is drawn does it inside of [`suspend`](Self::suspend).
///
/// ```
/// use updraft::progress::{Amount, Progress};
///
/// let progress = Progress::new();
/// progress.update(&Amount { records: 1_000, bytes: 64_000, bytes_total: 128_000, ..Amount::default() });
/// progress.suspend(|| println!("halfway"));
/// progress.finish();
/// ```
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    shown: Mutex<Shown>,
}

/// What the user sees.
#[derive(Debug)]
enum Shown {
    /// A bar, from the first update to the end.
    Bar(Option<ProgressBar>),
    /// Lines; the time of the next one.
    Lines { next: Instant },
}

impl Progress {
    /// Looks where the standard error stream leads, and shows nothing yet.
    pub fn new() -> Self {
        let started = Instant::now();
        let shown = if io::stderr().is_terminal() {
            Shown::Bar(None)
        } else {
            let next = started + LINE_INTERVAL;
            Shown::Lines { next }
        };
        Self {
            started,
            shown: Mutex::new(shown),
        }
    }

    /// Shows how much has been done.
    pub fn update(&self, amount: &Amount) {
        match &mut *self.shown() {
            Shown::Bar(bar) => amount.draw(bar.get_or_insert_with(ProgressBar::no_length)),
            Shown::Lines { next } => {
                let now = Instant::now();
                if now >= *next {
                    *next = now + LINE_INTERVAL;
                    print_line(&amount.line(now - self.started));
                }
            }
        }
    }

    /// Takes the bar away while `print` runs, so that the two do not mix.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        let bar = match &*self.shown() {
            Shown::Bar(bar) => bar.clone(),
            Shown::Lines { .. } => None,
        };
        match bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Takes the bar away for good: what a job has to say at its end is its own.
    pub fn finish(&self) {
        if let Shown::Bar(bar) = &mut *self.shown()
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// How far a loop is, for those who watch: whoever does its rounds tells it here. Clones tell the same.
///
/// [`iterate`](crate::Env::iterate) and [`repeat`](crate::Env::repeat) do it by themselves; a loop of
/// [`bsp`](crate::Env::bsp) does it on one of its ranks, which costs two stores to memory.
///
/// ```
/// use updraft::{collectives::op::Sum, prelude::*};
///
/// let told = updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
///     let rounds = env.rounds();
///     env.bsp(move |world| {
///         let mut halves = [1.0];
///         for round in 1..=10 {
///             world.all_reduce(&mut halves, Sum).wait()?;
///             halves[0] /= 4.0;
///             if world.rank() == 0 {
///                 rounds.tell(round, halves[0]);
///             }
///         }
///         Ok(())
///     })?;
///     Ok(env.rounds().told())
/// })?;
/// assert_eq!(told, (10, Some(0.5f64.powi(10))));
/// # Ok::<(), updraft::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Rounds(Arc<Told>);

#[derive(Debug)]
struct Told {
    done: AtomicU64,
    /// The bits of what the last round measured, or [`UNMEASURED`].
    measure: AtomicU64,
}

/// A number that is none, and no arithmetic gives.
const UNMEASURED: u64 = u64::MAX;

/// What was measured, if it was, as one number.
pub(crate) fn to_bits(measure: Option<f64>) -> u64 {
    measure.map_or(UNMEASURED, f64::to_bits)
}

pub(crate) fn from_bits(bits: u64) -> Option<f64> {
    (bits != UNMEASURED).then(|| f64::from_bits(bits))
}

impl Default for Told {
    fn default() -> Self {
        Self {
            done: AtomicU64::new(0),
            measure: AtomicU64::new(UNMEASURED),
        }
    }
}

impl Rounds {
    /// Tells that so many rounds are done, of which the last measured this: an error that should become small, say.
    pub fn tell(&self, done: u64, measure: f64) {
        self.0.measure.store(measure.to_bits(), Ordering::Relaxed);
        self.count(done);
    }

    /// Tells that so many rounds are done.
    pub(crate) fn count(&self, done: u64) {
        self.0.done.store(done, Ordering::Relaxed);
    }

    /// Begins anew.
    pub(crate) fn reset(&self) {
        self.0.measure.store(UNMEASURED, Ordering::Relaxed);
        self.count(0);
    }

    /// How many rounds are done of the loop that was begun last, and what the last of them measured, if that was told. (Of a
    /// loop that goes on, the two may be of rounds that follow one another.)
    pub fn told(&self) -> (u64, Option<f64>) {
        let measure = self.0.measure.load(Ordering::Relaxed);
        (self.0.done.load(Ordering::Relaxed), from_bits(measure))
    }
}

/// How much has been done.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Amount {
    /// Records read so far.
    pub records: u64,
    /// Bytes read so far.
    pub bytes: u64,
    /// All the bytes there are, or 0 when nobody knows.
    pub bytes_total: u64,
    /// Rounds done of a loop, or 0 outside of one.
    pub rounds: u64,
    /// What the last round measured.
    pub measure: Option<f64>,
}

/// What several have done together, who are in the same loop.
impl Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::default(), |sum, one| {
            let first = if one.rounds > sum.rounds { one } else { sum };
            Self {
                records: sum.records.saturating_add(one.records),
                bytes: sum.bytes.saturating_add(one.bytes),
                bytes_total: sum.bytes_total.saturating_add(one.bytes_total),
                ..first
            }
        })
    }
}

impl Amount {
    /// Draws a bar where the whole is known, and something that turns where it is not.
    fn draw(&self, bar: &ProgressBar) {
        if self.bytes_total > 0 {
            bar.set_message(format!(
                "{} records{}",
                HumanCount(self.records),
                self.loop_told()
            ));
            if bar.length() != Some(self.bytes_total) {
                bar.set_style(bar_style());
                bar.set_length(self.bytes_total);
            }
            bar.set_position(self.bytes);
        } else {
            bar.set_message(format!("{}{}", HumanBytes(self.bytes), self.loop_told()));
            if bar.length().is_some() || bar.position() == 0 {
                bar.set_style(spinner_style());
                bar.unset_length();
            }
            bar.set_position(self.records);
            bar.tick();
        }
    }

    fn line(&self, elapsed: Duration) -> String {
        let records = HumanCount(self.records);
        let bytes = HumanBytes(self.bytes);
        let seconds = elapsed.as_secs();
        let rounds = self.loop_told();
        match self.percent() {
            Some(percent) => {
                let total = HumanBytes(self.bytes_total);
                format!("updraft: {seconds} s: {percent} % of {total}, {records} records{rounds}")
            }
            None => format!("updraft: {seconds} s: {bytes}, {records} records{rounds}"),
        }
    }

    /// How far the loop is, behind what was read, if there is one.
    fn loop_told(&self) -> String {
        let rounds = HumanCount(self.rounds);
        match self.measure {
            _ if self.rounds == 0 => String::new(),
            Some(measure) => format!(", {rounds} rounds, the last at {measure:.6e}"),
            None => format!(", {rounds} rounds"),
        }
    }

    fn percent(&self) -> Option<u64> {
        let percent = u128::from(self.bytes) * 100 / u128::from(self.bytes_total.max(1));
        let percent = u64::try_from(percent).unwrap_or(u64::MAX).min(100);
        (self.bytes_total > 0).then_some(percent)
    }
}

fn bar_style() -> ProgressStyle {
    style("{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {msg}, {eta} to go")
}

fn spinner_style() -> ProgressStyle {
    style("{spinner} {human_pos} records, {per_sec}, {msg}, {elapsed}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("our templates are well formed")
}

/// A stream that nobody reads any more is no reason to stop.
fn print_line(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(records: u64, bytes: u64, bytes_total: u64) -> String {
        let amount = Amount {
            records,
            bytes,
            bytes_total,
            ..Amount::default()
        };
        amount.line(Duration::from_secs(5))
    }

    #[test]
    fn a_line_tells_the_rounds_of_a_loop_and_what_the_last_measured() {
        let read = Amount {
            records: 7,
            bytes: 512,
            ..Amount::default()
        };
        let rounds = Rounds::default();
        let line = || {
            let (rounds, measure) = rounds.told();
            let amount = Amount {
                rounds,
                measure,
                ..read
            };
            amount.line(Duration::from_secs(5))
        };
        assert_eq!(line(), "updraft: 5 s: 512 B, 7 records");
        rounds.count(3);
        assert_eq!(line(), "updraft: 5 s: 512 B, 7 records, 3 rounds");
        rounds.tell(1_200, 0.0625);
        assert_eq!(
            line(),
            "updraft: 5 s: 512 B, 7 records, 1,200 rounds, the last at 6.250000e-2"
        );
        rounds.tell(1_201, f64::NAN);
        assert!(line().ends_with("the last at NaN"), "{}", line());
        rounds.reset();
        assert_eq!(line(), "updraft: 5 s: 512 B, 7 records");
    }

    #[test]
    fn what_several_have_done_is_added_up_and_who_is_furthest_in_the_loop_speaks() {
        let amount = |records, rounds, measure| Amount {
            records,
            bytes: 2 * records,
            bytes_total: 3 * records,
            rounds,
            measure,
        };
        let parts = [
            amount(1, 4, Some(0.5)),
            amount(10, 5, Some(0.25)),
            amount(100, 0, None),
        ];
        assert_eq!(
            parts.into_iter().sum::<Amount>(),
            amount(111, 5, Some(0.25))
        );
        let most = [amount(u64::MAX / 3, 0, None); 4];
        assert_eq!(most.into_iter().sum::<Amount>().bytes_total, u64::MAX);
    }

    #[test]
    fn a_line_tells_the_share_where_the_whole_is_known() {
        assert_eq!(
            line(1_500, 512, 2_048),
            "updraft: 5 s: 25 % of 2.00 KiB, 1,500 records"
        );
        assert_eq!(line(7, 512, 0), "updraft: 5 s: 512 B, 7 records");
        assert!(line(0, u64::MAX, 1).contains("100 %"));
    }

    #[test]
    fn printing_goes_on_whether_or_not_a_bar_is_drawn() {
        let progress = Progress::new();
        assert_eq!(progress.suspend(|| 1), 1);
        progress.update(&Amount {
            records: 1,
            bytes: 2,
            ..Amount::default()
        });
        progress.update(&Amount {
            records: 2,
            bytes: 3,
            bytes_total: 10,
            ..Amount::default()
        });
        assert_eq!(progress.suspend(|| 2), 2);
        progress.finish();
        assert_eq!(progress.suspend(|| 3), 3);
    }

    #[test]
    fn every_style_is_well_formed() {
        bar_style();
        spinner_style();
    }
}
