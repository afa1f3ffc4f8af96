//! A spool file in memory.

use moltis_proto::run::outbox::{SpoolDone, SpoolHeader, SpoolOp};

use crate::LIMITS;

/// A spool file.
#[derive(Debug, Default, Clone)]
pub(crate) struct File {
    pub(crate) header: Option<SpoolHeader>,
    bytes: Vec<u8>,
}

impl File {
    pub(crate) fn perform(&mut self, op: SpoolOp) -> SpoolDone {
        match op {
            SpoolOp::Write {
                before,
                parts,
                after,
            } => {
                self.header = before.or(self.header);
                assert!(self.header.is_some_and(|header| header.is_sound()));
                for (position, part) in parts {
                    let (from, to) = (index(position), index(position) + part.len());
                    self.bytes.resize(self.bytes.len().max(to), 0);
                    self.bytes[from..to].copy_from_slice(&part);
                }
                assert!(self.bytes.len() as u64 <= LIMITS.spool_bytes);
                assert!(after.is_sound());
                self.header = Some(after);
                SpoolDone::Done
            }
            SpoolOp::Read { position, length } => {
                let from = index(position);
                let bytes = self.bytes[from..from + index(length)].to_vec();
                SpoolDone::Read(bytes.into())
            }
            SpoolOp::Clear => {
                *self = Self::default();
                SpoolDone::Done
            }
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}
