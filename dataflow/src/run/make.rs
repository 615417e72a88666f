//! How the tasks of a run are made.

use std::{rc::Rc, sync::Arc};

use collectives::AllGather;
use transport::Rank;

use super::{Counting, Ends, Instance, Run, Site, tag};
use crate::{
    Error,
    graph::{EdgeId, Graph, Schedule, Vertex},
    stage::{EVERY_SLOT, Handoff, Place, Slot, Wiring},
};

/// The most of its share of the arena that one channel's window takes, and the least.
const WINDOW_BYTES_MAX: u64 = 1 << 20;

const WINDOW_BYTES_MIN: u64 = 4 << 10;

impl Run {
    /// Makes the instances here of the tasks that are needed.
    pub(super) fn make_tasks(&mut self, needed: &[bool]) -> Result<(), Error> {
        let (graph, schedule) = (self.graph.clone(), self.schedule.clone());
        self.begin_alignment(&graph, &schedule, needed);
        let place = Place {
            handoff: self.handoff.clone(),
            alignment: self.alignment.clone(),
            ..place(
                &graph,
                &schedule,
                needed,
                self.number,
                &self.site,
                self.at_a_time,
            )?
        };
        let mut ends: Vec<_> = graph.vertices.iter().map(|_| Ends::default()).collect();
        let mut tasks = Vec::new();
        let goes_on = graph.going_on();
        for (vertex, Vertex { node, inputs, .. }) in graph.vertices.iter().enumerate().rev() {
            if node.outlet.is_some() || !needed[vertex] {
                continue;
            }
            let instances = schedule.instances(&node.placement);
            let wiring = Rc::new(wiring(&graph, vertex, &schedule, needed, &goes_on));
            for (slot, instance) in instances.on(self.rank).enumerate() {
                for (port, &edge) in inputs.iter().enumerate() {
                    ends[edge].readers.push((tasks.len(), port));
                }
                ends[vertex].writers.push(tasks.len());
                for (_, outlet) in &wiring.outlets {
                    ends[usize::from(outlet.edge)].writers.push(tasks.len());
                }
                let counted = self.counted.entry((vertex, instance));
                let counting = counted.or_insert_with(|| Counting::new(&self.site.counters).into());
                let counting = counting.clone();
                let place = Place {
                    instance,
                    instances: instances.number(),
                    wiring: wiring.clone(),
                    counters: counting.clone(),
                    ..place.clone()
                };
                let task = (node.build)(&place).map_err(|error| place.named(error))?;
                tasks.push(Instance {
                    task,
                    vertex,
                    slot: slot as Slot,
                    place,
                    counting,
                    is_gone: false,
                    open: wiring.senders.clone(),
                    told: false,
                    done: false,
                });
            }
        }
        (self.tasks, self.ends) = (tasks, ends);
        (self.clock, self.is_live, self._waker) = (place.clock, place.is_live, place.waker);
        if self.is_ending {
            self.end_sources();
        }
        Ok(())
    }
}

/// Whether the numbers of tasks and of their instances fit in a tag.
pub(super) fn check_size(graph: &Graph, schedule: &Schedule) -> Result<(), Error> {
    if graph.vertices.len() > usize::from(EdgeId::MAX) {
        return Err(Error::GraphTooLarge {
            what: format!("{} tasks", graph.vertices.len()),
            limit: EdgeId::MAX.into(),
        });
    }
    for vertex in &graph.vertices {
        let instances = schedule.instances(&vertex.node.placement);
        if instances.on_one_rank() > u32::from(EVERY_SLOT) {
            return Err(Error::GraphTooLarge {
                what: format!(
                    "{} instances of {} on a rank",
                    instances.on_one_rank(),
                    vertex.node.name
                ),
                limit: EVERY_SLOT.into(),
            });
        }
    }
    Ok(())
}

/// What has each rank learn the plans of all.
pub(super) fn plans(number: u32, rank: Rank, size: u32, is_by_hub: bool) -> AllGather {
    let tag = tag::of_run(number, tag::PLAN);
    match is_by_hub {
        true => AllGather::by_hub(tag, rank, size),
        false => AllGather::new(tag, size),
    }
}

/// What all tasks of a run have in common on a rank.
fn place(
    graph: &Graph,
    schedule: &Schedule,
    needed: &[bool],
    run: u32,
    site: &Site,
    at_a_time: u64,
) -> Result<Place, Error> {
    let (rank, size, capacity) = {
        let fabric = site.fabric.borrow();
        (fabric.rank(), fabric.size(), fabric.arena().capacity())
    };
    // Half of the arena for what we send, the other half for what comes from other nodes.
    let channels = graph.channels(schedule, needed) * at_a_time;
    let share = capacity / 2 / channels;
    if share < WINDOW_BYTES_MIN {
        return Err(Error::ArenaTooSmall {
            bytes: capacity,
            channels,
            needed: 2 * channels * WINDOW_BYTES_MIN,
        });
    }
    let can_be_woken = graph.is_live() || !graph.outside.stops.is_empty();
    let waker = if can_be_woken {
        site.fabric.borrow().waker()?.map(Arc::new)
    } else {
        None
    };
    if let Some(waker) = &waker {
        graph
            .outside
            .stops
            .iter()
            .for_each(|stop| stop.wakes(waker));
    }
    Ok(Place {
        fabric: site.fabric.clone(),
        rank,
        size,
        executors: site.executors,
        ledger: site.ledger.clone(),
        counters: site.counters.clone(),
        window_bytes: share.min(WINDOW_BYTES_MAX) as usize,
        batch_bytes_max: share as usize,
        run,
        instance: 0,
        instances: 0,
        wiring: Rc::default(),
        spill: site.spill.clone(),
        handoff: Handoff::default(),
        alignment: Rc::default(),
        clock: Rc::default(),
        is_live: graph.is_live(),
        waker,
        helpers: site.helpers.clone(),
    })
}

/// What a task of the graph is connected with.
fn wiring(
    graph: &Graph,
    number: usize,
    schedule: &Schedule,
    needed: &[bool],
    goes_on: &[bool],
) -> Wiring {
    let vertex = &graph.vertices[number];
    let senders = |&edge: &usize| {
        if !needed[edge] {
            return 0;
        }
        let senders = schedule.instances(&graph.vertices[edge].node.placement);
        senders.number()
    };
    let readers = vertex.readers.as_ref().map_or(Vec::new(), |placement| {
        let readers = schedule.instances(placement);
        let place = |instance| (readers.rank_of(instance), readers.slot_of(instance) as Slot);
        (0..readers.number()).map(place).collect()
    });
    Wiring {
        name: vertex.node.name.clone(),
        senders: vertex.inputs.iter().map(senders).collect(),
        endless: vertex.inputs.iter().map(|&edge| goes_on[edge]).collect(),
        may_wait: graph.may_wait(number),
        edge: number as EdgeId,
        readers,
        in_place: graph.is_in_place(number, Some(schedule)),
        reading: graph
            .readers(number)
            .filter(|&(reader, _)| needed[reader])
            .count() as u32,
        outlets: graph
            .outlets(number)
            .filter(|&outlet| needed[outlet])
            .map(|outlet| {
                let wiring = wiring(graph, outlet, schedule, needed, goes_on);
                (graph.vertices[outlet].node.clone(), Rc::new(wiring))
            })
            .collect(),
    }
}
