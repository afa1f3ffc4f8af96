//! The roads between machines: slow, narrow, closed, cut after any byte, or silent without a word.
//!
//! A connection is two [`pipe`]s on the clock of the world. Each machine has a [`Weather`], which
//! every connection to or from it lives in from its beginning; what befalls connections that stand
//! is done to all of a machine's at once.

mod pipe;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use self::pipe::{Pipe, Taken};

/// A machine's place in the world: the gateway's is 0.
pub(super) type Place = usize;

/// Connections that wait to be accepted.
const BACKLOG: usize = 64;

/// How long a connection to a machine that does not answer is tried: as the link's own patience
/// ends sooner, nobody sees it.
const NO_ANSWER: Duration = Duration::from_mins(2);

/// What a road is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weather {
    /// How long a byte is under way.
    pub(super) delay: Duration,
    /// How many bytes pass in a second.
    pub(super) bytes_per_second: u64,
    /// Whether new connections come through.
    pub(super) door: Door,
}

/// What becomes of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// It comes through.
    Open,
    /// It is refused.
    Refusing,
    /// Nobody answers.
    Silent,
}

/// What becomes of bytes that a dead process has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// They arrive, and the end of the stream behind them.
    Arrives,
    /// They are gone with their connection.
    IsLost,
}

/// A connection that has come in.
#[derive(Debug)]
pub(super) struct Arrival {
    /// Where it is from.
    pub(super) from: Place,
    /// Our end of it.
    pub(super) end: End,
}

/// All roads. Cloning shares them.
#[derive(Debug, Clone)]
pub(super) struct Net(Arc<Mutex<Roads>>);

#[derive(Debug)]
struct Roads {
    weathers: BTreeMap<Place, Weather>,
    connections: Vec<Connection>,
    /// Who listens at the gateway's place; none while its process is dead.
    listener: Option<mpsc::Sender<Arrival>>,
    next: u64,
}

#[derive(Debug)]
struct Connection {
    node: Place,
    number: u64,
    /// The gateway let it in.
    is_let_in: bool,
    pipes: [Pipe; 2],
}

impl Weather {
    /// A good day in one house.
    pub(super) const FAIR: Self = Self {
        delay: Duration::from_micros(200),
        bytes_per_second: 100_000_000,
        door: Door::Open,
    };
}

impl Net {
    /// A net without connections, in good weather.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Roads {
            weathers: BTreeMap::new(),
            connections: Vec::new(),
            listener: None,
            next: 0,
        })))
    }

    /// Listens at the gateway's place, instead of whoever did.
    pub(super) fn listen(&self) -> mpsc::Receiver<Arrival> {
        let (tell, arriving) = mpsc::channel(BACKLOG);
        self.roads().listener = Some(tell);
        arriving
    }

    /// The gateway's process is dead: nobody listens, and its end of every connection closes. What
    /// it has sent arrives, or not.
    pub(super) fn close_gateway(&self, sent: Sent) {
        let mut roads = self.roads();
        roads.listener = None;
        for Connection { pipes, .. } in roads.connections.drain(..) {
            let [out, back] = pipes;
            match sent {
                Sent::Arrives => {
                    out.abandon();
                    back.close();
                }
                Sent::IsLost => {
                    out.reset();
                    back.reset();
                }
            }
        }
    }

    /// Connects a node's machine to the gateway, by a connection that has this number.
    ///
    /// # Errors
    /// As connect(2).
    pub(super) async fn dial(&self, from: Place) -> io::Result<(u64, End)> {
        let weather = self.weather(from);
        tokio::time::sleep(weather.delay * 2).await;
        match weather.door {
            Door::Open => {}
            Door::Refusing => return Err(io::ErrorKind::ConnectionRefused.into()),
            Door::Silent => {
                tokio::time::sleep(NO_ANSWER).await;
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let mut roads = self.roads();
        let Some(listener) = roads.listener.clone() else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let pipes = [(); 2].map(|()| Pipe::new(weather.delay, weather.bytes_per_second));
        // From the node's side: what goes out, and what comes back.
        let [out, back] = pipes.clone();
        let (number, far) = (roads.next, End::new(out.clone(), back.clone()));
        let arrived = listener.try_send(Arrival { from, end: far });
        if arrived.is_err() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        roads.next += 1;
        roads.connections.retain(|one| !one.is_over());
        roads.connections.push(Connection {
            node: from,
            number,
            is_let_in: false,
            pipes,
        });
        Ok((number, End::new(back, out)))
    }

    /// Returns what the roads of a machine are like.
    pub(super) fn weather(&self, place: Place) -> Weather {
        let roads = self.roads();
        roads.weathers.get(&place).copied().unwrap_or(Weather::FAIR)
    }

    /// Changes what the roads of a machine are like, for connections to come.
    pub(super) fn set_weather(&self, place: Place, weather: Weather) {
        self.roads().weathers.insert(place, weather);
    }

    /// Cuts every connection of a machine: both ends hear of it, and what is under way is gone.
    pub(super) fn cut(&self, place: Place) {
        self.with_pipes(place, Pipe::reset);
    }

    /// Cuts every connection of a machine when so many more bytes have passed in one direction.
    pub(super) fn cut_after(&self, place: Place, bytes: u64) {
        let roads = self.roads();
        for connection in roads.connections.iter().filter(|one| one.node == place) {
            let [out, back] = &connection.pipes;
            out.reset_after(bytes, back);
            back.reset_after(bytes, out);
        }
    }

    /// Has the connections of a machine carry nothing any more; neither end is told.
    pub(super) fn silence(&self, place: Place) {
        self.with_pipes(place, Pipe::silence);
    }

    /// Takes note that the gateway has let this connection in.
    pub(super) fn let_in(&self, number: u64) {
        let mut roads = self.roads();
        let connections = roads.connections.iter_mut();
        for connection in connections.filter(|one| one.number == number) {
            connection.is_let_in = true;
        }
    }

    /// Returns the connections of a machine that were let in and of which both ends are open, by
    /// their numbers.
    pub(super) fn open(&self, place: Place) -> Vec<u64> {
        let roads = self.roads();
        let ours = roads.connections.iter().filter(|one| one.node == place);
        ours.filter(|one| one.is_let_in && !one.is_over())
            .map(|one| one.number)
            .collect()
    }

    fn with_pipes(&self, place: Place, change: impl Fn(&Pipe)) {
        let roads = self.roads();
        let ours = roads.connections.iter().filter(|one| one.node == place);
        for pipe in ours.flat_map(|one| &one.pipes) {
            change(pipe);
        }
    }

    fn roads(&self) -> MutexGuard<'_, Roads> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    fn is_over(&self) -> bool {
        self.pipes.iter().any(Pipe::is_over)
    }
}

