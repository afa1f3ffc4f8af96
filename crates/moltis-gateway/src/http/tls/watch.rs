//! Takes up a new certificate while the gateway runs: the one that certbot has put there, or our own
//! before its time is over. Connections that stand keep theirs; one that cannot be used changes
//! nothing but what is told.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::certificate::{Loaded, Stamps, TlsError};
use super::{Source, Tls};
use crate::clock::Clock;

/// How often the two files are looked at, which reads nothing.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What was seen of the files when they were last read.
#[derive(Debug)]
struct Seen {
    stamps: Stamps,
    failed: Option<String>,
}

impl Tls {
    /// Looks after the certificate until `stop`.
    pub(crate) async fn keep_up(self, clock: Clock, stop: CancellationToken) {
        let mut seen = Seen {
            stamps: self.0.stamps,
            failed: None,
        };
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let (tls, now) = (self.clone(), clock.now());
            let looked = tokio::task::spawn_blocking(move || tls.look(seen, now));
            // A runtime that ends takes this task with it.
            let Ok(after) = looked.await else { return };
            seen = after;
        }
    }

    /// Reads the files where they have changed since, or could not be used then.
    fn look(&self, mut seen: Seen, now: Timestamp) -> Seen {
        let stamps = self.0.source.files().stamps();
        let is_due = match &self.0.source {
            Source::Files(_) => false,
            Source::Generated(generated) => generated.is_due(&self.0.current.get(), now),
        };
        if stamps == seen.stamps && seen.failed.is_none() && !is_due {
            return seen;
        }
        // Taken before reading: what changes in this moment is read once more.
        seen.stamps = stamps;
        let in_use = self.0.current.get().about.problem(now);
        match self.0.source.load(now) {
            Ok(loaded) => match loaded.about.problem(now) {
                // One that clients refuse takes the place of another that they refuse, and of no other.
                Some(problem) if in_use.is_none() => self.tell(&mut seen, problem),
                _ => {
                    seen.failed = None;
                    self.take_up(loaded);
                }
            },
            Err(error) => self.tell(&mut seen, words(&error)),
        }
        seen
    }

    fn take_up(&self, loaded: Loaded) {
        *self.trouble() = None;
        let before = self.0.current.get();
        let is_same = Arc::as_ref(&before).about == loaded.about;
        if !is_same {
            let about = &loaded.about;
            tracing::info!(
                path = %about.path.display(),
                fingerprint = about.fingerprint,
                not_after = %about.not_after,
                "a new certificate is in use"
            );
        }
        self.0.current.set(loaded);
    }

    /// One of the two files is always written first: what is wrong once may be right in a moment, and
    /// what is wrong twice is told, once.
    fn tell(&self, seen: &mut Seen, words: String) {
        let is_twice = seen.failed.as_ref() == Some(&words);
        if is_twice && self.trouble().as_ref() != Some(&words) {
            tracing::error!(
                error = words,
                "the new certificate cannot be used: the one that was read before stays in use"
            );
            *self.trouble() = Some(words.clone());
        }
        seen.failed = Some(words);
    }
}

/// An error with its cause.
fn words(error: &TlsError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
