//! `farcall pool init` and `farcall pool serve`.
#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::process::ExitCode;

use farcall_pool::api::{App, ListenOptions, Serving};
use farcall_pool::core::Core;
use farcall_pool::history::History;
use farcall_pool::init::Layout;
use farcall_pool::store::EmbeddedStore;
use farcall_pool::tls::server_config;
use nix::sys::signal::{SigSet, Signal};

use super::args::{InitArgs, PoolServeArgs};
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
    let store = EmbeddedStore::open(&layout.store());
    let store = store.map_err(|error| failed(error.to_string(), "is the pool running already?"))?;
    let core = Core::start(Box::new(store), |outcome| {
        if let Err(error) = outcome {
            // Nothing that was decided since can be kept: better no answer than a wrong one.
            log::error!("the store failed, the pool stops: {error}");
            std::process::exit(i32::from(code::FAILED));
        }
    });
    let core = core.map_err(|error| failed(error.to_string(), "restore the directory"))?;
    let history = History::open(&layout.history());
    let history = history.map_err(|error| {
        let advice = "move the file away: it holds nothing but the charts of the dashboard";
        failed(error.to_string(), advice)
    })?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| failed(error.to_string(), "check ulimit -n and -u"))?;
    let app = App::new(core, signer, history);
    let options = ListenOptions {
        address: args.listen.clone(),
        tls,
    };
    let serving = runtime.block_on(Serving::bind(&options, app.clone()));
    let serving = serving.map_err(|error| failed(error.to_string(), "see --listen and --plain"))?;
    let address = serving
        .local_addr()
        .map_err(|error| failed(error.to_string(), "this should not happen"))?;
    runtime.spawn(serving.run());
    runtime.spawn(app.sample());
    let scheme = if args.plain { "http" } else { "https" };
    let _ = writeln!(io::stdout(), "pool on {scheme}://{address}");
    let _ = io::stdout().flush();
    // An error would mean that the set is empty.
    let _ = stop.wait();
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}
