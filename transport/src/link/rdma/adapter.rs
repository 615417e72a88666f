//! What all RDMA links of a rank share: one device, one registration of the arena, one queue of receives and one
//! of completions.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    ffi::c_int,
    io,
    net::Ipv6Addr,
    os::fd::RawFd,
    ptr::{self, NonNull},
    rc::Rc,
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit};

use super::endpoint::{Endpoint, Wire};
use crate::{
    Arena, Loan, Loss, Rank, Unusable,
    remote::Access,
    secret::random,
    verbs::{
        AsyncEvent, Channel, Context, Cq, Devices, Mr, Pd, Qp, Srq, VerbError,
        sys::{self, ibv_ah_attr, ibv_global_route, ibv_qp_attr, ibv_recv_wr, ibv_sge, ibv_wc},
    },
};

/// Bytes of a payload that travels with its header, at most; larger ones are fetched by their receiver.
pub(super) const EAGER_BYTES: usize = 4096;
/// Bytes of a packet that are gathered from several messages, at most.
pub(super) const STAGED_BYTES: usize = 256;
/// A receive slot has room for a gathered part and an eager payload.
const SLOT_BYTES: usize = STAGED_BYTES + EAGER_BYTES;
/// Receive slots for packets with messages, for each link. With those below they fill a block of 256 KiB.
pub(super) const DATA_SLOTS: u32 = 52;
/// Receive slots for packets without.
pub(super) const CONTROL_SLOTS: u32 = 8;
const LINK_SLOTS: u32 = DATA_SLOTS + CONTROL_SLOTS;
/// Requests of a link that are on their way, at most.
pub(super) const REQUESTS: u32 = 128;
/// Completions taken from the queue at once.
const COMPLETIONS: usize = 32;
/// Slots that are posted again together.
const REPOSTED_AT_ONCE: usize = 16;
/// Reads of one queue pair that are on their way, at most.
const READS: u8 = 16;
/// Marks the number of a receive request, which is the number of its slot.
const RECEIVE: u64 = 1 << 63;
/// How long a peer without a posted receive may take, as the verbs code it: 0.64 ms. It never happens.
const RNR_TIMER: u8 = 12;
const RNR_RETRIES: u8 = 3;
/// How often a device sends again before it reports a failure. (7, the most, is for ever on Soft-RoCE.)
const RETRIES: u8 = 6;
/// Hops that a packet may take.
const HOP_LIMIT: u8 = 64;
/// The shortest and longest time of an acknowledgement, as the verbs code it: 4.096 us times a power of two.
const ACK_TIMEOUTS: std::ops::RangeInclusive<u8> = 1..=31;

/// How a rank uses RDMA.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RdmaConfig {
    /// The devices it may use, by the kernel's names for them (`mlx5_0`): of several, ranks take turns, so that
    /// those of a node share the work. If there are none here, it is the first with an active port.
    pub devices: Vec<String>,
    /// The port, counted from one; the first active one unless set.
    pub port: Option<u8>,
    /// The entry in the port's table of addresses. Unless set, it is the first of RoCE v2 with an IPv4 address,
    /// else of RoCE v2 with an IPv6 address, else of RoCE v1. InfiniBand needs none.
    pub gid: Option<u32>,
    /// Whether devices of peers may only read here. What others put to and get from memory that this rank exposes then goes by
    /// messages, as over TCP.
    pub read_only: bool,
}

impl RdmaConfig {
    /// The device of a rank.
    fn device(&self, rank: Rank) -> Option<&str> {
        let place = (rank as usize).checked_rem(self.devices.len())?;
        self.devices.get(place).map(String::as_str)
    }
}

/// How long a device waits for an acknowledgement before it sends again, as the verbs code it: all its attempts take
/// a quarter of the longest silence, because a device may wait up to four times as long.
fn timeout_code(silence_max: Duration) -> u8 {
    let units = silence_max.as_nanos() / 4 / u128::from(1 + RETRIES) / 4096;
    (units.max(1).ilog2() as u8).clamp(*ACK_TIMEOUTS.start(), *ACK_TIMEOUTS.end())
}

