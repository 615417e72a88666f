//! What a coordinator and its clients promise each other.

use std::{
    io::{Read, Write},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use transport::Secret;

use super::{
    Client, Coordinator, Entry, Error, Event, Listen, Membership,
    stream::{Address, Stream},
};
use crate::progress::Amount;

/// Longer than anything here should take.
const PATIENCE: Duration = Duration::from_secs(8);

/// A coordinator and what it has told.
struct Job {
    coordinator: Coordinator,
    events: Receiver<Event>,
    workers: u32,
}

impl Job {
    fn start(workers: u32) -> Self {
        Self::start_on(&Listen::Local, workers)
    }

    fn start_on(listen: &Listen, workers: u32) -> Self {
        let (sender, events) = mpsc::channel();
        let tell = move |event| {
            let _ = sender.send(event);
        };
        Self {
            coordinator: Coordinator::start_on(listen, workers, tell).unwrap(),
            events,
            workers,
        }
    }

    fn membership(&self, worker: u32) -> Membership {
        Membership {
            worker,
            workers: self.workers,
            coordinator: self.coordinator.address(),
            secret: self.coordinator.secret().clone(),
        }
    }

    fn connect(&self, worker: u32) -> Client {
        Client::connect(&self.membership(worker)).unwrap()
    }

    /// Workers that have all registered, as `w0`, `w1` and so on.
    fn registered(&self) -> Vec<Client> {
        let clients: Vec<Client> = (0..self.workers)
            .map(|worker| self.connect(worker))
            .collect();
        thread::scope(|scope| {
            for (worker, client) in clients.iter().enumerate() {
                scope.spawn(move || client.register(&Entry::at([format!("w{worker}")])).unwrap());
            }
        });
        for _ in &clients {
            assert!(matches!(self.next(), Event::Registered { .. }));
        }
        clients
    }

    fn stranger(&self) -> Stream {
        let address: Address = self.coordinator.address().parse().unwrap();
        address.connect().unwrap()
    }

    fn next(&self) -> Event {
        self.events.recv_timeout(PATIENCE).unwrap()
    }

    fn refusal(&self) -> String {
        match self.next() {
            Event::Refused { reason } => reason,
            event => panic!("{event:?} is not a refusal"),
        }
    }
}

fn everywhere() -> [Listen; 3] {
    let tcp = |host: &str| Listen::Tcp {
        host: host.to_owned(),
        port: 0,
    };
    [Listen::Local, tcp("127.0.0.1"), tcp("[::1]")]
}

/// What the watch of `client` was told, once it is.
fn watched(client: &Client) -> Receiver<String> {
    let (sender, reasons) = mpsc::channel();
    client
        .watch(
            |_, _| panic!("nobody cancels"),
            move |reason| sender.send(reason).unwrap(),
        )
        .unwrap();
    reasons
}

#[test]
fn the_first_worker_that_falls_back_to_tcp_is_heard_and_no_other() {
    let job = Job::start(2);
    let clients = job.registered();
    clients[1].fell_back("no device").unwrap();
    let first = Event::FellBack {
        worker: 1,
        reason: "no device".to_owned(),
    };
    assert_eq!(job.next(), first);
    for client in &clients {
        client.fell_back("no library").unwrap();
    }
    clients[1].finished("").unwrap();
    assert!(matches!(job.next(), Event::Finished { worker: 1, .. }));
    clients[0].finished("").unwrap();
    assert!(matches!(job.next(), Event::Finished { worker: 0, .. }));
}

#[test]
fn the_first_worker_that_cancels_counts_for_all() {
    let job = Job::start(3);
    let clients = job.registered();
    let (sender, heard) = mpsc::channel();
    for client in &clients {
        let sender = sender.clone();
        let on_cancel =
            move |worker, reason: &str| sender.send((worker, reason.to_owned())).unwrap();
        client.watch(on_cancel, |_| ()).unwrap();
    }
    clients[1].cancel("too long").unwrap();
    let reason = "too long".to_owned();
    let worker = 1;
    assert_eq!(job.next(), Event::Cancelled { worker, reason });
    clients[0].cancel("no more").unwrap();
    clients[1].cancel("far too long").unwrap();
    for _ in &clients {
        let told = heard.recv_timeout(PATIENCE).unwrap();
        assert_eq!(told, (1, "too long".to_owned()));
    }
    let nothing_else = job.events.recv_timeout(Duration::from_millis(20));
    assert_eq!(nothing_else, Err(RecvTimeoutError::Timeout));
    assert!(heard.try_recv().is_err(), "it is told once");
}

#[test]
fn every_worker_gets_what_all_say_of_themselves() {
    for listen in everywhere() {
        let job = Job::start_on(&listen, 2);
        let (first, second) = (job.connect(0), job.connect(1));
        let gpu = Entry {
            host: "one".to_owned(),
            cores: 8,
            memory_bytes: 1 << 33,
            attributes: vec!["gpu".to_owned()],
            ..Entry::at(["a", "b"])
        };
        let book = thread::scope(|scope| {
            let waiting = scope.spawn(|| first.register(&gpu));
            let book = second.register(&Entry::at(["c"])).unwrap();
            assert_eq!(waiting.join().unwrap().unwrap(), book);
            book
        });
        assert_eq!(book, [gpu, Entry::at(["c"])]);
    }
}

#[test]
fn a_worker_knows_from_which_address_it_reached_its_coordinator() {
    let reached = everywhere().map(|listen| {
        let client = Job::start_on(&listen, 1).connect(0);
        client
            .local_address()
            .map(|address| address.ip().to_string())
    });
    assert_eq!(
        reached.each_ref().map(Option::as_deref),
        [None, Some("127.0.0.1"), Some("::1")]
    );
}

/// Nothing but so many records.
fn read(records: u64) -> Amount {
    Amount {
        records,
        ..Amount::default()
    }
}

#[test]
fn reports_arrive_in_the_order_they_were_made() {
    let done = Amount {
        records: 1,
        bytes: 2,
        bytes_total: 3,
        rounds: 4,
        measure: Some(0.5),
    };
    let job = Job::start(1);
    let [client] = &job.registered()[..] else {
        panic!("one worker");
    };
    client.progress(&done).unwrap();
    client.failed("out of luck").unwrap();
    client.finished("after all").unwrap();
    assert_eq!(
        [job.next(), job.next(), job.next()],
        [
            Event::Progress {
                worker: 0,
                amount: done
            },
            Event::Failed {
                worker: 0,
                message: "out of luck".to_owned()
            },
            Event::Finished {
                worker: 0,
                summary: "after all".to_owned()
            },
        ]
    );
}

#[test]
fn an_abort_reaches_those_who_work_those_who_wait_and_those_who_come_late() {
    let job = Job::start(3);
    let waiting = job.connect(0);
    let working = job.connect(1);
    let reasons = watched(&working);
    thread::scope(|scope| {
        let registered = scope.spawn(|| waiting.register(&Entry::default()));
        assert_eq!(job.next(), Event::Registered { worker: 0 });
        while job.coordinator.seats_taken() < 2 {
            thread::yield_now();
        }
        job.coordinator.abort("enough");
        let error = registered.join().unwrap().unwrap_err();
        assert!(error.to_string().ends_with("stop: enough"), "{error}");
    });
    assert_eq!(reasons.recv_timeout(PATIENCE).unwrap(), "enough");
    let late = job.connect(2).register(&Entry::default()).unwrap_err();
    assert!(late.to_string().ends_with("stop: enough"), "{late}");
}

#[test]
fn a_worker_whose_stream_ends_without_a_word_is_lost() {
    let job = Job::start(2);
    let mut clients = job.registered();
    drop(clients.pop());
    assert_eq!(job.next(), Event::Lost { worker: 1 });
    clients[0].finished("").unwrap();
    drop(clients);
    let summary = String::new();
    assert_eq!(job.next(), Event::Finished { worker: 0, summary });
    let nothing_else = job.events.recv_timeout(Duration::from_millis(50));
    assert_eq!(nothing_else, Err(RecvTimeoutError::Timeout));
}

#[test]
fn the_death_of_the_coordinator_is_noticed_and_the_end_of_a_client_is_not_mistaken_for_it() {
    let job = Job::start(2);
    let mut clients = job.registered();
    let ended = watched(&clients.pop().unwrap());
    assert!(ended.recv_timeout(PATIENCE).is_err(), "its end was dropped");
    let reasons = watched(&clients[0]);
    drop(job.coordinator);
    let reason = reasons.recv_timeout(PATIENCE).unwrap();
    assert_eq!(reason, "the launcher is gone");
}

#[test]
fn a_worker_that_waits_for_the_others_learns_that_the_coordinator_died() {
    let job = Job::start(2);
    let client = job.connect(0);
    thread::scope(|scope| {
        let registered = scope.spawn(|| client.register(&Entry::default()));
        assert_eq!(job.next(), Event::Registered { worker: 0 });
        drop(job.coordinator);
        let error = registered.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Gone { worker: 0, .. }), "{error}");
    });
}

