//! What a fuzzer may call: the door through which the bytes of other processes come.

use std::fmt::Debug;

use transport::{Arena, Buffer, Ledger};

use crate::{Record, batch::Batch, record};

record! {
    #[derive(Debug)]
    struct Struct {
        name: String,
        numbers: Vec<u32>,
        nested: Option<(u8, Vec<String>)>,
        valid: bool,
    }
}

thread_local! {
    static ARENA: Arena = Arena::new(&Ledger::new(1 << 20), 1 << 20).expect("there is memory");
}

/// Opens `bytes` as a batch of records of many types. Each refuses them, or gives records that can be read.
///
/// # Panics
///
/// If there is a bug, or no memory.
pub fn batch(bytes: &[u8]) {
    let Some(mut loan) = ARENA.with(|arena| arena.loan(bytes.len()).ok().flatten()) else {
        return; // No batch is that large.
    };
    loan.copy_from_slice(bytes);
    let batch = Buffer::inline(0, bytes).unwrap_or_else(|| loan.freeze());
    walk::<u8>(&batch);
    walk::<(u128, i16)>(&batch);
    walk::<(bool, char, f32, f64)>(&batch);
    walk::<String>(&batch);
    walk::<(String, u64)>(&batch);
    walk::<Vec<u8>>(&batch);
    walk::<Vec<String>>(&batch);
    walk::<Vec<Vec<u64>>>(&batch);
    walk::<Option<String>>(&batch);
    walk::<Option<Option<u64>>>(&batch);
    walk::<((u8, (String, u16)), Vec<(char, Option<Vec<u8>>)>)>(&batch);
    walk::<Struct>(&batch);
    walk::<(i8, Vec<Struct>)>(&batch);
}

/// Visits every byte of every record, if it is a batch of `T`.
fn walk<T: Record + Debug>(buffer: &Buffer) {
    if let Ok(batch) = Batch::<T>::checked(0, buffer.clone()) {
        for view in batch.views(0) {
            let record = T::own(view);
            assert!(!format!("{record:?}").is_empty());
        }
    }
}

#[cfg(test)]
#[path = "../../tests/support/seeds.rs"]
mod seeds;

#[cfg(test)]
mod tests {
    use super::{seeds::assert_seed, *};
    use crate::{
        Encode,
        batch::{Builder, Memory, Shape},
    };

    /// The fuzzer starts from a batch of `records`, and reads it as one of these.
    fn assert_batch<E: Encode>(name: &str, records: &[E]) {
        let mut builder = Builder::new(Memory::own(1 << 10), Shape::UNKNOWN);
        for record in records {
            builder.push(record).unwrap();
        }
        let page = builder.into_page();
        let bytes = page.bytes();
        assert_seed("batch", name, bytes);
        let buffer = ARENA.with(|arena| {
            let mut loan = arena.loan(bytes.len()).unwrap().unwrap();
            loan.copy_from_slice(bytes);
            loan.freeze()
        });
        let read = Batch::<E::Record>::checked(0, buffer).unwrap();
        assert_eq!(read.len(), records.len());
        batch(bytes);
    }

    #[test]
    fn the_seeds_are_batches_of_records() {
        let text = || "several words".to_owned();
        assert_batch("bytes", &[1u8, 2, 3]);
        assert_batch("texts", &[text(), String::new()]);
        assert_batch("pairs", &[(text(), 7u64), (String::new(), u64::MAX)]);
        assert_batch("lists", &[vec![text(), text()], vec![]]);
        assert_batch("options", &[Some(text()), None]);
        let record = Struct {
            name: text(),
            numbers: vec![1, 2, 3],
            nested: Some((4, vec![text()])),
            valid: true,
        };
        assert_batch("structs", &[record]);
    }
}
