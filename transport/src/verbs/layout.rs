//! Whether the structs and constants of [`sys`] are those of rdma-core.

use std::mem::offset_of;

use super::sys::*;

/// Has `$layout` look at every struct: with the word "whole" at its size, too. A field may have another name in C and,
/// behind `@`, in the crate, or none there that others may use.
macro_rules! structs {
    ($layout:ident, $into:ident) => {
        $layout!($into, ibv_context_ops "whole" { poll_cq, req_notify_cq, post_srq_recv, post_send });
        $layout!($into, ibv_context { device, ops, cmd_fd, async_fd });
        $layout!($into, ibv_mr "whole" { context, pd, addr, length, handle, lkey, rkey });
        $layout!($into, ibv_comp_channel "whole" { context, fd, refcnt });
        $layout!($into, ibv_qp { context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num });
        $layout!($into, ibv_wc "whole" {
            wr_id @ [], status @ [], opcode @ [], vendor_err @ [], byte_len @ [], imm_data, qp_num,
            src_qp, wc_flags,
            pkey_index, slid, sl, dlid_path_bits,
        });
        $layout!($into, ibv_sge "whole" { addr, length, lkey });
        $layout!($into, ibv_send_wr "whole" {
            wr_id, next, sg_list, num_sge, opcode, send_flags,
            imm_data @ [__bindgen_anon_1.imm_data],
            wr.rdma.remote_addr = "wr.rdma.remote_addr", wr.rdma.rkey = "wr.rdma.rkey",
            wr.atomic.remote_addr = "wr.atomic.remote_addr",
            wr.atomic.compare_add = "wr.atomic.compare_add", wr.atomic.swap = "wr.atomic.swap",
            wr.atomic.rkey = "wr.atomic.rkey",
            _qp_type = "qp_type" @ [qp_type], _bind_mw = "bind_mw" @ [__bindgen_anon_2],
        });
        $layout!($into, ibv_recv_wr "whole" { wr_id, next, sg_list, num_sge });
        $layout!($into, ibv_qp_cap "whole" {
            max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data,
        });
        $layout!($into, ibv_qp_init_attr "whole" {
            qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all,
        });
        $layout!($into, ibv_global_route "whole" {
            dgid, flow_label, sgid_index, hop_limit, traffic_class,
        });
        $layout!($into, ibv_ah_attr "whole" {
            grh, dlid, sl, src_path_bits, static_rate, is_global, port_num,
        });
        $layout!($into, ibv_qp_attr "whole" {
            qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num,
            qp_access_flags, cap, ah_attr, alt_ah_attr, pkey_index, alt_pkey_index,
            en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer,
            port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout, rate_limit,
        });
        $layout!($into, ibv_srq_attr "whole" { max_wr, max_sge, srq_limit });
        $layout!($into, ibv_srq_init_attr "whole" { srq_context, attr });
        $layout!($into, ibv_port_attr {
            state, max_mtu, active_mtu, gid_tbl_len, port_cap_flags, max_msg_sz, bad_pkey_cntr,
            qkey_viol_cntr, pkey_tbl_len, lid, sm_lid, lmc, max_vl_num, sm_sl, subnet_timeout,
            init_type_reply, active_width, active_speed, phys_state, link_layer, flags,
            port_cap_flags2,
        });
        $layout!($into, ibv_device_attr "whole" {
            fw_ver, node_guid, sys_image_guid, max_mr_size, page_size_cap, vendor_id,
            vendor_part_id, hw_ver, max_qp, max_qp_wr, device_cap_flags, max_sge, max_sge_rd,
            max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom, max_ee_rd_atom, max_res_rd_atom,
            max_qp_init_rd_atom, max_ee_init_rd_atom, atomic_cap, max_ee, max_rdd, max_mw,
            max_raw_ipv6_qp, max_raw_ethy_qp, max_mcast_grp, max_mcast_qp_attach,
            max_total_mcast_qp_attach, max_ah, max_fmr, max_map_per_fmr, max_srq, max_srq_wr,
            max_srq_sge, max_pkeys, local_ca_ack_delay, phys_port_cnt,
        });
        $layout!($into, ibv_async_event "whole" { element, event_type });
        $layout!($into, ibv_gid_entry "whole" {
            gid, gid_index, port_num, gid_type, ndev_ifindex,
        });
    };
}

