//! Who holds how much, and who may hold more.
#![forbid(unsafe_code)]

use crate::model::{Ask, ClientId, Piece, Quota, WHOLE_PERMILLE};
use crate::state::records::Used;
use crate::state::{Key, OverQuota, Pool, Refusal};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Leases that are named as users of a quota.
const NAMED_MAX: usize = 5;

/// Number of the day (UTC).
pub(crate) fn day_of(now_ms: u64) -> u64 {
    now_ms / DAY_MS
}

impl Used {
    /// GPU time used on the day of `now_ms`, in permille-milliseconds.
    pub(crate) fn until(&self, now_ms: u64) -> u64 {
        let midnight_ms = day_of(now_ms) * DAY_MS;
        let (before, since_ms) = if self.day == day_of(now_ms) {
            (self.permille_ms, self.at_ms)
        } else {
            (0, midnight_ms.max(self.at_ms))
        };
        let held_ms = now_ms.saturating_sub(since_ms);
        before.saturating_add(self.held.shares_permille.saturating_mul(held_ms))
    }

    pub(super) fn settle(&mut self, now_ms: u64) {
        self.permille_ms = self.until(now_ms);
        self.day = day_of(now_ms);
        self.at_ms = now_ms;
    }
}

/// Whose limit, and what of it is used.
struct Owner<'a> {
    name: String,
    quota: &'a Quota,
    used: &'a Used,
    group: bool,
}

impl Pool {
    /// The client's own limits, with the pool's defaults for those that it has not.
    pub(crate) fn quota_of(&self, client: ClientId) -> Quota {
        let default = &self.meta.settings.default_quota;
        let own = self.clients.get(&client).map(|client| client.quota.clone());
        let own = own.unwrap_or_default();
        Quota {
            shares_permille_max: own.shares_permille_max.or(default.shares_permille_max),
            memory_bytes_max: own.memory_bytes_max.or(default.memory_bytes_max),
            share_seconds_per_day_max: own
                .share_seconds_per_day_max
                .or(default.share_seconds_per_day_max),
            request_gpus_max: own.request_gpus_max.or(default.request_gpus_max),
            hold_ms_max: own.hold_ms_max.or(default.hold_ms_max),
            priority: own.priority.or(default.priority),
        }
    }

    /// Whether the client could have this if it and its group held nothing.
    pub(super) fn check_alone(&self, client: ClientId, ask: &Ask) -> Result<(), Refusal> {
        let own = self.quota_of(client);
        for owner in self.owners(client, &own) {
            let gpus_max = owner.quota.request_gpus_max.map(u64::from);
            over(&owner, "request_gpus_max", gpus_max, 0, ask.gpus.into())?;
            let shares = shares_of(ask);
            let shares_max = owner.quota.shares_permille_max;
            over(&owner, "shares_permille_max", shares_max, 0, shares)?;
            let memory = ask
                .memory_bytes
                .unwrap_or(0)
                .saturating_mul(ask.gpus.into());
            let memory_max = owner.quota.memory_bytes_max;
            over(&owner, "memory_bytes_max", memory_max, 0, memory)?;
            let hold_max = owner.quota.hold_ms_max;
            over(&owner, "hold_ms_max", hold_max, 0, ask.hold_ms.unwrap_or(0))?;
        }
        Ok(())
    }

    /// How long the client may have a lease: as long as it and its group may.
    pub(super) fn hold_ms_max(&self, client: ClientId) -> Option<u64> {
        let own = self.quota_of(client);
        self.owners(client, &own)
            .filter_map(|it| it.quota.hold_ms_max)
            .min()
    }

    /// What a request may need of one GPU, so that no placement of it is over its memory quota. `None`: its
    /// memory is known, or has no limit.
    pub(super) fn memory_max(&self, client: ClientId, ask: &Ask) -> Option<u64> {
        if ask.memory_bytes.is_some() {
            return None;
        }
        let own = self.quota_of(client);
        let limits = self.owners(client, &own);
        let least = limits.filter_map(|it| it.quota.memory_bytes_max).min()?;
        Some(least / u64::from(ask.gpus.max(1)))
    }

    /// Whether the client may have this now.
    pub(super) fn check_now(
        &self,
        now_ms: u64,
        client: ClientId,
        ask: &Ask,
    ) -> Result<(), Refusal> {
        let own = self.quota_of(client);
        for owner in self.owners(client, &own) {
            let quota = owner.quota;
            let named = |refusal| self.with_users(refusal, client, owner.group);
            let held = owner.used.held.shares_permille;
            over(
                &owner,
                "shares_permille_max",
                quota.shares_permille_max,
                held,
                shares_of(ask),
            )
            .map_err(named)?;
            let seconds = owner.used.until(now_ms) / (1000 * u64::from(WHOLE_PERMILLE));
            let seconds_max = quota.share_seconds_per_day_max;
            over(&owner, "share_seconds_per_day_max", seconds_max, seconds, 1).map_err(named)?;
        }
        Ok(())
    }

