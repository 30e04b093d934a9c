//! What a server does with the pool: it joins, says that it is there, and ends what the pool tells it to.
//! Grants it checks alone: while the pool is down, sessions go on and valid grants open new ones.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::client::{ClientError, PoolClient};
use crate::core::wall_ms;
use crate::grant::{Grant, GrantError, SKEW_MS_MAX, Verifier};
use crate::model::{LeaseId, ServerFacts};
use crate::state::{EndOrder, Load};
use crate::wire::{Orders, Register, Registered, RenewServer};

/// Between attempts to reach a pool that does not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How often a server says what it does, however long it may be silent: people watch it.
const REPORT_MS: u64 = 5000;
/// How often a server that still has to end something looks whether it has.
const ENDING: Duration = Duration::from_millis(20);

/// The server's side: its sessions.
pub trait Host: Send + Sync {
    /// What it does; `None`: it does not answer, and nothing can be said of its sessions.
    fn load(&self) -> Option<Load>;
    /// Ends all sessions of a lease, and tells their clients why. Does not wait for that.
    fn end(&self, lease: LeaseId, reason: &str);
}

/// Why a client is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The server has not joined yet: it cannot check grants.
    #[error("this server has not reached its pool yet; try again")]
    NotJoined,
    /// The client has no grant.
    #[error("this server belongs to a pool and wants a grant: use farcall run --pool URL")]
    NoGrant,
    /// The grant is no good.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// What it is part of is over.
    #[error("the lease {0} has ended: {1}")]
    Ended(LeaseId, String),
    /// It is used from elsewhere already.
    #[error(
        "the grant of lease {0} is in use from {1}: get one for here from the pool, with farcall run --lease"
    )]
    Elsewhere(LeaseId, IpAddr),
}

/// Checks who may open a session.
#[derive(Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    verifier: Option<Verifier>,
    /// Leases that have ended, why, and until when their grants could be valid.
    ended: BTreeMap<LeaseId, (String, u64)>,
    /// Where each holder's grants are used from, and until when the last of those that were shown is valid.
    used_from: BTreeMap<(LeaseId, String), (IpAddr, u64)>,
}

impl GateState {
    /// A grant that somebody has copied on its way is no good elsewhere as long as it is valid. Who uses the lease from another
    /// machine has grants of its own from the pool.
    fn bind(&mut self, grant: &Grant, peer: IpAddr, now_ms: u64) -> Result<(), Denied> {
        self.used_from
            .retain(|_, (_, until_ms)| *until_ms >= now_ms);
        let holder = (grant.lease, grant.holder.clone());
        let until_ms = grant.expires_ms.saturating_add(SKEW_MS_MAX);
        let (first, last_ms) = self.used_from.entry(holder).or_insert((peer, until_ms));
        if *first != peer {
            return Err(Denied::Elsewhere(grant.lease, *first));
        }
        *last_ms = until_ms.max(*last_ms);
        Ok(())
    }
}

impl Gate {
    /// Checks what a client shows. `peer`: where it comes from, `None` on this machine.
    ///
    /// # Errors
    /// Why it is not let in.
    pub fn admit(&self, shown: Option<&[u8]>, peer: Option<IpAddr>) -> Result<Grant, Denied> {
        let now_ms = wall_ms();
        let mut state = self.state.lock();
        let verifier = state.verifier.as_ref().ok_or(Denied::NotJoined)?;
        let grant = verifier.verify(shown.ok_or(Denied::NoGrant)?, now_ms)?;
        if let Some((reason, _)) = state.ended.get(&grant.lease) {
            return Err(Denied::Ended(grant.lease, reason.clone()));
        }
        if let Some(peer) = peer {
            state.bind(&grant, peer, now_ms)?;
        }
        Ok(grant)
    }

    fn open(&self, verifier: Verifier, refuse: &[EndOrder], grant_ms: u64) {
        self.state.lock().verifier = Some(verifier);
        refuse.iter().for_each(|order| self.refuse(order, grant_ms));
        self.changed.notify_all();
    }

    fn refuse(&self, order: &EndOrder, grant_ms: u64) {
        let now_ms = wall_ms();
        let until_ms = now_ms + grant_ms + 2 * SKEW_MS_MAX;
        let mut state = self.state.lock();
        state.ended.retain(|_, (_, until_ms)| *until_ms > now_ms);
        state
            .used_from
            .retain(|(lease, _), _| *lease != order.lease);
        state
            .ended
            .insert(order.lease, (order.reason.clone(), until_ms));
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

/// How a server reaches its pool.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The pool; its token is a join token, or nothing where there is a credential.
    pub pool: PoolClient,
    /// Where the credential is kept that the pool gives for the join token.
    pub credential: PathBuf,
    /// What the server is.
    pub facts: ServerFacts,
}

/// A server's tie to its pool. Ends with [`Agent::stop`].
pub struct Agent {
    gate: Arc<Gate>,
    stopped: Arc<AtomicBool>,
}

impl Agent {
    /// Starts a thread that joins, renews, and carries out orders.
    ///
    /// # Errors
    /// No thread; the credential cannot be read.
    pub fn start(options: AgentOptions, gate: Arc<Gate>, host: Arc<dyn Host>) -> io::Result<Self> {
        let credential = read_credential(&options.credential)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let tie = Tie {
            options,
            credential,
            gate: gate.clone(),
            host,
            stopped: stopped.clone(),
            has_joined: false,
        };
        std::thread::Builder::new()
            .name("pool agent".to_owned())
            .spawn(move || tie.run())?;
        Ok(Self { gate, stopped })
    }