#[test]
fn nothing_is_said_to_a_worker_after_an_abort() {
    let job = Job::start(2);
    let first = job.connect(0);
    thread::scope(|scope| {
        let registered = scope.spawn(|| first.register(&Entry::default()));
        assert_eq!(job.next(), Event::Registered { worker: 0 });
        job.coordinator.abort("enough");
        assert!(registered.join().unwrap().is_err());
    });
    let second = job.connect(1);
    assert!(second.register(&Entry::default()).is_err());
    assert_eq!(job.next(), Event::Registered { worker: 1 });
    let reasons = watched(&first);
    drop(job.coordinator);
    let reason = reasons.recv_timeout(PATIENCE).unwrap();
    assert_eq!(reason, "the launcher is gone", "there was no book");
}

#[test]
fn a_coordinator_settles_once_all_is_heard_and_not_before() {
    let job = Job::start(2);
    let clients = job.registered();
    assert!(!job.coordinator.settle(Duration::from_millis(20)));
    clients[0].failed("out of luck").unwrap();
    drop(clients);
    assert!(job.coordinator.settle(PATIENCE));
    let mut told: Vec<Event> = job.events.try_iter().collect();
    told.sort_by_key(|event| matches!(event, Event::Lost { .. }));
    let message = "out of luck".to_owned();
    assert_eq!(
        told,
        [
            Event::Failed { worker: 0, message },
            Event::Lost { worker: 1 }
        ]
    );
}

