//! What becomes of the bytes of one connection: they pass, or one of the things happens to them that
//! networks do.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::dice::Dice;

/// What may happen to a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing.
    #[default]
    Fair,
    /// It is cut, in the middle of a frame most often.
    Cut,
    /// For a while nothing moves; then it goes on.
    Stall,
    /// It is half-open: what one end sends vanishes, and nobody is told.
    Vanish,
    /// Bytes come a few at a time.
    Dribble,
}

impl Fate {
    const ALL: [Self; 5] = [
        Self::Fair,
        Self::Cut,
        Self::Stall,
        Self::Vanish,
        Self::Dribble,
    ];

    /// Returns it in a word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Fair => "passed",
            Self::Cut => "cut",
            Self::Stall => "stalled",
            Self::Vanish => "half-open",
            Self::Dribble => "dribbled",
        }
    }
}

/// Bytes of a dribbling connection at a time, at the most.
const DROP_BYTES: u64 = 64;

/// Between two of them.
const DROP_PAUSE: Duration = Duration::from_micros(200);

/// Who decides about new connections; without dice all of them pass.
#[derive(Debug, Default)]
pub(super) struct Weather {
    dice: Option<Dice>,
    had: [usize; Fate::ALL.len()],
}

impl Weather {
    pub(super) fn begin(&mut self, dice: Dice) {
        self.dice = Some(dice);
    }

    pub(super) fn end(&mut self) -> Vec<(Fate, usize)> {
        self.dice = None;
        Fate::ALL.into_iter().zip(self.had).collect()
    }

    /// Returns how the bytes of a new connection go, to its far end and back.
    pub(super) fn ways(&mut self) -> [Way; 2] {
        let Some(dice) = &mut self.dice else {
            return [Way::default(), Way::default()];
        };
        let which = usize::try_from(dice.below(Fate::ALL.len() as u64)).unwrap_or_default();
        self.had[which] += 1;
        let troubled = Way {
            fate: Fate::ALL[which],
            // Within the handshake, shortly behind it, or far into the output.
            after: match dice.below(3) {
                0 => dice.below(2000),
                1 => dice.below(100_000),
                _ => dice.below(4_000_000),
            },
            lasts: Duration::from_millis(dice.within(100, 4000)),
            dice: Some(dice.others()),
        };
        if dice.chance(50) {
            [troubled, Way::default()]
        } else {
            [Way::default(), troubled]
        }
    }
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Way {
    fate: Fate,
    /// Bytes that pass before anything happens, or that dribble.
    after: u64,
    /// How long it stalls, or is half-open.
    lasts: Duration,
    dice: Option<Dice>,
}

impl Way {
    /// Passes bytes on until one of the ends is closed, and closes both.
    pub(super) fn pass(&mut self, from: &TcpStream, to: &TcpStream) {
        self.carry(from, to).ok(); // who asks may find both closed
        for end in [from, to] {
            end.shutdown(Shutdown::Both).ok(); // it was closed already
        }
    }

    fn carry(&mut self, mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            let mut bytes = &buffer[..read];
            match self.fate {
                Fate::Fair => {}
                Fate::Dribble => bytes = self.dribble(bytes, to)?,
                Fate::Cut | Fate::Stall | Fate::Vanish => {
                    let still = usize::try_from(self.after).unwrap_or(usize::MAX);
                    let now = bytes.len().min(still);
                    to.write_all(&bytes[..now])?;
                    self.after -= now as u64;
                    bytes = &bytes[now..];
                }
            }
            if self.after == 0 && !bytes.is_empty() {
                match self.fate {
                    Fate::Fair | Fate::Dribble => {}
                    Fate::Cut => return Ok(()),
                    Fate::Stall => {
                        thread::sleep(self.lasts);
                        self.fate = Fate::Fair;
                    }
                    Fate::Vanish => return vanish(from, self.lasts),
                }
            }
            to.write_all(bytes)?;
        }
    }

    /// Passes a few bytes at a time, as long as it dribbles; returns the others.
    fn dribble<'b>(&mut self, bytes: &'b [u8], mut to: &TcpStream) -> io::Result<&'b [u8]> {
        let mut rest = bytes;
        while let Some(dice) = &mut self.dice
            && self.after > 0
            && !rest.is_empty()
        {
            let drops = dice.within(1, DROP_BYTES).min(self.after);
            let now = rest.len().min(usize::try_from(drops).unwrap_or(usize::MAX));
            to.write_all(&rest[..now])?;
            rest = &rest[now..];
            self.after -= now as u64;
            thread::sleep(DROP_PAUSE);
        }
        Ok(rest)
    }
}

/// Takes what comes for so long, and passes nothing on.
fn vanish(mut from: &TcpStream, lasts: Duration) -> io::Result<()> {
    let since = Instant::now();
    let mut buffer = vec![0; 64 * 1024];
    while let Some(left) = lasts.checked_sub(since.elapsed())
        && !left.is_zero()
    {
        from.set_read_timeout(Some(left))?;
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Returns what of these bytes comes through, and whether the way was closed behind it.
    fn passed(mut way: Way, bytes: &'static [u8]) -> Vec<u8> {
        let pair = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (near, listener.accept().unwrap().0)
        };
        let ((mut sender, from), (to, mut receiver)) = (pair(), pair());
        let sent = thread::spawn(move || {
            sender.write_all(bytes).ok();
            sender
        });
        let way = thread::spawn(move || way.pass(&from, &to));
        let sender = sent.join().unwrap();
        sender.shutdown(Shutdown::Write).ok();
        let mut came = Vec::new();
        receiver.read_to_end(&mut came).ok();
        way.join().unwrap();
        came
    }

    fn way(fate: Fate, after: u64) -> Way {
        Way {
            fate,
            after,
            lasts: Duration::from_millis(30),
            dice: Some(Dice::new(1)),
        }
    }

    #[test]
    fn each_fate_does_to_the_bytes_what_it_says() {
        assert_eq!(passed(Way::default(), b"0123456789"), b"0123456789");
        assert_eq!(passed(way(Fate::Cut, 4), b"0123456789"), b"0123");
        assert_eq!(passed(way(Fate::Vanish, 4), b"0123456789"), b"0123");
        assert_eq!(passed(way(Fate::Stall, 4), b"0123456789"), b"0123456789");
        assert_eq!(passed(way(Fate::Dribble, 4), b"0123456789"), b"0123456789");
    }

    #[test]
    fn dice_decide_about_every_fate_and_good_weather_about_none() {
        let mut weather = Weather::default();
        assert!(weather.ways().iter().all(|way| way.fate == Fate::Fair));
        weather.begin(Dice::new(3));
        for _ in 0..100 {
            weather.ways();
        }
        assert!(weather.end().iter().all(|(_, times)| *times > 5));
    }
}
