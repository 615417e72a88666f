//! The sort benchmark: records of 100 bytes with keys of 10, in the ASCII form that its `gensort` writes (the key,
//! two spaces, the record's number in 32 hexadecimal digits, two spaces, 52 letters, and the end of a line).
//!
//! Without a command it generates some, sorts them, and validates what came out: that it is in order, and by
//! number and checksum the same records. `--memory 128M` has more than that sorted on disk.

mod input;
#[path = "program/mod.rs"]
mod program;

use std::{
    fs::{self, File},
    io::{BufReader, Read},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::{Parser, Subcommand};
use input::{cannot_read, cannot_write, part_files, settle};
use program::Room;
use updraft::{
    Error,
    dataflow::{records_of, spill},
    prelude::*,
};

const RECORD: usize = 100;
const KEY: usize = 10;
/// Records made from one number of the source.
const AT_ONCE: u64 = 1024;

/// Generates, sorts and validates records of 100 bytes.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<What>,

    /// Records to generate.
    #[arg(long, global = true, value_name = "N", default_value_t = 1_000_000)]
    records: u64,

    /// What their keys follow from.
    #[arg(long, global = true, value_name = "SEED", default_value_t = 1)]
    seed: u64,

    /// Never or always compress what goes there (default: when it shrinks enough).
    #[arg(long, global = true, value_name = "BOOL")]
    compress: Option<bool>,

    #[command(flatten)]
    room: Room,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Writes records to part files in a folder.
    Generate {
        /// The folder.
        out: PathBuf,
    },
    /// Sorts the records of a folder's part files, or of one file, into part files of another.
    Sort {
        /// Where they are.
        from: PathBuf,
        /// Where they go.
        out: PathBuf,
    },
    /// Tells how many records there are, their checksum, and how many are out of order.
    Validate {
        /// Where they are.
        from: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut config = arguments.room.config();
    config.spill.compression = match arguments.compress {
        None => config.spill.compression,
        Some(true) => spill::Compression::Always,
        Some(false) => spill::Compression::Never,
    };
    updraft::exit(updraft::run(config, |env| match &arguments.command {
        Some(What::Generate { out }) => generate(env, &arguments, out),
        Some(What::Sort { from, out }) => sort(env, from, out),
        Some(What::Validate { from }) => print(env, from).map(drop),
        None => all(env, &arguments),
    }))
}

/// All three, in a folder that every worker of the job finds, and that is gone at the end.
fn all(env: &mut Env, arguments: &Arguments) -> Result<(), Error> {
    let Arguments { records, seed, .. } = arguments;
    let folder = std::env::temp_dir().join(format!("updraft-terasort-{records}-{seed}"));
    let (from, out) = (folder.join("generated"), folder.join("sorted"));
    let result = generate(env, arguments, &from)
        .and_then(|()| sort(env, &from, &out))
        .and_then(|()| Ok((print(env, &from)?, print(env, &out)?)));
    if env.worker() == 0 {
        let removed = fs::remove_dir_all(&folder);
        let (generated, sorted) = result?;
        removed.map_err(cannot_write(&folder))?;
        let same = (sorted.records, sorted.checksum) == (generated.records, generated.checksum);
        if !same || sorted.out_of_order > 0 {
            let reason = format!("what came out is not what was generated, in order: {sorted}");
            return Err(Error::Config { reason });
        }
        return Ok(());
    }
    result.map(drop)
}

fn generate(env: &mut Env, arguments: &Arguments, out: &Path) -> Result<(), Error> {
    let (records, seed) = (arguments.records, arguments.seed);
    let job = env
        .collection((0..records.div_ceil(AT_ONCE)).collect())
        .flat_map(move |block, out| {
            for number in block * AT_ONCE..records.min((block + 1) * AT_ONCE) {
                out.push(record(seed, number));
            }
        })
        .write_records(out);
    env.run(&job)?;
    settle(env)
}

fn sort(env: &mut Env, from: &Path, out: &Path) -> Result<(), Error> {
    let start = Instant::now();
    let job = records_of::<RECORD>(part_files(from)?)?
        .sort_by(key)
        .write_records(out);
    env.run(&job)?;
    settle(env)?;
    if env.worker() == 0 {
        println!("sorted in {:.3} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn key(record: &[u8; RECORD]) -> [u8; KEY] {
    let mut key = [0; KEY];
    key.copy_from_slice(&record[..KEY]);
    key
}

/// The record of that number: keys are evenly distributed over printable characters.
fn record(seed: u64, number: u64) -> [u8; RECORD] {
    let mut random = Random(seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93));
    let mut record = [b' '; RECORD];
    let (first, second) = (random.next(), random.next());
    let mut digits = u128::from(first) << 64 | u128::from(second);
    for byte in &mut record[..KEY] {
        *byte = b' ' + (digits % 95) as u8;
        digits /= 95;
    }
    for (place, byte) in record[12..44].iter_mut().rev().enumerate() {
        *byte = match place {
            0..16 => b"0123456789ABCDEF"[(number >> (4 * place) & 15) as usize],
            _ => b'0',
        };
    }
    let letters = random.next();
    for (place, byte) in record[46..98].iter_mut().enumerate() {
        *byte = b'A' + ((letters >> (place / 4)) & 15) as u8;
    }
    record[98..].copy_from_slice(b"\r\n");
    record
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// What `valsort` of the benchmark tells of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Found {
    records: u64,
    /// The sum of the CRC-32 of all records.
    checksum: u64,
    /// Records that have the key of the one before.
    duplicates: u64,
    out_of_order: u64,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            records,
            checksum,
            duplicates,
            out_of_order,
        } = self;
        write!(
            f,
            "{records} records, checksum {checksum:x}, {duplicates} duplicate keys, {out_of_order} out of order"
        )
    }
}

/// Validates and prints, on the first worker.
fn print(env: &Env, from: &Path) -> Result<Found, Error> {
    if env.worker() != 0 {
        return Ok(Found::default());
    }
    let found = validate(&part_files(from)?)?;
    println!("{}: {found}", from.display());
    Ok(found)
}

fn validate(files: &[PathBuf]) -> Result<Found, Error> {
    let mut found = Found::default();
    let mut last = [0; KEY];
    for path in files {
        let file = File::open(path).map_err(cannot_read(path))?;
        let bytes = file.metadata().map_err(cannot_read(path))?.len();
        let mut reader = BufReader::with_capacity(1 << 20, file);
        for _ in 0..bytes / RECORD as u64 {
            let mut record = [0; RECORD];
            reader.read_exact(&mut record).map_err(cannot_read(path))?;
            let key = key(&record);
            found.records += 1;
            found.checksum += u64::from(crc32fast::hash(&record));
            found.duplicates += u64::from(found.records > 1 && key == last);
            found.out_of_order += u64::from(key < last);
            last = key;
        }
    }
    Ok(found)
}
