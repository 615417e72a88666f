//! What was measured, for people and for programs.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::{Value, json};

use super::{
    machine::Machine,
    plot::{Curve, Plot},
    samples::{Cores, Samples, Series, Spread},
    sizes::label,
};
use crate::{Error, output::say};

/// Where results go besides the standard output.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Outputs {
    /// Write the figures as comma-separated values
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,

    /// Write the figures, and the histograms, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Draw the figures, as SVG
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

impl Outputs {
    /// Fails now, and not after the measurement, if a file cannot be written.
    pub(crate) fn check(&self) -> Result<(), Error> {
        [&self.csv, &self.json, &self.plot]
            .into_iter()
            .flatten()
            .try_for_each(|path| check_writable(path))
    }

    pub(crate) fn write(
        &self,
        csv: impl FnOnce() -> String,
        json: impl FnOnce() -> Value,
        plot: impl FnOnce() -> Plot,
    ) -> Result<(), Error> {
        if let Some(path) = &self.csv {
            write_file(path, &csv())?;
        }
        if let Some(path) = &self.json {
            write_file(path, &format!("{:#}\n", json()))?;
        }
        if let Some(path) = &self.plot {
            write_file(path, &plot().svg())?;
        }
        Ok(())
    }
}

/// Opens a file that is to be written later, and leaves what it holds as it is.
pub(crate) fn check_writable(path: &Path) -> Result<(), Error> {
    let opened = fs::File::options().append(true).create(true).open(path);
    opened.map(drop).map_err(|source| Error::Output {
        path: path.to_owned(),
        source,
    })
}

pub(crate) fn write_file(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|source| Error::Output {
        path: path.to_owned(),
        source,
    })
}

/// What a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Microseconds one way.
    OneWay,
    /// Microseconds there and back.
    RoundTrip,
    /// Microseconds an operation.
    Operation,
    /// Megabytes a second.
    Bandwidth,
    /// Millions of messages a second.
    Rate,
}

impl Unit {
    /// The figure of a message of `bytes` bytes that takes `ns` nanoseconds one way.
    pub(crate) fn figure(self, bytes: usize, ns: f64) -> f64 {
        match self {
            Self::OneWay | Self::Operation => ns / 1e3,
            Self::RoundTrip => 2.0 * ns / 1e3,
            Self::Bandwidth => bytes as f64 / ns * 1e3,
            Self::Rate => 1e3 / ns,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OneWay => "us one way",
            Self::Operation => "us an operation",
            Self::RoundTrip => "us there and back",
            Self::Bandwidth => "MB/s",
            Self::Rate => "million messages/s",
        }
    }

    /// Whether messages are timed one by one, so that there is a tail to show.
    fn is_time(self) -> bool {
        matches!(self, Self::OneWay | Self::RoundTrip)
    }
}

/// A figure with as many digits as mean something.
pub(crate) fn digits(figure: f64) -> String {
    match figure.abs() {
        figure if figure >= 1000.0 => format!("{figure:.0}"),
        figure if figure >= 100.0 => format!("{figure:.1}"),
        figure if figure >= 10.0 => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
    }
}

/// The shares of the messages that were at most as slow as the figures of a row.
const QUANTILES: [(&str, f64); 5] = [
    ("median", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("max", 1.0),
];

/// One measurement.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) ranks: u32,
    pub(crate) workers: u32,
    pub(crate) touch: bool,
    pub(crate) repeats: u32,
    pub(crate) samples: Samples,
}

impl Report {
    /// Shows it, and writes what the user wants of it.
    pub(crate) fn print(&self, outputs: &Outputs) -> Result<(), Error> {
        let machine = Machine::here();
        say(&self.text(&machine));
        outputs.write(
            || self.csv(),
            || self.json(&machine),
            || self.plot(&machine),
        )
    }

    fn title(&self) -> String {
        let place = match self.workers {
            1 => "1 process".to_owned(),
            workers => format!("{workers} processes"),
        };
        let touch = if self.touch {
            "every byte written and read"
        } else {
            "untouched beyond 64 B"
        };
        let Self { name, ranks, .. } = self;
        let path = &self.samples.path;
        format!("{name}, {ranks} ranks in {place} over {path}, {touch}")
    }

