//! Completion queues and reliable connections.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::device::Device;
use super::memory::Domain;
use super::{abi, check, last_error};
use crate::stream::verbs::error::VerbsError;
use crate::sys::socket;

/// A completion queue with a channel of its own.
pub(crate) struct Cq {
    cq: NonNull<abi::CompletionQueue>,
    channel: NonNull<abi::CompletionChannel>,
    device: Arc<Device>,
}

// SAFETY: libibverbs' objects may be used from every thread; freed once, by the last owner.
unsafe impl Send for Cq {}
// SAFETY: as above.
unsafe impl Sync for Cq {}

/// What completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CompletionKind {
    /// Sends up to this number are done.
    Sent(u64),
    /// The peer's write with this immediate value is done.
    Received(u32),
}

/// How work ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    /// The number of a send that ended one way or the other; None for receives.
    pub(crate) number: Option<u64>,
    pub(crate) outcome: Result<CompletionKind, VerbsError>,
}

/// Most work requests of one chain.
pub(crate) const CHAIN: usize = 16;
/// Completions that one poll takes.
const POLL_MAX: c_int = 16;
const POLL_ENTRIES: usize = 16;
const _: () = assert!(POLL_ENTRIES == 1 << 4 && POLL_MAX == 1 << 4);
/// `Completion::Received` for receives, whose number is of no interest.
const RECEIVE_ID: u64 = u64::MAX;

impl Cq {
    pub(crate) fn new(device: &Arc<Device>, depth: u32) -> Result<Arc<Self>, VerbsError> {
        let library = device.library;
        // SAFETY: an open context.
        let channel = unsafe { (library.ibv_create_comp_channel)(device.context.as_ptr()) };
        let channel = NonNull::new(channel).ok_or_else(|| last_error("ibv_create_comp_channel"))?;
        // SAFETY: an open context and the channel of above.
        let cq = unsafe {
            (library.ibv_create_cq)(
                device.context.as_ptr(),
                c_int::try_from(depth).unwrap_or(c_int::MAX),
                ptr::null_mut(),
                channel.as_ptr(),
                0,
            )
        };
        let Some(cq) = NonNull::new(cq) else {
            let error = last_error("ibv_create_cq");
            // SAFETY: the channel of above, which nothing uses.
            unsafe { (library.ibv_destroy_comp_channel)(channel.as_ptr()) };
            return Err(error);
        };
        let made = Self {
            cq,
            channel,
            device: Arc::clone(device),
        };
        // SAFETY: open as long as `made` lives.
        let events = unsafe { BorrowedFd::borrow_raw(made.raw_fd()) };
        socket::set_nonblocking(events).map_err(|error| VerbsError::System(error.to_string()))?;
        Ok(Arc::new(made))
    }

    /// Readable after a completion that came behind [`Cq::request_event`].
    pub(crate) fn raw_fd(&self) -> RawFd {
        // SAFETY: made in `new`, destroyed with self; the field never changes.
        unsafe { (*self.channel.as_ptr()).fd }
    }

    /// Makes the next completion an event. Poll once more before sleeping.
    pub(crate) fn request_event(&self) -> Result<(), VerbsError> {
        // SAFETY: the context is open as long as self lives.
        let request = unsafe { (*self.device.context.as_ptr()).ops.req_notify_cq };
        // SAFETY: a completion queue of that context.
        check("ibv_req_notify_cq", unsafe { request(self.cq.as_ptr(), 0) })
    }

    /// Takes the events that are there. Does not block.
    pub(crate) fn clear_events(&self) {
        let library = self.device.library;
        let mut taken = 0;
        loop {
            let mut cq = ptr::null_mut();
            let mut context = ptr::null_mut();
            // SAFETY: a channel that does not block, and room for two pointers.
            let got = unsafe {
                (library.ibv_get_cq_event)(self.channel.as_ptr(), &raw mut cq, &raw mut context)
            };
            if got != 0 {
                break;
            }
            taken += 1;
        }
        if taken > 0 {
            // SAFETY: as many events as were got; the channel has this queue only.
            unsafe { (library.ibv_ack_cq_events)(self.cq.as_ptr(), taken) };
        }
    }

