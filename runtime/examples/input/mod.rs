//! What users give to programs: numbers, and files of lines that all ranks read together.

#![allow(dead_code, reason = "each example uses the part it needs")]

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use updraft::{Env, Error, dataflow};

/// Gives `take` the lines that begin in part `part` of `parts` equal parts of a file, so that each line is in one.
///
/// # Errors
///
/// What `take` says of a line, with the line and the path, and what keeps the file from being read.
pub(crate) fn lines(
    path: &Path,
    part: usize,
    parts: usize,
    mut take: impl FnMut(&str) -> Result<(), String>,
) -> Result<(), dataflow::Error> {
    let mut read = || -> io::Result<()> {
        let mut file = File::open(path)?;
        let bytes = u128::from(file.metadata()?.len());
        let edge = |part: usize| (bytes * part as u128 / parts as u128) as u64;
        let (mut at, end) = (edge(part), edge(part + 1));
        let mut line = String::new();
        // A line that begins right at the edge is known by the end of the one before it.
        let skips = at > 0;
        at -= u64::from(skips);
        file.seek(SeekFrom::Start(at))?;
        let mut file = BufReader::with_capacity(1 << 18, file);
        if skips {
            at += file.skip_until(b'\n')? as u64;
        }
        while at < end {
            line.clear();
            let read = file.read_line(&mut line)?;
            if read == 0 {
                break;
            }
            at += read as u64;
            let line = line.trim_end_matches(['\n', '\r']);
            take(line).map_err(|problem| invalid(&format!("{line:?} is not {problem}")))?;
        }
        Ok(())
    };
    read().map_err(cannot_read(path))
}

/// A number of things, of which there has to be one.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least one is needed".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

/// The part files of a folder in order, or the one file.
///
/// # Errors
///
/// What keeps the folder from being read.
pub(crate) fn part_files(path: &Path) -> Result<Vec<PathBuf>, dataflow::Error> {
    let metadata = fs::metadata(path).map_err(cannot_read(path))?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(cannot_read(path))? {
        let entry = entry.map_err(cannot_read(path))?;
        if entry.file_name().to_string_lossy().starts_with("part-") {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Waits until what every rank wrote is there under its name: a rank is done with a run before others have renamed
/// their files, but not with the next one before they take part in it.
///
/// # Errors
///
/// What the run says.
pub(crate) fn settle(env: &mut Env) -> Result<(), Error> {
    env.run(&env.collection(vec![()]).count().collect())
        .map(drop)
}

/// An error that says what is wrong with the contents.
pub(crate) fn invalid(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// An error that says which file.
pub(crate) fn cannot_read(path: &Path) -> impl Fn(io::Error) -> dataflow::Error {
    move |source| dataflow::Error::Input {
        path: path.to_owned(),
        source,
    }
}

/// The same for what could not be written.
pub(crate) fn cannot_write(path: &Path) -> impl Fn(io::Error) -> dataflow::Error {
    move |source| dataflow::Error::Output {
        path: path.to_owned(),
        source,
    }
}
