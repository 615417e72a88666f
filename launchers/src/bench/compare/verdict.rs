//! How far each target is reached, from what was measured.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    super::{
        report::{digits, spread_json},
        samples::{Batch, Cores, Samples, Spread},
        sizes::label,
    },
    targets::{Against, Target},
};

/// What one contender measured, in each round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rounds {
    pub(crate) name: String,
    /// Whether there are more ranks than cores. Then a batch is quick if nobody else had the cores meanwhile,
    /// and only the mean says what all batches took.
    pub(crate) crowded: bool,
    pub(crate) of: Vec<Samples>,
}

impl Rounds {
    /// The batches of one size and distance, in each round that has some.
    fn at(&self, bytes: usize, cores: Cores) -> BTreeMap<usize, &[Batch]> {
        let rounds = self.of.iter().enumerate();
        let batches = rounds.filter_map(|(round, samples)| {
            let series = samples.at(bytes, cores)?;
            (!series.batches.is_empty()).then_some((round, &series.batches[..]))
        });
        batches.collect()
    }

    /// The middle over all rounds, in nanoseconds.
    pub(crate) fn middle(&self, bytes: usize, cores: Cores) -> Option<f64> {
        self.beside(bytes, cores, |batch| batch.ns)
    }

    fn middle_of(&self, times: impl Iterator<Item = f64>) -> Option<f64> {
        let times: Vec<f64> = times.collect();
        if self.crowded && !times.is_empty() {
            return Some(times.iter().sum::<f64>() / times.len() as f64);
        }
        Spread::of(times).map(|spread| spread.median)
    }

    fn hop(&self, bytes: usize, cores: Cores) -> f64 {
        self.beside(bytes, cores, |batch| batch.hop_ns)
            .unwrap_or(0.0)
    }

    /// The bare machine, beside ours, if it was measured.
    fn floor(&self, bytes: usize, cores: Cores) -> Option<f64> {
        let floor = self.beside(bytes, cores, |batch| batch.floor_ns);
        floor.filter(|&floor| floor > 0.0)
    }

    fn beside(&self, bytes: usize, cores: Cores, figure: fn(&Batch) -> f64) -> Option<f64> {
        let rounds = self.at(bytes, cores);
        let all = rounds.values().flat_map(|batches| batches.iter());
        self.middle_of(all.map(figure))
    }
}

/// What a point's ratio is made of.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) ratio: Spread,
    /// What ours took, or was.
    ours: String,
    /// What theirs took.
    theirs: String,
    hop_ns: f64,
    /// The least that the machine allows at this point, in nanoseconds, and how it stands to theirs, if it was measured
    /// beside ours.
    floor: Option<(f64, f64)>,
}

/// One point of a target.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    pub(crate) target: &'static Target,
    pub(crate) point: String,
    /// The ratio, or why there is none.
    pub(crate) found: Result<Measured, String>,
}

impl Verdict {
    pub(crate) fn is_met(&self) -> bool {
        let met = |measured: &Measured| self.target.bound.is_met(measured.ratio.median);
        self.found.as_ref().is_ok_and(met)
    }

    /// `P2 8 B near 0.74 target <= 0.70 missed`, and what that is made of.
    pub(crate) fn line(&self) -> String {
        let Self {
            target,
            point,
            found,
        } = self;
        let (name, bound) = (target.name, target.bound.text());
        match found {
            Err(why) => format!("{name} {point} {why}; target {bound}"),
            Ok(Measured {
                ratio,
                ours,
                theirs,
                hop_ns,
                floor,
            }) => {
                let met = if self.is_met() { "met" } else { "missed" };
                let Spread { median, min, max } = ratio;
                let hop = match hop_ns {
                    0.0 => String::new(),
                    hop => format!(", hop {}", digits(hop / 1e3)),
                };
                let floor = match floor {
                    Some((ns, ratio)) if !self.is_met() => {
                        format!("; the bare floor, {} us, is {ratio:.2}", digits(ns / 1e3))
                    }
                    _ => String::new(),
                };
                let places = self.target.bound.places(*median);
                format!(
                    "{name} {point} {median:.places$} target {bound} {met}  \
                     ({min:.places$}-{max:.places$}; {ours} against {theirs}{hop}{floor})"
                )
            }
        }
    }

