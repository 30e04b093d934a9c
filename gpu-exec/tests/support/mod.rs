//! A server process and clients that speak the protocol, for tests.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "shared by several test programs"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, IoSlice};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use farcall_marshal::record::{Head, Record, encode, record_bytes, split, to_vec};
use farcall_marshal::wire::*;
use farcall_transport::{
    CloseReason, ConnectError, ConnectOptions, Endpoint, Handler, TransportChoice, connect,
};
use parking_lot::{Condvar, Mutex};

/// Longest that anything may take here before it counts as hanging.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A server process; killed when dropped.
pub(crate) struct ServerProcess {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl ServerProcess {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_farcall-test-server"));
        let mut child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .trim()
            .strip_prefix("listening on ")
            .unwrap()
            .to_owned();
        Self { child, address }
    }

    /// Process ids of the executors.
    pub(crate) fn executors(&self) -> Vec<u32> {
        let path = format!("/proc/{0}/task", self.child.id());
        let children = |task: std::path::PathBuf| {
            std::fs::read_to_string(task.join("children")).unwrap_or_default()
        };
        let tasks = std::fs::read_dir(path)
            .unwrap()
            .flatten()
            .map(|entry| children(entry.path()));
        tasks
            .flat_map(|text| {
                text.split_whitespace()
                    .map(|pid| pid.parse().unwrap())
                    .collect::<Vec<u32>>()
            })
            .collect()
    }

