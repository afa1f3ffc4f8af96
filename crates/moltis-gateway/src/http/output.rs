//! `GET runs/{id}/output`: the exact bytes of one stream, from an offset on, or a range of them.
//!
//! A read ends before a gap and names the offset behind itself; one that starts in a gap is told
//! its bounds. Nothing is ever skipped in silence.

pub(super) mod range;

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use moltis_proto::run::Stream;
use tokio_util::sync::CancellationToken;

use self::range::Wanted;
use super::ApiState;
use super::caller::Caller;
use super::error::{ApiError, ApiResult};
use super::extract::{Asked, Id, check_offset};
use super::streams::held;
use crate::api::NEXT_OFFSET_HEADER;
use crate::api::problem::Code;
use crate::api::runs::OutputQuery;
use crate::exec::RunHandle;
use crate::output::{OutputRead, RunOutput};
use crate::store::RunStage;

/// Bytes of one piece of the body.
const PIECE: usize = 256 * 1024;

/// `GET runs/{id}/output`
pub(super) async fn output(
    State(desk): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Asked(query): Asked<OutputQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let place = desk.outputs_read().admit_but_the_operator(&caller.who)?;
    check_offset("offset", query.offset.unwrap_or(0))?;
    let run = desk.runs().find(&id).await?.record.id;
    let run = desk.runs().handle(run).await?;
    let known = Known::of(&run, query.stream.into());
    let range = headers
        .get(RANGE)
        .and_then(|range| range::parse(range.to_str().ok()?));
    if range.is_some() && (query.offset.is_some() || query.follow) {
        return Err(ApiError::new(
            Code::BadRequest,
            "a Range header goes neither with `offset` nor with `follow`",
        ));
    }
    let offset = query.offset.unwrap_or(0);
    if query.follow {
        return Ok(held(followed(&desk, known, offset).await?, place));
    }
    let wanted = range.unwrap_or(Wanted::From(offset));
    Ok(held(part(known, wanted, range.is_some()).await?, place))
}

/// What is known of a stream at the moment of the request.
struct Known {
    output: Arc<RunOutput>,
    stream: Stream,
    /// Bytes so far, gaps included.
    total: u64,
    /// Nothing more will come.
    over: bool,
}

impl Known {
    fn of(run: &RunHandle, stream: Stream) -> Self {
        let (output, record) = (Arc::clone(run.output()), run.record());
        let end = output.end(stream);
        let over = record.stage == RunStage::Ended;
        // After a power cut the row names bytes that no file holds.
        let total = if over {
            end.max(record.totals.of(stream))
        } else {
            end
        };
        Self {
            output,
            stream,
            total,
            over,
        }
    }

    fn behind_the_end(&self) -> ApiError {
        let so_far = if self.over { "" } else { " so far" };
        ApiError::new(
            Code::RangeNotSatisfiable,
            format!(
                "the stream has {} bytes{so_far}, and the read begins behind them",
                self.total
            ),
        )
    }

    /// Refuses a read that would begin in a gap.
    async fn check_start(&self, from: u64) -> ApiResult<()> {
        match self.output.read(self.stream, from, 1).await? {
            OutputRead::Gap {
                from: first,
                to,
                reason,
            } => Err(ApiError::new(
                Code::OutputGap,
                format!("the bytes from {first} up to {to} are gone"),
            )
            .gap(first, to, reason.into())
            .hint(format!("go on behind them: offset={to}"))),
            OutputRead::Bytes(_) | OutputRead::Wait | OutputRead::End => Ok(()),
        }
    }
}