/// A device's port that packets leave by.
struct Port {
    number: u8,
    wire: Wire,
    lid: u16,
    gid: sys::ibv_gid,
    gid_index: u8,
    mtu: u8,
}

/// What has completed for one queue pair.
#[derive(Default)]
pub(super) struct Inbox {
    /// Packets that arrived: slot and length.
    pub(super) packets: RefCell<VecDeque<(u32, u32)>>,
    /// The number of the last request that completed.
    pub(super) completed: Cell<Option<u64>>,
    pub(super) failed: RefCell<Option<Loss>>,
    /// Whether there is something above that its link has not seen.
    pub(super) news: Cell<bool>,
}

impl Inbox {
    /// Notes why the queue pair failed, unless that is known.
    pub(super) fn fail(&self, loss: impl FnOnce() -> Loss) {
        self.failed.borrow_mut().get_or_insert_with(loss);
        self.news.set(true);
    }
}

/// The receive slots: a block of the arena for every link.
#[derive(Default)]
struct Slots {
    chunks: Vec<(Loan, NonNull<u8>)>,
    /// Slots to post again.
    free: Vec<u32>,
    /// Stages for links that are still to be made.
    spare: Vec<Loan>,
}

/// A device with the arena registered.
pub(crate) struct Adapter {
    silence_max: Duration,
    name: String,
    port: Port,
    read_limits: (u8, u8),
    read_only: bool,
    /// Whether our device operates on words of peers, and whether what it does to ours is atomic for our processors, too.
    has_atomics: bool,
    serves_atomics: Cell<bool>,
    links_max: u32,
    /// Links that slots are counted out for: no more than there are chunks of them.
    links: Cell<u32>,
    inboxes: RefCell<HashMap<u32, Rc<Inbox>>>,
    /// The one that the last completion was for, which is most often that of the next.
    last: RefCell<Option<(u32, Rc<Inbox>)>>,
    completions: RefCell<[ibv_wc; COMPLETIONS]>,
    // In the order in which they have to end.
    srq: Rc<Srq>,
    cq: Rc<Cq>,
    channel: Rc<Channel>,
    region: Mr,
    pd: Rc<Pd>,
    context: Rc<Context>,
    /// They are registered memory, so they end last.
    slots: RefCell<Slots>,
    arena: Arena,
}

impl Adapter {
    /// Opens the device that `config` names for `rank` and registers `arena`, for up to `links` links.
    pub(crate) fn open(
        config: &RdmaConfig,
        silence_max: Duration,
        rank: Rank,
        arena: &Arena,
        links: u32,
    ) -> Result<Rc<Self>, Unusable> {
        let verbs = sys::verbs().map_err(|why| Unusable::Library(why.to_owned()))?;
        let devices = Devices::list(verbs).map_err(|error| match error.source.raw_os_error() {
            Some(libc::ENOSYS) => Unusable::Kernel,
            _ => Unusable::from(error),
        })?;
        let (name, context, port) = find(config, config.device(rank), &devices)?;
        let device = context.device()?;
        let pd = Pd::new(&context)?;
        let region = register(&pd, &name, arena)?;
        let links_max = links
            .min(u32::try_from(device.max_srq_wr).unwrap_or(0) / LINK_SLOTS)
            .min(u32::try_from(device.max_cqe).unwrap_or(0) / (LINK_SLOTS + REQUESTS));
        let channel = Channel::new(&context)?;
        let cq = Cq::new(
            &context,
            &channel,
            (LINK_SLOTS + REQUESTS) * links_max.max(1),
        )?;
        let srq = Srq::new(&pd, LINK_SLOTS * links_max.max(1))?;
        let reads = |most: c_int| u8::try_from(most).unwrap_or(u8::MAX).min(READS);
        Ok(Rc::new(Self {
            silence_max,
            name,
            port,
            read_limits: (
                reads(device.max_qp_init_rd_atom),
                reads(device.max_qp_rd_atom),
            ),
            read_only: config.read_only,
            has_atomics: device.atomic_cap != sys::IBV_ATOMIC_NONE,
            serves_atomics: Cell::new(device.atomic_cap == sys::IBV_ATOMIC_GLOB),
            links_max,
            links: Cell::default(),
            inboxes: RefCell::default(),
            last: RefCell::default(),
            completions: RefCell::new([ibv_wc::default(); COMPLETIONS]),
            srq,
            cq,
            channel,
            region,
            pd,
            context,
            slots: RefCell::default(),
            arena: arena.clone(),
        }))
    }

