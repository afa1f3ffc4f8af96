//! Whose turn it is: many runs share one connection, each a frame at a time, within its window.
//!
//! The driver sends control messages first, of its own accord, and asks here for everything else.
//! A run that has much to say waits behind each other run that has something to say, never longer. One
//! that had nothing to say has its first frame before those that go on, so that a short word does not
//! wait behind long ones; before it may do so again it has its turn like all others.

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;

/// What a run offers when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer<F> {
    /// A frame, and how many bytes of the connection's window it takes.
    Frame {
        /// The frame.
        frame: F,
        /// Bytes of output in it: 0 for a gap or an ending.
        bytes: usize,
        /// Whether there is another behind it.
        more: bool,
    },
    /// There is something, but not for the credit that is left.
    WantsCredit,
    /// There is nothing; the run comes back by [`Turn::add`].
    Nothing,
}

impl<F> Offer<F> {
    /// Returns the same offer of another frame.
    pub fn map<G>(self, change: impl FnOnce(F) -> G) -> Offer<G> {
        match self {
            Self::Frame { frame, bytes, more } => Offer::Frame {
                frame: change(frame),
                bytes,
                more,
            },
            Self::WantsCredit => Offer::WantsCredit,
            Self::Nothing => Offer::Nothing,
        }
    }
}

/// The runs that have something to send, and the window of their connection.
#[derive(Debug)]
pub struct Turn<K> {
    /// Runs that have had no frame since they came, in their order.
    new: VecDeque<K>,
    /// Runs that have had one. Some have nothing more, and keep their place until it is their turn.
    queue: VecDeque<K>,
    queued: HashSet<K>,
    window_bytes: u64,
    under_way: u64,
}

impl<K: Copy + Eq + Hash> Turn<K> {
    /// A new connection, on which nothing is under way.
    pub fn new(window_bytes: u32) -> Self {
        Self {
            new: VecDeque::new(),
            queue: VecDeque::new(),
            queued: HashSet::new(),
            window_bytes: u64::from(window_bytes),
            under_way: 0,
        }
    }

    /// This run has something to send. It goes behind the others that are new, unless it has its place
    /// already.
    pub fn add(&mut self, key: K) {
        if self.queued.insert(key) {
            self.new.push_back(key);
        }
    }

    /// This run is gone.
    pub fn remove(&mut self, key: K) {
        if self.queued.remove(&key) {
            self.new.retain(|queued| *queued != key);
            self.queue.retain(|queued| *queued != key);
        }
    }

    /// So many bytes are no longer under way.
    pub fn handle_freed(&mut self, bytes: u64) {
        self.under_way = self.under_way.saturating_sub(bytes);
    }

    /// Returns the bytes of the window that are left.
    pub fn credit(&self) -> usize {
        usize::try_from(self.window_bytes.saturating_sub(self.under_way)).unwrap_or(usize::MAX)
    }

    /// Returns whether nobody has anything to send. Behind a [`poll`](Self::poll) that gave nothing
    /// this is certain; else somebody may have a place and no use for it.
    pub fn is_empty(&self) -> bool {
        self.queued.is_empty()
    }

    /// Asks the runs in turn, with the credit that is left, until one offers a frame; `None` when
    /// none does.
    pub fn poll<F>(&mut self, mut ask: impl FnMut(K, usize) -> Offer<F>) -> Option<F> {
        for _ in 0..self.new.len() {
            let key = self.new.pop_front()?;
            match ask(key, self.credit()) {
                Offer::Frame { frame, bytes, .. } => {
                    self.under_way += bytes as u64;
                    // Whether or not there is more: it is not new again before its turn has come.
                    self.queue.push_back(key);
                    return Some(frame);
                }
                Offer::WantsCredit => self.new.push_back(key),
                Offer::Nothing => {
                    self.queued.remove(&key);
                }
            }
        }
        for _ in 0..self.queue.len() {
            let key = self.queue.pop_front()?;
            match ask(key, self.credit()) {
                Offer::Frame { frame, bytes, more } => {
                    self.under_way += bytes as u64;
                    if more {
                        self.queue.push_back(key);
                    } else {
                        self.queued.remove(&key);
                    }
                    return Some(frame);
                }
                Offer::WantsCredit => self.queue.push_back(key),
                Offer::Nothing => {
                    self.queued.remove(&key);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs that have so many bytes each, sent in chunks of ten.
    struct Runs(Vec<usize>);

    impl Runs {
        fn ask(&mut self, run: usize, credit: usize) -> Offer<(usize, usize)> {
            let left = self.0[run];
            let bytes = left.min(10).min(credit);
            match (left, bytes) {
                (0, _) => Offer::Nothing,
                (_, 0) => Offer::WantsCredit,
                _ => {
                    self.0[run] -= bytes;
                    Offer::Frame {
                        frame: (run, bytes),
                        bytes,
                        more: left > bytes,
                    }
                }
            }
        }
    }

    fn drain(turn: &mut Turn<usize>, runs: &mut Runs) -> Vec<usize> {
        let mut order = Vec::new();
        while let Some((run, _)) = turn.poll(|run, credit| runs.ask(run, credit)) {
            order.push(run);
        }
        order
    }

    #[test]
    fn a_talkative_run_waits_behind_every_other() {
        let mut runs = Runs(vec![100, 20, 10]);
        let mut turn = Turn::new(1_000);
        for run in [0, 1, 2, 0] {
            turn.add(run);
        }
        assert_eq!(drain(&mut turn, &mut runs)[..6], [0, 1, 2, 0, 1, 0]);
        assert!(turn.is_empty());
        assert_eq!(turn.credit(), 1_000 - 130);
    }

    #[test]
    fn a_short_word_goes_before_long_ones_and_then_has_its_turn() {
        let mut runs = Runs(vec![100, 100, 0]);
        let mut turn = Turn::new(1_000);
        turn.add(0);
        turn.add(1);
        let next = |runs: &mut Runs, turn: &mut Turn<usize>| {
            turn.poll(|run, credit| runs.ask(run, credit))
                .map(|(run, _)| run)
        };
        let mut order = Vec::new();
        for _ in 0..8 {
            order.extend(next(&mut runs, &mut turn));
            // It says a little as soon as it could say something.
            if runs.0[2] == 0 {
                runs.0[2] = 5;
                turn.add(2);
            }
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 2, 2, 0]);
    }

    #[test]
    fn the_window_holds_everybody_back_and_lets_them_go_on_in_their_order() {
        let mut runs = Runs(vec![30, 30]);
        let mut turn = Turn::new(25);
        turn.add(0);
        turn.add(1);
        assert_eq!(drain(&mut turn, &mut runs), [0, 1, 0]);
        assert_eq!(turn.credit(), 0);
        turn.handle_freed(10);
        assert_eq!(drain(&mut turn, &mut runs), [1]);
        turn.handle_freed(1_000);
        assert_eq!(drain(&mut turn, &mut runs), [0, 1, 0]);
    }

    #[test]
    fn a_run_that_is_gone_is_not_asked() {
        let mut runs = Runs(vec![10, 10]);
        let mut turn = Turn::new(100);
        turn.add(0);
        turn.add(1);
        turn.remove(0);
        assert_eq!(drain(&mut turn, &mut runs), [1]);
    }
}
