//! `updraft bench operators`: how fast each parallel operator is, and whether it gives what a plain loop gives.
//!
//! Each point is a job of its own, so that its memory is its own. The records are made where they are needed, from a
//! seed that never changes; every record that an operator gives is read, and its hash added up. With `--verify` a loop on
//! one thread does the same.

mod jobs;
mod kinds;
mod rank;
mod reference;
mod rows;

use std::{ffi::OsString, fmt::Write as _, fs};

use clap::{Args, ValueEnum};
use serde_json::json;

pub(crate) use self::{
    kinds::{Operator, RecordType},
    rank::{Arguments as RankArguments, run as run_rank},
    rows::Digest,
};
use super::{
    PlaceArguments, Results,
    machine::Machine,
    plot::{Curve, Plot},
    report::{Outputs, digits, machine_json, spread_json},
    samples::Spread,
    sizes::{count_label, parse_count},
};
use crate::{Error, output::say, worker};

/// Of `operators`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Operators, such as join,sort; all if not given
    #[arg(long, value_enum, value_name = "OPERATORS", value_delimiter = ',')]
    only: Vec<Operator>,

    /// How many records there are, on all ranks together: one number or several, such as 100k,1M,10M
    ///
    /// Joins and cogroups read a tenth as many on the right, and a cross join eight.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1M", value_parser = parse_count)]
    records: Vec<u64>,

    /// How many keys these have: one number or several; a tenth of the records if not given
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', value_parser = parse_count)]
    keys: Vec<u64>,

    /// What a record is: one type or several
    #[arg(
        long = "record",
        value_enum,
        value_name = "TYPES",
        value_delimiter = ',',
        default_value = "pair"
    )]
    types: Vec<RecordType>,

    /// Compare what comes out with what a plain loop on one thread makes of the same records
    ///
    /// That loop keeps all records in memory for some operators. Exits with 1 if they differ.
    #[arg(long)]
    verify: bool,

    /// Runs measured of each point
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repeats: u32,

    /// Runs before them that do not count
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    warmup: u32,

    #[command(flatten)]
    place: PlaceArguments,

    #[command(flatten)]
    outputs: Outputs,
}

/// What an operator is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) operator: Operator,
    pub(crate) record: RecordType,
    pub(crate) records: u64,
    pub(crate) keys: u64,
    pub(crate) ranks: u32,
}

impl Shape {
    fn is_possible(&self) -> bool {
        self.record != RecordType::U64 || !self.operator.needs_pairs()
    }

    /// Says that it is not possible.
    fn needs_pairs(&self) -> String {
        let Self {
            operator, record, ..
        } = self;
        let (operator, record) = (operator.name(), record.name());
        format!("{operator} needs pairs of a key and a value (--record pair or text), not {record}")
    }

    /// Records of all streams.
    fn all_records(&self) -> u64 {
        self.records + self.operator.others(self.records)
    }
}

/// What was measured of one shape.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) shape: Shape,
    pub(crate) seconds: Spread,
    /// Bytes that went to disk in a run, at most.
    pub(crate) spilled: u64,
    /// The most memory that was resident, of all workers together. What they share is counted for each.
    pub(crate) peak_bytes: u64,
    /// What came out.
    pub(crate) found: Digest,
}

impl Point {
    /// Reads what the workers wrote; `None` if a run is missing.
    fn read(shape: Shape, text: &str) -> Option<Self> {
        let (mut seconds, mut found) = (Vec::new(), Vec::<Digest>::new());
        let (mut spilled, mut peak_bytes) = (0, 0);
        for line in text.lines() {
            let (kind, rest) = line.split_once(' ')?;
            if kind == "first" {
                continue;
            }
            if kind == "peak" {
                peak_bytes += rest.parse::<u64>().ok()?;
                continue;
            }
            let mut words = rest.splitn(3, ' ');
            seconds.push(words.next()?.parse().ok()?);
            spilled = words.next()?.parse::<u64>().ok()?.max(spilled);
            found.push(words.next()?.parse().ok()?);
        }
        // Of runs that differ the odd one out is shown.
        let first = *found.first()?;
        let found = found.into_iter().find(|&other| other != first);
        Some(Self {
            shape,
            seconds: Spread::of(seconds)?,
            spilled,
            peak_bytes,
            found: found.unwrap_or(first),
        })
    }

