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
use farcall_bench::run::Before;

use crate::output::Output;

/// Where `server` listens, and `client` looks for it.
const PORT: u16 = 7480;

/// What every measurement of the transport is told.
#[derive(Clone, Debug, Args)]
pub(crate) struct Base {
    /// Backend: tcp, tls (with plain TCP beside it), shm, verbs, auto.
    #[arg(long, default_value = "tcp")]
    pub(crate) transport: Transport,
    /// Seconds that are measured, of each party.
    #[arg(long, default_value_t = 2.0, value_parser = measured_seconds)]
    duration: f64,
    /// Cores of client and server here; by default the first two that this process may use.
    #[arg(
        long,
        value_name = "CLIENT,SERVER",
        value_delimiter = ',',
        num_args = 1
    )]
    pin: Vec<usize>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What comes before.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct WarmUp {
    /// Seconds before that, of each party.
    #[arg(long, default_value_t = 0.2, value_parser = seconds)]
    warm_up: f64,
}

/// Parties that take turns.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Turns {
    #[command(flatten)]
    warm: WarmUp,
    /// Rounds that the measured time comes in; ratios are medians over rounds. With peers, or a limit that another program
    /// measures, at least five.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

/// Where the far side is.
#[derive(Clone, Debug, Args)]
pub(crate) struct Far {
    /// A `farcall-bench server` on another host; without it both sides are measured here.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "listen")]
    server: Option<String>,
    #[command(flatten)]
    near: Listen,
}

/// Where the service of this process is.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Listen {
    /// Where the service of this process listens: for verbs, the address of the RDMA device's network.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    listen: IpAddr,
}

/// What measurements beside limits and peers are told.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    #[command(flatten)]
    base: Base,
    #[command(flatten)]
    turns: Turns,
    #[command(flatten)]
    far: Far,
    /// Also measures the peers that are installed (`scripts/peers`), which are of this host.
    #[arg(long, conflicts_with = "server")]
    peers: bool,
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

/// Records of a run of the flood.
pub(crate) const FLOOD_RECORDS: u64 = 100_000;

/// Open loop and export, where trips are short.
#[derive(Clone, Debug, Args)]
pub(crate) struct Pace {
    /// Trips a second, each due at its time (open loop); without it the next follows the answer (closed loop). With it
    /// jitter and the spread of the time between answers are figures of their own, and what was achieved of the rate.
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// Writes the distribution of each size to FILE-SIZE in HdrHistogram's text form; that of a closed loop corrected for
    /// coordinated omission.
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

/// Where the far side is: a service of this process, or another host's; and what this host was like before.
struct Place {
    before: Before,
    address: String,
    own: Option<Service>,
    machine: Option<Machine>,
}

type Done = Result<bool, String>;

impl Base {
    /// Without turns.
    fn load(&self, warm: WarmUp, rate: Option<f64>) -> Load {
        Load {
            duration: Duration::from_secs_f64(self.duration),
            warm_up: Duration::from_secs_f64(warm.warm_up),
            rounds: 1,
            rate,
        }
    }

    pub(crate) fn load_in_turns(&self, turns: Turns, rate: Option<f64>) -> Load {
        let load = self.load(turns.warm, rate);
        load.in_rounds(turns.rounds)
    }

    pub(crate) fn choose_cores(&self) -> Result<(), String> {
        match self.pin[..] {
            [] => Ok(()),
            [client, server] => pin::choose(client, server),
            _ => Err("--pin takes two cores: CLIENT,SERVER".to_owned()),
        }
    }

    /// The service of that host.
    fn there(&self, address: &str) -> Result<Place, String> {
        let before = Before::here();
        self.choose_cores()?;
        let link = Link::open(address, self.transport, Mode::Echo).map_err(text)?;
        Ok(Place {
            before,
            address: address.to_owned(),
            own: None,
            machine: Some(link.welcome().machine.clone()),
        })
    }

