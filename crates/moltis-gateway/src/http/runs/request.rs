//! From the body of `POST runs` to a [`RunRequest`]: what can be refused by looking at it alone.
//!
//! What a command, a directory or a variable may be is checked behind [`crate::exec`], where the
//! node is known too.

use std::time::Duration;

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use moltis_proto::run::{Command, Tty, TtySize};

use crate::api::problem::Code;
use crate::api::runs::{StartQuery, StartRun, TIMEOUT_SECONDS_MAX};
use crate::api::{self, IDEMPOTENCY_KEY_HEADER};
use crate::exec::{RunRequest, StdinSource};
use crate::http::error::{ApiError, ApiResult};

/// Terminal type of a request that names none.
const TERM: &str = "xterm-256color";

/// Reads a request.
pub(crate) fn read(
    asked: StartRun,
    query: StartQuery,
    headers: &HeaderMap,
) -> ApiResult<RunRequest> {
    if query.wait && query.follow {
        return Err(ApiError::new(
            Code::BadRequest,
            "`wait` and `follow` are two forms of the answer: ask for one of them",
        ));
    }
    let tty = asked.tty.map(terminal);
    Ok(RunRequest {
        target: asked.node,
        command: command(asked.argv, asked.command)?,
        cwd: asked.cwd,
        env: asked.env,
        timeout: timeout(asked.timeout_seconds)?,
        stdin: stdin(
            asked.stdin,
            asked.stdin_base64,
            asked.stdin_open || tty.is_some(),
        )?,
        tty,
        idempotency_key: key(headers)?,
        detach: !query.wait && !query.follow,
    })
}

fn command(argv: Option<Vec<String>>, line: Option<String>) -> ApiResult<Command> {
    match (argv, line) {
        (Some(argv), None) => Ok(Command::Argv(argv)),
        (None, Some(line)) => Ok(Command::Shell(line)),
        (Some(_), Some(_)) => Err(ApiError::invalid(
            "`argv` and `command` both name a command: send one of them",
        )),
        (None, None) => Err(ApiError::invalid(
            "there is no command: send `argv` or `command`",
        )),
    }
}

fn timeout(seconds: Option<u64>) -> ApiResult<Option<Duration>> {
    match seconds {
        Some(seconds) if !(1..=TIMEOUT_SECONDS_MAX).contains(&seconds) => {
            Err(ApiError::invalid(format!(
                "`timeout_seconds`: {seconds} is not between 1 and {TIMEOUT_SECONDS_MAX} (10 years)"
            )))
        }
        seconds => Ok(seconds.map(Duration::from_secs)),
    }
}

fn stdin(text: Option<String>, base64: Option<String>, open: bool) -> ApiResult<StdinSource> {
    match (text, base64, open) {
        (None, None, false) => Ok(StdinSource::Empty),
        (None, None, true) => Ok(StdinSource::Open),
        (Some(text), None, false) => Ok(StdinSource::Bytes(text.into())),
        (None, Some(base64), false) => match STANDARD.decode(base64) {
            Ok(bytes) => Ok(StdinSource::Bytes(bytes.into())),
            Err(error) => Err(ApiError::invalid(format!(
                "`stdin_base64` is not base64: {error}"
            ))),
        },
        _ => Err(ApiError::invalid(
            "`stdin`, `stdin_base64`, and `stdin_open` or `tty` all say where stdin comes from: \
             send one of them",
        )),
    }
}

fn terminal(asked: api::runs::Tty) -> Tty {
    Tty {
        size: TtySize {
            cols: asked.cols,
            rows: asked.rows,
        },
        term: asked.term.unwrap_or_else(|| TERM.to_owned()),
    }
}

fn key(headers: &HeaderMap) -> ApiResult<Option<String>> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY_HEADER).iter();
    let Some(key) = keys.next() else {
        return Ok(None);
    };
    let bytes = key.as_bytes();
    let sound = (1..=128).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    match key.to_str() {
        Ok(key) if sound && keys.next().is_none() => Ok(Some(key.to_owned())),
        _ => Err(ApiError::new(
            Code::BadRequest,
            "an Idempotency-Key is one header of 1 to 128 visible ASCII characters",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> String {
        let asked = serde_json::from_str(body).unwrap();
        let error = read(asked, StartQuery::default(), &HeaderMap::new()).unwrap_err();
        error.problem(String::new()).detail
    }

    fn read_body(body: &str) -> RunRequest {
        let asked = serde_json::from_str(body).unwrap();
        read(asked, StartQuery::default(), &HeaderMap::new()).unwrap()
    }

    #[test]
    fn a_request_says_one_command_and_one_stdin() {
        assert!(refused("{}").contains("`argv` or `command`"));
        assert!(refused(r#"{"argv":["a"],"command":"a"}"#).contains("both"));
        for stdin in [
            r#""stdin":"x","stdin_base64":"eA==""#,
            r#""stdin":"x","stdin_open":true"#,
            r#""stdin":"x","tty":{"cols":80,"rows":24}"#,
        ] {
            let detail = refused(&format!("{{\"command\":\"cat\",{stdin}}}"));
            assert!(detail.contains("one of them"), "{stdin}: {detail}");
        }
        assert!(refused(r#"{"command":"cat","stdin_base64":"ä"}"#).contains("not base64"));
        let request = read_body(r#"{"command":"cat","stdin_base64":"/wA="}"#);
        assert_eq!(request.stdin, StdinSource::Bytes(vec![0xff, 0].into()));
    }

    #[test]
    fn a_terminal_opens_stdin_and_has_a_type() {
        let request = read_body(r#"{"command":"vi","tty":{"cols":80,"rows":24}}"#);
        assert_eq!(request.stdin, StdinSource::Open);
        assert_eq!(request.tty.unwrap().term, TERM);
    }

    #[test]
    fn times_have_bounds() {
        for seconds in ["0", "1000000000000"] {
            let body = format!("{{\"command\":\"a\",\"timeout_seconds\":{seconds}}}");
            assert!(refused(&body).contains(seconds));
        }
    }

    #[test]
    fn a_key_is_one_plain_word() {
        let read = |keys: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for key in keys {
                headers.append(
                    IDEMPOTENCY_KEY_HEADER,
                    axum::http::HeaderValue::from_bytes(key).unwrap(),
                );
            }
            key(&headers)
        };
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[b"a-1"]).unwrap().as_deref(), Some("a-1"));
        for bad in [
            &[&b""[..]][..],
            &[b"a b"],
            &[b"\xff"],
            &[b"a", b"b"],
            &[&[b'x'; 129]],
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
