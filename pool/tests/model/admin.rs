//! What administrators do at any time.

use farcall_pool::model::Quota;
use farcall_pool::state::{NewToken, Role, TokenChange};

use super::world::{CLIENTS, GIB, SERVERS, World};

impl World {
    pub(super) fn administer(&mut self) {
        match self.random.below(6) {
            0 => self.limit_client(),
            1 => self.limit_group(),
            2 => self.revoke(),
            3 => self.expire(),
            4 => self.remove_server(),
            _ => self.set_clock(),
        }
    }

    /// A limit that is not below what is held, so that nobody is over it.
    fn limit(&mut self, shares_permille: u64, memory_bytes: u64, share_seconds: u64) -> Quota {
        let random = &mut self.random;
        Quota {
            shares_permille_max: random
                .one_in(2)
                .then(|| shares_permille.max(500 * random.below(8))),
            memory_bytes_max: random
                .one_in(2)
                .then(|| memory_bytes.max(10 * GIB * random.below(8))),
            share_seconds_per_day_max: random.one_in(4).then(|| share_seconds + random.below(100)),
            request_gpus_max: random.one_in(4).then_some(3),
            hold_ms_max: random.one_in(4).then_some(20_000),
            priority: random.pick(&[None, None, Some(-2), Some(3)]).unwrap(),
        }
    }

    fn limit_client(&mut self) {
        let tokens = self.pool.token_views(self.now_ms);
        let at = self.random.below(tokens.len() as u64) as usize;
        let held = &tokens[at];
        let quota = self.limit(
            held.shares_permille,
            held.memory_bytes,
            held.share_seconds_today,
        );
        self.change(
            &held.name,
            TokenChange {
                quota: Some(quota),
                ..TokenChange::default()
            },
        );
    }

    fn limit_group(&mut self) {
        let held = &self.pool.group_views(self.now_ms)[0];
        let (shares, memory) = (held.shares_permille, held.memory_bytes);
        let quota = self.limit(shares, memory, held.share_seconds_today);
        let set = self
            .pool
            .set_group_quota(self.now_ms, "team", quota, "test");
        set.unwrap();
    }

    fn change(&mut self, name: &str, change: TokenChange) {
        let changed = self.pool.change_token(self.now_ms, name, change, "test");
        changed.unwrap();
    }

    /// A token is void, and its owner gets another.
    fn revoke(&mut self) {
        let at = self.random.below(CLIENTS) as usize;
        let name = format!("c{at}");
        self.pool.revoke_token(self.now_ms, &name, "test").unwrap();
        let new = NewToken {
            name,
            role: Role::Client,
            group: (at < 2).then(|| "team".to_owned()),
            quota: Quota::default(),
            valid_ms: None,
        };
        let hash = format!("hash{at} of {}", self.operations);
        let made = self.pool.create_token(self.now_ms, new, &hash, "test");
        self.clients[at] = made.unwrap();
    }

    /// A token is over soon, or much later.
    fn expire(&mut self) {
        let name = format!("c{}", self.random.below(CLIENTS));
        let valid_ms = self.random.pick(&[5_000, u64::MAX]);
        self.change(
            &name,
            TokenChange {
                valid_ms,
                ..TokenChange::default()
            },
        );
    }

    /// A server that is gone is forgotten; if it comes again, it is another.
    fn remove_server(&mut self) {
        let index = self.random.below(SERVERS) as usize;
        let server = &mut self.servers[index];
        if server.alive || server.id.is_none() {
            return;
        }
        let name = format!("s{index}");
        if self.pool.remove_server(self.now_ms, &name, "test").is_ok() {
            *server = Default::default();
        }
    }

    fn set_clock(&mut self) {
        let by_ms = self.random.below(100_000_000);
        let to_ms = match self.random.one_in(2) {
            true => self.now_ms + by_ms,
            false => self.now_ms.saturating_sub(by_ms),
        };
        self.pool.clock_was_set(self.now_ms, to_ms);
        self.now_ms = to_ms;
    }

    /// Nobody is limited, over or disabled any more.
    pub(super) fn amnesty(&mut self) {
        for index in 0..CLIENTS {
            self.change(
                &format!("c{index}"),
                TokenChange {
                    valid_ms: Some(u64::MAX),
                    disabled: Some(false),
                    quota: Some(Quota::default()),
                },
            );
        }
        let now_ms = self.now_ms;
        let set = self
            .pool
            .set_group_quota(now_ms, "team", Quota::default(), "test");
        set.unwrap();
    }
}