    /// The descriptor by which completions wake a rank, and that of the device's own events.
    pub(crate) fn descriptors(&self) -> [RawFd; 2] {
        [self.channel.fd(), self.context.async_fd()]
    }

    pub(super) fn local_key(&self) -> u32 {
        self.region.local_key()
    }

    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The silence after which an idle link asks whether the peer's device is there.
    pub(super) fn probe_after(&self) -> Duration {
        self.silence_max / 2
    }

    /// Makes a queue pair for one more link, with its receive slots. The peer is to learn of what is returned.
    pub(crate) fn prepare(self: &Rc<Self>) -> Result<Prepared, Unusable> {
        if self.links.get() >= self.links_max {
            return Err(Unusable::Links(self.links_max));
        }
        let qp = Qp::new(&self.pd, &self.cq, &self.srq, REQUESTS, STAGED_BYTES as u32)?;
        let init = ibv_qp_attr {
            qp_state: sys::IBV_QPS_INIT,
            port_num: self.port.number,
            qp_access_flags: self.qp_access() as u32,
            ..ibv_qp_attr::default()
        };
        let mask = sys::IBV_QP_STATE
            | sys::IBV_QP_PKEY_INDEX
            | sys::IBV_QP_PORT
            | sys::IBV_QP_ACCESS_FLAGS;
        qp.modify(init, mask, "initialise a queue pair")?;
        let staging = self.take_memory()?;
        let inbox = Rc::new(Inbox::default());
        self.inboxes.borrow_mut().insert(qp.number(), inbox.clone());
        self.links.set(self.links.get() + 1);
        let (start, bytes) = self.region.extent();
        let local = Endpoint {
            wire: self.port.wire,
            mtu: self.port.mtu,
            reads: self.read_limits.1,
            queue_pair: qp.number(),
            first_packet: first_packet(),
            lid: self.port.lid,
            gid: self.port.gid.words,
            key: self.region.remote_key(),
            start,
            bytes,
        };
        let parts = Parts {
            qp: Some(qp),
            inbox,
            staging,
            adapter: self.clone(),
        };
        Ok(Prepared { parts, local })
    }

    /// What peers may do at all; each registration says what they may do there.
    fn qp_access(&self) -> c_int {
        match (self.read_only, self.has_atomics) {
            (true, _) => sys::IBV_ACCESS_REMOTE_READ,
            (false, false) => sys::IBV_ACCESS_REMOTE_READ | sys::IBV_ACCESS_REMOTE_WRITE,
            (false, true) => {
                sys::IBV_ACCESS_REMOTE_READ
                    | sys::IBV_ACCESS_REMOTE_WRITE
                    | sys::IBV_ACCESS_REMOTE_ATOMIC
            }
        }
    }

    pub(super) fn has_atomics(&self) -> bool {
        self.has_atomics
    }

