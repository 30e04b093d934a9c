//! A pool, its servers and its clients as processes, and what happens when each of them dies.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Farcall, lines, stderr, stdout};
use farcall_pool::client::{POST, PUT, PoolClient};
use farcall_pool::model::{Settings, Stage};
use farcall_pool::state::views::{GpuView, LeaseView, ServerView};

/// Far more than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

struct Pool {
    farcall: Arc<Farcall>,
    child: Child,
    url: String,
    address: String,
}

impl Pool {
    fn start() -> Self {
        let farcall = Arc::new(Farcall::new());
        let directory = farcall.home.path().join("pool");
        let made = farcall.output(&["pool", "init", "--dir", directory.to_str().unwrap()]);
        assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
        let (child, address) = serve_pool(&farcall, "127.0.0.1:0");
        let pool = Self {
            farcall,
            child,
            url: format!("https://{address}"),
            address,
        };
        let settings = Settings {
            client_ttl_ms: 2_000,
            server_ttl_ms: 2_000,
            idle_ms: None,
            patience_ms: 500,
            ..Settings::default()
        };
        pool.admin()
            .order(PUT, "/v1/settings", Some(&settings))
            .unwrap();
        pool
    }

    fn file(&self, name: &str) -> PathBuf {
        self.farcall.home.path().join("pool").join(name)
    }

    fn admin(&self) -> PoolClient {
        let token = fs::read_to_string(self.file("admin.token")).unwrap();
        PoolClient::new(&self.url, Some(&self.file("ca.pem")), Some(token.trim())).unwrap()
    }

    /// `farcall ARGS` with this pool and this token.
    fn command(&self, token: &str, args: &[&str]) -> std::process::Command {
        let mut command = self.farcall.command(args);
        command
            .env("FARCALL_POOL", &self.url)
            .env("FARCALL_POOL_CA", self.file("ca.pem"))
            .env("FARCALL_POOL_TOKEN_FILE", self.file(token));
        command
    }

    fn output(&self, token: &str, args: &[&str]) -> Output {
        self.command(token, args).output().unwrap()
    }

    fn token(&self, name: &str, options: &[&str]) {
        let args: Vec<&str> = ["pool", "token", "create", name]
            .iter()
            .chain(options)
            .copied()
            .collect();
        let made = self.output("admin.token", &args);
        assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
        fs::write(self.file(name), made.stdout).unwrap();
    }

    fn server(&self, name: &str) -> Server {
        let join = self.output("admin.token", &["pool", "join"]);
        fs::write(self.file("join.token"), join.stdout).unwrap();
        Server::start(self, name)
    }

    fn gpus(&self) -> Vec<GpuView> {
        self.admin().get("/v1/gpus").unwrap()
    }

    fn leases(&self) -> Vec<LeaseView> {
        self.admin().get("/v1/leases?all=true&ended=true").unwrap()
    }

