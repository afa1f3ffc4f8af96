//! I23: pairing never changes a pin. A device has the key that it was approved with, for ever.

use moltis_gateway::store::NodeRecord;

use crate::simulate::model::{Violation, violation};
use crate::simulate::world::World;

impl World {
    /// Looks at the pins that the gateway goes by.
    pub(in super::super) fn check_pins(&mut self) -> Result<(), Violation> {
        let life = self.served.life();
        let Some(gateway) = life.as_ref().and_then(|life| life.gateway()) else {
            return Ok(());
        };
        for record in gateway.pairing().nodes() {
            self.check_pin(&record)?;
        }
        Ok(())
    }

    /// Looks at the pins that are written.
    pub(in super::super) async fn check_written_pins(&mut self) -> Result<(), Violation> {
        let life = self.served.life();
        let Some(gateway) = life.as_ref().and_then(|life| life.gateway()) else {
            return Ok(());
        };
        let Ok(records) = gateway.store().nodes().await else {
            return Ok(()); // its disk is in trouble, or it has just died
        };
        for node in &self.nodes {
            let device = node.device_id();
            if !records.iter().any(|record| record.device_id == device) {
                let place = node.place();
                return Err(violation!("I23", "the node at {place} has no row any more"));
            }
        }
        for record in records {
            self.check_pin(&record)?;
        }
        Ok(())
    }

    fn check_pin(&mut self, record: &NodeRecord) -> Result<(), Violation> {
        let device = record.device_id;
        let known = *self.pins.entry(device).or_insert(record.node_key);
        if known != record.node_key {
            let node = &record.node_id;
            return Err(violation!("I23", "the key of `{node}` is another one now"));
        }
        let mut twice = self.pins.iter().filter(|(_, key)| **key == known);
        match twice.find(|(other, _)| **other != device) {
            None => Ok(()),
            Some((other, _)) => Err(violation!("I23", "{device} has the key of {other}")),
        }
    }
}
