//! `moltis node add` without `--foreground`: join, then leave the work to a service.
//!
//! What could fail is looked at before anybody is asked to approve anything: whether a manager
//! answers, whether the service may start, whether it is this home's, whether the settings can be
//! used. A service that runs and is connected is updated in place; one that is not makes room for
//! the joining and, where that comes to nothing, is started again.

use std::time::Duration;

use moltis_node::state::{self, Report};
use moltis_service::{Manager, Service};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::meet::{Met, Until, meet};
use super::request::{self, Joined, Request};
use crate::commands::Context;
use crate::exit::Exit;
use crate::failure::{Failure, OrFail as _, failure};
use crate::paths::Home;
use crate::service::{self, NODE, Word, failed};
use crate::signals::stop_on_signal;

/// How long a service that was started may take to reach the gateway that we have just reached.
const CONNECT_TIME: Duration = Duration::from_secs(30);

/// How often node.state is looked at while it is waited for, and how often at that the manager is
/// asked for the service's process, which may change.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS_A_PROCESS: u32 = 10;

/// `moltis node add`.
pub(super) async fn add(
    context: &Context,
    home: &Home,
    request: &Request,
    no_wait: bool,
) -> anyhow::Result<Exit> {
    let stop = stop_on_signal()?;
    let ctrl_c = signal(SignalKind::interrupt())?;
    let at = At::check(context, home).await?;
    let (before, _) = request.settings(home)?;
    let was_joined = before.is_some_and(|before| before.is_joined());
    if was_joined && !request.risks_the_connection() && at.is_connected().await? {
        at.tell_what_holds(&request.write(home)?);
        return at.install("Updated.", &stop).await;
    }
    let was_running = at.make_room(&stop).await?;
    let joined = at.join(request, no_wait, &stop, ctrl_c).await;
    if was_running && !matches!(joined, Ok(Exit::SUCCESS)) {
        at.start_again().await;
    }
    joined
}

/// A home and the manager of its service.
struct At<'a> {
    context: &'a Context,
    home: &'a Home,
    manager: Manager,
    service: Service,
}

impl<'a> At<'a> {
    /// Looks at everything that could be in the way. Makes directories that are missing, and
    /// changes nothing else.
    async fn check(context: &'a Context, home: &'a Home) -> Result<Self, Failure> {
        let manager = service::manager(&context.settings);
        let service = service::node(home, &context.settings)?;
        manager
            .check(&service)
            .await
            .map_err(|error| failed(error, NODE))?;
        service::of_home(&manager, NODE, home)?;
        home.prepare()?;
        Ok(Self {
            context,
            home,
            manager,
            service,
        })
    }

    /// Returns whether the service runs as the node of this home, and is connected.
    async fn is_connected(&self) -> Result<bool, Failure> {
        let report = self.report()?;
        let report = report.filter(|report| report.connected_since.is_some());
        Ok(match report {
            Some(report) => self.pid().await? == Some(report.pid),
            None => false,
        })
    }

    async fn pid(&self) -> Result<Option<u32>, Failure> {
        let status = self.manager.status(NODE).await;
        Ok(status.map_err(|error| failed(error, NODE))?.pid())
    }

    fn report(&self) -> Result<Option<Report>, Failure> {
        state::read_state(&self.home.node_state())
            .or_fail(|| "cannot tell whether a node runs here".to_owned())
    }

    /// Stops the service, where it runs: two processes cannot be one node. Returns whether it did,
    /// or was about to.
    async fn make_room(&self, stop: &CancellationToken) -> Result<bool, Failure> {
        let standing = service::standing(&self.manager, NODE).await?;
        if standing.word == Word::NotInstalled {
            return Ok(false);
        }
        tokio::select! {
            stopped = self.manager.stop(NODE) => stopped.map_err(|error| failed(error, NODE))?,
            () = stop.cancelled() => {
                self.start_again().await;
                return Err(cancelled());
            }
        }
        Ok(standing.is_wanted)
    }

    /// Has the service started that had to make room.
    async fn start_again(&self) {
        if let Err(error) = self.manager.start(NODE).await {
            self.context.output.warn(&format!(
                "the service was stopped for this and does not start: {error}"
            ));
        }
    }

    async fn join(
        &self,
        request: &Request,
        no_wait: bool,
        stop: &CancellationToken,
        mut ctrl_c: Signal,
    ) -> anyhow::Result<Exit> {
        let until = if no_wait {
            Until::Heard
        } else {
            Until::Accepted
        };
        let met = meet(self.context, self.home, request, until, stop).await?;
        if met.accepted {
            let done = if met.approved { "Approved." } else { "Joined." };
            return self.install(done, stop).await;
        }
        if let Some(error) = &met.unreached {
            self.tell_what_holds(&met.joined);
            return self.install_unreached(error, stop).await;
        }
        if met.waiting {
            // The first Ctrl+C has been heard; the next one is another.
            let again = stop_on_signal()?;
            let by_person = tokio::select! {
                biased;
                _ = ctrl_c.recv() => true,
                () = std::future::ready(()) => false,
            };
            if no_wait || (by_person && self.wants_to_wait(&again).await) {
                return self.leave_waiting(&met, &again).await;
            }
        }
        met.joined.undo(self.home);
        Ok(Exit::CANCELLED)
    }

