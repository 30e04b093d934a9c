//! What libibverbs lays down in memory: the parts of its stable ABI (`IBVERBS_1.1`) that are
//! used here. A test here holds them against the C header.
#![forbid(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, c_void};

/// A device in the list of `ibv_get_device_list`.
#[repr(C)]
pub(crate) struct DeviceEntry {
    _opaque: [u8; 0],
}

#[repr(C)]
pub(crate) struct ProtectionDomain {
    _opaque: [u8; 0],
}

/// `struct ibv_context`, as far as it is read here.
#[repr(C)]
pub(crate) struct Context {
    pub(crate) device: *mut DeviceEntry,
    pub(crate) ops: ContextOps,
    pub(crate) cmd_fd: c_int,
    pub(crate) async_fd: c_int,
}

/// `struct ibv_context_ops`: where the header's inline verbs find the provider.
#[repr(C)]
pub(crate) struct ContextOps {
    _before: [*mut c_void; 11],
    pub(crate) poll_cq:
        unsafe extern "C" fn(*mut CompletionQueue, c_int, *mut WorkCompletion) -> c_int,
    pub(crate) req_notify_cq: unsafe extern "C" fn(*mut CompletionQueue, c_int) -> c_int,
    _between: [*mut c_void; 12],
    pub(crate) post_send:
        unsafe extern "C" fn(*mut QueuePair, *mut SendRequest, *mut *mut SendRequest) -> c_int,
    pub(crate) post_recv: unsafe extern "C" fn(
        *mut QueuePair,
        *mut ReceiveRequest,
        *mut *mut ReceiveRequest,
    ) -> c_int,
    _after: [*mut c_void; 5],
}

/// `struct ibv_device_attr`.
#[repr(C)]
pub(crate) struct DeviceAttributes {
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
    _max_mr_pd: [c_int; 2],
    pub(crate) max_qp_rd_atom: c_int,
    _max_ee_res: [c_int; 2],
    pub(crate) max_qp_init_rd_atom: c_int,
    _counts: [c_int; 16],
    pub(crate) max_pkeys: u16,
    pub(crate) local_ca_ack_delay: u8,
    pub(crate) phys_port_cnt: u8,
}

/// `struct ibv_port_attr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct PortAttributes {
    pub(crate) state: c_uint,
    pub(crate) max_mtu: c_uint,
    pub(crate) active_mtu: c_uint,
    pub(crate) gid_tbl_len: c_int,
    _caps: [u32; 4],
    pub(crate) pkey_tbl_len: u16,
    pub(crate) lid: u16,
    _rest: [u8; 10],
    pub(crate) link_layer: u8,
    pub(crate) flags: u8,
    _caps2: u16,
    // Room for a library that knows more.
    _spare: [u64; 4],
}

/// `struct ibv_mr`.
#[repr(C)]
pub(crate) struct MemoryRegion {
    pub(crate) context: *mut Context,
    pub(crate) pd: *mut ProtectionDomain,
    pub(crate) addr: *mut c_void,
    pub(crate) length: usize,
    pub(crate) handle: u32,
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
}

/// `struct ibv_comp_channel`.
#[repr(C)]
pub(crate) struct CompletionChannel {
    pub(crate) context: *mut Context,
    pub(crate) fd: c_int,
    pub(crate) refcnt: c_int,
}

/// `struct ibv_cq`, as far as it is read here.
#[repr(C)]
pub(crate) struct CompletionQueue {
    pub(crate) context: *mut Context,
}

/// `struct ibv_qp`, as far as it is read here.
#[repr(C)]
pub(crate) struct QueuePair {
    pub(crate) context: *mut Context,
    _pointers: [*mut c_void; 5],
    pub(crate) handle: u32,
    pub(crate) qp_num: u32,
}

/// `struct ibv_qp_cap`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct QueueCaps {
    pub(crate) max_send_wr: u32,
    pub(crate) max_recv_wr: u32,
    pub(crate) max_send_sge: u32,
    pub(crate) max_recv_sge: u32,
    pub(crate) max_inline_data: u32,
}