    /// Records of all streams in a second, in millions.
    pub(crate) fn rate(&self) -> f64 {
        self.shape.all_records() as f64 / 1e6 / self.seconds.median
    }

    fn megabytes_a_second(&self) -> f64 {
        let bytes = self.shape.all_records() * self.shape.record.bytes();
        bytes as f64 / 1e6 / self.seconds.median
    }

    /// Says how what came out differs from what should have, if it does.
    fn differs_from(&self, expected: Digest) -> Option<String> {
        let Self { shape, found, .. } = self;
        (*found != expected).then(|| {
            format!(
                "{} of {} records of type {} gave {found} where a plain loop gives {expected} (records, and the sum of their \
                 hashes)",
                shape.operator.name(),
                shape.records,
                shape.record.name(),
            )
        })
    }

    fn cells(&self, is_right: Option<bool>) -> Vec<String> {
        let checked = match is_right {
            None => "-",
            Some(true) => "right",
            Some(false) => "WRONG",
        };
        let Self { shape, seconds, .. } = self;
        let [median, least, most] = [seconds.median, seconds.min, seconds.max].map(digits);
        vec![
            shape.operator.name(),
            shape.record.name(),
            count_label(shape.records),
            count_label(shape.keys),
            median,
            least,
            most,
            digits(self.rate()),
            digits(self.megabytes_a_second()),
            digits(self.spilled as f64 / 1e6),
            digits(self.peak_bytes as f64 / f64::from(1 << 20)),
            checked.to_owned(),
        ]
    }
}

/// The columns of the table, each as wide as what may be in it.
const COLUMNS: [(&str, usize); 12] = [
    ("operator", 19),
    ("record", 6),
    ("records", 7),
    ("keys", 7),
    ("s", 8),
    ("least", 8),
    ("most", 8),
    ("M records/s", 11),
    ("MB/s", 8),
    ("MB on disk", 10),
    ("peak MiB", 8),
    ("result", 6),
];

fn line(cells: &[String]) -> String {
    let cells = cells
        .iter()
        .zip(COLUMNS)
        .map(|(cell, (_, width))| format!("{cell:>width$}"));
    cells.collect::<Vec<_>>().join("  ") + "\n"
}

/// Measures each operator in a job of its own, and prints a line for each point.
pub(crate) fn run(arguments: &Arguments) -> Result<u8, Error> {
    arguments.outputs.check()?;
    let machine = Machine::here();
    let ranks = arguments.place.ranks();
    let shapes = arguments.shapes()?;
    say(&format!("{}\n", machine.line()));
    say(&format!(
        "{ranks} ranks in {} processes, {} runs\n",
        arguments.place.workers, arguments.repeats
    ));
    say(&line(&COLUMNS.map(|(name, _)| name.to_owned())));
    let mut points = Vec::new();
    let mut wrong = None;
    for shape in shapes {
        let point = match measure(&arguments.place, shape, arguments.warmup, arguments.repeats)? {
            Ok(point) => point,
            Err(code) => return Ok(code),
        };
        let expected = arguments
            .verify
            .then(|| reference::digest(&shape))
            .flatten();
        let is_right = expected.map(|expected| expected == point.found);
        say(&line(&point.cells(is_right)));
        wrong = wrong.or_else(|| point.differs_from(expected?));
        points.push((point, is_right));
    }
    write(arguments, &machine, &points)?;
    match wrong {
        None => Ok(0),
        Some(reason) => Err(Error::Wrong { reason }),
    }
}

