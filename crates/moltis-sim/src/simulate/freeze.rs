//! A process that is stopped and goes on (SIGSTOP, SIGCONT): nothing of it is done meanwhile, and the
//! clocks of its machine go on.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The brake of one process.
#[derive(Debug, Clone)]
pub(super) struct Freeze(watch::Sender<Instant>);

impl Default for Freeze {
    fn default() -> Self {
        Self(watch::Sender::new(Instant::now()))
    }
}

impl Freeze {
    /// Stops the process for so long, from this moment on. With no time it goes on.
    pub(super) fn stop(&self, time: Duration) {
        self.0.send_replace(Instant::now() + time);
    }

    /// Does the work of the process, whenever it is not stopped.
    pub(super) async fn process<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut brake = self.0.subscribe();
        loop {
            let until = *brake.borrow_and_update();
            if until > Instant::now() {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    _ = brake.changed() => {}
                }
                continue;
            }
            tokio::select! {
                biased;
                _ = brake.changed() => {}
                done = &mut work => return done,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_stopped_goes_on_later() {
        let (freeze, began) = (Freeze::default(), Instant::now());
        let work = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let stop = async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            freeze.stop(Duration::from_mins(1));
        };
        tokio::join!(freeze.process(work), stop);
        assert_eq!(began.elapsed(), Duration::from_millis(62_500));
    }
}