    /// Registers exposed memory, at `offset` of the arena, so that peers may write there and nowhere else. None if that
    /// is not wanted, or the device or the limit of locked memory does not allow it.
    pub(super) fn expose(&self, offset: u64, bytes: u64) -> Option<Exposure> {
        if self.read_only {
            return None;
        }
        let start = self.arena.region().data(offset, bytes)?;
        let atomics = self.serves_atomics.get();
        let access = sys::IBV_ACCESS_LOCAL_WRITE
            | sys::IBV_ACCESS_REMOTE_READ
            | sys::IBV_ACCESS_REMOTE_WRITE
            | if atomics {
                sys::IBV_ACCESS_REMOTE_ATOMIC
            } else {
                0
            };
        // SAFETY: its owner keeps the memory mapped and lent while it is registered, and touches it by atomics alone.
        let registered = unsafe { Mr::register(&self.pd, start, bytes as usize, access) };
        registered.ok().map(|region| Exposure { region, atomics })
    }

    /// Has words operated on by devices where the devices only answer for each other: for memory that no processor operates
    /// on.
    #[cfg(test)]
    pub(super) fn serve_atomics(&self) {
        self.serves_atomics.set(true);
    }

    /// Sets memory aside for links to `peers` peers, or to as many as an eighth of the arena serves, so that they are
    /// made however full the arena gets. Of links that are there already the memory counts.
    pub(crate) fn reserve(&self, peers: u32) {
        let most = self.arena.capacity() / 8 / (SLOT_BYTES * LINK_SLOTS as usize) as u64;
        let links = u64::from(peers.min(self.links_max)).min(most.max(1));
        while (self.slots.borrow().chunks.len() as u64) < links {
            match self.add_slots().and_then(|()| self.stages()) {
                Ok(stages) => self.slots.borrow_mut().spare.push(stages),
                Err(_) => return, // The link that finds none says so.
            }
        }
    }

    /// The memory of one more link: its stages, while there are slots for it. What is taken from the arena for slots stays.
    fn take_memory(&self) -> Result<Loan, Unusable> {
        if self.links.get() as usize >= self.slots.borrow().chunks.len() {
            self.add_slots()?;
        }
        let spare = self.slots.borrow_mut().spare.pop();
        spare.map_or_else(|| self.stages(), Ok)
    }

    /// Stages from the arena.
    fn stages(&self) -> Result<Loan, Unusable> {
        let stages = self.arena.loan(super::STAGING_BYTES);
        stages.ok().flatten().ok_or(Unusable::Room)
    }

    /// Takes the slots of one more link from the arena, and posts them.
    fn add_slots(&self) -> Result<(), Unusable> {
        let chunk = self.arena.loan(SLOT_BYTES * LINK_SLOTS as usize);
        let mut chunk = chunk.ok().flatten().ok_or(Unusable::Room)?;
        let mut slots = self.slots.borrow_mut();
        let start = NonNull::from(&mut *chunk).cast();
        let first = slots.chunks.len() as u32 * LINK_SLOTS;
        slots.chunks.push((chunk, start));
        slots.free.extend(first..first + LINK_SLOTS);
        drop(slots);
        Ok(self.repost()?)
    }

    /// The first byte of a slot.
    fn slot_start(chunks: &[(Loan, NonNull<u8>)], slot: u32) -> *mut u8 {
        let (chunk, within) = (slot / LINK_SLOTS, slot % LINK_SLOTS);
        let (_, start) = &chunks[chunk as usize];
        // At most the last slot of the chunk, so inside it.
        start.as_ptr().wrapping_add(within as usize * SLOT_BYTES)
    }

    /// Has `read` look at the bytes of a packet that arrived.
    pub(super) fn with_packet<T>(&self, slot: u32, len: u32, read: impl FnOnce(&[u8]) -> T) -> T {
        let slots = self.slots.borrow();
        let start = Self::slot_start(&slots.chunks, slot);
        let len = (len as usize).min(SLOT_BYTES);
        // SAFETY: the slot is inside its chunk, which stays lent and mapped; its receive has completed and it is
        // not posted again before `free`, which the link calls when it has done with the packet, so the
        // device does not write to it.
        read(unsafe { std::slice::from_raw_parts(start, len) })
    }

