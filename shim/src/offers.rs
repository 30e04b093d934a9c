//! Modules that a server is believed to have. It is given their hashes and nobody waits: the answer comes later, and what
//! the server has not (any more) is sent to it then, while work that needs the module waits for it there.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};

use farcall_marshal::record::Record;
use farcall_marshal::status::CuStatus;
use farcall_marshal::text::printable;
use farcall_marshal::wire::CuModuleLoadDataReply;
use parking_lot::Mutex;

use crate::context::Context;
use crate::module::Code;

/// A module that the server has been told of, and has not answered yet.
pub(crate) struct Offer {
    pub(crate) context: &'static Context,
    pub(crate) module: u64,
    pub(crate) code: Arc<Code>,
    /// Whether the image went with it.
    pub(crate) has_image: bool,
}

/// The offers of one session, by ticket.
#[derive(Default)]
pub(crate) struct Offers {
    open: Mutex<HashMap<u32, Offer>>,
    wanted: OnceLock<Sender<Offer>>,
}

impl Offers {
    /// The reply to this ticket will say what becomes of the offer.
    pub(crate) fn add(&self, ticket: u32, offer: Offer) {
        self.open.lock().insert(ticket, offer);
    }

    /// The reply came. Does not wait: called by whoever receives. An error is the program's to hear of.
    pub(crate) fn answered(&self, ticket: u32, status: CuStatus, body: &[u8]) -> Option<CuStatus> {
        let offer = self.open.lock().remove(&ticket)?;
        match status {
            CuStatus::SUCCESS => None,
            CuStatus::FILE_NOT_FOUND if !offer.has_image => {
                self.send_later(offer);
                None
            }
            // Whoever ended or broke the context knows.
            _ if status == CuStatus::INVALID_CONTEXT || offer.context.check().is_err() => None,
            _ => {
                tell(status, body);
                Some(status)
            }
        }
    }

    /// No reply comes any more.
    pub(crate) fn end(&self) {
        self.open.lock().clear();
    }

    /// Has a thread of its own send the image: that waits for room, and who receives must not.
    fn send_later(&self, offer: Offer) {
        let queue = self.wanted.get_or_init(|| {
            let (sender, receiver) = channel::<Offer>();
            let spawned = std::thread::Builder::new()
                .name("farcall-modules".into())
                .spawn(move || receiver.into_iter().for_each(send));
            if let Err(error) = spawned {
                log::error!("no thread that sends modules: {error}");
            }
            sender
        });
        if queue.send(offer).is_err() {
            log::error!("a module that the server misses could not be sent");
        }
    }
}

fn send(offer: Offer) {
    // A session that ended meanwhile says so to every call by itself.
    let _ = Arc::clone(&offer.code).send_offered(offer);
}

/// Says why a module was not loaded.
pub(crate) fn tell(status: CuStatus, reply: &[u8]) {
    let message = CuModuleLoadDataReply::decode_body(reply).map_or("", |reply| reply.message);
    if !message.is_empty() {
        // Of a server that may be anybody's: not to reach the terminal as commands, nor a log as lines of its own.
        let lines: Vec<String> = message.lines().map(printable).collect();
        log::error!("module not loaded: {status}: {}", lines.join("\n  "));
    }
}
