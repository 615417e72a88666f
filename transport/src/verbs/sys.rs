//! The part of the C interface of libibverbs that is used here, and the library itself.
//!
//! Structs and constants are those of `infiniband/verbs.h` of rdma-core. Its binary interface has been stable
//! since `IBVERBS_1.1`: structs only grow behind what is here, and functions keep their versions. Those of which
//! only the start is read are declared as far as that. What in C is an inline function (`ibv_post_send`,
//! `ibv_poll_cq`, `ibv_req_notify_cq`, `ibv_post_srq_recv`) is a call through the table in the context.
//! Tests compare every size, offset and constant with the header of the machine, and every size and offset with the crate
//! `ibverbs-sys`: see `layout`.

// The names are those of the header, so that both can be read side by side.
#![allow(non_camel_case_types)]

use std::{
    ffi::{c_char, c_int, c_uint, c_void},
    sync::OnceLock,
};

use libloading::Library;

pub(crate) const IBV_WC_RETRY_EXC_ERR: c_int = 12;
pub(crate) const IBV_WC_RNR_RETRY_EXC_ERR: c_int = 13;
pub(crate) const IBV_WC_SUCCESS: c_int = 0;
pub(crate) const IBV_WC_WR_FLUSH_ERR: c_int = 5;
pub(crate) const IBV_WC_REM_ACCESS_ERR: c_int = 10;

pub(crate) const IBV_WC_RECV: c_int = 1 << 7;

pub(crate) const IBV_QPT_RC: c_int = 2;

pub(crate) const IBV_QPS_INIT: c_int = 1;
pub(crate) const IBV_QPS_RTR: c_int = 2;
pub(crate) const IBV_QPS_RTS: c_int = 3;

pub(crate) const IBV_QP_STATE: c_int = 1 << 0;
pub(crate) const IBV_QP_ACCESS_FLAGS: c_int = 1 << 3;
pub(crate) const IBV_QP_PKEY_INDEX: c_int = 1 << 4;
pub(crate) const IBV_QP_PORT: c_int = 1 << 5;
pub(crate) const IBV_QP_AV: c_int = 1 << 7;
pub(crate) const IBV_QP_PATH_MTU: c_int = 1 << 8;
pub(crate) const IBV_QP_TIMEOUT: c_int = 1 << 9;
pub(crate) const IBV_QP_RETRY_CNT: c_int = 1 << 10;
pub(crate) const IBV_QP_RNR_RETRY: c_int = 1 << 11;
pub(crate) const IBV_QP_RQ_PSN: c_int = 1 << 12;
pub(crate) const IBV_QP_MAX_QP_RD_ATOMIC: c_int = 1 << 13;
pub(crate) const IBV_QP_MIN_RNR_TIMER: c_int = 1 << 15;
pub(crate) const IBV_QP_SQ_PSN: c_int = 1 << 16;
pub(crate) const IBV_QP_MAX_DEST_RD_ATOMIC: c_int = 1 << 17;
pub(crate) const IBV_QP_DEST_QPN: c_int = 1 << 20;

pub(crate) const IBV_SEND_FENCE: c_uint = 1 << 0;
pub(crate) const IBV_SEND_SIGNALED: c_uint = 1 << 1;
pub(crate) const IBV_SEND_INLINE: c_uint = 1 << 3;

pub(crate) const IBV_WR_RDMA_WRITE: c_int = 0;
#[cfg(test)]
pub(crate) const IBV_WR_RDMA_WRITE_WITH_IMM: c_int = 1;
pub(crate) const IBV_WR_SEND: c_int = 2;
pub(crate) const IBV_WR_RDMA_READ: c_int = 4;
pub(crate) const IBV_WR_ATOMIC_CMP_AND_SWP: c_int = 5;
pub(crate) const IBV_WR_ATOMIC_FETCH_AND_ADD: c_int = 6;

pub(crate) const IBV_ACCESS_LOCAL_WRITE: c_int = 1;
pub(crate) const IBV_ACCESS_REMOTE_WRITE: c_int = 1 << 1;
pub(crate) const IBV_ACCESS_REMOTE_READ: c_int = 1 << 2;
pub(crate) const IBV_ACCESS_REMOTE_ATOMIC: c_int = 1 << 3;

