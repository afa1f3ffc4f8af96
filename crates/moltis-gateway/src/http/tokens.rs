//! `tokens`: see them, make one, revoke one.

use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::SignedDuration;
use uuid::Uuid;

use super::ApiState;
use super::caller::Caller;
use super::error::{ApiError, ApiResult};
use super::extract::{Asked, Id, Json};
use super::page;
use crate::api::List;
use crate::api::problem::Code;
use crate::api::tokens::{
    CreateToken, LIFE_SECONDS_MAX, ListTokens, NAME_CHARS_MAX, NewToken, PAGE_MAX, Scope,
    TOKEN_PREFIX, Token,
};
use crate::store::{NewTokenRecord, TokenCreation, TokenHash};

/// How long a token works where its maker does not say: 90 days.
const LIFE_SECONDS: u64 = 90 * 24 * 3600;

/// `GET tokens`
pub(super) async fn list(
    State(state): State<ApiState>,
    Asked(query): Asked<ListTokens>,
) -> ApiResult<axum::Json<List<Token>>> {
    let limit = page::limit(query.limit, PAGE_MAX, PAGE_MAX)?;
    let tokens = state.store().tokens().await?;
    let page = page::cut(tokens, limit, query.cursor.as_deref(), |token| {
        // By age, as the store gives them; so many digits hold every time.
        format!("{:020} {}", token.created_at.as_millisecond(), token.id)
    })?;
    Ok(axum::Json(List {
        items: page.items.into_iter().map(Token::from).collect(),
        next: page.next,
    }))
}

/// `POST tokens`
pub(super) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Json(asked): Json<CreateToken>,
) -> ApiResult<(StatusCode, axum::Json<NewToken>)> {
    let name = check_name(&asked.name)?;
    let scopes = check_scopes(asked.scopes, &caller)?;
    let life = check_life(asked.expires_in_seconds)?;
    let secret = new_secret()?;
    let created_at = state.clock().now();
    let record = NewTokenRecord {
        id: Uuid::now_v7(),
        name,
        hash: TokenHash::of(&secret),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        created_at,
        expires_at: created_at.checked_add(life).ok(),
    };
    let answer = NewToken {
        id: record.id.to_string(),
        name: record.name.clone(),
        scopes,
        token: secret,
        created_at,
        expires_at: record.expires_at,
    };
    match state.store().create_token(record, &caller.actor()).await? {
        TokenCreation::Created(written) => {
            state.store().synced(written).await?;
            Ok((StatusCode::CREATED, axum::Json(answer)))
        }
        TokenCreation::NameInUse => Err(ApiError::new(
            Code::NameInUse,
            format!("a token named `{}` exists already", answer.name),
        )
        .hint("choose another name, or revoke that one first")),
    }
}

/// `DELETE tokens/{id}`, where the id may be a token's name too.
pub(super) async fn revoke(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
) -> ApiResult<StatusCode> {
    let tokens = state.store().tokens().await?;
    let found = tokens
        .into_iter()
        .find(|token| token.id.to_string() == id || token.name == id);
    let missing = || {
        ApiError::new(Code::NotFound, format!("there is no token `{id}`"))
            .hint("`moltis token list` shows all of them")
    };
    let token = found.ok_or_else(missing)?;
    let now = state.clock().now();
    let revoked = state
        .store()
        .revoke_token(token.id, now, &caller.actor())
        .await?;
    let written = revoked.ok_or_else(missing)?;
    state.store().synced(written).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn new_secret() -> ApiResult<String> {
    let mut random = [0; 32];
    getrandom::fill(&mut random)
        .map_err(|error| ApiError::internal("draw random bytes", error.to_string()))?;
    Ok(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random)))
}

fn check_name(name: &str) -> ApiResult<String> {
    let (length, name) = (name.chars().count(), name.trim());
    let sound = !name.is_empty() && length <= NAME_CHARS_MAX;
    if !sound || name.chars().any(moltis_proto::name::is_deceptive) {
        return Err(ApiError::invalid(format!(
            "`name`: a token's name has 1 to {NAME_CHARS_MAX} visible characters"
        )));
    }
    Ok(name.to_owned())
}

fn check_scopes(mut scopes: Vec<Scope>, caller: &Caller) -> ApiResult<Vec<Scope>> {
    scopes.sort_unstable();
    scopes.dedup();
    if scopes.is_empty() {
        return Err(ApiError::invalid("`scopes`: a token needs at least one"));
    }
    if let Some(scope) = scopes.iter().find(|scope| !caller.who.has(**scope)) {
        return Err(ApiError::new(
            Code::ScopeMissing,
            format!(
                "`{}` lacks the scope `{scope}` and cannot give it away",
                caller.who
            ),
        ));
    }
    Ok(scopes)
}

fn check_life(seconds: Option<u64>) -> ApiResult<SignedDuration> {
    let seconds = seconds.unwrap_or(LIFE_SECONDS);
    if !(1..=LIFE_SECONDS_MAX).contains(&seconds) {
        return Err(ApiError::invalid(format!(
            "`expires_in_seconds`: {seconds} is not between 1 and {LIFE_SECONDS_MAX} (10 years)"
        )));
    }
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Ok(SignedDuration::from_secs(seconds))
}
