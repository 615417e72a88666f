//! RDMA devices through libibverbs, which is opened when it is first needed: a machine without it, or without
//! a device, has no RDMA and is otherwise none the worse.
//!
//! # Invariant
//!
//! Every object owns what the library gave it, and holds those it was made from: a queue pair its
//! protection domain, queues and context. So objects end after all that was made from them, which is the order that
//! the verbs ask for, and a pointer of a living object is valid.

#[cfg(all(test, not(loom)))]
mod layout;
pub(crate) mod sys;

use std::{
    ffi::{CStr, c_int},
    fmt, io,
    os::fd::{BorrowedFd, RawFd},
    ptr::{self, NonNull},
    rc::Rc,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use self::sys::{
    Verbs, ibv_async_element, ibv_async_event, ibv_comp_channel, ibv_context, ibv_cq, ibv_device,
    ibv_device_attr, ibv_gid_entry, ibv_mr, ibv_pd, ibv_port_attr, ibv_qp, ibv_qp_attr, ibv_qp_cap,
    ibv_qp_init_attr, ibv_recv_wr, ibv_send_wr, ibv_srq, ibv_srq_attr, ibv_srq_init_attr, ibv_wc,
};

/// A verb that failed.
#[derive(Debug)]
pub(crate) struct VerbError {
    /// What was attempted.
    pub(crate) action: &'static str,
    pub(crate) source: io::Error,
}

impl fmt::Display for VerbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.action, self.source)
    }
}

/// What a verb that makes something returned: nothing means that `errno` says why.
fn made<T>(pointer: *mut T, action: &'static str) -> Result<NonNull<T>, VerbError> {
    NonNull::new(pointer).ok_or_else(|| VerbError {
        action,
        source: io::Error::last_os_error(),
    })
}

/// What a verb that does something returned: the number of an error, or -1 when `errno` has it.
fn done(status: c_int, action: &'static str) -> Result<(), VerbError> {
    let source = match status {
        0 => return Ok(()),
        ..0 => io::Error::last_os_error(),
        1.. => io::Error::from_raw_os_error(status),
    };
    Err(VerbError { action, source })
}

/// Has reads of a descriptor return at once when there is nothing to read.
fn never_wait(fd: RawFd) -> Result<(), VerbError> {
    // SAFETY: the caller owns the object that the descriptor belongs to, and keeps it open meanwhile.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(|_| ())
        .map_err(|error| VerbError {
            action: "make a descriptor of the device non-blocking",
            source: error.into(),
        })
}

/// The devices of this machine.
pub(crate) struct Devices {
    verbs: &'static Verbs,
    list: NonNull<*mut ibv_device>,
    count: usize,
}

