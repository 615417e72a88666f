//! Operations that go by nodes: within each node, where memory is shared, among one member of each, and within each
//! node again.
//!
//! Each node is led by its first member.

use std::rc::Rc;

use crate::{Element, Error, Group, op::Op};

/// The groups of such operations.
pub(crate) struct Levels {
    /// The members on our node.
    node: Group,
    /// The leaders, if we are one.
    leaders: Option<Group>,
    /// The place of each node among the leaders, and of each member on its node.
    places: Vec<(usize, usize)>,
    /// Our number in the whole group.
    me: usize,
}

impl Group {
    /// The groups of operations that go by nodes. They are made once; all members have to come here together.
    pub(crate) async fn levels(&self) -> Result<Rc<Levels>, Error> {
        if let Some(levels) = &*self.levels.borrow() {
            return Ok(levels.clone());
        }
        let levels = Rc::new(Box::pin(Levels::make(self)).await?);
        *self.levels.borrow_mut() = Some(levels.clone());
        Ok(levels)
    }
}

impl Levels {
    async fn make(group: &Group) -> Result<Self, Error> {
        let (me, nodes) = (group.rank(), &group.nodes);
        let whole = Some(group.fate.clone());
        let node = group
            .split_as_part(Some(nodes[me] as u64), me as i64, whole.clone())
            .await?;
        let leads = (nodes[me] == me).then_some(0);
        let leaders = group.split_as_part(leads, me as i64, whole).await?;
        let firsts: Vec<usize> = (0..nodes.len())
            .filter(|&member| nodes[member] == member)
            .collect();
        let places = (0..nodes.len()).map(|member| {
            let node = firsts.iter().position(|&first| first == nodes[member]);
            let before = nodes[..member]
                .iter()
                .filter(|&&node| node == nodes[member])
                .count();
            (node.unwrap_or(0), before)
        });
        Ok(Self {
            node: node.ok_or_else(|| group.argument("split", "it gave no group"))?,
            leaders,
            places: places.collect(),
            me,
        })
    }

    pub(crate) async fn barrier(&self) -> Result<(), Error> {
        Box::pin(async {
            self.node.barrier().await?;
            if let Some(leaders) = &self.leaders {
                leaders.barrier().await?;
            }
            self.node.barrier().await
        })
        .await
    }

    pub(crate) async fn broadcast<T: Element>(
        &self,
        root: usize,
        data: &mut [T],
    ) -> Result<(), Error> {
        Box::pin(async {
            let (node, place) = self.places[root];
            let is_here = self.places[self.me].0 == node;
            if is_here {
                self.node.broadcast(place, &mut *data).await?;
            }
            if let Some(leaders) = &self.leaders {
                leaders.broadcast(node, &mut *data).await?;
            }
            if !is_here {
                self.node.broadcast(0, &mut *data).await?;
            }
            Ok(())
        })
        .await
    }

    pub(crate) async fn reduce<T: Element, O: Op<T>>(
        &self,
        root: usize,
        data: &mut [T],
        op: &O,
    ) -> Result<(), Error> {
        Box::pin(async {
            let (node, place) = self.places[root];
            self.node.reduce(0, &mut *data, op.clone()).await?;
            if let Some(leaders) = &self.leaders {
                leaders.reduce(node, &mut *data, op.clone()).await?;
            }
            if self.places[self.me].0 == node && place != 0 {
                // From the leader of its node to the root.
                self.node.broadcast(0, data).await?;
            }
            Ok(())
        })
        .await
    }

    pub(crate) async fn all_reduce<T: Element, O: Op<T>>(
        &self,
        data: &mut [T],
        op: &O,
    ) -> Result<(), Error> {
        Box::pin(async {
            self.node.reduce(0, &mut *data, op.clone()).await?;
            if let Some(leaders) = &self.leaders {
                leaders.all_reduce(&mut *data, op.clone()).await?;
            }
            self.node.broadcast(0, data).await
        })
        .await
    }
}
