//! The limit of a blocking call over TCP: bytes to and fro on a bare socket, both sides spinning.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::pin::{self, Side};

/// A socket pair on the loopback interface; the far side echoes on a thread of its own, which sleeps between
/// rounds, so that it takes no core from what is measured beside it.
#[derive(Debug)]
pub struct PingPong {
    near: TcpStream,
    rounds: Option<Sender<usize>>,
    echo: Option<JoinHandle<()>>,
    buffer: Vec<u8>,
}

impl PingPong {
    /// Connects; messages have `bytes` bytes in both directions.
    ///
    /// # Panics
    /// If the loopback interface does not work.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let near =
            TcpStream::connect(listener.local_addr().expect("an address")).expect("loopback");
        let mut far = listener.accept().expect("loopback").0;
        for socket in [&near, &far] {
            socket.set_nodelay(true).expect("TCP_NODELAY");
            socket.set_nonblocking(true).expect("O_NONBLOCK");
        }
        let (rounds, orders) = mpsc::channel::<usize>();
        let answer = move || {
            let mut buffer = vec![0; bytes];
            for messages in orders {
                for _ in 0..messages {
                    receive(&mut far, &mut buffer);
                    send(&mut far, &buffer);
                }
            }
        };
        let echo = pin::on(Side::Server, || std::thread::spawn(answer));
        Self {
            near,
            rounds: Some(rounds),
            echo: Some(echo),
            buffer: vec![1; bytes],
        }
    }

    /// Plays `messages` round trips and gives their times to `sample`, in nanoseconds. The first, for which the
    /// other side has to wake up, is not given.
    ///
    /// # Panics
    /// If the connection ends.
    pub fn play(&mut self, messages: usize, mut sample: impl FnMut(f64)) {
        let rounds = self.rounds.as_ref().expect("an open channel");
        rounds.send(messages + 1).expect("the echo thread");
        for index in 0..=messages {
            let began = Instant::now();
            send(&mut self.near, &self.buffer);
            receive(&mut self.near, &mut self.buffer);
            if index > 0 {
                sample(began.elapsed().as_nanos() as f64);
            }
        }
    }
}

impl Drop for PingPong {
    fn drop(&mut self) {
        self.rounds = None;
        if let Some(echo) = self.echo.take() {
            let _ = echo.join();
        }
    }
}

fn receive(socket: &mut TcpStream, buffer: &mut [u8]) {
    let mut at = 0;
    while at < buffer.len() {
        match socket.read(&mut buffer[at..]) {
            Ok(0) => panic!("the connection ended"),
            Ok(got) => at += got,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => panic!("{error}"),
        }
    }
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
    use super::PingPong;

    #[test]
    fn every_message_but_the_first_is_timed() {
        let mut raw = PingPong::new(8);
        for _ in 0..2 {
            let mut samples = Vec::new();
            raw.play(20, |ns| samples.push(ns));
            assert_eq!(samples.len(), 20);
            assert!(samples.iter().all(|ns| *ns > 0.0));
        }
    }
}
