//! A column of a CSV file by another: how many values each group has, and how they are spread.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use updraft::{
    Error,
    dataflow::{Statistics, lines_of},
    prelude::*,
};

use crate::{
    input::{self, cannot_read, invalid},
    program::check_same,
};

/// The largest relative difference to a plain loop that rounding explains.
const DIFFERENCE_MAX: f64 = 1e-9;

/// Which columns of which file.
#[derive(Debug, Clone, Args)]
pub(crate) struct Columns {
    /// Describe a column of a CSV file, whose first line names the columns and whose fields hold no commas, instead.
    #[arg(long, value_name = "FILE", requires = "by", conflicts_with_all = ["questions", "rows", "groups", "seed"])]
    input: Option<PathBuf>,

    /// The column to group by.
    #[arg(long, value_name = "COLUMN", requires = "of")]
    by: Option<String>,

    /// The column of numbers to describe. Rows that have none there are left out.
    #[arg(long, value_name = "COLUMN", requires = "input")]
    of: Option<String>,
}

/// A file, and where its two columns are.
struct Table<'a> {
    path: &'a Path,
    header: String,
    by: usize,
    of: usize,
}

/// A group: its key, and its values.
type Group = (String, Statistics);

impl Columns {
    /// The file that is asked for, if one is.
    pub(crate) fn describe(&self, env: &mut Env, check: bool) -> Option<Result<(), Error>> {
        let Self {
            input: Some(path),
            by: Some(by),
            of: Some(of),
        } = self
        else {
            return None;
        };
        Some(Table::open(path, by, of).and_then(|table| table.describe(env, [by, of], check)))
    }
}

impl<'a> Table<'a> {
    fn open(path: &'a Path, by: &str, of: &str) -> Result<Self, Error> {
        let mut header = None;
        input::lines(path, 0, 1, |line| {
            header.get_or_insert_with(|| line.to_owned());
            Ok(())
        })?;
        let header = header.unwrap_or_default();
        let column = |name: &str| {
            let missing = || cannot_read(path)(invalid(&format!("there is no column {name:?}")));
            header
                .split(',')
                .position(|column| column == name)
                .ok_or_else(missing)
        };
        let (by, of) = (column(by)?, column(of)?);
        Ok(Self {
            path,
            header,
            by,
            of,
        })
    }

    fn describe(&self, env: &mut Env, [by, of]: [&str; 2], check: bool) -> Result<(), Error> {
        let started = Instant::now();
        let (header, at) = (self.header.clone(), (self.by, self.of));
        let rows = lines_of(vec![self.path.to_owned()])?.filter(move |line| line != header);
        let groups = rows
            .try_flat_map(move |line, out| {
                if let Some(row) = row(line, at)? {
                    out.push(row);
                }
                Ok::<_, String>(())
            })
            .named("row")
            .aggregate_by_key(|of| of.statistics(|value| value))
            .sort_by_key();
        let groups = env.run(&groups.collect())?;
        if env.worker() != 0 {
            return Ok(());
        }
        let rows: u64 = groups.iter().map(|(_, values)| values.count).sum();
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("{rows} rows in {seconds:.3} s");
        println!("{by}\tnumber\tmean {of}\tdeviation\tleast\tmost");
        for (key, values) in &groups {
            println!(
                "{key}\t{}\t{:.3}\t{:.3}\t{}\t{}",
                values.count,
                values.mean,
                values.standard_deviation(),
                values.min,
                values.max
            );
        }
        if check {
            let is_same = self.is_as_by_a_loop(&groups)?;
            println!("as by a plain loop: {is_same}");
            check_same(is_same)?;
        }
        Ok(())
    }

    fn is_as_by_a_loop(&self, groups: &[Group]) -> Result<bool, Error> {
        let mut expected = BTreeMap::<String, Vec<f64>>::new();
        input::lines(self.path, 0, 1, |line| {
            if line != self.header
                && let Some((key, value)) = row(line, (self.by, self.of))?
            {
                expected.entry(key.to_owned()).or_default().push(value);
            }
            Ok(())
        })?;
        let is_close =
            |one: f64, other: f64| (one - other).abs() <= DIFFERENCE_MAX * one.abs().max(1.0);
        let is_same = |((key, found), (expected_key, values)): (&Group, (&String, &Vec<f64>))| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
            key == expected_key
                && found.count == values.len() as u64
                && is_close(mean, found.mean)
                && is_close(squares / values.len() as f64, found.variance)
                && found.min == values.iter().copied().fold(f64::INFINITY, f64::min)
                && found.max == values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
        };
        Ok(groups.len() == expected.len() && groups.iter().zip(&expected).all(is_same))
    }
}

/// The key and the value of a row, if it has a value.
fn row(line: &str, (by, of): (usize, usize)) -> Result<Option<(&str, f64)>, String> {
    if line.contains('"') {
        return Err("a row without quotes".to_owned());
    }
    let field = |at: usize| {
        let missing = || format!("a row with {} fields", at + 1);
        line.split(',').nth(at).ok_or_else(missing)
    };
    let (key, value) = (field(by)?, field(of)?);
    if value.is_empty() || value == "NA" {
        return Ok(None);
    }
    let number = |_| format!("a row whose field {} is a number", of + 1);
    Ok(Some((key, value.parse().map_err(number)?)))
}
