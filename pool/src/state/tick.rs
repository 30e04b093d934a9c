//! What time does: silent servers and clients, expired, idle and forgotten leases.
#![forbid(unsafe_code)]

use super::quota::day_of;
use crate::model::{ClientId, LeaseId, Purpose, ServerId, Settings, Stage};
use crate::state::{Key, Lease, Pool, Topic};

/// A client is warned so long before an idle lease is taken back, or at four fifths of a short idle time.
const WARNING_MS: u64 = 60_000;
/// So often a server says what it does within an idle time, so that the warning comes in time.
const REPORTS: u64 = 20;
/// However short the idle time is.
const REPORT_MS_MIN: u64 = 50;
/// How much longer than grants are valid an ended lease is remembered.
const MEMORY_MS: u64 = 60_000;

/// What a lease is due for.
enum Due {
    End(String),
    Warn(String),
    Unwarn,
    Forget,
    Nothing,
}

impl Pool {
    /// Time has passed. To be called a few times a second.
    pub fn tick(&mut self, now_ms: u64) {
        let ttl_ms = self.meta.settings.server_ttl_ms;
        let silent: Vec<ServerId> = self
            .servers
            .iter()
            .filter(|(_, it)| it.up && now_ms.saturating_sub(it.seen_ms) > ttl_ms)
            .map(|(id, _)| *id)
            .collect();
        for id in silent {
            self.server_down(now_ms, id);
        }
        let due: Vec<(LeaseId, Due)> = self
            .leases
            .iter()
            .map(|(id, lease)| (*id, self.due(now_ms, lease)))
            .filter(|(_, due)| !matches!(due, Due::Nothing))
            .collect();
        for (id, due) in due {
            self.carry_out(now_ms, id, due);
        }
        let old: Vec<u32> = self
            .joins
            .iter()
            .filter(|(_, it)| it.expires_ms.saturating_add(MEMORY_MS) < now_ms)
            .map(|(id, _)| *id)
            .collect();
        for id in old {
            self.joins.remove(&id);
            self.mark(Key::Join(id));
        }
        self.end_of_tokens(now_ms);
        if self.day != day_of(now_ms) {
            self.day = day_of(now_ms);
            let waiting: Vec<ClientId> = self.queue.over_quota.keys().copied().collect();
            for client in waiting {
                self.requeue_over_quota(client);
            }
        }
        self.dispatch_fresh(now_ms);
    }

    fn carry_out(&mut self, now_ms: u64, id: LeaseId, due: Due) {
        match due {
            Due::End(reason) => self.end(now_ms, id, "pool", &reason),
            Due::Warn(text) => self.warn(id, Some(text)),
            Due::Unwarn => self.warn(id, None),
            Due::Forget => {
                self.leases.remove(&id);
                self.mark(Key::Lease(id));
            }
            Due::Nothing => {}
        }
    }

    fn warn(&mut self, id: LeaseId, text: Option<String>) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.warning = text;
        }
        self.wake(Topic::Lease(id));
    }

    /// What expired tokens have ends.
    fn end_of_tokens(&mut self, now_ms: u64) {
        let expired: Vec<LeaseId> = self
            .clients
            .values()
            .filter(|client| client.expires_ms.is_some_and(|at_ms| at_ms <= now_ms))
            .flat_map(|client| client.leases.iter().copied())
            .collect();
        for id in expired {
            self.end(now_ms, id, "pool", "the client's token has expired");
        }
    }

    fn due(&self, now_ms: u64, lease: &Lease) -> Due {
        let settings = &self.meta.settings;
        let unheard_ms = now_ms.saturating_sub(lease.seen_ms);
        let is_client_gone = unheard_ms > settings.client_ttl_ms;
        match lease.stage {
            Stage::Queued if is_client_gone => {
                Due::End("the client does not ask for it any more".to_owned())
            }
            Stage::Held if lease.ask.purpose == Purpose::Run && is_client_gone => {
                Due::End("the client does not answer".to_owned())
            }
            Stage::Held if !lease.acknowledged && is_client_gone => {
                Due::End("the client did not hear that it was granted".to_owned())
            }
            Stage::Held if lease.expires_ms.is_some_and(|at_ms| at_ms <= now_ms) => {
                Due::End("its time is over".to_owned())
            }
            Stage::Held => self.idle(lease),
            Stage::Ended => {
                let ended_ms = lease.end.as_ref().map_or(0, |end| end.at_ms);
                let kept_ms = settings.grant_ms.saturating_add(MEMORY_MS);
                if ended_ms.saturating_add(kept_ms) < now_ms {
                    Due::Forget
                } else {
                    Due::Nothing
                }
            }
            Stage::Queued | Stage::Ending => Due::Nothing,
        }
    }

    /// Nothing is taken back without a warning before.
    fn idle(&self, lease: &Lease) -> Due {
        let Some(limit_ms) = idle_limit_ms(lease, &self.meta.settings) else {
            return Due::Nothing;
        };
        // What a server has not told yet is not idleness.
        let servers = lease.pieces.iter();
        let servers = servers.filter_map(|piece| self.servers.get(&piece.server));
        let Some(told_ms) = servers.map(|server| server.seen_ms).min() else {
            return Due::Nothing;
        };
        let idle_ms = told_ms.saturating_sub(lease.active_ms);
        let warn_ms = limit_ms.saturating_sub(WARNING_MS.min(limit_ms / 5));
        match lease.warning {
            Some(_) if idle_ms > limit_ms => Due::End(format!("unused for {}", seconds(limit_ms))),
            Some(_) if idle_ms <= warn_ms => Due::Unwarn,
            None if idle_ms > warn_ms => Due::Warn(format!(
                "unused for {}: it is taken back in {} unless it is used",
                seconds(idle_ms),
                seconds(limit_ms.saturating_sub(idle_ms))
            )),
            _ => Due::Nothing,
        }
    }

    /// How soon a server should say again what it does: often enough for the shortest idle time there.
    #[must_use]
    pub fn report_within_ms(&self, id: ServerId) -> u64 {
        let held = self.servers.get(&id).into_iter().flat_map(|it| &it.holds);
        let leases = held.filter_map(|lease| self.leases.get(lease));
        let limits = leases.filter_map(|lease| idle_limit_ms(lease, &self.meta.settings));
        limits
            .min()
            .map_or(u64::MAX, |limit_ms| (limit_ms / REPORTS).max(REPORT_MS_MIN))
    }
}

fn idle_limit_ms(lease: &Lease, settings: &Settings) -> Option<u64> {
    let limits = [lease.ask.idle_ms, settings.idle_ms];
    limits.into_iter().flatten().min()
}

fn seconds(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        10_000..120_000 => format!("{} s", ms / 1000),
        _ => format!("{} min", ms / 60_000),
    }
}
