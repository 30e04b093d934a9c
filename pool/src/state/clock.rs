//! What it means that somebody sets the clock: nothing. All that is counted from some moment is counted from that moment on.
#![forbid(unsafe_code)]

use super::quota::day_of;
use crate::alloc::Queue;
use crate::model::{ClientId, LeaseId, Stage};
use crate::state::records::Used;
use crate::state::{Key, Pool};

impl Pool {
    /// The clock that said `before_ms` says `now_ms` from here on: who was silent, unused or waiting for some time still is for that
    /// time, and leases end as long from now as before. Dates of tokens stay what they are.
    pub fn clock_was_set(&mut self, before_ms: u64, now_ms: u64) {
        let moved = |at_ms: u64| at_ms.saturating_add(now_ms).saturating_sub(before_ms);
        let tag_by = i64::try_from(i128::from(now_ms) - i128::from(before_ms)).unwrap_or(0);
        for server in self.servers.values_mut() {
            server.seen_ms = moved(server.seen_ms);
        }
        for lease in self.leases.values_mut() {
            for at_ms in [
                &mut lease.queued_ms,
                &mut lease.seen_ms,
                &mut lease.active_ms,
            ] {
                *at_ms = moved(*at_ms);
            }
            for at_ms in [&mut lease.granted_ms, &mut lease.expires_ms] {
                *at_ms = at_ms.map(moved);
            }
            if let Some(end) = &mut lease.end {
                end.at_ms = moved(end.at_ms);
            }
            lease.tag = lease.tag.saturating_add(tag_by);
        }
        for client in self.clients.values_mut() {
            client.used.set_clock(before_ms, now_ms);
            // Nobody looks at that of a client of which nothing waits.
            if client.waiting > 0 {
                client.next_tag = client.next_tag.saturating_add(tag_by);
            }
        }
        for group in self.groups.values_mut() {
            group.used.set_clock(before_ms, now_ms);
        }
        self.mark_all_with_times();
        self.line_up_again(now_ms);
    }

    fn mark_all_with_times(&mut self) {
        let leases: Vec<LeaseId> = self.leases.keys().copied().collect();
        leases.into_iter().for_each(|id| self.mark(Key::Lease(id)));
        let clients = self.clients.iter();
        // What counts of the others is no time.
        let clients = clients.filter(|(_, it)| !it.leases.is_empty());
        let clients: Vec<ClientId> = clients.map(|(id, _)| *id).collect();
        clients
            .into_iter()
            .for_each(|id| self.mark(Key::Client(id)));
        let groups: Vec<String> = self.groups.keys().cloned().collect();
        groups
            .into_iter()
            .for_each(|name| self.mark(Key::Group(name)));
    }

    fn line_up_again(&mut self, now_ms: u64) {
        self.drop_pin();
        self.queue = Queue::default();
        for (id, lease) in &mut self.leases {
            if lease.stage == Stage::Queued {
                lease.over_quota = None;
                self.queue.join(lease.shape().into(), (lease.tag, *id));
            }
        }
        self.day = day_of(now_ms);
        self.dispatch_fresh(now_ms);
    }
}

impl Used {
    fn set_clock(&mut self, before_ms: u64, now_ms: u64) {
        if self.held.shares_permille == 0 {
            return;
        }
        self.settle(before_ms);
        if self.day != day_of(now_ms) {
            self.permille_ms = 0;
        }
        self.day = day_of(now_ms);
        self.at_ms = now_ms;
    }
}
