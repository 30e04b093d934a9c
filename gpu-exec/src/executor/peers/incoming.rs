//! The end of a link that receives: what may come, and where it goes.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use farcall_marshal::record::{Record, split};
use farcall_marshal::wire::{PeerExpect, PeerHello, PeerPut};
use farcall_transport::{CloseReason, Endpoint, Handler, SessionId, Tuning};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{LIFE, LINKS_MAX, Secret, TICKETS_MAX};
use crate::device::Violation;
use crate::executor::outbox::Post;
use crate::limits::STACK_BYTES;

/// How long a further connection of a link waits for the link itself.
const OPENING: Duration = Duration::from_secs(1);

/// Links that bring bytes, and the tickets for them.
#[derive(Default)]
pub(crate) struct Incoming {
    inner: Mutex<Inner>,
    /// A link was opened, or was not.
    opened: Condvar,
}

#[derive(Default)]
struct Inner {
    /// Links that may be opened.
    accepted: HashMap<u64, (Secret, Instant)>,
    links: HashMap<u64, Endpoint>,
    /// Links whose opening is under way.
    opening: usize,
    tickets: HashMap<u64, Ticket>,
    /// Tickets that were shown before the client had told of them, by link and number.
    early: HashMap<(u64, u64), Shown>,
}

/// One transfer that another server may send, once.
struct Ticket {
    link: u64,
    bytes: u64,
    secret: Secret,
    since: Instant,
    state: State,
}

enum State {
    /// Neither shown nor posted.
    New,
    /// Memory is there, the bytes are not.
    Posted(Post),
    /// The bytes are there, memory is not.
    Shown,
    /// They will not come.
    Void,
    /// Memory was there, and is not any more: who brings the bytes now ends its link, as nobody takes them.
    Withdrawn,
}

struct Shown {
    bytes: u64,
    secret: Vec<u8>,
}

impl Ticket {
    fn admits(&self, link: u64, shown: &Shown) -> bool {
        let is_due = matches!(self.state, State::New | State::Posted(_));
        is_due
            && self.link == link
            && self.bytes == shown.bytes
            && self.since.elapsed() < LIFE
            && self.secret.is(&shown.secret)
    }
}

/// What is to be done once nothing is locked.
enum Then {
    Nothing,
    Receive(Post, Endpoint),
    GiveUp(Vec<Post>),
    Violation,
}

impl Then {
    fn run(self, id: u64) {
        match self {
            Self::Nothing | Self::Violation => {}
            Self::Receive(post, link) => post.receive(&link, id),
            Self::GiveUp(posts) => posts.into_iter().for_each(Post::give_up),
        }
    }
}

impl Incoming {
    /// A link may be opened, once, by who shows the secret.
    pub(super) fn accept(&self, link: u64, secret: Secret) -> Result<(), Violation> {
        let mut inner = self.inner.lock();
        inner
            .accepted
            .retain(|_, (_, since)| since.elapsed() < LIFE);
        if inner.accepted.len() >= LINKS_MAX || inner.links.contains_key(&link) {
            return Err(Violation::Rule("too many links between servers"));
        }
        inner.accepted.insert(link, (secret, Instant::now()));
        Ok(())
    }

    /// Somebody opens a link. A secret is good for one attempt. Does not wait for the other server: the link's own thread
    /// does, as one that falls silent may take its time.
    pub(crate) fn open(self: &Arc<Self>, fd: OwnedFd, state: Vec<u8>, hello: &[u8]) {
        if let Err(why) = self.try_open(fd, state, hello) {
            refused(&why);
        }
    }

