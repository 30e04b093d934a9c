//! The commands of a pool as a person types them. What programs get, and what happens when somebody dies, is in
//! `fixtures/tests/cluster.rs`.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Farcall, lines, stderr, stdout};
use farcall_pool::client::{PUT, PoolClient};
use farcall_pool::model::Settings;
use farcall_pool::state::views::{LeaseView, ServerView};

/// Far more than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

struct Pool {
    farcall: Farcall,
    child: Child,
    url: String,
}

impl Pool {
    fn start() -> Self {
        let farcall = Farcall::new();
        let directory = farcall.home.path().join("pool");
        let made = farcall.output(&["pool", "init", "--dir", directory.to_str().unwrap()]);
        assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
        let (child, address) = serve_pool(&farcall);
        let pool = Self {
            farcall,
            child,
            url: format!("https://{address}"),
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
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve_pool(farcall: &Farcall) -> (Child, String) {
    let directory = farcall.home.path().join("pool");
    let args = [
        "pool",
        "serve",
        "--dir",
        directory.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
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
}

impl Drop for Server {
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

#[test]
fn tokens_are_limited_extended_disabled_and_expire() {
    let pool = Pool::start();
    let _server = pool.server("s0");
    let administer = |args: &[&str]| {
        let done = pool.output("admin.token", &[&["pool"], args].concat());
        assert_eq!(done.status.code(), Some(0), "{args:?}: {}", stderr(&done));
        stdout(&done)
    };
    let made = administer(&[
        "token", "create", "ann", "--gpus", "0.5", "--for", "1s", "--json",
    ]);
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    assert_eq!(made["name"], "ann");
    fs::write(pool.file("ann"), made["token"].as_str().unwrap()).unwrap();
    eventually("it expires", || {
        stderr(&pool.output("ann", &["gpus"])).contains("has expired")
    });
    administer(&["token", "extend", "ann", "--for", "30d"]);
    let run = |share: &str| pool.output("ann", &["run", "-p", share, "--", "true"]);
    assert_eq!(run("0.5").status.code(), Some(0));
    let over = run("0.6");
    assert_eq!(over.status.code(), Some(77), "{}", stderr(&over));
    assert!(
        stderr(&over).contains("GPUs at once (shares_permille_max): 0.5 at most, 0 used, 0.6 more"),
        "{}",
        stderr(&over)
    );
    administer(&["quota", "client", "ann", "--gpus", "1", "--memory", "1GiB"]);
    assert_eq!(run("0.6").status.code(), Some(0));
    let listed = administer(&["token", "list"]);
    let line = listed.lines().find(|line| line.starts_with("ann"));
    let line = line.unwrap_or_else(|| panic!("{listed}"));
    assert!(
        line.contains("1 gpus, 1 GiB") && line.contains(" d "),
        "{line}"
    );
    administer(&["token", "disable", "ann"]);
    let refused = run("0.5");
    assert_eq!(refused.status.code(), Some(77), "{}", stderr(&refused));
    assert!(
        stderr(&refused).contains("disabled"),
        "{}",
        stderr(&refused)
    );
    administer(&["token", "enable", "ann"]);
    assert_eq!(run("0.5").status.code(), Some(0));
    administer(&["quota", "default", "--longest", "1h"]);
    let long = pool.output("ann", &["request", "-p", "0.05", "--for", "8h"]);
    assert!(
        stderr(&long).contains("length of a lease (hold_ms_max): 60 min at most"),
        "{}",
        stderr(&long)
    );
    // Shares far below a twentieth, beside each other on one GPU.
    for share in ["0.05", "0.01", "0.001"] {
        let lease = pool.output("ann", &["request", "-p", share]);
        assert_eq!(lease.status.code(), Some(0), "{}", stderr(&lease));
    }
    let gpus = stdout(&pool.output("ann", &["gpus"]));
    assert!(gpus.contains("0.939"), "{gpus}");
}

/// What a container gets: a lease by the environment, and nothing else is asked for.
#[test]
fn a_reservation_is_used_through_the_environment() {
    let pool = Pool::start();
    let _server = pool.server("s0");
    pool.token("ann", &[]);
    let all = pool.output("ann", &["request", "-n", "2"]);
    assert_eq!(all.status.code(), Some(0), "{}", stderr(&all));
    let run = |lease: &str| {
        let mut command = pool.command("ann", &["run", "--", "true"]);
        command.env("FARCALL_LEASE", lease).output().unwrap()
    };
    let used = run(stdout(&all).trim());
    assert_eq!(used.status.code(), Some(0), "{}", stderr(&used));
    let other = run("L999");
    assert!(
        stderr(&other).contains("no lease L999"),
        "{}",
        stderr(&other)
    );
    let beside = pool.output("ann", &["run", "--", "true"]);
    assert_eq!(beside.status.code(), Some(69), "{}", stderr(&beside));
}

/// Whoever gives up waiting leaves no place in the queue and no reservation behind.
#[test]
fn a_request_that_is_interrupted_is_given_back() {
    let pool = Pool::start();
    let _server = pool.server("s0");
    pool.token("ann", &[]);
    let all = pool.output("ann", &["request", "-n", "2"]);
    assert_eq!(all.status.code(), Some(0), "{}", stderr(&all));
    let mut waiting = pool
        .command("ann", &["request", "--wait", "forever"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = lines(waiting.stderr.take().unwrap());
    assert!(said.next().unwrap().contains("place 1 of 1"));
    let pid = nix::unistd::Pid::from_raw(waiting.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(130));
    let leases: Vec<LeaseView> = pool.admin().get("/v1/leases?all=true").unwrap();
    assert_eq!(leases.len(), 1, "{leases:?}");
}

/// What people get wrong, and the words that help them.
#[test]
fn a_certificate_that_names_no_address_of_the_pool_is_told_of_and_replaced() {
    let farcall = Farcall::new();
    let directory = farcall.home.path().join("pool");
    let directory = directory.to_str().unwrap();
    let made = farcall.output(&[
        "pool",
        "init",
        "--dir",
        directory,
        "--host",
        "elsewhere.example",
    ]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    // Where it listens, and what it says besides.
    let serve = || {
        let args = ["pool", "serve", "--dir", directory, "--listen", "0.0.0.0:0"];
        let mut command = farcall.command(&args);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let line = lines(child.stdout.take().unwrap()).next().unwrap();
        let port = line.rsplit_once(':').unwrap().1;
        let admin = fs::read_to_string(format!("{directory}/admin.token")).unwrap();
        let authority = PathBuf::from(format!("{directory}/ca.pem"));
        let url = format!("https://127.0.0.1:{port}");
        let pool = PoolClient::new(&url, Some(&authority), Some(admin.trim())).unwrap();
        let answer = pool.get::<Vec<LeaseView>>("/v1/leases");
        child.kill().unwrap();
        (answer, stderr(&child.wait_with_output().unwrap()))
    };
    let (answer, said) = serve();
    assert!(answer.is_err(), "it is not trusted under this name");
    assert!(said.contains("farcall pool certify"), "{said}");
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let args = [
        "pool",
        "certify",
        "--dir",
        directory,
        "--host",
        "127.0.0.1",
        "--host",
        host.trim(),
    ];
    let certified = farcall.output(&args);
    assert_eq!(certified.status.code(), Some(0), "{}", stderr(&certified));
    let (answer, said) = serve();
    assert!(answer.is_ok(), "the authority is the same: {answer:?}");
    assert!(!said.contains("certify"), "{said}");
}

#[test]
fn what_is_typed_wrong_is_told() {
    let pool = Pool::start();
    let _server = pool.server("s0");
    for (args, code, words) in [
        (
            &["pool", "drain", "nowhere"][..],
            1,
            "no server \"nowhere\"",
        ),
        (&["pool", "remove", "s0"], 1, "s0 is up"),
        (
            &["pool", "token", "revoke", "nobody"],
            1,
            "no token called \"nobody\"",
        ),
        (
            &["pool", "token", "revoke", "admin"],
            1,
            "the last administrator",
        ),
        (
            &["pool", "token", "create", "a b"],
            1,
            "name: \"a b\" is not",
        ),
        (
            &["pool", "token", "create", "admin"],
            1,
            "there is a token called",
        ),
        (
            &["pool", "quota", "client", "admin", "--priority", "11"],
            2,
            "11 is not in -10..=10",
        ),
        (
            &["pool", "settings", "--client-ttl", "1ms"],
            1,
            "client_ttl_ms: 1 is not 500 ms to a day",
        ),
        (&["pool", "settings", "--grant", "never"], 2, "is too long"),
        (&["pool", "join", "--uses", "0"], 1, "uses: 0 uses"),
        (&["release", "L999"], 1, "no lease L999"),
        (&["release", "twelve"], 2, "a lease is written L12"),
        (&["request", "-n", "0"], 1, "gpus: 0 is not 1 to 1024"),
        (&["request", "-p", "1.5"], 2, "1.5"),
        (&["request", "-p", "0.0001"], 2, "0.0001"),
        (&["request", "--for", "soon"], 2, "write 90s"),
        (
            &["request", "--filter", "gpu.colour=red"],
            2,
            "gpu.name, gpu.uuid",
        ),
        (
            &["request", "--filter", "gpu.memory>=many"],
            2,
            "write a size",
        ),
        (&["request", "-m", "1TiB"], 69, "the pool has 0"),
        (&["request", "-n", "3"], 69, "the pool has 2"),
        (&["run", "-n", "all", "--", "true"], 2, "say how many"),
        (
            &["run", "--servers", "nowhere", "--", "true"],
            1,
            "no server \"nowhere\" has joined",
        ),
        (
            &["run", "--lease", "L999", "--", "true"],
            1,
            "no lease L999",
        ),
        // A lease is what it is: nothing of these would be done.
        (
            &["run", "--lease", "L1", "-n", "2", "--", "true"],
            2,
            "--devices",
        ),
        (
            &["run", "--lease", "L1", "-p", "1", "--", "true"],
            2,
            "--share",
        ),
        (
            &["run", "--lease", "L1", "--wait", "1s", "--", "true"],
            2,
            "--wait",
        ),
        (
            &["run", "--lease", "L1", "--servers", "s0", "--", "true"],
            2,
            "--servers",
        ),
        (
            &[
                "run",
                "--lease",
                "L1",
                "--filter",
                "gpu.sm>=9",
                "--",
                "true",
            ],
            2,
            "--filter",
        ),
        (
            &["gpus", "--pool", "http://pool.example:7475"],
            78,
            "this machine only",
        ),
        (
            &["gpus", "--pool", "pool.example"],
            78,
            "write https://HOST:PORT",
        ),
        (
            &["gpus", "--pool", "https://127.0.0.1:1"],
            69,
            "check that `farcall pool serve` runs",
        ),
        (&["gpus", "--pool-token-file", "/nowhere"], 78, "/nowhere"),
        (&["gpus", "--pool-ca", "/nowhere"], 78, "/nowhere"),
    ] {
        let output = pool.output("admin.token", args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
        let lines = said.lines().count();
        assert!(lines >= 2, "and what to do about it: {args:?}: {said}");
    }
}
