//! What the rounds of a loop have measured, for people to see.

#![allow(dead_code, reason = "each example uses the part it needs")]

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use updraft::{
    Env, Error, Iterated,
    dataflow::{self, Job},
};

/// The picture of a history: its size, and where the axes are.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 90.0;
const EDGE: f64 = 30.0;

/// Where what the rounds have measured is kept.
#[derive(Debug, Clone, Args)]
pub(crate) struct Kept {
    /// Write what each round measured to a CSV file, or as a plot to an SVG file.
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
}

/// From which ratio of the greatest to the least value on a plot is drawn by their logarithms, and not by themselves.
const LOGARITHMIC: f64 = 1e4;

/// What each round measured, and how long it took on the first rank.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) values: Vec<f64>,
    pub(crate) times: Vec<Duration>,
}

impl History {
    /// That of a loop, and the state in which it ended.
    pub(crate) fn of<S>(ended: Iterated<S>) -> (S, Self) {
        let Iterated {
            state,
            history,
            times,
        } = ended;
        let values = history;
        (state, Self { values, times })
    }

    /// Runs a graph again and again, as long as `goes_on` says so of what all runs have measured: of what each gave, that is what
    /// `measure` says, which may set variables for the next.
    pub(crate) fn of_runs<R: 'static>(
        env: &mut Env,
        job: &Job<R>,
        mut measure: impl FnMut(R) -> f64 + Send + 'static,
        goes_on: impl Fn(&[f64]) -> bool + Send + 'static,
    ) -> Result<Self, Error> {
        let (rounds, mut began) = (env.rounds(), Instant::now());
        env.repeat(job, Self::default(), move |history, given| {
            let value = measure(given);
            history.add(value, began.elapsed());
            began = Instant::now();
            rounds.tell(history.values.len() as u64, value);
            Ok(goes_on(&history.values))
        })
    }

    pub(crate) fn add(&mut self, value: f64, time: Duration) {
        self.values.push(value);
        self.times.push(time);
    }

    /// What a round takes: the median, which the first ones do not move.
    pub(crate) fn typical(&self) -> String {
        let mut times = self.times.clone();
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        format!("a round takes {:.1} us", median.as_secs_f64() * 1e6)
    }

    /// Writes it to a file, if one is named: a plot if its name ends in `.svg`, otherwise lines of CSV.
    pub(crate) fn write(&self, kept: &Kept, measure: &str) -> Result<(), Error> {
        let Some(path) = &kept.history else {
            return Ok(());
        };
        let text = if path.extension().is_some_and(|extension| extension == "svg") {
            self.plot(measure)
        } else {
            self.table(measure)
        };
        write(path, &text)
    }

    fn table(&self, measure: &str) -> String {
        let mut text = format!("round,{measure},seconds\n");
        for (round, (value, time)) in self.values.iter().zip(&self.times).enumerate() {
            // Writing to a `String` does not fail.
            let _ = writeln!(text, "{round},{value},{}", time.as_secs_f64());
        }
        text
    }

    /// A line over the rounds, from the least to the greatest value, each with its number beside it.
    fn plot(&self, measure: &str) -> String {
        let finite = || {
            self.values
                .iter()
                .copied()
                .filter(|value| value.is_finite())
        };
        let least = finite().fold(f64::INFINITY, f64::min);
        let most = finite().fold(f64::NEG_INFINITY, f64::max);
        let (scale, named): (fn(f64) -> f64, _) = match least > 0.0 && most / least > LOGARITHMIC {
            true => (f64::ln, ", logarithmic"),
            false => (std::convert::identity, ""),
        };
        let rounds = self.values.len().saturating_sub(1).max(1) as f64;
        let x = |round: usize| LEFT + round as f64 / rounds * (WIDTH - LEFT - EDGE);
        let y = |value: f64| {
            let whole = scale(most) - scale(least);
            let height = (scale(value) - scale(least)) / whole.max(f64::MIN_POSITIVE);
            HEIGHT - EDGE - height * (HEIGHT - 2.0 * EDGE)
        };
        let mut points = String::new();
        for (round, &value) in self.values.iter().enumerate() {
            if value.is_finite() {
                let _ = write!(points, "{:.1},{:.1} ", x(round), y(value));
            }
        }
        let mut labels = String::new();
        for value in [least, most].into_iter().filter(|value| value.is_finite()) {
            let (x, y) = (LEFT - 6.0, y(value) + 4.0);
            let _ = writeln!(
                labels,
                "<text x='{x}' y='{y:.1}' text-anchor='end'>{value:.4e}</text>"
            );
        }
        let (bottom, right) = (HEIGHT - EDGE, WIDTH - EDGE);
        format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{HEIGHT}' font-family='sans-serif' font-size='12'>
<rect width='100%' height='100%' fill='white'/>
<path d='M{LEFT},{EDGE}V{bottom}H{right}' fill='none' stroke='#888'/>
<polyline points='{}' fill='none' stroke='#1f77b4' stroke-width='2'/>
{labels}<text x='{LEFT}' y='18'>{measure}{named}</text>
<text x='{right}' y='{:.1}' text-anchor='end'>round {rounds}</text>
</svg>
",
            points.trim_end(),
            HEIGHT - 10.0
        )
    }
}

/// Writes a file that a program was asked for.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    let failed = |source| dataflow::Error::Output {
        path: path.to_owned(),
        source,
    };
    Ok(fs::write(path, text).map_err(failed)?)
}