    /// Gives back the slot of a packet that has been read.
    pub(super) fn free(&self, slot: u32) {
        let mut slots = self.slots.borrow_mut();
        slots.free.push(slot);
        if slots.free.len() >= REPOSTED_AT_ONCE {
            drop(slots);
            // A device that takes no receives fails its queue pairs, and says so there.
            let _ = self.repost();
        }
    }

    /// Posts the slots that were given back: before any peer is told that they are there.
    pub(super) fn repost(&self) -> Result<(), VerbError> {
        let mut slots = self.slots.borrow_mut();
        while !slots.free.is_empty() {
            let rest = slots.free.len().saturating_sub(REPOSTED_AT_ONCE);
            let mut pieces = [ibv_sge::default(); REPOSTED_AT_ONCE];
            let mut requests = [ibv_recv_wr {
                wr_id: 0,
                next: ptr::null_mut(),
                sg_list: ptr::null_mut(),
                num_sge: 1,
            }; REPOSTED_AT_ONCE];
            let count = slots.free.len() - rest;
            for place in (0..count).rev() {
                let slot = slots.free[rest + place];
                pieces[place] = ibv_sge {
                    addr: Self::slot_start(&slots.chunks, slot) as u64,
                    length: SLOT_BYTES as u32,
                    lkey: self.region.local_key(),
                };
                requests[place].wr_id = RECEIVE | u64::from(slot);
                requests[place].sg_list = &raw mut pieces[place];
                requests[place].next = if place + 1 < count {
                    &raw mut requests[place + 1]
                } else {
                    ptr::null_mut()
                };
            }
            // SAFETY: the chain runs through both arrays, which live until the call returns. The slots are free, so
            // nobody looks at them until they complete, and their chunks end after the shared receive queue.
            let posted = unsafe { self.srq.post(&mut requests[0]) };
            if let Err((refused, error)) = posted {
                // What comes before it was posted, and may be written to.
                let taken = requests
                    .iter()
                    .position(|request| ptr::eq(request, refused));
                slots.free.drain(rest..rest + taken.unwrap_or(0));
                return Err(error);
            }
            slots.free.truncate(rest);
        }
        Ok(())
    }

    /// Takes in what has completed, for whichever link.
    #[inline]
    pub(super) fn poll(&self) {
        let mut completions = self.completions.borrow_mut();
        loop {
            let Ok(polled) = self.cq.poll(&mut *completions) else {
                return self.fail_all("its completion queue cannot be polled");
            };
            if polled.is_empty() {
                return;
            }
            let count = polled.len();
            for completion in polled {
                self.sort(completion);
            }
            if count < COMPLETIONS {
                return;
            }
        }
    }

    fn sort(&self, completion: &ibv_wc) {
        let mut last = self.last.borrow_mut();
        if last
            .as_ref()
            .is_none_or(|(number, _)| *number != completion.qp_num)
        {
            let inbox = self.inboxes.borrow().get(&completion.qp_num).cloned();
            *last = inbox.map(|inbox| (completion.qp_num, inbox));
        }
        let received = completion.wr_id & RECEIVE != 0;
        let slot = completion.wr_id as u32;
        let Some((_, inbox)) = &*last else {
            if received {
                self.free(slot); // Of a link that is gone.
            }
            return;
        };
        inbox.news.set(true);
        match (completion.status, received) {
            (sys::IBV_WC_SUCCESS, true) if completion.opcode != sys::IBV_WC_RECV => {
                // A write with an immediate takes a slot, and leaves it as it was.
                inbox.fail(|| Loss::Protocol("it sent what is not a packet"));
                self.free(slot);
            }
            (sys::IBV_WC_SUCCESS, true) => inbox
                .packets
                .borrow_mut()
                .push_back((slot, completion.byte_len)),
            (sys::IBV_WC_SUCCESS, false) => inbox.completed.set(Some(completion.wr_id)),
            (status, received) => {
                inbox.fail(|| self.loss(status));
                if received {
                    self.free(slot);
                }
            }
        }
    }