/// `struct ibv_qp_init_attr`.
#[repr(C)]
pub(crate) struct QueueInit {
    pub(crate) qp_context: *mut c_void,
    pub(crate) send_cq: *mut CompletionQueue,
    pub(crate) recv_cq: *mut CompletionQueue,
    pub(crate) srq: *mut c_void,
    pub(crate) cap: QueueCaps,
    pub(crate) qp_type: c_uint,
    pub(crate) sq_sig_all: c_int,
}

/// `union ibv_gid`: network byte order, aligned like its widest member.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub(crate) struct RawGid(pub(crate) [u8; 16]);

/// `struct ibv_ah_attr` with `struct ibv_global_route` in front.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct AddressAttributes {
    pub(crate) dgid: RawGid,
    pub(crate) flow_label: u32,
    pub(crate) sgid_index: u8,
    pub(crate) hop_limit: u8,
    pub(crate) traffic_class: u8,
    pub(crate) dlid: u16,
    pub(crate) sl: u8,
    pub(crate) src_path_bits: u8,
    pub(crate) static_rate: u8,
    pub(crate) is_global: u8,
    pub(crate) port_num: u8,
}

/// `struct ibv_qp_attr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct QueueAttributes {
    pub(crate) qp_state: c_uint,
    pub(crate) cur_qp_state: c_uint,
    pub(crate) path_mtu: c_uint,
    pub(crate) path_mig_state: c_uint,
    pub(crate) qkey: u32,
    pub(crate) rq_psn: u32,
    pub(crate) sq_psn: u32,
    pub(crate) dest_qp_num: u32,
    pub(crate) qp_access_flags: c_uint,
    pub(crate) cap: QueueCaps,
    pub(crate) ah_attr: AddressAttributes,
    pub(crate) alt_ah_attr: AddressAttributes,
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

/// `struct ibv_sge`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ScatterGather {
    pub(crate) addr: u64,
    pub(crate) length: u32,
    pub(crate) lkey: u32,
}

/// `struct ibv_send_wr`, of whose unions only the RDMA members are used.
#[repr(C)]
pub(crate) struct SendRequest {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut Self,
    pub(crate) sg_list: *mut ScatterGather,
    pub(crate) num_sge: c_int,
    pub(crate) opcode: c_uint,
    pub(crate) send_flags: c_uint,
    /// Network byte order.
    pub(crate) imm_data: u32,
    pub(crate) remote_addr: u64,
    pub(crate) rkey: u32,
    pub(crate) _unions: [u64; 9],
}

/// `struct ibv_recv_wr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ReceiveRequest {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut Self,
    pub(crate) sg_list: *mut ScatterGather,
    pub(crate) num_sge: c_int,
}

/// `struct ibv_wc`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct WorkCompletion {
    pub(crate) wr_id: u64,
    pub(crate) status: c_uint,
    pub(crate) opcode: c_uint,
    pub(crate) vendor_err: u32,
    pub(crate) byte_len: u32,
    /// Network byte order.
    pub(crate) imm_data: u32,
    pub(crate) qp_num: u32,
    pub(crate) src_qp: u32,
    pub(crate) wc_flags: c_uint,
    pub(crate) pkey_index: u16,
    pub(crate) slid: u16,
    pub(crate) sl: u8,
    pub(crate) dlid_path_bits: u8,
}

/// `struct ibv_async_event`.
#[repr(C)]
pub(crate) struct AsyncEvent {
    pub(crate) element: u64,
    pub(crate) event_type: c_uint,
}

pub(crate) const QPT_RC: c_uint = 2;

pub(crate) const QPS_INIT: c_uint = 1;
pub(crate) const QPS_RTR: c_uint = 2;
pub(crate) const QPS_RTS: c_uint = 3;
pub(crate) const QPS_ERR: c_uint = 6;