    pub(crate) fn json(&self) -> Value {
        let mut value = json!({
            "target": self.target.name,
            "point": self.point,
            "bound": self.target.bound.text(),
            "met": self.is_met(),
        });
        match &self.found {
            Ok(measured) => {
                value["ratio"] = spread_json(measured.ratio);
                value["ours"] = measured.ours.clone().into();
                value["theirs"] = measured.theirs.clone().into();
                value["hop_ns"] = measured.hop_ns.into();
                if let Some((ns, ratio)) = measured.floor {
                    value["floor_ns"] = ns.into();
                    value["floor_ratio"] = ratio.into();
                }
            }
            Err(why) => value["why"] = why.clone().into(),
        }
        value
    }
}

/// What a trial found out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trials {
    pub(crate) ours: Rounds,
    /// Peers, with what they are to a target.
    pub(crate) peers: Vec<Rounds>,
    /// Why ours could not be measured, if it could not.
    pub(crate) failed: Option<String>,
}

const DISTANCES: [Cores; 3] = [Cores::Near, Cores::Far, Cores::Unknown];

/// Judges one target by its trial. `rivals` are the indices of the peers it is compared with, and
/// `absent` says what to do where there is none.
pub(crate) fn judge(
    target: &'static Target,
    trial: &Trials,
    rivals: &[usize],
    absent: &str,
) -> Vec<Verdict> {
    let verdict = |point: String, found| Verdict {
        target,
        point,
        found,
    };
    if target.against == Against::Itself {
        let idle = trial
            .ours
            .of
            .iter()
            .flat_map(|samples| samples.idle.iter().copied());
        let found = Spread::of(idle).map(|ratio| Measured {
            ratio,
            ours: format!("{} of a core", digits(ratio.median)),
            theirs: "nothing".to_owned(),
            hop_ns: 0.0,
            floor: None,
        });
        let failed = || {
            trial
                .failed
                .clone()
                .unwrap_or_else(|| "was not measured".to_owned())
        };
        return vec![verdict(target.part.to_owned(), found.ok_or_else(failed))];
    }
    let mut verdicts = Vec::new();
    for &bytes in target.sizes {
        let point = |cores: Option<Cores>| {
            let cores = cores.map(Cores::name).filter(|name| *name != "-");
            let words = [
                Some(label(bytes)),
                Some(target.part.to_owned()),
                cores.map(str::to_owned),
            ];
            let words: Vec<String> = words
                .into_iter()
                .flatten()
                .filter(|word| !word.is_empty())
                .collect();
            words.join(" ")
        };
        if let Some(why) = &trial.failed {
            verdicts.push(verdict(
                point(None),
                Err(format!("was not measured: {why}")),
            ));
            continue;
        }
        let needs_rivals = !matches!(
            target.against,
            Against::Hop | Against::Floor | Against::Size(_)
        );
        if needs_rivals && rivals.is_empty() {
            verdicts.push(verdict(point(None), Err(format!("no peer ({absent})"))));
            continue;
        }
        let found = DISTANCES.into_iter().filter_map(|cores| {
            let measured = measure(target, trial, rivals, bytes, cores)?;
            Some(verdict(point(Some(cores)), Ok(measured)))
        });
        let found: Vec<Verdict> = found.collect();
        if found.is_empty() {
            let why = "no pair at equal distance of the cores (take more rounds)".to_owned();
            verdicts.push(verdict(point(None), Err(why)));
        }
        verdicts.extend(found);
    }
    verdicts
}

