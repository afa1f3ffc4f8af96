//! A reader of server-sent events, over the Unix socket or over TCP with a token.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::client::{Client, request};
use crate::gateway::{PATIENCE, TestGateway};

/// A stream that is read.
pub(crate) struct Feed {
    body: Incoming,
    text: String,
}

/// What stands between two empty lines.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Block {
    pub(crate) id: Option<String>,
    /// The event's name; `None` where there is no event.
    pub(crate) name: Option<String>,
    pub(crate) data: Value,
    pub(crate) retry: Option<String>,
}

/// How a stream went on.
#[derive(Debug)]
pub(crate) enum Next {
    Block(Block),
    /// It ended as it should.
    End,
    /// Its connection was cut.
    Cut,
}

impl Feed {
    /// Opens a stream as the operator.
    pub(crate) async fn open(client: &Client, path: &str, last: Option<&str>) -> Self {
        Self::of(client.open(asked(path, last)).await)
    }

    /// Opens a stream with a token.
    pub(crate) async fn open_with(
        gateway: &TestGateway,
        token: &str,
        path: &str,
        last: Option<&str>,
    ) -> Self {
        Self::of(send_with(gateway.address, token, asked(path, last)).await)
    }

    fn of(response: Response<Incoming>) -> Self {
        assert_eq!(response.status(), 200);
        for (name, expected) in [
            ("content-type", "text/event-stream"),
            ("cache-control", "no-store"),
            ("x-accel-buffering", "no"),
        ] {
            assert_eq!(response.headers()[name], expected);
        }
        Self {
            body: response.into_body(),
            text: String::new(),
        }
    }

    /// Waits for the next event, whatever stands before it.
    pub(crate) async fn event(&mut self) -> Block {
        loop {
            match self.next().await {
                Next::Block(block) if block.name.is_some() => return block,
                Next::Block(_) => {}
                next @ (Next::End | Next::Cut) => panic!("no event, but {next:?}"),
            }
        }
    }

    /// Waits for the end, and returns what came before it.
    pub(crate) async fn rest(mut self) -> (Vec<Block>, Next) {
        let mut events = Vec::new();
        loop {
            match self.next().await {
                Next::Block(block) if block.name.is_some() => events.push(block),
                Next::Block(_) => {}
                end => return (events, end),
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Next {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = read(block);
                self.text = String::from(rest);
                return Next::Block(block);
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await;
            match frame.expect("the stream is silent") {
                Some(Ok(frame)) => {
                    let bytes = frame.into_data().unwrap();
                    self.text.push_str(std::str::from_utf8(&bytes).unwrap());
                }
                Some(Err(_)) => return Next::Cut,
                None => {
                    assert_eq!(self.text, "", "it ends within an event");
                    return Next::End;
                }
            }
        }
    }
}

fn read(text: &str) -> Block {
    let mut block = Block::default();
    for line in text.lines() {
        let (field, value) = line.split_once(": ").unwrap_or((line, ""));
        let value = value.to_owned();
        match field {
            "id" => block.id = Some(value),
            "event" => block.name = Some(value),
            "data" => block.data = serde_json::from_str(&value).unwrap(),
            "retry" => block.retry = Some(value),
            "" => assert_eq!(value, "keep-alive"),
            _ => panic!("no field of an event: {line}"),
        }
    }
    block
}

/// Asks for a stream that goes on behind the event with this id.
pub(crate) fn asked(path: &str, last: Option<&str>) -> Request<Full<Bytes>> {
    let mut request = request(Method::GET, path, "");
    if let Some(last) = last {
        let last = last.parse().unwrap();
        request.headers_mut().insert("last-event-id", last);
    }
    request
}

/// Sends a request over TCP with a token; the body of the answer is still to come.
pub(crate) async fn send_with(
    address: SocketAddr,
    token: &str,
    mut request: Request<Full<Bytes>>,
) -> Response<Incoming> {
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.headers_mut().insert("authorization", bearer);
    let stream = TcpStream::connect(address).await.unwrap();
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}
