//! What a fuzzer may call: the door through which the words of workers and coordinators come.

use super::protocol::{Message, Order, Report, TEXT_BYTES_MAX};

/// Takes `bytes` for the frames that follow each other on a connection, to the coordinator and to a worker. Those that are read
/// say one thing: written again, they are what they were, but for words that are too many.
///
/// # Panics
///
/// If there is a bug.
pub fn frames(bytes: &[u8]) {
    walk::<Report>(bytes);
    walk::<Order>(bytes);
}

fn walk<M: Message>(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        let before = rest;
        let Ok(Some(message)) = M::read(&mut rest) else {
            return;
        };
        let read = &before[..before.len() - rest.len()];
        let frame = message.frame().expect("it was not too large");
        assert!(frame == read || read.len() > TEXT_BYTES_MAX, "{read:?}");
    }
}

#[cfg(test)]
#[path = "../../../tests/support/seeds.rs"]
mod seeds;

#[cfg(test)]
mod tests {
    use super::{seeds::assert_seed, *};
    use crate::{coordinator::Entry, progress::Amount};

    #[test]
    fn the_seeds_are_what_workers_and_coordinators_say() {
        let entry = Entry {
            host: "machine".into(),
            cores: 2,
            memory_bytes: 1 << 30,
            attributes: vec!["gpu".into(), "rack=3".into()],
            ..Entry::at(["node/name/127.0.0.1:80"])
        };
        let words = || "for a reason".to_owned();
        let reports = [
            Report::Register(entry.clone()),
            Report::Progress(Amount {
                records: 1,
                bytes: 2,
                bytes_total: 3,
                rounds: 4,
                measure: Some(0.5),
            }),
            Report::FellBack { reason: words() },
            Report::Cancel { reason: words() },
            Report::Failed { message: words() },
            Report::Finished { summary: words() },
        ];
        let reports = reports.map(|report| report.frame().unwrap()).concat();
        assert_seed("coordinator", "reports", &reports);
        frames(&reports);
        let orders = [
            Order::Book(vec![entry.clone(), entry]),
            Order::Cancel {
                worker: 1,
                reason: words(),
            },
            Order::Abort { reason: words() },
        ];
        let orders = orders.map(|order| order.frame().unwrap()).concat();
        assert_seed("coordinator", "orders", &orders);
        frames(&orders);
    }
}