    /// Waits until the server has joined. Whether it has. Blocks.
    #[must_use]
    pub fn wait_joined(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.gate.state.lock();
        while state.verifier.is_none() {
            if self
                .gate
                .changed
                .wait_until(&mut state, deadline)
                .timed_out()
            {
                return false;
            }
        }
        true
    }

    /// Lets the thread end; does not wait for it.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").finish_non_exhaustive()
    }
}

struct Tie {
    options: AgentOptions,
    credential: Option<String>,
    gate: Arc<Gate>,
    host: Arc<dyn Host>,
    stopped: Arc<AtomicBool>,
    /// Whether it has joined since it was started.
    has_joined: bool,
}

impl Tie {
    fn run(mut self) {
        while !self.stopped.load(Ordering::SeqCst) {
            let outcome = self.register();
            let outcome = outcome.and_then(|(pool, registered)| self.renew(&pool, &registered));
            let Err(error) = outcome else {
                return;
            };
            log::warn!("pool: {error}");
            if error.status() == Some(401) && self.credential.is_some() {
                // The pool has forgotten this server; the join token may let it in again.
                self.credential = None;
            }
            std::thread::park_timeout(RETRY);
        }
    }

    fn register(&mut self) -> Result<(PoolClient, Registered), ClientError> {
        let pool = &self.options.pool;
        let pool = match &self.credential {
            Some(credential) => pool.with_token(credential),
            None => pool.clone(),
        };
        let body = Register {
            server: self.facts(),
            clock_ms: wall_ms(),
        };
        let registered: Registered = pool.post("/v1/register", &body, Duration::ZERO)?;
        let name = &self.options.facts.name;
        let verifier = Verifier::new(&registered.grant_key, name);
        let verifier = verifier.ok_or_else(|| ClientError::Answer {
            url: pool.url().to_owned(),
            why: "its key is no key".to_owned(),
        })?;
        let mut pool = pool;
        if let Some(credential) = &registered.credential {
            if let Err(error) = write_credential(&self.options.credential, credential) {
                log::error!("{}: {error}", self.options.credential.display());
            }
            pool = pool.with_token(credential);
            self.credential = Some(credential.clone());
        }
        self.gate
            .open(verifier, &registered.refuse, registered.grant_ms);
        for order in &registered.refuse {
            self.host.end(order.lease, &order.reason);
        }
        log::info!("joined the pool at {} as {name}", pool.url());
        self.has_joined = true;
        Ok((pool, registered))
    }

    /// What the server is now: a pool that it joins again must not grant what is lost since.
    fn facts(&self) -> ServerFacts {
        let mut facts = self.options.facts.clone();
        if !self.has_joined {
            // Nobody has used its GPUs yet, and nobody answers for them before it serves.
            return facts;
        }
        let load = self.host.load().unwrap_or_default();
        for gpu in &mut facts.gpus {
            let mut now = load.gpus.iter();
            gpu.healthy &= !now.any(|now| now.uuid == gpu.uuid && now.is_lost);
        }
        facts
    }

