//! `moltis node add` without `--foreground`: join, then leave the work to a service.
//!
//! What could fail is looked at before anybody is asked to approve anything: whether a manager
//! answers, whether the service may start, whether it is this home's. A service that runs and is
//! connected is updated in place; one that is not makes room for the joining and, where that comes
//! to nothing, is started again.

use std::time::Duration;

use moltis_node::state::{self, Report};
use moltis_service::{Installation, Manager, Service};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::meet::{Met, Until, meet};
use super::request::{self, Request};
use crate::commands::Context;
use crate::exit::Exit;
use crate::failure::{Failure, OrFail as _, failure};
use crate::paths::Home;
use crate::service::{self, NODE, failed};

/// How long a service that was started may take to reach the gateway that we have just reached.
const CONNECT_TIME: Duration = Duration::from_secs(30);

/// How often node.state is looked at while it is waited for.
const LOOK: Duration = Duration::from_millis(20);

/// `moltis node add`.
pub(super) async fn add(
    context: &Context,
    home: &Home,
    request: &Request,
    no_wait: bool,
) -> anyhow::Result<Exit> {
    let at = At::check(context, home).await?;
    if at.is_connected().await? && request.joined(home)?.is_some() {
        request.write(home)?;
        return at.install("Updated.").await;
    }
    let interrupted = at.make_room().await?;
    let until = if no_wait {
        Until::Heard
    } else {
        Until::Accepted
    };
    let met = match meet(context, home, request, until).await {
        Ok(met) => met,
        Err(error) => {
            at.give_back(interrupted).await;
            return Err(error);
        }
    };
    if met.accepted {
        let done = if met.approved { "Approved." } else { "Joined." };
        return at.install(done).await;
    }
    if met.waiting && (no_wait || wants_to_wait(context).await?) {
        return at.leave_waiting(&met).await;
    }
    met.joined.undo(home);
    at.give_back(interrupted).await;
    Ok(Exit::CANCELLED)
}

/// Asks whether a service shall wait in place of the person who pressed Ctrl+C.
async fn wants_to_wait(context: &Context) -> anyhow::Result<bool> {
    let output = context.output;
    if !output.stdin_is_terminal() || !output.stderr_is_terminal() {
        output.note(
            "not joined; the request waits its time out, and the same line takes it up again",
        );
        output.hint("to let a service wait for the answer: the same line with --no-wait");
        return Ok(false);
    }
    output.note("");
    let mut interrupt = signal(SignalKind::interrupt())?;
    let question = tokio::task::spawn_blocking(move || {
        output.confirm(
            "Install the service, and let it wait for the answer?",
            "--no-wait",
        )
    });
    tokio::select! {
        answer = question => answer?,
        _ = interrupt.recv() => Ok(false),
    }
}

/// A home and the manager of its service.
struct At<'a> {
    context: &'a Context,
    home: &'a Home,
    manager: Manager,
    service: Service,
}

/// A service was stopped, and is owed a start.
#[derive(Debug, Clone, Copy)]
#[must_use = "what was stopped is started again"]
struct Interrupted(bool);

impl<'a> At<'a> {
    /// Looks at everything that could be in the way, and changes nothing.
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
        let report = self
            .report()?
            .filter(|report| report.connected_since.is_some());
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

    /// Stops the service, where it runs: two processes cannot be one node.
    async fn make_room(&self) -> Result<Interrupted, Failure> {
        let standing = service::standing(&self.manager, NODE).await?;
        if standing.word == "not_installed" {
            return Ok(Interrupted(false));
        }
        let stopped = self.manager.stop(NODE).await;
        stopped.map_err(|error| failed(error, NODE))?;
        Ok(Interrupted(standing.pid.is_some()))
    }

    /// Starts a service again that had to make room.
    async fn give_back(&self, interrupted: Interrupted) {
        if interrupted.0
            && let Err(error) = self.manager.start(NODE).await
        {
            self.context.output.warn(&format!(
                "the service was stopped for this and does not start: {error}"
            ));
        }
    }

    /// Installs the service and sees that it is connected.
    async fn install(&self, done: &str) -> anyhow::Result<Exit> {
        let installation = self.bring_up().await?;
        self.wait_for("is not connected", |report| {
            report.connected_since.is_some()
        })
        .await?;
        self.context.output.text(&format!(
            "{done} Service installed and running ({}).",
            self.home.show(&installation.path)
        ))?;
        self.tell_beside(&installation).await;
        Ok(Exit::SUCCESS)
    }

    /// Installs the service and lets it wait for the answer.
    async fn leave_waiting(&self, met: &Met) -> anyhow::Result<Exit> {
        let gateway = met.gateway;
        let gateway = gateway.ok_or_else(|| failure("the gateway has not shown its key"))?;
        request::leave_waiting(self.home, gateway)?;
        let installation = self.bring_up().await?;
        let report = self
            .wait_for("has not asked", |report| {
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
            "Service installed; it waits for the answer ({}).",
            self.home.show(&installation.path)
        ))?;
        output.note(
            "on the gateway: moltis node pending, then moltis node approve <id>; \
             each connection has a code of its own, and moltis node status shows the latest",
        );
        self.tell_beside(&installation).await;
        Ok(Exit::SUCCESS)
    }

    async fn bring_up(&self) -> Result<Installation, Failure> {
        let installed = self.manager.install(&self.service).await;
        installed.map_err(|error| failed(error, NODE))
    }

    async fn tell_beside(&self, installation: &Installation) {
        let output = self.context.output;
        service::tell_beside(output, self.home, &self.manager, NODE, installation).await;
    }

    /// Waits until the service says of itself what it should.
    async fn wait_for(
        &self,
        problem: &str,
        is_there: impl Fn(&Report) -> bool,
    ) -> Result<Report, Failure> {
        let pid = self.pid().await?;
        let own = |report: &Report| Some(report.pid) == pid;
        let comes = async {
            loop {
                match self.report()? {
                    Some(report) if own(&report) && is_there(&report) => return Ok(report),
                    _ => sleep(LOOK).await,
                }
            }
        };
        if let Ok(came) = timeout(CONNECT_TIME, comes).await {
            return came;
        }
        let last = self.report()?.and_then(|report| report.last_error);
        let why = last.map_or_else(String::new, |error| format!(": {error}"));
        Err(failure(format!(
            "the service is installed and runs, and {problem} after {} s{why}",
            CONNECT_TIME.as_secs()
        ))
        .hint("it goes on trying; how it stands: moltis node status; what it says: moltis node logs -f"))
    }
}
