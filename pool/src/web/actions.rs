//! What administrators do with forms. Each does what the interface does, tells how it went, and goes back.
#![forbid(unsafe_code)]

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};

use super::password;
use super::session::Notice;
use super::visitor::{Fields, Form, Oops, escaped, local};
use crate::api::App;
use crate::core::Unavailable;
use crate::model::{LeaseId, Quota, Settings};
use crate::secrets::{SecretKind, generate, hash};
use crate::state::{NewToken, Pool, Refusal, Role, TokenChange};

const HOUR_MS: f64 = 3_600_000.0;
const DAY_MS: f64 = 24.0 * HOUR_MS;

/// What an action leaves to be told.
type Told = Result<Notice, Failed>;

/// Why it came to nothing.
enum Failed {
    Refused(Refusal),
    Unavailable(Unavailable),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Unavailable> for Failed {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

/// Drains, uses again or removes a server.
pub(crate) async fn server(
    State(app): State<App>,
    Path((name, action)): Path<(String, String)>,
    form: Form,
) -> Response {
    let is_removal = action == "remove";
    let place = format!("/servers/{}", escaped(&name));
    let told = run(&app, &form, move |pool, now_ms, actor| {
        match action.as_str() {
            "drain" => {
                pool.drain(now_ms, &name, true, actor)?;
                Ok(format!("{name} is draining: it gets nothing new."))
            }
            "undrain" => {
                pool.drain(now_ms, &name, false, actor)?;
                Ok(format!("{name} is used again."))
            }
            "remove" => {
                pool.remove_server(now_ms, &name, actor)?;
                Ok(format!("{name} is forgotten."))
            }
            _ => Err(unknown()),
        }
    });
    let told = told.await;
    let is_gone = is_removal && told.is_ok();
    tell(&app, &form, told, if is_gone { "/servers" } else { &place })
}

/// Ends a lease, or takes it out of the queue.
pub(crate) async fn end(State(app): State<App>, Path(lease): Path<String>, form: Form) -> Response {
    let told = run(&app, &form, move |pool, now_ms, actor| {
        let id: LeaseId = lease
            .parse()
            .map_err(|why: String| Refusal::field("lease", why))?;
        let reason = format!("ended by {actor}");
        pool.release(now_ms, None, id, actor, &reason)?;
        Ok(format!("{id} ends."))
    });
    tell(&app, &form, told.await, "/queue")
}

/// Issues a token.
pub(crate) async fn issue(State(app): State<App>, form: Form) -> Response {
    let told = async {
        let token = secret(SecretKind::Token)?;
        let token_hash = hash(&token);
        let new = new_token(&form.fields)?;
        let mut notice = run(&app, &form, move |pool, now_ms, actor| {
            let name = new.name.clone();
            pool.create_token(now_ms, new, &token_hash, actor)?;
            Ok(format!("The token of {name}. It is shown this once:"))
        })
        .await?;
        notice.secret = Some(token);
        Ok(notice)
    };
    tell(&app, &form, told.await, "/clients")
}

/// Changes or revokes a token.
pub(crate) async fn client(
    State(app): State<App>,
    Path((name, action)): Path<(String, String)>,
    form: Form,
) -> Response {
    let back = match action.as_str() {
        "revoke" => "/clients".to_owned(),
        _ => format!("/clients/{}", escaped(&name)),
    };
    let told = match action.as_str() {
        "password" => set_password(&app, &form, name).await,
        _ => change_client(&app, &form, name, action).await,
    };
    tell(&app, &form, told, &back)
}

async fn change_client(app: &App, form: &Form, name: String, action: String) -> Told {
    let valid_ms = form.fields.number("days", DAY_MS)?;
    let change = match action.as_str() {
        "disable" | "enable" => TokenChange {
            disabled: Some(action == "disable"),
            ..TokenChange::default()
        },
        "extend" if valid_ms.is_none() => {
            return Err(Refusal::field("days", "for how long?").into());
        }
        "extend" => TokenChange {
            valid_ms,
            ..TokenChange::default()
        },
        "quota" => TokenChange {
            quota: Some(quota(&form.fields)?),
            ..TokenChange::default()
        },
        "revoke" => TokenChange::default(),
        _ => return Err(unknown().into()),
    };
    let done = run(app, form, move |pool, now_ms, actor| {
        if action == "revoke" {
            pool.revoke_token(now_ms, &name, actor)?;
            return Ok(format!("The token of {name} is void."));
        }
        pool.change_token(now_ms, &name, change, actor)?;
        Ok(match action.as_str() {
            "disable" => format!("{name} is disabled, and what it held ends."),
            "enable" => format!("{name} is enabled."),
            "extend" => format!("The token of {name} is extended."),
            _ => format!("The limits of {name} are changed."),
        })
    });
    done.await
}

async fn set_password(app: &App, form: &Form, name: String) -> Told {
    admin(form)?;
    let password = form.fields.secret("password");
    let hashed = if password.is_empty() {
        None
    } else {
        if let Some(complaint) = password::complaint(&password) {
            return Err(Refusal::field("password", complaint).into());
        }
        let hashed = app.web.hashing.hash(password).await;
        Some(hashed.ok_or(Unavailable::Stopped)?)
    };
    let done = run(app, form, move |pool, now_ms, actor| {
        let text = match hashed {
            Some(_) => format!("{name} can log in with the new password."),
            None => format!("{name} can log in with the token only."),
        };
        pool.set_password(now_ms, &name, hashed, actor)?;
        Ok(text)
    });
    done.await
}

/// Limits a group.
pub(crate) async fn group(State(app): State<App>, form: Form) -> Response {
    let told = async {
        let (name, quota) = (form.fields.text("name").to_owned(), quota(&form.fields)?);
        let done = run(&app, &form, move |pool, now_ms, actor| {
            pool.set_group_quota(now_ms, &name, quota, actor)?;
            Ok(format!("The limits of the group {name} are changed."))
        });
        done.await
    };
    tell(&app, &form, told.await, "/clients")
}

/// Makes a join token.
pub(crate) async fn join(State(app): State<App>, form: Form) -> Response {
    let told = async {
        let token = secret(SecretKind::Join)?;
        let token_hash = hash(&token);
        let valid_ms = form.fields.number("hours", HOUR_MS)?.unwrap_or(0);
        let uses = form.fields.number("uses", 1.0)?.unwrap_or(0);
        let uses = u32::try_from(uses).map_err(|_| Refusal::field("uses", "too many"))?;
        let mut notice = run(&app, &form, move |pool, now_ms, actor| {
            pool.create_join(now_ms, "servers", valid_ms, uses, &token_hash, actor)?;
            Ok("The join token. It is shown this once:".to_owned())
        })
        .await?;
        notice.secret = Some(token);
        Ok(notice)
    };
    tell(&app, &form, told.await, "/servers")
}

/// Changes times and defaults.
pub(crate) async fn settings(State(app): State<App>, form: Form) -> Response {
    let told = async {
        let fields = &form.fields;
        let needed = |name, unit| {
            let value = fields.number(name, unit);
            value.and_then(|it| it.ok_or_else(|| Refusal::field(name, "it must not be empty")))
        };
        let settings = Settings {
            idle_ms: fields.number("idle_min", 60_000.0)?,
            client_ttl_ms: needed("client_ttl_s", 1000.0)?,
            server_ttl_ms: needed("server_ttl_s", 1000.0)?,
            grant_ms: needed("grant_min", 60_000.0)?,
            patience_ms: needed("patience_s", 1000.0)?,
            refresh_ms: needed("refresh_s", 1000.0)?,
            default_quota: quota(fields)?,
        };
        let done = run(&app, &form, move |pool, now_ms, actor| {
            pool.set_settings(now_ms, settings, actor)?;
            Ok("The settings are changed.".to_owned())
        });
        done.await
    };
    tell(&app, &form, told.await, "/settings")
}

/// Does something as the form's sender, who must be an administrator.
async fn run(
    app: &App,
    form: &Form,
    what: impl FnOnce(&mut Pool, u64, &str) -> Result<String, Refusal> + Send + 'static,
) -> Told {
    admin(form)?;
    let actor = form.visitor.caller.name.clone();
    let done = app
        .core
        .call(move |pool, now_ms| what(pool, now_ms, &actor));
    Ok(Notice {
        text: done.await??,
        ..Notice::default()
    })
}

fn admin(form: &Form) -> Result<(), Refusal> {
    if form.visitor.caller.role == Role::Admin {
        return Ok(());
    }
    Err(Refusal::Forbidden(
        "A viewer may look, and change nothing.".to_owned(),
    ))
}

/// Goes back to where the form was, where the next page tells how it went.
fn tell(app: &App, form: &Form, told: Told, back: &str) -> Response {
    let notice = match told {
        Ok(notice) => notice,
        Err(Failed::Refused(refusal @ Refusal::Forbidden(_))) => {
            return Oops::from(refusal).into_response();
        }
        Err(Failed::Refused(refusal)) => Notice {
            text: refusal.to_string(),
            is_problem: true,
            secret: None,
        },
        Err(Failed::Unavailable(error)) => return Oops::from(error).into_response(),
    };
    app.web.sessions.tell(&form.visitor.session, notice);
    let wanted = form.fields.text("back");
    let back = if wanted.is_empty() {
        back
    } else {
        local(wanted)
    };
    Redirect::to(back).into_response()
}

fn unknown() -> Refusal {
    Refusal::NotFound("There is no such action.".to_owned())
}

fn secret(kind: SecretKind) -> Result<String, Failed> {
    generate(kind).map_err(|_| Failed::Unavailable(Unavailable::Stopped))
}

fn new_token(fields: &Fields) -> Result<NewToken, Refusal> {
    let group = fields.text("group");
    Ok(NewToken {
        name: fields.text("name").to_owned(),
        role: match fields.text("role") {
            "admin" => Role::Admin,
            "viewer" => Role::Viewer,
            _ => Role::Client,
        },
        group: (!group.is_empty()).then(|| group.to_owned()),
        quota: quota(fields)?,
        valid_ms: fields.number("days", DAY_MS)?,
    })
}

fn quota(fields: &Fields) -> Result<Quota, Refusal> {
    let request_gpus = fields.number("request_gpus", 1.0)?;
    let priority = match fields.text("priority") {
        "" => None,
        text => {
            let steps = text.parse::<i8>().ok().filter(|it| (-10..=10).contains(it));
            let bad = || Refusal::field("priority", format!("{text:?} is not -10 to 10"));
            Some(steps.ok_or_else(bad)?)
        }
    };
    Ok(Quota {
        shares_permille_max: fields.number("gpus", 1000.0)?,
        memory_bytes_max: fields.number("memory_gib", f64::from(1 << 30))?,
        share_seconds_per_day_max: fields.number("hours_per_day", 3600.0)?,
        request_gpus_max: request_gpus
            .map(u16::try_from)
            .transpose()
            .map_err(|_| Refusal::field("request_gpus", "too many"))?,
        hold_ms_max: fields.number("longest_hours", HOUR_MS)?,
        priority,
    })
}
