//! A round trip of the `ibverbs` crate: SEND and RECV over a reliable connection, both sides polling.
//!
//! `FARCALL_BENCH_RDMA_DEVICE` and `FARCALL_BENCH_GID_INDEX` choose the device and its address, as for perftest.
#![allow(unsafe_code)]

use std::env::var;
use std::error::Error;
use std::hint::spin_loop;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use farcall_bench_peers::{Arguments, measure};
use ibverbs::{
    CompletionQueue, Context, MemoryRegion, QueuePair, QueuePairEndpoint, ibv_qp_type, ibv_wc,
};

const SENT: u64 = 1;
const RECEIVED: u64 = 2;

/// The device that was asked for, or the first.
fn device() -> Result<Context, Box<dyn Error>> {
    let wanted = var("FARCALL_BENCH_RDMA_DEVICE").ok();
    let devices = ibverbs::devices()?;
    let mut devices = devices.iter();
    let is_wanted = |name: Option<&std::ffi::CStr>| match &wanted {
        Some(wanted) => name.is_some_and(|name| name.to_bytes() == wanted.as_bytes()),
        None => true,
    };
    let device = devices.find(|device| is_wanted(device.name()));
    Ok(device.ok_or("no such RDMA device")?.open()?)
}

/// The other side's endpoint, for ours: a line of JSON each way.
fn exchange(
    peer: &TcpStream,
    own: &QueuePairEndpoint,
) -> Result<QueuePairEndpoint, Box<dyn Error>> {
    let mut line = serde_json::to_string(own)?;
    line.push('\n');
    (&*peer).write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(peer).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

/// One side, its memory halved: what it sends, and where it receives.
struct Side<'res> {
    queue: &'res CompletionQueue<'res>,
    pair: QueuePair<'res>,
    memory: MemoryRegion<u8>,
    bytes: usize,
    received: bool,
}

impl Side<'_> {
    fn post_receive(&mut self) -> io::Result<()> {
        let bytes = self.bytes;
        // SAFETY: this half is read only after the completion (`wait`), and the memory lives as long as the pair.
        unsafe { self.pair.post_receive(&mut self.memory, bytes.., RECEIVED) }
    }

    fn send(&mut self) -> io::Result<()> {
        let bytes = self.bytes;
        // SAFETY: this half is never written again, and the memory lives as long as the pair.
        unsafe { self.pair.post_send(&mut self.memory, ..bytes, SENT) }
    }

    /// Polls until a message is here; false where `goes_on` says so first.
    fn wait(&mut self, mut goes_on: impl FnMut() -> bool) -> io::Result<bool> {
        let mut completions = [ibv_wc::default(); 4];
        while !self.received {
            for done in self.queue.poll(&mut completions)? {
                if let Some((status, vendor)) = done.error() {
                    return Err(io::Error::other(format!(
                        "completion {status:?}, {vendor:#x}"
                    )));
                }
                self.received |= done.wr_id() == RECEIVED;
            }
            if !goes_on() {
                return Ok(false);
            }
            spin_loop();
        }
        self.received = false;
        Ok(true)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse()?;
    let context = device()?;
    let (queue, domain) = (context.create_cq(64, 0)?, context.alloc_pd()?);
    let gid = var("FARCALL_BENCH_GID_INDEX").map_or(Ok(1), |index| index.parse())?;
    let prepared = domain
        .create_qp(&queue, &queue, ibv_qp_type::IBV_QPT_RC)
        .set_gid_index(gid)
        .set_max_send_wr(32)
        .set_max_recv_wr(32)
        .build()?;
    let mut peer = if arguments.is_client {
        arguments.connect()?
    } else {
        arguments.accept()?
    };
    let remote = exchange(&peer, &prepared.endpoint())?;
    let mut side = Side {
        queue: &queue,
        pair: prepared.handshake(remote)?,
        memory: domain.allocate(2 * arguments.bytes)?,
        bytes: arguments.bytes,
        received: false,
    };
    side.post_receive()?;
    // Both can receive before either sends.
    peer.write_all(&[1])?;
    peer.read_exact(&mut [0])?;
    if arguments.is_client {
        return measure(arguments.times, || {
            side.send()?;
            side.wait(|| true)?;
            Ok(side.post_receive()?)
        });
    }
    peer.set_nonblocking(true)?;
    let mut turn = 0u64;
    loop {
        let client = &mut peer;
        let goes_on = || {
            turn += 1;
            turn % 4096 != 0 || !matches!(client.read(&mut [0]), Ok(0))
        };
        if !side.wait(goes_on)? {
            return Ok(());
        }
        side.post_receive()?;
        side.send()?;
    }
}
