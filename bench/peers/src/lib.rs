//! What the programs share: their command line, the clock, and how a figure is told.
#![forbid(unsafe_code)]

use std::io;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Trips before any is timed.
pub const WARM_UP: usize = 500;

/// `PROGRAM PORT BYTES TIMES` is the server, which ends with its client; `... client` measures.
#[derive(Clone, Copy, Debug)]
pub struct Arguments {
    /// Where the server listens, on loopback: the sign that it is ready, and that its client is gone.
    pub port: u16,
    /// Length of a message, the same both ways.
    pub bytes: usize,
    /// Trips that are timed.
    pub times: usize,
    /// Whether this is the side that measures.
    pub is_client: bool,
}

impl Arguments {
    /// Those of this process.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse() -> Result<Self, String> {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let [port, bytes, times, rest @ ..] = &words[..] else {
            return Err("usage: PROGRAM PORT BYTES TIMES [client]".to_owned());
        };
        Ok(Self {
            port: port.parse().map_err(|_| format!("no port: {port}"))?,
            bytes: bytes.parse().map_err(|_| format!("no length: {bytes}"))?,
            times: times.parse().map_err(|_| format!("no number: {times}"))?,
            is_client: rest.first().is_some_and(|word| word == "client"),
        })
    }

    /// The server's side of the connection that says that both are there.
    ///
    /// # Errors
    /// The system's.
    pub fn accept(&self) -> io::Result<TcpStream> {
        Ok(TcpListener::bind(("127.0.0.1", self.port))?.accept()?.0)
    }

    /// The client's side of it.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(&self) -> io::Result<TcpStream> {
        TcpStream::connect(("127.0.0.1", self.port))
    }
}

/// Times trips and prints their median in microseconds, as a line that begins with the number.
///
/// # Errors
/// The first that a trip has.
pub fn measure<E>(times: usize, mut trip: impl FnMut() -> Result<(), E>) -> Result<(), E> {
    for _ in 0..WARM_UP {
        trip()?;
    }
    let mut taken: Vec<Duration> = Vec::with_capacity(times);
    for _ in 0..times {
        let began = Instant::now();
        trip()?;
        taken.push(began.elapsed());
    }
    taken.sort_unstable();
    let median = taken.get(times / 2).copied().unwrap_or_default();
    println!(
        "{:.3} us, the median of {times}",
        median.as_secs_f64() * 1e6
    );
    Ok(())
}
