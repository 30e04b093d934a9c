//! `farcall serve --pool`: a server whose clients need the pool's grants.
#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use farcall_config::{parse_server, read_token_file};
use farcall_gpu_exec::{
    Admission, Admitted, AdmittedDevice, Inventory, ServeOptions, Server, Sessions, Signals,
};
use farcall_pool::agent::{Agent, AgentOptions, Gate, Host};
use farcall_pool::client::PoolClient;
use farcall_pool::model::{Check, GpuFacts, LeaseId, NetAddress, ServerFacts};
use farcall_pool::state::{LeaseUse, Load};

use super::args::MemberArgs;
use super::failure as pool_failure;
use crate::args::ServeArgs;
use crate::connect::config_failure;
use crate::failure::{Failure, code};
use crate::health::host_checks;
use crate::serve::start_metrics;

/// For the supervisor's answer; its loop never blocks for long.
const ANSWER: Duration = Duration::from_secs(5);
/// Between two looks at how this machine is.
const CHECKS: Duration = Duration::from_mins(1);
/// How long the first attempt to join may take before the server says that it serves.
const JOIN: Duration = Duration::from_secs(5);

/// Serves in the pool at `url` until told to stop.
pub(crate) fn serve_in_pool(
    serve: &ServeArgs,
    url: &str,
    mut options: ServeOptions,
) -> Result<ExitCode, Failure> {
    let args = &serve.member;
    let token = match &args.join_token_file {
        Some(path) => {
            let token = read_token_file(path).map_err(|error| config_failure(&error))?;
            Some(token.expose().to_owned())
        }
        None => None,
    };
    let pool = PoolClient::new(url, args.pool_ca.as_deref(), token.as_deref());
    let pool = pool.map_err(|error| pool_failure(&error))?;
    let signals = Signals::block().map_err(|error| crate::serve::failure(&error))?;
    let gate = Arc::new(Gate::default());
    options.admission = Some(Arc::new(GrantAdmission(gate.clone())));
    let server = Server::bind(&options).map_err(|error| crate::serve::failure(&error))?;
    start_metrics(serve, &server)?;
    let inventory = server.inventory().map_err(|error| {
        Failure::new(
            code::FAILED,
            error.to_string(),
            "FARCALL_LOG=debug says more",
        )
    })?;
    let address = advertised(args, server.local_addr())?;
    let options = AgentOptions {
        pool,
        credential: credential(args)?,
        facts: facts(args, &inventory, address),
    };
    let host = Arc::new(PoolHost {
        sessions: server.sessions(),
        serves_gpus: inventory.kind.to_string() == "cuda",
        checks: Mutex::default(),
    });
    let agent = Agent::start(options, gate, host).map_err(|error| {
        Failure::new(code::FAILED, error.to_string(), "check --pool-credential")
    })?;
    let device = inventory.kind;
    server
        .serve(signals, |address| {
            if !agent.wait_joined(JOIN) {
                eprintln!("farcall: the pool at {url} has not answered yet; trying on");
            }
            let _ = writeln!(io::stdout(), "serving on {address} (--device {device})");
            let _ = io::stdout().flush();
        })
        .map_err(|error| crate::serve::failure(&error))?;
    agent.stop();
    Ok(ExitCode::SUCCESS)
}

/// Lets in who has a grant.
#[derive(Debug)]
struct GrantAdmission(Arc<Gate>);

impl Admission for GrantAdmission {
    fn admit(&self, shown: Option<&[u8]>, peer: Option<SocketAddr>) -> Result<Admitted, String> {
        let grant = self.0.admit(shown, peer.map(|peer| peer.ip()));
        let grant = grant.map_err(|denied| denied.to_string())?;
        let device = |gpu: farcall_pool::grant::GrantedGpu| AdmittedDevice {
            uuid: gpu.uuid,
            memory_bytes: gpu.memory_bytes,
            share_permille: gpu.share_permille,
        };
        Ok(Admitted {
            lease: grant.lease.0,
            client: grant.client,
            devices: grant.gpus.into_iter().map(device).collect(),
        })
    }
}

/// The supervisor, for the agent.
struct PoolHost {
    sessions: Sessions,
    serves_gpus: bool,
    checks: Mutex<Option<(Instant, Vec<Check>)>>,
}

impl PoolHost {
    /// How this machine is, looked at once a minute.
    fn checks(&self) -> Vec<Check> {
        let mut known = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, checks)) = &*known
            && at.elapsed() < CHECKS
        {
            return checks.clone();
        }
        let checks = host_checks(self.serves_gpus);
        *known = Some((Instant::now(), checks.clone()));
        checks
    }
}

impl Host for PoolHost {
    fn load(&self) -> Option<Load> {
        let activity = self.sessions.activity(ANSWER)?;
        let leases = activity.leases.into_iter().map(|used| LeaseUse {
            lease: LeaseId(used.lease),
            sessions: used.sessions,
            idle_ms: super::ms(used.idle),
            used_bytes: used.used_bytes,
        });
        Some(Load {
            sessions: activity.sessions,
            used_bytes: activity.used_bytes,
            leases: leases.collect(),
            checks: self.checks(),
        })
    }

    fn end(&self, lease: LeaseId, reason: &str) {
        self.sessions.end_lease(lease.0, reason);
    }
}

fn facts(args: &MemberArgs, inventory: &Inventory, address: String) -> ServerFacts {
    let gpus = inventory.devices.iter().map(|device| GpuFacts {
        uuid: device.uuid.clone(),
        name: device.name.clone(),
        memory_bytes: device.total_bytes,
        sm: device.sm,
        healthy: true,
    });
    let cuda = inventory.driver_version;
    ServerFacts {
        name: inventory.server_name.clone(),
        addresses: vec![NetAddress {
            network: "gpu".to_owned(),
            address,
        }],
        kind: inventory.kind.to_string(),
        rdma: false,
        driver_version: String::new(),
        cuda_version: format!("{}.{}", cuda / 1000, cuda % 1000 / 10),
        switch: args.switch.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        gpus: gpus.collect(),
    }
}

fn advertised(args: &MemberArgs, bound: SocketAddr) -> Result<String, Failure> {
    let advice = "say where clients reach this server: --advertise HOST:PORT";
    if let Some(address) = &args.advertise {
        return parse_server(address).map_err(|why| Failure::new(code::CONFIG, why, advice));
    }
    if bound.ip().is_unspecified() {
        let what = format!("clients cannot reach {bound}");
        return Err(Failure::new(code::CONFIG, what, advice));
    }
    Ok(bound.to_string())
}

fn credential(args: &MemberArgs) -> Result<PathBuf, Failure> {
    if let Some(path) = &args.pool_credential {
        return crate::run::absolute(path);
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let directory = state.filter(|path| path.is_absolute()).or(home);
    let directory = directory.ok_or_else(|| {
        let what = "there is no home directory to keep the pool's credential in";
        Failure::new(
            code::CONFIG,
            what,
            "name a file with --pool-credential FILE",
        )
    })?;
    Ok(directory.join("farcall/pool-credential"))
}
