//! Who is logged in. Sessions are in memory: they end with the pool.
#![forbid(unsafe_code)]

use std::io;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::model::ClientId;
use crate::secrets;

/// A session that nobody used for so long is over.
const IDLE: Duration = Duration::from_hours(12);
/// However much it is used.
const AGE: Duration = Duration::from_hours(7 * 24);
/// Sessions at once; the one that was unused longest goes first.
const SESSIONS_MAX: usize = 10_000;

/// What a page tells once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notice {
    pub(crate) text: String,
    pub(crate) is_problem: bool,
    /// Shown this once.
    pub(crate) secret: Option<String>,
}

/// A session, as a request sees it.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) key: String,
    pub(crate) client: ClientId,
    /// To be sent with every form.
    pub(crate) form_token: String,
}

#[derive(Debug)]
struct Kept {
    client: ClientId,
    form_token: String,
    began: Instant,
    used: Instant,
    notice: Option<Notice>,
}

/// All sessions, by the hash of their cookie.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    kept: Mutex<FxHashMap<String, Kept>>,
}

impl Sessions {
    /// Begins a session. What the cookie is to hold.
    ///
    /// # Errors
    /// The system has no randomness.
    pub(crate) fn begin(&self, client: ClientId) -> io::Result<String> {
        let (cookie, form_token) = (random()?, random()?);
        let now = Instant::now();
        let mut kept = self.kept.lock();
        kept.retain(|_, it| !it.is_over(now));
        if kept.len() >= SESSIONS_MAX {
            let oldest = kept.iter().min_by_key(|(_, it)| it.used);
            let oldest = oldest.map(|(key, _)| key.clone());
            kept.retain(|key, _| Some(key) != oldest.as_ref());
        }
        let session = Kept {
            client,
            form_token,
            began: now,
            used: now,
            notice: None,
        };
        kept.insert(secrets::hash(&cookie), session);
        Ok(cookie)
    }

    /// The session that a cookie names.
    pub(crate) fn find(&self, cookie: &str) -> Option<Session> {
        let key = secrets::hash(cookie);
        let mut kept = self.kept.lock();
        let now = Instant::now();
        let found = kept.get_mut(&key).filter(|it| !it.is_over(now))?;
        found.used = now;
        Some(Session {
            client: found.client,
            form_token: found.form_token.clone(),
            key,
        })
    }

    pub(crate) fn end(&self, session: &Session) {
        self.kept.lock().remove(&session.key);
    }

    /// To be told by the next page.
    pub(crate) fn tell(&self, session: &Session, notice: Notice) {
        if let Some(kept) = self.kept.lock().get_mut(&session.key) {
            kept.notice = Some(notice);
        }
    }

    pub(crate) fn told(&self, session: &Session) -> Option<Notice> {
        self.kept.lock().get_mut(&session.key)?.notice.take()
    }
}

impl Kept {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.used) > IDLE || now.duration_since(self.began) > AGE
    }
}

fn random() -> io::Result<String> {
    let mut bytes = [0; 32];
    secrets::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Notice, Sessions};
    use crate::model::ClientId;

    #[test]
    fn a_session_lasts_until_it_is_ended() {
        let sessions = Sessions::default();
        let one = sessions.begin(ClientId(1)).unwrap();
        let two = sessions.begin(ClientId(1)).unwrap();
        assert_ne!(one, two);
        let session = sessions.find(&one).unwrap();
        assert_ne!(session.form_token, sessions.find(&two).unwrap().form_token);
        sessions.tell(&session, Notice::default());
        assert!(sessions.told(&session).is_some());
        assert!(sessions.told(&session).is_none());
        sessions.end(&session);
        assert!(sessions.find(&one).is_none());
        assert!(sessions.find(&two).is_some());
        assert!(sessions.find("").is_none());
    }
}