    /// Whether the client may have the memory of this placement now.
    pub(super) fn check_memory(&self, client: ClientId, pieces: &[Piece]) -> Result<(), Refusal> {
        let wanted = pieces.iter().map(|piece| piece.memory_bytes).sum();
        let own = self.quota_of(client);
        for owner in self.owners(client, &own) {
            let (max, held) = (owner.quota.memory_bytes_max, owner.used.held.memory_bytes);
            over(&owner, "memory_bytes_max", max, held, wanted)
                .map_err(|refusal| self.with_users(refusal, client, owner.group))?;
        }
        Ok(())
    }

    /// Counts what was granted. The time before counts with what was held then.
    pub(super) fn charge(&mut self, now_ms: u64, client: ClientId, pieces: &[Piece]) {
        self.settle(now_ms, client);
        self.add_held(client, pieces);
    }

    /// Counts what has ended.
    pub(super) fn discharge(&mut self, now_ms: u64, client: ClientId, pieces: &[Piece]) {
        self.settle(now_ms, client);
        let (shares, memory) = sums(pieces);
        self.for_used(client, |used| {
            used.held.shares_permille = used.held.shares_permille.saturating_sub(shares);
            used.held.memory_bytes = used.held.memory_bytes.saturating_sub(memory);
        });
    }

    /// Counts what is held, without time.
    pub(super) fn add_held(&mut self, client: ClientId, pieces: &[Piece]) {
        let (shares, memory) = sums(pieces);
        self.for_used(client, |used| {
            used.held.shares_permille += shares;
            used.held.memory_bytes += memory;
        });
    }

    fn settle(&mut self, now_ms: u64, client: ClientId) {
        self.for_used(client, |used| used.settle(now_ms));
        self.mark(Key::Client(client));
        let group = self.clients.get(&client).and_then(|it| it.group.clone());
        if let Some(group) = group {
            self.mark(Key::Group(group));
        }
    }

    fn for_used(&mut self, client: ClientId, mut change: impl FnMut(&mut Used)) {
        let Some(client) = self.clients.get_mut(&client) else {
            return;
        };
        change(&mut client.used);
        if let Some(group) = &client.group {
            change(&mut self.groups.entry(group.clone()).or_default().used);
        }
    }

    fn owners<'a>(
        &'a self,
        client: ClientId,
        own: &'a Quota,
    ) -> impl Iterator<Item = Owner<'a>> + 'a {
        let client = self.clients.get(&client);
        let group = client.and_then(|client| {
            let name = client.group.as_ref()?;
            let group = self.groups.get(name)?;
            Some(Owner {
                name: format!("group {name}"),
                quota: &group.quota,
                used: &group.used,
                group: true,
            })
        });
        let client = client.map(|client| Owner {
            name: client.name.clone(),
            quota: own,
            used: &client.used,
            group: false,
        });
        client.into_iter().chain(group)
    }

    /// Says which leases use a quota up.
    fn with_users(&self, refusal: Refusal, client: ClientId, group: bool) -> Refusal {
        let Refusal::Quota(mut over) = refusal else {
            return refusal;
        };
        let name = self.clients.get(&client).and_then(|it| it.group.as_ref());
        let same_group = |other: &crate::state::Client| group && other.group.as_ref() == name;
        let users = self
            .clients
            .iter()
            .filter(|(id, it)| **id == client || same_group(it));
        let leases = users.flat_map(|(_, user)| user.leases.iter().map(move |id| (user, id)));
        let held = leases.filter_map(|(user, id)| {
            let lease = self.leases.get(id).filter(|it| !it.pieces.is_empty())?;
            let share = f64::from(lease.ask.share_permille) / 1000.0;
            let gpus = lease.ask.gpus;
            Some(format!(
                "{id}: {gpus} x {share} of {} {}",
                user.name, lease.ask.label
            ))
        });
        over.by = held.take(NAMED_MAX).collect();
        Refusal::Quota(over)
    }
}

fn over(
    owner: &Owner<'_>,
    limit: &'static str,
    max: Option<u64>,
    used: u64,
    wanted: u64,
) -> Result<(), Refusal> {
    match max {
        Some(max) if used.saturating_add(wanted) > max => {
            Err(Refusal::Quota(Box::new(OverQuota {
                limit: limit.to_owned(),
                owner: owner.name.clone(),
                max,
                used,
                wanted,
                by: Vec::new(),
            })))
        }
        _ => Ok(()),
    }
}

fn shares_of(ask: &Ask) -> u64 {
    u64::from(ask.gpus) * u64::from(ask.share_permille)
}

fn sums(pieces: &[Piece]) -> (u64, u64) {
    pieces.iter().fold((0, 0), |(shares, memory), piece| {
        (
            shares + u64::from(piece.share_permille),
            memory + piece.memory_bytes,
        )
    })
}
