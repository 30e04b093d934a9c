//! Logging in, with a token or with a name and a password, and out.
#![forbid(unsafe_code)]

use std::time::Instant;

use askama::Template;
use axum::Extension;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::visitor::{Fields, Form, Oops, cookie, cookie_name, draw, is_same_site, local};
use crate::api::{App, Peer};
use crate::format::span;
use crate::model::ClientId;
use crate::secrets::{SecretKind, hash};
use crate::state::{Refusal, Role};

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    next: String,
    name: String,
    problem: Option<String>,
}

/// Where to go afterwards.
#[derive(Debug, Deserialize)]
pub(crate) struct Next {
    #[serde(default)]
    next: String,
}

/// The form.
pub(crate) async fn form(
    State(app): State<App>,
    Query(query): Query<Next>,
    headers: HeaderMap,
) -> Result<Response, Oops> {
    let next = local(&query.next).to_owned();
    if cookie(&headers).is_some_and(|it| app.web.sessions.find(&it).is_some()) {
        return Ok(Redirect::to(&next).into_response());
    }
    draw(&LoginPage {
        next,
        name: String::new(),
        problem: None,
    })
}

/// Lets somebody in.
pub(crate) async fn login(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Response, Response> {
    if !is_same_site(request.headers()) {
        let text = "The form is not from this page. Load it again.";
        return Err(Oops::new(StatusCode::FORBIDDEN, text).into_response());
    }
    let fields = Fields::read(request, &app).await?;
    let name = fields.text("name").to_owned();
    let keys = [format!("address {}", peer.address), format!("name {name}")];
    // A token is 256 random bits: only its address can be at fault.
    let keys = if name.is_empty() {
        &keys[..1]
    } else {
        &keys[..]
    };
    if let Err(wait) = app.web.limiter.attempt(keys, Instant::now()) {
        let wait_s = wait.as_secs() + 1;
        let text = format!(
            "After so many failed attempts the next is possible in {}.",
            span(wait_s * 1000)
        );
        let refused = again(&fields, text, StatusCode::TOO_MANY_REQUESTS);
        let mut refused = refused.map_err(IntoResponse::into_response)?;
        refused
            .headers_mut()
            .insert(header::RETRY_AFTER, wait_s.into());
        return Ok(refused);
    }
    match check(&app, &name, fields.secret("secret")).await? {
        Ok(client) => {
            app.web.limiter.succeeded(keys);
            let entered = enter(&app, client, peer, local(fields.text("next")));
            entered.map_err(IntoResponse::into_response)
        }
        Err(why) => {
            log::warn!("a failed login from {}: {why}", peer.address);
            again(&fields, why, StatusCode::UNAUTHORIZED).map_err(IntoResponse::into_response)
        }
    }
}

/// Ends the session.
pub(crate) async fn logout(State(app): State<App>, form: Form) -> Response {
    app.web.sessions.end(&form.visitor.session);
    let mut response = Redirect::to("/login").into_response();
    for is_secure in [true, false] {
        let secure = if is_secure { "; Secure" } else { "" };
        let name = cookie_name(is_secure);
        let gone = format!("{name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict{secure}");
        if let Ok(value) = HeaderValue::from_str(&gone) {
            response.headers_mut().append(header::SET_COOKIE, value);
        }
    }
    response
}

/// Whose login this is; else why it is nobody's.
async fn check(
    app: &App,
    name: &str,
    secret: String,
) -> Result<Result<ClientId, String>, Response> {
    let unavailable = |error| Oops::from(error).into_response();
    let client = if name.is_empty() {
        if SecretKind::of(secret.trim()) != Some(SecretKind::Token) {
            return Ok(Err("This is not a token of this pool.".to_owned()));
        }
        let hash = hash(secret.trim());
        let found = app
            .core
            .call(move |pool, now_ms| pool.authenticate(now_ms, &hash).map(|(client, _)| client));
        found.await.map_err(unavailable)?
    } else {
        let asked = name.to_owned();
        let found = app.core.call(move |pool, _| pool.password_hash(&asked));
        let found = found.await.map_err(unavailable)?;
        let (client, hash) = found.unzip();
        let is_right = app.web.hashing.verify(secret, hash).await;
        let unknown = || Refusal::Unauthorized("The name or the password is wrong.".to_owned());
        client.filter(|_| is_right).ok_or_else(unknown)
    };
    let checked = match client {
        Ok(client) => {
            let found = app
                .core
                .call(move |pool, now_ms| pool.check_client(now_ms, client));
            let found = found.await.map_err(unavailable)?;
            found.map(|(_, role)| (client, role))
        }
        Err(refusal) => Err(refusal),
    };
    Ok(match checked {
        Ok((_, Role::Client)) => {
            let why = "This is a client's token: the dashboard is for administrators and viewers.";
            Err(why.to_owned())
        }
        Ok((client, _)) => Ok(client),
        Err(refusal) => Err(refusal.to_string()),
    })
}

fn enter(app: &App, client: ClientId, peer: Peer, next: &str) -> Result<Response, Oops> {
    let begun = app.web.sessions.begin(client);
    let failed =
        |error: std::io::Error| Oops::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let cookie = begun.map_err(failed)?;
    let secure = if peer.is_tls { "; Secure" } else { "" };
    let name = cookie_name(peer.is_tls);
    let cookie = format!("{name}={cookie}; Path=/; HttpOnly; SameSite=Strict{secure}");
    let mut response = Redirect::to(next).into_response();
    if let Ok(value) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    Ok(response)
}

fn again(fields: &Fields, problem: String, status: StatusCode) -> Result<Response, Oops> {
    let page = LoginPage {
        next: local(fields.text("next")).to_owned(),
        name: fields.text("name").to_owned(),
        problem: Some(problem),
    };
    let mut response = draw(&page)?;
    *response.status_mut() = status;
    Ok(response)
}