    fn try_open(self: &Arc<Self>, fd: OwnedFd, state: Vec<u8>, hello: &[u8]) -> Result<(), String> {
        let (_, body, _) = split(hello).map_err(|error| error.to_string())?;
        let hello = PeerHello::decode_body(body).map_err(|error| error.to_string())?;
        let mut inner = self.inner.lock();
        let accepted = inner.accepted.remove(&hello.link);
        let is_right = accepted
            .is_some_and(|(secret, since)| since.elapsed() < LIFE && secret.is(hello.secret));
        if !is_right || inner.links.len() + inner.opening >= LINKS_MAX {
            return Err("nobody waits for it".to_owned());
        }
        inner.opening += 1;
        drop(inner);
        let (incoming, number) = (self.clone(), hello.link);
        let builder = std::thread::Builder::new()
            .name("link".to_owned())
            .stack_size(2 * STACK_BYTES);
        let receive = move || incoming.receive(number, fd, &state);
        if let Err(error) = builder.spawn(receive) {
            self.opening_ended(None);
            return Err(error.to_string());
        }
        Ok(())
    }

    /// Makes a connection the link, and receives until its end.
    fn receive(self: &Arc<Self>, number: u64, fd: OwnedFd, state: &[u8]) {
        let link = Link {
            number,
            incoming: Arc::downgrade(self),
        };
        let adopted = Endpoint::adopt(fd, state, &[], &Tuning::default(), Arc::new(link));
        let endpoint = match adopted {
            Ok(endpoint) => endpoint,
            Err(error) => {
                self.opening_ended(None);
                return refused(&error.to_string());
            }
        };
        self.opening_ended(Some((number, endpoint.clone())));
        let why = endpoint.run();
        log::info!("a link from another server ended: {why}");
        self.end(number);
    }

    fn opening_ended(&self, link: Option<(u64, Endpoint)>) {
        let mut inner = self.inner.lock();
        inner.opening -= 1;
        inner.links.extend(link);
        drop(inner);
        self.opened.notify_all();
    }

    /// The link whose session with this server has this name.
    pub(crate) fn link(&self, session: SessionId) -> Option<Endpoint> {
        let is_it = |link: &Endpoint| link.session() == session;
        let inner = self.settled(|inner| inner.links.values().any(is_it));
        inner.links.values().find(|link| is_it(link)).cloned()
    }

