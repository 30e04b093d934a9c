//! `rtt`, `jitter`, `bulk`, `flood`, `idle`, `mix`, `server` and `client`.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use farcall_bench::figure::Figure;
use farcall_bench::machine::Machine;
use farcall_bench::net::link::Link;
use farcall_bench::net::service::{Mode, Service};
use farcall_bench::net::{self, Against, Direction, Load, Memory, Transport};
use farcall_bench::pin;

use crate::output::Output;

/// What all measurements of the transport are told.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// Backend: tcp, tls (with plain TCP beside it), shm, verbs, auto.
    #[arg(long, default_value = "tcp")]
    pub(crate) transport: Transport,
    /// Seconds that are measured, of each party.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub(crate) duration: f64,
    /// Seconds before that, of each party.
    #[arg(long, default_value_t = 0.2, value_parser = seconds)]
    warm_up: f64,
    /// Rounds that the measured time comes in; ratios are medians over rounds. With peers, or a limit that another program
    /// measures, at least five.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// A `farcall-bench server` on another host; without it both sides are measured here.
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// Where the service of this process listens: for verbs, the address of the RDMA device's network.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    listen: IpAddr,
    /// Cores of client and server here; by default the first two that this process may use.
    #[arg(
        long,
        value_name = "CLIENT,SERVER",
        value_delimiter = ',',
        num_args = 1
    )]
    pin: Vec<usize>,
    /// Also measures the peers that are installed (`scripts/peers`).
    #[arg(long)]
    peers: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Open loop.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Rate {
    /// Trips, transfers or runs a second, each due at its time (open loop); without it the next follows the answer (closed
    /// loop).
    #[arg(long, value_parser = rate)]
    pub(crate) rate: Option<f64>,
}

/// Trips a second of the jitter figures. Between two of them lies many times what a trip takes over shared memory, so that
/// none waits for the one before, and far less than what makes a server sleep.
pub(crate) const JITTER_RATE: f64 = 50_000.0;

/// Open loop and export, where trips are short.
#[derive(Clone, Debug, Args)]
pub(crate) struct Pace {
    /// Trips a second, each due at its time (open loop); without it the next follows the answer (closed loop). With it
    /// jitter and the spread of the time between answers are figures of their own.
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// Writes the distribution of each size to FILE-SIZE in HdrHistogram's text form.
    #[arg(long, value_name = "FILE")]
    histogram: Option<PathBuf>,
}

/// Which way bulk bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// To the server.
    Up,
    /// From the server.
    Down,
    /// One after the other.
    Both,
}

/// What bulk transfers are like.
#[derive(Clone, Debug, Args)]
pub(crate) struct Transfers {
    /// Which way.
    #[arg(long, value_enum, default_value_t = Way::Both)]
    way: Way,
    /// The client's memory is lent to the session, as pinned memory is; both sides' otherwise only the server's.
    #[arg(long)]
    pinned: bool,
}

/// Where the far side is: a service of this process, or another host's.
struct Place {
    address: String,
    own: Option<Service>,
    machine: Option<Machine>,
}

type Done = Result<bool, String>;

impl Common {
    pub(crate) fn load(&self, rate: Option<f64>) -> Load {
        Load {
            duration: Duration::from_secs_f64(self.duration),
            warm_up: Duration::from_secs_f64(self.warm_up),
            rounds: self.rounds,
            rate,
        }
    }

    /// The same against the service of that host.
    pub(crate) fn at(self, host: String) -> Self {
        Self {
            server: Some(host),
            ..self
        }
    }

    fn place(&self) -> Result<Place, String> {
        self.choose_cores()?;
        if let Some(address) = &self.server {
            let link = Link::open(address, self.transport, Mode::Echo).map_err(text)?;
            return Ok(Place {
                address: address.clone(),
                own: None,
                machine: Some(link.welcome().machine.clone()),
            });
        }
        let address = SocketAddr::new(self.listen, 0).to_string();
        let own = Service::start(&address).map_err(text)?;
        Ok(Place {
            address: own.addr().to_string(),
            own: Some(own),
            machine: None,
        })
    }

    pub(crate) fn choose_cores(&self) -> Result<(), String> {
        match self.pin[..] {
            [] => Ok(()),
            [client, server] => pin::choose(client, server),
            _ => Err("--pin takes two cores: CLIENT,SERVER".to_owned()),
        }
    }
}

impl Place {
    fn is_local(&self) -> bool {
        self.own.is_some()
    }

    fn against(&self, common: &Common) -> Against<'_> {
        Against {
            server: &self.address,
            is_local: self.is_local(),
            with_peers: common.peers,
        }
    }
}

