//! Who looks at a page, what a form brought, and what goes wrong with either.
#![forbid(unsafe_code)]

use askama::Template;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};

use super::session::{Notice, Session};
use crate::api::App;
use crate::api::extract::Caller;
use crate::core::Unavailable;
use crate::state::{Refusal, Role};

/// Somebody who is logged in, and may look at everything.
#[derive(Clone, Debug)]
pub(crate) struct Visitor {
    pub(crate) session: Session,
    pub(crate) caller: Caller,
}

impl FromRequestParts<App> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Response> {
        let session = cookie(&parts.headers).and_then(|it| app.web.sessions.find(&it));
        let Some(session) = session else {
            return Err(to_login(parts));
        };
        let client = session.client;
        let found = app
            .core
            .call(move |pool, now_ms| pool.check_client(now_ms, client));
        let found = found
            .await
            .map_err(|error| Oops::from(error).into_response())?;
        match found {
            Ok((name, role)) if role != Role::Client => Ok(Self {
                session,
                caller: Caller { client, name, role },
            }),
            _ => {
                app.web.sessions.end(&session);
                Err(to_login(parts))
            }
        }
    }
}

/// What an administrator's form brought, from one of our pages.
#[derive(Debug)]
pub(crate) struct Form {
    pub(crate) visitor: Visitor,
    pub(crate) fields: Fields,
}

impl FromRequest<App> for Form {
    type Rejection = Response;

    async fn from_request(request: Request, app: &App) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let visitor = Visitor::from_request_parts(&mut parts, app).await?;
        let is_same_site = is_same_site(&parts.headers);
        let request = Request::from_parts(parts, body);
        let fields = Fields::read(request, app).await?;
        // The cookie is SameSite=Strict already; the token in the form does not depend on the browser.
        if !is_same_site || fields.text("form_token") != visitor.session.form_token {
            let text = "The form is not from a page of this session. Go back, load the page again and repeat it.";
            return Err(Oops::new(StatusCode::FORBIDDEN, text).into_response());
        }
        Ok(Self { visitor, fields })
    }
}

/// Fields of a form. Those that are not there are empty.
#[derive(Debug, Default)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads a body.
    pub(crate) async fn read(request: Request, app: &App) -> Result<Self, Response> {
        let pairs = axum::Form::<Vec<(String, String)>>::from_request(request, app).await;
        pairs
            .map(|pairs| Self(pairs.0))
            .map_err(IntoResponse::into_response)
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(field, _)| field == name);
        found.map_or("", |(_, value)| value.trim())
    }

    /// As typed: a password may begin with a space.
    pub(crate) fn secret(&self, name: &str) -> String {
        let found = self.0.iter().find(|(field, _)| field == name);
        found.map_or_else(String::new, |(_, value)| value.clone())
    }

    /// A number that need not be there, times `unit`.
    ///
    /// # Errors
    /// In words.
    pub(crate) fn number(&self, name: &'static str, unit: f64) -> Result<Option<u64>, Refusal> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(None);
        }
        let value = text.parse::<f64>().ok().map(|value| value * unit);
        let value = value.filter(|value| (0.0..1e18).contains(value));
        let value = value.ok_or_else(|| Refusal::field(name, format!("{text:?} is no number")))?;
        // In range.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok(Some(value.round() as u64))
    }
}

/// Something that cannot be shown.
#[derive(Debug)]
pub(crate) struct Oops {
    status: StatusCode,
    text: String,
}

impl Oops {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
        }
    }
}

impl From<Unavailable> for Oops {
    fn from(error: Unavailable) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl From<Refusal> for Oops {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::NotFound(_) => StatusCode::NOT_FOUND,
            Refusal::Forbidden(_) => StatusCode::FORBIDDEN,
            _ => StatusCode::CONFLICT,
        };
        Self::new(status, refusal.to_string())
    }
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    status: u16,
    title: &'a str,
    text: &'a str,
}

impl IntoResponse for Oops {
    fn into_response(self) -> Response {
        let title = match self.status {
            StatusCode::NOT_FOUND => "There is no such page",
            StatusCode::FORBIDDEN => "This is not allowed",
            StatusCode::SERVICE_UNAVAILABLE => "The pool cannot answer now",
            StatusCode::TOO_MANY_REQUESTS => "Too many attempts",
            _ => "This did not work",
        };
        let page = ErrorPage {
            status: self.status.as_u16(),
            title,
            text: &self.text,
        };
        let html = page.render().unwrap_or_else(|_| self.text.clone());
        (self.status, Html(html)).into_response()
    }
}