pub(crate) const IBV_ATOMIC_NONE: c_int = 0;
pub(crate) const IBV_ATOMIC_GLOB: c_int = 2;

pub(crate) const IBV_PORT_ACTIVE: c_int = 4;
pub(crate) const IBV_LINK_LAYER_INFINIBAND: u8 = 1;

pub(crate) const IBV_GID_TYPE_IB: u32 = 0;
pub(crate) const IBV_GID_TYPE_ROCE_V1: u32 = 1;
pub(crate) const IBV_GID_TYPE_ROCE_V2: u32 = 2;

pub(crate) const IBV_EVENT_CQ_ERR: c_int = 0;
pub(crate) const IBV_EVENT_QP_FATAL: c_int = 1;
pub(crate) const IBV_EVENT_QP_REQ_ERR: c_int = 2;
pub(crate) const IBV_EVENT_QP_ACCESS_ERR: c_int = 3;
pub(crate) const IBV_EVENT_DEVICE_FATAL: c_int = 8;
pub(crate) const IBV_EVENT_SRQ_ERR: c_int = 14;

/// Opaque: it is only handed back to the library.
#[repr(C)]
pub(crate) struct ibv_device {
    _opaque: [u8; 0],
}

type Unused = *const c_void;

#[repr(C)]
pub(crate) struct ibv_context_ops {
    /// `_compat_query_device` to `_compat_dereg_mr`, `alloc_mw`, `bind_mw`, `dealloc_mw`, `_compat_create_cq`.
    _before_poll_cq: [Unused; 11],
    pub(crate) poll_cq:
        Option<unsafe extern "C" fn(cq: *mut ibv_cq, entries: c_int, wc: *mut ibv_wc) -> c_int>,
    pub(crate) req_notify_cq:
        Option<unsafe extern "C" fn(cq: *mut ibv_cq, solicited_only: c_int) -> c_int>,
    /// `_compat_cq_event` to `_compat_destroy_srq`.
    _before_post_srq_recv: [Unused; 7],
    pub(crate) post_srq_recv: Option<
        unsafe extern "C" fn(
            srq: *mut ibv_srq,
            wr: *mut ibv_recv_wr,
            bad: *mut *mut ibv_recv_wr,
        ) -> c_int,
    >,
    /// `_compat_create_qp` to `_compat_destroy_qp`.
    _before_post_send: [Unused; 4],
    pub(crate) post_send: Option<
        unsafe extern "C" fn(
            qp: *mut ibv_qp,
            wr: *mut ibv_send_wr,
            bad: *mut *mut ibv_send_wr,
        ) -> c_int,
    >,
    /// `post_recv`, `_compat_create_ah` to `_compat_async_event`.
    _after_post_send: [Unused; 6],
}

/// The start of it.
#[repr(C)]
pub(crate) struct ibv_context {
    pub(crate) device: *mut ibv_device,
    pub(crate) ops: ibv_context_ops,
    pub(crate) cmd_fd: c_int,
    pub(crate) async_fd: c_int,
}

/// Opaque.
#[repr(C)]
pub(crate) struct ibv_pd {
    _opaque: [u8; 0],
}

#[repr(C)]
pub(crate) struct ibv_mr {
    pub(crate) context: *mut ibv_context,
    pub(crate) pd: *mut ibv_pd,
    pub(crate) addr: *mut c_void,
    pub(crate) length: usize,
    pub(crate) handle: u32,
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
}

#[repr(C)]
pub(crate) struct ibv_comp_channel {
    pub(crate) context: *mut ibv_context,
    pub(crate) fd: c_int,
    pub(crate) refcnt: c_int,
}

/// Opaque.
#[repr(C)]
pub(crate) struct ibv_cq {
    _opaque: [u8; 0],
}

/// Opaque.
#[repr(C)]
pub(crate) struct ibv_srq {
    _opaque: [u8; 0],
}