impl Devices {
    /// All of them. Without RDMA in the kernel the error is `ENOSYS`.
    pub(crate) fn list(verbs: &'static Verbs) -> Result<Self, VerbError> {
        let mut count = 0;
        // SAFETY: the function writes the number of devices to `count`, which is ours for the call.
        let list = unsafe { (verbs.get_device_list)(&raw mut count) };
        Ok(Self {
            verbs,
            list: made(list, "list the RDMA devices")?,
            count: count as usize,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    fn device(&self, index: usize) -> *mut ibv_device {
        assert!(index < self.count, "there is no device {index}");
        let place = self.list.as_ptr().wrapping_add(index);
        // SAFETY: the list has `count` devices, and is ours until we are dropped.
        unsafe { *place }
    }

    /// The kernel's name for a device.
    pub(crate) fn name(&self, index: usize) -> String {
        // SAFETY: the device is in the list, which keeps it.
        let name = unsafe { (self.verbs.get_device_name)(self.device(index)) };
        // SAFETY: the name is a string inside the device, which lives until the list is freed.
        let name = unsafe { CStr::from_ptr(name) };
        name.to_string_lossy().into_owned()
    }

    pub(crate) fn open(&self, index: usize) -> Result<Rc<Context>, VerbError> {
        // SAFETY: the device is in the list; an open one lives on when the list is freed.
        let context = unsafe { (self.verbs.open_device)(self.device(index)) };
        let context = Context {
            verbs: self.verbs,
            raw: made(context, "open an RDMA device")?,
        };
        never_wait(context.async_fd())?;
        Ok(Rc::new(context))
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // SAFETY: the list came from the library and is freed once.
        unsafe { (self.verbs.free_device_list)(self.list.as_ptr()) };
    }
}

/// Something that a device says unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AsyncEvent {
    /// A queue pair failed.
    QueuePair(u32),
    /// The device, or a queue that all links share, failed.
    Device,
    /// Something that does not concern us.
    Other,
}

/// An open device.
pub(crate) struct Context {
    verbs: &'static Verbs,
    raw: NonNull<ibv_context>,
}

impl Context {
    /// What the device can do.
    pub(crate) fn device(&self) -> Result<ibv_device_attr, VerbError> {
        let mut attributes = std::mem::MaybeUninit::<ibv_device_attr>::zeroed();
        let (context, into) = (self.raw.as_ptr(), attributes.as_mut_ptr());
        // SAFETY: the context is open, and the library fills in a struct of this size, which is ours for the call.
        let status = unsafe { (self.verbs.query_device)(context, into) };
        done(status, "query an RDMA device")?;
        // SAFETY: it was zeroed, and consists of numbers, for which every bit pattern is a value.
        Ok(unsafe { attributes.assume_init() })
    }

    /// The state of a port, counted from one.
    pub(crate) fn port(&self, port: u8) -> Result<ibv_port_attr, VerbError> {
        let mut attributes = ibv_port_attr::default();
        let context = self.raw.as_ptr();
        // SAFETY: the context is open. This function fills in the fields up to `link_layer`, as in the
        // first version of the struct, so it stays inside ours; the others stay zero.
        let status = unsafe { (self.verbs.query_port)(context, port, &raw mut attributes) };
        done(status, "query a port of an RDMA device")?;
        Ok(attributes)
    }

    /// The entry of a port's table of addresses; an error when it is empty.
    pub(crate) fn gid(&self, port: u8, index: u32) -> Result<ibv_gid_entry, VerbError> {
        let mut entry = ibv_gid_entry::default();
        // SAFETY: the context is open, and the size tells the library how much to fill in.
        let status = unsafe {
            (self.verbs.query_gid_ex)(
                self.raw.as_ptr(),
                port.into(),
                index,
                &raw mut entry,
                0,
                size_of::<ibv_gid_entry>(),
            )
        };
        done(status, "query an address of an RDMA device")?;
        Ok(entry)
    }

    pub(crate) fn async_fd(&self) -> RawFd {
        // SAFETY: the context is open, and the field is set once, at opening.
        unsafe { (*self.raw.as_ptr()).async_fd }
    }

    /// What the device has to say, without waiting.
    pub(crate) fn async_event(&self) -> Option<AsyncEvent> {
        let mut event = ibv_async_event {
            element: ibv_async_element {
                qp: ptr::null_mut(),
            },
            event_type: 0,
        };
        // SAFETY: the context is open, its descriptor does not wait, and the event is ours for the call.
        let status = unsafe { (self.verbs.get_async_event)(self.raw.as_ptr(), &raw mut event) };
        if status != 0 {
            return None;
        }
        let what = match event.event_type {
            sys::IBV_EVENT_QP_FATAL | sys::IBV_EVENT_QP_REQ_ERR | sys::IBV_EVENT_QP_ACCESS_ERR => {
                // SAFETY: for these events the element is a queue pair.
                let qp = unsafe { event.element.qp };
                // SAFETY: it is not destroyed before the event is acknowledged, which happens below; and
                // destroying one takes back those of its events that were not read.
                AsyncEvent::QueuePair(unsafe { (*qp).qp_num })
            }
            sys::IBV_EVENT_DEVICE_FATAL | sys::IBV_EVENT_CQ_ERR | sys::IBV_EVENT_SRQ_ERR => {
                AsyncEvent::Device
            }
            _ => AsyncEvent::Other,
        };
        // SAFETY: the event came from the library, and is acknowledged once.
        unsafe { (self.verbs.ack_async_event)(&raw mut event) };
        Some(what)
    }

    /// What the library calls the status of a completion.
    pub(crate) fn status_text(&self, status: c_int) -> String {
        // SAFETY: the function takes any number, and touches nothing of ours.
        let text = unsafe { (self.verbs.wc_status_str)(status) };
        if text.is_null() {
            return format!("status {status}");
        }
        // SAFETY: it is not null, and a string constant of the library, which stays loaded.
        let text = unsafe { CStr::from_ptr(text) };
        text.to_string_lossy().into_owned()
    }

    fn ops(&self) -> &sys::ibv_context_ops {
        // SAFETY: the context is open; the table is set at opening and only read from then on.
        unsafe { &(*self.raw.as_ptr()).ops }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was opened once, and nothing made from it is left (see the invariant).
        unsafe { (self.verbs.close_device)(self.raw.as_ptr()) };
    }
}

/// A function of a device's table; a device that has none of this name is not one.
fn op<F: Copy>(function: Option<F>, action: &'static str) -> Result<F, VerbError> {
    function.ok_or_else(|| VerbError {
        action,
        source: io::ErrorKind::Unsupported.into(),
    })
}

/// A protection domain: what belongs together.
pub(crate) struct Pd {
    context: Rc<Context>,
    raw: NonNull<ibv_pd>,
}

impl Pd {
    pub(crate) fn new(context: &Rc<Context>) -> Result<Rc<Self>, VerbError> {
        // SAFETY: the context is open, and the domain will hold it.
        let raw = unsafe { (context.verbs.alloc_pd)(context.raw.as_ptr()) };
        Ok(Rc::new(Self {
            context: context.clone(),
            raw: made(raw, "make a protection domain")?,
        }))
    }
}

impl Drop for Pd {
    fn drop(&mut self) {
        // SAFETY: it was made once, and nothing made from it is left.
        unsafe { (self.context.verbs.dealloc_pd)(self.raw.as_ptr()) };
    }
}

/// Memory that the device may use.
pub(crate) struct Mr {
    pd: Rc<Pd>,
    raw: NonNull<ibv_mr>,
}

impl Mr {
    /// Registers `bytes` bytes from `start` on.
    ///
    /// # Safety
    ///
    /// The memory stays mapped while this lives, and what peers and work requests may write in it is
    /// memory that nothing else relies on meanwhile.
    pub(crate) unsafe fn register(
        pd: &Rc<Pd>,
        start: NonNull<u8>,
        bytes: usize,
        access: c_int,
    ) -> Result<Self, VerbError> {
        let verbs = pd.context.verbs;
        // SAFETY: the domain lives, and the caller answers for the memory.
        let raw = unsafe { (verbs.reg_mr)(pd.raw.as_ptr(), start.as_ptr().cast(), bytes, access) };
        Ok(Self {
            raw: made(raw, "register memory with an RDMA device")?,
            pd: pd.clone(),
        })
    }

    /// The key by which our own work requests name it.
    pub(crate) fn local_key(&self) -> u32 {
        // SAFETY: it lives, and the field is set once.
        unsafe { (*self.raw.as_ptr()).lkey }
    }

    /// Where it starts, as the device knows it, and its bytes.
    pub(crate) fn extent(&self) -> (u64, u64) {
        // SAFETY: it lives, and its fields are set once.
        let region = unsafe { self.raw.as_ref() };
        (region.addr as u64, region.length as u64)
    }

    /// The key by which those of peers name it.
    pub(crate) fn remote_key(&self) -> u32 {
        // SAFETY: it lives, and the field is set once.
        unsafe { (*self.raw.as_ptr()).rkey }
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        // SAFETY: it was registered once, and no queue names it any more: its owner ends those first.
        unsafe { (self.pd.context.verbs.dereg_mr)(self.raw.as_ptr()) };
    }
}

/// Says that completions are there to those who sleep.
pub(crate) struct Channel {
    context: Rc<Context>,
    raw: NonNull<ibv_comp_channel>,
}

impl Channel {
    pub(crate) fn new(context: &Rc<Context>) -> Result<Rc<Self>, VerbError> {
        // SAFETY: the context is open, and the channel will hold it.
        let raw = unsafe { (context.verbs.create_comp_channel)(context.raw.as_ptr()) };
        let channel = Self {
            context: context.clone(),
            raw: made(raw, "make a completion channel")?,
        };
        never_wait(channel.fd())?;
        Ok(Rc::new(channel))
    }

    pub(crate) fn fd(&self) -> RawFd {
        // SAFETY: it lives, and the field is set once.
        unsafe { (*self.raw.as_ptr()).fd }
    }

    /// Takes in everything it says, without waiting.
    pub(crate) fn drain(&self) {
        let (verbs, channel) = (self.context.verbs, self.raw.as_ptr());
        loop {
            let (mut cq, mut about) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: the channel lives, its descriptor does not wait, and the places to write to are ours for the call.
            let status = unsafe { (verbs.get_cq_event)(channel, &raw mut cq, &raw mut about) };
            if status != 0 {
                return;
            }
            // SAFETY: the queue is the one that was just named; it waits, when it is destroyed, for its
            // events to be acknowledged, so it is still there.
            unsafe { (verbs.ack_cq_events)(cq, 1) };
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: it was made once, and no queue that used it is left.
        unsafe { (self.context.verbs.destroy_comp_channel)(self.raw.as_ptr()) };
    }
}

/// A completion queue.
pub(crate) struct Cq {
    context: Rc<Context>,
    _channel: Rc<Channel>,
    raw: NonNull<ibv_cq>,
    poll: unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int,
    notify: unsafe extern "C" fn(*mut ibv_cq, c_int) -> c_int,
}

impl Cq {
    pub(crate) fn new(
        context: &Rc<Context>,
        channel: &Rc<Channel>,
        entries: u32,
    ) -> Result<Rc<Self>, VerbError> {
        let action = "make a completion queue";
        let (poll, notify) = (
            op(context.ops().poll_cq, action)?,
            op(context.ops().req_notify_cq, action)?,
        );
        // SAFETY: context and channel live, and the queue will hold them.
        let raw = unsafe {
            (context.verbs.create_cq)(
                context.raw.as_ptr(),
                entries as c_int,
                ptr::null_mut(),
                channel.raw.as_ptr(),
                0,
            )
        };
        Ok(Rc::new(Self {
            context: context.clone(),
            _channel: channel.clone(),
            raw: made(raw, action)?,
            poll,
            notify,
        }))
    }

    /// Takes the next completions, and returns those of `into` that were filled in.
    #[inline]
    pub(crate) fn poll<'a>(&self, into: &'a mut [ibv_wc]) -> Result<&'a [ibv_wc], VerbError> {
        let room = c_int::try_from(into.len()).unwrap_or(c_int::MAX);
        // SAFETY: the queue lives, and `into` has room for as many completions as are asked for.
        let count = unsafe { (self.poll)(self.raw.as_ptr(), room, into.as_mut_ptr()) };
        match usize::try_from(count) {
            Ok(count) => Ok(&into[..count]),
            Err(_) => done(count, "poll a completion queue").map(|()| &into[..0]),
        }
    }

    /// Has the channel tell of the next completion.
    pub(crate) fn arm(&self) -> Result<(), VerbError> {
        // SAFETY: the queue lives; the function takes nothing else by reference.
        let status = unsafe { (self.notify)(self.raw.as_ptr(), 0) };
        done(status, "arm a completion queue")
    }
}

impl Drop for Cq {
    fn drop(&mut self) {
        // SAFETY: it was made once, no queue pair that used it is left, and its events are acknowledged.
        unsafe { (self.context.verbs.destroy_cq)(self.raw.as_ptr()) };
    }
}

/// A receive queue that queue pairs share.
pub(crate) struct Srq {
    pd: Rc<Pd>,
    raw: NonNull<ibv_srq>,
    post: unsafe extern "C" fn(*mut ibv_srq, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int,
}

impl Srq {
    pub(crate) fn new(pd: &Rc<Pd>, requests: u32) -> Result<Rc<Self>, VerbError> {
        let action = "make a shared receive queue";
        let post = op(pd.context.ops().post_srq_recv, action)?;
        let mut attributes = ibv_srq_init_attr {
            srq_context: ptr::null_mut(),
            attr: ibv_srq_attr {
                max_wr: requests,
                max_sge: 1,
                srq_limit: 0,
            },
        };
        // SAFETY: the domain lives, and the queue will hold it.
        let raw = unsafe { (pd.context.verbs.create_srq)(pd.raw.as_ptr(), &raw mut attributes) };
        Ok(Rc::new(Self {
            pd: pd.clone(),
            raw: made(raw, action)?,
            post,
        }))
    }