    fn rows(&self) -> impl Iterator<Item = &Series> {
        self.samples
            .series()
            .filter(|series| !series.batches.is_empty())
    }

    /// The names of a row's figures.
    fn columns(&self) -> Vec<&'static str> {
        if self.unit.is_time() {
            let tail = QUANTILES.map(|(name, _)| name);
            ["mean"].into_iter().chain(tail).collect()
        } else {
            vec!["median", "min", "max"]
        }
    }

    /// The figures of a row. A mean is that of a whole batch, without reading a clock in between; the others
    /// are of messages timed one by one.
    fn figures(&self, series: &Series) -> Vec<f64> {
        let figure = |ns| self.unit.figure(series.bytes, ns);
        let Some(spread) = series.spread() else {
            return Vec::new();
        };
        if self.unit.is_time() {
            let quantile = |&(_, share): &(_, f64)| series.trips.value_at_quantile(share) as f64;
            let tail = QUANTILES.iter().map(quantile);
            [spread.median]
                .into_iter()
                .chain(tail)
                .map(figure)
                .collect()
        } else {
            // The quickest message makes the greatest figure.
            [spread.median, spread.max, spread.min].map(figure).into()
        }
    }

    fn text(&self, machine: &Machine) -> String {
        let mut head = vec!["bytes", "cores", "hop", "batches"];
        head.extend(self.columns());
        let rows = self.rows().map(|series| {
            let hop = hop(series).map_or("-".to_owned(), |hop| digits(hop.median / 1e3));
            let mut cells = vec![
                label(series.bytes),
                series.cores.name().to_owned(),
                hop,
                series.batches.len().to_string(),
            ];
            cells.extend(self.figures(series).into_iter().map(digits));
            cells
        });
        let mut text = format!("{}\n{}\n", self.title(), machine.line());
        text += &align(&head, rows);
        let _ = writeln!(
            text,
            "{}; hop: a bare cache line one way, us",
            self.unit.name()
        );
        let kept: usize = self.rows().map(|series| series.batches.len()).sum();
        let sizes = self
            .rows()
            .map(|series| series.bytes)
            .collect::<std::collections::BTreeSet<_>>();
        let all = sizes.len() * self.repeats as usize * (self.ranks / 2) as usize;
        if kept < all {
            let lost = all - kept;
            let _ = writeln!(
                text,
                "{lost} of {all} batches left out: the cores moved, or were taken"
            );
        }
        text
    }

    fn csv(&self) -> String {
        let mut text = "bench,unit,bytes,cores,hop_ns,batches".to_owned();
        for column in self.columns() {
            let _ = write!(text, ",{column}");
        }
        text.push('\n');
        for series in self.rows() {
            let hop = hop(series).map_or(String::new(), |hop| format!("{:.2}", hop.median));
            let _ = write!(
                text,
                "{},{},{},{},{hop},{}",
                self.name,
                self.unit.name(),
                series.bytes,
                series.cores.name(),
                series.batches.len()
            );
            for figure in self.figures(series) {
                let _ = write!(text, ",{figure:.6}");
            }
            text.push('\n');
        }
        text
    }

    fn json(&self, machine: &Machine) -> Value {
        let rows = self.rows().map(|series| {
            let columns = self.columns().into_iter().map(str::to_owned);
            let figures: serde_json::Map<String, Value> = columns
                .zip(self.figures(series).into_iter().map(Value::from))
                .collect();
            let steps = series.trips.iter_recorded();
            let histogram: Vec<Value> = steps
                .map(|step| json!([step.value_iterated_to(), step.count_at_value()]))
                .collect();
            json!({
                "bytes": series.bytes,
                "cores": series.cores.name(),
                "hop_ns": hop(series).map(spread_json),
                "batches_ns": series.batches.iter().map(|batch| batch.ns).collect::<Vec<_>>(),
                "figures": figures,
                "histogram_ns_one_way": histogram,
            })
        });
        json!({
            "bench": self.name,
            "unit": self.unit.name(),
            "ranks": self.ranks,
            "processes": self.workers,
            "path": self.samples.path,
            "touch": self.touch,
            "machine": machine_json(machine),
            "rows": rows.collect::<Vec<_>>(),
        })
    }

    fn plot(&self, machine: &Machine) -> Plot {
        let columns = self.columns();
        let shown: &[&str] = if self.unit.is_time() {
            &["median", "p99", "max"]
        } else {
            &["median"]
        };
        let mut curves = Vec::new();
        for cores in [Cores::Near, Cores::Far, Cores::Unknown] {
            let of_cores = || self.rows().filter(move |series| series.cores == cores);
            if of_cores().next().is_none() {
                continue;
            }
            for (colour, name) in shown.iter().enumerate() {
                let column = columns.iter().position(|column| column == name);
                let points = of_cores().filter_map(|series| {
                    let figures = self.figures(series);
                    Some((series.bytes as f64, *figures.get(column?)?))
                });
                let name = match cores {
                    Cores::Unknown => (*name).to_owned(),
                    _ => format!("{name}, {} cores", cores.name()),
                };
                curves.push(Curve {
                    name,
                    points: points.collect(),
                    dashed: cores == Cores::Far,
                    colour,
                });
            }
        }
        Plot {
            title: self.title(),
            subtitle: machine.line(),
            across: "message size",
            label,
            up: self.unit.name(),
            curves,
        }
    }
}

