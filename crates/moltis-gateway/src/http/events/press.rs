//! The text of events: made once for each, when the first reader comes to it, and shared by all.
//!
//! One task makes the text, so that no reader ever does anything that another waits for: a body
//! whose reader has stopped reading may stand still at any point. Nothing is made while nobody
//! reads. What is made is kept within a bound and made anew when somebody comes back for it later.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::about;
use super::id::EventId;
use crate::api::events::EventData;
use crate::events::Event;
use crate::http::{ApiState, sse};

/// Bytes of text that are kept: four seconds of samples of ten thousand nodes, each of 3 KB.
const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a text costs beside its bytes.
const TEXT_COST: usize = 128;

/// Makes the text of events, and keeps it for a while.
#[derive(Debug, Default)]
pub(in crate::http) struct Press {
    sheets: Mutex<Sheets>,
    asked: Notify,
    /// Moves with every text that is made.
    made: watch::Sender<()>,
}

/// The texts that are kept, and what somebody waits for.
#[derive(Debug, Default)]
struct Sheets {
    asked: HashMap<u64, Event>,
    /// In the order in which they were asked for first, so that readers far behind, however many,
    /// keep nobody waiting for what is new.
    line: VecDeque<u64>,
    texts: HashMap<u64, Bytes>,
    /// In the order in which they were made.
    made: VecDeque<u64>,
    bytes: usize,
}

impl Press {
    /// Returns the text of an event; empty where nothing is left of what it was about.
    ///
    /// # Cancel safety
    /// Cancel safe: the text is made all the same, for the next who comes.
    pub(super) async fn text(&self, number: u64, event: &Event) -> Bytes {
        let mut made = self.made.subscribe();
        loop {
            made.borrow_and_update();
            if let Some(text) = self.sheets().find_or_ask(number, event) {
                return text;
            }
            self.asked.notify_one();
            made.changed().await.ok(); // `self` holds the sender
        }
    }

    /// Makes what is asked for, until the gateway stops.
    pub(super) async fn print(&self, desk: &ApiState) {
        loop {
            let next = self.sheets().next();
            let Some((number, event)) = next else {
                tokio::select! {
                    biased;
                    () = desk.stop().cancelled() => return,
                    () = self.asked.notified() => continue,
                }
            };
            let data = tokio::select! {
                biased;
                () = desk.stop().cancelled() => return,
                data = about::data(desk, &event) => data,
            };
            let text = data.map_or_else(Bytes::new, |data| text(desk, number, &event, &data));
            self.sheets().keep(number, text);
            self.made.send_replace(());
        }
    }

    fn sheets(&self) -> MutexGuard<'_, Sheets> {
        self.sheets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text(desk: &ApiState, number: u64, event: &Event, data: &EventData) -> Bytes {
    let id = EventId {
        incarnation: desk.incarnation(),
        number,
    };
    sse::event(id, event.kind(), data)
}

impl Sheets {
    fn find_or_ask(&mut self, number: u64, event: &Event) -> Option<Bytes> {
        if let Some(text) = self.texts.get(&number) {
            return Some(text.clone());
        }
        if let Entry::Vacant(place) = self.asked.entry(number) {
            place.insert(event.clone());
            self.line.push_back(number);
        }
        None
    }

    /// Returns what to make next. It stays asked for until it is kept, so that it is made once.
    fn next(&self) -> Option<(u64, Event)> {
        let number = self.line.front()?;
        Some((*number, self.asked.get(number)?.clone()))
    }

    /// Keeps a text, in place of those that were made first. The newest is always kept.
    fn keep(&mut self, number: u64, text: Bytes) {
        self.asked.remove(&number);
        self.line.retain(|asked| *asked != number);
        self.bytes += text.len() + TEXT_COST;
        self.texts.insert(number, text);
        self.made.push_back(number);
        while self.bytes > TEXT_BYTES_MAX && self.made.len() > 1 {
            let first = self.made.pop_front();
            let text = first.and_then(|first| self.texts.remove(&first));
            self.bytes -= text.map_or(0, |text| text.len() + TEXT_COST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_asked_for_once_however_many_wait() {
        let mut sheets = Sheets::default();
        for _ in 0..100 {
            assert_eq!(sheets.find_or_ask(7, &Event::PairingChanged), None);
        }
        assert_eq!(sheets.next(), Some((7, Event::PairingChanged)));
        sheets.keep(7, Bytes::from_static(b"text"));
        assert_eq!(sheets.next(), None);
        let texts = [(); 2].map(|()| sheets.find_or_ask(7, &Event::PairingChanged).unwrap());
        assert_eq!(texts[0].as_ptr(), texts[1].as_ptr(), "shared, not copied");
    }

    #[test]
    fn what_was_asked_for_first_is_made_first_however_old_the_rest_is() {
        let mut sheets = Sheets::default();
        for number in [900, 3, 900, 2, 1] {
            sheets.find_or_ask(number, &Event::PairingChanged);
        }
        let mut made = Vec::new();
        while let Some((number, _)) = sheets.next() {
            sheets.keep(number, Bytes::from_static(b"text"));
            made.push(number);
        }
        assert_eq!(made, [900, 3, 2, 1]);
    }

    #[test]
    fn what_is_kept_has_a_bound_and_the_newest_is_always_there() {
        let mut sheets = Sheets::default();
        let long = Bytes::from(vec![b'x'; 300 * 1024]);
        for number in (0..1000).rev() {
            sheets.find_or_ask(number, &Event::PairingChanged);
            sheets.keep(number, long.clone());
            assert!(sheets.bytes <= TEXT_BYTES_MAX);
            assert_eq!(sheets.texts.len(), sheets.made.len());
            assert!(sheets.texts.contains_key(&number));
        }
        let huge = Bytes::from(vec![b'x'; 2 * TEXT_BYTES_MAX]);
        sheets.keep(5000, huge);
        assert_eq!(sheets.texts.len(), 1);
        sheets.keep(5001, Bytes::new());
        assert_eq!((sheets.texts.len(), sheets.bytes), (1, TEXT_COST));
    }
}