/// Answers with what is there now.
async fn part(known: Known, wanted: Wanted, is_range: bool) -> ApiResult<Response> {
    let within = wanted.within(known.total);
    let (from, to) = within.ok_or_else(|| known.behind_the_end())?;
    known.check_start(from).await?;
    let to = known.output.whole_until(known.stream, from).min(to);
    let total = known.over.then_some(known.total);
    let bytes = Pieces::new(known, from, Some(to), CancellationToken::new());
    let mut response = bytes.into_body().into_response();
    let head = response.headers_mut();
    write_head(head);
    head.insert(NEXT_OFFSET_HEADER, to.into());
    head.insert(CONTENT_LENGTH, (to - from).into());
    if is_range && from < to {
        let total = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
        if let Ok(value) = HeaderValue::try_from(format!("bytes {from}-{}/{total}", to - 1)) {
            head.insert(CONTENT_RANGE, value);
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// Answers with what comes, until the stream is complete or a gap begins. Who asks for bytes that
/// are still to come waits for them.
async fn followed(desk: &ApiState, known: Known, from: u64) -> ApiResult<Response> {
    if known.over && from > known.total {
        return Err(known.behind_the_end());
    }
    known.check_start(from).await?;
    let bytes = Pieces::new(known, from, None, desk.stop().clone());
    let mut response = bytes.into_body().into_response();
    write_head(response.headers_mut());
    Ok(response)
}

fn write_head(head: &mut HeaderMap) {
    head.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    head.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
}

/// The bytes of a stream, piece by piece.
struct Pieces {
    output: Arc<RunOutput>,
    stream: Stream,
    at: u64,
    /// Where to end; `None` goes on until the stream is complete.
    to: Option<u64>,
    /// Nothing was given yet.
    is_empty: bool,
    stop: CancellationToken,
}

impl Pieces {
    fn new(known: Known, at: u64, to: Option<u64>, stop: CancellationToken) -> Self {
        Self {
            output: known.output,
            stream: known.stream,
            at,
            to,
            is_empty: true,
            stop,
        }
    }

    fn into_body(self) -> Body {
        Body::from_stream(stream::unfold(self, async |mut pieces| {
            let piece = pieces.next().await.transpose()?;
            Some((piece, pieces))
        }))
    }

    /// Reads the next piece; `None` at the end. An error cuts the connection, so that a body that
    /// is too short is never taken for whole.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let room = match self.to {
            Some(to) => usize::try_from(to - self.at)
                .unwrap_or(usize::MAX)
                .min(PIECE),
            None => PIECE,
        };
        if room == 0 {
            return Ok(None);
        }
        let read = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(io::Error::other("the gateway stops")),
            read = self.output.read_or_wait(self.stream, self.at, room) => read.map_err(io::Error::other)?,
        };
        match read {
            OutputRead::Bytes(bytes) => {
                self.at += bytes.len() as u64;
                self.is_empty = false;
                Ok(Some(bytes))
            }
            // A body that is empty and ends well would say that nothing comes any more.
            OutputRead::Gap { .. } if self.to.is_none() && self.is_empty => {
                Err(io::Error::other("what comes next is gone: ask again"))
            }
            OutputRead::Gap { .. } if self.to.is_none() => Ok(None),
            OutputRead::End => Ok(None),
            OutputRead::Gap { .. } | OutputRead::Wait => {
                Err(io::Error::other("output was given up meanwhile"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{OutputLimits, Outputs};

    #[tokio::test]
    async fn a_body_that_is_followed_never_ends_well_where_only_a_gap_came() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), None, OutputLimits::default()).unwrap();
        let run = outputs
            .run(moltis_proto::RunId::from_bytes([1; 16]))
            .unwrap();
        let stream = Stream::Stdout;
        run.append(stream, 0, Bytes::from_static(b"seen")).unwrap();
        let from = |at| Pieces {
            output: Arc::clone(&run),
            stream,
            at,
            to: None,
            is_empty: true,
            stop: CancellationToken::new(),
        };
        let (mut first, mut waiting) = (from(0), from(4));
        assert_eq!(first.next().await.unwrap().unwrap(), "seen");
        let reason = moltis_proto::run::GapReason::KeeperDied;
        run.gap(stream, 4, 9, reason).unwrap();
        assert_eq!(
            first.next().await.unwrap(),
            None,
            "who has bytes asks for the next"
        );
        waiting.next().await.unwrap_err();
    }
}
