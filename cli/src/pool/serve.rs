//! `farcall pool init` and `farcall pool serve`.
#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::ExitCode;

use farcall_pool::api::{App, ListenError, ListenOptions, Role, Serving};
use farcall_pool::core::Core;
use farcall_pool::etcd::Etcd;
use farcall_pool::grant::Signer;
use farcall_pool::history::History;
use farcall_pool::init::Layout;
use farcall_pool::node::Node;
use farcall_pool::store::{EmbeddedStore, Store as _};
use farcall_pool::tls::{is_loopback, names_one_of, server_config};
use nix::ifaddrs::getifaddrs;
use nix::sys::signal::{SigSet, Signal};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::serve_args::{CertifyArgs, InitArgs, PoolServeArgs};
use crate::failure::{Failure, code, written};

pub(super) fn init(args: &InitArgs) -> Result<ExitCode, Failure> {
    let layout = Layout::new(&args.dir);
    layout.create(&args.hosts).map_err(|error| {
        let advice = "name an empty or new directory with --dir DIR";
        Failure::new(code::FAILED, error.to_string(), advice)
    })?;
    let out = &mut io::stdout().lock();
    written(writeln!(
        out,
        "authority  {}\nadmin      {}\nnext       farcall pool serve --dir {}",
        layout.authority().display(),
        layout.admin_token().display(),
        args.dir.display()
    ))
}

pub(super) fn certify(args: &CertifyArgs) -> Result<ExitCode, Failure> {
    let layout = Layout::new(&args.dir);
    layout.certify(&args.hosts).map_err(|error| {
        let advice =
            "name the directory that `farcall pool init` made, and hosts as clients name them";
        Failure::new(code::FAILED, error.to_string(), advice)
    })?;
    written(writeln!(
        io::stdout().lock(),
        "{} is for {} now\nnext       start the pool again; other nodes of it need this file and {}",
        layout.certificate().display(),
        args.hosts.join(", "),
        layout.key().display()
    ))
}

pub(super) fn serve(args: &PoolServeArgs) -> Result<ExitCode, Failure> {
    crate::serve::start_log();
    let failed = |error: String, advice: &str| Failure::new(code::FAILED, error, advice);
    let no_pool = "`farcall pool init --dir DIR` makes a pool";
    // In every thread that is started from here on.
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTERM);
    stop.add(Signal::SIGINT);
    stop.thread_block()
        .map_err(|error| failed(error.to_string(), "this should not happen"))?;
    let layout = Layout::new(&args.dir);
    let signer = layout
        .signer()
        .map_err(|error| failed(error.to_string(), no_pool))?;
    let tls = if args.plain {
        None
    } else {
        let config = server_config(&layout.certificate(), &layout.key());
        Some(config.map_err(|error| failed(error.to_string(), no_pool))?)
    };
    if !args.plain {
        warn_of_certificate(&layout, args);
    }
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| failed(error.to_string(), "check ulimit -n and -u"))?;
    let options = ListenOptions {
        address: args.listen.clone(),
        tls,
    };
    let scheme = if args.plain { "http" } else { "https" };
    let end = if args.etcd.is_empty() {
        alone(&runtime, &layout, signer, &options, scheme)?
    } else {
        among_others(&runtime, args, signer, &options, scheme)?
    };
    // An error would mean that the set is empty.
    let _ = stop.wait();
    end();
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// What a pool needs to end.
type End = Box<dyn FnOnce()>;

/// The only node, with a store of its own.
fn alone(
    runtime: &Runtime,
    layout: &Layout,
    signer: Signer,
    options: &ListenOptions,
    scheme: &str,
) -> Result<End, Failure> {
    let store = EmbeddedStore::open(&layout.store());
    let store = store.map_err(|error| {
        Failure::new(
            code::FAILED,
            error.to_string(),
            "is the pool running already?",
        )
    })?;
    let core = Core::start(Box::new(store), |outcome| {
        if let Err(error) = outcome {
            // Nothing that was decided since can be kept: better no answer than a wrong one.
            log::error!("the store failed, the pool stops: {error}");
            std::process::exit(i32::from(code::FAILED));
        }
    });
    let core = core
        .map_err(|error| Failure::new(code::FAILED, error.to_string(), "restore the directory"))?;
    let app = App::new(core, signer, open_history(layout)?);
    let serving = listening(runtime.block_on(Serving::bind(options, app.clone())))?;
    say(&serving, scheme)?;
    runtime.spawn(serving.run());
    runtime.spawn(app.sample());
    Ok(Box::new(|| {}))
}

