//! Tokens of clients and administrators, groups, quotas, settings, join tokens. Secrets never come here:
//! only their hashes.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{ClientId, LeaseId, Quota, Settings};
use crate::state::records::Used;
use crate::state::{Client, Group, Join, Key, Pool, Refusal, Role};

const NAME_BYTES_MAX: usize = 64;
/// Tokens of one pool.
const CLIENTS_MAX: usize = 1_000_000;

/// A token to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Unique in the pool; it names the client.
    pub name: String,
    /// What it may do.
    #[serde(default = "client_role")]
    pub role: Role,
    /// Clients of a group share its quota.
    #[serde(default)]
    pub group: Option<String>,
    /// Its own limits.
    #[serde(default)]
    pub quota: Quota,
    /// How long it is valid; without it, until it is revoked.
    #[serde(default)]
    pub valid_ms: Option<u64>,
}

fn client_role() -> Role {
    Role::Client
}

/// What is to change of a token.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenChange {
    /// Valid for so long from now.
    pub valid_ms: Option<u64>,
    /// `true`: it is refused until it is enabled again, and what it holds ends.
    pub disabled: Option<bool>,
    /// New limits, all of them.
    pub quota: Option<Quota>,
}

impl Pool {
    /// Makes a token of which only the hash is known here.
    ///
    /// # Errors
    /// A field that cannot be; the name is taken.
    pub fn create_token(
        &mut self,
        now_ms: u64,
        new: NewToken,
        token_hash: &str,
        actor: &str,
    ) -> Result<ClientId, Refusal> {
        check_name("name", &new.name, NAME_BYTES_MAX)?;
        if let Some(group) = &new.group {
            check_name("group", group, NAME_BYTES_MAX)?;
        }
        check_quota("quota", &new.quota)?;
        check_valid(new.valid_ms)?;
        if self.client_names.contains_key(&new.name) {
            return Err(Refusal::Conflict(format!(
                "there is a token called {:?} already",
                new.name
            )));
        }
        if self.clients.len() >= CLIENTS_MAX {
            return Err(Refusal::Conflict("there are too many tokens".to_owned()));
        }
        let id = ClientId(self.meta.next_client);
        self.meta.next_client += 1;
        if let Some(group) = &new.group {
            self.groups.entry(group.clone()).or_default();
            self.mark(Key::Group(group.clone()));
        }
        self.client_names.insert(new.name.clone(), id);
        self.token_hashes.insert(token_hash.to_owned(), id);
        self.note(now_ms, actor, "token.create", &new.name, "");
        self.clients.insert(
            id,
            Client {
                name: new.name,
                role: new.role,
                group: new.group,
                token_hash: token_hash.to_owned(),
                password_hash: None,
                quota: new.quota,
                created_ms: now_ms,
                expires_ms: new.valid_ms.map(|valid| now_ms.saturating_add(valid)),
                disabled: false,
                used: Used::default(),
                next_tag: 0,
                leases: BTreeSet::new(),
                waiting: 0,
            },
        );
        self.mark(Key::Meta);
        self.mark(Key::Client(id));
        Ok(id)
    }

    /// Whose token this is, if it may be used now.
    ///
    /// # Errors
    /// Unknown, disabled or expired.
    pub fn authenticate(&self, now_ms: u64, token_hash: &str) -> Result<(ClientId, Role), Refusal> {
        let found = self.token_hashes.get(token_hash).copied();
        let id =
            found.ok_or_else(|| Refusal::Unauthorized("this token is not known".to_owned()))?;
        let (_, role) = self.check_client(now_ms, id)?;
        Ok((id, role))
    }