/// The start of it.
#[repr(C)]
pub(crate) struct ibv_qp {
    pub(crate) context: *mut ibv_context,
    pub(crate) qp_context: *mut c_void,
    pub(crate) pd: *mut ibv_pd,
    pub(crate) send_cq: *mut ibv_cq,
    pub(crate) recv_cq: *mut ibv_cq,
    pub(crate) srq: *mut ibv_srq,
    pub(crate) handle: u32,
    pub(crate) qp_num: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ibv_wc {
    pub(crate) wr_id: u64,
    pub(crate) status: c_int,
    pub(crate) opcode: c_int,
    pub(crate) vendor_err: u32,
    pub(crate) byte_len: u32,
    pub(crate) imm_data: u32,
    pub(crate) qp_num: u32,
    pub(crate) src_qp: u32,
    pub(crate) wc_flags: c_uint,
    pub(crate) pkey_index: u16,
    pub(crate) slid: u16,
    pub(crate) sl: u8,
    pub(crate) dlid_path_bits: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ibv_sge {
    pub(crate) addr: u64,
    pub(crate) length: u32,
    pub(crate) lkey: u32,
}

/// `wr.rdma` of a request, which has no name in C.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ibv_wr_rdma {
    pub(crate) remote_addr: u64,
    pub(crate) rkey: u32,
}

/// `wr.atomic` of a request.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ibv_wr_atomic {
    pub(crate) remote_addr: u64,
    pub(crate) compare_add: u64,
    pub(crate) swap: u64,
    pub(crate) rkey: u32,
}

