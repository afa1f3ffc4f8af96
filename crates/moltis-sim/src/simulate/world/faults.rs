//! How each fault is done to a world, and how all of them end.

use std::time::Duration;

use jiff::SignedDuration;

use super::gateway::Death;
use super::link::Linked;
use super::{World, spawn};
use crate::simulate::net::{Door, Place, Sent, Weather};
use crate::simulate::plan::{Fault, GATEWAY};
use crate::simulate::trace::note;

impl World {
    /// Does it.
    pub(super) async fn fault(&mut self, fault: Fault) {
        *self.faults.entry(fault.name()).or_default() += 1;
        note!(self.witness.trace, "FAULT", "{fault:?}");
        let fault = match fault {
            // What befalls a machine befalls all that is on it.
            Fault::Reboot(1) if self.is_beside => Fault::Reboot(GATEWAY),
            Fault::PowerCut(1 | GATEWAY) if self.is_beside => Fault::PowerCutGateway,
            fault => fault,
        };
        match fault {
            Fault::Cut(place) => self.net.cut(place),
            Fault::CutAfter(place, bytes) => self.net.cut_after(place, bytes),
            Fault::Silence(place) => self.net.silence(place),
            Fault::Weather(place, weather) => {
                let door = self.net.weather(place).door;
                self.net.set_weather(place, Weather { door, ..weather });
            }
            Fault::Door(place, door, time) => self.shut(place, door, time),
            Fault::Storm => (1..=self.nodes.len()).for_each(|place| self.net.cut(place)),
            Fault::Double(place, time) => self.node(place).double(time),
            Fault::Clone(place, time) => self.clone_node(place, time),
            Fault::Stranger(place, claim, time) => self.send_stranger(place, claim, time),
            Fault::KillLink(place) => self.node(place).kill(),
            Fault::StopLink(place) => self.node(place).stop(),
            Fault::UpgradeLink(place) => self.node(place).upgrade(),
            Fault::KillKeeper(place) => {
                if let Some(machine) = self.machine(place) {
                    machine.kill_keepers();
                }
            }
            Fault::KillKeeperIn(place, steps) => {
                if let Some(machine) = self.machine(place) {
                    machine.disk().kill_in(steps);
                }
            }
            Fault::KillKeeperInRare(place, steps) => {
                if let Some(machine) = self.machine(place) {
                    machine.disk().kill_in_rare(steps);
                }
            }
            Fault::LeaveKeeper(place) => {
                if let Some(machine) = self.machine(place) {
                    machine.leave_keepers();
                }
            }
            Fault::KillGateway(sent) => self.kill_gateway(Death::Killed(sent)),
            Fault::KillGatewayIn(steps) => self.served.disk().kill_in(steps),
            Fault::KillGatewayInRare(steps) => self.served.disk().kill_in_rare(steps),
            Fault::KillKeeperAt(place, boundaries) => {
                if let Some(machine) = self.machine(place) {
                    machine.disk().kill_at(boundaries);
                }
            }
            Fault::KillGatewayAt(boundary) => self.served.disk().kill_at(vec![boundary]),
            Fault::PowerCutGatewayAt(boundary) => self.served.disk().cut_power_at(boundary),
            Fault::Freeze(place, time) => self.node(place).freeze(time),
            Fault::StopGateway => {
                let served = self.served.clone();
                spawn(async move { served.shut_down().await });
            }
            Fault::PowerCutGateway => self.kill_gateway(Death::PowerCut),
            Fault::Backup => self.served.back_up(),
            Fault::Restore => self.kill_gateway(Death::Restored),
            Fault::Reboot(place) => self.reboot(place),
            Fault::PowerCut(place) => {
                self.reboot(place);
                if let Some(machine) = self.machine(place).cloned() {
                    // Whatever its dead processes hold is let go first.
                    tokio::task::yield_now().await;
                    machine.lose_files(&mut self.dice);
                }
            }
            Fault::DiskOfKeeper(place, trouble, steps) => {
                if let Some(machine) = self.machine(place) {
                    machine.disk().trouble(trouble, steps);
                }
            }
            Fault::DiskOfGateway(trouble, steps) => {
                self.served.disk().trouble(trouble, steps);
            }
            Fault::SlowDisks(takes, time) => self.slow_disks(takes, time),
            Fault::Suspend(place, time) => {
                // Whatever has come already has come before it.
                tokio::time::sleep(Duration::from_millis(1)).await;
                self.node(place).sleep(time);
            }
            Fault::ClockJumps(seconds) => {
                self.clock_is_off += SignedDuration::from_secs(seconds);
                self.turn_clock();
            }
        }
    }

    /// Ends whatever is wrong with the world.
    pub(super) fn heal(&mut self) {
        for place in 1..=self.nodes.len() {
            self.node(place).freeze(Duration::ZERO);
            self.net.set_weather(place, Weather::FAIR);
        }
        if self.is_thin {
            // What waits for the thin line goes by another one.
            self.node(1).set_steady(false);
            self.net.cut(1);
        }
        let machines = self.nodes.iter().map(Linked::machine);
        for machine in machines.chain(&self.local) {
            machine.disk().heal();
        }
        for guest in std::mem::take(&mut self.guests) {
            guest.vanish();
        }
        self.served.disk().heal();
        // A store whose disk has failed takes nothing more until somebody begins the gateway anew.
        if self.served.disk().troubled() > 0 {
            self.kill_gateway(Death::Killed(Sent::Arrives));
        }
    }

    fn kill_gateway(&mut self, death: Death) {
        self.served.back_in(self.dice.millis(1, 5_000));
        self.served.die(death);
    }

    /// A door that is shut, and opened again later.
    fn shut(&self, place: Place, door: Door, time: Duration) {
        let (net, weather) = (self.net.clone(), self.net.weather(place));
        net.set_weather(place, Weather { door, ..weather });
        spawn(async move {
            tokio::time::sleep(time).await;
            let door = Door::Open;
            let weather = net.weather(place);
            net.set_weather(place, Weather { door, ..weather });
        });
    }

    fn reboot(&mut self, place: Place) {
        if place == GATEWAY {
            // Its keepers go with it, and come back with it.
            self.kill_gateway(Death::Killed(Sent::IsLost));
            self.served.next_boot();
            if let Some(machine) = &self.local {
                machine.reboot();
            }
            if self.is_beside {
                let node = self.node(1);
                node.kill();
                node.machine().reboot();
            }
            return;
        }
        // The other ends hear nothing of it.
        self.net.silence(place);
        let node = self.node(place);
        node.kill();
        node.machine().reboot();
    }

    fn slow_disks(&self, takes: Duration, time: Duration) {
        let machines = self.nodes.iter().map(Linked::machine);
        let disks = machines.chain(&self.local).map(|it| it.disk().clone());
        let disks: Vec<_> = disks.chain([self.served.disk().clone()]).collect();
        for disk in &disks {
            disk.slow(takes);
        }
        spawn(async move {
            tokio::time::sleep(time).await;
            for disk in &disks {
                disk.slow(Duration::ZERO);
            }
        });
    }
}