/// The ratio at one size and distance, if both were measured there.
fn measure(
    target: &Target,
    trial: &Trials,
    rivals: &[usize],
    bytes: usize,
    cores: Cores,
) -> Option<Measured> {
    let bound = target.bound;
    let ours = trial.ours.middle(bytes, cores)?;
    let hop_ns = trial.ours.hop(bytes, cores);
    let us = |ns: f64| format!("{} us", digits(ns / 1e3));
    let beside = |theirs: fn(&Batch) -> f64, name: &str| {
        let rounds = trial.ours.at(bytes, cores);
        let ratios = rounds.values().filter_map(|batches| {
            let measured = batches.iter().filter(|batch| theirs(batch) > 0.0);
            Some(Spread::of(measured.map(|batch| bound.ratio(batch.ns, theirs(batch))))?.median)
        });
        let all = rounds
            .values()
            .flat_map(|batches| batches.iter())
            .map(theirs);
        Some(Measured {
            ratio: Spread::of(ratios)?,
            ours: us(ours),
            theirs: format!("{} of {name}", us(Spread::of(all)?.median)),
            hop_ns,
            floor: None,
        })
    };
    let (rival, other, name) = match target.against {
        Against::Hop => return beside(|batch| batch.hop_ns, "a bare cache line"),
        Against::Floor => return beside(|batch| batch.floor_ns, "the bare bytes"),
        Against::Size(other) => (&trial.ours, other, label(other)),
        _ => {
            let medians = rivals.iter().filter_map(|&rival| {
                let rounds = &trial.peers[rival];
                Some((rounds, rounds.middle(bytes, cores)?))
            });
            let best = medians.min_by(|one, other| one.1.total_cmp(&other.1))?.0;
            (best, bytes, best.name.clone())
        }
    };
    let theirs = rival.middle(other, cores)?;
    let (of_ours, of_theirs) = (trial.ours.at(bytes, cores), rival.at(other, cores));
    let pairs = of_ours.iter().filter_map(|(round, batches)| {
        let theirs = of_theirs.get(round)?.iter().map(|batch| batch.ns);
        let ours = batches.iter().map(|batch| batch.ns);
        let ours = trial.ours.middle_of(ours)?;
        Some(bound.ratio(ours, rival.middle_of(theirs)?))
    });
    // Where no round saw both at this distance, all rounds together did.
    let together = bound.ratio(ours, theirs);
    let ratio = Spread::of(pairs).unwrap_or(Spread {
        median: together,
        min: together,
        max: together,
    });
    let floor = trial.ours.floor(bytes, cores);
    let floor = floor.filter(|_| target.against == Against::Mpi);
    Some(Measured {
        ratio,
        ours: us(ours),
        theirs: format!("{} of {name}", us(theirs)),
        hop_ns,
        floor: floor.map(|floor| (floor, bound.ratio(floor, theirs))),
    })
}

/// A time for people.
fn time(ns: f64) -> String {
    match ns {
        ns if ns < 1e7 => format!("{} us", digits(ns / 1e3)),
        ns if ns < 1e9 => format!("{} ms", digits(ns / 1e6)),
        ns => format!("{} s", digits(ns / 1e9)),
    }
}

/// Judges a target by the rows that a bench wrote.
pub(crate) fn judge_bench(target: &'static Target, report: &Result<Value, String>) -> Vec<Verdict> {
    let verdict = |point: String, found| Verdict {
        target,
        point,
        found,
    };
    let report = match report {
        Ok(report) => report,
        Err(why) => {
            return vec![verdict(
                target.part.to_owned(),
                Err(format!("no peer ({why})")),
            )];
        }
    };
    // The rival at each point that is hardest on us.
    let mut worst: BTreeMap<String, Measured> = BTreeMap::new();
    for row in report["rows"].as_array().into_iter().flatten() {
        if row["target"] != target.name || row["part"] != target.part {
            continue;
        }
        let text = |key: &str| row[key].as_str().unwrap_or("").to_owned();
        let pairs = row["rounds_ns"].as_array().into_iter().flatten();
        let pairs: Vec<(f64, f64)> = pairs
            .filter_map(|pair| Some((pair[0].as_f64()?, pair[1].as_f64()?)))
            .collect();
        let ratios = pairs.iter().map(|pair| target.bound.ratio(pair.0, pair.1));
        let Some(ratio) = Spread::of(ratios) else {
            continue;
        };
        let middle = |side: fn(&(f64, f64)) -> f64| {
            let spread = Spread::of(pairs.iter().map(side));
            spread.map_or("-".to_owned(), |spread| time(spread.median))
        };
        let measured = Measured {
            ratio,
            ours: middle(|pair| pair.0),
            theirs: format!("{} of {}", middle(|pair| pair.1), text("against")),
            hop_ns: row["hop_ns"].as_f64().unwrap_or(0.0),
            floor: None,
        };
        let point = match &*text("cores") {
            "" | "-" => text("point"),
            cores => format!("{} {cores}", text("point")),
        };
        let entry = worst.entry(point).or_insert_with(|| measured.clone());
        if target
            .bound
            .is_worse(measured.ratio.median, entry.ratio.median)
        {
            *entry = measured;
        }
    }
    if worst.is_empty() {
        let why = missing(report, target).unwrap_or("the bench wrote no such row".to_owned());
        return vec![verdict(
            target.part.to_owned(),
            Err(format!("no peer ({why})")),
        )];
    }
    let judged = worst.into_iter();
    judged
        .map(|(point, measured)| verdict(point, Ok(measured)))
        .collect()
}

