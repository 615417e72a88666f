//! What a bench is told, and the rows by which it answers `updraft bench compare`.

use super::measure::Report;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// The words of a bench: `[--smoke] [--json FILE] [--peer DIR]... [--only TARGETS] WORDS`.
#[derive(Debug, Default)]
pub struct Options {
    /// Whether a moment will do.
    pub smoke: bool,
    /// Where the rows go that `updraft bench compare` reads.
    pub json: Option<PathBuf>,
    /// Folders with a Python or an MPI library in them.
    pub peers: Vec<PathBuf>,
    /// The targets that are asked about; all if there are none.
    pub only: Vec<String>,
    /// What else there was.
    pub words: Vec<String>,
}

impl Options {
    /// Those of this process.
    pub fn read() -> io::Result<Self> {
        let mut options = Self::default();
        let mut words = env::args().skip(1).filter(|word| word != "--bench");
        while let Some(word) = words.next() {
            let mut value = || {
                let value = words.next();
                value.ok_or_else(|| io::Error::other(format!("{word} needs a value")))
            };
            match &*word {
                "--smoke" => options.smoke = true,
                "--json" => options.json = Some(value()?.into()),
                "--peer" => options.peers.push(value()?.into()),
                "--only" => options.only.extend(value()?.split(',').map(str::to_owned)),
                _ => options.words.push(word),
            }
        }
        Ok(options)
    }

    /// The words that are no options.
    pub fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }

    /// Whether a target is asked about.
    pub fn wants(&self, target: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == target)
    }

    /// A Python that has a module: in one of the folders, or where programs are.
    pub fn python(&self, module: &str) -> Option<PathBuf> {
        let folders = self.peers.iter().map(|folder| folder.join("bin/python3"));
        let mut all = folders.chain([PathBuf::from("python3")]);
        all.find(|python| {
            let mut import = Command::new(python);
            let output = import.args(["-c", &format!("import {module}")]).output();
            output.is_ok_and(|output| output.status.success())
        })
    }

    /// The compilers and starters of the MPI libraries there are, each with its folder if it is not where programs are.
    pub fn mpis(&self) -> Vec<(PathBuf, PathBuf, Option<&Path>)> {
        let folders = self.peers.iter().map(|folder| {
            let [compiler, starter] = ["bin/mpicc", "bin/mpirun"].map(|name| folder.join(name));
            (compiler, starter, Some(&**folder))
        });
        let found = folders.filter(|(compiler, starter, _)| compiler.exists() && starter.exists());
        let mut found: Vec<_> = found.collect();
        let mut known = Command::new("mpicc");
        if known
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success())
        {
            found.push(("mpicc".into(), "mpirun".into(), None));
        }
        found
    }
}

/// A script that does on DuckDB, Polars and Spark what a bench does: `SYSTEM WORK PATH...`.
pub const PEER: &str = include_str!("peer.py");

/// Rows for `updraft bench compare`.
#[derive(Debug, Default)]
pub struct Rows(Vec<Value>);

impl Rows {
    /// What the runs of two cases took, round by round, in seconds.
    pub fn pairs(&mut self, [target, part, point, against]: [&str; 4], pairs: &[(f64, f64)]) {
        let rounds = pairs
            .iter()
            .map(|(ours, theirs)| [1e9 * ours, 1e9 * theirs]);
        self.0.push(json!({
            "target": target,
            "part": part,
            "point": point,
            "against": against,
            "cores": "-",
            "hop_ns": 0.0,
            "rounds_ns": rounds.collect::<Vec<_>>(),
        }));
    }

    /// The same of two cases of a report, by the time they took themselves.
    pub fn cases(&mut self, about: [&str; 3], report: &Report, [ours, theirs]: [&str; 2]) {
        let [target, part, point] = about;
        let pairs = report.pairs(ours, theirs, |run| run.seconds);
        self.pairs([target, part, point, theirs], &pairs);
    }

    /// Says that there is no peer, and what brings it.
    pub fn absent(&mut self, [target, part, point]: [&str; 3], why: &str) {
        self.0
            .push(json!({ "target": target, "part": part, "point": point, "why": why }));
    }

    /// Writes them, if that is wanted.
    pub fn write(&self, options: &Options) -> io::Result<()> {
        let Some(path) = &options.json else {
            return Ok(());
        };
        fs::write(path, format!("{:#}\n", json!({ "rows": self.0 })))
    }
}