pub(crate) const QP_STATE: c_int = 1;
pub(crate) const QP_ACCESS_FLAGS: c_int = 1 << 3;
pub(crate) const QP_PKEY_INDEX: c_int = 1 << 4;
pub(crate) const QP_PORT: c_int = 1 << 5;
pub(crate) const QP_AV: c_int = 1 << 7;
pub(crate) const QP_PATH_MTU: c_int = 1 << 8;
pub(crate) const QP_TIMEOUT: c_int = 1 << 9;
pub(crate) const QP_RETRY_CNT: c_int = 1 << 10;
pub(crate) const QP_RNR_RETRY: c_int = 1 << 11;
pub(crate) const QP_RQ_PSN: c_int = 1 << 12;
pub(crate) const QP_MAX_QP_RD_ATOMIC: c_int = 1 << 13;
pub(crate) const QP_MIN_RNR_TIMER: c_int = 1 << 15;
pub(crate) const QP_SQ_PSN: c_int = 1 << 16;
pub(crate) const QP_MAX_DEST_RD_ATOMIC: c_int = 1 << 17;
pub(crate) const QP_DEST_QPN: c_int = 1 << 20;

pub(crate) const ACCESS_LOCAL_WRITE: c_int = 1;
pub(crate) const ACCESS_REMOTE_WRITE: c_int = 2;
pub(crate) const ACCESS_REMOTE_READ: c_int = 4;

pub(crate) const WR_RDMA_WRITE: c_uint = 0;
pub(crate) const WR_RDMA_WRITE_WITH_IMM: c_uint = 1;
pub(crate) const WR_RDMA_READ: c_uint = 4;
pub(crate) const SEND_SIGNALED: c_uint = 1 << 1;
pub(crate) const SEND_INLINE: c_uint = 1 << 3;
/// First opcode of receives in a completion.
pub(crate) const WC_RECV: c_uint = 1 << 7;

pub(crate) const WC_SUCCESS: c_uint = 0;
pub(crate) const WC_WR_FLUSH_ERR: c_uint = 5;
pub(crate) const WC_REM_ACCESS_ERR: c_uint = 10;
pub(crate) const WC_RETRY_EXC_ERR: c_uint = 12;
pub(crate) const WC_RNR_RETRY_EXC_ERR: c_uint = 13;

pub(crate) const PORT_ACTIVE: c_uint = 4;
pub(crate) const LINK_LAYER_ETHERNET: u8 = 2;

pub(crate) const EVENT_CQ_ERR: c_uint = 0;
pub(crate) const EVENT_QP_ACCESS_ERR: c_uint = 3;
pub(crate) const EVENT_DEVICE_FATAL: c_uint = 8;
pub(crate) const EVENT_PORT_ERR: c_uint = 10;