    fn state_of(&self, server: &str) -> String {
        let servers: Vec<ServerView> = self.admin().get("/v1/servers").unwrap();
        let found = servers.into_iter().find(|it| it.name == server);
        found.unwrap().state
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = serve_pool(&self.farcall, &self.address).0;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve_pool(farcall: &Farcall, listen: &str) -> (Child, String) {
    let directory = farcall.home.path().join("pool");
    let args = [
        "pool",
        "serve",
        "--dir",
        directory.to_str().unwrap(),
        "--listen",
        listen,
    ];
    let mut child = farcall
        .command(&args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = lines(child.stdout.take().unwrap()).next().unwrap();
    let address = line.strip_prefix("pool on https://").unwrap().to_owned();
    (child, address)
}

struct Server {
    child: Child,
}

impl Server {
    fn start(pool: &Pool, name: &str) -> Self {
        let (authority, join) = (pool.file("ca.pem"), pool.file("join.token"));
        let credential = pool.file(&format!("{name}.credential"));
        let args = [
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--device",
            "null",
            "--gpus",
            "2",
            "--memory",
            "256MiB",
            "--warm-executors",
            "1",
            "--name",
            name,
            "--pool",
            &pool.url,
            "--pool-ca",
            authority.to_str().unwrap(),
            "--join-token-file",
            join.to_str().unwrap(),
            "--pool-credential",
            credential.to_str().unwrap(),
        ];
        let mut command = pool.farcall.command(&args);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let line = lines(child.stdout.take().unwrap()).next().unwrap();
        assert!(line.starts_with("serving on "), "{line}");
        Self { child }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `farcall run` of a command that runs until it is told to end.
struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    said: Receiver<String>,
    heard: Vec<String>,
}

impl Client {
    fn start(pool: &Pool, token: &str, options: &[&str]) -> Self {
        let args: Vec<&str> = ["run"]
            .iter()
            .chain(options)
            .chain(&["--", "sh", "-c", "echo running >&2; read _; exit 7"])
            .copied()
            .collect();
        let mut command = pool.command(token, &args);
        let mut child = command
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (says, said) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if says.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            stdin: child.stdin.take(),
            child,
            said,
            heard: Vec::new(),
        }
    }

    /// Waits for a line with these words.
    fn says(&mut self, words: &str) {
        loop {
            if self.heard.iter().any(|line| line.contains(words)) {
                return;
            }
            match self.said.recv_timeout(DEADLINE) {
                Ok(line) => self.heard.push(line),
                Err(error) => panic!("{error}: {words:?} was not said, but {:?}", self.heard),
            }
        }
    }

    fn running(mut self) -> Self {
        self.says("running");
        self
    }

    /// Lets the command end.
    fn end(mut self) {
        drop(writeln!(self.stdin.take().unwrap()));
        assert_eq!(
            self.child.wait().unwrap().code(),
            Some(7),
            "{:?}",
            self.heard
        );
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks again and again until it is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < DEADLINE, "it never came that {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Looks all the time whether any GPU is over-committed.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl Watch {
    fn start(pool: &Pool) -> Self {
        let (admin, stop) = (pool.admin(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut looks = 0;
            while !stopped.load(Ordering::SeqCst) {
                // The pool is away at times.
                if let Ok(gpus) = admin.get::<Vec<GpuView>>("/v1/gpus") {
                    gpus.iter().for_each(check);
                    looks += 1;
                }
                std::thread::park_timeout(Duration::from_millis(10));
            }
            looks
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let looks = self.thread.take().unwrap().join().unwrap();
        assert!(looks > 10, "{looks}");
    }
}

fn check(gpu: &GpuView) {
    let shares: u32 = gpu
        .parts
        .iter()
        .map(|it| u32::from(it.share_permille))
        .sum();
    let memory: u64 = gpu.parts.iter().map(|it| it.memory_bytes).sum();
    assert!(shares <= 1000 && memory <= gpu.memory_bytes, "{gpu:?}");
    assert_eq!(shares + u32::from(gpu.share_free_permille), 1000, "{gpu:?}");
}

#[test]
fn three_servers_ten_clients_and_the_death_of_each_party() {
    let mut pool = Pool::start();
    let watch = Watch::start(&pool);
    let mut servers: Vec<Server> = ["s0", "s1", "s2"].map(|name| pool.server(name)).into();
    let names: Vec<String> = (0..10).map(|index| format!("c{index}")).collect();
    for name in &names {
        pool.token(name, &["--gpus", "1"]);
    }
    let half = ["-p", "0.5", "--wait", "60s"];

    // Packing: ten halves fill five GPUs, and leave one whole.
    let start = |name: &String| Client::start(&pool, name, &half);
    let clients: Vec<Client> = names.iter().map(start).collect();
    let mut clients: Vec<Client> = clients.into_iter().map(Client::running).collect();
    let mut free: Vec<u16> = pool
        .gpus()
        .iter()
        .map(|it| it.share_free_permille)
        .collect();
    free.sort_unstable();
    assert_eq!(free, [0, 0, 0, 0, 0, 1000]);

    // A quota says which limit and what uses it.
    let over = pool.output("c0", &["run", "-p", "0.6", "--", "true"]);
    assert_eq!(over.status.code(), Some(77), "{}", stderr(&over));
    for part in ["shares_permille_max", "500 used", "0.5 of c0"] {
        assert!(stderr(&over).contains(part), "{}", stderr(&over));
    }

    // Queueing: two whole GPUs of one server, when enough have ended.
    pool.token("big", &[]);
    let busy = pool.output("big", &["run", "-n", "2", "--", "true"]);
    assert_eq!(busy.status.code(), Some(69), "{}", stderr(&busy));
    let mut big = Client::start(&pool, "big", &["-n", "2", "--wait", "60s"]);
    big.says("place 1 of 1");
    for client in clients.drain(..8) {
        client.end();
    }
    big.says("running");

    // Drain: what runs goes on, nothing new comes.
    let home = |pool: &Pool, client: &str| {
        let leases = pool.leases();
        let mut held = leases
            .iter()
            .filter(|it| it.stage == Stage::Held && it.client == client);
        held.next().unwrap().pieces[0].server.clone()
    };
    let drained = home(&pool, "big");
    let done = pool.output("admin.token", &["pool", "drain", &drained]);
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let refused = pool.output("big", &["run", "--servers", &drained, "--", "true"]);
    assert_eq!(refused.status.code(), Some(69), "{}", stderr(&refused));
    assert_eq!(pool.state_of(&drained), "draining");
    pool.admin()
        .order::<()>(POST, &format!("/v1/servers/{drained}/undrain"), None)
        .unwrap();
    big.end();

    // A client dies: what it held comes back.
    let mut killed = Client::start(&pool, "c0", &half).running();
    killed.kill();
    eventually("the dead client's lease ends", || {
        let leases = pool.leases();
        let mut dead = leases.iter().filter(|it| it.client == "c0");
        dead.all(|lease| lease.stage == Stage::Ended)
    });

    // The pool dies: commands go on; afterwards all is as it was.
    let before: Vec<_> = held(&pool);
    assert_eq!(before.len(), 2);
    pool.kill();
    clients[0].says("the pool does not answer");
    pool.restart();
    eventually("the servers are there again", || {
        ["s0", "s1", "s2"]
            .iter()
            .all(|name| pool.state_of(name) == "up")
    });
    assert_eq!(held(&pool), before);
    Client::start(&pool, "c1", &half).running().end();

    // A server dies: its clients hear of it, and it comes back.
    let dying = home(&pool, "c9");
    let index = ["s0", "s1", "s2"]
        .iter()
        .position(|it| **it == dying)
        .unwrap();
    servers[index].kill();
    clients
        .pop()
        .unwrap()
        .says(&format!("server {dying} does not answer"));
    eventually("it is down", || pool.state_of(&dying) == "down");
    servers[index] = Server::start(&pool, &dying);
    eventually("it is up", || pool.state_of(&dying) == "up");
    for client in clients {
        drop(client);
    }
    eventually("everything is free", || {
        pool.gpus()
            .iter()
            .all(|gpu| gpu.share_free_permille == 1000)
    });
    watch.end();
}

/// Leases that are held, and what they hold.
fn held(pool: &Pool) -> Vec<(String, String, String)> {
    let leases = pool.leases().into_iter();
    leases
        .filter(|lease| lease.stage == Stage::Held)
        .map(|lease| {
            let piece = &lease.pieces[0];
            (
                lease.lease.to_string(),
                lease.client.clone(),
                piece.uuid.clone(),
            )
        })
        .collect()
}

#[test]
fn reservations_tokens_and_what_is_refused() {
    let pool = Pool::start();
    let _server = pool.server("s0");
    pool.token("ann", &[]);

    let lease = pool.output("ann", &["request", "-p", "0.25", "--for", "8h"]);
    assert_eq!(lease.status.code(), Some(0), "{}", stderr(&lease));
    let lease = stdout(&lease).trim().to_owned();
    for _ in 0..2 {
        let run = pool.output("ann", &["run", "--lease", &lease, "--", "true"]);
        assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    }
    let listed = pool.output("ann", &["leases"]);
    assert!(stdout(&listed).contains(&lease), "{}", stdout(&listed));
    let gpus = pool.output("ann", &["gpus"]);
    assert!(stdout(&gpus).contains("0.75"), "{}", stdout(&gpus));
    let health = pool.output("ann", &["health"]);
    assert_eq!(health.status.code(), Some(0), "{}", stderr(&health));

    // Without a grant the server lets nobody in, whatever else is shown.
    let servers: Vec<ServerView> = pool.admin().get("/v1/servers").unwrap();
    let address = servers[0].addresses[0].address.clone();
    let direct = pool.farcall.output(&["devices", "--server", &address]);
    assert_eq!(direct.status.code(), Some(69), "{}", stderr(&direct));
    assert!(
        stderr(&direct).contains("wants a grant"),
        "{}",
        stderr(&direct)
    );

    // A released lease's grant is refused although it has not expired.
    let answer: farcall_pool::wire::LeaseAnswer =
        pool.admin().get(&format!("/v1/leases/{lease}")).unwrap();
    let file = pool.file("stolen");
    fs::write(&file, &answer.grants[0].token).unwrap();
    let shown = [
        "devices",
        "--server",
        &address,
        "--token-file",
        file.to_str().unwrap(),
    ];
    assert_eq!(pool.farcall.output(&shown).status.code(), Some(0));
    let released = pool.output("ann", &["release", &lease]);
    assert_eq!(released.status.code(), Some(0), "{}", stderr(&released));
    eventually("the server refuses the grant", || {
        let output = pool.farcall.output(&shown);
        stderr(&output).contains("has ended")
    });

    // A revoked token is refused, and an administrator's is never in a listing.
    let listed = pool.output("admin.token", &["pool", "token", "list", "--json"]);
    assert!(!stdout(&listed).contains("fct_"), "{}", stdout(&listed));
    pool.output("admin.token", &["pool", "token", "revoke", "ann"]);
    let refused = pool.output("ann", &["leases"]);
    assert_eq!(refused.status.code(), Some(77), "{}", stderr(&refused));
    let forbidden = pool.output(
        "admin.token",
        &["run", "--filter", "gpu.colour=red", "--", "true"],
    );
    assert_eq!(forbidden.status.code(), Some(2));
    let never = pool.output(
        "admin.token",
        &["run", "--filter", "gpu.name=H100", "--", "true"],
    );
    assert!(
        stderr(&never).contains("the pool has 0"),
        "{}",
        stderr(&never)
    );
}