    /// Hands every completion that is there to `each`. Returns how many.
    #[inline]
    pub(crate) fn poll(&self, mut each: impl FnMut(Completion)) -> Result<usize, VerbsError> {
        // SAFETY: the context is open as long as self lives.
        let poll = unsafe { (*self.device.context.as_ptr()).ops.poll_cq };
        let mut total = 0;
        loop {
            let mut found = [MaybeUninit::<abi::WorkCompletion>::uninit(); POLL_ENTRIES];
            // SAFETY: a completion queue of that context, and room for POLL_MAX completions.
            let count = unsafe { poll(self.cq.as_ptr(), POLL_MAX, found.as_mut_ptr().cast()) };
            let Ok(count) = usize::try_from(count) else {
                return Err(VerbsError::Verb {
                    verb: "ibv_poll_cq",
                    errno: -count,
                });
            };
            for entry in found.iter().take(count) {
                // SAFETY: the provider wrote the first `count` entries.
                each(completion(unsafe { entry.assume_init_ref() }));
            }
            total += count;
            if count < POLL_ENTRIES {
                return Ok(total);
            }
        }
    }

    /// In a forked child. Async-signal-safe.
    pub(crate) fn abandon(&self) {
        socket::abandon(self.raw_fd());
    }
}

impl Drop for Cq {
    fn drop(&mut self) {
        if !self.device.is_ours() {
            return;
        }
        self.clear_events();
        // SAFETY: made in `new`, all events acknowledged, its queue pairs held an Arc of self.
        unsafe { (self.device.library.ibv_destroy_cq)(self.cq.as_ptr()) };
        // SAFETY: made in `new`; its only queue is gone.
        unsafe { (self.device.library.ibv_destroy_comp_channel)(self.channel.as_ptr()) };
    }
}

fn completion(wc: &abi::WorkCompletion) -> Completion {
    // Of failed work only this, the status and the vendor's code are valid.
    let number = (wc.wr_id != RECEIVE_ID).then_some(wc.wr_id);
    let outcome = if wc.status != abi::WC_SUCCESS {
        Err(VerbsError::from_status(wc.status, wc.vendor_err))
    } else if wc.opcode & abi::WC_RECV != 0 {
        Ok(CompletionKind::Received(u32::from_be(wc.imm_data)))
    } else {
        Ok(CompletionKind::Sent(wc.wr_id))
    };
    Completion { number, outcome }
}

/// A reliable connection. Posting is safe from several threads: providers lock.
pub(crate) struct Qp {
    qp: NonNull<abi::QueuePair>,
    inline_bytes: u32,
    _cq: Arc<Cq>,
    domain: Arc<Domain>,
}

// SAFETY: libibverbs' objects may be used from every thread; freed once, by the last owner.
unsafe impl Send for Qp {}
// SAFETY: as above.
unsafe impl Sync for Qp {}

/// What connects two queue pairs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QpPath {
    pub(crate) port: u8,
    pub(crate) gid_index: u8,
    /// As `enum ibv_mtu`.
    pub(crate) mtu: u8,
    /// RDMA reads under way that we ask for, and that the peer asks for.
    pub(crate) reads_asked: u8,
    pub(crate) reads_served: u8,
    pub(crate) local_psn: u32,
    pub(crate) remote_psn: u32,
    pub(crate) remote_qpn: u32,
    pub(crate) remote_lid: u16,
    pub(crate) remote_gid: [u8; 16],
    /// LIDs alone do not do on this link (RoCE), or a router is between.
    pub(crate) global: bool,
}

/// What a work request does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Verb {
    #[default]
    Write,
    /// Also takes a receive of the peer and gives it this value.
    WriteWithImmediate(u32),
    Read,
}

/// One work request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    pub(crate) verb: Verb,
    /// Address in memory of the domain with this key; nothing at all where `bytes` is 0.
    pub(crate) local: u64,
    pub(crate) lkey: u32,
    pub(crate) bytes: u32,
    pub(crate) remote: u64,
    pub(crate) rkey: u32,
    /// Comes back in [`CompletionKind::Sent`]; None: no completion.
    pub(crate) signal: Option<u64>,
    pub(crate) inline: bool,
}

/// 4.096 us * 2^14 = 67 ms before a packet is sent again.
const TIMEOUT: u8 = 14;
/// Then the peer counts as gone: about half a second. The software device takes 7, the most that can be said, for ever.
const RETRIES: u8 = 6;
/// Waits of `MIN_RNR_TIMER` for a peer that has no receive posted. Credits see to it that this
/// does not happen to peers that keep the rules; 7 would mean for ever.
const RNR_RETRIES: u8 = 6;
/// 0.64 ms, as the verbs encode it.
const MIN_RNR_TIMER: u8 = 12;
/// Routers that a packet may pass.
const HOPS: u8 = 64;

