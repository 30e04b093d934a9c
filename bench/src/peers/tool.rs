//! How each peer is run, and where its output has the figure.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::pin::{self, Side};
use crate::rdma;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Microseconds there and back.
    Rtt,
    /// GB/s.
    Bulk,
    /// Millions of messages a second.
    Flood,
}

impl What {
    /// The size that tools are told beside a figure of so many bytes.
    pub(super) fn bytes(self, bytes: usize) -> usize {
        match self {
            Self::Rtt | Self::Flood => bytes,
            // What a pipeline of such messages reaches.
            Self::Bulk => 1 << 20,
        }
    }
}

/// A peer's tool: `program` is started as a server on a port, and again as a client of it.
#[derive(Debug)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    program: &'static str,
    transport: &'static str,
    what: What,
    env: &'static [(&'static str, &'static str)],
    /// Arguments of both sides; `PORT`, `BYTES`, `TIMES`, `DEVICE`, `HOST` and `GID` are filled in.
    both: &'static str,
    /// Further arguments of the server.
    server: &'static str,
    /// Further arguments of the client.
    client: &'static str,
    /// Which column of the last line that begins with a number.
    column: usize,
    /// What turns the column's unit into ours.
    factor: f64,
}

/// MiB/s to GB/s.
const MIB: f64 = 1.048_576e-3;
const UCX_TCP: &[(&str, &str)] = &[("UCX_TLS", "tcp,self"), ("UCX_NET_DEVICES", "lo")];
const UCX_SHM: &[(&str, &str)] = &[("UCX_TLS", "posix,cma,self"), ("UCX_NET_DEVICES", "all")];

/// One-way figures are doubled. `fi_pingpong` prints averages only, the others medians (or "typical").
pub(super) const TOOLS: &[Tool] = &[
    ucx("tcp", UCX_TCP, What::Rtt),
    ucx("shm", UCX_SHM, What::Rtt),
    ucx("tcp", UCX_TCP, What::Bulk),
    ucx("shm", UCX_SHM, What::Bulk),
    ucx("tcp", UCX_TCP, What::Flood),
    ucx("shm", UCX_SHM, What::Flood),
    libfabric("tcp", "-p tcp -e msg -S BYTES -I TIMES"),
    libfabric("shm", "-p shm -e rdm -S BYTES -I TIMES"),
    library("iceoryx2", "farcall-peer-iceoryx2", "shm"),
    library("tonic, unary call", "farcall-peer-tonic", "tcp"),
    library("ibverbs crate, SEND", "farcall-peer-ibverbs", "verbs"),
    perftest(
        "2 x ib_write_lat",
        "ib_write_lat",
        What::Rtt,
        "-n TIMES",
        4,
        2.0,
    ),
    perftest("ib_write_bw", "ib_write_bw", What::Bulk, "-n TIMES", 3, MIB),
    perftest(
        "ib_write_bw, messages",
        "ib_write_bw",
        What::Flood,
        "-n TIMES",
        4,
        1.0,
    ),
];

const fn ucx(
    transport: &'static str,
    env: &'static [(&'static str, &'static str)],
    what: What,
) -> Tool {
    let (name, client, column, factor) = match what {
        What::Rtt => (
            "UCX active messages",
            "127.0.0.1 -t ucp_am_lat -s BYTES -n TIMES -w 500 -f",
            1,
            2.0,
        ),
        What::Bulk => (
            "UCX active messages, 1 MiB",
            "127.0.0.1 -t ucp_am_bw -s BYTES -n TIMES -w 100 -f",
            5,
            MIB,
        ),
        What::Flood => (
            "UCX active messages",
            "127.0.0.1 -t ucp_am_bw -s BYTES -n 100000 -w 500 -f",
            7,
            1e-6,
        ),
    };
    Tool {
        name,
        program: "ucx_perftest",
        transport,
        what,
        env,
        both: "-p PORT",
        server: "",
        client,
        column,
        factor,
    }
}

const fn libfabric(transport: &'static str, both: &'static str) -> Tool {
    Tool {
        name: "libfabric fi_pingpong, average",
        program: "fi_pingpong",
        transport,
        what: What::Rtt,
        env: &[],
        both,
        server: "-B PORT",
        client: "-P PORT 127.0.0.1",
        column: 6,
        factor: 2.0,
    }
}

/// A program of ours around a library (`bench/peers`): it prints the whole round trip.
const fn library(name: &'static str, program: &'static str, transport: &'static str) -> Tool {
    Tool {
        name,
        program,
        transport,
        what: What::Rtt,
        env: &[],
        both: "PORT BYTES TIMES",
        server: "",
        client: "client",
        column: 0,
        factor: 1.0,
    }
}

const fn perftest(
    name: &'static str,
    program: &'static str,
    what: What,
    server: &'static str,
    column: usize,
    factor: f64,
) -> Tool {
    Tool {
        name,
        program,
        transport: "verbs",
        what,
        env: &[],
        both: "-d DEVICE -x GID -F -s BYTES -p PORT",
        server,
        client: "HOST",
        column,
        factor,
    }
}

/// How long a peer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks whether a peer listens: there is no event for it.
const LOOK: Duration = Duration::from_millis(2);

impl Tool {
    pub(super) fn is_for(&self, transport: &str, what: What) -> bool {
        self.transport == transport && self.what == what
    }

    /// Whether it measures what the device can do, rather than what a library makes of it.
    pub(super) fn is_limit(&self) -> bool {
        self.program.starts_with("ib_")
    }