    /// Waits for what links that are about to be opened bring, but not for long: the other server, and so the client, may know
    /// of one a moment before it is here.
    fn settled(&self, is_here: impl Fn(&Inner) -> bool) -> MutexGuard<'_, Inner> {
        let deadline = Instant::now() + OPENING;
        let mut inner = self.inner.lock();
        while inner.opening > 0 && !is_here(&inner) {
            if self.opened.wait_until(&mut inner, deadline).timed_out() {
                break;
            }
        }
        inner
    }

    /// The client announces a transfer.
    pub(super) fn expect(&self, record: &PeerExpect<'_>) -> Result<(), Violation> {
        let mut inner = self.settled(|inner| inner.links.contains_key(&record.link));
        let is_over = |ticket: &Ticket| {
            matches!(ticket.state, State::Withdrawn) && ticket.since.elapsed() >= LIFE
        };
        inner.tickets.retain(|_, ticket| !is_over(ticket));
        if inner.tickets.len() >= TICKETS_MAX || inner.tickets.contains_key(&record.bulk) {
            return Err(Violation::Rule("too many copies between servers"));
        }
        let mut ticket = Ticket {
            link: record.link,
            bytes: record.byte_count,
            secret: Secret::decode(record.secret)?,
            since: Instant::now(),
            state: State::New,
        };
        let shown = inner.early.remove(&(record.link, record.bulk));
        let is_right = shown.map(|shown| ticket.admits(record.link, &shown));
        let link = inner.links.get(&record.link);
        match (link, is_right) {
            (Some(_), Some(true)) => ticket.state = State::Shown,
            (Some(_), None) => {}
            (Some(link), Some(false)) => {
                refuse(link);
                ticket.state = State::Void;
            }
            (None, _) => ticket.state = State::Void,
        }
        inner.tickets.insert(record.bulk, ticket);
        Ok(())
    }

    /// Memory for a transfer; given back if no other server brings it.
    pub(super) fn offer(&self, id: u64, post: Post) -> Option<Post> {
        let mut inner = self.inner.lock();
        let Some(ticket) = inner.tickets.get_mut(&id) else {
            return Some(post);
        };
        let then = match std::mem::replace(&mut ticket.state, State::Void) {
            State::New => {
                ticket.state = State::Posted(post);
                Then::Nothing
            }
            State::Shown => {
                let link = ticket.link;
                inner.tickets.remove(&id);
                match inner.links.get(&link) {
                    Some(link) => Then::Receive(post, link.clone()),
                    None => Then::GiveUp(vec![post]),
                }
            }
            State::Void | State::Withdrawn | State::Posted(_) => {
                inner.tickets.remove(&id);
                Then::GiveUp(vec![post])
            }
        };
        drop(inner);
        then.run(id);
        None
    }

    /// The client says that a transfer will not come.
    pub(super) fn cancel(&self, id: u64) {
        let mut inner = self.inner.lock();
        let Some(ticket) = inner.tickets.get_mut(&id) else {
            return;
        };
        let post = match std::mem::replace(&mut ticket.state, State::Void) {
            State::Posted(post) => post,
            // Its bytes are on their way.
            state @ (State::Shown | State::Withdrawn) => return ticket.state = state,
            State::New | State::Void => return,
        };
        ticket.state = State::Withdrawn;
        drop(inner);
        post.give_up();
    }

    /// Another server shows a ticket; false if it may not.
    fn show(&self, link: u64, id: u64, shown: Shown) -> bool {
        let mut inner = self.inner.lock();
        let Some(ticket) = inner.tickets.get_mut(&id) else {
            // The client's word for it may be on its way.
            let has_room = inner.early.len() < TICKETS_MAX;
            return has_room && inner.early.insert((link, id), shown).is_none();
        };
        let then = if !ticket.admits(link, &shown) {
            Then::Violation
        } else if let State::Posted(post) = std::mem::replace(&mut ticket.state, State::Shown) {
            inner.tickets.remove(&id);
            match inner.links.get(&link) {
                Some(link) => Then::Receive(post, link.clone()),
                None => Then::GiveUp(vec![post]),
            }
        } else {
            Then::Nothing
        };
        drop(inner);
        let is_right = !matches!(then, Then::Violation);
        then.run(id);
        is_right
    }

    /// A link is over: what was to come over it does not.
    fn end(&self, number: u64) {
        let mut inner = self.inner.lock();
        inner.links.remove(&number);
        inner.early.retain(|(link, _), _| *link != number);
        let mut posts = Vec::new();
        inner.tickets.retain(|_, ticket| {
            if ticket.link != number {
                return true;
            }
            match std::mem::replace(&mut ticket.state, State::Void) {
                State::Posted(post) => {
                    posts.push(post);
                    false
                }
                State::Withdrawn => false,
                _ => true,
            }
        });
        drop(inner);
        Then::GiveUp(posts).run(0);
    }
}

fn refused(why: &str) {
    log::warn!("a link from another server is refused: {why}");
}

/// Ends a link that does what it may not.
fn refuse(link: &Endpoint) {
    log::warn!("a link from another server shows a wrong ticket: it is closed");
    link.close();
}

/// What is said on a link.
struct Link {
    number: u64,
    incoming: Weak<Incoming>,
}

impl Handler for Link {
    fn on_frame(&self, endpoint: &Endpoint, frame: &[u8]) {
        let mut rest = frame;
        while let Ok((head, body, after)) = split(rest) {
            let put = match PeerPut::decode_body(body) {
                Ok(put) if head.number == PeerPut::NUMBER => put,
                _ => return refuse(endpoint),
            };
            let shown = Shown {
                bytes: put.byte_count,
                secret: put.secret.to_vec(),
            };
            let incoming = self.incoming.upgrade();
            if !incoming.is_some_and(|it| it.show(self.number, put.bulk, shown)) {
                return refuse(endpoint);
            }
            rest = after;
            if rest.is_empty() {
                return;
            }
        }
        refuse(endpoint);
    }

    fn on_closed(&self, _endpoint: &Endpoint, _why: &CloseReason) {}
}
