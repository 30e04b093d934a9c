//! Bytes over a bare socket of the loopback interface, both sides spinning: to and fro, and in bulk.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::Far;
use crate::net::{Lost, Trip};

/// The limit of a blocking call over TCP.
#[derive(Debug)]
pub struct PingPong {
    // Ends before the connection does.
    far: Far,
    near: TcpStream,
    buffer: Vec<u8>,
    parts: usize,
}

impl PingPong {
    /// Connects; messages have `bytes` bytes in both directions.
    ///
    /// # Panics
    /// If the loopback interface does not work.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self::with_parts(bytes, 1)
    }

    /// The same where the other side answers every `parts` messages with one.
    ///
    /// # Panics
    /// As [`PingPong::new`].
    #[must_use]
    pub fn with_parts(bytes: usize, parts: usize) -> Self {
        let (near, mut far) = pair();
        let mut buffer = vec![0; bytes];
        let far = Far::start(move |plays| {
            while receive(&mut far, &mut buffer, Some(plays)) {
                for _ in 1..parts {
                    receive(&mut far, &mut buffer, None);
                }
                send(&mut far, &buffer);
            }
        });
        Self {
            near,
            far,
            buffer: vec![1; bytes],
            parts,
        }
    }

    /// Plays `messages` round trips and gives their times to `sample`, in nanoseconds. The first, for which the
    /// other side has to wake up, is not given.
    ///
    /// # Panics
    /// If the connection ends.
    pub fn play(&mut self, messages: usize, mut sample: impl FnMut(f64)) {
        self.begin();
        self.round_trip();
        for _ in 0..messages {
            let began = Instant::now();
            self.round_trip();
            sample(began.elapsed().as_nanos() as f64);
        }
        self.end();
    }

    fn round_trip(&mut self) {
        for _ in 0..self.parts {
            send(&mut self.near, &self.buffer);
        }
        receive(&mut self.near, &mut self.buffer, None);
    }
}

impl Trip for PingPong {
    fn begin(&mut self) {
        self.far.begin();
    }

    fn trip(&mut self) -> Result<(), Lost> {
        self.round_trip();
        Ok(())
    }

    fn end(&mut self) {
        self.far.end();
    }
}

/// The limit of a large copy over TCP: bytes into a bare socket, received into memory on the other side, which
/// answers with one byte when it has them all.
#[derive(Debug)]
pub struct Bulk {
    // Ends before the connection does.
    far: Far,
    near: TcpStream,
    source: Vec<u8>,
}

impl Bulk {
    /// Connects; transfers have `bytes` bytes.
    ///
    /// # Panics
    /// If the loopback interface does not work.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let (near, mut far) = pair();
        let mut dest = vec![0; bytes];
        let far = Far::start(move |plays| {
            while receive(&mut far, &mut dest, Some(plays)) {
                send(&mut far, &[1]);
            }
        });
        Self {
            near,
            far,
            source: vec![1; bytes],
        }
    }
}

impl Trip for Bulk {
    fn begin(&mut self) {
        self.far.begin();
    }

    fn trip(&mut self) -> Result<(), Lost> {
        send(&mut self.near, &self.source);
        receive(&mut self.near, &mut [0], None);
        Ok(())
    }

    fn end(&mut self) {
        self.far.end();
    }
}

/// Two connected sockets, non-blocking, without Nagle's delay.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let near = TcpStream::connect(listener.local_addr().expect("an address")).expect("loopback");
    let far = listener.accept().expect("loopback").0;
    for socket in [&near, &far] {
        socket.set_nodelay(true).expect("TCP_NODELAY");
        socket.set_nonblocking(true).expect("O_NONBLOCK");
    }
    (near, far)
}

/// Fills the buffer; false if the turn ended before the first byte.
fn receive(socket: &mut TcpStream, buffer: &mut [u8], plays: Option<&AtomicBool>) -> bool {
    let mut at = 0;
    while at < buffer.len() {
        match socket.read(&mut buffer[at..]) {
            Ok(0) => panic!("the connection ended"),
            Ok(got) => at += got,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if at == 0 && plays.is_some_and(|plays| !plays.load(Ordering::Relaxed)) {
                    return false;
                }
                std::hint::spin_loop();
            }
            Err(error) => panic!("{error}"),
        }
    }
    true
}

fn send(socket: &mut TcpStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Bulk, PingPong};
    use crate::net::Trip;

    #[test]
    fn every_message_but_the_first_is_timed() {
        for parts in [1, 2] {
            let mut raw = PingPong::with_parts(8, parts);
            for _ in 0..2 {
                let mut samples = Vec::new();
                raw.play(20, |ns| samples.push(ns));
                assert_eq!(samples.len(), 20);
                assert!(samples.iter().all(|ns| *ns > 0.0));
            }
        }
    }

    #[test]
    fn bulk_transfers_come_back_turn_after_turn() {
        let mut raw = Bulk::new(1 << 20);
        for _ in 0..2 {
            raw.begin();
            (0..3).for_each(|_| raw.trip().expect("loopback"));
            raw.end();
        }
    }
}