    /// Renews until stopped. A pool that is away for a while changes nothing here.
    fn renew(&self, pool: &PoolClient, registered: &Registered) -> Result<(), ClientError> {
        let mut ending: BTreeSet<LeaseId> = BTreeSet::new();
        let mut seen = 0;
        let mut unreachable = false;
        let mut clock = None;
        let mut last = Load::default();
        while !self.stopped.load(Ordering::SeqCst) {
            let known = self.host.load();
            let is_known = known.is_some();
            // Where nothing can be said now, the pool is not to take it for nothing at work: leases would end as unused.
            if let Some(known) = known {
                last = known;
            }
            let load = last.clone();
            let over = |lease: &LeaseId| {
                let used = load.leases.iter().find(|used| used.lease == *lease);
                is_known && used.is_none_or(|used| used.sessions == 0)
            };
            let ended: Vec<LeaseId> = ending.iter().filter(|it| over(it)).copied().collect();
            let still = ending.len() > ended.len();
            let wait_ms = if still || !ended.is_empty() {
                0
            } else {
                registered.renew_within_ms.min(REPORT_MS)
            };
            let body = RenewServer {
                load,
                ended: ended.clone(),
                seen,
                wait_ms,
                clock_ms: Some(wall_ms()),
            };
            let orders: Orders = match pool.post("/v1/renew", &body, Duration::from_millis(wait_ms))
            {
                Ok(orders) => orders,
                Err(error @ ClientError::Unreachable { .. }) => {
                    if !std::mem::replace(&mut unreachable, true) {
                        log::warn!("pool: {error}; sessions go on");
                    }
                    std::thread::park_timeout(RETRY);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if std::mem::replace(&mut unreachable, false) {
                log::info!("the pool answers again");
            }
            if orders.clock != clock {
                match &orders.clock {
                    Some(what) => log::error!("pool: {what}"),
                    None => log::info!("the clock is right again"),
                }
                clock.clone_from(&orders.clock);
            }
            seen = orders.version;
            ending.retain(|lease| !ended.contains(lease));
            for order in &orders.end {
                self.gate.refuse(order, registered.grant_ms);
                if ending.insert(order.lease) {
                    log::info!("lease {} ends: {}", order.lease, order.reason);
                }
                self.host.end(order.lease, &order.reason);
            }
            if still {
                std::thread::park_timeout(ENDING);
            }
        }
        Ok(())
    }
}

fn read_credential(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write_credential(path: &Path, credential: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let beside = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = file.open(&beside)?;
    writeln!(file, "{credential}")?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Denied, EndOrder, Gate};
    use crate::core::wall_ms;
    use crate::grant::{Grant, GrantError, Signer, Verifier};
    use crate::model::LeaseId;

    fn grant(signer: &Signer, lease: u64) -> Vec<u8> {
        grant_for(signer, lease, "h1", 10_000)
    }

    fn grant_for(signer: &Signer, lease: u64, holder: &str, valid_ms: u64) -> Vec<u8> {
        let grant = Grant {
            lease: LeaseId(lease),
            client: "ann".into(),
            server: "s0".into(),
            gpus: Vec::new(),
            holder: holder.into(),
            issued_ms: wall_ms(),
            expires_ms: wall_ms() + valid_ms,
        };
        signer.sign(&grant).into_bytes()
    }

    #[test]
    fn who_comes_in_and_who_does_not() {
        let (gate, signer) = (Gate::default(), Signer::generate().unwrap());
        let (one, two) = (grant(&signer, 1), grant(&signer, 2));
        let (here, there) = (
            Some("10.0.0.1".parse().unwrap()),
            Some("10.0.0.2".parse().unwrap()),
        );
        assert_eq!(gate.admit(Some(&one), here), Err(Denied::NotJoined));
        let ended = EndOrder {
            lease: LeaseId(2),
            reason: "released".to_owned(),
        };
        let verifier = Verifier::new(&signer.public(), "s0").unwrap();
        gate.open(verifier, std::slice::from_ref(&ended), 10_000);
        assert_eq!(gate.admit(None, here), Err(Denied::NoGrant));
        assert_eq!(
            gate.admit(Some(b"fcg1.x.y"), here),
            Err(Denied::Grant(GrantError::Malformed))
        );
        let reason = "released".to_owned();
        assert_eq!(
            gate.admit(Some(&two), here),
            Err(Denied::Ended(LeaseId(2), reason.clone()))
        );
        // The client's processes come from one place; a copy of its grant is no good elsewhere.
        assert!(gate.admit(Some(&one), here).is_ok());
        assert!(gate.admit(Some(&one), here).is_ok());
        assert!(gate.admit(Some(&one), None).is_ok());
        assert!(matches!(
            gate.admit(Some(&one), there),
            Err(Denied::Elsewhere(LeaseId(1), _))
        ));
        let order = EndOrder {
            lease: LeaseId(1),
            reason: reason.clone(),
        };
        gate.refuse(&order, 10_000);
        assert_eq!(
            gate.admit(Some(&one), here),
            Err(Denied::Ended(LeaseId(1), reason))
        );
    }

    /// A lease that is kept for hours is used by one machine after the other; what was copied is no good anywhere else.
    #[test]
    fn each_holder_of_a_lease_uses_it_from_its_own_address() {
        let (gate, signer) = (Gate::default(), Signer::generate().unwrap());
        let verifier = Verifier::new(&signer.public(), "s0").unwrap();
        gate.open(verifier, &[], 10_000);
        let [here, there, thief] = ["10.0.0.1", "10.0.0.2", "10.0.0.9"].map(|it| it.parse().ok());
        let (one, other) = (
            grant_for(&signer, 1, "h1", 10_000),
            grant_for(&signer, 1, "h2", 10_000),
        );
        assert!(gate.admit(Some(&one), here).is_ok());
        assert!(gate.admit(Some(&other), there).is_ok());
        for copy in [&one, &other, &grant_for(&signer, 1, "h1", 20_000)] {
            assert!(matches!(
                gate.admit(Some(copy), thief),
                Err(Denied::Elsewhere(LeaseId(1), _))
            ));
        }
        // The same number of another lease is another holder.
        assert!(gate.admit(Some(&grant(&signer, 2)), thief).is_ok());
        // What no valid grant needs any more is not remembered.
        let mut state = gate.state.lock();
        assert_eq!(state.used_from.len(), 3);
        for (_, until_ms) in state.used_from.values_mut() {
            *until_ms = 0;
        }
        drop(state);
        assert!(gate.admit(Some(&one), thief).is_ok());
        assert_eq!(gate.state.lock().used_from.len(), 1);
    }
}