pub(crate) fn hop(series: &Series) -> Option<Spread> {
    let hops = series.batches.iter().map(|batch| batch.hop_ns);
    Spread::of(hops.filter(|&hop| hop > 0.0))
}

pub(crate) fn spread_json(spread: Spread) -> Value {
    json!({ "median": spread.median, "min": spread.min, "max": spread.max })
}

pub(crate) fn machine_json(machine: &Machine) -> Value {
    json!({
        "processor": machine.processor,
        "cores": machine.cores,
        "memory_bytes": machine.memory_bytes,
        "kernel": machine.kernel,
    })
}

/// Lines with all columns on the right.
pub(crate) fn align(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = head.iter().map(|name| (*name).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "  {cell:>width$}");
        }
        text += line.get(2..).unwrap_or("");
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(unit: Unit) -> Report {
        let mut samples = Samples::default();
        let text = "batch 8 70 70 0 100\nbatch 8 70 70 0 120\nbatch 8 200 200 0 300\n\
            trips 8 near 100 98\ntrips 8 near 900 2\ntrips 8 far 300 1\npath shm\n";
        samples.read(text, [0.0; 2]);
        Report {
            name: "latency",
            unit,
            ranks: 2,
            workers: 2,
            touch: true,
            repeats: 3,
            samples,
        }
    }

    #[test]
    fn near_and_far_have_rows_of_their_own() {
        let csv = report(Unit::OneWay).csv();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(
            lines[0],
            "bench,unit,bytes,cores,hop_ns,batches,mean,median,p90,p99,p99.9,max"
        );
        assert_eq!(
            lines[1],
            "latency,us one way,8,near,70.00,2,0.110000,0.100000,0.100000,0.900000,0.900000,0.900000"
        );
        assert!(lines[2].starts_with("latency,us one way,8,far,200.00,1,0.300000"));
    }

    #[test]
    fn a_rate_is_greatest_where_a_message_is_quickest() {
        let report = report(Unit::Rate);
        let row = report.rows().next().unwrap();
        let [median, min, max] = report.figures(row)[..] else {
            panic!("three figures")
        };
        assert!(min < median && median < max && (max - 10.0).abs() < 1e-9);
    }

    #[test]
    fn figures_have_the_digits_that_mean_something() {
        let texts = [0.0712, 12.345, 123.45, 12345.6].map(digits);
        assert_eq!(texts, ["0.071", "12.35", "123.5", "12346"]);
    }
}
