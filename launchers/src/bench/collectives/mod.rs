//! `updraft bench collectives`: what operations among a group of ranks take, and which algorithms carry them out.

mod growth;
mod rank;

use std::fmt::Write as _;

use clap::Args;
use serde_json::json;
use updraft::collectives::{Algorithm, Operator};

pub(crate) use self::rank::{measure, measure_cooperative};
use super::{
    JobArguments, Results, job,
    machine::Machine,
    plot::{Curve, Plot},
    rank::Measure,
    report::{Unit, digits, machine_json, spread_json},
    samples::{Samples, Series},
    sizes::{Sizes, label},
};
use crate::{Error, output::say};

/// Of `collectives`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Operators, such as all_reduce,barrier; all if not given
    #[arg(long, value_name = "OPERATORS", value_delimiter = ',', value_parser = parse_operator)]
    only: Vec<Operator>,

    /// Bytes of each rank's vector, or of each block: sizes, and ranges that double, such as 8,64,1Ki..4Mi
    #[arg(long, default_value = "8,64,1Ki,8Ki,64Ki,1Mi")]
    sizes: Sizes,

    /// Print the algorithm of each point and what the model says that it takes, beside what it took
    #[arg(long)]
    explain: bool,

    /// The algorithm to use where there is such a one for an operator, instead of the one that the model chooses
    #[arg(long)]
    algorithm: Option<Algorithm>,

    /// How cost grows with the number of ranks: the messages and bytes of each algorithm on a simulated network, beside its
    /// formula, and the time of 2 to 64 threads
    #[arg(long)]
    growth: bool,

    /// The most ranks of that
    #[arg(long, value_name = "RANKS", default_value_t = 4096, requires = "growth",
        value_parser = clap::value_parser!(u32).range(2..=4096))]
    ranks_max: u32,

    #[command(flatten)]
    job: JobArguments,
}

fn parse_operator(text: &str) -> Result<Operator, String> {
    let found = Operator::ALL
        .into_iter()
        .find(|operator| operator.name() == text);
    found.ok_or_else(|| {
        let names = Operator::ALL.map(Operator::name);
        format!("the operators are {}", names.join(", "))
    })
}

/// What measures an operator.
pub(crate) fn measure_of(operator: Operator) -> Measure {
    let found = Measure::OPERATORS
        .into_iter()
        .find(|measure| measure.operator() == Some(operator));
    found.unwrap_or(Measure::Barrier)
}

/// Measures each operator in a job of its own, and prints a line for each point.
pub(crate) fn run(arguments: &Arguments) -> Result<u8, Error> {
    let outputs = &arguments.job.outputs;
    outputs.check()?;
    let operators = if arguments.only.is_empty() {
        Operator::ALL.to_vec()
    } else {
        arguments.only.clone()
    };
    if arguments.growth {
        return growth::run(arguments, &operators);
    }
    let machine = Machine::here();
    say(&format!("{}\n", machine.line()));
    say(&heading(arguments.explain));
    let mut measured: Vec<(Operator, Samples)> = Vec::new();
    for operator in operators {
        let results = Results::new()?;
        let sizes = match operator {
            Operator::Barrier => Sizes(vec![8]),
            _ => arguments.sizes.clone(),
        };
        let ranks_do = super::rank::Arguments {
            algorithm: arguments.algorithm,
            ..arguments
                .job
                .ranks_do(measure_of(operator), &sizes, &results)
        };
        let code = arguments.job.place.start(job(&ranks_do))?;
        if code != 0 {
            return Ok(code);
        }
        let mut samples = Samples::default();
        samples
            .read_file(&results.path())
            .map_err(Error::io("read the results"))?;
        for series in samples.series() {
            say(&row(operator, series, &samples, arguments.explain));
        }
        measured.push((operator, samples));
    }
    let ranks = arguments.job.ranks();
    let rows = || {
        measured.iter().flat_map(|(operator, samples)| {
            samples
                .series()
                .map(move |series| (*operator, series, samples))
        })
    };
    let csv = || {
        let mut text = "operator,bytes,cores,us,us_min,us_max,algorithm,predicted_us\n".to_owned();
        for (operator, series, samples) in rows() {
            let (algorithm, predicted) = choice(series, samples);
            if let Some(spread) = series.spread() {
                let _ = writeln!(
                    text,
                    "{operator},{},{},{:.4},{:.4},{:.4},{algorithm},{:.4}",
                    series.bytes,
                    series.cores.name(),
                    spread.median / 1e3,
                    spread.min / 1e3,
                    spread.max / 1e3,
                    predicted / 1e3
                );
            }
        }
        text
    };
    let json = || {
        let points = rows().map(|(operator, series, samples)| {
            let (algorithm, predicted) = choice(series, samples);
            json!({
                "operator": operator.name(),
                "bytes": series.bytes,
                "cores": series.cores.name(),
                "ns": series.spread().map(spread_json),
                "algorithm": algorithm,
                "predicted_ns": predicted,
            })
        });
        json!({
            "bench": "collectives",
            "machine": machine_json(&machine),
            "ranks": ranks,
            "points": points.collect::<Vec<_>>(),
        })
    };
    let plot = || Plot {
        title: format!("collectives, {ranks} ranks"),
        subtitle: machine.line(),
        across: "bytes of a rank",
        label,
        up: Unit::Operation.name(),
        curves: measured
            .iter()
            .enumerate()
            .map(|(colour, (operator, samples))| Curve {
                name: operator.name().to_owned(),
                points: samples
                    .series()
                    .filter_map(|series| Some((series.bytes as f64, series.spread()?.median / 1e3)))
                    .collect(),
                dashed: false,
                colour,
            })
            .filter(|curve| curve.points.len() > 1)
            .collect(),
    };
    outputs.write(csv, json, plot)?;
    Ok(0)
}

fn heading(explain: bool) -> String {
    let mut line = format!(
        "{:<15}{:>9}{:>9}{:>12}{:>12}{:>12}",
        "operator", "bytes", "cores", "us", "least", "most"
    );
    if explain {
        let _ = write!(line, "  {:<20}{:>12}", "algorithm", "predicted");
    }
    line + "\n"
}

fn row(operator: Operator, series: &Series, samples: &Samples, explain: bool) -> String {
    let Some(spread) = series.spread() else {
        return String::new();
    };
    let bytes = match operator {
        Operator::Barrier => "-".to_owned(),
        _ => label(series.bytes),
    };
    let [median, least, most] = [spread.median, spread.min, spread.max].map(|ns| digits(ns / 1e3));
    let mut line = format!(
        "{:<15}{bytes:>9}{:>9}{median:>12}{least:>12}{most:>12}",
        operator.name(),
        series.cores.name(),
    );
    if explain {
        let (algorithm, predicted) = choice(series, samples);
        let _ = write!(line, "  {algorithm:<20}{:>12}", digits(predicted / 1e3));
    }
    line + "\n"
}

/// The algorithm of a point, and the nanoseconds it should take.
fn choice<'s>(series: &Series, samples: &'s Samples) -> (&'s str, f64) {
    let chosen = samples.choices.get(&series.bytes);
    chosen.map_or(("-", 0.0), |(name, ns)| (name.as_str(), *ns))
}