    /// Asks whether a service shall wait in place of the person who pressed Ctrl+C.
    async fn wants_to_wait(&self, again: &CancellationToken) -> bool {
        let output = self.context.output;
        if !output.stdin_is_terminal() || !output.stderr_is_terminal() {
            output.note(
                "not joined; the request waits its time out, and the same line takes it up again",
            );
            output.hint("to let a service wait for the answer: the same line with --no-wait");
            return false;
        }
        output.note("");
        let question = tokio::task::spawn_blocking(move || {
            let question = "Install the service, and let it wait for the answer?";
            output.confirm(question, "--no-wait")
        });
        tokio::select! {
            // Where the question cannot be asked, nobody has said yes.
            answer = question => matches!(answer, Ok(Ok(true))),
            () = again.cancelled() => false,
        }
    }

    fn tell_what_holds(&self, joined: &Joined) {
        let output = self.context.output;
        match joined.keep_approved(self.home) {
            Ok(Some(words)) => output.note(&words),
            Ok(None) => {}
            Err(failure) => output.warn(&format!("{:#}", anyhow::Error::from(failure))),
        }
    }

    /// Installs the service and sees that it is connected.
    async fn install(&self, done: &str, stop: &CancellationToken) -> anyhow::Result<Exit> {
        let file = self.bring_up(stop).await?;
        self.wait_for(stop, "is not connected", |report| {
            report.connected_since.is_some()
        })
        .await?;
        let output = self.context.output;
        output.text(&format!("{done} Service installed and running ({file})."))?;
        Ok(Exit::SUCCESS)
    }

    /// Installs the service of a node whose gateway cannot be reached now.
    async fn install_unreached(
        &self,
        error: &moltis_node::LinkError,
        stop: &CancellationToken,
    ) -> anyhow::Result<Exit> {
        let file = self.bring_up(stop).await?;
        let output = self.context.output;
        output.text(&format!("Updated. Service installed and running ({file})."))?;
        output.warn(&format!("it is not connected, and goes on trying: {error}"));
        Ok(Exit::SUCCESS)
    }

    /// Installs the service and lets it wait for the answer.
    async fn leave_waiting(&self, met: &Met, stop: &CancellationToken) -> anyhow::Result<Exit> {
        let gateway = met.gateway;
        let gateway = gateway.ok_or_else(|| failure("the gateway has not shown its key"))?;
        request::leave_waiting(self.home, gateway)?;
        let file = self.bring_up(stop).await?;
        let report = self
            .wait_for(stop, "has not asked the gateway", |report| {
                report.waiting_with_code.is_some() || report.connected_since.is_some()
            })
            .await?;
        let output = self.context.output;
        if let Some(code) = report.waiting_with_code {
            output.text(&format!(
                "Connection code  {code}    (the same code is shown where you approve)"
            ))?;
        }
        output.text(&format!(
            "Service installed; it waits for the answer ({file})."
        ))?;
        output.note(
            "on the gateway: moltis node pending, then moltis node approve <id>; \
             each connection has a code of its own, and moltis node status shows the latest",
        );
        Ok(Exit::SUCCESS)
    }

    /// Writes the service down and starts it; returns its file as a person writes it.
    async fn bring_up(&self, stop: &CancellationToken) -> Result<String, Failure> {
        let output = self.context.output;
        output.note("Installing the service …");
        let installed = self.manager.install(&self.service).await;
        let installed = installed.map_err(|error| failed(error, NODE))?;
        // Whatever comes now, the service is there.
        service::tell_beside(output, self.home, &self.manager, NODE, &installed).await;
        tokio::select! {
            started = self.manager.restart(NODE) => {
                started.map_err(|error| service::not_started(&self.manager, NODE, error))?;
            }
            () = stop.cancelled() => {
                // The request may not have reached the manager: this one does, and waits for nothing.
                self.start_again().await;
                return Err(left_installed());
            }
        }
        Ok(self.home.show(&installed.path))
    }

    /// Waits until the service says of itself what it should.
    async fn wait_for(
        &self,
        stop: &CancellationToken,
        problem: &str,
        is_there: impl Fn(&Report) -> bool,
    ) -> Result<Report, Failure> {
        let deadline = Instant::now() + CONNECT_TIME;
        while Instant::now() < deadline {
            let pid = self.pid().await?;
            for _ in 0..LOOKS_A_PROCESS {
                let report = self.report()?.filter(|report| Some(report.pid) == pid);
                if let Some(report) = report.filter(|report| is_there(report)) {
                    return Ok(report);
                }
                tokio::select! {
                    () = stop.cancelled() => return Err(left_installed()),
                    () = sleep(LOOK) => {}
                }
            }
        }
        let standing = service::standing(&self.manager, NODE).await?;
        let last = self.report()?.and_then(|report| report.last_error);
        let why = last.map_or_else(String::new, |error| format!(": {error}"));
        Err(failure(format!(
            "the service is installed, {}, and {problem} after {} s{why}",
            standing.words,
            CONNECT_TIME.as_secs()
        ))
        .hint("it goes on trying; how it stands: moltis node status; what it says: moltis node logs -f"))
    }
}

fn cancelled() -> Failure {
    failure("stopped before anything was changed").exit(Exit::CANCELLED)
}

fn left_installed() -> Failure {
    failure("stopped while the service starts; it is installed and goes on")
        .hint("how it stands: moltis node status; to take it away: moltis node remove")
        .exit(Exit::CANCELLED)
}