    /// What a failed completion says of the peer.
    fn loss(&self, status: c_int) -> Loss {
        let what = match status {
            sys::IBV_WC_RETRY_EXC_ERR => format!(
                "its device did not answer {} times within {:?}",
                1 + RETRIES,
                Duration::from_nanos(4096 << timeout_code(self.silence_max)),
            ),
            sys::IBV_WC_RNR_RETRY_EXC_ERR => "its device had no receive posted".to_owned(),
            sys::IBV_WC_REM_ACCESS_ERR => {
                return Loss::Protocol("it offered memory that its device does not let us use");
            }
            sys::IBV_WC_WR_FLUSH_ERR => "the queue pair had failed".to_owned(),
            other => self.context.status_text(other),
        };
        // Its driver tells, too, but we may hear of the failure first.
        let port = self.context.port(self.port.number);
        let down = match port.is_ok_and(|port| port.state != sys::IBV_PORT_ACTIVE) {
            true => format!("; the port of our device {} is down", self.name),
            false => String::new(),
        };
        Loss::Connection(format!("RDMA: {what}{down}"))
    }

    fn fail_all(&self, what: &str) {
        for inbox in self.inboxes.borrow().values() {
            inbox.fail(|| Loss::Connection(format!("RDMA device {}: {what}", self.name)));
        }
    }

    /// Has the next completion wake us; whoever calls this looks for completions once more.
    pub(crate) fn arm(&self) {
        if let Err(error) = self.cq.arm() {
            self.fail_all(&error.to_string());
        }
    }

    /// Takes in what the descriptors say.
    pub(crate) fn take_events(&self) {
        self.channel.drain();
        while let Some(event) = self.context.async_event() {
            match event {
                AsyncEvent::QueuePair(number) => {
                    if let Some(inbox) = self.inboxes.borrow().get(&number) {
                        inbox.fail(|| {
                            Loss::Connection(
                                "RDMA: the device reports that the queue pair failed".to_owned(),
                            )
                        });
                    }
                }
                AsyncEvent::Device => self.fail_all("it failed or was removed"),
                // Of a port that is down, too: what is on its way is sent again, and fails in time if it stays so.
                AsyncEvent::Other => {}
            }
        }
    }

    /// Ends a queue pair: what completed before is in its inbox, and nothing comes after.
    fn retire(&self, qp: Qp) {
        let number = qp.number();
        self.poll();
        drop(qp);
        self.poll(); // Another queue pair may get the number.
        self.inboxes.borrow_mut().remove(&number);
        self.last.borrow_mut().take();
    }
}

/// Finds the device and the port.
fn find(
    config: &RdmaConfig,
    wanted: Option<&str>,
    devices: &Devices,
) -> Result<(String, Rc<Context>, Port), Unusable> {
    let mut inactive = Vec::new();
    for index in 0..devices.len() {
        let name = devices.name(index);
        if wanted.is_some_and(|wanted| wanted != name) {
            continue;
        }
        let context = devices.open(index)?;
        let ports = context.device()?.phys_port_cnt;
        for number in 1..=ports {
            if config.port.is_some_and(|wanted| wanted != number) {
                continue;
            }
            let attributes = context.port(number)?;
            if attributes.state != sys::IBV_PORT_ACTIVE {
                inactive.push(format!("{name} port {number}"));
                continue;
            }
            let address = if attributes.link_layer == sys::IBV_LINK_LAYER_INFINIBAND {
                Some((0, Wire::InfiniBand, sys::ibv_gid::default()))
            } else {
                find_gid(config, &context, number, attributes.gid_tbl_len)
            };
            let Some((gid_index, wire, gid)) = address else {
                inactive.push(format!("{name} port {number} (it has no such address)"));
                continue;
            };
            let port = Port {
                number,
                wire,
                lid: attributes.lid,
                gid,
                gid_index,
                mtu: attributes.active_mtu as u8,
            };
            return Ok((name, context, port));
        }
    }
    Err(Unusable::Device {
        wanted: wanted.map(str::to_owned),
        inactive: inactive.join(", "),
    })
}

