//! What happened in a world, a line for each event, with the time of the world.
//!
//! Two runs of one number must write the same lines: [`Trace::digest`] is what is compared.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::Hasher as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Lines that are kept: more than anybody reads.
const LINES_MAX: usize = 4000;

/// Where events are written down. Cloning shares it.
#[derive(Debug, Clone)]
pub(super) struct Trace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    /// What is left out of lines: where the files of this world are says nothing about it.
    root: String,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    lines: VecDeque<String>,
    count: u64,
    digest: DefaultHasher,
}

impl Trace {
    /// Begins one of a world with its files below `root`: its first moment is now.
    pub(super) fn new(root: &Path) -> Self {
        Self(Arc::new(Inner {
            began: Instant::now(),
            root: root.display().to_string(),
            written: Mutex::new(Written {
                lines: VecDeque::new(),
                count: 0,
                digest: DefaultHasher::new(),
            }),
        }))
    }

    /// Writes a line: who, and what happened to it.
    pub(super) fn note(&self, who: &str, what: fmt::Arguments<'_>) {
        let at = self.0.began.elapsed().as_secs_f64();
        let mut line = format!("{at:>11.6}  {who:<10} {what}");
        if line.contains(&self.0.root) {
            line = line.replace(&self.0.root, "");
        }
        let mut written = self.written();
        written.count += 1;
        written.digest.write(line.as_bytes());
        written.lines.push_back(line);
        if written.lines.len() > LINES_MAX {
            written.lines.pop_front();
        }
    }

    /// Returns what two runs of the same number share, and no other has.
    pub(super) fn digest(&self) -> u64 {
        self.written().digest.finish()
    }

    /// Returns how many lines were written.
    pub(super) fn count(&self) -> u64 {
        self.written().count
    }

    /// Returns the last lines.
    pub(super) fn last(&self, lines: usize) -> Vec<String> {
        let written = self.written();
        let skipped = written.lines.len().saturating_sub(lines);
        written.lines.iter().skip(skipped).cloned().collect()
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.0
            .written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a line of a trace.
macro_rules! note {
    ($trace:expr, $who:expr, $($what:tt)*) => {
        $trace.note($who, format_args!($($what)*))
    };
}
pub(super) use note;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_happened_and_when_makes_the_digest() {
        let tell = async |wait| {
            let trace = Trace::new(Path::new("/world"));
            note!(trace, "box", "wakes");
            tokio::time::sleep(Duration::from_millis(wait)).await;
            note!(trace, "box", "sleeps at /world/home");
            trace
        };
        let trace = tell(1500).await;
        assert_eq!(
            trace.last(1),
            ["   1.500000  box        sleeps at /home"],
            "{trace:?}"
        );
        assert_eq!(trace.digest(), tell(1500).await.digest());
        assert_ne!(trace.digest(), tell(1501).await.digest());
    }
}
