//! Records of so many bytes each, one behind the other in files.
//!
//! All files together are one row of records, of which each instance reads an equal part.

use std::{fs::File, os::unix::fs::FileExt, path::PathBuf};

use transport::Reservation;

use super::files::{Files, HostFile, Part, failed};
use crate::{
    Error,
    operator::narrow::Pass,
    schedule::Split,
    stage::{Input, Place, Progress, Sink},
    tset::{Source, TSet},
};

/// Bytes read at a time; more only for a record that is larger.
const READ_BYTES: usize = 256 << 10;

/// The records of `files`, in their order, each of `N` bytes: a format that any program can read anywhere in a file.
///
/// # Errors
///
/// [`Error::Input`] when a file cannot be looked at, [`Error::NotRecords`] when its size is no multiple of `N`.
///
/// ```
/// use dataflow::{inline, records_of};
///
/// let path = std::env::temp_dir().join(format!("records-{}", std::process::id()));
/// std::fs::write(&path, "one two six ")?;
/// let records = inline(&records_of::<4>(vec![path.clone()])?.collect());
/// std::fs::remove_file(&path)?;
/// assert_eq!(records?, [*b"one ", *b"two ", *b"six "]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn records_of<const N: usize>(files: Vec<PathBuf>) -> Result<TSet<Records<N>, Pass>, Error> {
    records_at(HostFile::everywhere(files)?)
}

/// The same of files of which it is known which hosts have them: see [`lines_at`](crate::lines_at).
///
/// # Errors
///
/// [`Error::NotRecords`].
///
/// ```
/// use dataflow::{Error, HostFile, records_at};
///
/// let file = |bytes| HostFile { path: "parts/1".into(), bytes, hosts: vec!["a".to_owned()] };
/// assert!(records_at::<8>(vec![file(64)]).is_ok());
/// assert!(matches!(records_at::<8>(vec![file(60)]), Err(Error::NotRecords { bytes: 60, .. })));
/// ```
pub fn records_at<const N: usize>(files: Vec<HostFile>) -> Result<TSet<Records<N>, Pass>, Error> {
    let unit = N.max(1) as u64;
    if let Some(file) = files.iter().find(|file| !file.bytes.is_multiple_of(unit)) {
        return Err(Error::NotRecords {
            path: file.path.clone(),
            bytes: file.bytes,
            record_bytes: N,
        });
    }
    let files = Files::new(files, unit);
    let (number, bytes) = (files.number(), files.bytes());
    let name = format!("records of {N} bytes in {number} files, {bytes} bytes");
    Ok(TSet::from_source(Records { files }, name))
}

/// The source of [`records_of`].
#[derive(Debug)]
pub struct Records<const N: usize> {
    files: Files,
}

impl<const N: usize> Source for Records<N> {
    type Input = RecordReader<N>;
    type Out = [u8; N];

    fn build(&self, place: &Place) -> Result<RecordReader<N>, Error> {
        let parts = self.files.parts(place.instance, place.instances);
        let bytes = parts.iter().map(|part| part.end - part.start).sum();
        place.counters.expect(bytes);
        let most = (READ_BYTES / N.max(1)).max(1) * N;
        let buffer = most.min(usize::try_from(bytes).unwrap_or(most));
        Ok(RecordReader {
            parts,
            open: None,
            _reservation: place.ledger.reserve("reading records", buffer as u64)?,
            buffer: vec![0; buffer],
            taken: 0,
            filled: 0,
            path: PathBuf::new(),
            offset: 0,
            place: place.clone(),
        })
    }

    fn splits(&self, instances: u32) -> Vec<Split> {
        self.files.splits(instances)
    }
}

/// Reads one instance's records.
#[derive(Debug)]
pub struct RecordReader<const N: usize> {
    /// What is still to be read, the first last, and its file once that is open.
    parts: Vec<Part>,
    open: Option<File>,
    buffer: Vec<u8>,
    _reservation: Reservation,
    /// What was read and not yet pushed is at `taken..filled` of the buffer.
    taken: usize,
    filled: usize,
    /// Where the first byte of the buffer comes from.
    path: PathBuf,
    offset: u64,
    place: Place,
}

impl<const N: usize> RecordReader<N> {
    /// Reads whole records of one file; false when there are none left.
    fn fill(&mut self) -> Result<bool, Error> {
        let Some(part) = self.parts.last_mut() else {
            return Ok(false);
        };
        let left = usize::try_from(part.end - part.start).unwrap_or(usize::MAX);
        let bytes = left.min(self.buffer.len());
        let file = match &self.open {
            Some(file) => file,
            None => self
                .open
                .insert(File::open(&part.path).map_err(failed(&part.path))?),
        };
        // A file that became shorter is an error: its end is not the end of the records.
        file.read_exact_at(&mut self.buffer[..bytes], part.start)
            .map_err(failed(&part.path))?;
        self.path.clone_from(&part.path);
        self.offset = part.start;
        part.start += bytes as u64;
        if part.start == part.end {
            self.parts.pop();
            self.open = None;
        }
        (self.taken, self.filled) = (0, bytes);
        Ok(true)
    }
}

impl<const N: usize> Input for RecordReader<N> {
    type Out = [u8; N];

    fn poll<D: Sink<[u8; N]>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if self.taken == self.filled && !self.fill()? {
            return Ok(Progress::Done);
        }
        let mut records = 0;
        let (chunks, _) = self.buffer[self.taken..self.filled].as_chunks::<N>();
        for record in chunks {
            if down.is_full() {
                break;
            }
            down.push(record);
            records += 1;
        }
        self.taken += records * N;
        self.place
            .counters
            .read(records as u64, (records * N) as u64);
        Ok(Progress::Made)
    }

    fn last(&self) -> String {
        let byte = self.offset + self.taken.saturating_sub(N) as u64;
        format!("the record at byte {byte} of {}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::simulate;

    #[test]
    fn every_record_is_read_once_by_whatever_number_of_ranks() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        let mut expected = Vec::new();
        for (index, len) in [0u32, 1, 50_000, 7].into_iter().enumerate() {
            let records: Vec<[u8; 7]> = (0..len)
                .map(|record| {
                    let [a, b, c, d] = record.to_le_bytes();
                    [index as u8, a, b, c, d, 0, 0]
                })
                .collect();
            let path = folder.path().join(index.to_string());
            fs::write(&path, records.as_flattened()).unwrap();
            files.push(path);
            expected.extend(records);
        }
        for size in 1..6 {
            let job = records_of::<7>(files.clone()).unwrap().collect();
            assert!(
                simulate(&job, 1, size, 1).unwrap() == expected,
                "{size} ranks"
            );
        }
    }

    #[test]
    fn a_file_that_ends_in_the_midst_of_a_record_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [0; 10]).unwrap();
        let error = records_of::<4>(vec![file.path().to_owned()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{} has 10 bytes, which are no records of 4",
                file.path().display()
            )
        );
        fs::write(file.path(), [0; 12]).unwrap();
        let job = records_of::<4>(vec![file.path().to_owned()])
            .unwrap()
            .collect();
        fs::write(file.path(), [0; 4]).unwrap();
        assert!(matches!(
            simulate(&job, 0, 1, 1).unwrap_err(),
            Error::Input { .. }
        ));
    }
}
