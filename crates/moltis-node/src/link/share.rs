//! Frames of the keepers that the road to the gateway cannot take yet, for each run apart. Pure.
//!
//! While output is held back, what the keepers have to say is read on and sorted here: else the word of
//! one run would wait in a keeper's socket behind the output of all others. How much that can be is
//! bounded by the windows of the runs, and by [`WAITING_BYTES_MAX`] in any case.
//!
//! The frames of one run keep their order. A frame that is no output waits for output of its own run
//! alone; output waits for its turn.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use moltis_proto::run::turn::{Offer, Turn};
use moltis_proto::{Codec, FromKeeper, Payload, RunId};

use super::pace::SLOW_CHUNK_BYTES;
use crate::keeper::wire::{WireError, decode, is_output, run_of};

/// Bytes that wait here at most: twice the window of a connection. Nothing more is read from the
/// keepers until there is room.
const WAITING_BYTES_MAX: usize = 2 * moltis_proto::limits::CONNECTION_WINDOW_BYTES as usize;

/// What a frame weighs beside its bytes.
const FRAME_WEIGHT: usize = 64;

/// The frames that wait. Each has one byte in front of it that is not the keeper's.
#[derive(Debug)]
pub(super) struct Share {
    /// What waits for nothing but the socket.
    ready: VecDeque<Bytes>,
    /// What waits behind output of its run, which is the first of each.
    runs: HashMap<RunId, VecDeque<Bytes>>,
    turn: Turn<RunId>,
    bytes: usize,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            runs: HashMap::new(),
            turn: Turn::new(u32::MAX),
            bytes: 0,
        }
    }
}

impl Share {
    /// Returns whether no more frames may be taken.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= WAITING_BYTES_MAX
    }

    /// Puts a frame behind the others of its run, output in pieces that a slow road takes.
    pub(super) fn push(&mut self, frame: &Bytes) -> Result<(), WireError> {
        let Some(run_id) = run_of(&frame[1..]) else {
            self.push_ready(frame.clone());
            return Ok(());
        };
        if is_output(&frame[1..]) {
            for piece in pieces(frame)? {
                self.push_behind(run_id, piece);
            }
        } else if self.runs.contains_key(&run_id) {
            self.push_behind(run_id, Bytes::copy_from_slice(frame));
        } else {
            self.push_ready(Bytes::copy_from_slice(frame));
        }
        Ok(())
    }

    /// Returns the next frame that is no output and waits for none.
    pub(super) fn next_word(&mut self) -> Option<Bytes> {
        let frame = self.ready.pop_front()?;
        self.bytes -= weight(&frame);
        Some(frame)
    }

    /// Returns the next frame of output: of whichever run has its turn. What then waits for nothing
    /// more is the next word.
    pub(super) fn next_output(&mut self) -> Option<Bytes> {
        let (runs, ready) = (&mut self.runs, &mut self.ready);
        let frame = self.turn.poll(|run_id, _| {
            let Entry::Occupied(mut waiting) = runs.entry(run_id) else {
                return Offer::Nothing;
            };
            let frames = waiting.get_mut();
            let frame = frames.pop_front();
            while let Some(word) = frames.pop_front_if(|next| !is_output(&next[1..])) {
                ready.push_back(word);
            }
            let more = !frames.is_empty();
            if !more {
                waiting.remove();
            }
            match frame {
                Some(frame) => Offer::Frame {
                    frame,
                    bytes: 0, // what is under way is counted by `Flight`
                    more,
                },
                None => Offer::Nothing,
            }
        })?;
        self.bytes -= weight(&frame);
        Some(frame)
    }

    fn push_ready(&mut self, frame: Bytes) {
        self.bytes += weight(&frame);
        self.ready.push_back(frame);
    }

    fn push_behind(&mut self, run_id: RunId, frame: Bytes) {
        self.bytes += weight(&frame);
        self.runs.entry(run_id).or_default().push_back(frame);
        self.turn.add(run_id);
    }
}

/// Cuts a frame of output into such as a slow road takes. They are copies: a part of what was read
/// from a keeper would hold all of that.
fn pieces(frame: &Bytes) -> Result<Vec<Bytes>, WireError> {
    if frame.len() <= SLOW_CHUNK_BYTES {
        return Ok(vec![Bytes::copy_from_slice(frame)]);
    }
    let FromKeeper::Output {
        run_id,
        stream,
        mut offset,
        bytes: Payload(bytes),
    } = decode(&frame[1..])?
    else {
        return Ok(vec![frame.clone()]);
    };
    let mut pieces = Vec::new();
    for piece in bytes.chunks(SLOW_CHUNK_BYTES) {
        let mut plain = vec![frame[0]];
        let message = FromKeeper::Output {
            run_id,
            stream,
            offset,
            bytes: Payload(Bytes::copy_from_slice(piece)),
        };
        Codec::Postcard
            .encode_into(&message, &mut plain)
            .map_err(WireError::Message)?;
        pieces.push(plain.into());
        offset += piece.len() as u64;
    }
    Ok(pieces)
}