/// Finds the address of a port on Ethernet.
fn find_gid(
    config: &RdmaConfig,
    context: &Context,
    port: u8,
    entries: c_int,
) -> Option<(u8, Wire, sys::ibv_gid)> {
    (0..=u8::MAX)
        .take_while(|index| c_int::from(*index) < entries)
        .filter(|index| config.gid.is_none_or(|wanted| wanted == u32::from(*index)))
        .filter_map(|index| {
            let entry = context.gid(port, index.into()).ok()?;
            let wire = match entry.gid_type {
                sys::IBV_GID_TYPE_ROCE_V1 | sys::IBV_GID_TYPE_IB => Wire::RoceV1,
                sys::IBV_GID_TYPE_ROCE_V2 => Wire::RoceV2,
                _ => return None,
            };
            let [high, low] = entry.gid.words.map(u64::from_be);
            let address = Ipv6Addr::from(u128::from(high) << 64 | u128::from(low));
            let preference = match wire {
                Wire::RoceV2 if address.to_ipv4_mapped().is_some() => 0,
                Wire::RoceV2 if !address.is_unicast_link_local() => 1,
                Wire::RoceV2 => 2,
                _ => 3,
            };
            Some((preference, index, wire, entry.gid))
        })
        .min_by_key(|(preference, index, ..)| (*preference, *index))
        .map(|(_, index, wire, gid)| (index, wire, gid))
}

/// Registers the blocks of an arena; its other pages are not for peers of other nodes.
fn register(pd: &Rc<Pd>, device: &str, arena: &Arena) -> Result<Mr, Unusable> {
    let region = arena.region();
    let bytes = region.geometry().data_bytes;
    let start = region.data(0, bytes).ok_or(Unusable::Room)?;
    let access = sys::IBV_ACCESS_LOCAL_WRITE | sys::IBV_ACCESS_REMOTE_READ;
    // SAFETY: the adapter keeps the arena, and so its mapping, longer than the registration. Peers may only read;
    // our own requests write only to receive slots and to loans that their links hold.
    let registered = unsafe { Mr::register(pd, start, bytes as usize, access) };
    registered.map_err(|error| match error.source.kind() {
        io::ErrorKind::OutOfMemory => Unusable::LockedMemory {
            device: device.to_owned(),
            bytes,
            limit: getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft),
        },
        _ => error.into(),
    })
}

/// Exposed memory that devices of peers may use, until this is dropped.
pub(crate) struct Exposure {
    region: Mr,
    atomics: bool,
}

impl Exposure {
    /// What peers have to know.
    pub(crate) fn access(&self) -> Access {
        Access {
            key: self.region.remote_key(),
            atomics: self.atomics,
        }
    }
}

/// The number of a link's first packet: 24 bits that an earlier link of the same number did not use.
fn first_packet() -> u32 {
    // It guards against strays only, so without randomness any number will do.
    let [low, middle, high] = random().unwrap_or_default();
    u32::from_le_bytes([low, middle, high, 0])
}

/// What a link is made of on our side. When it is dropped, its receive slots are there for another link.
pub(super) struct Parts {
    /// None once the link has ended: the device then leaves our memory alone.
    pub(super) qp: Option<Qp>,
    pub(super) inbox: Rc<Inbox>,
    pub(super) staging: Loan,
    pub(super) adapter: Rc<Adapter>,
}

impl Parts {
    /// Ends the queue pair: what completed before is in the inbox, and nothing comes after.
    pub(super) fn retire(&mut self) {
        if let Some(qp) = self.qp.take() {
            self.adapter.retire(qp);
        }
    }

    /// Gives back the slots of packets that nobody takes out of the inbox.
    pub(super) fn forget_packets(&self) {
        for (slot, _) in self.inbox.packets.borrow_mut().drain(..) {
            self.adapter.free(slot);
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.retire();
        self.forget_packets();
        self.adapter.links.set(self.adapter.links.get() - 1);
    }
}

/// A queue pair that is not connected yet.
pub(crate) struct Prepared {
    parts: Parts,
    local: Endpoint,
}

impl Prepared {
    /// What the peer has to know.
    pub(crate) fn local(&self) -> &Endpoint {
        &self.local
    }