    /// Posts a chain of receives.
    ///
    /// # Errors
    ///
    /// What the device says, and the first request that it did not take.
    ///
    /// # Safety
    ///
    /// The chain is well formed. The memory that it names stays registered, and is left alone, until the receives
    /// complete or every queue pair that uses this queue is gone.
    pub(crate) unsafe fn post(
        &self,
        first: &mut ibv_recv_wr,
    ) -> Result<(), (*const ibv_recv_wr, VerbError)> {
        let mut bad = ptr::null_mut();
        // SAFETY: the queue lives; the caller answers for the chain.
        let status = unsafe { (self.post)(self.raw.as_ptr(), first, &raw mut bad) };
        done(status, "post receives").map_err(|error| (bad.cast_const(), error))
    }
}

impl Drop for Srq {
    fn drop(&mut self) {
        // SAFETY: it was made once, and no queue pair that used it is left.
        unsafe { (self.pd.context.verbs.destroy_srq)(self.raw.as_ptr()) };
    }
}

/// A reliable connected queue pair.
pub(crate) struct Qp {
    pd: Rc<Pd>,
    _cq: Rc<Cq>,
    _srq: Rc<Srq>,
    raw: NonNull<ibv_qp>,
    post: unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int,
    inline_bytes: usize,
}

impl Qp {
    /// Makes one with room for `requests` requests of two pieces, and `inline` bytes in each request; the
    /// device may grant more or, in a second attempt, none.
    pub(crate) fn new(
        pd: &Rc<Pd>,
        cq: &Rc<Cq>,
        srq: &Rc<Srq>,
        requests: u32,
        inline: u32,
    ) -> Result<Self, VerbError> {
        let action = "make a queue pair";
        let post = op(pd.context.ops().post_send, action)?;
        let make = |inline| {
            let mut attributes = ibv_qp_init_attr {
                qp_context: ptr::null_mut(),
                send_cq: cq.raw.as_ptr(),
                recv_cq: cq.raw.as_ptr(),
                srq: srq.raw.as_ptr(),
                cap: ibv_qp_cap {
                    max_send_wr: requests,
                    max_recv_wr: 0,
                    max_send_sge: 2,
                    max_recv_sge: 0,
                    max_inline_data: inline,
                },
                qp_type: sys::IBV_QPT_RC,
                sq_sig_all: 0,
            };
            // SAFETY: domain and queues live, and the queue pair will hold them.
            let raw = unsafe { (pd.context.verbs.create_qp)(pd.raw.as_ptr(), &raw mut attributes) };
            made(raw, action).map(|raw| (raw, attributes.cap.max_inline_data as usize))
        };
        let (raw, inline_bytes) = make(inline).or_else(|_| make(0))?;
        Ok(Self {
            pd: pd.clone(),
            _cq: cq.clone(),
            _srq: srq.clone(),
            raw,
            post,
            inline_bytes,
        })
    }