/// One of several nodes, whose store is in etcd.
fn among_others(
    runtime: &Runtime,
    args: &PoolServeArgs,
    signer: Signer,
    options: &ListenOptions,
    scheme: &str,
) -> Result<End, Failure> {
    let etcd = Etcd::new(&args.etcd, args.etcd_ca.as_deref()).map_err(|error| {
        Failure::new(code::CONFIG, error.to_string(), "see --etcd and --etcd-ca")
    })?;
    let roles = watch::Sender::new(Role::Neither);
    let serving = listening(runtime.block_on(Serving::bind_node(options, roles.subscribe())))?;
    let address = say(&serving, scheme)?;
    let node = args.node.clone().unwrap_or(address);
    let layout = Layout::new(&args.dir);
    let (own, store) = ((signer, open_history(&layout)?), layout.store());
    // What `farcall pool init` made, or a pool that had no etcd so far.
    let first = move || EmbeddedStore::open(&store)?.load();
    let node = Node::new(etcd, node, own, first, (runtime.handle().clone(), roles));
    let stopper = node.stopper();
    runtime.spawn(serving.run());
    let thread = std::thread::Builder::new().name("node".to_owned());
    let thread = thread.spawn(move || node.run()).map_err(|error| {
        Failure::new(
            code::FAILED,
            format!("no thread: {error}"),
            "check ulimit -u",
        )
    })?;
    Ok(Box::new(move || {
        stopper();
        // Lets another node lead at once.
        let _ = thread.join();
    }))
}

/// Says so where the certificate names nothing by which others reach this machine.
fn warn_of_certificate(layout: &Layout, args: &PoolServeArgs) {
    let host = |address: &str| address.rsplit_once(':').map(|(host, _)| host.to_owned());
    let mut hosts: Vec<String> = host(&args.listen).into_iter().collect();
    if hosts.iter().any(|host| is_loopback(host)) {
        return;
    }
    if hosts.iter().any(|host| is_unspecified(host)) {
        hosts = own_names();
    }
    hosts.extend(args.node.as_deref().and_then(host));
    // A file that is none stops the pool in a moment.
    if names_one_of(&layout.certificate(), &hosts).unwrap_or(true) {
        return;
    }
    log::warn!(
        "the pool's certificate is for none of {}: clients that use these do not trust it. \
         `farcall pool certify --dir {} --host NAME` makes one for other names",
        hosts.join(", "),
        args.dir.display()
    );
}

fn is_unspecified(host: &str) -> bool {
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse();
    ip.is_ok_and(|ip: IpAddr| ip.is_unspecified())
}

/// The name and the addresses of this machine.
fn own_names() -> Vec<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut names = vec![name.trim().to_owned()];
    for interface in getifaddrs().into_iter().flatten() {
        let ip = interface.address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|it| IpAddr::from(it.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::from(it.ip())))
        });
        // Nobody names an address that is good on one wire only.
        let is_link_local =
            |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        names.extend(
            ip.filter(|ip| !ip.is_loopback() && !is_link_local(ip))
                .map(|ip| ip.to_string()),
        );
    }
    names
}

fn open_history(layout: &Layout) -> Result<History, Failure> {
    History::open(&layout.history()).map_err(|error| {
        let advice = "move the file away: it holds nothing but the charts of the dashboard";
        Failure::new(code::FAILED, error.to_string(), advice)
    })
}

fn listening(serving: Result<Serving, ListenError>) -> Result<Serving, Failure> {
    serving
        .map_err(|error| Failure::new(code::FAILED, error.to_string(), "see --listen and --plain"))
}

/// Says where the pool is; the address.
fn say(serving: &Serving, scheme: &str) -> Result<String, Failure> {
    let address = serving
        .local_addr()
        .map_err(|error| Failure::new(code::FAILED, error.to_string(), "this should not happen"))?;
    let _ = writeln!(io::stdout(), "pool on {scheme}://{address}");
    let _ = io::stdout().flush();
    Ok(address.to_string())
}