    /// Extends, limits, disables or enables a token.
    ///
    /// # Errors
    /// No such token.
    pub fn change_token(
        &mut self,
        now_ms: u64,
        name: &str,
        change: TokenChange,
        actor: &str,
    ) -> Result<(), Refusal> {
        let id = self.client_named(name)?;
        check_valid(change.valid_ms)?;
        if let Some(quota) = &change.quota {
            check_quota("quota", quota)?;
        }
        let Some(client) = self.clients.get_mut(&id) else {
            return Err(no_token(name));
        };
        if let Some(valid_ms) = change.valid_ms {
            client.expires_ms = Some(now_ms.saturating_add(valid_ms));
        }
        if let Some(quota) = change.quota {
            client.quota = quota;
        }
        if let Some(disabled) = change.disabled {
            client.disabled = disabled;
        }
        let disabled = client.disabled;
        self.mark(Key::Client(id));
        self.note(now_ms, actor, "token.change", name, "");
        if disabled {
            self.end_all(now_ms, id, actor, "the client's token is disabled");
        }
        self.requeue_over_quota(id);
        self.dispatch_fresh(now_ms);
        Ok(())
    }

    /// Lets a token's owner log in with a password, or no more: only its hash is known here.
    ///
    /// # Errors
    /// No such token.
    pub fn set_password(
        &mut self,
        now_ms: u64,
        name: &str,
        password_hash: Option<String>,
        actor: &str,
    ) -> Result<(), Refusal> {
        let id = self.client_named(name)?;
        let action = match password_hash {
            Some(_) => "password.set",
            None => "password.remove",
        };
        if let Some(client) = self.clients.get_mut(&id) {
            client.password_hash = password_hash;
        }
        self.mark(Key::Client(id));
        self.note(now_ms, actor, action, name, "");
        Ok(())
    }

    /// Hash of a token's password; `None`: no such token, or it has none.
    #[must_use]
    pub fn password_hash(&self, name: &str) -> Option<(ClientId, String)> {
        let id = self.client_named(name).ok()?;
        let hash = self.clients.get(&id)?.password_hash.clone()?;
        Some((id, hash))
    }

    /// Name and role of a client whose token may be used now.
    ///
    /// # Errors
    /// Revoked, disabled or expired.
    pub fn check_client(&self, now_ms: u64, id: ClientId) -> Result<(String, Role), Refusal> {
        let no = |why: &str| Err(Refusal::Unauthorized(why.to_owned()));
        let Some(client) = self.clients.get(&id) else {
            return no("this token is not known");
        };
        if client.disabled {
            return no("this token is disabled");
        }
        if client.expires_ms.is_some_and(|at_ms| at_ms <= now_ms) {
            return no("this token has expired");
        }
        Ok((client.name.clone(), client.role))
    }

    /// Makes a token void for ever; what it holds ends.
    ///
    /// # Errors
    /// No such token; the last administrator's.
    pub fn revoke_token(&mut self, now_ms: u64, name: &str, actor: &str) -> Result<(), Refusal> {
        let id = self.client_named(name)?;
        let admins = self.clients.values().filter(|it| it.role == Role::Admin);
        let is_admin = self
            .clients
            .get(&id)
            .is_some_and(|it| it.role == Role::Admin);
        if is_admin && admins.count() < 2 {
            return Err(Refusal::Conflict(
                "this is the last administrator's token".to_owned(),
            ));
        }
        self.end_all(now_ms, id, actor, "the client's token was revoked");
        if let Some(client) = self.clients.remove(&id) {
            self.client_names.remove(&client.name);
            self.token_hashes.remove(&client.token_hash);
        }
        self.mark(Key::Client(id));
        self.note(now_ms, actor, "token.revoke", name, "");
        self.dispatch_fresh(now_ms);
        Ok(())
    }

    /// Limits a group.
    ///
    /// # Errors
    /// A name that cannot be.
    pub fn set_group_quota(
        &mut self,
        now_ms: u64,
        name: &str,
        quota: Quota,
        actor: &str,
    ) -> Result<(), Refusal> {
        check_name("name", name, NAME_BYTES_MAX)?;
        check_quota("quota", &quota)?;
        let group: &mut Group = self.groups.entry(name.to_owned()).or_default();
        group.quota = quota;
        self.mark(Key::Group(name.to_owned()));
        self.note(now_ms, actor, "quota.group", name, "");
        self.requeue_all_over_quota(now_ms);
        Ok(())
    }

