//! A relay of TCP connections that can be cut: the cable between a node and its gateway. In bad
//! [`Weather`](weather) it also stalls them, dribbles, and lets bytes vanish.

mod weather;

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;

pub(crate) use self::weather::Fate;
use self::weather::Weather;
use crate::dice::Dice;

/// A relay to one address, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    cable: Arc<Cable>,
}

#[derive(Debug)]
struct Cable {
    to: SocketAddr,
    is_cut: AtomicBool,
    is_over: AtomicBool,
    /// Connections that went through since the start.
    joined: AtomicUsize,
    live: Mutex<Vec<Weak<TcpStream>>>,
    weather: Mutex<Weather>,
}

impl Relay {
    /// Listens on a free port of loopback and passes on what comes.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub(crate) fn to(to: SocketAddr) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a port for the relay")?;
        let address = listener.local_addr()?;
        let cable = Arc::new(Cable {
            to,
            is_cut: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            joined: AtomicUsize::new(0),
            live: Mutex::default(),
            weather: Mutex::default(),
        });
        let theirs = Arc::clone(&cable);
        thread::spawn(move || theirs.accept(&listener));
        Ok(Self { address, cable })
    }

    /// Returns where to connect instead.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns how many connections went through since the start.
    pub(crate) fn joined(&self) -> usize {
        self.cable.joined.load(Ordering::SeqCst)
    }

    /// From now on these dice decide what becomes of each connection.
    pub(crate) fn begin_trouble(&self, dice: Dice) {
        self.cable.weather().begin(dice);
    }

    /// Cuts what stands; whatever comes from now on passes unharmed. Returns how many connections had
    /// each fate.
    pub(crate) fn end_trouble(&self) -> Vec<(Fate, usize)> {
        let had = self.cable.weather().end();
        self.cable.cut();
        self.cable.mend();
        had
    }

    /// Cuts every connection and lets no new one through for a while.
    pub(crate) fn cut_for(&self, while_: Duration) {
        self.cable.cut();
        let cable = Arc::clone(&self.cable);
        thread::spawn(move || {
            thread::sleep(while_);
            cable.mend();
        });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cable.is_over.store(true, Ordering::SeqCst);
        self.cable.cut();
        drop(TcpStream::connect(self.address)); // wakes the acceptor, which then sees that it is over
    }
}

impl Cable {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for near in listener.incoming() {
            if self.is_over.load(Ordering::SeqCst) {
                return;
            }
            let Ok(near) = near else { continue };
            if !self.is_cut.load(Ordering::SeqCst) {
                self.join(near).ok(); // the far end is gone; the near one sees its connection close
            }
        }
    }

    fn join(&self, near: TcpStream) -> io::Result<()> {
        let far = TcpStream::connect(self.to)?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let (near, far) = (Arc::new(near), Arc::new(far));
        let mut live = self.live();
        if self.is_cut.load(Ordering::SeqCst) {
            return Ok(());
        }
        live.retain(|end| end.strong_count() > 0);
        live.extend([&near, &far].map(Arc::downgrade));
        self.joined.fetch_add(1, Ordering::SeqCst);
        let [mut up, mut down] = self.weather().ways();
        let (near_back, far_back) = (Arc::clone(&near), Arc::clone(&far));
        thread::spawn(move || up.pass(&near, &far));
        thread::spawn(move || down.pass(&far_back, &near_back));
        Ok(())
    }

    fn live(&self) -> MutexGuard<'_, Vec<Weak<TcpStream>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mend(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }

    fn cut(&self) {
        let mut live = self.live();
        self.is_cut.store(true, Ordering::SeqCst);
        for end in live.drain(..).filter_map(|end| end.upgrade()) {
            end.shutdown(Shutdown::Both).ok(); // it was closed already
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::time::Instant;

    use super::weather::Way;
    use super::*;

    /// A server that sends back every byte.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || Way::default().pass(&stream, &stream));
            }
        });
        address
    }

    fn says(stream: &mut TcpStream, word: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(word)?;
        let mut heard = vec![0; word.len()];
        stream.read_exact(&mut heard)?;
        Ok(heard)
    }

    #[test]
    fn a_cut_ends_what_lives_and_lets_nothing_through() {
        let relay = Relay::to(echo()).unwrap();
        let mut before = TcpStream::connect(relay.address()).unwrap();
        assert_eq!(says(&mut before, b"here").unwrap(), b"here");

        relay.cable.cut();
        assert!(says(&mut before, b"gone").is_err());
        let mut between = TcpStream::connect(relay.address()).unwrap();
        assert!(says(&mut between, b"not yet").is_err());
        assert_eq!(relay.joined(), 1);

        relay.cable.mend();
        let mut after = TcpStream::connect(relay.address()).unwrap();
        assert_eq!(says(&mut after, b"back").unwrap(), b"back");
        assert_eq!(relay.joined(), 2);
    }

    #[test]
    fn a_cut_for_a_while_mends_itself() {
        let relay = Relay::to(echo()).unwrap();
        relay.cut_for(Duration::from_millis(50));
        let since = Instant::now();
        let is_back = || {
            let mut stream = TcpStream::connect(relay.address()).unwrap();
            says(&mut stream, b"back").is_ok()
        };
        while !is_back() {
            assert!(since.elapsed() < Duration::from_secs(30), "still cut");
            thread::yield_now();
        }
    }
}
