//! A tiny HTTP/1.1 client on one connection that stays open: what a program in any language would use
//! to run commands through the gateway's Unix socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

/// A connection to a gateway.
#[derive(Debug)]
pub(crate) struct Client<S: Read = UnixStream> {
    stream: BufReader<S>,
}

/// How the length of a body is told.
#[derive(Debug, PartialEq, Eq)]
enum Length {
    Known(u64),
    Chunked,
}

impl Client<UnixStream> {
    pub(crate) fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connecting to {}", socket.display()))?;
        Ok(Self {
            stream: BufReader::with_capacity(256 * 1024, stream),
        })
    }

    /// From now on an answer that does not come for so long is an error.
    pub(crate) fn with_patience(self, patience: Duration) -> anyhow::Result<Self> {
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(self)
    }
}

impl<S: Read + Write> Client<S> {
    /// Sends a request and returns the status and the whole answer as JSON.
    ///
    /// # Errors
    ///
    /// When the connection breaks or the answer is not JSON.
    pub(crate) fn call(
        &mut self,
        method: &str,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<(u16, Value)> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.send(method, path, &body)?;
        self.answer()
    }

    /// As [`Self::call`], of a request that may come again under its key.
    ///
    /// # Errors
    ///
    /// As [`Self::call`].
    pub(crate) fn call_keyed(
        &mut self,
        path: &str,
        key: &str,
        body: &Value,
    ) -> anyhow::Result<(u16, Value)> {
        let header = format!("Idempotency-Key: {key}\r\n");
        self.send_with("POST", path, &header, &body.to_string())?;
        self.answer()
    }

    fn answer(&mut self) -> anyhow::Result<(u16, Value)> {
        let (status, length) = self.head()?;
        let mut text = Vec::new();
        self.body(&length).read_to_end(&mut text)?;
        let json = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&text)
                .with_context(|| String::from_utf8_lossy(&text).into_owned())?
        };
        Ok((status, json))
    }

    /// Asks for something and returns the status and all bytes of the answer.
    ///
    /// # Errors
    ///
    /// When the connection breaks.
    pub(crate) fn fetch(&mut self, path: &str) -> anyhow::Result<(u16, Vec<u8>)> {
        self.send("GET", path, "")?;
        let (status, length) = self.head()?;
        let mut bytes = Vec::new();
        self.body(&length).read_to_end(&mut bytes)?;
        Ok((status, bytes))
    }

    /// Sends a request and returns a reader of the answer's body.
    ///
    /// # Errors
    ///
    /// When the status is not one of success.
    pub(crate) fn stream(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> anyhow::Result<Body<'_, S>> {
        self.send(method, path, body)?;
        let (status, length) = self.head()?;
        let mut body = self.body(&length);
        if !matches!(status, 200 | 201) {
            let mut text = String::new();
            body.read_to_string(&mut text)?;
            bail!("{method} {path} is answered with {status}: {text}");
        }
        Ok(body)
    }

    fn send(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<()> {
        self.send_with(method, path, "", body)
    }

    /// Sends a request with more headers, each with its line's end.
    fn send_with(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> anyhow::Result<()> {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             {headers}Content-Length: {length}\r\n\r\n{body}"
        );
        self.stream
            .get_mut()
            .write_all(request.as_bytes())
            .context("writing a request")
    }

    /// Reads the head of an answer.
    fn head(&mut self) -> anyhow::Result<(u16, Length)> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.with_context(|| format!("`{first}` is no answer of HTTP"))?;
        let mut length = Length::Known(0);
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                return Ok((status, length));
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = Length::Known(value.trim().parse()?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                length = Length::Chunked;
            }
        }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the gateway closed the connection");
        }
        Ok(line.trim_end().to_owned())
    }

    fn body(&mut self, length: &Length) -> Body<'_, S> {
        let (left, is_chunked) = match length {
            Length::Known(bytes) => (*bytes, false),
            Length::Chunked => (0, true),
        };
        Body {
            stream: &mut self.stream,
            left,
            is_chunked,
            is_over: !is_chunked && left == 0,
        }
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(crate) struct Body<'a, S: Read> {
    stream: &'a mut BufReader<S>,
    /// Bytes left of this chunk, or of all.
    left: u64,
    is_chunked: bool,
    is_over: bool,
}

impl<S: Read> Body<'_, S> {
    /// Reads the line that opens a chunk, behind the line that ends the one before.
    fn next_chunk(&mut self) -> io::Result<()> {
        let mut line = String::new();
        while line.trim_end().is_empty() {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.left = u64::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
        if self.left == 0 {
            self.stream.read_line(&mut line)?; // the empty line at the end
            self.is_over = true;
        }
        Ok(())
    }
}

impl<S: Read> Read for Body<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && self.is_chunked && !self.is_over {
            self.next_chunk()?;
        }
        if self.is_over {
            return Ok(0);
        }
        let read = self.stream.by_ref().take(self.left).read(buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        self.is_over = self.left == 0 && !self.is_chunked;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A connection on which the answers lie ready.
    struct Canned(io::Cursor<Vec<u8>>);

    impl Read for Canned {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Canned {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn client(answers: &str) -> Client<Canned> {
        let canned = Canned(io::Cursor::new(answers.as_bytes().to_vec()));
        Client {
            stream: BufReader::new(canned),
        }
    }

    #[test]
    fn two_answers_on_one_connection() {
        let mut client = client(
            "HTTP/1.1 201 Created\r\ncontent-length: 7\r\n\r\n{\"a\":1}\
             HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}",
        );
        assert_eq!(
            client.call("POST", "/", &json!({})).unwrap(),
            (201, json!({ "a": 1 }))
        );
        assert_eq!(
            client.call("GET", "/", &Value::Null).unwrap(),
            (404, json!({}))
        );
    }

    #[test]
    fn chunks_are_put_together_and_the_next_answer_is_found() {
        let mut client = client(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n\
             HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        );
        let mut text = String::new();
        client
            .stream("GET", "/", "")
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "abc0123456789");
        assert_eq!(
            client.call("GET", "/", &Value::Null).unwrap(),
            (200, Value::Null)
        );
    }

    #[test]
    fn a_body_that_breaks_off_is_an_error() {
        let mut client = client("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc");
        let mut text = String::new();
        assert!(
            client
                .stream("GET", "/", "")
                .unwrap()
                .read_to_string(&mut text)
                .is_err()
        );
    }
}