    /// Changes the pool's settings.
    ///
    /// # Errors
    /// A time that cannot be.
    pub fn set_settings(
        &mut self,
        now_ms: u64,
        settings: Settings,
        actor: &str,
    ) -> Result<(), Refusal> {
        for (field, value) in [
            ("client_ttl_ms", settings.client_ttl_ms),
            ("server_ttl_ms", settings.server_ttl_ms),
            ("grant_ms", settings.grant_ms),
        ] {
            if !(500..=24 * 60 * 60_000).contains(&value) {
                return Err(Refusal::field(
                    field,
                    format!("{value} is not 500 ms to a day"),
                ));
            }
        }
        if !(1000..=60 * 60_000).contains(&settings.refresh_ms) {
            let why = format!("{} is not 1000 ms to an hour", settings.refresh_ms);
            return Err(Refusal::field("refresh_ms", why));
        }
        if settings.idle_ms == Some(0) {
            return Err(Refusal::field("idle_ms", "all would be taken back at once"));
        }
        check_quota("default_quota", &settings.default_quota)?;
        self.meta.settings = settings;
        self.mark(Key::Meta);
        self.note(now_ms, actor, "settings", "pool", "");
        self.requeue_all_over_quota(now_ms);
        Ok(())
    }

    /// Makes a join token of which only the hash is known here.
    ///
    /// # Errors
    /// A field that cannot be.
    pub fn create_join(
        &mut self,
        now_ms: u64,
        name: &str,
        valid_ms: u64,
        uses: u32,
        token_hash: &str,
        actor: &str,
    ) -> Result<(), Refusal> {
        check_name("name", name, NAME_BYTES_MAX)?;
        check_valid(Some(valid_ms))?;
        if uses == 0 {
            return Err(Refusal::field("uses", "0 uses are of no use"));
        }
        let id = self.meta.next_join;
        self.meta.next_join += 1;
        let expires_ms = now_ms.saturating_add(valid_ms);
        let (name, token_hash) = (name.to_owned(), token_hash.to_owned());
        self.note(now_ms, actor, "join.create", &name, "");
        self.joins.insert(
            id,
            Join {
                name,
                token_hash,
                expires_ms,
                uses_left: uses,
            },
        );
        self.mark(Key::Meta);
        self.mark(Key::Join(id));
        Ok(())
    }

    pub(crate) fn client_named(&self, name: &str) -> Result<ClientId, Refusal> {
        let found = self.client_names.get(name).copied();
        found.ok_or_else(|| no_token(name))
    }

    fn end_all(&mut self, now_ms: u64, id: ClientId, actor: &str, reason: &str) {
        let leases = self.clients.get(&id).map(|client| client.leases.clone());
        let leases: BTreeSet<LeaseId> = leases.unwrap_or_default();
        for lease in leases {
            self.end(now_ms, lease, actor, reason);
        }
    }

    fn requeue_all_over_quota(&mut self, now_ms: u64) {
        let waiting: Vec<ClientId> = self.queue.over_quota.keys().copied().collect();
        for client in waiting {
            self.requeue_over_quota(client);
        }
        self.dispatch_fresh(now_ms);
    }
}

fn no_token(name: &str) -> Refusal {
    Refusal::NotFound(format!("no token called {name:?}"))
}

/// A token that is void as soon as it is made, or changed, is a mistake.
fn check_valid(valid_ms: Option<u64>) -> Result<(), Refusal> {
    match valid_ms {
        Some(0) => Err(Refusal::field("valid_ms", "0 ms are of no use")),
        _ => Ok(()),
    }
}

fn check_quota(field: &str, quota: &Quota) -> Result<(), Refusal> {
    match quota.priority {
        Some(priority) if !(-10..=10).contains(&priority) => Err(Refusal::field(
            format!("{field}.priority"),
            format!("{priority} is not -10 to 10"),
        )),
        _ => Ok(()),
    }
}

pub(super) fn check_name(field: &'static str, name: &str, bytes_max: usize) -> Result<(), Refusal> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if name.is_empty() || name.len() > bytes_max || !name.chars().all(good) {
        return Err(Refusal::field(
            field,
            format!("{name:?} is not 1 to {bytes_max} letters, digits and -_.@"),
        ));
    }
    Ok(())
}