    /// A service of this process.
    fn here(&self, listen: Listen) -> Result<Place, String> {
        let before = Before::here();
        self.choose_cores()?;
        let address = SocketAddr::new(listen.listen, 0).to_string();
        let own = Service::start(&address).map_err(|error| format!("{address}: {error}"))?;
        Ok(Place {
            before,
            address: own.addr().to_string(),
            own: Some(own),
            machine: None,
        })
    }

    fn place(&self, far: &Far) -> Result<Place, String> {
        match &far.server {
            Some(address) => self.there(address),
            None => self.here(far.near),
        }
    }

    /// Prints and keeps what was measured, all that there is if something ended it.
    fn print(&self, place: Place, figures: Vec<Figure>, ended: Result<(), String>) -> Done {
        let Place {
            before, machine, ..
        } = place;
        self.output.print(before, figures, machine, ended)
    }
}

impl Common {
    fn place(&self) -> Result<Place, String> {
        self.base.place(&self.far)
    }

    fn load(&self, rate: Option<f64>) -> Load {
        self.base.load_in_turns(self.turns, rate)
    }
}

impl Place {
    fn against(&self, with_peers: bool) -> Against<'_> {
        Against {
            server: &self.address,
            is_local: self.own.is_some(),
            with_peers,
        }
    }
}

pub(crate) fn rtt(common: &Common, pace: &Pace, sizes: &[usize]) -> Done {
    let place = common.place()?;
    let mut figures = Vec::new();
    let ended = rtt_of_sizes(common, &place, pace, sizes, &mut figures);
    common.base.print(place, figures, ended)
}

fn rtt_of_sizes(
    common: &Common,
    place: &Place,
    pace: &Pace,
    sizes: &[usize],
    figures: &mut Vec<Figure>,
) -> Result<(), String> {
    let (against, load) = (place.against(common.peers), common.load(pace.rate));
    for &bytes in sizes {
        let measured = net::rtt(&against, common.base.transport, bytes, &load);
        let (of_size, recorder) = measured.map_err(text)?;
        figures.extend(of_size);
        if let Some(file) = &pace.histogram {
            let mut name = file.clone().into_os_string();
            name.push(format!("-{}", net::size_name(bytes)));
            fs::write(&name, recorder.export())
                .map_err(|error| format!("{}: {error}", name.display()))?;
        }
    }
    Ok(())
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
    let (against, load) = (place.against(common.peers), common.load(pace.rate));
    let transport = common.base.transport;
    let all = sizes
        .iter()
        .flat_map(|bytes| ways.iter().map(move |way| (*bytes, *way)));
    let mut figures = Vec::new();
    let ended = each(all, &mut figures, |(bytes, way)| {
        net::bulk(&against, transport, bytes, way, memory, &load)
    });
    common.base.print(place, figures, ended)
}

pub(crate) fn flood(common: &Common, pace: &Rate, sizes: &[usize], records: u64) -> Done {
    let place = common.place()?;
    let (against, load) = (place.against(common.peers), common.load(pace.rate));
    let mut figures = Vec::new();
    let ended = each(sizes.iter().copied(), &mut figures, |bytes| {
        net::flood(&against, common.base.transport, bytes, records, &load)
    });
    common.base.print(place, figures, ended)
}

/// One figure of each, until one fails.
fn each<T>(
    all: impl Iterator<Item = T>,
    figures: &mut Vec<Figure>,
    one: impl Fn(T) -> Result<Figure, net::Failure>,
) -> Result<(), String> {
    for what in all {
        figures.push(one(what).map_err(text)?);
    }
    Ok(())
}

/// Both sides are of this process: their processor time is told together.
pub(crate) fn idle(base: &Base, listen: Listen) -> Done {
    let place = base.here(listen)?;
    let rest = Duration::from_secs_f64(base.duration);
    let figures = net::idle(&place.address, base.transport, rest).map_err(text)?;
    base.print(place, figures, Ok(()))
}

pub(crate) fn mix(base: &Base, warm: WarmUp, far: &Far, clients: u32, rate: f64) -> Done {
    let place = base.place(far)?;
    let load = base.load(warm, Some(rate));
    let figures = net::mix(&place.address, base.transport, clients, &load).map_err(text)?;
    base.print(place, figures, Ok(()))
}

