//! How far a job is, drawn where its user looks.

use std::{
    io::{self, IsTerminal, Write},
    sync::{Mutex, MutexGuard, PoisonError},
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
/// let progress = updraft::progress::Progress::new();
/// progress.update(1_000, 64_000, 128_000);
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

    /// Shows how much has been read. `bytes_total` is 0 when nobody knows how much there is.
    pub fn update(&self, records: u64, bytes: u64, bytes_total: u64) {
        let amount = Amount {
            records,
            bytes,
            bytes_total,
        };
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

/// How much has been read.
struct Amount {
    records: u64,
    bytes: u64,
    bytes_total: u64,
}

impl Amount {
    /// Draws a bar where the whole is known, and something that turns where it is not.
    fn draw(&self, bar: &ProgressBar) {
        if self.bytes_total > 0 {
            bar.set_message(format!("{} records", HumanCount(self.records)));
            if bar.length() != Some(self.bytes_total) {
                bar.set_style(bar_style());
                bar.set_length(self.bytes_total);
            }
            bar.set_position(self.bytes);
        } else {
            bar.set_message(HumanBytes(self.bytes).to_string());
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
        match self.percent() {
            Some(percent) => {
                let total = HumanBytes(self.bytes_total);
                format!("updraft: {seconds} s: {percent} % of {total}, {records} records")
            }
            None => format!("updraft: {seconds} s: {bytes}, {records} records"),
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
        };
        amount.line(Duration::from_secs(5))
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
        progress.update(1, 2, 0);
        progress.update(2, 3, 10);
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
