//! API tokens: made, listed, revoked. A secret is printed once and never read from an argument.

use hyper::Method;
use jiff::Timestamp;
use moltis_gateway::api::tokens::{CreateToken, NewToken, Token as ApiToken};
use moltis_gateway::api::{Empty, List as Page};

use super::Context;
use super::nodes::Gone;
use crate::api::ApiError;
use crate::api::address::escape;
use crate::args::token::{Create, List, Revoke, Token};
use crate::exit::Exit;
use crate::failure::failure;
use crate::units::{ago, until};

/// `moltis token …`.
pub(super) async fn run(context: &Context, args: Token) -> anyhow::Result<Exit> {
    match args {
        Token::Create(args) => create(context, args).await,
        Token::List(args) => list(context, args).await,
        Token::Revoke(args) => revoke(context, args).await,
    }
}

async fn create(context: &Context, args: Create) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let body = CreateToken {
        name: args.name,
        scopes: args.scopes,
        expires_in_seconds: Some(args.expires.as_secs()),
    };
    let made = client.send(Method::POST, "tokens", &body).await;
    let token: NewToken = made.map_err(ApiError::into_failure)?;
    if args.format.json {
        context.output.json(&token)?;
    } else {
        context.output.text(&token.token)?;
        context
            .output
            .note("keep it: it is not shown again. Programs read it from MOLTIS_API_TOKEN");
    }
    Ok(Exit::SUCCESS)
}

async fn list(context: &Context, args: List) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let tokens: Vec<ApiToken> = client
        .list("tokens", usize::MAX)
        .await
        .map_err(ApiError::into_failure)?;
    if args.format.json {
        context.output.json(&tokens)?;
    } else if tokens.is_empty() {
        context.output.note("there are no tokens");
    } else {
        let now = Timestamp::now();
        let rows = tokens.iter().map(|token| row(token, now)).collect();
        context
            .output
            .table(&["NAME", "ID", "SCOPES", "EXPIRES", "LAST USED"], rows)?;
    }
    Ok(Exit::SUCCESS)
}

fn row(token: &ApiToken, now: Timestamp) -> Vec<String> {
    let scopes: Vec<_> = token.scopes.iter().map(|scope| scope.as_str()).collect();
    vec![
        token.name.clone(),
        token.id.clone(),
        scopes.join(","),
        match token.expires_at {
            None => "never".to_owned(),
            Some(then) if then <= now => "expired".to_owned(),
            Some(then) => format!("in {}", until(then, now)),
        },
        token
            .last_used_at
            .map_or_else(|| "never".to_owned(), |then| ago(then, now)),
    ]
}

async fn revoke(context: &Context, args: Revoke) -> anyhow::Result<Exit> {
    let client = context.client(&args.remote)?;
    let page: Page<ApiToken> = client.get("tokens").await.map_err(ApiError::into_failure)?;
    let wanted = args.token.as_str();
    let named: Vec<_> = page
        .items
        .iter()
        .filter(|token| token.name == wanted || (wanted.len() >= 4 && token.id.starts_with(wanted)))
        .collect();
    let token = match named.as_slice() {
        [token] => *token,
        [] => {
            return Err(failure(format!("there is no token `{wanted}`"))
                .hint("all of them: moltis token list")
                .into());
        }
        several => {
            let ids: Vec<_> = several
                .iter()
                .map(|token| format!("{} ({})", token.id, token.name))
                .collect();
            return Err(failure(format!("`{wanted}` could mean several tokens"))
                .hint(format!("name one by its id: {}", ids.join(", ")))
                .into());
        }
    };
    let path = format!("tokens/{}", escape(&token.id));
    let revoked = client.tell(Method::DELETE, &path, &Empty {}).await;
    revoked.map_err(ApiError::into_failure)?;
    if args.format.json {
        let (id, name) = (token.id.clone(), token.name.clone());
        context.output.json(&Gone { id, name })?;
    } else {
        context
            .output
            .note(&format!("revoked the token {}", token.name));
    }
    Ok(Exit::SUCCESS)
}
