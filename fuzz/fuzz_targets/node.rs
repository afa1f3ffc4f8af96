//! The node's side of a connection, fed with whatever the bytes say: a link whose gateway is believed,
//! and the runs behind it, whose children do what the bytes say too.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use moltis_identity::StrictVerifier;
use moltis_proto::handshake::gateway::GatewayHandshake;
use moltis_proto::handshake::node::{NodeClaim, Pin};
use moltis_proto::handshake::{
    Binding, Epoch, Intent, Introduction, SessionLimits, Signer, Transcript, Verdict, Verifier,
};
use moltis_proto::key::Digest;
use moltis_proto::liveness::Moment;
use moltis_proto::message::Windows;
use moltis_proto::node::{Action, Caller, Link, Runs, RunsConfig, ToChild};
use moltis_proto::run::ExitStatus;
use moltis_proto::version::{Ledger, LedgerRange};
use moltis_proto::{
    BootId, DeviceId, InstanceId, JournalId, NodeId, NodeName, Nonce, PublicKey, Signature,
    Subprotocol,
};

struct Believer;

impl Verifier for Believer {
    fn verify(&self, _: &PublicKey, _: &Transcript, _: &Signature) -> bool {
        true
    }

    fn is_sound(&self, _: &PublicKey) -> bool {
        true
    }

    fn sha256(&self, parts: &[&[u8]]) -> Digest {
        StrictVerifier.sha256(parts)
    }
}

/// Signs with nothing: who is believed need not, and signing costs more than all the rest.
struct Unsigned(PublicKey);

impl Signer for Unsigned {
    fn public_key(&self) -> PublicKey {
        self.0
    }

    fn sign(&self, _: &Transcript) -> Signature {
        Signature::from_bytes([0; 64])
    }
}

fuzz_target!(|bytes: &[u8]| {
    let [node, gateway] = [7, 8].map(|key| Unsigned(PublicKey::from_bytes([key; 32])));
    let nonce = Nonce::from_bytes([9; 32]);
    let binding = Binding {
        hash: [3; 32],
        subprotocol: Subprotocol::Postcard,
    };
    let codec = binding.subprotocol.codec();
    let caller = Caller {
        claim: NodeClaim {
            device_id: DeviceId::from_bytes([1; 16]),
            instance_id: InstanceId::from_bytes([2; 16]),
            boot_id: BootId::from_bytes([3; 16]),
            intent: Intent::Pair,
            ledgers: LedgerRange::CURRENT,
        },
        pin: Pin::FirstUse,
        introduction: Introduction::new(
            NodeId::new("fuzz").expect("a name"),
            NodeName::new("Fuzz").expect("a name"),
        ),
        signer: &node,
        verifier: &Believer,
        nonce,
    };
    let config = RunsConfig {
        boot_id: BootId::from_bytes([3; 16]),
        journal_id: JournalId::from_bytes([4; 16]),
        runs_max: 8,
        memory_bytes: 1024,
        env_allow: Vec::new(),
    };
    let mut runs = Runs::new(config, []);
    let mut now = Moment {
        monotonic: Instant::now(),
        boottime: Duration::ZERO,
    };
    let mut link = Link::new(binding, caller, now);
    let mut rest = bytes;
    // Most inputs are about what comes behind a good beginning.
    let first = rest.split_off_first().copied().unwrap_or_default();
    if first % 8 != 0 {
        let ledgers = LedgerRange::CURRENT;
        let (_, proof) = GatewayHandshake::new(binding, &gateway, &Believer, ledgers, nonce, nonce);
        let accepted = Verdict::Accepted {
            epoch: Epoch {
                incarnation: 1,
                counter: 1,
            },
            windows: Windows {
                run_bytes: 400,
                connection_bytes: 800,
                stdin_bytes: 100,
                chunk_bytes_max: 100,
            },
            limits: SessionLimits::STANDARD,
            ledger: Ledger::CLOCK,
        };
        for message in [codec.encode(&proof), codec.encode(&accepted)] {
            let message = message.expect("a short message");
            link.handle_plaintext(&message, &mut runs, now).ok();
        }
    }
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(behind.len());
        let (frame, behind) = behind.split_at(length);
        rest = behind;
        let ended = link.handle_plaintext(frame, &mut runs, now).is_err();
        let ms = frame.first().copied().unwrap_or_default();
        now.monotonic += Duration::from_millis(ms.into());
        now.boottime += Duration::from_millis(ms.into());
        let late = link.handle_timeout(now).is_err();
        runs.handle_timeout(now.monotonic);
        while link.poll_event().is_some() {}
        while let Some(action) = runs.poll_action(now.monotonic) {
            match action {
                Action::Start(run_id, ..) if ms % 4 == 0 => {
                    runs.handle_not_started(run_id, None, String::new());
                }
                Action::Start(run_id, ..) => runs.handle_started(run_id, 1, now.monotonic),
                Action::Child(run_id, ToChild::Read { stream, bytes_max }) => {
                    let read = frame[..frame.len().min(bytes_max)].to_vec();
                    runs.handle_read(run_id, stream, read.into(), now.monotonic);
                    // One output each time, or a child would write for ever.
                    break;
                }
                Action::Child(run_id, ToChild::Write(bytes)) => {
                    runs.handle_written(run_id, bytes.len());
                }
                Action::Child(run_id, ToChild::Signal(signal)) => {
                    let status = Some(ExitStatus::Signal(signal));
                    runs.handle_exited(run_id, status, now.monotonic);
                }
                Action::Child(_, ToChild::CloseStdin | ToChild::LetGo) | Action::Remember(_) => {}
            }
        }
        while let Ok(Some(_)) = link.poll_transmit(&mut runs, now.monotonic) {}
        if ended || late {
            break;
        }
    }
});