/// What a bench says it lacks for a target, with what brings it.
pub(crate) fn missing(report: &Value, target: &Target) -> Option<String> {
    let rows = report["rows"].as_array().into_iter().flatten();
    let of_it = rows.filter(|row| row["target"] == target.name && row["part"] == target.part);
    let why: Vec<&str> = of_it.filter_map(|row| row["why"].as_str()).collect();
    (!why.is_empty()).then(|| why.join("; "))
}

#[cfg(test)]
mod tests {
    use super::{super::targets::TARGETS, *};

    fn rounds(name: &str, texts: &[&str]) -> Rounds {
        let of = texts.iter().map(|text| {
            let mut samples = Samples::default();
            samples.read(text, [0.0; 2]);
            samples
        });
        Rounds {
            name: name.to_owned(),
            crowded: false,
            of: of.collect(),
        }
    }

    fn target(name: &str, part: &str) -> &'static Target {
        let mut targets = TARGETS.iter();
        targets
            .find(|target| (target.name, target.part) == (name, part))
            .unwrap()
    }

    fn lines(verdicts: &[Verdict]) -> Vec<String> {
        verdicts.iter().map(Verdict::line).collect()
    }

    #[test]
    fn near_is_compared_with_near_and_far_with_far_and_with_the_best_there() {
        let trial = Trials {
            ours: rounds(
                "ours",
                &[
                    "batch 8 70 70 70 100\nbatch 8 200 200 210 300",
                    "batch 8 70 70 70 110",
                ],
            ),
            peers: vec![
                rounds("slow", &["batch 8 70 70 0 900", "batch 8 200 200 0 400"]),
                rounds("quick", &["batch 8 70 70 0 200", "batch 8 70 70 0 200"]),
            ],
            failed: None,
        };
        let verdicts = judge(target("P2", ""), &trial, &[0, 1], "");
        assert_eq!(
            lines(&verdicts)[..2],
            [
                "P2 8 B near 0.53 target <= 0.70 met  (0.50-0.55; 0.105 us against 0.200 us of quick, hop 0.070)",
                "P2 8 B far 0.75 target <= 0.70 missed  (0.75-0.75; 0.300 us against 0.400 us of slow, hop 0.200; \
                 the bare floor, 0.210 us, is 0.53)",
            ]
        );
        assert!(lines(&verdicts)[2].starts_with("P2 64 B no pair at equal distance"));
        let bare = judge(target("P1", ""), &trial, &[], "");
        assert!(lines(&bare)[0].starts_with("P1 8 B near 1.50 target <= 1.30 missed"));
    }

    #[test]
    fn a_point_that_is_missed_is_set_beside_what_the_bare_machine_takes() {
        let trial = |ours: &str| Trials {
            ours: rounds("ours", &[ours]),
            peers: vec![rounds("quick", &["batch 8 200 200 0 250"])],
            failed: None,
        };
        let line = |ours: &str| {
            let verdicts = judge(target("P10", "barrier"), &trial(ours), &[0], "");
            lines(&verdicts).remove(0)
        };
        let missed = line("batch 8 200 200 160 210");
        assert!(
            missed.ends_with("hop 0.200; the bare floor, 0.160 us, is 0.64)"),
            "{missed}"
        );
        let met = line("batch 8 200 200 60 100");
        assert!(met.ends_with("of quick, hop 0.200)"), "{met}");
    }

    #[test]
    fn in_a_crowd_what_all_batches_took_counts() {
        let mut trial = Trials {
            ours: rounds(
                "ours",
                &["batch 8 0 0 0 300\nbatch 8 0 0 0 300\nbatch 8 0 0 0 300"],
            ),
            peers: vec![rounds(
                "lucky",
                &["batch 8 0 0 0 100\nbatch 8 0 0 0 100\nbatch 8 0 0 0 3000"],
            )],
            failed: None,
        };
        trial.peers[0].crowded = true;
        let line = &lines(&judge(target("P6", "2 ranks a core"), &trial, &[0], ""))[0];
        assert!(
            line.starts_with("P6 8 B 2 ranks a core 0.28 target <= 0.50 met"),
            "{line}"
        );
    }

    #[test]
    fn without_a_peer_or_ours_no_point_is_met() {
        let trial = Trials {
            ours: rounds("ours", &["batch 64 70 70 0 1"]),
            ..Trials::default()
        };
        let verdicts = judge(target("P4", ""), &trial, &[], "install one");
        assert_eq!(
            lines(&verdicts)[0],
            "P4 64 B no peer (install one); target >= 1.50"
        );
        assert!(!verdicts.iter().any(Verdict::is_met));
        let trial = Trials {
            failed: Some("it broke".to_owned()),
            ..trial
        };
        let verdicts = judge(target("P4", ""), &trial, &[], "");
        assert_eq!(
            lines(&verdicts)[0],
            "P4 64 B was not measured: it broke; target >= 1.50"
        );
    }

    #[test]
    fn an_idle_executor_is_judged_by_its_own_figure() {
        let trial = Trials {
            ours: rounds("ours", &["idle 0.001", "idle 0.002", "idle 0.009"]),
            ..Trials::default()
        };
        let line = &lines(&judge(target("P7", "idle executor"), &trial, &[], ""))[0];
        assert!(
            line.starts_with("P7 idle executor 0.0020 target <= 0.005 met"),
            "{line}"
        );
    }

    #[test]
    fn of_several_crates_the_one_that_is_hardest_on_us_counts() {
        let row = |against: &str, theirs: f64| {
            json!({
                "target": "P5", "part": "single", "point": "8 B single", "cores": "near",
                "against": against, "hop_ns": 70.0, "rounds_ns": [[10.0, theirs], [10.0, theirs]],
            })
        };
        let report = Ok(json!({ "rows": [row("slow", 30.0), row("quick", 8.0)] }));
        assert_eq!(
            lines(&judge_bench(target("P5", "single"), &report)),
            [
                "P5 8 B single near 0.80 target >= 1.00 missed  (0.80-0.80; 0.010 us against 0.008 us of quick, hop 0.070)"
            ]
        );
        let none = judge_bench(target("P5", "batched"), &report);
        assert!(lines(&none)[0].starts_with("P5 batched no peer"));
    }

    #[test]
    fn what_a_bench_lacks_is_told_and_its_times_are_written_as_people_read_them() {
        let report = Ok(json!({ "rows": [
            { "target": "P14", "part": "systems", "point": "DuckDB", "why": "no DuckDB (PyPI: duckdb)" },
            { "target": "P13", "part": "reduce", "point": "reduce", "against": "timely", "cores": "-",
              "hop_ns": 0.0, "rounds_ns": [[5e7, 2e9]] },
        ] }));
        assert_eq!(
            lines(&judge_bench(target("P14", "systems"), &report)),
            ["P14 systems no peer (no DuckDB (PyPI: duckdb)); target <= 0.50"]
        );
        assert_eq!(
            lines(&judge_bench(target("P13", "reduce"), &report)),
            [
                "P13 reduce 40.00 target >= 2.00 met  (40.00-40.00; 50.00 ms against 2.000 s of timely)"
            ]
        );
    }
}
