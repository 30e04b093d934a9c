//! Who asks, and what: the parts of a request, checked.
#![forbid(unsafe_code)]

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use super::App;
use super::problem::Refused;
use crate::model::{ClientId, ServerId};
use crate::secrets::{SecretKind, hash};
use crate::state::{Refusal, Role, unknown_server};

/// A JSON body.
#[derive(Debug)]
pub(crate) struct Sent<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Sent<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, app: &App) -> Result<Self, Refused> {
        let bytes = Bytes::from_request(request, app).await.map_err(too_much)?;
        let mut deserializer = serde_json::Deserializer::from_slice(&bytes);
        let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let path = error.path().to_string();
            Refused::field(
                field_of(&path, &error.inner().to_string()),
                error.inner().to_string(),
            )
        })?;
        deserializer
            .end()
            .map_err(|error| Refused::field(".", error.to_string()))?;
        Ok(Self(value))
    }
}

/// An unknown or missing field is named in the message only.
fn field_of(path: &str, message: &str) -> String {
    let quoted = message.split('`').nth(1);
    match quoted {
        Some(name) if message.starts_with("missing field") => {
            if path == "." || path == "?" {
                name.to_owned()
            } else {
                format!("{path}.{name}")
            }
        }
        _ => path.to_owned(),
    }
}

fn too_much(rejection: BytesRejection) -> Refused {
    let status = rejection.status();
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        let detail = format!("a body is at most {} bytes", super::BODY_BYTES_MAX);
        return Refused::new(status, "too-large", "The body is too large", detail);
    }
    Refused::new(
        status,
        "body",
        "The body cannot be read",
        rejection.body_text(),
    )
}

/// What stands behind the `?`.
#[derive(Debug)]
pub(crate) struct Options<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Options<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Refused> {
        let Query(value) = Query::<T>::try_from_uri(&parts.uri).map_err(|rejection| {
            // "What failed: option: why", or "What failed: missing field `option`".
            let text = rejection.body_text();
            let text = text.split_once(": ").map_or(text.as_str(), |it| it.1);
            match text.split_once(": ") {
                Some((option, why)) => Refused::field(option, why.to_owned()),
                None => Refused::field(field_of("?", text), text.to_owned()),
            }
        })?;
        Ok(Self(value))
    }
}

/// The name, or number, in the path.
#[derive(Debug)]
pub(crate) struct Named(pub(crate) String);

impl FromRequestParts<App> for Named {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refused> {
        let Path(name) = Path::<String>::from_request_parts(parts, app)
            .await
            .map_err(|rejection| Refused::field("path", rejection.body_text()))?;
        Ok(Self(name))
    }
}

/// Someone with a token.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) client: ClientId,
    pub(crate) name: String,
    pub(crate) role: Role,
}

impl Caller {
    /// # Errors
    /// The token is no administrator's.
    pub(crate) fn admin(&self) -> Result<(), Refused> {
        self.allowed(&[Role::Admin])
    }

    /// # Errors
    /// The token may not see everything.
    pub(crate) fn sees_all(&self) -> Result<(), Refused> {
        self.allowed(&[Role::Admin, Role::Viewer])
    }

    /// # Errors
    /// The token may only look.
    pub(crate) fn may_ask(&self) -> Result<(), Refused> {
        self.allowed(&[Role::Admin, Role::Client])
    }

    /// Whose leases it may touch: its own, or all.
    pub(crate) fn scope(&self) -> Option<ClientId> {
        (self.role != Role::Admin).then_some(self.client)
    }

    fn allowed(&self, roles: &[Role]) -> Result<(), Refused> {
        if roles.contains(&self.role) {
            return Ok(());
        }
        let what = format!("the token {:?} may not do this", self.name);
        Err(Refusal::Forbidden(what).into())
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refused> {
        let hash = hash(&secret(parts, SecretKind::Token)?);
        let found = app.core.call(move |pool, now_ms| {
            let (client, role) = pool.authenticate(now_ms, &hash)?;
            let name = pool.client_name(client);
            Ok::<_, Refusal>(Self { client, name, role })
        });
        Ok(found.await??)
    }
}

/// Someone who wants to register: the hash of a join token, or a known server.
#[derive(Clone, Debug)]
pub(crate) enum Joining {
    Join(String),
    Known(ServerId, String),
}

impl FromRequestParts<App> for Joining {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refused> {
        let secret = bearer(parts)?;
        if SecretKind::of(&secret) == Some(SecretKind::Join) {
            return Ok(Self::Join(hash(&secret)));
        }
        let Member(server, hash) = Member::from_request_parts(parts, app).await?;
        Ok(Self::Known(server, hash))
    }
}

/// A server that has joined, and the hash of its credential.
#[derive(Clone, Debug)]
pub(crate) struct Member(pub(crate) ServerId, pub(crate) String);

impl FromRequestParts<App> for Member {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refused> {
        let hash = hash(&secret(parts, SecretKind::Credential)?);
        let asked = hash.clone();
        let found = app
            .core
            .call(move |pool, _| pool.server_by_credential(&asked))
            .await?;
        let server = found.ok_or_else(unknown_server)?;
        Ok(Self(server, hash))
    }
}

fn secret(parts: &Parts, kind: SecretKind) -> Result<String, Refused> {
    let secret = bearer(parts)?;
    if SecretKind::of(&secret) == Some(kind) {
        return Ok(secret);
    }
    let what = match SecretKind::of(&secret) {
        Some(SecretKind::Join) => "a join token only lets servers join",
        Some(SecretKind::Credential) => "a server's credential is for that server only",
        _ => "this token is not known",
    };
    Err(Refusal::Unauthorized(what.to_owned()).into())
}

fn bearer(parts: &Parts) -> Result<String, Refused> {
    let value = parts.headers.get(header::AUTHORIZATION);
    let value = value.and_then(|value| value.to_str().ok());
    let secret = value.and_then(|value| value.strip_prefix("Bearer "));
    secret
        .map(|secret| secret.trim().to_owned())
        .ok_or_else(|| {
            Refusal::Unauthorized("a token is needed: `Authorization: Bearer TOKEN`".to_owned())
                .into()
        })
}
