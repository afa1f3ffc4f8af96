//! Answers that come in pieces.

use std::pin::Pin;

use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};

use super::events::Told;
use crate::api::follow::{Decoder, Frame};

/// Pieces of an answer, as they come.
pub type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Cut>> + Send>>;

/// An answer ended before it was whole: the gateway stops, or its disk has failed.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut before its end")]
pub struct Cut(#[source] Box<dyn std::error::Error + Send + Sync>);

impl Cut {
    pub(super) fn because(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }
}

/// Returns the body of an answer as it comes.
pub(super) fn bytes_of(response: Response) -> Streamed<Bytes> {
    let pieces = response.into_body().into_data_stream();
    Box::pin(pieces.map(|piece| piece.map_err(Cut::because)))
}

/// Returns the frames of an answer.
pub(super) fn frames_of(response: Response) -> Streamed<Frame> {
    let reading = (bytes_of(response), Decoder::default());
    Box::pin(stream::try_unfold(
        reading,
        async |(mut pieces, mut decoder)| {
            loop {
                if let Some(frame) = decoder.next_frame().map_err(Cut::because)? {
                    return Ok(Some((frame, (pieces, decoder))));
                }
                match pieces.next().await.transpose()? {
                    Some(piece) => decoder.feed(&piece),
                    None => return Ok(None),
                }
            }
        },
    ))
}

/// Returns the events of an answer (HTML standard, 9.2.6), each read by its name and its data.
/// Signs of life are passed over; their id is taken.
pub(super) fn sse_of<T: Send + 'static>(
    response: Response,
    read: impl Fn(&str, &str) -> Result<T, Cut> + Send + 'static,
) -> Streamed<Told<T>> {
    let reading = Reading {
        pieces: bytes_of(response),
        text: Vec::new(),
        id: None,
    };
    Box::pin(stream::try_unfold(
        (reading, read),
        async |(mut reading, read)| {
            let Some((name, data)) = reading.next().await? else {
                return Ok(None);
            };
            let told = Told {
                id: reading.id.clone(),
                what: read(&name, &data)?,
            };
            Ok(Some((told, (reading, read))))
        },
    ))
}

struct Reading {
    pieces: Streamed<Bytes>,
    /// What has come of the block that is not whole.
    text: Vec<u8>,
    id: Option<String>,
}

impl Reading {
    /// Returns the name and the data of the next event.
    async fn next(&mut self) -> Result<Option<(String, String)>, Cut> {
        loop {
            while let Some(end) = self.text.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.text.drain(..end + 2).collect();
                let block = String::from_utf8(block).map_err(Cut::because)?;
                if let Some(event) = self.block(&block) {
                    return Ok(Some(event));
                }
            }
            match self.pieces.next().await.transpose()? {
                Some(piece) => self.text.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }

    /// Reads one block as this gateway writes them: a line for each field, and data on one line.
    fn block(&mut self, block: &str) -> Option<(String, String)> {
        let (mut name, mut data) = (None, None);
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("event", word)) => name = Some(word.to_owned()),
                Some(("data", json)) => data = Some(json.to_owned()),
                Some(("id", id)) => self.id = Some(id.to_owned()),
                Some(_) | None => {}
            }
        }
        name.zip(data)
    }
}
