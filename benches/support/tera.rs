//! Records of 100 bytes with keys of 10, as the sort benchmark has them, in lines.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

/// Bytes of a record, of which the last ends a line.
pub const RECORD: usize = 100;
/// Bytes of its key, which are printable.
pub const KEY: usize = 10;

/// Writes `records` records with random keys, the same for the same seed.
pub fn write(path: &Path, records: u64, seed: u64) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut state = seed;
    let mut random = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    for number in 0..records {
        let mut digits = u128::from(random()) << 64 | u128::from(random());
        let mut key = [0; KEY];
        for byte in &mut key {
            *byte = b' ' + (digits % 95) as u8;
            digits /= 95;
        }
        file.write_all(&key)?;
        let filler = random();
        // 10 bytes, 2 spaces, 32 digits, 2 spaces, 52 letters, and the end of the line: "\r\n".
        write!(
            file,
            "  {number:032X}  {filler:016X}{filler:016X}{filler:016X}"
        )?;
        file.write_all(b"....\r\n")?;
    }
    file.into_inner()?.sync_all()
}

/// What is known of records once they are sorted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// How many there are.
    pub records: u64,
    /// The sum of a checksum of each.
    pub checksum: u64,
    /// How many come before the one in front of them.
    pub out_of_order: u64,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            records,
            checksum,
            out_of_order,
        } = self;
        write!(
            f,
            "records={records} checksum={checksum:x} out_of_order={out_of_order}"
        )
    }
}

/// Looks at the records of some files, one behind the other.
pub fn validate(files: &[PathBuf]) -> io::Result<Found> {
    let mut found = Found::default();
    let mut last = [0; KEY];
    for path in files {
        let bytes = fs::metadata(path)?.len();
        let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
        for _ in 0..bytes / RECORD as u64 {
            let mut record = [0; RECORD];
            reader.read_exact(&mut record)?;
            let (words, rest) = record.as_chunks::<8>();
            let mut sum = rest.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
            for word in words {
                sum = (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x9fb2_1c65_1e98_df25);
                sum ^= sum >> 32;
            }
            let (&key, _) = record.split_first_chunk::<KEY>().unwrap_or((&last, &[]));
            found.records += 1;
            found.checksum = found.checksum.wrapping_add(sum);
            found.out_of_order += u64::from(key < last);
            last = key;
        }
    }
    Ok(found)
}

/// The files of a folder in the order of their names.
pub fn parts(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut files: Vec<_> = entries.collect::<io::Result<_>>()?;
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_lines_of_one_size_and_disorder_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        write(&path, 1_000, 1).unwrap();
        let text = fs::read(&path).unwrap();
        assert!(text.chunks(RECORD).all(|record| record.ends_with(b"\r\n")));
        assert_eq!(text.len(), 1_000 * RECORD);
        let unsorted = validate(std::slice::from_ref(&path)).unwrap();
        assert!(unsorted.records == 1_000 && unsorted.out_of_order > 400);
        let mut records: Vec<_> = text.chunks(RECORD).collect();
        records.sort();
        fs::write(&path, records.concat()).unwrap();
        let sorted = validate(&parts(folder.path()).unwrap()).unwrap();
        assert_eq!(
            sorted,
            Found {
                out_of_order: 0,
                ..unsorted
            }
        );
    }
}