/// For browsers that ask for a page that is not there.
pub(crate) fn not_found(headers: &HeaderMap, path: &str) -> Option<Response> {
    let accept = headers.get(header::ACCEPT)?.to_str().ok()?;
    let wants_page = accept.contains("text/html") && !path.starts_with("/v1/");
    let text = format!("Nothing is at {path}.");
    wants_page.then(|| Oops::new(StatusCode::NOT_FOUND, text).into_response())
}

/// Draws a page.
pub(crate) fn draw(page: &impl Template) -> Result<Response, Oops> {
    let html = page.render();
    let failed =
        |error: askama::Error| Oops::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    Ok(Html(html.map_err(failed)?).into_response())
}

/// What all pages have around them.
#[derive(Debug)]
pub(crate) struct Shell {
    pub(crate) section: &'static str,
    pub(crate) title: String,
    pub(crate) who: String,
    pub(crate) is_admin: bool,
    pub(crate) form_token: String,
    pub(crate) notice: Option<Notice>,
    pub(crate) at: String,
}

impl Shell {
    pub(crate) fn new(app: &App, visitor: &Visitor, section: &'static str, title: &str) -> Self {
        Self {
            section,
            title: title.to_owned(),
            who: visitor.caller.name.clone(),
            is_admin: visitor.caller.role == Role::Admin,
            form_token: visitor.session.form_token.clone(),
            notice: app.web.sessions.told(&visitor.session),
            at: crate::format::clock(app.core.now_ms()),
        }
    }
}

/// Name of the cookie. Over TLS its prefix binds it to this host and path.
pub(crate) const fn cookie_name(is_secure: bool) -> &'static str {
    if is_secure {
        "__Host-farcall"
    } else {
        "farcall"
    }
}

/// What the browser shows; of either name, since one of them only exists.
pub(crate) fn cookie(headers: &HeaderMap) -> Option<String> {
    let all = headers.get_all(header::COOKIE).iter();
    let pairs = all
        .filter_map(|it| it.to_str().ok())
        .flat_map(|it| it.split(';'));
    let mut values = pairs.filter_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        let is_ours = name == cookie_name(true) || name == cookie_name(false);
        is_ours.then(|| value.to_owned())
    });
    values.next()
}

/// Whether the browser says that one of our pages sent this.
pub(crate) fn is_same_site(headers: &HeaderMap) -> bool {
    let value = |name: &str| headers.get(name).and_then(|it| it.to_str().ok());
    if let Some(site) = value("sec-fetch-site") {
        return matches!(site, "same-origin" | "none");
    }
    match (value("origin"), value("host")) {
        (Some(origin), Some(host)) => origin.split("://").nth(1) == Some(host),
        _ => true,
    }
}

fn to_login(parts: &Parts) -> Response {
    if parts.method != Method::GET || parts.uri.path() == "/events" {
        let text = "The session is over. Log in again.";
        return Oops::new(StatusCode::UNAUTHORIZED, text).into_response();
    }
    let next = parts.uri.path();
    if next == "/" {
        return Redirect::to("/login").into_response();
    }
    Redirect::to(&format!("/login?next={}", escaped(next))).into_response()
}

/// A text as a part of an address.
pub(crate) fn escaped(text: &str) -> String {
    let escaped = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escaped).collect()
}

/// A place of this dashboard to go to; anything else becomes the first page.
pub(crate) fn local(path: &str) -> &str {
    let is_local = path.starts_with('/') && !path.starts_with("//") && !path.contains('\\');
    if is_local && path.bytes().all(|byte| byte.is_ascii_graphic()) {
        path
    } else {
        "/"
    }
}

#[cfg(test)]
mod tests {
    use super::{Fields, local};

    #[test]
    fn only_local_places_are_gone_to() {
        assert_eq!(local("/servers/a"), "/servers/a");
        for bad in [
            "//evil.example",
            "https://evil.example",
            "/\\evil",
            "",
            "/a\r\nb",
        ] {
            assert_eq!(local(bad), "/", "{bad}");
        }
    }

    #[test]
    fn forms_are_read() {
        let fields = |name: &str, value: &str| Fields(vec![(name.to_owned(), value.to_owned())]);
        assert_eq!(fields("name", " a ").text("name"), "a");
        assert_eq!(fields("name", "a").text("other"), "");
        assert_eq!(fields("gpus", "1.5").number("gpus", 1000.0), Ok(Some(1500)));
        assert_eq!(fields("gpus", "").number("gpus", 1.0), Ok(None));
        assert!(fields("gpus", "-1").number("gpus", 1.0).is_err());
        assert!(fields("gpus", "NaN").number("gpus", 1.0).is_err());
    }
}
