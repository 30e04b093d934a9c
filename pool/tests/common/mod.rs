//! A pool in this process with its HTTP interface, plain sockets, and every answer held against the document of the interface.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use farcall_pool::api::{App, ListenOptions, Serving};
use farcall_pool::client::PoolClient;
use farcall_pool::core::{Core, wall_ms};
use farcall_pool::grant::Signer;
use farcall_pool::history::History;
use farcall_pool::model::{Ask, GpuFacts, NetAddress, Purpose, Quota, ServerFacts};
use farcall_pool::secrets::{SecretKind, generate, hash};
use farcall_pool::state::{NewToken, Role};
use farcall_pool::store::{MemoryStore, Store};
use farcall_pool::wire::{NewJoin, NewSecret, Register, Registered};
use serde_json::Value;

pub(crate) mod contract;
pub(crate) mod setting;

use contract::Contract;

pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) admin: String,
    pub(crate) contract: Contract,
    _runtime: tokio::runtime::Runtime,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_store(Box::new(MemoryStore::default()))
    }

    pub(crate) fn with_store(store: Box<dyn Store>) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let core = Core::start(store, |_| {}).unwrap();
        let admin = generate(SecretKind::Token).unwrap();
        let (new, token_hash) = (token("admin", Role::Admin), hash(&admin));
        core.call_blocking(move |pool, now_ms| pool.create_token(now_ms, new, &token_hash, "test"))
            .unwrap()
            .unwrap();
        let history = History::in_memory().unwrap();
        let app = App::new(core, Signer::generate().unwrap(), history);
        let options = ListenOptions {
            address: "127.0.0.1:0".to_owned(),
            tls: None,
        };
        let serving = runtime.block_on(Serving::bind(&options, app)).unwrap();
        let address = serving.local_addr().unwrap();
        runtime.spawn(serving.run());
        Self {
            address,
            admin,
            contract: Contract::new(),
            _runtime: runtime,
        }
    }

    pub(crate) fn client(&self, token: &str) -> PoolClient {
        PoolClient::new(&format!("http://{}", self.address), None, Some(token)).unwrap()
    }

    pub(crate) fn admin(&self) -> PoolClient {
        self.client(&self.admin)
    }

    /// Status and body of a request that is written here byte by byte; the answer is what the document says.
    pub(crate) fn raw(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &[u8],
    ) -> (u16, Value) {
        let length = format!("content-length: {}\r\n", body.len());
        self.request(method, path, token, &length, body)
    }

    /// The same without saying how long the body is, in chunks.
    pub(crate) fn raw_chunked(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &[u8],
    ) -> (u16, Value) {
        let mut chunked = Vec::new();
        for chunk in body.chunks(16 << 10) {
            chunked.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            chunked.extend(chunk);
            chunked.extend(b"\r\n");
        }
        chunked.extend(b"0\r\n\r\n");
        let encoding = "transfer-encoding: chunked\r\n";
        self.request(method, path, token, encoding, &chunked)
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        framing: &str,
        body: &[u8],
    ) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nhost: pool\r\nconnection: close\r\n{framing}");
        if let Some(token) = token {
            head.push_str(&format!("authorization: Bearer {token}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // A body that is refused unread may not find a reader.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        self.contract.check(method, path, &answer)
    }

    /// A server of two GPUs, by hand.
    pub(crate) fn join(&self, name: &str) -> (PoolClient, Registered) {
        let new = NewJoin {
            name: "test".to_owned(),
            valid_ms: 60_000,
            uses: 1,
        };
        let join: NewSecret = self
            .admin()
            .post("/v1/joins", &new, Duration::ZERO)
            .unwrap();
        let body = Register {
            server: facts(name),
            clock_ms: wall_ms(),
        };
        let joining = self.client(&join.token);
        let registered: Registered = joining.post("/v1/register", &body, Duration::ZERO).unwrap();
        let again = joining.post::<Registered>("/v1/register", &body, Duration::ZERO);
        assert_eq!(again.unwrap_err().status(), Some(401), "a token of one use");
        let credential = registered.credential.clone().unwrap();
        (self.client(&credential), registered)
    }
}

pub(crate) fn token(name: &str, role: Role) -> NewToken {
    NewToken {
        name: name.to_owned(),
        role,
        group: None,
        quota: Quota::default(),
        valid_ms: None,
    }
}

pub(crate) fn facts(name: &str) -> ServerFacts {
    let gpu = |index: u32| GpuFacts {
        uuid: format!("GPU-{name}-{index}"),
        name: "H100".to_owned(),
        memory_bytes: 80 << 30,
        sm: 90,
        healthy: true,
    };
    ServerFacts {
        name: name.to_owned(),
        addresses: vec![NetAddress {
            network: "gpu".to_owned(),
            address: format!("{name}:7474"),
        }],
        kind: "null".to_owned(),
        rdma: false,
        driver_version: String::new(),
        cuda_version: "13.0".to_owned(),
        switch: String::new(),
        version: "0".to_owned(),
        tls: String::new(),
        gpus: vec![gpu(0), gpu(1)],
    }
}

pub(crate) fn ask(gpus: u16, share_permille: u16) -> Ask {
    Ask {
        gpus,
        share_permille,
        memory_bytes: None,
        filters: Vec::new(),
        servers: Vec::new(),
        same_server: false,
        near: String::new(),
        purpose: Purpose::Run,
        hold_ms: None,
        idle_ms: None,
        label: String::new(),
        key: String::new(),
    }
}
