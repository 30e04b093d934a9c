//! The part of a scenario in which connections break and the client dials again: every message of it can be
//! lost, doubled and late, as any other.
#![forbid(unsafe_code)]

use super::scenario::{End, World};
use crate::error::Violation;
use crate::session::Backoff;

/// Time units for which the client tries; a unit is a millisecond of [`Backoff`].
const GRACE: u64 = 12_000;
/// How late a side may notice that its connection is gone.
const NOTICE_MAX: u64 = 300;
const CLIENT: usize = 0;
const SERVER: usize = 1;

/// What the handshake of a resumed session says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Greeting {
    /// The client has everything before this.
    Hello { instance: u32, position: u64 },
    /// The server has.
    Welcome { position: u64 },
    /// The server is not the one that had the session.
    Restarted,
}

/// Who is connected by what.
#[derive(Debug)]
pub(super) struct Dialing {
    /// The connection that each side holds for the present one.
    link: [u32; 2],
    /// Connections up to this one are gone.
    dead: Option<u32>,
    notice_at: u64,
    /// The client has no connection, since when.
    down: Option<u64>,
    attempt: u32,
    dial_at: u64,
    backoff: Backoff,
    /// Which run of the server answers; the session is the first one's.
    instance: u32,
}

impl Dialing {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            link: [0; 2],
            dead: None,
            notice_at: 0,
            down: None,
            attempt: 0,
            dial_at: 0,
            backoff: Backoff::new(seed),
            instance: 0,
        }
    }

    /// The connection that a side sends on.
    pub(super) fn link_of(&self, side: usize) -> Option<u32> {
        let up = side == SERVER || self.down.is_none();
        up.then_some(self.link[side])
    }

    /// Whether nothing passes on a connection any more.
    pub(super) fn is_dead(&self, link: u32) -> bool {
        self.dead.is_some_and(|dead| link <= dead)
    }

    /// Whether a side still listens to a connection.
    pub(super) fn takes(&self, side: usize, link: u32) -> bool {
        let gone = side == SERVER && self.instance > 0;
        self.link_of(side) == Some(link) && !self.is_dead(link) && !gone
    }
}

impl World {
    /// What happens to the connection at this moment.
    pub(super) fn dial(&mut self) {
        let crashes = self.rng.chance(self.network.crash) && self.rng.chance(2);
        if crashes {
            self.dialing.instance += 1;
        }
        if crashes || self.rng.chance(self.network.disconnect) && self.rng.chance(16) {
            self.disconnect();
        }
        let dialing = &mut self.dialing;
        if dialing.down.is_none()
            && dialing.is_dead(dialing.link[CLIENT])
            && self.now >= dialing.notice_at
        {
            dialing.down = Some(self.now);
            dialing.dial_at = self.now;
            dialing.backoff = Backoff::new(self.seed ^ self.now);
        }
        let Some(since) = dialing.down else {
            return;
        };
        if self.now - since > GRACE {
            self.outcome.end = Some(End::Expired);
        } else if self.now >= dialing.dial_at {
            dialing.attempt += 1;
            let wait = u64::try_from(dialing.backoff.wait().as_millis()).unwrap_or(GRACE);
            dialing.dial_at = self.now + wait;
            let link = dialing.attempt;
            let position = self.sides[CLIENT].receiver.ack();
            // The session's name says which run of the server made it: the first.
            let hello = Greeting::Hello {
                instance: 0,
                position,
            };
            self.send_greeting(SERVER, link, hello);
        }
    }

    fn disconnect(&mut self) {
        self.outcome.disconnects += 1;
        let dialing = &mut self.dialing;
        let newest = dialing.link[CLIENT].max(dialing.link[SERVER]);
        dialing.dead = Some(dialing.dead.map_or(newest, |dead| dead.max(newest)));
        dialing.notice_at = self.now + self.rng.below(NOTICE_MAX);
    }

    /// A message of the handshake arrives.
    pub(super) fn greeted(&mut self, link: u32, greeting: Greeting) -> Result<(), Violation> {
        let dialing = &mut self.dialing;
        match greeting {
            Greeting::Hello { instance, .. } if instance != dialing.instance => {
                self.send_greeting(CLIENT, link, Greeting::Restarted);
            }
            Greeting::Hello { .. } if link <= dialing.link[SERVER] => self.outcome.stale += 1,
            Greeting::Hello { position, .. } => {
                dialing.link[SERVER] = link;
                let here = self.sides[SERVER].receiver.ack();
                self.send_greeting(CLIENT, link, Greeting::Welcome { position: here });
                self.resume(SERVER, position)?;
            }
            Greeting::Welcome { position } => {
                // An answer to an attempt that was given up is not waited for any more.
                if dialing.down.is_some() && link == dialing.attempt {
                    dialing.link[CLIENT] = link;
                    dialing.down = None;
                    self.outcome.resumes += 1;
                    self.resume(CLIENT, position)?;
                }
            }
            Greeting::Restarted => {
                if dialing.down.is_some() {
                    self.outcome.end = Some(End::Restarted);
                }
            }
        }
        Ok(())
    }

    /// A side goes on from where the other one says that it is.
    fn resume(&mut self, n: usize, position: u64) -> Result<(), Violation> {
        let side = &mut self.sides[n];
        let lens = &side.lens;
        side.sender
            .resume(position, |at| lens.get(&at).copied().unwrap_or(0))?;
        side.retained = side.retained.split_off(&position);
        side.last_ack_at = self.now;
        self.transmit_from(n, position);
        Ok(())
    }
}