    /// Whether `scripts/peers` has been here.
    pub(super) fn is_installed(&self) -> bool {
        let program = built(self.program);
        let path = std::env::var_os("PATH").unwrap_or_default();
        program.is_absolute()
            || std::env::split_paths(&path).any(|dir| dir.join(&program).is_file())
    }

    /// The figure, of one run of the tool.
    ///
    /// # Errors
    /// It cannot be started, takes too long, or prints no figure.
    pub(super) fn measure(&self, bytes: usize) -> io::Result<f64> {
        let port = free_port()?;
        let server = pin::on(Side::Server, || {
            self.command(Side::Server, port, bytes).spawn()
        });
        let mut server = Ended(server?);
        server.wait_until_listening(port)?;
        let client = pin::on(Side::Client, || {
            self.command(Side::Client, port, bytes).spawn()
        });
        let mut client = Ended(client?);
        client.wait()?;
        // What these tools print fits into the pipe, so that they ended without a reader.
        let output = client
            .0
            .stdout
            .take()
            .map_or(Ok(String::new()), io::read_to_string)?;
        let figure = column(&output, self.column).map(|value| value * self.factor);
        figure.ok_or_else(|| {
            io::Error::new(
                ErrorKind::InvalidData,
                format!("no figure in its output: {output}"),
            )
        })
    }

    fn command(&self, side: Side, port: u16, bytes: usize) -> Command {
        let own = match side {
            Side::Client => self.client,
            Side::Server => self.server,
        };
        let device = rdma::device(side).unwrap_or_else(first_rdma_device);
        let host = rdma::host();
        // RoCE v2 with an IPv4 address is number 1 on most devices, rxe among them.
        let gid = std::env::var("FARCALL_BENCH_GID_INDEX").unwrap_or_else(|_| "1".to_owned());
        // Of one round. In an emulated machine a mebibyte takes 10 ms.
        let times = match bytes {
            0..=4096 => 5000,
            4097..0x10_0000 => 1000,
            _ => 100,
        };
        let fill = |word: &str| {
            word.replace("PORT", &port.to_string())
                .replace("BYTES", &bytes.to_string())
                .replace("TIMES", &times.to_string())
                .replace("DEVICE", &device)
                .replace("HOST", &host)
                .replace("GID", &gid)
        };
        let mut command = Command::new(built(self.program));
        command.args(
            self.both
                .split_whitespace()
                .chain(own.split_whitespace())
                .map(fill),
        );
        command.envs(self.env.iter().copied());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command
    }
}

/// Where `scripts/peers` has built a program, beside this one; else its name, for the search path.
fn built(program: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| {
        let target = exe.parent()?.parent()?;
        Some(target.join("peers/release").join(program))
    });
    beside
        .filter(|path| path.exists())
        .unwrap_or_else(|| program.into())
}

/// A process that does not outlive the measurement.
struct Ended(Child);

impl Ended {
    fn wait(&mut self) -> io::Result<()> {
        let began = Instant::now();
        while self.0.try_wait()?.is_none() {
            if began.elapsed() > PATIENCE {
                return Err(io::Error::new(ErrorKind::TimedOut, "it does not end"));
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Looks at the kernel's table of sockets: a connection would be taken for the client's.
    fn wait_until_listening(&mut self, port: u16) -> io::Result<()> {
        let began = Instant::now();
        loop {
            let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
            let tables = tables.map(|table| fs::read_to_string(table).unwrap_or_default());
            if tables.iter().any(|table| is_listening(table, port)) {
                return Ok(());
            }
            if let Some(status) = self.0.try_wait()? {
                return Err(io::Error::other(format!("its server ended: {status}")));
            }
            if began.elapsed() > PATIENCE {
                return Err(io::Error::new(ErrorKind::TimedOut, "it does not listen"));
            }
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A line of the table: number, local address, remote address, state (0A: listening).
fn is_listening(table: &str, port: u16) -> bool {
    let ending = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_port = words.next().is_some_and(|local| local.ends_with(&ending));
        is_port && words.nth(1) == Some("0A")
    })
}

/// That number of the last line that begins with one.
fn column(output: &str, index: usize) -> Option<f64> {
    let starts_with_digit =
        |line: &&str| line.trim_start().starts_with(|c: char| c.is_ascii_digit());
    let line = output.lines().rev().find(starts_with_digit)?;
    line.split_whitespace().nth(index)?.parse().ok()
}

/// A port that was free a moment ago: these tools cannot choose one themselves.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn first_rdma_device() -> String {
    let entries = fs::read_dir("/sys/class/infiniband")
        .into_iter()
        .flatten()
        .flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names.into_iter().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{column, is_listening};

    #[test]
    fn figures_are_found_in_what_the_tools_print() {
        let ucx = "|  Test  | # iterations | 50.0%ile |\n+----+\n     20000      7.337    95.466    90.976   0.64  0.67\n";
        assert_eq!(column(ucx, 1), Some(7.337));
        let libfabric = "bytes #sent #ack total time MB/sec usec/xfer Mxfers/sec\n64 20k =20k 2.4m 0.12s 22.12 2.89 0.35\n";
        assert_eq!(column(libfabric, 6), Some(2.89));
        assert_eq!(column("no figure", 1), None);
    }

    #[test]
    fn listening_ports_are_found() {
        let table = "  sl  local_address rem_address   st\n   0: 0100007F:34E1 00000000:0000 0A 0:0\n   1: 0100007F:34E2 0100007F:34E1 01 0:0\n";
        assert!(is_listening(table, 0x34E1));
        assert!(!is_listening(table, 0x34E2) && !is_listening(table, 1));
    }
}