fn weight(frame: &Bytes) -> usize {
    frame.len() + FRAME_WEIGHT
}

#[cfg(test)]
mod tests {
    use moltis_proto::run::{Ending, Outcome, Stream, Totals};

    use super::*;
    use crate::keeper::wire::output_head;

    fn id(number: u8) -> RunId {
        RunId::from_bytes([number; 16])
    }

    fn framed(message: &FromKeeper) -> Bytes {
        let mut frame = vec![0];
        Codec::Postcard.encode_into(message, &mut frame).unwrap();
        frame.into()
    }

    fn output(run: u8, offset: u64, bytes: &[u8]) -> Bytes {
        framed(&FromKeeper::Output {
            run_id: id(run),
            stream: Stream::Stdout,
            offset,
            bytes: Payload(Bytes::copy_from_slice(bytes)),
        })
    }

    fn started(run: u8) -> Bytes {
        let (run_id, pid) = (id(run), 1);
        framed(&FromKeeper::Started { run_id, pid })
    }

    fn ended(run: u8) -> Bytes {
        framed(&FromKeeper::Ended {
            run_id: id(run),
            ending: Box::new(Ending::without_status(Outcome::Lost, None, String::new())),
            totals: Totals::default(),
        })
    }

    /// The runs of all output that waits, in the order in which it goes.
    fn order(share: &mut Share) -> Vec<u8> {
        let next = || share.next_output();
        let runs = std::iter::from_fn(next).map(|frame| {
            let head = output_head(&frame[1..]).unwrap();
            head.run_id.as_bytes()[0]
        });
        runs.collect()
    }

    #[test]
    fn the_words_of_a_run_do_not_wait_behind_the_output_of_another() {
        let mut share = Share::default();
        for offset in 0..10 {
            share.push(&output(1, offset, b"x")).unwrap();
        }
        for frame in [started(2), ended(2), ended(1)] {
            share.push(&frame).unwrap();
        }
        assert_eq!(share.next_word(), Some(started(2)));
        assert_eq!(share.next_word(), Some(ended(2)));
        assert_eq!(share.next_word(), None, "the ending waits for its output");
        assert_eq!(order(&mut share), [1; 10]);
        assert_eq!(share.next_word(), Some(ended(1)));
        assert!(share.runs.is_empty());
        assert_eq!(share.bytes, 0);
    }

    #[test]
    fn output_of_all_runs_goes_in_turn_and_that_of_a_new_one_first() {
        let mut share = Share::default();
        for run in [1, 2] {
            for offset in 0..3 {
                share.push(&output(run, offset, b"x")).unwrap();
            }
        }
        for _ in 0..2 {
            share.next_output().unwrap();
        }
        share.push(&output(3, 0, b"x")).unwrap();
        share.push(&ended(3)).unwrap();
        assert_eq!(share.next_word(), None);
        let first = share.next_output().unwrap();
        assert_eq!(first, output(3, 0, b"x"));
        assert_eq!(share.next_word(), Some(ended(3)));
        assert_eq!(order(&mut share), [1, 2, 1, 2]);
    }

    #[test]
    fn output_that_is_cut_is_the_same_output() {
        let bytes: Vec<u8> = (0..60_000u32)
            .map(|number| number.to_le_bytes()[0])
            .collect();
        let mut share = Share::default();
        share.push(&output(7, 1000, &bytes)).unwrap();
        share.push(&ended(7)).unwrap();
        let mut joined = Vec::new();
        while let Some(piece) = share.next_output() {
            let FromKeeper::Output { offset, bytes, .. } = decode(&piece[1..]).unwrap() else {
                panic!("{piece:?}");
            };
            assert_eq!(offset, 1000 + joined.len() as u64);
            assert!((1..=SLOW_CHUNK_BYTES).contains(&bytes.0.len()));
            joined.extend_from_slice(&bytes.0);
            let is_whole = joined.len() == 60_000;
            assert_eq!(
                share.ready.len(),
                usize::from(is_whole),
                "the ending is behind"
            );
        }
        assert_eq!(joined, bytes);
    }

    #[test]
    fn what_waits_has_a_bound() {
        let mut share = Share::default();
        let bytes = vec![0; SLOW_CHUNK_BYTES];
        let mut frames = 0;
        while !share.is_full() {
            share.push(&output(1, frames, &bytes)).unwrap();
            frames += 1;
        }
        assert!(frames * (SLOW_CHUNK_BYTES as u64) < WAITING_BYTES_MAX as u64 + 64 * 1024);
        share.next_output().unwrap();
        assert!(!share.is_full());
    }
}