    pub(crate) fn number(&self) -> u32 {
        // SAFETY: it lives, and the field is set once.
        unsafe { (*self.raw.as_ptr()).qp_num }
    }

    /// The most bytes that fit in a request itself.
    pub(crate) fn inline_bytes(&self) -> usize {
        self.inline_bytes
    }

    pub(crate) fn modify(
        &self,
        mut attributes: ibv_qp_attr,
        mask: c_int,
        action: &'static str,
    ) -> Result<(), VerbError> {
        // SAFETY: the queue pair lives, and the struct is whole.
        let status = unsafe {
            (self.pd.context.verbs.modify_qp)(self.raw.as_ptr(), &raw mut attributes, mask)
        };
        done(status, action)
    }

    /// Posts a chain of requests, with one ring of the doorbell.
    ///
    /// # Safety
    ///
    /// The chain is well formed. Memory that it names and that is not sent inline stays registered until the request
    /// completes, or a later one does, or the queue pair is gone; until then nobody writes to what is sent, nor
    /// touches what is read into.
    pub(crate) unsafe fn post(&self, first: &mut ibv_send_wr) -> Result<(), VerbError> {
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair lives; the caller answers for the chain.
        let status = unsafe { (self.post)(self.raw.as_ptr(), first, &raw mut bad) };
        done(status, "post to a queue pair")
    }
}

impl Drop for Qp {
    fn drop(&mut self) {
        // SAFETY: it was made once. From then on the device neither reads nor writes for it.
        unsafe { (self.pd.context.verbs.destroy_qp)(self.raw.as_ptr()) };
    }
}