const _: () = {
    assert!(size_of::<ContextOps>() == 256);
    assert!(std::mem::offset_of!(Context, async_fd) == 268);
    assert!(size_of::<DeviceAttributes>() == 232);
    assert!(std::mem::offset_of!(DeviceAttributes, phys_port_cnt) == 227);
    assert!(std::mem::offset_of!(PortAttributes, link_layer) == 46);
    assert!(std::mem::offset_of!(MemoryRegion, rkey) == 40);
    assert!(std::mem::offset_of!(QueuePair, qp_num) == 52);
    assert!(size_of::<QueueInit>() == 64);
    assert!(size_of::<AddressAttributes>() == 32);
    assert!(size_of::<QueueAttributes>() == 144);
    assert!(std::mem::offset_of!(QueueAttributes, rate_limit) == 136);
    assert!(size_of::<SendRequest>() == 128);
    assert!(size_of::<ReceiveRequest>() == 32);
    assert!(size_of::<WorkCompletion>() == 48);
    assert!(size_of::<AsyncEvent>() == 16);
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;
    use std::mem::offset_of;
    use std::process::{Command, Stdio};

    use super::*;

    /// Lines of C that do not compile unless the header agrees.
    fn assertions() -> String {
        let mut text = String::new();
        let mut holds = |what: String, value: usize| {
            text += &format!("_Static_assert({what} == {value}, \"{what}\");\n");
        };
        macro_rules! layout {
            ($rust:ident = $c:literal { $($field:ident $(= $path:literal)?),* }) => {
                $({
                    let path = [$($path,)? stringify!($field)][0];
                    let at = offset_of!($rust, $field);
                    holds(format!("offsetof(struct {}, {path})", $c), at);
                })*
            };
        }
        layout!(Context = "ibv_context" { device, ops, cmd_fd, async_fd });
        layout!(ContextOps = "ibv_context_ops" { poll_cq, req_notify_cq, post_send, post_recv });
        layout!(DeviceAttributes = "ibv_device_attr" {
            max_mr_size, max_qp_wr, max_sge, max_cqe, max_qp_rd_atom, max_qp_init_rd_atom, max_pkeys, phys_port_cnt
        });
        layout!(PortAttributes = "ibv_port_attr" {
            state, active_mtu, gid_tbl_len, pkey_tbl_len, lid, link_layer, flags
        });
        layout!(MemoryRegion = "ibv_mr" { addr, length, handle, lkey, rkey });
        layout!(CompletionChannel = "ibv_comp_channel" { context, fd, refcnt });
        layout!(CompletionQueue = "ibv_cq" { context });
        layout!(QueuePair = "ibv_qp" { context, handle, qp_num });
        layout!(QueueCaps = "ibv_qp_cap" { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data });
        layout!(QueueInit = "ibv_qp_init_attr" { send_cq, recv_cq, srq, cap, qp_type, sq_sig_all });
        layout!(AddressAttributes = "ibv_ah_attr" {
            dgid = "grh.dgid", flow_label = "grh.flow_label", sgid_index = "grh.sgid_index",
            hop_limit = "grh.hop_limit", traffic_class = "grh.traffic_class", dlid, sl, static_rate, is_global, port_num
        });
        layout!(QueueAttributes = "ibv_qp_attr" {
            qp_state, path_mtu, rq_psn, sq_psn, dest_qp_num, qp_access_flags, cap, ah_attr, alt_ah_attr, pkey_index,
            max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout, retry_cnt, rnr_retry, rate_limit
        });
        layout!(ScatterGather = "ibv_sge" { addr, length, lkey });
        layout!(SendRequest = "ibv_send_wr" {
            wr_id, next, sg_list, num_sge, opcode, send_flags, imm_data,
            remote_addr = "wr.rdma.remote_addr", rkey = "wr.rdma.rkey"
        });
        layout!(ReceiveRequest = "ibv_recv_wr" { wr_id, next, sg_list, num_sge });
        layout!(WorkCompletion = "ibv_wc" {
            wr_id, status, opcode, vendor_err, byte_len, imm_data, qp_num, wc_flags, slid, dlid_path_bits
        });
        layout!(AsyncEvent = "ibv_async_event" { event_type });
        for (name, size) in [
            ("ibv_context_ops", size_of::<ContextOps>()),
            ("ibv_device_attr", size_of::<DeviceAttributes>()),
            ("ibv_qp_init_attr", size_of::<QueueInit>()),
            ("ibv_qp_attr", size_of::<QueueAttributes>()),
            ("ibv_ah_attr", size_of::<AddressAttributes>()),
            ("ibv_send_wr", size_of::<SendRequest>()),
            ("ibv_recv_wr", size_of::<ReceiveRequest>()),
            ("ibv_sge", size_of::<ScatterGather>()),
            ("ibv_wc", size_of::<WorkCompletion>()),
            ("ibv_async_event", size_of::<AsyncEvent>()),
        ] {
            holds(format!("sizeof(struct {name})"), size);
        }
        text
    }

    fn constants() -> String {
        let pairs = [
            ("IBV_QPT_RC", QPT_RC),
            ("IBV_QPS_INIT", QPS_INIT),
            ("IBV_QPS_RTR", QPS_RTR),
            ("IBV_QPS_RTS", QPS_RTS),
            ("IBV_QPS_ERR", QPS_ERR),
            ("IBV_QP_STATE", QP_STATE.cast_unsigned()),
            ("IBV_QP_ACCESS_FLAGS", QP_ACCESS_FLAGS.cast_unsigned()),
            ("IBV_QP_PKEY_INDEX", QP_PKEY_INDEX.cast_unsigned()),
            ("IBV_QP_PORT", QP_PORT.cast_unsigned()),
            ("IBV_QP_AV", QP_AV.cast_unsigned()),
            ("IBV_QP_PATH_MTU", QP_PATH_MTU.cast_unsigned()),
            ("IBV_QP_TIMEOUT", QP_TIMEOUT.cast_unsigned()),
            ("IBV_QP_RETRY_CNT", QP_RETRY_CNT.cast_unsigned()),
            ("IBV_QP_RNR_RETRY", QP_RNR_RETRY.cast_unsigned()),
            ("IBV_QP_RQ_PSN", QP_RQ_PSN.cast_unsigned()),
            (
                "IBV_QP_MAX_QP_RD_ATOMIC",
                QP_MAX_QP_RD_ATOMIC.cast_unsigned(),
            ),
            ("IBV_QP_MIN_RNR_TIMER", QP_MIN_RNR_TIMER.cast_unsigned()),
            ("IBV_QP_SQ_PSN", QP_SQ_PSN.cast_unsigned()),
            (
                "IBV_QP_MAX_DEST_RD_ATOMIC",
                QP_MAX_DEST_RD_ATOMIC.cast_unsigned(),
            ),
            ("IBV_QP_DEST_QPN", QP_DEST_QPN.cast_unsigned()),
            ("IBV_ACCESS_LOCAL_WRITE", ACCESS_LOCAL_WRITE.cast_unsigned()),
            ("IBV_ACCESS_REMOTE_READ", ACCESS_REMOTE_READ.cast_unsigned()),
            ("IBV_WR_RDMA_READ", WR_RDMA_READ),
            (
                "IBV_ACCESS_REMOTE_WRITE",
                ACCESS_REMOTE_WRITE.cast_unsigned(),
            ),
            ("IBV_WR_RDMA_WRITE", WR_RDMA_WRITE),
            ("IBV_WR_RDMA_WRITE_WITH_IMM", WR_RDMA_WRITE_WITH_IMM),
            ("IBV_SEND_SIGNALED", SEND_SIGNALED),
            ("IBV_SEND_INLINE", SEND_INLINE),
            ("IBV_WC_RECV", WC_RECV),
            ("IBV_WC_WR_FLUSH_ERR", WC_WR_FLUSH_ERR),
            ("IBV_WC_REM_ACCESS_ERR", WC_REM_ACCESS_ERR),
            ("IBV_WC_RETRY_EXC_ERR", WC_RETRY_EXC_ERR),
            ("IBV_WC_RNR_RETRY_EXC_ERR", WC_RNR_RETRY_EXC_ERR),
            ("IBV_PORT_ACTIVE", PORT_ACTIVE),
            ("IBV_LINK_LAYER_ETHERNET", LINK_LAYER_ETHERNET.into()),
            ("IBV_EVENT_CQ_ERR", EVENT_CQ_ERR),
            ("IBV_EVENT_QP_ACCESS_ERR", EVENT_QP_ACCESS_ERR),
            ("IBV_EVENT_DEVICE_FATAL", EVENT_DEVICE_FATAL),
            ("IBV_EVENT_PORT_ERR", EVENT_PORT_ERR),
        ];
        let line = |(name, value): (&str, c_uint)| {
            format!("_Static_assert((unsigned) {name} == {value}, \"{name}\");\n")
        };
        pairs.into_iter().map(line).collect()
    }

    #[test]
    fn the_c_header_agrees() {
        let mut compiler = Command::new("cc")
            .args(["-std=gnu11", "-fsyntax-only", "-xc", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cc: apt-get install gcc");
        let header = "#include <stddef.h>\n#include <infiniband/verbs.h>\n".to_owned();
        let program = header + &assertions() + &constants();
        compiler
            .stdin
            .take()
            .unwrap()
            .write_all(program.as_bytes())
            .unwrap();
        let outcome = compiler.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&outcome.stderr);
        assert!(
            outcome.status.success(),
            "(apt-get install libibverbs-dev)\n{text}"
        );
    }
}