mod header {
    use std::{
        fmt::Write as _,
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::*;

    /// Appends to `$asserts` that the struct has its fields where C has them; and, unless only its start is declared,
    /// its size.
    macro_rules! layout {
        ($asserts:ident, $name:ident $($whole:literal)? {
            $($($field:ident).+ $(= $c:literal)? $(@ [$($there:ident).*])?),* $(,)?
        }) => {
            let name = stringify!($name);
            $(
                let _: &str = $whole;
                let size = size_of::<$name>();
                writeln!($asserts, "_Static_assert(sizeof(struct {name}) == {size}, \"{name}\");").unwrap();
            )?
            $({
                let c: &[&str] = &[$($c,)? stringify!($($field).+)];
                let (field, at) = (c[0], offset_of!($name, $($field).+));
                writeln!(
                    $asserts,
                    "_Static_assert(offsetof(struct {name}, {field}) == {at}, \"{name}.{field}\");"
                )
                .unwrap();
            })*
        };
    }

    macro_rules! constants {
        ($asserts:ident, $($name:ident),* $(,)?) => {
            $(writeln!(
                $asserts,
                "_Static_assert({0} == {1}, \"{0}\");",
                stringify!($name),
                $name
            )
            .unwrap();)*
        };
    }

    #[test]
    #[ignore = "needs cc and libibverbs-dev: tests/rdma/run"]
    fn every_struct_and_constant_is_that_of_the_header() {
        let mut asserts = "#include <stddef.h>\n#include <infiniband/verbs.h>\n".to_owned();
        structs!(layout, asserts);
        constants!(
            asserts,
            IBV_WC_SUCCESS,
            IBV_WC_WR_FLUSH_ERR,
            IBV_WC_REM_ACCESS_ERR,
            IBV_WC_RETRY_EXC_ERR,
            IBV_WC_RECV,
            IBV_WC_RNR_RETRY_EXC_ERR,
            IBV_QPT_RC,
            IBV_QPS_INIT,
            IBV_QPS_RTR,
            IBV_QPS_RTS,
            IBV_QP_STATE,
            IBV_QP_ACCESS_FLAGS,
            IBV_QP_PKEY_INDEX,
            IBV_QP_PORT,
            IBV_QP_AV,
            IBV_QP_PATH_MTU,
            IBV_QP_TIMEOUT,
            IBV_QP_RETRY_CNT,
            IBV_QP_RNR_RETRY,
            IBV_QP_RQ_PSN,
            IBV_QP_MAX_QP_RD_ATOMIC,
            IBV_QP_MIN_RNR_TIMER,
            IBV_QP_SQ_PSN,
            IBV_QP_MAX_DEST_RD_ATOMIC,
            IBV_QP_DEST_QPN,
            IBV_SEND_FENCE,
            IBV_SEND_SIGNALED,
            IBV_SEND_INLINE,
            IBV_WR_RDMA_WRITE,
            IBV_WR_RDMA_WRITE_WITH_IMM,
            IBV_WR_SEND,
            IBV_WR_RDMA_READ,
            IBV_WR_ATOMIC_CMP_AND_SWP,
            IBV_WR_ATOMIC_FETCH_AND_ADD,
            IBV_ACCESS_LOCAL_WRITE,
            IBV_ACCESS_REMOTE_WRITE,
            IBV_ACCESS_REMOTE_READ,
            IBV_ACCESS_REMOTE_ATOMIC,
            IBV_ATOMIC_NONE,
            IBV_ATOMIC_GLOB,
            IBV_PORT_ACTIVE,
            IBV_LINK_LAYER_INFINIBAND,
            IBV_GID_TYPE_IB,
            IBV_GID_TYPE_ROCE_V1,
            IBV_GID_TYPE_ROCE_V2,
            IBV_EVENT_CQ_ERR,
            IBV_EVENT_QP_FATAL,
            IBV_EVENT_QP_REQ_ERR,
            IBV_EVENT_QP_ACCESS_ERR,
            IBV_EVENT_DEVICE_FATAL,
            IBV_EVENT_SRQ_ERR,
        );
        let mut compiler = Command::new("cc")
            .args(["-std=c11", "-fsyntax-only", "-x", "c", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = compiler.stdin.take().unwrap();
        input.write_all(asserts.as_bytes()).unwrap();
        drop(input);
        assert!(compiler.wait().unwrap().success(), "see what cc says");
    }
}

/// The crate has its layouts from bindgen, which had them from the header of the rdma-core that comes with it.
#[cfg(feature = "rdma-ibverbs")]
mod ibverbs {
    use super::*;

    /// Asserts that the struct has its fields where the crate has them; and, unless only its start is declared, its
    /// size. Counts what was compared.
    macro_rules! layout {
        ($compared:ident, $name:ident $($whole:literal)? {
            $($($field:ident).+ $(= $c:literal)? $(@ [$($there:ident).*])?),* $(,)?
        }) => {
            $(
                let _: &str = $whole;
                let (ours, theirs) = (size_of::<$name>(), size_of::<ibverbs_sys::$name>());
                assert_eq!(ours, theirs, "the size of {}", stringify!($name));
                $compared += 1;
            )?
            $(place!($compared, $name, [$($field).+] $(@ [$($there).*])?);)*
        };
    }

    macro_rules! place {
        ($compared:ident, $name:ident, [$($field:ident).+]) => {
            place!($compared, $name, [$($field).+] @ [$($field).+]);
        };
        ($compared:ident, $name:ident, [$($field:ident).+] @ []) => {};
        ($compared:ident, $name:ident, [$($field:ident).+] @ [$($there:ident).+]) => {
            let ours = offset_of!($name, $($field).+);
            let theirs = offset_of!(ibverbs_sys::$name, $($there).+);
            assert_eq!(ours, theirs, "{}.{}", stringify!($name), stringify!($($field).+));
            $compared += 1;
        };
    }

    #[test]
    fn every_struct_is_that_of_the_crate() {
        let mut compared = 0;
        structs!(layout, compared);
        println!("{compared} sizes and offsets are those of ibverbs-sys");
    }
}