pub(crate) fn rtt(common: &Common, pace: &Pace, sizes: &[usize]) -> Done {
    let place = common.place()?;
    let load = common.load(pace.rate);
    let mut figures = Vec::new();
    for &bytes in sizes {
        let against = place.against(common);
        let (of_size, recorder) =
            net::rtt(&against, common.transport, bytes, &load).map_err(text)?;
        if let Some(file) = &pace.histogram {
            let mut name = file.clone().into_os_string();
            name.push(format!("-{}", net::size_name(bytes)));
            fs::write(&name, recorder.export())
                .map_err(|error| format!("{}: {error}", name.display()))?;
        }
        figures.extend(of_size);
    }
    common.output.print(figures, place.machine)
}

/// The same at a rate, open loop: how steady trips are.
pub(crate) fn jitter(common: &Common, rate: f64, sizes: &[usize]) -> Done {
    let pace = Pace {
        rate: Some(rate),
        histogram: None,
    };
    rtt(common, &pace, sizes)
}

pub(crate) fn bulk(common: &Common, pace: &Rate, sizes: &[usize], transfers: &Transfers) -> Done {
    let memory = if transfers.pinned {
        Memory::Pinned
    } else {
        Memory::Pageable
    };
    let ways = match transfers.way {
        Way::Up => &[Direction::Up][..],
        Way::Down => &[Direction::Down],
        Way::Both => &[Direction::Up, Direction::Down],
    };
    let place = common.place()?;
    let load = common.load(pace.rate);
    let mut figures = Vec::new();
    for &bytes in sizes {
        for &way in ways {
            let against = place.against(common);
            let figure = net::bulk(&against, common.transport, bytes, way, memory, &load);
            figures.push(figure.map_err(text)?);
        }
    }
    common.output.print(figures, place.machine)
}

pub(crate) fn flood(common: &Common, pace: &Rate, sizes: &[usize], records: u64) -> Done {
    let place = common.place()?;
    let load = common.load(pace.rate);
    let against = place.against(common);
    let one = |&bytes: &usize| net::flood(&against, common.transport, bytes, records, &load);
    let figures: Result<Vec<Figure>, _> = sizes.iter().map(one).collect();
    common.output.print(figures.map_err(text)?, place.machine)
}

pub(crate) fn idle(common: &Common) -> Done {
    let place = common.place()?;
    if !place.is_local() {
        return Err("both sides are of this process: --server does not go with it".to_owned());
    }
    let rest = Duration::from_secs_f64(common.duration);
    let figures = net::idle(&place.address, common.transport, rest).map_err(text)?;
    common.output.print(figures, None)
}

pub(crate) fn mix(common: &Common, clients: usize, rate: f64) -> Done {
    let place = common.place()?;
    let duration = Duration::from_secs_f64(common.duration);
    let figures = net::mix(&place.address, common.transport, clients, rate, duration);
    common.output.print(figures.map_err(text)?, place.machine)
}

/// The far host of two: serves until it is stopped.
pub(crate) fn server(listen: &str) -> Done {
    let service = Service::start(listen).map_err(|error| format!("{listen}: {error}"))?;
    let machine = Machine::here();
    println!("serving on {}", service.addr());
    for warning in machine.warnings() {
        eprintln!("note: {warning}");
    }
    service.wait();
    Ok(true)
}

/// The near host of two: round trips, a flood and bulk both ways.
pub(crate) fn client(common: &Common) -> Done {
    let place = common.place()?;
    let (against, load) = (place.against(common), common.load(None));
    let mut figures = Vec::new();
    for bytes in [8, 64, 1 << 10, 64 << 10] {
        let (of_size, _) = net::rtt(&against, common.transport, bytes, &load).map_err(text)?;
        figures.extend(of_size);
    }
    let steady = common.load(Some(JITTER_RATE));
    let (jitter, _) = net::rtt(&against, common.transport, 64, &steady).map_err(text)?;
    figures.extend(jitter);
    figures.push(net::flood(&against, common.transport, 64, 100_000, &load).map_err(text)?);
    for direction in [Direction::Up, Direction::Down] {
        for bytes in [1 << 20, 64 << 20] {
            let memory = Memory::Pageable;
            let figure = net::bulk(&against, common.transport, bytes, direction, memory, &load);
            figures.push(figure.map_err(text)?);
        }
    }
    common.output.print(figures, place.machine)
}

/// `64`, `4KiB`, `64MiB`.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: usize = digits.parse().map_err(|_| format!("no size: {text:?}"))?;
    let unit: usize = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        unit => return Err(format!("no unit: {unit:?} (B, KiB, MiB, GiB)")),
    };
    let bytes = number.checked_mul(unit);
    bytes
        .filter(|bytes| (1..=1 << 30).contains(bytes))
        .ok_or_else(|| "1 to 1GiB".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("no number: {text:?}"))?;
    if (0.0..=86_400.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("0 to 86400".to_owned())
    }
}

/// Trips a second.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("no number: {text:?}"))?;
    if rate > 0.0 && rate <= 1e7 {
        Ok(rate)
    } else {
        Err("more than 0, at most 10000000".to_owned())
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