    /// Connects it to the peer's.
    pub(crate) fn connect(self, remote: Endpoint) -> Result<Connected, Unusable> {
        let Self { parts, local } = self;
        let (Some(qp), adapter) = (&parts.qp, &parts.adapter) else {
            return Err(Unusable::Room);
        };
        if remote.wire != adapter.port.wire {
            let why = format!(
                "its {} and our {} do not meet",
                remote.wire, adapter.port.wire
            );
            return Err(Unusable::Peer(why));
        }
        let route = ibv_ah_attr {
            grh: ibv_global_route {
                dgid: sys::ibv_gid { words: remote.gid },
                flow_label: 0,
                sgid_index: adapter.port.gid_index,
                hop_limit: HOP_LIMIT,
                traffic_class: 0,
            },
            dlid: remote.lid,
            is_global: u8::from(adapter.port.wire != Wire::InfiniBand),
            port_num: adapter.port.number,
            ..ibv_ah_attr::default()
        };
        let ready_to_receive = ibv_qp_attr {
            qp_state: sys::IBV_QPS_RTR,
            path_mtu: remote.mtu.min(adapter.port.mtu).into(),
            rq_psn: remote.first_packet,
            dest_qp_num: remote.queue_pair,
            ah_attr: route,
            max_dest_rd_atomic: adapter.read_limits.1,
            min_rnr_timer: RNR_TIMER,
            ..ibv_qp_attr::default()
        };
        let mask = sys::IBV_QP_STATE
            | sys::IBV_QP_AV
            | sys::IBV_QP_PATH_MTU
            | sys::IBV_QP_DEST_QPN
            | sys::IBV_QP_RQ_PSN
            | sys::IBV_QP_MAX_DEST_RD_ATOMIC
            | sys::IBV_QP_MIN_RNR_TIMER;
        qp.modify(ready_to_receive, mask, "find a route to the peer's device")?;
        let ready_to_send = ibv_qp_attr {
            qp_state: sys::IBV_QPS_RTS,
            sq_psn: local.first_packet,
            timeout: timeout_code(adapter.silence_max),
            retry_cnt: RETRIES,
            rnr_retry: RNR_RETRIES,
            max_rd_atomic: adapter.read_limits.0.min(remote.reads),
            ..ibv_qp_attr::default()
        };
        let mask = sys::IBV_QP_STATE
            | sys::IBV_QP_SQ_PSN
            | sys::IBV_QP_TIMEOUT
            | sys::IBV_QP_RETRY_CNT
            | sys::IBV_QP_RNR_RETRY
            | sys::IBV_QP_MAX_QP_RD_ATOMIC;
        qp.modify(ready_to_send, mask, "start a queue pair")?;
        Ok(Connected { parts, remote })
    }
}

/// A queue pair that is ready.
pub(crate) struct Connected {
    pub(super) parts: Parts,
    pub(super) remote: Endpoint,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_device_gives_up_well_within_the_longest_silence() {
        for silence in [500, 2_000, 60_000].map(Duration::from_millis) {
            let nominal =
                Duration::from_nanos(4096 << timeout_code(silence)) * u32::from(1 + RETRIES);
            assert!(nominal <= silence / 4, "{nominal:?} of {silence:?}");
            assert!(
                nominal > silence / 10,
                "{nominal:?} of {silence:?} tolerates too little"
            );
        }
    }

    #[test]
    fn ranks_take_turns_on_devices() {
        let mut config = RdmaConfig::default();
        assert_eq!(config.device(3), None);
        config.devices = ["a", "b"].map(str::to_owned).to_vec();
        assert_eq!(
            [0, 1, 2].map(|rank| config.device(rank)),
            [Some("a"), Some("b"), Some("a")]
        );
    }
}
