//! `farcall serve --pool`: a server whose clients need the pool's grants.
#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use farcall_config::read_token_file;
use farcall_gpu_exec::{
    Admission, Admitted, AdmittedDevice, DeviceKind, Inventory, ServeOptions, Server, Signals,
};
use farcall_pool::agent::{Agent, AgentOptions, Gate};
use farcall_pool::client::PoolClient;
use farcall_pool::model::{GpuFacts, ServerFacts};
use farcall_transport::rdma_ports;

use super::addresses::addresses;
use super::args::MemberArgs;
use super::failure as pool_failure;
use super::host::PoolHost;
use crate::args::ServeArgs;
use crate::connect::config_failure;
use crate::failure::{Failure, code};
use crate::health::driver_version;
use crate::serve::start_metrics;

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
    let tls = options.tls.as_ref();
    let tls = tls.map_or_else(String::new, |tls| tls.fingerprint().to_owned());
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
    let rdma = rdma_ports(&options.rdma.unwrap_or_default()).unwrap_or_else(|error| {
        log::debug!("no RDMA: {error}");
        Vec::new()
    });
    let addresses = addresses(&args.advertise, server.local_addr(), pool.url(), &rdma)?;
    let facts = ServerFacts {
        addresses,
        rdma: !rdma.is_empty(),
        tls,
        ..facts(args, &inventory)
    };
    let host = PoolHost::start(pool.clone(), server.sessions(), &inventory);
    let host = host.map_err(|error| Failure::new(code::FAILED, error.to_string(), "try again"))?;
    let options = AgentOptions {
        pool,
        credential: credential(args)?,
        facts,
    };
    let host = Arc::new(host);
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

/// All but what depends on the network.
fn facts(args: &MemberArgs, inventory: &Inventory) -> ServerFacts {
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
        addresses: Vec::new(),
        kind: inventory.kind.to_string(),
        rdma: false,
        driver_version: match inventory.kind {
            DeviceKind::Cuda => driver_version().unwrap_or_default(),
            _ => String::new(),
        },
        cuda_version: format!("{}.{}", cuda / 1000, cuda % 1000 / 10),
        switch: args.switch.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        tls: String::new(),
        gpus: gpus.collect(),
    }
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