impl Arguments {
    /// What there is to measure.
    fn shapes(&self) -> Result<Vec<Shape>, Error> {
        let all = Operator::value_variants();
        let operators = if self.only.is_empty() {
            all
        } else {
            &self.only
        };
        let mut shapes = Vec::new();
        for &operator in operators {
            for &record in &self.types {
                for &records in &self.records {
                    let keys = if self.keys.is_empty() {
                        vec![(records / 10).max(1)]
                    } else {
                        self.keys.clone()
                    };
                    shapes.extend(keys.into_iter().map(|keys| Shape {
                        operator,
                        record,
                        records,
                        keys,
                        ranks: self.place.ranks(),
                    }));
                }
            }
        }
        if let Some(shape) = shapes.iter().find(|shape| !shape.is_possible())
            && !self.only.is_empty()
        {
            return Err(Error::Usage {
                reason: shape.needs_pairs(),
            });
        }
        // Of all operators, those that the records are for.
        shapes.retain(Shape::is_possible);
        Ok(shapes)
    }
}

/// Starts the job of one point, and reads what it measured; or the exit code of a job that failed.
pub(crate) fn measure(
    place: &PlaceArguments,
    shape: Shape,
    warmup: u32,
    repeats: u32,
) -> Result<Result<Point, u8>, Error> {
    let results = Results::new()?;
    let workers_do = rank::Arguments {
        operator: shape.operator,
        record: shape.record,
        records: shape.records,
        keys: shape.keys,
        repeats,
        warmup,
        results: results.path(),
    };
    let code = place.start(words(&workers_do))?;
    if code != 0 {
        return Ok(Err(code));
    }
    let text = fs::read_to_string(results.path()).map_err(Error::io("read the results"))?;
    let missing = || Error::io("read the results")(std::io::Error::other("a run is missing"));
    Point::read(shape, &text).map(Ok).ok_or_else(missing)
}

/// The command line of a worker.
pub(crate) fn words(workers_do: &rank::Arguments) -> Vec<OsString> {
    let words = [worker::OURSELVES, "bench", "__operator"].map(OsString::from);
    let told = workers_do.words().into_iter().map(OsString::from);
    words.into_iter().chain(told).collect()
}

fn write(
    arguments: &Arguments,
    machine: &Machine,
    points: &[(Point, Option<bool>)],
) -> Result<(), Error> {
    let ranks = arguments.place.ranks();
    let csv = || {
        let mut text =
            "operator,record,records,keys,ranks,s,s_min,s_max,records_per_s,bytes_per_s,\
            spilled_bytes,peak_bytes,out_records,right\n"
                .to_owned();
        for (point, is_right) in points {
            let Shape {
                operator,
                record,
                records,
                keys,
                ranks,
            } = point.shape;
            let Spread { median, min, max } = point.seconds;
            let _ = writeln!(
                text,
                "{},{},{records},{keys},{ranks},{median:.6},{min:.6},{max:.6},{:.0},{:.0},{},{},{},{}",
                operator.name(),
                record.name(),
                point.rate() * 1e6,
                point.megabytes_a_second() * 1e6,
                point.spilled,
                point.peak_bytes,
                point.found.records,
                is_right.map_or(String::new(), |is_right| is_right.to_string()),
            );
        }
        text
    };
    let json = || {
        let points = points.iter().map(|(point, is_right)| {
            json!({
                "operator": point.shape.operator.name(),
                "record": point.shape.record.name(),
                "records": point.shape.records,
                "keys": point.shape.keys,
                "seconds": spread_json(point.seconds),
                "records_per_second": point.rate() * 1e6,
                "bytes_per_second": point.megabytes_a_second() * 1e6,
                "spilled_bytes": point.spilled,
                "peak_bytes": point.peak_bytes,
                "out_records": point.found.records,
                "right": is_right,
            })
        });
        json!({
            "bench": "operators",
            "machine": machine_json(machine),
            "ranks": ranks,
            "processes": arguments.place.workers,
            "points": points.collect::<Vec<_>>(),
        })
    };
    arguments
        .outputs
        .write(csv, json, || plot(arguments, machine, points))
}