impl Qp {
    /// A queue pair with `depth` sends and receives, in state INIT of `port`.
    pub(crate) fn new(
        domain: &Arc<Domain>,
        cq: &Arc<Cq>,
        depth: u32,
        port: u8,
        inline_bytes: u32,
    ) -> Result<Self, VerbsError> {
        let qp = Self::create(domain, cq, depth, inline_bytes)
            // A device that refuses the wish for inline data instead of lowering it.
            .or_else(|_| Self::create(domain, cq, depth, 0))?;
        let mut attributes = abi::QueueAttributes {
            qp_state: abi::QPS_INIT,
            port_num: port,
            qp_access_flags: (abi::ACCESS_REMOTE_WRITE | abi::ACCESS_REMOTE_READ).cast_unsigned(),
            ..Default::default()
        };
        let mask = abi::QP_STATE | abi::QP_PKEY_INDEX | abi::QP_PORT | abi::QP_ACCESS_FLAGS;
        qp.modify(&mut attributes, mask)?;
        Ok(qp)
    }

    fn create(
        domain: &Arc<Domain>,
        cq: &Arc<Cq>,
        depth: u32,
        inline_bytes: u32,
    ) -> Result<Self, VerbsError> {
        let mut init = abi::QueueInit {
            qp_context: ptr::null_mut(),
            send_cq: cq.cq.as_ptr(),
            recv_cq: cq.cq.as_ptr(),
            srq: ptr::null_mut(),
            cap: abi::QueueCaps {
                max_send_wr: depth,
                max_recv_wr: depth,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: inline_bytes,
            },
            qp_type: abi::QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: a live domain and completion queue of one device, and writable attributes.
        let qp =
            unsafe { (domain.device.library.ibv_create_qp)(domain.pd.as_ptr(), &raw mut init) };
        let qp = NonNull::new(qp).ok_or_else(|| last_error("ibv_create_qp"))?;
        Ok(Self {
            qp,
            // What was granted; providers raise and lower it.
            inline_bytes: init.cap.max_inline_data,
            _cq: Arc::clone(cq),
            domain: Arc::clone(domain),
        })
    }

    pub(crate) fn number(&self) -> u32 {
        // SAFETY: made in `create`, destroyed with self; the field never changes.
        unsafe { (*self.qp.as_ptr()).qp_num }
    }

    /// Most bytes of an inline send that the device granted.
    pub(crate) fn inline_bytes(&self) -> u32 {
        self.inline_bytes
    }

    /// Connects: first to receive, then to send.
    pub(crate) fn connect(&self, path: &QpPath) -> Result<(), VerbsError> {
        let mut attributes = abi::QueueAttributes {
            qp_state: abi::QPS_RTR,
            path_mtu: path.mtu.into(),
            dest_qp_num: path.remote_qpn,
            rq_psn: path.remote_psn,
            max_dest_rd_atomic: path.reads_served.max(1),
            min_rnr_timer: MIN_RNR_TIMER,
            ah_attr: abi::AddressAttributes {
                dgid: abi::RawGid(path.remote_gid),
                sgid_index: path.gid_index,
                hop_limit: HOPS,
                dlid: path.remote_lid,
                is_global: path.global.into(),
                port_num: path.port,
                ..Default::default()
            },
            ..Default::default()
        };
        self.modify(
            &mut attributes,
            abi::QP_STATE
                | abi::QP_AV
                | abi::QP_PATH_MTU
                | abi::QP_DEST_QPN
                | abi::QP_RQ_PSN
                | abi::QP_MAX_DEST_RD_ATOMIC
                | abi::QP_MIN_RNR_TIMER,
        )?;
        let mut attributes = abi::QueueAttributes {
            qp_state: abi::QPS_RTS,
            timeout: TIMEOUT,
            retry_cnt: RETRIES,
            rnr_retry: RNR_RETRIES,
            sq_psn: path.local_psn,
            max_rd_atomic: path.reads_asked.max(1),
            ..Default::default()
        };
        self.modify(
            &mut attributes,
            abi::QP_STATE
                | abi::QP_TIMEOUT
                | abi::QP_RETRY_CNT
                | abi::QP_RNR_RETRY
                | abi::QP_SQ_PSN
                | abi::QP_MAX_QP_RD_ATOMIC,
        )
    }

    fn modify(&self, attributes: &mut abi::QueueAttributes, mask: c_int) -> Result<(), VerbsError> {
        // SAFETY: a live queue pair and initialised attributes.
        let result = unsafe {
            (self.domain.device.library.ibv_modify_qp)(self.qp.as_ptr(), attributes, mask)
        };
        check("ibv_modify_qp", result)
    }

    /// Posts work as one chain, in order: one doorbell for all of it. `chain` must not be empty.
    #[inline]
    pub(crate) fn post(&self, chain: &[Work]) -> Result<(), VerbsError> {
        assert!((1..=CHAIN).contains(&chain.len()));
        let mut elements = [const { MaybeUninit::<abi::ScatterGather>::uninit() }; CHAIN];
        let mut requests = [const { MaybeUninit::<abi::SendRequest>::uninit() }; CHAIN];
        let first = requests.as_mut_ptr().cast::<abi::SendRequest>();
        for (n, work) in chain.iter().enumerate() {
            let element = elements[n].write(abi::ScatterGather {
                addr: work.local,
                length: work.bytes,
                lkey: work.lkey,
            });
            let mut request = request(work);
            request.sg_list = element;
            if n + 1 < chain.len() {
                request.next = first.wrapping_add(n + 1);
            }
            requests[n].write(request);
        }
        let mut bad = ptr::null_mut();
        // SAFETY: the context is open as long as self lives.
        let post = unsafe { (*self.domain.device.context.as_ptr()).ops.post_send };
        // SAFETY: a live queue pair and a chain that outlives the call, which copies it. The
        // memory that it names is checked by the device, by its keys.
        let result = unsafe { post(self.qp.as_ptr(), first, &raw mut bad) };
        check("ibv_post_send", result)
    }

    /// Lets nothing more happen: what is posted is flushed, and what comes from the peer is refused.
    pub(crate) fn halt(&self) -> Result<(), VerbsError> {
        let mut attributes = abi::QueueAttributes {
            qp_state: abi::QPS_ERR,
            ..Default::default()
        };
        self.modify(&mut attributes, abi::QP_STATE)
    }

    /// Posts `count` receives without memory, as writes with an immediate value take them, in
    /// chains of up to 16.
    pub(crate) fn post_receives(&self, mut count: usize) -> Result<(), VerbsError> {
        while count > 0 {
            let now = count.min(CHAIN);
            let mut requests = [abi::ReceiveRequest {
                wr_id: RECEIVE_ID,
                next: ptr::null_mut(),
                sg_list: ptr::null_mut(),
                num_sge: 0,
            }; CHAIN];
            for n in 1..now {
                requests[n - 1].next = &raw mut requests[n];
            }
            let mut bad = ptr::null_mut();
            // SAFETY: the context is open as long as self lives.
            let post = unsafe { (*self.domain.device.context.as_ptr()).ops.post_recv };
            // SAFETY: a live queue pair and a chain that outlives the call, which copies it.
            let result = unsafe { post(self.qp.as_ptr(), requests.as_mut_ptr(), &raw mut bad) };
            check("ibv_post_recv", result)?;
            count -= now;
        }
        Ok(())
    }
}

impl Drop for Qp {
    fn drop(&mut self) {
        if self.domain.device.is_ours() {
            // SAFETY: made in `create`, destroyed once.
            unsafe { (self.domain.device.library.ibv_destroy_qp)(self.qp.as_ptr()) };
        }
    }
}

fn request(work: &Work) -> abi::SendRequest {
    let signaled = if work.signal.is_some() {
        abi::SEND_SIGNALED
    } else {
        0
    };
    let inline = if work.inline { abi::SEND_INLINE } else { 0 };
    let (opcode, immediate) = match work.verb {
        Verb::Write => (abi::WR_RDMA_WRITE, 0),
        Verb::WriteWithImmediate(value) => (abi::WR_RDMA_WRITE_WITH_IMM, value),
        Verb::Read => (abi::WR_RDMA_READ, 0),
    };
    abi::SendRequest {
        wr_id: work.signal.unwrap_or(0),
        next: ptr::null_mut(),
        sg_list: ptr::null_mut(),
        num_sge: i32::from(work.bytes > 0),
        opcode,
        send_flags: signaled | inline,
        imm_data: immediate.to_be(),
        remote_addr: work.remote,
        rkey: work.rkey,
        _unions: [0; 9],
    }
}
