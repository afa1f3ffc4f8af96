//! Looking at files before a command is started, aside: a file system may take its time, and one
//! whose server is gone (NFS, FUSE) never answers. Whoever looks there hangs, so a keeper does not
//! do it itself.
//!
//! Most often there is one thread, and one look at a time. A thread that hangs stays; the next look
//! gets another one, up to a bound.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use moltis_proto::run::{Command, RunSpec};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::program::StartFailure;

/// How long the files of one start are looked at. A disk that sleeps, or a server on the other side
/// of the world, has answered by then.
pub(super) const LOOK_TIME: Duration = Duration::from_secs(5);

/// Threads that look, those that hang among them. Above it no run is started.
const LOOKERS_MAX: usize = 32;

/// Where a look has come to, for whoever waits for it.
#[derive(Debug, Clone, Default)]
pub(super) struct Place(Arc<Mutex<PathBuf>>);

/// What is looked for, which nobody looks for a second time while it hangs.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    cwd: Option<String>,
    program: Option<String>,
}

type Job = Box<dyn FnOnce() + Send>;

/// The threads of one keeper that look at files.
#[derive(Debug)]
pub(super) struct Lookers {
    jobs: SyncSender<Job>,
    queue: Arc<Mutex<Receiver<Job>>>,
    /// Each is gone when its thread is.
    threads: Vec<Weak<()>>,
    /// Each is gone when its look is over. When it began stands beside it.
    looks: Vec<(Weak<Wanted>, Instant)>,
}

impl Place {
    /// Says that this path is asked for now.
    pub(super) fn set(&self, path: &Path) {
        path.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Why nothing is started where this path was asked for all the time.
    fn hangs(&self) -> StartFailure {
        let path = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        StartFailure::in_words(format!(
            "`{}` gave no answer within {} s, so nothing was started: see whether the file system that it is on still works",
            path.display(),
            LOOK_TIME.as_secs()
        ))
    }
}

impl Wanted {
    fn of(spec: &RunSpec) -> Self {
        Self {
            cwd: spec.cwd.clone(),
            program: match &spec.command {
                Command::Argv(argv) => argv.first().cloned(),
                Command::Shell(_) => None,
            },
        }
    }
}

impl Lookers {
    /// No thread yet: the first look makes one.
    pub(super) fn new() -> Self {
        let (jobs, queue) = sync_channel(LOOKERS_MAX);
        Self {
            jobs,
            queue: Arc::new(Mutex::new(queue)),
            threads: Vec::new(),
            looks: Vec::new(),
        }
    }

    /// Returns whether every thread is at work that there may be.
    pub(super) fn are_all_busy(&mut self) -> bool {
        self.looks.retain(|(look, _)| look.strong_count() > 0);
        self.looks.len() >= LOOKERS_MAX
    }

    /// Does the work for this spec aside, and returns what comes of it, in time. It tells the place
    /// where it is.
    ///
    /// # Errors
    /// The same has been asked for before and hangs, or too much does.
    pub(super) fn look<T: Send + 'static>(
        &mut self,
        spec: &RunSpec,
        place: Place,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<impl Future<Output = Result<T, StartFailure>> + Send + 'static, StartFailure> {
        let done = self.begin(spec, work)?;
        Ok(async move {
            match tokio::time::timeout(LOOK_TIME, done).await {
                Ok(Some(done)) => Ok(done),
                Ok(None) => Err(failed("the look at its files ended without an answer")),
                Err(_elapsed) => Err(place.hangs()),
            }
        })
    }