/// Rates by records, or by keys if only these differ.
fn plot(arguments: &Arguments, machine: &Machine, points: &[(Point, Option<bool>)]) -> Plot {
    let by_keys = arguments.records.len() == 1 && arguments.keys.len() > 1;
    let mut curves: Vec<Curve> = Vec::new();
    for (point, _) in points {
        let Shape {
            operator,
            record,
            records,
            keys,
            ..
        } = point.shape;
        let mut name = operator.name();
        if arguments.types.len() > 1 {
            name += &format!(", {}", record.name());
        }
        if !by_keys && arguments.keys.len() > 1 {
            name += &format!(", {} keys", count_label(keys));
        }
        let across = if by_keys { keys } else { records };
        let place = (across as f64, point.rate());
        match curves.iter_mut().find(|curve| curve.name == name) {
            Some(curve) => curve.points.push(place),
            None => curves.push(Curve {
                name,
                points: vec![place],
                dashed: false,
                colour: curves.len(),
            }),
        }
    }
    Plot {
        title: format!("operators, {} ranks", arguments.place.ranks()),
        subtitle: machine.line(),
        across: if by_keys { "keys" } else { "records" },
        label: |count| count_label(count as u64),
        up: "million records/s",
        curves,
    }
}

#[cfg(test)]
mod tests {
    use updraft::dataflow::inline;

    use super::*;

    fn shapes(records: u64, keys: u64) -> impl Iterator<Item = Shape> {
        let operators = Operator::value_variants().iter();
        let all = operators.flat_map(move |&operator| {
            RecordType::value_variants()
                .iter()
                .map(move |&record| Shape {
                    operator,
                    record,
                    records,
                    keys,
                    ranks: 1,
                })
        });
        all.filter(Shape::is_possible)
    }

    #[test]
    fn every_operator_gives_what_a_plain_loop_gives() {
        for (records, keys) in [(1, 1), (40, 1), (300, 7), (300, 1000)] {
            for shape in shapes(records, keys) {
                let found = inline(&jobs::job(&shape).unwrap()).unwrap();
                assert_eq!(Some(found), reference::digest(&shape), "{shape:?}");
            }
        }
    }

    #[test]
    fn one_record_more_or_less_is_seen() {
        // How many are taken, and which is the greatest, does not follow from the last record.
        let tells = |shape: &Shape| !matches!(shape.operator, Operator::Take | Operator::TopN);
        for shape in shapes(300, 50).filter(tells) {
            let fewer = Shape {
                records: shape.records - 1,
                ..shape
            };
            // A number of its own for each record, so that no two are alike.
            if (shape.record, shape.operator) != (RecordType::U64, Operator::Distinct) {
                assert_ne!(
                    reference::digest(&shape),
                    reference::digest(&fewer),
                    "{shape:?}"
                );
            }
        }
    }

    #[test]
    fn what_the_workers_write_is_read_and_a_wrong_run_is_told() {
        let shape = shapes(300, 50).next().unwrap();
        let right = Digest::of([5, 7]);
        let text = format!("run 0.5 0 {right}\nrun 0.25 10 {right}\npeak 100\npeak 200\n");
        let point = Point::read(shape, &text).unwrap();
        assert_eq!(
            (point.seconds.median, point.spilled, point.peak_bytes),
            (0.375, 10, 300)
        );
        assert_eq!(point.differs_from(right), None);
        // One run of several is enough.
        let odd = Digest {
            in_order: false,
            ..right
        };
        let point = Point::read(shape, &format!("{text}run 0.5 0 {odd}\n")).unwrap();
        let said = point.differs_from(right).unwrap();
        assert!(
            said.contains("out-of-order where a plain loop gives 2 "),
            "{said}"
        );
        for cut in ["", "peak 100\n", "run 0.5\n", "run 0.5 0 x\n", "nothing"] {
            assert!(Point::read(shape, cut).is_none(), "{cut}");
        }
    }
}