    pub(crate) fn signal(&self, signal: &str) {
        assert!(
            Command::new("kill")
                .args([signal, &self.child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the server has said.
#[derive(Default)]
pub(crate) struct Heard {
    replies: Mutex<HashMap<u32, (u32, Vec<u8>)>>,
    pushes: Mutex<Vec<(u16, u32, Vec<u8>)>>,
    closed: Mutex<Option<CloseReason>>,
    changed: Condvar,
}

impl Handler for Heard {
    fn on_frame(&self, _endpoint: &Endpoint, frame: &[u8]) {
        let mut rest = frame;
        while !rest.is_empty() {
            let (head, body, after) = split(rest).unwrap();
            if head.is_reply() {
                assert!(
                    self.replies
                        .lock()
                        .insert(head.ticket, (head.context, body.to_vec()))
                        .is_none(),
                    "two replies"
                );
            } else {
                self.pushes
                    .lock()
                    .push((head.number, head.context, body.to_vec()));
            }
            rest = after;
        }
    }

    fn on_closed(&self, _endpoint: &Endpoint, why: &CloseReason) {
        *self.closed.lock() = Some(why.clone());
        self.changed.notify_all();
    }
}

/// A client with one primary context, number 1, on device 0.
pub(crate) struct Client {
    pub(crate) endpoint: Endpoint,
    pub(crate) heard: Arc<Heard>,
    pub(crate) welcome: Vec<u8>,
    next_ticket: AtomicU32,
    next_bulk: AtomicU64,
    context: AtomicU32,
}

pub(crate) const CONTEXT: u32 = 1;

pub(crate) fn hello(memory_bytes: u64, device_count: u32) -> Vec<u8> {
    hello_with(memory_bytes, device_count, 0)
}

pub(crate) fn hello_with(memory_bytes: u64, device_count: u32, share_permille: u32) -> Vec<u8> {
    let record = SessionOpen {
        range_base: 0,
        range_bytes: 0,
        memory_bytes,
        pid: std::process::id(),
        device_count,
        share_permille,
        host_name: "here",
        program: "test",
    };
    to_vec(Head::request(SessionOpen::NUMBER, 0, 0), &record)
}

impl Client {
    pub(crate) fn connect(server: &str) -> Self {
        Self::connect_with(server, 0).unwrap()
    }

    pub(crate) fn connect_with(server: &str, memory_bytes: u64) -> Result<Self, ConnectError> {
        Self::connect_over(server, memory_bytes, TransportChoice::Auto)
    }

    pub(crate) fn connect_over(
        server: &str,
        memory_bytes: u64,
        transport: TransportChoice,
    ) -> Result<Self, ConnectError> {
        let mut options = ConnectOptions::new(server);
        options.payload = hello(memory_bytes, 0);
        options.transport = transport;
        Self::open(options)
    }

    /// Says hello with what a test made.
    pub(crate) fn connect_for(server: &str, hello: Vec<u8>) -> Result<Self, ConnectError> {
        let mut options = ConnectOptions::new(server);
        options.payload = hello;
        Self::open(options)
    }

    /// Shows a token.
    pub(crate) fn connect_as(server: &str, token: &str) -> Result<Self, ConnectError> {
        let mut options = ConnectOptions::new(server);
        options.payload = hello(0, 0);
        options.token = Some(token.to_owned());
        Self::open(options)
    }

    fn open(mut options: ConnectOptions) -> Result<Self, ConnectError> {
        // With many sessions on few processors an executor may take its time to start.
        options.connect_timeout = PATIENCE;
        let heard = Arc::new(Heard::default());
        let (endpoint, welcome) = connect(&options, heard.clone())?;
        let client = Self {
            endpoint,
            heard,
            welcome,
            next_ticket: AtomicU32::new(1),
            next_bulk: AtomicU64::new(1),
            context: AtomicU32::new(CONTEXT),
        };
        client.send(&CuDevicePrimaryCtxRetain {
            device: 0,
            flags: 0,
        });
        Ok(client)
    }

    pub(crate) fn welcome(&self) -> SessionWelcome<'_> {
        let (_, body, _) = split(&self.welcome).unwrap();
        SessionWelcome::decode_body(body).unwrap()
    }

    /// What is sent from now on is of this context.
    pub(crate) fn enter(&self, context: u32) {
        self.context.store(context, Ordering::Relaxed);
    }

    /// First address for device memory.
    pub(crate) fn base(&self) -> u64 {
        self.welcome().range_base
    }

    /// One way.
    pub(crate) fn send<'a, R: Record<'a>>(&self, record: &R) {
        self.put(record, 0).unwrap();
    }

    fn put<'a, R: Record<'a>>(
        &self,
        record: &R,
        ticket: u32,
    ) -> Result<(), farcall_transport::SendError> {
        let head = Head::request(R::NUMBER, self.context.load(Ordering::Relaxed), ticket);
        self.endpoint
            .append(record_bytes(record), |out| encode(head, record, out))
            .map(|_| ())
    }

    /// Sends and waits for the answer: status and body. `Err` if the session ended.
    pub(crate) fn try_call<'a, R: Record<'a>>(&self, record: &R) -> Result<(u32, Vec<u8>), String> {
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        self.put(record, ticket)
            .map_err(|error| error.to_string())?;
        self.wait(ticket)
    }

    /// Issues a record with a ticket and waits later, with [`Self::wait`].
    pub(crate) fn begin<'a, R: Record<'a>>(&self, record: &R) -> u32 {
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        self.put(record, ticket).unwrap();
        ticket
    }

    pub(crate) fn wait(&self, ticket: u32) -> Result<(u32, Vec<u8>), String> {
        let answered = || self.heard.replies.lock().contains_key(&ticket);
        self.endpoint
            .wait_until(&answered, Some(PATIENCE))
            .map_err(|error| error.to_string())?;
        Ok(self.heard.replies.lock().remove(&ticket).unwrap())
    }

    pub(crate) fn call<'a, R: Record<'a>>(&self, record: &R) -> (u32, Vec<u8>) {
        self.try_call(record).unwrap()
    }

    /// Waits for a message of the server.
    pub(crate) fn push(&self, number: u16) -> Vec<u8> {
        let is_it = |push: &(u16, u32, Vec<u8>)| push.0 == number;
        let came = || self.heard.pushes.lock().iter().any(is_it);
        self.endpoint.wait_until(&came, Some(PATIENCE)).unwrap();
        let mut pushes = self.heard.pushes.lock();
        let at = pushes.iter().position(is_it).unwrap();
        pushes.remove(at).2
    }

    pub(crate) fn alloc(&self, offset: u64, bytes: u64) -> u32 {
        self.call(&CuMemAllocV2 {
            addr: self.base() + offset,
            bytes,
        })
        .0
    }

    pub(crate) fn upload(&self, dst: u64, data: &[u8]) -> u32 {
        if data.len() <= 4096 {
            return self
                .call(&CuMemcpyHtoDAsyncV2 {
                    dst,
                    count: data.len() as u64,
                    stream: 0,
                    bulk: 0,
                    data,
                })
                .0;
        }
        let bulk = self.next_bulk.fetch_add(1, Ordering::Relaxed);
        let ticket = self.begin(&CuMemcpyHtoDAsyncV2 {
            dst,
            count: data.len() as u64,
            stream: 0,
            bulk,
            data: &[],
        });
        self.endpoint
            .bulk_send(bulk, &[IoSlice::new(data)])
            .unwrap();
        self.wait(ticket).unwrap().0
    }

    pub(crate) fn download(&self, src: u64, count: usize) -> Result<Vec<u8>, u32> {
        if count <= 4096 {
            let (status, body) = self.call(&CuMemcpyDtoHAsyncV2 {
                src,
                count: count as u64,
                stream: 0,
                bulk: 0,
            });
            if status != 0 {
                return Err(status);
            }
            return Ok(CuMemcpyDtoHAsyncV2Reply::decode_body(&body)
                .unwrap()
                .data
                .to_vec());
        }
        let bulk = self.next_bulk.fetch_add(1, Ordering::Relaxed);
        let ticket = self.begin(&CuMemcpyDtoHAsyncV2 {
            src,
            count: count as u64,
            stream: 0,
            bulk,
        });
        let mut data = vec![std::mem::MaybeUninit::new(0_u8); count];
        let came = self.endpoint.bulk_recv(bulk, &mut data).unwrap();
        assert_eq!(came, count);
        assert_eq!(self.wait(ticket).unwrap().0, 0);
        // SAFETY: every byte was initialized when the vector was made.
        Ok(data
            .into_iter()
            .map(|byte| unsafe { byte.assume_init() })
            .collect())
    }

    /// Loads PTX: status and message.
    pub(crate) fn load(&self, module: u64, ptx: &str) -> (u32, String) {
        let hash = farcall_marshal::image::content_hash(ptx.as_bytes());
        let image = farcall_marshal::image::compress_for_wire(ptx.as_bytes());
        let record = CuModuleLoadData {
            module,
            kind: 1,
            total_bytes: image.len() as u64,
            bulk: 0,
            hash: &hash,
            image: &image,
        };
        let (status, body) = self.call(&record);
        (
            status,
            CuModuleLoadDataReply::decode_body(&body)
                .unwrap()
                .message
                .to_owned(),
        )
    }

    pub(crate) fn launch(&self, function: u64, stream: u64, grid: u32, block: u32, params: &[u8]) {
        self.send(&launch(function, stream, grid, block, params));
    }

    pub(crate) fn synchronize(&self) -> u32 {
        self.call(&CuCtxSynchronize {}).0
    }

    /// Waits until the session is over.
    pub(crate) fn closed(&self) -> String {
        match self.endpoint.wait_until(&|| false, Some(PATIENCE)) {
            Err(farcall_transport::WaitError::Closed(why)) => why.to_string(),
            other => panic!("still open: {other:?}"),
        }
    }
}

pub(crate) fn launch(
    function: u64,
    stream: u64,
    grid: u32,
    block: u32,
    params: &[u8],
) -> CuLaunchKernel<'_> {
    CuLaunchKernel {
        function,
        stream,
        grid_x: grid,
        grid_y: 1,
        grid_z: 1,
        block_x: block,
        block_y: 1,
        block_z: 1,
        shared_bytes: 0,
        flags: 0,
        params,
    }
}

/// Looks again until it holds; the event it waits for has no other sign.
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::yield_now();
    }
}