/// `wr` of a request; `atomic` is its largest member.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) union ibv_wr {
    pub(crate) rdma: ibv_wr_rdma,
    pub(crate) atomic: ibv_wr_atomic,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ibv_send_wr {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut ibv_send_wr,
    pub(crate) sg_list: *mut ibv_sge,
    pub(crate) num_sge: c_int,
    pub(crate) opcode: c_int,
    pub(crate) send_flags: c_uint,
    pub(crate) imm_data: u32,
    pub(crate) wr: ibv_wr,
    pub(crate) _qp_type: u64,
    pub(crate) _bind_mw: [u64; 6],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ibv_recv_wr {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut ibv_recv_wr,
    pub(crate) sg_list: *mut ibv_sge,
    pub(crate) num_sge: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ibv_qp_cap {
    pub(crate) max_send_wr: u32,
    pub(crate) max_recv_wr: u32,
    pub(crate) max_send_sge: u32,
    pub(crate) max_recv_sge: u32,
    pub(crate) max_inline_data: u32,
}

#[repr(C)]
pub(crate) struct ibv_qp_init_attr {
    pub(crate) qp_context: *mut c_void,
    pub(crate) send_cq: *mut ibv_cq,
    pub(crate) recv_cq: *mut ibv_cq,
    pub(crate) srq: *mut ibv_srq,
    pub(crate) cap: ibv_qp_cap,
    pub(crate) qp_type: c_int,
    pub(crate) sq_sig_all: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ibv_gid {
    /// Two words in C, hence their alignment.
    pub(crate) words: [u64; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ibv_global_route {
    pub(crate) dgid: ibv_gid,
    pub(crate) flow_label: u32,
    pub(crate) sgid_index: u8,
    pub(crate) hop_limit: u8,
    pub(crate) traffic_class: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ibv_ah_attr {
    pub(crate) grh: ibv_global_route,
    pub(crate) dlid: u16,
    pub(crate) sl: u8,
    pub(crate) src_path_bits: u8,
    pub(crate) static_rate: u8,
    pub(crate) is_global: u8,
    pub(crate) port_num: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ibv_qp_attr {
    pub(crate) qp_state: c_int,
    pub(crate) cur_qp_state: c_int,
    pub(crate) path_mtu: c_int,
    pub(crate) path_mig_state: c_int,
    pub(crate) qkey: u32,
    pub(crate) rq_psn: u32,
    pub(crate) sq_psn: u32,
    pub(crate) dest_qp_num: u32,
    pub(crate) qp_access_flags: c_uint,
    pub(crate) cap: ibv_qp_cap,
    pub(crate) ah_attr: ibv_ah_attr,
    pub(crate) alt_ah_attr: ibv_ah_attr,
    pub(crate) pkey_index: u16,
    pub(crate) alt_pkey_index: u16,
    pub(crate) en_sqd_async_notify: u8,
    pub(crate) sq_draining: u8,
    pub(crate) max_rd_atomic: u8,
    pub(crate) max_dest_rd_atomic: u8,
    pub(crate) min_rnr_timer: u8,
    pub(crate) port_num: u8,
    pub(crate) timeout: u8,
    pub(crate) retry_cnt: u8,
    pub(crate) rnr_retry: u8,
    pub(crate) alt_port_num: u8,
    pub(crate) alt_timeout: u8,
    pub(crate) rate_limit: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ibv_srq_attr {
    pub(crate) max_wr: u32,
    pub(crate) max_sge: u32,
    pub(crate) srq_limit: u32,
}

#[repr(C)]
pub(crate) struct ibv_srq_init_attr {
    pub(crate) srq_context: *mut c_void,
    pub(crate) attr: ibv_srq_attr,
}

/// The start of it: newer headers have more behind, which the function that is called here does not fill in.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ibv_port_attr {
    pub(crate) state: c_int,
    pub(crate) max_mtu: c_int,
    pub(crate) active_mtu: c_int,
    pub(crate) gid_tbl_len: c_int,
    pub(crate) port_cap_flags: u32,
    pub(crate) max_msg_sz: u32,
    pub(crate) bad_pkey_cntr: u32,
    pub(crate) qkey_viol_cntr: u32,
    pub(crate) pkey_tbl_len: u16,
    pub(crate) lid: u16,
    pub(crate) sm_lid: u16,
    pub(crate) lmc: u8,
    pub(crate) max_vl_num: u8,
    pub(crate) sm_sl: u8,
    pub(crate) subnet_timeout: u8,
    pub(crate) init_type_reply: u8,
    pub(crate) active_width: u8,
    pub(crate) active_speed: u8,
    pub(crate) phys_state: u8,
    pub(crate) link_layer: u8,
    pub(crate) flags: u8,
    pub(crate) port_cap_flags2: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ibv_device_attr {
    pub(crate) fw_ver: [c_char; 64],
    pub(crate) node_guid: u64,
    pub(crate) sys_image_guid: u64,
    pub(crate) max_mr_size: u64,
    pub(crate) page_size_cap: u64,
    pub(crate) vendor_id: u32,
    pub(crate) vendor_part_id: u32,
    pub(crate) hw_ver: u32,
    pub(crate) max_qp: c_int,
    pub(crate) max_qp_wr: c_int,
    pub(crate) device_cap_flags: c_uint,
    pub(crate) max_sge: c_int,
    pub(crate) max_sge_rd: c_int,
    pub(crate) max_cq: c_int,
    pub(crate) max_cqe: c_int,
    pub(crate) max_mr: c_int,
    pub(crate) max_pd: c_int,
    pub(crate) max_qp_rd_atom: c_int,
    pub(crate) max_ee_rd_atom: c_int,
    pub(crate) max_res_rd_atom: c_int,
    pub(crate) max_qp_init_rd_atom: c_int,
    pub(crate) max_ee_init_rd_atom: c_int,
    pub(crate) atomic_cap: c_int,
    pub(crate) max_ee: c_int,
    pub(crate) max_rdd: c_int,
    pub(crate) max_mw: c_int,
    pub(crate) max_raw_ipv6_qp: c_int,
    pub(crate) max_raw_ethy_qp: c_int,
    pub(crate) max_mcast_grp: c_int,
    pub(crate) max_mcast_qp_attach: c_int,
    pub(crate) max_total_mcast_qp_attach: c_int,
    pub(crate) max_ah: c_int,
    pub(crate) max_fmr: c_int,
    pub(crate) max_map_per_fmr: c_int,
    pub(crate) max_srq: c_int,
    pub(crate) max_srq_wr: c_int,
    pub(crate) max_srq_sge: c_int,
    pub(crate) max_pkeys: u16,
    pub(crate) local_ca_ack_delay: u8,
    pub(crate) phys_port_cnt: u8,
}

/// The union in an event, which has no name in C. Its other members are pointers, too.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) union ibv_async_element {
    pub(crate) qp: *mut ibv_qp,
    pub(crate) port_num: c_int,
}

#[repr(C)]
pub(crate) struct ibv_async_event {
    pub(crate) element: ibv_async_element,
    pub(crate) event_type: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ibv_gid_entry {
    pub(crate) gid: ibv_gid,
    pub(crate) gid_index: u32,
    pub(crate) port_num: u32,
    pub(crate) gid_type: u32,
    pub(crate) ndev_ifindex: u32,
}

macro_rules! functions {
    ($($name:ident: $symbol:literal ($($argument:ty),*) -> $result:ty;)*) => {
        /// The library, once it is opened.
        pub(crate) struct Verbs {
            $(pub(crate) $name: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// Keeps what the functions point into.
            _library: Library,
        }

        impl Verbs {
            fn open() -> Result<Self, libloading::Error> {
                // SAFETY: opening the library runs its constructors, which are made for that; it is the one that
                // the system's linker finds under this name, as for any program that is linked to it.
                let library = unsafe { Library::new("libibverbs.so.1") }?;
                Ok(Self {
                    $($name: {
                        // SAFETY: the type is that of the function in the header, whose default version has not
                        // changed since it has this name.
                        let symbol = unsafe { library.get($symbol) }?;
                        *symbol
                    },)*
                    _library: library,
                })
            }
        }
    };
}

functions! {
    get_device_list: b"ibv_get_device_list\0" (*mut c_int) -> *mut *mut ibv_device;
    free_device_list: b"ibv_free_device_list\0" (*mut *mut ibv_device) -> ();
    get_device_name: b"ibv_get_device_name\0" (*mut ibv_device) -> *const c_char;
    open_device: b"ibv_open_device\0" (*mut ibv_device) -> *mut ibv_context;
    close_device: b"ibv_close_device\0" (*mut ibv_context) -> c_int;
    query_device: b"ibv_query_device\0" (*mut ibv_context, *mut ibv_device_attr) -> c_int;
    query_port: b"ibv_query_port\0" (*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
    query_gid_ex: b"_ibv_query_gid_ex\0" (*mut ibv_context, u32, u32, *mut ibv_gid_entry, u32, usize) -> c_int;
    get_async_event: b"ibv_get_async_event\0" (*mut ibv_context, *mut ibv_async_event) -> c_int;
    ack_async_event: b"ibv_ack_async_event\0" (*mut ibv_async_event) -> ();
    alloc_pd: b"ibv_alloc_pd\0" (*mut ibv_context) -> *mut ibv_pd;
    dealloc_pd: b"ibv_dealloc_pd\0" (*mut ibv_pd) -> c_int;
    reg_mr: b"ibv_reg_mr\0" (*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
    dereg_mr: b"ibv_dereg_mr\0" (*mut ibv_mr) -> c_int;
    create_comp_channel: b"ibv_create_comp_channel\0" (*mut ibv_context) -> *mut ibv_comp_channel;
    destroy_comp_channel: b"ibv_destroy_comp_channel\0" (*mut ibv_comp_channel) -> c_int;
    create_cq: b"ibv_create_cq\0" (*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
    destroy_cq: b"ibv_destroy_cq\0" (*mut ibv_cq) -> c_int;
    get_cq_event: b"ibv_get_cq_event\0" (*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
    ack_cq_events: b"ibv_ack_cq_events\0" (*mut ibv_cq, c_uint) -> ();
    create_srq: b"ibv_create_srq\0" (*mut ibv_pd, *mut ibv_srq_init_attr) -> *mut ibv_srq;
    destroy_srq: b"ibv_destroy_srq\0" (*mut ibv_srq) -> c_int;
    create_qp: b"ibv_create_qp\0" (*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
    modify_qp: b"ibv_modify_qp\0" (*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
    destroy_qp: b"ibv_destroy_qp\0" (*mut ibv_qp) -> c_int;
    wc_status_str: b"ibv_wc_status_str\0" (c_int) -> *const c_char;
}

/// The library of this machine, opened when it is first asked for; or why it cannot be.
pub(crate) fn verbs() -> Result<&'static Verbs, &'static str> {
    static VERBS: OnceLock<Result<Verbs, String>> = OnceLock::new();
    VERBS
        .get_or_init(|| Verbs::open().map_err(|error| error.to_string()))
        .as_ref()
        .map_err(String::as_str)
}