/// One end of a connection. Dropped, it is closed: the other end reads what was sent, and then the
/// end of the stream.
pub(super) struct End {
    from: Pipe,
    to: Pipe,
    timer: Option<Pin<Box<Sleep>>>,
}

impl End {
    fn new(from: Pipe, to: Pipe) -> Self {
        Self {
            from,
            to,
            timer: None,
        }
    }

    fn wait_until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx)
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("End")
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.to.close();
        self.from.abandon();
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.from.take(into.remaining(), Instant::now(), cx)? {
                Taken::Bytes(bytes) => {
                    into.put_slice(&bytes);
                    return Poll::Ready(Ok(()));
                }
                Taken::End => return Poll::Ready(Ok(())),
                Taken::Nothing => return Poll::Pending,
                Taken::Later(at) => match self.wait_until(at, cx) {
                    Poll::Ready(()) => {}
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.to.put(bytes, Instant::now(), cx)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.to.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn pair(net: &Net) -> (End, End) {
        let mut arriving = net.listen();
        let (number, near) = net.dial(1).await.unwrap();
        net.let_in(number);
        assert_eq!(net.open(1), [number]);
        (near, arriving.recv().await.unwrap().end)
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_take_their_time() {
        let net = Net::new();
        net.set_weather(
            1,
            Weather {
                delay: Duration::from_millis(30),
                bytes_per_second: 10_000,
                door: Door::Open,
            },
        );
        let (mut near, mut far) = pair(&net).await;
        let sent = Instant::now();
        near.write_all(&[7; 1000]).await.unwrap();
        let mut read = [0; 1000];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(
            (read, sent.elapsed()),
            ([7; 1000], Duration::from_millis(130))
        );
        drop(near);
        assert_eq!(far.read(&mut read).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_comes_behind_its_byte_and_is_heard_at_both_ends() {
        let net = Net::new();
        let (mut near, mut far) = pair(&net).await;
        net.cut_after(1, 3);
        near.write_all(b"hello").await.unwrap();
        let mut read = Vec::new();
        let error = far.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(read, b"hel");
        let error = near.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(net.open(1).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_tells_nobody_and_in_the_end_takes_no_more() {
        let net = Net::new();
        let (mut near, mut far) = pair(&net).await;
        net.silence(1);
        let writing = async {
            loop {
                near.write_all(&[0; 4096]).await.unwrap();
            }
        };
        let (writing, reading) = (
            tokio::time::timeout(Duration::from_mins(1), writing),
            async {
                let read = far.read_u8();
                tokio::time::timeout(Duration::from_mins(1), read).await
            },
        );
        let (writing, reading): (Result<(), _>, _) = tokio::join!(writing, reading);
        assert!(writing.is_err() && reading.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_gateway_refuses_and_resets() {
        let net = Net::new();
        let (mut near, _far) = pair(&net).await;
        net.close_gateway(Sent::IsLost);
        assert!(near.read_u8().await.is_err());
        let error = net.dial(1).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