    fn begin<T: Send + 'static>(
        &mut self,
        spec: &RunSpec,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<BoxFuture<'static, Option<T>>, StartFailure> {
        if self.are_all_busy() {
            return Err(failed(&format!(
                "{LOOKERS_MAX} commands before it still wait for a file system that does not answer, so nothing was started"
            )));
        }
        let wanted = Arc::new(Wanted::of(spec));
        let given_up = self
            .looks
            .iter()
            .filter(|look| look.1.elapsed() >= LOOK_TIME);
        let mut given_up = given_up.filter_map(|(look, _)| look.upgrade());
        if given_up.any(|look| look == wanted) {
            return Err(failed(
                "the same was asked for before, and its file system has not answered yet, so nothing was started",
            ));
        }
        self.threads.retain(|thread| thread.strong_count() > 0);
        if self.looks.len() >= self.threads.len() {
            self.add_thread()?;
        }
        self.looks.push((Arc::downgrade(&wanted), Instant::now()));
        let (answer, answered) = oneshot::channel();
        let job = Box::new(move || {
            let done = work();
            drop(wanted);
            answer.send(done).ok(); // nobody waits any more
        });
        // There is room for as many as there may be, and this end of the queue is ours.
        let sent = self.jobs.try_send(job);
        sent.map_err(|_| failed("the look at its files could not be begun"))?;
        Ok(answered.map(Result::ok).boxed())
    }

    fn add_thread(&mut self) -> Result<(), StartFailure> {
        let queue = Arc::clone(&self.queue);
        let alive = Arc::new(());
        self.threads.push(Arc::downgrade(&alive));
        let work = move || {
            loop {
                // The queue is held while one waits, and let go for the work.
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(job) = next else {
                    break;
                };
                job();
            }
            drop(alive);
        };
        let made = std::thread::Builder::new()
            .name("looker".to_owned())
            .spawn(work);
        made.map(drop).map_err(|error| {
            failed(&format!(
                "the system gives no thread to look at its files: {error}"
            ))
        })
    }
}

fn failed(why: &str) -> StartFailure {
    StartFailure::in_words(why)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn spec(cwd: &str) -> RunSpec {
        RunSpec {
            cwd: Some(cwd.to_owned()),
            ..moltis_proto::run::reconcile::question()
        }
    }

    /// Work that ends when the other end is dropped.
    fn hanging() -> (mpsc::Sender<()>, impl FnOnce() + Send + 'static) {
        let (ends, waits) = mpsc::channel::<()>();
        (ends, move || assert!(waits.recv().is_err()))
    }

    // Time is not paused: it would go on by itself while a thread works.
    #[tokio::test]
    async fn a_look_that_hangs_is_given_up_and_says_where_and_the_next_one_does_not_wait() {
        let mut lookers = Lookers::new();
        let (place, (ends, work)) = (Place::default(), hanging());
        place.set(Path::new("/dead/x"));
        let hangs = lookers.look(&spec("/dead"), place.clone(), work).unwrap();
        let same = lookers.look(&spec("/dead"), Place::default(), || 7);
        assert_eq!(same.unwrap().await, Ok(7), "it may only be slow");
        let next = lookers.look(&spec("/"), Place::default(), || 7).unwrap();
        assert_eq!(next.await, Ok(7));
        let failure = hangs.await.unwrap_err();
        assert_eq!(failure.reason, None);
        assert!(failure.detail.contains("`/dead/x`"), "{}", failure.detail);
        let again = lookers.look(&spec("/dead"), place, || 7);
        assert!(again.is_err(), "it would hang too");
        drop(ends);
    }

    #[tokio::test]
    async fn threads_that_hang_are_bounded_and_used_again_when_they_are_done() {
        let mut lookers = Lookers::new();
        let mut all = Vec::new();
        for number in 0..LOOKERS_MAX {
            let (ends, work) = hanging();
            let look = lookers.look(&spec(&number.to_string()), Place::default(), work);
            all.push((ends, look.unwrap()));
        }
        assert!(lookers.are_all_busy());
        assert!(lookers.look(&spec("/"), Place::default(), || 7).is_err());
        for (ends, look) in all {
            drop(ends);
            look.await.unwrap();
        }
        let look = lookers.look(&spec("/"), Place::default(), || 7).unwrap();
        assert_eq!(look.await, Ok(7));
        assert_eq!(lookers.threads.len(), LOOKERS_MAX);
    }
}