/// The far host of two: serves until it is stopped.
pub(crate) fn server(listen: &str) -> Done {
    let service = Service::start(listen).map_err(|error| format!("{listen}: {error}"))?;
    println!("serving on {}", service.addr());
    for warning in Machine::here().warnings() {
        eprintln!("note: {warning}");
    }
    service.wait();
    Ok(true)
}

/// The near host of two: round trips, a flood and bulk both ways.
pub(crate) fn client(host: &str, base: &Base, turns: Turns) -> Done {
    let place = base.there(&with_port(host))?;
    let mut figures = Vec::new();
    let ended = everything(base, turns, &place, &mut figures);
    base.print(place, figures, ended)
}

fn everything(
    base: &Base,
    turns: Turns,
    place: &Place,
    figures: &mut Vec<Figure>,
) -> Result<(), String> {
    let (against, load) = (place.against(false), base.load_in_turns(turns, None));
    let transport = base.transport;
    for bytes in [8, 64, 1 << 10, 64 << 10] {
        figures.extend(net::rtt(&against, transport, bytes, &load).map_err(text)?.0);
    }
    let steady = base.load_in_turns(turns, Some(JITTER_RATE));
    figures.extend(net::rtt(&against, transport, 64, &steady).map_err(text)?.0);
    figures.push(net::flood(&against, transport, 64, FLOOD_RECORDS, &load).map_err(text)?);
    let sizes = [1 << 20, 64 << 20];
    let all = [Direction::Up, Direction::Down];
    let all = all
        .into_iter()
        .flat_map(|way| sizes.map(|bytes| (bytes, way)));
    each(all, figures, |(bytes, way)| {
        net::bulk(&against, transport, bytes, way, Memory::Pageable, &load)
    })
}

/// `HOST` alone is meant with the port that `server` takes.
fn with_port(host: &str) -> String {
    let is_bare_v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
    match host {
        _ if is_bare_v6 => format!("[{host}]:{PORT}"),
        _ if host.ends_with(']') || !host.contains(':') => format!("{host}:{PORT}"),
        _ => host.to_owned(),
    }
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

/// In no time nothing is measured.
fn measured_seconds(text: &str) -> Result<f64, String> {
    let seconds = seconds(text)?;
    if seconds >= 0.001 {
        Ok(seconds)
    } else {
        Err("0.001 to 86400".to_owned())
    }
}

/// A transport of driver calls: theirs is plain.
pub(crate) fn of_calls(text: &str) -> Result<Transport, String> {
    let transport: Transport = text.parse()?;
    if transport.tls {
        Err(
            "driver calls go over tcp, shm, verbs or auto; rtt, bulk and flood measure tls"
                .to_owned(),
        )
    } else {
        Ok(transport)
    }
}

/// Trips a second.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("no number: {text:?}"))?;
    if (0.001..=1e7).contains(&rate) {
        Ok(rate)
    } else {
        Err("0.001 to 10000000".to_owned())
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::{measured_seconds, of_calls, rate, size, with_port};

    #[test]
    fn a_host_has_the_port_of_the_server() {
        for (host, address) in [
            ("gpu1", "gpu1:7480"),
            ("gpu1:99", "gpu1:99"),
            ("10.0.0.1", "10.0.0.1:7480"),
            ("fe80::1", "[fe80::1]:7480"),
            ("[fe80::1]", "[fe80::1]:7480"),
            ("[fe80::1]:99", "[fe80::1]:99"),
        ] {
            assert_eq!(with_port(host), address);
        }
    }

    #[test]
    fn what_measures_nothing_is_refused() {
        for text in ["0", "-1", "1e-300", "NaN", "inf", "fast"] {
            assert!(
                rate(text).is_err() && measured_seconds(text).is_err(),
                "{text}"
            );
        }
        assert!(size("0").is_err() && size("2GiB").is_err() && size("1XB").is_err());
        assert!(of_calls("tls").is_err() && of_calls("shm").is_ok());
    }
}
