//! What of a graph has to be done, where readers have kept what a task gave in an earlier run.
//!
//! When such a run begins, each rank looks for the parts that its instances have kept, and tells the others with its plan what
//! it has found. When it knows of all, each comes to the same conclusion: which tasks are needed. The others, and those that
//! nothing but these need, are not made at all.

use std::sync::Arc;

use transport::{Buffer, Rank};

use crate::{
    Error,
    graph::{Graph, Schedule},
};

/// What the readers of a task keep of its output.
pub(crate) trait Kept: Send + Sync {
    /// Begins to look for the parts of these instances, of so many.
    fn look(&self, instances: Vec<u32>, of: u32) -> Box<dyn Look>;

    /// Whether the task is needed, by what all ranks have found, in their order.
    ///
    /// # Errors
    ///
    /// Why what was found can neither be used nor be done again.
    fn is_needed(&self, found: &[Vec<u64>]) -> Result<bool, Error>;
}

/// A rank's look for what its instances have kept. What was found stays there as long as this does.
pub(crate) trait Look {
    /// Goes on; what was found, once that is known.
    ///
    /// # Errors
    ///
    /// What the medium says.
    fn poll(&mut self) -> Result<Option<Vec<u64>>, Error>;
}

/// What is to be known before the tasks of a run can be made.
pub(crate) struct Demand {
    pub(crate) looks: Vec<Looking>,
    /// Whether what was found here was told.
    pub(crate) told: bool,
    /// What has come for tasks that are not made yet.
    pub(crate) early: Vec<(Rank, Buffer)>,
}

/// A look, and what it has found.
pub(crate) struct Looking {
    look: Box<dyn Look>,
    found: Option<Vec<u64>>,
}

impl Demand {
    /// Begins to look; none if nothing of the graph is kept.
    pub(crate) fn new(graph: &Graph, schedule: &Schedule, rank: Rank) -> Option<Self> {
        let look = |(vertex, kept): (usize, &Arc<dyn Kept>)| {
            let readers = graph.vertices[vertex].readers.as_ref()?;
            let instances = schedule.instances(readers);
            let look = kept.look(instances.on(rank).collect(), instances.number());
            Some(Looking { look, found: None })
        };
        let looks: Vec<_> = graph.kept().filter_map(look).collect();
        (!looks.is_empty()).then_some(Self {
            looks,
            told: false,
            early: Vec::new(),
        })
    }

    /// Goes on looking; what to tell the others, once all is known.
    pub(crate) fn poll(&mut self) -> Result<Option<Vec<u8>>, Error> {
        for Looking { look, found } in &mut self.looks {
            if found.is_none() {
                *found = look.poll()?;
                if found.is_none() {
                    return Ok(None);
                }
            }
        }
        let mut bytes = Vec::new();
        for found in self.looks.iter().filter_map(|one| one.found.as_ref()) {
            bytes.extend((found.len() as u64).to_le_bytes());
            bytes.extend(found.iter().flat_map(|word| word.to_le_bytes()));
        }
        Ok(Some(bytes))
    }

    /// Which tasks are needed, by what each rank has told.
    ///
    /// # Errors
    ///
    /// What those who keep say, or [`Error::Unexpected`].
    pub(crate) fn needed(
        &self,
        graph: &Graph,
        told: &[Vec<u8>],
        tag: u64,
    ) -> Result<Vec<bool>, Error> {
        let mut by_rank = Vec::new();
        for (peer, bytes) in (0..).zip(told) {
            let found = parse(bytes, self.looks.len());
            by_rank.push(found.ok_or(Error::Unexpected { peer, tag })?);
        }
        let mut missing = vec![false; graph.vertices.len()];
        let read = |&(vertex, _): &(usize, _)| graph.vertices[vertex].readers.is_some();
        for (index, (vertex, kept)) in graph.kept().filter(read).enumerate() {
            let found: Vec<_> = by_rank
                .iter_mut()
                .map(|found| std::mem::take(&mut found[index]))
                .collect();
            missing[vertex] = kept.is_needed(&found)?;
        }
        Ok(graph.needed(|vertex| missing[vertex]))
    }
}

/// What a rank has found of each of so many.
fn parse(bytes: &[u8], looks: usize) -> Option<Vec<Vec<u64>>> {
    let (words, []) = bytes.as_chunks::<8>() else {
        return None;
    };
    let mut words = words.iter().map(|&word| u64::from_le_bytes(word));
    let mut found = Vec::new();
    for _ in 0..looks {
        let len = words.next()?;
        let some: Vec<u64> = words.by_ref().take(usize::try_from(len).ok()?).collect();
        if some.len() as u64 != len {
            return None;
        }
        found.push(some);
    }
    words.next().is_none().then_some(found)
}