#[test]
fn who_does_not_know_the_secret_is_refused_and_refuses() {
    let job = Job::start(1);
    let mut membership = job.membership(0);
    membership.secret = Secret::random().unwrap();
    let error = Client::connect(&membership).unwrap_err();
    assert!(matches!(error, Error::Untrusted { .. }), "{error}");
    job.refusal();
    job.registered();
}

#[test]
fn a_second_worker_of_a_number_is_refused_and_the_first_goes_on() {
    let job = Job::start(1);
    let clients = job.registered();
    let error = job.connect(0).register(&Entry::default()).unwrap_err();
    assert!(error.to_string().contains("worker 0"), "{error}");
    assert!(job.refusal().contains("there already"));
    clients[0].progress(&read(1)).unwrap();
    assert!(matches!(job.next(), Event::Progress { amount, .. } if amount == read(1)));
}

#[test]
fn a_worker_beyond_the_last_is_refused() {
    let job = Job::start(2);
    let error = job.connect(2).register(&Entry::default()).unwrap_err();
    assert!(matches!(error, Error::Aborted { .. }), "{error}");
    assert!(job.refusal().contains("2 workers"));
}

#[test]
fn who_speaks_another_protocol_is_refused_at_once() {
    for listen in everywhere() {
        let job = Job::start_on(&listen, 1);
        let mut stranger = job.stranger();
        stranger.write_all(&[b'x'; 64]).unwrap();
        let mut answer = Vec::new();
        // The end may come as a reset, for half of what we sent was not read.
        let _ = stranger.read_to_end(&mut answer);
        assert!(answer.is_empty());
        assert!(job.refusal().contains("does not speak"));
    }
}

#[test]
fn who_stalls_holds_nobody_up_and_is_refused_in_time() {
    let job = Job::start(1);
    let started = Instant::now();
    let mut stranger = job.stranger();
    stranger.write_all(b"updraft").unwrap();
    let client = job.connect(0);
    client.register(&Entry::default()).unwrap();
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(job.next(), Event::Registered { worker: 0 });
    job.refusal();
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn a_worker_that_breaks_the_protocol_is_lost_and_the_others_go_on() {
    let job = Job::start(2);
    let clients = job.registered();
    clients[0].send_bytes(&[2, 0, 0, 0, 2, 9]);
    assert!(job.refusal().contains("worker 0 broke the protocol"));
    assert_eq!(job.next(), Event::Lost { worker: 0 });
    clients[1].progress(&read(4)).unwrap();
    assert!(matches!(job.next(), Event::Progress { worker: 1, .. }));
}

#[test]
fn a_coordinator_that_reads_nothing_costs_a_worker_no_time() {
    let (sender, gate) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let stuck = move |_| {
        let _ = gate.lock().unwrap().recv();
    };
    let coordinator = Coordinator::start(1, stuck).unwrap();
    let client = Client::connect(&Membership {
        worker: 0,
        workers: 1,
        coordinator: coordinator.address(),
        secret: coordinator.secret().clone(),
    })
    .unwrap();
    let started = Instant::now();
    for records in 0..20_000 {
        client.progress(&read(records)).unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(2));
    drop(sender);
}

#[test]
fn an_address_where_nobody_listens_is_named() {
    let mut membership = Job::start(1).membership(0);
    membership.coordinator = "unix:updraft-nobody".to_owned();
    let error = Client::connect(&membership).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("worker 0") && text.contains("unix:updraft-nobody"));
}
