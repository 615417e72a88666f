//! What was measured: batches, each with the distance between the cores taken beside it.
//!
//! A virtual machine's cores move apart and together while it runs, and a shared-memory figure moves with
//! them. So each batch of messages knows the bare hand-over of a cache line measured right before and
//! after it, batches count as *near* or *far* by that, and only equals are compared.

use std::{collections::BTreeMap, fmt, fs, path::Path, str::FromStr};

use hdrhistogram::Histogram;

/// A hand-over quicker than this, in nanoseconds, is between near cores.
const FAR_NS: f64 = 120.0;
/// One slower than this waited for a thread that had lost its core.
const DISTURBED_NS: f64 = 1000.0;

/// Where the two cores were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Cores {
    /// On one cache.
    Near,
    /// On two.
    Far,
    /// The distance was not measured, or cannot be: there are more ranks than cores.
    Unknown,
}

impl Cores {
    /// By the hand-overs taken before and after a batch, in nanoseconds; `None` if the cores moved
    /// meanwhile, or somebody else had one.
    pub(crate) fn of(hops: [f64; 2]) -> Option<Self> {
        let one = |hop: f64| match hop {
            0.0 => Some(Self::Unknown),
            _ if hop < FAR_NS => Some(Self::Near),
            _ if hop < DISTURBED_NS => Some(Self::Far),
            _ => None,
        };
        let (before, after) = (one(hops[0])?, one(hops[1])?);
        (before == after).then_some(before)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
            Self::Unknown => "-",
        }
    }
}

impl FromStr for Cores {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Near, Self::Far, Self::Unknown]
            .into_iter()
            .find(|cores| cores.name() == text)
            .ok_or(())
    }
}

/// One batch of messages of one size. All times are in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Batch {
    /// The bare hand-over of a cache line, one way, beside the batch; 0 where it cannot be measured.
    pub(crate) hop_ns: f64,
    /// The bare hand-over of so many bytes, beside the batch, by the better kind of stores; 0 if not measured.
    pub(crate) floor_ns: f64,
    /// One message, one way.
    pub(crate) ns: f64,
}

/// All that was measured of one size while the cores were at one distance.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) bytes: usize,
    pub(crate) cores: Cores,
    pub(crate) batches: Vec<Batch>,
    /// Messages timed one by one, in nanoseconds one way.
    pub(crate) trips: Histogram<u64>,
}

/// The middle and the ends of several values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// The spread of `values`; `None` when there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            median: f64::midpoint(
                *sorted.get(sorted.len().checked_sub(1)? / 2)?,
                sorted[sorted.len() / 2],
            ),
            min: sorted[0],
            max: sorted[sorted.len() - 1],
        })
    }
}

impl Series {
    fn new(bytes: usize, cores: Cores) -> Self {
        Self {
            bytes,
            cores,
            batches: Vec::new(),
            trips: trips(),
        }
    }

    /// Nanoseconds a message, over the batches. There is at least one batch, or a trip.
    pub(crate) fn spread(&self) -> Option<Spread> {
        Spread::of(self.batches.iter().map(|batch| batch.ns))
    }
}

/// An empty histogram of nanoseconds, exact to one in a thousand.
pub(crate) fn trips() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 1 << 40, 3)
        .unwrap_or_else(|_| unreachable!("the bounds are in order"))
}

/// What one or several runs measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples {
    series: Vec<Series>,
    /// What carried the messages.
    pub(crate) path: String,
    /// The share of a core that an idle executor used.
    pub(crate) idle: Vec<f64>,
    /// The algorithm of an operator at each size, and the nanoseconds it should take.
    pub(crate) choices: BTreeMap<usize, (String, f64)>,
}

impl Samples {
    /// Each size in rising order, near before far.
    pub(crate) fn series(&self) -> impl Iterator<Item = &Series> {
        self.series.iter()
    }

    pub(crate) fn at(&self, bytes: usize, cores: Cores) -> Option<&Series> {
        let mut series = self.series.iter();
        series.find(|series| (series.bytes, series.cores) == (bytes, cores))
    }

    pub(crate) fn add(&mut self, bytes: usize, cores: Cores, batch: Batch) {
        self.of(bytes, cores).batches.push(batch);
    }

    fn of(&mut self, bytes: usize, cores: Cores) -> &mut Series {
        let key = (bytes, cores);
        let place = self
            .series
            .binary_search_by_key(&key, |series| (series.bytes, series.cores));
        let index = place.unwrap_or_else(|index| {
            self.series.insert(index, Series::new(bytes, cores));
            index
        });
        &mut self.series[index]
    }

    /// Adds what a run printed, in lines of [`Line`]; lines that are not, such as an MPI's warnings, are left
    /// out. The distance of a run that cannot measure it is what was taken around it.
    pub(crate) fn read(&mut self, text: &str, around: [f64; 2]) {
        for line in text.lines().filter_map(|line| line.parse::<Line>().ok()) {
            match line {
                Line::Batch {
                    bytes,
                    hops,
                    floor_ns,
                    ns,
                } => {
                    let hops = if hops == [0.0; 2] { around } else { hops };
                    if let Some(cores) = Cores::of(hops) {
                        let hop_ns = f64::midpoint(hops[0], hops[1]);
                        self.add(
                            bytes,
                            cores,
                            Batch {
                                hop_ns,
                                floor_ns,
                                ns,
                            },
                        );
                    }
                }
                Line::Trips {
                    bytes,
                    cores,
                    ns,
                    count,
                } => {
                    // Saturates where it is more than the histogram holds: that is 18 minutes.
                    self.of(bytes, cores).trips.saturating_record_n(ns, count);
                }
                Line::Path { name } => self.path = name,
                Line::Idle { share } => self.idle.push(share),
                Line::Choice { bytes, name, ns } => drop(self.choices.insert(bytes, (name, ns))),
            }
        }
    }

    /// The same from a file.
    pub(crate) fn read_file(&mut self, path: &Path) -> std::io::Result<()> {
        self.read(&fs::read_to_string(path)?, [0.0; 2]);
        Ok(())
    }
}

/// What a rank reports, a line each.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Line {
    /// `batch BYTES HOP_BEFORE HOP_AFTER FLOOR NS`
    Batch {
        bytes: usize,
        hops: [f64; 2],
        floor_ns: f64,
        ns: f64,
    },
    /// `trips BYTES CORES NS COUNT`
    Trips {
        bytes: usize,
        cores: Cores,
        ns: u64,
        count: u64,
    },
    /// `path NAME`
    Path { name: String },
    /// `idle SHARE`
    Idle { share: f64 },
    /// `choice BYTES NAME NS`: the algorithm that carried an operator out, and what the model says it takes.
    Choice { bytes: usize, name: String, ns: f64 },
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batch {
                bytes,
                hops: [before, after],
                floor_ns,
                ns,
            } => {
                writeln!(
                    f,
                    "batch {bytes} {before:.2} {after:.2} {floor_ns:.2} {ns:.3}"
                )
            }
            Self::Trips {
                bytes,
                cores,
                ns,
                count,
            } => {
                writeln!(f, "trips {bytes} {} {ns} {count}", cores.name())
            }
            Self::Path { name } => writeln!(f, "path {name}"),
            Self::Idle { share } => writeln!(f, "idle {share:.6}"),
            Self::Choice { bytes, name, ns } => writeln!(f, "choice {bytes} {name} {ns:.1}"),
        }
    }
}

impl FromStr for Line {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        fn number<N: FromStr>(word: &str) -> Result<N, ()> {
            word.parse().map_err(drop)
        }
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            ["batch", bytes, before, after, floor, ns] => Ok(Self::Batch {
                bytes: number(bytes)?,
                hops: [number(before)?, number(after)?],
                floor_ns: number(floor)?,
                ns: number(ns)?,
            }),
            ["trips", bytes, cores, ns, count] => Ok(Self::Trips {
                bytes: number(bytes)?,
                cores: cores.parse()?,
                ns: number(ns)?,
                count: number(count)?,
            }),
            ["path", name] => Ok(Self::Path {
                name: name.to_owned(),
            }),
            ["choice", bytes, name, ns] => Ok(Self::Choice {
                bytes: number(bytes)?,
                name: name.to_owned(),
                ns: number(ns)?,
            }),
            ["idle", share] => Ok(Self::Idle {
                share: number(share)?,
            }),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let lines = [
            Line::Batch {
                bytes: 8,
                hops: [70.5, 71.25],
                floor_ns: 0.0,
                ns: 140.125,
            },
            Line::Trips {
                bytes: 1 << 20,
                cores: Cores::Far,
                ns: 123,
                count: 7,
            },
            Line::Path {
                name: "shm".to_owned(),
            },
            Line::Idle { share: 0.001 },
            Line::Choice {
                bytes: 8,
                name: "board".to_owned(),
                ns: 81.5,
            },
        ];
        for line in lines {
            assert_eq!(line.to_string().parse(), Ok(line));
        }
        for line in [
            "",
            "batch",
            "batch 8 1 1 1 x",
            "trips 8 afar 1 1",
            "WARNING: no path",
        ] {
            assert_eq!(line.parse::<Line>(), Err(()), "{line}");
        }
    }

    #[test]
    fn a_batch_during_which_the_cores_moved_does_not_count() {
        let mut samples = Samples::default();
        samples.read(
            "noise\nbatch 8 70 71 0 140\nbatch 8 70 200 0 999\nbatch 8 200 210 0 400\nbatch 8 70 9000 0 1\n",
            [0.0; 2],
        );
        let medians: Vec<_> = samples
            .series()
            .map(|series| (series.cores, series.spread().unwrap().median))
            .collect();
        assert_eq!(medians, [(Cores::Near, 140.0), (Cores::Far, 400.0)]);
    }

    #[test]
    fn a_run_that_cannot_measure_the_distance_has_that_around_it() {
        let mut samples = Samples::default();
        samples.read("batch 8 0 0 0 140\n", [70.0, 80.0]);
        assert_eq!(samples.series().next().unwrap().batches[0].hop_ns, 75.0);
        samples.read("batch 8 0 0 0 140\n", [70.0, 180.0]);
        assert_eq!(samples.series().count(), 1);
    }

    #[test]
    fn the_middle_of_an_even_number_of_values_is_between_two() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (2.5, 1.0, 4.0));
        assert_eq!(Spread::of([]), None);
    }
}
